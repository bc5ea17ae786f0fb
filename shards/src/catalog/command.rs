//! What can be asked of the catalog, and what comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId};
use thiserror::Error;

use super::{Broker, ClusterId, ConfigProblem, Topic, TopicId};

/// A change to the catalog: the payload of an entry in META's log.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum CatalogCommand {
    /// A broker starts, or came back with another address. The first one names the cluster.
    RegisterBroker {
        /// The id the cluster gets if it has none yet.
        cluster_id: ClusterId,
        /// The broker.
        broker: Broker,
    },
    /// Makes topics; each stands for itself.
    CreateTopics {
        /// The topics.
        topics: Vec<NewTopic>,
    },
    /// Deletes topics; each stands for itself.
    DeleteTopics {
        /// The topics.
        topics: Vec<TopicRef>,
    },
    /// Adds partitions to a topic.
    CreatePartitions {
        /// The topic's name.
        name: String,
        /// The partitions to add.
        partitions: Vec<NewPartition>,
        /// How many there will be then: refused if another command changed the count in between.
        total: u32,
    },
    /// Sets (`Some`) or resets (`None`) configurations of a topic; all or none.
    AlterTopicConfigs {
        /// The topic's name.
        name: String,
        /// The changes by configuration name.
        changes: BTreeMap<String, Option<String>>,
    },
    /// Takes a range of producer ids.
    AllocateProducerIds {
        /// How many.
        count: u32,
    },
    /// Sets (`Some`) or resets (`None`) configurations of a broker, or of all of them; all or none.
    AlterBrokerConfigs {
        /// The broker, `None` for all.
        node: Option<NodeId>,
        /// The changes by configuration name.
        changes: BTreeMap<String, Option<String>>,
    },
}

/// A partition to be made: one replica per entry. Where they are put is decided when the command is applied.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct NewPartition {
    /// Random ids for the replicas.
    pub replicas: Vec<ReplicaId>,
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Its id, random.
    pub id: TopicId,
    /// Whether it is one of the cluster's own.
    pub internal: bool,
    /// Its partitions, all with the same number of replicas.
    pub partitions: Vec<NewPartition>,
    /// Its configurations.
    pub configs: BTreeMap<String, String>,
}

/// A topic, by name or by id.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum TopicRef {
    /// By name.
    Name(String),
    /// By id.
    Id(TopicId),
}

/// A range of producer ids that nobody else gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerIdRange {
    /// The first.
    pub first: i64,
    /// How many.
    pub count: u32,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    /// The broker is registered.
    BrokerRegistered,
    /// One answer for each topic, in the order of the command.
    TopicsCreated(Vec<Result<Arc<Topic>, CatalogError>>),
    /// One answer for each topic, in the order of the command.
    TopicsDeleted(Vec<Result<DeletedTopic, CatalogError>>),
    /// The topic as it is now.
    TopicChanged(Arc<Topic>),
    /// The brokers' configurations are as asked.
    BrokerConfigsChanged,
    /// The producer ids.
    ProducerIds(ProducerIdRange),
    /// The command as a whole was refused.
    Refused(CatalogError),
}

impl CommandOutcome {
    /// Whether the image that readers hold is another one now. The counters that ids are taken from are for the log
    /// alone: nobody reads them in an image.
    #[must_use]
    pub fn changes_image(&self) -> bool {
        match self {
            CommandOutcome::BrokerRegistered
            | CommandOutcome::TopicChanged(_)
            | CommandOutcome::BrokerConfigsChanged => true,
            CommandOutcome::TopicsCreated(results) => results.iter().any(Result::is_ok),
            CommandOutcome::TopicsDeleted(results) => results.iter().any(Result::is_ok),
            CommandOutcome::ProducerIds(_) | CommandOutcome::Refused(_) => false,
        }
    }
}

/// A topic that is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedTopic {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub id: TopicId,
    /// The groups of its partitions.
    pub groups: Vec<GroupId>,
}

/// Why the catalog refuses.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CatalogError {
    /// INVALID_TOPIC_EXCEPTION
    #[error("topic name {name:?} is illegal: {problem}")]
    InvalidTopicName {
        /// The name.
        name: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// INVALID_TOPIC_EXCEPTION
    #[error("topic name {name:?} is reserved for the cluster's own use")]
    ReservedTopicName {
        /// The name.
        name: String,
    },
    /// INVALID_TOPIC_EXCEPTION
    #[error(
        "topic {name:?} collides with the existing topic {existing:?}: '.' and '_' count as the same"
    )]
    TopicNameCollides {
        /// The name.
        name: String,
        /// The topic that is there.
        existing: Arc<str>,
    },
    /// TOPIC_ALREADY_EXISTS
    #[error("Topic '{name}' already exists.")]
    TopicExists {
        /// The name.
        name: String,
    },
    /// UNKNOWN_TOPIC_OR_PARTITION or UNKNOWN_TOPIC_ID
    #[error("no such topic: {topic:?}")]
    UnknownTopic {
        /// How it was named.
        topic: TopicRef,
    },
    /// INVALID_PARTITIONS
    #[error("{partitions} partitions asked for; a topic has 1 to {partitions_max}")]
    InvalidPartitionCount {
        /// How many were asked for.
        partitions: usize,
        /// How many there may be.
        partitions_max: usize,
    },
    /// INVALID_PARTITIONS
    #[error("topic {name:?} has {partitions} partitions, {total} were asked for")]
    PartitionCountChanged {
        /// The topic.
        name: String,
        /// How many it has.
        partitions: usize,
        /// How many there would be.
        total: u32,
    },
    /// INVALID_PARTITIONS
    #[error("the cluster has {partitions} partitions, {partitions_max} are allowed")]
    TooManyPartitions {
        /// How many there are.
        partitions: usize,
        /// How many there may be.
        partitions_max: usize,
    },
    /// INVALID_REPLICATION_FACTOR
    #[error("replication factor {replicas} with {brokers} brokers")]
    InvalidReplicationFactor {
        /// How many replicas were asked for.
        replicas: usize,
        /// How many brokers there are.
        brokers: usize,
    },
    /// INVALID_CONFIG
    #[error("configuration {name:?}: {problem}")]
    InvalidConfig {
        /// The configuration.
        name: String,
        /// What is wrong with it.
        problem: ConfigProblem,
    },
    /// INVALID_REQUEST
    #[error("{count} producer ids asked for; a range has 1 to {count_max}")]
    InvalidProducerIdCount {
        /// How many were asked for.
        count: u32,
        /// How many there may be.
        count_max: u32,
    },
    /// UNKNOWN_SERVER_ERROR
    #[error("the producer ids are used up")]
    ProducerIdsExhausted,
    /// INVALID_REQUEST
    #[error("broker {node} has no shards, or the cluster has {brokers} brokers already")]
    InvalidBroker {
        /// The broker.
        node: NodeId,
        /// How many there are.
        brokers: usize,
    },
    /// INCONSISTENT_CLUSTER_ID
    #[error("broker {node} belongs to cluster {theirs}, this is {ours}")]
    OtherCluster {
        /// The broker.
        node: NodeId,
        /// The cluster it names.
        theirs: ClusterId,
        /// This cluster.
        ours: ClusterId,
    },
    /// INVALID_REQUEST: the command names an id that is in use; its proposer must draw another.
    #[error("topic id {id:?} is in use")]
    TopicIdInUse {
        /// The id.
        id: TopicId,
    },
}
