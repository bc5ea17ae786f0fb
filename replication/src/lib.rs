//! Raft groups over the write-ahead log: one [`RaftGroup`] per partition, sans I/O.
//!
//! A group is fed with proposals, messages, ticks and "this is durable now", and gives back records for the log,
//! messages for its peers and committed entries. It owns no clock, no file, no socket and no randomness: the same calls
//! with the same seed give the same answers, so that a simulator can run whole clusters in one thread.
//!
//! | module | owns |
//! |---|---|
//! | `config` | timing and bounds of a group, and the parts that it is recovered from |
//! | `group` | one `RawNode`: proposals, ticks, elections, what it knows of itself |
//! | `ready` | the only place that orders send, append, persist and apply |
//! | `gate` | what a message must look like before raft-rs sees it |
//! | `log_store` | raft-rs's `Storage`: terms of the whole log, entries that are not yet applied |
//! | `log_view` | where a log starts, ends and changes its term |
//! | `entry` | raft-rs entries to log entries and back |
//! | `recover` | what a group starts with after a restart |
//! | `timeouts` | seeded election timeouts |
//! | `wire` | what nodes say to each other, as bytes and back |
//! | `peers` | the links to other nodes over a core's ring; feature `ring`, the only part that does I/O |
//! | `error` | what can be refused |
mod config;
mod entry;
mod error;
mod gate;
mod group;
mod log_store;
mod log_view;
mod logger;
#[cfg(feature = "ring")]
pub mod peers;
mod ready;
mod recover;
mod restart;
mod timeouts;
pub mod wire;

pub use config::{CheckpointParts, GroupConfig, RecoveredLog};
pub use entry::{EntryError, ProposedEntry};
pub use error::{ConfChangeError, ProposeError, RecoverError, StepError};
pub use group::{RaftGroup, Role};
pub use log_store::EntryFetch;
pub use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType,
    Message, MessageType,
};
pub use ready::{PeerMessage, ReadyNumber, ReadyOutput, RoleChange};
