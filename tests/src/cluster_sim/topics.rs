//! Commands of the catalog, given on any node and proposed by the one that leads it, and what a new catalog makes a node
//! do: as the shell's `cluster::forward` and `publisher` have it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_replication::wire::Seat;
use chronik_shards::catalog::{
    self, Catalog, CatalogCommand, CatalogError, CommandId, CommandOutcome, NewPartition, NewTopic,
    PartitionKind, Placement, TopicId, TopicRef,
};
use chronik_shards::core::{Ack, ProduceError, ProduceResult};
use chronik_shards::groups::OFFSETS_TOPIC;
use rand::Rng;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::clients::Producer;
use super::event::{HostStep, Pending};
use super::net::Body;
use super::readers::Reader;
use super::replica_readers::ReplicaReader;
use super::run::Run;
use super::swarm::{MS, SECOND};
use super::{Check, Violation};
use crate::must;
use crate::sim::oracle::PartitionOracle;

/// Topics at a time.
const TOPICS_MAX: usize = 3;
/// Replicas of a partition.
const REPLICAS: usize = 3;
/// How long a node waits for another one to have a command committed.
const CALL_TIMEOUT_US: u64 = 4 * SECOND;

/// A partition and those who use it.
#[derive(Debug)]
pub(super) struct Partition {
    pub oracle: PartitionOracle,
    pub producers: Vec<Producer>,
    pub readers: Vec<Reader>,
    pub replica_reader: ReplicaReader,
    /// So many replicas are to have what is acknowledged, if there are as many.
    pub in_sync_min: u32,
    /// What its log drives.
    pub kind: PartitionKind,
    /// Where its replicas are.
    pub places: Vec<Seat>,
    /// Some catalog names it no more.
    pub is_deleted: bool,
    /// All before this is acknowledged, and when that was said last.
    pub acked_to: Offset,
    pub acked_us: u64,
    /// Nobody wanted its log to start behind this.
    pub log_start_asked: Offset,
    /// What was acknowledged before a batch was sent.
    pub floors: BTreeMap<i64, Offset>,
    /// Checksums of batches that a leader has acknowledged.
    pub leader_acked: Vec<u32>,
    pub last_answer_us: u64,
}

/// A topic that somebody wanted.
#[derive(Debug)]
pub(super) struct Topic {
    pub id: TopicId,
    pub is_acked: bool,
    pub is_deletion_asked: bool,
}

impl Run {
    /// Gives a command on a node; what comes of it, if that is known, comes to [`Run::command_done`].
    pub(super) fn submit(&mut self, host: usize, command: &CatalogCommand) -> Check {
        let Some(node) = self.hosts[host].node(0).filter(|_| self.hosts[host].is_there()) else {
            return Ok(());
        };
        let view = node.core.borrow().partition(GroupId::META);
        let token = self.token();
        let pending = Pending::Command(command.clone());
        if view.is_some_and(|view| view.is_leader) {
            let proposed = node.core.borrow_mut().propose_command(command, token);
            match proposed {
                Ok(()) => self.expect(host, token, pending),
                Err(error) => self.command_done(host, command, Err(error))?,
            }
            return self.absorb(host, 0);
        }
        let leader = view.and_then(|view| view.leader);
        let leader = leader.and_then(|replica| self.seat_of(GroupId::META, replica));
        let Some(leader) = leader else {
            return self.command_done(host, command, Err(ProduceError::NotLeader));
        };
        let id = CommandId(Uuid::from_u128(self.rng.random()));
        let payload = command.encode_named(Some(id));
        let payload = payload.map_err(|error| Violation { what: format!("{error}") })?;
        self.expect(host, token, pending);
        let awaited = node.core.borrow_mut().await_command(id, token);
        must!(awaited.is_ok(), "nobody waits, but {awaited:?}");
        self.hosts[host].calls.insert(id);
        let here = self.seat(host, 0);
        if self.send(here, leader, Body::Call { id, payload: Bytes::from(payload) }) {
            self.plan_on_host(CALL_TIMEOUT_US, host, HostStep::CallTimeout(id));
            return Ok(());
        }
        self.call_timeout(host, id)
    }

    pub(super) fn expect(
        &mut self,
        host: usize,
        token: chronik_shards::core::Token,
        pending: Pending,
    ) {
        if let Some(running) = &mut self.hosts[host].shards[0].running {
            running.tokens.insert(token, pending);
        }
    }

