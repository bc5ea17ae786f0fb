//! A read-only node beside three that vote: it has every partition for readers in its rack, and nobody waits for it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::binary::run_server;
use chronik_tests::cluster::{
    Cluster, DEADLINE, brokers_seen, cluster_status, create_topic, leaders_seen, run_on,
};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, fetch_request, produce_request, topic_name};
use chronik_tests::scratch::{Ports, wait_for};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};
use kafka_protocol::messages::describe_topic_partitions_request::TopicRequest;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest,
    DescribeQuorumRequest, DescribeTopicPartitionsRequest, describe_quorum_request,
};
use kafka_protocol::protocol::StrBytes;
use serde_json::Value;

const VOTERS: usize = 3;
const READER: i32 = 4;
/// From this version on a fetch names its rack, and any replica answers it.
const FETCH_ANY: i16 = 11;

fn rack(name: &str) -> String {
    let class = "org.apache.kafka.common.replica.RackAwareReplicaSelector";
    format!("kafka.broker_rack = \"{name}\"\nkafka.replica_selector_class = \"{class}\"\n")
}

fn connect(node: &Broker) -> Result<RawConnection> {
    RawConnection::open(node.ports().kafka_addr())
}

fn produce(node: &Broker, topic: &str, partition: i32) -> Result<i16> {
    let batch = BatchBuilder::of_value("a record").build();
    let mut request = produce_request(topic, partition, -1, batch);
    request.timeout_ms = 2_000;
    let response = connect(node)?.call(9, &request)?;
    let topic = response.responses.first().context("no topic")?;
    Ok(topic.partition_responses.first().context("no partition")?.error_code)
}

fn fetch(node: &Broker, topic: &str, partition: i32, offset: i64) -> Result<PartitionData> {
    let rack = StrBytes::from_static_str("b");
    let request = fetch_request(topic, partition, offset, 500).with_rack_id(rack);
    let response = connect(node)?.call(FETCH_ANY, &request)?;
    ensure!(response.error_code == 0, "fetch: error {}", response.error_code);
    let topic = response.responses.into_iter().next().context("no topic")?;
    topic.partitions.into_iter().next().context("no partition")
}

fn records(data: &PartitionData) -> usize {
    data.records.as_ref().map_or(0, bytes::Bytes::len)
}

/// Produces records to each partition of a topic, each of which is taken at once.
fn produce_each(cluster: &mut Cluster, topic: &str, partitions: usize, count: usize) -> Result<()> {
    let leaders = leaders_seen(&cluster.nodes()[0], topic, partitions)?;
    for (partition, leader) in (0..).zip(leaders) {
        for _ in 0..count {
            let code = produce(cluster.node(leader), topic, partition)?;
            ensure!(code == 0, "{topic}-{partition}: error {code}");
        }
    }
    Ok(())
}

/// Waits until leaders send readers of rack b to the read-only node, and it answers them with all that there is.
fn reads_there(cluster: &mut Cluster, reader: &Broker, topic: &str, ends: &[i64]) -> Result<()> {
    let leaders = leaders_seen(&cluster.nodes()[0], topic, ends.len())?;
    for ((partition, leader), end) in (0..).zip(leaders).zip(ends) {
        for offset in [0, *end] {
            let sent = wait_for("the leader sends the consumer there", DEADLINE, || {
                let sent = fetch(cluster.node(leader), topic, partition, offset).ok()?;
                (sent.preferred_read_replica.0 == READER).then_some(sent)
            })?;
            ensure!((sent.error_code, records(&sent)) == (0, 0), "{sent:?}");
        }
        let read = wait_for("the read-only node has all that is committed", DEADLINE, || {
            let read = fetch(reader, topic, partition, 0).ok()?;
            (read.high_watermark == *end).then_some(read)
        })?;
        ensure!(read.error_code == 0 && records(&read) > 0, "{topic}-{partition}: {read:?}");
    }
    Ok(())
}

