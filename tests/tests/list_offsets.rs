//! ListOffsets: partitions named twice, and times looked up in batches of every size.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Served, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::ListOffsetsPartitionResponse;
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest};

const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const INVALID_REQUEST: i16 = 42;

const LATEST: i64 = -1;

/// What is answered for each (topic, partition, timestamp), in this order.
fn list(
    connection: &mut RawConnection,
    asked: &[(&str, i32, i64)],
) -> Vec<ListOffsetsPartitionResponse> {
    let topics = asked.iter().map(|(topic, partition, timestamp)| {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(*partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(*timestamp);
        ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition])
    });
    let request =
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(topics.collect());
    let response = connection.call(5, &request).unwrap();
    assert_eq!(response.topics.len(), asked.len());
    let answers = asked.iter().zip(response.topics).map(|((topic, ..), answered)| {
        assert_eq!(answered.name.as_str(), *topic);
        assert_eq!(answered.partitions.len(), 1);
        answered.partitions[0].clone()
    });
    answers.collect()
}

#[test]
fn given_a_partition_named_twice_when_its_offsets_are_asked_for_then_it_is_refused_and_the_others_are_not()
 {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let (twice, once, none) = (fresh_name("twice"), fresh_name("once"), fresh_name("none"));
    for topic in [&twice, &once] {
        connection.ensure_topic(topic).unwrap();
        connection.produce(topic, 0, BatchBuilder::of_value("x").build()).unwrap();
    }
    let asked = [(&*twice, 0, LATEST), (&*once, 0, LATEST), (&*none, 0, LATEST), (&*twice, 0, 0)];
    let answers = list(&mut connection, &asked);
    let got: Vec<_> = answers.iter().map(|answer| (answer.error_code, answer.offset)).collect();
    assert_eq!(
        got,
        [(INVALID_REQUEST, -1), (0, 1), (UNKNOWN_TOPIC_OR_PARTITION, -1), (INVALID_REQUEST, -1)]
    );
}

#[test]
fn given_small_and_large_batches_when_a_time_is_asked_for_then_the_offset_of_the_record_is_answered()
 {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = fresh_name("times");
    connection.ensure_topic(&topic).unwrap();
    // A batch below and one above what is searched on the core itself.
    for (time, value_bytes) in [(1_000, 10), (2_000, 200_000)] {
        let value = Bytes::from(vec![7; value_bytes]);
        let batch = BatchBuilder::of_value(value.clone()).record(None, Some(value));
        connection.produce(&topic, 0, batch.timestamp_ms(time).build()).unwrap();
    }
    let mut find = |timestamp| {
        let answer = list(&mut connection, &[(&*topic, 0, timestamp)]).remove(0);
        (answer.error_code, answer.offset, answer.timestamp)
    };
    assert_eq!(find(500), (0, 0, 1_000));
    assert_eq!(find(1_000), (0, 0, 1_000));
    assert_eq!(find(1_001), (0, 2, 2_000));
    assert_eq!(find(2_001), (0, -1, -1));
}
