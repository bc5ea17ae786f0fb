//! Raft-rs entries to log entries and back.
//!
//! A raft-rs entry carries the payload in `data`, shared and never copied, and what a log entry says beside it in
//! `context`: a fixed layout with a version, little-endian, which travels to followers but is not what lies on disk.
//!
//! ```text
//! version u8 = 1 | kind u8 | reserved u16 = 0 | offset_count u32 | base_offset i64 | max_timestamp_ms i64
//! ```
//!
//! A leader's first entry and the entry by which raft-rs leaves a joint configuration are made by raft-rs itself and
//! carry no context: they stand at the offset where the log ends.
//!
//! Invariants: (I1) whatever bytes come in, decoding ends in a value or an [`EntryError`]; (I2) only batches take
//! offsets, and each takes at least one; (I3) an entry begins at the offset where the one before it ends.

use bytes::Bytes;
use chronik_engine::ids::{Offset, RaftIndex, Term};
use chronik_engine::wal::record::{EntryKind, LogEntry};
use raft::eraftpb::{Entry, EntryType};

use crate::error::ChangeError;

/// The size of an encoded context.
const CONTEXT_BYTES: usize = 24;
const CONTEXT_VERSION: u8 = 1;

const KIND_BATCH: u8 = 1;
const KIND_COMMAND: u8 = 2;
const KIND_CONF_CHANGE: u8 = 3;

/// What a leader is asked to append. It gets index, term and offset there.
#[derive(Debug, Clone)]
pub struct ProposedEntry {
    /// [`EntryKind::Batch`] or [`EntryKind::Command`].
    pub kind: EntryKind,
    /// How many offsets it takes: at least one for a batch, none for a command.
    pub offset_count: u32,
    /// The batch's greatest timestamp, -1 if it has none.
    pub max_timestamp_ms: i64,
    /// The batch as the producer sent it, or the command. Kept, not copied.
    pub payload: Bytes,
}

/// Why the context of an entry cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("the context has {length} bytes")]
    Length { length: usize },
    #[error("the context has version {version}")]
    Version { version: u8 },
    #[error("the kind {kind} is unknown or does not fit the entry's type")]
    Kind { kind: u8 },
    #[error("reserved bytes are set")]
    Reserved,
    #[error("it takes {offset_count} offsets from {base_offset} on")]
    Offsets { base_offset: Offset, offset_count: u32 },
    #[error("it begins at offset {found}, the log ends at {expected}")]
    OffsetGap { expected: Offset, found: Offset },
    #[error("an entry with a payload has no context")]
    NoContext,
    #[error("configuration changes of the first version are not used")]
    ConfChangeV1,
    #[error("a configuration change that no leader proposes")]
    Change {
        #[source]
        source: ChangeError,
    },
}

/// What a log entry says beside its place and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryMeta {
    pub(crate) kind: EntryKind,
    pub(crate) base_offset: Offset,
    pub(crate) offset_count: u32,
    pub(crate) max_timestamp_ms: i64,
}

impl EntryMeta {
    /// Of an entry that takes no offset.
    pub(crate) fn without_offsets(kind: EntryKind, end_offset: Offset) -> EntryMeta {
        EntryMeta { kind, base_offset: end_offset, offset_count: 0, max_timestamp_ms: -1 }
    }

    /// The offset that the entry after this one starts at.
    pub(crate) fn end_offset(&self) -> Offset {
        self.base_offset.plus(self.offset_count)
    }

    /// The context of the entry: nothing for a no-op, else the layout above in one allocation.
    pub(crate) fn to_context(self) -> Bytes {
        let kind = match self.kind {
            EntryKind::Noop => return Bytes::new(),
            EntryKind::Batch => KIND_BATCH,
            EntryKind::Command => KIND_COMMAND,
            EntryKind::ConfChange => KIND_CONF_CHANGE,
        };
        let mut context = [0_u8; CONTEXT_BYTES];
        context[0] = CONTEXT_VERSION;
        context[1] = kind;
        context[4..8].copy_from_slice(&self.offset_count.to_le_bytes());
        context[8..16].copy_from_slice(&self.base_offset.0.to_le_bytes());
        context[16..24].copy_from_slice(&self.max_timestamp_ms.to_le_bytes());
        // An owner is counted from the start; a copied slice would allocate its counter at the first clone.
        Bytes::from_owner(context)
    }

