//! One Raft group: a `RawNode`, what it is asked for, and what it knows of itself.
//!
//! How its output is ordered stands in [`crate::ready`], what it lets in stands in [`crate::gate`].
//!
//! Invariants: (I1) `applied <= durable`: nothing is applied that a crash could take back; (I2) the offset of the next
//! batch is read off the end of the log each time, never counted beside it, so a truncated or refused proposal
//! cannot leave a gap; (I3) the same calls with the same seed give the same answers.

use std::collections::VecDeque;

use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{
    EntryKind, EpochStart, GroupMeta, HardState, LogEntry, LogPosition,
};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Changer, RawNode, StateRole};

use crate::config::{CheckpointParts, GroupConfig, RecoveredLog};
use crate::entry::{EntryMeta, ProposedEntry};
use crate::error::{ConfChangeError, ProposeError, RecoverError, StepError};
use crate::gate;
use crate::log_store::{EntryFetch, LogStore};
use crate::log_view::LogView;
use crate::logger::group_logger;
use crate::ready::PendingWrite;
use crate::recover;
use crate::timeouts::ElectionTimeouts;

/// What a replica does in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes entries from a leader, if it knows one.
    Follower,
    /// It asks whether it would be elected.
    PreCandidate,
    /// It asks for votes.
    Candidate,
    /// It takes proposals.
    Leader,
}

impl From<StateRole> for Role {
    fn from(role: StateRole) -> Role {
        match role {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }
}

/// One replica of one Raft group.
pub struct RaftGroup {
    pub(crate) node: RawNode<LogStore>,
    pub(crate) config: GroupConfig,
    /// Placement, and the configuration as of `applied`.
    pub(crate) meta: GroupMeta,
    /// The log as the disk holds it: behind raft-rs's by what is in `pending`.
    pub(crate) durable: LogView,
    /// The hard state that the disk holds.
    pub(crate) durable_hard_state: HardState,
    /// The hard state that was handed out last.
    pub(crate) written_hard_state: HardState,
    /// Outputs that are not known to be durable, oldest first.
    pub(crate) pending: VecDeque<PendingWrite>,
    pub(crate) applied_end_offset: Offset,
    timeouts: ElectionTimeouts,
}

impl std::fmt::Debug for RaftGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftGroup")
            .field("group", &self.config.group)
            .field("replica", &self.meta.replica)
            .field("role", &self.role())
            .field("term", &self.term())
            .field("last", &self.last_index())
            .field("commit", &self.commit_index())
            .field("applied", &self.applied())
            .finish_non_exhaustive()
    }
}

impl RaftGroup {
    /// Goes on with a group where its log says it stopped, as a follower that knows no leader. Call
    /// [`RaftGroup::ready`] and apply what it gives before the first [`RaftGroup::campaign`].
    ///
    /// Two rules repair what a log may rightly say. Commit is raised to `applied`: a commit alone is not worth a
    /// write, but what was applied was committed and durable. The term is raised to that of the last entry, with no
    /// vote in it: the hard state may lie in the block after the entries', and no vote leaves before it is durable.
    pub fn new(config: GroupConfig, recovered: RecoveredLog) -> Result<RaftGroup, RecoverError> {
        let hard_state = recover::repaired_hard_state(&recovered)?;
        let RecoveredLog { meta, epochs, entries, applied, .. } = recovered;
        let view = recover::applied_view(recovered.log_start, epochs, applied)?;
        let mut store = LogStore::new(
            recover::raft_state(&meta, hard_state),
            view,
            recovered.applied_end_offset,
        );
        recover::recover_entries(&mut store, entries, recovered.last)?;
        let durable = store.view().clone();
        let raft_config = config.to_raft(meta.replica, applied);
        let node = RawNode::new(&raft_config, store, &group_logger(config.group))
            .map_err(|source| RecoverError::Raft { source })?;
        let mut group = RaftGroup {
            timeouts: ElectionTimeouts::new(&config, meta.replica),
            node,
            config,
            meta,
            durable,
            durable_hard_state: hard_state,
            written_hard_state: hard_state,
            pending: VecDeque::new(),
            applied_end_offset: recovered.applied_end_offset,
        };
        group.draw_election_timeout();
        Ok(group)
    }

    /// Appends an entry in memory and gives it its index and its offset. What comes of it shows in
    /// [`crate::ReadyOutput::committed`]; another entry may get both if leadership is lost before.
    pub fn propose(
        &mut self,
        proposed: ProposedEntry,
    ) -> Result<(RaftIndex, Offset), ProposeError> {
        let batch = proposed.kind == EntryKind::Batch;
        assert!(batch || proposed.kind == EntryKind::Command, "not for {:?}", proposed.kind);
        assert!(batch == (proposed.offset_count > 0), "only batches take offsets, and all do");
        let base_offset = self.end_offset();
        let meta = EntryMeta {
            kind: proposed.kind,
            base_offset,
            offset_count: proposed.offset_count,
            max_timestamp_ms: proposed.max_timestamp_ms,
        };
        let entry =
            Entry { data: proposed.payload, context: meta.to_context(), ..Entry::default() };
        let index = self.propose_entry(entry)?;
        Ok((index, base_offset))
    }

