//! Whether the data directory's filesystem takes what the WAL does, O_DIRECT writes of aligned blocks, and keeps it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use chronik_engine::disk::is_full;

use super::StartupError;

const ALIGNMENT: usize = 4096;
const PROBE_FILE: &str = "probe.tmp";

/// What statfs calls the filesystems whose files are only in memory (linux/magic.h).
const IN_MEMORY: [(&str, i64); 2] = [("tmpfs", 0x0102_1994), ("ramfs", 0x8584_58f6)];

/// Writes one aligned block with O_DIRECT into the directory and removes it again. Warns where what is written is not
/// kept: newer kernels take O_DIRECT on tmpfs.
///
/// # Errors
/// The directory cannot be written, or its filesystem refuses O_DIRECT.
pub fn check_data_dir(path: &Path) -> Result<(), StartupError> {
    let probe = path.join(PROBE_FILE);
    let not_writable =
        |source| StartupError::DataDirNotWritable { path: path.to_path_buf(), source };
    let plain = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&probe);
    drop(plain.map_err(not_writable)?);
    let outcome = write_direct(&probe);
    fs::remove_file(&probe).map_err(not_writable)?;
    if let Some(filesystem) = in_memory_filesystem(path) {
        tracing::warn!(
            "data directory {}: its filesystem ({filesystem}) is in memory; everything is lost when the machine stops",
            path.display()
        );
    }
    match outcome {
        Ok(()) => Ok(()),
        // A full disk is not a reason to stay down: reads go on, and space may come back.
        Err(error) if is_full(&error) => {
            tracing::warn!("data directory {}: the disk is full", path.display());
            Ok(())
        }
        Err(source) if source.raw_os_error() == Some(libc::EINVAL) => {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
            let filesystem = filesystem_of(&mounts, &absolute).unwrap_or("unknown").to_owned();
            Err(StartupError::NoDirectIo { path: path.to_path_buf(), filesystem, source })
        }
        Err(source) => Err(not_writable(source)),
    }
}

/// The name of the filesystem that holds `path`, if nothing in it outlives the machine.
fn in_memory_filesystem(path: &Path) -> Option<&'static str> {
    let found = rustix::fs::statfs(path).ok()?.f_type;
    IN_MEMORY.iter().find(|(_, magic)| *magic == found).map(|(name, _)| *name)
}

fn write_direct(path: &Path) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let memory = vec![0_u8; 2 * ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    assert!(start < ALIGNMENT, "an aligned block lies within twice its size");
    file.write_all_at(&memory[start..start + ALIGNMENT], 0)?;
    file.sync_data()
}

/// The type of the filesystem that holds `path`: the mount with the longest prefix, the last one of equals.
fn filesystem_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(mount_point, _)| path.starts_with(mount_point))
        .max_by_key(|(mount_point, _)| mount_point.len())
        .map(|(_, filesystem)| filesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_nested_mounts_when_looked_up_then_the_innermost_counts() {
        let mounts =
            "/dev/vda / ext4 rw 0 0\ntmpfs /data tmpfs rw 0 0\n/dev/vdb /data/disk xfs rw 0 0\n";
        assert_eq!(filesystem_of(mounts, Path::new("/data/disk/chronik")), Some("xfs"));
        assert_eq!(filesystem_of(mounts, Path::new("/data/diskette")), Some("tmpfs"));
        assert_eq!(filesystem_of(mounts, Path::new("/srv")), Some("ext4"));
    }

    #[test]
    fn given_a_writable_directory_when_checked_then_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        check_data_dir(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn given_mounts_of_this_machine_when_looked_at_then_those_in_memory_and_no_others_are_told() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        for path in ["/", "/proc", "/sys", "/tmp", "/dev/shm", "/run"].map(Path::new) {
            let Ok(path) = fs::canonicalize(path) else { continue };
            let mounted = filesystem_of(&mounts, &path);
            let mounted = mounted.map(|name| name.trim_start_matches("dev"));
            let expected = mounted.filter(|name| ["tmpfs", "ramfs"].contains(name));
            assert_eq!(in_memory_filesystem(&path), expected, "{} is {mounted:?}", path.display());
        }
    }

    #[test]
    fn given_a_missing_directory_when_checked_then_the_error_names_it() {
        let refused = check_data_dir(Path::new("/nonexistent/chronik")).unwrap_err();
        assert_eq!(refused.exit_code(), super::super::exit_code::DATA_DIR);
        assert!(refused.to_string().contains("/nonexistent/chronik"));
    }
}
