//! Replicas of a real cluster that come to other disks: nodes lose all that they had, and get it back from the others;
//! replicas move from node to node while nodes are killed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::cluster::{
    Cluster, DEADLINE, cluster_status, create_topic, leaders_other, leaders_seen, reassign, run_on,
};
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::wait_for;
use chronik_tests::workload::Load;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};
use kafka_protocol::messages::{BrokerId, CreatePartitionsRequest, CreateTopicsRequest};
use serde_json::Value;

const NODES: usize = 3;
const PARTITIONS: usize = 6;
const RECORDS: usize = 1_000;

/// Takes all that a node had, and starts it again.
fn wipe(cluster: &mut Cluster, id: i32) -> Result<()> {
    let node = cluster.node(id);
    node.kill()?;
    std::fs::remove_dir_all(node.data_dir())?;
    node.start_again().with_context(|| format!("node {id} with an empty disk"))
}

/// Waits until no partition has a replica that comes or goes, and none is behind.
fn wait_settled(cluster: &mut Cluster) -> Result<()> {
    let mut last = Value::Null;
    let settled = wait_for("every partition is settled", DEADLINE, || {
        for node in cluster.nodes() {
            last = cluster_status(node).ok()?;
            if last["moving"] != 0 {
                return None;
            }
        }
        Some(())
    });
    settled.with_context(|| format!("one of the nodes says: {last}"))?;
    cluster.wait_whole()
}

fn load_on(cluster: &mut Cluster, seed: u64, replicas: usize) -> Result<Load> {
    let topic = fresh_name("moves");
    create_topic(cluster.node(1), &topic, PARTITIONS, replicas)?;
    let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, seed)?;
    load.run_until_acked(RECORDS, DEADLINE)?;
    Ok(load)
}

#[test]
fn given_a_node_whose_disk_was_wiped_when_it_comes_back_then_it_has_all_again_and_counts() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let mut load = load_on(cluster, 11, NODES)?;
        let alone = fresh_name("alone");
        create_topic(cluster.node(1), &alone, 1, 1)?;
        load.drain(DEADLINE)?;
        let holder = leaders_seen(cluster.node(1), &alone, 1)?[0];
        let wiped = cluster.others(&[holder])[0];
        wipe(cluster, wiped)?;
        wait_settled(cluster)?;
        cluster.check(&mut load)?;
        // With another node gone, the new replicas are needed for every quorum.
        let gone = cluster.others(&[wiped])[0];
        cluster.node(gone).kill()?;
        let leaders = leaders_other(cluster.node(wiped), load.topic(), PARTITIONS, &[gone])?;
        ensure!(leaders.iter().all(|leader| *leader != gone), "{leaders:?}");
        load.run_until_acked(RECORDS, DEADLINE)?;
        load.drain(DEADLINE)?;
        cluster.check(&mut load)?;
        cluster.node(gone).start_again()?;
        wait_settled(cluster)
    });
}

#[test]
fn given_each_node_when_its_disk_is_wiped_one_after_the_other_then_every_record_is_there_from_copies()
 {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let mut load = load_on(cluster, 12, NODES)?;
        // Of two replicas the one that is left has all that was ever acknowledged.
        let mut of_two = load_on(cluster, 14, 2)?;
        for id in [3, 1, 2] {
            wipe(cluster, id)?;
            load.run_until_acked(RECORDS, DEADLINE)?;
            of_two.run_until_acked(RECORDS, DEADLINE)?;
            wait_settled(cluster).with_context(|| format!("after node {id} was wiped"))?;
        }
        load.drain(DEADLINE)?;
        of_two.drain(DEADLINE)?;
        // No node has a disk that it began with.
        cluster.check(&mut load)?;
        cluster.check(&mut of_two)
    });
}

#[test]
fn given_a_node_that_is_wiped_twice_while_the_others_restart_when_all_are_back_then_it_counts_once()
{
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let mut load = load_on(cluster, 13, NODES)?;
        load.drain(DEADLINE)?;
        wipe(cluster, 3)?;
        let controller = cluster_status(cluster.node(3))?["controller"].clone();
        let leader = controller.as_i64().and_then(|id| i32::try_from(id).ok()).unwrap_or(1);
        let leader = if leader == 3 { 1 } else { leader };
        cluster.node(3).kill()?;
        cluster.node(leader).kill()?;
        std::fs::remove_dir_all(cluster.node(3).data_dir())?;
        cluster.node(leader).spawn()?;
        cluster.node(3).spawn()?;
        cluster.wait_ready()?;
        wait_settled(cluster)?;
        cluster.check(&mut load)?;
        // If a replica that is nobody's any more had a vote, the two that are left could decide nothing.
        cluster.node(leader).kill()?;
        create_topic(cluster.node(3), &fresh_name("decided-by-two"), 1, 2)?;
        cluster.node(leader).start_again()
    });
}

fn brokers(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId).collect()
}