    /// Proposes to add or remove one voter or learner.
    pub fn propose_conf_change(
        &mut self,
        change: &ConfChangeV2,
    ) -> Result<RaftIndex, ProposeError> {
        if change.enter_joint().is_some() || change.leave_joint() {
            return Err(ProposeError::ConfChangeJoint);
        }
        let data = change
            .write_to_bytes()
            .map_err(|source| ProposeError::Raft { source: raft::Error::CodecError(source) })?;
        let meta = EntryMeta::without_offsets(EntryKind::ConfChange, self.end_offset());
        let entry = Entry {
            entry_type: EntryType::EntryConfChangeV2,
            data: data.into(),
            context: meta.to_context(),
            ..Entry::default()
        };
        if self.is_leader() && self.node.raft.has_pending_conf() {
            // Raft-rs would append an empty entry in its place.
            return Err(ProposeError::ConfChangePending);
        }
        // With none pending, this is the configuration that it will be applied to. Once committed, a change that
        // cannot be applied would stop every replica.
        Changer::new(self.node.raft.prs())
            .simple(&change.changes)
            .map_err(|source| ProposeError::ConfChangeInvalid { source })?;
        self.propose_entry(entry)
    }

    fn propose_entry(&mut self, entry: Entry) -> Result<RaftIndex, ProposeError> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader || !raft.promotable() {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        if let Some(to) = raft.lead_transferee {
            return Err(ProposeError::TransferInProgress { to: ReplicaId(to) });
        }
        let expected = self.last_index().next();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = raft.id;
        message.entries.push(entry);
        match self.node.raft.step(message) {
            Ok(()) => {
                let index = self.last_index();
                assert!(index == expected, "one proposal is one entry: {index}, {expected}");
                Ok(index)
            }
            Err(raft::Error::ProposalDropped) => Err(ProposeError::Backlogged {
                uncommitted_bytes: self.node.raft.uncommitted_size(),
            }),
            Err(source) => Err(ProposeError::Raft { source }),
        }
    }

    /// A tick has passed. True if there is probably something to do.
    pub fn tick(&mut self) -> bool {
        // A lone voter elects itself at once, which raft-rs allows only with a log that is durable.
        if !self.is_leader() && self.is_sole_voter() && !self.is_log_durable() {
            return false;
        }
        let elapsed = self.node.raft.election_elapsed;
        let probably = self.node.tick();
        if self.node.raft.election_elapsed <= elapsed {
            self.draw_election_timeout();
        }
        self.keep_election_timeout();
        probably
    }

    /// Asks to become leader now. False if that is of no use: it leads already, cannot vote, or is alone and its
    /// log is still on the way to the disk.
    pub fn campaign(&mut self) -> bool {
        let refused = self.is_leader()
            || !self.node.raft.promotable()
            || (self.is_sole_voter() && !self.is_log_durable());
        if refused {
            return false;
        }
        let accepted = self.node.campaign().is_ok();
        self.keep_election_timeout();
        accepted
    }

