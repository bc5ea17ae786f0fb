//! `restart`: how long a broker that was killed needs until it serves records again, for logs of several sizes.
//!
//! Beside it stands what the disk needs to read the active files of the log, so that a time can be judged: 0.5 s and that,
//! whatever the log's length.

mod active;
mod fill;
mod probe;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::Serialize;

use crate::broker::Broker;
use crate::clock::{Clock, ns_to_ms};
use crate::cluster::{Cluster, Launch};
use crate::disk::ensure_room;
use crate::fetch::Probe;
use crate::report::{Progress, Table, median, ms, publish, ratio, ratio_text};
use crate::{flags, topics, wire};
use active::read_active;
use fill::{LogEnd, Progressed, write_until_killed};
use probe::first_fetch_ns;

/// What a start may take besides reading the active files.
const ALLOWANCE_MS: f64 = 500.0;
/// Disk besides the log itself: files made ahead, ballast.
const SPARE_DISK_BYTES: u64 = 1 << 30;
/// How often the writer and the child are looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// Lines of the progress say something new about this often.
const LOOKS_PER_PROGRESS: u64 = 100;

/// Arguments of `restart`.
#[derive(Debug, Clone, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    launch: Launch,
    /// Sizes of the log, one after the other
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = flags::bytes, default_value = "1GiB,4GiB,16GiB")]
    log_bytes: Vec<u64>,
    /// Kills and starts per size
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Written between a start and the next kill
    #[arg(long, value_name = "BYTES", value_parser = flags::bytes, default_value = "64MiB")]
    between_bytes: u64,
    /// Partitions that are written
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    partitions: i32,
    sizes: Vec<SizeReport>,
    /// Slowest size's median to the fastest's: 1 where a start does not depend on the log's length.
    slowest_to_fastest: Option<f64>,
    goal_reached: bool,
}

#[derive(Debug, Serialize)]
struct SizeReport {
    log_bytes: u64,
    fill_s: f64,
    median_first_fetch_end_ms: f64,
    median_first_fetch_start_ms: f64,
    median_read_active_ms: f64,
    median_limit_ms: f64,
    goal_reached: bool,
    rounds: Vec<Round>,
}

/// One kill and start.
#[derive(Debug, Clone, Serialize)]
struct Round {
    /// From exec to the record at the end of the log.
    first_fetch_end_ms: f64,
    /// From exec to the record at offset 0.
    first_fetch_start_ms: f64,
    /// Bytes of the active files.
    active_bytes: u64,
    /// Reading them past the page cache.
    read_active_ms: f64,
}

/// Runs `restart`.
pub fn run(args: &RestartArgs) -> Result<()> {
    let largest = args.log_bytes.iter().copied().max().unwrap_or(0);
    let between = args.between_bytes.saturating_mul(u64::from(args.rounds));
    let need = largest.saturating_add(largest / 10).saturating_add(between);
    ensure_room(&args.launch.data_dir, need.saturating_add(SPARE_DISK_BYTES))?;
    let progress = Progress::new();
    let mut sizes = Vec::new();
    for log_bytes in &args.log_bytes {
        let size = measure(args, *log_bytes, &progress);
        sizes.push(size.with_context(|| format!("with {log_bytes} bytes of log"))?);
    }
    drop(progress);
    let medians: Vec<f64> = sizes.iter().map(|size| size.median_first_fetch_end_ms).collect();
    let slowest = medians.iter().copied().reduce(f64::max).unwrap_or(0.0);
    let fastest = medians.iter().copied().reduce(f64::min).unwrap_or(0.0);
    let report = Report {
        partitions: args.partitions,
        goal_reached: sizes.iter().all(|size| size.goal_reached),
        slowest_to_fastest: ratio(slowest, fastest),
        sizes,
    };
    publish(args.json, "restart", &table(&report), &report)
}

fn measure(args: &RestartArgs, log_bytes: u64, progress: &Progress) -> Result<SizeReport> {
    let mut cluster = Cluster::launch(&args.launch, 1)?;
    let broker = cluster.broker(1)?;
    let names = [topics::fresh_name("restart")];
    topics::create(&mut wire::connect(broker.kafka())?, &names, args.partitions, -1)?;
    topics::wait_writable(broker.kafka(), &names, &wire::random_batch(1, 1)?)?;
    let topic = &names[0];
    let clock = Clock::start();
    let mut fill_s = 0.0;
    let mut rounds = Vec::new();
    for round in 0..args.rounds {
        let bytes = if round == 0 { log_bytes } else { args.between_bytes };
        let what =
            format!("log of {} MiB, round {} of {}", log_bytes >> 20, round + 1, args.rounds);
        let end = write_and_kill(broker, topic, args.partitions, bytes, progress, &what)
            .with_context(|| broker.log_tail())?;
        if round == 0 {
            fill_s = ns_to_ms(clock.now_ns()) / 1e3;
        }
        let active = read_active(&broker.data_dir())?;
        progress.say(&format!("{what}: starting"));
        let (end_ns, start_ns) = start_and_fetch(broker, topic, end)?;
        rounds.push(Round {
            first_fetch_end_ms: ns_to_ms(end_ns),
            first_fetch_start_ms: ns_to_ms(start_ns),
            active_bytes: active.bytes,
            read_active_ms: active.took_ms,
        });
    }
    Ok(SizeReport::new(log_bytes, fill_s, rounds))
}

