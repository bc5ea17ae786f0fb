//! The block: the unit of a durable write, and how it lies on disk.
//!
//! ```text
//! block      = header (64) | descriptor table (count * 64) | payloads, in table order | zeros to 4096
//! header     = magic u32 "CHWB" | version u16 | kind u8 | flags u8 | shard uuid [16] | file sequence u64
//!            | position u64 | block sequence u64 | length u32 | count u32 | crc u32 | reserved u32
//! descriptor = kind u8 | flags u8 | reserved u16 | payload_len u32 | payload_crc u32 | offset_count u32
//!            | group u64 | index u64 | term u64 | base_offset i64 | max_timestamp_ms i64 | span u64
//! ```
//!
//! All integers are little-endian. `length` is header + table + payloads, without the padding. The header's CRC covers
//! the header (with the CRC's own four bytes as zero) and the table, a descriptor's CRC its payload; both are CRC-32 as
//! `crc32fast` computes it. Table and payloads are apart so that a reader finds an entry without reading what other
//! groups wrote into the same block.
//!
//! What the rows say stands in [`super::descriptor`]. This module knows bytes only: it opens no file and decides nothing about what an invalid block means.
//!
//! - I1: encoding writes every byte of the buffers it is given; a payload is copied exactly once.
//! - I2: decoding is total: any bytes give a value or a [`BlockFault`]. No count or length that was read is used to
//!   reserve memory or to index before it was checked against the bytes at hand.
//! - I3: a batch is stored with its base offset and leader epoch patched into its header; neither is under the batch's
//!   own CRC.

use bytes::Bytes;
use uuid::Uuid;

use super::descriptor::{CHECKPOINT_BYTES_MAX, encode_bincode, encoded_len, put, u32_at, u64_at};
pub use super::descriptor::{Descriptor, SlotKind};
use super::record::{EntryKind, GroupCheckpoint, LogEntry, WalRecord};
use super::to_usize;
use crate::disk::DISK_ALIGN;
use crate::ids::{BlockSeq, FileSeq, GroupId};

/// The first four bytes of every block.
pub const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"CHWB");
/// The version of the format that this build writes, and the greatest that it reads.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a block's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of one descriptor.
pub const DESCRIPTOR_BYTES: usize = 64;
/// The greatest single write. Larger ones gain nothing and have hung kernels; a block above it is several writes.
pub const PART_BYTES: usize = crate::limits::DISK_IO_BYTES_MAX;
/// Bytes of a batch's header, all that recovery keeps of a batch.
pub const BATCH_HEAD_BYTES: usize = crate::batch::HEADER_BYTES;

/// Header flag: the last of the checkpoint blocks at a file's start. Without it the file does not count as started.
pub const FLAG_LAST_CHECKPOINT: u8 = 1;
/// Header flag: the block only says where the file's footer is.
pub const FLAG_LOCATOR: u8 = 2;

// A slot never straddles two parts, and a header never two sectors.
const _: () = assert!(PART_BYTES.is_multiple_of(DISK_ALIGN));
const _: () = assert!(PART_BYTES.is_multiple_of(DESCRIPTOR_BYTES));
const _: () = assert!(HEADER_BYTES.is_multiple_of(DESCRIPTOR_BYTES));
const _: () = assert!(DISK_ALIGN.is_multiple_of(HEADER_BYTES));
const _: () = assert!(header::RESERVED + 4 == HEADER_BYTES);

/// Where the header's fields begin.
mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 4;
    pub const KIND: usize = 6;
    pub const FLAGS: usize = 7;
    pub const SHARD: usize = 8;
    pub const FILE: usize = 24;
    pub const POSITION: usize = 32;
    pub const SEQUENCE: usize = 40;
    pub const LENGTH: usize = 48;
    pub const COUNT: usize = 52;
    pub const CRC: usize = 56;
    pub const RESERVED: usize = 60;
}

