//! Segments of one node that are damaged or gone, and their repair from other replicas, as the shell's `repair` has it. What is
//! to be copied, the core says.
//!
//! - I1: damage hits one node of a run, and no other of it loses its disks: everything committed has a whole copy elsewhere.
//! - I2: what is damaged is never served, and in the end every record is there again ([`Run::mend_all`]); what was missing at a
//!   start without being asked for.
//! - I3: while records are copied nothing else writes segments of that shard anew, but for what fills replicas.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::rc::Rc;

use chronik_engine::batch::BatchHeader;
use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{Corruption, SimDisk, block_on};
use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_engine::segment::format::SECTOR_BYTES;
use chronik_engine::segment::{Segment, SegmentError, SegmentPlan};
use chronik_engine::wal::ReadError;
use chronik_shards::catalog::PartitionTag;
use chronik_shards::core::{
    FillAnswer, FillAsk, FillChunk, FillId, NamedSegment, RepairPlan, RepairStep, Unreadable,
};
use chronik_shards::stored::StoredError;
use chronik_tiering::write::WriteError;
use rand::Rng;

use super::event::Step;
use super::fills::Written;
use super::log_damage::is_log_damaged;
use super::net::Body;
use super::run::Run;
use super::swarm::SECOND;
use super::{Check, Violation};
use crate::must;
use crate::sim::disk::{is_segment_full, segment_io_failed};
use crate::sim::node::{Node, SEGMENTS_DIR, Task, poll_once};

/// How long a replica waits for records.
const PATIENCE_US: u64 = 5 * SECOND;
const ASK_BYTES: usize = 4 << 20;
/// Base offset, length, leader epoch, version and the checksum itself.
const UNCOVERED_BYTES: u64 = 21;
/// More damages than a run makes in one partition.
const SWEEPS_MAX: usize = 300;

/// What of a shard's partitions cannot be read, and what is copied.
#[derive(Default)]
pub(super) struct Repairs {
    wanted: BTreeMap<GroupId, Unreadable>,
    copying: Option<Copying>,
}

impl Repairs {
    pub(super) fn is_busy(&self) -> bool {
        self.copying.is_some()
    }

    /// What is wanted, and what is under way, for who reads why it does not end.
    pub(super) fn told(&self) -> String {
        let Repairs { wanted, copying } = self;
        let under_way = copying.as_ref().map(|c| (c.group, &c.plan, c.asking, c.next));
        format!("wanted {wanted:?}, under way {under_way:?}")
    }

    fn is_at_rest(&self) -> bool {
        self.copying.is_none() && self.wanted.is_empty()
    }
}

struct Copying {
    group: GroupId,
    what: Unreadable,
    plan: RepairPlan,
    /// Who is asked.
    asking: Option<ReplicaId>,
    /// Who is to be asked after this one.
    others: Vec<ReplicaId>,
    next: Offset,
    chunks: Vec<FillChunk>,
    asked: Option<u64>,
    writing: Option<Task<Written>>,
}

/// The offset at which stored records cannot be read, if others may have them.
fn unreadable(error: &StoredError) -> Option<Unreadable> {
    match error {
        StoredError::Missing { gap } => Some(Unreadable::Stored(gap.start)),
        StoredError::Log(ReadError::OffsetReclaimed { offset, .. }) => {
            Some(Unreadable::Stored(*offset))
        }
        StoredError::Segment(error) => {
            segment_lost(error).map(|s| Unreadable::Stored(s.base_offset))
        }
        StoredError::Log(_) | StoredError::Restless { .. } => None,
    }
}

/// The segment that an error says is damaged or gone.
pub(super) fn segment_lost(error: &SegmentError) -> Option<Segment> {
    let is_lost = match error {
        SegmentError::Damaged { .. } => true,
        SegmentError::Io { source, .. } => source.kind() == ErrorKind::NotFound,
        SegmentError::NotPlanned { .. } => false,
    };
    let name = error.path().file_name().filter(|_| is_lost)?.to_str()?;
    Segment::parse(name, 0).map(|(_, _, segment)| segment)
}

