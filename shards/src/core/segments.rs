//! The segments of a partition: what of its log is in files of its own, may leave the log, and is found there then.
//!
//! Segments are private to a replica: a second copy of what its log holds, made in the background. So they are no part
//! of the state machine; which there are is told by the shell, from a listing at the start and from what is written
//! since. What has gone from a manifest comes out as [`super::Effects::segments_gone`], for the shell to remove.
//!
//! - I1: a segment is named here only while its file is whole and durable.
//! - I2: the log gives up entries only that lie before the log start offset or in a segment that is named here.

use chronik_engine::ids::{GroupId, Offset, RaftIndex, Term};
use chronik_engine::log_index::FileRange;
use chronik_engine::segment::{Loaded, Manifest, Segment};

use super::ShardCore;
use super::group::{Group, Machine};
use crate::catalog::{PartitionKind, PartitionTag};

/// A segment and the partition that it belongs to: what its file is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedSegment {
    /// The partition.
    pub tag: PartitionTag,
    /// The segment.
    pub segment: Segment,
}

impl NamedSegment {
    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.segment.file_name(self.tag.topic.0, self.tag.partition)
    }
}

/// What of a full file of the log is to become segments of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentPart {
    /// Its group.
    pub group: GroupId,
    /// The partition.
    pub tag: PartitionTag,
    /// The current term.
    pub term: Term,
    /// Where the last segment ends.
    pub from: Offset,
    /// Whether there is one.
    pub follows: bool,
    /// The last entry.
    pub last: RaftIndex,
}

impl ShardCore {
    /// What of a file of the log that holds these entries is to become segments; `None` as long as not all of it is
    /// committed.
    #[must_use]
    pub fn plan_segments(&self, ranges: &[(GroupId, FileRange)]) -> Option<Vec<SegmentPart>> {
        let mut parts = Vec::new();
        for (id, range) in ranges {
            let Some(group) = self.live(*id) else { continue };
            let tag = group.tag().filter(|tag| tag.kind == PartitionKind::Records);
            let from = group.stored_to();
            let has_more = range.end_offset > from && range.end_offset > range.base_offset;
            let Some(tag) = tag.filter(|_| has_more) else { continue };
            if group.raft.applied() < range.last {
                return None;
            }
            let (term, follows) = (group.raft.term(), !group.segments.is_empty());
            parts.push(SegmentPart { group: *id, tag, term, from, follows, last: range.last });
        }
        Some(parts)
    }

    /// Takes out of [`super::Effects`] the segments that nobody needs any more.
    pub fn take_segments_gone(&mut self) -> Vec<NamedSegment> {
        std::mem::take(&mut self.shared.effects.segments_gone)
    }

    /// How many segments there are, and their bytes.
    #[must_use]
    pub fn segment_totals(&self) -> (u64, u64) {
        self.groups.values().fold((0, 0), |(count, bytes), group| {
            let segments = &group.segments;
            (count + segments.len() as u64, bytes + segments.file_bytes(Offset(0)))
        })
    }

    /// The partitions with records that are placed here.
    pub fn record_partitions(&self) -> impl Iterator<Item = (GroupId, PartitionTag)> {
        self.groups.iter().filter(|(_, group)| group.is_live()).filter_map(|(id, group)| {
            let tag = group.tag().filter(|tag| tag.kind == PartitionKind::Records)?;
            Some((*id, tag))
        })
    }

    /// Tells which segments of a partition the directory holds; once, before anything is read. What the manifest does
    /// not need comes out as gone; what contradicts it is handed back.
    pub fn restore_segments(&mut self, group: GroupId, found: Vec<Segment>) -> Vec<Segment> {
        let Some(group) = self.groups.get_mut(&group) else { return found };
        let Some(tag) = group.tag() else { return found };
        assert!(group.segments.is_empty(), "segments are restored once");
        let Loaded { manifest, left_over, unclear } = Manifest::load(found, group.log_start_offset);
        group.segments = manifest;
        let gone = left_over.into_iter().map(|segment| NamedSegment { tag, segment });
        self.shared.effects.segments_gone.extend(gone);
        unclear
    }

    /// Up to where segments stand for the records of a partition without a gap, from its log start on.
    #[must_use]
    pub fn covered_to(&self, group: GroupId) -> Option<Offset> {
        self.live(group).map(|group| group.segments.covered_to(group.log_start_offset))
    }

    /// Tells of a segment that was written; it begins where the last one ends, if there is one.
    pub fn add_segment(&mut self, id: GroupId, tag: PartitionTag, segment: Segment) {
        let target = self.groups.get_mut(&id).filter(|group| group.is_live());
        let Some(group) = target else {
            self.shared.effects.segments_gone.push(NamedSegment { tag, segment });
            return;
        };
        group.segments.push(segment);
        let gone = group.take_gone_segments();
        self.shared.effects.segments_gone.extend(gone);
    }

    /// Tells of a segment that stands for several that there were. Those come out as gone; the new one does where the
    /// partition has moved on meanwhile.
    pub fn replace_segments(&mut self, id: GroupId, tag: PartitionTag, segment: Segment) {
        let target = self.groups.get_mut(&id).filter(|group| group.is_live());
        let gone = match target {
            Some(group) => {
                if segment.is_compacted {
                    // Who reads from the beginning finds the newest records only, in memory as on disk.
                    self.shared.tail.remove_before(id, segment.end_offset);
                }
                group.segments.replace(segment)
            }
            None => vec![segment],
        };
        let gone = gone.into_iter().map(|segment| NamedSegment { tag, segment });
        self.shared.effects.segments_gone.extend(gone);
    }

    /// The segments of a partition that is placed here.
    #[must_use]
    pub fn segments(&self, group: GroupId) -> Option<&Manifest> {
        self.live(group).map(|group| &group.segments)
    }

    /// The segment that stands for `offset`, or the first one after it.
    #[must_use]
    pub fn segment_at(&self, group: GroupId, offset: Offset) -> Option<NamedSegment> {
        let group = self.live(group)?;
        let segment = *group.segments.find(offset)?;
        Some(NamedSegment { tag: group.tag()?, segment })
    }

    /// Up to here the records of a partition are in segments, or before its log start.
    #[must_use]
    pub fn stored_to(&self, group: GroupId) -> Option<Offset> {
        self.live(group).map(Group::stored_to)
    }
}

impl Group {
    /// Whose log it is, if it is a partition's.
    pub(super) fn tag(&self) -> Option<PartitionTag> {
        PartitionTag::decode(&self.raft.meta().tag)
    }

    pub(super) fn stored_to(&self) -> Offset {
        let end = self.segments.end().unwrap_or(self.log_start_offset);
        end.max(self.log_start_offset)
    }

    /// Takes the segments from the manifest that lie before the log start offset.
    pub(super) fn take_gone_segments(&mut self) -> Vec<NamedSegment> {
        if self.segments.is_empty() || !matches!(self.machine, Machine::Partition(_)) {
            return Vec::new();
        }
        let Some(tag) = self.tag() else { return Vec::new() };
        let gone = self.segments.drop_before(self.log_start_offset);
        gone.into_iter().map(|segment| NamedSegment { tag, segment }).collect()
    }

    /// Takes all segments from the manifest of a group that is gone.
    pub(super) fn take_all_segments(&mut self) -> Vec<NamedSegment> {
        let Some(tag) = self.tag() else { return Vec::new() };
        let gone = self.segments.drop_before(Offset(i64::MAX));
        gone.into_iter().map(|segment| NamedSegment { tag, segment }).collect()
    }
}
