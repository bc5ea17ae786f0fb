//! AlterConfigs and IncrementalAlterConfigs.
//!
//! Both become one set of changes per resource: AlterConfigs says what a resource shall have and resets the rest,
//! IncrementalAlterConfigs says what is to change.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use chronik_engine::ids::NodeId;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::incremental_alter_configs_request::AlterableConfig;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{LOGGERS, Refusal, ResourceType, invalid, named_broker, rules};
use crate::catalog::{
    CatalogCommand, CommandOutcome, ConfigDefinition, ConfigType, broker_config_definition,
    broker_config_of, config_definition, config_definitions, topic_name_problem,
};
use crate::handlers::change::{CHANGE_WAIT_DEFAULT, change_within};
use crate::handlers::error_code::catalog_error;
use crate::shell::shard::Shard;

/// What Kafka's brokers can be given while they run, and these only when they start, or not at all.
const DYNAMIC_IN_KAFKA: [&str; 21] = [
    "background.threads",
    "follower.fetch.last.tiered.offset.enable",
    "listener.security.protocol.map",
    "listeners",
    "log.cleaner.backoff.ms",
    "log.cleaner.dedupe.buffer.size",
    "log.cleaner.io.buffer.load.factor",
    "log.cleaner.io.buffer.size",
    "log.cleaner.io.max.bytes.per.second",
    "log.cleaner.threads",
    "max.connection.creation.rate",
    "max.connections",
    "max.connections.per.ip",
    "max.connections.per.ip.overrides",
    "metric.reporters",
    "num.io.threads",
    "num.network.threads",
    "num.recovery.threads.per.data.dir",
    "num.replica.fetchers",
    "producer.id.expiration.ms",
    "transaction.partition.verification.enable",
];

/// A change of each configuration named: a value, or none to go back to the default.
type Changes = BTreeMap<String, Option<String>>;

/// What is to become of one configuration.
enum Operation {
    Set,
    Delete,
    Append,
    Subtract,
}

impl Operation {
    fn from_wire(number: i8) -> Option<Operation> {
        match number {
            0 => Some(Operation::Set),
            1 => Some(Operation::Delete),
            2 => Some(Operation::Append),
            3 => Some(Operation::Subtract),
            _ => None,
        }
    }
}

/// What is altered.
enum Target {
    Topic(String),
    Broker(Option<NodeId>),
}

