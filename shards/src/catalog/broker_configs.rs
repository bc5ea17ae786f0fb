//! Configurations that brokers were given while they run: defaults for the topics that do not say otherwise.
//!
//! As in Kafka there are two layers, that of one broker over that of all. The settings of a topic are the cluster's, not
//! a broker's, so the layer of one broker counts for topics only where it is the only broker. A few are no defaults of topics:
//! the throttles that Kafka's tools set while replicas move.

use std::collections::BTreeMap;

use chronik_engine::ids::NodeId;

use super::{ConfigDefinition, ConfigProblem, ConfigType, TOPIC_CONFIGS_MAX, config_definition};

/// A topic's configuration and the broker's that is its default, in the order of the former.
const SYNONYMS: [(&str, &str); 28] = [
    ("cleanup.policy", "log.cleanup.policy"),
    ("compression.gzip.level", "compression.gzip.level"),
    ("compression.lz4.level", "compression.lz4.level"),
    ("compression.type", "compression.type"),
    ("compression.zstd.level", "compression.zstd.level"),
    ("delete.retention.ms", "log.cleaner.delete.retention.ms"),
    ("file.delete.delay.ms", "log.segment.delete.delay.ms"),
    ("flush.messages", "log.flush.interval.messages"),
    ("flush.ms", "log.flush.interval.ms"),
    ("index.interval.bytes", "log.index.interval.bytes"),
    ("local.retention.bytes", "log.local.retention.bytes"),
    ("local.retention.ms", "log.local.retention.ms"),
    ("max.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms"),
    ("max.message.bytes", "message.max.bytes"),
    ("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms"),
    ("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms"),
    ("message.timestamp.type", "log.message.timestamp.type"),
    ("min.cleanable.dirty.ratio", "log.cleaner.min.cleanable.ratio"),
    ("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms"),
    ("min.insync.replicas", "min.insync.replicas"),
    ("preallocate", "log.preallocate"),
    ("retention.bytes", "log.retention.bytes"),
    ("retention.ms", "log.retention.ms"),
    ("segment.bytes", "log.segment.bytes"),
    ("segment.index.bytes", "log.index.size.max.bytes"),
    ("segment.jitter.ms", "log.roll.jitter.ms"),
    ("segment.ms", "log.roll.ms"),
    ("unclean.leader.election.enable", "unclean.leader.election.enable"),
];

const FOLLOWER_THROTTLE: &str = "follower.replication.throttled.rate";

/// In bytes per second, and without bound where they are not set.
static THROTTLES: [ConfigDefinition; 3] = [
    throttle(FOLLOWER_THROTTLE),
    throttle("leader.replication.throttled.rate"),
    throttle("replica.alter.log.dirs.io.max.bytes.per.second"),
];

const fn throttle(name: &'static str) -> ConfigDefinition {
    ConfigDefinition { name, kind: ConfigType::Long { min: 0 }, default: "9223372036854775807" }
}

/// The configurations that only brokers have.
#[must_use]
pub fn broker_only_configs() -> &'static [ConfigDefinition] {
    &THROTTLES
}

/// What values this configuration of a broker takes, if it is one that may be changed while the broker runs.
#[must_use]
pub fn broker_config_definition(name: &str) -> Option<&'static ConfigDefinition> {
    let own = THROTTLES.iter().find(|definition| definition.name == name);
    own.or_else(|| config_definition(topic_config_of(name)?))
}

/// The broker's configuration that is the default of this one of a topic.
#[must_use]
pub fn broker_config_of(topic_config: &str) -> Option<&'static str> {
    SYNONYMS.iter().find(|(topic, _)| *topic == topic_config).map(|(_, broker)| *broker)
}

/// The topic's configuration whose default this one of a broker is.
#[must_use]
pub fn topic_config_of(broker_config: &str) -> Option<&'static str> {
    SYNONYMS.iter().find(|(_, broker)| *broker == broker_config).map(|(topic, _)| *topic)
}

/// What was set on brokers, by the names that brokers use.
#[derive(Debug, Clone, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct BrokerConfigs {
    cluster: BTreeMap<String, String>,
    nodes: BTreeMap<NodeId, BTreeMap<String, String>>,
}

