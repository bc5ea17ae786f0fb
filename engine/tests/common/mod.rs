//! A model of what a log must hold, and a driver that does the same to both. Shared by the tests of the log.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;

use bytes::Bytes;
use chronik_engine::disk::Disk;
use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{
    EntryKind, EpochStart, GroupCheckpoint, GroupMeta, HardState, LogEntry, LogPosition, WalRecord,
};
use chronik_engine::wal::{RecoveredGroup, Wal, WalError, WalOptions};
use uuid::Uuid;

pub const SHARD: Uuid = Uuid::from_u128(0x00c0_ffee_0000_4000_8000_0000_0000_0001);
pub const BATCH_HEAD: usize = 61;

pub fn options() -> WalOptions {
    WalOptions {
        file_bytes: 128 << 10,
        first_file_bytes: 96 << 10,
        ballast_bytes: 64 << 10,
        ..WalOptions::new("/wal", SHARD)
    }
}

/// What one group must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelGroup {
    pub meta: GroupMeta,
    pub hard_state: HardState,
    pub log_start: LogPosition,
    pub log_start_offset: Offset,
    /// All entries behind `base` that were not made void.
    pub entries: Vec<LogEntry>,
    pub applied: RaftIndex,
    /// The last snapshot that took the place of the log.
    pub base: Base,
}

/// Where a log begins that a snapshot took the place of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Base {
    pub position: LogPosition,
    pub end_offset: Offset,
    pub epochs: Vec<EpochStart>,
    pub state: Vec<u8>,
}

impl ModelGroup {
    pub fn new(meta: GroupMeta) -> ModelGroup {
        ModelGroup {
            meta,
            hard_state: HardState::default(),
            log_start: LogPosition::default(),
            log_start_offset: Offset(0),
            entries: Vec::new(),
            applied: RaftIndex(0),
            base: Base::default(),
        }
    }

    fn installed(checkpoint: &GroupCheckpoint) -> ModelGroup {
        ModelGroup {
            meta: checkpoint.meta.clone(),
            hard_state: checkpoint.hard_state,
            log_start: checkpoint.log_start,
            log_start_offset: checkpoint.log_start_offset,
            entries: Vec::new(),
            applied: checkpoint.applied,
            base: Base {
                position: checkpoint.last,
                end_offset: checkpoint.applied_end_offset,
                epochs: checkpoint.epochs.clone(),
                state: checkpoint.state.clone(),
            },
        }
    }

    /// The entry at this index, which is behind the base.
    pub fn entry(&self, index: RaftIndex) -> &LogEntry {
        &self.entries[usize::try_from(index.0 - self.base.position.index.0 - 1).unwrap()]
    }

    pub fn last(&self) -> LogPosition {
        let last = self.entries.last();
        last.map_or(self.log_start, |entry| LogPosition { index: entry.index, term: entry.term })
    }

    pub fn end_offset(&self) -> Offset {
        self.entries.last().map_or(self.base.end_offset, LogEntry::end_offset)
    }

    pub fn epochs(&self) -> Vec<EpochStart> {
        let mut epochs = self.base.epochs.clone();
        for entry in &self.entries {
            if epochs.last().is_none_or(|start| start.epoch < entry.term) {
                let (epoch, index, offset) = (entry.term, entry.index, entry.base_offset);
                epochs.push(EpochStart { epoch, index, offset });
            }
        }
        epochs
    }

    fn checkpoint(&self, group: GroupId) -> GroupCheckpoint {
        let applied = self.entries.iter().rfind(|entry| entry.index <= self.applied);
        GroupCheckpoint {
            group,
            meta: self.meta.clone(),
            hard_state: self.hard_state,
            log_start: self.log_start,
            log_start_offset: self.log_start_offset,
            last: self.last(),
            epochs: self.epochs(),
            applied: self.applied,
            applied_end_offset: applied.map_or(self.base.end_offset, LogEntry::end_offset),
            state: if self.base == Base::default() {
                vec![7; 300]
            } else {
                self.base.state.clone()
            },
        }
    }
}

