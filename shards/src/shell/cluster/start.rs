//! How a shard takes its place in a cluster: its links, and on the catalog's shard the Raft port and the replica of the
//! catalog.

use std::future::Future;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};
use chronik_engine::wal::record::GroupMeta;
use chronik_replication::formation::{Answer, FormedCluster, ListedNode, Member, Membership};
use chronik_replication::peers::{
    Accepted, Acceptor, AcceptorConfig, PeerNode, Peers, PeersConfig, RaftPort,
};
use chronik_replication::wire::Seat;

use super::{ClusterLinks, Handler, META_SHARD};
use crate::catalog::{Broker, Catalog, CatalogCommand, ClusterId, Incarnation};
use crate::core::reconcile::FirstVoter;
use crate::shell::run::RunError;
use crate::shell::shard::{Shard, random_seed};
use crate::startup::ClusterStart;

/// What a node knows of its cluster when it starts.
pub struct ClusterPlace {
    /// How the cluster began, and what this node is in it.
    pub formed: FormedCluster,
    /// The nodes of the list, or those that this node was told of when it joined.
    pub nodes: Vec<PeerNode>,
    /// Whether they are a list, which holds for good.
    pub is_listed: bool,
    /// Where other nodes reach this one.
    pub raft_addr: String,
    /// What all nodes must know, if anything.
    pub secret: Option<Vec<u8>>,
    /// Whether the data directory was made just now: else a replica without its log has forgotten its votes.
    pub is_new: bool,
}

impl std::fmt::Debug for ClusterPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterPlace").field("formed", &self.formed).finish_non_exhaustive()
    }
}

impl ClusterPlace {
    /// From what the start found, and whether the data directory was made by it.
    #[must_use]
    pub fn new(start: ClusterStart, is_new: bool) -> ClusterPlace {
        let peer = |ListedNode { id: node, raft_addr }| PeerNode { node, raft_addr };
        ClusterPlace {
            formed: start.formed,
            nodes: start.nodes.into_iter().map(peer).collect(),
            is_listed: start.is_listed,
            raft_addr: start.raft_addr,
            secret: start.secret.map(|secret| secret.as_bytes().to_vec()),
            is_new,
        }
    }

    /// The replicas of the catalog that the cluster began with.
    pub(super) fn first_voters(&self) -> Vec<FirstVoter> {
        let voter = |member: &Member| FirstVoter {
            node: member.node,
            incarnation: Incarnation(member.node_uuid.as_uuid()),
            replica: member.replica,
        };
        self.formed.formed.formation.members.iter().map(voter).collect()
    }

    fn meta_replicas(&self) -> impl Iterator<Item = (NodeId, ReplicaId)> {
        let members = &self.formed.formed.formation.members;
        members.iter().map(|member| (member.node, member.replica))
    }

    /// The replica of the catalog that this node begins with.
    fn meta_group(&self) -> GroupMeta {
        let voters = self.meta_replicas().map(|(_, replica)| replica).collect();
        let (replica, learners) = match &self.formed.formed.own {
            Membership::Member { replica } => (*replica, Vec::new()),
            // The log begins with the first voters, and tells of everybody who came since.
            Membership::Joins { replica } => (*replica, vec![*replica]),
        };
        GroupMeta { replica, voters, learners, ..GroupMeta::default() }
    }
}

/// The Raft port of a node, on the catalog's shard.
#[derive(Debug)]
struct Port {
    shard: Weak<Shard>,
}

impl RaftPort for Port {
    fn on_hello(&self, accepted: Accepted) {
        if let Some(shard) = self.shard.upgrade() {
            let to = accepted.hello().to;
            shard.hand_over_link(to, accepted);
        }
    }

    fn on_discovery(&self, body: Bytes) -> impl Future<Output = Option<Bytes>> {
        let shard = self.shard.upgrade();
        async move {
            let shard = shard?;
            let place = shard.node.cluster.as_ref()?;
            let answerer = &place.formed.answerer;
            match answerer.answer(&body) {
                Answer::Reply(reply) => Some(Bytes::from(reply)),
                Answer::Join(asked) => {
                    let outcome = shard.admit(&asked).await;
                    Some(Bytes::from(answerer.answer_join(&asked, outcome)))
                }
            }
        }
    }
}

