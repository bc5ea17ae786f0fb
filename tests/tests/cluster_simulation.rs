//! The cluster simulator's seeds: every promise holds in all of them, and every planted bug is found in one of them.
//!
//! `CHRONIK_CLUSTER_SIM_SEEDS=N` runs N seeds, `CHRONIK_CLUSTER_SIM_SEED=S` only seed S, `CHRONIK_CLUSTER_SIM_STEPS=N`
//! makes runs longer.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use chronik_tests::cluster_sim::run::{Report, run};
use chronik_tests::cluster_sim::{Bug, Violation};

const SEEDS: u64 = 300;
const STEPS: usize = 3_000;
const BUG_SEEDS: u64 = 100;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn steps() -> usize {
    let steps = setting("CHRONIK_CLUSTER_SIM_STEPS");
    steps.map_or(STEPS, |steps| usize::try_from(steps).expect("a count"))
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs a seed; a failed assertion of the product is a violation like any other.
fn run_caught(seed: u64, bug: Option<Bug>) -> Result<Report, Violation> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, steps(), bug)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation { what: text.unwrap_or_else(|| "a panic".to_owned()) })
    })
}

#[test]
fn given_any_seed_when_a_cluster_is_simulated_then_every_promise_holds() {
    let only = setting("CHRONIK_CLUSTER_SIM_SEED");
    let seeds = match only {
        Some(seed) => seed..seed + 1,
        None => 0..setting("CHRONIK_CLUSTER_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let count = seeds.end - seeds.start;
    let mut total = Report::default();
    for seed in seeds {
        match run_caught(seed, None) {
            Ok(report) => total = total.plus(report),
            Err(violation) => panic!(
                "seed {seed}: {}\nreproduce with: CHRONIK_CLUSTER_SIM_SEED={seed} \
                 CHRONIK_CLUSTER_SIM_STEPS={} cargo test -p chronik-tests --test cluster_simulation \
                 given_any_seed -- --nocapture",
                violation.what,
                steps()
            ),
        }
    }
    println!("{count} seeds: {total:#?}");
    if only.is_none() && count >= 100 {
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
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                default(info);
            }
        }));
    });
    for bug in Bug::ALL {
        QUIET.set(true);
        let found =
            (0..BUG_SEEDS).find_map(|seed| Some((seed, run_caught(seed, Some(bug)).err()?)));
        QUIET.set(false);
        match found {
            Some((seed, violation)) => {
                let first_line = violation.what.lines().next().unwrap_or_default();
                println!("{bug:?}: seed {seed}: {first_line}");
            }
            None => panic!("{bug:?} was not found in {BUG_SEEDS} seeds"),
        }
    }
}
