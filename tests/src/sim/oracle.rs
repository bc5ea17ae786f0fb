//! What must be true, now and after every restart.
//!
//! - P1: an acknowledged batch is readable at its offset for ever.
//! - P2: an offset holds one value for all time.
//! - P3: offsets rise in the order in which batches were taken.
//! - P4: no batch is in a log twice, and a duplicate is answered with the offset of the first.
//! - P5: term and vote never go back; nothing that was durable is missing after a restart.
//! - P7: the log start never goes back, never moves by itself and never beyond the high watermark; P1 holds from it on.
//! - P6: the high watermark never goes back, and nothing at or beyond it is read.
//! - What the state machine says is what its log says, read from the beginning.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use chronik_engine::batch::BatchHeader;
use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::tail_cache::CachedBatch;
use chronik_engine::wal::RecoveredGroup;
use chronik_engine::wal::record::{HardState, WalRecord};
use chronik_shards::core::producers::ProducersImage;
use chronik_shards::stored::FoundBatch;

use super::{Check, Violation};
use crate::must;

/// Where the fields lie that the broker sets, and that are not part of what a producer sent.
const BASE_OFFSET_END: usize = 8;
const LENGTH_END: usize = 12;
const EPOCH_END: usize = 16;

/// One batch of a partition as it was acknowledged or read.
#[derive(Debug, Clone)]
struct Known {
    bytes: Bytes,
    count: u32,
    epoch: Option<Term>,
    is_acked: bool,
}

/// What is known of a partition.
#[derive(Debug, Default)]
pub struct PartitionOracle {
    sent: HashMap<i64, Bytes>,
    known: BTreeMap<i64, Known>,
    offsets: HashMap<i64, i64>,
    high_watermark: i64,
    log_start: i64,
    /// The furthest that anybody wanted it.
    log_start_asked: i64,
    /// Token and offset of the last plain batch that was acknowledged.
    last_plain: Option<(u64, i64)>,
}

/// A batch that was read.
#[derive(Debug, Clone)]
pub struct ReadBatch {
    /// Its offset, as the log has it beside the batch.
    pub base_offset: Offset,
    /// Its epoch, as the log has it beside the batch.
    pub epoch: Term,
    /// The batch.
    pub bytes: Bytes,
    /// Whether offset and epoch must stand in the bytes, too.
    pub is_patched: bool,
}

impl ReadBatch {
    /// The offset behind its last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        let count = BatchHeader::read(&self.bytes).map_or(1, |h| h.last_offset_delta + 1);
        self.base_offset.plus(count.unsigned_abs())
    }
}

impl From<FoundBatch> for ReadBatch {
    fn from(found: FoundBatch) -> ReadBatch {
        ReadBatch {
            base_offset: found.base_offset,
            epoch: found.epoch,
            bytes: found.bytes,
            is_patched: true,
        }
    }
}

impl From<&CachedBatch> for ReadBatch {
    fn from(cached: &CachedBatch) -> ReadBatch {
        ReadBatch {
            base_offset: cached.base_offset,
            epoch: cached.epoch,
            bytes: cached.bytes.clone(),
            is_patched: false,
        }
    }
}

/// The name of a batch: the run gives every one another base timestamp.
#[must_use]
pub fn batch_id(bytes: &[u8]) -> Option<i64> {
    BatchHeader::read(bytes).map(|header| header.base_timestamp_ms)
}

fn same_content(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a[BASE_OFFSET_END..LENGTH_END] == b[BASE_OFFSET_END..LENGTH_END]
        && a[EPOCH_END..] == b[EPOCH_END..]
}

impl PartitionOracle {
    /// A batch is about to be sent, for the first time or again.
    pub fn sends(&mut self, id: i64, bytes: &Bytes) {
        self.sent.insert(id, bytes.clone());
    }

    /// A batch was acknowledged (P1, P4).
    pub fn acked(&mut self, id: i64, base_offset: Offset) -> Check {
        let Some(bytes) = self.sent.get(&id).cloned() else {
            return Err(Violation { what: format!("batch {id} was acknowledged but never sent") });
        };
        self.learn(id, base_offset, bytes, None, true)
    }

    /// A plain batch was acknowledged: tokens and offsets rise together (P3).
    pub fn acked_in_order(&mut self, token: u64, base_offset: Offset) -> Check {
        if let Some((last_token, last_offset)) = self.last_plain.replace((token, base_offset.0)) {
            let agree = (last_token < token) == (last_offset < base_offset.0);
            must!(agree, "P3: {last_token} got {last_offset}, {token} got {base_offset}");
        }
        Ok(())
    }

    /// Tokens of another life of the shard are not compared.
    pub fn forget_order(&mut self) {
        self.last_plain = None;
    }