/// What a whole shard must be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Model {
    pub groups: BTreeMap<GroupId, ModelGroup>,
}

impl Model {
    pub fn apply(&mut self, records: &[WalRecord]) {
        for record in records {
            let group = record.group();
            if let WalRecord::GroupCreated { meta, .. } = record {
                self.groups.insert(group, ModelGroup::new(meta.clone()));
                continue;
            }
            if let WalRecord::Checkpoint(checkpoint) = record {
                self.groups.insert(group, ModelGroup::installed(checkpoint));
                continue;
            }
            if matches!(record, WalRecord::GroupDeleted { .. }) {
                self.groups.remove(&group);
                continue;
            }
            let state = self.groups.get_mut(&group).expect("the workload names groups that exist");
            match record {
                WalRecord::Entry { entry, .. } => {
                    state.entries.retain(|old| old.index < entry.index);
                    state.entries.push(entry.clone());
                }
                WalRecord::HardState { state: hard_state, .. } => state.hard_state = *hard_state,
                WalRecord::TruncateAfter { index, .. } => {
                    state.entries.retain(|old| old.index <= *index);
                }
                WalRecord::LogStart { position, offset, .. } => {
                    state.log_start = *position;
                    state.log_start_offset = *offset;
                }
                _ => unreachable!("not in any workload"),
            }
        }
    }

    pub fn checkpoints(&self) -> Vec<GroupCheckpoint> {
        self.groups.iter().map(|(group, state)| state.checkpoint(*group)).collect()
    }
}

/// Whether recovery found exactly this.
pub fn check_recovered(model: &Model, recovered: &[RecoveredGroup]) -> Result<(), String> {
    let names: Vec<_> = recovered.iter().map(|group| group.checkpoint.group).collect();
    let expected: Vec<_> = model.groups.keys().copied().collect();
    if names != expected {
        return Err(format!("groups {names:?} instead of {expected:?}"));
    }
    for found in recovered {
        let group = found.checkpoint.group;
        let state = &model.groups[&group];
        let first = found.checkpoint.applied.max(found.log_start.index);
        let wanted: Vec<LogEntry> =
            state.entries.iter().filter(|e| e.index > first).map(reduced).collect();
        let differs = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
            Err(format!("group {group}: {what} is {a:?} instead of {b:?}"))
        };
        if found.entries != wanted {
            let heads = |list: &[LogEntry]| -> Vec<_> {
                list.iter().map(|e| (e.index, e.term, e.kind, e.base_offset)).collect()
            };
            return differs("the log", &heads(&found.entries), &heads(&wanted));
        }
        if found.hard_state != state.hard_state {
            return differs("the hard state", &found.hard_state, &state.hard_state);
        }
        if found.last != state.last() {
            return differs("the last entry", &found.last, &state.last());
        }
        if (found.log_start, found.log_start_offset) != (state.log_start, state.log_start_offset) {
            return differs("the log start", &found.log_start, &state.log_start);
        }
        if found.checkpoint.applied > state.applied {
            return differs("applied", &found.checkpoint.applied, &state.applied);
        }
        let base = &state.base;
        if *base != Base::default() && found.checkpoint.state != base.state {
            return differs("the state", &found.checkpoint.state.len(), &base.state.len());
        }
        if found.checkpoint.applied < base.position.index {
            return differs("the base", &found.checkpoint.applied, &base.position);
        }
        if found.checkpoint.epochs != state.epochs() {
            return differs("epochs", &found.checkpoint.epochs, &state.epochs());
        }
        if found.checkpoint.meta != state.meta {
            return differs("meta", &found.checkpoint.meta, &state.meta);
        }
    }
    Ok(())
}

