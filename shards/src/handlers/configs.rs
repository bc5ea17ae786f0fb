//! DescribeConfigs, AlterConfigs, IncrementalAlterConfigs and ListConfigResources.
//!
//! Topics and brokers have configurations. Groups and client metrics have none here: they are answered as Kafka answers
//! for one that was never configured, and what is set on them is a configuration of no known name. What loggers write is
//! said where a broker is started, and refused here.
//!
//! - I1: a value that promises what the broker does not do is refused (`rules`): silence would be a lie. What only tunes
//!   Kafka's own files is taken and has no effect; `docs/compatibility.md` lists it.
//! - I2: what a resource is changed to is all or nothing; resources stand for themselves.

use std::collections::BTreeSet;

use chronik_engine::ids::NodeId;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::DescribeConfigsResult;
use kafka_protocol::messages::list_config_resources_response::ConfigResource;
use kafka_protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, ListConfigResourcesRequest,
    ListConfigResourcesResponse,
};
use kafka_protocol::protocol::StrBytes;

use self::entry::Entry;
use crate::catalog::{Topic, topic_name_problem};
use crate::shell::shard::Shard;

mod alter;
mod broker;
mod docs;
mod entry;
pub(super) mod rules;
mod topic;

pub use alter::{alter, alter_incrementally};

/// What the configurations of a topic come to: name, value, and where that comes from by Kafka's number.
pub(super) fn of_topic(shard: &Shard, topic: &Topic) -> Vec<(&'static str, Option<String>, i8)> {
    let told = |entry: Entry| (entry.name, entry.value, entry.source.wire());
    topic::entries(shard, topic).into_iter().map(told).collect()
}

/// A refusal: Kafka's name for it, and what a person reads.
type Refusal = (ResponseError, String);

/// What a configuration belongs to, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResourceType {
    Topic,
    Broker,
    BrokerLogger,
    ClientMetrics,
    Group,
}

impl ResourceType {
    const ALL: [ResourceType; 5] = [
        ResourceType::Topic,
        ResourceType::Broker,
        ResourceType::BrokerLogger,
        ResourceType::ClientMetrics,
        ResourceType::Group,
    ];

    fn wire(self) -> i8 {
        match self {
            ResourceType::Topic => 2,
            ResourceType::Broker => 4,
            ResourceType::BrokerLogger => 8,
            ResourceType::ClientMetrics => 16,
            ResourceType::Group => 32,
        }
    }

    fn from_wire(number: i8) -> Result<ResourceType, Refusal> {
        let found = ResourceType::ALL.into_iter().find(|known| known.wire() == number);
        found.ok_or_else(|| invalid("Unsupported resource type: UNKNOWN"))
    }
}

fn invalid(why: impl Into<String>) -> Refusal {
    (ResponseError::InvalidRequest, why.into())
}

/// Why the loggers of a broker are no resource.
const LOGGERS: &str = "The loggers of a broker are set where it is started, by RUST_LOG.";

/// The broker that a resource names: this one, or with an empty name all of them.
fn named_broker(shard: &Shard, name: &str) -> Result<Option<NodeId>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    let here = shard.node.config.node_id;
    match name.parse::<i32>() {
        Ok(id) if i64::from(id) == i64::from(here.0) => Ok(Some(here)),
        Ok(id) => Err(invalid(format!(
            "Unexpected broker id, expected {here} or empty string, but received {id}"
        ))),
        Err(_) => Err(invalid(format!("Broker id must be an integer, but it is: {name}"))),
    }
}

