//! Every subcommand against the real broker, with the smallest load there is: what is checked is the shape of the answer
//! and that it adds up, never how fast anything was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use chronik_tests::binary::server_binary;
use chronik_tests::process::{Broker, Settings};
use chronik_tests::scratch::ScratchDir;
use serde_json::Value;

use support::{assert_empty, assert_rising, bench, number, report};

fn broker() -> Broker {
    let quick = Settings::new().with_top("group.initial_rebalance_delay_ms = 0");
    Broker::start(quick).unwrap()
}

#[test]
fn given_a_rate_when_producing_then_every_record_of_the_schedule_is_accounted_for() {
    let broker = broker();
    let scratch = ScratchDir::new("bench").unwrap();
    let hgrm = scratch.path().join("latency.hgrm");
    let line = format!(
        "produce --bootstrap {} --rate 200 --seconds 0.5 --warmup-seconds 0.2 --record-bytes 100 --topics 2 \
         --partitions 3 --connections 2 --hgrm {}",
        broker.bootstrap(),
        hgrm.display()
    );
    let report = report(&line);
    assert_eq!(report["mode"], "open");
    assert_eq!(report["records_acked"], 100);
    assert_eq!(report["latency_ms"]["count"], 100);
    assert_eq!(report["send_delay_ms"]["count"], 100);
    for none in ["errors", "unanswered", "unsent"] {
        assert_eq!(report[none], 0, "{report}");
    }
    assert_rising(&report["latency_ms"]);
    let saved = std::fs::read_to_string(hgrm).unwrap();
    assert!(saved.contains("Total count    =          100"), "{saved}");
}

#[test]
fn given_no_rate_when_producing_then_throughput_and_latency_are_of_the_same_requests() {
    let broker = broker();
    let line = format!(
        "produce --bootstrap {} --rate 0 --seconds 0.4 --warmup-seconds 0.1 --record-bytes 50 --batch-records 10 \
         --inflight 3 --connections 2",
        broker.bootstrap()
    );
    let report = report(&line);
    assert_eq!(report["mode"], "closed");
    let records = number(&report, "/records_acked");
    assert!(records > 0.0);
    assert!((records - 10.0 * number(&report, "/latency_ms/count")).abs() < 0.5, "{report}");
    assert!((number(&report, "/records_per_s") * 0.4 - records).abs() < 1.0, "{report}");
    assert_eq!(report["send_delay_ms"], Value::Null);
}

#[test]
fn given_acks_0_when_producing_then_what_was_sent_is_counted_and_no_latency_claimed() {
    let broker = broker();
    let line = format!(
        "produce --bootstrap {} --acks 0 --rate 100 --seconds 0.3 --warmup-seconds 0",
        broker.bootstrap()
    );
    let report = report(&line);
    assert_eq!(report["records_acked"], 30);
    assert_eq!(report["latency_ms"]["count"], 0);
}

#[test]
fn given_two_brokers_when_paired_then_pools_hold_all_rounds_and_ratios_are_by_round() {
    let (a, b) = (broker(), broker());
    let line = format!(
        "pairs --bootstrap {} --bootstrap {} --rounds 2 --rate 100 --seconds 0.3 --warmup-seconds 0.1 --strict",
        a.bootstrap(),
        b.bootstrap()
    );
    let report = report(&line);
    for side in 0..2 {
        let pooled = number(&report, &format!("/sides/{side}/pooled_latency_ms/count"));
        assert!((pooled - 60.0).abs() < 0.5, "{report}");
        assert_eq!(report["sides"][side]["rounds"].as_array().unwrap().len(), 2);
    }
    assert_eq!(report["ratios"][0]["of"], "B");
    assert_eq!(report["ratios"][0]["rounds"].as_array().unwrap().len(), 2);
    assert!(number(&report, "/ratios/0/pooled/p99_9") > 0.0);
}

#[test]
fn given_a_group_when_members_come_and_go_then_every_round_has_its_times() {
    let broker = broker();
    for assignor in ["range", "roundrobin"] {
        let line = format!(
            "groups --bootstrap {} --members 4 --partitions 6 --rounds 3 --heartbeat-ms 40,10 --assignor {assignor}",
            broker.bootstrap()
        );
        let report = report(&line);
        let groups = report["groups"].as_array().unwrap();
        assert_eq!(groups.len(), 2);
        for (group, heartbeat_ms) in groups.iter().zip([40.0, 10.0]) {
            for (index, event) in ["leave", "join"].into_iter().enumerate() {
                let times = &group["events"][index];
                assert_eq!(times["event"], event);
                assert!((number(times, "/heartbeat_ms") - heartbeat_ms).abs() < 0.01);
                assert_eq!(times["rounds_ms"].as_array().unwrap().len(), 3);
                let (median, max) = (number(times, "/median_ms"), number(times, "/max_ms"));
                assert!(0.0 < median && median <= max, "{times}");
                let after = number(times, "/after_last_heard_max_ms");
                assert!(0.0 < after && after <= max, "{times}");
            }
        }
    }
}

