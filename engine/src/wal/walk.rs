//! A walk over every block of every file of a directory, damage included: what the offline tools see.
//!
//! It changes nothing. Unlike recovery it does not stop at damage but goes on at the next whole header, and it does not
//! need to be told which shard the files belong to.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::block::{Block, BlockFault, BlockHeader, BlockKind, FLAG_LAST_CHECKPOINT};
use super::error::{IoOp, WalError};
use super::file::wal_path;
use super::recovery::{Listing, TornTail, follows, torn_tail};
use super::scan::{Found, Scanner};
use super::{footer, to_usize};
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::{BlockSeq, FileSeq};

/// A stretch of a file where blocks were and are not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// The file.
    pub file: FileSeq,
    /// Its path.
    pub path: PathBuf,
    /// Where the damage begins.
    pub position: u64,
    /// Up to the next whole block.
    pub bytes: u64,
    /// The first block that is gone, as far as it is known.
    pub first_block: Option<BlockSeq>,
    /// The last block that is gone.
    pub last_block: BlockSeq,
    /// Whether checkpoint blocks at the file's start are among them.
    pub checkpoint: bool,
    /// What is wrong with the first one.
    pub fault: BlockFault,
}

/// How a file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileEnd {
    /// Sealed, with a footer.
    Footer,
    /// Sealed; without a footer it is scanned at each start until it has one.
    NoFooter,
    /// Still written.
    Open {
        /// A block behind the last whole one, which the next start cuts; `None` if there is free space.
        torn: Option<TornTail>,
    },
    /// Begun, but never used; the next start removes it.
    Unstarted,
}

