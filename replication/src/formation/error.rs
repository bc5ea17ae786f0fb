//! Why there is no cluster. Every message says which peer, which file, and what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

use chronik_engine::framed::FramedError;
use chronik_engine::ids::NodeId;
use thiserror::Error;

use super::ids::{ClusterUuid, NodeUuid};
use super::list::ListError;
use super::peer::PeerProblem;

/// What no waiting will mend.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Impossible {
    #[error("a majority cannot agree on who the nodes are: {}", Peers(peers))]
    ListsDiffer { peers: Vec<(NodeId, PeerProblem)> },
    #[error(
        "node {peer} says that this node's id is in use by another node, with disk {node_uuid}; give each node a \
         node_id of its own (--node-id or CHRONIK_NODE_ID)"
    )]
    IdInUse { peer: NodeId, node_uuid: NodeUuid },
    #[error(
        "two clusters were formed from these nodes: {own}, which this node belongs to, and {other}; stop the nodes of \
         one of them, keep their data directories aside, and let them join with empty ones"
    )]
    TwoClusters { own: ClusterUuid, other: ClusterUuid },
    #[error("{address}, which this node is to join: {why}")]
    NotTaken { address: String, why: JoinProblem },
}

/// Why a cluster does not take a node in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinProblem {
    #[error(
        "a node with this node's id is running in that cluster, with disk {node_uuid}; give each node a node_id of its \
         own (--node-id or CHRONIK_NODE_ID)"
    )]
    IdInUse { node_uuid: NodeUuid },
    #[error(
        "node {node} of that cluster is running and has this node's Kafka or Raft address; correct advertised_addr or \
         raft_addr"
    )]
    AddressInUse { node: NodeId },
    #[error("the cluster refuses this node: {text}")]
    Refused { text: String },
    #[error("it has another cluster.secret; set the same on this node (CHRONIK_CLUSTER_SECRET)")]
    SecretDiffers,
    #[error(
        "it is a Kafka port; give the node's Raft address instead (its raft_addr, by default the Kafka port + 100)"
    )]
    KafkaPort,
    #[error("what it answers makes no sense; run the same version of chronik-server on all nodes")]
    Nonsense,
}

struct Peers<'a>(&'a [(NodeId, PeerProblem)]);

impl std::fmt::Display for Peers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, (node, problem)) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("; ")?;
            }
            write!(f, "node {node}: {problem}")?;
        }
        Ok(())
    }
}

/// What is wrong with the file that formation keeps.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{}: damaged ({fault}); restore the file from a backup of this node, or start this node with an empty data \
         directory: it then joins the cluster as a new replica",
        path.display()
    )]
    Damaged { path: PathBuf, fault: StoreFault },
    #[error(
        "{}: written by a newer version of chronik-server (format {found}); start that version", path.display()
    )]
    NewerVersion { path: PathBuf, found: u8 },
    #[error(
        "{}: belongs to node {found}, this is node {wanted}; correct node_id, or give this node a data_dir of its own",
        path.display()
    )]
    OtherNode { path: PathBuf, found: NodeId, wanted: NodeId },
    #[error("{}: cannot be encoded", path.display())]
    Encode {
        path: PathBuf,
        #[source]
        source: FramedError,
    },
}

/// How a file is damaged.
#[derive(Debug, Error)]
pub enum StoreFault {
    #[error("it is shorter or longer than such a file")]
    Length,
    #[error("it does not begin as such a file")]
    Magic,
    #[error("checksum {found:08x}, {computed:08x} expected")]
    Checksum { found: u32, computed: u32 },
    #[error("{source}")]
    Content {
        #[source]
        source: FramedError,
    },
}

/// Why a node does not come into a cluster.
#[derive(Debug, Error)]
pub enum FormError {
    #[error("cluster.nodes: {0}")]
    List(#[from] ListError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error("raft_addr {address}: cannot be listened on: {source}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start a thread: {source}")]
    Thread {
        #[source]
        source: std::io::Error,
    },
    #[error(
        "data directory {}: this node has asked to join a cluster, and was not taken in yet; give cluster.join (--join \
         HOST:PORT) again, or an empty data directory", path.display()
    )]
    WasJoining { path: PathBuf },
    #[error("stopped while waiting for the other nodes")]
    Cancelled,
}
