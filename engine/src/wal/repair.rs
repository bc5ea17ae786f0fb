//! `wal repair`: gives up what damage took, so that the rest can be used again.
//!
//! The damaged bytes are copied aside, and a repair block of exactly the region's length takes their place. It makes
//! each group's log contiguous again: entries that are gone become no-ops, and the base offset after them is that of the
//! next entry that survived, so that no surviving record changes its offset. This is acknowledged data being lost, so
//! it is done only on request, and for a replica that has peers it is the wrong thing to do.
//!
//! Damage in the newest file's checkpoint is made good from the file before it, where that one is whole.
//!
//! - I1: without `accept_loss` nothing is changed.
//! - I2: regions are repaired only if all of them can be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use super::block::{
    Block, BlockKind, BlockPlace, BlockPlan, DESCRIPTOR_BYTES, Descriptor, FLAG_LAST_CHECKPOINT,
    HEADER_BYTES, Row, SlotKind,
};
use super::error::{IoOp, WalError};
use super::file::{BlockLabel, damaged_path, write_block, write_zeros};
use super::record::{EpochStart, GroupCheckpoint, HardState, WalRecord};
use super::replay::Replay;
use super::walk::{FileEnd, Item, Region, copy_region, find_shard, walk};
use super::{footer, to_usize};
use crate::disk::{Disk, DiskFile};
use crate::ids::{FileSeq, GroupId, Offset, RaftIndex, ReplicaId, Term};

/// Entries of one group that are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostRun {
    /// The group.
    pub group: GroupId,
    /// The first entry that is gone.
    pub first: RaftIndex,
    /// How many.
    pub count: u64,
    /// The offsets that are gone with them.
    pub offsets: Range<Offset>,
    /// The term that their no-ops get.
    pub term: Term,
}

/// Why a region cannot be repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// What must be said does not fit where the damage is.
    #[error("{needed} bytes do not fit into the damaged region")]
    TooSmall {
        /// The bytes needed.
        needed: u64,
    },
    /// The checkpoint cannot be rebuilt: the file before is gone or damaged too, or data was lost with the checkpoint.
    #[error("the checkpoint at the file's start is lost and the file before cannot replace it")]
    Checkpoint,
    /// Entries of the catalog are lost, or may be. What comes after them would name groups wrongly, and groups that the
    /// catalog does not name are deleted.
    #[error(
        "it holds entries of the catalog (group 0), without which partitions would be taken for others"
    )]
    Catalog,
}

/// A region, and what giving it up means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionReport {
    /// The region.
    pub region: Region,
    /// What is lost with it.
    pub lost: Vec<LostRun>,
    /// Why it cannot be repaired, if so.
    pub obstacle: Option<Obstacle>,
}

/// What a repair found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairReport {
    /// The damaged regions, oldest first.
    pub regions: Vec<RegionReport>,
    /// Groups whose creation was lost; their records are passed over.
    pub groups_lost: Vec<GroupId>,
    /// Whether the files were changed.
    pub repaired: bool,
}

/// Reports the damage of a log and what repairing it would lose; with `accept_loss`, repairs it. `visit` sees every row
/// of what is whole. The log must not be open. Not cancel-safe.
pub async fn repair<D: Disk>(
    disk: &D,
    dir: &Path,
    accept_loss: bool,
    mut visit: impl FnMut(&Row),
) -> Result<RepairReport, WalError> {
    let Some(shard) = find_shard(disk, dir).await? else {
        return Ok(RepairReport::default());
    };
    let mut survey = Survey::default();
    walk(disk, dir, shard, |item| {
        if let Item::Block { block, .. } = &item {
            block.rows().for_each(|row| visit(&row));
        }
        survey.visit(item);
    })
    .await?;
    survey.finish();
    let fixes = survey.fixes()?;
    let mut report = survey.report(&fixes);
    let catalog_lost = report.groups_lost.contains(&GroupId::META);
    for region in &mut report.regions {
        if catalog_lost || region.lost.iter().any(|run| run.group == GroupId::META) {
            region.obstacle = Some(Obstacle::Catalog);
        }
    }
    let possible = report.regions.iter().all(|region| region.obstacle.is_none());
    if accept_loss && possible && !report.regions.is_empty() {
        for (region, fix) in survey.regions.iter().zip(fixes.iter().flatten()) {
            write_fix(disk, dir, shard, region, fix).await?;
        }
        report.repaired = true;
    }
    Ok(report)
}

