//! Latencies for people: a table of percentiles per stage and shard, the same as JSON, and .hgrm files that the usual
//! HDR plotters read.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::shard::{ShardSnapshot, Stage};

const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

/// A table: for every stage the node as a whole, then each shard.
#[must_use]
pub fn render_latency_text(shards: &[ShardSnapshot]) -> String {
    let mut out = String::from("Latencies since the start\n\n");
    let heads: String = QUANTILES.iter().map(|(name, _)| format!("{name:>11}")).collect();
    push_line(
        &mut out,
        format_args!("{:<14}{:>6}{:>12}{:>11}{heads}", "stage", "shard", "count", "mean"),
    );
    let all = ShardSnapshot::merged(shards);
    for stage in Stage::ALL {
        for shard in rows(&all, shards) {
            let times = shard.stage(stage);
            let count = times.histogram.len();
            let mean = times.sum_ns.checked_div(count).unwrap_or(0);
            let values: String = QUANTILES
                .iter()
                .map(|(_, quantile)| {
                    format!("{:>11}", readable(times.histogram.value_at_quantile(*quantile), count))
                })
                .collect();
            let mean = readable(mean, count);
            push_line(
                &mut out,
                format_args!(
                    "{:<14}{:>6}{count:>12}{mean:>11}{values}",
                    stage.name(),
                    label(shard)
                ),
            );
        }
    }
    out
}

/// The same figures as a JSON object, times in nanoseconds.
#[must_use]
pub fn render_latency_json(shards: &[ShardSnapshot]) -> String {
    let all = ShardSnapshot::merged(shards);
    let rows: Vec<Value> = Stage::ALL
        .into_iter()
        .flat_map(|stage| rows(&all, shards).map(move |shard| (stage, shard)))
        .map(|(stage, shard)| {
            let times = shard.stage(stage);
            let mut row = json!({
                "stage": stage.name(),
                "shard": label(shard),
                "count": times.histogram.len(),
                "sum_ns": times.sum_ns,
            });
            for (name, quantile) in QUANTILES {
                row[format!("{name}_ns")] = times.histogram.value_at_quantile(quantile).into();
            }
            row
        })
        .collect();
    format!("{}\n", json!({ "unit": "ns", "latencies": rows }))
}

/// The percentile distribution of one stage over all shards, in milliseconds, as HdrHistogram's tools write it. None
/// if there is no such stage.
#[must_use]
pub fn render_hgrm(shards: &[ShardSnapshot], stage: &str) -> Option<String> {
    let stage = Stage::of_name(stage)?;
    let all = ShardSnapshot::merged(shards);
    let histogram = &all.stage(stage).histogram;
    let mut out = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count_so_far = 0;
    for step in histogram.iter_quantiles(5) {
        count_so_far += step.count_since_last_iteration();
        let value = milliseconds(step.value_iterated_to());
        let quantile = step.quantile_iterated_to();
        if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            push_line(
                &mut out,
                format_args!("{value:>12} {quantile:>14.12} {count_so_far:>10} {inverse:>14.2}"),
            );
        } else {
            push_line(&mut out, format_args!("{value:>12} {quantile:>14.12} {count_so_far:>10}"));
        }
    }
    summary(&mut out, histogram);
    Some(out)
}

/// What to ask for, when the stage was not understood.
#[must_use]
pub fn hgrm_usage() -> String {
    let names: Vec<&str> = Stage::ALL.into_iter().map(Stage::name).collect();
    format!("ask for /debug/latency.hgrm?stage=NAME, with a name of {}\n", names.join(", "))
}

fn summary(out: &mut String, histogram: &Histogram<u64>) {
    const NS_PER_MS: f64 = 1_000_000.0;
    let (mean, deviation) = (histogram.mean() / NS_PER_MS, histogram.stdev() / NS_PER_MS);
    push_line(out, format_args!("#[Mean    = {mean:>12.6}, StdDeviation   = {deviation:>12.6}]"));
    let (max, count) = (milliseconds(histogram.max()), histogram.len());
    push_line(out, format_args!("#[Max     = {max:>12}, Total count    = {count:>12}]"));
    // What the tools call buckets and sub-buckets follows from the bounds: 2048 sub-buckets for three digits.
    let sub_buckets = 2048_u64;
    let mut buckets = 1;
    while histogram.high() >> buckets >= sub_buckets {
        buckets += 1;
    }
    push_line(
        out,
        format_args!("#[Buckets = {:>12}, SubBuckets     = {sub_buckets:>12}]", buckets + 1),
    );
}

