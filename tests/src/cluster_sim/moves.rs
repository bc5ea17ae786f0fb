//! Nodes that lose their disks and come back with empty ones, partitions that move, brokers that are cordoned; and what
//! brings Raft's members to what the catalog wants, as the shell's `cluster::reconcile` and `cluster::join` have it.
//!
//! - I1: no disk is lost that could take the last copy of something committed with it: of each configuration that may be
//!   in force, or with which a group is to begin, a majority has its disks. More than that no cluster survives. But of a
//!   partition with two replicas that is settled, one may go.
//! - I2: a node that lost its disks is another one to Raft: other replica ids, and nothing of its past (P26).

use std::sync::Arc;

use bytes::Bytes;
use chronik_engine::disk_sim::SimDisk;
use chronik_engine::ids::{GroupId, NodeId, ReplicaId};
use chronik_engine::wal::record::GroupMeta;
use chronik_replication::wire::Seat;
use chronik_shards::catalog::{
    Broker, Catalog, CatalogCommand, ClusterId, Incarnation, Partition, PartitionMove, Placement,
    TopicRef,
};
use chronik_shards::core::reconcile::{FirstVoter, Reconciled, Wanted};
use rand::Rng;
use rand::seq::SliceRandom;
use uuid::Uuid;

use super::event::Pending;
use super::host::HostState;
use super::net::Body;
use super::run::Run;
use super::{Bug, Check, Violation};

/// Replicas that a partition is moved to.
const REPLICAS_MIN: usize = 2;
const REPLICAS_MAX: usize = 4;
/// Ticks between two looks at the members of groups.
const RECONCILE_TICKS: u64 = 4;

impl Run {
    /// The catalog's replica that a node begins with.
    pub(super) fn meta_of(&self, host: usize) -> GroupMeta {
        let here = &self.hosts[host];
        let replica = here.meta_replica;
        let learners = if here.joins { vec![replica] } else { Vec::new() };
        let voters = self.first_voters.iter().map(|first| first.replica).collect();
        GroupMeta { replica, voters, learners, ..GroupMeta::default() }
    }

