//! Writing a segment: batches come one by one, and no more than a buffer of them is in memory, and the index.
//!
//! - I1: nothing is visible under the segment's name before [`SegmentWriter::finish`] has made all of it durable.
//! - I2: the file is as long as the plan says from its creation on; a plan that the batches do not keep is an error.
//! - I3: after an error, or [`SegmentWriter::discard`], nothing is left of it, as far as the disk lets it be removed.

use std::path::{Path, PathBuf};

use super::format::{
    Footer, INDEX_INTERVAL_BYTES, IndexEntry, SECTOR_BYTES, SegmentFault, SegmentPlan,
    SegmentSummary, encode_index,
};
use super::headers::HeadersCrc;
use super::{SegmentError, temporary};
use crate::batch::BatchHeader;
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::Offset;

/// What is gathered before it is written: so little that writes of the log which wait behind it wait briefly.
const BUFFER_BYTES: usize = 128 << 10;
/// The same where nothing is to be written faster than the segment.
const BUFFER_BYTES_IN_HASTE: usize = crate::limits::DISK_IO_BYTES_MAX;

const _: () = assert!(BUFFER_BYTES.is_multiple_of(DISK_ALIGN));
const _: () = assert!(BUFFER_BYTES <= BUFFER_BYTES_IN_HASTE);

/// See the module's page. One that is dropped leaves a file under a temporary name.
#[derive(Debug)]
pub struct SegmentWriter<D: Disk> {
    disk: D,
    path: PathBuf,
    temporary: PathBuf,
    out: Out<D::File>,
    plan: SegmentPlan,
    index: Vec<IndexEntry>,
    /// Of the batches since the last entry of the index.
    headers: HeadersCrc,
    crc: crc32fast::Hasher,
    end_offset: Offset,
    batches: u64,
    bytes: u64,
    delete_horizon_ms: Option<i64>,
}

/// A file that is written from its beginning to its end, in whole buffers.
struct Out<F: DiskFile> {
    file: F,
    /// What is written next, of `buffer_bytes`, as far as it is filled.
    buffer: Option<F::Buf>,
    buffer_bytes: usize,
    filled: usize,
    position: u64,
}

impl<F: DiskFile> std::fmt::Debug for Out<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Out { filled, position, .. } = self;
        f.debug_struct("Out")
            .field("filled", filled)
            .field("position", position)
            .finish_non_exhaustive()
    }
}

impl<F: DiskFile> Out<F> {
    fn new(file: F) -> Out<F> {
        Out { file, buffer: None, buffer_bytes: BUFFER_BYTES, filled: 0, position: 0 }
    }

