//! Three real brokers that become a cluster by themselves, and lose nothing while one of them is killed.
//!
//! `CHRONIK_CLUSTER_KILL_ROUNDS` sets the number of kills, `CHRONIK_CLUSTER_KILL_SEED` the seed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::cluster::{
    Cluster, DEADLINE, brokers_seen, create_topic, leaders_other, leaders_seen, run_on,
};
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::scratch::{count_from_env, seed_from_env};
use chronik_tests::workload::Load;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const NODES: usize = 3;
const PARTITIONS: usize = 6;
const ROUNDS_DEFAULT: usize = 6;
/// A kill comes after at least one and at most so many acknowledgements.
const ACKS_PER_ROUND_MAX: usize = 1_500;

#[test]
fn given_one_list_when_three_nodes_start_then_each_knows_all_and_takes_commands_and_records() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
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
        cluster.check(&mut load)
    });
}

#[test]
fn given_a_producer_when_one_node_after_the_other_is_killed_then_all_acked_is_there_once_and_in_order()
 {
    let seed = seed_from_env("CHRONIK_CLUSTER_KILL_SEED").unwrap();
    let rounds = count_from_env("CHRONIK_CLUSTER_KILL_ROUNDS", ROUNDS_DEFAULT).unwrap();
    println!("cluster kill loop: seed {seed}, {rounds} rounds");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| kill_loop(cluster, rounds, seed, &mut rng));
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
        cluster.check(&mut load).with_context(|| format!("round {round}"))?;
        println!("round {round}: {} of {} acknowledged", load.ledger.acked(), load.ledger.sent());
    }
    load.drain(DEADLINE)?;
    cluster.check(&mut load)?;
    Ok(())
}

#[test]
fn given_two_of_three_nodes_when_they_start_then_they_serve_and_the_third_joins_later() {
    let mut cluster = Cluster::list(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
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
        leaders_other(&cluster.nodes()[0], &after, PARTITIONS, &[2])?;
        create_topic(&cluster.nodes()[0], &fresh_name("with-two"), PARTITIONS, 2)?;
        cluster.nodes()[1].start_again()?;
        load.drain(DEADLINE)?;
        cluster.check(&mut load)
    });
}

#[test]
fn given_a_node_whose_disk_was_wiped_when_it_comes_back_then_it_joins_anew_and_nothing_is_lost() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
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
        cluster.check(&mut load)?;
        cluster.nodes()[1].kill()?;
        for topic in [&after, &while_away] {
            leaders_other(&cluster.nodes()[0], topic, PARTITIONS, &[2])?;
        }
        Ok(())
    });
}
