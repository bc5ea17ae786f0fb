//! SyncGroup: the leader's assignments come in, are written down, and go out to everybody.

use super::coordinator::{Coordinator, Job, Now, SyncAnswer, SyncRequest, Ticket};
use super::error::GroupError;
use super::group::GroupState;

impl Coordinator {
    /// A member asks for its assignment. The ticket is answered now, or when the leader's assignments are durable.
    pub fn sync(&mut self, request: SyncRequest, ticket: Ticket, now: Now) {
        if let Err(error) = self.try_sync(request, ticket, now) {
            self.shared.synced(ticket, SyncAnswer::refused(error));
        }
    }

    fn try_sync(
        &mut self,
        request: SyncRequest,
        ticket: Ticket,
        now: Now,
    ) -> Result<(), GroupError> {
        if request.group.is_empty() {
            return Err(GroupError::InvalidGroupId);
        }
        let shared = &mut self.shared;
        let group = self.groups.get_mut(&request.group).ok_or(GroupError::UnknownMember)?;
        let id = request.member_id.as_str();
        group.check_member(id, request.instance_id.as_deref())?;
        if request.generation != group.generation {
            return Err(GroupError::IllegalGeneration);
        }
        let differs =
            |theirs: &Option<String>, ours: &Option<String>| theirs.is_some() && theirs != ours;
        if differs(&request.protocol_type, &group.protocol_type)
            || differs(&request.protocol, &group.protocol)
        {
            return Err(GroupError::InconsistentProtocol);
        }
        match group.state {
            GroupState::Empty => Err(GroupError::UnknownMember),
            GroupState::PreparingRebalance => Err(GroupError::RebalanceInProgress),
            GroupState::Stable => {
                group.note_synced(id);
                shared.synced(ticket, group.sync_answer(id));
                group.refresh(id, now, shared);
                Ok(())
            }
            GroupState::CompletingRebalance => {
                group.note_synced(id);
                let Some(member) = group.members.get_mut(id) else {
                    return Err(GroupError::UnknownMember);
                };
                if let Some(earlier) = member.syncing.replace(ticket) {
                    let error = GroupError::RebalanceInProgress;
                    shared.synced(earlier, SyncAnswer::refused(error));
                }
                if group.is_leader(id) && !group.is_assigning {
                    group.is_assigning = true;
                    for (id, assignment) in request.assignments {
                        if let Some(member) = group.members.get_mut(&id) {
                            member.assignment = assignment;
                        }
                    }
                    let generation = group.generation;
                    group.save(Job::Assign { group: request.group, generation }, shared);
                }
                Ok(())
            }
        }
    }
}
