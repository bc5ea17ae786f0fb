//! What a round works on, and when there should be one. Nothing here touches a disk.

use chronik_engine::ids::Offset;
use chronik_engine::segment::Segment;

use super::CompactionSettings;

/// The largest output of several segments, whatever is configured: records may grow by a few bytes when their batch gets
/// a delete horizon, and a segment must not become larger than there can be one.
const GROUP_BYTES_MAX: u64 = chronik_engine::segment::format::SEGMENT_BYTES_MAX / 4;

/// Why a partition should be compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompactionReason {
    /// More of it is dirty than may be.
    Dirty,
    /// A record has waited for as long as it may.
    Lag,
    /// The delete horizon of tombstones has passed.
    Tombstones,
}

/// Whether to compact now. `delete_horizon_ms` is what the last round said, or [`super::delete_horizon`].
///
/// What is dirty counts as soon as a round would take it. That a record is compacted within `max.compaction.lag.ms` is
/// judged by the greatest timestamp before the dirty part, as its first record is no older than that, so it may be
/// early; where nothing is before it, by the greatest of its first segment, so it may be late by what one segment spans.
#[must_use]
pub fn wants_compaction(
    segments: &[Segment],
    up_to: Offset,
    settings: &CompactionSettings,
    delete_horizon_ms: Option<i64>,
    now_ms: i64,
) -> Option<CompactionReason> {
    let Parts { clean, dirty } = parts(segments, up_to, settings, now_ms);
    let bytes = |part: &[Segment]| part.iter().map(|segment| segment.file_bytes).sum::<u64>();
    let (clean_bytes, dirty_bytes) = (bytes(clean), bytes(dirty));
    if is_above(dirty_bytes, clean_bytes + dirty_bytes, settings.min_cleanable_dirty_ratio) {
        return Some(CompactionReason::Dirty);
    }
    let before = clean.last().map(|segment| segment.max_timestamp_ms).filter(|at| *at >= 0);
    let oldest = dirty.iter().map(|segment| segment.max_timestamp_ms).filter(|at| *at >= 0).min();
    let oldest = oldest.map(|oldest| before.map_or(oldest, |before| before.min(oldest)));
    let latest = now_ms.saturating_sub(settings.max_compaction_lag_ms.max(0));
    if oldest.is_some_and(|oldest| oldest < latest) {
        return Some(CompactionReason::Lag);
    }
    let is_past = delete_horizon_ms.is_some_and(|horizon| horizon <= now_ms);
    (is_past && !clean.is_empty()).then_some(CompactionReason::Tombstones)
}

/// Whether `part` is more than this ratio of `whole`, as Kafka has it: at 1.0 never, at 0.0 as soon as there is any.
#[expect(clippy::cast_precision_loss, reason = "a ratio of file sizes need not be exact")]
fn is_above(part: u64, whole: u64, ratio: f64) -> bool {
    part > 0 && part as f64 > whole as f64 * ratio
}

/// The two parts that a round would work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// What was compacted before.
    pub clean: &'a [Segment],
    /// What follows it and may be compacted.
    pub dirty: &'a [Segment],
}

pub(super) fn parts<'a>(
    segments: &'a [Segment],
    up_to: Offset,
    settings: &CompactionSettings,
    now_ms: i64,
) -> Parts<'a> {
    let may = segments.iter().take_while(|segment| segment.end_offset <= up_to).count();
    let clean = segments[..may].iter().take_while(|segment| segment.is_compacted).count();
    let (clean, rest) = segments[..may].split_at(clean);
    let latest = match settings.min_compaction_lag_ms {
        ..=0 => i64::MAX,
        lag_ms => now_ms.saturating_sub(lag_ms),
    };
    let dirty = rest.iter().take_while(|segment| segment.max_timestamp_ms <= latest).count();
    Parts { clean, dirty: &rest[..dirty] }
}

