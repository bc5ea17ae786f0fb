//! What administrators are told: log directories, producers, partitions, the cluster, and what everybody may do.

use std::time::Duration;

use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::fresh_name;
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::wait_for;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::*;

use crate::{Answers, compare, new_topic};

#[test]
fn given_partitions_when_their_directories_are_described_then_the_answers_are_kafkas() {
    compare(|connection, topic| {
        connection.produce(topic, 0, BatchBuilder::of_value("x").build()).unwrap();
        let named = |name: &str, partitions: &[i32]| {
            DescribableLogDirTopic::default()
                .with_topic(topic_name(name))
                .with_partitions(partitions.to_vec())
        };
        let mut answers: Answers = Vec::new();
        for (case, topics) in [
            ("one", Some(vec![named(topic, &[0])])),
            ("all", None),
            ("none", Some(vec![])),
            ("an unknown topic", Some(vec![named("no-such-topic", &[0])])),
            ("an unknown partition", Some(vec![named(topic, &[9])])),
            ("one and an unknown one", Some(vec![named(topic, &[0, 9])])),
            ("no partition", Some(vec![named(topic, &[])])),
            ("a partition twice", Some(vec![named(topic, &[0, 0]), named(topic, &[0])])),
        ] {
            for version in 1..=4 {
                let request = DescribeLogDirsRequest::default().with_topics(topics.clone());
                let answer = connection.call(version, &request).unwrap();
                let dir = &answer.results[0];
                let of_topic = dir.topics.iter().find(|told| told.name.as_str() == topic);
                let partitions: Option<Vec<_>> = of_topic.map(|told| {
                    let told = told.partitions.iter().map(|told| {
                        let has_size = told.partition_size > 0;
                        (told.partition_index, has_size, told.offset_lag, told.is_future_key)
                    });
                    told.collect()
                });
                answers.push(format!(
                    "log dirs of {case} v{version}: {} {} dirs, {} {partitions:?} absolute {} bytes {}",
                    answer.error_code,
                    answer.results.len(),
                    dir.error_code,
                    dir.log_dir.starts_with('/'),
                    dir.total_bytes > 0 && dir.usable_bytes > 0
                ));
            }
        }
        answers
    });
}

#[test]
fn given_a_producer_when_the_producers_are_described_then_the_answers_are_kafkas() {
    compare(|connection, topic| {
        // A Kafka that has just begun has no producer ids yet.
        let (id, epoch) =
            wait_for("a producer id", Duration::from_secs(20), || connection.init_producer().ok())
                .unwrap();
        let mut answers: Answers = Vec::new();
        for records in [0, 1, 2] {
            if records > 0 {
                let value = BatchBuilder::of_value("x").producer(id, epoch, records - 1);
                connection.produce(topic, 0, value.build()).unwrap();
            }
            for (case, name, partitions) in [
                ("one", topic, &[0][..]),
                ("unknown partitions", topic, &[9, -1]),
                ("an unknown topic", "no-such-topic", &[0]),
                ("an illegal topic", "a/b", &[0]),
                ("none", topic, &[]),
            ] {
                let asked = describe_producers_request::TopicRequest::default()
                    .with_name(topic_name(name))
                    .with_partition_indexes(partitions.to_vec());
                let request = DescribeProducersRequest::default().with_topics(vec![asked]);
                let answer = connection.call(0, &request).unwrap();
                let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
                let mut told: Vec<_> = partitions
                    .map(|told| {
                        let producers: Vec<_> = told
                            .active_producers
                            .iter()
                            .map(|one| {
                                let states = (one.coordinator_epoch, one.current_txn_start_offset);
                                let sequence = (one.producer_epoch, one.last_sequence);
                                let is_it = one.producer_id.0 == id;
                                (is_it, sequence, one.last_timestamp > 0, states)
                            })
                            .collect();
                        (told.partition_index, told.error_code, producers)
                    })
                    .collect();
                told.sort();
                answers.push(format!("producers of {case} after {records} records: {told:?}"));
            }
        }
        answers
    });
}

fn told_of_partitions(answer: &DescribeTopicPartitionsResponse, names: &[&str]) -> String {
    // Names are fresh: told is which one it is.
    let place = |name: &str| names.iter().position(|known| *known == name);
    let topics: Vec<_> = answer
        .topics
        .iter()
        .map(|topic| {
            let partitions: Vec<_> = topic
                .partitions
                .iter()
                .map(|told| {
                    let replicas = (told.replica_nodes.len(), told.isr_nodes.len());
                    let eligible = (&told.eligible_leader_replicas, &told.last_known_elr);
                    let leader = (told.leader_id.0, told.leader_epoch >= 0);
                    (told.error_code, told.partition_index, leader, replicas, eligible)
                })
                .collect();
            let name = topic.name.as_ref().and_then(|name| place(name));
            let operations = topic.topic_authorized_operations;
            (topic.error_code, name, topic.topic_id.is_nil(), operations, partitions)
        })
        .collect();
    let next =
        answer.next_cursor.as_ref().map(|next| (place(&next.topic_name), next.partition_index));
    format!("{topics:?} next {next:?}")
}

