//! DescribeCluster, DescribeTopicPartitions and DescribeProducers: what there is, for administrators.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, ShardId};
use futures_util::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, DescribeClusterRequest, DescribeClusterResponse, DescribeProducersRequest,
    DescribeProducersResponse, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse,
    ProducerId, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::error_code::fetch_error;
use super::metadata::{Known, broker_id};
use super::operations::{self, Resource};
use super::routing::{Route, RouteError};
use crate::catalog::{Topic, topic_name_problem};
use crate::core::FetchError;
use crate::core::producers::ProducerView;
use crate::shell::barrier::Leading;
use crate::shell::shard::Shard;

/// Which endpoints a client of DescribeCluster wants to hear of: those of the brokers.
const ENDPOINT_BROKERS: i8 = 1;
/// Those of the controllers, for which there is no port of their own.
const ENDPOINT_CONTROLLERS: i8 = 2;

/// Partitions that one answer to DescribeTopicPartitions holds at most: Kafka's max.request.partition.size.limit.
const PARTITIONS_PER_ANSWER_MAX: usize = 2_000;

/// Serves DescribeCluster.
pub fn describe_cluster(
    shard: &Shard,
    version: i16,
    request: DescribeClusterRequest,
) -> DescribeClusterResponse {
    let catalog = shard.catalog();
    let asked = request.include_cluster_authorized_operations;
    let response = DescribeClusterResponse::default()
        .with_cluster_authorized_operations(operations::NOT_ASKED_FOR)
        .with_controller_id(BrokerId(-1));
    // The field came with version 1; before, only brokers could be asked for.
    let endpoint = if version >= 1 { request.endpoint_type } else { ENDPOINT_BROKERS };
    let refused = match endpoint {
        ENDPOINT_BROKERS => None,
        ENDPOINT_CONTROLLERS => Some((
            ResponseError::MismatchedEndpointType,
            "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER"
                .to_owned(),
        )),
        other => Some((
            ResponseError::UnsupportedEndpointType,
            format!("Unsupported endpoint type {other}"),
        )),
    };
    if let Some((error, why)) = refused {
        return response
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_string(why)));
    }
    let brokers = catalog.brokers().map(|broker| {
        DescribeClusterBroker::default()
            .with_broker_id(broker_id(broker.node.0))
            .with_host(StrBytes::from_string(broker.host.clone()))
            .with_port(i32::from(broker.port))
            .with_rack(broker.rack.clone().map(StrBytes::from_string))
    });
    response
        .with_endpoint_type(ENDPOINT_BROKERS)
        .with_cluster_authorized_operations(operations::authorized(Resource::Cluster, asked))
        .with_cluster_id(StrBytes::from_string(shard.node.cluster_id.clone()))
        .with_controller_id(broker_id(shard.node.config.node_id.0))
        .with_brokers(brokers.collect())
}

/// What of a topic is told: the partitions from `first` on, so many of them.
struct Part {
    topic: Arc<Topic>,
    first: usize,
    count: usize,
}

/// One topic of the answer: a part of it, or an error in its place.
enum Described {
    Part(Part),
    Error(TopicName, ResponseError),
}

/// A page of topics and where the next one begins.
struct Page {
    topics: Vec<Described>,
    next: Option<(String, usize)>,
}

/// Serves DescribeTopicPartitions, in pages of a bounded number of partitions. Cancel-safe.
pub async fn describe_topic_partitions(
    shard: Rc<Shard>,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    if is_beside_the_topics(&request) {
        return cursor_refused(request);
    }
    let page = page(&shard, &request);
    let parts = page.topics.iter().filter_map(|described| match described {
        Described::Part(part) => Some(&*part.topic),
        Described::Error(..) => None,
    });
    let known = Known::of(&shard, parts).await;
    let topics = page.topics.into_iter().map(|described| match described {
        Described::Part(part) => describe_part(&part, &known),
        Described::Error(name, error) => DescribeTopicPartitionsResponseTopic::default()
            .with_error_code(error.code())
            .with_name(Some(name))
            .with_topic_authorized_operations(every_operation()),
    });
    let next = page.next.map(|(topic, partition)| {
        Cursor::default()
            .with_topic_name(StrBytes::from_string(topic).into())
            .with_partition_index(i32::try_from(partition).unwrap_or(i32::MAX))
    });
    DescribeTopicPartitionsResponse::default().with_topics(topics.collect()).with_next_cursor(next)
}

