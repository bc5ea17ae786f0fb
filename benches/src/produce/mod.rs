//! `produce`: acknowledged writes at a fixed rate (open loop), or as many as go (closed loop, `--rate 0`).

mod lanes;
mod open_loop;

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use crate::closed_loop::{self, Load};
use crate::flags::{self, Acks, Pids};
use crate::latency::{Latencies, Percentiles};
use crate::pace::Schedule;
use crate::report::{PERCENTILE_HEADING, Progress, Table, publish};
use crate::topics::{self, Target};
use crate::usage::{Cores, MessageCpu, Usage, cpu_within};
use crate::wire;
use lanes::Lanes;

/// What is sent.
#[derive(Debug, Clone, Args)]
pub struct Shape {
    /// Records a second over all partitions, each request sent when it is due; 0: as many as go
    #[arg(long, value_name = "RECORDS_PER_SECOND", default_value_t = 1_000)]
    pub rate: u64,
    /// Measured time
    #[arg(long, value_parser = flags::seconds_above_zero, default_value = "20")]
    pub seconds: Duration,
    /// Time before it, under the same load
    #[arg(long, value_parser = flags::seconds, default_value = "5")]
    pub warmup_seconds: Duration,
    /// Bytes of a record's value
    #[arg(long, value_name = "BYTES", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub record_bytes: u32,
    /// Records of a request
    #[arg(long, value_name = "RECORDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub batch_records: u32,
    /// Topics
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub topics: u16,
    /// Partitions of each topic
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    pub partitions: i32,
    /// Replicas of each partition; -1: the broker's default
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i16).range(-1..=100))]
    pub replicas: i16,
    /// What an acknowledgement waits for: 0, 1, all
    #[arg(long, value_parser = flags::acks, default_value = "all", allow_hyphen_values = true)]
    pub acks: Acks,
    /// Connections to each leader
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub connections: u16,
    /// Requests under way per connection with --rate 0
    #[arg(long, value_name = "REQUESTS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub inflight: u16,
    /// Topics are named NAME-0, NAME-1, …; those that are there are used [default: a name nobody has used]
    #[arg(long, value_name = "NAME")]
    pub topic_prefix: Option<String>,
    /// Delete the topics at the end: on some disks that slows down whatever is measured next
    #[arg(long)]
    pub delete_topics: bool,
}

/// Arguments of `produce`.
#[derive(Debug, Clone, Args)]
pub struct ProduceArgs {
    /// A broker
    #[arg(long, value_name = "HOST:PORT", value_parser = flags::address)]
    pub bootstrap: String,
    /// The brokers' processes, where they run on this machine: their processor time by message
    #[arg(long, value_name = "PID,PID,…", value_parser = flags::pids)]
    pub pids: Option<Pids>,
    #[command(flatten)]
    pub shape: Shape,
    /// Save the distribution of latencies as HdrHistogram text
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    pub json: bool,
}

/// One run as it is reported.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// `open` or `closed`.
    pub mode: &'static str,
    /// Records acknowledged in the measured time; with acks=0 those sent.
    pub records_acked: u64,
    /// The same by second.
    pub records_per_s: f64,
    /// Values of those records in 10^6 bytes by second.
    pub mb_per_s: f64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests never answered.
    pub unanswered: u64,
    /// Requests due on a lost connection.
    pub unsent: u64,
    /// The first error.
    pub first_error: Option<String>,
    /// Open loop: from the time a request was due; closed loop: from when it was sent.
    pub latency_ms: Percentiles,
    /// How late requests left: the generator's own delay. Open loop only.
    pub send_delay_ms: Option<Percentiles>,
    /// Who used the processors.
    pub cores: Option<Cores>,
    /// What the brokers' processes used in the measured time.
    pub broker_cpu: Option<MessageCpu>,
}

/// One run: its figures, and the histogram that goes into a pool.
#[derive(Debug)]
pub struct Run {
    /// What is reported.
    pub figures: Figures,
    /// Every measured latency.
    pub latencies: Latencies,
}

/// The report of `produce`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    bootstrap: &'a str,
    #[serde(flatten)]
    shape: ShapeReport,
    #[serde(flatten)]
    figures: &'a Figures,
}

