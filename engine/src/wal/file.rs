//! The files of a log: their names, and one block written to one of them.
//!
//! It decides nothing about what is written where. A block's buffers are filled completely before the first write is
//! started, and every write that was started is awaited, even after another one failed.

use std::io;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use super::block::{BlockKind, BlockPlace, BlockPlan, PART_BYTES};
use crate::disk::DiskFile;
use crate::ids::FileSeq;

/// How many parts of one block are written at the same time: enough to keep a device busy.
const PARTS_IN_FLIGHT: usize = 16;

/// What a name in the log's directory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileName {
    /// A file of the log.
    Wal(FileSeq),
    /// A file that is ready to become one.
    Spare(u64),
    /// Space kept for a full disk.
    Ballast,
    /// Bytes that `wal repair` replaced.
    DamagedCopy,
}

/// The name of the ballast file.
pub const BALLAST_NAME: &str = "ballast";

impl FileName {
    /// Reads a name; `None` if no file of the log is called so.
    #[must_use]
    pub fn parse(name: &str) -> Option<FileName> {
        if name == BALLAST_NAME {
            return Some(FileName::Ballast);
        }
        if let Some((stem, rest)) = name.split_once(".wal.damaged-") {
            return (wal_seq(stem).is_some() && rest.parse::<u64>().is_ok())
                .then_some(FileName::DamagedCopy);
        }
        let stem = name.strip_suffix(".wal")?;
        if let Some(number) = stem.strip_prefix("spare-") {
            return number.parse().ok().map(FileName::Spare);
        }
        wal_seq(stem).map(FileName::Wal)
    }
}

fn wal_seq(stem: &str) -> Option<FileSeq> {
    let digits = stem.len() == 20 && stem.bytes().all(|byte| byte.is_ascii_digit());
    let seq = stem.parse().ok().filter(|seq| digits && *seq > 0)?;
    Some(FileSeq(seq))
}

/// The path of a file of the log.
#[must_use]
pub fn wal_path(dir: &Path, file: FileSeq) -> PathBuf {
    dir.join(format!("{:020}.wal", file.0))
}

/// The path of a spare file.
#[must_use]
pub fn spare_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("spare-{number}.wal"))
}

/// The path of the copy of a damaged region.
#[must_use]
pub fn damaged_path(path: &Path, position: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{position}"));
    PathBuf::from(name)
}

/// What a write of one block says in its header.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockLabel {
    pub kind: BlockKind,
    pub flags: u8,
    pub place: BlockPlace,
}

/// A block up to this size is written and made durable in one operation; for a larger one a write and a sync are
/// faster, since its parts are written side by side.
const DURABLE_WRITE_BYTES_MAX: usize = 128 << 10;

/// What a written block still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing: it is durable.
    Durable,
    /// A sync.
    Unsynced,
}

/// Writes a block; the answer says whether it needs a sync. `parts` is scratch space: it comes empty and is left empty. Not cancel-safe.
pub(super) async fn write_block<F: DiskFile>(
    file: &F,
    plan: &BlockPlan<'_>,
    label: BlockLabel,
    parts: &mut Vec<F::Buf>,
) -> io::Result<Written> {
    assert!(parts.is_empty(), "scratch space belongs to one write at a time");
    parts.extend(plan.part_lens().map(|len| file.alloc(len)));
    plan.encode(parts, label.kind, label.flags, label.place);
    let position = label.place.position;
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        if only.as_ref().len() <= DURABLE_WRITE_BYTES_MAX {
            file.write_durable_at(only, position).await?;
            return Ok(Written::Durable);
        }
        file.write_at(only, position).await?;
        return Ok(Written::Unsynced);
    }
    write_parts(file, position, parts).await?;
    Ok(Written::Unsynced)
}

/// Writes buffers of [`PART_BYTES`] one behind the other, several at a time.
pub(super) async fn write_parts<F: DiskFile>(
    file: &F,
    mut position: u64,
    parts: &mut Vec<F::Buf>,
) -> io::Result<()> {
    let mut parts = parts.drain(..);
    loop {
        let wave = parts.by_ref().take(PARTS_IN_FLIGHT).enumerate();
        let writes: Vec<_> = wave
            .map(|(at, part)| file.write_at(part, position + (at * PART_BYTES) as u64))
            .collect();
        if writes.is_empty() {
            return Ok(());
        }
        position += (writes.len() * PART_BYTES) as u64;
        // All of the wave are awaited before the first error is returned: a write that was started is never dropped.
        join_all(writes).await.into_iter().collect::<io::Result<()>>()?;
    }
}

/// Writes zeros over a range whose ends are whole sectors. Not cancel-safe.
pub(super) async fn write_zeros<F: DiskFile>(file: &F, from: u64, to: u64) -> io::Result<()> {
    let mut position = from;
    while position < to {
        let len = (to - position).min(PART_BYTES as u64);
        let mut buf = file.alloc(super::to_usize(len));
        buf.as_mut().fill(0);
        file.write_at(buf, position).await?;
        position += len;
    }
    Ok(())
}