    /// Another node wants a command proposed.
    pub(super) fn take_call(
        &mut self,
        here: Seat,
        asked_by: Seat,
        id: CommandId,
        payload: &[u8],
    ) -> Check {
        let (host, shard) = self.place(here);
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let token = self.token();
        let proposed = node.core.borrow_mut().propose_forwarded(payload, token);
        match proposed {
            Ok(()) => self.expect(host, token, Pending::Forwarded { id, asked_by }),
            Err(None) => return Err(Violation { what: "a command that is none".into() }),
            Err(Some(_)) => self.forwarded_done(host, id, asked_by, false),
        }
        self.absorb(host, shard)
    }

    pub(super) fn forwarded_done(
        &mut self,
        host: usize,
        id: CommandId,
        asked_by: Seat,
        is_done: bool,
    ) {
        let here = self.seat(host, 0);
        self.send(here, asked_by, Body::Reply { id, is_done });
    }

    /// The other node has proposed the command, or has not.
    pub(super) fn take_reply(&mut self, host: usize, id: CommandId, is_done: bool) -> Check {
        if !self.hosts[host].calls.remove(&id) {
            return Ok(());
        }
        if is_done {
            self.report.forwarded += 1;
            return Ok(()); // the log brings it
        }
        self.forget_call(host, id)
    }

    pub(super) fn call_timeout(&mut self, host: usize, id: CommandId) -> Check {
        if !self.hosts[host].calls.remove(&id) {
            return Ok(());
        }
        self.report.commands_unknown += 1;
        self.forget_call(host, id)
    }

    fn forget_call(&mut self, host: usize, id: CommandId) -> Check {
        let Some(node) = self.hosts[host].node(0) else { return Ok(()) };
        node.core.borrow_mut().forget_command(id, ProduceError::NotLeader);
        self.absorb(host, 0)
    }

    /// A node enters itself into the catalog: until then it knows no catalog that is new enough.
    pub(super) fn register(&mut self, host: usize) -> Check {
        if self.hosts[host].is_registered {
            return Ok(());
        }
        self.plan_on_host(300 * MS, host, HostStep::Register);
        self.ask_to_join(host)?;
        if self.hosts[host].is_registering {
            return Ok(());
        }
        self.hosts[host].is_registering = true;
        let command = self.registration(host);
        self.submit(host, &command)
    }

    /// Somebody wants the catalog changed, on any node.
    pub(super) fn command(&mut self) -> Check {
        match self.rng.random_range(0..12) {
            0..4 => self.create_topic(),
            4 => self.delete_topic(),
            5 => self.move_log_start(),
            6..9 if self.swarm.moves => self.move_something(),
            9..11 => self.change_durability(),
            _ => {
                let count = self.rng.random_range(1..100);
                let host = self.rng.random_range(0..self.hosts.len());
                self.submit(host, &CatalogCommand::AllocateProducerIds { count })
            }
        }
    }

    pub(super) fn create_topic(&mut self) -> Check {
        let open = self.topics.values().filter(|topic| !topic.is_deletion_asked).count();
        if open >= TOPICS_MAX {
            return Ok(());
        }
        let name = format!("topic-{}", self.next());
        self.create(name)
    }

    /// The topic of the consumer groups' offsets, unless it is there.
    pub(super) fn create_offsets_topic(&mut self) -> Check {
        self.create(OFFSETS_TOPIC.to_owned())
    }

    fn create(&mut self, name: String) -> Check {
        let internal = name == OFFSETS_TOPIC;
        let id = TopicId(Uuid::from_u128(self.rng.random()));
        let partitions = self.rng.random_range(1..3);
        let partition = |rng: &mut StdRng| NewPartition {
            replicas: (0..REPLICAS).map(|_| ReplicaId(rng.random_range(1..u64::MAX))).collect(),
            nodes: Vec::new(),
        };
        let relaxed = !internal && self.rng.random_range(0_u32..10) < 6;
        let durability = relaxed.then(|| ("durability".to_owned(), "relaxed".to_owned()));
        let topic = NewTopic {
            name: name.clone(),
            id,
            internal,
            partitions: (0..partitions).map(|_| partition(&mut self.rng)).collect(),
            configs: durability.into_iter().collect(),
        };
        if !internal {
            self.topics.insert(name, Topic { id, is_acked: false, is_deletion_asked: false });
        }
        let host = self.rng.random_range(0..self.hosts.len());
        let avoid = Vec::new();
        self.submit(host, &CatalogCommand::CreateTopics { topics: vec![topic], avoid })
    }

