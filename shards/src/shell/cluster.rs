//! What a shard has to do with the other nodes of its cluster: the links to their shards, where replicas live, commands
//! of the catalog that another node proposes, and who leads what on other nodes.
//!
//! | module | owns |
//! |---|---|
//! | `admit` | nodes that ask at the Raft port to be taken in |
//! | `balance` | leaderships go back to where they belong |
//! | `forward` | commands of the catalog on their way to the node that leads it |
//! | [`in_sync`] | which replicas are in sync, on whatever node |
//! | `join` | nodes that come later |
//! | `reconcile` | when the members of groups are brought to what the catalog wants |
//! | [`leaders`] | who leads which partition, on whatever node |
//! | [`quorum`] | how the quorum of the catalog is |
//! | `replace` | nodes that come with another disk |
//! | `start` | how a shard takes its place |
//! | [`status`] | how the cluster is |
//! | [`transfer`] | groups that are handed to a certain replica |
//!
//! - I1: nothing here is durable and nothing decides anything: what is lost on the way is sent again by Raft.
//! - I2: a message goes to where the catalog says that its replica lives; where the catalog's own replicas live is said
//!   also by the cluster's formation and by themselves, for as long as the catalog does not know their node.

mod admit;
pub(super) mod balance;
mod forward;
pub mod in_sync;
mod join;
pub mod leaders;
pub mod quorum;
pub(super) mod reconcile;
mod replace;
mod start;
pub mod status;
pub mod transfer;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::{Rc, Weak};
use std::time::Duration;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId, Term};
use chronik_replication::PeerMessage;
use chronik_replication::peers::{Acceptor, PeerHandler, Peers, Replier};
use chronik_replication::wire::{Call, CallRefused, LeaderNotice, ReceivedMark, Seat};
use uuid::Uuid;

pub use self::forward::NotProposed;
use self::in_sync::InSync;
use self::replace::Replacing;
pub use self::start::ClusterPlace;
use super::complaints::Said;
use super::fatal::{Reason, fatal};
use super::fill;
use super::shard::Shard;
use crate::catalog::{Catalog, Incarnation};
use crate::core::{GroupFetch, ShardCore};

/// The shard that has the catalog's replica, on every node.
pub const META_SHARD: ShardId = ShardId(0);

/// How often, and how far apart, a node that stops asks others to lead in its place.
const HAND_OVER_TRIES: u32 = 20;
const HAND_OVER_PAUSE: Duration = Duration::from_millis(50);

/// A shard's ways to the other nodes. A node without a cluster has none.
#[derive(Debug)]
pub struct ClusterLinks {
    peers: Peers<Handler>,
    /// The Raft port, as long as the shard lives.
    _port: Option<Acceptor>,
    /// Where the replicas live that this shard's groups talk to (I2). Their ids are random: a tree of them is a walk through
    /// memory for each message.
    seats: RefCell<HashMap<ReplicaId, Seat>>,
    /// The catalog's replicas, which no catalog names.
    meta_seats: RefCell<HashMap<ReplicaId, Seat>>,
    /// Messages that were lost for certain, to be told to Raft at the next tick.
    lost: RefCell<BTreeSet<(GroupId, ReplicaId)>>,
    /// Partitions of which the catalog is being told that they are settled.
    settling: RefCell<BTreeSet<GroupId>>,
    /// On the catalog's shard: who leads groups elsewhere.
    leaders: RefCell<BTreeMap<GroupId, (Term, NodeId)>>,
    in_sync: InSync,
    /// On the catalog's shard: nodes that come with another disk.
    replacing: RefCell<Replacing>,
}

/// Hears what comes over the links.
#[derive(Debug)]
pub struct Handler {
    shard: Weak<Shard>,
}

impl ClusterLinks {
    /// The links of a shard that knows where the catalog's replicas live.
    #[must_use]
    pub fn new(
        peers: Peers<Handler>,
        port: Option<Acceptor>,
        meta_replicas: impl IntoIterator<Item = (NodeId, ReplicaId)>,
    ) -> ClusterLinks {
        let seat = |(node, replica)| (replica, Seat { node, shard: META_SHARD });
        ClusterLinks {
            peers,
            _port: port,
            seats: RefCell::default(),
            meta_seats: RefCell::new(meta_replicas.into_iter().map(seat).collect()),
            lost: RefCell::default(),
            settling: RefCell::default(),
            leaders: RefCell::default(),
            in_sync: InSync::default(),
            replacing: RefCell::default(),
        }
    }

    /// The links themselves.
    #[must_use]
    pub fn peers(&self) -> &Peers<Handler> {
        &self.peers
    }

    /// Which replicas are in sync, elsewhere.
    pub(super) fn in_sync(&self) -> &InSync {
        &self.in_sync
    }

