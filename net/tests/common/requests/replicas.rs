//! Random requests of those who move replicas and leaderships.

use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::*;
use rand::Rng;

use super::Fill;

impl Fill {
    pub(super) fn elect_leaders(&mut self) -> ElectLeadersRequest {
        let topics = self.maybe(|f| {
            f.list(|f| {
                let topic = elect_leaders_request::TopicPartitions::default()
                    .with_topic(f.text().into())
                    .with_partitions(f.list(|f| f.rng.random()));
                tagged!(f, 2, topic)
            })
        });
        let mut request = ElectLeadersRequest::default()
            .with_topic_partitions(topics)
            .with_timeout_ms(self.rng.random());
        if self.version >= 1 {
            request = request.with_election_type(self.rng.random());
        }
        tagged!(self, 2, request)
    }

    pub(super) fn alter_reassignments(&mut self) -> AlterPartitionReassignmentsRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                let replicas = f.maybe(|f| f.list(|f| BrokerId(f.rng.random())));
                let partition = ReassignablePartition::default()
                    .with_partition_index(f.rng.random())
                    .with_replicas(replicas);
                tagged!(f, 0, partition)
            });
            let topic =
                ReassignableTopic::default().with_name(f.text().into()).with_partitions(partitions);
            tagged!(f, 0, topic)
        });
        let mut request = AlterPartitionReassignmentsRequest::default()
            .with_timeout_ms(self.rng.random())
            .with_topics(topics);
        if self.version >= 1 {
            request = request.with_allow_replication_factor_change(self.rng.random());
        }
        tagged!(self, 0, request)
    }

    pub(super) fn list_reassignments(&mut self) -> ListPartitionReassignmentsRequest {
        let topics = self.maybe(|f| {
            f.list(|f| {
                let topic = ListPartitionReassignmentsTopics::default()
                    .with_name(f.text().into())
                    .with_partition_indexes(f.list(|f| f.rng.random()));
                tagged!(f, 0, topic)
            })
        });
        let request = ListPartitionReassignmentsRequest::default()
            .with_timeout_ms(self.rng.random())
            .with_topics(topics);
        tagged!(self, 0, request)
    }

    pub(super) fn describe_quorum(&mut self) -> DescribeQuorumRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                let partition = describe_quorum_request::PartitionData::default()
                    .with_partition_index(f.rng.random());
                tagged!(f, 0, partition)
            });
            let topic = describe_quorum_request::TopicData::default()
                .with_topic_name(f.text().into())
                .with_partitions(partitions);
            tagged!(f, 0, topic)
        });
        let request = DescribeQuorumRequest::default().with_topics(topics);
        tagged!(self, 0, request)
    }

    pub(super) fn unregister_broker(&mut self) -> UnregisterBrokerRequest {
        let request =
            UnregisterBrokerRequest::default().with_broker_id(BrokerId(self.rng.random()));
        tagged!(self, 0, request)
    }
}
