//! Each rule of compaction by itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod compact_support;

use bytes::Bytes;
use chronik_engine::batch::{BatchBuilder, HEADER_BYTES, RecordBatch};
use chronik_engine::compression::Codec;
use chronik_engine::ids::Offset;
use chronik_tiering::compact::{CompactError, Compacted, CompactionReason, CompactionSettings};
use compact_support::{DAY_MS, Input, Partition, SETTINGS, build, put, tombstone};

/// Changes bytes of a batch and makes its checksum fit again.
fn altered(batch: &RecordBatch, alter: impl FnOnce(&mut Vec<u8>)) -> RecordBatch {
    let mut bytes = batch.bytes().to_vec();
    alter(&mut bytes);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[21..]);
    bytes[17..21].copy_from_slice(&u32::try_from(crc).unwrap().to_be_bytes());
    RecordBatch::parse_stored(Bytes::from(bytes)).unwrap()
}

#[test]
fn given_two_records_of_a_key_when_compacted_then_the_newer_one_stays_at_its_offset() {
    for codec in Codec::ALL {
        let mut partition = Partition::new(SETTINGS);
        partition.append(&[build(codec, &[put("a", "1"), put("b", "1"), put("a", "2")])]);
        let whole = build(codec, &[put("c", "1"), put("b", "2")]);
        partition.append(std::slice::from_ref(&whole));
        let compacted = partition.compact();
        let wanted = vec![(2, put("a", "2")), (3, put("c", "1")), (4, put("b", "2"))];
        assert_eq!(partition.outputs(), wanted);
        assert_eq!((compacted.records_dropped, compacted.is_partial), (2, false));
        assert_eq!(compacted.clean_to, Some(Offset(5)));
        let [first, second] = &partition.batches()[..] else { panic!("two batches") };
        assert_eq!((first.base_offset(), first.last_offset_delta()), (Offset(0), 2));
        assert_eq!((first.codec(), first.record_count()), (codec, 1));
        assert_eq!(second.bytes()[16..], whole.bytes()[16..], "copied as it is");
        let [segment] = partition.segments()[..] else { panic!("one segment") };
        assert_eq!((segment.base_offset, segment.end_offset), (Offset(0), Offset(5)));
        assert_eq!((segment.generation, segment.is_compacted), (1, true));
    }
}

#[test]
fn given_a_clean_part_when_newer_records_come_then_its_records_go() {
    let mut partition = Partition::new(SETTINGS);
    partition.append_inputs(&[put("a", "1"), put("b", "1")]);
    partition.compact();
    partition.append_inputs(&[put("a", "2")]);
    partition.compact();
    assert_eq!(partition.outputs(), vec![(1, put("b", "1")), (2, put("a", "2"))]);
    assert_eq!(partition.segments()[0].generation, 2);
}

#[test]
fn given_records_without_key_when_compacted_then_they_go() {
    let mut partition = Partition::new(SETTINGS);
    partition.append_inputs(&[Input { key: None, ..put("", "1") }, put("", "2")]);
    partition.compact();
    assert_eq!(partition.outputs(), vec![(1, put("", "2"))], "an empty key is a key");
}

#[test]
fn given_a_tombstone_when_compacted_then_it_stays_until_its_horizon_and_not_longer() {
    for codec in Codec::ALL {
        let mut partition = Partition::new(SETTINGS);
        partition.append(&[build(codec, &[put("a", "1"), put("b", "1"), tombstone("a")])]);
        let first_round_ms = partition.now_ms;
        partition.compact();
        let kept = vec![(1, put("b", "1")), (2, tombstone("a"))];
        assert_eq!(partition.outputs(), kept);
        let horizon_ms = first_round_ms + DAY_MS;
        assert_eq!(partition.batches()[0].header().delete_horizon_ms(), Some(horizon_ms));
        // Another round before that neither drops it nor moves its horizon.
        partition.now_ms = horizon_ms - 1;
        assert_eq!(partition.wants(), None);
        partition.append_inputs(&[put("c", "1")]);
        partition.compact();
        assert_eq!(partition.outputs()[..2], kept);
        assert_eq!(partition.batches()[0].header().delete_horizon_ms(), Some(horizon_ms));
        // Nothing new comes, and it goes all the same.
        partition.now_ms = horizon_ms;
        assert_eq!(partition.wants(), Some(CompactionReason::Tombstones));
        let swept = partition.compact();
        assert_eq!((swept.records_dropped, swept.delete_horizon_ms), (1, None));
        assert_eq!(partition.outputs(), vec![(1, put("b", "1")), (3, put("c", "1"))]);
        assert!(!partition.batches()[0].header().has_delete_horizon());
        assert_eq!(partition.wants(), None);
    }
}