/// One of the bytes in a segment that Kafka's checksum of a batch does not cover, if a batch can be told there.
fn uncovered_byte(disk: &SimDisk, path: &Path, drawn: u64) -> Option<u64> {
    let bytes = disk.read_raw(path).ok()?;
    let end = usize::try_from(SegmentPlan::decode(&bytes).ok()?.data_end()).ok()?;
    let (mut at, mut begins) = (usize::try_from(SECTOR_BYTES).ok()?, Vec::new());
    while at < end
        && let Some(header) = BatchHeader::read(bytes.get(at..)?)
    {
        begins.push(at as u64);
        at += header.size().ok()?;
    }
    let count = begins.len() as u64;
    let begin = begins.get(usize::try_from(drawn.checked_rem(count)?).ok()?)?;
    Some(begin + drawn / count % UNCOVERED_BYTES)
}

impl Run {
    /// A segment of the node that damage hits gets another bit, anywhere or where batches have what their own checksums leave
    /// out, or is gone.
    pub(super) fn damage_segment(&mut self) {
        let Some(host) = self.swarm.victim else { return };
        let shard = self.rng.random_range(0..self.hosts[host].shards.len());
        let here = &self.hosts[host].shards[shard];
        let Some(node) = self.hosts[host].node(shard).filter(|_| !here.is_armed) else { return };
        if self.swarm.damages_logs && self.damage_log(host, shard, &node) {
            return;
        }
        let here = &self.hosts[host].shards[shard];
        let all: Vec<_> = {
            let core = node.core.borrow();
            let partitions = core.record_partitions().filter(|(group, _)| self.is_settled(*group));
            let named = partitions.flat_map(|(group, tag)| {
                let segments = core.segments(group).into_iter().flat_map(|all| all.iter());
                segments.map(move |segment| NamedSegment {
                    topic: tag.topic,
                    partition: tag.partition,
                    segment: *segment,
                })
            });
            named.collect()
        };
        let place = self.rng.random_range(0..all.len().max(1));
        let Some(named) = all.get(place) else { return };
        let path = Path::new(SEGMENTS_DIR).join(named.file_name());
        let disk = here.disk.clone();
        let done = if self.rng.random_range(0..3) == 0 {
            // Two of one partition with one between, so that there are two gaps.
            let is_other = |other: &&NamedSegment| {
                (other.topic, other.partition) == (named.topic, named.partition)
            };
            let other = all.get(place + 2).filter(is_other);
            block_on(async {
                disk.remove(&path).await?;
                if let Some(other) = other {
                    disk.remove(&Path::new(SEGMENTS_DIR).join(other.file_name())).await?;
                }
                disk.sync_dir(Path::new(SEGMENTS_DIR)).await
            })
        } else {
            let drawn = self.rng.random_range(0..named.segment.file_bytes.max(1));
            let at = match drawn % 2 {
                0 => drawn,
                _ => uncovered_byte(&disk, &path, drawn / 2).unwrap_or(drawn),
            };
            disk.corrupt(&path, at..at + 1, Corruption::FlipBit(self.rng.random_range(0..8)))
        };
        trace!(self, "node {}: {named:?} is damaged: {done:?}", host + 1);
        self.report.damages += u64::from(done.is_ok());
    }

    /// Whether records could not be read for want of a repair; if so that is noted.
    pub(super) fn wants_repair(
        &mut self,
        host: usize,
        shard: usize,
        group: GroupId,
        error: &StoredError,
    ) -> bool {
        if self.swarm.victim == Some(host) && is_log_damaged(error) {
            self.report.unreadable += 1;
            return true; // it is noted when segments are made of that file
        }
        let what = unreadable(error).filter(|_| self.swarm.victim == Some(host));
        what.is_some_and(|what| self.want_repair(host, shard, group, what))
    }

