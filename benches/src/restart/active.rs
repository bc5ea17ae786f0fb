//! What the disk itself needs for the files that a start must read: plain `O_DIRECT` reads, shards side by side.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{Mode, OFlags};

use crate::broker::active_wal_files;
use crate::clock::{Clock, ns_to_ms};

/// Bytes asked of the disk at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Alignment of memory and positions that `O_DIRECT` asks for.
const ALIGNMENT: usize = 4_096;

/// Reading the active files.
#[derive(Debug, Clone, Copy)]
pub struct ActiveRead {
    /// Their bytes.
    pub bytes: u64,
    /// The time it took.
    pub took_ms: f64,
}

/// Reads the newest file of every shard, all at once.
pub fn read_active(data_dir: &Path) -> Result<ActiveRead> {
    let files = active_wal_files(data_dir)?;
    let clock = Clock::start();
    let bytes = std::thread::scope(|scope| {
        let readers: Vec<_> =
            files.iter().map(|file| scope.spawn(move || read_direct(file))).collect();
        let mut bytes = 0;
        for reader in readers {
            bytes += reader.join().map_err(|_| anyhow!("a reader panicked"))??;
        }
        anyhow::Ok(bytes)
    })?;
    Ok(ActiveRead { bytes, took_ms: ns_to_ms(clock.now_ns()) })
}

fn read_direct(path: &PathBuf) -> Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .with_context(|| format!("opening {} past the page cache", path.display()))?;
    let mut memory = vec![0_u8; CHUNK_BYTES + ALIGNMENT];
    let begin = memory.as_ptr().align_offset(ALIGNMENT);
    let chunk = memory.get_mut(begin..begin + CHUNK_BYTES).context("no aligned memory")?;
    let mut read: u64 = 0;
    loop {
        let count = rustix::io::pread(&file, &mut *chunk, read)
            .with_context(|| format!("reading {} at {read}", path.display()))?;
        read += u64::try_from(count)?;
        if count < CHUNK_BYTES {
            return Ok(read);
        }
    }
}
