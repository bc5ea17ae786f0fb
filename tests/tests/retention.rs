//! Records that go: by DeleteRecords, by age and by size; and the disk that they give back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::wait_for;
use kafka_protocol::messages::DeleteRecordsRequest;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};

const OFFSET_OUT_OF_RANGE: i16 = 1;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;

/// Timestamps of the far future are taken.
const ANY_TIME: (&str, &str) = ("message.timestamp.after.max.ms", "9223372036854775807");

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn start() -> Broker {
    let settings = Settings { shards: 1, wal_file_bytes: MIB, ..Settings::new() };
    Broker::start(settings.with_top("kafka.log_retention_check_interval_ms = 50")).unwrap()
}

fn connect(broker: &Broker) -> RawConnection {
    RawConnection::open(broker.ports().kafka_addr()).unwrap()
}

/// The error code and the low watermark that a deletion up to `offset` is answered with, in every version.
fn delete(connection: &mut RawConnection, topic: &str, partition: i32, offset: i64) -> (i16, i64) {
    let partition =
        DeleteRecordsPartition::default().with_partition_index(partition).with_offset(offset);
    let topic =
        DeleteRecordsTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let answers = [0, 1, 2].map(|version| {
        let response = connection.call(version, &request).unwrap();
        let answer = &response.topics[0].partitions[0];
        (answer.error_code, answer.low_watermark)
    });
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
    answers[0]
}

/// The error code of a fetch and the base offset of the first batch in its answer.
fn fetch(connection: &mut RawConnection, topic: &str, offset: i64) -> (i16, Option<i64>) {
    let response = connection.fetch(topic, 0, offset).unwrap();
    let answer = &response.responses[0].partitions[0];
    let records = answer.records.clone().unwrap_or_default();
    let base = (!records.is_empty()).then(|| records.clone().get_i64());
    (answer.error_code, base)
}

fn batch_of(records: usize) -> Bytes {
    let mut builder = BatchBuilder::new();
    for _ in 0..records {
        builder = builder.record(None, Some("value".into()));
    }
    builder.build()
}

fn wal_bytes(broker: &Broker) -> u64 {
    let dir: &Path = broker.data_dir();
    let files = std::fs::read_dir(dir.join("shards/000/wal")).unwrap();
    // A file may be taken back while it is looked at.
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
}

#[test]
fn given_records_when_deleted_then_they_are_gone_for_every_reader_and_after_a_kill() {
    let mut broker = start();
    let mut connection = connect(&broker);
    let topic = fresh_name("deleted");
    connection.create_topic(&topic, &[("retention.ms", "-1")]).unwrap();
    for _ in 0..3 {
        connection.produce(&topic, 0, batch_of(10)).unwrap();
    }
    assert_eq!(delete(&mut connection, &topic, 0, 15), (0, 15));
    assert_eq!(connection.offset_of(&topic, EARLIEST).unwrap(), 15);
    assert_eq!(fetch(&mut connection, &topic, 14), (OFFSET_OUT_OF_RANGE, None));
    assert_eq!(fetch(&mut connection, &topic, 15), (0, Some(10)), "the batch as a whole");
    assert_eq!(delete(&mut connection, &topic, 0, 3), (0, 15), "it never goes back");
    assert_eq!(delete(&mut connection, &topic, 0, 31), (OFFSET_OUT_OF_RANGE, -1));
    assert_eq!(delete(&mut connection, &topic, 0, -2), (OFFSET_OUT_OF_RANGE, -1));
    assert_eq!(delete(&mut connection, &topic, 1, 0), (UNKNOWN_TOPIC_OR_PARTITION, -1));
    assert_eq!(delete(&mut connection, "nowhere", 0, 0), (UNKNOWN_TOPIC_OR_PARTITION, -1));
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let mut connection = connect(&broker);
    assert_eq!(connection.offset_of(&topic, EARLIEST).unwrap(), 15);
    assert_eq!(fetch(&mut connection, &topic, 14), (OFFSET_OUT_OF_RANGE, None));
    assert_eq!(fetch(&mut connection, &topic, 15), (0, Some(10)));
    assert_eq!(delete(&mut connection, &topic, 0, -1), (0, 30), "all of them");
    assert_eq!(connection.offset_of(&topic, EARLIEST).unwrap(), 30);
    assert_eq!(connection.produce(&topic, 0, batch_of(1)).unwrap().base_offset, 30);
    assert_eq!(fetch(&mut connection, &topic, 30), (0, Some(30)));
}

