//! ListOffsets: partitions named twice, and times looked up in batches of every size.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use chronik_engine::batch::BatchBuilder as EngineBatch;
use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Served, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::ListOffsetsPartitionResponse;
use kafka_protocol::messages::{BrokerId, DeleteRecordsRequest, ListOffsetsRequest};

const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const INVALID_REQUEST: i16 = 42;

const LATEST: i64 = -1;
const MAX_TIMESTAMP: i64 = -3;

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
    let response = connection.call(7, &request).unwrap();
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

fn delete_before(connection: &mut RawConnection, topic: &str, offset: i64) {
    let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(offset);
    let topic =
        DeleteRecordsTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let answer = connection.call(2, &request).unwrap().topics[0].partitions[0].clone();
    assert_eq!((answer.error_code, answer.low_watermark), (0, offset));
}

#[test]
fn given_deleted_records_with_the_greatest_time_when_it_is_asked_for_then_that_of_the_others_is_answered()
 {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = fresh_name("latest");
    connection.ensure_topic(&topic).unwrap();
    for (first, second) in [(9_000, 8_000), (1_000, 1_500), (3_000, 2_500), (2_000, 2_000)] {
        let batch = EngineBatch::new().record(first, None, None).record(second, None, None);
        let batch = batch.build().unwrap().into_bytes();
        assert_eq!(connection.produce(&topic, 0, batch).unwrap().error_code, 0);
    }
    let find = |connection: &mut RawConnection, timestamp| {
        let answer = list(connection, &[(&*topic, 0, timestamp)]).remove(0);
        (answer.error_code, answer.offset, answer.timestamp)
    };
    assert_eq!(find(&mut connection, MAX_TIMESTAMP), (0, 0, 9_000));
    delete_before(&mut connection, &topic, 1);
    assert_eq!(find(&mut connection, MAX_TIMESTAMP), (0, 1, 8_000));
    assert_eq!(find(&mut connection, 0), (0, 1, 8_000));
    delete_before(&mut connection, &topic, 3);
    assert_eq!(find(&mut connection, MAX_TIMESTAMP), (0, 4, 3_000));
    assert_eq!(find(&mut connection, 0), (0, 3, 1_500));
    assert_eq!(find(&mut connection, 3_001), (0, -1, -1));
    delete_before(&mut connection, &topic, 8);
    assert_eq!(find(&mut connection, MAX_TIMESTAMP), (0, -1, -1));
}
