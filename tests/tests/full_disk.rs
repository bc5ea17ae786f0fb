//! A disk that fills up: produce is refused in words, everything else goes on, and space that comes back is used.
//!
//! Needs root, `mkfs.ext4` and a loop device for a small disk of its own; says `SKIPPED` where it has not got them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "this test waits for a real process on real time")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use chronik_tests::batch::BatchBuilder;
use chronik_tests::http;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::{say_skipped, wait_for};
use chronik_tests::small_disk::{self, SmallDisk};
use chronik_tests::workload::read_topic;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteTopicsRequest};

const DEADLINE: Duration = Duration::from_secs(60);
/// What stands in the way until somebody makes room.
const FILLER_BYTES: usize = 6 << 20;
const VALUE_BYTES: usize = 100_000;
/// More batches than the disk has room for.
const BATCHES_MAX: usize = 500;
/// A refusal needs no disk, so it comes at once.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
/// Deleting needs room for a small block, and a look at the disk.
const DELETED_WITHIN: Duration = Duration::from_secs(5);
/// Starts after a kill while the disk is full: more than the active file has room for, so that the ballast is needed.
const FULL_RESTARTS: usize = 12;
const REQUEST_TIMED_OUT: i16 = 7;
const KAFKA_STORAGE_ERROR: i16 = 56;

fn batch(n: usize) -> bytes::Bytes {
    let mut value = format!("{n:08}").into_bytes();
    value.resize(VALUE_BYTES, b'x');
    BatchBuilder::of_value(value).build()
}

fn connect(broker: &Broker) -> RawConnection {
    RawConnection::open(broker.ports().kafka_addr()).unwrap()
}

/// Starts the broker and waits until it serves the topic. It does not wait for `/ready`: that says 503 without room.
fn start_without_room(broker: &mut Broker, topic: &str) {
    broker.spawn().unwrap();
    wait_for("the broker serves", DEADLINE, || {
        let mut connection = RawConnection::open(broker.ports().kafka_addr()).ok()?;
        let answer = connection.metadata(topic, false).ok()?;
        (answer.topics[0].error_code == 0).then_some(())
    })
    .unwrap();
    // Once it has looked for room; otherwise the disk would not be full, and this no test.
    wait_for("it is not ready", DEADLINE, || (!broker.is_ready()).then_some(())).unwrap();
    let answer = http::get(broker.ports().admin_addr(), "/ready").unwrap();
    let why = "not ready\nshard 0: no room on the disk: produce is refused\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, why));
}

/// Offers `n` until it is stored or refused; how that ended and how long it took.
fn offer(connection: &mut RawConnection, topic: &str, n: usize) -> (i16, Duration) {
    let started = Instant::now();
    let produced = connection.produce(topic, 0, batch(n)).unwrap();
    (produced.error_code, started.elapsed())
}

/// What was told about each record that was offered.
#[derive(Default)]
struct Told {
    /// Acknowledged: must be there.
    acked: Vec<usize>,
    /// Timed out: the broker did not say whether it will be there.
    unknown: Vec<usize>,
}

impl Told {
    /// Everything acknowledged is there in order, and nothing is that was refused.
    fn check(&self, broker: &Broker, topic: &str) {
        let logs = read_topic(&broker.bootstrap(), topic, 1, DEADLINE).unwrap();
        let numbers: Vec<usize> = logs[0]
            .records
            .iter()
            .map(|record| std::str::from_utf8(&record.value[..8]).unwrap().parse().unwrap())
            .filter(|n| !self.unknown.contains(n))
            .collect();
        assert_eq!(numbers, self.acked);
    }
}

