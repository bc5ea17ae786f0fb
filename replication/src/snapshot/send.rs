//! Making and sending snapshots: a leader whose log does not reach back to where a peer's ends.
//!
//! Raft-rs asks for a snapshot when it wants to send one, and wants it at once. It is told that there is none yet, and
//! the demand is noted; the owner of the group makes one of what its state machine has applied, which is committed and
//! durable here, and gives it in. One snapshot is kept at a time, for all peers that wait; and for some time after one was lost,
//! since what has arrived of a large one is not sent twice if it is the same.
//!
//! While a snapshot is on its way to a peer, raft-rs sends that peer nothing but heartbeats. The peer's own answer ends
//! that. Where no answer comes, somebody must say that it failed, or the peer waits for ever: whoever sends it
//! ([`RaftGroup::report_snapshot_lost`]), and at the latest a clock in ticks. A peer that has much to copy before it can
//! install says meanwhile how far it is, and each step forward sets the clock back. One that only repeats itself gets
//! another snapshot in time, so that the log behind the first one is not kept for it for ever.
//!
//! A learner without a log gets a snapshot, too, though the leader's log may begin with its first entry: a snapshot and
//! what is copied beside it cost less than every entry by itself. That it is blank shows in how it rejects an append.
//!
//! Invariants: (I1) a snapshot that is sent names its receiver as a member, reaches to where the log begins or beyond,
//! and holds only what is applied here; (I2) each peer in raft-rs's state *snapshot* has a clock that runs; (I3) a
//! demand for a blank learner ends with the message that meets it, or raft-rs would send another after it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chronik_engine::ids::{Offset, RaftIndex, ReplicaId};
use chronik_engine::wal::record::LogPosition;
use raft::eraftpb::{Message, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus};

use super::SnapshotParts;
use crate::error::SnapshotError;
use crate::group::RaftGroup;

/// What raft-rs takes for the demand for any snapshot.
const ANY_SNAPSHOT: u64 = 1;

/// A snapshot on its way to a peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SentSnapshot {
    /// Since it left, or since the peer got further.
    ticks: usize,
    /// How far the peer is with what it copies, as far as it has said so: it has the snapshot then.
    copied_to: Option<Offset>,
}

/// What became of the snapshots that a replica has sent while it led, since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotEnds {
    /// Taken by the peer, or of no use any more.
    pub arrived: u64,
    /// Sent again, or given up.
    pub lost: u64,
}

/// The snapshot that peers wait for.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    kept: Option<Snapshot>,
    /// Who waits for another than the kept one. Raft-rs asks through `&self`; borrowed within one call only.
    waiting: RefCell<BTreeSet<u64>>,
    /// Whether the owner is making one.
    in_making: bool,
    /// For so many ticks the kept one stays though nobody waits for it: it may have been lost on its way with a link, and
    /// goes on where it stopped if it is the same that is sent again.
    spare_ticks: usize,
}

impl Demand {
    /// The kept snapshot, if it is one for this peer of a log that starts after `log_start` (I1); else it is noted that
    /// the peer waits.
    pub(crate) fn take(
        &self,
        request_index: u64,
        to: u64,
        log_start: RaftIndex,
    ) -> Option<Snapshot> {
        let fits = |snapshot: &&Snapshot| {
            let metadata = snapshot.get_metadata();
            let state = metadata.get_conf_state();
            let mut members =
                state.voters.iter().chain(&state.learners).chain(&state.voters_outgoing);
            metadata.index >= request_index
                && metadata.index >= log_start.0
                && members.any(|id| *id == to)
        };
        let fitting = self.kept.as_ref().filter(fits).cloned();
        if fitting.is_none() {
            self.waiting.borrow_mut().insert(to);
        }
        fitting
    }

    pub(crate) fn forget(&mut self) {
        *self = Demand::default();
    }

    fn is_open(&self) -> bool {
        !self.in_making && !self.waiting.borrow().is_empty()
    }
}

