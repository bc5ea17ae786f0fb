//! Topics that come and go, and the shell's answer to a new catalog.

use std::collections::BTreeMap;
use std::rc::Rc;

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_engine::wal::record::GroupMeta;
use chronik_shards::catalog::{
    Broker, Catalog, CatalogCommand, ClusterId, CommandOutcome, Incarnation, NewPartition,
    NewTopic, TopicId, TopicRef,
};
use chronik_shards::core::RequiredAcks;
use rand::Rng;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::client::SimProducer;
use super::oracle::PartitionOracle;
use super::run::{NODE, Partition, Pending, Run, SHARD, Topic};
use super::{Check, Violation};
use crate::must;

/// Topics at a time.
const TOPICS_MAX: usize = 4;
impl Run {
    pub(super) fn propose_command(&mut self, command: CatalogCommand) {
        let token = self.token();
        let proposed = self.node.core.borrow_mut().propose_command(&command, token);
        if proposed.is_ok() {
            self.tokens.insert(token, Pending::Command(command));
        }
    }

    pub(super) fn register_broker(&mut self) -> Check {
        let broker = Broker {
            node: NODE,
            host: "sim".into(),
            port: 9092,
            rack: None,
            shards: 1,
            incarnation: Incarnation(Uuid::from_u128(1)),
            meta_replica: ReplicaId(1),
            raft_addr: String::new(),
            is_cordoned: false,
            is_read_only: false,
        };
        let cluster_id = ClusterId(Uuid::from_u128(1));
        let replica_seed = 1;
        self.propose_command(CatalogCommand::RegisterBroker {
            cluster_id,
            broker,
            replica_seed,
            replaces: None,
        });
        self.settle()
    }

    pub(super) fn command(&mut self) -> Check {
        match self.rng.random_range(0..10) {
            0..4 => self.create_topic()?,
            4..7 => self.delete_topic(),
            _ => {
                let count = self.rng.random_range(1..100);
                self.propose_command(CatalogCommand::AllocateProducerIds { count });
            }
        }
        Ok(())
    }

    pub(super) fn create_topic(&mut self) -> Check {
        let open = self.topics.values().filter(|topic| !topic.is_deletion_asked).count();
        if open >= TOPICS_MAX {
            return Ok(());
        }
        let name = format!("topic-{}", self.next());
        let id = TopicId(Uuid::from_u128(self.rng.random()));
        let partitions = self.rng.random_range(1..4);
        let partition = |rng: &mut StdRng| NewPartition {
            replicas: vec![ReplicaId(rng.random_range(1..u64::MAX))],
            nodes: Vec::new(),
        };
        let topic = NewTopic {
            name: name.clone(),
            id,
            internal: false,
            partitions: (0..partitions).map(|_| partition(&mut self.rng)).collect(),
            configs: BTreeMap::new(),
        };
        self.topics.insert(name, Topic { id: Some(id), ..Topic::default() });
        let avoid = Vec::new();
        self.propose_command(CatalogCommand::CreateTopics { topics: vec![topic], avoid });
        Ok(())
    }

    pub(super) fn delete_topic(&mut self) {
        let open =
            self.topics.iter_mut().filter(|(_, topic)| topic.is_acked && !topic.is_deletion_asked);
        let mut open: Vec<_> = open.collect();
        if open.len() < 2 {
            return;
        }
        let at = self.rng.random_range(0..open.len());
        let (name, topic) = &mut open[at];
        topic.is_deletion_asked = true;
        let topics = vec![TopicRef::Name((*name).clone())];
        self.propose_command(CatalogCommand::DeleteTopics { topics });
    }

    pub(super) fn on_outcome(
        &mut self,
        command: &CatalogCommand,
        outcome: &CommandOutcome,
    ) -> Check {
        match (command, outcome) {
            (
                CatalogCommand::CreateTopics { topics, .. },
                CommandOutcome::TopicsCreated(results),
            ) => {
                for (asked, result) in topics.iter().zip(results) {
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
            (_, CommandOutcome::BrokerRegistered) => {}
            other => return Err(Violation { what: format!("an odd outcome: {other:?}") }),
        }
        Ok(())
    }

    /// Does what the catalog says, as the shell does: groups first, then what clients see, then deletions.
    pub(super) fn publish(&mut self, catalog: &Catalog) -> Check {
        for (name, topic) in &mut self.topics {
            let found = catalog.topic(name).map(|found| found.id);
            let must_be = topic.is_acked && !topic.is_deletion_asked;
            must!(!must_be || found == topic.id, "P1: topic {name} is gone: {found:?}");
            topic.is_acked |= found.is_some();
        }
        let placed: BTreeMap<GroupId, GroupMeta> = catalog.placed_on(NODE, SHARD).collect();
        let node = Rc::clone(&self.node);
        let mut core = node.core.borrow_mut();
        for (group, meta) in &placed {
            if core.partition(*group).is_none() {
                core.create_group(*group, meta.clone());
            }
            if !self.partitions.contains_key(group) {
                let partition = self.new_partition();
                self.partitions.insert(*group, partition);
            }
        }
        let gone: Vec<GroupId> = core
            .group_ids()
            .filter(|group| *group != GroupId::META && !placed.contains_key(group))
            .collect();
        for group in gone {
            core.delete_group(group);
        }
        self.partitions.retain(|group, _| placed.contains_key(group));
        Ok(())
    }

    pub(super) fn new_partition(&mut self) -> Partition {
        let producers = (0..self.rng.random_range(1..4))
            .map(|_| {
                let first = [0, 0, i32::MAX - 30][self.rng.random_range(0..3)];
                let acks = [RequiredAcks::All, RequiredAcks::Leader, RequiredAcks::None];
                let acks = acks[self.rng.random_range(0..3)];
                (SimProducer::new(self.next(), first), acks)
            })
            .collect();
        Partition { oracle: PartitionOracle::default(), producers }
    }
}
