//! How a segment lies in its file. All integers are little-endian.
//!
//! ```text
//! segment = header (4096 bytes) | batches, zeros up to 4096 | index, zeros up to 4096 | footer (the last 4096 bytes)
//! header  = magic "CHRONSEG" | version u16 = 2 | reserved u16 | partition u32 | cluster uuid | topic uuid | term u64
//!         | base offset i64 | payload bytes u64 | batches u32 | crc u32 of all before it | zeros
//! index   = entries * (base offset i64 | position u64 | greatest timestamp up to the next entry i64
//!         | crc of the headers of the batches up to the next entry u32)
//! footer  = magic "CHRONFTR" | version u16 = 2 | reserved u16 | entries u32 | base offset i64 | end offset i64
//!         | greatest timestamp i64 | crc of the batches u32 | crc of the index u32 | delete horizon in seconds u32
//!         | crc u32 of all before it | zeros
//! ```
//!
//! The first batch has an index entry, and so has each that begins [`INDEX_INTERVAL_BYTES`] or more after the one that
//! got the last. The checksums are CRC-32. Version 1 had none of the batches' headers, and is not read any more.
//!
//! - I1: whatever bytes come in, decoding ends in a value or a [`SegmentFault`].
//! - I2: sizes of a file follow from its plan alone, so its space can be reserved before the first batch is there.

use uuid::Uuid;

use crate::disk::DISK_ALIGN;
use crate::ids::{Offset, Term};

/// The header's and the footer's size, and where the batches begin.
pub const SECTOR_BYTES: u64 = DISK_ALIGN as u64;

/// Bytes of batches from one index entry to the next, at least.
pub const INDEX_INTERVAL_BYTES: u64 = 16 << 10;

/// The largest segment: its index stays a few megabytes.
pub const SEGMENT_BYTES_MAX: u64 = 4 << 30;

/// The size of an index entry.
pub const INDEX_ENTRY_BYTES: usize = 28;

const HEADER_MAGIC: &[u8; 8] = b"CHRONSEG";
const FOOTER_MAGIC: &[u8; 8] = b"CHRONFTR";
const VERSION: u16 = 2;
const HEADER_FIELDS: usize = 76;
const FOOTER_FIELDS: usize = 52;

const _: () = assert!(HEADER_FIELDS + 4 <= DISK_ALIGN);
const _: () = assert!(FOOTER_FIELDS + 4 <= DISK_ALIGN);
const _: () = assert!(SEGMENT_BYTES_MAX / INDEX_INTERVAL_BYTES < u32::MAX as u64);

/// What is wrong with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFault {
    /// Not a segment, or cut.
    #[error("it is no segment, or it is cut")]
    Magic,
    /// Written by another version of the program.
    #[error("format version {version} is not known")]
    Version {
        /// The version.
        version: u16,
    },
    /// A checksum is wrong.
    #[error("a checksum is wrong")]
    Checksum,
    /// The file's length is not what its header says.
    #[error("the file has {found} bytes instead of {expected}")]
    Length {
        /// What the header says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Header, index, footer and batches contradict each other.
    #[error("it contradicts itself")]
    Contradiction,
    /// What stands there is no batch.
    #[error("there is no whole batch")]
    Batch,
    /// Larger than a segment may be, or empty.
    #[error("a segment does not have {bytes} bytes of batches")]
    Size {
        /// The bytes.
        bytes: u64,
    },
    /// More or fewer batches or bytes than the file was made for.
    #[error("{batches} batches of {bytes} bytes")]
    Count {
        /// The batches.
        batches: u64,
        /// Their bytes.
        bytes: u64,
    },
}

/// Whose batches a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentId {
    /// The cluster.
    pub cluster: Uuid,
    /// The topic's id.
    pub topic: Uuid,
    /// The partition's number.
    pub partition: u32,
    /// The term of the leader that cut it.
    pub term: Term,
}

/// What a segment is made for. It stands in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentPlan {
    /// Whose batches.
    pub id: SegmentId,
    /// Where the first batch begins.
    pub base_offset: Offset,
    /// Bytes of all batches.
    pub payload_bytes: u64,
    /// How many.
    pub batches: u32,
}

