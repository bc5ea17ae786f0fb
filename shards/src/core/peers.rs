//! What a shard's groups say to their replicas on other nodes and hear from them, and what becomes of groups whose
//! leader's node is gone.
//!
//! - I1: a message for a group that is not here is dropped: its sender tries again, or learns of the deletion. Of a leader
//!   is remembered that it spoke, so that a replica which is made a moment later answers at once.
//! - I2: who campaigns early does so by pre-votes only, which a voter grants only where it has lost the leader, too.

use chronik_engine::ids::{GroupId, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::LogEntry;
use chronik_replication::{
    ConfChangeV2, EntryFetch, Members, Message, MessageType, PeerMessage, PeerProgress,
    ProposeError, Role, SnapshotInstall,
};

use super::group::{Group, Machine};
use super::ticks::Tick;
use super::{ProduceError, ShardCore, Shared, Token, live_mut};
use crate::catalog::CommandId;

/// Ticks between the candidacies of two replicas that lost the same leader, and between two tries of one.
const CAMPAIGN_STAGGER_TICKS: u32 = 2;
/// Ticks that the first of the candidates gives its voters: 0.4 s. The next one gives them twice that, so that two
/// who split the votes do not meet again.
const CANDIDATE_TICKS: u32 = 8;
/// Tries of a replica that lost its leader; after them elections come by timeout.
const CAMPAIGN_TRIES_LOST: u32 = 20;
/// Tries of the preferred leader of a new group, whose other replicas are being made.
const CAMPAIGN_TRIES_NEW: u32 = 100;
/// Commands proposed on other nodes whose fate is waited for here.
const AWAITED_COMMANDS_MAX: usize = 4096;
/// Groups that are not here and of whose leaders is remembered what they said; and for how many ticks at most: 10 s.
const EARLY_SIGNS_MAX: usize = 16_384;
const EARLY_SIGN_TICKS: u64 = 200;
/// After so many ticks a command that another node took counts as lost: 120 s. Not by the wall clock, which may be set back.
const AWAITED_TICKS_MAX: u64 = 2_400;

/// Entries that followers of a group need and that are not in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupFetch {
    /// The group.
    pub group: GroupId,
    /// What to read from the log.
    pub fetch: EntryFetch,
}

/// Candidacies that do not wait for an election timeout.
#[derive(Debug, Clone, Copy)]
pub(super) struct EarlyCampaign {
    /// The leader that was lost, or nobody.
    lost: ReplicaId,
    /// How many stand before this one.
    rank: u32,
    ticks_left: u32,
    tries_left: u32,
    /// The term of a candidacy whose votes are waited for.
    awaits_votes_in: Option<Term>,
}

impl EarlyCampaign {
    fn new(lost: ReplicaId, rank: usize, tries_left: u32) -> EarlyCampaign {
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        let ticks_left = rank.saturating_mul(CAMPAIGN_STAGGER_TICKS);
        EarlyCampaign { lost, rank, ticks_left, tries_left, awaits_votes_in: None }
    }

    /// How long votes are waited for. Two of one rank, which may have been told of a loss at different times, differ by what
    /// each try takes of their ids.
    fn vote_ticks(&self, replica: ReplicaId) -> u32 {
        let apart = (replica.0 >> (self.tries_left % 32)) % u64::from(CANDIDATE_TICKS);
        let turns = CANDIDATE_TICKS.saturating_mul(self.rank.saturating_add(1));
        turns.saturating_add(u32::try_from(apart).unwrap_or(0))
    }
}

/// The last that a leader said to a replica which is not here.
#[derive(Debug, Clone, Copy)]
pub(super) struct EarlySign {
    from: u64,
    to: u64,
    term: u64,
}

/// Somebody who waits for a command that another node proposed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaited {
    pub(super) token: Token,
    since: Tick,
}

impl ShardCore {
    /// Takes messages of other replicas, those of one group in their order.
    pub fn step(&mut self, messages: impl IntoIterator<Item = PeerMessage>) {
        let mut stepped: Vec<GroupId> = Vec::new();
        for PeerMessage { group: id, message } in messages {
            let Some(message) = self.park_snapshot(id, message) else { continue };
            if self.is_call_in_vain(&message) {
                self.shared.messages_refused += 1;
                continue;
            }
            let Some(group) = live_mut(&mut self.groups, id) else {
                self.shared.messages_refused += 1;
                self.note_early_sign(id, &message);
                continue;
            };
            if group.ignores(&message, self.shared.ticks.now) {
                continue;
            }
            let is_of_leader = is_of_leader(&message);
            let from = ReplicaId(message.from);
            let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            group.tick(&mut self.shared);
            group.raft.set_clock(self.shared.clock_ms);
            if let Err(error) = group.raft.step(message) {
                self.shared.messages_refused += 1;
                if is_snapshot {
                    self.shared.counted.dropped(id);
                }
                tracing::debug!("group {id}: a message was refused: {error}");
                continue;
            }
            if is_of_leader && group.raft.leader() == Some(from) {
                // Whoever was believed to be lost is heard again.
                group.early.take_if(|early| early.lost == from);
            }
            group.observe_leadership(&mut self.shared);
            if stepped.last() != Some(&id) {
                stepped.push(id);
            }
        }
        for id in stepped {
            if let Some(group) = self.groups.get_mut(&id) {
                group.pump(&mut self.shared);
            }
        }
    }

