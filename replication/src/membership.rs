//! Who belongs to a group: configurations, one or two at a time, and how a group gets from one to another.
//!
//! A change of more than one voter leads through a *joint* configuration: until it is left, both the incoming and the
//! outgoing voters must agree to everything, so there is no moment at which two quorums could decide apart. A change
//! counts when it is applied, not when it is appended; each is applied before the next may be proposed.
//!
//! Invariants: (I1) what is kept of a configuration is all of it, so that a restart or a snapshot in the middle of a
//! joint configuration goes on in it; (I2) who does not vote does not lead: a leader that applies its own removal steps
//! down in the same call, since raft-rs ends the process if it goes on counting; (I3) raft-rs is given only
//! configurations that it can take as they are, because it ends the process over others; (I4) who has left may be deleted
//! only once [`RaftGroup::are_members_durable`]; (I5) once two voters are a quorum only together, each of them has all that
//! was committed before.
//!
//! For (I5) nothing is appended between a change that leads to such a pair and the moment when the leader has applied it:
//! the entries behind it would be committed by a majority of the configuration before, in which one of the pair may be
//! missing. Whoever answers for a replica whose disk is lost relies on that.
//!
//! Why (I4) is more than that the change is committed: its commit index is not worth a write of its own, so after a restart
//! those who stay may not know that it is committed. They would want the votes of the configuration that was left, and
//! these are gone for good. It would not do either that the leader writes it down: without the leader the others must
//! find one among themselves. So an entry has to follow that was appended by a leader which had applied the change, and
//! that is committed: a majority of the new members holds it, whoever holds it got the commit index of the change with
//! it, as one write (I3 of [`crate::ready`]), and of any majority only one who holds it can be elected. Where nothing else
//! is proposed the leader appends an empty entry for that.

use chronik_engine::ids::{RaftIndex, ReplicaId};
use chronik_engine::wal::record::{EntryKind, GroupMeta, LogEntry};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeV2, ConfState, Entry, EntryType};
use raft::{Changer, INVALID_ID, ProgressTracker};

use crate::entry::EntryMeta;
use crate::error::{ChangeError, ConfChangeError, MembersError, ProposeError};
use crate::group::RaftGroup;

/// The most members that a group has, all lists together: who votes stands in two of them while a configuration is left,
/// and beside those there are replicas for readers.
const MEMBERS_MAX: usize = 96;
/// The most bytes of a change: each member of two configurations takes 15 or less.
const CHANGE_BYTES_MAX: usize = 4_096;

/// The members of a group: one configuration, or two while one is left for the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// Who votes; in a joint configuration in the incoming one.
    pub voters: Vec<ReplicaId>,
    /// Who gets the log and does not vote.
    pub learners: Vec<ReplicaId>,
    /// In a joint configuration, who votes in the one that is being left. Else empty.
    pub voters_outgoing: Vec<ReplicaId>,
    /// In a joint configuration, who votes in the outgoing one and is a learner afterwards. Else empty.
    pub learners_next: Vec<ReplicaId>,
    /// Whether the joint configuration is left by itself.
    pub auto_leave: bool,
}

impl Members {
    /// The members that a group's placement names.
    #[must_use]
    pub fn of(meta: &GroupMeta) -> Members {
        Members {
            voters: meta.voters.clone(),
            learners: meta.learners.clone(),
            voters_outgoing: meta.voters_outgoing.clone(),
            learners_next: meta.learners_next.clone(),
            auto_leave: meta.auto_leave,
        }
    }

    /// Puts them in the place of those that a placement names.
    pub fn put_into(self, meta: &mut GroupMeta) {
        meta.voters = self.voters;
        meta.learners = self.learners;
        meta.voters_outgoing = self.voters_outgoing;
        meta.learners_next = self.learners_next;
        meta.auto_leave = self.auto_leave;
    }

    /// Raft-rs keeps sets; here all replicas name the members in the same order.
    pub(crate) fn from_raft(state: &ConfState) -> Members {
        let sorted = |ids: &[u64]| {
            let mut replicas: Vec<_> = ids.iter().copied().map(ReplicaId).collect();
            replicas.sort_unstable();
            replicas
        };
        Members {
            voters: sorted(state.get_voters()),
            learners: sorted(state.get_learners()),
            voters_outgoing: sorted(state.get_voters_outgoing()),
            learners_next: sorted(state.get_learners_next()),
            auto_leave: state.auto_leave,
        }
    }

