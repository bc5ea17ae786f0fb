//! A node that is taken out of its cluster while it is cut off, and that is heard again after that, with all that it had.
//!
//! - I1: the others drain it and remove it without it: a majority of each group is left.
//! - I2: it does not come back: the catalog does not name it, and it has no voice in the catalog's group.
//! - I3: whatever it says, restarted or not, nobody who leads a group gives that up: no term rises (P25).

use std::collections::BTreeMap;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId, Term};
use chronik_replication::{Message, MessageType};
use chronik_shards::catalog::{Catalog, CatalogCommand, PartitionMove, TopicRef};
use rand::Rng;

use super::run::Run;
use super::swarm::SECOND;
use super::{Bug, Check};
use crate::must;

/// Of fewer nodes that vote none is removed: partitions have three replicas.
const NODES_MIN: usize = 4;
/// How long the others may take for each step.
const PATIENCE_S: u64 = 60;
/// How often a command is given again.
const AGAIN_US: u64 = 5 * SECOND;
/// For how long it is heard: several election timeouts.
const HEARD_US: u64 = 15 * SECOND;

/// What Raft says with votes that do not wait for a leader to be lost.
const AS_IF_TOLD: &[u8] = b"CampaignTransfer";

impl Run {
    /// To be called when all is at rest and nobody does anything; see the module's page.
    pub(super) fn remove_a_node(&mut self) -> Check {
        let voting = (0..self.hosts.len()).filter(|host| !self.hosts[*host].is_read_only);
        let voting: Vec<usize> = voting.collect();
        if !self.swarm.has_removal || voting.len() < NODES_MIN {
            return Ok(());
        }
        // The others must be able to go on, or nothing can be moved.
        let groups = self.groups();
        let is_spared =
            |host: &usize| groups.iter().all(|group| self.able_without(&[*host], *group).is_some());
        let spared: Vec<usize> = voting.into_iter().filter(is_spared).collect();
        let at = self.rng.random_range(0..spared.len().max(1));
        let Some(gone) = spared.get(at).copied() else { return Ok(()) };
        self.removed = Some(gone);
        trace!(self, "node {} is removed", gone + 1);
        self.cut_off(gone);
        self.drain(gone)?;
        let node = self.hosts[gone].id;
        self.until_done("it is removed", |_, catalog| {
            let is_there = catalog.broker(node).is_some();
            is_there.then_some(CatalogCommand::UnregisterBroker { node }).into_iter().collect()
        })?;
        self.until("every group is led without it", PATIENCE_S, |run| {
            run.terms_without(gone).len() == run.groups().len()
        })?;
        let before = self.terms_without(gone);
        self.net.heal();
        self.trouble(gone);
        self.fails(gone);
        if self.rng.random() {
            self.crash(gone)?;
        }
        self.go_on(HEARD_US)?;
        let now = self.terms_without(gone);
        must!(
            now == before,
            "P25: node {} was removed; groups were led in {before:?}, are in {now:?}",
            gone + 1
        );
        let is_named =
            self.catalog_without(gone).is_none_or(|catalog| catalog.broker(node).is_some());
        let meta = self.hosts[gone].meta_replica;
        let config = self.oracle.config(GroupId::META).unwrap_or_default();
        must!(
            !is_named && !config.has(meta),
            "P25: node {} was removed, and is back: {config:?}",
            gone + 1
        );
        self.report.removals += 1;
        Ok(())
    }