impl Shard {
    /// Opens the links of a shard of a cluster, and on the catalog's shard the Raft port.
    ///
    /// # Errors
    /// If the port cannot be listened on.
    pub(in crate::shell) fn join_cluster(self: &Rc<Self>) -> Result<(), RunError> {
        let Some(place) = &self.node.cluster else { return Ok(()) };
        let seat = Seat { node: self.node.config.node_id, shard: self.id };
        let node_uuid = place.formed.node_uuid.as_uuid();
        let config = PeersConfig {
            secret: place.secret.as_deref().map(Rc::from),
            seed: random_seed(),
            ..PeersConfig::new(seat, node_uuid, self.node.cluster_uuid, self.node.shards)
        };
        let peers = Peers::new(config, Handler::new(self));
        let known = self.with_core(|core| core.catalog());
        peers.set_nodes(self.peer_nodes(known.as_deref().unwrap_or(&Catalog::new())));
        let port = if self.id == META_SHARD { Some(self.open_raft_port()?) } else { None };
        self.set_links(ClusterLinks::new(peers, port, place.meta_replicas()));
        Ok(())
    }

    /// The nodes to have links with: those of the catalog and those of the list, whose addresses count more. What a node
    /// was told when it joined counts until it sees itself in the catalog.
    pub(super) fn peer_nodes(&self, catalog: &Catalog) -> Vec<PeerNode> {
        let Some(place) = &self.node.cluster else { return Vec::new() };
        let counts = place.is_listed || !self.is_in_catalog(catalog);
        let told = if counts { &place.nodes[..] } else { &[] };
        let registered = catalog
            .brokers()
            .filter(|broker| !broker.raft_addr.is_empty())
            .filter(|broker| !told.iter().any(|peer| peer.node == broker.node))
            .map(|broker| PeerNode { node: broker.node, raft_addr: broker.raft_addr.clone() });
        told.iter().cloned().chain(registered).collect()
    }

    fn open_raft_port(self: &Rc<Self>) -> Result<Acceptor, RunError> {
        let address = self.node.config.raft_addr;
        let port = Rc::new(Port { shard: Rc::downgrade(self) });
        Acceptor::listen(address, AcceptorConfig::default(), port)
            .map_err(|error| RunError::RaftPort { address, error })
    }

    /// Gives a connection of a peer to the shard that it is for.
    fn hand_over_link(self: &Rc<Self>, to: ShardId, accepted: Accepted) {
        let adopt = move |shard: &Rc<Shard>| {
            if let Some(links) = shard.links() {
                links.peers().adopt(accepted);
            }
        };
        if self.post(to, adopt).is_err() {
            tracing::debug!(
                "a connection for shard {} was dropped: its inbox is full or closed",
                to.0
            );
        }
    }

    /// How this node enters itself into the catalog, once its replica of the catalog is here. To be called on the
    /// catalog's shard.
    pub(in crate::shell) fn registration(&self) -> Option<CatalogCommand> {
        let node = &self.node;
        let own = node.config.node_id;
        let raft_addr = match &node.cluster {
            Some(place) => place.raft_addr.clone(),
            None => node.config.raft_addr.to_string(),
        };
        let broker = Broker {
            node: own,
            host: node.advertised_host.clone(),
            port: node.advertised_port,
            rack: node.config.kafka.broker_rack.as_ref().map(|rack| rack.0.clone()),
            shards: node.shards,
            incarnation: node.incarnation,
            meta_replica: self.with_core(|core| core.replica(GroupId::META))?,
            raft_addr,
            is_cordoned: false,
            is_read_only: node.config.cluster.read_only,
        };
        let cluster_id = ClusterId(node.cluster_uuid);
        Some(CatalogCommand::RegisterBroker {
            cluster_id,
            broker,
            replica_seed: random_seed(),
            replaces: None,
        })
    }

    /// Makes the replica of the catalog that this node has in its cluster, where its log has none yet.
    pub(in crate::shell) fn create_meta(self: &Rc<Self>, alone: impl FnOnce() -> GroupMeta) {
        if self.with_core(|core| core.partition(GroupId::META)).is_some() {
            return;
        }
        let meta = match &self.node.cluster {
            Some(place) => place.meta_group(),
            None => alone(),
        };
        self.change_core(|core| core.create_group(GroupId::META, meta));
    }
}