    fn delete_topic(&mut self) -> Check {
        let open =
            self.topics.iter_mut().filter(|(_, topic)| topic.is_acked && !topic.is_deletion_asked);
        let mut open: Vec<_> = open.collect();
        if open.len() < 2 {
            return Ok(());
        }
        let at = self.rng.random_range(0..open.len());
        let (name, topic) = &mut open[at];
        topic.is_deletion_asked = true;
        let topics = vec![TopicRef::Name((*name).clone())];
        let host = self.rng.random_range(0..self.hosts.len());
        self.submit(host, &CatalogCommand::DeleteTopics { topics })
    }

    /// What a node hears of a command that was given on it.
    pub(super) fn command_done(
        &mut self,
        host: usize,
        command: &CatalogCommand,
        result: ProduceResult,
    ) -> Check {
        match command {
            CatalogCommand::RegisterBroker { .. } => self.hosts[host].is_registering = false,
            CatalogCommand::ReplicasSettled { group, .. } => {
                self.hosts[host].settling.remove(group);
            }
            _ => {}
        }
        let outcome = match result {
            Ok(Ack::Command(outcome)) => outcome,
            Ok(other) => return Err(Violation { what: format!("a command came to {other:?}") }),
            Err(_) => {
                if let CatalogCommand::CreateTopics { topics, .. } = command {
                    // Nobody knows whether it will be there; another one is made under another name.
                    topics.iter().for_each(|topic| self.forget_topic(&topic.name));
                }
                return Ok(());
            }
        };
        match (command, outcome) {
            (
                CatalogCommand::CreateTopics { topics, .. },
                CommandOutcome::TopicsCreated(results),
            ) => {
                for (asked, result) in topics.iter().zip(results).filter(|(t, _)| !t.internal) {
                    if let Err(CatalogError::InvalidReplicationFactor { .. }) = result {
                        self.forget_topic(&asked.name); // too many brokers are cordoned
                        continue;
                    }
                    must!(result.is_ok(), "topic {}: {result:?}", asked.name);
                    self.report.topics_created += 1;
                    if let Some(topic) = self.topics.get_mut(&asked.name) {
                        topic.is_acked = true;
                    }
                }
            }
            (CatalogCommand::DeleteTopics { .. }, CommandOutcome::TopicsDeleted(results)) => {
                must!(results.iter().all(Result::is_ok), "an existing topic: {results:?}");
                self.report.topics_deleted += 1;
            }
            (_, CommandOutcome::ProducerIds(range)) => {
                let (first, end) = (range.first, range.first + i64::from(range.count));
                for (other, count) in &self.producer_ids {
                    let apart = end <= *other || other + i64::from(*count) <= first;
                    must!(apart, "producer ids {first}..{end} were given out before");
                }
                self.producer_ids.push((range.first, range.count));
            }
            (
                CatalogCommand::MovePartitions { moves },
                CommandOutcome::PartitionsMoved(results),
            ) => {
                let read_only = self.hosts.iter().find(|host| host.is_read_only).map(|h| h.id);
                for (asked, result) in moves.iter().zip(&results).filter(|(_, r)| r.is_ok()) {
                    let is_named = read_only.is_some_and(|node| asked.nodes.contains(&node));
                    must!(!is_named, "a read-only node is to vote: {asked:?} {result:?}");
                }
                self.report.moves += results.iter().filter(|result| result.is_ok()).count() as u64;
            }
            (_, CommandOutcome::ReplicasSettled | CommandOutcome::BrokerChanged) => {}
            (CatalogCommand::AlterTopicConfigs { .. }, CommandOutcome::TopicChanged(_)) => {
                self.report.durability_changes += 1;
            }
            // It is deleted by now.
            (CatalogCommand::AlterTopicConfigs { .. }, CommandOutcome::Refused(_)) => {}
            // It wants other members by now, or knows already.
            (CatalogCommand::ReplicasSettled { .. }, CommandOutcome::Refused(_)) => {}
            (_, CommandOutcome::BrokerRegistered) => self.hosts[host].is_registered = true,
            other => return Err(Violation { what: format!("an odd outcome: {other:?}") }),
        }
        Ok(())
    }