#[test]
fn given_topics_when_their_partitions_are_described_in_pages_then_the_answers_are_kafkas() {
    compare(|connection, topic| {
        let wide = format!("{topic}-wide");
        let request = CreateTopicsRequest::default().with_topics(vec![new_topic(&wide, 3, 1)]);
        let made = connection.call(7, &request.with_timeout_ms(10_000)).unwrap();
        assert_eq!(made.topics[0].error_code, 0);
        connection.ensure_topic(&wide).unwrap();
        let names = [topic, &*wide, "no-such-topic", "a/b"];
        let cursor = |name: &str, partition| {
            Some(
                Cursor::default().with_topic_name(topic_name(name)).with_partition_index(partition),
            )
        };
        let mut answers: Answers = Vec::new();
        for (case, asked, limit, cursor) in [
            ("both", &[0, 1][..], 2_000, None),
            ("one twice", &[0, 0], 2_000, None),
            ("unknown", &[2], 2_000, None),
            ("illegal", &[3], 2_000, None),
            ("known and unknown", &[0, 2], 2_000, None),
            ("limited", &[0, 1], 2, None),
            ("limited to one topic", &[0, 1], 1, None),
            ("limited to one topic more", &[0, 1], 4, None),
            ("from a cursor", &[0, 1], 2_000, cursor(&wide, 1)),
            ("from a cursor, limited", &[1], 1, cursor(&wide, 1)),
            ("from a cursor beyond", &[1], 2_000, cursor(&wide, 9)),
            ("from an unknown cursor", &[0, 1], 2_000, cursor("aaa", 0)),
            ("from a negative cursor", &[0, 1], 2_000, cursor(&wide, -1)),
        ] {
            let topics = asked
                .iter()
                .map(|at: &usize| TopicRequest::default().with_name(topic_name(names[*at])));
            let request = DescribeTopicPartitionsRequest::default()
                .with_topics(topics.collect())
                .with_response_partition_limit(limit)
                .with_cursor(cursor);
            let answer = connection.call(0, &request).unwrap();
            answers.push(format!("partitions, {case}: {}", told_of_partitions(&answer, &names)));
        }
        answers
    });
}

fn metadata_operations(
    connection: &mut RawConnection,
    version: i16,
    topic: &str,
    of_cluster: bool,
    of_topics: bool,
) -> String {
    let named = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let mut request = MetadataRequest::default()
        .with_topics(Some(vec![named]))
        .with_allow_auto_topic_creation(false)
        .with_include_topic_authorized_operations(of_topics);
    if version <= 10 {
        request = request.with_include_cluster_authorized_operations(of_cluster);
    }
    let answer = connection.call(version, &request).unwrap();
    let told = &answer.topics[0];
    format!(
        "{} operations {} of the cluster {}",
        told.error_code, told.topic_authorized_operations, answer.cluster_authorized_operations
    )
}

#[test]
fn given_no_authorizer_when_operations_are_asked_for_then_all_that_kafka_names_are_told() {
    compare(|connection, topic| {
        let mut answers: Answers = Vec::new();
        for version in [8, 10, 12] {
            for (of_cluster, of_topics) in [(false, false), (true, true)] {
                for name in [topic, "no-such-topic", "a/b"] {
                    let told =
                        metadata_operations(connection, version, name, of_cluster, of_topics);
                    let case = if name == topic { "a topic" } else { name };
                    answers.push(format!("v{version} {case} asked {of_topics}: {told}"));
                }
            }
        }
        for (version, endpoint, asks) in
            [(0, 1, true), (0, 1, false), (1, 1, true), (1, 2, true), (1, 9, true)]
        {
            let mut request =
                DescribeClusterRequest::default().with_include_cluster_authorized_operations(asks);
            if version >= 1 {
                request = request.with_endpoint_type(endpoint);
            }
            let answer = connection.call(version, &request).unwrap();
            answers.push(format!(
                "cluster v{version} endpoint {endpoint} asked {asks}: {} operations {}",
                answer.error_code, answer.cluster_authorized_operations
            ));
        }
        let unknown = fresh_name("unknown");
        let told = metadata_operations(connection, 12, &unknown, false, true);
        answers.push(format!("one that was never there: {told}"));
        answers
    });
}
