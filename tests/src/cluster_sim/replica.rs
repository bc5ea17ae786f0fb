//! What the disk of one replica holds, as its log has said: hard state and entries, and whether a restart found them.
//!
//! - I1: only what the log has called durable is here, so it may lag behind the disk by the block in flight, never be
//!   ahead of it.

use bytes::Bytes;
use chronik_engine::batch::HEADER_BYTES;
use chronik_engine::ids::{Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::RecoveredGroup;
use chronik_engine::wal::record::{EntryKind, HardState, LogEntry, WalRecord};

use super::Check;
use crate::must;

/// Where the fields lie in a batch that the broker sets.
const BASE_OFFSET_END: usize = 8;
const LENGTH_END: usize = 12;
const EPOCH_END: usize = 16;

/// An entry, and enough of it to tell it from all others.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its term.
    pub term: Term,
    /// What it carries.
    pub kind: EntryKind,
    /// Of its payload, without what the broker sets in it.
    pub digest: u32,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// The command, or the batch or its header.
    pub payload: Bytes,
}

impl Known {
    /// What there is to know of an entry.
    pub fn of(entry: &LogEntry) -> Known {
        Known {
            term: entry.term,
            kind: entry.kind,
            digest: digest(entry),
            base_offset: entry.base_offset,
            end_offset: entry.end_offset(),
            payload: entry.payload.clone(),
        }
    }

    /// Whether it is the same entry.
    pub fn is_same(&self, other: &Known) -> bool {
        (self.term, self.kind, self.digest) == (other.term, other.kind, other.digest)
            && (self.base_offset, self.end_offset) == (other.base_offset, other.end_offset)
    }
}

/// A batch's header has a checksum of the rest, so the header is enough, and all that recovery gives.
fn digest(entry: &LogEntry) -> u32 {
    if entry.kind != EntryKind::Batch {
        return crc32fast::hash(&entry.payload);
    }
    let header = &entry.payload[..HEADER_BYTES.min(entry.payload.len())];
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.get(BASE_OFFSET_END..LENGTH_END).unwrap_or_default());
    hasher.update(header.get(EPOCH_END..).unwrap_or_default());
    hasher.finalize()
}

/// The disk of one replica.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    /// The newest hard state.
    pub hard_state: HardState,
    /// The entry with index 1 first.
    pub entries: Vec<Known>,
    /// Whether its deletion is durable.
    pub is_deleted: bool,
    /// Whether its disk is gone.
    pub is_lost: bool,
}

fn place(index: RaftIndex) -> usize {
    usize::try_from(index.0).unwrap_or(usize::MAX)
}

impl Replica {
    /// A replica that was just made.
    pub fn created() -> Replica {
        Replica::default()
    }

    /// The entry with this index.
    pub fn entry(&self, index: RaftIndex) -> Option<&Known> {
        self.entries.get(place(index).checked_sub(1)?)
    }

    /// The last index.
    pub fn last(&self) -> RaftIndex {
        RaftIndex(self.entries.len() as u64)
    }

    /// A record of it is durable (P5). `chosen` are the entries of its group that are committed.
    pub fn take(&mut self, record: &WalRecord, chosen: &[Known]) -> Check {
        match record {
            WalRecord::Entry { entry, .. } => {
                let at = place(entry.index) - 1;
                self.truncate(at, chosen)?;
                let length = self.entries.len();
                must!(at == length, "P5: entry {} follows {length} entries", entry.index);
                // It may be another one than is committed: a leader that is none any more writes, too.
                self.entries.push(Known::of(entry));
            }
            WalRecord::TruncateAfter { index, .. } => self.truncate(place(*index), chosen)?,
            WalRecord::HardState { state, .. } => {
                let before = std::mem::replace(&mut self.hard_state, *state);
                let revoted = before.term == state.term
                    && before.vote != ReplicaId::NONE
                    && before.vote != state.vote;
                let goes_on = before.term <= state.term && before.commit <= state.commit;
                must!(goes_on && !revoted, "P5: {state:?} follows {before:?}");
                let is_within = state.commit <= self.last();
                must!(is_within, "P5: {state:?}, the log ends at {}", self.last());
            }
            WalRecord::GroupDeleted { .. } => self.is_deleted = true,
            WalRecord::Checkpoint(checkpoint) => {
                // A snapshot in the place of the log: what it stands for is committed.
                let upto = place(checkpoint.last.index);
                let length = chosen.len();
                must!(upto <= length, "P12: a snapshot at {upto}, {length} entries are committed");
                self.entries = chosen[..upto].to_vec();
                self.hard_state = checkpoint.hard_state;
            }
            WalRecord::GroupCreated { .. } | WalRecord::LogStart { .. } => {}
        }
        Ok(())
    }

    fn truncate(&mut self, length: usize, chosen: &[Known]) -> Check {
        for (at, known) in self.entries.iter().enumerate().skip(length) {
            let is_chosen = chosen.get(at).is_some_and(|chosen| chosen.is_same(known));
            must!(!is_chosen, "P5: entry {} is committed and is removed: {known:?}", at + 1);
        }
        self.entries.truncate(length);
        Ok(())
    }

    /// Whether a restart has found just this; else what is different.
    pub fn compare(&self, found: &RecoveredGroup) -> Check {
        let last = self.entries.last().map_or(Term(0), |known| known.term);
        let (ours, theirs) = ((self.last(), last), (found.last.index, found.last.term));
        must!(ours == theirs, "P5: the log ended at {ours:?}, ends at {theirs:?}");
        for entry in &found.entries {
            let (known, now) = (self.entry(entry.index), Known::of(entry));
            let agrees = known.is_some_and(|known| known.is_same(&now));
            must!(agrees, "P2: entry {} was {known:?}, is {now:?}", entry.index);
        }
        self.compare_hard_state(found.hard_state)
    }

    /// Whether this hard state is the one that is durable, but for a commit that may have moved on.
    pub fn compare_hard_state(&self, now: HardState) -> Check {
        let before = self.hard_state;
        let same =
            (before.term, before.vote) == (now.term, now.vote) && before.commit <= now.commit;
        must!(same, "P5: the hard state was {before:?}, is {now:?}");
        Ok(())
    }
}
