//! Segments as the shards see them: which files there are at a start, reading what is not in the log any more, removing
//! what nobody needs.
//!
//! A file may go while somebody is about to read it: its records were merged into another one, or are no more. So
//! whoever fails to read looks again what there is ([`Shard::read_stored`]).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use chronik_engine::batch::BatchHeader;
use chronik_engine::disk::Disk;
use chronik_engine::disk_glommio::GlommioDisk;
use chronik_engine::ids::{GroupId, Offset, Term};
use chronik_engine::segment::{self, Segment, SegmentBatch, SegmentError, SegmentReader};
use chronik_tiering::executor::Executor;
use futures_lite::future::block_on;

use super::shard::Shard;
use crate::catalog::PartitionTag;
use crate::core::{FetchError, NamedSegment, PartitionView, ShardCore};

/// Readers that are kept open.
const READERS_MAX: usize = 64;

/// Memory for their indexes.
const READER_BYTES_MAX: usize = 16 << 20;

/// How often a read looks again because what it was about to read has gone.
const ATTEMPTS_MAX: usize = 8;

type Reader = Rc<SegmentReader<GlommioDisk>>;

/// The directory of a shard's segments.
pub struct Segments {
    disk: GlommioDisk,
    dir: PathBuf,
    writer: Executor,
    readers: RefCell<Readers>,
    /// Names of files that are to be removed.
    gone: RefCell<Vec<String>>,
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segments").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Open readers, the one that was used last in front.
#[derive(Default)]
struct Readers {
    open: VecDeque<(NamedSegment, Reader)>,
    bytes: usize,
}

impl Readers {
    fn get(&mut self, named: NamedSegment) -> Option<Reader> {
        let at = self.open.iter().position(|(open, _)| *open == named)?;
        let found = self.open.remove(at)?;
        let reader = Rc::clone(&found.1);
        self.open.push_front(found);
        Some(reader)
    }

    fn put(&mut self, named: NamedSegment, reader: Reader) {
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

impl Segments {
    /// Opens the directory, makes it where there is none, and removes what interrupted writes left there.
    ///
    /// # Errors
    /// If the disk fails.
    pub async fn open(
        disk: GlommioDisk,
        dir: PathBuf,
        writer: Executor,
    ) -> std::io::Result<Segments> {
        disk.create_dir_all(&dir).await?;
        segment::sweep(&disk, &dir).await.map_err(std::io::Error::other)?;
        let (readers, gone) = (RefCell::default(), RefCell::default());
        Ok(Segments { disk, dir, writer, readers, gone })
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tells the core which segments there are. What belongs to no partition of this shard is removed: it was on its way
    /// when the process ended.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub async fn restore(&self, core: &mut ShardCore) -> std::io::Result<()> {
        let mut found: BTreeMap<(uuid::Uuid, u32), Vec<Segment>> = BTreeMap::new();
        for entry in self.disk.list(&self.dir).await? {
            match Segment::parse(&entry.name, entry.len) {
                Some((topic, partition, segment)) => {
                    found.entry((topic, partition)).or_default().push(segment);
                }
                None => tracing::warn!("{} is no segment", self.dir.join(&entry.name).display()),
            }
        }
        let partitions: Vec<(GroupId, PartitionTag)> = core.record_partitions().collect();
        for (group, tag) in partitions {
            let segments = found.remove(&(tag.topic.0, tag.partition)).unwrap_or_default();
            core.restore_segments(group, segments);
        }
        let mut gone = self.gone.borrow_mut();
        for ((topic, partition), segments) in found {
            gone.extend(segments.iter().map(|segment| segment.file_name(topic, partition)));
        }
        Ok(())
    }

    /// Notes segments that nobody needs any more.
    pub(super) fn note_gone(&self, gone: Vec<NamedSegment>) {
        let mut readers = self.readers.borrow_mut();
        for named in gone {
            readers.forget(named);
            self.gone.borrow_mut().push(named.file_name());
        }
    }

    /// Lets the files of segments that nobody needs be removed.
    pub(super) fn remove_gone(&self) {
        let names = self.gone.take();
        if names.is_empty() {
            return;
        }
        let (dir, kept) = (self.dir.clone(), names.clone());
        let job = move |disk: &chronik_engine::disk_direct::DirectDisk| {
            for name in names {
                let path = dir.join(&name);
                match block_on(disk.remove(&path)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        // A start finds it again and knows that it is left over.
                        tracing::warn!("{} could not be removed: {error}", path.display());
                    }
                    _ => {}
                }
            }
        };
        if self.writer.submit(Box::new(job)).is_err() {
            self.gone.borrow_mut().extend(kept);
        }
    }

    async fn reader(&self, named: NamedSegment) -> Result<Reader, SegmentError> {
        if let Some(reader) = self.readers.borrow_mut().get(named) {
            return Ok(reader);
        }
        let path = self.dir.join(named.file_name());
        let reader = Rc::new(SegmentReader::open(&self.disk, &path).await?);
        let mut readers = self.readers.borrow_mut();
        readers.forget(named); // another read may have opened it meanwhile
        readers.put(named, Rc::clone(&reader));
        Ok(reader)
    }
}

/// A batch with its place, wherever it was found.
#[derive(Debug)]
pub struct FoundBatch {
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The term it was appended in.
    pub epoch: Term,
    /// Its greatest timestamp.
    pub max_timestamp_ms: i64,
    /// The batch.
    pub bytes: bytes::Bytes,
}

impl From<SegmentBatch> for FoundBatch {
    fn from(batch: SegmentBatch) -> FoundBatch {
        let epoch = BatchHeader::read(&batch.bytes).map_or(-1, |header| header.leader_epoch);
        FoundBatch {
            base_offset: batch.base_offset,
            epoch: Term(u64::try_from(epoch).unwrap_or(0)),
            max_timestamp_ms: batch.max_timestamp_ms,
            bytes: batch.bytes,
        }
    }
}

impl Shard {
    /// Whole batches of a partition from the one that holds `from`, or the first after it, none that begins at `up_to`
    /// or later, from wherever they are on disk. The first one is given even if it is larger than `bytes_max`.
    /// Cancel-safe.
    ///
    /// # Errors
    /// If what there should be cannot be read.
    pub(super) async fn read_stored(
        self: &Rc<Self>,
        group: GroupId,
        mut from: Offset,
        up_to: Offset,
        bytes_max: usize,
    ) -> Result<Vec<bytes::Bytes>, FetchError> {
        let mut attempts = 0;
        while from < up_to {
            attempts += 1;
            let first_in_log = self.wal.first_offset(group).unwrap_or(up_to);
            let named = self.core.borrow().segment_at(group, from);
            let Some(named) = named.filter(|_| from < first_in_log) else {
                let read = self.wal.read_batches(group, from, up_to, bytes_max).await;
                let moved = self.wal.first_offset(group).unwrap_or(up_to) > first_in_log;
                match read {
                    Ok(stored) => return Ok(stored.into_iter().map(|batch| batch.bytes).collect()),
                    // It went into a segment meanwhile.
                    Err(_) if moved && attempts < ATTEMPTS_MAX => continue,
                    Err(error) => return Err(self.read_failed(group, &error)),
                }
            };
            let read = async {
                let reader = self.segments.reader(named).await?;
                reader.read_batches(from, up_to, bytes_max).await
            };
            match read.await {
                Ok(batches) if batches.is_empty() => from = named.segment.end_offset,
                Ok(batches) => return Ok(batches.into_iter().map(|batch| batch.bytes).collect()),
                Err(_) if self.has_moved_on(group, from, named) && attempts < ATTEMPTS_MAX => {}
                Err(error) => return Err(self.segment_failed(group, &error)),
            }
        }
        Ok(Vec::new())
    }

