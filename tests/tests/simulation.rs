//! The simulator's seeds: every promise holds in all of them, and every planted bug is found in one of them.
//!
//! `CHRONIK_SIM_SEEDS=N` runs N seeds, from `CHRONIK_SIM_FIRST=S` on, `CHRONIK_SIM_SEED=S` only seed S,
//! `CHRONIK_SIM_STEPS=N` makes runs longer.

use chronik_tests::seeds::{Seeds, caught, first_found, report, run_all};
use chronik_tests::sim::run::{Report, run};
use chronik_tests::sim::{Bug, Violation};

const SEEDS: u64 = 320;
const STEPS: usize = 3_000;
const BUG_SEEDS: u64 = 300;
const PREFIX: &str = "CHRONIK_SIM";

fn seeds() -> Seeds {
    Seeds::from_env(PREFIX, SEEDS, STEPS)
}

fn run_caught(seed: u64, bug: Option<Bug>) -> Result<Report, Violation> {
    caught(|| run(seed, seeds().steps, bug))
}

#[test]
fn given_any_seed_when_simulated_then_every_promise_holds() {
    let Seeds { range, steps, is_one } = seeds();
    let count = range.end - range.start;
    let mut total = Report::default();
    let run = |seed| run_caught(seed, None);
    let failures = run_all(range, run, |report| total = total.plus(report));
    report(&failures, PREFIX, steps, "simulation");
    println!("{count} seeds: {total:#?}");
    if !is_one && count >= 100 {
        assert_covers(&total, count);
    }
}

/// A simulation in which nothing happens proves nothing.
fn assert_covers(total: &Report, seeds: u64) {
    assert!(total.acked > seeds * 50, "{total:?}");
    assert!(total.crashes > seeds, "{total:?}");
    for (what, count) in [
        ("duplicates", total.duplicates),
        ("refused", total.refused),
        ("tail reads", total.tail_reads),
        ("disk reads", total.disk_reads),
        ("recovery crashes", total.recovery_crashes),
        ("clean stops", total.clean_stops),
        ("rolls", total.rolls),
        ("reclaimed files", total.reclaimed as u64),
        ("storage full", total.storage_full),
        ("batches taken back", total.taken_back as u64),
        ("verified", total.verified),
        ("topics deleted", total.topics_deleted),
        ("log starts moved", total.log_starts),
        ("log starts moved by retention", total.retained),
        ("segments written", total.segments as u64),
        ("segments merged", total.merges as u64),
    ] {
        assert!(count >= seeds / 10, "{what}: {count} in {seeds} seeds");
    }
}

#[test]
fn given_a_seed_when_simulated_twice_then_the_runs_are_the_same() {
    for seed in [1, 17] {
        assert_eq!(run_caught(seed, None), run_caught(seed, None), "seed {seed}");
    }
}

#[test]
fn given_a_planted_bug_when_simulated_then_an_oracle_finds_it() {
    for bug in Bug::ALL {
        match first_found(BUG_SEEDS, |seed| run_caught(seed, Some(bug))) {
            Some((seed, violation)) => println!("{bug:?}: seed {seed}: {}", violation.what),
            None => panic!("{bug:?} was not found in {BUG_SEEDS} seeds"),
        }
    }
}
