//! The commands that start three nodes, against real processes and with the smallest load there is: what is checked is the
//! shape of the answer and that it adds up, never how fast anything was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::path::PathBuf;

use chronik_tests::binary::server_binary;
use chronik_tests::cluster::Cluster;
use chronik_tests::process::{Broker, Settings};
use chronik_tests::scratch::ScratchDir;
use serde_json::Value;

use support::{assert_empty, assert_rising, bench, number, report};

/// Where a command works, and the part of its line that says so.
struct Place {
    scratch: ScratchDir,
    data_dir: PathBuf,
    flags: String,
}

impl Place {
    fn new() -> Place {
        let scratch = ScratchDir::new("bench").unwrap();
        let data_dir = scratch.path().join("data");
        let flags = format!(
            "--server {} --data-dir {} --set shards=1 --set wal.file_bytes=8388608 --set wal.ballast_bytes=1048576",
            server_binary().unwrap().display(),
            data_dir.display()
        );
        Place { scratch, data_dir, flags }
    }

    fn report(&self, line: &str) -> Value {
        let report = report(&format!("{line} {}", self.flags));
        assert_empty(&self.data_dir);
        report
    }
}

fn array<'a>(report: &'a Value, pointer: &str) -> &'a Vec<Value> {
    report.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{report}"))
}

/// A node went and came back, and somebody acknowledged meanwhile.
fn assert_step(step: &Value) {
    for part in ["gone", "back"] {
        assert!(number(step, &format!("/{part}/acked")) > 0.0, "{step}");
        assert!(number(step, &format!("/{part}/pause_ms")) > 0.0, "{step}");
        assert!(number(step, &format!("/{part}/slowest_ms")) > 0.0, "{step}");
    }
    assert!(number(step, "/in_sync_ms") > 0.0, "{step}");
}

#[test]
fn given_three_nodes_when_the_leader_is_killed_hangs_or_is_stopped_then_each_round_has_its_pauses()
{
    for by in ["kill", "hang", "stop"] {
        let place = Place::new();
        let line = format!(
            "failover --by {by} --rounds 2 --rate 200 --record-bytes 100 --calm-seconds 0.3 --after-seconds 0.1"
        );
        let report = place.report(&line);
        assert_eq!(report["by"], by);
        let rounds = array(&report, "/rounds");
        assert_eq!(rounds.len(), 2);
        let mut longest: f64 = 0.0;
        for round in rounds {
            assert!(number(round, "/calm/acked") > 0.0, "{round}");
            let steps = array(round, "/steps");
            assert_eq!(steps.len(), 1, "{round}");
            assert_eq!(steps[0]["was_leader"], true, "{round}");
            assert!(number(&steps[0], "/gone/leaders_lost") >= 1.0, "{round}");
            assert_step(&steps[0]);
            longest = longest.max(number(&steps[0], "/gone/pause_ms"));
        }
        assert!((number(&report, "/pause_ms/worst") - longest).abs() < 1e-6, "{report}");
        assert!(number(&report, "/pause_ms/median") <= longest);
        assert_rising(&report["disturbed_latency_ms"]);
        assert_rising(&report["calm_latency_ms"]);
        // Who waited for a leader waited as long as nobody acknowledged, but for the time until the next was due.
        assert!(number(&report, "/slowest_ms/worst") + 50.0 > longest, "{report}");
    }
}

#[test]
fn given_three_nodes_when_the_leader_is_moved_then_another_answers_and_no_node_goes() {
    let place = Place::new();
    let report = place
        .report("failover --by move --rounds 3 --rate 200 --calm-seconds 0.2 --after-seconds 0.2");
    let rounds = array(&report, "/rounds");
    assert_eq!(rounds.len(), 3);
    let mut led = Vec::new();
    for round in rounds {
        let step = &round["steps"][0];
        assert!(number(step, "/gone/acked") > 0.0, "{step}");
        assert_eq!(step["back"], Value::Null, "{step}");
        led.push(step["node"].as_i64().unwrap());
    }
    assert!(led[0] != led[1] && led[1] != led[2], "{led:?}");
}

#[test]
fn given_three_nodes_when_all_are_restarted_in_turn_then_each_has_its_step() {
    let place = Place::new();
    let hgrm = place.scratch.path().join("roll.hgrm");
    let line = format!(
        "failover --by roll --rounds 1 --rate 100 --calm-seconds 0.2 --after-seconds 0.1 --hgrm {}",
        hgrm.display()
    );
    let report = place.report(&line);
    let steps = array(&report, "/rounds/0/steps");
    let nodes: Vec<_> = steps.iter().map(|step| step["node"].as_i64().unwrap()).collect();
    assert_eq!(nodes, [1, 2, 3]);
    assert!(steps.iter().any(|step| step["was_leader"] == true), "{report}");
    steps.iter().for_each(assert_step);
    let count = report["disturbed_latency_ms"]["count"].as_u64().unwrap();
    let saved = std::fs::read_to_string(hgrm).unwrap();
    assert!(saved.contains(&format!("Total count    = {count:12}")), "{saved}");
}

