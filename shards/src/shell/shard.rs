//! One shard as its core runs it: the sans-I/O [`ShardCore`], the WAL that makes its decisions durable, and everybody
//! who waits for one of them. All methods are for the shard's own core; others come in over the [`Mesh`].
//!
//! - I1: no borrow of the core lives across an await.
//! - I2: whoever changed the core calls [`Shard::after_core`] before the next await, so that no reply, wake-up or
//!   block is left behind.
//! - I3: the commit loop is the only one that writes; it never drops a write or a sync that it has begun.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chronik_engine::batch::RecordBatch;
use chronik_engine::disk_glommio::GlommioDisk;
use chronik_engine::ids::{FileSeq, GroupId, Offset, ShardId};
use chronik_engine::wal::Wal;
use chronik_net::MovedConnection;
use chronik_ring::sleep;
use futures_channel::oneshot;
use futures_util::future::Either;
use rand::Rng;

use super::background::Background;
use super::clock::Clock;
use super::cluster::{ClusterLinks, ClusterPlace};
use super::complaints::Complaints;
use super::fill::FillTraffic;
use super::groups::Coordinators;
use super::leadership::LeadershipWaits;
use super::mesh::{Mesh, MeshRefused};
use super::notify::Notify;
use super::repair::Repairs;
use super::replies::{ReplyTable, ReplyTo, WaiterIds, WaiterTable};
use super::serve::{Adopt, ReadNetStats};
use crate::catalog::{Catalog, CatalogCommand, Incarnation, PartitionTag};
use crate::config::Config;
use crate::core::{
    FetchError, ProduceError, ProduceResult, RequiredAcks, ShardCore, SnapshotFigures, Token,
    WaiterId,
};
use crate::handlers::fetch_session::SessionCache;
use crate::identity::Identity;
use crate::metrics::{CATALOG, ShardMetrics, ShardSnapshot, SnapshotSample, Stage};
use crate::stored::Segments;

/// How long a leader waits for something to send, with which its followers learn what is committed.
const COMMIT_TOLD_AFTER: Duration = Duration::from_millis(5);

/// What the main thread tells a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Take no more requests, answer those you have.
    Drain,
    /// Close the log and end.
    Close,
}

/// What every shard of the node knows of it.
#[derive(Debug)]
pub struct NodeInfo {
    /// The settings in force.
    pub config: Config,
    /// Kafka's cluster id: the cluster's uuid in Kafka's base64 form.
    pub cluster_id: String,
    /// The cluster's uuid.
    pub cluster_uuid: uuid::Uuid,
    /// The node's disk.
    pub incarnation: Incarnation,
    /// The host that clients are told to connect to.
    pub advertised_host: String,
    /// The port that clients are told to connect to.
    pub advertised_port: u16,
    /// How many shards the node has.
    pub shards: u16,
    /// The cluster that the node is in, unless it is alone.
    pub cluster: Option<ClusterPlace>,
    /// Whether it was in one, and is to be alone from now on.
    pub leaves_cluster: bool,
}

impl NodeInfo {
    /// From the settings and the identity of the data directory.
    #[must_use]
    pub fn new(config: Config, identity: &Identity, cluster: Option<ClusterPlace>) -> NodeInfo {
        let cluster_uuid = identity.cluster_uuid;
        NodeInfo {
            // Kafka's Uuid.toString: base64 for URLs, without padding.
            cluster_id: BASE64_URL_SAFE_NO_PAD.encode(cluster_uuid.as_bytes()),
            cluster_uuid,
            incarnation: Incarnation(identity.node_uuid),
            advertised_host: config.advertised_addr.host.clone(),
            advertised_port: config.advertised_addr.port,
            shards: identity.shards(),
            cluster,
            leaves_cluster: false,
            config,
        }
    }
}