    /// A leader speaks to a replica that is not here: the catalog may name it in a moment, and a leader that hears nothing
    /// from a peer waits for its next heartbeat.
    fn note_early_sign(&mut self, group: GroupId, message: &Message) {
        if is_of_leader(message) && self.early_signs.len() < EARLY_SIGNS_MAX {
            let Message { from, to, term, .. } = *message;
            self.early_signs.insert(group, EarlySign { from, to, term });
        }
    }

    /// Lets a replica that was made just now answer the leader that has spoken to it before.
    pub(super) fn hear_early_sign(&mut self, group: GroupId) {
        let Some(EarlySign { from, to, term }) = self.early_signs.remove(&group) else { return };
        if self.replica(group) == Some(ReplicaId(to)) {
            let mut message = Message { from, to, term, ..Message::default() };
            message.set_msg_type(MessageType::MsgHeartbeat);
            self.step([PeerMessage { group, message }]);
        }
    }

    /// To be called at each tick: what was not heard by now is of a group that went.
    pub(super) fn forget_early_signs(&mut self) {
        if self.shared.ticks.now.is_multiple_of(EARLY_SIGN_TICKS) {
            self.early_signs.clear();
        }
    }

    /// The entries that a [`GroupFetch`] asked for: all, a first part, or none if they could not be read.
    pub fn entries_fetched(&mut self, group: GroupId, from: RaftIndex, entries: Vec<LogEntry>) {
        if let Some(group) = live_mut(&mut self.groups, group) {
            group.raft.on_entries_fetched(from, entries);
            group.pump(&mut self.shared);
        }
    }

    /// A node is gone, with the replicas that `is_lost` names: groups that one of them led look for another leader now,
    /// one candidate after the other.
    pub fn peers_lost(&mut self, is_lost: impl Fn(GroupId, ReplicaId) -> bool) {
        for group in self.groups.values_mut().filter(|group| group.is_live()) {
            let id = group.id;
            group.peers_lost(|replica| is_lost(id, replica), &mut self.shared);
        }
    }

    /// A node is there, with the replicas that `is_found` names: they hear at once from the groups that are led here.
    pub fn peers_found(&mut self, is_found: impl Fn(GroupId, ReplicaId) -> bool) {
        for group in self.groups.values_mut().filter(|group| group.is_live()) {
            let id = group.id;
            // Who does not lead knows nothing of its peers' progress.
            if group.raft.progress().iter().any(|peer| is_found(id, peer.replica)) {
                group.raft.ping();
                group.pump(&mut self.shared);
            }
        }
    }

    /// Hands every group that has another voter in reach to the one of them that is furthest; says whether this replica
    /// still leads such a group. To be asked again until it does not, or the patience of a stop is over.
    pub fn hand_over(&mut self) -> bool {
        let mut leads = false;
        for group in self.groups.values_mut().filter(|group| group.is_live()) {
            leads |= group.hand_over(&mut self.shared);
        }
        leads
    }

    /// A message to another replica was lost for certain.
    pub fn peer_unreachable(&mut self, group: GroupId, peer: ReplicaId) {
        if let Some(group) = live_mut(&mut self.groups, group) {
            group.raft.report_unreachable(peer);
        }
    }

    /// Proposes to change who belongs to a group that is led here.
    ///
    /// # Errors
    /// If it is not led here, or another change is under way.
    pub fn propose_members(
        &mut self,
        group: GroupId,
        change: &ConfChangeV2,
    ) -> Result<(), ProposeError> {
        let found = live_mut(&mut self.groups, group);
        let target = found.ok_or(ProposeError::NotLeader { leader: None })?;
        target.raft.propose_conf_change(change)?;
        target.give_each_tick(&mut self.shared);
        self.after_proposal(group);
        Ok(())
    }

    /// Who belongs to a group, and how far they are where it is led here; `None` if it is not here.
    #[must_use]
    pub fn members(&self, group: GroupId) -> Option<(Members, Vec<PeerProgress>)> {
        let group = self.live(group)?;
        Some((group.raft.members(), group.raft.progress()))
    }

