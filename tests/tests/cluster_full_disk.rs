//! A node of a cluster whose disk fills up while the others have room: clients go on with those, and it counts again once there
//! is space.
//!
//! Needs root, `mkfs.ext4` and a loop device for a small disk of its own; says `SKIPPED` where it has not got them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::cluster::{Cluster, DEADLINE, leaders_seen, run_on};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::{say_skipped, wait_for};
use chronik_tests::small_disk::{self, SmallDisk};
use chronik_tests::workload::{Load, read_topic};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::{BrokerId, CreateTopicsRequest};
use kafka_protocol::protocol::StrBytes;

const NODES: usize = 3;
/// The node with the small disk.
const SMALL: i32 = 3;
/// Far more than is written to it: what is in the way is what fills it.
const DISK_BYTES: u64 = 256 << 20;
const WAL_FILE_BYTES: u64 = 1 << 20;
/// What others leave of the disk: neither a file of the log nor a segment of one.
const REST_BYTES: u64 = 128 << 10;
/// For the others to take over what the full node led, on a machine that does other things, too.
const WRITABLE_WITHIN: Duration = Duration::from_secs(20);
/// A refusal needs no disk, so it comes at once.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
const REQUEST_TIMED_OUT: i16 = 7;
const NOT_LEADER: i16 = 6;
const KAFKA_STORAGE_ERROR: i16 = 56;

/// Runs a test of a cluster whose third node has a small disk.
fn run(test: impl FnOnce(&SmallDisk, &mut Cluster) -> Result<()>) {
    let Some(disk) = SmallDisk::of(DISK_BYTES).unwrap() else {
        say_skipped(small_disk::NEEDED);
        return;
    };
    let settings = Settings {
        shards: 1,
        wal_file_bytes: WAL_FILE_BYTES,
        ballast_bytes: 1 << 20,
        ..Settings::new()
    };
    let settings = settings.with_top("wal.indexing_interval = 1");
    let settings = settings.with_top("kafka.replica_lag_time_max_ms = 1000");
    let mut cluster = Cluster::list(NODES, &settings).unwrap();
    cluster.node(SMALL).set_data_dir(disk.path().join("data"));
    run_on(&mut cluster, |cluster| {
        cluster.start_all()?;
        test(&disk, cluster)
    });
}

/// Makes a topic whose partitions have these replicas, the first of each to lead, and of which two must have a record.
fn create_topic(node: &Broker, prefix: &str, replicas: &[[i32; NODES]]) -> Result<String> {
    let name = fresh_name(prefix);
    let assignment = |(index, nodes): (i32, &[i32; NODES])| {
        let nodes = nodes.iter().map(|id| BrokerId(*id)).collect();
        CreatableReplicaAssignment::default().with_partition_index(index).with_broker_ids(nodes)
    };
    let config = CreatableTopicConfig::default()
        .with_name(StrBytes::from_static_str("min.insync.replicas"))
        .with_value(Some(StrBytes::from_static_str("2")));
    let topic = CreatableTopic::default()
        .with_name(topic_name(&name))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_assignments((0..).zip(replicas).map(assignment).collect())
        .with_configs(vec![config]);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
    let answer = RawConnection::open(node.ports().kafka_addr())?.call(5, &request)?;
    let code = answer.topics.first().context("no topic in the answer")?.error_code;
    ensure!(code == 0, "{name}: error {code}");
    let wanted: Vec<i32> = replicas.iter().map(|nodes| nodes[0]).collect();
    wait_for("those lead that are to", DEADLINE, || {
        let leaders = leaders_seen(node, &name, wanted.len()).ok()?;
        (leaders == wanted).then_some(())
    })?;
    Ok(name)
}

