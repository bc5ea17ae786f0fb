//! The way of a node into its cluster, between the checks and the first shard.
//!
//! It may take as long as the other nodes do. A signal ends it at once: nothing is under way that a kill could hurt.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chronik_replication::formation::{
    FormConfig, FormedCluster, Introduction, JoinConfig, ListedNode, NodeUuid, Seal, begin_alone,
    came_by_list, form, go_on, has_formed, join,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use uuid::Uuid;

use super::StartupError;
use crate::cli::Failure;
use crate::config::{Config, ConfigError, ConfigErrors, HostPort, Secret, secret_missing};
use crate::identity::{DataDir, Identity, IdentityError, LockedDir};

/// What a node of a cluster starts with.
#[derive(Debug)]
pub struct ClusterStart {
    /// How the cluster began, and what this node is in it.
    pub formed: FormedCluster,
    /// The nodes of the list; without one, those that this node was told of when it joined.
    pub nodes: Vec<ListedNode>,
    /// Whether they are a list.
    pub is_listed: bool,
    /// Where other nodes reach this one.
    pub raft_addr: String,
    /// What all nodes know, if anything.
    pub secret: Option<Secret>,
}

/// How a node comes into its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// By the list of its settings.
    List,
    /// It begins one.
    Alone,
    /// It asks at this address.
    Join(HostPort),
    /// It is in one, and its data directory says in which.
    AsBefore,
}

/// The way that the settings and the data directory say; none for a single node, and for one that leaves its cluster.
///
/// # Errors
/// They contradict each other.
pub(super) fn way(config: &Config, locked: &LockedDir) -> Result<Option<Way>, Failure> {
    let cluster = &config.cluster;
    if cluster.leave {
        return check_leaves(config, locked).map(|()| None);
    }
    if cluster.nodes.len() > 1 {
        locked.check_kind(true)?;
        return Ok(Some(Way::List));
    }
    let has_formation = locked.has_formation();
    if has_formation && came_by_list(&locked.path, config.node_id)? {
        if cluster.bootstrap || cluster.join.is_some() {
            return Err(IdentityError::ClusterNode { path: locked.path.clone() }.into());
        }
        return check_leaves(config, locked).map(|()| None);
    }
    let way = match &cluster.join {
        Some(address) => {
            locked.check_joins()?;
            Way::Join(address.clone())
        }
        None if cluster.bootstrap => Way::Alone,
        None if has_formation => Way::AsBefore,
        None => return check_alone(config).map(|()| None),
    };
    match secret_missing(config) {
        Some(missing) => Err(ConfigErrors(vec![missing]).into()),
        None => Ok(Some(way)),
    }
}

/// Whether the node may be alone from now on, as far as can be known before its log is read. One that was on its way into a
/// cluster may belong to it without knowing.
fn check_leaves(config: &Config, locked: &LockedDir) -> Result<(), Failure> {
    if locked.has_formation() && !has_formed(&locked.path, config.node_id)? {
        return Err(IdentityError::ClusterNode { path: locked.path.clone() }.into());
    }
    check_alone(config)
}

/// A node that stays alone cannot keep more than one replica of anything, and nobody would write for it.
fn check_alone(config: &Config) -> Result<(), Failure> {
    if config.cluster.read_only {
        return Err(ConfigErrors(vec![ConfigError::ReadOnlyAlone]).into());
    }
    let factor = config.kafka.default_replication_factor;
    let too_high = ConfigError::ReplicationFactorTooHigh { factor, nodes: 1 };
    if factor <= 1 { Ok(()) } else { Err(ConfigErrors(vec![too_high]).into()) }
}

/// Waits until this node is part of its cluster, and gives the data directory its identity.
///
/// # Errors
/// What must be corrected first, or that a signal came.
pub(super) fn enter(
    config: &Config,
    way: Way,
    locked: LockedDir,
    shards: u16,
) -> Result<(DataDir, ClusterStart), Failure> {
    let secret = config.cluster.secret.clone();
    let seal = Seal::new(secret.as_ref().map(|secret| secret.as_bytes().to_vec()));
    let is_listed = way == Way::List;
    let raft_addr = raft_addr_of(config);
    let named = locked.identity.as_ref();
    let node_uuid = named.map_or_else(Uuid::new_v4, |identity| identity.node_uuid).into();
    let own = ListedNode { id: config.node_id, raft_addr: raft_addr.clone() };
    let (formed, nodes) = match way {
        Way::List => form_by_list(config, node_uuid, seal, &locked)?,
        Way::Alone => {
            // A node that was alone keeps the name of its cluster.
            let cluster = named.map_or_else(Uuid::new_v4, |identity| identity.cluster_uuid);
            begin_alone(own, node_uuid, cluster.into(), &locked.path, seal)?
        }
        Way::AsBefore => go_on(own, &locked.path, seal)?,
        Way::Join(address) => {
            let join_config = JoinConfig {
                own: config.node_id,
                node_uuid,
                address: address.to_string(),
                introduction: introduction(config, raft_addr.clone(), shards),
                data_dir: locked.path.clone(),
                seal,
                draw: Box::new(rand::random::<u64>),
            };
            until_signal(|cancel| join(join_config, cancel))??
        }
    };
    let node_uuid = formed.node_uuid.as_uuid();
    let cluster_uuid = formed.formed.formation.cluster.as_uuid();
    let new = || Identity::of_cluster(config.node_id, node_uuid, cluster_uuid, shards);
    let data_dir = locked.into_cluster_dir(node_uuid, cluster_uuid, new)?;
    tracing::info!(%cluster_uuid, members = formed.formed.formation.members.len(), "part of a cluster");
    Ok((data_dir, ClusterStart { formed, nodes, is_listed, raft_addr, secret }))
}

fn form_by_list(
    config: &Config,
    node_uuid: NodeUuid,
    seal: Seal,
    locked: &LockedDir,
) -> Result<(FormedCluster, Vec<ListedNode>), Failure> {
    let listed = config.cluster.nodes.iter();
    let nodes: Vec<ListedNode> = listed
        .map(|node| ListedNode { id: node.id, raft_addr: node.raft_addr.to_string() })
        .collect();
    let form_config = FormConfig {
        own: config.node_id,
        node_uuid,
        nodes: nodes.clone(),
        listen: config.raft_addr,
        data_dir: locked.path.clone(),
        seal,
        probe_interval: Duration::from_millis(config.cluster.probe_interval_ms),
        draw: Box::new(rand::random::<u64>),
    };
    Ok((until_signal(|cancel| form(form_config, cancel))??, nodes))
}

/// Where other nodes reach this one: as listed; else where it listens, by the name that clients know if it listens on
/// every interface.
fn raft_addr_of(config: &Config) -> String {
    let listed = config.cluster.nodes.iter().find(|node| node.id == config.node_id);
    if let Some(listed) = listed {
        return listed.raft_addr.to_string();
    }
    let mut address = HostPort::from(config.raft_addr);
    if address.is_unspecified() {
        address.host.clone_from(&config.advertised_addr.host);
    }
    address.to_string()
}

fn introduction(config: &Config, raft_addr: String, shards: u16) -> Introduction {
    Introduction {
        kafka_host: config.advertised_addr.host.clone(),
        kafka_port: config.advertised_addr.port,
        raft_addr,
        shards,
        rack: config.kafka.broker_rack.as_ref().map(|rack| rack.0.clone()),
        is_read_only: config.cluster.read_only,
    }
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