    /// This shard's replica of a group; `None` if it has none.
    #[must_use]
    pub fn replica(&self, group: GroupId) -> Option<ReplicaId> {
        self.live(group).map(|group| group.raft.replica())
    }

    /// The last entry of a group that is known to be committed; `None` if it is not here.
    #[must_use]
    pub fn commit_index(&self, group: GroupId) -> Option<RaftIndex> {
        self.live(group).map(|group| group.raft.commit_index())
    }

    /// The groups that this shard's replicas lead, each with its term.
    pub fn led_groups(&self) -> impl Iterator<Item = (GroupId, Term, ReplicaId)> {
        let led = self.groups.values().filter(|group| group.is_live() && group.raft.is_leader());
        led.map(|group| (group.id, group.raft.term(), group.raft.replica()))
    }

    /// Proposes a command of the catalog for another node, which waits for it by its name.
    ///
    /// # Errors
    /// As [`ShardCore::propose_command`], or `None` where these bytes are not a command.
    pub fn propose_forwarded(
        &mut self,
        payload: &[u8],
        token: Token,
    ) -> Result<(), Option<ProduceError>> {
        let Ok((Some(id), command)) = crate::catalog::CatalogCommand::decode_named(payload) else {
            return Err(None);
        };
        self.propose_named(Some(id), &command, token).map_err(Some)
    }

    /// Lets `token` wait for a command that another node proposes under this name: it is answered when this replica
    /// applies it, or by [`ShardCore::forget_command`].
    ///
    /// # Errors
    /// If too many wait, or the shard stops.
    pub fn await_command(&mut self, id: CommandId, token: Token) -> Result<(), ProduceError> {
        self.check_open()?;
        if self.shared.awaited.len() >= AWAITED_COMMANDS_MAX {
            return Err(ProduceError::Overloaded);
        }
        let since = self.shared.ticks.now;
        self.shared.awaited.insert(id, Awaited { token, since });
        Ok(())
    }

    /// The command was not taken, or it is not known what became of it.
    pub fn forget_command(&mut self, id: CommandId, error: ProduceError) {
        if let Some(awaited) = self.shared.awaited.remove(&id) {
            self.shared.effects.replies.push((awaited.token, Err(error)));
        }
    }

    pub(super) fn expire_awaited(&mut self) {
        let Shared { awaited, effects, ticks, .. } = &mut self.shared;
        awaited.retain(|_, awaited| {
            let waits = ticks.now.since(awaited.since) <= AWAITED_TICKS_MAX;
            if !waits {
                effects.replies.push((awaited.token, Err(ProduceError::NotLeader)));
            }
            waits
        });
    }

    pub(super) fn abort_awaited(&mut self) {
        self.shared.give_up_awaited(ProduceError::ShuttingDown);
    }
}

fn is_of_leader(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgHeartbeat | MessageType::MsgAppend)
}

impl Shared {
    /// Answers all who wait for commands that other nodes propose.
    fn give_up_awaited(&mut self, error: ProduceError) {
        for (_, awaited) in std::mem::take(&mut self.awaited) {
            self.effects.replies.push((awaited.token, Err(error)));
        }
    }
}

impl Group {
    /// Lets the first replica of a new group lead it, without waiting for an election timeout.
    pub(super) fn campaign_as_preferred(&mut self, shared: &mut Shared) {
        let meta = self.raft.meta();
        if meta.voters.first() == Some(&self.raft.replica()) && meta.voters.len() > 1 {
            self.early = Some(EarlyCampaign::new(ReplicaId::NONE, 0, CAMPAIGN_TRIES_NEW));
            self.give_each_tick(shared);
            self.campaign_early(shared);
        }
    }

    /// After a start, in a group of several: looks for a leader soon, one replica after the other. Where there is one
    /// already, its followers refuse this.
    pub(super) fn campaign_in_turn(&mut self, shared: &mut Shared) {
        let meta = self.raft.meta();
        let rank = meta.voters.iter().position(|voter| *voter == self.raft.replica());
        if let Some(rank) = rank.filter(|_| meta.voters.len() > 1) {
            self.early = Some(EarlyCampaign::new(ReplicaId::NONE, rank, CAMPAIGN_TRIES_LOST));
            self.give_each_tick(shared);
        }
    }

