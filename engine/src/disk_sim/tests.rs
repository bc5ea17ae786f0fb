//! Tests of the simulated disk: a simulator that is too kind hides the bugs it is for.

use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Waker};

use proptest::prelude::*;

use super::*;

const BLOCK: usize = DISK_ALIGN;

fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    block_on(disk.create_dir_all(Path::new("/d"))).unwrap();
    disk
}

fn durable_file(disk: &SimDisk, blocks: usize) -> SimFile {
    block_on(async {
        let file = disk.create(Path::new("/d/f"), (blocks * BLOCK) as u64).await.unwrap();
        disk.sync_dir(Path::new("/d")).await.unwrap();
        file
    })
}

fn write(file: &SimFile, block: usize, byte: u8) -> io::Result<()> {
    block_on(file.write_at(vec![byte; BLOCK], (block * BLOCK) as u64))
}

fn content(disk: &SimDisk) -> Vec<u8> {
    disk.read_raw(Path::new("/d/f")).unwrap()
}

#[test]
fn given_unsynced_write_when_crash_loses_all_then_old_content_and_old_handle_fails() {
    let disk = disk(1);
    let file = durable_file(&disk, 2);
    write(&file, 0, 7).unwrap();
    block_on(file.sync_data()).unwrap();
    write(&file, 0, 8).unwrap();
    assert_eq!(content(&disk)[0], 8);
    disk.crash(CrashMode::LOSE_ALL);
    assert_eq!(content(&disk)[..BLOCK], [7; BLOCK]);
    assert!(write(&file, 0, 9).is_err());
    assert!(block_on(file.read_at(0, BLOCK)).is_err());
    let file = block_on(disk.open(Path::new("/d/f"))).unwrap();
    assert_eq!(block_on(file.read_at(0, BLOCK)).unwrap()[..], [7; BLOCK]);
}

#[test]
fn given_endings_when_crash_then_sectors_are_as_the_ending_says() {
    let sector = |content: &[u8], at: usize| content[at * SECTOR_BYTES];
    let end = |ending| {
        let disk = disk(1);
        let file = durable_file(&disk, 3);
        write(&file, 0, 1).unwrap();
        block_on(file.sync_data()).unwrap();
        write(&file, 0, 2).unwrap();
        assert_eq!(disk.pending_sectors(Path::new("/d/f")), 8);
        disk.crash(CrashMode::writes(ending));
        content(&disk)
    };
    let torn = end(CrashEnding::Prefix { sectors: 3 });
    assert_eq!((sector(&torn, 2), sector(&torn, 3)), (2, 1));
    let torn = end(CrashEnding::Suffix { sectors: 3 });
    assert_eq!((sector(&torn, 4), sector(&torn, 5)), (1, 2));
    let stale = end(CrashEnding::Stale { sector: 4 });
    assert_eq!((sector(&stale, 3), sector(&stale, 4), sector(&stale, 5)), (2, 1, 2));
    let zeroed = end(CrashEnding::ZeroedSector { sector: 4 });
    assert_eq!((sector(&zeroed, 4), sector(&zeroed, 5)), (0, 2));
    assert_eq!(end(CrashEnding::Zeroed)[..BLOCK], [0; BLOCK]);
    let flipped = end(CrashEnding::BitFlip { bit: 8 * 700 + 2 });
    assert_eq!((flipped[699], flipped[700]), (2, 2 ^ 4));
    let twice = end(CrashEnding::Duplicated { to: BLOCK as u64 });
    assert_eq!(twice[..2 * BLOCK], [2; 2 * BLOCK]);
    let elsewhere = end(CrashEnding::Misdirected { to: BLOCK as u64 });
    assert_eq!((elsewhere[0], elsewhere[BLOCK], elsewhere[2 * BLOCK]), (1, 2, 0));
    let mixed = end(CrashEnding::Subset { seed: 3 });
    let kept = (0..8).filter(|&at| sector(&mixed, at) == 2).count();
    assert!(kept > 0 && kept < 8, "the coin fell {kept} times of 8 on one side");
}

#[test]
fn given_names_not_synced_when_crash_then_they_are_lost_and_synced_ones_stay() {
    let disk = disk(1);
    durable_file(&disk, 1);
    block_on(async {
        disk.create(Path::new("/d/new"), 0).await.unwrap();
        disk.rename(Path::new("/d/f"), Path::new("/d/g")).await.unwrap();
    });
    let lost = disk.clone_state();
    lost.crash(CrashMode::LOSE_ALL);
    assert_eq!(lost.files(), [Path::new("/d/f")]);
    let half = disk.clone_state();
    let names = NameEnding::Prefix { changes: 1 };
    half.crash(CrashMode { writes: CrashEnding::LoseAll, names });
    assert_eq!(half.files(), [Path::new("/d/f"), Path::new("/d/new")]);
    block_on(disk.sync_dir(Path::new("/d"))).unwrap();
    disk.crash(CrashMode::LOSE_ALL);
    assert_eq!(disk.files(), [Path::new("/d/g"), Path::new("/d/new")]);
}