/// What a block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BlockKind {
    /// All groups as of the start of the file; the first block or blocks of each file.
    Checkpoint = 1,
    /// Records.
    Data = 2,
    /// Nothing: shows that what is before it is durable.
    Mark = 3,
    /// Nothing: the shard stopped in good order.
    CleanClose = 4,
    /// The file's index, behind its last block.
    Footer = 5,
    /// Stands where damage was, written by `wal repair`.
    Repair = 6,
}

impl BlockKind {
    fn from_u8(value: u8) -> Option<BlockKind> {
        Some(match value {
            1 => BlockKind::Checkpoint,
            2 => BlockKind::Data,
            3 => BlockKind::Mark,
            4 => BlockKind::CleanClose,
            5 => BlockKind::Footer,
            6 => BlockKind::Repair,
            _ => return None,
        })
    }
}

/// What is wrong with bytes that should be a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// The bytes end before the block does.
    #[error("the block is cut short")]
    Short,
    /// There is no block here.
    #[error("no block begins here")]
    NoMagic,
    /// Written by a newer program.
    #[error("format version {version}, this build reads up to {FORMAT_VERSION}")]
    Version {
        /// The version found.
        version: u16,
    },
    /// The block's kind is unknown.
    #[error("unknown kind of block {kind}")]
    Kind {
        /// The kind found.
        kind: u8,
    },
    /// Length and count do not fit together.
    #[error("the header's length {length} and count {count} cannot both be true")]
    Length {
        /// The length found.
        length: u32,
        /// The count found.
        count: u32,
    },
    /// Header or table were changed.
    #[error("the checksum of header and table does not match")]
    HeaderCrc,
    /// A block of another shard.
    #[error("the block belongs to shard {found}")]
    Shard {
        /// The shard found.
        found: Uuid,
    },
    /// A block of another file: stale, from before the file was recycled, or misdirected.
    #[error("the block belongs to file {found}")]
    File {
        /// The file found.
        found: FileSeq,
    },
    /// A block of another place in the file: misdirected.
    #[error("the block belongs at position {found}")]
    Position {
        /// The position found.
        found: u64,
    },
    /// Not the block that must follow.
    #[error("block sequence {found} where {expected} must follow")]
    Sequence {
        /// The sequence that must follow.
        expected: BlockSeq,
        /// The sequence found.
        found: BlockSeq,
    },
    /// A payload was changed.
    #[error("the checksum of the payload of record {slot} does not match")]
    PayloadCrc {
        /// The record's place in the table.
        slot: u32,
    },
    /// A record makes no sense though its checksum is right.
    #[error("record {slot} cannot be decoded")]
    Record {
        /// The record's place in the table.
        slot: u32,
    },
}

/// Where a block is: what makes a valid block in a wrong place invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPlace {
    /// The shard.
    pub shard: Uuid,
    /// The file.
    pub file: FileSeq,
    /// The byte position in the file.
    pub position: u64,
    /// The block's number.
    pub sequence: BlockSeq,
}

/// A block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// What the block is for.
    pub kind: BlockKind,
    /// `FLAG_*`.
    pub flags: u8,
    /// Where it belongs.
    pub place: BlockPlace,
    /// Bytes of header, table and payloads.
    pub length: u32,
    /// Descriptors in the table.
    pub count: u32,
    crc: u32,
}

