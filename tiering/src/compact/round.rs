//! A round at work: reading segments into the map, and writing them anew.

use std::path::PathBuf;

use chronik_engine::batch::RecordBatch;
use chronik_engine::disk::Disk;
use chronik_engine::ids::Offset;
use chronik_engine::segment::{Segment, SegmentReader};

use super::filter::{Filter, Kept, offset, readable};
use super::map::{KeyMap, KeyPart};
use super::{CompactError, Compacted, CompactionJob, earlier};
use crate::gather::{Cut, Gathered};
use crate::pace::{Pace, SYNC_COST_BYTES};

/// What is read of a segment at once.
const READ_BYTES: usize = 1 << 20;

/// See the module's page.
pub(super) struct Round<'a, D: Disk, P, F> {
    disk: &'a D,
    job: &'a CompactionJob,
    pace: &'a mut P,
    done: &'a mut F,
    map: KeyMap,
    filter: Filter,
    compacted: Compacted,
}

/// A segment that is read from its first batch to its last.
struct Source<D: Disk> {
    reader: SegmentReader<D>,
    path: PathBuf,
    next: Offset,
    end: Offset,
}

/// What will be one segment.
struct Output {
    gathered: Gathered,
    delete_horizon_ms: Option<i64>,
    /// The last batch, if nothing of it stays.
    last: Option<RecordBatch>,
    batches: u64,
    batches_same: u64,
}

impl<D: Disk> Source<D> {
    /// The next batches, none at the end.
    async fn read(&mut self, pace: &mut impl Pace) -> Result<Vec<RecordBatch>, CompactError> {
        let found = self.reader.read_batches(self.next, self.end, READ_BYTES).await?;
        self.next = found.last().map_or(self.end, |batch| batch.end_offset);
        pace.spend(found.iter().map(|batch| batch.bytes.len() as u64).sum()).await;
        let parsed = found.into_iter().map(|batch| RecordBatch::parse_stored(batch.bytes));
        parsed.collect::<Result<_, _>>().map_err(|source| {
            let path = self.path.clone();
            CompactError::Batch { path, source }
        })
    }
}

impl Output {
    fn new() -> Output {
        Output {
            gathered: Gathered::new(),
            delete_horizon_ms: None,
            last: None,
            batches: 0,
            batches_same: 0,
        }
    }

    fn push(&mut self, batch: &RecordBatch) {
        let timestamp_ms = if batch.record_count() == 0 { -1 } else { batch.max_timestamp_ms() };
        self.gathered.push(batch.bytes(), batch.base_offset(), timestamp_ms);
        let horizon_ms = batch.header().delete_horizon_ms().filter(|_| !batch.is_control());
        self.delete_horizon_ms = earlier(self.delete_horizon_ms, horizon_ms);
    }

    fn take(&mut self, batch: RecordBatch, kept: Kept) {
        self.batches += 1;
        match kept {
            Kept::Same => {
                self.batches_same += 1;
                self.push(&batch);
            }
            Kept::Changed(batch) => self.push(&batch),
            Kept::Nothing => {
                self.last = Some(batch);
                return;
            }
        }
        self.last = None;
    }

    /// Ends it: the last batch stays without its records if nothing else of it does. Whoever reads up to the end must
    /// get there, and there is no segment without a batch.
    fn close(&mut self) {
        if let Some(last) = self.last.take() {
            self.batches_same += u64::from(last.record_count() == 0);
            self.push(&last.emptied());
        }
    }

    fn is_changed(&self) -> bool {
        self.batches_same != self.batches
    }
}

