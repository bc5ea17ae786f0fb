//! The end of a run: everything heals, and the cluster must come to rest: every node up, every group led, every batch
//! acknowledged, every replica alike. Then all that there is is read and compared, on every node.

use std::collections::BTreeSet;

use chronik_engine::ids::GroupId;
use chronik_shards::catalog::{Partition, PartitionKind};

use super::event::Event;
use super::host::HostState;
use super::run::Run;
use super::swarm::{MS, SECOND};
use super::{Check, Violation};
use crate::must;

/// How long each step to rest may take.
const PATIENCE_S: u64 = 60;

impl Run {
    /// See the module's page. All is calm by now.
    pub(super) fn finish(&mut self) -> Check {
        self.until("all nodes run", PATIENCE_S, |run| {
            run.hosts.iter().all(|host| host.state == HostState::Up && host.is_registered)
        })?;
        self.until("every group has the members that are wanted", 2 * PATIENCE_S, |run| {
            run.groups().into_iter().all(|group| run.is_settled(group))
        })?;
        self.until("all nodes have done what the catalog says", PATIENCE_S, |run| {
            (0..run.hosts.len()).all(|host| run.is_published(host))
        })?;
        self.until("every group has a leader", PATIENCE_S, |run| {
            run.groups().into_iter().all(|group| run.is_led(group))
        })?;
        self.until("every batch is acknowledged", PATIENCE_S, |run| {
            let open = run.partitions.values().filter(|partition| !partition.is_deleted);
            open.flat_map(|partition| &partition.producers).all(|p| p.sim.pending.is_empty())
        })?;
        let since_us = self.now_us;
        self.until("every member is in its group, and commits", PATIENCE_S, |run| {
            run.are_members_settled(since_us)
        })?;
        self.is_over = true;
        self.until("everybody is answered", PATIENCE_S, |run| {
            let shards = run.hosts.iter().flat_map(|host| &host.shards);
            let mut running = shards.filter_map(|shard| shard.running.as_ref());
            running.all(|running| running.tokens.is_empty())
        })?;
        self.until("all replicas are alike", PATIENCE_S, |run| {
            run.groups().into_iter().all(|group| run.is_alike(group))
        })?;
        self.mend_all()?;
        self.verify()?;
        self.end_promises()
    }

    /// Ends all trouble.
    pub(super) fn calm(&mut self) -> Check {
        self.is_calm = true;
        self.swarm.calm();
        self.net.heal();
        for host in 0..self.hosts.len() {
            self.hosts[host].slowness = 1;
            self.hosts[host].hangs = false;
            self.trouble(host);
            self.resume(host)?;
            let mut has_stopped = false;
            for shard in &self.hosts[host].shards {
                has_stopped |= shard.disk.has_stopped();
                shard.disk.set_capacity(None);
                shard.disk.clear_faults();
                if !shard.disk.has_stopped() {
                    shard.disk.crash_at_op(u64::MAX);
                }
            }
            if has_stopped {
                self.crash(host)?;
            }
        }
        Ok(())
    }

    /// While all is calm: clients go on with what they have begun.
    pub(super) fn settle_clients(&mut self) -> Check {
        if self.is_over {
            return Ok(());
        }
        self.after(50 * MS, Event::Action);
        self.produce_open();
        self.settle_members();
        self.read_at_replica()?;
        self.read()
    }

    /// The groups that there are.
    pub(super) fn groups(&self) -> Vec<GroupId> {
        let open = self.partitions.iter().filter(|(_, partition)| !partition.is_deleted);
        [GroupId::META].into_iter().chain(open.map(|(group, _)| *group)).collect()
    }

    /// The replicas of a group as numbers of nodes and shards.
    pub(super) fn places(&self, group: GroupId) -> Vec<(usize, usize)> {
        match self.partitions.get(&group) {
            Some(partition) => partition.places.iter().map(|seat| self.place(*seat)).collect(),
            None => (0..self.hosts.len()).map(|host| (host, 0)).collect(),
        }
    }

    fn is_published(&self, host: usize) -> bool {
        let catalog = |host: usize| self.hosts[host].node(0)?.core.borrow().catalog();
        let here = &self.hosts[host];
        if here.publishing.is_some() || here.newest.is_some() || catalog(host) != catalog(0) {
            return false;
        }
        let Some(catalog) = catalog(host) else { return false };
        (0..here.shards.len()).all(|shard| {
            let seat = self.seat(host, shard);
            let placed = catalog.placed_on(seat.node, seat.shard).map(|(group, _)| group);
            let meta = (shard == 0).then_some(GroupId::META);
            let placed: BTreeSet<GroupId> = placed.chain(meta).collect();
            let there = here.node(shard).map(|node| node.core.borrow().group_ids().collect());
            there == Some(placed)
        })
    }

