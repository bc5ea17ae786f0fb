//! How a cluster is looked after while it works: replicas and leaderships are moved, a node is drained and removed; by
//! requests as Kafka's own tools send them, and by the commands of the program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::binary::run_server;
use chronik_tests::cluster::{Cluster, reassign};
use chronik_tests::http;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::wait_for;
use chronik_tests::workload::{Load, read_topic};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{
    BrokerId, CreateTopicsRequest, DescribeQuorumRequest, ElectLeadersRequest,
    ListPartitionReassignmentsRequest, UnregisterBrokerRequest, describe_quorum_request,
    elect_leaders_request,
};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);
const PARTITIONS: usize = 6;

/// Runs a command of the program; what it prints, if it ends with this exit code.
fn command(args: &[&str], code: i32) -> Result<String> {
    let finished = run_server(args, DEADLINE)?;
    ensure!(
        finished.status.code() == Some(code),
        "{args:?}: {:?}\n{}",
        finished.status,
        finished.text()
    );
    Ok(if code == 0 { finished.stdout } else { finished.text() })
}

/// The same with `--json`.
fn json(args: &[&str], code: i32) -> Result<Value> {
    let finished = run_server(&[args, &["--json"]].concat(), DEADLINE)?;
    ensure!(
        finished.status.code() == Some(code),
        "{args:?}: {:?}\n{}",
        finished.status,
        finished.text()
    );
    serde_json::from_str(&finished.stdout).with_context(|| finished.text())
}

fn connect(node: &Broker) -> Result<RawConnection> {
    RawConnection::open(node.ports().kafka_addr())
}

fn create_topic(node: &Broker, name: &str, partitions: usize, replicas: usize) -> Result<()> {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(i32::try_from(partitions)?)
        .with_replication_factor(i16::try_from(replicas)?);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
    let response = connect(node)?.call(5, &request)?;
    let code = response.topics.first().map(|topic| topic.error_code);
    ensure!(code == Some(0), "{name}: {code:?}");
    Ok(())
}

/// For each partition of a topic who leads it, and who has it, as a node tells.
fn placement(node: &Broker, topic: &str) -> Result<Vec<(i32, Vec<i32>)>> {
    let answer = connect(node)?.metadata(topic, false)?;
    let found = answer.topics.first().context("no topic")?;
    ensure!(found.error_code == 0, "{topic}: error {}", found.error_code);
    let mut partitions = found.partitions.clone();
    partitions.sort_by_key(|partition| partition.partition_index);
    let of =
        |partition: &kafka_protocol::messages::metadata_response::MetadataResponsePartition| {
            let nodes = partition.replica_nodes.iter().map(|node| node.0).collect();
            (partition.leader_id.0, nodes)
        };
    Ok(partitions.iter().map(of).collect())
}

fn is_moving(node: &Broker) -> Result<bool> {
    let request = ListPartitionReassignmentsRequest::default().with_topics(None);
    let answer = connect(node)?.call(0, &request)?;
    ensure!(answer.error_code == 0, "error {}", answer.error_code);
    Ok(!answer.topics.is_empty())
}

fn wait_settled(node: &Broker) -> Result<()> {
    wait_for("no partition is moving", DEADLINE, || (!is_moving(node).ok()?).then_some(()))
}

fn status(node: &Broker) -> Result<Value> {
    let answer = http::get(node.ports().admin_addr(), "/cluster/status?format=json")?;
    Ok(serde_json::from_str(&answer.body)?)
}

fn wait_in_sync(node: &Broker) -> Result<()> {
    wait_for("no replica is behind and every partition is led", DEADLINE, || {
        let status = status(node).ok()?;
        let is_empty = |what: &str| status[what].as_array().is_some_and(Vec::is_empty);
        (is_empty("under_replicated") && is_empty("leaderless")).then_some(())
    })
}

fn with_logs<T>(cluster: &Cluster, outcome: Result<T>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("{error:#}\n{}", cluster.log_tails()),
    }
}

fn check(cluster: &Cluster, load: &mut Load) -> Result<()> {
    let logs = read_topic(&cluster.bootstrap(), load.topic(), PARTITIONS, DEADLINE)?;
    load.ledger.check(&logs).context("what was read is not what was promised")
}

