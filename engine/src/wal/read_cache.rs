//! Windows of files and footers that were read and may be read again. Bounded, shared by all readers of a shard.
//!
//! A window is a future that several readers can wait for: the second reader of a place that is being read does not
//! read it again. It holds only bytes that were durable when the read began; a reader that needs more reads it anew.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};

use crate::disk::DiskFile;
use crate::ids::FileSeq;
use crate::log_index::FileIndex;

/// Bytes of one window: large enough that a sequential reader asks seldom, small enough that a lone record is cheap.
pub(super) const WINDOW_BYTES: usize = crate::limits::WAL_READ_EXTENT_BYTES;

type Reading = Shared<LocalBoxFuture<'static, Result<Bytes, io::ErrorKind>>>;

struct Window {
    len: usize,
    used: u64,
    reading: Reading,
}

#[derive(Default)]
struct Windows {
    by_place: BTreeMap<(FileSeq, u64), Window>,
    clock: u64,
}

/// The windows of all files.
pub(super) struct ReadCache {
    windows: RefCell<Windows>,
    windows_max: usize,
}

impl ReadCache {
    pub fn new(bytes: usize) -> ReadCache {
        ReadCache { windows: RefCell::default(), windows_max: (bytes / WINDOW_BYTES).max(2) }
    }

    /// The window with this number, at least up to `durable_end`. Cancel-safe: a dropped reader leaves the read to the
    /// next one.
    pub async fn window<F: DiskFile>(
        &self,
        seq: FileSeq,
        file: &Rc<F>,
        number: u64,
        durable_end: u64,
    ) -> Result<Bytes, io::ErrorKind> {
        let position = number * WINDOW_BYTES as u64;
        let len = super::to_usize(durable_end.saturating_sub(position)).min(WINDOW_BYTES);
        let reading = self.reading((seq, number), file, position, len);
        let result = reading.await;
        if result.is_err() {
            self.windows.borrow_mut().by_place.remove(&(seq, number));
        }
        result
    }

    fn reading<F: DiskFile>(
        &self,
        place: (FileSeq, u64),
        file: &Rc<F>,
        position: u64,
        len: usize,
    ) -> Reading {
        let mut windows = self.windows.borrow_mut();
        windows.clock += 1;
        let used = windows.clock;
        if let Some(window) = windows.by_place.get_mut(&place)
            && window.len >= len
        {
            window.used = used;
            return window.reading.clone();
        }
        let file = Rc::clone(file);
        let reading = async move { file.read_at(position, len).await.map_err(|e| e.kind()) };
        let reading = reading.boxed_local().shared();
        windows.by_place.insert(place, Window { len, used, reading: reading.clone() });
        if windows.by_place.len() > self.windows_max {
            let oldest = windows.by_place.iter().min_by_key(|(_, window)| window.used);
            if let Some(place) = oldest.map(|(place, _)| *place) {
                windows.by_place.remove(&place);
            }
        }
        reading
    }

    pub fn forget(&self, seq: FileSeq) {
        self.windows.borrow_mut().by_place.retain(|(file, _), _| *file != seq);
    }
}

/// Footers of sealed files, the least recently used one dropped first.
pub(super) struct FooterCache {
    list: Vec<(FileSeq, Rc<FileIndex>)>,
    bytes_max: usize,
}

impl FooterCache {
    pub fn new(bytes_max: usize) -> FooterCache {
        FooterCache { list: Vec::new(), bytes_max }
    }

    pub fn get(&mut self, seq: FileSeq) -> Option<Rc<FileIndex>> {
        let at = self.list.iter().position(|(file, _)| *file == seq)?;
        let entry = self.list.remove(at);
        let index = Rc::clone(&entry.1);
        self.list.push(entry);
        Some(index)
    }

    pub fn insert(&mut self, seq: FileSeq, index: Rc<FileIndex>) {
        self.forget(seq);
        self.list.push((seq, index));
        let mut bytes: usize = self.list.iter().map(|(_, index)| index.memory_bytes()).sum();
        while bytes > self.bytes_max && self.list.len() > 1 {
            bytes -= self.list.remove(0).1.memory_bytes();
        }
    }

    pub fn forget(&mut self, seq: FileSeq) {
        self.list.retain(|(file, _)| *file != seq);
    }
}
