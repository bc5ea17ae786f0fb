//! From the log to segments and on to larger ones: every batch arrives, in order, as it stands in the log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chronik_engine::batch::BatchBuilder;
use chronik_engine::disk::{Disk, is_full};
use chronik_engine::disk_sim::{Corruption, Fault, SimDisk, block_on};
use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::segment::{Manifest, Segment, SegmentError, SegmentId, SegmentReader};
use chronik_engine::wal::record::{EntryKind, GroupMeta, LogEntry, WalRecord};
use chronik_engine::wal::{SealedName, Wal, WalOptions};
use chronik_tiering::merge::{MergeLimits, merge, mergeable};
use chronik_tiering::pace::Unpaced;
use chronik_tiering::room::RoomKept;
use chronik_tiering::write::{FailedPart, WriteError, WriteJob, WritePart, write_segments};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

const SHARD: Uuid = Uuid::from_u128(7);
const DIR: &str = "/segments";

/// The parts that could not be read.
type Failed = Vec<FailedPart>;

/// A log of three groups, and what it holds of each.
struct Log {
    disk: SimDisk,
    wal: Wal<SimDisk>,
    batches: BTreeMap<GroupId, Vec<(RaftIndex, Offset, u32)>>,
    next: BTreeMap<GroupId, (RaftIndex, Offset)>,
}

fn id(group: GroupId) -> SegmentId {
    let topic = Uuid::from_u128(u128::from(group.0));
    SegmentId { cluster: Uuid::from_u128(1), topic, partition: 0, term: Term(1) }
}

impl Log {
    fn new() -> Log {
        let disk = SimDisk::new(3);
        let options = WalOptions { ballast_bytes: 0, ..WalOptions::new("/wal", SHARD) };
        let (wal, _, _) = block_on(Wal::open(disk.clone(), options)).unwrap();
        block_on(disk.create_dir_all(Path::new(DIR))).unwrap();
        let groups = [1, 2, 3].map(GroupId);
        let meta = GroupMeta { replica: ReplicaId(9), ..GroupMeta::default() };
        let created: Vec<WalRecord> = groups
            .iter()
            .map(|group| WalRecord::GroupCreated { group: *group, meta: meta.clone() })
            .collect();
        block_on(wal.append(&created)).unwrap();
        let next = groups.map(|group| (group, (RaftIndex(1), Offset(0)))).into();
        Log { disk, wal, batches: BTreeMap::new(), next }
    }

    fn entry(&mut self, group: GroupId, kind: EntryKind, records: u32, bytes: usize) -> WalRecord {
        let (index, base_offset) = self.next[&group];
        let (payload, timestamp_ms) = match kind {
            EntryKind::Batch => {
                let timestamp_ms = 1000 + base_offset.0;
                let batch = (0..records).fold(BatchBuilder::new(), |batch, _| {
                    batch.record(timestamp_ms, None, Some(&vec![7; bytes]))
                });
                (batch.build().unwrap().bytes().clone(), timestamp_ms)
            }
            _ => (Bytes::from_static(b"a command"), -1),
        };
        if kind == EntryKind::Batch {
            self.batches.entry(group).or_default().push((index, base_offset, records));
        }
        self.next.insert(group, (index.next(), base_offset.plus(records)));
        let entry = LogEntry {
            index,
            term: Term(1),
            kind,
            base_offset,
            offset_count: records,
            max_timestamp_ms: timestamp_ms,
            payload,
        };
        WalRecord::Entry { group, entry }
    }

    /// Blocks of batches and commands of all groups in any order; the last group gets little.
    fn fill(&mut self, rng: &mut StdRng, blocks: usize) {
        for _ in 0..blocks {
            let count = rng.random_range(1..20);
            let records: Vec<WalRecord> = (0..count)
                .map(|_| {
                    let group = GroupId([1, 1, 1, 2, 2, 2, 2, 2, 2, 3][rng.random_range(0..10)]);
                    match rng.random_range(0..8) {
                        0 => self.entry(group, EntryKind::Command, 0, 0),
                        _ => {
                            let records = rng.random_range(1..4);
                            self.entry(group, EntryKind::Batch, records, rng.random_range(1..9000))
                        }
                    }
                })
                .collect();
            block_on(self.wal.append(&records)).unwrap();
        }
    }

    /// Its only file.
    fn path(&self) -> PathBuf {
        let listed = block_on(self.disk.list(Path::new("/wal"))).unwrap();
        let name = &listed.iter().find(|entry| entry.name.ends_with(".wal")).unwrap().name;
        PathBuf::from("/wal").join(name)
    }

    fn part(&self, group: GroupId, from: Offset, follows: bool) -> WritePart {
        let last = RaftIndex(self.next[&group].0.0 - 1);
        let follows = follows.then_some(from);
        WritePart { group, id: id(group), from, follows, last, segment_bytes_max: 100_000 }
    }

