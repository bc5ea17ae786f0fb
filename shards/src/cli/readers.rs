//! Which read-only nodes have a replica of a partition that consumers may be sent to.
//!
//! Kafka's requests know no such replicas. Metadata, which consumers go by, has them among the others;
//! DescribeTopicPartitions, which is for administrators, does not. So the difference is what they are.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{BrokerId, DescribeTopicPartitionsRequest};

use super::kafka::{Kafka, KafkaError, in_versions, name_of, topic_name};
use super::plan::At;

/// The read-only nodes of partitions that have some.
pub(super) type Readers = BTreeMap<At, BTreeSet<i32>>;

/// Takes the read-only nodes out of what Metadata says of these topics, and says which they are.
pub(super) fn take_readers(
    kafka: &mut Kafka,
    topics: &mut [MetadataResponseTopic],
) -> Result<Readers, KafkaError> {
    let voting = voting(kafka, topics)?;
    let mut readers = Readers::new();
    for topic in topics {
        let name = name_of(topic);
        for partition in &mut topic.partitions {
            let at = (name.clone(), partition.partition_index);
            let Some(voting) = voting.get(&at) else { continue };
            let votes = |node: &BrokerId| voting.contains(&node.0);
            let others = partition.replica_nodes.iter().filter(|node| !votes(node));
            let others: BTreeSet<i32> = others.map(|node| node.0).collect();
            if !others.is_empty() {
                readers.insert(at, others);
                partition.replica_nodes.retain(votes);
                partition.isr_nodes.retain(votes);
            }
        }
    }
    Ok(readers)
}

/// The nodes of the replicas that vote, as far as anybody says so.
fn voting(
    kafka: &mut Kafka,
    topics: &[MetadataResponseTopic],
) -> Result<BTreeMap<At, BTreeSet<i32>>, KafkaError> {
    let mut found: BTreeMap<At, BTreeSet<i32>> = BTreeMap::new();
    let names =
        topics.iter().map(|topic| TopicRequest::default().with_name(topic_name(&name_of(topic))));
    let mut request = DescribeTopicPartitionsRequest::default().with_topics(names.collect());
    // No names would ask for all.
    while !request.topics.is_empty() {
        let answer = match kafka.any(&in_versions(0, 0, request.clone())) {
            Err(KafkaError::NotServed { .. }) => break,
            answer => answer?,
        };
        for topic in &answer.topics {
            let Some(name) = &topic.name else { continue };
            for partition in &topic.partitions {
                let at = (name.to_string(), partition.partition_index);
                let nodes = partition.replica_nodes.iter().map(|node| node.0);
                found.entry(at).or_default().extend(nodes);
            }
        }
        let Some(next) = answer.next_cursor else { break };
        let cursor = Cursor::default()
            .with_topic_name(next.topic_name)
            .with_partition_index(next.partition_index);
        request = request.with_cursor(Some(cursor));
    }
    Ok(found)
}
