//! Which replicas are in sync, on whatever node: what clients are told in metadata.
//!
//! A leader knows it of its own groups. Each shard tells the catalog's shard of every other node which of its groups lack
//! one, all of them whenever that changes; of groups that nobody names all replicas are in sync.
//!
//! - I1: what is told is a hint for those who look; nothing is decided by it.
//! - I2: what a shard said counts until it says something else, or its node cannot be heard.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::framed;
use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};
use chronik_replication::peers::Replier;
use chronik_replication::wire::{CallRefused, Seat};
use futures_util::future::join_all;

use super::META_SHARD;
use crate::catalog::{Partition, Placement, Topic};
use crate::core::ShardCore;
use crate::shell::shard::Shard;

/// A call that tells which of a shard's groups lack replicas in sync.
pub(super) const CALL_IN_SYNC: u8 = 16;

const VERSION: u8 = 1;
/// Most memory that what a shard tells may claim.
const TOLD_BYTES_MAX: usize = 16 << 20;
/// Ticks between two looks at the groups of a shard: 1 s of 50 ms ticks.
const LOOK_TICKS: u32 = 20;
/// Ticks between two looks at those that lacked a replica, if they are no more than so many: somebody waits for them.
const SHORT_LOOK_TICKS: u32 = 2;
const SHORT_LOOK_MAX: usize = 256;
/// For a node to take note.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Groups that lack a replica in sync, with those that are.
type Short = BTreeMap<GroupId, Vec<ReplicaId>>;

/// What a shard tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
struct Told {
    short: Vec<(GroupId, Vec<ReplicaId>)>,
}

/// What a shard says and has heard.
#[derive(Debug, Default)]
pub struct InSync {
    ticks: Cell<u32>,
    /// Of the groups led from here, as of the last look, and how often that has changed.
    own: RefCell<Short>,
    generation: Cell<u64>,
    /// Which generation each node has heard.
    heard: RefCell<BTreeMap<NodeId, u64>>,
    is_telling: Cell<bool>,
    /// On the catalog's shard: what shards of other nodes have said.
    told: RefCell<BTreeMap<Seat, Short>>,
}

impl InSync {
    /// A node is there, perhaps anew: it has heard nothing.
    pub(super) fn on_up(&self, seat: Seat) {
        if seat.shard == META_SHARD {
            self.heard.borrow_mut().remove(&seat.node);
        }
    }

    /// A seat cannot be heard any more (I2).
    pub(super) fn on_down(&self, seat: Seat) {
        self.told.borrow_mut().remove(&seat);
        if seat.shard == META_SHARD {
            self.told.borrow_mut().retain(|other, _| other.node != seat.node);
        }
    }

    fn look(&self, now: Short) {
        if *self.own.borrow() != now {
            *self.own.borrow_mut() = now;
            self.generation.set(self.generation.get() + 1);
        }
    }

    fn told_of(&self, groups: &BTreeSet<GroupId>) -> Short {
        let told = self.told.borrow();
        let named = told.values().flatten().filter(|(group, _)| groups.contains(group));
        named.map(|(group, in_sync)| (*group, in_sync.clone())).collect()
    }
}

/// Which replicas of some partitions are in sync, and which nodes can be heard.
#[derive(Debug, Default)]
pub struct InSyncView {
    short: Short,
    silent: BTreeSet<NodeId>,
    /// Read-only nodes that consumers are not sent to.
    drained: BTreeSet<NodeId>,
}

impl InSyncView {
    /// The nodes whose replicas of a partition are in sync.
    pub fn in_sync<'a>(&'a self, partition: &'a Partition) -> impl Iterator<Item = NodeId> + 'a {
        let known = self.short.get(&partition.group);
        let is_in_sync = move |place: &&Placement| match known {
            Some(in_sync) => in_sync.contains(&place.replica),
            None => !partition.adding.contains(&place.replica),
        };
        let nodes = partition.replicas.iter().filter(is_in_sync).map(|place| place.node);
        nodes.filter(|node| !self.silent.contains(node))
    }

    /// The read-only nodes to which consumers of a partition may be sent.
    pub fn readers<'a>(&'a self, partition: &'a Partition) -> impl Iterator<Item = NodeId> + 'a {
        let nodes = partition.readers.iter().map(|place| place.node);
        nodes.filter(|node| !self.silent.contains(node) && !self.drained.contains(node))
    }

    /// The nodes with replicas of a partition that cannot be heard.
    pub fn offline<'a>(&'a self, partition: &'a Partition) -> impl Iterator<Item = NodeId> + 'a {
        let nodes = partition.replicas.iter().map(|place| place.node);
        nodes.filter(|node| self.silent.contains(node))
    }
}

