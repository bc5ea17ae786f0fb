//! What is shown of a `refill` run.

use serde::Serialize;

use super::{RefillArgs, Round};
use crate::latency::Percentiles;
use crate::report::{PERCENTILE_HEADING, Table, median, ms, ratio_text};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    log_bytes: u64,
    partitions: i32,
    /// `wiped`, or `behind`: the node keeps what it had.
    node: &'static str,
    median_refill_s: f64,
    slowest_refill_s: f64,
    /// Speed of the refill to that of the copy.
    median_ratio: Option<f64>,
    lowest_ratio: Option<f64>,
    beside_rate_messages_per_s: u64,
    /// Of the client beside, undisturbed and during the refill.
    beside_calm_latency_ms: Option<Percentiles>,
    beside_refill_latency_ms: Option<Percentiles>,
    rounds: Vec<Round>,
}

impl Report {
    pub(super) fn new(args: &RefillArgs, rounds: Vec<Round>, pools: &super::Pools) -> Report {
        let of = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<f64>>();
        let times = of(|round| round.refill_s);
        let ratios = of(|round| round.ratio);
        let has_client = args.beside_rate > 0;
        Report {
            log_bytes: args.log_bytes,
            partitions: args.partitions,
            node: if args.behind { "behind" } else { "wiped" },
            median_refill_s: median(&times).unwrap_or(0.0),
            slowest_refill_s: times.iter().copied().fold(0.0, f64::max),
            median_ratio: median(&ratios),
            lowest_ratio: ratios.iter().copied().reduce(f64::min),
            beside_rate_messages_per_s: args.beside_rate,
            beside_calm_latency_ms: has_client.then(|| pools.calm.percentiles()),
            beside_refill_latency_ms: has_client.then(|| pools.refill.percentiles()),
            rounds,
        }
    }
}

pub(super) fn table(report: &Report) -> String {
    let mut table = Table::new(&[
        "round",
        "MiB",
        "up s",
        "in sync s",
        "MB/s",
        "copy s",
        "copy MB/s",
        "of the copy",
        "on disk MiB",
        "beside slowest ms",
        "calm",
        "other cores",
        "stolen",
        "load",
    ]);
    for (number, round) in (1..).zip(&report.rounds) {
        let mib = |bytes: u64| (bytes >> 20).to_string();
        let mb = |bytes_per_s: f64| format!("{:.1}", bytes_per_s / 1e6);
        let beside = round.beside.map(|beside| [beside.refill, beside.calm]);
        let [beside, calm] = beside.map_or(["-", "-"].map(str::to_owned), |both| {
            both.map(|interval| ms(interval.slowest_ms))
        });
        let cores = |figure: fn(&crate::usage::Cores) -> f64| {
            round.cores.as_ref().map_or("-".to_owned(), |cores| format!("{:.2}", figure(cores)))
        };
        table.row([
            format!("{number}"),
            mib(round.bytes),
            format!("{:.2}", round.up_s),
            format!("{:.2}", round.refill_s),
            mb(round.refill_bytes_per_s),
            format!("{:.2}", round.copy_s),
            mb(round.copy_bytes_per_s),
            ratio_text(Some(round.ratio)),
            mib(round.disk_bytes),
            beside,
            calm,
            cores(|cores| cores.others),
            cores(|cores| cores.stolen),
            cores(|cores| cores.load_average),
        ]);
    }
    let mut text = format!(
        "{}{} node: in sync after {:.2} s (median), {:.2} s (slowest); speed to that of a plain copy {} (median), {} \
         (lowest)\n",
        table.text(),
        report.node,
        report.median_refill_s,
        report.slowest_refill_s,
        ratio_text(report.median_ratio),
        ratio_text(report.lowest_ratio),
    );
    if let Some((calm, refill)) = report.beside_calm_latency_ms.zip(report.beside_refill_latency_ms)
    {
        let mut beside = Table::new(&PERCENTILE_HEADING);
        beside.percentiles("another partition, undisturbed", &calm);
        beside.percentiles("another partition, meanwhile", &refill);
        text.push_str(&beside.text());
    }
    text
}
