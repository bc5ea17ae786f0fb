//! Segments: the golden file, reads like those of a list, damage that is found, and crashes that leave all or nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use chronik_engine::batch::{BatchBuilder, BatchHeader, patch_header};
use chronik_engine::disk::{DISK_ALIGN, Disk, DiskFile};
use chronik_engine::disk_sim::{CrashMode, Fault, SimDisk, block_on};
use chronik_engine::ids::{Offset, Term};
use chronik_engine::segment::format::{INDEX_INTERVAL_BYTES, IndexEntry};
use chronik_engine::segment::{
    SegmentError, SegmentFault, SegmentId, SegmentPlan, SegmentReader, SegmentSummary,
    SegmentWriter, sweep,
};
use proptest::prelude::*;
use uuid::Uuid;

const DIR: &str = "/segments";

fn path() -> PathBuf {
    Path::new(DIR).join("00000000000000000007")
}

/// A batch of the list that the segment is compared with.
#[derive(Debug, Clone)]
struct Known {
    base: i64,
    end: i64,
    timestamp: i64,
    bytes: Vec<u8>,
}

/// Batches of (gap before, records, bytes of each value, timestamp) from offset 7 on.
fn batches(shape: &[(i64, usize, usize, i64)]) -> Vec<Known> {
    let mut next = 7;
    let made = shape.iter().enumerate().map(|(at, (gap, records, bytes, timestamp))| {
        let base = if at == 0 { next } else { next + gap };
        let mut builder = BatchBuilder::new();
        for _ in 0..*records {
            builder = builder.record(*timestamp, None, Some(&vec![7; *bytes]));
        }
        next = base + i64::try_from(*records).unwrap();
        let mut bytes = builder.build().unwrap().into_bytes().to_vec();
        patch_header(&mut bytes, Offset(base), Term(3));
        Known { base, end: next, timestamp: *timestamp, bytes }
    });
    made.collect()
}

fn plan(batches: &[Known]) -> SegmentPlan {
    SegmentPlan {
        id: SegmentId {
            cluster: Uuid::from_u128(1),
            topic: Uuid::from_u128(2),
            partition: 3,
            term: Term(4),
        },
        base_offset: Offset(batches[0].base),
        payload_bytes: batches.iter().map(|batch| batch.bytes.len() as u64).sum(),
        batches: u32::try_from(batches.len()).unwrap(),
    }
}

async fn write(disk: &SimDisk, batches: &[Known]) -> Result<SegmentSummary, SegmentError> {
    disk.create_dir_all(Path::new(DIR)).await.unwrap();
    let mut writer = SegmentWriter::create(disk.clone(), &path(), plan(batches)).await?;
    for batch in batches {
        writer.push(&batch.bytes).await?;
    }
    writer.finish().await
}

fn sample() -> Vec<Known> {
    batches(&[(0, 2, 10, 1000), (0, 1, 20_000, 3000), (5, 3, 0, 2000), (0, 1, 5, -1)])
}

fn file_bytes(disk: &SimDisk) -> Vec<u8> {
    block_on(async {
        let file = disk.open(&path()).await.unwrap();
        file.read_at(0, usize::try_from(file.len()).unwrap()).await.unwrap().to_vec()
    })
}

/// Compares with a file of this version of the format. `CHRONIK_BLESS=1` writes it anew: a change of format.
fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("CHRONIK_BLESS").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let wanted = std::fs::read(&path).unwrap();
    assert!(wanted == bytes, "{name} is not what it was: files of older versions cannot be read");
}

#[test]
fn given_batches_when_written_then_the_file_is_the_golden_one_and_whole() {
    let disk = SimDisk::new(1);
    let batches = sample();
    let summary = block_on(write(&disk, &batches)).unwrap();
    assert_eq!((summary.end_offset, summary.max_timestamp_ms), (Offset(19), 3000));
    golden("segment_v2.bin", &file_bytes(&disk));
    let reader = block_on(SegmentReader::open(&disk, &path())).unwrap();
    assert_eq!(*reader.summary(), summary);
    block_on(reader.verify()).unwrap();
}

