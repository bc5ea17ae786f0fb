//! A disk without room: the log leaves others what they need to make some, keeps what it has put aside, and goes on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::task::Poll;

use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{Fault, SimDisk, block_on};
use chronik_engine::ids::{FileSeq, GroupId};
use chronik_engine::wal::{SpareProgress, Wal, WalError, WalOptions};
use common::{Proposer, append, check_readable, check_recovered, options};
use futures_util::future::{join, select};

const KIB: u64 = 1 << 10;
const STEP: u64 = 1 << 20;
const COPIES: &str = "/segments";

fn options_leaving(left_free_bytes: u64) -> WalOptions {
    WalOptions { left_free_bytes, ..options() }
}

/// Lets others run.
async fn yield_once() {
    let mut yielded = false;
    let pause = poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    });
    pause.await;
}

fn is_full<T>(result: &Result<T, WalError>) -> bool {
    matches!(result, Err(WalError::StorageFull { .. }))
}

async fn prepare_spare(wal: &Wal<SimDisk>) {
    while wal.prepare_spare_step(STEP).await.unwrap() != SpareProgress::Ready {}
}

/// Appends batches until there is no room for another.
async fn fill(wal: &Wal<SimDisk>, p: &mut Proposer) {
    loop {
        let group = p.model.groups.get_mut(&GroupId(1)).unwrap();
        group.applied = group.last().index;
        let before = p.clone();
        match append(wal, &before.model, &[p.batch(1, 1, 1, 9_000)]).await {
            Ok(()) => {}
            Err(WalError::StorageFull { .. }) => {
                *p = before;
                return;
            }
            Err(error) => panic!("{error}"),
        }
        wal.finish_sealed().await.unwrap();
        while let Ok(SpareProgress::Working) = wal.prepare_spare_step(STEP).await {}
    }
}

#[test]
fn given_too_little_to_leave_free_when_a_spare_is_made_then_the_disk_is_full_until_there_is_more() {
    const ENOUGH: u64 = (96 + 64 + 128 + 160) * KIB; // the first file, the ballast, a spare and what is left
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(ENOUGH - 4 * KIB));
    let options = || options_leaving(160 * KIB);
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        assert!(is_full(&wal.prepare_spare_step(STEP).await));
        assert!(wal.is_storage_full());
        disk.set_capacity(Some(ENOUGH));
        prepare_spare(&wal).await;
        assert!(!wal.is_storage_full());
        drop(wal);
        // A start needs no room, whatever has become of it meanwhile.
        disk.set_capacity(Some(0));
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        prepare_spare(&wal).await;
        disk.remove(Path::new("/wal/ballast")).await.unwrap();
        drop(wal);
        disk.set_capacity(Some(ENOUGH - 4 * KIB));
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        assert!(wal.is_storage_full(), "there is no ballast");
        assert!(is_full(&wal.prepare_spare_step(STEP).await));
        disk.set_capacity(Some(ENOUGH));
        prepare_spare(&wal).await;
        assert!(!wal.is_storage_full());
    });
}

#[test]
fn given_two_logs_that_make_files_at_the_same_time_when_both_are_done_then_what_is_left_is_enough()
{
    const LEFT: u64 = 160 * KIB;
    // Two logs with a ballast each, and room for the spare of one.
    const CAPACITY: u64 = 2 * (96 + 64) * KIB + 128 * KIB + LEFT;
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        disk.set_pending_polls_max(3);
        disk.set_capacity(Some(CAPACITY));
        block_on(async {
            let mut wals = Vec::new();
            for dir in ["/a", "/b"] {
                let options = WalOptions { dir: PathBuf::from(dir), ..options_leaving(LEFT) };
                wals.push(Wal::open(disk.clone(), options).await.unwrap().0);
            }
            for _ in 0..4 {
                let steps = (wals[0].prepare_spare_step(STEP), wals[1].prepare_spare_step(STEP));
                let (one, other) = join(steps.0, steps.1).await;
                assert!(is_full(&one) || is_full(&other), "seed {seed}: {one:?} {other:?}");
                let available = disk.available(Path::new("/a")).await.unwrap();
                assert!(available >= LEFT, "seed {seed}: {available} bytes are left");
            }
        });
    }
}

