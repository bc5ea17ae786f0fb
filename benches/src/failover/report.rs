//! What is shown of a `failover` run.

use serde::Serialize;

use super::{By, FailoverArgs, Pools, Round, Step};
use crate::latency::Percentiles;
use crate::report::{MedianWorst, PERCENTILE_HEADING, Table, ms};
use crate::steady::IntervalReport;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    by: By,
    rate_messages_per_s: u64,
    record_bytes: u32,
    /// Longest pause between two acknowledgements while a node went and was away; by round.
    pause_ms: MedianWorst,
    /// The same while it came back.
    back_pause_ms: MedianWorst,
    /// Slowest message from the moment when a node went until it was back in sync; by round.
    slowest_ms: MedianWorst,
    calm_pause_ms: MedianWorst,
    calm_slowest_ms: MedianWorst,
    /// All messages acknowledged while nodes went, were away and came back.
    disturbed_latency_ms: Percentiles,
    calm_latency_ms: Percentiles,
    /// How late the client itself was, undisturbed.
    calm_send_delay_ms: Percentiles,
    /// Messages that were due before the end and not acknowledged by then.
    unacked: u64,
    rounds: Vec<Round>,
}

impl Step {
    fn all(&self) -> IntervalReport {
        self.back.map_or(self.gone, |back| self.gone.with(back))
    }

    fn back_pause_ms(&self) -> f64 {
        self.back.map_or(0.0, |back| back.pause_ms)
    }
}

impl Round {
    fn worst(&self, figure: fn(&Step) -> f64) -> f64 {
        self.steps.iter().map(figure).fold(0.0, f64::max)
    }

    fn slowest_ms(&self) -> f64 {
        self.worst(|step| step.all().slowest_ms)
    }

    fn all(&self) -> Option<IntervalReport> {
        self.steps.iter().map(Step::all).reduce(IntervalReport::with)
    }
}

impl Report {
    pub(super) fn new(
        args: &FailoverArgs,
        rounds: Vec<Round>,
        pools: &Pools,
        unacked: u64,
    ) -> Report {
        let by_round = |figure: fn(&Round) -> f64| MedianWorst::of(rounds.iter().map(figure));
        Report {
            by: args.by,
            rate_messages_per_s: args.rate,
            record_bytes: args.record_bytes,
            pause_ms: by_round(|round| round.worst(|step| step.gone.pause_ms)),
            back_pause_ms: by_round(|round| round.worst(|step| step.back_pause_ms())),
            slowest_ms: by_round(Round::slowest_ms),
            calm_pause_ms: by_round(|round| round.calm.pause_ms),
            calm_slowest_ms: by_round(|round| round.calm.slowest_ms),
            disturbed_latency_ms: pools.disturbed.percentiles(),
            calm_latency_ms: pools.calm.percentiles(),
            calm_send_delay_ms: pools.calm_send_delay.percentiles(),
            unacked,
            rounds,
        }
    }
}

pub(super) fn table(report: &Report) -> String {
    let mut rounds = Table::new(&[
        "round",
        "nodes",
        "pause ms",
        "back pause",
        "slowest",
        "calm pause",
        "calm slowest",
        "leaving ms",
        "in sync ms",
        "lost",
        "other cores",
        "stolen",
        "load",
    ]);
    for (number, round) in (1..).zip(&report.rounds) {
        let nodes = round.steps.iter().map(|step| match step.was_leader {
            true => format!("{}*", step.node),
            false => step.node.to_string(),
        });
        let nodes = nodes.collect::<Vec<_>>().join(" ");
        let lost = round.all().map_or(0, |all| all.leaders_lost);
        let cores = |figure: fn(&crate::usage::Cores) -> f64| {
            round.cores.as_ref().map_or("-".to_owned(), |cores| format!("{:.2}", figure(cores)))
        };
        rounds.row([
            format!("{number}"),
            nodes,
            ms(round.worst(|step| step.gone.pause_ms)),
            ms(round.worst(|step| step.back_pause_ms())),
            ms(round.slowest_ms()),
            ms(round.calm.pause_ms),
            ms(round.calm.slowest_ms),
            ms(round.worst(|step| step.leaving_ms)),
            ms(round.worst(|step| step.in_sync_ms.unwrap_or(0.0))),
            lost.to_string(),
            cores(|cores| cores.others),
            cores(|cores| cores.stolen),
            cores(|cores| cores.load_average),
        ]);
    }
    let mut summary = Table::new(&["ms", "median", "worst"]);
    for (name, figure) in [
        ("longest pause between acks", report.pause_ms),
        ("the same while the node comes back", report.back_pause_ms),
        ("slowest produce because of it", report.slowest_ms),
        ("longest pause, undisturbed", report.calm_pause_ms),
        ("slowest produce, undisturbed", report.calm_slowest_ms),
    ] {
        summary.row([name.to_owned(), ms(figure.median), ms(figure.worst)]);
    }
    let mut latencies = Table::new(&PERCENTILE_HEADING);
    latencies.percentiles("acknowledged, disturbed", &report.disturbed_latency_ms);
    latencies.percentiles("acknowledged, undisturbed", &report.calm_latency_ms);
    latencies.percentiles("sent after due, undisturbed", &report.calm_send_delay_ms);
    format!(
        "{}* led the partition\n\n{}\n{}under way at the end: {}\n",
        rounds.text(),
        summary.text(),
        latencies.text(),
        report.unacked
    )
}
