//! A cluster that begins with one node, new or with data of its own, and grows by nodes that are in nobody's list.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::binary::run_server;
use chronik_tests::cluster::{DEADLINE, brokers_seen, cluster_status, create_topic, leaders_other};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::{Ports, wait_for};
use chronik_tests::workload::{Load, read_topic};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest, FindCoordinatorRequest,
};
use kafka_protocol::protocol::StrBytes;
use serde_json::Value;

const PARTITIONS: usize = 3;
const RECORDS: usize = 1_000;
const BOOTSTRAP: &str = "[cluster]\nbootstrap = true\n";

fn take_ports(nodes: usize) -> Result<Vec<Ports>> {
    let mut taken: Vec<Ports> = Vec::new();
    while taken.len() < nodes {
        let ports = Ports::take()?;
        if taken.iter().all(|other| !other.overlap(&ports)) {
            taken.push(ports);
        }
    }
    Ok(taken)
}

fn join_table(of: &Ports) -> String {
    format!("[cluster]\njoin = \"{}\"\n", of.raft_addr())
}

fn node(node_id: u32, ports: Ports, table: &str) -> Result<Broker> {
    Broker::on_ports(Settings { node_id, ..Settings::new() }.with_table(table), ports)
}

fn with_logs(nodes: &[Broker], outcome: Result<()>) {
    let logs = || nodes.iter().map(Broker::log_tail).collect::<Vec<_>>().join("\n");
    if let Err(error) = outcome {
        panic!("{error:#}\n{}", logs());
    }
    let panicked = nodes.iter().any(|node| node.log_contains("panicked"));
    assert!(!panicked, "a node panicked\n{}", logs());
}

fn wait_whole(nodes: &[Broker]) -> Result<()> {
    let mut last = Value::Null;
    let is_whole = |status: &Value| {
        let is_empty = |what: &str| status[what].as_array().is_some_and(Vec::is_empty);
        let listed = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
        listed.len() == nodes.len()
            && listed.iter().all(|node| node["up"] == Value::Bool(true))
            && is_empty("under_replicated")
            && is_empty("leaderless")
            && status["moving"] == 0
    };
    let whole = wait_for("the cluster is whole", DEADLINE, || {
        let mut each = nodes.iter();
        each.all(|node| {
            last = cluster_status(node).unwrap_or_default();
            is_whole(&last)
        })
        .then_some(())
    });
    whole.with_context(|| format!("one of the nodes says: {last}"))
}

/// Has all partitions of a topic replicated on these nodes.
fn replicate(asked: &Broker, topic: &str, to: &[i32]) -> Result<()> {
    let nodes: Vec<BrokerId> = to.iter().copied().map(BrokerId).collect();
    let partitions = (0..i32::try_from(PARTITIONS)?).map(|partition| {
        ReassignablePartition::default()
            .with_partition_index(partition)
            .with_replicas(Some(nodes.clone()))
    });
    let topic = ReassignableTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(partitions.collect());
    let request = AlterPartitionReassignmentsRequest::default()
        .with_timeout_ms(30_000)
        .with_topics(vec![topic]);
    let answer = RawConnection::open(asked.ports().kafka_addr())?.call(0, &request)?;
    ensure!(answer.error_code == 0, "error {}", answer.error_code);
    let failed = answer.responses[0].partitions.iter().find(|one| one.error_code != 0);
    ensure!(failed.is_none(), "{failed:?}");
    Ok(())
}

/// How many replicas a topic gets whose creator does not say.
fn replicas_by_default(asked: &Broker) -> Result<i16> {
    let topic = CreatableTopic::default()
        .with_name(topic_name(&fresh_name("plain")))
        .with_num_partitions(1)
        .with_replication_factor(-1);
    let request = CreateTopicsRequest::default().with_timeout_ms(30_000).with_topics(vec![topic]);
    let answer = RawConnection::open(asked.ports().kafka_addr())?.call(7, &request)?;
    ensure!(answer.topics[0].error_code == 0, "error {}", answer.topics[0].error_code);
    Ok(answer.topics[0].replication_factor)
}

