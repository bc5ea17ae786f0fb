//! The records within a batch, after decompression. Everything here comes from a client and is believed only as far
//! as the bytes bear it out.

use bytes::{Buf, Bytes};

use super::BatchError;

/// A record. Keys, values and headers are slices of the decompressed batch, which they keep alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its offset from the batch's base offset.
    pub offset_delta: i32,
    /// Its timestamp from the batch's base timestamp.
    pub timestamp_delta: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<RecordHeader>,
}

/// A header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// Its key, which should be UTF-8 and need not be.
    pub key: Bytes,
    /// Its value.
    pub value: Option<Bytes>,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The bytes end within it.
    #[error("the bytes end within it")]
    Truncated,
    /// A variable-length number has too many bytes.
    #[error("a variable-length number does not end")]
    InvalidVarint,
    /// A length that may not be negative is, or is below -1.
    #[error("a negative length")]
    NegativeLength,
    /// Its fields are shorter than its length says.
    #[error("bytes are left after its last field")]
    TrailingBytes,
    /// Its offset is not the one after that of the record before it.
    #[error("its offset does not follow that of the record before it")]
    OffsetOutOfOrder,
}

/// What a batch's records have that topics have rules about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSummary {
    /// How many have no key, which compacted topics do not take.
    pub records_without_key: i32,
    /// The least timestamp.
    pub min_timestamp_ms: i64,
    /// The greatest timestamp.
    pub max_timestamp_ms: i64,
}

/// The records of a batch, one after the other; see [`super::RecordBatch::records`]. After an error there is nothing
/// more.
#[derive(Debug, Clone)]
pub struct RecordIter {
    rest: Bytes,
    index: i32,
    record_count: i32,
}

impl RecordIter {
    pub(super) fn new(content: Bytes, record_count: i32) -> RecordIter {
        RecordIter { rest: content, index: 0, record_count }
    }

    fn next_record(&mut self) -> Result<Record, RecordFault> {
        let len = read_i32(&mut self.rest)?;
        let len = usize::try_from(len).map_err(|_| RecordFault::NegativeLength)?;
        let mut body = take(&mut self.rest, len)?;
        take(&mut body, 1)?; // attributes, of which no bit is in use
        let timestamp_delta = read_i64(&mut body)?;
        let offset_delta = read_i32(&mut body)?;
        let key = read_field(&mut body)?;
        let value = read_field(&mut body)?;
        let headers = read_headers(&mut body)?;
        if !body.is_empty() {
            return Err(RecordFault::TrailingBytes);
        }
        Ok(Record { offset_delta, timestamp_delta, key, value, headers })
    }

    fn stop(&mut self) {
        self.index = self.record_count;
        self.rest.clear();
    }
}

impl Iterator for RecordIter {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.record_count {
            let trailing = self.rest.len();
            self.stop();
            return (trailing > 0).then_some(Err(BatchError::TrailingRecordBytes { trailing }));
        }
        let index = self.index;
        self.index += 1;
        let record = self.next_record();
        if record.is_err() {
            self.stop();
        }
        Some(record.map_err(|fault| BatchError::InvalidRecord { index, fault }))
    }
}

pub(super) fn validate(records: RecordIter, base_ms: i64) -> Result<RecordSummary, BatchError> {
    let mut summary = RecordSummary {
        records_without_key: 0,
        min_timestamp_ms: i64::MAX,
        max_timestamp_ms: i64::MIN,
    };
    for (index, record) in (0..).zip(records) {
        let record = record?;
        if record.offset_delta != index {
            let fault = RecordFault::OffsetOutOfOrder;
            return Err(BatchError::InvalidRecord { index, fault });
        }
        let timestamp_ms = base_ms.saturating_add(record.timestamp_delta);
        summary.records_without_key += i32::from(record.key.is_none());
        summary.min_timestamp_ms = summary.min_timestamp_ms.min(timestamp_ms);
        summary.max_timestamp_ms = summary.max_timestamp_ms.max(timestamp_ms);
    }
    Ok(summary)
}

fn take(bytes: &mut Bytes, len: usize) -> Result<Bytes, RecordFault> {
    if len > bytes.len() {
        return Err(RecordFault::Truncated);
    }
    Ok(bytes.split_to(len))
}

/// A length, -1 for "none", and so many bytes.
fn read_field(bytes: &mut Bytes) -> Result<Option<Bytes>, RecordFault> {
    match read_i32(bytes)? {
        -1 => Ok(None),
        len => {
            let len = usize::try_from(len).map_err(|_| RecordFault::NegativeLength)?;
            take(bytes, len).map(Some)
        }
    }
}

fn read_headers(bytes: &mut Bytes) -> Result<Vec<RecordHeader>, RecordFault> {
    let count = usize::try_from(read_i32(bytes)?).map_err(|_| RecordFault::NegativeLength)?;
    // Each takes two bytes at least, so a count beyond that cannot be met and is not worth a header's memory.
    if count > bytes.len() / 2 {
        return Err(RecordFault::Truncated);
    }
    let mut headers = Vec::new();
    for _ in 0..count {
        let key = read_field(bytes)?.ok_or(RecordFault::NegativeLength)?;
        headers.push(RecordHeader { key, value: read_field(bytes)? });
    }
    Ok(headers)
}

/// A zigzag number of at most 32 bits.
pub(super) fn read_i32(bytes: &mut impl Buf) -> Result<i32, RecordFault> {
    let value = read_varint(bytes, 5)?;
    let value = u32::try_from(value).map_err(|_| RecordFault::InvalidVarint)?;
    Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

/// A zigzag number of at most 64 bits.
pub(super) fn read_i64(bytes: &mut impl Buf) -> Result<i64, RecordFault> {
    let value = read_varint(bytes, 10)?;
    Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
}

fn read_varint(bytes: &mut impl Buf, bytes_max: u32) -> Result<u64, RecordFault> {
    let mut value = 0u64;
    for at in 0..bytes_max {
        if !bytes.has_remaining() {
            return Err(RecordFault::Truncated);
        }
        let byte = bytes.get_u8();
        let bits = u64::from(byte & 0x7F);
        let shifted = bits << (7 * at);
        if shifted >> (7 * at) != bits {
            return Err(RecordFault::InvalidVarint);
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(RecordFault::InvalidVarint)
}
