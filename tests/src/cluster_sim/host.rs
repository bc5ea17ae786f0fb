//! A node: its shards with their disks, how it starts, and how it ends.
//!
//! - I1: what a node had in memory is gone when it ends; only its disks stay.
//! - I2: nothing happens on a node that stands still: what comes meanwhile waits, as in the buffers of its kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use chronik_engine::disk::DirEntry;
use chronik_engine::disk_sim::{SimDisk, block_on};
use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};
use chronik_engine::wal::record::WalRecord;
use chronik_engine::wal::{RecoveredGroup, Wal, WalError, WalOptions};
use chronik_replication::wire::Seat;
use chronik_shards::catalog::{Catalog, CommandId, Incarnation};
use chronik_shards::core::{ShardCore, Token};
use chronik_shards::stored::Segments;
use chronik_tiering::write::WriteError;
use rand::Rng;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::coordinators::Coordinators;
use super::event::{Event, HostStep, Pending};
use super::fills::Fills;
use super::memory::Bounds;
use super::repairs::Repairs;
use super::run::Run;
use super::swarm::{MS, SECOND};
use super::{Bug, Check, Violation};
use crate::must;
use crate::sim::disk::{HookedDisk, io_failed, random_crash};
use crate::sim::node::{Node, SEGMENTS_DIR, Task, random_config, random_options};

/// Whether a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostState {
    Up,
    /// It stands still.
    Paused,
    Down,
}

/// One shard of a node.
pub(super) struct Shard {
    pub disk: SimDisk,
    pub options: WalOptions,
    /// Whether the disk was told to fail.
    pub is_armed: bool,
    /// What runs, unless the node is down.
    pub running: Option<Running>,
    /// Messages that were lost, to be told to the core.
    pub lost: BTreeSet<(GroupId, ReplicaId)>,
}

/// What a shard has in memory.
pub(super) struct Running {
    pub node: Rc<Node>,
    pub writer: Option<Task<Result<(), WalError>>>,
    pub upkeep: Option<Task<Result<(), WalError>>>,
    pub tiering: Option<Task<Result<(), WriteError>>>,
    pub is_write_due: bool,
    /// It is about to tell followers what was committed.
    pub tells_commits: bool,
    /// Something was written since the log was marked.
    pub is_mark_due: bool,
    pub tokens: BTreeMap<Token, Pending>,
    pub groups: Coordinators,
    pub fills: Fills,
    pub repairs: Repairs,
    pub bounds: Bounds,
}

/// A node.
pub(super) struct Host {
    pub id: NodeId,
    /// The name of its disks, and its replica of the catalog on them.
    pub incarnation: Incarnation,
    pub meta_replica: ReplicaId,
    /// It has these disks since after its cluster began.
    pub joins: bool,
    pub is_read_only: bool,
    pub shards: Vec<Shard>,
    pub state: HostState,
    /// Counts its starts: what was meant for an earlier one is void.
    pub life: u64,
    /// What its wall clock is ahead of the run's.
    pub clock_ms: i64,
    pub tick_us: u64,
    /// Its disks take so many times as long.
    pub slowness: u64,
    /// Its disks take nothing for their logs, and do not fail either.
    pub hangs: bool,
    /// When something went wrong with it or its links last, or did so no more.
    pub troubled_us: u64,
    /// When what it had in memory went last, and when it failed last or did so no more.
    pub forgot_us: u64,
    pub failed_us: u64,
    /// When it started last.
    pub started_us: u64,
    /// What waits while it stands still.
    pub inbox: Vec<Event>,
    pub lost_peers: Vec<usize>,
    pub is_registered: bool,
    /// Somebody waits for its registration.
    pub is_registering: bool,
    /// Commands that another node proposes for it.
    pub calls: BTreeSet<CommandId>,
    /// A catalog that is not published yet.
    pub newest: Option<Arc<Catalog>>,
    /// The one that is being published.
    pub publishing: Option<Arc<Catalog>>,
    /// The one that its shards go by.
    pub shown: Option<Arc<Catalog>>,
    /// Something of it could not be made yet.
    pub is_unmade: bool,
    /// Groups that the catalog is being told are settled.
    pub settling: BTreeSet<GroupId>,
    pub ticks: u64,
}

