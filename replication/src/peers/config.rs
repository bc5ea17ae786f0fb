//! What the links of a shard are told at their start.

use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::NodeId;
use chronik_ring::socket::SocketOptions;
use uuid::Uuid;

use crate::wire::Seat;

/// Who this seat is, how it proves it, and the bounds of its links.
#[derive(Clone)]
pub struct PeersConfig {
    /// This seat.
    pub seat: Seat,
    /// The incarnation of this node.
    pub node_uuid: Uuid,
    /// The cluster that both ends must belong to.
    pub cluster: Uuid,
    /// How many shards this node has.
    pub shards: u16,
    /// What both ends must know. Without one nothing is proven, which is for loopback alone.
    pub secret: Option<Rc<[u8]>>,
    /// An idle link says so this often.
    pub ping_interval: Duration,
    /// Without a byte for this long a peer is gone.
    pub lost_after: Duration,
    /// A peer that takes no bytes for this long, though it sends some, is gone, too.
    pub stall_after: Duration,
    /// For a connection to be made, and again for the two ends to know each other.
    pub connect_timeout: Duration,
    /// The pause after the first failed attempt; it doubles with every further one.
    pub backoff_min: Duration,
    /// The longest pause between two attempts, and the pause after a refusal.
    pub backoff_max: Duration,
    /// Where the jitter of the pauses begins.
    pub seed: u64,
    /// Raft messages that may wait for one peer; a quarter as much may wait of everything else.
    pub queue_bytes_max: usize,
    /// Messages are put together in frames of about this size.
    pub frame_bytes_target: usize,
}

impl PeersConfig {
    /// The defaults for a seat.
    #[must_use]
    pub fn new(seat: Seat, node_uuid: Uuid, cluster: Uuid, shards: u16) -> PeersConfig {
        PeersConfig {
            seat,
            node_uuid,
            cluster,
            shards,
            secret: None,
            ping_interval: Duration::from_millis(100),
            lost_after: Duration::from_millis(500),
            stall_after: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            seed: 0,
            queue_bytes_max: 32 << 20,
            frame_bytes_target: 1 << 20,
        }
    }

    pub(super) fn socket_options(&self) -> SocketOptions {
        socket_options(self.lost_after * 4)
    }
}

/// The links look after themselves; the kernel's own checks are for what is left when they have given up.
pub(super) fn socket_options(user_timeout: Duration) -> SocketOptions {
    SocketOptions {
        keepalive_idle: Duration::from_secs(10),
        keepalive_interval: Duration::from_secs(5),
        user_timeout,
        // A cluster has few links and cannot do without one.
        descriptors_max: i32::MAX,
    }
}

impl std::fmt::Debug for PeersConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_secret = self.secret.is_some();
        f.debug_struct("PeersConfig")
            .field("seat", &self.seat)
            .field("cluster", &self.cluster)
            .field("has_secret", &has_secret)
            .finish_non_exhaustive()
    }
}

/// Another node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerNode {
    pub node: NodeId,
    /// `host:port` of its Raft port.
    pub raft_addr: String,
}
