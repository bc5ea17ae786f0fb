//! The crash matrix: a workload is stopped at every boundary of a changing disk operation, with every ending that the
//! pending writes can have, and the log is opened again.
//!
//! What is shown each time: the recovered state is that after the last acknowledged block, or that after the one block
//! that was in flight, of all groups together and entry by entry; everything can be read; and the log goes on, and
//! comes back once more.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use chronik_engine::disk_sim::{
    CrashEnding, CrashMode, NameEnding, SECTOR_BYTES, SimDisk, block_on,
};
use chronik_engine::ids::{GroupId, RaftIndex};
use chronik_engine::wal::inspect::verify;
use chronik_engine::wal::record::WalRecord;
use chronik_engine::wal::{ReadError, Wal, WalError};
use common::{Model, Proposer, append, check_readable, check_recovered, options};

enum Step {
    Append(Vec<WalRecord>),
    /// The state machine has applied so far; nothing is written.
    Applied(u64, u64),
    Mark,
    FinishSealed,
    Spare,
    Reclaim(RaftIndex),
    /// What a group has not applied is written once more.
    Carry(u64),
    Close,
}

fn workload() -> Vec<Step> {
    let mut p = Proposer::default();
    let mut steps = vec![
        Step::Append(vec![p.create(1), p.create(2), p.vote(1, 1, 101), p.vote(2, 1, 201)]),
        Step::Append(vec![p.noop(1, 1), p.batch(1, 1, 3, 300), p.noop(2, 1)]),
        Step::Append(vec![p.batch(1, 1, 1, 5_000), p.batch(2, 1, 2, 700), p.vote(2, 1, 201)]),
        Step::Mark,
        Step::Append(vec![p.create(3), p.vote(3, 1, 1), p.batch(2, 1, 2, 80), p.noop(3, 1)]),
        Step::Append(vec![p.batch(2, 1, 4, 90), p.batch(2, 1, 4, 95), p.command(3, 1, 100)]),
        // A new leader overwrites the end of group 2.
        Step::Append(vec![p.vote(2, 3, 202), p.truncate_after(2, 3), p.noop(2, 3)]),
        Step::Append(vec![p.batch(2, 3, 7, 200), p.batch(1, 1, 2, 20_000)]),
        Step::Applied(1, 3),
        Step::Append(vec![p.batch(1, 1, 2, 20_000), p.batch(3, 1, 2, 61)]),
        Step::FinishSealed,
        Step::Spare,
        Step::Spare,
        Step::Append(vec![p.log_start(1, 2), p.vote(1, 2, 101), p.batch(1, 2, 1, 100)]),
    ];
    // A block of several parts, in a file that is made for it.
    steps.push(Step::Append(vec![p.batch(1, 2, 9, 1_300_000), p.batch(3, 1, 1, 400)]));
    steps.push(Step::Append(vec![p.batch(1, 2, 1, 64), p.vote(3, 2, 0)]));
    // Snapshots: of a group that was behind, twice in one block, and of one that nobody had heard of.
    steps.push(Step::Append(vec![p.create(5), p.noop(5, 1), p.batch(5, 1, 3, 200), p.noop(2, 3)]));
    steps.push(Step::Append(vec![
        p.install(5, 4, 30, 700),
        p.batch(5, 4, 2, 300),
        p.vote(5, 4, 0),
    ]));
    let twice = vec![p.install(5, 4, 1, 90), p.noop(5, 4), p.install(5, 6, 9, 5_000), p.noop(5, 6)];
    steps.push(Step::Append(twice));
    steps.push(Step::Append(vec![p.batch(5, 6, 1, 100), p.install(6, 2, 12, 10), p.vote(6, 2, 0)]));
    steps.push(Step::FinishSealed);
    // One that takes a file of its own, over a log that lies in older files.
    steps.push(Step::Append(vec![p.install(5, 7, 5, 200_000), p.batch(5, 7, 2, 60)]));
    steps.push(Step::Append(vec![p.delete(6), p.noop(5, 7), p.install(5, 8, 1, 400)]));
    steps.push(Step::Append(vec![p.delete(3), p.create(4), p.vote(4, 5, 400), p.noop(4, 5)]));
    steps.push(Step::Carry(1));
    steps.push(Step::Carry(2));
    steps.push(Step::Applied(1, 8));
    steps.push(Step::Applied(2, 5));
    for round in 0..4 {
        let len = 30_000 + round * 7_000;
        steps.push(Step::Append(vec![p.batch(2, 3, 2, len), p.batch(4, 5, 2, len)]));
    }
    steps.push(Step::FinishSealed);
    steps.push(Step::Reclaim(RaftIndex(6)));
    steps.push(Step::Carry(4));
    let mut last = vec![p.truncate_after(4, 3), p.batch(4, 6, 1, 90), p.noop(2, 3)];
    last.extend([p.install(2, 4, 3, 200), p.vote(2, 4, 202)]);
    steps.push(Step::Append(last));
    steps.push(Step::Mark);
    steps.push(Step::Close);
    steps
}

