//! Metadata: the brokers, the topics and who leads their partitions; topics asked for by name are made on the way where
//! that is allowed.
//!
//! - I1: a node to which leaders send consumers is among a partition's replicas here, since Kafka's Java client goes to no other.
//!   A read-only one stands in both lists, replicas and those in sync, or in neither: it is nothing that a partition can lack.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, NodeId};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::each_once;
use super::operations::{self, Resource};
use super::replicas;
use super::topics::{self, RefusedBecause, TopicWanted};
use crate::catalog::{Catalog, Partition, Topic, TopicId, topic_name_problem};
use crate::shell::cluster::in_sync::{InSyncView, in_sync_of};
use crate::shell::cluster::leaders::{Leader, hears_majority, leaders_of};
use crate::shell::shard::Shard;

/// How long a client is kept waiting for a topic that is made on its way; it asks again.
const AUTO_CREATE_WAIT: Duration = Duration::from_secs(5);

/// One topic of the answer: known, or an error in its place.
enum Found {
    Topic(std::sync::Arc<Topic>),
    Error { name: Option<StrBytes>, id: uuid::Uuid, error: ResponseError },
}

/// Serves Metadata. Cancel-safe; a topic whose creation has begun is made.
pub async fn metadata(
    shard: Rc<Shard>,
    version: i16,
    request: MetadataRequest,
) -> MetadataResponse {
    let asks_of_cluster = request.include_cluster_authorized_operations;
    let asks_of_topics = request.include_topic_authorized_operations;
    let found = find(&shard, version, request).await;
    let catalog = shard.catalog();
    let topics = found.iter().filter_map(|found| match found {
        Found::Topic(topic) => Some(&**topic),
        Found::Error { .. } => None,
    });
    let known = Known::of(&shard, topics).await;
    let here = shard.node.config.node_id;
    // A client asks whom it has asked before. One that only a cut-off node answers would never hear of the leaders that
    // the others have, so such a node does not name itself, and the client turns to the others.
    let is_of_use = known.leads(here) || hears_majority(&shard).await;
    let operations = operations::authorized(Resource::Topic, asks_of_topics);
    let topics = found
        .into_iter()
        .map(|found| describe(version, found, &known).with_topic_authorized_operations(operations));
    let topics = topics.collect();
    let brokers = catalog
        .brokers()
        .filter(|broker| is_of_use || broker.node != here)
        .map(|broker| {
            MetadataResponseBroker::default()
                .with_node_id(broker_id(broker.node.0))
                .with_host(StrBytes::from_string(broker.host.clone()))
                .with_port(i32::from(broker.port))
                .with_rack(broker.rack.clone().map(StrBytes::from_string))
        })
        .collect();
    MetadataResponse::default()
        .with_brokers(brokers)
        .with_cluster_id(Some(StrBytes::from_string(shard.node.cluster_id.clone())))
        .with_controller_id(broker_id(shard.node.config.node_id.0))
        .with_topics(topics)
        .with_cluster_authorized_operations(operations::authorized(
            Resource::Cluster,
            asks_of_cluster,
        ))
}

pub(super) fn broker_id(node: u32) -> BrokerId {
    BrokerId(i32::try_from(node).unwrap_or(-1))
}

/// The topics that the request names, or all of them.
async fn find(shard: &Rc<Shard>, version: i16, request: MetadataRequest) -> Vec<Found> {
    let catalog = shard.catalog();
    let named = match request.topics {
        // In version 0 an empty list asks for all; from 1 on that is what null means.
        None => return catalog.topics().cloned().map(Found::Topic).collect(),
        Some(topics) if topics.is_empty() && version == 0 => {
            return catalog.topics().cloned().map(Found::Topic).collect();
        }
        Some(topics) => topics,
    };
    let may_create = shard.node.config.kafka.auto_create_topics_enable
        && (version < 4 || request.allow_auto_topic_creation);
    let named = each_once(named, name_of);
    let mut found: Vec<Found> = named.into_iter().map(|topic| find_one(&catalog, topic)).collect();
    if may_create {
        create_missing(shard, &mut found).await;
    }
    found
}

