//! How the cluster is: which nodes can be heard, who leads how much, which replicas are behind. Gathered when it is asked
//! for, from every node that can be heard.
//!
//! - I1: what is told is the sum of what each leader knows of its own groups, at slightly different moments.

mod held;

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

use self::held::{Held, held};
use super::META_SHARD;
use crate::catalog::{Catalog, Partition, Placement};
use crate::handlers::replicas::wanted_by_default;
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
/// The width of what is said of a node; more where some are read-only.
const STATE_WIDTH: usize = 14;
const STATE_WIDTH_READ_ONLY: usize = 26;

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
    /// Partitions with a replica for readers that is behind, by the node that it is on. Nobody waits for those.
    pub read_only_behind: Vec<PartitionStatus>,
    /// Partitions that no node which can be heard leads.
    pub leaderless: Vec<PartitionStatus>,
    /// Partitions that drained nodes go on leading, as nobody else can.
    pub held_by_drained: Vec<Held>,
    /// Partitions whose replicas are on their way to other nodes, or to another disk.
    pub moving: usize,
    /// Partitions with one replica, which go with its node.
    pub single_replica: usize,
    /// How many replicas a topic gets whose creator does not say, as the node is set that was asked.
    pub default_replicas: usize,
    /// Topics with fewer.
    pub fewer_replicas: Vec<TopicReplicas>,
    /// Nodes of the list of the node that was asked which are not part of the cluster yet.
    pub to_come: Vec<u32>,
}

/// A topic that may have been made before there were enough nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicReplicas {
    /// Its name.
    pub topic: String,
    /// The fewest replicas that a partition of it has.
    pub replicas: usize,
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
    /// Whether it has replicas for readers alone.
    pub read_only: bool,
    /// Partitions that it leads.
    pub leaders: usize,
    /// Replicas of partitions that it has, or if it cannot be heard is to have.
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
            // The catalog is nobody's topic.
            let partitions = core.group_ids().filter(|group| *group != GroupId::META);
            let replicas = u64::try_from(partitions.count()).unwrap_or(u64::MAX);
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
        let placed = |node| u64::try_from(catalog.replicas_on(node)).unwrap_or(u64::MAX);
        let default_replicas = wanted_by_default(self);
        let listed = self.node.config.cluster.nodes.iter().map(|node| node.id);
        let nodes = catalog.brokers().map(|broker| {
            let report = reports.get(&broker.node);
            NodeStatus {
                id: broker.node.0,
                kafka_addr: format!("{}:{}", broker.host, broker.port),
                up: report.is_some(),
                cordoned: broker.is_cordoned,
                read_only: broker.is_read_only,
                leaders: report
                    .map_or(0, |r| r.led.iter().filter(|g| **g != GroupId::META).count()),
                replicas: report.map_or_else(|| placed(broker.node), |report| report.replicas),
            }
        });
        let leads_meta = |(_, report): &(&NodeId, &Report)| report.led.contains(&GroupId::META);
        ClusterStatus {
            cluster_id: self.node.cluster_id.clone(),
            controller: reports.iter().find(leads_meta).map(|(node, _)| node.0),
            nodes: nodes.collect(),
            under_replicated: behind(&catalog, reports, |partition, place| {
                !partition.readers.contains(place)
            }),
            read_only_behind: behind(&catalog, reports, |partition, place| {
                partition.readers.contains(place)
            }),
            leaderless: leaderless(&catalog, reports),
            held_by_drained: held(&catalog, reports),
            moving: count(&catalog, |partition| !partition.is_settled()),
            single_replica: count(&catalog, |partition| partition.replicas.len() == 1),
            default_replicas,
            fewer_replicas: fewer_replicas(&catalog, default_replicas),
            to_come: catalog.still_to_come(listed).into_iter().map(|node| node.0).collect(),
        }
    }
}

fn count(catalog: &Catalog, is_one: impl Fn(&Partition) -> bool) -> usize {
    let partitions = catalog.topics().flat_map(|topic| &topic.partitions);
    partitions.filter(|partition| is_one(partition)).count()
}

fn fewer_replicas(catalog: &Catalog, than: usize) -> Vec<TopicReplicas> {
    let fewest = catalog.topics().filter_map(|topic| {
        let replicas = topic.partitions.iter().map(|partition| partition.replicas.len()).min()?;
        Some(TopicReplicas { topic: topic.name.to_string(), replicas })
    });
    fewest.filter(|topic| topic.replicas < than).collect()
}

