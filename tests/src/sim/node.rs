//! The shell of the shard as the simulator runs it: the same loop as in production (`shards::shell::commit`), written as
//! futures that the run polls when its seed says so.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use chronik_engine::batch::BatchHeader;
use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::block_on;
use chronik_engine::ids::{FileSeq, GroupId, NodeId, Offset, ShardId};
use chronik_engine::segment::{Segment, SegmentError};
use chronik_engine::wal::record::{GroupCheckpoint, WalRecord};
use chronik_engine::wal::{LogNeed, SpareProgress, Wal, WalError, WalOptions};
use chronik_shards::catalog::TopicId;
use chronik_shards::core::{CoreConfig, FillChunk, FillWrite, NamedSegment, RepairPlan, ShardCore};
use chronik_shards::stored::{Segments, StoredError};
use chronik_tiering::backlog::{Backlog, FilePlan};
use chronik_tiering::failures::PAUSE_MAX;
use chronik_tiering::fill::{FillJob, write_fill};
use chronik_tiering::merge::{MergeLimits, merge, mergeable};
use chronik_tiering::pace::Unpaced;
use chronik_tiering::write::{WriteError, WriteJob, WritePart, write_segments};
use rand::Rng;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::Bug;
use super::disk::HookedDisk;
use super::oracle::ReadBatch;

/// Small, so that proposals are spread over blocks.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Small, so that a file of the log becomes several segments.
const SEGMENT_BYTES_MAX: u64 = 40 << 10;

/// What small segments are merged into.
const MERGE_LIMITS: MergeLimits = MergeLimits { bytes_max: 400 << 10, span_ms_max: i64::MAX };

/// How many looks for blocks there are from one time to the next that what is not applied is written once more.
const CARRY_EVERY: u64 = 16;

/// Where the segments are.
pub const SEGMENTS_DIR: &str = "/segments";

/// The log's name.
pub const SHARD_UUID: Uuid = Uuid::from_u128(0xABC);

/// Something that goes on beside the clients.
pub type Task<T> = Pin<Box<dyn Future<Output = T>>>;

/// Polls a task once.
pub fn poll_once<T>(task: &mut Task<T>) -> Option<T> {
    match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// A log of small files, so that it goes on in a new one often.
pub fn random_options(rng: &mut StdRng) -> WalOptions {
    let mut options = WalOptions::new(PathBuf::from("/wal"), SHARD_UUID);
    options.file_bytes = [96, 128, 256, 512][rng.random_range(0..4)] << 10;
    options.first_file_bytes = 64 << 10;
    options.ballast_bytes = [0, 64 << 10][rng.random_range(0..2)];
    options.read_cache_bytes = [64 << 10, 4 << 20][rng.random_range(0..2)];
    options.footer_cache_bytes = [4 << 10, 1 << 20][rng.random_range(0..2)];
    options
}

/// How old what readers get from replicas that follow may be.
pub const STALENESS_MAX_MS: u64 = 4_000;

/// A core that has little memory, or much.
pub fn random_config(rng: &mut StdRng, node: NodeId, shard: ShardId) -> CoreConfig {
    CoreConfig {
        shard,
        node,
        seed: rng.random(),
        tail_cache_bytes: [0, 20 << 10, 1 << 20][rng.random_range(0..3)],
        in_flight_bytes_max: [40 << 10, 1 << 20][rng.random_range(0..2)],
        producer_expiration_ms: 4 * 86_400_000, // clocks jump by two days
        stopwatch_ns: || 0,
        lag_ticks_max: 600,
        follower_read_staleness_max_ms: STALENESS_MAX_MS,
    }
}

/// A running shard.
pub struct Node {
    /// The core.
    pub core: RefCell<ShardCore>,
    /// Its log.
    pub wal: Wal<HookedDisk>,
    /// What has left it, or may.
    pub segments: Segments<HookedDisk>,
    disk: HookedDisk,
    /// The file that is being read for segments.
    held: Cell<Option<FileSeq>>,
    /// What of the log is to become segments, and how often that was asked.
    backlog: RefCell<Backlog>,
    asked: Cell<u32>,
    taken_back: Cell<u64>,
    /// Who is next to write or remove segments, and who has asked for that: one after the other, as in one thread.
    turn: Cell<u64>,
    turns: Cell<u64>,
    /// How many segments were written.
    pub written: Cell<usize>,
    /// How often some were merged.
    pub merged: Cell<usize>,
    /// What the log has said is durable, not yet seen by the oracle.
    pub persisted: RefCell<Vec<WalRecord>>,
    /// What the log was told to write and has not answered for.
    pub in_flight: RefCell<Vec<WalRecord>>,
    /// How often the log went on in a new file.
    pub rolls: Cell<u64>,
    /// How often it was looked for blocks to write.
    writes: Cell<u64>,
    /// How often entries that were not applied were written once more.
    pub carried: Cell<usize>,
    /// Files taken back.
    pub reclaimed: Cell<usize>,
    /// How often batches of a partition were refused for want of room after they had got their place.
    pub refused: Cell<usize>,
    /// What of the last file of which segments were to be made cannot be read, and where it ends there.
    pub unreadable: RefCell<Vec<(GroupId, Offset)>>,
    bug: Option<Bug>,
    last_checkpoints: RefCell<Vec<GroupCheckpoint>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("wal", &self.wal).finish_non_exhaustive()
    }
}

