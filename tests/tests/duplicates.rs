//! What an idempotent producer's duplicate is told of the time at which its batch was appended.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Served, fresh_name};
use chronik_tests::raw::{RawConnection, produce_request, topic_name};
use kafka_protocol::messages::CreateTopicsRequest;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::protocol::StrBytes;

/// A topic whose timestamps are of this type.
fn topic(connection: &mut RawConnection, timestamp_type: &'static str) -> String {
    let name = fresh_name("duplicates");
    let config = CreatableTopicConfig::default()
        .with_name(StrBytes::from_static_str("message.timestamp.type"))
        .with_value(Some(StrBytes::from_static_str(timestamp_type)));
    let topic = CreatableTopic::default()
        .with_name(topic_name(&name))
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(vec![config]);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    assert_eq!(connection.call(7, &request).unwrap().topics[0].error_code, 0);
    connection.ensure_topic(&name).unwrap();
    name
}

/// Sends one batch twice: the append times of the two answers, and the batch's own time.
fn append_times(timestamp_type: &'static str) -> (i64, i64, i64) {
    const TIME_MS: i64 = 1_700_000_000_000;
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = topic(&mut connection, timestamp_type);
    let (id, epoch) = connection.init_producer().unwrap();
    let batch = BatchBuilder::of_value("once").producer(id, epoch, 0).timestamp_ms(TIME_MS).build();
    let mut send = || {
        let request = produce_request(&topic, 0, -1, batch.clone());
        let answer = connection.call(9, &request).unwrap();
        let answer = &answer.responses[0].partition_responses[0];
        assert_eq!((answer.error_code, answer.base_offset), (0, 0));
        answer.log_append_time_ms
    };
    (send(), send(), TIME_MS)
}

#[test]
fn given_a_topic_with_append_times_when_a_batch_comes_twice_then_both_are_told_the_first_time() {
    let (first, second, sent) = append_times("LogAppendTime");
    assert!(first > sent, "the broker's own time");
    assert_eq!(first, second);
}

/// Kafka remembers of a batch its greatest timestamp, whoever gave it, and tells that.
#[test]
fn given_a_topic_with_the_producers_times_when_a_batch_comes_twice_then_the_duplicate_is_told_its_own()
 {
    let (first, second, sent) = append_times("CreateTime");
    assert_eq!((first, second), (-1, sent));
}
