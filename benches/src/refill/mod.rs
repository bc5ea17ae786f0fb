//! `refill`: how fast a node whose disk was wiped, or that was away while the others wrote, has everything again.
//!
//! Beside it stands the plainest copy of as many bytes on the same machine (`copy`), and, where that is asked for, what a
//! steady client of another partition notices meanwhile.
//!
//! - I1: in sync is what the leaders say and clients are told; and it is believed only once the node's log files and
//!   segments take as many bytes as were written, and the node itself serves the last record of every partition.

mod copy;
mod report;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use chronik_net::client::Client;
use clap::Args;
use serde::Serialize;

use crate::clock::{Clock, SECOND_NS};
use crate::cluster::{Cluster, IN_SYNC_DEADLINE, Launch, NODES};
use crate::disk::{ensure_room, stored_bytes};
use crate::fetch::Probe;
use crate::latency::Latencies;
use crate::report::{Progress, publish};
use crate::steady::{Board, IntervalReport, Plan, run_beside};
use crate::usage::{Cores, Usage};
use crate::writer::Writer;
use crate::{flags, topics, wire};
use copy::{Source, settle_disk};
use report::{Report, table};

/// The node that goes.
const GOING: i32 = 3;
/// A node that stays, and is asked how things are.
const STAYING: i32 = 1;
/// Bytes of a record's value.
const RECORD_BYTES: usize = 1_024;
/// Records of a batch: just under 256 KiB.
const BATCH_RECORDS: u32 = 250;
/// Bytes of a message of the client beside.
const BESIDE_BYTES: u32 = 1_024;
/// How long that client watches the undisturbed cluster before each round.
const CALM: Duration = Duration::from_secs(2);
/// How long it may be without a leader.
const LEADER_DEADLINE: Duration = Duration::from_secs(60);
/// Disk besides the logs: files made ahead, ballast.
const SPARE_DISK_BYTES: u64 = 3 << 30;

/// Arguments of `refill`.
#[derive(Debug, Clone, Args)]
pub struct RefillArgs {
    #[command(flatten)]
    launch: Launch,
    /// What is written: records of 1 KiB in batches of just under 256 KiB
    #[arg(long, value_name = "BYTES", value_parser = flags::bytes, default_value = "1GiB")]
    log_bytes: u64,
    /// Partitions that are written, each with a replica on every node
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// How often the node goes and comes back
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Do not wipe the node: it is away while --log-bytes are written, in each round anew
    #[arg(long)]
    behind: bool,
    /// Messages a second of a client of another partition; 0: none
    #[arg(long, value_name = "MESSAGES_PER_SECOND", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    beside_rate: u64,
    /// Pause after writing, in which logs become segments
    #[arg(long, value_parser = flags::seconds, default_value = "10")]
    settle_seconds: Duration,
    /// How long a wiped node is away: as long as a disk takes to be replaced, and the others to notice that it is gone
    #[arg(long, value_parser = flags::seconds, default_value = "5")]
    away_seconds: Duration,
    /// How long the node may take
    #[arg(long, value_parser = flags::seconds_above_zero, default_value = "600")]
    deadline_seconds: Duration,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

/// What the client beside noticed.
#[derive(Debug, Clone, Copy, Serialize)]
struct Beside {
    calm: IntervalReport,
    refill: IntervalReport,
}

#[derive(Debug, Clone, Serialize)]
struct Round {
    /// What the node had to fetch.
    bytes: u64,
    /// From the start of its process until the others heard it.
    up_s: f64,
    /// From the start of its process until it was in sync.
    refill_s: f64,
    refill_bytes_per_s: f64,
    copy_s: f64,
    copy_bytes_per_s: f64,
    /// Speed of the refill to that of the copy.
    ratio: f64,
    /// What its log files and segments take on the disk at the end.
    disk_bytes: u64,
    beside: Option<Beside>,
    cores: Option<Cores>,
}

/// What is pooled over all rounds, of the client beside.
#[derive(Debug)]
struct Pools {
    calm: Latencies,
    refill: Latencies,
}

/// A cluster and what is written to it.
#[derive(Debug)]
struct Bench<'a> {
    args: &'a RefillArgs,
    cluster: Cluster,
    topic: String,
    batch: Bytes,
    source: Source,
    written_bytes: u64,
    /// The last batch of each partition: its first offset.
    last: BTreeMap<i32, i64>,
}

