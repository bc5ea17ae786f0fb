//! What each served request looks like, as constants.
//!
//! Written from the protocol's definition; proved by walking what kafka-protocol encodes, for every
//! version, to exactly its end (`tests/guard.rs`). A new version in
//! [`crate::protocol::SUPPORTED`] needs its fields here first.

use kafka_protocol::messages::ApiKey;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::protocol::StrBytes;

mod admin;
mod groups;
mod replicas;

const INT8: usize = 1;
const INT16: usize = 2;
const INT32: usize = 4;
const INT64: usize = 8;
const UUID: usize = 16;
const NEVER: i16 = i16::MAX;

pub(super) struct Schema {
    /// First version with compact lengths, tagged fields and request header 2.
    pub(super) flexible_from: i16,
    pub(super) body: &'static Struct,
}

pub(super) struct Struct {
    pub(super) fields: &'static [Field],
    pub(super) tags: &'static [Tag],
    /// Memory of one such element in the decoder's vector.
    pub(super) decoded_bytes: usize,
}

pub(super) struct Field {
    pub(super) kind: Kind,
    pub(super) from: i16,
    pub(super) to: i16,
    pub(super) nullable_from: i16,
}

pub(super) struct Tag {
    pub(super) tag: u32,
    pub(super) from: i16,
    pub(super) field: Field,
}

