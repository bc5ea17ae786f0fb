//! Requests of administrators. None of them changes what other tests use: they look, or change `other_topic`.

use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::{
    AlterConfigsRequest, CreatePartitionsRequest, DescribeClusterRequest, DescribeConfigsRequest,
    DescribeLogDirsRequest, DescribeProducersRequest, DescribeTopicPartitionsRequest,
    IncrementalAlterConfigsRequest, ListConfigResourcesRequest, describe_producers_request,
    describe_topic_partitions_request, incremental_alter_configs_request,
};
use kafka_protocol::protocol::StrBytes;

use super::{Sample, World};
use crate::raw::topic_name;

/// Kafka's number for a topic as a resource.
pub const TOPIC_RESOURCE: i8 = 2;

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

impl Sample for DescribeConfigsRequest {
    fn sample(world: &World, version: i16) -> DescribeConfigsRequest {
        let resource = DescribeConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(text(&world.topic))
            .with_configuration_keys(None);
        DescribeConfigsRequest::default()
            .with_resources(vec![resource])
            .with_include_synonyms(true)
            .with_include_documentation(version >= 3)
    }
}

impl Sample for AlterConfigsRequest {
    fn sample(world: &World, _version: i16) -> AlterConfigsRequest {
        let config = AlterableConfig::default()
            .with_name(text("retention.ms"))
            .with_value(Some(text("7200000")));
        let resource = AlterConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(text(&world.other_topic))
            .with_configs(vec![config]);
        AlterConfigsRequest::default().with_resources(vec![resource])
    }
}

impl Sample for IncrementalAlterConfigsRequest {
    fn sample(world: &World, _version: i16) -> IncrementalAlterConfigsRequest {
        let config = incremental_alter_configs_request::AlterableConfig::default()
            .with_name(text("retention.ms"))
            .with_config_operation(0)
            .with_value(Some(text("7200000")));
        let resource = incremental_alter_configs_request::AlterConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(text(&world.other_topic))
            .with_configs(vec![config]);
        IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
    }
}

impl Sample for ListConfigResourcesRequest {
    fn sample(_world: &World, _version: i16) -> ListConfigResourcesRequest {
        ListConfigResourcesRequest::default()
    }
}

impl Sample for CreatePartitionsRequest {
    fn sample(world: &World, _version: i16) -> CreatePartitionsRequest {
        let topic = CreatePartitionsTopic::default()
            .with_name(topic_name(&world.other_topic))
            .with_count(2)
            .with_assignments(None);
        CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(1_000)
    }
}

impl Sample for DescribeClusterRequest {
    fn sample(_world: &World, _version: i16) -> DescribeClusterRequest {
        DescribeClusterRequest::default()
    }
}

impl Sample for DescribeLogDirsRequest {
    fn sample(world: &World, _version: i16) -> DescribeLogDirsRequest {
        let topic = DescribableLogDirTopic::default()
            .with_topic(topic_name(&world.topic))
            .with_partitions(vec![0]);
        DescribeLogDirsRequest::default().with_topics(Some(vec![topic]))
    }
}

impl Sample for DescribeProducersRequest {
    fn sample(world: &World, _version: i16) -> DescribeProducersRequest {
        let topic = describe_producers_request::TopicRequest::default()
            .with_name(topic_name(&world.topic))
            .with_partition_indexes(vec![0]);
        DescribeProducersRequest::default().with_topics(vec![topic])
    }
}

impl Sample for DescribeTopicPartitionsRequest {
    fn sample(world: &World, _version: i16) -> DescribeTopicPartitionsRequest {
        let topic = describe_topic_partitions_request::TopicRequest::default()
            .with_name(topic_name(&world.topic));
        DescribeTopicPartitionsRequest::default()
            .with_topics(vec![topic])
            .with_response_partition_limit(100)
            .with_cursor(None)
    }
}
