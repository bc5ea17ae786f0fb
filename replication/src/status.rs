//! What a group knows of itself, and of its peers while it leads.
//!
//! It changes nothing.

use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{EpochStart, GroupMeta, LogEntry, LogPosition};
use raft::{ProgressState, StateRole};

use crate::entry::EntryMeta;
use crate::group::{RaftGroup, Role};
use crate::snapshot::SnapshotHead;

/// Committed entries that a peer may lack and count as caught up: what is on the way.
pub const LAG_ENTRIES_MAX: u64 = 256;

/// How a leader sends entries to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationState {
    /// One message at a time, until it is known where the logs part.
    Probe,
    /// As fast as the peer takes them.
    Replicate,
    /// Not at all: a snapshot is on its way.
    Snapshot,
}

impl From<ProgressState> for ReplicationState {
    fn from(state: ProgressState) -> ReplicationState {
        match state {
            ProgressState::Probe => ReplicationState::Probe,
            ProgressState::Replicate => ReplicationState::Replicate,
            ProgressState::Snapshot => ReplicationState::Snapshot,
        }
    }
}

/// For whom a leader keeps entries that it could let go of, see [`RaftGroup::cut_limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepFor {
    /// Nobody: whoever lacks them gets a snapshot, later.
    Nobody,
    /// Peers that have a snapshot on its way to them.
    Snapshots,
    /// These, and peers in reach that are sent entries.
    Peers,
}

/// What a leader knows of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProgress {
    /// The peer.
    pub replica: ReplicaId,
    /// The last entry that it is known to hold on its disk.
    pub matched: RaftIndex,
    /// The entry that it is sent next.
    pub next: RaftIndex,
    /// How it is sent entries.
    pub state: ReplicationState,
    /// Whether it was heard of within the last election timeout, as far as the quorum was checked since.
    pub recent_active: bool,
}

impl PeerProgress {
    /// Whether it is heard, takes entries as they come, and lacks no more of those up to `commit` than are on the way.
    #[must_use]
    pub fn has_caught_up(&self, commit: RaftIndex) -> bool {
        self.recent_active
            && self.state == ReplicationState::Replicate
            && self.matched.0.saturating_add(LAG_ENTRIES_MAX) >= commit.0
    }
}