impl BrokerConfigs {
    /// Whether nothing is set anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cluster.is_empty() && self.nodes.is_empty()
    }

    /// What is set on this broker, or with `None` on all of them.
    #[must_use]
    pub fn of(&self, node: Option<NodeId>) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match node {
            None => &self.cluster,
            Some(node) => self.nodes.get(&node).unwrap_or(&NONE),
        }
    }

    /// How many bytes per second this broker may copy for its replicas, if somebody has said so; at least 1.
    #[must_use]
    pub fn follower_throttle(&self, node: NodeId) -> Option<u64> {
        let of = |node| self.of(node).get(FOLLOWER_THROTTLE);
        let rate = of(Some(node)).or_else(|| of(None))?;
        rate.trim().parse::<u64>().ok().map(|rate| rate.max(1))
    }

    /// Sets (`Some`) or resets (`None`) some of them; all or none.
    pub(super) fn change(
        &mut self,
        node: Option<NodeId>,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<(), (String, ConfigProblem)> {
        let mut changed = self.of(node).clone();
        for (name, value) in changes {
            match value {
                Some(value) => {
                    check(name, value).map_err(|problem| (name.clone(), problem))?;
                    changed.insert(name.clone(), value.clone());
                }
                None => {
                    changed.remove(name);
                }
            }
        }
        if changed.len() > TOPIC_CONFIGS_MAX {
            return Err((String::new(), ConfigProblem::TooMany { configs: changed.len() }));
        }
        match node {
            None => self.cluster = changed,
            Some(node) if changed.is_empty() => _ = self.nodes.remove(&node),
            Some(node) => _ = self.nodes.insert(node, changed),
        }
        Ok(())
    }

    /// What they come to for topics, by the names that topics use. `only` is the broker if there is just one.
    pub(super) fn topic_defaults(&self, only: Option<NodeId>) -> BTreeMap<String, String> {
        let layers = [Some(&self.cluster), only.map(|node| self.of(Some(node)))];
        let set = layers.into_iter().flatten().flatten();
        set.filter_map(|(name, value)| Some((topic_config_of(name)?.to_owned(), value.clone())))
            .collect()
    }
}

fn check(name: &str, value: &str) -> Result<(), ConfigProblem> {
    broker_config_definition(name).ok_or(ConfigProblem::Unknown)?.check(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::config_definitions;

    fn set(name: &str, value: &str) -> BTreeMap<String, Option<String>> {
        BTreeMap::from([(name.to_owned(), Some(value.to_owned()))])
    }

    #[test]
    fn given_the_synonyms_when_walked_then_each_is_a_topics_configuration_and_unique() {
        for (topic, broker) in SYNONYMS {
            assert!(config_definitions().iter().any(|d| d.name == topic), "{topic}");
            assert_eq!(broker_config_of(topic), Some(broker));
            assert_eq!(topic_config_of(broker), Some(topic));
        }
    }

    #[test]
    fn given_both_layers_when_topics_ask_then_the_brokers_own_counts_where_it_is_the_only_one() {
        let mut configs = BrokerConfigs::default();
        configs.change(None, &set("log.retention.ms", "1")).unwrap();
        configs.change(Some(NodeId(1)), &set("log.retention.ms", "2")).unwrap();
        assert_eq!(configs.topic_defaults(None)["retention.ms"], "1");
        assert_eq!(configs.topic_defaults(Some(NodeId(1)))["retention.ms"], "2");
        assert_eq!(configs.topic_defaults(Some(NodeId(2)))["retention.ms"], "1");
        let reset = BTreeMap::from([("log.retention.ms".to_owned(), None)]);
        configs.change(None, &reset).unwrap();
        configs.change(Some(NodeId(1)), &reset).unwrap();
        assert!(configs.is_empty());
    }

    #[test]
    fn given_a_wrong_value_among_right_ones_when_set_then_none_is() {
        let mut configs = BrokerConfigs::default();
        let mut changes = set("log.retention.ms", "1");
        changes.extend(set("log.segment.bytes", "few"));
        let refused = configs.change(None, &changes).unwrap_err();
        assert_eq!(refused.0, "log.segment.bytes");
        assert!(configs.is_empty());
        let unknown = configs.change(None, &set("log.sgment.bytes", "1")).unwrap_err();
        assert_eq!(unknown.1, ConfigProblem::Unknown);
    }

    #[test]
    fn given_a_throttle_when_set_for_all_and_for_one_then_each_broker_knows_its_own_and_topics_none()
     {
        let mut configs = BrokerConfigs::default();
        assert_eq!(configs.follower_throttle(NodeId(1)), None);
        configs.change(None, &set(FOLLOWER_THROTTLE, "1000")).unwrap();
        configs.change(Some(NodeId(1)), &set(FOLLOWER_THROTTLE, "0")).unwrap();
        assert_eq!(configs.follower_throttle(NodeId(1)), Some(1), "nothing at all would never end");
        assert_eq!(configs.follower_throttle(NodeId(2)), Some(1000));
        assert!(configs.topic_defaults(Some(NodeId(1))).is_empty());
        assert!(configs.change(None, &set(FOLLOWER_THROTTLE, "-1")).is_err());
    }
}
