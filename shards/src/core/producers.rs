//! What a partition remembers of its idempotent producers, and the checks on their sequence numbers.
//!
//! The rules are those of Kafka 4.1's `ProducerStateManager`: an unknown producer may begin with any sequence, a known
//! one must go on where it stopped, a new epoch begins at 0, sequences wrap from `i32::MAX` to 0, and a batch that is
//! among the last [`RECENT_BATCHES`] of its producer is answered with the offset that it got the first time. One thing
//! is told more exactly than by Kafka: a batch known to be appended, but too long ago for its offset to be remembered,
//! is DUPLICATE_SEQUENCE_NUMBER (which clients take for success) and not OUT_OF_ORDER_SEQUENCE_NUMBER (on which some
//! begin a new epoch and send it again).
//!
//! There are two layers. The *applied* state is what the committed log says; every replica computes it from the batch
//! headers alone. The *speculative* state of a producer is the applied one plus the leader's own proposals that are not
//! applied yet; checks go against it, and it is dropped when leadership is lost.
//!
//! Invariants:
//! - I1: the applied state is a function of the applied entries, but for expiry and `active_ms`.
//! - I2: a producer has a speculative state if and only if the leader has batches of it in flight.
//! - I3: `by_age` holds each applied producer once, under the index of its last batch.
//!
//! Expiry is a local decision by the local clock, so replicas may forget a producer at different times. That is safe:
//! what is forgotten is only ever accepted *more* freely (any first sequence), never refused; what is remembered longer
//! is overwritten by whatever the log says next, without a check. A producer is kept at least `producer_expiration_ms`
//! after its last batch was *applied here*: the timestamps in batches are the client's and may lie years back, and after
//! a restart the time of the replay counts, so a clock or a replay can only lengthen the memory.

use std::collections::{BTreeMap, HashMap};

use chronik_engine::framed::{self, FramedError};
use chronik_engine::ids::{Offset, RaftIndex};
use thiserror::Error;

use super::hash::IdHashBuilder;

/// How many batches of each producer are remembered with their offsets: as many as a client may have in flight.
pub const RECENT_BATCHES: usize = 5;

/// Format version of the encoded state.
const VERSION: u8 = 1;

/// Most memory that decoding the state of one partition may claim.
const STATE_BYTES_MAX: usize = 256 << 20;

/// What a batch says of its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerBatch {
    /// The producer, not negative.
    pub producer_id: i64,
    /// Its epoch.
    pub epoch: i16,
    /// The sequence of the first record, not negative.
    pub first_sequence: i32,
    /// How many records, at least one.
    pub record_count: u32,
}

impl ProducerBatch {
    fn last_sequence(&self) -> i32 {
        sequence_plus(self.first_sequence, self.record_count.saturating_sub(1))
    }
}

/// The sequence `count` records after `sequence`: 0 follows `i32::MAX`.
fn sequence_plus(sequence: i32, count: u32) -> i32 {
    let sum = i64::from(sequence) + i64::from(count);
    let wrapped = sum.rem_euclid(1 << 31);
    match i32::try_from(wrapped) {
        Ok(sequence) => sequence,
        Err(_) => unreachable!("{wrapped} is below 2^31"),
    }
}

/// How many records lie between two sequences, going forward from `from` to `to`.
fn sequence_distance(from: i32, to: i32) -> i64 {
    (i64::from(to) - i64::from(from)).rem_euclid(1 << 31)
}

/// What becomes of a batch of an idempotent producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next one.
    Append,
    /// It was appended before.
    Duplicate {
        /// The offset that it got.
        base_offset: Offset,
    },
}

/// Why a batch of an idempotent producer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SequenceError {
    /// INVALID_PRODUCER_EPOCH
    #[error("producer {producer_id} has epoch {current} here, the batch has {epoch}")]
    InvalidProducerEpoch {
        /// The producer.
        producer_id: i64,
        /// The batch's epoch.
        epoch: i16,
        /// The newest epoch seen.
        current: i16,
    },
    /// OUT_OF_ORDER_SEQUENCE_NUMBER
    #[error(
        "producer {producer_id}: sequence {sequence} does not follow {}",
        .last.map_or("nothing: an epoch begins with 0".to_owned(), |last| last.to_string())
    )]
    OutOfOrderSequence {
        /// The producer.
        producer_id: i64,
        /// The batch's first sequence.
        sequence: i32,
        /// The last sequence seen in the batch's epoch, none if the epoch is new.
        last: Option<i32>,
    },
    /// DUPLICATE_SEQUENCE_NUMBER
    #[error("producer {producer_id}: sequence {sequence} was appended long ago")]
    DuplicateSequence {
        /// The producer.
        producer_id: i64,
        /// The batch's first sequence.
        sequence: i32,
    },
}