    pub(crate) fn to_raft(&self) -> ConfState {
        let ids = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.0).collect();
        ConfState {
            voters: ids(&self.voters),
            learners: ids(&self.learners),
            voters_outgoing: ids(&self.voters_outgoing),
            learners_next: ids(&self.learners_next),
            auto_leave: self.auto_leave,
            ..ConfState::default()
        }
    }

    /// Whether one configuration is being left for another.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether `replica` votes, in either configuration.
    #[must_use]
    pub fn votes(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.voters_outgoing.contains(&replica)
    }

    /// Whether `replica` is a member, in either configuration.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        // Who is to become a learner still votes in the outgoing configuration.
        self.votes(replica) || self.learners.contains(&replica)
    }

    /// Whether a pair of voters is to decide, alone or in one half of a joint configuration, that did not before.
    fn narrows(&self, before: &Members) -> bool {
        let halves = [&self.voters, &self.voters_outgoing];
        halves.into_iter().any(|half| {
            half.len() == 2 && *half != before.voters && *half != before.voters_outgoing
        })
    }

    /// Refuses what raft-rs would not come to by any change (I3). No members at all are right for a replica that has
    /// not heard of any yet.
    pub(crate) fn check(&self) -> Result<(), MembersError> {
        let lists = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        let count = lists.iter().map(|list| list.len()).sum();
        if count > MEMBERS_MAX {
            return Err(MembersError::TooMany { count });
        }
        for list in lists {
            for (at, replica) in list.iter().enumerate() {
                if *replica == ReplicaId::NONE {
                    return Err(MembersError::NoReplica);
                }
                if list[..at].contains(replica) {
                    return Err(MembersError::Twice { replica: *replica });
                }
            }
        }
        if self.voters.is_empty() && count > 0 {
            return Err(MembersError::NoVoter);
        }
        if let Some(replica) = self.learners.iter().find(|replica| self.votes(**replica)) {
            return Err(MembersError::Twice { replica: *replica });
        }
        let leaves = |replica: &&ReplicaId| {
            !self.voters_outgoing.contains(replica) || self.voters.contains(replica)
        };
        if let Some(replica) = self.learners_next.iter().find(leaves) {
            return Err(MembersError::NotOutgoing { replica: *replica });
        }
        if self.auto_leave && !self.is_joint() {
            return Err(MembersError::NotJoint);
        }
        Ok(())
    }
}

/// The change that an entry carries. Its bytes are raft-rs's own encoding, which knows more than is ever said: whatever
/// encodes to other bytes than it was decoded from is none that [`RaftGroup::propose_conf_change`] made, and once
/// committed it would stop every replica.
pub(crate) fn change_of(payload: &[u8]) -> Result<ConfChangeV2, ChangeError> {
    let bytes = payload.len();
    if bytes > CHANGE_BYTES_MAX {
        return Err(ChangeError::TooLarge { bytes, bytes_max: CHANGE_BYTES_MAX });
    }
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(payload).map_err(|_| ChangeError::Encoding)?;
    // What is not known is kept when it is decoded, and so would be encoded again.
    let known = |single: &ConfChangeSingle| ConfChangeSingle {
        change_type: single.change_type,
        node_id: single.node_id,
        ..ConfChangeSingle::default()
    };
    let ours = ConfChangeV2 {
        transition: change.transition,
        changes: change.changes.iter().map(known).collect(),
        ..ConfChangeV2::default()
    };
    if !ours.write_to_bytes().is_ok_and(|bytes| bytes == payload) {
        return Err(ChangeError::Encoding);
    }
    if ours.changes.iter().any(|single| single.node_id == ReplicaId::NONE.0) {
        return Err(ChangeError::NoReplica);
    }
    Ok(ours)
}