impl SegmentPlan {
    /// Whether there can be such a segment.
    pub fn check(&self) -> Result<(), SegmentFault> {
        let bytes = self.payload_bytes;
        let fits = bytes > 0 && bytes <= SEGMENT_BYTES_MAX && self.batches > 0;
        if fits && self.base_offset.0 >= 0 { Ok(()) } else { Err(SegmentFault::Size { bytes }) }
    }

    /// Where the batches end.
    #[must_use]
    pub fn data_end(&self) -> u64 {
        SECTOR_BYTES + self.payload_bytes
    }

    /// Where the index begins.
    #[must_use]
    pub fn index_position(&self) -> u64 {
        self.data_end().next_multiple_of(SECTOR_BYTES)
    }

    /// How many index entries there may be.
    #[must_use]
    pub fn index_entries_max(&self) -> u64 {
        u64::from(self.batches).min(self.payload_bytes / INDEX_INTERVAL_BYTES + 1)
    }

    /// Where the footer begins.
    #[must_use]
    pub fn footer_position(&self) -> u64 {
        let index_bytes = self.index_entries_max() * INDEX_ENTRY_BYTES as u64;
        self.index_position() + index_bytes.next_multiple_of(SECTOR_BYTES)
    }

    /// The file's length.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.footer_position() + SECTOR_BYTES
    }

    /// The header's fields, without the zeros behind them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_FIELDS + 4);
        out.extend_from_slice(HEADER_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(&self.id.partition.to_le_bytes());
        out.extend_from_slice(self.id.cluster.as_bytes());
        out.extend_from_slice(self.id.topic.as_bytes());
        out.extend_from_slice(&self.id.term.0.to_le_bytes());
        out.extend_from_slice(&self.base_offset.0.to_le_bytes());
        out.extend_from_slice(&self.payload_bytes.to_le_bytes());
        out.extend_from_slice(&self.batches.to_le_bytes());
        assert!(out.len() == HEADER_FIELDS, "the header's size is part of the format");
        seal(out)
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<SegmentPlan, SegmentFault> {
        let mut fields = Fields::open(bytes, HEADER_MAGIC, HEADER_FIELDS)?;
        fields.take::<2>()?;
        let partition = u32::from_le_bytes(fields.take()?);
        let cluster = Uuid::from_bytes(fields.take()?);
        let topic = Uuid::from_bytes(fields.take()?);
        let term = Term(u64::from_le_bytes(fields.take()?));
        let plan = SegmentPlan {
            id: SegmentId { cluster, topic, partition, term },
            base_offset: Offset(i64::from_le_bytes(fields.take()?)),
            payload_bytes: u64::from_le_bytes(fields.take()?),
            batches: u32::from_le_bytes(fields.take()?),
        };
        plan.check()?;
        Ok(plan)
    }
}

/// What a whole segment holds. All but the plan stand in its footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSummary {
    /// What it was made for.
    pub plan: SegmentPlan,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// The greatest timestamp in it, -1 if none has any.
    pub max_timestamp_ms: i64,
    /// The checksum of all batches.
    pub payload_crc: u32,
    /// See [`Footer::delete_horizon_s`].
    pub delete_horizon_s: u32,
}

impl SegmentSummary {
    /// When compaction may drop the first tombstones in it, rounded up to seconds; none if none waits for that.
    #[must_use]
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        (self.delete_horizon_s > 0).then(|| i64::from(self.delete_horizon_s) * 1000)
    }
}

/// The footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// How many index entries there are.
    pub index_entries: u32,
    /// As in the header.
    pub base_offset: Offset,
    /// The offset after the last record.
    pub end_offset: Offset,
    /// The greatest timestamp, -1 if none has any.
    pub max_timestamp_ms: i64,
    /// The checksum of all batches.
    pub payload_crc: u32,
    /// The checksum of the index.
    pub index_crc: u32,
    /// When compaction may drop the first tombstones in it, in seconds, rounded up; 0 if none waits for that.
    pub delete_horizon_s: u32,
}

