//! The one view of a Kafka record batch (format version 2): what a producer sent, checked and not copied.
//!
//! A batch is held as the bytes that came over the wire. Base offset and leader epoch, which the broker sets, lie
//! outside the checksum, so they are patched where the bytes are copied anyway ([`patch_header`], [`PatchedBatch`])
//! and shared bytes never change. Records are decoded only by who asks for them; nothing here knows partitions,
//! producers' state or topics' rules.
//!
//! - I1: a [`RecordBatch`] is exactly one batch: its length field spans all of its bytes.
//! - I2: its checksum holds, its codec is known, its record count is at least 1 and fits its last offset delta. Of a
//!   stored one ([`RecordBatch::parse_stored`]) compaction may have left fewer records than it takes offsets, or none.
//! - I3: where it names a producer, epoch and sequence are there too; a transactional one names a producer.
//! - I4: no count or length that the bytes state is trusted for an allocation.

mod builder;
mod header;
mod records;
mod rewrite;
mod slices;
#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};

pub use self::builder::BatchBuilder;
pub use self::header::{
    BATCH_OVERHEAD_BYTES, BatchHeader, HEADER_BYTES, MAGIC, NO_PRODUCER_EPOCH, NO_PRODUCER_ID,
    NO_SEQUENCE, NO_TIMESTAMP, TimestampType, leader_epoch, patch_header, sequence_plus,
};
pub use self::records::{Record, RecordFault, RecordHeader, RecordIter, RecordSummary};
pub use self::rewrite::{BatchRewriter, DeleteHorizon};
pub use self::slices::{RecordSlice, RecordSlices};
use crate::compression::{Codec, CompressionError, decompress};
use crate::ids::{Offset, Term};
use crate::limits::RECORD_BYTES_MIN;

/// Why bytes are not a record batch that may be appended.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the batch should have.
    #[error("a batch of {needed} bytes is cut after {found}")]
    Truncated {
        /// What there should be.
        needed: usize,
        /// What there is.
        found: usize,
    },
    /// More bytes than the batch has: a second batch, or rubbish.
    #[error("{trailing} bytes after a batch of {size}")]
    TrailingBytes {
        /// The batch's size.
        size: usize,
        /// What follows it.
        trailing: usize,
    },
    /// The length field is below that of an empty batch.
    #[error("a batch cannot have a length of {batch_length}")]
    InvalidLength {
        /// The field.
        batch_length: i32,
    },
    /// A message set of before Kafka 0.11 (format version 0 or 1).
    #[error("message format version {magic} is not supported: the oldest is 2")]
    OldMagic {
        /// The version.
        magic: i8,
    },
    /// A format version that does not exist.
    #[error("unknown message format version {magic}")]
    UnknownMagic {
        /// The version.
        magic: i8,
    },
    /// The content is not what the producer computed the checksum of.
    #[error("the batch's checksum is {stored:#010x}, its content has {computed:#010x}")]
    ChecksumMismatch {
        /// The field.
        stored: u32,
        /// What it should be.
        computed: u32,
    },
    /// The attributes name a codec that does not exist.
    #[error("unknown compression codec {id}")]
    UnknownCodec {
        /// The lowest three bits of the attributes.
        id: i16,
    },
    /// The record count is below 1, does not fit the last offset delta, or cannot fit the bytes.
    #[error("{record_count} records with a last offset delta of {last_offset_delta}")]
    InvalidRecordCount {
        /// The field.
        record_count: i32,
        /// The field.
        last_offset_delta: i32,
    },
    /// The producer's fields contradict each other.
    #[error(
        "producer {producer_id} with epoch {producer_epoch} and base sequence {base_sequence} \
         (transactional: {transactional})"
    )]
    InvalidProducer {
        /// The field.
        producer_id: i64,
        /// The field.
        producer_epoch: i16,
        /// The field.
        base_sequence: i32,
        /// The flag.
        transactional: bool,
    },
    /// The records could not be decompressed.
    #[error("the batch's records cannot be decompressed")]
    Compression {
        /// Why.
        #[from]
        source: CompressionError,
    },
    /// A record does not decode.
    #[error("record {index} of the batch: {fault}")]
    InvalidRecord {
        /// Which, from 0.
        index: i32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// There are bytes after the last record.
    #[error("{trailing} bytes after the last record")]
    TrailingRecordBytes {
        /// How many.
        trailing: usize,
    },
    /// What a builder was given does not fit a batch.
    #[error("a batch cannot hold this much")]
    TooLarge,
}

/// A whole and valid record batch. Cheap to clone: the bytes are shared.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordBatch {
    bytes: Bytes,
    header: BatchHeader,
    codec: Codec,
}