/// The load, as it is reported.
#[derive(Debug, Clone, Serialize)]
pub struct ShapeReport {
    rate_records_per_s: u64,
    seconds: f64,
    warmup_seconds: f64,
    record_bytes: u32,
    batch_records: u32,
    topics: u16,
    partitions: i32,
    acks: i16,
    connections: u16,
    inflight: Option<u16>,
}

impl Shape {
    /// The load, as it is reported.
    #[must_use]
    pub fn report(&self) -> ShapeReport {
        ShapeReport {
            rate_records_per_s: self.rate,
            seconds: self.seconds.as_secs_f64(),
            warmup_seconds: self.warmup_seconds.as_secs_f64(),
            record_bytes: self.record_bytes,
            batch_records: self.batch_records,
            topics: self.topics,
            partitions: self.partitions,
            acks: self.acks.0,
            connections: self.connections,
            inflight: (self.rate == 0).then_some(self.inflight),
        }
    }

    /// Refuses what cannot be run, before anything is made on the broker.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.rate > 0 || self.acks.0 != 0,
            "--rate 0 sends when an answer comes, and with --acks 0 none does"
        );
        let batch_bytes = u64::from(self.record_bytes) * u64::from(self.batch_records);
        ensure!(batch_bytes <= 64 << 20, "a batch of {batch_bytes} bytes is above 64 MiB");
        if let Some(schedule) = self.schedule() {
            let requests = schedule.requests();
            ensure!(
                i32::try_from(requests).is_ok(),
                "{requests} requests are more than one run can count"
            );
        }
        Ok(())
    }

    fn schedule(&self) -> Option<Schedule> {
        let per_request = u64::from(self.batch_records);
        Schedule::new(0, self.rate, per_request, self.warmup_seconds, self.seconds)
    }
}

/// A broker whose topics are there and take writes.
#[derive(Debug)]
pub struct Prepared {
    bootstrap: std::net::SocketAddr,
    names: Vec<String>,
    targets: Vec<Target>,
    batch: Bytes,
}

impl Prepared {
    /// Makes the topics and waits until every partition takes a write.
    pub fn new(bootstrap: &str, shape: &Shape) -> Result<Prepared> {
        shape.check()?;
        let addr = wire::resolve(bootstrap)?;
        let prefix =
            shape.topic_prefix.clone().unwrap_or_else(|| topics::fresh_name("chronik-bench"));
        let names: Vec<String> = (0..shape.topics).map(|n| format!("{prefix}-{n}")).collect();
        let mut control = wire::connect(addr)?;
        wire::require(&mut control, wire::FOR_PRODUCE)?;
        topics::create(&mut control, &names, shape.partitions, shape.replicas)?;
        let batch = wire::random_batch(shape.batch_records, usize::try_from(shape.record_bytes)?)?;
        let targets = topics::wait_writable(addr, &names, &batch)?;
        let expected = usize::from(shape.topics) * usize::try_from(shape.partitions)?;
        ensure!(
            targets.len() == expected,
            "{} partitions where {expected} were asked for: topics named {prefix}-* were there",
            targets.len()
        );
        Ok(Prepared { bootstrap: addr, names, targets, batch })
    }

    /// One run over fresh connections; `pids` are the brokers' processes, if they are known.
    pub fn run(&self, shape: &Shape, pids: Option<&Pids>, progress: &Progress) -> Result<Run> {
        let usage = Usage::begin();
        let (load_over, is_over) = mpsc::channel();
        let (outcome, cpu) = std::thread::scope(|scope| {
            let (warmup, measured) = (shape.warmup_seconds, shape.seconds);
            let cpu = pids
                .map(|pids| scope.spawn(move || cpu_within(&pids.0, warmup, measured, &is_over)));
            let outcome = self.load(shape, progress);
            drop(load_over);
            let cpu = cpu.map(ScopedJoinHandle::join).transpose();
            (outcome, cpu.map_err(|_| anyhow!("a reader of /proc panicked")))
        });
        let (mode, outcome) = outcome?;
        let cpu = cpu?.transpose().context("the brokers' processor time")?.flatten();
        let cores = usage.end();
        let requests = match shape.acks.0 {
            0 => outcome.send_delay.count().saturating_sub(outcome.unsent),
            _ => outcome.tally.answered,
        };
        let records = requests * u64::from(shape.batch_records);
        // Exact below 2^53 records, which no run reaches.
        let records_per_s = records as f64 / shape.seconds.as_secs_f64();
        let figures = Figures {
            mode,
            records_acked: records,
            records_per_s,
            mb_per_s: records_per_s * f64::from(shape.record_bytes) / 1e6,
            errors: outcome.tally.errors,
            unanswered: outcome.tally.unanswered,
            unsent: outcome.unsent,
            first_error: outcome.tally.first_error,
            latency_ms: outcome.tally.latencies.percentiles(),
            send_delay_ms: (mode == "open").then(|| outcome.send_delay.percentiles()),
            cores,
            broker_cpu: cpu
                .zip(pids)
                .map(|(cpu, pids)| MessageCpu::new(pids.0.len(), cpu, records)),
        };
        Ok(Run { figures, latencies: outcome.tally.latencies })
    }