/// Serves IncrementalAlterConfigs. Cancel-safe; what was proposed is done.
pub async fn alter_incrementally(
    shard: Rc<Shard>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let asked = request.resources.into_iter().map(|resource| Asked {
        resource_type: resource.resource_type,
        resource_name: resource.resource_name,
        configs: resource.configs,
    });
    let name_of = |config: &AlterableConfig| config.name.clone();
    let told = change_all(&shard, asked.collect(), request.validate_only, name_of, changes).await;
    let responses = told.into_iter().map(|told| {
        IncrementalResponse::default()
            .with_error_code(told.error_code)
            .with_error_message(told.error_message)
            .with_resource_type(told.resource_type)
            .with_resource_name(told.resource_name)
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

/// Serves AlterConfigs. Cancel-safe; what was proposed is done.
pub async fn alter(shard: Rc<Shard>, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let asked = request.resources.into_iter().map(|resource| Asked {
        resource_type: resource.resource_type,
        resource_name: resource.resource_name,
        configs: resource.configs.into_iter().map(|config| (config.name, config.value)).collect(),
    });
    let name_of = |(name, _): &(StrBytes, Option<StrBytes>)| name.clone();
    let told =
        change_all(&shard, asked.collect(), request.validate_only, name_of, replacement).await;
    let responses = told.into_iter().map(|told| {
        AlterConfigsResourceResponse::default()
            .with_error_code(told.error_code)
            .with_error_message(told.error_message)
            .with_resource_type(told.resource_type)
            .with_resource_name(told.resource_name)
    });
    AlterConfigsResponse::default().with_responses(responses.collect())
}

/// One resource, and what is said of its configurations.
struct Asked<C> {
    resource_type: i8,
    resource_name: StrBytes,
    configs: Vec<C>,
}

/// What became of one resource.
struct Told {
    resource_type: i8,
    resource_name: StrBytes,
    error_code: i16,
    error_message: Option<StrBytes>,
}

/// Changes one resource after the other, each as `changes_of` reads its configurations. One that is named again is
/// refused, and answered once.
async fn change_all<C>(
    shard: &Rc<Shard>,
    asked: Vec<Asked<C>>,
    validate_only: bool,
    name_of: impl Fn(&C) -> StrBytes,
    changes_of: impl Fn(&Shard, &Target, Vec<C>) -> Result<Changes, Refusal>,
) -> Vec<Told> {
    let named = |asked: &Asked<C>| (asked.resource_type, asked.resource_name.clone());
    let repeated = repeated(asked.iter().map(named));
    let mut refused = BTreeSet::new();
    let mut told = Vec::with_capacity(asked.len());
    for asked in asked {
        let name = named(&asked);
        let changed = if repeated.contains(&name) {
            if !refused.insert(name) {
                continue;
            }
            Err(invalid("Each resource must appear at most once."))
        } else {
            let first = asked.configs.first().map(&name_of);
            let wanted = target(shard, asked.resource_type, &asked.resource_name, first.as_deref())
                .and_then(|target| match target {
                    Some(target) => Ok(Some((changes_of(shard, &target, asked.configs)?, target))),
                    None => Ok(None),
                });
            match wanted {
                Ok(Some((changes, target))) => change(shard, target, changes, validate_only).await,
                Ok(None) => Ok(()),
                Err(refusal) => Err(refusal),
            }
        };
        let (error_code, error_message) = told_of(changed);
        let Asked { resource_type, resource_name, .. } = asked;
        told.push(Told { resource_type, resource_name, error_code, error_message });
    }
    told
}

fn told_of(changed: Result<(), Refusal>) -> (i16, Option<StrBytes>) {
    match changed {
        Ok(()) => (0, None),
        Err((error, why)) => (error.code(), Some(StrBytes::from_string(why))),
    }
}

fn repeated<T: Ord + Clone>(named: impl Iterator<Item = T>) -> BTreeSet<T> {
    let mut seen = BTreeSet::new();
    named.filter(|name| !seen.insert(name.clone())).collect()
}

fn check_each_once(names: impl Iterator<Item = String>) -> Result<(), Refusal> {
    let names: Vec<String> = repeated(names).into_iter().collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(invalid(format!("Error due to duplicate config keys : {}", names.join(","))))
}

/// What a resource is; nothing, if it is one that has no configurations and none is named. `first` is the first one that
/// is.
fn target(
    shard: &Shard,
    resource_type: i8,
    name: &str,
    first: Option<&str>,
) -> Result<Option<Target>, Refusal> {
    match ResourceType::from_wire(resource_type)? {
        ResourceType::Topic if name.is_empty() => {
            Err(invalid("Default topic resources are not allowed."))
        }
        ResourceType::Topic => match shard.catalog().topic(name) {
            Some(_) => Ok(Some(Target::Topic(name.to_owned()))),
            None if topic_name_problem(name).is_some() => Err((
                ResponseError::InvalidTopicException,
                format!("The topic name '{name}' is not a valid one."),
            )),
            None => Err((
                ResponseError::UnknownTopicOrPartition,
                format!("The topic '{name}' does not exist."),
            )),
        },
        ResourceType::Broker => named_broker(shard, name).map(|node| Some(Target::Broker(node))),
        ResourceType::BrokerLogger => Err(invalid(LOGGERS)),
        without @ (ResourceType::ClientMetrics | ResourceType::Group) => {
            unknown_of(without, name, first).map_or(Ok(None), Err)
        }
    }
}

/// What is wrong with setting something on a resource that has no configurations: Kafka's words for one of a name that it
/// does not know.
fn unknown_of(kind: ResourceType, name: &str, first: Option<&str>) -> Option<Refusal> {
    let is_group = kind == ResourceType::Group;
    if name.is_empty() {
        let what = if is_group { "group" } else { "client metrics" };
        return Some(invalid(format!("Default {what} resources are not allowed.")));
    }
    let first = first?;
    Some(if is_group {
        (ResponseError::InvalidConfig, format!("Unknown group config name: {first}"))
    } else {
        invalid(format!("Unknown client metrics configuration: {first}"))
    })
}

impl Target {
    /// What says which values the one named here takes.
    fn definition(&self, name: &str) -> Option<&'static ConfigDefinition> {
        match self {
            Target::Topic(_) => config_definition(name),
            Target::Broker(_) => broker_config_definition(name),
        }
    }

    /// Whether it can be taken back where nobody can have set it: tools do so without looking.
    fn may_be_deleted(&self, name: &str) -> bool {
        let is_kafkas = matches!(self, Target::Broker(_)) && DYNAMIC_IN_KAFKA.contains(&name);
        is_kafkas || self.definition(name).is_some()
    }

    fn check(&self, name: &str, value: &str) -> Result<(), Refusal> {
        match self {
            Target::Topic(_) => rules::check_topic_config(name, value),
            Target::Broker(_) => match self.definition(name) {
                Some(definition) => rules::check(definition, name, value),
                None => Err(not_changeable(name)),
            },
        }
    }

    /// What is set now.
    fn set(&self, shard: &Shard) -> BTreeMap<String, String> {
        let catalog = shard.catalog();
        match self {
            Target::Topic(name) => {
                catalog.topic(name).map(|topic| topic.configs.clone()).unwrap_or_default()
            }
            Target::Broker(node) => catalog.broker_configs().of(*node).clone(),
        }
    }
}

fn not_changeable(name: &str) -> Refusal {
    invalid(format!("Cannot update these configs dynamically: Set({name})"))
}

/// What IncrementalAlterConfigs says of one resource.
fn changes(
    shard: &Shard,
    target: &Target,
    configs: Vec<AlterableConfig>,
) -> Result<Changes, Refusal> {
    check_each_once(configs.iter().map(|config| config.name.to_string()))?;
    let delete = |config: &&AlterableConfig| config.config_operation == 1;
    let nulls: Vec<&str> = configs
        .iter()
        .filter(|config| config.value.is_none() && !delete(config))
        .map(|config| config.name.as_str())
        .collect();
    if !nulls.is_empty() {
        return Err(invalid(format!("Null value not supported for : {}", nulls.join(","))));
    }
    let set = target.set(shard);
    let mut changes = Changes::new();
    for config in configs {
        let AlterableConfig { name, config_operation, value, .. } = config;
        let value = value.unwrap_or_default();
        let Some(operation) = Operation::from_wire(config_operation) else {
            return Err(invalid(format!("Unknown operation type {config_operation}")));
        };
        let value = match operation {
            Operation::Delete => None,
            Operation::Set => Some(value.to_string()),
            Operation::Append | Operation::Subtract => {
                let adds = matches!(operation, Operation::Append);
                Some(edited_list(target, &set, &name, &value, adds)?)
            }
        };
        match &value {
            Some(value) => target.check(&name, value)?,
            None if !target.may_be_deleted(&name) => return Err(unknown(target, &name)),
            None => {}
        }
        changes.insert(name.to_string(), value);
    }
    Ok(changes)
}

fn unknown(target: &Target, name: &str) -> Refusal {
    match target {
        Target::Topic(_) => {
            (ResponseError::InvalidConfig, format!("Unknown topic config name: {name}"))
        }
        Target::Broker(_) => not_changeable(name),
    }
}

/// A list with words added or taken out; one that was never set is its default.
fn edited_list(
    target: &Target,
    set: &BTreeMap<String, String>,
    name: &str,
    words: &str,
    adds: bool,
) -> Result<String, Refusal> {
    let verb = if adds { "APPEND" } else { "SUBTRACT" };
    let definition = target.definition(name).ok_or_else(|| unknown(target, name))?;
    if !matches!(definition.kind, ConfigType::ListOf(_) | ConfigType::FreeList) {
        let why = format!("Can't {verb} to key {name} because its type is not LIST.");
        return Err((ResponseError::InvalidConfig, why));
    }
    let before = set.get(name).map_or(definition.default, String::as_str);
    let words: Vec<&str> = words.split(',').map(str::trim).collect();
    let mut list: Vec<&str> =
        before.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    if adds {
        for word in words {
            if !list.contains(&word) {
                list.push(word);
            }
        }
    } else {
        list.retain(|word| !words.contains(word));
    }
    Ok(list.join(","))
}

/// What AlterConfigs says of one resource: these, and the default for everything else.
fn replacement(
    shard: &Shard,
    target: &Target,
    configs: Vec<(StrBytes, Option<StrBytes>)>,
) -> Result<Changes, Refusal> {
    check_each_once(configs.iter().map(|(name, _)| name.to_string()))?;
    let nulls: Vec<&str> = configs
        .iter()
        .filter(|(_, value)| value.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    if !nulls.is_empty() {
        return Err(invalid(format!("Null value not supported for : {}", nulls.join(","))));
    }
    // Reset is what is set now and what may be set by somebody else in this moment.
    let reset = config_definitions().iter().filter_map(|definition| match target {
        Target::Topic(_) => Some(definition.name),
        Target::Broker(_) => broker_config_of(definition.name),
    });
    let mut changes: Changes = reset.map(|name| (name.to_owned(), None)).collect();
    changes.extend(target.set(shard).into_keys().map(|name| (name, None)));
    for (name, value) in configs {
        let value = value.unwrap_or_default();
        target.check(&name, &value)?;
        changes.insert(name.to_string(), Some(value.to_string()));
    }
    Ok(changes)
}

/// Proposes the change, or only says what would become of it.
async fn change(
    shard: &Rc<Shard>,
    target: Target,
    changes: Changes,
    validate_only: bool,
) -> Result<(), Refusal> {
    if changes.is_empty() {
        return Ok(());
    }
    let command = match target {
        Target::Topic(name) => CatalogCommand::AlterTopicConfigs { name, changes },
        Target::Broker(node) => CatalogCommand::AlterBrokerConfigs { node, changes },
    };
    if !validate_only {
        let late = "the change was not made in time; it may be made yet";
        return change_within(shard, command, CHANGE_WAIT_DEFAULT, late).await.map(drop);
    }
    match (*shard.catalog()).clone().apply(&command) {
        CommandOutcome::Refused(error) => Err((catalog_error(&error), error.to_string())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_resources_without_configurations_when_one_is_set_then_the_refusal_is_kafkas() {
        let (group, metrics) = (ResourceType::Group, ResourceType::ClientMetrics);
        let unknown = "Unknown group config name: consumer.session.timeout.ms".to_owned();
        let told = unknown_of(group, "readers", Some("consumer.session.timeout.ms"));
        assert_eq!(told, Some((ResponseError::InvalidConfig, unknown)));
        let (error, why) = unknown_of(metrics, "some", Some("interval.ms")).unwrap();
        assert_eq!(error, ResponseError::InvalidRequest);
        assert_eq!(why, "Unknown client metrics configuration: interval.ms");
        for kind in [group, metrics] {
            assert!(unknown_of(kind, "", None).unwrap().1.starts_with("Default "));
            assert_eq!(unknown_of(kind, "some", None), None, "nothing is changed");
        }
    }

    #[test]
    fn given_a_dynamic_configuration_of_a_broker_when_taken_back_then_it_may_be_though_nobody_set_it()
     {
        let broker = Target::Broker(None);
        let throttles = [
            "leader.replication.throttled.rate",
            "follower.replication.throttled.rate",
            "replica.alter.log.dirs.io.max.bytes.per.second",
        ];
        for name in throttles {
            assert_eq!(broker.check(name, "1000"), Ok(()));
            assert!(broker.may_be_deleted(name), "{name}");
        }
        assert!(
            broker.may_be_deleted("num.io.threads") && broker.may_be_deleted("log.retention.ms")
        );
        assert!(broker.check("num.io.threads", "8").is_err(), "it would have no effect");
        assert!(!broker.may_be_deleted("broker.id") && !broker.may_be_deleted("num.io.thread"));
        assert!(!Target::Topic("t".to_owned()).may_be_deleted("num.io.threads"));
    }
}
