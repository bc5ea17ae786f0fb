//! What the links of a shard share: who the peers are, which links are up, the tasks, and what is told to the handler.
//!
//! - I1: a handler hears of a link once when it comes up and once when it goes down, in this order, and nothing of it
//!   before or after.
//! - I2: no borrow is held while the handler is called.
//! - I3: what is remembered of lost messages is bounded by the replicas that messages are sent to: each is told once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use chronik_engine::ids::{NodeId, ShardId};
use chronik_ring::Task;
use chronik_ring::socket::{Socket, SocketOptions};
use uuid::Uuid;

use super::clock::{LogLimit, now};
use super::config::PeersConfig;
use super::handler::PeerHandler;
use super::handshake::Met;
use super::incoming::{Incoming, TransferDrop};
use super::link::{self, Link, LinkEnd, Liveness};
use super::outbox::{Addressee, Outbox};
use super::stats::{Counters, RefusalCounts, add};
use super::tasks::Tasks;
use crate::wire::{RefusedReason, Seat};

/// One buffer for all links of a core: a receive never waits while it holds it.
const READ_BUFFER_BYTES: usize = 256 << 10;
/// The shard that every node has.
pub(super) const FIRST_SHARD: ShardId = ShardId(0);
/// Of what goes on and on, one line in this time.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Another seat.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) seat: Seat,
    pub(super) counters: Counters,
    link: RefCell<Option<Rc<Link>>>,
    /// The incarnation of the node that was there last.
    node_uuid: Cell<Option<Uuid>>,
    log: LogLimit,
}

impl Peer {
    /// The link that is up.
    pub(super) fn link(&self) -> Option<Rc<Link>> {
        self.link.borrow().clone()
    }

    fn is_linked_by(&self, link: &Rc<Link>) -> bool {
        self.link.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, link))
    }
}

