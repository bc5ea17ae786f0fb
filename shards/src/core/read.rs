//! What may be read of a partition, and where it is found.

use std::ops::Range;

use chronik_engine::batch::leader_epoch;
use chronik_engine::ids::{GroupId, Offset, ReplicaId, Term};
use chronik_engine::tail_cache::CachedBatch;

use super::group::{Group, Machine};
use super::producers::ProducerView;
use super::{FetchError, ShardCore, Shared, WaiterId};

/// Kafka's "no epoch" and "no offset".
const UNDEFINED: (i32, Offset) = (-1, Offset(-1));

/// Of a client that does not say which epoch it believes in.
const NO_EPOCH: i32 = -1;

/// A partition as this replica knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionView {
    /// Whether this replica leads it.
    pub is_leader: bool,
    /// Whether it leads and its high watermark is up to date: whether it can be read.
    pub is_ready: bool,
    /// Whether it is ready or follows a leader.
    pub is_settled: bool,
    /// Who leads, as far as this replica knows.
    pub leader: Option<ReplicaId>,
    /// The current term.
    pub leader_epoch: Term,
    /// The first offset there is.
    pub log_start_offset: Offset,
    /// The offset after the last that may be read.
    pub high_watermark: Offset,
    /// The offset after the last record in the log, committed or not.
    pub end_offset: Offset,
    /// Producers that are remembered.
    pub producers: usize,
}

/// Where the answer to a fetch is.
#[derive(Debug, Default)]
pub struct ReadPlan {
    /// The offset after the last that may be read.
    pub high_watermark: Offset,
    /// The first offset there is.
    pub log_start_offset: Offset,
    /// Batches in memory, the first of which holds the offset asked for. Their bytes are as the producer sent them.
    pub batches: Vec<CachedBatch>,
    /// If there are none: what to read from disk, and no further.
    pub disk: Option<Range<Offset>>,
    /// The offset asked for lies beyond what this replica, which follows, knows to be committed. Its leader may know more.
    pub is_ahead: bool,
}

impl ShardCore {
    /// A partition, led here or not; `None` if it is not placed here.
    #[must_use]
    pub fn partition(&self, group: GroupId) -> Option<PartitionView> {
        self.live(group).map(Group::view)
    }

    /// A partition for a client that believes in `current_leader_epoch` (-1: in none).
    ///
    /// # Errors
    /// If it is not here, not led from here, or the client's epoch is another.
    pub fn leader_view(
        &self,
        group: GroupId,
        current_leader_epoch: i32,
    ) -> Result<PartitionView, FetchError> {
        self.leader(group, current_leader_epoch).map(Group::view)
    }

    /// The producers that a partition led from here remembers.
    ///
    /// # Errors
    /// As [`ShardCore::leader_view`].
    pub fn producers_of(&self, group: GroupId) -> Result<Vec<ProducerView>, FetchError> {
        match &self.leader(group, NO_EPOCH)?.machine {
            Machine::Partition(producers) => Ok(producers.views().collect()),
            Machine::Catalog(_) | Machine::Groups(_) => Err(FetchError::UnknownPartition),
        }
    }

    /// Finds out what a fetch from `offset` gets, whole batches, about `bytes_max` of them. An offset between the high
    /// watermark and the end of the log gets nothing yet, as in Kafka.
    ///
    /// # Errors
    /// As [`ShardCore::leader_view`], or if there is no such offset.
    pub fn plan_read(
        &mut self,
        group: GroupId,
        offset: Offset,
        bytes_max: usize,
        current_leader_epoch: i32,
    ) -> Result<ReadPlan, FetchError> {
        let leader = self.leader(group, current_leader_epoch)?;
        let high_watermark = leader.high_watermark();
        let log_start_offset = leader.log_start_offset;
        let end_offset = leader.raft.end_offset();
        assert!(high_watermark <= end_offset, "what is committed is in the log");
        if offset < log_start_offset || offset > end_offset {
            return Err(FetchError::OffsetOutOfRange { offset, log_start_offset, end_offset });
        }
        let plan = ReadPlan { high_watermark, log_start_offset, ..ReadPlan::default() };
        Ok(self.plan_batches(plan, group, offset, bytes_max))
    }

