//! Readers that read from any replica, as consumers with a rack do (KIP-392). They stay with one for a while, and turn to
//! another when that is gone, refuses them, or by chance.
//!
//! - I1: what a replica shows lies on the disks of a majority, once and for all (P6), and is what everybody else reads (P2).
//! - I2: what a replica shows grows as long as it lives, and no replica says that what a reader has seen is not there.
//! - I3: what any leader has shown longer ago than replicas may be behind, every replica that answers shows, too: however long
//!   messages take, whoever stands still or is cut off, and whoever leads in vain.

use std::collections::{BTreeMap, VecDeque};

use chronik_engine::batch::leader_epoch;
use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_replication::wire::Seat;
use chronik_shards::core::{FetchError, ReadPlan};
use rand::Rng;

use super::run::Run;
use super::swarm::MS;
use super::{Bug, Check, Violation};
use crate::must;
use crate::sim::node::{Node, STALENESS_MAX_MS};

/// A reader that reads from any replica.
#[derive(Debug, Default)]
pub(super) struct ReplicaReader {
    /// The replica that it reads from, with its place and the life of its node.
    at: Option<(Seat, u64, ReplicaId)>,
    /// The newest that it knows of.
    epoch: i32,
    /// It has seen all before this.
    offset: Offset,
    /// What that replica showed last.
    high_watermark: Offset,
}

/// What leaders have shown of each group, and since when.
#[derive(Debug, Default)]
pub(super) struct Ages {
    shown: BTreeMap<GroupId, VecDeque<(u64, Offset)>>,
}

impl Ages {
    /// A leader shows a group up to here.
    pub(super) fn note(&mut self, group: GroupId, high_watermark: Offset, now_us: u64) {
        let shown = self.shown.entry(group).or_default();
        if shown.back().is_none_or(|(_, last)| *last < high_watermark) {
            shown.push_back((now_us, high_watermark));
        }
    }

    /// What some leader had shown by then. Nobody asks for what was before.
    fn shown_by(&mut self, group: GroupId, then_us: u64) -> Offset {
        let Some(shown) = self.shown.get_mut(&group) else { return Offset(0) };
        while shown.get(1).is_some_and(|(since_us, _)| *since_us <= then_us) {
            shown.pop_front();
        }
        shown.front().filter(|(since_us, _)| *since_us <= then_us).map_or(Offset(0), |(_, to)| *to)
    }
}

impl Run {
    /// Tells a core what time it is.
    pub(super) fn set_clock(&self, node: &Node) {
        if self.bug != Some(Bug::StaleFollowers) {
            node.core.borrow_mut().set_clock(self.now_us / MS);
        }
    }

