//! Raft-rs's view of the log: terms of the whole log, and the entries that are not yet applied.
//!
//! The write-ahead log is read asynchronously, and raft-rs can wait for entries only where it sends them to a
//! follower; anywhere else a missing entry ends the process. So all entries after `applied` are in memory, and what a
//! follower needs beyond that is asked for as an [`EntryFetch`].
//!
//! Invariants: (I1) slots are contiguous and end at the last entry; (I2) every entry after `applied` has a slot;
//! (I3) a slot up to `heads_until` may hold a batch cut to its header and is never sent; (I4) an entry begins at the
//! offset where the one before it ends; (I5) applied slots are counted and weighed, so that what is kept of them for
//! followers is bounded in both.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;

use chronik_engine::ids::{Offset, RaftIndex, Term};
use chronik_engine::wal::record::{EpochStart, LogEntry};
use raft::eraftpb::{Entry, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::entry::Slot;
use crate::log_view::LogView;
use crate::snapshot::send::Demand;

/// Requests of raft-rs that wait for the same entries. A follower asks again with each heartbeat that it answers, so
/// what is dropped beyond this comes back.
const WAITING_PER_FETCH_MAX: usize = 16;

/// Entries that a follower needs and that are not in memory. Read them from the write-ahead log and give them to
/// [`crate::RaftGroup::on_entries_fetched`], all or a first part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryFetch {
    /// The first entry.
    pub from: RaftIndex,
    /// The entry after the last.
    pub up_to: RaftIndex,
    /// How many bytes of entries are wanted; the first one whatever its size.
    pub bytes_max: u64,
}

#[derive(Debug)]
struct Wanted {
    fetch: EntryFetch,
    handed_out: bool,
    waiting: Vec<GetEntriesContext>,
}

/// The log of one group, in memory.
#[derive(Debug)]
pub(crate) struct LogStore {
    initial: RaftState,
    view: LogView,
    slots: VecDeque<Slot>,
    /// The offset where the first slot begins.
    slots_start_offset: Offset,
    heads_until: RaftIndex,
    /// The applied slots: the last of them, and the bytes of all of them (I5).
    retained_to: RaftIndex,
    retained_bytes: u64,
    /// Raft-rs reads through `&self`; what it misses is noted here. Borrowed within one call only.
    wanted: RefCell<Vec<Wanted>>,
    /// Entries that were read for the request that is being answered, else empty.
    fetched: Vec<Entry>,
    demand: Demand,
}

impl LogStore {
    /// A log whose entries up to `view`'s last are durable and applied.
    pub(crate) fn new(initial: RaftState, view: LogView, end_offset: Offset) -> LogStore {
        LogStore {
            initial,
            retained_to: view.last().index,
            retained_bytes: 0,
            view,
            slots: VecDeque::new(),
            slots_start_offset: end_offset,
            heads_until: RaftIndex(0),
            wanted: RefCell::new(Vec::new()),
            fetched: Vec::new(),
            demand: Demand::default(),
        }
    }

    /// Replaces everything by a log without entries that starts where a snapshot ends.
    pub(crate) fn install(&mut self, view: LogView, end_offset: Offset) {
        assert!(view.start() == view.last(), "a snapshot has no entries: {view:?}");
        assert!(view.last().index > self.view.start().index, "a snapshot leads on: {view:?}");
        *self = LogStore::new(mem::take(&mut self.initial), view, end_offset);
    }

    /// Takes an entry that was recovered, its payload perhaps cut.
    pub(crate) fn recover(&mut self, entry: LogEntry) {
        self.push(Slot::from_log(entry));
        self.heads_until = self.view.last().index;
    }

    /// Puts an entry after the last; returns the term run that it begins, if it begins one.
    pub(crate) fn append(&mut self, slot: Slot) -> Option<EpochStart> {
        let LogEntry { index, base_offset, .. } = slot.entry;
        let end_offset =
            self.slots.back().map_or(self.slots_start_offset, |s| s.entry.end_offset());
        assert!(base_offset == end_offset, "I4: {base_offset} at {index} after {end_offset}");
        self.push(slot)
    }

    fn push(&mut self, slot: Slot) -> Option<EpochStart> {
        let LogEntry { index, term, base_offset, .. } = slot.entry;
        let run = self.view.append(index, term, base_offset);
        self.slots.push_back(slot);
        run
    }