/// What the walk meets.
pub(super) enum Item<'a> {
    Block { file: FileSeq, position: u64, block: &'a Block },
    Damage(&'a Region),
    End { file: FileSeq, path: &'a Path, len: u64, position: u64, end: FileEnd },
}

/// The shard that the files of a directory belong to: that of a block in its place, else of one in a wrong place of its
/// file. `None` if there is neither.
pub(super) async fn find_shard<D: Disk>(disk: &D, dir: &Path) -> Result<Option<Uuid>, WalError> {
    let mut misdirected = None;
    for seq in Listing::read(disk, dir).await?.files {
        let path = wal_path(dir, seq);
        let file = disk.open(&path).await.map_err(WalError::io(IoOp::Open, path.clone()))?;
        let mut position = 0;
        while position + DISK_ALIGN as u64 <= file.len() {
            let bytes = file.read_at(position, DISK_ALIGN).await;
            let bytes = bytes.map_err(WalError::io(IoOp::Read, path.clone()))?;
            if let Ok(header) = BlockHeader::decode(&bytes)
                && header.place.file == seq
                && header.check_table(&bytes).is_ok()
            {
                if header.place.position == position {
                    return Ok(Some(header.place.shard));
                }
                misdirected.get_or_insert(header.place.shard);
            }
            position += DISK_ALIGN as u64;
        }
    }
    Ok(misdirected)
}

/// Walks over all files, oldest first.
pub(super) async fn walk<D: Disk>(
    disk: &D,
    dir: &Path,
    shard: Uuid,
    mut visit: impl FnMut(Item<'_>),
) -> Result<(), WalError> {
    let files = Listing::read(disk, dir).await?.files;
    let mut expected = None;
    for (at, seq) in files.iter().enumerate() {
        let path = wal_path(dir, *seq);
        let file = disk.open(&path).await.map_err(WalError::io(IoOp::Open, path.clone()))?;
        let next_first = match files.get(at + 1) {
            Some(next) => first_header(disk, dir, shard, *next).await?,
            None => None,
        };
        let mut scanner = Scanner::new(&file, shard, *seq);
        let is_newest = at + 1 == files.len();
        let walk = FileWalk { file: &file, path: &path, shard, seq: *seq, next_first, is_newest };
        expected = walk.run(&mut scanner, expected, &mut visit).await?;
    }
    Ok(())
}

/// The number of a file's first block, if its header is whole.
async fn first_header<D: Disk>(
    disk: &D,
    dir: &Path,
    shard: Uuid,
    seq: FileSeq,
) -> Result<Option<BlockSeq>, WalError> {
    let path = wal_path(dir, seq);
    let file = disk.open(&path).await.map_err(WalError::io(IoOp::Open, path.clone()))?;
    let mut scanner = Scanner::new(&file, shard, seq);
    Ok(match scanner.read(0).await.map_err(WalError::io(IoOp::Read, path))? {
        Found::Block(block) => Some(block.header().place.sequence),
        Found::Invalid { .. } | Found::End => None,
    })
}

struct FileWalk<'a, F> {
    file: &'a F,
    path: &'a Path,
    shard: Uuid,
    seq: FileSeq,
    next_first: Option<BlockSeq>,
    is_newest: bool,
}

impl<F: DiskFile> FileWalk<'_, F> {
    /// Returns the number that the next file's first block must have.
    async fn run(
        &self,
        scanner: &mut Scanner<'_, F>,
        mut expected: Option<BlockSeq>,
        visit: &mut impl FnMut(Item<'_>),
    ) -> Result<Option<BlockSeq>, WalError> {
        let io = |source| WalError::Io { op: IoOp::Read, path: self.path.to_owned(), source };
        let (mut position, mut in_start) = (0, true);
        loop {
            let torn = |fault, header| torn_tail(position, self.file.len(), fault, header);
            let (fault, torn) = match scanner.read(position).await.map_err(io)? {
                Found::Block(block) if is_next(&block, in_start, expected) => {
                    let header = *block.header();
                    visit(Item::Block { file: self.seq, position, block: &block });
                    in_start = in_start && header.flags & FLAG_LAST_CHECKPOINT == 0;
                    position += header.padded_len();
                    expected = Some(BlockSeq(header.place.sequence.0 + 1));
                    continue;
                }
                Found::Block(block) if block.header().kind == BlockKind::Footer => {
                    (BlockFault::Kind { kind: BlockKind::Footer as u8 }, None)
                }
                Found::Block(block) => {
                    let found = block.header().place.sequence;
                    let expected = expected.unwrap_or(BlockSeq(0));
                    let fault = BlockFault::Sequence { expected, found };
                    (fault, torn(fault, None))
                }
                Found::Invalid { fault, header } => (fault, torn(fault, header)),
                Found::End => (BlockFault::Short, None),
            };
            let above = expected.unwrap_or(BlockSeq(0));
            let mut next = scanner.find_block(position, above).await.map_err(io)?;
            if next.is_none() && self.is_newest {
                // Recovery takes a header in a wrong place, too, for proof that blocks are gone.
                let stray = scanner.find_later(position, above).await.map_err(io)?;
                next = stray.map(|at| (at + DISK_ALIGN as u64, BlockSeq(above.0 + 1)));
            }
            let Some((next, last_block)) = self.resume(position, expected, next) else {
                let end = self.end(in_start, torn).await?;
                let (file, len) = (self.seq, self.file.len());
                visit(Item::End { file, path: self.path, len, position, end });
                return Ok(expected);
            };
            visit(Item::Damage(&Region {
                file: self.seq,
                path: self.path.to_owned(),
                position,
                bytes: next - position,
                first_block: expected,
                last_block,
                checkpoint: in_start,
                fault,
            }));
            in_start = false;
            position = next;
            expected = Some(BlockSeq(last_block.0 + 1));
        }
    }

    /// Where a damaged region ends, and the last block in it; `None` if there is no damage but the file's end.
    fn resume(
        &self,
        position: u64,
        expected: Option<BlockSeq>,
        next: Option<(u64, BlockSeq)>,
    ) -> Option<(u64, BlockSeq)> {
        if let Some((next, sequence)) = next {
            return Some((next, BlockSeq(sequence.0 - 1)));
        }
        // The next file shows that there were blocks which no block of this file follows.
        let (expected, next_first) = (expected?, self.next_first?);
        (expected < next_first).then(|| (position + DISK_ALIGN as u64, BlockSeq(next_first.0 - 1)))
    }

    async fn end(&self, in_start: bool, torn: Option<TornTail>) -> Result<FileEnd, WalError> {
        if in_start {
            return Ok(FileEnd::Unstarted);
        }
        let footer = footer::read(self.file, self.path, self.shard, self.seq).await?;
        Ok(match footer {
            Some(_) => FileEnd::Footer,
            None if self.next_first.is_some() => FileEnd::NoFooter,
            None => FileEnd::Open { torn },
        })
    }
}

fn is_next(block: &Block, in_start: bool, expected: Option<BlockSeq>) -> bool {
    let sequence = block.header().place.sequence;
    if in_start {
        let kind = block.header().kind == BlockKind::Checkpoint;
        return kind && expected.is_none_or(|expected| expected == sequence);
    }
    follows(block, expected.unwrap_or(sequence))
}

/// The bytes of a region, in pieces fit for a write.
pub(super) async fn copy_region<F: DiskFile>(
    from: &F,
    to: &F,
    region: &Region,
) -> std::io::Result<()> {
    let mut at = 0;
    while at < region.bytes {
        let len = (region.bytes - at).min(super::block::PART_BYTES as u64);
        let bytes = from.read_at(region.position + at, to_usize(len)).await?;
        let mut buf = to.alloc(to_usize(len));
        buf.as_mut().copy_from_slice(&bytes);
        to.write_at(buf, at).await?;
        at += len;
    }
    to.sync_data().await
}
