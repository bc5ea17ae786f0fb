//! A steady client: messages at a fixed rate to one partition, each due when the clock says so, and sent again at once to
//! whoever leads when the leader is lost. What it measures is what a change of leaders costs its clients.
//!
//! It has no producer id: a message that was stored although its answer was lost is stored twice.
//!
//! - I1: latency runs from the time a message was due to its first acknowledgement, whatever happened in between.
//! - I2: a pause counts in the interval in which the acknowledgement that ends it comes.
//! - I3: what is not acknowledged is sent again, and at the end counted as that.

mod client;
mod finder;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use serde::Serialize;

use crate::clock::{Clock, duration_ns, ns_to_ms};
use crate::latency::Latencies;
use client::Client;

/// What the client sends, and to whom.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The nodes of the cluster, any of which knows the leaders.
    pub nodes: Vec<SocketAddr>,
    /// The topic; partition 0 of it is written.
    pub topic: String,
    /// Messages a second.
    pub rate: u64,
    /// Bytes of a message's value.
    pub record_bytes: u32,
}

/// What came between two moments.
#[derive(Debug)]
pub struct Interval {
    /// From the time a message was due to its acknowledgement.
    pub latencies: Latencies,
    /// How late messages were handed to the socket of a leader that was answering.
    pub send_delay: Latencies,
    /// The longest time between two acknowledgements.
    pub pause_ns: u64,
    /// Connections to a leader that were given up.
    pub leaders_lost: u64,
    /// Why, and how often.
    pub reasons: BTreeMap<String, u64>,
}

/// An interval as it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct IntervalReport {
    /// Messages acknowledged.
    pub acked: u64,
    /// The longest time between two acknowledgements.
    pub pause_ms: f64,
    /// The slowest message.
    pub slowest_ms: f64,
    /// Connections to a leader that were given up.
    pub leaders_lost: u64,
}

impl Interval {
    fn new() -> Result<Interval> {
        Ok(Interval {
            latencies: Latencies::new()?,
            send_delay: Latencies::new()?,
            pause_ns: 0,
            leaders_lost: 0,
            reasons: BTreeMap::new(),
        })
    }

    /// What is reported of it.
    #[must_use]
    pub fn report(&self) -> IntervalReport {
        IntervalReport {
            acked: self.latencies.count(),
            pause_ms: ns_to_ms(self.pause_ns),
            slowest_ms: self.latencies.percentiles().max_ms,
            leaders_lost: self.leaders_lost,
        }
    }
}

impl IntervalReport {
    /// The worse of both figures, the sum of the counts.
    #[must_use]
    pub fn with(self, other: IntervalReport) -> IntervalReport {
        IntervalReport {
            acked: self.acked + other.acked,
            pause_ms: self.pause_ms.max(other.pause_ms),
            slowest_ms: self.slowest_ms.max(other.slowest_ms),
            leaders_lost: self.leaders_lost + other.leaders_lost,
        }
    }
}

/// What the client and who watches it know of each other.
#[derive(Debug)]
pub struct Board {
    clock: Clock,
    over: AtomicBool,
    /// The node that answered last; -1 while none does.
    leader: AtomicI32,
    now: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    interval: Interval,
    last_ack_ns: Option<u64>,
}

/// No node.
const NOBODY: i32 = -1;
/// Different reasons that are remembered.
const REASONS_MAX: usize = 20;
/// How often it is looked whether the client has a leader.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

impl Board {
    /// A board with nothing on it.
    pub fn new() -> Result<Board> {
        let current = Current { interval: Interval::new()?, last_ack_ns: None };
        let leader = AtomicI32::new(NOBODY);
        let over = AtomicBool::new(false);
        Ok(Board { clock: Clock::start(), over, leader, now: Mutex::new(current) })
    }

    /// Ends the interval and begins the next one.
    pub fn turn_over(&self) -> Result<Interval> {
        let next = Interval::new()?;
        Ok(std::mem::replace(&mut self.current().interval, next))
    }

