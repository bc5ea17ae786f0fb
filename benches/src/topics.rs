//! Making topics, finding their leaders, and waiting until every partition takes a write: a broker may name leaders long
//! before their logs are there, and the clock of a measurement must not run meanwhile.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use chronik_net::client::Client;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
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
const RETRY_PAUSE: Duration = Duration::from_millis(20);

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
    let mut written: Vec<(String, i32)> = Vec::new();
    loop {
        let outcome = targets(&mut control, names).and_then(|found| {
            for target in &found {
                let key = (target.topic.clone(), target.partition);
                if !written.contains(&key) {
                    write_once(&mut leaders, target, batch)?;
                    written.push(key);
                }
            }
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

fn write_once(
    leaders: &mut HashMap<SocketAddr, Client>,
    target: &Target,
    batch: &Bytes,
) -> Result<()> {
    let client = match leaders.entry(target.leader) {
        std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
        std::collections::hash_map::Entry::Vacant(free) => {
            free.insert(wire::connect(target.leader)?)
        }
    };
    let request = wire::produce_request(&target.topic, target.partition, -1, batch.clone());
    let answer = client.call::<ProduceRequest>(&request, PRODUCE)?;
    let topic = answer.responses.first().context("an answer without a topic")?;
    let partition = topic.partition_responses.first().context("an answer without a partition")?;
    let code = partition.error_code;
    ensure!(code == 0, "{}-{}: {}", target.topic, target.partition, error_name(code));
    Ok(())
}
