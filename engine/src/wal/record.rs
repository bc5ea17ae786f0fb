//! What the log says: the records a block can hold, as the rest of the program knows them.
//!
//! This module owns the types only; [`super::block`] knows how they lie on disk.

use bytes::Bytes;

use crate::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};

/// What an entry of a Raft log carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Nothing: a new leader's first entry.
    Noop,
    /// One Kafka record batch. The only kind that takes offsets.
    Batch,
    /// A command of the group's state machine that is not a record (catalog change, log start, …).
    Command,
    /// A Raft configuration change.
    ConfChange,
}

/// One entry of a Raft group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position in the group's log.
    pub index: RaftIndex,
    /// The term it was proposed in, which is the Kafka leader epoch of its records.
    pub term: Term,
    /// What it carries.
    pub kind: EntryKind,
    /// The offset of its first record; for all kinds but [`EntryKind::Batch`] the offset that the next batch will get.
    pub base_offset: Offset,
    /// How many offsets it takes: 0 for all kinds but [`EntryKind::Batch`].
    pub offset_count: u32,
    /// The batch's greatest timestamp in milliseconds, -1 if it has none.
    pub max_timestamp_ms: i64,
    /// The batch as the producer sent it, or the command.
    pub payload: Bytes,
}

impl LogEntry {
    /// The offset that the entry after this one starts at.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(self.offset_count)
    }
}

/// What Raft must never forget of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// Whom this replica voted for in it.
    pub vote: ReplicaId,
    /// The greatest index known to be committed.
    pub commit: RaftIndex,
}

/// A place in a Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
pub struct LogPosition {
    /// The entry's index.
    pub index: RaftIndex,
    /// The entry's term.
    pub term: Term,
}

/// Where a term begins in a log. The list of them is the partition's leader-epoch cache (KIP-101) and Raft's term
/// lookup for the whole log; it is never partial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct EpochStart {
    /// The term.
    pub epoch: Term,
    /// The index of its first entry.
    pub index: RaftIndex,
    /// The offset that the first batch of the term has or will get.
    pub offset: Offset,
}

/// What does not change while a replica lives in its placement.
#[derive(Debug, Clone, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
pub struct GroupMeta {
    /// This replica's Raft id.
    pub replica: ReplicaId,
    /// The voters of the group's configuration.
    pub voters: Vec<ReplicaId>,
    /// The learners of the group's configuration.
    pub learners: Vec<ReplicaId>,
    /// While a joint configuration is in force: the voters of the one that is being left. Else empty.
    pub voters_outgoing: Vec<ReplicaId>,
    /// While a joint configuration is in force: the voters that become learners when it is left. Else empty.
    pub learners_next: Vec<ReplicaId>,
    /// Whether the joint configuration is left by itself once it is committed.
    pub auto_leave: bool,
    /// What the group's owner wants to find again beside it; opaque here.
    pub tag: Vec<u8>,
}

/// All that is needed to go on with a group without reading the log before it.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct GroupCheckpoint {
    /// The group.
    pub group: GroupId,
    /// Its placement and configuration.
    pub meta: GroupMeta,
    /// The newest durable hard state.
    pub hard_state: HardState,
    /// Entries begin after this place; 0 for a log that was never cut.
    pub log_start: LogPosition,
    /// The first offset that may be read.
    pub log_start_offset: Offset,
    /// The last durable entry.
    pub last: LogPosition,
    /// Where each term of the whole log begins.
    pub epochs: Vec<EpochStart>,
    /// The index up to which `state` has applied the log.
    pub applied: RaftIndex,
    /// The offset after the last batch that is applied.
    pub applied_end_offset: Offset,
    /// The state machine at `applied`; opaque here.
    pub state: Vec<u8>,
}

impl GroupCheckpoint {
    /// Whether it can stand among the data: a log without entries, all of it applied, its end committed.
    #[must_use]
    pub fn is_install(&self) -> bool {
        self.last == self.log_start
            && self.last.index > RaftIndex(0)
            && self.applied == self.last.index
            && self.hard_state.commit == self.last.index
            && self.hard_state.term >= self.last.term
    }

    /// The checkpoint of a group that was just created: an empty log.
    #[must_use]
    pub fn created(group: GroupId, meta: GroupMeta) -> GroupCheckpoint {
        GroupCheckpoint {
            group,
            meta,
            hard_state: HardState::default(),
            log_start: LogPosition::default(),
            log_start_offset: Offset(0),
            last: LogPosition::default(),
            epochs: Vec::new(),
            applied: RaftIndex(0),
            applied_end_offset: Offset(0),
            state: Vec::new(),
        }
    }
}

/// One record of a WAL block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalRecord {
    /// An entry is appended. Where its index is not above the group's last, it replaces that entry and all after it.
    Entry {
        /// The group.
        group: GroupId,
        /// The entry.
        entry: LogEntry,
    },
    /// The group's hard state changed.
    HardState {
        /// The group.
        group: GroupId,
        /// Its new hard state.
        state: HardState,
    },
    /// All entries after `index` are void.
    TruncateAfter {
        /// The group.
        group: GroupId,
        /// The last index that stays.
        index: RaftIndex,
    },
    /// All entries up to `position` are void (retention, or a snapshot took their place).
    LogStart {
        /// The group.
        group: GroupId,
        /// The last place that is gone.
        position: LogPosition,
        /// The first offset that may be read.
        offset: Offset,
    },
    /// A replica was placed here.
    GroupCreated {
        /// The group.
        group: GroupId,
        /// Its placement.
        meta: GroupMeta,
    },
    /// The replica is gone, with its log.
    GroupDeleted {
        /// The group.
        group: GroupId,
    },
    /// The whole of a group as of this place. One of each group stands at the start of each file. Among the data it
    /// says that a snapshot took the place of the group's log: then the log starts where it ends and all of it is
    /// applied, and every entry before it is void.
    Checkpoint(GroupCheckpoint),
}

impl WalRecord {
    /// The group the record speaks of.
    #[must_use]
    pub fn group(&self) -> GroupId {
        match self {
            WalRecord::Entry { group, .. }
            | WalRecord::HardState { group, .. }
            | WalRecord::TruncateAfter { group, .. }
            | WalRecord::LogStart { group, .. }
            | WalRecord::GroupCreated { group, .. }
            | WalRecord::GroupDeleted { group } => *group,
            WalRecord::Checkpoint(checkpoint) => checkpoint.group,
        }
    }
}
