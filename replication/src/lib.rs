//! Raft groups over the write-ahead log: one [`RaftGroup`] per partition, sans I/O.
//!
//! A group is fed with proposals, messages, ticks and "this is durable now", and gives back records for the log,
//! messages for its peers and committed entries. It owns no clock, no file, no socket and no randomness: the same calls
//! with the same seed give the same answers, so that a simulator can run whole clusters in one thread.
//!
//! | module | owns |
//! |---|---|
//! | `config` | timing and bounds of a group, and the parts that it is recovered from |
//! | `group` | one `RawNode`: proposals, ticks, elections |
//! | `status` | what a group knows of itself, and of its peers while it leads |
//! | `ready` | the only place that orders send, append, persist and apply |
//! | `read_index` | whether a leader still leads, before it answers readers |
//! | `freshness` | how old what a follower shows may be |
//! | `membership` | who belongs to a group, joint configurations |
//! | `to_come` | the configurations that the end of a log may bring |
//! | `laggards` | peers that get no further |
//! | `snapshot` | replacing a whole log: what is sent, made, installed |
//! | `gate` | what a message must look like before raft-rs sees it |
//! | `log_store` | raft-rs's `Storage`: terms of the whole log, entries that are not yet applied |
//! | `log_view` | where a log starts, ends and changes its term |
//! | `entry` | raft-rs entries to log entries and back |
//! | `recover` | what a group starts with after a restart |
//! | `timeouts` | seeded election timeouts |
//! | `formation` | how a cluster comes to be: blocking, before the cores start |
//! | `wire` | what nodes say to each other, as bytes and back |
//! | `peers` | the links to other nodes over a core's ring; feature `ring`, the only part that does I/O |
//! | `error` | what can be refused |
mod config;
mod entry;
mod error;
pub mod formation;
mod freshness;
mod gate;
mod group;
mod laggards;
mod log_store;
mod log_view;
mod logger;
mod membership;
#[cfg(feature = "ring")]
pub mod peers;
mod read_index;
mod ready;
mod recover;
mod restart;
mod snapshot;
mod status;
mod timeouts;
mod to_come;
pub mod wire;

pub use config::{CheckpointParts, GroupConfig, RecoveredLog};
pub use entry::{EntryError, ProposedEntry};
pub use error::{
    ChangeError, ConfChangeError, MembersError, ProposeError, RecoverError, SnapshotError,
    StepError,
};
pub use group::{RaftGroup, Role};
pub use log_store::EntryFetch;
pub use membership::Members;
pub use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
    EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};
pub use read_index::{ReadConfirmed, ReadRound};
pub use ready::{PeerMessage, ReadyNumber, ReadyOutput, Received, RoleChange};
pub use snapshot::install::SnapshotInstall;
pub use snapshot::send::SnapshotEnds;
pub use snapshot::{SnapshotHead, SnapshotParts};
pub use status::{KeepFor, LAG_ENTRIES_MAX, PeerProgress, ReplicationState};