/// Runs `refill`.
pub fn run(args: &RefillArgs) -> Result<()> {
    let times = if args.behind { u64::from(args.rounds) + 1 } else { 1 };
    // Log and segments lie side by side for a while; the file to copy, and its copy.
    let logs = args.log_bytes.saturating_mul(2 * u64::from(NODES)).saturating_mul(times);
    let need = logs.saturating_add(2 * args.log_bytes).saturating_add(SPARE_DISK_BYTES);
    ensure_room(&args.launch.data_dir, need)?;
    let progress = Progress::new();
    progress.say("starting three nodes");
    let cluster = Cluster::launch_three(&args.launch)?;
    let mut bench = Bench {
        args,
        topic: topics::fresh_name("refill"),
        batch: wire::random_batch(BATCH_RECORDS, RECORD_BYTES)?,
        source: Source::make(cluster.dir(), args.log_bytes)?,
        cluster,
        written_bytes: 0,
        last: BTreeMap::new(),
    };
    let mut pools = Pools { calm: Latencies::new()?, refill: Latencies::new()? };
    let rounds = bench.run(&mut pools, &progress);
    let rounds = rounds.with_context(|| bench.cluster.log_tails())?;
    drop((bench, progress));
    let report = Report::new(args, rounds, &pools);
    publish(args.json, "refill", &table(&report), &report)
}

impl Bench<'_> {
    fn run(&mut self, pools: &mut Pools, progress: &Progress) -> Result<Vec<Round>> {
        let beside = topics::fresh_name("beside");
        let addr = self.cluster.broker(STAYING)?.kafka();
        let replicas = i16::try_from(NODES)?;
        let mut control = wire::connect(addr)?;
        let topic = std::slice::from_ref(&self.topic);
        topics::create(&mut control, topic, self.args.partitions, replicas)?;
        topics::create(&mut control, std::slice::from_ref(&beside), 1, replicas)?;
        topics::wait_writable(addr, std::slice::from_ref(&beside), &wire::random_batch(1, 1)?)?;
        if !self.args.behind {
            self.fill(progress)?;
        }
        self.cluster.wait_in_sync(STAYING, IN_SYNC_DEADLINE)?;
        if self.args.beside_rate == 0 {
            return self.rounds(None, pools, progress);
        }
        let nodes = self.cluster.addresses();
        let rate = self.args.beside_rate;
        let plan = Plan { nodes, topic: beside, rate, record_bytes: BESIDE_BYTES };
        run_beside(&plan, |board| self.rounds(Some(board), pools, progress))
            .map(|(rounds, _)| rounds)
    }

    fn rounds(
        &mut self,
        board: Option<&Board>,
        pools: &mut Pools,
        progress: &Progress,
    ) -> Result<Vec<Round>> {
        let mut rounds = Vec::new();
        for number in 1..=self.args.rounds {
            let round = self.round(board, pools, number, progress);
            rounds.push(round.with_context(|| format!("round {number}"))?);
        }
        Ok(rounds)
    }

    fn round(
        &mut self,
        board: Option<&Board>,
        pools: &mut Pools,
        number: u16,
        progress: &Progress,
    ) -> Result<Round> {
        let say = |what: &str| progress.say(&format!("round {number}: {what}"));
        say("plain copy");
        let copy_ns = self.source.copy_ns()?;
        let calm = board.map(|board| watch_calm(board, pools)).transpose()?;
        self.cluster.broker(GOING)?.kill()?;
        let bytes = match self.args.behind {
            true => self.fill(progress)?,
            false => {
                self.cluster.broker(GOING)?.wipe()?;
                std::thread::sleep(self.args.away_seconds);
                self.written_bytes
            }
        };
        if let Some(board) = board {
            board.wait_leader(Some(GOING), LEADER_DEADLINE)?;
            // What its going cost is another measurement.
            board.turn_over()?;
        }
        say("the node comes back");
        let usage = Usage::begin();
        let (up_ns, refill_ns) = self.come_back_ns()?;
        let cores = usage.end();
        let refill = board.map(Board::turn_over).transpose()?;
        let disk_bytes = stored_bytes(&self.cluster.broker(GOING)?.data_dir());
        if let Some(refill) = &refill {
            pools.refill.add(&refill.latencies)?;
        }
        let beside =
            calm.zip(refill).map(|(calm, refill)| Beside { calm, refill: refill.report() });
        let copied = (self.source.bytes(), copy_ns);
        Ok(Round::new((bytes, up_ns, refill_ns), copied, disk_bytes, beside, cores))
    }

    /// Starts the node; how long it took until it was heard, and until it was in sync.
    fn come_back_ns(&mut self) -> Result<(u64, u64)> {
        let deadline = self.args.deadline_seconds;
        settle_disk(self.source.dir())?;
        let clock = Clock::start();
        self.cluster.broker(GOING)?.spawn()?;
        let up_ns = self.cluster.wait_up_ns(STAYING, clock, deadline)?;
        let addr = self.cluster.broker(STAYING)?.kafka();
        let topic = self.topic.clone();
        let mut connection = None;
        let going = self.cluster.broker(GOING)?;
        let (data_dir, written) = (going.data_dir(), self.written_bytes);
        let probe = |(partition, offset): (&i32, &i64)| {
            (*partition, Probe::new(going.kafka(), &topic, *partition, *offset))
        };
        let mut probes: Vec<(i32, Probe)> = self.last.iter().map(probe).collect();
        let mut out_of_sync = || {
            let stored = stored_bytes(&data_dir);
            if stored < written {
                return Some(format!("{stored} of {written} bytes are on the node's disk"));
            }
            // Those that have answered once need not again.
            while let Some((partition, probe)) = probes.last_mut() {
                if let Err(error) = probe.ask() {
                    return Some(format!("asked for the end of {topic}-{partition}: {error:#}"));
                }
                probes.pop();
            }
            match told_out_of_sync(&mut connection, addr, &topic) {
                Ok(partition) => partition.map(|number| format!("{topic}-{number} is out of sync")),
                Err(error) => Some(format!("{error:#}")),
            }
        };
        let in_sync_ns =
            self.cluster.wait_in_sync_ns(STAYING, clock, deadline, &mut out_of_sync)?;
        Ok((up_ns, in_sync_ns))
    }

    /// Writes the log, and lets it settle; its bytes.
    fn fill(&mut self, progress: &Progress) -> Result<u64> {
        let names = std::slice::from_ref(&self.topic);
        let addr = self.cluster.broker(STAYING)?.kafka();
        let targets = topics::wait_writable(addr, names, &wire::random_batch(1, 1)?)?;
        let batch_bytes = u64::try_from(self.batch.len())?;
        let batches = self.args.log_bytes.div_ceil(batch_bytes);
        let mut by_leader: BTreeMap<SocketAddr, Vec<i32>> = BTreeMap::new();
        for target in &targets {
            by_leader.entry(target.leader).or_default().push(target.partition);
        }
        let acked = AtomicU64::new(0);
        let partitions = u64::try_from(targets.len())?;
        let last = std::thread::scope(|scope| {
            let mut writing = Vec::new();
            for (leader, led) in by_leader {
                let share = (batches * u64::try_from(led.len())?).div_ceil(partitions);
                let mut writer = Writer::new(leader, &self.topic, led, &self.batch)?;
                let acked = &acked;
                writing.push(scope.spawn(move || {
                    let mut last = BTreeMap::new();
                    let written = writer.write(share, |partition, offset| {
                        last.insert(partition, offset);
                        let acked = acked.fetch_add(1, Ordering::Relaxed);
                        if acked.is_multiple_of(64) {
                            progress.say(&format!("{acked} of {batches} batches written"));
                        }
                    });
                    written.map(|()| last)
                }));
            }
            let ended = writing.into_iter().map(|one| one.join().map_err(|_| anyhow!("panicked")));
            ended.collect::<Result<Vec<_>>>()?.into_iter().collect::<Result<Vec<_>>>()
        })
        .context("filling the log")?;
        self.last.extend(last.into_iter().flatten());
        std::thread::sleep(self.args.settle_seconds);
        let bytes = acked.into_inner() * batch_bytes;
        self.written_bytes += bytes;
        Ok(bytes)
    }
}

