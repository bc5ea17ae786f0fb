//! The links of a shard to the shards of other nodes, over the ring of its core.
//!
//! Each pair of seats of two nodes has one connection, used in both directions and opened by the seat of the node with
//! the lower id. [`Peers`] keeps the links of one seat: it dials nodes with higher ids, adopts what nodes with lower ids
//! have opened (the [`Acceptor`], on one core of the node, reads who they mean), queues what is to be sent, and tells a
//! [`PeerHandler`] what arrives and who is there.
//!
//! | module | owns |
//! |---|---|
//! | [`config`](PeersConfig) | who a seat is and what its links are bounded by |
//! | [`handler`](PeerHandler) | what hears of messages, calls and losses |
//! | `core` | what the links of a shard share, and how they come up and go down |
//! | `dial` | finding and connecting to peers, and the pauses in between |
//! | [`acceptor`](Acceptor) | the Raft port |
//! | `handshake`, `proof` | how two ends come to know and to trust each other |
//! | `link` | one connection in use: reading, writing, liveness |
//! | `outbox` | what waits to be sent, as messages and as frames |
//! | `outgoing`, `incoming` | large snapshots, which travel in parts between the other frames |
//! | `receive` | cutting a byte stream into frames |
//! | `calls` | calls that wait for their answers |
//! | `stats`, `clock`, `tasks` | counters; time, jitter, restraint in the log; tasks that end together |
//!
//! - I1: nothing here waits for a peer: what cannot be queued is dropped, and whoever sent it is told.
//! - I2: nothing is promised: a message that was taken may be lost with its link. Raft sends it again.
//! - I3: messages from one seat to another arrive in the order in which they were sent, with gaps where links were lost;
//!   a snapshot that travels in parts arrives with the last of them.
//! - I4: memory is bounded for each peer: its queue, one frame under way in each direction, calls without an answer,
//!   snapshots in parts; these in all, where they arrive.
//! - I5: the handler is called from the tasks of the links, never from within a call of [`Peers`].

mod acceptor;
mod calls;
mod clock;
mod config;
mod core;
mod dial;
mod handler;
mod handshake;
mod incoming;
mod link;
mod outbox;
mod outgoing;
mod proof;
mod receive;
mod stats;
mod tasks;

use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::ids::{NodeId, ShardId};
use chronik_ring::Task;
use chronik_ring::socket::Socket;

pub use self::acceptor::{Accepted, Acceptor, AcceptorConfig, RaftPort};
pub use self::config::{PeerNode, PeersConfig};
pub use self::handler::{CallError, PeerHandler, Replier};
pub use self::incoming::TransferDrop;
pub use self::stats::{PeerStats, Refusals};

use self::clock::{now, within};
use self::core::{Core, Node};
use self::handshake::HandshakeError;
use self::outbox::addressee;
use crate::ready::PeerMessage;
use crate::wire::{
    LeaderNotice, NOTICES_MAX, RECEIVED_MAX, RECEIVED_VERSION_MIN, ReceivedMark, RefusedReason,
    Seat, encode_notices, encode_received,
};

/// Connections of others that have said who they are and have not proven it.
const ADOPTING_MAX: usize = 64;

/// Who was named less than this ago and was never linked may be about to be: three nodes that start together find each other in
/// half a second.
const FIRST_LINK: Duration = Duration::from_secs(2);

/// The links of one seat. Lives on one core, where a ring is installed.
pub struct Peers<H: PeerHandler> {
    core: Rc<Core<H>>,
}

impl<H: PeerHandler> std::fmt::Debug for Peers<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("config", &self.core.config).finish_non_exhaustive()
    }
}

impl<H: PeerHandler> Peers<H> {
    /// A seat without links.
    #[must_use]
    pub fn new(config: PeersConfig, handler: Rc<H>) -> Peers<H> {
        let core = Core::new(config, handler);
        core.spawn(Rc::clone(&core).tick());
        core.spawn(Rc::clone(&core).tell_lost());
        Peers { core }
    }