/// From one node to three; the first is killed, and all that was written before and after is there.
fn grow(nodes: &mut Vec<Broker>, ports: &[Ports], begins_alone: bool) -> Result<()> {
    let topic = fresh_name("grown");
    nodes.push(node(1, ports[0], if begins_alone { "" } else { BOOTSTRAP })?);
    if !begins_alone {
        // Of nodes that are to come; it stays where no flag says so any more.
        nodes[0].settings_mut().top.push_str("kafka.default_replication_factor = 3\n");
    }
    nodes[0].start_again()?;
    create_topic(&nodes[0], &topic, PARTITIONS, 1)?;
    // A client that knew the first node only might not hear of the others before that one is gone.
    let all: Vec<String> = ports.iter().map(|ports| ports.kafka_addr().to_string()).collect();
    let mut load = Load::connect(&all.join(","), &topic, PARTITIONS, 31)?;
    load.run_until_acked(RECORDS, DEADLINE)?;
    let cluster_id = cluster_status(&nodes[0])?["cluster_id"].clone();
    if begins_alone {
        nodes[0].terminate()?;
        nodes[0].settings_mut().tables = BOOTSTRAP.to_owned();
        nodes[0].start_again().context("the single node as the first of a cluster")?;
        load.run_until_acked(RECORDS, DEADLINE)?;
    }
    for (id, at) in [(2, 1), (3, 2)] {
        nodes.push(node(id, ports[at], &join_table(&ports[0]))?);
        nodes[at].spawn()?;
    }
    for node in nodes.iter_mut() {
        node.wait_ready()?;
    }
    wait_whole(nodes)?;
    let status = cluster_status(&nodes[2])?;
    ensure!(status["cluster_id"] == cluster_id, "it is another cluster");
    ensure!(status["single_replica"] == PARTITIONS, "{status}");
    ensure!(replicas_by_default(&nodes[2])? == 3, "nobody has said how many");
    replicate(&nodes[2], &topic, &[2, 3, 1])?;
    load.run_until_acked(RECORDS, DEADLINE)?;
    load.drain(DEADLINE)?;
    wait_whole(nodes)?;
    nodes[0].kill()?;
    leaders_other(&nodes[1], &topic, PARTITIONS, &[1])?;
    load.run_until_acked(RECORDS, DEADLINE)?;
    load.drain(DEADLINE)?;
    let others = format!("{},{}", nodes[1].bootstrap(), nodes[2].bootstrap());
    let logs = read_topic(&others, &topic, PARTITIONS, DEADLINE)?;
    load.ledger.check(&logs).context("what was read is not what was promised")?;
    start_all_again(nodes)?;
    let logs = read_topic(&nodes[0].bootstrap(), &topic, PARTITIONS, DEADLINE)?;
    load.ledger.check(&logs).context("what was read after all had started again")
}

/// All nodes end and start at once; none is told again how to find the others.
fn start_all_again(nodes: &mut [Broker]) -> Result<()> {
    for node in nodes.iter_mut() {
        if node.is_running() {
            node.kill()?;
        }
        node.settings_mut().tables.clear();
        node.spawn()?;
    }
    for node in nodes.iter_mut() {
        node.wait_ready().context("started again without a word of the cluster")?;
    }
    wait_whole(nodes)?;
    let seen = brokers_seen(&nodes[1])?;
    ensure!(seen == [1, 2, 3], "{seen:?}");
    Ok(())
}

#[test]
fn given_a_cluster_of_one_when_two_join_and_it_is_killed_then_every_record_is_with_the_others() {
    let (mut nodes, ports) = (Vec::new(), take_ports(3).unwrap());
    let outcome = grow(&mut nodes, &ports, false);
    with_logs(&nodes, outcome);
}

#[test]
fn given_a_single_node_with_records_when_it_becomes_a_cluster_and_is_killed_then_they_are_there() {
    let (mut nodes, ports) = (Vec::new(), take_ports(3).unwrap());
    let outcome = grow(&mut nodes, &ports, true);
    with_logs(&nodes, outcome);
}

