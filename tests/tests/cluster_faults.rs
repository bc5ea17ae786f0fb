//! Nodes of a real cluster that stop for a while, restart one by one, or fail one after the other.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::cluster::{
    Cluster, DEADLINE, create_topic, leaders_other, leaders_seen, run_on,
};
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::raw::{Produced, RawConnection, fetch_request, produce_request};
use chronik_tests::scratch::wait_for;
use chronik_tests::workload::{IMPATIENT, Load, read_topic};
use kafka_protocol::messages::{FetchRequest, ProduceRequest};

const NODES: usize = 3;
const PARTITIONS: usize = 3;
/// For so long a process is stopped: longer than everybody else waits for it.
const PAUSE: Duration = Duration::from_secs(6);
const REQUEST_TIMED_OUT: i16 = 7;

fn batch(value: &'static str) -> bytes::Bytes {
    BatchBuilder::of_value(value).build()
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn load(cluster: &Cluster, topic: &str, partitions: usize) -> Result<Load> {
    Load::connect_with(&cluster.bootstrap(), topic, partitions, 1, &IMPATIENT)
}

/// The values in the one partition of a topic.
fn values(cluster: &Cluster, topic: &str) -> Result<Vec<String>> {
    let logs = read_topic(&cluster.bootstrap(), topic, 1, DEADLINE)?;
    Ok(logs[0].records.iter().map(|r| String::from_utf8_lossy(&r.value).into_owned()).collect())
}

/// Offers a record to whoever leads the one partition of a topic until it is stored.
fn store(cluster: &mut Cluster, by: i32, topic: &str, value: &'static str) -> Result<Produced> {
    wait_for(&format!("{value} is stored"), DEADLINE, || {
        let leader = leaders_seen(cluster.node(by), topic, 1).ok()?[0];
        let mut to = RawConnection::open(cluster.node(leader).ports().kafka_addr()).ok()?;
        to.produce(topic, 0, batch(value)).ok().filter(|produced| produced.error_code == 0)
    })
}

#[test]
fn given_a_leader_that_is_stopped_when_it_goes_on_then_it_serves_nothing_that_the_others_do_not_hold()
 {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, stop_a_leader);
}

fn stop_a_leader(cluster: &mut Cluster) -> Result<()> {
    let (loaded, single) = (fresh_name("loaded"), fresh_name("single"));
    create_topic(cluster.node(1), &loaded, PARTITIONS, NODES)?;
    create_topic(cluster.node(1), &single, 1, NODES)?;
    let first = store(cluster, 1, &single, "before")?;
    ensure!(first.base_offset == 0, "{first:?}");
    let victim = leaders_seen(cluster.node(1), &single, 1)?[0];
    let mut old = RawConnection::open(cluster.node(victim).ports().kafka_addr())?;
    let mut load = load(cluster, &loaded, PARTITIONS)?;
    load.run_until_acked(500, DEADLINE)?;

    cluster.node(victim).pause()?;
    let stopped = Instant::now();
    // It finds these when it goes on, before it can have heard of anybody else.
    let late = old.send(9, &produce_request(&single, 0, -1, batch("late")))?;
    let read = old.send(11, &fetch_request(&single, 0, 0, 0))?;
    let other = cluster.others(&[victim])[0];
    leaders_other(cluster.node(other), &loaded, PARTITIONS, &[victim])?;
    leaders_other(cluster.node(other), &single, 1, &[victim])?;
    let second = store(cluster, other, &single, "meanwhile")?;
    load.run_until_acked(1_000, DEADLINE).context("without the stopped node")?;
    load.run_for(PAUSE.saturating_sub(stopped.elapsed()))?;

    cluster.node(victim).resume()?;
    let late = old.receive::<ProduceRequest>(9, late)?;
    let late = late.responses[0].partition_responses[0].error_code;
    let read = old.receive::<FetchRequest>(11, read)?;
    let read = read.responses[0].partitions[0].records.clone().unwrap_or_default();
    load.run_until_acked(500, DEADLINE).context("after the pause")?;
    cluster.wait_whole()?;
    load.drain(DEADLINE)?;
    cluster.check_every_node(&mut load)?;
    let values = values(cluster, &single)?;
    println!("late: error {late}; {values:?}");
    ensure!(values[..2] == ["before", "meanwhile"] && second.base_offset == 1, "{values:?}");
    let is_there = values[2..].iter().any(|value| value == "late");
    ensure!(is_there == (late == 0) || late == REQUEST_TIMED_OUT, "error {late}, but {values:?}");
    ensure!(is_there || !has(&read, "late"), "it was read from the old leader, and is gone");
    Ok(())
}

