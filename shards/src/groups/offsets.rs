//! Offsets: who may commit them, who may delete them, which have expired.
//!
//! The offsets themselves are in the [`GroupStore`]; this decides, the log acts.

use std::collections::BTreeSet;

use super::coordinator::{Coordinator, Now};
use super::error::GroupError;
use super::group::{Group, GroupState};
use super::membership::MemberRef;
use super::store::{GroupCommand, GroupStore, SavedOffset, StoredGroup};
use super::subscription::{self, CONSUMER};

/// Commands that one look for expired offsets may make; the next look finds the rest.
const EXPIRY_COMMANDS_MAX: usize = 1_000;

/// What a commit says of who commits.
#[derive(Debug, Clone, Copy)]
pub struct CommitCheck<'a> {
    /// Group, member and generation; no member and generation -1 from whoever is none.
    pub member: MemberRef<'a>,
    /// From version 9 on a group that is not there is named as such.
    pub tells_group_not_found: bool,
}

impl Coordinator {
    /// Whether offsets may be committed; a member that does is alive.
    ///
    /// # Errors
    /// Why not.
    pub fn check_commit(&mut self, check: CommitCheck<'_>, now: Now) -> Result<(), GroupError> {
        let CommitCheck { member, tells_group_not_found } = check;
        if !self.groups.contains_key(member.group) {
            if member.generation >= 0 {
                let (found, old) = (GroupError::GroupNotFound, GroupError::IllegalGeneration);
                return Err(if tells_group_not_found { found } else { old });
            }
            // Somebody assigns partitions by themselves and keeps their offsets here.
            self.groups.insert(member.group.to_owned(), Group::empty(member.group, now));
        }
        let Some(group) = self.groups.get_mut(member.group) else {
            return Err(GroupError::GroupNotFound);
        };
        if member.generation < 0 && group.state == GroupState::Empty {
            group.is_stored = true;
            return Ok(());
        }
        let is_named = !member.id.is_empty() || member.instance_id.is_some();
        if member.generation < 0 && !is_named {
            return Err(GroupError::UnknownMember);
        }
        group.check_member(member.id, member.instance_id)?;
        if member.generation != group.generation {
            return Err(GroupError::IllegalGeneration);
        }
        if group.state == GroupState::CompletingRebalance {
            return Err(GroupError::RebalanceInProgress);
        }
        group.refresh(member.id, now, &mut self.shared);
        Ok(())
    }

    /// Which of these offsets may be deleted; one result for each.
    ///
    /// # Errors
    /// Why none may.
    pub fn check_offset_delete(
        &self,
        name: &str,
        partitions: &[(String, i32)],
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        let group = self.groups.get(name).ok_or(GroupError::GroupNotFound)?;
        if group.state == GroupState::Empty {
            return Ok(vec![Ok(()); partitions.len()]);
        }
        if group.protocol_type.as_deref() != Some(CONSUMER) {
            return Err(GroupError::NonEmptyGroup);
        }
        let subscribed = group.subscribed();
        let check = |(topic, _): &(String, i32)| match &subscribed {
            Some(topics) if !topics.contains(topic) => Ok(()),
            _ => Err(GroupError::SubscribedToTopic),
        };
        Ok(partitions.iter().map(check).collect())
    }

    /// Lets go of a group that nobody is in.
    ///
    /// # Errors
    /// If there is none, or somebody is.
    pub fn delete(&mut self, name: &str) -> Result<GroupCommand, GroupError> {
        let group = self.groups.get(name).ok_or(GroupError::GroupNotFound)?;
        if group.state != GroupState::Empty {
            return Err(GroupError::NonEmptyGroup);
        }
        self.groups.remove(name);
        Ok(GroupCommand::DeleteGroup { group: name.to_owned() })
    }

    /// Whether it is time to look for expired offsets; if so the next time is set.
    pub fn is_expiry_due(&mut self, now: Now) -> bool {
        let is_due = now.mono_ms >= self.next_check_ms;
        if is_due {
            let interval_ms = self.shared.config.offsets_check_interval_ms;
            self.next_check_ms = now.mono_ms.saturating_add(interval_ms);
        }
        is_due
    }

    /// What is to be forgotten: offsets that nobody has used for long enough, and groups that nothing is left of.
    pub fn expire_offsets(&mut self, store: &GroupStore, now: Now) -> Vec<GroupCommand> {
        let retention_ms = self.shared.config.offsets_retention_ms;
        let mut commands = Vec::new();
        for (name, stored) in store.groups() {
            if commands.len() == EXPIRY_COMMANDS_MAX {
                break;
            }
            let Some(group) = self.groups.get(name) else { continue };
            let expired = group.expired(stored, retention_ms, now.wall_ms);
            let count: usize = stored.offsets.values().map(|partitions| partitions.len()).sum();
            let is_idle = group.state == GroupState::Empty && group.pending.is_empty();
            let group = name.to_owned();
            if is_idle && expired.len() == count {
                self.groups.remove(name);
                commands.push(GroupCommand::DeleteGroup { group });
            } else if !expired.is_empty() {
                commands.push(GroupCommand::DeleteOffsets { group, partitions: expired });
            }
        }
        commands
    }
}

impl Group {
    /// The topics that the members read; `None` if they do not say so in a way that can be read.
    fn subscribed(&self) -> Option<BTreeSet<String>> {
        if self.protocol_type.as_deref() != Some(CONSUMER) || self.members.is_empty() {
            return None;
        }
        let mut all = BTreeSet::new();
        for member in self.members.values() {
            // Before the protocol is agreed upon any of them will do.
            let metadata = match &self.protocol {
                Some(protocol) => member.metadata(Some(protocol)),
                None => member.protocols.first().map(|(_, bytes)| bytes.clone())?,
            };
            all.extend(subscription::topics(&metadata)?);
        }
        Some(all)
    }

    fn expired(&self, stored: &StoredGroup, retention_ms: i64, now_ms: i64) -> Vec<(String, i32)> {
        let is_over = |offset: &SavedOffset, since_ms: i64| match offset.expires_ms {
            Some(expires_ms) => now_ms >= expires_ms,
            None => now_ms.saturating_sub(since_ms) >= retention_ms,
        };
        let empty_since_ms = (self.state == GroupState::Empty && self.protocol_type.is_some())
            .then_some(self.changed_ms);
        let subscribed = if self.state == GroupState::Stable { self.subscribed() } else { None };
        let is_simple = self.state == GroupState::Empty && self.protocol_type.is_none();
        let mut expired = Vec::new();
        for (topic, partitions) in &stored.offsets {
            let is_dropped = subscribed.as_ref().is_some_and(|topics| !topics.contains(topic));
            for (partition, offset) in partitions {
                let is_expired = match empty_since_ms {
                    // Of a group that was left the offsets are kept from then on.
                    Some(since_ms) => is_over(offset, since_ms.max(offset.committed_ms)),
                    None => (is_simple || is_dropped) && is_over(offset, offset.committed_ms),
                };
                if is_expired {
                    expired.push((topic.clone(), *partition));
                }
            }
        }
        expired
    }
}
