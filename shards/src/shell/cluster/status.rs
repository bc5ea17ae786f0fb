//! How the cluster is: which nodes can be heard, who leads how much, which replicas are behind. Gathered when it is asked
//! for, from every node that can be heard.
//!
//! - I1: what is told is the sum of what each leader knows of its own groups, at slightly different moments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::framed;
use chronik_engine::ids::{GroupId, NodeId, RaftIndex, ReplicaId, ShardId};
use chronik_replication::PeerProgress;
use chronik_replication::peers::Replier;
use chronik_replication::wire::CallRefused;
use futures_util::future::join_all;
use serde::Serialize;

use super::META_SHARD;
use crate::catalog::{Catalog, Partition};
use crate::shell::shard::Shard;

/// A call that asks what a node knows of the groups that it leads.
pub(super) const CALL_STATUS: u8 = 3;

const VERSION: u8 = 1;
/// Most memory that a node's report may claim.
const REPORT_BYTES_MAX: usize = 64 << 20;
/// For a node's report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Partitions that the text names one by one.
const NAMED_MAX: usize = 20;

/// A replica that is behind, as its leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
struct Behind {
    group: GroupId,
    replica: ReplicaId,
    entries: u64,
}

/// What a node, or one shard of it, knows of its groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
struct Report {
    replicas: u64,
    led: Vec<GroupId>,
    behind: Vec<Behind>,
}

/// How the cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// Kafka's cluster id.
    pub cluster_id: String,
    /// The node that leads the catalog.
    pub controller: Option<u32>,
    /// The nodes, by id.
    pub nodes: Vec<NodeStatus>,
    /// Partitions with a replica that is behind, by the node that it is on.
    pub under_replicated: Vec<PartitionStatus>,
    /// Partitions that no node which can be heard leads.
    pub leaderless: Vec<PartitionStatus>,
    /// Partitions whose replicas are on their way to other nodes, or to another disk.
    pub moving: usize,
    /// Partitions with one replica, which go with its node.
    pub single_replica: usize,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: u32,
    /// Where Kafka clients reach it.
    pub kafka_addr: String,
    /// Whether it can be heard.
    pub up: bool,
    /// Whether it is drained: it gets no new replicas and leads nothing by preference.
    pub cordoned: bool,
    /// Partitions that it leads.
    pub leaders: usize,
    /// Replicas that it has.
    pub replicas: u64,
}

/// A partition that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// The topic; `__meta` is the catalog.
    pub topic: String,
    /// Its number.
    pub partition: usize,
    /// The nodes whose replicas are behind, each with the committed entries that it lacks.
    pub behind: BTreeMap<u32, u64>,
}

impl Report {
    fn add(&mut self, other: Report) {
        self.replicas += other.replicas;
        self.led.extend(other.led);
        self.behind.extend(other.behind);
    }
}

/// How many entries it lacks, if it is not in good order.
fn lag(peer: &PeerProgress, commit: RaftIndex) -> Option<u64> {
    (!peer.has_caught_up(commit)).then(|| commit.0.saturating_sub(peer.matched.0))
}

impl Shard {
    fn report(&self) -> Report {
        self.with_core(|core| {
            let replicas = u64::try_from(core.group_ids().count()).unwrap_or(u64::MAX);
            let mut report = Report { replicas, ..Report::default() };
            for (group, _, _) in core.led_groups() {
                report.led.push(group);
                let commit = core.commit_index(group).unwrap_or_default();
                let peers = core.members(group).map(|(_, progress)| progress).unwrap_or_default();
                let behind = peers.iter().filter_map(|peer| {
                    let entries = lag(peer, commit)?;
                    Some(Behind { group, replica: peer.replica, entries })
                });
                report.behind.extend(behind);
            }
            report
        })
    }

    /// What this node knows of its groups.
    async fn node_report(self: &Rc<Self>) -> Report {
        let asked = (0..self.node.shards).map(|shard| {
            self.on(ShardId(shard), |there| {
                let report = there.report();
                async move { report }
            })
        });
        let mut report = Report::default();
        join_all(asked).await.into_iter().flatten().for_each(|shard| report.add(shard));
        report
    }

    pub(super) fn tell_status(self: &Rc<Self>, reply: Replier) {
        let shard = Rc::clone(self);
        let tell = async move {
            match framed::encode(VERSION, shard.node_report().await) {
                Ok(report) => reply.answer(Bytes::from(report)),
                Err(_) => reply.refuse(CallRefused::Overloaded),
            }
        };
        chronik_ring::spawn(tell).detach();
    }

    /// How the cluster is, as far as this node can hear of it. Cancel-safe.
    pub async fn cluster_status(self: &Rc<Self>) -> ClusterStatus {
        let gathered = self.on(META_SHARD, |meta| async move { meta.gather_status().await });
        match gathered.await {
            Ok(status) => status,
            Err(_) => self.sum_up(&BTreeMap::new()),
        }
    }

    async fn gather_status(self: &Rc<Self>) -> ClusterStatus {
        let mut reports = BTreeMap::from([(self.node.config.node_id, self.node_report().await)]);
        if let Some(links) = self.links() {
            let seats = links.peers().up_seats().into_iter().filter(|s| s.shard == META_SHARD);
            let asked = seats.map(|seat| {
                let call = links.peers().call(seat, CALL_STATUS, Bytes::new(), REPORT_TIMEOUT);
                async move { (seat.node, call.await) }
            });
            for (node, answer) in join_all(asked).await {
                let report = answer.ok().and_then(|body| {
                    framed::decode::<Report, REPORT_BYTES_MAX>(VERSION, &body).ok()
                });
                reports.extend(report.map(|report| (node, report)));
            }
        }
        self.sum_up(&reports)
    }