#[test]
fn given_a_broker_when_topics_are_administered_by_commands_then_each_says_what_it_did() {
    let broker = Broker::start(Settings::new()).unwrap();
    let at = broker.bootstrap();
    let made = json(
        &["topic", "create", "a", "b", "-p", "3", "-t", "retention.ms=60000", "--bootstrap", &at],
        0,
    )
    .unwrap();
    assert_eq!(made["topics"][1]["name"], "b");
    let again = command(&["topic", "create", "a", "c", "--bootstrap", &at], 1).unwrap();
    assert!(again.contains("TOPIC_ALREADY_EXISTS") && again.contains("1 of 2 refused"), "{again}");
    let listed = command(&["topic", "list", "--bootstrap", &at], 0).unwrap();
    let lines: Vec<Vec<&str>> = listed.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["a", "3", "1"]);
    assert_eq!(lines.len(), 4, "{listed}");

    let mut connection = connect(&broker).unwrap();
    connection.produce("a", 1, BatchBuilder::of_value("x").build()).unwrap();
    let a = json(&["topic", "describe", "a", "--bootstrap", &at], 0).unwrap();
    let a = &a["topics"][0];
    assert_eq!(a["configs"]["retention.ms"], "60000");
    assert_eq!(a["partitions"][1]["end_offset"], 1);
    assert_eq!(a["partitions"][0]["replicas"], serde_json::json!([1]));

    command(&["topic", "alter-partitions", "c", "-p", "4", "--bootstrap", &at], 0).unwrap();
    let fewer = command(&["topic", "alter-partitions", "c", "-p", "2", "--bootstrap", &at], 1);
    assert!(fewer.unwrap().contains("INVALID_PARTITIONS"));
    let set = ["topic", "alter-config", "c", "-s", "segment.ms=9000", "--bootstrap", &at];
    command(&set, 0).unwrap();
    let c = command(&["topic", "describe", "c", "--bootstrap", &at], 0).unwrap();
    assert!(c.contains("4 partitions") && c.contains("segment.ms = 9000"), "{c}");
    let reset = ["topic", "alter-config", "c", "-d", "segment.ms", "--bootstrap", &at];
    command(&reset, 0).unwrap();
    let c = command(&["topic", "describe", "c", "--bootstrap", &at], 0).unwrap();
    assert!(!c.contains("segment.ms"), "{c}");
    let place = |name: &str, brokers: &str, code| {
        let replicas = ["--replica-assignment", brokers, "--bootstrap", &at];
        command(&[&["topic", "create", name][..], &replicas].concat(), code).unwrap()
    };
    place("placed", "1,1", 0);
    let placed = json(&["topic", "describe", "placed", "--bootstrap", &at], 0).unwrap();
    assert_eq!(placed["topics"][0]["partitions"][1]["replicas"], serde_json::json!([1]));
    assert!(place("elsewhere", "1:7", 1).contains("INVALID_REPLICA_ASSIGNMENT"));
    assert!(place("nowhere", "1:", 1).contains("1:2,2:3"), "the usage");
    command(&["topic", "delete", "a", "b", "c", "placed", "--bootstrap", &at], 0).unwrap();
    let gone = command(&["topic", "describe", "a", "--bootstrap", &at], 1).unwrap();
    assert!(gone.contains("UNKNOWN_TOPIC_OR_PARTITION"), "{gone}");
    assert_eq!(command(&["topic", "list", "--bootstrap", &at], 0).unwrap(), "");
    let again = command(&["topic", "delete", "a", "--bootstrap", &at], 1).unwrap();
    assert!(again.contains("there is no topic a (UNKNOWN_TOPIC_OR_PARTITION)"), "{again}");
}

