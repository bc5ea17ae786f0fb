//! Several real broker processes that form a cluster from one list of nodes, and what their clients see of them.
//!
//! The nodes are on loopback, each in a network of its own, or each behind a proxy; what is done to a cluster is done
//! by its test. Nothing here judges anything but [`Cluster::check`], which asks the checker.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{AlterPartitionReassignmentsRequest, BrokerId, CreateTopicsRequest};
use serde_json::Value;

use crate::http;
use crate::link_proxy::{Faults, LinkProxy};
use crate::netns::{Host, Namespace, Network};
use crate::process::{Broker, Settings};
use crate::raw::{RawConnection, topic_name};
use crate::replicas::check_same;
use crate::scratch::{Ports, wait_for};
use crate::workload::{Load, read_topic};

/// For whatever a cluster comes to by itself, on a machine that does other things, too.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster and all that belongs to it. Dropping it kills the processes and removes their files.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
    proxies: Vec<LinkProxy>,
}

/// Where one node is.
struct Place {
    ports: Ports,
    /// Where the other nodes connect.
    raft_addr: SocketAddr,
    namespace: Option<Arc<Namespace>>,
}

impl Place {
    fn on(ports: Ports) -> Place {
        Place { ports, raft_addr: ports.raft_addr(), namespace: None }
    }
}

impl Cluster {
    /// Lists so many nodes, with ids from 1, and starts none. `settings` are every node's but for its id.
    pub fn list(nodes: usize, settings: &Settings) -> Result<Cluster> {
        let places = take_ports(nodes)?.into_iter().map(Place::on).collect();
        Cluster::on_places(places, settings, "")
    }

    /// Lists nodes on the hosts of a network from its first on.
    pub fn list_on_hosts(network: &Network, nodes: u8, settings: &Settings) -> Result<Cluster> {
        let place = |host: Host| Place {
            namespace: Some(network.namespace(host)),
            ..Place::on(Ports::of_host(host.ip()))
        };
        let places = (0..nodes).map(Host).map(place).collect();
        // Without one a node speaks to no other machine.
        Cluster::on_places(places, settings, "secret = \"of the tests\"\n")
    }

    /// Lists nodes whose Raft ports are behind proxies.
    pub fn list_behind_proxies(nodes: usize, seed: u64, settings: &Settings) -> Result<Cluster> {
        let (mut places, mut proxies) = (Vec::new(), Vec::new());
        for (salt, ports) in (0..).zip(take_ports(nodes)?) {
            let proxy = LinkProxy::before(ports.raft_addr(), seed ^ (salt << 16))?;
            places.push(Place { raft_addr: proxy.addr(), ..Place::on(ports) });
            proxies.push(proxy);
        }
        Ok(Cluster { proxies, ..Cluster::on_places(places, settings, "")? })
    }

    fn on_places(places: Vec<Place>, settings: &Settings, more: &str) -> Result<Cluster> {
        let mut list = format!("[cluster]\n{more}nodes = [\n");
        for (id, place) in (1..).zip(&places) {
            writeln!(
                list,
                "    {{ id = {id}, kafka_addr = \"{}\", raft_addr = \"{}\" }},",
                place.ports.kafka_addr(),
                place.raft_addr
            )?;
        }
        list.push_str("]\n");
        let node = |(node_id, Place { ports, raft_addr, namespace })| {
            let mut settings = Settings { node_id, ..settings.clone() }.with_table(&list);
            if raft_addr != ports.raft_addr() {
                settings = settings.with_top(&format!("raft_addr = \"{}\"", ports.raft_addr()));
            }
            match namespace {
                Some(namespace) => Broker::in_namespace(settings, ports, namespace),
                None => Broker::on_ports(settings, ports),
            }
        };
        let nodes = (1..).zip(places).map(node).collect::<Result<Vec<Broker>>>()?;
        Ok(Cluster { nodes, proxies: Vec::new() })
    }

    /// Lists nodes, starts them all and waits until each is ready and hears the others.
    pub fn start(nodes: usize, settings: &Settings) -> Result<Cluster> {
        let mut cluster = Cluster::list(nodes, settings)?;
        cluster.start_all()?;
        cluster.wait_all_up()?;
        Ok(cluster)
    }

    /// Waits until every node hears all others: what is made before is placed around those that are not heard yet.
    fn wait_all_up(&self) -> Result<()> {
        let hears_all = |node| {
            let status = cluster_status(node).unwrap_or_default();
            nodes_up(&status) == self.nodes.len()
        };
        wait_for("every node hears all others", DEADLINE, || {
            self.nodes.iter().all(hears_all).then_some(())
        })
    }

