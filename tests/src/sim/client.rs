//! Idempotent producers as clients run them, and what each answer may be.
//!
//! A producer has at most five batches in flight. What was not answered, or was refused for a reason that passes, is
//! sent again in order before anything new. On the side it does what a client should not: sends answered batches again,
//! skips sequences, and speaks with an epoch that is over.

use std::collections::VecDeque;

use chronik_engine::batch::{BatchBuilder, RecordBatch};
use chronik_engine::ids::Offset;
use chronik_shards::core::ProduceError;
use chronik_shards::core::producers::SequenceError;
use rand::Rng;
use rand::rngs::StdRng;

use super::{Check, Violation};
use crate::must;

/// Batches in flight, as Kafka's clients have at most.
const IN_FLIGHT_MAX: usize = 5;

/// Answered batches that a producer can still send again.
const ANSWERED_KEPT: usize = 12;

/// A batch of a producer.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its name.
    pub id: i64,
    /// Its bytes.
    pub batch: RecordBatch,
    /// Whether an answer is on its way.
    pub is_waiting: bool,
    /// Whether it was ever taken, so that it may be in the log.
    pub was_taken: bool,
    /// Its offset, once it is known.
    pub offset: Option<Offset>,
}

/// One idempotent producer.
#[derive(Debug)]
pub struct SimProducer {
    producer_id: i64,
    epoch: i16,
    next_sequence: i32,
    /// Not answered, oldest first.
    pub pending: VecDeque<Sent>,
    answered: VecDeque<Sent>,
    /// The last batch of the epoch before.
    stale: Option<Sent>,
}

/// What a batch that the producer should not have sent must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The offset of the first time.
    Offset(Offset),
    /// That, or DUPLICATE_SEQUENCE_NUMBER.
    OffsetOrLongAgo(Offset),
    /// OUT_OF_ORDER_SEQUENCE_NUMBER
    OutOfOrder,
    /// INVALID_PRODUCER_EPOCH
    Fenced,
}

impl SimProducer {
    /// A producer that has sent nothing.
    #[must_use]
    pub fn new(producer_id: i64, first_sequence: i32) -> SimProducer {
        SimProducer {
            producer_id,
            epoch: 0,
            next_sequence: first_sequence,
            pending: VecDeque::new(),
            answered: VecDeque::new(),
            stale: None,
        }
    }

    /// Whether something must be sent again before anything new.
    #[must_use]
    pub fn must_resend(&self) -> bool {
        self.pending.iter().any(|sent| !sent.is_waiting)
    }

    /// Whether a new batch may be sent.
    #[must_use]
    pub fn can_send(&self) -> bool {
        self.pending.len() < IN_FLIGHT_MAX && !self.must_resend()
    }

    /// Makes the next batch and puts it behind those that are not answered.
    pub fn make_next(&mut self, id: i64, rng: &mut StdRng) {
        let batch = random_batch(id, Some((self.producer_id, self.epoch, self.next_sequence)), rng);
        self.next_sequence = following(batch.last_sequence());
        let (is_waiting, was_taken, offset) = (false, false, None);
        self.pending.push_back(Sent { id, batch, is_waiting, was_taken, offset });
    }

    /// The shard is gone: nothing is on its way any more.
    pub fn on_crash(&mut self) {
        for sent in &mut self.pending {
            sent.is_waiting = false;
        }
    }

    /// An answer came.
    pub fn on_answer(&mut self, id: i64, result: Result<Offset, ProduceError>) -> Check {
        let Some(at) = self.pending.iter().position(|sent| sent.id == id) else {
            return Err(Violation { what: format!("batch {id} was answered twice") });
        };
        match result {
            Ok(offset) => {
                must!(at == 0, "P3: batch {id} was answered before one that was sent before it");
                if let Some(mut sent) = self.pending.pop_front() {
                    sent.offset = Some(offset);
                    self.answered.push_back(sent);
                }
                if self.answered.len() > ANSWERED_KEPT {
                    self.answered.pop_front();
                }
            }
            Err(ProduceError::Sequence(error)) => {
                return Err(Violation { what: format!("P4: batch {id}, sent in order: {error}") });
            }
            Err(_) => self.pending[at].is_waiting = false,
        }
        Ok(())
    }

