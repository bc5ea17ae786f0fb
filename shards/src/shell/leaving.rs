//! The way back from a cluster to a node without one, in place: the last node of a cluster starts without it.
//!
//! What belongs to the cluster is said by the node's own log, and nobody else is asked. If its replica of the catalog is the only
//! one there is, nothing is decided without it, and no other can join without an entry in this log. If it is not, there may be
//! others that go on: then the start fails.
//!
//! - I1: nothing is served, registered or published before it is certain that nobody else belongs to the cluster.
//! - I2: the cluster's formation is removed last. A start that ends before finds it again and does all this once more.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, NodeId, ShardId};
use chronik_replication::formation;
use chronik_ring::sleep;
use futures_lite::future::or;

use super::mesh::MeshRefused;
use super::run::RunError;
use super::shard::Shard;
use crate::catalog::Catalog;

/// How long partitions may take to be led, before they are looked at as they are.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who else belongs to a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Together {
    /// Others decide, or may.
    #[error("other nodes have replicas of the catalog, or may have, as far as this one knows")]
    Voters,
    /// Brokers.
    #[error("the catalog names node {node}")]
    Broker {
        /// One of them.
        node: NodeId,
    },
    /// Replicas.
    #[error("the catalog has a replica of {topic}-{partition} on node {node}")]
    Replica {
        /// The topic.
        topic: String,
        /// The partition.
        partition: usize,
        /// Where.
        node: NodeId,
    },
    /// A partition that has not come to where it is to be.
    #[error("{topic}-{partition} has not settled on its one replica")]
    Moving {
        /// The topic.
        topic: String,
        /// The partition.
        partition: usize,
    },
}

/// On the catalog's shard, as it starts: whether this replica of the catalog is the only one (I1). It is before it could lead.
///
/// # Errors
/// It is not, or cannot know.
pub(super) fn check_members(shard: &Shard) -> Result<(), RunError> {
    let leaves = shard.node.leaves_cluster;
    if leaves && !shard.with_core(|core| core.is_sole_member(GroupId::META)) {
        return Err(together(shard, Together::Voters));
    }
    Ok(())
}

/// Lets the node be alone from now on, where that is to be: once the catalog, of which nothing is missing, names nobody else.
///
/// # Errors
/// It names others, or the formation cannot be removed.
pub(super) async fn leave_cluster(shard: &Rc<Shard>) -> Result<(), RunError> {
    if !shard.node.leaves_cluster {
        return Ok(());
    }
    // A leader has applied all that was committed before its term.
    _ = shard.all_led(vec![GroupId::META]).await;
    let Some(catalog) = shard.with_core(|core| core.catalog()) else {
        return Err(together(shard, Together::Voters));
    };
    let unknown = |error: &dyn std::error::Error| RunError::Register { why: error.to_string() };
    let found = match others(&catalog, shard.node.config.node_id) {
        Some(found) => Some(found),
        None => members_elsewhere(shard, &catalog).await.map_err(|error| unknown(&error))?,
    };
    if let Some(found) = found {
        return Err(together(shard, found));
    }
    formation::leave(&shard.node.config.data_dir).map_err(|error| unknown(&error))?;
    tracing::info!(
        "the cluster of this data directory has no other node any more: from now on this node is alone, without a cluster"
    );
    Ok(())
}

/// The first partition whose group has members that its place in the catalog does not name any more: learners that nobody has taken
/// out yet, which nobody would on a node without links. A shard that does not answer is no answer (I1).
async fn members_elsewhere(
    shard: &Rc<Shard>,
    catalog: &Catalog,
) -> Result<Option<Together>, MeshRefused> {
    let mut on_shards: BTreeMap<ShardId, Vec<GroupId>> = BTreeMap::new();
    for partition in catalog.topics().flat_map(|topic| &topic.partitions) {
        for placement in partition.placements() {
            on_shards.entry(placement.shard).or_default().push(partition.group);
        }
    }
    for (at, groups) in on_shards {
        let found = shard.on(at, move |there| first_with_others(there, groups)).await?;
        let Some(group) = found else { continue };
        return Ok(catalog.topics().find_map(|topic| {
            let partition = topic.partitions.iter().position(|found| found.group == group)?;
            Some(Together::Moving { topic: topic.name.to_string(), partition })
        }));
    }
    Ok(None)
}

/// The first of these groups, which are on this shard, that has other members.
async fn first_with_others(shard: Rc<Shard>, groups: Vec<GroupId>) -> Option<GroupId> {
    // A leader has applied what was committed before its term, changes of the members among it.
    let led = shard.all_led(groups.clone());
    or(async { _ = led.await }, async { _ = sleep(PATIENCE).await }).await;
    shard.with_core(|core| core.first_shared(groups))
}

fn together(shard: &Shard, together: Together) -> RunError {
    let config = &shard.node.config;
    let back = settings_back(config.cluster.leave);
    RunError::Together { path: config.data_dir.clone(), together, back }
}

/// A node that came by a list leaves by having none; any other has none to give back.
fn settings_back(by_setting: bool) -> &'static str {
    match by_setting {
        true => "start it without cluster.leave",
        false => "give it cluster.nodes as before",
    }
}

/// The first of what a catalog names beside one node.
fn others(catalog: &Catalog, own: NodeId) -> Option<Together> {
    if let Some(other) = catalog.brokers().find(|broker| broker.node != own) {
        return Some(Together::Broker { node: other.node });
    }
    catalog.topics().find_map(|topic| {
        topic.partitions.iter().enumerate().find_map(|(partition, found)| {
            let topic = || topic.name.to_string();
            if let Some(elsewhere) = found.placements().find(|placement| placement.node != own) {
                let node = elsewhere.node;
                return Some(Together::Replica { topic: topic(), partition, node });
            }
            (!found.is_settled()).then(|| Together::Moving { topic: topic(), partition })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::samples::{broker, catalog_of};

    #[test]
    fn given_a_catalog_when_a_node_is_to_be_alone_then_no_other_node_may_be_in_it() {
        let alone = catalog_of([broker(1, 1)]);
        assert_eq!(others(&alone, NodeId(1)), None);
        assert_eq!(others(&alone, NodeId(2)), Some(Together::Broker { node: NodeId(1) }));
        let two = catalog_of([broker(1, 1), broker(3, 3)]);
        assert_eq!(others(&two, NodeId(1)), Some(Together::Broker { node: NodeId(3) }));
    }
}
