//! What is on disk of a partition: its segments, then its log; which of them has a record, and reading it there.
//!
//! A file may go while somebody is about to read it: its records were merged into another one, left the log, or are no
//! more. So whoever fails to read looks again what there is. Nothing here knows a runtime, so the simulator reads as the
//! broker does.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use chronik_engine::batch::BatchHeader;
use chronik_engine::disk::{DirEntry, Disk};
use chronik_engine::ids::{GroupId, Offset, Term};
use chronik_engine::segment::{self, Manifest, Segment, SegmentBatch, SegmentError, SegmentReader};
use chronik_engine::wal::{ReadError, StoredBatch, Wal};
use thiserror::Error;

use crate::catalog::{PartitionTag, TopicId};
use crate::core::{NamedSegment, ShardCore};

/// Readers that are kept open.
const READERS_MAX: usize = 64;

/// Memory for their indexes.
const READER_BYTES_MAX: usize = 16 << 20;

/// How often a read looks again because what it was about to read has gone.
const ATTEMPTS_MAX: usize = 8;

type Reader<D> = Rc<SegmentReader<D>>;

/// Why stored records cannot be read.
#[derive(Debug, Error)]
pub enum StoredError {
    /// The log says so.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// A segment says so.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Neither the log nor a segment has them.
    #[error("offsets {} to {} are in no segment and no longer in the log", gap.start, gap.end.0 - 1)]
    Missing {
        /// What is missing, as a whole.
        gap: Range<Offset>,
    },
    /// What there is changes faster than it is read.
    #[error("records from offset {from} on were moved each time that they were looked for")]
    Restless {
        /// The first one looked for.
        from: Offset,
    },
}

/// Why a shard's segments and its log do not belong together.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Records that the log is about to give offsets to are in a segment already.
    #[error(
        "{} holds records of partition {partition} of topic {topic} up to offset {end}, but its log ends at {log_end}: the log \
         is older than its segments. Put both back as they were at one moment, or move this file elsewhere, with which its \
         records are lost",
        path.display()
    )]
    BeyondLog {
        /// The segment.
        path: PathBuf,
        /// Its topic.
        topic: TopicId,
        /// Its partition.
        partition: u32,
        /// Where it ends.
        end: Offset,
        /// Where the log ends.
        log_end: Offset,
    },
    /// A segment cannot be read, so nobody knows whether it counts.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

/// The directory of a shard's segments.
pub struct Segments<D: Disk> {
    disk: D,
    dir: PathBuf,
    readers: RefCell<Readers<D>>,
    gone: RefCell<Gone>,
}

/// Names of files that are to be removed.
#[derive(Debug, Default)]
struct Gone {
    /// Nobody has begun with them.
    waiting: Vec<String>,
    /// Somebody is at them.
    under_way: Vec<String>,
    /// They could not be removed.
    failed: Vec<String>,
}

impl Gone {
    fn take(&mut self, again: bool) -> Vec<String> {
        if !self.under_way.is_empty() {
            return Vec::new();
        }
        self.under_way = std::mem::take(&mut self.waiting);
        if again {
            self.under_way.append(&mut self.failed);
        }
        self.under_way.clone()
    }

    fn removed(&mut self, mut failed: Vec<String>) {
        self.under_way.clear();
        self.failed.append(&mut failed);
    }

    fn any(&self, mut is_one: impl FnMut(&str) -> bool) -> bool {
        [&self.waiting, &self.under_way, &self.failed]
            .into_iter()
            .flatten()
            .any(|name| is_one(name))
    }
}

impl<D: Disk> std::fmt::Debug for Segments<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Open readers, the one that was used last in front.
struct Readers<D: Disk> {
    open: VecDeque<(NamedSegment, Reader<D>)>,
    bytes: usize,
}

impl<D: Disk> Readers<D> {
    fn get(&mut self, named: NamedSegment) -> Option<Reader<D>> {
        let at = self.open.iter().position(|(open, _)| *open == named)?;
        let found = self.open.remove(at)?;
        let reader = Rc::clone(&found.1);
        self.open.push_front(found);
        Some(reader)
    }

    fn put(&mut self, named: NamedSegment, reader: Reader<D>) {
        self.bytes += reader.memory_bytes();
        self.open.push_front((named, reader));
        while self.open.len() > READERS_MAX || self.bytes > READER_BYTES_MAX {
            let Some((_, oldest)) = self.open.pop_back() else { return };
            self.bytes -= oldest.memory_bytes();
        }
    }

