//! CreateTopics: a change of the catalog, answered once every core shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chronik_engine::ids::{NodeId, ReplicaId};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::{BrokerId, CreateTopicsRequest, CreateTopicsResponse};
use kafka_protocol::protocol::StrBytes;
use rand::Rng;
use uuid::Uuid;

use super::change::{change_catalog, change_error, wait_of, why_not, within};
use super::configs::{self, rules};
use super::error_code::catalog_error;
use super::partitions::check_replicas;
use super::replicas;
use crate::catalog::{
    CatalogCommand, CatalogError, CommandOutcome, NewPartition, NewTopic, TOPIC_PARTITIONS_MAX,
    Topic, TopicId,
};
use crate::core::ProduceError;
use crate::shell::shard::Shard;

/// A topic that somebody wants made.
#[derive(Debug, Clone)]
pub struct TopicWanted {
    name: String,
    partitions: Option<u32>,
    replicas: usize,
    /// The nodes of each partition, where somebody has said so.
    nodes: Vec<Vec<NodeId>>,
    configs: BTreeMap<String, String>,
}

impl TopicWanted {
    /// A topic with the node's default numbers of partitions and replicas, and no configurations.
    ///
    /// # Errors
    /// There are not as many nodes yet as it is to have replicas.
    pub fn with_defaults(shard: &Shard, name: String) -> Result<TopicWanted, RefusedBecause> {
        let replicas = replicas::by_default(shard)?;
        let (nodes, configs) = (Vec::new(), BTreeMap::new());
        Ok(TopicWanted { name, partitions: None, replicas, nodes, configs })
    }
}

/// What stood in a topic's way.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefusedBecause {
    /// The catalog would not have it.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The change could not be made durable.
    #[error("{}", why_not(.0))]
    Log(#[from] ProduceError),
    /// The request is wrong in itself.
    #[error("{why}")]
    Invalid {
        /// Kafka's name for it.
        error: ResponseError,
        /// What is wrong.
        why: &'static str,
    },
    /// Nodes of the list on which it is to have replicas have not come yet.
    #[error(
        "{lacking} Of cluster.nodes these are not part of the cluster yet: {}.",
        numbers(to_come)
    )]
    ToCome {
        /// What is lacking until then.
        lacking: CatalogError,
        /// Those nodes.
        to_come: Vec<NodeId>,
    },
    /// A configuration or a place that a topic cannot have.
    #[error("{why}")]
    Config {
        /// Kafka's name for it.
        error: ResponseError,
        /// What is wrong.
        why: String,
    },
}

impl RefusedBecause {
    /// Kafka's name for it.
    #[must_use]
    pub fn response_error(&self) -> ResponseError {
        match self {
            RefusedBecause::Catalog(error) | RefusedBecause::ToCome { lacking: error, .. } => {
                catalog_error(error)
            }
            RefusedBecause::Log(error) => change_error(error),
            RefusedBecause::Invalid { error, .. } | RefusedBecause::Config { error, .. } => *error,
        }
    }
}

