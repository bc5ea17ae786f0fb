//! A rebalance, from the reason for it to the new assignments, and the timers that drive it on.
//!
//! - I1: members are answered together, when everybody is there or the time for the others is over.
//! - I2: assignments go out once they are durable, and only if their generation is still the group's.

use bytes::Bytes;

use super::coordinator::{Job, JoinAnswer, JoinedMember, Now, Shared, SyncAnswer, Timer};
use super::error::GroupError;
use super::group::{Group, GroupState, Member};

/// A rebalance that waits for members.
#[derive(Debug, Clone, Copy)]
pub(super) struct JoinWait {
    deadline_ms: i64,
    /// While the first members of a group gather: how much longer the wait may become.
    extendable_ms: Option<i64>,
}

impl Group {
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
            self.save(Job::Note { group: self.name.clone() }, shared);
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
}
