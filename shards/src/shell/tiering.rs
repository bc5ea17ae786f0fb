//! From the log to segments: a sealed file of the log is handed to the background thread, which writes what it holds of
//! each partition as segments; once all of it is there the file may go.
//!
//! A partition that has to wait, without a quorum or with damage in the log, holds up no other
//! ([`chronik_tiering::backlog`]).
//!
//! - I1: one file at a time, the oldest first, and a file is kept while it is read ([`Shard::held_file`]).
//! - I2: only what is committed and applied goes into segments.
//! - I3: what fails is tried again, from where it failed, an interval later. The log grows meanwhile, up to the disk's
//!   end, and produce is refused then as on any full disk. The log leaves [`room_for_segments`] free, so that one file
//!   after the other can become segments on such a disk, too; a job for which there is no room yet waits for the file
//!   before it to go, and takes nothing meanwhile.
//! - I4: no file is written under a name that is about to be removed.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::disk_direct::DirectDisk;
use chronik_engine::ids::{FileSeq, GroupId};
use chronik_engine::wal::SealedName;
use chronik_ring::{sleep, yield_if_needed};
use chronik_tiering::backlog::{Backlog, FilePlan};
use chronik_tiering::failures::Noted;
use chronik_tiering::pace::ThreadPace;
use chronik_tiering::write::{
    FailedPart, GATHERED_BYTES_MAX, WriteError, WriteJob, WritePart, write_segments,
};
use futures_lite::future::block_on;

use super::background::WaitingShare;
use super::shard::Shard;
use crate::catalog::{Topic, TopicId};
use crate::config::WalConfig;
use crate::core::{NamedSegment, Unreadable};

/// The smallest, so that a file of the log does not become thousands.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// The least pace, in bytes read and written per second.
const PACE_MIN: u64 = 64 << 20;

/// The greatest one: the disk belongs to the log first.
const PACE_MAX: u64 = 512 << 20;

/// As many files wait on a core where there is no greatest pace: the log would run ahead until the disk is full.
const FILES_WAITING_MAX: u64 = 4;

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
    let mut tiering = Tiering {
        interval,
        pause: interval,
        backlog: Backlog::default(),
        taken_back: 0,
        waiting: shard.background.waiting_share(),
        waits_for_room: FileSeq(0),
    };
    loop {
        sleep(tiering.pause).await;
        tiering.pause = interval;
        // Files get full while others are read.
        while !shard.stopping.get() && tiering.round(&shard).await {}
        tiering.waiting.set(0);
        if shard.stopping.get() {
            return;
        }
    }
}

/// What is known from one round to the next.
struct Tiering {
    interval: Duration,
    /// Until the next round.
    pause: Duration,
    backlog: Backlog,
    /// See [`crate::core::ShardCore::segments_taken_back`].
    taken_back: u64,
    waiting: WaitingShare,
    waits_for_room: FileSeq,
}

/// What came of a job.
struct Written {
    /// Groups with segments that do not count: others were written meanwhile.
    refused: BTreeSet<GroupId>,
    result: Result<Vec<FailedPart>, WriteError>,
}

impl Tiering {
    /// Goes through all full files once; says whether one was done with, so that it is worth to begin again at once.
    async fn round(&mut self, shard: &Rc<Shard>) -> bool {
        let files = shard.wal.sealed_files(self.backlog.done_to());
        self.backlog.begin_round(&files);
        let mut is_any_done = false;
        for (at, wal_file) in files.iter().enumerate() {
            yield_if_needed().await;
            let taken_back = shard.with_core(|core| core.segments_taken_back());
            if std::mem::replace(&mut self.taken_back, taken_back) != taken_back {
                self.backlog.start_over();
                return false;
            }
            if shard.stopping.get() {
                return false;
            }
            if self.backlog.is_done(wal_file.seq) {
                continue;
            }
            let parts = self.backlog.take(wal_file.seq, plan(shard, wal_file.seq), now_ns(shard));
            if parts.is_empty() {
                continue;
            }
            let pace = self.pace(shard, &files[at..]);
            shard.held_file.set(Some(wal_file.seq));
            let written = write(shard, wal_file.clone(), parts.clone(), pace).await;
            shard.held_file.set(None);
            let Some(written) = written else { return false };
            match self.settle(shard, wal_file.seq, &parts, written) {
                Some(is_done) => is_any_done |= is_done,
                None => return false,
            }
        }
        is_any_done
    }

