//! Reading a sealed file from outside of its shard, from one end to the other: how batches get into segments.
//!
//! The file is opened anew, so nothing is shared with the shard that it belongs to. That shard keeps the file as it is
//! until the reader is done ([`super::Wal::reclaim`]).

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::block::SlotKind;
use super::reader::{StoredBatch, extents_of};
use super::recovery::load_index;
use super::rows::{self, RowSource, stored};
use super::{ReadError, WalError, to_usize};
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::{FileSeq, GroupId, Offset, RaftIndex};
use crate::limits::DISK_IO_BYTES_MAX;
use crate::log_index::{Extent, FileIndex};

/// What one read of the disk asks for.
const WINDOW_BYTES: usize = 512 << 10;

/// Windows that are kept: a block's table and its payloads may lie far from each other.
const WINDOWS: usize = 3;

const _: () = assert!(WINDOW_BYTES <= DISK_IO_BYTES_MAX);

/// A sealed file as its shard knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedName {
    /// Its number.
    pub seq: FileSeq,
    /// Where it is.
    pub path: PathBuf,
    /// Where its blocks end.
    pub end_position: u64,
}

/// An open sealed file.
#[derive(Debug)]
pub struct SealedFile<D: Disk> {
    path: PathBuf,
    seq: FileSeq,
    shard: Uuid,
    file: D::File,
    index: FileIndex,
    windows: RefCell<Windows>,
}

/// What was read last, newest first.
#[derive(Debug, Default)]
struct Windows {
    kept: Vec<(u64, Bytes)>,
    bytes_read: u64,
}

impl<D: Disk> SealedFile<D> {
    /// Opens a sealed file of a shard and reads its index.
    ///
    /// # Errors
    /// If it is not that file, or damaged, or the disk fails.
    pub async fn open(
        disk: &D,
        shard: Uuid,
        named: &SealedName,
    ) -> Result<SealedFile<D>, ReadError> {
        let SealedName { seq, path, end_position } = named.clone();
        let io = |kind| ReadError::Io { path: path.clone(), kind };
        let file = disk.open(&path).await.map_err(|error| io(error.kind()))?;
        let loaded = load_index(&file, &path, shard, seq).await.map_err(|error| match error {
            WalError::Io { source, .. } => io(source.kind()),
            _ => ReadError::Index { path: path.clone(), position: 0 },
        })?;
        let index = loaded.index;
        if index.end_position != end_position {
            // There is no footer, and a scan came to an end before the blocks do.
            return Err(ReadError::Index { path, position: index.end_position });
        }
        Ok(SealedFile { path, seq, shard, file, index, windows: RefCell::default() })
    }

    /// The extents of a group up to the entry `last`, without those that end at or before `from`.
    pub fn extents(
        &self,
        group: GroupId,
        from: Offset,
        last: RaftIndex,
    ) -> impl Iterator<Item = &Extent> {
        let wanted = move |extent: &&Extent| extent.first <= last && extent.end_offset() > from;
        extents_of(&self.index, group).iter().filter(wanted)
    }

    /// The batches of one extent up to the entry `last`, without those that end at or before `from`. Cancel-safe.
    ///
    /// # Errors
    /// If one is damaged, or the disk fails.
    pub async fn batches(
        &self,
        group: GroupId,
        extent: &Extent,
        from: Offset,
        last: RaftIndex,
    ) -> Result<Vec<StoredBatch>, ReadError> {
        let mut batches = Vec::new();
        for checked in rows::rows(self, self.shard, group, extent).await? {
            let row = &checked.row;
            if row.kind == SlotKind::Batch && row.index <= last && row.end_offset() > from {
                batches.push(stored(row, rows::payload(self, group, &checked).await?));
            }
        }
        Ok(batches)
    }

    /// Bytes read from the disk since this was asked last.
    #[must_use]
    pub fn take_bytes_read(&self) -> u64 {
        std::mem::take(&mut self.windows.borrow_mut().bytes_read)
    }

    /// The window that begins there, from memory or from the disk.
    async fn window(&self, position: u64) -> Result<Bytes, ReadError> {
        {
            let mut windows = self.windows.borrow_mut();
            if let Some(at) = windows.kept.iter().position(|(begin, _)| *begin == position) {
                windows.kept[..=at].rotate_right(1);
                return Ok(windows.kept[0].1.clone());
            }
        }
        let file_end = self.file.len() - self.file.len() % DISK_ALIGN as u64;
        let len = WINDOW_BYTES.min(to_usize(file_end.saturating_sub(position)));
        let io = |kind| ReadError::Io { path: self.path.clone(), kind };
        if len == 0 {
            return Err(io(std::io::ErrorKind::UnexpectedEof));
        }
        let bytes = self.file.read_at(position, len).await.map_err(|error| io(error.kind()))?;
        let mut windows = self.windows.borrow_mut();
        windows.kept.truncate(WINDOWS - 1);
        windows.kept.insert(0, (position, bytes.clone()));
        windows.bytes_read += len as u64;
        Ok(bytes)
    }
}

impl<D: Disk> RowSource for SealedFile<D> {
    fn file(&self) -> (&Path, FileSeq) {
        (&self.path, self.seq)
    }

    async fn range(&self, position: u64, len: usize) -> Result<Bytes, ReadError> {
        let eof =
            || ReadError::Io { path: self.path.clone(), kind: std::io::ErrorKind::UnexpectedEof };
        let end = position.checked_add(len as u64).filter(|end| *end <= self.index.end_position);
        let end = end.ok_or_else(eof)?;
        let mut joined = BytesMut::new();
        let mut at = position;
        while at < end {
            let begin = at - at % WINDOW_BYTES as u64;
            let window = self.window(begin).await?;
            let skip = to_usize(at - begin);
            let take = to_usize(end - at).min(window.len().saturating_sub(skip));
            if take == 0 {
                return Err(eof());
            }
            if take == len {
                return Ok(window.slice(skip..skip + take));
            }
            joined.extend_from_slice(&window[skip..skip + take]);
            at += take as u64;
        }
        Ok(joined.freeze())
    }
}
