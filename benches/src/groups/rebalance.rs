//! How long a group takes to settle after a member left, and after one joined.
//!
//! Members beat at a fixed interval, each at a phase of its own, as the consumers of a running application do: an answer
//! to a heartbeat is where they hear of a rebalance. So most of the time measured is the interval of the heartbeats, which
//! the client chooses; `after_last_heard` is the part from the moment when the last member had heard.
//!
//! - I1: a round ends when every member of the group has an assignment of the same new generation, and those together are
//!   every partition once.

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::assignor::{Assignor, Topics, check_complete};
use super::board::{Board, Post, Settled};
use super::member::{Member, Verdict};
use crate::clock::{Clock, duration_ns, ns_to_ms};
use crate::report::{Progress, median};

/// How long a group may take to settle, besides two heartbeats.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A group to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its coordinator.
    pub coordinator: SocketAddr,
    /// Its name.
    pub group: String,
    /// What it reads.
    pub topics: Topics,
    /// How its leader assigns.
    pub assignor: Assignor,
    /// Its members.
    pub members: usize,
    /// Pause between a member's heartbeats.
    pub heartbeat: Duration,
    /// How often one leaves and one joins.
    pub rounds: u16,
}

/// What one kind of event took.
#[derive(Debug, Clone, Serialize)]
pub struct EventTimes {
    /// Pause between heartbeats.
    pub heartbeat_ms: f64,
    /// `leave` or `join`.
    pub event: &'static str,
    /// Median over the rounds, from sending LeaveGroup or JoinGroup to the last member's assignment.
    pub median_ms: Option<f64>,
    /// The longest of them.
    pub max_ms: Option<f64>,
    /// Median of the part after the last member had heard.
    pub after_last_heard_median_ms: Option<f64>,
    /// The longest of those.
    pub after_last_heard_max_ms: Option<f64>,
    /// Round by round.
    pub rounds_ms: Vec<f64>,
}

/// The times of one group.
#[derive(Debug, Clone, Serialize)]
pub struct GroupTimes {
    /// From the first JoinGroup until the whole group had settled, with the broker's initial delay.
    pub formed_ms: f64,
    /// One row for leaving, one for joining.
    pub events: Vec<EventTimes>,
}

#[derive(Debug, Default)]
struct Samples {
    total_ms: Vec<f64>,
    after_heard_ms: Vec<f64>,
}

impl Samples {
    fn take(&mut self, began_ns: u64, settled: &Settled) {
        let end_ns = settled.last_assigned_ns;
        self.total_ms.push(ns_to_ms(end_ns.saturating_sub(began_ns)));
        let heard_ns = settled.last_heard_ns.max(began_ns);
        self.after_heard_ms.push(ns_to_ms(end_ns.saturating_sub(heard_ns)));
    }

    fn report(self, event: &'static str, heartbeat: Duration) -> EventTimes {
        EventTimes {
            heartbeat_ms: heartbeat.as_secs_f64() * 1e3,
            event,
            median_ms: median(&self.total_ms),
            max_ms: self.total_ms.iter().copied().reduce(f64::max),
            after_last_heard_median_ms: median(&self.after_heard_ms),
            after_last_heard_max_ms: self.after_heard_ms.iter().copied().reduce(f64::max),
            rounds_ms: self.total_ms,
        }
    }
}

/// Forms the group and lets a member leave and one join, round by round.
pub fn run(plan: &Plan, progress: &Progress) -> Result<GroupTimes> {
    let board = Board::new(Clock::start());
    let timeout = SETTLE_TIMEOUT + plan.heartbeat * 2;
    std::thread::scope(|scope| {
        let mut seats: Vec<Seat<'_>> = Vec::new();
        for index in 0..plan.members {
            seats.push(Seat::take(scope, plan, &board, index));
        }
        let outcome = measure(scope, plan, &board, &mut seats, timeout, progress);
        // All are told before one is waited for: a member that joins waits for those that stay.
        for seat in &mut seats {
            seat.orders = None;
        }
        for seat in seats {
            seat.empty()?;
        }
        outcome
    })
}