    fn pace(&mut self, shard: &Shard, files: &[SealedName]) -> ThreadPace {
        let waiting = self.backlog.count_wanted(files) as u64;
        let on_all = self.waiting.set(waiting.saturating_mul(shard.node.config.wal.file_bytes));
        ThreadPace::new(pace_bytes_per_second(on_all, waiting, self.interval))
    }

    /// Whether the file is done with; `None` where the others must wait, too (I3).
    fn settle(
        &mut self,
        shard: &Shard,
        file: FileSeq,
        parts: &[WritePart],
        written: Written,
    ) -> Option<bool> {
        let Written { refused: mut unwritten, result } = written;
        match result {
            Ok(failed) => {
                for FailedPart { group, error } in failed {
                    let noted = self.backlog.part_failed(file, group, now_ns(shard));
                    log_unreadable(shard, file, Some(group), noted, &error);
                    want_copies(shard, file, &[group]);
                    unwritten.insert(group);
                }
                Some(self.backlog.written(file, parts, &unwritten))
            }
            Err(error @ WriteError::Open(_)) => {
                let noted = self.backlog.file_failed(file, parts, now_ns(shard));
                log_unreadable(shard, file, None, noted, &error);
                want_copies(shard, file, &parts.iter().map(|part| part.group).collect::<Vec<_>>());
                Some(false)
            }
            Err(WriteError::NoRoom { needed, .. }) => {
                if std::mem::replace(&mut self.waits_for_room, file) != file {
                    tracing::warn!(
                        shard = shard.id.0,
                        file = file.0,
                        "segments of {needed} bytes wait for room on the disk"
                    );
                }
                self.pause = self.interval.min(NO_ROOM_PAUSE);
                None
            }
            Err(error) => {
                tracing::error!(
                    shard = shard.id.0,
                    file = file.0,
                    "segments could not be written, another try follows: {error}"
                );
                None
            }
        }
    }
}

fn now_ns(shard: &Shard) -> u64 {
    shard.clock.now_ns()
}

/// Other replicas may have what cannot be read of a file.
fn want_copies(shard: &Shard, file: FileSeq, groups: &[GroupId]) {
    for (group, range) in shard.wal.ranges_in_file(file) {
        if groups.contains(&group) {
            shard.want_repair(group, Unreadable::Logged(range.end_offset));
        }
    }
}

/// Counts what cannot be read of the log, and says so once.
fn log_unreadable(
    shard: &Shard,
    file: FileSeq,
    group: Option<GroupId>,
    noted: Noted,
    error: &WriteError,
) {
    shard.metrics.borrow_mut().counters.segment_source_failures += 1;
    let partition = group.map(|group| shard.name_of(group));
    let (shard, file) = (shard.id.0, file.0);
    let pause_s = noted.pause.as_secs();
    if noted.is_first {
        tracing::error!(
            shard,
            file,
            partition,
            "these records stay in the log, tried again in {pause_s} s: {error}"
        );
    } else {
        tracing::debug!(
            shard,
            file,
            partition,
            "no segments still, next try in {pause_s} s: {error}"
        );
    }
}

/// So that what waits on all cores, whose segments one thread writes, is read and written in half an interval.
fn pace_bytes_per_second(waiting_bytes: u64, files_waiting: u64, interval: Duration) -> u64 {
    let wanted = waiting_bytes.saturating_mul(4) / interval.as_secs().max(1);
    let max = if files_waiting < FILES_WAITING_MAX { PACE_MAX } else { u64::MAX };
    wanted.clamp(PACE_MIN, max)
}

