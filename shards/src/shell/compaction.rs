//! Segments written anew: compaction of topics that want it, and merging of small neighbours elsewhere.
//!
//! A turn looks at each partition of the shard once. The work itself is the background thread's, one partition at a time,
//! within the bandwidth that is set for it; the manifest changes segment by segment while it goes on.
//!
//! - I1: a partition is read and written anew by one round at a time, repairs among them, so its segments only change under
//!   it where its log start moves. Then the round fails because a file is gone, and the next one does it again; or what it
//!   made takes the place of what is left.
//! - I2: what merging writes leaves the room free that the log's own segments need; where it would not it is put off.
//!   Compaction may be the only thing that can free a full disk, so it takes what room there is, and gives back more once it is
//!   done. Where that is too little it is tried again as soon as there is more.
//! - I3: a partition that cannot be written anew, as one with a damaged segment, holds up no other and is read in vain less
//!   and less often.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chronik_engine::disk::is_full;
use chronik_engine::disk_direct::DirectDisk;
use chronik_engine::ids::{GroupId, Offset};
use chronik_engine::segment::{Segment, SegmentError, SegmentId};
use chronik_ring::{sleep, yield_if_needed};
use chronik_tiering::compact::{
    CompactError, CompactionJob, CompactionSettings, compact, delete_horizon, wants_compaction,
};
use chronik_tiering::failures::Failures;
use chronik_tiering::merge::{MergeLimits, merge, mergeable};
use chronik_tiering::pace::ThreadPace;
use chronik_tiering::room::RoomKept;
use futures_lite::future::block_on;

use super::repair::segment_lost;
use super::shard::{Shard, random_seed};
use super::tiering::{room_for_segments, segment_bytes_max};
use crate::catalog::{PartitionTag, Topic};
use crate::core::{NamedSegment, Unreadable};

/// Between two looks whether something is to be repaired.
const REPAIR_LOOK: Duration = Duration::from_secs(1);

/// When the next tombstones of a partition may go, as far as it is known.
type Horizons = BTreeMap<GroupId, Option<i64>>;

/// What is known from one turn to the next.
#[derive(Debug, Default)]
struct Known {
    horizons: Horizons,
    /// What was free when there was not room enough for a partition (I2).
    no_room: BTreeMap<GroupId, u64>,
    /// How often something was put off (I2), in this turn and in the one before.
    put_off: u32,
    put_off_before: u32,
    /// The partitions that could not be written anew (I3).
    failures: Failures<GroupId>,
    /// Where segments begin that could not be read to be merged: others are merged around them.
    unreadable: BTreeMap<GroupId, BTreeSet<Offset>>,
}

impl Known {
    /// Whether there is more room than there was when a partition found too little.
    async fn has_more_room(&self, shard: &Shard, group: GroupId) -> bool {
        match self.no_room.get(&group) {
            Some(before) => shard.wal.available().await > *before,
            None => false,
        }
    }
}

/// A partition as a turn finds it.
struct Candidate {
    group: GroupId,
    id: SegmentId,
    segments: Vec<Segment>,
}

impl Candidate {
    /// The segment that an error is about.
    fn named_by(&self, error: &CompactError) -> Option<Segment> {
        let path = match error {
            CompactError::Segment { source } => source.path(),
            CompactError::Batch { path, .. } | CompactError::Foreign { path } => path,
            CompactError::MapTooSmall => return None,
        };
        let name = path.file_name()?.to_str()?;
        let (topic, partition) = (self.id.topic, self.id.partition);
        let is_it = |segment: &&Segment| segment.file_name(topic, partition) == name;
        self.segments.iter().find(is_it).copied()
    }
}