#[test]
fn given_a_group_when_administered_by_commands_then_its_lag_is_told_and_it_goes_on_where_it_is_told_to()
 {
    let broker = Broker::start(Settings::new()).unwrap();
    let at = broker.bootstrap();
    let mut connection = connect(&broker).unwrap();
    connection.ensure_topic("orders").unwrap();
    for _ in 0..5 {
        connection.produce("orders", 0, BatchBuilder::of_value("x").build()).unwrap();
    }
    // Looking for the coordinator makes the topic that holds the groups.
    let unknown = command(&["group", "describe", "billing", "--bootstrap", &at], 1).unwrap();
    assert!(unknown.contains("there is no such group (GROUP_ID_NOT_FOUND)"), "{unknown}");
    assert_eq!(connection.commit_offset("billing", "orders", 2).unwrap(), 0);

    let listed = json(&["group", "list", "--bootstrap", &at], 0).unwrap();
    assert_eq!(listed["groups"][0]["name"], "billing");
    assert_eq!(listed["groups"][0]["coordinator"], 1);
    let described = |lag: i64| {
        let found = json(&["group", "describe", "billing", "--bootstrap", &at], 0).unwrap();
        let group = &found["groups"][0];
        assert_eq!((&group["state"], &group["lag"]), (&Value::from("Empty"), &Value::from(lag)));
        assert_eq!(group["partitions"][0]["end_offset"], 5);
    };
    described(3);
    let reset = ["group", "reset-offsets", "billing", "--topic", "orders:0", "--bootstrap", &at];
    let shown = command(&[&reset[..], &["--to-earliest"]].concat(), 0).unwrap();
    assert!(shown.contains("nothing is changed yet"), "{shown}");
    described(3);
    let done = json(&[&reset[..], &["--shift-by", "-1", "--execute"]].concat(), 0).unwrap();
    assert_eq!(done["partitions"][0]["new_offset"], 1);
    described(4);
    command(&[&reset[..], &["--to-latest", "--execute"]].concat(), 0).unwrap();
    described(0);
    let wrong = ["group", "reset-offsets", "billing", "--topic", "orders:7", "--bootstrap", &at];
    command(&[&wrong[..], &["--to-latest"]].concat(), 1).unwrap();
    command(&["group", "delete", "billing", "--bootstrap", &at], 0).unwrap();
    let none = command(&["group", "list", "--bootstrap", &at], 0).unwrap();
    assert_eq!(none, "there are no consumer groups\n");
    let none = json(&["group", "list", "--bootstrap", &at], 0).unwrap();
    assert_eq!(none, serde_json::json!({ "groups": [], "not_asked": [] }));
    let gone = command(&["group", "delete", "billing", "--bootstrap", &at], 1).unwrap();
    assert!(gone.contains("GROUP_ID_NOT_FOUND"), "{gone}");
}

#[test]
fn given_offsets_at_several_coordinators_when_their_topic_is_deleted_and_made_again_then_all_are_gone()
 {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    let outcome = (|| -> Result<()> {
        let topic = fresh_name("again");
        create_topic(&cluster.nodes()[0], &topic, 1, 3)?;
        let mut coordinators = BTreeMap::new();
        for group in (0..12).map(|n| format!("group-{n}")) {
            let at = wait_for("the group has a coordinator", DEADLINE, || {
                (0..3).find(|at| {
                    let connected = connect(&cluster.nodes()[*at]);
                    let done =
                        connected.and_then(|mut there| there.commit_offset(&group, &topic, 7));
                    done.is_ok_and(|code| code == 0)
                })
            })?;
            ensure!(connect(&cluster.nodes()[at])?.committed_offset(&group, &topic)? == 7);
            coordinators.insert(group, at);
        }
        let nodes: BTreeSet<usize> = coordinators.values().copied().collect();
        ensure!(nodes.len() > 1, "groups of several coordinators: {coordinators:?}");
        command(&["topic", "delete", &topic, "--bootstrap", &cluster.nodes()[0].bootstrap()], 0)?;
        create_topic(&cluster.nodes()[0], &topic, 1, 3)?;
        for (group, at) in coordinators {
            wait_for("the offset is forgotten", DEADLINE, || {
                let mut there = connect(&cluster.nodes()[at]).ok()?;
                (there.committed_offset(&group, &topic).ok()? == -1).then_some(())
            })?;
        }
        Ok(())
    })();
    with_logs(&cluster, outcome);
}

