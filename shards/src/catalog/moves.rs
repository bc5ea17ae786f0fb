//! How the replicas of a partition come to other nodes, or to another disk of the same node.
//!
//! The catalog only says what is to be; the leader of the partition's group brings Raft's members there, and says so by
//! [`super::CatalogCommand::ReplicasSettled`]. Until then all that the group may have taken in stays named, so that no
//! replica is deleted that a quorum may need.
//!
//! What the lists of a partition mean stands in [`Partition`].

use std::collections::BTreeSet;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};

use super::{
    AssignmentProblem, Catalog, CatalogError, Partition, PartitionMove, Placement, Topic, TopicRef,
};

impl Catalog {
    pub(super) fn move_partition(&mut self, wanted: &PartitionMove) -> Result<(), CatalogError> {
        let unknown = || CatalogError::UnknownTopic { topic: wanted.topic.clone() };
        let topic = match &wanted.topic {
            TopicRef::Name(name) => self.topic_names.get(name.as_str()),
            TopicRef::Id(id) => self.topics.get(id),
        };
        let topic = Arc::clone(topic.ok_or_else(unknown)?);
        let number = usize::try_from(wanted.partition).map_err(|_| unknown())?;
        let old = topic.partitions.get(number).ok_or_else(unknown)?;
        let new = if wanted.nodes.is_empty() {
            cancelled(old).ok_or(CatalogError::NoReassignmentInProgress)?
        } else {
            self.check_nodes(&wanted.nodes, &wanted.replica_ids, Some(old))?;
            check_left(old, &wanted.nodes)?;
            self.moved(old, &wanted.nodes, &wanted.replica_ids)
        };
        self.replace_partitions(&topic, [(number, new)]);
        Ok(())
    }

    /// The partition on these nodes. A node keeps the replica that it has, one that was about to go included.
    fn moved(&mut self, old: &Partition, nodes: &[NodeId], replica_ids: &[ReplicaId]) -> Partition {
        let mut new = Partition { replicas: Vec::new(), adding: Vec::new(), ..old.clone() };
        for (node, replica_id) in nodes.iter().zip(replica_ids) {
            let (placement, is_adding) = match old.placement_on(*node) {
                Some(placement) => {
                    let was_settled = !old.adding.contains(&placement.replica)
                        && !old.dropped.contains(&placement);
                    (placement, !was_settled)
                }
                None => {
                    // Counted with the others by whoever puts the new partition in the place of the old one.
                    let placement = self.place(*node, *replica_id);
                    self.uncount(&placement);
                    (placement, true)
                }
            };
            new.replicas.push(placement);
            if is_adding {
                new.adding.push(placement.replica);
            }
        }
        let stays = |placement: &Placement| new.replicas.contains(placement);
        new.removing.retain(|placement| !stays(placement));
        new.dropped.retain(|placement| !stays(placement));
        for placement in old.replicas.iter().filter(|placement| !stays(placement)) {
            let was_adding = old.adding.contains(&placement.replica);
            if was_adding { &mut new.dropped } else { &mut new.removing }.push(*placement);
        }
        // What went with a disk has a place only beside what takes it (I3 of partition).
        let has = |node| new.replicas.iter().any(|placement: &Placement| placement.node == node);
        let stays = |placement: &Placement| has(placement.node) || !old.is_lost(placement);
        let (removing, lost): (Vec<Placement>, Vec<Placement>) =
            new.removing.iter().partition(|placement| stays(placement));
        new.removing = removing;
        lost.iter().for_each(|placement| new.note_lost(placement.replica));
        new
    }

    pub(super) fn settle_replicas(
        &mut self,
        group: GroupId,
        replicas: &[ReplicaId],
    ) -> Result<(), CatalogError> {
        let other = CatalogError::OtherReplicas { group };
        let Some((topic, number)) = self.partition_of(group) else { return Err(other) };
        let topic = Arc::clone(topic);
        let Some(old) = topic.partitions.get(number) else { return Err(other) };
        let wanted: BTreeSet<ReplicaId> = old.replicas.iter().map(|p| p.replica).collect();
        let are_wanted = wanted.iter().eq(replicas.iter().collect::<BTreeSet<_>>());
        if old.is_settled() || !are_wanted {
            return Err(other);
        }
        let initial_voters = old.initial_voters.clone();
        let readers = old.readers.clone();
        let new =
            Partition { initial_voters, readers, ..Partition::new(group, old.replicas.clone()) };
        self.replace_partitions(&topic, [(number, new)]);
        Ok(())
    }