/// Another node, as the settings or the catalog name it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    /// `host:port`.
    pub(super) raft_addr: RefCell<String>,
    /// Where its first shard was found.
    pub(super) found_at: Cell<Option<SocketAddr>>,
    /// How many shards it has; one until it says.
    pub(super) shards: Cell<u16>,
    /// Shards that are being dialled.
    pub(super) dialled: RefCell<BTreeSet<ShardId>>,
    pub(super) is_removed: Cell<bool>,
    pub(super) known_since: Instant,
    pub(super) log: LogLimit,
    /// How often a link to its first shard came up, and who waits for the next time.
    risen: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Node {
    pub(super) fn new(id: NodeId, raft_addr: String) -> Rc<Node> {
        Rc::new(Node {
            id,
            raft_addr: RefCell::new(raft_addr),
            found_at: Cell::new(None),
            shards: Cell::new(1),
            dialled: RefCell::default(),
            is_removed: Cell::new(false),
            known_since: now(),
            log: LogLimit::new(LOG_INTERVAL),
            risen: Cell::new(0),
            waiting: RefCell::default(),
        })
    }

    /// A link to its first shard is up: whoever waits to dial another one need not wait longer.
    pub(super) fn rise(&self) {
        self.risen.set(self.risen.get() + 1);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Waits until a link to its first shard comes up. Cancel-safe.
    pub(super) async fn risen(&self) {
        let before = self.risen.get();
        poll_fn(|cx| {
            if self.risen.get() != before {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// The links of a shard.
pub(super) struct Core<H> {
    pub(super) config: PeersConfig,
    pub(super) socket_options: SocketOptions,
    pub(super) handler: Rc<H>,
    pub(super) read_buffer: RefCell<Box<[u8]>>,
    pub(super) nodes: RefCell<BTreeMap<NodeId, Rc<Node>>>,
    peers: RefCell<BTreeMap<Seat, Rc<Peer>>>,
    tasks: Rc<Tasks>,
    /// Connections of others that are not links yet.
    pub(super) adopting: Cell<usize>,
    /// Snapshots that peers send in parts.
    pub(super) incoming: RefCell<Incoming>,
    lost: RefCell<BTreeSet<(Seat, Addressee)>>,
    /// Wakes the task that tells of lost messages.
    lost_waker: RefCell<Option<Waker>>,
    /// For connections of nobody in particular.
    pub(super) log: LogLimit,
    pub(super) refusals: RefusalCounts,
}

impl<H: PeerHandler> Core<H> {
    pub(super) fn new(config: PeersConfig, handler: Rc<H>) -> Rc<Core<H>> {
        Rc::new(Core {
            socket_options: config.socket_options(),
            config,
            handler,
            read_buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into_boxed_slice()),
            nodes: RefCell::default(),
            peers: RefCell::default(),
            tasks: Rc::default(),
            adopting: Cell::new(0),
            incoming: RefCell::default(),
            lost: RefCell::default(),
            lost_waker: RefCell::new(None),
            log: LogLimit::new(LOG_INTERVAL),
            refusals: RefusalCounts::default(),
        })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.tasks.is_closed()
    }

    /// Runs a task until it ends or all is closed.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.tasks.spawn(future);
    }

    /// Takes no more and gives back the tasks, to be cancelled. The handler hears nothing of it.
    pub(super) fn close(&self) -> Vec<Task<()>> {
        let tasks = self.tasks.close();
        for peer in self.all_peers() {
            if let Some(link) = peer.link.take() {
                link.shut();
            }
        }
        tasks
    }

    /// What is known of a seat; made if nothing is.
    pub(super) fn peer(&self, seat: Seat) -> Rc<Peer> {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(seat).or_insert_with(|| {
            Rc::new(Peer {
                seat,
                counters: Counters::default(),
                link: RefCell::new(None),
                node_uuid: Cell::new(None),
                log: LogLimit::new(LOG_INTERVAL),
            })
        });
        Rc::clone(peer)
    }

    pub(super) fn known_peer(&self, seat: Seat) -> Option<Rc<Peer>> {
        self.peers.borrow().get(&seat).cloned()
    }

    pub(super) fn all_peers(&self) -> Vec<Rc<Peer>> {
        self.peers.borrow().values().cloned().collect()
    }

    /// Forgets the seats of a node and ends their links.
    pub(super) fn forget_node(&self, node: NodeId) {
        let mut forgotten = Vec::new();
        self.peers.borrow_mut().retain(|seat, peer| {
            let stays = seat.node != node;
            if !stays {
                forgotten.push(Rc::clone(peer));
            }
            stays
        });
        for peer in forgotten {
            self.incoming.borrow_mut().forget(peer.seat);
            if let Some(link) = peer.link() {
                link.finish(LinkEnd::Removed);
            }
        }
    }

    /// A message is lost for certain; the handler hears of it from a task.
    pub(super) fn note_lost(&self, to: Seat, addressee: Addressee) {
        if let Some(peer) = self.known_peer(to) {
            add(&peer.counters.messages_dropped, 1);
        }
        self.lost.borrow_mut().insert((to, addressee));
        if let Some(waker) = self.lost_waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Tells the handler of messages that were lost, for as long as there are links.
    pub(super) async fn tell_lost(self: Rc<Self>) {
        loop {
            let lost = poll_fn(|cx| {
                let lost = self.lost.take();
                if lost.is_empty() {
                    *self.lost_waker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(lost)
            })
            .await;
            for (to, (group, replica)) in lost {
                self.handler.on_dropped(to, group, replica);
                chronik_ring::yield_if_needed().await;
            }
        }
    }

    /// Where a whole node comes or goes, so do links by the hundred: the log hears it from one.
    pub(super) fn speaks_for_node(&self, peer: Seat) -> bool {
        self.config.seat.shard == FIRST_SHARD && peer.shard == FIRST_SHARD
    }

    /// Looks after the liveness of all links. Twice in the interval, so that silence is noticed soon after its bound.
    pub(super) async fn tick(self: Rc<Self>) {
        let bounds = Liveness {
            ping_interval: self.config.ping_interval,
            lost_after: self.config.lost_after,
            stall_after: self.config.stall_after,
        };
        loop {
            chronik_ring::sleep(bounds.ping_interval / 2).await;
            let now = now();
            for peer in self.all_peers() {
                if let Some(link) = peer.link() {
                    link.tick(now, &bounds);
                    for addressee in link.tick_transfers() {
                        self.note_lost(peer.seat, addressee);
                    }
                }
            }
            let given_up = self.incoming.borrow_mut().tick();
            for peer in given_up.into_iter().filter_map(|seat| self.known_peer(seat)) {
                peer.counters.add_transfer_dropped(TransferDrop::Idle);
            }
        }
    }

    /// Serves a connection to a seat that is who it says, until it ends.
    pub(super) async fn run_link(self: &Rc<Self>, seat: Seat, socket: Socket, met: Met) {
        let Met { node_uuid, version, reader, .. } = met;
        let peer = self.peer(seat);
        peer.counters.version.set(version);
        let outbox = Outbox::new(self.config.queue_bytes_max, self.config.frame_bytes_target);
        let link = Link::new(socket, outbox);
        self.take_up(&peer, &link, node_uuid);
        let end = link::serve(self, &peer, &link, reader).await;
        self.take_down(&peer, &link, &end);
    }

    /// I1: an older link of the same seat goes down first.
    fn take_up(&self, peer: &Rc<Peer>, link: &Rc<Link>, node_uuid: Uuid) {
        if let Some(older) = peer.link() {
            older.finish(LinkEnd::Replaced);
            self.take_down(peer, &older, &LinkEnd::Replaced);
        }
        let seat = peer.seat;
        match peer.node_uuid.replace(Some(node_uuid)) {
            Some(before) if before != node_uuid => {
                tracing::warn!(peer = %seat, %before, %node_uuid, "another data directory answers for this node");
            }
            _ if self.speaks_for_node(seat) => tracing::info!(peer = %seat, "linked"),
            _ => tracing::debug!(peer = %seat, "linked"),
        }
        add(&peer.counters.connects, 1);
        *peer.link.borrow_mut() = Some(Rc::clone(link));
        self.handler.on_up(seat);
    }

    fn take_down(&self, peer: &Rc<Peer>, link: &Rc<Link>, end: &LinkEnd) {
        if self.is_closed() || !peer.is_linked_by(link) {
            return;
        }
        *peer.link.borrow_mut() = None;
        let lost = link.shut();
        add(&peer.counters.losses, 1);
        let lost_messages = lost.len() as u64;
        add(&peer.counters.messages_dropped, lost_messages);
        let seat = peer.seat;
        if !self.speaks_for_node(seat) && !end.is_peculiar() {
            tracing::debug!(peer = %seat, lost_messages, "link lost: {end}");
        } else if let Some(suppressed) = peer.log.allow(now()) {
            tracing::warn!(peer = %seat, lost_messages, suppressed, "link lost: {end}");
        }
        for (group, replica) in lost.into_iter().collect::<BTreeSet<_>>() {
            self.handler.on_dropped(seat, group, replica);
        }
        self.handler.on_down(seat);
        if let LinkEnd::Refused(RefusedReason::Retired) = end {
            self.handler.on_retired(seat);
        }
    }
}
