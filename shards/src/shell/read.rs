//! Reading for fetches: from the tail cache where the records are in memory, else from the disk: the log while it has
//! them, then segments.

use std::rc::Rc;

use chronik_engine::ids::{GroupId, NodeId, Offset, ReplicaId, Term};
use chronik_net::RecordChunk;

use super::shard::Shard;
use crate::core::{FetchError, ReadPlan};

/// One partition of a fetch.
#[derive(Debug, Clone)]
pub struct PartitionRead {
    /// The caller's place for the answer.
    pub slot: usize,
    /// The partition's group.
    pub group: GroupId,
    /// The first offset wanted.
    pub offset: Offset,
    /// Bytes of batches wanted at most.
    pub bytes_max: usize,
    /// The leader epoch that the client believes in, -1 if it does not say.
    pub current_leader_epoch: i32,
    /// Whether a replica that follows may answer.
    pub is_from_any: bool,
    /// Replicas on other nodes that are closer to the client.
    pub closer: Vec<(NodeId, ReplicaId)>,
}

/// What a partition had to offer.
#[derive(Debug, Default)]
pub struct PartitionData {
    /// The high watermark.
    pub high_watermark: Offset,
    /// The first offset there is.
    pub log_start_offset: Offset,
    /// The batches, ready to be sent.
    pub chunks: Vec<RecordChunk>,
    /// The length of `chunks` in bytes.
    pub bytes: usize,
    /// The offset asked for lies beyond what this replica knows to be committed.
    pub is_ahead: bool,
    /// The client should read from this node, and gets nothing here.
    pub preferred: Option<NodeId>,
}

/// The answer to one [`PartitionRead`].
#[derive(Debug)]
pub struct PartitionReadResult {
    /// The caller's place for the answer.
    pub slot: usize,
    /// The data, or why there is none.
    pub result: Result<PartitionData, FetchError>,
}

impl Shard {
    /// Reads several partitions of this shard in order, whole batches, together about `budget` bytes: a partition that
    /// finds the budget spent gets no records. The first batch found is given out whatever its size. Cancel-safe.
    pub async fn read(
        self: Rc<Self>,
        reads: Vec<PartitionRead>,
        budget: usize,
    ) -> Vec<PartitionReadResult> {
        let mut left = budget;
        let mut found_any = false;
        let mut results = Vec::with_capacity(reads.len());
        for read in reads {
            let bytes_max = read.bytes_max.min(left);
            let result = self.read_partition(&read, bytes_max, !found_any).await;
            if let Ok(data) = &result
                && data.bytes > 0
            {
                found_any = true;
                left = left.saturating_sub(data.bytes);
            }
            results.push(PartitionReadResult { slot: read.slot, result });
        }
        results
    }

    async fn read_partition(
        self: &Rc<Self>,
        read: &PartitionRead,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<PartitionData, FetchError> {
        let PartitionRead { group, offset, current_leader_epoch: epoch, .. } = *read;
        let planned = if read.is_from_any {
            self.core.borrow_mut().set_clock(self.clock.awake_or_not_ms());
            self.core.borrow_mut().plan_replica_read(group, offset, bytes_max, epoch)
        } else {
            self.core.borrow_mut().plan_read(group, offset, bytes_max, epoch)
        };
        let plan = planned?;
        let mut data = PartitionData {
            high_watermark: plan.high_watermark,
            log_start_offset: plan.log_start_offset,
            is_ahead: plan.is_ahead,
            preferred: self.preferred_replica(read),
            ..PartitionData::default()
        };
        if data.preferred.is_some() {
            return Ok(data); // what it would read here it reads there
        }
        if bytes_max == 0 && !at_least_one {
            return Ok(data); // the answer is full: only what the client may know of the partition is told
        }
        self.count_read(&plan);
        if let Some(range) = plan.disk.clone() {
            let stored = self.read_stored(read.group, range, bytes_max).await;
            self.check_still_there(read)?;
            for batch in stored? {
                if !data.push(at_least_one, bytes_max, RecordChunk::Raw(batch.bytes)) {
                    break;
                }
            }
            return Ok(data);
        }
        for cached in plan.batches {
            let chunk = RecordChunk::Batch {
                base_offset: cached.base_offset.0,
                leader_epoch: kafka_epoch(cached.epoch),
                bytes: cached.bytes,
            };
            if !data.push(at_least_one, bytes_max, chunk) {
                break;
            }
        }
        Ok(data)
    }

    /// The node whose replica the client should read from instead of this leader's, if there is one (KIP-392).
    fn preferred_replica(&self, read: &PartitionRead) -> Option<NodeId> {
        if read.closer.is_empty() {
            return None;
        }
        let core = self.core.borrow();
        let holders: Vec<ReplicaId> = core.read_replicas(read.group, read.offset).collect();
        let fits = |(node, replica): &&(NodeId, ReplicaId)| {
            holders.contains(replica) && self.links().is_some_and(|links| links.is_up(*node))
        };
        read.closer.iter().find(fits).map(|(node, _)| *node)
    }

    /// What was asked for may have gone while it was read; then what was read may begin after it.
    fn check_still_there(&self, read: &PartitionRead) -> Result<(), FetchError> {
        let view = self.core.borrow().partition(read.group);
        match view {
            Some(view) if read.offset < view.log_start_offset => {
                Err(FetchError::OffsetOutOfRange {
                    offset: read.offset,
                    log_start_offset: view.log_start_offset,
                    end_offset: view.end_offset,
                })
            }
            _ => Ok(()),
        }
    }

    fn count_read(&self, plan: &ReadPlan) {
        let mut metrics = self.metrics.borrow_mut();
        if plan.disk.is_some() {
            metrics.counters.tail_cache_misses += 1;
        } else if !plan.batches.is_empty() {
            metrics.counters.tail_cache_hits += 1;
        }
    }
}

impl PartitionData {
    /// Adds a batch if it fits, or if it must be given out whatever its size; says whether it did.
    fn push(&mut self, at_least_one: bool, bytes_max: usize, chunk: RecordChunk) -> bool {
        let bytes = chunk.size();
        let fits = self.bytes + bytes <= bytes_max || (at_least_one && self.bytes == 0);
        if fits {
            self.bytes += bytes;
            self.chunks.push(chunk);
        }
        fits
    }
}

/// A term as Kafka's wire has it. Terms grow by elections only, so 31 bits last.
#[must_use]
pub fn kafka_epoch(term: Term) -> i32 {
    i32::try_from(term.0).unwrap_or(i32::MAX)
}
