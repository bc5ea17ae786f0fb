//! One group: its members, its generation, and the states it goes through.
//!
//!     Empty -> PreparingRebalance -> CompletingRebalance -> Stable -> PreparingRebalance -> ...
//!
//! A group that is gone ("Dead" to Kafka's clients) is not there at all.
//!
//! - I1: `joining` counts the members that wait for the answer to a join.
//! - I2: `supported` says of each protocol how many members speak it.
//! - I3: members wait for a join in PreparingRebalance only, and for a sync in CompletingRebalance only.
//! - I4: a group has a leader exactly while it has members.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::coordinator::{Job, JoinAnswer, JoinedMember, Now, Shared, SyncAnswer, Ticket, Timer};
use super::error::GroupError;
use super::store::{GroupCommand, SavedGroup, SavedMember};

/// A member that joins is not taken for dead before this, however long the rebalance takes: it cannot send heartbeats
/// before it is answered.
const NEW_MEMBER_TIMEOUT_MS: i64 = 5 * 60 * 1000;

/// Where a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// It has no members.
    Empty,
    /// Its members are to join again.
    PreparingRebalance,
    /// Its leader is to assign.
    CompletingRebalance,
    /// Everybody has an assignment.
    Stable,
}

impl GroupState {
    /// Kafka's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            GroupState::Empty => "Empty",
            GroupState::PreparingRebalance => "PreparingRebalance",
            GroupState::CompletingRebalance => "CompletingRebalance",
            GroupState::Stable => "Stable",
        }
    }
}

/// A member.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout_ms: i64,
    pub(super) rebalance_timeout_ms: i64,
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) assignment: Bytes,
    /// Its join that waits.
    pub(super) joining: Option<Ticket>,
    /// Its sync that waits.
    pub(super) syncing: Option<Ticket>,
    /// Whether it has not been part of a generation yet.
    pub(super) is_new: bool,
    /// When its session is over.
    pub(super) deadline_ms: i64,
    /// When it is looked at next.
    pub(super) timer_at_ms: Option<i64>,
}

impl Member {
    pub(super) fn new(
        instance_id: Option<String>,
        client: (String, String),
        timeouts: (i64, i64),
        protocols: Vec<(String, Bytes)>,
    ) -> Member {
        let (client_id, client_host) = client;
        let (session_timeout_ms, rebalance_timeout_ms) = timeouts;
        Member {
            instance_id,
            client_id,
            client_host,
            session_timeout_ms,
            rebalance_timeout_ms,
            protocols,
            assignment: Bytes::new(),
            joining: None,
            syncing: None,
            is_new: false,
            deadline_ms: 0,
            timer_at_ms: None,
        }
    }

    /// What it says of itself under a protocol.
    pub(super) fn metadata(&self, protocol: Option<&str>) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| Some(name.as_str()) == protocol);
        found.map_or_else(Bytes::new, |(_, metadata)| metadata.clone())
    }

    /// Whether it cannot be heard of because it waits for an answer.
    fn is_excused(&self) -> bool {
        !self.is_new && (self.joining.is_some() || self.syncing.is_some())
    }
}

/// A rebalance that waits for members.
#[derive(Debug, Clone, Copy)]
struct JoinWait {
    deadline_ms: i64,
    /// While the first members of a group gather: how much longer the wait may become.
    extendable_ms: Option<i64>,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) state: GroupState,
    /// When it came into its state, by the wall clock.
    pub(super) changed_ms: i64,
    pub(super) generation: i32,
    pub(super) protocol_type: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) leader: Option<String>,
    pub(super) members: BTreeMap<String, Member>,
    /// Member ids by instance id.
    pub(super) instances: BTreeMap<String, String>,
    /// Ids that were given out and not used yet, and how long they may be.
    pub(super) pending: BTreeMap<String, i64>,
    /// Whether the log has something of it.
    pub(super) is_stored: bool,
    unsynced: BTreeSet<String>,
    joining: usize,
    supported: BTreeMap<String, usize>,
    join_wait: Option<JoinWait>,
    sync_deadline_ms: Option<i64>,
    has_new_member: bool,
    /// Whether the leader's assignments are being written down.
    pub(super) is_assigning: bool,
}