    fn peers_lost(&mut self, is_lost: impl Fn(ReplicaId) -> bool, shared: &mut Shared) {
        let voters = self.raft.meta().voters.clone();
        if self.raft.is_leader() {
            for peer in self.raft.progress().into_iter().filter(|peer| is_lost(peer.replica)) {
                self.received.forget(peer.replica);
                self.raft.report_unreachable(peer.replica);
                self.raft.report_snapshot_lost(peer.replica);
            }
            return;
        }
        self.tick(shared);
        let Some(lost) = self.raft.leader().filter(|leader| is_lost(*leader)) else { return };
        self.raft.expire_leader_lease();
        let mut left: Vec<ReplicaId> = voters.into_iter().filter(|peer| !is_lost(*peer)).collect();
        left.sort_unstable();
        let Some(rank) = left.iter().position(|peer| *peer == self.raft.replica()) else { return };
        self.early = Some(EarlyCampaign::new(lost, rank, CAMPAIGN_TRIES_LOST));
        self.give_each_tick(shared);
        self.campaign_early(shared);
    }

    /// Makes a snapshot if a peer needs one, and says whether there is something to send then. That of a partition has no
    /// records: all that it stands for are applied here, and the peer copies them.
    pub(super) fn give_snapshot(&mut self, shared: &mut Shared) -> bool {
        if !self.raft.wants_snapshot() {
            return false;
        }
        let begun_ns = (shared.config.stopwatch_ns)();
        let mut parts = self.raft.snapshot_parts();
        parts.log_start_offset = self.log_start_offset;
        parts.state = self.machine.encode().into();
        match self.raft.supply_snapshot(&parts) {
            Ok(is_wanted) => {
                let ns = (shared.config.stopwatch_ns)().saturating_sub(begun_ns);
                shared.counted.created(self.id, ns);
                is_wanted && self.raft.has_ready()
            }
            Err(error) => {
                tracing::error!("{}: its state cannot be sent to a replica: {error}", self.label());
                self.raft.decline_snapshot();
                false
            }
        }
    }

    /// Puts a snapshot, which is durable, in the place of the state machine.
    pub(super) fn install_snapshot(&mut self, snapshot: &SnapshotInstall, shared: &mut Shared) {
        assert!(self.in_flight.is_empty(), "who takes a snapshot does not lead");
        let restored = Machine::restore(self.id, self.raft.meta(), &snapshot.state, shared.now_ms);
        assert!(restored.is_ok(), "group {}: the leader's snapshot: {restored:?}", self.id);
        if let Ok(machine) = restored {
            self.machine = machine;
        }
        self.log_start_offset = self.log_start_offset.max(snapshot.log_start_offset);
        let gone = self.take_segments_before(self.log_start_offset);
        shared.effects.segments_gone.extend(gone);
        // What is in memory does not go on behind the snapshot.
        shared.tail.remove_group(self.id);
        self.is_announced = false;
        if let Machine::Catalog(_) = self.machine {
            // Some of what they wait for may be in the snapshot, and will never be seen in the log.
            shared.give_up_awaited(ProduceError::NotLeader);
        }
        self.announce_catalog(shared);
        let high_watermark = self.high_watermark();
        shared.waiters.wake(self.id, high_watermark, &mut shared.effects.wakes);
    }

    /// To be called at each tick.
    pub(super) fn campaign_early(&mut self, shared: &mut Shared) {
        let Some(early) = &mut self.early else { return };
        let lost = early.lost;
        let has_leader = self.raft.leader().is_some_and(|leader| leader != lost);
        if has_leader || early.tries_left == 0 {
            self.early = None;
            return;
        }
        // Another try would break off an election whose votes are on their way; pre-votes it only asks for again.
        let voting_in = (self.raft.role() == Role::Candidate).then(|| self.raft.term());
        if early.awaits_votes_in.is_some() && early.awaits_votes_in != voting_in {
            early.awaits_votes_in = None;
            early.ticks_left = early.ticks_left.min(CAMPAIGN_STAGGER_TICKS);
        }
        if early.ticks_left > 0 {
            early.ticks_left -= 1;
            return;
        }
        if voting_in.is_some() && early.awaits_votes_in != voting_in {
            early.awaits_votes_in = voting_in;
            early.ticks_left = early.vote_ticks(self.raft.replica());
            return;
        }
        early.ticks_left = CAMPAIGN_STAGGER_TICKS;
        early.tries_left -= 1;
        if self.raft.campaign() {
            self.observe_leadership(shared);
            self.pump(shared);
        }
    }

    /// Whether this replica leads and is ready, or knows another one that leads.
    pub(super) fn is_settled(&self) -> bool {
        self.is_ready() || (!self.raft.is_leader() && self.known_leader().is_some())
    }

    /// Who leads, unless this replica has reason to believe that it does so no more.
    pub(super) fn known_leader(&self) -> Option<ReplicaId> {
        let lost = self.early.map(|early| early.lost);
        self.raft.leader().filter(|leader| Some(*leader) != lost)
    }
}
