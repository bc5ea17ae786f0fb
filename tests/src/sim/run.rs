//! One run: what happens next, and what is checked when.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::client::{Expected, SimProducer, check_odd};
use super::disk::{HookedDisk, io_failed, is_full, stored_io_failed, tiering_io_failed};
use super::node::{Node, SEGMENTS_DIR, Task, poll_once, random_config, random_options};
use super::oracle::{LogOracle, PartitionOracle, ReadBatch};
use super::{Bug, Check, Violation};
use crate::must;
use chronik_engine::disk_sim::{SimDisk, block_on};
use chronik_engine::ids::{GroupId, NodeId, Offset, ShardId};
use chronik_engine::wal::{Wal, WalError, WalOptions};
use chronik_shards::catalog::{CatalogCommand, TopicId};
use chronik_shards::core::{Ack, ProduceResult, RequiredAcks, ShardCore, Token, WaiterId};
use chronik_shards::stored::{FoundBatch, Segments, StoredError};
use chronik_tiering::write::WriteError;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(super) const NODE: NodeId = NodeId(1);
pub(super) const SHARD: ShardId = ShardId(0);

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Batches acknowledged.
    pub acked: u64,
    /// Duplicates answered with an offset.
    pub duplicates: u64,
    /// Batches that had to be refused, and were.
    pub refused: u64,
    /// Fetches answered from memory.
    pub tail_reads: u64,
    /// Fetches answered from the disk.
    pub disk_reads: u64,
    /// Crashes, of the disk's faults included.
    pub crashes: u64,
    /// Crashes during recovery.
    pub recovery_crashes: u64,
    /// Stops in good order.
    pub clean_stops: u64,
    /// Times that the log went on in a new file.
    pub rolls: u64,
    /// Files taken back.
    pub reclaimed: usize,
    /// Batches refused for want of room.
    pub storage_full: u64,
    /// Times that batches of a partition were taken back, since their block found no room.
    pub taken_back: usize,
    /// Whole logs read and compared.
    pub verified: u64,
    /// Topics created.
    pub topics_created: u64,
    /// Topics deleted.
    pub topics_deleted: u64,
    /// Log starts moved on request.
    pub log_starts: u64,
    /// Log starts moved by retention.
    pub retained: u64,
    /// Segments written.
    pub segments: usize,
    /// Merges of segments.
    pub merges: usize,
}

impl Report {
    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Report) -> Report {
        Report {
            acked: self.acked + other.acked,
            duplicates: self.duplicates + other.duplicates,
            refused: self.refused + other.refused,
            tail_reads: self.tail_reads + other.tail_reads,
            disk_reads: self.disk_reads + other.disk_reads,
            crashes: self.crashes + other.crashes,
            recovery_crashes: self.recovery_crashes + other.recovery_crashes,
            clean_stops: self.clean_stops + other.clean_stops,
            rolls: self.rolls + other.rolls,
            reclaimed: self.reclaimed + other.reclaimed,
            storage_full: self.storage_full + other.storage_full,
            taken_back: self.taken_back + other.taken_back,
            verified: self.verified + other.verified,
            topics_created: self.topics_created + other.topics_created,
            topics_deleted: self.topics_deleted + other.topics_deleted,
            log_starts: self.log_starts + other.log_starts,
            retained: self.retained + other.retained,
            segments: self.segments + other.segments,
            merges: self.merges + other.merges,
        }
    }
}

/// What a token stands for.
#[derive(Debug, Clone)]
pub(super) enum Pending {
    Plain { group: GroupId, id: i64 },
    Sequenced { group: GroupId, producer: usize, id: i64 },
    Odd { group: GroupId, id: i64, expected: Option<Expected> },
    LogStart { group: GroupId, offset: Offset },
    Command(CatalogCommand),
}

pub(super) struct Partition {
    pub(super) oracle: PartitionOracle,
    pub(super) producers: Vec<(SimProducer, RequiredAcks)>,
}

#[derive(Debug, Default)]
pub(super) struct Topic {
    pub(super) id: Option<TopicId>,
    pub(super) is_acked: bool,
    pub(super) is_deletion_asked: bool,
}

pub(super) struct DiskRead {
    pub(super) group: GroupId,
    pub(super) offset: Offset,
    pub(super) high_watermark: Offset,
    pub(super) task: Task<Result<Vec<FoundBatch>, StoredError>>,
}

/// See the module's page.
pub(super) struct Run {
    pub(super) rng: StdRng,
    pub(super) bug: Option<Bug>,
    pub(super) disk: SimDisk,
    pub(super) options: WalOptions,
    pub(super) now_ms: i64,
    pub(super) node: Rc<Node>,
    pub(super) writer: Option<Task<Result<(), WalError>>>,
    pub(super) upkeep: Option<Task<Result<(), WalError>>>,
    pub(super) tiering: Option<Task<Result<(), WriteError>>>,
    pub(super) reads: Vec<DiskRead>,
    /// Whether the disk was told to fail.
    pub(super) is_armed: bool,
    pub(super) tokens: BTreeMap<Token, Pending>,
    pub(super) waiters: BTreeMap<WaiterId, (GroupId, Offset)>,
    pub(super) partitions: BTreeMap<GroupId, Partition>,
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) producer_ids: Vec<(i64, u32)>,
    pub(super) log: LogOracle,
    pub(super) next: i64,
    pub(super) report: Report,
}

