//! The partitions of `__consumer_offsets`: their logs hold commands, and what these come to is the state of consumer
//! groups.
//!
//! - I1: a store is never larger than what a snapshot may hold, so that it always fits into a checkpoint.
//! - I2: a store is shown only by a leader that is ready: before that it may lag behind what was acknowledged.

use chronik_engine::ids::GroupId;
use chronik_engine::limits::GROUP_STATE_BYTES_MAX;
use chronik_engine::wal::record::LogEntry;

use super::group::{Group, Machine};
use super::{Ack, ProduceError, ShardCore, Token, live_mut};
use crate::groups::{COMMAND_BYTES_MAX, GroupCommand, GroupStore};

impl ShardCore {
    /// The consumer groups of a partition of `__consumer_offsets` that is led from here (I2).
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
        let is_storage_full = self.storage_full();
        let target = live_mut(&mut self.groups, group);
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
        let is_too_large =
            payload.len() > COMMAND_BYTES_MAX || target.is_overfull_with(command, payload.len());
        if is_too_large {
            return Err(ProduceError::CommandTooLarge);
        }
        self.append_command(group, payload, Some(token))
    }
}

impl Group {
    /// Whether the state of consumer groups would be more than a snapshot of it may be, with what is on its way to it.
    /// What does not make it larger is never too much: groups that are there go on.
    fn is_overfull_with(&self, command: &GroupCommand, command_bytes: usize) -> bool {
        let Machine::Groups(store) = &self.machine else { return false };
        if store.bytes() + command_bytes <= GROUP_STATE_BYTES_MAX / 2
            && self.in_flight.len() <= GROUP_STATE_BYTES_MAX / 2 / COMMAND_BYTES_MAX
        {
            return false; // without a look at each that is under way
        }
        if store.growth_bytes(command) == 0 {
            return false;
        }
        let in_flight: usize = self.in_flight.iter().map(|own| own.bytes).sum();
        store.bytes() + in_flight + command_bytes > GROUP_STATE_BYTES_MAX
    }

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