/// Looks at all partitions of this shard, time and again, until the shard stops.
pub async fn compaction_loop(shard: Rc<Shard>) {
    let interval = Duration::from_millis(shard.node.config.kafka.log_cleaner_backoff_ms);
    let mut known = Known::default();
    loop {
        rest(&shard, interval).await;
        let partitions: Vec<(GroupId, PartitionTag)> =
            shard.with_core(|core| core.record_partitions().collect());
        for (group, tag) in partitions {
            if shard.stopping.get() {
                return;
            }
            shard.repair().await;
            let topic = shard.catalog().topic_by_id(tag.topic).map(Arc::clone);
            let is_left_alone = known.failures.is_left_alone(&group, shard.clock.now_ns());
            if is_left_alone && !known.has_more_room(&shard, group).await {
                continue;
            }
            known.no_room.remove(&group);
            if let (Some(topic), Some(candidate)) = (topic, candidate(&shard, group, tag)) {
                turn(&shard, &topic, candidate, &mut known).await;
            }
            yield_if_needed().await;
        }
        if known.put_off == 0 && known.put_off_before > 0 {
            tracing::info!(
                shard = shard.id.0,
                "compaction goes on: there is room on the disk again"
            );
        }
        known.put_off_before = std::mem::take(&mut known.put_off);
        let is_here = |group: &GroupId| shard.with_core(|core| core.partition(*group).is_some());
        known.horizons.retain(|group, _| is_here(group));
        known.failures.retain(is_here);
        known.no_room.retain(|group, _| is_here(group));
        known.unreadable.retain(|group, _| is_here(group));
        if shard.stopping.get() {
            return;
        }
    }
}

/// Waits for the next turn, but for repairs (I1): somebody wants to read what they bring.
async fn rest(shard: &Rc<Shard>, interval: Duration) {
    let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
    let until_ns = shard.clock.now_ns().saturating_add(interval_ns);
    let look = if shard.links().is_some() { REPAIR_LOOK } else { interval };
    while !shard.stopping.get() {
        shard.repair().await;
        match until_ns.saturating_sub(shard.clock.now_ns()) {
            0 => return,
            left_ns => sleep(look.min(Duration::from_nanos(left_ns))).await,
        }
    }
}

fn candidate(shard: &Shard, group: GroupId, tag: PartitionTag) -> Option<Candidate> {
    shard.with_core(|core| {
        let manifest = core.segments(group).filter(|manifest| !manifest.is_empty())?;
        let term = core.partition(group)?.leader_epoch;
        let segments = manifest.iter().copied().collect();
        Some(Candidate { group, id: tag.segment_id(shard.node.cluster_uuid, term), segments })
    })
}

async fn turn(shard: &Rc<Shard>, topic: &Topic, candidate: Candidate, known: &mut Known) {
    let (group, partition) = (candidate.group, candidate.id.partition);
    let result = if topic.settings.cleanup.compact {
        compact_one(shard, topic, &candidate, known).await
    } else {
        let unreadable = known.unreadable.remove(&group).unwrap_or_default();
        merge_one(shard, topic, &candidate, unreadable, known).await
    };
    match result {
        Ok(()) => known.failures.forget(&group),
        Err(error) if log_start_moved(shard, &candidate, &error) => {
            tracing::debug!(shard = shard.id.0, topic = %topic.name, "compaction begins again: {error}");
        }
        Err(error) if is_no_room(&error) => {
            known.failures.forget(&group); // no longer and longer pauses
            known.failures.note(group, shard.clock.now_ns());
            known.no_room.insert(group, shard.wal.available().await);
            put_off(shard, topic, known);
        }
        Err(error) => {
            let lost = match &error {
                CompactError::Segment { source } => segment_lost(source),
                _ => candidate.named_by(&error),
            };
            if let Some(segment) = lost {
                shard.want_repair(group, Unreadable::Stored(segment.base_offset));
            }
            let noted = known.failures.note(group, shard.clock.now_ns());
            shard.metrics.borrow_mut().counters.compaction_failures += 1;
            tracing::error!(
                shard = shard.id.0,
                topic = %topic.name,
                partition,
                "segments stay as they are, tried again in {} s: {error}",
                noted.pause.as_secs()
            );
        }
    }
}