/// Runs `steps` steps from `seed`.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, steps: usize, bug: Option<Bug>) -> Result<Report, Violation> {
    let mut run = Run::start(seed, bug)?;
    for _ in 0..steps {
        run.step()?;
    }
    run.finish()?;
    Ok(run.report)
}

impl Run {
    fn start(seed: u64, bug: Option<Bug>) -> Result<Run, Violation> {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new(seed);
        disk.set_pending_polls_max(rng.random_range(0..4));
        let options = random_options(&mut rng);
        let hooked = HookedDisk::new(disk.clone(), bug);
        let (wal, _, _) = block_on(Wal::open(hooked.clone(), options.clone()))
            .map_err(|error| Violation { what: format!("a new log does not open: {error}") })?;
        let segments = block_on(Segments::open(hooked.clone(), SEGMENTS_DIR.into()))
            .map_err(|error| Violation { what: format!("no directory of segments: {error}") })?;
        let core = ShardCore::new(random_config(&mut rng, NODE, SHARD), Vec::new(), 0)
            .map_err(|error| Violation { what: format!("a new core does not start: {error}") })?;
        let mut run = Run {
            rng,
            bug,
            disk,
            options,
            now_ms: 0,
            node: Node::new(core, wal, segments, hooked, bug),
            writer: None,
            upkeep: None,
            tiering: None,
            reads: Vec::new(),
            is_armed: false,
            tokens: BTreeMap::new(),
            waiters: BTreeMap::new(),
            partitions: BTreeMap::new(),
            topics: BTreeMap::new(),
            producer_ids: Vec::new(),
            log: LogOracle::default(),
            next: 0,
            report: Report::default(),
        };
        run.start_core()?;
        run.settle()?;
        run.register_broker()?;
        run.create_topic()?;
        run.settle()?;
        Ok(run)
    }

