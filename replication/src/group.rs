//! One Raft group: a `RawNode`, what it is asked for, and what it knows of itself.
//!
//! How its output is ordered stands in [`crate::ready`], what it lets in stands in [`crate::gate`], who belongs to it
//! in [`crate::membership`], and how a whole log is replaced in [`crate::snapshot`].
//!
//! Invariants: (I1) `applied <= durable`: nothing is applied that a crash could take back; (I2) the offset of the next
//! batch is read off the end of the log each time, never counted beside it, so a truncated or refused proposal
//! cannot leave a gap; (I3) the same calls with the same seed give the same answers.

use std::collections::{BTreeMap, VecDeque};

use chronik_engine::ids::{Offset, RaftIndex, ReplicaId};
use chronik_engine::wal::record::{EntryKind, GroupMeta, HardState, LogEntry, LogPosition};
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{ProgressState, RawNode, StateRole};

use crate::config::{CheckpointParts, GroupConfig, RecoveredLog};
use crate::entry::{EntryMeta, ProposedEntry};
use crate::error::{ProposeError, RecoverError, StepError};
use crate::freshness::{Freshness, Sign};
use crate::gate;
use crate::laggards::Laggards;
use crate::log_store::{EntryFetch, LogStore};
use crate::log_view::LogView;
use crate::logger::group_logger;
use crate::ready::{PendingWrite, Received};
use crate::recover;
use crate::snapshot::install::Install;
use crate::snapshot::send::{SentSnapshot, SnapshotEnds};
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
    /// A snapshot that is durable and that the state machine does not have.
    pub(crate) installed: Option<Install>,
    /// The last entry that was handed out to be applied.
    pub(crate) given: RaftIndex,
    /// Where the log ended when this replica last applied a change of the members, in this life of it.
    pub(crate) members_changed_at: RaftIndex,
    /// Whether the last change of the members that this replica proposed makes a pair decide.
    pub(crate) narrows: bool,
    pub(crate) applied_end_offset: Offset,
    /// The commit index that all peers were told.
    pub(crate) commit_told: RaftIndex,
    /// The leader asks this replica to take over, which has to apply something before.
    handover: Option<Message>,
    /// What a leader's entries in memory come to, as the answer says that waits for the disk.
    pub(crate) received: Option<Received>,
    /// Snapshots on their way to peers.
    pub(crate) snapshots_sent: BTreeMap<ReplicaId, SentSnapshot>,
    pub(crate) snapshot_ends: SnapshotEnds,
    pub(crate) laggards: Laggards,
    /// How many rounds of asking whether this replica leads were begun.
    pub(crate) read_rounds: u64,
    pub(crate) freshness: Freshness,
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
            freshness: Freshness::new(config.seed),
            node,
            config,
            meta,
            durable,
            durable_hard_state: hard_state,
            written_hard_state: hard_state,
            pending: VecDeque::new(),
            installed: None,
            given: applied,
            members_changed_at: RaftIndex(0),
            narrows: false,
            applied_end_offset: recovered.applied_end_offset,
            commit_told: RaftIndex(0),
            handover: None,
            received: None,
            snapshots_sent: BTreeMap::new(),
            snapshot_ends: SnapshotEnds::default(),
            laggards: Laggards::default(),
            read_rounds: 0,
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
        if self.is_narrowing() {
            return Err(ProposeError::ConfChangePending);
        }
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

    pub(crate) fn propose_entry(&mut self, entry: Entry) -> Result<RaftIndex, ProposeError> {
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
        // A lone voter elects itself at once, which raft-rs allows only with a log that is durable; and nobody elects
        // itself with a log whose entries a snapshot is about to replace.
        let waits = self.awaits_install() || (self.is_sole_voter() && !self.is_log_durable());
        if !self.is_leader() && waits {
            return false;
        }
        let elapsed = self.node.raft.election_elapsed;
        let probably = self.node.tick();
        if self.node.raft.election_elapsed <= elapsed {
            self.draw_election_timeout();
        }
        self.keep_election_timeout();
        let resends = self.tick_snapshots();
        self.tick_laggards();
        let appends = self.leave_joint_if_idle() || self.cover_members_if_idle();
        probably || resends || appends
    }

    /// Asks to become leader now. False if that is of no use: it leads already, cannot vote, is alone and its log is
    /// still on the way to the disk, or a snapshot is.
    pub fn campaign(&mut self) -> bool {
        let refused = self.is_leader()
            || !self.node.raft.promotable()
            || self.awaits_install()
            || (self.is_sole_voter() && !self.is_log_durable());
        if refused {
            return false;
        }
        let accepted = self.node.campaign().is_ok();
        self.keep_election_timeout();
        accepted
    }

    /// The peer that led is gone, as far as the owner knows: from now on this replica grants votes, though the leader's
    /// last message is not an election timeout old, and its own election is near. Of no effect on a leader.
    ///
    /// Who still hears of the leader is not told and refuses its vote, and a [`RaftGroup::campaign`] asks first: so a
    /// mistake costs messages, not a leader.
    pub fn expire_leader_lease(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Leader {
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout());
        }
    }

    /// Takes a message of a peer. An error means that it was dropped.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        gate::check(self, &message)?;
        if message.get_msg_type() == MessageType::MsgTimeoutNow && !self.may_take_over() {
            // Raft-rs would forget it, or end the process.
            self.handover = Some(message);
            return Ok(());
        }
        self.demand_for_blank(&message);
        let answers = matches!(
            message.get_msg_type(),
            MessageType::MsgHeartbeatResponse | MessageType::MsgAppendResponse
        );
        let heard = (answers && message.term == self.node.raft.term).then_some(message.from);
        let sign = Sign::of(&message);
        let stepped = self.node.step(message).map_err(|source| StepError::Raft { source });
        self.keep_election_timeout();
        if let Some(peer) = heard {
            self.end_idle_probe(peer);
        }
        if let Some(sign) = sign.filter(|_| stepped.is_ok()) {
            self.note_sign(sign);
        }
        stepped
    }

    /// A peer that lacks nothing needs no probing: it holds what it is known to hold. Raft-rs ends a probe only when the
    /// peer takes an entry, so in a group without new ones who was out of reach once, or took a snapshot, would seem to be for ever.
    fn end_idle_probe(&mut self, peer: u64) {
        let raft = &mut self.node.raft;
        let last = raft.raft_log.last_index();
        if raft.state == StateRole::Leader
            && let Some(progress) = raft.mut_prs().get_mut(peer)
            && progress.state == ProgressState::Probe
            && progress.matched == last
        {
            progress.become_replicate();
        }
    }

    /// Whether [`RaftGroup::step`] would take a message.
    ///
    /// # Errors
    /// Why it would not.
    pub fn check(&self, message: &Message) -> Result<(), StepError> {
        gate::check(self, message)
    }

    /// Takes a message of a leader for a sign of life, and nothing else of it: its owner keeps it for later.
    ///
    /// # Errors
    /// If no leader sends it.
    pub fn hear_leader(&mut self, message: &Message) -> Result<(), StepError> {
        let Message { from, to, term, .. } = *message;
        let mut heartbeat = Message { from, to, term, ..Message::default() };
        heartbeat.set_msg_type(MessageType::MsgHeartbeat);
        self.step(heartbeat)
    }

    /// Takes over from a leader that has asked for it while there was something to do before.
    pub(crate) fn take_over_if_asked(&mut self) {
        if self.handover.is_none() || !self.may_take_over() {
            return;
        }
        if let Some(message) = self.handover.take() {
            // Refused if another leads by now.
            drop(self.step(message));
        }
    }

    /// Nobody campaigns with a change of the members that is not applied, or elects itself with a log that is not durable.
    fn may_take_over(&self) -> bool {
        !self.awaits_install()
            && self.applied() == self.commit_index()
            && (!self.is_sole_voter() || self.is_log_durable())
    }

    /// Hands leadership to a voter that has caught up, else once it has, for one election timeout at most. No
    /// proposal is taken meanwhile.
    pub fn transfer_leadership(&mut self, to: ReplicaId) {
        if self.is_leader() {
            self.node.transfer_leader(to.0);
        }
    }

    /// As leader, no longer waits for whom it was to be handed to. That one may still take over, by an election.
    pub fn stop_transfer(&mut self) {
        self.node.raft.abort_leader_transfer();
    }

    /// As leader, lets everybody hear from it now: who could not be reached until a moment ago would wait for the next
    /// heartbeat, since what was sent to it meanwhile is lost and raft-rs sends no more before it answers.
    pub fn ping(&mut self) {
        self.node.ping();
    }

    /// A message to `peer` was lost for certain: raft-rs goes back to probing it, and a snapshot of which nothing was
    /// heard since it left counts as lost with it.
    pub fn report_unreachable(&mut self, peer: ReplicaId) {
        self.node.report_unreachable(peer.0);
        if self.node.raft.lead_transferee == Some(peer.0) {
            // It would be waited for, and nothing proposed meanwhile.
            self.node.raft.abort_leader_transfer();
        }
        self.report_unheard_snapshot(peer);
    }

    /// Whether [`RaftGroup::ready`] would give anything.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.installed.is_some() || (self.node.has_ready() && !self.awaits_apply())
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

    /// Lets the log start after `index`, which is applied, and returns the place for the log-start record.
    pub fn compact(&mut self, index: RaftIndex) -> LogPosition {
        assert!(index <= self.applied(), "{index} is not applied");
        assert!(index <= self.durable.last().index, "I1: {index} is applied and not durable");
        // A snapshot may have come meanwhile: then the log starts later, in memory at least.
        if index > self.log_start().index {
            self.node.mut_store().start_after(index);
        }
        if index > self.durable.start().index {
            self.durable.start_after(index);
        }
        self.log_start()
    }

    /// What a checkpoint says of the group: only what the disk holds.
    #[must_use]
    pub fn checkpoint_parts(&self) -> CheckpointParts {
        assert!(self.installed.is_none(), "the state machine does not have the snapshot yet");
        let log = &self.node.raft.raft_log;
        let applied = self.applied();
        // Raft-rs's persisted index covers no entry that a write in flight replaces, but for those that a snapshot does.
        let commit = RaftIndex(log.committed.min(log.persisted));
        let commit = if self.awaits_install() { applied } else { commit };
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

    pub(crate) fn is_sole_voter(&self) -> bool {
        self.node.raft.promotable() && self.node.raft.prs().is_singleton()
    }

    fn is_log_durable(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.persisted == log.last_index()
    }

    /// Raft-rs draws election timeouts from the thread's generator whenever its role changes; ours is put back in
    /// place of it each time (I3).
    pub(crate) fn keep_election_timeout(&mut self) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.timeouts.drawn_for {
            self.draw_election_timeout();
        } else if self.node.raft.randomized_election_timeout() != self.timeouts.current {
            self.node.raft.set_randomized_election_timeout(self.timeouts.current);
        }
    }

    pub(crate) fn draw_election_timeout(&mut self) {
        self.timeouts.drawn_for = (self.node.raft.term, self.node.raft.state);
        let timeout = self.timeouts.draw();
        self.node.raft.set_randomized_election_timeout(timeout);
    }
}
