//! What failed and may fail again: it is left alone for a while, longer each time.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long something that failed is left alone: twice as long each time.
pub const PAUSE_MIN: Duration = Duration::from_secs(60);
/// The longest.
pub const PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// What failed, by what it was done to.
#[derive(Debug)]
pub struct Failures<K>(BTreeMap<K, Failure>);

#[derive(Debug)]
struct Failure {
    pause: Duration,
    until_ns: u64,
    /// How often it came since it was last told of.
    untold: u64,
}

/// What is to be said of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// For how long it is left alone from now on.
    pub pause: Duration,
    /// Whether it has not failed before.
    pub is_first: bool,
}

impl Failure {
    fn is_over(&self, now_ns: u64) -> bool {
        let quiet_ns = u64::try_from(PAUSE_MAX.as_nanos()).unwrap_or(u64::MAX);
        now_ns >= self.until_ns.saturating_add(quiet_ns)
    }
}

impl<K> Default for Failures<K> {
    fn default() -> Failures<K> {
        Failures(BTreeMap::new())
    }
}

impl<K: Ord> Failures<K> {
    /// Whether it is not to be tried now.
    #[must_use]
    pub fn is_left_alone(&self, key: &K, now_ns: u64) -> bool {
        self.0.get(key).is_some_and(|failure| now_ns < failure.until_ns)
    }

    /// It has failed.
    pub fn note(&mut self, key: K, now_ns: u64) -> Noted {
        let last = self.0.get(&key).map(|last| last.pause);
        let pause = last.map_or(PAUSE_MIN, |last| PAUSE_MAX.min(last * 2));
        let pause_ns = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = now_ns.saturating_add(pause_ns);
        self.0.insert(key, Failure { pause, until_ns, untold: 0 });
        Noted { pause, is_first: last.is_none() }
    }

    /// It has failed, and may do so many times a second, as nobody leaves it alone. How often it has since this was last
    /// told, itself included; `None` while nothing is to be told. After [`PAUSE_MAX`] without one it begins anew.
    pub fn note_often(&mut self, key: K, now_ns: u64) -> Option<u64> {
        let mut untold = 1;
        if let Some(failure) = self.0.get_mut(&key) {
            failure.untold += 1;
            if now_ns < failure.until_ns {
                return None;
            }
            untold = failure.untold;
        }
        self.0.retain(|of, failure| *of == key || !failure.is_over(now_ns));
        if self.0.get(&key).is_some_and(|failure| failure.is_over(now_ns)) {
            self.0.remove(&key);
        }
        self.note(key, now_ns);
        Some(untold)
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// It went well.
    pub fn forget(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Forgets what is of no interest any more.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&K) -> bool) {
        self.0.retain(|key, _| is_wanted(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn given_something_that_fails_when_looked_at_then_it_is_left_alone_for_longer_each_time() {
        let (bad, good) = (7, 8);
        let mut failures = Failures::default();
        let mut now_ns = 5 * SECOND_NS;
        let mut pauses = Vec::new();
        for at in 0..8 {
            assert!(!failures.is_left_alone(&bad, now_ns));
            let noted = failures.note(bad, now_ns);
            assert_eq!(noted.is_first, at == 0);
            let pause = noted.pause.as_secs();
            assert!(failures.is_left_alone(&bad, now_ns + pause * SECOND_NS - 1));
            assert!(!failures.is_left_alone(&good, now_ns), "it holds up no other");
            now_ns += pause * SECOND_NS;
            pauses.push(pause);
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
        failures.forget(&bad);
        let noted = failures.note(bad, now_ns);
        assert_eq!(noted, Noted { pause: PAUSE_MIN, is_first: true }, "it went well meanwhile");
    }

    #[test]
    fn given_something_that_fails_twice_a_second_when_told_of_then_once_and_then_with_how_often() {
        let mut failures = Failures::default();
        let mut told = Vec::new();
        for half_second in 0..1_000_u64 {
            if let Some(times) = failures.note_often(7, half_second * SECOND_NS / 2) {
                told.push((half_second / 2, times));
            }
        }
        assert_eq!(told, [(0, 1), (60, 120), (180, 240), (420, 480)]);
        assert_eq!(failures.note_often(8, 500 * SECOND_NS), Some(1), "another one is told at once");
        let later_ns = 100_000 * SECOND_NS;
        assert_eq!(failures.note_often(9, later_ns), Some(1));
        assert_eq!(failures.len(), 1, "what came long ago is not kept");
        assert_eq!(failures.note_often(9, later_ns + 2 * 3_600 * SECOND_NS), Some(1));
        assert_eq!(
            failures.note_often(9, later_ns + 2 * 3_660 * SECOND_NS),
            Some(1),
            "it began anew"
        );
    }
}