    /// Whether a node can be heard now.
    #[must_use]
    pub fn is_up(&self, node: NodeId) -> bool {
        self.peers.is_up(Seat { node, shard: META_SHARD })
    }

    pub(super) fn seat_of(&self, group: GroupId, replica: ReplicaId) -> Option<Seat> {
        let seats = if group == GroupId::META { &self.meta_seats } else { &self.seats };
        seats.borrow().get(&replica).copied()
    }

    fn send(&self, messages: Vec<PeerMessage>) {
        for message in messages {
            if let Some(seat) = self.seat_of(message.group, ReplicaId(message.message.to)) {
                self.peers.send(seat, message);
            }
        }
    }

    /// Tells leaders what replicas here have received, as one frame for each of their seats.
    fn tell_received(&self, marks: &[ReceivedMark]) {
        let mut by_seat: BTreeMap<Seat, Vec<ReceivedMark>> = BTreeMap::new();
        for mark in marks {
            if let Some(seat) = self.seat_of(mark.group, mark.to) {
                by_seat.entry(seat).or_default().push(*mark);
            }
        }
        for (seat, marks) in by_seat {
            self.peers.tell_received(seat, &marks);
        }
    }

    /// Tells every node's catalog shard who leads now.
    fn notify(&self, notices: &[LeaderNotice]) {
        for seat in self.peers.up_seats().into_iter().filter(|seat| seat.shard == META_SHARD) {
            self.peers.notify(seat, notices.to_vec());
        }
    }

    /// A replica of the catalog that was added since the cluster was formed makes itself known by its messages.
    fn learn(&self, from: Seat, messages: &[PeerMessage]) {
        for message in messages.iter().filter(|message| message.group == GroupId::META) {
            self.note_meta_seat(ReplicaId(message.message.from), from);
        }
    }
}

impl Handler {
    /// For a shard, which it does not keep alive.
    #[must_use]
    pub fn new(shard: &Rc<Shard>) -> Rc<Handler> {
        Rc::new(Handler { shard: Rc::downgrade(shard) })
    }

    fn with_shard(&self, f: impl FnOnce(&Rc<Shard>, &ClusterLinks)) {
        if let Some(shard) = self.shard.upgrade()
            && let Some(links) = shard.links()
        {
            f(&shard, links);
        }
    }
}

impl PeerHandler for Handler {
    fn on_messages(&self, from: Seat, messages: Vec<PeerMessage>) {
        self.with_shard(|shard, links| {
            links.learn(from, &messages);
            shard.change_core(|core| core.step(messages));
        });
    }

    fn on_notices(&self, _from: Seat, notices: Vec<LeaderNotice>) {
        self.with_shard(|shard, links| links.note_leaders(&shard.catalog(), notices));
    }

    fn on_received(&self, _from: Seat, marks: Vec<ReceivedMark>) {
        self.with_shard(|shard, _| shard.change_core(|core| core.take_received(marks)));
    }

    fn on_call(&self, from: Seat, call: Call, reply: Replier) {
        self.with_shard(|shard, _| shard.take_call(from, &call, reply));
    }

    fn on_up(&self, seat: Seat) {
        self.with_shard(|shard, links| {
            links.in_sync.on_up(seat);
            if seat.shard == META_SHARD {
                let node = shard.node.config.node_id;
                let notice = |(group, term, replica)| LeaderNotice { group, term, replica, node };
                let notices = shard.with_core(|core| core.led_groups().map(notice).collect());
                links.peers.notify(seat, notices);
                links.introduce(shard, seat);
            }
            shard.change_core(|core| {
                core.peers_found(|group, replica| links.seat_of(group, replica) == Some(seat));
            });
        });
    }

    fn on_down(&self, seat: Seat) {
        self.with_shard(|shard, links| {
            links.in_sync.on_down(seat);
            shard.change_core(|core| {
                core.peers_lost(|group, replica| links.seat_of(group, replica) == Some(seat));
            });
        });
    }

    fn on_dropped(&self, _to: Seat, group: GroupId, replica: ReplicaId) {
        // Told at the next tick: many messages to one replica may be lost at once.
        self.with_shard(|_, links| _ = links.lost.borrow_mut().insert((group, replica)));
    }

    fn on_part_taken(&self, _to: Seat, group: GroupId, replica: ReplicaId) {
        self.with_shard(|shard, _| {
            shard.change_core(|core| core.snapshot_part_taken(group, replica));
        });
    }

    fn is_retired(&self, node_uuid: Uuid) -> bool {
        let shard = self.shard.upgrade();
        shard.is_some_and(|shard| shard.catalog().is_retired(Incarnation(node_uuid)))
    }

    fn on_retired(&self, _by: Seat) {
        fatal(&Reason::Retired);
    }
}