impl Group {
    pub(super) fn empty(name: &str, now: Now) -> Group {
        Group {
            name: name.to_owned(),
            state: GroupState::Empty,
            changed_ms: now.wall_ms,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            pending: BTreeMap::new(),
            is_stored: false,
            unsynced: BTreeSet::new(),
            joining: 0,
            supported: BTreeMap::new(),
            join_wait: None,
            sync_deadline_ms: None,
            has_new_member: false,
            is_assigning: false,
        }
    }

    /// The group as the log has it.
    pub(super) fn restore(
        name: &str,
        saved: Option<&SavedGroup>,
        now: Now,
        shared: &mut Shared,
    ) -> Group {
        let mut group = Group { is_stored: true, ..Group::empty(name, now) };
        let Some(saved) = saved else { return group };
        group.generation = saved.generation;
        group.changed_ms = saved.changed_ms;
        group.protocol_type = Some(saved.protocol_type.clone());
        group.protocol.clone_from(&saved.protocol);
        for member in &saved.members {
            let protocol = saved.protocol.clone().unwrap_or_default();
            let restored = Member {
                assignment: Bytes::copy_from_slice(&member.assignment),
                ..Member::new(
                    member.instance_id.clone(),
                    (member.client_id.clone(), member.client_host.clone()),
                    (member.session_timeout_ms, member.rebalance_timeout_ms),
                    vec![(protocol, Bytes::copy_from_slice(&member.subscription))],
                )
            };
            group.insert(&member.id, restored);
            group.refresh(&member.id, now, shared);
        }
        if !group.members.is_empty() {
            group.state = GroupState::Stable;
            group.leader.clone_from(&saved.leader);
        }
        group
    }

    /// Whether there is nothing of it worth keeping.
    pub(super) fn is_void(&self) -> bool {
        self.state == GroupState::Empty && !self.is_stored && self.pending.is_empty()
    }

    fn enter(&mut self, state: GroupState, now: Now) {
        self.state = state;
        self.changed_ms = now.wall_ms;
    }

    pub(super) fn is_leader(&self, member: &str) -> bool {
        self.leader.as_deref() == Some(member)
    }

