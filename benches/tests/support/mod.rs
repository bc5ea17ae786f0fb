//! Running chronik-bench, and reading what it reports.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use chronik_tests::binary::{Finished, run_to_end};
use serde_json::Value;

/// How long one run may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(240);

/// Runs a line to its end.
pub fn bench(line: &str) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronik-bench"));
    command.args(line.split_whitespace());
    run_to_end(command, DEADLINE).unwrap()
}

/// Runs a line that must succeed; its one JSON line.
pub fn report(line: &str) -> Value {
    let finished = bench(&format!("{line} --json"));
    assert!(finished.status.success(), "{line}: {}", finished.text());
    assert_eq!(finished.stdout.lines().count(), 1, "{line}: {}", finished.stdout);
    assert!(!finished.stderr.contains('\r'), "progress without a terminal: {}", finished.stderr);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(report["command"], line.split(' ').next().unwrap());
    report
}

/// The number at a JSON pointer.
pub fn number(report: &Value, pointer: &str) -> f64 {
    let found = report.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {pointer}: {report}"))
}

/// Percentiles rise, and are not all zero.
pub fn assert_rising(percentiles: &Value) {
    let names = ["p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "p99_99_ms"];
    let values: Vec<f64> = names.iter().map(|name| percentiles[name].as_f64().unwrap()).collect();
    assert!(values.is_sorted(), "{percentiles}");
    assert!(values[0] > 0.0, "{percentiles}");
}

/// Nothing of a broker that was started by the program itself.
pub fn assert_empty(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
