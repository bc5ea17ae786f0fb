//! Filling: a replica that gets the snapshot of a partition copies the records that it stands for, and takes it then.
//!
//! A partition's snapshot has its place, members, epochs, offsets and producers, and no records. So it is kept aside
//! while records come from the leader and become segments here, from where this replica's own segments end up to the
//! snapshot's end. Once they are all there Raft gets the snapshot, and the log goes on behind it. What is written stays
//! whatever becomes of the snapshot: the next one finds it. Nothing here reads or writes: the shell is told
//! ([`FillStep`]) and tells what came of it.
//!
//! - I1: Raft gets a snapshot of a partition only when segments stand for all its records from its log start on. Where the
//!   leader's log starts later by then, or this replica's own does, so does the snapshot.
//! - I2: records come from a leader that has committed and applied them, and so have those in segments: no change of
//!   leader makes them void, and records beyond what this replica has applied do no harm.
//! - I3: at most [`FILLS_MAX`] copy at a time, each with one call and one write under way and at most
//!   32 MiB and one answer in memory beside the write; the others wait in the order in which they came.
//! - I4: at most 64 MiB of snapshots are kept, or one. One that does not fit is dropped: its leader hears
//!   nothing of it, and sends another.
//! - I5: each [`FillStep`] is answered once, and an answer to a step of an earlier beginning is dropped, but for the
//!   segments in it.

use std::collections::BTreeMap;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, Offset, ReplicaId, Term};
use chronik_replication::{Message, MessageType, SnapshotHead};

mod copying;
mod parked;

use self::copying::Copying;
pub(super) use self::parked::Fills;
use super::group::{Group, Machine};
use super::{FetchError, NamedSegment, ReadPlan, ShardCore, Shared, live_mut};
use crate::catalog::PartitionTag;

/// Groups that copy at a time.
pub const FILLS_MAX: usize = 2;

/// Names a beginning of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct FillId(u64);

/// Something to do for a fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FillStep {
    /// Ask the leader; answered by [`ShardCore::fill_answered`].
    Ask(FillAsk),
    /// Write segments; answered by [`ShardCore::fill_written`].
    Write(FillWrite),
}

/// Records that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillAsk {
    /// For what.
    pub fill: FillId,
    /// The partition's group.
    pub group: GroupId,
    /// Who copies.
    pub replica: ReplicaId,
    /// Whom to ask.
    pub leader: ReplicaId,
    /// The first offset wanted.
    pub from: Offset,
    /// Up to where it will be asked for more; an answer may go on behind it.
    pub up_to: Offset,
    /// Bytes of batches; the first one whatever its size.
    pub bytes_max: usize,
}

/// Records that are to become segments, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FillWrite {
    /// For what.
    pub fill: FillId,
    /// The partition's group.
    pub group: GroupId,
    /// Whose segments they are.
    pub tag: PartitionTag,
    /// The term of the leader that they come from.
    pub term: Term,
    /// The first offset that they stand for; batches before it are left out.
    pub from: Offset,
    /// The batches.
    pub chunks: Vec<FillChunk>,
}

/// Whole batches, one after the other, base offset and leader epoch patched in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FillChunk {
    /// The offset after the last.
    pub end_offset: Offset,
    /// The batches.
    pub bytes: Bytes,
}

/// What a leader says to a [`FillAsk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FillAnswer {
    /// The batch that holds the first offset wanted, or the first after it, and what follows.
    Records(FillChunk),
    /// The partition's log starts behind what is wanted.
    LogStart(Offset),
    /// Nothing, for now.
    Failed,
}

