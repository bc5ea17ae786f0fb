//! Reading a segment: by offset, by timestamp, and all of it to see whether it is whole.
//!
//! All of it is cancel-safe, and any number of reads may run side by side. In memory are the index and, while a read
//! runs, its batches and two windows of the file.
//!
//! - I1: what is read is bounded by what was asked for and one batch: lengths in the file are checked against its size
//!   before memory is reserved.
//! - I2: a header is believed only once those of its interval of the index are right by their checksum, which has what a
//!   batch's own leaves out, its base offset and its leader epoch. So a read looks at headers up to 16 KiB behind its end.
//! - I3: what is passed over on the way to what was asked for needs no more than that: no content of it is relied on.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes, BytesMut};

use super::SegmentError;
use super::format::{
    Footer, INDEX_ENTRY_BYTES, INDEX_INTERVAL_BYTES, IndexEntry, SECTOR_BYTES, SegmentFault,
    SegmentPlan, SegmentSummary, decode_index,
};
use super::headers::HeadersCrc;
use crate::batch::{BatchHeader, HEADER_BYTES, RecordBatch};
use crate::disk::{Disk, DiskFile};
use crate::ids::Offset;
use crate::limits::DISK_IO_BYTES_MAX;

/// What has to be there of an index interval for the headers of all its batches to be there.
const HEADERS_BYTES_MAX: u64 = INDEX_INTERVAL_BYTES + HEADER_BYTES as u64;
/// What lies around the batches that a read gives: those before them in their interval, and headers behind them (I2).
const AROUND_BYTES: u64 = (INDEX_INTERVAL_BYTES + HEADERS_BYTES_MAX).next_multiple_of(SECTOR_BYTES);
/// What one read of the disk asks for at least, and at most where more is wanted: writes of the log wait behind it.
const WINDOW_BYTES: u64 = 128 << 10;
const WINDOW_BYTES_MAX: u64 = (512 << 10) + AROUND_BYTES;

const _: () = assert!(WINDOW_BYTES.is_multiple_of(SECTOR_BYTES));
const _: () = assert!(AROUND_BYTES <= WINDOW_BYTES);
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
    /// Headers are right up to here (I2).
    checked_to: u64,
    headers: HeadersCrc,
    ahead: Bytes,
    then: Bytes,
    /// What is read at once.
    window_bytes: u64,
}

impl Cursor {
    /// At the beginning of an index interval.
    fn new(position: u64, window_bytes: u64) -> Cursor {
        let (headers, ahead, then) = (HeadersCrc::default(), Bytes::new(), Bytes::new());
        Cursor { position, checked_to: position, headers, ahead, then, window_bytes }
    }

    /// Goes on behind so many bytes, read or not.
    fn pass(&mut self, bytes: usize) {
        self.position += bytes as u64;
        let here = bytes.min(self.ahead.len());
        self.ahead.advance(here);
        let behind = (bytes - here).min(self.then.len());
        self.then.advance(behind);
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
            let room = bytes_max.saturating_sub(bytes);
            cursor.window_bytes =
                (room as u64).saturating_add(AROUND_BYTES).clamp(WINDOW_BYTES, WINDOW_BYTES_MAX);
            if !batches.is_empty() && !self.may_fit(&mut cursor, room).await? {
                break;
            }
            let header = self.header(&mut cursor).await?;
            let Some(header) = header.filter(|header| header.base_offset < up_to) else { break };
            let size = self.size(&cursor, &header)?;
            if end_offset(&header) <= from {
                cursor.pass(size); // I3
                continue;
            }
            bytes += size;
            batches.push(self.batch(&mut cursor, size).await?);
        }
        Ok(())
    }

    /// Whether there is room for the batch at the cursor, or none is there. Its header need not be right: who is told too
    /// early that there is no room comes again.
    async fn may_fit(&self, cursor: &mut Cursor, room: usize) -> Result<bool, SegmentError> {
        if room < HEADER_BYTES {
            return Ok(false);
        }
        if cursor.position == self.data_end() {
            return Ok(true);
        }
        self.fill(cursor, HEADER_BYTES).await?;
        let size = BatchHeader::read(&cursor.ahead).and_then(|header| header.size().ok());
        Ok(size.is_none_or(|size| size <= room))
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
                if is_late && end_offset(&header) > from {
                    return self.batch(&mut cursor, size).await.map(Some);
                }
                cursor.pass(size); // I3
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
        if cursor.position == cursor.checked_to {
            self.check_headers(cursor).await?;
        }
        self.fill(cursor, HEADER_BYTES).await?;
        let header = BatchHeader::read(&cursor.ahead);
        header.map(Some).ok_or_else(|| self.damaged(cursor.position, SegmentFault::Batch))
    }

    /// Checks all headers of the index interval that begins at the cursor (I2).
    async fn check_headers(&self, cursor: &mut Cursor) -> Result<(), SegmentError> {
        let begin = cursor.position;
        let damaged = |fault| self.damaged(begin, fault);
        let at = self.index.partition_point(|entry| entry.position < begin);
        let entry = self.index.get(at).filter(|entry| entry.position == begin);
        let entry = entry.ok_or_else(|| damaged(SegmentFault::Contradiction))?;
        let end = self.index.get(at + 1).map_or(self.data_end(), |next| next.position);
        let len = end - begin;
        self.fill(cursor, length(len.min(HEADERS_BYTES_MAX))).await?;
        let found = cursor.headers.of(&cursor.ahead, length(len));
        let found = found.ok_or_else(|| damaged(SegmentFault::Batch))?;
        if found != entry.headers_crc {
            return Err(damaged(SegmentFault::Checksum));
        }
        cursor.checked_to = end;
        Ok(())
    }

    /// The size of the batch at the cursor, which ends within its interval (I2).
    fn size(&self, cursor: &Cursor, header: &BatchHeader) -> Result<usize, SegmentError> {
        header.size().map_err(|_| self.damaged(cursor.position, SegmentFault::Batch))
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
    let skip = length(position - begin);
    Ok(whole.slice(skip..skip.saturating_add(length(len))))
}

/// A number of bytes of a file, of which less than 4 GiB are read.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
