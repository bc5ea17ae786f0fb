//! Records on their way from a leader to a replica that fills itself: the calls between nodes, and the writing of segments,
//! as the shell's `fill` has them. What is asked and written when, the core says.

use std::collections::{BTreeMap, VecDeque};

use bytes::BytesMut;
use chronik_engine::disk_sim::block_on;
use chronik_engine::segment::SegmentError;
use chronik_engine::wal::record::{GroupCheckpoint, WalRecord};
use chronik_replication::wire::Seat;
use chronik_shards::catalog::PartitionKind;
use chronik_shards::core::{
    FillAnswer, FillAsk, FillChunk, FillId, FillStep, FillWrite, NamedSegment,
};

use super::event::Step;
use super::net::Body;
use super::run::Run;
use super::swarm::SECOND;
use super::{Bug, Check, Violation};
use crate::must;
use crate::sim::disk::{is_segment_full, segment_io_failed, stored_io_failed};
use crate::sim::node::{Node, Task, poll_once};

/// How long a replica waits for records.
const PATIENCE_US: u64 = 5 * SECOND;
/// What a log starts late by, where that is planted.
const LATE_BY: u32 = 5;

/// What was written, and what failed if not all was.
pub(super) type Written = (Vec<NamedSegment>, Result<(), SegmentError>);

/// What a shard has under way for fills.
#[derive(Default)]
pub(super) struct Fills {
    asked: BTreeMap<u64, FillAsk>,
    to_write: VecDeque<FillWrite>,
    writing: Option<(FillWrite, Task<Written>)>,
}

impl Run {
    /// Does what a core wants done for fills.
    pub(super) fn fill(&mut self, host: usize, shard: usize, steps: Vec<FillStep>) -> Check {
        for step in steps {
            match step {
                FillStep::Ask(ask) => self.ask_records(host, shard, ask),
                FillStep::Write(write) => {
                    let Some(running) = &mut self.hosts[host].shards[shard].running else {
                        continue;
                    };
                    running.fills.to_write.push_back(write);
                    let delay_us = self.disk_us(host);
                    self.plan(delay_us, host, shard, Step::FillWrite);
                }
            }
        }
        Ok(())
    }

    fn ask_records(&mut self, host: usize, shard: usize, ask: FillAsk) {
        let id = self.next().unsigned_abs();
        if let Some(running) = &mut self.hosts[host].shards[shard].running {
            running.fills.asked.insert(id, ask);
        }
        let here = self.seat(host, shard);
        let sent = self.seat_of(ask.group, ask.leader);
        let is_sent = sent.is_some_and(|leader| self.send(here, leader, Body::Ask { id, ask }));
        let patience_us = if is_sent { PATIENCE_US } else { 0 };
        self.plan(patience_us, host, shard, Step::FillAnswered(id, FillAnswer::Failed));
    }

    /// A replica on another node wants records.
    pub(super) fn take_ask(&mut self, here: Seat, from: Seat, id: u64, ask: FillAsk) -> Check {
        let (host, shard) = self.place(here);
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        node.core.borrow_mut().fill_heard(ask.group, ask.replica, ask.from);
        let delay_us = self.disk_us(host);
        self.plan(delay_us, host, shard, Step::FillServe { asked_by: from, id, ask });
        self.absorb(host, shard)
    }

    /// They are read, and sent.
    pub(super) fn serve_records(
        &mut self,
        host: usize,
        shard: usize,
        asked_by: Seat,
        (id, ask): (u64, FillAsk),
    ) -> Check {
        let answer = self.find_records(host, shard, ask)?;
        let here = self.seat(host, shard);
        self.send(here, asked_by, Body::Records { id, answer });
        self.absorb(host, shard)
    }