#[test]
fn given_a_log_that_has_filled_the_disk_when_its_files_are_copied_then_each_copy_has_room_and_the_log_goes_on()
 {
    const LEFT: u64 = 160 * KIB;
    let disk = SimDisk::new(1);
    // The first file, the ballast, six files more, and hardly more than what is to be left.
    disk.set_capacity(Some((96 + 64 + 6 * 128 + 4) * KIB + LEFT));
    let options = || options_leaving(LEFT);
    let mut p = Proposer::default();
    block_on(async {
        disk.create_dir_all(Path::new(COPIES)).await.unwrap();
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.create(1), p.noop(1, 1)]).await.unwrap();
        fill(&wal, &mut p).await;
        assert!(wal.file_count() >= 5, "{} files", wal.file_count());
        while let Some(oldest) = wal.sealed_files(FileSeq(0)).first() {
            let copy = Path::new(COPIES).join(oldest.seq.to_string());
            disk.create(&copy, 100 * KIB).await.expect("a copy takes less than a file of the log");
            let next = Some(FileSeq(oldest.seq.0 + 1));
            assert_eq!(wal.reclaim(|| next, |_| None).await.unwrap(), 1);
        }
        prepare_spare(&wal).await;
        assert!(!wal.is_storage_full());
        let before = p.model.clone();
        append(&wal, &before, &[p.batch(1, 1, 1, 9_000)]).await.unwrap();
        check_readable(&wal, &p.model).await;
    });
    let (_, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
    check_recovered(&p.model, &groups).unwrap();
}

#[test]
fn given_somebody_who_takes_all_room_when_the_ballast_is_used_then_its_room_stays_the_logs() {
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let mut p = Proposer::default();
        block_on(async {
            disk.create_dir_all(Path::new(COPIES)).await.unwrap();
            let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
            wal.append(&[p.create(1), p.noop(1, 1)]).await.unwrap();
            disk.set_capacity(Some(160 * KIB)); // the first file and the ballast
            fill(&wal, &mut p).await;
            disk.set_pending_polls_max(3);
            let taker = async {
                while disk.create(&Path::new(COPIES).join("taken"), 64 * KIB).await.is_err() {
                    yield_once().await;
                }
            };
            let essential = async {
                while wal.file_count() == 1 {
                    let before = p.model.clone();
                    append(&wal, &before, &[p.vote(1, 2, 102)])
                        .await
                        .expect("there is the ballast");
                }
            };
            select(Box::pin(essential), Box::pin(taker)).await;
            assert_eq!(wal.file_count(), 2, "seed {seed}: somebody else has the ballast's room");
            check_readable(&wal, &p.model).await;
        });
        let (_, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
        check_recovered(&p.model, &groups).unwrap();
    }
}

#[test]
fn given_a_ballast_larger_than_a_file_when_it_is_used_then_it_is_a_file_of_the_log() {
    let disk = SimDisk::new(1);
    let options = || WalOptions { ballast_bytes: 192 * KIB, ..options() };
    let mut p = Proposer::default();
    block_on(async {
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        wal.append(&[p.create(1), p.noop(1, 1)]).await.unwrap();
        disk.set_capacity(Some((96 + 192) * KIB));
        fill(&wal, &mut p).await;
        while wal.file_count() == 1 {
            let before = p.model.clone();
            append(&wal, &before, &[p.vote(1, 2, 102)]).await.unwrap();
        }
        assert!(!disk.files().contains(&PathBuf::from("/wal/ballast")));
        disk.set_capacity(None);
        prepare_spare(&wal).await;
        let before = p.model.clone();
        append(&wal, &before, &[p.batch(1, 2, 1, 9_000)]).await.unwrap();
        p.model.groups.get_mut(&GroupId(1)).unwrap().applied =
            p.model.groups[&GroupId(1)].last().index;
        wal.roll(p.model.checkpoints(), &[]).await.unwrap();
        wal.finish_sealed().await.unwrap();
        assert_eq!(wal.reclaim(|| None, |_| None).await.unwrap(), 2);
        prepare_spare(&wal).await;
    });
    let (_, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
    check_recovered(&p.model, &groups).unwrap();
}

#[test]
fn given_a_quota_when_it_is_used_up_then_the_disk_counts_as_full_until_there_is_room() {
    let disk = SimDisk::new(1);
    disk.fail_after(0, Fault::CreateNoQuota);
    block_on(async {
        assert!(is_full(&Wal::open(disk.clone(), options()).await.map(drop)), "the first file");
        disk.fail_after(1, Fault::CreateNoQuota);
        let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
        assert!(wal.is_storage_full(), "the ballast");
        disk.fail_after(1, Fault::CreateNoQuota);
        assert_eq!(wal.prepare_spare_step(STEP).await.unwrap(), SpareProgress::Working);
        assert!(is_full(&wal.prepare_spare_step(STEP).await), "a spare");
        assert!(wal.is_storage_full());
        prepare_spare(&wal).await;
        assert!(!wal.is_storage_full());
    });
}
