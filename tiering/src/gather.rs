//! Batches of one partition on their way into a segment: in memory until there are enough of them.

use std::path::Path;

use bytes::BytesMut;
use chronik_engine::batch::BatchHeader;
use chronik_engine::disk::Disk;
use chronik_engine::ids::Offset;
use chronik_engine::segment::{
    Segment, SegmentError, SegmentFault, SegmentId, SegmentPlan, SegmentWriter,
};

use crate::pace::{Pace, SYNC_COST_BYTES};

/// What a segment will stand for, beside its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The first offset.
    pub base_offset: Offset,
    /// The offset after the last.
    pub end_offset: Offset,
    /// See [`Segment::generation`].
    pub generation: u32,
    /// See [`Segment::is_compacted`].
    pub is_compacted: bool,
}

/// Batches in the order of their offsets.
#[derive(Debug, Default)]
pub struct Gathered {
    bytes: BytesMut,
    batches: u32,
    first_offset: Option<Offset>,
    max_timestamp_ms: i64,
}

impl Gathered {
    /// None so far.
    #[must_use]
    pub fn new() -> Gathered {
        Gathered { max_timestamp_ms: -1, ..Gathered::default() }
    }

    /// Takes the next batch, its base offset and leader epoch patched in.
    pub fn push(&mut self, batch: &[u8], base_offset: Offset, max_timestamp_ms: i64) {
        self.bytes.extend_from_slice(batch);
        self.batches += 1;
        self.first_offset.get_or_insert(base_offset);
        self.max_timestamp_ms = self.max_timestamp_ms.max(max_timestamp_ms);
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches == 0
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Writes them as a segment, durable on return. There is at least one. Not cancel-safe.
    ///
    /// # Errors
    /// If the disk fails, or what was pushed are not batches.
    pub async fn write<D: Disk>(
        &self,
        disk: &D,
        dir: &Path,
        id: SegmentId,
        cut: Cut,
        pace: &mut impl Pace,
    ) -> Result<Segment, SegmentError> {
        let plan = SegmentPlan {
            id,
            base_offset: self.first_offset.unwrap_or(cut.base_offset),
            payload_bytes: self.bytes(),
            batches: self.batches,
        };
        let segment = Segment {
            base_offset: cut.base_offset,
            end_offset: cut.end_offset,
            file_bytes: plan.file_bytes(),
            max_timestamp_ms: self.max_timestamp_ms,
            term: id.term,
            generation: cut.generation,
            is_compacted: cut.is_compacted,
        };
        let path = dir.join(segment.file_name(id.topic, id.partition));
        let mut writer = SegmentWriter::create(disk.clone(), &path, plan).await?;
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let size = BatchHeader::read(rest).and_then(|header| header.size().ok());
            let Some((batch, after)) = size.and_then(|size| rest.split_at_checked(size)) else {
                writer.discard().await;
                return Err(SegmentError::NotPlanned { path, fault: SegmentFault::Batch });
            };
            writer.push(batch).await?;
            pace.spend(batch.len() as u64).await;
            rest = after;
        }
        let summary = writer.finish().await?;
        assert!(summary.end_offset <= cut.end_offset, "{segment:?} stands for all its batches");
        pace.spend(SYNC_COST_BYTES).await;
        Ok(segment)
    }
}