    /// What a node says of itself.
    pub(super) fn registration(&mut self, host: usize) -> CatalogCommand {
        let here = &self.hosts[host];
        let broker = Broker {
            node: here.id,
            host: "sim".into(),
            port: 9092,
            rack: None,
            shards: self.swarm.shards,
            incarnation: here.incarnation,
            meta_replica: here.meta_replica,
            raft_addr: String::new(),
            is_cordoned: false,
            is_read_only: here.is_read_only,
        };
        let cluster_id = ClusterId(Uuid::from_u128(1));
        let replica_seed = self.rng.random();
        CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, replaces: None }
    }

    /// Whether a catalog knows the disks that a node has.
    pub(super) fn is_in_catalog(&self, host: usize, catalog: &Catalog) -> bool {
        let here = &self.hosts[host];
        let known = catalog.broker(here.id);
        known.is_some_and(|broker| broker.incarnation == here.incarnation)
    }

    /// A node that joins asks whoever leads to enter it into the catalog.
    pub(super) fn ask_to_join(&mut self, host: usize) -> Check {
        let Some(node) = self.hosts[host].node(0) else { return Ok(()) };
        let catalog = node.core.borrow().catalog();
        let is_known = catalog.is_some_and(|catalog| self.is_in_catalog(host, &catalog));
        if !self.hosts[host].joins || is_known {
            return Ok(());
        }
        let payload = self.registration(host).encode();
        let payload = Bytes::from(payload.map_err(|e| Violation { what: format!("{e}") })?);
        let here = self.seat(host, 0);
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            let there = self.seat(other, 0);
            self.send(here, there, Body::Join { payload: payload.clone() });
        }
        Ok(())
    }

    /// A node asks to be entered into the catalog.
    pub(super) fn take_join(&mut self, here: Seat, payload: &[u8]) -> Check {
        let (host, shard) = self.place(here);
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let mut command = CatalogCommand::decode(payload)
            .map_err(|error| Violation { what: format!("a request to join: {error}") })?;
        let CatalogCommand::RegisterBroker { broker, replaces, .. } = &mut command else {
            return Ok(());
        };
        let catalog = node.core.borrow().catalog();
        let known = catalog.as_ref().and_then(|catalog| catalog.broker(broker.node));
        *replaces = known.map(|known| known.incarnation);
        let is_known = known.is_some_and(|known| {
            (known.incarnation, known.meta_replica) == (broker.incarnation, broker.meta_replica)
        });
        let leads = node.core.borrow().partition(GroupId::META).is_some_and(|view| view.is_leader);
        if leads && !is_known {
            let token = self.token();
            let proposed = node.core.borrow_mut().propose_command(&command, token);
            if proposed.is_ok() {
                self.expect(host, token, Pending::Nobody);
            }
        }
        self.absorb(host, shard)
    }

    /// A node loses all its disks, if the cluster can bear that (I1).
    pub(super) fn wipe(&mut self, host: usize) -> Check {
        if !self.may_lose(host) || self.hosts[host].state != HostState::Up {
            return Ok(());
        }
        trace!(self, "node {} loses its disks", host + 1);
        self.report.wipes += 1;
        self.crash(host)?;
        let left_alone = self.oracle.left_alone();
        for shard in 0..self.hosts[host].shards.len() {
            let seat = self.seat(host, shard);
            self.oracle.lost(seat);
            self.in_flight[host][shard].clear();
            let disk = SimDisk::new(self.rng.random());
            disk.set_pending_polls_max(self.rng.random_range(0..3));
            self.hosts[host].shards[shard].disk = disk;
        }
        self.report.left_alone += self.oracle.left_alone().saturating_sub(left_alone);
        let (incarnation, replica) = (self.rng.random(), self.rng.random_range(1..u64::MAX));
        let seat = self.seat(host, 0);
        let here = &mut self.hosts[host];
        here.incarnation = Incarnation(Uuid::from_u128(incarnation));
        here.joins = true;
        if self.bug != Some(Bug::SameReplicaIds) {
            here.meta_replica = ReplicaId(replica);
            self.seats.insert((GroupId::META, ReplicaId(replica)), seat);
            self.note_meta_replica(host);
        }
        Ok(())
    }

    fn may_lose(&self, host: usize) -> bool {
        let is_open = |group: GroupId| {
            self.partitions.get(&group).is_none_or(|partition| !partition.is_deleted)
        };
        if self.swarm.victim.is_some_and(|victim| victim != host) {
            return false; // (I1) of `repairs`
        }
        let here = self.hosts[host].id;
        // Nobody knows yet what is to become of those that are lost already, or of replicas that are not made.
        if !(0..self.hosts.len()).all(|other| self.is_known(other)) || self.is_awaited(here) {
            return false;
        }
        let is_pair = |group: GroupId| group != GroupId::META && self.is_settled(group);
        self.oracle.may_lose(is_open, is_pair, |group, replica| {
            self.seat_of(group, replica).is_some_and(|seat| seat.node == here)
        })
    }

    fn catalogs(&self) -> impl Iterator<Item = Arc<Catalog>> {
        let nodes = self.hosts.iter().filter_map(|host| host.node(0));
        nodes.filter_map(|node| node.core.borrow().catalog())
    }

    /// Whether some node's catalog knows the disks of this one.
    fn is_known(&self, host: usize) -> bool {
        self.catalogs().any(|catalog| self.is_in_catalog(host, &catalog))
    }

    /// Whether a partition is placed on a node of which nobody has made a replica yet.
    fn is_awaited(&self, node: NodeId) -> bool {
        self.catalogs().any(|catalog| {
            let partitions = catalog.topics().flat_map(|topic| &topic.partitions);
            let is_new = |partition: &Partition| self.oracle.config(partition.group).is_none();
            partitions.filter(|p| p.placement_on(node).is_some()).any(is_new)
        })
    }

    /// Somebody wants replicas elsewhere, or keeps a broker from getting more.
    pub(super) fn move_something(&mut self) -> Check {
        let host = self.rng.random_range(0..self.hosts.len());
        let Some(catalog) = self.hosts[host].shown.clone() else { return Ok(()) };
        if self.hosts.len() > 3 && self.rng.random_range(0..6) == 0 {
            let cordoned = catalog.brokers().find(|broker| broker.is_cordoned);
            let brokers: Vec<NodeId> = catalog.brokers().map(|broker| broker.node).collect();
            let any = brokers.get(self.rng.random_range(0..brokers.len().max(1))).copied();
            let is_cordoned = cordoned.is_none();
            let node = cordoned.map(|broker| broker.node).or(any);
            let Some(node) = node else { return Ok(()) };
            return self.submit(host, &CatalogCommand::CordonBroker { node, is_cordoned });
        }
        if self.rng.random_range(0..3) == 0 {
            return self.transfer_something();
        }
        let mut moves = Vec::new();
        for _ in 0..self.rng.random_range(1..3) {
            moves.extend(self.random_move(&catalog));
        }
        if moves.is_empty() {
            return Ok(());
        }
        self.submit(host, &CatalogCommand::MovePartitions { moves })
    }

    /// Somebody wants another replica to lead.
    fn transfer_something(&mut self) -> Check {
        let at = self.rng.random_range(0..self.partitions.len().max(1));
        let Some(group) = self.partitions.keys().nth(at).copied() else { return Ok(()) };
        let Some((host, _)) = self.look_up_leader(group) else { return Ok(()) };
        let Some(shard) = self.shard_of(group, host) else { return Ok(()) };
        let Some(node) = self.hosts[host].node(shard).filter(|_| self.hosts[host].is_there())
        else {
            return Ok(());
        };
        let members = node.core.borrow().members(group).map(|(members, _)| members.voters);
        let voters = members.unwrap_or_default();
        let to = voters.get(self.rng.random_range(0..voters.len().max(1))).copied();
        let done = to.map(|to| node.core.borrow_mut().transfer(group, to));
        self.report.transfers += u64::from(done.is_some_and(|done| done.is_ok()));
        self.absorb(host, shard)
    }

    fn random_move(&mut self, catalog: &Catalog) -> Option<PartitionMove> {
        let topics: Vec<_> = catalog.topics().collect();
        let topic = topics.get(self.rng.random_range(0..topics.len().max(1)))?;
        let partition = self.rng.random_range(0..topic.partitions.len());
        let open = catalog.open_brokers().map(|broker| broker.node);
        let mut nodes: Vec<NodeId> = open.collect();
        nodes.shuffle(&mut self.rng);
        let count = self.rng.random_range(REPLICAS_MIN..=REPLICAS_MAX);
        nodes.truncate(if self.rng.random_range(0..6) == 0 { 0 } else { count });
        if let Some(read_only) = self.swarm.read_only
            && self.rng.random_range(0..8) == 0
        {
            nodes.push(self.hosts[read_only].id); // to be refused
        }
        let replica_ids =
            nodes.iter().map(|_| ReplicaId(self.rng.random_range(1..u64::MAX))).collect();
        let partition = u32::try_from(partition).unwrap_or(0);
        let topic = TopicRef::Id(topic.id);
        Some(PartitionMove { topic, partition, nodes, replica_ids })
    }

    /// To be called at each tick.
    pub(super) fn reconcile_now_and_then(&mut self, host: usize, shard: usize) -> Check {
        if shard == 0 {
            self.hosts[host].ticks += 1;
        }
        if self.hosts[host].ticks.is_multiple_of(RECONCILE_TICKS) {
            self.reconcile(host, shard)?;
        }
        Ok(())
    }

    /// Brings the groups that a shard leads closer to what the catalog wants.
    fn reconcile(&mut self, host: usize, shard: usize) -> Check {
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        if shard == 0 {
            self.reconcile_meta(host)?;
        }
        let Some(catalog) = self.hosts[host].shown.clone() else { return Ok(()) };
        let seat = self.seat(host, shard);
        let is_here = |partition: &&Partition| {
            let placement = partition.placement_on(seat.node);
            placement.is_some_and(|placement| placement.shard == seat.shard)
        };
        let partitions = catalog.topics().flat_map(|topic| &topic.partitions).filter(is_here);
        for partition in partitions {
            let (group, mut wanted) = (partition.group, Wanted::of(partition));
            if self.bug == Some(Bug::ReaderVotes) {
                wanted.voters.append(&mut wanted.learners);
            }
            let done = {
                let mut core = node.core.borrow_mut();
                let is_led = core.partition(group).is_some_and(|view| view.is_leader);
                if !is_led || (partition.is_settled() && !core.has_other_members(group, &wanted)) {
                    continue;
                }
                core.reconcile(group, &wanted)
            };
            self.report.conf_changes += u64::from(matches!(done, Reconciled::Proposed(_)));
            trace!(self, "{seat} {group}: {done:?}");
            let is_over = done == Reconciled::Settled || self.bug == Some(Bug::SettleEarly);
            if is_over && !partition.is_settled() && self.hosts[host].settling.insert(group) {
                let replicas = wanted.voters.into_iter().collect();
                self.submit(host, &CatalogCommand::ReplicasSettled { group, replicas })?;
            }
        }
        Ok(())
    }

    fn reconcile_meta(&mut self, host: usize) -> Check {
        let Some(node) = self.hosts[host].node(0) else { return Ok(()) };
        let mut core = node.core.borrow_mut();
        let (Some(catalog), Some((members, _))) = (core.catalog(), core.members(GroupId::META))
        else {
            return Ok(());
        };
        let wanted = Wanted::of_meta(&catalog, &self.first_voters, &members);
        let done = core.reconcile(GroupId::META, &wanted);
        self.report.conf_changes += u64::from(matches!(done, Reconciled::Proposed(_)));
        Ok(())
    }

    /// Makes a node's replicas of the partitions that are placed on a shard, if the catalog is about its disks. What
    /// cannot be made yet is noted.
    pub(super) fn make_groups(&mut self, host: usize, shard: usize, catalog: &Arc<Catalog>) {
        let Some(node) = self.hosts[host].node(shard) else { return };
        if !self.is_in_catalog(host, catalog) {
            return;
        }
        let seat = self.seat(host, shard);
        let mut core = node.core.borrow_mut();
        for (group, meta) in catalog.placed_on(seat.node, seat.shard) {
            match core.replica(group) {
                Some(replica) if replica == meta.replica => {}
                Some(_) => {
                    trace!(self, "{seat} deletes {group}, to make another replica");
                    core.delete_group(group);
                    self.hosts[host].is_unmade = true;
                }
                None => {
                    trace!(self, "{seat} makes {group}: {meta:?}");
                    self.hosts[host].is_unmade |= core.try_create_group(group, meta).is_err();
                }
            }
        }
        core.set_lost(&catalog.lost_beside(seat.node, seat.shard));
    }

    /// Deletes the replicas of a shard that the catalog does not name any more.
    pub(super) fn delete_groups(&mut self, host: usize, shard: usize, catalog: &Catalog) {
        let Some(node) = self.hosts[host].node(shard) else { return };
        if !self.is_in_catalog(host, catalog) {
            return;
        }
        let seat = self.seat(host, shard);
        let is_early = self.bug == Some(Bug::DeleteEarly);
        let partitions = || catalog.topics().flat_map(|topic| &topic.partitions);
        let is_named = |group: GroupId| {
            let named = partitions().find(|partition| partition.group == group);
            let placement = named.and_then(|partition| match is_early {
                true => partition.replicas.iter().find(|p| p.node == seat.node).copied(),
                false => partition.placement_on(seat.node),
            });
            placement.is_some_and(|placement| placement.shard == seat.shard)
        };
        let mut core = node.core.borrow_mut();
        let given_out = |group: &GroupId| *group != GroupId::META && catalog.has_given_out(*group);
        let here: Vec<GroupId> = core.group_ids().filter(given_out).collect();
        for group in here.into_iter().filter(|group| !is_named(*group)) {
            trace!(self, "{seat} deletes {group}");
            core.delete_group(group);
        }
    }

    /// Whether a group has just the members that the catalog wants, and the catalog knows.
    pub(super) fn is_settled(&self, group: GroupId) -> bool {
        let Some(config) = self.oracle.config(group) else { return false };
        let Some(catalog) = self.hosts[0].shown.clone() else { return false };
        if group == GroupId::META {
            // Who is read-only has no vote, and who is cordoned none as long as somebody else may have one.
            let has_open = catalog.open_brokers().next().is_some();
            let learns = |replica: &ReplicaId| {
                let mut brokers = catalog.brokers();
                brokers.any(|one| {
                    let has_none = one.is_read_only || (has_open && one.is_cordoned);
                    has_none && one.meta_replica == *replica
                })
            };
            let all = self.hosts.iter().map(|host| host.meta_replica);
            let (learners, voters): (Vec<_>, Vec<_>) = all.partition(learns);
            return config.is_just(&voters, &learners);
        }
        let partition =
            catalog.topics().flat_map(|topic| &topic.partitions).find(|p| p.group == group);
        partition.is_some_and(|partition| {
            let ids = |placements: &[Placement]| -> Vec<ReplicaId> {
                placements.iter().map(|placement| placement.replica).collect()
            };
            let (wanted, readers) = (ids(&partition.replicas), ids(&partition.readers));
            partition.is_settled() && config.is_just(&wanted, &readers)
        })
    }

    /// The replicas of the catalog that the cluster begins with.
    pub(super) fn form(&mut self) {
        let first = |host: &super::host::Host| FirstVoter {
            node: host.id,
            incarnation: host.incarnation,
            replica: host.meta_replica,
        };
        let voting = self.hosts.iter().filter(|host| !host.is_read_only);
        self.first_voters = voting.map(first).collect();
    }
}
