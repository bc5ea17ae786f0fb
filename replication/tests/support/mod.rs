//! Replicas with a model of the write-ahead log under them and a network between them that only a test moves.
//!
//! What must always hold is checked where it happens, so each test and each random schedule checks it: a disk takes
//! only what continues it, hard states do not regress, an entry commits only when a majority's disks hold it, an index
//! commits one entry for ever, and a term has one leader.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{
    EntryKind, EpochStart, GroupCheckpoint, GroupMeta, HardState, LogEntry, LogPosition, WalRecord,
};
use chronik_replication::{
    GroupConfig, Message, PeerMessage, ProposeError, ProposedEntry, RaftGroup, ReadyNumber,
    ReadyOutput, RecoveredLog, Role, StepError,
};

pub const GROUP: GroupId = GroupId(7);
/// The part of a batch that recovery keeps.
const HEAD_BYTES: usize = 61;
const BATCH_BYTES: usize = 69;

pub fn replica(id: u64) -> ReplicaId {
    ReplicaId(id)
}

pub fn meta(id: u64, voters: &[u64], learners: &[u64]) -> GroupMeta {
    GroupMeta {
        replica: ReplicaId(id),
        voters: voters.iter().copied().map(ReplicaId).collect(),
        learners: learners.iter().copied().map(ReplicaId).collect(),
        tag: Vec::new(),
        ..GroupMeta::default()
    }
}

/// A batch that names itself at its start, where recovery keeps it.
pub fn batch(name: u64, offset_count: u32) -> ProposedEntry {
    let mut payload = vec![0; BATCH_BYTES];
    payload[..8].copy_from_slice(&name.to_le_bytes());
    ProposedEntry {
        kind: EntryKind::Batch,
        offset_count,
        max_timestamp_ms: 1_000,
        payload: Bytes::from(payload),
    }
}

/// What a disk holds: the durable records of one group, replayed.
#[derive(Debug, Clone)]
pub struct Disk {
    checkpoint: GroupCheckpoint,
    hard_state: HardState,
    log_start: LogPosition,
    log_start_offset: Offset,
    /// From index 1 on.
    pub entries: Vec<LogEntry>,
}

impl Disk {
    pub fn created(meta: GroupMeta) -> Disk {
        Disk {
            checkpoint: GroupCheckpoint::created(GROUP, meta),
            hard_state: HardState::default(),
            log_start: LogPosition::default(),
            log_start_offset: Offset(0),
            entries: Vec::new(),
        }
    }

    pub fn last(&self) -> LogPosition {
        self.entries
            .last()
            .map_or_else(LogPosition::default, |e| LogPosition { index: e.index, term: e.term })
    }

    pub fn entry(&self, index: RaftIndex) -> Option<&LogEntry> {
        self.entries.get(usize::try_from(index.0).unwrap().checked_sub(1)?)
    }

    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    fn truncate_after(&mut self, index: RaftIndex) {
        assert!(index >= self.hard_state.commit, "a committed entry is cut: {index}");
        self.entries.truncate(usize::try_from(index.0).unwrap());
    }