    fn learn(
        &mut self,
        id: i64,
        base_offset: Offset,
        bytes: Bytes,
        epoch: Option<Term>,
        is_acked: bool,
    ) -> Check {
        let at = base_offset.0;
        if let Some(before) = self.offsets.insert(id, at) {
            must!(before == at, "P4: batch {id} is at offset {before} and at {at}");
        }
        let count = BatchHeader::read(&bytes).map_or(0, |header| header.record_count);
        let count = u32::try_from(count).unwrap_or(0);
        must!(count > 0, "batch {id} at offset {at} is none");
        if let Some(known) = self.known.get_mut(&at) {
            must!(same_content(&known.bytes, &bytes), "P2: offset {at} has another value: {id}");
            if let (Some(before), Some(now)) = (known.epoch, epoch) {
                must!(before == now, "P2: offset {at} was of epoch {before}, is of {now}");
            }
            known.epoch = known.epoch.or(epoch);
            known.is_acked |= is_acked;
            return Ok(());
        }
        let before = self.known.range(..at).next_back();
        if let Some((offset, before)) = before {
            let end = offset + i64::from(before.count);
            must!(end <= at, "P2: the batch at {offset} reaches to {end}, over {at}");
        }
        if let Some((next, _)) = self.known.range(at..).next() {
            let end = at + i64::from(count);
            must!(end <= *next, "P2: the batch at {at} reaches to {end}, over {next}");
        }
        self.known.insert(at, Known { bytes, count, epoch, is_acked });
        Ok(())
    }

    /// The high watermark was seen (P6).
    pub fn saw_high_watermark(&mut self, high_watermark: Offset) -> Check {
        let now = high_watermark.0;
        must!(
            now >= self.high_watermark,
            "P6: high watermark {} went to {now}",
            self.high_watermark
        );
        self.high_watermark = now;
        Ok(())
    }

    /// Somebody wants the log to start there.
    pub fn asked_log_start(&mut self, offset: Offset) {
        self.log_start_asked = self.log_start_asked.max(offset.0);
    }

    /// The log start was seen (P7).
    pub fn saw_log_start(&mut self, log_start: Offset) -> Check {
        let now = log_start.0;
        must!(now >= self.log_start, "P7: log start {} went to {now}", self.log_start);
        let asked = self.log_start_asked;
        must!(now <= asked, "P7: the log starts at {now}, nobody asked for more than {asked}");
        let high_watermark = self.high_watermark;
        must!(now <= high_watermark, "P7: log start {now}, watermark {high_watermark}");
        self.log_start = now;
        Ok(())
    }

    /// A reader got these batches for `offset`, with the high watermark that it was told.
    pub fn read(&mut self, offset: Offset, high_watermark: Offset, batches: &[ReadBatch]) -> Check {
        let mut expected = None;
        for batch in batches {
            let at = batch.base_offset;
            let header = BatchHeader::read(&batch.bytes);
            let Some(header) = header else {
                return Err(Violation { what: format!("offset {at} has no batch") });
            };
            let end = at.0 + i64::from(header.record_count);
            match expected {
                None => {
                    let holds = at <= offset && offset.0 < end;
                    must!(holds, "{offset} was asked for, the first batch is {at}..{end}");
                }
                Some(expected) => must!(at.0 == expected, "{at} follows {expected}"),
            }
            expected = Some(end);
            must!(end <= high_watermark.0, "P6: {at}..{end} read, watermark {high_watermark}");
            if batch.is_patched {
                must!(header.base_offset == at, "{at} says it is {}", header.base_offset);
                let epoch = u64::try_from(header.leader_epoch).map(Term);
                must!(epoch == Ok(batch.epoch), "{at}: epoch {:?}, {epoch:?}", batch.epoch);
            }
            let id = header.base_timestamp_ms;
            let sent = self.sent.get(&id).is_some_and(|sent| same_content(sent, &batch.bytes));
            must!(sent, "offset {at} holds what nobody sent: {id}");
            self.learn(id, at, batch.bytes.clone(), Some(batch.epoch), false)?;
        }
        Ok(())
    }

    /// The whole log was read: every offset from its start up to the watermark, and no known batch is missing (P1).
    pub fn read_whole(
        &mut self,
        begin: Offset,
        high_watermark: Offset,
        batches: &[ReadBatch],
    ) -> Check {
        must!(
            high_watermark == begin || !batches.is_empty(),
            "P1: nothing is readable below {high_watermark}"
        );
        self.read(begin, high_watermark, batches)?;
        let end = batches.last().map_or(begin.0, |last| {
            let count = BatchHeader::read(&last.bytes).map_or(0, |header| header.record_count);
            last.base_offset.0 + i64::from(count)
        });
        must!(end == high_watermark.0, "P1: {end} is readable, the watermark is {high_watermark}");
        let read: HashSet<i64> = batches.iter().map(|batch| batch.base_offset.0).collect();
        for (offset, known) in &self.known {
            if offset + i64::from(known.count) <= begin.0 {
                continue;
            }
            let how = if known.is_acked { "acknowledged" } else { "read before" };
            must!(read.contains(offset), "P1: the batch at {offset}, {how}, is gone");
        }
        self.saw_high_watermark(high_watermark)?;
        self.saw_log_start(begin)
    }

