//! Latencies, their percentiles, and the file that plotters of HDR histograms read.
//!
//! - I1: pooling adds counts, so percentiles of a pool are those of all its values, never means of percentiles.
//! - I2: a value above the range counts as its end, never less often.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::ns_to_ms;

/// Values above an hour count as an hour.
const VALUE_NS_MAX: u64 = 3_600 * 1_000_000_000;
/// Significant decimal digits of a value.
const DIGITS: u8 = 3;
/// Lines of the distribution per halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// A histogram of nanoseconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

/// What is shown of a histogram, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Values it is made of.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p99_9_ms: f64,
    /// 99.99th percentile.
    pub p99_99_ms: f64,
    /// Largest value.
    pub max_ms: f64,
}

impl Latencies {
    /// None yet.
    pub fn new() -> Result<Latencies> {
        let histogram =
            Histogram::new_with_bounds(1, VALUE_NS_MAX, DIGITS).context("making a histogram")?;
        Ok(Latencies { histogram })
    }

    /// One more.
    pub fn record_ns(&mut self, ns: u64) {
        self.histogram.saturating_record(ns.max(1));
    }

    /// All of another's.
    pub fn add(&mut self, other: &Latencies) -> Result<()> {
        self.histogram.add(&other.histogram).context("pooling histograms of different ranges")
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The value that `quantile` (0 to 1) of all values do not exceed, in milliseconds.
    #[must_use]
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        ns_to_ms(self.histogram.value_at_quantile(quantile))
    }

    /// What is shown of them.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.count(),
            mean_ms: self.histogram.mean() / 1e6,
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p99_ms: self.quantile_ms(0.99),
            p99_9_ms: self.quantile_ms(0.999),
            p99_99_ms: self.quantile_ms(0.9999),
            max_ms: ns_to_ms(self.histogram.max()),
        }
    }

    /// Writes the distribution in the text form of HdrHistogram, values in milliseconds.
    pub fn write_hgrm(&self, to: &mut impl Write) -> io::Result<()> {
        writeln!(
            to,
            "{:>12} {:>14} {:>10} {:>14}\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        )?;
        let mut total: u64 = 0;
        for step in self.histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
            total += step.count_since_last_iteration();
            let value_ms = ns_to_ms(step.value_iterated_to());
            let quantile = step.quantile_iterated_to();
            write!(to, "{value_ms:12.3} {quantile:2.12} {total:10}")?;
            if quantile < 1.0 {
                write!(to, " {:14.2}", 1.0 / (1.0 - quantile))?;
            }
            writeln!(to)?;
        }
        let deviation_ms = self.histogram.stdev() / 1e6;
        writeln!(
            to,
            "#[Mean    = {:12.3}, StdDeviation   = {deviation_ms:12.3}]",
            self.histogram.mean() / 1e6
        )?;
        writeln!(
            to,
            "#[Max     = {:12.3}, Total count    = {:12}]",
            ns_to_ms(self.histogram.max()),
            self.count()
        )?;
        // Every bucket but the first shares half of its values with the one before.
        let buckets = usize::from(self.histogram.buckets());
        let sub_buckets = 2 * self.histogram.distinct_values() / (buckets + 1);
        writeln!(to, "#[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]")
    }

    /// [`Latencies::write_hgrm`] to a file.
    pub fn save_hgrm(&self, path: &Path) -> Result<()> {
        let mut text = Vec::new();
        self.write_hgrm(&mut text)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values_ms: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new().unwrap();
        for value in values_ms {
            latencies.record_ns(value * 1_000_000);
        }
        latencies
    }

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() <= right * 2e-3
    }

    #[test]
    fn given_a_thousand_values_when_asked_then_the_percentiles_are_theirs() {
        let shown = of(1..=1_000).percentiles();
        assert_eq!(shown.count, 1_000);
        assert!(near(shown.p50_ms, 500.0), "{shown:?}");
        assert!(near(shown.p99_ms, 990.0), "{shown:?}");
        assert!(near(shown.p99_9_ms, 999.0), "{shown:?}");
        assert!(near(shown.max_ms, 1_000.0), "{shown:?}");
    }

    #[test]
    fn given_a_calm_and_a_bad_round_when_pooled_then_the_percentile_is_of_all_values() {
        // The bad round's p99 is 100 ms; of both together only 0.75 % are above 1 ms.
        let mut pooled = of(std::iter::repeat_n(1, 3_000));
        let bad = of(std::iter::repeat_n(1, 970).chain(std::iter::repeat_n(100, 30)));
        assert!(near(bad.quantile_ms(0.99), 100.0));
        pooled.add(&bad).unwrap();
        assert_eq!(pooled.count(), 4_000);
        assert!(near(pooled.quantile_ms(0.99), 1.0));
        assert!(near(pooled.quantile_ms(0.999), 100.0));
    }

    #[test]
    fn given_values_outside_the_range_when_recorded_then_they_still_count() {
        let mut latencies = Latencies::new().unwrap();
        latencies.record_ns(0);
        latencies.record_ns(u64::MAX);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.percentiles().max_ms >= 3_600_000.0);
    }

    #[test]
    fn given_nothing_when_asked_then_all_is_zero() {
        let shown = Latencies::new().unwrap().percentiles();
        assert_eq!((shown.count, shown.p50_ms, shown.max_ms), (0, 0.0, 0.0));
    }

    #[test]
    fn given_values_when_saved_then_the_file_ends_at_one_and_names_their_number() {
        let mut text = Vec::new();
        of(1..=100).write_hgrm(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.lines().any(|line| line.contains("1.000000000000        100")), "{text}");
        assert!(text.contains("Total count    =          100"), "{text}");
        assert!(text.contains("SubBuckets     =         2048"), "{text}");
    }
}
