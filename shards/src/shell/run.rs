//! From the settings to a serving node, and down again.
//!
//! One executor thread per shard, and the main thread, which waits: for a signal, or for a shard to end. A stop has two
//! steps, since connections on one core need the logs of the others: first all cores finish what their clients have
//! asked for, then all logs are closed.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use chronik_engine::disk::Disk as _;
use chronik_engine::disk_glommio::GlommioDisk;
use chronik_engine::ids::{GroupId, ShardId};
use chronik_engine::wal::record::GroupMeta;
use chronik_engine::wal::{RecoveryReport, Wal, WalError, WalOptions};
use chronik_net::NetError;
use chronik_replication::formation::sole_replica;
use futures_util::future::{Either, select};
use glommio::{LocalExecutorBuilder, Placement};

use super::background::Background;
use super::clock::{Clock, stopwatch_ns};
use super::cluster::META_SHARD;
use super::cluster::balance::balance_loop;
use super::cluster::reconcile::reconcile_loop;
use super::commit::{TICK_MS, commit_loop, tick_loop};
use super::compaction::compaction_loop;
use super::leaving::{self, Together};
use super::mesh::{Mesh, run_jobs};
use super::publisher::publish_loop;
use super::retention::retention_loop;
use super::roll::roll_loop;
use super::serve::Listeners;
use super::shard::{NodeInfo, Order, Shard, ShardParts, random_seed};
use super::tiering::{room_for_segments, tiering_loop};
use super::upkeep::upkeep_loop;
use crate::catalog::{CommandOutcome, Incarnation};
use crate::core::{CoreConfig, CoreError, ShardCore};
use crate::handlers::change::change_catalog;
use crate::identity::Identity;
use crate::startup::Environment;
use crate::stored::{RestoreError, Segments};

/// A visit to glommio's reactor is over before this; beyond it the reactor would go to sleep.
const REACTOR_SPIN: Duration = Duration::from_micros(20);

/// A signal this soon after the first one is its echo; a later one ends the process at once.
const SIGNAL_ECHO: Duration = Duration::from_millis(500);

/// Between two tries of a node to enter itself into the catalog of its cluster.
const REGISTER_RETRY: Duration = Duration::from_millis(100);

