//! One run: what happens next, and what is checked when.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use chronik_engine::disk_sim::{CrashEnding, CrashMode, Fault, NameEnding, SimDisk, block_on};
use chronik_engine::ids::{GroupId, NodeId, Offset, ReplicaId, ShardId};
use chronik_engine::wal::record::GroupMeta;
use chronik_engine::wal::{ReadError, StoredBatch, Wal, WalError, WalOptions};
use chronik_shards::catalog::{
    Broker, Catalog, CatalogCommand, ClusterId, CommandOutcome, NewPartition, NewTopic, TopicId,
    TopicRef,
};
use chronik_shards::core::{
    Ack, CoreConfig, FetchError, ProduceError, ProduceResult, RequiredAcks, ShardCore, Token,
    WaiterId,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::client::{Expected, Sent, SimProducer, check_odd, random_batch};
use super::disk::HookedDisk;
use super::node::{Node, Task, poll_once};
use super::oracle::{LogOracle, PartitionOracle, ReadBatch, check_producers};
use super::{Bug, Check, Violation};
use crate::must;

const NODE: NodeId = NodeId(1);
const SHARD: ShardId = ShardId(0);
const READS_MAX: usize = 4;
const TOPICS_MAX: usize = 4;

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
    /// Whole logs read and compared.
    pub verified: u64,
    /// Topics created.
    pub topics_created: u64,
    /// Topics deleted.
    pub topics_deleted: u64,
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
            verified: self.verified + other.verified,
            topics_created: self.topics_created + other.topics_created,
            topics_deleted: self.topics_deleted + other.topics_deleted,
        }
    }
}

/// What a token stands for.
#[derive(Debug, Clone)]
enum Pending {
    Plain { group: GroupId, id: i64 },
    Sequenced { group: GroupId, producer: usize, id: i64 },
    Odd { group: GroupId, id: i64, expected: Option<Expected> },
    Command(CatalogCommand),
}

struct Partition {
    oracle: PartitionOracle,
    producers: Vec<(SimProducer, RequiredAcks)>,
}

#[derive(Debug, Default)]
struct Topic {
    id: Option<TopicId>,
    is_acked: bool,
    is_deletion_asked: bool,
}

struct DiskRead {
    group: GroupId,
    offset: Offset,
    high_watermark: Offset,
    task: Task<Result<Vec<StoredBatch>, ReadError>>,
}