    fn write(&mut self, record: &WalRecord) {
        assert_eq!(record.group(), GROUP);
        match record {
            WalRecord::Entry { entry, .. } => {
                assert_eq!(entry.index, self.last().index.next(), "entries are contiguous");
                assert!(entry.term >= self.last().term, "terms rise");
                let end = self.entries.last().map_or(Offset(0), LogEntry::end_offset);
                assert_eq!(entry.base_offset, end, "offsets are contiguous");
                if entry.kind == EntryKind::Batch {
                    assert_eq!(entry.payload.len(), BATCH_BYTES, "no cut batch is written");
                }
                self.entries.push(entry.clone());
            }
            WalRecord::HardState { state, .. } => {
                let before = self.hard_state;
                assert!(state.term >= before.term, "{state:?} after {before:?}");
                if state.term == before.term && before.vote != ReplicaId::NONE {
                    assert_eq!(state.vote, before.vote, "one vote in each term");
                }
                assert!(state.commit <= self.last().index, "commit beyond the log");
                self.hard_state = *state;
            }
            WalRecord::TruncateAfter { index, .. } => {
                assert!(*index < self.last().index, "nothing to cut");
                self.truncate_after(*index);
            }
            WalRecord::LogStart { position, offset, .. } => {
                self.log_start = *position;
                self.log_start_offset = *offset;
            }
            WalRecord::Checkpoint(checkpoint) => {
                assert_eq!(checkpoint.last, self.last(), "a checkpoint says what is durable");
                assert_eq!(checkpoint.epochs, self.epochs(), "and no more");
                // A restart may have raised the term to that of the last entry.
                assert!(checkpoint.hard_state.term >= self.hard_state.term);
                if checkpoint.hard_state.term == self.hard_state.term {
                    assert_eq!(checkpoint.hard_state.vote, self.hard_state.vote);
                }
                assert!(checkpoint.hard_state.commit >= self.hard_state.commit);
                assert!(checkpoint.hard_state.commit <= self.last().index);
                assert!(checkpoint.applied <= checkpoint.hard_state.commit);
                self.hard_state = checkpoint.hard_state;
                self.checkpoint = checkpoint.clone();
            }
            WalRecord::GroupCreated { .. } | WalRecord::GroupDeleted { .. } => {}
        }
    }

    fn epochs(&self) -> Vec<EpochStart> {
        let mut epochs: Vec<EpochStart> = Vec::new();
        for entry in &self.entries {
            if epochs.last().is_none_or(|run| run.epoch < entry.term) {
                let (epoch, index, offset) = (entry.term, entry.index, entry.base_offset);
                epochs.push(EpochStart { epoch, index, offset });
            }
        }
        let start = self.log_start.index;
        let ended = epochs.windows(2).take_while(|pair| pair[1].index <= start).count();
        epochs.split_off(ended)
    }

    /// As the engine recovers it: batches are cut to their headers.
    pub fn recovered(&self) -> RecoveredLog {
        let applied = usize::try_from(self.checkpoint.applied.0).unwrap();
        let mut entries = self.entries[applied..].to_vec();
        for entry in entries.iter_mut().filter(|entry| entry.kind == EntryKind::Batch) {
            entry.payload.truncate(HEAD_BYTES);
        }
        RecoveredLog::from_checkpoint(
            &self.checkpoint,
            self.hard_state,
            self.log_start,
            entries,
            self.last(),
        )
    }
}

/// A running replica, its disk, and what lies between them.
pub struct Replica {
    pub id: u64,
    pub seed: u64,
    pub group: Option<RaftGroup>,
    pub disk: Disk,
    pub in_flight: VecDeque<(ReadyNumber, Vec<WalRecord>)>,
    /// Committed and not applied.
    pub committed: VecDeque<LogEntry>,
    /// The state machine: all that was applied, in order.
    pub state: Vec<LogEntry>,
    /// (index, term) of what this replica proposed in this life, with the batch's name.
    pub proposed: BTreeMap<(RaftIndex, Term), u64>,
    pub acked: Vec<(RaftIndex, Offset, u64)>,
}

impl Replica {
    pub fn new(id: u64, voters: &[u64], learners: &[u64]) -> Replica {
        let mut replica = Replica {
            id,
            seed: 99,
            group: None,
            disk: Disk::created(meta(id, voters, learners)),
            in_flight: VecDeque::new(),
            committed: VecDeque::new(),
            state: Vec::new(),
            proposed: BTreeMap::new(),
            acked: Vec::new(),
        };
        replica.start();
        replica
    }

    pub fn config(&self) -> GroupConfig {
        GroupConfig { retained_entries_max: 3, ..GroupConfig::new(GROUP, self.seed) }
    }

    pub fn start(&mut self) {
        self.start_with(self.config());
    }

    pub fn start_with(&mut self, config: GroupConfig) {
        assert!(self.group.is_none(), "it runs already");
        let recovered = self.disk.recovered();
        self.state.truncate(usize::try_from(recovered.applied.0).unwrap());
        self.group = Some(RaftGroup::new(config, recovered).unwrap());
    }