impl Host {
    fn new(number: usize, shards: u16, rng: &mut StdRng) -> Host {
        let id = NodeId(u32::try_from(number).unwrap_or(0) + 1);
        let shard = |rng: &mut StdRng| {
            let disk = SimDisk::new(rng.random());
            disk.set_pending_polls_max(rng.random_range(0..3));
            let options = random_options(rng);
            Shard { disk, options, is_armed: false, running: None, lost: BTreeSet::new() }
        };
        Host {
            id,
            incarnation: Incarnation(Uuid::from_u128(rng.random())),
            meta_replica: ReplicaId(rng.random_range(1..u64::MAX)),
            joins: false,
            is_read_only: false,
            shards: (0..shards).map(|_| shard(rng)).collect(),
            state: HostState::Down,
            life: 0,
            clock_ms: rng.random_range(-2_000..2_000),
            tick_us: 50 * MS * rng.random_range(90..110) / 100,
            slowness: 1,
            hangs: false,
            troubled_us: 0,
            forgot_us: 0,
            failed_us: 0,
            started_us: 0,
            inbox: Vec::new(),
            lost_peers: Vec::new(),
            is_registered: false,
            is_registering: false,
            calls: BTreeSet::new(),
            newest: None,
            publishing: None,
            shown: None,
            is_unmade: false,
            settling: BTreeSet::new(),
            ticks: 0,
        }
    }

    /// A shard's shell, unless the node is down.
    pub(super) fn node(&self, shard: usize) -> Option<Rc<Node>> {
        self.running(shard).map(|running| Rc::clone(&running.node))
    }

    pub(super) fn running(&self, shard: usize) -> Option<&Running> {
        self.shards.get(shard)?.running.as_ref()
    }

    /// Whether it can be spoken to.
    pub(super) fn is_there(&self) -> bool {
        self.state == HostState::Up
    }
}

type Opened = (Wal<HookedDisk>, Vec<RecoveredGroup>, Segments<HookedDisk>, Vec<DirEntry>);

impl Run {
    /// Makes the nodes, none of which runs.
    pub(super) fn make_hosts(&mut self) {
        for number in 0..self.swarm.nodes {
            let mut host = Host::new(number, self.swarm.shards, &mut self.rng);
            host.is_read_only = self.swarm.read_only == Some(number);
            host.joins = host.is_read_only;
            self.hosts.push(host);
            let replica = self.hosts[number].meta_replica;
            self.note_meta_replica(number);
            self.seats.insert((GroupId::META, replica), self.seat(number, 0));
        }
        self.form();
    }

    /// The oracle is told of a replica of the catalog on a read-only node.
    pub(super) fn note_meta_replica(&mut self, host: usize) {
        if self.hosts[host].is_read_only {
            self.oracle.note_reader(GroupId::META, self.hosts[host].meta_replica);
        }
    }

    pub(super) fn seat(&self, host: usize, shard: usize) -> Seat {
        let shard = ShardId(u16::try_from(shard).unwrap_or(0));
        Seat { node: self.hosts[host].id, shard }
    }

    /// The node and the shard of a seat, as numbers.
    pub(super) fn place(&self, seat: Seat) -> (usize, usize) {
        let host = usize::try_from(seat.node.0 - 1).unwrap_or(0);
        (host, usize::from(seat.shard.0))
    }