/// To consumers it is one of a partition's replicas, or there is none, and to administrators it is none.
fn is_told(node: &Broker, topic: &str, is_there: bool) -> Result<()> {
    let answer = connect(node)?.metadata(topic, false)?;
    ensure!(answer.brokers.iter().any(|broker| broker.node_id.0 == READER), "{answer:?}");
    for partition in &answer.topics.first().context("no topic")?.partitions {
        let named = |nodes: &[BrokerId]| nodes.iter().any(|node| node.0 == READER);
        let is_named = [named(&partition.replica_nodes), named(&partition.isr_nodes)];
        ensure!(is_named == [is_there; 2], "{partition:?}");
        ensure!(partition.replica_nodes.len() == VOTERS + usize::from(is_there), "{partition:?}");
        ensure!(partition.isr_nodes.len() == partition.replica_nodes.len(), "{partition:?}");
        ensure!(partition.offline_replicas.is_empty(), "{partition:?}");
    }
    let request = DescribeTopicPartitionsRequest::default()
        .with_topics(vec![TopicRequest::default().with_name(topic_name(topic))]);
    let answer = connect(node)?.call(0, &request)?;
    for partition in &answer.topics.first().context("no topic")?.partitions {
        let lists = [&partition.replica_nodes, &partition.isr_nodes, &partition.offline_replicas];
        let is_named = lists.into_iter().flatten().any(|node| node.0 == READER);
        ensure!(!is_named && partition.isr_nodes.len() == VOTERS, "{partition:?}");
    }
    Ok(())
}

/// What the read-only node does not get.
fn refusals(node: &Broker, topic: &str) -> Result<()> {
    let refused = ResponseError::InvalidReplicaAssignment.code();
    let nodes = [BrokerId(1), BrokerId(2), BrokerId(READER)];
    let partition = ReassignablePartition::default().with_replicas(Some(nodes.to_vec()));
    let moved =
        ReassignableTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = AlterPartitionReassignmentsRequest::default()
        .with_timeout_ms(30_000)
        .with_topics(vec![moved]);
    let answer = connect(node)?.call(0, &request)?;
    let answer = &answer.responses[0].partitions[0];
    let why = answer.error_message.as_ref().map(ToString::to_string).unwrap_or_default();
    ensure!(answer.error_code == refused && why.contains("is read-only"), "{answer:?}");

    let by_hand = CreatableReplicaAssignment::default().with_broker_ids(nodes[1..].to_vec());
    let by_hand = CreatableTopic::default()
        .with_name(topic_name(&fresh_name("by-hand")))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_assignments(vec![by_hand]);
    let four = CreatableTopic::default()
        .with_name(topic_name(&fresh_name("four")))
        .with_num_partitions(1)
        .with_replication_factor(4);
    let factor = ResponseError::InvalidReplicationFactor.code();
    for (topic, error) in [(by_hand, refused), (four, factor)] {
        let request =
            CreateTopicsRequest::default().with_timeout_ms(30_000).with_topics(vec![topic]);
        let answer = connect(node)?.call(5, &request)?;
        ensure!(answer.topics[0].error_code == error, "{answer:?}");
    }
    Ok(())
}

/// The voters and the observers of the catalog.
fn quorum(node: &Broker) -> Result<(Vec<i32>, Vec<i32>)> {
    let partition = describe_quorum_request::PartitionData::default();
    let metadata = describe_quorum_request::TopicData::default()
        .with_topic_name(topic_name("__cluster_metadata"))
        .with_partitions(vec![partition]);
    let request = DescribeQuorumRequest::default().with_topics(vec![metadata]);
    let answer = connect(node)?.call(2, &request)?;
    let quorum = &answer.topics[0].partitions[0];
    ensure!(quorum.error_code == 0, "{quorum:?}");
    let ids = |list: &[kafka_protocol::messages::describe_quorum_response::ReplicaState]| {
        let mut ids: Vec<i32> = list.iter().map(|replica| replica.replica_id.0).collect();
        ids.sort_unstable();
        ids
    };
    Ok((ids(&quorum.current_voters), ids(&quorum.observers)))
}

fn wants_all_in_sync(node: &Broker, topic: &str) -> Result<()> {
    let text = StrBytes::from_static_str;
    let config = AlterableConfig::default()
        .with_name(text("min.insync.replicas"))
        .with_value(Some(text("3")));
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(StrBytes::from_string(topic.to_owned()))
        .with_configs(vec![config]);
    let request = AlterConfigsRequest::default().with_resources(vec![resource]);
    let response = connect(node)?.call(1, &request)?;
    ensure!(response.responses[0].error_code == 0, "{response:?}");
    Ok(())
}

fn json(args: &[&str]) -> Result<Value> {
    let finished = run_server(&[args, &["--json"]].concat(), DEADLINE)?;
    ensure!(finished.status.code() == Some(0), "{args:?}: {}", finished.text());
    serde_json::from_str(&finished.stdout).with_context(|| finished.text())
}