    pub fn group(&mut self) -> &mut RaftGroup {
        self.group.as_mut().unwrap()
    }

    /// The first `records` of what was on its way to the disk are found there, and nothing else.
    pub fn crash(&mut self, records: usize) {
        self.group = None;
        let flying: Vec<_> = self.in_flight.drain(..).flat_map(|(_, records)| records).collect();
        for record in flying.iter().take(records) {
            self.disk.write(record);
        }
        self.committed.clear();
        self.proposed.clear();
    }

    pub fn checkpoint(&mut self) {
        let Some(group) = &self.group else { return };
        let parts = group.checkpoint_parts();
        let log_start_offset = self.disk.log_start_offset;
        self.disk.write(&WalRecord::Checkpoint(parts.into_checkpoint(log_start_offset, vec![])));
    }

    pub fn propose(&mut self, name: u64, count: u32) -> Result<(RaftIndex, Offset), ProposeError> {
        let group = self.group.as_mut().unwrap();
        let expected = group.end_offset();
        let (index, base_offset) = group.propose(batch(name, count))?;
        assert_eq!(base_offset, expected);
        assert_eq!(group.end_offset(), base_offset.plus(count));
        assert_eq!(index, group.last_index());
        let term = group.term();
        self.proposed.insert((index, term), name);
        Ok((index, base_offset))
    }

    /// The oldest output becomes durable; what may be sent then.
    pub fn persist_one(&mut self) -> Vec<PeerMessage> {
        let mut messages = Vec::new();
        if let Some((number, records)) = self.in_flight.pop_front() {
            for record in &records {
                self.disk.write(record);
            }
            let group = self.group();
            let more = group.on_persisted(number, &mut messages);
            assert_eq!(more, group.has_ready());
            assert_eq!(group.last_durable(), self.disk.last());
        }
        messages
    }

    pub fn is_leader(&self) -> bool {
        self.group.as_ref().is_some_and(RaftGroup::is_leader)
    }
}