/// What a group knows of itself.
impl RaftGroup {
    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.config.group
    }

    /// This replica.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.meta.replica
    }

    /// Placement, and the configuration as of the last applied entry.
    #[must_use]
    pub fn meta(&self) -> &GroupMeta {
        &self.meta
    }

    /// What this replica does.
    #[must_use]
    pub fn role(&self) -> Role {
        Role::from(self.node.raft.state)
    }

    /// Whether it takes proposals.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether it leads and has committed an entry of its own term: only then is its commit index up to date.
    #[must_use]
    pub fn is_established_leader(&self) -> bool {
        self.is_leader() && self.node.raft.commit_to_current_term()
    }

    /// Who leads, as far as this replica knows.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        let leader = ReplicaId(self.node.raft.leader_id);
        (leader != ReplicaId::NONE).then_some(leader)
    }

    /// Whether it knows no leader, or its members change: then what it does next it does at a tick.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.leader().is_none()
            || !self.meta.voters_outgoing.is_empty()
            || self.node.raft.has_pending_conf()
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        Term(self.node.raft.term)
    }

    /// Up to here entries are known to be committed. The last of them may not be durable here yet.
    #[must_use]
    pub fn commit_index(&self) -> RaftIndex {
        RaftIndex(self.node.raft.raft_log.committed)
    }

    /// The last index that [`RaftGroup::advance_applied`] named.
    #[must_use]
    pub fn applied(&self) -> RaftIndex {
        RaftIndex(self.node.raft.raft_log.applied)
    }

    /// The offset after the last batch that is applied.
    #[must_use]
    pub fn applied_end_offset(&self) -> Offset {
        self.applied_end_offset
    }

    /// The entries after the last one that is applied, as far as [`RaftGroup::ready`] has given them out.
    pub fn not_applied(&self) -> impl Iterator<Item = &LogEntry> {
        let store = self.node.store();
        let slots = (self.applied().0 + 1..).map_while(move |index| store.slot(RaftIndex(index)));
        slots.map(|slot| &slot.entry)
    }

    /// The last entry, durable or not.
    #[must_use]
    pub fn last_index(&self) -> RaftIndex {
        RaftIndex(self.node.raft.raft_log.last_index())
    }

    /// The last entry that the disk holds.
    #[must_use]
    pub fn last_durable(&self) -> LogPosition {
        self.durable.last()
    }

    /// Entries begin after this place.
    #[must_use]
    pub fn log_start(&self) -> LogPosition {
        self.node.store().view().start()
    }

    /// Where each term of the log begins, entries on their way to the disk included once [`RaftGroup::ready`] has
    /// given them out.
    #[must_use]
    pub fn epochs(&self) -> &[EpochStart] {
        self.node.store().view().epochs()
    }

    /// The term of an entry of the log.
    #[must_use]
    pub fn term_at(&self, index: RaftIndex) -> Option<Term> {
        // Of a snapshot that was accepted only its own place has a term, and what is after it.
        let first_index = self.node.raft.raft_log.first_index();
        if index.0 + 1 < first_index || index > self.last_index() {
            return None;
        }
        self.node.raft.raft_log.term(index.0).ok().map(Term)
    }

    /// As leader, the last entry behind which the log may be cut so that no peer that is kept for needs a snapshot for
    /// that: not before a snapshot that is on its way is installed or counts as lost, and not before those in reach hold
    /// the entries that they are sent, as long as they get further. Whoever does not lead keeps nothing for others.
    #[must_use]
    pub fn cut_limit(&self, keep_for: KeepFor) -> RaftIndex {
        if !self.is_leader() {
            return RaftIndex(u64::MAX);
        }
        let own = self.node.raft.id;
        let peers = self.node.raft.prs().iter().filter(|(id, _)| **id != own);
        let limits = peers.filter_map(|(id, progress)| match progress.state {
            ProgressState::Snapshot => {
                (keep_for != KeepFor::Nobody).then_some(progress.pending_snapshot)
            }
            ProgressState::Replicate | ProgressState::Probe => {
                let is_sent_entries = keep_for == KeepFor::Peers
                    && progress.recent_active
                    && progress.matched > 0
                    && progress.matched >= self.log_start().index.0
                    && !self.laggards.is_stuck(*id, progress.matched);
                is_sent_entries.then_some(progress.matched)
            }
        });
        RaftIndex(limits.min().unwrap_or(u64::MAX))
    }

    /// As leader, the voters that take entries as they come and hold all up to `index`; it counts itself. Nobody, if it
    /// does not lead.
    pub fn voters_that_hold(&self, index: RaftIndex) -> impl Iterator<Item = ReplicaId> {
        let (own, peers) = (self.replica(), self.node.raft.prs());
        let holds = move |voter: &ReplicaId| {
            let takes_and_holds = |progress: &raft::Progress| {
                progress.state == ProgressState::Replicate && progress.matched >= index.0
            };
            *voter == own || peers.get(voter.0).is_some_and(takes_and_holds)
        };
        let voters = self.is_leader().then_some(&self.meta.voters);
        voters.into_iter().flatten().copied().filter(holds)
    }

    /// As leader, the learners that take entries as they come, hold all up to `index`, and all records before `offset`.
    pub fn learners_that_hold(
        &self,
        index: RaftIndex,
        offset: Offset,
    ) -> impl Iterator<Item = ReplicaId> {
        let holds = move |learner: &ReplicaId| {
            let Some(peer) = self.node.raft.prs().get(learner.0) else { return false };
            let matched = RaftIndex(peer.matched.min(self.applied().0));
            // Where nobody remembers which offset an entry has that was applied long ago, the learner is that far behind.
            let holds_offset = || self.end_offset_at(matched).is_some_and(|end| end >= offset);
            peer.state == ProgressState::Replicate && peer.matched >= index.0 && holds_offset()
        };
        let learners = self.is_leader().then_some(&self.meta.learners);
        learners.into_iter().flatten().copied().filter(holds)
    }

    /// As leader, how many voters are known to hold the log up to `index` on their disks; it is one itself.
    #[must_use]
    pub fn voters_with(&self, index: RaftIndex) -> usize {
        let peers = self.node.raft.prs();
        let holds =
            |voter: &&ReplicaId| peers.get(voter.0).is_some_and(|peer| peer.matched >= index.0);
        if self.is_leader() { self.meta.voters.iter().filter(holds).count() } else { 0 }
    }

    /// As leader, the last entry that a quorum of each configuration holds, and as many voters as `wanted` of the incoming one
    /// or all, where beside the disks also memory counts: its own, and others' as `received` tells.
    #[must_use]
    pub fn received_by_quorum(
        &self,
        wanted: usize,
        received: impl Fn(ReplicaId) -> RaftIndex,
    ) -> RaftIndex {
        let (own, last, peers) = (self.replica(), self.last_index(), self.node.raft.prs());
        let held = |voter: &ReplicaId| {
            if *voter == own {
                return last;
            }
            let durable = peers.get(voter.0).map_or(0, |peer| peer.matched);
            received(*voter).max(RaftIndex(durable))
        };
        let held_by = |voters: &[ReplicaId], count: usize| {
            let mut held: Vec<RaftIndex> = voters.iter().map(held).collect();
            held.sort_unstable_by(|a, b| b.cmp(a));
            let at = count.max(voters.len() / 2 + 1).min(voters.len());
            at.checked_sub(1).and_then(|at| held.get(at).copied())
        };
        let (voters, outgoing) = (&self.meta.voters, &self.meta.voters_outgoing);
        let incoming = held_by(voters, wanted).unwrap_or_default();
        held_by(outgoing, 0).map_or(incoming, |outgoing| outgoing.min(incoming))
    }

    /// As leader, what it knows of each peer of the configuration, of both while one is left for the other; by id.
    #[must_use]
    pub fn progress(&self) -> Vec<PeerProgress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let own = self.replica().0;
        let peers = self.node.raft.prs().iter().filter(|(id, _)| **id != own);
        let mut peers: Vec<_> = peers
            .map(|(id, progress)| PeerProgress {
                replica: ReplicaId(*id),
                matched: RaftIndex(progress.matched),
                next: RaftIndex(progress.next_idx),
                state: progress.state.into(),
                recent_active: progress.recent_active,
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.replica);
        peers
    }

    /// The offset that the next batch gets, read off the end of the log.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        let end_offset = self.end_offset_at(self.last_index());
        assert!(end_offset.is_some(), "the last entry is always in memory, or just before it");
        end_offset.unwrap_or_default()
    }

    /// The offset after an entry that is not applied, or is the last one that is.
    #[must_use]
    pub(crate) fn end_offset_at(&self, index: RaftIndex) -> Option<Offset> {
        let unstable = self.node.raft.raft_log.unstable();
        let count = (index.0 + 1).saturating_sub(unstable.offset);
        let count = usize::try_from(count).ok()?;
        // Entries without a context take no offset: the one before them tells.
        let told = unstable.entries.get(..count)?.iter().rev().find_map(EntryMeta::end_offset_of);
        let accepted = self.node.raft.raft_log.unstable_snapshot().as_ref();
        let accepted = accepted.filter(|snapshot| snapshot.get_metadata().index <= index.0);
        told.or_else(|| {
            accepted.and_then(SnapshotHead::of_snapshot).map(|head| head.applied_end_offset)
        })
        .or_else(|| {
            let index = index.min(RaftIndex(unstable.offset.saturating_sub(1)));
            self.node.store().end_offset_at(index)
        })
    }

    /// How many applied entries stay in memory: none where nobody could want them.
    pub(crate) fn retained_entries(&self) -> u64 {
        let alone = self.node.raft.prs().iter().len() <= 1;
        if alone { 0 } else { self.config.retained_entries_max }
    }
}
