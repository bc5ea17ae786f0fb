//! The simulator of whole clusters: the production cores and the production logs of three to five nodes, and in some runs of a
//! read-only one beside them, on simulated disks, joined by a simulated network, driven from one seed.
//!
//! A run is a function of its seed: one thread and a clock that only the run moves. Clients produce, read, create and
//! delete topics while nodes crash, stop and go on, disks fail and fill up, links are cut, and messages are lost, late,
//! doubled and out of order; the oracles in [`oracle`] watch every message, every block and every answer. Near the end all
//! faults are over but that a minority is away: the rest must go on, and soon. At the end that is over, too, and the cluster must come to rest: every group led, every batch acknowledged, all replicas alike.
//!
//! | module | owns |
//! |---|---|
//! | [`run`] | one run: its clock, its events, what a core wants done |
//! | `swarm` | how likely what is in a run: each run draws its own |
//! | `host` | a node: its shards, its starts and its ends |
//! | `net` | links, and what becomes of messages on them |
//! | `disks` | what the disks of a shard do: blocks, segments |
//! | `event` | what happens, and what is waited for |
//! | `clients`, `readers` | producers and readers that follow leaders |
//! | `epochs` | where epochs end, as leaders say it to readers |
//! | `replica_readers` | readers that read from any replica |
//! | `relaxed` | batches that are acknowledged in memory, and which of them may be lost |
//! | `in_sync` | of how many replicas producers ask that they have what is acknowledged |
//! | `members` | members of consumer groups |
//! | `coordinators` | who coordinates them, as the shell's `groups` has it |
//! | `topics` | commands of the catalog on any node, and what a new catalog makes a node do |
//! | `faults` | what goes wrong |
//! | `moves` | disks that are lost, partitions that move, and how Raft's members follow |
//! | `read_only` | what must be true of a node that is read-only, which every fourth run has |
//! | `removal` | a node that is taken out of the cluster, and is heard after that |
//! | `fills` | records that are copied from leaders |
//! | `repairs` | segments that are damaged, and their repair |
//! | `log_damage` | files of logs that are damaged |
//! | `minority` | before the end: all heals but a minority, and the rest must go on |
//! | `finish` | the end: everything heals, and must |
//! | [`oracle`] | what must be true of messages, disks and logs |
//! | `offsets` | what must be true of the logs of consumer groups |
//! | `memory` | what a shard may hold in memory |
//! | `configs` | who belongs to a group, as its log says |
//! | `planted` | what planted bugs make of a start |
//! | `lost` | what went with disks, and what may go |
//! | `replica` | what the disk of one replica holds |
//! | `told` | when followers are told what is committed, and that they hear it |
//! | [`report`] | what a run came to |
//!
//! What runs on a shard is the single node's ([`crate::sim::node`]), as are disks, producers and the oracle of a
//! partition. That the oracles can see is shown by [`Bug`]: each is planted on purpose and must be found.

/// Tells what happens, where that is wanted.
macro_rules! trace {
    ($run:expr, $format:literal $($what:tt)*) => {
        trace!($run.now_us, $run.is_traced, $format $($what)*)
    };
    ($now_us:expr, $is_traced:expr, $($what:tt)+) => {
        if $is_traced {
            eprintln!("{:>9} ms: {}", $now_us / 1_000, format_args!($($what)+));
        }
    };
}

mod clients;
mod configs;
mod coordinators;
mod disks;
mod epochs;
mod event;
mod faults;
mod fills;
mod finish;
mod host;
mod in_sync;
mod log_damage;
mod lost;
mod members;
mod memory;
mod minority;
mod moves;
mod net;
mod offsets;
pub mod oracle;
mod planted;
mod read_only;
mod readers;
mod relaxed;
mod removal;
mod repairs;
mod replica;
mod replica_readers;
pub mod report;
pub mod run;
mod swarm;
mod told;
mod topics;

pub use crate::sim::{Check, Violation};

