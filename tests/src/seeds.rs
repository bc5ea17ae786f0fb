//! Running a simulator over many seeds: which ones, with what is broken caught, and with planted bugs looked for quietly.
#![allow(clippy::panic, reason = "a test ends where its settings are no numbers")]

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::sim::Violation;

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
    /// As the environment says by `PREFIX_SEED`, `PREFIX_SEEDS` and `PREFIX_STEPS`, else these.
    #[must_use]
    pub fn from_env(prefix: &str, seeds: u64, steps: usize) -> Seeds {
        let only = setting(&format!("{prefix}_SEED"));
        let range = match only {
            Some(seed) => seed..seed + 1,
            None => 0..setting(&format!("{prefix}_SEEDS")).unwrap_or(seeds),
        };
        let given = setting(&format!("{prefix}_STEPS"));
        let steps = given.map_or(steps, |steps| usize::try_from(steps).unwrap_or(usize::MAX));
        Seeds { range, steps, is_one: only.is_some() }
    }
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
