//! The replicas of read-only nodes: one on each of them of every partition whose topic is not internal.
//!
//! Nobody votes there, so nobody plans where they are: they come with the node or with the partition, whichever is the later,
//! and go with either. Their ids follow from random ones, of the registration or of the partition's other replicas.

use std::sync::Arc;

use chronik_engine::ids::{NodeId, ReplicaId};

use super::moves::new_replica_id;
use super::{Broker, Catalog, NewPartition, Partition, Topic};

impl Catalog {
    /// The brokers that are read-only.
    pub fn read_only_brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values().filter(|broker| broker.is_read_only)
    }

    /// Gives a new partition a replica on each read-only node, and counts it.
    pub(super) fn place_readers(&mut self, partition: &mut Partition, new: &NewPartition) {
        let nodes: Vec<NodeId> = self.read_only_brokers().map(|broker| broker.node).collect();
        let seed = new.replicas.first().copied().unwrap_or(ReplicaId::NONE).0;
        for node in nodes {
            let replica = new_replica_id(seed, partition);
            partition.readers.push(self.place(node, replica));
        }
    }

    /// A read-only node is new: it gets its replica of every partition.
    pub(super) fn add_readers_on(&mut self, node: NodeId, seed: u64) {
        for topic in self.user_topics() {
            let mut changed = Vec::with_capacity(topic.partitions.len());
            for (number, partition) in topic.partitions.iter().enumerate() {
                let mut new = partition.clone();
                // Counted here, so that the next one comes to another shard.
                new.readers.push(self.place(node, new_replica_id(seed, partition)));
                changed.push((number, new));
            }
            for placement in changed.iter().filter_map(|(_, new)| new.readers.last()) {
                self.uncount(placement);
            }
            self.replace_partitions(&topic, changed);
        }
    }

    /// A read-only node goes, with all that it has.
    pub(super) fn remove_readers_on(&mut self, node: NodeId) {
        if self.brokers.get(&node).is_none_or(|broker| !broker.is_read_only) {
            return;
        }
        for topic in self.user_topics() {
            let changed = topic.partitions.iter().enumerate().map(|(number, partition)| {
                let mut new = partition.clone();
                new.readers.retain(|reader| reader.node != node);
                (number, new)
            });
            self.replace_partitions(&topic, changed.collect::<Vec<_>>());
        }
        assert!(
            self.replicas_on(node) == 0,
            "I6: node {node} has more than its read-only replicas"
        );
    }

    fn user_topics(&self) -> Vec<Arc<Topic>> {
        self.topics.values().filter(|topic| !topic.internal).map(Arc::clone).collect()
    }
}