    fn sum_up(&self, reports: &BTreeMap<NodeId, Report>) -> ClusterStatus {
        let catalog = self.catalog();
        let nodes = catalog.brokers().map(|broker| {
            let report = reports.get(&broker.node);
            NodeStatus {
                id: broker.node.0,
                kafka_addr: format!("{}:{}", broker.host, broker.port),
                up: report.is_some(),
                cordoned: broker.is_cordoned,
                leaders: report
                    .map_or(0, |r| r.led.iter().filter(|g| **g != GroupId::META).count()),
                replicas: report.map_or(0, |report| report.replicas),
            }
        });
        let leads_meta = |(_, report): &(&NodeId, &Report)| report.led.contains(&GroupId::META);
        ClusterStatus {
            cluster_id: self.node.cluster_id.clone(),
            controller: reports.iter().find(leads_meta).map(|(node, _)| node.0),
            nodes: nodes.collect(),
            under_replicated: under_replicated(&catalog, reports),
            leaderless: leaderless(&catalog, reports),
            moving: count(&catalog, |partition| !partition.is_settled()),
            single_replica: count(&catalog, |partition| partition.replicas.len() == 1),
        }
    }
}

fn count(catalog: &Catalog, is_one: impl Fn(&Partition) -> bool) -> usize {
    let partitions = catalog.topics().flat_map(|topic| &topic.partitions);
    partitions.filter(|partition| is_one(partition)).count()
}

fn under_replicated(catalog: &Catalog, reports: &BTreeMap<NodeId, Report>) -> Vec<PartitionStatus> {
    let mut behind: BTreeMap<GroupId, Vec<(ReplicaId, u64)>> = BTreeMap::new();
    for one in reports.values().flat_map(|report| &report.behind) {
        behind.entry(one.group).or_default().push((one.replica, one.entries));
    }
    partitions(catalog, |partition| {
        let late = behind.get(&partition.group)?.iter();
        // Of what went with a disk there is nothing to say, but of what takes its place.
        let of_use = |replica| partition.placement_of(replica).filter(|p| !partition.is_lost(p));
        let late = late.filter_map(|(replica, entries)| Some((of_use(*replica)?.node.0, *entries)));
        let late: BTreeMap<u32, u64> = late.collect();
        (!late.is_empty()).then_some(late)
    })
}

fn leaderless(catalog: &Catalog, reports: &BTreeMap<NodeId, Report>) -> Vec<PartitionStatus> {
    let led: BTreeSet<GroupId> = reports.values().flat_map(|report| &report.led).copied().collect();
    partitions(catalog, |partition| (!led.contains(&partition.group)).then(BTreeMap::new))
}

/// The partitions of which `what` has something to say.
fn partitions(
    catalog: &Catalog,
    what: impl Fn(&Partition) -> Option<BTreeMap<u32, u64>>,
) -> Vec<PartitionStatus> {
    let mut found = Vec::new();
    for topic in catalog.topics() {
        for (number, partition) in topic.partitions.iter().enumerate() {
            if let Some(behind) = what(partition) {
                let topic = topic.name.to_string();
                found.push(PartitionStatus { topic, partition: number, behind });
            }
        }
    }
    found
}

impl ClusterStatus {
    /// As lines for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let controller = self.controller.map_or("nobody".to_owned(), |node| format!("node {node}"));
        // Writing to a String cannot fail.
        _ = writeln!(text, "cluster {}, the catalog is led by {controller}\n", self.cluster_id);
        _ = writeln!(
            text,
            "{:>4}  {:<24}{:<14}{:>8}{:>10}",
            "node", "Kafka", "state", "leaders", "replicas"
        );
        for node in &self.nodes {
            let state = match (node.up, node.cordoned) {
                (true, false) => "up",
                (true, true) => "up, drained",
                (false, false) => "down",
                (false, true) => "down, drained",
            };
            let NodeStatus { id, kafka_addr, leaders, replicas, .. } = node;
            _ = writeln!(text, "{id:>4}  {kafka_addr:<24}{state:<14}{leaders:>8}{replicas:>10}");
        }
        list(&mut text, "partitions with a replica behind", &self.under_replicated);
        list(&mut text, "partitions without a leader", &self.leaderless);
        _ = writeln!(text, "\npartitions whose replicas move: {}", self.moving);
        if self.nodes.len() > 1 && self.single_replica > 0 {
            let what = "partitions with one replica, which nobody serves without its node";
            _ = writeln!(text, "\n{what}: {}", self.single_replica);
        }
        text
    }
}

fn list(text: &mut String, what: &str, partitions: &[PartitionStatus]) {
    _ = writeln!(text, "\n{what}: {}", partitions.len());
    for PartitionStatus { topic, partition, behind } in partitions.iter().take(NAMED_MAX) {
        let late =
            behind.iter().map(|(node, entries)| format!(" node {node} by {entries} entries"));
        _ = writeln!(text, "  {topic}-{partition}{}", late.collect::<Vec<_>>().join(","));
    }
    if partitions.len() > NAMED_MAX {
        _ = writeln!(text, "  and {} more", partitions.len() - NAMED_MAX);
    }
}