/// Replicas with ids from 1 on, and all that is known of them together.
pub struct Cluster {
    pub replicas: Vec<Replica>,
    pub network: Vec<Message>,
    /// What is committed, by index from 1 on; nothing here ever changes but for cut payloads that become whole.
    pub committed: Vec<LogEntry>,
    pub leaders: BTreeMap<Term, u64>,
    voters: usize,
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
        Cluster {
            replicas: all.collect(),
            network: Vec::new(),
            committed: Vec::new(),
            leaders: BTreeMap::new(),
            voters: voter_ids.len(),
            next_name: 1,
        }
    }

    pub fn replica(&mut self, id: u64) -> &mut Replica {
        &mut self.replicas[usize::try_from(id).unwrap() - 1]
    }

    pub fn group(&mut self, id: u64) -> &mut RaftGroup {
        self.replica(id).group()
    }

    fn at(&self, pick: usize) -> usize {
        pick % self.replicas.len()
    }

    /// Takes all readies of a replica; nothing becomes durable by it, nothing is applied.
    pub fn drain(&mut self, id: u64) {
        let at = usize::try_from(id).unwrap() - 1;
        loop {
            let Some(group) = &mut self.replicas[at].group else { return };
            let mut fetches = Vec::new();
            group.take_fetches(&mut fetches);
            for fetch in fetches {
                let log = &self.replicas[at].disk.entries;
                let first = usize::try_from(fetch.from.0).unwrap() - 1;
                let last = usize::try_from(fetch.up_to.0).unwrap() - 1;
                // A part of them is an answer too.
                let entries = log[first.min(log.len())..last.min(log.len())].iter().take(2);
                let entries = entries.cloned().collect();
                self.replicas[at].group().on_entries_fetched(fetch.from, entries);
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
        for entry in out.committed {
            self.check_committed(at, &entry);
            self.replicas[at].committed.push_back(entry);
        }
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
            let holders = self.replicas[..self.voters]
                .iter()
                .filter(|r| r.disk.entry(entry.index).is_some_and(|e| e.term == entry.term))
                .count();
            assert!(holders > self.voters / 2, "{} is on {holders} disks", entry.index);
            assert_eq!(index, self.committed.len(), "committed without a gap");
            self.committed.push(entry.clone());
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

    /// Applies up to `count` committed entries.
    pub fn apply(&mut self, id: u64, count: usize) {
        let replica = self.replica(id);
        for _ in 0..count {
            let Some(entry) = replica.committed.pop_front() else { break };
            if entry.kind == EntryKind::ConfChange {
                replica.group().apply_conf_change(&entry).unwrap();
            }
            let (index, end_offset) = (entry.index, entry.end_offset());
            replica.state.push(entry);
            replica.group().advance_applied(index);
            assert_eq!(replica.group().applied_end_offset(), end_offset);
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
        let replica = self.replica(message.to);
        if let Some(group) = &mut replica.group {
            match group.step(message) {
                // It can come late, or twice.
                Ok(()) | Err(StepError::NotOurLeader { .. }) => {}
                Err(error) => panic!("a correct peer was refused: {error}"),
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

    /// Everything works again: a leader is found, and a new entry reaches everybody.
    pub fn heal(&mut self) {
        for replica in &mut self.replicas {
            if replica.group.is_none() {
                replica.start();
            }
        }
        for _ in 0..2_000 {
            self.settle_all();
            let leader = self
                .replicas
                .iter()
                .find(|r| r.group.as_ref().is_some_and(RaftGroup::is_established_leader));
            if let Some(id) = leader.map(|r| r.id)
                && self
                    .replicas
                    .iter()
                    .all(|r| r.group.as_ref().unwrap().leader() == Some(replica(id)))
                && let Ok((index, _)) = self.propose(id, 1)
            {
                self.settle_all();
                for _ in 0..10 {
                    self.tick_all(20);
                    self.settle_all();
                }
                self.check_all_applied(index);
                return;
            }
            self.tick_all(1);
        }
        panic!("no leader was found");
    }

    pub fn tick_all(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for group in self.replicas.iter_mut().filter_map(|r| r.group.as_mut()) {
                group.tick();
            }
        }
    }

    fn check_all_applied(&self, index: RaftIndex) {
        assert_eq!(self.committed.last().map(|entry| entry.index), Some(index));
        for replica in &self.replicas {
            assert_eq!(replica.state.len(), self.committed.len(), "replica {}", replica.id);
            for (applied, committed) in replica.state.iter().zip(&self.committed) {
                assert_eq!((applied.index, applied.term), (committed.index, committed.term));
                assert_eq!(applied.base_offset, committed.base_offset);
                assert_eq!(applied.payload.get(..8), committed.payload.get(..8));
            }
            for (index, base_offset, name) in &replica.acked {
                let entry = &self.committed[usize::try_from(index.0).unwrap() - 1];
                assert_eq!(entry.base_offset, *base_offset, "an acknowledged batch has moved");
                assert_eq!(entry.payload[..8], name.to_le_bytes(), "an acknowledged batch is lost");
            }
        }
    }
}

impl Cluster {
    /// Cuts the log of a replica as far as every replica has applied it on disk: nobody can need the rest.
    pub fn compact_applied(&mut self, id: u64) {
        let least = self.replicas.iter().map(|r| r.disk.checkpoint.applied).min().unwrap();
        let Some(group) = &mut self.replica(id).group else { return };
        // Without snapshots a leader must keep what it does not know to be everywhere.
        let least = group.slowest_match().map_or(least, |matched| matched.min(least));
        if least <= group.log_start().index {
            return;
        }
        let position = group.compact(least);
        assert_eq!(group.log_start(), position);
        let offset = self.committed[usize::try_from(least.0).unwrap() - 1].end_offset();
        let record = WalRecord::LogStart { group: GROUP, position, offset };
        self.replica(id).disk.write(&record);
    }
}