    fn is_led(&self, group: GroupId) -> bool {
        let mut leaders = 0;
        let settled = self.places(group).into_iter().all(|(host, shard)| {
            let node = self.hosts[host].node(shard);
            let view = node.and_then(|node| node.core.borrow().partition(group));
            leaders += usize::from(view.is_some_and(|view| view.is_ready));
            view.is_some_and(|view| view.is_settled)
        });
        settled && leaders == 1
    }

    fn is_alike(&self, group: GroupId) -> bool {
        let mut seen = BTreeSet::new();
        self.places(group).into_iter().all(|(host, shard)| {
            let Some(node) = self.hosts[host].node(shard) else { return false };
            let core = node.core.borrow();
            let Some(view) = core.partition(group) else { return false };
            let held = self.oracle.replica_at(self.seat(host, shard), group);
            let held = held.map_or(0, |replica| replica.entries.len());
            // The catalog shows no offset that tells how far it is.
            let has_records = self
                .partitions
                .get(&group)
                .is_some_and(|partition| partition.kind == PartitionKind::Records);
            let is_applied =
                has_records || core.checkpoint(group).is_some_and(|c| c.applied.0 == held as u64);
            seen.insert((view.high_watermark, view.end_offset, held));
            is_applied && view.high_watermark == view.end_offset && seen.len() == 1
        })
    }

    /// Everything that there is, read on every node and compared.
    fn verify(&mut self) -> Check {
        for group in self.groups() {
            self.oracle.converged(group)?;
            for (host, shard) in self.places(group) {
                self.verify_replica(group, host, shard)?;
            }
        }
        for host in 0..self.hosts.len() {
            for shard in 0..self.hosts[host].shards.len() {
                self.compare_states(host, shard)?;
            }
        }
        for (group, partition) in &self.partitions {
            let committed = self.oracle.committed_batches(*group);
            let lost = partition.leader_acked.iter().filter(|crc| !committed.contains(crc));
            self.report.lost_leader_acks += lost.count() as u64;
        }
        for (name, topic) in &self.topics {
            let found = self.oracle.catalog().and_then(|catalog| catalog.topic(name));
            let must_be = topic.is_acked && !topic.is_deletion_asked;
            let is_there = found.is_some_and(|found| found.id == topic.id);
            must!(!must_be || is_there, "P1: topic {name} is gone");
        }
        Ok(())
    }

    fn verify_replica(&mut self, group: GroupId, host: usize, shard: usize) -> Check {
        let seat = self.seat(host, shard);
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let Some(view) = node.core.borrow().partition(group) else { return Ok(()) };
        if view.is_ready && self.partitions.contains_key(&group) {
            self.check_epochs(host, shard, group)?;
        }
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        let (begin, end) = (view.log_start_offset, view.high_watermark);
        let batches = node.read_all(group, begin..end);
        let batches =
            batches.map_err(|e| Violation { what: format!("P1: {seat} {group}: {e:?}") })?;
        partition
            .oracle
            .read_whole(begin, end, &batches)
            .map_err(|v| Violation { what: format!("{seat} {group}: {}", v.what) })
    }

    /// What the cluster looks like, for a violation of liveness.
    pub(super) fn outlook(&self) -> String {
        let mut lines = format!(" (at {} s)", self.now_us / SECOND);
        for (host, here) in self.hosts.iter().enumerate() {
            lines +=
                &format!("\n  {} {:?}, registered {}", here.id, here.state, here.is_registered);
            for shard in 0..here.shards.len() {
                let Some(running) = here.running(shard) else { continue };
                let core = running.node.core.borrow();
                lines += &format!(
                    "\n    shard {shard}: full {}, work {}, tokens {:?}, repairs: {}",
                    core.storage_full(),
                    core.has_work(),
                    running.tokens.keys(),
                    running.repairs.told()
                );
                for group in core.group_ids() {
                    let held = self.oracle.replica_at(self.seat(host, shard), group);
                    let held = held.map_or(0, |replica| replica.entries.len());
                    let (replica, view) = (core.replica(group), core.partition(group));
                    lines += &format!("\n      {group}: {held} held by {replica:?}, {view:?}");
                    if !self.is_settled(group) || !self.is_led(group) {
                        lines += &format!("\n        {:?}", core.members(group));
                    }
                }
            }
        }
        for (group, partition) in self.partitions.iter().filter(|(_, p)| !p.is_deleted) {
            let open: Vec<usize> =
                partition.producers.iter().map(|p| p.sim.pending.len()).collect();
            let config = self.oracle.config(*group);
            lines += &format!("\n  {group}: open batches {open:?}, {config:?}");
        }
        let unsettled = |partition: &&Partition| !partition.is_settled();
        let catalog = self.hosts[0].shown.clone().unwrap_or_default();
        let partitions = catalog.topics().flat_map(|topic| &topic.partitions);
        for partition in partitions.filter(unsettled) {
            lines += &format!("\n  {partition:?}");
        }
        lines
    }
}
