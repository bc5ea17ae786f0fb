//! Retention, as far as the log's index can tell: how much a group holds, what of it is beyond its limits, and which
//! entries stand in the way of giving the oldest file back.
//!
//! It decides nothing: what is beyond the limits becomes a log start by the group's own state machine, and what may be
//! cut is cut by a [`super::record::WalRecord::LogStart`] that the owner of the group writes.
//!
//! - I1: a place found here is the end of an extent, so never in the middle of a batch.
//! - I2: pieces go from the oldest on and without a gap: one that stays keeps all after it.
//! - I3: work is bounded by the ranges of the group, the extents of the active file and the footers of two files.

use std::ops::Bound;

use super::reader::{clipped, extents_of};
use super::{ReadError, Sealed, SealedName, Wal};
use crate::disk::Disk;
use crate::ids::{FileSeq, GroupId, Offset, RaftIndex};
use crate::log_index::{Extent, FileRange};
use crate::segment::Segment;

/// What a group may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionLimits {
    /// Bytes of its records. The oldest go as long as what is left is not less than this.
    pub bytes_max: Option<u64>,
    /// Records whose timestamps are all before this go.
    pub timestamp_ms_min: Option<i64>,
}

/// From where on somebody needs the log of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogNeed {
    /// From this entry on; those before it may be cut.
    Index(RaftIndex),
    /// From this offset on; entries before it may be cut.
    Offset(Offset),
}

/// Goes over the pieces of a log, oldest first, and finds out up to where they go.
#[derive(Debug)]
struct Judge {
    limits: RetentionLimits,
    up_to: Offset,
    bytes_left: u64,
    cut: Offset,
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Goes,
    /// It has no timestamp, and nobody knows when it was written: it goes with a later one that does.
    Open,
    Stays,
}

impl Judge {
    fn judge(&self, bytes: u64, max_timestamp_ms: i64, end: Offset) -> Fate {
        if end > self.up_to {
            return Fate::Stays;
        }
        let left = self.bytes_left.checked_sub(bytes);
        let is_surplus = match (self.limits.bytes_max, left) {
            (Some(bytes_max), Some(left)) => left >= bytes_max,
            _ => false,
        };
        let is_old = |oldest: i64| max_timestamp_ms >= 0 && max_timestamp_ms < oldest;
        if is_surplus || self.limits.timestamp_ms_min.is_some_and(is_old) {
            return Fate::Goes;
        }
        if max_timestamp_ms < 0 { Fate::Open } else { Fate::Stays }
    }

    fn take(&mut self, bytes: u64, max_timestamp_ms: i64, end: Offset) -> Fate {
        let fate = self.judge(bytes, max_timestamp_ms, end);
        if fate != Fate::Stays {
            self.bytes_left = self.bytes_left.saturating_sub(bytes);
        }
        if fate == Fate::Goes {
            self.cut = self.cut.max(end);
        }
        fate
    }

    fn take_extent(&mut self, extent: &Extent) -> Fate {
        let bytes = u64::from(extent.payload_bytes);
        self.take(bytes, extent.max_timestamp_ms, extent.end_offset())
    }
}

impl<D: Disk> Wal<D> {
    /// Bytes of the records that a group holds from `from` on, whole extents. Cancel-safe.
    ///
    /// # Errors
    /// If a footer cannot be read.
    pub async fn size_bytes(&self, group: GroupId, from: Offset) -> Result<u64, ReadError> {
        let mut bytes = 0;
        for range in self.ranges_from(group, from) {
            if range.base_offset >= from {
                bytes += range.payload_bytes;
                continue;
            }
            for extent in self.extents_from(group, &range, from).await? {
                bytes += u64::from(extent.payload_bytes);
            }
        }
        let active = self.active_extents_from(group, from);
        Ok(bytes + active.iter().map(|extent| u64::from(extent.payload_bytes)).sum::<u64>())
    }

