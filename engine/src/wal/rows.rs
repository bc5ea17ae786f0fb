//! The rows and payloads of an extent, checked against the index that led to them.
//!
//! - I1: a payload is handed out only if its row names the group, index, term and offset that were asked for, its block
//!   names this shard, file and position, and its CRC is right.

use std::future::Future;
use std::path::Path;

use bytes::Bytes;
use uuid::Uuid;

use super::block::{BlockHeader, DESCRIPTOR_BYTES, Descriptor, HEADER_BYTES, SlotKind};
use super::reader::StoredBatch;
use super::{ReadError, to_usize};
use crate::ids::{FileSeq, GroupId, Offset, RaftIndex};
use crate::log_index::Extent;

/// A row that was read and is the one that was asked for.
pub(super) struct CheckedRow {
    pub row: Descriptor,
    pub payload_position: u64,
}

/// A file that rows are read from.
pub(super) trait RowSource {
    /// Where it is, and which one.
    fn file(&self) -> (&Path, FileSeq);

    /// Any range of its durable bytes. Cancel-safe.
    fn range(&self, position: u64, len: usize) -> impl Future<Output = Result<Bytes, ReadError>>;
}

/// The rows of an extent, each checked to be the one that the index knows (I1).
pub(super) async fn rows<S: RowSource>(
    source: &S,
    shard: Uuid,
    group: GroupId,
    extent: &Extent,
) -> Result<Vec<CheckedRow>, ReadError> {
    let damaged = |position, index| damaged(source, position, group, index);
    let (_, seq) = source.file();
    let header = source.range(extent.block_position, HEADER_BYTES).await?;
    let header = BlockHeader::decode(&header)
        .ok()
        .filter(|header| header.check_place(shard, seq, extent.block_position).is_ok());
    if header.is_none() {
        return Err(damaged(extent.block_position, extent.first));
    }
    let slots = if extent.lost { 1 } else { u64::from(extent.count) };
    let table = extent.block_position
        + HEADER_BYTES as u64
        + u64::from(extent.first_slot) * DESCRIPTOR_BYTES as u64;
    let bytes = source.range(table, to_usize(slots) * DESCRIPTOR_BYTES).await?;
    let mut rows = Vec::with_capacity(to_usize(slots));
    let mut payload_position = extent.block_position + u64::from(extent.payload_at);
    let payload_end = payload_position + u64::from(extent.payload_bytes);
    let (mut index, mut base_offset) = (extent.first, extent.base_offset);
    for (at, bytes) in bytes.chunks_exact(DESCRIPTOR_BYTES).enumerate() {
        let expected = |row: &Descriptor| {
            let kind = row.kind.entry().is_some() && !extent.lost
                || row.kind == SlotKind::Lost && extent.lost;
            let name = row.group == group && row.index == index && row.term == extent.term;
            let fits = payload_position + u64::from(row.payload_len) <= payload_end;
            kind && name && row.base_offset == base_offset.0 && fits
        };
        let Some(row) = Descriptor::decode(bytes).filter(expected) else {
            return Err(damaged(table + (at * DESCRIPTOR_BYTES) as u64, index));
        };
        rows.push(CheckedRow { row, payload_position });
        payload_position += u64::from(row.payload_len);
        index = index.next();
        base_offset = row.end_offset();
    }
    Ok(rows)
}

/// The payload of a row (I1).
pub(super) async fn payload<S: RowSource>(
    source: &S,
    group: GroupId,
    checked: &CheckedRow,
) -> Result<Bytes, ReadError> {
    let len = to_usize(u64::from(checked.row.payload_len));
    let payload = source.range(checked.payload_position, len).await?;
    if crc32fast::hash(&payload) != checked.row.payload_crc {
        return Err(damaged(source, checked.payload_position, group, checked.row.index));
    }
    Ok(payload)
}

fn damaged<S: RowSource>(source: &S, position: u64, group: GroupId, index: RaftIndex) -> ReadError {
    let path = source.file().0.to_owned();
    ReadError::Damaged { path, position, group, index }
}

/// The batch that a row describes.
pub(super) fn stored(row: &Descriptor, bytes: Bytes) -> StoredBatch {
    StoredBatch {
        base_offset: Offset(row.base_offset),
        offset_count: row.offset_count,
        epoch: row.term,
        index: row.index,
        bytes,
        max_timestamp_ms: row.max_timestamp_ms,
    }
}
