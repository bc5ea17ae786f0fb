//! What the requests of administrators look like: configurations, partitions, and what describes the cluster.

use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::{
    ApiKey, describe_producers_request, describe_topic_partitions_request,
    incremental_alter_configs_request,
};

use super::{
    Element, Field, INT8, INT32, Kind, Schema, Struct, array_of, body, fixed, string, structure,
};

pub(super) fn schema_of(api_key: ApiKey) -> Option<Schema> {
    let (flexible_from, body) = match api_key {
        ApiKey::DescribeConfigs => (4, &DESCRIBE_CONFIGS),
        ApiKey::AlterConfigs => (2, &ALTER_CONFIGS),
        ApiKey::IncrementalAlterConfigs => (1, &INCREMENTAL_ALTER_CONFIGS),
        ApiKey::CreatePartitions => (2, &CREATE_PARTITIONS),
        ApiKey::DescribeCluster => (0, &DESCRIBE_CLUSTER),
        ApiKey::DescribeLogDirs => (2, &DESCRIBE_LOG_DIRS),
        ApiKey::DescribeProducers => (0, &DESCRIBE_PRODUCERS),
        ApiKey::ListConfigResources => (0, &LIST_CONFIG_RESOURCES),
        ApiKey::DescribeTopicPartitions => (0, &DESCRIBE_TOPIC_PARTITIONS),
        _ => return None,
    };
    Some(Schema { flexible_from, body })
}

static DESCRIBE_CONFIGS: Struct = body(&[
    array_of(&DESCRIBED_RESOURCE),
    fixed(INT8),         // include synonyms
    fixed(INT8).from(3), // include documentation
]);

static DESCRIBED_RESOURCE: Struct = structure::<DescribeConfigsResource>(&[
    fixed(INT8), // resource type
    string(),
    Field::new(Kind::Array(Element::String)).nullable_from(0), // names of configurations
]);

static ALTER_CONFIGS: Struct = body(&[
    array_of(&ALTERED_RESOURCE),
    fixed(INT8), // validate only
]);

static ALTERED_RESOURCE: Struct = structure::<AlterConfigsResource>(&[
    fixed(INT8), // resource type
    string(),
    array_of(&ALTERED_CONFIG),
]);

static ALTERED_CONFIG: Struct =
    structure::<AlterableConfig>(&[string(), string().nullable_from(0)]);

static INCREMENTAL_ALTER_CONFIGS: Struct = body(&[
    array_of(&INCREMENTALLY_ALTERED_RESOURCE),
    fixed(INT8), // validate only
]);

static INCREMENTALLY_ALTERED_RESOURCE: Struct =
    structure::<incremental_alter_configs_request::AlterConfigsResource>(&[
        fixed(INT8), // resource type
        string(),
        array_of(&INCREMENTALLY_ALTERED_CONFIG),
    ]);

static INCREMENTALLY_ALTERED_CONFIG: Struct =
    structure::<incremental_alter_configs_request::AlterableConfig>(&[
        string(),
        fixed(INT8), // operation
        string().nullable_from(0),
    ]);

static CREATE_PARTITIONS: Struct = body(&[
    array_of(&GROWN_TOPIC),
    fixed(INT32), // timeout
    fixed(INT8),  // validate only
]);

static GROWN_TOPIC: Struct = structure::<CreatePartitionsTopic>(&[
    string(),
    fixed(INT32), // count
    array_of(&NEW_ASSIGNMENT).nullable_from(0),
]);

static NEW_ASSIGNMENT: Struct = structure::<CreatePartitionsAssignment>(&[
    Field::new(Kind::Array(Element::Fixed(INT32))), // broker ids
]);

static DESCRIBE_CLUSTER: Struct = body(&[
    fixed(INT8),         // authorized operations
    fixed(INT8).from(1), // endpoint type
    fixed(INT8).from(2), // fenced brokers
]);

static DESCRIBE_LOG_DIRS: Struct = body(&[array_of(&LOG_DIR_TOPIC).nullable_from(0)]);

static LOG_DIR_TOPIC: Struct = structure::<DescribableLogDirTopic>(&[
    string(),
    Field::new(Kind::Array(Element::Fixed(INT32))), // partitions
]);

static DESCRIBE_PRODUCERS: Struct = body(&[array_of(&PRODUCERS_TOPIC)]);

static PRODUCERS_TOPIC: Struct = structure::<describe_producers_request::TopicRequest>(&[
    string(),
    Field::new(Kind::Array(Element::Fixed(INT32))), // partitions
]);

static LIST_CONFIG_RESOURCES: Struct =
    body(&[Field::new(Kind::Array(Element::Fixed(INT8))).from(1)]);

static DESCRIBE_TOPIC_PARTITIONS: Struct = body(&[
    array_of(&DESCRIBED_TOPIC),
    fixed(INT32), // partitions in the answer
    Field::new(Kind::OptionalStruct(&CURSOR)),
]);

static DESCRIBED_TOPIC: Struct =
    structure::<describe_topic_partitions_request::TopicRequest>(&[string()]);

static CURSOR: Struct =
    structure::<describe_topic_partitions_request::Cursor>(&[string(), fixed(INT32)]);