    fn cut_off(&mut self, host: usize) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            self.net.cut(host, other);
            self.net.cut(other, host);
        }
        self.trouble(host);
        self.fails(host);
    }

    /// The catalog of who leads it among the others.
    fn catalog_without(&self, gone: usize) -> Option<Arc<Catalog>> {
        let host = self.meta_leader_without(gone)?;
        self.hosts[host].node(0)?.core.borrow().catalog()
    }

    fn meta_leader_without(&self, gone: usize) -> Option<usize> {
        let leads = |host: &usize| {
            let node = self.hosts[*host].node(0).filter(|_| *host != gone);
            let view = node.and_then(|node| node.core.borrow().partition(GroupId::META));
            view.is_some_and(|view| view.is_ready)
        };
        (0..self.hosts.len()).find(leads)
    }

    /// Gives the commands that are still wanted, now and then, until none is.
    fn until_done(
        &mut self,
        what: &str,
        wanted: impl Fn(&mut Run, &Catalog) -> Vec<CatalogCommand>,
    ) -> Check {
        let end_us = self.now_us + 2 * PATIENCE_S * SECOND;
        loop {
            let leader = self.meta_leader_without(self.removed.unwrap_or(usize::MAX));
            let node = leader.and_then(|host| self.hosts[host].node(0));
            let catalog = node.and_then(|node| node.core.borrow().catalog());
            if let Some((host, catalog)) = leader.zip(catalog) {
                let commands = wanted(self, &catalog);
                if commands.is_empty() {
                    return Ok(());
                }
                for command in commands {
                    self.submit(host, &command)?;
                }
            }
            must!(
                self.now_us < end_us,
                "P25: {what}: not within {} s{}",
                2 * PATIENCE_S,
                self.outlook()
            );
            self.go_on(AGAIN_US)?;
        }
    }

    /// It is cordoned, and everything is moved away from it (I1).
    fn drain(&mut self, gone: usize) -> Check {
        let node = self.hosts[gone].id;
        self.until_done("it is cordoned", |_, catalog| {
            let is_open = catalog.broker(node).is_some_and(|broker| !broker.is_cordoned);
            let cordon = CatalogCommand::CordonBroker { node, is_cordoned: true };
            is_open.then_some(cordon).into_iter().collect()
        })?;
        self.until_done("it has nothing to replicate", |run, catalog| {
            let moves = run.moves_from(catalog, node);
            let command = (!moves.is_empty()).then_some(CatalogCommand::MovePartitions { moves });
            command.into_iter().collect()
        })?;
        let meta = self.hosts[gone].meta_replica;
        self.until("it is drained", 2 * PATIENCE_S, |run| {
            let Some(catalog) = run.catalog_without(gone) else { return false };
            let mut partitions = catalog.topics().flat_map(|topic| &topic.partitions);
            let config = run.oracle.config(GroupId::META).unwrap_or_default();
            partitions.all(|partition| partition.placement_on(node).is_none())
                && !config.voters.contains(&meta)
                && config.outgoing.is_empty()
        })
    }

    fn moves_from(&mut self, catalog: &Catalog, gone: NodeId) -> Vec<PartitionMove> {
        let open: Vec<NodeId> = catalog.open_brokers().map(|broker| broker.node).collect();
        let mut moves = Vec::new();
        for topic in catalog.topics() {
            for (number, partition) in topic.partitions.iter().enumerate() {
                let have: Vec<NodeId> = partition.replicas.iter().map(|one| one.node).collect();
                if !have.contains(&gone) {
                    continue;
                }
                let mut nodes: Vec<NodeId> =
                    have.iter().copied().filter(|node| *node != gone).collect();
                let more = open.iter().copied().find(|node| !have.contains(node) && *node != gone);
                nodes.extend(more);
                let ids = nodes.iter().map(|_| ReplicaId(self.rng.random_range(1..u64::MAX)));
                let replica_ids = ids.collect();
                let partition = u32::try_from(number).unwrap_or(0);
                let topic = TopicRef::Id(topic.id);
                moves.push(PartitionMove { topic, partition, nodes, replica_ids });
            }
        }
        moves
    }

    /// In which term each group is led by one of the others.
    fn terms_without(&self, gone: usize) -> BTreeMap<GroupId, Term> {
        let mut terms = BTreeMap::new();
        let others = self.hosts.iter().enumerate().filter(|(host, _)| *host != gone);
        let shards = others.flat_map(|(_, host)| &host.shards);
        for running in shards.filter_map(|shard| shard.running.as_ref()) {
            let core = running.node.core.borrow();
            let views = core.group_ids().filter_map(|id| Some((id, core.partition(id)?)));
            let led = views.filter(|(_, view)| view.is_ready);
            terms.extend(led.map(|(id, view)| (id, view.leader_epoch)));
        }
        terms
    }

    /// What a planted bug makes of a question of a node that was removed.
    pub(super) fn spoil_removed(&self, host: usize, raft: &mut Message) {
        let asks = raft.get_msg_type() == MessageType::MsgRequestPreVote;
        if self.bug == Some(Bug::RemovedCampaigns) && self.removed == Some(host) && asks {
            raft.set_msg_type(MessageType::MsgRequestVote);
            raft.context = AS_IF_TOLD.into();
        }
    }
}