/// What a change makes of a configuration, as raft-rs will when it is applied.
pub(crate) fn changed(
    before: &ProgressTracker,
    change: &ConfChangeV2,
) -> raft::Result<(Members, ProgressTracker)> {
    let mut after = before.clone();
    let mut changer = Changer::new(before);
    let (configuration, progress) = if change.leave_joint() {
        changer.leave_joint()
    } else if let Some(auto_leave) = change.enter_joint() {
        changer.enter_joint(auto_leave, &change.changes)
    } else {
        changer.simple(&change.changes)
    }?;
    let members = Members::from_raft(&configuration.to_conf_state());
    after.apply_conf(configuration, progress, 1);
    Ok((members, after))
}

impl RaftGroup {
    /// Proposes to change who belongs to the group. One voter or learner at a time goes directly; several, or one with
    /// a transition asked for, lead through a joint configuration, which is left by itself unless the transition is
    /// explicit: then a change without changes leaves it.
    ///
    /// A replica that is to be added begins with the members of about that time, itself among the learners. Its log may
    /// begin long before that; what it makes of the changes in there does not matter until it comes to the one that
    /// adds it, and from there on it is right, because a replica id is given out once.
    ///
    /// The order that keeps a group available: add a learner, let it catch up, then make voters and learners of all of
    /// them in one joint change; remove who has become a learner last.
    pub fn propose_conf_change(
        &mut self,
        change: &ConfChangeV2,
    ) -> Result<RaftIndex, ProposeError> {
        if !self.is_leader() {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        let data = change
            .write_to_bytes()
            .map_err(|source| ProposeError::Raft { source: raft::Error::CodecError(source) })?;
        change_of(&data).map_err(|source| ProposeError::Change { source })?;
        if self.node.raft.has_pending_conf() {
            // Raft-rs would append an empty entry in its place.
            return Err(ProposeError::ConfChangePending);
        }
        // With none pending, this is the configuration that it will be applied to. Once committed, a change that
        // cannot be applied would stop every replica.
        let leaves = change.leave_joint();
        if change.changes.is_empty() != leaves {
            return Err(ProposeError::ConfChangeEmpty);
        }
        let (members, _) = changed(self.node.raft.prs(), change)
            .map_err(|source| ProposeError::ConfChangeInvalid { source })?;
        members.check().map_err(|source| ProposeError::Members { source })?;
        let narrows = members.narrows(&self.members());
        let meta = EntryMeta::without_offsets(EntryKind::ConfChange, self.end_offset());
        let index = self.propose_entry(Entry {
            entry_type: EntryType::EntryConfChangeV2,
            data: data.into(),
            context: meta.to_context(),
            ..Entry::default()
        })?;
        self.narrows = narrows;
        Ok(index)
    }

    /// Whether a change that makes a pair decide is proposed and not applied: nothing may be appended behind it (I5).
    pub(crate) fn is_narrowing(&self) -> bool {
        self.narrows && self.node.raft.has_pending_conf()
    }

    /// Applies a committed configuration change and returns the group's placement with the new configuration. To be
    /// called with each such entry, before [`RaftGroup::advance_applied`] with its index.
    pub fn apply_conf_change(&mut self, entry: &LogEntry) -> Result<&GroupMeta, ConfChangeError> {
        assert!(entry.kind == EntryKind::ConfChange, "{:?} at {}", entry.kind, entry.index);
        let index = entry.index;
        let change = change_of(&entry.payload)
            .map_err(|source| ConfChangeError::Malformed { index, source })?;
        let state = self
            .node
            .apply_conf_change(&change)
            .map_err(|source| ConfChangeError::Raft { index, source })?;
        Members::from_raft(&state).put_into(&mut self.meta);
        self.members_changed_at = self.last_index();
        if self.is_leader() && !self.node.raft.promotable() {
            self.hand_over_and_step_down();
        }
        self.keep_election_timeout();
        Ok(&self.meta)
    }

    /// Whether this replica is a member of the group, as far as it has applied the log. One that was and is not any
    /// more gets no entries, and its owner may delete it once the others have a leader: until then they may need its
    /// vote, since they may not know yet that its removal is committed. It may never learn of that itself, so that a
    /// catalog must say so, too.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.has_member(self.replica())
    }

