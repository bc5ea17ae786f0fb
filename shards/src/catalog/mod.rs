//! The catalog: which topics, partitions and brokers the cluster has.
//!
//! It is the state machine of the META group: a [`CatalogCommand`] is proposed to that group's log and applied, in log
//! order, by every node. Readers on all cores hold an immutable image (`Arc<Catalog>`), replaced when it changes.
//!
//! Owns: names, ids, placements, topic configurations, brokers, the counters that ids are taken from, their encoding.
//! Never does: read a clock, draw a random number, look at a file. What is random in a command (topic ids, replica
//! ids) was drawn by whoever proposed it, so that all nodes apply the same.
//!
//! Invariants:
//! - I1: applying the same commands in the same order gives the same catalog on every node, byte for byte when encoded.
//! - I2: a `GroupId` is given out once and never again, also after its topic is deleted.
//! - I3: a producer id is given out once.
//! - I4: `topics` and `topic_names` hold the same topics; `load` counts exactly the placements in `topics`, those of
//!   replicas that go included.
//! - I5: a command that is refused changes nothing.
//! - I6: a node that is read-only has a replica of each partition of each topic that is not internal, one that does not
//!   vote, and no other. It is read-only, or is not, from its first registration until it is removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};
use chronik_engine::wal::record::GroupMeta;
use uuid::Uuid;

mod apply;
mod broker_configs;
mod brokers;
mod codec;
mod command;
mod error;
mod moves;
mod name;
mod partition;
mod place;
mod readers;
mod settings;

pub use broker_configs::{
    BrokerConfigs, broker_config_definition, broker_config_of, broker_only_configs, topic_config_of,
};
pub use codec::CatalogCodecError;
pub use command::{
    CatalogCommand, CommandOutcome, DeletedTopic, NewPartition, NewTopic, PartitionMove,
    ProducerIdRange, TopicRef,
};
pub use error::{AssignmentProblem, CatalogError, Role};
pub use name::{TOPIC_NAME_BYTES_MAX, is_internal_topic, topic_name_problem};
pub use partition::{Partition, PartitionKind, PartitionTag, Placement};
pub use settings::{
    CleanupPolicy, ConfigDefinition, ConfigProblem, ConfigType, Durability, TimestampType,
    TopicSettings, config_definition, config_definitions,
};

/// Partitions a topic may have.
pub const TOPIC_PARTITIONS_MAX: usize = 10_000;
/// Partitions a cluster may have over all topics.
pub const CATALOG_PARTITIONS_MAX: usize = 200_000;
/// Configuration overrides a topic may have, and the bytes of one value.
pub const TOPIC_CONFIGS_MAX: usize = 128;
/// Longest value of one topic configuration, in bytes.
pub const TOPIC_CONFIG_VALUE_BYTES_MAX: usize = 4096;
/// Brokers a cluster may have.
pub const BROKERS_MAX: usize = 1_000;
/// Disks of nodes that are remembered after another one took their place; then the oldest is forgotten.
pub const RETIRED_MAX: usize = 1_000;
/// Replicas a partition may have, those that come and go included: Raft has no more members.
pub const PARTITION_REPLICAS_MAX: usize = 32;
/// Read-only nodes a cluster may have: each is one more member of every group.
pub const READ_ONLY_MAX: usize = 16;
/// Producer ids that one command may take.
pub const PRODUCER_ID_BLOCK_MAX: u32 = 100_000;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl bincode::Encode for $name {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                self.0.as_bytes().encode(encoder)
            }
        }

        impl<Context> bincode::Decode<Context> for $name {
            fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                <[u8; 16]>::decode(decoder).map(|bytes| $name(Uuid::from_bytes(bytes)))
            }
        }

        bincode::impl_borrow_decode!($name);
    };
}

uuid_newtype!(
    /// A topic's id. Given by the proposer of its creation, random (UUID v4); a topic created again gets another.
    TopicId
);
uuid_newtype!(
    /// The cluster's id.
    ClusterId
);

uuid_newtype!(
    /// A disk of a node: drawn when its data directory is made, another one after that was wiped.
    Incarnation
);

uuid_newtype!(
    /// Names a command that one node lets another propose: by it the first one finds its outcome in the log.
    CommandId
);

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub id: TopicId,
    /// Whether the cluster made it for itself.
    pub internal: bool,
    /// Its partitions; the place in the list is the partition's number.
    pub partitions: Vec<Partition>,
    /// The configurations set on the topic, by name, each of them valid.
    pub configs: BTreeMap<String, String>,
    /// What `configs` and the defaults come to.
    pub settings: TopicSettings,
    /// It has been [`Durability::Relaxed`] at some time: its replicas may have promised what is in their memory. That is never
    /// forgotten, as a node may have been away since before.
    pub was_relaxed: bool,
}

impl Topic {
    /// What the logs of its partitions drive.
    #[must_use]
    pub fn kind(&self) -> PartitionKind {
        let is_groups = self.internal && *self.name == *crate::groups::OFFSETS_TOPIC;
        if is_groups { PartitionKind::Groups } else { PartitionKind::Records }
    }

    /// The partition with this number.
    #[must_use]
    pub fn partition(&self, number: i32) -> Option<&Partition> {
        usize::try_from(number).ok().and_then(|number| self.partitions.get(number))
    }
}