impl RaftGroup {
    /// Whether a peer waits for a snapshot that nobody makes: take [`RaftGroup::snapshot_parts`], complete them and
    /// give them to [`RaftGroup::supply_snapshot`], or say that it cannot be done now.
    #[must_use]
    pub fn wants_snapshot(&self) -> bool {
        self.is_leader() && self.applied() > RaftIndex(0) && self.node.store().demand().is_open()
    }

    /// A snapshot of what is applied, without what only the state machine knows: its `state` and `log_start_offset` as
    /// of this call. It counts as being made from here on.
    pub fn snapshot_parts(&mut self) -> SnapshotParts {
        let index = self.applied();
        let term = self.node.store().view().term_at(index);
        assert!(term.is_some(), "{index} is applied, so it is in the log or just before it");
        let position = LogPosition { index, term: term.unwrap_or_default() };
        let epochs = self.node.store().view().epochs();
        let epochs = epochs.iter().filter(|run| run.index <= index).copied().collect();
        self.node.mut_store().demand_mut().in_making = true;
        SnapshotParts {
            position,
            members: self.members(),
            epochs,
            applied_end_offset: self.applied_end_offset(),
            log_start_offset: Offset(0),
            state: Bytes::new(),
        }
    }

    /// The snapshot that was asked for, made of [`RaftGroup::snapshot_parts`]. There may be messages to send afterwards.
    /// False if nobody wants it any more, or if the log was cut beyond it meanwhile: then it is dropped.
    ///
    /// # Errors
    /// If it is too large or not what [`RaftGroup::snapshot_parts`] gave. Peers will ask again.
    pub fn supply_snapshot(&mut self, parts: &SnapshotParts) -> Result<bool, SnapshotError> {
        self.node.mut_store().demand_mut().in_making = false;
        let index = parts.position.index;
        if !self.is_leader() || index < self.log_start().index {
            return Ok(false);
        }
        assert!(index <= self.applied(), "{index} is not applied");
        parts.check()?;
        let replica = self.replica();
        if !parts.members.votes(replica) {
            // A leader that has just come to vote is asked again, with newer parts.
            return Err(SnapshotError::NotAVoter { replica });
        }
        let snapshot = parts.to_raft()?;
        let waiting = self.node.mut_store().demand_mut().waiting.take();
        if waiting.is_empty() {
            return Ok(false);
        }
        self.node.mut_store().demand_mut().kept = Some(snapshot);
        for peer in waiting {
            if self.has_member(ReplicaId(peer)) {
                self.node.raft.send_append(peer);
            }
        }
        Ok(true)
    }

    /// The snapshot that was asked for cannot be made now. Peers will ask again, with the next heartbeat.
    pub fn decline_snapshot(&mut self) {
        let demand = self.node.mut_store().demand_mut();
        demand.in_making = false;
        demand.waiting.get_mut().clear();
    }

    /// A peer has the snapshot that was sent to it, and copies what lies before it, up to here so far. If that is a step
    /// forward it gets all the time anew; when it has installed the snapshot its own answer says.
    pub fn report_snapshot_progress(&mut self, to: ReplicaId, copied_to: Offset) {
        if let Some(sent) = self.snapshots_sent.get_mut(&to)
            && sent.copied_to.is_none_or(|before| copied_to > before)
        {
            *sent = SentSnapshot { ticks: 0, copied_to: Some(copied_to) };
        }
    }

    /// Another part of the snapshot that was sent to a peer has arrived there: it gets all the time anew.
    pub fn report_snapshot_part(&mut self, to: ReplicaId) {
        if let Some(sent) = self.snapshots_sent.get_mut(&to) {
            sent.ticks = 0;
        }
    }

    /// The snapshot that was sent to a peer is lost: it gets it again, or another where the log begins behind it meanwhile.
    pub fn report_snapshot_lost(&mut self, to: ReplicaId) {
        if self.snapshots_sent.remove(&to).is_some() {
            self.snapshot_ends.lost += 1;
            self.node.mut_store().demand_mut().spare_ticks = self.config.snapshot_ticks_max;
            self.node.report_snapshot(to.0, SnapshotStatus::Failure);
            self.demand_again(to);
        }
    }

