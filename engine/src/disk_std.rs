//! Plain files behind the disk seam, for offline tools and for tests against a real file system.
//!
//! Every future is ready at its first poll and blocks the thread meanwhile: never use it on a core that serves
//! requests. Content goes through the page cache; a sync makes it durable all the same.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::disk::{DISK_ALIGN, DirEntry, Disk, DiskFile};
use crate::limits::DISK_IO_BYTES_MAX;

/// What the production disk leaves in a directory for its own use. Hidden from listings, as the log refuses to work
/// beside files that it does not know.
pub(crate) const PROBE_NAME: &str = ".io-probe";

/// The file system of this machine.
#[derive(Debug, Clone, Default)]
pub struct StdDisk;

impl Disk for StdDisk {
    type File = StdFile;

    async fn create(&self, path: &Path, len: u64) -> io::Result<StdFile> {
        StdFile::new(create_reserved(path, len)?)
    }

    async fn open(&self, path: &Path) -> io::Result<StdFile> {
        StdFile::new(OpenOptions::new().read(true).write(true).open(path)?)
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
        create_dir_all_durable(dir)
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

/// An open file of a [`StdDisk`].
#[derive(Debug)]
pub struct StdFile {
    file: File,
    len: u64,
}

impl StdFile {
    fn new(file: File) -> io::Result<StdFile> {
        let len = file.metadata()?.len();
        Ok(StdFile { file, len })
    }
}

impl DiskFile for StdFile {
    type Buf = Vec<u8>;

    fn alloc(&self, len: usize) -> Vec<u8> {
        assert!(len.is_multiple_of(DISK_ALIGN), "length {len} of a buffer is not aligned");
        vec![0; len]
    }

    async fn write_at(&self, buf: Vec<u8>, position: u64) -> io::Result<()> {
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
        let mut content = BytesMut::zeroed(len);
        self.file.read_exact_at(&mut content, position)?;
        Ok(content.freeze())
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// The rule on positions and lengths ([`crate::disk`] I1), for every disk.
pub(crate) fn assert_aligned(position: u64, len: usize) {
    assert!(position.is_multiple_of(DISK_ALIGN as u64), "position {position} is not aligned");
    assert!(len.is_multiple_of(DISK_ALIGN), "length {len} is not aligned");
    assert!(len > 0, "nothing to transfer");
}

/// [`assert_aligned`] for a write, which cannot be split without a copy and so must be small enough.
pub(crate) fn assert_transfer(position: u64, len: usize) {
    assert_aligned(position, len);
    assert!(len <= DISK_IO_BYTES_MAX, "one write of {len} bytes");
}

/// Fails where the range goes beyond the file: the log never lets a file grow under it.
pub(crate) fn check_within(
    position: u64,
    len: usize,
    file_len: u64,
    kind: io::ErrorKind,
) -> io::Result<()> {
    match position.checked_add(len as u64) {
        Some(end) if end <= file_len => Ok(()),
        _ => Err(kind.into()),
    }
}

/// Makes a file whose space is reserved and whose length is durable once its name is. Leaves nothing behind where that
/// fails.
pub(crate) fn create_reserved(path: &Path, len: u64) -> io::Result<File> {
    let file = create_unsynced(path, len)?;
    if let Err(error) = file.sync_all() {
        drop(std::fs::remove_file(path));
        return Err(error);
    }
    Ok(file)
}

/// The same, but for the length, which is durable only after the first sync of the file.
pub(crate) fn create_unsynced(path: &Path, len: u64) -> io::Result<File> {
    assert!(len.is_multiple_of(DISK_ALIGN as u64), "length {len} of a new file is not aligned");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    if len > 0
        && let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, len)
    {
        // Whether the removal succeeds or not, the caller needs to hear of the first failure.
        drop(std::fs::remove_file(path));
        return Err(error.into());
    }
    Ok(file)
}

pub(crate) fn list(dir: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        // A name that is not UTF-8 was never given by this program.
        if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string())
            && name != PROBE_NAME
        {
            entries.push(DirEntry { name, len: metadata.len() });
        }
    }
    Ok(entries)
}

pub(crate) fn list_others(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let (false, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
            names.push(name);
        }
    }
    Ok(names)
}

