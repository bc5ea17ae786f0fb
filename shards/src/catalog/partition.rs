//! A partition as the catalog has it: its Raft group, where its replicas are, and where they are to be.
//!
//! A replica goes by its Raft id, which belongs to one disk and is never given out again. What a partition is to have
//! stands in `replicas`; the other lists are the way there, and empty once the leader has said that Raft's members are
//! those. Raft's members are no part of the catalog: whoever leads brings them to what stands here.
//!
//! - I1: no two of `replicas` are on one node, and no replica id stands in two places.
//! - I2: `adding` holds ids of `replicas` alone.
//! - I3: where a node has a replica in `removing` and another one in `replicas`, the former went with the node's disk.
//!   Every other replica in the lists is, or is to be, on the disk that the catalog knows its node by.

use std::collections::BTreeSet;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId, Term};
use chronik_engine::segment::SegmentId;
use chronik_engine::wal::record::GroupMeta;
use uuid::Uuid;

use super::{Topic, TopicId};

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
    /// The replicas that it is to have; the first is the preferred leader.
    pub replicas: Vec<Placement>,
    /// Those of `replicas` that the group did not have when it was settled last.
    pub adding: Vec<ReplicaId>,
    /// Replicas that the group had when it was settled last, and is to have no more: they go once the others vote.
    pub removing: Vec<Placement>,
    /// Replicas that an earlier plan was to add: the group may have taken them in, so they are kept until it is settled.
    pub dropped: Vec<Placement>,
    /// The voters that the group's log begins with.
    pub initial_voters: Vec<ReplicaId>,
}

impl Partition {
    /// A new partition with these replicas.
    #[must_use]
    pub fn new(group: GroupId, replicas: Vec<Placement>) -> Partition {
        Partition {
            group,
            initial_voters: replicas.iter().map(|placement| placement.replica).collect(),
            replicas,
            adding: Vec::new(),
            removing: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// The node that should lead the partition, `None` if it has no replica.
    #[must_use]
    pub fn preferred_leader(&self) -> Option<NodeId> {
        self.replicas.first().map(|placement| placement.node)
    }

    /// All replicas that a node has or is to have, those that go included.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.replicas.iter().chain(&self.removing).chain(&self.dropped)
    }

    /// This partition's replica on `node`: the one that it is to have, else the one that goes.
    #[must_use]
    pub fn placement_on(&self, node: NodeId) -> Option<Placement> {
        self.placements().find(|placement| placement.node == node).copied()
    }

    /// Where a replica lives.
    #[must_use]
    pub fn placement_of(&self, replica: ReplicaId) -> Option<Placement> {
        self.placements().find(|placement| placement.replica == replica).copied()
    }

    /// Whether Raft's members are what the partition is to have, as far as the catalog knows.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.adding.is_empty() && self.removing.is_empty() && self.dropped.is_empty()
    }

    /// Whether the partition is to have other replicas than before: what Kafka calls a reassignment.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// Whether `placement` went with the disk of its node (I3).
    #[must_use]
    pub fn is_lost(&self, placement: &Placement) -> bool {
        let replaced = |other: &Placement| other.node == placement.node;
        self.removing.contains(placement) && self.replicas.iter().any(replaced)
    }

    /// Of a partition of two that was settled and then lost one with its disk, the replica that is left and the lost one.
    #[must_use]
    pub fn pair_with_lost(&self) -> Option<(Placement, ReplicaId)> {
        let [lost] = self.removing[..] else { return None };
        let [adding] = self.adding[..] else { return None };
        let (replaced, left): (Vec<Placement>, Vec<Placement>) =
            self.replicas.iter().partition(|placement| placement.node == lost.node);
        let ([replaced], [left]) = (&replaced[..], &left[..]) else { return None };
        let is_all = self.dropped.is_empty() && replaced.replica == adding;
        is_all.then_some((*left, lost.replica))
    }

    /// Whether I1 and I2 hold.
    #[must_use]
    pub fn is_coherent(&self) -> bool {
        let nodes: BTreeSet<NodeId> = self.replicas.iter().map(|p| p.node).collect();
        let ids: BTreeSet<ReplicaId> = self.placements().map(|p| p.replica).collect();
        let is_kept = |id: &ReplicaId| self.replicas.iter().any(|p| p.replica == *id);
        nodes.len() == self.replicas.len()
            && ids.len() == self.placements().count()
            && self.adding.iter().all(is_kept)
    }

    /// What the group's replica `placement` is told when it is made: whose log it is, and who belongs to the group. One
    /// that came later begins as a learner without a log; who the others are by now it learns from the leader.
    pub(super) fn group_meta(
        &self,
        topic: &Topic,
        number: usize,
        placement: Placement,
    ) -> GroupMeta {
        let partition = u32::try_from(number).unwrap_or(u32::MAX);
        let is_initial = self.initial_voters.contains(&placement.replica);
        let (voters, learners) = if is_initial {
            (self.initial_voters.clone(), Vec::new())
        } else {
            (self.settled_voters(placement.replica), vec![placement.replica])
        };
        GroupMeta {
            replica: placement.replica,
            voters,
            learners,
            tag: PartitionTag { topic: topic.id, partition, kind: topic.kind() }.encode(),
            ..GroupMeta::default()
        }
    }

    /// Who voted when the group was settled last, but for one.
    fn settled_voters(&self, but: ReplicaId) -> Vec<ReplicaId> {
        let settled =
            self.replicas.iter().filter(|placement| !self.adding.contains(&placement.replica));
        let voters = settled.chain(&self.removing).map(|placement| placement.replica);
        voters.filter(|replica| *replica != but).collect()
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
