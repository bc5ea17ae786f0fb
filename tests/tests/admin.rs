//! What administrators do: configurations, partitions, and looking at the cluster.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use chronik_tests::batch::BatchBuilder;
use chronik_tests::http::{self, Metrics};
use chronik_tests::process::{Broker, Served, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::workload::read_topic;
use futures_lite::future::block_on;
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, DescribeConfigsRequest, DescribeLogDirsRequest,
    DescribeProducersRequest, DescribeTopicPartitionsRequest, IncrementalAlterConfigsRequest,
    describe_producers_request,
};
use kafka_protocol::protocol::StrBytes;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;

const MESSAGE_TOO_LARGE: i16 = 10;
const INVALID_TIMESTAMP: i16 = 32;
const INVALID_PARTITIONS: i16 = 37;
const INVALID_REPLICA_ASSIGNMENT: i16 = 39;
const INVALID_CONFIG: i16 = 40;
const INVALID_REQUEST: i16 = 42;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;

const SOURCE_TOPIC: i8 = 1;
const SOURCE_CLUSTER: i8 = 3;
const SOURCE_DEFAULT: i8 = 5;

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

/// Changes configurations of one resource; the error and what it says.
fn alter(
    connection: &mut RawConnection,
    resource: (i8, &str),
    changes: &[(&str, i8, Option<&str>)],
    validate_only: bool,
) -> (i16, String) {
    let configs = changes.iter().map(|(name, operation, value)| {
        AlterableConfig::default()
            .with_name(text(name))
            .with_config_operation(*operation)
            .with_value(value.map(text))
    });
    let resource = AlterConfigsResource::default()
        .with_resource_type(resource.0)
        .with_resource_name(text(resource.1))
        .with_configs(configs.collect());
    let request = IncrementalAlterConfigsRequest::default()
        .with_resources(vec![resource])
        .with_validate_only(validate_only);
    let response = connection.call(1, &request).unwrap();
    let answer = &response.responses[0];
    let message = answer.error_message.as_ref().map_or("", StrBytes::as_str);
    (answer.error_code, message.to_owned())
}

/// The configurations of one resource by name, or its error.
fn describe(
    connection: &mut RawConnection,
    resource: (i8, &str),
) -> Result<BTreeMap<String, DescribeConfigsResourceResult>, i16> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(resource.0)
        .with_resource_name(text(resource.1))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default()
        .with_resources(vec![resource])
        .with_include_synonyms(true)
        .with_include_documentation(true);
    let result = connection.call(4, &request).unwrap().results.remove(0);
    if result.error_code != 0 {
        return Err(result.error_code);
    }
    Ok(result.configs.into_iter().map(|config| (config.name.to_string(), config)).collect())
}

fn value_of(config: &DescribeConfigsResourceResult) -> (&str, i8) {
    (config.value.as_ref().map_or("", StrBytes::as_str), config.config_source)
}

fn grow(
    connection: &mut RawConnection,
    topic: &str,
    count: i32,
    assignments: Option<&[&[i32]]>,
    validate_only: bool,
) -> i16 {
    let assignments = assignments.map(|all| {
        let brokers = |one: &&[i32]| one.iter().map(|id| BrokerId(*id)).collect();
        all.iter()
            .map(|one| CreatePartitionsAssignment::default().with_broker_ids(brokers(one)))
            .collect()
    });
    let topic = CreatePartitionsTopic::default()
        .with_name(topic_name(topic))
        .with_count(count)
        .with_assignments(assignments);
    let request = CreatePartitionsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(10_000)
        .with_validate_only(validate_only);
    connection.call(3, &request).unwrap().results[0].error_code
}