#[test]
fn given_tombstones_in_one_of_several_segments_when_swept_then_the_others_are_not_read() {
    let settings = CompactionSettings { segment_bytes_max: 0, ..SETTINGS };
    let mut partition = Partition::new(settings);
    partition.append_inputs(&[put("a", "1")]);
    partition.append_inputs(&[tombstone("b")]);
    partition.append_inputs(&[put("c", "1")]);
    partition.compact();
    let before = partition.segments();
    partition.now_ms += DAY_MS;
    let swept = partition.compact();
    assert_eq!((swept.records_dropped, swept.bytes_written), (1, 61), "an empty batch is left");
    let after = partition.segments();
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    assert_eq!(after[1].generation, before[1].generation + 1);
    assert!(swept.bytes_read < 100, "{swept:?}");
    assert_eq!(partition.compact(), Compacted { clean_to: swept.clean_to, ..Compacted::default() });
}

#[test]
fn given_nothing_dirty_when_compacted_again_then_nothing_is_written() {
    let mut partition = Partition::new(SETTINGS);
    partition.append_inputs(&[put("a", "1"), tombstone("b"), put("a", "2")]);
    partition.append_inputs(&[put("a", "3")]);
    partition.compact();
    let (segments, changes) = (partition.segments(), partition.disk.counts().changes());
    let again = partition.compact();
    assert_eq!((again.bytes_written, again.bytes_read), (0, 0));
    assert_eq!(partition.segments(), segments);
    assert_eq!(partition.disk.counts().changes(), changes);
}

#[test]
fn given_a_large_clean_segment_without_losses_when_compacted_then_it_is_not_written_again() {
    let settings = CompactionSettings { segment_bytes_max: 30_000, ..SETTINGS };
    let mut partition = Partition::new(settings);
    let large = "x".repeat(20_000);
    partition.append_inputs(&[put("a", &large)]);
    partition.compact();
    let clean = partition.segments()[0];
    partition.append_inputs(&[put("b", &large)]);
    partition.compact();
    let segments = partition.segments();
    assert_eq!((segments.len(), segments[0]), (2, clean));
    assert!(segments[1].is_compacted);
}

#[test]
fn given_nothing_left_when_compacted_then_an_empty_batch_stands_for_the_range() {
    let settings = CompactionSettings { segment_bytes_max: 0, ..SETTINGS };
    let mut partition = Partition::new(settings);
    let first = [put("a", "1"), put("b", "1")];
    partition.append(&[build(Codec::Zstd, &first), build(Codec::Gzip, &first)]);
    partition.append_inputs(&[put("a", "2"), put("b", "2")]);
    partition.compact();
    assert_eq!(partition.offsets(), [4, 5]);
    let batches = partition.batches();
    assert_eq!((batches.len(), batches[0].record_count()), (2, 0));
    assert_eq!((batches[0].base_offset(), batches[0].offset_count()), (Offset(2), 2));
    assert_eq!((batches[0].size(), batches[0].max_timestamp_ms()), (HEADER_BYTES, 1000));
    let segments = partition.segments();
    assert_eq!((segments[0].base_offset, segments[0].end_offset), (Offset(0), Offset(4)));
    // It is not written again for being empty, and goes when its neighbour has room.
    partition.append_inputs(&[put("c", "1")]);
    partition.compact();
    assert_eq!(partition.segments()[0], segments[0]);
    partition.settings.segment_bytes_max = 1 << 20;
    partition.append_inputs(&[put("d", "1")]);
    partition.compact();
    assert_eq!(partition.segments().len(), 1);
    assert!(partition.batches().iter().all(|batch| batch.record_count() > 0));
    assert_eq!(partition.offsets(), [4, 5, 6, 7]);
}

