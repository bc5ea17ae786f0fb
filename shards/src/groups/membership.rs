//! Heartbeats and farewells.

use super::coordinator::{Coordinator, Now};
use super::error::GroupError;
use super::group::GroupState;

/// A member as a request names it.
#[derive(Debug, Clone, Copy)]
pub struct MemberRef<'a> {
    /// The group.
    pub group: &'a str,
    /// The member's id.
    pub id: &'a str,
    /// Its instance, if it is static.
    pub instance_id: Option<&'a str>,
    /// The generation it means.
    pub generation: i32,
}

/// A member that leaves, by its id or by its instance alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// Its id, empty if only the instance is known.
    pub member_id: String,
    /// Its instance, if it is static.
    pub instance_id: Option<String>,
}

impl Coordinator {
    /// A member is alive.
    ///
    /// # Errors
    /// Why it is no member, or that it is to join again.
    pub fn heartbeat(&mut self, member: MemberRef<'_>, now: Now) -> Result<(), GroupError> {
        if member.group.is_empty() {
            return Err(GroupError::InvalidGroupId);
        }
        let group = self.groups.get_mut(member.group).ok_or(GroupError::UnknownMember)?;
        group.check_member(member.id, member.instance_id)?;
        if member.generation != group.generation {
            return Err(GroupError::IllegalGeneration);
        }
        match group.state {
            GroupState::Empty => Err(GroupError::UnknownMember),
            GroupState::PreparingRebalance => {
                group.refresh(member.id, now, &mut self.shared);
                Err(GroupError::RebalanceInProgress)
            }
            GroupState::CompletingRebalance | GroupState::Stable => {
                group.refresh(member.id, now, &mut self.shared);
                Ok(())
            }
        }
    }

    /// Members leave; one result for each.
    ///
    /// # Errors
    /// If the group has no name.
    pub fn leave(
        &mut self,
        name: &str,
        leaving: &[Leaving],
        now: Now,
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        if name.is_empty() {
            return Err(GroupError::InvalidGroupId);
        }
        let results = leaving.iter().map(|member| self.leave_one(name, member, now)).collect();
        self.forget_if_void(name);
        Ok(results)
    }

    fn leave_one(&mut self, name: &str, leaving: &Leaving, now: Now) -> Result<(), GroupError> {
        let group = self.groups.get_mut(name).ok_or(GroupError::UnknownMember)?;
        let instance = leaving.instance_id.as_deref();
        let id = match instance {
            // An administrator knows the instance only.
            Some(instance) if leaving.member_id.is_empty() => {
                group.instances.get(instance).cloned().ok_or(GroupError::UnknownMember)?
            }
            _ => leaving.member_id.clone(),
        };
        if instance.is_none() && group.pending.remove(&id).is_some() {
            group.complete_if_all_joined(now, &mut self.shared);
            return Ok(());
        }
        group.check_member(&id, instance)?;
        group.let_go(&id, now, &mut self.shared);
        Ok(())
    }
}
