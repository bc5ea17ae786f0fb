//! Segments: what has left the log is read from them as before, and they go with what they hold.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, Bytes};
use chronik_engine::batch::RecordBatch;
use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::wait_for;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteTopicsRequest};

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// A batch's timestamp tells its offset.
const EPOCH_MS: i64 = 9_999_999_000_000;

const FOR_EVER: [(&str, &str); 2] =
    [("retention.ms", "-1"), ("message.timestamp.after.max.ms", "9223372036854775807")];

fn start() -> Broker {
    start_with_shards(1)
}

fn start_with_shards(shards: u16) -> Broker {
    let settings = Settings { shards, wal_file_bytes: MIB, ..Settings::new() };
    Broker::start(settings.with_top("wal.indexing_interval = 1")).unwrap()
}

fn connect(broker: &Broker) -> RawConnection {
    RawConnection::open(broker.ports().kafka_addr()).unwrap()
}

/// The value of the record at an offset.
fn value(offset: i64, bytes: usize) -> Vec<u8> {
    let seed = u64::try_from(offset).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    seed.iter().zip(0..=u8::MAX).map(|(seed, at)| seed ^ at).cycle().take(bytes).collect()
}

fn produce(
    connection: &mut RawConnection,
    topic: &str,
    offsets: std::ops::Range<i64>,
    bytes: usize,
) {
    for offset in offsets {
        let batch = BatchBuilder::of_value(value(offset, bytes)).timestamp_ms(EPOCH_MS + offset);
        let produced = connection.produce(topic, 0, batch.build()).unwrap();
        assert_eq!((produced.error_code, produced.base_offset), (0, offset));
    }
}

/// Reads a topic of batches with one record each, and compares all of them.
fn read_all(
    connection: &mut RawConnection,
    topic: &str,
    offsets: std::ops::Range<i64>,
    bytes: usize,
) {
    let mut next = offsets.start;
    while next < offsets.end {
        let response = connection.fetch(topic, 0, next).unwrap();
        let answer = &response.responses[0].partitions[0];
        assert_eq!(answer.error_code, 0, "at {next}");
        let mut rest = answer.records.clone().unwrap_or_default();
        assert!(!rest.is_empty(), "nothing at {next} of {}", offsets.end);
        while rest.len() >= 12 {
            let size = 12 + usize::try_from((&rest[8..12]).get_i32()).unwrap();
            if rest.len() < size {
                break;
            }
            let batch: Bytes = rest.split_to(size);
            let batch = RecordBatch::parse(batch).unwrap();
            assert_eq!(batch.base_offset().0, next);
            let record = batch.records(1 << 20).unwrap().next().unwrap().unwrap();
            assert_eq!(record.value.as_deref(), Some(&value(next, bytes)[..]), "at {next}");
            next += 1;
        }
    }
    assert_eq!(next, offsets.end);
}

/// The names and lengths of the files in one of the first shard's directories.
fn files(broker: &Broker, dir: &str) -> Vec<(String, u64)> {
    files_of(broker, 0, dir)
}

fn files_of(broker: &Broker, shard: u16, dir: &str) -> Vec<(String, u64)> {
    let shard_dir = broker.data_dir().join(format!("shards/{shard:03}"));
    let files = std::fs::read_dir(shard_dir.join(dir)).unwrap();
    // A file may be taken back while it is looked at.
    let named = |file: std::fs::DirEntry| {
        Some((file.file_name().into_string().ok()?, file.metadata().ok()?.len()))
    };
    files.filter_map(|file| named(file.ok()?)).collect()
}

fn log_files(broker: &Broker) -> usize {
    files(broker, "wal").iter().filter(|(name, _)| name.ends_with(".wal")).count()
}

fn wait_for_segments(broker: &Broker) {
    let done = || (log_files(broker) <= 2).then_some(());
    wait_for("the log's files are given back", DEADLINE, done).unwrap_or_else(|error| {
        panic!("{error}: {:?} {:?}", files(broker, "wal"), files(broker, "segments"))
    });
}

#[test]
fn given_several_shards_when_their_logs_are_full_then_each_writes_segments() {
    const SHARDS: u16 = 3;
    let broker = start_with_shards(SHARDS);
    let mut connection = connect(&broker);
    for _ in 0..2 * SHARDS {
        let topic = fresh_name("spread");
        connection.create_topic(&topic, &FOR_EVER).unwrap();
        produce(&mut connection, &topic, 0..30, 100_000);
    }
    for shard in 0..SHARDS {
        let has_segments = || (!files_of(&broker, shard, "segments").is_empty()).then_some(());
        wait_for("segments of each shard", DEADLINE, has_segments)
            .unwrap_or_else(|error| panic!("shard {shard}: {error}"));
    }
}

