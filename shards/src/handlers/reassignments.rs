//! AlterPartitionReassignments and ListPartitionReassignments: which replicas go where. A move is answered once it is in
//! the catalog; that it is under way is seen in the list, until the partition has the replicas that it is to have.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use chronik_engine::ids::{NodeId, ReplicaId};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use kafka_protocol::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, BrokerId,
    ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};
use kafka_protocol::protocol::StrBytes;
use rand::Rng;

use super::change::{change_within, wait_of};
use super::error_code::catalog_error;
use super::metadata::broker_id;
use super::partitions::Refusal;
use crate::catalog::{
    Catalog, CatalogCommand, CommandOutcome, Partition, PartitionMove, Placement, Topic, TopicRef,
};
use crate::shell::shard::Shard;

/// Replicas that one partition may be given here; the catalog has a limit of its own.
const REPLICAS_MAX: usize = 64;

/// Serves AlterPartitionReassignments: each partition for itself, all in one change of the catalog. Cancel-safe; what was
/// proposed is done.
pub async fn alter_reassignments(
    shard: Rc<Shard>,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let up = shard.nodes_up();
    let catalog = shard.catalog();
    let mut told = BTreeSet::new();
    let mut moves = Vec::new();
    // For each partition its refusal, or the place of its move.
    let checked: Vec<Vec<Result<usize, Refusal>>> = request
        .topics
        .iter()
        .map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                if !told.insert((topic.name.clone(), partition.partition_index)) {
                    let why = "The request names this partition twice.".to_owned();
                    return Err((ResponseError::InvalidRequest, why));
                }
                let may_differ = request.allow_replication_factor_change;
                moves.push(wanted(&catalog, &up, topic, partition, may_differ)?);
                Ok(moves.len() - 1)
            });
            partitions.collect()
        })
        .collect();
    let results = carry_out(&shard, moves, request.timeout_ms).await;
    let responses = request.topics.iter().zip(checked).map(|(topic, checked)| {
        let partitions = topic.partitions.iter().zip(checked).map(|(partition, checked)| {
            let outcome = checked.and_then(|at| match results.get(at) {
                Some(result) => result.clone(),
                None => Err((ResponseError::UnknownServerError, String::new())),
            });
            let response = ReassignablePartitionResponse::default()
                .with_partition_index(partition.partition_index);
            match outcome {
                Ok(()) => response.with_error_message(None),
                Err((error, why)) => response
                    .with_error_code(error.code())
                    .with_error_message(Some(StrBytes::from_string(why))),
            }
        });
        ReassignableTopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    AlterPartitionReassignmentsResponse::default()
        .with_allow_replication_factor_change(request.allow_replication_factor_change)
        .with_error_message(None)
        .with_responses(responses.collect())
}

/// The move of one partition, as far as this node can judge it.
fn wanted(
    catalog: &Catalog,
    up: &BTreeSet<NodeId>,
    topic: &ReassignableTopic,
    partition: &ReassignablePartition,
    may_differ: bool,
) -> Result<PartitionMove, Refusal> {
    let number = partition.partition_index;
    let Some((topic, found)) =
        catalog.topic(&topic.name).and_then(|topic| Some((topic, topic.partition(number)?)))
    else {
        let why = "This server does not host this topic-partition.".to_owned();
        return Err((ResponseError::UnknownTopicOrPartition, why));
    };
    let topic_ref = TopicRef::Id(topic.id);
    let partition_number = number.unsigned_abs();
    let to = |nodes: Vec<NodeId>| {
        let replica_ids = new_replica_ids(nodes.len());
        PartitionMove { topic: topic_ref, partition: partition_number, nodes, replica_ids }
    };
    let Some(replicas) = &partition.replicas else { return Ok(to(Vec::new())) };
    let invalid = |why| Err((ResponseError::InvalidReplicaAssignment, why));
    // To the catalog an empty list would say: cancel.
    if replicas.is_empty() || replicas.len() > REPLICAS_MAX {
        return invalid(format!("{} replicas; 1 to {REPLICAS_MAX} can be.", replicas.len()));
    }
    let mut nodes = Vec::with_capacity(replicas.len());
    for replica in replicas {
        let Ok(node) = u32::try_from(replica.0).map(NodeId) else {
            return invalid(format!("Broker {} cannot be: ids are 0 or more.", replica.0));
        };
        let has_it = found.placement_on(node).is_some();
        if !has_it && catalog.broker(node).is_some() && !up.contains(&node) {
            return invalid(format!("Broker {node} is down, so it cannot be given a replica."));
        }
        nodes.push(node);
    }
    if !may_differ && nodes.len() != found.replicas.len() {
        let why = format!(
            "The partition has {} replicas; {} would change the replication factor, which the request forbids.",
            found.replicas.len(),
            nodes.len()
        );
        return Err((ResponseError::InvalidReplicationFactor, why));
    }
    Ok(to(nodes))
}

#[expect(
    clippy::disallowed_methods,
    reason = "replica ids are random; the core gets them in the command"
)]
fn new_replica_ids(count: usize) -> Vec<ReplicaId> {
    let mut random = rand::rng();
    (0..count).map(|_| ReplicaId(random.random_range(1..=u64::MAX))).collect()
}

