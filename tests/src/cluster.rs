//! Several real broker processes that form a cluster from one list of nodes.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::process::{Broker, Settings};
use crate::scratch::Ports;

/// A cluster and all that belongs to it. Dropping it kills the processes and removes their files.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
}

impl Cluster {
    /// Lists so many nodes, with ids from 1, and starts none. `settings` are every node's but for its id.
    pub fn list(nodes: usize, settings: &Settings) -> Result<Cluster> {
        let ports = (0..nodes).map(|_| Ports::take()).collect::<Result<Vec<Ports>>>()?;
        let mut list = String::from("[cluster]\nnodes = [\n");
        for (id, ports) in (1..).zip(&ports) {
            writeln!(
                list,
                "    {{ id = {id}, kafka_addr = \"{}\", raft_addr = \"{}\" }},",
                ports.kafka_addr(),
                ports.raft_addr()
            )?;
        }
        list.push_str("]\n");
        let node = |(node_id, ports)| {
            let settings = Settings { node_id, ..settings.clone() }.with_table(&list);
            Broker::on_ports(settings, ports)
        };
        let nodes = (1..).zip(ports).map(node).collect::<Result<Vec<Broker>>>()?;
        Ok(Cluster { nodes })
    }

    /// Lists nodes, starts them all and waits until each is ready.
    pub fn start(nodes: usize, settings: &Settings) -> Result<Cluster> {
        let mut cluster = Cluster::list(nodes, settings)?;
        for node in &mut cluster.nodes {
            node.spawn()?;
        }
        cluster.wait_ready()?;
        Ok(cluster)
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

    /// The addresses of all nodes, as Kafka clients want them.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(Broker::bootstrap).collect::<Vec<_>>().join(",")
    }

    /// The nodes, the one with id 1 first.
    pub fn nodes(&mut self) -> &mut [Broker] {
        &mut self.nodes
    }

    /// The ends of all logs.
    #[must_use]
    pub fn log_tails(&self) -> String {
        self.nodes.iter().map(Broker::log_tail).collect::<Vec<_>>().join("\n")
    }
}
