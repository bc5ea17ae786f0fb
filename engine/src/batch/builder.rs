//! Makes record batches: for the broker's own topics and for tests.

use bytes::Bytes;

use super::header::{
    BATCH_OVERHEAD_BYTES, BatchHeader, HEADER_BYTES, MAGIC, NO_PRODUCER_EPOCH, NO_PRODUCER_ID,
    NO_SEQUENCE, NO_TIMESTAMP, checksum,
};
use super::{BatchError, RecordBatch};
use crate::compression::{Codec, CompressionError, compress};
use crate::ids::Offset;

/// Collects records and makes one batch of them. The timestamp of the first record is the batch's base timestamp.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    header: BatchHeader,
    codec: Codec,
    records: Vec<u8>,
    body: Vec<u8>,
    fits: bool,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder::new()
    }
}

impl BatchBuilder {
    /// No records yet, no compression, no producer; offset and epoch as a producer sends them.
    #[must_use]
    pub fn new() -> BatchBuilder {
        let header = BatchHeader {
            base_offset: Offset(0),
            batch_length: 0,
            leader_epoch: -1,
            magic: MAGIC,
            crc: 0,
            attributes: 0,
            last_offset_delta: -1,
            base_timestamp_ms: NO_TIMESTAMP,
            max_timestamp_ms: NO_TIMESTAMP,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
            record_count: 0,
        };
        BatchBuilder {
            header,
            codec: Codec::None,
            records: Vec::new(),
            body: Vec::new(),
            fits: true,
        }
    }

    /// Compresses the records.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> BatchBuilder {
        self.codec = codec;
        self
    }

    /// Sets the base offset.
    #[must_use]
    pub fn base_offset(mut self, base_offset: Offset) -> BatchBuilder {
        self.header.base_offset = base_offset;
        self
    }

    /// Sets the partition leader epoch.
    #[must_use]
    pub fn leader_epoch(mut self, leader_epoch: i32) -> BatchBuilder {
        self.header.leader_epoch = leader_epoch;
        self
    }

    /// Names the producer and the first record's sequence number.
    #[must_use]
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> BatchBuilder {
        self.header.producer_id = id;
        self.header.producer_epoch = epoch;
        self.header.base_sequence = base_sequence;
        self
    }

    /// Makes it part of a transaction.
    #[must_use]
    pub fn transactional(mut self) -> BatchBuilder {
        self.header.set_transactional();
        self
    }

    /// Makes it a marker.
    #[must_use]
    pub fn control(mut self) -> BatchBuilder {
        self.header.set_control();
        self
    }

    /// Adds a record without headers.
    #[must_use]
    pub fn record(
        self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> BatchBuilder {
        self.record_with_headers(timestamp_ms, key, value, &[])
    }

    /// Adds a record.
    #[must_use]
    pub fn record_with_headers(
        mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) -> BatchBuilder {
        let header = &mut self.header;
        if header.record_count == 0 {
            header.base_timestamp_ms = timestamp_ms;
            header.max_timestamp_ms = timestamp_ms;
        }
        header.max_timestamp_ms = header.max_timestamp_ms.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(header.base_timestamp_ms);
        let body = &mut self.body;
        body.clear();
        body.push(0); // attributes
        put_varint(body, timestamp_delta);
        put_varint(body, i64::from(header.record_count));
        put_field(body, key);
        put_field(body, value);
        put_len(body, headers.len());
        for (key, value) in headers {
            put_field(body, Some(key));
            put_field(body, *value);
        }
        put_len(&mut self.records, body.len());
        self.records.extend_from_slice(body);
        self.fits &= i32::try_from(body.len()).is_ok();
        header.last_offset_delta = header.record_count;
        match header.record_count.checked_add(1) {
            Some(count) => header.record_count = count,
            None => self.fits = false,
        }
        self
    }

    /// The batch. Fails where it breaks a rule that [`RecordBatch::parse`] checks, having no record among them.
    pub fn build(mut self) -> Result<RecordBatch, BatchError> {
        let codec = self.codec;
        let content = compress(codec, &self.records)
            .map_err(|source| CompressionError::Corrupt { codec, source })?;
        let batch_length = HEADER_BYTES - BATCH_OVERHEAD_BYTES + content.len();
        match i32::try_from(batch_length) {
            Ok(batch_length) if self.fits => self.header.batch_length = batch_length,
            _ => return Err(BatchError::TooLarge),
        }
        self.header.attributes |= codec.id();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
        bytes.extend_from_slice(&self.header.to_bytes());
        bytes.extend_from_slice(&content);
        self.header.crc = checksum(&bytes);
        bytes[..HEADER_BYTES].copy_from_slice(&self.header.to_bytes());
        RecordBatch::parse(Bytes::from(bytes))
    }
}

fn put_field(to: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => put_varint(to, -1),
        Some(field) => {
            put_len(to, field.len());
            to.extend_from_slice(field);
        }
    }
}

/// A length beyond what the format takes is found out when the record that holds it is complete.
pub(super) fn put_len(to: &mut Vec<u8>, len: usize) {
    put_varint(to, i64::try_from(len).unwrap_or(i64::MAX));
}

pub(super) fn put_varint(to: &mut Vec<u8>, value: i64) {
    let mut value = (value << 1 ^ value >> 63).cast_unsigned();
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            to.push(low);
            return;
        }
        to.push(low | 0x80);
    }
}
