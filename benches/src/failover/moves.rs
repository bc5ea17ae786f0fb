//! Moving the leader on purpose: another replica is made the preferred one, and then a preferred election is asked for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::{AlterPartitionReassignmentsRequest, BrokerId, ElectLeadersRequest};

use crate::cluster::{Cluster, IN_SYNC_DEADLINE};
use crate::steady::Board;
use crate::wire::{self, ALTER_PARTITION_REASSIGNMENTS, ELECT_LEADERS, check_code, topic_name};

/// How long the brokers may take for either.
const TIMEOUT_MS: i32 = 30_000;
/// How long a client may go on with the old leader.
const LEADER_DEADLINE: Duration = Duration::from_secs(60);
/// The node that is asked.
const ASKED: i32 = 1;
/// Kafka's number for the election of the preferred leader.
const PREFERRED: i8 = 0;

/// Makes another node than `leader` the one that is to lead partition 0; its id.
pub(super) fn prefer_another(cluster: &mut Cluster, topic: &str, leader: i32) -> Result<i32> {
    let mut order: Vec<i32> = cluster.brokers().iter().map(|broker| broker.id()).collect();
    let at = order.iter().position(|id| *id == leader).context("a leader that is no node")?;
    let turn = (at + 1) % order.len().max(1);
    order.rotate_left(turn);
    let next = order.first().copied().context("no nodes")?;
    let partition = ReassignablePartition::default()
        .with_partition_index(0)
        .with_replicas(Some(order.into_iter().map(BrokerId).collect()));
    let topic =
        ReassignableTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = AlterPartitionReassignmentsRequest::default()
        .with_timeout_ms(TIMEOUT_MS)
        .with_topics(vec![topic]);
    let mut client = wire::connect(cluster.broker(ASKED)?.kafka())?;
    let answer = client.call(&request, ALTER_PARTITION_REASSIGNMENTS)?;
    check_code("naming another preferred leader", answer.error_code)?;
    for partition in answer.responses.iter().flat_map(|topic| &topic.partitions) {
        check_code("naming another preferred leader", partition.error_code)?;
    }
    cluster.wait_in_sync(ASKED, IN_SYNC_DEADLINE)?;
    Ok(next)
}

/// Has partition 0 go to `next`, and waits until the client is answered by it.
pub(super) fn elect(cluster: &mut Cluster, board: &Board, topic: &str, next: i32) -> Result<()> {
    let leader = board.wait_leader(None, LEADER_DEADLINE)?;
    let partition =
        TopicPartitions::default().with_topic(topic_name(topic)).with_partitions(vec![0]);
    let request = ElectLeadersRequest::default()
        .with_election_type(PREFERRED)
        .with_topic_partitions(Some(vec![partition]))
        .with_timeout_ms(TIMEOUT_MS);
    let mut client = wire::connect(cluster.broker(ASKED)?.kafka())?;
    let answer = client.call(&request, ELECT_LEADERS)?;
    check_code("electing the preferred leader", answer.error_code)?;
    let results = answer.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
    for partition in results {
        check_code("electing the preferred leader", partition.error_code)?;
    }
    let now = board.wait_leader(Some(leader), LEADER_DEADLINE)?;
    ensure!(now == next, "node {now} leads where {next} was to");
    Ok(())
}
