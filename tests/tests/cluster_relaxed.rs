//! A topic whose acknowledgements wait for memory, on real nodes: whoever is killed alone takes nothing with it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "this test runs real processes on real time")]

use anyhow::{Context, Result, ensure};
use chronik_tests::cluster::{
    Cluster, DEADLINE, leaders_other, leaders_seen, run_on, run_until_ready,
};
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::{seed_from_env, wait_for};
use chronik_tests::workload::Load;
use kafka_protocol::messages::CreateTopicsRequest;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::protocol::StrBytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const NODES: usize = 3;
const PARTITIONS: usize = 3;
const ROUNDS: usize = 6;
/// A kill comes after at least one and at most so many acknowledgements.
const ACKS_PER_ROUND_MAX: usize = 2_000;

fn create_relaxed(cluster: &mut Cluster, topic: &str) -> Result<()> {
    let config = CreatableTopicConfig::default()
        .with_name(StrBytes::from_static_str("durability"))
        .with_value(Some(StrBytes::from_static_str("relaxed")));
    let topic = CreatableTopic::default()
        .with_name(topic_name(topic))
        .with_num_partitions(i32::try_from(PARTITIONS)?)
        .with_replication_factor(i16::try_from(NODES)?)
        .with_configs(vec![config]);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
    wait_for("the topic is made", DEADLINE, || {
        let mut connection = RawConnection::open(cluster.node(1).ports().kafka_addr()).ok()?;
        let code = connection.call(5, &request).ok()?.topics.first()?.error_code;
        (code == 0 || code == 36).then_some(())
    })
}

/// Batches that the nodes have acknowledged since their starts: in memory, and on disks.
fn acks(cluster: &mut Cluster) -> Result<[f64; 2]> {
    let mut sums = [0.0; 2];
    for node in cluster.nodes() {
        let metrics = node.metrics()?;
        for (sum, what) in sums.iter_mut().zip(["relaxed", "durable"]) {
            *sum += metrics.sum(&format!("chronik_produce_acks_{what}_total"));
        }
    }
    Ok(sums)
}

#[test]
fn given_a_relaxed_topic_when_its_leaders_are_killed_one_at_a_time_then_nothing_acked_is_lost() {
    let seed = seed_from_env("CHRONIK_CLUSTER_KILL_SEED").unwrap();
    println!("to see it again: CHRONIK_CLUSTER_KILL_SEED={seed}");
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| kill_leaders(cluster, seed));
}

fn kill_leaders(cluster: &mut Cluster, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let topic = fresh_name("relaxed");
    create_relaxed(cluster, &topic)?;
    leaders_seen(cluster.node(1), &topic, PARTITIONS)?;
    let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, seed)?;
    load.run_until_each_acked(1, DEADLINE)?;
    let [relaxed, durable] = acks(cluster)?;
    ensure!(relaxed > 0.0 && durable == 0.0, "{relaxed} relaxed, {durable} durable");
    for round in 1..=ROUNDS {
        load.run_until_acked(rng.random_range(1..=ACKS_PER_ROUND_MAX), DEADLINE)?;
        let victim = leaders_seen(cluster.node(1), &topic, PARTITIONS)?[round % PARTITIONS];
        cluster.node(victim).kill()?;
        // At once: it votes for whom it finds, if it is let.
        let is_at_once = rng.random_bool(0.5);
        if !is_at_once {
            let other = cluster.others(&[victim])[0];
            leaders_other(cluster.node(other), &topic, PARTITIONS, &[victim])?;
        }
        cluster.node(victim).spawn()?;
        load.run_until_each_acked(1, DEADLINE).with_context(|| format!("round {round}"))?;
        run_until_ready(cluster, &mut load)?;
        println!(
            "round {round}: node {victim}, at once: {is_at_once}; {} acked",
            load.ledger.acked()
        );
    }
    load.drain(DEADLINE)?;
    cluster.wait_whole()?;
    cluster.check_every_node(&mut load)
}
