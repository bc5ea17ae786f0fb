//! What is lost, damaged or not committed of one partition: whoever asks for it is told, and segments of others go on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use chronik_tests::batch::BatchBuilder;
use chronik_tests::cluster::{Cluster, create_topic, leaders_seen, run_on};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, produce_request, topic_name};
use chronik_tests::scratch::wait_for;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, IncrementalAlterConfigsRequest, ListOffsetsRequest};
use kafka_protocol::protocol::StrBytes;

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// A file of the log holds some twenty of them.
const VALUE_BYTES: usize = 50_000;
/// A time after that of all records, and the question for the last one.
const LATER: i64 = 1_700_000_000_001;
const MAX_TIMESTAMP: i64 = -3;
const TOPIC_RESOURCE: i8 = 2;
const FAILURES: &str = "chronik_segment_source_failures_total";

/// Small files that become segments after so many seconds, which stay as they are.
fn settings(indexing_interval: u32) -> Settings {
    let settings = small_files(indexing_interval);
    settings.with_top("kafka.log_cleaner_backoff_ms = 3600000")
}

fn small_files(indexing_interval: u32) -> Settings {
    let settings = Settings { shards: 1, wal_file_bytes: MIB, ..Settings::new() };
    settings.with_top(&format!("wal.indexing_interval = {indexing_interval}"))
}

fn connect(broker: &Broker) -> RawConnection {
    RawConnection::open(broker.ports().kafka_addr()).unwrap()
}

/// The value of the record at an offset of a topic.
fn value(topic: &str, offset: i64) -> Vec<u8> {
    let seed = format!("{topic}:{offset};");
    seed.bytes().cycle().take(VALUE_BYTES).collect()
}

fn produce(connection: &mut RawConnection, topic: &str, partition: i32, offsets: Range<i64>) {
    for offset in offsets {
        let batch = BatchBuilder::of_value(value(topic, offset)).build();
        let produced = connection.produce(topic, partition, batch).unwrap();
        assert_eq!((produced.error_code, produced.base_offset), (0, offset));
    }
}

/// The error code of a fetch.
fn fetch(connection: &mut RawConnection, topic: &str, offset: i64) -> i16 {
    connection.fetch(topic, 0, offset).unwrap().responses[0].partitions[0].error_code
}

/// The error code of a question for the offset of a time.
fn list(connection: &mut RawConnection, topic: &str, timestamp: i64) -> i16 {
    let partition = ListOffsetsPartition::default()
        .with_partition_index(0)
        .with_current_leader_epoch(-1)
        .with_timestamp(timestamp);
    let topic =
        ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request =
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    connection.call(7, &request).unwrap().topics[0].partitions[0].error_code
}

fn shard_dir(broker: &Broker, dir: &str) -> PathBuf {
    broker.data_dir().join("shards/000").join(dir)
}

/// The files of the first shard whose names begin and end so, in order.
fn files(broker: &Broker, dir: &str, begin: &str, end: &str) -> Vec<String> {
    let files = std::fs::read_dir(shard_dir(broker, dir)).unwrap();
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with(begin) && name.ends_with(end)).collect();
    names.sort_unstable();
    names
}

/// What a partition's segments stand for.
fn stored(broker: &Broker, topic_hex: &str, partition: i32) -> Vec<(i64, i64)> {
    let names = files(broker, "segments", &format!("{topic_hex}-{partition}-"), ".segment");
    let range = |name: &String| {
        let mut fields = name.split('-').skip(2).map(|field| field.parse::<i64>());
        (fields.next().unwrap().unwrap(), fields.next().unwrap().unwrap() + 1)
    };
    names.iter().map(range).collect()
}

fn wait_for_reclaim(broker: &Broker) {
    let few = || (files(broker, "wal", "", ".wal").len() <= 2).then_some(());
    wait_for("the log's files are given back", DEADLINE, few).unwrap();
}