impl ShardCore {
    /// Keeps a snapshot that records are missing for; every other message is given back, to be stepped.
    pub(super) fn park_snapshot(&mut self, id: GroupId, mut message: Message) -> Option<Message> {
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return Some(message);
        }
        let Some(group) = live_mut(&mut self.groups, id) else {
            return Some(message);
        };
        let Some(head) = group.head_without_records(&message) else {
            SnapshotHead::raise_log_start(&mut message, group.log_start_offset);
            return Some(message);
        };
        let leader = ReplicaId(message.from);
        group.tick(&mut self.shared);
        // The replica lives on under its leader while it copies.
        let heard = group.raft.hear_leader(&message);
        group.observe_leadership(&mut self.shared);
        group.pump(&mut self.shared);
        let is_led = group.raft.leader() == Some(leader) && group.raft.term().0 == message.term;
        if heard.is_err() || !is_led {
            self.shared.messages_refused += 1;
            self.shared.counted.dropped(id);
            return None;
        }
        let start = head.log_start_offset.max(group.log_start_offset);
        if !self.fills.park(id, message, head, start) {
            self.shared.counted.dropped(id);
            tracing::debug!("group {id}: its snapshot is dropped, too many wait for records");
        }
        self.drive_fill(id);
        self.begin_fills();
        None
    }

    /// What came of a [`FillAsk`] that began at `from`.
    pub fn fill_answered(
        &mut self,
        group: GroupId,
        fill: FillId,
        from: Offset,
        answer: FillAnswer,
    ) {
        let Some(found) = self.fills.copying(group, fill) else { return };
        let Some(copying) = &mut found.copying else { return };
        copying.is_asked = false;
        match answer {
            FillAnswer::Records(chunk)
                if from == copying.next && chunk.end_offset > from && !chunk.bytes.is_empty() =>
            {
                copying.take(chunk);
            }
            FillAnswer::LogStart(start) if start > from => {
                found.start = found.start.max(start);
                self.begin_again(group, false);
            }
            FillAnswer::Records(_) | FillAnswer::LogStart(_) | FillAnswer::Failed => copying.fail(),
        }
        self.drive_fill(group);
        self.begin_fills();
    }

    /// What came of a [`FillWrite`]: the segments that were written, in order, and whether they are all.
    pub fn fill_written(
        &mut self,
        group: GroupId,
        fill: FillId,
        segments: Vec<NamedSegment>,
        is_all: bool,
    ) {
        for segment in segments {
            self.add_segment(group, segment);
        }
        let Some(found) = self.fills.copying(group, fill) else { return };
        if let Some(copying) = &mut found.copying {
            copying.is_writing = false;
        }
        if !is_all {
            self.begin_again(group, true);
        }
        self.drive_fill(group);
        self.begin_fills();
    }

    /// A replica of a group that is led here asks for records from `from` on: it has its snapshot, and each time that it
    /// has come further it gets time to install it.
    pub fn fill_heard(&mut self, group: GroupId, replica: ReplicaId, from: Offset) {
        if let Some(group) = live_mut(&mut self.groups, group) {
            group.raft.report_snapshot_progress(replica, from);
        }
    }

    /// A replica of a group that is led here has taken another part of the snapshot that is sent to it: it gets time for the
    /// next one.
    pub fn snapshot_part_taken(&mut self, group: GroupId, replica: ReplicaId) {
        if let Some(group) = live_mut(&mut self.groups, group) {
            group.raft.report_snapshot_part(replica);
        }
    }

    /// Where the records from `from` on are that another replica copies. What is applied here is committed for good: a
    /// leader without a quorum may give it, too, and must where the quorum waits for it.
    ///
    /// # Errors
    /// If the partition is not here, its log starts later, or this replica has nothing there.
    pub fn plan_fill(
        &self,
        group: GroupId,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadPlan, FetchError> {
        let found = self.live(group).ok_or(FetchError::UnknownPartition)?;
        let high_watermark = found.high_watermark();
        let log_start_offset = found.log_start_offset;
        if from < log_start_offset {
            let (offset, end_offset) = (from, high_watermark);
            return Err(FetchError::OffsetOutOfRange { offset, log_start_offset, end_offset });
        }
        if from >= high_watermark {
            return Err(FetchError::NotLeader);
        }
        let plan = ReadPlan { high_watermark, log_start_offset, ..ReadPlan::default() };
        Ok(self.plan_batches(plan, group, from, bytes_max))
    }

    /// The partitions whose snapshots wait for records, and up to where these are there.
    pub fn fills(&self) -> impl Iterator<Item = (GroupId, Offset, Offset)> {
        self.fills.by_group.iter().filter_map(|(id, fill)| {
            let stored_to = self.stored_to(*id)?;
            Some((*id, stored_to, fill.head.applied_end_offset))
        })
    }

    /// To be called at each tick.
    pub(super) fn tick_fills(&mut self) {
        let ids: Vec<GroupId> = self.fills.by_group.keys().copied().collect();
        for id in ids {
            let fill = self.fills.by_group.get_mut(&id);
            if let Some(copying) = fill.and_then(|fill| fill.copying.as_mut()) {
                copying.pause_ticks = copying.pause_ticks.saturating_sub(1);
            }
            self.drive_fill(id);
        }
        self.begin_fills();
    }

    /// Nobody fills this group any more; what is written of it stays, or goes with it.
    pub(super) fn drop_fill(&mut self, group: GroupId) {
        drop(self.fills.remove(group));
    }

    pub(super) fn drop_fills(&mut self) {
        self.fills.clear();
    }

    /// Lets those that wait copy, as many as may (I3).
    fn begin_fills(&mut self) {
        while self.fills.copying_count() < FILLS_MAX
            && let Some(id) = self.fills.waiting.pop_front()
        {
            self.begin_again(id, false);
            self.drive_fill(id);
        }
    }

    /// Begins to copy, or begins anew, where the segments end that there are.
    fn begin_again(&mut self, id: GroupId, is_failure: bool) {
        let fill_id = self.fills.next_id();
        let Some(fill) = self.fills.by_group.get_mut(&id) else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let from = group.clear_for_fill(fill.start, &mut self.shared);
        let failures = fill.copying.as_ref().map_or(0, |copying| copying.failures);
        let copying = fill.copying.insert(Copying::new(fill_id, from));
        if is_failure {
            copying.failures = failures;
            copying.fail();
        }
    }

    /// Does what there is to do next for a fill.
    fn drive_fill(&mut self, id: GroupId) {
        let Some(fill) = self.fills.by_group.get_mut(&id) else { return };
        let group = live_mut(&mut self.groups, id);
        let Some(group) = group.filter(|group| !fill.is_void(group)) else {
            self.drop_fill(id);
            return;
        };
        let Some(copying) = &mut fill.copying else { return };
        let stored_to = group.clear_for_fill(fill.start, &mut self.shared);
        let end = fill.head.applied_end_offset;
        if stored_to >= end {
            self.finish_fill(id);
            return;
        }
        if !copying.go_on_from(stored_to) {
            self.begin_again(id, false);
        }
        let (leader, replica) = (group_leader(&self.groups, id), self.replica(id));
        let Some(fill) = self.fills.by_group.get_mut(&id) else { return };
        let Some(copying) = &mut fill.copying else { return };
        let tag = self.groups.get(&id).and_then(Group::tag);
        let (Some(tag), Some(leader), Some(replica)) = (tag, leader, replica) else { return };
        if let Some((from, chunks)) = copying.take_write(end) {
            let (fill, term) = (copying.id, Term(fill.snapshot.term));
            let write = FillWrite { fill, group: id, tag, term, from, chunks };
            self.shared.effects.fills.push(FillStep::Write(write));
        }
        if let Some((from, bytes_max)) = copying.take_ask(end) {
            let fill = copying.id;
            let ask = FillAsk { fill, group: id, replica, leader, from, up_to: end, bytes_max };
            self.shared.effects.fills.push(FillStep::Ask(ask));
        }
    }

    /// All records are there: Raft gets the snapshot (I1).
    fn finish_fill(&mut self, id: GroupId) {
        let Some(mut fill) = self.fills.remove(id) else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        SnapshotHead::raise_log_start(&mut fill.snapshot, fill.start);
        if let Err(error) = group.raft.step(fill.snapshot) {
            self.shared.messages_refused += 1;
            self.shared.counted.dropped(id);
            tracing::warn!("{}: the snapshot that was filled is refused: {error}", group.label());
        }
        group.observe_leadership(&mut self.shared);
        group.pump(&mut self.shared);
    }
}

