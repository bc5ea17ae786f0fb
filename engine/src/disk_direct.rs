//! Plain files around the page cache, for threads that work in the background: what they write is neither kept in memory
//! nor written in one go when somebody syncs.
//!
//! Every future is ready at its first poll and blocks the thread meanwhile: never use it on a core that serves
//! requests. Where a file system knows no `O_DIRECT`, content goes through the page cache after all.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use aligned_vec::{AVec, ConstAlign};
use bytes::Bytes;
use rustix::fs::OFlags;

use crate::disk::{DISK_ALIGN, DirEntry, Disk, DiskFile};
use crate::disk_std::{
    StdDisk, assert_aligned, assert_transfer, available, check_within, create_unsynced, list,
    list_others, modified_ms, sync_dir,
};

/// The largest single read: writes of the log that wait behind one in the device's queue wait long enough.
const READ_BYTES_MAX: usize = 128 << 10;

const _: () = assert!(READ_BYTES_MAX.is_multiple_of(DISK_ALIGN));

/// Memory that the kernel may hand to the device.
pub type AlignedBuf = AVec<u8, ConstAlign<DISK_ALIGN>>;

/// The file system of this machine, around its page cache.
#[derive(Debug, Clone, Default)]
pub struct DirectDisk;

impl Disk for DirectDisk {
    type File = DirectFile;

    async fn create(&self, path: &Path, len: u64) -> io::Result<DirectFile> {
        drop(create_unsynced(path, len)?);
        DirectFile::open(path)
    }

    async fn open(&self, path: &Path) -> io::Result<DirectFile> {
        DirectFile::open(path)
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        list(dir)
    }

    async fn list_others(&self, dir: &Path) -> io::Result<Vec<String>> {
        list_others(dir)
    }

    async fn modified_ms(&self, path: &Path) -> io::Result<i64> {
        modified_ms(path)
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        StdDisk.create_dir_all(dir).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    async fn available(&self, dir: &Path) -> io::Result<u64> {
        available(dir)
    }
}

/// An open file of a [`DirectDisk`].
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    len: u64,
}

impl DirectFile {
    fn open(path: &Path) -> io::Result<DirectFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        let file = match options.custom_flags(direct).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                options.custom_flags(0).open(path)?
            }
            opened => opened?,
        };
        let len = file.metadata()?.len();
        Ok(DirectFile { file, len })
    }
}

impl DiskFile for DirectFile {
    type Buf = AlignedBuf;

    fn alloc(&self, len: usize) -> AlignedBuf {
        assert!(len.is_multiple_of(DISK_ALIGN), "length {len} of a buffer is not aligned");
        let mut buf = AVec::with_capacity(DISK_ALIGN, len);
        buf.resize(len, 0);
        buf
    }

    async fn write_at(&self, buf: AlignedBuf, position: u64) -> io::Result<()> {
        assert_transfer(position, buf.len());
        check_within(position, buf.len(), self.len, io::ErrorKind::InvalidInput)?;
        self.file.write_all_at(&buf, position)
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<Bytes> {
        assert_aligned(position, len);
        check_within(position, len, self.len, io::ErrorKind::UnexpectedEof)?;
        let mut buf = self.alloc(len);
        for (part, at) in buf.chunks_mut(READ_BYTES_MAX).zip((position..).step_by(READ_BYTES_MAX)) {
            self.file.read_exact_at(part, at)?;
        }
        Ok(Bytes::from_owner(buf))
    }

    fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_sim::block_on;

    #[test]
    fn given_real_files_when_written_around_the_cache_then_the_seam_holds() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("a/b");
        block_on(async {
            DirectDisk.create_dir_all(&dir).await.unwrap();
            let file = DirectDisk.create(&dir.join("f"), 2 << 20).await.unwrap();
            let again = DirectDisk.create(&dir.join("f"), 8192).await.map(|_| ());
            assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            let mut buf = file.alloc(4096);
            buf.fill(3);
            file.write_at(buf, 4096).await.unwrap();
            file.sync_data().await.unwrap();
            let beyond = file.write_at(file.alloc(4096), 2 << 20).await;
            assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            DirectDisk.rename(&dir.join("f"), &dir.join("g")).await.unwrap();
            DirectDisk.sync_dir(&dir).await.unwrap();
            let file = DirectDisk.open(&dir.join("g")).await.unwrap();
            let content = file.read_at(0, 2 << 20).await.unwrap();
            assert_eq!((content[4095], content[4096], content[8192]), (0, 3, 0));
            let eof = file.read_at(4096, 2 << 20).await.unwrap_err();
            assert_eq!(eof.kind(), io::ErrorKind::UnexpectedEof);
            DirectDisk.remove(&dir.join("g")).await.unwrap();
            assert!(DirectDisk.list(&dir).await.unwrap().is_empty());
        });
    }
}
