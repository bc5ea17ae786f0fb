//! Offsets: who may commit them, who may delete them, which have expired.
//!
//! The offsets themselves are in the [`GroupStore`]; this decides, the log acts.

use std::collections::BTreeSet;

use chronik_engine::ids::GroupId;

use super::coordinator::{Coordinator, Now};
use super::error::GroupError;
use super::group::{Group, GroupState};
use super::membership::MemberRef;
use super::store::{ExpiredOffset, GroupCommand, GroupStore, SavedOffset, StoredGroup};
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

    /// Whether a group may be deleted, and how. It is gone from here with [`Coordinator::deleted`].
    ///
    /// # Errors
    /// If there is none, or somebody is in it.
    pub fn check_delete(&self, name: &str) -> Result<GroupCommand, GroupError> {
        let group = self.groups.get(name).ok_or(GroupError::GroupNotFound)?;
        if group.state != GroupState::Empty {
            return Err(GroupError::NonEmptyGroup);
        }
        Ok(GroupCommand::DeleteGroup { group: name.to_owned() })
    }

    /// The deletion of a group is durable. One that somebody has come to meanwhile stays.
    pub fn deleted(&mut self, name: &str, store: &GroupStore) {
        let is_idle = self.groups.get(name).is_some_and(Group::is_idle);
        if is_idle && store.group(name).is_none() && !self.shared.is_noting(name) {
            self.groups.remove(name);
        }
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

    /// What is to be forgotten: offsets that nobody has used for long enough, those of partitions that are gone, and groups
    /// that nothing is left of. A group goes from here when it is seen to be gone from the log, so that none is lost whose
    /// expiry could not be written.
    pub fn expire_offsets(
        &mut self,
        store: &GroupStore,
        now: Now,
        is_gone: impl Fn(&str, i32, GroupId) -> bool,
    ) -> Vec<GroupCommand> {
        self.forget_absent(store, now);
        let retention_ms = self.shared.config.offsets_retention_ms;
        let mut commands = Vec::new();
        for (name, stored) in store.groups() {
            if commands.len() == EXPIRY_COMMANDS_MAX {
                break;
            }
            self.reload(name, store, now);
            let Some(group) = self.groups.get(name) else { continue };
            let offsets = group.expired(stored, retention_ms, now.wall_ms, &is_gone);
            let count: usize = stored.offsets.values().map(|partitions| partitions.len()).sum();
            let with_group = group.is_idle() && offsets.len() == count;
            if with_group || !offsets.is_empty() {
                let group = name.to_owned();
                commands.push(GroupCommand::Expire { group, offsets, with_group });
            }
        }
        commands
    }

    /// Takes up a group without members that the log has and that is not known here: one that was forgotten while its
    /// first commit was on its way.
    fn reload(&mut self, name: &str, store: &GroupStore, now: Now) {
        let Some(stored) = store.group(name) else { return };
        let has_members = stored.saved.as_ref().is_some_and(|saved| !saved.members.is_empty());
        // One with members is about to be written down as empty, or it would be known.
        if !has_members && !self.groups.contains_key(name) {
            let group = Group::restore(name, stored.saved.as_ref(), now, &mut self.shared);
            self.groups.insert(name.to_owned(), group);
        }
    }

    /// Forgets groups that the log does not have: expired ones, and names of whoever committed nothing.
    fn forget_absent(&mut self, store: &GroupStore, now: Now) {
        let shared = &self.shared;
        let interval_ms = shared.config.offsets_check_interval_ms;
        self.groups.retain(|name, group| {
            // What is young may be on its way to the log.
            let is_young = now.wall_ms.saturating_sub(group.changed_ms) < interval_ms;
            !group.is_idle() || is_young || store.group(name).is_some() || shared.is_noting(name)
        });
    }
}

impl Group {
    /// Whether nobody is in it or about to be.
    fn is_idle(&self) -> bool {
        self.state == GroupState::Empty && self.pending.is_empty()
    }

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

    /// Commits that are too old, or whose partitions are gone.
    fn expired(
        &self,
        stored: &StoredGroup,
        retention_ms: i64,
        now_ms: i64,
        is_gone: &impl Fn(&str, i32, GroupId) -> bool,
    ) -> Vec<ExpiredOffset> {
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
                if is_expired || is_gone(topic, *partition, offset.raft_group) {
                    expired.push(ExpiredOffset {
                        topic: topic.clone(),
                        partition: *partition,
                        committed_ms: offset.committed_ms,
                        raft_group: offset.raft_group,
                    });
                }
            }
        }
        expired
    }
}
