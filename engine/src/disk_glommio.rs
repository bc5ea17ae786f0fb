//! The production disk: `O_DIRECT` files through io_uring, on a glommio executor.
//!
//! Content is written by the core's ring, in which the core sleeps, and read by glommio's; everything about names, which
//! is rare, runs on the executor's blocking thread, so that a slow file system never holds up a core. May be used on the
//! executor it was made on only, inside [`chronik_ring::run`].
//!
//! - I1: no other `DmaFile` is opened on a thread before [`GlommioDisk::new`] has probed the device from there.
//!   glommio asks a device whether it can be polled by reading from the first file that a thread opens; where that
//!   file is empty the answer is a wrong yes, and every later read of that thread fails with `EOPNOTSUPP`.
//! - I2: what the kernel reports to have written is compared with what was asked for; the rest is written again.
//! - I3: no single transfer is over [`DISK_IO_BYTES_MAX`].

use std::cell::RefCell;
use std::fs::OpenOptions as StdOpenOptions;
use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use chronik_ring::guest;
use glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use rustix::fs::OFlags;

use crate::disk::{DISK_ALIGN, DirEntry, Disk, DiskFile};
use crate::disk_std::{self, PROBE_NAME, assert_aligned, assert_transfer, check_within};
use crate::limits::DISK_IO_BYTES_MAX;

/// The file system under one directory, as seen from one executor.
#[derive(Debug, Clone)]
pub struct GlommioDisk {
    /// What was probed was probed for this thread.
    not_send: PhantomData<Rc<()>>,
}

impl GlommioDisk {
    /// Probes the device that holds `dir` from this executor's thread, with a small file `.io-probe` that stays there
    /// and is never listed; makes the directory where it is missing.
    /// Must come before any other file is opened on this executor; every path used later must lie on that device.
    pub async fn new(dir: &Path) -> io::Result<GlommioDisk> {
        let path = dir.join(PROBE_NAME);
        let (probe_dir, probe_path) = (dir.to_path_buf(), path.clone());
        blocking(move || {
            disk_std::create_dir_all_durable(&probe_dir)?;
            write_probe(&probe_path)
        })
        .await?;
        let probe = guest(OpenOptions::new().read(true).dma_open(&path)).await?;
        let read = guest(probe.read_at_aligned(0, DISK_ALIGN)).await?;
        if read.len() != DISK_ALIGN {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        guest(probe.close()).await?;
        Ok(GlommioDisk { not_send: PhantomData })
    }
}

/// Several executors do this at the same time, to the same file and with the same content.
fn write_probe(path: &Path) -> io::Result<()> {
    let mut options = StdOpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&[0; DISK_ALIGN], 0)?;
    file.sync_all()
}

/// Runs what may block on the executor's blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    guest(glommio::executor().spawn_blocking(work)).await
}

/// A descriptor for writing past the page cache where the file system can (tmpfs cannot before Linux 6.6).
fn open_direct(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let open = |flags: OFlags| {
        StdOpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path)
    };
    match open(OFlags::DIRECT | flags) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(open(flags)?.into()),
        opened => Ok(opened?.into()),
    }
}

impl Disk for GlommioDisk {
    type File = GlommioFile;

    async fn create(&self, path: &Path, len: u64) -> io::Result<GlommioFile> {
        let reserved = path.to_path_buf();
        blocking(move || disk_std::create_reserved(&reserved, len).map(drop)).await?;
        self.open(path).await
    }

    async fn open(&self, path: &Path) -> io::Result<GlommioFile> {
        let file = guest(OpenOptions::new().read(true).dma_open(path)).await?;
        let alignment = file.alignment();
        assert!((DISK_ALIGN as u64).is_multiple_of(alignment), "sectors of {alignment} bytes");
        let len = guest(file.file_size()).await?;
        let path = path.to_path_buf();
        let (unsynced, durable) = blocking(move || {
            Ok((open_direct(&path, OFlags::empty())?, open_direct(&path, OFlags::DSYNC)?))
        })
        .await?;
        let writers = Writers { unsynced: Rc::new(unsynced), durable: Rc::new(durable) };
        Ok(GlommioFile { file, writers: RefCell::new(Some(writers)), len })
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = dir.to_path_buf();
        blocking(move || disk_std::list(&dir)).await
    }

    async fn list_others(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = dir.to_path_buf();
        blocking(move || disk_std::list_others(&dir)).await
    }

