//! The way of a node into its cluster, between the checks and the first shard.
//!
//! It may take as long as the other nodes do. A signal ends it at once: nothing is under way that a kill could hurt.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chronik_replication::formation::{FormConfig, FormedCluster, ListedNode, Seal, form};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use uuid::Uuid;

use super::StartupError;
use crate::cli::Failure;
use crate::config::{ClusterNode, Config, Secret};
use crate::identity::{DataDir, Identity, LockedDir};

/// What a node of a cluster starts with.
#[derive(Debug)]
pub struct ClusterStart {
    /// How the cluster began, and what this node is in it.
    pub formed: FormedCluster,
    /// The nodes of the list.
    pub nodes: Vec<ClusterNode>,
    /// What all nodes know, if anything.
    pub secret: Option<Secret>,
}

/// Waits until this node is part of its cluster, and gives the data directory its identity.
///
/// # Errors
/// What must be corrected first, or that a signal came.
pub(super) fn enter(
    config: &Config,
    locked: LockedDir,
    shards: u16,
) -> Result<(DataDir, ClusterStart), Failure> {
    let nodes = config.cluster.nodes.clone();
    let secret = config.cluster.secret.clone();
    let named = locked.identity.as_ref().map(|identity| identity.node_uuid);
    let listed =
        nodes.iter().map(|node| ListedNode { id: node.id, raft_addr: node.raft_addr.to_string() });
    let form_config = FormConfig {
        own: config.node_id,
        node_uuid: named.unwrap_or_else(Uuid::new_v4).into(),
        nodes: listed.collect(),
        listen: config.raft_addr,
        data_dir: locked.path.clone(),
        seal: Seal::new(secret.as_ref().map(|secret| secret.as_bytes().to_vec())),
        probe_interval: Duration::from_millis(config.cluster.probe_interval_ms),
        draw: Box::new(rand::random::<u64>),
    };
    let formed = until_signal(|cancel| form(form_config, cancel))??;
    let node_uuid = formed.node_uuid.as_uuid();
    let cluster_uuid = formed.formed.formation.cluster.as_uuid();
    let new = || Identity::of_cluster(config.node_id, node_uuid, cluster_uuid, shards);
    let data_dir = locked.into_cluster_dir(node_uuid, cluster_uuid, new)?;
    tracing::info!(%cluster_uuid, members = formed.formed.formation.members.len(), own = ?formed.formed.own, "part of a cluster");
    Ok((data_dir, ClusterStart { formed, nodes, secret }))
}

/// Runs something that ends when a flag is set, which a signal to end does. Without this the first process of a
/// container would not hear of it.
fn until_signal<T>(run: impl FnOnce(&AtomicBool) -> T) -> Result<T, StartupError> {
    let cancel = Arc::new(AtomicBool::new(false));
    let failed = |source| StartupError::Signals { source };
    let mut registered = Vec::new();
    for signal in [SIGINT, SIGTERM] {
        registered.push(flag::register(signal, Arc::clone(&cancel)).map_err(failed)?);
    }
    let outcome = run(&cancel);
    for id in registered {
        low_level::unregister(id);
    }
    Ok(outcome)
}
