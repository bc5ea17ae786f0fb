//! Proposals: the checks before an entry gets its place in a log, and the place itself.

use chronik_engine::batch::{BatchHeader, RecordBatch, TimestampType};
use chronik_engine::ids::GroupId;
use chronik_engine::tail_cache::CachedBatch;
use chronik_engine::wal::record::EntryKind;
use chronik_replication::{ProposeError, ProposedEntry};

use super::commit::{UNIT_BYTES_MAX, UNIT_ENTRIES_MAX};
use super::group::{Group, InFlight, Machine, acked, log_append_time_ms, producer_batch};
use super::producers::{ProducerBatch, SequenceError, Verdict};
use super::read_index::Waiting;
use super::{Appended, ProduceError, RequiredAcks, ShardCore, Shared, Token, live_mut};
use crate::catalog::{CatalogCommand, CommandId};

/// Duplicates of one batch that wait with it. A producer that tries again has given up the one before, so a few are
/// honest.
const DUPLICATES_MAX: usize = 64;

impl ShardCore {
    /// Appends a batch to a partition in memory. On return its place against all other batches of the partition is
    /// fixed; `token` comes back once with its fate. `retained_bytes` is what the batch keeps alive: the frame it came
    /// in. After an error the token does not come back.
    ///
    /// # Errors
    /// Why the batch is not taken.
    pub fn propose_batch(
        &mut self,
        group: GroupId,
        batch: RecordBatch,
        acks: RequiredAcks,
        retained_bytes: usize,
        token: Token,
    ) -> Result<(), ProduceError> {
        self.check_open()?;
        let is_storage_full = self.storage_full();
        let Some(target) = live_mut(&mut self.groups, group) else {
            return Err(ProduceError::UnknownPartition);
        };
        if !target.can_propose() {
            return Err(ProduceError::NotLeader);
        }
        if acks.is_for_all() && target.holds_too_many() {
            return Err(ProduceError::Overloaded);
        }
        let producer = check_kind(&batch)?;
        if let Some(producer) = &producer {
            let waiting = (token, acks);
            match target.answer_duplicate(producer, batch.header(), waiting, &mut self.shared) {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                Err(error) => return target.refuse(error, token, &mut self.shared),
            }
        }
        if is_storage_full {
            return Err(ProduceError::StorageFull);
        }
        self.shared.check_in_flight(batch.size())?;
        let waiting = (token, acks);
        target.propose_batch(batch, producer, waiting, retained_bytes, &mut self.shared)?;
        self.after_proposal(group);
        Ok(())
    }

    /// Appends a change to the catalog's log, on the shard that has it. As [`ShardCore::propose_batch`].
    ///
    /// # Errors
    /// Why the command is not taken.
    pub fn propose_command(
        &mut self,
        command: &CatalogCommand,
        token: Token,
    ) -> Result<(), ProduceError> {
        self.propose_named(None, command, token)
    }

    /// The same, with a name by which the node that asks for it finds it in the log.
    pub(super) fn propose_named(
        &mut self,
        id: Option<CommandId>,
        command: &CatalogCommand,
        token: Token,
    ) -> Result<(), ProduceError> {
        self.check_open()?;
        let is_storage_full = self.storage_full();
        let meta = live_mut(&mut self.groups, GroupId::META);
        let target = meta.ok_or(ProduceError::UnknownPartition)?;
        if !target.can_propose() {
            return Err(ProduceError::NotLeader);
        }
        if is_storage_full && !is_let_through_when_full(command) {
            return Err(ProduceError::StorageFull);
        }
        let payload = match command.encode_named(id) {
            Ok(payload) => payload,
            Err(error) => unreachable!("encoding into memory does not fail: {error}"),
        };
        // What is committed must be read by every node, now and at each start; a command that takes more memory than
        // reading one may would end them all.
        if CatalogCommand::decode_named(&payload).is_err() {
            return Err(ProduceError::CommandTooLarge);
        }
        self.append_command(GroupId::META, payload, Some(token))
    }

