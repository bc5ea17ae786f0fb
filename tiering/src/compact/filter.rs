//! What stays of a batch.

use chronik_engine::batch::{
    BatchError, BatchRewriter, DeleteHorizon, RecordBatch, RecordSlice, RecordSlices,
};
use chronik_engine::ids::Offset;
use chronik_engine::limits::BATCH_DECOMPRESSED_BYTES_MAX;

use super::map::KeyMap;

/// What stays of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of it, as it is.
    Same,
    /// Some records, or all with another delete horizon.
    Changed(RecordBatch),
    /// Nothing.
    Nothing,
}

/// Goes through batches in the order of their offsets.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) now_ms: i64,
    pub(super) delete_retention_ms: i64,
    pub(super) records_dropped: u64,
    pub(super) batches_unreadable: u64,
    /// Which records of a batch stay, a bit for each. Kept here for its memory.
    stays: Vec<u64>,
}

/// The records that compaction may look at; none if the batch is not its business.
pub(super) fn readable(batch: &RecordBatch) -> Option<Result<RecordSlices, BatchError>> {
    let skipped = batch.is_control() || batch.is_transactional();
    (!skipped).then(|| batch.record_slices(BATCH_DECOMPRESSED_BYTES_MAX))
}

/// The record's offset in its partition.
pub(super) fn offset(batch: &RecordBatch, record: &RecordSlice<'_>) -> Offset {
    batch.base_offset().plus(record.offset_delta.unsigned_abs())
}

impl Filter {
    pub(super) fn new(now_ms: i64, delete_retention_ms: i64) -> Filter {
        Filter {
            now_ms,
            delete_retention_ms: delete_retention_ms.max(0),
            records_dropped: 0,
            batches_unreadable: 0,
            stays: Vec::new(),
        }
    }

    /// Says what stays of the next batch.
    pub(super) fn apply(&mut self, batch: &RecordBatch, map: &KeyMap) -> Kept {
        if batch.is_control() {
            return Kept::Same;
        }
        if batch.record_count() == 0 {
            return Kept::Nothing;
        }
        let horizon_ms = batch.header().delete_horizon_ms();
        // As long as keys are left that the map was not asked about, old records of them may be there still.
        let is_past = map.is_last_part() && horizon_ms.is_some_and(|at| at <= self.now_ms);
        let records = match readable(batch) {
            Some(Ok(records)) => records,
            Some(Err(_)) => {
                self.batches_unreadable += u64::from(map.is_last_part());
                return as_it_is(batch, is_past);
            }
            None => return as_it_is(batch, is_past),
        };
        let (count, tombstones) = self.choose(batch, &records, map, is_past);
        self.records_dropped += u64::from((batch.record_count() - count).unsigned_abs());
        let horizon = match horizon_ms {
            Some(_) if tombstones == 0 => DeleteHorizon::Clear,
            None if tombstones > 0 && map.is_last_part() => {
                DeleteHorizon::Set(self.now_ms.saturating_add(self.delete_retention_ms))
            }
            _ => DeleteHorizon::Keep,
        };
        match (count == batch.record_count(), horizon) {
            _ if count == 0 => Kept::Nothing,
            (true, DeleteHorizon::Keep) => Kept::Same,
            (true, DeleteHorizon::Clear) => Kept::Changed(batch.without_delete_horizon()),
            _ => match self.rewrite(batch, &records, horizon) {
                Ok(rewritten) => Kept::Changed(rewritten),
                Err(_) => as_it_is(batch, is_past),
            },
        }
    }

    /// Marks the records that stay; how many, and how many tombstones among them.
    fn choose(
        &mut self,
        batch: &RecordBatch,
        records: &RecordSlices,
        map: &KeyMap,
        is_past: bool,
    ) -> (i32, i32) {
        self.stays.clear();
        let (mut count, mut tombstones) = (0, 0);
        for (at, record) in records.iter().enumerate() {
            let stays = match record.key {
                None => !map.is_last_part(),
                Some(_) if is_past && record.is_tombstone => false,
                Some(key) => !map.has_newer(key, offset(batch, &record)),
            };
            if at % 64 == 0 {
                self.stays.push(0);
            }
            if let Some(bits) = self.stays.last_mut().filter(|_| stays) {
                *bits |= 1 << (at % 64);
                count += 1;
                tombstones += i32::from(record.is_tombstone);
            }
        }
        (count, tombstones)
    }

    fn rewrite(
        &self,
        batch: &RecordBatch,
        records: &RecordSlices,
        horizon: DeleteHorizon,
    ) -> Result<RecordBatch, BatchError> {
        let mut rewriter = BatchRewriter::new(batch, horizon);
        for (at, record) in records.iter().enumerate() {
            if self.stays[at / 64] >> (at % 64) & 1 == 1 {
                rewriter.push(&record);
            }
        }
        rewriter.finish()
    }
}

/// The batch with all its records. A delete horizon that has passed is taken off, or it would be waited for for ever.
fn as_it_is(batch: &RecordBatch, is_past: bool) -> Kept {
    match is_past {
        true => Kept::Changed(batch.without_delete_horizon()),
        false => Kept::Same,
    }
}
