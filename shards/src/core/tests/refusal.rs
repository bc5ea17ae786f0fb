//! Batches that find no room after they have got their place.

use super::*;

const OTHER: GroupId = GroupId(2);

/// Offers what is proposed to a disk that takes no batches; how many groups had some.
fn refuse(bench: &mut Bench) -> usize {
    bench.core.set_storage_full(true);
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    bench.core.refuse_batches(block)
}

#[test]
fn given_batches_without_room_when_refused_then_they_are_answered_and_their_offsets_are_given_again()
 {
    let mut bench = Bench::with_partition();
    let first = bench.produce(sequenced(0, 3), RequiredAcks::All).unwrap();
    bench.write_all();
    assert_eq!(bench.replies(), [(first, Ok(0))]);
    let all = bench.produce(sequenced(3, 2), RequiredAcks::All).unwrap();
    let leader = bench.produce(sequenced(5, 1), RequiredAcks::Leader).unwrap();
    let again = bench.produce(sequenced(5, 1), RequiredAcks::All).unwrap();

    assert_eq!(refuse(&mut bench), 1);
    let error = Err(ProduceError::StorageFull);
    assert_eq!(bench.replies(), [(all, error), (leader, error), (again, error)]);
    assert_eq!(bench.core.in_flight_bytes(), 0);
    let view = bench.core.partition(GROUP).unwrap();
    assert!(view.is_ready, "readers have to wait for room");
    assert_eq!(view.high_watermark, Offset(3));

    bench.core.set_storage_full(false);
    let token = bench.produce(sequenced(3, 2), RequiredAcks::All).unwrap();
    bench.write_all();
    assert_eq!(bench.replies(), [(token, Ok(3))]);
    let batches = bench.records.iter().filter_map(|record| match record {
        WalRecord::Entry { entry, .. } if entry.kind == EntryKind::Batch => {
            Some(entry.base_offset.0)
        }
        _ => None,
    });
    assert_eq!(batches.collect::<Vec<_>>(), [0, 3], "what was refused is never written");
}

#[test]
fn given_a_block_without_room_when_batches_are_refused_then_the_rest_of_it_is_written_in_order() {
    let mut bench = Bench::with_partition();
    bench.core.create_group(OTHER, alone(6));
    bench.produce(batch(1), RequiredAcks::All).unwrap();
    assert_eq!(refuse(&mut bench), 1);
    bench.replies();
    let offset = Offset(0);
    bench.core.propose_log_start(GROUP, offset, Some(Token(77))).unwrap();
    bench.core.delete_group(OTHER);
    let before = bench.records.len();
    bench.write_all();
    assert_eq!(bench.replies(), [(Token(77), Ok(0))]);
    let of_other = |record: &&WalRecord| record.group() == OTHER;
    let written: Vec<&WalRecord> = bench.records[before..].iter().filter(of_other).collect();
    assert!(matches!(written.first(), Some(WalRecord::GroupCreated { .. })), "{written:?}");
    assert!(matches!(written.last(), Some(WalRecord::GroupDeleted { .. })), "{written:?}");
    assert!(bench.core.partition(OTHER).is_none());
    bench.restart();
    bench.write_all();
    assert_eq!(bench.core.partition(GROUP).unwrap().high_watermark, Offset(0));
}

#[test]
fn given_a_group_that_is_being_deleted_when_its_batches_find_no_room_then_its_deletion_is_written()
{
    let mut bench = Bench::with_partition();
    bench.produce(batch(1), RequiredAcks::All).unwrap();
    // Handed out by Raft before it is deleted.
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    bench.core.delete_group(GROUP);
    bench.replies();
    assert_eq!(bench.core.refuse_batches(block), 1);
    bench.records.clear();
    bench.write_all();
    assert!(matches!(bench.records[..], [WalRecord::GroupDeleted { group: GROUP }]));
    assert!(bench.core.checkpoints().is_empty());
}

#[test]
fn given_a_block_without_batches_when_it_finds_no_room_then_it_stays_as_it_is() {
    let mut bench = Bench::new();
    bench.core.create_group(GROUP, alone(5));
    assert_eq!(refuse(&mut bench), 0);
    bench.write_all();
    assert!(bench.core.partition(GROUP).unwrap().is_ready);
}
