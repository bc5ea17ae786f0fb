//! The same requests to this broker and to Apache Kafka: the answers must say the same.
//!
//! Apache Kafka's address is in `CHRONIK_TEST_KAFKA_BOOTSTRAP` (one broker with default settings); without it each test
//! says `SKIPPED` and passes. Answers are compared as lines, one for each thing asked. What is different on purpose stands
//! in [`EXPLAINED`]; texts for people are not compared.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Served, fresh_name};
use chronik_tests::raw::{RawConnection, fetch_request, produce_request, topic_name};
use chronik_tests::scratch::{say_skipped, wait_for};
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

/// Lines that begin so may differ, and why.
const EXPLAINED: &[(&str, &str)] = &[
    ("config durability", "a configuration of this broker alone"),
    ("config searchable.enabled", "a configuration of this broker alone"),
    ("config min.insync.replicas", "a new Kafka cluster sets it itself, for all brokers"),
];

/// What one broker says to the questions of a test.
type Answers = Vec<String>;

/// Asks both brokers and compares.
fn compare(ask: impl Fn(&mut RawConnection, &str) -> Answers) {
    let Ok(kafka) = std::env::var("CHRONIK_TEST_KAFKA_BOOTSTRAP") else {
        say_skipped("CHRONIK_TEST_KAFKA_BOOTSTRAP does not name an Apache Kafka");
        return;
    };
    let kafka: SocketAddr = kafka.parse().unwrap();
    let served = Served::new().unwrap();
    let topic = fresh_name("same");
    let answers = |addr| {
        let mut connection = RawConnection::open(addr).unwrap();
        connection.ensure_topic(&topic).unwrap();
        let mut answers = ask(&mut connection, &topic);
        answers.retain(|line| !EXPLAINED.iter().any(|(prefix, _)| line.starts_with(prefix)));
        answers
    };
    let (theirs, ours) = (answers(kafka), answers(served.addr()));
    let pairs = theirs.iter().zip(&ours).filter(|(theirs, ours)| theirs != ours);
    let different: Vec<String> =
        pairs.map(|(theirs, ours)| format!("Kafka: {theirs}\nhere:  {ours}")).collect();
    assert!(different.is_empty(), "\n{}", different.join("\n"));
    assert_eq!(theirs.len(), ours.len());
}

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

fn new_topic(name: &str, partitions: i32, replicas: i16) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(replicas)
}

fn assigned(partition: i32, brokers: &[i32]) -> CreatableReplicaAssignment {
    CreatableReplicaAssignment::default()
        .with_partition_index(partition)
        .with_broker_ids(brokers.iter().map(|id| BrokerId(*id)).collect())
}

fn with_config(topic: CreatableTopic, name: &str, value: Option<&str>) -> CreatableTopic {
    let config = CreatableTopicConfig::default().with_name(text(name)).with_value(value.map(text));
    topic.with_configs(vec![config])
}

#[test]
fn given_topics_that_cannot_be_when_created_then_the_errors_are_kafkas() {
    compare(|connection, topic| {
        let fresh = || fresh_name("new");
        let named = |name: &str| new_topic(name, 1, 1);
        let auto = |assignments| new_topic(&fresh(), -1, -1).with_assignments(assignments);
        let config = |name, value| with_config(named(&fresh()), name, value);
        let cases: Vec<(&str, CreatableTopic)> = vec![
            ("exists", named(topic)),
            ("empty name", named("")),
            ("dot", named(".")),
            ("slash", named("a/b")),
            ("long", named(&"x".repeat(250))),
            ("no partitions", new_topic(&fresh(), 0, 1)),
            ("partitions -2", new_topic(&fresh(), -2, 1)),
            ("no replicas", new_topic(&fresh(), 1, 0)),
            ("replicas -2", new_topic(&fresh(), 1, -2)),
            ("two replicas", new_topic(&fresh(), 1, 2)),
            ("defaults", new_topic(&fresh(), -1, -1)),
            ("assigned", auto(vec![assigned(0, &[1]), assigned(1, &[1])])),
            ("assigned with a gap", auto(vec![assigned(0, &[1]), assigned(2, &[1])])),
            ("assigned from one", auto(vec![assigned(1, &[1])])),
            ("assigned twice", auto(vec![assigned(0, &[1]), assigned(0, &[1])])),
            ("assigned to nobody", auto(vec![assigned(0, &[])])),
            ("assigned elsewhere", auto(vec![assigned(0, &[9])])),
            ("assigned to one twice", auto(vec![assigned(0, &[1, 1])])),
            ("assigned and counted", named(&fresh()).with_assignments(vec![assigned(0, &[1])])),
            ("unknown config", config("no.such.config", Some("1"))),
            ("wrong config", config("retention.ms", Some("soon"))),
            ("config out of range", config("retention.ms", Some("-2"))),
            ("config null", config("retention.ms", None)),
            ("compacted", config("cleanup.policy", Some("compact"))),
            ("config", config("retention.ms", Some("1000"))),
        ];
        let mut answers: Answers = Vec::new();
        for (case, topic) in cases {
            for validate_only in [true, false] {
                let request = CreateTopicsRequest::default()
                    .with_topics(vec![topic.clone()])
                    .with_timeout_ms(10_000)
                    .with_validate_only(validate_only);
                let answer = connection.call(7, &request).unwrap().topics.remove(0);
                answers.push(format!(
                    "create {case} (only validated: {validate_only}): error {} partitions {} replicas {}",
                    answer.error_code, answer.num_partitions, answer.replication_factor
                ));
            }
        }
        let twice = named(&fresh());
        let request = CreateTopicsRequest::default().with_topics(vec![twice.clone(), twice]);
        let twice = connection.call(7, &request).unwrap().topics;
        let codes: Vec<i16> = twice.iter().map(|topic| topic.error_code).collect();
        answers.push(format!("create twice: {codes:?}"));
        answers
    });
}

