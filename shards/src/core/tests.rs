use bytes::Bytes;
use chronik_engine::batch::{BatchBuilder, HEADER_BYTES, RecordBatch};
use chronik_engine::ids::ReplicaId;
use chronik_engine::wal::record::{EntryKind, LogPosition};
use uuid::Uuid;

use super::*;
use crate::catalog::{Broker, CatalogCommand, ClusterId, Incarnation, TopicRef};

mod alone;
mod checkpoints;
mod commit_told;
mod fill;
mod full;
mod group_state;
mod held;
mod log_start;
mod lost;
mod nodes;
mod reads;
mod refusal;
mod relaxed;
mod repair;
mod segments;
mod stall;
mod ticks;
mod transfer;
mod trio;

const GROUP: GroupId = GroupId(1);
const BLOCK_BYTES: usize = 8 << 20;

fn config() -> CoreConfig {
    CoreConfig {
        shard: ShardId(0),
        node: NodeId(1),
        seed: 1,
        tail_cache_bytes: 1 << 20,
        in_flight_bytes_max: 1 << 20,
        producer_expiration_ms: 1000,
        stopwatch_ns: || 0,
        lag_ticks_max: 600,
        follower_read_staleness_max_ms: 10_000,
    }
}

fn alone(replica: u64) -> GroupMeta {
    let replica = ReplicaId(replica);
    GroupMeta { replica, voters: vec![replica], ..GroupMeta::default() }
}

fn batch(records: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new();
    for _ in 0..records {
        builder = builder.record(1000, None, Some(b"value"));
    }
    builder.build().unwrap()
}

fn sequenced(sequence: i32, records: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new().producer(7, 0, sequence);
    for _ in 0..records {
        builder = builder.record(1000, None, Some(b"value"));
    }
    builder.build().unwrap()
}

fn broker() -> Broker {
    Broker {
        node: NodeId(1),
        host: "h".to_owned(),
        port: 1,
        rack: None,
        shards: 1,
        incarnation: Incarnation(Uuid::from_u128(1)),
        meta_replica: ReplicaId(5),
        raft_addr: String::new(),
        is_cordoned: false,
        is_read_only: false,
    }
}

/// A core whose disk is as fast and as reliable as the test wants.
struct Bench {
    core: ShardCore,
    records: Vec<WalRecord>,
    next_token: u64,
}

impl Bench {
    fn new() -> Bench {
        let core = ShardCore::new(config(), Vec::new(), 0).unwrap();
        Bench { core, records: Vec::new(), next_token: 0 }
    }

    fn with_partition() -> Bench {
        let mut bench = Bench::new();
        bench.core.create_group(GROUP, alone(5));
        bench.write_all();
        bench.core.take_effects();
        bench
    }

    fn produce(&mut self, batch: RecordBatch, acks: RequiredAcks) -> Result<Token, ProduceError> {
        self.next_token += 1;
        let token = Token(self.next_token);
        let retained_bytes = batch.size();
        self.core.propose_batch(GROUP, batch, acks, retained_bytes, token).map(|()| token)
    }

    fn command(&mut self, command: &CatalogCommand) -> Result<Token, ProduceError> {
        self.next_token += 1;
        self.core.propose_command(command, Token(self.next_token)).map(|()| Token(self.next_token))
    }

    fn write_all(&mut self) {
        while let Some(block) = self.core.take_block(BLOCK_BYTES) {
            self.records.extend(block.records.iter().cloned());
            self.core.block_persisted(block);
        }
    }

    fn replies(&mut self) -> Vec<(Token, Result<i64, ProduceError>)> {
        let replies = self.core.take_effects().replies;
        let offset = |ack| match ack {
            Ack::Appended(appended) => appended.base_offset.0,
            Ack::Command(outcome) => panic!("{outcome:?}"),
            Ack::Groups => panic!("a command about consumer groups"),
            Ack::LogStart(offset) => offset.0,
        };
        replies.into_iter().map(|(token, result)| (token, result.map(offset))).collect()
    }

    /// A crash after everything was written, and a start from the checkpoints alone.
    fn restart(&mut self) {
        let checkpoints = self.core.checkpoints();
        self.restart_from(checkpoints, &[]);
    }