/// Whether the cursor is in no topic that is asked for, or before its first partition.
fn is_beside_the_topics(request: &DescribeTopicPartitionsRequest) -> bool {
    let Some(cursor) = &request.cursor else { return false };
    let names = || request.topics.iter().map(|topic| &topic.name);
    let is_asked_for = request.topics.is_empty() || names().any(|name| *name == cursor.topic_name);
    !is_asked_for || cursor.partition_index < 0
}

/// An error in the place of each topic: the answer has none for all of it.
fn cursor_refused(request: DescribeTopicPartitionsRequest) -> DescribeTopicPartitionsResponse {
    let topics = request.topics.into_iter().map(|topic| {
        DescribeTopicPartitionsResponseTopic::default()
            .with_error_code(ResponseError::InvalidRequest.code())
            .with_name(Some(topic.name))
            .with_topic_authorized_operations(operations::NOT_ASKED_FOR)
    });
    DescribeTopicPartitionsResponse::default().with_topics(topics.collect()).with_next_cursor(None)
}

/// The topics asked for in the order of their names, from the cursor on, until the page is full.
fn page(shard: &Shard, request: &DescribeTopicPartitionsRequest) -> Page {
    let catalog = shard.catalog();
    let names: BTreeSet<&str> = if request.topics.is_empty() {
        catalog.topics().map(|topic| &*topic.name).collect()
    } else {
        request.topics.iter().map(|topic| topic.name.as_str()).collect()
    };
    let (cursor, cursor_partition) = match &request.cursor {
        Some(cursor) => {
            (cursor.topic_name.as_str(), usize::try_from(cursor.partition_index).unwrap_or(0))
        }
        None => ("", 0),
    };
    let limit = usize::try_from(request.response_partition_limit).unwrap_or(0);
    let mut room = limit.clamp(1, PARTITIONS_PER_ANSWER_MAX);
    let mut topics = Vec::new();
    for name in names.range(cursor..) {
        let Some(topic) = catalog.topic(name) else {
            let error = match topic_name_problem(name) {
                Some(_) => ResponseError::InvalidTopicException,
                None => ResponseError::UnknownTopicOrPartition,
            };
            let name = StrBytes::from_string((*name).to_owned()).into();
            topics.push(Described::Error(name, error));
            continue;
        };
        let first = if *name == cursor { cursor_partition } else { 0 };
        if room == 0 {
            return Page { topics, next: Some(((*name).to_owned(), first)) };
        }
        let left = topic.partitions.len().saturating_sub(first);
        let count = left.min(room);
        room -= count;
        topics.push(Described::Part(Part { topic: Arc::clone(topic), first, count }));
        if count < left {
            return Page { topics, next: Some(((*name).to_owned(), first + count)) };
        }
    }
    Page { topics, next: None }
}

fn describe_part(part: &Part, known: &Known) -> DescribeTopicPartitionsResponseTopic {
    let numbered = (0..).zip(&part.topic.partitions).skip(part.first).take(part.count);
    let partitions = numbered.map(|(number, partition)| {
        let nodes = known.nodes(partition);
        let described = DescribeTopicPartitionsResponsePartition::default()
            .with_partition_index(number)
            .with_replica_nodes(nodes.replicas)
            .with_isr_nodes(nodes.in_sync)
            .with_offline_replicas(nodes.offline)
            // Replicas that could be elected without being in sync: a quorum needs none.
            .with_eligible_leader_replicas(Some(Vec::new()))
            .with_last_known_elr(Some(Vec::new()));
        match known.leaders.get(&partition.group) {
            Some(leader) => {
                described.with_leader_id(broker_id(leader.node.0)).with_leader_epoch(leader.epoch)
            }
            None => described
                .with_leader_id(BrokerId(-1))
                .with_error_code(ResponseError::LeaderNotAvailable.code()),
        }
    });
    DescribeTopicPartitionsResponseTopic::default()
        .with_name(Some(StrBytes::from_string(part.topic.name.to_string()).into()))
        .with_topic_id(part.topic.id.0)
        .with_is_internal(part.topic.internal)
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(every_operation())
}

/// DescribeTopicPartitions has no field to ask for operations with.
fn every_operation() -> i32 {
    operations::authorized(Resource::Topic, true)
}

type ProducersFound = Result<Vec<ProducerView>, FetchError>;

