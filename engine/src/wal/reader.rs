//! Reading entries back: through the index, a shared cache of windows, and the checks that a wrong byte never passes.
//!
//! It reads only what the index names, so never above the durable position, and any number of reads may run beside the
//! writer. All of it is cancel-safe. It knows nothing of high watermarks: the caller says how far it may see.
//! What passes the checks of [`super::rows`] is handed out.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use super::block::SlotKind;
use super::read_cache::WINDOW_BYTES;
use super::record::{EntryKind, LogEntry};
use super::recovery::load_index;
use super::replay::{lost_entries, reduced};
use super::rows::{self, CheckedRow, RowSource, stored};
use super::scan::read_span;
use super::{ReadError, Wal, to_usize};
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::{FileSeq, GroupId, Offset, RaftIndex, Term};
use crate::log_index::{Extent, FileIndex, FileRange, Located, find_offset, find_timestamp};

/// A record batch as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// How many offsets it takes.
    pub offset_count: u32,
    /// The term it was appended in.
    pub epoch: Term,
    /// Its place in the group's log.
    pub index: RaftIndex,
    /// The batch, its base offset and epoch patched in.
    pub bytes: Bytes,
    /// Its greatest timestamp.
    pub max_timestamp_ms: i64,
}

/// A file that is being read.
struct OpenFile<F> {
    seq: FileSeq,
    file: Rc<F>,
    path: PathBuf,
    durable_end: u64,
}

/// An extent and the file it is in.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: FileSeq,
    extent: Extent,
}

