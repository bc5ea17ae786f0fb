//! Acknowledgements that promise memory.

use std::collections::BTreeMap;

use chronik_replication::wire::ReceivedMark;

use super::trio::{Trio, replica};
use super::*;
use crate::catalog::Durability;

const RECEIVED: RequiredAcks = RequiredAcks::AllReceived;

/// What a catalog says of the group's topic that once was relaxed.
fn told(durability: Durability) -> BTreeMap<GroupId, Durability> {
    BTreeMap::from([(GROUP, durability)])
}

/// Three whose disks take nothing from now on.
fn trio_in_memory() -> Trio {
    let mut trio = Trio::led();
    for at in 0..3 {
        trio.cores[at].set_relaxed(&told(Durability::Relaxed));
        trio.hang(at);
    }
    trio
}

fn answered(trio: &Trio) -> Vec<(u64, Result<i64, ProduceError>)> {
    trio.replies.iter().map(|(_, token, result)| (token.0, *result)).collect()
}

fn watermark(trio: &Trio, at: usize) -> i64 {
    trio.cores[at].partition(GROUP).unwrap().high_watermark.0
}

#[test]
fn given_a_relaxed_topic_when_a_quorum_has_received_then_it_is_acknowledged_and_nobody_reads_it() {
    let mut trio = trio_in_memory();
    trio.produce_for(0, batch(2), RECEIVED, 1).unwrap();
    trio.produce_for(0, batch(1), RequiredAcks::All, 2).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [(1, Ok(0))]);
    assert_eq!((watermark(&trio, 0), watermark(&trio, 1)), (0, 0), "no disk has it");
    let figures = trio.cores[0].figures();
    assert_eq!((figures.acks_relaxed, figures.acks_durable), (1, 0));
    for at in 0..3 {
        trio.unhang(at);
    }
    trio.settle();
    assert_eq!(answered(&trio), [(1, Ok(0)), (2, Ok(2))]);
    assert_eq!((watermark(&trio, 0), watermark(&trio, 1)), (3, 3));
}

#[test]
fn given_a_leader_that_nobody_hears_when_it_is_asked_for_a_quorum_then_its_memory_is_not_enough() {
    let mut trio = trio_in_memory();
    trio.cut(1);
    trio.cut(2);
    trio.produce_for(0, batch(1), RECEIVED, 1).unwrap();
    trio.produce_for(0, batch(1), RequiredAcks::LeaderReceived, 2).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [(2, Ok(1))], "who asks for the leader has what it wants");
}

#[test]
fn given_marks_that_do_not_count_when_taken_then_nothing_is_acknowledged() {
    let mut trio = trio_in_memory();
    trio.cut(1);
    trio.cut(2);
    trio.produce_for(0, batch(1), RECEIVED, 1).unwrap();
    let last = trio.cores[0].groups[&GROUP].raft.last_index();
    let term = trio.cores[0].partition(GROUP).unwrap().leader_epoch;
    let good = ReceivedMark { group: GROUP, from: replica(1), to: replica(0), term, index: last };
    let bad = [
        ReceivedMark { term: Term(term.0 - 1), ..good },
        ReceivedMark { term: Term(term.0 + 1), ..good },
        ReceivedMark { from: ReplicaId(99), ..good },
        ReceivedMark { from: replica(0), ..good },
        ReceivedMark { to: replica(2), ..good },
        ReceivedMark { index: last.next(), ..good },
        ReceivedMark { group: GroupId(77), ..good },
    ];
    for mark in bad {
        trio.cores[0].take_received([mark]);
        trio.settle();
        assert_eq!(answered(&trio), [], "{mark:?}");
    }
    trio.cores[0].take_received([good]);
    trio.settle();
    assert_eq!(answered(&trio), [(1, Ok(0))]);
}

#[test]
fn given_a_mark_when_the_link_that_it_came_by_is_lost_then_it_counts_no_more() {
    let mut trio = trio_in_memory();
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), Ok(()));
    trio.cut(2);
    trio.produce_for(0, batch(1), RECEIVED, 1).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [], "three are asked for");
    trio.cut(1);
    trio.tell_lost(0, 1);
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 1), Ok(()));
    let core = &mut trio.cores[0];
    core.groups.get_mut(&GROUP).unwrap().release_received(&mut core.shared);
    trio.settle();
    assert_eq!(answered(&trio), [], "the second may have begun again since");
}

