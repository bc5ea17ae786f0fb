use proptest::prelude::*;

use super::*;

fn batch(epoch: i16, first_sequence: i32, record_count: u32) -> ProducerBatch {
    ProducerBatch { producer_id: 7, epoch, first_sequence, record_count }
}

/// Proposes and applies batches as a leader does.
struct Partition {
    producers: Producers,
    index: u64,
    end_offset: i64,
}

impl Partition {
    fn new() -> Partition {
        Partition { producers: Producers::new(100), index: 0, end_offset: 0 }
    }

    fn apply(&mut self, batch: ProducerBatch) -> Result<Verdict, SequenceError> {
        let verdict = self.producers.check(&batch)?;
        if verdict == Verdict::Append {
            self.index += 1;
            let offset = Offset(self.end_offset);
            self.producers.propose(&batch, offset);
            self.producers.apply(&batch, offset, RaftIndex(self.index), 1000);
            self.end_offset += i64::from(batch.record_count);
        }
        Ok(verdict)
    }
}

fn out_of_order(sequence: i32, last: Option<i32>) -> Result<Verdict, SequenceError> {
    Err(SequenceError::OutOfOrderSequence { producer_id: 7, sequence, last })
}

#[test]
fn given_an_unknown_producer_when_it_begins_anywhere_then_it_is_accepted() {
    let mut partition = Partition::new();
    assert_eq!(partition.apply(batch(3, 41, 2)), Ok(Verdict::Append));
    assert_eq!(partition.apply(batch(3, 43, 1)), Ok(Verdict::Append));
    assert_eq!(partition.apply(batch(3, 45, 1)), out_of_order(45, Some(43)));
    assert_eq!(partition.apply(batch(3, 40, 1)), out_of_order(40, Some(43)), "never seen");
}

#[test]
fn given_a_producer_when_its_epoch_changes_then_old_ones_are_fenced_and_new_ones_begin_at_zero() {
    let mut partition = Partition::new();
    partition.apply(batch(1, 0, 3)).unwrap();
    assert_eq!(partition.apply(batch(2, 3, 1)), out_of_order(3, None));
    assert_eq!(partition.apply(batch(2, 0, 1)), Ok(Verdict::Append));
    assert_eq!(
        partition.apply(batch(1, 3, 1)),
        Err(SequenceError::InvalidProducerEpoch { producer_id: 7, epoch: 1, current: 2 })
    );
}

#[test]
fn given_sequences_at_their_end_when_they_wrap_then_zero_follows() {
    let mut partition = Partition::new();
    partition.apply(batch(0, i32::MAX - 1, 1)).unwrap();
    assert_eq!(partition.apply(batch(0, i32::MAX, 3)), Ok(Verdict::Append));
    assert_eq!(partition.apply(batch(0, 2, 1)), Ok(Verdict::Append));
    assert_eq!(
        partition.apply(batch(0, i32::MAX, 3)),
        Ok(Verdict::Duplicate { base_offset: Offset(1) })
    );
    let mut exact = Partition::new();
    exact.apply(batch(0, i32::MAX, 1)).unwrap();
    assert_eq!(exact.apply(batch(0, 0, 1)), Ok(Verdict::Append));
}

#[test]
fn given_seven_batches_when_each_is_sent_again_then_the_last_five_get_their_offset() {
    let mut partition = Partition::new();
    for sequence in 0..7 {
        partition.apply(batch(0, sequence * 2, 2)).unwrap();
    }
    for sequence in 2..7 {
        assert_eq!(
            partition.apply(batch(0, sequence * 2, 2)),
            Ok(Verdict::Duplicate { base_offset: Offset(i64::from(sequence) * 2) })
        );
    }
    for sequence in 0..2 {
        assert_eq!(
            partition.apply(batch(0, sequence * 2, 2)),
            Err(SequenceError::DuplicateSequence { producer_id: 7, sequence: sequence * 2 })
        );
    }
    assert_eq!(partition.apply(batch(0, 4, 1)), out_of_order(4, Some(13)), "other bounds");
    assert_eq!(partition.apply(batch(0, 2, 4)), out_of_order(2, Some(13)), "other bounds");
}

#[test]
fn given_a_batch_in_flight_when_leadership_is_lost_then_the_applied_state_counts_again() {
    let mut partition = Partition::new();
    partition.apply(batch(0, 0, 1)).unwrap();
    partition.producers.propose(&batch(0, 1, 1), Offset(1));
    partition.producers.propose(&batch(0, 2, 1), Offset(2));
    assert_eq!(
        partition.producers.check(&batch(0, 1, 1)),
        Ok(Verdict::Duplicate { base_offset: Offset(1) })
    );
    assert_eq!(partition.producers.check(&batch(0, 3, 1)), Ok(Verdict::Append));
    partition.producers.roll_back();
    assert_eq!(partition.producers.check(&batch(0, 3, 1)), out_of_order(3, Some(0)));
    assert_eq!(partition.producers.check(&batch(0, 1, 1)), Ok(Verdict::Append));
}

