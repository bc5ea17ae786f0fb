//! The figures in Prometheus' text exposition format (version 0.0.4).

use std::fmt::Write as _;

use chronik_engine::ids::NodeId;
use kafka_protocol::ResponseError;

use super::counters::{METRICS, MetricType, Scope};
use super::shard::{ErrorCounts, ShardSnapshot, Stage};

const QUANTILES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];
const LATENCY_METRIC: &str = "chronik_stage_latency_seconds";

/// Renders the figures of all shards of a node.
#[must_use]
pub fn render_prometheus(shards: &[ShardSnapshot], node: NodeId) -> String {
    let mut out = Exposition(String::with_capacity(16 * 1024));
    out.header("chronik_build_info", "gauge", "The version that runs; always 1.");
    out.sample(
        "chronik_build_info",
        &[("node_id", &node.to_string()), ("version", env!("CARGO_PKG_VERSION"))],
        "1",
    );
    let all = ShardSnapshot::merged(shards);
    for metric in METRICS {
        let metric_type = match metric.metric_type {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
        };
        out.header(metric.name, metric_type, metric.help.trim());
        match metric.scope {
            Scope::Node => {
                let value = (metric.value)(&all.counters).to_string();
                out.sample(metric.name, &[("node_id", &node.to_string())], &value);
            }
            Scope::Shard => {
                for shard in shards {
                    let value = (metric.value)(&shard.counters).to_string();
                    out.sample(metric.name, &[("shard", &shard_label(shard))], &value);
                }
            }
        }
    }
    out.errors("chronik_produce_errors_total", "Produce errors answered.", shards, |shard| {
        &shard.produce_errors
    });
    out.errors("chronik_fetch_errors_total", "Fetch errors answered.", shards, |shard| {
        &shard.fetch_errors
    });
    out.latencies(shards);
    out.peers(shards);
    out.refusals(shards);
    out.snapshots(shards);
    out.0
}

fn shard_label(shard: &ShardSnapshot) -> String {
    shard.shard.map_or_else(|| "all".to_owned(), |shard| shard.0.to_string())
}

/// A Kafka error as Kafka's documentation spells it: `UNKNOWN_TOPIC_OR_PARTITION`.
fn error_name(code: i16) -> String {
    match ResponseError::try_from_code(code) {
        None => "NONE".to_owned(),
        Some(ResponseError::Unknown(code)) => format!("CODE_{code}"),
        Some(error) => {
            let camel = error.to_string();
            let mut name = String::with_capacity(camel.len() + 8);
            for (at, letter) in camel.chars().enumerate() {
                if at > 0 && letter.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_uppercase());
            }
            name
        }
    }
}

/// Nanoseconds as seconds, exact to the nanosecond.
fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

pub(super) struct Exposition(String);

