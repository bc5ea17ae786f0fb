//! Who leads the partition, asked of the nodes in turn.
//!
//! - I1: a node that does not answer costs at most [`ASK_TIMEOUT`], and is asked over a new connection next time.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chronik_net::client::Client;
use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;

use crate::wire::{self, METADATA, check_code, topic_name};

/// How long a node may take to connect, and to answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(250);

/// A leader as a node names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) node: i32,
    pub(super) addr: SocketAddr,
    pub(super) epoch: i32,
}

/// Connections over which leaders are asked for.
#[derive(Debug)]
pub(super) struct Finder {
    request: MetadataRequest,
    nodes: Vec<(SocketAddr, Option<Client>)>,
    next: usize,
}

impl Finder {
    pub(super) fn new(topic: &str, nodes: &[SocketAddr]) -> Finder {
        let topic = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
        let request = MetadataRequest::default()
            .with_topics(Some(vec![topic]))
            .with_allow_auto_topic_creation(false);
        let nodes = nodes.iter().map(|addr| (*addr, None)).collect();
        Finder { request, nodes, next: 0 }
    }

    /// What the next node says. `lost`, if another is there, is passed over: a leader that was just lost is the last to know.
    pub(super) fn ask(&mut self, lost: Option<SocketAddr>) -> Result<Leader> {
        let count = self.nodes.len();
        self.next = (self.next + 1) % count.max(1);
        if count > 1 && self.nodes.get(self.next).map(|(addr, _)| *addr) == lost {
            self.next = (self.next + 1) % count;
        }
        let (addr, connection) = self.nodes.get_mut(self.next).context("no nodes")?;
        let mut client = match connection.take() {
            Some(client) => client,
            None => wire::connect_within(*addr, ASK_TIMEOUT)?,
        };
        // A connection that failed is not used again.
        let answer = client.call(&self.request, METADATA)?;
        *connection = Some(client);
        let topic = answer.topics.first().context("an answer without the topic")?;
        check_code("metadata", topic.error_code)?;
        let first = topic.partitions.iter().find(|partition| partition.partition_index == 0);
        let partition = first.context("no partition 0")?;
        let broker = answer.brokers.iter().find(|broker| broker.node_id == partition.leader_id);
        let Some(broker) = broker else { bail!("no leader") };
        let addr = wire::resolve(&format!("{}:{}", broker.host.as_str(), broker.port))?;
        Ok(Leader { node: broker.node_id.0, addr, epoch: partition.leader_epoch })
    }
}
