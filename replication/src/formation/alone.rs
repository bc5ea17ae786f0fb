//! A cluster that begins with one node, which no other has to agree to; and nodes without a list that start again.
//!
//! A node that was there before its cluster, alone, goes on as its first: the cluster is named as the node's data is, and
//! the only replica of `__meta` is the one that the node has. That one's id follows from the disk, so it is known before
//! the log is read.
//!
//! - I1: what a node is in its cluster is durable before the node has a part in it.

use std::path::Path;

use chronik_engine::ids::{NodeId, ReplicaId};

use super::decree::{Formation, Member};
use super::durable::{Durable, Formed, Membership, Way};
use super::error::FormError;
use super::ids::{ClusterUuid, NodeUuid};
use super::list::{ListedNode, NodeList};
use super::run::FormedCluster;
use super::seal::Seal;
use super::store::FormationStore;

/// The replica of `__meta` on a node that is alone: as random as the name of its disk.
#[must_use]
pub fn sole_replica(node_uuid: NodeUuid) -> ReplicaId {
    let bytes = node_uuid.0.to_be_bytes();
    let (high, low) = bytes.split_at(8);
    let folded = high.iter().zip(low).fold(0_u64, |id, (a, b)| id << 8 | u64::from(a ^ b));
    ReplicaId(folded.max(1))
}

/// Whether the node of a data directory is in a cluster, or on its way there, by a list of nodes.
///
/// # Errors
/// The file that says so cannot be used.
pub fn came_by_list(data_dir: &Path, own: NodeId) -> Result<bool, FormError> {
    let found = FormationStore::new(data_dir).load(own)?;
    Ok(found.is_some_and(|durable| durable.way == Way::List))
}

/// Whether the node of a data directory has been part of a cluster.
///
/// # Errors
/// The file that says so cannot be used.
pub fn has_formed(data_dir: &Path, own: NodeId) -> Result<bool, FormError> {
    let found = FormationStore::new(data_dir).load(own)?;
    Ok(found.is_some_and(|durable| durable.formed.is_some()))
}

/// The node of a data directory is in no cluster any more, but alone: to be called once nobody else belongs to its cluster.
///
/// # Errors
/// It is not durable.
pub fn leave(data_dir: &Path) -> Result<(), FormError> {
    Ok(FormationStore::new(data_dir).remove()?)
}

/// Begins a cluster with this node alone, unless it is in one: then it goes on there.
///
/// # Errors
/// It is not durable; or the node was about to join another cluster.
pub fn begin_alone(
    own: ListedNode,
    node_uuid: NodeUuid,
    cluster: ClusterUuid,
    data_dir: &Path,
    seal: Seal,
) -> Result<(FormedCluster, Vec<ListedNode>), FormError> {
    let store = FormationStore::new(data_dir);
    if store.load(own.id)?.is_some() {
        tracing::info!("cluster.bootstrap has no effect: this node is part of a cluster already");
        return go_on(own, data_dir, seal);
    }
    let replica = sole_replica(node_uuid);
    let members = vec![Member { node: own.id, node_uuid, replica }];
    let formation = Formation { cluster, members };
    let formed = Formed { formation, own: Membership::Member { replica } };
    let begun =
        Durable { way: Way::Alone, formed: Some(formed), ..Durable::empty(own.id, node_uuid) };
    store.save(&begun)?;
    entered(begun, own, data_dir, seal)
}

/// Goes on in the cluster that this node is in, as its file says.
///
/// # Errors
/// The file cannot be used, or says that the node is in none yet.
pub fn go_on(
    own: ListedNode,
    data_dir: &Path,
    seal: Seal,
) -> Result<(FormedCluster, Vec<ListedNode>), FormError> {
    let found = FormationStore::new(data_dir).load(own.id)?;
    let found = found.ok_or_else(|| FormError::WasJoining { path: data_dir.to_path_buf() })?;
    entered(found, own, data_dir, seal)
}

/// What a node without a list starts with, and the nodes that it knows from when it joined.
pub(super) fn entered(
    durable: Durable,
    own: ListedNode,
    data_dir: &Path,
    seal: Seal,
) -> Result<(FormedCluster, Vec<ListedNode>), FormError> {
    let node = own.id;
    // It stands for a list where others ask for one.
    let list = NodeList::new(vec![own], node)?;
    let (Some(formed), Some(answerer)) = (durable.formed.clone(), durable.answerer(list, seal))
    else {
        return Err(FormError::WasJoining { path: data_dir.to_path_buf() });
    };
    let peers = match durable.way {
        Way::Joins { peers, .. } => peers,
        Way::List | Way::Alone => Vec::new(),
    };
    Ok((FormedCluster { node_uuid: durable.node_uuid, formed, answerer }, peers))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn own() -> ListedNode {
        ListedNode { id: NodeId(4), raft_addr: "a:1".to_owned() }
    }

    #[test]
    fn given_an_empty_directory_when_begun_and_started_again_then_the_cluster_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |uuid, cluster| {
            begin_alone(own(), NodeUuid(uuid), ClusterUuid(cluster), dir.path(), Seal::default())
        };
        let (begun, peers) = begin(7, 9).unwrap();
        assert_eq!(begun.formed.formation.cluster, ClusterUuid(9));
        assert_eq!(begun.formed.own, Membership::Member { replica: sole_replica(NodeUuid(7)) });
        assert!(peers.is_empty());
        assert!(!came_by_list(dir.path(), NodeId(4)).unwrap());
        let (again, _) = begin(8, 10).unwrap();
        assert_eq!((again.node_uuid, &again.formed), (NodeUuid(7), &begun.formed));
        let (again, _) = go_on(own(), dir.path(), Seal::default()).unwrap();
        assert_eq!(again.formed, begun.formed);
    }

    #[test]
    fn given_a_node_of_a_cluster_when_it_leaves_then_it_is_in_none_and_may_begin_another() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_formed(dir.path(), NodeId(4)).unwrap());
        let begin = || {
            begin_alone(own(), NodeUuid(7), ClusterUuid(9), dir.path(), Seal::default()).unwrap()
        };
        let (begun, _) = begin();
        assert!(has_formed(dir.path(), NodeId(4)).unwrap());
        leave(dir.path()).unwrap();
        assert!(!has_formed(dir.path(), NodeId(4)).unwrap());
        leave(dir.path()).unwrap();
        assert_eq!(begin().0.formed, begun.formed);
    }

    #[test]
    fn given_a_node_that_was_not_taken_in_when_it_starts_otherwise_then_it_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let way = Way::Joins { replica: ReplicaId(3), peers: Vec::new() };
        let asked = Durable { way, ..Durable::empty(NodeId(4), NodeUuid(7)) };
        FormationStore::new(dir.path()).save(&asked).unwrap();
        let (uuid, cluster) = (NodeUuid(7), ClusterUuid(9));
        let refused = begin_alone(own(), uuid, cluster, dir.path(), Seal::default()).unwrap_err();
        assert!(refused.to_string().contains("--join"), "{refused}");
        let refused = go_on(own(), dir.path(), Seal::default()).unwrap_err();
        assert!(matches!(refused, FormError::WasJoining { .. }), "{refused}");
    }

    #[test]
    fn given_names_of_disks_when_replicas_follow_from_them_then_none_is_none() {
        assert_eq!(sole_replica(NodeUuid(0)), ReplicaId(1));
        assert_ne!(sole_replica(NodeUuid(0)), ReplicaId::NONE);
        assert_ne!(sole_replica(NodeUuid(1 << 64 | 2)), sole_replica(NodeUuid(2)));
    }
}
