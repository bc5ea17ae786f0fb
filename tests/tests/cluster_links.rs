//! A real cluster whose links lose packets, break off, or only seem to be there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronik_tests::cluster::{
    Cluster, DEADLINE, create_topic, leaders_other, leaders_seen, run_on,
};
use chronik_tests::link_proxy::Faults;
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::scratch::seed_from_env;
use chronik_tests::workload::{IMPATIENT, Load};

const NODES: usize = 3;
const PARTITIONS: usize = 3;
/// The end of a connection is told so much later.
const SLOW_CLOSE: Duration = Duration::from_secs(5);

/// Runs a test of a cluster whose links have these faults from the start.
fn run(faults: Faults, test: impl FnOnce(&mut Cluster) -> Result<()>) {
    let seed = seed_from_env("CHRONIK_LINK_SEED").unwrap();
    println!("links: CHRONIK_LINK_SEED={seed}");
    let settings = Settings { shards: 1, ..Settings::new() };
    let mut cluster = Cluster::list_behind_proxies(NODES, seed, &settings).unwrap();
    cluster.set_faults(faults);
    cluster.start_all().unwrap();
    run_on(&mut cluster, test);
}

fn loaded(cluster: &mut Cluster) -> Result<Load> {
    let topic = fresh_name("loaded");
    create_topic(cluster.node(1), &topic, PARTITIONS, NODES)?;
    let mut load = Load::connect_with(&cluster.bootstrap(), &topic, PARTITIONS, 1, &IMPATIENT)?;
    load.run_until_acked(200, DEADLINE)?;
    Ok(load)
}

/// Kills a node that leads something, and brings it back once the others have shown that they do without.
fn lose_one(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    let victim = leaders_seen(cluster.node(1), load.topic(), PARTITIONS)?[0];
    cluster.node(victim).kill()?;
    load.run_until_acked(200, DEADLINE).with_context(|| format!("without node {victim}"))?;
    cluster.node(victim).start_again()?;
    load.run_until_acked(200, DEADLINE).with_context(|| format!("node {victim} is back"))
}

fn end(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    cluster.set_faults(Faults::default());
    cluster.wait_whole()?;
    load.drain(DEADLINE)?;
    cluster.check_every_node(load)
}

#[test]
fn given_links_that_lose_a_fifth_and_are_reset_now_and_then_when_a_node_is_killed_then_all_goes_on()
{
    let faults = Faults { loss_percent: 20, reset_per_mille: 2, ..Faults::default() };
    run(faults, |cluster| {
        let mut load = loaded(cluster)?;
        lose_one(cluster, &mut load)?;
        end(cluster, &mut load)
    });
}

#[test]
fn given_links_that_take_100_ms_each_way_when_a_node_is_killed_then_all_goes_on() {
    run(Faults { delay: Duration::from_millis(100), ..Faults::default() }, |cluster| {
        // Who is ready may not have heard of the others' registration.
        cluster.wait_whole()?;
        let mut load = loaded(cluster)?;
        lose_one(cluster, &mut load)?;
        end(cluster, &mut load)
    });
}

#[test]
fn given_connections_that_close_5_s_late_when_a_node_is_killed_then_nobody_waits_for_that() {
    run(Faults { holds_closes: true, ..Faults::default() }, |cluster| {
        let mut load = loaded(cluster)?;
        // Its links were opened by the others: they are the ones who are not told.
        let victim = 3;
        cluster.node(victim).kill()?;
        let killed = Instant::now();
        leaders_other(cluster.node(1), load.topic(), PARTITIONS, &[victim])?;
        load.run_until_acked(500, DEADLINE)?;
        ensure!(cluster.proxies()[2].closes_held() > 0, "they were told");
        cluster.node(victim).spawn()?;
        load.run_for(SLOW_CLOSE.saturating_sub(killed.elapsed()))?;
        // Old ends come in the middle of new links.
        cluster.set_faults(Faults::default());
        cluster.wait_ready()?;
        load.run_until_acked(500, DEADLINE)?;
        end(cluster, &mut load)
    });
}

#[test]
fn given_a_node_whose_links_are_half_open_when_it_leads_then_others_do_and_it_comes_back() {
    run(Faults::default(), |cluster| {
        let mut load = loaded(cluster)?;
        let victim = 3;
        cluster.proxies()[2].set(Faults::half_open());
        leaders_other(cluster.node(1), load.topic(), PARTITIONS, &[victim])?;
        load.run_until_acked(500, DEADLINE)?;
        // One way only: it is heard, and hears nothing.
        cluster.proxies()[2].set(Faults { swallows_to_node: true, ..Faults::default() });
        load.run_until_acked(500, DEADLINE)?;
        cluster.proxies()[2].set(Faults::default());
        cluster.wait_whole()?;
        // It counts again.
        cluster.node(2).kill()?;
        load.run_until_acked(300, DEADLINE)?;
        cluster.node(2).start_again()?;
        end(cluster, &mut load)
    });
}

#[test]
fn given_two_nodes_whose_link_comes_and_goes_when_a_third_hears_both_then_writes_go_on() {
    run(Faults::default(), |cluster| {
        let mut load = loaded(cluster)?;
        for _ in 0..4 {
            cluster.proxies()[1].set(Faults { reset_per_mille: 1_000, ..Faults::default() });
            load.run_until_acked(200, DEADLINE)?;
            cluster.proxies()[1].set(Faults::half_open());
            load.run_until_acked(200, DEADLINE)?;
            cluster.proxies()[1].set(Faults::default());
            cluster.wait_whole()?;
        }
        end(cluster, &mut load)
    });
}