/// Starts a node that cannot join, and waits until it has said why and ended.
fn refused(mut newcomer: Broker, said: &str) -> Result<()> {
    newcomer.spawn()?;
    let status = newcomer.wait_exit()?;
    ensure!(status.code() == Some(2), "{status}\n{}", newcomer.log_tail());
    ensure!(newcomer.log_contains(said), "{said}\n{}", newcomer.log_tail());
    Ok(())
}

fn refuse_mistakes(nodes: &mut Vec<Broker>, ports: &[Ports]) -> Result<()> {
    let secret = |table: &str, secret: &str| format!("{table}secret = \"{secret}\"\n");
    nodes.push(node(1, ports[0], &secret(BOOTSTRAP, "one"))?);
    nodes[0].start_again()?;
    let join = join_table(&ports[0]);
    refused(node(2, ports[1], &secret(&join, "other"))?, "another cluster.secret")?;
    refused(node(1, ports[1], &secret(&join, "one"))?, "a node with this node's id is running")?;
    let kafka = format!("[cluster]\njoin = \"{}\"\n", ports[0].kafka_addr());
    refused(node(2, ports[1], &secret(&kafka, "one"))?, "it is a Kafka port")?;
    let admin = ports[0].admin_addr().to_string();
    let (taken, free) = (ports[0].raft_addr().to_string(), ports[1].raft_addr().to_string());
    let add = |address: &str| {
        run_server(&["cluster", "add", address, "--admin", &admin, "--json"], DEADLINE)
    };
    let finished = add(&taken)?;
    ensure!(finished.text().contains("node 1 is running with this raft_addr"), "{finished:?}");
    let finished = add(&free)?;
    let answer: Value = serde_json::from_str(&finished.stdout).with_context(|| finished.text())?;
    ensure!(answer["join"] == taken && answer["node_id"] == 2, "{answer}");
    // Nobody is there yet: it waits, and is taken in when there is.
    nodes[0].terminate()?;
    nodes.push(node(2, ports[1], &secret(&join, "one"))?);
    nodes[1].spawn()?;
    wait_for("the new node says that it waits", DEADLINE, || {
        nodes[1].log_contains("waiting to be taken into the cluster").then_some(())
    })?;
    nodes[0].start_again()?;
    nodes[1].wait_ready()?;
    wait_whole(nodes)
}

#[test]
fn given_mistakes_of_nodes_that_join_when_started_then_each_is_named_and_who_is_right_joins() {
    let (mut nodes, ports) = (Vec::new(), take_ports(2).unwrap());
    let outcome = refuse_mistakes(&mut nodes, &ports);
    with_logs(&nodes, outcome);
}

/// A node that was removed is started with its old directory: it says what it is, and ends.
fn ends_as_removed(node: &mut Broker) -> Result<()> {
    node.spawn()?;
    let status = node.wait_exit().context("the removed node ends by itself")?;
    ensure!(status.code() == Some(4), "{status}\n{}", node.log_tail());
    ensure!(
        node.log_contains("this data directory does not count any more"),
        "{}",
        node.log_tail()
    );
    Ok(())
}

fn remove(asked: &Broker, id: &str) -> Result<()> {
    let admin = asked.ports().admin_addr().to_string();
    let removed = run_server(&["cluster", "remove", id, "--admin", &admin], DEADLINE)?;
    ensure!(removed.status.success(), "{removed:?}");
    Ok(())
}

fn remove_all_but_one(nodes: &mut Vec<Broker>, ports: &[Ports]) -> Result<()> {
    nodes.push(node(1, ports[0], BOOTSTRAP)?);
    nodes[0].start_again()?;
    for (id, at) in [(2, 1), (3, 2), (4, 3)] {
        nodes.push(node(id, ports[at], &join_table(&ports[0]))?);
        nodes[at].start_again()?;
    }
    wait_whole(nodes)?;
    refuses_to_leave(&mut nodes[0])?;
    wait_whole(nodes)?;
    // One that was down, and whom the others would have to dial.
    nodes[3].kill()?;
    remove(&nodes[0], "4")?;
    ends_as_removed(&mut nodes[3])?;
    // One that ran, and one that began the cluster and dials the others.
    remove(&nodes[0], "3")?;
    nodes[2].wait_exit().context("the removed node ends by itself")?;
    ends_as_removed(&mut nodes[2])?;
    remove(&nodes[1], "1")?;
    nodes[0].wait_exit().context("the removed node ends by itself")?;
    ends_as_removed(&mut nodes[0])
}

