//! The catalog and its commands as bytes, framed as [`chronik_engine::framed`] says.
//!
//! Commands lie in META's log, the catalog in META's checkpoints; both outlive the program that wrote them. A change to
//! the types below is a new version, and the golden files say so.
//!
//! What is decoded comes from disk or from a peer: every decode is bounded, and ends in a value or an error.

use std::collections::BTreeMap;
use std::sync::Arc;

use chronik_engine::framed::{self, FramedError};
use chronik_engine::ids::GroupId;
use thiserror::Error;

use super::{
    Broker, BrokerConfigs, Catalog, CatalogCommand, ClusterId, CommandId, Incarnation, Partition,
    Topic, TopicId, TopicSettings, is_internal_topic,
};

pub(super) const VERSION: u8 = 6;

/// Most memory that decoding one command may claim.
const COMMAND_BYTES_MAX: usize = 16 << 20;
/// Most memory that decoding a catalog may claim.
const CATALOG_BYTES_MAX: usize = 1 << 30;

/// Why bytes are not a catalog or a command.
#[derive(Debug, Error)]
pub enum CatalogCodecError {
    /// Not the format, or another version of it.
    #[error(transparent)]
    Framed(#[from] FramedError),
    /// Well-formed, but it cannot have been written by a correct program.
    #[error("the catalog contradicts itself: {what}")]
    Inconsistent {
        /// What does not hold.
        what: &'static str,
    },
}

impl CatalogCommand {
    /// The command as an entry's payload, without a name.
    ///
    /// # Errors
    /// [`FramedError::Encode`], never in practice: encoding to memory does not fail.
    pub fn encode(&self) -> Result<Vec<u8>, CatalogCodecError> {
        self.encode_named(None)
    }

    /// The command in an entry's payload.
    ///
    /// # Errors
    /// If the bytes are not a command of a version this program knows.
    pub fn decode(bytes: &[u8]) -> Result<CatalogCommand, CatalogCodecError> {
        CatalogCommand::decode_named(bytes).map(|(_, command)| command)
    }

    /// The command as an entry's payload, with its name if it has one.
    ///
    /// # Errors
    /// As [`CatalogCommand::encode`].
    pub fn encode_named(&self, id: Option<CommandId>) -> Result<Vec<u8>, CatalogCodecError> {
        Ok(framed::encode(VERSION, (id, self))?)
    }

    /// The command in an entry's payload, and its name if it has one.
    ///
    /// # Errors
    /// As [`CatalogCommand::decode`].
    pub fn decode_named(
        bytes: &[u8],
    ) -> Result<(Option<CommandId>, CatalogCommand), CatalogCodecError> {
        Ok(framed::decode::<_, COMMAND_BYTES_MAX>(VERSION, bytes)?)
    }
}

/// What of a catalog is written; the rest follows from it.
#[derive(bincode::Encode, bincode::Decode)]
struct CatalogImage {
    cluster_id: Option<ClusterId>,
    brokers: Vec<Broker>,
    retired: Vec<Incarnation>,
    topics: Vec<TopicImage>,
    next_group: u64,
    next_producer_id: i64,
    broker_configs: BrokerConfigs,
}

#[derive(bincode::Encode, bincode::Decode)]
struct TopicImage {
    name: String,
    id: TopicId,
    internal: bool,
    partitions: Vec<Partition>,
    configs: BTreeMap<String, String>,
    was_relaxed: bool,
}

impl Catalog {
    /// The catalog as the state of META's checkpoint.
    ///
    /// # Errors
    /// [`FramedError::Encode`], never in practice: encoding to memory does not fail.
    pub fn encode(&self) -> Result<Vec<u8>, CatalogCodecError> {
        let topic = |topic: &Arc<Topic>| TopicImage {
            name: topic.name.to_string(),
            id: topic.id,
            internal: topic.internal,
            partitions: topic.partitions.clone(),
            configs: topic.configs.clone(),
            was_relaxed: topic.was_relaxed,
        };
        let image = CatalogImage {
            cluster_id: self.cluster_id,
            brokers: self.brokers.values().map(|broker| Broker::clone(broker)).collect(),
            retired: self.retired.iter().copied().collect(),
            topics: self.topics.values().map(topic).collect(),
            next_group: self.next_group,
            next_producer_id: self.next_producer_id,
            broker_configs: self.broker_configs.clone(),
        };
        Ok(framed::encode(VERSION, image)?)
    }

    /// The catalog in a checkpoint. No bytes at all are the catalog before any command.
    ///
    /// # Errors
    /// If the bytes are not a catalog of a version this program knows, or contradict themselves.
    pub fn decode(bytes: &[u8]) -> Result<Catalog, CatalogCodecError> {
        if bytes.is_empty() {
            return Ok(Catalog::new());
        }
        let image: CatalogImage = framed::decode::<_, CATALOG_BYTES_MAX>(VERSION, bytes)?;
        let mut catalog = Catalog {
            cluster_id: image.cluster_id,
            retired: image.retired.into(),
            next_group: image.next_group,
            next_producer_id: image.next_producer_id,
            broker_configs: image.broker_configs,
            ..Catalog::default()
        };
        for broker in image.brokers {
            catalog.brokers.insert(broker.node, Arc::new(broker));
        }
        let defaults = catalog.topic_defaults();
        for topic in image.topics {
            catalog.restore_topic(topic, &defaults)?;
        }
        Ok(catalog)
    }

    fn restore_topic(
        &mut self,
        image: TopicImage,
        defaults: &BTreeMap<String, String>,
    ) -> Result<(), CatalogCodecError> {
        let inconsistent = |what| Err(CatalogCodecError::Inconsistent { what });
        if image.partitions.iter().any(|partition| partition.group.0 >= self.next_group) {
            return inconsistent("a group has an id that was not given out");
        }
        if image.partitions.iter().any(|partition| partition.group == GroupId::META) {
            return inconsistent("a partition has the catalog's own group");
        }
        if self.topics.contains_key(&image.id) || self.topic_names.contains_key(&*image.name) {
            return inconsistent("two topics have one name or id");
        }
        if image.internal != is_internal_topic(&image.name) {
            return inconsistent("a topic bears a reserved name");
        }
        if !image.partitions.is_sorted_by_key(|partition| partition.group) {
            return inconsistent("the groups of a topic are not in their order");
        }
        if !image.partitions.iter().all(Partition::is_coherent) {
            return inconsistent("the replicas of a partition are not what they can be");
        }
        let settings = TopicSettings::settle(&image.configs, defaults);
        if settings.is_relaxed() && !image.was_relaxed {
            return inconsistent("a topic is relaxed and never was");
        }
        let topic = Topic {
            name: Arc::from(image.name),
            id: image.id,
            internal: image.internal,
            partitions: image.partitions,
            settings,
            configs: image.configs,
            was_relaxed: image.was_relaxed,
        };
        self.count_load(&topic);
        self.insert_topic(Arc::new(topic));
        Ok(())
    }
}