#[test]
fn given_a_disk_that_fills_up_when_produced_to_then_it_is_refused_reads_go_on_and_space_is_used_again()
 {
    let Some(disk) = SmallDisk::make().unwrap() else {
        say_skipped(small_disk::NEEDED);
        return;
    };
    let (mut broker, filler) = start_on(&disk);
    let topic = fresh_name("full");
    let mut connection = connect(&broker);
    connection.ensure_topic(&topic).unwrap();

    let mut told = Told::default();
    fill(&mut connection, &topic, &mut told);
    assert!(told.acked.len() * VALUE_BYTES > FILLER_BYTES / 2, "refused long before it was full");
    assert!(broker.log_contains("no room"), "the log does not say that the disk is full");

    // Refused, not broken: the same connection asks for other things.
    assert_eq!(connection.metadata(&topic, false).unwrap().topics[0].error_code, 0);
    told.check(&broker, &topic);
    // Neither a stop nor a restart needs room, however the broker ended.
    assert_eq!(broker.terminate().unwrap().code(), Some(0));
    println!("given up at the stop: {}", broker.log_contains("stopping without room"));
    for _ in 0..FULL_RESTARTS {
        start_without_room(&mut broker, &topic);
        told.check(&broker, &topic);
        broker.kill().unwrap();
    }
    start_without_room(&mut broker, &topic);
    told.check(&broker, &topic);
    // Where refusals came before the active file was full, the starts may find their room there.
    println!("the ballast was needed: {}", broker.log_contains("the ballast is used up"));

    std::fs::remove_file(&filler).unwrap();
    let mut connection = connect(&broker);
    let first = wait_for("produce works again", DEADLINE, || {
        let n = 1_000 + told.unknown.len();
        match offer(&mut connection, &topic, n).0 {
            0 => Some(n),
            REQUEST_TIMED_OUT => {
                told.unknown.push(n);
                None
            }
            _ => None,
        }
    })
    .unwrap();
    told.acked.push(first);
    for n in 2_001..2_010 {
        assert_eq!(offer(&mut connection, &topic, n).0, 0);
        told.acked.push(n);
    }
    told.check(&broker, &topic);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    told.check(&broker, &topic);
    assert_eq!(broker.terminate().unwrap().code(), Some(0));
}

/// A broker on a disk with something in the way.
fn start_on(disk: &SmallDisk) -> (Broker, PathBuf) {
    let filler = disk.path().join("filler");
    std::fs::write(&filler, vec![1; FILLER_BYTES]).unwrap();
    let broker = Broker::start(Settings {
        shards: 1,
        wal_file_bytes: 1 << 20,
        ballast_bytes: 1 << 20,
        data_dir: Some(disk.path().join("data")),
        ..Settings::new()
    });
    (broker.unwrap(), filler)
}

fn wait_for_produce(connection: &mut RawConnection, topic: &str) {
    let works = || (offer(connection, topic, BATCHES_MAX).0 == 0).then_some(());
    wait_for("produce works again", DEADLINE, works).unwrap();
}

#[test]
fn given_a_full_disk_when_records_are_deleted_then_it_is_done_at_once_and_makes_the_room() {
    let Some(disk) = SmallDisk::make().unwrap() else {
        say_skipped(small_disk::NEEDED);
        return;
    };
    let (mut broker, _filler) = start_on(&disk);
    let topic = fresh_name("records");
    let mut connection = connect(&broker);
    connection.ensure_topic(&topic).unwrap();
    let mut told = Told::default();
    fill(&mut connection, &topic, &mut told);
    let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(-1);
    let of_topic = DeleteRecordsTopic::default()
        .with_name(topic_name(&topic))
        .with_partitions(vec![partition]);
    let request =
        DeleteRecordsRequest::default().with_topics(vec![of_topic]).with_timeout_ms(30_000);
    let started = Instant::now();
    let deleted = connection.call(2, &request).unwrap();
    let answer = &deleted.topics[0].partitions[0];
    let stored = i64::try_from(told.acked.len()).unwrap();
    assert_eq!((answer.error_code, answer.low_watermark), (0, stored));
    assert!(started.elapsed() < DELETED_WITHIN, "it took {:?}", started.elapsed());
    wait_for_produce(&mut connection, &topic);
    assert_eq!(broker.terminate().unwrap().code(), Some(0));
}

#[test]
fn given_a_full_disk_when_a_topic_is_deleted_then_it_is_done_at_once_and_makes_the_room() {
    let Some(disk) = SmallDisk::make().unwrap() else {
        say_skipped(small_disk::NEEDED);
        return;
    };
    let (mut broker, _filler) = start_on(&disk);
    let (large, other) = (fresh_name("large"), fresh_name("other"));
    let mut connection = connect(&broker);
    connection.ensure_topic(&large).unwrap();
    connection.ensure_topic(&other).unwrap();
    fill(&mut connection, &large, &mut Told::default());
    let request = DeleteTopicsRequest::default()
        .with_topic_names(vec![topic_name(&large)])
        .with_timeout_ms(30_000);
    let started = Instant::now();
    assert_eq!(connection.call(5, &request).unwrap().responses[0].error_code, 0);
    assert!(started.elapsed() < DELETED_WITHIN, "it took {:?}", started.elapsed());
    wait_for_produce(&mut connection, &other);
    assert_eq!(broker.terminate().unwrap().code(), Some(0));
}