#[test]
fn given_control_and_transactional_batches_when_compacted_then_they_stay_as_they_are() {
    let mut partition = Partition::new(SETTINGS);
    let marker = BatchBuilder::new().producer(1, 0, -1).transactional().control();
    let marker = marker.record(5, Some(b"a"), Some(b"commit")).build().unwrap();
    let pending = BatchBuilder::new().producer(1, 0, 0).transactional();
    let pending = pending.record(5, Some(b"b"), Some(b"1")).build().unwrap();
    partition.append(&[
        build(Codec::None, &[put("b", "0")]),
        pending,
        marker,
        build(Codec::None, &[put("a", "1"), put("b", "2")]),
    ]);
    let before = partition.batches();
    partition.compact();
    assert_eq!(partition.batches(), before[1..], "only what is newer in no transaction counts");
}

#[test]
fn given_a_batch_that_does_not_decode_when_compacted_then_it_stays_and_is_counted() {
    let mut partition = Partition::new(SETTINGS);
    let good = build(Codec::Zstd, &[put("a", "1"), put("b", "1")]);
    let no_zstd = altered(&good, |bytes| bytes[HEADER_BYTES..].fill(0xEE));
    let twice = build(Codec::None, &[put("a", "1"), put("a", "2")]);
    let record_bytes = (twice.size() - HEADER_BYTES) / 2;
    // The second record claims the first one's offset.
    let same_offset = altered(&twice, |bytes| bytes[HEADER_BYTES + record_bytes + 3] = 0);
    partition.append(&[good, no_zstd, same_offset]);
    let before = partition.batches();
    let compacted = partition.compact();
    assert_eq!((compacted.batches_unreadable, compacted.records_dropped), (2, 0));
    assert_eq!(partition.batches(), before, "what does not decode replaces nothing");
}

#[test]
fn given_a_delete_horizon_of_a_producer_when_compacted_then_it_is_not_waited_for_for_ever() {
    let mut partition = Partition::new(SETTINGS);
    let flag = |bytes: &mut Vec<u8>| bytes[22] |= 1 << 6;
    let plain = altered(&build(Codec::None, &[put("a", "1")]), flag);
    let no_lz4 = altered(&build(Codec::Lz4, &[put("b", "1")]), |bytes| {
        flag(bytes);
        bytes[HEADER_BYTES..].fill(0xEE);
    });
    partition.append(&[plain, no_lz4]);
    let compacted = partition.compact();
    assert_eq!((compacted.delete_horizon_ms, partition.wants()), (None, None));
    assert_eq!(partition.batches()[0].record_count(), 1);
    assert!(partition.batches().iter().all(|batch| !batch.header().has_delete_horizon()));
}

#[test]
fn given_segments_that_are_needed_or_young_when_compacted_then_they_are_left_alone() {
    let settings = CompactionSettings { min_compaction_lag_ms: 10_000, ..SETTINGS };
    let mut partition = Partition::new(settings);
    partition.append_inputs(&[put("a", "1"), put("a", "2")]);
    let late = Input { timestamp_ms: partition.now_ms - 9_999, ..put("a", "3") };
    let young = partition.append_inputs(std::slice::from_ref(&late));
    let mut job = partition.job();
    job.up_to = Offset(1);
    let nothing = partition.try_compact(&job).unwrap();
    assert_eq!(nothing, Compacted::default());
    let compacted = partition.compact();
    assert_eq!((compacted.clean_to, compacted.is_partial), (Some(Offset(2)), false));
    assert_eq!(partition.offsets(), [1, 2]);
    assert_eq!(partition.segments()[1], young);
    partition.now_ms += 1;
    partition.compact();
    assert_eq!(partition.outputs(), vec![(2, late)]);
}