pub(super) enum Kind {
    /// So many bytes.
    Fixed(usize),
    String,
    Bytes,
    Array(Element),
    Struct(&'static Struct),
    /// Behind a byte that is 1 where it is there.
    OptionalStruct(&'static Struct),
}

pub(super) enum Element {
    /// So many bytes on the wire and in memory.
    Fixed(usize),
    String,
    Struct(&'static Struct),
}

impl Element {
    pub(super) fn decoded_bytes(&self) -> usize {
        match self {
            Self::Fixed(size) => *size,
            Self::String => size_of::<StrBytes>(),
            Self::Struct(structure) => structure.decoded_bytes,
        }
    }
}

impl Field {
    const fn new(kind: Kind) -> Self {
        Self { kind, from: 0, to: i16::MAX, nullable_from: NEVER }
    }

    const fn from(mut self, version: i16) -> Self {
        self.from = version;
        self
    }

    const fn to(mut self, version: i16) -> Self {
        self.to = version;
        self
    }

    const fn nullable_from(mut self, version: i16) -> Self {
        self.nullable_from = version;
        self
    }
}

const fn fixed(size: usize) -> Field {
    Field::new(Kind::Fixed(size))
}

const fn string() -> Field {
    Field::new(Kind::String)
}

const fn array_of(structure: &'static Struct) -> Field {
    Field::new(Kind::Array(Element::Struct(structure)))
}

const fn structure<T>(fields: &'static [Field]) -> Struct {
    Struct { fields, tags: &[], decoded_bytes: size_of::<T>() }
}

const fn body(fields: &'static [Field]) -> Struct {
    Struct { fields, tags: &[], decoded_bytes: 0 }
}

pub(super) fn schema_of(api_key: ApiKey) -> Option<Schema> {
    let (flexible_from, body) = match api_key {
        ApiKey::Produce => (9, &PRODUCE),
        ApiKey::Fetch => (12, &FETCH),
        ApiKey::ListOffsets => (6, &LIST_OFFSETS),
        ApiKey::Metadata => (9, &METADATA),
        ApiKey::ApiVersions => (3, &API_VERSIONS),
        ApiKey::CreateTopics => (5, &CREATE_TOPICS),
        ApiKey::DeleteTopics => (4, &DELETE_TOPICS),
        ApiKey::DeleteRecords => (2, &DELETE_RECORDS),
        ApiKey::InitProducerId => (2, &INIT_PRODUCER_ID),
        ApiKey::OffsetForLeaderEpoch => (4, &OFFSET_FOR_LEADER_EPOCH),
        _ => {
            return groups::schema_of(api_key)
                .or_else(|| admin::schema_of(api_key))
                .or_else(|| replicas::schema_of(api_key));
        }
    };
    Some(Schema { flexible_from, body })
}

static PRODUCE: Struct = body(&[
    string().nullable_from(0), // transactional id
    fixed(INT16),              // acks
    fixed(INT32),              // timeout
    array_of(&PRODUCE_TOPIC),
]);

static PRODUCE_TOPIC: Struct = structure::<TopicProduceData>(&[
    string().to(12),
    fixed(UUID).from(13),
    array_of(&PRODUCE_PARTITION),
]);

static PRODUCE_PARTITION: Struct = structure::<PartitionProduceData>(&[
    fixed(INT32),
    Field::new(Kind::Bytes).nullable_from(0), // records
]);

static FETCH: Struct = Struct {
    fields: &[
        fixed(INT32).to(14),  // replica id
        fixed(INT32),         // max wait
        fixed(INT32),         // min bytes
        fixed(INT32),         // max bytes
        fixed(INT8),          // isolation level
        fixed(INT32).from(7), // session id
        fixed(INT32).from(7), // session epoch
        array_of(&FETCH_TOPIC),
        array_of(&FETCH_FORGOTTEN).from(7),
        string().from(11), // rack
    ],
    tags: &[
        Tag { tag: 0, from: 12, field: string().nullable_from(12) }, // cluster id
        Tag { tag: 1, from: 15, field: Field::new(Kind::Struct(&FETCH_REPLICA_STATE)) },
    ],
    decoded_bytes: 0,
};

static FETCH_REPLICA_STATE: Struct = body(&[fixed(INT32), fixed(INT64)]);

static FETCH_TOPIC: Struct =
    structure::<FetchTopic>(&[string().to(12), fixed(UUID).from(13), array_of(&FETCH_PARTITION)]);

static FETCH_PARTITION: Struct = Struct {
    fields: &[
        fixed(INT32),          // partition
        fixed(INT32).from(9),  // current leader epoch
        fixed(INT64),          // fetch offset
        fixed(INT32).from(12), // last fetched epoch
        fixed(INT64).from(5),  // log start offset
        fixed(INT32),          // max bytes
    ],
    tags: &[
        Tag { tag: 0, from: 17, field: fixed(UUID) }, // replica directory id
        Tag { tag: 1, from: 18, field: fixed(INT64) }, // high watermark
    ],
    decoded_bytes: size_of::<FetchPartition>(),
};

static FETCH_FORGOTTEN: Struct = structure::<ForgottenTopic>(&[
    string().to(12),
    fixed(UUID).from(13),
    Field::new(Kind::Array(Element::Fixed(INT32))),
]);

static LIST_OFFSETS: Struct = body(&[
    fixed(INT32),        // replica id
    fixed(INT8).from(2), // isolation level
    array_of(&LIST_OFFSETS_TOPIC),
    fixed(INT32).from(10), // timeout
]);

static LIST_OFFSETS_TOPIC: Struct =
    structure::<ListOffsetsTopic>(&[string(), array_of(&LIST_OFFSETS_PARTITION)]);

static LIST_OFFSETS_PARTITION: Struct = structure::<ListOffsetsPartition>(&[
    fixed(INT32),
    fixed(INT32).from(4), // current leader epoch
    fixed(INT64),         // timestamp
]);

static METADATA: Struct = body(&[
    array_of(&METADATA_TOPIC).nullable_from(1),
    fixed(INT8).from(4),        // allow auto creation
    fixed(INT8).from(8).to(10), // cluster authorized operations
    fixed(INT8).from(8),        // topic authorized operations
]);

static METADATA_TOPIC: Struct =
    structure::<MetadataRequestTopic>(&[fixed(UUID).from(10), string().nullable_from(10)]);

static API_VERSIONS: Struct = body(&[
    string().from(3), // client software name
    string().from(3), // client software version
]);

static CREATE_TOPICS: Struct = body(&[
    array_of(&CREATABLE_TOPIC),
    fixed(INT32), // timeout
    fixed(INT8),  // validate only
]);

static CREATABLE_TOPIC: Struct = structure::<CreatableTopic>(&[
    string(),
    fixed(INT32), // partitions
    fixed(INT16), // replication factor
    array_of(&CREATABLE_ASSIGNMENT),
    array_of(&CREATABLE_CONFIG),
]);

static CREATABLE_ASSIGNMENT: Struct = structure::<CreatableReplicaAssignment>(&[
    fixed(INT32),
    Field::new(Kind::Array(Element::Fixed(INT32))), // broker ids
]);

static CREATABLE_CONFIG: Struct =
    structure::<CreatableTopicConfig>(&[string(), string().nullable_from(0)]);

static DELETE_TOPICS: Struct = body(&[
    array_of(&DELETE_TOPIC).from(6),
    Field::new(Kind::Array(Element::String)).to(5),
    fixed(INT32), // timeout
]);

static DELETE_TOPIC: Struct =
    structure::<DeleteTopicState>(&[string().nullable_from(6), fixed(UUID)]);

static DELETE_RECORDS: Struct = body(&[
    array_of(&DELETE_RECORDS_TOPIC),
    fixed(INT32), // timeout
]);

static DELETE_RECORDS_TOPIC: Struct =
    structure::<DeleteRecordsTopic>(&[string(), array_of(&DELETE_RECORDS_PARTITION)]);

static DELETE_RECORDS_PARTITION: Struct = structure::<DeleteRecordsPartition>(&[
    fixed(INT32),
    fixed(INT64), // offset
]);

static INIT_PRODUCER_ID: Struct = body(&[
    string().nullable_from(0), // transactional id
    fixed(INT32),              // transaction timeout
    fixed(INT64).from(3),      // producer id
    fixed(INT16).from(3),      // producer epoch
]);

static OFFSET_FOR_LEADER_EPOCH: Struct = body(&[
    fixed(INT32).from(3), // replica id
    array_of(&EPOCH_TOPIC),
]);

static EPOCH_TOPIC: Struct =
    structure::<OffsetForLeaderTopic>(&[string(), array_of(&EPOCH_PARTITION)]);

static EPOCH_PARTITION: Struct = structure::<OffsetForLeaderPartition>(&[
    fixed(INT32),
    fixed(INT32), // current leader epoch
    fixed(INT32), // leader epoch
]);
