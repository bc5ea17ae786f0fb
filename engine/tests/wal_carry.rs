//! Entries that keep the oldest file are written once more, and nothing else changes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use chronik_engine::disk_sim::{CrashMode, SimDisk, block_on};
use chronik_engine::ids::{FileSeq, GroupId, RaftIndex};
use chronik_engine::wal::{Carried, Wal};
use common::{Proposer, append, check_readable, check_recovered, options};

const STUCK: GroupId = GroupId(1);
const OTHER: GroupId = GroupId(2);

/// A log of several files. The first one has entries of one group that are not applied.
async fn stuck_log(disk: &SimDisk, p: &mut Proposer) -> Wal<SimDisk> {
    let (wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
    let created = [p.create(1), p.create(2), p.noop(1, 1), p.noop(2, 1)];
    wal.append(&created).await.unwrap();
    p.model.groups.get_mut(&STUCK).unwrap().applied = RaftIndex(1);
    let unapplied = [p.batch(1, 1, 2, 300), p.batch(1, 2, 1, 5_000), p.noop(1, 2)];
    wal.append(&unapplied).await.unwrap();
    go_on(&wal, p, 25).await;
    let before = p.model.clone();
    append(&wal, &before, &[p.batch(1, 2, 3, 700)]).await.unwrap(); // in another file
    go_on(&wal, p, 10).await;
    wal
}

/// Entries of the other group, applied at once.
async fn go_on(wal: &Wal<SimDisk>, p: &mut Proposer, batches: usize) {
    for _ in 0..batches {
        let other = p.model.groups.get_mut(&OTHER).unwrap();
        other.applied = other.last().index;
        let before = p.model.clone();
        append(wal, &before, &[p.batch(2, 1, 1, 15_000)]).await.unwrap();
        wal.finish_sealed().await.unwrap();
    }
}

async fn read(wal: &Wal<SimDisk>, p: &Proposer) -> Option<Carried> {
    wal.read_to_carry(STUCK, p.model.groups[&STUCK].applied).await.unwrap()
}

fn reopen(disk: &SimDisk, p: &Proposer) -> Wal<SimDisk> {
    disk.crash(CrashMode::LOSE_ALL);
    let (wal, groups, _) = block_on(Wal::open(disk.clone(), options())).unwrap();
    check_recovered(&p.model, &groups).unwrap();
    block_on(check_readable(&wal, &p.model));
    wal
}

#[test]
fn given_entries_that_keep_the_oldest_file_when_carried_then_it_goes_and_the_log_says_the_same() {
    let disk = SimDisk::new(1);
    let mut p = Proposer::default();
    block_on(async {
        let wal = stuck_log(&disk, &mut p).await;
        let applied = |group| Some(p.model.groups.get(&group)?.applied);
        let stuck = Some((FileSeq(1), vec![(STUCK, RaftIndex(1))]));
        assert_eq!(wal.unapplied_in_oldest(applied), stuck);
        assert_eq!(wal.reclaim(|| None, |_| None).await.unwrap(), 0);
        let files = wal.file_count();

        let carried = read(&wal, &p).await.unwrap();
        assert_eq!(carried.records().len(), 4, "all of them, those in later files too");
        if wal.needs_roll(carried.records()) {
            wal.roll(p.model.checkpoints(), carried.records()).await.unwrap();
        }
        assert!(wal.append_carried(&carried).await.unwrap());
        assert_eq!(wal.unapplied_in_oldest(applied), None);
        check_readable(&wal, &p.model).await;
        assert!(wal.reclaim(|| None, |_| None).await.unwrap() >= files - 2, "all but the newest");
        p.model.groups.get_mut(&OTHER).unwrap().applied = p.model.groups[&OTHER].last().index;
        check_readable(&wal, &p.model).await;
    });
    let wal = reopen(&disk, &p);
    // A new leader replaces some of them: the copy is no better than what it was made of.
    let before = p.model.clone();
    let replaced = [p.vote(1, 3, 102), p.truncate_after(1, 3), p.batch(1, 3, 1, 90)];
    block_on(append(&wal, &before, &replaced)).unwrap();
    reopen(&disk, &p);
}

#[test]
fn given_a_log_that_has_gone_on_when_what_was_read_is_to_be_carried_then_nothing_is_written() {
    let disk = SimDisk::new(2);
    let mut p = Proposer::default();
    block_on(async {
        let wal = stuck_log(&disk, &mut p).await;
        let carried = read(&wal, &p).await.unwrap();
        let before = p.model.clone();
        append(&wal, &before, &[p.truncate_after(1, 2), p.noop(1, 3)]).await.unwrap();
        assert!(!wal.append_carried(&carried).await.unwrap(), "a new leader came before");

        let carried = read(&wal, &p).await.unwrap();
        p.model.groups.get_mut(&STUCK).unwrap().applied = RaftIndex(2);
        wal.roll(p.model.checkpoints(), carried.records()).await.unwrap();
        assert!(!wal.append_carried(&carried).await.unwrap(), "one of them is applied");

        p.model.groups.get_mut(&STUCK).unwrap().applied = RaftIndex(3);
        assert!(read(&wal, &p).await.is_none(), "all are applied");
    });
    reopen(&disk, &p);
}
