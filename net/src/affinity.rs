//! Which core the requests of a connection belong to.
//!
//! A request for another core's partition costs two hops between cores and four wake-ups instead of two. So the handler
//! votes with each request for the core that it belongs to, and a connection whose first [`VOTES`] have another core's
//! majority is moved there, once.

use std::cell::{Cell, RefCell};

/// Votes that decide.
const VOTES: u32 = 128;

/// The votes of one connection.
#[derive(Debug, Default)]
pub struct Affinity {
    votes: RefCell<Vec<u32>>,
    counted: Cell<u32>,
    decision: Cell<Decision>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Decision {
    #[default]
    Open,
    Stay,
    Move(u16),
}

impl Affinity {
    /// For a connection that was moved: it stays.
    pub(crate) fn settled() -> Affinity {
        let affinity = Affinity::default();
        affinity.pin();
        affinity
    }

    /// A request on a connection of core `here` belongs to `core`.
    pub fn vote(&self, core: u16, here: u16) {
        if self.decision.get() != Decision::Open {
            return;
        }
        let mut votes = self.votes.borrow_mut();
        let at = usize::from(core);
        if votes.len() <= at {
            votes.resize(at + 1, 0);
        }
        votes[at] += 1;
        self.counted.set(self.counted.get() + 1);
        if self.counted.get() == VOTES {
            let majority = (0..).zip(votes.iter()).find(|(_, votes)| **votes > VOTES / 2);
            self.decision.set(match majority {
                Some((core, _)) if core != here => Decision::Move(core),
                _ => Decision::Stay,
            });
            votes.clear();
        }
    }

    /// The connection has state on its core: it stays.
    pub fn pin(&self) {
        self.decision.set(Decision::Stay);
    }

    /// Where the connection should go.
    pub(crate) fn target(&self) -> Option<u16> {
        match self.decision.get() {
            Decision::Move(core) => Some(core),
            Decision::Open | Decision::Stay => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(cores: impl Iterator<Item = u16>) -> Option<u16> {
        let affinity = Affinity::default();
        cores.for_each(|core| affinity.vote(core, 1));
        affinity.target()
    }

    #[test]
    fn given_votes_when_one_other_core_has_the_majority_then_it_is_the_target() {
        let most = |n: u32| (0..VOTES).map(move |at| if at < n { 3 } else { 1 });
        assert_eq!(after(most(VOTES / 2 + 1)), Some(3));
        assert_eq!(after(most(VOTES / 2)), None);
        assert_eq!(after(most(0)), None);
        assert_eq!(after((0..VOTES - 1).map(|_| 3)), None, "too early");
    }

    #[test]
    fn given_a_pinned_connection_when_votes_come_then_it_stays() {
        let affinity = Affinity::default();
        affinity.pin();
        (0..2 * VOTES).for_each(|_| affinity.vote(3, 1));
        assert_eq!(affinity.target(), None);
    }
}
