//! Reading a segment: by offset, by timestamp, and all of it to see whether it is whole.
//!
//! All of it is cancel-safe, and any number of reads may run side by side. In memory are the index and, while a read
//! runs, its batches and two windows of the file.
//!
//! - I1: what is read is bounded by what was asked for and one batch: lengths in the file are checked against its size
//!   before memory is reserved.
//! - I2: a batch's base offset, which its own checksum leaves out, is where the index has it: what is damaged there is not
//!   taken for the end of what was asked for.
//! - I3: what is passed over on the way to what was asked for is checked, too: a batch whose damaged header says that it ends
//!   sooner would be left out in silence. It is less than what lies between two entries of the index.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::SegmentError;
use super::format::{
    Footer, INDEX_ENTRY_BYTES, IndexEntry, SECTOR_BYTES, SegmentFault, SegmentPlan, SegmentSummary,
    decode_index,
};
use crate::batch::{BatchHeader, HEADER_BYTES, RecordBatch};
use crate::disk::{Disk, DiskFile};
use crate::ids::Offset;
use crate::limits::DISK_IO_BYTES_MAX;

/// What one read of the disk asks for at least, and at most where more is wanted: writes of the log wait behind it.
const WINDOW_BYTES: u64 = 128 << 10;
const WINDOW_BYTES_MAX: u64 = 512 << 10;

const _: () = assert!(WINDOW_BYTES.is_multiple_of(SECTOR_BYTES));
const _: () = assert!(WINDOW_BYTES <= WINDOW_BYTES_MAX);
const _: () = assert!(WINDOW_BYTES_MAX <= DISK_IO_BYTES_MAX as u64);

/// A batch as it is stored, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentBatch {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// Its greatest timestamp.
    pub max_timestamp_ms: i64,
    /// The batch.
    pub bytes: Bytes,
}

/// An open segment.
#[derive(Debug)]
pub struct SegmentReader<D: Disk> {
    path: PathBuf,
    file: D::File,
    summary: SegmentSummary,
    index: Vec<IndexEntry>,
}

/// A place in the batches, and what was read ahead of it: `ahead` lies there, `then` follows.
struct Cursor {
    position: u64,
    /// The least that the next batch's base offset can be.
    expected: Offset,
    ahead: Bytes,
    then: Bytes,
    /// What is read at once.
    window_bytes: u64,
}

impl Cursor {
    fn new(position: u64, window_bytes: u64) -> Cursor {
        let (ahead, then) = (Bytes::new(), Bytes::new());
        Cursor { position, expected: Offset(0), ahead, then, window_bytes }
    }
}

impl<D: Disk> SegmentReader<D> {
    /// Opens a segment and reads its ends.
    ///
    /// # Errors
    /// If it is not whole, as far as header, index and footer tell, or the disk fails.
    pub async fn open(disk: &D, path: &Path) -> Result<SegmentReader<D>, SegmentError> {
        let file = disk.open(path).await.map_err(SegmentError::io(path))?;
        let damaged = |position| {
            let path = path.to_owned();
            move |fault| SegmentError::Damaged { path, position, fault }
        };
        if file.len() < SECTOR_BYTES {
            return Err(damaged(0)(SegmentFault::Magic));
        }
        let header = read(&file, path, 0, SECTOR_BYTES).await?;
        let plan = SegmentPlan::decode(&header).map_err(damaged(0))?;
        let (expected, found) = (plan.file_bytes(), file.len());
        if expected != found {
            return Err(damaged(0)(SegmentFault::Length { expected, found }));
        }
        let at = plan.footer_position();
        let footer = Footer::decode(&read(&file, path, at, SECTOR_BYTES).await?);
        let footer = footer.map_err(damaged(at))?;
        let agree = footer.base_offset == plan.base_offset
            && footer.end_offset > plan.base_offset
            && u64::from(footer.index_entries) <= plan.index_entries_max();
        if !agree {
            return Err(damaged(at)(SegmentFault::Contradiction));
        }
        let at = plan.index_position();
        let index_bytes = u64::from(footer.index_entries) * INDEX_ENTRY_BYTES as u64;
        let index = read(&file, path, at, index_bytes).await?;
        if crc32fast::hash(&index) != footer.index_crc {
            return Err(damaged(at)(SegmentFault::Checksum));
        }
        let index = decode_index(&plan, &index).map_err(damaged(at))?;
        let summary = SegmentSummary {
            plan,
            end_offset: footer.end_offset,
            max_timestamp_ms: footer.max_timestamp_ms,
            payload_crc: footer.payload_crc,
            delete_horizon_s: footer.delete_horizon_s,
        };
        Ok(SegmentReader { path: path.to_owned(), file, summary, index })
    }

    /// What it holds.
    #[must_use]
    pub fn summary(&self) -> &SegmentSummary {
        &self.summary
    }