    pub(super) fn next(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    pub(super) fn token(&mut self) -> Token {
        Token(self.next().unsigned_abs())
    }

    pub(super) fn step(&mut self) -> Check {
        match self.rng.random_range(0..1000) {
            0..330 => self.poll_writer()?,
            330..380 => self.poll_upkeep()?,
            380..400 => self.poll_tiering()?,
            400..500 => self.poll_read()?,
            500..600 => self.produce_plain()?,
            600..800 => self.produce_sequenced()?,
            800..850 => self.produce_odd()?,
            850..930 => self.fetch()?,
            930..950 => self.wait(),
            950..958 => self.move_log_start()?,
            958..970 => {
                self.now_ms += 50;
                let now_ms = self.now_ms;
                self.node.core.borrow_mut().tick(now_ms);
            }
            970..982 => self.command()?,
            982..995 => self.disturb(),
            995..997 => self.clean_restart()?,
            _ => self.crash()?,
        }
        self.absorb()
    }

    pub(super) fn poll_writer(&mut self) -> Check {
        let node = &self.node;
        let has_work = node.core.borrow().has_work();
        let writer = self.writer.get_or_insert_with(|| {
            if has_work {
                Box::pin(Rc::clone(node).write_block())
            } else {
                Box::pin(Rc::clone(node).write_mark())
            }
        });
        let Some(result) = poll_once(writer) else { return Ok(()) };
        self.writer = None;
        self.after_task(result)
    }

    pub(super) fn poll_upkeep(&mut self) -> Check {
        let node = &self.node;
        let upkeep = self.upkeep.get_or_insert_with(|| Box::pin(Rc::clone(node).upkeep()));
        let Some(result) = poll_once(upkeep) else { return Ok(()) };
        self.upkeep = None;
        self.after_task(result)
    }

    pub(super) fn poll_tiering(&mut self) -> Check {
        let node = &self.node;
        let tiering = self.tiering.get_or_insert_with(|| Box::pin(Rc::clone(node).tier()));
        let Some(result) = poll_once(tiering) else { return Ok(()) };
        self.tiering = None;
        match result {
            // It is tried again.
            Err(error) if self.is_armed && tiering_io_failed(&error) => {}
            Err(error) if is_full(&error) => {}
            Err(error) => {
                return Err(Violation { what: format!("no segments, for no reason: {error:?}") });
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// A log that cannot be written ends the process.
    pub(super) fn after_task(&mut self, result: Result<(), WalError>) -> Check {
        match result {
            Ok(()) => Ok(()),
            Err(error) if io_failed(&error) && self.is_armed => {
                self.absorb()?;
                self.crash()
            }
            Err(error) => Err(Violation { what: format!("the log failed by itself: {error:?}") }),
        }
    }

    pub(super) fn poll_read(&mut self) -> Check {
        if self.reads.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.reads.len());
        let Some(result) = poll_once(&mut self.reads[at].task) else { return Ok(()) };
        let read = self.reads.swap_remove(at);
        self.disk_read_done(&read, result)
    }

    pub(super) fn disk_read_done(
        &mut self,
        read: &DiskRead,
        result: Result<Vec<FoundBatch>, StoredError>,
    ) -> Check {
        let log_start = self.log_start(read.group);
        let Some(partition) = self.partitions.get_mut(&read.group) else { return Ok(()) };
        if log_start.is_some_and(|log_start| read.offset < log_start) {
            return Ok(()); // it went while it was read: the shell says so
        }
        match result {
            Ok(batches) => {
                self.report.disk_reads += 1;
                let batches: Vec<ReadBatch> = batches.into_iter().map(ReadBatch::from).collect();
                must!(
                    !batches.is_empty(),
                    "P1: {} of group {} is not there",
                    read.offset,
                    read.group
                );
                partition.oracle.read(read.offset, read.high_watermark, &batches)
            }
            Err(error) if self.is_armed && stored_io_failed(&error) => Ok(()),
            Err(error) => Err(Violation { what: format!("P1: group {}: {error:?}", read.group) }),
        }
    }

    /// Takes in what the core wants done, and looks at what it shows.
    pub(super) fn absorb(&mut self) -> Check {
        let persisted = std::mem::take(&mut *self.node.persisted.borrow_mut());
        self.log.persisted(&persisted);
        let mut effects = self.node.core.borrow_mut().take_effects();
        self.node.segments.note_gone(std::mem::take(&mut effects.segments_gone));
        for (token, result) in effects.replies {
            let Some(pending) = self.tokens.remove(&token) else {
                return Err(Violation { what: format!("{token:?} came back twice") });
            };
            self.on_reply(token, pending, result)?;
        }
        for waiter in effects.wakes {
            self.waiters.remove(&waiter);
        }
        if let Some(catalog) = effects.catalog {
            self.publish(&catalog)?;
        }
        for (group, partition) in &mut self.partitions {
            let Some(view) = self.node.core.borrow().partition(*group) else { continue };
            if !view.is_ready {
                continue;
            }
            partition.oracle.saw_high_watermark(view.high_watermark)?;
            partition.oracle.saw_log_start(view.log_start_offset)?;
            must!(view.high_watermark <= view.end_offset, "the watermark is beyond the log");
            let late = self
                .waiters
                .iter()
                .find(|(_, (waits_on, beyond))| waits_on == group && *beyond < view.high_watermark);
            must!(late.is_none(), "{late:?} waits at watermark {}", view.high_watermark);
        }
        Ok(())
    }

    pub(super) fn on_reply(
        &mut self,
        token: Token,
        pending: Pending,
        result: ProduceResult,
    ) -> Check {
        let appended = |result: ProduceResult| match result {
            Ok(Ack::Appended(appended)) => Ok(appended.base_offset),
            Ok(other) => unreachable!("a batch came to {other:?}"),
            Err(error) => Err(error),
        };
        match pending {
            Pending::Plain { group, id } => {
                let (Some(partition), Ok(offset)) =
                    (self.partitions.get_mut(&group), appended(result))
                else {
                    return Ok(());
                };
                self.report.acked += 1;
                partition.oracle.acked(id, offset)?;
                partition.oracle.acked_in_order(token.0, offset)
            }
            Pending::Sequenced { group, producer, id } => {
                let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
                let result = appended(result);
                if let Ok(offset) = result {
                    self.report.acked += 1;
                    partition.oracle.acked(id, offset)?;
                }
                partition.producers[producer].0.on_answer(id, result)
            }
            Pending::Odd { group, id, expected } => {
                let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
                let result = appended(result);
                if let Ok(offset) = result {
                    self.report.duplicates += 1;
                    partition.oracle.acked(id, offset)?;
                }
                expected.map_or(Ok(()), |expected| check_odd(id, expected, result))
            }
            Pending::LogStart { group, offset } => {
                let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
                match result {
                    Ok(Ack::LogStart(now)) => {
                        self.report.log_starts += 1;
                        must!(now >= offset, "P7: the log starts at {now}, not at {offset}");
                        partition.oracle.saw_log_start(now)
                    }
                    Ok(other) => Err(Violation { what: format!("a log start came to {other:?}") }),
                    Err(_) => Ok(()),
                }
            }
            Pending::Command(command) => match result {
                Ok(Ack::Command(outcome)) => self.on_outcome(&command, &outcome),
                Ok(_) => Err(Violation { what: "a command got another answer".into() }),
                Err(_) => Ok(()),
            },
        }
    }
}