    pub(super) fn want_repair(
        &mut self,
        host: usize,
        shard: usize,
        group: GroupId,
        what: Unreadable,
    ) -> bool {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return false };
        running.repairs.wanted.entry(group).or_insert(what);
        self.report.unreadable += 1;
        true
    }

    /// Whether segments could not be merged since one of them is damaged or gone; if so that is noted.
    pub(super) fn segment_lost_by(
        &mut self,
        host: usize,
        shard: usize,
        error: &WriteError,
    ) -> bool {
        let WriteError::Segment(error) = error else { return false };
        let name = error.path().file_name().and_then(|name| name.to_str());
        let parsed = name.and_then(|name| Segment::parse(name, 0));
        let is_lost = segment_lost(error).is_some() && self.swarm.victim == Some(host);
        let (Some((topic, partition, segment)), true) = (parsed, is_lost) else { return false };
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return false };
        running.tiering = None;
        let group = {
            let core = running.node.core.borrow();
            let is_it = |tag: &PartitionTag| (tag.topic.0, tag.partition) == (topic, partition);
            core.record_partitions().find(|(_, tag)| is_it(tag)).map(|(group, _)| group)
        };
        let what = Unreadable::Stored(segment.base_offset);
        group.is_none_or(|group| self.want_repair(host, shard, group, what))
    }

    /// What is missing at a start.
    pub(super) fn want_missing(&mut self, host: usize, shard: usize) {
        let Some(node) = self.hosts[host].node(shard) else { return };
        let partitions: Vec<GroupId> =
            node.core.borrow().record_partitions().map(|(group, _)| group).collect();
        for group in partitions {
            let missing = missing(&node, group, None);
            if let Some(what) = missing {
                self.want_repair(host, shard, group, what);
            }
        }
    }

    /// A trouble of a partition is done with: what else is missing of it is wanted.
    fn done_with(&mut self, host: usize, shard: usize, group: GroupId, what: Unreadable) {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return };
        let wanted = &mut running.repairs.wanted;
        if wanted.get(&group) != Some(&what) {
            return;
        }
        wanted.remove(&group);
        let next = missing(&running.node, group, Some(what));
        if let Some(next) = next {
            wanted.insert(group, next);
        }
    }

    /// To be called at each tick: begins with the next repair.
    pub(super) fn begin_repair(&mut self, host: usize, shard: usize) {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return };
        let repairs = &mut running.repairs;
        if repairs.is_busy() || repairs.wanted.is_empty() || running.tiering.is_some() {
            return;
        }
        let at = self.rng.random_range(0..repairs.wanted.len());
        let Some((&group, &what)) = repairs.wanted.iter().nth(at) else { return };
        let first_in_log = running.node.wal.first_offset(group);
        let step = running.node.core.borrow().plan_repair(group, what, false, first_in_log);
        trace!(self.now_us, self.is_traced, "node {}: {group}: {what:?} by {step:?}", host + 1);
        match step {
            RepairStep::Wait => {}
            // While records are copied no file is removed (I3), and one that is to go might have the name of a new one.
            RepairStep::Copy(plan)
                if running.node.segments.is_removing(
                    plan.tag.topic,
                    plan.tag.partition,
                    plan.base_offset,
                ) => {}
            RepairStep::None => self.done_with(host, shard, group, what),
            RepairStep::Copy(plan) => {
                let (next, mut others) = (plan.from, plan.others.clone());
                others.reverse();
                let chunks = Vec::new();
                let copying = Copying {
                    group,
                    what,
                    plan,
                    asking: None,
                    others,
                    next,
                    chunks,
                    asked: None,
                    writing: None,
                };
                repairs.copying = Some(copying);
                self.ask_next(host, shard);
            }
        }
    }

    /// Asks the next replica for all anew; if there is none it is tried again later.
    fn ask_next(&mut self, host: usize, shard: usize) {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return };
        let Some(copying) = &mut running.repairs.copying else { return };
        copying.chunks.clear();
        copying.next = copying.plan.from;
        copying.asking = copying.others.pop();
        match copying.asking {
            Some(_) => self.ask_for_repair(host, shard),
            None => running.repairs.copying = None,
        }
    }

    fn ask_for_repair(&mut self, host: usize, shard: usize) {
        let id = self.next().unsigned_abs();
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return };
        let Some(copying) = &mut running.repairs.copying else { return };
        let Some(leader) = copying.asking else { return };
        copying.asked = Some(id);
        let (group, from) = (copying.group, copying.next);
        let RepairPlan { replica, up_to, .. } = copying.plan;
        let fill = FillId::default();
        let ask = FillAsk { fill, group, replica, leader, from, up_to, bytes_max: ASK_BYTES };
        let here = self.seat(host, shard);
        let there = self.seat_of(group, leader);
        let is_sent = there.is_some_and(|there| self.send(here, there, Body::Ask { id, ask }));
        let patience_us = if is_sent { PATIENCE_US } else { 0 };
        self.plan(patience_us, host, shard, Step::RepairLate(id));
    }

    /// Whether an answer is for a repair; if so it is taken.
    pub(super) fn is_for_repair(&self, host: usize, shard: usize, id: u64) -> bool {
        let running = self.hosts[host].running(shard);
        let copying = running.and_then(|running| running.repairs.copying.as_ref());
        copying.is_some_and(|copying| copying.asked == Some(id))
    }

    /// Records for a repair have come, or have not.
    pub(super) fn repair_answered(
        &mut self,
        host: usize,
        shard: usize,
        id: u64,
        answer: FillAnswer,
    ) -> Check {
        if !self.is_for_repair(host, shard, id) {
            return Ok(());
        }
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let Some(copying) = &mut running.repairs.copying else { return Ok(()) };
        copying.asked = None;
        let up_to = copying.plan.up_to;
        let mut is_over = false;
        match answer {
            FillAnswer::Records(chunk) if chunk.end_offset > copying.next => {
                copying.next = chunk.end_offset;
                let first = BatchHeader::read(&chunk.bytes).map(|header| header.base_offset);
                is_over = first.is_none_or(|first| first >= up_to);
                if !is_over {
                    copying.chunks.push(chunk);
                }
            }
            FillAnswer::LogStart(start) if start > copying.next => copying.next = start,
            _ => {
                self.ask_next(host, shard);
                return Ok(());
            }
        }
        if !is_over && copying.next < up_to {
            self.ask_for_repair(host, shard);
            return Ok(());
        }
        let (plan, chunks) = (copying.plan.clone(), std::mem::take(&mut copying.chunks));
        let tag = plan.tag;
        let is_removing =
            running.node.segments.is_removing(tag.topic, tag.partition, plan.base_offset);
        if chunks.is_empty() || is_removing {
            running.repairs.copying = None;
            return Ok(());
        }
        copying.writing = Some(Box::pin(Rc::clone(&running.node).write_repair(plan, chunks)));
        self.plan(0, host, shard, Step::RepairWrite);
        Ok(())
    }

    /// A shard goes on writing what it has copied.
    pub(super) fn write_repair(&mut self, host: usize, shard: usize) -> Check {
        let delay_us = self.disk_us(host);
        let is_armed = self.hosts[host].shards[shard].is_armed;
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let Some(copying) = &mut running.repairs.copying else { return Ok(()) };
        let Some(task) = &mut copying.writing else { return Ok(()) };
        let Some((segments, result)) = poll_once(task) else {
            self.plan(delay_us, host, shard, Step::RepairWrite);
            return Ok(());
        };
        let (group, what, old) = (copying.group, copying.what, copying.plan.old.clone());
        running.repairs.copying = None;
        match result {
            Ok(()) => {
                let counts = running.node.core.borrow_mut().put_repaired(group, &old, &segments);
                self.report.repairs += u64::from(counts);
                if counts {
                    self.done_with(host, shard, group, what);
                }
            }
            Err(error) if is_segment_full(&error) || (is_armed && segment_io_failed(&error)) => {
                running.node.segments.note_gone(segments);
            }
            Err(error) => {
                let seat = self.seat(host, shard);
                return Err(Violation { what: format!("{seat} {group}: no repair: {error:?}") });
            }
        }
        self.absorb(host, shard)
    }

    /// At the end: what was missing is there again, and what was damaged is found by reading it, and there again (I2).
    pub(super) fn mend_all(&mut self) -> Check {
        let Some(host) = self.swarm.victim else { return Ok(()) };
        for sweep in 0..SWEEPS_MAX {
            self.until("what is damaged is copied from others", 60, |run| {
                let mut shards = run.hosts[host].shards.iter();
                shards.all(|shard| shard.running.as_ref().is_some_and(|r| r.repairs.is_at_rest()))
            })?;
            let mut found = 0;
            for group in self.groups() {
                let places = self.places(group).into_iter().filter(|(at, _)| *at == host);
                let here: Vec<(usize, usize)> = places.collect();
                for (_, shard) in here {
                    let node = self.hosts[host].node(shard).filter(|_| sweep == 0);
                    let missing = node.and_then(|node| missing(&node, group, None));
                    must!(missing.is_none(), "P14: {group}: {missing:?} is missing for ever");
                    found += u64::from(self.is_damaged(host, shard, group));
                }
            }
            if found == 0 {
                return Ok(());
            }
            // Of what the log has it is found out when segments are made.
            self.go_on(SECOND)?;
        }
        Err(Violation { what: "P14: there is always more that is damaged".into() })
    }

    fn is_damaged(&mut self, host: usize, shard: usize, group: GroupId) -> bool {
        let Some(node) = self.hosts[host].node(shard) else { return false };
        let Some(view) = node.core.borrow().partition(group) else { return false };
        let read = node.read_all(group, view.log_start_offset..view.high_watermark);
        read.is_err_and(|error| self.wants_repair(host, shard, group, &error))
    }
}

fn missing(node: &Node, group: GroupId, behind: Option<Unreadable>) -> Option<Unreadable> {
    node.core.borrow().missing(group, node.wal.first_offset(group), behind)
}
