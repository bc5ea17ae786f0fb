//! From the log to segments: a sealed file of the log is handed to the background thread, which writes what it holds of
//! each partition as segments; once all of it is there the file may go.
//!
//! - I1: one file at a time, the oldest first, and a file is kept while it is read ([`Shard::held_file`]).
//! - I2: only what is committed and applied goes into segments.
//! - I3: what fails is tried again, from where it failed, an interval later. The log grows meanwhile, up to the disk's
//!   end, and produce is refused then as on any full disk. The log leaves [`room_for_segments`] free, so that one file
//!   after the other can become segments on such a disk, too; a job for which there is no room yet waits for the file
//!   before it to go, and takes nothing meanwhile.

use std::rc::Rc;
use std::time::Duration;

use chronik_engine::disk_direct::DirectDisk;
use chronik_engine::ids::FileSeq;
use chronik_ring::sleep;
use chronik_tiering::pace::ThreadPace;
use chronik_tiering::write::{GATHERED_BYTES_MAX, WriteError, WriteJob, WritePart, write_segments};
use futures_lite::future::block_on;

use super::shard::Shard;
use crate::catalog::Topic;
use crate::config::WalConfig;
use crate::core::NamedSegment;

/// The smallest, so that a file of the log does not become thousands.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// The least pace, in bytes read and written per second.
const PACE_MIN: u64 = 64 << 20;

/// The greatest one: the disk belongs to the log first.
const PACE_MAX: u64 = 512 << 20;

/// Between two looks for room.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// Bytes that the log leaves free on its disk: what the segments of one file take, of which each has a few sectors beside
/// its batches, so that they may be thousands.
pub(super) fn room_for_segments(wal: &WalConfig) -> u64 {
    if !wal.indexing_enabled {
        return 0;
    }
    let largest = wal.file_bytes.max(wal.ballast_bytes);
    largest + largest / 4
}

/// Writes segments of what has been sealed, time and again, until the shard stops.
///
/// `strangers` are segments that were found there and belong to no partition of this shard.
pub async fn tiering_loop(shard: Rc<Shard>, strangers: Vec<NamedSegment>) {
    shard.serving_begun.notified().await;
    shard.judge_strangers(strangers);
    if !shard.node.config.wal.indexing_enabled {
        return;
    }
    let interval = Duration::from_secs(shard.node.config.wal.indexing_interval.max(1));
    let mut done_to = FileSeq(0);
    let mut waits_for_room = FileSeq(0);
    let mut pause = interval;
    loop {
        sleep(pause).await;
        pause = interval;
        while !shard.stopping.get() {
            let files = shard.wal.sealed_files(done_to);
            let waiting = files.len() as u64;
            let Some(wal_file) = files.into_iter().next() else { break };
            let file = wal_file.seq;
            let Some(parts) = parts_of(&shard, file) else { break };
            if parts.is_empty() {
                done_to = file;
                continue;
            }
            let job = WriteJob {
                wal_file,
                shard_uuid: shard.shard_uuid,
                segments_dir: shard.segments.dir().to_owned(),
                parts,
            };
            let pace = pace(waiting * shard.node.config.wal.file_bytes, interval);
            shard.held_file.set(Some(file));
            let written = write(&shard, job, pace).await;
            shard.held_file.set(None);
            match written {
                Written::All(0) => done_to = file, // nothing but what damage took: the next segment stands for it
                Written::All(_) => {}
                Written::NotAll => break,
                Written::NoRoom { needed } => {
                    if std::mem::replace(&mut waits_for_room, file) != file {
                        tracing::warn!(
                            shard = shard.id.0,
                            file = file.0,
                            "segments of {needed} bytes wait for room on the disk"
                        );
                    }
                    pause = interval.min(NO_ROOM_PAUSE);
                    break;
                }
            }
        }
        if shard.stopping.get() {
            return;
        }
    }
}

/// So that what waits is read and written in half an interval.
fn pace(waiting_bytes: u64, interval: Duration) -> ThreadPace {
    ThreadPace::new((4 * waiting_bytes / interval.as_secs().max(1)).clamp(PACE_MIN, PACE_MAX))
}

/// What of a file is to be written; `None` as long as not all of it is committed (I2).
fn parts_of(shard: &Rc<Shard>, file: FileSeq) -> Option<Vec<WritePart>> {
    let catalog = shard.catalog();
    let ranges = shard.wal.ranges_in_file(file);
    let bytes_max =
        |topic| catalog.topic_by_id(topic).map_or(GATHERED_BYTES_MAX, |t| segment_bytes_max(t));
    shard.with_core(|core| core.plan_segments(&ranges, shard.node.cluster_uuid, bytes_max))
}

/// The largest segment of a topic; whatever it asks for, one is gathered in memory.
pub(super) fn segment_bytes_max(topic: &Topic) -> u64 {
    topic.settings.segment_bytes.clamp(SEGMENT_BYTES_MIN, GATHERED_BYTES_MAX)
}

/// What became of a job.
enum Written {
    /// So many segments were written, and no more are to be.
    All(usize),
    NotAll,
    /// There is no room yet.
    NoRoom {
        needed: u64,
    },
}

/// Lets a job be done and then tells the core of the segments that were written.
async fn write(shard: &Rc<Shard>, job: WriteJob, mut pace: ThreadPace) -> Written {
    let file = job.wal_file.seq;
    let work = move |disk: &DirectDisk| {
        let mut segments = Vec::new();
        let mut note = |part: &WritePart, segment| {
            segments.push((part.group, NamedSegment::of(part.id, segment)));
        };
        let result = block_on(write_segments(disk, &job, &mut pace, &mut note));
        (segments, result)
    };
    let written = shard.in_background(&shard.background.writer, work).await;
    let Some((segments, result)) = written else { return Written::NotAll };
    let count = segments.len();
    {
        let counters = &mut shard.metrics.borrow_mut().counters;
        counters.segments_written += segments.len() as u64;
        let bytes = segments.iter().map(|(_, named)| named.segment.file_bytes);
        counters.segment_bytes_written += bytes.sum::<u64>();
    }
    shard.change_core(|core| {
        for (group, named) in segments {
            core.add_segment(group, named);
        }
    });
    match result {
        Ok(()) => Written::All(count),
        Err(WriteError::NoRoom { needed, .. }) => Written::NoRoom { needed },
        Err(error) => {
            tracing::error!(
                shard = shard.id.0,
                file = file.0,
                "segments could not be written, another try follows: {error}"
            );
            Written::NotAll
        }
    }
}
