//! The rows of a block's table: what each record of the log is on disk, apart from its payload.
//!
//! Which descriptor fields a record uses:
//!
//! | record | index | term | base_offset | max_timestamp_ms | span | payload |
//! |---|---|---|---|---|---|---|
//! | entry | its index | its term | its base offset | its own | - | batch or command |
//! | hard state | commit | term | vote | - | - | - |
//! | truncate after | last that stays | - | - | - | - | - |
//! | log start | last that is gone | its term | first offset | - | - | - |
//! | group created | - | - | - | - | - | `GroupMeta` |
//! | group deleted | - | - | - | - | - | - |
//! | checkpoint | last index | last term | first offset | - | log start index | `GroupCheckpoint` |
//! | lost entries | first lost | term to give | base offset after | - | entries lost | - |
//! | footer | - | - | - | - | - | see [`super::footer`] |
//! | footer locator | footer's position | - | - | - | footer's length | - |
//! | padding | - | - | - | - | blocks replaced | zeros |
//!
//! It decodes totally: any bytes give a row or `None`, and nothing is reserved by a count that was read.

use bytes::Bytes;

use super::block::{BATCH_HEAD_BYTES, DESCRIPTOR_BYTES};
use super::record::{
    EntryKind, GroupCheckpoint, GroupMeta, HardState, LogEntry, LogPosition, WalRecord,
};
use crate::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use crate::limits::GROUP_STATE_BYTES_MAX;

const _: () = assert!(slot::SPAN + 8 == DESCRIPTOR_BYTES);

/// Where a descriptor's fields begin.
mod slot {
    pub const KIND: usize = 0;
    pub const PAYLOAD_LEN: usize = 4;
    pub const PAYLOAD_CRC: usize = 8;
    pub const OFFSET_COUNT: usize = 12;
    pub const GROUP: usize = 16;
    pub const INDEX: usize = 24;
    pub const TERM: usize = 32;
    pub const BASE_OFFSET: usize = 40;
    pub const MAX_TIMESTAMP: usize = 48;
    pub const SPAN: usize = 56;
}

/// What a descriptor describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotKind {
    /// An entry that carries nothing.
    Noop = 1,
    /// An entry that carries a record batch.
    Batch = 2,
    /// An entry that carries a command.
    Command = 3,
    /// An entry that carries a configuration change.
    ConfChange = 4,
    /// A hard state.
    HardState = 5,
    /// Entries after an index are void.
    TruncateAfter = 6,
    /// Entries up to an index are void.
    LogStart = 7,
    /// A replica was placed here.
    GroupCreated = 8,
    /// A replica is gone.
    GroupDeleted = 9,
    /// All of a group.
    Checkpoint = 10,
    /// Entries that damage took, given up by `wal repair`; they read as no-ops.
    Lost = 11,
    /// A file's index.
    Footer = 12,
    /// Where a file's index is.
    FooterLocator = 13,
    /// Fills a repaired region.
    Padding = 14,
}

impl SlotKind {
    fn from_u8(value: u8) -> Option<SlotKind> {
        Some(match value {
            1 => SlotKind::Noop,
            2 => SlotKind::Batch,
            3 => SlotKind::Command,
            4 => SlotKind::ConfChange,
            5 => SlotKind::HardState,
            6 => SlotKind::TruncateAfter,
            7 => SlotKind::LogStart,
            8 => SlotKind::GroupCreated,
            9 => SlotKind::GroupDeleted,
            10 => SlotKind::Checkpoint,
            11 => SlotKind::Lost,
            12 => SlotKind::Footer,
            13 => SlotKind::FooterLocator,
            14 => SlotKind::Padding,
            _ => return None,
        })
    }

    /// The kind of entry, if it is one that carries itself.
    #[must_use]
    pub fn entry(self) -> Option<EntryKind> {
        match self {
            SlotKind::Noop => Some(EntryKind::Noop),
            SlotKind::Batch => Some(EntryKind::Batch),
            SlotKind::Command => Some(EntryKind::Command),
            SlotKind::ConfChange => Some(EntryKind::ConfChange),
            _ => None,
        }
    }
}

impl From<EntryKind> for SlotKind {
    fn from(kind: EntryKind) -> SlotKind {
        match kind {
            EntryKind::Noop => SlotKind::Noop,
            EntryKind::Batch => SlotKind::Batch,
            EntryKind::Command => SlotKind::Command,
            EntryKind::ConfChange => SlotKind::ConfChange,
        }
    }
}