fn watch_calm(board: &Board, pools: &mut Pools) -> Result<IntervalReport> {
    board.wait_leader(None, LEADER_DEADLINE)?;
    board.turn_over()?;
    std::thread::sleep(CALM);
    let calm = board.turn_over()?;
    pools.calm.add(&calm.latencies)?;
    Ok(calm.report())
}

fn told_out_of_sync(
    connection: &mut Option<Client>,
    addr: SocketAddr,
    topic: &str,
) -> Result<Option<i32>> {
    let mut client = match connection.take() {
        Some(client) => client,
        None => wire::connect(addr)?,
    };
    let partition = topics::out_of_sync(&mut client, topic)?;
    *connection = Some(client);
    Ok(partition)
}

impl Round {
    /// `refilled` are bytes and the times until the node was up and in sync, `copied` bytes and time.
    fn new(
        refilled: (u64, u64, u64),
        copied: (u64, u64),
        disk_bytes: u64,
        beside: Option<Beside>,
        cores: Option<Cores>,
    ) -> Round {
        let seconds = |ns: u64| ns.max(1) as f64 / SECOND_NS as f64;
        let (up_s, refill_s, copy_s) =
            (seconds(refilled.1), seconds(refilled.2), seconds(copied.1));
        let refill_bytes_per_s = refilled.0 as f64 / refill_s;
        let copy_bytes_per_s = copied.0 as f64 / copy_s;
        Round {
            bytes: refilled.0,
            up_s,
            refill_s,
            refill_bytes_per_s,
            copy_s,
            copy_bytes_per_s,
            ratio: refill_bytes_per_s / copy_bytes_per_s,
            disk_bytes,
            beside,
            cores,
        }
    }
}