#[test]
fn given_a_follower_that_is_stopped_when_it_goes_on_then_it_catches_up_and_counts_again() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("followed");
        create_topic(cluster.node(1), &topic, 1, NODES)?;
        let leader = leaders_seen(cluster.node(1), &topic, 1)?[0];
        let followers = cluster.others(&[leader]);
        let mut load = load(cluster, &topic, 1)?;
        load.run_until_acked(500, DEADLINE)?;
        cluster.node(followers[0]).pause()?;
        let stopped = Instant::now();
        load.run_until_acked(1_000, DEADLINE).context("without the stopped node")?;
        load.run_for(PAUSE.saturating_sub(stopped.elapsed()))?;
        cluster.node(followers[0]).resume()?;
        load.run_until_acked(500, DEADLINE).context("after the pause")?;
        cluster.wait_whole()?;
        cluster.node(followers[1]).kill()?;
        load.run_until_acked(500, DEADLINE).context("with the one that was stopped")?;
        cluster.node(followers[1]).start_again()?;
        load.drain(DEADLINE)?;
        cluster.check_every_node(&mut load)
    });
}

#[test]
fn given_a_load_when_all_nodes_are_restarted_one_by_one_then_it_goes_on_and_nothing_is_lost() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("rolling");
        create_topic(cluster.node(1), &topic, 2 * PARTITIONS, NODES)?;
        let mut load = load(cluster, &topic, 2 * PARTITIONS)?;
        for id in cluster.others(&[]) {
            load.run_until_acked(300, DEADLINE)?;
            cluster.node(id).signal_terminate()?;
            load.run_until_acked(300, DEADLINE).with_context(|| format!("node {id} leaves"))?;
            let code = cluster.node(id).wait_exit()?.code();
            ensure!(code == Some(0), "node {id} ended with {code:?}");
            load.run_until_acked(300, DEADLINE).with_context(|| format!("without node {id}"))?;
            cluster.node(id).spawn()?;
            load.run_until_acked(300, DEADLINE).with_context(|| format!("node {id} comes back"))?;
            cluster.wait_ready()?;
            cluster.wait_whole()?;
            cluster.check(&mut load).with_context(|| format!("node {id} was restarted"))?;
        }
        load.drain(DEADLINE)?;
        cluster.check_every_node(&mut load)
    });
}

#[test]
fn given_two_nodes_that_fail_one_after_the_other_when_one_is_back_then_what_was_refused_goes_on() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let (loaded, single) = (fresh_name("loaded"), fresh_name("single"));
        create_topic(cluster.node(1), &loaded, PARTITIONS, NODES)?;
        create_topic(cluster.node(1), &single, 1, NODES)?;
        store(cluster, 1, &single, "before")?;
        let mut load = load(cluster, &loaded, PARTITIONS)?;
        load.run_until_acked(500, DEADLINE)?;
        // The one that stays leads the partition, so that it would know no better than to store the record.
        let left = leaders_seen(cluster.node(1), &single, 1)?[0];
        let [first, second] = cluster.others(&[left])[..] else { unreachable!() };
        cluster.node(first).kill()?;
        load.run_until_acked(500, DEADLINE).context("with two of three")?;
        cluster.node(second).kill()?;
        let mut alone = RawConnection::open(cluster.node(left).ports().kafka_addr())?;
        let request = produce_request(&single, 0, -1, batch("alone")).with_timeout_ms(3_000);
        let answer = alone.call(9, &request)?;
        let alone = answer.responses[0].partition_responses[0].error_code;
        ensure!(alone != 0, "stored by one of three");
        cluster.node(first).start_again()?;
        store(cluster, left, &single, "after")?;
        load.run_until_acked(500, DEADLINE).context("with two of three again")?;
        cluster.node(second).start_again()?;
        cluster.wait_whole()?;
        load.drain(DEADLINE)?;
        cluster.check_every_node(&mut load)?;
        let mut values = values(cluster, &single)?;
        println!("alone: error {alone}; {values:?}");
        values.retain(|value| value != "alone" || alone != REQUEST_TIMED_OUT);
        ensure!(values == ["before", "after"], "{values:?}");
        Ok(())
    });
}