    /// Removes all entries after `index`, none of which can be committed.
    pub(crate) fn truncate_after(&mut self, index: RaftIndex) {
        let before = self.before_slots();
        assert!(index >= before, "I2: truncated to {index}, applied entries end at {before}");
        self.view.truncate_after(index);
        while self.slots.back().is_some_and(|slot| slot.entry.index > index) {
            self.slots.pop_back();
        }
        self.heads_until = self.heads_until.min(index);
    }

    /// Lets go of entries up to `applied`, but for the last `retained` of them that come to `retained_bytes` at most:
    /// followers may still want those.
    pub(crate) fn drop_applied(&mut self, applied: RaftIndex, retained: u64, retained_bytes: u64) {
        self.weigh_applied(applied);
        while let Some(front) = self.slots.front() {
            let index = front.entry.index;
            let is_too_many = index.0.saturating_add(retained) <= applied.0;
            let is_too_heavy = index <= applied && self.retained_bytes > retained_bytes;
            let useless = index <= self.heads_until && index <= applied;
            if !is_too_many && !is_too_heavy && !useless {
                break;
            }
            self.slots_start_offset = front.entry.end_offset();
            if index <= self.retained_to {
                self.retained_bytes -= front.size();
            }
            self.slots.pop_front();
        }
    }

    /// Adds to what is retained the slots that are applied since, each once (I5).
    fn weigh_applied(&mut self, applied: RaftIndex) {
        let mut next = self.retained_to.max(self.before_slots()).next();
        while next <= applied
            && let Some(slot) = self.slot(next)
        {
            self.retained_bytes += slot.size();
            next = next.next();
        }
        self.retained_to = self.retained_to.max(applied);
    }

    /// Lets the log start after `index`, which is applied.
    pub(crate) fn start_after(&mut self, index: RaftIndex) {
        self.drop_applied(index, 0, 0);
        self.view.start_after(index);
    }

    pub(crate) fn view(&self) -> &LogView {
        &self.view
    }

