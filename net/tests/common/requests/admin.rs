//! Random requests of administrators.

use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::*;
use rand::Rng;

use super::Fill;

impl Fill {
    pub(super) fn describe_configs(&mut self) -> DescribeConfigsRequest {
        let resources = self.list(|f| {
            let keys = f.maybe(|f| f.list(Fill::text));
            let resource = DescribeConfigsResource::default()
                .with_resource_type(f.rng.random())
                .with_resource_name(f.text())
                .with_configuration_keys(keys);
            tagged!(f, 4, resource)
        });
        let mut request = DescribeConfigsRequest::default()
            .with_resources(resources)
            .with_include_synonyms(self.rng.random());
        if self.version >= 3 {
            request = request.with_include_documentation(self.rng.random());
        }
        tagged!(self, 4, request)
    }

    pub(super) fn alter_configs(&mut self) -> AlterConfigsRequest {
        let resources = self.list(|f| {
            let configs = f.list(|f| {
                let config =
                    AlterableConfig::default().with_name(f.text()).with_value(f.maybe(Fill::text));
                tagged!(f, 2, config)
            });
            let resource = AlterConfigsResource::default()
                .with_resource_type(f.rng.random())
                .with_resource_name(f.text())
                .with_configs(configs);
            tagged!(f, 2, resource)
        });
        let request = AlterConfigsRequest::default()
            .with_resources(resources)
            .with_validate_only(self.rng.random());
        tagged!(self, 2, request)
    }

    pub(super) fn incremental_alter_configs(&mut self) -> IncrementalAlterConfigsRequest {
        let resources = self.list(|f| {
            let configs = f.list(|f| {
                let config = incremental_alter_configs_request::AlterableConfig::default()
                    .with_name(f.text())
                    .with_config_operation(f.rng.random())
                    .with_value(f.maybe(Fill::text));
                tagged!(f, 1, config)
            });
            let resource = incremental_alter_configs_request::AlterConfigsResource::default()
                .with_resource_type(f.rng.random())
                .with_resource_name(f.text())
                .with_configs(configs);
            tagged!(f, 1, resource)
        });
        let request = IncrementalAlterConfigsRequest::default()
            .with_resources(resources)
            .with_validate_only(self.rng.random());
        tagged!(self, 1, request)
    }

    pub(super) fn create_partitions(&mut self) -> CreatePartitionsRequest {
        let topics = self.list(|f| {
            let assignments = f.maybe(|f| {
                f.list(|f| {
                    let assignment = CreatePartitionsAssignment::default()
                        .with_broker_ids(f.list(|f| BrokerId(f.rng.random())));
                    tagged!(f, 2, assignment)
                })
            });
            let topic = CreatePartitionsTopic::default()
                .with_name(f.text().into())
                .with_count(f.rng.random())
                .with_assignments(assignments);
            tagged!(f, 2, topic)
        });
        let request = CreatePartitionsRequest::default()
            .with_topics(topics)
            .with_timeout_ms(self.rng.random())
            .with_validate_only(self.rng.random());
        tagged!(self, 2, request)
    }

    pub(super) fn describe_cluster(&mut self) -> DescribeClusterRequest {
        let mut request = DescribeClusterRequest::default()
            .with_include_cluster_authorized_operations(self.rng.random());
        if self.version >= 1 {
            request = request.with_endpoint_type(self.rng.random());
        }
        if self.version >= 2 {
            request = request.with_include_fenced_brokers(self.rng.random());
        }
        tagged!(self, 0, request)
    }

    pub(super) fn describe_log_dirs(&mut self) -> DescribeLogDirsRequest {
        let topics = self.maybe(|f| {
            f.list(|f| {
                let topic = DescribableLogDirTopic::default()
                    .with_topic(f.text().into())
                    .with_partitions(f.list(|f| f.rng.random()));
                tagged!(f, 2, topic)
            })
        });
        let request = DescribeLogDirsRequest::default().with_topics(topics);
        tagged!(self, 2, request)
    }

    pub(super) fn describe_producers(&mut self) -> DescribeProducersRequest {
        let topics = self.list(|f| {
            let topic = describe_producers_request::TopicRequest::default()
                .with_name(f.text().into())
                .with_partition_indexes(f.list(|f| f.rng.random()));
            tagged!(f, 0, topic)
        });
        let request = DescribeProducersRequest::default().with_topics(topics);
        tagged!(self, 0, request)
    }

    pub(super) fn list_config_resources(&mut self) -> ListConfigResourcesRequest {
        let mut request = ListConfigResourcesRequest::default();
        if self.version >= 1 {
            request = request.with_resource_types(self.list(|f| f.rng.random()));
        }
        tagged!(self, 0, request)
    }

    pub(super) fn describe_topic_partitions(&mut self) -> DescribeTopicPartitionsRequest {
        let topics = self.list(|f| {
            let topic = describe_topic_partitions_request::TopicRequest::default()
                .with_name(f.text().into());
            tagged!(f, 0, topic)
        });
        let cursor = self.maybe(|f| {
            let cursor = describe_topic_partitions_request::Cursor::default()
                .with_topic_name(f.text().into())
                .with_partition_index(f.rng.random());
            tagged!(f, 0, cursor)
        });
        let request = DescribeTopicPartitionsRequest::default()
            .with_topics(topics)
            .with_response_partition_limit(self.rng.random())
            .with_cursor(cursor);
        tagged!(self, 0, request)
    }
}