    /// Starts all nodes and waits until each is ready.
    pub fn start_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.spawn()?;
        }
        self.wait_ready()
    }

    /// Waits until every node that runs is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if node.is_running() {
                node.wait_ready().with_context(|| format!("node {}", at + 1))?;
            }
        }
        Ok(())
    }

    /// Waits until all nodes of the list hear each other, every partition has a leader, and no replica is behind or on
    /// its way.
    pub fn wait_whole(&self) -> Result<()> {
        let mut last = Value::Null;
        let whole = wait_for("the cluster is whole", DEADLINE, || {
            self.nodes
                .iter()
                .all(|node| {
                    last = cluster_status(node).unwrap_or_default();
                    self.is_whole(&last)
                })
                .then_some(())
        });
        whole.with_context(|| format!("one of its nodes says: {last}"))
    }

    fn is_whole(&self, status: &Value) -> bool {
        let is_empty = |what: &str| status[what].as_array().is_some_and(Vec::is_empty);
        nodes_up(status) == self.nodes.len()
            && status["controller"].is_number()
            && status["moving"] == 0
            && is_empty("leaderless")
            && is_empty("under_replicated")
    }

    /// Makes the same fault of every link, and of those to be.
    ///
    /// # Panics
    /// If the nodes are not behind proxies.
    pub fn set_faults(&self, faults: Faults) {
        assert!(!self.proxies.is_empty(), "there are no proxies");
        self.proxies.iter().for_each(|proxy| proxy.set(faults));
    }

    /// The proxies, the one of the node with id 1 first.
    #[must_use]
    pub fn proxies(&self) -> &[LinkProxy] {
        &self.proxies
    }

    /// The addresses of all nodes, as Kafka clients want them.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(Broker::bootstrap).collect::<Vec<_>>().join(",")
    }

    /// The nodes, the one with id 1 first.
    pub fn nodes(&mut self) -> &mut [Broker] {
        &mut self.nodes
    }

    /// The node with this id.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&mut self, id: i32) -> &mut Broker {
        let at = usize::try_from(id - 1).unwrap_or(usize::MAX);
        &mut self.nodes[at]
    }

    /// The ids of all nodes but these, in order.
    #[must_use]
    pub fn others(&self, than: &[i32]) -> Vec<i32> {
        (1..).take(self.nodes.len()).filter(|id| !than.contains(id)).collect()
    }

    /// Reads all that a load has written, and asks the checker.
    pub fn check(&self, load: &mut Load) -> Result<()> {
        let logs = read_topic(&self.bootstrap(), load.topic(), load.partitions(), DEADLINE)?;
        load.ledger.check(&logs).context("what was read is not what was promised")
    }

    /// The same, and every node holds what was read, byte for byte. The load must be drained.
    pub fn check_every_node(&self, load: &mut Load) -> Result<()> {
        self.check(load)?;
        for (partition, end) in (0..).zip(load.ledger.ends_read()) {
            check_same(&self.nodes, load.topic(), partition, end)?;
        }
        Ok(())
    }

    /// An error where a node has panicked.
    pub fn check_no_panic(&self) -> Result<()> {
        for (at, node) in self.nodes.iter().enumerate() {
            ensure!(!node.log_contains("panicked"), "node {} panicked", at + 1);
        }
        Ok(())
    }

    /// The ends of all logs.
    #[must_use]
    pub fn log_tails(&self) -> String {
        self.nodes.iter().map(Broker::log_tail).collect::<Vec<_>>().join("\n")
    }
}

/// The ports of so many nodes, none of them given out twice.
fn take_ports(nodes: usize) -> Result<Vec<Ports>> {
    let mut taken: Vec<Ports> = Vec::new();
    while taken.len() < nodes {
        let ports = Ports::take()?;
        if taken.iter().all(|other| !other.overlap(&ports)) {
            taken.push(ports);
        }
    }
    Ok(taken)
}

/// Runs a test of a cluster, and shows the logs of its nodes where it fails.
///
/// # Panics
/// If it fails.
pub fn run_on<T>(cluster: &mut Cluster, test: impl FnOnce(&mut Cluster) -> Result<T>) -> T {
    let outcome = test(cluster).and_then(|value| cluster.check_no_panic().map(|()| value));
    match outcome {
        Ok(value) => value,
        #[expect(clippy::panic, reason = "a test fails by panicking")]
        Err(error) => panic!("{error:#}\n{}", cluster.log_tails()),
    }
}