    /// Sends what the shape says: how, and what came of it.
    fn load(
        &self,
        shape: &Shape,
        progress: &Progress,
    ) -> Result<(&'static str, open_loop::Outcome)> {
        let connections = usize::from(shape.connections);
        let mut lanes = Lanes::new(&self.targets, connections, shape.acks.0, &self.batch)?;
        if let Some(schedule) = shape.schedule() {
            return Ok(("open", open_loop::run(&mut lanes, schedule, shape.acks.0, progress)?));
        }
        let load = Load {
            inflight: usize::from(shape.inflight),
            warmup: shape.warmup_seconds,
            measured: shape.seconds,
        };
        let tally = closed_loop::run(lanes.into_work(), load, progress)?;
        Ok(("closed", open_loop::Outcome { tally, send_delay: Latencies::new()?, unsent: 0 }))
    }

    /// Deletes the topics where that was asked for.
    pub fn finish(self, shape: &Shape) -> Result<()> {
        match shape.delete_topics {
            true => topics::delete(&mut wire::connect(self.bootstrap)?, &self.names),
            false => Ok(()),
        }
    }
}

/// Runs `produce`.
pub fn run(args: &ProduceArgs) -> Result<()> {
    let progress = Progress::new();
    let prepared = Prepared::new(&args.bootstrap, &args.shape)?;
    let run = prepared.run(&args.shape, args.pids.as_ref(), &progress)?;
    drop(progress);
    prepared.finish(&args.shape)?;
    if let Some(path) = &args.hgrm {
        run.latencies.save_hgrm(path)?;
    }
    let figures = &run.figures;
    let report = Report { bootstrap: &args.bootstrap, shape: args.shape.report(), figures };
    publish(args.json, "produce", &table(figures), &report)?;
    let why = figures.first_error.as_deref().unwrap_or("no answer came");
    ensure!(figures.records_acked > 0, "nothing was acknowledged: {why}");
    Ok(())
}

fn table(figures: &Figures) -> String {
    let mut table = Table::new(&PERCENTILE_HEADING);
    table.percentiles("acknowledged after", &figures.latency_ms);
    if let Some(delay) = &figures.send_delay_ms {
        table.percentiles("sent after due", delay);
    }
    let mut text = table.text();
    text.push_str(&format!(
        "{:.0} records/s, {:.1} MB/s; errors {}, unanswered {}, unsent {}\n",
        figures.records_per_s, figures.mb_per_s, figures.errors, figures.unanswered, figures.unsent
    ));
    if let Some(cores) = figures.cores {
        text.push_str(&format!("{cores}\n"));
    }
    if let Some(MessageCpu { processes, cpu_s, us_per_message }) = figures.broker_cpu {
        let each = us_per_message.map_or("-".to_owned(), |us| format!("{us:.2}"));
        text.push_str(&format!(
            "{processes} broker processes: {cpu_s:.2} s of processor time, {each} µs per message\n"
        ));
    }
    if let Some(error) = &figures.first_error {
        text.push_str(&format!("first error: {error}\n"));
    }
    text
}

/// Checks that a run can be compared: an error in it would make its latencies those of something else.
pub fn ensure_clean(figures: &Figures) -> Result<()> {
    let bad = figures.errors + figures.unanswered + figures.unsent;
    let why = figures.first_error.clone().unwrap_or_default();
    (bad == 0).then_some(()).with_context(|| format!("{bad} requests failed: {why}"))
}