#[test]
fn given_processes_without_data_when_they_start_then_every_step_to_the_first_record_is_timed() {
    let place = Place::new();
    let report = place.report("formation --rounds 1 --pause-seconds 0");
    let starts = array(&report, "/starts");
    let names: Vec<_> = starts.iter().map(|start| start["start"].as_str().unwrap()).collect();
    assert_eq!(names, ["together", "last"]);
    for start in starts {
        let round = &start["rounds"][0];
        let times = ["/visible_ms", "/created_ms", "/writable_ms"].map(|time| number(round, time));
        assert!(times.is_sorted() && times[0] > 0.0, "{round}");
        assert_eq!(start["writable_ms"]["median"], start["writable_ms"]["worst"]);
    }
}

#[test]
fn given_idle_partitions_when_watched_then_every_node_has_its_use() {
    let place = Place::new();
    let report = place.report(
        "idle --partitions 10 --topic-partitions 4 --settle-seconds 0.1 --seconds 0.3 --record-bytes 10",
    );
    assert_eq!(report["partitions"], 10);
    let nodes = array(&report, "/nodes");
    assert_eq!(nodes.len(), 3);
    for node in nodes {
        let [before, after] =
            ["/before/memory_bytes", "/after/memory_bytes"].map(|memory| number(node, memory));
        assert!(before > 0.0, "{node}");
        let each = number(node, "/bytes_per_replica");
        assert!(((after - before) / 10.0 - each).abs() < 1.0, "{node}");
        assert!(number(node, "/after/core_share") <= number(&report, "/worst_core_share"));
        assert!(each <= number(&report, "/worst_bytes_per_replica"));
    }
}

#[test]
fn given_a_node_that_was_away_when_it_comes_back_then_its_speed_stands_beside_a_copys() {
    let place = Place::new();
    let report = place.report(
        "refill --behind --log-bytes 3MiB --partitions 2 --rounds 2 --settle-seconds 0 --beside-rate 100",
    );
    assert_eq!(report["node"], "behind");
    let rounds = array(&report, "/rounds");
    assert_eq!(rounds.len(), 2);
    for round in rounds {
        let bytes = number(round, "/bytes");
        assert!((3_145_728.0..4_000_000.0).contains(&bytes), "{round}");
        let speed = number(round, "/refill_bytes_per_s");
        assert!((speed * number(round, "/refill_s") - bytes).abs() < 1.0, "{round}");
        let ratio = speed / number(round, "/copy_bytes_per_s");
        assert!((ratio - number(round, "/ratio")).abs() < 1e-6, "{round}");
        assert!(number(round, "/beside/refill/acked") > 0.0, "{round}");
        assert!(number(round, "/beside/calm/acked") > 0.0, "{round}");
    }
    assert!(number(&report, "/lowest_ratio") <= number(&report, "/median_ratio"));
    assert_rising(&report["beside_refill_latency_ms"]);
}

#[test]
fn given_a_wiped_node_when_it_comes_back_then_it_has_everything_again() {
    let place = Place::new();
    let report =
        place.report("refill --log-bytes 3MiB --partitions 3 --rounds 1 --settle-seconds 0");
    assert_eq!(report["node"], "wiped");
    let round = &array(&report, "/rounds")[0];
    assert!(number(round, "/disk_bytes") >= number(round, "/bytes"), "{round}");
    assert!(number(round, "/copy_s") > 0.0, "{round}");
    assert_eq!(round["beside"], Value::Null);
    assert_eq!(report["beside_refill_latency_ms"], Value::Null);
}

#[test]
fn given_a_wiped_node_when_its_time_is_too_short_then_the_error_says_so_and_nothing_is_left() {
    let place = Place::new();
    let line = format!(
        "refill --log-bytes 1MiB --partitions 1 --rounds 1 --settle-seconds 0 --deadline-seconds 0.001 {}",
        place.flags
    );
    let finished = bench(&line);
    assert!(!finished.status.success());
    for said in ["not in sync after 1ms", "round 1", "end of the log of node 3"] {
        assert!(finished.stderr.contains(said), "{}", finished.text());
    }
    assert_empty(&place.data_dir);
}

#[test]
fn given_the_processes_of_a_cluster_when_producing_then_their_time_is_told_by_message() {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    let pid = |node: &Broker| {
        let lock = std::fs::read_to_string(node.data_dir().join("lock")).unwrap();
        lock.trim().to_owned()
    };
    let pids: Vec<String> = cluster.nodes().iter().map(pid).collect();
    let line = format!(
        "produce --bootstrap {} --pids {} --replicas 3 --rate 200 --seconds 1 --warmup-seconds 0.1",
        cluster.nodes()[0].bootstrap(),
        pids.join(",")
    );
    let report = report(&line);
    assert_eq!(report["broker_cpu"]["processes"], 3);
    let cpu_us = number(&report, "/broker_cpu/cpu_s") * 1e6;
    let messages = number(&report, "/records_acked");
    assert!((cpu_us / messages - number(&report, "/broker_cpu/us_per_message")).abs() < 1e-3);
    assert!(number(&report, "/cores/load_average") >= 0.0);
}
