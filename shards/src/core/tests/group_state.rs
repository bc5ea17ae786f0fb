//! What consumer groups may take in the log of a partition of `__consumer_offsets`.

use super::*;
use crate::catalog::{PartitionKind, PartitionTag, TopicId};
use crate::groups::{COMMAND_BYTES_MAX, GroupCommand, SavedOffset};

fn commit(group: &str, metadata_bytes: usize) -> GroupCommand {
    let saved = SavedOffset {
        offset: 1,
        raft_group: GROUP,
        leader_epoch: -1,
        metadata: "m".repeat(metadata_bytes),
        committed_ms: 1,
        expires_ms: None,
    };
    GroupCommand::Commit { group: group.to_owned(), offsets: vec![("t".to_owned(), 0, saved)] }
}

#[test]
fn given_groups_that_fill_a_snapshot_when_more_is_committed_then_it_is_refused_until_some_is_deleted()
 {
    let topic = TopicId(Uuid::from_u128(1));
    let tag = PartitionTag { topic, partition: 0, kind: PartitionKind::Groups };
    let mut bench = Bench::new();
    bench.core.create_group(GROUP, GroupMeta { tag: tag.encode(), ..alone(5) });
    bench.write_all();
    let large = COMMAND_BYTES_MAX - 10_000;
    let propose = |bench: &mut Bench, command: &GroupCommand| {
        bench.next_token += 1;
        bench.core.propose_group_command(GROUP, command, Token(bench.next_token))
    };
    for group in ["a", "b", "c", "d"] {
        assert_eq!(propose(&mut bench, &commit(group, large)), Ok(()));
        bench.write_all();
    }
    assert_eq!(propose(&mut bench, &commit("e", 100_000)), Err(ProduceError::CommandTooLarge));
    // Who only moves on has its room already.
    for _ in 0..3 {
        assert_eq!(propose(&mut bench, &commit("a", large)), Ok(()));
        bench.write_all();
    }
    let more = commit("a", large + 1);
    assert_eq!(propose(&mut bench, &more), Err(ProduceError::CommandTooLarge));
    let deletion = GroupCommand::DeleteGroup { group: "a".to_owned() };
    assert_eq!(propose(&mut bench, &deletion), Ok(()));
    bench.write_all();
    assert_eq!(propose(&mut bench, &commit("e", large)), Ok(()));
}