/// What is known here of the partitions of these topics. Cancel-safe.
pub async fn in_sync_of(shard: &Rc<Shard>, topics: impl Iterator<Item = &Topic>) -> InSyncView {
    let Some(links) = shard.links() else { return InSyncView::default() };
    let here = shard.node.config.node_id;
    let mut by_shard: BTreeMap<ShardId, Vec<GroupId>> = BTreeMap::new();
    let mut groups: BTreeSet<GroupId> = BTreeSet::new();
    let mut silent: BTreeSet<NodeId> = BTreeSet::new();
    for partition in topics.flat_map(|topic| &topic.partitions) {
        groups.insert(partition.group);
        let all = partition.replicas.iter().chain(&partition.readers);
        let others = all.map(|place| place.node).filter(|node| *node != here);
        silent.extend(others.filter(|node| !links.is_up(*node)));
        if let Some(placement) = partition.placement_on(here) {
            by_shard.entry(placement.shard).or_default().push(partition.group);
        }
    }
    let told = shard.on(META_SHARD, move |there| {
        let told = there.links().map(|links| links.in_sync().told_of(&groups));
        async move { told.unwrap_or_default() }
    });
    let led = by_shard.into_iter().map(|(target, groups)| {
        shard.on(target, move |there| {
            let in_sync = |group| there.with_core(|core| core.in_sync(group));
            let led: Short =
                groups.into_iter().filter_map(|group| Some((group, in_sync(group)?))).collect();
            async move { led }
        })
    });
    let led = join_all(led).await;
    let mut short = told.await.unwrap_or_default();
    // A leader on this node knows better than what was said before it led.
    short.extend(led.into_iter().flatten().flatten());
    let drained = shard
        .catalog()
        .read_only_brokers()
        .filter(|broker| broker.is_cordoned)
        .map(|b| b.node)
        .collect();
    InSyncView { short, silent, drained }
}

impl Shard {
    /// Looks at the groups that are led from here now and then, and tells the other nodes what has changed. To be called
    /// at each tick.
    pub(in crate::shell) fn tell_in_sync(self: &Rc<Self>) {
        let Some(links) = self.links() else { return };
        let in_sync = links.in_sync();
        let ticks = in_sync.ticks.get().wrapping_add(1);
        in_sync.ticks.set(ticks);
        let lacking = in_sync.own.borrow().len();
        let is_soon = (1..=SHORT_LOOK_MAX).contains(&lacking);
        if ticks.is_multiple_of(LOOK_TICKS) {
            in_sync.look(self.with_core(|core| core.under_replicated().collect()));
        } else if is_soon && ticks.is_multiple_of(SHORT_LOOK_TICKS) {
            let known: Vec<GroupId> = in_sync.own.borrow().keys().copied().collect();
            let short = |core: &ShardCore| {
                let still = |group| Some((group, core.short_of_voters(group)?));
                known.into_iter().filter_map(still).collect()
            };
            in_sync.look(self.with_core(short));
        } else {
            return;
        }
        let generation = in_sync.generation.get();
        let nodes = links.peers().up_seats().into_iter().filter(|seat| seat.shard == META_SHARD);
        let unheard: Vec<Seat> = nodes
            .filter(|seat| in_sync.heard.borrow().get(&seat.node).copied() != Some(generation))
            .collect();
        // Of a shard that has never lacked a replica there is nothing to say.
        if generation == 0 || unheard.is_empty() || in_sync.is_telling.replace(true) {
            return;
        }
        let shard = Rc::clone(self);
        chronik_ring::spawn(async move { shard.tell_all(unheard, generation).await }).detach();
    }

    /// The replicas of this shard for readers alone, and the partitions led from it of which such a replica does not answer or is
    /// behind. Looks at every partition: for a scrape.
    pub(in crate::shell) fn read_only_figures(&self) -> (u64, u64) {
        let catalog = self.catalog();
        let own = (self.node.config.node_id, self.id);
        let is_here = |reader: &Placement| (reader.node, reader.shard) == own;
        let (mut here, mut behind) = (0, 0);
        let partitions = catalog.topics().flat_map(|topic| &topic.partitions);
        for partition in partitions.filter(|partition| !partition.readers.is_empty()) {
            here += u64::from(partition.readers.iter().any(is_here));
            behind += u64::from(self.with_core(|core| is_reader_behind(core, partition)));
        }
        (here, behind)
    }

    async fn tell_all(self: Rc<Self>, nodes: Vec<Seat>, generation: u64) {
        let Some(links) = self.links() else { return };
        let short = links.in_sync().own.borrow().clone().into_iter().collect();
        let body = match framed::encode(VERSION, &Told { short }) {
            Ok(body) => Bytes::from(body),
            Err(error) => unreachable!("encoding into memory does not fail: {error}"),
        };
        let tell = |seat: Seat| {
            let told = links.peers().call(seat, CALL_IN_SYNC, body.clone(), TELL_TIMEOUT);
            async move { (seat.node, told.await.is_ok()) }
        };
        let told = join_all(nodes.into_iter().map(tell)).await;
        let heard = told.into_iter().filter(|(_, is_ok)| *is_ok);
        // Who has not heard it, for whatever reason, is told again after the next look.
        links.in_sync().heard.borrow_mut().extend(heard.map(|(node, _)| (node, generation)));
        links.in_sync().is_telling.set(false);
    }

    /// Takes note of what another shard says.
    pub(super) fn take_in_sync(&self, from: Seat, body: &[u8], reply: Replier) {
        let Some(links) = self.links() else { return };
        match framed::decode::<Told, TOLD_BYTES_MAX>(VERSION, body) {
            Ok(told) => {
                links.in_sync().told.borrow_mut().insert(from, told.short.into_iter().collect());
                reply.answer(Bytes::new());
            }
            Err(error) => reply.refuse(CallRefused::Invalid { text: error.to_string() }),
        }
    }
}

fn is_reader_behind(core: &ShardCore, partition: &Partition) -> bool {
    let group = partition.group;
    let Some(commit) = core.commit_index(group).filter(|_| core.leads(group)) else { return false };
    let peers = core.members(group).map(|(_, progress)| progress).unwrap_or_default();
    let keeps_up = |reader: &Placement| {
        peers.iter().any(|peer| peer.replica == reader.replica && peer.has_caught_up(commit))
    };
    !partition.readers.iter().all(keeps_up)
}
