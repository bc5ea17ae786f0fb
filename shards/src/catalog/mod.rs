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
//! - I4: `topics` and `topic_names` hold the same topics; `load` counts exactly the placements in `topics`.
//! - I5: a command that is refused changes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId, Term};
use chronik_engine::segment::SegmentId;
use chronik_engine::wal::record::GroupMeta;
use uuid::Uuid;

mod apply;
mod broker_configs;
mod codec;
mod command;
mod name;
mod settings;

pub use broker_configs::{BrokerConfigs, broker_config_of, topic_config_of};
pub use codec::CatalogCodecError;
pub use command::{
    CatalogCommand, CatalogError, CommandOutcome, DeletedTopic, NewPartition, NewTopic,
    ProducerIdRange, TopicRef,
};
pub use name::{TOPIC_NAME_BYTES_MAX, is_internal_topic, topic_name_problem};
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
    /// Names a command that one node lets another propose: by it the first one finds its outcome in the log.
    CommandId
);

/// Where one replica of a partition lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Placement {
    /// The node.
    pub node: NodeId,
    /// The shard of that node.
    pub shard: ShardId,
    /// The replica's Raft id: new for every placement.
    pub replica: ReplicaId,
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Partition {
    /// Its Raft group.
    pub group: GroupId,
    /// Its replicas; the first is the preferred leader.
    pub replicas: Vec<Placement>,
}

impl Partition {
    /// The node that should lead the partition, `None` if it has no replica.
    #[must_use]
    pub fn preferred_leader(&self) -> Option<NodeId> {
        self.replicas.first().map(|placement| placement.node)
    }

    /// This partition's replica on `node`.
    #[must_use]
    pub fn placement_on(&self, node: NodeId) -> Option<Placement> {
        self.replicas.iter().find(|placement| placement.node == node).copied()
    }
}

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
}

/// An image of the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    cluster_id: Option<ClusterId>,
    brokers: BTreeMap<NodeId, Arc<Broker>>,
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

    /// The replicas that belong on one shard, each with what its group needs to be created there.
    pub fn placed_on(
        &self,
        node: NodeId,
        shard: ShardId,
    ) -> impl Iterator<Item = (GroupId, GroupMeta)> {
        self.topics.values().flat_map(move |topic| {
            topic.partitions.iter().enumerate().filter_map(move |(number, partition)| {
                let placement = partition.placement_on(node)?;
                (placement.shard == shard)
                    .then(|| (partition.group, group_meta(topic, number, partition, placement)))
            })
        })
    }
}

/// What a partition's group is told when it is created: its voters, and as tag whose log it is.
fn group_meta(
    topic: &Topic,
    number: usize,
    partition: &Partition,
    placement: Placement,
) -> GroupMeta {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    GroupMeta {
        replica: placement.replica,
        voters: partition.replicas.iter().map(|placement| placement.replica).collect(),
        learners: Vec::new(),
        tag: PartitionTag { topic: topic.id, partition: number, kind: topic.kind() }.encode(),
        ..GroupMeta::default()
    }
}

/// The tag in a partition's `GroupMeta`: lets the offline tools, which have no catalog, name the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionTag {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number.
    pub partition: u32,
    /// What its log drives.
    pub kind: PartitionKind,
}

/// What the log of a partition drives; for as long as the partition lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionKind {
    /// It holds records.
    Records,
    /// It holds the state of consumer groups.
    Groups,
}

impl PartitionTag {
    const BYTES: usize = 1 + 16 + 4;

    /// The kind as a byte, topic id, partition (little-endian).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.push(match self.kind {
            PartitionKind::Records => 1,
            PartitionKind::Groups => 2,
        });
        bytes.extend_from_slice(self.topic.0.as_bytes());
        bytes.extend_from_slice(&self.partition.to_le_bytes());
        bytes
    }

    /// Whose the partition's segments are, written in this term.
    #[must_use]
    pub fn segment_id(&self, cluster: Uuid, term: Term) -> SegmentId {
        SegmentId { cluster, topic: self.topic.0, partition: self.partition, term }
    }

    /// The tag in these bytes, `None` if they are not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<PartitionTag> {
        let (&kind, rest) = bytes.split_first()?;
        let (topic, partition) = rest.split_first_chunk::<16>()?;
        let kind = match kind {
            1 => PartitionKind::Records,
            2 => PartitionKind::Groups,
            _ => return None,
        };
        Some(PartitionTag {
            topic: TopicId(Uuid::from_bytes(*topic)),
            partition: u32::from_le_bytes(partition.try_into().ok()?),
            kind,
        })
    }
}

#[cfg(test)]
mod tests;