fn group_leader(groups: &BTreeMap<GroupId, Group>, id: GroupId) -> Option<ReplicaId> {
    groups.get(&id).and_then(|group| group.raft.leader())
}

impl Group {
    /// What a snapshot says of its place, if Raft would put it in the place of this replica's log and records are missing
    /// here that it stands for.
    fn head_without_records(&self, message: &Message) -> Option<SnapshotHead> {
        if !matches!(self.machine, Machine::Partition(_)) || self.raft.check(message).is_err() {
            return None;
        }
        let head = SnapshotHead::of(message)?;
        let position = head.position;
        let is_taken = message.term >= self.raft.term().0
            && position.index > self.raft.commit_index()
            && self.raft.term_at(position.index) != Some(position.term);
        let start = head.log_start_offset.max(self.log_start_offset);
        let is_missing = self.segments.covered_to(start) < head.applied_end_offset;
        // Without a name there is no place for records: no topic's partition is like that.
        (is_taken && is_missing && self.tag().is_some()).then_some(head)
    }

    /// Lets go of what lies before `start`, which the leader does not have any more, and of segments behind a gap; says
    /// from where on records are missing.
    fn clear_for_fill(&mut self, start: Offset, shared: &mut Shared) -> Offset {
        self.log_start_offset = self.log_start_offset.max(start.min(self.high_watermark()));
        let mut gone = self.take_segments_before(start);
        let stored_to = self.segments.covered_to(start);
        let behind_gap = self.take_segments_from(stored_to);
        shared.segments_taken_back += behind_gap.len() as u64;
        gone.extend(behind_gap);
        shared.effects.segments_gone.extend(gone);
        stored_to
    }
}
