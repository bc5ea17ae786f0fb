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
    Broker, BrokerConfigs, Catalog, CatalogCommand, ClusterId, CommandId, Partition, Topic,
    TopicId, TopicSettings, is_internal_topic,
};

const VERSION: u8 = 1;
/// Of a catalog whose brokers were given configurations; one without is written as before.
const VERSION_WITH_BROKER_CONFIGS: u8 = 2;

/// Of a command that has a name.
const VERSION_NAMED: u8 = 2;

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
    /// The command as an entry's payload.
    ///
    /// # Errors
    /// [`FramedError::Encode`], never in practice: encoding to memory does not fail.
    pub fn encode(&self) -> Result<Vec<u8>, CatalogCodecError> {
        Ok(framed::encode(VERSION, self)?)
    }

    /// The command in an entry's payload.
    ///
    /// # Errors
    /// If the bytes are not a command of a version this program knows.
    pub fn decode(bytes: &[u8]) -> Result<CatalogCommand, CatalogCodecError> {
        Ok(framed::decode::<_, COMMAND_BYTES_MAX>(VERSION, bytes)?)
    }

    /// The command as an entry's payload, with its name if it has one.
    ///
    /// # Errors
    /// As [`CatalogCommand::encode`].
    pub fn encode_named(&self, id: Option<CommandId>) -> Result<Vec<u8>, CatalogCodecError> {
        match id {
            Some(id) => Ok(framed::encode(VERSION_NAMED, (id, self))?),
            None => self.encode(),
        }
    }

    /// The command in an entry's payload, and its name if it has one.
    ///
    /// # Errors
    /// As [`CatalogCommand::decode`].
    pub fn decode_named(
        bytes: &[u8],
    ) -> Result<(Option<CommandId>, CatalogCommand), CatalogCodecError> {
        if bytes.first() != Some(&VERSION_NAMED) {
            return CatalogCommand::decode(bytes).map(|command| (None, command));
        }
        let (id, command) = framed::decode::<_, COMMAND_BYTES_MAX>(VERSION_NAMED, bytes)?;
        Ok((Some(id), command))
    }
}

/// What of a catalog is written; the rest follows from it.
#[derive(bincode::Encode, bincode::Decode)]
struct CatalogImage {
    cluster_id: Option<ClusterId>,
    brokers: Vec<Broker>,
    topics: Vec<TopicImage>,
    next_group: u64,
    next_producer_id: i64,
}

#[derive(bincode::Encode, bincode::Decode)]
struct TopicImage {
    name: String,
    id: TopicId,
    internal: bool,
    partitions: Vec<Partition>,
    configs: BTreeMap<String, String>,
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
        };
        let image = CatalogImage {
            cluster_id: self.cluster_id,
            brokers: self.brokers.values().map(|broker| Broker::clone(broker)).collect(),
            topics: self.topics.values().map(topic).collect(),
            next_group: self.next_group,
            next_producer_id: self.next_producer_id,
        };
        if self.broker_configs.is_empty() {
            return Ok(framed::encode(VERSION, image)?);
        }
        Ok(framed::encode(VERSION_WITH_BROKER_CONFIGS, (image, &self.broker_configs))?)
    }

    /// The catalog in a checkpoint. No bytes at all are the catalog before any command.
    ///
    /// # Errors
    /// If the bytes are not a catalog of a version this program knows, or contradict themselves.
    pub fn decode(bytes: &[u8]) -> Result<Catalog, CatalogCodecError> {
        if bytes.is_empty() {
            return Ok(Catalog::new());
        }
        let (image, broker_configs): (CatalogImage, BrokerConfigs) = match bytes.first() {
            Some(&VERSION_WITH_BROKER_CONFIGS) => {
                framed::decode::<_, CATALOG_BYTES_MAX>(VERSION_WITH_BROKER_CONFIGS, bytes)?
            }
            _ => {
                let image = framed::decode::<_, CATALOG_BYTES_MAX>(VERSION, bytes)?;
                (image, BrokerConfigs::default())
            }
        };
        let mut catalog = Catalog {
            cluster_id: image.cluster_id,
            next_group: image.next_group,
            next_producer_id: image.next_producer_id,
            broker_configs,
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
        let topic = Topic {
            name: Arc::from(image.name),
            id: image.id,
            internal: image.internal,
            partitions: image.partitions,
            settings: TopicSettings::settle(&image.configs, defaults),
            configs: image.configs,
        };
        self.count_load(&topic);
        self.insert_topic(Arc::new(topic));
        Ok(())
    }
}