    /// Waits until a node acknowledges, where `but` names one another than that one; its id.
    pub fn wait_leader(&self, but: Option<i32>, deadline: Duration) -> Result<i32> {
        let begun_ns = self.clock.now_ns();
        loop {
            let leader = self.leader.load(Ordering::Acquire);
            if leader != NOBODY && Some(leader) != but {
                return Ok(leader);
            }
            ensure!(!self.is_over(), "the client has ended");
            if self.clock.now_ns().saturating_sub(begun_ns) > duration_ns(deadline) {
                let reasons = format!("{:?}", self.current().interval.reasons);
                bail!("nobody acknowledges after {deadline:?}; what was heard: {reasons}");
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_ack(&self, leader: i32, due_ns: u64, now_ns: u64) {
        let mut current = self.current();
        current.interval.latencies.record_ns(now_ns.saturating_sub(due_ns));
        if let Some(last_ns) = current.last_ack_ns.replace(now_ns) {
            let pause_ns = now_ns.saturating_sub(last_ns);
            current.interval.pause_ns = current.interval.pause_ns.max(pause_ns);
        }
        self.leader.store(leader, Ordering::Release);
    }

    fn note_sent(&self, late_ns: u64) {
        self.current().interval.send_delay.record_ns(late_ns);
    }

    fn note_lost(&self, why: &anyhow::Error) {
        self.leader.store(NOBODY, Ordering::Release);
        let mut current = self.current();
        current.interval.leaders_lost += 1;
        let why = format!("{why:#}");
        let reasons = &mut current.interval.reasons;
        if reasons.len() < REASONS_MAX || reasons.contains_key(&why) {
            *reasons.entry(why).or_default() += 1;
        }
    }
}

/// Runs `watch` while a client sends as `plan` says; how many messages were due and not acknowledged at the end.
pub fn run_beside<T>(plan: &Plan, watch: impl FnOnce(&Board) -> Result<T>) -> Result<(T, u64)> {
    let board = Board::new()?;
    let client = Client::new(plan, &board)?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let unacked = client.run();
            board.over.store(true, Ordering::Release);
            unacked
        });
        let watched = watch(&board);
        board.over.store(true, Ordering::Release);
        let unacked = sending.join().map_err(|_| anyhow!("the client panicked"))?;
        // Where both failed, the client's end is the reason of the other.
        match (watched, unacked) {
            (Ok(watched), Ok(unacked)) => Ok((watched, unacked)),
            (Err(error), Ok(_)) | (_, Err(error)) => Err(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_acks_when_the_interval_turns_then_a_pause_counts_where_it_ends() {
        let board = Board::new().unwrap();
        board.note_ack(1, 90, 100);
        board.note_ack(1, 100, 130);
        let first = board.turn_over().unwrap();
        assert_eq!((first.pause_ns, first.latencies.count()), (30, 2));
        board.note_lost(&anyhow!("gone"));
        board.note_ack(2, 140, 630);
        let second = board.turn_over().unwrap();
        assert_eq!((second.pause_ns, second.leaders_lost), (500, 1));
        assert_eq!(second.reasons.get("gone"), Some(&1));
        assert_eq!(board.turn_over().unwrap().report().acked, 0);
    }

    #[test]
    fn given_a_board_when_nobody_acknowledges_then_waiting_ends_with_what_was_heard() {
        let board = Board::new().unwrap();
        board.note_ack(3, 1, 2);
        let soon = Duration::from_millis(5);
        assert_eq!(board.wait_leader(None, soon).unwrap(), 3);
        assert!(board.wait_leader(Some(3), soon).is_err());
        board.note_lost(&anyhow!("closed"));
        let error = board.wait_leader(None, soon).unwrap_err().to_string();
        assert!(error.contains("closed"), "{error}");
    }

    #[test]
    fn given_two_intervals_when_joined_then_the_worse_counts() {
        let one = IntervalReport { acked: 1, pause_ms: 5.0, slowest_ms: 1.0, leaders_lost: 0 };
        let two = IntervalReport { acked: 2, pause_ms: 3.0, slowest_ms: 9.0, leaders_lost: 1 };
        let both = IntervalReport { acked: 3, pause_ms: 5.0, slowest_ms: 9.0, leaders_lost: 1 };
        assert_eq!(one.with(two), both);
    }
}