fn is_no_room(error: &CompactError) -> bool {
    match error {
        CompactError::Segment { source: SegmentError::Io { source, .. } } => is_full(source),
        _ => false,
    }
}

/// Counts what was put off for want of room, and says so once (I2).
fn put_off(shard: &Shard, topic: &Topic, known: &mut Known) {
    shard.metrics.borrow_mut().counters.compactions_put_off += 1;
    if known.put_off == 0 && known.put_off_before == 0 {
        tracing::warn!(
            shard = shard.id.0,
            topic = %topic.name,
            "compaction and merging are put off: there is too little room on the disk for what they write"
        );
    }
    known.put_off += 1;
}

/// Whether what is written first of these leaves enough free (I2): so much at least gets done.
async fn has_room(shard: &Shard, topic: &Topic, segments: &[Segment]) -> bool {
    let bytes = segments.iter().map(|segment| segment.file_bytes);
    let largest = bytes.clone().max().unwrap_or(0);
    let first = largest.max(segment_bytes_max(topic).min(bytes.sum()));
    shard.wal.leaves_enough(first).await
}

/// Whether a segment went away under the round (I1): its file is gone, and nobody looks for it any more.
fn log_start_moved(shard: &Shard, candidate: &Candidate, error: &CompactError) -> bool {
    let is_gone = match error {
        CompactError::Segment { source: SegmentError::Io { source, .. } } => {
            source.kind() == std::io::ErrorKind::NotFound
        }
        _ => false,
    };
    let named = candidate.named_by(error).filter(|_| is_gone);
    named.is_some_and(|segment| {
        let found = shard.with_core(|core| core.segment_at(candidate.group, segment.base_offset));
        found.map(|found| found.segment) != Some(segment)
    })
}

fn settings(shard: &Shard, topic: &Topic) -> CompactionSettings {
    let settings = &topic.settings;
    CompactionSettings {
        min_cleanable_dirty_ratio: settings.min_cleanable_dirty_ratio.ratio(),
        min_compaction_lag_ms: settings.min_compaction_lag_ms,
        max_compaction_lag_ms: settings.max_compaction_lag_ms,
        delete_retention_ms: settings.delete_retention_ms,
        segment_bytes_max: segment_bytes_max(topic),
        map_bytes_max: shard.node.config.kafka.log_cleaner_dedupe_buffer_size,
    }
}

fn pace(shard: &Shard) -> ThreadPace {
    ThreadPace::new(shard.node.config.kafka.log_cleaner_io_max_bytes_per_second)
}