    /// A crash after `since` was written, and a start from checkpoints taken before. Of a batch the log gives back no
    /// more than the header.
    fn restart_from(&mut self, checkpoints: Vec<GroupCheckpoint>, since: &[WalRecord]) {
        let recovered = checkpoints.into_iter().map(|checkpoint| recover(checkpoint, since));
        self.core = ShardCore::new(config(), recovered.collect(), 0).unwrap();
        self.core.start();
    }
}

fn recover(checkpoint: GroupCheckpoint, since: &[WalRecord]) -> RecoveredGroup {
    let mut recovered = RecoveredGroup {
        hard_state: checkpoint.hard_state,
        entries: Vec::new(),
        last: checkpoint.last,
        log_start: checkpoint.log_start,
        log_start_offset: checkpoint.log_start_offset,
        checkpoint,
    };
    for record in since {
        match record {
            WalRecord::Entry { group, entry } if *group == recovered.checkpoint.group => {
                let mut entry = entry.clone();
                if entry.kind == EntryKind::Batch {
                    entry.payload.truncate(HEADER_BYTES);
                }
                recovered.last = LogPosition { index: entry.index, term: entry.term };
                recovered.entries.push(entry);
            }
            WalRecord::HardState { group, state } if *group == recovered.checkpoint.group => {
                recovered.hard_state = *state;
            }
            _ => {}
        }
    }
    recovered
}

#[test]
fn given_a_new_group_when_its_block_is_durable_then_it_can_be_read_and_not_before() {
    let mut bench = Bench::new();
    bench.core.create_group(GROUP, alone(5));
    let before = bench.core.partition(GROUP).unwrap();
    assert!(before.is_leader && !before.is_ready, "{before:?}");
    assert_eq!(bench.core.leader_view(GROUP, -1), Err(FetchError::NotLeader));
    let token = bench.produce(batch(3), RequiredAcks::All).unwrap();
    assert!(bench.core.checkpoints().is_empty(), "I5: nothing is durable yet");
    bench.write_all();
    assert_eq!(bench.replies(), [(token, Ok(0))]);
    let after = bench.core.leader_view(GROUP, -1).unwrap();
    assert_eq!((after.is_ready, after.high_watermark), (true, Offset(3)));
    assert!(matches!(bench.records[0], WalRecord::GroupCreated { group: GROUP, .. }));
    assert_eq!(bench.core.checkpoints().len(), 1);
}

#[test]
fn given_a_block_in_flight_when_more_is_proposed_then_it_goes_into_the_next_block() {
    let mut bench = Bench::with_partition();
    let first = bench.produce(batch(1), RequiredAcks::All).unwrap();
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    let second = bench.produce(batch(2), RequiredAcks::None).unwrap();
    let third = bench.produce(batch(1), RequiredAcks::Leader).unwrap();
    assert_eq!(bench.replies(), [], "nothing is durable");
    bench.core.block_persisted(block);
    assert_eq!(bench.replies(), [(first, Ok(0))]);
    assert!(bench.core.has_work());
    bench.write_all();
    assert_eq!(bench.replies(), [(second, Ok(1)), (third, Ok(3))]);
    assert!(!bench.core.has_work());
    assert_eq!(bench.core.in_flight_bytes(), 0);
}

#[test]
fn given_a_duplicate_when_the_first_is_in_flight_then_both_are_answered_with_its_offset() {
    let mut bench = Bench::with_partition();
    let first = bench.produce(sequenced(0, 2), RequiredAcks::All).unwrap();
    let again = bench.produce(sequenced(0, 2), RequiredAcks::All).unwrap();
    assert_eq!(bench.replies(), [], "the first one's fate is not known");
    bench.write_all();
    assert_eq!(bench.replies(), [(first, Ok(0)), (again, Ok(0))]);
    let late = bench.produce(sequenced(0, 2), RequiredAcks::All).unwrap();
    assert_eq!(bench.replies(), [(late, Ok(0))]);
    assert!(matches!(
        bench.produce(sequenced(3, 1), RequiredAcks::All),
        Err(ProduceError::Sequence(_))
    ));
    bench.restart();
    bench.write_all();
    let later = bench.produce(sequenced(0, 2), RequiredAcks::All).unwrap();
    assert_eq!(bench.replies(), [(later, Ok(0))], "the checkpoint remembers it");
    bench.produce(sequenced(2, 1), RequiredAcks::All).unwrap();
}