    fn name(&self) -> SealedName {
        let (seq, end_position) = self.wal.position();
        SealedName { seq, path: self.path(), end_position }
    }

    fn write(
        &self,
        parts: Vec<WritePart>,
    ) -> (Vec<(GroupId, Segment)>, Result<Failed, WriteError>) {
        let job =
            WriteJob { wal_file: self.name(), shard_uuid: SHARD, segments_dir: DIR.into(), parts };
        let mut written = Vec::new();
        let mut done = |part: &WritePart, segment| written.push((part.group, segment));
        let result = block_on(write_segments(&self.disk, &job, &mut Unpaced, &mut done));
        (written, result)
    }

    /// The batches in segments, each with base offset and record count, and that they are what the log has.
    fn read(&self, group: GroupId, segments: &[Segment]) -> Vec<(Offset, u32)> {
        let mut all = Vec::new();
        for segment in segments {
            let path = Path::new(DIR).join(segment.file_name(id(group).topic, 0));
            let reader = block_on(SegmentReader::open(&self.disk, &path)).unwrap();
            block_on(reader.verify()).unwrap();
            let read = reader.read_batches(segment.base_offset, segment.end_offset, usize::MAX);
            for batch in block_on(read).unwrap() {
                let (from, to) = (batch.base_offset, batch.end_offset);
                let logged = block_on(self.wal.read_batches(group, from, to, 1)).unwrap();
                assert_eq!(batch.bytes, logged[0].bytes, "group {group} at {from}");
                all.push((from, u32::try_from(to.0 - from.0).unwrap()));
            }
        }
        all
    }

    fn wanted(&self, group: GroupId) -> Vec<(Offset, u32)> {
        self.batches[&group].iter().map(|(_, offset, count)| (*offset, *count)).collect()
    }
}

/// What the files on the disk take.
fn used(log: &Log) -> u64 {
    let len = |path: PathBuf| log.disk.read_raw(&path).unwrap().len() as u64;
    log.disk.files().into_iter().map(len).sum()
}

#[test]
fn given_a_file_of_several_partitions_when_written_then_each_has_all_its_batches_in_order() {
    for seed in 0..8 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut log = Log::new();
        log.fill(&mut rng, 60);
        let groups = [1, 2, 3].map(GroupId);
        let parts = groups.map(|group| log.part(group, Offset(0), false)).to_vec();
        let (written, result) = log.write(parts);
        assert!(result.unwrap().is_empty());
        let mut manifests: BTreeMap<GroupId, Manifest> = BTreeMap::new();
        for (group, segment) in written {
            assert!(segment.file_bytes < 150_000, "{segment:?}");
            manifests.entry(group).or_default().push(segment);
        }
        for group in groups {
            let segments: Vec<Segment> = manifests[&group].iter().copied().collect();
            assert_eq!(log.read(group, &segments), log.wanted(group), "seed {seed}, {group}");
            assert_eq!(manifests[&group].end(), Some(log.next[&group].1));
            let greatest = segments.iter().map(|segment| segment.max_timestamp_ms).max();
            assert_eq!(greatest, log.batches[&group].last().map(|(_, offset, _)| 1000 + offset.0));
        }
    }
}

#[test]
fn given_a_part_that_goes_on_when_written_then_it_begins_where_the_last_segment_ends() {
    let mut log = Log::new();
    log.fill(&mut StdRng::seed_from_u64(1), 30);
    let group = GroupId(2);
    let (_, middle, _) = log.batches[&group][20];
    let (written, result) = log.write(vec![log.part(group, middle, true)]);
    result.unwrap();
    let segments: Vec<Segment> = written.into_iter().map(|(_, segment)| segment).collect();
    assert_eq!(segments[0].base_offset, middle);
    assert_eq!(log.read(group, &segments), log.wanted(group)[20..]);
    // Behind a segment that was lost, it does not stand for what that did.
    let before = Offset(middle.0 - 1);
    let part = WritePart { follows: Some(before), ..log.part(group, middle, true) };
    let (written, result) = log.write(vec![part]);
    result.unwrap();
    assert_eq!(written[0].1.base_offset, middle);
}

