//! From a sealed file of the log to segments: each partition's batches become segments of its own.
//!
//! The file is read from its beginning to its end, for as many partitions at once as [`GATHERED_BYTES_MAX`] lets in, so a
//! file with a thousand partitions is read a few times and not a thousand.
//!
//! - I1: a segment is told only once it is durable, in the order of its partition's offsets.
//! - I2: in memory are at most [`GATHERED_BYTES_MAX`] and one block of the log.
//! - I3: of a partition nothing is written that lies behind what cannot be read of it. Others are not held up by that.

use std::path::PathBuf;

use chronik_engine::disk::Disk;
use chronik_engine::ids::{GroupId, Offset, RaftIndex};
use chronik_engine::log_index::Extent;
use chronik_engine::segment::format::{INDEX_ENTRY_BYTES, INDEX_INTERVAL_BYTES, SECTOR_BYTES};
use chronik_engine::segment::{Segment, SegmentError, SegmentId};
use chronik_engine::wal::{ReadError, SealedFile, SealedName};
use thiserror::Error;
use uuid::Uuid;

use crate::gather::{Cut, Gathered};
use crate::pace::Pace;

/// What is gathered before it is written.
pub const GATHERED_BYTES_MAX: u64 = 64 << 20;

/// What a segment has beside its batches and the entries of its index: header, footer, and two sectors filled up.
const SECTORS_MORE: u64 = 4;

/// A sealed file, and what of it is to be written.
#[derive(Debug)]
pub struct WriteJob {
    /// The file.
    pub wal_file: SealedName,
    /// The shard that it belongs to.
    pub shard_uuid: Uuid,
    /// Where segments go.
    pub segments_dir: PathBuf,
    /// What of it becomes segments.
    pub parts: Vec<WritePart>,
}

/// What a sealed file holds of one partition.
#[derive(Debug, Clone, Copy)]
pub struct WritePart {
    /// Its group.
    pub group: GroupId,
    /// Whose segments they are.
    pub id: SegmentId,
    /// What is to be written begins here: where the last segment ends, or behind that, where the log does. Batches that end
    /// before are passed over.
    pub from: Offset,
    /// Where the last segment ends. Without one, the first may begin before `from`, with its first batch.
    pub follows: Option<Offset>,
    /// The last entry that is committed and in the file.
    pub last: RaftIndex,
    /// The largest segment; one batch may be larger.
    pub segment_bytes_max: u64,
}

/// Why segments could not be written. What was told of before is there.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The file of the log could not be opened.
    #[error("opening the log for segments: {0}")]
    Open(#[source] ReadError),
    /// What the log holds of a partition could not be read.
    #[error("reading the log for segments: {0}")]
    Read(#[from] ReadError),
    /// A segment could not be written.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// There is no room for all of them. Nothing was written: a part would take the room that others need to end.
    #[error("segments of {needed} bytes are to be written where {available} are free")]
    NoRoom {
        /// What they take.
        needed: u64,
        /// What the disk has.
        available: u64,
    },
}

/// A part that is not, or not wholly, in segments because of what the log holds of it.
#[derive(Debug)]
pub struct FailedPart {
    /// Its group.
    pub group: GroupId,
    /// What stands in the way.
    pub error: WriteError,
}

impl WriteError {
    /// Whether it is about one partition, and others may be written all the same.
    fn is_of_part(&self) -> bool {
        match self {
            WriteError::Read(_) | WriteError::Segment(SegmentError::NotPlanned { .. }) => true,
            WriteError::Open(_) | WriteError::Segment(_) | WriteError::NoRoom { .. } => false,
        }
    }
}

/// Writes what the job names and tells `done` of each segment; says which parts could not be read. Not cancel-safe.
///
/// # Errors
/// If the file cannot be opened, or segments cannot be written.
pub async fn write_segments<D: Disk>(
    disk: &D,
    job: &WriteJob,
    pace: &mut impl Pace,
    done: &mut impl FnMut(&WritePart, Segment),
) -> Result<Vec<FailedPart>, WriteError> {
    let file = SealedFile::open(disk, job.shard_uuid, &job.wal_file).await;
    let file = file.map_err(WriteError::Open)?;
    let needed = job.parts.iter().map(|part| bytes_needed(&file, part)).sum();
    // What a file system does not tell shows when it is full.
    let available = disk.available(&job.segments_dir).await.unwrap_or(u64::MAX);
    if available < needed {
        return Err(WriteError::NoRoom { needed, available });
    }
    let mut failed = Vec::new();
    let mut from = 0;
    while from < job.parts.len() {
        let to = set_end(&file, &job.parts, from);
        failed.append(&mut write_set(disk, &file, job, &job.parts[from..to], pace, done).await?);
        from = to;
    }
    Ok(failed)
}

/// What the segments of a part take at most.
fn bytes_needed<D: Disk>(file: &SealedFile<D>, part: &WritePart) -> u64 {
    let extents = file.extents(part.group, part.from, part.last);
    let payload: u64 = extents.map(|extent| u64::from(extent.payload_bytes)).sum();
    // None is written before the next batch would make it too large, so two that follow one another hold more than that.
    let largest = payload.div_ceil(part.segment_bytes_max.clamp(1, GATHERED_BYTES_MAX));
    let segments = (2 * largest).saturating_sub(1);
    let index_bytes = payload / INDEX_INTERVAL_BYTES * INDEX_ENTRY_BYTES as u64;
    payload + index_bytes + segments * SECTORS_MORE * SECTOR_BYTES
}

/// The end of the set that begins at `from`: as many parts as fit into memory together, at least one.
fn set_end<D: Disk>(file: &SealedFile<D>, parts: &[WritePart], from: usize) -> usize {
    let mut bytes = 0;
    for (at, part) in parts.iter().enumerate().skip(from) {
        let extents = file.extents(part.group, part.from, part.last);
        bytes += extents.map(|extent| u64::from(extent.payload_bytes)).sum::<u64>();
        if bytes > GATHERED_BYTES_MAX && at > from {
            return at;
        }
    }
    parts.len()
}

/// A part and what is gathered of it.
struct Gathering<'a> {
    part: &'a WritePart,
    gathered: Gathered,
    /// Where the next segment begins, once that is known.
    base_offset: Option<Offset>,
    end_offset: Offset,
    /// Why nothing more of it is read (I3).
    failure: Option<WriteError>,
}