impl BlockHeader {
    /// Reads the fields; [`BlockFault::HeaderCrc`] is for [`BlockHeader::check_table`] to find.
    pub fn decode(bytes: &[u8]) -> Result<BlockHeader, BlockFault> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BlockFault::Short);
        };
        if u32_at(bytes, header::MAGIC) != BLOCK_MAGIC {
            return Err(BlockFault::NoMagic);
        }
        let version = u16::from_le_bytes([bytes[header::VERSION], bytes[header::VERSION + 1]]);
        if version != FORMAT_VERSION {
            return Err(BlockFault::Version { version });
        }
        let kind = bytes[header::KIND];
        let kind = BlockKind::from_u8(kind).ok_or(BlockFault::Kind { kind })?;
        let (length, count) = (u32_at(bytes, header::LENGTH), u32_at(bytes, header::COUNT));
        let table = u64::from(count) * DESCRIPTOR_BYTES as u64;
        if HEADER_BYTES as u64 + table > u64::from(length) {
            return Err(BlockFault::Length { length, count });
        }
        let mut shard = [0u8; 16];
        shard.copy_from_slice(&bytes[header::SHARD..header::SHARD + 16]);
        Ok(BlockHeader {
            kind,
            flags: bytes[header::FLAGS],
            place: BlockPlace {
                shard: Uuid::from_bytes(shard),
                file: FileSeq(u64_at(bytes, header::FILE)),
                position: u64_at(bytes, header::POSITION),
                sequence: BlockSeq(u64_at(bytes, header::SEQUENCE)),
            },
            length,
            count,
            crc: u32_at(bytes, header::CRC),
        })
    }

    fn encode(&self, out: &mut [u8]) {
        out[..HEADER_BYTES].fill(0);
        put(out, header::MAGIC, &BLOCK_MAGIC.to_le_bytes());
        put(out, header::VERSION, &FORMAT_VERSION.to_le_bytes());
        out[header::KIND] = self.kind as u8;
        out[header::FLAGS] = self.flags;
        put(out, header::SHARD, self.place.shard.as_bytes());
        put(out, header::FILE, &self.place.file.0.to_le_bytes());
        put(out, header::POSITION, &self.place.position.to_le_bytes());
        put(out, header::SEQUENCE, &self.place.sequence.0.to_le_bytes());
        put(out, header::LENGTH, &self.length.to_le_bytes());
        put(out, header::COUNT, &self.count.to_le_bytes());
        put(out, header::CRC, &self.crc.to_le_bytes());
    }

    /// Bytes of header and table.
    #[must_use]
    pub fn table_end(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.count) * DESCRIPTOR_BYTES as u64
    }

    /// Bytes that the block takes in the file.
    #[must_use]
    pub fn padded_len(&self) -> u64 {
        u64::from(self.length).next_multiple_of(DISK_ALIGN as u64)
    }

    /// Whether the block belongs to this shard, file and position.
    pub fn check_place(&self, shard: Uuid, file: FileSeq, position: u64) -> Result<(), BlockFault> {
        if self.place.shard != shard {
            return Err(BlockFault::Shard { found: self.place.shard });
        }
        if self.place.file != file {
            return Err(BlockFault::File { found: self.place.file });
        }
        if self.place.position != position {
            return Err(BlockFault::Position { found: self.place.position });
        }
        Ok(())
    }

    /// Checks header and table against the header's CRC; `bytes` begin with the header and hold the table.
    pub fn check_table(&self, bytes: &[u8]) -> Result<(), BlockFault> {
        let table_end = to_usize(self.table_end());
        let table = bytes.get(HEADER_BYTES..table_end).ok_or(BlockFault::Short)?;
        let mut head = [0u8; HEADER_BYTES];
        head.copy_from_slice(&bytes[..HEADER_BYTES]);
        head[header::CRC..header::CRC + 4].fill(0);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head);
        hasher.update(table);
        if hasher.finalize() == self.crc { Ok(()) } else { Err(BlockFault::HeaderCrc) }
    }
}

/// One thing to be encoded: its row, and its payload as a head built on the stack and a tail that is only borrowed.
struct Item<'a> {
    descriptor: Descriptor,
    head: Option<[u8; BATCH_HEAD_BYTES]>,
    tail: &'a [u8],
}

impl Item<'_> {
    fn payload_len(&self) -> usize {
        self.head.map_or(0, |head| head.len()) + self.tail.len()
    }
}

#[derive(Debug)]
enum Content<'a> {
    Records(&'a [WalRecord]),
    Rows(&'a [(Descriptor, &'a [u8])]),
}

