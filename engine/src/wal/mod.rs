//! The write-ahead log of one shard: the Raft logs of all its groups, in one sequence of blocks.
//!
//! # Why it is built so
//!
//! Many groups share a shard, and a durable write costs the same for one record as for a thousand. So everything that
//! arrives while a write is in flight becomes the next block ([`block`]), one block is in flight at a time, and a block
//! is one write and one `fdatasync`. An entry is written once: the Raft log *is* the log, and readers find entries in
//! it through [`crate::log_index`].
//!
//! # What makes recovery sure of itself
//!
//! Block *n + 1* is written only after block *n* is durable. So a header of a later block, wherever it is found, proves
//! that every earlier block was durable, and an invalid block before it is **damage**: it was perhaps acknowledged, and
//! is never cut. An invalid block with no later header behind it is a **torn tail**: it was in flight when the power
//! went, nobody was told that it is durable, and it is cut.
//!
//! **Why the cut cannot resurrect.** The cut block had number *n* at position *p*; the next block gets the same number
//! and the same position, so its first sector replaces the torn block's header. What else is left of the torn block
//! behind *p* are pieces of its table and of its payloads, never a header: a block has one, at its beginning, and only
//! one block was in flight. A surviving tail of a block of many parts is therefore no block, whatever is written before
//! it, and a later search at each sector boundary passes over it. (A payload that contains the image of a block would
//! have to name this shard's random uuid, this file, this position and a higher number, and nothing outside this
//! directory knows the uuid.) Blocks of an earlier life of a recycled file name another file sequence. A file that was
//! begun but never started is removed, not recycled, because its sequence is used again.
//!
//! **Why recovery writes a mark.** A block that recovery accepted may never have been synced: the process died between
//! write and sync, and the device has it in a volatile cache. Recovery syncs the file, and then writes a mark behind
//! the last block and syncs that, before anyone hears of what was recovered. The mark goes into the same file and not
//! into a new one, because a new file needs a checkpoint, and the state machines that make it do not run yet.
//!
//! # Invariants
//!
//! - I1: at most one block is in flight.
//! - I2: a block's position is the end of the block before it, and its number is one more (a repair block's may be
//!   more than that: it stands for several).
//! - I3: after a failed write or sync nothing is written any more ([`WalError::Poisoned`]).
//! - I4: the index is told of a block after its sync, so a reader never sees what may still vanish.
//! - I5: files go oldest first, and never one that holds entries which the newest checkpoint has not applied. Those that
//!   stay so for long are carried forward ([`Wal::read_to_carry`]).

pub mod block;
mod carry;
mod descriptor;
mod error;
mod file;
pub mod footer;
pub mod inspect;
mod read_cache;
mod reader;
mod reclaim;
pub mod record;
mod recovery;
pub mod repair;
mod replay;
mod retention;
mod rows;
mod scan;
mod sealed;
mod spare;
mod walk;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

use uuid::Uuid;

pub use self::carry::Carried;
pub use self::error::{Contradiction, IoOp, ReadError, WalError};
pub use self::reader::StoredBatch;
pub use self::recovery::{RecoveredGroup, RecoveryReport, TornTail};
pub use self::retention::{LogNeed, RetentionLimits};
pub use self::sealed::{SealedFile, SealedName};
pub use self::spare::SpareProgress;
pub use self::writer::AppendReport;
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::{BlockSeq, FileSeq, GroupId, Offset, RaftIndex, ReplicaId, Term};
use crate::limits;
use crate::log_index::{FileIndex, GroupFile, LogIndex};
use block::BlockKind;

const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "positions are used as lengths");

