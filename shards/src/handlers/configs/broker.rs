//! The configurations of a broker: those that are the topics' defaults and may be changed while it runs, and those that
//! it was started with. Only what has a meaning here is told.

use chronik_engine::ids::NodeId;

use super::entry::{Entry, Source, Synonym, ValueType};
use crate::catalog::{
    ConfigDefinition, broker_config_definition, broker_config_of, broker_only_configs,
    config_definitions,
};
use crate::config::{Config, GroupConfig, KafkaConfig, ReplicaSelector};
use crate::handlers::replicas;
use crate::shell::shard::Shard;

/// Broker configurations that have no value until somebody sets one: another says the same in hours.
const WITHOUT_DEFAULT: [&str; 4] =
    ["log.flush.interval.ms", "log.retention.ms", "log.roll.jitter.ms", "log.roll.ms"];

/// What one is set to in the settings of the node, and what it is where nobody says anything.
struct Fixed {
    name: &'static str,
    kind: ValueType,
    value: String,
    default: Option<&'static str>,
}

/// Where a configuration of this broker is set, by the name that brokers use; what counts first. `definition` is that of
/// the topics' configuration whose default it is.
pub(super) fn synonyms(
    shard: &Shard,
    node: NodeId,
    name: &'static str,
    definition: &ConfigDefinition,
) -> Vec<Synonym> {
    let catalog = shard.catalog();
    let set = |source, node| {
        let value = catalog.broker_configs().of(node).get(name)?.clone();
        Some(Synonym { source, name, value })
    };
    let fixed = startup_value(&shard.node.config, name)
        .filter(|value| *value != definition.default)
        .map(|value| Synonym { source: Source::StaticBroker, name, value });
    let default = (!WITHOUT_DEFAULT.contains(&name)).then(|| Synonym {
        source: Source::Default,
        name,
        value: definition.default.to_owned(),
    });
    let layers = [
        set(Source::DynamicBroker, Some(node)),
        set(Source::DynamicDefaultBroker, None),
        fixed,
        default,
    ];
    layers.into_iter().flatten().collect()
}

/// What the node was started with, of what is also a default of topics.
fn startup_value(config: &Config, name: &str) -> Option<String> {
    match name {
        "message.max.bytes" => Some(config.kafka.message_max_bytes.to_string()),
        "log.retention.ms" => Some(config.kafka.log_retention_ms.max(-1).to_string()),
        "log.retention.bytes" => Some(config.kafka.log_retention_bytes.max(-1).to_string()),
        _ => None,
    }
}

/// All configurations of this broker, in the order of their names.
pub(super) fn entries(shard: &Shard, node: NodeId) -> Vec<Entry> {
    let changeable = config_definitions().iter().filter_map(|definition| {
        let name = broker_config_of(definition.name)?;
        Some(dynamic(name, definition, synonyms(shard, node, name, definition)))
    });
    let fixed = fixed(shard).into_iter().map(entry);
    let mut entries: Vec<Entry> = changeable.chain(fixed).chain(set_alone(shard, node)).collect();
    entries.sort_by_key(|entry| entry.name);
    entries
}

/// What was set for all brokers at once.
pub(super) fn cluster_entries(shard: &Shard) -> Vec<Entry> {
    let catalog = shard.catalog();
    let set = catalog.broker_configs().of(None).iter();
    set.filter_map(|(name, value)| {
        let definition = broker_config_definition(name)?;
        let name = broker_config_of(definition.name).unwrap_or(definition.name);
        let source = Source::DynamicDefaultBroker;
        Some(dynamic(name, definition, vec![Synonym { source, name, value: value.clone() }]))
    })
    .collect()
}