impl Node {
    /// A shard that was just opened.
    pub fn new(
        core: ShardCore,
        wal: Wal<HookedDisk>,
        segments: Segments<HookedDisk>,
        disk: HookedDisk,
        bug: Option<Bug>,
    ) -> Rc<Node> {
        Rc::new(Node {
            core: RefCell::new(core),
            wal,
            segments,
            disk,
            held: Cell::default(),
            backlog: RefCell::default(),
            asked: Cell::default(),
            taken_back: Cell::default(),
            turn: Cell::default(),
            turns: Cell::default(),
            written: Cell::default(),
            merged: Cell::default(),
            persisted: RefCell::default(),
            in_flight: RefCell::default(),
            rolls: Cell::new(0),
            writes: Cell::new(0),
            carried: Cell::new(0),
            reclaimed: Cell::new(0),
            refused: Cell::new(0),
            unreadable: RefCell::default(),
            bug,
            last_checkpoints: RefCell::default(),
        })
    }

    /// Writes the next block, if there is one. An error ends the process.
    pub async fn write_block(self: Rc<Node>) -> Result<(), WalError> {
        self.carry_some().await?;
        let (block, believed, written) = loop {
            let Some(block) = self.core.borrow_mut().take_block(BLOCK_BYTES_MAX) else {
                return Ok(());
            };
            let believed = block.records.clone();
            let written = self.records_to_write(&believed);
            if self.make_room(&written).await? {
                break (block, believed, written);
            }
            self.core.borrow_mut().set_storage_full(true);
            let refused = self.core.borrow_mut().refuse_batches(block);
            if refused == 0 {
                yield_once().await;
            }
            self.refused.set(self.refused.get() + refused);
        };
        self.in_flight.borrow_mut().extend_from_slice(&believed);
        let mut block = Some(block);
        if self.bug == Some(Bug::AckBeforePersist) {
            block
                .take()
                .into_iter()
                .for_each(|block| self.core.borrow_mut().block_persisted(block));
        }
        self.append(&written).await?;
        self.in_flight.borrow_mut().clear();
        self.persisted.borrow_mut().extend(believed);
        block.into_iter().for_each(|block| self.core.borrow_mut().block_persisted(block));
        Ok(())
    }

    /// Every so often writes once more what groups have not applied, as a shard does where it keeps the oldest file.
    async fn carry_some(&self) -> Result<(), WalError> {
        self.writes.set(self.writes.get() + 1);
        if self.bug.is_some() || !self.writes.get().is_multiple_of(CARRY_EVERY) {
            return Ok(());
        }
        let groups: Vec<_> = {
            let core = self.core.borrow();
            let applied = |group| Some((group, core.applied_index(group)?));
            core.group_ids().filter_map(applied).collect()
        };
        for (group, applied) in groups {
            // What cannot be read is the disk's fault.
            let Ok(Some(carried)) = self.wal.read_to_carry(group, applied).await else { continue };
            if !self.make_room(carried.records()).await? {
                break;
            }
            if self.wal.append_carried(&carried).await? {
                self.carried.set(self.carried.get() + 1);
            }
        }
        Ok(())
    }