#[test]
fn given_a_file_of_the_first_version_when_opened_then_it_says_that_this_is_not_known() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment_v1.bin");
    let disk = SimDisk::new(1);
    block_on(put_file(&disk, &std::fs::read(file).unwrap()));
    let refused = block_on(SegmentReader::open(&disk, &path())).unwrap_err();
    let fault = SegmentFault::Version { version: 1 };
    assert!(
        matches!(&refused, SegmentError::Damaged { position: 0, fault: f, .. } if *f == fault),
        "{refused}"
    );
}

#[test]
fn given_another_number_of_batches_when_finished_then_there_is_no_segment() {
    let disk = SimDisk::new(1);
    let batches = sample();
    block_on(async {
        disk.create_dir_all(Path::new(DIR)).await.unwrap();
        let mut writer =
            SegmentWriter::create(disk.clone(), &path(), plan(&batches)).await.unwrap();
        writer.push(&batches[0].bytes).await.unwrap();
        let again = writer.push(&batches[0].bytes).await.unwrap_err();
        assert!(matches!(
            again,
            SegmentError::NotPlanned { fault: SegmentFault::Contradiction, .. }
        ));
        let short = writer.finish().await.unwrap_err();
        assert!(matches!(
            short,
            SegmentError::NotPlanned { fault: SegmentFault::Count { .. }, .. }
        ));
        assert!(SegmentReader::open(&disk, &path()).await.is_err());
        assert_eq!(disk.list(Path::new(DIR)).await.unwrap(), [], "nothing is left of it");
    });
}

#[test]
fn given_a_disk_that_fails_when_a_segment_is_written_then_nothing_is_left_of_it() {
    let batches = sample();
    let mut failures = 0;
    for after in 0..40 {
        for fault in [Fault::WriteError, Fault::SyncError] {
            let disk = SimDisk::new(1);
            block_on(disk.create_dir_all(Path::new(DIR))).unwrap();
            disk.fail_after(after, fault);
            let written = block_on(write(&disk, &batches));
            disk.clear_faults();
            let left = block_on(disk.list(Path::new(DIR))).unwrap();
            assert_eq!(left.is_empty(), written.is_err(), "{fault:?} after {after}: {left:?}");
            failures += usize::from(written.is_err());
        }
    }
    assert!(failures > 4, "{failures}");
}

#[test]
fn given_a_writer_when_it_is_discarded_then_nothing_is_left_and_another_may_begin() {
    let disk = SimDisk::new(1);
    let batches = sample();
    block_on(async {
        disk.create_dir_all(Path::new(DIR)).await.unwrap();
        let made = SegmentWriter::create(disk.clone(), &path(), plan(&batches)).await;
        made.unwrap().discard().await;
        assert_eq!(disk.list(Path::new(DIR)).await.unwrap(), []);
        // A process that ended amid a segment leaves it behind, for a start to remove.
        drop(SegmentWriter::create(disk.clone(), &path(), plan(&batches)).await.unwrap());
        assert_eq!(sweep(&disk, Path::new(DIR)).await.unwrap(), 1);
        assert_eq!(disk.list(Path::new(DIR)).await.unwrap(), []);
    });
}

/// A file with these bytes under the segment's name.
async fn put_file(disk: &SimDisk, bytes: &[u8]) {
    disk.create_dir_all(Path::new(DIR)).await.unwrap();
    let file = disk.create(&path(), bytes.len() as u64).await.unwrap();
    for (n, part) in (0_u64..).zip(bytes.chunks(DISK_ALIGN)) {
        let mut buf = file.alloc(part.len());
        AsMut::<[u8]>::as_mut(&mut buf).copy_from_slice(part);
        file.write_at(buf, n * DISK_ALIGN as u64).await.unwrap();
    }
}

/// Batches in several intervals of the index, in one of them many, and a large one across its end; with gaps, as compaction
/// leaves them: an offset within one would be nobody else's.
fn in_intervals() -> Vec<Known> {
    let small = (0..20).map(|at| (at % 3, 2, 20 * usize::try_from(at).unwrap(), 1000 + at));
    let large = [(0, 1, 17_000, 900), (2, 3, 4_000, 2000), (1, 1, 9_000, 2001), (0, 2, 10, 2002)];
    batches(&small.chain(large).collect::<Vec<_>>())
}