/// One row of a block's table. What the fields mean for each kind stands at the top of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// What it describes.
    pub kind: SlotKind,
    /// Bytes of its payload.
    pub payload_len: u32,
    /// CRC of its payload.
    pub payload_crc: u32,
    /// Offsets that the entry takes.
    pub offset_count: u32,
    /// The group.
    pub group: GroupId,
    /// See the table above.
    pub index: RaftIndex,
    /// See the table above.
    pub term: Term,
    /// See the table above.
    pub base_offset: i64,
    /// See the table above.
    pub max_timestamp_ms: i64,
    /// See the table above.
    pub span: u64,
}

impl Descriptor {
    /// A descriptor with nothing in it but its kind and group.
    #[must_use]
    pub fn empty(kind: SlotKind, group: GroupId) -> Descriptor {
        Descriptor {
            kind,
            payload_len: 0,
            payload_crc: 0,
            offset_count: 0,
            group,
            index: RaftIndex(0),
            term: Term(0),
            base_offset: 0,
            max_timestamp_ms: 0,
            span: 0,
        }
    }

    /// Describes a record, all but its payload's length and CRC.
    #[must_use]
    pub fn of(record: &WalRecord) -> Descriptor {
        let group = record.group();
        match record {
            WalRecord::Entry { entry, .. } => Descriptor {
                offset_count: entry.offset_count,
                index: entry.index,
                term: entry.term,
                base_offset: entry.base_offset.0,
                max_timestamp_ms: entry.max_timestamp_ms,
                ..Descriptor::empty(entry.kind.into(), group)
            },
            WalRecord::HardState { state, .. } => Descriptor {
                index: state.commit,
                term: state.term,
                base_offset: i64::from_le_bytes(state.vote.0.to_le_bytes()),
                ..Descriptor::empty(SlotKind::HardState, group)
            },
            WalRecord::TruncateAfter { index, .. } => {
                Descriptor { index: *index, ..Descriptor::empty(SlotKind::TruncateAfter, group) }
            }
            WalRecord::LogStart { position, offset, .. } => Descriptor {
                index: position.index,
                term: position.term,
                base_offset: offset.0,
                ..Descriptor::empty(SlotKind::LogStart, group)
            },
            WalRecord::GroupCreated { .. } => Descriptor::empty(SlotKind::GroupCreated, group),
            WalRecord::GroupDeleted { .. } => Descriptor::empty(SlotKind::GroupDeleted, group),
            WalRecord::Checkpoint(checkpoint) => Descriptor {
                index: checkpoint.last.index,
                term: checkpoint.last.term,
                base_offset: checkpoint.log_start_offset.0,
                span: checkpoint.log_start.index.0,
                ..Descriptor::empty(SlotKind::Checkpoint, group)
            },
        }
    }