async fn write_set<D: Disk>(
    disk: &D,
    file: &SealedFile<D>,
    job: &WriteJob,
    parts: &[WritePart],
    pace: &mut impl Pace,
    done: &mut impl FnMut(&WritePart, Segment),
) -> Result<Vec<FailedPart>, WriteError> {
    let mut set: Vec<Gathering<'_>> = parts
        .iter()
        .map(|part| Gathering {
            part,
            gathered: Gathered::new(),
            base_offset: part.follows.map(|_| part.from),
            end_offset: part.from,
            failure: None,
        })
        .collect();
    let mut extents: Vec<(usize, Extent)> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let of_part = file.extents(part.group, part.from, part.last);
        extents.extend(of_part.map(|extent| (at, *extent)));
    }
    extents.sort_unstable_by_key(|(_, extent)| (extent.block_position, extent.first_slot));
    for (at, extent) in extents {
        let gathering = &mut set[at];
        if gathering.failure.is_none() {
            let taken = gathering.take(disk, file, job, &extent, pace, done).await;
            gathering.keep_failure(taken)?;
        }
    }
    for gathering in &mut set {
        let written = gathering.write(disk, job, pace, done).await;
        gathering.keep_failure(written)?;
    }
    let failed = |gathering: Gathering<'_>| {
        let group = gathering.part.group;
        gathering.failure.map(|error| FailedPart { group, error })
    };
    Ok(set.into_iter().filter_map(failed).collect())
}

impl Gathering<'_> {
    /// Hands back what is not about this partition alone.
    fn keep_failure(&mut self, result: Result<(), WriteError>) -> Result<(), WriteError> {
        match result {
            Err(error) if error.is_of_part() => {
                self.failure.get_or_insert(error);
                Ok(())
            }
            result => result,
        }
    }

    /// Gathers the batches of an extent.
    async fn take<D: Disk>(
        &mut self,
        disk: &D,
        file: &SealedFile<D>,
        job: &WriteJob,
        extent: &Extent,
        pace: &mut impl Pace,
        done: &mut impl FnMut(&WritePart, Segment),
    ) -> Result<(), WriteError> {
        let part = self.part;
        let batches = file.batches(part.group, extent, part.from, part.last).await;
        pace.spend(file.take_bytes_read()).await;
        for batch in batches? {
            let bytes = self.gathered.bytes() + batch.bytes.len() as u64;
            if bytes > part.segment_bytes_max.min(GATHERED_BYTES_MAX) {
                self.write(disk, job, pace, done).await?;
            }
            // Where the first batch lies across, the segment begins with it; where one is lost, before it.
            self.base_offset.get_or_insert(batch.base_offset.min(part.from));
            self.gathered.push(&batch.bytes, batch.base_offset, batch.max_timestamp_ms);
            self.end_offset = batch.base_offset.plus(batch.offset_count);
        }
        Ok(())
    }

    /// Writes what is gathered, if there is anything.
    async fn write<D: Disk>(
        &mut self,
        disk: &D,
        job: &WriteJob,
        pace: &mut impl Pace,
        done: &mut impl FnMut(&WritePart, Segment),
    ) -> Result<(), WriteError> {
        let Some(base_offset) = self.base_offset.filter(|_| !self.gathered.is_empty()) else {
            return Ok(());
        };
        let (end_offset, id) = (self.end_offset, self.part.id);
        let cut = Cut { base_offset, end_offset, generation: 0, is_compacted: false };
        let gathered = std::mem::replace(&mut self.gathered, Gathered::new());
        let segment = gathered.write(disk, &job.segments_dir, id, cut, pace).await?;
        self.base_offset = Some(end_offset);
        done(self.part, segment);
        Ok(())
    }
}