#[test]
fn given_old_and_young_records_when_retention_looks_then_only_the_old_go() {
    let broker = start();
    let mut connection = connect(&broker);
    let (short, long) = (fresh_name("short"), fresh_name("long"));
    connection.create_topic(&short, &[("retention.ms", "3600000"), ANY_TIME]).unwrap();
    connection.create_topic(&long, &[("retention.ms", "-1"), ANY_TIME]).unwrap();
    // The year 2286: nothing that this test may outlive.
    let young = || BatchBuilder::of_value("y").timestamp_ms(9_999_999_999_000).build();
    let old = || BatchBuilder::of_value("o").timestamp_ms(1_000_000_000_000).build();
    for topic in [&long, &short] {
        for batch in [old(), old(), young(), old()] {
            assert_eq!(connection.produce(topic, 0, batch).unwrap().error_code, 0);
        }
    }
    wait_for("the old records are gone", DEADLINE, || {
        (connection.offset_of(&short, EARLIEST).unwrap() == 2).then_some(())
    })
    .unwrap();
    assert_eq!(fetch(&mut connection, &short, 2), (0, Some(2)), "a young one keeps the rest");
    assert_eq!(connection.offset_of(&long, EARLIEST).unwrap(), 0);
    assert_eq!(connection.offset_of(&short, LATEST).unwrap(), 4);
}

/// The names of the first shard's segments.
fn segments(broker: &Broker) -> usize {
    let dir = broker.data_dir().join("shards/000/segments");
    std::fs::read_dir(dir).unwrap().count()
}

#[test]
fn given_records_without_times_when_their_file_is_old_then_they_go() {
    for (as_segments, retention_ms) in [(false, "2000"), (true, "10000")] {
        let settings = Settings { shards: 1, wal_file_bytes: MIB, ..Settings::new() }
            .with_top("kafka.log_retention_check_interval_ms = 50")
            .with_top(&format!("wal.indexing_enabled = {as_segments}"))
            .with_top("wal.indexing_interval = 1");
        let broker = Broker::start(settings).unwrap();
        let mut connection = connect(&broker);
        let (short, long) = (fresh_name("short"), fresh_name("long"));
        connection.create_topic(&short, &[("retention.ms", retention_ms)]).unwrap();
        connection.create_topic(&long, &[("retention.ms", "3600000")]).unwrap();
        // The last of them are in the active file.
        for topic in [&short, &long, &short, &long] {
            for _ in 0..20 {
                let batch = BatchBuilder::of_value(vec![7; 60_000]).timestamp_ms(-1).build();
                assert_eq!(connection.produce(topic, 0, batch).unwrap().error_code, 0);
            }
        }
        if as_segments {
            let are_there = || (segments(&broker) >= 2).then_some(());
            wait_for("segments are written", DEADLINE, are_there).unwrap();
            assert_eq!(connection.offset_of(&short, EARLIEST).unwrap(), 0, "it was too early");
        }
        wait_for("the old records are gone", DEADLINE, || {
            (connection.offset_of(&short, EARLIEST).unwrap() >= 20).then_some(())
        })
        .unwrap();
        assert_eq!(connection.offset_of(&long, EARLIEST).unwrap(), 0);
    }
}

/// Produces `count` batches; the offsets given out follow one another.
fn produce_many(connection: &mut RawConnection, topic: &str, from: i64, count: i64) {
    let value = vec![7; 60_000];
    for n in from..from + count {
        let batch = BatchBuilder::of_value(value.clone()).timestamp_ms(9_999_999_999_000).build();
        let produced = connection.produce(topic, 0, batch).unwrap();
        assert_eq!((produced.error_code, produced.base_offset), (0, n));
    }
}

#[test]
fn given_endless_produce_when_bytes_are_limited_then_the_disk_is_too_and_after_a_kill() {
    const KEPT: u64 = 2 * MIB;
    const BATCHES: i64 = 300;
    // What is kept, the file that it begins in, the active one, the spare and the ballast, and what came since the last
    // look.
    const BOUND: u64 = KEPT + 6 * MIB;
    let mut broker = start();
    let topic = fresh_name("bounded");
    let mut next = 0;
    connect(&broker)
        .create_topic(&topic, &[("retention.bytes", &KEPT.to_string()), ANY_TIME])
        .unwrap();
    for round in 0..2 {
        let mut connection = connect(&broker);
        produce_many(&mut connection, &topic, next, BATCHES);
        next += BATCHES;
        let bytes = wait_for("files are given back", DEADLINE, || {
            Some(wal_bytes(&broker)).filter(|bytes| *bytes <= BOUND)
        });
        bytes.unwrap_or_else(|error| panic!("round {round}: {error}: {}", wal_bytes(&broker)));
        let earliest = connection.offset_of(&topic, EARLIEST).unwrap();
        let kept = u64::try_from(next - earliest).unwrap() * 60_000;
        assert!(kept + 60_000 * 2 >= KEPT, "{earliest} of {next}: too much is gone");
        assert_eq!(fetch(&mut connection, &topic, earliest), (0, Some(earliest)));
        assert_eq!(fetch(&mut connection, &topic, next - 1), (0, Some(next - 1)));
        assert_eq!(fetch(&mut connection, &topic, 0), (OFFSET_OUT_OF_RANGE, None));
        broker.kill().unwrap();
        broker.start_again().unwrap();
        let mut connection = connect(&broker);
        let again = connection.offset_of(&topic, EARLIEST).unwrap();
        assert!(again >= earliest, "{again} after {earliest}: what is gone does not come back");
        assert_eq!(fetch(&mut connection, &topic, again), (0, Some(again)));
        assert_eq!(connection.offset_of(&topic, LATEST).unwrap(), next);
    }
}
