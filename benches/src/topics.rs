//! Making topics, finding their leaders, and waiting until every partition takes a write: a broker may name leaders long
//! before their logs are there, and the clock of a measurement must not run meanwhile.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use chronik_net::client::Client;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{
    CreateTopicsRequest, DeleteTopicsRequest, MetadataRequest, ProduceRequest,
};

use crate::clock::{Clock, SECOND_NS};
use crate::wire::{
    self, CREATE_TOPICS, DELETE_TOPICS, METADATA, PRODUCE, check_code, error_name, topic_name,
};

/// How long a new topic may take until all its partitions take a write.
const WRITABLE_DEADLINE_NS: u64 = 240 * SECOND_NS;
/// Pause between two looks.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// Partitions of one produce request.
const REQUEST_PARTITIONS_MAX: usize = 500;
/// Bytes of one, as long as that is one partition or more.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// One partition, and the broker that takes its writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Its leader.
    pub leader: SocketAddr,
}

/// A name nobody has used.
#[must_use]
pub fn fresh_name(prefix: &str) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", unique.get(..8).unwrap_or(&unique))
}

/// The request that makes topics of this shape.
#[must_use]
pub fn create_request(names: &[String], partitions: i32, replicas: i16) -> CreateTopicsRequest {
    let topics = names.iter().map(|name| {
        CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(partitions)
            .with_replication_factor(replicas)
    });
    CreateTopicsRequest::default().with_topics(topics.collect()).with_timeout_ms(30_000)
}

/// Makes the topics that are not there yet.
pub fn create(client: &mut Client, names: &[String], partitions: i32, replicas: i16) -> Result<()> {
    let request = create_request(names, partitions, replicas);
    let answer = client.call(&request, CREATE_TOPICS).context("creating topics")?;
    ensure!(answer.topics.len() == names.len(), "an answer for {} topics", answer.topics.len());
    for topic in &answer.topics {
        if topic.error_code != ResponseError::TopicAlreadyExists.code() {
            let why = topic.error_message.as_deref().unwrap_or_default();
            check_code(
                &format!("creating topic {}: {why}", topic.name.as_str()),
                topic.error_code,
            )?;
        }
    }
    Ok(())
}

/// Deletes topics.
pub fn delete(client: &mut Client, names: &[String]) -> Result<()> {
    let request = DeleteTopicsRequest::default()
        .with_topic_names(names.iter().map(|name| topic_name(name)).collect())
        .with_timeout_ms(30_000);
    let answer = client.call(&request, DELETE_TOPICS).context("deleting topics")?;
    answer.responses.iter().try_for_each(|topic| check_code("deleting a topic", topic.error_code))
}

/// A partition with a replica that is not in sync, as the broker tells it; `None` where all are.
pub fn out_of_sync(client: &mut Client, topic: &str) -> Result<Option<i32>> {
    let asked = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![asked]));
    let answer = client.call(&request, METADATA).context("asking for metadata")?;
    let topic = answer.topics.first().context("an answer without the topic")?;
    let is_short = |p: &&MetadataResponsePartition| p.isr_nodes.len() < p.replica_nodes.len();
    Ok(topic.partitions.iter().find(is_short).map(|partition| partition.partition_index))
}

/// All partitions of the topics by topic and number. An error where one has no leader.
pub fn targets(client: &mut Client, names: &[String]) -> Result<Vec<Target>> {
    let topics =
        names.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
    let request = MetadataRequest::default()
        .with_topics(Some(topics.collect()))
        .with_allow_auto_topic_creation(false);
    let answer = client.call(&request, METADATA).context("asking for metadata")?;
    let mut brokers = HashMap::new();
    for broker in &answer.brokers {
        let addr = wire::resolve(&format!("{}:{}", broker.host.as_str(), broker.port));
        brokers.insert(broker.node_id, addr);
    }
    let mut found = Vec::new();
    for topic in &answer.topics {
        let name = topic.name.as_ref().context("a topic without a name")?.to_string();
        check_code(&format!("metadata of {name}"), topic.error_code)?;
        for partition in &topic.partitions {
            let number = partition.partition_index;
            check_code(&format!("metadata of {name}-{number}"), partition.error_code)?;
            let leader = match brokers.get(&partition.leader_id) {
                Some(Ok(addr)) => *addr,
                Some(Err(error)) => bail!("the leader of {name}-{number}: {error:#}"),
                None => bail!("{name}-{number} has no leader"),
            };
            found.push(Target { topic: name.clone(), partition: number, leader });
        }
    }
    found.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    Ok(found)
}

/// Waits until every partition has acknowledged `batch` once; all of them, as they were found then.
pub fn wait_writable(
    bootstrap: SocketAddr,
    names: &[String],
    batch: &Bytes,
) -> Result<Vec<Target>> {
    let clock = Clock::start();
    let mut control = wire::connect(bootstrap)?;
    let mut leaders: HashMap<SocketAddr, Client> = HashMap::new();
    let mut written: HashSet<(String, i32)> = HashSet::new();
    loop {
        let outcome = targets(&mut control, names).and_then(|found| {
            write_each_once(&mut leaders, &found, batch, &mut written)?;
            Ok(found)
        });
        match outcome {
            Ok(found) => return Ok(found),
            Err(error) if clock.now_ns() > WRITABLE_DEADLINE_NS => {
                return Err(error.context("a partition never took a write"));
            }
            Err(_) => leaders.clear(),
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// Produces to every partition that has not acknowledged yet. An error where one does not.
fn write_each_once(
    leaders: &mut HashMap<SocketAddr, Client>,
    targets: &[Target],
    batch: &Bytes,
    written: &mut HashSet<(String, i32)>,
) -> Result<()> {
    let mut asked: HashMap<(SocketAddr, &str), Vec<i32>> = HashMap::new();
    for target in targets {
        if !written.contains(&(target.topic.clone(), target.partition)) {
            asked.entry((target.leader, &target.topic)).or_default().push(target.partition);
        }
    }
    let at_once = (REQUEST_BYTES_MAX / batch.len().max(1)).clamp(1, REQUEST_PARTITIONS_MAX);
    for ((leader, topic), partitions) in asked {
        for some in partitions.chunks(at_once) {
            let client = match leaders.entry(leader) {
                std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(wire::connect(leader)?)
                }
            };
            let request = wire::produce_all_request(topic, some.iter().copied(), -1, batch);
            let answer = client.call::<ProduceRequest>(&request, PRODUCE)?;
            let answer = answer.responses.first().context("an answer without a topic")?;
            let mut refused = None;
            for partition in &answer.partition_responses {
                match partition.error_code {
                    0 => drop(written.insert((topic.to_owned(), partition.index))),
                    code => refused = Some((partition.index, code)),
                }
            }
            if let Some((partition, code)) = refused {
                bail!("{topic}-{partition}: {}", error_name(code));
            }
        }
    }
    Ok(())
}
