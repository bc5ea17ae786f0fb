//! Damage to what was durable: it is named with file and position, never skipped, and given up only on request.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{Corruption, CrashMode, Fault, SimDisk, block_on};
use chronik_engine::ids::{FileSeq, GroupId, Offset, RaftIndex};
use chronik_engine::wal::block::BlockKind;
use chronik_engine::wal::inspect::{inspect, verify};
use chronik_engine::wal::record::EntryKind;
use chronik_engine::wal::repair::repair;
use chronik_engine::wal::{ReadError, SpareProgress, Wal, WalError, WalOptions};
use common::{Proposer, append, check_readable, check_recovered, options};
use uuid::Uuid;

const DIR: &str = "/wal";
const FIRST: &str = "/wal/00000000000000000001.wal";

/// One group, ten blocks of one batch each. Gives back where each block begins.
fn ten_blocks(disk: &SimDisk) -> (Proposer, Vec<u64>) {
    let mut p = Proposer::default();
    let positions = block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.create(1), p.vote(1, 2, 101), p.noop(1, 2)]).await.unwrap();
        let mut positions = Vec::new();
        for _ in 0..10 {
            positions.push(wal.position().1);
            wal.append(&[p.batch(1, 2, 3, 500)]).await.unwrap();
        }
        positions
    });
    (p, positions)
}

fn open(disk: &SimDisk) -> Result<(), WalError> {
    block_on(Wal::open(disk.clone(), options())).map(|_| ())
}

#[test]
fn given_a_bit_flip_in_the_middle_when_opened_then_it_is_damage_at_that_place() {
    for at in [10, 57, 70, 100, 140, 300] {
        let disk = SimDisk::new(1);
        let (_, positions) = ten_blocks(&disk);
        let flipped = positions[4] + at..positions[4] + at + 1;
        disk.corrupt(Path::new(FIRST), flipped, Corruption::FlipBit(3)).unwrap();
        let before = disk.read_raw(Path::new(FIRST)).unwrap();
        match open(&disk) {
            Err(WalError::Damaged { file, position, .. }) => {
                assert_eq!((file, position), (FileSeq(1), positions[4]));
            }
            other => panic!("byte {at}: {other:?}"),
        }
        assert_eq!(disk.read_raw(Path::new(FIRST)).unwrap(), before, "nothing is changed");
    }
}

#[test]
fn given_a_bit_flip_in_the_last_block_under_a_mark_when_opened_then_it_is_damage() {
    let disk = SimDisk::new(1);
    let (_, positions) = ten_blocks(&disk);
    open(&disk).unwrap();
    let last = positions[9];
    disk.corrupt(Path::new(FIRST), last + 200..last + 201, Corruption::FlipBit(0)).unwrap();
    assert!(matches!(open(&disk), Err(WalError::Damaged { position, .. }) if position == last));
}

#[test]
fn given_damage_to_the_checkpoint_when_opened_then_it_is_damage_at_the_start() {
    let disk = SimDisk::new(1);
    ten_blocks(&disk);
    disk.corrupt(Path::new(FIRST), 0..4096, Corruption::Zero).unwrap();
    assert!(matches!(open(&disk), Err(WalError::Damaged { position: 0, .. })));
}