    /// Takes a message of a peer. An error means that it was dropped.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        gate::check(self, &message)?;
        let stepped = self.node.step(message).map_err(|source| StepError::Raft { source });
        self.keep_election_timeout();
        stepped
    }

    /// Hands leadership to a voter that has caught up, else once it has, for one election timeout at most. No
    /// proposal is taken meanwhile.
    pub fn transfer_leadership(&mut self, to: ReplicaId) {
        if self.is_leader() {
            self.node.transfer_leader(to.0);
        }
    }

    /// A message to `peer` was lost for certain: raft-rs goes back to probing it.
    pub fn report_unreachable(&mut self, peer: ReplicaId) {
        self.node.report_unreachable(peer.0);
    }

    /// Whether [`RaftGroup::ready`] would give anything.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.node.has_ready()
    }

    /// Whether [`RaftGroup::take_fetches`] would give anything.
    #[must_use]
    pub fn has_fetches(&self) -> bool {
        self.node.store().has_fetches()
    }

    /// Adds to `out` what followers need and what is not in memory. Each is asked for once.
    pub fn take_fetches(&mut self, out: &mut Vec<EntryFetch>) {
        self.node.mut_store().take_fetches(out);
    }

    /// The entries from `from` on that were asked for, whole payloads, all or a first part; none if they could not
    /// be read, then followers ask again. There may be messages to send afterwards.
    pub fn on_entries_fetched(&mut self, from: RaftIndex, entries: Vec<LogEntry>) {
        for context in self.node.mut_store().put_fetched(from, entries) {
            self.node.on_entries_fetched(context);
        }
        self.node.mut_store().forget_fetched();
    }

    /// Applies a committed configuration change and returns the group's placement with the new configuration. To be
    /// called with each such entry, before [`RaftGroup::advance_applied`] with its index.
    pub fn apply_conf_change(&mut self, entry: &LogEntry) -> Result<&GroupMeta, ConfChangeError> {
        assert!(entry.kind == EntryKind::ConfChange, "{:?} at {}", entry.kind, entry.index);
        let index = entry.index;
        let mut change = ConfChangeV2::default();
        change
            .merge_from_bytes(&entry.payload)
            .map_err(|source| ConfChangeError::Malformed { index, source })?;
        if change.enter_joint().is_some() || change.leave_joint() {
            return Err(ConfChangeError::Joint { index });
        }
        let state = self
            .node
            .apply_conf_change(&change)
            .map_err(|source| ConfChangeError::Raft { index, source })?;
        let mut voters: Vec<_> = state.voters.iter().copied().map(ReplicaId).collect();
        let mut learners: Vec<_> = state.learners.iter().copied().map(ReplicaId).collect();
        // Raft-rs keeps sets; all replicas must name them in the same order.
        voters.sort_unstable();
        learners.sort_unstable();
        self.meta.voters = voters;
        self.meta.learners = learners;
        self.keep_election_timeout();
        Ok(&self.meta)
    }

    /// Lets the log start after `index`, which is applied, and returns the place for the log-start record.
    pub fn compact(&mut self, index: RaftIndex) -> LogPosition {
        assert!(index <= self.applied(), "{index} is not applied");
        assert!(index <= self.durable.last().index, "I1: {index} is applied and not durable");
        self.node.mut_store().start_after(index);
        self.durable.start_after(index);
        self.log_start()
    }

    /// What a checkpoint says of the group: only what the disk holds.
    #[must_use]
    pub fn checkpoint_parts(&self) -> CheckpointParts {
        let log = &self.node.raft.raft_log;
        // Raft-rs's persisted index covers no entry that a write in flight replaces.
        let commit = RaftIndex(log.committed.min(log.persisted));
        let applied = self.applied();
        assert!(applied <= commit, "I1: applied {applied}, committed and durable {commit}");
        let commit = commit.max(self.durable_hard_state.commit);
        assert!(commit <= self.durable.last().index, "commit {commit} {:?}", self.durable.last());
        CheckpointParts {
            group: self.config.group,
            meta: self.meta.clone(),
            hard_state: HardState { commit, ..self.durable_hard_state },
            log_start: self.durable.start(),
            last: self.durable.last(),
            epochs: self.durable.epochs().to_vec(),
            applied,
            applied_end_offset: self.applied_end_offset,
        }
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
        if index < self.log_start().index || index > self.last_index() {
            return None;
        }
        self.node.raft.raft_log.term(index.0).ok().map(Term)
    }

    /// As leader, the last entry that each peer is known to hold on disk; itself where it is alone. A log that is cut
    /// beyond this leaves a peer that needs a snapshot.
    #[must_use]
    pub fn slowest_match(&self) -> Option<RaftIndex> {
        let matched = self.node.raft.prs().iter().map(|(_, progress)| progress.matched).min();
        self.is_leader().then(|| RaftIndex(matched.unwrap_or(0)))
    }

    /// The offset that the next batch gets (I2).
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
        told.or_else(|| {
            let index = index.min(RaftIndex(unstable.offset.saturating_sub(1)));
            self.node.store().end_offset_at(index)
        })
    }

    pub(crate) fn is_member(&self, replica: ReplicaId) -> bool {
        self.node.raft.prs().get(replica.0).is_some()
    }

    pub(crate) fn is_voter(&self, replica: ReplicaId) -> bool {
        self.node.raft.prs().conf().voters().contains(replica.0)
    }

    fn is_sole_voter(&self) -> bool {
        self.node.raft.promotable() && self.node.raft.prs().is_singleton()
    }

    fn is_log_durable(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.persisted == log.last_index()
    }

    /// How many applied entries stay in memory: none where nobody could want them.
    pub(crate) fn retained_entries(&self) -> u64 {
        let alone = self.node.raft.prs().iter().len() <= 1;
        if alone { 0 } else { self.config.retained_entries_max }
    }

    /// Raft-rs draws election timeouts from the thread's generator whenever its role changes; ours is put back in
    /// place of it each time (I3).
    fn keep_election_timeout(&mut self) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.timeouts.drawn_for {
            self.draw_election_timeout();
        } else if self.node.raft.randomized_election_timeout() != self.timeouts.current {
            self.node.raft.set_randomized_election_timeout(self.timeouts.current);
        }
    }

    fn draw_election_timeout(&mut self) {
        self.timeouts.drawn_for = (self.node.raft.term, self.node.raft.state);
        let timeout = self.timeouts.draw();
        self.node.raft.set_randomized_election_timeout(timeout);
    }
}
