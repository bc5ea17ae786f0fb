//! The cluster simulator's seeds: every promise holds in all of them, and every planted bug is found in one of them.
//!
//! `CHRONIK_CLUSTER_SIM_SEEDS=N` runs N seeds, `CHRONIK_CLUSTER_SIM_SEED=S` only seed S, `CHRONIK_CLUSTER_SIM_STEPS=N`
//! makes runs longer.

use chronik_tests::cluster_sim::run::{Report, run};
use chronik_tests::cluster_sim::{Bug, Violation};
use chronik_tests::seeds::{Seeds, caught, first_found};

const SEEDS: u64 = 300;
const STEPS: usize = 3_000;
const BUG_SEEDS: u64 = 100;

fn seeds() -> Seeds {
    Seeds::from_env("CHRONIK_CLUSTER_SIM", SEEDS, STEPS)
}

fn run_caught(seed: u64, bug: Option<Bug>) -> Result<Report, Violation> {
    caught(|| run(seed, seeds().steps, bug))
}

#[test]
fn given_any_seed_when_a_cluster_is_simulated_then_every_promise_holds() {
    let Seeds { range, steps, is_one } = seeds();
    let count = range.end - range.start;
    let mut total = Report::default();
    for seed in range {
        match run_caught(seed, None) {
            Ok(report) => total = total.plus(report),
            Err(violation) => panic!(
                "seed {seed}: {}\nreproduce with: CHRONIK_CLUSTER_SIM_SEED={seed} \
                 CHRONIK_CLUSTER_SIM_STEPS={} cargo test -p chronik-tests --test cluster_simulation \
                 given_any_seed -- --nocapture",
                violation.what, steps
            ),
        }
    }
    println!("{count} seeds: {total:#?}");
    if !is_one && count >= 100 {
        assert_covers(&total, count);
    }
}

/// A simulation in which nothing happens proves nothing.
fn assert_covers(total: &Report, seeds: u64) {
    assert!(total.acked_all > seeds * 50, "{total:?}");
    for (what, count) in total.figures() {
        assert!(count >= seeds / 30, "{what}: {count} in {seeds} seeds");
    }
}

#[test]
fn given_a_seed_when_a_cluster_is_simulated_twice_then_the_runs_are_the_same() {
    for seed in [1, 17] {
        assert_eq!(run_caught(seed, None), run_caught(seed, None), "seed {seed}");
    }
}

#[test]
fn given_a_planted_bug_when_a_cluster_is_simulated_then_an_oracle_finds_it() {
    for bug in Bug::ALL {
        match first_found(BUG_SEEDS, |seed| run_caught(seed, Some(bug))) {
            Some((seed, violation)) => {
                let first_line = violation.what.lines().next().unwrap_or_default();
                println!("{bug:?}: seed {seed}: {first_line}");
            }
            None => panic!("{bug:?} was not found in {BUG_SEEDS} seeds"),
        }
    }
}
