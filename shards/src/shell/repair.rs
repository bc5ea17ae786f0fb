//! A replica that cannot read its own records any more copies them from another one: segments that are damaged or gone, and
//! what a damaged file of the log would have become. What exactly, the core says ([`crate::core::RepairPlan`]).
//!
//! It is done in turn with compaction, so that nothing else writes these segments anew meanwhile. Nobody waits for it: until
//! then the records answer KAFKA_STORAGE_ERROR, at which clients try again.
//!
//! - I1: what is known is bounded by the partitions: one trouble of each. When that is done with it is looked what else is
//!   missing.
//! - I2: in memory are [`PIECE_BYTES`] and one answer at most.
//! - I3: all records of a repair come from one replica; another one is asked for all of them anew.
//! - I4: what fails is tried again less and less often.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;

use chronik_engine::batch::BatchHeader;
use chronik_engine::disk_direct::DirectDisk;
use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_engine::segment::{Segment, SegmentError};
use chronik_engine::wal::ReadError;
use chronik_replication::wire::Seat;
use chronik_tiering::failures::Failures;
use chronik_tiering::fill::{FillJob, write_fill};
use chronik_tiering::write::GATHERED_BYTES_MAX;
use futures_lite::future::block_on;
use thiserror::Error;

use super::shard::Shard;
use super::tiering::segment_bytes_max;
use crate::core::{
    FillAnswer, FillAsk, FillChunk, FillId, NamedSegment, RepairPlan, RepairStep, Unreadable,
};
use crate::stored::StoredError;

/// What is gathered before it is written.
const PIECE_BYTES: usize = 32 << 20;
/// What is asked for at a time.
const ASK_BYTES: usize = 4 << 20;

/// What of a shard's partitions cannot be read.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    wanted: RefCell<BTreeMap<GroupId, Unreadable>>,
    failures: RefCell<Failures<GroupId>>,
}

/// Why records could not be copied.
#[derive(Debug, Error)]
enum RepairError {
    #[error("no other replica gives them")]
    Refused,
    #[error("another replica has nothing left there")]
    Nothing,
    #[error("{0}")]
    Disk(#[from] SegmentError),
    #[error("the partition has moved on meanwhile, or there is too much to do")]
    MovedOn,
}

/// The offset at which stored records cannot be read, if others may have them: not where the system lacks something.
pub(super) fn unreadable(error: &StoredError) -> Option<Unreadable> {
    let error = match error {
        StoredError::Missing { gap } => return Some(Unreadable::Stored(gap.start)),
        // No segment stands for it either.
        StoredError::Log(ReadError::OffsetReclaimed { offset, .. }) => {
            return Some(Unreadable::Stored(*offset));
        }
        StoredError::Restless { .. } => return None,
        StoredError::Log(_) => return None, // as soon as its file is full
        StoredError::Segment(error) => error,
    };
    segment_lost(error).map(|segment| Unreadable::Stored(segment.base_offset))
}

/// The segment that an error says is damaged or gone.
pub(super) fn segment_lost(error: &SegmentError) -> Option<Segment> {
    let is_lost = match error {
        SegmentError::Damaged { .. } => true,
        SegmentError::Io { source, .. } => {
            let is_bad_medium = source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
            is_bad_medium || matches!(source.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof)
        }
        _ => false,
    };
    let name = error.path().file_name().filter(|_| is_lost)?.to_str()?;
    Segment::parse(name, 0).map(|(_, _, segment)| segment)
}

impl Shard {
    /// Notes that something of a partition cannot be read here.
    pub(super) fn want_repair(&self, group: GroupId, what: Unreadable) {
        if self.links().is_some() {
            self.repairs.wanted.borrow_mut().entry(group).or_insert(what);
        }
    }

    /// Notes what is missing at the start: segments that are gone though their records are not in the log.
    pub(super) fn want_missing(&self) {
        let partitions: Vec<GroupId> =
            self.with_core(|core| core.record_partitions().map(|(group, _)| group).collect());
        for group in partitions {
            if let Some(what) = self.missing(group, None) {
                self.want_repair(group, what);
            }
        }
    }

