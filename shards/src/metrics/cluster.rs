//! What is counted of other nodes and of replicas: one sample per peer, one per group that had snapshots.

use chronik_replication::peers::{PeerStats, TransferDrop};

use super::prometheus::Exposition;
use super::shard::ShardSnapshot;
use crate::core::SnapshotFigures;

/// The catalog's name where a topic's would stand.
pub const CATALOG: &str = "__meta";

/// The Raft snapshots of one partition, or of the catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotSample {
    /// The topic; [`CATALOG`] is the catalog.
    pub topic: String,
    pub partition: u32,
    pub figures: SnapshotFigures,
}

/// One metric of a peer.
struct PeerMetric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&PeerStats) -> u64,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    value: fn(&PeerStats) -> u64,
) -> PeerMetric {
    PeerMetric { name, kind: "counter", help, value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&PeerStats) -> u64) -> PeerMetric {
    PeerMetric { name, kind: "gauge", help, value }
}

static PEER_METRICS: &[PeerMetric] = &[
    gauge("chronik_peer_up", "Whether there is a link to the peer.", |peer| u64::from(peer.is_up)),
    counter("chronik_peer_received_bytes_total", "Bytes received.", |peer| peer.bytes_in),
    counter("chronik_peer_sent_bytes_total", "Bytes sent.", |peer| peer.bytes_out),
    counter("chronik_peer_received_frames_total", "Frames received.", |peer| peer.frames_in),
    counter("chronik_peer_sent_frames_total", "Frames sent.", |peer| peer.frames_out),
    counter("chronik_peer_received_messages_total", "Raft messages received.", |peer| {
        peer.messages_in
    }),
    counter("chronik_peer_sent_messages_total", "Raft messages sent.", |peer| peer.messages_out),
    counter(
        "chronik_peer_dropped_messages_total",
        "Raft messages lost: without a link, without room in the queue, or with their link.",
        |peer| peer.messages_dropped,
    ),
    gauge("chronik_peer_queue_bytes", "Bytes that wait to be sent.", |peer| {
        peer.queue_bytes as u64
    }),
    counter("chronik_peer_connects_total", "Links that came up.", |peer| peer.connects),
    counter("chronik_peer_losses_total", "Links that went down.", |peer| peer.losses),
    gauge(
        "chronik_peer_protocol_version",
        "The version of the protocol between nodes that the last link spoke.",
        |peer| peer.version.into(),
    ),
];

impl Exposition {
    /// Every shard's links to shards of other nodes.
    pub(super) fn peers(&mut self, shards: &[ShardSnapshot]) {
        if shards.iter().all(|shard| shard.peers.is_empty()) {
            return;
        }
        for metric in PEER_METRICS {
            self.header(metric.name, metric.kind, metric.help);
            self.each_peer(shards, metric.name, |peer| Some((metric.value)(peer).to_string()));
        }
        self.dropped_transfers(shards);
        let name = "chronik_peer_rtt_seconds";
        self.header(name, "gauge", "From a ping to its answer, the last time the link was quiet.");
        self.each_peer(shards, name, |peer| {
            peer.rtt.map(|rtt| format!("{}.{:09}", rtt.as_secs(), rtt.subsec_nanos()))
        });
    }

    /// Why links to other nodes did not come up.
    pub(super) fn refusals(&mut self, shards: &[ShardSnapshot]) {
        if shards.iter().all(|shard| shard.refusals.is_empty()) {
            return;
        }
        let name = "chronik_peer_handshakes_refused_total";
        self.header(
            name,
            "counter",
            "Handshakes that this node (here) or the other one (peer) refused.",
        );
        for shard in shards {
            let own = shard.shard.map_or_else(|| "all".to_owned(), |shard| shard.0.to_string());
            for refusals in &shard.refusals {
                let by = if refusals.by_peer { "peer" } else { "here" };
                let labels =
                    [("shard", own.as_str()), ("by", by), ("reason", refusals.reason.label())];
                self.sample(name, &labels, &refusals.count.to_string());
            }
        }
    }

    fn dropped_transfers(&mut self, shards: &[ShardSnapshot]) {
        let name = "chronik_peer_dropped_transfers_total";
        let help = "Snapshots from the peer that were dropped between two of their parts, by why.";
        self.header(name, "counter", help);
        for (at, reason) in TransferDrop::ALL.into_iter().enumerate() {
            let reason = Some(("reason", reason.name()));
            self.each_peer_with(shards, name, reason, |peer| {
                peer.transfers_dropped.get(at).map(u64::to_string)
            });
        }
    }