/// A number that is known to be a length in memory; all targets have 64-bit pointers.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A file of fewer sectors holds nothing: a checkpoint, a block, a mark, a footer and a locator take one each.
const FILE_SECTORS_MIN: u64 = 5;

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// The directory of its files. Nothing else may be in it.
    pub dir: PathBuf,
    /// The shard it belongs to. A file of another shard is refused.
    pub shard_uuid: Uuid,
    /// The size of a file.
    pub file_bytes: u64,
    /// The size of the very first file, which is zeroed before the shard starts.
    pub first_file_bytes: u64,
    /// Space kept back so that Raft's own state can be written on a full disk; 0 keeps none. It becomes a file of the log
    /// as it is, so it may be larger than the others.
    pub ballast_bytes: u64,
    /// What a new file leaves free on its file system, for those who copy what is in the log to where it takes less, or
    /// goes sooner: a log that fills the disk to its end leaves them no room to begin, and so no way to make any.
    /// 0 leaves nothing.
    pub left_free_bytes: u64,
    /// Memory for windows of files that were read, shared by all readers.
    pub read_cache_bytes: usize,
    /// Memory for footers of sealed files.
    pub footer_cache_bytes: usize,
}

impl WalOptions {
    /// The defaults for a shard.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, shard_uuid: Uuid) -> WalOptions {
        WalOptions {
            dir: dir.into(),
            shard_uuid,
            file_bytes: limits::WAL_FILE_BYTES_DEFAULT,
            first_file_bytes: limits::WAL_FIRST_FILE_BYTES_DEFAULT,
            ballast_bytes: 64 << 20,
            left_free_bytes: 0,
            read_cache_bytes: 16 << 20,
            footer_cache_bytes: 16 << 20,
        }
    }

    fn checked(mut self) -> WalOptions {
        let align = DISK_ALIGN as u64;
        assert!(
            self.file_bytes >= FILE_SECTORS_MIN * align,
            "a file holds a checkpoint, a block, a mark, a footer and a locator"
        );
        self.file_bytes = self.file_bytes.next_multiple_of(align);
        self.first_file_bytes = self.first_file_bytes.next_multiple_of(align);
        self.first_file_bytes =
            self.first_file_bytes.clamp(FILE_SECTORS_MIN * align, self.file_bytes);
        self.ballast_bytes = self.ballast_bytes.next_multiple_of(align);
        self
    }
}

/// The file that is written.
struct Active<F> {
    seq: FileSeq,
    path: PathBuf,
    file: Rc<F>,
    /// Where the next block goes; everything before it is durable.
    position: u64,
    next_block: BlockSeq,
    last_kind: BlockKind,
}

/// A file that is no longer written.
struct Sealed<F> {
    path: PathBuf,
    /// Where its blocks end.
    end_position: u64,
    /// Opened at the first read.
    file: Option<Rc<F>>,
    /// Its index where it has no footer to load it from.
    pinned: Option<Rc<FileIndex>>,
}

/// A file whose footer is still to be written.
struct Unfinished<F> {
    seq: FileSeq,
    path: PathBuf,
    file: Rc<F>,
    index: Rc<FileIndex>,
}

struct State<F> {
    index: LogIndex,
    active: Active<F>,
    sealed: BTreeMap<FileSeq, Sealed<F>>,
    /// Oldest first.
    unfinished: VecDeque<Rc<Unfinished<F>>>,
    /// What the newest checkpoint has applied: older files are needed from there on.
    applied: BTreeMap<GroupId, RaftIndex>,
    /// Term and vote as they are durable, to check checkpoints against.
    votes: BTreeMap<GroupId, (Term, ReplicaId)>,
}

/// The log of one shard: its writer, its readers and its index. It belongs to one core; methods take `&self` so that
/// readers and the writer can work side by side.
pub struct Wal<D: Disk> {
    disk: D,
    options: WalOptions,
    state: RefCell<State<D::File>>,
    spares: RefCell<spare::Spares<D::File>>,
    cache: read_cache::ReadCache,
    footers: RefCell<read_cache::FooterCache>,
    /// Buffers on their way to a write; kept for its capacity.
    parts: RefCell<Vec<<D::File as DiskFile>::Buf>>,
    /// The last index of each group within the records at hand; kept for its capacity.
    lasts: RefCell<HashMap<GroupId, Option<RaftIndex>>>,
    /// How many blocks of records were appended since the start.
    appends: Cell<u64>,
    in_flight: Cell<bool>,
    is_finishing: Cell<bool>,
    poisoned: Cell<bool>,
    closed: Cell<bool>,
}