    /// The entry at `index`, if it is in memory.
    pub(crate) fn slot(&self, index: RaftIndex) -> Option<&Slot> {
        let at = index.0.checked_sub(self.before_slots().next().0)?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    /// The offset after the entry at `index`, if it is in memory or just before what is.
    pub(crate) fn end_offset_at(&self, index: RaftIndex) -> Option<Offset> {
        if index == self.before_slots() {
            return Some(self.slots_start_offset);
        }
        self.slot(index).map(|slot| slot.entry.end_offset())
    }

    /// Whether a follower waits for entries that nobody was asked for yet.
    pub(crate) fn has_fetches(&self) -> bool {
        self.wanted.borrow().iter().any(|wanted| !wanted.handed_out)
    }

    /// Moves what followers wait for to `out`.
    pub(crate) fn take_fetches(&mut self, out: &mut Vec<EntryFetch>) {
        for wanted in self.wanted.get_mut().iter_mut().filter(|wanted| !wanted.handed_out) {
            wanted.handed_out = true;
            out.push(wanted.fetch);
        }
    }

    /// Puts entries in place for the requests that wait for them, and returns those. Entries that are no longer the
    /// log's are left out. Raft-rs has to ask again at once, then [`LogStore::forget_fetched`] follows.
    pub(crate) fn put_fetched(
        &mut self,
        from: RaftIndex,
        entries: Vec<LogEntry>,
    ) -> Vec<GetEntriesContext> {
        let wanted = self.wanted.get_mut();
        let Some(at) = wanted.iter().position(|wanted| wanted.fetch.from == from) else {
            return Vec::new();
        };
        let waiting = wanted.swap_remove(at).waiting;
        let mut expected = from;
        for entry in entries {
            let known = self.view.term_at(entry.index);
            if entry.index != expected || known != Some(entry.term) {
                break;
            }
            expected = expected.next();
            self.fetched.push(Slot::from_log(entry).to_raft());
        }
        // Without entries a second question would only be noted again, and the disk asked in circles.
        if self.fetched.is_empty() { Vec::new() } else { waiting }
    }

    pub(crate) fn forget_fetched(&mut self) {
        self.fetched = Vec::new();
    }

    /// Drops all requests: their answers are of no use once leadership is lost.
    pub(crate) fn forget_fetches(&mut self) {
        drop(mem::take(self.wanted.get_mut()));
    }

    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    pub(crate) fn demand_mut(&mut self) -> &mut Demand {
        &mut self.demand
    }

    /// The index before the first slot.
    fn before_slots(&self) -> RaftIndex {
        match self.slots.front() {
            Some(front) => RaftIndex(front.entry.index.0 - 1),
            None => self.view.last().index,
        }
    }

    /// Slots from `low` on, as raft-rs wants them: at least one, then up to `bytes_max`.
    fn copy_slots(&self, low: RaftIndex, high: RaftIndex, bytes_max: u64) -> Option<Vec<Entry>> {
        let first = usize::try_from(low.0.checked_sub(self.before_slots().next().0)?).ok()?;
        let count = usize::try_from(high.0 - low.0).ok()?;
        if count > self.slots.len().checked_sub(first)? {
            return None;
        }
        let mut entries = Vec::with_capacity(count.min(64));
        let mut bytes = 0_u64;
        for slot in self.slots.range(first..first + count) {
            bytes = bytes.saturating_add(slot.size());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(slot.to_raft());
        }
        Some(entries)
    }

    fn want(&self, fetch: EntryFetch, context: GetEntriesContext) {
        let mut wanted = self.wanted.borrow_mut();
        match wanted.iter_mut().find(|wanted| wanted.fetch.from == fetch.from) {
            Some(known) if known.waiting.len() < WAITING_PER_FETCH_MAX => {
                known.waiting.push(context);
            }
            Some(_) => {}
            None => wanted.push(Wanted { fetch, handed_out: false, waiting: vec![context] }),
        }
    }

    /// Entries for a follower, which may be told to wait.
    fn entries_to_send(
        &self,
        low: RaftIndex,
        high: RaftIndex,
        bytes_max: u64,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if self.fetched.first().is_some_and(|entry| entry.index == low.0) {
            let count = self.fetched.iter().take_while(|entry| entry.index < high.0).count();
            return Ok(self.fetched[..count].to_vec());
        }
        // I3: a cut payload must not leave this replica.
        if low > self.heads_until
            && let Some(entries) = self.copy_slots(low, high, bytes_max)
        {
            return Ok(entries);
        }
        self.want(EntryFetch { from: low, up_to: high, bytes_max }, context);
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        assert!(low <= high, "entries [{low}, {high})");
        assert!(
            high <= self.view.last().index.0 + 1,
            "entries up to {high}: {:?}",
            self.view.last()
        );
        if low <= self.view.start().index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let (low, high) = (RaftIndex(low), RaftIndex(high));
        if context.can_async() {
            return self.entries_to_send(low, high, bytes_max, context);
        }
        // I2 says that they are here. Where they are not, raft-rs ends the process, as it should.
        self.copy_slots(low, high, bytes_max).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.view.term_at(RaftIndex(index)) {
            Some(Term(term)) => Ok(term),
            None if index < self.view.start().index.0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.view.start().index.next().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.view.last().index.0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let kept = self.demand.take(request_index, to, self.view.start().index);
        kept.ok_or(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chronik_engine::wal::record::{EntryKind, LogPosition};

    use super::*;

    /// A log of entries with payloads of these sizes.
    fn store(sizes: &[usize]) -> LogStore {
        let start = LogPosition { index: RaftIndex(0), term: Term(0) };
        let view = LogView::new(start, start, Vec::new());
        let mut store = LogStore::new(RaftState::default(), view, Offset(0));
        for (index, size) in (1..).zip(sizes) {
            let entry = LogEntry {
                index: RaftIndex(index),
                term: Term(1),
                kind: EntryKind::Command,
                base_offset: Offset(0),
                offset_count: 0,
                max_timestamp_ms: -1,
                payload: Bytes::from(vec![0; *size]),
            };
            store.append(Slot::from_log(entry));
        }
        store
    }

    fn first_in_memory(store: &LogStore) -> u64 {
        store.before_slots().next().0
    }

    #[test]
    fn given_applied_entries_when_dropped_then_what_stays_is_bounded_in_number_and_in_bytes() {
        let mut store = store(&[100; 10]);
        let one = store.slot(RaftIndex(1)).map(Slot::size).unwrap_or_default();
        store.drop_applied(RaftIndex(4), 100, u64::MAX);
        assert_eq!(first_in_memory(&store), 1);
        store.drop_applied(RaftIndex(6), 3, u64::MAX);
        assert_eq!(first_in_memory(&store), 4, "three of those that are applied");
        store.drop_applied(RaftIndex(8), 100, 2 * one);
        assert_eq!(first_in_memory(&store), 7, "and no more than two by weight");
        store.drop_applied(RaftIndex(8), 100, 0);
        assert_eq!(first_in_memory(&store), 9, "what is not applied stays, whatever it weighs");
        assert_eq!(store.retained_bytes, 0);
    }
}
