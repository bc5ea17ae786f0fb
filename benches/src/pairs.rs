//! `pairs`: the same produce load on two or more brokers in turn, A B A B …, so that what the machine does meanwhile hits
//! both, and their percentiles over all rounds pooled.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::flags::{self, Pids};
use crate::latency::{Latencies, Percentiles};
use crate::produce::{Figures, Prepared, Shape, ShapeReport, ensure_clean};
use crate::report::{PERCENTILE_HEADING, Progress, Table, median, ms, publish, ratio, ratio_text};

/// Arguments of `pairs`.
#[derive(Debug, Clone, Args)]
pub struct PairsArgs {
    /// The brokers, the one to compare with first; once for each
    #[arg(long, value_name = "HOST:PORT", value_parser = flags::address, required = true)]
    pub bootstrap: Vec<String>,
    /// How often each has its turn
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub rounds: u16,
    /// The processes of each broker or cluster, where they run on this machine, in the order of --bootstrap; once for each
    #[arg(long, value_name = "PID,PID,…", value_parser = flags::pids)]
    pub pids: Vec<Pids>,
    #[command(flatten)]
    pub shape: Shape,
    /// Save each side's pooled distribution as FILE.A, FILE.B, …
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Stop at the first request that fails instead of reporting it
    #[arg(long)]
    pub strict: bool,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    shape: ShapeReport,
    rounds: u16,
    sides: Vec<Side>,
    /// Of each later side to the first.
    ratios: Vec<Compared>,
}

#[derive(Debug, Serialize)]
struct Side {
    name: String,
    bootstrap: String,
    pooled_latency_ms: Percentiles,
    failed_requests: u64,
    rounds: Vec<Figures>,
}

#[derive(Debug, Serialize)]
struct Compared {
    of: String,
    to: String,
    pooled: Ratios,
    rounds: Vec<Ratios>,
    /// Throughput, median of the rounds' ratios.
    median_mb_per_s: Option<f64>,
    /// Processor time of the brokers by message, median of the rounds' ratios.
    median_cpu_per_message: Option<f64>,
}

/// Ratios of percentiles; none where the divisor is zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratios {
    p50: Option<f64>,
    p99: Option<f64>,
    p99_9: Option<f64>,
}

impl Ratios {
    /// Percentile by percentile.
    #[must_use]
    pub fn of(of: &Percentiles, to: &Percentiles) -> Ratios {
        Ratios {
            p50: ratio(of.p50_ms, to.p50_ms),
            p99: ratio(of.p99_ms, to.p99_ms),
            p99_9: ratio(of.p99_9_ms, to.p99_9_ms),
        }
    }
}

/// Runs `pairs`.
pub fn run(args: &PairsArgs) -> Result<()> {
    anyhow::ensure!(args.bootstrap.len() >= 2, "--bootstrap must be given twice or more");
    anyhow::ensure!(args.bootstrap.len() <= 26, "--bootstrap can be given 26 times at most");
    anyhow::ensure!(
        args.pids.is_empty() || args.pids.len() == args.bootstrap.len(),
        "--pids must be given for each --bootstrap or for none"
    );
    let progress = Progress::new();
    let mut sides = Vec::new();
    let mut pools = Vec::new();
    let mut prepared = Vec::new();
    for (name, bootstrap) in ('A'..='Z').zip(&args.bootstrap) {
        let ready = Prepared::new(bootstrap, &args.shape);
        prepared.push(ready.with_context(|| format!("preparing {name}, {bootstrap}"))?);
        pools.push(Latencies::new()?);
        sides.push((name, bootstrap.clone(), Vec::new()));
    }
    for round in 1..=args.rounds {
        for (side, ((name, bootstrap, figures), (prepared, pool))) in
            sides.iter_mut().zip(prepared.iter().zip(&mut pools)).enumerate()
        {
            progress.say(&format!("round {round} of {}, {name}", args.rounds));
            let run = prepared
                .run(&args.shape, args.pids.get(side), &progress)
                .and_then(|run| match args.strict {
                    true => ensure_clean(&run.figures).map(|()| run),
                    false => Ok(run),
                })
                .with_context(|| format!("round {round} of {name}, {bootstrap}"))?;
            pool.add(&run.latencies)?;
            figures.push(run.figures);
        }
    }
    drop(progress);
    for prepared in prepared {
        prepared.finish(&args.shape)?;
    }
    if let Some(path) = &args.hgrm {
        for ((name, ..), pool) in sides.iter().zip(&pools) {
            let mut path = path.clone().into_os_string();
            path.push(format!(".{name}"));
            pool.save_hgrm(path.as_ref())?;
        }
    }
    let sides: Vec<Side> = sides
        .into_iter()
        .zip(&pools)
        .map(|((name, bootstrap, rounds), pool)| Side::new(name, bootstrap, rounds, pool))
        .collect();
    let ratios = compare(&sides);
    let report = Report { shape: args.shape.report(), rounds: args.rounds, sides, ratios };
    publish(args.json, "pairs", &table(&report), &report)
}

