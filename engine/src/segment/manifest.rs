//! The segments of one partition, in order: a manifest.
//!
//! It is made from what a directory holds ([`Manifest::load`]) and changed as segments are written, replaced by fewer
//! ones (merged, compacted) and dropped from the front. A new segment is in its place in the directory before the
//! manifest names it, and is named before what it replaces is removed. So whatever a crash leaves there, the newest
//! generation of every offset is whole, and the rest is left over.
//!
//! - I1: segments rise in offset and never overlap.
//! - I2: a segment that is added begins where the last one ends; a gap can only be one that a directory was found with.

use std::collections::VecDeque;

use super::name::Segment;
use crate::ids::Offset;

/// See the module's page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    segments: VecDeque<Segment>,
}

impl Manifest {
    /// The manifest of what a directory holds of one partition, and what is left over there: what a newer generation has
    /// replaced.
    #[must_use]
    pub fn load(mut found: Vec<Segment>) -> (Manifest, Vec<Segment>) {
        // Of one generation the longer one: it was written later, with more in it.
        found.sort_by_key(|segment| {
            let length = segment.end_offset.0 - segment.base_offset.0;
            (std::cmp::Reverse((segment.generation, length)), segment.base_offset, segment.term)
        });
        let mut kept: std::collections::BTreeMap<Offset, Segment> =
            std::collections::BTreeMap::new();
        let mut left_over = Vec::new();
        for segment in found {
            let before = kept.range(..segment.end_offset).next_back();
            if before.is_some_and(|(_, before)| before.overlaps(&segment)) {
                left_over.push(segment);
            } else {
                kept.insert(segment.base_offset, segment);
            }
        }
        (Manifest { segments: kept.into_values().collect() }, left_over)
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

    /// Adds the next segment.
    pub fn push(&mut self, segment: Segment) {
        let follows = self.end().is_none_or(|end| end == segment.base_offset);
        assert!(follows, "I2: {segment:?} does not begin at {:?}", self.end());
        self.segments.push_back(segment);
    }

    /// Puts one segment in the place of those that it stands for; they are handed back. Nothing changes, and it is
    /// handed back itself, where the manifest has moved on meanwhile: the first of them was dropped.
    pub fn replace(&mut self, new: Segment) -> Vec<Segment> {
        let first = self.position(new.base_offset);
        let last = self.position(Offset(new.end_offset.0 - 1));
        let begins = self.segments.get(first).is_some_and(|s| s.base_offset == new.base_offset);
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

    /// Drops the segments that stand for nothing at or after `log_start`; they are handed back.
    pub fn drop_before(&mut self, log_start: Offset) -> Vec<Segment> {
        self.segments.drain(..self.position(log_start)).collect()
    }

    /// The place of the first segment that ends after `offset`.
    fn position(&self, offset: Offset) -> usize {
        self.segments.partition_point(|segment| segment.end_offset <= offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Term;

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

    #[test]
    fn given_a_crash_between_replacing_and_removing_when_loaded_then_the_newer_generation_counts() {
        let (old, other) = ([segment(0, 10, 0), segment(10, 20, 0)], segment(20, 30, 0));
        let new = segment(0, 20, 1);
        let (loaded, left_over) = Manifest::load(vec![other, old[0], new, old[1]]);
        assert_eq!(loaded, manifest(&[new, other]));
        assert_eq!(left_over, old);
    }

    #[test]
    fn given_a_write_that_was_repeated_with_more_when_loaded_then_the_longer_one_counts() {
        let (loaded, left_over) = Manifest::load(vec![segment(0, 10, 0), segment(0, 15, 0)]);
        assert_eq!(loaded, manifest(&[segment(0, 15, 0)]));
        assert_eq!(left_over, [segment(0, 10, 0)]);
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
        let late = segment(10, 30, 5);
        assert_eq!(all.replace(late), [late], "its first part has gone meanwhile");
        assert_eq!(all.len(), 2);
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
}
