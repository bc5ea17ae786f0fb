//! The only place that orders send, append, persist and apply.
//!
//! A ready of raft-rs is taken apart at once: entries go into the in-memory log and, as records, to the write-ahead
//! log; messages go out now or wait; committed entries go to the state machine. Raft-rs is told "appended" in the same
//! call and "persisted" when the caller says so, so a leader replicates while its own write is in flight.
//!
//! Invariants:
//! (I1) a message that speaks for durable state leaves only after that state is durable. That is every message of a
//!      replica that does not lead, and every message of a leader whose term is not yet durable: a lone voter leads
//!      before it has written its vote, and after a crash it would lead the same term a second time.
//! (I2) outputs become durable in the order in which they were given out; one that has nothing to write is durable
//!      together with the one before it.
//! (I3) entries and the hard state that goes with them are one output, the hard state last, and durable as one. The
//!      commit index that comes with an entry must not be lost without it: a replica that has a change of the members
//!      in its log, and does not know that the one before is committed, would vote in a configuration long gone.
//! (I4) a hard state of which only the commit is new is not worth a write: it goes with the next records. Until then a
//!      restart may know a lower commit, never a commit beyond its entries; [`crate::RaftGroup::new`] raises it to
//!      what was applied.
//! (I5) committed entries come out in order, each once, and only when they are durable here; a snapshot that takes the
//!      place of some comes out before those that follow it.

use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{EpochStart, HardState, LogEntry, LogPosition, WalRecord};
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Progress, ProgressState, Ready, StateRole};

use crate::entry::Slot;
use crate::group::{RaftGroup, Role};
use crate::read_index::{self, ReadConfirmed};
use crate::snapshot::install::{Install, SnapshotInstall};

/// Names an output that has something to persist. Rises within the life of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadyNumber(u64);

/// A message for the replica that it names as its receiver.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerMessage {
    /// The group it belongs to.
    pub group: GroupId,
    /// What to send.
    pub message: Message,
}

/// Role, leader or both have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleChange {
    /// What the replica does now.
    pub role: Role,
    /// Who leads now, if that is known.
    pub leader: Option<ReplicaId>,
    /// In which term.
    pub term: Term,
}

/// What a group wants done. Filled by [`RaftGroup::ready`], which adds and never removes, so that one serves many
/// groups; `snapshot`, `committed`, `role` and `reads` do not name their group and are taken out in between.
#[derive(Debug, Default)]
pub struct ReadyOutput {
    /// To be written in this order, after all that was given out before.
    pub records: Vec<WalRecord>,
    /// To be sent now.
    pub messages: Vec<PeerMessage>,
    /// To be put in the place of the state machine, before anything of `committed` is applied. It is durable, and counts
    /// as applied.
    pub snapshot: Option<SnapshotInstall>,
    /// To be applied in this order, then [`RaftGroup::advance_applied`]. Batches that were appended before this
    /// process started may be cut to their headers.
    pub committed: Vec<LogEntry>,
    /// The role has changed.
    pub role: Option<RoleChange>,
    /// Rounds of [`RaftGroup::begin_read`] that a quorum has confirmed.
    pub reads: Vec<ReadConfirmed>,
}

/// An output on its way to the disk, and what becomes true when it is there.
#[derive(Debug, Default)]
pub(crate) struct PendingWrite {
    /// What [`RaftGroup::ready`] returned for it.
    given: u64,
    /// The last ready of raft-rs that is durable with it (I2).
    covers: u64,
    /// Replaces everything before it; the rest of the output goes on from there.
    pub(crate) install: Option<Install>,
    pub(crate) truncate_after: Option<RaftIndex>,
    runs: Vec<EpochStart>,
    last: Option<LogPosition>,
    pub(crate) hard_state: Option<HardState>,
    messages: Vec<Message>,
}

/// What a follower has in its memory of its leader's log, and will say once it is on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The leader.
    pub leader: ReplicaId,
    /// Its term, and this replica's.
    pub term: Term,
    /// All up to here is the same as the leader's.
    pub index: RaftIndex,
}

impl RaftGroup {
    /// What this replica has received of its leader since this was asked last, unless the leader has the answer already.
    pub fn take_received(&mut self) -> Option<Received> {
        let received = self.received.take()?;
        let waits = received.term == self.term() && received.index > self.last_durable().index;
        waits.then_some(received)
    }

    /// An answer to a leader says what its sender holds, once it may leave.
    fn note_received(&mut self, waiting: &[Message]) {
        let term = self.node.raft.term;
        for message in waiting {
            let is_answer = message.get_msg_type() == MessageType::MsgAppendResponse;
            // Without an index it only says that there is a newer term.
            if is_answer && !message.reject && message.term == term && message.index > 0 {
                self.received = Some(Received {
                    leader: ReplicaId(message.to),
                    term: Term(term),
                    index: RaftIndex(message.index),
                });
            }
        }
    }