#[test]
fn given_damage_when_repaired_then_the_log_is_contiguous_and_offsets_stay() {
    let disk = SimDisk::new(1);
    let (mut p, positions) = ten_blocks(&disk);
    let region = positions[3]..positions[5];
    disk.corrupt(Path::new(FIRST), region.clone(), Corruption::Garbage).unwrap();
    let damaged = disk.read_raw(Path::new(FIRST)).unwrap();

    let report = block_on(repair(&disk, Path::new(DIR), false, |_| ())).unwrap();
    assert!(!report.repaired);
    assert_eq!(disk.read_raw(Path::new(FIRST)).unwrap(), damaged, "only asked, nothing done");
    let lost = &report.regions[0].lost[0];
    assert_eq!((lost.first, lost.count), (RaftIndex(5), 2));
    assert_eq!(lost.offsets, Offset(9)..Offset(15));

    let report = block_on(repair(&disk, Path::new(DIR), true, |_| ())).unwrap();
    assert!(report.repaired, "{report:?}");
    let copy = format!("{FIRST}.damaged-{}", region.start);
    let aside = disk.read_raw(Path::new(&copy)).unwrap();
    let at = |position: u64| usize::try_from(position).unwrap();
    assert_eq!(aside, damaged[at(region.start)..at(region.end)], "the bytes are kept");

    block_on(async {
        let (wal, groups, _) = Wal::open(disk.clone(), options()).await.unwrap();
        let entries = &groups[0].entries;
        let lost = [EntryKind::Noop, EntryKind::Noop];
        assert_eq!(entries[4..6].iter().map(|e| e.kind).collect::<Vec<_>>(), lost);
        let group = GroupId(1);
        let read = wal.read_batches(group, Offset(0), Offset(1000), usize::MAX).await.unwrap();
        let offsets: Vec<i64> = read.iter().map(|batch| batch.base_offset.0).collect();
        assert_eq!(offsets, [0, 3, 6, 15, 18, 21, 24, 27]);
        let inside = wal.read_batches(group, Offset(10), Offset(1000), 1).await.unwrap();
        assert_eq!(inside[0].base_offset, Offset(15), "a reader in the hole goes on behind it");
        let entries = wal.read_entries(group, RaftIndex(1), RaftIndex(12), 1 << 20).await.unwrap();
        assert_eq!(entries.len(), 11, "the log is contiguous");
        wal.append(&[p.batch(1, 2, 3, 500)]).await.unwrap();
    });
    let (_, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
    assert_eq!(groups[0].last.index, RaftIndex(12));
    let verified = block_on(verify(&disk, Path::new(DIR))).unwrap();
    assert_eq!(verified.damage, []);
}

#[test]
fn given_damage_before_a_snapshot_when_repaired_then_nothing_that_it_replaced_is_missed() {
    let disk = SimDisk::new(1);
    let (mut p, positions) = ten_blocks(&disk);
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.install(1, 5, 30, 900), p.batch(1, 5, 2, 300)]).await.unwrap();
        wal.append(&[p.batch(1, 5, 2, 300), p.vote(1, 5, 0)]).await.unwrap();
    });
    let damaged = positions[9]..positions[9] + 4096;
    disk.corrupt(Path::new(FIRST), damaged, Corruption::Garbage).unwrap();
    assert!(matches!(open(&disk), Err(WalError::Damaged { .. })));
    let report = block_on(repair(&disk, Path::new(DIR), true, |_| ())).unwrap();
    assert!(report.repaired);
    assert_eq!(report.regions[0].lost, [], "the snapshot took the place of all of it");
    block_on(async {
        let (wal, groups, _) = Wal::open(disk.clone(), options()).await.unwrap();
        check_recovered(&p.model, &groups).unwrap();
        check_readable(&wal, &p.model).await;
    });
    let inspection = block_on(inspect(&disk, Path::new(DIR), |_| ())).unwrap();
    assert_eq!(inspection.blocks().map(|block| block.snapshots).sum::<u32>(), 1);
    assert!(inspection.files[0].to_string().contains(", 1 snapshots"));
}

/// Several sealed files and an active one.
fn several_files(disk: &SimDisk) -> Proposer {
    let mut p = Proposer::default();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        let records = [p.create(1), p.create(2), p.vote(1, 1, 101), p.noop(1, 1), p.noop(2, 1)];
        wal.append(&records).await.unwrap();
        for _ in 0..20 {
            let before = p.model.clone();
            let records = [p.batch(1, 1, 2, 9_000), p.batch(2, 1, 1, 9_000)];
            append(&wal, &before, &records).await.unwrap();
            wal.finish_sealed().await.unwrap();
        }
        assert!(wal.file_count() > 3, "there are sealed files");
    });
    p
}

#[test]
fn given_a_damaged_checkpoint_in_the_newest_file_when_repaired_then_it_is_rebuilt() {
    let disk = SimDisk::new(1);
    let p = several_files(&disk);
    let newest = inspect_newest(&disk);
    disk.corrupt(&newest, 100..120, Corruption::FlipBit(1)).unwrap();
    assert!(matches!(open(&disk), Err(WalError::Damaged { position: 0, .. })));
    let report = block_on(repair(&disk, Path::new(DIR), true, |_| ())).unwrap();
    assert!(report.repaired, "{report:?}");
    block_on(async {
        let (wal, groups, _) = Wal::open(disk.clone(), options()).await.unwrap();
        check_recovered(&p.model, &groups).unwrap();
        check_readable(&wal, &p.model).await;
    });
}