    /// Begins a new epoch, if nothing is open. Returns whether it did.
    pub fn bump_epoch(&mut self) -> bool {
        if !self.pending.is_empty() || self.answered.is_empty() {
            return false;
        }
        self.epoch += 1;
        self.next_sequence = 0;
        self.stale = self.answered.pop_back();
        self.answered.clear();
        true
    }

    /// A batch that was answered before, to be sent again.
    pub fn duplicate(&self, rng: &mut StdRng) -> Option<(Sent, Expected)> {
        if self.answered.is_empty() {
            return None;
        }
        let at = rng.random_range(0..self.answered.len());
        let sent = self.answered.get(at)?;
        let later = self.answered.len() - 1 - at;
        let perhaps = self.pending.iter().filter(|sent| sent.was_taken).count();
        let offset = sent.offset?;
        let expected = if later + perhaps < IN_FLIGHT_MAX {
            Expected::Offset(offset)
        } else {
            Expected::OffsetOrLongAgo(offset)
        };
        Some((sent.clone(), expected))
    }

    /// A batch with a sequence that is not the next one.
    pub fn out_of_order(&self, id: i64, rng: &mut StdRng) -> Option<(Sent, Expected)> {
        if self.must_resend() || (self.answered.is_empty() && self.pending.is_empty()) {
            return None;
        }
        let gap = rng.random_range(1..20);
        let sequence = following(self.next_sequence.wrapping_add(gap - 1) & i32::MAX);
        Some((self.odd(id, self.epoch, sequence, rng), Expected::OutOfOrder))
    }

    /// A batch of a new epoch that does not begin at 0.
    pub fn bad_epoch_start(&self, id: i64, rng: &mut StdRng) -> Option<(Sent, Expected)> {
        if self.answered.is_empty() {
            return None;
        }
        let sequence = rng.random_range(1..100);
        Some((self.odd(id, self.epoch + 1, sequence, rng), Expected::OutOfOrder))
    }

    /// A batch of an epoch that is over.
    #[must_use]
    pub fn stale(&self) -> Option<(Sent, Expected)> {
        if self.answered.is_empty() {
            return None;
        }
        self.stale.clone().map(|sent| (sent, Expected::Fenced))
    }

    fn odd(&self, id: i64, epoch: i16, sequence: i32, rng: &mut StdRng) -> Sent {
        let batch = random_batch(id, Some((self.producer_id, epoch, sequence)), rng);
        Sent { id, batch, is_waiting: false, was_taken: false, offset: None }
    }
}

/// The sequence after `sequence`.
fn following(sequence: i32) -> i32 {
    sequence.wrapping_add(1) & i32::MAX
}

/// Compares the answer to a batch that should not have been sent with what it may be.
pub fn check_odd(id: i64, expected: Expected, result: Result<Offset, ProduceError>) -> Check {
    let agrees = match (result, expected) {
        (Ok(offset), Expected::Offset(first) | Expected::OffsetOrLongAgo(first)) => offset == first,
        (Ok(_), Expected::OutOfOrder | Expected::Fenced) => false,
        (Err(ProduceError::Sequence(error)), expected) => match error {
            SequenceError::DuplicateSequence { .. } => {
                matches!(expected, Expected::OffsetOrLongAgo(_))
            }
            SequenceError::OutOfOrderSequence { .. } => expected == Expected::OutOfOrder,
            SequenceError::InvalidProducerEpoch { .. } => expected == Expected::Fenced,
        },
        (Err(_), _) => true,
    };
    must!(agrees, "P4: batch {id}: expected {expected:?}, got {result:?}");
    Ok(())
}

/// A batch named by its base timestamp, of a few records and mostly small.
pub fn random_batch(id: i64, producer: Option<(i64, i16, i32)>, rng: &mut StdRng) -> RecordBatch {
    let mut builder = BatchBuilder::new();
    if let Some((producer_id, epoch, sequence)) = producer {
        builder = builder.producer(producer_id, epoch, sequence);
    }
    let records = rng.random_range(1..5);
    for _ in 0..records {
        let bytes = match rng.random_range(0..40) {
            0 => rng.random_range(5_000..30_000),
            1..5 => rng.random_range(500..5_000),
            _ => rng.random_range(0..300),
        };
        let value = vec![rng.random(); bytes];
        builder = builder.record(id, None, Some(&value));
    }
    match builder.build() {
        Ok(batch) => batch,
        Err(error) => unreachable!("the simulator's batches are valid: {error}"),
    }
}
