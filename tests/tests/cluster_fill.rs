//! A node comes back to a cluster whose logs do not reach back to where its own end: it copies the records, takes
//! snapshots, and serves all of them as well as the others.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "this test runs real processes on real time")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chronik_tests::cluster::{Cluster, create_topic, leaders_other, run_on};
use chronik_tests::http::Sample;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::scratch::wait_for;
use chronik_tests::workload::Load;

const NODES: usize = 3;
const PARTITIONS: usize = 4;
const DEADLINE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// So that there is time for a kill while records are copied.
const SLOWLY: &str = "[cluster]\nrecovery_bytes_per_second = 1048576\n";
const SLOWLY_BYTES_PER_SECOND: f64 = 1_048_576.0;
/// What may come beyond that: the answer that was paid for last, and what a rest allows.
const SLOWLY_BYTES_BEYOND: f64 = 1_048_576.0;

/// Small files that become segments at once.
fn settings() -> Settings {
    let settings = Settings { shards: 1, wal_file_bytes: MIB, ..Settings::new() };
    settings.with_top("wal.indexing_interval = 1")
}

fn metric(node: &Broker, name: &str) -> Result<f64> {
    Ok(node.metrics()?.sum(name))
}

/// Raft snapshots of partitions of `topic` that `node` has installed since its start.
fn snapshots_taken(node: &Broker, topic: &str) -> Result<f64> {
    let metrics = node.metrics()?;
    let of = [("topic", topic), ("direction", "download"), ("result", "success")];
    let is_one = |sample: &&Sample| {
        of.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
    };
    Ok(metrics.all("chronik_raft_snapshot_transfers_total").filter(is_one).map(|s| s.value).sum())
}

/// Node 3 is away while so much is written that the others give back the files that it would need.
fn leave_behind(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    load.run_until_acked(1_000, DEADLINE)?;
    cluster.node(3).kill()?;
    load.run_until_acked(8_000, DEADLINE)?;
    load.drain(DEADLINE)?;
    wait_until_cut(cluster)
}

/// Until nodes 1 and 2 hold the end of their logs only.
fn wait_until_cut(cluster: &mut Cluster) -> Result<()> {
    for id in [1, 2] {
        let node = cluster.node(id);
        wait_for("the log's files are given back", DEADLINE, || {
            (metric(node, "chronik_wal_files").ok()? <= 3.0).then_some(())
        })?;
    }
    Ok(())
}

/// Every pair with node 3 serves all that was promised, byte for byte.
fn check_without_each(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    for away in [1, 2] {
        cluster.node(away).kill()?;
        leaders_other(cluster.node(3), load.topic(), PARTITIONS, &[away])?;
        load.run_until_acked(100, DEADLINE)?;
        load.drain(DEADLINE)?;
        cluster.check(load)?;
        cluster.node(away).start_again()?;
        cluster.wait_whole()?;
    }
    Ok(())
}

#[test]
fn given_a_node_behind_the_cut_when_it_comes_back_then_it_copies_records_and_serves_all_of_them() {
    let mut cluster = Cluster::start(NODES, &settings()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("behind");
        create_topic(cluster.node(1), &topic, PARTITIONS, NODES)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 11)?;
        leave_behind(cluster, &mut load)?;
        cluster.node(3).start_again()?;
        // Records go on coming while it copies.
        load.run_until_acked(500, DEADLINE)?;
        cluster.wait_whole()?;
        let copied = metric(cluster.node(3), "chronik_fill_bytes_total")?;
        ensure!(copied > MIB as f64, "{copied} bytes were copied");
        check_without_each(cluster, &mut load)
    });
}

#[test]
fn given_a_node_that_copies_records_when_it_is_killed_then_it_goes_on_at_its_next_start() {
    let mut cluster = Cluster::list(NODES, &settings()).unwrap();
    run_on(&mut cluster, |cluster| {
        for node in cluster.nodes() {
            let tables = &mut node.settings_mut().tables;
            *tables = tables.replace("[cluster]\n", SLOWLY);
        }
        cluster.start_all()?;
        let topic = fresh_name("killed");
        create_topic(cluster.node(1), &topic, PARTITIONS, NODES)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 12)?;
        leave_behind(cluster, &mut load)?;
        for _ in 0..2 {
            let node = cluster.node(3);
            node.start_again()?;
            wait_for("records are copied", DEADLINE, || {
                (metric(node, "chronik_fill_bytes_total").ok()? > 0.0).then_some(())
            })?;
            node.kill()?;
        }
        let since = Instant::now();
        cluster.node(3).start_again()?;
        cluster.wait_whole()?;
        let copied = metric(cluster.node(3), "chronik_fill_bytes_total")?;
        ensure!(copied > 2.0 * SLOWLY_BYTES_BEYOND, "{copied} bytes: too few to tell how fast");
        let allowed = SLOWLY_BYTES_PER_SECOND * since.elapsed().as_secs_f64();
        ensure!(copied <= allowed + SLOWLY_BYTES_BEYOND, "{copied} bytes, {allowed} at the rate");
        check_without_each(cluster, &mut load)
    });
}

#[test]
fn given_a_node_that_was_away_for_a_hundred_records_when_the_log_is_cut_behind_them_then_it_has_them()
 {
    let mut cluster = Cluster::start(NODES, &settings()).unwrap();
    run_on(&mut cluster, |cluster| {
        let (topic, beside) = (fresh_name("away"), fresh_name("beside"));
        for name in [&topic, &beside] {
            create_topic(cluster.node(1), name, PARTITIONS, NODES)?;
        }
        let mut load = Load::connect(&cluster.bootstrap(), &topic, PARTITIONS, 13)?;
        load.run_until_acked(150, DEADLINE)?;
        cluster.node(3).kill()?;
        load.run_until_acked(100, DEADLINE)?;
        load.drain(DEADLINE)?;
        // The log is that of all groups of a core: what another topic writes gives back the files with those records.
        let mut other = Load::connect(&cluster.bootstrap(), &beside, PARTITIONS, 14)?;
        other.run_until_acked(8_000, DEADLINE)?;
        other.drain(DEADLINE)?;
        wait_until_cut(cluster)?;
        cluster.node(3).start_again()?;
        cluster.wait_whole()?;
        let taken = snapshots_taken(cluster.node(3), &topic)?;
        ensure!(taken > 0.0, "it came back without a snapshot: the log was not cut");
        check_without_each(cluster, &mut load)
    });
}
