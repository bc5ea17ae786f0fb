//! The partitions of `__consumer_offsets`: their logs hold commands, and what these come to is the state of consumer
//! groups.
//!
//! - I1: a store is shown only by a leader that is ready: before that it may lag behind what was acknowledged.

use chronik_engine::ids::GroupId;
use chronik_engine::wal::record::LogEntry;

use super::group::{Group, Machine};
use super::{Ack, ProduceError, ShardCore, Token};
use crate::groups::{COMMAND_BYTES_MAX, GroupCommand, GroupStore};

impl ShardCore {
    /// The consumer groups of a partition of `__consumer_offsets` that is led from here (I1).
    #[must_use]
    pub fn group_store(&self, group: GroupId) -> Option<&GroupStore> {
        match &self.live(group).filter(|live| live.is_ready())?.machine {
            Machine::Groups(store) => Some(store),
            Machine::Partition(_) | Machine::Catalog(_) => None,
        }
    }

    /// Appends a change to the log of a partition of `__consumer_offsets`. As [`ShardCore::propose_batch`]. Deletions are
    /// taken on a full disk, too, since they make room.
    ///
    /// # Errors
    /// Why the command is not taken.
    pub fn propose_group_command(
        &mut self,
        group: GroupId,
        command: &GroupCommand,
        token: Token,
    ) -> Result<(), ProduceError> {
        self.check_open()?;
        let is_storage_full = self.is_storage_full;
        let target = self.groups.get_mut(&group).filter(|group| group.is_live());
        let target = target.ok_or(ProduceError::UnknownPartition)?;
        if !matches!(target.machine, Machine::Groups(_)) {
            return Err(ProduceError::UnknownPartition);
        }
        if !target.can_propose() {
            return Err(ProduceError::NotLeader);
        }
        if is_storage_full && !command.is_deletion() {
            return Err(ProduceError::StorageFull);
        }
        let payload = match command.encode() {
            Ok(payload) => payload,
            Err(error) => unreachable!("encoding into memory does not fail: {error}"),
        };
        if payload.len() > COMMAND_BYTES_MAX {
            return Err(ProduceError::CommandTooLarge);
        }
        self.append_command(group, payload, Some(token))
    }
}

impl Group {
    pub(super) fn apply_group_command(&mut self, entry: &LogEntry) -> Ack {
        let Machine::Groups(store) = &mut self.machine else {
            unreachable!("group {}: a command of consumer groups", self.id)
        };
        match GroupCommand::decode(&entry.payload) {
            Ok(command) => store.apply(command),
            // Ours were encoded by propose, recovered ones were read before.
            Err(error) => unreachable!("group {}: entry {}: {error}", self.id, entry.index),
        }
        Ack::Groups
    }
}
