//! The way back from a cluster to one node without one, in place.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::binary::run_server;
use chronik_tests::cluster::{Cluster, DEADLINE, brokers_seen, create_topic, run_on};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::{Ports, wait_for};
use chronik_tests::workload::{Load, read_topic};

const PARTITIONS: usize = 4;
const GROUP: &str = "billing";
/// The exit code of a data directory that cannot be used so.
const DATA_DIR: i32 = 4;

/// Runs a command about the cluster; what it prints, if it ends with this exit code.
fn command(node: &Broker, args: &[&str], code: i32) -> Result<String> {
    let admin = node.ports().admin_addr().to_string();
    let finished = run_server(&[&["cluster"], args, &["--admin", &admin]].concat(), DEADLINE)?;
    let text = finished.text();
    ensure!(finished.status.code() == Some(code), "{args:?}: {:?}\n{text}", finished.status);
    Ok(text)
}

/// Commits an offset at whichever node coordinates the group.
fn commit(nodes: &mut [Broker], topic: &str, offset: i64) -> Result<()> {
    wait_for("an offset is committed", DEADLINE, || {
        nodes.iter().find_map(|node| {
            let code = connect(node).ok()?.commit_offset(GROUP, topic, offset).ok()?;
            (code == 0).then_some(())
        })
    })
}

fn connect(node: &Broker) -> Result<RawConnection> {
    RawConnection::open(node.ports().kafka_addr())
}

/// The first node does not start without its cluster, and does again with it.
fn refuses_to_be_alone(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.node(1);
    node.kill()?;
    let list = std::mem::take(&mut node.settings_mut().tables);
    node.spawn()?;
    let ended = node.wait_exit()?;
    ensure!(ended.code() == Some(DATA_DIR), "{ended:?}\n{}", node.log_tail());
    for text in ["belongs to a node of a cluster", "replicas of the catalog", "cluster remove"] {
        ensure!(node.log_tail().contains(text), "{text} is not in {}", node.log_tail());
    }
    node.settings_mut().tables = list;
    node.start_again()
}

/// What was written before and since is there, and what is new can be written.
fn is_whole(node: &mut Broker, load: &mut Load) -> Result<()> {
    load.run_until_acked(300, DEADLINE)?;
    load.drain(DEADLINE)?;
    let logs = read_topic(&node.bootstrap(), load.topic(), load.partitions(), DEADLINE)?;
    load.ledger.check(&logs).context("what was read is not what was promised")?;
    create_topic(node, &fresh_name("new"), 2, 1)
}

#[test]
fn given_a_cluster_of_three_when_it_shrinks_to_one_and_its_settings_go_then_that_node_goes_on_alone_with_all()
 {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("kept");
        let at = cluster.bootstrap();
        let create = ["topic", "create", &topic, "--partitions", "4", "--replication-factor", "3"];
        let more = ["--topic-config", "min.insync.replicas=2", "--bootstrap", &at];
        let created = run_server(&[&create[..], &more].concat(), DEADLINE)?;
        ensure!(created.status.success(), "{}", created.text());
        let mut load = Load::connect(&at, &topic, PARTITIONS, 71)?;
        load.run_until_acked(500, DEADLINE)?;
        commit(cluster.nodes(), &topic, 17)?;
        refuses_to_be_alone(cluster)?;
        cluster.wait_whole()?;

        let refused = command(cluster.node(1), &["remove", "3"], 1)?;
        ensure!(refused.contains("--replication-factor"), "{refused}");
        command(cluster.node(1), &["drain", "2"], 0)?;
        command(cluster.node(1), &["drain", "3"], 0)?;
        let lower = ["reassign", "--all", "--replication-factor", "1"];
        let lowered = command(cluster.node(1), &lower, 0)?;
        ensure!(lowered.contains(&topic) && lowered.contains("__consumer_offsets"), "{lowered}");
        load.run_until_acked(300, DEADLINE)?;
        command(cluster.node(1), &["remove", "2"], 0)?;
        cluster.node(2).wait_exit().context("the removed node ends by itself")?;
        refuses_to_be_alone(cluster)?;
        command(cluster.node(1), &["remove", "3"], 0)?;
        cluster.node(3).wait_exit().context("the removed node ends by itself")?;
        load.run_until_acked(300, DEADLINE)?;

        let node = cluster.node(1);
        let formation = node.data_dir().join("formation.bin");
        ensure!(formation.exists());
        node.terminate()?;
        let list = std::mem::take(&mut node.settings_mut().tables);
        node.start_again().context("started without its cluster")?;
        ensure!(!formation.exists() && node.log_contains("from now on this node is alone"));
        ensure!(connect(node)?.committed_offset(GROUP, &topic)? == 17);
        is_whole(node, &mut load)?;
        commit(std::slice::from_mut(node), &topic, 18)?;
        node.kill()?;
        node.start_again().context("started again alone")?;
        ensure!(connect(node)?.committed_offset(GROUP, &topic)? == 18);
        is_whole(node, &mut load)?;

        // What it has now is not the data of a node of that list; but it may begin a cluster, as any single node.
        node.terminate()?;
        node.settings_mut().tables = list;
        node.spawn()?;
        ensure!(node.wait_exit()?.code() == Some(DATA_DIR), "{}", node.log_tail());
        node.settings_mut().tables = "[cluster]\nbootstrap = true\n".to_owned();
        node.start_again().context("the first of a cluster")?;
        let join = format!("[cluster]\njoin = \"{}\"\n", node.ports().raft_addr());
        let settings = Settings { node_id: 4, ..Settings::new() }.with_table(&join);
        let mut joins = Broker::on_ports(settings, Ports::take()?)?;
        joins.start_again()?;
        wait_for("both are there", DEADLINE, || {
            let seen = brokers_seen(cluster.node(1)).ok()?;
            (seen == [1, 4]).then_some(())
        })?;
        // The last one of a cluster without a list says that it leaves.
        command(cluster.node(1), &["remove", "4", "--fewer-replicas"], 0)?;
        joins.wait_exit()?;
        let node = cluster.node(1);
        node.terminate()?;
        node.settings_mut().tables = "[cluster]\nbootstrap = true\nleave = true\n".to_owned();
        node.start_again().context("left again")?;
        ensure!(!formation.exists());
        is_whole(node, &mut load)
    });
}

#[test]
fn given_a_node_through_which_brokers_are_asked_when_it_is_removed_itself_then_the_command_has_done_it()
 {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        // The first broker of those that the cluster names is asked first.
        command(cluster.node(2), &["remove", "1"], 0)?;
        cluster.node(1).wait_exit().context("the removed node ends by itself")?;
        Ok(())
    });
}
