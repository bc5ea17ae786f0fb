//! Who may answer what: leaders that a quorum confirms, and replicas that follow.

use super::trio::{AGE_TICKS, Trio};
use super::*;
use crate::core::reconcile::Wanted;

fn barrier(trio: &mut Trio, at: usize, token: u64) -> Result<ReadBarrier, FetchError> {
    trio.cores[at].read_barrier(GROUP, Token(token))
}

#[test]
fn given_a_group_of_one_when_a_reader_comes_then_it_passes_and_nobody_is_asked() {
    let mut bench = Bench::with_partition();
    assert_eq!(bench.core.read_barrier(GROUP, Token(1)), Ok(ReadBarrier::Passed));
    let effects = bench.core.take_effects();
    assert!(effects.messages.is_empty() && effects.reads.is_empty());
    assert_eq!(bench.core.read_barrier(GroupId(9), Token(1)), Err(FetchError::UnknownPartition));
}

#[test]
fn given_readers_when_a_round_is_under_way_then_later_ones_wait_for_the_next() {
    let mut trio = Trio::led();
    assert_eq!(barrier(&mut trio, 0, 1), Ok(ReadBarrier::Waits));
    assert_eq!(barrier(&mut trio, 0, 2), Ok(ReadBarrier::Waits));
    assert_eq!(barrier(&mut trio, 0, 3), Ok(ReadBarrier::Waits));
    assert_eq!(barrier(&mut trio, 1, 4), Err(FetchError::NotLeader));
    for _ in 0..3 {
        assert_eq!(trio.reads, [], "a quorum has not answered");
        trio.step();
        if !trio.reads.is_empty() {
            break;
        }
    }
    trio.step();
    assert_eq!(trio.reads.first(), Some(&(0, Token(1), Ok(()))));
    trio.settle();
    let passed: Vec<_> = trio.reads.iter().map(|(_, token, result)| (token.0, *result)).collect();
    assert_eq!(passed, [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
}

#[test]
fn given_a_leader_that_was_replaced_when_it_is_asked_then_nobody_passes() {
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    trio.depose_first();
    assert_eq!(barrier(&mut trio, 0, 5), Ok(ReadBarrier::Waits));
    assert_eq!(barrier(&mut trio, 1, 6), Ok(ReadBarrier::Waits));
    trio.settle();
    assert_eq!(trio.reads, [(1, Token(6), Ok(()))]);
    trio.join(0);
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    assert_eq!(trio.reads[1..], [(0, Token(5), Err(FetchError::NotLeader))]);
}

#[test]
fn given_a_leader_without_a_quorum_when_a_reader_waits_then_it_is_sent_away_in_time() {
    let mut trio = Trio::led();
    trio.cut(0);
    assert_eq!(barrier(&mut trio, 0, 1), Ok(ReadBarrier::Waits));
    for _ in 0..60 {
        assert_eq!(trio.reads, []);
        trio.cores[0].tick(0);
        trio.settle();
    }
    assert_eq!(trio.reads, [(0, Token(1), Err(FetchError::NotLeader))]);
}

#[test]
fn given_readers_that_wait_when_the_core_stops_or_the_group_goes_then_each_is_told_once() {
    let mut trio = Trio::led();
    trio.cut(0);
    for token in 1..=2 {
        assert_eq!(barrier(&mut trio, 0, token), Ok(ReadBarrier::Waits));
    }
    trio.cores[0].delete_group(GROUP);
    trio.settle();
    let gone = Err(FetchError::UnknownPartition);
    assert_eq!(trio.reads, [(0, Token(1), gone), (0, Token(2), gone)]);
    assert_eq!(barrier(&mut trio, 0, 3), gone.map(|()| ReadBarrier::Waits));
    let mut other = Trio::led();
    other.cut(0);
    assert_eq!(barrier(&mut other, 0, 1), Ok(ReadBarrier::Waits));
    other.cores[0].abort_all();
    other.settle();
    assert_eq!(other.reads, [(0, Token(1), Err(FetchError::NotLeader))]);
}

#[test]
fn given_a_gap_in_a_sequence_when_the_leader_is_confirmed_then_it_is_refused_and_else_sent_away() {
    let mut trio = Trio::led();
    assert_eq!(trio.produced(0, sequenced(0, 2), 1), 0);
    // On a leader that leads the gap is one, which it says only after it has asked.
    trio.produce(0, sequenced(7, 1), 2).unwrap();
    trio.settle();
    let (_, token, result) = trio.replies.pop().unwrap();
    assert_eq!(token, Token(2));
    let is_gap = |result: &Result<i64, ProduceError>| {
        let error = producers::SequenceError::OutOfOrderSequence {
            producer_id: 7,
            sequence: 7,
            last: Some(1),
        };
        *result == Err(ProduceError::Sequence(error))
    };
    assert!(is_gap(&result), "{result:?}");
    // The producer goes on at the next leader, and comes back to the old one.
    trio.depose_first();
    assert_eq!(trio.produced(1, sequenced(2, 5), 3), 2);
    trio.produce(0, sequenced(7, 1), 4).unwrap();
    trio.settle();
    assert!(trio.replies.iter().all(|(_, token, _)| *token != Token(4)), "it cannot know");
    trio.join(0);
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    assert_eq!(trio.replies.last(), Some(&(0, Token(4), Err(ProduceError::NotLeader))));
    assert_eq!(trio.produced(1, sequenced(7, 1), 5), 7);
}

#[test]
fn given_peers_that_go_when_batches_are_for_all_then_as_many_must_be_in_sync_as_are_asked_for() {
    let mut trio = Trio::led();
    let replicas = |ids: &[u64]| Some(ids.iter().map(|id| ReplicaId(*id)).collect::<Vec<_>>());
    assert_eq!(trio.cores[0].in_sync(GROUP), replicas(&[11, 12, 13]));
    assert_eq!(trio.cores[1].in_sync(GROUP), None, "only a leader knows");
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 100), Ok(()), "there are no more than three");
    assert_eq!(trio.cores[0].figures().under_replicated, 0);
    trio.cut(2);
    trio.tell_lost(0, 2);
    assert_eq!(trio.cores[0].in_sync(GROUP), replicas(&[11, 12]));
    let short: Vec<_> = trio.cores[0].under_replicated().collect();
    assert_eq!(short, [(GROUP, replicas(&[11, 12]).unwrap())]);
    assert_eq!(trio.cores[0].figures().under_replicated, 1);
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 2), Ok(()));
    let too_few = |in_sync, wanted| Err(ProduceError::NotEnoughReplicas { in_sync, wanted });
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), too_few(2, 3));
    trio.cut(1);
    trio.tell_lost(0, 1);
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 2), too_few(1, 2));
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 1), Ok(()));
    trio.join(1);
    trio.join(2);
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    assert_eq!(trio.cores[0].in_sync(GROUP), replicas(&[11, 12, 13]));
}

