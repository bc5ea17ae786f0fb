//! A real cluster whose nodes are hosts of their own, and cannot all hear each other all the time.
//!
//! Needs root and `ip` for network namespaces; says `SKIPPED` where there are none.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::cluster::{
    Cluster, DEADLINE, brokers_seen, create_topic, leaders_other, leaders_seen, run_on,
};
use chronik_tests::netns::{self, Host, Network};
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::raw::{RawConnection, produce_request};
use chronik_tests::scratch::say_skipped;
use chronik_tests::workload::{IMPATIENT, Load};

const NODES: u8 = 3;
const REPLICAS: usize = 3;
const PARTITIONS: usize = 3;
/// The fourth host, where the test itself is.
const CLIENT: Host = Host(NODES);

/// The host of a node.
fn host(id: i32) -> Host {
    Host(u8::try_from(id - 1).unwrap())
}

/// Runs a test of a cluster that is listed and not started, from a host that reaches all of its nodes.
fn run(test: impl FnOnce(&Network, &mut Cluster) -> Result<()>) {
    if let Some(why) = netns::missing() {
        say_skipped(why);
        return;
    }
    let network = Network::of(NODES + 1).unwrap();
    network.namespace(CLIENT).enter().unwrap();
    let mut cluster = Cluster::list_on_hosts(&network, NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| test(&network, cluster));
}

/// A load on a new topic.
fn loaded(cluster: &mut Cluster) -> Result<Load> {
    let topic = fresh_name("loaded");
    create_topic(cluster.node(1), &topic, PARTITIONS, REPLICAS)?;
    let mut load = Load::connect_with(&cluster.bootstrap(), &topic, PARTITIONS, 1, &IMPATIENT)?;
    load.run_until_acked(500, DEADLINE)?;
    Ok(load)
}

fn end(network: &Network, cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    network.heal()?;
    load.run_until_acked(300, DEADLINE).context("after all is healed")?;
    cluster.wait_whole()?;
    load.drain(DEADLINE)?;
    cluster.check_every_node(load)
}

#[test]
fn given_a_leader_that_only_clients_reach_when_they_write_then_it_stores_nothing_and_others_lead() {
    run(|network, cluster| {
        cluster.start_all()?;
        let mut load = loaded(cluster)?;
        let single = fresh_name("single");
        create_topic(cluster.node(1), &single, 1, REPLICAS)?;
        let victim = leaders_seen(cluster.node(1), &single, 1)?[0];
        let others = cluster.others(&[victim]);
        for other in &others {
            network.cut_both(host(victim), host(*other))?;
        }
        // Whether it knows already that it is alone or not.
        for attempt in 0..20 {
            let batch = BatchBuilder::of_value(format!("alone {attempt}")).build();
            let request = produce_request(&single, 0, -1, batch).with_timeout_ms(200);
            let mut alone = RawConnection::open(cluster.node(victim).ports().kafka_addr())?;
            let answer = alone.call(9, &request)?;
            let code = answer.responses[0].partition_responses[0].error_code;
            ensure!(code != 0, "attempt {attempt}: stored by one of three");
        }
        for topic in [load.topic(), &single] {
            let partitions = if topic == single { 1 } else { PARTITIONS };
            leaders_other(cluster.node(others[0]), topic, partitions, &[victim])?;
        }
        load.run_until_acked(500, DEADLINE).context("without the node that is cut off")?;
        end(network, cluster, &mut load)
    });
}

#[test]
fn given_a_node_cut_off_from_everybody_when_it_comes_back_then_it_follows_and_counts_again() {
    run(|network, cluster| {
        cluster.start_all()?;
        let mut load = loaded(cluster)?;
        let (victim, other) = (2, 3);
        for there in [Host(0), Host(2), CLIENT] {
            network.cut_both(host(victim), there)?;
        }
        leaders_other(cluster.node(other), load.topic(), PARTITIONS, &[victim])?;
        load.run_until_acked(1_000, DEADLINE).context("without the node that is cut off")?;
        network.heal()?;
        cluster.wait_whole()?;
        cluster.node(other).kill()?;
        load.run_until_acked(500, DEADLINE).context("with the node that was cut off")?;
        cluster.node(other).start_again()?;
        end(network, cluster, &mut load)
    });
}

#[test]
fn given_a_node_with_one_deaf_or_mute_direction_when_it_leads_then_another_does_soon() {
    run(|network, cluster| {
        cluster.start_all()?;
        let mut load = loaded(cluster)?;
        for (victim, is_deaf) in [(1, true), (3, false)] {
            let how = format!("node {victim}, deaf: {is_deaf}");
            leaders_seen(cluster.node(victim), load.topic(), PARTITIONS)?;
            let others = cluster.others(&[victim]);
            for other in &others {
                let (from, to) = if is_deaf { (*other, victim) } else { (victim, *other) };
                network.cut(host(from), host(to))?;
            }
            leaders_other(cluster.node(others[0]), load.topic(), PARTITIONS, &[victim])
                .with_context(|| how.clone())?;
            load.run_until_acked(500, DEADLINE).with_context(|| how.clone())?;
            network.heal()?;
            cluster.wait_whole()?;
            cluster.check(&mut load).with_context(|| how.clone())?;
        }
        end(network, cluster, &mut load)
    });
}

#[test]
fn given_a_node_that_hears_nobody_when_all_start_then_it_forms_nothing_and_joins_once_it_hears() {
    run(|network, cluster| {
        for other in [Host(1), Host(2)] {
            network.cut_both(Host(0), other)?;
        }
        for id in cluster.others(&[]) {
            cluster.node(id).spawn()?;
        }
        for id in [2, 3] {
            cluster.node(id).wait_ready()?;
        }
        let topic = fresh_name("without-one");
        create_topic(cluster.node(2), &topic, PARTITIONS, 2)?;
        ensure!(!cluster.node(1).is_ready(), "a node alone is ready");
        ensure!(cluster.node(1).is_running(), "{}", cluster.node(1).log_tail());
        network.heal()?;
        cluster.wait_ready()?;
        for id in cluster.others(&[]) {
            let seen = brokers_seen(cluster.node(id))?;
            ensure!(seen == [1, 2, 3], "node {id} knows {seen:?}");
        }
        let mut load = loaded(cluster)?;
        end(network, cluster, &mut load)
    });
}