    /// Reads one row; `None` if its kind is unknown or the bytes are too few.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Descriptor> {
        let bytes = bytes.first_chunk::<DESCRIPTOR_BYTES>()?;
        Some(Descriptor {
            kind: SlotKind::from_u8(bytes[slot::KIND])?,
            payload_len: u32_at(bytes, slot::PAYLOAD_LEN),
            payload_crc: u32_at(bytes, slot::PAYLOAD_CRC),
            offset_count: u32_at(bytes, slot::OFFSET_COUNT),
            group: GroupId(u64_at(bytes, slot::GROUP)),
            index: RaftIndex(u64_at(bytes, slot::INDEX)),
            term: Term(u64_at(bytes, slot::TERM)),
            base_offset: i64_at(bytes, slot::BASE_OFFSET),
            max_timestamp_ms: i64_at(bytes, slot::MAX_TIMESTAMP),
            span: u64_at(bytes, slot::SPAN),
        })
    }

    pub(super) fn encode(&self, out: &mut [u8]) {
        out[..DESCRIPTOR_BYTES].fill(0);
        out[slot::KIND] = self.kind as u8;
        put(out, slot::PAYLOAD_LEN, &self.payload_len.to_le_bytes());
        put(out, slot::PAYLOAD_CRC, &self.payload_crc.to_le_bytes());
        put(out, slot::OFFSET_COUNT, &self.offset_count.to_le_bytes());
        put(out, slot::GROUP, &self.group.0.to_le_bytes());
        put(out, slot::INDEX, &self.index.0.to_le_bytes());
        put(out, slot::TERM, &self.term.0.to_le_bytes());
        put(out, slot::BASE_OFFSET, &self.base_offset.to_le_bytes());
        put(out, slot::MAX_TIMESTAMP, &self.max_timestamp_ms.to_le_bytes());
        put(out, slot::SPAN, &self.span.to_le_bytes());
    }

    /// The offset after the entry.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.saturating_add(i64::from(self.offset_count)))
    }

    /// The record that this row and its payload are. `None` if they make no sense, or are not a record (footers,
    /// padding and lost entries).
    #[must_use]
    pub fn record(&self, payload: &Bytes) -> Option<WalRecord> {
        let group = self.group;
        if let Some(kind) = self.kind.entry() {
            return Some(WalRecord::Entry { group, entry: self.entry(kind, payload.clone())? });
        }
        Some(match self.kind {
            SlotKind::HardState => WalRecord::HardState { group, state: self.hard_state() },
            SlotKind::TruncateAfter => WalRecord::TruncateAfter { group, index: self.index },
            SlotKind::LogStart => WalRecord::LogStart {
                group,
                position: LogPosition { index: self.index, term: self.term },
                offset: Offset(self.base_offset),
            },
            SlotKind::GroupCreated => {
                let meta: GroupMeta = decode_bincode(payload)?;
                WalRecord::GroupCreated { group, meta }
            }
            SlotKind::GroupDeleted => WalRecord::GroupDeleted { group },
            SlotKind::Checkpoint => {
                let checkpoint: GroupCheckpoint = decode_bincode(payload)?;
                if checkpoint.group != group {
                    return None;
                }
                WalRecord::Checkpoint(checkpoint)
            }
            _ => return None,
        })
    }

    /// The entry that this row and its payload are.
    #[must_use]
    pub fn entry(&self, kind: EntryKind, payload: Bytes) -> Option<LogEntry> {
        let is_batch = kind == EntryKind::Batch;
        if self.index.0 == 0 || (is_batch && payload.len() < BATCH_HEAD_BYTES) {
            return None;
        }
        if self.base_offset < 0 || (!is_batch && self.offset_count != 0) {
            return None;
        }
        Some(LogEntry {
            index: self.index,
            term: self.term,
            kind,
            base_offset: Offset(self.base_offset),
            offset_count: self.offset_count,
            max_timestamp_ms: self.max_timestamp_ms,
            payload,
        })
    }

    /// The hard state that this row is.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: ReplicaId(u64::from_le_bytes(self.base_offset.to_le_bytes())),
            commit: self.index,
        }
    }
}

/// The most bytes that decoding one bincode payload may reserve, so that a payload with a right CRC and a wrong count
/// cannot ask for all memory.
const BINCODE_BYTES_MAX: usize = 256 << 20;

/// The most bytes of an encoded checkpoint. What is longer might not be read again, so it is not written.
pub(super) const CHECKPOINT_BYTES_MAX: u64 = (BINCODE_BYTES_MAX / 2) as u64;

// The rest is for the terms of a log, which take more room in memory than encoded.
const _: () = assert!(GROUP_STATE_BYTES_MAX * 2 <= BINCODE_BYTES_MAX / 2);

fn decode_bincode<T: bincode::Decode<()>>(payload: &[u8]) -> Option<T> {
    let config = bincode::config::standard().with_limit::<BINCODE_BYTES_MAX>();
    let (value, read) = bincode::decode_from_slice::<T, _>(payload, config).ok()?;
    (read == payload.len()).then_some(value)
}

pub(super) fn encode_bincode<T: bincode::Encode>(
    value: &T,
) -> Result<Vec<u8>, bincode::error::EncodeError> {
    bincode::encode_to_vec(value, bincode::config::standard())
}

/// How long the encoding of a value is, without making it.
pub(super) fn encoded_len<T: bincode::Encode>(
    value: &T,
) -> Result<u64, bincode::error::EncodeError> {
    let mut size = bincode::enc::write::SizeWriter::default();
    bincode::encode_into_writer(value, &mut size, bincode::config::standard())?;
    Ok(size.bytes_written as u64)
}

pub(super) fn put(out: &mut [u8], at: usize, value: &[u8]) {
    out[at..at + value.len()].copy_from_slice(value);
}

pub(super) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut value = [0u8; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn i64_at<const N: usize>(bytes: &[u8; N], at: usize) -> i64 {
    let mut value = [0u8; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    i64::from_le_bytes(value)
}
