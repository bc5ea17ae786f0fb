//! Why the catalog refuses a command. What Kafka calls each of them stands above it.

use std::fmt;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId};
use thiserror::Error;

use super::{ClusterId, ConfigProblem, TopicId, TopicRef};

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
    #[error("there is no topic {topic}")]
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
    #[error(
        "Unable to replicate the partition {replicas} time(s): The target replication factor of {replicas} cannot be \
         reached because only {brokers} broker(s) take new replicas."
    )]
    InvalidReplicationFactor {
        /// How many replicas were asked for.
        replicas: usize,
        /// How many brokers there are, without those that are cordoned.
        brokers: usize,
    },
    /// INVALID_REPLICA_ASSIGNMENT
    #[error(transparent)]
    InvalidReplicaAssignment(#[from] AssignmentProblem),
    /// NO_REASSIGNMENT_IN_PROGRESS
    #[error("No partition reassignment is in progress that could be cancelled.")]
    NoReassignmentInProgress,
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
    #[error("topic id {} is in use", .id.0)]
    TopicIdInUse {
        /// The id.
        id: TopicId,
    },
    /// INVALID_REQUEST: never shown to a client.
    #[error("group {group} is to have other replicas by now")]
    OtherReplicas {
        /// The group.
        group: GroupId,
    },
    /// BROKER_ID_NOT_REGISTERED
    #[error("broker {node} is not registered")]
    UnknownBroker {
        /// The broker.
        node: NodeId,
    },
    /// INVALID_REQUEST
    #[error("broker {node} has {replicas} replicas yet; move them away first")]
    BrokerHasReplicas {
        /// The broker.
        node: NodeId,
        /// How many replicas are placed on it, those that are about to go included.
        replicas: usize,
    },
    /// INVALID_REQUEST
    #[error("broker {node} takes replicas; drain it first: chronik-server cluster remove {node}")]
    BrokerNotDrained {
        /// The broker.
        node: NodeId,
    },
    /// INVALID_REQUEST
    #[error(
        "node {node} is known as {was}, and stays that until it is removed: set cluster.read_only as it was; or remove the \
         node, and let it join anew with an empty data_dir"
    )]
    OtherRole {
        /// The broker.
        node: NodeId,
        /// What it is.
        was: Role,
    },
    /// INVALID_REQUEST
    #[error("node {node} is to be read-only, and there is no other node")]
    ReadOnlyAlone {
        /// The broker.
        node: NodeId,
    },
    /// INVALID_REQUEST
    #[error("node {node} is to be read-only; {nodes} nodes are already, and there can be no more")]
    TooManyReadOnly {
        /// The broker.
        node: NodeId,
        /// How many there are.
        nodes: usize,
    },
    /// INVALID_REQUEST
    #[error("broker {node} is the last one that takes replicas and leads partitions")]
    LastOpenBroker {
        /// The broker.
        node: NodeId,
    },
    /// INVALID_REQUEST
    #[error("broker {node} is the only one")]
    LastBroker {
        /// The broker.
        node: NodeId,
    },
    /// INVALID_REQUEST
    #[error("node {node} is known with another data directory")]
    OtherIncarnation {
        /// The node.
        node: NodeId,
    },
    /// INVALID_REQUEST
    #[error(
        "the data directory of node {node} does not count any more: the node has started with another one since, or was \
         removed from the cluster; give it an empty data_dir"
    )]
    RetiredIncarnation {
        /// The node.
        node: NodeId,
    },
}

/// What a node is to its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It has replicas that vote, and votes on the catalog.
    Voting,
    /// Its replicas are for readers alone.
    ReadOnly,
}

impl From<bool> for Role {
    fn from(is_read_only: bool) -> Role {
        if is_read_only { Role::ReadOnly } else { Role::Voting }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Voting => "one that is not read-only",
            Role::ReadOnly => "read-only",
        })
    }
}

/// Why replicas cannot be on these nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AssignmentProblem {
    /// There are none.
    #[error("The manual partition assignment includes an empty replica list.")]
    Empty,
    /// There is no such broker.
    #[error(
        "The manual partition assignment includes broker {node}, but no such broker is registered."
    )]
    UnknownBroker {
        /// The node.
        node: NodeId,
    },
    /// A broker has at most one replica of a partition.
    #[error("The manual partition assignment includes the broker {node} more than once.")]
    Twice {
        /// The node.
        node: NodeId,
    },
    /// The broker takes no new replicas.
    #[error("The manual partition assignment includes broker {node}, which is cordoned.")]
    Cordoned {
        /// The node.
        node: NodeId,
    },
    /// The broker has replicas for readers alone.
    #[error(
        "The manual partition assignment includes broker {node}, which is read-only: it has a read-only replica of every \
         partition, and no other."
    )]
    ReadOnly {
        /// The node.
        node: NodeId,
    },
    /// Its other replicas went with their disks, and no new one has caught up yet.
    #[error(
        "Broker {left} has the only replica that is left of the partition. Until another one has caught up the partition \
         can only be on broker {left} and at most one more."
    )]
    LeftAlone {
        /// The node with the replica that is left.
        left: NodeId,
    },
    /// The proposer did not draw one replica id for each node, or one that is in use.
    #[error("{replica_ids} replica ids for {nodes} nodes, or some are in use")]
    ReplicaIds {
        /// How many nodes.
        nodes: usize,
        /// How many ids.
        replica_ids: usize,
    },
    /// Too many, with those that have not gone yet.
    #[error(
        "the partition would have {replicas} replicas, of at most {replicas_max}; those that go are counted"
    )]
    TooMany {
        /// How many there would be.
        replicas: usize,
        /// How many there may be.
        replicas_max: usize,
    },
}
