//! Groups that a node must not take along when it leaves its cluster.

use chronik_replication::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::nodes::member;
use super::*;

fn learns(replica: u64) -> ConfChangeV2 {
    let mut single = ConfChangeSingle { node_id: replica, ..ConfChangeSingle::default() };
    single.set_change_type(ConfChangeType::AddLearnerNode);
    ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() }
}

#[test]
fn given_groups_with_others_in_whatever_part_when_a_node_is_to_be_alone_then_the_first_is_named() {
    let mut bench = Bench::with_partition();
    let (learns_here, votes_here, gone) = (GroupId(2), GroupId(3), GroupId(4));
    bench.core.create_group(learns_here, member(learns_here, 6, &[6], &[7]));
    bench.core.create_group(votes_here, member(votes_here, 8, &[8, 9], &[]));
    bench.core.create_group(gone, member(gone, 10, &[10, 11], &[]));
    bench.write_all();
    bench.core.delete_group(gone);
    bench.write_all();
    let first = |groups: &[u64]| bench.core.first_shared(groups.iter().copied().map(GroupId));
    assert_eq!(first(&[]), None);
    assert_eq!(first(&[1]), None, "nobody else belongs to it");
    assert_eq!(first(&[1, 4, 77]), None, "what is not here has no members here");
    assert_eq!(first(&[1, 2]), Some(learns_here));
    assert_eq!(first(&[1, 3, 2]), Some(votes_here));
}

#[test]
fn given_a_log_that_makes_another_a_member_when_it_is_not_applied_then_the_group_is_shared() {
    let mut bench = Bench::with_partition();
    let (checkpoints, written) = (bench.core.checkpoints(), bench.records.len());
    bench.core.propose_members(GROUP, &learns(7)).unwrap();
    bench.write_all();
    let since = bench.records.split_off(written);
    // The hard state that says that it is committed is not in it.
    let entries: Vec<WalRecord> =
        since.into_iter().filter(|record| matches!(record, WalRecord::Entry { .. })).collect();
    bench.restart_from(checkpoints, &entries);
    let (members, _) = bench.core.members(GROUP).unwrap();
    assert_eq!(members.learners, [], "it is not applied");
    assert_eq!(bench.core.first_shared([GROUP]), Some(GROUP));
}
