//! What a command does to the catalog.
//!
//! Everything here is a function of the catalog and the command alone (I1 of the module). What is said of brokers stands
//! in `brokers`, where replicas are put in `place`, and how they move in `moves`.

use std::collections::BTreeMap;
use std::sync::Arc;

use chronik_engine::ids::NodeId;

use super::name::{can_collide, is_internal_topic, names_collide, topic_name_problem};
use super::settings::check_configs;
use super::{
    CATALOG_PARTITIONS_MAX, Catalog, CatalogCommand, CatalogError, CommandOutcome, DeletedTopic,
    NewPartition, NewTopic, PRODUCER_ID_BLOCK_MAX, Partition, ProducerIdRange,
    TOPIC_PARTITIONS_MAX, Topic, TopicRef, TopicSettings,
};

impl Catalog {
    /// Applies one command. A refused command, or part of one, changes nothing (I5).
    pub fn apply(&mut self, command: &CatalogCommand) -> CommandOutcome {
        let refused = CommandOutcome::Refused;
        match command {
            CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, replaces } => self
                .register_broker(*cluster_id, broker, *replica_seed, *replaces)
                .map_or_else(refused, |()| CommandOutcome::BrokerRegistered),
            CatalogCommand::CreateTopics { topics, avoid } => CommandOutcome::TopicsCreated(
                topics.iter().map(|topic| self.create_topic(topic, avoid)).collect(),
            ),
            CatalogCommand::DeleteTopics { topics } => CommandOutcome::TopicsDeleted(
                topics.iter().map(|topic| self.delete_topic(topic)).collect(),
            ),
            CatalogCommand::CreatePartitions { name, partitions, total, avoid } => self
                .create_partitions(name, partitions, *total, avoid)
                .map_or_else(refused, CommandOutcome::TopicChanged),
            CatalogCommand::AlterTopicConfigs { name, changes } => self
                .alter_topic_configs(name, changes)
                .map_or_else(refused, CommandOutcome::TopicChanged),
            CatalogCommand::AlterBrokerConfigs { node, changes } => self
                .alter_broker_configs(*node, changes)
                .map_or_else(refused, |()| CommandOutcome::BrokerConfigsChanged),
            CatalogCommand::AllocateProducerIds { count } => {
                self.allocate_producer_ids(*count).map_or_else(refused, CommandOutcome::ProducerIds)
            }
            CatalogCommand::MovePartitions { moves } => CommandOutcome::PartitionsMoved(
                moves.iter().map(|wanted| self.move_partition(wanted)).collect(),
            ),
            CatalogCommand::ReplicasSettled { group, replicas } => self
                .settle_replicas(*group, replicas)
                .map_or_else(refused, |()| CommandOutcome::ReplicasSettled),
            CatalogCommand::CordonBroker { node, is_cordoned } => self
                .cordon_broker(*node, *is_cordoned)
                .map_or_else(refused, |()| CommandOutcome::BrokerChanged),
            CatalogCommand::UnregisterBroker { node } => self
                .unregister_broker(*node)
                .map_or_else(refused, |()| CommandOutcome::BrokerChanged),
        }
    }

    /// Whether a topic of this shape could be created now; what `validate_only` asks for, and what a proposer checks
    /// before it bothers the log.
    ///
    /// # Errors
    /// Why not.
    pub fn check_new_topic(&self, topic: &NewTopic) -> Result<(), CatalogError> {
        let name = &topic.name;
        if let Some(problem) = topic_name_problem(name) {
            return Err(CatalogError::InvalidTopicName { name: name.clone(), problem });
        }
        if self.topic_names.contains_key(name.as_str()) {
            return Err(CatalogError::TopicExists { name: name.clone() });
        }
        if is_internal_topic(name) != topic.internal {
            return Err(CatalogError::ReservedTopicName { name: name.clone() });
        }
        if can_collide(name)
            && let Some(existing) = self.topic_names.keys().find(|other| names_collide(other, name))
        {
            let existing = Arc::clone(existing);
            return Err(CatalogError::TopicNameCollides { name: name.clone(), existing });
        }
        if self.topics.contains_key(&topic.id) {
            return Err(CatalogError::TopicIdInUse { id: topic.id });
        }
        self.check_partitions(0, &topic.partitions)?;
        check_configs(&topic.configs)
            .map_err(|(name, problem)| CatalogError::InvalidConfig { name, problem })
    }

    fn check_partitions(
        &self,
        existing: usize,
        added: &[NewPartition],
    ) -> Result<(), CatalogError> {
        let partitions = existing + added.len();
        if added.is_empty() || partitions > TOPIC_PARTITIONS_MAX {
            let partitions_max = TOPIC_PARTITIONS_MAX;
            return Err(CatalogError::InvalidPartitionCount { partitions, partitions_max });
        }
        if self.partition_count + added.len() > CATALOG_PARTITIONS_MAX {
            return Err(CatalogError::TooManyPartitions {
                partitions: self.partition_count,
                partitions_max: CATALOG_PARTITIONS_MAX,
            });
        }
        let brokers = self.open_brokers().count();
        for partition in added {
            let replicas = partition.replicas.len();
            if replicas == 0 || replicas > brokers {
                return Err(CatalogError::InvalidReplicationFactor { replicas, brokers });
            }
            if !partition.nodes.is_empty() {
                self.check_nodes(&partition.nodes, &partition.replicas, None)?;
            }
        }
        Ok(())
    }

    fn alter_broker_configs(
        &mut self,
        node: Option<NodeId>,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<(), CatalogError> {
        self.broker_configs
            .change(node, changes)
            .map_err(|(name, problem)| CatalogError::InvalidConfig { name, problem })?;
        self.settle_topics();
        Ok(())
    }

    /// What the topics' configurations come to where a topic has none of its own.
    pub(crate) fn topic_defaults(&self) -> BTreeMap<String, String> {
        let only = (self.brokers.len() == 1).then(|| self.brokers.keys().next().copied()).flatten();
        self.broker_configs.topic_defaults(only)
    }

    /// The defaults are others now.
    pub(super) fn settle_topics(&mut self) {
        let defaults = self.topic_defaults();
        for topic in self.topics.values_mut() {
            let settings = TopicSettings::settle(&topic.configs, &defaults);
            if settings != topic.settings {
                let was_relaxed = topic.was_relaxed || settings.is_relaxed();
                *topic = Arc::new(Topic { settings, was_relaxed, ..Topic::clone(topic) });
                self.topic_names.insert(Arc::clone(&topic.name), Arc::clone(topic));
            }
        }
    }

    fn create_topic(
        &mut self,
        new: &NewTopic,
        avoid: &[NodeId],
    ) -> Result<Arc<Topic>, CatalogError> {
        self.check_new_topic(new)?;
        let partitions = self.place_all(&new.partitions, avoid, !new.internal);
        let settings = TopicSettings::settle(&new.configs, &self.topic_defaults());
        let topic = Arc::new(Topic {
            name: Arc::from(new.name.as_str()),
            id: new.id,
            internal: new.internal,
            partitions,
            was_relaxed: settings.is_relaxed(),
            settings,
            configs: new.configs.clone(),
        });
        self.insert_topic(Arc::clone(&topic));
        Ok(topic)
    }

    fn delete_topic(&mut self, topic: &TopicRef) -> Result<DeletedTopic, CatalogError> {
        let found = match topic {
            TopicRef::Name(name) => self.topic_names.get(name.as_str()),
            TopicRef::Id(id) => self.topics.get(id),
        };
        let Some(found) = found.cloned() else {
            return Err(CatalogError::UnknownTopic { topic: topic.clone() });
        };
        if found.internal {
            return Err(CatalogError::ReservedTopicName { name: found.name.to_string() });
        }
        self.remove_topic(&found);
        Ok(DeletedTopic {
            name: Arc::clone(&found.name),
            id: found.id,
            groups: found.partitions.iter().map(|partition| partition.group).collect(),
        })
    }

    fn create_partitions(
        &mut self,
        name: &str,
        added: &[NewPartition],
        total: u32,
        avoid: &[NodeId],
    ) -> Result<Arc<Topic>, CatalogError> {
        let Some(old) = self.topic_names.get(name).cloned() else {
            return Err(unknown(name));
        };
        let partitions = old.partitions.len();
        self.check_partitions(partitions, added)?;
        if u32::try_from(partitions + added.len()) != Ok(total) {
            let name = name.to_owned();
            return Err(CatalogError::PartitionCountChanged { name, partitions, total });
        }
        let mut changed = Topic::clone(&old);
        changed.partitions.extend(self.place_all(added, avoid, !old.internal));
        Ok(self.replace_topic(&old, changed))
    }

    fn alter_topic_configs(
        &mut self,
        name: &str,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<Arc<Topic>, CatalogError> {
        let Some(old) = self.topic_names.get(name).cloned() else {
            return Err(unknown(name));
        };
        let mut changed = Topic::clone(&old);
        for (name, value) in changes {
            match value {
                Some(value) => changed.configs.insert(name.clone(), value.clone()),
                None => changed.configs.remove(name),
            };
        }
        check_configs(&changed.configs)
            .map_err(|(name, problem)| CatalogError::InvalidConfig { name, problem })?;
        changed.settings = TopicSettings::settle(&changed.configs, &self.topic_defaults());
        changed.was_relaxed |= changed.settings.is_relaxed();
        Ok(self.replace_topic(&old, changed))
    }

    fn allocate_producer_ids(&mut self, count: u32) -> Result<ProducerIdRange, CatalogError> {
        let count_max = PRODUCER_ID_BLOCK_MAX;
        if count == 0 || count > count_max {
            return Err(CatalogError::InvalidProducerIdCount { count, count_max });
        }
        let first = self.next_producer_id;
        let next = first.checked_add(i64::from(count)).ok_or(CatalogError::ProducerIdsExhausted)?;
        self.next_producer_id = next;
        Ok(ProducerIdRange { first, count })
    }

    /// Adds a topic whose placements are counted in `load` already.
    pub(super) fn insert_topic(&mut self, topic: Arc<Topic>) {
        self.partition_count += topic.partitions.len();
        self.topics.insert(topic.id, Arc::clone(&topic));
        self.topic_names.insert(Arc::clone(&topic.name), topic);
        assert!(self.topics.len() == self.topic_names.len(), "I4: topics by id and by name differ");
    }

    fn remove_topic(&mut self, topic: &Topic) {
        self.partition_count -= topic.partitions.len();
        self.topics.remove(&topic.id);
        self.topic_names.remove(&topic.name);
        for placement in topic.partitions.iter().flat_map(Partition::placements) {
            self.uncount(placement);
        }
    }

    /// Puts `changed` in the place of `old`; the placements are counted already.
    pub(super) fn replace_topic(&mut self, old: &Topic, changed: Topic) -> Arc<Topic> {
        assert!(changed.id == old.id, "a topic keeps its id");
        assert!(changed.partitions.len() >= old.partitions.len(), "a topic keeps its partitions");
        let changed = Arc::new(changed);
        self.partition_count += changed.partitions.len() - old.partitions.len();
        self.topics.insert(changed.id, Arc::clone(&changed));
        self.topic_names.insert(Arc::clone(&changed.name), Arc::clone(&changed));
        changed
    }
}

fn unknown(name: &str) -> CatalogError {
    CatalogError::UnknownTopic { topic: TopicRef::Name(name.to_owned()) }
}