/// How many nodes are heard, as a status says.
fn nodes_up(status: &Value) -> usize {
    let nodes = status["nodes"].as_array();
    nodes.map_or(0, |nodes| nodes.iter().filter(|node| node["up"] == Value::Bool(true)).count())
}

/// What a node says of the cluster.
pub fn cluster_status(node: &Broker) -> Result<Value> {
    let answer = http::get(node.ports().admin_addr(), "/cluster/status?format=json")?;
    ensure!(answer.status == 200, "/cluster/status: {}", answer.status);
    serde_json::from_str(&answer.body).context("/cluster/status")
}

/// The ids of the brokers that a node tells of, in order.
pub fn brokers_seen(node: &Broker) -> Result<Vec<i32>> {
    let mut connection = RawConnection::open(node.ports().kafka_addr())?;
    let answer = connection.metadata("no-such-topic", false)?;
    let mut ids: Vec<i32> = answer.brokers.iter().map(|broker| broker.node_id.0).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Makes a topic by asking this node, as often as it takes until somebody leads the catalog.
pub fn create_topic(node: &Broker, name: &str, partitions: usize, replicas: usize) -> Result<()> {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(i32::try_from(partitions)?)
        .with_replication_factor(i16::try_from(replicas)?);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
    let mut is_unclear = false;
    let code = wait_for("somebody leads the catalog", DEADLINE, || {
        let response =
            RawConnection::open(node.ports().kafka_addr()).ok()?.call(5, &request).ok()?;
        let code = response.topics.first()?.error_code;
        let is_passing = code == ResponseError::NotController.code();
        is_unclear |= is_passing;
        (!is_passing).then_some(code)
    })?;
    // A command whose leader was killed may have been committed all the same.
    let is_made = code == 0 || (is_unclear && code == ResponseError::TopicAlreadyExists.code());
    ensure!(is_made, "{name}: error {code}");
    Ok(())
}

/// Asks for a partition to be on these nodes, or with `None` to go back to where it was; the error code.
pub fn reassign(node: &Broker, topic: &str, partition: i32, to: Option<&[i32]>) -> Result<i16> {
    let to = to.map(|nodes| nodes.iter().map(|node| BrokerId(*node)).collect());
    let partition =
        ReassignablePartition::default().with_partition_index(partition).with_replicas(to);
    let topic =
        ReassignableTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    let request = AlterPartitionReassignmentsRequest::default()
        .with_timeout_ms(30_000)
        .with_topics(vec![topic]);
    let answer = RawConnection::open(node.ports().kafka_addr())?.call(0, &request)?;
    ensure!(answer.error_code == 0, "error {}", answer.error_code);
    let topic = answer.responses.first().context("an answer without the topic")?;
    Ok(topic.partitions.first().context("an answer without the partition")?.error_code)
}

/// Waits until a node tells of a leader for every partition of a topic that none of `than` leads; says who they are.
pub fn leaders_other(
    node: &Broker,
    topic: &str,
    partitions: usize,
    than: &[i32],
) -> Result<Vec<i32>> {
    wait_for(&format!("others than {than:?} lead every partition"), DEADLINE, || {
        let leaders = leaders_now(node, topic, partitions)?;
        let are_others = leaders.iter().all(|leader| *leader >= 0 && !than.contains(leader));
        are_others.then_some(leaders)
    })
}

/// Who leads each partition of a topic, as a node tells it, -1 for nobody; `None` if it does not tell of all of them.
pub fn leaders_now(node: &Broker, topic: &str, partitions: usize) -> Option<Vec<i32>> {
    let mut connection = RawConnection::open(node.ports().kafka_addr()).ok()?;
    let answer = connection.metadata(topic, false).ok()?;
    let told = &answer.topics.first()?.partitions;
    let mut found: Vec<(i32, i32)> =
        told.iter().map(|p| (p.partition_index, p.leader_id.0)).collect();
    found.sort_unstable();
    (found.len() == partitions).then(|| found.into_iter().map(|(_, leader)| leader).collect())
}

/// Waits until a node tells of a leader for every partition of a topic; says who they are.
pub fn leaders_seen(node: &Broker, topic: &str, partitions: usize) -> Result<Vec<i32>> {
    leaders_other(node, topic, partitions, &[])
}

/// Waits, under load, until every node is ready.
pub fn run_until_ready(cluster: &mut Cluster, load: &mut Load) -> Result<()> {
    load.run_until("all are ready", DEADLINE, |_| {
        for (id, node) in (1..).zip(cluster.nodes()) {
            if !node.is_running() {
                return Some(Err(anyhow!("node {id} ended by itself")));
            }
            if !node.is_ready() {
                return None;
            }
        }
        Some(Ok(()))
    })?
}