/// The partitions with a replica that is behind, of those that `counts` says.
fn behind(
    catalog: &Catalog,
    reports: &BTreeMap<NodeId, Report>,
    counts: impl Fn(&Partition, &Placement) -> bool,
) -> Vec<PartitionStatus> {
    let mut behind: BTreeMap<GroupId, Vec<(ReplicaId, u64)>> = BTreeMap::new();
    for one in reports.values().flat_map(|report| &report.behind) {
        behind.entry(one.group).or_default().push((one.replica, one.entries));
    }
    partitions(catalog, |partition| {
        let late = behind.get(&partition.group)?.iter();
        // Of what went with a disk there is nothing to say, but of what takes its place.
        let is_of_use = |place: &Placement| !partition.is_lost(place) && counts(partition, place);
        let of_use = |replica| partition.placement_of(replica).filter(is_of_use);
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
        let has_read_only = self.nodes.iter().any(|node| node.read_only);
        let width = if has_read_only { STATE_WIDTH_READ_ONLY } else { STATE_WIDTH };
        _ = writeln!(
            text,
            "{:>4}  {:<24}{:<width$}{:>8}{:>10}",
            "node", "Kafka", "state", "leaders", "replicas"
        );
        for node in &self.nodes {
            let state = if node.up { "up" } else { "down" };
            let is = [(node.read_only, ", read-only"), (node.cordoned, ", drained")];
            let is: String = is.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
            let NodeStatus { id, kafka_addr, leaders, replicas, .. } = node;
            let state = state.to_owned() + &is;
            _ = writeln!(
                text,
                "{id:>4}  {kafka_addr:<24}{state:<width$}{leaders:>8}{replicas:>10}"
            );
        }
        if !self.to_come.is_empty() {
            let ids: Vec<String> = self.to_come.iter().map(ToString::to_string).collect();
            let what = "nodes of cluster.nodes that are not part of the cluster yet";
            _ = writeln!(text, "\n{what}: {}", ids.join(", "));
        }
        let is_up = |id: u32| self.nodes.iter().any(|node| node.id == id && node.up);
        list(&mut text, "partitions with a replica behind", &self.under_replicated, is_up);
        if has_read_only {
            let what = "partitions with a read-only replica behind";
            list(&mut text, what, &self.read_only_behind, is_up);
        }
        list(&mut text, "partitions without a leader", &self.leaderless, is_up);
        held::tell(&mut text, &self.held_by_drained);
        _ = writeln!(text, "\npartitions whose replicas move: {}", self.moving);
        if self.nodes.len() > 1 && self.single_replica > 0 {
            let what = "partitions with one replica, which nobody serves without its node";
            _ = writeln!(text, "\n{what}: {}", self.single_replica);
        }
        if !self.fewer_replicas.is_empty() {
            let (topics, default) = (&self.fewer_replicas, self.default_replicas);
            let what = format!("topics with fewer replicas than the default of {default}");
            _ = writeln!(text, "\n{what}: {}", topics.len());
            for TopicReplicas { topic, replicas } in topics.iter().take(NAMED_MAX) {
                _ = writeln!(text, "  {topic} {replicas}");
            }
            and_more(&mut text, topics.len());
        }
        text
    }
}

fn list(
    text: &mut String,
    what: &str,
    partitions: &[PartitionStatus],
    is_up: impl Fn(u32) -> bool,
) {
    _ = writeln!(text, "\n{what}: {}", partitions.len());
    for PartitionStatus { topic, partition, behind } in partitions.iter().take(NAMED_MAX) {
        let late = behind.iter().map(|(node, entries)| match entries {
            0 if is_up(*node) => format!(" node {node}, which does not answer the leader"),
            0 => format!(" node {node}, which is down"),
            1 => format!(" node {node} by 1 entry"),
            entries => format!(" node {node} by {entries} entries"),
        });
        _ = writeln!(text, "  {topic}-{partition}{}", late.collect::<Vec<_>>().join(";"));
    }
    and_more(text, partitions.len());
}

fn and_more(text: &mut String, count: usize) {
    if count > NAMED_MAX {
        _ = writeln!(text, "  and {} more", count - NAMED_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_node_that_is_down_when_told_to_people_then_nobody_is_behind_by_nothing() {
        let node = |id, up| NodeStatus {
            id,
            kafka_addr: format!("host{id}:9092"),
            up,
            cordoned: false,
            read_only: id == 3,
            leaders: 1,
            replicas: 2,
        };
        let behind = |topic: &str, behind: &[(u32, u64)]| PartitionStatus {
            topic: topic.to_owned(),
            partition: 0,
            behind: behind.iter().copied().collect(),
        };
        let fewer = TopicReplicas { topic: "early".to_owned(), replicas: 2 };
        let status = ClusterStatus {
            cluster_id: "id".to_owned(),
            controller: Some(1),
            nodes: vec![node(1, true), node(2, false), node(3, true)],
            under_replicated: vec![
                behind("a", &[(2, 0)]),
                behind("b", &[(1, 0), (2, 1)]),
                behind("c", &[(2, 4)]),
            ],
            read_only_behind: vec![behind("d", &[(3, 7)])],
            leaderless: Vec::new(),
            held_by_drained: Vec::new(),
            moving: 0,
            single_replica: 0,
            default_replicas: 3,
            fewer_replicas: vec![fewer],
            to_come: vec![4],
        };
        let text = status.to_text();
        for line in [
            "   2  host2:9092              down                             1         2",
            "   3  host3:9092              up, read-only                    1         2",
            "partitions with a read-only replica behind: 1",
            "  d-0 node 3 by 7 entries",
            "nodes of cluster.nodes that are not part of the cluster yet: 4",
            "  a-0 node 2, which is down",
            "  b-0 node 1, which does not answer the leader; node 2 by 1 entry",
            "  c-0 node 2 by 4 entries",
            "topics with fewer replicas than the default of 3: 1",
            "  early 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