/// By what a topic is looked for: its name, or its id where it is asked for without one.
fn name_of(asked: &MetadataRequestTopic) -> (Option<TopicName>, uuid::Uuid) {
    let id = if asked.name.is_some() { uuid::Uuid::nil() } else { asked.topic_id };
    (asked.name.clone(), id)
}

fn find_one(catalog: &Catalog, asked: MetadataRequestTopic) -> Found {
    let id = asked.topic_id;
    match asked.name {
        Some(name) => match catalog.topic(&name) {
            Some(topic) => Found::Topic(std::sync::Arc::clone(topic)),
            None if topic_name_problem(&name).is_some() => {
                Found::Error { name: Some(name.0), id, error: ResponseError::InvalidTopicException }
            }
            None => Found::Error {
                name: Some(name.0),
                id,
                error: ResponseError::UnknownTopicOrPartition,
            },
        },
        None => match catalog.topic_by_id(TopicId(id)) {
            Some(topic) => Found::Topic(std::sync::Arc::clone(topic)),
            None => Found::Error { name: None, id, error: ResponseError::UnknownTopicId },
        },
    }
}

/// Makes the topics that were asked for by name and are not there.
async fn create_missing(shard: &Rc<Shard>, found: &mut [Found]) {
    let mut missing: Vec<(usize, String)> = Vec::new();
    for (at, topic) in found.iter().enumerate() {
        if let Found::Error {
            name: Some(name),
            error: ResponseError::UnknownTopicOrPartition,
            ..
        } = topic
        {
            missing.push((at, name.to_string()));
        }
    }
    if missing.is_empty() {
        return;
    }
    let names = missing.iter().map(|(_, name)| name.clone());
    let wanted: Result<Vec<TopicWanted>, RefusedBecause> =
        names.map(|name| TopicWanted::with_defaults(shard, name)).collect();
    let created = match wanted {
        Ok(wanted) => topics::create(shard, wanted, AUTO_CREATE_WAIT).await,
        Err(why) => {
            // Clients tell nobody more than a code, and many only ask again until their patience ends.
            shard.complain_of_topics(format!(
                "no topic is made for clients that name one which is not there: {why} {}",
                replicas::MORE_NODES
            ));
            vec![Err(why); missing.len()]
        }
    };
    for ((at, name), result) in missing.into_iter().zip(created) {
        let catalog = shard.catalog();
        found[at] = match (catalog.topic(&name), result) {
            // Somebody else may have made it at the same time: there it is.
            (Some(topic), _) => Found::Topic(std::sync::Arc::clone(topic)),
            (None, result) => Found::Error {
                name: Some(StrBytes::from_string(name)),
                id: uuid::Uuid::nil(),
                error: result
                    .map_or_else(|why| not_made(&why), |_| ResponseError::LeaderNotAvailable),
            },
        };
    }
}

/// What a client is told of a topic that was not made on its way. Where it may be made yet, it asks again: also while nodes of the
/// list are still to come. That there are too few nodes otherwise somebody has to mend.
fn not_made(why: &RefusedBecause) -> ResponseError {
    match why.response_error() {
        ResponseError::NotController | ResponseError::RequestTimedOut => {
            ResponseError::LeaderNotAvailable
        }
        _ if matches!(why, RefusedBecause::ToCome { .. }) => ResponseError::LeaderNotAvailable,
        error => error,
    }
}

/// What is known of partitions beyond the catalog.
pub(super) struct Known {
    pub(super) leaders: BTreeMap<GroupId, Leader>,
    in_sync: InSyncView,
}

/// The nodes of a partition's replicas, as clients are told.
pub(super) struct Nodes {
    pub(super) replicas: Vec<BrokerId>,
    pub(super) in_sync: Vec<BrokerId>,
    pub(super) offline: Vec<BrokerId>,
}