impl Footer {
    /// The footer's fields, without the zeros behind them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_FIELDS + 4);
        out.extend_from_slice(FOOTER_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0_u16.to_le_bytes());
        out.extend_from_slice(&self.index_entries.to_le_bytes());
        out.extend_from_slice(&self.base_offset.0.to_le_bytes());
        out.extend_from_slice(&self.end_offset.0.to_le_bytes());
        out.extend_from_slice(&self.max_timestamp_ms.to_le_bytes());
        out.extend_from_slice(&self.payload_crc.to_le_bytes());
        out.extend_from_slice(&self.index_crc.to_le_bytes());
        out.extend_from_slice(&self.delete_horizon_s.to_le_bytes());
        assert!(out.len() == FOOTER_FIELDS, "the footer's size is part of the format");
        seal(out)
    }

    /// Reads a footer.
    pub fn decode(bytes: &[u8]) -> Result<Footer, SegmentFault> {
        let mut fields = Fields::open(bytes, FOOTER_MAGIC, FOOTER_FIELDS)?;
        fields.take::<2>()?;
        Ok(Footer {
            index_entries: u32::from_le_bytes(fields.take()?),
            base_offset: Offset(i64::from_le_bytes(fields.take()?)),
            end_offset: Offset(i64::from_le_bytes(fields.take()?)),
            max_timestamp_ms: i64::from_le_bytes(fields.take()?),
            payload_crc: u32::from_le_bytes(fields.take()?),
            index_crc: u32::from_le_bytes(fields.take()?),
            delete_horizon_s: u32::from_le_bytes(fields.take()?),
        })
    }
}

/// One entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Where its batch begins in the partition.
    pub base_offset: Offset,
    /// Where its batch begins in the file.
    pub position: u64,
    /// The greatest timestamp from there up to the next entry, -1 if there is none.
    pub max_timestamp_ms: i64,
    /// The checksum of the headers of the batches from there up to the next entry, one after the other.
    pub headers_crc: u32,
}

/// The index as bytes.
#[must_use]
pub fn encode_index(entries: &[IndexEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * INDEX_ENTRY_BYTES);
    for entry in entries {
        out.extend_from_slice(&entry.base_offset.0.to_le_bytes());
        out.extend_from_slice(&entry.position.to_le_bytes());
        out.extend_from_slice(&entry.max_timestamp_ms.to_le_bytes());
        out.extend_from_slice(&entry.headers_crc.to_le_bytes());
    }
    out
}

/// Reads an index of a segment with this plan: entries rise in offset and in place, and the first is the first batch's.
pub fn decode_index(plan: &SegmentPlan, bytes: &[u8]) -> Result<Vec<IndexEntry>, SegmentFault> {
    let mut entries = Vec::with_capacity(bytes.len() / INDEX_ENTRY_BYTES);
    let mut fields = Fields { rest: bytes };
    while !fields.rest.is_empty() {
        entries.push(IndexEntry {
            base_offset: Offset(i64::from_le_bytes(fields.take()?)),
            position: u64::from_le_bytes(fields.take()?),
            max_timestamp_ms: i64::from_le_bytes(fields.take()?),
            headers_crc: u32::from_le_bytes(fields.take()?),
        });
    }
    let first = entries.first().ok_or(SegmentFault::Contradiction)?;
    let begins = first.base_offset == plan.base_offset && first.position == SECTOR_BYTES;
    let rises =
        entries.is_sorted_by(|a, b| a.base_offset < b.base_offset && a.position < b.position);
    let ends = entries.last().is_some_and(|last| last.position < plan.data_end());
    if begins && rises && ends { Ok(entries) } else { Err(SegmentFault::Contradiction) }
}

fn seal(mut fields: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&fields);
    fields.extend_from_slice(&crc.to_le_bytes());
    fields
}

/// What is still to be read of fixed fields.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Checks magic, checksum and version of a block of fields.
    fn open(
        bytes: &'a [u8],
        magic: &[u8; 8],
        fields_bytes: usize,
    ) -> Result<Fields<'a>, SegmentFault> {
        let (fields, rest) = bytes.split_at_checked(fields_bytes).ok_or(SegmentFault::Magic)?;
        let crc = u32::from_le_bytes(Fields { rest }.take()?);
        let mut fields = Fields { rest: fields };
        let whole = fields.rest;
        if &fields.take::<8>()? != magic {
            return Err(SegmentFault::Magic);
        }
        if crc32fast::hash(whole) != crc {
            return Err(SegmentFault::Checksum);
        }
        let version = u16::from_le_bytes(fields.take()?);
        if version != VERSION {
            return Err(SegmentFault::Version { version });
        }
        Ok(fields)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], SegmentFault> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(SegmentFault::Magic)?;
        self.rest = rest;
        Ok(*taken)
    }
}