/// A block that is about to be written: its size is known, its bytes are not yet made.
#[derive(Debug)]
pub struct BlockPlan<'a> {
    content: Content<'a>,
    /// Payloads that had to be encoded, in the order of the records that need one; empty for most blocks.
    encoded: Vec<Vec<u8>>,
    length: u64,
}

/// Why a block cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The block would be longer than the header can say.
    #[error("a block of {length} bytes is longer than the format allows")]
    TooLong {
        /// Its length.
        length: u64,
    },
    /// The checkpoint of a group is longer than what can be read again.
    #[error(
        "the checkpoint of group {group} takes {bytes} bytes, of at most {CHECKPOINT_BYTES_MAX}"
    )]
    CheckpointTooLong {
        /// The group.
        group: GroupId,
        /// Its length.
        bytes: u64,
    },
    /// A checkpoint or a group's metadata cannot be encoded.
    #[error("a record cannot be encoded")]
    Encode {
        /// Why.
        #[source]
        source: bincode::error::EncodeError,
    },
}

impl<'a> BlockPlan<'a> {
    /// Plans a block of records. Allocates only for the rare records that are encoded (created groups, checkpoints).
    pub fn new(records: &'a [WalRecord]) -> Result<BlockPlan<'a>, PlanError> {
        let mut encoded = Vec::new();
        let mut length = (HEADER_BYTES + records.len() * DESCRIPTOR_BYTES) as u64;
        for record in records {
            length += match record {
                WalRecord::Entry { entry, .. } => entry.payload.len() as u64,
                WalRecord::GroupCreated { meta, .. } => push_encoded(&mut encoded, meta)?,
                WalRecord::Checkpoint(checkpoint) => {
                    checked_checkpoint(checkpoint)?;
                    push_encoded(&mut encoded, checkpoint)?
                }
                WalRecord::HardState { .. }
                | WalRecord::TruncateAfter { .. }
                | WalRecord::LogStart { .. }
                | WalRecord::GroupDeleted { .. } => 0,
            };
        }
        BlockPlan { content: Content::Records(records), encoded, length }.checked()
    }

    /// Plans a block of rows that are no records.
    pub fn of_rows(rows: &'a [(Descriptor, &'a [u8])]) -> Result<BlockPlan<'a>, PlanError> {
        let payloads: u64 = rows.iter().map(|(_, payload)| payload.len() as u64).sum();
        let length = (HEADER_BYTES + rows.len() * DESCRIPTOR_BYTES) as u64 + payloads;
        BlockPlan { content: Content::Rows(rows), encoded: Vec::new(), length }.checked()
    }

    fn checked(self) -> Result<BlockPlan<'a>, PlanError> {
        padded(self.length)?;
        Ok(self)
    }

    /// The encoded payload of the only record, or of the first that has one.
    #[must_use]
    pub fn encoded_payload(mut self) -> Vec<u8> {
        if self.encoded.is_empty() { Vec::new() } else { self.encoded.swap_remove(0) }
    }

    /// How many rows the table will have.
    #[must_use]
    pub fn count(&self) -> usize {
        match self.content {
            Content::Records(records) => records.len(),
            Content::Rows(rows) => rows.len(),
        }
    }

    /// Bytes that the block will take in the file.
    #[must_use]
    pub fn padded_len(&self) -> u64 {
        self.length.next_multiple_of(DISK_ALIGN as u64)
    }

    /// The sizes of the buffers that [`BlockPlan::encode`] wants.
    pub fn part_lens(&self) -> impl Iterator<Item = usize> + use<> {
        let padded = to_usize(self.padded_len());
        (0..padded).step_by(PART_BYTES).map(move |start| PART_BYTES.min(padded - start))
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let mut encoded = self.encoded.iter();
        (0..self.count()).map(move |slot| match self.content {
            Content::Rows(rows) => {
                Item { descriptor: rows[slot].0, head: None, tail: rows[slot].1 }
            }
            Content::Records(records) => {
                let record = &records[slot];
                let descriptor = Descriptor::of(record);
                match record {
                    WalRecord::Entry { entry, .. } if entry.kind == EntryKind::Batch => {
                        let (head, tail) = patched_batch(entry);
                        Item { descriptor, head: Some(head), tail }
                    }
                    WalRecord::Entry { entry, .. } => {
                        Item { descriptor, head: None, tail: &entry.payload }
                    }
                    WalRecord::GroupCreated { .. } | WalRecord::Checkpoint(_) => {
                        let tail = encoded.next().map_or(&[][..], |payload| payload.as_slice());
                        Item { descriptor, head: None, tail }
                    }
                    WalRecord::HardState { .. }
                    | WalRecord::TruncateAfter { .. }
                    | WalRecord::LogStart { .. }
                    | WalRecord::GroupDeleted { .. } => Item { descriptor, head: None, tail: &[] },
                }
            }
        })
    }

    /// The rows of the table without their CRCs, each with the position of its payload within the block.
    pub fn rows(&self) -> impl Iterator<Item = (Descriptor, u64)> {
        let mut payload_at = (HEADER_BYTES + self.count() * DESCRIPTOR_BYTES) as u64;
        self.items().map(move |item| {
            let at = payload_at;
            payload_at += item.payload_len() as u64;
            (Descriptor { payload_len: len_u32(item.payload_len()), ..item.descriptor }, at)
        })
    }

    /// Makes the block's bytes in buffers of the sizes that [`BlockPlan::part_lens`] gave.
    pub fn encode<B: AsMut<[u8]>>(
        &self,
        parts: &mut [B],
        kind: BlockKind,
        flags: u8,
        place: BlockPlace,
    ) {
        assert!(place.position.is_multiple_of(DISK_ALIGN as u64), "blocks begin at whole sectors");
        let mut total = 0;
        for (part, len) in parts.iter_mut().zip(self.part_lens()) {
            assert!(part.as_mut().len() == len, "the buffers are those that were asked for");
            total += len;
        }
        assert!(total as u64 == self.padded_len(), "the buffers hold the whole block");

        let count = self.count();
        let mut header =
            BlockHeader { kind, flags, place, length: 0, count: len_u32(count), crc: 0 };
        header.length = len_u32(to_usize(self.length));
        let mut at = HEADER_BYTES + count * DESCRIPTOR_BYTES;
        for (slot, item) in self.items().enumerate() {
            let mut hasher = crc32fast::Hasher::new();
            if let Some(head) = &item.head {
                at = copy_into(parts, at, head, &mut hasher);
            }
            at = copy_into(parts, at, item.tail, &mut hasher);
            let row = Descriptor {
                payload_len: len_u32(item.payload_len()),
                payload_crc: hasher.finalize(),
                ..item.descriptor
            };
            let row_at = HEADER_BYTES + slot * DESCRIPTOR_BYTES;
            row.encode(&mut parts[row_at / PART_BYTES].as_mut()[row_at % PART_BYTES..]);
        }
        assert!(at as u64 == self.length, "the payloads end where the plan said");
        while at < total {
            let part = parts[at / PART_BYTES].as_mut();
            part[at % PART_BYTES..].fill(0);
            at = (at / PART_BYTES + 1) * PART_BYTES;
        }
        header.encode(parts[0].as_mut());
        let crc = table_crc(parts, to_usize(header.table_end()));
        put(parts[0].as_mut(), header::CRC, &crc.to_le_bytes());
    }
}