/// Serves DescribeConfigs. A resource that is named again is answered once, as an answer is much longer than a name.
pub fn describe(
    shard: &Shard,
    version: i16,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let mut seen = BTreeSet::new();
    let resources = request
        .resources
        .into_iter()
        .filter(|asked| seen.insert((asked.resource_type, asked.resource_name.clone())));
    let results = resources.map(|asked| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(asked.resource_type)
            .with_resource_name(asked.resource_name.clone());
        match entries(shard, &asked) {
            Ok(entries) => {
                let configs = entries.into_iter().map(|entry| {
                    let synonyms = request.include_synonyms;
                    entry.into_result(version, synonyms, request.include_documentation)
                });
                result.with_error_message(None).with_configs(configs.collect())
            }
            Err((error, why)) => result
                .with_error_code(error.code())
                .with_error_message(Some(StrBytes::from_string(why))),
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

/// The configurations of one resource, those of them that are asked for.
fn entries(shard: &Shard, asked: &DescribeConfigsResource) -> Result<Vec<Entry>, Refusal> {
    let name = asked.resource_name.as_str();
    let needs_name = |what: &str| {
        if name.is_empty() { Err(invalid(format!("{what} must not be empty"))) } else { Ok(()) }
    };
    let mut entries = match ResourceType::from_wire(asked.resource_type)? {
        ResourceType::Topic => topic_entries(shard, name)?,
        ResourceType::Broker => match named_broker(shard, name)? {
            Some(node) => broker::entries(shard, node),
            None => broker::cluster_entries(shard),
        },
        ResourceType::BrokerLogger => {
            needs_name("Broker id")?;
            if named_broker(shard, name).is_err() {
                let here = shard.node.config.node_id;
                let why = format!("Unexpected broker id, expected {here} but received {name}");
                return Err(invalid(why));
            }
            return Err(invalid(LOGGERS));
        }
        ResourceType::ClientMetrics => {
            needs_name("Client metrics subscription name")?;
            Vec::new()
        }
        ResourceType::Group => {
            needs_name("Group name")?;
            Vec::new()
        }
    };
    if let Some(keys) = &asked.configuration_keys
        && !keys.is_empty()
    {
        let keys: BTreeSet<&str> = keys.iter().map(StrBytes::as_str).collect();
        entries.retain(|entry| keys.contains(entry.name));
    }
    Ok(entries)
}

fn topic_entries(shard: &Shard, name: &str) -> Result<Vec<Entry>, Refusal> {
    if let Some(problem) = topic_name_problem(name) {
        let why = format!("Topic name is invalid: {problem}");
        return Err((ResponseError::InvalidTopicException, why));
    }
    match shard.catalog().topic(name) {
        Some(topic) => Ok(topic::entries(shard, topic)),
        None => {
            let why = "This server does not host this topic-partition.".to_owned();
            Err((ResponseError::UnknownTopicOrPartition, why))
        }
    }
}

/// Serves ListConfigResources (KIP-1142): the resources that can have configurations.
pub fn list_resources(
    shard: &Shard,
    version: i16,
    request: ListConfigResourcesRequest,
) -> ListConfigResourcesResponse {
    // Before version 1 only the subscriptions of client metrics could be asked for.
    let wanted: Vec<i8> = match version {
        0 => vec![ResourceType::ClientMetrics.wire()],
        _ if request.resource_types.is_empty() => {
            ResourceType::ALL.iter().map(|kind| kind.wire()).collect()
        }
        _ => request.resource_types,
    };
    let known = |kind: &i8| ResourceType::from_wire(*kind).is_ok();
    if !wanted.iter().all(known) {
        return ListConfigResourcesResponse::default()
            .with_error_code(ResponseError::UnsupportedVersion.code());
    }
    let catalog = shard.catalog();
    let mut resources = Vec::new();
    let mut add = |kind: ResourceType, name: String| {
        let resource = ConfigResource::default().with_resource_name(StrBytes::from_string(name));
        resources.push(match version {
            0 => resource,
            _ => resource.with_resource_type(kind.wire()),
        });
    };
    for kind in ResourceType::ALL.into_iter().filter(|kind| wanted.contains(&kind.wire())) {
        match kind {
            ResourceType::Topic => {
                catalog.topics().for_each(|topic| add(kind, topic.name.to_string()));
            }
            ResourceType::Broker => {
                catalog.brokers().for_each(|broker| add(kind, broker.node.to_string()));
            }
            ResourceType::BrokerLogger | ResourceType::ClientMetrics | ResourceType::Group => {}
        }
    }
    ListConfigResourcesResponse::default().with_config_resources(resources)
}
