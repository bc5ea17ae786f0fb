//! What goes wrong, for how long, and that it is over.

use std::path::Path;

use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{CrashMode, Fault as DiskFault, block_on};
use chronik_engine::wal::Wal;
use chronik_replication::wire::Seat;
use chronik_replication::{MessageType, PeerMessage};
use rand::Rng;

use super::event::Event;
use super::run::Run;
use super::swarm::{Fault, MS, SECOND};
use super::{Bug, Check, Violation};
use crate::sim::disk::HookedDisk;
use crate::sim::node::SEGMENTS_DIR;

/// Something that is over.
#[derive(Debug, Clone)]
pub(super) enum Healing {
    /// Of cuts, from one node to another.
    Cuts(Vec<(usize, usize)>),
    /// Of a disk without room.
    Capacity { host: usize, shard: usize },
    /// Of slow disks.
    Slowness { host: usize },
}

/// A day: producers are remembered for longer than two clocks are apart.
const JUMP_MS_MAX: i64 = 24 * 3_600_000;
/// What a disk does once; those at the end in some runs only.
const DISK_FAULTS: [DiskFault; 9] = [
    DiskFault::SyncError,
    DiskFault::SyncError,
    DiskFault::WriteError,
    DiskFault::WriteShort,
    DiskFault::ReadError,
    DiskFault::WriteNoSpace,
    DiskFault::CreateNoSpace,
    DiskFault::CreateNoQuota,
    DiskFault::NameError,
];
const DISK_FAULTS_ALWAYS: usize = 5;

const HANGS_FROM: u64 = 35;

impl Run {
    /// Something goes wrong.
    pub(super) fn fault(&mut self) -> Check {
        let host = self.rng.random_range(0..self.hosts.len());
        let shard = self.rng.random_range(0..self.hosts[host].shards.len());
        if !self.hosts[host].is_there() {
            return Ok(());
        }
        let for_us = match self.rng.random_range(0..3) {
            0 => self.rng.random_range(50..500) * MS,
            1 => self.rng.random_range(500..3_000) * MS,
            _ => self.rng.random_range(3..9) * SECOND,
        };
        let fault = self.swarm.draw_fault(&mut self.rng);
        trace!(self, "{fault:?} on node {} for {} ms", host + 1, for_us / MS);
        self.trouble(host);
        if !matches!(fault, Fault::Damage | Fault::ClockJump) {
            self.fails(host);
        }
        match fault {
            Fault::Crash => return self.crash(host),
            Fault::Wipe => return self.wipe(host),
            Fault::Blackout => {
                self.report.blackouts += 1;
                for host in 0..self.hosts.len() {
                    self.crash(host)?;
                }
            }
            Fault::DiskStops => {
                let after = self.rng.random_range(1..40);
                let here = &mut self.hosts[host].shards[shard];
                here.disk.crash_at_op(here.disk.counts().changes() + after);
                here.is_armed = true;
            }
            Fault::DiskError => self.arm(host, shard),
            Fault::DiskFull => self.fill_disk(host, shard, for_us),
            Fault::SlowDisk => {
                self.report.slow_disks += 1;
                let slowness = self.rng.random_range(5..50);
                // The slowest do nothing at all for a while.
                let hangs = slowness >= HANGS_FROM;
                self.report.disk_hangs += u64::from(hangs);
                self.hosts[host].slowness = slowness;
                self.hosts[host].hangs = hangs;
                self.after(for_us, Event::Heal(Healing::Slowness { host }));
            }
            Fault::Pause => self.pause(host, for_us),
            Fault::Damage => self.damage_segment(),
            Fault::ClockJump => {
                self.report.clock_jumps += 1;
                self.hosts[host].clock_ms = self.rng.random_range(-JUMP_MS_MAX..JUMP_MS_MAX);
            }
            Fault::Clog => {
                self.report.clogs += 1;
                let to = self.other(host);
                self.trouble(to);
                self.net.clog(host, to, self.now_us + for_us.min(3 * SECOND));
            }
            fault => self.cut_links(fault, host, for_us),
        }
        Ok(())
    }

    fn other(&mut self, host: usize) -> usize {
        let nodes = self.hosts.len();
        (host + self.rng.random_range(1..nodes)) % nodes
    }

    fn arm(&mut self, host: usize, shard: usize) {
        let kinds = match self.swarm.has_rare_disk_faults {
            true => DISK_FAULTS.len(),
            false => DISK_FAULTS_ALWAYS,
        };
        let drawn = self.rng.random_range(0..kinds);
        let fault = DISK_FAULTS[drawn];
        self.report.rare_disk_faults += u64::from(drawn >= DISK_FAULTS_ALWAYS);
        let after = self.rng.random_range(0..20);
        let here = &mut self.hosts[host].shards[shard];
        here.disk.fail_after(after, fault);
        here.is_armed = true;
    }