#[test]
fn given_a_checkpoint_and_the_log_since_when_restarted_then_producers_are_known_as_before() {
    let mut bench = Bench::with_partition();
    for sequence in 0..3 {
        bench.produce(sequenced(sequence * 2, 2), RequiredAcks::All).unwrap();
    }
    bench.write_all();
    let (checkpoints, written) = (bench.core.checkpoints(), bench.records.len());
    for sequence in 3..7 {
        bench.produce(sequenced(sequence * 2, 2), RequiredAcks::All).unwrap();
        // Each in a block of its own, so that the commit index on disk is that of the block before.
        bench.write_all();
    }
    let since = bench.records.split_off(written);
    bench.restart_from(checkpoints, &since);
    assert_eq!(bench.produce(sequenced(4, 2), RequiredAcks::All), Err(ProduceError::NotLeader));
    bench.write_all();
    for sequence in 2..7 {
        let again = bench.produce(sequenced(sequence * 2, 2), RequiredAcks::All).unwrap();
        assert_eq!(bench.replies(), [(again, Ok(i64::from(sequence) * 2))]);
    }
    assert!(matches!(
        bench.produce(sequenced(2, 2), RequiredAcks::All),
        Err(ProduceError::Sequence(producers::SequenceError::DuplicateSequence { .. }))
    ));
    let next = bench.produce(sequenced(14, 1), RequiredAcks::All).unwrap();
    bench.write_all();
    assert_eq!(bench.replies(), [(next, Ok(14))]);
}

#[test]
fn given_batches_that_clients_may_not_write_when_proposed_then_they_are_refused() {
    let mut bench = Bench::with_partition();
    let record = |builder: BatchBuilder| builder.record(0, None, Some(b"x")).build().unwrap();
    let control = record(BatchBuilder::new().control());
    let transactional = record(BatchBuilder::new().producer(1, 0, 0).transactional());
    assert_eq!(bench.produce(control, RequiredAcks::All), Err(ProduceError::ControlBatch));
    assert_eq!(
        bench.produce(transactional, RequiredAcks::All),
        Err(ProduceError::TransactionalBatch)
    );
    assert!(!bench.core.has_work(), "nothing was appended");
}

#[test]
fn given_a_group_when_it_is_deleted_then_whoever_waits_is_told_and_its_checkpoint_stays_a_while() {
    let mut bench = Bench::with_partition();
    let token = bench.produce(batch(1), RequiredAcks::All).unwrap();
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    bench.core.wait_for_data(GROUP, Offset(0), WaiterId(9));
    bench.core.delete_group(GROUP);
    let effects = bench.core.take_effects();
    assert_eq!(effects.replies, [(token, Err(ProduceError::UnknownPartition))]);
    assert_eq!(effects.wakes, [WaiterId(9)]);
    assert_eq!(bench.core.partition(GROUP), None);
    assert_eq!(bench.produce(batch(1), RequiredAcks::All), Err(ProduceError::UnknownPartition));
    bench.core.block_persisted(block);
    let checkpoints = bench.core.checkpoints();
    assert_eq!(checkpoints.len(), 1, "the log still has the group");
    assert_eq!(checkpoints[0].last.index, RaftIndex(2), "and the entry that was in flight");
    bench.write_all();
    assert!(bench.core.checkpoints().is_empty());
    assert_eq!(bench.replies(), []);
    assert_eq!(bench.core.in_flight_bytes(), 0);
}

#[test]
fn given_tokens_when_the_shard_stops_then_each_is_answered_once() {
    let mut bench = Bench::with_partition();
    let first = bench.produce(batch(1), RequiredAcks::All).unwrap();
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    let second = bench.produce(batch(1), RequiredAcks::All).unwrap();
    bench.core.wait_for_data(GROUP, Offset(0), WaiterId(3));
    bench.core.abort_all();
    let effects = bench.core.take_effects();
    let stopped = |token| (token, Err(ProduceError::ShuttingDown));
    assert_eq!(effects.replies, [stopped(first), stopped(second)]);
    assert_eq!(effects.wakes, [WaiterId(3)]);
    bench.core.block_persisted(block);
    bench.write_all();
    assert_eq!(bench.replies(), []);
    assert_eq!(bench.produce(batch(1), RequiredAcks::All), Err(ProduceError::ShuttingDown));
}