/// How long connections may take to hand in what they have begun.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A shard's thread could not be started.
    #[error("shard {shard}: its executor did not start: {error}")]
    Executor {
        /// The shard.
        shard: ShardId,
        /// What glommio says.
        error: glommio::GlommioError<()>,
    },
    /// A shard's ring could not be made.
    #[error("shard {shard}: the kernel refused an io_uring: {error}")]
    Ring {
        /// The shard.
        shard: ShardId,
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
    /// The shards' ways to each other could not be made.
    #[error("cannot make the inboxes of the shards: {error}")]
    Mesh {
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
    /// The log and the segments of a shard do not belong together.
    #[error("shard {shard}: {error}")]
    Segments {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        error: RestoreError,
    },
    /// A background thread could not be started.
    #[error("cannot start a background thread: {error}")]
    Background {
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
    /// A shard's log could not be opened.
    #[error("shard {shard}: {error}")]
    Wal {
        /// The shard.
        shard: ShardId,
        /// What is wrong with it.
        #[source]
        error: WalError,
    },
    /// A node of a cluster has lost its log.
    #[error(
        "shard {shard}: {path} has no log, but the data directory was used before: what this node has voted for is \
         forgotten. Restore it, or let the node join its cluster anew with an empty data_dir"
    )]
    LogGone {
        /// The shard.
        shard: ShardId,
        /// Where it should be.
        path: PathBuf,
    },
    /// What a shard's log says makes no sense.
    #[error("shard {shard}: {error}")]
    Core {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        #[source]
        error: CoreError,
    },
    /// A disk operation outside the log failed.
    #[error("shard {shard}: {path}: {error}")]
    Disk {
        /// The shard.
        shard: ShardId,
        /// Where.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
    /// A port could not be listened on.
    #[error("shard {shard}: {error}")]
    Listen {
        /// The shard.
        shard: ShardId,
        /// Which, and what the kernel says.
        #[source]
        error: NetError,
    },
    /// The Raft port could not be listened on.
    #[error("raft_addr {address}: cannot be listened on: {error}")]
    RaftPort {
        /// The address.
        address: std::net::SocketAddr,
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
    /// The cluster that the node is to leave has others.
    #[error(
        "data directory {path}: belongs to a node of a cluster, and {together}. Nothing was changed: {back}, and it goes on in its \
         cluster; to leave that, have `chronik-server cluster remove` take the other nodes out first"
    )]
    Together {
        /// The data directory.
        path: PathBuf,
        /// Who.
        together: Together,
        /// How the settings are to be for the node to go on where it is.
        back: &'static str,
    },
    /// The node could not enter itself into the catalog.
    #[error("the node could not register in the catalog: {why}")]
    Register {
        /// What stood in the way.
        why: String,
    },
    /// A shard's thread ended without a word.
    #[error("shard {shard} ended unexpectedly")]
    Vanished {
        /// The shard.
        shard: ShardId,
    },
    /// Signals could not be waited for.
    #[error("cannot wait for signals: {error}")]
    Signals {
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
}

/// What the main thread hears.
enum Event {
    Serving,
    Drained,
    Ended(ShardId, Result<(), RunError>),
    Signal(i32),
}

/// Runs the node until it is told to stop.
///
/// # Errors
/// The first thing that kept it from starting or from going on.
pub fn run(
    node: &Arc<NodeInfo>,
    identity: &Identity,
    environment: &Environment,
) -> Result<(), RunError> {
    let (events, heard) = mpsc::channel();
    watch_signals(events.clone())?;
    let mesh = Mesh::new(node.shards).map_err(|error| RunError::Mesh { error })?;
    let background =
        Background::start(node.shards).map_err(|error| RunError::Background { error })?;
    for (shard, shard_uuid) in (0..node.shards).map(ShardId).zip(&identity.shard_uuids) {
        let start = ShardStart {
            shard,
            shard_uuid: *shard_uuid,
            node: Arc::clone(node),
            events: events.clone(),
            mesh: mesh.clone(),
            background: background.clone(),
        };
        spawn(start, environment)?;
    }
    drop(events);
    supervise(&heard, &mesh, node.shards)
}

/// Waits for what happens. Returns when all shards have ended.
fn supervise(heard: &mpsc::Receiver<Event>, mesh: &Mesh, shards: u16) -> Result<(), RunError> {
    let tell_all = |order: Order| {
        for shard in (0..shards).map(ShardId) {
            // A shard that has ended hears no orders.
            _ = mesh.send(shard, Box::new(move |shard| shard.give_order(order)));
        }
    };
    let (mut serving, mut drained, mut ended, mut stopping) = (0, 0, 0, false);
    let mut first_signal_at: Option<Instant> = None;
    let mut outcome = Ok(());
    while ended < shards {
        let Ok(event) = heard.recv() else { break };
        match event {
            Event::Serving => {
                serving += 1;
                if serving == shards {
                    tracing::info!("ready");
                }
            }
            // A terminal and coreutils' timeout signal twice, the process and its group: the same wish.
            Event::Signal(_) if first_signal_at.is_some_and(|at| at.elapsed() < SIGNAL_ECHO) => {}
            Event::Signal(signal) if stopping => {
                tracing::warn!("signal {signal} again: ending at once; recovery will do the rest");
                std::process::exit(128 + signal);
            }
            Event::Signal(signal) => {
                tracing::info!("signal {signal}: finishing what clients have begun");
                stopping = true;
                first_signal_at = Some(now());
                tell_all(Order::Drain);
            }
            Event::Drained => {
                drained += 1;
                if drained == shards {
                    tell_all(Order::Close);
                }
            }
            Event::Ended(shard, result) => {
                ended += 1;
                tracing::debug!(shard = shard.0, "ended");
                // The others hold nothing that needs a farewell: what is acknowledged is durable.
                result?;
                if !stopping && outcome.is_ok() {
                    outcome = Err(RunError::Vanished { shard });
                    tell_all(Order::Close);
                }
            }
        }
    }
    if stopping && outcome.is_ok() {
        tracing::info!("stopped");
    }
    outcome
}

#[expect(clippy::disallowed_methods, reason = "signals come in real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the shell starts the threads")]
fn watch_signals(events: mpsc::Sender<Event>) -> Result<(), RunError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])
        .map_err(|error| RunError::Signals { error })?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// What a shard's thread starts with.
struct ShardStart {
    shard: ShardId,
    shard_uuid: uuid::Uuid,
    node: Arc<NodeInfo>,
    events: mpsc::Sender<Event>,
    mesh: Mesh,
    background: Background,
}