    /// A reader reads on at its replica, or again what it has seen.
    pub(super) fn read_at_replica(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let turns = self.rng.random_range(0..12) == 0;
        let Some(partition) = self.partitions.get(&group) else { return Ok(()) };
        let reader = &partition.replica_reader;
        let (epoch, seen_to, shown) = (reader.epoch, reader.offset, reader.high_watermark);
        let asked = reader.at.filter(|_| !turns).and_then(|(seat, life, replica)| {
            let (host, shard) = self.place(seat);
            let is_same = self.hosts[host].life == life && self.hosts[host].is_there();
            let node = self.hosts[host].node(shard).filter(|_| is_same)?;
            let is_there = node.core.borrow().replica(group) == Some(replica);
            is_there.then_some((seat, (host, shard), node))
        });
        let Some((seat, place, node)) = asked else {
            self.turn_to_replica(group);
            return Ok(());
        };
        let offset = match self.rng.random_range(0..4) {
            0 => Offset(self.rng.random_range(0..=seen_to.0)),
            _ => seen_to,
        };
        let bytes_max = [1, 4_000, 200_000][self.rng.random_range(0..3)];
        self.set_clock(&node);
        let mut planned = node.core.borrow_mut().plan_replica_read(group, offset, bytes_max, epoch);
        let leads = node.core.borrow().partition(group).is_some_and(|view| view.is_leader);
        if let (Ok(plan), Some(Bug::ReadUncommitted), false) = (&mut planned, self.bug, leads) {
            let end = node.core.borrow().partition(group).map(|view| view.end_offset);
            *plan = ReadPlan { high_watermark: end.unwrap_or_default(), ..ReadPlan::default() };
            plan.disk = (offset < plan.high_watermark).then_some(offset..plan.high_watermark);
        }
        match planned {
            Ok(plan) => {
                let now = plan.high_watermark;
                self.oracle.applied(seat, group, now)?;
                must!(now >= shown, "P6: {seat} showed {group} to {shown}, now to {now}");
                let then_us = self.now_us.saturating_sub(STALENESS_MAX_MS * MS);
                let old = self.ages.shown_by(group, then_us);
                must!(
                    now >= old,
                    "R8: {seat} shows {group} to {now}; {STALENESS_MAX_MS} ms ago it was shown to {old} elsewhere"
                );
                self.report.reads_ahead += u64::from(plan.is_ahead);
                let batches = self.read_planned(group, place, offset, &plan, bytes_max)?;
                let (Some(batches), Some(partition)) = (batches, self.partitions.get_mut(&group))
                else {
                    return Ok(());
                };
                partition
                    .oracle
                    .read(offset, now, &batches)
                    .map_err(|v| Violation { what: format!("{seat} {group}: {}", v.what) })?;
                let reader = &mut partition.replica_reader;
                reader.high_watermark = now;
                reader.offset =
                    batches.last().map_or(offset, |last| last.end_offset()).max(seen_to);
                self.report.replica_reads += u64::from(!leads && !batches.is_empty());
                let is_read_only = self.hosts[place.0].is_read_only;
                self.report.read_only_reads += u64::from(is_read_only && !batches.is_empty());
                Ok(())
            }
            Err(FetchError::OffsetOutOfRange { log_start_offset, end_offset, .. }) => {
                let asked = partition.log_start_asked;
                let may_be_gone = offset < log_start_offset && log_start_offset <= asked;
                must!(
                    may_be_gone,
                    "P6: {seat} {group}: {offset}, of what was seen to {seen_to}, is not in {log_start_offset}..{end_offset}"
                );
                if let Some(partition) = self.partitions.get_mut(&group) {
                    let reader = &mut partition.replica_reader;
                    reader.offset = seen_to.max(log_start_offset);
                }
                Ok(())
            }
            Err(error) => {
                let view = node.core.borrow().partition(group);
                let is_there =
                    view.is_some_and(|view| !view.is_leader && offset < view.high_watermark);
                let is_stale = is_there && error == FetchError::NotLeader;
                self.report.reads_too_old += u64::from(is_stale);
                self.turn_to_replica(group);
                Ok(())
            }
        }
    }

    /// A reader turns to some replica, and believes in the epoch that this one knows of, or a newer one.
    fn turn_to_replica(&mut self, group: GroupId) {
        let count = self.partitions.get(&group).map_or(0, |p| p.places.len());
        let at = self.rng.random_range(0..count.max(1));
        let Some(seat) = self.partitions.get(&group).and_then(|p| p.places.get(at)).copied() else {
            return;
        };
        let (host, shard) = self.place(seat);
        let life = self.hosts[host].life;
        let node = self.hosts[host].node(shard).filter(|_| self.hosts[host].is_there());
        let view = node.as_ref().and_then(|node| node.core.borrow().partition(group));
        let replica = node.as_ref().and_then(|node| node.core.borrow().replica(group));
        let known = view.map_or(-1, |view| leader_epoch(view.leader_epoch));
        if let Some(partition) = self.partitions.get_mut(&group) {
            let reader = &mut partition.replica_reader;
            reader.at = replica.map(|replica| (seat, life, replica));
            reader.epoch = reader.epoch.max(known);
            reader.high_watermark = Offset(0);
        }
    }
}