impl std::fmt::Debug for RecordBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordBatch")
            .field("size", &self.size())
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl RecordBatch {
    /// Takes exactly one batch, checks its header and its checksum, and keeps the bytes as they are. Records are not
    /// decoded. Control and transactional batches pass: whether they may be appended is the caller's to say.
    pub fn parse(bytes: Bytes) -> Result<RecordBatch, BatchError> {
        RecordBatch::parse_with(bytes, check_count)
    }

    /// Like [`RecordBatch::parse`], for a batch out of a log: its records may be fewer than the offsets it takes.
    pub fn parse_stored(bytes: Bytes) -> Result<RecordBatch, BatchError> {
        RecordBatch::parse_with(bytes, check_count_stored)
    }

    fn parse_with(
        bytes: Bytes,
        check_count: fn(&BatchHeader, Codec, usize) -> Result<(), BatchError>,
    ) -> Result<RecordBatch, BatchError> {
        let header = BatchHeader::read_checked(&bytes)?;
        let size = header.size()?;
        if bytes.len() < size {
            return Err(BatchError::Truncated { needed: size, found: bytes.len() });
        }
        if bytes.len() > size {
            return Err(BatchError::TrailingBytes { size, trailing: bytes.len() - size });
        }
        let computed = header::checksum(&bytes);
        if header.crc != computed {
            return Err(BatchError::ChecksumMismatch { stored: header.crc, computed });
        }
        let codec = header.codec().ok_or(BatchError::UnknownCodec { id: header.codec_id() })?;
        check_count(&header, codec, size)?;
        check_producer(&header)?;
        Ok(RecordBatch { bytes, header, codec })
    }

    /// The batch as it came.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The batch as it came.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// All fields of its header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Its size in bytes, header included.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The base offset in the bytes: what the producer wrote (0), unless they come from a log.
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// The partition leader epoch in the bytes.
    #[must_use]
    pub fn leader_epoch(&self) -> i32 {
        self.header.leader_epoch
    }

    /// The attributes as they are.
    #[must_use]
    pub fn attributes(&self) -> i16 {
        self.header.attributes
    }

    /// How its records are compressed.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Whose clock its timestamps are from.
    #[must_use]
    pub fn timestamp_type(&self) -> TimestampType {
        self.header.timestamp_type()
    }

    /// Whether it is part of a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.header.is_transactional()
    }

    /// Whether it is a marker of the broker and not data.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.header.is_control()
    }

    /// The last record's offset, counted from the base offset.
    #[must_use]
    pub fn last_offset_delta(&self) -> i32 {
        self.header.last_offset_delta
    }

    /// How many records it holds. That is also how many offsets it takes, and at least 1, unless it is a stored one.
    #[must_use]
    pub fn record_count(&self) -> i32 {
        self.header.record_count
    }

    /// How many offsets it takes.
    #[must_use]
    pub fn offset_count(&self) -> u32 {
        self.header.last_offset_delta.unsigned_abs() + 1
    }

    /// The timestamp that the records' deltas count from.
    #[must_use]
    pub fn base_timestamp_ms(&self) -> i64 {
        self.header.base_timestamp_ms
    }

    /// The greatest timestamp of its records, as the producer says.
    #[must_use]
    pub fn max_timestamp_ms(&self) -> i64 {
        self.header.max_timestamp_ms
    }

    /// The producer's id, or [`NO_PRODUCER_ID`].
    #[must_use]
    pub fn producer_id(&self) -> i64 {
        self.header.producer_id
    }

    /// The producer's epoch, or [`NO_PRODUCER_EPOCH`].
    #[must_use]
    pub fn producer_epoch(&self) -> i16 {
        self.header.producer_epoch
    }

    /// The sequence number of the first record, or [`NO_SEQUENCE`].
    #[must_use]
    pub fn base_sequence(&self) -> i32 {
        self.header.base_sequence
    }

    /// The sequence number of the last record: sequences start again at 0 after the greatest `i32`.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        self.header.last_sequence()
    }

    /// Whether a producer id is given, so that sequences are to be checked.
    #[must_use]
    pub fn has_producer(&self) -> bool {
        self.header.producer_id >= 0
    }

    /// Its records, decompressed into at most `output_max` bytes.
    pub fn records(&self, output_max: usize) -> Result<RecordIter, BatchError> {
        let content = self.bytes.slice(HEADER_BYTES..);
        let content = decompress(self.codec, &content, output_max)?;
        Ok(RecordIter::new(content, self.header.record_count))
    }

    /// Its records as they lie in the batch, decompressed into at most `output_max` bytes. All of them decode, and
    /// their offsets rise and lie within the batch, or it is an error.
    pub fn record_slices(&self, output_max: usize) -> Result<RecordSlices, BatchError> {
        let content = self.bytes.slice(HEADER_BYTES..);
        let content = decompress(self.codec, &content, output_max)?;
        RecordSlices::check(content, &self.header)
    }

    /// Decodes every record, requires that their offsets are consecutive from the base offset on, and says what topics
    /// have rules about.
    pub fn validate_records(&self, output_max: usize) -> Result<RecordSummary, BatchError> {
        records::validate(self.records(output_max)?, self.header.base_timestamp_ms)
    }

    /// A copy whose records all have the broker's time `now_ms`, as topics with `LogAppendTime` want it.
    #[must_use]
    pub fn with_log_append_time(&self, now_ms: i64) -> RecordBatch {
        self.with_header(|header| header.set_log_append_time(now_ms))
    }

    /// A copy whose header tells this as the greatest timestamp of its records.
    #[must_use]
    pub fn with_max_timestamp(&self, max_timestamp_ms: i64) -> RecordBatch {
        self.with_header(|header| header.max_timestamp_ms = max_timestamp_ms)
    }

    fn with_header(&self, change: impl FnOnce(&mut BatchHeader)) -> RecordBatch {
        let mut bytes = BytesMut::from(&self.bytes[..]);
        let mut header = self.header;
        change(&mut header);
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        header.crc = header::checksum(&bytes);
        bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
        RecordBatch { bytes: bytes.freeze(), header, codec: self.codec }
    }

    /// The batch with its place in the log, for a vectored send.
    #[must_use]
    pub fn patched(&self, base_offset: Offset, epoch: Term) -> PatchedBatch {
        PatchedBatch::new(&self.bytes, base_offset, epoch)
    }
}

