//! Topic configurations: which there are, what values they take, what a topic's values come to.
//!
//! Names, types, ranges and defaults are Kafka 4.1's. `searchable.enabled` and `durability` are Chronik's own.

use std::collections::BTreeMap;

use thiserror::Error;

/// What kind of value a configuration takes, as DescribeConfigs names it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ConfigType {
    /// `true` or `false`.
    Boolean,
    /// A 32-bit integer of at least `min`.
    Int {
        /// The least value.
        min: i32,
        /// The greatest value.
        max: i32,
    },
    /// A 64-bit integer of at least `min`.
    Long {
        /// The least value.
        min: i64,
    },
    /// A number between 0 and 1.
    Ratio,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A comma-separated list of these words, not empty.
    ListOf(&'static [&'static str]),
    /// A comma-separated list of anything.
    FreeList,
}

/// A configuration a topic can have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConfigDefinition {
    /// Its name.
    pub name: &'static str,
    /// The values it takes.
    pub kind: ConfigType,
    /// The value where none is set.
    pub default: &'static str,
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigProblem {
    /// The name is not known.
    #[error("unknown topic configuration")]
    Unknown,
    /// The value is not of the configuration's type or outside its range.
    #[error("invalid value {value:?}")]
    InvalidValue {
        /// The value.
        value: String,
    },
    /// The value is longer than any valid one.
    #[error("the value has {bytes} bytes")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is to be no more than another one is.
    #[error("{value} is more than {other}, which is {other_value}")]
    MoreThan {
        /// The value.
        value: i64,
        /// The other configuration.
        other: &'static str,
        /// What that is set to.
        other_value: i64,
    },
    /// More configurations than there can be.
    #[error("{configs} configurations on one topic")]
    TooMany {
        /// How many.
        configs: usize,
    },
}

const COMPACTION_LAG_MIN: &str = "min.compaction.lag.ms";
const COMPACTION_LAG_MAX: &str = "max.compaction.lag.ms";

/// When a record's timestamp is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// By the producer.
    CreateTime,
    /// By the broker.
    LogAppendTime,
}

/// What becomes of old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanupPolicy {
    /// They are deleted by age and size.
    pub delete: bool,
    /// The newest record of each key is kept.
    pub compact: bool,
}

/// What an acknowledgement of a topic promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A quorum has it on disk.
    Durable,
    /// A quorum has it in memory.
    Relaxed,
}