fn wait_until_stored(broker: &Broker, topic_hex: &str, partition: i32, end: i64) {
    let is_there = || {
        let last = stored(broker, topic_hex, partition).last().map(|(_, end)| *end);
        last.filter(|last| *last >= end)
    };
    wait_for("segments are written", DEADLINE, is_there).unwrap_or_else(|error| {
        panic!("{error}: {:?}\n{}", stored(broker, topic_hex, partition), broker.log_tail())
    });
}

fn metric(broker: &Broker, name: &str) -> f64 {
    broker.metrics().unwrap().sum(name)
}

#[test]
fn given_lost_segments_when_later_ones_are_written_then_their_records_are_missing_and_not_skipped()
{
    for keeps_first in [true, false] {
        let mut broker = Broker::start(settings(1)).unwrap();
        let topic = fresh_name("lost");
        let mut connection = connect(&broker);
        connection.create_topic(&topic, &[]).unwrap();
        let hex = connection.topic_id(&topic).unwrap().simple().to_string();
        produce(&mut connection, &topic, 0, 0..100);
        wait_for_reclaim(&broker);
        broker.kill().unwrap();
        let names = files(&broker, "segments", &hex, ".segment");
        // What the last one stands for may be in the log still; what the one before does is not.
        let kept = if keeps_first { names.len() - 2 } else { 0 };
        assert!(names.len() >= 4, "{names:?}");
        let lost = stored(&broker, &hex, 0)[kept].0;
        for name in &names[kept..] {
            std::fs::remove_file(shard_dir(&broker, "segments").join(name)).unwrap();
        }
        let storage_error = ResponseError::KafkaStorageError.code();
        let check = |broker: &Broker, end: i64| {
            let mut connection = connect(broker);
            for offset in [lost, lost + 5] {
                assert_eq!(fetch(&mut connection, &topic, offset), storage_error, "at {offset}");
            }
            assert_eq!(fetch(&mut connection, &topic, end - 1), 0);
            // Nor are they passed over when a time is looked for.
            assert_eq!(list(&mut connection, &topic, LATER), storage_error);
            assert_eq!(list(&mut connection, &topic, MAX_TIMESTAMP), storage_error);
            let of_first = if keeps_first { 0 } else { storage_error };
            assert_eq!(list(&mut connection, &topic, 0), of_first);
            if keeps_first {
                assert_eq!(fetch(&mut connection, &topic, lost - 1), 0);
            }
            // What else is there is not said to be missing; and whatever is asked for, it is said once.
            let missing = stored(broker, &hex, 0).into_iter().map(|(base, _)| base);
            let missing = missing.filter(|base| *base > lost).min().map(|base| base - 1);
            let text = missing.map_or_else(
                || format!("offsets {lost} to "),
                |last| format!("offsets {lost} to {last} are in no segment"),
            );
            let log = broker.log();
            let told: Vec<&str> = log
                .lines()
                .filter(|line| line.contains("records could not be read") && line.contains(&text))
                .collect();
            assert!((1..=3).contains(&told.len()), "{text}: {told:?}\n{log}");
            assert!(told.iter().all(|line| line.contains(&format!("{topic}-0"))), "{told:?}");
            let at_start = format!("{text} and no longer in the log; reading them fails");
            assert!(missing.is_none() || log.contains(&at_start), "{at_start}: {log}");
        };
        for end in [160, 220] {
            broker.start_again().unwrap();
            check(&broker, end - 60);
            produce(&mut connect(&broker), &topic, 0, end - 60..end);
            wait_until_stored(&broker, &hex, 0, end - 25);
            wait_for_reclaim(&broker);
            check(&broker, end);
            broker.kill().unwrap();
        }
    }
}

