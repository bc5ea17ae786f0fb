//! The parts of the protocol that no client library lets one reach: error codes, order of answers, fetch sessions and
//! limits, epochs, versions.
//!
//! With `CHRONIK_TEST_BOOTSTRAP=127.0.0.1:9092` the tests that restart nothing run against whatever listens there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use chronik_tests::batch::{self, BatchBuilder};
use chronik_tests::http;
use chronik_tests::mutate::overwrite;
use chronik_tests::process::{Broker, Served, Settings, fresh_name};
use chronik_tests::raw::{
    Heard, Produced, RawConnection, decode_answer, encode_frame, fetch_request, metadata_request,
    produce_request, topic_name,
};
use chronik_tests::requests::{World, check_answer, valid_requests};
use chronik_tests::scratch::say_skipped;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{
    ApiVersionsRequest, BrokerId, FetchRequest, FetchResponse, MetadataRequest,
    OffsetForLeaderEpochRequest, ProduceRequest,
};
use kafka_protocol::records::RecordBatchDecoder;

const UNSUPPORTED_VERSION: i16 = 35;
const OFFSET_OUT_OF_RANGE: i16 = 1;
const CORRUPT_MESSAGE: i16 = 2;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const MESSAGE_TOO_LARGE: i16 = 10;
const INVALID_REQUIRED_ACKS: i16 = 21;
const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
const INVALID_PRODUCER_EPOCH: i16 = 47;
const FETCH_SESSION_ID_NOT_FOUND: i16 = 70;
const INVALID_FETCH_SESSION_EPOCH: i16 = 71;
const FENCED_LEADER_EPOCH: i16 = 74;
const UNKNOWN_LEADER_EPOCH: i16 = 75;
const INVALID_RECORD: i16 = 87;
const UNSUPPORTED_FOR_MESSAGE_FORMAT: i16 = 43;

fn connect(served: &Served) -> RawConnection {
    RawConnection::open(served.addr()).unwrap()
}

/// A topic of one partition, ready for use.
fn new_topic(connection: &mut RawConnection, prefix: &str) -> String {
    let topic = fresh_name(prefix);
    connection.ensure_topic(&topic).unwrap();
    topic
}

fn value(text: &str) -> Bytes {
    BatchBuilder::of_value(text.to_owned()).build()
}

fn only(response: &FetchResponse) -> &PartitionData {
    assert_eq!(response.error_code, 0);
    &response.responses[0].partitions[0]
}

/// Apache Kafka may cut the last batch of an answer short; clients pass over it.
fn holds_a_whole_batch(records: &[u8]) -> bool {
    let length = records.get(batch::LENGTH_AT..batch::LEADER_EPOCH_AT);
    length.is_some_and(|length| {
        let length = i32::from_be_bytes(length.try_into().unwrap());
        records.len() >= batch::LEADER_EPOCH_AT + usize::try_from(length).unwrap()
    })
}

fn values(partition: &PartitionData) -> Vec<(i64, String)> {
    let mut records = partition.records.clone().unwrap_or_default();
    let mut values = Vec::new();
    while holds_a_whole_batch(&records) {
        for record in RecordBatchDecoder::decode(&mut records).unwrap().records {
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            values.push((record.offset, value));
        }
    }
    values
}

#[test]
fn given_every_advertised_version_when_asked_then_the_answer_is_of_that_version_and_without_leftovers()
 {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "versions");
    let topic_id = connection.topic_id(&topic).unwrap();
    let world = World { topic, topic_id, other_topic: fresh_name("other") };
    let mut advertised = connection.api_versions().unwrap();
    if served_by_somebody_else() {
        advertised.retain(|(key, _, _)| [0, 1, 2, 3, 18, 19, 20, 22, 23].contains(key));
    }
    assert!(
        advertised.contains(&(0, 0, 13)),
        "librdkafka compresses only where Produce starts at 0"
    );
    for request in valid_requests(&advertised, 77, &world).unwrap() {
        connection.write(&request.frame).unwrap();
        let what = format!("api {} v{}", request.key, request.version);
        let heard = connection.hear(Duration::from_secs(20)).unwrap();
        let Heard::Frame(frame) = heard else { panic!("{what}: {heard:?}") };
        assert_eq!(check_answer(request.key, request.version, frame).unwrap(), 77, "{what}");
    }
}

fn served_by_somebody_else() -> bool {
    std::env::var_os("CHRONIK_TEST_BOOTSTRAP").is_some()
}