    /// How many batches are known.
    #[must_use]
    pub fn batches(&self) -> usize {
        self.known.len()
    }
}

/// The producers as the whole log has them, computed in the simplest way there is.
#[must_use]
pub fn producers_of(batches: &[ReadBatch]) -> BTreeMap<i64, (i16, Vec<(i32, i64)>)> {
    let mut producers: BTreeMap<i64, (i16, Vec<(i32, i64)>)> = BTreeMap::new();
    for batch in batches {
        let Some(header) = BatchHeader::read(&batch.bytes) else { continue };
        if header.producer_id < 0 {
            continue;
        }
        let producer = producers.entry(header.producer_id).or_default();
        if producer.0 != header.producer_epoch {
            *producer = (header.producer_epoch, Vec::new());
        }
        producer.1.push((header.base_sequence, batch.base_offset.0));
        if producer.1.len() > 5 {
            producer.1.remove(0);
        }
    }
    producers
}

/// Compares the state of a partition with that of its log: of what lies before the first batch that is left, only the
/// state knows.
pub fn check_producers(group: GroupId, state: &[u8], batches: &[ReadBatch]) -> Check {
    let image = ProducersImage::decode(state)
        .map_err(|error| Violation { what: format!("group {group}: its state: {error}") })?;
    let first = batches.first().map_or(Offset(i64::MAX), |batch| batch.base_offset);
    let found: BTreeMap<i64, (i16, Vec<(i32, i64)>)> = image
        .producers
        .iter()
        .map(|producer| {
            let recent = producer.recent.iter().filter(|batch| batch.base_offset >= first);
            let recent = recent.map(|b| (b.first_sequence, b.base_offset.0));
            (producer.producer_id, (producer.epoch, recent.collect::<Vec<_>>()))
        })
        .filter(|(_, (_, recent))| !recent.is_empty())
        .collect();
    let expected = producers_of(batches);
    must!(found == expected, "group {group}: its state is {found:?}, its log says {expected:?}");
    Ok(())
}

/// What of one group is durable.
#[derive(Debug, Clone, Copy, Default)]
struct Durable {
    hard_state: HardState,
    last: RaftIndex,
}

/// What is durable, as the core was told.
#[derive(Debug, Default)]
pub struct LogOracle {
    groups: BTreeMap<GroupId, Durable>,
    deleted: HashSet<GroupId>,
}

impl LogOracle {
    /// These records are durable.
    pub fn persisted(&mut self, records: &[WalRecord]) {
        for record in records {
            let group = record.group();
            match record {
                WalRecord::GroupCreated { .. } => {
                    self.groups.insert(group, Durable::default());
                }
                WalRecord::GroupDeleted { .. } => {
                    self.groups.remove(&group);
                    self.deleted.insert(group);
                }
                WalRecord::Entry { entry, .. } => {
                    self.groups.entry(group).or_default().last = entry.index;
                }
                WalRecord::TruncateAfter { index, .. } => {
                    self.groups.entry(group).or_default().last = *index;
                }
                WalRecord::HardState { state, .. } => {
                    self.groups.entry(group).or_default().hard_state = *state;
                }
                WalRecord::LogStart { .. } | WalRecord::Checkpoint(_) => {}
            }
        }
    }

    /// A restart found these groups (P5).
    pub fn recovered(&mut self, recovered: &[RecoveredGroup]) -> Check {
        let found: BTreeMap<GroupId, &RecoveredGroup> =
            recovered.iter().map(|group| (group.checkpoint.group, group)).collect();
        for (group, durable) in &self.groups {
            // A deletion in flight may have happened.
            let Some(found) = found.get(group) else { continue };
            let Durable { hard_state, last } = durable;
            must!(
                found.last.index >= *last,
                "P5: group {group} ended at {last}, ends at {}",
                found.last.index
            );
            let HardState { term, vote, .. } = found.hard_state;
            must!(
                term >= hard_state.term,
                "P5: group {group} was in term {}, is in {term}",
                hard_state.term
            );
            let votes_again = term == hard_state.term
                && hard_state.vote != ReplicaId::NONE
                && vote != hard_state.vote;
            must!(
                !votes_again,
                "P5: group {group} voted {} in {term}, {vote} now",
                hard_state.vote
            );
        }
        for group in found.keys() {
            must!(!self.deleted.contains(group), "group {group} was deleted and is back");
        }
        self.groups.retain(|group, _| found.contains_key(group));
        Ok(())
    }

    /// Whether the group's creation is durable and its deletion is not.
    #[must_use]
    pub fn has(&self, group: GroupId) -> bool {
        self.groups.contains_key(&group)
    }
}