    async fn push(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.buffer_bytes - self.filled));
            let buffer = self.buffer.get_or_insert_with(|| self.file.alloc(self.buffer_bytes));
            buffer.as_mut()[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == self.buffer_bytes {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Fills up the sector, so that what comes next begins with one.
    async fn pad(&mut self) -> std::io::Result<()> {
        let missing = self.filled.next_multiple_of(DISK_ALIGN) - self.filled;
        self.push(&[0; DISK_ALIGN][..missing]).await?;
        self.flush().await
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        let Some(buffer) = self.buffer.take() else { return Ok(()) };
        let filled = std::mem::take(&mut self.filled);
        let part = if filled == self.buffer_bytes {
            buffer
        } else {
            let mut part = self.file.alloc(filled);
            part.as_mut().copy_from_slice(&buffer.as_ref()[..filled]);
            part
        };
        self.file.write_at(part, self.position).await?;
        self.position += filled as u64;
        Ok(())
    }
}

impl<D: Disk> SegmentWriter<D> {
    /// Begins a segment that will be called `path`. Its directory is there.
    ///
    /// # Errors
    /// If there can be no such segment, or the disk fails.
    pub async fn create(
        disk: D,
        path: &Path,
        plan: SegmentPlan,
    ) -> Result<SegmentWriter<D>, SegmentError> {
        plan.check().map_err(|fault| SegmentError::NotPlanned { path: path.to_owned(), fault })?;
        let temporary = temporary(path);
        let made = disk.create(&temporary, plan.file_bytes()).await;
        let file = made.map_err(SegmentError::io(path))?;
        let mut writer = SegmentWriter {
            disk,
            path: path.to_owned(),
            temporary,
            out: Out::new(file),
            plan,
            index: Vec::new(),
            headers: HeadersCrc::default(),
            crc: crc32fast::Hasher::new(),
            end_offset: plan.base_offset,
            batches: 0,
            bytes: 0,
            delete_horizon_ms: None,
        };
        let begun = writer.write_header().await.map_err(SegmentError::io(path));
        writer.unless_failed(begun).await?;
        Ok(writer)
    }

    /// Writes from now on as much at once as a disk takes: for records that are missing here until they are written.
    #[must_use]
    pub fn in_haste(mut self) -> SegmentWriter<D> {
        assert!(self.out.buffer.is_none(), "it is asked for before the first batch");
        self.out.buffer_bytes = BUFFER_BYTES_IN_HASTE;
        self
    }

    async fn write_header(&mut self) -> std::io::Result<()> {
        self.out.push(&self.plan.encode()).await?;
        self.out.pad().await
    }

    /// Lets go of what was written (I3). Not cancel-safe.
    pub async fn discard(self) {
        self.remove_file().await;
    }

    async fn remove_file(&self) {
        // What stays is removed by the next writer of this name, or at the next start.
        drop(self.disk.remove(&self.temporary).await);
    }

    async fn unless_failed<T>(&self, result: Result<T, SegmentError>) -> Result<T, SegmentError> {
        if result.is_err() {
            self.remove_file().await; // I3
        }
        result
    }

    /// Adds the next batch, its base offset and its leader epoch patched in. Not cancel-safe.
    ///
    /// # Errors
    /// If it is no batch, does not come next, or the disk fails. The segment cannot be finished then.
    pub async fn push(&mut self, batch: &[u8]) -> Result<(), SegmentError> {
        let pushed = self.push_next(batch).await;
        self.unless_failed(pushed).await
    }

    async fn push_next(&mut self, batch: &[u8]) -> Result<(), SegmentError> {
        let header = BatchHeader::read(batch);
        let header = header.filter(|header| header.size().is_ok_and(|size| size == batch.len()));
        let header = header.ok_or_else(|| self.not_planned(SegmentFault::Batch))?;
        let first = self.batches == 0;
        let in_place = match first {
            true => header.base_offset == self.plan.base_offset,
            false => header.base_offset >= self.end_offset,
        };
        let bytes = self.bytes + batch.len() as u64;
        if !in_place || header.last_offset_delta < 0 {
            return Err(self.not_planned(SegmentFault::Contradiction));
        }
        if bytes > self.plan.payload_bytes || self.batches >= u64::from(self.plan.batches) {
            return Err(self.not_planned(SegmentFault::Count { batches: self.batches + 1, bytes }));
        }
        self.note(header.base_offset, header.max_timestamp_ms);
        self.headers.push(batch);
        if let Some(horizon_ms) = header.delete_horizon_ms().filter(|_| !header.is_control()) {
            let earliest_ms = self.delete_horizon_ms.unwrap_or(horizon_ms);
            self.delete_horizon_ms = Some(earliest_ms.min(horizon_ms));
        }
        self.crc.update(batch);
        self.end_offset = header.base_offset.plus(header.last_offset_delta.unsigned_abs() + 1);
        self.batches += 1;
        self.bytes = bytes;
        self.out.push(batch).await.map_err(SegmentError::io(&self.path))
    }

    /// Notes a batch in the index.
    fn note(&mut self, base_offset: Offset, max_timestamp_ms: i64) {
        let position = SECTOR_BYTES + self.bytes;
        match self.index.last_mut() {
            Some(last) if position - last.position < INDEX_INTERVAL_BYTES => {
                last.max_timestamp_ms = last.max_timestamp_ms.max(max_timestamp_ms);
            }
            _ => {
                self.end_interval();
                let headers_crc = 0; // once its last batch is there
                let entry = IndexEntry { base_offset, position, max_timestamp_ms, headers_crc };
                self.index.push(entry);
            }
        }
    }

    /// No batch is added to those that the last entry of the index stands for.
    fn end_interval(&mut self) {
        if let Some(last) = self.index.last_mut() {
            last.headers_crc = self.headers.take();
        }
    }

    /// Writes index and footer, makes all durable and gives the segment its name. Not cancel-safe.
    ///
    /// # Errors
    /// If batches are missing, or the disk fails.
    pub async fn finish(mut self) -> Result<SegmentSummary, SegmentError> {
        let finished = self.finish_file().await;
        self.unless_failed(finished).await
    }

    async fn finish_file(&mut self) -> Result<SegmentSummary, SegmentError> {
        let complete =
            self.bytes == self.plan.payload_bytes && self.batches == u64::from(self.plan.batches);
        if !complete {
            let fault = SegmentFault::Count { batches: self.batches, bytes: self.bytes };
            return Err(self.not_planned(fault));
        }
        self.end_interval();
        assert!(self.index.len() as u64 <= self.plan.index_entries_max(), "the index has its room");
        let max_timestamp_ms = self.index.iter().map(|e| e.max_timestamp_ms).max().unwrap_or(-1);
        let index = encode_index(&self.index);
        let footer = Footer {
            index_entries: u32::try_from(self.index.len()).unwrap_or(u32::MAX),
            base_offset: self.plan.base_offset,
            end_offset: self.end_offset,
            max_timestamp_ms,
            payload_crc: self.crc.clone().finalize(),
            index_crc: crc32fast::hash(&index),
            delete_horizon_s: self.delete_horizon_ms.map_or(0, delete_horizon_s),
        };
        self.write_end(&index, &footer).await.map_err(SegmentError::io(&self.path))?;
        Ok(SegmentSummary {
            plan: self.plan,
            end_offset: self.end_offset,
            max_timestamp_ms,
            payload_crc: footer.payload_crc,
            delete_horizon_s: footer.delete_horizon_s,
        })
    }

    async fn write_end(&mut self, index: &[u8], footer: &Footer) -> std::io::Result<()> {
        self.out.pad().await?;
        assert!(self.out.position == self.plan.index_position(), "the batches are as planned (I2)");
        self.out.push(index).await?;
        self.out.pad().await?;
        // Space that was reserved and not written reads as zeros; that of a recycled file might not.
        while self.out.position < self.plan.footer_position() {
            self.out.push(&[0; DISK_ALIGN]).await?;
            self.out.pad().await?;
        }
        self.out.push(&footer.encode()).await?;
        self.out.pad().await?;
        assert!(self.out.position == self.plan.file_bytes(), "the file is as long as planned (I2)");
        self.out.file.sync_data().await?;
        self.disk.rename(&self.temporary, &self.path).await?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let synced = self.disk.sync_dir(dir).await;
        if synced.is_err() {
            // Nobody will be told of it, so it must not be found one day beside what was written since.
            drop(self.disk.remove(&self.path).await);
        }
        synced
    }

    fn not_planned(&self, fault: SegmentFault) -> SegmentError {
        SegmentError::NotPlanned { path: self.path.clone(), fault }
    }
}

/// In seconds, rounded up, within what the footer has room for; 0 stands for none.
fn delete_horizon_s(horizon_ms: i64) -> u32 {
    let seconds = horizon_ms.max(1).saturating_add(999) / 1000;
    u32::try_from(seconds).unwrap_or(u32::MAX)
}