/// A batch that is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
pub struct RecentBatch {
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// Its offset.
    pub base_offset: Offset,
}

/// What is remembered of one producer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Oldest first; the first `recent_count` count.
    recent: [RecentBatch; RECENT_BATCHES],
    recent_count: usize,
    /// Records of this epoch known to be appended one after the other up to the last one.
    run_records: u32,
    /// Index of the last batch.
    last_index: RaftIndex,
    /// When it was applied here.
    active_ms: i64,
}

impl Producer {
    fn new(epoch: i16) -> Producer {
        Producer {
            epoch,
            recent: [RecentBatch::default(); RECENT_BATCHES],
            recent_count: 0,
            run_records: 0,
            last_index: RaftIndex(0),
            active_ms: 0,
        }
    }

    fn recent(&self) -> &[RecentBatch] {
        &self.recent[..self.recent_count]
    }

    fn last_sequence(&self) -> Option<i32> {
        self.recent().last().map(|batch| batch.last_sequence)
    }

    fn follows(&self, batch: &ProducerBatch) -> bool {
        self.last_sequence().is_some_and(|last| sequence_plus(last, 1) == batch.first_sequence)
    }

    fn check(&self, batch: &ProducerBatch) -> Result<Verdict, SequenceError> {
        let ProducerBatch { producer_id, epoch, first_sequence: sequence, .. } = *batch;
        if epoch < self.epoch {
            let current = self.epoch;
            return Err(SequenceError::InvalidProducerEpoch { producer_id, epoch, current });
        }
        if epoch > self.epoch {
            return match sequence {
                0 => Ok(Verdict::Append),
                _ => Err(SequenceError::OutOfOrderSequence { producer_id, sequence, last: None }),
            };
        }
        let last_sequence = batch.last_sequence();
        let same = |known: &&RecentBatch| {
            known.first_sequence == sequence && known.last_sequence == last_sequence
        };
        if let Some(known) = self.recent().iter().find(same) {
            return Ok(Verdict::Duplicate { base_offset: known.base_offset });
        }
        if self.follows(batch) {
            return Ok(Verdict::Append);
        }
        if self.was_appended_long_ago(batch) {
            return Err(SequenceError::DuplicateSequence { producer_id, sequence });
        }
        let last = self.last_sequence();
        Err(SequenceError::OutOfOrderSequence { producer_id, sequence, last })
    }

    /// Whether all records of the batch lie in the unbroken run of this epoch, before the batches that are remembered.
    fn was_appended_long_ago(&self, batch: &ProducerBatch) -> bool {
        let (Some(oldest), Some(last)) = (self.recent().first(), self.last_sequence()) else {
            return false;
        };
        let remembered = sequence_distance(oldest.first_sequence, last) + 1;
        let back = sequence_distance(batch.last_sequence(), last);
        back >= remembered && back + i64::from(batch.record_count) <= i64::from(self.run_records)
    }

    /// Takes the batch in without a check, as the log says.
    fn append(&mut self, batch: &ProducerBatch, base_offset: Offset) {
        if batch.epoch != self.epoch {
            *self = Producer { active_ms: self.active_ms, ..Producer::new(batch.epoch) };
        } else if !self.follows(batch) {
            self.run_records = 0;
        }
        self.run_records = self.run_records.saturating_add(batch.record_count).min(i32::MAX as u32);
        if self.recent_count == RECENT_BATCHES {
            self.recent.rotate_left(1);
            self.recent_count -= 1;
        }
        self.recent[self.recent_count] = RecentBatch {
            first_sequence: batch.first_sequence,
            last_sequence: batch.last_sequence(),
            base_offset,
        };
        self.recent_count += 1;
    }
}

#[derive(Debug)]
struct Speculative {
    producer: Producer,
    batches_in_flight: u32,
}