#[test]
fn given_a_log_of_many_files_when_they_are_given_back_then_everything_is_read_as_before() {
    const LARGE: usize = 50_000;
    let mut broker = start();
    let (large, small, idle) = (fresh_name("large"), fresh_name("small"), fresh_name("idle"));
    let mut connection = connect(&broker);
    for topic in [&large, &small, &idle] {
        connection.create_topic(topic, &FOR_EVER).unwrap();
    }
    produce(&mut connection, &idle, 0..3, 100);
    for round in 0..12 {
        produce(&mut connection, &large, round * 20..(round + 1) * 20, LARGE);
        produce(&mut connection, &small, round * 5..(round + 1) * 5, 100);
    }
    wait_for_segments(&broker);
    let check = |broker: &Broker| {
        let mut connection = connect(broker);
        read_all(&mut connection, &large, 0..240, LARGE);
        read_all(&mut connection, &small, 0..60, 100);
        read_all(&mut connection, &idle, 0..3, 100);
        for offset in [0, 1, 57, 120, 239] {
            assert_eq!(connection.offset_of(&large, EPOCH_MS + offset).unwrap(), offset);
        }
        assert_eq!(connection.offset_of(&large, EPOCH_MS + 240).unwrap(), -1);
        assert_eq!(connection.offset_of(&idle, -3).unwrap(), 2, "the greatest timestamp");
        assert_eq!(connection.offset_of(&idle, EPOCH_MS + 1).unwrap(), 1);
        assert_eq!(connection.offset_of(&large, -2).unwrap(), 0);
        assert_eq!(connection.offset_of(&large, -1).unwrap(), 240);
    };
    check(&broker);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    check(&broker);
    produce(&mut connect(&broker), &large, 240..300, LARGE);
    wait_for_segments(&broker);
    read_all(&mut connect(&broker), &large, 0..300, LARGE);
}

#[test]
fn given_segments_when_records_or_the_topic_are_deleted_then_their_files_go() {
    const LARGE: usize = 50_000;
    let mut broker = start();
    let topic = fresh_name("deleted");
    let mut connection = connect(&broker);
    connection.create_topic(&topic, &FOR_EVER).unwrap();
    produce(&mut connection, &topic, 0..100, LARGE);
    wait_for_segments(&broker);
    let before = files(&broker, "segments");
    let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(70);
    let named = DeleteRecordsTopic::default()
        .with_name(topic_name(&topic))
        .with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![named]).with_timeout_ms(10_000);
    let answer = connection.call(2, &request).unwrap();
    assert_eq!(answer.topics[0].partitions[0].low_watermark, 70, "{answer:?}");
    let fewer = || Some(files(&broker, "segments")).filter(|now| now.len() < before.len());
    let fewer = wait_for("segments before the log start go", DEADLINE, fewer).unwrap();
    read_all(&mut connection, &topic, 70..100, LARGE);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let mut connection = connect(&broker);
    assert_eq!(connection.offset_of(&topic, -2).unwrap(), 70);
    read_all(&mut connection, &topic, 70..100, LARGE);
    assert!(files(&broker, "segments").len() <= fewer.len());
    let request = DeleteTopicsRequest::default()
        .with_topic_names(vec![topic_name(&topic)])
        .with_timeout_ms(10_000);
    assert_eq!(connection.call(5, &request).unwrap().responses[0].error_code, 0);
    let gone = || files(&broker, "segments").is_empty().then_some(());
    wait_for("the segments of the topic go", DEADLINE, gone).unwrap();
}

/// Every key with the value that is read last, and how many records there are.
fn read_keys(
    connection: &mut RawConnection,
    topic: &str,
) -> (BTreeMap<Bytes, Option<Bytes>>, usize) {
    let (mut next, end) =
        (connection.offset_of(topic, -2).unwrap(), connection.offset_of(topic, -1).unwrap());
    let (mut newest, mut records) = (BTreeMap::new(), 0);
    while next < end {
        let response = connection.fetch(topic, 0, next).unwrap();
        let answer = &response.responses[0].partitions[0];
        assert_eq!(answer.error_code, 0, "at {next}");
        let mut rest = answer.records.clone().unwrap_or_default();
        assert!(!rest.is_empty(), "nothing at {next} of {end}");
        while rest.len() >= 12 {
            let size = 12 + usize::try_from((&rest[8..12]).get_i32()).unwrap();
            if rest.len() < size {
                break;
            }
            let batch = RecordBatch::parse_stored(rest.split_to(size)).unwrap();
            for record in batch.records(1 << 20).unwrap() {
                let record = record.unwrap();
                newest.insert(record.key.unwrap(), record.value);
                records += 1;
            }
            next = batch.base_offset().0 + i64::from(batch.last_offset_delta()) + 1;
        }
    }
    (newest, records)
}