/// A node that serves Kafka clients.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Broker {
    /// Its id.
    pub node: NodeId,
    /// The host that clients connect to.
    pub host: String,
    /// The port that clients connect to.
    pub port: u16,
    /// Where it stands, for rack-aware clients.
    pub rack: Option<String>,
    /// How many shards it has.
    pub shards: u16,
    /// The disk that it runs on: replicas placed on the node are on this one.
    pub incarnation: Incarnation,
    /// Its replica of the catalog.
    pub meta_replica: ReplicaId,
    /// Where other nodes reach it.
    pub raft_addr: String,
    /// It gets no new replicas, and leads only what nobody else can. Registrations do not change it.
    pub is_cordoned: bool,
    /// It has replicas for readers alone, which neither vote nor lead (I6 of the module).
    pub is_read_only: bool,
}

/// An image of the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    cluster_id: Option<ClusterId>,
    brokers: BTreeMap<NodeId, Arc<Broker>>,
    /// Disks that do not count any more: that of a node which runs on another one, or is none of the cluster's now.
    retired: VecDeque<Incarnation>,
    topics: BTreeMap<TopicId, Arc<Topic>>,
    topic_names: BTreeMap<Arc<str>, Arc<Topic>>,
    next_group: u64,
    next_producer_id: i64,
    partition_count: usize,
    load: BTreeMap<(NodeId, ShardId), u32>,
    broker_configs: BrokerConfigs,
}

impl Catalog {
    /// The catalog before any command: no cluster id, no brokers, no topics.
    #[must_use]
    pub fn new() -> Catalog {
        Catalog { next_group: GroupId::META.0 + 1, ..Catalog::default() }
    }

    /// The cluster's id, once the first broker has registered.
    #[must_use]
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    /// The brokers in the order of their ids.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    /// One broker.
    #[must_use]
    pub fn broker(&self, node: NodeId) -> Option<&Arc<Broker>> {
        self.brokers.get(&node)
    }

    /// Whether this catalog is new enough to know what became of a group: one that it does not name is deleted then.
    #[must_use]
    pub fn has_given_out(&self, group: GroupId) -> bool {
        group < self.next_group()
    }

    /// Whether a partition had this Raft group once, and was deleted: there may be another one by its name and number.
    #[must_use]
    pub fn is_gone(&self, topic: &str, partition: i32, raft_group: GroupId) -> bool {
        let named = self.topic(topic).and_then(|topic| topic.partition(partition));
        let is_there = named.is_some_and(|partition| partition.group == raft_group);
        !is_there && self.has_given_out(raft_group)
    }

    /// Whether a topic is not there any more that was in `earlier`.
    #[must_use]
    pub fn has_deleted_since(&self, earlier: &Catalog) -> bool {
        earlier.topics.keys().any(|topic| !self.topics.contains_key(topic))
    }

    /// The group that is given out next.
    #[must_use]
    pub fn next_group(&self) -> GroupId {
        GroupId(self.next_group)
    }

    /// What brokers were given while they run.
    #[must_use]
    pub fn broker_configs(&self) -> &BrokerConfigs {
        &self.broker_configs
    }

    /// The topics in the order of their names.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<Topic>> {
        self.topic_names.values()
    }

    /// The topic with this name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topic_names.get(name)
    }

    /// The topic with this id.
    #[must_use]
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(&id)
    }

    /// How many partitions all topics have together.
    #[must_use]
    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// The partition that has this group: its topic, and its number there.
    #[must_use]
    pub fn partition_of(&self, group: GroupId) -> Option<(&Arc<Topic>, usize)> {
        // Groups are given out in ascending order, so those of a topic ascend with the partitions' numbers.
        self.topics.values().find_map(|topic| {
            let found = topic.partitions.binary_search_by_key(&group, |p| p.group).ok()?;
            Some((topic, found))
        })
    }

    /// The groups with a replica on one shard of which others went with their disks, and those.
    #[must_use]
    pub fn lost_beside(
        &self,
        node: NodeId,
        shard: ShardId,
    ) -> BTreeMap<GroupId, BTreeSet<ReplicaId>> {
        let partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        partitions
            .filter(|partition| !partition.is_settled())
            // Who does not vote answers for nobody.
            .filter(|p| p.voting().any(|place| place.node == node && place.shard == shard))
            .map(|partition| (partition.group, partition.lost_replicas().collect()))
            .filter(|(_, lost): &(GroupId, BTreeSet<ReplicaId>)| !lost.is_empty())
            .collect()
    }

    /// The groups whose acknowledgements promise memory only, or once did, and what they promise now.
    pub fn relaxed_groups(&self) -> impl Iterator<Item = (GroupId, Durability)> {
        self.topics.values().filter(|topic| topic.was_relaxed).flat_map(|topic| {
            let durability = topic.settings.durability;
            topic.partitions.iter().map(move |partition| (partition.group, durability))
        })
    }

    /// The replicas that belong on one shard, each with what its group needs to be created there. Those that go belong
    /// there, too, until the partition is settled.
    pub fn placed_on(
        &self,
        node: NodeId,
        shard: ShardId,
    ) -> impl Iterator<Item = (GroupId, GroupMeta)> {
        self.topics.values().flat_map(move |topic| {
            topic.partitions.iter().enumerate().filter_map(move |(number, partition)| {
                let placement = partition.placement_on(node)?;
                (placement.shard == shard)
                    .then(|| (partition.group, partition.group_meta(topic, number, placement)))
            })
        })
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