pub(crate) fn modified_ms(path: &Path) -> io::Result<i64> {
    let modified = std::fs::symlink_metadata(path)?.modified()?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// `fsync`, not `fdatasync`: ext4 may leave a new name out of the latter, as it does not change the directory's size.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// `statvfs`: what is reserved for the superuser does not count.
pub(crate) fn available(dir: &Path) -> io::Result<u64> {
    let stat = statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes the directory and those above it, and their names durable: a log in a directory that a power cut takes away
/// is gone, however well its files were synced.
pub(crate) fn create_dir_all_durable(dir: &Path) -> io::Result<()> {
    let missing: Vec<PathBuf> = dir
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && !above.is_dir())
        .map(Path::to_path_buf)
        .collect();
    for dir in missing.iter().rev() {
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match dir.parent() {
            Some(above) if !above.as_os_str().is_empty() => sync_dir(above)?,
            _ => sync_dir(Path::new("."))?,
        }
    }
    if dir.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk_sim::block_on;

    #[test]
    fn given_real_files_when_written_renamed_and_removed_then_the_seam_holds() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("a/b");
        let disk = StdDisk;
        block_on(async {
            disk.create_dir_all(&dir).await.unwrap();
            disk.create_dir_all(&dir).await.unwrap();
            let file = disk.create(&dir.join("f"), 8192).await.unwrap();
            let again = disk.create(&dir.join("f"), 8192).await.map(|_| ());
            assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            let mut buf = file.alloc(4096);
            buf.fill(3);
            file.write_at(buf, 4096).await.unwrap();
            file.sync_data().await.unwrap();
            let beyond = file.write_at(file.alloc(4096), 8192).await;
            assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            disk.rename(&dir.join("f"), &dir.join("g")).await.unwrap();
            disk.sync_dir(&dir).await.unwrap();
            let file = disk.open(&dir.join("g")).await.unwrap();
            assert_eq!(file.len(), 8192);
            assert!(disk.available(&dir).await.unwrap() > 8192);
            let content = file.read_at(0, 8192).await.unwrap();
            assert_eq!((content[4095], content[4096], content[8191]), (0, 3, 3));
            let eof = file.read_at(4096, 8192).await.unwrap_err();
            assert_eq!(eof.kind(), io::ErrorKind::UnexpectedEof);
            let listed = disk.list(&dir).await.unwrap();
            assert_eq!(listed, [DirEntry { name: "g".to_owned(), len: 8192 }]);
            disk.remove(&dir.join("g")).await.unwrap();
            assert!(disk.list(&dir).await.unwrap().is_empty());
        });
    }

    #[test]
    fn given_more_space_than_there_is_when_create_then_storage_full_and_nothing_left() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("f");
        let error = block_on(StdDisk.create(&path, 1 << 52)).map(|_| ()).unwrap_err();
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::FileTooLarge];
        assert!(kinds.contains(&error.kind()), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn given_a_directory_with_more_than_files_when_listed_then_files_and_others_are_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        std::fs::create_dir(dir.join("a")).unwrap();
        std::fs::write(dir.join("b"), "b").unwrap();
        std::os::unix::fs::symlink(dir.join("b"), dir.join("c")).unwrap();
        let mut others = block_on(StdDisk.list_others(dir)).unwrap();
        others.sort();
        assert_eq!(others, ["a", "c"]);
        let files = block_on(StdDisk.list(dir)).unwrap();
        assert_eq!(files, [DirEntry { name: "b".to_owned(), len: 1 }]);
    }

    #[test]
    fn given_a_file_when_asked_then_it_is_known_when_it_was_written() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_234_567);
        scratch.as_file().set_modified(at).unwrap();
        assert_eq!(block_on(StdDisk.modified_ms(scratch.path())).unwrap(), 1_234_567);
        assert!(block_on(StdDisk.modified_ms(Path::new("/nowhere"))).is_err());
    }
}