/// A producer as clients may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerView {
    /// Its id.
    pub producer_id: i64,
    /// Its newest epoch.
    pub epoch: i16,
    /// The sequence of its last record.
    pub last_sequence: i32,
    /// When its last batch was applied here.
    pub active_ms: i64,
}

/// All producers of one partition.
#[derive(Debug)]
pub struct Producers {
    applied: HashMap<i64, Producer, IdHashBuilder>,
    by_age: BTreeMap<RaftIndex, i64>,
    speculative: HashMap<i64, Speculative, IdHashBuilder>,
    producers_max: usize,
}

impl Producers {
    /// No producers; at most `producers_max` will be remembered, those that wrote last.
    #[must_use]
    pub fn new(producers_max: usize) -> Producers {
        assert!(producers_max > 0, "a partition remembers at least one producer");
        Producers {
            applied: HashMap::default(),
            by_age: BTreeMap::new(),
            speculative: HashMap::default(),
            producers_max,
        }
    }

    /// How many producers are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.applied.len()
    }

    /// Each of them, those that were silent longest first.
    pub fn views(&self) -> impl Iterator<Item = ProducerView> {
        self.by_age.values().filter_map(|id| {
            let producer = self.applied.get(id)?;
            Some(ProducerView {
                producer_id: *id,
                epoch: producer.epoch,
                last_sequence: producer.last_sequence()?,
                active_ms: producer.active_ms,
            })
        })
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty()
    }

    /// Whether the leader may append this batch now.
    ///
    /// # Errors
    /// If its epoch or its sequence is not the next one.
    pub fn check(&self, batch: &ProducerBatch) -> Result<Verdict, SequenceError> {
        assert!(batch.producer_id >= 0, "a batch without a producer is not checked");
        assert!(batch.first_sequence >= 0, "a sequence is never negative");
        let id = batch.producer_id;
        let speculative = self.speculative.get(&id).map(|speculative| &speculative.producer);
        match speculative.or_else(|| self.applied.get(&id)) {
            Some(producer) => producer.check(batch),
            None => Ok(Verdict::Append),
        }
    }

    /// The leader has proposed this batch, which [`Producers::check`] allowed.
    pub fn propose(&mut self, batch: &ProducerBatch, base_offset: Offset) {
        let applied = &self.applied;
        let speculative = self.speculative.entry(batch.producer_id).or_insert_with(|| {
            let known = applied.get(&batch.producer_id).cloned();
            let producer = known.unwrap_or_else(|| Producer::new(batch.epoch));
            Speculative { producer, batches_in_flight: 0 }
        });
        speculative.producer.append(batch, base_offset);
        speculative.batches_in_flight += 1;
    }

    /// Leadership is lost: what was proposed and is not applied may never be.
    pub fn roll_back(&mut self) {
        self.speculative.clear();
    }

    /// The log says that this batch is committed at `index`.
    pub fn apply(
        &mut self,
        batch: &ProducerBatch,
        base_offset: Offset,
        index: RaftIndex,
        now_ms: i64,
    ) {
        let id = batch.producer_id;
        let producer = self.applied.entry(id).or_insert_with(|| Producer::new(batch.epoch));
        assert!(producer.last_index < index, "entries are applied in order");
        self.by_age.remove(&producer.last_index);
        producer.append(batch, base_offset);
        producer.last_index = index;
        producer.active_ms = now_ms;
        self.by_age.insert(index, id);
        if self.applied.len() > self.producers_max
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.applied.remove(&oldest);
        }
        if let Some(speculative) = self.speculative.get_mut(&id) {
            speculative.batches_in_flight -= 1;
            if speculative.batches_in_flight == 0 {
                self.speculative.remove(&id);
            }
        }
        assert!(self.by_age.len() == self.applied.len(), "I3: a producer is not in the age list");
    }

    /// Forgets producers whose last batch was applied before `before_ms`, oldest first, at most `count_max` of them.
    pub fn expire(&mut self, before_ms: i64, count_max: usize) {
        for _ in 0..count_max {
            let Some((_, id)) = self.by_age.first_key_value() else { return };
            let expired = self.applied.get(id).is_none_or(|oldest| oldest.active_ms < before_ms);
            if !expired {
                return;
            }
            if let Some((_, id)) = self.by_age.pop_first() {
                self.applied.remove(&id);
            }
        }
    }

    /// The applied state, for a checkpoint.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let image = ProducersImage {
            producers: self
                .by_age
                .values()
                .filter_map(|id| self.applied.get(id).map(|producer| producer.image(*id)))
                .collect(),
        };
        assert!(
            image.producers.len() == self.applied.len(),
            "I3: a producer is not in the age list"
        );
        image.encode()
    }

    /// The applied state of a checkpoint. No bytes at all are no producers.
    ///
    /// # Errors
    /// If the bytes are not such a state of a version this program knows.
    pub fn decode(
        bytes: &[u8],
        producers_max: usize,
        now_ms: i64,
    ) -> Result<Producers, ProducerStateError> {
        let mut producers = Producers::new(producers_max);
        if bytes.is_empty() {
            return Ok(producers);
        }
        let image = ProducersImage::decode(bytes)?;
        let surplus = image.producers.len().saturating_sub(producers_max);
        for image in image.producers.into_iter().skip(surplus) {
            let id = image.producer_id;
            let producer = Producer::restore(&image, now_ms)?;
            let rising =
                producers.by_age.last_key_value().is_none_or(|(last, _)| *last < image.last_index);
            if !rising {
                return Err(ProducerStateError::Inconsistent { producer_id: id });
            }
            producers.by_age.insert(image.last_index, id);
            if producers.applied.insert(id, producer).is_some() {
                return Err(ProducerStateError::Inconsistent { producer_id: id });
            }
        }
        Ok(producers)
    }
}

