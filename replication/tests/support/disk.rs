//! What a disk holds: the durable records of one group, replayed.

use bytes::{Buf, BufMut, Bytes};
use chronik_engine::ids::{Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{
    EntryKind, EpochStart, GroupCheckpoint, GroupMeta, HardState, LogEntry, LogPosition, WalRecord,
};
use chronik_replication::RecoveredLog;

use super::{BATCH_BYTES, GROUP, HEAD_BYTES};

/// So many terms that ended before the log's start stay known.
const ENDED_EPOCHS_MAX: usize = 256;

/// What a disk holds: the durable records of one group, replayed.
#[derive(Debug, Clone)]
pub struct Disk {
    pub checkpoint: GroupCheckpoint,
    hard_state: HardState,
    log_start: LogPosition,
    pub log_start_offset: Offset,
    end_offset_before: Offset,
    epochs_before: Vec<EpochStart>,
    /// From the log's start on.
    pub entries: Vec<LogEntry>,
}

impl Disk {
    pub fn created(meta: GroupMeta) -> Disk {
        Disk::of(GroupCheckpoint::created(GROUP, meta))
    }

    fn of(checkpoint: GroupCheckpoint) -> Disk {
        Disk {
            hard_state: checkpoint.hard_state,
            log_start: checkpoint.log_start,
            log_start_offset: checkpoint.log_start_offset,
            end_offset_before: checkpoint.applied_end_offset,
            epochs_before: checkpoint.epochs.clone(),
            entries: Vec::new(),
            checkpoint,
        }
    }

    pub fn last(&self) -> LogPosition {
        let last = self.entries.last();
        last.map_or(self.log_start, |e| LogPosition { index: e.index, term: e.term })
    }

    pub fn log_start(&self) -> LogPosition {
        self.log_start
    }

    pub fn entry(&self, index: RaftIndex) -> Option<&LogEntry> {
        let at = index.0.checked_sub(self.log_start.index.0 + 1)?;
        self.entries.get(usize::try_from(at).unwrap())
    }

    /// Whether the entry is there, or what a snapshot or a cut made of it.
    pub fn holds(&self, index: RaftIndex, term: Term) -> bool {
        index <= self.log_start.index || self.entry(index).is_some_and(|entry| entry.term == term)
    }

    /// The entries in `from..up_to`, as far as they are there.
    pub fn range(&self, from: RaftIndex, up_to: RaftIndex) -> Vec<LogEntry> {
        (from.0..up_to.0).map_while(|index| self.entry(RaftIndex(index))).cloned().collect()
    }

    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    fn end_offset(&self) -> Offset {
        self.entries.last().map_or(self.end_offset_before, LogEntry::end_offset)
    }

    fn truncate_after(&mut self, index: RaftIndex) {
        assert!(index >= self.hard_state.commit, "a committed entry is cut: {index}");
        self.entries.retain(|entry| entry.index <= index);
    }

    fn check_hard_state(&self, state: HardState) {
        let before = self.hard_state;
        assert!(state.term >= before.term, "{state:?} after {before:?}");
        if state.term == before.term && before.vote != ReplicaId::NONE {
            assert_eq!(state.vote, before.vote, "one vote in each term");
        }
    }

    pub fn write(&mut self, record: &WalRecord) {
        assert_eq!(record.group(), GROUP);
        match record {
            WalRecord::Entry { entry, .. } => {
                assert_eq!(entry.index, self.last().index.next(), "entries are contiguous");
                assert!(entry.term >= self.last().term, "terms rise");
                assert_eq!(entry.base_offset, self.end_offset(), "offsets are contiguous");
                if entry.kind == EntryKind::Batch {
                    assert_eq!(entry.payload.len(), BATCH_BYTES, "no cut batch is written");
                }
                self.entries.push(entry.clone());
            }
            WalRecord::HardState { state, .. } => {
                self.check_hard_state(*state);
                assert!(state.commit <= self.last().index, "commit beyond the log");
                self.hard_state = *state;
            }
            WalRecord::TruncateAfter { index, .. } => {
                assert!(*index < self.last().index, "nothing to cut");
                self.truncate_after(*index);
            }
            WalRecord::LogStart { position, offset, .. } => self.start_after(*position, *offset),
            WalRecord::Checkpoint(checkpoint) => self.install(checkpoint),
            WalRecord::GroupCreated { .. } | WalRecord::GroupDeleted { .. } => {}
        }
    }

    fn start_after(&mut self, position: LogPosition, offset: Offset) {
        assert!(position.index <= self.checkpoint.applied, "a start could not go on from there");
        let epochs = self.epochs();
        let cut = self.entry(position.index).map(LogEntry::end_offset);
        self.end_offset_before = cut.expect("the log is cut at an entry that it has");
        self.entries.retain(|entry| entry.index > position.index);
        self.log_start = position;
        self.log_start_offset = offset;
        self.epochs_before = epochs.into_iter().filter(|run| run.index <= position.index).collect();
    }

    /// A snapshot takes the place of everything.
    fn install(&mut self, checkpoint: &GroupCheckpoint) {
        assert!(checkpoint.is_install(), "a whole group in one record: {checkpoint:?}");
        self.check_hard_state(checkpoint.hard_state);
        assert!(checkpoint.last.index > self.hard_state.commit, "a snapshot leads on");
        assert_eq!(checkpoint.meta.replica, self.checkpoint.meta.replica);
        let goes_on_in = checkpoint.epochs.last().map(|run| run.epoch);
        assert_eq!(goes_on_in, Some(checkpoint.last.term), "the term that the log goes on in");
        assert!(checkpoint.epochs.is_sorted_by(|one, next| one.epoch < next.epoch));
        let state = decode_state(&checkpoint.state.clone().into());
        let last = state.last().expect("a snapshot of nothing");
        assert_eq!((last.index, last.term), (checkpoint.last.index, checkpoint.last.term));
        assert_eq!(last.end_offset(), checkpoint.applied_end_offset);
        *self = Disk::of(checkpoint.clone());
    }

    /// A checkpoint as it stands at the start of a file.
    pub fn write_checkpoint(&mut self, checkpoint: GroupCheckpoint) {
        assert_eq!(checkpoint.last, self.last(), "a checkpoint says what is durable");
        assert_eq!(checkpoint.log_start, self.log_start);
        assert_eq!(checkpoint.epochs, self.epochs(), "and no more");
        // A restart may have raised the term to that of the last entry.
        self.check_hard_state(checkpoint.hard_state);
        assert!(checkpoint.hard_state.commit >= self.hard_state.commit);
        assert!(checkpoint.hard_state.commit <= self.last().index);
        assert!(checkpoint.applied <= checkpoint.hard_state.commit);
        self.hard_state = checkpoint.hard_state;
        self.checkpoint = checkpoint;
    }

    fn epochs(&self) -> Vec<EpochStart> {
        let mut epochs = self.epochs_before.clone();
        for entry in &self.entries {
            if epochs.last().is_none_or(|run| run.epoch < entry.term) {
                let (epoch, index, offset) = (entry.term, entry.index, entry.base_offset);
                epochs.push(EpochStart { epoch, index, offset });
            }
        }
        let start = self.log_start.index;
        let ended = epochs.windows(2).take_while(|pair| pair[1].index <= start).count();
        epochs.split_off(ended.saturating_sub(ENDED_EPOCHS_MAX))
    }

    /// As the engine recovers it: batches are cut to their headers.
    pub fn recovered(&self) -> RecoveredLog {
        let applied = self.checkpoint.applied;
        let mut entries: Vec<_> =
            self.entries.iter().filter(|entry| entry.index > applied).cloned().collect();
        for entry in entries.iter_mut().filter(|entry| entry.kind == EntryKind::Batch) {
            entry.payload.truncate(HEAD_BYTES);
        }
        let epochs = self.epochs();
        let checkpoint = GroupCheckpoint { epochs, ..self.checkpoint.clone() };
        RecoveredLog::from_checkpoint(
            &checkpoint,
            self.hard_state,
            self.log_start,
            entries,
            self.last(),
        )
    }

    /// The state machine as of the checkpoint.
    pub fn state(&self) -> Vec<LogEntry> {
        decode_state(&self.checkpoint.state.clone().into())
    }
}

/// The state machine of these tests: all that was applied, but for the ends of the payloads.
pub fn encode_state(state: &[LogEntry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in state {
        bytes.put_u64(entry.index.0);
        bytes.put_u64(entry.term.0);
        bytes.put_u8(match entry.kind {
            EntryKind::Noop => 0,
            EntryKind::Batch => 1,
            EntryKind::Command => 2,
            EntryKind::ConfChange => 3,
        });
        bytes.put_i64(entry.base_offset.0);
        bytes.put_u32(entry.offset_count);
        bytes.put_i64(entry.max_timestamp_ms);
        let head = &entry.payload[..entry.payload.len().min(HEAD_BYTES)];
        bytes.put_u8(u8::try_from(head.len()).unwrap());
        bytes.put_slice(head);
    }
    bytes
}

pub fn decode_state(bytes: &Bytes) -> Vec<LogEntry> {
    let mut bytes = bytes.clone();
    let mut state = Vec::new();
    while bytes.has_remaining() {
        let (index, term) = (RaftIndex(bytes.get_u64()), Term(bytes.get_u64()));
        let kind = [EntryKind::Noop, EntryKind::Batch, EntryKind::Command, EntryKind::ConfChange]
            [usize::from(bytes.get_u8())];
        let base_offset = Offset(bytes.get_i64());
        let (offset_count, max_timestamp_ms) = (bytes.get_u32(), bytes.get_i64());
        let len = usize::from(bytes.get_u8());
        let payload = bytes.split_to(len);
        state.push(LogEntry {
            index,
            term,
            kind,
            base_offset,
            offset_count,
            max_timestamp_ms,
            payload,
        });
    }
    state
}