    fn forget(&mut self, named: NamedSegment) {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == named)
            && let Some((_, reader)) = self.open.remove(at)
        {
            self.bytes -= reader.memory_bytes();
        }
    }
}

/// A batch with its place, wherever it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundBatch {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last record.
    pub end_offset: Offset,
    /// The term it was appended in.
    pub epoch: Term,
    /// Its greatest timestamp.
    pub max_timestamp_ms: i64,
    /// The batch, its base offset and epoch patched in.
    pub bytes: Bytes,
}

impl From<SegmentBatch> for FoundBatch {
    fn from(batch: SegmentBatch) -> FoundBatch {
        let epoch = BatchHeader::read(&batch.bytes).map_or(-1, |header| header.leader_epoch);
        FoundBatch {
            base_offset: batch.base_offset,
            end_offset: batch.end_offset,
            epoch: Term(u64::try_from(epoch).unwrap_or(0)),
            max_timestamp_ms: batch.max_timestamp_ms,
            bytes: batch.bytes,
        }
    }
}

impl From<StoredBatch> for FoundBatch {
    fn from(batch: StoredBatch) -> FoundBatch {
        FoundBatch {
            base_offset: batch.base_offset,
            end_offset: batch.base_offset.plus(batch.offset_count),
            epoch: batch.epoch,
            max_timestamp_ms: batch.max_timestamp_ms,
            bytes: batch.bytes,
        }
    }
}

impl<D: Disk> Segments<D> {
    /// Opens the directory, makes it where there is none, and removes what interrupted writes left there.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn open(disk: D, dir: PathBuf) -> std::io::Result<Segments<D>> {
        disk.create_dir_all(&dir).await?;
        segment::sweep(&disk, &dir).await.map_err(std::io::Error::other)?;
        let readers = RefCell::new(Readers { open: VecDeque::new(), bytes: 0 });
        Ok(Segments { disk, dir, readers, gone: RefCell::default() })
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the directory holds.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub async fn list(&self) -> std::io::Result<Vec<DirEntry>> {
        self.disk.list(&self.dir).await
    }

    /// Tells the core which segments the directory holds, and finds out what is missing. Segments of partitions that are
    /// not here are handed back: they may be left over from a topic that was deleted as the process ended.
    ///
    /// A name alone is not believed where others would go for it, or where it tells of more than the log does.
    ///
    /// # Errors
    /// If the log of a partition that has no other replica ends before its segments do: what is appended there would be
    /// taken for stored, and would be lost. If the disk fails.
    pub async fn restore(
        &self,
        core: &mut ShardCore,
        wal: &Wal<D>,
        listed: Vec<DirEntry>,
    ) -> Result<Vec<NamedSegment>, RestoreError> {
        let mut found: BTreeMap<(uuid::Uuid, u32), Vec<Segment>> = BTreeMap::new();
        for entry in listed {
            match Segment::parse(&entry.name, entry.len) {
                Some((topic, partition, segment)) => {
                    found.entry((topic, partition)).or_default().push(segment);
                }
                None => tracing::warn!("{} is no segment", self.dir.join(&entry.name).display()),
            }
        }
        self.tell_others().await;
        let partitions: Vec<(GroupId, PartitionTag)> = core.record_partitions().collect();
        for (group, tag) in partitions {
            let segments = found.remove(&(tag.topic.0, tag.partition)).unwrap_or_default();
            let log_end = core.partition(group).map(|view| view.end_offset).unwrap_or_default();
            let segments = self.credible(tag, segments, log_end).await?;
            let path_of =
                |segment: &Segment| self.dir.join(segment.file_name(tag.topic.0, tag.partition));
            for segment in core.restore_segments(group, segments) {
                tracing::error!("{} contradicts other segments", path_of(&segment).display());
            }
            if let Some(segment) = core.segment_beyond_log(group) {
                return Err(RestoreError::BeyondLog {
                    path: path_of(&segment),
                    topic: tag.topic,
                    partition: tag.partition,
                    end: segment.end_offset,
                    log_end,
                });
            }
            let first_in_log = wal.first_offset(group).unwrap_or(log_end);
            if let Some(from) = core.take_segments_back(group, first_in_log) {
                tracing::error!(
                    topic_id = %tag.topic.0,
                    partition = tag.partition,
                    "offsets from {from} on are in no segment; segments are written of the log once more from there on"
                );
            }
            for gap in core.gaps_for_good(group, first_in_log) {
                tracing::error!(
                    topic_id = %tag.topic.0,
                    partition = tag.partition,
                    "offsets {} to {} are in no segment and no longer in the log; reading them fails until the log starts \
                     behind them",
                    gap.start,
                    gap.end.0 - 1
                );
            }
        }
        let named = |((topic, partition), segments): ((uuid::Uuid, u32), Vec<Segment>)| {
            let topic = TopicId(topic);
            segments.into_iter().map(move |segment| NamedSegment { topic, partition, segment })
        };
        Ok(found.into_iter().flat_map(named).collect())
    }

