//! The timing and the bounds of a group, and the parts that it is recovered from and checkpointed as.
//!
//! Times are in ticks: how long a tick takes is known to the shell only.

use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId};
use chronik_engine::wal::record::{
    EpochStart, GroupCheckpoint, GroupMeta, HardState, LogEntry, LogPosition,
};

/// Ticks between two heartbeats of a leader: 1 s of 50 ms ticks.
const HEARTBEAT_TICKS: usize = 20;
/// Ticks without a leader before an election: 3 s, drawn up to twice that.
const ELECTION_TICKS: usize = 60;
/// Entry bytes in one message to a follower.
const MESSAGE_BYTES_MAX: u64 = 256 << 10;
/// Messages with entries on the way to one follower.
const INFLIGHT_MESSAGES_MAX: usize = 32;
/// Payload bytes that a leader has appended and that are not committed. One entry is always let through.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Payload bytes that one ready hands out to be applied. Bounds what a restart puts into memory at once.
const COMMITTED_BYTES_PER_READY_MAX: u64 = 8 << 20;
/// Ticks after which a snapshot that nobody has answered counts as lost: 30 s of 50 ms ticks.
const SNAPSHOT_TICKS_MAX: usize = 600;
/// Applied entries that stay in memory for followers which are slightly behind.
const RETAINED_ENTRIES_MAX: u64 = 64;
/// Their bytes. Beyond it a follower gets them from the disk, which costs the leader a read.
const RETAINED_BYTES_MAX: u64 = 4 << 20;

const _: () = assert!(ELECTION_TICKS > HEARTBEAT_TICKS);
const _: () = assert!(SNAPSHOT_TICKS_MAX > ELECTION_TICKS);
const _: () = assert!(UNCOMMITTED_BYTES_MAX >= MESSAGE_BYTES_MAX);

/// How a group behaves. The same for all replicas of a group but for the seed.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// The group.
    pub group: GroupId,
    /// Where the election timeouts come from; must differ between replicas, or their elections collide.
    pub seed: u64,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader before an election, drawn up to twice that.
    pub election_ticks: usize,
    /// Entry bytes in one message to a follower; one entry is always let through.
    pub message_bytes_max: u64,
    /// Messages with entries on the way to one follower.
    pub inflight_messages_max: usize,
    /// Payload bytes appended and not committed.
    pub uncommitted_bytes_max: u64,
    /// Payload bytes that one ready hands out to be applied.
    pub committed_bytes_per_ready_max: u64,
    /// Applied entries that stay in memory for followers. None stay in a group of one.
    pub retained_entries_max: u64,
    /// The bytes of those.
    pub retained_bytes_max: u64,
    /// Ticks after which a snapshot that nobody has answered counts as lost, and is sent anew; and for which a peer may take
    /// none of the entries that it lacks before the log is no longer kept for it.
    pub snapshot_ticks_max: usize,
}

impl GroupConfig {
    /// The defaults for a group whose replica draws its timeouts from `seed`.
    #[must_use]
    pub fn new(group: GroupId, seed: u64) -> GroupConfig {
        GroupConfig {
            group,
            seed,
            heartbeat_ticks: HEARTBEAT_TICKS,
            election_ticks: ELECTION_TICKS,
            message_bytes_max: MESSAGE_BYTES_MAX,
            inflight_messages_max: INFLIGHT_MESSAGES_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            committed_bytes_per_ready_max: COMMITTED_BYTES_PER_READY_MAX,
            retained_entries_max: RETAINED_ENTRIES_MAX,
            retained_bytes_max: RETAINED_BYTES_MAX,
            snapshot_ticks_max: SNAPSHOT_TICKS_MAX,
        }
    }

    /// The same as raft-rs wants it. All five limits that it leaves open by default are set.
    pub(crate) fn to_raft(&self, replica: ReplicaId, applied: RaftIndex) -> raft::Config {
        raft::Config {
            id: replica.0,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied: applied.0,
            max_size_per_msg: self.message_bytes_max,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: true,
            skip_bcast_commit: true, // see RaftGroup::tell_commit
            pre_vote: true,
            max_uncommitted_size: self.uncommitted_bytes_max,
            max_committed_size_per_ready: self.committed_bytes_per_ready_max,
            ..raft::Config::default()
        }
    }
}

/// What the write-ahead log knows of a group when the process starts.
#[derive(Debug, Clone, Default)]
pub struct RecoveredLog {
    /// Placement, and the configuration as of `applied`.
    pub meta: GroupMeta,
    /// The newest durable hard state. Its commit may be below `applied`, see [`crate::RaftGroup::new`].
    pub hard_state: HardState,
    /// Entries begin after this place.
    pub log_start: LogPosition,
    /// Where each term begins, at least for all entries up to `applied`; what lies beyond is taken from `entries`.
    pub epochs: Vec<EpochStart>,
    /// All entries after `applied`. The payload of a batch may be cut to its header: such entries are applied from
    /// memory, but never sent to a follower from there.
    pub entries: Vec<LogEntry>,
    /// The last durable entry.
    pub last: LogPosition,
    /// Up to here the state machine holds the log already.
    pub applied: RaftIndex,
    /// The offset after the last batch that is applied.
    pub applied_end_offset: Offset,
}

impl RecoveredLog {
    /// An empty log in a new placement.
    #[must_use]
    pub fn created(meta: GroupMeta) -> RecoveredLog {
        RecoveredLog { meta, ..RecoveredLog::default() }
    }

    /// The log as a checkpoint and what the write-ahead log holds after it say it is.
    #[must_use]
    pub fn from_checkpoint(
        checkpoint: &GroupCheckpoint,
        hard_state: HardState,
        log_start: LogPosition,
        entries: Vec<LogEntry>,
        last: LogPosition,
    ) -> RecoveredLog {
        RecoveredLog {
            meta: checkpoint.meta.clone(),
            hard_state,
            log_start,
            epochs: checkpoint.epochs.clone(),
            entries,
            last,
            applied: checkpoint.applied,
            applied_end_offset: checkpoint.applied_end_offset,
        }
    }
}

/// What a group gives to a checkpoint: what is durable, nothing that is still on its way to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointParts {
    /// The group.
    pub group: GroupId,
    /// Placement, and the configuration as of `applied`.
    pub meta: GroupMeta,
    /// Durable term and vote; commit is never below `applied`.
    pub hard_state: HardState,
    /// Entries begin after this place.
    pub log_start: LogPosition,
    /// The last durable entry.
    pub last: LogPosition,
    /// Where each term of the durable log begins.
    pub epochs: Vec<EpochStart>,
    /// The index up to which the state machine has applied the log.
    pub applied: RaftIndex,
    /// The offset after the last batch that is applied.
    pub applied_end_offset: Offset,
}

impl CheckpointParts {
    /// The checkpoint, with what only the state machine knows.
    #[must_use]
    pub fn into_checkpoint(self, log_start_offset: Offset, state: Vec<u8>) -> GroupCheckpoint {
        GroupCheckpoint {
            group: self.group,
            meta: self.meta,
            hard_state: self.hard_state,
            log_start: self.log_start,
            log_start_offset,
            last: self.last,
            epochs: self.epochs,
            applied: self.applied,
            applied_end_offset: self.applied_end_offset,
            state,
        }
    }
}
