//! What the requests look like by which replicas and leaderships are moved.

use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::{ApiKey, describe_quorum_request, elect_leaders_request};

use super::{
    Element, Field, INT8, INT32, Kind, Schema, Struct, array_of, body, fixed, string, structure,
};

pub(super) fn schema_of(api_key: ApiKey) -> Option<Schema> {
    let (flexible_from, body) = match api_key {
        ApiKey::ElectLeaders => (2, &ELECT_LEADERS),
        ApiKey::AlterPartitionReassignments => (0, &ALTER_REASSIGNMENTS),
        ApiKey::ListPartitionReassignments => (0, &LIST_REASSIGNMENTS),
        ApiKey::DescribeQuorum => (0, &DESCRIBE_QUORUM),
        ApiKey::UnregisterBroker => (0, &UNREGISTER_BROKER),
        _ => return None,
    };
    Some(Schema { flexible_from, body })
}

const fn numbers() -> Field {
    Field::new(Kind::Array(Element::Fixed(INT32)))
}

static ELECT_LEADERS: Struct = body(&[
    fixed(INT8).from(1), // kind of election
    array_of(&ELECTED_TOPIC).nullable_from(0),
    fixed(INT32), // timeout
]);

static ELECTED_TOPIC: Struct =
    structure::<elect_leaders_request::TopicPartitions>(&[string(), numbers()]);

static ALTER_REASSIGNMENTS: Struct = body(&[
    fixed(INT32),        // timeout
    fixed(INT8).from(1), // allow another number of replicas
    array_of(&REASSIGNED_TOPIC),
]);

static REASSIGNED_TOPIC: Struct =
    structure::<ReassignableTopic>(&[string(), array_of(&REASSIGNED_PARTITION)]);

static REASSIGNED_PARTITION: Struct = structure::<ReassignablePartition>(&[
    fixed(INT32),
    numbers().nullable_from(0), // broker ids
]);

static LIST_REASSIGNMENTS: Struct = body(&[
    fixed(INT32), // timeout
    array_of(&LISTED_TOPIC).nullable_from(0),
]);

static LISTED_TOPIC: Struct = structure::<ListPartitionReassignmentsTopics>(&[string(), numbers()]);

static DESCRIBE_QUORUM: Struct = body(&[array_of(&QUORUM_TOPIC)]);

static QUORUM_TOPIC: Struct =
    structure::<describe_quorum_request::TopicData>(&[string(), array_of(&QUORUM_PARTITION)]);

static QUORUM_PARTITION: Struct =
    structure::<describe_quorum_request::PartitionData>(&[fixed(INT32)]);

static UNREGISTER_BROKER: Struct = body(&[fixed(INT32)]);