#[test]
fn given_a_directory_in_the_place_of_a_segment_when_started_then_it_is_named_and_others_are_read() {
    let mut broker = Broker::start(settings(1)).unwrap();
    let topic = fresh_name("directory");
    let mut connection = connect(&broker);
    connection.create_topic(&topic, &[]).unwrap();
    let hex = connection.topic_id(&topic).unwrap().simple().to_string();
    produce(&mut connection, &topic, 0, 0..100);
    wait_for_reclaim(&broker);
    broker.kill().unwrap();
    let names = files(&broker, "segments", &hex, ".segment");
    let (base, end) = stored(&broker, &hex, 0)[1];
    let path = shard_dir(&broker, "segments").join(&names[1]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    broker.start_again().unwrap();
    let last = end - 1;
    let told = format!("{} is no regular file: offsets {base} to {last}", path.display());
    assert!(broker.log().contains(&told), "{told}: {}", broker.log());
    let missing = format!("offsets {base} to {last} are in no segment");
    assert!(broker.log().contains(&missing), "{missing}: {}", broker.log());
    let mut connection = connect(&broker);
    let storage_error = ResponseError::KafkaStorageError.code();
    assert_eq!(fetch(&mut connection, &topic, base), storage_error);
    assert_eq!(fetch(&mut connection, &topic, base - 1), 0);
    assert_eq!(fetch(&mut connection, &topic, end), 0);
}

/// Waits until all files of the log but the active one have their index at their end, so that no start reads what is in
/// them. It has its place there, where nothing was before in a file that is new.
fn wait_for_footers(broker: &Broker) {
    let have_all = || {
        let names = files(broker, "wal", "0", ".wal");
        let (_active, sealed) = names.split_last()?;
        let has_footer = |name: &String| {
            let bytes = std::fs::read(shard_dir(broker, "wal").join(name)).unwrap();
            bytes[bytes.len() - 4096..].iter().any(|byte| *byte != 0)
        };
        sealed.iter().all(has_footer).then_some(())
    };
    wait_for("the log's files have their indexes", DEADLINE, have_all).unwrap();
}

/// Damages the log where the value of a record is.
fn damage_record(broker: &Broker, topic: &str, offset: i64) {
    let value = value(topic, offset);
    for path in broker.wal_files().unwrap() {
        let mut bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(value.len()).position(|window| window == value);
        if let Some(at) = found {
            bytes[at + VALUE_BYTES / 2] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("the log does not hold {topic} at {offset}");
}

#[test]
fn given_a_damaged_log_when_segments_are_written_then_others_get_theirs_and_it_is_told_once() {
    const DAMAGED: i64 = 15;
    let mut broker = Broker::start(settings(3_600)).unwrap();
    let (bad, good) = (fresh_name("bad"), fresh_name("good"));
    let mut connection = connect(&broker);
    for topic in [&bad, &good] {
        connection.create_topic(topic, &[]).unwrap();
    }
    let hex = |connection: &mut RawConnection, topic: &str| {
        connection.topic_id(topic).unwrap().simple().to_string()
    };
    let (bad_hex, good_hex) = (hex(&mut connection, &bad), hex(&mut connection, &good));
    for round in 0..6 {
        for topic in [&bad, &good] {
            produce(&mut connection, topic, 0, round * 10..(round + 1) * 10);
        }
    }
    wait_for_footers(&broker);
    broker.kill().unwrap();
    damage_record(&broker, &bad, DAMAGED);
    *broker.settings_mut() = settings(1);
    broker.start_again().unwrap();
    wait_until_stored(&broker, &good_hex, 0, 45);
    let mut connection = connect(&broker);
    produce(&mut connection, &good, 0, 60..160);
    wait_until_stored(&broker, &good_hex, 0, 135);
    let segments = stored(&broker, &bad_hex, 0);
    assert!(segments.iter().all(|(_, end)| *end <= DAMAGED), "{segments:?}");
    assert!(metric(&broker, FAILURES) == 1.0, "it is tried each time");
    let segments = stored(&broker, &good_hex, 0);
    assert!(segments.windows(2).all(|pair| pair[0].1 == pair[1].0), "{segments:?}");
    for offset in (0..60).step_by(5) {
        let expected = match offset {
            DAMAGED => ResponseError::KafkaStorageError.code(),
            _ => 0,
        };
        assert_eq!(fetch(&mut connection, &bad, offset), expected, "at {offset}");
        assert_eq!(fetch(&mut connection, &good, offset), 0, "at {offset}");
    }
}

#[test]
fn given_a_replica_that_is_away_when_its_partition_waits_then_others_of_the_core_get_segments() {
    let mut cluster = Cluster::start(3, &settings(1)).unwrap();
    run_on(&mut cluster, |cluster| {
        let (pair, alone) = (fresh_name("pair"), fresh_name("alone"));
        create_topic(cluster.node(1), &pair, 1, 2)?;
        create_topic(cluster.node(1), &alone, 3, 1)?;
        let leader = leaders_seen(cluster.node(1), &pair, 1)?[0];
        let of_leader = leaders_seen(cluster.node(1), &alone, 3)?;
        let partition = of_leader.iter().position(|node| *node == leader);
        let partition = i32::try_from(partition.context("each node has one of them")?)?;
        let mut connection = RawConnection::open(cluster.node(leader).ports().kafka_addr())?;
        let metadata = connection.metadata(&pair, false)?;
        let replicas = &metadata.topics[0].partitions[0].replica_nodes;
        let other = replicas.iter().find(|node| node.0 != leader).context("there are two")?.0;
        let hex = connection.topic_id(&alone)?.simple().to_string();
        ensure!(
            connection.produce(&pair, 0, BatchBuilder::of_value(vec![1]).build())?.error_code == 0
        );
        // Nobody says that it is gone, so the next batches get their places.
        cluster.node(other).pause()?;
        for _ in 0..20 {
            let batch = BatchBuilder::of_value(vec![2; 1_000]).build();
            connection.send(9, &produce_request(&pair, 0, -1, batch))?;
        }
        let mut others = RawConnection::open(cluster.node(leader).ports().kafka_addr())?;
        produce(&mut others, &alone, partition, 0..100);
        wait_until_stored(cluster.node(leader), &hex, partition, 75);
        cluster.node(other).resume()?;
        cluster.wait_whole()
    });
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
fn given_a_segment_that_vanishes_when_compaction_goes_round_then_its_partition_is_left_alone() {
    let settings = small_files(1).with_top("kafka.log_cleaner_backoff_ms = 50");
    let broker = Broker::start(settings).unwrap();
    let mut connection = connect(&broker);
    let (bad, good) = (fresh_name("vanished"), fresh_name("whole"));
    for (topic, ratio) in [(&bad, "1.0"), (&good, "0.01")] {
        let compact = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", ratio)];
        connection.create_topic(topic, &compact).unwrap();
        repeat_keys(&mut connection, topic);
    }
    wait_for_reclaim(&broker);
    let hex = connection.topic_id(&bad).unwrap().simple().to_string();
    let name = files(&broker, "segments", &hex, ".segment").remove(0);
    std::fs::remove_file(shard_dir(&broker, "segments").join(name)).unwrap();
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let config = AlterableConfig::default()
        .with_name(text("min.cleanable.dirty.ratio"))
        .with_config_operation(0)
        .with_value(Some(text("0.01")));
    let resource = AlterConfigsResource::default()
        .with_resource_type(TOPIC_RESOURCE)
        .with_resource_name(text(&bad))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    assert_eq!(connection.call(1, &request).unwrap().responses[0].error_code, 0);
    let before = metric(&broker, "chronik_compactions_total");
    for round in 1..=3 {
        repeat_keys(&mut connection, &good);
        let failed_and_went_on = || {
            let is_compacted =
                metric(&broker, "chronik_compactions_total") >= before + f64::from(round);
            let has_failed = metric(&broker, "chronik_compaction_failures_total") >= 1.0;
            (is_compacted && has_failed).then_some(())
        };
        wait_for("the other topic is compacted", DEADLINE, failed_and_went_on).unwrap();
    }
    assert!(metric(&broker, "chronik_compaction_failures_total") <= 1.0, "it is tried each time");
}

/// A file in the directory of segments with nothing in it, that tells of these offsets.
fn make_empty_segment(broker: &Broker, like: &str, base: i64, last: i64, generation: u32) {
    let fields: Vec<&str> = like.trim_end_matches(".segment").split('-').collect();
    let [topic, partition, _, _, term, _, rest @ ..] = &fields[..] else { panic!("{like}") };
    let rest = rest.join("-");
    let name =
        format!("{topic}-{partition}-{base:020}-{last:020}-{term}-{generation}-{rest}.segment");
    std::fs::write(shard_dir(broker, "segments").join(name), b"").unwrap();
}

#[test]
fn given_names_of_segments_with_nothing_in_them_when_started_then_no_record_goes_for_them() {
    let mut broker = Broker::start(settings(1)).unwrap();
    let topic = fresh_name("names");
    let mut connection = connect(&broker);
    connection.create_topic(&topic, &[]).unwrap();
    let hex = connection.topic_id(&topic).unwrap().simple().to_string();
    produce(&mut connection, &topic, 0, 0..100);
    wait_for_reclaim(&broker);
    broker.kill().unwrap();
    let names = files(&broker, "segments", &hex, ".segment");
    make_empty_segment(&broker, &names[0], 0, 99, 9);
    make_empty_segment(&broker, &names[0], 110, 130, 0);
    broker.start_again().unwrap();
    let log = broker.log();
    assert_eq!(log.matches("a segment does not count").count(), 2, "{log}");
    produce(&mut connect(&broker), &topic, 0, 100..180);
    wait_until_stored(&broker, &hex, 0, 155);
    wait_for_reclaim(&broker);
    for is_restarted in [false, true] {
        let mut connection = connect(&broker);
        for offset in 0..180 {
            assert_eq!(fetch(&mut connection, &topic, offset), 0, "{offset} {is_restarted}");
        }
        broker.kill().unwrap();
        broker.start_again().unwrap();
    }
}

/// The files of the log of the first shard, as they are.
fn read_log(broker: &Broker) -> Vec<(PathBuf, Vec<u8>)> {
    let files = std::fs::read_dir(shard_dir(broker, "wal")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn given_a_log_that_is_older_than_its_segments_when_started_then_it_says_so_and_takes_nothing() {
    let mut broker = Broker::start(settings(1)).unwrap();
    let topic = fresh_name("older");
    let mut connection = connect(&broker);
    connection.create_topic(&topic, &[]).unwrap();
    let hex = connection.topic_id(&topic).unwrap().simple().to_string();
    produce(&mut connection, &topic, 0, 0..10);
    broker.terminate().unwrap();
    let old = read_log(&broker);
    broker.start_again().unwrap();
    produce(&mut connect(&broker), &topic, 0, 10..120);
    wait_until_stored(&broker, &hex, 0, 60);
    broker.terminate().unwrap();
    let new = read_log(&broker);
    let put_back = |log: &[(PathBuf, Vec<u8>)], broker: &Broker| {
        for (path, _) in read_log(broker) {
            std::fs::remove_file(path).unwrap();
        }
        for (path, bytes) in log {
            std::fs::write(path, bytes).unwrap();
        }
    };
    put_back(&old, &broker);
    broker.spawn().unwrap();
    assert!(!broker.wait_exit().unwrap().success());
    let log = broker.log_tail();
    assert!(log.contains("the log is older than its segments"), "{log}");
    put_back(&new, &broker);
    broker.start_again().unwrap();
    let mut connection = connect(&broker);
    for offset in 0..120 {
        assert_eq!(fetch(&mut connection, &topic, offset), 0, "{offset}");
    }
}