    /// Takes what there is to do. A number means that `records` grew: call [`RaftGroup::on_persisted`] with it once
    /// they are durable. To be called until [`RaftGroup::has_ready`] is false.
    pub fn ready(&mut self, out: &mut ReadyOutput) -> Option<ReadyNumber> {
        self.finish_install(out);
        if !self.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let number = ready.number();
        if let Some(soft_state) = ready.ss() {
            let role = Role::from(soft_state.raft_state);
            if role != Role::Leader {
                self.node.mut_store().forget_fetches();
                self.forget_snapshots();
            }
            out.role = Some(RoleChange { role, leader: self.leader(), term: self.term() });
        }
        out.reads.extend(ready.read_states().iter().filter_map(read_index::confirmed));
        let mut write = PendingWrite { given: number, covers: number, ..PendingWrite::default() };
        if !ready.snapshot().is_empty() {
            self.begin_install(ready.snapshot(), &mut write, out);
        }
        self.append_entries(ready.take_entries(), &mut write, out);
        self.write_hard_state(&ready, &mut write, out);
        for entry in ready.take_committed_entries() {
            self.given = RaftIndex(entry.index);
            out.committed.push(self.committed_entry(entry));
        }
        write.messages = ready.take_persisted_messages();
        self.note_received(&write.messages);
        let mut messages = ready.take_messages();
        self.sign(&mut messages);
        self.sign(&mut write.messages);
        self.note_snapshots(&messages);
        self.node.advance_append_async(ready);

        let has_records = write.last.is_some() || write.hard_state.is_some();
        self.note_commit_told(&messages);
        if self.may_send_at_once() {
            self.send(messages, out);
        } else {
            write.messages.extend(messages);
        }
        if has_records {
            self.pending.push_back(write);
            return Some(ReadyNumber(number));
        }
        match self.pending.back_mut() {
            Some(before) => {
                before.covers = number;
                before.messages.append(&mut write.messages);
            }
            None => {
                self.node.on_persist_ready(number);
                self.send(write.messages, out);
            }
        }
        None
    }

    /// The records of all outputs up to `number` are durable. Adds the messages that waited for that to `messages`,
    /// to be sent now, and returns whether there is a ready to take.
    pub fn on_persisted(&mut self, number: ReadyNumber, messages: &mut Vec<PeerMessage>) -> bool {
        let mut covers = None;
        while self.pending.front().is_some_and(|write| write.given <= number.0) {
            let Some(write) = self.pending.pop_front() else { break };
            covers = Some(write.covers);
            if let Some(install) = write.install {
                self.durable = install.view.clone();
                self.installed = Some(install);
            }
            if let Some(index) = write.truncate_after {
                self.durable.truncate_after(index);
            }
            if let Some(last) = write.last {
                self.durable.extend(&write.runs, last);
            }
            if let Some(hard_state) = write.hard_state {
                self.durable_hard_state = hard_state;
            }
            let group = self.config.group;
            messages
                .extend(write.messages.into_iter().map(|message| PeerMessage { group, message }));
        }
        assert!(covers.is_some(), "I2: {number:?} is not on its way to the disk");
        if let Some(covers) = covers {
            self.node.on_persist_ready(covers);
            self.take_over_if_asked();
        }
        self.has_ready()
    }

    /// The state machine has applied all committed entries up to `index`; they need not stay in memory. Raft-rs ends
    /// the process if `index` goes back or was never given out as committed.
    pub fn advance_applied(&mut self, index: RaftIndex) {
        if index == self.applied() {
            return;
        }
        let end_offset = self.node.store().end_offset_at(index);
        assert!(end_offset.is_some(), "{index} is applied, but is not in memory");
        self.applied_end_offset = end_offset.unwrap_or_default();
        let last = self.last_index();
        self.node.advance_apply_to(index.0);
        if self.last_index() != last {
            // Raft-rs leaves a joint configuration, and would not tell anybody before the next heartbeat.
            self.node.raft.bcast_append();
        }
        self.cover_members_if_idle();
        let retained = self.retained_entries();
        let retained_bytes = self.config.retained_bytes_max;
        self.node.mut_store().drop_applied(index, retained, retained_bytes);
        self.take_over_if_asked();
    }

    /// Whether this leader knows of entries that are committed and has not told its peers.
    #[must_use]
    pub fn has_commit_to_tell(&self) -> bool {
        self.is_leader()
            && self.commit_told < self.commit_index()
            && self.node.raft.prs().iter().len() > 1
    }