#[test]
fn given_bounds_when_they_are_reached_then_batches_are_refused_and_the_rest_goes_on() {
    let mut bench = Bench::with_partition();
    let large = BatchBuilder::new().record(0, None, Some(&vec![0; 700 << 10])).build().unwrap();
    bench.produce(large.clone(), RequiredAcks::All).unwrap();
    assert_eq!(bench.produce(large.clone(), RequiredAcks::All), Err(ProduceError::Overloaded));
    bench.write_all();
    bench.produce(large, RequiredAcks::All).unwrap();
    bench.write_all();
    bench.core.set_storage_full(true);
    assert_eq!(bench.produce(batch(1), RequiredAcks::All), Err(ProduceError::StorageFull));
    assert!(bench.core.leader_view(GROUP, -1).is_ok(), "reads go on");
    bench.core.set_storage_full(false);
    bench.produce(batch(1), RequiredAcks::All).unwrap();
}

#[test]
fn given_records_when_read_then_the_tail_or_the_disk_is_named_and_nothing_beyond_is_seen() {
    let mut bench = Bench::with_partition();
    bench.produce(batch(3), RequiredAcks::All).unwrap();
    bench.produce(batch(2), RequiredAcks::All).unwrap();
    bench.write_all();
    bench.produce(batch(4), RequiredAcks::All).unwrap();
    let plan = |core: &mut ShardCore, offset| core.plan_read(GROUP, Offset(offset), 1 << 20, -1);
    let bases = |plan: ReadPlan| plan.batches.iter().map(|b| b.base_offset.0).collect::<Vec<_>>();
    assert_eq!(bases(plan(&mut bench.core, 1).unwrap()), [0, 3], "the whole batch");
    assert!(bases(plan(&mut bench.core, 5).unwrap()).is_empty(), "not committed");
    assert!(bases(plan(&mut bench.core, 9).unwrap()).is_empty(), "not even there");
    let beyond = plan(&mut bench.core, 10).unwrap_err();
    assert!(matches!(beyond, FetchError::OffsetOutOfRange { .. }), "{beyond}");
    let one = bench.core.plan_read(GROUP, Offset(0), 1, -1).unwrap();
    assert_eq!(bases(one), [0], "at least one batch");
    bench.write_all();
    bench.restart();
    assert_eq!(plan(&mut bench.core, 0).unwrap_err(), FetchError::NotLeader);
    bench.write_all();
    let cold = plan(&mut bench.core, 2).unwrap();
    assert_eq!((cold.disk, cold.high_watermark), (Some(Offset(2)..Offset(9)), Offset(9)));
}

#[test]
fn given_clients_of_other_epochs_when_they_ask_then_they_are_told_so() {
    let mut bench = Bench::with_partition();
    bench.restart();
    bench.write_all();
    assert_eq!(bench.core.partition(GROUP).unwrap().leader_epoch, Term(2));
    let view = |epoch| bench.core.leader_view(GROUP, epoch).map(|_| ());
    assert_eq!(view(1), Err(FetchError::FencedLeaderEpoch { epoch: 1, current: 2 }));
    assert_eq!(view(3), Err(FetchError::UnknownLeaderEpoch { epoch: 3, current: 2 }));
    assert_eq!(view(2), Ok(()));
    assert_eq!(view(-1), Ok(()));
}

