//! The names of things and places: newtypes, so that a Kafka offset can never pass for a Raft index.
//!
//! There is no `From` between [`Offset`] and [`RaftIndex`]: an entry that is not a record batch (a Raft no-op, a
//! command) takes an index but no offset, so only the log index may translate one into the other.

use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, bincode::Encode, bincode::Decode)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

newtype!(
    /// A Kafka offset: the position of a record within its partition. Never negative when it names a record.
    Offset(i64), "o");
newtype!(
    /// The position of an entry within its Raft group's log. The first entry has index 1; 0 means "before the log".
    RaftIndex(u64), "i");
newtype!(
    /// A Raft term, which is also the partition's Kafka leader epoch.
    Term(u64), "t");
newtype!(
    /// A Raft group: one per partition, plus [`GroupId::META`]. Given out once, never reused.
    GroupId(u64), "g");
newtype!(
    /// The Raft id of one placement of a replica. Random and new for every placement, never the node id: a node that
    /// lost its disk must not vote a second time under an id that voted before. 0 means "nobody".
    ReplicaId(u64), "r");
newtype!(
    /// A node of the cluster, as operators and Kafka clients name it (Kafka's `broker.id`).
    NodeId(u32), "n");
newtype!(
    /// One shard of a node. The number of shards is fixed when the data directory is made.
    ShardId(u16), "s");
newtype!(
    /// The sequence number of a WAL file within its shard, from 1, never reused.
    FileSeq(u64), "f");
newtype!(
    /// The sequence number of a WAL block within its shard, from 1, one more for each block over all files.
    BlockSeq(u64), "b");

impl GroupId {
    /// The group whose log is the catalog of the cluster (`__meta`).
    pub const META: GroupId = GroupId(0);
}

impl ReplicaId {
    /// No replica: no vote cast, no leader known.
    pub const NONE: ReplicaId = ReplicaId(0);
}

impl RaftIndex {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> RaftIndex {
        RaftIndex(self.0 + 1)
    }
}

impl Offset {
    /// This offset moved on by `count` records.
    #[must_use]
    pub fn plus(self, count: u32) -> Offset {
        Offset(self.0 + i64::from(count))
    }
}