    /// Where the log of a group should start, of which the records from `from` on count, those in segments first: after
    /// all that is beyond `limits`, never after `up_to`. Cancel-safe.
    ///
    /// # Errors
    /// If a footer cannot be read.
    pub async fn retention_cut(
        &self,
        group: GroupId,
        from: Offset,
        up_to: Offset,
        segments: &[Segment],
        limits: RetentionLimits,
    ) -> Result<Offset, ReadError> {
        let (started_at, first_in_log) = (from, self.first_offset(group));
        let stored_end = segments.last().map_or(from, |segment| segment.end_offset.max(from));
        let stored_bytes: u64 = segments.iter().map(|segment| segment.file_bytes).sum();
        let bytes_left = match limits.bytes_max {
            Some(_) => stored_bytes + self.size_bytes(group, stored_end).await?,
            None => 0,
        };
        let mut judge = Judge { limits, up_to, bytes_left, cut: from };
        for segment in segments {
            let (bytes, timestamp) = (segment.file_bytes, segment.max_timestamp_ms);
            let fate = judge.take(bytes, timestamp, segment.end_offset);
            if fate == Fate::Stays {
                return Ok(judge.cut);
            }
        }
        let from = stored_end;
        for range in self.ranges_from(group, from) {
            let is_whole = range.base_offset >= from;
            let (bytes, timestamp) = (range.payload_bytes, self.dated(&range, limits).await);
            if is_whole && judge.judge(bytes, timestamp, range.end_offset) == Fate::Goes {
                judge.take(bytes, timestamp, range.end_offset);
                continue;
            }
            for mut extent in self.extents_from(group, &range, from).await? {
                if range.max_timestamp_ms < 0 {
                    extent.max_timestamp_ms = timestamp;
                }
                if judge.take_extent(&extent) == Fate::Stays {
                    return Ok(judge.cut);
                }
            }
        }
        for extent in self.active_extents_from(group, from) {
            if judge.take_extent(&extent) == Fate::Stays {
                break;
            }
        }
        // What was cut meanwhile was not judged, so neither is what lies behind it.
        let is_whole = self.first_offset(group) == first_in_log;
        Ok(if is_whole { judge.cut } else { started_at })
    }

    /// The greatest timestamp of what a sealed file holds of a group. Where no batch has one, the time counts when the file
    /// was written last, if it is needed: nothing in it came later.
    async fn dated(&self, range: &FileRange, limits: RetentionLimits) -> i64 {
        if range.max_timestamp_ms >= 0 || limits.timestamp_ms_min.is_none() {
            return range.max_timestamp_ms;
        }
        let path = self.state.borrow().sealed.get(&range.file).map(|file| file.path.clone());
        match path {
            Some(path) => self.disk.modified_ms(&path).await.unwrap_or(range.max_timestamp_ms),
            None => range.max_timestamp_ms,
        }
    }

    /// What must be cut so that the oldest sealed file can be given back: for each group the last entry that nobody
    /// needs. Nothing if somebody needs the file all the same.
    #[must_use]
    pub fn cuts_of_oldest(
        &self,
        need: impl Fn(GroupId) -> Option<LogNeed>,
    ) -> Vec<(GroupId, RaftIndex)> {
        let state = self.state.borrow();
        let Some((&oldest, _)) = state.sealed.first_key_value() else { return Vec::new() };
        let mut cuts = Vec::new();
        for (group, last) in state.index.last_in_file(oldest) {
            // What the newest checkpoint has not applied, a start reads from the log.
            let applied = state.applied.get(&group).copied().unwrap_or(RaftIndex(u64::MAX));
            let is_free = match need(group) {
                None => true,
                Some(LogNeed::Index(first)) => {
                    cuts.push((group, last));
                    first > last
                }
                Some(LogNeed::Offset(offset)) => {
                    let ranges = state.index.group(group).into_iter().flat_map(|log| &log.ranges);
                    let free =
                        |range: &&FileRange| range.end_offset <= offset && range.last <= applied;
                    let cut = ranges.take_while(free).last().map(|range| range.last);
                    cuts.extend(cut.map(|cut| (group, cut)));
                    cut.is_some_and(|cut| cut >= last)
                }
            };
            if !is_free || applied < last {
                return Vec::new();
            }
        }
        cuts
    }