    /// The node runs on another disk, which has none of the replicas that were placed on it: each gets another id.
    pub(super) fn replace_replicas_of(&mut self, node: NodeId, seed: u64) {
        let is_there = |partition: &Partition| partition.placement_on(node).is_some();
        let shards = self.brokers.get(&node).map_or(1, |broker| broker.shards);
        let topics: Vec<Arc<Topic>> = self.topics.values().map(Arc::clone).collect();
        for topic in topics {
            let changed: Vec<(usize, Partition)> = (topic.partitions.iter().enumerate())
                .filter(|(_, partition)| is_there(partition))
                .map(|(number, partition)| (number, replaced_on(partition, node, shards, seed)))
                .collect();
            if !changed.is_empty() {
                self.replace_partitions(&topic, changed);
            }
        }
    }

    pub(super) fn replace_partitions(
        &mut self,
        topic: &Topic,
        changed: impl IntoIterator<Item = (usize, Partition)>,
    ) {
        let mut new = topic.clone();
        for (number, partition) in changed {
            for placement in partition.placements() {
                self.count(placement);
            }
            for placement in topic.partitions[number].placements() {
                self.uncount(placement);
            }
            new.partitions[number] = partition;
        }
        self.replace_topic(topic, new);
    }
}

/// Of a replica that is left alone nothing may be taken but what it agrees to: it and one more decide nothing without it,
/// so that it finds its way on from its own log after a crash (`core::lost`).
fn check_left(old: &Partition, nodes: &[NodeId]) -> Result<(), AssignmentProblem> {
    let keeps = |left: &NodeId| nodes.contains(left) && nodes.len() <= 2;
    match old.left_alone().filter(|left| !keeps(left)) {
        Some(left) => Err(AssignmentProblem::LeftAlone { left }),
        None => Ok(()),
    }
}

/// The partition as it was before the move that is under way, `None` if none is. What takes the place of a replica that
/// went with its disk stays. Where one of those before went and nothing takes its place, there is no way back.
fn cancelled(old: &Partition) -> Option<Partition> {
    let replaces =
        |placement: &Placement| old.removing.iter().any(|lost| lost.node == placement.node);
    let (kept, dropped): (Vec<Placement>, Vec<Placement>) = old
        .replicas
        .iter()
        .partition(|placement| !old.adding.contains(&placement.replica) || replaces(placement));
    let (lost, back): (Vec<Placement>, Vec<Placement>) =
        old.removing.iter().partition(|placement| old.is_lost(placement));
    let count = kept.len() + back.len();
    let is_short = !old.lost.is_empty() && count < old.replicas.len();
    if (dropped.is_empty() && back.is_empty()) || count == 0 || is_short {
        return None;
    }
    let mut new = Partition { replicas: kept, removing: lost, ..old.clone() };
    new.replicas.extend(back);
    new.adding.retain(|replica| new.replicas.iter().any(|p| p.replica == *replica));
    new.dropped.extend(dropped);
    Some(new)
}

/// The partition with another replica in the place of that which went with the node's disk.
fn replaced_on(old: &Partition, node: NodeId, shards: u16, seed: u64) -> Partition {
    let mut new = old.clone();
    let on_shards =
        |shard: ShardId| if shard.0 < shards { shard } else { ShardId(shard.0 % shards) };
    if let Some(reader) = new.readers.iter_mut().find(|reader| reader.node == node) {
        let (shard, replica) = (on_shards(reader.shard), new_replica_id(seed, old));
        *reader = Placement { node, shard, replica };
        return new;
    }
    new.dropped.retain(|placement| placement.node != node);
    let goes = |placement: &&Placement| placement.node == node;
    old.dropped.iter().filter(goes).for_each(|placement| new.note_lost(placement.replica));
    let Some(at) = new.replicas.iter().position(|placement| placement.node == node) else {
        new.removing.retain(|placement| placement.node != node);
        old.removing.iter().filter(goes).for_each(|placement| new.note_lost(placement.replica));
        return new;
    };
    let lost = new.replicas[at];
    let replica = new_replica_id(seed, old);
    new.replicas[at] = Placement { node, shard: on_shards(lost.shard), replica };
    if old.adding.contains(&lost.replica) {
        new.adding.retain(|adding| *adding != lost.replica);
        new.note_lost(lost.replica);
    } else {
        new.removing.push(lost);
    }
    new.adding.push(replica);
    new
}

/// A replica id out of a random seed, another one for each group (SplitMix64), that the partition does not have.
pub(super) fn new_replica_id(seed: u64, partition: &Partition) -> ReplicaId {
    let mut state = seed.wrapping_add(partition.group.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    loop {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut id = state;
        id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let id = ReplicaId(id ^ (id >> 31));
        let is_initial = partition.initial_voters.contains(&id);
        let is_named = partition.placement_of(id).is_some() || partition.lost.contains(&id);
        if id != ReplicaId::NONE && !is_initial && !is_named {
            return id;
        }
    }
}