#[test]
fn given_connections_when_committing_offsets_then_commits_are_counted() {
    let broker = broker();
    let line = format!(
        "groups --bootstrap {} --commits --connections 2 --inflight 2 --partitions 2 --seconds 0.4 --warmup-seconds 0.1",
        broker.bootstrap()
    );
    let report = report(&line);
    assert!(number(&report, "/commits") > 0.0);
    assert_eq!(report["commits"], report["latency_ms"]["count"]);
    assert_eq!(report["errors"], 0, "{report}");
    assert_rising(&report["latency_ms"]);
}

#[test]
fn given_a_broker_when_killed_while_writing_then_its_first_records_are_timed_and_nothing_is_left() {
    let scratch = ScratchDir::new("bench").unwrap();
    let data_dir = scratch.path().join("data");
    let line = format!(
        "restart --server {} --data-dir {} --log-bytes 4MiB,8MiB --between-bytes 2MiB --rounds 2 --partitions 2 \
         --set shards=2 --set wal.file_bytes=8388608 --set wal.ballast_bytes=1048576",
        server_binary().unwrap().display(),
        data_dir.display()
    );
    let report = report(&line);
    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 2);
    for size in sizes {
        let rounds = size["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2);
        for round in rounds {
            for figure in ["first_fetch_end_ms", "first_fetch_start_ms", "read_active_ms"] {
                assert!(round[figure].as_f64().unwrap() > 0.0, "{round}");
            }
            assert!(round["active_bytes"].as_u64().unwrap() > 0, "{round}");
        }
    }
    assert_empty(&data_dir);
}

#[test]
fn given_many_partitions_when_made_then_all_acknowledge_and_nothing_is_left() {
    let scratch = ScratchDir::new("bench").unwrap();
    let data_dir = scratch.path().join("data");
    let line = format!(
        "many --server {} --data-dir {} --partitions 40 --settle-seconds 0.1 --set shards=2 \
         --set wal.file_bytes=8388608 --set wal.ballast_bytes=1048576",
        server_binary().unwrap().display(),
        data_dir.display()
    );
    let report = report(&line);
    assert_eq!(report["partitions"], 40);
    assert!(number(&report, "/writable_ms") >= number(&report, "/created_ms"));
    assert!(number(&report, "/memory_after_bytes") > 0.0);
    assert_empty(&data_dir);
}

#[test]
fn given_no_json_flag_when_run_then_the_table_is_what_is_printed() {
    let broker = broker();
    let line = format!(
        "produce --bootstrap {} --rate 100 --seconds 0.2 --warmup-seconds 0 --delete-topics",
        broker.bootstrap()
    );
    let finished = bench(&line);
    assert!(finished.status.success(), "{}", finished.text());
    for column in ["p99.99", "acknowledged after", "sent after due", "records/s"] {
        assert!(finished.stdout.contains(column), "{}", finished.stdout);
    }
}

#[test]
fn given_what_cannot_be_run_when_started_then_the_error_says_why() {
    let nobody = "127.0.0.1:1";
    let cases = [
        (format!("produce --bootstrap {nobody}"), "connecting to 127.0.0.1:1"),
        (format!("produce --bootstrap {nobody} --rate 0 --acks 0"), "none does"),
        (format!("pairs --bootstrap {nobody}"), "twice"),
        (
            format!("produce --bootstrap {nobody} --rate 1000000000 --seconds 60"),
            "more than one run",
        ),
        ("many --server /nowhere".to_owned(), "/nowhere is no file"),
        ("produce --bootstrap h:1 --speed 9".to_owned(), "--speed"),
    ];
    for (line, why) in cases {
        let finished = bench(&line);
        assert!(!finished.status.success(), "{line}");
        assert!(finished.stderr.contains(why), "{line}: {}", finished.stderr);
    }
}

#[test]
fn given_three_bare_nodes_when_records_are_due_then_each_is_durable_and_their_time_is_counted() {
    let scratch = ScratchDir::new("bench").unwrap();
    let line = format!(
        "floor --rate 100 --seconds 0.5 --warmup-seconds 0.1 --record-bytes 100 --dir {}",
        scratch.path().display()
    );
    let report = report(&line);
    assert_eq!(report["latency"]["count"], 50);
    assert_rising(&report["latency"]);
    assert_eq!(report["cpu"]["processes"], 3);
    assert!(number(&report, "/cpu/us_per_message") > 0.0, "{report}");
    assert_empty(scratch.path());
}