fn spawn(start: ShardStart, environment: &Environment) -> Result<(), RunError> {
    let shard = start.shard;
    let notifier = start.mesh.notifier(shard).ok_or(RunError::Vanished { shard })?;
    let placement = match environment.cpu_of(shard) {
        Some(cpu) => Placement::Fixed(cpu),
        None => Placement::Unbound,
    };
    LocalExecutorBuilder::new(placement)
        .name(&format!("chronik-{shard}"))
        .io_memory(environment.io_memory_bytes)
        .spin_before_park(REACTOR_SPIN)
        .spawn(move || async move {
            if let Err(error) = chronik_engine::sched::shorten_slice() {
                tracing::debug!("the core may have to wait for others when it wakes up: {error}");
            }
            let events = start.events.clone();
            let result = match chronik_ring::run(notifier, shard_main(start)).await {
                Ok(result) => result,
                Err(error) => Err(RunError::Ring { shard, error }),
            };
            _ = events.send(Event::Ended(shard, result));
        })
        .map(drop)
        .map_err(|error| RunError::Executor { shard, error })
}

/// The life of a shard.
async fn shard_main(start: ShardStart) -> Result<(), RunError> {
    let id = start.shard;
    let events = start.events.clone();
    let shard = open_shard(start).await?;
    if !arrive(&shard).await? {
        _ = events.send(Event::Drained);
        while let Order::Drain = shard.next_order().await {}
        shard.stop().await;
        return Ok(());
    }
    let listeners =
        Listeners::open(&shard).map_err(|error| RunError::Listen { shard: id, error })?;
    _ = events.send(Event::Serving);
    while let Order::Drain = shard.next_order().await {
        shard.hand_over_leaderships().await;
        shard.begin_drain();
        listeners.drain(DRAIN).await;
        _ = events.send(Event::Drained);
    }
    shard.stop().await;
    Ok(())
}

/// Brings a shard to where it can serve. False if it is told to stop before: a node of a cluster without a majority
/// may wait for long.
async fn arrive(shard: &Rc<Shard>) -> Result<bool, RunError> {
    let arrives = async {
        if shard.id == META_SHARD {
            register_broker(shard).await?;
        }
        shard.catalog_arrived().await;
        Ok(())
    };
    match select(std::pin::pin!(arrives), std::pin::pin!(shard.next_order())).await {
        Either::Left((arrived, _)) => arrived.map(|()| true),
        Either::Right(_) => Ok(false),
    }
}

/// Opens the log, wakes the core and starts the loops.
async fn open_shard(start: ShardStart) -> Result<Rc<Shard>, RunError> {
    let ShardStart { shard: id, shard_uuid, node, mesh, background, .. } = start;
    let clock = Clock::start();
    let home = node.config.data_dir.join("shards").join(format!("{:03}", id.0));
    let dir = home.join("wal");
    let disk_failed = |path: &Path| {
        let path = path.to_owned();
        move |error| RunError::Disk { shard: id, path, error }
    };
    let disk = GlommioDisk::new(&home).await.map_err(disk_failed(&home))?;
    let options = WalOptions {
        file_bytes: node.config.wal.file_bytes,
        ballast_bytes: node.config.wal.ballast_bytes,
        left_free_bytes: room_for_segments(&node.config.wal),
        ..WalOptions::new(&dir, shard_uuid)
    };
    if node.cluster.as_ref().is_some_and(|place| !place.is_new) {
        let listed = disk.list(&dir).await.unwrap_or_default();
        if !listed.iter().any(|entry| entry.name.ends_with(".wal")) {
            return Err(RunError::LogGone { shard: id, path: dir });
        }
    }
    let begun_ns = clock.now_ns();
    let (wal, recovered, report) = Wal::open(disk.clone(), options)
        .await
        .map_err(|error| RunError::Wal { shard: id, error })?;
    let took_ms = clock.now_ns().saturating_sub(begun_ns) / 1_000_000;
    log_recovery(id, took_ms, &report);
    let core_config = core_config(id, &node);
    let mut core = ShardCore::new(core_config, recovered, clock.wall_ms())
        .map_err(|error| RunError::Core { shard: id, error })?;
    let segments_dir = home.join("segments");
    let segments = Segments::open(disk, segments_dir.clone()).await;
    let segments = segments.map_err(disk_failed(&segments_dir))?;
    let listed = segments.list().await.map_err(disk_failed(&segments_dir))?;
    let strangers = segments.restore(&mut core, &wal, listed).await;
    let strangers = strangers.map_err(|error| RunError::Segments { shard: id, error })?;
    let parts = ShardParts {
        id,
        node,
        clock,
        wal,
        shard_uuid,
        segments,
        background,
        core,
        mesh: mesh.clone(),
    };
    let shard = Shard::new(parts);
    shard.join_cluster()?;
    shard.want_missing();
    chronik_ring::spawn(run_jobs(Rc::clone(&shard), mesh)).detach();
    chronik_ring::spawn(commit_loop(Rc::clone(&shard))).detach();
    chronik_ring::spawn(tick_loop(Rc::clone(&shard))).detach();
    chronik_ring::spawn(upkeep_loop(Rc::clone(&shard))).detach();
    chronik_ring::spawn(retention_loop(Rc::clone(&shard))).detach();
    chronik_ring::spawn(roll_loop(Rc::clone(&shard))).detach();
    chronik_ring::spawn(tiering_loop(Rc::clone(&shard), strangers)).detach();
    chronik_ring::spawn(compaction_loop(Rc::clone(&shard))).detach();
    if shard.links().is_some() {
        chronik_ring::spawn(reconcile_loop(Rc::clone(&shard))).detach();
        chronik_ring::spawn(balance_loop(Rc::clone(&shard))).detach();
    }
    if id == META_SHARD {
        leaving::check_members(&shard)?;
        shard.create_meta(|| sole_voter(shard.node.incarnation));
    }
    shard.change_core(ShardCore::start);
    if id == META_SHARD {
        chronik_ring::spawn(Rc::clone(&shard).join_catalog()).detach();
    }
    Ok(shard)
}