#[test]
fn given_an_api_versions_request_from_the_future_when_sent_then_the_answer_is_version_0_with_error_35()
 {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    // A header of version 2: key, version, correlation id, client id, no tags.
    let body = [0, 18, 0, 99, 0, 0, 0, 5, 0, 1, b'x', 0];
    connection.write(&chronik_tests::raw::with_length(&body)).unwrap();
    let Heard::Frame(frame) = connection.hear(Duration::from_secs(10)).unwrap() else {
        panic!("no answer")
    };
    let (correlation, response) = decode_answer::<ApiVersionsRequest>(0, frame).unwrap();
    assert_eq!((correlation, response.error_code), (5, UNSUPPORTED_VERSION));
    assert!(response.api_keys.iter().any(|api| api.api_key == 18 && api.max_version >= 3));
    connection.api_versions().expect("the connection goes on");
}

#[test]
fn given_bytes_that_follow_a_request_in_its_frame_when_sent_then_they_are_passed_over_as_kafka_does()
 {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "follow");
    // What librdkafka 2.12 sends for all topics: four bytes where the array's null takes one.
    let mut body = vec![0, 3, 0, 13, 0, 0, 0, 3, 0, 7];
    body.extend_from_slice(b"rdkafka");
    body.extend_from_slice(&[0, 0, 0, 0, 0, 1, 0, 0]);
    connection.write(&chronik_tests::raw::with_length(&body)).unwrap();
    let heard = connection.hear(Duration::from_secs(10)).unwrap();
    let Heard::Frame(frame) = heard else { panic!("{heard:?}") };
    let (correlation, response) = decode_answer::<MetadataRequest>(13, frame).unwrap();
    assert_eq!(correlation, 3);
    let names: Vec<String> =
        response.topics.iter().filter_map(|t| Some(t.name.as_ref()?.0.to_string())).collect();
    assert!(names.contains(&topic), "{names:?}");
}

#[test]
fn given_many_requests_at_once_when_answered_then_the_answers_come_in_the_order_of_the_requests() {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "order");
    let mut sent = Vec::new();
    for n in 0..40 {
        let produce = produce_request(&topic, 0, -1, value(&format!("value {n}")));
        sent.push((0, connection.send(9, &produce).unwrap()));
        sent.push((3, connection.send(12, &metadata_request(&topic, false)).unwrap()));
        sent.push((18, connection.send(0, &ApiVersionsRequest::default()).unwrap()));
    }
    let mut offset = 0;
    for (key, correlation) in sent {
        match key {
            0 => {
                let answer = connection.receive::<ProduceRequest>(9, correlation).unwrap();
                let partition = &answer.responses[0].partition_responses[0];
                assert_eq!((partition.error_code, partition.base_offset), (0, offset));
                offset += 1;
            }
            3 => drop(connection.receive::<MetadataRequest>(12, correlation).unwrap()),
            _ => drop(connection.receive::<ApiVersionsRequest>(0, correlation).unwrap()),
        }
    }
}

#[test]
fn given_a_damaged_batch_when_produced_then_the_error_names_the_damage_and_no_offset_is_taken() {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "damage");
    let good = value("good");
    let damaged = |at: usize, bytes: &[u8], seal: bool| {
        let mut batch = BytesMut::from(&good[..]);
        overwrite(&mut batch, at, bytes);
        if seal {
            batch::seal(&mut batch);
        }
        batch.freeze()
    };
    let last = good.len() - 2;
    let invalid = [CORRUPT_MESSAGE, INVALID_RECORD];
    let cases: [(&str, Bytes, &[i16]); 9] = [
        ("checksum", damaged(batch::CRC_AT, &[1, 2, 3, 4], false), &[CORRUPT_MESSAGE]),
        ("value", damaged(last, b"?", false), &[CORRUPT_MESSAGE]),
        ("length too long", damaged(batch::LENGTH_AT, &[0, 1, 0, 0], false), &invalid),
        ("length too short", damaged(batch::LENGTH_AT, &[0, 0, 0, 3], false), &invalid),
        ("length negative", damaged(batch::LENGTH_AT, &[0xFF; 4], false), &invalid),
        (
            "magic 1",
            damaged(batch::MAGIC_AT, &[1], false),
            &[CORRUPT_MESSAGE, INVALID_RECORD, UNSUPPORTED_FOR_MESSAGE_FORMAT],
        ),
        ("count", damaged(batch::COUNT_AT, &[0, 0, 0, 9], true), &invalid),
        ("last offset delta", damaged(batch::LAST_OFFSET_DELTA_AT, &[0, 0, 0, 9], true), &invalid),
        ("truncated", good.slice(..30), &invalid),
    ];
    for (what, batch, codes) in cases {
        let produced = connection.produce(&topic, 0, batch).unwrap();
        assert!(codes.contains(&produced.error_code), "{what}: {produced:?}, not one of {codes:?}");
    }
    let produced = connection.produce(&topic, 0, good).unwrap();
    assert_eq!(produced, Produced { error_code: 0, base_offset: 0 });
}

