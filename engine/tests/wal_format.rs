//! The format on disk: golden files, and decoders that survive anything.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::path::PathBuf;

use bytes::Bytes;
use chronik_engine::disk_sim::{SimDisk, block_on};
use chronik_engine::ids::{BlockSeq, FileSeq, GroupId, Offset, RaftIndex};
use chronik_engine::limits::GROUP_STATE_BYTES_MAX;
use chronik_engine::log_index::{FileIndex, LogIndex};
use chronik_engine::wal::Wal;
use chronik_engine::wal::block::{
    BATCH_HEAD_BYTES, Block, BlockKind, BlockPlace, BlockPlan, Descriptor, FLAG_LAST_CHECKPOINT,
    PlanError, SlotKind,
};
use chronik_engine::wal::footer;
use chronik_engine::wal::record::{GroupCheckpoint, GroupMeta, WalRecord};
use common::{Proposer, SHARD, append, check_readable, check_recovered, options, patched};
use proptest::prelude::*;

fn encode(records: &[WalRecord], kind: BlockKind, flags: u8) -> Vec<u8> {
    let plan = BlockPlan::new(records).unwrap();
    let mut parts: Vec<Vec<u8>> = plan.part_lens().map(|len| vec![0xee; len]).collect();
    let place =
        BlockPlace { shard: SHARD, file: FileSeq(3), position: 8192, sequence: BlockSeq(77) };
    plan.encode(&mut parts, kind, flags, place);
    parts.concat()
}

/// One record of each kind.
fn all_kinds() -> (Proposer, Vec<WalRecord>) {
    let mut p = Proposer::default();
    let mut records = vec![p.create(1), p.vote(1, 7, 101), p.noop(1, 7)];
    records.extend([p.command(1, 7, 33), p.batch(1, 7, 5, 100), p.batch(1, 7, 2, 61)]);
    records.extend([p.log_start(1, 1), p.truncate_after(1, 3)]);
    (p, records)
}

/// Compares with a file of this format's first version. `CHRONIK_BLESS=1` writes it anew: a change of format.
fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("CHRONIK_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let wanted = std::fs::read(&path).unwrap();
    assert!(wanted == bytes, "{name} is not what it was: files of older versions cannot be read");
}

fn sample_index() -> FileIndex {
    let (_, records) = all_kinds();
    let plan = BlockPlan::new(&records).unwrap();
    let mut index = FileIndex::new(BlockSeq(70));
    for (slot, (row, at)) in (0..).zip(plan.rows()) {
        index.apply(8192, slot, at, &row);
    }
    let lost = Descriptor {
        index: RaftIndex(4),
        base_offset: 40,
        span: 3,
        ..Descriptor::empty(SlotKind::Lost, GroupId(1))
    };
    index.apply(16_384, 0, 128, &lost);
    index.last_block = BlockSeq(78);
    index.end_position = 20_480;
    index
}

#[test]
fn given_a_block_of_all_kinds_when_encoded_then_it_is_the_golden_one() {
    let (_, records) = all_kinds();
    golden("block_data.bin", &encode(&records, BlockKind::Data, 0));
}

#[test]
fn given_an_entry_when_encoded_then_it_is_the_golden_one() {
    let mut p = Proposer::default();
    p.create(1);
    golden("block_entry.bin", &encode(&[p.batch(1, 7, 5, 100)], BlockKind::Data, 0));
}

#[test]
fn given_a_checkpoint_when_encoded_then_it_is_the_golden_one() {
    let (p, _) = all_kinds();
    let records: Vec<_> = p.model.checkpoints().into_iter().map(WalRecord::Checkpoint).collect();
    let bytes = encode(&records, BlockKind::Checkpoint, FLAG_LAST_CHECKPOINT);
    golden("block_checkpoint.bin", &bytes);
}

#[test]
fn given_a_snapshot_among_the_data_when_encoded_then_it_is_the_golden_one() {
    let (mut p, _) = all_kinds();
    let records = [p.install(1, 9, 40, 33), p.noop(1, 9), p.batch(1, 9, 2, 61), p.vote(1, 9, 0)];
    golden("block_snapshot.bin", &encode(&records, BlockKind::Data, 0));
}

#[test]
fn given_a_checkpoint_that_is_too_long_to_be_read_again_when_planned_then_it_is_refused() {
    let created = GroupCheckpoint::created(GroupId(1), GroupMeta::default());
    let longest = GROUP_STATE_BYTES_MAX * 2;
    for (state_bytes, fits) in [(longest - 4096, true), (longest + 1, false)] {
        let state = vec![0; state_bytes];
        let records = [WalRecord::Checkpoint(GroupCheckpoint { state, ..created.clone() })];
        let plan = BlockPlan::new(&records);
        match plan {
            Ok(plan) => {
                assert!(fits);
                let payload = Bytes::from(plan.encoded_payload());
                let row = Descriptor::of(&records[0]);
                assert_eq!(row.record(&payload).as_ref(), records.first());
            }
            Err(error) => {
                assert!(!fits);
                assert!(matches!(error, PlanError::CheckpointTooLong { .. }), "{error}");
            }
        }
    }
}

