//! Running a simulator over many seeds: which ones, with what is broken caught, and with planted bugs looked for quietly.
#![allow(clippy::panic, reason = "a test ends where its settings are no numbers")]

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use crate::sim::Violation;

/// So many failures are enough.
const FAILURES_MAX: usize = 10;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Which seeds to run, and how long.
#[derive(Debug, Clone)]
pub struct Seeds {
    /// The seeds.
    pub range: Range<u64>,
    /// Steps of each.
    pub steps: usize,
    /// Whether somebody asked for one seed.
    pub is_one: bool,
}

impl Seeds {
    /// As the environment says by `PREFIX_SEED`, `PREFIX_FIRST`, `PREFIX_SEEDS` and `PREFIX_STEPS`, else these.
    #[must_use]
    pub fn from_env(prefix: &str, seeds: u64, steps: usize) -> Seeds {
        let only = setting(&format!("{prefix}_SEED"));
        let first = setting(&format!("{prefix}_FIRST")).unwrap_or(0);
        let count = setting(&format!("{prefix}_SEEDS")).unwrap_or(seeds);
        let range = match only {
            Some(seed) => seed..seed.saturating_add(1),
            None => first..first.saturating_add(count),
        };
        let given = setting(&format!("{prefix}_STEPS"));
        let steps = given.map_or(steps, |steps| usize::try_from(steps).unwrap_or(usize::MAX));
        Seeds { range, steps, is_one: only.is_some() }
    }
}

/// A seed in which something went wrong.
pub type Failure = (u64, Violation);

/// Runs these seeds, side by side on all cores, and takes in what they come to, in any order. Those in which something is
/// wrong come back, the first few; after so many it stops.
pub fn run_all<R: Send>(
    seeds: Range<u64>,
    run: impl Fn(u64) -> Result<R, Violation> + Sync,
    take_in: impl FnMut(R) + Send,
) -> Vec<Failure> {
    let next = AtomicU64::new(seeds.start);
    let failures: Mutex<Vec<Failure>> = Mutex::default();
    let take_in = Mutex::new(take_in);
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|s| *s < seeds.end)
        {
            match run(seed) {
                Ok(report) => locked(&take_in)(report),
                Err(violation) => locked(&failures).push((seed, violation)),
            }
            if locked(&failures).len() >= FAILURES_MAX {
                return;
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut failures = std::mem::take(&mut *locked(&failures));
    failures.sort_by_key(|(seed, _)| *seed);
    failures
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the test over failures, if there are any: what each is, and how to see it again.
pub fn report(failures: &[Failure], prefix: &str, steps: usize, test: &str) {
    let mut lines = String::new();
    for (seed, violation) in failures {
        lines += &format!(
            "\nseed {seed}: {}\nreproduce with: {prefix}_SEED={seed} {prefix}_STEPS={steps} cargo test -p chronik-tests \
             --test {test} given_any_seed -- --nocapture\n",
            violation.what
        );
    }
    assert!(failures.is_empty(), "{lines}");
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    match value.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name}={value} is no number"),
    }
}

/// Runs a seed; a failed assertion of the product is a violation like any other.
pub fn caught<R>(run: impl FnOnce() -> Result<R, Violation>) -> Result<R, Violation> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(Violation { what: text_of(&*panic) }))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic".to_owned())
}

/// The first seed below `seeds` in which `run` finds something wrong. What panics meanwhile says nothing.
pub fn first_found<R>(
    seeds: u64,
    run: impl Fn(u64) -> Result<R, Violation>,
) -> Option<(u64, Violation)> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                default(info);
            }
        }));
    });
    QUIET.set(true);
    let found = (0..seeds).find_map(|seed| Some((seed, run(seed).err()?)));
    QUIET.set(false);
    found
}
