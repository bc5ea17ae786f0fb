//! Asks a broker that starts for a record, again and again, until it comes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chronik_engine::batch::BatchHeader;
use chronik_net::client::Client;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest};

use crate::clock::{Clock, SECOND_NS};
use crate::wire::{FETCH, check_code, topic_name};

/// Pause between two attempts: the error of what is measured.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(1);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a start may take.
const DEADLINE_NS: u64 = 600 * SECOND_NS;

/// Returns when a fetch at `offset` was answered with the record there, as the clock shows it.
pub fn first_fetch_ns(
    addr: SocketAddr,
    topic: &str,
    partition: i32,
    offset: i64,
    clock: Clock,
    given_up: &AtomicBool,
) -> Result<u64> {
    let request = fetch_request(topic, partition, offset);
    let mut connection = None;
    loop {
        let attempt = fetch_once(&mut connection, addr, &request, offset);
        match attempt {
            Ok(()) => return Ok(clock.now_ns()),
            Err(error) if clock.now_ns() > DEADLINE_NS => {
                return Err(error.context(format!("no record at offset {offset} in time")));
            }
            Err(_) if given_up.load(Ordering::Acquire) => bail!("the broker ended"),
            Err(_) => std::thread::sleep(ATTEMPT_PAUSE),
        }
    }
}

fn fetch_request(topic: &str, partition: i32, offset: i64) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(partition)
        .with_current_leader_epoch(-1)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20);
    let topic =
        FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(100)
        .with_min_bytes(1)
        .with_max_bytes(8 << 20)
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

fn fetch_once(
    connection: &mut Option<Client>,
    addr: SocketAddr,
    request: &FetchRequest,
    offset: i64,
) -> Result<()> {
    let mut client = match connection.take() {
        Some(client) => client,
        None => Client::connect(addr, ATTEMPT_TIMEOUT)?,
    };
    // A connection that failed is not used again.
    let answer = client.call(request, FETCH)?;
    *connection = Some(client);
    check_code("fetch", answer.error_code)?;
    let topic = answer.responses.first().context("an answer without a topic")?;
    let partition = topic.partitions.first().context("an answer without a partition")?;
    check_code("fetch", partition.error_code)?;
    let records = partition.records.as_ref().context("an answer without records")?;
    let header = BatchHeader::read(records).context("an answer without a batch")?;
    let first = header.base_offset.0;
    let last = first + i64::from(header.last_offset_delta);
    ensure!((first..=last).contains(&offset), "offsets {first} to {last} for {offset}");
    Ok(())
}