/// What of a file may be written now (I2, I4).
fn plan(shard: &Shard, file: FileSeq) -> FilePlan {
    let catalog = shard.catalog();
    let ranges = shard.wal.ranges_in_file(file);
    let bytes_max =
        |topic| catalog.topic_by_id(topic).map_or(GATHERED_BYTES_MAX, |t| segment_bytes_max(t));
    let first_in_log = |group| shard.wal.first_offset(group);
    let cluster = shard.node.cluster_uuid;
    let planned =
        shard.with_core(|core| core.plan_segments(&ranges, cluster, bytes_max, first_in_log));
    let FilePlan { mut parts, mut waiting } = planned;
    let removing_to = shard.segments.removing_to();
    parts.retain(|part| {
        let removing_to = removing_to.get(&(TopicId(part.id.topic), part.id.partition));
        let is_removing = removing_to.is_some_and(|end| *end > part.from);
        if is_removing {
            waiting.push(part.group);
        }
        !is_removing
    });
    FilePlan { parts, waiting }
}

/// The largest segment of a topic; whatever it asks for, one is gathered in memory.
pub(super) fn segment_bytes_max(topic: &Topic) -> u64 {
    topic.settings.segment_bytes.clamp(SEGMENT_BYTES_MIN, GATHERED_BYTES_MAX)
}

/// Lets a job be done and then tells the core of the segments that were written. `None` if the thread has too much to do.
async fn write(
    shard: &Rc<Shard>,
    wal_file: SealedName,
    parts: Vec<WritePart>,
    mut pace: ThreadPace,
) -> Option<Written> {
    let (shard_uuid, segments_dir) = (shard.shard_uuid, shard.segments.dir().to_owned());
    let work = move |disk: &DirectDisk| {
        let job = WriteJob { wal_file, shard_uuid, segments_dir, parts };
        let mut segments = Vec::new();
        let mut note = |part: &WritePart, segment| segments.push((*part, segment));
        let result = block_on(write_segments(disk, &job, &mut pace, &mut note));
        (segments, result)
    };
    let written = shard.in_background(&shard.background.writer, work).await;
    let (segments, result) = written?;
    {
        let counters = &mut shard.metrics.borrow_mut().counters;
        counters.segments_written += segments.len() as u64;
        let bytes = segments.iter().map(|(_, segment)| segment.file_bytes);
        counters.segment_bytes_written += bytes.sum::<u64>();
    }
    let mut refused = BTreeSet::new();
    shard.change_core(|core| {
        for (part, segment) in segments {
            if !core.add_written(&part, segment) {
                refused.insert(part.group);
            }
        }
    });
    Some(Written { refused, result })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::background::WaitingBytes;

    const MIB: u64 = 1 << 20;

    #[test]
    fn given_files_on_several_cores_when_paced_then_all_of_them_count() {
        let interval = Duration::from_secs(30);
        let all = WaitingBytes::default();
        let mut shares: Vec<WaitingShare> = (0..8).map(|_| all.share()).collect();
        let mut pace = 0;
        for share in &mut shares {
            pace = pace_bytes_per_second(share.set(256 * MIB), 1, interval);
        }
        let wanted = 4 * 8 * 256 * MIB / 30;
        assert_eq!(pace, wanted, "each job of one core alone has the thread for a while");
        shares.truncate(2);
        assert_eq!(shares[0].set(0), 256 * MIB, "cores that ended wait for nothing");
    }

    #[test]
    fn given_files_that_pile_up_when_paced_then_nothing_bounds_it_any_more() {
        let interval = Duration::from_secs(1);
        let pace = |files| pace_bytes_per_second(files * 256 * MIB, files, interval);
        assert_eq!(pace(3), PACE_MAX);
        assert_eq!(pace(4), 4096 * MIB);
        assert_eq!(pace_bytes_per_second(0, 0, interval), PACE_MIN);
        assert_eq!(pace_bytes_per_second(u64::MAX, u64::MAX, interval), u64::MAX);
    }
}
