//! Asking a broker for the record at one offset.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronik_engine::batch::BatchHeader;
use chronik_net::client::Client;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest};

use crate::wire::{FETCH, check_code, topic_name};

/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// One question, and the connection over which it is asked again and again.
#[derive(Debug)]
pub struct Probe {
    addr: SocketAddr,
    request: FetchRequest,
    offset: i64,
    connection: Option<Client>,
}

impl Probe {
    /// For the record at `offset`, asked of the broker at `addr`, whether it leads the partition or not.
    #[must_use]
    pub fn new(addr: SocketAddr, topic: &str, partition: i32, offset: i64) -> Probe {
        let partition = FetchPartition::default()
            .with_partition(partition)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1 << 20);
        let topic =
            FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(100)
            .with_min_bytes(1)
            .with_max_bytes(8 << 20)
            .with_session_id(0)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        Probe { addr, request, offset, connection: None }
    }

    /// An error where the broker does not answer with the record.
    pub fn ask(&mut self) -> Result<()> {
        let mut client = match self.connection.take() {
            Some(client) => client,
            None => Client::connect(self.addr, ATTEMPT_TIMEOUT)?,
        };
        // A connection that failed is not used again.
        let answer = client.call(&self.request, FETCH)?;
        self.connection = Some(client);
        check_code("fetch", answer.error_code)?;
        let topic = answer.responses.first().context("an answer without a topic")?;
        let partition = topic.partitions.first().context("an answer without a partition")?;
        check_code("fetch", partition.error_code)?;
        let records = partition.records.as_ref().context("an answer without records")?;
        let header = BatchHeader::read(records).context("an answer without a batch")?;
        let first = header.base_offset.0;
        let last = first + i64::from(header.last_offset_delta);
        let offset = self.offset;
        ensure!((first..=last).contains(&offset), "offsets {first} to {last} for {offset}");
        Ok(())
    }
}