/// Serves DescribeProducers. A partition that is named again is answered once. Cancel-safe.
pub async fn describe_producers(
    shard: Rc<Shard>,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let catalog = shard.catalog();
    let node = shard.node.config.node_id;
    let mut asked: BTreeMap<TopicName, BTreeMap<i32, Result<Route, ResponseError>>> =
        BTreeMap::new();
    for topic in request.topics {
        let missing = match topic_name_problem(&topic.name) {
            Some(_) => ResponseError::InvalidTopicException,
            None => RouteError::UnknownTopicOrPartition.response_error(),
        };
        let found = catalog.topic(&topic.name);
        let numbers = topic.partition_indexes.into_iter().map(|number| {
            let route = found.ok_or(missing).and_then(|topic| {
                Route::of(topic, number, node).map_err(RouteError::response_error)
            });
            (number, route)
        });
        asked.entry(topic.name.clone()).or_default().extend(numbers);
    }
    let mut by_shard: BTreeMap<ShardId, Vec<GroupId>> = BTreeMap::new();
    for route in asked.values().flat_map(BTreeMap::values).flatten() {
        by_shard.entry(route.shard).or_default().push(route.group);
    }
    let answers = by_shard.into_iter().map(|(target, groups)| {
        shard.on(target, move |there| {
            let leading = groups.into_iter().map(|group| (group, there.still_leads(group)));
            let leading: Vec<(GroupId, Leading)> = leading.collect();
            async move {
                let mut found: Vec<(GroupId, ProducersFound)> = Vec::with_capacity(leading.len());
                for (group, leading) in leading {
                    let known = leading.known().await;
                    let producers =
                        known.and_then(|()| there.with_core(|core| core.producers_of(group)));
                    found.push((group, producers));
                }
                found
            }
        })
    });
    let mut found: BTreeMap<GroupId, ProducersFound> =
        join_all(answers).await.into_iter().filter_map(Result::ok).flatten().collect();
    let topics = asked.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(number, route)| {
            let producers = route.and_then(|route| {
                let found = found.remove(&route.group).unwrap_or(Err(FetchError::NotLeader));
                found.map_err(|error| fetch_error(&error))
            });
            producers_answer(number, producers)
        });
        TopicResponse::default().with_name(name).with_partitions(partitions.collect())
    });
    DescribeProducersResponse::default().with_topics(topics.collect())
}

fn producers_answer(
    number: i32,
    producers: Result<Vec<ProducerView>, ResponseError>,
) -> PartitionResponse {
    let answer = PartitionResponse::default().with_partition_index(number);
    match producers {
        Ok(producers) => {
            let producers = producers.into_iter().map(|producer| {
                ProducerState::default()
                    .with_producer_id(ProducerId(producer.producer_id))
                    .with_producer_epoch(i32::from(producer.epoch))
                    .with_last_sequence(producer.last_sequence)
                    .with_last_timestamp(producer.active_ms)
                    .with_coordinator_epoch(-1)
                    .with_current_txn_start_offset(-1)
            });
            answer.with_active_producers(producers.collect())
        }
        Err(error) => answer.with_error_code(error.code()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::describe_topic_partitions_request::{
        Cursor as AskedCursor, TopicRequest,
    };

    #[test]
    fn given_a_cursor_beside_the_topics_when_asked_then_each_topic_is_refused() {
        let name = |name| TopicName(StrBytes::from_static_str(name));
        let request = |topic, partition| {
            let cursor =
                AskedCursor::default().with_topic_name(name(topic)).with_partition_index(partition);
            let topics = ["a", "b"].map(|topic| TopicRequest::default().with_name(name(topic)));
            DescribeTopicPartitionsRequest::default()
                .with_topics(topics.to_vec())
                .with_cursor(Some(cursor))
        };
        assert!(!is_beside_the_topics(&request("b", 3)));
        assert!(is_beside_the_topics(&request("a", -1)));
        assert!(is_beside_the_topics(&request("c", 0)));
        assert!(!is_beside_the_topics(&request("c", 0).with_topics(Vec::new())));
        let refused = cursor_refused(request("c", 0)).topics;
        let told: Vec<_> = refused.iter().map(|topic| (&topic.name, topic.error_code)).collect();
        assert_eq!(told, [(&Some(name("a")), 42), (&Some(name("b")), 42)]);
    }
}