#[test]
fn given_a_produce_that_cannot_be_when_sent_then_the_error_says_why() {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "refused");
    let nowhere = fresh_name("nowhere");
    let code = |produced: Produced| produced.error_code;
    assert_eq!(
        code(connection.produce(&nowhere, 0, value("x")).unwrap()),
        UNKNOWN_TOPIC_OR_PARTITION
    );
    assert_eq!(
        code(connection.produce(&topic, 9, value("x")).unwrap()),
        UNKNOWN_TOPIC_OR_PARTITION
    );
    assert_eq!(
        code(connection.produce(&topic, -1, value("x")).unwrap()),
        UNKNOWN_TOPIC_OR_PARTITION
    );
    let large = BatchBuilder::of_value(vec![0; 1_100_000]).build();
    assert_eq!(code(connection.produce(&topic, 0, large).unwrap()), MESSAGE_TOO_LARGE);
    let answer = connection.call(9, &produce_request(&topic, 0, 5, value("x"))).unwrap();
    let partition = &answer.responses[0].partition_responses[0];
    assert_eq!(partition.error_code, INVALID_REQUIRED_ACKS);
}

#[test]
fn given_an_idempotent_producer_when_it_repeats_skips_or_is_old_then_each_is_answered_as_kafka_does()
 {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "sequence");
    let (id, epoch) = connection.init_producer().unwrap();
    let batch = |epoch: i16, sequence: i32| {
        BatchBuilder::of_value(format!("{sequence}")).producer(id, epoch, sequence).build()
    };
    let stored = |offset: i64| Produced { error_code: 0, base_offset: offset };
    for n in 0..5 {
        let produced = connection.produce(&topic, 0, batch(epoch, n)).unwrap();
        assert_eq!(produced, stored(i64::from(n)));
    }
    for n in 0..5 {
        let again = connection.produce(&topic, 0, batch(epoch, n)).unwrap();
        assert_eq!(again, stored(i64::from(n)), "sequence {n} again");
    }
    let gap = connection.produce(&topic, 0, batch(epoch, 7)).unwrap();
    assert_eq!(gap.error_code, OUT_OF_ORDER_SEQUENCE_NUMBER);
    assert_eq!(connection.produce(&topic, 0, batch(epoch + 1, 0)).unwrap(), stored(5));
    let old = connection.produce(&topic, 0, batch(epoch, 5)).unwrap();
    assert_eq!(old.error_code, INVALID_PRODUCER_EPOCH);
    assert_eq!(values(only(&connection.fetch(&topic, 0, 0).unwrap())).len(), 6);
}

#[test]
fn given_offsets_when_fetched_then_whole_batches_come_and_what_is_beyond_is_out_of_range() {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "offsets");
    let batch = ["a", "b", "c"].iter().fold(BatchBuilder::new(), |batch, text| {
        batch.record(None, Some(Bytes::from_static(text.as_bytes())))
    });
    connection.produce(&topic, 0, batch.build()).unwrap();
    connection.produce(&topic, 0, value("d")).unwrap();
    let middle = connection.fetch(&topic, 0, 1).unwrap();
    assert_eq!(only(&middle).high_watermark, 4);
    let found = values(only(&middle));
    assert_eq!(found[0], (0, "a".into()), "a batch is never cut");
    assert_eq!(found.last(), Some(&(3, "d".into())));
    for beyond in [5, -1, i64::MAX] {
        let answer = connection.fetch(&topic, 0, beyond).unwrap();
        let code = answer.responses[0].partitions[0].error_code;
        assert_eq!(code, OFFSET_OUT_OF_RANGE, "offset {beyond}");
    }
    let asked = Instant::now();
    let empty = connection.call(11, &fetch_request(&topic, 0, 4, 300)).unwrap();
    assert!(values(only(&empty)).is_empty());
    let waited = asked.elapsed();
    assert!(waited > Duration::from_millis(250), "answered after {waited:?}, told to wait 300 ms");
    assert!(waited < Duration::from_secs(5), "answered after {waited:?}, told to wait 300 ms");
}

