//! A running replica, its disk, and what lies between them.

use std::collections::{BTreeMap, VecDeque};

use chronik_engine::ids::{Offset, RaftIndex, Term};
use chronik_engine::wal::record::{EntryKind, LogEntry, WalRecord};
use chronik_replication::{
    GroupConfig, Members, PeerMessage, ProposeError, RaftGroup, ReadyNumber, SnapshotInstall,
    SnapshotParts,
};

use super::disk::{decode_state, encode_state};
use super::{Disk, GROUP, batch, meta};

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
    /// A snapshot that is being made.
    pub parts: Option<SnapshotParts>,
    /// How many snapshots it has installed, in all its lives.
    pub installs: usize,
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
            parts: None,
            installs: 0,
            proposed: BTreeMap::new(),
            acked: Vec::new(),
        };
        replica.start();
        replica
    }

    pub fn config(&self) -> GroupConfig {
        GroupConfig {
            retained_entries_max: 3,
            snapshot_ticks_max: 80,
            ..GroupConfig::new(GROUP, self.seed)
        }
    }

    pub fn start(&mut self) {
        self.start_with(self.config());
    }

    pub fn start_with(&mut self, config: GroupConfig) {
        assert!(self.group.is_none(), "it runs already");
        let recovered = self.disk.recovered();
        self.state = self.disk.state();
        let applied = self.state.last().map_or(RaftIndex(0), |entry| entry.index);
        assert_eq!(applied, recovered.applied, "the state is that of the checkpoint");
        self.group = Some(RaftGroup::new(config, recovered).unwrap());
    }

    pub fn group(&mut self) -> &mut RaftGroup {
        self.group.as_mut().unwrap()
    }

    /// The first `records` of what was on its way to the disk are found there, and nothing else. With changes of the
    /// members this asks for too much: the commit index that comes with an entry must not be lost without the entry, or
    /// a replica votes in a configuration that two later ones have followed.
    pub fn crash(&mut self, records: usize) {
        let flying = self.in_flight.iter().flat_map(|(_, records)| records);
        for record in flying.take(records) {
            self.disk.write(record);
        }
        self.forget();
    }

    /// The first `outputs` of what was on its way to the disk are found there, each as a whole: a block holds all of an
    /// output.
    pub fn crash_between(&mut self, outputs: usize) {
        for record in self.in_flight.iter().take(outputs).flat_map(|(_, records)| records) {
            self.disk.write(record);
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.group = None;
        self.in_flight.clear();
        self.committed.clear();
        self.parts = None;
        self.proposed.clear();
    }

    pub fn checkpoint(&mut self) {
        let Some(group) = &self.group else { return };
        let parts = group.checkpoint_parts();
        let state = encode_state(&self.state);
        let checkpoint = parts.into_checkpoint(self.disk.log_start_offset, state);
        self.disk.write_checkpoint(checkpoint);
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

    /// Who belongs to the group, as far as this replica has applied it.
    pub fn members(&self) -> Members {
        self.group.as_ref().map(RaftGroup::members).unwrap_or_default()
    }

    /// Begins to make a snapshot, if one is wanted.
    pub fn begin_snapshot(&mut self) {
        let Some(group) = &mut self.group else { return };
        if group.wants_snapshot() {
            let mut parts = group.snapshot_parts();
            assert!(!group.wants_snapshot(), "it is being made");
            parts.state = encode_state(&self.state).into();
            parts.log_start_offset = self.disk.log_start_offset;
            self.parts = Some(parts);
        }
    }

    /// The snapshot is made.
    pub fn supply_snapshot(&mut self) {
        if let (Some(parts), Some(group)) = (self.parts.take(), &mut self.group) {
            group.supply_snapshot(&parts).unwrap();
        }
    }

    /// The state machine is replaced.
    pub fn install(&mut self, install: &SnapshotInstall) {
        assert!(self.committed.is_empty(), "what was handed out is applied before");
        let position = install.position;
        assert!(position.index <= self.disk.last().index, "it is durable");
        assert!(position.index > RaftIndex(self.state.len() as u64), "it leads on");
        let group = self.group.as_ref().unwrap();
        assert_eq!(group.applied(), position.index);
        assert_eq!(group.applied_end_offset(), install.applied_end_offset);
        self.state = decode_state(&install.state);
        self.installs += 1;
        let last = self.state.last().unwrap();
        assert_eq!((last.index, last.term), (position.index, position.term));
        assert_eq!(last.end_offset(), install.applied_end_offset);
        // What came of these it will never hear.
        self.proposed.retain(|(index, _), _| *index > position.index);
    }

    /// Applies up to `count` committed entries; the configuration after each that changes it.
    pub fn apply(&mut self, count: usize) -> Vec<(RaftIndex, Members)> {
        let mut configurations = Vec::new();
        for _ in 0..count {
            let Some(entry) = self.committed.pop_front() else { break };
            let group = self.group.as_mut().unwrap();
            if entry.kind == EntryKind::ConfChange {
                group.apply_conf_change(&entry).unwrap();
                configurations.push((entry.index, group.members()));
            }
            let (index, end_offset) = (entry.index, entry.end_offset());
            self.state.push(entry);
            group.advance_applied(index);
            assert_eq!(group.applied_end_offset(), end_offset);
        }
        configurations
    }
}