/// What only brokers can be given, as far as it is set: where it is not, Kafka tells nothing of it either.
fn set_alone(shard: &Shard, node: NodeId) -> Vec<Entry> {
    let catalog = shard.catalog();
    let layers = [(Source::DynamicBroker, Some(node)), (Source::DynamicDefaultBroker, None)];
    let of = |definition: &'static ConfigDefinition| {
        let name = definition.name;
        let synonyms: Vec<Synonym> = layers
            .iter()
            .filter_map(|(source, node)| {
                let value = catalog.broker_configs().of(*node).get(name)?.clone();
                Some(Synonym { source: *source, name, value })
            })
            .collect();
        (!synonyms.is_empty()).then(|| dynamic(name, definition, synonyms))
    };
    broker_only_configs().iter().filter_map(of).collect()
}

/// One that is set somewhere.
fn dynamic(name: &'static str, definition: &ConfigDefinition, synonyms: Vec<Synonym>) -> Entry {
    Entry {
        name,
        kind: ValueType::of(definition),
        value: synonyms.first().map(|first| first.value.clone()),
        source: synonyms.first().map_or(Source::Default, |first| first.source),
        is_read_only: false,
        synonyms,
    }
}

fn entry(fixed: Fixed) -> Entry {
    let Fixed { name, kind, value, default } = fixed;
    let is_default = default == Some(value.as_str());
    let source = if is_default { Source::Default } else { Source::StaticBroker };
    let set = (!is_default).then(|| Synonym { source, name, value: value.clone() });
    let default =
        default.map(|default| Synonym { source: Source::Default, name, value: default.to_owned() });
    let synonyms = set.into_iter().chain(default).collect();
    Entry { name, kind, value: Some(value), source, is_read_only: true, synonyms }
}

/// What cannot be changed while the broker runs.
fn fixed(shard: &Shard) -> Vec<Fixed> {
    use ValueType::{Boolean, Int, List, Long};
    let node = &shard.node;
    let Config { kafka, .. } = &node.config;
    let data_dir = std::path::absolute(&node.config.data_dir)
        .unwrap_or_else(|_| node.config.data_dir.clone())
        .to_string_lossy()
        .into_owned();
    let advertised = format!("PLAINTEXT://{}:{}", node.advertised_host, node.advertised_port);
    let fixed = |name, kind, value, default| Fixed { name, kind, value, default };
    // Kafka has no value for these until somebody sets one.
    let rack = kafka
        .broker_rack
        .iter()
        .map(|rack| fixed("broker.rack", ValueType::String, rack.0.clone(), None));
    let selector = kafka.replica_selector_class;
    let selector = (selector != ReplicaSelector::Leader).then(|| {
        fixed("replica.selector.class", ValueType::String, selector.class().to_owned(), None)
    });
    let mut all = vec![
        fixed("advertised.listeners", ValueType::String, advertised, None),
        fixed(
            "auto.create.topics.enable",
            Boolean,
            kafka.auto_create_topics_enable.to_string(),
            Some("true"),
        ),
        fixed(
            "auto.leader.rebalance.enable",
            Boolean,
            kafka.auto_leader_rebalance_enable.to_string(),
            Some("true"),
        ),
        fixed("broker.id", Int, node.config.node_id.to_string(), Some("-1")),
        fixed(
            "connections.max.idle.ms",
            Long,
            kafka.connections_idle_ms.to_string(),
            Some("600000"),
        ),
        fixed(
            "default.replication.factor",
            Int,
            replicas::wanted_by_default(shard).to_string(),
            Some("1"),
        ),
        fixed("delete.topic.enable", Boolean, "true".to_owned(), Some("true")),
        fixed("fetch.max.bytes", Int, kafka.fetch_max_bytes.to_string(), Some("57671680")),
        fixed(
            "leader.imbalance.check.interval.seconds",
            Long,
            kafka.leader_imbalance_check_interval_seconds.to_string(),
            Some("300"),
        ),
        fixed(
            "listeners",
            ValueType::String,
            format!("PLAINTEXT://{}", node.config.kafka_addr),
            None,
        ),
        fixed("log.dirs", ValueType::String, data_dir, None),
        fixed("max.connections", Int, kafka.connections_max.to_string(), Some("10000")),
        fixed(
            "max.incremental.fetch.session.cache.slots",
            Int,
            kafka.fetch_session_slots.to_string(),
            Some("1000"),
        ),
        fixed("node.id", Int, node.config.node_id.to_string(), None),
        fixed("num.partitions", Int, kafka.num_partitions.to_string(), Some("1")),
        fixed("process.roles", List, "broker,controller".to_owned(), None),
        fixed(
            "producer.id.expiration.ms",
            Int,
            kafka.producer_id_expiration_ms.to_string(),
            Some("86400000"),
        ),
        fixed(
            "replica.lag.time.max.ms",
            Long,
            kafka.replica_lag_time_max_ms.to_string(),
            Some("30000"),
        ),
        fixed(
            "socket.request.max.bytes",
            Int,
            kafka.socket_request_max_bytes.to_string(),
            Some("104857600"),
        ),
    ];
    all.extend(rack.chain(selector));
    all.extend(of_upkeep(kafka));
    all.extend(of_groups(&node.config.group));
    all
}