    async fn modified_ms(&self, path: &Path) -> io::Result<i64> {
        let path = path.to_path_buf();
        blocking(move || disk_std::modified_ms(&path)).await
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_path_buf();
        blocking(move || disk_std::create_dir_all_durable(&dir)).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        blocking(move || std::fs::remove_file(path)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (from.to_path_buf(), to.to_path_buf());
        blocking(move || std::fs::rename(from, to)).await
    }

    /// Not glommio's `Directory::sync`, which is an `fdatasync`: see [`disk_std::sync_dir`].
    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = dir.to_path_buf();
        blocking(move || disk_std::sync_dir(&dir)).await
    }

    async fn available(&self, dir: &Path) -> io::Result<u64> {
        let dir = dir.to_path_buf();
        blocking(move || disk_std::available(&dir)).await
    }
}

/// An open file of a [`GlommioDisk`]. Closed in the background when it is dropped.
#[derive(Debug)]
pub struct GlommioFile {
    file: DmaFile,
    /// `None` once the file is only read: a log of many files has one descriptor for each, not three.
    writers: RefCell<Option<Writers>>,
    len: u64,
}

/// The descriptors that a file is written through.
#[derive(Debug, Clone)]
struct Writers {
    /// For writes that share one sync.
    unsynced: Rc<OwnedFd>,
    /// Opened with `O_DSYNC`: a write that stands alone is one operation and one wake-up instead of two, and needs no
    /// worker thread of io_uring, which `fdatasync` does.
    durable: Rc<OwnedFd>,
}

impl DiskFile for GlommioFile {
    type Buf = DmaBuffer;

    fn alloc(&self, len: usize) -> DmaBuffer {
        assert!(len.is_multiple_of(DISK_ALIGN), "length {len} of a buffer is not aligned");
        self.file.alloc_dma_buffer(len)
    }

    async fn write_at(&self, buf: DmaBuffer, position: u64) -> io::Result<()> {
        let descriptor = self.writers()?.unsynced;
        self.write_all(&descriptor, buf, position).await
    }

    async fn write_durable_at(&self, buf: DmaBuffer, position: u64) -> io::Result<()> {
        let descriptor = self.writers()?.durable;
        self.write_all(&descriptor, buf, position).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        chronik_ring::sync_data(&self.writers()?.unsynced).await.map(drop)
    }

    fn end_writes(&self) {
        self.writers.take();
    }

    /// Copies once, as glommio's buffers belong to the thread and [`Bytes`] does not. A read over
    /// [`DISK_IO_BYTES_MAX`] is done in parts, one after the other.
    async fn read_at(&self, position: u64, len: usize) -> io::Result<Bytes> {
        assert_aligned(position, len);
        check_within(position, len, self.len, io::ErrorKind::UnexpectedEof)?;
        let mut content = BytesMut::with_capacity(len);
        while content.len() < len {
            let from = position + content.len() as u64;
            let part = (len - content.len()).min(DISK_IO_BYTES_MAX);
            let read = guest(self.file.read_at_aligned(from, part)).await?;
            let usable = if read.len() == part { part } else { read.len() & !(DISK_ALIGN - 1) };
            if usable == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            content.extend_from_slice(&read[..usable]);
        }
        Ok(content.freeze())
    }

    fn len(&self) -> u64 {
        self.len
    }
}

impl GlommioFile {
    fn writers(&self) -> io::Result<Writers> {
        let writers = self.writers.borrow().clone();
        writers
            .ok_or_else(|| io::Error::new(io::ErrorKind::PermissionDenied, "the file is only read"))
    }

    /// Writes the whole buffer through one of the file's descriptors.
    async fn write_all(
        &self,
        descriptor: &Rc<OwnedFd>,
        buf: DmaBuffer,
        position: u64,
    ) -> io::Result<()> {
        assert_transfer(position, buf.len());
        check_within(position, buf.len(), self.len, io::ErrorKind::InvalidInput)?;
        let mut buf = Rc::new(buf);
        let mut position = position;
        loop {
            let asked = buf.len();
            let written = chronik_ring::write_at(descriptor, Rc::clone(&buf), position).await?;
            assert!(written <= asked, "more was written than there is");
            if written == asked {
                return Ok(());
            }
            // Direct I/O goes on at an aligned position only; what is written twice is the same both times.
            let done = written - written % DISK_ALIGN;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let mut rest = self.file.alloc_dma_buffer(asked - done);
            rest.as_bytes_mut().copy_from_slice(&buf.as_bytes()[done..]);
            buf = Rc::new(rest);
            position += done as u64;
        }
    }
}