    /// The nodes that there are to be links with, all of them each time; this node among them is left out. Links with
    /// others end. An address that changed is used for the next connection.
    pub fn set_nodes(&self, nodes: Vec<PeerNode>) {
        let here = self.core.config.seat.node;
        let mut wanted: BTreeMap<_, _> = nodes
            .into_iter()
            .filter(|peer| peer.node != here)
            .map(|peer| (peer.node, peer.raft_addr))
            .collect();
        let mut removed = Vec::new();
        self.core.nodes.borrow_mut().retain(|id, node| {
            match wanted.remove(id) {
                Some(raft_addr) => *node.raft_addr.borrow_mut() = raft_addr,
                None => {
                    node.is_removed.set(true);
                    removed.push(*id);
                }
            }
            !node.is_removed.get()
        });
        for id in removed {
            self.core.forget_node(id);
        }
        for (id, raft_addr) in wanted {
            let node = Node::new(id, raft_addr);
            self.core.nodes.borrow_mut().insert(id, Rc::clone(&node));
            if here < id {
                self.core.dial_node(&node);
            }
        }
    }

    /// Asks the nodes that open the links to this one, and have opened none, whether its data directory still counts: they look for
    /// nobody whom they do not know any more. If not, the handler hears of it ([`PeerHandler::on_retired`]). For a node that
    /// waits in vain; `attempt` counts how often it has asked.
    pub fn knock(&self, attempt: usize) {
        self.core.knock(attempt);
    }

    /// Goes on with a connection that the [`Acceptor`] has taken for this seat.
    pub fn adopt(&self, accepted: Accepted) {
        let core = &self.core;
        if core.is_closed() || core.adopting.get() >= ADOPTING_MAX {
            core.refusals.note(RefusedReason::Busy, false);
            accepted.refuse(RefusedReason::Busy);
            return;
        }
        core.adopting.set(core.adopting.get() + 1);
        let adopting = Adopting(Rc::clone(core));
        core.spawn(async move { adopt(adopting, accepted).await });
    }

    /// Queues a message. If that cannot be, the handler hears of it.
    pub fn send(&self, to: Seat, message: PeerMessage) {
        let sent = match self.link(to) {
            Some(link) => link.send(message),
            None => Err(addressee(&message)),
        };
        if let Err(lost) = sent {
            self.core.note_lost(to, lost);
        }
    }

    /// Tells a peer who leads. Lost if there is no link or no room: whoever needs it says it again, at
    /// [`PeerHandler::on_up`] at the latest.
    pub fn notify(&self, to: Seat, notices: Vec<LeaderNotice>) {
        let Some(link) = self.link(to) else { return };
        for notices in notices.chunks(NOTICES_MAX) {
            if let Ok(frame) = encode_notices(notices) {
                link.send_urgent(frame);
            }
        }
    }

    /// Tells a peer what replicas here have received. Lost if there is no link, no room, or the peer does not know of it.
    pub fn tell_received(&self, to: Seat, marks: &[ReceivedMark]) {
        let Some(peer) = self.core.known_peer(to) else { return };
        let Some(link) = peer.link() else { return };
        if peer.counters.version.get() < RECEIVED_VERSION_MIN {
            return;
        }
        for marks in marks.chunks(RECEIVED_MAX) {
            if let Ok(frame) = encode_received(marks) {
                link.send_urgent(frame);
            }
        }
    }