    /// Starts a node from its disks.
    pub(super) fn start_host(&mut self, host: usize) -> Check {
        must!(self.hosts[host].state == HostState::Down, "a node that runs is started");
        trace!(self, "node {} starts", host + 1);
        for shard in 0..self.hosts[host].shards.len() {
            self.start_shard(host, shard)?;
        }
        let here = &mut self.hosts[host];
        here.state = HostState::Up;
        here.life += 1;
        here.started_us = self.now_us;
        self.trouble(host);
        self.fails(host);
        // No connection outlives its process.
        let is_first = self.hosts[host].life == 1;
        for other in (0..self.hosts.len()).filter(|other| *other != host && !is_first) {
            self.link_down(host, other)?;
        }
        for shard in 0..self.hosts[host].shards.len() {
            let Some(node) = self.hosts[host].node(shard) else { continue };
            if shard == 0 && node.core.borrow().partition(GroupId::META).is_none() {
                let meta = self.meta_of(host);
                node.core.borrow_mut().create_group(GroupId::META, meta);
            }
            if self.bug == Some(Bug::RelaxedUnknown) {
                node.core.borrow_mut().set_relaxed(&BTreeMap::new());
            }
            node.core.borrow_mut().start();
            self.absorb(host, shard)?;
        }
        self.plan_on_host(10 * MS, host, HostStep::Register);
        Ok(())
    }

    fn start_shard(&mut self, host: usize, shard: usize) -> Check {
        let in_flight = std::mem::take(&mut self.in_flight[host][shard]);
        let (wal, mut recovered, segments, listed) = self.open(host, shard)?;
        let seat = self.seat(host, shard);
        self.oracle.recovered(seat, &recovered, &in_flight)?;
        self.damage(&mut recovered);
        let now_ms = self.wall_ms(host);
        let mut config = random_config(&mut self.rng, seat.node, seat.shard);
        let bounds = Bounds::of(&config);
        self.spoil_config(&mut config);
        let mut core = ShardCore::new(config, recovered, now_ms)
            .map_err(|error| Violation { what: format!("the core does not start: {error:?}") })?;
        let strangers = block_on(segments.restore(&mut core, &wal, listed));
        let strangers = strangers.map_err(|error| Violation { what: error.to_string() })?;
        segments.note_gone(strangers);
        self.oracle.started(seat, &core.checkpoints())?;
        let bug = self.bug.and_then(Bug::of_shard);
        let hooked = HookedDisk::new(self.hosts[host].shards[shard].disk.clone(), bug);
        self.hosts[host].shards[shard].running = Some(Running {
            node: Node::new(core, wal, segments, hooked, bug),
            writer: None,
            upkeep: None,
            tiering: None,
            is_write_due: false,
            tells_commits: false,
            is_mark_due: false,
            tokens: BTreeMap::new(),
            groups: Coordinators::default(),
            fills: Fills::default(),
            repairs: Repairs::default(),
            bounds,
        });
        self.want_missing(host, shard);
        self.absorb(host, shard)?;
        self.compare_states(host, shard)
    }

    /// Opens the log of a shard; the power may go while it is read.
    fn open(&mut self, host: usize, shard: usize) -> Check<Opened> {
        for attempt in 0..20 {
            let here = &mut self.hosts[host].shards[shard];
            here.disk.clear_faults();
            let is_armed = attempt < 5 && !self.is_calm && self.rng.random_range(0..8) == 0;
            if is_armed {
                let now = here.disk.counts().changes();
                here.disk.crash_at_op(now + self.rng.random_range(1..8));
            } else {
                here.disk.crash_at_op(u64::MAX);
            }
            here.is_armed = is_armed;
            let bug = self.bug.and_then(Bug::of_shard);
            let hooked = HookedDisk::new(here.disk.clone(), bug);
            let opened = block_on(Wal::open(hooked.clone(), here.options.clone()));
            let segments = block_on(async {
                let segments = Segments::open(hooked, SEGMENTS_DIR.into()).await?;
                let listed = segments.list().await?;
                Ok::<_, std::io::Error>((segments, listed))
            });
            match (opened, segments) {
                (Ok((wal, groups, _)), Ok((segments, listed))) => {
                    return Ok((wal, groups, segments, listed));
                }
                (Err(error), _) if !is_armed || !io_failed(&error) => {
                    let seat = self.seat(host, shard);
                    return Err(Violation { what: format!("P13: the log of {seat}: {error:?}") });
                }
                (Ok(_), Err(error)) if !is_armed => {
                    return Err(Violation { what: format!("P1: the segments: {error}") });
                }
                _ => {
                    self.report.recovery_crashes += 1;
                    self.hosts[host].shards[shard].disk.crash(random_crash(&mut self.rng));
                }
            }
        }
        Err(Violation { what: "a log does not open in twenty attempts".into() })
    }