    /// The first batch from `from` on with a timestamp of at least `timestamp_ms`. Cancel-safe.
    ///
    /// # Errors
    /// If what there should be cannot be read.
    pub async fn find_timestamp(
        self: &Rc<Self>,
        group: GroupId,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<FoundBatch>, FetchError> {
        let mut at = from;
        let mut attempts = 0;
        loop {
            let named = {
                let core = self.core.borrow();
                let manifest = core.segments(group).ok_or(FetchError::UnknownPartition)?;
                let fits = |segment: &&Segment| {
                    segment.end_offset > at && segment.max_timestamp_ms >= timestamp_ms
                };
                let found = manifest.iter().find(fits);
                found.and_then(|segment| core.segment_at(group, segment.base_offset.max(at)))
            };
            let Some(named) = named else { break };
            let read = async {
                let reader = self.segments.reader(named).await?;
                reader.find_timestamp(from, timestamp_ms).await
            };
            match read.await {
                Ok(Some(batch)) => return Ok(Some(batch.into())),
                Ok(None) => at = named.segment.end_offset,
                Err(_) if self.has_moved_on(group, at, named) && attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                }
                Err(error) => return Err(self.segment_failed(group, &error)),
            }
        }
        let stored_to = self.core.borrow().stored_to(group).unwrap_or(from);
        let found = self.wal.find_timestamp(group, from.max(stored_to), timestamp_ms).await;
        let found = found.map_err(|error| self.read_failed(group, &error))?;
        Ok(found.map(|batch| FoundBatch {
            base_offset: batch.base_offset,
            epoch: batch.epoch,
            max_timestamp_ms: batch.max_timestamp_ms,
            bytes: batch.bytes,
        }))
    }

    /// The greatest timestamp of a partition's records, an upper bound where the log starts in the middle of a piece;
    /// `None` if there is none.
    #[must_use]
    pub fn max_timestamp_ms(&self, group: GroupId, view: &PartitionView) -> Option<i64> {
        let core = self.core.borrow();
        let stored = core.segments(group)?.iter().map(|segment| segment.max_timestamp_ms).max();
        let stored_to = core.stored_to(group)?;
        let logged = self.wal.max_timestamp_ms(group, stored_to.max(view.log_start_offset));
        stored.max(logged).filter(|timestamp_ms| *timestamp_ms >= 0)
    }

    /// What a partition's records take from the log's start on; of the log all that there is where its index does not
    /// tell.
    pub async fn size_bytes(&self, group: GroupId) -> u64 {
        let (stored, stored_to) = {
            let core = self.core.borrow();
            let start = core.partition(group).map(|view| view.log_start_offset);
            let stored =
                core.segments(group).map_or(0, |m| m.file_bytes(start.unwrap_or_default()));
            (stored, core.stored_to(group).unwrap_or_default())
        };
        let logged = match self.wal.size_bytes(group, stored_to).await {
            Ok(bytes) => bytes,
            Err(_) => self.wal.payload_bytes(group),
        };
        stored + logged
    }

    fn has_moved_on(&self, group: GroupId, from: Offset, named: NamedSegment) -> bool {
        self.core.borrow().segment_at(group, from) != Some(named)
    }

    /// Logs why a segment could not be read, for which Kafka has but one word.
    fn segment_failed(&self, group: GroupId, error: &SegmentError) -> FetchError {
        if self.core.borrow().partition(group).is_none() {
            return FetchError::UnknownPartition; // deleted while it was read
        }
        tracing::error!(shard = self.id.0, group = group.0, "a segment could not be read: {error}");
        FetchError::Storage
    }
}
