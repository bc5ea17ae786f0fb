//! The writer: blocks into the active file, and the change to the next file.
//!
//! It assigns positions and numbers and keeps the order *write, sync, index*. It never retries, and never writes a
//! sector twice.

use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::rc::Rc;

use super::block::{
    BlockKind, BlockPlace, BlockPlan, Descriptor, FLAG_LAST_CHECKPOINT, SlotKind, split_checkpoints,
};
use super::error::{IoOp, WalError};
use super::file::{BlockLabel, Written, write_block};
use super::record::{GroupCheckpoint, WalRecord};
use super::{Active, Sealed, State, Unfinished, Wal, footer};
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::{BlockSeq, FileSeq, GroupId, RaftIndex, ReplicaId, Term};

/// The most bytes of checkpoints in one block.
const CHECKPOINT_BLOCK_BYTES: u64 = crate::limits::WAL_BLOCK_BYTES_MAX as u64;

/// A block that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendReport {
    /// Its number.
    pub block: BlockSeq,
    /// Where it is.
    pub file: FileSeq,
    /// Where it begins in the file.
    pub position: u64,
    /// Bytes written, padding included.
    pub bytes: u64,
}

impl<D: Disk> Wal<D> {
    /// Whether these records need another file. Where they fit into none, a roll makes one that is large enough.
    #[must_use]
    pub fn needs_roll(&self, records: &[WalRecord]) -> bool {
        let Ok(plan) = BlockPlan::new(records) else {
            return false; // `append` says why
        };
        plan.padded_len() > room(&self.state.borrow(), records.len())
    }

    /// Makes records durable as one block. They are durable, and can be read, once it returns. Not cancel-safe: a
    /// dropped future leaves the log unusable. One append at a time.
    pub async fn append(&self, records: &[WalRecord]) -> Result<AppendReport, WalError> {
        self.append_with(records, || ()).await
    }

    /// As [`Wal::append`]; calls `on_written` between the write and the sync, so that a caller with a clock can time
    /// both.
    pub async fn append_with(
        &self,
        records: &[WalRecord],
        on_written: impl FnOnce(),
    ) -> Result<AppendReport, WalError> {
        self.check_usable()?;
        assert!(!records.is_empty(), "a block without records is a mark");
        let plan = BlockPlan::new(records)?;
        self.check_records(records);
        self.appends.set(self.appends.get() + 1);
        self.append_plan(&plan, BlockKind::Data, on_written).await
    }

    /// Writes an empty block, which shows that the last one is durable. Returns `false` where that is shown already, or
    /// where the file has no room left (the next append rolls, and the new file's checkpoint shows it). Not cancel-safe.
    pub async fn write_mark(&self) -> Result<bool, WalError> {
        self.check_usable()?;
        let shown = {
            let active = &self.state.borrow().active;
            active.last_kind != BlockKind::Data && active.last_kind != BlockKind::Repair
        };
        if shown {
            return Ok(false);
        }
        self.write_empty(BlockKind::Mark).await
    }

    /// Notes that the shard stops in good order; nothing can be written afterwards. Returns `false` where the file has
    /// no room left for the note. Not cancel-safe.
    pub async fn close_clean(&self) -> Result<bool, WalError> {
        self.check_usable()?;
        let written = self.write_empty(BlockKind::CleanClose).await?;
        self.closed.set(true);
        Ok(written)
    }

