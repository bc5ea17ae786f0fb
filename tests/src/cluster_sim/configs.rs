//! Who belongs to a group, as its committed log says: each change of members applied from its bytes alone, by the rules of
//! Raft's paper for joint configurations, without the code that is looked at.

use std::collections::{BTreeMap, BTreeSet};

use chronik_engine::ids::ReplicaId;
use chronik_engine::wal::record::EntryKind;
use chronik_replication::{ConfChangeTransition, ConfChangeType, ConfChangeV2, Members};
use protobuf::Message as _;

use super::replica::Known;
use super::{Check, Violation};

type Ids = BTreeSet<ReplicaId>;

/// One configuration, or two while one is left for the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Who votes.
    pub voters: Ids,
    /// Who voted, while that configuration is being left.
    pub outgoing: Ids,
    learners: Ids,
    learners_next: Ids,
}

fn majority_of(voters: &Ids, holds: &impl Fn(ReplicaId) -> bool) -> bool {
    voters.iter().filter(|voter| holds(**voter)).count() > voters.len() / 2
}

impl Config {
    /// A group that begins with these voters.
    pub fn of(voters: &[ReplicaId]) -> Config {
        Config { voters: voters.iter().copied().collect(), ..Config::default() }
    }

    /// Whether a quorum of each of the two holds something.
    pub fn has_quorum(&self, holds: impl Fn(ReplicaId) -> bool) -> bool {
        let is_left = self.outgoing.is_empty() || majority_of(&self.outgoing, &holds);
        is_left && majority_of(&self.voters, &holds)
    }

    /// Whether it is two that vote, and nothing else is under way.
    pub fn is_pair(&self) -> bool {
        self.voters.len() == 2 && self.outgoing.is_empty()
    }

    /// The other one, where `replica` votes with just one more.
    fn other_of_two(&self, replica: ReplicaId) -> Option<ReplicaId> {
        let pair = [&self.voters, &self.outgoing]
            .into_iter()
            .find(|voters| voters.len() == 2 && voters.contains(&replica))?;
        pair.iter().copied().find(|other| *other != replica)
    }

    /// Whether `replica` belongs to it.
    pub fn has(&self, replica: ReplicaId) -> bool {
        let lists = [&self.voters, &self.outgoing, &self.learners];
        lists.iter().any(|list| list.contains(&replica))
    }

    /// Whether a core has just these members.
    pub fn is(&self, members: &Members) -> bool {
        let same = |ours: &Ids, theirs: &[ReplicaId]| *ours == theirs.iter().copied().collect();
        same(&self.voters, &members.voters)
            && same(&self.outgoing, &members.voters_outgoing)
            && same(&self.learners, &members.learners)
            && same(&self.learners_next, &members.learners_next)
    }

    /// Whether these are all members.
    pub fn is_just(&self, voters: &[ReplicaId], learners: &[ReplicaId]) -> bool {
        let learners = learners.iter().copied().collect();
        *self == Config { learners, ..Config::of(voters) }
    }

    /// The configuration after an entry with a change of members.
    pub fn after(&self, payload: &[u8]) -> Check<Config> {
        let mut change = ConfChangeV2::default();
        change
            .merge_from_bytes(payload)
            .map_err(|error| Violation { what: format!("P25: a change of members: {error}") })?;
        let mut next = self.clone();
        if change.get_changes().is_empty() {
            next.outgoing.clear();
            next.learners.append(&mut next.learners_next);
            return Ok(next);
        }
        let is_auto = change.get_transition() == ConfChangeTransition::Auto;
        if !is_auto || change.get_changes().len() > 1 {
            next.outgoing = next.voters.clone();
        }
        for single in change.get_changes() {
            next.change(single.get_change_type(), ReplicaId(single.node_id));
        }
        Ok(next)
    }

    fn change(&mut self, kind: ConfChangeType, replica: ReplicaId) {
        if kind == ConfChangeType::AddLearnerNode && self.learners.contains(&replica) {
            return;
        }
        self.voters.remove(&replica);
        self.learners.remove(&replica);
        self.learners_next.remove(&replica);
        match kind {
            ConfChangeType::AddNode => _ = self.voters.insert(replica),
            ConfChangeType::AddLearnerNode if self.outgoing.contains(&replica) => {
                self.learners_next.insert(replica);
            }
            ConfChangeType::AddLearnerNode => _ = self.learners.insert(replica),
            ConfChangeType::RemoveNode => {}
        }
    }
}

/// The configurations of a group, each from the entry on that brings it.
#[derive(Debug, Default)]
pub(super) struct Configs {
    after: BTreeMap<usize, Config>,
}

impl Configs {
    /// A replica was made: the first one that votes tells what the group begins with.
    pub(super) fn begin(&mut self, replica: ReplicaId, voters: &[ReplicaId]) {
        if self.after.is_empty() && voters.contains(&replica) {
            self.after.insert(0, Config::of(voters));
        }
    }

    /// An entry is committed, with which the log has `length` entries.
    pub(super) fn committed(&mut self, length: usize, known: &Known) -> Check {
        if known.kind == EntryKind::ConfChange {
            let next = self.newest().unwrap_or_default().after(&known.payload)?;
            self.after.insert(length, next);
        }
        Ok(())
    }

    /// What the committed log comes to.
    pub(super) fn newest(&self) -> Option<Config> {
        self.after.last_key_value().map(|(_, config)| config.clone())
    }

    /// What the first `length` entries come to.
    pub(super) fn at(&self, length: usize) -> Option<&Config> {
        self.after.range(..=length).next_back().map(|(_, config)| config)
    }

    /// The other one, where `replica` votes with just one more by one of the newest two.
    pub(super) fn other_of_two(&self, replica: ReplicaId) -> Option<ReplicaId> {
        self.after.values().rev().take(2).find_map(|config| config.other_of_two(replica))
    }

    /// Whether an entry may be committed by those who hold it. A leader counts with what it has applied: with the newest
    /// configuration before the entry, or the one before that.
    pub(super) fn may_commit(&self, holds: impl Fn(ReplicaId) -> bool) -> bool {
        self.after.values().rev().take(2).any(|config| config.has_quorum(&holds))
    }
}