/// Takes what is free on the disk; what is to be removed to give it back.
fn fill(disk: &SmallDisk) -> Result<PathBuf> {
    let path = disk.path().join("filler");
    let bytes = disk.available()? - REST_BYTES;
    rustix::fs::fallocate(File::create(&path)?, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    Ok(path)
}

fn is_full(node: &Broker) -> Option<bool> {
    Some(node.metrics().ok()?.sum("chronik_storage_full") > 0.0)
}

/// The replicas in sync of each partition, as a node tells it.
fn in_sync(node: &Broker, topic: &str) -> Option<Vec<Vec<i32>>> {
    let mut connection = RawConnection::open(node.ports().kafka_addr()).ok()?;
    let answer = connection.metadata(topic, false).ok()?;
    let partitions = &answer.topics.first()?.partitions;
    let of = |nodes: &[BrokerId]| {
        let mut ids: Vec<i32> = nodes.iter().map(|node| node.0).collect();
        ids.sort_unstable();
        ids
    };
    Some(partitions.iter().map(|partition| of(&partition.isr_nodes)).collect())
}

/// Waits until exactly these are in sync everywhere. The load rests meanwhile, or it would fill the disk again.
fn wait_in_sync(cluster: &mut Cluster, topic: &str, nodes: &[i32]) -> Result<()> {
    let asked = cluster.node(1);
    let outcome = wait_for(&format!("{nodes:?} are in sync"), DEADLINE, || {
        let now = in_sync(asked, topic)?;
        now.iter().all(|in_sync| in_sync == nodes).then_some(())
    });
    outcome.with_context(|| format!("in sync: {:?}", in_sync(asked, topic)))
}

/// Goes on with the load until the small disk is full.
fn run_until_full(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    let node = cluster.node(SMALL);
    load.run_until("its disk is full", DEADLINE, |_| is_full(node)?.then_some(()))?;
    ensure!(!node.is_ready(), "it says that it is ready");
    Ok(())
}

/// Each partition gets records that the full node cannot have: what was on its way before it was full it may have taken.
fn write_without_it(load: &mut Load) -> Result<()> {
    load.drain(DEADLINE)?;
    load.run_until_each_acked(100, DEADLINE).context("without the full node")
}

/// Waits until the node has room again, is ready, and counts; then lets it prove that.
fn check_that_it_counts(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    let node = cluster.node(SMALL);
    wait_for("it has room again", DEADLINE, || node.is_ready().then_some(()))?;
    wait_in_sync(cluster, load.topic(), &[1, 2, SMALL])?;
    cluster.node(1).kill()?;
    load.run_until_each_acked(20, DEADLINE).context("with the node whose disk was full")?;
    cluster.node(1).start_again()?;
    load.drain(DEADLINE)?;
    cluster.wait_whole()?;
    cluster.check_every_node(load)
}

#[test]
fn given_a_follower_whose_disk_is_full_when_written_to_then_the_others_go_on_and_it_catches_up_once_there_is_space()
 {
    run(|disk, cluster| {
        let replicas = [[1, 2, SMALL], [2, 1, SMALL], [1, 2, SMALL]];
        let topic = create_topic(cluster.node(1), "followed", &replicas)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, replicas.len(), 21)?;
        load.run_until_each_acked(20, DEADLINE)?;
        let filler = fill(disk)?;
        run_until_full(cluster, &mut load)?;
        write_without_it(&mut load)?;
        wait_in_sync(cluster, &topic, &[1, 2])?;
        load.run_until_each_acked(100, DEADLINE).context("with two in sync")?;
        ensure!(is_full(cluster.node(SMALL)) == Some(true), "it is not full any more");
        let leaders = leaders_seen(cluster.node(1), &topic, replicas.len())?;
        ensure!(!leaders.contains(&SMALL), "the full node leads: {leaders:?}");

        std::fs::remove_file(filler)?;
        check_that_it_counts(cluster, &mut load)
    });
}