/// A mistake planted on purpose, in the harness and not in the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Syncs report success and do nothing.
    SkipSync,
    /// A failed sync is taken for a good one.
    IgnoreSyncError,
    /// The core hears that a block is durable before it is written: votes and answers leave too early.
    SendBeforePersist,
    /// Hard states are not written where entries are written too.
    DropHardState,
    /// Where entries take the place of others, neither is written.
    LoseTruncate,
    /// A restart forgets whom a replica voted for.
    ForgetVote,
    /// A restart forgets term and vote.
    ForgetHardState,
    /// A restart forgets the last entry, committed or not.
    LoseTail,
    /// A restart forgets where the logs start.
    ForgetLogStart,
    /// A restart forgets the producers of the checkpoint.
    LoseDedupState,
    /// A core hears of a segment whose file is gone again.
    LoseSegment,
    /// Logs are cut behind records that are in no segment.
    CutUnstored,
    /// Who asks for all replicas is answered when the leader has it.
    AckBeforeQuorum,
    /// Who asks for the memory of a quorum is answered when the leader has it.
    AckBeforeReceipt,
    /// Followers are told that all entries of a message are committed.
    ApplyUncommitted,
    /// Heartbeats name a commit that is not there yet.
    ForgedCommit,
    /// Votes that were refused arrive as granted.
    ForgedVote,
    /// Entries of a group arrive at another one.
    WrongGroup,
    /// Who does not lead any more is read all the same.
    StaleReads,
    /// A leader says where its log ends, and what is committed, without asking whether it still leads.
    SkipBarrier,
    /// Whoever wants to commit offsets may.
    StaleGenerations,
    /// Who commits offsets is answered before they are in the log.
    AckCommitEarly,
    /// A restart forgets the consumer groups of the checkpoint.
    LoseGroups,
    /// A restart forgets who has come to a group since it was made.
    ForgetMembers,
    /// A node with empty disks has the replica of the catalog that it had before.
    SameReplicaIds,
    /// The catalog is told that a group is settled while its members still change.
    SettleEarly,
    /// Replicas that are to go are deleted before the group can do without them.
    DeleteEarly,
    /// Of the records that a replica copies the first ones are left out.
    FillGap,
    /// Followers hear of a commit with the next entries, or with a heartbeat.
    CommitsUntold,
    /// A replica that follows shows all that it has, committed or not.
    ReadUncommitted,
    /// A replica that follows does not notice that time passes.
    StaleFollowers,
    /// Nobody asks how many replicas are in sync.
    SkipInSync,
    /// Of the records that a replica copies in the place of damaged ones the first ones are left out.
    RepairGap,
    /// Leaders let replicas of read-only nodes vote.
    ReaderVotes,
    /// A node that starts takes all topics for durable until it has read the catalog.
    RelaxedUnknown,
    /// A topic that is relaxed no more is taken for one that never was.
    RelaxedForgotten,
    /// Votes are refused as long as a node is down or cut off.
    VotesOfAll,
    /// A restart takes each epoch to begin a record later than it did.
    LateEpochs,
    /// Who copies records is told that the leader's log starts later than it does.
    FillStartsLate,
    /// What cannot be read of a log is not copied from others.
    ForgetDamage,
    /// Shards take batches however much is in flight.
    HoldAll,
    /// Who was removed asks for votes as if its leader had told it to.
    RemovedCampaigns,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 42] = [
        Bug::SkipSync,
        Bug::IgnoreSyncError,
        Bug::SendBeforePersist,
        Bug::DropHardState,
        Bug::LoseTruncate,
        Bug::ForgetVote,
        Bug::ForgetHardState,
        Bug::LoseTail,
        Bug::ForgetLogStart,
        Bug::LoseDedupState,
        Bug::LoseSegment,
        Bug::CutUnstored,
        Bug::AckBeforeQuorum,
        Bug::AckBeforeReceipt,
        Bug::ApplyUncommitted,
        Bug::ForgedCommit,
        Bug::ForgedVote,
        Bug::WrongGroup,
        Bug::StaleReads,
        Bug::SkipBarrier,
        Bug::StaleGenerations,
        Bug::AckCommitEarly,
        Bug::LoseGroups,
        Bug::ForgetMembers,
        Bug::SameReplicaIds,
        Bug::SettleEarly,
        Bug::DeleteEarly,
        Bug::FillGap,
        Bug::CommitsUntold,
        Bug::ReadUncommitted,
        Bug::StaleFollowers,
        Bug::SkipInSync,
        Bug::RepairGap,
        Bug::ReaderVotes,
        Bug::RelaxedUnknown,
        Bug::RelaxedForgotten,
        Bug::VotesOfAll,
        Bug::LateEpochs,
        Bug::FillStartsLate,
        Bug::ForgetDamage,
        Bug::HoldAll,
        Bug::RemovedCampaigns,
    ];

    /// The same where it lies below the cluster, in a shard or its disk.
    fn of_shard(self) -> Option<crate::sim::Bug> {
        match self {
            Bug::SkipSync => Some(crate::sim::Bug::SkipSync),
            Bug::IgnoreSyncError => Some(crate::sim::Bug::IgnoreSyncError),
            Bug::SendBeforePersist => Some(crate::sim::Bug::AckBeforePersist),
            Bug::DropHardState => Some(crate::sim::Bug::DropHardState),
            Bug::LoseTruncate => Some(crate::sim::Bug::LoseTruncate),
            Bug::LoseSegment => Some(crate::sim::Bug::LoseSegment),
            Bug::CutUnstored => Some(crate::sim::Bug::CutUnstored),
            _ => None,
        }
    }
}
