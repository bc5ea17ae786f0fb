//! What must be true of what a producer was told and of what a consumer then reads.
//!
//! A [`Ledger`] remembers every acknowledgement and everything ever read, for one producer that writes numbered records
//! to some partitions of a topic nobody else writes to. It does no I/O, so its own tests feed it broken logs: a checker
//! that can't fail proves nothing.
//!
//! - I1: an acknowledged record is read at the acknowledged offset with the same bytes, at every later reading.
//! - I2: no record is read twice.
//! - I3: within a partition records stand in the order the producer sent them, offsets without gaps.
//! - I4: the high watermark is never below an acknowledged end, and never goes back.
//! - I5: what was once read stays where it was, acknowledged or not: it was below the high watermark.
//! - I6: nothing is read that was not sent.

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;

use crate::workload::RecordId;

/// One record as a consumer got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRecord {
    /// Where it stood.
    pub offset: i64,
    /// Its value.
    pub value: Vec<u8>,
}

/// A partition read from its first offset up to the high watermark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionLog {
    /// The high watermark as the broker gave it before the reading.
    pub high_watermark: i64,
    /// The records in the order they came.
    pub records: Vec<ReadRecord>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// I1.
    #[error(
        "partition {partition}: record {sequence}, acknowledged at offset {offset}, is not there"
    )]
    Lost {
        /// The partition.
        partition: i32,
        /// The record's number within it.
        sequence: u64,
        /// Where it should be.
        offset: i64,
    },
    /// I1.
    #[error(
        "partition {partition}: record {sequence} was acknowledged at offset {acked} and stands at {found}"
    )]
    Moved {
        /// The partition.
        partition: i32,
        /// The record's number within it.
        sequence: u64,
        /// Where it was said to be.
        acked: i64,
        /// Where it is.
        found: i64,
    },
    /// I1, I6.
    #[error(
        "partition {partition}, offset {offset}: not the bytes that were sent ({length} bytes)"
    )]
    WrongBytes {
        /// The partition.
        partition: i32,
        /// Where.
        offset: i64,
        /// How many bytes were read.
        length: usize,
    },
    /// I6.
    #[error("partition {partition}, offset {offset}: record {sequence} was never sent there")]
    NeverSent {
        /// The partition.
        partition: i32,
        /// Where.
        offset: i64,
        /// The number it carries.
        sequence: u64,
    },
    /// I2.
    #[error(
        "partition {partition}: record {sequence} stands at offset {first} and again at {second}"
    )]
    Twice {
        /// The partition.
        partition: i32,
        /// The record's number within it.
        sequence: u64,
        /// Its first place.
        first: i64,
        /// Its second place.
        second: i64,
    },
    /// I3.
    #[error("partition {partition}, offset {offset}: record {sequence} after record {before}")]
    OutOfOrder {
        /// The partition.
        partition: i32,
        /// Where.
        offset: i64,
        /// The number it carries.
        sequence: u64,
        /// The number before it.
        before: u64,
    },
    /// I3.
    #[error("partition {partition}: offset {found} follows offset {before}")]
    Gap {
        /// The partition.
        partition: i32,
        /// An offset.
        before: i64,
        /// The one read after it.
        found: i64,
    },
    /// I4.
    #[error("partition {partition}: the high watermark is {found} and must be at least {least}")]
    WatermarkBack {
        /// The partition.
        partition: i32,
        /// What the broker said.
        found: i64,
        /// What was acknowledged or said before.
        least: i64,
    },
    /// I5.
    #[error("partition {partition}, offset {offset}: record {before} was read here, now {found:?}")]
    Changed {
        /// The partition.
        partition: i32,
        /// Where.
        offset: i64,
        /// The record read there before.
        before: u64,
        /// The record read there now.
        found: Option<u64>,
    },
    /// An acknowledgement that contradicts an earlier one.
    #[error(
        "partition {partition}: offset {offset} was acknowledged for records {first} and {second}"
    )]
    AckedTwice {
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
        /// A record.
        first: u64,
        /// Another one.
        second: u64,
    },
}

/// What is known of one partition.
#[derive(Debug, Default)]
struct PartitionLedger {
    sent: u64,
    acked_by_sequence: BTreeMap<u64, i64>,
    acked_by_offset: BTreeMap<i64, u64>,
    read: BTreeMap<i64, u64>,
    watermark_least: i64,
}

/// What is known of all partitions.
#[derive(Debug)]
pub struct Ledger {
    run: u64,
    partitions: Vec<PartitionLedger>,
}

impl Ledger {
    /// Nothing known yet of producer run `run` and this many partitions.
    #[must_use]
    pub fn new(run: u64, partitions: usize) -> Ledger {
        Ledger { run, partitions: (0..partitions).map(|_| PartitionLedger::default()).collect() }
    }

