//! Batches as compaction leaves them: rewritten with fewer records or none, and segments that hold them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use bytes::Bytes;
use chronik_engine::batch::{
    BatchBuilder, BatchError, BatchRewriter, DeleteHorizon, Record, RecordBatch,
};
use chronik_engine::compression::Codec;
use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{SimDisk, block_on};
use chronik_engine::ids::{Offset, Term};
use chronik_engine::segment::{SegmentId, SegmentPlan, SegmentReader, SegmentWriter};
use proptest::prelude::*;
use uuid::Uuid;

const OUTPUT_MAX: usize = 1 << 20;

fn batch(codec: Codec, timestamps: &[i64]) -> RecordBatch {
    let mut builder = BatchBuilder::new()
        .codec(codec)
        .base_offset(Offset(100))
        .producer(9, 1, 50)
        .leader_epoch(3);
    for (at, timestamp) in timestamps.iter().enumerate() {
        let key = at.to_string();
        let value = (at % 3 != 0).then(|| key.repeat(40));
        let headers: [(&[u8], Option<&[u8]>); 2] = [(b"a", Some(b"1")), (b"b", None)];
        let headers = &headers[..at % 3];
        let value = value.as_deref().map(str::as_bytes);
        builder = builder.record_with_headers(*timestamp, Some(key.as_bytes()), value, headers);
    }
    builder.build().unwrap()
}

fn rewritten(
    batch: &RecordBatch,
    horizon: DeleteHorizon,
    keep: impl Fn(i32) -> bool,
) -> RecordBatch {
    let mut rewriter = BatchRewriter::new(batch, horizon);
    let slices = batch.record_slices(OUTPUT_MAX).unwrap();
    for record in slices.iter().filter(|record| keep(record.offset_delta)) {
        rewriter.push(&record);
    }
    rewriter.finish().unwrap()
}

/// The records with their timestamps and not the deltas of them.
fn records(batch: &RecordBatch) -> Vec<(i64, Record)> {
    let records = batch.records(OUTPUT_MAX).unwrap().map(Result::unwrap);
    let timed = records.map(|mut record| {
        let timestamp_ms = batch.base_timestamp_ms() + record.timestamp_delta;
        record.timestamp_delta = 0;
        (timestamp_ms, record)
    });
    timed.collect()
}

#[test]
fn given_a_batch_when_emptied_then_it_takes_its_offsets_and_only_a_log_may_hold_it() {
    for codec in Codec::ALL {
        let whole = rewritten(&batch(codec, &[7, 9, 8]), DeleteHorizon::Set(5), |_| true);
        let empty = whole.emptied();
        assert_eq!((empty.record_count(), empty.offset_count(), empty.size()), (0, 3, 61));
        assert_eq!((empty.base_offset(), empty.leader_epoch()), (Offset(100), 3));
        assert_eq!((empty.base_sequence(), empty.last_sequence()), (50, 52));
        assert_eq!((empty.max_timestamp_ms(), empty.header().delete_horizon_ms()), (9, None));
        assert_eq!(RecordBatch::parse_stored(empty.bytes().clone()).unwrap(), empty);
        assert_eq!(empty.record_slices(OUTPUT_MAX).unwrap().iter().count(), 0);
        let refused = RecordBatch::parse(empty.bytes().clone()).unwrap_err();
        assert!(matches!(refused, BatchError::InvalidRecordCount { record_count: 0, .. }));
    }
}

#[test]
fn given_more_records_than_offsets_when_parsed_then_refused() {
    let whole = batch(Codec::None, &[1, 2, 3]);
    let mut bytes = whole.bytes().to_vec();
    bytes[23..27].copy_from_slice(&1_i32.to_be_bytes());
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[21..]);
    bytes[17..21].copy_from_slice(&u32::try_from(crc).unwrap().to_be_bytes());
    let refused = RecordBatch::parse_stored(Bytes::from(bytes)).unwrap_err();
    assert!(matches!(refused, BatchError::InvalidRecordCount { record_count: 3, .. }), "{refused}");
}

#[test]
fn given_a_batch_with_the_brokers_time_when_rewritten_then_the_time_stays() {
    let whole = batch(Codec::Lz4, &[1, 2, 3]).with_log_append_time(1000);
    let first = rewritten(&whole, DeleteHorizon::Set(77), |delta| delta == 0);
    assert_eq!((first.max_timestamp_ms(), first.base_timestamp_ms()), (1000, 77));
    assert_eq!(first.timestamp_type(), whole.timestamp_type());
}

