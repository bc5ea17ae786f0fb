//! Compaction that is cut at every boundary of a changing disk operation, with endings of every kind: whatever the
//! directory holds then, all offsets are stood for, the newest record of each key is there, nothing that was deleted
//! comes back, and compaction goes on from there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod compact_support;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{CrashEnding, CrashMode, NameEnding, SimDisk, block_on};
use chronik_engine::ids::Offset;
use chronik_engine::segment::sweep;
use chronik_tiering::compact::CompactionSettings;
use compact_support::{
    DAY_MS, DIR, Input, Output, Partition, SETTINGS, batches, load, outputs, path_of, put,
    tombstone,
};

/// The last record of each key, in a list that is in order.
fn newest(outputs: &[Output]) -> HashMap<&[u8], &Output> {
    outputs.iter().filter_map(|output| Some((output.1.key.as_deref()?, output))).collect()
}

struct Truth {
    all: Vec<Output>,
    end: Offset,
    /// Keys whose tombstone may be gone.
    past: HashSet<Vec<u8>>,
}

/// Opens the directory as after a restart, and compares.
fn reopen(disk: &SimDisk, truth: &Truth, why: &str) -> chronik_engine::segment::Manifest {
    block_on(sweep(disk, Path::new(DIR))).unwrap();
    let (manifest, left_over) = load(disk);
    for segment in left_over {
        block_on(disk.remove(&path_of(&segment))).unwrap();
    }
    assert_eq!(manifest.covered_to(Offset(0)), truth.end, "{why}: {manifest:?}");
    let found = outputs(&batches(disk, &manifest));
    let found = newest(&found);
    for (key, wanted) in newest(&truth.all) {
        match found.get(key) {
            Some(found) => assert_eq!(*found, wanted, "{why}"),
            None => assert!(truth.past.contains(key), "{why}: {wanted:?} is gone"),
        }
    }
    manifest
}

fn endings() -> Vec<CrashMode> {
    let names = [
        NameEnding::KeepAll,
        NameEnding::LoseAll,
        NameEnding::Prefix { changes: 1 },
        NameEnding::Prefix { changes: 2 },
        NameEnding::Random,
    ];
    let writes = [
        CrashEnding::KeepAll,
        CrashEnding::LoseAll,
        CrashEnding::Zeroed,
        CrashEnding::Prefix { sectors: 3 },
        CrashEnding::Random,
    ];
    let modes =
        names.into_iter().flat_map(|names| writes.map(|writes| CrashMode { writes, names }));
    modes.collect()
}

/// Runs a round, cuts it everywhere, and goes on after each cut; returns how many cuts there were.
fn matrix(partition: &mut Partition, truth: &Truth) -> usize {
    partition.disk.record_boundaries();
    // Those of what was written since the last round.
    drop(partition.disk.take_boundaries());
    partition.compact();
    let boundaries = partition.disk.take_boundaries();
    for boundary in &boundaries {
        for mode in endings() {
            let why = format!("operation {}, {mode:?}", boundary.op);
            let disk = boundary.disk.clone_state();
            disk.crash(mode);
            let manifest = reopen(&disk, truth, &why);
            // What was found goes through another round.
            let mut again = Partition {
                disk,
                manifest,
                settings: partition.settings,
                now_ms: partition.now_ms,
                end: partition.end,
                horizon_ms: None,
            };
            let round = again.compact();
            assert!(!round.is_partial, "{why}");
            reopen(&again.disk, truth, &why);
            assert_eq!(again.outputs(), partition.outputs(), "{why}: it ends as if never cut");
        }
    }
    reopen(&partition.disk, truth, "at the end");
    boundaries.len()
}

fn append(partition: &mut Partition, truth: &mut Truth, inputs: &[Input]) {
    truth.all.extend((partition.end..).zip(inputs.iter().cloned()));
    partition.append_inputs(inputs);
    truth.end = Offset(partition.end);
}

fn rounds(settings: CompactionSettings) -> usize {
    let mut partition = Partition::new(settings);
    let mut truth = Truth { all: Vec::new(), end: Offset(0), past: HashSet::new() };
    let keys = |from: u32, to: u32, value: &str| -> Vec<Input> {
        (from..to).map(|key| put(&key.to_string(), value)).collect()
    };
    append(&mut partition, &mut truth, &keys(0, 60, "1"));
    append(&mut partition, &mut truth, &keys(30, 90, "2"));
    let mut cuts = matrix(&mut partition, &truth);
    let gone: Vec<Input> = (20..70).map(|key| tombstone(&key.to_string())).collect();
    append(&mut partition, &mut truth, &gone);
    append(&mut partition, &mut truth, &keys(65, 75, "3"));
    cuts += matrix(&mut partition, &truth);
    // The tombstones go in a round of their own, and with new records.
    partition.now_ms += DAY_MS;
    truth.past = (20..65).map(|key| key.to_string().into_bytes()).collect();
    let mut alone = Partition {
        disk: partition.disk.clone_state(),
        manifest: partition.manifest.clone(),
        ..Partition::new(partition.settings)
    };
    (alone.now_ms, alone.end) = (partition.now_ms, partition.end);
    cuts += matrix(&mut alone, &truth);
    append(&mut partition, &mut truth, &keys(0, 60, "4"));
    cuts + matrix(&mut partition, &truth)
}

#[test]
fn given_a_crash_anywhere_when_reopened_then_no_newest_record_is_missing_and_none_comes_back() {
    let cuts = rounds(SETTINGS);
    assert!(cuts > 25, "{cuts}");
}

#[test]
fn given_a_crash_anywhere_among_single_segments_when_reopened_then_the_same() {
    let cuts = rounds(CompactionSettings { segment_bytes_max: 0, ..SETTINGS });
    assert!(cuts > 50, "{cuts}");
}

#[test]
fn given_a_crash_between_parts_of_the_keys_when_reopened_then_the_same() {
    // Room for 48 keys, and each segment has more.
    let settings = CompactionSettings { segment_bytes_max: 0, map_bytes_max: 0, ..SETTINGS };
    let mut partition = Partition::new(settings);
    let mut truth = Truth { all: Vec::new(), end: Offset(0), past: HashSet::new() };
    let keys: Vec<Input> = (0..120).map(|key| put(&key.to_string(), "1")).collect();
    append(&mut partition, &mut truth, &keys);
    let cuts = matrix(&mut partition, &truth);
    assert!(cuts > 8, "{cuts}");
    let mut gone: Vec<Input> = (0..60).map(|key| tombstone(&key.to_string())).collect();
    gone.extend((100..120).map(|key| put(&key.to_string(), "2")));
    append(&mut partition, &mut truth, &gone);
    let cuts = matrix(&mut partition, &truth);
    assert!(cuts > 8, "{cuts}");
    // Tombstones that may go, while old records of other keys go part by part.
    partition.now_ms += DAY_MS;
    truth.past = (0..60).map(|key| key.to_string().into_bytes()).collect();
    let fresh: Vec<Input> = (40..120).map(|key| put(&key.to_string(), "3")).collect();
    append(&mut partition, &mut truth, &fresh);
    let cuts = matrix(&mut partition, &truth);
    assert!(cuts > 8, "{cuts}");
}
