//! How fast background work may go: whoever reads or writes spends bytes, and waits where they were spent too fast.

use std::future::Future;
use std::time::{Duration, Instant};

/// What a sync or a change of a directory costs beside its bytes.
pub const SYNC_COST_BYTES: u64 = 256 << 10;

/// The most that may be spent at once after a rest.
const BURST: Duration = Duration::from_millis(50);

/// Where background work spends what it reads and writes. Cancel-safe.
pub trait Pace {
    /// Spends so many bytes and waits until that much may be spent again.
    fn spend(&mut self, bytes: u64) -> impl Future<Output = ()>;
}

/// As fast as the disk can.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unpaced;

impl Pace for Unpaced {
    async fn spend(&mut self, _bytes: u64) {}
}

/// So many bytes per second, by putting the thread to sleep: for a thread that does nothing else.
#[derive(Debug)]
pub struct ThreadPace {
    bytes_per_second: u64,
    paid_until: Option<Instant>,
}

impl ThreadPace {
    /// At this rate.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> ThreadPace {
        ThreadPace { bytes_per_second: bytes_per_second.max(1), paid_until: None }
    }

    /// How long to sleep if so much is spent at `now`.
    fn pay(&mut self, bytes: u64, now: Instant) -> Duration {
        let cost_ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(cost_ns).unwrap_or(u64::MAX));
        let oldest = now.checked_sub(BURST).unwrap_or(now);
        let paid_until = self.paid_until.map_or(oldest, |until| until.max(oldest));
        let paid_until = paid_until.checked_add(cost).unwrap_or(paid_until);
        self.paid_until = Some(paid_until);
        paid_until.saturating_duration_since(now)
    }
}

impl Pace for ThreadPace {
    #[expect(clippy::disallowed_methods, reason = "this thread serves nobody who waits")]
    async fn spend(&mut self, bytes: u64) {
        let rest = self.pay(bytes, Instant::now());
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test of time")]
    fn given_a_rate_when_spent_then_the_waits_come_to_it_and_a_rest_saves_little() {
        let mut pace = ThreadPace::new(1000);
        let now = Instant::now();
        assert_eq!(pace.pay(50, now), Duration::ZERO);
        assert_eq!(pace.pay(100, now), Duration::from_millis(100));
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.pay(50, later), Duration::ZERO);
        assert_eq!(pace.pay(1, later), Duration::from_millis(1));
    }
}
