//! Records: produced, fetched, and looked up by time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::fresh_name;
use chronik_tests::raw::{fetch_request, produce_request, topic_name};
use chronik_tests::scratch::wait_for;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::*;

use crate::{compare, new_topic, with_config};

/// Times and places in several versions of ListOffsets: those that have a meaning, and some that have none.
fn times_to_look_for() -> Vec<(i16, i64)> {
    let times = [-1, -2, -3, -4, -5, -6, -7, -100, i64::MIN, 0, i64::MAX];
    let versions = [1, 4, 6, 7, 8, 9, 10];
    let all = versions.iter().flat_map(|version| times.iter().map(|time| (*version, *time)));
    all.collect()
}

#[test]
fn given_wrong_reads_and_writes_when_asked_then_the_errors_are_kafkas() {
    compare(|connection, topic| {
        let mut answers = Vec::new();
        let batch = || BatchBuilder::of_value("x").build();
        let mut broken = BytesMut::from(&batch()[..]);
        *broken.last_mut().unwrap() ^= 1;
        let late = BatchBuilder::of_value("x").timestamp_ms(32_503_680_000_000).build();
        let large = BatchBuilder::of_value(Bytes::from(vec![1; 1_100_000])).build();
        let produces: Vec<(&str, &str, i32, i16, Bytes)> = vec![
            ("good", topic, 0, -1, batch()),
            ("unknown topic", "no-such-topic", 0, -1, batch()),
            ("unknown partition", topic, 9, -1, batch()),
            ("negative partition", topic, -1, -1, batch()),
            ("wrong acks", topic, 0, 2, batch()),
            ("broken", topic, 0, -1, broken.freeze()),
            ("from the future", topic, 0, -1, late),
            ("too large", topic, 0, -1, large),
        ];
        for (case, name, partition, acks, batch) in produces {
            let request = produce_request(name, partition, acks, batch);
            let answer = connection.call(9, &request).unwrap();
            let answer = &answer.responses[0].partition_responses[0];
            answers
                .push(format!("produce {case}: {} at {}", answer.error_code, answer.base_offset));
        }
        for (case, name, partition, offset) in [
            ("good", topic, 0, 0),
            ("at the end", topic, 0, 1),
            ("beyond the end", topic, 0, 99),
            ("negative", topic, 0, -1),
            ("unknown topic", "no-such-topic", 0, 0),
            ("unknown partition", topic, 9, 0),
        ] {
            let answer = connection.call(11, &fetch_request(name, partition, offset, 0)).unwrap();
            let answer = &answer.responses[0].partitions[0];
            answers.push(format!(
                "fetch {case}: {} high watermark {} log start {}",
                answer.error_code, answer.high_watermark, answer.log_start_offset
            ));
        }
        for (version, timestamp) in times_to_look_for() {
            for (name, partition) in [(topic, 0), (topic, 9), ("no-such-topic", 0)] {
                let partition = ListOffsetsPartition::default()
                    .with_partition_index(partition)
                    .with_current_leader_epoch(-1)
                    .with_timestamp(timestamp);
                let asked = ListOffsetsTopic::default()
                    .with_name(topic_name(name))
                    .with_partitions(vec![partition]);
                let request = ListOffsetsRequest::default()
                    .with_replica_id(BrokerId(-1))
                    .with_topics(vec![asked]);
                let answer = connection.call(version, &request).unwrap();
                let answer = &answer.topics[0].partitions[0];
                let number = answer.partition_index;
                answers.push(format!(
                    "list {timestamp} of {name}-{number} v{version}: {} offset {} epoch told {}",
                    answer.error_code,
                    answer.offset,
                    answer.leader_epoch >= 0
                ));
            }
        }
        answers
    });
}

#[test]
fn given_a_batch_that_comes_twice_when_produced_then_the_answers_and_their_times_are_kafkas() {
    compare(|connection, topic| {
        let stamped = fresh_name("stamped");
        let created = new_topic(&stamped, 1, 1);
        let created = with_config(created, "message.timestamp.type", Some("LogAppendTime"));
        let request = CreateTopicsRequest::default().with_topics(vec![created]);
        assert_eq!(connection.call(7, &request.with_timeout_ms(10_000)).unwrap().topics.len(), 1);
        connection.ensure_topic(&stamped).unwrap();
        // A Kafka that has just begun has no producer ids yet.
        let (id, epoch) =
            wait_for("a producer id", Duration::from_secs(20), || connection.init_producer().ok())
                .unwrap();
        let mut answers = Vec::new();
        for (case, name) in [("producer's", topic), ("broker's", &stamped)] {
            let sent_ms = 1_700_000_000_000;
            let value = BatchBuilder::of_value("x").timestamp_ms(sent_ms);
            let batch = value.producer(id, epoch, 0).build();
            let mut first_ms = None;
            for time in ["first", "second", "third"] {
                let request = produce_request(name, 0, -1, batch.clone());
                let answer = connection.call(9, &request).unwrap();
                let answer = &answer.responses[0].partition_responses[0];
                let told_ms = answer.log_append_time_ms;
                let first_ms = *first_ms.get_or_insert(told_ms);
                answers.push(format!(
                    "produce at the {case} time, {time}: {} at {} none {} sent {} as first {}",
                    answer.error_code,
                    answer.base_offset,
                    told_ms == -1,
                    told_ms == sent_ms,
                    told_ms == first_ms
                ));
            }
        }
        answers
    });
}
