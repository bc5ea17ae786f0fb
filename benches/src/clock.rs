//! The one clock of a run, in nanoseconds since it was made, and sleeping until a time on it.

#![expect(clippy::disallowed_methods, reason = "a load generator measures real time")]

use std::num::NonZeroU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// Counts from the moment it was made; copies count from the same moment.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that stands at 0.
    #[must_use]
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// What it shows.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        duration_ns(self.origin.elapsed())
    }

    /// Returns at `due_ns` or later; at once where that is past.
    pub fn sleep_until_ns(&self, due_ns: u64) {
        let now_ns = self.now_ns();
        if due_ns > now_ns {
            std::thread::sleep(Duration::from_nanos(due_ns - now_ns));
        }
    }
}

/// A duration as the clock counts.
#[must_use]
pub fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds as milliseconds, for reports.
#[must_use]
pub fn ns_to_ms(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e3
}

/// Makes the sleeps of the calling thread end when they should: by default the kernel adds up to 50 µs.
pub fn exact_sleeps() {
    // Where this is refused the send delay that is reported grows, and says so.
    let _set = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

/// Milliseconds since 1970, for record timestamps and reports.
#[must_use]
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