    /// A node ends at once: its process dies, or its power goes. It comes back after a while.
    pub(super) fn crash(&mut self, host: usize) -> Check {
        if self.hosts[host].state == HostState::Down {
            return Ok(());
        }
        self.end_host(host);
        let downtime_us = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(10..300) * MS,
            1 => self.rng.random_range(3..10) * SECOND,
            _ => self.rng.random_range(300..3_000) * MS,
        };
        let life = self.hosts[host].life;
        self.after(downtime_us, Event::Restart { host, life });
        // The end of a process is noticed at once, the end of a machine is not.
        if self.rng.random() {
            for other in (0..self.hosts.len()).filter(|other| *other != host) {
                self.link_down(host, other)?;
            }
        }
        Ok(())
    }

    /// A node ends, and stays so until somebody starts it.
    pub(super) fn end_host(&mut self, host: usize) {
        self.report.crashes += 1;
        trace!(self, "node {} ends", host + 1);
        let mode = random_crash(&mut self.rng);
        self.forgets(host);
        self.fails(host);
        let here = &mut self.hosts[host];
        here.state = HostState::Down;
        here.life += 1;
        here.slowness = 1;
        here.hangs = false;
        here.inbox.clear();
        here.lost_peers.clear();
        here.calls.clear();
        here.newest = None;
        here.publishing = None;
        here.shown = None;
        here.is_unmade = false;
        here.settling.clear();
        here.is_registered = false;
        here.is_registering = false;
        for (shard, ended) in here.shards.iter_mut().enumerate() {
            ended.lost.clear();
            ended.is_armed = false;
            let Some(running) = ended.running.take() else { continue };
            self.report.count(&running.node);
            // The log has said so, though nobody has heard it.
            let mut records: Vec<WalRecord> = running.node.persisted.take();
            records.extend(running.node.in_flight.take());
            self.in_flight[host][shard] = records;
            drop(running);
            ended.disk.set_capacity(None);
            ended.disk.crash(mode);
        }
    }

    /// The wall clock of a node.
    pub(super) fn wall_ms(&self, host: usize) -> i64 {
        let now_ms = i64::try_from(self.now_us / MS).unwrap_or(i64::MAX);
        1_700_000_000_000 + now_ms + self.hosts[host].clock_ms
    }

    /// Lets a node stand still for a while.
    pub(super) fn pause(&mut self, host: usize, for_us: u64) {
        let here = &mut self.hosts[host];
        if here.state == HostState::Up {
            here.state = HostState::Paused;
            let life = here.life;
            self.report.pauses += 1;
            self.after(for_us, Event::Resume { host, life });
        }
    }

    /// A node goes on: it finds what came meanwhile, and links that were closed.
    pub(super) fn resume(&mut self, host: usize) -> Check {
        let here = &mut self.hosts[host];
        if here.state != HostState::Paused {
            return Ok(());
        }
        here.state = HostState::Up;
        trace!(self.now_us, self.is_traced, "node {} goes on", host + 1);
        let (inbox, lost) = (std::mem::take(&mut here.inbox), std::mem::take(&mut here.lost_peers));
        self.trouble(host);
        self.fails(host);
        for event in inbox {
            self.after(0, event);
        }
        for peer in lost {
            self.lose_peer(host, peer)?;
        }
        Ok(())
    }

    /// Compares the state machines of a shard with their logs.
    pub(super) fn compare_states(&mut self, host: usize, shard: usize) -> Check {
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let checkpoints = node.core.borrow().checkpoints();
        let seat = self.seat(host, shard);
        for checkpoint in &checkpoints {
            self.report.states_compared += 1;
            self.oracle.check_state(seat, checkpoint)?;
        }
        Ok(())
    }
}