/// A node without a list that is not the last one is not to be alone, and is told what it is to do.
fn refuses_to_leave(node: &mut Broker) -> Result<()> {
    node.terminate()?;
    let tables = node.settings_mut().tables.clone();
    node.settings_mut().tables = "[cluster]\nleave = true\n".to_owned();
    node.spawn()?;
    let status = node.wait_exit()?;
    let log = node.log();
    let said = log.lines().find(|line| line.contains("belongs to a node of a cluster"));
    ensure!(status.code() == Some(4), "{status}\n{}", node.log_tail());
    let has_list = |line: &str| line.contains("cluster.nodes");
    ensure!(said.is_some_and(|line| line.contains("cluster.leave") && !has_list(line)), "{said:?}");
    node.settings_mut().tables = tables;
    node.start_again()
}

#[test]
fn given_nodes_without_a_list_when_removed_and_started_again_then_each_is_told_and_ends() {
    let (mut nodes, ports) = (Vec::new(), take_ports(4).unwrap());
    let outcome = remove_all_but_one(&mut nodes, &ports);
    with_logs(&nodes, outcome);
}

/// Two replicas by default, and one node that takes any.
fn lack_nodes(nodes: &mut Vec<Broker>, ports: &[Ports]) -> Result<()> {
    nodes.push(node(1, ports[0], BOOTSTRAP)?);
    nodes[0].settings_mut().top.push_str("kafka.default_replication_factor = 2\n");
    nodes[0].start_again()?;
    let read_only = format!("{}read_only = true\n", join_table(&ports[0]));
    nodes.push(node(2, ports[1], &read_only)?);
    nodes[1].start_again()?;
    wait_whole(nodes)?;
    let mut connection = RawConnection::open(nodes[0].ports().kafka_addr())?;
    let mut ask = || -> Result<i16> {
        let answer = connection.metadata("made-on-the-way", true)?;
        Ok(answer.topics.first().context("no topic")?.error_code)
    };
    let lacking = ResponseError::InvalidReplicationFactor.code();
    let codes = [ask()?, ask()?, ask()?];
    ensure!(codes == [lacking; 3], "{codes:?}");
    let group = FindCoordinatorRequest::default().with_key(StrBytes::from_static_str("waits"));
    let mut connection = RawConnection::open(nodes[0].ports().kafka_addr())?;
    let code = connection.call(3, &group)?.error_code;
    ensure!(code == ResponseError::CoordinatorNotAvailable.code(), "error {code}");
    let said = |what: &str| {
        let log = nodes[0].log();
        let lines = log.lines().filter(|line| line.contains(what));
        lines.filter(|line| line.contains("kafka.default_replication_factor")).count()
    };
    wait_for("both are said", DEADLINE, || {
        let times = [said("no topic is made"), said("consumer groups wait")];
        times.iter().all(|times| *times > 0).then_some(())
    })?;
    ensure!(said("no topic is made") == 1, "each time");
    nodes.push(node(3, ports[2], &join_table(&ports[0]))?);
    nodes[2].start_again()?;
    wait_for("the topic is made", DEADLINE, || (ask().ok()? == 0).then_some(()))
}

#[test]
fn given_fewer_nodes_than_the_default_of_replicas_when_a_topic_is_made_on_the_way_then_client_and_log_are_told()
 {
    let (mut nodes, ports) = (Vec::new(), take_ports(3).unwrap());
    let outcome = lack_nodes(&mut nodes, &ports);
    with_logs(&nodes, outcome);
}
