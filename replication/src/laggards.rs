//! Peers that answer their leader and get no further: their disk is full, say, or its log is. The leader's log is kept for who
//! is late, and not for who is stuck.
//!
//! - I1: a peer counts as stuck once it has lacked entries for a whole interval without taking one, and until it takes one.

use std::collections::BTreeMap;

use crate::group::RaftGroup;

/// What a leader remembers of peers that lack entries; nothing where nobody does.
#[derive(Debug, Default)]
pub(crate) struct Laggards {
    ticks: usize,
    /// How far those were that lacked entries when the interval began.
    lagging: BTreeMap<u64, u64>,
    /// How far those are that did not move throughout the last interval.
    stuck: BTreeMap<u64, u64>,
}

impl Laggards {
    /// Whether a peer that holds the log up to `matched` is stuck there.
    pub(crate) fn is_stuck(&self, peer: u64, matched: u64) -> bool {
        self.stuck.get(&peer) == Some(&matched)
    }
}

impl RaftGroup {
    /// A tick has passed.
    pub(crate) fn tick_laggards(&mut self) {
        self.laggards.ticks += 1;
        if self.laggards.ticks < self.config.snapshot_ticks_max {
            return;
        }
        let (own, last) = (self.node.raft.id, self.last_index().0);
        let is_leader = self.is_leader();
        let peers = self.node.raft.prs().iter();
        let lagging: BTreeMap<u64, u64> = peers
            .filter(|(id, progress)| is_leader && **id != own && progress.matched < last)
            .map(|(id, progress)| (*id, progress.matched))
            .collect();
        let before = &self.laggards.lagging;
        let stuck = lagging.iter().filter(|(id, matched)| before.get(id) == Some(matched));
        let stuck = stuck.map(|(id, matched)| (*id, *matched)).collect();
        self.laggards = Laggards { ticks: 0, lagging, stuck };
    }
}
