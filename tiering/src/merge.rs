//! Merging: many small neighbours become one segment, so that a partition that gets little does not come to have a
//! segment for each file of the log.
//!
//! One that cannot be read stays as it is, and so do too few between two of those: all others are merged around them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chronik_engine::disk::Disk;
use chronik_engine::ids::Offset;
use chronik_engine::segment::{
    Segment, SegmentError, SegmentFault, SegmentId, SegmentPlan, SegmentReader, SegmentWriter,
};

use crate::pace::{Pace, SYNC_COST_BYTES};

/// Fewer are not worth it.
const SEGMENTS_MIN: usize = 8;

/// What is read at once.
const READ_BYTES: usize = 1 << 20;

/// How much may become one segment.
#[derive(Debug, Clone, Copy)]
pub struct MergeLimits {
    /// Its size.
    pub bytes_max: u64,
    /// Between the greatest timestamps of what it is made of, in milliseconds: it is deleted as a whole, when its newest
    /// record is old enough.
    pub span_ms_max: i64,
}

/// The first neighbours that are worth merging, if there are any. None of them is larger than all others together, so a
/// record is written anew only as often as the size of its segment doubles. Those that begin at an offset of `unreadable`
/// are left out.
#[must_use]
pub fn mergeable<'a>(
    segments: &'a [Segment],
    limits: MergeLimits,
    unreadable: &BTreeSet<Offset>,
) -> Option<&'a [Segment]> {
    let mut first = 0;
    while first + SEGMENTS_MIN <= segments.len() {
        let (mut end, mut total, mut largest) = (first, 0_u64, 0_u64);
        let (mut oldest_ms, mut newest_ms) = (i64::MAX, i64::MIN);
        while let Some(next) = segments.get(end) {
            let adjoins = end == first || segments[end - 1].end_offset == next.base_offset;
            let is_readable = !unreadable.contains(&next.base_offset);
            if !adjoins || !is_readable || total + next.file_bytes > limits.bytes_max {
                break;
            }
            if next.max_timestamp_ms >= 0 {
                oldest_ms = oldest_ms.min(next.max_timestamp_ms);
                newest_ms = newest_ms.max(next.max_timestamp_ms);
                if newest_ms - oldest_ms > limits.span_ms_max {
                    break;
                }
            }
            total += next.file_bytes;
            largest = largest.max(next.file_bytes);
            end += 1;
        }
        if end - first >= SEGMENTS_MIN && largest * 2 <= total {
            return Some(&segments[first..end]);
        }
        first += 1;
    }
    None
}

/// Writes neighbours as one segment, durable on return. Not cancel-safe.
///
/// # Errors
/// If one is damaged, or the disk fails.
pub async fn merge<D: Disk>(
    disk: &D,
    dir: &Path,
    id: SegmentId,
    segments: &[Segment],
    pace: &mut impl Pace,
) -> Result<Segment, SegmentError> {
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return Err(SegmentError::NotPlanned {
            path: dir.to_owned(),
            fault: SegmentFault::Size { bytes: 0 },
        });
    };
    let path_of = |segment: &Segment| dir.join(segment.file_name(id.topic, id.partition));
    let mut plan = SegmentPlan { id, base_offset: first.base_offset, payload_bytes: 0, batches: 0 };
    for (at, segment) in segments.iter().enumerate() {
        let reader = SegmentReader::open(disk, &path_of(segment)).await?;
        let part = reader.summary().plan;
        if at == 0 {
            plan.base_offset = part.base_offset;
        }
        plan.payload_bytes += part.payload_bytes;
        plan.batches = plan.batches.saturating_add(part.batches);
    }
    let generations = segments.iter().map(|segment| segment.generation);
    let timestamps = segments.iter().map(|segment| segment.max_timestamp_ms);
    let merged = Segment {
        base_offset: first.base_offset,
        end_offset: last.end_offset,
        file_bytes: plan.file_bytes(),
        max_timestamp_ms: timestamps.max().unwrap_or(-1),
        term: id.term,
        generation: generations.max().unwrap_or(0) + 1,
        is_compacted: segments.iter().all(|segment| segment.is_compacted),
    };
    let mut writer = SegmentWriter::create(disk.clone(), &path_of(&merged), plan).await?;
    for segment in segments {
        if let Err(error) = copy(disk, path_of(segment), segment, &mut writer, pace).await {
            writer.discard().await;
            return Err(error);
        }
    }
    writer.finish().await?;
    Ok(merged)
}