#[test]
fn given_a_topic_when_its_configurations_change_then_they_are_told_and_hold_at_once() {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = fresh_name("configured");
    connection.ensure_topic(&topic).unwrap();
    let before = describe(&mut connection, (TOPIC, &topic)).unwrap();
    assert_eq!(value_of(&before["max.message.bytes"]), ("1048588", SOURCE_DEFAULT));
    assert!(before.values().all(|config| config.documentation.is_some() && !config.read_only));

    let large = || BatchBuilder::of_value(Bytes::from(vec![1; 2_000])).build();
    assert_eq!(connection.produce(&topic, 0, large()).unwrap().error_code, 0);
    let change = [("max.message.bytes", SET, Some("1000")), ("retention.ms", SET, Some("-1"))];
    assert_eq!(alter(&mut connection, (TOPIC, &topic), &change, true).0, 0);
    assert_eq!(connection.produce(&topic, 0, large()).unwrap().error_code, 0);
    assert_eq!(alter(&mut connection, (TOPIC, &topic), &change, false).0, 0);
    assert_eq!(connection.produce(&topic, 0, large()).unwrap().error_code, MESSAGE_TOO_LARGE);
    let set = describe(&mut connection, (TOPIC, &topic)).unwrap();
    assert_eq!(value_of(&set["max.message.bytes"]), ("1000", SOURCE_TOPIC));
    assert_eq!(set["max.message.bytes"].synonyms.len(), 2);

    let reset = [("max.message.bytes", DELETE, None)];
    assert_eq!(alter(&mut connection, (TOPIC, &topic), &reset, false).0, 0);
    assert_eq!(connection.produce(&topic, 0, large()).unwrap().error_code, 0);
}

/// A configuration's name, what is to be done with it, and the value.
type Change<'a> = (&'a str, i8, Option<&'a str>);