impl Known {
    /// Gathers it for the partitions of these topics. Cancel-safe.
    pub(super) async fn of<'a>(
        shard: &Rc<Shard>,
        topics: impl Iterator<Item = &'a Topic> + Clone,
    ) -> Known {
        let leaders = leaders_of(shard, topics.clone()).await;
        Known { leaders, in_sync: in_sync_of(shard, topics).await }
    }

    /// Whether a node leads any of the partitions.
    fn leads(&self, node: NodeId) -> bool {
        self.leaders.values().any(|leader| leader.node == node)
    }

    /// The read-only nodes to which consumers of a partition may be sent.
    fn readers<'a>(&'a self, partition: &'a Partition) -> impl Iterator<Item = BrokerId> + 'a {
        self.in_sync.readers(partition).map(|node| broker_id(node.0))
    }

    /// Of the replicas that vote.
    pub(super) fn nodes(&self, partition: &Partition) -> Nodes {
        let ids = |nodes: &mut dyn Iterator<Item = NodeId>| nodes.map(|n| broker_id(n.0)).collect();
        Nodes {
            replicas: ids(&mut partition.replicas.iter().map(|replica| replica.node)),
            in_sync: ids(&mut self.in_sync.in_sync(partition)),
            offline: ids(&mut self.in_sync.offline(partition)),
        }
    }
}

fn describe(version: i16, found: Found, known: &Known) -> MetadataResponseTopic {
    // A topic asked for by an id that is not known has no name, which can be said from version 12 on.
    let nameless = || (version < 12).then(StrBytes::default);
    match found {
        Found::Error { name, id, error } => MetadataResponseTopic::default()
            .with_error_code(error.code())
            .with_name(name.or_else(nameless).map(Into::into))
            .with_topic_id(id),
        Found::Topic(topic) => MetadataResponseTopic::default()
            .with_name(Some(StrBytes::from_string(topic.name.to_string()).into()))
            .with_topic_id(topic.id.0)
            .with_is_internal(topic.internal)
            .with_partitions(describe_partitions(&topic, known)),
    }
}

fn describe_partitions(topic: &Topic, known: &Known) -> Vec<MetadataResponsePartition> {
    (0..)
        .zip(&topic.partitions)
        .map(|(number, partition)| {
            let mut nodes = known.nodes(partition);
            for reader in known.readers(partition) {
                nodes.replicas.push(reader); // I1
                nodes.in_sync.push(reader);
            }
            let described = MetadataResponsePartition::default()
                .with_partition_index(number)
                .with_replica_nodes(nodes.replicas)
                .with_isr_nodes(nodes.in_sync)
                .with_offline_replicas(nodes.offline);
            match known.leaders.get(&partition.group) {
                Some(leader) => described
                    .with_leader_id(broker_id(leader.node.0))
                    .with_leader_epoch(leader.epoch),
                None => described
                    .with_leader_id(BrokerId(-1))
                    .with_leader_epoch(-1)
                    .with_error_code(ResponseError::LeaderNotAvailable.code()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogError;

    #[test]
    fn given_a_topic_that_cannot_be_made_now_when_asked_for_then_the_client_is_to_ask_again_if_it_may_be_yet()
     {
        let why = RefusedBecause::Log(crate::core::ProduceError::NotLeader);
        assert_eq!(not_made(&why), ResponseError::LeaderNotAvailable);
        let lacking = CatalogError::InvalidReplicationFactor { replicas: 3, brokers: 2 };
        let why = RefusedBecause::ToCome { lacking: lacking.clone(), to_come: vec![NodeId(3)] };
        assert_eq!(not_made(&why), ResponseError::LeaderNotAvailable);
        assert_eq!(not_made(&lacking.into()), ResponseError::InvalidReplicationFactor, "for good");
        let why = RefusedBecause::Log(crate::core::ProduceError::StorageFull);
        assert_eq!(not_made(&why), ResponseError::KafkaStorageError);
    }

    #[test]
    fn given_topics_named_again_when_looked_for_then_each_counts_once_in_its_place() {
        let by_name = |name| {
            let name = StrBytes::from_static_str(name);
            MetadataRequestTopic::default().with_name(Some(name.into()))
        };
        let by_id = |id| {
            let topic = MetadataRequestTopic::default().with_name(None);
            topic.with_topic_id(uuid::Uuid::from_u128(id))
        };
        // A name counts, whatever id stands beside it.
        let with_id = by_name("b").with_topic_id(uuid::Uuid::from_u128(7));
        let asked = vec![by_name("b"), by_id(1), by_name("a"), with_id, by_id(2), by_id(1)];
        let once = [by_name("b"), by_id(1), by_name("a"), by_id(2)];
        assert_eq!(each_once(asked, name_of), once);
    }
}