fn inspect_newest(disk: &SimDisk) -> std::path::PathBuf {
    let inspection = block_on(inspect(disk, Path::new(DIR), |_| ())).unwrap();
    inspection.files.last().unwrap().path.clone()
}

#[test]
fn given_a_footer_that_is_gone_when_opened_then_the_file_is_scanned_and_gets_one_again() {
    let disk = SimDisk::new(1);
    let p = several_files(&disk);
    let len = disk.read_raw(Path::new(FIRST)).unwrap().len() as u64;
    disk.corrupt(Path::new(FIRST), len - 4096..len, Corruption::Garbage).unwrap();
    for scanned in [1, 0] {
        let (wal, groups, report) = block_on(Wal::open(disk.clone(), options())).unwrap();
        assert_eq!(report.files_without_footer.len(), scanned);
        assert_eq!(report.footers_rebuilt, scanned);
        check_recovered(&p.model, &groups).unwrap();
        block_on(check_readable(&wal, &p.model));
    }
}

#[test]
fn given_blocks_that_fill_a_file_when_sealed_then_every_file_has_a_footer_and_room_for_a_mark() {
    // From well below a file's size to well above it, in steps of a sector: each way a block can fill a file.
    for sectors in 20..36 {
        let disk = SimDisk::new(1);
        let mut p = Proposer::default();
        block_on(async {
            let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
            wal.append(&[p.create(1), p.noop(1, 1)]).await.unwrap();
            for _ in 0..3 {
                let before = p.model.clone();
                append(&wal, &before, &[p.batch(1, 1, 1, sectors * 4096 - 500)]).await.unwrap();
                assert!(wal.write_mark().await.unwrap(), "{sectors} sectors leave no room");
                wal.finish_sealed().await.unwrap();
            }
            wal.close_clean().await.unwrap();
        });
        let (wal, groups, report) = block_on(Wal::open(disk.clone(), options())).unwrap();
        assert_eq!(report.files_without_footer, [], "{sectors} sectors");
        assert!(report.files > 1, "{sectors} sectors");
        check_recovered(&p.model, &groups).unwrap();
        block_on(check_readable(&wal, &p.model));
        // However often it is opened and closed with nothing to write, the footer's place stays free.
        for _ in 0..20 {
            let (wal, _, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
            block_on(wal.close_clean()).unwrap();
        }
        let (wal, _, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
        block_on(wal.roll(p.model.checkpoints(), &[])).unwrap();
        block_on(wal.finish_sealed()).unwrap();
        let (_, _, report) = block_on(Wal::open(disk.clone(), options())).unwrap();
        assert_eq!(report.files_without_footer, [], "{sectors} sectors, opened often");
    }
}

#[test]
fn given_checkpoints_of_several_blocks_when_rolled_then_all_of_them_are_recovered() {
    let disk = SimDisk::new(1);
    let mut p = Proposer::default();
    let mut checkpoints = Vec::new();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.create(1), p.create(2), p.create(3)]).await.unwrap();
        checkpoints = p.model.checkpoints();
        checkpoints.iter_mut().for_each(|checkpoint| checkpoint.state = vec![5; 5 << 20]);
        let next = [p.noop(2, 1)];
        wal.roll(checkpoints.clone(), &next).await.unwrap();
        assert!(!wal.needs_roll(&next), "the file was made for it");
        wal.append(&next).await.unwrap();
    });
    let (_, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
    let found: Vec<_> = groups.into_iter().map(|group| group.checkpoint.state).collect();
    assert!(found == checkpoints.into_iter().map(|c| c.state).collect::<Vec<_>>());
    let inspection = block_on(inspect(&disk, Path::new(DIR), |_| ())).unwrap();
    let kinds: Vec<_> = inspection.files[1].blocks.iter().map(|block| block.kind).collect();
    assert_eq!(kinds[..3], [BlockKind::Checkpoint; 3], "two of them do not fit one block");
    assert_eq!(kinds[3], BlockKind::Data);
}

