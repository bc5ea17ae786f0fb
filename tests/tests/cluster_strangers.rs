//! Nodes that do not belong to a real cluster, or not like that: each is told why, and the cluster does not suffer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::cluster::{Cluster, DEADLINE, create_topic, run_on};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::scratch::{Ports, wait_for};
use chronik_tests::workload::Load;

const NODES: usize = 3;
const PARTITIONS: usize = 3;

fn settings() -> Settings {
    Settings { shards: 1, ..Settings::new() }
}

/// Waits until the log of a node says this, all of it in one line.
fn wait_said(node: &Broker, words: &[&str]) -> Result<()> {
    let said = || {
        let log = node.log();
        log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
    };
    wait_for(&format!("it says {words:?}"), DEADLINE, said).with_context(|| node.log_tail())
}

/// It ends by itself, and its last words are these.
fn wait_refused(node: &mut Broker, words: &[&str]) -> Result<()> {
    let status = node.wait_exit()?;
    ensure!(status.code().is_some_and(|code| code != 0), "{status}\n{}", node.log_tail());
    wait_said(node, words)
}

/// All nodes are there, and store what they get.
fn check_unharmed(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    cluster.wait_whole()?;
    load.run_until_acked(200, DEADLINE)?;
    load.drain(DEADLINE)?;
    cluster.check(load)
}

#[test]
fn given_a_cluster_when_nodes_that_do_not_fit_start_then_each_is_told_why_and_the_cluster_goes_on()
{
    let mut cluster = Cluster::start(NODES, &settings()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("unharmed");
        create_topic(cluster.node(1), &topic, PARTITIONS, NODES)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 1)?;
        second_of_an_id(cluster)?;
        check_unharmed(cluster, &mut load).context("after a second node with one id")?;
        other_list(cluster)?;
        check_unharmed(cluster, &mut load).context("after a node with another list")?;
        other_secret(cluster)?;
        check_unharmed(cluster, &mut load).context("after a node with a secret")?;
        of_another_cluster(cluster)?;
        check_unharmed(cluster, &mut load).context("after a node of another cluster")
    });
}

/// Somebody copied the file of node 3 and changed only what was in the way.
fn second_of_an_id(cluster: &mut Cluster) -> Result<()> {
    let ports = Ports::take()?;
    let listed = cluster.node(3).ports().kafka_addr();
    let settings = cluster.node(3).settings_mut().clone().with_top(&format!(
        "advertised_addr = \"{listed}\"\nraft_addr = \"{}\"",
        ports.raft_addr()
    ));
    let mut second = Broker::on_ports(settings, ports)?;
    second.spawn()?;
    wait_refused(&mut second, &["in use by another node", "node_id of its own"])
}

/// Node 3 comes back with a list in which node 2 is elsewhere.
fn other_list(cluster: &mut Cluster) -> Result<()> {
    let elsewhere = Ports::take()?.raft_addr().to_string();
    let listed = cluster.node(2).ports().raft_addr().to_string();
    let node = cluster.node(3);
    node.kill()?;
    let right = node.settings_mut().tables.clone();
    node.settings_mut().tables = right.replace(&listed, &elsewhere);
    node.spawn()?;
    wait_said(node, &["cluster.nodes of node 1 differs", &listed, &elsewhere])?;
    bring_back(node, right)
}

fn other_secret(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.node(3);
    node.kill()?;
    let right = node.settings_mut().tables.clone();
    node.settings_mut().tables = right.replace("[cluster]\n", "[cluster]\nsecret = \"other\"\n");
    node.spawn()?;
    wait_said(node, &["secret"])?;
    bring_back(node, right)
}

/// Node 3 starts on what was once node 3 of another cluster.
fn of_another_cluster(cluster: &mut Cluster) -> Result<()> {
    let mut other = Cluster::list(NODES, &settings())?;
    for id in [2, 3] {
        other.node(id).spawn()?;
    }
    other.wait_ready()?;
    other.node(3).kill()?;
    let foreign = other.node(3).data_dir().to_path_buf();
    let node = cluster.node(3);
    node.kill()?;
    let own = node.data_dir().to_path_buf();
    node.set_data_dir(foreign);
    node.spawn()?;
    wait_refused(node, &["two clusters were formed"])?;
    node.set_data_dir(own);
    node.start_again()
}

/// With what it should have been told, whether it has ended or still waits.
fn bring_back(node: &mut Broker, tables: String) -> Result<()> {
    if node.is_running() {
        node.kill()?;
    } else {
        // It is gone; this is how the harness hears of it.
        node.wait_exit()?;
    }
    node.settings_mut().tables = tables;
    node.start_again()
}
