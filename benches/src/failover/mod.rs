//! `failover`: what clients notice when a node of a cluster is killed, hangs or leaves, when all are restarted one after the
//! other, and when a leader is moved on purpose.
//!
//! Three nodes on this machine, one partition on all three, and a steady client that retries at once. Before each round
//! the same client runs undisturbed: what the machine itself does to the figures.
//!
//! - I1: a node goes only when every replica was in sync and the client was being answered.

mod moves;
mod report;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::clock::{Clock, ns_to_ms};
use crate::cluster::{Cluster, IN_SYNC_DEADLINE, Launch, NODES};
use crate::latency::Latencies;
use crate::report::{Progress, publish};
use crate::steady::{Board, IntervalReport, Plan, run_beside};
use crate::usage::{Cores, Usage};
use crate::{flags, topics, wire};
use report::{Report, table};

/// How long the client may be without a leader before the run is given up.
const LEADER_DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `failover`.
#[derive(Debug, Clone, Args)]
pub struct FailoverArgs {
    #[command(flatten)]
    launch: Launch,
    /// What happens to the partition's leader
    #[arg(long, value_enum, default_value = "kill")]
    by: By,
    /// How often it happens
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Messages a second, each sent when it is due
    #[arg(long, value_name = "MESSAGES_PER_SECOND", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Bytes of a message's value
    #[arg(long, value_name = "BYTES", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    record_bytes: u32,
    /// Undisturbed time before each round
    #[arg(long, value_parser = flags::seconds_above_zero, default_value = "2")]
    calm_seconds: Duration,
    /// Time after another leader has acknowledged, which still belongs to the change
    #[arg(long, value_parser = flags::seconds, default_value = "2")]
    after_seconds: Duration,
    /// Save the distribution of latencies during the changes as HdrHistogram text
    #[arg(long, value_name = "FILE")]
    hgrm: Option<std::path::PathBuf>,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum By {
    /// The leader's process gets SIGKILL, and is started again
    Kill,
    /// The leader's process gets SIGSTOP, and SIGCONT later: silent with its connections open, as a machine that lost its
    /// power or its cable
    Hang,
    /// The leader's process gets SIGTERM, and is started again
    Stop,
    /// Each process in turn gets SIGTERM, and is started again
    Roll,
    /// Another node is made the preferred leader, and elected
    Move,
}

/// One node that goes and comes back; or one that only stops leading, which comes back to nothing.
#[derive(Debug, Clone, Serialize)]
struct Step {
    node: i32,
    was_leader: bool,
    /// Until the process was gone or halted, or the election answered.
    leaving_ms: f64,
    /// From then until the time after the next leader's first acknowledgement was over.
    gone: IntervalReport,
    /// From its start, or from when it went on, until the cluster had been in sync for a while.
    back: Option<IntervalReport>,
    /// From its start until it was in sync.
    in_sync_ms: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Round {
    calm: IntervalReport,
    steps: Vec<Step>,
    cores: Option<Cores>,
}

/// What is pooled over all rounds.
#[derive(Debug)]
struct Pools {
    calm: Latencies,
    disturbed: Latencies,
    calm_send_delay: Latencies,
}

/// Runs `failover`.
pub fn run(args: &FailoverArgs) -> Result<()> {
    let progress = Progress::new();
    progress.say("starting three nodes");
    let mut launch = args.launch.clone();
    if args.by == By::Move {
        // Leaders move when it is measured and at no other time.
        launch.settings.push("kafka.auto_leader_rebalance_enable = false".to_owned());
    }
    let mut cluster = Cluster::launch_three(&launch)?;
    let names = [topics::fresh_name("failover")];
    let first = cluster.broker(1)?.kafka();
    topics::create(&mut wire::connect(first)?, &names, 1, i16::try_from(NODES)?)?;
    topics::wait_writable(first, &names, &wire::random_batch(1, 1)?)?;
    cluster.wait_in_sync(1, IN_SYNC_DEADLINE)?;
    let [topic] = names;
    let nodes = cluster.addresses();
    let plan = Plan { nodes, topic, rate: args.rate, record_bytes: args.record_bytes };
    let mut pools = Pools {
        calm: Latencies::new()?,
        disturbed: Latencies::new()?,
        calm_send_delay: Latencies::new()?,
    };
    let ran = run_beside(&plan, |board| {
        Bench { args, cluster: &mut cluster, topic: &plan.topic, board, pools: &mut pools }
            .rounds(&progress)
    });
    let (rounds, unacked) = ran.with_context(|| cluster.log_tails())?;
    drop((cluster, progress));
    if let Some(path) = &args.hgrm {
        pools.disturbed.save_hgrm(path)?;
    }
    let report = Report::new(args, rounds, &pools, unacked);
    publish(args.json, "failover", &table(&report), &report)
}

/// A cluster under a steady client.
struct Bench<'a> {
    args: &'a FailoverArgs,
    cluster: &'a mut Cluster,
    topic: &'a str,
    board: &'a Board,
    pools: &'a mut Pools,
}

impl Bench<'_> {
    fn rounds(mut self, progress: &Progress) -> Result<Vec<Round>> {
        let mut rounds = Vec::new();
        for number in 1..=self.args.rounds {
            progress.say(&format!("round {number} of {}", self.args.rounds));
            rounds.push(self.round().with_context(|| format!("round {number}"))?);
        }
        Ok(rounds)
    }

