//! The segments of one partition, in order: a manifest.
//!
//! It is made from what a directory holds ([`Manifest::load`]) and changed as segments are written, replaced by fewer
//! ones (merged, compacted) and dropped from the front. A new segment is in its place in the directory before the
//! manifest names it, and is named before what it replaces is removed. So whatever a crash leaves there, the newest
//! generation of every offset is whole, and the rest is left over.
//!
//! - I1: segments rise in offset and never overlap.
//! - I2: a segment that is added begins where the last one ends, or behind that where the records between are nowhere any
//!   more: a gap is there for readers to find, nothing may ever close it by its name.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::name::Segment;
use crate::ids::Offset;

/// See the module's page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    segments: VecDeque<Segment>,
}

/// What a directory holds of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The newest generation of each offset.
    pub manifest: Manifest,
    /// What a newer generation has replaced, or lies before the log start: it may go.
    pub left_over: Vec<Segment>,
    /// What contradicts the manifest and has offsets that nothing else stands for. There should be none.
    pub unclear: Vec<Segment>,
}

impl Manifest {
    /// The manifest of what a directory holds of one partition whose log starts at `log_start`.
    #[must_use]
    pub fn load(mut found: Vec<Segment>, log_start: Offset) -> Loaded {
        // Of one generation the one that ends last: it was written later, with more in it.
        found.sort_by_key(|segment| {
            (Reverse((segment.generation, segment.end_offset)), segment.base_offset, segment.term)
        });
        let mut kept: BTreeMap<Offset, Segment> = BTreeMap::new();
        let mut others = Vec::new();
        for segment in found {
            let before = kept.range(..segment.end_offset).next_back();
            let overlaps = before.is_some_and(|(_, before)| before.overlaps(&segment));
            if overlaps || segment.end_offset <= log_start {
                others.push(segment);
            } else {
                kept.insert(segment.base_offset, segment);
            }
        }
        let manifest = Manifest { segments: kept.into_values().collect() };
        let is_replaced = |segment: &Segment| {
            manifest.covered_to(segment.base_offset.max(log_start)) >= segment.end_offset
        };
        let (left_over, unclear) = others.into_iter().partition(is_replaced);
        Loaded { manifest, left_over, unclear }
    }

    /// Which of these others would go for: each that overlaps one that [`Manifest::load`] would not prefer to it. At the cost of
    /// sorting them, since a directory may hold hundreds of thousands.
    #[must_use]
    pub fn would_replace(found: &[Segment]) -> Vec<bool> {
        let rank = |at: &usize| (found[*at].generation, found[*at].end_offset);
        let mut by_rank: Vec<usize> = (0..found.len()).collect();
        by_rank.sort_by_key(rank);
        let mut replaces = vec![false; found.len()];
        // What those of lower ranks stand for, in pieces that do not touch.
        let mut covered: BTreeMap<Offset, Offset> = BTreeMap::new();
        for same in by_rank.chunk_by(|a, b| rank(a) == rank(b)) {
            for at in same {
                let Segment { base_offset, end_offset, .. } = found[*at];
                let before = covered.range(..end_offset).next_back();
                let overlaps = before.is_some_and(|(_, end)| *end > base_offset);
                // Two of one rank end together.
                replaces[*at] = overlaps || same.len() > 1;
            }
            for at in same {
                cover(&mut covered, found[*at].base_offset..found[*at].end_offset);
            }
        }
        replaces
    }

    /// The segments, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.iter()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// The first offset that they stand for.
    #[must_use]
    pub fn start(&self) -> Option<Offset> {
        self.segments.front().map(|segment| segment.base_offset)
    }

    /// The offset after the last that they stand for.
    #[must_use]
    pub fn end(&self) -> Option<Offset> {
        self.segments.back().map(|segment| segment.end_offset)
    }

    /// The first offset from `from` on that no segment stands for.
    #[must_use]
    pub fn covered_to(&self, from: Offset) -> Offset {
        let mut covered = from;
        for segment in self.segments.range(self.position(from)..) {
            if segment.base_offset > covered {
                break;
            }
            covered = segment.end_offset;
        }
        covered
    }

