//! Configurations of topics and brokers.

use std::collections::BTreeMap;

use chronik_tests::raw::RawConnection;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::*;

use crate::{compare, compare_answers, sides, text, wait_until_applied};

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
            ("compression", 2, topic, vec![change("compression.type", 0, Some("zstd"))]),
            ("unclean", 2, topic, vec![change("unclean.leader.election.enable", 0, Some("true"))]),
            ("set", 2, topic, vec![change("retention.ms", 0, Some("1000"))]),
            ("append", 2, topic, vec![change("cleanup.policy", 2, Some("delete"))]),
            ("delete what is not set", 2, topic, vec![change("segment.ms", 1, None)]),
        ];
        for (case, kind, name, configs) in cases {
            answers.push(format!("alter {case}: {}", alter(connection, kind, name, configs)));
        }
        // What only Kafka has taken.
        for name in ["compression.type", "unclean.leader.election.enable"] {
            let reset = alter(connection, 2, topic, vec![change(name, 1, None)]);
            answers.push(format!("alter back {name}: {reset}"));
        }
        wait_until_applied(connection);
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

type Told = BTreeMap<String, DescribeConfigsResourceResult>;

/// Everything that a broker says of itself, by name.
fn described(connection: &mut RawConnection) -> Told {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(4)
        .with_resource_name(text("1"))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default()
        .with_resources(vec![resource])
        .with_include_synonyms(true);
    let told = connection.call(4, &request).unwrap().results.remove(0);
    assert_eq!(told.error_code, 0, "{told:?}");
    told.configs.into_iter().map(|config| (config.name.to_string(), config)).collect()
}

/// A value that nobody has set.
const DEFAULT: i8 = 5;

#[test]
fn given_a_broker_as_it_is_by_default_when_described_then_what_is_told_is_kafkas() {
    let Some((theirs, ours)) = sides(|connection, _| described(connection)) else { return };
    let lines = |told: &Told, other: &Told| {
        let told = told.iter().map(|(name, config)| {
            let Some(other) = other.get(name) else {
                // Kafka has more of them than there are here, but none is made up here.
                return format!("broker config {name}: told by one");
            };
            let line = format!(
                "broker config {name}: type {} read-only {} sensitive {}",
                config.config_type, config.read_only, config.is_sensitive
            );
            let is_default = config.config_source == DEFAULT && other.config_source == DEFAULT;
            if is_default { format!("{line} value {:?}", config.value) } else { line }
        });
        told.collect()
    };
    let mut known_here = theirs.clone();
    known_here.retain(|name, _| ours.contains_key(name));
    compare_answers(lines(&known_here, &ours), lines(&ours, &theirs));
}
