//! Replicas with ids from 1 on, and all that is known of them together.

use std::collections::BTreeMap;

use chronik_engine::ids::{Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{EntryKind, LogEntry, LogPosition, WalRecord};
use chronik_replication::{
    ConfChangeTransition, ConfChangeType, ConfChangeV2, Members, Message, ProposeError, RaftGroup,
    ReadyOutput, Role, StepError,
};

use protobuf::Message as _;

use super::{GROUP, Replica, replica, replicas};

/// Replicas with ids from 1 on, and all that is known of them together.
pub struct Cluster {
    pub replicas: Vec<Replica>,
    pub network: Vec<Message>,
    /// What is committed, by index from 1 on; nothing here ever changes but for cut payloads that become whole.
    pub committed: Vec<LogEntry>,
    pub leaders: BTreeMap<Term, u64>,
    /// Whether snapshots are made as soon as they are wanted.
    pub supplies_snapshots: bool,
    /// From which index on which members there are.
    pub configurations: BTreeMap<RaftIndex, Members>,
    next_name: u64,
}

impl Cluster {
    pub fn new(voters: u64) -> Cluster {
        Cluster::with_learners(voters, 0)
    }

    pub fn with_learners(voters: u64, learners: u64) -> Cluster {
        let voter_ids: Vec<u64> = (1..=voters).collect();
        let learner_ids: Vec<u64> = (voters + 1..=voters + learners).collect();
        let all = (1..=voters + learners).map(|id| Replica::new(id, &voter_ids, &learner_ids));
        let members = Members {
            voters: replicas(&voter_ids),
            learners: replicas(&learner_ids),
            ..Members::default()
        };
        Cluster {
            replicas: all.collect(),
            network: Vec::new(),
            committed: Vec::new(),
            leaders: BTreeMap::new(),
            supplies_snapshots: true,
            configurations: [(RaftIndex(0), members)].into(),
            next_name: 1,
        }
    }

    /// Blank replicas that wait to be added.
    pub fn add_blanks(&mut self, count: usize) {
        for _ in 0..count {
            self.add_blank();
        }
    }

    /// A blank replica that waits to be added.
    pub fn add_blank(&mut self) -> u64 {
        let id = self.replicas.len() as u64 + 1;
        let first = &self.configurations[&RaftIndex(0)].voters;
        let voters: Vec<u64> = first.iter().map(|voter| voter.0).collect();
        self.replicas.push(Replica::new(id, &voters, &[id]));
        id
    }

    pub fn replica(&mut self, id: u64) -> &mut Replica {
        &mut self.replicas[usize::try_from(id).unwrap() - 1]
    }

    pub fn group(&mut self, id: u64) -> &mut RaftGroup {
        self.replica(id).group()
    }

    /// Takes all readies of a replica; nothing becomes durable by it, nothing is applied but a snapshot.
    pub fn drain(&mut self, id: u64) {
        let at = usize::try_from(id).unwrap() - 1;
        loop {
            if self.replicas[at].group.is_none() {
                return;
            }
            let mut fetches = Vec::new();
            self.replicas[at].group().take_fetches(&mut fetches);
            for fetch in fetches {
                // A part of them is an answer too.
                let mut entries = self.replicas[at].disk.range(fetch.from, fetch.up_to);
                entries.truncate(2);
                self.replicas[at].group().on_entries_fetched(fetch.from, entries);
            }
            if self.supplies_snapshots {
                self.replicas[at].begin_snapshot();
                self.replicas[at].supply_snapshot();
            }
            let group = self.replicas[at].group();
            if group.has_fetches() {
                continue;
            }
            if !group.has_ready() {
                assert!(group.ready(&mut ReadyOutput::default()).is_none());
                return;
            }
            self.take_ready(at);
        }
    }

    fn take_ready(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        let mut out = ReadyOutput::default();
        let number = replica.group().ready(&mut out);
        assert_eq!(number.is_some(), !out.records.is_empty(), "a number is for records");
        if let Some(number) = number {
            replica.in_flight.push_back((number, out.records));
        }
        if let Some(change) = out.role
            && change.role == Role::Leader
        {
            let id = replica.id;
            let leader = *self.leaders.entry(change.term).or_insert(id);
            assert_eq!(leader, id, "two leaders in {}", change.term);
        }
        self.network.extend(out.messages.into_iter().map(|m| m.message));
        if let Some(install) = out.snapshot {
            replica.install(&install);
            let members = replica.members();
            self.check_installed(at, install.position, &members);
        }
        for entry in out.committed {
            self.check_committed(at, &entry);
            self.replicas[at].committed.push_back(entry);
        }
    }

    /// A snapshot is what the log up to there makes, and names who belonged to the group then.
    fn check_installed(&mut self, at: usize, position: LogPosition, members: &Members) {
        let replica = &self.replicas[at];
        assert_eq!(replica.state.len() as u64, position.index.0);
        for (applied, committed) in replica.state.iter().zip(&self.committed) {
            check_same(applied, committed);
        }
        let known = self.configurations.range(..=position.index).next_back();
        assert_eq!(known.map(|(_, known)| known), Some(members), "as of {position:?}");
    }

    fn check_committed(&mut self, at: usize, entry: &LogEntry) {
        let replica = &mut self.replicas[at];
        let before = replica.committed.back().or(replica.state.last());
        let expected = before.map_or(RaftIndex(1), |entry| entry.index.next());
        assert_eq!(entry.index, expected, "in order, each once, on replica {}", replica.id);
        let held = replica.disk.entry(entry.index).map(|held| held.term);
        assert_eq!(held, Some(entry.term), "what commits is durable where it is applied");
        if let Some(name) = replica.proposed.remove(&(entry.index, entry.term)) {
            assert_eq!(entry.payload[..8], name.to_le_bytes());
            replica.acked.push((entry.index, entry.base_offset, name));
        }
        let index = usize::try_from(entry.index.0).unwrap() - 1;
        let Some(known) = self.committed.get_mut(index) else {
            self.check_quorum(entry);
            assert_eq!(index, self.committed.len(), "committed without a gap");
            self.committed.push(entry.clone());
            if entry.kind == EntryKind::ConfChange {
                let (_, before) = self.configurations.last_key_value().unwrap();
                let after = changed(before, &entry.payload);
                self.configurations.insert(entry.index, after);
            }
            return;
        };
        let common = known.payload.len().min(entry.payload.len());
        assert_eq!(known.payload[..common], entry.payload[..common], "one entry for ever");
        if entry.payload.len() > known.payload.len() {
            known.payload = entry.payload.clone();
        }
        let same = LogEntry { payload: known.payload.clone(), ..entry.clone() };
        assert_eq!(*known, same, "one entry for ever");
    }

    /// An entry is committed by a quorum of a configuration that was in force then: the last before it, or the one
    /// before that where the leader had not applied the last.
    fn check_quorum(&self, entry: &LogEntry) {
        let holds = |replica: &ReplicaId| {
            let holder = &self.replicas[usize::try_from(replica.0).unwrap() - 1];
            holder.disk.holds(entry.index, entry.term)
        };
        let majority = |voters: &[ReplicaId]| {
            voters.is_empty()
                || voters.iter().filter(|voter| holds(voter)).count() > voters.len() / 2
        };
        let mut in_force = self.configurations.range(..entry.index).rev().take(2);
        let decided = in_force
            .any(|(_, members)| majority(&members.voters) && majority(&members.voters_outgoing));
        assert!(decided, "{} of {} is on too few disks", entry.index, entry.term);
    }

    /// Applies up to `count` committed entries.
    pub fn apply(&mut self, id: u64, count: usize) {
        for (index, members) in self.replica(id).apply(count) {
            // Who is not added yet may think differently.
            let until = self.configurations.range(..=index);
            let is_added = until.clone().any(|(_, members)| members.contains(replica(id)));
            let known = until.last().map(|(_, members)| members);
            if is_added {
                assert_eq!(known, Some(&members), "a change leads everybody to the same members");
            }
        }
    }

    pub fn persist_one(&mut self, id: u64) {
        if self.replica(id).group.is_some() {
            let messages = self.replica(id).persist_one();
            self.network.extend(messages.into_iter().map(|m| m.message));
        }
    }

    /// Persists, applies and drains one replica until it wants nothing more.
    pub fn settle(&mut self, id: u64) {
        if self.replica(id).group.is_none() {
            return;
        }
        loop {
            self.drain(id);
            self.apply(id, usize::MAX);
            if self.replica(id).in_flight.is_empty() && !self.group(id).has_ready() {
                return;
            }
            self.persist_one(id);
        }
    }

    pub fn deliver(&mut self, message: Message) {
        let from = ReplicaId(message.from);
        // What raft-rs knows may be newer: it takes the members of a snapshot when it accepts that.
        let is_moving = self.configurations.len() > 1;
        let knows = !is_moving && self.replica(message.to).members().contains(from);
        let replica = self.replica(message.to);
        if let Some(group) = &mut replica.group {
            match group.step(message) {
                // It can come late, or twice.
                Ok(()) | Err(StepError::NotOurLeader { .. }) => {}
                // Who has left the group may not know, and who is new to it may not be known.
                Err(StepError::WrongSender { .. }) if !knows => {}
                Err(error) => panic!("a correct peer was refused: {error:?}"),
            }
        }
    }

    /// Everything that is on its way arrives, and all that follows from it.
    pub fn settle_all(&mut self) {
        let ids: Vec<u64> = self.replicas.iter().map(|r| r.id).collect();
        loop {
            for id in &ids {
                self.settle(*id);
            }
            if self.network.is_empty() {
                return;
            }
            for message in std::mem::take(&mut self.network) {
                self.deliver(message);
            }
        }
    }

    /// Elects `id`: the others have long not heard of a leader.
    pub fn elect(&mut self, id: u64) {
        for _ in 0..60 {
            for replica in self.replicas.iter_mut().filter(|r| r.id != id && !r.is_leader()) {
                if let Some(group) = &mut replica.group {
                    group.tick();
                }
            }
        }
        assert!(self.group(id).campaign());
        self.settle_all();
        assert!(self.group(id).is_established_leader(), "{:?}", self.group(id));
    }

    pub fn propose(&mut self, id: u64, count: u32) -> Result<(RaftIndex, Offset), ProposeError> {
        self.next_name += 1;
        let name = self.next_name;
        self.replica(id).propose(name, count)
    }

    /// Proposes a change and lets all that follows from it happen, ticks included.
    pub fn change(&mut self, id: u64, change: &ConfChangeV2) {
        self.group(id).propose_conf_change(change).unwrap();
        self.settle_all();
        self.pass(40);
    }

    /// Ticks pass, and everything arrives.
    pub fn pass(&mut self, ticks: usize) {
        for _ in 0..ticks.div_ceil(10) {
            self.tick_all(10);
            self.settle_all();
        }
    }

    /// The leader that everybody in its group follows, and who takes proposals.
    pub fn leader(&mut self) -> Option<u64> {
        let is_established =
            |r: &&Replica| r.group.as_ref().is_some_and(RaftGroup::is_established_leader);
        let leader = self
            .replicas
            .iter()
            .filter(is_established)
            .max_by_key(|r| r.group.as_ref().map(RaftGroup::term).unwrap_or_default())?;
        let (id, members) = (leader.id, leader.members());
        let is_followed = self.members_of(&members).all(|member| {
            member.group.as_ref().is_some_and(|group| group.leader() == Some(replica(id)))
        });
        (is_followed && !members.is_joint()).then_some(id)
    }

    fn members_of(&self, members: &Members) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|r| members.contains(replica(r.id)))
    }

    /// Everything works again: a leader is found, and a new entry reaches everybody who belongs to the group.
    pub fn heal(&mut self) {
        self.supplies_snapshots = true;
        for replica in &mut self.replicas {
            if replica.group.is_none() {
                replica.start();
            }
            replica.supply_snapshot();
        }
        for _ in 0..3_000 {
            self.settle_all();
            if let Some(id) = self.leader()
                && let Ok((index, _)) = self.propose(id, 1)
            {
                self.settle_all();
                for _ in 0..20 {
                    self.pass(20);
                    let members = self.replica(id).members();
                    let has_applied = |r: &Replica| r.state.len() as u64 >= index.0;
                    if self.members_of(&members).all(has_applied) {
                        self.check_all_applied(&members);
                        return;
                    }
                }
                let groups: Vec<_> = self.replicas.iter().map(|r| r.group.as_ref()).collect();
                panic!("not everybody has applied {index}: {groups:#?}");
            }
            self.tick_all(1);
        }
        let groups: Vec<_> =
            self.replicas.iter().map(|r| (r.members(), r.group.as_ref())).collect();
        panic!("no leader was found: {groups:#?}");
    }

    pub fn tick_all(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for group in self.replicas.iter_mut().filter_map(|r| r.group.as_mut()) {
                group.tick();
            }
        }
    }

    fn check_all_applied(&self, members: &Members) {
        for replica in self.members_of(members) {
            assert_eq!(replica.state.len(), self.committed.len(), "replica {}", replica.id);
            assert_eq!(replica.members(), *members, "replica {}", replica.id);
        }
        for replica in &self.replicas {
            for (applied, committed) in replica.state.iter().zip(&self.committed) {
                check_same(applied, committed);
            }
            for (index, base_offset, name) in &replica.acked {
                let entry = &self.committed[usize::try_from(index.0).unwrap() - 1];
                assert_eq!(entry.base_offset, *base_offset, "an acknowledged batch has moved");
                assert_eq!(entry.payload[..8], name.to_le_bytes(), "an acknowledged batch is lost");
            }
        }
    }

    /// Cuts the log of a replica as far as every replica has applied it on disk: nobody can need the rest.
    pub fn compact_applied(&mut self, id: u64) {
        let least = self.replicas.iter().map(|r| r.disk.checkpoint.applied).min().unwrap();
        let Some(group) = &mut self.replica(id).group else { return };
        // Without snapshots a leader must keep what it does not know to be everywhere.
        let slowest = group.progress().iter().map(|peer| peer.matched).min();
        let least = slowest.map_or(least, |matched| matched.min(least));
        self.cut(id, least);
    }

    /// Cuts the log of a replica as far as its own checkpoint allows: whoever is behind that needs a snapshot.
    pub fn compact_all(&mut self, id: u64) {
        let applied = self.replica(id).disk.checkpoint.applied;
        self.cut(id, applied);
    }

    fn cut(&mut self, id: u64, index: RaftIndex) {
        let Some(group) = &mut self.replica(id).group else { return };
        // What a snapshot holds that is durable and not installed is not applied.
        let end = group.last_durable().index.min(group.applied());
        if index <= group.log_start().index || index > end {
            return;
        }
        // A snapshot on its way to the disk has cut the log already.
        if !self.replica(id).in_flight.is_empty() {
            return;
        }
        let position = self.group(id).compact(index);
        assert_eq!(self.group(id).log_start(), position);
        let offset = self.committed[usize::try_from(index.0).unwrap() - 1].end_offset();
        let record = WalRecord::LogStart { group: GROUP, position, offset };
        self.replica(id).disk.write(&record);
    }
}

