//! The plainest way to bring bytes from one disk to another node's: read them past the page cache, send them over
//! loopback TCP, write them past the page cache, sync. What a refill is measured by.
//!
//! - I1: the time ends when the copy is durable.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustix::io::{pread, pwrite};

use crate::clock::Clock;
use crate::disk::{CHUNK_BYTES, Chunk, create_direct, open_direct};

/// A file that is copied again and again.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    copy: PathBuf,
    chunks: u64,
}

impl Source {
    /// Writes a file of `bytes`, rounded up to whole chunks, in `dir`.
    pub fn make(dir: &Path, bytes: u64) -> Result<Source> {
        let chunks = bytes.div_ceil(u64::try_from(CHUNK_BYTES)?);
        let path = dir.join("copy.source");
        let file = create_direct(&path)?;
        let mut random = StdRng::from_os_rng();
        let mut chunk = Chunk::new();
        random.fill_bytes(chunk.bytes());
        for at in 0..chunks {
            // No two are the same, for disks that would notice.
            random.fill_bytes(&mut chunk.bytes()[..4_096]);
            write_chunk(&file, &mut chunk, at)?;
        }
        rustix::fs::fdatasync(&file).context("syncing the file to copy")?;
        Ok(Source { path, copy: dir.join("copy.target"), chunks })
    }

    /// Where it lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.chunks * CHUNK_BYTES as u64
    }

    /// Copies it once; how long that took.
    pub fn copy_ns(&self) -> Result<u64> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        let sending = TcpStream::connect(listener.local_addr()?).context("connecting")?;
        let (receiving, _) = listener.accept().context("accepting")?;
        settle_disk(self.dir())?;
        let clock = Clock::start();
        let copied = std::thread::scope(|scope| {
            let sender = scope.spawn(move || self.send(sending));
            let received = self.receive(receiving);
            sender.join().map_err(|_| anyhow!("the sender panicked"))?.and(received)
        });
        let took_ns = clock.now_ns();
        // Also of a copy that failed.
        let _removed = std::fs::remove_file(&self.copy);
        copied.map(|()| took_ns)
    }

    fn send(&self, mut to: TcpStream) -> Result<()> {
        let file = open_direct(&self.path)?;
        let mut chunk = Chunk::new();
        for at in 0..self.chunks {
            let read = pread(&file, chunk.bytes(), at * CHUNK_BYTES as u64).context("reading")?;
            ensure!(read == CHUNK_BYTES, "{read} bytes of a chunk");
            to.write_all(chunk.bytes()).context("sending")?;
        }
        Ok(())
    }

    fn receive(&self, mut from: TcpStream) -> Result<()> {
        let file = create_direct(&self.copy)?;
        let mut chunk = Chunk::new();
        for at in 0..self.chunks {
            from.read_exact(chunk.bytes()).context("receiving")?;
            write_chunk(&file, &mut chunk, at)?;
        }
        rustix::fs::fdatasync(&file).context("syncing the copy")
    }
}

/// Lets the file system finish what it still does for files that were written or removed: freeing their blocks takes the disk
/// for seconds, where that is told to the device.
pub fn settle_disk(dir: &Path) -> Result<()> {
    let opened = std::fs::File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    rustix::fs::syncfs(&opened)
        .with_context(|| format!("syncing the file system of {}", dir.display()))
}

fn write_chunk(file: &std::os::fd::OwnedFd, chunk: &mut Chunk, at: u64) -> Result<()> {
    let written = pwrite(file, chunk.bytes(), at * CHUNK_BYTES as u64).context("writing")?;
    ensure!(written == CHUNK_BYTES, "{written} bytes of a chunk");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_file_when_copied_twice_then_it_takes_time_and_leaves_no_copy() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let source = Source::make(dir.path(), (2 << 20) + 1).unwrap();
        assert_eq!(source.bytes(), 3 << 20);
        assert!(source.copy_ns().unwrap() > 0);
        assert!(source.copy_ns().unwrap() > 0);
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1);
    }

    #[test]
    fn given_a_copy_when_it_is_received_then_every_byte_is_that_of_the_source() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let source = Source::make(dir.path(), 2 << 20).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sending = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiving, _) = listener.accept().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| source.send(sending).unwrap());
            source.receive(receiving).unwrap();
        });
        let [from, to] = [&source.path, &source.copy].map(|path| std::fs::read(path).unwrap());
        assert!(from == to && from.len() == 2 << 20);
    }
}
