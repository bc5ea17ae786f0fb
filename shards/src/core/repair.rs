//! Records of a partition that cannot be read here any more, and what is to be copied from another replica in their place.
//!
//! Like the segments themselves this is no part of the state machine: what is committed is the same everywhere, so any
//! replica that has applied it may give it.
//!
//! - I1: nothing goes before what takes its place is there.
//! - I2: of a compacted partition everything is copied up to the last segment that was compacted, all from one replica. Of a key
//!   that was deleted, others may have neither the record nor its tombstone any more, and this replica the record still: with
//!   its tombstone alone replaced, the key would be back.

use std::ops::Range;

use chronik_engine::ids::{GroupId, Offset, ReplicaId, Term};
use chronik_engine::segment::Segment;

use super::{NamedSegment, ShardCore, live_mut};
use crate::catalog::{PartitionKind, PartitionTag};

/// What of a partition cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// The segment that stands for this offset, or there is none though it is not in the log.
    Stored(Offset),
    /// What the log holds up to this offset, beyond what is in segments.
    Logged(Offset),
}

/// What there is to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairStep {
    /// Nothing: it has gone, or there is no other replica.
    None,
    /// Something else is at it.
    Wait,
    /// Copy it.
    Copy(RepairPlan),
}

/// What is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairPlan {
    /// Whose records.
    pub tag: PartitionTag,
    /// The term in which they are copied.
    pub term: Term,
    /// The replica here.
    pub replica: ReplicaId,
    /// Whom to ask, the leader first.
    pub others: Vec<ReplicaId>,
    /// The first offset that is to be stood for.
    pub base_offset: Offset,
    /// The first one that there may be a record of.
    pub from: Offset,
    /// Behind the last.
    pub up_to: Offset,
    /// The segments whose place is taken, all that there are in that range.
    pub old: Vec<Segment>,
    /// Above theirs.
    pub generation: u32,
}

impl ShardCore {
    /// The first records of a partition that are in no segment though they are not in the log any more; `behind` says of
    /// which this was told before. `first_in_log` is the first offset that the log has of the partition.
    #[must_use]
    pub fn missing(
        &self,
        id: GroupId,
        first_in_log: Option<Offset>,
        behind: Option<Unreadable>,
    ) -> Option<Unreadable> {
        let end = first_in_log.unwrap_or(self.live(id)?.high_watermark());
        let told = match behind {
            Some(Unreadable::Stored(at)) => Some(at),
            Some(Unreadable::Logged(_)) | None => None,
        };
        let gaps = self.gaps_for_good(id, end).into_iter().map(|gap| gap.start);
        gaps.filter(|start| Some(*start) > told).map(Unreadable::Stored).next()
    }

    /// How to get back what cannot be read. `is_compacted` says whether the topic asks for compaction, `first_in_log` is the
    /// first offset that the log has of the partition.
    #[must_use]
    pub fn plan_repair(
        &self,
        id: GroupId,
        what: Unreadable,
        is_compacted: bool,
        first_in_log: Option<Offset>,
    ) -> RepairStep {
        let Some(group) = self.live(id) else { return RepairStep::None };
        let tag = group.tag().filter(|tag| tag.kind == PartitionKind::Records);
        let Some(tag) = tag else { return RepairStep::None };
        if self.fills.has(id) {
            return RepairStep::Wait;
        }
        let (start, end) = (group.log_start_offset, group.high_watermark());
        let segments = &group.segments;
        let (mut base_offset, mut up_to) = match what {
            Unreadable::Logged(logged_to) => (group.stored_to(), logged_to),
            Unreadable::Stored(at) => {
                let at = at.max(start);
                let found = segments.find(at).filter(|found| found.base_offset <= at);
                let found = found.map(|found| found.base_offset..found.end_offset);
                let gaps = segments.gaps(start, first_in_log.unwrap_or(end));
                let lost = found.or(gaps.into_iter().find(|gap| gap.contains(&at)));
                let Some(Range { start, end }) = lost else { return RepairStep::None };
                (start, end)
            }
        };
        let last_compacted = segments.iter().rev().find(|segment| segment.is_compacted);
        if is_compacted || last_compacted.is_some() {
            base_offset = segments.start().unwrap_or(base_offset).min(base_offset); // I2
            up_to = last_compacted.map_or(up_to, |last| last.end_offset.max(up_to));
        }
        let from = base_offset.max(start);
        let up_to = up_to.min(end);
        let members = group.raft.members();
        let replica = group.raft.replica();
        let mut others = [members.voters, members.voters_outgoing, members.learners].concat();
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != replica);
        others.sort_by_key(|other| Some(*other) != group.raft.leader());
        if from >= up_to || others.is_empty() {
            return RepairStep::None;
        }
        let is_old =
            |segment: &&Segment| segment.end_offset > base_offset && segment.base_offset < up_to;
        let old: Vec<Segment> = segments.iter().filter(is_old).copied().collect();
        let generation = old.iter().map(|segment| segment.generation).max().unwrap_or(0) + 1;
        let term = group.raft.term();
        RepairStep::Copy(RepairPlan {
            tag,
            term,
            replica,
            others,
            base_offset,
            from,
            up_to,
            old,
            generation,
        })
    }

    /// Tells of segments that were copied, in order, in the place of `old`. What has lost its place comes out as gone: that,
    /// or the new ones where the partition has moved on meanwhile. Whether they count.
    pub fn put_repaired(&mut self, id: GroupId, old: &[Segment], new: &[NamedSegment]) -> bool {
        let segments: Vec<Segment> = new.iter().map(|named| named.segment).collect();
        let segments_gone = &mut self.shared.effects.segments_gone;
        let group = live_mut(&mut self.groups, id);
        let put = group.and_then(|group| group.segments.put(old, &segments).then_some(group));
        let Some(group) = put else {
            segments_gone.extend(new);
            return false;
        };
        let named = |segment: &Segment| Some(NamedSegment { segment: *segment, ..*new.first()? });
        segments_gone.extend(old.iter().filter_map(named));
        segments_gone.extend(group.take_segments_before(group.log_start_offset));
        true
    }
}
