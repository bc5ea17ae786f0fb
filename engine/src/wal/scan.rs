//! Reading a file block by block, as recovery, inspection and repair do.
//!
//! It tells a valid block from an invalid one and finds the next header behind an invalid one. What that means (a torn
//! tail or damage) is for [`super::recovery`] to say.

use std::io;

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::block::{Block, BlockFault, BlockHeader, BlockKind, PART_BYTES};
use super::to_usize;
use crate::disk::{DISK_ALIGN, DiskFile};
use crate::ids::{BlockSeq, FileSeq};

/// Reads a range of whole sectors in pieces of at most [`PART_BYTES`].
pub(super) async fn read_span<F: DiskFile>(
    file: &F,
    position: u64,
    len: usize,
) -> io::Result<Bytes> {
    if len <= PART_BYTES {
        return file.read_at(position, len).await;
    }
    let mut whole = BytesMut::with_capacity(len);
    while whole.len() < len {
        let piece = (len - whole.len()).min(PART_BYTES);
        whole.extend_from_slice(&file.read_at(position + whole.len() as u64, piece).await?);
    }
    Ok(whole.freeze())
}

/// What stands at a position.
#[derive(Debug)]
pub(super) enum Found {
    /// A whole block in its right place.
    Block(Block),
    /// Not that. The header is there if it belongs to this place, whatever is wrong behind it.
    Invalid { fault: BlockFault, header: Option<BlockHeader> },
    /// The file ends.
    End,
}

/// Reads one file from some position on, through one large window.
#[derive(Debug)]
pub(super) struct Scanner<'a, F> {
    file: &'a F,
    shard: Uuid,
    seq: FileSeq,
    /// Blocks end before this.
    end: u64,
    window_position: u64,
    window: Bytes,
    /// Bytes read from the disk so far.
    pub bytes_read: u64,
}

impl<'a, F: DiskFile> Scanner<'a, F> {
    pub fn new(file: &'a F, shard: Uuid, seq: FileSeq) -> Scanner<'a, F> {
        // A file whose length is not whole sectors was cut by someone else; what is beyond cannot hold a block.
        let end = file.len() - file.len() % DISK_ALIGN as u64;
        let window = Bytes::new();
        Scanner { file, shard, seq, end, window_position: 0, window, bytes_read: 0 }
    }

    /// At least `len` bytes at `position`, or fewer where the file ends.
    async fn at(&mut self, position: u64, len: usize) -> io::Result<Bytes> {
        let inside = position.checked_sub(self.window_position).map(to_usize);
        if let Some(from) = inside
            && from < self.window.len()
            && (self.window.len() - from >= len
                || self.window_position + self.window.len() as u64 >= self.end)
        {
            return Ok(self.window.slice(from..));
        }
        let room = to_usize(self.end.saturating_sub(position));
        let wanted = len.max(PART_BYTES).next_multiple_of(DISK_ALIGN).min(room);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        self.window = read_span(self.file, position, wanted).await?;
        self.window_position = position;
        self.bytes_read += wanted as u64;
        Ok(self.window.clone())
    }

    /// What stands at `position`.
    pub async fn read(&mut self, position: u64) -> io::Result<Found> {
        if position >= self.end {
            return Ok(Found::End);
        }
        let bytes = self.at(position, DISK_ALIGN).await?;
        let header = match BlockHeader::decode(&bytes) {
            Ok(header) => header,
            Err(fault) => return Ok(Found::Invalid { fault, header: None }),
        };
        if let Err(fault) = header.check_place(self.shard, self.seq, position) {
            return Ok(Found::Invalid { fault, header: None });
        }
        let header = Some(header);
        let len = to_usize(header.map_or(0, |header| header.padded_len()));
        if len as u64 > self.end - position {
            return Ok(Found::Invalid { fault: BlockFault::Short, header });
        }
        // The length is not trusted yet, but it is no more than the file holds.
        let bytes = self.at(position, len).await?;
        match Block::decode(bytes) {
            Ok(block) => Ok(Found::Block(block)),
            Err(fault) => Ok(Found::Invalid { fault, header }),
        }
    }

    /// The first header at `position` or behind it that proves that all blocks below `above` were durable: one of this
    /// file with a greater number. A whole table is proof enough, whatever became of the payloads behind it, and so is
    /// a block in a wrong place: it was not written at all before those it proves. Only for a checkpoint block the
    /// place counts, and that it is not the invalid block itself: a torn or misdirected one is all that there is of a file
    /// that never came into use.
    pub async fn find_later(&mut self, position: u64, above: BlockSeq) -> io::Result<Option<u64>> {
        let mut at = position;
        while at < self.end {
            let bytes = self.at(at, DISK_ALIGN).await?;
            if let Ok(header) = BlockHeader::decode(&bytes)
                && self.is_proof(&header, position, at)
                && header.place.sequence > above
                && header.table_end() <= self.end - at
            {
                let bytes = self.at(at, to_usize(header.table_end())).await?;
                if header.check_table(&bytes).is_ok() {
                    return Ok(Some(at));
                }
            }
            at += DISK_ALIGN as u64;
        }
        Ok(None)
    }

    /// The next header behind `position` that is in its place and has a number above `above`, with that number.
    pub async fn find_block(
        &mut self,
        position: u64,
        above: BlockSeq,
    ) -> io::Result<Option<(u64, BlockSeq)>> {
        let mut at = position + DISK_ALIGN as u64;
        while at < self.end {
            let bytes = self.at(at, DISK_ALIGN).await?;
            if let Ok(header) = BlockHeader::decode(&bytes)
                && header.check_place(self.shard, self.seq, at).is_ok()
                && header.kind != BlockKind::Footer
                && header.place.sequence > above
                && header.padded_len() <= self.end - at
            {
                let bytes = self.at(at, to_usize(header.table_end())).await?;
                if header.check_table(&bytes).is_ok() {
                    return Ok(Some((at, header.place.sequence)));
                }
            }
            at += DISK_ALIGN as u64;
        }
        Ok(None)
    }

    fn is_proof(&self, header: &BlockHeader, from: u64, at: u64) -> bool {
        let ours = header.place.shard == self.shard && header.place.file == self.seq;
        match header.kind {
            BlockKind::Footer => false,
            BlockKind::Checkpoint => ours && header.place.position == at && at > from,
            _ => ours,
        }
    }
}
