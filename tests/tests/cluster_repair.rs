//! A replica whose disk gives back something else than what was written: it copies that from the others, and whoever reads sees
//! no more of it than errors at which clients try again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::binary::run_server;
use chronik_tests::cluster::{Cluster, create_topic, leaders_seen, run_on};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::wait_for;

const NODES: usize = 3;
const DEADLINE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// A file of the log holds some twenty of them.
const VALUE_BYTES: usize = 50_000;
const RECORDS: i64 = 100;

/// Small files that become segments after so many seconds.
fn settings(indexing_interval: u32) -> Settings {
    let settings = Settings { shards: 1, wal_file_bytes: MIB, ..Settings::new() };
    let settings = settings.with_top(&format!("wal.indexing_interval = {indexing_interval}"));
    settings.with_top("kafka.log_cleaner_backoff_ms = 3600000")
}

fn metric(node: &Broker, name: &str) -> Result<f64> {
    Ok(node.metrics()?.sum(name))
}

fn repairs(node: &Broker) -> Result<f64> {
    metric(node, "chronik_repairs_total")
}

fn value(offset: i64) -> Vec<u8> {
    format!("{offset};").bytes().cycle().take(VALUE_BYTES).collect()
}

/// Writes all records, one batch each.
fn produce_all(node: &Broker, topic: &str) -> Result<()> {
    let mut connection = RawConnection::open(node.ports().kafka_addr())?;
    for offset in 0..RECORDS {
        let produced =
            connection.produce(topic, 0, BatchBuilder::of_value(value(offset)).build())?;
        ensure!((produced.error_code, produced.base_offset) == (0, offset), "{produced:?}");
    }
    Ok(())
}

/// Everything is read from this node, byte for byte. What it cannot read it says so until it can.
fn check_all(node: &Broker, topic: &str) -> Result<()> {
    let mut connection = RawConnection::open(node.ports().kafka_addr())?;
    for offset in 0..RECORDS {
        let expected = value(offset);
        let found = wait_for("the record can be read", DEADLINE, || {
            let fetched = connection.fetch(topic, 0, offset).ok()?;
            let partition = fetched.responses.first()?.partitions.first()?;
            let records = partition.records.clone().filter(|_| partition.error_code == 0)?;
            (!records.is_empty()).then_some(records)
        })?;
        let is_there = found.windows(expected.len()).any(|window| window == expected);
        ensure!(is_there, "the record at {offset} is another one");
    }
    Ok(())
}

