//! Three real brokers that become a cluster by themselves, and lose nothing while one of them is killed.
//!
//! `CHRONIK_CLUSTER_KILL_ROUNDS` sets the number of kills, `CHRONIK_CLUSTER_KILL_SEED` the seed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronik_tests::cluster::Cluster;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::{count_from_env, seed_from_env, wait_for};
use chronik_tests::workload::{Load, read_topic};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::CreateTopicsRequest;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const NODES: usize = 3;
const PARTITIONS: usize = 6;
const ROUNDS_DEFAULT: usize = 6;
/// A kill comes after at least one and at most so many acknowledgements.
const ACKS_PER_ROUND_MAX: usize = 1_500;
const DEADLINE: Duration = Duration::from_secs(120);

/// The ids of the brokers that a node tells of, in order.
fn brokers_seen(node: &Broker) -> Result<Vec<i32>> {
    let mut connection = RawConnection::open(node.ports().kafka_addr())?;
    let answer = connection.metadata("no-such-topic", false)?;
    let mut ids: Vec<i32> = answer.brokers.iter().map(|broker| broker.node_id.0).collect();
    ids.sort_unstable();
    Ok(ids)
}

fn create_topic(node: &Broker, name: &str, partitions: usize, replicas: usize) -> Result<()> {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(i32::try_from(partitions)?)
        .with_replication_factor(i16::try_from(replicas)?);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
    let mut is_unclear = false;
    let code = wait_for("somebody leads the catalog", DEADLINE, || {
        let response =
            RawConnection::open(node.ports().kafka_addr()).ok()?.call(5, &request).ok()?;
        let code = response.topics.first()?.error_code;
        let is_passing = code == ResponseError::NotLeaderOrFollower.code();
        is_unclear |= is_passing;
        (!is_passing).then_some(code)
    })?;
    // A command whose leader was killed may have been committed all the same.
    let is_made = code == 0 || (is_unclear && code == ResponseError::TopicAlreadyExists.code());
    ensure!(is_made, "{name}: error {code}");
    Ok(())
}

/// Waits until a node tells of a leader for every partition of a topic; says which nodes they are.
fn leaders_seen(node: &Broker, topic: &str, partitions: usize) -> Result<Vec<i32>> {
    wait_for("every partition has a leader", DEADLINE, || {
        let mut connection = RawConnection::open(node.ports().kafka_addr()).ok()?;
        let answer = connection.metadata(topic, false).ok()?;
        let found = answer.topics.first()?;
        let leaders: Vec<i32> =
            found.partitions.iter().map(|p| p.leader_id.0).filter(|id| *id >= 0).collect();
        (leaders.len() == partitions).then_some(leaders)
    })
}

fn check(cluster: &Cluster, load: &mut Load) -> Result<()> {
    let logs = read_topic(&cluster.bootstrap(), load.topic(), PARTITIONS, DEADLINE)?;
    load.ledger.check(&logs).context("what was read is not what was promised")
}

fn with_logs<T>(cluster: &Cluster, outcome: Result<T>) -> T {
    match outcome {
        Ok(value) => value,
        Err(error) => panic!("{error:#}\n{}", cluster.log_tails()),
    }
}

#[test]
fn given_one_list_when_three_nodes_start_then_each_knows_all_and_takes_commands_and_records() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    let outcome = (|| -> Result<()> {
        for node in cluster.nodes() {
            ensure!(brokers_seen(node)? == [1, 2, 3], "{:?}", brokers_seen(node)?);
        }
        for at in 0..NODES {
            let name = fresh_name("made-anywhere");
            create_topic(&cluster.nodes()[at], &name, PARTITIONS, NODES)?;
            for other in 0..NODES {
                let leaders = leaders_seen(&cluster.nodes()[other], &name, PARTITIONS)?;
                let mut nodes = leaders.clone();
                nodes.sort_unstable();
                nodes.dedup();
                ensure!(nodes == [1, 2, 3], "leaders are spread: {leaders:?}");
            }
        }
        let topic = fresh_name("records");
        create_topic(&cluster.nodes()[0], &topic, PARTITIONS, NODES)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 1)?;
        load.run_until_acked(3_000, DEADLINE)?;
        load.drain(DEADLINE)?;
        check(&cluster, &mut load)
    })();
    with_logs(&cluster, outcome);
}

