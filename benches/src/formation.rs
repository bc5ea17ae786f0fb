//! `formation`: how long processes without data need to become a cluster that takes writes.
//!
//! The clock starts with the last process: three that start together, or the third of a cluster that two have formed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use kafka_protocol::messages::MetadataRequest;
use serde::Serialize;

use crate::clock::{Clock, duration_ns, ns_to_ms};
use crate::cluster::{Cluster, Launch, NODES};
use crate::report::{MedianWorst, Progress, Table, ms, publish};
use crate::usage::{Cores, Usage};
use crate::wire::{self, METADATA};
use crate::{flags, topics};

/// How long each wait may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long one question may take: a node that starts may listen before it answers.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two looks: the error of what is measured.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// The node that starts last.
const LAST: i32 = 3;

/// Arguments of `formation`.
#[derive(Debug, Clone, Args)]
pub struct FormationArgs {
    #[command(flatten)]
    launch: Launch,
    /// How the last process meets the others; both where none is given
    #[arg(long, value_enum, value_delimiter = ',')]
    start: Vec<Start>,
    /// How often each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Pause before each round, in which the disk forgets the files of the one before
    #[arg(long, value_parser = flags::seconds, default_value = "2")]
    pause_seconds: Duration,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

/// What is there when the last process starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Start {
    /// All three start at once
    Together,
    /// Two are a cluster, and the third starts
    Last,
}

/// Times from the start of the last process.
#[derive(Debug, Clone, Serialize)]
struct Round {
    /// Until every node told of all three.
    visible_ms: f64,
    /// Until a topic with three replicas was made.
    created_ms: f64,
    /// Until it had acknowledged a record.
    writable_ms: f64,
    cores: Option<Cores>,
}

#[derive(Debug, Serialize)]
struct StartReport {
    start: Start,
    visible_ms: MedianWorst,
    created_ms: MedianWorst,
    writable_ms: MedianWorst,
    rounds: Vec<Round>,
}

#[derive(Debug, Serialize)]
struct Report {
    starts: Vec<StartReport>,
}

/// Runs `formation`.
pub fn run(args: &FormationArgs) -> Result<()> {
    let progress = Progress::new();
    let starts = match args.start.as_slice() {
        [] => vec![Start::Together, Start::Last],
        given => given.to_vec(),
    };
    let mut rounds: Vec<(Start, Vec<Round>)> =
        starts.into_iter().map(|start| (start, Vec::new())).collect();
    for number in 1..=args.rounds {
        for (start, done) in &mut rounds {
            progress.say(&format!("round {number} of {}, {start:?}", args.rounds));
            std::thread::sleep(args.pause_seconds);
            let mut cluster = Cluster::lay_out(&args.launch, NODES)?;
            let round = one_round(&mut cluster, *start);
            done.push(
                round.with_context(|| {
                    format!("round {number}, {start:?}\n{}", cluster.log_tails())
                })?,
            );
        }
    }
    drop(progress);
    let starts = rounds.into_iter().map(|(start, rounds)| StartReport::new(start, rounds));
    let report = Report { starts: starts.collect() };
    publish(args.json, "formation", &table(&report), &report)
}

fn one_round(cluster: &mut Cluster, start: Start) -> Result<Round> {
    let nodes = cluster.addresses();
    let (last, first) = nodes.split_last().context("no nodes")?;
    let usage = Usage::begin();
    for broker in cluster.brokers().iter_mut().filter(|broker| broker.id() != LAST) {
        broker.spawn()?;
    }
    if start == Start::Last {
        wait_visible(first, first.len(), Clock::start())?;
    }
    let clock = Clock::start();
    cluster.broker(LAST)?.spawn()?;
    wait_visible(&nodes, nodes.len(), clock)?;
    let visible_ms = ns_to_ms(clock.now_ns());
    let names = [topics::fresh_name("formation")];
    create(*last, &names, clock)?;
    let created_ms = ns_to_ms(clock.now_ns());
    topics::wait_writable(*last, &names, &wire::random_batch(1, 100)?)?;
    let writable_ms = ns_to_ms(clock.now_ns());
    cluster.ensure_running()?;
    Ok(Round { visible_ms, created_ms, writable_ms, cores: usage.end() })
}

