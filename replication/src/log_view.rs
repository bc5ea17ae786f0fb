//! Where a log starts, where it ends, and where each term begins.
//!
//! A term lookup must answer for every entry of the log and for nothing else: a cache that answers with the last
//! known term beyond its range lets commits go backwards. So this holds the whole log, as one run for each term.
//!
//! Where terms began before the log's start stays known: the records of then are in segments, and clients that read them are
//! told where an epoch ends. Were it forgotten, each replica would say something else, as each cuts its log elsewhere.
//!
//! Invariants: (I1) runs rise strictly in term and in index; (I2) `start.index <= last.index`; (I3) each entry in
//! `start..=last` is in a run, but for `start` itself, whose term is kept beside; (I4) of the runs that ended before the
//! start the last [`ENDED_RUNS_MAX`] are kept.

use chronik_engine::ids::{Offset, RaftIndex, Term};
use chronik_engine::wal::record::{EpochStart, LogPosition};

/// They are in every checkpoint and snapshot, 24 bytes each.
const ENDED_RUNS_MAX: usize = 256;

/// The outline of a log.
#[derive(Debug, Clone)]
pub(crate) struct LogView {
    start: LogPosition,
    last: LogPosition,
    epochs: Vec<EpochStart>,
}

impl LogView {
    /// A log without entries that starts after `start`, with the runs that are known up to there.
    pub(crate) fn new(start: LogPosition, last: LogPosition, epochs: Vec<EpochStart>) -> LogView {
        assert!(start.index <= last.index, "I2: {start:?} {last:?}");
        for pair in epochs.windows(2) {
            assert!(pair[0].epoch < pair[1].epoch, "I1: terms rise: {pair:?}");
            assert!(pair[0].index < pair[1].index, "I1: indices rise: {pair:?}");
        }
        LogView { start, last, epochs }
    }

    pub(crate) fn start(&self) -> LogPosition {
        self.start
    }

    pub(crate) fn last(&self) -> LogPosition {
        self.last
    }

    pub(crate) fn epochs(&self) -> &[EpochStart] {
        &self.epochs
    }

    /// The term of the entry at `index`, of `start` too; nothing outside of them.
    pub(crate) fn term_at(&self, index: RaftIndex) -> Option<Term> {
        if index == self.last.index {
            return Some(self.last.term);
        }
        if index == self.start.index {
            return Some(self.start.term);
        }
        if index < self.start.index || index > self.last.index {
            return None;
        }
        let runs = self.epochs.partition_point(|run| run.index <= index);
        let run = runs.checked_sub(1).and_then(|at| self.epochs.get(at));
        assert!(run.is_some(), "I3: no run for {index} in {:?}", self.epochs);
        run.map(|run| run.epoch)
    }

    /// Adds the entry after the last; returns the run that it begins, if it begins one.
    pub(crate) fn append(
        &mut self,
        index: RaftIndex,
        term: Term,
        base_offset: Offset,
    ) -> Option<EpochStart> {
        assert!(index == self.last.index.next(), "entry {index} after {:?}", self.last);
        assert!(term >= self.last.term, "term {term} after {:?}", self.last);
        self.last = LogPosition { index, term };
        let known = self.epochs.last().is_some_and(|run| run.epoch == term);
        if known {
            return None;
        }
        let run = EpochStart { epoch: term, index, offset: base_offset };
        self.epochs.push(run);
        Some(run)
    }

    /// Moves the end on to `last`, over the terms that begin at `runs`.
    pub(crate) fn extend(&mut self, runs: &[EpochStart], last: LogPosition) {
        assert!(last.index >= self.last.index, "{last:?} before {:?}", self.last);
        self.epochs.extend_from_slice(runs);
        self.last = last;
        let newest = self.epochs.last().map(|run| run.epoch);
        assert!(newest.is_none_or(|epoch| epoch == last.term), "I1: {newest:?} {last:?}");
    }

    /// Removes all entries after `index`.
    pub(crate) fn truncate_after(&mut self, index: RaftIndex) {
        assert!(index >= self.start.index, "{index} is before the log's start");
        assert!(index <= self.last.index, "{index} is after the log's end");
        let term = self.term_at(index);
        while self.epochs.last().is_some_and(|run| run.index > index) {
            self.epochs.pop();
        }
        assert!(term.is_some(), "I3: {index} has a term");
        self.last = LogPosition { index, term: term.unwrap_or_default() };
    }

    /// Lets the log start after `index`, and forgets terms that ended long before (I4).
    pub(crate) fn start_after(&mut self, index: RaftIndex) {
        assert!(index >= self.start.index, "the start of a log does not go back");
        let term = self.term_at(index);
        assert!(term.is_some(), "{index} is after the log's end {:?}", self.last);
        self.start = LogPosition { index, term: term.unwrap_or_default() };
        let ended = self.epochs.windows(2).take_while(|pair| pair[1].index <= index).count();
        self.epochs.drain(..ended.saturating_sub(ENDED_RUNS_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn given_a_log_that_is_cut_when_it_had_many_terms_then_the_last_ones_stay_known() {
        let zero = LogPosition::default();
        let mut view = LogView::new(zero, zero, Vec::new());
        let terms = ENDED_RUNS_MAX as u64 + 10;
        for index in 1..=terms {
            view.append(RaftIndex(index), Term(index), Offset(0));
            view.start_after(RaftIndex(index));
        }
        let epochs: Vec<u64> = view.epochs().iter().map(|run| run.epoch.0).collect();
        let kept = terms - ENDED_RUNS_MAX as u64..=terms;
        assert_eq!(epochs, kept.collect::<Vec<u64>>());
    }

    proptest! {
        #[test]
        fn given_any_appends_and_truncations_when_terms_are_looked_up_then_they_match_a_list(
            steps in proptest::collection::vec((0_u8..8, 0_u64..100), 1..80)
        ) {
            let zero = LogPosition::default();
            let mut view = LogView::new(zero, zero, Vec::new());
            let mut terms: Vec<u64> = vec![0];
            let mut start = 0_usize;
            for (step, value) in steps {
                let last = terms.len() - 1;
                match step {
                    0 => {
                        let keep = start + usize::try_from(value)? % (last - start + 1);
                        terms.truncate(keep + 1);
                        view.truncate_after(RaftIndex(keep as u64));
                    }
                    1 => {
                        start += usize::try_from(value)? % (last - start + 1);
                        view.start_after(RaftIndex(start as u64));
                    }
                    _ => {
                        let term = (terms[last] + u64::from(value < 20)).max(1);
                        terms.push(term);
                        view.append(RaftIndex(last as u64 + 1), Term(term), Offset(0));
                    }
                }
                for (index, term) in terms.iter().enumerate() {
                    let found = view.term_at(RaftIndex(index as u64));
                    prop_assert_eq!(found, (index >= start).then_some(Term(*term)));
                }
                prop_assert_eq!(view.term_at(RaftIndex(terms.len() as u64)), None);
            }
        }
    }
}