/// Splits a file's checkpoints into blocks of at most `bytes_max`, or of one record where that is longer, and says what
/// each takes in the file. Nothing is encoded: a core with many groups would stand still meanwhile. Without any record
/// there is still one block, because a file begins with one.
pub(super) fn split_checkpoints(
    records: &[WalRecord],
    bytes_max: u64,
) -> Result<Vec<(&[WalRecord], u64)>, PlanError> {
    let mut blocks = Vec::new();
    let (mut from, mut length) = (0, HEADER_BYTES as u64);
    for (at, record) in records.iter().enumerate() {
        let WalRecord::Checkpoint(checkpoint) = record else {
            unreachable!("a file begins with checkpoints, not with {record:?}");
        };
        let payload = checked_checkpoint(checkpoint)?;
        let row = DESCRIPTOR_BYTES as u64 + payload;
        if at > from && padded(length + row)? > bytes_max {
            blocks.push((&records[from..at], padded(length)?));
            (from, length) = (at, HEADER_BYTES as u64);
        }
        length += row;
    }
    blocks.push((&records[from..], padded(length)?));
    Ok(blocks)
}

/// How long the encoding of a checkpoint is, if it is not too long.
fn checked_checkpoint(checkpoint: &GroupCheckpoint) -> Result<u64, PlanError> {
    let bytes = encoded_len(checkpoint).map_err(|source| PlanError::Encode { source })?;
    if bytes > CHECKPOINT_BYTES_MAX {
        return Err(PlanError::CheckpointTooLong { group: checkpoint.group, bytes });
    }
    Ok(bytes)
}