#[test]
fn given_a_leader_whose_disk_is_full_when_written_to_then_others_lead_soon_and_it_catches_up_once_there_is_space()
 {
    run(|disk, cluster| {
        let replicas = [[SMALL, 1, 2], [SMALL, 2, 1], [SMALL, 1, 2]];
        let topic = create_topic(cluster.node(1), "led", &replicas)?;
        // Nobody writes to it while the disk fills up.
        let quiet = create_topic(cluster.node(1), "quiet", &[[SMALL, 1, 2]])?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, replicas.len(), 22)?;
        load.run_until_each_acked(20, DEADLINE)?;
        let filler = fill(disk)?;
        run_until_full(cluster, &mut load)?;
        let full = Instant::now();
        let told = produce_to(cluster.node(SMALL), &quiet, "refused")?;
        ensure!([KAFKA_STORAGE_ERROR, NOT_LEADER].contains(&told), "error {told}");
        ensure!(full.elapsed() < REFUSED_WITHIN, "refused after {:?}", full.elapsed());
        let goes_on = load.run_until_each_acked(100, WRITABLE_WITHIN);
        goes_on.with_context(|| told_by_all(cluster, &topic))?;
        println!("error {told}; each partition goes on after {:?}", full.elapsed());
        let unclear = store(cluster, &mut load, &quiet, "stored")?;
        println!("the quiet one goes on after {:?}", full.elapsed());
        write_without_it(&mut load)?;
        wait_in_sync(cluster, &topic, &[1, 2])?;
        ensure!(is_full(cluster.node(SMALL)) == Some(true), "it is not full any more");

        std::fs::remove_file(filler)?;
        check_that_it_counts(cluster, &mut load)?;
        let logs = read_topic(&cluster.bootstrap(), &quiet, 1, DEADLINE)?;
        let records = logs[0].records.iter();
        let values: Vec<_> = records.map(|r| String::from_utf8_lossy(&r.value)).collect();
        let stored = values.iter().filter(|value| *value == "stored").count();
        ensure!((1..=1 + unclear).contains(&stored) && stored == values.len(), "{values:?}");
        Ok(())
    });
}

/// What each node says of each partition: who leads it in which epoch, and who is in sync.
fn told_by_all(cluster: &mut Cluster, topic: &str) -> String {
    let told = |node: &Broker| {
        let mut connection = RawConnection::open(node.ports().kafka_addr())?;
        let answer = connection.metadata(topic, false)?;
        let partitions = &answer.topics.first().context("no topic in the answer")?.partitions;
        let of_each = partitions.iter().map(|p| {
            let in_sync: Vec<i32> = p.isr_nodes.iter().map(|node| node.0).collect();
            (p.partition_index, p.leader_id.0, p.leader_epoch, in_sync)
        });
        Ok::<_, anyhow::Error>(of_each.collect::<Vec<_>>())
    };
    let told: Vec<_> = cluster.nodes().iter().map(told).collect();
    format!("without the full node; partition, leader, epoch, in sync: {told:?}")
}

fn produce_to(node: &Broker, topic: &str, value: &'static str) -> Result<i16> {
    let mut connection = RawConnection::open(node.ports().kafka_addr())?;
    Ok(connection.produce(topic, 0, BatchBuilder::of_value(value).build())?.error_code)
}

/// Offers a record to whoever is said to lead, under load, until it is stored; how often that was left open before.
fn store(
    cluster: &mut Cluster,
    load: &mut Load,
    topic: &str,
    value: &'static str,
) -> Result<usize> {
    let (mut unclear, mut last) = (0, None);
    let stored = load.run_until("the record is stored", WRITABLE_WITHIN, |_| {
        let leader = leaders_seen(cluster.node(1), topic, 1).ok()?[0];
        let code = produce_to(cluster.node(leader), topic, value).ok()?;
        last = Some((leader, code));
        unclear += usize::from(code == REQUEST_TIMED_OUT);
        (code == 0).then_some(())
    });
    stored.with_context(|| format!("the last leader and its answer: {last:?}"))?;
    Ok(unclear)
}