#[test]
fn given_epochs_when_their_end_is_asked_for_then_the_answers_are_kafkas() {
    let mut bench = Bench::with_partition();
    bench.produce(batch(3), RequiredAcks::All).unwrap(); // epoch 1: 0..3
    bench.write_all();
    bench.restart(); // epoch 2 stays empty
    bench.write_all();
    bench.restart(); // epoch 3: 3..5
    bench.produce(batch(2), RequiredAcks::All).unwrap_or(Token(0));
    bench.write_all();
    bench.restart(); // epoch 4
    bench.write_all();
    let end = |epoch| {
        let (epoch, offset) = bench.core.end_offset_for_epoch(GROUP, epoch, -1).unwrap();
        (epoch, offset.0)
    };
    assert_eq!(end(-1), (-1, -1));
    assert_eq!(end(0), (0, 0), "older than all: where the first one begins");
    assert_eq!(end(1), (1, 3));
    assert_eq!(end(2), (1, 3), "epoch 2 has no records");
    assert_eq!(end(3), (3, 5));
    assert_eq!(end(4), (4, 5));
    assert_eq!(end(5), (-1, -1), "newer than all");
    assert_eq!(bench.core.epoch_of(GROUP, Offset(2)), Some(Term(1)));
    assert_eq!(bench.core.epoch_of(GROUP, Offset(4)), Some(Term(3)));
    assert_eq!(bench.core.epoch_of(GroupId(99), Offset(4)), None);
}

#[test]
fn given_waiters_when_data_is_committed_then_they_are_woken_and_not_before() {
    let mut bench = Bench::with_partition();
    bench.core.wait_for_data(GROUP, Offset(0), WaiterId(1));
    bench.core.wait_for_data(GROUP, Offset(1), WaiterId(2));
    bench.core.wait_for_data(GroupId(99), Offset(0), WaiterId(3));
    assert_eq!(bench.core.take_effects().wakes, [WaiterId(3)], "there is nothing to wait for");
    bench.produce(batch(1), RequiredAcks::All).unwrap();
    let block = bench.core.take_block(BLOCK_BYTES).unwrap();
    assert_eq!(bench.core.take_effects().wakes, []);
    bench.core.block_persisted(block);
    assert_eq!(bench.core.take_effects().wakes, [WaiterId(1)]);
    bench.core.wait_for_data(GROUP, Offset(0), WaiterId(4));
    assert_eq!(bench.core.take_effects().wakes, [WaiterId(4)], "there is data already");
    assert_eq!(bench.core.waiting_fetches(), 1);
}

#[test]
fn given_a_full_disk_when_commands_come_then_only_what_a_start_and_a_cleaner_need_is_taken() {
    let mut bench = Bench::new();
    bench.core.create_group(GroupId::META, alone(5));
    bench.write_all();
    bench.core.set_storage_full(true);
    let register = CatalogCommand::RegisterBroker {
        cluster_id: ClusterId(Uuid::from_u128(1)),
        broker: broker(),
        replica_seed: 1,
        replaces: None,
    };
    assert!(bench.command(&register).is_ok());
    assert!(bench.command(&CatalogCommand::DeleteTopics { topics: Vec::new() }).is_ok());
    let ids = CatalogCommand::AllocateProducerIds { count: 10 };
    assert_eq!(bench.command(&ids), Err(ProduceError::StorageFull));
}

#[test]
fn given_a_command_that_takes_more_memory_than_reading_one_may_when_proposed_then_it_is_refused() {
    let mut bench = Bench::new();
    bench.core.create_group(GroupId::META, alone(5));
    bench.write_all();
    let topics = (0..1_000_000).map(|n| TopicRef::Name(format!("t{n}"))).collect();
    let refused = bench.command(&CatalogCommand::DeleteTopics { topics });
    assert!(matches!(refused, Err(ProduceError::CommandTooLarge)), "{refused:?}");
    let topics = vec![TopicRef::Name("t".to_owned())];
    assert!(bench.command(&CatalogCommand::DeleteTopics { topics }).is_ok());
}