#[test]
fn given_a_footer_when_encoded_then_it_is_the_golden_one_and_decodes_to_the_same() {
    let index = sample_index();
    let bytes = footer::encode(&index);
    golden("footer.bin", &bytes);
    let decoded = footer::decode(&bytes).unwrap();
    assert_eq!(decoded.groups, index.groups);
    assert_eq!((decoded.first_block, decoded.last_block), (BlockSeq(70), BlockSeq(78)));
}

#[test]
fn given_a_block_when_decoded_then_the_records_come_back_with_patched_batches() {
    let (_, records) = all_kinds();
    let bytes = encode(&records, BlockKind::Data, 0);
    let block = Block::decode(bytes.into()).unwrap();
    let decoded: Vec<WalRecord> =
        block.rows().map(|row| row.descriptor.record(&row.payload).unwrap()).collect();
    let wanted: Vec<WalRecord> = records
        .iter()
        .map(|record| match record {
            WalRecord::Entry { group, entry } => {
                WalRecord::Entry { group: *group, entry: patched(entry) }
            }
            other => other.clone(),
        })
        .collect();
    assert_eq!(decoded, wanted);
}

#[test]
fn given_a_block_of_several_parts_when_encoded_then_every_byte_is_written() {
    let mut p = Proposer::default();
    p.create(1);
    for len in [(1 << 20) - 128 - 30, (1 << 20) - 128, 3_000_000, 4096 - 128 - 64] {
        let records = [p.batch(1, 1, 1, len), p.batch(1, 1, 1, 70)];
        let bytes = encode(&records, BlockKind::Data, 0);
        assert!(bytes.len().is_multiple_of(4096));
        let block = Block::decode(bytes.clone().into()).unwrap();
        let end = usize::try_from(block.header().length).unwrap();
        assert!(bytes[end..].iter().all(|byte| *byte == 0), "the padding is zeros");
        let last = block.rows().last().unwrap();
        assert_eq!(last.payload.len(), 70);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn given_a_mutated_block_when_decoded_then_no_record_is_wrong(
        flips in prop::collection::vec((0usize..4096, 0u8..8), 1..6),
        cut in 0usize..4097,
    ) {
        let (_, records) = all_kinds();
        let clean = encode(&records, BlockKind::Data, 0);
        let mut bytes = clean.clone();
        for (at, bit) in &flips {
            bytes[*at] ^= 1 << bit;
        }
        let length = usize::try_from(Block::decode(clean.clone().into()).unwrap().header().length).unwrap();
        let touched = bytes[..length] != clean[..length];
        bytes.truncate(cut);
        let decoded = Block::decode(Bytes::from(bytes));
        if touched || cut < length {
            prop_assert!(decoded.is_err(), "a changed block passed for a whole one");
        } else {
            prop_assert!(decoded.is_ok());
        }
    }

    #[test]
    fn given_any_bytes_when_decoded_then_nothing_panics(
        mut bytes in prop::collection::vec(any::<u8>(), 0..5000),
        magic in any::<bool>(),
    ) {
        if magic && bytes.len() > 8 {
            bytes[..6].copy_from_slice(b"CHWB\x01\x00");
            bytes[6] = bytes[6] % 6 + 1;
        }
        if let Ok(block) = Block::decode(Bytes::from(bytes.clone())) {
            prop_assert!(block.rows().count() * 64 < bytes.len());
        }
        drop(footer::decode(&bytes));
        if let Some(row) = Descriptor::decode(&bytes) {
            drop(row.record(&Bytes::from(bytes)));
        }
    }

    #[test]
    fn given_a_mutated_footer_when_decoded_then_nothing_panics(
        flips in prop::collection::vec((0usize..400, any::<u8>()), 1..5),
    ) {
        let mut bytes = footer::encode(&sample_index());
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        drop(footer::decode(&bytes));
    }
}

/// What a model of the log says of a random workload.
#[derive(Debug, Clone)]
enum Act {
    Batch { group: u64, count: u32, len: usize },
    Noop { group: u64 },
    Truncate { group: u64, back: u64 },
    NewTerm { group: u64 },
    LogStart { group: u64 },
    Recreate { group: u64 },
    Install { group: u64, ahead: u64, len: usize },
    Block,
    Seal,
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let group = 1u64..4;
    prop_oneof![
        8 => (group.clone(), 1u32..9, 61usize..9_000)
            .prop_map(|(group, count, len)| Act::Batch { group, count, len }),
        2 => group.clone().prop_map(|group| Act::Noop { group }),
        1 => (group.clone(), 0u64..5).prop_map(|(group, back)| Act::Truncate { group, back }),
        1 => group.clone().prop_map(|group| Act::NewTerm { group }),
        1 => group.clone().prop_map(|group| Act::LogStart { group }),
        1 => group.clone().prop_map(|group| Act::Recreate { group }),
        1 => (group, 1u64..20, 0usize..9_000)
            .prop_map(|(group, ahead, len)| Act::Install { group, ahead, len }),
        6 => Just(Act::Block),
        1 => Just(Act::Seal),
        1 => Just(Act::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn given_any_workload_when_read_then_index_and_model_agree(
        acts in prop::collection::vec(act(), 1..120),
    ) {
        block_on(run(&acts));
    }
}

async fn run(acts: &[Act]) {
    let disk = SimDisk::new(5);
    let (mut wal, _, _) = Wal::open(disk.clone(), options()).await.unwrap();
    let mut p = Proposer::default();
    let mut terms = [1u64; 4];
    let mut block = vec![p.create(1), p.create(2), p.create(3)];
    let mut durable = p.model.clone();
    durable.groups.clear();
    for act in acts {
        let log = |group: &u64| p.model.groups[&GroupId(*group)].clone();
        let term = |group: &u64| terms[usize::try_from(*group).unwrap()];
        match act {
            Act::Batch { group, count, len } => {
                let record = p.batch(*group, term(group), *count, *len);
                block.push(record);
            }
            Act::Noop { group } => block.push(p.noop(*group, term(group))),
            Act::NewTerm { group } => terms[usize::try_from(*group).unwrap()] += 1,
            Act::Truncate { group, back } => {
                let state = log(group);
                let index = state.last().index.0.saturating_sub(*back);
                if index >= state.log_start.index.0 {
                    terms[usize::try_from(*group).unwrap()] += 1;
                    block.push(p.truncate_after(*group, index));
                }
            }
            Act::LogStart { group } => {
                let (start, last) = (log(group).log_start.index.0, log(group).last().index.0);
                if last > start {
                    block.push(p.log_start(*group, start + (last - start).div_ceil(2)));
                }
            }
            Act::Recreate { group } => {
                let records = [p.delete(*group), p.create(*group)];
                block.extend(records);
            }
            Act::Install { group, ahead, len } => {
                let term = &mut terms[usize::try_from(*group).unwrap()];
                *term += 1;
                block.push(p.install(*group, *term, *ahead, *len));
            }
            Act::Block | Act::Seal | Act::Reopen => {
                if !block.is_empty() {
                    append(&wal, &durable, &block).await.unwrap();
                    block.clear();
                    durable = p.model.clone();
                }
                if matches!(act, Act::Seal) {
                    wal.roll(durable.checkpoints(), &[]).await.unwrap();
                    wal.finish_sealed().await.unwrap();
                }
                check_readable(&wal, &durable).await;
                if matches!(act, Act::Reopen) {
                    let (opened, groups, _) = Wal::open(disk.clone(), options()).await.unwrap();
                    check_recovered(&durable, &groups).unwrap();
                    wal = opened;
                    check_readable(&wal, &durable).await;
                }
            }
        }
    }
}

#[test]
fn given_an_index_when_a_truncation_cuts_an_extent_then_lookups_go_on_behind_it() {
    let mut index = LogIndex::new(BlockSeq(1));
    let created = Descriptor::empty(SlotKind::GroupCreated, GroupId(1));
    index.apply(4096, 0, 128, &created);
    let entry = |index: u64, base_offset: i64| Descriptor {
        index: RaftIndex(index),
        base_offset,
        offset_count: 10,
        payload_len: u32::try_from(BATCH_HEAD_BYTES).unwrap(),
        ..Descriptor::empty(SlotKind::Batch, GroupId(1))
    };
    for (slot, at) in (0..4).zip(1..) {
        index.apply(8192, slot, 1000, &entry(at, i64::from(slot) * 10));
    }
    let cut = Descriptor {
        index: RaftIndex(2),
        ..Descriptor::empty(SlotKind::TruncateAfter, GroupId(1))
    };
    index.apply(12_288, 0, 128, &cut);
    index.apply(12_288, 1, 128, &entry(3, 20));
    assert_eq!(index.group(GroupId(1)).unwrap().last, RaftIndex(3));
    let extents = &index.active().groups[&GroupId(1)].extents;
    assert_eq!(extents.len(), 2);
    assert_eq!((extents[0].count, extents[0].end_offset()), (2, Offset(20)));
    assert_eq!((extents[1].first, extents[1].end_offset()), (RaftIndex(3), Offset(30)));
}