    fn missing(&self, group: GroupId, behind: Option<Unreadable>) -> Option<Unreadable> {
        let first_in_log = self.wal.first_offset(group);
        self.with_core(|core| core.missing(group, first_in_log, behind))
    }

    /// Repairs what there is to be repaired now, one partition after the other; mostly there is nothing.
    pub(super) async fn repair(self: &Rc<Self>) {
        if self.repairs.wanted.borrow().is_empty() {
            return;
        }
        let now_ns = self.clock.now_ns();
        let is_here = |group: &GroupId| self.with_core(|core| core.partition(*group).is_some());
        self.repairs.failures.borrow_mut().retain(is_here);
        let wanted: Vec<(GroupId, Unreadable)> = {
            let failures = self.repairs.failures.borrow();
            let wanted = self.repairs.wanted.borrow();
            let due = wanted.iter().filter(|(group, _)| !failures.is_left_alone(group, now_ns));
            due.map(|(group, what)| (*group, *what)).collect()
        };
        for (group, what) in wanted {
            let mut next = Some(what);
            while let Some(what) = next.filter(|_| !self.stopping.get()) {
                next = self.repair_one(group, what).await;
            }
        }
    }

    /// Repairs one trouble of a partition, and says what else is missing of it once that is done with.
    async fn repair_one(self: &Rc<Self>, group: GroupId, what: Unreadable) -> Option<Unreadable> {
        let topic = self
            .with_core(|core| core.record_partitions().find(|(id, _)| *id == group))
            .and_then(|(_, tag)| self.catalog().topic_by_id(tag.topic).cloned());
        let is_compacted = topic.as_ref().is_some_and(|topic| topic.settings.cleanup.compact);
        let first_in_log = self.wal.first_offset(group);
        let step = self.with_core(|core| core.plan_repair(group, what, is_compacted, first_in_log));
        let mut plan = match step {
            RepairStep::Wait => return None,
            RepairStep::None => return self.end_repair(group, what),
            RepairStep::Copy(plan) => plan,
        };
        let links = self.links()?;
        let is_up = |seat: Seat| links.peers().is_up(seat);
        plan.others.retain(|other| links.seat_of(group, *other).is_some_and(is_up));
        if plan.others.is_empty() {
            return None; // as soon as one can be reached
        }
        let bytes_max = topic.as_ref().map_or(GATHERED_BYTES_MAX, |topic| segment_bytes_max(topic));
        let (shard, partition) = (self.id.0, self.name_of(group));
        let (from, up_to) = (plan.from, plan.up_to);
        let mut result = Err(RepairError::Refused);
        for other in plan.others.clone() {
            result = self.copy_anew(group, &plan, other, bytes_max).await;
            if result.is_ok() || self.stopping.get() {
                break; // I3
            }
        }
        let counters = |repairs, failures| {
            let counters = &mut self.metrics.borrow_mut().counters;
            counters.repairs += repairs;
            counters.repair_failures += failures;
        };
        match result {
            Ok(()) => {
                counters(1, 0);
                self.repairs.failures.borrow_mut().forget(&group);
                tracing::warn!(
                    shard,
                    partition,
                    "records {from} to {up_to} could not be read and were copied from another replica"
                );
                self.end_repair(group, what)
            }
            Err(error) => {
                counters(0, 1);
                let noted = self.repairs.failures.borrow_mut().note(group, self.clock.now_ns());
                tracing::warn!(
                    shard,
                    partition,
                    "records {from} to {up_to} cannot be read, and not be copied; tried again in {} s: {error}",
                    noted.pause.as_secs()
                );
                // What is missing behind it others may have.
                self.missing(group, Some(what))
            }
        }
    }

    /// What is missing next takes the place of what is done with, unless that could not be copied in a try before.
    fn end_repair(&self, group: GroupId, what: Unreadable) -> Option<Unreadable> {
        let next = self.missing(group, Some(what));
        let mut wanted = self.repairs.wanted.borrow_mut();
        if wanted.get(&group) == Some(&what) {
            wanted.remove(&group);
        }
        if let Some(next) = next {
            wanted.entry(group).or_insert(next);
        }
        next
    }