/// What a committed change makes of the members, as Raft's joint consensus has it.
fn changed(before: &Members, payload: &[u8]) -> Members {
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(payload).unwrap();
    let mut members = before.clone();
    if change.changes.is_empty() {
        members.learners.append(&mut members.learners_next);
        members.voters_outgoing.clear();
        members.auto_leave = false;
    } else if change.transition != ConfChangeTransition::Auto || change.changes.len() > 1 {
        assert!(!before.is_joint(), "one at a time");
        members.voters_outgoing = members.voters.clone();
        members.auto_leave = change.transition != ConfChangeTransition::Explicit;
    }
    for single in &change.changes {
        let id = ReplicaId(single.node_id);
        if single.change_type == ConfChangeType::AddLearnerNode && members.learners.contains(&id) {
            continue;
        }
        for list in [&mut members.voters, &mut members.learners, &mut members.learners_next] {
            list.retain(|member| *member != id);
        }
        match single.change_type {
            ConfChangeType::AddNode => members.voters.push(id),
            ConfChangeType::AddLearnerNode if members.voters_outgoing.contains(&id) => {
                members.learners_next.push(id);
            }
            ConfChangeType::AddLearnerNode => members.learners.push(id),
            ConfChangeType::RemoveNode => {}
        }
    }
    members.voters.sort_unstable();
    members.learners.sort_unstable();
    members.learners_next.sort_unstable();
    members
}

fn check_same(applied: &LogEntry, committed: &LogEntry) {
    assert_eq!((applied.index, applied.term), (committed.index, committed.term));
    assert_eq!(applied.base_offset, committed.base_offset);
    assert_eq!(applied.payload.get(..8), committed.payload.get(..8));
}
