//! `wal inspect` and `wal verify`: what is in the files, and whether all of it is as it was written.
//!
//! Offline: nothing else may have the directory open. Nothing is changed.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::block::{Block, BlockKind, Row, SlotKind};
use super::error::WalError;
use super::recovery::TornTail;
pub use super::walk::{FileEnd, Region};
use super::walk::{Item, find_shard, walk};
use crate::disk::Disk;
use crate::ids::{BlockSeq, FileSeq, GroupId};

/// One block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSummary {
    /// Its file.
    pub file: FileSeq,
    /// Where it begins.
    pub position: u64,
    /// Its number.
    pub sequence: BlockSeq,
    /// What it is for.
    pub kind: BlockKind,
    /// Bytes that it takes in the file.
    pub bytes: u64,
    /// Rows of its table.
    pub records: u32,
    /// How many of them are entries.
    pub entries: u32,
    /// How many of the entries are record batches.
    pub batches: u32,
    /// Offsets that the batches take.
    pub offsets: u64,
    /// How many snapshots took the place of a group's log.
    pub snapshots: u32,
    /// The groups in it.
    pub groups: Vec<GroupId>,
}

impl BlockSummary {
    fn of(file: FileSeq, position: u64, block: &Block) -> BlockSummary {
        let header = block.header();
        let is_data = header.kind == BlockKind::Data;
        let (mut entries, mut batches, mut offsets, mut snapshots) = (0, 0, 0, 0);
        let mut groups = BTreeSet::new();
        for row in block.rows().map(|row| row.descriptor) {
            entries += u32::from(row.kind.entry().is_some());
            batches += u32::from(row.kind == SlotKind::Batch);
            offsets += u64::from(row.offset_count);
            snapshots += u32::from(is_data && row.kind == SlotKind::Checkpoint);
            if row.kind != SlotKind::Padding {
                groups.insert(row.group);
            }
        }
        BlockSummary {
            file,
            position,
            sequence: header.place.sequence,
            kind: header.kind,
            bytes: header.padded_len(),
            records: header.count,
            entries,
            batches,
            offsets,
            snapshots,
            groups: groups.into_iter().collect(),
        }
    }
}

impl fmt::Display for BlockSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            BlockKind::Checkpoint => "checkpoint",
            BlockKind::Data => "data",
            BlockKind::Mark => "mark",
            BlockKind::CleanClose => "clean close",
            BlockKind::Footer => "footer",
            BlockKind::Repair => "repair",
        };
        write!(
            f,
            "{:>12}  block {:<10} {kind:<11} {:>9} bytes  {} records, {} batches, {} offsets, {} groups",
            self.position,
            self.sequence,
            self.bytes,
            self.records,
            self.batches,
            self.offsets,
            self.groups.len()
        )?;
        if self.snapshots > 0 {
            write!(f, ", {} snapshots", self.snapshots)?;
        }
        Ok(())
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// The file.
    pub file: FileSeq,
    /// Its path.
    pub path: PathBuf,
    /// Its length.
    pub len: u64,
    /// Where its last block ends.
    pub end_position: u64,
    /// How it ends.
    pub end: FileEnd,
    /// Its blocks.
    pub blocks: Vec<BlockSummary>,
    /// Its damage.
    pub damage: Vec<Region>,
}

impl fmt::Display for FileSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.end {
            FileEnd::Footer => "sealed, with footer",
            FileEnd::NoFooter => "sealed, without footer",
            FileEnd::Open { .. } => "open",
            FileEnd::Unstarted => "never started",
        };
        let (path, blocks) = (self.path.display(), self.blocks.len());
        writeln!(
            f,
            "{path}: {blocks} blocks in {} of {} bytes, {end}",
            self.end_position, self.len
        )?;
        for block in &self.blocks {
            writeln!(f, "{block}")?;
        }
        for region in &self.damage {
            let (position, bytes) = (region.position, region.bytes);
            writeln!(f, "{position:>12}  DAMAGED, {bytes} bytes: {}", region.fault)?;
        }
        if let FileEnd::Open { torn: Some(torn) } = self.end {
            let TornTail { position, bytes, fault } = torn;
            writeln!(
                f,
                "{position:>12}  torn tail, {bytes} bytes, cut at the next start: {fault}"
            )?;
        }
        Ok(())
    }
}

/// What is in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// The shard; `None` if there is no block in any file.
    pub shard: Option<Uuid>,
    /// The files, oldest first.
    pub files: Vec<FileSummary>,
}

impl Inspection {
    /// All blocks, oldest first.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockSummary> {
        self.files.iter().flat_map(|file| &file.blocks)
    }

    /// All groups, by their numbers.
    #[must_use]
    pub fn groups(&self) -> BTreeSet<GroupId> {
        self.blocks().flat_map(|block| &block.groups).copied().collect()
    }

    /// All damage.
    pub fn damage(&self) -> impl Iterator<Item = &Region> {
        self.files.iter().flat_map(|file| &file.damage)
    }
}

/// Summarises every block of every file. `visit` sees every row of them.
pub async fn inspect<D: Disk>(
    disk: &D,
    dir: &Path,
    mut visit: impl FnMut(&Row),
) -> Result<Inspection, WalError> {
    let Some(shard) = find_shard(disk, dir).await? else {
        return Ok(Inspection::default());
    };
    let mut files = Vec::new();
    let (mut blocks, mut damage) = (Vec::new(), Vec::new());
    walk(disk, dir, shard, |item| match item {
        Item::Block { file, position, block } => {
            blocks.push(BlockSummary::of(file, position, block));
            block.rows().for_each(|row| visit(&row));
        }
        Item::Damage(region) => damage.push(region.clone()),
        Item::End { file, path, len, position, end } => files.push(FileSummary {
            file,
            path: path.to_owned(),
            len,
            end_position: position,
            end,
            blocks: std::mem::take(&mut blocks),
            damage: std::mem::take(&mut damage),
        }),
    })
    .await?;
    Ok(Inspection { shard: Some(shard), files })
}

/// What a check of a directory found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// The shard; `None` if there is no block in any file.
    pub shard: Option<Uuid>,
    /// Files read.
    pub files: u64,
    /// Blocks whose header, table and every payload are right.
    pub blocks: u64,
    /// Bytes of these blocks.
    pub bytes: u64,
    /// Everything that is wrong, with file and position.
    pub damage: Vec<Region>,
    /// What the next start cuts off the newest file, and the file; no damage, for nobody was told that it is durable.
    pub torn: Option<(PathBuf, TornTail)>,
    /// Sealed files without a footer, which is no damage.
    pub without_footer: Vec<PathBuf>,
}

/// Reads every block and checks every payload of every file.
pub async fn verify<D: Disk>(disk: &D, dir: &Path) -> Result<Verification, WalError> {
    let mut found = Verification { shard: find_shard(disk, dir).await?, ..Default::default() };
    let Some(shard) = found.shard else {
        return Ok(found);
    };
    walk(disk, dir, shard, |item| match item {
        Item::Block { block, .. } => {
            found.blocks += 1;
            found.bytes += block.header().padded_len();
        }
        Item::Damage(region) => found.damage.push(region.clone()),
        Item::End { path, end, .. } => {
            found.files += 1;
            if end == FileEnd::NoFooter {
                found.without_footer.push(path.to_owned());
            }
            if let FileEnd::Open { torn } = end {
                found.torn = torn.map(|torn| (path.to_owned(), torn));
            }
        }
    })
    .await?;
    Ok(found)
}
