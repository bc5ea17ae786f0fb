//! The footer: a sealed file's index, kept behind its last block so that a start need not read the file.
//!
//! ```text
//! sealed file = blocks | footer block | ... | locator block (the last 4096 bytes)
//! footer      = first block u64 | last block u64 | end position u64 | groups u32 | reserved u32
//!             | groups * (group u64 | void from u64 (max = none) | extents u32 | reserved u32)
//!             | extents of all groups, in the order of the groups, 64 bytes each
//! ```
//!
//! The locator is a footer block with [`FLAG_LOCATOR`] whose only row names the footer's position and length. Its place
//! and the footer's are never given to other blocks. A footer is derived data: it may be missing, damaged or written
//! again, and a file without one is scanned.
//!
//! - I1: decoding checks every count against the bytes at hand before it reserves memory.

use bytes::Bytes;

use super::block::{
    Block, BlockFault, BlockHeader, BlockKind, BlockPlace, BlockPlan, Descriptor, FLAG_LOCATOR,
    SlotKind,
};
use super::error::{IoOp, WalError};
use super::file::{BlockLabel, write_block};
use super::scan::read_span;
use super::to_usize;
use crate::disk::{DISK_ALIGN, DiskFile};
use crate::ids::{BlockSeq, FileSeq, GroupId, Offset, RaftIndex, Term};
use crate::log_index::{Extent, FileIndex, GroupFile};
use std::path::Path;
use uuid::Uuid;

/// Bytes at a file's end that only its locator may use.
pub const LOCATOR_BYTES: u64 = DISK_ALIGN as u64;
const HEAD_BYTES: usize = 32;
const GROUP_BYTES: usize = 24;
const EXTENT_BYTES: usize = 64;
const NO_VOID: u64 = u64::MAX;
const FLAG_LOST: u32 = 1;

const _: () = assert!(size_of::<Extent>() == EXTENT_BYTES);

/// Bytes that a footer with so many groups and extents takes in the file, at most.
#[must_use]
pub fn reserve_bytes(groups: usize, extents: usize) -> u64 {
    let payload = HEAD_BYTES + groups * GROUP_BYTES + extents * EXTENT_BYTES;
    let block = payload + super::block::HEADER_BYTES + super::block::DESCRIPTOR_BYTES;
    (block as u64).next_multiple_of(DISK_ALIGN as u64)
}

