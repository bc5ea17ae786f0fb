//! A log on disk, damaged by the input: a start repairs a torn tail or names the damage, and starting again afterwards
//! finds the same. Each edit of the input is six bytes: where, what, and whether checksums are made right again.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use chronik_engine::disk_sim::{SimDisk, block_on};
use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::inspect::verify;
use chronik_engine::wal::record::{
    EntryKind, GroupMeta, HardState, LogEntry, LogPosition, WalRecord,
};
use chronik_engine::wal::{Wal, WalOptions};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

const FIRST: &str = "/wal/00000000000000000001.wal";
const EDIT_BYTES: usize = 6;
const EDITS_MAX: usize = 32;
const SECTOR: usize = 4096;

fn options() -> WalOptions {
    WalOptions {
        file_bytes: 128 << 10,
        first_file_bytes: 96 << 10,
        ballast_bytes: 0,
        ..WalOptions::new("/wal", Uuid::from_u128(1))
    }
}

/// The first file of a log with every kind of record.
fn whole() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let disk = SimDisk::new(1);
        block_on(async {
            let (wal, _, _) = Wal::open(disk.clone(), options()).await.expect("an empty log");
            let group = GroupId(1);
            let replica = ReplicaId(5);
            let meta = GroupMeta { replica, voters: vec![replica], ..GroupMeta::default() };
            let state = HardState { term: Term(2), vote: replica, commit: RaftIndex(0) };
            let first =
                [WalRecord::GroupCreated { group, meta }, WalRecord::HardState { group, state }];
            wal.append(&first).await.expect("room");
            for index in 1..9 {
                let batch = index % 3 != 0;
                let entry = LogEntry {
                    index: RaftIndex(index),
                    term: Term(2),
                    kind: if batch { EntryKind::Batch } else { EntryKind::Command },
                    base_offset: Offset(i64::try_from(index).expect("small")),
                    offset_count: u32::from(batch),
                    max_timestamp_ms: 5,
                    payload: Bytes::from(vec![7; 100]),
                };
                wal.append(&[WalRecord::Entry { group, entry }]).await.expect("room");
            }
            let tail = [
                WalRecord::LogStart {
                    group,
                    position: LogPosition { index: RaftIndex(2), term: Term(2) },
                    offset: Offset(3),
                },
                WalRecord::TruncateAfter { group, index: RaftIndex(7) },
            ];
            wal.append(&tail).await.expect("room");
            wal.write_mark().await.expect("room");
        });
        disk.read_raw(Path::new(FIRST)).expect("the file is there")
    })
}

/// Makes the checksums of a block's header and table right, where they stand.
fn seal_block(file: &mut [u8], at: usize) {
    const HEADER: usize = 64;
    let start = at - at % SECTOR;
    let word =
        |at: usize| file.get(at..at + 4).and_then(|w| w.try_into().ok()).map(u32::from_le_bytes);
    let Some(count) = word(start + 52).and_then(|count| usize::try_from(count).ok()) else {
        return;
    };
    let Some(end) = count.checked_mul(64).and_then(|table| start.checked_add(HEADER + table))
    else {
        return;
    };
    let Some(block) = file.get_mut(start..end) else { return };
    block[56..60].fill(0);
    let crc = crc32fast::hash(block);
    block[56..60].copy_from_slice(&crc.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let mut file = whole().to_vec();
    for edit in input.chunks_exact(EDIT_BYTES).take(EDITS_MAX) {
        let at = usize::try_from(u32::from_le_bytes([edit[0], edit[1], edit[2], 0])).unwrap_or(0);
        let at = at % file.len();
        let len = usize::from(edit[4] >> 1).min(file.len() - at);
        if len == 0 {
            file[at] = edit[3];
        } else {
            file[at..at + len].fill(edit[3]);
        }
        if edit[4] & 1 == 1 {
            seal_block(&mut file, at);
        }
        let cut = usize::from(edit[5]);
        if cut > 250 {
            file[at..].fill(0);
        }
    }
    let disk = SimDisk::new(1);
    block_on(async {
        let opened = Wal::open(disk.clone(), options()).await;
        drop(opened.expect("an empty log"));
    });
    disk.write_raw(Path::new(FIRST), 0, &file).expect("the file is there");
    _ = block_on(verify(&disk, Path::new("/wal")));
    let Ok((wal, recovered, _)) = block_on(Wal::open(disk.clone(), options())) else { return };
    drop(wal);
    let (_, again, _) = block_on(Wal::open(disk, options()))
        .expect("what a start has accepted, the next one accepts");
    assert_eq!(recovered, again);
});
