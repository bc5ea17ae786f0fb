//! Groups have their ticks in turns, and none is lost.

use super::*;

const GROUPS: u64 = 40;
/// A group of three whose other replicas never come.
const WAITING: GroupId = GroupId(GROUPS + 1);

fn bench() -> Bench {
    let mut bench = Bench::new();
    for id in 1..=GROUPS {
        bench.core.create_group(GroupId(id), alone(id));
    }
    let voters: Vec<ReplicaId> = (100..103).map(ReplicaId).collect();
    let waiting = GroupMeta { replica: voters[0], voters, ..GroupMeta::default() };
    bench.core.create_group(WAITING, waiting);
    bench.write_all();
    bench
}

impl Bench {
    /// Ticks that each group has not had yet.
    fn ticks_missed(&self) -> BTreeMap<GroupId, u64> {
        let now = self.core.shared.ticks.now;
        self.core.groups.iter().map(|(id, group)| (*id, now.since(group.ticked))).collect()
    }
}

#[test]
fn given_many_groups_when_ticks_pass_then_each_has_its_turn_and_no_tick_is_lost() {
    let mut bench = bench();
    for _ in 0..100 {
        bench.core.tick(0);
        let missed = bench.ticks_missed();
        assert!(missed.values().all(|missed| *missed < 10), "{missed:?}");
        assert!(missed.values().any(|missed| *missed > 0), "not all at once");
    }
}

#[test]
fn given_a_group_without_a_leader_when_ticks_pass_then_it_has_each_when_it_comes() {
    let mut bench = bench();
    for _ in 0..100 {
        bench.core.tick(0);
        assert_eq!(bench.ticks_missed()[&WAITING], 0);
    }
}

#[test]
fn given_a_group_made_later_when_its_turn_comes_then_what_passed_before_does_not_count() {
    let mut bench = bench();
    for _ in 0..1000 {
        bench.core.tick(0);
    }
    let late = GroupId(GROUPS + 2);
    bench.core.create_group(late, alone(200));
    assert_eq!(bench.ticks_missed()[&late], 0);
}

#[test]
fn given_a_clock_that_is_set_back_when_a_command_of_another_node_is_lost_then_nobody_waits_longer()
{
    let mut bench = Bench::new();
    bench.core.tick(1_000_000_000);
    let id = crate::catalog::CommandId(uuid::Uuid::from_u128(7));
    bench.core.await_command(id, Token(1)).unwrap();
    let mut ticks = 0;
    let replies = loop {
        bench.core.tick(5);
        ticks += 1;
        let replies = bench.replies();
        if !replies.is_empty() || ticks > 10_000 {
            break replies;
        }
    };
    assert_eq!(replies, [(Token(1), Err(ProduceError::NotLeader))], "after {ticks} ticks");
    assert!((2_400..2_402).contains(&ticks), "{ticks}");
}

#[test]
fn given_a_clock_that_is_set_ahead_when_a_command_of_another_node_is_on_its_way_then_it_is_waited_for()
 {
    let mut bench = Bench::new();
    let id = crate::catalog::CommandId(uuid::Uuid::from_u128(7));
    bench.core.await_command(id, Token(1)).unwrap();
    for _ in 0..2_400 {
        bench.core.tick(1_000_000_000);
        assert_eq!(bench.replies(), []);
    }
}