/// Where the batches begin in the file, and where the last one ends.
fn positions(batches: &[Known]) -> Vec<usize> {
    let ends = batches.iter().scan(DISK_ALIGN, |at, batch| {
        *at += batch.bytes.len();
        Some(*at)
    });
    [DISK_ALIGN].into_iter().chain(ends).collect()
}

/// Reads all there is, some of it from somewhere in the middle, and by time. Nothing is given but what was written; says
/// whether something was not given.
async fn read_damaged(disk: &SimDisk, batches: &[Known], hit: usize) -> bool {
    let Ok(reader) = SegmentReader::open(disk, &path()).await else { return true };
    let end = Offset(batches[batches.len() - 1].end);
    let mut is_told = false;
    let (mut from, mut next) = (Offset(0), 0);
    loop {
        let Ok(found) = reader.read_batches(from, end, 60_000).await else {
            is_told = true;
            break;
        };
        let Some(last) = found.last() else { break };
        from = last.end_offset;
        for found in &found {
            let wanted = &batches[next];
            assert!(found.bytes == wanted.bytes, "{} for {}", found.base_offset, wanted.base);
            assert_eq!((found.base_offset.0, found.end_offset.0), (wanted.base, wanted.end));
            next += 1;
        }
    }
    assert!(is_told || next == batches.len(), "{next} batches, and nothing is wrong");
    let wanted = &batches[hit];
    match reader.read_batches(Offset(wanted.end - 1), end, 1).await {
        Ok(found) => assert!(found[0].bytes == wanted.bytes, "{}", found[0].base_offset),
        Err(_) => is_told = true,
    }
    match reader.find_timestamp(Offset(wanted.base), wanted.timestamp).await {
        Ok(found) => assert!(found.unwrap().bytes == wanted.bytes, "by its time"),
        Err(_) => is_told = true,
    }
    assert_eq!(reader.verify().await.is_err(), is_told, "all of it, and a part");
    is_told
}

#[test]
fn given_any_flipped_byte_when_read_then_nothing_is_given_but_what_was_written() {
    let batches = in_intervals();
    let disk = SimDisk::new(1);
    let summary = block_on(write(&disk, &batches)).unwrap();
    let whole = file_bytes(&disk);
    let plan = summary.plan;
    let [data_end, index, footer] =
        [plan.data_end(), plan.index_position(), plan.footer_position()]
            .map(|at| usize::try_from(at).unwrap());
    let reader = block_on(SegmentReader::open(&disk, &path())).unwrap();
    let entries = reader.memory_bytes() / size_of::<IndexEntry>();
    assert!(entries >= 3, "{entries}");
    let counts = [0..80, DISK_ALIGN..data_end, index..index + entries * 28, footer..footer + 56];
    let positions = positions(&batches);
    assert!(!block_on(read_damaged(&disk, &batches, 0)), "it is whole");
    for at in 0..whole.len() {
        let flipped = whole[at] ^ (1 << (at % 8));
        disk.write_raw(&path(), at as u64, &[flipped]).unwrap();
        let hit = positions.partition_point(|begin| *begin <= at).saturating_sub(1);
        let is_told = block_on(read_damaged(&disk, &batches, hit.min(batches.len() - 1)));
        let is_to_be_told = counts.iter().any(|range| range.contains(&at));
        assert_eq!(is_told, is_to_be_told, "byte {at}");
        disk.write_raw(&path(), at as u64, &whole[at..=at]).unwrap();
    }
}

