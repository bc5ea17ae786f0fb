//! What a group refuses, one enum for each thing that can be asked of it, so that callers match exhaustively.
//!
//! Broken invariants are not here: they end the process, in raft-rs as in this crate.

use chronik_engine::ids::{Offset, RaftIndex, ReplicaId, Term};

use crate::entry::EntryError;

/// Why a group cannot be started from what was recovered. The replica must not vote or answer.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("the placement has no replica id")]
    NoReplica,
    #[error("applied {applied} is not between log start {log_start} and last entry {last}")]
    AppliedOutOfRange { applied: RaftIndex, log_start: RaftIndex, last: RaftIndex },
    #[error("commit {commit} is beyond the last entry {last}: durable entries are missing")]
    CommitBeyondLog { commit: RaftIndex, last: RaftIndex },
    #[error("expected entry {expected}, found {found}")]
    EntryGap { expected: RaftIndex, found: RaftIndex },
    #[error("entry {index} has term {term}, after an entry of term {previous}")]
    TermRegressed { index: RaftIndex, term: Term, previous: Term },
    #[error("entry {index} begins at offset {found}, expected {expected}")]
    OffsetGap { index: RaftIndex, expected: Offset, found: Offset },
    #[error("entries end at {found}, the log at {expected}")]
    LastMismatch { expected: RaftIndex, found: RaftIndex },
    #[error("the terms of the log are not known from {log_start} on")]
    EpochsPartial { log_start: RaftIndex },
    #[error("the placement names members that no group has")]
    Members {
        #[source]
        source: MembersError,
    },
    #[error("raft refused the recovered state")]
    Raft {
        #[source]
        source: raft::Error,
    },
}

/// Why nothing was proposed. Nothing was appended, and no offset was taken.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Another replica leads, if any.
    #[error("this replica does not lead; the leader is {leader:?}")]
    NotLeader { leader: Option<ReplicaId> },
    /// Leadership is being handed over: ask again, there or here.
    #[error("leadership is being handed to {to}")]
    TransferInProgress { to: ReplicaId },
    /// Too much is appended and not committed: ask again later.
    #[error("{uncommitted_bytes} bytes are not committed yet")]
    Backlogged { uncommitted_bytes: usize },
    /// One configuration change at a time: ask again once the one before is applied.
    #[error("another configuration change is not applied yet")]
    ConfChangePending,
    /// A transition without changes, or changes without anything in them.
    #[error("the change changes nothing")]
    ConfChangeEmpty,
    /// A change to members that no group can have.
    #[error("the change leads to members that no group has")]
    Members {
        #[source]
        source: MembersError,
    },
    /// A change that could never be applied, like the removal of the last voter.
    #[error("the configuration cannot be changed like that")]
    ConfChangeInvalid {
        #[source]
        source: raft::Error,
    },
    /// A change that no group would apply.
    #[error("the configuration cannot be changed like that")]
    Change {
        #[source]
        source: ChangeError,
    },
    #[error("raft refused the proposal")]
    Raft {
        #[source]
        source: raft::Error,
    },
}

impl ProposeError {
    /// Whether the same proposal may succeed here without anything but time passing.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            ProposeError::TransferInProgress { .. }
            | ProposeError::Backlogged { .. }
            | ProposeError::ConfChangePending => true,
            ProposeError::NotLeader { .. }
            | ProposeError::ConfChangeEmpty
            | ProposeError::Members { .. }
            | ProposeError::Change { .. }
            | ProposeError::ConfChangeInvalid { .. }
            | ProposeError::Raft { .. } => false,
        }
    }
}