impl Side {
    fn new(name: char, bootstrap: String, rounds: Vec<Figures>, pool: &Latencies) -> Side {
        let failed = |round: &Figures| round.errors + round.unanswered + round.unsent;
        Side {
            name: name.to_string(),
            bootstrap,
            pooled_latency_ms: pool.percentiles(),
            failed_requests: rounds.iter().map(failed).sum(),
            rounds,
        }
    }
}

fn compare(sides: &[Side]) -> Vec<Compared> {
    let Some((first, later)) = sides.split_first() else { return Vec::new() };
    let compared = later.iter().map(|side| Compared {
        of: side.name.clone(),
        to: first.name.clone(),
        pooled: Ratios::of(&side.pooled_latency_ms, &first.pooled_latency_ms),
        rounds: side
            .rounds
            .iter()
            .zip(&first.rounds)
            .map(|(side, first)| Ratios::of(&side.latency_ms, &first.latency_ms))
            .collect(),
        median_mb_per_s: median_ratio(side, first, |round| Some(round.mb_per_s)),
        median_cpu_per_message: median_ratio(side, first, cpu_per_message),
    });
    compared.collect()
}

fn cpu_per_message(round: &Figures) -> Option<f64> {
    round.broker_cpu?.us_per_message
}

/// The middle one of the rounds' ratios of a figure.
fn median_ratio(of: &Side, to: &Side, figure: fn(&Figures) -> Option<f64>) -> Option<f64> {
    let rounds = of.rounds.iter().zip(&to.rounds);
    let ratios: Vec<f64> = rounds.filter_map(|(of, to)| ratio(figure(of)?, figure(to)?)).collect();
    median(&ratios)
}