fn numbers(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Serves CreateTopics. Cancel-safe; what was proposed is made.
pub async fn create_topics(
    shard: Rc<Shard>,
    version: i16,
    request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let repeated = repeated(request.topics.iter().map(|topic| topic.name.to_string()));
    let mut results: Vec<Option<CreatableTopicResult>> = vec![None; request.topics.len()];
    let mut wanted: Vec<(usize, TopicWanted)> = Vec::new();
    let mut told = BTreeSet::new();
    for (at, topic) in request.topics.iter().enumerate() {
        // A name that is there twice is refused once, as by Kafka.
        if repeated.contains(topic.name.as_str()) && !told.insert(topic.name.clone()) {
            continue;
        }
        match wanted_topic(&shard, topic, version, &repeated) {
            Ok(topic) => wanted.push((at, topic)),
            Err(error) => results[at] = Some(refused(topic, &error)),
        }
    }
    let (places, wanted): (Vec<usize>, Vec<TopicWanted>) = wanted.into_iter().unzip();
    let made = if request.validate_only {
        validate(&shard, wanted)
    } else {
        create(&shard, wanted, wait_of(request.timeout_ms)).await
    };
    for (at, made) in places.into_iter().zip(made) {
        let asked = &request.topics[at];
        results[at] = Some(match made {
            Ok(topic) => created(&shard, &topic),
            Err(why) => refused(asked, &why),
        });
    }
    CreateTopicsResponse::default().with_topics(results.into_iter().flatten().collect())
}

pub(super) fn repeated(names: impl Iterator<Item = String>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    names.filter(|name| !seen.insert(name.clone())).collect()
}

fn wanted_topic(
    shard: &Shard,
    topic: &CreatableTopic,
    version: i16,
    repeated: &BTreeSet<String>,
) -> Result<TopicWanted, RefusedBecause> {
    let invalid = |error, why| Err(RefusedBecause::Invalid { error, why });
    if repeated.contains(topic.name.as_str()) {
        return invalid(ResponseError::InvalidRequest, "the request names this topic twice");
    }
    check_assignments(shard, topic)?;
    // "As many as the broker's default" came with version 4 (KIP-464).
    let partitions = match topic.num_partitions {
        -1 if !topic.assignments.is_empty() => Some(assigned_partitions(topic)?),
        -1 if version >= 4 => None,
        count => match usize::try_from(count) {
            Ok(partitions) if partitions > TOPIC_PARTITIONS_MAX => {
                let partitions_max = TOPIC_PARTITIONS_MAX;
                let error = CatalogError::InvalidPartitionCount { partitions, partitions_max };
                return Err(error.into());
            }
            Ok(1..) => Some(count.unsigned_abs()),
            _ => {
                return invalid(ResponseError::InvalidPartitions, "partitions must be 1 or more");
            }
        },
    };
    let replicas = wanted_replicas(shard, topic)?;
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let Some(value) = &config.value else {
            let why = format!("Null value not supported for topic configs: {}", &*config.name);
            return Err(RefusedBecause::Config { error: ResponseError::InvalidConfig, why });
        };
        rules::check_topic_config(&config.name, value)
            .map_err(|(error, why)| RefusedBecause::Config { error, why })?;
        configs.insert(config.name.to_string(), value.to_string());
    }
    let nodes = assigned_nodes(topic);
    Ok(TopicWanted { name: topic.name.to_string(), partitions, replicas, nodes, configs })
}

/// How many replicas a topic is to have: as the request says, or by default.
fn wanted_replicas(shard: &Shard, topic: &CreatableTopic) -> Result<usize, RefusedBecause> {
    if let Some(assignment) = topic.assignments.first() {
        return Ok(assignment.broker_ids.len());
    }
    if topic.replication_factor == -1 {
        return replicas::by_default(shard);
    }
    let brokers = shard.catalog().open_brokers().count();
    match usize::try_from(topic.replication_factor) {
        Ok(replicas) if replicas >= 1 && replicas <= brokers => Ok(replicas),
        Ok(replicas) if replicas >= 1 => {
            Err(CatalogError::InvalidReplicationFactor { replicas, brokers }.into())
        }
        _ => Err(RefusedBecause::Invalid {
            error: ResponseError::InvalidReplicationFactor,
            why: "Replication factor must be larger than 0, or -1 to use the default value.",
        }),
    }
}

/// Whoever says where the partitions go says how many there are, and nothing else does.
fn check_assignments(shard: &Shard, topic: &CreatableTopic) -> Result<(), RefusedBecause> {
    let Some(first) = topic.assignments.first() else { return Ok(()) };
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        return Err(RefusedBecause::Invalid {
            error: ResponseError::InvalidRequest,
            why: "with an assignment, partitions and replication factor must both be -1",
        });
    }
    let catalog = shard.catalog();
    for assignment in &topic.assignments {
        check_replicas(&catalog, &assignment.broker_ids, Some(first.broker_ids.len()))
            .map_err(|(error, why)| RefusedBecause::Config { error, why })?;
    }
    Ok(())
}

/// The nodes of each partition by its number, after [`check_assignments`] and [`assigned_partitions`].
fn assigned_nodes(topic: &CreatableTopic) -> Vec<Vec<NodeId>> {
    let assignments = topic.assignments.iter();
    let by_number: BTreeMap<i32, Vec<NodeId>> =
        assignments.map(|a| (a.partition_index, node_ids(&a.broker_ids))).collect();
    by_number.into_values().collect()
}

