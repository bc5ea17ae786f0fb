//! Leadership that is handed to a replica which is named.

use super::trio::Trio;
use super::*;
use crate::core::TransferRefused;

const THIRD: ReplicaId = ReplicaId(13);

#[test]
fn given_a_replica_in_sync_when_it_is_handed_the_group_then_it_leads() {
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    assert_eq!(trio.cores[0].heirs(GROUP).len(), 2);
    assert_eq!(trio.cores[0].transfer(GROUP, THIRD), Ok(()));
    trio.settle();
    assert!(trio.cores[2].leads(GROUP) && !trio.cores[0].leads(GROUP));
    assert!(trio.cores[0].heirs(GROUP).is_empty(), "who does not lead has nothing to give");
}

#[test]
fn given_links_that_take_longer_than_a_try_when_a_leader_is_lost_then_the_next_is_elected_before_the_timeout()
 {
    let mut trio = Trio::led();
    trio.lose_first();
    // 150 ms for each way; an election by timeout comes after 60 ticks.
    let elected = (1..50).find(|tick| {
        trio.cores[1].tick(0);
        trio.cores[2].tick(0);
        if tick % 3 == 0 {
            trio.step();
        }
        trio.is_ready(1) || trio.is_ready(2)
    });
    assert!(elected.is_some(), "early tries break each other off");
}

#[test]
fn given_who_cannot_lead_when_it_is_to_be_handed_the_group_then_it_is_refused() {
    let mut trio = Trio::led();
    assert_eq!(trio.cores[1].transfer(GROUP, THIRD), Err(TransferRefused::NotLeader));
    assert_eq!(trio.cores[0].transfer(GROUP, ReplicaId(99)), Err(TransferRefused::NotAVoter));
    assert_eq!(trio.cores[0].transfer(GroupId(9), THIRD), Err(TransferRefused::NotLeader));
    assert!(trio.cores[0].leads(GROUP));
}

#[test]
fn given_a_replica_whose_link_was_lost_when_it_is_to_be_handed_the_group_then_not_before_it_is_heard()
 {
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    trio.cut(2);
    trio.tell_lost(0, 2);
    assert_eq!(trio.cores[0].heirs(GROUP), [ReplicaId(12)]);
    assert_eq!(trio.cores[0].transfer(GROUP, THIRD), Err(TransferRefused::NotInSync));
    trio.join(2);
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    assert_eq!(trio.cores[0].transfer(GROUP, THIRD), Ok(()));
    trio.settle();
    assert!(trio.cores[2].leads(GROUP));
}

#[test]
fn given_a_replica_that_was_out_of_reach_when_its_link_is_there_then_it_lacks_nothing_without_a_tick()
 {
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    trio.cut(2);
    trio.tell_lost(0, 2);
    trio.produced(0, batch(1), 2);
    trio.join(2);
    trio.settle();
    let high_watermark = |trio: &Trio, at: usize| {
        trio.cores[at].partition(GROUP).map(|view| view.high_watermark).unwrap()
    };
    assert!(high_watermark(&trio, 2) < high_watermark(&trio, 0), "nobody knows that it is there");
    trio.tell_found(1, 2);
    trio.settle();
    assert!(high_watermark(&trio, 2) < high_watermark(&trio, 0), "who does not lead says nothing");
    trio.tell_found(0, 2);
    trio.settle();
    assert_eq!(high_watermark(&trio, 2), high_watermark(&trio, 0));
}

#[test]
fn given_a_shard_that_stops_when_a_link_was_lost_then_its_groups_go_to_who_is_in_reach() {
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    trio.cut(2);
    trio.tell_lost(0, 2);
    assert!(trio.cores[0].hand_over());
    trio.settle();
    assert!(trio.cores[1].leads(GROUP));
}

#[test]
fn given_a_replica_that_is_to_take_over_when_its_link_is_lost_then_batches_are_taken_at_once() {
    let mut trio = Trio::led();
    trio.cut(2);
    assert_eq!(trio.cores[0].transfer(GROUP, THIRD), Ok(()), "nobody knows yet");
    assert_eq!(trio.produce(0, batch(1), 1), Err(ProduceError::NotLeader));
    trio.tell_lost(0, 2);
    assert_eq!(trio.produced(0, batch(1), 2), 0);
}