impl<D: Disk> std::fmt::Debug for Wal<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("options", &self.options)
            .field("poisoned", &self.poisoned.get())
            .finish_non_exhaustive()
    }
}

impl<D: Disk> Wal<D> {
    /// The file that is written and where its next block goes.
    #[must_use]
    pub fn position(&self) -> (FileSeq, u64) {
        let state = self.state.borrow();
        (state.active.seq, state.active.position)
    }

    /// The number of the last durable block.
    #[must_use]
    pub fn last_block(&self) -> BlockSeq {
        BlockSeq(self.state.borrow().active.next_block.0 - 1)
    }

    /// How many files there are, the active one included.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.state.borrow().sealed.len() + 1
    }

    /// Whether a write failed, so that nothing can be written any more.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.get()
    }

    /// The first index of a group that can still be read here, if there is any entry.
    #[must_use]
    pub fn first_index(&self, group: GroupId) -> Option<RaftIndex> {
        let state = self.state.borrow();
        let log = state.index.group(group)?;
        let range = log.ranges.first().map(|range| range.first);
        let part = || state.index.active().groups.get(&group);
        let first = range.or_else(|| part()?.extents.first().map(|extent| extent.first))?;
        Some(first.max(log.log_start.next()))
    }

    /// The last durable index of a group; its log start's if it has no entries.
    #[must_use]
    pub fn last_index(&self, group: GroupId) -> Option<RaftIndex> {
        Some(self.state.borrow().index.group(group)?.last)
    }

    /// Whether the active file holds records of any group.
    #[must_use]
    pub fn active_holds_records(&self) -> bool {
        self.state.borrow().index.active().groups.values().any(GroupFile::holds_records)
    }

    /// Whether the active file holds records of this group.
    #[must_use]
    pub fn active_holds_records_of(&self, group: GroupId) -> bool {
        let state = self.state.borrow();
        state.index.active().groups.get(&group).is_some_and(GroupFile::holds_records)
    }

    /// The greatest timestamp of a group's records from `from` on, that of whole pieces; `None` if there is none.
    #[must_use]
    pub fn max_timestamp_ms(&self, group: GroupId, from: Offset) -> Option<i64> {
        let state = self.state.borrow();
        let ranges = state.index.group(group)?.ranges.iter().filter(|r| r.end_offset > from);
        let sealed = ranges.map(|range| range.max_timestamp_ms);
        let part = state.index.active().groups.get(&group);
        let extents = part.iter().flat_map(|part| &part.extents).filter(|e| e.end_offset() > from);
        let active = extents.map(|extent| extent.max_timestamp_ms);
        sealed.chain(active).filter(|timestamp_ms| *timestamp_ms >= 0).max()
    }

    /// The bytes of a group's entries in all files. What lies before its log start within a file, and what a cut left
    /// there, is counted until the file goes.
    #[must_use]
    pub fn payload_bytes(&self, group: GroupId) -> u64 {
        let state = self.state.borrow();
        let ranges = state.index.group(group).map(|log| log.ranges.iter());
        let sealed: u64 = ranges.into_iter().flatten().map(|range| range.payload_bytes).sum();
        let active = state.index.active().groups.get(&group);
        sealed + active.map_or(0, GroupFile::payload_bytes)
    }

    /// The first offset of a group that can be read here; `None` if there is no entry. Retention may have set the
    /// partition's log start higher.
    #[must_use]
    pub fn first_offset(&self, group: GroupId) -> Option<Offset> {
        let state = self.state.borrow();
        let log = state.index.group(group)?;
        let range = log.ranges.first().map(|range| range.base_offset);
        let part = || state.index.active().groups.get(&group);
        range.or_else(|| part()?.extents.first().map(|extent| extent.base_offset))
    }
}