fn assigned_partitions(topic: &CreatableTopic) -> Result<u32, RefusedBecause> {
    let numbers: BTreeSet<i32> = topic.assignments.iter().map(|a| a.partition_index).collect();
    let gapless = (0..).zip(&numbers).all(|(expected, number)| expected == *number);
    match u32::try_from(numbers.len()) {
        Ok(count) if gapless && numbers.len() == topic.assignments.len() => Ok(count),
        _ => Err(RefusedBecause::Invalid {
            error: ResponseError::InvalidReplicaAssignment,
            why: "the assignment must name the partitions 0 to n-1, each once",
        }),
    }
}

/// Makes topics; returns once every core shows those that were made, or when the time is over.
pub async fn create(
    shard: &Rc<Shard>,
    wanted: Vec<TopicWanted>,
    at_most: Duration,
) -> Vec<Result<Arc<Topic>, RefusedBecause>> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let count = wanted.len();
    if let Some(refused) = beyond_limits(shard, &wanted) {
        return refused.into_iter().map(Err).collect();
    }
    let topics = new_topics(shard, wanted);
    let command = CatalogCommand::CreateTopics { topics, avoid: nodes_down(shard) };
    let late = RefusedBecause::Invalid {
        error: ResponseError::RequestTimedOut,
        why: "the topic was not ready in time; it may be made yet",
    };
    let Some(changed) = within(at_most, change_catalog(shard, command)).await else {
        return vec![Err(late); count];
    };
    match changed {
        Ok(CommandOutcome::TopicsCreated(results)) => {
            results.into_iter().map(|result| result.map_err(RefusedBecause::from)).collect()
        }
        Ok(CommandOutcome::Refused(error)) => vec![Err(error.into()); count],
        Ok(_) => vec![Err(ProduceError::NotLeader.into()); count],
        Err(error) => vec![Err(error.into()); count],
    }
}

/// Why all of these topics are refused, if they are more than the node's limits allow. A topic that is there, or could
/// not be in any case, is told so. Looked at before memory is taken for their partitions: a few bytes ask for thousands.
fn beyond_limits(shard: &Shard, wanted: &[TopicWanted]) -> Option<Vec<RefusedBecause>> {
    let by_default = shard.node.config.kafka.num_partitions;
    let partitions = wanted
        .iter()
        .map(|topic| usize::try_from(topic.partitions.unwrap_or(by_default)).unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add);
    let beyond = check_limits(shard, wanted.len(), partitions).err()?;
    let catalog = shard.catalog();
    let why = |topic: &TopicWanted| {
        let with_one = TopicWanted { partitions: Some(1), nodes: Vec::new(), ..topic.clone() };
        match catalog.check_new_topic(&new_topic(shard, with_one)) {
            Err(error) => error.into(),
            Ok(()) => beyond.clone(),
        }
    };
    Some(wanted.iter().map(why).collect())
}

/// The node's own limits, which an operator sets to what its memory and disk can bear.
pub(super) fn check_limits(
    shard: &Shard,
    new_topics: usize,
    new_partitions: usize,
) -> Result<(), RefusedBecause> {
    let catalog = shard.catalog();
    let config = &shard.node.config;
    let beyond = |has: usize, adds: usize, limit: u32| {
        has.saturating_add(adds) > usize::try_from(limit).unwrap_or(usize::MAX)
    };
    let why = if beyond(catalog.topics().len(), new_topics, config.kafka.topics_max) {
        "the node has as many topics as kafka.topics_max allows"
    } else if beyond(catalog.partition_count(), new_partitions, config.kafka.partitions_max) {
        "the node has as many partitions as kafka.partitions_max allows"
    } else {
        return Ok(());
    };
    Err(RefusedBecause::Invalid { error: ResponseError::PolicyViolation, why })
}