/// What a block of this length takes in the file.
fn padded(length: u64) -> Result<u64, PlanError> {
    let padded = length.next_multiple_of(DISK_ALIGN as u64);
    if u32::try_from(padded).is_err() {
        return Err(PlanError::TooLong { length });
    }
    Ok(padded)
}

fn push_encoded<T: bincode::Encode>(list: &mut Vec<Vec<u8>>, value: &T) -> Result<u64, PlanError> {
    let bytes = encode_bincode(value).map_err(|source| PlanError::Encode { source })?;
    let len = bytes.len() as u64;
    list.push(bytes);
    Ok(len)
}

/// A batch's header as it is stored, and the rest of the batch.
fn patched_batch(entry: &LogEntry) -> ([u8; BATCH_HEAD_BYTES], &[u8]) {
    let Some((head, tail)) = entry.payload.split_first_chunk::<BATCH_HEAD_BYTES>() else {
        unreachable!("a batch of {} bytes has no header", entry.payload.len());
    };
    let mut head = *head;
    head[0..8].copy_from_slice(&entry.base_offset.0.to_be_bytes());
    // Kafka's leader epoch is an i32; a term beyond that is refused where terms are made, here it only saturates.
    let epoch = i32::try_from(entry.term.0).unwrap_or(i32::MAX);
    head[12..16].copy_from_slice(&epoch.to_be_bytes());
    (head, tail)
}

/// Copies into the parts from `at` on and returns where it ended. The checksum is taken of the copy, while it is warm.
fn copy_into<B: AsMut<[u8]>>(
    parts: &mut [B],
    mut at: usize,
    mut source: &[u8],
    hasher: &mut crc32fast::Hasher,
) -> usize {
    while !source.is_empty() {
        let target = &mut parts[at / PART_BYTES].as_mut()[at % PART_BYTES..];
        let len = source.len().min(target.len());
        target[..len].copy_from_slice(&source[..len]);
        hasher.update(&target[..len]);
        source = &source[len..];
        at += len;
    }
    at
}

fn table_crc<B: AsMut<[u8]>>(parts: &mut [B], table_end: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut at = 0;
    while at < table_end {
        let part = parts[at / PART_BYTES].as_mut();
        let end = part.len().min(table_end - at);
        hasher.update(&part[..end]);
        at += PART_BYTES;
    }
    hasher.finalize()
}

/// A block that was read and found whole.
#[derive(Debug, Clone)]
pub struct Block {
    header: BlockHeader,
    bytes: Bytes,
}