/// Neighbours that become one segment. There is no gap between them: the new one stands for all its range.
pub(super) fn groups(segments: &[Segment], bytes_max: u64) -> impl Iterator<Item = &[Segment]> {
    let bytes_max = bytes_max.min(GROUP_BYTES_MAX);
    let mut bytes = 0;
    segments.chunk_by(move |segment, next| {
        // The chunk's first segment is not seen as `next`.
        bytes = if bytes == 0 { segment.file_bytes } else { bytes };
        bytes = bytes.saturating_add(next.file_bytes);
        let fits = bytes <= bytes_max && segment.end_offset == next.base_offset;
        if !fits {
            bytes = 0;
        }
        fits
    })
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::Term;

    use super::*;

    const SETTINGS: CompactionSettings = CompactionSettings {
        min_cleanable_dirty_ratio: 0.5,
        min_compaction_lag_ms: 0,
        max_compaction_lag_ms: i64::MAX,
        delete_retention_ms: 1000,
        segment_bytes_max: 100,
        map_bytes_max: 1 << 20,
    };
    const ALL: Offset = Offset(i64::MAX);

    /// A segment of ten offsets.
    fn segment(at: i64, is_compacted: bool, file_bytes: u64, max_timestamp_ms: i64) -> Segment {
        Segment {
            base_offset: Offset(at * 10),
            end_offset: Offset(at * 10 + 10),
            file_bytes,
            max_timestamp_ms,
            term: Term(1),
            generation: 0,
            is_compacted,
        }
    }

    #[test]
    fn given_dirty_bytes_when_they_are_more_than_the_ratio_then_it_is_wanted() {
        let wants = |clean, dirty, ratio| {
            let segments = [segment(0, true, clean, 5), segment(1, false, dirty, 5)];
            let settings = CompactionSettings { min_cleanable_dirty_ratio: ratio, ..SETTINGS };
            wants_compaction(&segments, ALL, &settings, None, 1000)
        };
        assert_eq!(wants(100, 100, 0.5), None);
        assert_eq!(wants(100, 101, 0.5), Some(CompactionReason::Dirty));
        assert_eq!(wants(1_000_000, 1, 0.0), Some(CompactionReason::Dirty));
        assert_eq!(wants(1, 1_000_000, 1.0), None);
        let clean = [segment(0, true, 100, 5)];
        let settings = CompactionSettings { min_cleanable_dirty_ratio: 0.0, ..SETTINGS };
        assert_eq!(wants_compaction(&clean, ALL, &settings, None, 1000), None);
    }

    #[test]
    fn given_a_lag_when_segments_are_younger_then_they_are_not_dirty_yet() {
        let segments =
            [segment(0, true, 9, 5), segment(1, false, 9, 900), segment(2, false, 9, 901)];
        let settings = CompactionSettings { min_compaction_lag_ms: 100, ..SETTINGS };
        let found = parts(&segments, ALL, &settings, 1000);
        assert_eq!(found, Parts { clean: &segments[..1], dirty: &segments[1..2] });
        let none = parts(&segments, ALL, &settings, 999);
        assert_eq!(none.dirty, []);
        assert_eq!(wants_compaction(&segments[1..], ALL, &settings, None, 999), None);
    }

    #[test]
    fn given_a_bound_when_segments_end_after_it_then_they_are_left_alone() {
        let segments = [segment(0, true, 9, 5), segment(1, true, 9, 5), segment(2, false, 9, 5)];
        let found = parts(&segments, Offset(29), &SETTINGS, 1000);
        assert_eq!(found, Parts { clean: &segments[..2], dirty: &[] });
        let found = parts(&segments, Offset(19), &SETTINGS, 1000);
        assert_eq!(found, Parts { clean: &segments[..1], dirty: &[] });
    }

    #[test]
    fn given_little_that_is_dirty_when_it_has_waited_too_long_then_it_is_wanted() {
        let settings = CompactionSettings { max_compaction_lag_ms: 100, ..SETTINGS };
        let wants =
            |segments: &[Segment], now| wants_compaction(segments, ALL, &settings, None, now);
        let first = [segment(0, true, 99, -1), segment(1, false, 9, 500)];
        assert_eq!(wants(&first, 600), None);
        assert_eq!(wants(&first, 601), Some(CompactionReason::Lag));
        let later = [segment(0, true, 99, 300), segment(1, false, 9, 500)];
        assert_eq!(wants(&later, 400), None);
        assert_eq!(wants(&later, 401), Some(CompactionReason::Lag));
        assert_eq!(wants(&later[..1], 1000), None, "nothing is dirty");
        assert_eq!(wants(&[segment(0, true, 99, 300), segment(1, false, 9, -1)], 1000), None);
    }

    #[test]
    fn given_no_new_records_when_a_horizon_has_passed_then_it_is_wanted() {
        let clean = [segment(0, true, 99, 300)];
        let wants = |horizon, now| wants_compaction(&clean, ALL, &SETTINGS, horizon, now);
        assert_eq!(wants(None, 5000), None);
        assert_eq!(wants(Some(5000), 4999), None);
        assert_eq!(wants(Some(5000), 5000), Some(CompactionReason::Tombstones));
        assert_eq!(wants_compaction(&[], ALL, &SETTINGS, Some(0), 5000), None);
    }

    #[test]
    fn given_neighbours_when_grouped_then_each_group_fits_and_has_no_gap() {
        let sizes = |segments: &[Segment]| -> Vec<usize> {
            groups(segments, 100).map(<[Segment]>::len).collect()
        };
        let of = |at, bytes| segment(at, true, bytes, 0);
        assert_eq!(sizes(&[of(0, 50), of(1, 50), of(2, 1)]), [2, 1]);
        assert_eq!(sizes(&[of(0, 500), of(1, 50), of(2, 50)]), [1, 2]);
        assert_eq!(sizes(&[of(0, 99), of(1, 2), of(2, 98), of(3, 1)]), [1, 2, 1]);
        assert_eq!(sizes(&[of(0, 1), of(2, 1), of(3, 1)]), [1, 2], "offsets are missing");
        assert_eq!(sizes(&[]), [0; 0]);
    }
}