/// The segments with records, in the order of their offsets.
fn segments(node: &Broker) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(node.data_dir().join("shards/000/segments"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn wait_for_segments(node: &Broker) -> Result<Vec<PathBuf>> {
    wait_for("the log is in segments", DEADLINE, || {
        (metric(node, "chronik_wal_files").ok()? <= 2.0).then_some(())
    })?;
    let found = segments(node)?;
    ensure!(found.len() >= 4, "{found:?}");
    Ok(found)
}

/// Turns a bit in the middle of what a file holds.
fn damage(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    Ok(std::fs::write(path, bytes)?)
}

fn start(settings: &Settings) -> Cluster {
    Cluster::start(NODES, settings).unwrap()
}

/// A topic with one partition that node 1 leads.
fn topic_of_first(cluster: &mut Cluster) -> Result<String> {
    for _ in 0..2 * NODES {
        let topic = fresh_name("repaired");
        create_topic(cluster.node(1), &topic, 1, NODES)?;
        let leaders = leaders_seen(cluster.node(1), &topic, 1)?;
        if leaders == [1] {
            return Ok(topic);
        }
    }
    bail!("node 1 leads none of the topics")
}

#[test]
fn given_segments_that_are_damaged_or_gone_when_they_are_read_then_the_leader_copies_them_from_others()
 {
    let mut cluster = start(&settings(1));
    run_on(&mut cluster, |cluster| {
        let topic = topic_of_first(cluster)?;
        produce_all(cluster.node(1), &topic)?;
        let found = wait_for_segments(cluster.node(1))?;
        // Started anew it has nothing in memory.
        cluster.node(1).kill()?;
        damage(&found[0])?;
        std::fs::remove_file(&found[2])?;
        cluster.node(1).start_again()?;
        cluster.wait_whole()?;
        check_all(cluster.node(1), &topic)?;
        let repairs_done = repairs(cluster.node(1))?;
        ensure!(repairs_done == 2.0, "one for each of them, not {repairs_done}");
        // What stands there now is whole, and holds across a start.
        cluster.node(1).kill()?;
        cluster.node(1).start_again()?;
        cluster.wait_whole()?;
        ensure!(!cluster.node(1).log_contains("contradicts other segments"), "leftovers");
        let now = segments(cluster.node(1))?;
        ensure!(now.len() == found.len(), "{found:?} became {now:?}");
        check_all(cluster.node(1), &topic)?;
        for id in 1..=3 {
            ensure!(repairs(cluster.node(id))? == 0.0, "nothing is left to be repaired");
        }
        Ok(())
    });
}

#[test]
fn given_a_node_that_starts_without_some_of_its_segments_when_others_are_there_then_it_copies_them_unasked()
 {
    let mut cluster = start(&settings(1));
    run_on(&mut cluster, |cluster| {
        let topic = topic_of_first(cluster)?;
        produce_all(cluster.node(1), &topic)?;
        let found = wait_for_segments(cluster.node(3))?;
        cluster.node(3).kill()?;
        let last = found.last().context("there are some")?;
        for path in [&found[1], &found[2], last] {
            std::fs::remove_file(path)?;
        }
        cluster.node(3).start_again()?;
        let node = cluster.node(3);
        // Two gaps, and nobody reads there.
        wait_for("it has them again", DEADLINE, || (repairs(node).ok()? >= 2.0).then_some(()))?;
        cluster.wait_whole()?;
        check_all(cluster.node(3), &topic)
    });
}

#[test]
fn given_a_full_file_of_the_log_that_is_damaged_when_it_is_to_become_segments_then_others_give_what_it_held()
 {
    let mut cluster = start(&settings(3_600));
    run_on(&mut cluster, |cluster| {
        let topic = topic_of_first(cluster)?;
        produce_all(cluster.node(1), &topic)?;
        let node = cluster.node(1);
        node.terminate()?;
        let damaged = value(RECORDS / 4);
        let mut is_damaged = false;
        for path in node.wal_files()? {
            let mut bytes = std::fs::read(&path)?;
            if let Some(at) = bytes.windows(damaged.len()).position(|window| window == damaged) {
                bytes[at + VALUE_BYTES / 2] ^= 1;
                std::fs::write(&path, bytes)?;
                is_damaged = true;
            }
        }
        ensure!(is_damaged, "the log does not hold the record");
        let top = &mut node.settings_mut().top;
        *top = top.replace("interval = 3600", "interval = 1");
        node.start_again()?;
        let node = cluster.node(1);
        wait_for("it is repaired", DEADLINE, || (repairs(node).ok()? >= 1.0).then_some(()))?;
        wait_for_segments(cluster.node(1))?;
        cluster.wait_whole()?;
        check_all(cluster.node(1), &topic)
    });
}

#[test]
fn given_the_file_that_is_written_to_is_damaged_when_the_node_starts_then_it_says_so_and_joins_anew_with_an_empty_disk()
 {
    let mut cluster = start(&settings(3_600));
    run_on(&mut cluster, |cluster| {
        let topic = topic_of_first(cluster)?;
        produce_all(cluster.node(1), &topic)?;
        cluster.wait_whole()?;
        let node = cluster.node(3);
        node.kill()?;
        let holder = node.wal_files()?.into_iter().find_map(|path| {
            let bytes = std::fs::read(&path).ok()?;
            let of_last = value(RECORDS - 1);
            bytes.windows(of_last.len()).position(|window| window == of_last)?;
            Some((path, bytes))
        });
        let (path, mut bytes) = holder.context("the last record is in no file")?;
        // The first block that tells of records; others follow it.
        let first = (0..RECORDS).find_map(|offset| {
            let value = value(offset);
            bytes.windows(value.len()).position(|window| window == value)
        });
        bytes[first.context("no record in the file")?] ^= 1;
        std::fs::write(&path, bytes)?;

        node.spawn()?;
        ensure!(!node.wait_exit()?.success(), "it goes on with a damaged log");
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        for words in [name, "empty data_dir"] {
            ensure!(node.log_contains(words), "no {words:?} in {}", node.log_tail());
        }
        let data_dir = node.data_dir().to_path_buf();
        let wal = |args: &[&str]| {
            let dir = data_dir.to_str().context("a path")?;
            run_server(&[&["wal"], args, &[dir]].concat(), DEADLINE)
        };
        for args in [&["verify"][..], &["repair"], &["repair", "--accept-loss"]] {
            let refused = wal(args)?;
            let is_told = refused.text().contains("empty data_dir");
            ensure!(!refused.status.success() && is_told, "{args:?}: {}", refused.text());
        }

        std::fs::remove_dir_all(&data_dir)?;
        cluster.node(3).start_again()?;
        cluster.wait_whole()?;
        check_all(cluster.node(1), &topic)
    });
}