    /// Asks a peer, and waits for its answer until `timeout` is over. It is sent now, not when it is first polled.
    /// Cancel-safe: dropped, the peer may still do what it was asked.
    pub fn call(
        &self,
        to: Seat,
        kind: u8,
        body: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, CallError>> + use<H> {
        let sent = match self.link(to) {
            Some(link) => link.call(kind, body),
            None => Err(CallError::NotConnected),
        };
        async move { sent?.answer(timeout).await }
    }

    /// Whether there is a link to the seat.
    #[must_use]
    pub fn is_up(&self, seat: Seat) -> bool {
        self.link(seat).is_some()
    }

    /// Whether a node is gone, as far as is known here: there is no link to its first shard, though there was one, or has been
    /// time for one. Who was named just now is not missed yet.
    #[must_use]
    pub fn is_missing(&self, node: NodeId) -> bool {
        let seat = Seat { node, shard: ShardId(0) };
        if self.is_up(seat) {
            return false;
        }
        let was_up =
            self.core.known_peer(seat).is_some_and(|peer| peer.counters.connects.get() > 0);
        let nodes = self.core.nodes.borrow();
        was_up || nodes.get(&node).is_some_and(|node| node.known_since.elapsed() >= FIRST_LINK)
    }

    /// The seats that there are links to, in order.
    #[must_use]
    pub fn up_seats(&self) -> Vec<Seat> {
        let peers = self.core.all_peers();
        peers.iter().filter(|peer| peer.link().is_some()).map(|peer| peer.seat).collect()
    }

    /// Bytes that wait to be sent to the seat.
    #[must_use]
    pub fn queue_bytes(&self, seat: Seat) -> usize {
        self.link(seat).map_or(0, |link| link.queue_bytes())
    }

    /// What was counted, for each seat that there was a link to since its node was named.
    #[must_use]
    pub fn stats(&self) -> Vec<PeerStats> {
        let read = |peer: &Rc<self::core::Peer>| {
            let link = peer.link();
            let queue_bytes = link.as_ref().map_or(0, |link| link.queue_bytes());
            peer.counters.read(peer.seat, link.is_some(), queue_bytes)
        };
        self.core.all_peers().iter().map(read).collect()
    }

    /// Why links did not come up, each reason once.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refusals> {
        self.core.refusals.read()
    }

    /// Ends all links and takes no more. What waits to be sent is lost, and the handler hears nothing of it. Not
    /// cancel-safe: call it once, to its end.
    pub async fn close(&self) {
        for task in self.core.close() {
            task.cancel().await;
        }
    }

    fn link(&self, seat: Seat) -> Option<Rc<link::Link>> {
        self.core.known_peer(seat)?.link()
    }
}

impl<H: PeerHandler> Drop for Peers<H> {
    fn drop(&mut self) {
        let tasks: Vec<Task<()>> = self.core.close();
        drop(tasks);
    }
}

/// One of the connections that are counted until they are links.
struct Adopting<H: PeerHandler>(Rc<Core<H>>);

impl<H: PeerHandler> Drop for Adopting<H> {
    fn drop(&mut self) {
        self.0.adopting.set(self.0.adopting.get() - 1);
    }
}

async fn adopt<H: PeerHandler>(adopting: Adopting<H>, accepted: Accepted) {
    let core = Rc::clone(&adopting.0);
    let (socket, hello, reader) = accepted.into_parts();
    let met = {
        let is_known = |node| core.nodes.borrow().contains_key(&node);
        let is_retired = |node_uuid| core.handler.is_retired(node_uuid);
        let (config, buffer) = (&core.config, &core.read_buffer);
        let answering =
            handshake::answer(config, &socket, &hello, reader, is_known, is_retired, buffer);
        within(core.config.connect_timeout, answering).await
    };
    drop(adopting);
    match met {
        // The node may have been taken away meanwhile.
        Some(Ok(met)) if core.nodes.borrow().contains_key(&hello.node) => {
            core.run_link(hello.from_seat(), socket, met).await;
        }
        Some(Ok(_)) => {
            core.refusals.note(RefusedReason::WrongNode, false);
            handshake::refuse(&socket, RefusedReason::WrongNode);
        }
        Some(Err(error)) => {
            core.refusals.note_end(&error);
            socket.end_writes();
            log_stranger(&core, &socket, hello.from_seat(), Some(error));
        }
        None => {
            socket.end_writes();
            log_stranger(&core, &socket, hello.from_seat(), None);
        }
    }
}

fn log_stranger<H: PeerHandler>(
    core: &Core<H>,
    socket: &Socket,
    claimed: Seat,
    error: Option<HandshakeError>,
) {
    let Some(suppressed) = core.log.allow(now()) else { return };
    let address = socket.addresses().ok().map(|(peer, _)| peer);
    match error {
        Some(error) => {
            tracing::warn!(%claimed, ?address, suppressed, "a connection came to no link: {error}");
        }
        None => {
            tracing::warn!(%claimed, ?address, suppressed, "a connection came to no link in time");
        }
    }
}