#[test]
fn given_changes_that_cannot_be_when_asked_for_then_each_is_refused_and_none_is_made() {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = fresh_name("refused");
    connection.ensure_topic(&topic).unwrap();
    let cases: [(&[Change<'_>], i16, &str); 7] = [
        (&[("retention.msec", SET, Some("1"))], INVALID_CONFIG, "Unknown topic config name"),
        (&[("retention.ms", SET, Some("soon"))], INVALID_CONFIG, "Not a number of type LONG"),
        (&[("retention.ms", APPEND, Some("1"))], INVALID_CONFIG, "Can't APPEND"),
        (&[("retention.ms", SET, None)], INVALID_REQUEST, "Null value not supported"),
        (&[("retention.ms", 9, Some("1"))], INVALID_REQUEST, "9"),
        (
            &[("retention.ms", SET, Some("1")), ("retention.ms", DELETE, None)],
            INVALID_REQUEST,
            "duplicate config keys",
        ),
        (
            &[("retention.ms", SET, Some("1")), ("searchable.enabled", SET, Some("true"))],
            INVALID_CONFIG,
            "not available",
        ),
    ];
    for (changes, code, says) in cases {
        let (got, message) = alter(&mut connection, (TOPIC, &topic), changes, false);
        assert_eq!(got, code, "{changes:?}: {message}");
        assert!(message.contains(says), "{changes:?}: {message}");
    }
    let kept = describe(&mut connection, (TOPIC, &topic)).unwrap();
    assert_eq!(kept["retention.ms"].config_source, SOURCE_DEFAULT);
    let nowhere = fresh_name("nowhere");
    assert_eq!(describe(&mut connection, (TOPIC, &nowhere)), Err(UNKNOWN_TOPIC_OR_PARTITION));
    assert_eq!(describe(&mut connection, (BROKER, "77")), Err(INVALID_REQUEST));
    assert_eq!(describe(&mut connection, (99, "x")), Err(INVALID_REQUEST));
}

#[test]
fn given_a_relaxed_topic_when_it_is_described_and_changed_then_it_says_so_and_keeps_what_it_is_given()
 {
    let broker = Broker::start(Settings::new()).unwrap();
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    let topic = fresh_name("relaxed");
    connection.create_topic(&topic, &[("durability", "relaxed")]).unwrap();
    let relaxed_acks = || {
        let page = http::get(broker.ports().admin_addr(), "/metrics").unwrap().body;
        let metrics = Metrics::parse(&page).unwrap();
        ["relaxed", "durable"]
            .map(|what| metrics.sum(&format!("chronik_produce_acks_{what}_total")))
    };
    let described = describe(&mut connection, (TOPIC, &topic)).unwrap();
    assert_eq!(value_of(&described["durability"]), ("relaxed", SOURCE_TOPIC));
    let documentation = described["durability"].documentation.as_ref().unwrap();
    assert!(documentation.contains("is lost if"), "{documentation}");
    let value = |at: usize| BatchBuilder::of_value(["a", "b", "c"][at]).build();
    for at in 0..2 {
        let produced = connection.produce(&topic, 0, value(at)).unwrap();
        assert_eq!((produced.error_code, produced.base_offset), (0, at as i64));
    }
    assert_eq!(relaxed_acks(), [2.0, 0.0]);
    let change = [("durability", DELETE, None)];
    assert_eq!(alter(&mut connection, (TOPIC, &topic), &change, false).0, 0);
    let described = describe(&mut connection, (TOPIC, &topic)).unwrap();
    assert_eq!(value_of(&described["durability"]), ("durable", SOURCE_DEFAULT));
    let produced = connection.produce(&topic, 0, value(2)).unwrap();
    assert_eq!((produced.error_code, produced.base_offset), (0, 2));
    assert_eq!(relaxed_acks(), [2.0, 1.0]);
    let logs = read_topic(&broker.bootstrap(), &topic, 1, Duration::from_secs(30)).unwrap();
    let values: Vec<_> = logs[0].records.iter().map(|record| record.value.clone()).collect();
    assert_eq!(values, [b"a", b"b", b"c"]);
}

#[test]
fn given_log_append_time_when_produced_then_the_broker_answers_and_serves_its_own_time() {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = fresh_name("stamped");
    connection.ensure_topic(&topic).unwrap();
    let year_3000 = 32_503_680_000_000;
    let early = || BatchBuilder::of_value("x").timestamp_ms(year_3000).build();
    assert_eq!(connection.produce(&topic, 0, early()).unwrap().error_code, INVALID_TIMESTAMP);
    let change = [("message.timestamp.type", SET, Some("LogAppendTime"))];
    assert_eq!(alter(&mut connection, (TOPIC, &topic), &change, false).0, 0);
    assert_eq!(connection.produce(&topic, 0, early()).unwrap().error_code, 0);
}

#[test]
fn given_defaults_set_on_all_brokers_when_a_topic_has_none_then_they_count_and_outlive_a_restart() {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    let topic = fresh_name("defaulted");
    connection.ensure_topic(&topic).unwrap();
    let change = [("message.max.bytes", SET, Some("1000"))];
    assert_eq!(alter(&mut connection, (BROKER, ""), &change, false).0, 0);
    let fixed = [("num.partitions", SET, Some("3"))];
    assert_eq!(alter(&mut connection, (BROKER, "1"), &fixed, false).0, INVALID_REQUEST);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    connection.ensure_topic(&topic).unwrap();
    let large = BatchBuilder::of_value(Bytes::from(vec![1; 2_000])).build();
    assert_eq!(connection.produce(&topic, 0, large).unwrap().error_code, MESSAGE_TOO_LARGE);
    let told = describe(&mut connection, (TOPIC, &topic)).unwrap();
    assert_eq!(value_of(&told["max.message.bytes"]), ("1000", SOURCE_CLUSTER));
    let here = describe(&mut connection, (BROKER, "1")).unwrap();
    assert_eq!(value_of(&here["message.max.bytes"]), ("1000", SOURCE_CLUSTER));
    assert!(here["node.id"].read_only);
}

#[test]
fn given_a_topic_when_it_grows_then_old_records_stay_and_new_partitions_serve_at_once() {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = fresh_name("grown");
    connection.ensure_topic(&topic).unwrap();
    connection.produce(&topic, 0, BatchBuilder::of_value("old").build()).unwrap();
    for (count, assignments, code) in [
        (1, None, INVALID_PARTITIONS),
        (0, None, INVALID_PARTITIONS),
        (-1, None, INVALID_PARTITIONS),
        (3, Some(&[&[1][..]][..]), INVALID_REPLICA_ASSIGNMENT),
        (2, Some(&[&[7][..]][..]), INVALID_REPLICA_ASSIGNMENT),
        (2, Some(&[&[1, 1][..]][..]), INVALID_REPLICA_ASSIGNMENT),
    ] {
        assert_eq!(grow(&mut connection, &topic, count, assignments, false), code, "{count}");
    }
    assert_eq!(grow(&mut connection, &fresh_name("no"), 2, None, false), 3);
    assert_eq!(grow(&mut connection, &topic, 4, None, true), 0);
    assert_eq!(connection.metadata(&topic, false).unwrap().topics[0].partitions.len(), 1);
    assert_eq!(grow(&mut connection, &topic, 4, Some(&[&[1], &[1], &[1]]), false), 0);
    for partition in 0..4 {
        let batch = BatchBuilder::of_value("new").build();
        let produced = connection.produce(&topic, partition, batch).unwrap();
        assert_eq!((produced.error_code, produced.base_offset), (0, i64::from(partition == 0)));
        let fetched = connection.fetch(&topic, partition, 0).unwrap();
        assert_eq!(fetched.responses[0].partitions[0].error_code, 0);
    }
}

#[test]
fn given_many_partitions_when_described_in_pages_then_each_is_told_once_in_order() {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let (first, second) = (fresh_name("page-a"), fresh_name("page-b"));
    for topic in [&first, &second] {
        connection.ensure_topic(topic).unwrap();
        assert_eq!(grow(&mut connection, topic, 3, None, false), 0);
    }
    let mut seen = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        let topic = |name: &str| TopicRequest::default().with_name(topic_name(name));
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(vec![topic(&second), topic(&first)])
            .with_response_partition_limit(2)
            .with_cursor(cursor);
        let response = connection.call(0, &request).unwrap();
        for topic in response.topics {
            assert_eq!(topic.error_code, 0);
            let name = topic.name.unwrap().to_string();
            seen.extend(topic.partitions.iter().map(|p| (name.clone(), p.partition_index)));
        }
        let Some(next) = response.next_cursor else { break };
        cursor = Some(
            Cursor::default()
                .with_topic_name(next.topic_name)
                .with_partition_index(next.partition_index),
        );
    }
    let expected = [&first, &second].into_iter().flat_map(|t| (0..3).map(|p| (t.clone(), p)));
    assert_eq!(seen, expected.collect::<Vec<_>>());
}

#[test]
fn given_records_and_a_producer_when_the_log_is_described_then_sizes_and_producers_are_told() {
    let served = Served::new().unwrap();
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let topic = fresh_name("measured");
    connection.ensure_topic(&topic).unwrap();
    let (producer, epoch) = connection.init_producer().unwrap();
    let batch = BatchBuilder::of_value(Bytes::from(vec![1; 50_000])).producer(producer, epoch, 0);
    assert_eq!(connection.produce(&topic, 0, batch.build()).unwrap().error_code, 0);

    let dirs = connection.call(4, &DescribeLogDirsRequest::default().with_topics(None)).unwrap();
    let dir = &dirs.results[0];
    assert!(dir.usable_bytes > 0 && dir.total_bytes >= dir.usable_bytes);
    let sizes = dir.topics.iter().find(|found| found.name.as_str() == topic).unwrap();
    let bytes = sizes.partitions[0].partition_size;
    assert!((50_000..60_000).contains(&bytes), "{bytes}");

    let asked = describe_producers_request::TopicRequest::default()
        .with_name(topic_name(&topic))
        .with_partition_indexes(vec![0, 0, 5]);
    let request = DescribeProducersRequest::default().with_topics(vec![asked]);
    let answer = connection.call(0, &request).unwrap().topics.remove(0);
    let codes: Vec<_> = answer.partitions.iter().map(|p| p.error_code).collect();
    assert_eq!(codes, [0, UNKNOWN_TOPIC_OR_PARTITION]);
    let known = &answer.partitions[0].active_producers[0];
    assert_eq!((known.producer_id.0, known.last_sequence), (producer, 0));
}

#[test]
fn given_librdkafkas_admin_client_when_it_creates_grows_and_configures_then_all_succeeds() {
    let served = Served::new().unwrap();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", served.bootstrap()).create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let topic = fresh_name("by-admin");
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("retention.ms", "60000");
    block_on(admin.create_topics([&new], &options)).unwrap().remove(0).unwrap();
    block_on(admin.create_partitions([&NewPartitions::new(&topic, 3)], &options))
        .unwrap()
        .remove(0)
        .unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.bytes", "4096");
    block_on(admin.alter_configs([&change], &options)).unwrap().remove(0).unwrap();
    let resource = ResourceSpecifier::Topic(&topic);
    let told = block_on(admin.describe_configs([&resource], &options)).unwrap().remove(0).unwrap();
    let value = |name: &str| told.get(name).and_then(|entry| entry.value.clone()).unwrap();
    assert_eq!(value("retention.bytes"), "4096");
    // AlterConfigs says what there shall be: what it leaves out is reset.
    assert_eq!(value("retention.ms"), "604800000");
    let broker = ResourceSpecifier::Broker(1);
    let told = block_on(admin.describe_configs([&broker], &options)).unwrap().remove(0).unwrap();
    assert!(told.get("num.partitions").is_some_and(|entry| entry.is_read_only));
}