    fn forget_topic(&mut self, name: &str) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.is_deletion_asked = true;
        }
    }

    /// A node has a newer catalog: it is published step by step, one catalog at a time.
    pub(super) fn plan_publication(&mut self, host: usize) {
        if self.hosts[host].publishing.is_some() {
            return;
        }
        self.hosts[host].publishing = self.hosts[host].newest.take();
        if self.hosts[host].publishing.is_some() {
            self.plan_step(host, 0);
        }
    }

    fn plan_step(&mut self, host: usize, step: usize) {
        let delay_us = self.rng.random_range(100..20 * MS);
        self.plan_on_host(delay_us, host, HostStep::Publish(step));
    }

    /// One shard makes its groups, and when all have, one after the other deletes those that are no more.
    pub(super) fn publish(&mut self, host: usize, step: usize) -> Check {
        let Some(catalog) = self.hosts[host].publishing.clone() else { return Ok(()) };
        let shards = self.hosts[host].shards.len();
        if step >= 2 * shards {
            let here = &mut self.hosts[host];
            here.publishing = None;
            if std::mem::take(&mut here.is_unmade) {
                here.newest.get_or_insert(catalog);
            }
            self.plan_publication(host);
            return Ok(());
        }
        self.learn(&catalog);
        if step < shards {
            self.make_groups(host, step, &catalog);
            self.tell_relaxed(host, step, &catalog);
        } else {
            self.hosts[host].shown = Some(Arc::clone(&catalog));
            self.delete_groups(host, step - shards, &catalog);
        }
        self.absorb(host, step % shards)?;
        self.plan_step(host, step + 1);
        Ok(())
    }

    /// Clients learn of new partitions, and of those that are no more.
    fn learn(&mut self, catalog: &Arc<Catalog>) {
        if let Some(topic) = catalog.topic(OFFSETS_TOPIC) {
            self.members.partitions = topic.partitions.iter().map(|p| p.group).collect();
        }
        for topic in catalog.topics() {
            self.learn_topic(topic);
        }
        let named: BTreeSet<GroupId> =
            catalog.topics().flat_map(|topic| &topic.partitions).map(|p| p.group).collect();
        for (group, partition) in &mut self.partitions {
            partition.is_deleted |= catalog.has_given_out(*group) && !named.contains(group);
        }
    }

    fn learn_topic(&mut self, topic: &catalog::Topic) {
        for partition in &topic.partitions {
            let group = partition.group;
            let seat = |place: &Placement| Seat { node: place.node, shard: place.shard };
            for place in partition.placements() {
                self.seats.insert((group, place.replica), seat(place));
            }
            for reader in &partition.readers {
                self.oracle.note_reader(group, reader.replica);
            }
            let places: Vec<Seat> = partition.placements().map(seat).collect();
            if let Some(known) = self.partitions.get_mut(&group) {
                known.places = places;
            } else {
                let new = self.new_partition(topic.kind(), places);
                self.partitions.insert(group, new);
            }
        }
    }

    fn new_partition(&mut self, kind: PartitionKind, places: Vec<Seat>) -> Partition {
        let host = self.place(places[0]).0;
        let has_records = kind == PartitionKind::Records;
        let producers = if has_records { self.rng.random_range(1..4) } else { 0 };
        let producers = (0..producers)
            .map(|_| {
                let first = [0, 0, i32::MAX - 30][self.rng.random_range(0..3)];
                Producer::new(self.next(), first, host)
            })
            .collect();
        Partition {
            oracle: PartitionOracle::default(),
            producers,
            readers: (0..if has_records { 2 } else { 0 }).map(|_| Reader::new(host)).collect(),
            replica_reader: ReplicaReader::default(),
            in_sync_min: [1, 1, 2, 2, 3][self.rng.random_range(0..5)],
            kind,
            places,
            is_deleted: false,
            acked_to: Offset(0),
            acked_us: 0,
            log_start_asked: Offset(0),
            floors: BTreeMap::new(),
            leader_acked: Vec::new(),
            last_answer_us: 0,
        }
    }
}