    /// Appends a command to the log of a group that was found fit to take it. Whoever waits does so for its commit.
    pub(super) fn append_command(
        &mut self,
        group: GroupId,
        payload: Vec<u8>,
        token: Option<Token>,
    ) -> Result<(), ProduceError> {
        let target = self.groups.get_mut(&group).ok_or(ProduceError::UnknownPartition)?;
        let bytes = payload.len();
        self.shared.check_in_flight(bytes)?;
        let entry = ProposedEntry {
            kind: EntryKind::Command,
            offset_count: 0,
            max_timestamp_ms: -1,
            payload: payload.into(),
        };
        let waiting = token.map(|token| (token, RequiredAcks::All));
        target.propose(entry, -1, waiting, bytes, &mut self.shared)?;
        self.after_proposal(group);
        Ok(())
    }

    pub(super) fn check_open(&self) -> Result<(), ProduceError> {
        if self.is_stopped { Err(ProduceError::ShuttingDown) } else { Ok(()) }
    }

    /// Sees to it that the next block takes the proposal in.
    pub(super) fn after_proposal(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.unstaged_bytes >= UNIT_BYTES_MAX || group.unstaged_entries >= UNIT_ENTRIES_MAX {
            group.pump(&mut self.shared);
        } else if !group.is_dirty {
            group.is_dirty = true;
            self.dirty.push_back(id);
        }
    }
}

/// Deleting and moving away is how an operator makes room, and without its registration a node does not start: then
/// nobody could read, nor delete. All are small; the log keeps some room in reserve for them.
fn is_let_through_when_full(command: &CatalogCommand) -> bool {
    use CatalogCommand::{
        CordonBroker, DeleteTopics, MovePartitions, RegisterBroker, ReplicasSettled,
        UnregisterBroker,
    };
    matches!(
        command,
        DeleteTopics { .. }
            | RegisterBroker { .. }
            | UnregisterBroker { .. }
            | MovePartitions { .. }
            | ReplicasSettled { .. }
            | CordonBroker { .. }
    )
}

/// Refuses what clients may not append, and finds the producer.
fn check_kind(batch: &RecordBatch) -> Result<Option<ProducerBatch>, ProduceError> {
    if batch.is_control() {
        return Err(ProduceError::ControlBatch);
    }
    if batch.is_transactional() {
        return Err(ProduceError::TransactionalBatch);
    }
    let producer = producer_batch(batch.header());
    if producer.is_none() && batch.producer_id() >= 0 {
        return Err(ProduceError::NoSequence { producer_id: batch.producer_id() });
    }
    Ok(producer)
}

/// What a duplicate is told of the time of appending: the greatest timestamp of the first one, whoever gave it, as Kafka
/// does. Where that is no longer in memory the producer's time is the duplicate's own; the broker's is not known.
fn first_time_ms(first: Option<&CachedBatch>, duplicate: &BatchHeader) -> i64 {
    match (first, duplicate.timestamp_type()) {
        (Some(first), _) => first.max_timestamp_ms,
        (None, TimestampType::CreateTime) => duplicate.max_timestamp_ms,
        (None, TimestampType::LogAppendTime) => -1,
    }
}

impl Shared {
    pub(super) fn check_in_flight(&self, bytes: usize) -> Result<(), ProduceError> {
        let fits = self.in_flight_bytes + bytes <= self.config.in_flight_bytes_max;
        if fits || self.in_flight_bytes == 0 { Ok(()) } else { Err(ProduceError::Overloaded) }
    }
}

impl Group {
    /// Refuses a batch, now or once it is known that this replica may: the producer of a gap may have gone on at another
    /// leader that this one has not heard of, and would take the gap for records lost.
    fn refuse(
        &mut self,
        error: ProduceError,
        token: Token,
        shared: &mut Shared,
    ) -> Result<(), ProduceError> {
        let ProduceError::Sequence(gap @ SequenceError::OutOfOrderSequence { .. }) = error else {
            return Err(error);
        };
        if self.raft.leads_alone() {
            return Err(error);
        }
        let waits = self.wait_for_quorum(Waiting::Refused(token, gap), shared);
        if waits { Ok(()) } else { Err(ProduceError::NotLeader) }
    }