/// What is known of a group while walking.
#[derive(Debug, Clone, Default)]
struct Track {
    last: RaftIndex,
    end_offset: Offset,
    epochs: Vec<EpochStart>,
    hard_state: HardState,
    /// A run at the log's end whose following offset is not known yet.
    open_run: Option<usize>,
}

impl Track {
    fn of(checkpoint: &GroupCheckpoint) -> Track {
        Track {
            last: checkpoint.last.index,
            end_offset: checkpoint.applied_end_offset,
            epochs: checkpoint.epochs.clone(),
            hard_state: checkpoint.hard_state,
            open_run: None,
        }
    }

    fn term(&self) -> Term {
        self.epochs.last().map_or(Term(0), |start| start.epoch)
    }

    fn truncate_after(&mut self, index: RaftIndex) {
        self.last = self.last.min(index);
        self.epochs.retain(|start| start.index <= index);
    }
}

#[derive(Debug)]
struct Run {
    region: usize,
    lost: LostRun,
    hard_state: HardState,
}

/// What stands in place of a region.
struct Fix {
    kind: BlockKind,
    flags: u8,
    rows: Vec<(Descriptor, Vec<u8>)>,
}

/// All that one walk gathers.
#[derive(Default)]
struct Survey {
    regions: Vec<Region>,
    tracks: BTreeMap<GroupId, Track>,
    runs: Vec<Run>,
    unknown: BTreeSet<GroupId>,
    /// The groups that the checkpoint blocks of the file at hand name.
    stated: BTreeSet<GroupId>,
    /// The state of every group at the end of a whole file, from which the next one's checkpoint can be rebuilt.
    replay: Option<Replay>,
    rebuilt: BTreeMap<FileSeq, Vec<GroupCheckpoint>>,
    newest: Option<FileSeq>,
}

impl Survey {
    fn visit(&mut self, item: Item<'_>) {
        match item {
            Item::Block { block, .. } if block.header().kind == BlockKind::Checkpoint => {
                self.visit_checkpoints(block);
            }
            Item::Block { block, .. } => {
                for row in block.rows() {
                    self.visit_row(&row);
                    if let Some(replay) = &mut self.replay
                        && replay.apply(&row).is_err()
                    {
                        self.replay = None;
                    }
                }
            }
            Item::Damage(region) => {
                if region.checkpoint && region.position == 0 {
                    let replay = self.replay.take();
                    let list = replay.map(|replay| replay.groups.into_values());
                    let list = list.map(|groups| groups.map(rebuilt).collect());
                    self.rebuilt.extend(list.map(|list: Vec<_>| (region.file, list)));
                }
                self.replay = None;
                self.regions.push(region.clone());
            }
            Item::End { file, end, .. } => {
                if end != FileEnd::Unstarted {
                    self.newest = Some(file);
                }
            }
        }
    }

    fn visit_checkpoints(&mut self, block: &Block) {
        if block.header().place.position == 0 {
            self.stated.clear();
            self.replay = Some(Replay::default());
        }
        for row in block.rows() {
            let Some(WalRecord::Checkpoint(checkpoint)) = row.descriptor.record(&row.payload)
            else {
                continue;
            };
            let group = checkpoint.group;
            self.stated.insert(group);
            let mut track = Track::of(&checkpoint);
            if let Some(known) = self.tracks.get(&group) {
                track.end_offset = track.end_offset.max(known.end_offset);
                let (from, to) = (known.last.next(), checkpoint.last.index);
                let start = checkpoint.log_start.index;
                if from <= to && start < to {
                    let (term, hard_state) = (known.term(), known.hard_state);
                    let offsets = known.end_offset..track.end_offset;
                    let run =
                        LostRun { group, first: from, count: to.0 + 1 - from.0, offsets, term };
                    track.open_run = self.push_run(run, hard_state);
                }
            }
            self.tracks.insert(group, track);
            if let Some(replay) = &mut self.replay {
                replay.state(checkpoint);
            }
        }
        if block.header().flags & FLAG_LAST_CHECKPOINT != 0 {
            let stated = std::mem::take(&mut self.stated);
            self.tracks.retain(|group, _| stated.contains(group));
        }
    }