async fn copy<D: Disk>(
    disk: &D,
    path: PathBuf,
    segment: &Segment,
    writer: &mut SegmentWriter<D>,
    pace: &mut impl Pace,
) -> Result<(), SegmentError> {
    let reader = SegmentReader::open(disk, &path).await?;
    let mut from = Offset(0);
    loop {
        let batches = reader.read_batches(from, segment.end_offset, READ_BYTES).await?;
        let Some(last) = batches.last() else { break };
        from = last.end_offset;
        for batch in &batches {
            writer.push(&batch.bytes).await?;
            pace.spend(2 * batch.bytes.len() as u64).await;
        }
    }
    pace.spend(SYNC_COST_BYTES).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::Term;

    use super::*;

    fn segments(sizes: &[u64]) -> Vec<Segment> {
        let segment = |(at, file_bytes): (i64, &u64)| Segment {
            base_offset: Offset(at * 10),
            end_offset: Offset(at * 10 + 10),
            file_bytes: *file_bytes,
            max_timestamp_ms: -1,
            term: Term(1),
            generation: 0,
            is_compacted: false,
        };
        (0..).zip(sizes).map(segment).collect()
    }

    const LIMITS: MergeLimits = MergeLimits { bytes_max: 100, span_ms_max: i64::MAX };

    /// The first offsets of those that are worth merging, and of what follows them.
    fn found(sizes: &[u64]) -> Option<(i64, i64)> {
        let all = segments(sizes);
        let run = mergeable(&all, LIMITS, &BTreeSet::new())?;
        Some((run[0].base_offset.0 / 10, run[run.len() - 1].end_offset.0 / 10))
    }

    #[test]
    fn given_segments_when_enough_small_ones_adjoin_then_they_are_worth_merging() {
        assert_eq!(found(&[1; 7]), None, "too few");
        assert_eq!(found(&[1; 9]), Some((0, 9)));
        assert_eq!(found(&[1; 200]), Some((0, 100)), "as many as fit");
        assert_eq!(found(&[100, 1, 1, 1, 1, 1, 1, 1, 1]), Some((1, 9)));
        let one_large = [50, 1, 1, 1, 1, 1, 1, 1];
        assert_eq!(found(&one_large), None, "it would be written for little");
        let mut gap = segments(&[1; 12]);
        gap.drain(5..6);
        assert_eq!(mergeable(&gap, LIMITS, &BTreeSet::new()), None, "a gap parts them");
    }

    #[test]
    fn given_segments_of_different_times_when_merged_then_none_keeps_another_from_being_deleted() {
        let mut all = segments(&[1; 24]);
        for (segment, at) in all.iter_mut().zip(0_i64..) {
            segment.max_timestamp_ms = 1_000_000 + at * 10;
        }
        let limits = |span_ms_max| MergeLimits { span_ms_max, ..LIMITS };
        let none = BTreeSet::new();
        assert_eq!(mergeable(&all, limits(69), &none), None, "seven are too few");
        assert_eq!(mergeable(&all, limits(95), &none), Some(&all[..10]));
        all[3].max_timestamp_ms = -1;
        assert_eq!(mergeable(&all, limits(95), &none), Some(&all[..10]), "one without time");
        all.iter_mut().for_each(|segment| segment.max_timestamp_ms = -1);
        assert_eq!(mergeable(&all, limits(0), &none), Some(&all[..]));
    }

    #[test]
    fn given_one_that_cannot_be_read_when_others_are_enough_then_they_are_merged_around_it() {
        let all = segments(&[1; 20]);
        let unreadable = BTreeSet::from([Offset(30)]);
        assert_eq!(mergeable(&all, LIMITS, &unreadable), Some(&all[4..]));
        let unreadable = BTreeSet::from([Offset(30), Offset(110)]);
        assert_eq!(mergeable(&all, LIMITS, &unreadable), Some(&all[12..]), "seven are too few");
        let unreadable = BTreeSet::from([Offset(60), Offset(130)]);
        assert_eq!(mergeable(&all, LIMITS, &unreadable), None);
    }
}