#[test]
fn given_three_nodes_when_a_partition_is_reassigned_as_by_kafkas_tool_then_it_moves_and_loses_nothing()
 {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    let outcome = (|| -> Result<()> {
        let topic = fresh_name("moved");
        create_topic(&cluster.nodes()[0], &topic, PARTITIONS, 2)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 5)?;
        load.run_until_acked(2_000, DEADLINE)?;
        let node = &cluster.nodes()[0];
        let before = placement(node, &topic)?;
        let code = |error: ResponseError| error.code();
        let refused = [
            (reassign(node, &topic, 0, None)?, ResponseError::NoReassignmentInProgress),
            (reassign(node, &topic, 0, Some(&[1, 9]))?, ResponseError::InvalidReplicaAssignment),
            (reassign(node, &topic, 0, Some(&[1, 1]))?, ResponseError::InvalidReplicaAssignment),
            (reassign(node, &topic, 0, Some(&[]))?, ResponseError::InvalidReplicaAssignment),
            (reassign(node, &topic, 99, Some(&[1]))?, ResponseError::UnknownTopicOrPartition),
        ];
        for (found, wanted) in refused {
            ensure!(found == code(wanted), "error {found}, not {wanted}");
        }
        ensure!(placement(node, &topic)? == before, "nothing has moved");

        // Every partition goes to the node that does not have it, which is to lead it.
        let mut wanted = Vec::new();
        for (number, (_, replicas)) in (0..).zip(&before) {
            let other = (1..=3).find(|id| !replicas.contains(id)).context("another node")?;
            let to = vec![other, replicas[0]];
            let node = &cluster.nodes()[usize::try_from(number)? % 3];
            ensure!(reassign(node, &topic, number, Some(&to))? == 0, "partition {number}");
            wanted.push(to);
        }
        load.run_until_acked(1_000, DEADLINE)?;
        // That node took the last move, so it knows of all of them.
        wait_settled(&cluster.nodes()[2])?;
        wait_for("every node tells of the new places", DEADLINE, || {
            let told = |node: &Broker| {
                let found = placement(node, &topic).ok()?;
                Some(found.iter().zip(&wanted).all(|((_, replicas), to)| replicas == to))
            };
            cluster.nodes().iter().all(|node| told(node) == Some(true)).then_some(())
        })?;
        load.run_until_acked(1_000, DEADLINE)?;
        elect_and_check(&mut cluster, &topic, &wanted)?;
        load.drain(DEADLINE)?;
        check(&cluster, &mut load)?;
        for node in cluster.nodes() {
            ensure!(!node.log_contains("panicked"), "a broker panicked");
        }
        Ok(())
    })();
    with_logs(&cluster, outcome);
}

/// Has the first replica of each partition elected, and asks for the quorum.
fn elect_and_check(cluster: &mut Cluster, topic: &str, wanted: &[Vec<i32>]) -> Result<()> {
    wait_in_sync(&cluster.nodes()[0])?;
    let numbers = (0..).zip(wanted).map(|(number, _)| number).collect();
    let asked = elect_leaders_request::TopicPartitions::default()
        .with_topic(topic_name(topic))
        .with_partitions(numbers);
    let request = |kind: i8| {
        ElectLeadersRequest::default()
            .with_election_type(kind)
            .with_topic_partitions(Some(vec![asked.clone()]))
            .with_timeout_ms(30_000)
    };
    let answer = connect(&cluster.nodes()[2])?.call(2, &request(0))?;
    ensure!(answer.error_code == 0, "error {}", answer.error_code);
    let results = &answer.replica_election_results[0].partition_result;
    ensure!(results.len() == wanted.len(), "{results:?}");
    for result in results {
        let is_fine = [0, ResponseError::ElectionNotNeeded.code()].contains(&result.error_code);
        ensure!(is_fine, "{result:?}");
    }
    let leaders = placement(&cluster.nodes()[2], topic)?;
    for ((leader, _), replicas) in leaders.iter().zip(wanted) {
        ensure!(Some(leader) == replicas.first(), "{leaders:?}, not {wanted:?}");
    }
    let unclean = connect(&cluster.nodes()[0])?.call(2, &request(1))?;
    let code = unclean.replica_election_results[0].partition_result[0].error_code;
    ensure!(code == ResponseError::ElectionNotNeeded.code(), "error {code}");

    let partition = describe_quorum_request::PartitionData::default();
    let metadata = describe_quorum_request::TopicData::default()
        .with_topic_name(topic_name("__cluster_metadata"))
        .with_partitions(vec![partition]);
    let request = DescribeQuorumRequest::default().with_topics(vec![metadata]);
    for node in cluster.nodes() {
        let answer = connect(node)?.call(2, &request)?;
        let quorum = &answer.topics[0].partitions[0];
        ensure!(quorum.error_code == 0, "{quorum:?}");
        let mut voters: Vec<i32> = quorum.current_voters.iter().map(|v| v.replica_id.0).collect();
        voters.sort_unstable();
        ensure!(voters == [1, 2, 3] && voters.contains(&quorum.leader_id.0), "{quorum:?}");
        ensure!(quorum.high_watermark > 0 && answer.nodes.len() == 3, "{answer:?}");
    }
    Ok(())
}