/// Brings the moves into the catalog; one result for each.
async fn carry_out(
    shard: &Rc<Shard>,
    moves: Vec<PartitionMove>,
    timeout_ms: i32,
) -> Vec<Result<(), Refusal>> {
    let count = moves.len();
    if count == 0 {
        return Vec::new();
    }
    let command = CatalogCommand::MovePartitions { moves };
    let late = "the move was not in the catalog in time; it may be yet";
    let refusal = match change_within(shard, command, wait_of(timeout_ms), late).await {
        Ok(CommandOutcome::PartitionsMoved(results)) => {
            let refused = |error| (catalog_error(&error), error.to_string());
            return results.into_iter().map(|result| result.map_err(refused)).collect();
        }
        Ok(_) => (ResponseError::UnknownServerError, String::new()),
        Err(refusal) => refusal,
    };
    vec![Err(refusal); count]
}

/// Serves ListPartitionReassignments. Partitions that are not moving, or not there, are left out, as by Kafka.
#[must_use]
pub fn list_reassignments(
    shard: &Shard,
    request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let catalog = shard.catalog();
    let response = ListPartitionReassignmentsResponse::default().with_error_message(None);
    let topics: Vec<OngoingTopicReassignment> = match &request.topics {
        None => catalog.topics().filter_map(|topic| ongoing(topic, |_| true)).collect(),
        Some(asked) => {
            // A topic that is named again is looked at once.
            let mut numbers: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
            for asked in asked {
                numbers.entry(&asked.name).or_default().extend(&asked.partition_indexes);
            }
            let found = numbers.into_iter().filter_map(|(name, numbers)| {
                ongoing(catalog.topic(name)?, |number| numbers.contains(&number))
            });
            found.collect()
        }
    };
    response.with_topics(topics)
}

fn ongoing(topic: &Topic, is_asked: impl Fn(i32) -> bool) -> Option<OngoingTopicReassignment> {
    let numbered = (0..).zip(&topic.partitions);
    let moving = numbered.filter(|(number, partition)| partition.is_moving() && is_asked(*number));
    let partitions: Vec<_> =
        moving.map(|(number, partition)| reassignment(number, partition)).collect();
    (!partitions.is_empty()).then(|| {
        OngoingTopicReassignment::default()
            .with_name(StrBytes::from_string(topic.name.to_string()).into())
            .with_partitions(partitions)
    })
}

/// A node that gets a new replica in the place of a lost one has it among both lists' ends: Kafka names nodes, not disks.
fn reassignment(number: i32, partition: &Partition) -> OngoingPartitionReassignment {
    let node = |placement: &Placement| broker_id(placement.node.0);
    let adding = partition.replicas.iter().filter(|p| partition.adding.contains(&p.replica));
    let removing = partition.removing.iter().chain(&partition.dropped);
    let stays = |id: &BrokerId| partition.replicas.iter().any(|p| node(p) == *id);
    let removing: Vec<BrokerId> = removing.map(node).filter(|id| !stays(id)).collect();
    let mut replicas: Vec<BrokerId> = partition.replicas.iter().map(node).collect();
    replicas.extend(&removing);
    OngoingPartitionReassignment::default()
        .with_partition_index(number)
        .with_replicas(replicas)
        .with_adding_replicas(adding.map(node).collect())
        .with_removing_replicas(removing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronik_engine::ids::{GroupId, ShardId};

    fn place(node: u32, replica: u64) -> Placement {
        Placement { node: NodeId(node), shard: ShardId(0), replica: ReplicaId(replica) }
    }

    #[test]
    fn given_a_partition_that_moves_when_listed_then_all_its_nodes_are_named_once() {
        let mut partition = Partition::new(GroupId(1), vec![place(1, 1), place(2, 2)]);
        assert!(!partition.is_moving());
        partition.replicas = vec![place(3, 3), place(2, 2)];
        partition.adding = vec![ReplicaId(3)];
        partition.removing = vec![place(1, 1)];
        let listed = reassignment(4, &partition);
        let ids = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(listed.partition_index, 4);
        assert_eq!(ids(&listed.replicas), [3, 2, 1]);
        assert_eq!(ids(&listed.adding_replicas), [3]);
        assert_eq!(ids(&listed.removing_replicas), [1]);
    }

    #[test]
    fn given_a_replica_that_replaces_a_lost_one_when_listed_then_its_node_is_not_among_those_that_go()
     {
        let mut partition = Partition::new(GroupId(1), vec![place(1, 9), place(2, 2)]);
        partition.adding = vec![ReplicaId(9)];
        partition.removing = vec![place(1, 1)];
        let listed = reassignment(0, &partition);
        assert_eq!(listed.replicas, [BrokerId(1), BrokerId(2)]);
        assert_eq!(listed.adding_replicas, [BrokerId(1)]);
        assert!(listed.removing_replicas.is_empty());
    }
}
