//! Record batches built by hand, byte by byte, so that each field can also be wrong.
//!
//! Deliberately not the engine's view of a batch: a shared mistake would be invisible. Uncompressed, format v2.

use bytes::{BufMut, Bytes, BytesMut};

/// Where the fields of a v2 batch are.
pub const BASE_OFFSET_AT: usize = 0;
/// `batchLength`.
pub const LENGTH_AT: usize = 8;
/// `partitionLeaderEpoch`.
pub const LEADER_EPOCH_AT: usize = 12;
/// `magic`.
pub const MAGIC_AT: usize = 16;
/// `crc`.
pub const CRC_AT: usize = 17;
/// `attributes`: the checksum covers everything from here on.
pub const ATTRIBUTES_AT: usize = 21;
/// `lastOffsetDelta`.
pub const LAST_OFFSET_DELTA_AT: usize = 23;
/// The number of records.
pub const COUNT_AT: usize = 57;
/// The first record.
pub const RECORDS_AT: usize = 61;

/// A batch to be built.
#[derive(Debug, Clone)]
pub struct BatchBuilder {
    attributes: i16,
    base_timestamp_ms: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    records: Vec<(Option<Bytes>, Option<Bytes>)>,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        BatchBuilder {
            attributes: 0,
            base_timestamp_ms: 1_700_000_000_000,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            records: Vec::new(),
        }
    }
}

impl BatchBuilder {
    /// No records yet, no producer.
    #[must_use]
    pub fn new() -> BatchBuilder {
        BatchBuilder::default()
    }

    /// A batch of one record without a key.
    #[must_use]
    pub fn of_value(value: impl Into<Bytes>) -> BatchBuilder {
        BatchBuilder::new().record(None, Some(value.into()))
    }

    /// With one more record.
    #[must_use]
    pub fn record(mut self, key: Option<Bytes>, value: Option<Bytes>) -> BatchBuilder {
        self.records.push((key, value));
        self
    }

    /// From an idempotent producer.
    #[must_use]
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> BatchBuilder {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// With these attributes (codec in the lowest three bits) over bytes that stay uncompressed.
    #[must_use]
    pub fn attributes(mut self, attributes: i16) -> BatchBuilder {
        self.attributes = attributes;
        self
    }

    /// With this time for all records.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> BatchBuilder {
        self.base_timestamp_ms = timestamp_ms;
        self
    }

    /// The batch with its length, count and checksum right.
    #[must_use]
    pub fn build(&self) -> Bytes {
        let count = i32::try_from(self.records.len()).unwrap_or(i32::MAX);
        let mut batch = BytesMut::new();
        batch.put_i64(0); // base offset: the broker's to give
        batch.put_i32(0); // length: set by `seal`
        batch.put_i32(-1); // leader epoch
        batch.put_i8(2); // magic
        batch.put_u32(0); // checksum: set by `seal`
        batch.put_i16(self.attributes);
        batch.put_i32(count - 1);
        batch.put_i64(self.base_timestamp_ms);
        batch.put_i64(self.base_timestamp_ms);
        batch.put_i64(self.producer_id);
        batch.put_i16(self.producer_epoch);
        batch.put_i32(self.base_sequence);
        batch.put_i32(count);
        for (delta, (key, value)) in self.records.iter().enumerate() {
            put_record(&mut batch, i64::try_from(delta).unwrap_or(i64::MAX), key, value);
        }
        seal(&mut batch);
        batch.freeze()
    }
}

/// Sets the length and the checksum of a batch whose other bytes were changed.
pub fn seal(batch: &mut [u8]) {
    let length = i32::try_from(batch.len() - LEADER_EPOCH_AT).unwrap_or(i32::MAX);
    batch[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c(&batch[ATTRIBUTES_AT..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

fn crc32c(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).unwrap_or(u32::MAX)
}

fn put_record(batch: &mut BytesMut, delta: i64, key: &Option<Bytes>, value: &Option<Bytes>) {
    let mut record = BytesMut::new();
    record.put_i8(0); // attributes
    put_varint(&mut record, 0); // timestamp delta
    put_varint(&mut record, delta);
    for field in [key, value] {
        match field {
            Some(bytes) => {
                put_varint(&mut record, i64::try_from(bytes.len()).unwrap_or(i64::MAX));
                record.put_slice(bytes);
            }
            None => put_varint(&mut record, -1),
        }
    }
    put_varint(&mut record, 0); // headers
    put_varint(batch, i64::try_from(record.len()).unwrap_or(i64::MAX));
    batch.put_slice(&record);
}

/// A zigzag varint.
pub fn put_varint(buf: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        let [low, ..] = rest.to_le_bytes();
        buf.put_u8(low | 0x80);
        rest >>= 7;
    }
    let [low, ..] = rest.to_le_bytes();
    buf.put_u8(low);
}

#[cfg(test)]
mod tests {
    use kafka_protocol::records::RecordBatchDecoder;

    use super::*;

    #[test]
    fn given_a_built_batch_when_another_codec_decodes_it_then_the_records_are_the_same() {
        let batch = BatchBuilder::new()
            .record(Some("k".into()), Some("v".into()))
            .record(None, None)
            .producer(7, 1, 40)
            .build();
        let decoded = RecordBatchDecoder::decode(&mut batch.clone()).unwrap().records;
        assert_eq!(decoded.len(), 2);
        assert_eq!(decoded[0].key.as_deref(), Some(b"k".as_slice()));
        assert_eq!(decoded[0].value.as_deref(), Some(b"v".as_slice()));
        assert_eq!((decoded[1].key.as_ref(), decoded[1].value.as_ref()), (None, None));
        assert_eq!((decoded[1].producer_id, decoded[1].sequence), (7, 41));
        assert_eq!(decoded[1].offset, 1);
    }
}