#[test]
fn given_crash_at_each_op_when_run_then_it_stops_there_and_may_keep_what_was_submitted() {
    let run = |disk: &SimDisk| -> io::Result<()> {
        block_on(async {
            let file = disk.create(Path::new("/d/f"), BLOCK as u64).await?;
            disk.sync_dir(Path::new("/d")).await?;
            file.write_at(vec![1; BLOCK], 0).await?;
            file.sync_data().await
        })
    };
    for op in 1..=4 {
        let disk = disk(1);
        disk.crash_at_op(op);
        assert!(run(&disk).is_err());
        assert_eq!(disk.counts().changes(), op);
        assert!(block_on(disk.list(Path::new("/d"))).is_err(), "off until the crash");
        disk.crash(CrashMode::KEEP_ALL);
        assert_eq!(disk.files().len(), 1);
        assert_eq!(content(&disk)[0], u8::from(op >= 3), "op {op}");
    }
    let disk = disk(1);
    disk.crash_at_op(5);
    run(&disk).unwrap();
}

#[test]
fn given_recorded_boundaries_when_each_is_crashed_then_it_is_what_a_planned_crash_gives() {
    let disk = disk(1);
    disk.record_boundaries();
    let file = durable_file(&disk, 1);
    write(&file, 0, 1).unwrap();
    block_on(file.sync_data()).unwrap();
    let boundaries = disk.take_boundaries();
    assert_eq!(boundaries.iter().map(|at| at.op).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let before_sync = &boundaries[3].disk;
    before_sync.crash(CrashMode::writes(CrashEnding::LoseAll));
    assert_eq!(content(before_sync)[0], 0);
    disk.crash(CrashMode::LOSE_ALL);
    assert_eq!(content(&disk)[0], 1, "the recorded disk is not the running one");
}

#[test]
fn given_planned_faults_when_their_turn_comes_then_they_strike_once() {
    let disk = disk(1);
    let file = durable_file(&disk, 1);
    disk.fail_after(1, Fault::WriteError);
    write(&file, 0, 1).unwrap();
    assert!(write(&file, 0, 2).is_err());
    write(&file, 0, 3).unwrap();
    disk.fail_after(0, Fault::ReadError);
    assert!(block_on(file.read_at(0, BLOCK)).is_err());
    assert_eq!(block_on(file.read_at(0, BLOCK)).unwrap()[0], 3);
    disk.fail_after(0, Fault::WriteShort);
    assert_eq!(write(&file, 0, 4).unwrap_err().kind(), ErrorKind::WriteZero);
    disk.fail_after(0, Fault::WriteNoSpace);
    assert_eq!(write(&file, 0, 5).unwrap_err().kind(), ErrorKind::StorageFull);
    disk.fail_after(0, Fault::NameError);
    assert!(block_on(disk.remove(Path::new("/d/f"))).is_err());
    assert_eq!(disk.files().len(), 1);
}

#[test]
fn given_failed_sync_when_read_then_each_sector_is_old_or_new_and_both_occur() {
    let disk = disk(5);
    let file = durable_file(&disk, 4);
    for block in 0..4 {
        write(&file, block, 9).unwrap();
    }
    disk.fail_after(0, Fault::SyncError);
    assert!(block_on(file.sync_data()).is_err());
    block_on(file.sync_data()).unwrap(); // the lie that real file systems tell
    let live = content(&disk);
    disk.crash(CrashMode::LOSE_ALL);
    assert_eq!(live, content(&disk));
    assert!(live.contains(&0) && live.contains(&9));
    assert!(live.chunks(SECTOR_BYTES).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
}

#[test]
fn given_capacity_when_create_goes_beyond_then_storage_full_until_removed() {
    let disk = disk(1);
    disk.set_capacity(Some(2 * BLOCK as u64));
    durable_file(&disk, 1);
    let more = |len: usize| block_on(disk.create(Path::new("/d/g"), len as u64)).map(|_| ());
    assert_eq!(more(2 * BLOCK).unwrap_err().kind(), ErrorKind::StorageFull);
    block_on(disk.remove(Path::new("/d/f"))).unwrap();
    more(2 * BLOCK).unwrap();
    assert_eq!(more(0).unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn given_corruptions_when_read_then_damage_is_there() {
    let disk = disk(1);
    let path = Path::new("/d/f");
    let file = durable_file(&disk, 2);
    write(&file, 0, 1).unwrap();
    block_on(file.sync_data()).unwrap();
    disk.corrupt(path, 10..11, Corruption::FlipBit(3)).unwrap();
    assert_eq!(content(&disk)[10], 1 ^ 8);
    disk.corrupt(path, 20..30, Corruption::Zero).unwrap();
    assert_eq!(content(&disk)[19..31], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let copy = Corruption::CopyFrom { path: path.to_path_buf(), position: 512 };
    disk.corrupt(path, 4096..4100, copy).unwrap();
    assert_eq!(content(&disk)[4096..4101], [1, 1, 1, 1, 0]);
    disk.corrupt(path, 4096..4097, Corruption::Unreadable).unwrap();
    assert!(block_on(file.read_at(4096, BLOCK)).is_err());
    block_on(file.read_at(0, BLOCK)).unwrap();
    write(&file, 1, 2).unwrap(); // a rewritten sector is remapped by the device
    block_on(file.read_at(4096, BLOCK)).unwrap();
    let outside = disk.corrupt(path, 8192..8193, Corruption::Zero);
    assert_eq!(outside.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn given_slow_disk_when_sync_starts_before_write_completes_then_it_does_not_cover_it() {
    let disk = disk(1);
    let file = durable_file(&disk, 1);
    disk.set_pending_polls_max(20);
    let mut context = Context::from_waker(Waker::noop());
    let mut slow = pin!(file.write_at(vec![1; BLOCK], 0));
    while slow.as_mut().poll(&mut context).is_ready() {
        slow.set(file.write_at(vec![1; BLOCK], 0)); // drawn without a pause: try again
    }
    block_on(file.sync_data()).unwrap();
    let crashed = disk.clone_state();
    crashed.crash(CrashMode::LOSE_ALL);
    assert_ne!(content(&crashed), vec![1; BLOCK]);
    while slow.as_mut().poll(&mut context).is_pending() {}
    block_on(file.sync_data()).unwrap();
    disk.crash(CrashMode::LOSE_ALL);
    assert_eq!(content(&disk), vec![1; BLOCK]);
}

#[test]
#[should_panic(expected = "not aligned")]
fn given_unaligned_write_when_submitted_then_panics() {
    let disk = disk(1);
    let file = durable_file(&disk, 1);
    block_on(file.write_at(vec![0; 512], 0)).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Write { block: usize, blocks: usize },
    Sync,
    SyncFails,
    WriteFails { block: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..6usize, 1..3usize).prop_map(|(block, blocks)| Step::Write { block, blocks }),
        3 => Just(Step::Sync),
        1 => Just(Step::SyncFails),
        1 => (0..6usize).prop_map(|block| Step::WriteFails { block }),
    ];
    proptest::collection::vec(step, 1..20)
}

/// Runs the steps; returns what a completed sync covered and nothing touched since, by block.
fn run_steps(disk: &SimDisk, file: &SimFile, steps: &[Step]) -> [Option<u8>; 8] {
    let mut synced = [Some(0); 8];
    let mut written = [None; 8];
    for (at, step) in steps.iter().enumerate() {
        let byte = u8::try_from(at + 1).unwrap();
        match step {
            Step::Write { block, blocks } => {
                let buf = vec![byte; blocks * BLOCK];
                block_on(file.write_at(buf, (block * BLOCK) as u64)).unwrap();
                written[*block..block + blocks].fill(Some(byte));
                synced[*block..block + blocks].fill(None);
            }
            Step::WriteFails { block } => {
                disk.fail_after(0, Fault::WriteError);
                write(file, *block, byte).unwrap_err();
                written[*block] = None;
                synced[*block] = None;
            }
            Step::Sync => {
                block_on(file.sync_data()).unwrap();
                for (synced, written) in synced.iter_mut().zip(&mut written) {
                    *synced = written.take().or(*synced);
                }
            }
            Step::SyncFails => {
                disk.fail_after(0, Fault::SyncError);
                block_on(file.sync_data()).unwrap_err();
                written = [None; 8];
            }
        }
    }
    synced
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn given_any_workload_when_crashed_in_any_way_then_synced_content_survives(
        seed: u64, steps in steps(),
    ) {
        let disk = disk(seed);
        let file = durable_file(&disk, 8);
        let synced = run_steps(&disk, &file, &steps);
        let sectors = disk.pending_sectors(Path::new("/d/f"));
        let mut endings = CrashEnding::matrix(sectors);
        endings.extend([CrashEnding::Random; 4]);
        for ending in endings {
            let crashed = disk.clone_state();
            crashed.crash(CrashMode { writes: ending, names: NameEnding::Random });
            let content = content(&crashed);
            for (block, expected) in synced.iter().enumerate() {
                if let Some(byte) = expected {
                    let found = &content[block * BLOCK..(block + 1) * BLOCK];
                    prop_assert!(found.iter().all(|b| b == byte), "{ending:?} block {block}");
                }
            }
        }
    }

    #[test]
    fn given_same_seed_when_run_twice_then_same_bytes(seed: u64, steps in steps()) {
        let run = || {
            let disk = disk(seed);
            disk.set_pending_polls_max(3);
            let file = durable_file(&disk, 8);
            run_steps(&disk, &file, &steps);
            disk.crash(CrashMode::RANDOM);
            content(&disk)
        };
        prop_assert_eq!(run(), run());
    }
}
