//! A leader whose disk has no room.

use super::trio::Trio;
use super::*;

impl Trio {
    fn leader(&self) -> Option<usize> {
        (0..3).find(|at| self.is_ready(*at))
    }

    /// Offers what is proposed to a disk that has no room for it; of how many groups that was.
    fn refuse(&mut self, at: usize) -> usize {
        self.cores[at].set_storage_full(true);
        let block = self.cores[at].take_block(BLOCK_BYTES).expect("something to write");
        self.cores[at].refuse_batches(block)
    }

    fn passes(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick();
            self.settle();
        }
    }
}

#[test]
fn given_a_leader_without_room_when_others_have_some_then_one_of_them_leads_at_once() {
    let mut trio = Trio::led();
    assert_eq!(trio.produced(0, batch(1), 1), 0);
    trio.cores[0].set_storage_full(true);
    assert_eq!(trio.produce(0, batch(1), 2), Err(ProduceError::StorageFull));
    trio.passes(2);
    let next = trio.leader().filter(|at| *at > 0).expect("another one leads");
    assert_eq!(trio.produced(next, batch(1), 3), 1);
    // Neither is it handed back while it has no room …
    assert_eq!(trio.cores[next].transfer(GROUP, ReplicaId(11)), Ok(()));
    trio.passes(100);
    assert_eq!(trio.leader(), Some(next), "I1");
    assert_eq!(trio.produced(next, batch(1), 4), 2);
    // … nor is it refused afterwards.
    trio.cores[0].set_storage_full(false);
    assert_eq!(trio.cores[next].transfer(GROUP, ReplicaId(11)), Ok(()));
    trio.passes(2);
    assert_eq!(trio.leader(), Some(0));
    assert_eq!(trio.produced(0, batch(1), 5), 3);
}

#[test]
fn given_no_room_anywhere_when_time_passes_then_the_leader_stays_and_takes_deletions() {
    let mut trio = Trio::led();
    assert_eq!(trio.produced(0, batch(1), 1), 0);
    for core in &mut trio.cores {
        core.set_storage_full(true);
    }
    let term = |trio: &Trio| trio.cores[0].led_groups().map(|(_, term, _)| term).next();
    let before = term(&trio);
    trio.passes(12);
    assert!(trio.is_ready(0), "I1");
    trio.cores[0].propose_log_start(GROUP, Offset(1), None).expect("I2");
    trio.passes(1_000);
    assert_eq!(trio.cores[0].partition(GROUP).unwrap().log_start_offset, Offset(1));
    assert!(before.is_some() && term(&trio) == before, "no election takes of the reserve");
}

#[test]
fn given_a_leader_and_another_without_room_when_time_passes_then_the_third_is_found() {
    for without in [1, 2] {
        let mut trio = Trio::led();
        trio.cores[0].set_storage_full(true);
        trio.cores[without].set_storage_full(true);
        trio.passes(410);
        assert_eq!(trio.leader(), Some(3 - without));
    }
}

#[test]
fn given_a_leader_without_room_when_the_others_cannot_decide_alone_then_it_keeps_the_group() {
    let mut trio = Trio::led();
    trio.cut(2);
    trio.tell_lost(0, 2);
    trio.cores[0].set_storage_full(true);
    trio.passes(250);
    assert_eq!(trio.leader(), Some(0));
}

#[test]
fn given_a_leader_whose_batch_finds_no_room_when_refused_then_another_leads_before_any_tick() {
    let mut trio = Trio::led();
    assert_eq!(trio.produced(0, batch(1), 1), 0);
    trio.produce(0, batch(1), 2).unwrap();
    assert_eq!(trio.refuse(0), 1);
    trio.settle();
    assert_eq!(trio.replies.pop(), Some((0, Token(2), Err(ProduceError::StorageFull))));
    let next = trio.leader().filter(|at| *at > 0).expect("another one leads");
    assert_eq!(trio.cores[0].partition(GROUP).unwrap().leader, Some(ReplicaId(11 + next as u64)));
}

#[test]
fn given_a_follower_whose_entries_find_no_room_when_refused_then_it_still_knows_who_leads() {
    let mut trio = Trio::led();
    assert_eq!(trio.produced(0, batch(1), 1), 0);
    trio.produce(0, batch(1), 2).unwrap();
    // Its own block comes back with the entries of the leader.
    trio.hang(2);
    trio.settle();
    let block = trio.unhang_with(2);
    trio.cores[2].set_storage_full(true);
    assert_eq!(trio.cores[2].refuse_batches(block), 1);
    trio.settle();
    assert_eq!(trio.cores[2].partition(GROUP).unwrap().leader, Some(ReplicaId(11)));
    assert_eq!(trio.leader(), Some(0));
}