    /// Finds out whether these name a member (`GroupError::UnknownMember`) that was not replaced.
    pub(super) fn check_member(
        &self,
        member: &str,
        instance: Option<&str>,
    ) -> Result<(), GroupError> {
        if let Some(instance) = instance {
            match self.instances.get(instance) {
                None => return Err(GroupError::UnknownMember),
                Some(current) if current != member => return Err(GroupError::FencedInstance),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member) { Ok(()) } else { Err(GroupError::UnknownMember) }
    }

    /// Whether a member that speaks these would fit in.
    pub(super) fn supports(&self, protocol_type: &str, protocols: &[(String, Bytes)]) -> bool {
        if protocol_type.is_empty() || protocols.is_empty() {
            return false;
        }
        if self.members.is_empty() {
            return true;
        }
        self.protocol_type.as_deref() == Some(protocol_type)
            && protocols
                .iter()
                .any(|(name, _)| self.supported.get(name) == Some(&self.members.len()))
    }

    /// The protocol that all members speak and most of them like best.
    pub(super) fn select_protocol(&self) -> Option<String> {
        let everybodys = |name: &str| self.supported.get(name) == Some(&self.members.len());
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let vote = member.protocols.iter().find(|(name, _)| everybodys(name));
            if let Some((name, _)) = vote {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max()?;
        votes.iter().find(|(_, count)| **count == most).map(|(name, _)| (*name).to_owned())
    }

    fn count_protocols(&mut self, protocols: &[(String, Bytes)], add: bool) {
        let names: BTreeSet<&String> = protocols.iter().map(|(name, _)| name).collect();
        for name in names {
            let count = self.supported.entry(name.clone()).or_default();
            if add {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.supported.remove(name);
                }
            }
        }
    }

    /// Takes a member in.
    pub(super) fn insert(&mut self, id: &str, member: Member) {
        assert!(!self.members.contains_key(id), "a member is taken in once");
        self.count_protocols(&member.protocols, true);
        if let Some(instance) = &member.instance_id {
            self.instances.insert(instance.clone(), id.to_owned());
        }
        self.joining += usize::from(member.joining.is_some());
        self.leader.get_or_insert_with(|| id.to_owned());
        self.pending.remove(id);
        self.members.insert(id.to_owned(), member);
    }

    /// Lets a member go; whatever it waits for is answered with `error`.
    pub(super) fn remove(
        &mut self,
        id: &str,
        error: GroupError,
        shared: &mut Shared,
    ) -> Option<Member> {
        let mut member = self.members.remove(id)?;
        self.count_protocols(&member.protocols, false);
        if let Some(instance) = &member.instance_id
            && self.instances.get(instance).is_some_and(|current| current == id)
        {
            self.instances.remove(instance);
        }
        self.unsynced.remove(id);
        if let Some(ticket) = member.joining.take() {
            self.joining -= 1;
            shared.joined(ticket, JoinAnswer::refused(id.to_owned(), error));
        }
        if let Some(ticket) = member.syncing.take() {
            shared.synced(ticket, SyncAnswer::refused(error));
        }
        if self.is_leader(id) {
            self.leader = self.members.keys().next().cloned();
        }
        Some(member)
    }

    /// Puts a static member's new id in the place of the old one.
    pub(super) fn rename(&mut self, old: &str, new: &str, shared: &mut Shared) {
        let was_leader = self.is_leader(old);
        let Some(mut member) = self.remove(old, GroupError::FencedInstance, shared) else { return };
        member.timer_at_ms = None;
        self.insert(new, member);
        if was_leader {
            self.leader = Some(new.to_owned());
        }
    }

    /// Lets a member wait for the end of the rebalance. One that it sent before is told to come again.
    pub(super) fn await_join(&mut self, id: &str, ticket: Ticket, shared: &mut Shared) {
        let Some(member) = self.members.get_mut(id) else { return };
        match member.joining.replace(ticket) {
            None => self.joining += 1,
            Some(earlier) => {
                let error = GroupError::RebalanceInProgress;
                shared.joined(earlier, JoinAnswer::refused(id.to_owned(), error));
            }
        }
    }

    /// Replaces what a member says of itself.
    pub(super) fn set_protocols(&mut self, id: &str, protocols: Vec<(String, Bytes)>) {
        let Some(member) = self.members.get_mut(id) else { return };
        let old = std::mem::replace(&mut member.protocols, protocols.clone());
        self.count_protocols(&old, false);
        self.count_protocols(&protocols, true);
    }

    pub(super) fn note_new_member(&mut self) {
        if self.state == GroupState::PreparingRebalance && self.generation == 0 {
            self.has_new_member = true;
        }
    }

    pub(super) fn joining_count(&self) -> usize {
        self.joining
    }

    pub(super) fn note_synced(&mut self, id: &str) {
        self.unsynced.remove(id);
        if self.unsynced.is_empty() {
            self.sync_deadline_ms = None;
        }
    }

    /// A member was heard of.
    pub(super) fn refresh(&mut self, id: &str, now: Now, shared: &mut Shared) {
        let Some(timeout_ms) = self.members.get(id).map(|member| member.session_timeout_ms) else {
            return;
        };
        self.set_deadline(id, now.mono_ms.saturating_add(timeout_ms), shared);
    }

    /// A new member waits for its first generation.
    pub(super) fn wait_as_new(&mut self, id: &str, now: Now, shared: &mut Shared) {
        self.set_deadline(id, now.mono_ms.saturating_add(NEW_MEMBER_TIMEOUT_MS), shared);
    }

    fn set_deadline(&mut self, id: &str, deadline_ms: i64, shared: &mut Shared) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.deadline_ms = deadline_ms;
        if member.timer_at_ms.is_none_or(|at_ms| deadline_ms < at_ms) {
            member.timer_at_ms = Some(deadline_ms);
            shared.at(deadline_ms, &self.name, Timer::Session(id.to_owned()));
        }
    }

    pub(super) fn on_timer(&mut self, due_ms: i64, timer: Timer, now: Now, shared: &mut Shared) {
        match timer {
            Timer::Session(id) => self.on_session_timer(&id, due_ms, now, shared),
            Timer::Pending(id) => {
                if self.pending.get(&id) == Some(&due_ms) {
                    self.pending.remove(&id);
                    self.complete_if_all_joined(now, shared);
                }
            }
            Timer::Join => self.on_join_timer(due_ms, now, shared),
            Timer::Sync => {
                if self.sync_deadline_ms == Some(due_ms) {
                    self.sync_deadline_ms = None;
                    for id in std::mem::take(&mut self.unsynced) {
                        self.remove(&id, GroupError::UnknownMember, shared);
                    }
                    self.rebalance(now, shared);
                }
            }
        }
    }