#[test]
fn given_another_offset_or_epoch_in_a_batch_when_read_then_its_interval_is_damaged_and_no_other() {
    let batches = in_intervals();
    let disk = SimDisk::new(1);
    block_on(write(&disk, &batches)).unwrap();
    let positions = positions(&batches);
    let mut begin_of = Vec::new();
    for position in &positions[..batches.len()] {
        let begun = begin_of.last().copied().unwrap_or(*position);
        let goes_on = position - begun < usize::try_from(INDEX_INTERVAL_BYTES).unwrap();
        begin_of.push(if goes_on { begun } else { *position });
    }
    let end = Offset(batches[batches.len() - 1].end);
    for (number, batch) in batches.iter().enumerate() {
        for byte in (0..8).chain(12..16) {
            let at = (positions[number] + byte) as u64;
            disk.write_raw(&path(), at, &[batch.bytes[byte] ^ 0x21]).unwrap();
            for (other, wanted) in batches.iter().enumerate() {
                let is_hit = begin_of[other] == begin_of[number];
                block_on(async {
                    let reader = SegmentReader::open(&disk, &path()).await.unwrap();
                    let read = reader.read_batches(Offset(wanted.base), end, 1).await;
                    let is_right = read.as_ref().is_ok_and(|read| read[0].bytes == wanted.bytes);
                    assert_eq!((read.is_err(), is_right), (is_hit, !is_hit), "{other}: {read:?}");
                });
            }
            disk.write_raw(&path(), at, &batch.bytes[byte..=byte]).unwrap();
        }
    }
}

#[test]
fn given_damaged_records_when_what_follows_them_is_read_then_it_is_given() {
    let batches = in_intervals();
    let disk = SimDisk::new(1);
    block_on(write(&disk, &batches)).unwrap();
    let position = positions(&batches)[3] as u64 + 70;
    disk.write_raw(&path(), position, &[0xff]).unwrap();
    let end = Offset(batches[batches.len() - 1].end);
    block_on(async {
        let reader = SegmentReader::open(&disk, &path()).await.unwrap();
        for (at, wanted) in batches.iter().enumerate() {
            let read = reader.read_batches(Offset(wanted.base), end, 1).await;
            assert_eq!(read.is_err(), at == 3, "{at}: {read:?}");
            let found = reader.find_timestamp(Offset(wanted.base), wanted.timestamp).await;
            assert_eq!(found.is_err(), at == 3, "{at}: {found:?}");
        }
        let before = reader.read_batches(Offset(0), end, usize::MAX).await.unwrap();
        assert_eq!(before.len(), 3, "what lies before it is given");
    });
}

#[test]
fn given_a_batch_that_says_it_ends_sooner_when_what_it_holds_is_read_then_it_is_damage_and_not_passed_over()
 {
    let batches = sample();
    let disk = SimDisk::new(1);
    block_on(write(&disk, &batches)).unwrap();
    const LAST_OFFSET_DELTA: usize = 23;
    let (mut begin, mut tried) = (4096, 0);
    for batch in &batches {
        let last = BatchHeader::read(&batch.bytes).unwrap().last_offset_delta;
        let delta = LAST_OFFSET_DELTA..LAST_OFFSET_DELTA + 4;
        if last > 0 {
            tried += 1;
            let at = begin + delta.start as u64;
            disk.write_raw(&path(), at, &[0; 4]).unwrap();
            let from = Offset(batch.base + i64::from(last));
            block_on(async {
                let reader = SegmentReader::open(&disk, &path()).await.unwrap();
                let read = reader.read_batches(from, Offset(19), usize::MAX).await;
                assert!(read.is_err(), "{from}: {read:?}");
                let found = reader.find_timestamp(from, 0).await;
                assert!(found.is_err(), "{from}: {found:?}");
            });
            disk.write_raw(&path(), at, &batch.bytes[delta]).unwrap();
        }
        begin += batch.bytes.len() as u64;
    }
    assert!(tried > 0, "no batch with several records");
}

