//! Where the members of a group write down what happened to them, and the measurement reads it.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};

use super::assignor::Assigned;
use crate::clock::{Clock, duration_ns};

/// The membership a member got last.
#[derive(Debug, Clone)]
pub struct Post {
    /// Its generation.
    pub generation: i32,
    /// When some answer told the member to join again (or when it began to join).
    pub heard_ns: u64,
    /// When its assignment was there.
    pub assigned_ns: u64,
    /// Its partitions.
    pub assigned: Assigned,
}

#[derive(Debug, Default)]
struct State {
    posts: BTreeMap<usize, Post>,
    began_ns: BTreeMap<usize, u64>,
    failed: Option<String>,
}

/// Shared by all members of a group.
#[derive(Debug)]
pub struct Board {
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
}

/// A generation in which every expected member has its assignment.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Its number.
    pub generation: i32,
    /// When the last member had heard of it.
    pub last_heard_ns: u64,
    /// When the last member had its assignment.
    pub last_assigned_ns: u64,
    /// All assignments.
    pub assigned: Vec<Assigned>,
}

impl Board {
    /// Nothing on it.
    #[must_use]
    pub fn new(clock: Clock) -> Board {
        Board { state: Mutex::default(), changed: Condvar::new(), clock }
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// A member has a new assignment.
    pub fn post(&self, member: usize, post: Post) {
        self.lock().posts.insert(member, post);
        self.changed.notify_all();
    }

    /// A member begins to join, or to leave.
    pub fn begin(&self, member: usize) {
        let now_ns = self.clock.now_ns();
        let mut state = self.lock();
        state.began_ns.insert(member, now_ns);
        state.posts.remove(&member);
        drop(state);
        self.changed.notify_all();
    }

    /// A member cannot go on.
    pub fn fail(&self, why: String) {
        self.lock().failed.get_or_insert(why);
        self.changed.notify_all();
    }

    /// When `member` began what it was last told to; waits for it.
    pub fn wait_began(&self, member: usize, after_ns: u64, timeout: Duration) -> Result<u64> {
        self.wait(timeout, "a member never began", |state| {
            state.began_ns.get(&member).copied().filter(|began_ns| *began_ns >= after_ns)
        })
    }

    /// Waits until exactly `members` have an assignment in one generation above `after`.
    pub fn wait_settled(&self, members: usize, after: i32, timeout: Duration) -> Result<Settled> {
        self.wait(timeout, "the group did not settle", |state| settled(state, members, after))
    }

    fn wait<T>(
        &self,
        timeout: Duration,
        what: &str,
        look: impl Fn(&State) -> Option<T>,
    ) -> Result<T> {
        let end_ns = self.clock.now_ns().saturating_add(duration_ns(timeout));
        let mut state = self.lock();
        loop {
            if let Some(why) = &state.failed {
                bail!("{why}");
            }
            if let Some(found) = look(&state) {
                return Ok(found);
            }
            let left_ns = end_ns.saturating_sub(self.clock.now_ns());
            if left_ns == 0 {
                bail!("{what} within {timeout:?}");
            }
            let waited = self.changed.wait_timeout(state, Duration::from_nanos(left_ns));
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn settled(state: &State, members: usize, after: i32) -> Option<Settled> {
    let generation = state.posts.values().next()?.generation;
    let same = state.posts.values().all(|post| post.generation == generation);
    if !same || state.posts.len() != members || generation <= after {
        return None;
    }
    let posts = state.posts.values();
    Some(Settled {
        generation,
        last_heard_ns: posts.clone().map(|post| post.heard_ns).max()?,
        last_assigned_ns: posts.clone().map(|post| post.assigned_ns).max()?,
        assigned: posts.map(|post| post.assigned.clone()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(generation: i32, at_ns: u64) -> Post {
        Post { generation, heard_ns: at_ns / 2, assigned_ns: at_ns, assigned: Vec::new() }
    }

    fn settles(board: &Board, members: usize, after: i32) -> Option<Settled> {
        board.wait_settled(members, after, Duration::ZERO).ok()
    }

    #[test]
    fn given_members_in_two_generations_when_asked_then_the_group_has_not_settled() {
        let board = Board::new(Clock::start());
        assert!(settles(&board, 0, 0).is_none());
        board.post(0, post(2, 10));
        board.post(1, post(1, 20));
        assert!(settles(&board, 2, 0).is_none());
        board.post(1, post(2, 30));
        let found = settles(&board, 2, 1).unwrap();
        assert_eq!((found.generation, found.last_heard_ns, found.last_assigned_ns), (2, 15, 30));
        assert!(settles(&board, 2, 2).is_none());
        assert!(settles(&board, 3, 1).is_none());
    }

    #[test]
    fn given_a_member_that_begins_when_asked_then_its_old_assignment_counts_no_more() {
        let board = Board::new(Clock::start());
        board.post(0, post(1, 1));
        board.post(1, post(1, 1));
        board.begin(1);
        assert!(settles(&board, 2, 0).is_none());
        assert!(settles(&board, 1, 0).is_some());
        assert!(board.wait_began(1, 0, Duration::ZERO).is_ok());
        assert!(board.wait_began(1, u64::MAX, Duration::ZERO).is_err());
    }

    #[test]
    fn given_a_member_that_failed_when_waiting_then_its_reason_is_the_error() {
        let board = Board::new(Clock::start());
        board.fail("no luck".to_owned());
        let error = board.wait_settled(1, 0, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "no luck");
    }
}