fn measure<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    plan: &'env Plan,
    board: &'env Board,
    seats: &mut [Seat<'scope>],
    timeout: Duration,
    progress: &Progress,
) -> Result<GroupTimes> {
    let first_ns = (0..plan.members).map(|member| board.wait_began(member, 0, timeout));
    let first_ns = first_ns.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(0);
    let mut settled = board.wait_settled(plan.members, 0, timeout)?;
    check_complete(&settled.assigned, &plan.topics)?;
    let formed_ms = ns_to_ms(settled.last_assigned_ns.saturating_sub(first_ns));
    let (mut left, mut joined) = (Samples::default(), Samples::default());
    for round in 0..plan.rounds {
        let beat_ms = plan.heartbeat.as_millis();
        progress.say(&format!("heartbeat {beat_ms} ms, round {} of {}", round + 1, plan.rounds));
        // Seats take turns, so that now and then it is the group's leader who leaves.
        let index = usize::from(round) % plan.members;
        let after_ns = board.clock().now_ns();
        seats[index].leave();
        let began_ns = board.wait_began(index, after_ns, timeout)?;
        if plan.members > 1 {
            settled = board.wait_settled(plan.members - 1, settled.generation, timeout)?;
            check_complete(&settled.assigned, &plan.topics)?;
            left.take(began_ns, &settled);
        }
        let gone = std::mem::replace(&mut seats[index], Seat::vacant());
        gone.empty()?;
        let after_ns = board.clock().now_ns();
        seats[index] = Seat::take(scope, plan, board, index);
        let began_ns = board.wait_began(index, after_ns, timeout)?;
        settled = board.wait_settled(plan.members, settled.generation, timeout)?;
        check_complete(&settled.assigned, &plan.topics)?;
        joined.take(began_ns, &settled);
    }
    let events = vec![left.report("leave", plan.heartbeat), joined.report("join", plan.heartbeat)];
    Ok(GroupTimes { formed_ms, events })
}

/// A member's thread. Dropping the sender tells it to leave without being measured.
struct Seat<'scope> {
    orders: Option<Sender<()>>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Seat<'scope> {
    fn vacant() -> Seat<'scope> {
        Seat { orders: None, thread: None }
    }

    fn take<'env>(
        scope: &'scope Scope<'scope, 'env>,
        plan: &'env Plan,
        board: &'env Board,
        index: usize,
    ) -> Seat<'scope> {
        let (orders, hear) = mpsc::channel();
        let thread = scope.spawn(move || {
            if let Err(error) = live(plan, board, index, &hear) {
                board.fail(format!("member {index}: {error:#}"));
            }
        });
        Seat { orders: Some(orders), thread: Some(thread) }
    }

    /// Tells the member to leave now.
    fn leave(&self) {
        if let Some(orders) = &self.orders {
            // A member that is gone has said why on the board.
            let _told = orders.send(());
        }
    }

    /// Ends the member's thread.
    fn empty(mut self) -> Result<()> {
        self.orders = None;
        let ended = self.thread.take().map(ScopedJoinHandle::join);
        ended.transpose().map_err(|_| anyhow!("a member's thread panicked"))?;
        Ok(())
    }
}

/// One member from its first join until it is told to leave.
fn live(plan: &Plan, board: &Board, index: usize, orders: &Receiver<()>) -> Result<()> {
    let clock = board.clock();
    let mut random = StdRng::from_os_rng();
    let mut member = Member::connect(plan.coordinator, &plan.group, &plan.topics, plan.assignor)?;
    board.begin(index);
    join(&mut member, board, index)?;
    let heartbeat_ns = duration_ns(plan.heartbeat).max(1);
    let mut next_beat_ns = clock.now_ns() + random.random_range(0..heartbeat_ns);
    loop {
        let pause_ns = next_beat_ns.saturating_sub(clock.now_ns());
        match orders.recv_timeout(Duration::from_nanos(pause_ns)) {
            Ok(()) => {
                board.begin(index);
                return member.leave();
            }
            Err(RecvTimeoutError::Disconnected) => return member.leave().context("at the end"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        match member.beat()? {
            Verdict::Fine => next_beat_ns += heartbeat_ns,
            verdict => {
                member.prepare(verdict);
                join(&mut member, board, index)?;
                next_beat_ns = clock.now_ns() + random.random_range(0..heartbeat_ns);
            }
        }
    }
}

fn join(member: &mut Member, board: &Board, index: usize) -> Result<()> {
    let heard_ns = board.clock().now_ns();
    let membership = member.join()?;
    let post = Post {
        generation: membership.generation,
        heard_ns,
        assigned_ns: board.clock().now_ns(),
        assigned: membership.assigned,
    };
    board.post(index, post);
    Ok(())
}