    fn push_run(&mut self, lost: LostRun, hard_state: HardState) -> Option<usize> {
        let region = self.regions.len().checked_sub(1)?;
        self.runs.push(Run { region, lost, hard_state });
        Some(self.runs.len() - 1)
    }

    fn visit_row(&mut self, row: &Row) {
        if row.descriptor.kind == SlotKind::Checkpoint
            && let Some(WalRecord::Checkpoint(checkpoint)) = row.descriptor.record(&row.payload)
        {
            // A snapshot took the place of the log: what was lost before it is not missed, not even its creation.
            self.tracks.insert(checkpoint.group, Track::of(&checkpoint));
            self.unknown.remove(&checkpoint.group);
            return;
        }
        let row = &row.descriptor;
        if row.kind == SlotKind::GroupCreated {
            self.tracks.insert(row.group, Track::default());
            self.unknown.remove(&row.group);
            return;
        }
        if matches!(row.kind, SlotKind::Padding | SlotKind::Footer | SlotKind::FooterLocator) {
            return;
        }
        let Some(mut track) = self.tracks.remove(&row.group) else {
            if row.kind != SlotKind::GroupDeleted {
                self.unknown.insert(row.group);
            }
            return;
        };
        match row.kind {
            SlotKind::GroupDeleted => return,
            SlotKind::HardState => track.hard_state = row.hard_state(),
            SlotKind::TruncateAfter => track.truncate_after(row.index),
            SlotKind::LogStart => track.last = track.last.max(row.index),
            _ => self.visit_entry(&mut track, row),
        }
        self.tracks.insert(row.group, track);
    }

    fn visit_entry(&mut self, track: &mut Track, row: &Descriptor) {
        let base_offset = Offset(row.base_offset);
        if let Some(run) = track.open_run.take().and_then(|at| self.runs.get_mut(at)) {
            run.lost.offsets.end = base_offset;
        }
        let expected = track.last.next();
        if row.index > expected {
            let lost = LostRun {
                group: row.group,
                first: expected,
                count: row.index.0 - expected.0,
                offsets: track.end_offset..base_offset,
                term: track.term().min(row.term),
            };
            self.push_run(lost, track.hard_state);
        }
        track.truncate_after(RaftIndex(row.index.0.saturating_sub(1)));
        if track.term() < row.term {
            let (epoch, index, offset) = (row.term, row.index, base_offset);
            track.epochs.push(EpochStart { epoch, index, offset });
        }
        let count = if row.kind == SlotKind::Lost { row.span.max(1) } else { 1 };
        track.last = RaftIndex(row.index.0 + count - 1);
        track.end_offset = row.end_offset();
    }

    fn finish(&mut self) {
        for run in &mut self.runs {
            let offsets = &mut run.lost.offsets;
            offsets.end = offsets.end.max(offsets.start);
        }
    }

    /// What to write for each region; `Err` where it is impossible.
    #[allow(clippy::type_complexity, reason = "one result per region, used twice nearby")]
    fn fixes(&self) -> Result<Vec<Result<Fix, Obstacle>>, WalError> {
        let mut fixes = Vec::with_capacity(self.regions.len());
        for (at, region) in self.regions.iter().enumerate() {
            fixes.push(if region.checkpoint {
                self.checkpoint_fix(region)?
            } else {
                self.data_fix(at, region)
            });
        }
        Ok(fixes)
    }

    fn data_fix(&self, at: usize, region: &Region) -> Result<Fix, Obstacle> {
        let mut rows = Vec::new();
        for run in self.runs.iter().filter(|run| run.region == at) {
            let lost = &run.lost;
            rows.push(Descriptor {
                index: lost.first,
                term: lost.term,
                base_offset: lost.offsets.end.0,
                span: lost.count,
                ..Descriptor::empty(SlotKind::Lost, lost.group)
            });
            // A hard state may be among what is lost; the term at least must not fall behind the entries. A vote that
            // was cast in it is not known any more, which is why a replica with peers is replaced and not repaired.
            if run.hard_state.term < lost.term {
                rows.push(Descriptor {
                    index: run.hard_state.commit,
                    term: lost.term,
                    base_offset: i64::from_le_bytes(ReplicaId::NONE.0.to_le_bytes()),
                    ..Descriptor::empty(SlotKind::HardState, lost.group)
                });
            }
        }
        let rows = rows.into_iter().map(|row| (row, Vec::new())).collect();
        padded(BlockKind::Repair, 0, rows, region)
    }