/// The encoded form of a partition's producers: those that wrote last stand last.
#[derive(Debug, Clone, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
pub struct ProducersImage {
    /// The producers.
    pub producers: Vec<ProducerImage>,
}

/// The encoded form of one producer.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ProducerImage {
    /// Its id.
    pub producer_id: i64,
    /// Its newest epoch.
    pub epoch: i16,
    /// Its last batches in that epoch, oldest first.
    pub recent: Vec<RecentBatch>,
    /// Records known to be appended one after the other up to the last one.
    pub run_records: u32,
    /// Index of the last batch.
    pub last_index: RaftIndex,
    /// When that batch was applied on the replica that wrote this.
    pub active_ms: i64,
}

/// Why bytes are not the state of a partition's producers.
#[derive(Debug, Error)]
pub enum ProducerStateError {
    /// Not the format, or another version of it.
    #[error(transparent)]
    Framed(#[from] FramedError),
    /// Well-formed, but it cannot have been written by a correct program.
    #[error("the state of producer {producer_id} contradicts itself")]
    Inconsistent {
        /// The producer.
        producer_id: i64,
    },
}

impl ProducersImage {
    /// The image, framed as [`framed`] says.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match framed::encode(VERSION, self) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("encoding into memory does not fail: {error}"),
        }
    }

    /// Reads what [`ProducersImage::encode`] wrote.
    ///
    /// # Errors
    /// If it did not.
    pub fn decode(bytes: &[u8]) -> Result<ProducersImage, ProducerStateError> {
        Ok(framed::decode::<_, STATE_BYTES_MAX>(VERSION, bytes)?)
    }
}

impl Producer {
    fn image(&self, producer_id: i64) -> ProducerImage {
        ProducerImage {
            producer_id,
            epoch: self.epoch,
            recent: self.recent().to_vec(),
            run_records: self.run_records,
            last_index: self.last_index,
            active_ms: self.active_ms,
        }
    }

    fn restore(image: &ProducerImage, now_ms: i64) -> Result<Producer, ProducerStateError> {
        let mut producer = Producer::new(image.epoch);
        let count = image.recent.len();
        if count == 0 || count > RECENT_BATCHES || image.producer_id < 0 {
            return Err(ProducerStateError::Inconsistent { producer_id: image.producer_id });
        }
        producer.recent[..count].copy_from_slice(&image.recent);
        producer.recent_count = count;
        producer.run_records = image.run_records;
        producer.last_index = image.last_index;
        // A clock that was set back must not keep a producer for ever.
        producer.active_ms = image.active_ms.min(now_ms);
        Ok(producer)
    }
}

#[cfg(test)]
#[path = "producers_tests.rs"]
mod tests;