    fn each_peer(
        &mut self,
        shards: &[ShardSnapshot],
        name: &str,
        value: impl Fn(&PeerStats) -> Option<String>,
    ) {
        self.each_peer_with(shards, name, None, value);
    }

    fn each_peer_with(
        &mut self,
        shards: &[ShardSnapshot],
        name: &str,
        label: Option<(&str, &str)>,
        value: impl Fn(&PeerStats) -> Option<String>,
    ) {
        for shard in shards {
            let own = shard.shard.map_or_else(|| "all".to_owned(), |shard| shard.0.to_string());
            for peer in &shard.peers {
                let Some(value) = value(peer) else { continue };
                let (node, peer_shard) =
                    (peer.seat.node.0.to_string(), peer.seat.shard.0.to_string());
                let of = [("shard", own.as_str()), ("peer", &node), ("peer_shard", &peer_shard)];
                let labels: Vec<_> = of.into_iter().chain(label).collect();
                self.sample(name, &labels, &value);
            }
        }
    }

    /// The catalog, and every other group that had a Raft snapshot since the start. The catalog is always there, so that
    /// an alert finds its series before the first snapshot is made.
    pub(super) fn snapshots(&mut self, shards: &[ShardSnapshot]) {
        let catalog = SnapshotSample { topic: CATALOG.to_owned(), ..SnapshotSample::default() };
        let had_some = || shards.iter().flat_map(|shard| &shard.snapshots);
        let is_there = had_some().any(|sample| sample.topic == CATALOG);
        let samples: Vec<_> = had_some().chain((!is_there).then_some(&catalog)).collect();
        let name = "chronik_raft_snapshot_count";
        self.header(
            name,
            "gauge",
            "Raft snapshots made since the start, by what they were made for.",
        );
        for sample in &samples {
            let partition = sample.partition.to_string();
            let trigger = ("trigger", "follower");
            let labels = [("topic", sample.topic.as_str()), ("partition", &partition), trigger];
            self.sample(name, &labels, &sample.figures.sent.to_string());
        }
        let name = "chronik_raft_snapshot_size_bytes";
        self.header(name, "gauge", "Bytes of the last Raft snapshot, without records.");
        self.each_snapshot(&samples, name, |figures| figures.size_bytes.to_string());
        let name = "chronik_raft_snapshot_last_index";
        self.header(name, "gauge", "The entry that the last Raft snapshot stands for.");
        self.each_snapshot(&samples, name, |figures| figures.last_index.0.to_string());
        let name = "chronik_raft_snapshot_create_latency_ms";
        self.header(name, "gauge", "How long it took to make the last Raft snapshot.");
        self.each_snapshot(&samples, name, |figures| milliseconds(figures.created_ns));
        let name = "chronik_raft_snapshot_apply_latency_ms";
        let help = "How long it took to put the last Raft snapshot in the place of the state.";
        self.header(name, "gauge", help);
        self.each_snapshot(&samples, name, |figures| milliseconds(figures.applied_ns));
        self.transfers(&samples);
    }

    fn transfers(&mut self, samples: &[&SnapshotSample]) {
        let name = "chronik_raft_snapshot_transfers_total";
        self.header(name, "counter", "Raft snapshots sent and received, by what became of them.");
        for sample in samples {
            let (partition, figures) = (sample.partition.to_string(), &sample.figures);
            for (direction, result, count) in [
                ("upload", "success", figures.ends.arrived),
                ("upload", "failure", figures.ends.lost),
                ("download", "success", figures.installed),
                ("download", "failure", figures.dropped),
            ] {
                let of = [("topic", sample.topic.as_str()), ("partition", &partition)];
                let labels = [of[0], of[1], ("direction", direction), ("result", result)];
                self.sample(name, &labels, &count.to_string());
            }
        }
    }

    fn each_snapshot(
        &mut self,
        samples: &[&SnapshotSample],
        name: &str,
        value: fn(&SnapshotFigures) -> String,
    ) {
        for sample in samples {
            let partition = sample.partition.to_string();
            let labels = [("topic", sample.topic.as_str()), ("partition", &partition)];
            self.sample(name, &labels, &value(&sample.figures));
        }
    }
}

fn milliseconds(ns: u64) -> String {
    format!("{}.{:06}", ns / 1_000_000, ns % 1_000_000)
}