#[test]
fn given_checkpoints_longer_than_a_file_when_more_is_written_then_files_hold_as_much_beside_them() {
    let disk = SimDisk::new(1);
    let mut p = Proposer::default();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.create(1)]).await.unwrap();
        let state = vec![5; 1 << 20];
        let (mut rolls, mut blocks) = (0, 0);
        while rolls < 4 {
            let mut checkpoints = p.model.checkpoints();
            let next = [p.batch(1, 1, 1, 3_000)];
            if wal.needs_roll(&next) {
                checkpoints.iter_mut().for_each(|checkpoint| checkpoint.state = state.clone());
                wal.roll(checkpoints, &next).await.unwrap();
                rolls += 1;
                while wal.prepare_spare_step(64 << 10).await.unwrap() == SpareProgress::Working {}
            }
            wal.append(&next).await.unwrap();
            blocks += 1;
        }
        assert!(
            blocks > 3 * 200,
            "{blocks} blocks in four files of more than 1 MiB beside checkpoints"
        );
        let files = disk.list(Path::new(DIR)).await.unwrap();
        assert!(files.iter().all(|file| file.len < 3 << 20), "{files:?}");
    });
}

#[test]
fn given_damage_in_a_sealed_file_when_read_then_the_reader_names_it_and_verify_finds_it() {
    let disk = SimDisk::new(1);
    several_files(&disk);
    let inspection = block_on(inspect(&disk, Path::new(DIR), |_| ())).unwrap();
    let block = inspection.blocks().find(|block| block.batches > 0);
    let position = block.unwrap().position;
    let flipped = position + 5_000..position + 5_001;
    disk.corrupt(Path::new(FIRST), flipped, Corruption::FlipBit(7)).unwrap();
    let verified = block_on(verify(&disk, Path::new(DIR))).unwrap();
    assert_eq!(verified.damage.len(), 1);
    assert_eq!(verified.damage[0].position, position);
    let (wal, _, _) = block_on(Wal::open(disk.clone(), options())).unwrap_or_else(|error| {
        // The model applies nothing, so the entries are needed at the start, and their damage stops it.
        assert!(matches!(error, WalError::Entries { .. }), "{error}");
        block_on(repair(&disk, Path::new(DIR), true, |_| ())).unwrap();
        block_on(Wal::open(disk.clone(), options())).unwrap()
    });
    let read = block_on(wal.read_batches(GroupId(1), Offset(0), Offset(100), usize::MAX)).unwrap();
    assert!(read.iter().all(|batch| batch.bytes.len() == 9_000));
}

#[test]
fn given_a_file_that_changes_under_an_open_log_when_read_then_no_wrong_byte_is_served() {
    let disk = SimDisk::new(1);
    let mut p = Proposer::default();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        let records = [p.create(1), p.batch(1, 1, 2, 600), p.batch(1, 1, 2, 600)];
        let position = wal.append(&records).await.unwrap().position;
        let path = Path::new(FIRST);
        // The second block's bytes in the first one's place: right checksums, wrong place.
        let other = wal.append(&[p.batch(1, 1, 2, 600), p.batch(1, 1, 2, 600)]).await.unwrap();
        let copy = Corruption::CopyFrom { path: path.into(), position: other.position };
        disk.corrupt(path, position..position + 4096, copy).unwrap();
        let read = wal.read_batches(GroupId(1), Offset(0), Offset(8), 10_000).await;
        assert!(matches!(read, Err(ReadError::Damaged { position: at, .. }) if at == position));
        let read = wal.read_batches(GroupId(1), Offset(4), Offset(8), 10_000).await.unwrap();
        assert_eq!(read.len(), 2, "what is whole is served");
    });
}

#[test]
fn given_damage_behind_what_is_read_when_read_then_what_is_before_it_is_given() {
    let disk = SimDisk::new(1);
    let mut p = Proposer::default();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        let records = [p.create(1), p.batch(1, 1, 2, 600), p.batch(1, 1, 2, 600)];
        wal.append(&records).await.unwrap();
        let other = wal.append(&[p.batch(1, 1, 2, 600)]).await.unwrap().position;
        disk.corrupt(Path::new(FIRST), other..other + 4096, Corruption::FlipBit(1)).unwrap();
        let read = wal.read_batches(GroupId(1), Offset(0), Offset(8), 10_000).await.unwrap();
        assert_eq!(read.len(), 2);
        let read = wal.read_batches(GroupId(1), Offset(4), Offset(8), 10_000).await;
        assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
    });
}