fn rows<'a>(
    all: &'a ShardSnapshot,
    shards: &'a [ShardSnapshot],
) -> impl Iterator<Item = &'a ShardSnapshot> {
    std::iter::once(all).chain(shards)
}

fn label(shard: &ShardSnapshot) -> String {
    shard.shard.map_or_else(|| "all".to_owned(), |shard| shard.0.to_string())
}

/// A time with the unit in which it has one to three digits before the point.
fn readable(ns: u64, count: u64) -> String {
    let with_unit =
        |unit: u64, name: &str| format!("{}.{:02} {name}", ns / unit, ns % unit * 100 / unit);
    match ns {
        _ if count == 0 => "-".to_owned(),
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => with_unit(1_000, "µs"),
        1_000_000..1_000_000_000 => with_unit(1_000_000, "ms"),
        _ => with_unit(1_000_000_000, "s"),
    }
}

fn milliseconds(ns: u64) -> String {
    format!("{}.{:06}", ns / 1_000_000, ns % 1_000_000)
}

fn push_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    let written = writeln!(out, "{line}");
    assert!(written.is_ok(), "text grows in memory");
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::ShardId;

    use super::super::shard::ShardMetrics;
    use super::*;

    fn two_shards() -> Vec<ShardSnapshot> {
        let mut one = ShardMetrics::new(ShardId(0));
        let mut other = ShardMetrics::new(ShardId(1));
        for step in 1..=1000_u64 {
            one.record(Stage::WalSync, step * 1_000);
        }
        other.record(Stage::WalSync, 2_500_000_000);
        vec![one.snapshot(), other.snapshot()]
    }

    #[test]
    fn given_times_when_shown_as_a_table_then_all_shards_and_each_have_a_row() {
        let text = render_latency_text(&two_shards());
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.starts_with("wal_sync"))
            .map(|line| line.split_whitespace().take(3).collect())
            .collect();
        let expected =
            [["wal_sync", "all", "1001"], ["wal_sync", "0", "1000"], ["wal_sync", "1", "1"]];
        assert_eq!(rows, expected);
        assert!(text.contains("2.50 s"), "{text}");
        let empty = text.lines().find(|line| line.starts_with("receive")).unwrap();
        assert!(empty.contains(" -"), "an empty stage shows no times: {empty}");
    }

    #[test]
    fn given_times_when_shown_as_json_then_quantiles_are_right_to_three_digits() {
        let parsed: Value = serde_json::from_str(&render_latency_json(&two_shards())).unwrap();
        let rows = parsed["latencies"].as_array().unwrap();
        assert_eq!(rows.len(), Stage::ALL.len() * 3);
        let row =
            rows.iter().find(|row| row["stage"] == "wal_sync" && row["shard"] == "0").unwrap();
        let p50 = row["p50_ns"].as_u64().unwrap();
        assert!((499_500..=500_500).contains(&p50), "{p50}");
        assert_eq!(row["sum_ns"], 500_500_000);
    }

    #[test]
    fn given_times_when_written_as_hgrm_then_counts_rise_to_the_total() {
        let text = render_hgrm(&two_shards(), "wal_sync").unwrap();
        let mut lines = text.lines();
        assert!(lines.next().unwrap().trim_start().starts_with("Value"));
        let rows: Vec<(f64, f64, u64)> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let mut fields = line.split_whitespace();
                (
                    fields.next().unwrap().parse().unwrap(),
                    fields.next().unwrap().parse().unwrap(),
                    fields.next().unwrap().parse().unwrap(),
                )
            })
            .collect();
        assert!(rows.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1 && a.2 <= b.2));
        assert_eq!(rows.last().unwrap().2, 1001);
        assert!(text.contains("Total count    =         1001"), "{text}");
        assert_eq!(render_hgrm(&two_shards(), "nothing"), None);
        assert!(hgrm_usage().contains("wal_sync"));
    }
}