fn assigned_topic(name: &str, assignments: &[&[i32]]) -> CreateTopicsRequest {
    let assignments = (0..).zip(assignments).map(|(partition, ids)| {
        CreatableReplicaAssignment::default()
            .with_partition_index(partition)
            .with_broker_ids(brokers(ids))
    });
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_assignments(assignments.collect());
    CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000)
}

/// The replicas of each partition, in their order.
fn replicas_of(connection: &mut RawConnection, topic: &str) -> Result<Vec<Vec<i32>>> {
    let answer = connection.metadata(topic, false)?;
    let found = answer.topics.first().context("no topic")?;
    let mut partitions: Vec<_> = found.partitions.iter().collect();
    partitions.sort_by_key(|partition| partition.partition_index);
    let ids = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect();
    Ok(partitions.into_iter().map(|partition| ids(&partition.replica_nodes)).collect())
}

#[test]
fn given_an_assignment_by_hand_when_a_topic_is_made_or_grows_then_its_replicas_are_there() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let mut connection = RawConnection::open(cluster.node(2).ports().kafka_addr())?;
        let name = fresh_name("by-hand");
        let made = connection.call(5, &assigned_topic(&name, &[&[3, 1], &[1, 2]]))?;
        ensure!(made.topics[0].error_code == 0, "{made:?}");
        ensure!(replicas_of(&mut connection, &name)? == [vec![3, 1], vec![1, 2]]);
        let grow = |ids: &[i32]| {
            let assignment = CreatePartitionsAssignment::default().with_broker_ids(brokers(ids));
            let topic = CreatePartitionsTopic::default()
                .with_name(topic_name(&name))
                .with_count(3)
                .with_assignments(Some(vec![assignment]));
            CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000)
        };
        let refused = ResponseError::InvalidReplicaAssignment.code();
        let short = connection.call(1, &grow(&[2]))?;
        ensure!(short.results[0].error_code == refused, "{short:?}");
        let grown = connection.call(1, &grow(&[2, 3]))?;
        ensure!(grown.results[0].error_code == 0, "{grown:?}");
        ensure!(replicas_of(&mut connection, &name)? == [vec![3, 1], vec![1, 2], vec![2, 3]]);
        let leaders = leaders_seen(cluster.node(1), &name, 3)?;
        ensure!(leaders == [3, 1, 2], "the first of each leads: {leaders:?}");
        let wrong: [&[&[i32]]; 4] = [&[&[1, 9]], &[&[1, 1]], &[&[]], &[&[1, 2], &[3]]];
        for assignments in wrong {
            let answer = connection.call(5, &assigned_topic(&fresh_name("x"), assignments))?;
            ensure!(answer.topics[0].error_code == refused, "{assignments:?}: {answer:?}");
        }
        Ok(())
    });
}

#[test]
fn given_replicas_that_move_when_nodes_are_killed_on_the_way_then_they_arrive_and_nothing_is_lost()
{
    const SPREAD: &[&[i32]] = &[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2], &[1, 3, 2]];
    // Who comes, who leaves, and who stays is killed.
    const MOVES: [([i32; 3], i32); 3] = [([2, 3, 4], 4), ([3, 4, 1], 2), ([4, 1, 2], 4)];
    let mut cluster = Cluster::start(4, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("on-the-way");
        let made = RawConnection::open(cluster.node(1).ports().kafka_addr())?
            .call(5, &assigned_topic(&topic, SPREAD))?;
        ensure!(made.topics[0].error_code == 0, "{made:?}");
        let mut load = Load::connect(&cluster.bootstrap(), &topic, SPREAD.len(), 15)?;
        load.run_until_acked(RECORDS, DEADLINE)?;
        let mut killed_on_the_way = 0;
        for (to, victim) in MOVES {
            let asked = cluster.others(&[victim])[0];
            for partition in 0..i32::try_from(SPREAD.len())? {
                let code = reassign(cluster.node(asked), &topic, partition, Some(&to))?;
                ensure!(code == 0, "partition {partition} to {to:?}: error {code}");
            }
            cluster.node(victim).kill()?;
            let status = cluster_status(cluster.node(asked))?;
            killed_on_the_way += status["moving"].as_u64().context("how many move")?;
            load.run_until_each_acked(10, DEADLINE).with_context(|| format!("without {victim}"))?;
            cluster.node(victim).start_again()?;
            wait_settled(cluster).with_context(|| format!("to {to:?}, {victim} was killed"))?;
            cluster.check(&mut load)?;
        }
        ensure!(killed_on_the_way > 0, "every move was over before the kill");
        load.drain(DEADLINE)?;
        let mut connection = RawConnection::open(cluster.node(2).ports().kafka_addr())?;
        ensure!(replicas_of(&mut connection, &topic)? == vec![vec![4, 1, 2]; SPREAD.len()]);
        cluster.check(&mut load)
    });
}
