//! Readers: they follow leaders, and believe in the newest epoch that they know of, as Kafka's clients do.

use std::rc::Rc;

use chronik_engine::batch::leader_epoch;
use chronik_engine::disk_sim::block_on;
use chronik_engine::ids::{GroupId, Offset, Term};
use chronik_shards::core::{FetchError, ReadBarrier, ReadPlan, Token};
use chronik_shards::groups::GroupError;
use rand::Rng;

use super::event::Pending;
use super::members::Told;
use super::run::Run;
use super::{Bug, Check, Violation};
use crate::must;
use crate::sim::disk::stored_io_failed;
use crate::sim::node::Node;
use crate::sim::oracle::ReadBatch;

/// A reader that follows leaders, and believes in their epochs.
#[derive(Debug)]
pub(super) struct Reader {
    host: usize,
    epoch: i32,
    offset: Offset,
    high_watermark: Offset,
}

impl Reader {
    pub(super) fn new(host: usize) -> Reader {
        Reader { host, epoch: -1, offset: Offset(0), high_watermark: Offset(0) }
    }
}

impl Run {
    /// A reader reads on, or somewhere else.
    pub(super) fn read(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let guess = self.rng.random_range(0..self.hosts.len());
        let leader = self.look_up_leader(group).map_or(guess, |(host, _)| host);
        let count = self.partitions.get(&group).map_or(0, |p| p.readers.len());
        let at = self.rng.random_range(0..count.max(1));
        let Some(reader) = self.partitions.get(&group).map(|p| &p.readers[at]) else {
            return Ok(());
        };
        let (host, epoch, high_watermark) = (reader.host, reader.epoch, reader.high_watermark);
        let mut offset = reader.offset;
        if self.rng.random_range(0..3) == 0 {
            offset = Offset(self.rng.random_range(0..=high_watermark.0));
        }
        if self.rng.random_range(0..6) == 0 {
            return self.ask_latest(group);
        }
        let bytes_max = [1, 4_000, 200_000][self.rng.random_range(0..3)];
        let is_known = epoch >= 0 && self.hosts[host].is_there();
        let place = self.shard_of(group, host).filter(|_| is_known);
        let node = place.and_then(|shard| Some((shard, self.hosts[host].node(shard)?)));
        let Some((shard, node)) = node else {
            self.turn_reader(group, at, leader);
            return Ok(());
        };
        let planned = node.core.borrow_mut().plan_read(group, offset, bytes_max, epoch);
        let planned = match (planned, self.bug) {
            (Err(_), Some(Bug::StaleReads)) => stale_plan(&node, group, offset),
            (planned, _) => planned,
        };
        match planned {
            Ok(plan) => {
                let seat = self.seat(host, shard);
                self.oracle.serves(seat, group, Term(u64::try_from(epoch).unwrap_or(0)))?;
                must!(
                    plan.high_watermark >= high_watermark,
                    "P6: {group}: high watermark {high_watermark} went to {}",
                    plan.high_watermark
                );
                self.take_plan(group, at, (host, shard), offset, plan, bytes_max)
            }
            Err(FetchError::OffsetOutOfRange { log_start_offset, .. }) => {
                let partition = self.partitions.get_mut(&group);
                let asked = partition.as_ref().map_or(Offset(0), |p| p.log_start_asked);
                let may_be_gone = offset < log_start_offset && log_start_offset <= asked;
                must!(
                    may_be_gone,
                    "P1: {group}: {offset} is gone, the watermark was {high_watermark}"
                );
                if let Some(partition) = partition {
                    partition.readers[at].offset = log_start_offset;
                }
                Ok(())
            }
            Err(_) => {
                self.report.refused_reads += 1;
                self.turn_reader(group, at, leader);
                Ok(())
            }
        }
    }

    /// Somebody wants a log to start later.
    pub(super) fn move_log_start(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let Some((host, _)) = self.look_up_leader(group) else { return Ok(()) };
        let place = self.shard_of(group, host).filter(|_| self.hosts[host].is_there());
        let Some((shard, node)) = place.and_then(|at| Some((at, self.hosts[host].node(at)?)))
        else {
            return Ok(());
        };
        let Some(view) = node.core.borrow().partition(group) else { return Ok(()) };
        let (start, end) = (view.log_start_offset.0, view.high_watermark.0);
        let offset = Offset(self.rng.random_range(start..=end));
        let proposed = node.core.borrow_mut().propose_log_start(group, offset, None);
        if let Some(partition) = self.partitions.get_mut(&group).filter(|_| proposed.is_ok()) {
            self.report.log_starts += 1;
            partition.log_start_asked = partition.log_start_asked.max(offset);
            partition.oracle.asked_log_start(offset);
        }
        self.absorb(host, shard)
    }

    /// Somebody wants to know where a log ends (P7).
    fn ask_latest(&mut self, group: GroupId) -> Check {
        let Some((host, _)) = self.look_up_leader(group) else { return Ok(()) };
        let place = self.shard_of(group, host).filter(|_| self.hosts[host].is_there());
        let (Some(shard), Some(partition)) = (place, self.partitions.get(&group)) else {
            return Ok(());
        };
        let floor = partition.acked_to;
        self.pass_barrier((host, shard), group, Pending::Latest { group, floor })
    }