    /// The sealed files after `after`, oldest first, as far as their footers are written.
    #[must_use]
    pub fn sealed_files(&self, after: FileSeq) -> Vec<SealedName> {
        let state = self.state.borrow();
        let unfinished = state.unfinished.iter().map(|file| file.seq).min();
        let files = state.sealed.range((Bound::Excluded(after), Bound::Unbounded));
        let finished = files.take_while(|(seq, _)| unfinished.is_none_or(|first| **seq < first));
        let named = |(seq, sealed): (&FileSeq, &Sealed<D::File>)| SealedName {
            seq: *seq,
            path: sealed.path.clone(),
            end_position: sealed.end_position,
        };
        finished.map(named).collect()
    }

    /// What a sealed file holds of each group that is still here.
    #[must_use]
    pub fn ranges_in_file(&self, file: FileSeq) -> Vec<(GroupId, FileRange)> {
        self.state.borrow().index.ranges_in_file(file).collect()
    }

    /// Sealed files with records of a group at or after `from`, oldest first.
    fn ranges_from(&self, group: GroupId, from: Offset) -> Vec<FileRange> {
        let state = self.state.borrow();
        let ranges = state.index.group(group).map_or(&[][..], |log| log.ranges.as_slice());
        ranges.iter().filter(|range| range.end_offset > from).copied().collect()
    }

    async fn extents_from(
        &self,
        group: GroupId,
        range: &FileRange,
        from: Offset,
    ) -> Result<Vec<Extent>, ReadError> {
        let index = self.file_index(range.file).await?;
        let extents = extents_of(&index, group).iter();
        let here = extents.filter_map(|extent| clipped(extent, range));
        Ok(here.filter(|extent| extent.end_offset() > from).collect())
    }

    fn active_extents_from(&self, group: GroupId, from: Offset) -> Vec<Extent> {
        let state = self.state.borrow();
        let extents = extents_of(state.index.active(), group);
        extents.iter().filter(|extent| extent.end_offset() > from).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(bytes_max: Option<u64>, timestamp_ms_min: Option<i64>, sizes: &[u64]) -> Judge {
        let limits = RetentionLimits { bytes_max, timestamp_ms_min };
        Judge { limits, up_to: Offset(100), bytes_left: sizes.iter().sum(), cut: Offset(0) }
    }

    /// Judges pieces of ten offsets each; where the log starts then.
    fn cut(mut judge: Judge, pieces: &[(u64, i64)]) -> i64 {
        for (at, (bytes, timestamp)) in (1..).zip(pieces) {
            if judge.take(*bytes, *timestamp, Offset(at * 10)) == Fate::Stays {
                break;
            }
        }
        judge.cut.0
    }

    #[test]
    fn given_a_size_limit_when_judged_then_what_is_left_is_never_less_than_it() {
        let sizes = [100, 100, 100];
        let pieces = sizes.map(|bytes| (bytes, 5));
        for (bytes_max, start) in [(300, 0), (201, 0), (200, 10), (199, 10), (100, 20), (0, 30)] {
            assert_eq!(cut(judge(Some(bytes_max), None, &sizes), &pieces), start, "{bytes_max}");
        }
    }

    #[test]
    fn given_a_time_limit_when_judged_then_the_first_young_piece_keeps_all_after_it() {
        let old_then_young = [(1, 5), (1, 9), (1, 10), (1, 5)];
        assert_eq!(cut(judge(None, Some(10), &[]), &old_then_young), 20);
        assert_eq!(cut(judge(None, Some(11), &[]), &old_then_young), 40);
        assert_eq!(cut(judge(None, None, &[]), &old_then_young), 0);
    }

    #[test]
    fn given_a_piece_without_timestamp_when_judged_then_it_goes_with_a_later_one_only() {
        assert_eq!(cut(judge(None, Some(10), &[]), &[(1, -1), (1, 5), (1, -1)]), 20);
        assert_eq!(cut(judge(None, Some(10), &[]), &[(1, -1), (1, 10)]), 0);
    }

    #[test]
    fn given_records_that_are_not_committed_when_judged_then_they_stay() {
        let sizes = [1; 12];
        assert_eq!(cut(judge(Some(0), None, &sizes), &sizes.map(|bytes| (bytes, 1))), 100);
    }
}