#[test]
fn given_a_replica_that_hangs_when_others_go_on_for_long_then_it_is_not_in_sync() {
    // Among so many others a group gets its ticks eight at a time.
    let cases = [(1, 0, 2), (40, 0, 2), (600, 0, 2), (1, 29, 10), (40, 29, 10), (600, 29, 10)];
    for (lag_ticks_max, others, late_ticks) in cases {
        let mut trio = Trio::led_with(CoreConfig { lag_ticks_max, ..config() });
        for other in 0..others {
            trio.cores[0].create_group(GroupId(2 + other), alone(100 + other));
        }
        trio.settle();
        trio.cut(2);
        trio.produced(0, batch(1), 1);
        let mut ticks = 0;
        while trio.cores[0].in_sync(GROUP).unwrap().len() == 3 {
            trio.tick();
            trio.settle();
            ticks += 1;
            assert!(ticks <= lag_ticks_max * 3 / 2 + late_ticks, "nobody has told that it is gone");
        }
        assert!(ticks >= lag_ticks_max, "it gets time: {ticks} of {lag_ticks_max}");
        trio.join(2);
        for _ in 0..25 {
            trio.tick();
            trio.settle();
        }
        assert_eq!(trio.cores[0].in_sync(GROUP).unwrap().len(), 3);
    }
}

