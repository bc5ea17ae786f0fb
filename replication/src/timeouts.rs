//! Election timeouts out of a seed.
//!
//! Raft-rs draws them from the thread's generator, and lets nobody else choose; so the group puts one of these in
//! their place after each call. A generator of our own gives the same numbers with every version of every crate.

use chronik_engine::ids::ReplicaId;
use raft::StateRole;

use crate::config::GroupConfig;

/// Election timeouts out of a seed.
#[derive(Debug)]
pub(crate) struct ElectionTimeouts {
    random: u64,
    election_ticks: usize,
    pub(crate) current: usize,
    /// Term and role that `current` was drawn in: a new one for each.
    pub(crate) drawn_for: (u64, StateRole),
}

impl ElectionTimeouts {
    pub(crate) fn new(config: &GroupConfig, replica: ReplicaId) -> ElectionTimeouts {
        // Neighbouring seeds must not draw alike; a generator of this kind must not start at 0.
        let mixed = (config.seed ^ replica.0.rotate_left(32) ^ config.group.0)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ElectionTimeouts {
            random: (mixed ^ (mixed >> 29)) | 1,
            election_ticks: config.election_ticks,
            current: config.election_ticks,
            drawn_for: (0, StateRole::Follower),
        }
    }

    /// The next of them, within [election, 2 × election) ticks.
    pub(crate) fn draw(&mut self) -> usize {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let value = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        let value = usize::try_from(value).unwrap_or(0);
        self.current = self.election_ticks + value % self.election_ticks;
        self.current
    }
}