/// Keys from `range`, twice each.
fn doubled(range: std::ops::Range<u32>) -> Vec<Input> {
    let keys = || range.clone().map(|key| format!("key-{key}"));
    let first = keys().map(|key| put(&key, "1"));
    first.chain(keys().map(|key| put(&key, "2"))).collect()
}

#[test]
fn given_a_map_too_small_for_all_segments_when_compacted_then_rounds_take_as_many_as_fit() {
    let settings = CompactionSettings { map_bytes_max: 100 * 24, ..SETTINGS };
    let mut partition = Partition::new(settings);
    for at in 0..4 {
        partition.append_inputs(&doubled(at * 30..at * 30 + 30));
    }
    let first = partition.compact();
    assert_eq!((first.clean_to, first.is_partial), (Some(Offset(120)), true));
    assert_eq!(partition.segments().len(), 3);
    assert_eq!(partition.offsets().len(), 60 + 120);
    let second = partition.compact();
    assert_eq!((second.clean_to, second.is_partial), (Some(Offset(240)), false));
    assert_eq!(partition.offsets().len(), 120);
    assert!(partition.outputs().iter().all(|(_, output)| output.value == Some("2".into())));
}

#[test]
fn given_a_map_too_small_for_one_segment_when_compacted_then_its_keys_are_parted() {
    let settings = CompactionSettings { map_bytes_max: 100 * 24, segment_bytes_max: 0, ..SETTINGS };
    let mut partition = Partition::new(settings);
    partition.append_inputs(&doubled(0..500));
    partition.append_inputs(&[tombstone("key-7"), put("other", "1")]);
    let first = partition.compact();
    assert_eq!((first.clean_to, first.is_partial), (Some(Offset(1000)), true));
    assert_eq!(first.records_dropped, 500);
    assert!(partition.segments()[0].generation > 4, "once for each part");
    partition.compact();
    assert_eq!(partition.offsets(), (500..1002).filter(|at| *at != 507).collect::<Vec<_>>());
    // The tombstone is among a thousand other keys, and goes only after its horizon.
    partition.append_inputs(&doubled(1000..1500));
    partition.compact();
    assert!(partition.offsets().contains(&1000));
    partition.now_ms += DAY_MS;
    partition.append_inputs(&doubled(2000..2500));
    partition.compact();
    assert!(!partition.offsets().contains(&1000));
    assert_eq!(partition.outputs().len(), 499 + 1 + 500 + 500);
}

#[test]
fn given_a_gap_between_segments_when_compacted_then_nothing_stands_for_it() {
    let mut partition = Partition::new(SETTINGS);
    let first = partition.append_inputs(&[put("a", "1"), put("b", "1")]);
    partition.manifest.drop_before(first.end_offset);
    partition.end += 5;
    let second = partition.append_inputs(&[put("a", "2")]);
    let mut job = partition.job();
    job.segments = vec![first, second];
    let mut made = Vec::new();
    let mut done = |segment| made.push(segment);
    let pace = &mut chronik_tiering::pace::Unpaced;
    let round = chronik_tiering::compact::compact(&partition.disk, &job, pace, &mut done);
    chronik_engine::disk_sim::block_on(round).unwrap();
    let ranges: Vec<_> = made.iter().map(|made| (made.base_offset, made.end_offset)).collect();
    assert_eq!(ranges, [(Offset(0), Offset(2)), (Offset(7), Offset(8))]);
}

#[test]
fn given_a_file_of_another_partition_or_none_when_compacted_then_it_is_an_error() {
    let mut partition = Partition::new(SETTINGS);
    partition.append_inputs(&[put("a", "1")]);
    let mut job = partition.job();
    job.id.cluster = uuid::Uuid::from_u128(77);
    let error = partition.try_compact(&job).unwrap_err();
    assert!(matches!(error, CompactError::Foreign { .. }), "{error}");
    let mut job = partition.job();
    job.id.partition = 99;
    let error = partition.try_compact(&job).unwrap_err();
    assert!(matches!(error, CompactError::Segment { .. }), "{error}");
}