/// The state after each step, and how many disk operations had been done by then.
struct History {
    states: Vec<(u64, Model)>,
}

async fn run(disk: &SimDisk, steps: &[Step]) -> Result<History, WalError> {
    let (wal, groups, _) = Wal::open(disk.clone(), options()).await?;
    assert!(groups.is_empty(), "a new log has no groups");
    let mut model = Model::default();
    let mut states = vec![(disk.counts().changes(), model.clone())];
    for step in steps {
        match step {
            Step::Append(records) => {
                append(&wal, &model, records).await?;
                model.apply(records);
            }
            Step::Applied(group, index) => {
                let group = model.groups.get_mut(&GroupId(*group)).expect("it exists");
                group.applied = RaftIndex(*index);
            }
            Step::Mark => assert!(wal.write_mark().await?, "the last block was data"),
            Step::FinishSealed => wal.finish_sealed().await?,
            Step::Spare => drop(wal.prepare_spare_step(1 << 20).await?),
            Step::Reclaim(index) => drop(wal.reclaim(|| None, |_| Some(*index)).await?),
            Step::Carry(group) => carry(&wal, &model, GroupId(*group)).await?,
            Step::Close => assert!(wal.close_clean().await?, "there is room"),
        }
        states.push((disk.counts().changes(), model.clone()));
    }
    check_readable(&wal, &model).await;
    Ok(History { states })
}

async fn carry(wal: &Wal<SimDisk>, model: &Model, group: GroupId) -> Result<(), WalError> {
    let read = wal.read_to_carry(group, model.groups[&group].applied).await;
    let carried = read.expect("no fault was planned").expect("it has entries");
    if wal.needs_roll(carried.records()) {
        wal.roll(model.checkpoints(), carried.records()).await?;
    }
    assert!(wal.append_carried(&carried).await?, "nothing was appended meanwhile");
    Ok(())
}

/// What may be found when operation `op` was in flight: the state before it, or the one after the step it belongs to.
fn allowed(history: &History, op: u64) -> Vec<&Model> {
    let acked = history.states.iter().rfind(|(done, _)| *done < op).map(|(_, model)| model);
    let next = history.states.iter().find(|(done, _)| *done >= op).map(|(_, model)| model);
    acked.into_iter().chain(next).collect()
}

/// `wal verify` must say before a start what the start will say.
async fn check_verify_foretells(disk: &SimDisk, why: &str) {
    let Ok(verified) = verify(disk, Path::new("/wal")).await else {
        return; // there is no directory yet
    };
    let torn = verified.torn.map(|(_, torn)| torn);
    match Wal::open(disk.clone_state(), options()).await {
        Ok((_, _, report)) if verified.damage.is_empty() => {
            assert_eq!(torn, report.torn, "{why}: the tail");
        }
        Err(WalError::Damaged { .. }) => {
            assert_ne!(verified.damage, [], "{why}: damage that verify does not see");
        }
        // Verify reads the payloads of sealed files too, and a missing file is not its business.
        _ => {}
    }
}

/// Opens the log, compares, goes on, and opens it again.
fn reopen_and_go_on(disk: &SimDisk, allowed: &[&Model], why: &str) -> Result<(), WalError> {
    block_on(async {
        check_verify_foretells(disk, why).await;
        let (wal, groups, _) = Wal::open(disk.clone(), options()).await?;
        let empty = Model::default();
        let allowed = if allowed.is_empty() { vec![&empty] } else { allowed.to_vec() };
        let found = allowed.iter().find(|model| check_recovered(model, &groups).is_ok());
        let Some(model) = found else {
            let errors: Vec<_> = allowed.iter().map(|m| check_recovered(m, &groups)).collect();
            panic!("{why}: neither state was found: {errors:?}");
        };
        check_readable(&wal, model).await;

        let mut proposer = Proposer { model: (*model).clone(), ..Proposer::default() };
        let mut records = vec![proposer.create(9), proposer.noop(9, 1)];
        let groups: Vec<u64> = model.groups.keys().map(|group| group.0).collect();
        for group in groups {
            let term = proposer.model.groups[&GroupId(group)].last().term.0 + 1;
            records.push(proposer.batch(group, term, 2, 3_000));
        }
        append(&wal, model, &records).await?;
        drop(wal);
        disk.crash(CrashMode::LOSE_ALL);
        let (wal, groups, _) = Wal::open(disk.clone(), options()).await?;
        if let Err(error) = check_recovered(&proposer.model, &groups) {
            panic!("{why}: after going on: {error}");
        }
        check_readable(&wal, &proposer.model).await;
        Ok(())
    })
}

