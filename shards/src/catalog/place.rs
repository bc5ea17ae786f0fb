//! Where new replicas are put, and how many there are on each shard.
//!
//! A choice is a function of the catalog alone, ties go to the lowest node and shard, so that all nodes choose the same.
//! Brokers that are cordoned or read-only get nothing (what the latter have stands in `readers`). A partition's replicas are spread over racks first, then over brokers by what
//! they have, and of those the first, which is to lead, by what they are first in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};

use super::{
    AssignmentProblem, Broker, Catalog, NewPartition, PARTITION_REPLICAS_MAX, Partition, Placement,
    Topic,
};

impl Catalog {
    /// The brokers that take new replicas.
    pub fn open_brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values().filter(|broker| !broker.is_cordoned && !broker.is_read_only)
    }

    /// How many replicas are placed on a node, those that go included.
    #[must_use]
    pub fn replicas_on(&self, node: NodeId) -> usize {
        let shards = (node, ShardId(0))..=(node, ShardId(u16::MAX));
        let count: u64 = self.load.range(shards).map(|(_, count)| u64::from(*count)).sum();
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// Whether a partition can be placed on these nodes. `has` is the partition if it is there: where it has a replica,
    /// it may keep it.
    pub(super) fn check_nodes(
        &self,
        nodes: &[NodeId],
        replica_ids: &[ReplicaId],
        has: Option<&Partition>,
    ) -> Result<(), AssignmentProblem> {
        if nodes.is_empty() {
            return Err(AssignmentProblem::Empty);
        }
        let ids: BTreeSet<ReplicaId> = replica_ids.iter().copied().collect();
        let is_used = |replica| {
            has.is_some_and(|has| {
                has.placement_of(replica).is_some() || has.lost.contains(&replica)
            })
        };
        let are_new = !ids.contains(&ReplicaId::NONE) && !ids.iter().any(|id| is_used(*id));
        if ids.len() != nodes.len() || replica_ids.len() != nodes.len() || !are_new {
            let (nodes, replica_ids) = (nodes.len(), replica_ids.len());
            return Err(AssignmentProblem::ReplicaIds { nodes, replica_ids });
        }
        let replicas_max = PARTITION_REPLICAS_MAX;
        let goes = |placement: &&Placement| !nodes.contains(&placement.node);
        let replicas = nodes.len() + has.map_or(0, |has| has.voting().filter(goes).count());
        if replicas > replicas_max {
            return Err(AssignmentProblem::TooMany { replicas, replicas_max });
        }
        for (at, node) in nodes.iter().copied().enumerate() {
            let Some(broker) = self.brokers.get(&node) else {
                return Err(AssignmentProblem::UnknownBroker { node });
            };
            if nodes[..at].contains(&node) {
                return Err(AssignmentProblem::Twice { node });
            }
            let keeps = has.is_some_and(|has| has.placement_on(node).is_some());
            if broker.is_read_only {
                return Err(AssignmentProblem::ReadOnly { node });
            }
            if broker.is_cordoned && !keeps {
                return Err(AssignmentProblem::Cordoned { node });
            }
        }
        Ok(())
    }

    /// Gives each partition a group and places for its replicas, with one for each read-only node where they
    /// `have_readers`. All was checked before.
    pub(super) fn place_all(
        &mut self,
        added: &[NewPartition],
        avoid: &[NodeId],
        have_readers: bool,
    ) -> Vec<Partition> {
        let mut placed = Vec::with_capacity(added.len());
        let mut firsts = self.preferred_leaders();
        for new in added {
            let group = GroupId(self.next_group);
            self.next_group += 1;
            let replicas = if new.nodes.is_empty() {
                let mut replicas = self.place_by_load(&new.replicas, avoid);
                lead_first(&mut replicas, &firsts, avoid);
                replicas
            } else {
                let pairs = new.nodes.iter().zip(&new.replicas);
                pairs.map(|(node, replica)| self.place(*node, *replica)).collect()
            };
            assert!(replicas.len() == new.replicas.len(), "a replica of {group} has no place");
            if let Some(first) = replicas.first() {
                *firsts.entry(first.node).or_default() += 1;
            }
            let mut partition = Partition::new(group, replicas);
            if have_readers {
                self.place_readers(&mut partition, new);
            }
            placed.push(partition);
        }
        placed
    }

    /// How many partitions each node is the preferred leader of.
    fn preferred_leaders(&self) -> BTreeMap<NodeId, u64> {
        let mut firsts = BTreeMap::new();
        let partitions = self.topics().flat_map(|topic| &topic.partitions);
        for first in partitions.filter_map(|partition| partition.replicas.first()) {
            *firsts.entry(first.node).or_default() += 1;
        }
        firsts
    }

    /// Nodes to be avoided get something only if there are not enough others.
    fn place_by_load(&mut self, new: &[ReplicaId], avoid: &[NodeId]) -> Vec<Placement> {
        let others = self.open_brokers().filter(|broker| !avoid.contains(&broker.node)).count();
        let avoid = if others >= new.len() { avoid } else { &[] };
        let mut replicas: Vec<Placement> = Vec::with_capacity(new.len());
        for replica in new {
            let Some(node) = self.best_node(&replicas, avoid) else { break };
            replicas.push(self.place(node, *replica));
        }
        replicas
    }

    /// The node for one more replica of a partition that has `taken`: on the rack with the fewest of them, with the
    /// fewest replicas of all.
    fn best_node(&self, taken: &[Placement], avoid: &[NodeId]) -> Option<NodeId> {
        let rack_of =
            |node: &NodeId| self.brokers.get(node).and_then(|broker| broker.rack.as_ref());
        let same_rack = |broker: &Broker| {
            let Some(rack) = &broker.rack else { return 0 };
            taken.iter().filter(|placement| rack_of(&placement.node) == Some(rack)).count()
        };
        let is_free = |node| taken.iter().all(|placement| placement.node != node);
        self.open_brokers()
            .filter(|broker| is_free(broker.node) && !avoid.contains(&broker.node))
            .min_by_key(|broker| (same_rack(broker), self.replicas_on(broker.node), broker.node))
            .map(|broker| broker.node)
    }

    /// Puts a replica on the shard of a node that has the fewest, and counts it.
    pub(super) fn place(&mut self, node: NodeId, replica: ReplicaId) -> Placement {
        let shards = self.brokers.get(&node).map_or(1, |broker| broker.shards).max(1);
        let load = |shard: &ShardId| self.load.get(&(node, *shard)).copied().unwrap_or(0);
        let shard = (0..shards).map(ShardId).min_by_key(|shard| (load(shard), *shard));
        let placement = Placement { node, shard: shard.unwrap_or_default(), replica };
        self.count(&placement);
        placement
    }

    pub(super) fn count(&mut self, placement: &Placement) {
        *self.load.entry((placement.node, placement.shard)).or_default() += 1;
    }

    pub(super) fn uncount(&mut self, placement: &Placement) {
        let place = (placement.node, placement.shard);
        let count = self.load.get(&place).copied().unwrap_or(0);
        assert!(count > 0, "I4: {place:?} is counted as empty");
        if count == 1 {
            self.load.remove(&place);
        } else {
            self.load.insert(place, count - 1);
        }
    }

    /// Counts the placements of a topic that was read back.
    pub(super) fn count_load(&mut self, topic: &Topic) {
        for placement in topic.partitions.iter().flat_map(Partition::placements) {
            self.count(placement);
        }
    }
}

/// Puts the replica first, which leads where it can, whose node is first in the fewest partitions: a rule that looks at the
/// partition alone keeps step with the choice of the nodes, and leaves some of them without any to lead. The others follow
/// by their nodes, round from there.
fn lead_first(replicas: &mut [Placement], firsts: &BTreeMap<NodeId, u64>, avoid: &[NodeId]) {
    replicas.sort_unstable_by_key(|placement| placement.node);
    let count = |node: NodeId| firsts.get(&node).copied().unwrap_or(0);
    let first = (0..replicas.len()).min_by_key(|at| {
        let node = replicas[*at].node;
        (avoid.contains(&node), count(node), node)
    });
    replicas.rotate_left(first.unwrap_or(0));
}
