//! The fixed part of a record batch: 61 bytes, big-endian.

use crate::compression::Codec;
use crate::ids::{Offset, Term};

use super::BatchError;

/// The size of a batch's header.
pub const HEADER_BYTES: usize = 61;
/// What the length field does not count: base offset and the field itself.
pub const BATCH_OVERHEAD_BYTES: usize = 12;
/// The only format version there is.
pub const MAGIC: i8 = 2;
/// No producer.
pub const NO_PRODUCER_ID: i64 = -1;
/// No producer epoch.
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// No sequence.
pub const NO_SEQUENCE: i32 = -1;
/// No timestamp.
pub const NO_TIMESTAMP: i64 = -1;

/// Where the fields lie. Magic has been at this place since version 0.
mod at {
    pub const BASE_OFFSET: usize = 0;
    pub const BATCH_LENGTH: usize = 8;
    pub const LEADER_EPOCH: usize = 12;
    pub const MAGIC: usize = 16;
    pub const CRC: usize = 17;
    pub const ATTRIBUTES: usize = 21;
    pub const LAST_OFFSET_DELTA: usize = 23;
    pub const BASE_TIMESTAMP: usize = 27;
    pub const MAX_TIMESTAMP: usize = 35;
    pub const PRODUCER_ID: usize = 43;
    pub const PRODUCER_EPOCH: usize = 51;
    pub const BASE_SEQUENCE: usize = 53;
    pub const RECORD_COUNT: usize = 57;
}

const _: () = assert!(at::RECORD_COUNT + 4 == HEADER_BYTES);
const _: () = assert!(at::BATCH_LENGTH + 4 == BATCH_OVERHEAD_BYTES);
const _: () = assert!(at::MAGIC < at::CRC);
const _: () = assert!(at::CRC + 4 == at::ATTRIBUTES); // the checksum covers all that follows it

const ATTRIBUTE_CODEC: i16 = 0b111;
const ATTRIBUTE_LOG_APPEND_TIME: i16 = 1 << 3;
const ATTRIBUTE_TRANSACTIONAL: i16 = 1 << 4;
const ATTRIBUTE_CONTROL: i16 = 1 << 5;
const ATTRIBUTE_DELETE_HORIZON: i16 = 1 << 6;

/// Whose clock the timestamps of a batch are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's, one per record.
    CreateTime,
    /// The broker's, one for all records.
    LogAppendTime,
}