/// What retention and compaction go by.
fn of_upkeep(kafka: &KafkaConfig) -> [Fixed; 4] {
    use ValueType::{Double, Long};
    let fixed = |name, kind, value, default| Fixed { name, kind, value, default: Some(default) };
    // A whole number of bytes, written as the fraction that clients expect.
    let bytes_per_second = format!("{}.0", kafka.log_cleaner_io_max_bytes_per_second);
    [
        fixed(
            "log.retention.check.interval.ms",
            Long,
            kafka.log_retention_check_interval_ms.to_string(),
            "300000",
        ),
        fixed("log.cleaner.backoff.ms", Long, kafka.log_cleaner_backoff_ms.to_string(), "15000"),
        fixed(
            "log.cleaner.dedupe.buffer.size",
            Long,
            kafka.log_cleaner_dedupe_buffer_size.to_string(),
            "33554432",
        ),
        fixed("log.cleaner.io.max.bytes.per.second", Double, bytes_per_second, "67108864.0"),
    ]
}

/// What the groups of consumers go by.
fn of_groups(group: &GroupConfig) -> [Fixed; 8] {
    use ValueType::{Int, Long};
    let fixed =
        |name, kind, value: String, default| Fixed { name, kind, value, default: Some(default) };
    [
        fixed(
            "group.initial.rebalance.delay.ms",
            Int,
            group.initial_rebalance_delay_ms.to_string(),
            "3000",
        ),
        fixed(
            "group.min.session.timeout.ms",
            Int,
            group.min_session_timeout_ms.to_string(),
            "6000",
        ),
        fixed(
            "group.max.session.timeout.ms",
            Int,
            group.max_session_timeout_ms.to_string(),
            "1800000",
        ),
        fixed("group.max.size", Int, group.max_size.to_string(), "2147483647"),
        fixed(
            "offsets.topic.num.partitions",
            Int,
            group.offsets_topic_num_partitions.to_string(),
            "50",
        ),
        fixed(
            "offsets.retention.minutes",
            Int,
            group.offsets_retention_minutes.to_string(),
            "10080",
        ),
        fixed(
            "offsets.retention.check.interval.ms",
            Long,
            group.offsets_retention_check_interval_ms.to_string(),
            "600000",
        ),
        fixed(
            "offset.metadata.max.bytes",
            Int,
            group.offset_metadata_max_bytes.to_string(),
            "4096",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, load};
    use crate::handlers::configs::docs;

    #[test]
    fn given_the_settings_as_they_are_by_default_when_told_then_each_is_a_default_and_explained() {
        let config = load(&Inputs::default()).unwrap().config;
        for fixed in of_upkeep(&config.kafka).into_iter().chain(of_groups(&config.group)) {
            assert!(docs::of(fixed.name).is_some(), "{}", fixed.name);
            let told = entry(fixed);
            assert_eq!(told.source, Source::Default, "{}", told.name);
        }
    }
}
