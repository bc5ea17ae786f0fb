//! Log starts: moved by command, remembered over restarts, followed by the cut of the log.

use chronik_engine::wal::LogNeed;

use super::nodes::{member, stored};
use super::*;

impl Bench {
    fn move_log_start(&mut self, offset: i64) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.core.propose_log_start(GROUP, Offset(offset), Some(token)).unwrap();
        token
    }

    fn log_start(&self) -> Offset {
        self.core.partition(GROUP).unwrap().log_start_offset
    }

    fn with_batches(counts: &[usize]) -> Bench {
        let mut bench = Bench::with_partition();
        for count in counts {
            bench.produce(batch(*count), RequiredAcks::All).unwrap();
        }
        bench.write_all();
        bench.core.take_effects();
        bench
    }
}

#[test]
fn given_a_log_start_when_it_is_committed_then_readers_see_it_and_not_before() {
    let mut bench = Bench::with_batches(&[3, 3]);
    let token = bench.move_log_start(4);
    assert_eq!(bench.log_start(), Offset(0), "it is not durable");
    bench.write_all();
    assert_eq!(bench.replies(), [(token, Ok(4))]);
    let mut plan = |offset| bench.core.plan_read(GROUP, Offset(offset), 1 << 20, -1);
    assert!(matches!(plan(3), Err(FetchError::OffsetOutOfRange { .. })));
    let found = plan(4).unwrap();
    assert_eq!(found.batches[0].base_offset, Offset(3), "a batch that lies across is given whole");
    assert_eq!(found.log_start_offset, Offset(4));
}

#[test]
fn given_log_starts_when_they_would_go_back_or_too_far_then_they_stay_within_the_log() {
    let mut bench = Bench::with_batches(&[5]);
    let (far, back) = (bench.move_log_start(100), bench.move_log_start(2));
    bench.write_all();
    assert_eq!(bench.replies(), [(far, Ok(5)), (back, Ok(5))]);
    assert_eq!(bench.log_start(), Offset(5));
    bench.produce(batch(1), RequiredAcks::All).unwrap();
    bench.write_all();
    assert!(bench.core.plan_read(GROUP, Offset(5), 1 << 20, -1).is_ok());
}

#[test]
fn given_a_log_start_when_restarted_then_checkpoint_and_log_both_tell_it() {
    let mut bench = Bench::with_batches(&[3, 3]);
    let (checkpoints, written) = (bench.core.checkpoints(), bench.records.len());
    bench.move_log_start(3);
    bench.write_all();
    let since = bench.records.split_off(written);
    bench.restart();
    bench.write_all();
    assert_eq!(bench.log_start(), Offset(3), "from the checkpoint");
    bench.restart_from(checkpoints, &since);
    bench.write_all();
    assert_eq!(bench.log_start(), Offset(3), "from the log");
}

#[test]
fn given_segments_that_went_with_a_log_start_when_started_before_it_is_applied_then_they_are_not_missing()
 {
    let mut bench = Bench::new();
    bench.core.create_group(GROUP, member(GROUP, 5, &[5], &[]));
    bench.write_all();
    for _ in 0..3 {
        bench.produce(batch(3), RequiredAcks::All).unwrap();
    }
    bench.write_all();
    let (checkpoints, written) = (bench.core.checkpoints(), bench.records.len());
    bench.move_log_start(4);
    bench.write_all();
    assert_eq!(bench.log_start(), Offset(4));
    let since = bench.records.split_off(written);
    // The first segment is gone; of the others one or none was lost.
    for (kept, lost) in [(3, None), (6, Some(Offset(4)..Offset(6)))] {
        bench.restart_from(checkpoints.clone(), &since);
        bench.core.restore_segments(GROUP, vec![stored(GROUP, kept, 9).segment]);
        assert_eq!(bench.log_start(), Offset(0), "it is not known to be committed");
        let missing = bench.core.gaps_for_good(GROUP, Offset(9));
        assert_eq!(missing, Vec::from_iter(lost.clone()));
        bench.write_all();
        assert_eq!(bench.log_start(), Offset(4));
        assert_eq!(bench.core.gaps(GROUP, Offset(9)), Vec::from_iter(lost), "as foretold");
    }
}

#[test]
fn given_a_log_start_when_the_log_is_cut_then_it_counts_once_the_record_is_durable() {
    let mut bench = Bench::with_batches(&[3, 3]);
    bench.move_log_start(3);
    bench.write_all();
    assert_eq!(bench.core.log_need(GROUP), Some(LogNeed::Offset(Offset(3))));
    // The first entry is the leader's own, the second the first batch.
    bench.core.cut_log(GROUP, RaftIndex(2));
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    let cut = block.records.iter().find_map(|record| match record {
        WalRecord::LogStart { position, offset, .. } => Some((position.index, *offset)),
        _ => None,
    });
    assert_eq!(cut, Some((RaftIndex(2), Offset(3))));
    assert_eq!(bench.core.first_index_needed(GROUP), Some(RaftIndex(1)), "not durable");
    bench.core.block_persisted(block);
    assert_eq!(bench.core.first_index_needed(GROUP), Some(RaftIndex(3)));
    bench.core.cut_log(GROUP, RaftIndex(2));
    assert!(!bench.core.has_work(), "it is cut there already");
    bench.restart();
    bench.write_all();
    assert_eq!(bench.core.first_index_needed(GROUP), Some(RaftIndex(3)));
}

#[test]
fn given_a_duplicate_when_a_log_start_in_flight_stands_at_its_offset_then_it_waits_for_the_batch() {
    let mut bench = Bench::with_partition();
    let moved = bench.move_log_start(0);
    let first = bench.produce(sequenced(0, 2), RequiredAcks::All).unwrap();
    let again = bench.produce(sequenced(0, 2), RequiredAcks::All).unwrap();
    assert_eq!(bench.replies(), [], "nothing is durable");
    bench.write_all();
    assert_eq!(bench.replies(), [(moved, Ok(0)), (first, Ok(0)), (again, Ok(0))]);
}

#[test]
fn given_a_full_disk_when_a_log_start_is_proposed_then_it_is_taken_since_it_makes_room() {
    let mut bench = Bench::with_batches(&[3]);
    bench.core.set_storage_full(true);
    bench.move_log_start(3);
    bench.write_all();
    assert_eq!(bench.log_start(), Offset(3));
}

#[test]
fn given_epochs_when_the_log_starts_after_them_then_an_old_one_ends_at_the_log_start() {
    let mut bench = Bench::with_batches(&[4]);
    bench.restart();
    bench.write_all();
    bench.produce(batch(4), RequiredAcks::All).unwrap();
    bench.write_all();
    let end_of = |bench: &Bench, epoch| bench.core.end_offset_for_epoch(GROUP, epoch, -1).unwrap();
    assert_eq!(end_of(&bench, 1), (1, Offset(4)));
    bench.move_log_start(6);
    bench.write_all();
    bench.restart();
    bench.write_all();
    assert_eq!(end_of(&bench, 1), (1, Offset(6)), "as Kafka: where the first known epoch begins");
    assert_eq!(end_of(&bench, 2), (2, Offset(8)));
}

#[test]
fn given_a_command_when_encoded_then_the_bytes_are_those_of_version_one() {
    let command = PartitionCommand::LogStart { offset: Offset(5) };
    assert_eq!(command.encode(), [1, 0, 10]);
    assert_eq!(PartitionCommand::decode(&[1, 0, 10]).unwrap(), command);
    assert!(PartitionCommand::decode(&[2, 0, 10]).is_err());
    assert!(PartitionCommand::decode(&[1, 1, 10]).is_err());
}