impl<'a, D: Disk, P: Pace, F: FnMut(Segment)> Round<'a, D, P, F> {
    pub(super) fn new(
        disk: &'a D,
        job: &'a CompactionJob,
        pace: &'a mut P,
        done: &'a mut F,
        dirty: &[Segment],
    ) -> Round<'a, D, P, F> {
        let keys_max: u64 = dirty.iter().map(|s| s.end_offset.0.abs_diff(s.base_offset.0)).sum();
        let map = KeyMap::new(job.settings.map_bytes_max, keys_max, job.hash_key);
        let filter = Filter::new(job.now_ms, job.settings.delete_retention_ms);
        Round { disk, job, pace, done, map, filter, compacted: Compacted::default() }
    }

    /// Fills the map with this part of the keys of dirty segments; of how many it has all. Not the first one whole is
    /// none. What it has of a segment beyond those does no harm: these records are there, and newer.
    pub(super) async fn map(
        &mut self,
        dirty: &[Segment],
        part: KeyPart,
    ) -> Result<usize, CompactError> {
        self.map.reset(part);
        for (at, segment) in dirty.iter().enumerate() {
            if !self.map_segment(segment).await? {
                return Ok(at);
            }
        }
        Ok(dirty.len())
    }

    /// Whether all of it fits.
    async fn map_segment(&mut self, segment: &Segment) -> Result<bool, CompactError> {
        let mut source = self.open(segment).await?;
        while source.next < source.end {
            for batch in source.read(self.pace).await? {
                let Some(Ok(records)) = readable(&batch) else {
                    continue;
                };
                for record in records.iter() {
                    let Some(key) = record.key else {
                        continue;
                    };
                    if !self.map.note(key, offset(&batch, &record)) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Writes each of these segments anew without what the map's part of the keys has newer records of; returns them as
    /// they are now. They are as clean as they were.
    pub(super) async fn rewrite_part(
        &mut self,
        segments: &[Segment],
    ) -> Result<Vec<Segment>, CompactError> {
        let mut now = Vec::with_capacity(segments.len());
        for segment in segments {
            let output = self.filter(std::slice::from_ref(segment)).await?;
            let new = match output.is_changed() {
                true => self.publish(&output, segment, segment, segment.is_compacted).await?,
                false => *segment,
            };
            now.push(new);
        }
        Ok(now)
    }

    /// Writes neighbours anew as one compacted segment, unless that would change nothing.
    pub(super) async fn rewrite(&mut self, group: &[Segment]) -> Result<(), CompactError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Ok(());
        };
        let output = self.filter(group).await?;
        self.note_horizon(output.delete_horizon_ms);
        if output.is_changed() || group.len() > 1 || !first.is_compacted {
            let newest = group.iter().max_by_key(|segment| segment.generation).unwrap_or(last);
            let range = Segment { generation: newest.generation, ..*first };
            self.publish(&output, &range, last, true).await?;
        }
        Ok(())
    }

    /// Takes tombstones whose horizon has passed out of segments that are clean. Those without any are not read.
    pub(super) async fn sweep(&mut self, clean: &[Segment]) -> Result<(), CompactError> {
        for segment in clean {
            let source = self.open(segment).await?;
            let horizon_ms = source.reader.summary().delete_horizon_ms();
            match horizon_ms.filter(|at| *at <= self.job.now_ms) {
                Some(_) => self.rewrite(std::slice::from_ref(segment)).await?,
                None => self.note_horizon(horizon_ms),
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Compacted {
        let batches_unreadable = self.filter.batches_unreadable;
        if batches_unreadable > 0 {
            let (topic, partition) = (self.job.id.topic, self.job.id.partition);
            tracing::warn!(%topic, partition, batches_unreadable, "batches that do not decode stay");
        }
        let records_dropped = self.filter.records_dropped;
        Compacted { batches_unreadable, records_dropped, ..self.compacted }
    }

    async fn open(&mut self, segment: &Segment) -> Result<Source<D>, CompactError> {
        let id = self.job.id;
        let path = self.job.dir.join(segment.file_name(id.topic, id.partition));
        let reader = SegmentReader::open(self.disk, &path).await?;
        let found = reader.summary().plan.id;
        let same =
            (found.cluster, found.topic, found.partition) == (id.cluster, id.topic, id.partition);
        if !same {
            return Err(CompactError::Foreign { path });
        }
        self.pace.spend(SYNC_COST_BYTES).await;
        Ok(Source { reader, path, next: segment.base_offset, end: segment.end_offset })
    }

    async fn filter(&mut self, group: &[Segment]) -> Result<Output, CompactError> {
        let mut output = Output::new();
        for segment in group {
            let mut source = self.open(segment).await?;
            while source.next < source.end {
                for batch in source.read(self.pace).await? {
                    self.compacted.bytes_read += batch.size() as u64;
                    let kept = self.filter.apply(&batch, &self.map);
                    output.take(batch, kept);
                }
            }
        }
        output.close();
        Ok(output)
    }

    /// Puts the output in the place of the segments from `first` to `last`.
    async fn publish(
        &mut self,
        output: &Output,
        first: &Segment,
        last: &Segment,
        is_compacted: bool,
    ) -> Result<Segment, CompactError> {
        let cut = Cut {
            base_offset: first.base_offset,
            end_offset: last.end_offset,
            generation: first.generation.saturating_add(1),
            is_compacted,
        };
        let (dir, id) = (&self.job.dir, self.job.id);
        let segment = output.gathered.write(self.disk, dir, id, cut, self.pace).await?;
        self.compacted.bytes_written += output.gathered.bytes();
        (self.done)(segment);
        Ok(segment)
    }

    fn note_horizon(&mut self, horizon_ms: Option<i64>) {
        // Up to the second, as in a segment's footer.
        let horizon_ms = horizon_ms.map(|at| at.saturating_add(999) / 1000 * 1000);
        self.compacted.delete_horizon_ms = earlier(self.compacted.delete_horizon_ms, horizon_ms);
    }
}