impl Exposition {
    pub(super) fn header(&mut self, name: &str, metric_type: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {metric_type}"));
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| {
                let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{label}=\"{escaped}\"")
            })
            .collect();
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    fn errors(
        &mut self,
        name: &str,
        help: &str,
        shards: &[ShardSnapshot],
        of: fn(&ShardSnapshot) -> &ErrorCounts,
    ) {
        self.header(name, "counter", help);
        for shard in shards {
            for (code, count) in of(shard).iter() {
                let (label, error) = (shard_label(shard), error_name(code));
                self.sample(name, &[("shard", &label), ("error", &error)], &count.to_string());
            }
        }
    }

    fn latencies(&mut self, shards: &[ShardSnapshot]) {
        self.header(LATENCY_METRIC, "summary", "Time per stage of a request since the start.");
        for shard in shards {
            let label = shard_label(shard);
            for stage in Stage::ALL {
                let times = shard.stage(stage);
                for quantile in QUANTILES {
                    // An empty summary has no quantiles; Prometheus writes them as NaN.
                    let value = if times.histogram.is_empty() {
                        "NaN".to_owned()
                    } else {
                        seconds(times.histogram.value_at_quantile(quantile))
                    };
                    let labels = [
                        ("shard", label.as_str()),
                        ("stage", stage.name()),
                        ("quantile", &quantile.to_string()),
                    ];
                    self.sample(LATENCY_METRIC, &labels, &value);
                }
                let labels = [("shard", label.as_str()), ("stage", stage.name())];
                self.sample(&format!("{LATENCY_METRIC}_sum"), &labels, &seconds(times.sum_ns));
                let count = times.histogram.len().to_string();
                self.sample(&format!("{LATENCY_METRIC}_count"), &labels, &count);
            }
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        let written = writeln!(self.0, "{line}");
        assert!(written.is_ok(), "text grows in memory");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use std::time::Duration;

    use chronik_engine::ids::{RaftIndex, ShardId};
    use chronik_replication::SnapshotEnds;
    use chronik_replication::peers::{PeerStats, Refusals};
    use chronik_replication::wire::{RefusedReason, Seat};

    use super::super::cluster::SnapshotSample;
    use super::super::shard::ShardMetrics;
    use super::*;
    use crate::core::SnapshotFigures;

    /// What a scraper reads: each sample by its name and labels. Panics on what Prometheus would refuse.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut types: BTreeMap<&str, &str> = BTreeMap::new();
        let mut helped: BTreeSet<&str> = BTreeSet::new();
        let mut samples = BTreeMap::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty() && helped.insert(name), "{line}");
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
                assert!(types.insert(name, kind).is_none(), "{name} is typed twice");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap();
            let labels = labels.strip_suffix('}').unwrap();
            for label in labels.split(',') {
                let (label, value) = label.split_once('=').unwrap();
                assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
                assert!(value.len() >= 2 && value.starts_with('"') && value.ends_with('"'));
            }
            let family = types.keys().find(|family| {
                name == **family
                    || (types[**family] == "summary"
                        && [format!("{family}_sum"), format!("{family}_count")]
                            .contains(&name.to_owned()))
            });
            let family = family.unwrap_or_else(|| panic!("{name} has no TYPE before it"));
            assert!(helped.contains(family));
            assert_eq!(types[family] == "counter", name.ends_with("_total"), "{name}");
            let value: f64 = value.parse().unwrap();
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
        }
        samples
    }

    #[test]
    fn given_two_shards_when_rendered_then_a_scraper_reads_their_figures() {
        let mut one = ShardMetrics::new(ShardId(0));
        let mut other = ShardMetrics::new(ShardId(1));
        one.counters.produce_requests = 3;
        other.counters.produce_requests = 4;
        one.counters.raft_commit_index = 10;
        other.counters.raft_commit_index = 12;
        other.produce_errors.record(3);
        for _ in 0..100 {
            one.record(Stage::WalSync, 2_000_000);
        }
        let text = render_prometheus(&[one.snapshot(), other.snapshot()], NodeId(7));
        let samples = parse(&text);
        assert_eq!(samples["chronik_produce_requests_total{shard=\"0\"}"], 3.0);
        assert_eq!(samples["chronik_produce_requests_total{shard=\"1\"}"], 4.0);
        assert_eq!(samples["raft_commit_index{node_id=\"7\"}"], 12.0);
        let error =
            "chronik_produce_errors_total{shard=\"1\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"}";
        assert_eq!(samples[error], 1.0);
        let wal_sync = "shard=\"0\",stage=\"wal_sync\"";
        assert_eq!(samples[&format!("{LATENCY_METRIC}_count{{{wal_sync}}}")], 100.0);
        assert!((samples[&format!("{LATENCY_METRIC}_sum{{{wal_sync}}}")] - 0.2).abs() < 1e-9);
        let p99 = samples[&format!("{LATENCY_METRIC}{{{wal_sync},quantile=\"0.99\"}}")];
        assert!((p99 - 0.002).abs() < 0.000_01, "{p99}");
    }

    #[test]
    fn given_peers_and_snapshots_when_rendered_then_each_has_its_samples() {
        let seat = Seat { node: NodeId(3), shard: ShardId(1) };
        let stats = PeerStats {
            seat,
            is_up: true,
            bytes_in: 11,
            bytes_out: 12,
            frames_in: 1,
            frames_out: 2,
            messages_in: 3,
            messages_out: 4,
            messages_dropped: 5,
            queue_bytes: 6,
            connects: 2,
            losses: 1,
            transfers_dropped: [0, 0, 8, 0, 0, 0, 0, 0, 0],
            rtt: Some(Duration::from_micros(1_500)),
            version: 1,
        };
        let silent = PeerStats { seat: Seat { node: NodeId(4), ..seat }, rtt: None, ..stats };
        let mut snapshot = ShardMetrics::new(ShardId(0)).snapshot();
        snapshot.peers = vec![stats, silent];
        let reason = RefusedReason::BadProof;
        snapshot.refusals = vec![Refusals { reason, by_peer: false, count: 9 }];
        snapshot.snapshots = vec![SnapshotSample {
            topic: "orders".to_owned(),
            partition: 4,
            figures: SnapshotFigures {
                sent: 5,
                ends: SnapshotEnds { arrived: 2, lost: 1 },
                installed: 3,
                dropped: 4,
                size_bytes: 77,
                last_index: RaftIndex(900),
                created_ns: 1_500_000,
                applied_ns: 2_000_001,
            },
        }];
        let samples = parse(&render_prometheus(&[snapshot], NodeId(1)));
        let peer = "shard=\"0\",peer=\"3\",peer_shard=\"1\"";
        for (name, value) in [("up", 1.0), ("sent_bytes_total", 12.0), ("queue_bytes", 6.0)] {
            assert_eq!(samples[&format!("chronik_peer_{name}{{{peer}}}")], value, "{name}");
        }
        let refused = "shard=\"0\",by=\"here\",reason=\"bad_proof\"";
        assert_eq!(samples[&format!("chronik_peer_handshakes_refused_total{{{refused}}}")], 9.0);
        let rtt = samples[&format!("chronik_peer_rtt_seconds{{{peer}}}")];
        assert!((rtt - 0.0015).abs() < 1e-9, "{rtt}");
        let dropped = "chronik_peer_dropped_transfers_total";
        assert_eq!(samples[&format!("{dropped}{{{peer},reason=\"foreign\"}}")], 8.0);
        assert_eq!(samples[&format!("{dropped}{{{peer},reason=\"idle\"}}")], 0.0);
        let unknown = peer.replace('3', "4");
        assert!(!samples.contains_key(&format!("chronik_peer_rtt_seconds{{{unknown}}}")));
        let of = "topic=\"orders\",partition=\"4\"";
        assert_eq!(samples[&format!("chronik_raft_snapshot_size_bytes{{{of}}}")], 77.0);
        for (name, value) in
            [("last_index", 900.0), ("create_latency_ms", 1.5), ("apply_latency_ms", 2.000_001)]
        {
            assert_eq!(samples[&format!("chronik_raft_snapshot_{name}{{{of}}}")], value, "{name}");
        }
        for (direction, result, count) in [
            ("upload", "success", 2.0),
            ("upload", "failure", 1.0),
            ("download", "success", 3.0),
            ("download", "failure", 4.0),
        ] {
            let labels = format!("{of},direction=\"{direction}\",result=\"{result}\"");
            let name = format!("chronik_raft_snapshot_transfers_total{{{labels}}}");
            assert_eq!(samples[&name], count, "{labels}");
        }
        let count = format!("chronik_raft_snapshot_count{{{of},trigger=\"follower\"}}");
        assert_eq!(samples[&count], 5.0);
    }

    #[test]
    fn given_the_promised_names_when_rendered_then_each_is_there() {
        let text = render_prometheus(&[ShardMetrics::new(ShardId(0)).snapshot()], NodeId(1));
        let samples = parse(&text);
        for name in [
            "raft_leader_elections_total",
            "raft_append_entries_total",
            "raft_vote_requests_total",
            "raft_heartbeats_total",
            "raft_log_entries",
            "raft_current_term",
            "raft_commit_index",
        ] {
            assert!(samples.contains_key(&format!("{name}{{node_id=\"1\"}}")), "{name}");
        }
        for name in ["size_bytes", "last_index", "create_latency_ms", "apply_latency_ms"] {
            let of = "{topic=\"__meta\",partition=\"0\"}";
            assert!(samples.contains_key(&format!("chronik_raft_snapshot_{name}{of}")), "{name}");
        }
        let count =
            "chronik_raft_snapshot_count{topic=\"__meta\",partition=\"0\",trigger=\"follower\"}";
        assert!(samples.contains_key(count));
    }

    #[test]
    fn given_error_codes_when_named_then_they_are_spelled_as_in_kafka() {
        assert_eq!(error_name(2), "CORRUPT_MESSAGE");
        assert_eq!(error_name(6), "NOT_LEADER_OR_FOLLOWER");
        assert_eq!(error_name(-1), "UNKNOWN_SERVER_ERROR");
    }
}