/// Long enough for the log to fill the disk before the first segment is written.
const INTERVAL_S: u64 = 15;
const WAL_FILE_BYTES: u64 = 1 << 20;
/// Free beside whole files of the log when the disk is full, if the log takes all it can get: too little for segments.
const REST_BYTES: u64 = 64 << 10;
/// A little more than a sector, so that segments take much less than the log.
const SMALL_VALUE_BYTES: usize = 4_200;

#[test]
fn given_a_disk_that_the_log_fills_before_segments_are_written_when_they_are_then_produce_returns_by_itself()
 {
    let Some(disk) = SmallDisk::make().unwrap() else {
        say_skipped(small_disk::NEEDED);
        return;
    };
    let settings = Settings {
        shards: 1,
        wal_file_bytes: WAL_FILE_BYTES,
        ballast_bytes: 1 << 20,
        data_dir: Some(disk.path().join("data")),
        ..Settings::new()
    };
    let settings = settings.with_top(&format!("wal.indexing_interval = {INTERVAL_S}"));
    let mut broker = Broker::start(settings).unwrap();
    let topic = fresh_name("ahead");
    let mut connection = connect(&broker);
    connection.ensure_topic(&topic).unwrap();
    wait_for("the next file is there", DEADLINE, || {
        let names = std::fs::read_dir(disk.path().join("data/shards/000/wal")).ok()?;
        let mut names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.any(|name| name.starts_with("spare-")).then_some(())
    })
    .unwrap();
    let filler_bytes = (disk.available().unwrap() - REST_BYTES) % WAL_FILE_BYTES;
    std::fs::write(disk.path().join("filler"), vec![1; usize::try_from(filler_bytes).unwrap()])
        .unwrap();

    let mut stored = 0;
    let mut small = |connection: &mut RawConnection| {
        let mut value = format!("{stored:08}").into_bytes();
        value.resize(SMALL_VALUE_BYTES, b'x');
        let batch = BatchBuilder::of_value(value).build();
        let code = connection.produce(&topic, 0, batch).unwrap().error_code;
        stored += usize::from(code == 0);
        code
    };
    while small(&mut connection) == 0 {}
    println!("full, {} bytes are free", disk.available().unwrap());
    wait_for("segments make room", DEADLINE, || (small(&mut connection) == 0).then_some(()))
        .unwrap();
    assert_eq!(broker.terminate().unwrap().code(), Some(0));
    broker.start_again().unwrap();
    let logs = read_topic(&broker.bootstrap(), &topic, 1, DEADLINE).unwrap();
    let number = |value: &[u8]| std::str::from_utf8(&value[..8]).unwrap().parse::<usize>().unwrap();
    let numbers: Vec<usize> = logs[0].records.iter().map(|record| number(&record.value)).collect();
    assert_eq!(numbers, (0..stored).collect::<Vec<_>>());
}

/// Produces until several in a row are refused at once, with an error that means storage.
fn fill(connection: &mut RawConnection, topic: &str, told: &mut Told) {
    let mut refused_in_a_row = 0;
    for n in 0..BATCHES_MAX {
        let (code, took) = offer(connection, topic, n);
        match code {
            0 => {
                told.acked.push(n);
                refused_in_a_row = 0;
            }
            // Even what was ordered already and found no room is refused at once, and for good.
            KAFKA_STORAGE_ERROR => {
                assert!(took < REFUSED_WITHIN, "refused after {took:?}");
                refused_in_a_row += 1;
            }
            other => panic!("batch {n} was answered with error {other} after {took:?}"),
        }
        if refused_in_a_row == 3 {
            println!("{} batches stored, {} unknown", told.acked.len(), told.unknown.len());
            return;
        }
    }
    panic!("the disk never filled up");
}