#[test]
fn given_more_producers_than_the_limit_when_they_write_then_the_longest_silent_is_forgotten() {
    let mut producers = Producers::new(2);
    let from = |producer_id| ProducerBatch { producer_id, ..batch(0, 0, 1) };
    producers.apply(&from(1), Offset(0), RaftIndex(1), 0);
    producers.apply(&from(2), Offset(1), RaftIndex(2), 0);
    producers.apply(&ProducerBatch { first_sequence: 1, ..from(1) }, Offset(2), RaftIndex(3), 0);
    producers.apply(&from(3), Offset(3), RaftIndex(4), 0);
    assert_eq!(producers.len(), 2);
    assert_eq!(producers.check(&from(2)), Ok(Verdict::Append), "2 is forgotten");
    assert_eq!(producers.check(&from(1)), Ok(Verdict::Duplicate { base_offset: Offset(0) }));
}

#[test]
fn given_a_silent_producer_when_it_expires_then_it_may_begin_anywhere() {
    let mut partition = Partition::new();
    partition.apply(batch(0, 0, 1)).unwrap();
    partition.producers.expire(1000, 10);
    assert_eq!(partition.producers.len(), 1, "active at 1000");
    partition.producers.expire(1001, 10);
    assert!(partition.producers.is_empty());
    assert_eq!(partition.apply(batch(0, 9, 1)), Ok(Verdict::Append));
}

/// Written anew with `CHRONIK_GOLDEN_WRITE=1`, which is right only together with a new version byte.
#[test]
fn given_the_golden_file_when_read_then_it_is_what_this_version_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/core/golden/producers-v1.hex");
    let mut partition = Partition::new();
    for sequence in 0..6 {
        partition.apply(batch(2, sequence * 300, 300)).unwrap();
    }
    let other = ProducerBatch { producer_id: 1 << 40, ..batch(0, 5, 1) };
    partition.apply(other).unwrap();
    let bytes = partition.producers.encode();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    if std::env::var_os("CHRONIK_GOLDEN_WRITE").is_some() {
        std::fs::write(path, &hex).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), hex);
    let read = Producers::decode(&bytes, 100, 2000).unwrap();
    assert_eq!(read.encode(), bytes);
}

#[test]
fn given_bytes_that_are_no_state_when_decoded_then_an_error_says_why() {
    assert!(Producers::decode(&[], 1, 0).unwrap().is_empty());
    let decode = |bytes: &[u8]| Producers::decode(bytes, 1, 0).unwrap_err();
    assert!(matches!(
        decode(&[9]),
        ProducerStateError::Framed(FramedError::Version { version: 9 })
    ));
    assert!(matches!(
        decode(&[1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1]),
        ProducerStateError::Framed(FramedError::Malformed { .. })
    ));
    assert!(matches!(
        decode(&[1, 0, 0]),
        ProducerStateError::Framed(FramedError::Trailing { bytes: 1 })
    ));
    let image = ProducerImage {
        producer_id: 1,
        epoch: 0,
        recent: vec![RecentBatch::default(); 6],
        run_records: 0,
        last_index: RaftIndex(1),
        active_ms: 0,
    };
    let bytes = ProducersImage { producers: vec![image] }.encode();
    assert!(matches!(decode(&bytes), ProducerStateError::Inconsistent { producer_id: 1 }));
}

proptest! {
    /// Whatever is sent in whatever order: a sequence is appended once, and its duplicate gets its offset.
    #[test]
    fn given_any_batches_when_checked_then_none_is_appended_twice(
        start in prop_oneof![Just(0), Just(i32::MAX - 20)],
        sends in proptest::collection::vec((0_u32..60, 1_u32..4), 1..200),
        restart_every in 1_usize..50,
    ) {
        let mut partition = Partition::new();
        let mut offsets: HashMap<u32, i64> = HashMap::new();
        let mut next = 0_u32;
        for (step, (at, count)) in sends.into_iter().enumerate() {
            let at = if step % 2 == 0 { next } else { at };
            let sent = batch(0, sequence_plus(start, at), count);
            match partition.apply(sent) {
                Ok(Verdict::Append) => {
                    prop_assert_eq!(at, next);
                    for record in 0..count {
                        let offset = partition.end_offset - i64::from(count - record);
                        prop_assert!(offsets.insert(at + record, offset).is_none());
                    }
                    next = at + count;
                }
                Ok(Verdict::Duplicate { base_offset }) => {
                    prop_assert_eq!(offsets.get(&at), Some(&base_offset.0));
                    prop_assert_eq!(offsets.get(&(at + count - 1)), Some(&(base_offset.0 + i64::from(count) - 1)));
                }
                Err(SequenceError::DuplicateSequence { .. }) => {
                    for record in at..at + count {
                        prop_assert!(offsets.contains_key(&record));
                    }
                }
                Err(SequenceError::OutOfOrderSequence { .. }) => prop_assert_ne!(at, next),
                Err(other) => prop_assert!(false, "{other}"),
            }
            if step % restart_every == 0 {
                let bytes = partition.producers.encode();
                partition.producers = Producers::decode(&bytes, 100, 5000).unwrap();
            }
        }
    }

    #[test]
    fn given_any_bytes_when_decoded_then_there_is_no_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200)
    ) {
        let mut versioned = vec![VERSION];
        versioned.extend(bytes);
        drop(Producers::decode(&versioned, 10, 0));
    }
}
