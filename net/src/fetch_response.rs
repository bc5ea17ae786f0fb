//! The Fetch response and its zero-copy encoder.
//!
//! Owns [`FetchResponseParts`]: a Fetch response whose records are lists of chunks that go to the
//! socket as they are. Record bytes are never copied here, except the sixteen header bytes of a
//! batch that get the offset and epoch this replica gave it, and chunks too small to be worth a
//! vector of their own.
//!
//! I1 Byte for byte what kafka-protocol's encoder writes for the same response, versions 4 to 18
//!    (property test in `tests/fetch_encoding.rs`).

use bytes::Bytes;
use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::output::Output;

/// First version with compact lengths and tagged fields.
const FLEXIBLE_FROM: i16 = 12;
/// First version that names topics by id.
const TOPIC_ID_FROM: i16 = 13;

/// A Fetch response. Fields that a version does not have are left out when encoding.
#[derive(Debug, Default)]
pub struct FetchResponseParts {
    pub throttle_time_ms: i32,
    pub error_code: i16,
    pub session_id: i32,
    pub topics: Vec<FetchTopicParts>,
    /// Where the leaders named in `current_leader` are (version 16 on).
    pub node_endpoints: Vec<FetchNodeEndpoint>,
}

#[derive(Debug, Default)]
pub struct FetchTopicParts {
    /// Sent up to version 12.
    pub topic: TopicName,
    /// Sent from version 13 on.
    pub topic_id: Uuid,
    pub partitions: Vec<FetchPartitionParts>,
}

#[derive(Debug)]
pub struct FetchPartitionParts {
    pub partition_index: i32,
    pub error_code: i16,
    pub high_watermark: i64,
    pub last_stable_offset: i64,
    pub log_start_offset: i64,
    /// Epoch and end offset where the asker's log departs from this one (version 12 on).
    pub diverging_epoch: Option<(i32, i64)>,
    /// Leader id and epoch, when the asker should look elsewhere (version 12 on).
    pub current_leader: Option<(i32, i32)>,
    /// Producer id and first offset of each. `None` is null: what Kafka answers to
    /// read_uncommitted fetches.
    pub aborted_transactions: Option<Vec<(i64, i64)>>,
    pub preferred_read_replica: i32,
    pub records: Vec<RecordChunk>,
}

impl Default for FetchPartitionParts {
    fn default() -> Self {
        Self {
            partition_index: 0,
            error_code: 0,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            diverging_epoch: None,
            current_leader: None,
            aborted_transactions: None,
            preferred_read_replica: -1,
            records: Vec::new(),
        }
    }
}

/// Bytes of records, in order.
#[derive(Debug, Clone)]
pub enum RecordChunk {
    /// Sent as they are.
    Raw(Bytes),
    /// Exactly one v2 batch as its producer sent it; base offset and leader epoch are put into the
    /// answer's copy of its header, never into `bytes`.
    Batch { base_offset: i64, leader_epoch: i32, bytes: Bytes },
}