fn log_recovery(shard: ShardId, took_ms: u64, report: &RecoveryReport) {
    if let Some(torn) = &report.torn {
        tracing::warn!(
            shard = shard.0,
            "cut a torn tail of {} bytes at byte {} ({}): a write that was in flight when the machine or the process \
             ended, or damage to the last block",
            torn.bytes,
            torn.position,
            torn.fault
        );
    }
    for file in &report.files_without_footer {
        tracing::warn!(
            shard = shard.0,
            file = file.0,
            "a sealed WAL file had no footer and was scanned"
        );
    }
    tracing::info!(
        shard = shard.0,
        took_ms,
        files = report.files,
        blocks = report.blocks,
        bytes_scanned = report.bytes_scanned,
        clean_close = report.clean_close,
        "write-ahead log read"
    );
}

fn core_config(shard: ShardId, node: &NodeInfo) -> CoreConfig {
    CoreConfig {
        shard,
        node: node.config.node_id,
        seed: random_seed(),
        tail_cache_bytes: node.config.shard.tail_cache_bytes,
        in_flight_bytes_max: node.config.shard.in_flight_bytes,
        producer_expiration_ms: node.config.kafka.producer_id_expiration_ms,
        stopwatch_ns,
        lag_ticks_max: u32::try_from(node.config.kafka.replica_lag_time_max_ms.div_ceil(TICK_MS))
            .unwrap_or(u32::MAX),
        follower_read_staleness_max_ms: node.config.cluster.follower_read_max_staleness_ms,
    }
}

/// The catalog's replica on a node that is alone. Should others join it, its id is known before the log is read.
fn sole_voter(disk: Incarnation) -> GroupMeta {
    let replica = sole_replica(disk.0.into());
    GroupMeta { replica, voters: vec![replica], ..GroupMeta::default() }
}

/// Enters this node into the catalog and publishes it for the first time.
async fn register_broker(shard: &Rc<Shard>) -> Result<(), RunError> {
    leaving::leave_cluster(shard).await?;
    chronik_ring::spawn(publish_loop(Rc::clone(shard))).detach();
    if shard.links().is_none() {
        _ = shard.all_led(vec![GroupId::META]).await;
        shard.publish_again();
    }
    let Some(command) = shard.registration() else {
        return Err(RunError::Register { why: "it has no replica of the catalog".to_owned() });
    };
    loop {
        match change_catalog(shard, command.clone()).await {
            Ok(CommandOutcome::BrokerRegistered) => return Ok(()),
            Ok(CommandOutcome::Refused(why)) => {
                return Err(RunError::Register { why: why.to_string() });
            }
            Ok(other) => return Err(RunError::Register { why: format!("{other:?}") }),
            // There may be no majority yet: a node of a cluster waits for the others.
            Err(error) if shard.links().is_some() && !shard.stopping.get() => {
                tracing::warn!("this node is not in the catalog yet: {error}");
                chronik_ring::sleep(REGISTER_RETRY).await;
            }
            Err(error) => return Err(RunError::Register { why: error.to_string() }),
        }
    }
}
