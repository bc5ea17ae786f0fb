//! The records of a batch as they lie in its decompressed bytes, for who goes through many and keeps few of them, as
//! compaction does: nothing is allocated per record.
//!
//! - I1: all records of a [`RecordSlices`] decode, there are as many as the header says, and nothing is behind them.
//! - I2: their offsets rise and none is beyond the batch's last one: no two records have the same offset.

use bytes::Bytes;

use super::header::BatchHeader;
use super::records::{read_i32, read_i64};
use super::{BatchError, RecordFault};

/// See the module's page.
#[derive(Debug, Clone)]
pub struct RecordSlices {
    content: Bytes,
}

/// A record and where its parts lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSlice<'a> {
    /// Its offset from the batch's base offset.
    pub offset_delta: i32,
    /// Its timestamp from the batch's base timestamp.
    pub timestamp_delta: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Whether it has no value.
    pub is_tombstone: bool,
    /// All of it, its length included.
    pub(super) whole: &'a [u8],
    /// Its attributes, of which no bit is in use.
    pub(super) attributes: u8,
    /// What follows the deltas: key, value and headers.
    pub(super) tail: &'a [u8],
}

impl RecordSlices {
    /// Goes through all records once.
    pub(super) fn check(content: Bytes, header: &BatchHeader) -> Result<RecordSlices, BatchError> {
        let mut rest = &content[..];
        let mut next_delta = 0;
        for index in 0..header.record_count {
            let invalid = |fault| BatchError::InvalidRecord { index, fault };
            let record = next_record(&mut rest).map_err(invalid)?;
            let in_order = (next_delta..=header.last_offset_delta).contains(&record.offset_delta);
            if !in_order {
                return Err(invalid(RecordFault::OffsetOutOfOrder));
            }
            next_delta = record.offset_delta.saturating_add(1);
        }
        match rest.len() {
            0 => Ok(RecordSlices { content }),
            trailing => Err(BatchError::TrailingRecordBytes { trailing }),
        }
    }

    /// The records in order.
    pub fn iter(&self) -> impl Iterator<Item = RecordSlice<'_>> {
        let mut rest = &self.content[..];
        // All of them were checked, so the first that does not decode is what is behind the last.
        std::iter::from_fn(move || next_record(&mut rest).ok())
    }
}

fn next_record<'a>(rest: &mut &'a [u8]) -> Result<RecordSlice<'a>, RecordFault> {
    let start = *rest;
    let len = length(read_i32(rest)?)?;
    let mut body = take(rest, len)?;
    let whole = &start[..start.len() - rest.len()];
    let (attributes, after) = body.split_first().ok_or(RecordFault::Truncated)?;
    body = after;
    let timestamp_delta = read_i64(&mut body)?;
    let offset_delta = read_i32(&mut body)?;
    let tail = body;
    let key = field(&mut body)?;
    let is_tombstone = field(&mut body)?.is_none();
    for _ in 0..length(read_i32(&mut body)?)? {
        field(&mut body)?.ok_or(RecordFault::NegativeLength)?;
        field(&mut body)?;
    }
    if !body.is_empty() {
        return Err(RecordFault::TrailingBytes);
    }
    let attributes = *attributes;
    Ok(RecordSlice { offset_delta, timestamp_delta, key, is_tombstone, whole, attributes, tail })
}

/// A length, -1 for "none", and so many bytes.
fn field<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordFault> {
    match read_i32(rest)? {
        -1 => Ok(None),
        len => take(rest, length(len)?).map(Some),
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], RecordFault> {
    let (taken, after) = rest.split_at_checked(len).ok_or(RecordFault::Truncated)?;
    *rest = after;
    Ok(taken)
}

fn length(len: i32) -> Result<usize, RecordFault> {
    usize::try_from(len).map_err(|_| RecordFault::NegativeLength)
}