impl RecordChunk {
    pub fn size(&self) -> usize {
        match self {
            Self::Raw(bytes) | Self::Batch { bytes, .. } => bytes.len(),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct FetchNodeEndpoint {
    pub node_id: i32,
    pub host: StrBytes,
    pub port: i32,
    pub rack: Option<StrBytes>,
}

/// Bytes of a batch up to and including its leader epoch.
const BATCH_PATCHED_BYTES: usize = 16;

/// Appends the body (no header, no length prefix).
pub(crate) fn encode_fetch(output: &mut Output, version: i16, parts: FetchResponseParts) {
    let flexible = version >= FLEXIBLE_FROM;
    let inline = output.inline();
    put_i32(inline, parts.throttle_time_ms);
    if version >= 7 {
        put_i16(inline, parts.error_code);
        put_i32(inline, parts.session_id);
    }
    put_count(inline, flexible, parts.topics.len());
    for topic in parts.topics {
        encode_topic(output, version, topic);
    }
    if flexible {
        encode_endpoints(output.inline(), version, &parts.node_endpoints);
    }
}

fn encode_topic(output: &mut Output, version: i16, topic: FetchTopicParts) {
    let flexible = version >= FLEXIBLE_FROM;
    let inline = output.inline();
    if version >= TOPIC_ID_FROM {
        inline.extend_from_slice(topic.topic_id.as_bytes());
    } else {
        put_string(inline, flexible, &topic.topic);
    }
    put_count(inline, flexible, topic.partitions.len());
    for partition in topic.partitions {
        encode_partition(output, version, partition);
    }
    if flexible {
        put_uvarint(output.inline(), 0);
    }
}

fn encode_partition(output: &mut Output, version: i16, partition: FetchPartitionParts) {
    let flexible = version >= FLEXIBLE_FROM;
    let inline = output.inline();
    put_i32(inline, partition.partition_index);
    put_i16(inline, partition.error_code);
    put_i64(inline, partition.high_watermark);
    put_i64(inline, partition.last_stable_offset);
    if version >= 5 {
        put_i64(inline, partition.log_start_offset);
    }
    encode_aborted(inline, flexible, partition.aborted_transactions.as_deref());
    if version >= 11 {
        put_i32(inline, partition.preferred_read_replica);
    }
    let records_bytes: usize = partition.records.iter().map(RecordChunk::size).sum();
    put_count(inline, flexible, records_bytes);
    for chunk in partition.records {
        encode_chunk(output, chunk);
    }
    if flexible {
        encode_partition_tags(output.inline(), partition.diverging_epoch, partition.current_leader);
    }
}

fn encode_aborted(inline: &mut Vec<u8>, flexible: bool, aborted: Option<&[(i64, i64)]>) {
    let Some(aborted) = aborted else {
        if flexible {
            put_uvarint(inline, 0);
        } else {
            put_i32(inline, -1);
        }
        return;
    };
    put_count(inline, flexible, aborted.len());
    for (producer_id, first_offset) in aborted {
        put_i64(inline, *producer_id);
        put_i64(inline, *first_offset);
        if flexible {
            put_uvarint(inline, 0);
        }
    }
}

fn encode_chunk(output: &mut Output, chunk: RecordChunk) {
    match chunk {
        RecordChunk::Raw(bytes) => output.push_shared(bytes),
        RecordChunk::Batch { base_offset, leader_epoch, bytes } => {
            assert!(bytes.len() >= BATCH_PATCHED_BYTES, "a batch without its header");
            let inline = output.inline();
            put_i64(inline, base_offset);
            inline.extend_from_slice(&bytes[8..12]); // the batch's own length
            put_i32(inline, leader_epoch);
            output.push_shared(bytes.slice(BATCH_PATCHED_BYTES..));
        }
    }
}

fn encode_partition_tags(
    inline: &mut Vec<u8>,
    diverging_epoch: Option<(i32, i64)>,
    current_leader: Option<(i32, i32)>,
) {
    let count = u32::from(diverging_epoch.is_some()) + u32::from(current_leader.is_some());
    put_uvarint(inline, count);
    if let Some((epoch, end_offset)) = diverging_epoch {
        put_uvarint(inline, 0);
        put_uvarint(inline, 4 + 8 + 1);
        put_i32(inline, epoch);
        put_i64(inline, end_offset);
        put_uvarint(inline, 0);
    }
    if let Some((leader_id, leader_epoch)) = current_leader {
        put_uvarint(inline, 1);
        put_uvarint(inline, 4 + 4 + 1);
        put_i32(inline, leader_id);
        put_i32(inline, leader_epoch);
        put_uvarint(inline, 0);
    }
}

fn encode_endpoints(inline: &mut Vec<u8>, version: i16, endpoints: &[FetchNodeEndpoint]) {
    if version < 16 || endpoints.is_empty() {
        put_uvarint(inline, 0);
        return;
    }
    let mut field = Vec::with_capacity(64 * endpoints.len());
    put_count(&mut field, true, endpoints.len());
    for endpoint in endpoints {
        put_i32(&mut field, endpoint.node_id);
        put_string(&mut field, true, &endpoint.host);
        put_i32(&mut field, endpoint.port);
        match &endpoint.rack {
            Some(rack) => put_string(&mut field, true, rack),
            None => put_uvarint(&mut field, 0),
        }
        put_uvarint(&mut field, 0);
    }
    put_uvarint(inline, 1);
    put_uvarint(inline, 0);
    put_uvarint(inline, length_u32(field.len()));
    inline.extend_from_slice(&field);
}

fn put_i16(inline: &mut Vec<u8>, value: i16) {
    inline.extend_from_slice(&value.to_be_bytes());
}

fn put_i32(inline: &mut Vec<u8>, value: i32) {
    inline.extend_from_slice(&value.to_be_bytes());
}

fn put_i64(inline: &mut Vec<u8>, value: i64) {
    inline.extend_from_slice(&value.to_be_bytes());
}

fn put_uvarint(inline: &mut Vec<u8>, mut value: u32) {
    loop {
        let [low, ..] = (value & 0x7f).to_le_bytes();
        value >>= 7;
        if value == 0 {
            inline.push(low);
            return;
        }
        inline.push(low | 0x80);
    }
}

/// The length of an array or of bytes that are not null.
fn put_count(inline: &mut Vec<u8>, flexible: bool, count: usize) {
    let count = length_u32(count);
    if flexible {
        put_uvarint(inline, count + 1);
    } else {
        inline.extend_from_slice(&count.to_be_bytes());
    }
}

fn put_string(inline: &mut Vec<u8>, flexible: bool, value: &str) {
    if flexible {
        put_uvarint(inline, length_u32(value.len()) + 1);
    } else {
        let length = i16::try_from(value.len()).unwrap_or(i16::MAX);
        assert!(usize::from(length.unsigned_abs()) == value.len(), "a name of over 32 KiB");
        put_i16(inline, length);
    }
    inline.extend_from_slice(value.as_bytes());
}

/// A response is far below 2 GiB: the handler's own limits see to it.
fn length_u32(length: usize) -> u32 {
    let length = i32::try_from(length).unwrap_or(-1);
    assert!(length >= 0, "a response of over 2 GiB");
    length.unsigned_abs()
}
