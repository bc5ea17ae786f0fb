//! What can be asked of the catalog, and what comes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId};

use super::{Broker, CatalogError, ClusterId, Incarnation, Topic, TopicId};

/// A change to the catalog: the payload of an entry in META's log.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum CatalogCommand {
    /// A broker starts, or came back with another address, or on another disk: then each replica that was placed on it
    /// is replaced by a new one there. The first broker names the cluster.
    RegisterBroker {
        /// The id the cluster gets if it has none yet.
        cluster_id: ClusterId,
        /// The broker.
        broker: Broker,
        /// Where the ids of new replicas come from; random.
        replica_seed: u64,
        /// The disk whose place it takes, where the catalog knows the broker by another one.
        replaces: Option<Incarnation>,
    },
    /// Makes topics; each stands for itself.
    CreateTopics {
        /// The topics.
        topics: Vec<NewTopic>,
        /// Nodes that get a replica only where there are not enough others: the proposer knows them to be down.
        avoid: Vec<NodeId>,
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
        /// As in [`CatalogCommand::CreateTopics`].
        avoid: Vec<NodeId>,
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
    /// Says where partitions are to have their replicas; each move stands for itself.
    MovePartitions {
        /// The moves.
        moves: Vec<PartitionMove>,
    },
    /// Raft's members are what the catalog wants: replicas that go may go. Of no effect if it wants others by now.
    ReplicasSettled {
        /// The partition's group.
        group: GroupId,
        /// Its members, in any order.
        replicas: Vec<ReplicaId>,
    },
    /// Keeps new replicas away from a broker, or lets them come again.
    CordonBroker {
        /// The broker.
        node: NodeId,
        /// Which of the two.
        is_cordoned: bool,
    },
    /// Forgets a broker on which no replica is placed. Its disk does not come back.
    UnregisterBroker {
        /// The broker.
        node: NodeId,
    },
}

/// A partition to be made: one replica per entry.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct NewPartition {
    /// Random ids for the replicas.
    pub replicas: Vec<ReplicaId>,
    /// The node of each, the preferred leader first; if there are none, the catalog chooses when it applies the command.
    pub nodes: Vec<NodeId>,
}

/// Where a partition is to have its replicas.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct PartitionMove {
    /// The topic.
    pub topic: TopicRef,
    /// The partition's number.
    pub partition: u32,
    /// The nodes, the preferred leader first. None: back to where the replicas were before the move that is under way.
    pub nodes: Vec<NodeId>,
    /// Random ids, one for each node: for those that have no replica yet.
    pub replica_ids: Vec<ReplicaId>,
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

impl fmt::Display for TopicRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopicRef::Name(name) => f.write_str(name),
            TopicRef::Id(id) => write!(f, "with the id {}", id.0),
        }
    }
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
    /// The broker is cordoned or not, or is gone, as asked.
    BrokerChanged,
    /// One answer for each move, in the order of the command.
    PartitionsMoved(Vec<Result<(), CatalogError>>),
    /// The partition is settled.
    ReplicasSettled,
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
            | CommandOutcome::BrokerChanged
            | CommandOutcome::TopicChanged(_)
            | CommandOutcome::ReplicasSettled
            | CommandOutcome::BrokerConfigsChanged => true,
            CommandOutcome::TopicsCreated(results) => results.iter().any(Result::is_ok),
            CommandOutcome::TopicsDeleted(results) => results.iter().any(Result::is_ok),
            CommandOutcome::PartitionsMoved(results) => results.iter().any(Result::is_ok),
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
