//! A partition as the catalog has it: its Raft group, where its replicas are, and where they are to be.
//!
//! A replica goes by its Raft id, which belongs to one disk and is never given out again. What a partition is to have
//! stands in `replicas`; the other lists are the way there, and empty once the leader has said that Raft's members are
//! those. Raft's members are no part of the catalog: whoever leads brings them to what stands here.
//!
//! - I1: no two of `replicas` and `readers` are on one node, and no replica id stands in two places.
//! - I2: `adding` holds ids of `replicas` alone.
//! - I3: where a node has a replica in `removing` and another one in `replicas`, the former went with the node's disk, and
//!   so did those in `lost`. Every other replica in the lists is, or is to be, on the disk that the catalog knows its node by.
//! - I4: `readers` are on read-only nodes, and nothing else is. They never vote, so nobody waits for them: they come and go at
//!   once, and a partition is settled without them.

use std::collections::BTreeSet;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId, Term};
use chronik_engine::segment::SegmentId;
use chronik_engine::wal::record::GroupMeta;
use uuid::Uuid;

use super::{READ_ONLY_MAX, Topic, TopicId};

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
    /// Replicas that went with their disks and that nothing takes the place of: the group may have them as members, so they
    /// are named until it is settled. The newest of them, [`LOST_MAX`] at most.
    pub lost: Vec<ReplicaId>,
    /// Replicas for readers alone: learners of the group (I4).
    pub readers: Vec<Placement>,
    /// The voters that the group's log begins with.
    pub initial_voters: Vec<ReplicaId>,
}

/// Replicas of a partition that are remembered as lost. A group changes its members one plan at a time, so that it can
/// have in it what a few disks took along before it could be settled, and no more.
const LOST_MAX: usize = 16;

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
            lost: Vec::new(),
            readers: Vec::new(),
        }
    }

    /// The node that should lead the partition, `None` if it has no replica.
    #[must_use]
    pub fn preferred_leader(&self) -> Option<NodeId> {
        self.replicas.first().map(|placement| placement.node)
    }

    /// All replicas that a node has or is to have, those that go and those for readers included.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.voting().chain(&self.readers)
    }

    /// The same without those for readers: who votes, is to vote, or may have voted.
    pub fn voting(&self) -> impl Iterator<Item = &Placement> {
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
        self.adding.is_empty()
            && self.removing.is_empty()
            && self.dropped.is_empty()
            && self.lost.is_empty()
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

    /// The replicas that went with their disks and may be members of the group (I3).
    pub fn lost_replicas(&self) -> impl Iterator<Item = ReplicaId> {
        let replaced = self.removing.iter().filter(|placement| self.is_lost(placement));
        replaced.map(|placement| placement.replica).chain(self.lost.iter().copied())
    }

    /// The node of the only replica that the group had when it was settled last and still has, if others went with their
    /// disks: nothing can be decided without it, and until it has another one beside it nothing should.
    #[must_use]
    pub fn left_alone(&self) -> Option<NodeId> {
        let had =
            self.replicas.iter().filter(|placement| !self.adding.contains(&placement.replica));
        let goes = self.removing.iter().filter(|placement| !self.is_lost(placement));
        let mut left = had.chain(goes).map(|placement| placement.node);
        let only = left.next().filter(|_| left.next().is_none());
        only.filter(|_| self.lost_replicas().next().is_some())
    }

    /// Notes that a replica went with its disk and that nothing takes its place.
    pub(super) fn note_lost(&mut self, replica: ReplicaId) {
        if self.lost.len() >= LOST_MAX {
            self.lost.remove(0);
        }
        self.lost.push(replica);
    }

    /// Whether I1 and I2 hold.
    #[must_use]
    pub fn is_coherent(&self) -> bool {
        let kept = || self.replicas.iter().chain(&self.readers).map(|p| p.node);
        let nodes: BTreeSet<NodeId> = kept().collect();
        let named = || self.placements().map(|p| p.replica).chain(self.lost.iter().copied());
        let ids: BTreeSet<ReplicaId> = named().collect();
        let is_kept = |id: &ReplicaId| self.replicas.iter().any(|p| p.replica == *id);
        nodes.len() == kept().count()
            && self.readers.len() <= READ_ONLY_MAX
            && ids.len() == named().count()
            && self.lost.len() <= LOST_MAX
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