    /// Names what lies among the segments and is no file: it may be in the place of one.
    async fn tell_others(&self) {
        for name in self.disk.list_others(&self.dir).await.unwrap_or_default() {
            let path = self.dir.join(&name);
            match Segment::parse(&name, 0) {
                Some((_, _, segment)) => tracing::error!(
                    "{} is no regular file: offsets {} to {} are not read from it",
                    path.display(),
                    segment.base_offset,
                    segment.end_offset.0 - 1
                ),
                None => tracing::warn!("{} is no segment", path.display()),
            }
        }
    }

    /// Leaves out those that are not whole, as far as it matters: that others would go for, or that reach behind the log. One that
    /// cannot be read just now may be whole.
    async fn credible(
        &self,
        tag: PartitionTag,
        segments: Vec<Segment>,
        log_end: Offset,
    ) -> Result<Vec<Segment>, RestoreError> {
        let would_replace = Manifest::would_replace(&segments);
        let mut credible = Vec::with_capacity(segments.len());
        for (segment, would_replace) in segments.iter().zip(would_replace) {
            if would_replace || segment.end_offset > log_end {
                let path = self.dir.join(segment.file_name(tag.topic.0, tag.partition));
                match SegmentReader::open(&self.disk, &path).await {
                    Ok(_) => {}
                    Err(error @ SegmentError::Io { .. }) => return Err(error.into()),
                    Err(error) => {
                        tracing::error!(
                            "a segment does not count, and what it stands for stays: {error}"
                        );
                        continue;
                    }
                }
            }
            credible.push(*segment);
        }
        Ok(credible)
    }

    /// When a segment was written, if the disk knows.
    pub async fn written_ms(&self, named: &NamedSegment) -> Option<i64> {
        self.disk.modified_ms(&self.dir.join(named.file_name())).await.ok()
    }

    /// Whether files of a partition's segments that end behind `from` are to be removed, or are being removed at this
    /// moment: one that is written now might get the name of one of them.
    pub fn is_removing(&self, topic: TopicId, partition: u32, from: Offset) -> bool {
        self.gone.borrow().any(|name| {
            let named = Segment::parse(name, 0);
            named.is_some_and(|(of_topic, of_partition, segment)| {
                (of_topic, of_partition) == (topic.0, partition) && segment.end_offset > from
            })
        })
    }

    /// Up to where each partition has files that are to be removed, for who asks [`Segments::is_removing`] of many.
    pub fn removing_to(&self) -> BTreeMap<(TopicId, u32), Offset> {
        let mut ends = BTreeMap::new();
        self.gone.borrow().any(|name| {
            if let Some((topic, partition, segment)) = Segment::parse(name, 0) {
                let end = ends.entry((TopicId(topic), partition)).or_insert(segment.end_offset);
                *end = segment.end_offset.max(*end);
            }
            false
        });
        ends
    }

    /// Notes segments that nobody needs any more.
    pub fn note_gone(&self, gone: Vec<NamedSegment>) {
        let mut readers = self.readers.borrow_mut();
        for named in gone {
            readers.forget(named);
            self.gone.borrow_mut().waiting.push(named.file_name());
        }
    }

    /// The names of files that may be removed, none while others are being removed; those that could not be only if they
    /// are to be tried `again`. How it ended is to be said by [`Segments::removed`].
    pub fn take_gone(&self, again: bool) -> Vec<String> {
        self.gone.borrow_mut().take(again)
    }

    /// The files that were taken are removed but for these.
    pub fn removed(&self, failed: Vec<String>) {
        self.gone.borrow_mut().removed(failed);
    }

