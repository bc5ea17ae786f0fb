//! What can go wrong with the log, said so that an operator knows which file to look at.

use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use super::block::{BlockFault, FORMAT_VERSION, PlanError};
use crate::disk::is_full;
use crate::ids::{FileSeq, GroupId, Offset, RaftIndex};

/// What was asked of the disk when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoOp {
    /// Making a file or directory.
    Create,
    /// Opening a file.
    Open,
    /// Listing a directory.
    List,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making writes durable.
    Sync,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Remove,
    /// Making names durable.
    SyncDir,
}

impl std::fmt::Display for IoOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            IoOp::Create => "create",
            IoOp::Open => "open",
            IoOp::List => "list",
            IoOp::Read => "read",
            IoOp::Write => "write",
            IoOp::Sync => "sync",
            IoOp::Rename => "rename",
            IoOp::Remove => "remove",
            IoOp::SyncDir => "sync directory",
        })
    }
}

/// Records that are whole but contradict what is before them: a fault of the program that wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// An entry's index leaves a gap.
    #[error("entry {found} where {expected} is the next index")]
    IndexGap {
        /// The index that could follow.
        expected: RaftIndex,
        /// The index found.
        found: RaftIndex,
    },
    /// An entry takes the place of one that was applied.
    #[error("entry {found} replaces what was applied up to {applied}")]
    Applied {
        /// The index up to which the state machine had applied.
        applied: RaftIndex,
        /// The index found.
        found: RaftIndex,
    },
}

/// Why the log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk failed.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was asked of it.
        op: IoOp,
        /// Of which file or directory.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
    /// There is no room for another file. Nothing was written; the call may be made again.
    #[error("no space for {bytes} bytes at {}", path.display())]
    StorageFull {
        /// The file that was to be made.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync failed; what is on the disk is unknown until the log is opened again.
    #[error("the log takes no more writes after a failed one; restart to recover")]
    Poisoned,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The block does not fit into what is left of the file: the caller has to roll first.
    #[error("a block of {bytes} bytes does not fit into the {room} bytes left in the file")]
    FileFull {
        /// Bytes of the block.
        bytes: u64,
        /// Bytes left.
        room: u64,
    },
    /// The records cannot be made a block.
    #[error("the records cannot be made a block")]
    Plan {
        /// Why.
        #[source]
        source: PlanError,
    },
    /// A block that was durable is damaged: there are valid ones after it.
    #[error(
        "acknowledged data is damaged: {} at byte {position}; a valid block follows at byte {followed_by_position} of file {followed_by_file}",
        path.display()
    )]
    Damaged {
        /// The file.
        file: FileSeq,
        /// Its path.
        path: PathBuf,
        /// Where the damage begins.
        position: u64,
        /// The file of the valid block that proves it.
        followed_by_file: FileSeq,
        /// Where that block is.
        followed_by_position: u64,
        /// What is wrong.
        #[source]
        fault: BlockFault,
    },
    /// A file is missing between two others, or all files before the first one found.
    #[error("file {file} is missing from {}", dir.display())]
    FileMissing {
        /// The missing file.
        file: FileSeq,
        /// The directory.
        dir: PathBuf,
    },
    /// The file does not belong to this shard.
    #[error("{} belongs to shard {found}, not to {expected}", path.display())]
    ForeignShard {
        /// The file.
        path: PathBuf,
        /// The shard it belongs to.
        found: Uuid,
        /// The shard that was opened.
        expected: Uuid,
    },
    /// The directory holds a file that the log did not make.
    #[error("{} is not a file of the log; move it away", path.display())]
    ForeignFile {
        /// The file.
        path: PathBuf,
    },
    /// A newer program wrote the file.
    #[error("{} has format version {version}, this build reads up to {FORMAT_VERSION}", path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
    /// Entries that a checkpoint counts on are in no file.
    #[error("group {group} needs entry {index}, which is in no file")]
    EntriesMissing {
        /// The group.
        group: GroupId,
        /// The first entry missing.
        index: RaftIndex,
    },
    /// Whole records contradict each other.
    #[error("{} at byte {position}: group {group}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// The block's position.
        position: u64,
        /// The group.
        group: GroupId,
        /// How.
        #[source]
        source: Contradiction,
    },
    /// Entries that recovery needs cannot be read.
    #[error("group {group}: entries cannot be read")]
    Entries {
        /// The group.
        group: GroupId,
        /// Why.
        #[source]
        source: Box<ReadError>,
    },
}

impl WalError {
    pub(super) fn io(op: IoOp, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> WalError {
        let path = path.into();
        move |source| WalError::Io { op, path, source }
    }

    /// Why a file of so many bytes could not be made.
    pub(super) fn create(path: PathBuf, bytes: u64, source: io::Error) -> WalError {
        if is_full(&source) {
            return WalError::StorageFull { path, bytes, source };
        }
        WalError::Io { op: IoOp::Create, path, source }
    }
}

impl From<PlanError> for WalError {
    fn from(source: PlanError) -> WalError {
        WalError::Plan { source }
    }
}

/// Why entries cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The group is not here.
    #[error("group {group} is not in this log")]
    UnknownGroup {
        /// The group.
        group: GroupId,
    },
    /// The offset is before what the log still holds.
    #[error("group {group}: offset {offset} is no longer in the log")]
    OffsetReclaimed {
        /// The group.
        group: GroupId,
        /// The offset asked for.
        offset: Offset,
    },
    /// The index is before what the log still holds.
    #[error("group {group}: entry {index} is no longer in the log")]
    IndexReclaimed {
        /// The group.
        group: GroupId,
        /// The index asked for.
        index: RaftIndex,
    },
    /// What is on the disk is not what was written there.
    #[error("{} is damaged at byte {position} (group {group}, entry {index})", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        position: u64,
        /// The group that was read.
        group: GroupId,
        /// The entry that was to be there.
        index: RaftIndex,
    },
    /// The file's index cannot be read.
    #[error("the index of {} cannot be read at byte {position}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Where.
        position: u64,
    },
    /// The disk failed.
    #[error("cannot read {}: {kind}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// How; the error itself is shared by all who wait for the same read.
        kind: io::ErrorKind,
    },
}