    fn checkpoint_fix(&self, region: &Region) -> Result<Result<Fix, Obstacle>, WalError> {
        let single = region.first_block == Some(region.last_block);
        let Some(list) = self.rebuilt.get(&region.file).filter(|_| single) else {
            return Ok(Err(Obstacle::Checkpoint));
        };
        let mut rows = Vec::new();
        for checkpoint in list {
            let record = WalRecord::Checkpoint(checkpoint.clone());
            let payload = BlockPlan::new(std::slice::from_ref(&record))?.encoded_payload();
            rows.push((Descriptor::of(&record), payload));
        }
        Ok(padded(BlockKind::Checkpoint, FLAG_LAST_CHECKPOINT, rows, region))
    }

    fn report(&self, fixes: &[Result<Fix, Obstacle>]) -> RepairReport {
        let regions = self.regions.iter().zip(fixes).enumerate();
        let regions = regions.map(|(at, (region, fix))| RegionReport {
            region: region.clone(),
            lost: self.runs.iter().filter(|r| r.region == at).map(|r| r.lost.clone()).collect(),
            obstacle: fix.as_ref().err().copied(),
        });
        RepairReport {
            regions: regions.collect(),
            groups_lost: self.unknown.iter().copied().collect(),
            repaired: false,
        }
    }
}

/// A group's checkpoint as it must have been at the end of the file that was replayed.
fn rebuilt(group: super::replay::GroupReplay) -> GroupCheckpoint {
    GroupCheckpoint {
        hard_state: group.hard_state,
        log_start: group.log_start,
        log_start_offset: group.log_start_offset,
        last: group.last,
        ..group.checkpoint
    }
}

/// Fills the region to its last byte.
fn padded(
    kind: BlockKind,
    flags: u8,
    mut rows: Vec<(Descriptor, Vec<u8>)>,
    region: &Region,
) -> Result<Fix, Obstacle> {
    let payloads: usize = rows.iter().map(|(_, payload)| payload.len()).sum();
    let needed = (HEADER_BYTES + (rows.len() + 1) * DESCRIPTOR_BYTES + payloads) as u64;
    let Some(rest) = region.bytes.checked_sub(needed) else {
        return Err(Obstacle::TooSmall { needed });
    };
    let replaced = region.first_block.map_or(1, |first| region.last_block.0 + 1 - first.0);
    let padding = Descriptor { span: replaced, ..Descriptor::empty(SlotKind::Padding, GroupId(0)) };
    rows.push((padding, vec![0; to_usize(rest)]));
    Ok(Fix { kind, flags, rows })
}

async fn write_fix<D: Disk>(
    disk: &D,
    dir: &Path,
    shard: Uuid,
    region: &Region,
    fix: &Fix,
) -> Result<(), WalError> {
    let path = &region.path;
    let file = disk.open(path).await.map_err(WalError::io(IoOp::Open, path))?;
    let copy = damaged_path(path, region.position);
    match disk.create(&copy, region.bytes).await {
        Ok(aside) => {
            let copied = copy_region(&file, &aside, region).await;
            copied.map_err(WalError::io(IoOp::Write, copy.clone()))?;
        }
        // A repair that was interrupted has kept the bytes already.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(WalError::Io { op: IoOp::Create, path: copy, source }),
    }
    disk.sync_dir(dir).await.map_err(WalError::io(IoOp::SyncDir, dir))?;

    // The footer knows the blocks that are gone; without it the next start scans the file and writes a new one.
    let locator = file.len().saturating_sub(footer::LOCATOR_BYTES);
    write_zeros(&file, locator, locator + footer::LOCATOR_BYTES)
        .await
        .map_err(WalError::io(IoOp::Write, path))?;
    let rows: Vec<_> = fix.rows.iter().map(|(row, payload)| (*row, payload.as_slice())).collect();
    let plan = BlockPlan::of_rows(&rows)?;
    assert!(plan.padded_len() == region.bytes, "the repair block fills the region exactly");
    let place = BlockPlace {
        shard,
        file: region.file,
        position: region.position,
        sequence: region.last_block,
    };
    let label = BlockLabel { kind: fix.kind, flags: fix.flags, place };
    write_block(&file, &plan, label, &mut Vec::new())
        .await
        .map_err(WalError::io(IoOp::Write, path))?;
    file.sync_data().await.map_err(WalError::io(IoOp::Sync, path))
}