    /// Tells the peers how far the log is committed, if they were not told; false if they were. New entries tell it, too,
    /// and heartbeats late. Raft-rs would do it after each commit, which doubles the messages where entries come singly.
    pub fn tell_commit(&mut self) -> bool {
        let tells = self.has_commit_to_tell();
        if tells {
            self.commit_told = self.commit_index();
            self.node.raft.bcast_append();
        }
        tells
    }

    /// What went to one peer alone, as it came back, says nothing to the others. A peer that is being probed is no hindrance: it
    /// hears of the commit as soon as it answers.
    fn note_commit_told(&mut self, messages: &[Message]) {
        let appends =
            || messages.iter().filter(|message| message.get_msg_type() == MessageType::MsgAppend);
        if appends().next().is_none() {
            return;
        }
        let own = self.node.raft.id;
        let peers = self.node.raft.prs().iter();
        let takes_entries = |progress: &Progress| progress.state == ProgressState::Replicate;
        let waits = peers.filter(|(peer, progress)| **peer != own && takes_entries(progress));
        let told = waits.map(|(peer, _)| {
            let to_it = appends().filter(|message| message.to == *peer);
            to_it.map(|message| RaftIndex(message.commit)).max().unwrap_or_default()
        });
        self.commit_told = self.commit_told.max(told.min().unwrap_or_default());
    }

    /// Puts new entries into the log in memory and their records into `out`.
    fn append_entries(
        &mut self,
        entries: Vec<Entry>,
        write: &mut PendingWrite,
        out: &mut ReadyOutput,
    ) {
        let Some(first) = entries.first() else { return };
        let group = self.config.group;
        let before = RaftIndex(first.index - 1);
        let store = self.node.mut_store();
        if before < store.view().last().index {
            assert!(before >= self.written_hard_state.commit, "committed entries stay: {before}");
            store.truncate_after(before);
            write.truncate_after = Some(before);
            out.records.push(WalRecord::TruncateAfter { group, index: before });
        }
        let mut end_offset = self.log_end_offset();
        out.records.reserve(entries.len() + 1);
        for entry in entries {
            let index = entry.index;
            let slot = match Slot::from_raft(entry, end_offset) {
                Ok(slot) => slot,
                // Ours were encoded by propose, a peer's were read by the gate.
                Err(error) => unreachable!("entry {index} of group {group}: {error}"),
            };
            end_offset = slot.entry.end_offset();
            let entry = slot.entry.clone();
            write.last = Some(LogPosition { index: entry.index, term: entry.term });
            write.runs.extend(self.node.mut_store().append(slot));
            out.records.push(WalRecord::Entry { group, entry });
        }
    }

    /// The offset where the log in memory ends, without what raft-rs has not handed out.
    fn log_end_offset(&self) -> Offset {
        let store = self.node.store();
        let end_offset = store.end_offset_at(store.view().last().index);
        assert!(end_offset.is_some(), "the last entry is always in memory, or just before it");
        end_offset.unwrap_or_default()
    }

    /// Adds the hard state if it must be written, or if it is new and something else is written anyway (I3, I4).
    fn write_hard_state(&mut self, ready: &Ready, write: &mut PendingWrite, out: &mut ReadyOutput) {
        let raft = &self.node.raft;
        let now = HardState {
            term: Term(raft.term),
            vote: ReplicaId(raft.vote),
            commit: RaftIndex(raft.raft_log.committed),
        };
        let written = self.written_hard_state;
        if now == written || !ready.must_sync() {
            return;
        }
        assert!(now.term >= written.term, "{now:?} after {written:?}");
        assert!(now.commit >= written.commit, "{now:?} after {written:?}");
        let revoted =
            now.term == written.term && now.vote != written.vote && written.vote != ReplicaId::NONE;
        assert!(!revoted, "a second vote in one term: {now:?} after {written:?}");
        self.written_hard_state = now;
        write.hard_state = Some(now);
        out.records.push(WalRecord::HardState { group: self.config.group, state: now });
    }

    /// A committed entry as the state machine wants it.
    fn committed_entry(&self, entry: Entry) -> LogEntry {
        let index = RaftIndex(entry.index);
        let slot = self.node.store().slot(index);
        assert!(slot.is_some(), "{index} is committed and not applied, so it is in memory");
        let Some(slot) = slot else { unreachable!("asserted above") };
        assert!(slot.entry.term.0 == entry.term, "{index} has one term only");
        LogEntry { payload: entry.data, ..slot.entry }
    }

    /// I1: only a leader whose term is durable.
    fn may_send_at_once(&self) -> bool {
        self.node.raft.state == StateRole::Leader
            && self.durable_hard_state.term.0 == self.node.raft.term
    }

    fn send(&self, messages: Vec<Message>, out: &mut ReadyOutput) {
        let group = self.config.group;
        out.messages.extend(messages.into_iter().map(|message| PeerMessage { group, message }));
    }
}
