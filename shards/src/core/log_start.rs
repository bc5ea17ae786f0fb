//! Where the log of a partition starts: moved by a command in its own log, so that all replicas agree.
//!
//! Two things move, one after the other. The *log start offset* is what clients see: the command
//! [`PartitionCommand::LogStart`] is committed and applied, and nothing before it is read any more. The *log's start* is
//! the place up to which the entries themselves may go: it follows when the log can give a file back, and becomes
//! durable as a log-start record of the shard's log before it counts.
//!
//! Producers stay remembered though their batches are gone, as in Kafka: only time makes a partition forget them.
//!
//! - I1: the log start offset never goes back, and never beyond the high watermark.
//! - I2: the log is cut only behind entries that are applied, durable, and either of offsets before the log start offset
//!   or in segments; that of a group without records, whose state says it all, behind any that are applied and durable.
//!   Each replica judges for itself. A leader keeps entries, besides, for replicas in reach that are about to get them,
//!   so that who is a little late needs no snapshot, and those behind a snapshot that is on its way; on a full disk none.
//! - I3: what the log of a group has, its Raft has, too: entries go only once a cut is durable. Else a leader would look
//!   for them in vain where a follower needs a snapshot.

use chronik_engine::framed::{self, FramedError};
use chronik_engine::ids::{GroupId, Offset, RaftIndex};
use chronik_engine::wal::LogNeed;
use chronik_engine::wal::record::{EntryKind, LogEntry, LogPosition, WalRecord};
use chronik_replication::KeepFor;
use thiserror::Error;

use super::commit::Unit;
use super::group::{Group, Machine};
use super::{Ack, ProduceError, ShardCore, Shared, Token, live_mut};

const VERSION: u8 = 1;

/// Most memory that decoding one command may claim.
const COMMAND_BYTES_MAX: usize = 4096;

/// What a partition's log says beside records. It outlives the program that wrote it: a change is a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum PartitionCommand {
    /// Records before this offset are gone.
    LogStart {
        /// The first offset that stays.
        offset: Offset,
    },
}

/// Why bytes are not a partition's command.
#[derive(Debug, Error)]
pub enum PartitionCommandError {
    /// Not the format, or another version of it.
    #[error(transparent)]
    Framed(#[from] FramedError),
}

impl PartitionCommand {
    /// The command as an entry's payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match framed::encode(VERSION, self) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("encoding into memory does not fail: {error}"),
        }
    }

    /// The command in an entry's payload.
    ///
    /// # Errors
    /// If the bytes are not a command of a version this program knows.
    pub fn decode(bytes: &[u8]) -> Result<PartitionCommand, PartitionCommandError> {
        Ok(framed::decode::<_, COMMAND_BYTES_MAX>(VERSION, bytes)?)
    }
}

impl ShardCore {
    /// Lets a partition's log start at `offset`. The token, if somebody waits, comes back once with the log start offset
    /// that it came to. It is taken on a full disk, too, since it makes room.
    ///
    /// # Errors
    /// Why the command is not taken.
    pub fn propose_log_start(
        &mut self,
        group: GroupId,
        offset: Offset,
        token: Option<Token>,
    ) -> Result<(), ProduceError> {
        self.check_open()?;
        let target = live_mut(&mut self.groups, group);
        let target = target.ok_or(ProduceError::UnknownPartition)?;
        if !matches!(target.machine, Machine::Partition(_)) {
            return Err(ProduceError::UnknownPartition);
        }
        if !target.is_ready() {
            return Err(ProduceError::NotLeader);
        }
        let payload = PartitionCommand::LogStart { offset }.encode();
        self.append_command(group, payload, token)
    }

    /// From where on the log of a group is needed, by readers or by its state machine; `None` if it is not here.
    #[must_use]
    pub fn log_need(&self, group: GroupId) -> Option<LogNeed> {
        self.live(group).map(|live| match live.machine {
            Machine::Partition(_) => LogNeed::Offset(live.stored_to()),
            // Their state is in every checkpoint; their log only leads from one to the next.
            Machine::Catalog(_) | Machine::Groups(_) => LogNeed::Index(live.raft.applied().next()),
        })
    }

    /// Cuts a group's log behind `index`, of which the log says that nobody needs it, or as far as may be (I2). It
    /// counts once the record is durable.
    pub fn cut_log(&mut self, id: GroupId, index: RaftIndex) {
        let is_storage_full = self.storage_full();
        if let Some(group) = live_mut(&mut self.groups, id) {
            group.cut_log(index, is_storage_full, &mut self.shared);
        }
    }
}

impl Group {
    pub(super) fn apply_log_start(&mut self, entry: &LogEntry, shared: &mut Shared) -> Ack {
        let command = match PartitionCommand::decode(&entry.payload) {
            Ok(command) => command,
            // Ours were encoded by propose, recovered ones were read before.
            Err(error) => unreachable!("group {}: entry {}: {error}", self.id, entry.index),
        };
        let PartitionCommand::LogStart { offset } = command;
        // Everything before a committed entry is committed, so its place is below the high watermark (I1).
        let within = offset.min(entry.base_offset);
        self.log_start_offset = self.log_start_offset.max(within);
        let gone = self.take_segments_before(self.log_start_offset);
        shared.effects.segments_gone.extend(gone);
        Ack::LogStart(self.log_start_offset)
    }

    /// Where the log starts once all its commands are applied, if they are committed.
    pub(super) fn log_start_to_come(&self) -> Offset {
        let commands = self.raft.not_applied().filter(|entry| entry.kind == EntryKind::Command);
        let offsets = commands.filter_map(|entry| {
            let PartitionCommand::LogStart { offset } =
                PartitionCommand::decode(&entry.payload).ok()?;
            Some(offset.min(entry.base_offset))
        });
        offsets.fold(self.log_start_offset, Offset::max)
    }

    fn cut_log(&mut self, index: RaftIndex, is_storage_full: bool, shared: &mut Shared) {
        let keep_for = match self.machine {
            // Who is late gets a snapshot where the disk has no room for patience.
            _ if is_storage_full => KeepFor::Nobody,
            Machine::Partition(_) => KeepFor::Peers,
            // The state of a group without records is a small snapshot.
            Machine::Catalog(_) | Machine::Groups(_) => KeepFor::Snapshots,
        };
        let index = index.min(self.raft.applied());
        let is_cut = index <= self.raft.log_start().index;
        if self.is_cutting || !self.is_created() || is_cut {
            return;
        }
        if index > self.raft.cut_limit(keep_for) {
            return;
        }
        let Some(term) = self.raft.term_at(index) else { return };
        let position = LogPosition { index, term };
        let offset = self.log_start_offset;
        self.is_cutting = true;
        let record = WalRecord::LogStart { group: self.id, position, offset };
        shared.stage(Unit::cut(self.id, index), record);
    }

    /// The record that cuts the log behind `index` is durable.
    pub(super) fn on_cut(&mut self, index: RaftIndex) {
        assert!(self.is_cutting, "group {}: nobody cut it at {index}", self.id);
        self.is_cutting = false;
        self.raft.compact(index);
    }
}
