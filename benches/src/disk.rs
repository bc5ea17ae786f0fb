//! The disk under the brokers: how much is left, how much a directory takes, and files that go around the page cache.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};

/// Bytes asked of the disk at once.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Alignment of memory and positions that `O_DIRECT` asks for.
const ALIGNMENT: usize = 4_096;
/// What `st_blocks` counts.
const BLOCK_BYTES: u64 = 512;

/// Memory that `O_DIRECT` takes.
#[derive(Debug)]
pub struct Chunk {
    memory: Vec<u8>,
    begin: usize,
}

impl Chunk {
    /// [`CHUNK_BYTES`] zeros.
    #[must_use]
    pub fn new() -> Chunk {
        let memory = vec![0_u8; CHUNK_BYTES + ALIGNMENT];
        let begin = memory.as_ptr().align_offset(ALIGNMENT);
        Chunk { memory, begin }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + CHUNK_BYTES]
    }
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk::new()
    }
}

/// Opens a file to be read past the page cache.
pub fn open_direct(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .with_context(|| format!("opening {} past the page cache", path.display()))
}

/// Makes a file that is written past the page cache. One that is there is an error.
pub fn create_direct(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("making {} past the page cache", path.display()))
}

/// Makes a file of zeros in which each write is durable when it returns (`O_DIRECT`, `O_DSYNC`).
pub fn create_durable(path: &Path, len: u64) -> Result<OwnedFd> {
    let file = create_direct(path)?;
    let mut zeros = Chunk::new();
    let mut at = 0;
    while at < len {
        let written = rustix::io::pwrite(&file, zeros.bytes(), at).context("writing zeros")?;
        ensure!(written > 0, "nothing can be written to {}", path.display());
        at += written as u64;
    }
    rustix::fs::fdatasync(&file).with_context(|| format!("syncing {}", path.display()))?;
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::DSYNC | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .with_context(|| format!("opening {} for durable writes", path.display()))
}

/// The newest file of each shard's write-ahead log: the one that a start reads from end to end.
pub fn active_wal_files(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut newest = Vec::new();
    let shards = data_dir.join("shards");
    for shard in
        std::fs::read_dir(&shards).with_context(|| format!("listing {}", shards.display()))?
    {
        let wal = shard?.path().join("wal");
        let files =
            std::fs::read_dir(&wal).with_context(|| format!("listing {}", wal.display()))?;
        let files: Vec<PathBuf> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        newest.extend(files.into_iter().filter(|file| is_wal(file)).max());
    }
    newest.sort();
    Ok(newest)
}

/// Whether this is a file of a log; those made ahead of use have other names.
fn is_wal(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(|c: char| c.is_ascii_digit()) && name.ends_with(".wal")
}

/// What a broker's log files and segments take on the disk: at least what it has of its partitions. Files that go while
/// it is looked at count as gone.
#[must_use]
pub fn stored_bytes(data_dir: &Path) -> u64 {
    let mut stored = 0;
    let mut open = vec![data_dir.join("shards")];
    while let Some(dir) = open.pop() {
        let Ok(listing) = std::fs::read_dir(&dir) else { continue };
        for path in listing.filter_map(|entry| Some(entry.ok()?.path())) {
            let Ok(found) = path.metadata() else { continue };
            let is_segment = path.extension().is_some_and(|extension| extension == "segment");
            if found.is_dir() {
                open.push(path);
            } else if is_segment || is_wal(&path) {
                stored += found.blocks() * BLOCK_BYTES;
            }
        }
    }
    stored
}

/// An error where the disk of `dir` has not `bytes` to spare.
pub fn ensure_room(dir: &Path, bytes: u64) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let handle = File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    let disk = rustix::fs::fstatvfs(&handle).context("asking for room on the disk")?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let (need_mib, free_mib) = (bytes >> 20, free >> 20);
    ensure!(free >= bytes, "{} has {free_mib} MiB left, {need_mib} MiB are needed", dir.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_data_dir_when_the_active_files_are_asked_then_they_are_the_newest_of_each_shard() {
        let dir = tempfile::tempdir().unwrap();
        for (shard, names) in
            [("000", vec!["01.wal", "02.wal", "spare-03.wal"]), ("001", vec!["07.wal"])]
        {
            let wal = dir.path().join("shards").join(shard).join("wal");
            std::fs::create_dir_all(&wal).unwrap();
            for name in names {
                std::fs::write(wal.join(name), "").unwrap();
            }
        }
        let found = active_wal_files(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["02.wal", "07.wal"]);
    }

    #[test]
    fn given_more_than_any_disk_has_when_room_is_asked_then_it_is_an_error() {
        assert!(ensure_room(&std::env::temp_dir(), u64::MAX).is_err());
        assert!(ensure_room(&std::env::temp_dir(), 0).is_ok());
    }

    #[test]
    fn given_a_data_dir_when_what_it_stores_is_asked_then_logs_and_segments_count_and_spare_files_do_not()
     {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let shard = dir.path().join("shards").join("000");
        for (folder, name) in
            [("wal", "01.wal"), ("wal", "spare-02.wal"), ("segments", "t-0.segment")]
        {
            std::fs::create_dir_all(shard.join(folder)).unwrap();
            let file = File::create(shard.join(folder).join(name)).unwrap();
            std::io::Write::write_all(&mut &file, &vec![7_u8; 1 << 20]).unwrap();
            file.sync_all().unwrap();
        }
        let stored = stored_bytes(dir.path());
        assert!((2 << 20..(2 << 20) + (1 << 18)).contains(&stored), "{stored}");
        assert_eq!(stored_bytes(&dir.path().join("none")), 0);
    }

    #[test]
    fn given_memory_for_direct_files_when_made_then_it_is_aligned() {
        let mut chunk = Chunk::new();
        assert_eq!(chunk.bytes().as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(chunk.bytes().len(), CHUNK_BYTES);
    }
}