#[test]
fn given_a_replica_that_follows_when_consumers_read_there_then_they_see_what_it_knows_to_be_committed()
 {
    let mut trio = Trio::led();
    let term = trio.cores[0].partition(GROUP).unwrap().leader_epoch;
    let epoch = i32::try_from(term.0).unwrap();
    trio.produced(0, batch(2), 1);
    trio.pass(AGE_TICKS);
    let follower = &mut trio.cores[1];
    assert_eq!(
        follower.plan_read(GROUP, Offset(0), 1 << 20, -1).map(|_| ()),
        Err(FetchError::NotLeader)
    );
    let plan = follower.plan_replica_read(GROUP, Offset(0), 1 << 20, epoch).unwrap();
    assert_eq!((plan.high_watermark, plan.batches.len()), (Offset(2), 1));
    let at_end = follower.plan_replica_read(GROUP, Offset(2), 1 << 20, epoch).unwrap();
    assert!(at_end.batches.is_empty() && at_end.disk.is_none() && !at_end.is_ahead);
    let ahead = follower.plan_replica_read(GROUP, Offset(3), 1 << 20, epoch).unwrap();
    assert!(ahead.is_ahead && ahead.disk.is_none(), "its leader may have it");
    let below = follower.plan_replica_read(GROUP, Offset(-1), 1 << 20, epoch).map(|_| ());
    assert!(matches!(below, Err(FetchError::OffsetOutOfRange { .. })), "{below:?}");
    let read = |core: &mut ShardCore, epoch| {
        core.plan_replica_read(GROUP, Offset(0), 1 << 20, epoch).map(|_| ())
    };
    let current = epoch;
    let fenced = FetchError::FencedLeaderEpoch { epoch: epoch - 1, current };
    assert_eq!(read(follower, epoch - 1), Err(fenced));
    let unknown = FetchError::UnknownLeaderEpoch { epoch: epoch + 1, current };
    assert_eq!(read(follower, epoch + 1), Err(unknown));
    // Who waits there is woken when it has applied more.
    follower.wait_for_data(GROUP, Offset(2), WaiterId(8));
    trio.settle();
    assert_eq!(trio.wakes, []);
    trio.produced(0, batch(1), 2);
    assert_eq!(trio.wakes, [(1, WaiterId(8))]);
    let plan = trio.cores[1].plan_replica_read(GROUP, Offset(2), 1 << 20, epoch).unwrap();
    assert_eq!((plan.high_watermark, plan.batches.len()), (Offset(3), 1));
}

#[test]
fn given_a_replica_that_knows_no_leader_when_consumers_read_there_then_they_get_what_there_is_and_go()
 {
    let mut trio = Trio::led();
    trio.produced(0, batch(2), 1);
    trio.pass(AGE_TICKS);
    trio.cut(1);
    trio.tell_lost(1, 0);
    let mut read = |offset| {
        let plan = trio.cores[1].plan_replica_read(GROUP, Offset(offset), 1 << 20, -1);
        plan.map(|plan| plan.batches.len())
    };
    assert_eq!(read(0), Ok(1), "what is committed stays so");
    assert_eq!(read(2), Err(FetchError::NotLeader), "nobody tells it of more");
    assert_eq!(read(3), Err(FetchError::NotLeader));
}

/// Ticks after which what was not heard of counts as too old.
const STALE_TICKS: usize = 200;