/// Two pieces that make a batch with its place in the log: a header of its own and the rest, shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchedBatch {
    /// The first [`HEADER_BYTES`] bytes, patched.
    pub header: Bytes,
    /// All that follows, untouched.
    pub rest: Bytes,
}

impl PatchedBatch {
    /// Splits the bytes of a batch and patches the first piece. Patching what is already patched changes nothing.
    #[must_use]
    pub fn new(batch: &Bytes, base_offset: Offset, epoch: Term) -> PatchedBatch {
        assert!(batch.len() >= HEADER_BYTES, "a batch is at least its header");
        let mut header = BytesMut::from(&batch[..HEADER_BYTES]);
        patch_header(&mut header, base_offset, epoch);
        PatchedBatch { header: header.freeze(), rest: batch.slice(HEADER_BYTES..) }
    }

    /// The size of both pieces in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.header.len() + self.rest.len()
    }
}

/// The batches that lie one after the other in `bytes`. A cut one at the end is left out, as clients do; after an
/// error there is nothing more.
#[must_use]
pub fn batches_in(bytes: Bytes) -> BatchIter {
    BatchIter { rest: bytes }
}

/// See [`batches_in`].
#[derive(Debug, Clone)]
pub struct BatchIter {
    rest: Bytes,
}

impl BatchIter {
    /// The bytes that were not taken: at the end, those of a cut batch.
    #[must_use]
    pub fn rest(&self) -> &Bytes {
        &self.rest
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>, BatchError> {
        let Some(size) = header::size_of_next(&self.rest)? else {
            return Ok(None);
        };
        if size > self.rest.len() {
            return Ok(None);
        }
        RecordBatch::parse(self.rest.split_to(size)).map(Some)
    }
}

impl Iterator for BatchIter {
    type Item = Result<RecordBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_batch();
        if next.is_err() {
            self.rest.clear();
        }
        next.transpose()
    }
}

fn check_count(header: &BatchHeader, codec: Codec, size: usize) -> Result<(), BatchError> {
    let BatchHeader { record_count, last_offset_delta, .. } = *header;
    let agrees = record_count >= 1 && last_offset_delta == record_count - 1;
    let room = (size - HEADER_BYTES) / RECORD_BYTES_MIN;
    let fits = codec != Codec::None || usize::try_from(record_count).is_ok_and(|n| n <= room);
    if agrees && fits {
        return Ok(());
    }
    Err(BatchError::InvalidRecordCount { record_count, last_offset_delta })
}

/// What compaction leaves: any number of the records that there were, none of them included.
fn check_count_stored(header: &BatchHeader, codec: Codec, size: usize) -> Result<(), BatchError> {
    let BatchHeader { record_count, last_offset_delta, .. } = *header;
    let agrees = (0..=last_offset_delta.saturating_add(1)).contains(&record_count);
    let room = (size - HEADER_BYTES) / RECORD_BYTES_MIN;
    let fits = codec != Codec::None || usize::try_from(record_count).is_ok_and(|n| n <= room);
    if last_offset_delta >= 0 && agrees && fits {
        return Ok(());
    }
    Err(BatchError::InvalidRecordCount { record_count, last_offset_delta })
}

/// Without a producer the other fields mean nothing, and clients differ in what they write there. The broker's own
/// markers have no sequence.
fn check_producer(header: &BatchHeader) -> Result<(), BatchError> {
    let BatchHeader { producer_id, producer_epoch, base_sequence, .. } = *header;
    let transactional = header.is_transactional();
    let coherent = if producer_id >= 0 {
        producer_epoch >= 0 && (base_sequence >= 0 || header.is_control())
    } else {
        producer_id == NO_PRODUCER_ID && !transactional
    };
    if coherent {
        return Ok(());
    }
    Err(BatchError::InvalidProducer { producer_id, producer_epoch, base_sequence, transactional })
}
