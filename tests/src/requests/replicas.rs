//! Requests of those who move replicas and leaderships. None of them moves anything: they name what is not there.

use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, DescribeQuorumRequest, ElectLeadersRequest,
    ListPartitionReassignmentsRequest, UnregisterBrokerRequest, describe_quorum_request,
    elect_leaders_request,
};

use super::{Sample, World};
use crate::raw::topic_name;

/// A broker that no cluster of a test has.
const NOBODY: BrokerId = BrokerId(1_000_000);

impl Sample for ElectLeadersRequest {
    fn sample(world: &World, _version: i16) -> ElectLeadersRequest {
        let topic = elect_leaders_request::TopicPartitions::default()
            .with_topic(topic_name(&world.topic))
            .with_partitions(vec![0]);
        ElectLeadersRequest::default()
            .with_topic_partitions(Some(vec![topic]))
            .with_timeout_ms(1_000)
    }
}

impl Sample for AlterPartitionReassignmentsRequest {
    fn sample(world: &World, _version: i16) -> AlterPartitionReassignmentsRequest {
        let partition = ReassignablePartition::default()
            .with_partition_index(0)
            .with_replicas(Some(vec![NOBODY]));
        let topic = ReassignableTopic::default()
            .with_name(topic_name(&world.topic))
            .with_partitions(vec![partition]);
        AlterPartitionReassignmentsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(1_000)
    }
}

impl Sample for ListPartitionReassignmentsRequest {
    fn sample(world: &World, _version: i16) -> ListPartitionReassignmentsRequest {
        let topic = ListPartitionReassignmentsTopics::default()
            .with_name(topic_name(&world.topic))
            .with_partition_indexes(vec![0]);
        ListPartitionReassignmentsRequest::default()
            .with_topics(Some(vec![topic]))
            .with_timeout_ms(1_000)
    }
}

impl Sample for DescribeQuorumRequest {
    fn sample(_world: &World, _version: i16) -> DescribeQuorumRequest {
        let topic = describe_quorum_request::TopicData::default()
            .with_topic_name(topic_name("__cluster_metadata"))
            .with_partitions(vec![describe_quorum_request::PartitionData::default()]);
        DescribeQuorumRequest::default().with_topics(vec![topic])
    }
}

impl Sample for UnregisterBrokerRequest {
    fn sample(_world: &World, _version: i16) -> UnregisterBrokerRequest {
        UnregisterBrokerRequest::default().with_broker_id(NOBODY)
    }
}
