//! `groups`: the time of a rebalance, or with `--commits` the rate of offset commits.

mod assignor;
mod board;
mod commits;
mod member;
mod rebalance;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::closed_loop::{self, Load};
use crate::flags;
use crate::latency::Percentiles;
use crate::report::{PERCENTILE_HEADING, Progress, Table, ms, publish};
use crate::{topics, wire};
use assignor::{Assignor, Topics};
use rebalance::{GroupTimes, Plan};

/// Arguments of `groups`.
#[derive(Debug, Clone, Args)]
pub struct GroupsArgs {
    /// A broker
    #[arg(long, value_name = "HOST:PORT", value_parser = flags::address)]
    bootstrap: String,
    /// Members of the group, each with a connection of its own
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=2_000))]
    members: u16,
    /// Pause between a member's heartbeats, which is where it hears of a rebalance (Kafka's clients: 3000); several are
    /// measured one after the other
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "3000,100",
          value_parser = clap::value_parser!(u32).range(1..=30_000))]
    heartbeat_ms: Vec<u32>,
    /// How often a member leaves and one joins
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Partitions of the topic that the group reads
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    partitions: i32,
    /// How the group's leader assigns
    #[arg(long, value_enum, default_value_t = Assignor::Range)]
    assignor: Assignor,
    /// Measure offset commits instead: closed loop, a group per connection
    #[arg(long)]
    commits: bool,
    /// Connections that commit
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,
    /// Commits under way per connection
    #[arg(long, value_name = "REQUESTS", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    inflight: u16,
    /// Measured time of commits
    #[arg(long, value_parser = flags::seconds_above_zero, default_value = "10")]
    seconds: Duration,
    /// Time before it, under the same load
    #[arg(long, value_parser = flags::seconds, default_value = "2")]
    warmup_seconds: Duration,
    /// Save the distribution of the commits' latencies as HdrHistogram text
    #[arg(long, value_name = "FILE", requires = "commits")]
    hgrm: Option<PathBuf>,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct RebalanceReport<'a> {
    bootstrap: &'a str,
    members: u16,
    partitions: i32,
    assignor: &'static str,
    rounds: u16,
    groups: Vec<GroupTimes>,
}

#[derive(Debug, Serialize)]
struct CommitReport<'a> {
    bootstrap: &'a str,
    connections: u16,
    inflight: u16,
    seconds: f64,
    warmup_seconds: f64,
    commits: u64,
    commits_per_s: f64,
    errors: u64,
    unanswered: u64,
    first_error: Option<String>,
    latency_ms: Percentiles,
}

/// Runs `groups`.
pub fn run(args: &GroupsArgs) -> Result<()> {
    let addr = wire::resolve(&args.bootstrap)?;
    let topic = topics::fresh_name("chronik-bench-groups");
    let names = [topic.clone()];
    let mut control = wire::connect(addr)?;
    wire::require(&mut control, wire::FOR_PRODUCE)?;
    wire::require(&mut control, wire::FOR_GROUPS)?;
    topics::create(&mut control, &names, args.partitions, -1)?;
    topics::wait_writable(addr, &names, &wire::random_batch(1, 1)?)?;
    match args.commits {
        true => run_commits(args, &topic),
        false => run_rebalances(args, &topic),
    }
}

fn run_rebalances(args: &GroupsArgs, topic: &str) -> Result<()> {
    let progress = Progress::new();
    let mut groups = Vec::new();
    for heartbeat_ms in &args.heartbeat_ms {
        let group = topics::fresh_name("chronik-bench-group");
        let plan = Plan {
            coordinator: member::find_coordinator(&args.bootstrap, &group)?,
            group,
            topics: Topics::from([(topic.to_owned(), args.partitions)]),
            assignor: args.assignor,
            members: usize::from(args.members),
            heartbeat: Duration::from_millis(u64::from(*heartbeat_ms)),
            rounds: args.rounds,
        };
        groups.push(rebalance::run(&plan, &progress)?);
    }
    drop(progress);
    let report = RebalanceReport {
        bootstrap: &args.bootstrap,
        members: args.members,
        partitions: args.partitions,
        assignor: args.assignor.name(),
        rounds: args.rounds,
        groups,
    };
    publish(args.json, "groups", &rebalance_table(&report), &report)
}

fn rebalance_table(report: &RebalanceReport<'_>) -> String {
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), ms);
    let heading =
        ["ms", "heartbeat", "rounds", "median", "max", "after heard: median", "after heard: max"];
    let mut table = Table::new(&heading);
    for group in &report.groups {
        for event in &group.events {
            table.row([
                event.event.to_owned(),
                ms(event.heartbeat_ms),
                event.rounds_ms.len().to_string(),
                shown(event.median_ms),
                shown(event.max_ms),
                shown(event.after_last_heard_median_ms),
                shown(event.after_last_heard_max_ms),
            ]);
        }
    }
    let formed: Vec<String> = report.groups.iter().map(|group| ms(group.formed_ms)).collect();
    format!(
        "{}{} members, {} partitions; formed in {} ms\n\
         from LeaveGroup or JoinGroup to the last member's assignment; \"after heard\": from the last member's \
         answer that named the rebalance\n",
        table.text(),
        report.members,
        report.partitions,
        formed.join(", ")
    )
}

fn run_commits(args: &GroupsArgs, topic: &str) -> Result<()> {
    let work = commits::work(&args.bootstrap, topic, args.partitions, args.connections)?;
    let load = Load {
        inflight: usize::from(args.inflight),
        warmup: args.warmup_seconds,
        measured: args.seconds,
    };
    let tally = closed_loop::run(work, load, &Progress::new())?;
    if let Some(path) = &args.hgrm {
        tally.latencies.save_hgrm(path)?;
    }
    // Exact below 2^53 commits, which no run reaches.
    let commits_per_s = tally.answered as f64 / args.seconds.as_secs_f64();
    let report = CommitReport {
        bootstrap: &args.bootstrap,
        connections: args.connections,
        inflight: args.inflight,
        seconds: args.seconds.as_secs_f64(),
        warmup_seconds: args.warmup_seconds.as_secs_f64(),
        commits: tally.answered,
        commits_per_s,
        errors: tally.errors,
        unanswered: tally.unanswered,
        first_error: tally.first_error,
        latency_ms: tally.latencies.percentiles(),
    };
    let mut table = Table::new(&PERCENTILE_HEADING);
    table.percentiles("commit answered after", &report.latency_ms);
    let mut text = table.text();
    text.push_str(&format!(
        "{commits_per_s:.0} commits/s; errors {}, unanswered {}\n",
        report.errors, report.unanswered
    ));
    if let Some(error) = &report.first_error {
        text.push_str(&format!("first error: {error}\n"));
    }
    publish(args.json, "groups", &text, &report)?;
    anyhow::ensure!(report.commits > 0, "no commit was carried out");
    Ok(())
}
