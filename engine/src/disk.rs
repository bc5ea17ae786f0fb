//! The disk seam: everything the engine does to files goes through [`Disk`] and [`DiskFile`].
//!
//! Three disks stand behind it: `disk_glommio` (production: io_uring, `O_DIRECT`), [`crate::disk_sim`] (seeded faults
//! for tests) and [`crate::disk_std`] (plain files, for the offline `wal` tool). The engine never touches `std::fs`.
//!
//! Rules every caller keeps and every disk may rely on:
//!
//! - I1: positions and lengths of writes and of reads are multiples of [`DISK_ALIGN`].
//! - I2: a write or sync that was started is awaited to its end. Dropping its future leaves the outcome unknown, so no
//!   method here is cancel-safe.
//! - I3: a write is durable only after a [`DiskFile::sync_data`] that was *started* after the write had *completed*.
//! - I4: after a failed write or sync nothing is known about the file's unsynced content: it is never retried.
//!
//! The futures are `!Send`: a file belongs to the core that opened it.

use std::future::Future;
use std::io;
use std::path::Path;

use bytes::Bytes;

/// Alignment of positions, lengths and buffers, in bytes. Larger than what most devices ask for (512), as large as the
/// physical sector of current ones, so that a sector never belongs to two blocks.
pub const DISK_ALIGN: usize = 4096;

/// A file in a listed directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name within the directory.
    pub name: String,
    /// The file's length in bytes.
    pub len: u64,
}

/// A place that holds files.
pub trait Disk: Clone + 'static {
    /// An open file of this disk.
    type File: DiskFile;

    /// Makes a new file of `len` bytes whose space is reserved (`fallocate`). Fails with `AlreadyExists` where there is
    /// one, and with an error that [`is_full`] knows where there is no room. The name is durable only after
    /// [`Disk::sync_dir`].
    fn create(&self, path: &Path, len: u64) -> impl Future<Output = io::Result<Self::File>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> impl Future<Output = io::Result<Self::File>>;

    /// The regular files of a directory, in no particular order.
    fn list(&self, dir: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>>;

    /// The names in a directory that are no regular files: directories, pipes, links. A disk that only has files has none.
    fn list_others(&self, _dir: &Path) -> impl Future<Output = io::Result<Vec<String>>> {
        async { Ok(Vec::new()) }
    }

    /// When a file was written last, in milliseconds since 1970. Not every disk knows.
    fn modified_ms(&self, _path: &Path) -> impl Future<Output = io::Result<i64>> {
        async { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Makes a directory and those above it, durable on return; no error where it exists.
    fn create_dir_all(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Gives a file another name, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;

    /// Bytes that the file system of a directory has left for a program without privileges. A quota may leave less.
    fn available(&self, dir: &Path) -> impl Future<Output = io::Result<u64>>;
}

/// Whether there is no room: on the file system, or in the quota of whoever asked for it.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An open file.
pub trait DiskFile: 'static {
    /// A buffer fit for this file's writes.
    type Buf: AsRef<[u8]> + AsMut<[u8]>;

    /// A buffer of exactly `len` bytes, a multiple of [`DISK_ALIGN`]. Its content is unspecified.
    fn alloc(&self, len: usize) -> Self::Buf;

    /// Writes the whole buffer at `position`, or fails; a short write is continued or reported, never passed over.
    fn write_at(&self, buf: Self::Buf, position: u64) -> impl Future<Output = io::Result<()>>;

    /// `fdatasync`: makes every completed write durable.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>>;

    /// Writes the whole buffer and makes it durable, and with it nothing else: [`DiskFile::write_at`], then
    /// [`DiskFile::sync_data`], where a disk has no better way for a write that stands alone.
    fn write_durable_at(
        &self,
        buf: Self::Buf,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> {
        async move {
            self.write_at(buf, position).await?;
            self.sync_data().await
        }
    }

    /// Reads exactly `len` bytes at `position`, or fails with `UnexpectedEof`.
    fn read_at(&self, position: u64, len: usize) -> impl Future<Output = io::Result<Bytes>>;

    /// The file is only read from now on: what it needs for its writes is given back. A write after this fails.
    fn end_writes(&self) {}

    /// The file's length in bytes as it was when it was opened or created.
    fn len(&self) -> u64;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