    /// The members of the group, as of the last applied entry.
    #[must_use]
    pub fn members(&self) -> Members {
        Members::of(&self.meta)
    }

    /// Whether this replica leads and the members, of one configuration, are known for good: whatever restarts, a majority
    /// of them finds a leader without anybody who is none of them (I4).
    #[must_use]
    pub fn are_members_durable(&self) -> bool {
        // The last entry that is committed is of its term, so it has appended it, and after the change.
        self.is_established_leader()
            && self.meta.voters_outgoing.is_empty()
            && self.commit_index() > self.members_changed_at
    }

    pub(crate) fn has_member(&self, replica: ReplicaId) -> bool {
        self.node.raft.prs().get(replica.0).is_some()
    }

    pub(crate) fn is_voter(&self, replica: ReplicaId) -> bool {
        self.node.raft.prs().conf().voters().contains(replica.0)
    }

    /// Lets the voter that has caught up most lead in place of this replica, which votes no more (I2). The others are
    /// told before that the change is committed.
    fn hand_over_and_step_down(&mut self) {
        let raft = &mut self.node.raft;
        raft.bcast_append();
        let voters = raft.prs().conf().voters();
        let heard = raft
            .prs()
            .iter()
            .filter(|(id, progress)| voters.contains(**id) && progress.recent_active);
        let next = heard.max_by_key(|(id, progress)| (progress.matched, **id)).map(|(id, _)| *id);
        if let Some(next) = next {
            raft.send_timeout_now(next);
        }
        let term = raft.term;
        raft.become_follower(term, INVALID_ID);
    }

    /// As leader, leaves a joint configuration that is to be left by itself and that nobody leaves: raft-rs proposes
    /// that when it applies the change that led there, and forgets it if leadership is lost in between. True if it did.
    pub(crate) fn leave_joint_if_idle(&mut self) -> bool {
        let raft = &self.node.raft;
        let is_due = self.is_leader()
            && *raft.prs().conf().auto_leave()
            && !raft.has_pending_conf()
            && raft.lead_transferee.is_none();
        // Refused, it is due again with the next tick.
        is_due && self.propose_conf_change(&ConfChangeV2::default()).is_ok()
    }

    /// As leader, appends an empty entry behind a change of the members that nothing follows (I4). True if it did.
    pub(crate) fn cover_members_if_idle(&mut self) -> bool {
        if !self.is_leader() {
            return false;
        }
        // What was the end of the log then may have been replaced by a shorter one since.
        self.members_changed_at = self.members_changed_at.min(self.last_index());
        let is_due =
            self.last_index() == self.members_changed_at && self.meta.voters_outgoing.is_empty();
        // Refused, it is due again with the next tick.
        is_due && self.propose_entry(Entry::default()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft::storage::MemStorage;
    use raft::{Config, RawNode};
    use slog::{Discard, Logger, o};

    /// Raft-rs itself with this configuration; it ends the process over one that it cannot take.
    fn restored(members: &Members) -> Members {
        let store = MemStorage::new_with_conf_state(members.to_raft());
        let config = Config { id: 1, ..Config::default() };
        match RawNode::new(&config, store, &Logger::root(Discard, o!())) {
            Ok(node) => Members::from_raft(&node.raft.prs().conf().to_conf_state()),
            Err(_) => Members::default(),
        }
    }

    fn ids() -> impl Strategy<Value = Vec<ReplicaId>> {
        proptest::collection::vec(0_u64..6, 0..4)
            .prop_map(|ids| ids.into_iter().map(ReplicaId).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn given_any_members_when_they_pass_the_check_then_raft_takes_them_as_they_are(
            voters in ids(), learners in ids(), voters_outgoing in ids(), learners_next in ids(),
            auto_leave in any::<bool>(),
        ) {
            let mut members =
                Members { voters, learners, voters_outgoing, learners_next, auto_leave };
            if members.check().is_ok() && !members.voters.is_empty() {
                members.voters.sort_unstable();
                members.learners.sort_unstable();
                members.voters_outgoing.sort_unstable();
                members.learners_next.sort_unstable();
                prop_assert_eq!(restored(&members), members);
            }
        }
    }
}