#[test]
fn given_a_fetch_that_waits_when_a_record_comes_on_another_connection_then_it_is_answered_with_it()
{
    let served = Served::new().unwrap();
    let mut waiting = connect(&served);
    let mut producing = connect(&served);
    let topic = new_topic(&mut producing, "waiting");
    for n in 0..10_i64 {
        let correlation = waiting.send(11, &fetch_request(&topic, 0, n, 60_000)).unwrap();
        assert_eq!(waiting.hear(Duration::from_millis(50)).unwrap(), Heard::Silence);
        producing.produce(&topic, 0, value(&format!("{n}"))).unwrap();
        let answer = waiting.receive::<FetchRequest>(11, correlation).unwrap();
        assert_eq!(values(only(&answer)), [(n, format!("{n}"))]);
    }
}

#[test]
fn given_size_limits_when_fetched_then_they_hold_but_the_first_batch_always_comes() {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "limits");
    for n in 0..10 {
        let batch = BatchBuilder::of_value(vec![b'0' + n; 10_000]).build();
        connection.produce(&topic, 0, batch).unwrap();
    }
    let mut fetch = |partition_bytes: i32, bytes: i32| {
        let mut request = fetch_request(&topic, 0, 0, 1_000).with_max_bytes(bytes);
        request.topics[0].partitions[0].partition_max_bytes = partition_bytes;
        values(only(&connection.call(11, &request).unwrap())).len()
    };
    assert_eq!(fetch(1, 1 << 20), 1);
    assert_eq!(fetch(1 << 20, 1), 1);
    assert_eq!(fetch(35_000, 1 << 20), 3);
    assert_eq!(fetch(1 << 20, 55_000), 5);
    assert_eq!(fetch(1 << 20, 1 << 20), 10);
}

fn session_request(topic: &str, partitions: &[i32], id: i32, epoch: i32) -> FetchRequest {
    let mut request = fetch_request(topic, 0, 0, 0).with_session_id(id).with_session_epoch(epoch);
    request.min_bytes = 0;
    let first = request.topics[0].partitions[0].clone();
    request.topics[0].partitions =
        partitions.iter().map(|p| first.clone().with_partition(*p)).collect();
    if partitions.is_empty() {
        request.topics.clear();
    }
    request
}

#[test]
fn given_a_fetch_session_when_used_then_only_what_changed_is_answered_and_bad_ids_and_epochs_are_refused()
 {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "session");
    connection.produce(&topic, 0, value("one")).unwrap();
    let full = connection.call(11, &session_request(&topic, &[0], 0, 0)).unwrap();
    assert_eq!(values(only(&full)).len(), 1);
    let id = full.session_id;
    assert_ne!(id, 0, "a session is given to a client that asks for one");

    let mut moved = session_request(&topic, &[0], id, 1);
    moved.topics[0].partitions[0].fetch_offset = 1;
    let quiet = connection.call(11, &moved).unwrap();
    assert!(quiet.responses.is_empty(), "nothing changed: {:?}", quiet.responses);
    connection.produce(&topic, 0, value("two")).unwrap();
    let news = connection.call(11, &session_request(&topic, &[], id, 2)).unwrap();
    assert_eq!(values(only(&news)), [(1, "two".into())]);

    let wrong_epoch = connection.call(11, &session_request(&topic, &[], id, 9)).unwrap();
    assert_eq!(wrong_epoch.error_code, INVALID_FETCH_SESSION_EPOCH);
    let wrong_id = connection.call(11, &session_request(&topic, &[], id ^ 0x55, 3)).unwrap();
    assert_eq!(wrong_id.error_code, FETCH_SESSION_ID_NOT_FOUND);
    let closed = connection.call(11, &session_request(&topic, &[], id, -1)).unwrap();
    assert_eq!(closed.session_id, 0);
    let gone = connection.call(11, &session_request(&topic, &[], id, 3)).unwrap();
    assert_eq!(gone.error_code, FETCH_SESSION_ID_NOT_FOUND);
}

/// The epoch and end offset that the broker gives for `epoch`.
fn end_of_epoch(
    connection: &mut RawConnection,
    topic: &str,
    current: i32,
    epoch: i32,
) -> (i16, i32, i64) {
    let partition = OffsetForLeaderPartition::default()
        .with_partition(0)
        .with_current_leader_epoch(current)
        .with_leader_epoch(epoch);
    let topic = OffsetForLeaderTopic::default()
        .with_topic(topic_name(topic))
        .with_partitions(vec![partition]);
    let request = OffsetForLeaderEpochRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_topics(vec![topic]);
    let response = connection.call(4, &request).unwrap();
    let found = &response.topics[0].partitions[0];
    (found.error_code, found.leader_epoch, found.end_offset)
}