#[test]
fn given_a_producer_when_one_node_after_the_other_is_killed_then_all_acked_is_there_once_and_in_order()
 {
    let seed = seed_from_env("CHRONIK_CLUSTER_KILL_SEED").unwrap();
    let rounds = count_from_env("CHRONIK_CLUSTER_KILL_ROUNDS", ROUNDS_DEFAULT).unwrap();
    println!("cluster kill loop: seed {seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    let outcome = kill_loop(&mut cluster, rounds, seed, &mut rng);
    with_logs(&cluster, outcome);
}

fn kill_loop(cluster: &mut Cluster, rounds: usize, seed: u64, rng: &mut StdRng) -> Result<()> {
    let topic = fresh_name("kills");
    create_topic(&cluster.nodes()[0], &topic, PARTITIONS, NODES)?;
    let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, seed)?;
    for round in 1..=rounds {
        load.run_until_acked(rng.random_range(1..=ACKS_PER_ROUND_MAX), DEADLINE)?;
        let victim = rng.random_range(0..NODES);
        cluster.nodes()[victim].kill()?;
        // Two of three go on.
        load.run_until_acked(rng.random_range(1..=ACKS_PER_ROUND_MAX), DEADLINE)
            .with_context(|| format!("round {round}: without node {}", victim + 1))?;
        cluster.nodes()[victim].start_again()?;
        check(cluster, &mut load).with_context(|| format!("round {round}"))?;
        println!("round {round}: {} of {} acknowledged", load.ledger.acked(), load.ledger.sent());
    }
    load.drain(DEADLINE)?;
    check(cluster, &mut load)?;
    for node in cluster.nodes() {
        ensure!(!node.log_contains("panicked"), "a broker panicked");
    }
    Ok(())
}

#[test]
fn given_two_of_three_nodes_when_they_start_then_they_serve_and_the_third_joins_later() {
    let mut cluster = Cluster::list(NODES, &Settings::new()).unwrap();
    let outcome = (|| -> Result<()> {
        for at in [1, 2] {
            cluster.nodes()[at].spawn()?;
        }
        cluster.wait_ready()?;
        let topic = fresh_name("before");
        create_topic(&cluster.nodes()[2], &topic, PARTITIONS, 2)?;
        let bootstrap = cluster.nodes()[1].bootstrap();
        let mut load = Load::connect(&bootstrap, &topic, PARTITIONS, 2)?;
        load.run_until_acked(500, DEADLINE)?;
        cluster.nodes()[0].start_again()?;
        for node in cluster.nodes() {
            ensure!(brokers_seen(node)? == [1, 2, 3], "{:?}", brokers_seen(node)?);
        }
        let after = fresh_name("after");
        create_topic(&cluster.nodes()[0], &after, PARTITIONS, NODES)?;
        // The newcomer counts: one of the first two may go.
        cluster.nodes()[1].kill()?;
        leaders_seen(&cluster.nodes()[0], &after, PARTITIONS)?;
        create_topic(&cluster.nodes()[0], &fresh_name("with-two"), PARTITIONS, 2)?;
        cluster.nodes()[1].start_again()?;
        load.drain(DEADLINE)?;
        check(&cluster, &mut load)
    })();
    with_logs(&cluster, outcome);
}

#[test]
fn given_a_node_whose_disk_was_wiped_when_it_comes_back_then_it_joins_anew_and_nothing_is_lost() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    let outcome = (|| -> Result<()> {
        let topic = fresh_name("wiped");
        create_topic(&cluster.nodes()[0], &topic, PARTITIONS, NODES)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 3)?;
        load.run_until_acked(1_000, DEADLINE)?;
        cluster.nodes()[2].kill()?;
        std::fs::remove_dir_all(cluster.nodes()[2].data_dir())?;
        cluster.nodes()[2].start_again()?;
        for node in cluster.nodes() {
            ensure!(brokers_seen(node)? == [1, 2, 3], "{:?}", brokers_seen(node)?);
        }
        load.run_until_acked(1_000, DEADLINE)?;
        let after = fresh_name("after");
        create_topic(&cluster.nodes()[2], &after, PARTITIONS, NODES)?;
        // What is created while it is away it makes when it comes back, and counts there.
        cluster.nodes()[2].kill()?;
        let while_away = fresh_name("while-away");
        create_topic(&cluster.nodes()[0], &while_away, PARTITIONS, NODES)?;
        cluster.nodes()[2].start_again()?;
        load.drain(DEADLINE)?;
        check(&cluster, &mut load)?;
        cluster.nodes()[1].kill()?;
        for topic in [&after, &while_away] {
            let node = &cluster.nodes()[0];
            wait_for("others lead what the killed node led", DEADLINE, || {
                let leaders = leaders_seen(node, topic, PARTITIONS).ok()?;
                (!leaders.contains(&2)).then_some(())
            })?;
        }
        for node in cluster.nodes() {
            ensure!(!node.log_contains("panicked"), "a broker panicked");
        }
        Ok(())
    })();
    with_logs(&cluster, outcome);
}