    /// Does something once it is known that no other replica leads.
    pub(super) fn pass_barrier(
        &mut self,
        (host, shard): (usize, usize),
        group: GroupId,
        pending: Pending,
    ) -> Check {
        let token = self.token();
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let mut barrier = running.node.core.borrow_mut().read_barrier(group, token);
        if self.bug == Some(Bug::SkipBarrier) {
            let view = running.node.core.borrow().partition(group);
            let is_ready = view.is_some_and(|view| view.is_ready);
            barrier = if is_ready { Ok(ReadBarrier::Passed) } else { barrier };
        }
        running.tokens.insert(token, pending);
        match barrier {
            Ok(ReadBarrier::Waits) => {}
            passed => self.passed(host, shard, token, passed.is_ok())?,
        }
        self.absorb(host, shard)
    }

    /// It is known that nobody else leads, or not.
    pub(super) fn passed(
        &mut self,
        host: usize,
        shard: usize,
        token: Token,
        may_read: bool,
    ) -> Check {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let pending = running.tokens.remove(&token);
        match pending {
            Some(Pending::Latest { group, floor }) if may_read => {
                let view = running.node.core.borrow().leader_view(group, -1);
                let Ok(view) = view else { return Ok(()) };
                let end = view.high_watermark;
                must!(
                    end >= floor,
                    "P7: {group} ends at {end}, before {floor} all was acknowledged"
                );
                self.report.latest_read += 1;
                self.check_epochs(host, shard, group)
            }
            Some(Pending::GroupFetch(request)) if may_read => {
                self.tell_offset((host, shard), &request)
            }
            Some(Pending::GroupFetch(request)) => {
                self.answer_group(&request, Told::Done(Err(GroupError::NotCoordinator)));
                Ok(())
            }
            Some(_) => Ok(()),
            None if self.bug == Some(Bug::SkipBarrier) => Ok(()),
            None => Err(Violation { what: format!("{token:?} passes twice, or is nobody's") }),
        }
    }

    fn take_plan(
        &mut self,
        group: GroupId,
        at: usize,
        place: (usize, usize),
        offset: Offset,
        plan: ReadPlan,
        bytes_max: usize,
    ) -> Check {
        let batches = self.read_planned(group, place, offset, &plan, bytes_max)?;
        let Some(batches) = batches else { return Ok(()) };
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        let read = partition.oracle.read(offset, plan.high_watermark, &batches);
        read.map_err(|v| Violation { what: format!("{group}: {}", v.what) })?;
        let reader = &mut partition.readers[at];
        reader.high_watermark = plan.high_watermark;
        if let Some(last) = batches.last() {
            reader.offset = last.end_offset();
        }
        Ok(())
    }

    /// What a fetch gets, in memory or from the disk; nothing where that fails by its own fault.
    pub(super) fn read_planned(
        &mut self,
        group: GroupId,
        (host, shard): (usize, usize),
        offset: Offset,
        plan: &ReadPlan,
        bytes_max: usize,
    ) -> Check<Option<Vec<ReadBatch>>> {
        let Some(node) = self.hosts[host].node(shard) else { return Ok(None) };
        let batches: Vec<ReadBatch> = plan.batches.iter().map(ReadBatch::from).collect();
        self.report.tail_reads += u64::from(!batches.is_empty());
        let Some(range) = plan.disk.clone() else { return Ok(Some(batches)) };
        let read = node.segments.read(&node.core, &node.wal, group, range, bytes_max);
        let batches: Vec<ReadBatch> = match block_on(read) {
            Ok(found) => found.into_iter().map(ReadBatch::from).collect(),
            Err(error) if self.wants_repair(host, shard, group, &error) => return Ok(None),
            Err(error) if self.hosts[host].shards[shard].is_armed && stored_io_failed(&error) => {
                return Ok(None);
            }
            Err(error) => {
                let seat = self.seat(host, shard);
                return Err(Violation { what: format!("P1: {seat} {group}: {error:?}") });
            }
        };
        must!(!batches.is_empty(), "P1: {offset} of {group} is not there");
        self.report.disk_reads += 1;
        Ok(Some(batches))
    }

    /// A reader turns to a node, and believes in its epoch unless it knows a newer one.
    fn turn_reader(&mut self, group: GroupId, at: usize, host: usize) {
        let shard = self.shard_of(group, host).filter(|_| self.hosts[host].is_there());
        let node = shard.and_then(|shard| self.hosts[host].node(shard));
        let view = node.and_then(|node| node.core.borrow().partition(group));
        let epoch = view.filter(|view| view.is_ready).map(|view| leader_epoch(view.leader_epoch));
        if let Some(reader) = self.partitions.get_mut(&group).map(|p| &mut p.readers[at]) {
            reader.host = host;
            reader.epoch = reader.epoch.max(epoch.unwrap_or(-1));
        }
    }
}

/// What a replica has, whether it leads or not: a planted bug.
fn stale_plan(node: &Rc<Node>, group: GroupId, offset: Offset) -> Result<ReadPlan, FetchError> {
    let view = node.core.borrow().partition(group).ok_or(FetchError::UnknownPartition)?;
    let high_watermark = view.high_watermark;
    let disk = (offset < high_watermark).then_some(offset..high_watermark);
    Ok(ReadPlan { high_watermark, disk, ..ReadPlan::default() })
}