    /// Reads a context that is not empty.
    fn from_context(context: &[u8]) -> Result<EntryMeta, EntryError> {
        let context: &[u8; CONTEXT_BYTES] =
            context.try_into().map_err(|_| EntryError::Length { length: context.len() })?;
        let [version, kind, reserved @ ..] = context;
        let [r0, r1, c0, c1, c2, c3, offsets @ ..] = reserved;
        let [b0, b1, b2, b3, b4, b5, b6, b7, timestamp @ ..] = offsets;
        if *version != CONTEXT_VERSION {
            return Err(EntryError::Version { version: *version });
        }
        if (*r0, *r1) != (0, 0) {
            return Err(EntryError::Reserved);
        }
        let kind = match *kind {
            KIND_BATCH => EntryKind::Batch,
            KIND_COMMAND => EntryKind::Command,
            KIND_CONF_CHANGE => EntryKind::ConfChange,
            kind => return Err(EntryError::Kind { kind }),
        };
        let offset_count = u32::from_le_bytes([*c0, *c1, *c2, *c3]);
        let base_offset = Offset(i64::from_le_bytes([*b0, *b1, *b2, *b3, *b4, *b5, *b6, *b7]));
        let counted = (kind == EntryKind::Batch) == (offset_count > 0);
        let in_range =
            base_offset.0 >= 0 && base_offset.0.checked_add(i64::from(offset_count)).is_some();
        if !counted || !in_range {
            return Err(EntryError::Offsets { base_offset, offset_count });
        }
        let max_timestamp_ms = i64::from_le_bytes(*timestamp);
        Ok(EntryMeta { kind, base_offset, offset_count, max_timestamp_ms })
    }

    /// What `entry` is, given that the log before it ends at `end_offset`.
    pub(crate) fn of(entry: &Entry, end_offset: Offset) -> Result<EntryMeta, EntryError> {
        let conf_change = match entry.get_entry_type() {
            EntryType::EntryNormal => false,
            EntryType::EntryConfChangeV2 => true,
            EntryType::EntryConfChange => return Err(EntryError::ConfChangeV1),
        };
        if entry.context.is_empty() {
            if !entry.data.is_empty() {
                return Err(EntryError::NoContext);
            }
            let kind = if conf_change { EntryKind::ConfChange } else { EntryKind::Noop };
            return Ok(EntryMeta::without_offsets(kind, end_offset));
        }
        let meta = EntryMeta::from_context(&entry.context)?;
        if conf_change != (meta.kind == EntryKind::ConfChange) {
            return Err(EntryError::Kind { kind: entry.context[1] });
        }
        if meta.base_offset != end_offset {
            return Err(EntryError::OffsetGap { expected: end_offset, found: meta.base_offset });
        }
        Ok(meta)
    }

    /// The offset after an entry that stands in the log already, if the entry itself tells.
    pub(crate) fn end_offset_of(entry: &Entry) -> Option<Offset> {
        EntryMeta::from_context(&entry.context).ok().map(|meta| meta.end_offset())
    }
}

/// An entry in memory, with its context encoded once.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) entry: LogEntry,
    context: Bytes,
}

impl Slot {
    /// Of an entry that raft-rs wants appended.
    pub(crate) fn from_raft(entry: Entry, end_offset: Offset) -> Result<Slot, EntryError> {
        let meta = EntryMeta::of(&entry, end_offset)?;
        Ok(Slot {
            entry: LogEntry {
                index: RaftIndex(entry.index),
                term: Term(entry.term),
                kind: meta.kind,
                base_offset: meta.base_offset,
                offset_count: meta.offset_count,
                max_timestamp_ms: meta.max_timestamp_ms,
                payload: entry.data,
            },
            context: entry.context,
        })
    }

