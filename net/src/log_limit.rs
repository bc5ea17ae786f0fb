//! Keeps the log readable while someone makes a nuisance of himself.
//!
//! Owns [`LogLimit`]: so many lines at once, refilled with time; what was left out is counted and
//! told with the next line.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Lines that may come at once.
const LINES_MAX: u32 = 20;
/// Time in which one line is earned back.
const LINE_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct LogLimit {
    lines_left: Cell<u32>,
    earned_at: Cell<Instant>,
    suppressed: Cell<u64>,
}

impl LogLimit {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            lines_left: Cell::new(LINES_MAX),
            earned_at: Cell::new(now),
            suppressed: Cell::new(0),
        }
    }

    /// `Some(lines left out since the last one)` when a line may be written now.
    pub(crate) fn allow(&self, now: Instant) -> Option<u64> {
        let intervals = now.saturating_duration_since(self.earned_at.get()).as_millis()
            / LINE_INTERVAL.as_millis();
        if let Some(earned) = u32::try_from(intervals).ok().filter(|earned| *earned > 0) {
            self.earned_at.set(self.earned_at.get() + LINE_INTERVAL * earned);
            self.lines_left.set(self.lines_left.get().saturating_add(earned).min(LINES_MAX));
        }
        match self.lines_left.get() {
            0 => {
                self.suppressed.set(self.suppressed.get() + 1);
                None
            }
            left => {
                self.lines_left.set(left - 1);
                Some(self.suppressed.take())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_flood_when_time_passes_then_the_next_line_tells_what_was_left_out() {
        let start = crate::clock::now();
        let limit = LogLimit::new(start);
        let written = (0..100).filter(|_| limit.allow(start).is_some()).count();
        assert_eq!(written, 20);
        assert_eq!(limit.allow(start + LINE_INTERVAL), Some(80));
        assert_eq!(limit.allow(start + LINE_INTERVAL), None);
    }
}