    fn on_session_timer(&mut self, id: &str, due_ms: i64, now: Now, shared: &mut Shared) {
        let Some(member) = self.members.get_mut(id) else { return };
        // Another entry took its place.
        if member.timer_at_ms != Some(due_ms) {
            return;
        }
        member.timer_at_ms = None;
        if member.deadline_ms > now.mono_ms {
            let deadline_ms = member.deadline_ms;
            self.set_deadline(id, deadline_ms, shared);
        } else if !member.is_excused() {
            shared.expired_members += 1;
            self.let_go(id, now, shared);
        }
        // Else its next timer is set with the answer that it waits for.
    }

    /// A member has left or was not heard of: the others are to share what it had.
    pub(super) fn let_go(&mut self, id: &str, now: Now, shared: &mut Shared) {
        self.remove(id, GroupError::UnknownMember, shared);
        match self.state {
            GroupState::Empty => {}
            GroupState::Stable | GroupState::CompletingRebalance => self.rebalance(now, shared),
            GroupState::PreparingRebalance => self.complete_if_all_joined(now, shared),
        }
    }

    /// Begins a rebalance, unless one has begun and waits for its members.
    pub(super) fn rebalance(&mut self, now: Now, shared: &mut Shared) {
        if self.state == GroupState::PreparingRebalance {
            return;
        }
        if self.state == GroupState::CompletingRebalance {
            self.take_assignments_back(GroupError::RebalanceInProgress, shared);
        }
        self.unsynced.clear();
        self.sync_deadline_ms = None;
        shared.rebalances += 1;
        let longest_ms = self.rebalance_timeout_ms();
        let delay_ms = shared.config.initial_rebalance_delay_ms;
        let wait = if self.state == GroupState::Empty && delay_ms > 0 {
            self.has_new_member = false;
            JoinWait {
                deadline_ms: now.mono_ms.saturating_add(delay_ms),
                extendable_ms: Some(longest_ms.saturating_sub(delay_ms).max(0)),
            }
        } else {
            JoinWait { deadline_ms: now.mono_ms.saturating_add(longest_ms), extendable_ms: None }
        };
        self.enter(GroupState::PreparingRebalance, now);
        self.wait_for_joins(wait, shared);
        self.complete_if_all_joined(now, shared);
    }

    fn wait_for_joins(&mut self, wait: JoinWait, shared: &mut Shared) {
        self.join_wait = Some(wait);
        shared.at(wait.deadline_ms, &self.name, Timer::Join);
    }

    fn rebalance_timeout_ms(&self) -> i64 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    fn on_join_timer(&mut self, due_ms: i64, now: Now, shared: &mut Shared) {
        let Some(wait) = self.join_wait.filter(|wait| wait.deadline_ms == due_ms) else { return };
        match wait.extendable_ms {
            Some(left_ms) if left_ms > 0 && self.has_new_member => {
                self.has_new_member = false;
                let delay_ms = shared.config.initial_rebalance_delay_ms.min(left_ms);
                let wait = JoinWait {
                    deadline_ms: now.mono_ms.saturating_add(delay_ms),
                    extendable_ms: Some(left_ms.saturating_sub(delay_ms)),
                };
                self.wait_for_joins(wait, shared);
            }
            _ => self.complete_joins(now, shared),
        }
    }

    /// Ends the rebalance if nobody is missing.
    pub(super) fn complete_if_all_joined(&mut self, now: Now, shared: &mut Shared) {
        let gathers = self.join_wait.is_none_or(|wait| wait.extendable_ms.is_some());
        let all_here = self.joining == self.members.len() && self.pending.is_empty();
        if self.state == GroupState::PreparingRebalance && !gathers && all_here {
            self.complete_joins(now, shared);
        }
    }