/// Waits until every node says the same of the read-only one, and nobody is behind.
fn wait_whole(cluster: &mut Cluster, partitions: u64) -> Result<()> {
    let mut last = Value::Null;
    let whole = wait_for("all is well", DEADLINE, || {
        let is_empty =
            |status: &Value, what: &str| status[what].as_array().is_some_and(Vec::is_empty);
        let mut each = cluster.nodes().iter();
        each.all(|node| {
            last = cluster_status(node).unwrap_or_default();
            let reader = &last["nodes"][3];
            let is_there = reader["read_only"] == true && reader["up"] == true;
            let lists = ["under_replicated", "read_only_behind", "leaderless"];
            is_there
                && reader["replicas"] == partitions
                && reader["leaders"] == 0
                && last["nodes"][0]["read_only"] == false
                && lists.into_iter().all(|list| is_empty(&last, list))
        })
        .then_some(())
    });
    whole.with_context(|| format!("{last}"))
}

/// The sum of a metric over the shards of a node.
fn figure(node: &Broker, name: &str) -> Result<f64> {
    Ok(node.metrics()?.sum(name))
}

/// Waits until as many partitions have a read-only replica that is behind, as their leaders' metrics say.
fn wait_behind(cluster: &mut Cluster, partitions: f64) -> Result<()> {
    wait_for("leaders know which read-only replicas are behind", DEADLINE, || {
        let of = |node: &Broker| figure(node, "chronik_read_only_behind_partitions").ok();
        let sum: f64 = cluster.nodes().iter().map(of).sum::<Option<f64>>()?;
        (sum == partitions).then_some(())
    })
}

/// Three nodes of rack a, and a read-only one of rack b that is not started yet.
fn set_up() -> Result<(Cluster, Broker)> {
    // Leaders stay where they are, so that whatever a writer notices is the read-only node's doing.
    let stay = "kafka.auto_leader_rebalance_enable = false";
    let settings = Settings::new().with_top(&rack("a")).with_top(stay);
    let mut cluster = Cluster::list(VOTERS, &settings)?;
    let ports = loop {
        let ports = Ports::take()?;
        if cluster.nodes().iter().all(|node| !node.ports().overlap(&ports)) {
            break ports;
        }
    };
    cluster.start_all()?;
    let join = cluster.nodes()[0].ports().raft_addr();
    let table = format!("[cluster]\njoin = \"{join}\"\nread_only = true\n");
    let node_id = u32::try_from(READER)?;
    let settings = Settings { node_id, ..Settings::new() }.with_top(&rack("b")).with_table(&table);
    Ok((cluster, Broker::on_ports(settings, ports)?))
}

#[test]
fn given_a_read_only_node_when_it_joins_is_killed_wiped_and_removed_then_readers_have_it_and_writers_do_not_notice()
 {
    let (mut cluster, mut reader) = set_up().unwrap();
    run_on(&mut cluster, |cluster| {
        let outcome = look_after(cluster, &mut reader);
        outcome.with_context(|| format!("the read-only node:\n{}", reader.log_tail()))?;
        ensure!(!reader.log_contains("panicked"), "it panicked\n{}", reader.log_tail());
        Ok(())
    });
}