/// See the module's page.
pub struct Shard {
    /// Which of the node's shards this is.
    pub id: ShardId,
    /// The node it belongs to.
    pub node: Arc<NodeInfo>,
    /// Time.
    pub clock: Clock,
    /// Counters and histograms.
    pub metrics: RefCell<ShardMetrics>,
    /// Fetch sessions of the connections on this core.
    pub sessions: RefCell<SessionCache>,
    /// Producer ids that this shard may give out.
    pub producer_ids: RefCell<Range<i64>>,
    /// The log; shared with the readers.
    pub wal: Rc<Wal<GlommioDisk>>,
    /// The log's name.
    pub(super) shard_uuid: uuid::Uuid,
    /// What has left the log, or may.
    pub segments: Segments<GlommioDisk>,
    /// The file of the log that is being read for segments.
    pub(super) held_file: Cell<Option<FileSeq>>,
    /// The threads for what may take its time.
    pub(super) background: Background,
    /// What was said of partitions in trouble.
    pub(super) complaints: Complaints,
    /// What of partitions cannot be read, and other replicas may have.
    pub(super) repairs: Repairs,
    pub(super) core: RefCell<ShardCore>,
    pub(super) work: Notify,
    /// Somebody is about to tell followers what is committed.
    tells_commits: Cell<bool>,
    pub(super) stopping: Cell<bool>,
    /// Told by the commit loop once it has written its last block.
    pub(super) stopped: Notify,
    /// Wakes the upkeep when the shard stops.
    pub(super) upkeep_ends: Notify,
    /// The upkeep writes no more.
    pub(super) upkeep_ended: Notify,
    pub(super) serving: Cell<bool>,
    /// The node is about to stop: fetches are answered with what there is.
    draining: Cell<bool>,
    /// The last order of the main thread.
    order: Cell<Option<Order>>,
    ordered: Notify,
    pub(super) catalog_seen: Notify,
    /// Topics were deleted, and coordinators have not forgotten their offsets yet.
    pub(super) are_topics_gone: Cell<bool>,
    /// The core serves from now on; for the loop that writes segments.
    pub(super) serving_begun: Notify,
    pub(super) first_pending_ns: Cell<Option<u64>>,
    /// When the last block became durable, and whether a mark has covered it since.
    pub(super) last_block_ns: Cell<u64>,
    pub(super) mark_due: Cell<bool>,
    pub(super) want_mark: Cell<bool>,
    /// The active file of the log has been in use for long enough.
    pub(super) want_roll: Cell<bool>,
    /// Groups whose entries keep the oldest file of the log, and are to be carried forward.
    pub(super) want_carry: RefCell<Vec<GroupId>>,
    /// Shard 0 only: the newest catalog, to be published.
    pub(super) catalog_newest: RefCell<Option<Arc<Catalog>>>,
    /// Shard 0 only: how often the catalog has changed since the start.
    pub(super) catalog_generation: Cell<u64>,
    pub(super) catalog_changed: Notify,
    /// The members of some group may not be those that the catalog wants.
    pub(super) reconcile_due: Notify,
    replies: RefCell<ReplyTable<ProduceResult>>,
    pub(super) reads: RefCell<ReplyTable<Result<(), FetchError>>>,
    waiters: RefCell<WaiterTable>,
    waiter_ids: RefCell<WaiterIds>,
    leadership_waits: RefCell<LeadershipWaits>,
    catalog: RefCell<Arc<Catalog>>,
    catalog_waits: RefCell<Vec<(u64, oneshot::Sender<()>)>>,
    catalog_generation_published: Cell<u64>,
    mesh: Mesh,
    /// The ways to the other nodes.
    pub(super) links: OnceCell<ClusterLinks>,
    /// Records that are copied from and to other nodes.
    pub(super) traffic: FillTraffic,
    /// The consumer groups that are coordinated here.
    pub(super) groups: RefCell<Coordinators>,
    net_stats: RefCell<Option<ReadNetStats>>,
    adopt: RefCell<Option<Adopt>>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).finish_non_exhaustive()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "seeds come from here; what is seeded has no randomness of its own"
)]
pub(super) fn random_seed() -> u64 {
    rand::rng().random()
}

