//! A disk on which files are made only where enough stays free beside them.
//!
//! What is written anew, by compaction or merging, and what is copied from other nodes can wait; the log's own segments
//! cannot, since without them the log cannot give back a file. So the former get a disk that is full earlier.
//!
//! - I1: a file is made only if [`RoomKept::bytes`] stay free beside it, as far as the file system tells.

use std::future::Future;
use std::io;
use std::path::Path;

use chronik_engine::disk::{DirEntry, Disk};

/// See the module's page.
#[derive(Debug, Clone)]
pub struct RoomKept<D> {
    disk: D,
    /// What is to stay free.
    pub bytes: u64,
}

impl<D: Disk> RoomKept<D> {
    /// This disk, of which so many bytes stay free.
    pub fn new(disk: &D, bytes: u64) -> RoomKept<D> {
        RoomKept { disk: disk.clone(), bytes }
    }

    async fn check(&self, path: &Path, len: u64) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        // What a file system does not tell shows when it is full.
        let available = self.disk.available(dir).await.unwrap_or(u64::MAX);
        if available < self.bytes.saturating_add(len) {
            let why = "what is left is kept free for the segments of the log";
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(())
    }
}

impl<D: Disk> Disk for RoomKept<D> {
    type File = D::File;

    async fn create(&self, path: &Path, len: u64) -> io::Result<D::File> {
        self.check(path, len).await?;
        self.disk.create(path, len).await
    }

    fn open(&self, path: &Path) -> impl Future<Output = io::Result<D::File>> {
        self.disk.open(path)
    }

    fn list(&self, dir: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>> {
        self.disk.list(dir)
    }

    fn list_others(&self, dir: &Path) -> impl Future<Output = io::Result<Vec<String>>> {
        self.disk.list_others(dir)
    }

    fn modified_ms(&self, path: &Path) -> impl Future<Output = io::Result<i64>> {
        self.disk.modified_ms(path)
    }

    fn create_dir_all(&self, dir: &Path) -> impl Future<Output = io::Result<()>> {
        self.disk.create_dir_all(dir)
    }

    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> impl Future<Output = io::Result<()>> {
        self.disk.sync_dir(dir)
    }

    fn available(&self, dir: &Path) -> impl Future<Output = io::Result<u64>> {
        self.disk.available(dir)
    }
}

#[cfg(test)]
mod tests {
    use chronik_engine::disk::is_full;
    use chronik_engine::disk_sim::{SimDisk, block_on};

    use super::*;

    #[test]
    fn given_a_disk_that_is_nearly_full_when_a_file_is_made_then_only_if_enough_stays_free() {
        let disk = SimDisk::new(1);
        let (dir, path) = (Path::new("/d"), Path::new("/d/a"));
        block_on(disk.create_dir_all(dir)).unwrap();
        disk.set_capacity(Some(100 << 10));
        let make = |kept: u64| block_on(RoomKept::new(&disk, kept).create(path, 8 << 10)).map(drop);
        let refused = make((92 << 10) + 1).unwrap_err();
        assert!(is_full(&refused), "{refused}");
        assert!(disk.files().is_empty(), "nothing is left of it");
        make(92 << 10).unwrap();
        assert_eq!(block_on(disk.available(dir)).unwrap(), 92 << 10);
    }
}
