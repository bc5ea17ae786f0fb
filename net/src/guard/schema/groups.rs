//! What the requests of consumer groups look like.

use kafka_protocol::messages::{
    ApiKey, join_group_request, leave_group_request, offset_commit_request, offset_delete_request,
    offset_fetch_request, sync_group_request,
};

use super::{
    Element, Field, INT8, INT32, INT64, Kind, NEVER, Schema, Struct, array_of, body, fixed, string,
    structure,
};

pub(super) fn schema_of(api_key: ApiKey) -> Option<Schema> {
    let (flexible_from, body) = match api_key {
        ApiKey::FindCoordinator => (3, &FIND_COORDINATOR),
        ApiKey::JoinGroup => (6, &JOIN_GROUP),
        ApiKey::SyncGroup => (4, &SYNC_GROUP),
        ApiKey::Heartbeat => (4, &HEARTBEAT),
        ApiKey::LeaveGroup => (4, &LEAVE_GROUP),
        ApiKey::OffsetCommit => (8, &OFFSET_COMMIT),
        ApiKey::OffsetFetch => (6, &OFFSET_FETCH),
        ApiKey::OffsetDelete => (NEVER, &OFFSET_DELETE),
        ApiKey::DescribeGroups => (5, &DESCRIBE_GROUPS),
        ApiKey::ListGroups => (3, &LIST_GROUPS),
        ApiKey::DeleteGroups => (2, &DELETE_GROUPS),
        _ => return None,
    };
    Some(Schema { flexible_from, body })
}

const fn strings() -> Field {
    Field::new(Kind::Array(Element::String))
}

const fn bytes() -> Field {
    Field::new(Kind::Bytes)
}

static FIND_COORDINATOR: Struct = body(&[
    string().to(3),      // key
    fixed(INT8).from(1), // kind of key
    strings().from(4),   // keys
]);

static JOIN_GROUP: Struct = body(&[
    string(),                          // group
    fixed(INT32),                      // session timeout
    fixed(INT32).from(1),              // rebalance timeout
    string(),                          // member
    string().from(5).nullable_from(5), // instance
    string(),                          // protocol type
    array_of(&JOIN_PROTOCOL),
    string().from(8).nullable_from(8), // reason
]);

static JOIN_PROTOCOL: Struct =
    structure::<join_group_request::JoinGroupRequestProtocol>(&[string(), bytes()]);

static SYNC_GROUP: Struct = body(&[
    string(),                          // group
    fixed(INT32),                      // generation
    string(),                          // member
    string().from(3).nullable_from(3), // instance
    string().from(5).nullable_from(5), // protocol type
    string().from(5).nullable_from(5), // protocol
    array_of(&SYNC_ASSIGNMENT),
]);

static SYNC_ASSIGNMENT: Struct =
    structure::<sync_group_request::SyncGroupRequestAssignment>(&[string(), bytes()]);

static HEARTBEAT: Struct = body(&[
    string(),                          // group
    fixed(INT32),                      // generation
    string(),                          // member
    string().from(3).nullable_from(3), // instance
]);

static LEAVE_GROUP: Struct = body(&[
    string(),       // group
    string().to(2), // member
    array_of(&LEAVE_MEMBER).from(3),
]);

static LEAVE_MEMBER: Struct = structure::<leave_group_request::MemberIdentity>(&[
    string(),
    string().nullable_from(3),         // instance
    string().from(5).nullable_from(5), // reason
]);

static OFFSET_COMMIT: Struct = body(&[
    string(),                          // group
    fixed(INT32),                      // generation
    string(),                          // member
    string().from(7).nullable_from(7), // instance
    fixed(INT64).to(4),                // retention
    array_of(&COMMIT_TOPIC),
]);

static COMMIT_TOPIC: Struct = structure::<offset_commit_request::OffsetCommitRequestTopic>(&[
    string(),
    array_of(&COMMIT_PARTITION),
]);

static COMMIT_PARTITION: Struct =
    structure::<offset_commit_request::OffsetCommitRequestPartition>(&[
        fixed(INT32),
        fixed(INT64),              // offset
        fixed(INT32).from(6),      // leader epoch
        string().nullable_from(0), // metadata
    ]);

static OFFSET_FETCH: Struct = body(&[
    string().to(7), // group
    array_of(&FETCHED_TOPIC).to(7).nullable_from(2),
    array_of(&FETCHED_GROUP).from(8),
    fixed(INT8).from(7), // require stable
]);

static FETCHED_TOPIC: Struct =
    structure::<offset_fetch_request::OffsetFetchRequestTopic>(&FETCHED_TOPIC_FIELDS);

static FETCHED_GROUP_TOPIC: Struct =
    structure::<offset_fetch_request::OffsetFetchRequestTopics>(&FETCHED_TOPIC_FIELDS);

static FETCHED_TOPIC_FIELDS: [Field; 2] =
    [string(), Field::new(Kind::Array(Element::Fixed(INT32)))];

static FETCHED_GROUP: Struct = structure::<offset_fetch_request::OffsetFetchRequestGroup>(&[
    string(),
    string().from(9).nullable_from(9), // member
    fixed(INT32).from(9),              // member epoch
    array_of(&FETCHED_GROUP_TOPIC).nullable_from(8),
]);

static OFFSET_DELETE: Struct = body(&[string(), array_of(&OFFSET_DELETE_TOPIC)]);

static OFFSET_DELETE_TOPIC: Struct =
    structure::<offset_delete_request::OffsetDeleteRequestTopic>(&[
        string(),
        array_of(&OFFSET_DELETE_PARTITION),
    ]);

static OFFSET_DELETE_PARTITION: Struct =
    structure::<offset_delete_request::OffsetDeleteRequestPartition>(&[fixed(INT32)]);

static DESCRIBE_GROUPS: Struct = body(&[
    strings(),
    fixed(INT8).from(3), // authorized operations
]);

static LIST_GROUPS: Struct = body(&[
    strings().from(4), // states
    strings().from(5), // types
]);

static DELETE_GROUPS: Struct = body(&[strings()]);