    /// Copies what is planned from one replica. What was written and does not count goes again.
    async fn copy_anew(
        self: &Rc<Self>,
        group: GroupId,
        plan: &RepairPlan,
        other: ReplicaId,
        bytes_max: u64,
    ) -> Result<(), RepairError> {
        let mut copy = Copying { group, plan, bytes_max, base: plan.base_offset, written: vec![] };
        let copied = copy.run(self, other).await;
        let written = copy.written;
        match copied {
            Ok(()) if written.is_empty() => Ok(()), // they count already
            Ok(()) => {
                let mut counts = false;
                self.change_core(|core| counts = core.put_repaired(group, &plan.old, &written));
                counts.then_some(()).ok_or(RepairError::MovedOn)
            }
            Err(error) => {
                self.segments.note_gone(written);
                Err(error)
            }
        }
    }
}

/// A repair under way, from one replica.
struct Copying<'a> {
    group: GroupId,
    plan: &'a RepairPlan,
    bytes_max: u64,
    /// What the next segment stands for begins here.
    base: Offset,
    /// Segments that are to take the place of others, once all are there.
    written: Vec<NamedSegment>,
}

impl Copying<'_> {
    async fn run(&mut self, shard: &Rc<Shard>, other: ReplicaId) -> Result<(), RepairError> {
        let RepairPlan { replica, from, up_to, .. } = *self.plan;
        let (mut next, mut gathered, mut bytes) = (from, Vec::new(), 0);
        while next < up_to {
            if shard.stopping.get() {
                return Err(RepairError::MovedOn);
            }
            let ask = FillAsk {
                fill: FillId::default(),
                group: self.group,
                replica,
                leader: other,
                from: next,
                up_to,
                bytes_max: ASK_BYTES,
            };
            match shard.ask_records(ask).await {
                FillAnswer::Records(chunk) if chunk.end_offset > next => {
                    next = chunk.end_offset;
                    let first = BatchHeader::read(&chunk.bytes).map(|header| header.base_offset);
                    if first.is_none_or(|first| first >= up_to) {
                        break;
                    }
                    // The last piece is not written before it is known to be the last.
                    if bytes >= PIECE_BYTES {
                        self.write(shard, std::mem::take(&mut gathered), None).await?;
                        bytes = 0;
                    }
                    bytes += chunk.bytes.len();
                    gathered.push(chunk);
                }
                FillAnswer::LogStart(start) if start > next => next = start,
                _ => return Err(RepairError::Refused),
            }
        }
        if gathered.is_empty() {
            return Err(RepairError::Nothing);
        }
        self.write(shard, gathered, Some(up_to)).await
    }

    /// Writes a piece; all of them in a row stand for the whole range. Where no segment is, each counts at once.
    async fn write(
        &mut self,
        shard: &Rc<Shard>,
        chunks: Vec<FillChunk>,
        up_to: Option<Offset>,
    ) -> Result<(), RepairError> {
        let (plan, base) = (self.plan, self.base);
        if shard.segments.is_removing(plan.tag.topic, plan.tag.partition, base) {
            return Err(RepairError::MovedOn); // a file to be removed might have the same name
        }
        let id = plan.tag.segment_id(shard.node.cluster_uuid, plan.term);
        let job = FillJob {
            segments_dir: shard.segments.dir().to_owned(),
            id,
            from: base,
            up_to,
            generation: plan.generation,
            chunks: chunks.into_iter().map(|chunk| chunk.bytes).collect(),
            segment_bytes_max: self.bytes_max,
        };
        let work = move |disk: &DirectDisk| {
            let (segments, result) = block_on(write_fill(disk, &job));
            (NamedSegment::all_of(id, segments), result)
        };
        let written = shard.in_background(&shard.background.cleaner, work).await;
        let (segments, result) = written.ok_or(RepairError::MovedOn)?;
        self.base = segments.last().map_or(base, |last| last.segment.end_offset);
        if plan.old.is_empty() && !segments.is_empty() {
            let mut counts = false;
            shard.change_core(|core| counts = core.put_repaired(self.group, &[], &segments));
            if !counts {
                return Err(RepairError::MovedOn);
            }
        } else {
            self.written.extend(segments);
        }
        Ok(result?)
    }
}
