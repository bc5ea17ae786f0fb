//! Three real brokers that become a cluster by themselves, in whatever order they come, and with a disk that was wiped.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::ensure;
use chronik_tests::cluster::{
    Cluster, DEADLINE, brokers_seen, create_topic, leaders_other, leaders_seen, run_on,
};
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::workload::Load;

const NODES: usize = 3;
const PARTITIONS: usize = 6;

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