/// Reads everything that the log still holds of each group and compares it with the model.
pub async fn check_readable<D: Disk>(wal: &Wal<D>, model: &Model) {
    for (group, state) in &model.groups {
        let Some(first) = wal.first_index(*group) else {
            // What is applied may have been reclaimed.
            let gone = state.log_start.index.max(state.applied);
            let needed = state.entries.iter().filter(|entry| entry.index > gone).count();
            assert_eq!(needed, 0, "group {group} has lost its entries");
            continue;
        };
        let end = state.last().index.next();
        let mut next = first;
        while next < end {
            let read = wal.read_entries(*group, next, end, 20_000).await.expect("readable");
            assert!(!read.is_empty(), "group {group}: nothing at {next} below {end}");
            for entry in &read {
                assert_eq!(entry.index, next, "in order");
                assert_eq!(*entry, patched(state.entry(entry.index)), "as proposed");
                next = next.next();
            }
        }
        check_batches(wal, *group, state, first).await;
    }
}

async fn check_batches<D: Disk>(
    wal: &Wal<D>,
    group: GroupId,
    state: &ModelGroup,
    first: RaftIndex,
) {
    let batches: Vec<LogEntry> = state
        .entries
        .iter()
        .filter(|entry| entry.index >= first && entry.kind == EntryKind::Batch)
        .map(patched)
        .collect();
    let Some(begin) = batches.first().map(|batch| batch.base_offset) else {
        return;
    };
    let up_to = state.end_offset();
    let read = wal.read_batches(group, begin, up_to, usize::MAX).await.expect("readable");
    let bytes = |entry: &LogEntry| (entry.base_offset, entry.payload.clone());
    let read: Vec<_> = read.into_iter().map(|batch| (batch.base_offset, batch.bytes)).collect();
    assert_eq!(read, batches.iter().map(bytes).collect::<Vec<_>>(), "group {group}");
    for batch in &batches {
        // An offset in the middle of a batch finds the whole batch.
        let inside = Offset(batch.end_offset().0 - 1);
        let found = wal.read_batches(group, inside, up_to, 1).await.expect("readable");
        assert_eq!(found.len(), 1, "the first batch comes whatever its size");
        assert_eq!(found[0].base_offset, batch.base_offset);
        let found = wal.find_timestamp(group, begin, batch.max_timestamp_ms).await.expect("found");
        let wanted = batches.iter().find(|b| b.max_timestamp_ms >= batch.max_timestamp_ms);
        assert_eq!(found.map(|b| b.base_offset), wanted.map(|b| b.base_offset));
    }
}

/// An entry as recovery gives it.
pub fn reduced(entry: &LogEntry) -> LogEntry {
    let mut entry = patched(entry);
    if entry.kind == EntryKind::Batch {
        entry.payload.truncate(BATCH_HEAD);
    }
    entry
}

/// An entry as it is stored.
pub fn patched(entry: &LogEntry) -> LogEntry {
    let mut entry = entry.clone();
    if entry.kind == EntryKind::Batch {
        let mut bytes = entry.payload.to_vec();
        bytes[0..8].copy_from_slice(&entry.base_offset.0.to_be_bytes());
        let epoch = i32::try_from(entry.term.0).unwrap();
        bytes[12..16].copy_from_slice(&epoch.to_be_bytes());
        entry.payload = Bytes::from(bytes);
    }
    entry
}

pub fn meta(replica: u64) -> GroupMeta {
    GroupMeta {
        replica: ReplicaId(replica),
        voters: vec![ReplicaId(replica), ReplicaId(replica + 1)],
        learners: Vec::new(),
        tag: vec![1, 2, 3],
        ..GroupMeta::default()
    }
}

/// Builds records that continue what the model holds.
#[derive(Debug, Clone, Default)]
pub struct Proposer {
    pub model: Model,
    pub seed: u8,
}

impl Proposer {
    pub fn create(&mut self, group: u64) -> WalRecord {
        self.take(WalRecord::GroupCreated { group: GroupId(group), meta: meta(group * 100 + 1) })
    }

    pub fn delete(&mut self, group: u64) -> WalRecord {
        self.take(WalRecord::GroupDeleted { group: GroupId(group) })
    }

    pub fn noop(&mut self, group: u64, term: u64) -> WalRecord {
        self.entry(group, term, EntryKind::Noop, 0, Bytes::new())
    }

