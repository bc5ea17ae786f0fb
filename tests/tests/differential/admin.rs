//! What administrators change: records and topics deleted, configurations replaced.

use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::fresh_name;
use chronik_tests::raw::{RawConnection, topic_name};
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::*;
use uuid::Uuid;

use crate::{Answers, compare, text, wait_until_applied};

/// What DeleteRecords says of these partitions and offsets: error and low watermark of each.
fn delete_records(
    connection: &mut RawConnection,
    version: i16,
    topic: &str,
    asked: &[(i32, i64)],
) -> Vec<(i32, i16, i64)> {
    let partitions = asked.iter().map(|(partition, offset)| {
        DeleteRecordsPartition::default().with_partition_index(*partition).with_offset(*offset)
    });
    let topic = DeleteRecordsTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(partitions.collect());
    let request = DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let answer = connection.call(version, &request).unwrap();
    let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
    let told = partitions.map(|told| (told.partition_index, told.error_code, told.low_watermark));
    told.collect()
}

#[test]
fn given_records_when_deleted_before_each_kind_of_offset_then_the_answers_are_kafkas() {
    compare(|connection, topic| {
        for _ in 0..10 {
            let produced = connection.produce(topic, 0, BatchBuilder::of_value("x").build());
            assert_eq!(produced.unwrap().error_code, 0);
        }
        let mut answers: Answers = Vec::new();
        for (case, version, topic, asked) in [
            ("beyond the end", 2, topic, &[(0, 99)][..]),
            ("negative", 2, topic, &[(0, -2)]),
            ("very negative", 2, topic, &[(0, i64::MIN)]),
            ("unknown partition", 2, topic, &[(9, 0)]),
            ("negative partition", 2, topic, &[(-1, 0)]),
            ("unknown topic", 2, "no-such-topic", &[(0, 0)]),
            ("illegal topic", 2, "a/b", &[(0, 0)]),
            ("none", 2, topic, &[]),
            ("the start", 2, topic, &[(0, 0)]),
            ("within", 0, topic, &[(0, 3)]),
            ("before the start", 1, topic, &[(0, 1)]),
            ("good and bad", 2, topic, &[(0, 5), (9, 1)]),
            ("the end", 2, topic, &[(0, -1)]),
            ("the end again", 2, topic, &[(0, 10)]),
        ] {
            let mut told = delete_records(connection, version, topic, asked);
            told.sort_unstable();
            answers.push(format!("delete records, {case}: {told:?}"));
        }
        let fetched = connection.fetch(topic, 0, 3).unwrap();
        let told = &fetched.responses[0].partitions[0];
        let (error, start) = (told.error_code, told.log_start_offset);
        answers.push(format!("fetch of what is deleted: {error} log start {start}"));
        answers
    });
}

/// What DeleteTopics says: error, whether there is a name, whether there is an id.
fn told_of_deletion(answer: &DeleteTopicsResponse) -> Vec<(i16, bool, bool)> {
    let mut told: Vec<_> = answer
        .responses
        .iter()
        .map(|told| {
            let is_named = told.name.as_ref().is_some_and(|name| !name.is_empty());
            (told.error_code, is_named, !told.topic_id.is_nil())
        })
        .collect();
    told.sort_unstable();
    told
}