    /// Checks the sequence. A duplicate is answered with the first one's fate: now, or when that is known. Says
    /// whether it was one.
    fn answer_duplicate(
        &mut self,
        batch: &ProducerBatch,
        header: &BatchHeader,
        waiting: (Token, RequiredAcks),
        shared: &mut Shared,
    ) -> Result<bool, ProduceError> {
        let Machine::Partition(producers) = &self.machine else {
            return Err(ProduceError::UnknownPartition);
        };
        let Verdict::Duplicate { base_offset } = producers.check(batch)? else {
            return Ok(false);
        };
        // Commands before it stand at its offset too, as they take none.
        let after = self.in_flight.partition_point(|own| own.base_offset <= base_offset);
        let is_original = |at: &usize| self.in_flight[*at].base_offset == base_offset;
        if let Some(at) = after.checked_sub(1).filter(is_original) {
            return self.join_original(at, waiting, shared).map(|()| true);
        }
        let cached = shared.tail.get(self.id, base_offset).next();
        let cached = cached.filter(|cached| cached.base_offset == base_offset);
        let appended = Appended {
            base_offset,
            log_append_time_ms: first_time_ms(cached, header),
            log_start_offset: self.log_start_offset,
            leader_epoch: self.raft.term(),
        };
        if waiting.1.is_for_all() && self.hold_duplicate(appended, waiting) {
            return Ok(true);
        }
        shared.effects.replies.push((waiting.0, acked(appended)));
        Ok(true)
    }

    /// Answers a duplicate of a batch in flight as that one: now, or when it has come to what the duplicate asks for.
    fn join_original(
        &mut self,
        at: usize,
        waiting: (Token, RequiredAcks),
        shared: &mut Shared,
    ) -> Result<(), ProduceError> {
        let own = &self.in_flight[at];
        if self.is_met(waiting.1, own.index, shared) {
            shared.effects.replies.push((waiting.0, acked(self.appended(own))));
            return Ok(());
        }
        self.await_received(waiting.1);
        let own = &mut self.in_flight[at];
        if own.duplicates.len() >= DUPLICATES_MAX {
            return Err(ProduceError::Overloaded);
        }
        own.duplicates.push(waiting);
        Ok(())
    }

    fn propose_batch(
        &mut self,
        batch: RecordBatch,
        producer: Option<ProducerBatch>,
        waiting: (Token, RequiredAcks),
        retained_bytes: usize,
        shared: &mut Shared,
    ) -> Result<(), ProduceError> {
        if !matches!(self.machine, Machine::Partition(_)) {
            return Err(ProduceError::UnknownPartition);
        }
        let log_append_time_ms = log_append_time_ms(batch.header());
        let entry = ProposedEntry {
            kind: EntryKind::Batch,
            offset_count: batch.offset_count(),
            max_timestamp_ms: batch.max_timestamp_ms(),
            payload: batch.into_bytes(),
        };
        self.propose(entry, log_append_time_ms, Some(waiting), retained_bytes, shared)?;
        let base_offset = self.in_flight.back().map(|own| own.base_offset);
        if let (Some(producer), Some(base_offset), Machine::Partition(producers)) =
            (producer, base_offset, &mut self.machine)
        {
            producers.propose(&producer, base_offset);
        }
        self.release_proposed(waiting.1, shared);
        Ok(())
    }

    /// Gives an entry its index and its offset.
    fn propose(
        &mut self,
        entry: ProposedEntry,
        log_append_time_ms: i64,
        waiting: Option<(Token, RequiredAcks)>,
        retained_bytes: usize,
        shared: &mut Shared,
    ) -> Result<(), ProduceError> {
        let bytes = entry.payload.len();
        let (index, base_offset) = self.raft.propose(entry).map_err(|error| match error {
            ProposeError::Backlogged { .. } | ProposeError::ConfChangePending => {
                ProduceError::Overloaded
            }
            _ => ProduceError::NotLeader,
        })?;
        let in_order = self.in_flight.back().is_none_or(|last| last.index < index);
        assert!(in_order, "entries in flight are in the order of their indices");
        self.in_flight.push_back(InFlight {
            index,
            base_offset,
            waiting,
            duplicates: Vec::new(),
            bytes,
            retained_bytes,
            log_append_time_ms,
        });
        shared.in_flight_bytes += bytes;
        self.unstaged_bytes += bytes;
        self.unstaged_entries += 1;
        Ok(())
    }
}
