//! A leader whose disk hangs.

use super::trio::Trio;
use super::*;

impl Trio {
    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
            self.settle();
        }
    }

    fn other_that_leads(&self) -> Option<usize> {
        [1, 2].into_iter().find(|at| self.is_ready(*at))
    }
}

#[test]
fn given_a_leader_whose_disk_hangs_when_it_has_done_so_for_long_then_another_leads_and_nothing_is_lost()
 {
    let mut trio = Trio::led();
    assert_eq!(trio.produced(0, batch(1), 1), 0);
    trio.hang(0);
    trio.produce(0, batch(1), 2).unwrap();
    trio.ticks(30);
    assert!(trio.cores[0].leads(GROUP), "a disk may be slow");
    assert!(!trio.cores[0].is_stalled());
    trio.ticks(30);
    assert!(trio.cores[0].is_stalled());
    let next = trio.other_that_leads().expect("its followers have all that it has");
    assert_eq!(trio.produced(next, batch(1), 3), 2, "what it could not acknowledge is there");
    trio.ticks(200);
    assert!(trio.is_ready(next) && !trio.cores[0].leads(GROUP), "it does not come back");
    trio.unhang(0);
    trio.ticks(30);
    assert!(!trio.cores[0].is_stalled());
    assert_eq!(trio.cores[0].figures().stalls, 1);
    let high_watermark = |at: usize| trio.cores[at].partition(GROUP).unwrap().high_watermark;
    assert_eq!(high_watermark(0), high_watermark(next));
}

#[test]
fn given_a_leader_whose_disk_hangs_when_the_others_cannot_decide_alone_then_it_keeps_the_group() {
    let mut trio = Trio::led();
    trio.cut(2);
    trio.tell_lost(0, 2);
    trio.hang(0);
    trio.produce(0, batch(1), 1).unwrap();
    trio.ticks(55);
    assert!(trio.cores[0].is_stalled() && trio.cores[0].leads(GROUP), "I1");
}

#[test]
fn given_a_disk_with_nothing_to_write_or_no_room_when_time_passes_then_it_does_not_hang() {
    let mut trio = Trio::led();
    trio.ticks(200);
    assert!(!trio.cores[0].is_stalled());
    trio.hang(0);
    trio.produce(0, batch(1), 1).unwrap();
    trio.settle();
    trio.cores[0].set_storage_full(true);
    trio.ticks(100);
    assert!(!trio.cores[0].is_stalled(), "I3");
}