#[test]
fn given_a_follower_that_is_cut_off_when_it_may_be_too_old_then_it_serves_nobody_and_who_waits_goes()
 {
    let mut trio = Trio::led();
    trio.produced(0, batch(2), 1);
    assert_eq!(trio.shown(2), Err(FetchError::NotLeader), "it was not told yet how old it is");
    trio.pass(AGE_TICKS);
    assert_eq!(trio.shown(2), Ok(Offset(2)));
    trio.cores[2].wait_for_data(GROUP, Offset(2), WaiterId(8));
    trio.cut(2);
    trio.produced(0, batch(1), 2);
    let mut ticks = 0;
    while trio.shown(2) == Ok(Offset(2)) {
        assert_eq!(trio.wakes, []);
        trio.pass(1);
        ticks += 1;
        assert!(ticks <= STALE_TICKS, "it lacks what was committed before");
    }
    assert!(ticks > STALE_TICKS - AGE_TICKS, "it is told of its age often enough: {ticks}");
    assert_eq!(trio.shown(2), Err(FetchError::NotLeader));
    trio.pass(10);
    assert_eq!(trio.wakes, [(2, WaiterId(8))]);
    assert_eq!(trio.shown(1), Ok(Offset(3)), "the other one is heard");
    trio.join(2);
    trio.pass(AGE_TICKS);
    assert_eq!(trio.shown(2), Ok(Offset(3)));
}

#[test]
fn given_a_follower_that_hears_its_leader_when_entries_do_not_come_then_it_serves_nobody() {
    let mut trio = Trio::led();
    trio.produced(0, batch(2), 1);
    trio.pass(AGE_TICKS);
    trio.starved = Some(2);
    trio.produced(0, batch(1), 2);
    trio.pass(STALE_TICKS + 10);
    let view = trio.cores[2].partition(GROUP).unwrap();
    assert_eq!(view.leader, Some(ReplicaId(11)), "it hears heartbeats");
    assert_eq!(trio.shown(2), Err(FetchError::NotLeader));
    trio.starved = None;
    trio.pass(AGE_TICKS);
    assert_eq!(trio.shown(2), Ok(Offset(3)));
}

#[test]
fn given_a_follower_that_stood_still_when_it_is_asked_before_it_has_heard_anything_then_it_serves_nobody()
 {
    let mut trio = Trio::led();
    trio.produced(0, batch(2), 1);
    trio.pass(AGE_TICKS);
    assert_eq!(trio.shown(2), Ok(Offset(2)));
    // Neither ticks nor messages.
    trio.clock_ms += 10_000;
    assert_eq!(trio.shown(2), Err(FetchError::NotLeader));
    trio.pass(AGE_TICKS);
    assert_eq!(trio.shown(2), Ok(Offset(2)));
}

#[test]
fn given_a_leader_when_it_is_asked_where_consumers_may_read_then_it_names_who_shows_all() {
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    let named =
        |trio: &Trio, at: usize| trio.cores[at].read_replicas(GROUP, Offset(0)).collect::<Vec<_>>();
    assert_eq!(named(&trio, 0), [ReplicaId(11)], "the others would send consumers back");
    trio.pass(AGE_TICKS);
    assert_eq!(named(&trio, 0), [ReplicaId(11), ReplicaId(12), ReplicaId(13)]);
    assert_eq!(named(&trio, 1), []);
    trio.cut(2);
    trio.pass(STALE_TICKS / 2);
    assert_eq!(named(&trio, 0).len(), 3, "it may be slow");
    trio.pass(STALE_TICKS);
    assert_eq!(named(&trio, 0), [ReplicaId(11), ReplicaId(12)], "it has all, but is not heard");
    trio.join(2);
    trio.pass(AGE_TICKS);
    assert_eq!(named(&trio, 0).len(), 3);
    trio.cut(2);
    trio.produced(0, batch(1), 2);
    assert_eq!(named(&trio, 0), [ReplicaId(11), ReplicaId(12)], "the third may lack it");
    let sent = trio.cores[0].figures().sent;
    assert!(sent.appends > 0 && sent.vote_requests > 0, "{sent:?}");
    assert_eq!(trio.cores[0].figures().leaders, 1);
}