    fn partition_mut(&mut self, partition: i32) -> &mut PartitionLedger {
        let at = usize::try_from(partition).unwrap_or(usize::MAX);
        &mut self.partitions[at]
    }

    /// Records that the next record of a partition was handed to the producer.
    pub fn on_sent(&mut self, id: RecordId) {
        let partition = self.partition_mut(id.partition);
        assert_eq!(partition.sent, id.sequence, "records are sent in the order of their numbers");
        partition.sent += 1;
    }

    /// Records that a record was acknowledged at an offset.
    pub fn on_acked(&mut self, id: RecordId, offset: i64) -> Result<(), Violation> {
        let partition = self.partition_mut(id.partition);
        let first = *partition.acked_by_offset.entry(offset).or_insert(id.sequence);
        if first != id.sequence {
            let second = id.sequence;
            return Err(Violation::AckedTwice { partition: id.partition, offset, first, second });
        }
        partition.acked_by_sequence.insert(id.sequence, offset);
        partition.watermark_least = partition.watermark_least.max(offset + 1);
        Ok(())
    }

    /// How many records were acknowledged.
    #[must_use]
    pub fn acked(&self) -> usize {
        self.partitions.iter().map(|partition| partition.acked_by_sequence.len()).sum()
    }

    /// How many records of each partition were acknowledged.
    #[must_use]
    pub fn acked_of_each(&self) -> Vec<usize> {
        self.partitions.iter().map(|partition| partition.acked_by_sequence.len()).collect()
    }

    /// Where each partition ended as of the last reading that was judged.
    #[must_use]
    pub fn ends_read(&self) -> Vec<i64> {
        self.partitions.iter().map(|partition| partition.watermark_least).collect()
    }

    /// How many records were handed to the producer.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.sent).sum()
    }

    /// Judges a reading of all partitions and remembers it for the next one.
    pub fn check(&mut self, logs: &[PartitionLog]) -> Result<(), Violation> {
        assert_eq!(logs.len(), self.partitions.len(), "all partitions are read");
        let run = self.run;
        for (index, (ledger, log)) in self.partitions.iter_mut().zip(logs).enumerate() {
            ledger.check(run, i32::try_from(index).unwrap_or(i32::MAX), log)?;
        }
        Ok(())
    }
}

impl PartitionLedger {
    fn check(&mut self, run: u64, partition: i32, log: &PartitionLog) -> Result<(), Violation> {
        if log.high_watermark < self.watermark_least {
            let (found, least) = (log.high_watermark, self.watermark_least);
            return Err(Violation::WatermarkBack { partition, found, least });
        }
        let found = self.read_log(run, partition, log)?;
        self.check_acked(partition, &found)?;
        self.check_unchanged(partition, &found)?;
        self.watermark_least = log.high_watermark;
        self.read = found;
        Ok(())
    }

    /// The record at each offset; I2, I3 and I6 on the way.
    fn read_log(
        &self,
        run: u64,
        partition: i32,
        log: &PartitionLog,
    ) -> Result<BTreeMap<i64, u64>, Violation> {
        let mut places: HashMap<u64, i64> = HashMap::new();
        let mut found = BTreeMap::new();
        let mut before: Option<(i64, u64)> = None;
        for record in &log.records {
            let (offset, length) = (record.offset, record.value.len());
            let id = RecordId::decode(&record.value)
                .filter(|id| id.run == run && id.partition == partition)
                .ok_or(Violation::WrongBytes { partition, offset, length })?;
            if id.sequence >= self.sent {
                return Err(Violation::NeverSent { partition, offset, sequence: id.sequence });
            }
            if id.value() != record.value {
                return Err(Violation::WrongBytes { partition, offset, length });
            }
            if let Some(first) = places.insert(id.sequence, offset) {
                let (sequence, second) = (id.sequence, offset);
                return Err(Violation::Twice { partition, sequence, first, second });
            }
            if let Some((offset_before, sequence_before)) = before {
                if offset != offset_before + 1 {
                    let (before, found) = (offset_before, offset);
                    return Err(Violation::Gap { partition, before, found });
                }
                if id.sequence < sequence_before {
                    let (sequence, before) = (id.sequence, sequence_before);
                    return Err(Violation::OutOfOrder { partition, offset, sequence, before });
                }
            }
            before = Some((offset, id.sequence));
            found.insert(offset, id.sequence);
        }
        Ok(found)
    }

    fn check_acked(&self, partition: i32, found: &BTreeMap<i64, u64>) -> Result<(), Violation> {
        for (&offset, &sequence) in &self.acked_by_offset {
            if found.get(&offset) == Some(&sequence) {
                continue;
            }
            let elsewhere = found.iter().find(|(_, there)| **there == sequence);
            return Err(match elsewhere {
                Some((&found, _)) => Violation::Moved { partition, sequence, acked: offset, found },
                None => Violation::Lost { partition, sequence, offset },
            });
        }
        Ok(())
    }

