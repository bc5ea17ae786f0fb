//! JoinGroup: who becomes a member, and who is told what of the generation.

use super::coordinator::{Coordinator, Job, JoinAnswer, JoinRequest, Now, Shared, Ticket, Timer};
use super::error::GroupError;
use super::group::{Group, GroupState, Member};

impl Coordinator {
    /// A member joins. The ticket is answered now, or when the rebalance is over.
    pub fn join(&mut self, request: JoinRequest, ticket: Ticket, now: Now) {
        let (name, member_id) = (request.group.clone(), request.member_id.clone());
        let refused = self.try_join(request, ticket, now);
        if let Err(error) = refused {
            self.shared.joined(ticket, JoinAnswer::refused(member_id, error));
        }
        if let Some(group) = self.groups.get_mut(&name) {
            group.complete_if_all_joined(now, &mut self.shared);
        }
        self.forget_if_void(&name);
    }

    fn try_join(
        &mut self,
        request: JoinRequest,
        ticket: Ticket,
        now: Now,
    ) -> Result<(), GroupError> {
        let config = &self.shared.config;
        if request.group.is_empty() {
            return Err(GroupError::InvalidGroupId);
        }
        let bounds = config.session_timeout_min_ms..=config.session_timeout_max_ms;
        if !bounds.contains(&request.session_timeout_ms) {
            return Err(GroupError::InvalidSessionTimeout);
        }
        let is_new = request.member_id.is_empty();
        let members_max = config.members_max;
        if !self.groups.contains_key(&request.group) {
            if !is_new {
                return Err(GroupError::UnknownMember);
            }
            let group = Group::empty(&request.group, now);
            self.groups.insert(request.group.clone(), group);
        }
        let Some(group) = self.groups.get_mut(&request.group) else {
            return Err(GroupError::UnknownMember);
        };
        if !group.has_room_for(&request.member_id, members_max) {
            group.pending.remove(&request.member_id);
            return Err(GroupError::GroupFull);
        }
        if !group.supports(&request.protocol_type, &request.protocols) {
            return Err(GroupError::InconsistentProtocol);
        }
        if is_new {
            group.join_new(request, ticket, now, &mut self.shared)
        } else {
            group.join_known(request, ticket, now, &mut self.shared)
        }
    }
}

impl Group {
    fn has_room_for(&self, member: &str, members_max: usize) -> bool {
        let is_member = self.members.get(member);
        match self.state {
            GroupState::Empty => true,
            // Of those who come to a rebalance the first ones stay.
            GroupState::PreparingRebalance => {
                is_member.is_some_and(|member| member.joining.is_some())
                    || self.joining_count() < members_max
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                is_member.is_some() || self.members.len() < members_max
            }
        }
    }

    fn join_new(
        &mut self,
        request: JoinRequest,
        ticket: Ticket,
        now: Now,
        shared: &mut Shared,
    ) -> Result<(), GroupError> {
        let new_id = request.new_member_id.clone();
        let known = request.instance_id.as_ref().and_then(|id| self.instances.get(id)).cloned();
        if let Some(old_id) = known {
            self.replace(&old_id, request, ticket, now, shared);
        } else if request.instance_id.is_none() && request.requires_member_id {
            let due_ms = now.mono_ms.saturating_add(request.session_timeout_ms);
            self.pending.insert(new_id.clone(), due_ms);
            shared.at(due_ms, &self.name, Timer::Pending(new_id.clone()));
            shared.joined(ticket, JoinAnswer::refused(new_id, GroupError::MemberIdRequired));
        } else {
            self.add(&new_id, request, ticket, now, shared);
        }
        Ok(())
    }

    fn join_known(
        &mut self,
        request: JoinRequest,
        ticket: Ticket,
        now: Now,
        shared: &mut Shared,
    ) -> Result<(), GroupError> {
        let id = request.member_id.clone();
        if self.pending.contains_key(&id) {
            if request.instance_id.is_some() {
                return Err(GroupError::UnknownMember);
            }
            self.add(&id, request, ticket, now, shared);
            return Ok(());
        }
        self.check_member(&id, request.instance_id.as_deref())?;
        let is_same =
            self.members.get(&id).is_some_and(|member| member.protocols == request.protocols);
        let is_leader = self.is_leader(&id);
        match self.state {
            GroupState::Empty => return Err(GroupError::UnknownMember),
            // The answer to its join was lost.
            GroupState::CompletingRebalance if is_same => {
                shared.joined(ticket, self.join_answer(&id, is_leader));
            }
            // A leader that joins again wants to assign anew.
            GroupState::Stable if is_same && !is_leader => {
                shared.joined(ticket, self.join_answer(&id, false));
            }
            _ => self.join_again(&id, request, ticket, now, shared),
        }
        Ok(())
    }

    /// Takes a new member in, for whom the group rebalances.
    fn add(
        &mut self,
        id: &str,
        request: JoinRequest,
        ticket: Ticket,
        now: Now,
        shared: &mut Shared,
    ) {
        self.note_new_member();
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type);
        }
        let member = Member {
            is_new: true,
            joining: Some(ticket),
            ..Member::new(
                request.instance_id,
                (request.client_id, request.client_host),
                (request.session_timeout_ms, request.rebalance_timeout_ms),
                request.protocols,
            )
        };
        self.insert(id, member);
        self.wait_as_new(id, now, shared);
        self.rebalance(now, shared);
    }

    fn join_again(
        &mut self,
        id: &str,
        request: JoinRequest,
        ticket: Ticket,
        now: Now,
        shared: &mut Shared,
    ) {
        self.update(id, request);
        self.rebalance_with(id, ticket, now, shared);
    }

    fn update(&mut self, id: &str, request: JoinRequest) {
        self.set_protocols(id, request.protocols);
        if let Some(member) = self.members.get_mut(id) {
            member.session_timeout_ms = request.session_timeout_ms;
            member.rebalance_timeout_ms = request.rebalance_timeout_ms;
            member.client_id = request.client_id;
            member.client_host = request.client_host;
        }
    }

    fn rebalance_with(&mut self, id: &str, ticket: Ticket, now: Now, shared: &mut Shared) {
        if self.state == GroupState::CompletingRebalance {
            // What it waits for is refused before it waits for something else.
            self.take_assignments_back(GroupError::RebalanceInProgress, shared);
        }
        self.await_join(id, ticket, shared);
        self.rebalance(now, shared);
    }

    /// A static member is back under a new id. The group does not rebalance for that if it need not.
    fn replace(
        &mut self,
        old_id: &str,
        request: JoinRequest,
        ticket: Ticket,
        now: Now,
        shared: &mut Shared,
    ) {
        let new_id = request.new_member_id.clone();
        let can_skip = request.can_skip_assignment;
        let old_leader = self.leader.clone().unwrap_or_default();
        self.rename(old_id, &new_id, shared);
        self.update(&new_id, request);
        self.refresh(&new_id, now, shared);
        if self.state != GroupState::Stable || self.select_protocol() != self.protocol {
            self.rebalance_with(&new_id, ticket, now, shared);
            return;
        }
        let is_leader = self.is_leader(&new_id);
        let mut answer = self.join_answer(&new_id, is_leader && can_skip);
        if can_skip {
            answer.skip_assignment = is_leader;
        } else {
            // Under its old id it is told that somebody else leads, so that it does not assign.
            answer.leader = old_leader;
        }
        self.save(Job::Replace { ticket, answer: Box::new(answer) }, shared);
    }
}