/// What a shard is made of when its executor has started.
pub struct ShardParts {
    /// Which of the node's shards it is.
    pub id: ShardId,
    /// The node it belongs to.
    pub node: Arc<NodeInfo>,
    /// Time.
    pub clock: Clock,
    /// The log, recovered.
    pub wal: Wal<GlommioDisk>,
    /// The log's name.
    pub shard_uuid: uuid::Uuid,
    /// What has left the log.
    pub segments: Segments<GlommioDisk>,
    /// The threads for what may take its time.
    pub background: Background,
    /// The state that the log told.
    pub core: ShardCore,
    /// The way to the other shards.
    pub mesh: Mesh,
}

impl std::fmt::Debug for ShardParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardParts").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Shard {
    /// Puts a shard together. Nothing runs yet.
    #[must_use]
    pub fn new(parts: ShardParts) -> Rc<Shard> {
        let ShardParts { id, node, clock, wal, shard_uuid, segments, background, core, mesh } =
            parts;
        let slots = node.config.kafka.fetch_session_slots.div_ceil(usize::from(node.shards.max(1)));
        let sessions = SessionCache::new(random_seed(), slots);
        Rc::new(Shard {
            id,
            clock,
            metrics: RefCell::new(ShardMetrics::new(id)),
            sessions: RefCell::new(sessions),
            producer_ids: RefCell::new(0..0),
            wal: Rc::new(wal),
            shard_uuid,
            segments,
            held_file: Cell::new(None),
            background,
            complaints: Complaints::default(),
            repairs: Repairs::default(),
            core: RefCell::new(core),
            work: Notify::default(),
            tells_commits: Cell::new(false),
            stopping: Cell::new(false),
            stopped: Notify::default(),
            upkeep_ends: Notify::default(),
            upkeep_ended: Notify::default(),
            serving: Cell::new(false),
            draining: Cell::new(false),
            order: Cell::new(None),
            ordered: Notify::default(),
            catalog_seen: Notify::default(),
            are_topics_gone: Cell::new(false),
            serving_begun: Notify::default(),
            first_pending_ns: Cell::new(None),
            last_block_ns: Cell::new(0),
            mark_due: Cell::new(false),
            want_mark: Cell::new(false),
            want_roll: Cell::new(false),
            want_carry: RefCell::default(),
            catalog_newest: RefCell::new(None),
            catalog_generation: Cell::new(0),
            catalog_changed: Notify::default(),
            reconcile_due: Notify::default(),
            replies: RefCell::default(),
            reads: RefCell::default(),
            waiters: RefCell::default(),
            waiter_ids: RefCell::new(WaiterIds::of(id)),
            leadership_waits: RefCell::default(),
            catalog: RefCell::new(Arc::new(Catalog::default())),
            catalog_waits: RefCell::default(),
            catalog_generation_published: Cell::new(0),
            mesh,
            links: OnceCell::new(),
            traffic: FillTraffic::default(),
            groups: RefCell::default(),
            net_stats: RefCell::default(),
            adopt: RefCell::default(),
            node,
        })
    }

    /// The catalog as clients of this core see it.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.borrow())
    }

    /// Shows clients of this core a newer catalog.
    pub(super) fn publish_catalog(&self, catalog: Arc<Catalog>) {
        let earlier = self.catalog.replace(catalog);
        if self.catalog().has_deleted_since(&earlier) {
            self.are_topics_gone.set(true);
        }
        self.catalog_seen.notify();
        self.reconcile_due.notify();
    }

    /// Waits until the catalog of this core names this node and its disk: the core may serve from then on. For one task.
    pub(super) async fn catalog_arrived(&self) {
        while !self.is_in_catalog(&self.catalog()) {
            self.catalog_seen.notified().await;
        }
        self.serving.set(true);
        self.serving_begun.notify();
    }

    /// Publishes the catalog as it is, changed or not: a start begins with it.
    pub(super) fn publish_again(&self) {
        *self.catalog_newest.borrow_mut() = self.core.borrow().catalog();
        self.catalog_generation.set(self.catalog_generation.get() + 1);
        self.catalog_changed.notify();
    }

    /// What this core lacks to serve clients and take writes; and of a node that joins a cluster, to count there: whoever
    /// restarts one node after the other waits for that. Nothing if it is ready.
    #[must_use]
    pub fn unready(&self) -> Vec<&'static str> {
        let reasons = [
            (self.stopping.get(), "stopping"),
            (!self.serving.get(), "the catalog was not seen yet, or does not name this node"),
            (self.core.borrow().storage_full(), "no room on the disk: produce is refused"),
            (!self.has_joined(), "joining: not a full member of the catalog yet"),
        ];
        reasons.into_iter().filter_map(|(holds, why)| holds.then_some(why)).collect()
    }

    /// Refuses produces, or takes them again, as the disk has room for another WAL file or not.
    pub(super) fn note_storage_full(self: &Rc<Self>, full: bool) {
        if full == self.core.borrow().storage_full() {
            return;
        }
        let dir = self.node.config.data_dir.display();
        if full {
            tracing::error!(
                shard = self.id.0,
                "no room for another WAL file in {dir}: produce is refused until there is"
            );
        } else {
            tracing::info!(
                shard = self.id.0,
                "there is room for WAL files in {dir} again: produce goes on"
            );
        }
        self.change_core(|core| core.set_storage_full(full));
    }

    /// The figures of this shard as of now.
    #[must_use]
    pub fn snapshot(&self) -> ShardSnapshot {
        let mut snapshot = self.metrics.borrow().snapshot();
        let counters = &mut snapshot.counters;
        if let Some(net) = self.net_stats.borrow().as_ref().map(|read| read()) {
            counters.connections = net.connections as u64;
            counters.connections_accepted = net.connections_accepted;
            counters.connections_refused = net.connections_refused;
            counters.connections_moved = net.connections_handed_over;
            counters.in_flight_bytes = net.admission_bytes_used as u64;
        }
        counters.wal_position_bytes = self.wal.position().1;
        counters.wal_files = self.wal.file_count() as u64;
        (counters.segments, counters.segment_bytes) = self.core.borrow().segment_totals();
        counters.fetch_waiters = self.waiters.borrow().len() as u64;
        counters.queue_depth = self.replies.borrow().len() as u64;
        let groups = self.groups.borrow().stats();
        (counters.read_only_replicas, counters.read_only_behind) = self.read_only_figures();
        counters.groups = groups.groups;
        counters.group_members = groups.members;
        counters.group_rebalances = groups.rebalances;
        counters.group_members_expired = groups.expired_members;
        let core = self.core.borrow();
        let figures = core.figures();
        counters.tail_cache_bytes = core.tail_cache_bytes() as u64;
        counters.partitions = figures.groups;
        counters.storage_full = u64::from(core.storage_full());
        counters.raft_log_entries = figures.log_entries;
        counters.raft_leader_elections = figures.elections_won;
        counters.raft_current_term = figures.term_max;
        counters.raft_commit_index = figures.commit_index_max;
        counters.raft_messages_refused = figures.messages_refused;
        counters.raft_append_entries = figures.sent.appends;
        counters.raft_heartbeats = figures.sent.heartbeats;
        counters.raft_vote_requests = figures.sent.vote_requests;
        counters.leaders = figures.leaders;
        counters.wal_stalls = figures.stalls;
        counters.acks_durable = figures.acks_durable;
        counters.acks_relaxed = figures.acks_relaxed;
        counters.under_replicated = figures.under_replicated;
        counters.offline = figures.offline;
        snapshot.snapshots = self.snapshot_samples(&core);
        drop(core);
        if let Some(links) = self.links() {
            snapshot.peers = links.peers().stats();
            snapshot.refusals = links.peers().refusals();
        }
        snapshot
    }

    fn snapshot_samples(&self, core: &ShardCore) -> Vec<SnapshotSample> {
        let catalog = self.catalog();
        let sample = |(group, tag, figures): (GroupId, Option<PartitionTag>, SnapshotFigures)| {
            let (topic, partition) = match tag {
                Some(tag) => (catalog.topic_by_id(tag.topic)?.name.to_string(), tag.partition),
                None => ((group == GroupId::META).then(|| CATALOG.to_owned())?, 0),
            };
            Some(SnapshotSample { topic, partition, figures })
        };
        core.snapshot_figures().filter_map(sample).collect()
    }

    /// Writes what was proposed, closes the log cleanly and tells everybody who still waits that they will not be
    /// answered. The loops end.
    pub(super) async fn stop(self: &Rc<Self>) {
        self.stopping.set(true);
        self.core.borrow_mut().end_promises();
        self.work.notify();
        self.upkeep_ends.notify();
        self.catalog_changed.notify();
        self.reconcile_due.notify();
        self.stopped.notified().await;
        self.change_core(ShardCore::abort_all);
        if let Some(links) = self.links() {
            links.peers().close().await;
        }
        self.mesh.close(self.id);
    }

    /// Sends home the fetches that wait for data here, and lets no more wait.
    pub(super) fn begin_drain(&self) {
        self.draining.set(true);
        let waiting = self.waiters.borrow_mut().take_all();
        for wake in waiting {
            wake.send(self, ());
        }
        self.resign_groups();
    }

    /// Whether the node is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    pub(super) fn give_order(&self, order: Order) {
        self.order.set(Some(order));
        self.ordered.notify();
    }

    /// The next order. One that comes before the last was taken takes its place.
    pub(super) async fn next_order(&self) -> Order {
        loop {
            self.ordered.notified().await;
            if let Some(order) = self.order.take() {
                return order;
            }
        }
    }

    /// Tells those who wait for this generation of the catalog or an older one that every core shows it.
    pub(super) fn catalog_published(&self, generation: u64) {
        let mut waits = self.catalog_waits.borrow_mut();
        for (_, done) in waits.extract_if(.., |(wanted, _)| *wanted <= generation) {
            _ = done.send(());
        }
        self.catalog_generation_published.set(generation);
    }

    /// Resolves once every core shows the catalog as it is now on shard 0, where this is called. Cancel-safe.
    pub fn catalog_shown(&self) -> oneshot::Receiver<()> {
        let (done, shown) = oneshot::channel();
        let generation = self.catalog_generation.get();
        if self.catalog_generation_published.get() >= generation {
            _ = done.send(());
        } else {
            self.catalog_waits.borrow_mut().push((generation, done));
        }
        shown
    }

    /// Resolves once each of `groups` has a leader: this replica, ready to serve, or another. Cancel-safe.
    pub(super) fn all_led(&self, groups: Vec<GroupId>) -> oneshot::Receiver<()> {
        let led = self.leadership_waits.borrow_mut().add(groups);
        self.check_leadership();
        led
    }

    fn check_leadership(&self) {
        let mut waits = self.leadership_waits.borrow_mut();
        if waits.is_empty() {
            return;
        }
        let core = self.core.borrow();
        // A group that is gone is not waited for.
        waits.check(|group| core.partition(group).is_some_and(|view| !view.is_settled));
    }

    /// Where the figures of this core's connections are read.
    pub(super) fn set_net_stats(&self, read: ReadNetStats) {
        *self.net_stats.borrow_mut() = Some(read);
    }

    /// Where connections that other cores hand over go on.
    pub(super) fn set_adopt(&self, adopt: Adopt) {
        *self.adopt.borrow_mut() = Some(adopt);
    }

    /// Goes on with a connection of another core, or closes it where this one does not serve yet.
    pub fn adopt(&self, connection: MovedConnection) {
        if let Some(adopt) = self.adopt.borrow().as_ref() {
            adopt(connection);
        }
    }

    /// Reads the core. The borrow ends with the closure.
    pub fn with_core<T>(&self, read: impl FnOnce(&ShardCore) -> T) -> T {
        read(&self.core.borrow())
    }

    /// Changes the core, then does what it wants done.
    pub fn change_core<T>(self: &Rc<Self>, change: impl FnOnce(&mut ShardCore) -> T) -> T {
        let result = change(&mut self.core.borrow_mut());
        self.after_core();
        result
    }

    /// Runs `f` on the shard `target` and brings its result back. What `f` does before it returns its future happens in
    /// the order of the calls (mesh I1); on the own core it happens at once. What is dropped before
    /// its end goes on on another core and stops on this one.
    pub fn on<T, F, Fut>(
        self: &Rc<Self>,
        target: ShardId,
        f: F,
    ) -> impl Future<Output = Result<T, MeshRefused>> + use<T, F, Fut>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Shard>) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        if target == self.id {
            let here = f(Rc::clone(self));
            return Either::Left(async move { Ok(here.await) });
        }
        let (reply_to, receiver) = ReplyTo::channel(self.id);
        let sent = self.mesh.send(
            target,
            Box::new(move |shard| {
                let there = f(Rc::clone(shard));
                let shard = Rc::clone(shard);
                let answer = async move { reply_to.send(&shard, there.await) };
                chronik_ring::spawn(answer).detach();
            }),
        );
        Either::Right(async move {
            sent?;
            receiver.await.map_err(|oneshot::Canceled| MeshRefused)
        })
    }

    /// The way to the other shards.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Sends a job to another shard, or runs it here if this is the one.
    ///
    /// # Errors
    /// [`MeshRefused`] if the other shard cannot take it.
    pub fn post(
        self: &Rc<Self>,
        target: ShardId,
        job: impl FnOnce(&Rc<Shard>) + Send + 'static,
    ) -> Result<(), MeshRefused> {
        if target == self.id {
            job(self);
            return Ok(());
        }
        self.mesh.send(target, Box::new(job))
    }

    /// Proposes a batch to a partition of this shard. Its place in the log is fixed on return; `done` hears of its
    /// fate once. One for all is refused where fewer than `in_sync_min` replicas are in sync.
    pub fn propose_batch(
        self: &Rc<Self>,
        group: GroupId,
        batch: RecordBatch,
        acks: RequiredAcks,
        in_sync_min: u32,
        retained_bytes: usize,
        done: ReplyTo<ProduceResult>,
    ) {
        {
            let counters = &mut self.metrics.borrow_mut().counters;
            counters.produce_batches += 1;
            counters.produce_bytes += batch.size() as u64;
        }
        self.propose(done, |core, token| {
            // Also where one is enough: those may wait who came when more were asked for.
            if acks.is_for_all() {
                core.check_in_sync(group, in_sync_min)?;
            }
            core.propose_batch(group, batch, acks, retained_bytes, token)
        });
    }

    /// Proposes a change of the catalog; only on the shard that has the group `__meta`.
    pub fn propose_command(
        self: &Rc<Self>,
        command: &CatalogCommand,
        done: ReplyTo<ProduceResult>,
    ) {
        self.propose(done, |core, token| core.propose_command(command, token));
    }

    /// Lets the log of a partition of this shard start at `offset`, if that is not beyond its high watermark.
    pub fn propose_log_start(
        self: &Rc<Self>,
        group: GroupId,
        offset: Offset,
        done: ReplyTo<ProduceResult>,
    ) {
        self.propose(done, |core, token| core.propose_log_start(group, offset, Some(token)));
    }

    pub(super) fn propose(
        self: &Rc<Self>,
        done: ReplyTo<ProduceResult>,
        propose: impl FnOnce(&mut ShardCore, Token) -> Result<(), ProduceError>,
    ) {
        let now_ns = self.clock.now_ns();
        let token = self.replies.borrow_mut().insert(done, now_ns);
        let proposed = if self.stopping.get() {
            Err(ProduceError::NotLeader)
        } else {
            propose(&mut self.core.borrow_mut(), token)
        };
        if let Err(error) = proposed {
            self.answer(token, Err(error));
        } else if self.first_pending_ns.get().is_none() {
            self.first_pending_ns.set(Some(now_ns));
        }
        self.after_core();
    }

    /// Does what the core wants done: replies, wake-ups, a new catalog; and wakes the commit loop if there is something
    /// to write (I2).
    pub fn after_core(self: &Rc<Self>) {
        let effects = self.core.borrow_mut().take_effects();
        if !effects.replies.is_empty() {
            let now_ns = self.clock.now_ns();
            for (token, result) in effects.replies {
                if let Some(since_ns) = self.answer(token, result) {
                    let mut metrics = self.metrics.borrow_mut();
                    metrics.record(Stage::Commit, now_ns.saturating_sub(since_ns));
                }
            }
        }
        for (token, outcome) in effects.reads {
            let waiting = self.reads.borrow_mut().take(token);
            if let Some((reply_to, _)) = waiting {
                reply_to.send(self, outcome);
            }
        }
        for waiter in effects.wakes {
            let woken = self.waiters.borrow_mut().take(waiter);
            if let Some(woken) = woken {
                woken.send(self, ());
            }
        }
        if !effects.segments_gone.is_empty() {
            self.segments.note_gone(effects.segments_gone);
        }
        self.tell_received(&effects.received);
        self.tell_peers(effects.messages, effects.elected, effects.fetches);
        self.fill(effects.fills);
        self.check_leadership();
        if let Some(catalog) = effects.catalog {
            *self.catalog_newest.borrow_mut() = Some(catalog);
            self.catalog_generation.set(self.catalog_generation.get() + 1);
            self.catalog_changed.notify();
        }
        let (has_work, has_commits_to_tell) = {
            let core = self.core.borrow();
            (core.has_work(), core.has_commits_to_tell())
        };
        if has_work {
            self.work.notify();
        }
        if has_commits_to_tell && !self.tells_commits.replace(true) {
            let shard = Rc::clone(self);
            chronik_ring::spawn(async move {
                sleep(COMMIT_TOLD_AFTER).await;
                shard.tells_commits.set(false);
                shard.change_core(ShardCore::tell_commits);
            })
            .detach();
        }
    }

    /// Answers the one named by `token` and says since when they waited.
    fn answer(&self, token: Token, result: ProduceResult) -> Option<u64> {
        let (reply_to, since_ns) = self.replies.borrow_mut().take(token)?;
        reply_to.send(self, result);
        Some(since_ns)
    }

    /// A name for a fetch that is about to wait.
    pub fn new_waiter(&self) -> WaiterId {
        self.waiter_ids.borrow_mut().give()
    }

    /// Lets a fetch wait on this shard until one of its partitions has data beyond the offset beside it.
    pub fn wait_for_data(
        self: &Rc<Self>,
        waiter: WaiterId,
        beyond: &[(GroupId, Offset)],
        wake: ReplyTo<()>,
    ) {
        if self.draining.get() {
            wake.send(self, ());
            return;
        }
        self.waiters.borrow_mut().insert(waiter, wake);
        self.change_core(|core| {
            for (group, offset) in beyond {
                core.wait_for_data(*group, *offset, waiter);
            }
        });
    }

    /// Forgets a fetch that waits no longer.
    pub fn forget_waiter(&self, waiter: WaiterId) {
        self.waiters.borrow_mut().remove(waiter);
        self.core.borrow_mut().forget_waiter(waiter);
    }
}