#[test]
fn given_more_than_a_quorum_is_asked_for_when_as_many_have_received_then_it_is_acknowledged() {
    let mut trio = trio_in_memory();
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), Ok(()));
    trio.cut(2);
    trio.produce_for(0, batch(1), RECEIVED, 1).unwrap();
    trio.settle();
    trio.unhang(0);
    trio.unhang(1);
    trio.settle();
    assert_eq!((answered(&trio), watermark(&trio, 0)), (Vec::new(), 1), "it is read, and held");
    trio.join(2);
    trio.produce_for(0, batch(1), RECEIVED, 2).unwrap();
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    assert_eq!(answered(&trio), [(1, Ok(0)), (2, Ok(1))], "in order, and not on the third's disk");
}

#[test]
fn given_an_acknowledged_batch_that_is_not_committed_when_it_comes_again_then_it_is_answered_alike()
{
    let mut trio = trio_in_memory();
    trio.produce_for(0, sequenced(0, 3), RECEIVED, 1).unwrap();
    trio.settle();
    trio.produce_for(0, sequenced(0, 3), RECEIVED, 2).unwrap();
    trio.produce_for(0, sequenced(0, 3), RequiredAcks::All, 3).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [(1, Ok(0)), (2, Ok(0))], "who asks for disks waits for them");
    trio.cut(1);
    trio.cut(2);
    trio.produce_for(0, sequenced(3, 1), RECEIVED, 4).unwrap();
    trio.produce_for(0, sequenced(3, 1), RECEIVED, 5).unwrap();
    trio.settle();
    assert_eq!(answered(&trio).len(), 2, "neither is in the memory of a quorum");
    for at in 0..3 {
        trio.unhang(at);
        trio.join(at);
    }
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    let rest: Vec<_> = answered(&trio).into_iter().skip(2).collect();
    assert_eq!(rest, [(3, Ok(0)), (4, Ok(3)), (5, Ok(3))]);
}

#[test]
fn given_a_topic_that_is_changed_when_batches_are_in_flight_then_each_waits_for_what_it_was_proposed_for()
 {
    let mut trio = trio_in_memory();
    trio.produce_for(0, batch(1), RequiredAcks::All, 1).unwrap();
    trio.produce_for(0, batch(1), RECEIVED, 2).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [(2, Ok(1))]);
    for core in &mut trio.cores {
        core.set_relaxed(&told(Durability::Durable));
    }
    trio.produce_for(0, batch(1), RECEIVED, 3).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [(2, Ok(1))], "followers tell nothing of a durable topic");
    for at in 0..3 {
        trio.unhang(at);
    }
    trio.settle();
    assert_eq!(answered(&trio), [(2, Ok(1)), (1, Ok(0)), (3, Ok(2))]);
}

#[test]
fn given_a_lone_replica_when_its_topic_is_relaxed_then_its_memory_is_enough_and_readers_wait() {
    let mut bench = Bench::with_partition();
    let all = bench.produce(batch(1), RECEIVED).unwrap();
    let leader = bench.produce(batch(1), RequiredAcks::LeaderReceived).unwrap();
    assert_eq!(bench.replies(), [(all, Ok(0)), (leader, Ok(1))]);
    assert_eq!(bench.core.partition(GROUP).unwrap().high_watermark, Offset(0));
    bench.write_all();
    assert_eq!(bench.core.partition(GROUP).unwrap().high_watermark, Offset(2));
    assert_eq!(bench.replies(), []);
}

#[test]
fn given_a_disk_that_is_late_when_batches_come_then_they_wait_for_it_in_order() {
    let mut bench = Bench::with_partition();
    let before = bench.produce(batch(1), RECEIVED).unwrap();
    assert_eq!(bench.replies(), [(before, Ok(0))]);
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    for _ in 0..=relaxed_late_ticks() {
        bench.core.tick(0);
    }
    let all = bench.produce(batch(1), RECEIVED).unwrap();
    let leader = bench.produce(batch(1), RequiredAcks::LeaderReceived).unwrap();
    assert_eq!(bench.replies(), [], "the disk has said nothing for 100 ms");
    bench.core.block_persisted(block);
    assert_eq!(bench.replies(), [(leader, Ok(2)), (all, Ok(1))]);
}

