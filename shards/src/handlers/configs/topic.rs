//! The configurations of a topic: its own, then those of the brokers, then Kafka's defaults.

use super::broker;
use super::entry::{Entry, Source, Synonym, ValueType};
use crate::catalog::{ConfigDefinition, Topic, broker_config_of, config_definitions};
use crate::shell::shard::Shard;

/// All of them, in the order of their names.
pub(super) fn entries(shard: &Shard, topic: &Topic) -> Vec<Entry> {
    config_definitions().iter().map(|definition| entry(shard, topic, definition)).collect()
}

fn entry(shard: &Shard, topic: &Topic, definition: &'static ConfigDefinition) -> Entry {
    let own = topic.configs.get(definition.name).map(|value| Synonym {
        source: Source::DynamicTopic,
        name: definition.name,
        value: value.clone(),
    });
    let node = shard.node.config.node_id;
    let brokers = broker_config_of(definition.name)
        .map(|name| broker::synonyms(shard, node, name, definition));
    let synonyms: Vec<Synonym> = own.into_iter().chain(brokers.into_iter().flatten()).collect();
    let (value, source) = match synonyms.first() {
        Some(first) => (first.value.clone(), first.source),
        None => (definition.default.to_owned(), Source::Default),
    };
    Entry {
        name: definition.name,
        kind: ValueType::of(definition),
        value: Some(value),
        source,
        is_read_only: false,
        synonyms,
    }
}
