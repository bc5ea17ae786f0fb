//! Which replicas of a group are in sync, as its leader sees them.
//!
//! Kafka calls a replica in sync that has had all of the leader's log within `replica.lag.time.max.ms`. Here the leader
//! asks two things of a voter. It takes entries as they come: who cannot be reached is probed instead, half a second after
//! its node was heard last. And it holds what was committed a while ago: who hangs, though its node answers, falls behind
//! that. Three marks on the commit index, moved at intervals of half that time, tell how long ago that is; nothing is
//! noted for each replica. So who hangs is found out after the time that is set, and before one and a half times that has
//! passed, as in Kafka; a turn of ticks later on a shard with many groups.
//!
//! - I1: the leader is in sync with itself; learners are not asked. Where consumers are sent, learners are looked at alike.
//! - I2: what is committed is decided by Raft's quorum alone. That too few replicas are in sync refuses batches before they
//!   are appended.

use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId};

use super::group::Group;
use super::{ProduceError, ShardCore, live_mut};

/// Where the commit index was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LagMarks {
    /// At the mark two before the last: who lacks this is not in sync.
    before: RaftIndex,
    /// At the mark after that.
    next: RaftIndex,
    /// At the last mark.
    last: RaftIndex,
    ticks: u64,
}

/// Ticks between two marks.
pub(super) fn lag_interval(lag_ticks_max: u32) -> u64 {
    u64::from(lag_ticks_max.div_ceil(2)).max(1)
}

impl ShardCore {
    /// The voters of a group that are in sync; `None` if it is not led from here, or not long enough to know.
    #[must_use]
    pub fn in_sync(&self, group: GroupId) -> Option<Vec<ReplicaId>> {
        let led = self.live(group).filter(|group| group.is_ready())?;
        Some(led.voters_in_sync().collect())
    }

    /// The groups led from here that have a voter which is not in sync, with those that are.
    pub fn under_replicated(&self) -> impl Iterator<Item = (GroupId, Vec<ReplicaId>)> {
        self.groups.values().filter_map(|group| Some((group.id, group.short_of_voters()?)))
    }

    /// The same of one group.
    #[must_use]
    pub fn short_of_voters(&self, group: GroupId) -> Option<Vec<ReplicaId>> {
        self.groups.get(&group).and_then(Group::short_of_voters)
    }

    /// Refuses a batch that is to be acknowledged by all where fewer than `wanted` voters are in sync, or all of them if
    /// there are fewer. One that is not refused is acknowledged once as many hold it. A leader that does not know yet who
    /// is in sync lets it pass: as many must hold it all the same.
    ///
    /// # Errors
    /// [`ProduceError::NotEnoughReplicas`].
    pub fn check_in_sync(&mut self, group: GroupId, wanted: u32) -> Result<(), ProduceError> {
        let found = live_mut(&mut self.groups, group);
        let Some(led) = found.filter(|group| group.can_propose()) else { return Ok(()) };
        led.set_holders_min(usize::try_from(wanted).unwrap_or(usize::MAX), &mut self.shared);
        if wanted <= 1 || !led.is_ready() {
            return Ok(());
        }
        let count = |replicas: usize| u32::try_from(replicas).unwrap_or(u32::MAX);
        let in_sync = count(led.voters_in_sync().count());
        let wanted = wanted.min(count(led.raft.meta().voters.len()));
        if in_sync >= wanted {
            return Ok(());
        }
        Err(ProduceError::NotEnoughReplicas { in_sync, wanted })
    }
}

impl Group {
    pub(super) fn voters_in_sync(&self) -> impl Iterator<Item = ReplicaId> {
        self.holders(self.lag_marks.before)
    }

    /// Those in sync that hold all that is applied here.
    pub(super) fn voters_that_show_all(&self) -> impl Iterator<Item = ReplicaId> {
        self.holders(self.lag_marks.before.max(self.raft.applied()))
    }

    /// The learners that keep up as a voter in sync does, and hold all records before `offset`.
    pub(super) fn learners_that_show(&self, offset: Offset) -> impl Iterator<Item = ReplicaId> {
        self.raft.learners_that_hold(self.lag_marks.before, offset)
    }

    /// A replica that is lost holds nothing, whatever is answered in its place.
    fn holders(&self, index: RaftIndex) -> impl Iterator<Item = ReplicaId> {
        self.raft.voters_that_hold(index).filter(|replica| !self.lost.contains(replica))
    }

    /// The voters in sync, if it is led from here and one is not.
    fn short_of_voters(&self) -> Option<Vec<ReplicaId>> {
        let is_short = self.is_live() && self.is_ready() && self.is_under_replicated();
        is_short.then(|| self.voters_in_sync().collect())
    }

    pub(super) fn is_under_replicated(&self) -> bool {
        self.voters_in_sync().count() < self.raft.meta().voters.len()
    }

    /// So many ticks have passed. A voter may lack for `lag_ticks_max` of them what is committed.
    pub(super) fn tick_lag_marks(&mut self, passed: u64, lag_ticks_max: u32) {
        let marks = &mut self.lag_marks;
        marks.ticks += passed;
        let interval = lag_interval(lag_ticks_max);
        if marks.ticks >= interval {
            let (last, ticks) = (self.raft.commit_index(), marks.ticks - interval);
            *marks = LagMarks { before: marks.next, next: marks.last, last, ticks };
        }
    }
}
