//! Replay: what the records of the active file make of each group.
//!
//! It reads no file. It keeps of each batch only the batch's header, so that recovery needs memory for entries, not for
//! their records.
//!
//! - I1: a group's entries are contiguous and end at `last`; what is missing between the checkpoint's applied index and
//!   the first of them lies in older files.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::block::{BATCH_HEAD_BYTES, Row, SlotKind};
use super::error::Contradiction;
use super::record::{
    EntryKind, EpochStart, GroupCheckpoint, HardState, LogEntry, LogPosition, WalRecord,
};
use crate::ids::{GroupId, Offset, RaftIndex, Term};

/// Why a row cannot be replayed.
#[derive(Debug)]
pub(super) enum ReplayError {
    /// It cannot be decoded.
    Record,
    /// It contradicts what is before it.
    Contradiction { group: GroupId, source: Contradiction },
}

/// One group as far as it was replayed.
#[derive(Debug)]
pub(super) struct GroupReplay {
    pub checkpoint: GroupCheckpoint,
    pub hard_state: HardState,
    pub log_start: LogPosition,
    pub log_start_offset: Offset,
    pub last: LogPosition,
    pub entries: Vec<LogEntry>,
}

impl GroupReplay {
    fn new(checkpoint: GroupCheckpoint) -> GroupReplay {
        GroupReplay {
            hard_state: checkpoint.hard_state,
            log_start: checkpoint.log_start,
            log_start_offset: checkpoint.log_start_offset,
            last: checkpoint.last,
            entries: Vec::new(),
            checkpoint,
        }
    }

    /// The first index that the state machine still has to see.
    pub fn first_needed(&self) -> RaftIndex {
        self.checkpoint.applied.max(self.log_start.index).next()
    }

    fn term_at(&self, index: RaftIndex) -> Term {
        if index == self.log_start.index {
            return self.log_start.term;
        }
        let starts = self.checkpoint.epochs.iter().rev();
        starts.into_iter().find(|start| start.index <= index).map_or(Term(0), |start| start.epoch)
    }

    fn truncate_after(&mut self, index: RaftIndex) -> Result<(), Contradiction> {
        if index >= self.last.index {
            return Ok(());
        }
        if index < self.checkpoint.applied {
            let applied = self.checkpoint.applied;
            return Err(Contradiction::Applied { applied, found: index.next() });
        }
        let index = index.max(self.log_start.index);
        while self.entries.last().is_some_and(|entry| entry.index > index) {
            self.entries.pop();
        }
        self.checkpoint.epochs.retain(|start| start.index <= index);
        self.last = LogPosition { index, term: self.term_at(index) };
        Ok(())
    }

    fn append(&mut self, entry: LogEntry) -> Result<(), Contradiction> {
        let expected = self.last.index.next();
        if entry.index > expected {
            return Err(Contradiction::IndexGap { expected, found: entry.index });
        }
        self.truncate_after(RaftIndex(entry.index.0 - 1))?;
        let epochs = &mut self.checkpoint.epochs;
        if epochs.last().is_none_or(|start| start.epoch < entry.term) {
            let (epoch, index, offset) = (entry.term, entry.index, entry.base_offset);
            epochs.push(EpochStart { epoch, index, offset });
        }
        self.last = LogPosition { index: entry.index, term: entry.term };
        self.entries.push(reduced(entry));
        Ok(())
    }

    fn start_after(&mut self, position: LogPosition, offset: Offset) {
        if position.index >= self.log_start.index {
            self.log_start = position;
        }
        self.log_start_offset = self.log_start_offset.max(offset);
        self.entries.retain(|entry| entry.index > position.index);
        if position.index >= self.last.index {
            self.last = position;
        }
    }

    /// A checkpoint among the data: a snapshot took the place of the log, or of its beginning.
    fn restate(&mut self, checkpoint: GroupCheckpoint) {
        let (applied, last) = (checkpoint.applied, checkpoint.last);
        let mut entries = std::mem::take(&mut self.entries);
        let emptied = last.index == checkpoint.log_start.index;
        entries.retain(|e| !emptied && e.index > applied && e.index <= last.index);
        *self = GroupReplay { entries, ..GroupReplay::new(checkpoint) };
    }
}

/// All that recovery keeps of an entry's payload.
pub(super) fn reduced(mut entry: LogEntry) -> LogEntry {
    if entry.kind == EntryKind::Batch {
        let head = entry.payload.len().min(BATCH_HEAD_BYTES);
        entry.payload = Bytes::copy_from_slice(&entry.payload[..head]);
    } else if !entry.payload.is_empty() {
        // A copy too: a slice would keep the whole block it came in.
        entry.payload = Bytes::copy_from_slice(&entry.payload);
    }
    entry
}

/// The entries that a row of lost ones stands for.
pub(super) fn lost_entries(row: &super::block::Descriptor) -> impl Iterator<Item = LogEntry> {
    let (first, term, base_offset) = (row.index.0, row.term, Offset(row.base_offset));
    // The index holds no more of them in one extent.
    let span = row.span.min(u64::from(u32::MAX));
    (first..first.saturating_add(span)).map(move |index| LogEntry {
        index: RaftIndex(index),
        term,
        kind: EntryKind::Noop,
        base_offset,
        offset_count: 0,
        max_timestamp_ms: -1,
        payload: Bytes::new(),
    })
}

/// All groups of a shard as far as they were replayed.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub groups: BTreeMap<GroupId, GroupReplay>,
    /// Records of groups that are not here: their deletion won.
    pub orphans: u64,
}

impl Replay {
    /// A group as the file's checkpoint states it.
    pub fn state(&mut self, checkpoint: GroupCheckpoint) {
        self.groups.insert(checkpoint.group, GroupReplay::new(checkpoint));
    }

    pub fn apply(&mut self, row: &Row) -> Result<(), ReplayError> {
        let group = row.descriptor.group;
        let contradicts = |source| ReplayError::Contradiction { group, source };
        if row.descriptor.kind == SlotKind::Padding {
            return Ok(());
        }
        if row.descriptor.kind == SlotKind::Lost {
            let Some(replay) = self.groups.get_mut(&group) else {
                self.orphans += 1;
                return Ok(());
            };
            return lost_entries(&row.descriptor)
                .try_for_each(|entry| replay.append(entry))
                .map_err(contradicts);
        }
        let record = row.descriptor.record(&row.payload).ok_or(ReplayError::Record)?;
        if let WalRecord::GroupCreated { meta, .. } = record {
            self.state(GroupCheckpoint::created(group, meta));
            return Ok(());
        }
        let Some(replay) = self.groups.get_mut(&group) else {
            if let WalRecord::Checkpoint(checkpoint) = record {
                self.state(checkpoint);
            } else {
                self.orphans += 1;
            }
            return Ok(());
        };
        match record {
            WalRecord::Entry { entry, .. } => replay.append(entry).map_err(contradicts)?,
            WalRecord::HardState { state, .. } => replay.hard_state = state,
            WalRecord::TruncateAfter { index, .. } => {
                replay.truncate_after(index).map_err(contradicts)?;
            }
            WalRecord::LogStart { position, offset, .. } => replay.start_after(position, offset),
            WalRecord::Checkpoint(checkpoint) => replay.restate(checkpoint),
            WalRecord::GroupDeleted { .. } => {
                self.groups.remove(&group);
            }
            WalRecord::GroupCreated { .. } => {}
        }
        Ok(())
    }
}