#[test]
fn given_the_meta_group_when_commands_commit_then_outcome_and_catalog_come_out() {
    let mut bench = Bench::new();
    bench.core.create_group(GroupId::META, alone(5));
    bench.write_all();
    assert!(bench.core.take_effects().catalog.is_some(), "it leads: this is the catalog");
    let cluster_id = ClusterId(Uuid::from_u128(1));
    let register = CatalogCommand::RegisterBroker {
        cluster_id,
        broker: broker(),
        replica_seed: 1,
        replaces: None,
    };
    let token = bench.command(&register).unwrap();
    let ids = bench.command(&CatalogCommand::AllocateProducerIds { count: 10 }).unwrap();
    assert!(bench.core.take_effects().catalog.is_none());
    bench.write_all();
    let effects = bench.core.take_effects();
    assert_eq!(effects.replies[0], (token, Ok(Ack::Command(CommandOutcome::BrokerRegistered))));
    assert!(matches!(
        effects.replies[1],
        (t, Ok(Ack::Command(CommandOutcome::ProducerIds(range)))) if t == ids && range.first == 0
    ));
    let catalog = effects.catalog.unwrap();
    assert_eq!(catalog.cluster_id(), Some(cluster_id));
    bench.restart();
    assert_eq!(bench.core.catalog(), Some(catalog), "the checkpoint holds it");
    assert!(bench.core.take_effects().catalog.is_none(), "it may be an old one");
    bench.write_all();
    assert!(bench.core.take_effects().catalog.is_some());
    assert_eq!(
        bench.produce(batch(1), RequiredAcks::All),
        Err(ProduceError::UnknownPartition),
        "no such group"
    );
}

#[test]
fn given_commands_that_change_nothing_to_be_seen_when_they_commit_then_no_catalog_comes_out() {
    let mut bench = Bench::new();
    bench.core.create_group(GroupId::META, alone(5));
    let register = CatalogCommand::RegisterBroker {
        cluster_id: ClusterId(Uuid::from_u128(1)),
        broker: broker(),
        replica_seed: 1,
        replaces: None,
    };
    let ids = CatalogCommand::AllocateProducerIds { count: 10 };
    bench.command(&register).unwrap();
    bench.write_all();
    bench.command(&ids).unwrap();
    bench.write_all();
    let both = bench.core.take_effects();
    assert!(both.catalog.is_some(), "the registration was not shown before the ids came");
    let gone = CatalogCommand::DeleteTopics { topics: vec![TopicRef::Name("t".to_owned())] };
    for command in [&ids, &gone] {
        bench.command(command).unwrap();
        bench.write_all();
        let effects = bench.core.take_effects();
        assert_eq!((effects.replies.len(), effects.catalog), (1, None), "{command:?}");
    }
    bench.command(&register).unwrap();
    bench.write_all();
    assert_eq!(bench.core.take_effects().catalog, bench.core.catalog(), "the ids are in it, too");
}

#[test]
fn given_many_proposals_when_a_block_is_full_then_the_rest_goes_into_the_next_in_order() {
    let mut bench = Bench::with_partition();
    let mut tokens = Vec::new();
    for _ in 0..100 {
        tokens.push(bench.produce(batch(1), RequiredAcks::All).unwrap());
        // A small block taken each time leaves later proposals to later blocks.
        if tokens.len() % 10 == 0 {
            let block = bench.core.take_block(1).unwrap();
            assert!(block.records.len() <= 11, "{}", block.records.len());
            bench.core.block_persisted(block);
        }
    }
    bench.write_all();
    let expected: Vec<_> = (0..).zip(&tokens).map(|(at, token)| (*token, Ok(at))).collect();
    assert_eq!(bench.replies(), expected);
}

#[test]
fn given_a_silent_producer_when_time_passes_then_it_is_forgotten() {
    let mut bench = Bench::with_partition();
    bench.produce(sequenced(0, 1), RequiredAcks::All).unwrap();
    bench.write_all();
    bench.core.tick(1000);
    assert_eq!(bench.core.partition(GROUP).unwrap().producers, 1);
    bench.core.tick(1001);
    bench.core.tick(1001);
    assert_eq!(bench.core.partition(GROUP).unwrap().producers, 0);
    bench.produce(sequenced(40, 1), RequiredAcks::All).unwrap();
}

#[test]
fn given_bytes_shared_with_a_frame_when_cached_then_the_frame_counts() {
    let mut bench = Bench::with_partition();
    let whole = batch(1);
    let frame = Bytes::from(vec![0; 5000]);
    bench.core.propose_batch(GROUP, whole, RequiredAcks::All, frame.len(), Token(1)).unwrap();
    bench.write_all();
    assert_eq!(bench.core.tail_cache_bytes(), 5000);
}