#[test]
fn given_a_horizon_when_cleared_then_records_and_timestamps_are_as_they_were() {
    let whole = batch(Codec::Zstd, &[5, 6, 4]);
    let with = rewritten(&whole, DeleteHorizon::Set(1_000_000), |_| true);
    assert_eq!(with.header().delete_horizon_ms(), Some(1_000_000));
    let without = with.without_delete_horizon();
    assert_eq!(RecordBatch::parse(without.bytes().clone()).unwrap(), without);
    assert_eq!(without.header().delete_horizon_ms(), None);
    assert_eq!(records(&without), records(&whole));
}

#[test]
fn given_a_segment_of_rewritten_batches_when_read_then_they_are_found_and_the_empty_one_has_no_time()
 {
    let disk = SimDisk::new(1);
    let path = Path::new("/segments/one");
    let at = |offset: i64, batch: RecordBatch| {
        let patched = batch.patched(Offset(offset), Term(1));
        [&patched.header[..], &patched.rest[..]].concat()
    };
    let source = batch(Codec::Gzip, &[10, 20, 30]);
    let part = rewritten(&source, DeleteHorizon::Set(1001), |delta| delta == 1);
    let batches = [at(0, source.emptied()), at(5, part), at(8, source.clone()), at(11, source)];
    let summary = block_on(async {
        disk.create_dir_all(Path::new("/segments")).await.unwrap();
        let plan = SegmentPlan {
            id: SegmentId { cluster: Uuid::nil(), topic: Uuid::nil(), partition: 0, term: Term(1) },
            base_offset: Offset(0),
            payload_bytes: batches.iter().map(|batch| batch.len() as u64).sum(),
            batches: 4,
        };
        let mut writer = SegmentWriter::create(disk.clone(), path, plan).await.unwrap();
        for batch in &batches {
            writer.push(batch).await.unwrap();
        }
        writer.finish().await.unwrap()
    });
    assert_eq!((summary.delete_horizon_s, summary.delete_horizon_ms()), (2, Some(2000)));
    block_on(async {
        let reader = SegmentReader::open(&disk, path).await.unwrap();
        assert_eq!(*reader.summary(), summary);
        reader.verify().await.unwrap();
        let found = reader.read_batches(Offset(0), Offset(100), OUTPUT_MAX).await.unwrap();
        let ends: Vec<i64> = found.iter().map(|batch| batch.end_offset.0).collect();
        assert_eq!(ends, [3, 8, 11, 14]);
        assert!(found.iter().zip(&batches).all(|(found, wrote)| found.bytes == wrote[..]));
        for (time, base) in [(0, 5), (20, 5), (21, 8), (30, 8)] {
            let found = reader.find_timestamp(Offset(0), time).await.unwrap().unwrap();
            assert_eq!(found.base_offset, Offset(base), "{time}");
        }
    });
}

proptest! {
    #[test]
    fn given_any_records_kept_when_rewritten_then_they_are_as_they_were(
        codec in proptest::sample::select(&Codec::ALL[..]),
        timestamps in proptest::collection::vec(-1_i64..2_000_000_000_000, 1..40),
        mask: u64,
        horizon in proptest::option::of(0_i64..2_000_000_000_000),
    ) {
        let whole = batch(codec, &timestamps);
        let keep = |delta: i32| delta == 0 || mask >> delta & 1 == 1;
        let set = horizon.map_or(DeleteHorizon::Keep, DeleteHorizon::Set);
        let part = rewritten(&whole, set, keep);
        let wanted: Vec<_> =
            records(&whole).into_iter().filter(|(_, r)| keep(r.offset_delta)).collect();
        prop_assert_eq!(records(&part), wanted.clone());
        prop_assert_eq!(part.header().delete_horizon_ms(), horizon);
        let max = wanted.iter().map(|(timestamp_ms, _)| *timestamp_ms).max();
        prop_assert_eq!(Some(part.max_timestamp_ms()), max);
        prop_assert_eq!(part.last_offset_delta(), whole.last_offset_delta());
        prop_assert_eq!(part.codec(), codec);
        let again = RecordBatch::parse_stored(part.bytes().clone()).unwrap();
        prop_assert_eq!(&again, &part);
        // Once more, with fewer, and back to a base without a horizon's meaning.
        let one = rewritten(&part, DeleteHorizon::Clear, |delta| delta == 0);
        prop_assert_eq!(records(&one), wanted[..1].to_vec());
    }
}