/// What would become of these topics, without making them.
fn validate(shard: &Shard, wanted: Vec<TopicWanted>) -> Vec<Result<Arc<Topic>, RefusedBecause>> {
    let count = wanted.len();
    if let Some(refused) = beyond_limits(shard, &wanted) {
        return refused.into_iter().map(Err).collect();
    }
    let mut scratch = (*shard.catalog()).clone();
    let topics = new_topics(shard, wanted);
    match scratch.apply(&CatalogCommand::CreateTopics { topics, avoid: Vec::new() }) {
        CommandOutcome::TopicsCreated(results) => {
            results.into_iter().map(|result| result.map_err(RefusedBecause::from)).collect()
        }
        CommandOutcome::Refused(error) => vec![Err(error.into()); count],
        _ => vec![Err(ProduceError::NotLeader.into()); count],
    }
}

fn new_topics(shard: &Shard, wanted: Vec<TopicWanted>) -> Vec<NewTopic> {
    wanted.into_iter().map(|topic| new_topic(shard, topic)).collect()
}

fn new_topic(shard: &Shard, topic: TopicWanted) -> NewTopic {
    let count = topic.partitions.unwrap_or(shard.node.config.kafka.num_partitions);
    let mut partitions = new_partitions(count, topic.replicas);
    place_on(&mut partitions, topic.nodes);
    NewTopic {
        name: topic.name,
        id: TopicId(Uuid::new_v4()),
        internal: false,
        partitions,
        configs: topic.configs,
    }
}

/// One more than the catalog allows is enough for it to refuse; no more is allocated for a number off the wire.
#[expect(
    clippy::disallowed_methods,
    reason = "replica ids are random; the core gets them in the command"
)]
pub(super) fn new_partitions(count: u32, replicas: usize) -> Vec<NewPartition> {
    let most = crate::catalog::TOPIC_PARTITIONS_MAX + 1;
    let count = usize::try_from(count).unwrap_or(most).min(most);
    let mut random = rand::rng();
    let mut replica = || ReplicaId(random.random_range(1..=u64::MAX));
    (0..count)
        .map(|_| NewPartition {
            replicas: (0..replicas).map(|_| replica()).collect(),
            nodes: Vec::new(),
        })
        .collect()
}

/// Says where new partitions are to be; nothing where nobody has said so.
pub(super) fn place_on(partitions: &mut [NewPartition], nodes: Vec<Vec<NodeId>>) {
    for (partition, nodes) in partitions.iter_mut().zip(nodes) {
        partition.nodes = nodes;
    }
}

/// Brokers' ids that are known to be right.
pub(super) fn node_ids(brokers: &[BrokerId]) -> Vec<NodeId> {
    brokers.iter().map(|broker| NodeId(broker.0.unsigned_abs())).collect()
}

/// The nodes that are missing, as far as is known here.
pub(super) fn nodes_down(shard: &Shard) -> Vec<NodeId> {
    let Some(links) = shard.links() else { return Vec::new() };
    let catalog = shard.catalog();
    let others = catalog.brokers().map(|broker| broker.node);
    let others = others.filter(|node| *node != shard.node.config.node_id);
    others.filter(|node| links.peers().is_missing(*node)).collect()
}

fn created(shard: &Shard, topic: &Topic) -> CreatableTopicResult {
    let partitions = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let replicas = topic.partitions.first().map_or(0, |partition| partition.replicas.len());
    CreatableTopicResult::default()
        .with_name(StrBytes::from_string(topic.name.to_string()).into())
        .with_topic_id(topic.id.0)
        .with_error_message(None)
        .with_num_partitions(partitions)
        .with_replication_factor(i16::try_from(replicas).unwrap_or(i16::MAX))
        .with_configs(Some(described_configs(shard, topic)))
}

fn described_configs(shard: &Shard, topic: &Topic) -> Vec<CreatableTopicConfigs> {
    let told = configs::of_topic(shard, topic).into_iter();
    told.map(|(name, value, source)| {
        CreatableTopicConfigs::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(value.map(StrBytes::from_string))
            .with_config_source(source)
    })
    .collect()
}

fn refused(asked: &CreatableTopic, why: &RefusedBecause) -> CreatableTopicResult {
    CreatableTopicResult::default()
        .with_name(asked.name.clone())
        .with_error_code(why.response_error().code())
        .with_error_message(Some(StrBytes::from_string(why.to_string())))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
}
