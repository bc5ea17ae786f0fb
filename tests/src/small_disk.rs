//! A disk that is soon full: a small ext4 on a loop device. Needs root, `mkfs.ext4` and a loop device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::scratch::{ScratchDir, wait_for};

/// Why there may be none; said where a test is skipped for it.
pub const NEEDED: &str = "a loop-mounted ext4 needs root, mkfs.ext4 and a loop device";

const DISK_BYTES: u64 = 24 << 20;
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(10);

/// A small ext4 of its own, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    mounted_at: PathBuf,
    _scratch: ScratchDir,
}

impl SmallDisk {
    /// Makes one of 24 MiB; `None` where that cannot be: see [`NEEDED`].
    pub fn make() -> Result<Option<SmallDisk>> {
        SmallDisk::of(DISK_BYTES)
    }

    /// Makes one of so many bytes.
    pub fn of(bytes: u64) -> Result<Option<SmallDisk>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let scratch = ScratchDir::new("disk")?;
        let image = scratch.path().join("image");
        File::create(&image)?.set_len(bytes)?;
        let mounted_at = scratch.path().join("mounted");
        std::fs::create_dir(&mounted_at)?;
        let run = |program: &str, args: &[&str], last: &[&Path]| {
            let mut command = Command::new(program);
            command.args(args).args(last).stdout(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0"], &[&image])
            && run("mount", &["-o", "loop"], &[&image, &mounted_at]);
        Ok(made.then(|| SmallDisk { mounted_at, _scratch: scratch }))
    }

    /// Bytes that are free on it.
    pub fn available(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.mounted_at)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mounted_at
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The kernel closes what a killed process wrote to by io_uring a moment after the process is gone.
        let unmounted = wait_for("it is unmounted", UNMOUNT_DEADLINE, || {
            let mut command = Command::new("umount");
            let status = command.arg(&self.mounted_at).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success()).then_some(())
        });
        if unmounted.is_err() {
            eprintln!("{} stays mounted", self.mounted_at.display());
        }
    }
}