/// Waits until each of `nodes` tells of so many brokers.
fn wait_visible(nodes: &[SocketAddr], brokers: usize, clock: Clock) -> Result<()> {
    std::thread::scope(|scope| {
        let waiting: Vec<_> =
            nodes.iter().map(|node| scope.spawn(move || see(*node, brokers, clock))).collect();
        waiting
            .into_iter()
            .try_for_each(|one| one.join().map_err(|_| anyhow!("a probe panicked"))?)
    })
}

fn see(node: SocketAddr, brokers: usize, clock: Clock) -> Result<()> {
    let request = MetadataRequest::default().with_topics(Some(Vec::new()));
    let mut connection = None;
    loop {
        let client = match connection.take() {
            Some(client) => Ok(client),
            None => wire::connect_within(node, ASK_TIMEOUT),
        };
        let seen = client.and_then(|mut client| {
            let answer = client.call(&request, METADATA)?;
            // A connection that failed is not used again.
            connection = Some(client);
            ensure!(answer.brokers.len() == brokers, "{} brokers", answer.brokers.len());
            Ok(())
        });
        match seen {
            Ok(()) => return Ok(()),
            Err(error) if clock.now_ns() > duration_ns(DEADLINE) => {
                return Err(error.context(format!("{node} does not tell of {brokers} brokers")));
            }
            Err(_) => std::thread::sleep(LOOK_PAUSE),
        }
    }
}

/// Asks for the topic until it is there.
fn create(node: SocketAddr, names: &[String], clock: Clock) -> Result<()> {
    let replicas = i16::try_from(NODES)?;
    loop {
        let made = wire::connect(node)
            .and_then(|mut client| topics::create(&mut client, names, 1, replicas));
        match made {
            Ok(()) => return Ok(()),
            Err(error) if clock.now_ns() > duration_ns(DEADLINE) => bail!(error),
            Err(_) => std::thread::sleep(LOOK_PAUSE),
        }
    }
}

impl StartReport {
    fn new(start: Start, rounds: Vec<Round>) -> StartReport {
        let of = |figure: fn(&Round) -> f64| MedianWorst::of(rounds.iter().map(figure));
        StartReport {
            start,
            visible_ms: of(|round| round.visible_ms),
            created_ms: of(|round| round.created_ms),
            writable_ms: of(|round| round.writable_ms),
            rounds,
        }
    }
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&[
        "ms from the last start",
        "all visible",
        "topic made",
        "writable",
        "stolen",
        "load",
    ]);
    for one in &report.starts {
        let start = format!("{:?}", one.start).to_lowercase();
        let times = [one.visible_ms, one.created_ms, one.writable_ms];
        let mut summary = |name: &str, figure: fn(&MedianWorst) -> f64| {
            let cells = times.iter().map(|times| ms(figure(times)));
            table.row(std::iter::once(format!("{start}, {name}")).chain(cells));
        };
        summary("median", |times| times.median);
        summary("worst", |times| times.worst);
        for (number, round) in (1..).zip(&one.rounds) {
            let cores = |figure: fn(&Cores) -> f64| {
                round.cores.as_ref().map_or("-".to_owned(), |cores| format!("{:.2}", figure(cores)))
            };
            table.row([
                format!("{start} {number}"),
                ms(round.visible_ms),
                ms(round.created_ms),
                ms(round.writable_ms),
                cores(|cores| cores.stolen),
                cores(|cores| cores.load_average),
            ]);
        }
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_rounds_when_summed_up_then_the_worst_is_shown_beside_the_median() {
        let round =
            |writable_ms| Round { visible_ms: 1.0, created_ms: 2.0, writable_ms, cores: None };
        let report = StartReport::new(Start::Last, vec![round(3.0), round(9.0), round(4.0)]);
        assert_eq!(report.writable_ms, MedianWorst { median: 4.0, worst: 9.0 });
        let text = table(&Report { starts: vec![report] });
        assert!(text.contains("last, worst") && text.contains("9.000"), "{text}");
    }
}
