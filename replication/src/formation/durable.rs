//! What a node must not forget on its way into a cluster, and what comes of it.

use chronik_engine::ids::{NodeId, ReplicaId};

use super::decree::{Acceptor, Formation};
use super::ids::NodeUuid;
use super::list::ListedNode;

/// What a node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Membership {
    /// One of the first voters of `__meta`, as this replica.
    Member { replica: ReplicaId },
    /// Not among them: it asks to be taken in, as this replica, which is new.
    Joins { replica: ReplicaId },
}

/// The end of formation.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Formed {
    /// How the cluster began.
    pub formation: Formation,
    /// What this node is in it.
    pub own: Membership,
}

/// How a node comes into its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
pub enum Way {
    /// It agrees with the other nodes of a list.
    #[default]
    List,
    /// It begins one by itself.
    Alone,
    /// It asks a node of a cluster to be taken in.
    Joins {
        /// As this replica of `__meta`, drawn for this disk before it asked for the first time.
        replica: ReplicaId,
        /// The nodes that it was told of.
        peers: Vec<ListedNode>,
    },
}

/// What must survive a crash.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Durable {
    /// Whose it is.
    pub node: NodeId,
    /// The disk that it is on.
    pub node_uuid: NodeUuid,
    /// What the node has promised and accepted.
    pub acceptor: Acceptor,
    /// The cluster, once it is known.
    pub formed: Option<Formed>,
    /// How the node comes, or came, into it.
    pub way: Way,
}

impl Durable {
    /// Of a disk that is empty.
    #[must_use]
    pub fn empty(node: NodeId, node_uuid: NodeUuid) -> Durable {
        Durable { node, node_uuid, acceptor: Acceptor::default(), formed: None, way: Way::List }
    }
}