impl Block {
    /// Checks everything a block can show by itself: header and table CRC, every payload's CRC, and that the rows are
    /// of known kinds. `bytes` begin with the block; more may follow.
    pub fn decode(bytes: Bytes) -> Result<Block, BlockFault> {
        let header = BlockHeader::decode(&bytes)?;
        if bytes.len() < to_usize(u64::from(header.length)) {
            return Err(BlockFault::Short);
        }
        header.check_table(&bytes)?;
        let block = Block { header, bytes };
        let mut at = header.table_end();
        for slot in 0..header.count {
            let Some(row) = block.descriptor(slot) else {
                return Err(BlockFault::Record { slot });
            };
            let end = at + u64::from(row.payload_len);
            let Some(payload) = block.bytes.get(to_usize(at)..to_usize(end)) else {
                return Err(BlockFault::Record { slot });
            };
            if end > u64::from(header.length) {
                return Err(BlockFault::Record { slot });
            }
            if crc32fast::hash(payload) != row.payload_crc {
                return Err(BlockFault::PayloadCrc { slot });
            }
            at = end;
        }
        if at != u64::from(header.length) {
            return Err(BlockFault::Length { length: header.length, count: header.count });
        }
        Ok(block)
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BlockHeader {
        &self.header
    }

    fn descriptor(&self, slot: u32) -> Option<Descriptor> {
        let at = HEADER_BYTES as u64 + u64::from(slot) * DESCRIPTOR_BYTES as u64;
        Descriptor::decode(self.bytes.get(to_usize(at)..)?)
    }

    /// Every row, with the position of its payload within the block and the payload.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let mut at = self.header.table_end();
        (0..self.header.count).filter_map(move |slot| {
            let descriptor = self.descriptor(slot)?;
            let end = at + u64::from(descriptor.payload_len);
            let payload = self.bytes.slice(to_usize(at)..to_usize(end));
            let row = Row { slot, payload_at: at, descriptor, payload };
            at = end;
            Some(row)
        })
    }
}

/// A row of a block that was read.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its place in the table.
    pub slot: u32,
    /// Where its payload begins within the block.
    pub payload_at: u64,
    /// What it says.
    pub descriptor: Descriptor,
    /// Its payload.
    pub payload: Bytes,
}

fn len_u32(len: usize) -> u32 {
    // `BlockPlan` refuses blocks of 4 GiB before any length in them is written.
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::wal::record::GroupMeta;
    use proptest::prelude::*;

    fn checkpoint(group: u64, state_bytes: usize) -> WalRecord {
        let created = GroupCheckpoint::created(GroupId(group), GroupMeta::default());
        WalRecord::Checkpoint(GroupCheckpoint { state: vec![1; state_bytes], ..created })
    }

    proptest! {
        #[test]
        fn given_checkpoints_when_split_then_all_are_in_blocks_as_long_as_foretold_and_well_filled(
            sizes in prop::collection::vec(0..9_000_usize, 0..40)
        ) {
            let records: Vec<_> = (1..).zip(&sizes).map(|(id, size)| checkpoint(id, *size)).collect();
            let bytes_max = 16_384;
            let blocks = split_checkpoints(&records, bytes_max).unwrap();
            let joined: Vec<_> = blocks.iter().flat_map(|(part, _)| part.iter()).collect();
            prop_assert_eq!(joined, records.iter().collect::<Vec<_>>());
            for (part, bytes) in &blocks {
                prop_assert_eq!(BlockPlan::new(part).unwrap().padded_len(), *bytes);
                prop_assert!(*bytes <= bytes_max);
            }
            for pair in blocks.windows(2) {
                let one_more = pair[0].0.len() + 1;
                let from = records.iter().position(|record| *record == pair[0].0[0]).unwrap();
                let fuller = BlockPlan::new(&records[from..from + one_more]).unwrap();
                prop_assert!(fuller.padded_len() > bytes_max, "the next one would have fit");
            }
        }
    }

    #[test]
    fn given_a_checkpoint_longer_than_a_block_when_split_then_it_is_alone_and_none_at_all_is_a_block()
     {
        let records = [checkpoint(1, 10), checkpoint(2, 50_000), checkpoint(3, 10)];
        let blocks = split_checkpoints(&records, 16_384).unwrap();
        assert_eq!(blocks.iter().map(|(part, _)| part.len()).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(split_checkpoints(&[], 16_384).unwrap(), [(&[][..], 4096)]);
    }
}