    /// What no segment stands for from `from` on and before `up_to`.
    #[must_use]
    pub fn gaps(&self, from: Offset, up_to: Offset) -> Vec<Range<Offset>> {
        let mut gaps = Vec::new();
        let mut covered = from;
        for segment in self.segments.range(self.position(from)..) {
            if covered >= up_to {
                return gaps;
            }
            if segment.base_offset > covered {
                gaps.push(covered..segment.base_offset.min(up_to));
            }
            covered = segment.end_offset;
        }
        if covered < up_to {
            gaps.push(covered..up_to);
        }
        gaps
    }

    /// The segment that stands for `offset`, or the first one after it.
    #[must_use]
    pub fn find(&self, offset: Offset) -> Option<&Segment> {
        self.segments.get(self.position(offset))
    }

    /// The bytes of all files from the one on that stands for `from`.
    #[must_use]
    pub fn file_bytes(&self, from: Offset) -> u64 {
        self.segments.range(self.position(from)..).map(|segment| segment.file_bytes).sum()
    }

    /// Whether a segment begins where the last one ends, or there is none.
    #[must_use]
    pub fn is_next(&self, segment: &Segment) -> bool {
        self.end().is_none_or(|end| end == segment.base_offset)
    }

    /// Adds the next segment, or one behind a gap.
    pub fn push(&mut self, segment: Segment) {
        let follows = self.end().is_none_or(|end| end <= segment.base_offset);
        assert!(follows, "I1: {segment:?} begins before {:?}", self.end());
        self.segments.push_back(segment);
    }

    /// Puts one segment in the place of those that it stands for; they are handed back. The first of them may have been
    /// dropped meanwhile. Where all of them were, nothing changes and it is handed back itself.
    pub fn replace(&mut self, new: Segment) -> Vec<Segment> {
        let first = self.position(new.base_offset);
        let last = self.position(Offset(new.end_offset.0 - 1));
        let begins = self.segments.get(first).is_some_and(|found| {
            let dropped_before = first == 0 && new.base_offset < found.base_offset;
            found.base_offset == new.base_offset || dropped_before
        });
        let ends = self.segments.get(last).is_some_and(|s| s.end_offset == new.end_offset);
        if !begins || !ends {
            return vec![new];
        }
        let newer = self.segments.range(first..=last).all(|s| s.generation < new.generation);
        assert!(newer, "{new:?} replaces what is no older");
        let old: Vec<Segment> = self.segments.drain(first..=last).collect();
        self.segments.insert(first, new);
        old
    }

    /// Puts segments where `old` is, all of what stands between its first and its last one, or where nothing is. Whether
    /// that is how it was; otherwise nothing changes.
    pub fn put(&mut self, old: &[Segment], new: &[Segment]) -> bool {
        let Some(base) = old.first().or(new.first()).map(|segment| segment.base_offset) else {
            return true;
        };
        let (first, end) = (self.position(base), self.position(base) + old.len());
        let is_there = end <= self.segments.len() && self.segments.range(first..end).eq(old);
        let before = first.checked_sub(1).map(|at| self.segments[at]);
        let around = before.iter().chain(new).chain(self.segments.get(end));
        let rises = around.clone().zip(around.skip(1)).all(|(a, b)| a.end_offset <= b.base_offset);
        if !is_there || !rises {
            return false;
        }
        self.segments.drain(first..end);
        for (at, segment) in new.iter().enumerate() {
            self.segments.insert(first + at, *segment);
        }
        true
    }

    /// Drops the segments that stand for nothing at or after `log_start`; they are handed back.
    pub fn drop_before(&mut self, log_start: Offset) -> Vec<Segment> {
        self.segments.drain(..self.position(log_start)).collect()
    }

    /// Drops the segments that begin at or after `offset`; they are handed back.
    pub fn drop_from(&mut self, offset: Offset) -> Vec<Segment> {
        let first = self.segments.partition_point(|segment| segment.base_offset < offset);
        self.segments.drain(first..).collect()
    }

    /// The place of the first segment that ends after `offset`.
    fn position(&self, offset: Offset) -> usize {
        self.segments.partition_point(|segment| segment.end_offset <= offset)
    }
}

