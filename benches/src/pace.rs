//! When requests are due.
//!
//! - I1: the time of request `i` follows from `i` alone, so no late request moves a later one.
//! - I2: rounding never accumulates: every time is computed from the start.

use std::time::Duration;

use crate::clock::{SECOND_NS, duration_ns};

/// An even row of requests: `records_per_request` records each, `rate` records a second.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start_ns: u64,
    rate: u64,
    records_per_request: u64,
    warmup_ns: u64,
    length_ns: u64,
}

impl Schedule {
    /// A row that begins at `start_ns`. `None` where the rate or the records per request are zero.
    #[must_use]
    pub fn new(
        start_ns: u64,
        rate: u64,
        records_per_request: u64,
        warmup: Duration,
        measured: Duration,
    ) -> Option<Schedule> {
        let warmup_ns = duration_ns(warmup);
        let length_ns = warmup_ns.saturating_add(duration_ns(measured));
        (rate > 0 && records_per_request > 0).then_some(Schedule {
            start_ns,
            rate,
            records_per_request,
            warmup_ns,
            length_ns,
        })
    }

    /// The same row beginning at another time.
    #[must_use]
    pub fn starting_at(self, start_ns: u64) -> Schedule {
        Schedule { start_ns, ..self }
    }

    /// Requests in the row: those due before its end.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let records = u128::from(self.length_ns) * u128::from(self.rate);
        let per_request = u128::from(SECOND_NS) * u128::from(self.records_per_request);
        u64::try_from(records.div_ceil(per_request)).unwrap_or(u64::MAX)
    }

    /// When request `index` is due.
    #[must_use]
    pub fn due_ns(&self, index: u64) -> u64 {
        self.start_ns.saturating_add(self.after_start_ns(index))
    }

    /// Whether request `index` is due after the warm-up.
    #[must_use]
    pub fn is_measured(&self, index: u64) -> bool {
        self.after_start_ns(index) >= self.warmup_ns
    }

    /// When the row is over.
    #[must_use]
    pub fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.length_ns)
    }

    fn after_start_ns(&self, index: u64) -> u64 {
        let ns = u128::from(index) * u128::from(self.records_per_request) * u128::from(SECOND_NS);
        u64::try_from(ns / u128::from(self.rate)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: u64, per_request: u64, warmup_ms: u64, measured_ms: u64) -> Schedule {
        let (warmup, measured) =
            (Duration::from_millis(warmup_ms), Duration::from_millis(measured_ms));
        Schedule::new(7, rate, per_request, warmup, measured).unwrap()
    }

    #[test]
    fn given_a_rate_that_divides_nothing_when_an_hour_is_scheduled_then_no_rounding_accumulates() {
        let hour = schedule(3, 1, 0, 3_600_000);
        assert_eq!(hour.requests(), 10_800);
        assert_eq!(hour.due_ns(0), 7);
        assert_eq!(hour.due_ns(1), 7 + 333_333_333);
        assert_eq!(hour.due_ns(10_797), 7 + 3_599 * SECOND_NS);
        assert!(hour.due_ns(10_799) < hour.end_ns());
        assert!(hour.due_ns(10_800) >= hour.end_ns());
    }

    #[test]
    fn given_a_warmup_when_requests_are_counted_then_exactly_the_rest_is_measured() {
        let row = schedule(1_000, 1, 500, 2_000);
        assert_eq!(row.requests(), 2_500);
        let measured = (0..row.requests()).filter(|index| row.is_measured(*index)).count();
        assert_eq!(measured, 2_000);
        assert!(!row.is_measured(499) && row.is_measured(500));
    }

    #[test]
    fn given_many_records_per_request_when_scheduled_then_the_records_come_at_the_rate() {
        let row = schedule(1_000, 100, 0, 1_000);
        assert_eq!(row.requests(), 10);
        assert_eq!(row.due_ns(1) - row.due_ns(0), 100_000_000);
    }

    #[test]
    fn given_a_rate_above_the_clocks_grain_when_scheduled_then_times_repeat_but_never_go_back() {
        let row = schedule(3 * SECOND_NS, 1, 0, 1);
        assert_eq!(row.requests(), 3_000_000);
        assert!((0..100).all(|index| row.due_ns(index) <= row.due_ns(index + 1)));
    }

    #[test]
    fn given_no_rate_when_scheduled_then_there_is_no_row() {
        assert!(Schedule::new(0, 0, 1, Duration::ZERO, Duration::ZERO).is_none());
        assert!(Schedule::new(0, 1, 0, Duration::ZERO, Duration::ZERO).is_none());
    }
}