    pub fn command(&mut self, group: u64, term: u64, len: usize) -> WalRecord {
        let payload = self.payload(len);
        self.entry(group, term, EntryKind::Command, 0, payload)
    }

    pub fn batch(&mut self, group: u64, term: u64, count: u32, len: usize) -> WalRecord {
        let payload = self.payload(len.max(BATCH_HEAD));
        self.entry(group, term, EntryKind::Batch, count, payload)
    }

    pub fn vote(&mut self, group: u64, term: u64, vote: u64) -> WalRecord {
        let commit = self.model.groups[&GroupId(group)].last().index;
        let state = HardState { term: Term(term), vote: ReplicaId(vote), commit };
        self.take(WalRecord::HardState { group: GroupId(group), state })
    }

    pub fn truncate_after(&mut self, group: u64, index: u64) -> WalRecord {
        self.take(WalRecord::TruncateAfter { group: GroupId(group), index: RaftIndex(index) })
    }

    pub fn log_start(&mut self, group: u64, index: u64) -> WalRecord {
        let state = &self.model.groups[&GroupId(group)];
        let entry = state.entry(RaftIndex(index));
        let position = LogPosition { index: entry.index, term: entry.term };
        let offset = entry.end_offset();
        self.take(WalRecord::LogStart { group: GroupId(group), position, offset })
    }

    /// A snapshot that is `ahead` entries behind the last of the log takes the place of all of it.
    pub fn install(&mut self, group: u64, term: u64, ahead: u64, state_bytes: usize) -> WalRecord {
        let replica = group * 100 + 1;
        let known = self.model.groups.get(&GroupId(group));
        let (last, end, vote) = match known {
            Some(known) => (known.last(), known.end_offset(), known.hard_state.vote),
            None => (LogPosition::default(), Offset(0), ReplicaId::NONE),
        };
        let position = LogPosition { index: RaftIndex(last.index.0 + ahead), term: Term(term) };
        let meta = GroupMeta { learners: vec![ReplicaId(replica + 7)], ..meta(replica) };
        let state = self.payload(state_bytes).to_vec();
        self.take(WalRecord::Checkpoint(GroupCheckpoint {
            group: GroupId(group),
            meta,
            hard_state: HardState { term: Term(term), vote, commit: position.index },
            log_start: position,
            log_start_offset: end.plus(2),
            last: position,
            epochs: vec![EpochStart {
                epoch: Term(term),
                index: position.index,
                offset: end.plus(5),
            }],
            applied: position.index,
            applied_end_offset: end.plus(9),
            state,
        }))
    }

    fn entry(
        &mut self,
        group: u64,
        term: u64,
        kind: EntryKind,
        offset_count: u32,
        payload: Bytes,
    ) -> WalRecord {
        let group = GroupId(group);
        let state = &self.model.groups[&group];
        let index = state.last().index.next();
        let stamped = kind == EntryKind::Batch;
        let entry = LogEntry {
            index,
            term: Term(term),
            kind,
            base_offset: state.end_offset(),
            offset_count,
            max_timestamp_ms: if stamped { 1_000 + i64::from(self.seed) * 3 % 97 } else { -1 },
            payload,
        };
        self.take(WalRecord::Entry { group, entry })
    }

    fn payload(&mut self, len: usize) -> Bytes {
        self.seed = self.seed.wrapping_add(37);
        let seed = usize::from(self.seed);
        let byte = |at: usize| u8::try_from((at * 31 + at / 251 + seed) % 256).unwrap();
        (0..len).map(byte).collect::<Vec<u8>>().into()
    }

    fn take(&mut self, record: WalRecord) -> WalRecord {
        self.model.apply(std::slice::from_ref(&record));
        record
    }
}

/// Appends, rolling first where it must. `model` is the state before the records.
pub async fn append<D: Disk>(
    wal: &Wal<D>,
    model: &Model,
    records: &[WalRecord],
) -> Result<(), WalError> {
    if wal.needs_roll(records) {
        wal.roll(model.checkpoints(), records).await?;
    }
    wal.append(records).await.map(|_| ())
}