impl<D: Disk> Wal<D> {
    /// Whole batches of a group from the one that holds `from` on, none that begins at `up_to` or after it. The first
    /// one is given even if it is larger than `bytes_max`. What is read before something is found damaged is given, too.
    pub async fn read_batches(
        &self,
        group: GroupId,
        from: Offset,
        up_to: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredBatch>, ReadError> {
        let mut batches = Vec::new();
        match self.gather_batches(group, from..up_to, bytes_max, &mut batches).await {
            Err(error) if batches.is_empty() => Err(error),
            // Who goes on behind them is told.
            Ok(()) | Err(_) => Ok(batches),
        }
    }

    async fn gather_batches(
        &self,
        group: GroupId,
        offsets: Range<Offset>,
        bytes_max: usize,
        batches: &mut Vec<StoredBatch>,
    ) -> Result<(), ReadError> {
        let Range { start: from, end: up_to } = offsets;
        self.check_group(group)?;
        if self.first_offset(group).is_some_and(|first| from < first) {
            return Err(ReadError::OffsetReclaimed { group, offset: from });
        }
        let mut bytes = 0;
        let mut place = self.place_of_offset(group, from).await?;
        while let Some(found) = place {
            if found.extent.base_offset >= up_to {
                break;
            }
            let file = self.open_file(found.file).await?;
            for checked in self.rows(group, &file, &found.extent).await? {
                let row = checked.row;
                if row.kind != SlotKind::Batch || row.end_offset() <= from {
                    continue;
                }
                let len = to_usize(u64::from(row.payload_len));
                let full = !batches.is_empty() && bytes + len > bytes_max;
                if full || Offset(row.base_offset) >= up_to {
                    return Ok(());
                }
                bytes += len;
                batches.push(stored(&row, self.payload(group, &file, &checked).await?));
            }
            let next = found.extent.last().next();
            place = self.place_of_index(group, next).await?;
            if place.is_some_and(|place| place.extent.first > next) {
                // The log was cut meanwhile, and what follows does not follow on.
                return Err(ReadError::OffsetReclaimed { group, offset: from });
            }
        }
        Ok(())
    }

    /// Entries of a group from `from` on, none at `to` or after it; the first one even if it is larger than
    /// `bytes_max`. Batches carry their patched header.
    pub async fn read_entries(
        &self,
        group: GroupId,
        from: RaftIndex,
        to: RaftIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        self.check_group(group)?;
        let gone = self.first_index(group).is_none_or(|first| from < first);
        if gone && from < to && self.last_index(group).is_some_and(|last| from <= last) {
            return Err(ReadError::IndexReclaimed { group, index: from });
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut place = self.place_of_index(group, from).await?;
        while let Some(found) = place {
            let file = self.open_file(found.file).await?;
            for checked in self.rows(group, &file, &found.extent).await? {
                let row = checked.row;
                if row.kind == SlotKind::Lost {
                    let wanted = |entry: &LogEntry| entry.index >= from && entry.index < to;
                    let last = found.extent.last();
                    entries.extend(lost_entries(&row).filter(wanted).filter(|e| e.index <= last));
                    continue;
                }
                if row.index < from {
                    continue;
                }
                let len = to_usize(u64::from(row.payload_len));
                let full = !entries.is_empty() && bytes + len > bytes_max;
                if full || row.index >= to {
                    return Ok(entries);
                }
                bytes += len;
                let payload = self.payload(group, &file, &checked).await?;
                entries.push(entry(group, &file, &checked, payload)?);
            }
            if found.extent.last().next() >= to {
                break;
            }
            place = self.place_of_index(group, found.extent.last().next()).await?;
        }
        Ok(entries)
    }

    /// As [`Wal::read_entries`], each batch reduced to its header; all of them or an error.
    pub(super) async fn read_heads(
        &self,
        group: GroupId,
        from: RaftIndex,
        to: RaftIndex,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let mut heads: Vec<LogEntry> = Vec::new();
        let mut next = from;
        while next < to {
            let entries = self.read_entries(group, next, to, WINDOW_BYTES).await?;
            let Some(last) = entries.last() else {
                return Err(ReadError::IndexReclaimed { group, index: next });
            };
            if entries[0].index != next {
                return Err(ReadError::IndexReclaimed { group, index: next });
            }
            next = last.index.next();
            heads.extend(entries.into_iter().map(reduced));
        }
        Ok(heads)
    }

    /// The first batch from `from` on with a timestamp of at least `timestamp_ms` in it.
    pub async fn find_timestamp(
        &self,
        group: GroupId,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<StoredBatch>, ReadError> {
        self.check_group(group)?;
        let Some(start) = self.place_of_offset(group, from).await? else {
            return Ok(None);
        };
        let mut index = start.extent.first;
        while let Some(found) = self.place_of_timestamp(group, index, timestamp_ms).await? {
            let file = self.open_file(found.file).await?;
            for checked in self.rows(group, &file, &found.extent).await? {
                let row = checked.row;
                let fits = row.kind == SlotKind::Batch && row.max_timestamp_ms >= timestamp_ms;
                if fits && row.end_offset() > from {
                    let payload = self.payload(group, &file, &checked).await?;
                    return Ok(Some(stored(&row, payload)));
                }
            }
            index = found.extent.last().next();
        }
        Ok(None)
    }

    fn check_group(&self, group: GroupId) -> Result<(), ReadError> {
        let known = self.state.borrow().index.group(group).is_some();
        if known { Ok(()) } else { Err(ReadError::UnknownGroup { group }) }
    }

    /// Whether damage took any entry of a group from `from` on.
    pub(super) async fn any_lost(
        &self,
        group: GroupId,
        from: RaftIndex,
    ) -> Result<bool, ReadError> {
        let mut place = self.place_of_index(group, from).await?;
        while let Some(Place { extent, .. }) = place {
            if extent.lost {
                return Ok(true);
            }
            place = self.place_of_index(group, extent.last().next()).await?;
        }
        Ok(false)
    }

    async fn place_of_offset(
        &self,
        group: GroupId,
        offset: Offset,
    ) -> Result<Option<Place>, ReadError> {
        let (located, active) = {
            let state = self.state.borrow();
            (state.index.locate_offset(group, offset), state.active.seq)
        };
        match located {
            None => Ok(None),
            Some(Located::Active { extent }) => Ok(Some(Place { file: active, extent })),
            Some(Located::Sealed { range }) => {
                let index = self.file_index(range.file).await?;
                let extents = extents_of(&index, group);
                let found = extents.get(find_offset(extents, offset));
                match found.and_then(|extent| clipped(extent, &range)) {
                    Some(extent) => Ok(Some(Place { file: range.file, extent })),
                    // The range's end was an upper bound (I2 of the index).
                    None => self.place_of_index(group, range.last.next()).await,
                }
            }
        }
    }

    /// The place of this index, or the first one after it: any timestamp will do.
    async fn place_of_index(
        &self,
        group: GroupId,
        index: RaftIndex,
    ) -> Result<Option<Place>, ReadError> {
        self.place_of_timestamp(group, index, i64::MIN).await
    }

    /// The first place from `index` on that can hold a batch with a timestamp of at least `timestamp_ms`.
    async fn place_of_timestamp(
        &self,
        group: GroupId,
        mut index: RaftIndex,
        timestamp_ms: i64,
    ) -> Result<Option<Place>, ReadError> {
        loop {
            let (located, active) = {
                let state = self.state.borrow();
                (state.index.locate_timestamp(group, index, timestamp_ms), state.active.seq)
            };
            match located {
                None => return Ok(None),
                Some(Located::Active { extent }) => {
                    return Ok(Some(Place { file: active, extent }));
                }
                Some(Located::Sealed { range }) => {
                    let file_index = self.file_index(range.file).await?;
                    let extents = extents_of(&file_index, group);
                    let found = find_timestamp(extents, index, timestamp_ms);
                    if let Some(extent) = found.and_then(|extent| clipped(extent, &range)) {
                        return Ok(Some(Place { file: range.file, extent }));
                    }
                    index = range.last.next();
                }
            }
        }
    }

    /// A sealed file's index: from memory, from its footer, or by a scan of the file.
    pub(super) async fn file_index(&self, seq: FileSeq) -> Result<Rc<FileIndex>, ReadError> {
        let pinned = {
            let state = self.state.borrow();
            state.sealed.get(&seq).and_then(|sealed| sealed.pinned.clone())
        };
        if let Some(index) = pinned {
            return Ok(index);
        }
        if let Some(index) = self.footers.borrow_mut().get(seq) {
            return Ok(index);
        }
        let open = self.open_file(seq).await?;
        let shard = self.options.shard_uuid;
        let loaded = load_index(&*open.file, &open.path, shard, seq).await;
        let loaded =
            loaded.map_err(|_| ReadError::Index { path: open.path.clone(), position: 0 })?;
        let index = Rc::new(loaded.index);
        if index.end_position != open.durable_end {
            let position = index.end_position;
            return Err(ReadError::Index { path: open.path.clone(), position });
        }
        self.footers.borrow_mut().insert(seq, Rc::clone(&index));
        Ok(index)
    }

    async fn open_file(&self, seq: FileSeq) -> Result<OpenFile<D::File>, ReadError> {
        let (path, durable_end) = {
            let state = self.state.borrow();
            if state.active.seq == seq {
                let (path, file) = (state.active.path.clone(), Rc::clone(&state.active.file));
                return Ok(OpenFile { seq, file, path, durable_end: state.active.position });
            }
            let Some(sealed) = state.sealed.get(&seq) else {
                // It was reclaimed while its index was being looked at.
                let path = super::file::wal_path(&self.options.dir, seq);
                return Err(ReadError::Io { path, kind: std::io::ErrorKind::NotFound });
            };
            let (path, durable_end) = (sealed.path.clone(), sealed.end_position);
            if let Some(file) = &sealed.file {
                return Ok(OpenFile { seq, file: Rc::clone(file), path, durable_end });
            }
            (path, durable_end)
        };
        let opened = self.disk.open(&path).await;
        let io = |source: std::io::Error| ReadError::Io { path: path.clone(), kind: source.kind() };
        let file = Rc::new(opened.map_err(io)?);
        if let Some(sealed) = self.state.borrow_mut().sealed.get_mut(&seq) {
            file.end_writes();
            sealed.file = Some(Rc::clone(&file));
        }
        Ok(OpenFile { seq, file, path, durable_end })
    }

    /// Any range of a file's durable bytes.
    async fn range(
        &self,
        open: &OpenFile<D::File>,
        position: u64,
        len: usize,
    ) -> Result<Bytes, ReadError> {
        let io = |kind| ReadError::Io { path: open.path.clone(), kind };
        let end = position.saturating_add(len as u64);
        if len == 0 {
            return Ok(Bytes::new());
        }
        if end > open.durable_end {
            return Err(io(std::io::ErrorKind::UnexpectedEof));
        }
        if len > WINDOW_BYTES {
            let align = DISK_ALIGN as u64;
            let from = position - position % align;
            let whole = to_usize(end.next_multiple_of(align) - from);
            let bytes = read_span(&*open.file, from, whole).await.map_err(|e| io(e.kind()))?;
            let start = to_usize(position - from);
            return Ok(bytes.slice(start..start + len));
        }
        let window_bytes = WINDOW_BYTES as u64;
        let (number, start) = (position / window_bytes, to_usize(position % window_bytes));
        let window = self.cache.window(open.seq, &open.file, number, open.durable_end);
        let first = window.await.map_err(io)?;
        if start + len <= WINDOW_BYTES {
            return Ok(first.slice(start..start + len));
        }
        let window = self.cache.window(open.seq, &open.file, number + 1, open.durable_end);
        let second = window.await.map_err(io)?;
        let mut joined = BytesMut::with_capacity(len);
        joined.extend_from_slice(&first[start..]);
        joined.extend_from_slice(&second[..len - joined.len()]);
        Ok(joined.freeze())
    }

    /// The rows of an extent, see [`rows::rows`].
    async fn rows(
        &self,
        group: GroupId,
        open: &OpenFile<D::File>,
        extent: &Extent,
    ) -> Result<Vec<CheckedRow>, ReadError> {
        rows::rows(&Cached { wal: self, open }, self.options.shard_uuid, group, extent).await
    }

    async fn payload(
        &self,
        group: GroupId,
        open: &OpenFile<D::File>,
        checked: &CheckedRow,
    ) -> Result<Bytes, ReadError> {
        let payload = rows::payload(&Cached { wal: self, open }, group, checked).await;
        if let Err(ReadError::Damaged { .. }) = payload {
            // What is cached may be what is damaged, but the disk may also have answered wrongly once.
            self.cache.forget(open.seq);
        }
        payload
    }
}

/// A file as readers see it: through the cache of windows.
struct Cached<'a, D: Disk> {
    wal: &'a Wal<D>,
    open: &'a OpenFile<D::File>,
}

impl<D: Disk> RowSource for Cached<'_, D> {
    fn file(&self) -> (&Path, FileSeq) {
        (&self.open.path, self.open.seq)
    }

    async fn range(&self, position: u64, len: usize) -> Result<Bytes, ReadError> {
        self.wal.range(self.open, position, len).await
    }
}

fn entry<F>(
    group: GroupId,
    open: &OpenFile<F>,
    checked: &CheckedRow,
    payload: Bytes,
) -> Result<LogEntry, ReadError> {
    let row = &checked.row;
    let kind = row.kind.entry().unwrap_or(EntryKind::Noop);
    let entry = row.entry(kind, payload);
    entry.ok_or_else(|| ReadError::Damaged {
        path: open.path.clone(),
        position: checked.payload_position,
        group,
        index: row.index,
    })
}

pub(super) fn extents_of(index: &FileIndex, group: GroupId) -> &[Extent] {
    index.groups.get(&group).map_or(&[][..], |part| part.extents.as_slice())
}

/// The part of a sealed file's extent that later files did not make void.
pub(super) fn clipped(extent: &Extent, range: &FileRange) -> Option<Extent> {
    if extent.first > range.last {
        return None;
    }
    let mut extent = *extent;
    let last = extent.last().min(range.last);
    extent.count = u32::try_from(last.0 - extent.first.0 + 1).unwrap_or(extent.count);
    Some(extent)
}
