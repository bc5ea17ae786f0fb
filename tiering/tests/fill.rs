//! From a leader's records to segments: all of them arrive byte for byte, and what are no batches changes nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::path::Path;

use bytes::{Bytes, BytesMut};
use chronik_engine::batch::BatchBuilder;
use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{SimDisk, block_on};
use chronik_engine::ids::{Offset, Term};
use chronik_engine::segment::{Manifest, Segment, SegmentError, SegmentId, SegmentReader};
use chronik_tiering::fill::{FillJob, write_fill};
use uuid::Uuid;

const DIR: &str = "/segments";

fn id() -> SegmentId {
    let (cluster, topic) = (Uuid::from_u128(1), Uuid::from_u128(2));
    SegmentId { cluster, topic, partition: 3, term: Term(4) }
}

/// A batch of `records` records as a consumer gets it.
fn batch(base: i64, records: i64) -> Bytes {
    let builder = BatchBuilder::new().base_offset(Offset(base)).leader_epoch(2);
    let add = |builder: BatchBuilder, at| builder.record(1000 + base + at, None, Some(&[7; 500]));
    (0..records).fold(builder, add).build().unwrap().into_bytes()
}

fn joined(batches: &[Bytes]) -> Bytes {
    let mut joined = BytesMut::new();
    batches.iter().for_each(|batch| joined.extend_from_slice(batch));
    joined.freeze()
}

fn disk() -> SimDisk {
    let disk = SimDisk::new(5);
    block_on(disk.create_dir_all(Path::new(DIR))).unwrap();
    disk
}

fn write(
    disk: &SimDisk,
    from: i64,
    chunks: Vec<Bytes>,
) -> (Vec<Segment>, Result<(), SegmentError>) {
    run(disk, &job(from, chunks))
}

fn job(from: i64, chunks: Vec<Bytes>) -> FillJob {
    FillJob {
        segments_dir: DIR.into(),
        id: id(),
        from: Offset(from),
        up_to: None,
        generation: 0,
        chunks,
        segment_bytes_max: 5000,
    }
}

fn run(disk: &SimDisk, job: &FillJob) -> (Vec<Segment>, Result<(), SegmentError>) {
    block_on(write_fill(disk, job))
}

fn read(disk: &SimDisk, segment: &Segment) -> Vec<Bytes> {
    let path = Path::new(DIR).join(segment.file_name(id().topic, id().partition));
    let reader = block_on(SegmentReader::open(disk, &path)).unwrap();
    block_on(reader.verify()).unwrap();
    let batches = block_on(reader.read_batches(Offset(0), Offset(i64::MAX), usize::MAX)).unwrap();
    batches.into_iter().map(|batch| batch.bytes).collect()
}

#[test]
fn given_batches_with_gaps_when_written_then_segments_stand_for_the_whole_range_and_hold_the_same_bytes()
 {
    let disk = disk();
    // The first begins before what is wanted; between others compaction has taken some.
    let batches: Vec<Bytes> = (0..30).map(|at| batch(at * 10 + 5, 1 + at % 4)).collect();
    let chunks = batches.chunks(7).map(joined).collect();
    let (segments, written) = write(&disk, 5, chunks);
    written.unwrap();
    assert!(segments.len() > 3, "none is larger than was said: {segments:?}");
    assert!(segments.iter().all(|segment| segment.file_bytes < 5000 + 4 * 4096));
    let mut manifest = Manifest::default();
    for segment in &segments {
        manifest.push(*segment);
    }
    let end = 29 * 10 + 5 + 1 + 29 % 4;
    assert_eq!((manifest.start(), manifest.end()), (Some(Offset(5)), Some(Offset(end))));
    let found: Vec<Bytes> = segments.iter().flat_map(|segment| read(&disk, segment)).collect();
    assert_eq!(found, batches);
    assert_eq!(segments.last().unwrap().max_timestamp_ms, 1000 + end - 1);
}

#[test]
fn given_an_offset_within_a_batch_when_written_then_the_segment_stands_for_what_is_wanted_only() {
    let disk = disk();
    let (segments, written) = write(&disk, 12, vec![joined(&[batch(0, 10), batch(10, 5)])]);
    written.unwrap();
    assert_eq!((segments[0].base_offset, segments[0].end_offset), (Offset(12), Offset(15)));
    assert_eq!(read(&disk, &segments[0]), [batch(10, 5)], "what lies before is left out");
}

#[test]
fn given_a_range_when_written_then_segments_stand_for_all_of_it_and_hold_nothing_else() {
    let disk = disk();
    let batches: Vec<Bytes> = (0..20).map(|at| batch(at * 10, 5)).collect();
    let wanted = |up_to| FillJob {
        up_to: Some(Offset(up_to)),
        generation: 3,
        ..job(40, vec![joined(&batches)])
    };
    let (segments, written) = run(&disk, &wanted(128));
    written.unwrap();
    assert!(segments.len() > 1 && segments.iter().all(|segment| segment.generation == 3));
    assert!(segments.windows(2).all(|pair| pair[0].end_offset == pair[1].base_offset));
    assert_eq!(segments[0].base_offset, Offset(40));
    assert_eq!(segments.last().unwrap().end_offset, Offset(128), "compaction took the last three");
    let found: Vec<Bytes> = segments.iter().flat_map(|segment| read(&disk, segment)).collect();
    assert_eq!(found, batches[4..13]);
    let (segments, written) = run(&disk, &wanted(123));
    assert!(written.is_err() && segments.is_empty(), "a batch lies across");
}

#[test]
fn given_what_are_no_batches_in_order_when_written_then_it_is_refused() {
    let disk = disk();
    let cut = batch(0, 3).slice(..200);
    let backwards = joined(&[batch(10, 2), batch(0, 2)]);
    for chunks in [vec![], vec![cut], vec![Bytes::from_static(b"garbage")], vec![backwards]] {
        let (segments, written) = write(&disk, 0, chunks);
        assert!(written.is_err() && segments.is_empty());
    }
    let (_, written) = write(&disk, 50, vec![batch(10, 5)]);
    assert!(written.is_err(), "it ends before what is wanted");
}