/// Endings for so many pending sectors: all of them for small writes, a spread for large ones.
fn endings(sectors: usize) -> Vec<CrashEnding> {
    if sectors <= 8 {
        return CrashEnding::matrix(sectors);
    }
    let mut endings = vec![CrashEnding::KeepAll, CrashEnding::LoseAll, CrashEnding::Zeroed];
    endings.push(CrashEnding::Garbage { seed: 3 });
    for sectors in [1, 7, 8, sectors / 2, sectors - 8, sectors - 1] {
        endings.push(CrashEnding::Prefix { sectors });
        endings.push(CrashEnding::Suffix { sectors });
    }
    for sector in [0, 1, 8, sectors / 3, sectors - 8] {
        endings.push(CrashEnding::Stale { sector });
        endings.push(CrashEnding::ZeroedSector { sector });
        endings.push(CrashEnding::BitFlip { bit: sector * SECTOR_BYTES * 8 + 77 });
    }
    endings.extend((0..4).map(|seed| CrashEnding::Subset { seed }));
    endings
}

#[test]
fn given_a_crash_at_every_boundary_when_reopened_then_all_acked_and_nothing_else_is_there() {
    let steps = workload();
    let disk = SimDisk::new(11);
    disk.record_boundaries();
    let history = block_on(run(&disk, &steps)).expect("no fault was planned");
    let mut tried = 0;
    for boundary in disk.take_boundaries() {
        let sectors = boundary
            .disk
            .files()
            .iter()
            .map(|path| boundary.disk.pending_sectors(path))
            .max()
            .unwrap_or(0);
        let allowed = allowed(&history, boundary.op);
        for ending in endings(sectors) {
            // Names and contents are pending at the same time only in a few places: not every pair is worth a run.
            let both = matches!(ending, CrashEnding::KeepAll | CrashEnding::LoseAll);
            let names = [NameEnding::KeepAll, NameEnding::LoseAll];
            for names in names.into_iter().take(if both { 2 } else { 1 }) {
                let disk = boundary.disk.clone_state();
                disk.crash(CrashMode { writes: ending, names });
                let why = format!("op {}, {ending:?}, {names:?}", boundary.op);
                if let Err(error) = reopen_and_go_on(&disk, &allowed, &why) {
                    panic!("{why}: {error}");
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 1_000, "the matrix is not empty: {tried}");
}

#[test]
fn given_a_misdirected_or_doubled_write_when_reopened_then_it_is_damage_or_nothing() {
    let steps = workload();
    let disk = SimDisk::new(12);
    disk.record_boundaries();
    let history = block_on(run(&disk, &steps)).expect("no fault was planned");
    let (mut opened, mut refused) = (0, 0);
    for boundary in disk.take_boundaries() {
        let allowed = allowed(&history, boundary.op);
        for to in [0, 4096, 8192, 40_960, 61_440, 100 << 10] {
            for ending in [CrashEnding::Misdirected { to }, CrashEnding::Duplicated { to }] {
                let disk = boundary.disk.clone_state();
                disk.crash(CrashMode::writes(ending));
                let why = format!("op {}, {ending:?}", boundary.op);
                // Where it hit what was durable, that is damage and must be called so; silence would be loss.
                match reopen_misdirected(&disk, &allowed, &why) {
                    Ok(()) => opened += 1,
                    Err(WalError::Damaged { .. } | WalError::FileMissing { .. }) => refused += 1,
                    Err(WalError::Entries { source, .. })
                        if matches!(*source, ReadError::Damaged { .. }) =>
                    {
                        refused += 1;
                    }
                    Err(error) => panic!("{why}: {error}"),
                }
            }
        }
    }
    assert!(opened > 100, "opened {opened}");
    assert!(refused > 10, "refused {refused}");
}

/// As [`reopen_and_go_on`], but entries of sealed files need not be readable: only their checks can find that damage.
fn reopen_misdirected(disk: &SimDisk, allowed: &[&Model], why: &str) -> Result<(), WalError> {
    block_on(async {
        check_verify_foretells(disk, why).await;
        let (_wal, groups, _) = Wal::open(disk.clone(), options()).await?;
        let empty = Model::default();
        let allowed = if allowed.is_empty() { vec![&empty] } else { allowed.to_vec() };
        let errors: Vec<_> = allowed.iter().map(|m| check_recovered(m, &groups)).collect();
        assert!(errors.iter().any(Result::is_ok), "{why}: {errors:?}");
        Ok(())
    })
}

#[test]
fn given_random_endings_when_reopened_then_all_acked_and_nothing_else_is_there() {
    let steps = workload();
    for seed in 0..6 {
        let disk = SimDisk::new(seed);
        disk.set_pending_polls_max(3);
        disk.record_boundaries();
        let history = block_on(run(&disk, &steps)).expect("no fault was planned");
        for boundary in disk.take_boundaries() {
            let disk = boundary.disk.clone_state();
            disk.crash(CrashMode::RANDOM);
            let why = format!("seed {seed}, op {}", boundary.op);
            if let Err(error) = reopen_and_go_on(&disk, &allowed(&history, boundary.op), &why) {
                panic!("{why}: {error}");
            }
        }
    }
}