    /// Begins a new generation with those who came.
    fn complete_joins(&mut self, now: Now, shared: &mut Shared) {
        let is_missing = |member: &Member| member.joining.is_none() && member.instance_id.is_none();
        let missing: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| is_missing(member))
            .map(|(id, _)| id.clone())
            .collect();
        for id in missing {
            self.remove(&id, GroupError::UnknownMember, shared);
        }
        if !self.members.is_empty() && !self.elect_leader() {
            // Only static members, none of whom came: their sessions decide.
            let deadline_ms = now.mono_ms.saturating_add(self.rebalance_timeout_ms().max(1));
            self.wait_for_joins(JoinWait { deadline_ms, extendable_ms: None }, shared);
            return;
        }
        self.join_wait = None;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        if self.members.is_empty() {
            self.protocol = None;
            self.enter(GroupState::Empty, now);
            self.save(Job::Note, shared);
            return;
        }
        self.protocol = self.select_protocol();
        self.enter(GroupState::CompletingRebalance, now);
        self.answer_joins(now, shared);
        let deadline_ms = now.mono_ms.saturating_add(self.rebalance_timeout_ms());
        self.sync_deadline_ms = Some(deadline_ms);
        shared.at(deadline_ms, &self.name, Timer::Sync);
    }

    /// Somebody who came leads. Says whether there is one.
    fn elect_leader(&mut self) -> bool {
        let has_come = |id: &String| self.members.get(id).is_some_and(|m| m.joining.is_some());
        if self.leader.as_ref().is_some_and(has_come) {
            return true;
        }
        let came = self.members.iter().find(|(_, member)| member.joining.is_some());
        let Some(elected) = came.map(|(id, _)| id.clone()) else { return false };
        self.leader = Some(elected);
        true
    }

    fn answer_joins(&mut self, now: Now, shared: &mut Shared) {
        let ids: Vec<String> = self.members.keys().cloned().collect();
        self.unsynced = ids.iter().cloned().collect();
        for id in ids {
            let answer = self.join_answer(&id, self.is_leader(&id));
            if let Some(member) = self.members.get_mut(&id) {
                member.is_new = false;
                if let Some(ticket) = member.joining.take() {
                    self.joining -= 1;
                    shared.joined(ticket, answer);
                }
            }
            self.refresh(&id, now, shared);
        }
    }

    /// What a member is told of the generation.
    pub(super) fn join_answer(&self, id: &str, with_members: bool) -> JoinAnswer {
        JoinAnswer {
            error: None,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            member_id: id.to_owned(),
            members: if with_members { self.joined_members() } else { Vec::new() },
        }
    }

    fn joined_members(&self) -> Vec<JoinedMember> {
        let joined = |(id, member): (&String, &Member)| JoinedMember {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            metadata: member.metadata(self.protocol.as_deref()),
        };
        self.members.iter().map(joined).collect()
    }

    /// Refuses the syncs that wait and forgets what was assigned.
    pub(super) fn take_assignments_back(&mut self, error: GroupError, shared: &mut Shared) {
        self.is_assigning = false;
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
            if let Some(ticket) = member.syncing.take() {
                shared.synced(ticket, SyncAnswer::refused(error));
            }
        }
    }

    /// The leader's assignments are durable, or could not be made so.
    pub(super) fn on_assignments_written(
        &mut self,
        generation: i32,
        outcome: Result<(), GroupError>,
        now: Now,
        shared: &mut Shared,
    ) {
        let is_awaited = self.state == GroupState::CompletingRebalance && self.is_assigning;
        if !is_awaited || self.generation != generation {
            return;
        }
        self.is_assigning = false;
        if let Err(error) = outcome {
            self.take_assignments_back(error, shared);
            self.rebalance(now, shared);
            return;
        }
        self.enter(GroupState::Stable, now);
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let ticket = self.members.get_mut(&id).and_then(|member| member.syncing.take());
            if let Some(ticket) = ticket {
                shared.synced(ticket, self.sync_answer(&id));
                self.refresh(&id, now, shared);
            }
        }
    }

    pub(super) fn sync_answer(&self, id: &str) -> SyncAnswer {
        SyncAnswer {
            error: None,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: self.members.get(id).map(|m| m.assignment.clone()).unwrap_or_default(),
        }
    }

    /// Writes the generation down.
    pub(super) fn save(&mut self, job: Job, shared: &mut Shared) {
        self.is_stored = true;
        let members = self.members.iter().map(|(id, member)| SavedMember {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            session_timeout_ms: member.session_timeout_ms,
            subscription: member.metadata(self.protocol.as_deref()).to_vec(),
            assignment: member.assignment.to_vec(),
        });
        let saved = SavedGroup {
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            changed_ms: self.changed_ms,
            members: members.collect(),
        };
        shared.write(GroupCommand::Save { group: self.name.clone(), saved }, job);
    }

    /// Refuses everybody who waits.
    pub(super) fn refuse_all(&mut self, error: GroupError, shared: &mut Shared) {
        for (id, member) in &mut self.members {
            if let Some(ticket) = member.joining.take() {
                shared.joined(ticket, JoinAnswer::refused(id.clone(), error));
            }
            if let Some(ticket) = member.syncing.take() {
                shared.synced(ticket, SyncAnswer::refused(error));
            }
        }
        self.joining = 0;
    }
}
