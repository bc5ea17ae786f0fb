//! The one place of the shell that reads a clock. The core gets the time as an argument.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of monotonic time since it was first asked for.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(super) fn stopwatch_ns() -> u64 {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let since = STARTED.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Monotonic time for durations, wall-clock time for what Kafka calls timestamps.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    started_boot_ms: u64,
}

/// Milliseconds since the machine was started, asleep or not. As cheap as the monotonic time: the kernel's vDSO has both.
fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec * 1_000 + now.tv_nsec / 1_000_000).unwrap_or(0)
}

impl Clock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub fn start() -> Clock {
        Clock { started: Instant::now(), started_boot_ms: boot_ms() }
    }

    /// Milliseconds since the clock was started, those included in which the machine was suspended, for which the monotonic
    /// time stands still. Never goes back.
    #[must_use]
    pub fn awake_or_not_ms(&self) -> u64 {
        boot_ms().saturating_sub(self.started_boot_ms)
    }

    /// Nanoseconds since the clock was started. Never goes back.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since the Unix epoch, as the machine believes.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    pub fn wall_ms(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_machine_that_is_awake_when_time_passes_then_both_clocks_say_the_same() {
        let clock = Clock::start();
        let now_ms = || clock.now_ns() / 1_000_000;
        // Each is read within the other's readings, as the test may be kept waiting in between.
        let around = now_ms();
        let since = clock.awake_or_not_ms();
        let within = now_ms();
        while now_ms() < within + 20 {
            std::hint::spin_loop();
        }
        let within = now_ms() - within;
        let passed = clock.awake_or_not_ms() - since;
        let around = now_ms() - around;
        // Milliseconds are cut off.
        assert!((within - 1..=around + 1).contains(&passed), "{within} {passed} {around}");
    }
}