    /// Of an entry from the write-ahead log.
    pub(crate) fn from_log(entry: LogEntry) -> Slot {
        let meta = EntryMeta {
            kind: entry.kind,
            base_offset: entry.base_offset,
            offset_count: entry.offset_count,
            max_timestamp_ms: entry.max_timestamp_ms,
        };
        Slot { context: meta.to_context(), entry }
    }

    /// The entry as raft-rs knows it; bytes are shared.
    pub(crate) fn to_raft(&self) -> Entry {
        let entry_type = match self.entry.kind {
            EntryKind::Noop | EntryKind::Batch | EntryKind::Command => EntryType::EntryNormal,
            EntryKind::ConfChange => EntryType::EntryConfChangeV2,
        };
        Entry {
            entry_type,
            term: self.entry.term.0,
            index: self.entry.index.0,
            data: self.entry.payload.clone(),
            context: self.context.clone(),
            ..Entry::default()
        }
    }

    /// What the entry costs in a message, about.
    pub(crate) fn size(&self) -> u64 {
        let bytes = self.entry.payload.len().saturating_add(self.context.len()).saturating_add(16);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch() -> EntryMeta {
        EntryMeta {
            kind: EntryKind::Batch,
            base_offset: Offset(0x0102_0304),
            offset_count: 7,
            max_timestamp_ms: -2,
        }
    }

    #[test]
    fn given_a_batch_when_its_context_is_encoded_then_the_bytes_are_those_of_version_one() {
        let golden = [
            1, 1, 0, 0, 7, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xff, 0xff,
        ];
        assert_eq!(batch().to_context().as_ref(), golden);
        assert_eq!(EntryMeta::from_context(&golden), Ok(batch()));
    }

    #[test]
    fn given_a_context_when_one_field_is_wrong_then_it_is_refused_for_that_reason() {
        let good = batch().to_context();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            EntryMeta::from_context(&bytes)
        };
        assert_eq!(with(0, 2), Err(EntryError::Version { version: 2 }));
        assert_eq!(with(1, 9), Err(EntryError::Kind { kind: 9 }));
        assert_eq!(with(2, 1), Err(EntryError::Reserved));
        assert!(matches!(with(4, 0), Err(EntryError::Offsets { .. })), "a batch takes offsets");
        assert!(matches!(with(15, 0x80), Err(EntryError::Offsets { .. })), "never negative");
        assert_eq!(EntryMeta::from_context(&good[..23]), Err(EntryError::Length { length: 23 }));
    }

    #[test]
    fn given_entries_of_raft_itself_when_read_then_they_stand_where_the_log_ends() {
        let noop = EntryMeta::of(&Entry::default(), Offset(9));
        assert_eq!(noop, Ok(EntryMeta::without_offsets(EntryKind::Noop, Offset(9))));
        let leave = Entry { entry_type: EntryType::EntryConfChangeV2, ..Entry::default() };
        let leave = EntryMeta::of(&leave, Offset(9));
        assert_eq!(leave, Ok(EntryMeta::without_offsets(EntryKind::ConfChange, Offset(9))));
        let lost = Entry { data: Bytes::from_static(b"x"), ..Entry::default() };
        assert_eq!(EntryMeta::of(&lost, Offset(9)), Err(EntryError::NoContext));
    }

    proptest! {
        #[test]
        fn given_any_bytes_when_decoded_then_what_is_accepted_encodes_to_the_same_bytes(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                (1_u8..5, any::<[u8; 20]>()).prop_map(|(kind, rest)| {
                    let mut bytes = vec![CONTEXT_VERSION, kind, 0, 0];
                    bytes.extend(rest);
                    bytes
                }),
            ]
        ) {
            if let Ok(meta) = EntryMeta::from_context(&bytes) {
                let context = meta.to_context();
                prop_assert_eq!(context.as_ref(), bytes.as_slice());
            }
        }
    }
}
