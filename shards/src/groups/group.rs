//! One group: its members, its generation, and the states it goes through.
//!
//! ```text
//! Empty -> PreparingRebalance -> CompletingRebalance -> Stable -> PreparingRebalance -> ...
//! ```
//!
//! A group that is gone ("Dead" to Kafka's clients) is not there at all.
//!
//! - I1: `joining` counts the members that wait for the answer to a join.
//! - I2: `supported` says of each protocol how many members speak it.
//! - I3: members wait for a join in PreparingRebalance only, and for a sync in CompletingRebalance only.
//! - I4: a group has a leader exactly while it has members.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::coordinator::{Job, JoinAnswer, Now, Shared, SyncAnswer, Ticket, Timer};
use super::error::GroupError;
use super::rebalance::JoinWait;
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
    pub(super) fn is_excused(&self) -> bool {
        !self.is_new && (self.joining.is_some() || self.syncing.is_some())
    }
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
    pub(super) unsynced: BTreeSet<String>,
    pub(super) joining: usize,
    supported: BTreeMap<String, usize>,
    pub(super) join_wait: Option<JoinWait>,
    pub(super) sync_deadline_ms: Option<i64>,
    pub(super) has_new_member: bool,
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

    pub(super) fn enter(&mut self, state: GroupState, now: Now) {
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

    pub(super) fn set_deadline(&mut self, id: &str, deadline_ms: i64, shared: &mut Shared) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.deadline_ms = deadline_ms;
        if member.timer_at_ms.is_none_or(|at_ms| deadline_ms < at_ms) {
            member.timer_at_ms = Some(deadline_ms);
            shared.at(deadline_ms, &self.name, Timer::Session(id.to_owned()));
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
