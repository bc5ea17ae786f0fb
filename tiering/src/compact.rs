//! Compaction: of the records of a partition with one key only the newest stays, and at last not even that, if it is a
//! tombstone.
//!
//! The segments of a partition are a clean part, whose keys were compared with each other before, and a dirty part
//! behind it. A round goes through the dirty part and maps each key to the offset of its newest record, then writes both
//! parts anew without the records that have a newer one, neighbours together as far as they fit one segment. Oldest
//! first, so a record goes before the tombstone behind it does. What a record's fate is:
//!
//! | record | |
//! |---|---|
//! | of a key with a newer record in the dirty part | goes |
//! | without a key | goes: no key can replace it, and the broker takes none for a compacted topic |
//! | tombstone | its batch gets a delete horizon in the first round that writes it; goes when that has passed |
//! | any other | stays, at its offset |
//!
//! A batch without losses is copied as it is. One that loses records keeps its offsets, its producer, its sequence and
//! its codec; one that loses all goes. Kafka keeps the last batch of an active producer for its sequence: here that is in
//! the group's checkpoints, which do not come from segments. Batches of control records and of transactions stay as they
//! are, and so does one whose records do not decode: it is counted and never a reason to lose it.
//!
//! The map may be too small. It takes as many dirty segments as it can, and the rest is left to the next round. Where it
//! is too small for one segment, the keys are parted by their hashes, and the segments are written once for each part:
//! slow, but in the memory that there is. Until the last part the segment stays dirty and no tombstone goes.
//!
//! Keys are told apart by a keyed hash of 128 bits. Who does not know its key, which is drawn for each round, cannot find
//! two keys with the same hash.
//!
//! - I1: the newest record of a key stays, unless it is a tombstone whose horizon has passed.
//! - I2: a segment is durable before it is handed to `done`, and it stands for all offsets of those it was made from.
//! - I3: in memory are the map, one output segment, one batch with its records twice, and a window of the input.
//! - I4: a round that has nothing to change writes nothing; after one there is no tombstone whose horizon has passed.

mod filter;
mod map;
mod plan;
mod round;

use std::path::{Path, PathBuf};

use chronik_engine::batch::BatchError;
use chronik_engine::disk::Disk;
use chronik_engine::ids::Offset;
use chronik_engine::segment::{Segment, SegmentError, SegmentId, SegmentReader};

use self::map::KeyPart;
pub use self::plan::{CompactionReason, wants_compaction};
use self::round::Round;
use crate::pace::{Pace, SYNC_COST_BYTES};

/// What a topic and the broker are configured to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompactionSettings {
    /// `min.cleanable.dirty.ratio`
    pub min_cleanable_dirty_ratio: f64,
    /// `min.compaction.lag.ms`
    pub min_compaction_lag_ms: i64,
    /// `max.compaction.lag.ms`
    pub max_compaction_lag_ms: i64,
    /// `delete.retention.ms`
    pub delete_retention_ms: i64,
    /// The size up to which neighbours become one segment.
    pub segment_bytes_max: u64,
    /// The memory for the map of keys.
    pub map_bytes_max: usize,
}

/// One round of compaction of a partition.
#[derive(Debug, Clone)]
pub struct CompactionJob {
    /// Where its segments are.
    pub dir: PathBuf,
    /// Whose they are, and the term that the new ones get.
    pub id: SegmentId,
    /// Oldest first: the compacted ones, then the others.
    pub segments: Vec<Segment>,
    /// Segments that end after it are left alone.
    pub up_to: Offset,
    /// See there.
    pub settings: CompactionSettings,
    /// Unknown to clients, and another one for each round.
    pub hash_key: [u8; 16],
    /// The time.
    pub now_ms: i64,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// The offset after the last that is compacted now.
    pub clean_to: Option<Offset>,
    /// Whether dirty segments are left that only the map had no room for.
    pub is_partial: bool,
    /// When the next tombstones may go, rounded up to seconds: for [`wants_compaction`].
    pub delete_horizon_ms: Option<i64>,
    /// Bytes of the batches that were read to be written anew.
    pub bytes_read: u64,
    /// Bytes of the batches that were written.
    pub bytes_written: u64,
    /// Records that went.
    pub records_dropped: u64,
    /// Batches that stay because their records do not decode.
    pub batches_unreadable: u64,
}

/// Why a round did not end. What was handed to `done` before stays.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// A segment cannot be read or written.
    #[error(transparent)]
    Segment {
        /// What is wrong.
        #[from]
        source: SegmentError,
    },
    /// A batch that a segment handed out is none.
    #[error("a batch of {path} cannot be compacted")]
    Batch {
        /// The segment.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: BatchError,
    },
    /// The file holds another partition's records.
    #[error("{path} holds another partition than its name says")]
    Foreign {
        /// The segment.
        path: PathBuf,
    },
    /// No part of the keys fits the map, however small.
    #[error("the map of keys does not even take a small part of them")]
    MapTooSmall,
}

/// Does a round. Each segment that is in its place is handed to `done`, which may replace in the manifest those that it
/// stands for and remove them. Not cancel-safe.
///
/// # Errors
/// If the disk fails, or a segment is damaged.
pub async fn compact<D: Disk>(
    disk: &D,
    job: &CompactionJob,
    pace: &mut impl Pace,
    done: &mut impl FnMut(Segment),
) -> Result<Compacted, CompactError> {
    let parts = plan::parts(&job.segments, job.up_to, &job.settings, job.now_ms);
    let (mut clean, mut dirty) = (parts.clean.to_vec(), parts.dirty.to_vec());
    let mut round = Round::new(disk, job, pace, done, &dirty);
    let mut part = KeyPart::ALL;
    // Each turn takes a segment away, or halves the part of the keys, or goes on to the next part.
    while !dirty.is_empty() {
        let mapped = round.map(&dirty, part).await?;
        if mapped == 0 {
            dirty.truncate(1);
            part = part.half().ok_or(CompactError::MapTooSmall)?;
            continue;
        }
        dirty.truncate(mapped);
        if part.is_last() {
            break;
        }
        clean = round.rewrite_part(&clean).await?;
        dirty = round.rewrite_part(&dirty).await?;
        part = part.next();
    }
    let is_partial = dirty.len() < parts.dirty.len();
    let clean_to = dirty.last().or(clean.last()).map(|segment| segment.end_offset);
    if dirty.is_empty() {
        round.sweep(&clean).await?;
    } else {
        clean.append(&mut dirty);
        for group in plan::groups(&clean, job.settings.segment_bytes_max) {
            round.rewrite(group).await?;
        }
    }
    Ok(Compacted { clean_to, is_partial, ..round.finish() })
}

/// When the next tombstones may go: what [`Compacted::delete_horizon_ms`] was, after a restart. Reads the ends of each
/// compacted segment. Cancel-safe.
///
/// # Errors
/// If the disk fails, or a segment is damaged.
pub async fn delete_horizon<D: Disk>(
    disk: &D,
    dir: &Path,
    id: SegmentId,
    segments: &[Segment],
    pace: &mut impl Pace,
) -> Result<Option<i64>, SegmentError> {
    let mut horizon_ms: Option<i64> = None;
    for segment in segments.iter().filter(|segment| segment.is_compacted) {
        let path = dir.join(segment.file_name(id.topic, id.partition));
        let reader = SegmentReader::open(disk, &path).await?;
        horizon_ms = earlier(horizon_ms, reader.summary().delete_horizon_ms());
        pace.spend(SYNC_COST_BYTES).await;
    }
    Ok(horizon_ms)
}

fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    one.into_iter().chain(other).min()
}
