//! Segments: the batches of one partition in a file of their own, with an index, written once and never changed.
//!
//! A segment is a copy of what the log holds already, so it is written without haste and published whole: under a
//! temporary name until it is durable, then under its own. What is left of a write that was interrupted is under a
//! temporary name and is removed by [`sweep`].
//!
//! | module | owns |
//! |---|---|
//! | [`format`] | how header, index and footer lie in the file |
//! | `headers` | the checksum of what the batches' own ones leave out |
//! | [`writer`] | writing, streaming, in bounded memory |
//! | [`reader`] | finding and reading batches, and checking all of them |
//! | [`name`] | what a segment is called |
//! | [`manifest`] | the segments of a partition, in order |
//!
//! - I1: what has a segment's own name is whole and durable.
//! - I2: batches lie in the file as they are sent to consumers, base offset and leader epoch patched in, one after the
//!   other; each begins at or after the end of the one before it.
//! - I3: a batch is handed out only if all of it is as it was written: its own checksum is right, and so is that of the headers
//!   of the index interval that it lies in.

pub mod format;
mod headers;
pub mod manifest;
pub mod name;
pub mod reader;
pub mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::format::{SegmentFault, SegmentId, SegmentPlan, SegmentSummary};
pub use self::manifest::{Loaded, Manifest};
pub use self::name::Segment;
pub use self::reader::{SegmentBatch, SegmentReader};
pub use self::writer::SegmentWriter;
use crate::disk::Disk;

/// What a segment is called while it is written.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Why a segment could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The disk failed.
    #[error("segment {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the disk says.
        #[source]
        source: io::Error,
    },
    /// The file is not what a writer leaves behind.
    #[error("segment {path} is damaged at byte {position}: {fault}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        position: u64,
        /// What is wrong.
        #[source]
        fault: SegmentFault,
    },
    /// The batches are not those that the file was made for.
    #[error("segment {path} was made for other batches: {fault}")]
    NotPlanned {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        fault: SegmentFault,
    },
}

impl SegmentError {
    /// The file that could not be written or read.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            SegmentError::Io { path, .. }
            | SegmentError::Damaged { path, .. }
            | SegmentError::NotPlanned { path, .. } => path,
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> SegmentError {
        let path = path.to_owned();
        move |source| SegmentError::Io { path, source }
    }
}

/// A name under which a segment is written. Two that are written side by side may come to the same name in the end.
fn temporary(path: &Path) -> PathBuf {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}{TEMPORARY_SUFFIX}", WRITERS.fetch_add(1, Ordering::Relaxed)));
    PathBuf::from(name)
}

/// Removes what writers that were interrupted left in a directory; returns how many files. To be called before any
/// writer works there.
///
/// # Errors
/// If the disk fails.
pub async fn sweep<D: Disk>(disk: &D, dir: &Path) -> Result<usize, SegmentError> {
    let mut removed = 0;
    for entry in disk.list(dir).await.map_err(SegmentError::io(dir))? {
        if entry.name.ends_with(TEMPORARY_SUFFIX) {
            let path = dir.join(&entry.name);
            disk.remove(&path).await.map_err(SegmentError::io(&path))?;
            removed += 1;
        }
    }
    if removed > 0 {
        disk.sync_dir(dir).await.map_err(SegmentError::io(dir))?;
    }
    Ok(removed)
}