#[test]
fn given_files_of_others_when_opened_then_each_is_refused_and_nothing_is_changed() {
    let disk = SimDisk::new(1);
    ten_blocks(&disk);
    let files = disk.files();
    let foreign = WalOptions { shard_uuid: Uuid::from_u128(9), ..options() };
    let result = block_on(Wal::open(disk.clone(), foreign));
    assert!(matches!(result, Err(WalError::ForeignShard { .. })));

    disk.write_raw(Path::new("/wal/notes.txt"), 0, &[1; 4096]).unwrap();
    assert!(matches!(open(&disk), Err(WalError::ForeignFile { .. })));
    block_on(chronik_engine::disk::Disk::remove(&disk, Path::new("/wal/notes.txt"))).unwrap();

    // Nothing but magic and version is known of a newer format.
    disk.write_raw(Path::new(FIRST), 4, &[9, 0, 1, 2, 3, 4, 5, 6]).unwrap();
    assert!(matches!(open(&disk), Err(WalError::UnsupportedVersion { version: 9, .. })));
    assert_eq!(disk.files(), files);
}

#[test]
fn given_a_missing_file_when_opened_then_it_is_named() {
    let disk = SimDisk::new(1);
    several_files(&disk);
    let second = Path::new("/wal/00000000000000000002.wal");
    block_on(chronik_engine::disk::Disk::remove(&disk, second)).unwrap();
    assert!(matches!(open(&disk), Err(WalError::FileMissing { file: FileSeq(2), .. })));
}

#[test]
fn given_a_failed_write_or_sync_when_appending_again_then_the_log_is_poisoned() {
    for fault in [Fault::WriteError, Fault::WriteShort, Fault::WriteNoSpace, Fault::SyncError] {
        let disk = SimDisk::new(1);
        let mut p = Proposer::default();
        block_on(async {
            let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
            wal.append(&[p.create(1), p.batch(1, 1, 1, 100)]).await.unwrap();
            let acked = p.model.clone();
            disk.fail_after(0, fault);
            assert!(matches!(wal.append(&[p.noop(1, 1)]).await, Err(WalError::Io { .. })));
            assert!(matches!(wal.append(&[p.noop(1, 1)]).await, Err(WalError::Poisoned)));
            assert!(matches!(wal.write_mark().await, Err(WalError::Poisoned)));
            check_readable(&wal, &acked).await;
            disk.crash(CrashMode::LOSE_ALL);
            let (_, groups, _) = Wal::open(disk.clone(), options()).await.unwrap();
            let end = groups[0].last.index;
            assert!(end == RaftIndex(1) || end == RaftIndex(2), "acked, or what was in flight");
        });
    }
}

#[test]
fn given_a_full_disk_when_rolling_then_batches_are_refused_and_votes_are_not() {
    let disk = SimDisk::new(1);
    let mut p = Proposer::default();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.create(1), p.noop(1, 1)]).await.unwrap();
        disk.set_capacity(Some(160 << 10)); // the first file and the ballast
        let full = loop {
            let before = p.clone();
            let batch = [p.batch(1, 1, 1, 9_000)];
            if let Err(error) = append(&wal, &before.model, &batch).await {
                p = before;
                break error;
            }
        };
        assert!(matches!(full, WalError::StorageFull { .. }), "{full}");
        assert!(wal.is_storage_full());
        check_readable(&wal, &p.model).await;
        for _ in 0..8 {
            let before = p.model.clone();
            append(&wal, &before, &[p.vote(1, 2, 102)]).await.expect("the ballast has room");
        }
        assert!(matches!(wal.prepare_spare_step(1 << 20).await, Err(WalError::StorageFull { .. })));

        disk.set_capacity(None);
        while wal.prepare_spare_step(1 << 20).await.unwrap() != SpareProgress::Ready {}
        assert!(!wal.is_storage_full());
        let before = p.model.clone();
        append(&wal, &before, &[p.batch(1, 2, 1, 9_000)]).await.unwrap();
    });
    let (_, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
    check_recovered(&p.model, &groups).unwrap();
}