/// The settings of a topic that the broker acts on, parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// `max.message.bytes`, `None` where neither the topic nor the cluster was given one
    pub message_bytes_max: Option<usize>,
    /// `message.timestamp.type`
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`
    pub timestamp_before_ms_max: i64,
    /// `message.timestamp.after.max.ms`
    pub timestamp_after_ms_max: i64,
    /// `cleanup.policy`
    pub cleanup: CleanupPolicy,
    /// `min.insync.replicas`
    pub insync_replicas_min: u32,
    /// `retention.ms`, `None` for no limit
    pub retention_ms: Option<i64>,
    /// `retention.bytes`, `None` for no limit
    pub retention_bytes: Option<i64>,
    /// `segment.bytes`
    pub segment_bytes: u64,
    /// `segment.ms`
    pub segment_ms: i64,
    /// `min.cleanable.dirty.ratio`
    pub min_cleanable_dirty_ratio: Millionths,
    /// `min.compaction.lag.ms`
    pub min_compaction_lag_ms: i64,
    /// `max.compaction.lag.ms`
    pub max_compaction_lag_ms: i64,
    /// `delete.retention.ms`
    pub delete_retention_ms: i64,
    /// `durability`
    pub durability: Durability,
}

/// A ratio that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millionths(u32);

impl Millionths {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a ratio between 0 and 1 comes to at most a million"
    )]
    fn of(ratio: f64) -> Millionths {
        Millionths((ratio.clamp(0.0, 1.0) * 1e6).round() as u32)
    }

    /// As a fraction of one.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

const fn define(name: &'static str, kind: ConfigType, default: &'static str) -> ConfigDefinition {
    ConfigDefinition { name, kind, default }
}

const fn int(min: i32) -> ConfigType {
    ConfigType::Int { min, max: i32::MAX }
}

const fn long(min: i64) -> ConfigType {
    ConfigType::Long { min }
}

const TIMESTAMP_TYPES: &[&str] = &["CreateTime", "LogAppendTime"];
const COMPRESSION_TYPES: &[&str] = &["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"];
const LONG_MAX: &str = "9223372036854775807";

/// All of them, in the order of their names.
static DEFINITIONS: [ConfigDefinition; 35] = [
    define("cleanup.policy", ConfigType::ListOf(&["delete", "compact"]), "delete"),
    define("compression.gzip.level", ConfigType::Int { min: -1, max: 9 }, "-1"),
    define("compression.lz4.level", ConfigType::Int { min: 1, max: 17 }, "9"),
    define("compression.type", ConfigType::OneOf(COMPRESSION_TYPES), "producer"),
    define("compression.zstd.level", ConfigType::Int { min: -131_072, max: 22 }, "3"),
    define("delete.retention.ms", long(0), "86400000"),
    define("durability", ConfigType::OneOf(&["durable", "relaxed"]), "durable"),
    define("file.delete.delay.ms", long(0), "60000"),
    define("flush.messages", long(1), LONG_MAX),
    define("flush.ms", long(0), LONG_MAX),
    define("follower.replication.throttled.replicas", ConfigType::FreeList, ""),
    define("index.interval.bytes", int(0), "4096"),
    define("leader.replication.throttled.replicas", ConfigType::FreeList, ""),
    define("local.retention.bytes", long(-2), "-2"),
    define("local.retention.ms", long(-2), "-2"),
    define(COMPACTION_LAG_MAX, long(1), LONG_MAX),
    define("max.message.bytes", int(0), "1048588"),
    define("message.timestamp.after.max.ms", long(0), "3600000"),
    define("message.timestamp.before.max.ms", long(0), LONG_MAX),
    define("message.timestamp.type", ConfigType::OneOf(TIMESTAMP_TYPES), "CreateTime"),
    define("min.cleanable.dirty.ratio", ConfigType::Ratio, "0.5"),
    define(COMPACTION_LAG_MIN, long(0), "0"),
    define("min.insync.replicas", int(1), "1"),
    define("preallocate", ConfigType::Boolean, "false"),
    define("remote.log.copy.disable", ConfigType::Boolean, "false"),
    define("remote.log.delete.on.disable", ConfigType::Boolean, "false"),
    define("remote.storage.enable", ConfigType::Boolean, "false"),
    define("retention.bytes", long(-1), "-1"),
    define("retention.ms", long(-1), "604800000"),
    define("searchable.enabled", ConfigType::Boolean, "false"),
    define("segment.bytes", int(1024 * 1024), "1073741824"),
    define("segment.index.bytes", int(4), "10485760"),
    define("segment.jitter.ms", long(0), "0"),
    define("segment.ms", long(1), "604800000"),
    define("unclean.leader.election.enable", ConfigType::Boolean, "false"),
];

/// Every configuration a topic can have, in the order of their names.
#[must_use]
pub fn config_definitions() -> &'static [ConfigDefinition] {
    &DEFINITIONS
}

/// The configuration with this name.
#[must_use]
pub fn config_definition(name: &str) -> Option<&'static ConfigDefinition> {
    let at = DEFINITIONS.binary_search_by(|definition| definition.name.cmp(name)).ok()?;
    Some(&DEFINITIONS[at])
}

impl ConfigDefinition {
    /// Whether the value is one that the configuration takes.
    pub fn check(&self, value: &str) -> Result<(), ConfigProblem> {
        if value.len() > super::TOPIC_CONFIG_VALUE_BYTES_MAX {
            return Err(ConfigProblem::TooLong { bytes: value.len() });
        }
        let trimmed = value.trim();
        let valid = match self.kind {
            ConfigType::Boolean => parse_bool(trimmed).is_some(),
            ConfigType::Int { min, max } => {
                trimmed.parse().is_ok_and(|value: i32| (min..=max).contains(&value))
            }
            ConfigType::Long { min } => trimmed.parse().is_ok_and(|value: i64| value >= min),
            ConfigType::Ratio => {
                trimmed.parse().is_ok_and(|value: f64| (0.0..=1.0).contains(&value))
            }
            ConfigType::OneOf(words) => words.contains(&trimmed),
            ConfigType::ListOf(words) => list(trimmed).all(|word| words.contains(&word)),
            ConfigType::FreeList => true,
        };
        if valid { Ok(()) } else { Err(ConfigProblem::InvalidValue { value: value.to_owned() }) }
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

fn parse_bool(value: &str) -> Option<bool> {
    if value.eq_ignore_ascii_case("true") {
        Some(true)
    } else if value.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// Checks all configurations of a topic; the first that is wrong is named.
pub(super) fn check_configs(
    configs: &BTreeMap<String, String>,
) -> Result<(), (String, ConfigProblem)> {
    if configs.len() > super::TOPIC_CONFIGS_MAX {
        return Err((String::new(), ConfigProblem::TooMany { configs: configs.len() }));
    }
    for (name, value) in configs {
        let definition =
            config_definition(name).ok_or_else(|| (name.clone(), ConfigProblem::Unknown))?;
        definition.check(value).map_err(|problem| (name.clone(), problem))?;
    }
    let set = |name: &str| configs.get(name).and_then(|value| value.trim().parse::<i64>().ok());
    match (set(COMPACTION_LAG_MIN), set(COMPACTION_LAG_MAX)) {
        (Some(value), Some(other_value)) if value > other_value => {
            let problem = ConfigProblem::MoreThan { value, other: COMPACTION_LAG_MAX, other_value };
            Err((COMPACTION_LAG_MIN.to_owned(), problem))
        }
        _ => Ok(()),
    }
}

impl TopicSettings {
    /// Whether memory is enough for an acknowledgement.
    #[must_use]
    pub fn is_relaxed(&self) -> bool {
        self.durability == Durability::Relaxed
    }

    /// What these configurations and the defaults come to. A value that cannot be read counts as not set: it was
    /// checked when it was set, so it can only stem from a version that knew more.
    #[must_use]
    pub fn from_configs(configs: &BTreeMap<String, String>) -> TopicSettings {
        TopicSettings::settle(configs, &BTreeMap::new())
    }

    /// As [`TopicSettings::from_configs`], where `defaults` come before Kafka's.
    #[must_use]
    pub fn settle(
        configs: &BTreeMap<String, String>,
        defaults: &BTreeMap<String, String>,
    ) -> TopicSettings {
        let given = |name: &'static str| -> Option<&str> {
            let definition = config_definition(name)?;
            let valid = |value: &&String| definition.check(value).is_ok();
            let own = configs.get(name).filter(valid);
            own.or_else(|| defaults.get(name).filter(valid)).map(|value| value.trim())
        };
        let text = |name: &'static str| -> &str {
            let default = || config_definition(name).map_or("", |definition| definition.default);
            given(name).unwrap_or_else(default)
        };
        let number = |name: &'static str| -> i64 { text(name).parse().unwrap_or(i64::MAX) };
        let limit = |name: &'static str| Some(number(name)).filter(|value| *value >= 0);
        TopicSettings {
            message_bytes_max: given("max.message.bytes").and_then(|value| value.parse().ok()),
            timestamp_type: match text("message.timestamp.type") {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            timestamp_before_ms_max: number("message.timestamp.before.max.ms"),
            timestamp_after_ms_max: number("message.timestamp.after.max.ms"),
            cleanup: CleanupPolicy {
                delete: list(text("cleanup.policy")).any(|word| word == "delete"),
                compact: list(text("cleanup.policy")).any(|word| word == "compact"),
            },
            insync_replicas_min: u32::try_from(number("min.insync.replicas")).unwrap_or(u32::MAX),
            retention_ms: limit("retention.ms"),
            retention_bytes: limit("retention.bytes"),
            segment_bytes: u64::try_from(number("segment.bytes")).unwrap_or(u64::MAX),
            segment_ms: number("segment.ms"),
            min_cleanable_dirty_ratio: Millionths::of(
                text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
            ),
            min_compaction_lag_ms: number(COMPACTION_LAG_MIN),
            max_compaction_lag_ms: number(COMPACTION_LAG_MAX),
            delete_retention_ms: number("delete.retention.ms"),
            durability: match text("durability") {
                "relaxed" => Durability::Relaxed,
                _ => Durability::Durable,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn given_the_table_when_walked_then_it_is_sorted_and_its_defaults_are_valid() {
        assert!(DEFINITIONS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for definition in config_definitions() {
            assert_eq!(definition.check(definition.default), Ok(()), "{}", definition.name);
            assert_eq!(config_definition(definition.name), Some(definition));
        }
    }

    #[test]
    fn given_values_when_checked_then_type_and_range_decide() {
        let cases = [
            ("retention.ms", "-1", true),
            ("retention.ms", "-2", false),
            ("retention.ms", "9223372036854775808", false),
            ("local.retention.bytes", "-2", true),
            ("segment.bytes", "1048575", false),
            ("segment.bytes", "2147483648", false),
            ("cleanup.policy", "compact,delete", true),
            ("cleanup.policy", "compact, delete", true),
            ("cleanup.policy", "", false),
            ("cleanup.policy", "shred", false),
            ("compression.type", "lz4", true),
            ("compression.type", "lzma", false),
            ("min.cleanable.dirty.ratio", "NaN", false),
            ("min.cleanable.dirty.ratio", "1.0", true),
            ("remote.storage.enable", "TRUE", true),
            ("remote.storage.enable", "1", false),
            ("min.insync.replicas", "0", false),
            ("durability", "relaxed", true),
        ];
        for (name, value, valid) in cases {
            let got = check_configs(&configs(&[(name, value)]));
            assert_eq!(got.is_ok(), valid, "{name}={value}: {got:?}");
        }
        let lags = [("min.compaction.lag.ms", "11"), ("max.compaction.lag.ms", "10")];
        let (name, problem) = check_configs(&configs(&lags)).unwrap_err();
        assert_eq!(name, "min.compaction.lag.ms");
        assert_eq!(problem.to_string(), "11 is more than max.compaction.lag.ms, which is 10");
        assert!(check_configs(&configs(&lags[..1])).is_ok());
        let unknown = check_configs(&configs(&[("retention.msec", "1")]));
        assert_eq!(unknown, Err(("retention.msec".to_owned(), ConfigProblem::Unknown)));
    }

    #[test]
    fn given_overrides_when_settled_then_the_rest_is_kafkas_default() {
        let settings = TopicSettings::from_configs(&configs(&[
            ("cleanup.policy", "compact"),
            ("max.message.bytes", "100"),
            ("retention.ms", "-1"),
        ]));
        assert_eq!(settings.cleanup, CleanupPolicy { delete: false, compact: true });
        assert_eq!(settings.message_bytes_max, Some(100));
        assert_eq!(settings.retention_ms, None);
        assert_eq!(settings.timestamp_type, TimestampType::CreateTime);
        assert_eq!(settings.timestamp_before_ms_max, i64::MAX);
        let defaults = TopicSettings::from_configs(&BTreeMap::new());
        assert_eq!(defaults.message_bytes_max, None);
        assert_eq!(defaults.retention_ms, Some(604_800_000));
    }
}