/// Writes until `bytes` were acknowledged and kills the broker while more are under way.
fn write_and_kill(
    broker: &mut Broker,
    topic: &str,
    partitions: i32,
    bytes: u64,
    progress: &Progress,
    what: &str,
) -> Result<LogEnd> {
    let addr = broker.kafka();
    let progressed = Progressed::default();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let outcome = write_until_killed(addr, topic, partitions, &progressed);
            // Also where it could not even connect.
            progressed.ended.store(true, Ordering::Release);
            outcome
        });
        for look in 0_u64.. {
            let acked = progressed.acked_bytes.load(Ordering::Acquire);
            if acked >= bytes || progressed.ended.load(Ordering::Acquire) {
                break;
            }
            if look % LOOKS_PER_PROGRESS == 0 {
                progress.say(&format!("{what}: {} of {} MiB", acked >> 20, bytes >> 20));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        progressed.killed.store(!progressed.ended.load(Ordering::Acquire), Ordering::Release);
        let killed = broker.kill();
        let written = writer.join().map_err(|_| anyhow!("the writer panicked"))?;
        killed?;
        written
    })
}

/// Starts the broker; when the records at the end and at offset 0 came, counted from exec.
fn start_and_fetch(broker: &mut Broker, topic: &str, end: LogEnd) -> Result<(u64, u64)> {
    let addr = broker.kafka();
    let given_up = AtomicBool::new(false);
    let clock = Clock::start();
    broker.spawn()?;
    std::thread::scope(|scope| {
        let fetch = |offset| {
            let given_up = &given_up;
            let probe = Probe::new(addr, topic, end.partition, offset);
            scope.spawn(move || first_fetch_ns(probe, clock, given_up))
        };
        let (at_end, at_start) = (fetch(end.offset), fetch(0));
        let mut ended = None;
        while !(at_end.is_finished() && at_start.is_finished()) {
            if ended.is_none() {
                ended = broker.ended().unwrap_or(None);
                given_up.store(ended.is_some(), Ordering::Release);
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        let end_ns = at_end.join().map_err(|_| anyhow!("a probe panicked"))?;
        let start_ns = at_start.join().map_err(|_| anyhow!("a probe panicked"))?;
        let log = || broker.log_tail();
        Ok((end_ns.with_context(log)?, start_ns.with_context(log)?))
    })
}

impl SizeReport {
    fn new(log_bytes: u64, fill_s: f64, rounds: Vec<Round>) -> SizeReport {
        let middle = |figure: fn(&Round) -> f64| {
            median(&rounds.iter().map(figure).collect::<Vec<_>>()).unwrap_or(0.0)
        };
        let median_first_fetch_end_ms = middle(|round| round.first_fetch_end_ms);
        let median_limit_ms = middle(|round| ALLOWANCE_MS + round.read_active_ms);
        SizeReport {
            log_bytes,
            fill_s,
            median_first_fetch_end_ms,
            median_first_fetch_start_ms: middle(|round| round.first_fetch_start_ms),
            median_read_active_ms: middle(|round| round.read_active_ms),
            median_limit_ms,
            goal_reached: median_first_fetch_end_ms <= median_limit_ms,
            rounds,
        }
    }
}

fn table(report: &Report) -> String {
    let heading = [
        "MiB of log",
        "fill s",
        "end ms",
        "offset 0 ms",
        "active MiB",
        "read ms",
        "limit ms",
        "goal",
    ];
    let mut table = Table::new(&heading);
    for size in &report.sizes {
        let mib = |bytes: u64| (bytes >> 20).to_string();
        let active = size.rounds.iter().map(|round| round.active_bytes).max().unwrap_or(0);
        table.row([
            mib(size.log_bytes),
            format!("{:.1}", size.fill_s),
            ms(size.median_first_fetch_end_ms),
            ms(size.median_first_fetch_start_ms),
            mib(active),
            ms(size.median_read_active_ms),
            ms(size.median_limit_ms),
            if size.goal_reached { "reached" } else { "missed" }.to_owned(),
        ]);
    }
    format!(
        "{}from exec to the first record, medians; limit: 0.5 s and reading the active files\n\
         slowest size to fastest: {}\n",
        table.text(),
        ratio_text(report.slowest_to_fastest)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(end_ms: f64, read_ms: f64) -> Round {
        Round {
            first_fetch_end_ms: end_ms,
            first_fetch_start_ms: end_ms,
            active_bytes: 1,
            read_active_ms: read_ms,
        }
    }

    #[test]
    fn given_rounds_when_judged_then_the_median_stands_against_its_limit() {
        let good = SizeReport::new(
            1,
            1.0,
            vec![round(9_000.0, 100.0), round(599.0, 100.0), round(1.0, 100.0)],
        );
        assert!(good.goal_reached, "{good:?}");
        let bad = SizeReport::new(1, 1.0, vec![round(601.0, 100.0)]);
        assert!(!bad.goal_reached, "{bad:?}");
    }
}