    fn round(&mut self) -> Result<Round> {
        let usage = Usage::begin();
        let leader = self.board.wait_leader(None, LEADER_DEADLINE)?;
        let next = match self.args.by {
            By::Move => Some(moves::prefer_another(self.cluster, self.topic, leader)?),
            By::Kill | By::Hang | By::Stop | By::Roll => None,
        };
        // What came before, a start or the end of the last round, is nobody's.
        self.board.turn_over()?;
        std::thread::sleep(self.args.calm_seconds);
        let calm = self.board.turn_over()?;
        self.pools.calm.add(&calm.latencies)?;
        self.pools.calm_send_delay.add(&calm.send_delay)?;
        let going: Vec<i32> = match self.args.by {
            By::Kill | By::Hang | By::Stop | By::Move => {
                vec![self.board.wait_leader(None, LEADER_DEADLINE)?]
            }
            By::Roll => self.cluster.brokers().iter().map(|broker| broker.id()).collect(),
        };
        let mut steps = Vec::new();
        for node in going {
            let leader = self.board.wait_leader(None, LEADER_DEADLINE)?;
            steps.push(self.step(node, leader, next)?);
        }
        Ok(Round { calm: calm.report(), steps, cores: usage.end() })
    }

    /// Takes a node away, and brings it back. Where `next` is to lead, only that moves.
    fn step(&mut self, node: i32, leader: i32, next: Option<i32>) -> Result<Step> {
        let clock = Clock::start();
        match (self.args.by, next) {
            (_, Some(next)) => moves::elect(self.cluster, self.board, self.topic, next)?,
            (By::Kill, None) => self.cluster.broker(node)?.kill()?,
            (By::Hang, None) => self.cluster.broker(node)?.hang()?,
            (By::Stop | By::Roll | By::Move, None) => self.cluster.broker(node)?.stop()?,
        }
        let leaving_ms = ns_to_ms(clock.now_ns());
        self.board
            .wait_leader(Some(node), LEADER_DEADLINE)
            .with_context(|| format!("without node {node}"))?;
        std::thread::sleep(self.args.after_seconds);
        let gone = self.disturbed()?;
        let (mut back, mut in_sync_ms) = (None, None);
        if next.is_none() {
            let clock = Clock::start();
            match self.args.by {
                By::Hang => self.cluster.broker(node)?.go_on()?,
                _ => self.cluster.broker(node)?.spawn()?,
            }
            let asked = if node == 1 { 2 } else { 1 };
            let in_sync_ns =
                self.cluster.wait_in_sync_ns(asked, clock, IN_SYNC_DEADLINE, &mut || None)?;
            back = Some(self.disturbed()?);
            in_sync_ms = Some(ns_to_ms(in_sync_ns));
        }
        Ok(Step { node, was_leader: node == leader, leaving_ms, gone, back, in_sync_ms })
    }

    /// Ends an interval that something was done in.
    fn disturbed(&mut self) -> Result<IntervalReport> {
        let interval = self.board.turn_over()?;
        self.pools.disturbed.add(&interval.latencies)?;
        Ok(interval.report())
    }
}