    fn fill_disk(&mut self, host: usize, shard: usize, for_us: u64) {
        self.report.disks_full += 1;
        let room = self.rng.random_range(0..2) * (64 << 10);
        let here = &self.hosts[host].shards[shard];
        let dirs = [here.options.dir.as_path(), Path::new(SEGMENTS_DIR)];
        let files = |dir: &Path| block_on(here.disk.list(dir)).unwrap_or_default();
        let used: u64 = dirs.into_iter().flat_map(files).map(|file| file.len).sum();
        here.disk.set_capacity(Some(used + room));
        self.after(for_us, Event::Heal(Healing::Capacity { host, shard }));
    }

    fn cut_links(&mut self, fault: Fault, host: usize, for_us: u64) {
        let nodes = self.hosts.len();
        let other = self.other(host);
        let both = |a: usize, b: usize| [(a, b), (b, a)];
        let cuts: Vec<(usize, usize)> = match fault {
            Fault::OneWayCut => vec![(host, other)],
            Fault::Cut => both(host, other).into(),
            Fault::Isolation => {
                let others = (0..nodes).filter(|other| *other != host);
                others.flat_map(|other| both(host, other)).collect()
            }
            _ => {
                let sides: Vec<bool> = (0..nodes).map(|_| self.rng.random()).collect();
                let pairs = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
                pairs.filter(|(a, b)| sides[*a] != sides[*b]).collect()
            }
        };
        match fault {
            Fault::OneWayCut => self.report.one_way_cuts += 1,
            Fault::Isolation => self.report.isolations += 1,
            _ => self.report.cuts += 1,
        }
        cuts.iter().for_each(|(from, to)| self.net.cut(*from, *to));
        self.trouble_links(&cuts);
        self.after(for_us, Event::Heal(Healing::Cuts(cuts)));
    }

    fn trouble_links(&mut self, ends: &[(usize, usize)]) {
        ends.iter().flat_map(|(from, to)| [*from, *to]).for_each(|host| self.trouble(host));
        self.net.trouble(self.now_us);
    }

    /// Something is over.
    pub(super) fn heal(&mut self, healing: Healing) -> Check {
        match healing {
            Healing::Cuts(cuts) => {
                // What lies on links since all is calm is not of these.
                let mended = cuts.iter().filter(|_| !self.is_calm);
                mended.for_each(|(from, to)| self.net.mend(*from, *to));
                self.trouble_links(&cuts);
            }
            Healing::Capacity { host, shard } => {
                self.trouble(host);
                self.fails(host);
                self.hosts[host].shards[shard].disk.set_capacity(None);
            }
            Healing::Slowness { host } => {
                self.trouble(host);
                self.fails(host);
                self.hosts[host].slowness = 1;
                self.hosts[host].hangs = false;
            }
        }
        Ok(())
    }

    /// Now and then, as a vote or an answer leaves: would its sender's disk still say so if the power went now (P16)?
    pub(super) fn probe(&mut self, seat: Seat, message: &PeerMessage) -> Check {
        let kind = message.message.get_msg_type();
        let speaks_for_disk =
            matches!(kind, MessageType::MsgAppendResponse | MessageType::MsgRequestVoteResponse);
        let (host, shard) = self.place(seat);
        let is_looked_at = match kind {
            MessageType::MsgRequestVoteResponse => self.rng.random_range(0..10) == 0,
            _ => self.rng.random_range(0..300) == 0,
        };
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let is_at_rest = node.in_flight.borrow().is_empty();
        let here = &self.hosts[host].shards[shard];
        // A planned failure of the disk would hit the copy, too.
        if !speaks_for_disk || !is_looked_at || !is_at_rest || here.is_armed {
            return Ok(());
        }
        self.report.probes += 1;
        let disk = here.disk.clone_state();
        disk.crash(CrashMode::LOSE_ALL);
        let bug = self.bug.and_then(Bug::of_shard);
        let opened = block_on(Wal::open(HookedDisk::new(disk, bug), here.options.clone()));
        let (_, found, _) = opened
            .map_err(|error| Violation { what: format!("P16: the log of {seat}: {error:?}") })?;
        self.oracle.holds(seat, &found).map_err(|violation| Violation {
            what: format!("P16: {kind:?} leaves, and after a power cut: {}", violation.what),
        })
    }
}
