//! Asks a broker that starts for a record, again and again, until it comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::clock::{Clock, SECOND_NS};
use crate::fetch::Probe;

/// Pause between two attempts: the error of what is measured.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(1);
/// How long a start may take.
const DEADLINE_NS: u64 = 600 * SECOND_NS;

/// Returns when the record was there, as the clock shows it.
pub fn first_fetch_ns(mut probe: Probe, clock: Clock, given_up: &AtomicBool) -> Result<u64> {
    loop {
        match probe.ask() {
            Ok(()) => return Ok(clock.now_ns()),
            Err(error) if clock.now_ns() > DEADLINE_NS => {
                return Err(error.context("the record did not come in time"));
            }
            Err(_) if given_up.load(Ordering::Acquire) => bail!("the broker ended"),
            Err(_) => std::thread::sleep(ATTEMPT_PAUSE),
        }
    }
}