    /// As [`ShardCore::plan_read`], also from a replica that follows (KIP-392). Whoever follows shows what is committed as
    /// far as it has applied it, whoever leads by now: that never changes. What lies beyond may be there or not, which it
    /// cannot tell; and where nobody says how far that goes, for want of a leader, the client should look elsewhere. So it
    /// should where what was committed longer ago than [`CoreConfig::follower_read_staleness_max_ms`] may not be here.
    ///
    /// # Errors
    /// As [`ShardCore::plan_read`]; but a replica that follows a leader, and knows that it is current, is fine.
    pub fn plan_replica_read(
        &mut self,
        group: GroupId,
        offset: Offset,
        bytes_max: usize,
        current_leader_epoch: i32,
    ) -> Result<ReadPlan, FetchError> {
        let replica = self.replica_in_epoch(group, current_leader_epoch)?;
        if replica.raft.is_leader() {
            return self.plan_read(group, offset, bytes_max, current_leader_epoch);
        }
        if !replica.is_current(&self.shared) {
            return Err(FetchError::NotLeader);
        }
        let high_watermark = replica.high_watermark();
        let log_start_offset = replica.log_start_offset;
        if offset < log_start_offset {
            let end_offset = high_watermark;
            return Err(FetchError::OffsetOutOfRange { offset, log_start_offset, end_offset });
        }
        if offset >= high_watermark && replica.known_leader().is_none() {
            return Err(FetchError::NotLeader);
        }
        let is_ahead = offset > high_watermark;
        let plan = ReadPlan { high_watermark, log_start_offset, is_ahead, ..ReadPlan::default() };
        Ok(self.plan_batches(plan, group, offset, bytes_max))
    }

    /// Adds the batches from `offset` on that are in memory, or where the first of them is on disk.
    pub(super) fn plan_batches(
        &self,
        mut plan: ReadPlan,
        group: GroupId,
        offset: Offset,
        bytes_max: usize,
    ) -> ReadPlan {
        let high_watermark = plan.high_watermark;
        if offset >= high_watermark {
            return plan;
        }
        let mut bytes = 0;
        for batch in self.shared.tail.get(group, offset) {
            bytes += batch.bytes.len();
            let fits = bytes <= bytes_max || plan.batches.is_empty();
            if !fits || batch.base_offset >= high_watermark {
                break;
            }
            plan.batches.push(batch.clone());
        }
        if plan.batches.is_empty() {
            plan.disk = Some(offset..high_watermark);
        }
        plan
    }

    /// The replicas of a partition led from here to which consumers may be sent that want what lies at `offset`. Those that
    /// vote: in sync, and with all that readers see here. Those that do not are behind a little as long as there are writes,
    /// since nobody waits for them: it is enough that they keep up, and hold what lies before the offset. All of them: heard of
    /// so lately that they know that they are current. None if the partition is not led from here.
    pub fn read_replicas(&self, group: GroupId, offset: Offset) -> impl Iterator<Item = ReplicaId> {
        let led = self.live(group).filter(|group| group.is_ready());
        let shared = &self.shared;
        led.into_iter().flat_map(move |group| {
            let serves = move |replica: &ReplicaId| {
                *replica == group.raft.replica() || group.is_current_elsewhere(*replica, shared)
            };
            group.voters_that_show_all().chain(group.learners_that_show(offset)).filter(serves)
        })
    }

    /// Lets a fetch wait until the partition has data at or after `beyond`, or something happens to it. It is woken at
    /// once if that is so already.
    pub fn wait_for_data(&mut self, group: GroupId, beyond: Offset, waiter: WaiterId) {
        let is_read = |group: &&Group| group.is_ready() || !group.raft.is_leader();
        let found = self.live(group).filter(is_read);
        let waits = found.is_some_and(|group| group.high_watermark() <= beyond);
        if !waits || self.is_stopped || !self.shared.waiters.add(group, beyond, waiter) {
            self.shared.waiters.forget(waiter);
            self.shared.effects.wakes.push(waiter);
        }
    }

    /// Forgets a fetch that waits no longer.
    pub fn forget_waiter(&mut self, waiter: WaiterId) {
        self.shared.waiters.forget(waiter);
    }