/// The payload of a footer.
#[must_use]
pub fn encode(index: &FileIndex) -> Vec<u8> {
    let extents: usize = index.groups.values().map(|group| group.extents.len()).sum();
    let groups = index.groups.len();
    let mut out = Vec::with_capacity(HEAD_BYTES + groups * GROUP_BYTES + extents * EXTENT_BYTES);
    out.extend_from_slice(&index.first_block.0.to_le_bytes());
    out.extend_from_slice(&index.last_block.0.to_le_bytes());
    out.extend_from_slice(&index.end_position.to_le_bytes());
    out.extend_from_slice(&count_u32(groups).to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    for (group, part) in &index.groups {
        out.extend_from_slice(&group.0.to_le_bytes());
        let void = part.void_from.map_or(NO_VOID, |index| index.0);
        out.extend_from_slice(&void.to_le_bytes());
        out.extend_from_slice(&count_u32(part.extents.len()).to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
    }
    for extent in index.groups.values().flat_map(|group| &group.extents) {
        encode_extent(extent, &mut out);
    }
    out
}

fn encode_extent(extent: &Extent, out: &mut Vec<u8>) {
    out.extend_from_slice(&extent.first.0.to_le_bytes());
    out.extend_from_slice(&extent.base_offset.0.to_le_bytes());
    out.extend_from_slice(&extent.max_timestamp_ms.to_le_bytes());
    out.extend_from_slice(&extent.term.0.to_le_bytes());
    out.extend_from_slice(&extent.block_position.to_le_bytes());
    for field in [
        extent.payload_at,
        extent.payload_bytes,
        extent.count,
        extent.first_slot,
        extent.offset_span,
        if extent.lost { FLAG_LOST } else { 0 },
    ] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

/// Reads a footer's payload. `None` if it makes no sense.
#[must_use]
pub fn decode(payload: &[u8]) -> Option<FileIndex> {
    let mut reader = Reader { rest: payload };
    let mut index = FileIndex::new(BlockSeq(reader.u64()?));
    index.last_block = BlockSeq(reader.u64()?);
    index.end_position = reader.u64()?;
    let groups = reader.u32()?;
    reader.u32()?;
    let table_bytes = u64::from(groups) * GROUP_BYTES as u64;
    let (mut table, mut extents) = reader.split(table_bytes)?;
    let mut last_group = None;
    for _ in 0..groups {
        let group = GroupId(table.u64()?);
        let void = table.u64()?;
        let count = table.u32()?;
        table.u32()?;
        if last_group.is_some_and(|last| last >= group) {
            return None;
        }
        last_group = Some(group);
        if u64::from(count) * EXTENT_BYTES as u64 > extents.rest.len() as u64 {
            return None;
        }
        let list = (0..count).map(|_| decode_extent(&mut extents)).collect::<Option<Vec<_>>>()?;
        if !list.is_sorted_by(|a, b| a.last() < b.first) {
            return None;
        }
        let void_from = (void != NO_VOID).then_some(RaftIndex(void));
        index.groups.insert(group, GroupFile { void_from, extents: list });
    }
    extents.rest.is_empty().then_some(index)
}

fn decode_extent(reader: &mut Reader<'_>) -> Option<Extent> {
    let extent = Extent {
        first: RaftIndex(reader.u64()?),
        base_offset: Offset(reader.i64()?),
        max_timestamp_ms: reader.i64()?,
        term: Term(reader.u64()?),
        block_position: reader.u64()?,
        payload_at: reader.u32()?,
        payload_bytes: reader.u32()?,
        count: reader.u32()?,
        first_slot: reader.u32()?,
        offset_span: reader.u32()?,
        lost: reader.u32()? & FLAG_LOST != 0,
    };
    let sane = extent.count > 0
        && extent.first.0.checked_add(u64::from(extent.count)).is_some()
        && extent.base_offset.0 >= 0
        && extent.base_offset.0.checked_add(i64::from(extent.offset_span)).is_some();
    sane.then_some(extent)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*value)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn split(self, at: u64) -> Option<(Reader<'a>, Reader<'a>)> {
        let (head, tail) = self.rest.split_at_checked(usize::try_from(at).ok()?)?;
        Some((Reader { rest: head }, Reader { rest: tail }))
    }
}

fn count_u32(count: usize) -> u32 {
    // A file would have to be larger than 256 GiB to hold more extents than this.
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Writes a file's footer and locator. Returns whether there was room for them. Not cancel-safe.
pub(super) async fn write<F: DiskFile>(
    file: &F,
    path: &Path,
    shard: Uuid,
    seq: FileSeq,
    index: &FileIndex,
) -> Result<bool, WalError> {
    let payload = encode(index);
    let row = Descriptor::empty(SlotKind::Footer, GroupId(0));
    let rows = [(row, payload.as_slice())];
    let plan = BlockPlan::of_rows(&rows)?;
    let Some(locator_position) = file.len().checked_sub(LOCATOR_BYTES) else {
        return Ok(false);
    };
    if index.end_position + plan.padded_len() > locator_position {
        return Ok(false);
    }
    let place =
        BlockPlace { shard, file: seq, position: index.end_position, sequence: index.last_block };
    let label = BlockLabel { kind: BlockKind::Footer, flags: 0, place };
    write_block(file, &plan, label, &mut Vec::new())
        .await
        .map_err(WalError::io(IoOp::Write, path))?;
    let locator = Descriptor {
        index: RaftIndex(index.end_position),
        span: plan.padded_len(),
        ..Descriptor::empty(SlotKind::FooterLocator, GroupId(0))
    };
    let rows = [(locator, &[][..])];
    let place = BlockPlace { position: locator_position, ..place };
    let label = BlockLabel { kind: BlockKind::Footer, flags: FLAG_LOCATOR, place };
    write_block(file, &BlockPlan::of_rows(&rows)?, label, &mut Vec::new())
        .await
        .map_err(WalError::io(IoOp::Write, path))?;
    file.sync_data().await.map_err(WalError::io(IoOp::Sync, path))?;
    Ok(true)
}

/// Reads a file's footer. `Ok(None)` if it has none or a damaged one: the file is scanned then.
pub(super) async fn read<F: DiskFile>(
    file: &F,
    path: &Path,
    shard: Uuid,
    seq: FileSeq,
) -> Result<Option<FileIndex>, WalError> {
    let Some(locator_position) = file.len().checked_sub(LOCATOR_BYTES) else {
        return Ok(None);
    };
    let bytes = file
        .read_at(locator_position, to_usize(LOCATOR_BYTES))
        .await
        .map_err(WalError::io(IoOp::Read, path))?;
    let Ok(locator) = decode_in_place(bytes, shard, seq, locator_position) else {
        return Ok(None);
    };
    let Some(row) = locator.rows().find(|row| row.descriptor.kind == SlotKind::FooterLocator)
    else {
        return Ok(None);
    };
    let (position, len) = (row.descriptor.index.0, row.descriptor.span);
    let aligned = position.is_multiple_of(LOCATOR_BYTES) && len.is_multiple_of(LOCATOR_BYTES);
    if !aligned || position.checked_add(len).is_none_or(|end| end > locator_position) {
        return Ok(None);
    }
    let bytes =
        read_span(file, position, to_usize(len)).await.map_err(WalError::io(IoOp::Read, path))?;
    let Ok(block) = decode_in_place(bytes, shard, seq, position) else {
        return Ok(None);
    };
    let row = block.rows().find(|row| row.descriptor.kind == SlotKind::Footer);
    let index = row.and_then(|row| decode(&row.payload));
    Ok(index.filter(|index| index.end_position == position))
}

fn decode_in_place(
    bytes: Bytes,
    shard: Uuid,
    seq: FileSeq,
    position: u64,
) -> Result<Block, BlockFault> {
    let header = BlockHeader::decode(&bytes)?;
    header.check_place(shard, seq, position)?;
    if header.kind != BlockKind::Footer {
        return Err(BlockFault::Kind { kind: header.kind as u8 });
    }
    Block::decode(bytes)
}
