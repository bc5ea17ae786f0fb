//! A batch anew with some of its records, as compaction leaves it.
//!
//! Base offset, last offset delta, producer, sequence and codec stay, so that offsets and sequences mean what they
//! meant; greatest timestamp, record count and checksum follow from the records.
//!
//! - I1: what comes out is what [`RecordBatch::parse_stored`] takes.
//! - I2: a record keeps its offset and its timestamp, whatever the deltas count from.

use bytes::{Bytes, BytesMut};

use super::builder::{put_len, put_varint};
use super::header::{
    BATCH_OVERHEAD_BYTES, BatchHeader, HEADER_BYTES, NO_TIMESTAMP, TimestampType, checksum,
};
use super::slices::RecordSlice;
use super::{BatchError, RecordBatch};
use crate::compression::{Codec, CompressionError, compress};

/// What becomes of the time at which a batch's tombstones may go. It stands where the base timestamp is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteHorizon {
    /// It stays as it is, or there is none.
    Keep,
    /// It is set, in milliseconds.
    Set(i64),
    /// There is none any more.
    Clear,
}

/// Takes the records that stay, in order, and makes the batch.
#[derive(Debug)]
pub struct BatchRewriter {
    header: BatchHeader,
    codec: Codec,
    base_before_ms: i64,
    /// Room for the header, then records.
    bytes: Vec<u8>,
    record_count: i32,
    max_timestamp_ms: Option<i64>,
}

impl BatchRewriter {
    /// No records yet.
    #[must_use]
    pub fn new(batch: &RecordBatch, horizon: DeleteHorizon) -> BatchRewriter {
        let mut header = batch.header;
        match horizon {
            DeleteHorizon::Keep => {}
            DeleteHorizon::Set(horizon_ms) => header.set_delete_horizon(horizon_ms),
            DeleteHorizon::Clear => header.clear_delete_horizon(),
        }
        BatchRewriter {
            header,
            codec: batch.codec,
            base_before_ms: batch.header.base_timestamp_ms,
            bytes: vec![0; HEADER_BYTES],
            record_count: 0,
            max_timestamp_ms: None,
        }
    }

    /// Adds a record of the batch.
    pub fn push(&mut self, record: &RecordSlice<'_>) {
        let timestamp_ms = self.base_before_ms.wrapping_add(record.timestamp_delta);
        if self.header.base_timestamp_ms == self.base_before_ms {
            self.bytes.extend_from_slice(record.whole);
        } else {
            let delta = timestamp_ms.wrapping_sub(self.header.base_timestamp_ms);
            let mut start = Vec::with_capacity(16);
            start.push(record.attributes);
            put_varint(&mut start, delta);
            put_varint(&mut start, i64::from(record.offset_delta));
            put_len(&mut self.bytes, start.len() + record.tail.len());
            self.bytes.extend_from_slice(&start);
            self.bytes.extend_from_slice(record.tail);
        }
        self.record_count += 1;
        self.max_timestamp_ms = self.max_timestamp_ms.max(Some(timestamp_ms));
    }

    /// The batch. There is at least one record, or it is [`RecordBatch::emptied`].
    ///
    /// # Errors
    /// If the codec fails, or the batch becomes larger than there can be one.
    pub fn finish(mut self) -> Result<RecordBatch, BatchError> {
        let codec = self.codec;
        let mut bytes = match codec {
            Codec::None => self.bytes,
            _ => {
                let content = compress(codec, &self.bytes[HEADER_BYTES..])
                    .map_err(|source| CompressionError::Corrupt { codec, source })?;
                self.bytes.truncate(HEADER_BYTES);
                self.bytes.extend_from_slice(&content);
                self.bytes
            }
        };
        let batch_length = i32::try_from(bytes.len() - BATCH_OVERHEAD_BYTES);
        self.header.batch_length = batch_length.map_err(|_| BatchError::TooLarge)?;
        self.header.record_count = self.record_count;
        if self.header.timestamp_type() == TimestampType::CreateTime {
            self.header.max_timestamp_ms = self.max_timestamp_ms.unwrap_or(NO_TIMESTAMP);
        }
        seal(&mut bytes, &mut self.header);
        RecordBatch::parse_stored(Bytes::from(bytes))
    }
}

impl RecordBatch {
    /// Its header alone, which takes the same offsets.
    #[must_use]
    pub fn emptied(&self) -> RecordBatch {
        let mut header = self.header;
        header.clear_codec();
        header.clear_delete_horizon();
        header.base_timestamp_ms = NO_TIMESTAMP;
        header.record_count = 0;
        header.batch_length = EMPTY_BATCH_LENGTH;
        let mut bytes = BytesMut::zeroed(HEADER_BYTES);
        seal(&mut bytes, &mut header);
        RecordBatch { bytes: bytes.freeze(), header, codec: Codec::None }
    }

    /// A copy that sets no time for its tombstones to go; its records stay as they are.
    #[must_use]
    pub fn without_delete_horizon(&self) -> RecordBatch {
        let mut header = self.header;
        header.clear_delete_horizon();
        let mut bytes = BytesMut::from(&self.bytes[..]);
        seal(&mut bytes, &mut header);
        RecordBatch { bytes: bytes.freeze(), header, codec: self.codec }
    }
}

/// The length field of a batch without records: `HEADER_BYTES - BATCH_OVERHEAD_BYTES`.
const EMPTY_BATCH_LENGTH: i32 = 49;
const _: () = assert!(EMPTY_BATCH_LENGTH as usize == HEADER_BYTES - BATCH_OVERHEAD_BYTES);

/// Writes the header, with the checksum of what stands behind it.
fn seal(bytes: &mut [u8], header: &mut BatchHeader) {
    bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    header.crc = checksum(bytes);
    bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
}
