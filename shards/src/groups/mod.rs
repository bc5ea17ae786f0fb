//! Consumer groups, the classic protocol: who is in a group, who reads what, how far they have come.
//!
//! Each group belongs to one partition of the topic `__consumer_offsets`, and is coordinated where that partition is
//! led. What must survive lies in the partition's log ([`store`]); what Kafka, too, keeps in memory only (who is about
//! to join, whose session is how old) is the [`Coordinator`]'s.
//!
//! | module | owns |
//! |---|---|
//! | [`store`] | generations, assignments and offsets: the state machine of the log |
//! | `coordinator` | the groups of one partition, time, what there is to answer and to write |
//! | `group` | one group: its members and its states |
//! | `rebalance` | how a group comes from one generation to the next |
//! | `join`, `sync`, `membership` | what a member asks for |
//! | `offsets` | who may commit, and which offsets have expired |
//! | `describe` | what administrators see |
//!
//! All of it is sans-I/O: time, ids and the fate of what is written are arguments, answers and commands are effects.

mod coordinator;
mod describe;
mod error;
mod group;
mod join;
mod membership;
mod offsets;
mod rebalance;
pub mod store;
mod subscription;
mod sync;

pub use coordinator::{
    Coordinator, CoordinatorConfig, CoordinatorStats, Effect, JobId, JoinAnswer, JoinRequest,
    JoinedMember, Now, SyncAnswer, SyncRequest, Ticket,
};
pub use describe::{DescribedGroup, DescribedMember, ListedGroup};
pub use error::GroupError;
pub use group::GroupState;
pub use membership::{Leaving, MemberRef};
pub use offsets::CommitCheck;
pub use store::{ExpiredOffset, GroupCommand, GroupStore, SavedOffset};

#[cfg(test)]
mod tests;

/// The topic whose logs hold the groups.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// What a group's state may come to as one entry of the log. A group beyond it cannot have a new generation.
pub const COMMAND_BYTES_MAX: usize = 16 << 20;

/// The partition of `__consumer_offsets` that a group belongs to: Java's `String.hashCode`, made positive as Kafka does,
/// modulo the number of partitions.
#[must_use]
pub fn partition_of(group: &str, partitions: usize) -> usize {
    let hash = group
        .encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    // Of the smallest integer there is no positive one.
    let positive = usize::try_from(hash.checked_abs().unwrap_or(0)).unwrap_or(0);
    positive % partitions.max(1)
}
