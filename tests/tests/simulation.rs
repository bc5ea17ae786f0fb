//! The simulator's seeds: every promise holds in all of them, and every planted bug is found in one of them.
//!
//! `CHRONIK_SIM_SEEDS=N` runs N seeds, `CHRONIK_SIM_SEED=S` only seed S, `CHRONIK_SIM_STEPS=N` makes runs longer.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use chronik_tests::sim::run::{Report, run};
use chronik_tests::sim::{Bug, Violation};

const SEEDS: u64 = 320;
const STEPS: usize = 3_000;
const BUG_SEEDS: u64 = 300;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn steps() -> usize {
    setting("CHRONIK_SIM_STEPS").map_or(STEPS, |steps| usize::try_from(steps).expect("a count"))
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
fn given_any_seed_when_simulated_then_every_promise_holds() {
    let only = setting("CHRONIK_SIM_SEED");
    let seeds = match only {
        Some(seed) => seed..seed + 1,
        None => 0..setting("CHRONIK_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let count = seeds.end - seeds.start;
    let mut total = Report::default();
    for seed in seeds {
        match run_caught(seed, None) {
            Ok(report) => total = total.plus(report),
            Err(violation) => panic!(
                "seed {seed}: {}\nreproduce with: CHRONIK_SIM_SEED={seed} CHRONIK_SIM_STEPS={} \
                 cargo test -p chronik-tests --test simulation given_any_seed -- --nocapture",
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
            Some((seed, violation)) => println!("{bug:?}: seed {seed}: {}", violation.what),
            None => panic!("{bug:?} was not found in {BUG_SEEDS} seeds"),
        }
    }
}
