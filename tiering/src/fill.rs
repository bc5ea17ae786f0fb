//! From another replica's records to segments: what a replica copies before it takes a snapshot, or because it cannot read
//! its own any more.
//!
//! The batches come as they are sent to consumers, and lie in memory as they were received; they are written as they
//! are. Whoever gave them is another node, so they are checked for what a segment needs of them: that they are whole and
//! follow each other. Their content was checked where it was read, and on its way.
//!
//! - I1: a segment is told only once it is durable, in the order of the offsets; together they stand for a range without
//!   a gap.
//! - I2: no memory is taken but for a place of each batch, and the writer's buffer.

use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use chronik_engine::batch::BatchHeader;
use chronik_engine::disk::Disk;
use chronik_engine::ids::Offset;
use chronik_engine::segment::{
    Segment, SegmentError, SegmentFault, SegmentId, SegmentPlan, SegmentWriter,
};

/// Batches of a partition that are to become segments.
#[derive(Debug)]
pub struct FillJob {
    /// Where segments go.
    pub segments_dir: PathBuf,
    /// Whose they are.
    pub id: SegmentId,
    /// The first offset that they stand for. Batches that end before are left out; one may lie across.
    pub from: Offset,
    /// Where it is known: up to here they stand for, and batches from here on are left out.
    pub up_to: Option<Offset>,
    /// Above that of segments whose place they take.
    pub generation: u32,
    /// Whole batches, one after the other.
    pub chunks: Vec<Bytes>,
    /// The largest segment; one batch may be larger.
    pub segment_bytes_max: u64,
}

/// The batches of one segment.
struct Part<'a> {
    batches: Vec<&'a [u8]>,
    first_offset: Offset,
    end_offset: Offset,
    bytes: u64,
    max_timestamp_ms: i64,
}

/// Writes segments, at the pace of the disk, and says which are durable (I1) and whether these are all. The first thing that
/// fails ends it: the disk, or batches that do not follow each other. Not cancel-safe.
pub async fn write_fill<D: Disk>(
    disk: &D,
    job: &FillJob,
) -> (Vec<Segment>, Result<(), SegmentError>) {
    let mut segments: Vec<Segment> = Vec::new();
    let parts = match parts(job) {
        Ok(parts) => parts,
        Err(error) => return (segments, Err(error)),
    };
    for (at, part) in parts.iter().enumerate() {
        let from = segments.last().map_or(job.from, |last| last.end_offset);
        let up_to = job.up_to.filter(|_| at + 1 == parts.len()).unwrap_or(part.end_offset);
        match write_part(disk, job, from..up_to, part).await {
            Ok(segment) => segments.push(segment),
            Err(error) => return (segments, Err(error)),
        }
    }
    (segments, Ok(()))
}

/// The batches of the job, as many together as a segment takes.
fn parts(job: &FillJob) -> Result<Vec<Part<'_>>, SegmentError> {
    let not_batches =
        || SegmentError::NotPlanned { path: job.segments_dir.clone(), fault: SegmentFault::Batch };
    let mut parts: Vec<Part<'_>> = Vec::new();
    for chunk in &job.chunks {
        let mut rest = &chunk[..];
        while let Some(header) = BatchHeader::read(rest) {
            let size = header.size().ok().filter(|_| header.last_offset_delta >= 0);
            let split = size.and_then(|size| rest.split_at_checked(size));
            let (batch, after) = split.filter(|(b, _)| !b.is_empty()).ok_or_else(not_batches)?;
            rest = after;
            let count = header.last_offset_delta.unsigned_abs().saturating_add(1);
            let end_offset = header.base_offset.plus(count);
            let is_behind = job.up_to.is_some_and(|up_to| header.base_offset >= up_to);
            if end_offset <= job.from || is_behind {
                continue;
            }
            if job.up_to.is_some_and(|up_to| end_offset > up_to) {
                return Err(not_batches());
            }
            let bytes = batch.len() as u64;
            let timestamp_ms = if header.record_count == 0 { -1 } else { header.max_timestamp_ms };
            match parts.last_mut() {
                Some(part) if part.bytes + bytes <= job.segment_bytes_max => {
                    part.batches.push(batch);
                    part.end_offset = end_offset;
                    part.bytes += bytes;
                    part.max_timestamp_ms = part.max_timestamp_ms.max(timestamp_ms);
                }
                _ => parts.push(Part {
                    batches: vec![batch],
                    first_offset: header.base_offset,
                    end_offset,
                    bytes,
                    max_timestamp_ms: timestamp_ms,
                }),
            }
        }
        if !rest.is_empty() {
            return Err(not_batches());
        }
    }
    let follow = |pair: &[Part<'_>]| pair[1].first_offset >= pair[0].end_offset;
    if !parts.is_empty() && parts.windows(2).all(follow) { Ok(parts) } else { Err(not_batches()) }
}

async fn write_part<D: Disk>(
    disk: &D,
    job: &FillJob,
    range: Range<Offset>,
    part: &Part<'_>,
) -> Result<Segment, SegmentError> {
    let id = job.id;
    let plan = SegmentPlan {
        id,
        base_offset: part.first_offset,
        payload_bytes: part.bytes,
        batches: u32::try_from(part.batches.len()).unwrap_or(u32::MAX),
    };
    let segment = Segment {
        base_offset: range.start,
        end_offset: range.end,
        file_bytes: plan.file_bytes(),
        max_timestamp_ms: part.max_timestamp_ms,
        term: id.term,
        generation: job.generation,
        is_compacted: false,
    };
    let path = job.segments_dir.join(segment.file_name(id.topic, id.partition));
    let mut writer = SegmentWriter::create(disk.clone(), &path, plan).await?.in_haste();
    for batch in &part.batches {
        writer.push(batch).await?;
    }
    let summary = writer.finish().await?;
    assert!(summary.end_offset == part.end_offset, "{segment:?} holds all its batches");
    Ok(segment)
}
