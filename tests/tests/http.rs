//! The pages for operators: on the admin port, and those that are also on the Kafka port.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use chronik_tests::batch::BatchBuilder;
use chronik_tests::http::{self, Metrics};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::RawConnection;

fn metrics(addr: SocketAddr) -> Metrics {
    let answer = http::get(addr, "/metrics").unwrap();
    assert_eq!(answer.status, 200);
    let content_type = &answer.headers["content-type"];
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    Metrics::parse(&answer.body).unwrap()
}

#[test]
fn given_a_broker_when_its_pages_are_asked_for_then_each_is_there_on_both_ports() {
    let broker = Broker::start(Settings::new()).unwrap();
    let (kafka, admin) = (broker.ports().kafka_addr(), broker.ports().admin_addr());
    for (addr, path) in [
        (admin, "/health"),
        (admin, "/ready"),
        (admin, "/metrics"),
        (kafka, "/health"),
        (kafka, "/metrics"),
    ] {
        let answer = http::get(addr, path).unwrap();
        assert_eq!(answer.status, 200, "{addr}{path}");
        assert!(!answer.body.is_empty(), "{addr}{path}");
    }
    for addr in [admin, kafka] {
        assert_eq!(http::get(addr, "/no-such-page").unwrap().status, 404, "{addr}");
    }
}

#[test]
fn given_a_broker_when_its_metrics_are_read_then_they_parse_and_have_the_promised_names() {
    let broker = Broker::start(Settings::new()).unwrap();
    let metrics = metrics(broker.ports().admin_addr());
    for name in [
        "raft_leader_elections_total",
        "raft_append_entries_total",
        "raft_vote_requests_total",
        "raft_heartbeats_total",
        "raft_log_entries",
        "raft_current_term",
        "raft_commit_index",
    ] {
        let sample = metrics.all(name).next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(sample.labels.get("node_id").map(String::as_str), Some("1"), "{name}");
    }
    let latencies =
        metrics.types.values().filter(|kind| ["histogram", "summary"].contains(&kind.as_str()));
    assert!(latencies.count() > 0, "no latencies");
}

#[test]
fn given_records_produced_when_the_metrics_are_read_again_then_they_have_moved_on_both_ports() {
    let broker = Broker::start(Settings::new()).unwrap();
    let (kafka, admin) = (broker.ports().kafka_addr(), broker.ports().admin_addr());
    let topic = fresh_name("counted");
    let mut connection = RawConnection::open(kafka).unwrap();
    connection.ensure_topic(&topic).unwrap();
    let before = metrics(admin);
    for _ in 0..50 {
        let batch = BatchBuilder::of_value(vec![1; 1_000]).build();
        assert_eq!(connection.produce(&topic, 0, batch).unwrap().error_code, 0);
    }
    for addr in [admin, kafka] {
        let after = metrics(addr);
        let names: Vec<&String> =
            after.types.keys().filter(|name| name.contains("produce")).collect();
        let moved = |name: &String| {
            [name.clone(), format!("{name}_count")]
                .iter()
                .any(|n| after.sum(n) >= before.sum(n) + 50.0)
        };
        assert!(names.iter().any(|name| moved(name)), "50 produces moved none of {names:?}");
        for (name, kind) in &after.types {
            if kind == "counter" && before.types.contains_key(name) {
                assert!(after.sum(name) >= before.sum(name), "counter {name} went back");
            }
        }
    }
}