#[test]
fn given_a_compacted_topic_when_keys_repeat_then_the_newest_of_each_stays_and_a_kill_changes_nothing()
 {
    const KEYS: usize = 10;
    const ROUNDS: usize = 20;
    let settings = Settings { shards: 1, wal_file_bytes: MIB, ..Settings::new() };
    let settings = settings
        .with_top("wal.indexing_interval = 1")
        .with_top("kafka.log_cleaner_backoff_ms = 100");
    let mut broker = Broker::start(settings).unwrap();
    let mut connection = connect(&broker);
    let topic = fresh_name("compacted");
    let compact = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01")];
    connection.create_topic(&topic, &compact).unwrap();
    let mut expected = BTreeMap::new();
    for round in 0..ROUNDS {
        for key in 0..KEYS {
            let key_bytes = Bytes::from(format!("key-{key}"));
            let value = (key != 3 || round < ROUNDS / 2)
                .then(|| Bytes::from([format!("{round}-").into_bytes(), vec![7; 40_000]].concat()));
            let batch = BatchBuilder::new().record(Some(key_bytes.clone()), value.clone()).build();
            assert_eq!(connection.produce(&topic, 0, batch).unwrap().error_code, 0);
            expected.insert(key_bytes, value);
        }
    }
    let few = || {
        let (_, records) = read_keys(&mut connection, &topic);
        // What the log itself still holds is not compacted.
        (records < KEYS * ROUNDS / 2).then_some(())
    };
    wait_for("old records of each key go", DEADLINE, few).unwrap();
    assert_eq!(read_keys(&mut connection, &topic).0, expected);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let mut connection = connect(&broker);
    let (newest, records) = read_keys(&mut connection, &topic);
    assert_eq!(newest, expected);
    assert!(records < KEYS * ROUNDS / 2);
    assert_eq!(connection.offset_of(&topic, -1).unwrap(), i64::try_from(KEYS * ROUNDS).unwrap());
}

#[test]
fn given_a_short_segment_ms_when_little_is_written_then_it_is_compacted_all_the_same() {
    let settings = Settings { shards: 1, ..Settings::new() };
    let settings = settings
        .with_top("wal.indexing_interval = 1")
        .with_top("wal.roll_ms_min = 1000")
        .with_top("kafka.log_cleaner_backoff_ms = 100");
    let broker = Broker::start(settings).unwrap();
    let mut connection = connect(&broker);
    let topic = fresh_name("quick");
    let compact =
        [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01"), ("segment.ms", "1")];
    connection.create_topic(&topic, &compact).unwrap();
    for value in ["one", "two", "three"] {
        let batch = BatchBuilder::new().record(Some("key".into()), Some(value.into())).build();
        assert_eq!(connection.produce(&topic, 0, batch).unwrap().error_code, 0);
    }
    let one = || (read_keys(&mut connection, &topic).1 == 1).then_some(());
    wait_for("the old values go", DEADLINE, one).unwrap();
    let newest = BTreeMap::from([(Bytes::from("key"), Some(Bytes::from("three")))]);
    assert_eq!(read_keys(&mut connection, &topic).0, newest);
    assert_eq!(connection.offset_of(&topic, -2).unwrap(), 0);
    assert_eq!(connection.offset_of(&topic, -1).unwrap(), 3);
}

fn metric(broker: &Broker, name: &str) -> f64 {
    broker.metrics().unwrap().sum(name)
}

/// Writes the same few keys time and again.
fn repeat_keys(connection: &mut RawConnection, topic: &str) {
    for value in 0..40_u8 {
        let key = Bytes::from(format!("key-{}", value % 4));
        let value = Bytes::from(vec![value; 40_000]);
        let batch = BatchBuilder::new().record(Some(key), Some(value)).build();
        assert_eq!(connection.produce(topic, 0, batch).unwrap().error_code, 0);
    }
}

#[test]
fn given_a_damaged_segment_when_compaction_goes_round_then_it_is_left_alone_and_others_have_theirs()
{
    let settings = |backoff_ms: u32| {
        let settings = Settings { shards: 1, wal_file_bytes: MIB, ..Settings::new() };
        settings
            .with_top("wal.indexing_interval = 1")
            .with_top(&format!("kafka.log_cleaner_backoff_ms = {backoff_ms}"))
    };
    let mut broker = Broker::start(settings(3_600_000)).unwrap();
    let mut connection = connect(&broker);
    let (bad, good) = (fresh_name("damaged"), fresh_name("whole"));
    let compact = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.01")];
    for topic in [&bad, &good] {
        connection.create_topic(topic, &compact).unwrap();
        repeat_keys(&mut connection, topic);
    }
    let prefix = connection.topic_id(&bad).unwrap().simple().to_string();
    wait_for_segments(&broker);
    broker.kill().unwrap();
    let damaged =
        files(&broker, "segments").into_iter().find(|(name, _)| name.starts_with(&prefix));
    let path = broker.data_dir().join("shards/000/segments").join(damaged.unwrap().0);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
    *broker.settings_mut() = settings(50);
    broker.start_again().unwrap();
    let mut connection = connect(&broker);
    // Rounds go by: those of the other topic show it.
    for round in 1..=3 {
        let failed_and_went_on = || {
            let is_compacted = metric(&broker, "chronik_compactions_total") >= f64::from(round);
            let has_failed = metric(&broker, "chronik_compaction_failures_total") >= 1.0;
            (is_compacted && has_failed).then_some(())
        };
        wait_for("the other topic is compacted", DEADLINE, failed_and_went_on).unwrap();
        repeat_keys(&mut connection, &good);
    }
    assert!(metric(&broker, "chronik_compaction_failures_total") <= 1.0, "it is tried each time");
}