#[test]
fn given_a_learner_when_consumers_want_what_it_holds_then_it_is_named_and_counts_for_nothing_else()
{
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
    let wanted = Wanted { voters: ids(&[11, 12]), learners: ids(&[13]) };
    for _ in 0..10 {
        trio.cores[0].reconcile(GROUP, &wanted);
        trio.tick();
        trio.settle();
    }
    assert!(!trio.cores[0].has_other_members(GROUP, &wanted));
    trio.pass(AGE_TICKS);
    let named = |trio: &Trio, offset: i64| {
        trio.cores[0].read_replicas(GROUP, Offset(offset)).map(|id| id.0).collect::<Vec<_>>()
    };
    assert_eq!(named(&trio, 1), [11, 12, 13]);
    trio.cut(2);
    assert_eq!(trio.produced(0, batch(1), 2), 1);
    assert_eq!(named(&trio, 1), [11, 12, 13], "it has all before that, and the rest is on its way");
    assert_eq!(named(&trio, 2), [11, 12]);
    assert_eq!(trio.cores[0].in_sync(GROUP), Some(vec![ReplicaId(11), ReplicaId(12)]));
    assert_eq!(trio.cores[0].under_replicated().count(), 0);
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), Ok(()), "there are two that vote");
    trio.tell_lost(0, 2);
    trio.tick();
    trio.settle();
    assert_eq!(named(&trio, 0), [11, 12], "it takes nothing now");
    trio.join(2);
    trio.tell_found(0, 2);
    for _ in 0..10 {
        trio.tick();
        trio.settle();
    }
    assert_eq!(named(&trio, 2), [11, 12, 13]);
    // With the other voter gone it does not help either.
    trio.cut(1);
    trio.produce(0, batch(1), 3).unwrap();
    trio.settle();
    assert!(!trio.replies.iter().any(|(_, token, _)| *token == Token(3)));
}

#[test]
fn given_a_leader_that_is_not_ready_when_its_groups_are_asked_for_then_it_does_not_pass_for_a_follower()
 {
    let mut trio = Trio::led();
    let led =
        |trio: &Trio| [0, 1, 2].map(|at| trio.cores[at].partition(GROUP).unwrap().is_led_here());
    assert_eq!(led(&trio), [true, false, false]);
    trio.lose_first();
    let is_led_early = trio.passes_until(|trio| {
        !trio.is_ready(1) && !trio.is_ready(2) && led(trio)[1..].contains(&true)
    });
    assert!(is_led_early, "between its election and the commit of its first entry");
}

#[test]
fn given_a_topic_that_asks_for_more_than_a_quorum_when_a_replica_hangs_then_batches_wait_for_it() {
    let mut trio = Trio::led();
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), Ok(()));
    assert_eq!(trio.produced(0, sequenced(0, 2), 1), 0, "all three have it at once");
    trio.cut(2);
    trio.replies.clear();
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), Ok(()), "nobody knows yet");
    trio.produce(0, sequenced(2, 1), 2).unwrap();
    trio.produce(0, sequenced(3, 1), 3).unwrap();
    trio.settle();
    assert_eq!(trio.cores[0].partition(GROUP).unwrap().high_watermark, Offset(4), "committed");
    trio.produce(0, sequenced(2, 1), 4).unwrap();
    trio.settle();
    assert_eq!(trio.replies, [], "two of three have them");
    trio.join(2);
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    let answered: Vec<_> =
        trio.replies.iter().map(|(_, token, result)| (token.0, *result)).collect();
    assert_eq!(answered, [(2, Ok(2)), (4, Ok(2)), (3, Ok(3))]);
    // Who asks for no more than a quorum waits for no more.
    trio.cut(2);
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 2), Ok(()));
    assert_eq!(trio.produced(0, sequenced(4, 1), 5), 4);
}

#[test]
fn given_batches_that_wait_for_more_than_a_quorum_when_leadership_goes_then_they_are_sent_away() {
    let mut trio = Trio::led();
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), Ok(()));
    trio.cut(2);
    trio.produce(0, sequenced(0, 1), 1).unwrap();
    trio.settle();
    assert_eq!(trio.replies, []);
    trio.cores[0].abort_all();
    trio.settle();
    assert_eq!(trio.replies, [(0, Token(1), Err(ProduceError::ShuttingDown))]);
}
