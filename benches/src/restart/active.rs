//! What the disk itself needs for the files that a start must read: plain `O_DIRECT` reads, shards side by side.

use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::clock::{Clock, ns_to_ms};
use crate::disk::{CHUNK_BYTES, Chunk, active_wal_files, open_direct};

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

fn read_direct(path: &Path) -> Result<u64> {
    let file = open_direct(path)?;
    let mut chunk = Chunk::new();
    let mut read: u64 = 0;
    loop {
        let count = rustix::io::pread(&file, chunk.bytes(), read)
            .with_context(|| format!("reading {} at {read}", path.display()))?;
        read += u64::try_from(count)?;
        if count < CHUNK_BYTES {
            return Ok(read);
        }
    }
}