/// See the module's page.
struct Run {
    rng: StdRng,
    bug: Option<Bug>,
    disk: SimDisk,
    options: WalOptions,
    now_ms: i64,
    node: Rc<Node>,
    writer: Option<Task<Result<(), WalError>>>,
    upkeep: Option<Task<Result<(), WalError>>>,
    reads: Vec<DiskRead>,
    /// Whether the disk was told to fail.
    is_armed: bool,
    tokens: BTreeMap<Token, Pending>,
    waiters: BTreeMap<WaiterId, (GroupId, Offset)>,
    partitions: BTreeMap<GroupId, Partition>,
    topics: BTreeMap<String, Topic>,
    producer_ids: Vec<(i64, u32)>,
    log: LogOracle,
    next: i64,
    report: Report,
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

fn open_options(rng: &mut StdRng) -> WalOptions {
    let mut options = WalOptions::new(PathBuf::from("/wal"), Uuid::from_u128(0xABC));
    options.file_bytes = [96, 128, 256, 512][rng.random_range(0..4)] << 10;
    options.first_file_bytes = 64 << 10;
    options.ballast_bytes = [0, 64 << 10][rng.random_range(0..2)];
    options.read_cache_bytes = [64 << 10, 4 << 20][rng.random_range(0..2)];
    options.footer_cache_bytes = [4 << 10, 1 << 20][rng.random_range(0..2)];
    options
}

fn core_config(rng: &mut StdRng) -> CoreConfig {
    CoreConfig {
        shard: SHARD,
        node: NODE,
        seed: rng.random(),
        tail_cache_bytes: [0, 20 << 10, 1 << 20][rng.random_range(0..3)],
        in_flight_bytes_max: [40 << 10, 1 << 20][rng.random_range(0..2)],
        producer_expiration_ms: 86_400_000,
    }
}

fn io_failed(error: &WalError) -> bool {
    matches!(error, WalError::Io { .. } | WalError::Poisoned | WalError::StorageFull { .. })
        || matches!(error, WalError::Entries { source, .. } if read_io_failed(source))
}

fn read_io_failed(error: &ReadError) -> bool {
    // An index that cannot be read is reported as such, whatever the reason.
    matches!(error, ReadError::Io { .. } | ReadError::Index { .. })
}

impl Run {
    fn start(seed: u64, bug: Option<Bug>) -> Result<Run, Violation> {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new(seed);
        disk.set_pending_polls_max(rng.random_range(0..4));
        let options = open_options(&mut rng);
        let hooked = HookedDisk::new(disk.clone(), bug);
        let (wal, _, _) = block_on(Wal::open(hooked, options.clone()))
            .map_err(|error| Violation { what: format!("a new log does not open: {error}") })?;
        let core = ShardCore::new(core_config(&mut rng), Vec::new(), 0)
            .map_err(|error| Violation { what: format!("a new core does not start: {error}") })?;
        let mut run = Run {
            rng,
            bug,
            disk,
            options,
            now_ms: 0,
            node: Node::new(core, wal, bug),
            writer: None,
            upkeep: None,
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

    fn next(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    fn token(&mut self) -> Token {
        Token(self.next().unsigned_abs())
    }

    fn step(&mut self) -> Check {
        match self.rng.random_range(0..1000) {
            0..330 => self.poll_writer()?,
            330..400 => self.poll_upkeep()?,
            400..500 => self.poll_read()?,
            500..600 => self.produce_plain()?,
            600..800 => self.produce_sequenced()?,
            800..850 => self.produce_odd()?,
            850..930 => self.fetch()?,
            930..950 => self.wait(),
            950..970 => {
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

    // ---- the shell ----

    fn poll_writer(&mut self) -> Check {
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

    fn poll_upkeep(&mut self) -> Check {
        let node = &self.node;
        let upkeep = self.upkeep.get_or_insert_with(|| Box::pin(Rc::clone(node).upkeep()));
        let Some(result) = poll_once(upkeep) else { return Ok(()) };
        self.upkeep = None;
        self.after_task(result)
    }

    /// A log that cannot be written ends the process.
    fn after_task(&mut self, result: Result<(), WalError>) -> Check {
        match result {
            Ok(()) => Ok(()),
            Err(error) if io_failed(&error) && self.is_armed => {
                self.absorb()?;
                self.crash()
            }
            Err(error) => Err(Violation { what: format!("the log failed by itself: {error:?}") }),
        }
    }

    fn poll_read(&mut self) -> Check {
        if self.reads.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.reads.len());
        let Some(result) = poll_once(&mut self.reads[at].task) else { return Ok(()) };
        let read = self.reads.swap_remove(at);
        self.disk_read_done(&read, result)
    }

    fn disk_read_done(
        &mut self,
        read: &DiskRead,
        result: Result<Vec<StoredBatch>, ReadError>,
    ) -> Check {
        let Some(partition) = self.partitions.get_mut(&read.group) else { return Ok(()) };
        match result {
            Ok(batches) => {
                self.report.disk_reads += 1;
                let batches: Vec<ReadBatch> = batches.into_iter().map(from_disk).collect();
                must!(!batches.is_empty(), "P1: {} of group {} is not there", read.offset, read.group);
                partition.oracle.read(read.offset, read.high_watermark, &batches)
            }
            Err(error) if self.is_armed && read_io_failed(&error) => Ok(()),
            Err(error) => {
                Err(Violation { what: format!("P1: group {}: {error:?}", read.group) })
            }
        }
    }

    /// Takes in what the core wants done, and looks at what it shows.
    fn absorb(&mut self) -> Check {
        let persisted = std::mem::take(&mut *self.node.persisted.borrow_mut());
        self.log.persisted(&persisted);
        let effects = self.node.core.borrow_mut().take_effects();
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
            must!(view.high_watermark <= view.end_offset, "the watermark is beyond the log");
            let late = self.waiters.iter().find(|(_, (waits_on, beyond))| {
                waits_on == group && *beyond < view.high_watermark
            });
            must!(late.is_none(), "{late:?} waits at watermark {}", view.high_watermark);
        }
        Ok(())
    }

    fn on_reply(&mut self, token: Token, pending: Pending, result: ProduceResult) -> Check {
        let appended = |result: ProduceResult| match result {
            Ok(Ack::Appended(appended)) => Ok(appended.base_offset),
            Ok(Ack::Command(outcome)) => unreachable!("a batch came to {outcome:?}"),
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
            Pending::Command(command) => match result {
                Ok(Ack::Command(outcome)) => self.on_outcome(&command, &outcome),
                Ok(Ack::Appended(_)) => Err(Violation { what: "a command got an offset".into() }),
                Err(_) => Ok(()),
            },
        }
    }

    // ---- the catalog ----

    fn propose_command(&mut self, command: CatalogCommand) {
        let token = self.token();
        let proposed = self.node.core.borrow_mut().propose_command(&command, token);
        if proposed.is_ok() {
            self.tokens.insert(token, Pending::Command(command));
        }
    }

    fn register_broker(&mut self) -> Check {
        let broker =
            Broker { node: NODE, host: "sim".into(), port: 9092, rack: None, shards: 1 };
        let cluster_id = ClusterId(Uuid::from_u128(1));
        self.propose_command(CatalogCommand::RegisterBroker { cluster_id, broker });
        self.settle()
    }

    fn command(&mut self) -> Check {
        match self.rng.random_range(0..10) {
            0..4 => self.create_topic()?,
            4..7 => self.delete_topic(),
            _ => {
                let count = self.rng.random_range(1..100);
                self.propose_command(CatalogCommand::AllocateProducerIds { count });
            }
        }
        Ok(())
    }

    fn create_topic(&mut self) -> Check {
        let open = self.topics.values().filter(|topic| !topic.is_deletion_asked).count();
        if open >= TOPICS_MAX {
            return Ok(());
        }
        let name = format!("topic-{}", self.next());
        let id = TopicId(Uuid::from_u128(self.rng.random()));
        let partitions = self.rng.random_range(1..4);
        let partition =
            |rng: &mut StdRng| NewPartition { replicas: vec![ReplicaId(rng.random_range(1..u64::MAX))] };
        let topic = NewTopic {
            name: name.clone(),
            id,
            internal: false,
            partitions: (0..partitions).map(|_| partition(&mut self.rng)).collect(),
            configs: BTreeMap::new(),
        };
        self.topics.insert(name, Topic { id: Some(id), ..Topic::default() });
        self.propose_command(CatalogCommand::CreateTopics { topics: vec![topic] });
        Ok(())
    }

    fn delete_topic(&mut self) {
        let open = self.topics.iter_mut().filter(|(_, topic)| {
            topic.is_acked && !topic.is_deletion_asked
        });
        let mut open: Vec<_> = open.collect();
        if open.len() < 2 {
            return;
        }
        let at = self.rng.random_range(0..open.len());
        let (name, topic) = &mut open[at];
        topic.is_deletion_asked = true;
        let topics = vec![TopicRef::Name((*name).clone())];
        self.propose_command(CatalogCommand::DeleteTopics { topics });
    }

    fn on_outcome(&mut self, command: &CatalogCommand, outcome: &CommandOutcome) -> Check {
        match (command, outcome) {
            (CatalogCommand::CreateTopics { topics }, CommandOutcome::TopicsCreated(results)) => {
                for (asked, result) in topics.iter().zip(results) {
                    must!(result.is_ok(), "topic {}: {result:?}", asked.name);
                    self.report.topics_created += 1;
                    if let Some(topic) = self.topics.get_mut(&asked.name) {
                        topic.is_acked = true;
                    }
                }
            }
            (CatalogCommand::DeleteTopics { .. }, CommandOutcome::TopicsDeleted(results)) => {
                must!(results.iter().all(Result::is_ok), "an existing topic: {results:?}");
                self.report.topics_deleted += 1;
            }
            (_, CommandOutcome::ProducerIds(range)) => {
                let (first, end) = (range.first, range.first + i64::from(range.count));
                for (other, count) in &self.producer_ids {
                    let apart = end <= *other || other + i64::from(*count) <= first;
                    must!(apart, "producer ids {first}..{end} were given out before");
                }
                self.producer_ids.push((range.first, range.count));
            }
            (_, CommandOutcome::BrokerRegistered) => {}
            other => return Err(Violation { what: format!("an odd outcome: {other:?}") }),
        }
        Ok(())
    }

    /// Does what the catalog says, as the shell does: groups first, then what clients see, then deletions.
    fn publish(&mut self, catalog: &Catalog) -> Check {
        for (name, topic) in &mut self.topics {
            let found = catalog.topic(name).map(|found| found.id);
            let must_be = topic.is_acked && !topic.is_deletion_asked;
            must!(!must_be || found == topic.id, "P1: topic {name} is gone: {found:?}");
            topic.is_acked |= found.is_some();
        }
        let placed: BTreeMap<GroupId, GroupMeta> = catalog.placed_on(NODE, SHARD).collect();
        let node = Rc::clone(&self.node);
        let mut core = node.core.borrow_mut();
        for (group, meta) in &placed {
            if core.partition(*group).is_none() {
                core.create_group(*group, meta.clone());
            }
            if !self.partitions.contains_key(group) {
                let partition = self.new_partition();
                self.partitions.insert(*group, partition);
            }
        }
        let gone: Vec<GroupId> = core
            .group_ids()
            .filter(|group| *group != GroupId::META && !placed.contains_key(group))
            .collect();
        for group in gone {
            core.delete_group(group);
        }
        self.partitions.retain(|group, _| placed.contains_key(group));
        Ok(())
    }

    fn new_partition(&mut self) -> Partition {
        let producers = (0..self.rng.random_range(1..4))
            .map(|_| {
                let first = [0, 0, i32::MAX - 30][self.rng.random_range(0..3)];
                let acks = [RequiredAcks::All, RequiredAcks::Leader, RequiredAcks::None];
                let acks = acks[self.rng.random_range(0..3)];
                (SimProducer::new(self.next(), first), acks)
            })
            .collect();
        Partition { oracle: PartitionOracle::default(), producers }
    }

    // ---- producers ----

    fn pick_partition(&mut self) -> Option<GroupId> {
        let at = self.rng.random_range(0..self.partitions.len().max(1));
        self.partitions.keys().nth(at).copied()
    }

    fn propose(
        &mut self,
        group: GroupId,
        sent: &Sent,
        acks: RequiredAcks,
        pending: Pending,
    ) -> Result<(), ProduceError> {
        let token = self.token();
        let bytes = sent.batch.bytes().clone();
        if let Some(partition) = self.partitions.get_mut(&group) {
            partition.oracle.sends(sent.id, &bytes);
        }
        let retained_bytes = bytes.len() + 100;
        let proposed = self.node.core.borrow_mut().propose_batch(
            group,
            sent.batch.clone(),
            acks,
            retained_bytes,
            token,
        );
        match proposed {
            Ok(()) => {
                self.tokens.insert(token, pending);
            }
            Err(ProduceError::StorageFull) => self.report.storage_full += 1,
            Err(_) => {}
        }
        proposed
    }

    fn produce_plain(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let id = self.next();
        let batch = random_batch(id, None, &mut self.rng);
        let sent = Sent { id, batch, is_waiting: false, was_taken: false, offset: None };
        let acks = [RequiredAcks::All, RequiredAcks::Leader][self.rng.random_range(0..2)];
        let proposed = self.propose(group, &sent, acks, Pending::Plain { group, id });
        let odd = matches!(proposed, Err(ProduceError::Sequence(_)));
        must!(!odd, "P4: a plain batch has no sequence: {proposed:?}");
        Ok(())
    }

    fn produce_sequenced(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let id = self.next();
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        let at = self.rng.random_range(0..partition.producers.len());
        let producer = &mut partition.producers[at].0;
        if self.rng.random_range(0..30) == 0 {
            producer.bump_epoch();
        }
        if producer.can_send() {
            producer.make_next(id, &mut self.rng);
        }
        self.send_open(group, at)
    }

    /// Sends what is not on its way, in order, until something is refused.
    fn send_open(&mut self, group: GroupId, at: usize) -> Check {
        loop {
            let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
            let (producer, acks) = &mut partition.producers[at];
            let acks = *acks;
            let Some(sent) = producer.pending.iter().find(|sent| !sent.is_waiting).cloned() else {
                return Ok(());
            };
            let id = sent.id;
            let proposed =
                self.propose(group, &sent, acks, Pending::Sequenced { group, producer: at, id });
            let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
            let producer = &mut partition.producers[at].0;
            if let Err(error) = proposed {
                return producer.on_answer(id, Err(error));
            }
            if let Some(sent) = producer.pending.iter_mut().find(|sent| sent.id == id) {
                sent.is_waiting = true;
                sent.was_taken = true;
            }
        }
    }

    /// Sends something that a well-behaved client would not.
    fn produce_odd(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let id = self.next();
        let Some(partition) = self.partitions.get(&group) else { return Ok(()) };
        let at = self.rng.random_range(0..partition.producers.len());
        let (producer, acks) = &partition.producers[at];
        let acks = *acks;
        let in_flight = producer.pending.iter().find(|sent| sent.is_waiting).cloned();
        let odd = match self.rng.random_range(0..8) {
            0 => producer.out_of_order(id, &mut self.rng),
            1 => producer.bad_epoch_start(id, &mut self.rng),
            2 => producer.stale(),
            3..5 => {
                if let Some(sent) = in_flight {
                    let pending = Pending::Odd { group, id: sent.id, expected: None };
                    let proposed = self.propose(group, &sent, acks, pending);
                    let bad = matches!(proposed, Err(ProduceError::Sequence(_)));
                    must!(!bad, "P4: a duplicate of batch {}: {proposed:?}", sent.id);
                }
                return Ok(());
            }
            _ => producer.duplicate(&mut self.rng),
        };
        let Some((sent, expected)) = odd else { return Ok(()) };
        let pending = Pending::Odd { group, id: sent.id, expected: Some(expected) };
        if let Err(error) = self.propose(group, &sent, acks, pending) {
            self.report.refused += u64::from(matches!(error, ProduceError::Sequence(_)));
            check_odd(sent.id, expected, Err(error))?;
        }
        Ok(())
    }

    // ---- readers ----

    fn fetch(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        if self.reads.len() >= READS_MAX {
            return self.poll_read();
        }
        let view = self.node.core.borrow().partition(group);
        let Some(view) = view else { return Ok(()) };
        let offset = Offset(self.rng.random_range(0..view.end_offset.0 + 3));
        let bytes_max = [1, 4_000, 200_000][self.rng.random_range(0..3)];
        let planned = self.node.core.borrow_mut().plan_read(group, offset, bytes_max, -1);
        let plan = match planned {
            Ok(plan) => plan,
            Err(FetchError::NotLeader) => {
                must!(!view.is_ready, "a ready leader does not lead");
                return Ok(());
            }
            Err(FetchError::OffsetOutOfRange { .. }) => {
                must!(offset > view.end_offset, "{offset} is within the log");
                return Ok(());
            }
            Err(error) => return Err(Violation { what: format!("fetch of {offset}: {error}") }),
        };
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        partition.oracle.saw_high_watermark(plan.high_watermark)?;
        let nothing = plan.batches.is_empty() && plan.disk.is_none();
        must!(nothing == (offset >= plan.high_watermark), "P6: {offset} got {plan:?}");
        if !plan.batches.is_empty() {
            self.report.tail_reads += 1;
            let batches: Vec<ReadBatch> = plan
                .batches
                .iter()
                .map(|cached| ReadBatch {
                    base_offset: cached.base_offset,
                    epoch: cached.epoch,
                    bytes: cached.bytes.clone(),
                    is_patched: false,
                })
                .collect();
            partition.oracle.read(offset, plan.high_watermark, &batches)?;
        }
        if let Some(range) = plan.disk {
            let node = Rc::clone(&self.node);
            let task = Box::pin(async move {
                node.wal.read_batches(group, range.start, range.end, bytes_max).await
            });
            let high_watermark = plan.high_watermark;
            self.reads.push(DiskRead { group, offset, high_watermark, task });
        }
        Ok(())
    }

    fn wait(&mut self) {
        let Some(group) = self.pick_partition() else { return };
        let waiter = WaiterId(self.next().unsigned_abs());
        let Some(view) = self.node.core.borrow().partition(group) else { return };
        let beyond = view.high_watermark;
        self.waiters.insert(waiter, (group, beyond));
        self.node.core.borrow_mut().wait_for_data(group, beyond, waiter);
    }

    // ---- trouble ----

    fn disturb(&mut self) {
        match self.rng.random_range(0..6) {
            0 => {
                let now = self.disk.counts().changes();
                self.disk.crash_at_op(now + self.rng.random_range(1..40));
                self.is_armed = true;
            }
            1 => self.arm(Fault::SyncError),
            2 => {
                let fault = [Fault::WriteError, Fault::WriteShort][self.rng.random_range(0..2)];
                self.arm(fault);
            }
            3 => self.arm(Fault::ReadError),
            4 => {
                let files = block_on(chronik_engine::disk::Disk::list(&self.disk, &self.options.dir));
                let used: u64 = files.unwrap_or_default().iter().map(|file| file.len).sum();
                self.disk.set_capacity(Some(used + self.rng.random_range(0..2) * (64 << 10)));
            }
            _ => self.disk.set_capacity(None),
        }
    }

    fn arm(&mut self, fault: Fault) {
        self.disk.fail_after(self.rng.random_range(0..20), fault);
        self.is_armed = true;
    }

    fn crash_mode(&mut self) -> CrashMode {
        match self.rng.random_range(0..6) {
            0 => CrashMode::KEEP_ALL,
            1 => CrashMode::LOSE_ALL,
            2 => {
                let seed = self.rng.random();
                CrashMode { writes: CrashEnding::Subset { seed }, names: NameEnding::Random }
            }
            _ => CrashMode::RANDOM,
        }
    }

    /// The process dies, or the power goes. Then it starts again.
    fn crash(&mut self) -> Check {
        self.report.crashes += 1;
        let mode = self.crash_mode();
        self.disk.crash(mode);
        self.disk.set_capacity(None);
        self.restart()
    }

    /// A stop in good order: everybody is answered, the log is closed.
    fn clean_restart(&mut self) -> Check {
        self.report.clean_stops += 1;
        let before = self.report.crashes;
        self.node.core.borrow_mut().abort_all();
        self.absorb()?;
        must!(self.tokens.is_empty(), "tokens are open after the stop: {:?}", self.tokens);
        must!(self.waiters.is_empty(), "waiters are left after the stop: {:?}", self.waiters);
        self.settle()?;
        if self.report.crashes > before {
            return Ok(());
        }
        let states = self.states();
        match block_on(self.node.wal.close_clean()) {
            Ok(_) => self.restart()?,
            Err(error) if self.is_armed && io_failed(&error) => return self.crash(),
            Err(error) => {
                return Err(Violation { what: format!("the log does not close: {error:?}") });
            }
        }
        if self.report.crashes > before {
            return Ok(());
        }
        self.settle()?;
        let replayed = self.states();
        must!(states == replayed, "replayed {replayed:?}, it was {states:?}");
        Ok(())
    }

    /// What the state machines are, without what is local to a life of the shard.
    fn states(&self) -> BTreeMap<GroupId, Vec<u8>> {
        use chronik_shards::core::producers::ProducersImage;
        let plain = |group: GroupId, state: Vec<u8>| match ProducersImage::decode(&state) {
            Ok(mut image) if group != GroupId::META => {
                image.producers.iter_mut().for_each(|producer| producer.active_ms = 0);
                image.encode()
            }
            _ => state,
        };
        let core = self.node.core.borrow();
        core.checkpoints().into_iter().map(|c| (c.group, plain(c.group, c.state))).collect()
    }

    fn restart(&mut self) -> Check {
        self.writer = None;
        self.upkeep = None;
        self.reads.clear();
        self.tokens.clear();
        self.waiters.clear();
        for partition in self.partitions.values_mut() {
            partition.oracle.forget_order();
            partition.producers.iter_mut().for_each(|(producer, _)| producer.on_crash());
        }
        self.report.rolls += self.node.rolls.get();
        self.report.reclaimed += self.node.reclaimed.get();
        let (wal, mut recovered) = self.reopen()?;
        self.log.recovered(&recovered)?;
        if self.bug == Some(Bug::LoseDedupState) {
            for group in &mut recovered {
                if group.checkpoint.group != GroupId::META {
                    group.checkpoint.state.clear();
                }
            }
        }
        let config = core_config(&mut self.rng);
        let core = ShardCore::new(config, recovered, self.now_ms)
            .map_err(|error| Violation { what: format!("the core does not start: {error:?}") })?;
        self.node = Node::new(core, wal, self.bug);
        self.start_core()?;
        if self.rng.random_range(0..10) < 7 {
            self.settle()?;
            self.verify()?;
        }
        Ok(())
    }

    fn reopen(
        &mut self,
    ) -> Check<(Wal<HookedDisk>, Vec<chronik_engine::wal::RecoveredGroup>)> {
        loop {
            self.disk.clear_faults();
            self.is_armed = self.rng.random_range(0..5) == 0;
            let now = self.disk.counts().changes();
            let crash_at = if self.is_armed { self.rng.random_range(1..8) } else { u64::MAX / 2 };
            self.disk.crash_at_op(now + crash_at);
            let hooked = HookedDisk::new(self.disk.clone(), self.bug);
            match block_on(Wal::open(hooked, self.options.clone())) {
                Ok((wal, recovered, _)) => return Ok((wal, recovered)),
                Err(error) if self.is_armed && io_failed(&error) => {
                    self.report.recovery_crashes += 1;
                    let mode = self.crash_mode();
                    self.disk.crash(mode);
                }
                Err(error) => {
                    return Err(Violation { what: format!("P1: the log does not open: {error:?}") });
                }
            }
        }
    }

    fn start_core(&mut self) -> Check {
        {
            let mut core = self.node.core.borrow_mut();
            if core.partition(GroupId::META).is_none() {
                let replica = ReplicaId(self.rng.random_range(1..u64::MAX));
                let meta = GroupMeta { replica, voters: vec![replica], ..GroupMeta::default() };
                core.create_group(GroupId::META, meta);
            }
        }
        let old_catalog = self.node.core.borrow().catalog();
        if let Some(catalog) = old_catalog.filter(|_| self.bug == Some(Bug::PublishOldCatalog)) {
            self.publish(&catalog)?;
        }
        self.node.core.borrow_mut().start();
        self.absorb()
    }

    /// Ends all trouble and lets everything that is under way come to its end.
    fn settle(&mut self) -> Check {
        self.disk.set_capacity(None);
        for _ in 0..20_000 {
            let busy = self.writer.is_some() || self.node.core.borrow().has_work();
            if busy {
                self.poll_writer()?;
            } else if self.upkeep.is_some() {
                self.poll_upkeep()?;
            } else if !self.reads.is_empty() {
                self.poll_read()?;
            } else {
                return self.absorb();
            }
            self.absorb()?;
        }
        Err(Violation { what: "the shard does not come to rest".into() })
    }

    /// Reads every log from its beginning, and compares it with all that is known. To be called at rest.
    fn verify(&mut self) -> Check {
        self.report.verified += 1;
        self.disk.clear_faults();
        let checkpoints = self.node.core.borrow().checkpoints();
        for (group, partition) in &mut self.partitions {
            let view = self.node.core.borrow().partition(*group);
            let Some(view) = view.filter(|view| view.is_ready) else {
                return Err(Violation { what: format!("group {group} has no leader at rest") });
            };
            let batches = read_all(&self.node.wal, *group, view.high_watermark);
            let batches = match batches {
                Ok(batches) => batches,
                Err(error) if self.is_armed && read_io_failed(&error) => return Ok(()),
                Err(error) => {
                    return Err(Violation { what: format!("P1: group {group}: {error:?}") });
                }
            };
            partition.oracle.read_whole(view.high_watermark, &batches)?;
            let state = checkpoints.iter().find(|checkpoint| checkpoint.group == *group);
            let state = state.map_or(&[][..], |checkpoint| &checkpoint.state);
            check_producers(*group, state, &batches)?;
        }
        Ok(())
    }

    /// The end of a run: everything heals, and every producer comes through.
    fn finish(&mut self) -> Check {
        for _ in 0..200 {
            self.disk.clear_faults();
            self.disk.crash_at_op(u64::MAX);
            self.settle()?;
            // A roll may have waited for room until now; with room, produce goes on.
            self.poll_upkeep()?;
            self.settle()?;
            let groups: Vec<GroupId> = self.partitions.keys().copied().collect();
            let mut is_open = false;
            for group in groups {
                let count = self.partitions.get(&group).map_or(0, |p| p.producers.len());
                for at in 0..count {
                    self.send_open(group, at)?;
                    let partition = self.partitions.get(&group);
                    is_open |= partition.is_some_and(|p| !p.producers[at].0.pending.is_empty());
                }
            }
            self.absorb()?;
            if !is_open {
                self.settle()?;
                must!(self.tokens.is_empty(), "tokens are open at rest: {:?}", self.tokens);
                self.verify()?;
                self.report.rolls += self.node.rolls.get();
                self.report.reclaimed += self.node.reclaimed.get();
                return Ok(());
            }
        }
        Err(Violation { what: "a producer does not come through".into() })
    }
}

fn from_disk(stored: StoredBatch) -> ReadBatch {
    ReadBatch {
        base_offset: stored.base_offset,
        epoch: stored.epoch,
        bytes: stored.bytes,
        is_patched: true,
    }
}

fn read_all(
    wal: &Wal<HookedDisk>,
    group: GroupId,
    high_watermark: Offset,
) -> Result<Vec<ReadBatch>, ReadError> {
    let mut all: Vec<ReadBatch> = Vec::new();
    let mut from = Offset(0);
    while from < high_watermark {
        let read = block_on(wal.read_batches(group, from, high_watermark, 1 << 20))?;
        let Some(last) = read.last() else { break };
        from = last.base_offset.plus(last.offset_count);
        all.extend(read.into_iter().map(from_disk));
    }
    Ok(all)
}
