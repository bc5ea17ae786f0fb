//! CreatePartitions: topics grow. A partition that is there keeps its records, its offsets and its place.

use std::rc::Rc;

use chronik_engine::ids::NodeId;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::{BrokerId, CreatePartitionsRequest, CreatePartitionsResponse};
use kafka_protocol::protocol::StrBytes;

use super::change::{change_within, wait_of};
use super::error_code::catalog_error;
use super::topics::{check_limits, new_partitions, node_ids, nodes_down, place_on, repeated};
use crate::catalog::{Catalog, CatalogCommand, CommandOutcome, Topic};
use crate::shell::shard::Shard;

/// Partitions that one request may add to a topic, as in Kafka.
const ADDED_MAX: usize = 10_000;

const LATE: &str = "the partitions were not ready in time; they may be made yet";

/// A refusal: Kafka's name for it, and what a person reads.
pub(super) type Refusal = (ResponseError, String);

/// Serves CreatePartitions: each topic for itself, one after the other. Cancel-safe; what was proposed is made.
pub async fn create_partitions(
    shard: Rc<Shard>,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let repeated = repeated(request.topics.iter().map(|topic| topic.name.to_string()));
    let wait = wait_of(request.timeout_ms);
    let mut results: Vec<CreatePartitionsTopicResult> = Vec::with_capacity(request.topics.len());
    let mut told = std::collections::BTreeSet::new();
    for topic in &request.topics {
        let grown = if repeated.contains(topic.name.as_str()) {
            if !told.insert(topic.name.clone()) {
                continue;
            }
            Err((ResponseError::InvalidRequest, "Duplicate topic name.".to_owned()))
        } else {
            match wanted(&shard, topic) {
                Ok(command) if request.validate_only => validate(&shard, &command),
                Ok(command) => change_within(&shard, command, wait, LATE).await.map(drop),
                Err(refusal) => Err(refusal),
            }
        };
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        results.push(match grown {
            Ok(()) => result.with_error_message(None),
            Err((error, why)) => result
                .with_error_code(error.code())
                .with_error_message(Some(StrBytes::from_string(why))),
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

/// What is to be proposed for one topic.
fn wanted(shard: &Shard, asked: &CreatePartitionsTopic) -> Result<CatalogCommand, Refusal> {
    let catalog = shard.catalog();
    let Some(topic) = catalog.topic(&asked.name) else {
        let why = "This server does not host this topic-partition.".to_owned();
        return Err((ResponseError::UnknownTopicOrPartition, why));
    };
    if topic.internal {
        let why = format!("Topic {} is one of the cluster's own.", &*topic.name);
        return Err((ResponseError::InvalidTopicException, why));
    }
    let has = topic.partitions.len();
    let refuse = |why| Err((ResponseError::InvalidPartitions, why));
    let Some(added) = usize::try_from(asked.count).ok().and_then(|count| count.checked_sub(has))
    else {
        return refuse(format!(
            "The topic {} currently has {has} partition(s); {} would not be an increase.",
            &*topic.name, asked.count
        ));
    };
    if added == 0 {
        return refuse(format!("Topic already has {has} partition(s)."));
    }
    if added > ADDED_MAX {
        let why = "Excessively large number of partitions per request.".to_owned();
        return Err((ResponseError::PolicyViolation, why));
    }
    let nodes = assigned_nodes(shard, topic, asked, added)?;
    check_limits(shard, 0, added).map_err(|why| (why.response_error(), why.to_string()))?;
    let added = u32::try_from(added).unwrap_or(u32::MAX);
    let mut partitions = new_partitions(added, replicas_of(topic));
    place_on(&mut partitions, nodes);
    Ok(CatalogCommand::CreatePartitions {
        name: topic.name.to_string(),
        partitions,
        total: asked.count.unsigned_abs(),
        avoid: nodes_down(shard),
    })
}

/// The nodes of each new partition, where the request says so.
fn assigned_nodes(
    shard: &Shard,
    topic: &Topic,
    asked: &CreatePartitionsTopic,
    added: usize,
) -> Result<Vec<Vec<NodeId>>, Refusal> {
    let Some(assignments) = &asked.assignments else { return Ok(Vec::new()) };
    let refuse = |why| Err((ResponseError::InvalidReplicaAssignment, why));
    if assignments.len() != added {
        return refuse(format!(
            "Attempted to add {added} additional partition(s), but only {} assignment(s) were specified.",
            assignments.len()
        ));
    }
    let catalog = shard.catalog();
    for assignment in assignments {
        check_replicas(&catalog, &assignment.broker_ids, Some(replicas_of(topic)))?;
    }
    Ok(assignments.iter().map(|assignment| node_ids(&assignment.broker_ids)).collect())
}

fn replicas_of(topic: &Topic) -> usize {
    topic.partitions.first().map_or(1, |partition| partition.replicas.len())
}

/// Checks the brokers that one partition is to be on. `replicas` is how many the topic's other partitions have.
///
/// # Errors
/// Why they cannot be.
pub(super) fn check_replicas(
    catalog: &Catalog,
    brokers: &[BrokerId],
    replicas: Option<usize>,
) -> Result<(), Refusal> {
    let refuse = |why| Err((ResponseError::InvalidReplicaAssignment, why));
    if brokers.is_empty() {
        let why = "The manual partition assignment includes an empty replica list.";
        return refuse(why.to_owned());
    }
    let mut sorted: Vec<i32> = brokers.iter().map(|broker| broker.0).collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(format!(
            "The manual partition assignment includes the broker {} more than once.",
            pair[0]
        ));
    }
    let known = |broker: i32| catalog.brokers().any(|b| i64::from(b.node.0) == i64::from(broker));
    if let Some(unknown) = sorted.iter().find(|broker| !known(**broker)) {
        return refuse(format!(
            "The manual partition assignment includes broker {unknown}, but no such broker is registered."
        ));
    }
    match replicas {
        Some(replicas) if replicas != brokers.len() => refuse(format!(
            "The manual partition assignment includes a partition with {} replica(s), but this is not \
             consistent with previous partitions, which have {replicas} replica(s).",
            brokers.len()
        )),
        _ => Ok(()),
    }
}

/// What would become of the command, without proposing it.
fn validate(shard: &Shard, command: &CatalogCommand) -> Result<(), Refusal> {
    match (*shard.catalog()).clone().apply(command) {
        CommandOutcome::Refused(error) => Err((catalog_error(&error), error.to_string())),
        _ => Ok(()),
    }
}