fn table(report: &Report) -> String {
    let mut pooled = Table::new(&PERCENTILE_HEADING);
    for side in &report.sides {
        let name = format!("{} {}", side.name, side.bootstrap);
        pooled.percentiles(&name, &side.pooled_latency_ms);
    }
    let mut text = pooled.text();
    let mut rounds = Table::new(&["round", "p50", "p99", "p99.9"]);
    for compared in &report.ratios {
        let name = format!("{}/{}", compared.of, compared.to);
        let mut row = |label: String, ratios: &Ratios| {
            let cells = [ratios.p50, ratios.p99, ratios.p99_9].map(ratio_text);
            rounds.row(std::iter::once(label).chain(cells));
        };
        row(format!("{name} pooled"), &compared.pooled);
        for (round, ratios) in compared.rounds.iter().enumerate() {
            row(format!("{name} {}", round + 1), ratios);
        }
    }
    text.push('\n');
    text.push_str(&rounds.text());
    for compared in &report.ratios {
        let [mb_per_s, cpu] =
            [compared.median_mb_per_s, compared.median_cpu_per_message].map(ratio_text);
        let name = format!("{}/{}", compared.of, compared.to);
        text.push_str(&format!(
            "{name}, medians of rounds: MB/s {mb_per_s}, broker CPU per message {cpu}\n"
        ));
    }
    let mut values = Table::new(&[
        "ms",
        "round",
        "p50",
        "p99",
        "p99.9",
        "send p99",
        "MB/s",
        "CPU µs/msg",
        "other cores",
        "stolen",
        "load",
    ]);
    for side in &report.sides {
        for (round, figures) in side.rounds.iter().enumerate() {
            let shown = &figures.latency_ms;
            let sent = figures.send_delay_ms.map_or("-".to_owned(), |delay| ms(delay.p99_ms));
            values.row([
                side.name.clone(),
                (round + 1).to_string(),
                ms(shown.p50_ms),
                ms(shown.p99_ms),
                ms(shown.p99_9_ms),
                sent,
                format!("{:.1}", figures.mb_per_s),
                cpu_per_message(figures).map_or("-".to_owned(), |us| format!("{us:.2}")),
                figures.cores.map_or("-".to_owned(), |cores| format!("{:.2}", cores.others)),
                figures.cores.map_or("-".to_owned(), |cores| format!("{:.2}", cores.stolen)),
                figures.cores.map_or("-".to_owned(), |cores| format!("{:.1}", cores.load_average)),
            ]);
        }
    }
    text.push('\n');
    text.push_str(&values.text());
    for side in report.sides.iter().filter(|side| side.failed_requests > 0) {
        text.push_str(&format!("{}: {} requests failed\n", side.name, side.failed_requests));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::MessageCpu;
    use std::time::Duration;

    fn side(name: char, rounds_ms: &[u64]) -> Side {
        let mut pool = Latencies::new().unwrap();
        let mut rounds = Vec::new();
        for value in rounds_ms {
            let mut one = Latencies::new().unwrap();
            one.record_ns(value * 1_000_000);
            pool.add(&one).unwrap();
            rounds.push(Figures {
                mode: "open",
                records_acked: 1,
                records_per_s: 1.0,
                mb_per_s: *value as f64,
                errors: 0,
                unanswered: 0,
                unsent: 0,
                first_error: None,
                latency_ms: one.percentiles(),
                send_delay_ms: None,
                cores: None,
                broker_cpu: Some(MessageCpu::new(1, Duration::from_millis(*value), 1_000)),
            });
        }
        Side::new(name, "h:1".to_owned(), rounds, &pool)
    }

    fn near(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 0.01)
    }

    #[test]
    fn given_two_sides_when_compared_then_rounds_are_paired_and_the_pool_is_of_all_rounds() {
        let compared = compare(&[side('A', &[10, 20]), side('B', &[20, 10])]);
        assert_eq!(compared.len(), 1);
        assert_eq!((compared[0].of.as_str(), compared[0].to.as_str()), ("B", "A"));
        assert!(near(compared[0].rounds[0].p99, 2.0), "{compared:?}");
        assert!(near(compared[0].rounds[1].p99, 0.5), "{compared:?}");
        assert!(near(compared[0].pooled.p99_9, 1.0), "{compared:?}");
        assert!(near(compared[0].median_mb_per_s, 1.25), "{compared:?}");
        assert!(near(compared[0].median_cpu_per_message, 1.25), "{compared:?}");
    }

    #[test]
    fn given_three_sides_when_compared_then_each_later_one_stands_beside_the_first() {
        let compared = compare(&[side('A', &[1]), side('B', &[2]), side('C', &[3])]);
        let names: Vec<_> = compared.iter().map(|c| format!("{}/{}", c.of, c.to)).collect();
        assert_eq!(names, ["B/A", "C/A"]);
        assert!(near(compared[1].pooled.p50, 3.0));
    }
}