/// Why a message was dropped before raft saw it. Each is worth a counter; none is worth ending the process.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("the message is for replica {to}")]
    WrongRecipient { to: ReplicaId },
    #[error("replica {from} may not send this")]
    WrongSender { from: ReplicaId },
    /// A handover by a leader that does not lead us, or no longer.
    #[error("replica {from} hands over a leadership that it does not have")]
    NotOurLeader { from: ReplicaId },
    #[error("messages of type {message_type:?} are not taken from peers")]
    UnexpectedType { message_type: raft::eraftpb::MessageType },
    #[error("term {term} is out of range")]
    AbsurdTerm { term: u64 },
    #[error("position {position} is out of range")]
    AbsurdPosition { position: u64 },
    #[error("{from} sends as leader of {term}, but {leader} leads it")]
    SecondLeader { from: ReplicaId, leader: ReplicaId, term: Term },
    #[error("{from}, which cannot lead, names commit {commit} beyond the last entry {last}")]
    ImplausibleCommit { from: ReplicaId, commit: RaftIndex, last: RaftIndex },
    #[error("{from} answers for entry {index}, the log ends at {last}")]
    IndexBeyondLog { from: ReplicaId, index: RaftIndex, last: RaftIndex },
    #[error("expected entry {expected}, found {found}")]
    EntryGap { expected: u64, found: u64 },
    #[error("entry {index} has term {term}, which is not between {after} and {up_to}")]
    EntryTerm { index: u64, term: u64, after: u64, up_to: u64 },
    #[error("entry {index} cannot be read")]
    Entry {
        index: RaftIndex,
        #[source]
        source: EntryError,
    },
    #[error("a snapshot that cannot be taken")]
    Snapshot {
        #[source]
        source: SnapshotError,
    },
    /// A snapshot in another message than that for it, entries in that, or the demand for a snapshot: whether one is
    /// needed is found out by the leader.
    #[error("messages of type {message_type:?} do not carry this")]
    UnexpectedPart { message_type: raft::eraftpb::MessageType },
    #[error("raft refused the message")]
    Raft {
        #[source]
        source: raft::Error,
    },
}

/// Why a committed configuration change cannot be applied. The log demands it, so the group must stop.
#[derive(Debug, thiserror::Error)]
pub enum ConfChangeError {
    #[error("the change at {index} cannot be read")]
    Malformed {
        index: RaftIndex,
        #[source]
        source: ChangeError,
    },
    #[error("raft refused the change at {index}")]
    Raft {
        index: RaftIndex,
        #[source]
        source: raft::Error,
    },
}

/// Why bytes are no change of a configuration that any leader proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("the change has {bytes} bytes, of at most {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the change is not encoded as any leader does it")]
    Encoding,
    #[error("the change names a member without a replica id")]
    NoReplica,
}

/// Why these cannot be the members of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    #[error("{count} members")]
    TooMany { count: usize },
    #[error("a member without a replica id")]
    NoReplica,
    #[error("nobody votes")]
    NoVoter,
    #[error("replica {replica} is named twice")]
    Twice { replica: ReplicaId },
    #[error("replica {replica} becomes a learner, but is not in the configuration that is left")]
    NotOutgoing { replica: ReplicaId },
    #[error("there is no joint configuration to leave")]
    NotJoint,
}

/// Why a snapshot cannot be sent or taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("it has {bytes} bytes, of at most {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("its header cannot be read")]
    Header,
    #[error("it has version {version}")]
    Version { version: u8 },
    #[error("it stands at entry {index} of term {term}, sent in term {sent_in}")]
    Position { index: u64, term: u64, sent_in: u64 },
    #[error("it names terms that are not those of a log up to its place")]
    Epochs,
    #[error("its log goes from offset {start} to offset {end}, which cannot be")]
    Offsets { start: Offset, end: Offset },
    #[error("its members are not those of a group")]
    Members {
        #[source]
        source: MembersError,
    },
    #[error("replica {replica} is no member")]
    NotAMember { replica: ReplicaId },
    #[error("replica {replica} does not vote")]
    NotAVoter { replica: ReplicaId },
    #[error("its entry {index} is of term {found}, here it is of term {expected}")]
    Conflict { index: RaftIndex, expected: Term, found: Term },
}
