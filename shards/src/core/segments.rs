//! The segments of a partition: what of its log is in files of its own, may leave the log, and is found there then.
//!
//! Segments are private to a replica: a second copy of what its log holds, made in the background. So they are no part
//! of the state machine; which there are is told by the shell, from a listing at the start and from what is written
//! since. What has gone from a manifest comes out as [`super::Effects::segments_gone`], for the shell to remove.
//!
//! - I1: a segment is named here only while its file is whole and durable.
//! - I2: the log gives up entries only that lie before the log start offset or in a segment that is named here.
//! - I3: a segment that was lost stays a gap: no later one stands for its records, so whoever asks for them is told.

use std::ops::Range;

use chronik_engine::ids::{GroupId, Offset};
use chronik_engine::log_index::FileRange;
use chronik_engine::segment::{Loaded, Manifest, Segment, SegmentId};
use chronik_tiering::backlog::FilePlan;
use chronik_tiering::write::WritePart;
use uuid::Uuid;

use super::group::Group;
use super::{ShardCore, live_mut};
use crate::catalog::{PartitionKind, PartitionTag, TopicId};

/// A segment and the partition that it belongs to: what its file is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedSegment {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number.
    pub partition: u32,
    /// The segment.
    pub segment: Segment,
}

impl NamedSegment {
    /// A segment that was written under this id.
    #[must_use]
    pub fn of(id: SegmentId, segment: Segment) -> NamedSegment {
        NamedSegment { topic: TopicId(id.topic), partition: id.partition, segment }
    }

    /// Segments that were written under one id.
    #[must_use]
    pub fn all_of(id: SegmentId, segments: Vec<Segment>) -> Vec<NamedSegment> {
        segments.into_iter().map(|segment| NamedSegment::of(id, segment)).collect()
    }

    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.segment.file_name(self.topic.0, self.partition)
    }
}

impl PartitionTag {
    /// A segment of this partition.
    pub(crate) fn named(self, segment: Segment) -> NamedSegment {
        NamedSegment { topic: self.topic, partition: self.partition, segment }
    }
}

impl ShardCore {
    /// What of a file of the log that holds these entries is to become segments, none larger than its topic's
    /// `bytes_max`, and which groups have entries there that are not committed. `first_in_log` is the first offset that the
    /// log has of a group.
    #[must_use]
    pub fn plan_segments(
        &self,
        ranges: &[(GroupId, FileRange)],
        cluster: Uuid,
        bytes_max: impl Fn(TopicId) -> u64,
        first_in_log: impl Fn(GroupId) -> Option<Offset>,
    ) -> FilePlan {
        let mut plan = FilePlan::default();
        for (id, range) in ranges {
            let Some(group) = self.live(*id) else { continue };
            let stored_to = group.stored_to();
            if range.end_offset <= stored_to || range.end_offset <= range.base_offset {
                continue;
            }
            let tag = group.tag().filter(|tag| tag.kind == PartitionKind::Records);
            let Some(tag) = tag else { continue };
            let from = first_in_log(*id).map_or(stored_to, |first| first.max(stored_to)); // I3
            let applied = group.raft.applied();
            // What a replica copies begins at the gap, and ends behind what its own log has.
            let is_copied = from > stored_to && self.fills.has(*id);
            if applied < range.last || is_copied {
                plan.waiting.push(*id);
            }
            if applied < range.first || group.high_watermark() <= from || is_copied {
                continue;
            }
            plan.parts.push(WritePart {
                group: *id,
                id: tag.segment_id(cluster, group.raft.term()),
                from,
                follows: group.segments.end(),
                last: range.last.min(applied),
                segment_bytes_max: bytes_max(tag.topic),
            });
        }
        plan
    }

    /// How many segments there are, and their bytes.
    #[must_use]
    pub fn segment_totals(&self) -> (u64, u64) {
        self.groups.values().fold((0, 0), |(count, bytes), group| {
            let segments = &group.segments;
            (count + segments.len() as u64, bytes + segments.file_bytes(Offset(0)))
        })
    }

    /// The partition that a group is; `None` if there is no such group here, or it is the catalog's.
    #[must_use]
    pub fn tag(&self, group: GroupId) -> Option<PartitionTag> {
        self.live(group).and_then(Group::tag)
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
        let gone = left_over.into_iter().map(|segment| tag.named(segment));
        self.shared.effects.segments_gone.extend(gone);
        unclear
    }

    /// Lets go of the segments behind a gap that the log can close, which has all that they stand for: it becomes segments
    /// once more from there on, and would be cut behind them else (I2). Says where the gap begins.
    pub fn take_segments_back(&mut self, group: GroupId, first_in_log: Offset) -> Option<Offset> {
        let group = live_mut(&mut self.groups, group)?;
        let gaps = group.segments.gaps(group.log_start_to_come(), group.segments.end()?);
        let gap = gaps.into_iter().find(|gap| gap.end > first_in_log)?;
        let gone = group.take_segments_from(gap.start);
        self.shared.segments_taken_back += gone.len() as u64;
        self.shared.effects.segments_gone.extend(gone);
        Some(gap.start)
    }

    /// The last segment of a partition where it holds records that the log is yet to have. What another replica has
    /// copied may do so until Raft brings the log there; without another one the log cannot come there by itself.
    #[must_use]
    pub fn segment_beyond_log(&self, group: GroupId) -> Option<Segment> {
        let group = self.live(group)?;
        let members = group.raft.members();
        let is_alone =
            members.voters == [group.raft.replica()] && members.voters_outgoing.is_empty();
        let last = *group.segments.iter().next_back()?;
        (is_alone && last.end_offset > group.raft.end_offset()).then_some(last)
    }