fn relaxed_late_ticks() -> u64 {
    super::super::relaxed::LATE_TICKS
}

#[test]
fn given_a_shard_that_stops_when_batches_come_then_nothing_is_promised() {
    let mut bench = Bench::with_partition();
    bench.core.end_promises();
    let token = bench.produce(batch(1), RECEIVED).unwrap();
    assert_eq!(bench.replies(), []);
    bench.write_all();
    assert_eq!(bench.replies(), [(token, Ok(0))]);

    let mut trio = trio_in_memory();
    trio.cores[1].end_promises();
    trio.cut(2);
    trio.produce_for(0, batch(1), RECEIVED, 1).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [], "what the second has it may never write");
}

/// The record is in the memory of the first two, and the first ends and begins again; the second, which has it, is out of
/// reach for a moment. The first has not read the catalog.
fn trio_whose_leader_forgets() -> Trio {
    let mut trio = trio_in_memory();
    trio.cut(2);
    trio.produce_for(0, batch(1), RECEIVED, 1).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), [(1, Ok(0))]);
    trio.unhang(1);
    trio.unhang(2);
    trio.cut(1);
    trio.join(2);
    trio.restart(0);
    trio.tell_lost(1, 0);
    trio.tell_lost(2, 0);
    trio.tell_lost(2, 1);
    trio
}

#[test]
fn given_a_leader_that_forgot_when_another_lacks_the_record_too_then_they_wait_for_who_has_it() {
    let (relaxed, durable) = (told(Durability::Relaxed), told(Durability::Durable));
    let never = BTreeMap::new();
    // What the first reads in the catalog as it begins again, if it gets that far, and what the third has read.
    let cases = [
        (Some(&relaxed), &relaxed),
        (Some(&relaxed), &never),
        (Some(&durable), &durable),
        (Some(&durable), &never),
        (None, &relaxed),
        (None, &never),
    ];
    for (first, third) in cases {
        let mut trio = trio_whose_leader_forgets();
        trio.cores[2].set_relaxed(third);
        if let Some(first) = first {
            trio.cores[0].set_relaxed(first);
        }
        for _ in 0..40 {
            trio.tick();
            trio.settle();
            let is_lost = trio.is_ready(0) || trio.is_ready(2);
            assert!(!is_lost, "the record would be lost: {first:?} {third:?}");
        }
        trio.join(1);
        for _ in 0..60 {
            trio.tick();
            trio.settle();
        }
        assert!((0..3).any(|at| trio.is_ready(at)));
        assert_eq!((0..3).map(|at| watermark(&trio, at)).collect::<Vec<_>>(), [1, 1, 1]);
    }
}

#[test]
fn given_who_has_the_record_is_gone_for_good_when_they_have_waited_then_the_others_go_on() {
    let mut trio = trio_whose_leader_forgets();
    let leads = |trio: &mut Trio| {
        trio.tick();
        trio.settle();
        trio.is_ready(0) || trio.is_ready(2)
    };
    assert!((0..300).any(|_| leads(&mut trio)), "two of three find a leader");
}

#[test]
fn given_a_topic_that_never_was_relaxed_when_its_leader_has_read_so_then_nobody_waits() {
    let mut trio = trio_whose_leader_forgets();
    trio.cores[0].set_relaxed(&BTreeMap::new());
    let leads = |trio: &mut Trio| {
        trio.tick();
        trio.settle();
        trio.is_ready(0) || trio.is_ready(2)
    };
    assert!((0..40).any(|_| leads(&mut trio)), "it lost nothing that it answered for");
}

#[test]
fn given_a_group_without_records_when_it_begins_again_then_there_is_nothing_that_it_promised() {
    let mut bench = Bench::with_partition();
    bench.core.create_group(GroupId::META, alone(6));
    bench.write_all();
    bench.restart();
    let may_have_forgotten = |group| bench.core.groups[&group].forgot_at.is_some();
    assert!(may_have_forgotten(GROUP), "it does not know what its topic was");
    assert!(!may_have_forgotten(GroupId::META), "elections of the catalog wait for nobody");
}