    /// What became of the snapshots that were sent.
    #[must_use]
    pub fn snapshot_ends(&self) -> SnapshotEnds {
        self.snapshot_ends
    }

    /// A message to a peer was lost: it may have been the snapshot.
    pub(crate) fn report_unheard_snapshot(&mut self, to: ReplicaId) {
        if self.snapshots_sent.get(&to).is_some_and(|sent| sent.copied_to.is_none()) {
            self.report_snapshot_lost(to);
        }
    }

    /// Notes, before raft-rs sees the rejection of an append, that it comes from a learner without a log: raft-rs then
    /// asks for a snapshot and not for the entries from the first on.
    pub(crate) fn demand_for_blank(&mut self, message: &Message) {
        let is_rejection = message.get_msg_type() == MessageType::MsgAppendResponse
            && message.reject
            && message.term == self.node.raft.term;
        // No entry has term 0, and no log but an empty one ends at index 0.
        if is_rejection && message.reject_hint == 0 && message.log_term == 0 {
            self.demand_again(ReplicaId(message.from));
        }
    }

    /// Lets a learner that holds nothing, as far as is known, get a snapshot next.
    fn demand_again(&mut self, to: ReplicaId) {
        if !self.is_leader() || self.is_voter(to) {
            return;
        }
        let Some(progress) = self.node.raft.mut_prs().get_mut(to.0) else { return };
        if progress.matched == 0 && progress.state == ProgressState::Probe {
            progress.pending_request_snapshot = ANY_SNAPSHOT;
        }
    }

    /// Starts the clock of a snapshot that leaves (I2), and ends the demand for it (I3).
    pub(crate) fn note_snapshots(&mut self, messages: &[Message]) {
        let is_snapshot = |message: &&Message| message.get_msg_type() == MessageType::MsgSnapshot;
        for message in messages.iter().filter(is_snapshot) {
            let sent = SentSnapshot::default();
            // The one before it was answered since the last tick.
            let has_arrived = self.snapshots_sent.insert(ReplicaId(message.to), sent).is_some();
            self.snapshot_ends.arrived += u64::from(has_arrived);
            if let Some(progress) = self.node.raft.mut_prs().get_mut(message.to) {
                progress.pending_request_snapshot = raft::INVALID_INDEX;
            }
        }
    }

    /// A tick has passed: snapshots without an answer have failed after some time, and one that nobody waits for goes.
    /// True if there may be something to send anew.
    pub(crate) fn tick_snapshots(&mut self) -> bool {
        if self.snapshots_sent.is_empty() && self.node.store().demand().kept.is_none() {
            return false;
        }
        let prs = self.node.raft.prs();
        let is_on_its_way = |peer: &ReplicaId| {
            prs.get(peer.0).is_some_and(|progress| progress.state == ProgressState::Snapshot)
        };
        let sent_before = self.snapshots_sent.len();
        self.snapshots_sent.retain(|peer, sent| {
            sent.ticks += 1;
            is_on_its_way(peer)
        });
        self.snapshot_ends.arrived += (sent_before - self.snapshots_sent.len()) as u64;
        let ticks_max = self.config.snapshot_ticks_max;
        let overdue = self.snapshots_sent.iter().filter(|(_, sent)| sent.ticks >= ticks_max);
        let overdue: Vec<_> = overdue.map(|(peer, _)| *peer).collect();
        for peer in &overdue {
            self.report_snapshot_lost(*peer);
        }
        let demand = self.node.mut_store().demand_mut();
        // One that nobody has got further with for so long is not sent again.
        demand.spare_ticks =
            if overdue.is_empty() { demand.spare_ticks.saturating_sub(1) } else { 0 };
        let is_wanted = !self.snapshots_sent.is_empty() || !demand.waiting.get_mut().is_empty();
        if !is_wanted && demand.spare_ticks == 0 {
            demand.kept = None;
        }
        !overdue.is_empty()
    }

    /// This replica does not lead any more: nobody waits for its snapshots.
    pub(crate) fn forget_snapshots(&mut self) {
        self.snapshots_sent = BTreeMap::new();
        self.node.mut_store().demand_mut().forget();
    }
}
