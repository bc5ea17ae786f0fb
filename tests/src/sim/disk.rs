//! The simulated disk as the log sees it: [`SimDisk`], with the bugs of [`Bug`] that sit below the log; how its power
//! goes, and which errors are its own.

use std::io;
use std::path::Path;

use bytes::Bytes;
use chronik_engine::disk::{self, DirEntry, Disk, DiskFile};
use chronik_engine::disk_sim::{CrashEnding, CrashMode, NameEnding, SimDisk, SimFile};
use chronik_engine::segment::SegmentError;
use chronik_engine::wal::{ReadError, WalError};
use chronik_shards::stored::StoredError;
use chronik_tiering::write::WriteError;
use rand::Rng;
use rand::rngs::StdRng;

use super::Bug;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct HookedDisk {
    inner: SimDisk,
    bug: Option<Bug>,
}

impl HookedDisk {
    /// The disk with at most one bug.
    #[must_use]
    pub fn new(inner: SimDisk, bug: Option<Bug>) -> HookedDisk {
        HookedDisk { inner, bug }
    }
}

impl Disk for HookedDisk {
    type File = HookedFile;

    async fn create(&self, path: &Path, len: u64) -> io::Result<HookedFile> {
        let inner = self.inner.create(path, len).await?;
        Ok(HookedFile { inner, bug: self.bug })
    }

    async fn open(&self, path: &Path) -> io::Result<HookedFile> {
        let inner = self.inner.open(path).await?;
        Ok(HookedFile { inner, bug: self.bug })
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(dir).await
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir).await
    }

    async fn available(&self, dir: &Path) -> io::Result<u64> {
        self.inner.available(dir).await
    }
}

/// An open file of a [`HookedDisk`].
#[derive(Debug)]
pub struct HookedFile {
    inner: SimFile,
    bug: Option<Bug>,
}

impl DiskFile for HookedFile {
    type Buf = Vec<u8>;

    fn alloc(&self, len: usize) -> Vec<u8> {
        self.inner.alloc(len)
    }

    async fn write_at(&self, buf: Vec<u8>, position: u64) -> io::Result<()> {
        self.inner.write_at(buf, position).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        match self.bug {
            Some(Bug::SkipSync) => Ok(()),
            Some(Bug::IgnoreSyncError) => {
                drop(self.inner.sync_data().await);
                Ok(())
            }
            _ => self.inner.sync_data().await,
        }
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<Bytes> {
        self.inner.read_at(position, len).await
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }
}

/// How the power goes this time.
pub fn random_crash(rng: &mut StdRng) -> CrashMode {
    match rng.random_range(0..6) {
        0 => CrashMode::KEEP_ALL,
        1 => CrashMode::LOSE_ALL,
        2 => {
            let seed = rng.random();
            CrashMode { writes: CrashEnding::Subset { seed }, names: NameEnding::Random }
        }
        _ => CrashMode::RANDOM,
    }
}

/// Whether the disk is to blame, and not the log.
#[must_use]
pub fn io_failed(error: &WalError) -> bool {
    matches!(error, WalError::Io { .. } | WalError::Poisoned | WalError::StorageFull { .. })
        || matches!(error, WalError::Entries { source, .. } if read_io_failed(source))
}

/// Whether the disk is to blame for a read that failed.
#[must_use]
pub fn read_io_failed(error: &ReadError) -> bool {
    // An index that cannot be read is reported as such, whatever the reason.
    matches!(error, ReadError::Io { .. } | ReadError::Index { .. })
}

/// Whether the disk is to blame for segments that could not be written.
#[must_use]
pub fn tiering_io_failed(error: &WriteError) -> bool {
    match error {
        WriteError::Open(error) | WriteError::Read(error) => read_io_failed(error),
        WriteError::Segment(error) => segment_io_failed(error),
        WriteError::NoRoom { .. } => true,
    }
}

/// Whether the disk is to blame for a segment that could not be written.
#[must_use]
pub fn segment_io_failed(error: &SegmentError) -> bool {
    matches!(error, SegmentError::Io { .. })
}

/// Whether there was no room for a segment.
#[must_use]
pub fn is_segment_full(error: &SegmentError) -> bool {
    matches!(error, SegmentError::Io { source, .. } if disk::is_full(source))
}

/// Whether there was no room for segments.
#[must_use]
pub fn is_full(error: &WriteError) -> bool {
    match error {
        WriteError::Segment(error) => is_segment_full(error),
        WriteError::NoRoom { .. } => true,
        WriteError::Open(_) | WriteError::Read(_) => false,
    }
}

/// Whether the disk is to blame for records that could not be read.
#[must_use]
pub fn stored_io_failed(error: &StoredError) -> bool {
    match error {
        StoredError::Log(error) => read_io_failed(error),
        StoredError::Segment(error) => matches!(error, SegmentError::Io { .. }),
        StoredError::Missing { .. } | StoredError::Restless { .. } => false,
    }
}