    async fn append(&self, records: &[WalRecord]) -> Result<(), WalError> {
        if records.is_empty() {
            return Ok(());
        }
        self.wal.append(records).await.map(|_| ())
    }

    fn records_to_write(&self, records: &[WalRecord]) -> Vec<WalRecord> {
        let is_truncated = |record: &WalRecord| {
            let truncates = |other: &WalRecord| matches!(other, WalRecord::TruncateAfter { group, .. } if *group == record.group());
            records.iter().any(truncates)
        };
        if self.bug == Some(Bug::LoseTruncate) {
            return records.iter().filter(|record| !is_truncated(record)).cloned().collect();
        }
        let is_entry = |record: &WalRecord| matches!(record, WalRecord::Entry { .. });
        let drops = self.bug == Some(Bug::DropHardState) && records.iter().any(is_entry);
        let keep = |record: &&WalRecord| !drops || !matches!(record, WalRecord::HardState { .. });
        records.iter().filter(keep).cloned().collect()
    }

    /// Whether there is room for these records.
    async fn make_room(&self, records: &[WalRecord]) -> Result<bool, WalError> {
        if records.is_empty() || !self.wal.needs_roll(records) {
            return Ok(true);
        }
        let checkpoints = self.checkpoints().await;
        match self.wal.roll(checkpoints, records).await {
            Ok(()) => {
                self.rolls.set(self.rolls.get() + 1);
                Ok(true)
            }
            Err(WalError::StorageFull { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn checkpoints(&self) -> Vec<GroupCheckpoint> {
        let groups = self.core.borrow().groups_to_checkpoint();
        let mut now = Vec::new();
        for group in groups {
            now.extend(self.core.borrow().checkpoint(group));
            yield_once().await;
        }
        if self.bug == Some(Bug::StaleCheckpoint) {
            let mut before = self.last_checkpoints.replace(now.clone());
            for checkpoint in &mut now {
                let old = before.iter_mut().find(|old| old.group == checkpoint.group);
                if let Some(old) = old.filter(|old| old.group != GroupId::META) {
                    checkpoint.state = std::mem::take(&mut old.state);
                }
            }
        }
        now
    }

    /// Marks the log, as an idle shard does.
    pub async fn write_mark(self: Rc<Node>) -> Result<(), WalError> {
        self.wal.write_mark().await.map(|_| ())
    }

    /// Footers, reclaim and a step towards the next file.
    pub async fn upkeep(self: Rc<Node>) -> Result<(), WalError> {
        self.wal.finish_sealed().await?;
        self.reclaim().await?;
        self.prepare_file().await
    }

    /// Footers and a step towards the next file; the log keeps all that it has.
    pub async fn upkeep_keeping_all(self: Rc<Node>) -> Result<(), WalError> {
        self.wal.finish_sealed().await?;
        self.prepare_file().await
    }

    async fn reclaim(&self) -> Result<(), WalError> {
        let cuts = self.wal.cuts_of_oldest(|group| self.log_need(group));
        for (group, index) in cuts {
            self.core.borrow_mut().cut_log(group, index);
        }
        let needed = |group| self.core.borrow().first_index_needed(group);
        let reclaimed = self.wal.reclaim(|| self.held.get(), needed).await?;
        self.reclaimed.set(self.reclaimed.get() + reclaimed);
        Ok(())
    }

    fn log_need(&self, group: GroupId) -> Option<LogNeed> {
        let core = self.core.borrow();
        let need = core.log_need(group)?;
        if matches!(need, LogNeed::Offset(_)) && self.bug == Some(Bug::CutUnstored) {
            return core.partition(group).map(|view| LogNeed::Offset(view.high_watermark));
        }
        Some(need)
    }

    async fn prepare_file(&self) -> Result<(), WalError> {
        let progress = match self.wal.prepare_spare_step(1 << 20).await {
            Ok(progress) => progress,
            Err(WalError::StorageFull { .. }) => SpareProgress::Ready,
            Err(error) => return Err(error),
        };
        if progress == SpareProgress::Ready {
            self.core.borrow_mut().set_storage_full(self.wal.is_storage_full());
        }
        Ok(())
    }

    /// Writes what the oldest full file of the log holds as segments, merges small ones, and removes files that nobody
    /// needs: what the background threads do, and the loops that ask them.
    pub async fn tier(self: Rc<Node>) -> Result<(), WriteError> {
        self.write_oldest().await?;
        let merged = self.merge_some().await;
        self.remove_gone().await?;
        merged
    }

    /// Removes files of segments that nobody needs.
    pub async fn remove_files(self: Rc<Node>) -> Result<(), WriteError> {
        self.remove_gone().await
    }

    async fn remove_gone(&self) -> Result<(), WriteError> {
        let names = self.segments.take_gone(false);
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            // What stays is left over at the next start.
            drop(self.disk.remove(&self.segments.dir().join(name)).await);
        }
        self.segments.removed(Vec::new());
        Ok(())
    }

    async fn begin_turn(&self) {
        let own = self.turns.replace(self.turns.get() + 1);
        while self.turn.get() != own {
            yield_once().await;
        }
    }

    fn end_turn(&self) {
        self.turn.set(self.turn.get() + 1);
    }

    /// Writes records that were copied from a leader as segments.
    pub async fn write_fill(
        self: Rc<Node>,
        write: FillWrite,
    ) -> (Vec<NamedSegment>, Result<(), SegmentError>) {
        let FillWrite { tag, term, from, chunks, .. } = write;
        while self.segments.is_removing(tag.topic, tag.partition, from) {
            yield_once().await;
        }
        let id = tag.segment_id(Uuid::nil(), term);
        let job = FillJob {
            segments_dir: self.segments.dir().to_owned(),
            id,
            from,
            up_to: None,
            generation: 0,
            chunks: chunks.into_iter().map(|chunk| chunk.bytes).collect(),
            segment_bytes_max: SEGMENT_BYTES_MAX,
        };
        let (segments, result) = self.write_copied(&job).await;
        for named in segments.iter().filter(|_| self.bug == Some(Bug::LoseSegment)) {
            drop(self.disk.remove(&self.segments.dir().join(named.file_name())).await);
        }
        (segments, result)
    }

    /// Writes records that were copied from another replica in the place of segments that cannot be read.
    pub async fn write_repair(
        self: Rc<Node>,
        plan: RepairPlan,
        chunks: Vec<FillChunk>,
    ) -> (Vec<NamedSegment>, Result<(), SegmentError>) {
        let id = plan.tag.segment_id(Uuid::nil(), plan.term);
        let job = FillJob {
            segments_dir: self.segments.dir().to_owned(),
            id,
            from: plan.base_offset,
            up_to: Some(plan.up_to),
            generation: plan.generation,
            chunks: chunks.into_iter().map(|chunk| chunk.bytes).collect(),
            segment_bytes_max: SEGMENT_BYTES_MAX,
        };
        self.write_copied(&job).await
    }

    async fn write_copied(&self, job: &FillJob) -> (Vec<NamedSegment>, Result<(), SegmentError>) {
        self.begin_turn().await;
        let (segments, result) = write_fill(&self.disk, job).await;
        self.end_turn();
        (NamedSegment::all_of(job.id, segments), result)
    }

    async fn write_oldest(&self) -> Result<(), WriteError> {
        // What failed is tried each time: no time passes here.
        self.asked.set(self.asked.get() + 1);
        let now_ns = u64::try_from((PAUSE_MAX * self.asked.get()).as_nanos()).unwrap_or(u64::MAX);
        let taken_back = self.core.borrow().segments_taken_back();
        if self.taken_back.replace(taken_back) != taken_back {
            self.backlog.borrow_mut().start_over();
        }
        let files = self.wal.sealed_files(self.backlog.borrow().done_to());
        self.backlog.borrow_mut().begin_round(&files);
        for wal_file in files {
            let file = wal_file.seq;
            if self.backlog.borrow_mut().is_done(file) {
                continue;
            }
            let parts = self.backlog.borrow_mut().take(file, self.plan(file), now_ns);
            if parts.is_empty() {
                continue;
            }
            let segments_dir = self.segments.dir().to_owned();
            let (shard_uuid, parts_kept) = (SHARD_UUID, parts.clone());
            let job = WriteJob { wal_file, shard_uuid, segments_dir, parts };
            let mut written: Vec<(WritePart, Segment)> = Vec::new();
            let mut note = |part: &WritePart, segment| written.push((*part, segment));
            self.held.set(Some(file));
            self.begin_turn().await;
            let result = write_segments(&self.disk, &job, &mut Unpaced, &mut note).await;
            self.end_turn();
            self.held.set(None);
            self.written.set(self.written.get() + written.len());
            let mut unwritten = BTreeSet::new();
            for (part, segment) in written {
                if self.bug == Some(Bug::LoseSegment) {
                    let name = NamedSegment::of(part.id, segment).file_name();
                    drop(self.disk.remove(&self.segments.dir().join(name)).await);
                }
                if !self.core.borrow_mut().add_written(&part, segment) {
                    unwritten.insert(part.group);
                }
            }
            if let Err(WriteError::Open(_)) = &result {
                self.note_unreadable(file, parts_kept.iter().map(|part| part.group).collect());
            }
            let failed = result?;
            self.note_unreadable(file, failed.iter().map(|part| part.group).collect());
            let mut backlog = self.backlog.borrow_mut();
            for part in &failed {
                backlog.part_failed(file, part.group, now_ns);
            }
            unwritten.extend(failed.iter().map(|part| part.group));
            backlog.written(file, &parts_kept, &unwritten);
            return failed.into_iter().next().map_or(Ok(()), |part| Err(part.error));
        }
        Ok(())
    }

    fn note_unreadable(&self, file: FileSeq, groups: BTreeSet<GroupId>) {
        let ranges = self.wal.ranges_in_file(file).into_iter();
        let lost = ranges.filter(|(group, _)| groups.contains(group));
        *self.unreadable.borrow_mut() =
            lost.map(|(group, range)| (group, range.end_offset)).collect();
    }

    fn plan(&self, file: FileSeq) -> FilePlan {
        let ranges = self.wal.ranges_in_file(file);
        let first_in_log = |group| self.wal.first_offset(group);
        let core = self.core.borrow();
        let bytes_max = |_| SEGMENT_BYTES_MAX;
        let planned = core.plan_segments(&ranges, Uuid::nil(), bytes_max, first_in_log);
        let FilePlan { parts, mut waiting } = planned;
        let is_removing = |part: &WritePart| {
            let id = part.id;
            self.segments.is_removing(TopicId(id.topic), id.partition, part.from)
        };
        let (removed, parts): (Vec<_>, Vec<_>) = parts.into_iter().partition(is_removing);
        waiting.extend(removed.iter().map(|part| part.group));
        FilePlan { parts, waiting }
    }

    async fn merge_some(&self) -> Result<(), WriteError> {
        let found = {
            let core = self.core.borrow();
            core.record_partitions().find_map(|(group, tag)| {
                let segments: Vec<Segment> = core.segments(group)?.iter().copied().collect();
                let small = mergeable(&segments, MERGE_LIMITS, &BTreeSet::new())?.to_vec();
                let term = core.partition(group)?.leader_epoch;
                Some((group, tag.segment_id(Uuid::nil(), term), small))
            })
        };
        let Some((group, id, small)) = found else { return Ok(()) };
        let merged = merge(&self.disk, self.segments.dir(), id, &small, &mut Unpaced).await;
        let first = self.core.borrow().segment_at(group, small[0].base_offset);
        let has_moved_on = first.map(|named| named.segment) != Some(small[0]);
        let merged = match merged {
            Ok(merged) => NamedSegment::of(id, merged),
            Err(_) if has_moved_on => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.merged.set(self.merged.get() + 1);
        self.core.borrow_mut().replace_segments(group, merged);
        Ok(())
    }
}

impl Node {
    /// All batches of a partition with these offsets, from the disk.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read_all(
        &self,
        group: GroupId,
        offsets: Range<Offset>,
    ) -> Result<Vec<ReadBatch>, StoredError> {
        let mut all: Vec<ReadBatch> = Vec::new();
        let mut from = offsets.start;
        while from < offsets.end {
            let wanted = from..offsets.end;
            let read = self.segments.read(&self.core, &self.wal, group, wanted, 1 << 20);
            let read = block_on(read)?;
            let Some(last) = read.last() else { break };
            let header = BatchHeader::read(&last.bytes);
            let count = header.map_or(1, |header| header.last_offset_delta + 1);
            from = last.base_offset.plus(count.unsigned_abs());
            all.extend(read.into_iter().map(ReadBatch::from));
        }
        Ok(all)
    }
}

/// Lets the run do something else.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