async fn compact_one(
    shard: &Rc<Shard>,
    topic: &Topic,
    candidate: &Candidate,
    known: &mut Known,
) -> Result<(), CompactError> {
    let settings = settings(shard, topic);
    let Candidate { group, id, ref segments } = *candidate;
    let dir = shard.segments.dir().to_owned();
    let up_to = segments.last().map_or(Offset(0), |last| last.end_offset);
    if !known.horizons.contains_key(&group) && segments.iter().any(|segment| segment.is_compacted) {
        let (dir, segments, mut pace) = (dir.clone(), segments.clone(), pace(shard));
        let find =
            move |disk: &DirectDisk| block_on(delete_horizon(disk, &dir, id, &segments, &mut pace));
        let found = shard.in_background(&shard.background.cleaner, find).await;
        let Some(found) = found else { return Ok(()) };
        known.horizons.insert(group, found?);
    }
    let horizon_ms = known.horizons.get(&group).copied().flatten();
    let now_ms = shard.clock.wall_ms();
    let Some(reason) = wants_compaction(segments, up_to, &settings, horizon_ms, now_ms) else {
        return Ok(());
    };
    let mut hash_key = [0; 16];
    hash_key[..8].copy_from_slice(&random_seed().to_le_bytes());
    hash_key[8..].copy_from_slice(&random_seed().to_le_bytes());
    let segments = segments.clone();
    let job = CompactionJob { dir, id, segments, up_to, settings, hash_key, now_ms };
    let (mesh, shard_id, mut pace) = (shard.mesh().clone(), shard.id, pace(shard));
    let work = move |disk: &DirectDisk| {
        let mut done = |segment: Segment| {
            let tell = move |shard: &Rc<Shard>| replace(shard, group, id, segment);
            mesh.send_patiently(shard_id, Box::new(tell));
        };
        block_on(compact(disk, &job, &mut pace, &mut done))
    };
    let Some(compacted) = shard.in_background(&shard.background.cleaner, work).await else {
        return Ok(());
    };
    let compacted = compacted?;
    known.horizons.insert(group, compacted.delete_horizon_ms);
    tracing::info!(
        shard = shard.id.0,
        topic = %topic.name,
        partition = id.partition,
        ?reason,
        bytes_read = compacted.bytes_read,
        bytes_written = compacted.bytes_written,
        records_dropped = compacted.records_dropped,
        batches_unreadable = compacted.batches_unreadable,
        "compacted"
    );
    let counters = &mut shard.metrics.borrow_mut().counters;
    counters.compactions += 1;
    counters.compaction_bytes_read += compacted.bytes_read;
    counters.compaction_bytes_written += compacted.bytes_written;
    Ok(())
}

/// The first record of a merged segment may stay longer than `retention.ms` says by this part of it, for the last one's
/// sake.
const RETENTION_EXCESS_PART: i64 = 4;

fn merge_limits(topic: &Topic) -> MergeLimits {
    let settings = &topic.settings;
    let retention_ms = settings.retention_ms.filter(|_| settings.cleanup.delete);
    let span_ms_max =
        retention_ms.map_or(i64::MAX, |ms| settings.segment_ms.min(ms / RETENTION_EXCESS_PART));
    MergeLimits { bytes_max: segment_bytes_max(topic), span_ms_max }
}

/// Merges the first neighbours that are worth it; `unreadable` says where those begin that could not be read before.
async fn merge_one(
    shard: &Rc<Shard>,
    topic: &Topic,
    candidate: &Candidate,
    mut unreadable: BTreeSet<Offset>,
    known: &mut Known,
) -> Result<(), CompactError> {
    let Candidate { group, id, ref segments } = *candidate;
    unreadable.retain(|offset| segments.iter().any(|segment| segment.base_offset == *offset));
    let small = mergeable(segments, merge_limits(topic), &unreadable).map(<[_]>::to_vec);
    if !unreadable.is_empty() {
        known.unreadable.insert(group, unreadable);
    }
    let Some(small) = small else { return Ok(()) };
    if !has_room(shard, topic, &small).await {
        put_off(shard, topic, known);
        return Ok(());
    }
    let (dir, mut pace) = (shard.segments.dir().to_owned(), pace(shard));
    let room_bytes = room_for_segments(&shard.node.config.wal);
    let work = move |disk: &DirectDisk| {
        let disk = RoomKept::new(disk, room_bytes);
        block_on(merge(&disk, &dir, id, &small, &mut pace))
    };
    let Some(merged) = shard.in_background(&shard.background.cleaner, work).await else {
        return Ok(());
    };
    let merged = merged.map_err(CompactError::from).inspect_err(|error| {
        if let Some(segment) = candidate.named_by(error) {
            known.unreadable.entry(group).or_default().insert(segment.base_offset);
        }
    });
    replace(shard, group, id, merged?);
    shard.metrics.borrow_mut().counters.segment_merges += 1;
    Ok(())
}

fn replace(shard: &Rc<Shard>, group: GroupId, id: SegmentId, segment: Segment) {
    shard.change_core(|core| core.replace_segments(group, NamedSegment::of(id, segment)));
}
