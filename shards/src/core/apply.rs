//! What becomes of a group's committed entries: its state machine takes them, whoever waits for one is answered, and
//! readers see what is new.
//!
//! - I1: an entry is applied once, in the log's order, and only when it is committed and durable here.

use std::sync::Arc;

use chronik_engine::batch::BatchHeader;
use chronik_engine::ids::RaftIndex;
use chronik_engine::tail_cache::CachedBatch;
use chronik_engine::wal::record::{EntryKind, LogEntry};

use super::group::{Group, InFlight, Machine, producer_batch};
use super::{Ack, Appended, RequiredAcks, Shared, Token};
use crate::catalog::CatalogCommand;

impl Group {
    pub(super) fn apply_committed(&mut self, shared: &mut Shared) {
        let mut committed = std::mem::take(&mut shared.out.committed);
        let Some(last) = committed.last().map(|entry| entry.index) else { return };
        for entry in committed.drain(..) {
            self.apply(entry, shared);
        }
        shared.out.committed = committed;
        self.raft.advance_applied(last);
        self.announce_catalog(shared);
        let high_watermark = self.high_watermark();
        shared.waiters.wake(self.id, high_watermark, &mut shared.effects.wakes);
    }

    fn apply(&mut self, entry: LogEntry, shared: &mut Shared) {
        let own = self.take_own(entry.index);
        let mut ack = None;
        match entry.kind {
            EntryKind::Noop => {}
            EntryKind::Batch => self.apply_batch(&entry, shared.now_ms),
            EntryKind::Command => ack = Some(self.apply_command(&entry, shared)),
            EntryKind::ConfChange => {
                let applied = self.raft.apply_conf_change(&entry);
                assert!(applied.is_ok(), "group {}: a committed change: {applied:?}", self.id);
            }
        }
        if let Some(own) = &own {
            assert!(own.base_offset == entry.base_offset, "an offset is given out once");
            shared.in_flight_bytes -= own.bytes;
            match ack {
                None => self.acknowledge(own, shared),
                Some(ack) => {
                    let tokens = own.waiting.iter().chain(&own.duplicates);
                    let replies = tokens.map(|(token, _)| (*token, Ok(ack.clone())));
                    shared.effects.replies.extend(replies);
                }
            }
        }
        if entry.kind == EntryKind::Batch && is_whole(&entry) {
            let retained_bytes = own.map_or(0, |own| own.retained_bytes).max(entry.payload.len());
            shared.tail.insert(self.id, cached(entry), retained_bytes);
        }
    }

    /// The proposal of this leader that became the entry at `index`.
    fn take_own(&mut self, index: RaftIndex) -> Option<InFlight> {
        let front = self.in_flight.front()?.index;
        assert!(front >= index, "I1 of group: {front} was applied before {index}");
        if front == index { self.in_flight.pop_front() } else { None }
    }

    fn apply_batch(&mut self, entry: &LogEntry, now_ms: i64) {
        let Machine::Partition(producers) = &mut self.machine else {
            unreachable!("group {}: a batch in the catalog's log", self.id)
        };
        let header = BatchHeader::read(&entry.payload);
        assert!(header.is_some(), "group {}: entry {} is no batch", self.id, entry.index);
        if let Some(batch) = header.as_ref().and_then(producer_batch) {
            producers.apply(&batch, entry.base_offset, entry.index, now_ms);
        }
    }

    fn apply_command(&mut self, entry: &LogEntry, shared: &mut Shared) -> Ack {
        let catalog = match &mut self.machine {
            Machine::Catalog(catalog) => catalog,
            Machine::Partition(_) => return self.apply_log_start(entry, shared),
            Machine::Groups(_) => return self.apply_group_command(entry),
        };
        let (id, command) = match CatalogCommand::decode_named(&entry.payload) {
            Ok(named) => named,
            // Ours were encoded by propose, recovered ones were read before.
            Err(error) => unreachable!("group {}: entry {}: {error}", self.id, entry.index),
        };
        // Of several commands only the last image is wanted: without this each would copy the catalog.
        let taken_back = shared.effects.catalog.take().is_some();
        let outcome = Arc::make_mut(catalog).apply(&command);
        // To show an image costs a walk over every shard; what changes nothing that is seen must not.
        if taken_back || outcome.changes_image() {
            self.is_announced = false;
        }
        if let Some(awaited) = id.and_then(|id| shared.awaited.remove(&id)) {
            self.is_current = true;
            self.is_announced = false;
            shared.effects.replies.push((awaited.token, Ok(Ack::Command(outcome.clone()))));
        }
        Ack::Command(outcome)
    }

    /// Shows the catalog to the shard once it is up to date (I4 of `group`).
    pub(super) fn announce_catalog(&mut self, shared: &mut Shared) {
        self.is_current |= self.is_ready();
        if let Machine::Catalog(catalog) = &self.machine
            && !self.is_announced
            && self.is_current
        {
            shared.effects.catalog = Some(Arc::clone(catalog));
            self.is_announced = true;
        }
    }

    /// Answers those who wait for the leader's disk only.
    pub(super) fn release_durable(&mut self, shared: &mut Shared) {
        let durable = self.raft.last_durable().index;
        for at in 0..self.in_flight.len() {
            if self.in_flight[at].index > durable {
                return;
            }
            let appended = self.appended(&self.in_flight[at]);
            let own = &mut self.in_flight[at];
            let is_done = |waiting: &(Token, RequiredAcks)| !waiting.1.is_for_all();
            let mut reply = |(token, _): (Token, RequiredAcks)| {
                shared.effects.replies.push((token, Ok(Ack::Appended(appended))));
            };
            own.waiting.take_if(|waiting| is_done(waiting)).map(&mut reply);
            own.duplicates.extract_if(.., |waiting| is_done(waiting)).for_each(&mut reply);
        }
    }

    /// What to tell whoever proposed this.
    pub(super) fn appended(&self, own: &InFlight) -> Appended {
        Appended {
            base_offset: own.base_offset,
            log_append_time_ms: own.log_append_time_ms,
            log_start_offset: self.log_start_offset,
            leader_epoch: self.raft.term(),
        }
    }
}

/// Whether the entry has all of its batch: those recovered from the log have only the header.
fn is_whole(entry: &LogEntry) -> bool {
    BatchHeader::read(&entry.payload)
        .and_then(|header| header.size().ok())
        .is_some_and(|size| size == entry.payload.len())
}

fn cached(entry: LogEntry) -> CachedBatch {
    CachedBatch {
        base_offset: entry.base_offset,
        offset_count: entry.offset_count,
        epoch: entry.term,
        max_timestamp_ms: entry.max_timestamp_ms,
        bytes: entry.payload,
    }
}