    fn check_unchanged(&self, partition: i32, found: &BTreeMap<i64, u64>) -> Result<(), Violation> {
        for (&offset, &before) in &self.read {
            let now = found.get(&offset).copied();
            if now != Some(before) {
                return Err(Violation::Changed { partition, offset, before, found: now });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 7;

    fn id(sequence: u64) -> RecordId {
        RecordId { run: RUN, partition: 0, sequence }
    }

    /// Four records sent, the first three acknowledged at offsets 0 to 2.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(RUN, 1);
        (0..4).for_each(|sequence| ledger.on_sent(id(sequence)));
        (0..3).for_each(|n| ledger.on_acked(id(n), i64::try_from(n).unwrap()).unwrap());
        ledger
    }

    fn log(places: &[(i64, u64)]) -> Vec<PartitionLog> {
        let records = places
            .iter()
            .map(|&(offset, sequence)| ReadRecord { offset, value: id(sequence).value() })
            .collect::<Vec<_>>();
        let high_watermark = places.last().map_or(0, |last| last.0 + 1);
        vec![PartitionLog { high_watermark, records }]
    }

    #[test]
    fn given_what_was_acked_when_all_of_it_is_read_then_all_is_well() {
        ledger().check(&log(&[(0, 0), (1, 1), (2, 2)])).unwrap();
        ledger().check(&log(&[(0, 0), (1, 1), (2, 2), (3, 3)])).unwrap();
    }

    #[test]
    fn given_a_log_with_one_fault_when_checked_then_the_fault_is_named() {
        let partition = 0;
        let cases: [(&[(i64, u64)], Violation); 5] = [
            (&[(0, 0), (1, 1), (2, 3)], Violation::Lost { partition, sequence: 2, offset: 2 }),
            (
                &[(0, 0), (1, 1), (2, 2), (3, 1)],
                Violation::Twice { partition, sequence: 1, first: 1, second: 3 },
            ),
            (
                &[(0, 1), (1, 0), (2, 2)],
                Violation::OutOfOrder { partition, offset: 1, sequence: 0, before: 1 },
            ),
            (&[(0, 0), (2, 2)], Violation::Gap { partition, before: 0, found: 2 }),
            (
                &[(0, 0), (1, 1), (2, 2), (3, 9)],
                Violation::NeverSent { partition, offset: 3, sequence: 9 },
            ),
        ];
        for (places, expected) in cases {
            assert_eq!(ledger().check(&log(places)), Err(expected));
        }
    }

    #[test]
    fn given_a_record_one_place_further_when_checked_then_it_has_moved() {
        let mut ledger = Ledger::new(RUN, 1);
        (0..2).for_each(|sequence| ledger.on_sent(id(sequence)));
        ledger.on_acked(id(1), 0).unwrap();
        let moved = Violation::Moved { partition: 0, sequence: 1, acked: 0, found: 1 };
        assert_eq!(ledger.check(&log(&[(0, 0), (1, 1)])), Err(moved));
    }

    #[test]
    fn given_a_flipped_bit_when_checked_then_the_bytes_are_wrong() {
        let bits = id(1).value().len() * 8;
        for bit in (0..bits).step_by(37) {
            let mut logs = log(&[(0, 0), (1, 1), (2, 2)]);
            logs[0].records[1].value[bit / 8] ^= 1 << (bit % 8);
            assert!(ledger().check(&logs).is_err(), "bit {bit} passed unseen");
        }
    }

    #[test]
    fn given_a_watermark_below_an_ack_when_checked_then_it_went_back() {
        let mut logs = log(&[(0, 0), (1, 1), (2, 2)]);
        logs[0].high_watermark = 2;
        let back = Violation::WatermarkBack { partition: 0, found: 2, least: 3 };
        assert_eq!(ledger().check(&logs), Err(back));
    }

    #[test]
    fn given_an_unacked_record_that_was_read_when_it_is_gone_later_then_that_is_seen() {
        let mut ledger = ledger();
        ledger.check(&log(&[(0, 0), (1, 1), (2, 2), (3, 3)])).unwrap();
        let mut later = log(&[(0, 0), (1, 1), (2, 2)]);
        later[0].high_watermark = 4;
        let changed = Violation::Changed { partition: 0, offset: 3, before: 3, found: None };
        assert_eq!(ledger.check(&later), Err(changed));
    }

    #[test]
    fn given_two_records_acked_at_one_offset_when_recorded_then_it_is_an_error() {
        let mut ledger = ledger();
        let twice = Violation::AckedTwice { partition: 0, offset: 2, first: 2, second: 3 };
        assert_eq!(ledger.on_acked(id(3), 2), Err(twice));
    }
}