#[test]
fn given_topics_that_cannot_grow_when_asked_then_the_errors_are_kafkas() {
    compare(|connection, topic| {
        let brokers = |all: &[&[i32]]| -> Vec<CreatePartitionsAssignment> {
            let ids = |one: &&[i32]| one.iter().map(|id| BrokerId(*id)).collect();
            let assignment = |one| CreatePartitionsAssignment::default().with_broker_ids(ids(one));
            all.iter().map(assignment).collect()
        };
        let cases: Vec<(&str, &str, i32, Option<Vec<CreatePartitionsAssignment>>)> = vec![
            ("unknown", "no-such-topic", 2, None),
            ("same", topic, 1, None),
            ("none", topic, 0, None),
            ("negative", topic, -1, None),
            ("too few assignments", topic, 3, Some(brokers(&[&[1]]))),
            ("empty assignment", topic, 2, Some(brokers(&[&[]]))),
            ("unknown broker", topic, 2, Some(brokers(&[&[9]]))),
            ("broker twice", topic, 2, Some(brokers(&[&[1, 1]]))),
            ("grown", topic, 2, Some(brokers(&[&[1]]))),
            ("grown again", topic, 4, None),
        ];
        let mut answers = Vec::new();
        for (case, name, count, assignments) in cases {
            let asked = CreatePartitionsTopic::default()
                .with_name(topic_name(name))
                .with_count(count)
                .with_assignments(assignments);
            let request =
                CreatePartitionsRequest::default().with_topics(vec![asked]).with_timeout_ms(10_000);
            let results = connection.call(3, &request).unwrap().results;
            let codes: Vec<i16> = results.iter().map(|result| result.error_code).collect();
            answers.push(format!("grow {case}: {codes:?}"));
        }
        let again = CreatePartitionsTopic::default()
            .with_name(topic_name(topic))
            .with_count(9)
            .with_assignments(None);
        let request = CreatePartitionsRequest::default().with_topics(vec![again.clone(), again]);
        let results = connection.call(3, &request).unwrap().results;
        let codes: Vec<i16> = results.iter().map(|result| result.error_code).collect();
        answers.push(format!("grow twice: {codes:?}"));
        answers
    });
}