    /// The memory that its index takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.index.len() * size_of::<IndexEntry>()
    }

    /// Whole batches from the one that holds `from`, or the first after it, none that begins at `up_to` or later. The
    /// first one is given even if it is larger than `bytes_max`. What is read before something is found damaged is given,
    /// too.
    ///
    /// # Errors
    /// If the first batch is damaged, or the disk fails.
    pub async fn read_batches(
        &self,
        from: Offset,
        up_to: Offset,
        bytes_max: usize,
    ) -> Result<Vec<SegmentBatch>, SegmentError> {
        let mut batches = Vec::new();
        match self.gather_batches(from..up_to, bytes_max, &mut batches).await {
            Err(error) if batches.is_empty() => Err(error),
            // Who goes on behind them is told.
            Ok(()) | Err(_) => Ok(batches),
        }
    }

    async fn gather_batches(
        &self,
        offsets: Range<Offset>,
        bytes_max: usize,
        batches: &mut Vec<SegmentBatch>,
    ) -> Result<(), SegmentError> {
        let Range { start: from, end: up_to } = offsets;
        let mut bytes = 0;
        let mut cursor = Cursor::new(self.position_of(from), WINDOW_BYTES);
        loop {
            if !batches.is_empty() && bytes + HEADER_BYTES > bytes_max {
                break;
            }
            let wanted = bytes_max.saturating_sub(bytes) as u64;
            cursor.window_bytes = wanted.clamp(WINDOW_BYTES, WINDOW_BYTES_MAX);
            let header = self.header(&mut cursor).await?;
            let Some(header) = header.filter(|header| header.base_offset < up_to) else { break };
            let size = self.size(&cursor, &header)?;
            if end_offset(&header) <= from {
                self.batch(&mut cursor, size).await?; // I3
                continue;
            }
            if !batches.is_empty() && bytes + size > bytes_max {
                break;
            }
            bytes += size;
            batches.push(self.batch(&mut cursor, size).await?);
        }
        Ok(())
    }

    /// The first batch that ends after `from` and has a record, and a timestamp of at least `timestamp_ms`.
    ///
    /// # Errors
    /// If a batch is damaged, or the disk fails.
    pub async fn find_timestamp(
        &self,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<SegmentBatch>, SegmentError> {
        for (at, entry) in self.index.iter().enumerate().skip(self.entry_of(from)) {
            if entry.max_timestamp_ms < timestamp_ms {
                continue;
            }
            let end = self.index.get(at + 1).map_or(self.data_end(), |next| next.position);
            let mut cursor = Cursor::new(entry.position, WINDOW_BYTES);
            while cursor.position < end
                && let Some(header) = self.header(&mut cursor).await?
            {
                let size = self.size(&cursor, &header)?;
                let is_late = header.max_timestamp_ms >= timestamp_ms && header.record_count > 0;
                let batch = self.batch(&mut cursor, size).await?; // I3
                if is_late && batch.end_offset > from {
                    return Ok(Some(batch));
                }
            }
        }
        Ok(None)
    }

    /// Reads all batches and compares them with header and footer.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub async fn verify(&self) -> Result<(), SegmentError> {
        let mut cursor = Cursor::new(SECTOR_BYTES, WINDOW_BYTES);
        let mut crc = crc32fast::Hasher::new();
        let (mut batches, mut expected) = (0_u64, self.summary.plan.base_offset);
        while let Some(header) = self.header(&mut cursor).await? {
            let position = cursor.position;
            let size = self.size(&cursor, &header)?;
            let batch = self.batch(&mut cursor, size).await?;
            if batch.base_offset < expected {
                return Err(self.damaged(position, SegmentFault::Contradiction));
            }
            expected = batch.end_offset;
            batches += 1;
            crc.update(&batch.bytes);
        }
        let plan = &self.summary.plan;
        if batches != u64::from(plan.batches) || expected != self.summary.end_offset {
            let fault = SegmentFault::Count { batches, bytes: plan.payload_bytes };
            return Err(self.damaged(SECTOR_BYTES, fault));
        }
        if crc.finalize() != self.summary.payload_crc {
            return Err(self.damaged(SECTOR_BYTES, SegmentFault::Checksum));
        }
        Ok(())
    }

    fn data_end(&self) -> u64 {
        self.summary.plan.data_end()
    }

    /// The last index entry that does not begin after `offset`, or the first.
    fn entry_of(&self, offset: Offset) -> usize {
        self.index.partition_point(|entry| entry.base_offset <= offset).saturating_sub(1)
    }

    fn position_of(&self, offset: Offset) -> u64 {
        self.index.get(self.entry_of(offset)).map_or(SECTOR_BYTES, |entry| entry.position)
    }

    /// The header of the batch at the cursor; `None` at the end.
    async fn header(&self, cursor: &mut Cursor) -> Result<Option<BatchHeader>, SegmentError> {
        if cursor.position == self.data_end() {
            return Ok(None);
        }
        self.fill(cursor, HEADER_BYTES).await?;
        let header = BatchHeader::read(&cursor.ahead);
        let header = header.filter(|h| h.base_offset.0 >= 0 && h.last_offset_delta >= 0);
        let header = header.ok_or_else(|| self.damaged(cursor.position, SegmentFault::Batch))?;
        if !self.is_in_place(cursor, &header) {
            return Err(self.damaged(cursor.position, SegmentFault::Contradiction));
        }
        cursor.expected = end_offset(&header);
        Ok(Some(header))
    }

    /// Whether the batch at the cursor may have these offsets (I2).
    fn is_in_place(&self, cursor: &Cursor, header: &BatchHeader) -> bool {
        let after = self.index.partition_point(|entry| entry.position <= cursor.position);
        let Some(entry) = after.checked_sub(1).and_then(|at| self.index.get(at)) else {
            return false;
        };
        let begins = match entry.position == cursor.position {
            true => header.base_offset == entry.base_offset,
            false => header.base_offset > entry.base_offset,
        };
        let end = self.index.get(after).map_or(self.summary.end_offset, |next| next.base_offset);
        begins && header.base_offset >= cursor.expected && end_offset(header) <= end
    }

    /// The size of the batch at the cursor, which ends within the file.
    fn size(&self, cursor: &Cursor, header: &BatchHeader) -> Result<usize, SegmentError> {
        let fits = |size: &usize| {
            *size >= HEADER_BYTES && cursor.position + *size as u64 <= self.data_end()
        };
        let size = header.size().ok().filter(fits);
        size.ok_or_else(|| self.damaged(cursor.position, SegmentFault::Batch))
    }

    /// Takes the batch at the cursor, whole and checked.
    async fn batch(&self, cursor: &mut Cursor, size: usize) -> Result<SegmentBatch, SegmentError> {
        self.fill(cursor, size).await?;
        let bytes = cursor.ahead.split_to(size);
        let parsed = RecordBatch::parse_stored(bytes.clone())
            .map_err(|_| self.damaged(cursor.position, SegmentFault::Batch))?;
        cursor.position += size as u64;
        Ok(SegmentBatch {
            base_offset: parsed.base_offset(),
            end_offset: end_offset(parsed.header()),
            max_timestamp_ms: parsed.max_timestamp_ms(),
            bytes,
        })
    }

    /// Reads on until so many bytes are at the cursor. Copied is only what lies across two windows.
    async fn fill(&self, cursor: &mut Cursor, bytes: usize) -> Result<(), SegmentError> {
        if cursor.ahead.len() >= bytes {
            return Ok(());
        }
        if cursor.ahead.is_empty() {
            self.look_ahead(cursor, 0).await?;
            cursor.ahead = std::mem::take(&mut cursor.then);
            if cursor.ahead.len() >= bytes {
                return Ok(());
            }
        }
        let mut joined = BytesMut::with_capacity(bytes);
        joined.extend_from_slice(&cursor.ahead);
        while joined.len() < bytes {
            self.look_ahead(cursor, joined.len() as u64).await?;
            let missing = bytes - joined.len();
            joined.extend_from_slice(&cursor.then.split_to(missing.min(cursor.then.len())));
        }
        cursor.ahead = joined.freeze();
        Ok(())
    }

    /// Reads what follows so many bytes from the cursor on, unless something of it is there.
    async fn look_ahead(&self, cursor: &mut Cursor, after: u64) -> Result<(), SegmentError> {
        if !cursor.then.is_empty() {
            return Ok(());
        }
        let at = cursor.position + after;
        let len = cursor.window_bytes.min(self.data_end().saturating_sub(at));
        if len == 0 {
            return Err(self.damaged(cursor.position, SegmentFault::Batch));
        }
        cursor.then = read(&self.file, &self.path, at, len).await?;
        Ok(())
    }

    fn damaged(&self, position: u64, fault: SegmentFault) -> SegmentError {
        SegmentError::Damaged { path: self.path.clone(), position, fault }
    }
}

fn end_offset(header: &BatchHeader) -> Offset {
    header.base_offset.plus(header.last_offset_delta.unsigned_abs().saturating_add(1))
}

/// Any range of a file: reads the sectors around it, in parts that a disk takes.
async fn read<F: DiskFile>(
    file: &F,
    path: &Path,
    position: u64,
    len: u64,
) -> Result<Bytes, SegmentError> {
    let begin = position - position % SECTOR_BYTES;
    let end = (position + len).next_multiple_of(SECTOR_BYTES);
    let mut parts = Vec::with_capacity(1);
    let mut at = begin;
    while at < end {
        let part = (end - at).min(DISK_IO_BYTES_MAX as u64);
        let bytes = file.read_at(at, usize::try_from(part).unwrap_or(DISK_IO_BYTES_MAX)).await;
        parts.push(bytes.map_err(SegmentError::io(path))?);
        at += part;
    }
    let whole = match parts.len() {
        1 => parts.remove(0),
        _ => Bytes::from(parts.concat()),
    };
    let skip = usize::try_from(position - begin).unwrap_or(usize::MAX);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    Ok(whole.slice(skip..skip.saturating_add(len)))
}