#[test]
fn given_a_read_that_fails_when_written_then_its_partition_ends_before_it_and_others_are_whole() {
    let mut log = Log::new();
    log.fill(&mut StdRng::seed_from_u64(2), 60);
    let groups = [1, 2, 3].map(GroupId);
    let (mut opens, mut parts) = (0, 0);
    for reads in 0.. {
        log.disk.fail_after(reads, Fault::ReadError);
        let (written, result) =
            log.write(groups.map(|group| log.part(group, Offset(0), false)).to_vec());
        log.disk.clear_faults();
        let failed = match result {
            Err(WriteError::Open(_)) => {
                assert!(written.is_empty());
                opens += 1;
                continue;
            }
            result => result.unwrap(),
        };
        for group in groups {
            let of_group = written.iter().filter(|(of, _)| *of == group);
            let segments: Vec<Segment> = of_group.map(|(_, segment)| *segment).collect();
            let (stored, wanted) = (log.read(group, &segments), log.wanted(group));
            assert_eq!(stored, wanted[..stored.len()], "{group}");
            let has_failed = failed.iter().any(|part| part.group == group);
            assert_eq!(stored.len() < wanted.len(), has_failed, "{group}: {failed:?}");
        }
        assert!(failed.len() <= 1, "{failed:?}");
        if failed.is_empty() {
            break; // that many reads are enough
        }
        assert!(matches!(failed[0].error, WriteError::Read(_)), "{failed:?}");
        parts += 1;
    }
    assert!(opens > 0 && parts > 1, "{opens} {parts}");
}

#[test]
fn given_a_file_whose_index_is_damaged_when_written_then_that_is_said_of_the_file() {
    let mut log = Log::new();
    log.fill(&mut StdRng::seed_from_u64(2), 30);
    let (_, end) = log.wal.position();
    log.disk.corrupt(&log.path(), 0..end, Corruption::FlipBit(1)).unwrap();
    let (written, result) = log.write(vec![log.part(GroupId(1), Offset(0), false)]);
    assert!(matches!(result, Err(WriteError::Open(_))), "{result:?}");
    assert!(written.is_empty());
}

#[test]
fn given_too_little_room_when_written_then_nothing_is_and_what_was_asked_for_is_enough() {
    for seed in 0..8 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut log = Log::new();
        log.fill(&mut rng, 60);
        let parts = || [1, 2, 3].map(|group| log.part(GroupId(group), Offset(0), false)).to_vec();
        let before = used(&log);
        log.disk.set_capacity(Some(before));
        let (written, result) = log.write(parts());
        let Err(WriteError::NoRoom { needed, available: 0 }) = result else { panic!("{result:?}") };
        assert!(written.is_empty());
        log.disk.set_capacity(Some(before + needed - 1));
        assert!(matches!(log.write(parts()).1, Err(WriteError::NoRoom { .. })));
        assert_eq!(used(&log), before, "seed {seed}: nothing was written");
        log.disk.set_capacity(Some(before + needed));
        log.write(parts()).1.unwrap();
        let taken = used(&log) - before;
        assert!(needed < 2 * taken, "seed {seed}: {needed} bytes asked for, {taken} taken");
    }
}

#[test]
fn given_small_segments_when_merged_then_one_stands_for_all_with_the_same_batches() {
    let mut log = Log::new();
    log.fill(&mut StdRng::seed_from_u64(4), 60);
    let group = GroupId(2);
    let part = WritePart { segment_bytes_max: 1, ..log.part(group, Offset(0), false) };
    let (written, result) = log.write(vec![part]);
    result.unwrap();
    let segments: Vec<Segment> = written.into_iter().map(|(_, segment)| segment).collect();
    assert!(segments.len() >= 8);
    let limits = MergeLimits { bytes_max: 1 << 20, span_ms_max: i64::MAX };
    let some = mergeable(&segments, limits, &BTreeSet::new()).unwrap();
    let dir = Path::new(DIR);
    let files = log.disk.files();
    let damaged = dir.join(some[3].file_name(id(group).topic, 0));
    let whole = log.disk.read_raw(&damaged).unwrap();
    log.disk.corrupt(&damaged, 4096..4200, Corruption::FlipBit(1)).unwrap();
    let failed = block_on(merge(&log.disk, dir, id(group), some, &mut Unpaced));
    assert_eq!(failed.unwrap_err().path(), damaged);
    assert_eq!(log.disk.files(), files, "nothing is left of it");
    log.disk.write_raw(&damaged, 0, &whole).unwrap();
    let free = some.iter().map(|segment| segment.file_bytes).sum();
    log.disk.set_capacity(Some(used(&log) + free));
    let kept = RoomKept::new(&log.disk, free);
    let refused = block_on(merge(&kept, dir, id(group), some, &mut Unpaced)).unwrap_err();
    let SegmentError::Io { source, .. } = &refused else { panic!("{refused}") };
    assert!(is_full(source), "what is kept free is not taken: {source}");
    assert_eq!(log.disk.files(), files, "nothing is left of it");
    let merged = block_on(merge(&log.disk, dir, id(group), some, &mut Unpaced)).unwrap();
    assert_eq!(log.read(group, &[merged]), log.read(group, some));
    assert_eq!(merged.generation, 1);
    let mut manifest = Manifest::load(segments.clone(), Offset(0)).manifest;
    assert_eq!(manifest.len(), segments.len());
    assert_eq!(manifest.replace(merged), some);
    assert_eq!(manifest.covered_to(Offset(0)), log.next[&group].1);
}
