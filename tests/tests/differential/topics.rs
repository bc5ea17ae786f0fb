//! Topics: made, grown and described.

use chronik_tests::process::fresh_name;
use chronik_tests::raw::topic_name;
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::*;
use uuid::Uuid;

use crate::{Answers, compare, new_topic, with_config};

fn assigned(partition: i32, brokers: &[i32]) -> CreatableReplicaAssignment {
    CreatableReplicaAssignment::default()
        .with_partition_index(partition)
        .with_broker_ids(brokers.iter().map(|id| BrokerId(*id)).collect())
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
            ("compressed", config("compression.type", Some("zstd"))),
            ("unclean", config("unclean.leader.election.enable", Some("true"))),
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
        for name in ["__consumer_offsets", "__transaction_state", "__share_group_state"] {
            // Only validated, so that Kafka does not have it from here.
            let request = CreateTopicsRequest::default()
                .with_topics(vec![named(name)])
                .with_timeout_ms(10_000)
                .with_validate_only(true);
            let answer = connection.call(7, &request).unwrap().topics.remove(0);
            answers.push(format!("create internal {name}: error {}", answer.error_code));
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
