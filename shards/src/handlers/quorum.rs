//! DescribeQuorum: how the quorum of the catalog is, which Kafka knows as the one partition of `__cluster_metadata`; and
//! UnregisterBroker, which takes a broker out of it.

use std::collections::BTreeSet;
use std::rc::Rc;

use chronik_engine::ids::{NodeId, Term};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_quorum_response::{
    Listener, Node, PartitionData, ReplicaState, TopicData,
};
use kafka_protocol::messages::{
    BrokerId, DescribeQuorumRequest, DescribeQuorumResponse, TopicName, UnregisterBrokerRequest,
    UnregisterBrokerResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::change::{CHANGE_WAIT_DEFAULT, change_within};
use super::each_partition_once;
use super::metadata::broker_id;
use super::partitions::Refusal;
use crate::catalog::CatalogCommand;
use crate::shell::cluster::quorum::{Quorum, QuorumReplica};
use crate::shell::read::kafka_epoch;
use crate::shell::shard::Shard;

/// Kafka's name for the log of the catalog.
const METADATA_TOPIC: &str = "__cluster_metadata";

/// Serves DescribeQuorum. Cancel-safe.
pub async fn describe_quorum(
    shard: Rc<Shard>,
    version: i16,
    request: DescribeQuorumRequest,
) -> DescribeQuorumResponse {
    let is_asked = |topic: &str, partition: i32| topic == METADATA_TOPIC && partition == 0;
    let mut asked: Vec<(TopicName, Vec<i32>)> = request
        .topics
        .into_iter()
        .map(|topic| {
            let numbers = topic.partitions.iter().map(|partition| partition.partition_index);
            (topic.topic_name, numbers.collect())
        })
        .collect();
    each_partition_once(&mut asked);
    let mut numbers =
        asked.iter().flat_map(|(name, numbers)| numbers.iter().map(move |n| (name, n)));
    let quorum = match numbers.any(|(topic, number)| is_asked(topic, *number)) {
        true => shard.quorum().await,
        false => None,
    };
    let topics = asked.into_iter().map(|(name, numbers)| {
        let partitions = numbers.into_iter().map(|number| match &quorum {
            _ if !is_asked(&name, number) => {
                refused(number, ResponseError::UnknownTopicOrPartition)
            }
            Some(quorum) => described(quorum),
            None => refused(number, ResponseError::LeaderNotAvailable),
        });
        let partitions = partitions.collect();
        TopicData::default().with_topic_name(name).with_partitions(partitions)
    });
    let response = DescribeQuorumResponse::default().with_topics(topics.collect());
    match quorum {
        Some(quorum) if version >= 2 => response.with_nodes(nodes(&shard, &quorum)),
        _ => response,
    }
}

fn refused(number: i32, error: ResponseError) -> PartitionData {
    PartitionData::default()
        .with_partition_index(number)
        .with_error_code(error.code())
        .with_leader_id(BrokerId(-1))
}

fn described(quorum: &Quorum) -> PartitionData {
    let state = |replica: &QuorumReplica| {
        ReplicaState::default()
            .with_replica_id(replica.node.map_or(BrokerId(-1), |node| broker_id(node.0)))
            .with_log_end_offset(i64::try_from(replica.index).unwrap_or(i64::MAX))
            .with_last_fetch_timestamp(-1)
            .with_last_caught_up_timestamp(-1)
    };
    let of = |votes: bool| quorum.replicas.iter().filter(move |replica| replica.votes == votes);
    PartitionData::default()
        .with_leader_id(broker_id(quorum.leader.0))
        .with_leader_epoch(kafka_epoch(Term(quorum.term)))
        .with_high_watermark(i64::try_from(quorum.committed).unwrap_or(i64::MAX))
        .with_current_voters(of(true).map(state).collect())
        .with_observers(of(false).map(state).collect())
}

/// Where the voters can be reached.
fn nodes(shard: &Shard, quorum: &Quorum) -> Vec<Node> {
    let catalog = shard.catalog();
    let voters: BTreeSet<NodeId> =
        quorum.replicas.iter().filter(|replica| replica.votes).filter_map(|r| r.node).collect();
    let brokers = catalog.brokers().filter(|broker| voters.contains(&broker.node));
    let node = |broker: &std::sync::Arc<crate::catalog::Broker>| {
        let listener = Listener::default()
            .with_name(StrBytes::from_static_str("PLAINTEXT"))
            .with_host(StrBytes::from_string(broker.host.clone()))
            .with_port(broker.port);
        Node::default().with_node_id(broker_id(broker.node.0)).with_listeners(vec![listener])
    };
    brokers.map(node).collect()
}

/// Serves UnregisterBroker. Cancel-safe; what was proposed is done.
pub async fn unregister_broker(
    shard: Rc<Shard>,
    request: UnregisterBrokerRequest,
) -> UnregisterBrokerResponse {
    let response = UnregisterBrokerResponse::default();
    match unregister(&shard, request.broker_id).await {
        Ok(()) => response.with_error_message(None),
        Err((error, why)) => response
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_string(why))),
    }
}

async fn unregister(shard: &Rc<Shard>, broker: BrokerId) -> Result<(), Refusal> {
    let unknown = || {
        let why = format!("Broker {} is not registered.", broker.0);
        (ResponseError::BrokerIdNotRegistered, why)
    };
    let node = NodeId(u32::try_from(broker.0).map_err(|_| unknown())?);
    let is_cordoned = shard.catalog().broker(node).ok_or_else(unknown)?.is_cordoned;
    if is_cordoned && shard.votes_on_catalog(node).await {
        let why = format!(
            "broker {node} still votes on the cluster's metadata; it stops soon after it was drained, while more than half \
             of the others run: ask again then"
        );
        return Err((ResponseError::InvalidRequest, why));
    }
    let command = CatalogCommand::UnregisterBroker { node };
    let late = "the broker was not removed in time; it may be yet";
    change_within(shard, command, CHANGE_WAIT_DEFAULT, late).await.map(drop)
}
