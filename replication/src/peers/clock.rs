//! The links' time, their jitter and their restraint in the log.
//!
//! Links are part of the shell: they live in real time.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

#[expect(clippy::disallowed_methods, reason = "sockets and their deadlines live in real time")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// What comes of a future, unless that takes longer than `limit`.
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut end = pin!(chronik_ring::sleep(limit));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        end.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// One line per interval; those left out are counted.
#[derive(Debug)]
pub(super) struct LogLimit {
    interval: Duration,
    written_at: Cell<Option<Instant>>,
    suppressed: Cell<u64>,
}

impl LogLimit {
    pub(super) fn new(interval: Duration) -> LogLimit {
        LogLimit { interval, written_at: Cell::new(None), suppressed: Cell::new(0) }
    }

    /// `Some(lines left out since the last one)` when a line may be written now.
    pub(super) fn allow(&self, now: Instant) -> Option<u64> {
        let early = |at: Instant| now.saturating_duration_since(at) < self.interval;
        if self.written_at.get().is_some_and(early) {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.written_at.set(Some(now));
        Some(self.suppressed.take())
    }
}

/// Pauses between attempts: twice as long each time, and never quite the same for two seats.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    state: u64,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff { min, max, next: min, state: seed }
    }

    /// The peer was there: the next pause is a short one.
    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    /// The peer will not have us soon: the next pause is the longest.
    pub(super) fn raise(&mut self) {
        self.next = self.max;
    }

    /// Between half of the pause and the whole of it.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        let part = u32::try_from(self.random() % 1024).unwrap_or_default();
        pause / 2 + pause / 2 * part / 1024
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(1);

    #[test]
    fn given_failures_when_they_go_on_then_pauses_grow_up_to_the_longest() {
        let mut backoff = Backoff::new(MIN, MAX, 7);
        for expected in [50u64, 100, 200, 400, 800, 1000, 1000] {
            let expected = Duration::from_millis(expected);
            let pause = backoff.pause();
            assert!(pause >= expected / 2 && pause <= expected, "{pause:?} for {expected:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= MIN);
        backoff.raise();
        assert!(backoff.pause() >= MAX / 2);
    }

    #[test]
    fn given_two_seats_when_they_fail_together_then_they_do_not_come_back_together() {
        let pauses = [1, 2].map(|seed| Backoff::new(MIN, MAX, seed).pause());
        assert_ne!(pauses[0], pauses[1]);
    }

    #[test]
    fn given_many_lines_when_time_passes_then_the_next_tells_what_was_left_out() {
        let limit = LogLimit::new(Duration::from_secs(1));
        let start = now();
        let written = (0..100).filter(|_| limit.allow(start).is_some()).count();
        assert_eq!(written, 1);
        assert_eq!(limit.allow(start + Duration::from_secs(1)), Some(99));
    }
}
