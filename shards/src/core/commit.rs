//! Blocks out, durability in.
//!
//! Raft hands out records in *units*: one ready of one group, or the creation or deletion of a group. A unit is never
//! divided, so that the entries of a ready and the hard state that goes with them become durable together, and so that
//! a checkpoint taken between two blocks never lies within a unit. What one group proposes is handed out as a unit
//! before it grows beyond what a block should hold.

use chronik_engine::ids::{GroupId, Offset, RaftIndex};
use chronik_engine::limits::{WAL_BLOCK_BYTES_MAX, WAL_BLOCK_RECORDS_MAX};
use chronik_engine::wal::record::WalRecord;
use chronik_replication::ReadyNumber;

use super::{ShardCore, Shared};

/// Proposals of one group that become a unit though nobody asks for a block.
pub(super) const UNIT_ENTRIES_MAX: usize = WAL_BLOCK_RECORDS_MAX / 8;
/// Payload bytes of one group that become a unit though nobody asks for a block.
pub(super) const UNIT_BYTES_MAX: usize = WAL_BLOCK_BYTES_MAX;

/// What a record costs in a block beside its payload.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Why records were given out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cause {
    Created,
    Deleted,
    /// The log begins after this entry.
    Cut(RaftIndex),
    Ready(ReadyNumber),
}

/// Some records of one group that belong together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) group: GroupId,
    pub(super) cause: Cause,
    pub(super) record_count: usize,
    pub(super) bytes: usize,
}

impl Unit {
    pub(super) fn created(group: GroupId) -> Unit {
        Unit { group, cause: Cause::Created, record_count: 0, bytes: 0 }
    }

    pub(super) fn deleted(group: GroupId) -> Unit {
        Unit { group, cause: Cause::Deleted, record_count: 0, bytes: 0 }
    }

    pub(super) fn cut(group: GroupId, index: RaftIndex) -> Unit {
        Unit { group, cause: Cause::Cut(index), record_count: 0, bytes: 0 }
    }
}

/// Records to be written as one block, and what becomes true when it is durable.
#[derive(Debug)]
pub struct PendingBlock {
    /// The records, never none.
    pub records: Vec<WalRecord>,
    pub(super) units: Vec<Unit>,
}

impl Shared {
    /// Adds a unit of one record.
    pub(super) fn stage(&mut self, unit: Unit, record: WalRecord) {
        let first = self.out.records.len();
        self.out.records.push(record);
        self.stage_unit(unit, first);
    }

    /// Makes a unit of the records from `first` on, which Raft has just added.
    pub(super) fn stage_ready(&mut self, group: GroupId, number: ReadyNumber, first: usize) {
        let unit = Unit { group, cause: Cause::Ready(number), record_count: 0, bytes: 0 };
        self.stage_unit(unit, first);
    }

    fn stage_unit(&mut self, mut unit: Unit, first: usize) {
        let records = &self.out.records[first..];
        assert!(!records.is_empty(), "a unit has records");
        assert!(records.len() <= WAL_BLOCK_RECORDS_MAX, "a unit fits a block");
        unit.record_count = records.len();
        unit.bytes = records.iter().map(record_bytes).sum();
        self.unit_bytes += unit.bytes;
        self.units.push_back(unit);
    }

    /// Takes the first units, as many as fit; one always does.
    fn take_units(&mut self, bytes_max: usize) -> Option<PendingBlock> {
        let mut units = Vec::new();
        let (mut record_count, mut bytes) = (0, 0);
        while let Some(unit) = self.units.front().copied() {
            let fits = bytes + unit.bytes <= bytes_max
                && record_count + unit.record_count <= WAL_BLOCK_RECORDS_MAX;
            if !fits && !units.is_empty() {
                break;
            }
            record_count += unit.record_count;
            bytes += unit.bytes;
            units.push(unit);
            self.units.pop_front();
        }
        if units.is_empty() {
            assert!(self.out.records.is_empty(), "records belong to units");
            return None;
        }
        self.unit_bytes -= bytes;
        let mut records = std::mem::take(&mut self.spare_records);
        if self.units.is_empty() {
            std::mem::swap(&mut records, &mut self.out.records);
        } else {
            records.extend(self.out.records.drain(..record_count));
        }
        assert!(records.len() == record_count, "each record belongs to one unit");
        Some(PendingBlock { records, units })
    }
}

fn record_bytes(record: &WalRecord) -> usize {
    RECORD_OVERHEAD_BYTES
        + match record {
            WalRecord::Entry { entry, .. } => entry.payload.len(),
            _ => 0,
        }
}

impl ShardCore {
    /// Takes the next block to write, about `bytes_max` of it: everything that was proposed, or the first part of it.
    /// One block is in flight at a time; its records are to be written in their order.
    pub fn take_block(&mut self, bytes_max: usize) -> Option<PendingBlock> {
        while self.shared.unit_bytes < bytes_max
            && let Some(id) = self.dirty.pop_front()
        {
            if let Some(group) = self.groups.get_mut(&id) {
                group.is_dirty = false;
                group.pump(&mut self.shared);
            }
        }
        let block = self.shared.take_units(bytes_max);
        if block.is_some() {
            self.stall.block_taken();
        }
        block
    }

    /// Whether [`ShardCore::take_block`] would give anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.shared.units.is_empty() || !self.dirty.is_empty()
    }

    /// The block is durable: what waited for that goes on.
    pub fn block_persisted(&mut self, block: PendingBlock) {
        self.on_block_ended();
        let PendingBlock { mut records, units } = block;
        for unit in &units {
            let Some(group) = self.groups.get_mut(&unit.group) else {
                unreachable!("group {} stays until its deletion is durable", unit.group)
            };
            match unit.cause {
                Cause::Created => group.on_created(),
                Cause::Deleted => {
                    let gone = group.take_segments_before(Offset(i64::MAX));
                    self.shared.effects.segments_gone.extend(gone);
                    self.groups.remove(&unit.group);
                }
                Cause::Cut(index) => group.on_cut(index),
                Cause::Ready(number) => {
                    group.raft.on_persisted(number, &mut self.shared.effects.messages);
                    group.release_durable(&mut self.shared);
                    group.pump(&mut self.shared);
                }
            }
        }
        records.clear();
        self.shared.spare_records = records;
    }
}