#[test]
fn given_configurations_when_described_and_altered_then_values_sources_and_errors_are_kafkas() {
    compare(|connection, topic| {
        let mut answers = Vec::new();
        let describe = |connection: &mut RawConnection, kind: i8, name: &str| {
            let resource = DescribeConfigsResource::default()
                .with_resource_type(kind)
                .with_resource_name(text(name))
                .with_configuration_keys(None);
            let request = DescribeConfigsRequest::default()
                .with_resources(vec![resource])
                .with_include_synonyms(true);
            connection.call(4, &request).unwrap().results.remove(0)
        };
        let alter = |connection: &mut RawConnection, kind: i8, name: &str, configs: Vec<_>| {
            let resource = AlterConfigsResource::default()
                .with_resource_type(kind)
                .with_resource_name(text(name))
                .with_configs(configs);
            let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
            connection.call(1, &request).unwrap().responses.remove(0).error_code
        };
        let change = |name: &str, operation, value: Option<&str>| {
            AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(operation)
                .with_value(value.map(text))
        };
        for (kind, name) in [
            (2, "no-such-topic"),
            (2, "a/b"),
            (4, "9"),
            (4, "x"),
            (8, ""),
            (8, "9"),
            (0, "x"),
            (99, "x"),
        ] {
            let error = describe(connection, kind, name).error_code;
            answers.push(format!("describe {kind} {name:?}: {error}"));
        }
        let cases: Vec<(&str, i8, &str, Vec<AlterableConfig>)> = vec![
            ("unknown topic", 2, "no-such-topic", vec![change("retention.ms", 0, Some("1"))]),
            ("unknown name", 2, topic, vec![change("no.such.config", 0, Some("1"))]),
            ("wrong value", 2, topic, vec![change("retention.ms", 0, Some("soon"))]),
            ("out of range", 2, topic, vec![change("retention.ms", 0, Some("-2"))]),
            ("null", 2, topic, vec![change("retention.ms", 0, None)]),
            ("append to a number", 2, topic, vec![change("retention.ms", 2, Some("1"))]),
            (
                "twice",
                2,
                topic,
                vec![change("retention.ms", 0, Some("1")), change("retention.ms", 1, None)],
            ),
            ("unknown broker", 4, "9", vec![change("log.retention.ms", 0, Some("1"))]),
            ("fixed on a broker", 4, "1", vec![change("num.partitions", 0, Some("1"))]),
            ("set", 2, topic, vec![change("retention.ms", 0, Some("1000"))]),
            ("append", 2, topic, vec![change("cleanup.policy", 2, Some("delete"))]),
            ("delete what is not set", 2, topic, vec![change("segment.ms", 1, None)]),
        ];
        for (case, kind, name, configs) in cases {
            answers.push(format!("alter {case}: {}", alter(connection, kind, name, configs)));
        }
        let told = describe(connection, 2, topic);
        let mut configs: Vec<String> = told
            .configs
            .iter()
            .map(|config| {
                let synonyms: Vec<_> = config
                    .synonyms
                    .iter()
                    .map(|synonym| (synonym.name.to_string(), &synonym.value, synonym.source))
                    .collect();
                format!(
                    "config {}: {:?} source {} type {} read-only {} sensitive {} synonyms {synonyms:?}",
                    config.name.as_str(),
                    config.value,
                    config.config_source,
                    config.config_type,
                    config.read_only,
                    config.is_sensitive
                )
            })
            .collect();
        configs.sort();
        answers.extend(configs);
        answers
    });
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
        for timestamp in [-1, -2, -3, -4, 0, i64::MAX] {
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
                let answer = connection.call(8, &request).unwrap();
                let answer = &answer.topics[0].partitions[0];
                let number = answer.partition_index;
                answers.push(format!(
                    "list {timestamp} of partition {number}: {} offset {}",
                    answer.error_code, answer.offset
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

#[test]
fn given_topics_by_name_and_by_id_when_metadata_is_asked_then_the_errors_are_kafkas() {
    compare(|connection, topic| {
        let by_name =
            |name: &str| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let by_id = |id| MetadataRequestTopic::default().with_name(None).with_topic_id(id);
        let cases = [
            ("known", by_name(topic)),
            ("unknown", by_name("no-such-topic")),
            ("illegal", by_name("a/b")),
            ("unknown id", by_id(Uuid::from_u128(77))),
        ];
        let mut answers = Vec::new();
        for (case, asked) in cases {
            let request = MetadataRequest::default()
                .with_topics(Some(vec![asked]))
                .with_allow_auto_topic_creation(false);
            let answer = connection.call(12, &request).unwrap();
            let topic = &answer.topics[0];
            answers.push(format!(
                "metadata {case}: {} named {} internal {} partitions {} operations {}",
                topic.error_code,
                topic.name.is_some(),
                topic.is_internal,
                topic.partitions.len(),
                topic.topic_authorized_operations
            ));
        }
        for endpoint in [1, 2, 3] {
            let request = DescribeClusterRequest::default().with_endpoint_type(endpoint);
            let answer = connection.call(1, &request).unwrap();
            answers.push(format!(
                "cluster by endpoint {endpoint}: {} brokers {} endpoint {} operations {}",
                answer.error_code,
                answer.brokers.len(),
                answer.endpoint_type,
                answer.cluster_authorized_operations
            ));
        }
        answers
    });
}
