//! From the log to segments: a sealed file of the log is handed to the background thread, which writes what it holds of
//! each partition as segments; once all of it is there the file may go.
//!
//! - I1: one file at a time, the oldest first, and a file is kept while it is read ([`Shard::held_file`]).
//! - I2: only what is committed and applied goes into segments.
//! - I3: what fails is tried again, from where it failed, an interval later. The log grows meanwhile, up to the disk's
//!   end, and produce is refused then as on any full disk.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::{FileSeq, GroupId};
use chronik_engine::segment::{Segment, SegmentId};
use chronik_ring::sleep;
use chronik_tiering::executor::Job;
use chronik_tiering::pace::ThreadPace;
use chronik_tiering::write::{WriteError, WriteJob, WritePart, write_segments};
use futures_channel::oneshot;
use futures_lite::future::block_on;

use super::shard::Shard;
use crate::catalog::{PartitionTag, TopicId};

/// The largest segment whatever a topic asks for: it is gathered in memory.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// The smallest, so that a file of the log does not become thousands.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// The least pace, in bytes read and written per second.
const PACE_MIN: u64 = 64 << 20;

/// What became of a job.
#[derive(Debug)]
pub(super) struct Written {
    segments: Vec<(GroupId, Segment)>,
    result: Result<(), WriteError>,
}

/// Writes segments of what has been sealed, time and again, until the shard stops.
pub async fn tiering_loop(shard: Rc<Shard>) {
    if !shard.node.config.wal.indexing_enabled {
        return;
    }
    let interval = Duration::from_secs(shard.node.config.wal.indexing_interval.max(1));
    let mut done_to = FileSeq(0);
    loop {
        sleep(interval).await;
        while !shard.stopping.get() {
            let files = shard.wal.sealed_files(done_to);
            let waiting = files.len() as u64;
            let Some((file, path)) = files.into_iter().next() else { break };
            let Some(parts) = parts_of(&shard, file) else { break };
            if parts.is_empty() {
                done_to = file;
                continue;
            }
            let job = WriteJob {
                wal_path: path,
                wal_file: file,
                shard_uuid: shard.shard_uuid,
                segments_dir: shard.segments.dir().to_owned(),
                parts,
            };
            let pace = pace(waiting * shard.node.config.wal.file_bytes, interval);
            shard.held_file.set(Some(file));
            let written = write(&shard, job, pace).await;
            shard.held_file.set(None);
            if !written {
                break;
            }
        }
        if shard.stopping.get() {
            return;
        }
    }
}

/// So that what waits is read and written in half an interval.
fn pace(waiting_bytes: u64, interval: Duration) -> ThreadPace {
    ThreadPace::new((4 * waiting_bytes / interval.as_secs().max(1)).max(PACE_MIN))
}

/// What of a file is to be written; `None` as long as not all of it is committed (I2).
fn parts_of(shard: &Rc<Shard>, file: FileSeq) -> Option<Vec<WritePart>> {
    let catalog = shard.catalog();
    let ranges = shard.wal.ranges_in_file(file);
    let core = shard.core.borrow();
    let tags: BTreeMap<GroupId, PartitionTag> = core.record_partitions().collect();
    let mut parts = Vec::new();
    for (group, range) in ranges {
        let (Some(tag), Some(stored_to)) = (tags.get(&group), core.stored_to(group)) else {
            continue;
        };
        if range.end_offset <= stored_to || range.base_offset == range.end_offset {
            continue;
        }
        let view = core.partition(group)?;
        if view.high_watermark < range.end_offset {
            return None;
        }
        let bytes_max = catalog.topic_by_id(tag.topic).map(|topic| topic.settings.segment_bytes);
        let bytes_max = bytes_max.unwrap_or(SEGMENT_BYTES_MAX);
        parts.push(WritePart {
            group,
            id: segment_id(shard, tag.topic, tag.partition, view.leader_epoch),
            from: stored_to,
            follows: core.segments(group).is_some_and(|segments| !segments.is_empty()),
            last: range.last,
            segment_bytes_max: bytes_max.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
        });
    }
    Some(parts)
}

fn segment_id(
    shard: &Shard,
    topic: TopicId,
    partition: u32,
    term: chronik_engine::ids::Term,
) -> SegmentId {
    SegmentId { cluster: shard.node.cluster_uuid, topic: topic.0, partition, term }
}

/// Lets a job be done and tells the core of what was written. Says whether all of it was.
async fn write(shard: &Rc<Shard>, job: WriteJob, mut pace: ThreadPace) -> bool {
    let tags: BTreeMap<GroupId, PartitionTag> = shard.core.borrow().record_partitions().collect();
    let (done, written) = oneshot::channel();
    shard.written.set(Some(done));
    let (mesh, id, file) = (shard.mesh().clone(), shard.id, job.wal_file);
    let work: Job = Box::new(move |disk| {
        let mut segments = Vec::new();
        let mut note = |group, segment| segments.push((group, segment));
        let result = block_on(write_segments(disk, &job, &mut pace, &mut note));
        let written = Written { segments, result };
        let tell = move |shard: &Rc<Shard>| {
            if let Some(done) = shard.written.take() {
                // The loop that waits for it ends with the shard.
                _ = done.send(written);
            }
        };
        mesh.send_patiently(id, Box::new(tell));
    });
    if shard.segments.submit(work).is_err() {
        return false;
    }
    let Ok(Written { segments, result }) = written.await else { return false };
    shard.change_core(|core| {
        for (group, segment) in segments {
            match tags.get(&group) {
                Some(tag) => core.add_segment(group, *tag, segment),
                None => unreachable!("group {group} was asked for"),
            }
        }
    });
    if let Err(error) = &result {
        tracing::error!(
            shard = shard.id.0,
            file = file.0,
            "segments could not be written, another try follows: {error}"
        );
    }
    result.is_ok()
}