#[test]
fn given_a_crash_at_any_operation_when_opened_again_then_the_segment_is_whole_or_not_there() {
    let batches = sample();
    let mut outcomes = [0, 0];
    for stop in 1..40 {
        for seed in 0..4 {
            let disk = SimDisk::new(seed);
            block_on(disk.create_dir_all(Path::new(DIR))).unwrap();
            let now = disk.counts().changes();
            disk.crash_at_op(now + stop);
            let finished = block_on(write(&disk, &batches)).is_ok();
            disk.crash(CrashMode::RANDOM);
            disk.crash_at_op(u64::MAX);
            let names = block_on(disk.list(Path::new(DIR))).unwrap();
            let is_there = names.iter().any(|entry| Path::new(DIR).join(&entry.name) == path());
            assert!(is_there || !finished, "it was reported as durable: stop {stop}, seed {seed}");
            if is_there {
                let reader = block_on(SegmentReader::open(&disk, &path())).unwrap();
                block_on(reader.verify()).unwrap();
            }
            outcomes[usize::from(is_there)] += 1;
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

/// What a read of so many bytes is to give: the first batch that ends after `from`, and those behind it that fit.
fn wanted(known: &[Known], from: i64, up_to: i64, bytes_max: usize) -> Vec<&Known> {
    let mut bytes = 0;
    known
        .iter()
        .filter(|batch| batch.end > from && batch.base < up_to)
        .enumerate()
        .take_while(|(at, batch)| {
            bytes += batch.bytes.len();
            *at == 0 || bytes <= bytes_max
        })
        .map(|(_, batch)| batch)
        .collect()
}

#[test]
fn given_batches_larger_than_what_is_read_at_once_when_read_then_they_are_whole_wherever_they_lie()
{
    const MIB: usize = 1 << 20;
    let sizes =
        [100, 300_000, 300_000, 700_000, 10, 3 * MIB, 0, 40_000, 524_288, 524_200, 1, 2 * MIB, 5];
    let shape: Vec<_> = sizes.iter().map(|bytes| (0, 1, *bytes, 7)).collect();
    let disk = SimDisk::new(1);
    let known = batches(&shape);
    block_on(write(&disk, &known)).unwrap();
    let reader = block_on(SegmentReader::open(&disk, &path())).unwrap();
    block_on(reader.verify()).unwrap();
    for from in known.iter().map(|batch| batch.base) {
        for bytes_max in [1, 128 << 10, 600_000, MIB, 1_234_567, 10 * MIB] {
            let found = block_on(reader.read_batches(Offset(from), Offset(i64::MAX), bytes_max));
            let found = found.unwrap();
            let wanted = wanted(&known, from, i64::MAX, bytes_max);
            assert_eq!(found.len(), wanted.len(), "{bytes_max} bytes from {from}");
            let same = found.iter().zip(&wanted).all(|(found, wanted)| found.bytes == wanted.bytes);
            assert!(same, "{bytes_max} bytes from {from}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn given_any_batches_when_read_by_offset_and_time_then_as_a_list_has_them(
        shape in proptest::collection::vec(
            (prop_oneof![4 => Just(0_i64), 1 => 1..5_i64], 1..4_usize, 0..9000_usize, 0..50_i64),
            1..40
        ),
        bytes_max in 1..60_000_usize,
    ) {
        let disk = SimDisk::new(1);
        let known = batches(&shape);
        let summary = block_on(write(&disk, &known)).unwrap();
        let reader = block_on(SegmentReader::open(&disk, &path())).unwrap();
        block_on(reader.verify()).unwrap();
        let end = summary.end_offset.0;
        let entries = reader.memory_bytes() / size_of::<IndexEntry>();
        prop_assert!(entries as u64 <= summary.plan.payload_bytes / INDEX_INTERVAL_BYTES + 1);
        for from in 0..end + 2 {
            let up_to = Offset(end - from % 5);
            let found = block_on(reader.read_batches(Offset(from), up_to, bytes_max)).unwrap();
            let wanted = wanted(&known, from, up_to.0, bytes_max);
            let same = found.len() == wanted.len()
                && found.iter().zip(&wanted).all(|(found, wanted)| found.bytes == wanted.bytes);
            prop_assert!(same, "from {from}: {} for {}", found.len(), wanted.len());
            let time = from % 50;
            let found = block_on(reader.find_timestamp(Offset(from), time)).unwrap();
            let wanted = known.iter().find(|b| b.end > from && b.timestamp >= time);
            prop_assert_eq!(found.map(|b| b.base_offset.0), wanted.map(|b| b.base));
        }
    }
}