impl Shard {
    fn take_call(self: &Rc<Self>, from: Seat, call: &Call, reply: Replier) {
        match call.kind {
            forward::CALL_PROPOSE if self.id == META_SHARD => {
                self.take_forwarded(&call.body, reply)
            }
            join::CALL_JOIN if self.id == META_SHARD => self.take_in(from, &call.body, reply),
            status::CALL_STATUS => self.tell_status(reply),
            transfer::CALL_TRANSFER => self.take_transfers(&call.body, reply),
            quorum::CALL_QUORUM if self.id == META_SHARD => self.tell_quorum(reply),
            fill::CALL_RECORDS => self.give_records(from, &call.body, reply),
            in_sync::CALL_IN_SYNC if self.id == META_SHARD => {
                self.take_in_sync(from, &call.body, reply);
            }
            kind => reply.refuse(CallRefused::Invalid { text: format!("unknown call {kind}") }),
        }
    }

    /// The ways to the other nodes, where there are any.
    pub fn links(&self) -> Option<&ClusterLinks> {
        self.links.get()
    }

    /// Opens the ways to the other nodes; once, before the core has anything to say.
    pub(super) fn set_links(&self, links: ClusterLinks) {
        let set = self.links.set(links);
        assert!(set.is_ok(), "a shard gets its links once");
    }

    /// Tells leaders on other nodes what replicas here have received.
    pub(super) fn tell_received(&self, marks: &[ReceivedMark]) {
        if let Some(links) = self.links().filter(|_| !marks.is_empty()) {
            links.tell_received(marks);
        }
    }

    /// Sends what the core has for other nodes.
    pub(super) fn tell_peers(
        self: &Rc<Self>,
        messages: Vec<PeerMessage>,
        elected: Vec<(GroupId, Term, ReplicaId)>,
        fetches: Vec<GroupFetch>,
    ) {
        let Some(links) = self.links() else { return };
        links.send(messages);
        if !elected.is_empty() {
            self.reconcile_due.notify();
            let node = self.node.config.node_id;
            let notice = |(group, term, replica)| LeaderNotice { group, term, replica, node };
            let notices: Vec<LeaderNotice> = elected.into_iter().map(notice).collect();
            links.notify(&notices);
        }
        for fetch in fetches {
            chronik_ring::spawn(fetch_entries(Rc::clone(self), fetch)).detach();
        }
    }

    /// Tells Raft of messages that were lost. To be called at each tick.
    pub(super) fn tell_lost_messages(self: &Rc<Self>) {
        let Some(links) = self.links() else { return };
        let lost = std::mem::take(&mut *links.lost.borrow_mut());
        if !lost.is_empty() {
            self.change_core(|core| {
                for (group, replica) in lost {
                    core.peer_unreachable(group, replica);
                }
            });
        }
    }

    /// Lets other nodes lead what this one leads, before it stops.
    pub(super) async fn hand_over_leaderships(self: &Rc<Self>) {
        if self.links().is_none() {
            return;
        }
        for _ in 0..HAND_OVER_TRIES {
            if !self.change_core(ShardCore::hand_over) {
                return;
            }
            chronik_ring::sleep(HAND_OVER_PAUSE).await;
        }
        tracing::warn!(
            shard = self.id.0,
            "some partitions are led from here to the end: nobody took them over in time"
        );
    }

    /// Learns from a catalog which nodes there are, and where the replicas live that groups of this shard talk to.
    pub(super) fn learn_seats(&self, catalog: &Catalog) {
        let Some(links) = self.links() else { return };
        let node = self.node.config.node_id;
        let mut seats = HashMap::new();
        for partition in catalog.topics().flat_map(|topic| &topic.partitions) {
            if partition.placement_on(node).is_none_or(|placement| placement.shard != self.id) {
                continue;
            }
            for placement in partition.placements().filter(|placement| placement.node != node) {
                let seat = Seat { node: placement.node, shard: placement.shard };
                seats.insert(placement.replica, seat);
            }
        }
        *links.seats.borrow_mut() = seats;
        links.peers.set_nodes(self.peer_nodes(catalog));
        if self.id == META_SHARD {
            links.learn_meta_seats(catalog);
        }
    }
}

/// Reads entries of the log for followers that are behind.
async fn fetch_entries(shard: Rc<Shard>, GroupFetch { group, fetch }: GroupFetch) {
    let bytes_max = usize::try_from(fetch.bytes_max).unwrap_or(usize::MAX);
    let read = shard.wal.read_entries(group, fetch.from, fetch.up_to, bytes_max).await;
    let entries = read.unwrap_or_else(|error| {
        if let Some(Said { partition, times }) = shard.complain(group, &error.to_string()) {
            let from = fetch.from;
            tracing::warn!(partition, times, "entries from {from} on for a follower: {error}");
        }
        Vec::new()
    });
    shard.change_core(|core| core.entries_fetched(group, fetch.from, entries));
}