fn look_after(cluster: &mut Cluster, reader: &mut Broker) -> Result<()> {
    let (before, after) = (fresh_name("before"), fresh_name("after"));
    create_topic(&cluster.nodes()[0], &before, 2, VOTERS)?;
    produce_each(cluster, &before, 2, 5)?;
    reader.spawn()?;
    reader.wait_ready()?;
    // It takes commands for the catalog as every node does.
    create_topic(reader, &after, 1, VOTERS)?;
    for node in cluster.nodes().iter() {
        leaders_seen(node, &after, 1)?;
    }
    produce_each(cluster, &after, 1, 5)?;
    reads_there(cluster, reader, &before, &[5, 5])?;
    reads_there(cluster, reader, &after, &[5])?;
    wait_whole(cluster, 3)?;
    wait_behind(cluster, 0.0)?;
    let here = "chronik_read_only_replicas";
    ensure!((figure(reader, here)?, figure(&cluster.nodes()[0], here)?) == (3.0, 0.0));
    for topic in [&before, &after] {
        is_told(&cluster.nodes()[0], topic, true)?;
        is_told(reader, topic, true)?;
    }
    refusals(&cluster.nodes()[0], &before)?;
    ensure!(quorum(&cluster.nodes()[0])? == (vec![1, 2, 3], vec![READER]));
    let bootstrap = cluster.nodes()[0].bootstrap();
    let described = json(&["topic", "describe", &before, "--bootstrap", &bootstrap])?;
    let partition = &described["topics"][0]["partitions"][1];
    ensure!(partition["read_only_replicas"] == serde_json::json!([READER]), "{described}");
    ensure!(partition["replicas"].as_array().map(Vec::len) == Some(VOTERS), "{described}");
    let admin = cluster.nodes()[0].ports().admin_addr().to_string();
    let plan = json(&["cluster", "rebalance", "--dry-run", "--admin", &admin])?;
    let moves = plan["moves"].as_array().context("moves")?;
    let named = moves.iter().filter_map(|one| one["to"].as_array()).flatten();
    ensure!(named.into_iter().all(|node| *node != READER), "{plan}");

    // Killed, it is missed by nobody, however many replicas are to be in sync.
    wants_all_in_sync(&cluster.nodes()[0], &before)?;
    reader.kill()?;
    produce_each(cluster, &before, 2, 10)?;
    produce_each(cluster, &after, 1, 10)?;
    let leader = leaders_seen(&cluster.nodes()[0], &after, 1)?[0];
    let read = wait_for("nobody is sent to a node that is gone", DEADLINE, || {
        let read = fetch(cluster.node(leader), &after, 0, 0).ok()?;
        (read.preferred_read_replica.0 == -1).then_some(read)
    })?;
    ensure!(records(&read) > 0, "{read:?}");
    is_told(&cluster.nodes()[0], &after, false)?;
    wait_behind(cluster, 3.0)?;
    let status = cluster_status(&cluster.nodes()[0])?;
    ensure!(status["under_replicated"].as_array().is_some_and(Vec::is_empty), "{status}");
    reader.start_again()?;
    reads_there(cluster, reader, &before, &[15, 15])?;
    reads_there(cluster, reader, &after, &[15])?;

    // Nor does it stand in for a replica that votes.
    let leader = leaders_seen(&cluster.nodes()[0], &before, 2)?[0];
    let gone = cluster.others(&[leader])[1];
    cluster.node(gone).kill()?;
    let too_few = ResponseError::NotEnoughReplicas.code();
    wait_for("one of three is not in sync", DEADLINE, || {
        (produce(cluster.node(leader), &before, 0).ok()? == too_few).then_some(())
    })?;
    cluster.node(gone).start_again()?;
    wait_whole(cluster, 3)?;

    // With another disk it copies everything anew; with another role it is not let in.
    reader.terminate()?;
    std::fs::remove_dir_all(reader.data_dir())?;
    reader.start_again()?;
    reads_there(cluster, reader, &after, &[15])?;
    wait_whole(cluster, 3)?;
    let tables = reader.settings_mut().tables.clone();
    reader.settings_mut().tables = tables.replace("read_only = true", "read_only = false");
    reader.terminate()?;
    reader.spawn()?;
    let status = reader.wait_exit()?;
    ensure!(!status.success() && reader.log_contains("is known as read-only"), "{status}");
    reader.settings_mut().tables = tables;
    reader.start_again()?;
    reads_there(cluster, reader, &after, &[15])?;

    let removed = json(&["cluster", "remove", &READER.to_string(), "--admin", &admin])?;
    ensure!(removed["removed"] == true, "{removed}");
    reader.wait_exit()?;
    ensure!(brokers_seen(&cluster.nodes()[1])? == [1, 2, 3]);
    produce_each(cluster, &after, 1, 1)?;
    wait_for("the catalog has forgotten it", DEADLINE, || {
        (quorum(&cluster.nodes()[0]).ok()? == (vec![1, 2, 3], Vec::new())).then_some(())
    })?;
    cluster.wait_whole()
}

#[test]
fn given_a_read_only_node_that_would_have_to_vote_when_started_then_it_says_so_and_ends() {
    let list = "[cluster]\nread_only = true\nnodes = [{ id = 1, kafka_addr = \"127.0.0.1:9092\", \
                raft_addr = \"127.0.0.1:9192\" }]\n";
    let cases = [
        (
            "[cluster]\nread_only = true\nbootstrap = true\n",
            "`cluster.bootstrap` would give it a vote",
        ),
        (list, "`cluster.nodes` would give it a vote"),
        ("[cluster]\nread_only = true\n", "set `cluster.join` to the Raft address"),
    ];
    for (table, said) in cases {
        let settings = Settings::new().with_table(table);
        let mut node = Broker::on_ports(settings, Ports::take().unwrap()).unwrap();
        node.spawn().unwrap();
        let status = node.wait_exit().unwrap();
        assert_eq!(status.code(), Some(2), "{}", node.log_tail());
        assert!(node.log_contains(said), "{said}\n{}", node.log_tail());
    }
}