    /// Up to where segments stand for the records of a partition without a gap, from its log start on.
    #[cfg(test)]
    pub fn covered_to(&self, group: GroupId) -> Option<Offset> {
        self.live(group).map(|group| group.segments.covered_to(group.log_start_offset))
    }

    /// What no segment stands for of a partition, from its log start on and before `up_to`.
    #[must_use]
    pub fn gaps(&self, group: GroupId, up_to: Offset) -> Vec<Range<Offset>> {
        let gaps = |group: &Group| group.segments.gaps(group.log_start_offset, up_to);
        self.live(group).map(gaps).unwrap_or_default()
    }

    /// The same, for a partition with records, without what lies before a log start that is not known yet to be committed: it may
    /// have been applied before the last end of the process, and what went with it is gone for good and not missing.
    #[must_use]
    pub fn gaps_for_good(&self, group: GroupId, up_to: Offset) -> Vec<Range<Offset>> {
        let missing = |group: &Group| group.segments.gaps(group.log_start_to_come(), up_to);
        self.live(group).map(missing).unwrap_or_default()
    }

    /// The gap between segments that `offset` lies in, the whole of it.
    #[must_use]
    pub fn gap_at(&self, group: GroupId, offset: Offset, up_to: Offset) -> Range<Offset> {
        let gaps = self.gaps(group, up_to).into_iter();
        gaps.rev().find(|gap| gap.contains(&offset)).unwrap_or(offset..offset.plus(1).max(up_to))
    }

    /// Tells of a segment that was written of what the log has; says whether it counts. The first one of a part may begin
    /// behind the last one that there was when the part was planned (I3).
    pub fn add_written(&mut self, part: &WritePart, segment: Segment) -> bool {
        let is_planned = |group: &Group| {
            let first = part.from == segment.base_offset;
            first && part.follows.is_some() && part.follows == group.segments.end()
        };
        self.add(part.group, NamedSegment::of(part.id, segment), is_planned)
    }

    /// Tells of a segment that was written; it begins where the last one ends, if there is one. It goes where it does not:
    /// a segment of the log's own records and one of a leader's may be written side by side, and the first one counts.
    pub fn add_segment(&mut self, id: GroupId, new: NamedSegment) {
        self.add(id, new, |_| false);
    }

    fn add(
        &mut self,
        id: GroupId,
        new: NamedSegment,
        may_leave_gap: impl Fn(&Group) -> bool,
    ) -> bool {
        let mut counts = true;
        let gone = match live_mut(&mut self.groups, id) {
            Some(group) if group.segments.is_next(&new.segment) || may_leave_gap(group) => {
                group.segments.push(new.segment);
                group.take_segments_before(group.log_start_offset)
            }
            Some(group) => {
                // Under the name of one that counts, it stands in its place.
                let name = new.file_name();
                let file_name =
                    |segment: &Segment| NamedSegment { segment: *segment, ..new }.file_name();
                counts = group.segments.iter().any(|segment| file_name(segment) == name);
                if counts { Vec::new() } else { vec![new] }
            }
            None => {
                counts = false;
                vec![new]
            }
        };
        self.shared.effects.segments_gone.extend(gone);
        counts
    }

    /// How often the last segments of a partition were let go of: what they stood for may be in the log still.
    #[must_use]
    pub fn segments_taken_back(&self) -> u64 {
        self.shared.segments_taken_back
    }

    /// Tells of a segment that stands for several that there were. Those come out as gone; the new one does where the
    /// partition has moved on meanwhile.
    pub fn replace_segments(&mut self, id: GroupId, new: NamedSegment) {
        let gone = match live_mut(&mut self.groups, id) {
            Some(group) => {
                if new.segment.is_compacted {
                    // Who reads from the beginning finds the newest records only, in memory as on disk.
                    self.shared.tail.remove_before(id, new.segment.end_offset);
                }
                group.segments.replace(new.segment)
            }
            None => vec![new.segment],
        };
        let gone = gone.into_iter().map(|segment| NamedSegment { segment, ..new });
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
        Some(group.tag()?.named(segment))
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

    /// What it is called where nobody knows the names of topics.
    pub(super) fn label(&self) -> String {
        match self.tag() {
            Some(tag) => format!("partition {} of topic {}", tag.partition, tag.topic.0),
            None => format!("group {}", self.id),
        }
    }

    pub(super) fn stored_to(&self) -> Offset {
        let end = self.segments.end().unwrap_or(self.log_start_offset);
        end.max(self.log_start_offset)
    }

    /// Takes the segments from the manifest that lie before `offset`.
    pub(super) fn take_segments_before(&mut self, offset: Offset) -> Vec<NamedSegment> {
        if self.segments.is_empty() {
            return Vec::new(); // as in all groups that hold no records
        }
        let Some(tag) = self.tag() else { return Vec::new() };
        let gone = self.segments.drop_before(offset);
        gone.into_iter().map(|segment| tag.named(segment)).collect()
    }

    /// Takes the segments from the manifest that begin at or after `offset`.
    pub(super) fn take_segments_from(&mut self, offset: Offset) -> Vec<NamedSegment> {
        let Some(tag) = self.tag() else { return Vec::new() };
        let gone = self.segments.drop_from(offset);
        gone.into_iter().map(|segment| tag.named(segment)).collect()
    }
}