    pub(super) async fn write_empty(&self, kind: BlockKind) -> Result<bool, WalError> {
        let plan = BlockPlan::new(&[])?;
        match self.append_plan(&plan, kind, || ()).await {
            Ok(_) => Ok(true),
            Err(WalError::FileFull { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn check_usable(&self) -> Result<(), WalError> {
        assert!(!self.in_flight.get(), "one append at a time, and none is dropped half-way (I1)");
        if self.poisoned.get() {
            return Err(WalError::Poisoned);
        }
        if self.closed.get() {
            return Err(WalError::Closed);
        }
        Ok(())
    }

    /// What recovery will refuse to read must not be written.
    fn check_records(&self, records: &[WalRecord]) {
        let state = self.state.borrow();
        let mut lasts = self.lasts.borrow_mut();
        lasts.clear();
        for record in records {
            let group = record.group();
            let known = || state.index.group(group).map(|log| log.last);
            let last = lasts.entry(group).or_insert_with(known);
            // A group that is not here stays so until it is created: its records are passed over.
            *last = match (record, *last) {
                (WalRecord::Entry { entry, .. }, Some(before)) => {
                    assert!(
                        entry.index <= before.next(),
                        "group {group}: entry {} leaves a gap after {before}",
                        entry.index
                    );
                    Some(entry.index)
                }
                (WalRecord::TruncateAfter { index, .. }, Some(before)) => Some(before.min(*index)),
                (WalRecord::LogStart { position, .. }, Some(before)) => {
                    Some(before.max(position.index))
                }
                (WalRecord::GroupCreated { .. }, _) => Some(RaftIndex(0)),
                (WalRecord::GroupDeleted { .. }, _) => None,
                (WalRecord::Checkpoint(checkpoint), _) => {
                    assert!(checkpoint.is_install(), "group {group}: not to be among the data");
                    Some(checkpoint.last.index)
                }
                (_, unchanged) => unchanged,
            };
        }
    }

    async fn append_plan(
        &self,
        plan: &BlockPlan<'_>,
        kind: BlockKind,
        on_written: impl FnOnce(),
    ) -> Result<AppendReport, WalError> {
        let (file, path, place) = {
            let state = self.state.borrow();
            let room = room(&state, plan.count());
            if plan.padded_len() > room {
                return Err(WalError::FileFull { bytes: plan.padded_len(), room });
            }
            let active = &state.active;
            (Rc::clone(&active.file), active.path.clone(), self.place(active))
        };
        let label = BlockLabel { kind, flags: 0, place };
        self.write_durable(&*file, path, plan, label, on_written).await?;

        let mut state = self.state.borrow_mut();
        let State { index, active, votes, applied, .. } = &mut *state;
        assert!(active.position == place.position, "nobody else moved the position (I2)");
        assert!(active.next_block == place.sequence, "nobody else used the number (I2)");
        for (slot, (row, payload_at)) in plan.rows().enumerate() {
            let slot = u32::try_from(slot).unwrap_or(u32::MAX);
            index.apply(place.position, slot, payload_at, &row);
            note_vote(votes, &row);
            if row.kind == SlotKind::Checkpoint {
                applied.insert(row.group, row.index);
            }
        }
        active.position += plan.padded_len();
        active.next_block = BlockSeq(place.sequence.0 + 1);
        active.last_kind = kind;
        index.block_durable(place.sequence, active.position);
        Ok(AppendReport {
            block: place.sequence,
            file: place.file,
            position: place.position,
            bytes: plan.padded_len(),
        })
    }

    fn place(&self, active: &Active<D::File>) -> BlockPlace {
        BlockPlace {
            shard: self.options.shard_uuid,
            file: active.seq,
            position: active.position,
            sequence: active.next_block,
        }
    }

    /// Write, then sync. Any failure poisons the log: what is on the disk is unknown from then on.
    async fn write_durable(
        &self,
        file: &D::File,
        path: PathBuf,
        plan: &BlockPlan<'_>,
        label: BlockLabel,
        on_written: impl FnOnce(),
    ) -> Result<(), WalError> {
        assert!(label.place.position.is_multiple_of(DISK_ALIGN as u64), "whole sectors");
        assert!(!self.in_flight.replace(true), "one block in flight (I1)");
        let mut parts = mem::take(&mut *self.parts.borrow_mut());
        let written = write_block(file, plan, label, &mut parts).await;
        *self.parts.borrow_mut() = parts;
        let result = match written {
            Ok(Written::Durable) => {
                on_written();
                Ok(())
            }
            Ok(Written::Unsynced) => {
                on_written();
                file.sync_data().await.map_err(WalError::io(IoOp::Sync, path))
            }
            Err(source) => Err(WalError::Io { op: IoOp::Write, path, source }),
        };
        self.in_flight.set(false);
        if result.is_err() {
            self.poisoned.set(true);
        }
        result
    }

    /// Goes on in a new file that begins with these checkpoints and has room for `next`. Each group of the shard must
    /// be among them, in its durable state. The old file's footer is written by [`Wal::finish_sealed`].
    ///
    /// Fails with [`WalError::StorageFull`] where there is no room for a file; nothing was written then, and the call
    /// may be made again. Where `next` carries no batch, the ballast's space is used before that. Not cancel-safe.
    pub async fn roll(
        &self,
        checkpoints: Vec<GroupCheckpoint>,
        next: &[WalRecord],
    ) -> Result<(), WalError> {
        self.check_usable()?;
        self.check_checkpoints(&checkpoints);
        let applied = checkpoints.iter().map(|c| (c.group, c.applied)).collect();
        let records: Vec<WalRecord> = checkpoints.into_iter().map(WalRecord::Checkpoint).collect();
        let blocks = split_checkpoints(&records, CHECKPOINT_BLOCK_BYTES)?;
        let checkpoint_bytes: u64 = blocks.iter().map(|(_, bytes)| bytes).sum();
        let next_bytes = BlockPlan::new(next)?.padded_len();
        let needed = checkpoint_bytes + next_bytes + reserve_bytes(0, 0, next.len());
        self.note_checkpoints(checkpoint_bytes);
        let essential = !next.iter().any(is_batch);

        let (seq, first_block) = {
            let active = &self.state.borrow().active;
            (FileSeq(active.seq.0 + 1), active.next_block)
        };
        let (path, file) = self.next_file(seq, needed, essential).await?;
        let position = self.write_checkpoints(&file, &path, seq, first_block, &blocks).await?;
        let next_block = BlockSeq(first_block.0 + blocks.len() as u64);
        self.switch_to(
            Active {
                seq,
                path,
                file: Rc::new(file),
                position,
                next_block,
                last_kind: BlockKind::Checkpoint,
            },
            applied,
        );
        Ok(())
    }

    /// Writes a file's checkpoint blocks, each durable before the next, and returns where they end. Each is encoded when
    /// its turn comes, so that others run on this core between them.
    pub(super) async fn write_checkpoints(
        &self,
        file: &D::File,
        path: &std::path::Path,
        seq: FileSeq,
        first_block: BlockSeq,
        blocks: &[(&[WalRecord], u64)],
    ) -> Result<u64, WalError> {
        let mut position = 0;
        for (at, (records, bytes)) in blocks.iter().enumerate() {
            let flags = if at + 1 == blocks.len() { FLAG_LAST_CHECKPOINT } else { 0 };
            let place = BlockPlace {
                shard: self.options.shard_uuid,
                file: seq,
                position,
                sequence: BlockSeq(first_block.0 + at as u64),
            };
            let label = BlockLabel { kind: BlockKind::Checkpoint, flags, place };
            let plan = BlockPlan::new(records)?;
            assert!(plan.padded_len() == *bytes, "the file was made for blocks of these sizes");
            self.write_durable(file, path.to_owned(), &plan, label, || ()).await?;
            position += bytes;
        }
        Ok(position)
    }

    fn switch_to(&self, next: Active<D::File>, applied: BTreeMap<GroupId, RaftIndex>) {
        let mut state = self.state.borrow_mut();
        let old_seq = state.active.seq;
        let first_block = state.active.next_block;
        let (seq, position) = (next.seq, next.position);
        let last_block = BlockSeq(next.next_block.0 - 1);
        let index = Rc::new(state.index.roll(old_seq, first_block));
        assert!(index.end_position == state.active.position, "the index saw every block (I4)");
        assert!(seq.0 == old_seq.0 + 1, "files follow one another");
        state.index.block_durable(last_block, position);
        let old = mem::replace(&mut state.active, next);
        state.applied = applied;
        state.sealed.insert(
            old_seq,
            Sealed {
                path: old.path.clone(),
                end_position: old.position,
                file: Some(Rc::clone(&old.file)),
                pinned: Some(Rc::clone(&index)),
            },
        );
        let (path, file) = (old.path, old.file);
        let unfinished = Unfinished { seq: old_seq, path, file, index };
        state.unfinished.push_back(Rc::new(unfinished));
    }

    /// Writes the footers of files that a roll left behind; to be spawned beside the appends of the new file. A failure
    /// loses no data, but a disk that cannot sync is not written to any more: the log is poisoned. Not cancel-safe; one call
    /// at a time.
    pub async fn finish_sealed(&self) -> Result<(), WalError> {
        assert!(!self.is_finishing.replace(true), "one at a time");
        let result = self.finish_oldest_first().await;
        self.is_finishing.set(false);
        result
    }

    async fn finish_oldest_first(&self) -> Result<(), WalError> {
        loop {
            // It stays in the list until it is done: nobody may take it for finished before.
            let Some(next) = self.state.borrow().unfinished.front().map(Rc::clone) else {
                return Ok(());
            };
            let shard = self.options.shard_uuid;
            let result = footer::write(&*next.file, &next.path, shard, next.seq, &next.index).await;
            next.file.end_writes();
            let has_footer = result.inspect_err(|_| self.poisoned.set(true))?;
            let mut state = self.state.borrow_mut();
            state.unfinished.pop_front();
            // Without one an earlier build left no room: a start scans the file.
            if has_footer && let Some(sealed) = state.sealed.get_mut(&next.seq) {
                sealed.pinned = None;
                self.footers.borrow_mut().insert(next.seq, Rc::clone(&next.index));
            }
        }
    }

    /// A checkpoint that forgets a group, an entry or a vote would make recovery forget it.
    fn check_checkpoints(&self, checkpoints: &[GroupCheckpoint]) {
        let state = self.state.borrow();
        let by_group: BTreeMap<GroupId, &GroupCheckpoint> =
            checkpoints.iter().map(|checkpoint| (checkpoint.group, checkpoint)).collect();
        assert!(by_group.len() == checkpoints.len(), "a group has two checkpoints");
        for (group, log) in state.index.groups() {
            let Some(checkpoint) = by_group.get(&group) else {
                unreachable!("the checkpoints leave out group {group}");
            };
            assert!(
                checkpoint.last.index == log.last,
                "group {group}: the checkpoint ends at {}, the log at {}",
                checkpoint.last.index,
                log.last
            );
            assert!(
                checkpoint.applied <= checkpoint.last.index,
                "group {group}: only what is durable is applied"
            );
            let (term, vote) = state.votes.get(&group).copied().unwrap_or_default();
            let stated = checkpoint.hard_state;
            assert!(stated.term >= term, "group {group}: the checkpoint forgets term {term}");
            let forgets = stated.term == term && vote != ReplicaId::NONE && stated.vote != vote;
            assert!(!forgets, "group {group}: the checkpoint forgets the vote in term {term}");
        }
        let here = |c: &GroupCheckpoint| state.index.group(c.group).is_some();
        assert!(checkpoints.iter().all(here), "a checkpoint names a group that is not here");
    }
}

/// Bytes at a file's end that a block of so many rows must leave: for the footer, which knows these rows too, for its
/// locator, and behind records for a mark, so that the last of a file's records can be shown to be durable.
fn reserve_bytes(groups: usize, extents: usize, rows: usize) -> u64 {
    let mark = if rows > 0 { DISK_ALIGN as u64 } else { 0 };
    mark + footer::reserve_bytes(groups + rows, extents + rows) + footer::LOCATOR_BYTES
}

/// Bytes that a block of so many rows may take in the active file.
fn room<F: DiskFile>(state: &State<F>, rows: usize) -> u64 {
    let (active, index) = (&state.active, state.index.active());
    let reserve = reserve_bytes(index.groups.len(), index.extents_added(), rows);
    active.file.len().saturating_sub(reserve).saturating_sub(active.position)
}

pub(super) fn note_vote(votes: &mut BTreeMap<GroupId, (Term, ReplicaId)>, row: &Descriptor) {
    match row.kind {
        SlotKind::HardState => {
            let state = row.hard_state();
            votes.insert(row.group, (state.term, state.vote));
        }
        SlotKind::GroupCreated | SlotKind::GroupDeleted => {
            votes.remove(&row.group);
        }
        _ => {}
    }
}

fn is_batch(record: &WalRecord) -> bool {
    use super::record::EntryKind::Batch;
    matches!(record, WalRecord::Entry { entry, .. } if entry.kind == Batch)
}