#[test]
fn given_restarts_when_asked_for_the_end_of_each_epoch_then_it_is_where_the_next_one_began() {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    let topic = new_topic(&mut connection, "epochs");
    let mut ends = Vec::new();
    for round in 0..3_i64 {
        for n in 0..=round {
            connection.produce(&topic, 0, value(&format!("{round}.{n}"))).unwrap();
        }
        let metadata = connection.metadata(&topic, false).unwrap();
        let epoch = metadata.topics[0].partitions[0].leader_epoch;
        let end = only(&connection.fetch(&topic, 0, 0).unwrap()).high_watermark;
        ends.push((epoch, end));
        broker.kill().unwrap();
        broker.start_again().unwrap();
        connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    }
    assert!(ends.windows(2).all(|w| w[0].0 < w[1].0), "each start is a new epoch: {ends:?}");
    for &(epoch, end) in &ends {
        assert_eq!(end_of_epoch(&mut connection, &topic, -1, epoch), (0, epoch, end));
    }
    let (first, _) = ends[0];
    let future = 1_000_000;
    assert_eq!(end_of_epoch(&mut connection, &topic, first, first).0, FENCED_LEADER_EPOCH);
    assert_eq!(end_of_epoch(&mut connection, &topic, future, first).0, UNKNOWN_LEADER_EPOCH);

    let mut stale = fetch_request(&topic, 0, 0, 0);
    stale.topics[0].partitions[0].current_leader_epoch = first;
    let answer = connection.call(11, &stale).unwrap();
    assert_eq!(answer.responses[0].partitions[0].error_code, FENCED_LEADER_EPOCH);
    let mut early = stale;
    early.topics[0].partitions[0].current_leader_epoch = future;
    let answer = connection.call(11, &early).unwrap();
    assert_eq!(answer.responses[0].partitions[0].error_code, UNKNOWN_LEADER_EPOCH);
}

#[test]
fn given_acks_0_when_produced_then_there_is_no_answer_and_the_record_is_there() {
    let served = Served::new().unwrap();
    let mut connection = connect(&served);
    let topic = new_topic(&mut connection, "acks0");
    let silent = encode_frame(9, 901, &produce_request(&topic, 0, 0, value("quiet"))).unwrap();
    connection.write(&silent).unwrap();
    // The next answer on the connection is to the next request.
    connection.api_versions().unwrap();
    let found = connection.fetch(&topic, 0, 0).unwrap();
    assert_eq!(values(only(&found)), [(0, "quiet".into())]);
}

/// Kernel and catalog choose the cores, so that some of these connections are on the wrong one.
#[test]
fn given_producers_on_the_wrong_core_when_they_go_on_then_they_are_moved_and_nothing_is_lost_or_reordered()
 {
    const BATCHES: i64 = 400;
    const IN_FLIGHT: usize = 7;
    let broker = Broker::start(Settings::new()).unwrap();
    let moved = || {
        let page = http::get(broker.ports().admin_addr(), "/metrics").unwrap();
        http::Metrics::parse(&page.body).unwrap().sum("chronik_connections_moved_total")
    };
    let shards = http::get(broker.ports().admin_addr(), "/metrics").unwrap().body;
    if !shards.contains("chronik_connections{shard=\"1\"}") {
        say_skipped("one shard only, so no connection is on a wrong one");
        return;
    }
    for _ in 0..16 {
        let topic = fresh_name("moved");
        let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
        connection.ensure_topic_without_fetching(&topic).unwrap();
        let mut asked = VecDeque::new();
        let mut next_offset = 0;
        for _ in 0..BATCHES {
            let request = produce_request(&topic, 0, -1, BatchBuilder::of_value("x").build());
            asked.push_back(connection.send(9, &request).unwrap());
            if asked.len() == IN_FLIGHT {
                next_offset += take_answer(&mut connection, &mut asked, next_offset);
            }
        }
        while !asked.is_empty() {
            next_offset += take_answer(&mut connection, &mut asked, next_offset);
        }
        assert_eq!(next_offset, BATCHES);
        if moved() >= 2.0 {
            return;
        }
    }
    panic!("of 16 connections, each on a core by chance, fewer than two were moved");
}

fn take_answer(connection: &mut RawConnection, asked: &mut VecDeque<i32>, offset: i64) -> i64 {
    let id = asked.pop_front().unwrap();
    let answer = connection.receive::<ProduceRequest>(9, id).unwrap();
    let partition = &answer.responses[0].partition_responses[0];
    assert_eq!((partition.error_code, partition.base_offset), (0, offset));
    1
}
