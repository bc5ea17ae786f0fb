//! Requests that name the same thing time and again, or ask for much with a few bytes: the answer has it once, and the
//! broker keeps its memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::describe_quorum_request::{
    PartitionData as AskedPartition, TopicData as AskedTopic,
};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    CreateTopicsRequest, DeleteGroupsRequest, DescribeGroupsRequest, DescribeQuorumRequest,
    FindCoordinatorRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

const TIMES: usize = 1_000;

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

fn connected(broker: &Broker) -> RawConnection {
    RawConnection::open(broker.ports().kafka_addr()).unwrap()
}

/// Somebody who is no member commits an offset of partition 0.
fn commit(connection: &mut RawConnection, group: &str, topic: &str) {
    let find = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(group); TIMES]);
    assert_eq!(connection.call(6, &find).unwrap().coordinators.len(), 1);
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(0)
        .with_committed_offset(5)
        .with_committed_metadata(Some(text(&"x".repeat(4_000))));
    let topic = OffsetCommitRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(text(group).into())
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let committed = connection.call(8, &request).unwrap();
    assert_eq!(committed.topics[0].partitions[0].error_code, 0);
}

#[test]
fn given_groups_and_partitions_that_come_again_when_asked_for_then_each_is_answered_once() {
    let broker = Broker::start(Settings::new()).unwrap();
    let mut connection = connected(&broker);
    let (group, topic) = (fresh_name("again"), fresh_name("committed"));
    connection.ensure_topic_without_fetching(&topic).unwrap();
    commit(&mut connection, &group, &topic);
    let asked = OffsetFetchRequestTopic::default()
        .with_name(topic_name(&topic))
        .with_partition_indexes([0, 1].repeat(TIMES));
    let request = OffsetFetchRequest::default()
        .with_group_id(text(&group).into())
        .with_topics(Some(vec![asked; 2]));
    let found = connection.call(7, &request).unwrap();
    let partitions = found.topics.iter().flat_map(|topic| &topic.partitions);
    let told: Vec<_> = partitions.map(|p| (p.partition_index, p.committed_offset)).collect();
    assert_eq!(told, [(0, 5), (1, -1)]);

    let asked = OffsetFetchRequestTopics::default()
        .with_name(topic_name(&topic))
        .with_partition_indexes(vec![0; TIMES]);
    let asked = |name: &str| {
        let group = OffsetFetchRequestGroup::default().with_group_id(text(name).into());
        group.with_topics(Some(vec![asked.clone()]))
    };
    let request = OffsetFetchRequest::default()
        .with_groups(vec![[asked(&group), asked("another")]; TIMES / 10].concat());
    let found = connection.call(8, &request).unwrap();
    let told: Vec<_> = found
        .groups
        .iter()
        .map(|group| {
            let partitions = &group.topics[0].partitions;
            (group.group_id.as_str(), partitions.len(), partitions[0].committed_offset)
        })
        .collect();
    assert_eq!(told, [(group.as_str(), 1, 5), ("another", 1, -1)]);

    let names = vec![text(&group).into(); TIMES];
    let described = DescribeGroupsRequest::default().with_groups(names.clone());
    let described = connection.call(5, &described).unwrap().groups;
    assert_eq!((described.len(), described[0].group_state.as_str()), (1, "Empty"));
    let deleted = DeleteGroupsRequest::default().with_groups_names(names);
    let deleted = connection.call(2, &deleted).unwrap().results;
    assert_eq!((deleted.len(), deleted[0].error_code), (1, 0));
}

#[test]
fn given_topics_that_come_again_when_asked_for_then_each_is_answered_once() {
    let broker = Broker::start(Settings::new()).unwrap();
    let mut connection = connected(&broker);
    let topic = fresh_name("again");
    connection.ensure_topic_without_fetching(&topic).unwrap();
    // By its name, with another id each time.
    let asked = (0..TIMES as u128).map(|id| {
        let named = MetadataRequestTopic::default().with_name(Some(topic_name(&topic)));
        named.with_topic_id(Uuid::from_u128(id))
    });
    let request = MetadataRequest::default().with_topics(Some(asked.collect()));
    assert_eq!(connection.call(12, &request).unwrap().topics.len(), 1);

    let partition = AskedPartition::default().with_partition_index(0);
    let asked = AskedTopic::default()
        .with_topic_name(topic_name("__cluster_metadata"))
        .with_partitions(vec![partition; TIMES]);
    let request = DescribeQuorumRequest::default().with_topics(vec![asked; 2]);
    let described = connection.call(1, &request).unwrap();
    let partitions = described.topics.iter().map(|topic| topic.partitions.len()).sum::<usize>();
    assert_eq!(partitions, 1);
}

#[test]
fn given_many_topics_of_many_partitions_when_they_are_beyond_the_limits_then_no_memory_is_taken() {
    let broker = Broker::start(Settings::new()).unwrap();
    let mut connection = connected(&broker);
    connection.ensure_topic_without_fetching("taken").unwrap();
    let before = broker.memory_peak_bytes().unwrap();
    for validate_only in [true, false] {
        let wanted = |at: usize| {
            let name = if at == 0 { "taken".to_owned() } else { format!("t{at}") };
            CreatableTopic::default()
                .with_name(topic_name(&name))
                .with_num_partitions(10_000)
                .with_replication_factor(1)
        };
        let request = CreateTopicsRequest::default()
            .with_topics((0..TIMES).map(wanted).collect())
            .with_timeout_ms(10_000)
            .with_validate_only(validate_only);
        let refused = connection.call(6, &request).unwrap().topics;
        let code = |error: ResponseError| error.code();
        assert_eq!(refused[0].error_code, code(ResponseError::TopicAlreadyExists));
        let others = refused[1..].iter();
        assert!(others.clone().all(|t| t.error_code == code(ResponseError::PolicyViolation)));
        assert_eq!(others.count(), TIMES - 1);
    }
    let grown = broker.memory_peak_bytes().unwrap() - before;
    assert!(grown < 64 << 20, "memory grew by {} MiB", grown >> 20);
}