/// The fields of a header as they stand in the bytes, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record.
    pub base_offset: Offset,
    /// The size of all that follows this field.
    pub batch_length: i32,
    /// The epoch of the leader that appended the batch.
    pub leader_epoch: i32,
    /// The format version.
    pub magic: i8,
    /// CRC-32C of all that follows it.
    pub crc: u32,
    /// Codec and flags.
    pub attributes: i16,
    /// The last record's offset from the first's.
    pub last_offset_delta: i32,
    /// What the records' timestamp deltas count from.
    pub base_timestamp_ms: i64,
    /// The greatest timestamp.
    pub max_timestamp_ms: i64,
    /// The producer's id.
    pub producer_id: i64,
    /// The producer's epoch.
    pub producer_epoch: i16,
    /// The sequence number of the first record.
    pub base_sequence: i32,
    /// How many records follow.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the fields from the first [`HEADER_BYTES`] bytes; `None` where there are fewer.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<BatchHeader> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        Some(BatchHeader {
            base_offset: Offset(i64::from_be_bytes(field(header, at::BASE_OFFSET))),
            batch_length: i32::from_be_bytes(field(header, at::BATCH_LENGTH)),
            leader_epoch: i32::from_be_bytes(field(header, at::LEADER_EPOCH)),
            magic: i8::from_be_bytes(field(header, at::MAGIC)),
            crc: u32::from_be_bytes(field(header, at::CRC)),
            attributes: i16::from_be_bytes(field(header, at::ATTRIBUTES)),
            last_offset_delta: i32::from_be_bytes(field(header, at::LAST_OFFSET_DELTA)),
            base_timestamp_ms: i64::from_be_bytes(field(header, at::BASE_TIMESTAMP)),
            max_timestamp_ms: i64::from_be_bytes(field(header, at::MAX_TIMESTAMP)),
            producer_id: i64::from_be_bytes(field(header, at::PRODUCER_ID)),
            producer_epoch: i16::from_be_bytes(field(header, at::PRODUCER_EPOCH)),
            base_sequence: i32::from_be_bytes(field(header, at::BASE_SEQUENCE)),
            record_count: i32::from_be_bytes(field(header, at::RECORD_COUNT)),
        })
    }

    /// Like [`BatchHeader::read`], but only of the version there is. The version comes first, as older formats have
    /// other fields after it.
    pub(super) fn read_checked(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        match bytes.get(at::MAGIC).map(|magic| i8::from_be_bytes([*magic])) {
            Some(MAGIC) | None => {}
            Some(magic @ 0..MAGIC) => return Err(BatchError::OldMagic { magic }),
            Some(magic) => return Err(BatchError::UnknownMagic { magic }),
        }
        let truncated = BatchError::Truncated { needed: HEADER_BYTES, found: bytes.len() };
        BatchHeader::read(bytes).ok_or(truncated)
    }

    /// The fields as bytes: the other side of [`BatchHeader::read`].
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| header[at..at + value.len()].copy_from_slice(value);
        put(at::BASE_OFFSET, &self.base_offset.0.to_be_bytes());
        put(at::BATCH_LENGTH, &self.batch_length.to_be_bytes());
        put(at::LEADER_EPOCH, &self.leader_epoch.to_be_bytes());
        put(at::MAGIC, &self.magic.to_be_bytes());
        put(at::CRC, &self.crc.to_be_bytes());
        put(at::ATTRIBUTES, &self.attributes.to_be_bytes());
        put(at::LAST_OFFSET_DELTA, &self.last_offset_delta.to_be_bytes());
        put(at::BASE_TIMESTAMP, &self.base_timestamp_ms.to_be_bytes());
        put(at::MAX_TIMESTAMP, &self.max_timestamp_ms.to_be_bytes());
        put(at::PRODUCER_ID, &self.producer_id.to_be_bytes());
        put(at::PRODUCER_EPOCH, &self.producer_epoch.to_be_bytes());
        put(at::BASE_SEQUENCE, &self.base_sequence.to_be_bytes());
        put(at::RECORD_COUNT, &self.record_count.to_be_bytes());
        header
    }

    /// The size of the whole batch in bytes.
    pub fn size(&self) -> Result<usize, BatchError> {
        size(self.batch_length)
    }

    /// The lowest three bits of the attributes.
    #[must_use]
    pub fn codec_id(&self) -> i16 {
        self.attributes & ATTRIBUTE_CODEC
    }

    /// How the records are compressed; `None` where no such codec exists.
    #[must_use]
    pub fn codec(&self) -> Option<Codec> {
        Codec::from_id(self.codec_id())
    }

    /// Whose clock the timestamps are from.
    #[must_use]
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & ATTRIBUTE_LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch is part of a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// Whether the batch is a marker of the broker and not data.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & ATTRIBUTE_CONTROL != 0
    }

    /// Whether the base timestamp is the time at which compaction may drop the batch's tombstones.
    #[must_use]
    pub fn has_delete_horizon(&self) -> bool {
        self.attributes & ATTRIBUTE_DELETE_HORIZON != 0
    }

    /// The time at which compaction may drop the batch's tombstones, if one has set it.
    #[must_use]
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        self.has_delete_horizon().then_some(self.base_timestamp_ms)
    }

    /// The sequence number of the last record, or [`NO_SEQUENCE`].
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            return NO_SEQUENCE;
        }
        sequence_plus(self.base_sequence, self.last_offset_delta)
    }

    pub(super) fn set_log_append_time(&mut self, now_ms: i64) {
        self.attributes |= ATTRIBUTE_LOG_APPEND_TIME;
        self.max_timestamp_ms = now_ms;
    }

    /// The records' timestamp deltas must count from it.
    pub(super) fn set_delete_horizon(&mut self, horizon_ms: i64) {
        self.attributes |= ATTRIBUTE_DELETE_HORIZON;
        self.base_timestamp_ms = horizon_ms;
    }

    /// The base timestamp stays: the deltas count from it.
    pub(super) fn clear_delete_horizon(&mut self) {
        self.attributes &= !ATTRIBUTE_DELETE_HORIZON;
    }

    pub(super) fn clear_codec(&mut self) {
        self.attributes &= !ATTRIBUTE_CODEC;
    }

    pub(super) fn set_transactional(&mut self) {
        self.attributes |= ATTRIBUTE_TRANSACTIONAL;
    }

    pub(super) fn set_control(&mut self) {
        self.attributes |= ATTRIBUTE_CONTROL;
    }
}

/// A sequence number moved on: after the greatest `i32` comes 0.
#[must_use]
pub fn sequence_plus(sequence: i32, count: i32) -> i32 {
    sequence.wrapping_add(count) & i32::MAX
}

/// Writes the place in the log into a copy of a batch; neither field is under its checksum. `batch` may be cut after
/// the sixteenth byte.
pub fn patch_header(batch: &mut [u8], base_offset: Offset, epoch: Term) {
    assert!(batch.len() >= at::MAGIC, "too short for the fields that are patched");
    assert!(base_offset.0 >= 0, "no record has offset {base_offset}");
    batch[at::BASE_OFFSET..at::BATCH_LENGTH].copy_from_slice(&base_offset.0.to_be_bytes());
    batch[at::LEADER_EPOCH..at::MAGIC].copy_from_slice(&leader_epoch(epoch).to_be_bytes());
}

/// A term as Kafka's protocol has it. No cluster has two thousand million elections.
#[must_use]
pub fn leader_epoch(term: Term) -> i32 {
    i32::try_from(term.0).unwrap_or(i32::MAX)
}

/// CRC-32C of a whole batch's content, as the field should have it.
pub(super) fn checksum(batch: &[u8]) -> u32 {
    let content = batch.get(at::ATTRIBUTES..).unwrap_or_default();
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, content);
    let [a, b, c, d, ..] = sum.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The size of the batch that starts here; `None` where too little is there to tell.
pub(super) fn size_of_next(bytes: &[u8]) -> Result<Option<usize>, BatchError> {
    let Some(start) = bytes.first_chunk::<BATCH_OVERHEAD_BYTES>() else {
        return Ok(None);
    };
    size(i32::from_be_bytes(field(start, at::BATCH_LENGTH))).map(Some)
}

fn size(batch_length: i32) -> Result<usize, BatchError> {
    let size = usize::try_from(batch_length).map(|length| length + BATCH_OVERHEAD_BYTES);
    match size {
        Ok(size) if size >= HEADER_BYTES => Ok(size),
        _ => Err(BatchError::InvalidLength { batch_length }),
    }
}

/// The bytes of a field. `at` is a constant within `bytes`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