fn leaders_of_node(node: &Broker, id: u64) -> Result<(u64, bool)> {
    let status = status(node)?;
    let nodes = status["nodes"].as_array().context("nodes")?;
    let found = nodes.iter().find(|found| found["id"] == id).context("the node")?;
    let leaders = found["leaders"].as_u64().context("leaders")?;
    Ok((leaders, found["cordoned"] == true))
}

#[test]
fn given_a_node_when_drained_then_it_leads_nothing_and_when_let_in_again_or_restarted_it_leads_again()
 {
    let settings =
        Settings::new().with_table("[kafka]\nleader_imbalance_check_interval_seconds = 1\n");
    let mut cluster = Cluster::start(3, &settings).unwrap();
    let outcome = (|| -> Result<()> {
        let topic = fresh_name("drained");
        create_topic(&cluster.nodes()[0], &topic, PARTITIONS, 3)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 6)?;
        load.run_until_acked(1_000, DEADLINE)?;
        wait_in_sync(&cluster.nodes()[0])?;
        let admin = cluster.nodes()[0].ports().admin_addr().to_string();
        let at = cluster.bootstrap();
        let only = ["topic", "create", "only", "--replica-assignment", "2", "--bootstrap", &at];
        command(&only, 0)?;
        let stuck = command(&["cluster", "drain", "2", "--admin", &admin], 1)?;
        ensure!(stuck.contains("only-0: no replica on a node that is not drained"), "{stuck}");
        ensure!(!stuck.contains(&topic), "what others took over: {stuck}");
        let text = command(&["cluster", "status", "--admin", &admin], 0)?;
        ensure!(text.contains("only-0 node 2, no replica on a node that is not drained"), "{text}");
        let moved = ["cluster", "reassign", "--topic", "only", "--partition", "0", "--to", "3"];
        command(&[&moved[..], &["--admin", &admin]].concat(), 0)?;
        let drained = json(&["cluster", "drain", "2", "--admin", &admin], 0)?;
        ensure!(drained["leaders"] == 0 && drained["cordoned"] == true, "{drained}");
        ensure!(leaders_of_node(&cluster.nodes()[2], 2)? == (0, true), "told by another node");
        load.run_until_acked(500, DEADLINE)?;
        let text = command(&["cluster", "status", "--admin", &admin], 0)?;
        ensure!(text.contains("up, drained"), "{text}");
        // New topics go around it.
        let around = fresh_name("around");
        create_topic(&cluster.nodes()[0], &around, 4, 2)?;
        let placed = placement(&cluster.nodes()[0], &around)?;
        ensure!(placed.iter().all(|(_, replicas)| !replicas.contains(&2)), "{placed:?}");
        for nowhere in ["9", "4294967296", "x"] {
            let refused = run_server(&["cluster", "drain", nowhere, "--admin", &admin], DEADLINE)?;
            ensure!(!refused.status.success(), "{nowhere}: {}", refused.text());
        }
        command(&["cluster", "undrain", "2", "--admin", &admin], 0)?;
        let leads_again = |node: &Broker| {
            wait_for("the node leads what it is to lead", DEADLINE, || {
                (leaders_of_node(node, 2).ok()?.0 >= 2).then_some(())
            })
        };
        leads_again(&cluster.nodes()[0])?;
        cluster.nodes()[1].terminate()?;
        load.run_until_acked(500, DEADLINE)?;
        cluster.nodes()[1].start_again()?;
        leads_again(&cluster.nodes()[0])?;
        load.drain(DEADLINE)?;
        check(&cluster, &mut load)
    })();
    with_logs(&cluster, outcome);
}

fn last_of(cluster: &mut Cluster, at: usize) -> SocketAddr {
    cluster.nodes()[at].ports().admin_addr()
}