    /// The epoch in which the record at `offset` was or will be appended; `None` for an empty log.
    #[must_use]
    pub fn epoch_of(&self, group: GroupId, offset: Offset) -> Option<Term> {
        let epochs = self.live(group)?.raft.epochs();
        let begun = epochs.partition_point(|start| start.offset <= offset);
        begun.checked_sub(1).and_then(|at| epochs.get(at)).map(|start| start.epoch)
    }

    /// Where `epoch`, or the last one with records before it, ends: Kafka's `LeaderEpochFileCache.endOffsetFor`.
    ///
    /// # Errors
    /// As [`ShardCore::leader_view`].
    pub fn end_offset_for_epoch(
        &self,
        group: GroupId,
        epoch: i32,
        current_leader_epoch: i32,
    ) -> Result<(i32, Offset), FetchError> {
        let leader = self.leader(group, current_leader_epoch)?;
        if epoch < 0 {
            return Ok(UNDEFINED);
        }
        if epoch == leader_epoch(leader.raft.term()) {
            return Ok((epoch, leader.raft.end_offset()));
        }
        // Kafka drops an epoch without records when the next one begins.
        let epochs = leader.raft.epochs();
        let nexts = epochs.iter().skip(1).map(Some).chain([None]);
        // Nor does it know what lies before the log's start.
        let log_start = leader.log_start_offset;
        let mut floor = None;
        for (start, next) in epochs.iter().zip(nexts) {
            let is_empty =
                next.is_some_and(|next| next.offset == start.offset || next.offset <= log_start);
            if leader_epoch(start.epoch) > epoch {
                if !is_empty {
                    return Ok((floor.unwrap_or(epoch), start.offset.max(log_start)));
                }
            } else if !is_empty {
                floor = Some(leader_epoch(start.epoch));
            }
        }
        Ok(UNDEFINED)
    }

    /// Kafka's order of checks: the epoch first, so that a client learns that its metadata is old.
    fn leader(&self, group: GroupId, current_leader_epoch: i32) -> Result<&Group, FetchError> {
        let leader = self.replica_in_epoch(group, current_leader_epoch)?;
        if leader.is_ready() { Ok(leader) } else { Err(FetchError::NotLeader) }
    }

    /// A replica that is in the epoch that the client believes in.
    fn replica_in_epoch(
        &self,
        group: GroupId,
        current_leader_epoch: i32,
    ) -> Result<&Group, FetchError> {
        let replica = self.live(group).ok_or(FetchError::UnknownPartition)?;
        let (epoch, current) = (current_leader_epoch, leader_epoch(replica.raft.term()));
        if epoch >= 0 && epoch < current {
            return Err(FetchError::FencedLeaderEpoch { epoch, current });
        }
        if epoch > current {
            return Err(FetchError::UnknownLeaderEpoch { epoch, current });
        }
        Ok(replica)
    }
}

impl PartitionView {
    /// Whether this replica was elected, though it may not be ready yet.
    #[must_use]
    pub fn is_led_here(&self) -> bool {
        self.is_ready || (!self.is_settled && self.leader.is_some())
    }
}

impl Shared {
    /// Whether so little time has passed since then that what was so then is not too old for consumers.
    fn is_fresh(&self, as_of_ms: u64) -> bool {
        self.clock_ms.saturating_sub(as_of_ms) < self.config.follower_read_staleness_max_ms
    }
}

impl Group {
    /// Whether this replica, which follows, may serve consumers (I7).
    pub(super) fn is_current(&self, shared: &Shared) -> bool {
        self.raft.current_as_of_ms().is_some_and(|as_of_ms| shared.is_fresh(as_of_ms))
    }

    /// Whether this leader was answered lately by another replica, which knows how old it is.
    fn is_current_elsewhere(&self, replica: ReplicaId, shared: &Shared) -> bool {
        self.raft.knows_its_age(replica).is_some_and(|heard_ms| shared.is_fresh(heard_ms))
    }

    fn view(&self) -> PartitionView {
        PartitionView {
            is_leader: self.can_propose(),
            is_ready: self.is_ready(),
            is_settled: self.is_settled(),
            leader: self.known_leader(),
            leader_epoch: self.raft.term(),
            log_start_offset: self.log_start_offset,
            high_watermark: self.high_watermark(),
            end_offset: self.raft.end_offset(),
            producers: self.producers(),
        }
    }
}
