//! `idle`: what partitions that nobody uses cost a cluster: processor time and memory, by node.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::clock::{Clock, ns_to_ms};
use crate::cluster::{Cluster, IN_SYNC_DEADLINE, Launch, NODES};
use crate::report::{Progress, Table, publish};
use crate::usage::{Cores, Usage};
use crate::{flags, topics, wire};

/// How long making one topic may take.
const CREATE_TIMEOUT: Duration = Duration::from_secs(300);

/// Arguments of `idle`.
#[derive(Debug, Clone, Args)]
pub struct IdleArgs {
    #[command(flatten)]
    launch: Launch,
    /// Partitions, each with a replica on every node
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    partitions: u32,
    /// Partitions of each topic: they are made one topic after the other
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    topic_partitions: u32,
    /// Bytes of the one record that is written to each partition
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    record_bytes: u32,
    /// Pause before each measurement
    #[arg(long, value_parser = flags::seconds, default_value = "30")]
    settle_seconds: Duration,
    /// How long processor time is counted, before and after
    #[arg(long, value_parser = flags::seconds_above_zero, default_value = "30")]
    seconds: Duration,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

/// What one node uses.
#[derive(Debug, Clone, Copy, Serialize)]
struct Use {
    /// Share of one core.
    core_share: f64,
    memory_bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
struct Node {
    id: i32,
    /// Without partitions.
    before: Use,
    after: Use,
    bytes_per_replica: i64,
}

#[derive(Debug, Serialize)]
struct Report {
    partitions: u32,
    seconds: f64,
    /// Until every partition had acknowledged a record.
    made_ms: f64,
    nodes: Vec<Node>,
    worst_core_share: f64,
    worst_bytes_per_replica: i64,
    cores_before: Option<Cores>,
    cores_after: Option<Cores>,
}

/// Runs `idle`.
pub fn run(args: &IdleArgs) -> Result<()> {
    let progress = Progress::new();
    progress.say("starting three nodes");
    let mut cluster = Cluster::launch_three(&args.launch)?;
    let report = measure(args, &mut cluster, &progress).with_context(|| cluster.log_tails())?;
    drop((cluster, progress));
    publish(args.json, "idle", &table(&report), &report)
}

fn measure(args: &IdleArgs, cluster: &mut Cluster, progress: &Progress) -> Result<Report> {
    progress.say("idle without partitions");
    let (before, cores_before) = watch(args, cluster)?;
    let clock = Clock::start();
    make(args, cluster, progress)?;
    let made_ms = ns_to_ms(clock.now_ns());
    progress.say("waiting until all replicas are in sync");
    cluster.wait_in_sync(1, IN_SYNC_DEADLINE)?;
    progress.say("idle");
    let (after, cores_after) = watch(args, cluster)?;
    let mut nodes = Vec::new();
    for ((broker, before), after) in cluster.brokers().iter().zip(before).zip(after) {
        let grown = i64::try_from(after.memory_bytes)? - i64::try_from(before.memory_bytes)?;
        let bytes_per_replica = grown / i64::from(args.partitions);
        nodes.push(Node { id: broker.id(), before, after, bytes_per_replica });
    }
    Ok(Report {
        partitions: args.partitions,
        seconds: args.seconds.as_secs_f64(),
        made_ms,
        worst_core_share: nodes.iter().map(|node| node.after.core_share).fold(0.0, f64::max),
        worst_bytes_per_replica: nodes.iter().map(|n| n.bytes_per_replica).max().unwrap_or(0),
        nodes,
        cores_before,
        cores_after,
    })
}

/// Lets the cluster settle, then watches what each node uses.
fn watch(args: &IdleArgs, cluster: &mut Cluster) -> Result<(Vec<Use>, Option<Cores>)> {
    std::thread::sleep(args.settle_seconds);
    cluster.ensure_running()?;
    let usage = Usage::begin();
    let clock = Clock::start();
    let begun: Vec<Duration> =
        cluster.brokers().iter().map(|broker| broker.cpu()).collect::<Result<_>>()?;
    std::thread::sleep(args.seconds);
    let mut used = Vec::new();
    for (broker, begun) in cluster.brokers().iter().zip(begun) {
        let cpu = broker.cpu()?.saturating_sub(begun);
        let over_s = ns_to_ms(clock.now_ns()) / 1e3;
        let core_share = cpu.as_secs_f64() / over_s;
        used.push(Use { core_share, memory_bytes: broker.memory_bytes()? });
    }
    Ok((used, usage.end()))
}

/// Makes the topics, and writes a record to each partition.
fn make(args: &IdleArgs, cluster: &mut Cluster, progress: &Progress) -> Result<()> {
    let addr = cluster.broker(1)?.kafka();
    let mut client = wire::connect_within(addr, CREATE_TIMEOUT)?;
    let batch = wire::random_batch(1, usize::try_from(args.record_bytes)?)?;
    let mut made = 0;
    while made < args.partitions {
        progress.say(&format!("{made} of {} partitions", args.partitions));
        let more = args.topic_partitions.min(args.partitions - made);
        let names = [topics::fresh_name("idle")];
        topics::create(&mut client, &names, i32::try_from(more)?, i16::try_from(NODES)?)?;
        topics::wait_writable(addr, &names, &batch)?;
        made += more;
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&[
        "node",
        "% of a core before",
        "% of a core",
        "MiB before",
        "MiB",
        "bytes per replica",
    ]);
    let percent = |share: f64| format!("{:.2}", share * 100.0);
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    for Node { id, before, after, bytes_per_replica } in &report.nodes {
        table.row([
            id.to_string(),
            percent(before.core_share),
            percent(after.core_share),
            mib(before.memory_bytes),
            mib(after.memory_bytes),
            bytes_per_replica.to_string(),
        ]);
    }
    let mut text = format!(
        "{} partitions, a replica of each on every node, made and written in {:.1} s; {} s each\n{}",
        report.partitions,
        report.made_ms / 1e3,
        report.seconds,
        table.text()
    );
    for (name, cores) in [("before", report.cores_before), ("after", report.cores_after)] {
        if let Some(cores) = cores {
            text.push_str(&format!("{name}: {cores}\n"));
        }
    }
    text
}