#[test]
fn given_topics_by_name_and_by_id_when_deleted_then_the_answers_are_kafkas() {
    compare(|connection, topic| {
        let by_name = |name: &str| DeleteTopicState::default().with_name(Some(topic_name(name)));
        let by_id = |id: Uuid| DeleteTopicState::default().with_name(None).with_topic_id(id);
        let mut made = Vec::new();
        for _ in 0..5 {
            let name = fresh_name("deleted");
            connection.create_topic(&name, &[]).unwrap();
            connection.ensure_topic(&name).unwrap();
            let id = connection.topic_id(&name).unwrap();
            made.push((name, id));
        }
        let id = connection.topic_id(topic).unwrap();
        let unknown = Uuid::from_u128(77);
        let cases: Vec<(&str, Vec<DeleteTopicState>)> = vec![
            ("an unknown name", vec![by_name("no-such-topic")]),
            ("an illegal name", vec![by_name("a/b")]),
            ("an empty name", vec![by_name("")]),
            ("an unknown id", vec![by_id(unknown)]),
            ("an unknown id twice", vec![by_id(unknown), by_id(unknown)]),
            ("neither", vec![by_id(Uuid::nil())]),
            ("name and id", vec![by_name(topic).with_topic_id(id)]),
            ("nothing", vec![]),
            ("a name twice", vec![by_name(&made[0].0), by_name(&made[0].0)]),
            ("a name twice and another", {
                vec![by_name(&made[0].0), by_name(&made[1].0), by_name(&made[0].0)]
            }),
            ("the other again", vec![by_name(&made[1].0)]),
            ("an id", vec![by_id(made[2].1)]),
            ("the id again", vec![by_id(made[2].1)]),
            ("an id twice", vec![by_id(made[3].1), by_id(made[3].1)]),
            ("a name and its id", vec![by_name(&made[3].0), by_id(made[3].1)]),
            ("an id twice and its name", {
                vec![by_id(made[3].1), by_name(&made[3].0), by_id(made[3].1)]
            }),
            ("a name twice and its id", {
                vec![by_name(&made[3].0), by_id(made[3].1), by_name(&made[3].0)]
            }),
            ("the id again", vec![by_id(made[3].1)]),
        ];
        let mut answers: Answers = Vec::new();
        for (case, topics) in cases {
            let request =
                DeleteTopicsRequest::default().with_topics(topics).with_timeout_ms(10_000);
            let told = told_of_deletion(&connection.call(6, &request).unwrap());
            answers.push(format!("delete {case}: {told:?}"));
        }
        for (version, name) in [(1, "no-such-topic"), (5, "no-such-topic"), (5, &made[4].0)] {
            let names = vec![topic_name(name), topic_name(name)];
            let request =
                DeleteTopicsRequest::default().with_topic_names(names).with_timeout_ms(10_000);
            let told = told_of_deletion(&connection.call(version, &request).unwrap());
            let case = if name == "no-such-topic" { name } else { "one that is there" };
            answers.push(format!("delete {case} twice, v{version}: {told:?}"));
        }
        answers
    });
}

fn alter(
    connection: &mut RawConnection,
    version: i16,
    kind: i8,
    name: &str,
    configs: &[(&str, Option<&str>)],
    validate_only: bool,
) -> Vec<i16> {
    let configs = configs.iter().map(|(name, value)| {
        AlterableConfig::default().with_name(text(name)).with_value(value.map(text))
    });
    let resource = AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(name))
        .with_configs(configs.collect());
    let request = AlterConfigsRequest::default()
        .with_resources(vec![resource])
        .with_validate_only(validate_only);
    let answer = connection.call(version, &request).unwrap();
    answer.responses.iter().map(|told| told.error_code).collect()
}

/// What is set on a topic itself.
fn set_on(connection: &mut RawConnection, topic: &str) -> Vec<(String, Option<String>)> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let answer = connection.call(4, &request).unwrap().results.remove(0);
    let own = answer.configs.into_iter().filter(|config| config.config_source == 1);
    let mut own: Vec<_> = own
        .map(|config| (config.name.to_string(), config.value.map(|value| value.to_string())))
        .collect();
    own.sort();
    own
}

#[test]
fn given_configurations_when_replaced_as_a_whole_then_the_answers_are_kafkas() {
    compare(|connection, topic| {
        let mut answers: Answers = Vec::new();
        let good = [("retention.ms", Some("1000")), ("max.message.bytes", Some("2000"))];
        for (case, kind, name, configs) in [
            ("unknown topic", 2, "no-such-topic", &good[..]),
            ("illegal topic", 2, "a/b", &good),
            ("no topic", 2, "", &good),
            ("unknown name", 2, topic, &[("no.such.config", Some("1"))]),
            ("wrong value", 2, topic, &[("retention.ms", Some("soon"))]),
            ("good and wrong", 2, topic, &[good[0], ("segment.ms", Some("0"))]),
            ("null", 2, topic, &[("retention.ms", None)]),
            ("twice", 2, topic, &[good[0], good[0]]),
            ("unknown broker", 4, "9", &[("log.retention.ms", Some("1000"))]),
            ("no broker", 4, "x", &[("log.retention.ms", Some("1000"))]),
            ("fixed on a broker", 4, "1", &[("num.partitions", Some("1"))]),
            ("unknown type", 99, "x", &good),
            ("no type", 0, "x", &good),
        ] {
            let told = alter(connection, 2, kind, name, configs, false);
            answers.push(format!("replace, {case}: {told:?}"));
        }
        for (case, version, configs, validate_only) in [
            ("only validated", 2, &good[..], true),
            ("both", 0, &good, false),
            ("one", 1, &good[..1], false),
            ("nothing, only validated", 2, &[], true),
            ("nothing", 2, &[], false),
        ] {
            let told = alter(connection, version, 2, topic, configs, validate_only);
            answers.push(format!("replace by {case}: {told:?}"));
            wait_until_applied(connection);
            answers.push(format!("set after {case}: {:?}", set_on(connection, topic)));
        }
        // A resource that is named twice is not here: Kafka never answers it.
        answers
    });
}