    fn find_records(&mut self, host: usize, shard: usize, ask: FillAsk) -> Check<FillAnswer> {
        let FillAsk { group, from, bytes_max, .. } = ask;
        let Some(node) = self.hosts[host].node(shard) else { return Ok(FillAnswer::Failed) };
        // Small, so that it takes several.
        let bytes_max = bytes_max.min(60 << 10);
        let Some(view) = node.core.borrow().partition(group) else { return Ok(FillAnswer::Failed) };
        let is_late = self.bug == Some(Bug::FillStartsLate) && ask.fill != FillId::default();
        let log_start = view.log_start_offset.plus(if is_late { LATE_BY } else { 0 });
        if from < log_start {
            return Ok(FillAnswer::LogStart(log_start));
        }
        let end = view.high_watermark;
        let (mut bytes, mut end_offset) = (BytesMut::new(), from);
        match block_on(node.segments.read(&node.core, &node.wal, group, from..end, bytes_max)) {
            Ok(found) => {
                let bug = if ask.fill == FillId::default() { Bug::RepairGap } else { Bug::FillGap };
                let leaves_gap = self.bug == Some(bug) && found.len() > 1;
                for batch in found.into_iter().skip(usize::from(leaves_gap)) {
                    bytes.extend_from_slice(&batch.bytes);
                    end_offset = batch.end_offset;
                }
            }
            // A file that is gone is no error of a disk that will have some.
            Err(error) if self.wants_repair(host, shard, group, &error) => {
                return Ok(FillAnswer::Failed);
            }
            Err(error) if stored_io_failed(&error) && self.hosts[host].shards[shard].is_armed => {
                return Ok(FillAnswer::Failed);
            }
            Err(error) => return Err(Violation { what: format!("P1: {group}: {error:?}") }),
        }
        if bytes.is_empty() || end_offset <= from {
            return Ok(FillAnswer::Failed);
        }
        self.report.fill_answers += 1;
        Ok(FillAnswer::Records(FillChunk { end_offset, bytes: bytes.freeze() }))
    }

    /// What a replica has taken as a snapshot is in segments, all of it from where it says that its log starts.
    pub(super) fn check_installed(
        &self,
        seat: Seat,
        node: &Node,
        persisted: &[WalRecord],
    ) -> Check {
        let core = node.core.borrow();
        for record in persisted {
            let WalRecord::Checkpoint(GroupCheckpoint { group, applied_end_offset, .. }) = record
            else {
                continue;
            };
            let tag = core.tag(*group).filter(|tag| tag.kind == PartitionKind::Records);
            let gaps = tag.map(|_| core.gaps(*group, *applied_end_offset)).unwrap_or_default();
            must!(
                gaps.is_empty(),
                "P12: {seat} {group}: taken with a snapshot, and not there: {gaps:?}"
            );
        }
        Ok(())
    }

    /// Records have come, or have not.
    pub(super) fn fill_answered(
        &mut self,
        host: usize,
        shard: usize,
        id: u64,
        answer: FillAnswer,
    ) -> Check {
        if self.is_for_repair(host, shard, id) {
            return self.repair_answered(host, shard, id, answer);
        }
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let Some(ask) = running.fills.asked.remove(&id) else { return Ok(()) };
        let node = std::rc::Rc::clone(&running.node);
        node.core.borrow_mut().fill_answered(ask.group, ask.fill, ask.from, answer);
        self.absorb(host, shard)
    }

    /// A shard goes on writing what it has copied.
    pub(super) fn write_filled(&mut self, host: usize, shard: usize) -> Check {
        let delay_us = self.disk_us(host);
        let is_armed = self.hosts[host].shards[shard].is_armed;
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let node = std::rc::Rc::clone(&running.node);
        let fills = &mut running.fills;
        if fills.writing.is_none() {
            let Some(write) = fills.to_write.pop_front() else { return Ok(()) };
            let task: Task<Written> = Box::pin(std::rc::Rc::clone(&node).write_fill(write.clone()));
            fills.writing = Some((write, task));
        }
        let Some((write, task)) = &mut fills.writing else { return Ok(()) };
        let Some((segments, result)) = poll_once(task) else {
            self.plan(delay_us, host, shard, Step::FillWrite);
            return Ok(());
        };
        let (group, fill) = (write.group, write.fill);
        fills.writing = None;
        let has_more = !fills.to_write.is_empty();
        match &result {
            Err(error) if is_segment_full(error) || (is_armed && segment_io_failed(error)) => {}
            Err(error) => {
                let seat = self.seat(host, shard);
                return Err(Violation { what: format!("{seat} {group}: no fill: {error:?}") });
            }
            Ok(()) => {}
        }
        self.report.fill_segments += segments.len() as u64;
        node.core.borrow_mut().fill_written(group, fill, segments, result.is_ok());
        if has_more {
            self.plan(delay_us, host, shard, Step::FillWrite);
        }
        self.absorb(host, shard)
    }
}