    async fn reader(
        &self,
        core: &RefCell<ShardCore>,
        group: GroupId,
        named: NamedSegment,
    ) -> Result<Reader<D>, SegmentError> {
        if let Some(reader) = self.readers.borrow_mut().get(named) {
            return Ok(reader);
        }
        let path = self.dir.join(named.file_name());
        let reader = Rc::new(SegmentReader::open(&self.disk, &path).await?);
        let mut readers = self.readers.borrow_mut();
        readers.forget(named); // another read may have opened it meanwhile
        if !has_moved_on(core, group, named.segment.base_offset, named) {
            readers.put(named, Rc::clone(&reader));
        }
        Ok(reader)
    }

    /// Whole batches of a partition from the one that holds the first of these offsets, or the first after it, none that
    /// begins behind them, from wherever they are on disk. The first one is given even if it is larger than `bytes_max`.
    /// Cancel-safe.
    ///
    /// # Errors
    /// If what there should be cannot be read.
    pub async fn read(
        &self,
        core: &RefCell<ShardCore>,
        wal: &Wal<D>,
        group: GroupId,
        offsets: Range<Offset>,
        bytes_max: usize,
    ) -> Result<Vec<FoundBatch>, StoredError> {
        let Range { start: mut from, end: up_to } = offsets;
        let mut attempts = 0;
        while from < up_to {
            attempts += 1;
            let first_in_log = wal.first_offset(group).unwrap_or(up_to);
            let named = core.borrow().segment_at(group, from);
            let Some(named) = named.filter(|_| from < first_in_log) else {
                let read = wal.read_batches(group, from, up_to, bytes_max).await;
                let moved = wal.first_offset(group).unwrap_or(up_to) > first_in_log;
                match read {
                    Ok(stored) => return Ok(stored.into_iter().map(FoundBatch::from).collect()),
                    // It went into a segment meanwhile.
                    Err(_) if moved && attempts < ATTEMPTS_MAX => continue,
                    Err(error) => return Err(error.into()),
                }
            };
            if named.segment.base_offset > from {
                let gap = core.borrow().gap_at(group, from, first_in_log);
                return Err(StoredError::Missing { gap });
            }
            let read = async {
                let reader = self.reader(core, group, named).await?;
                reader.read_batches(from, up_to, bytes_max).await
            };
            match read.await {
                // Compaction left nothing there: on to the next one, of which there are so many.
                Ok(batches) if batches.is_empty() => {
                    from = named.segment.end_offset;
                    attempts = 0;
                }
                Ok(batches) => return Ok(batches.into_iter().map(FoundBatch::from).collect()),
                Err(_) if has_moved_on(core, group, from, named) && attempts < ATTEMPTS_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Vec::new())
    }

    /// The first batch from `from` on with a timestamp of at least `timestamp_ms`. Cancel-safe.
    ///
    /// # Errors
    /// If what there should be cannot be read.
    pub async fn find_timestamp(
        &self,
        core: &RefCell<ShardCore>,
        wal: &Wal<D>,
        group: GroupId,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<FoundBatch>, StoredError> {
        for _ in 0..ATTEMPTS_MAX {
            let first_in_log = wal.first_offset(group);
            let mut at = from;
            let logged_from = loop {
                let next = next_with_timestamp(&core.borrow(), group, at, timestamp_ms);
                let named = match next {
                    Next::Segment(named) => named,
                    Next::Log(offset) => break offset,
                };
                let read = async {
                    let reader = self.reader(core, group, named).await?;
                    reader.find_timestamp(from, timestamp_ms).await
                };
                match read.await {
                    Ok(Some(batch)) => return Ok(Some(batch.into())),
                    Ok(None) => at = named.segment.end_offset,
                    Err(_) if has_moved_on(core, group, named.segment.base_offset, named) => {}
                    Err(error) => return Err(error.into()),
                }
            };
            let first_stored = first_or_end(&core.borrow(), wal, group);
            if logged_from < first_stored {
                // What is missing may be what is looked for.
                let gap = core.borrow().gap_at(group, logged_from, first_stored);
                return Err(StoredError::Missing { gap });
            }
            let found = wal.find_timestamp(group, logged_from, timestamp_ms).await;
            // What was cut meanwhile is in a segment now, and the log was not searched there.
            if wal.first_offset(group) == first_in_log {
                return Ok(found?.map(FoundBatch::from));
            }
        }
        Err(StoredError::Restless { from })
    }

    /// What neither a segment nor the log has of a partition, its first piece.
    pub fn first_gap(
        &self,
        core: &ShardCore,
        wal: &Wal<D>,
        group: GroupId,
    ) -> Option<Range<Offset>> {
        core.gaps(group, first_or_end(core, wal, group)).into_iter().next()
    }
}

/// The first offset that the log has of a partition, or its end.
fn first_or_end<D: Disk>(core: &ShardCore, wal: &Wal<D>, group: GroupId) -> Offset {
    let end = || core.partition(group).map(|view| view.end_offset);
    wal.first_offset(group).or_else(end).unwrap_or_default()
}

/// Where a timestamp is to be looked for.
enum Next {
    /// In this segment.
    Segment(NamedSegment),
    /// In the log from here on, the end of the segments or of what they stand for without a gap.
    Log(Offset),
}

/// The first segment with records from `at` on that can hold such a timestamp, if those between are in segments.
fn next_with_timestamp(core: &ShardCore, group: GroupId, at: Offset, timestamp_ms: i64) -> Next {
    let log_start = core.partition(group).map_or(at, |view| view.log_start_offset);
    let mut covered = at.max(log_start);
    for segment in core.segments(group).into_iter().flat_map(Manifest::iter) {
        if segment.end_offset <= covered {
            continue;
        }
        if segment.base_offset > covered {
            break;
        }
        if segment.max_timestamp_ms >= timestamp_ms
            && let Some(named) = core.segment_at(group, covered)
        {
            return Next::Segment(named);
        }
        covered = segment.end_offset;
    }
    Next::Log(covered)
}

/// Whether the records from `from` on are no longer where they were looked for.
fn has_moved_on(
    core: &RefCell<ShardCore>,
    group: GroupId,
    from: Offset,
    named: NamedSegment,
) -> bool {
    core.borrow().segment_at(group, from) != Some(named)
}

#[cfg(test)]
mod tests {
    use chronik_engine::disk_sim::{SimDisk, block_on};

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn given_removals_under_way_when_more_is_to_go_then_it_waits_and_all_of_it_is_known() {
        let mut gone = Gone { waiting: names(&["a", "b"]), ..Gone::default() };
        assert_eq!(gone.take(true), ["a", "b"]);
        gone.waiting.push("c".to_owned());
        assert!(gone.take(true).is_empty(), "one after the other");
        assert!(["a", "b", "c"].iter().all(|name| gone.any(|other| other == *name)));
        assert!(!gone.any(|name| name == "d"), "it holds up no other");
        gone.removed(names(&["b"]));
        assert!(!gone.any(|name| name == "a"));
        assert!(gone.any(|name| name == "b"), "it is there yet");
        assert_eq!(gone.take(false), ["c"], "what failed is left alone for a while");
        gone.removed(Vec::new());
        assert!(gone.take(false).is_empty());
        assert_eq!(gone.take(true), ["b"]);
        gone.removed(Vec::new());
        assert!(!gone.any(|_| true));
    }

    #[test]
    fn given_segments_that_go_when_others_are_written_then_those_behind_them_need_not_wait() {
        let opened = Segments::open(SimDisk::new(1), PathBuf::from("/segments"));
        let segments = block_on(opened).unwrap();
        let topic = TopicId(uuid::Uuid::from_u128(7));
        let segment = Segment {
            base_offset: Offset(10),
            end_offset: Offset(20),
            file_bytes: 1,
            max_timestamp_ms: -1,
            term: Term(1),
            generation: 0,
            is_compacted: false,
        };
        segments.note_gone(vec![NamedSegment { topic, partition: 3, segment }]);
        assert!(segments.is_removing(topic, 3, Offset(10)));
        assert!(segments.is_removing(topic, 3, Offset(19)), "a batch may lie across");
        assert!(!segments.is_removing(topic, 3, Offset(20)));
        assert!(!segments.is_removing(topic, 4, Offset(10)));
        assert_eq!(segments.removing_to(), BTreeMap::from([((topic, 3), Offset(20))]));
        segments.take_gone(true);
        assert!(segments.is_removing(topic, 3, Offset(10)), "it is there yet");
        segments.removed(Vec::new());
        assert!(!segments.is_removing(topic, 3, Offset(10)));
    }
}