/// Adds a piece to those that do not touch.
fn cover(covered: &mut BTreeMap<Offset, Offset>, Range { mut start, mut end }: Range<Offset>) {
    while let Some((&from, &to)) = covered.range(..=end).next_back()
        && to >= start
    {
        covered.remove(&from);
        (start, end) = (start.min(from), end.max(to));
    }
    covered.insert(start, end);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::Term;

    proptest! {
        #[test]
        fn given_any_segments_when_asked_which_would_replace_others_then_it_is_as_by_comparing_each_with_each(
            shapes in proptest::collection::vec((0..60_i64, 1..20_i64, 0..4_u32), 0..40)
        ) {
            let found: Vec<Segment> =
                shapes.iter().map(|(base, len, generation)| segment(*base, base + len, *generation)).collect();
            let rank = |segment: &Segment| (segment.generation, segment.end_offset);
            let compared = |at: usize| {
                let mut others = found.iter().enumerate().filter(|(other, _)| *other != at);
                others.any(|(_, o)| found[at].overlaps(o) && rank(&found[at]) >= rank(o))
            };
            let expected: Vec<bool> = (0..found.len()).map(compared).collect();
            prop_assert_eq!(Manifest::would_replace(&found), expected);
        }
    }

    fn segment(base: i64, end: i64, generation: u32) -> Segment {
        Segment {
            base_offset: Offset(base),
            end_offset: Offset(end),
            file_bytes: 100,
            max_timestamp_ms: -1,
            term: Term(1),
            generation,
            is_compacted: false,
        }
    }

    fn manifest(segments: &[Segment]) -> Manifest {
        Manifest { segments: segments.iter().copied().collect() }
    }

    fn load(found: &[Segment], log_start: i64) -> (Manifest, Vec<Segment>, Vec<Segment>) {
        let loaded = Manifest::load(found.to_vec(), Offset(log_start));
        (loaded.manifest, loaded.left_over, loaded.unclear)
    }

    #[test]
    fn given_a_crash_between_replacing_and_removing_when_loaded_then_the_newer_generation_counts() {
        let (old, other) = ([segment(0, 10, 0), segment(10, 20, 0)], segment(20, 30, 0));
        let new = segment(0, 20, 1);
        let (loaded, left_over, unclear) = load(&[other, old[0], new, old[1]], 0);
        assert_eq!(loaded, manifest(&[new, other]));
        assert_eq!((&left_over[..], &unclear[..]), (&[old[1], old[0]][..], &[][..]));
    }

    #[test]
    fn given_a_write_that_was_repeated_with_more_when_loaded_then_the_longer_one_counts() {
        let (loaded, left_over, _) = load(&[segment(0, 10, 0), segment(0, 15, 0)], 0);
        assert_eq!(loaded, manifest(&[segment(0, 15, 0)]));
        assert_eq!(left_over, [segment(0, 10, 0)]);
    }

    #[test]
    fn given_a_segment_that_came_too_late_when_loaded_then_the_one_that_goes_on_counts() {
        let (late, goes_on) = (segment(0, 80, 1), segment(10, 90, 1));
        let (loaded, left_over, unclear) = load(&[late, goes_on], 10);
        assert_eq!(loaded, manifest(&[goes_on]));
        assert_eq!((&left_over[..], &unclear[..]), (&[late][..], &[][..]));
        let (_, left_over, unclear) = load(&[late, goes_on], 5);
        assert_eq!(
            (&left_over[..], &unclear[..]),
            (&[][..], &[late][..]),
            "5 to 10 is nowhere else"
        );
    }

    #[test]
    fn given_segments_before_the_log_start_when_loaded_then_they_are_left_over() {
        let (gone, here) = (segment(0, 10, 7), segment(10, 20, 0));
        assert_eq!(load(&[gone, here], 10), (manifest(&[here]), vec![gone], vec![]));
    }

    #[test]
    fn given_segments_when_looked_up_then_the_one_that_stands_for_the_offset_is_found() {
        let segments = [segment(5, 10, 0), segment(10, 20, 0), segment(30, 40, 0)];
        let manifest = manifest(&segments);
        for (offset, found) in [(0, 0), (5, 0), (9, 0), (10, 1), (19, 1), (20, 2), (39, 2)] {
            assert_eq!(manifest.find(Offset(offset)), Some(&segments[found]), "{offset}");
        }
        assert_eq!(manifest.find(Offset(40)), None);
        for (from, covered) in [(0, 0), (5, 20), (15, 20), (20, 20), (30, 40), (50, 50)] {
            assert_eq!(manifest.covered_to(Offset(from)), Offset(covered), "{from}");
        }
        assert_eq!(manifest.file_bytes(Offset(10)), 200);
    }

    #[test]
    fn given_a_replacement_when_it_covers_whole_segments_then_it_takes_their_place() {
        let segments = [segment(0, 10, 0), segment(10, 20, 3), segment(20, 30, 0)];
        let mut all = manifest(&segments);
        assert_eq!(all.replace(segment(0, 20, 4)), segments[..2]);
        assert_eq!(all, manifest(&[segment(0, 20, 4), segments[2]]));
        all.drop_before(Offset(20));
        let late = segment(0, 30, 5);
        assert_eq!(all.replace(late), segments[2..], "its first part has gone meanwhile");
        assert_eq!(all, manifest(&[late]));
        all.drop_before(Offset(30));
        let too_late = segment(10, 30, 6);
        assert_eq!(all.replace(too_late), [too_late]);
    }

    #[test]
    fn given_what_was_lost_when_it_is_put_back_then_only_where_nothing_else_stands_for_it() {
        let segments = [segment(0, 10, 0), segment(20, 30, 0), segment(30, 40, 0)];
        let mut all = manifest(&segments);
        for overlapping in [segment(9, 20, 1), segment(10, 21, 1), segment(25, 28, 1)] {
            assert!(!all.put(&[], &[overlapping]), "{overlapping:?}");
        }
        assert!(!all.put(&[], &[segment(10, 15, 1), segment(14, 20, 1)]), "they overlap");
        assert_eq!(all, manifest(&segments));
        let mended = [segment(10, 15, 1), segment(15, 20, 1)];
        assert!(all.put(&[], &mended) && all.put(&[], &[segment(40, 50, 1)]));
        let [a, b, c] = segments;
        let [d, e] = mended;
        assert_eq!(all, manifest(&[a, d, e, b, c, segment(40, 50, 1)]));
        let new = [segment(10, 25, 2), segment(25, 30, 2)];
        assert!(!all.put(&[d, b], &new), "these are no neighbours");
        assert!(!all.put(&[d, e], &new), "there is another one behind them");
        assert!(all.put(&[d, e, b], &new));
        assert_eq!(all, manifest(&[a, new[0], new[1], c, segment(40, 50, 1)]));
        assert!(!all.put(&[d], &[segment(10, 15, 7)]), "it has gone meanwhile");
    }

    #[test]
    fn given_a_log_start_when_segments_are_dropped_then_the_one_that_holds_it_stays() {
        let segments = [segment(0, 10, 0), segment(10, 20, 0)];
        let mut all = manifest(&segments);
        assert_eq!(all.drop_before(Offset(9)), []);
        assert_eq!(all.drop_before(Offset(10)), segments[..1]);
        assert_eq!(all.drop_before(Offset(20)), segments[1..]);
        assert!(all.is_empty());
    }

    #[test]
    fn given_a_gap_when_segments_behind_it_are_dropped_then_those_before_it_stay_and_can_be_followed()
     {
        let segments = [segment(0, 10, 0), segment(20, 30, 0), segment(30, 40, 0)];
        let mut all = manifest(&segments);
        assert_eq!(all.drop_from(all.covered_to(Offset(0))), segments[1..]);
        assert!(all.is_next(&segment(10, 15, 0)) && !all.is_next(&segment(9, 15, 0)));
        assert_eq!(all.drop_from(Offset(10)), []);
        assert_eq!(all.drop_from(Offset(0)), segments[..1]);
    }

    #[test]
    fn given_segments_with_gaps_when_asked_then_only_what_none_of_them_stands_for_is_told() {
        let found = vec![segment(10, 20, 0), segment(30, 40, 0), segment(40, 50, 0)];
        let manifest = Manifest::load(found, Offset(0)).manifest;
        let gaps = |from: i64, up_to: i64| -> Vec<(i64, i64)> {
            let gaps = manifest.gaps(Offset(from), Offset(up_to)).into_iter();
            gaps.map(|gap| (gap.start.0, gap.end.0)).collect()
        };
        assert_eq!(gaps(0, 60), [(0, 10), (20, 30), (50, 60)]);
        assert_eq!(gaps(15, 45), [(20, 30)]);
        assert_eq!(gaps(25, 28), [(25, 28)]);
        assert_eq!(gaps(30, 50), []);
        assert_eq!(gaps(55, 55), []);
        assert_eq!(Manifest::default().gaps(Offset(3), Offset(5)), [Offset(3)..Offset(5)]);
    }
}