#[test]
fn given_a_node_of_three_when_it_is_removed_under_load_then_the_others_have_all_and_it_can_be_stopped()
 {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    let outcome = (|| -> Result<()> {
        let (topic, wide) = (fresh_name("removed"), fresh_name("wide"));
        create_topic(&cluster.nodes()[0], &topic, PARTITIONS, 2)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 7)?;
        load.run_until_acked(2_000, DEADLINE)?;
        let admin = last_of(&mut cluster, 0).to_string();
        // Who serves and has not been drained is not thrown out.
        let request = UnregisterBrokerRequest::default().with_broker_id(BrokerId(3));
        let answer = connect(&cluster.nodes()[1])?.call(0, &request)?;
        ensure!(answer.error_code == ResponseError::InvalidRequest.code(), "{answer:?}");
        create_topic(&cluster.nodes()[0], &wide, 1, 3)?;
        let remove = ["cluster", "remove", "3", "--admin", &admin];
        let refused = command(&remove, 1)?;
        ensure!(refused.contains("--fewer-replicas") && refused.contains(&wide), "{refused}");
        ensure!(!leaders_of_node(&cluster.nodes()[0], 3)?.1, "nothing is begun that cannot end");
        let plan = json(&[&remove[..], &["--fewer-replicas", "--dry-run"]].concat(), 0)?;
        ensure!(plan["moves"].as_array().is_some_and(|moves| moves.len() >= 4), "{plan}");

        let removed = json(&[&remove[..], &["--fewer-replicas"]].concat(), 0)?;
        ensure!(removed["removed"] == true, "{removed}");
        load.run_until_acked(500, DEADLINE)?;
        for (at, topic) in [(0, &topic), (1, &topic), (0, &wide), (1, &wide)] {
            let placed = placement(&cluster.nodes()[at], topic)?;
            ensure!(placed.iter().all(|(_, nodes)| nodes.len() == 2), "{placed:?}");
            ensure!(placed.iter().all(|(_, nodes)| !nodes.contains(&3)), "{placed:?}");
        }
        cluster.nodes()[2].terminate()?;
        load.run_until_acked(500, DEADLINE)?;
        let again = command(&remove, 1)?;
        ensure!(again.contains("there is no node 3"), "{again}");
        load.drain(DEADLINE)?;
        check(&cluster, &mut load)?;
        for node in cluster.nodes() {
            ensure!(!node.log_contains("panicked"), "a broker panicked");
        }
        Ok(())
    })();
    with_logs(&cluster, outcome);
}

#[test]
fn given_replicas_on_two_nodes_of_three_when_rebalanced_then_all_have_as_many_and_lead_as_many() {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    let outcome = (|| -> Result<()> {
        let topic = fresh_name("spread");
        create_topic(&cluster.nodes()[0], &topic, PARTITIONS, 2)?;
        let admin = last_of(&mut cluster, 1).to_string();
        for number in 0..i32::try_from(PARTITIONS)? {
            let to = ["--topic", &topic, "--partition", &number.to_string(), "--to", "1,2"];
            command(&[&["cluster", "reassign"][..], &to[..], &["--admin", &admin]].concat(), 0)?;
        }
        let plan = json(&["cluster", "rebalance", "--dry-run", "--admin", &admin], 0)?;
        ensure!(plan["moves"].as_array().is_some_and(|moves| moves.len() >= 4), "{plan}");
        command(&["cluster", "rebalance", "--admin", &admin], 0)?;
        let placed = placement(&cluster.nodes()[2], &topic)?;
        for id in 1..=3 {
            let has = placed.iter().filter(|(_, nodes)| nodes.contains(&id)).count();
            let first = placed.iter().filter(|(_, nodes)| nodes.first() == Some(&id)).count();
            ensure!((has, first) == (4, 2), "node {id}: {placed:?}");
        }
        let idle = command(&["cluster", "rebalance", "--admin", &admin], 0)?;
        ensure!(idle.contains("nothing to move"), "{idle}");
        let list = command(&["cluster", "reassign", "--list", "--admin", &admin], 0)?;
        ensure!(list.contains("no partition is moving"), "{list}");
        Ok(())
    })();
    with_logs(&cluster, outcome);
}
