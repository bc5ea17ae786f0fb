//! The time of groups. Where thousands of them lie idle, what a tick costs is the memory that is walked over; so groups get
//! their ticks in turns, several at once, but for those that wait for something nearer than an election.
//!
//! - I1: a group has had as many ticks as its shard when its turn is over, and its turn comes within [`TURN_TICKS`] or a few
//!   more where groups are made meanwhile.
//! - I2: a restless group gets each tick when it comes.
//! - I3: whoever speaks to a group finds it with all its ticks: those that come late would count as silence of a leader.

use std::ops::Bound;

use chronik_engine::ids::GroupId;

use super::group::Group;
use super::in_sync::lag_interval;
use super::{ShardCore, Shared};

/// Ticks within which every group has its turn: far fewer than an election timeout has, and a part of those between heartbeats.
const TURN_TICKS: usize = 10;

/// Ticks since the shard began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u64);

impl Tick {
    fn next(self) -> Tick {
        Tick(self.0 + 1)
    }

    pub(super) fn is_multiple_of(self, ticks: u64) -> bool {
        self.0.is_multiple_of(ticks)
    }

    pub(super) fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a shard knows of its groups' time.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    pub(super) now: Tick,
    /// The groups that get each tick, each once.
    restless: Vec<GroupId>,
    /// The last group that had its turn.
    cursor: Option<GroupId>,
}

impl ShardCore {
    pub(super) fn tick_groups(&mut self) {
        let ticks = &mut self.shared.ticks;
        ticks.now = ticks.now.next();
        for id in std::mem::take(&mut ticks.restless) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.is_restless = false;
                group.tick(&mut self.shared);
            }
        }
        let begin = self.shared.ticks.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut left = self.groups.len().div_ceil(TURN_TICKS);
        for from in [begin, Bound::Unbounded] {
            for (id, group) in self.groups.range_mut((from, Bound::Unbounded)).take(left) {
                group.tick(&mut self.shared);
                self.shared.ticks.cursor = Some(*id);
                left -= 1;
            }
        }
    }
}

impl Group {
    /// Gives the group the ticks that it has not had.
    pub(super) fn tick(&mut self, shared: &mut Shared) {
        if !self.is_live() {
            return;
        }
        let missed = shared.ticks.now.since(self.ticked);
        if missed == 0 {
            return;
        }
        self.ticked = shared.ticks.now;
        for _ in 0..missed {
            if self.raft.tick() {
                self.observe_leadership(shared);
                self.pump(shared);
            }
        }
        self.campaign_early(shared);
        self.tick_reads(shared);
        self.tick_lag_marks(missed, shared.config.lag_ticks_max);
        if !self.raft.is_leader() && !self.is_current(shared) {
            // Who waits here for more is to look for it elsewhere.
            shared.waiters.wake_all(self.id, &mut shared.effects.wakes);
        }
        let is_marked_often =
            self.raft.is_leader() && lag_interval(shared.config.lag_ticks_max) < TURN_TICKS as u64;
        let waits = self.early.is_some() || self.reads.is_some() || self.raft.is_unsettled();
        if waits || is_marked_often {
            self.give_each_tick(shared);
        }
    }

    /// From now on each tick is there when it comes, until one finds nothing that waits for it (I2).
    pub(super) fn give_each_tick(&mut self, shared: &mut Shared) {
        if !std::mem::replace(&mut self.is_restless, true) {
            shared.ticks.restless.push(self.id);
        }
    }
}