#[test]
fn given_a_clean_close_when_opened_then_the_report_says_so_and_a_torn_tail_is_reported() {
    let disk = SimDisk::new(1);
    let (mut p, _) = ten_blocks(&disk);
    block_on(async {
        let (wal, _, report) = Wal::open(disk.clone(), options()).await.unwrap();
        assert!(!report.clean_close);
        assert!(wal.close_clean().await.unwrap());
        assert!(matches!(wal.append(&[p.clone().noop(1, 2)]).await, Err(WalError::Closed)));
        let (wal, _, report) = Wal::open(disk.clone(), options()).await.unwrap();
        assert!(report.clean_close);
        assert_eq!(report.torn, None);
        let position = wal.position().1;
        wal.append(&[p.batch(1, 2, 1, 9_000)]).await.unwrap();
        drop(wal);
        disk.corrupt(Path::new(FIRST), position + 5_000..position + 5_001, Corruption::Zero)
            .unwrap();
        let verified = verify(&disk, Path::new(DIR)).await.unwrap();
        assert_eq!(verified.damage, [], "what was in flight is no damage");
        let (path, foretold) = verified.torn.unwrap();
        assert_eq!((path.as_path(), foretold.position), (Path::new(FIRST), position));
        let inspection = inspect(&disk, Path::new(DIR), |_| ()).await.unwrap();
        let text = inspection.files[0].to_string();
        assert!(text.contains("torn tail, 12288 bytes, cut at the next start"), "{text}");
        let (_, _, report) = Wal::open(disk.clone(), options()).await.unwrap();
        assert_eq!(report.torn, Some(foretold));
        assert_eq!((foretold.position, foretold.bytes), (position, 12_288));
        assert_eq!(verify(&disk, Path::new(DIR)).await.unwrap().torn, None, "it was cut");
    });
}

#[test]
fn given_entries_that_nobody_needs_when_reclaimed_then_files_go_oldest_first_and_are_used_again() {
    let disk = SimDisk::new(1);
    let mut p = Proposer::default();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.create(1), p.create(2), p.noop(2, 1)]).await.unwrap();
        for _ in 0..30 {
            let group = p.model.groups.get_mut(&GroupId(1)).unwrap();
            group.applied = group.last().index;
            let before = p.model.clone();
            append(&wal, &before, &[p.batch(1, 1, 1, 15_000)]).await.unwrap();
            wal.finish_sealed().await.unwrap();
        }
        let files = wal.file_count();
        assert_eq!(
            wal.reclaim(|| None, |_| None).await.unwrap(),
            0,
            "group 2 has not applied its first entry"
        );
        let last = p.model.groups[&GroupId(1)].last().index;
        p.model.groups.get_mut(&GroupId(2)).unwrap().applied = RaftIndex(1);
        p.model.groups.get_mut(&GroupId(1)).unwrap().applied = last;
        wal.roll(p.model.checkpoints(), &[]).await.unwrap();
        wal.finish_sealed().await.unwrap();
        let reclaimed = wal.reclaim(|| None, |_| Some(RaftIndex(8))).await.unwrap();
        assert!(reclaimed > 0 && reclaimed < files, "{reclaimed} of {files}");
        assert!(wal.first_index(GroupId(1)).unwrap() <= RaftIndex(8));
        let gone = wal.read_batches(GroupId(1), Offset(0), Offset(100), 1).await;
        assert!(matches!(gone, Err(ReadError::OffsetReclaimed { .. })));
        wal.reclaim(|| None, |_| Some(last.next())).await.unwrap();
        assert_eq!(wal.file_count(), 1);
        assert_eq!(
            wal.prepare_spare_step(1 << 20).await.unwrap(),
            SpareProgress::Ready,
            "used again"
        );
        let before = p.model.clone();
        append(&wal, &before, &[p.batch(1, 1, 1, 15_000)]).await.unwrap();
        check_readable(&wal, &p.model).await;
    });
    let (wal, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
    check_recovered(&p.model, &groups).unwrap();
    block_on(check_readable(&wal, &p.model));
}

#[test]
fn given_a_log_when_inspected_then_every_block_is_listed_in_order() {
    let disk = SimDisk::new(1);
    several_files(&disk);
    let inspection = block_on(inspect(&disk, Path::new(DIR), |_| ())).unwrap();
    let sequences: Vec<u64> = inspection.blocks().map(|block| block.sequence.0).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    assert_eq!(inspection.files[0].blocks[0].kind, BlockKind::Checkpoint);
    assert_eq!(inspection.damage().count(), 0);
    let entries: u32 = inspection.blocks().map(|block| block.entries).sum();
    assert_eq!(entries, 42);
    assert!(inspection.files[0].to_string().contains("sealed, with footer"));
}
