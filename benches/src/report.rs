//! How results are shown: a table for people, one JSON line for programs, a progress line on a terminal.
//!
//! - I1: with `--json` standard output carries that one line and nothing else; the table goes to standard error.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _, stderr, stdout};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock::unix_ms;
use crate::latency::Percentiles;

/// Columns of a table, the first to the left and the others to the right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading.
    #[must_use]
    pub fn new(heading: &[&str]) -> Table {
        let mut table = Table::default();
        table.row(heading.iter().map(|cell| (*cell).to_owned()));
        table
    }

    /// One row more.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The percentiles of a histogram as a row; see [`PERCENTILE_HEADING`].
    pub fn percentiles(&mut self, name: &str, shown: &Percentiles) {
        let values = [
            shown.p50_ms,
            shown.p90_ms,
            shown.p99_ms,
            shown.p99_9_ms,
            shown.p99_99_ms,
            shown.max_ms,
        ];
        let cells = [name.to_owned(), shown.count.to_string()];
        self.row(cells.into_iter().chain(values.into_iter().map(ms)));
    }

    /// The table as text, a line per row.
    #[must_use]
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a String cannot fail.
                let _written = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The heading over rows of [`Table::percentiles`].
pub const PERCENTILE_HEADING: [&str; 8] =
    ["ms", "count", "p50", "p90", "p99", "p99.9", "p99.99", "max"];

/// Milliseconds with as many digits as mean something.
#[must_use]
pub fn ms(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

/// A ratio; a dash where there is none.
#[must_use]
pub fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| of / to)
}

/// A ratio for people.
#[must_use]
pub fn ratio_text(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}x"))
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The middle and the largest of the figures of several rounds; 0 of none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MedianWorst {
    /// See [`median`].
    pub median: f64,
    /// The largest.
    pub worst: f64,
}

impl MedianWorst {
    /// Of these.
    pub fn of(values: impl Iterator<Item = f64>) -> MedianWorst {
        let values: Vec<f64> = values.collect();
        let worst = values.iter().copied().fold(0.0, f64::max);
        MedianWorst { median: median(&values).unwrap_or(0.0), worst }
    }
}

/// A JSON line: which measurement, when, and its report.
#[derive(Debug, Serialize)]
struct Line<'a, R: Serialize> {
    command: &'a str,
    version: &'a str,
    finished_unix_ms: i64,
    #[serde(flatten)]
    report: &'a R,
}

/// Prints the table, and the report as one JSON line where `json` says so.
pub fn publish<R: Serialize>(json: bool, command: &str, table: &str, report: &R) -> Result<()> {
    if !json {
        return stdout().write_all(table.as_bytes()).context("writing the table");
    }
    stderr().write_all(table.as_bytes()).context("writing the table")?;
    let version = env!("CARGO_PKG_VERSION");
    let line = Line { command, version, finished_unix_ms: unix_ms(), report };
    let mut line = serde_json::to_string(&line).context("writing the report as JSON")?;
    line.push('\n');
    stdout().write_all(line.as_bytes()).context("writing the report")
}

/// One line on a terminal that says how far things are; nothing where standard error is no terminal.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// A line that is shown where somebody can see it.
    #[must_use]
    pub fn new() -> Progress {
        Progress { shown: stderr().is_terminal() }
    }

    /// Replaces the line.
    pub fn say(&self, text: &str) {
        if self.shown {
            eprint!("\r\x1b[K{text}");
        }
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.say("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_rows_of_different_widths_when_shown_then_the_columns_are_aligned() {
        let mut table = Table::new(&["ms", "p50"]);
        table.row(["acknowledged".to_owned(), ms(0.5)]);
        table.row(["sent".to_owned(), ms(123.4)]);
        assert_eq!(table.text(), "ms              p50\nacknowledged  0.500\nsent            123\n");
    }

    #[test]
    fn given_values_when_the_median_is_asked_then_order_does_not_matter() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn given_nothing_to_compare_with_when_a_ratio_is_asked_then_there_is_none() {
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio_text(ratio(3.0, 2.0)), "1.50x");
        assert_eq!(ratio_text(None), "-");
    }
}
