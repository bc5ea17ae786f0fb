//! Which requests are served in which versions, and how their bytes become structs.
//!
//! Owns [`SUPPORTED`], the only table of versions; ApiVersions is answered from it and decoding
//! refuses what it does not list. Never decodes a byte that [`crate::guard`] has not walked.
//!
//! I1 Every API and version in the table has a schema in the guard and a decoder here (tests).
//! I2 Produce is advertised from version 0 and served from 3: librdkafka turns compression off for
//!    brokers whose minimum is above 0.

use bytes::Bytes;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterPartitionReassignmentsRequest, ApiKey, ApiVersionsRequest,
    ApiVersionsResponse, CreatePartitionsRequest, CreateTopicsRequest, DeleteGroupsRequest,
    DeleteRecordsRequest, DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest,
    DescribeGroupsRequest, DescribeLogDirsRequest, DescribeProducersRequest, DescribeQuorumRequest,
    DescribeTopicPartitionsRequest, ElectLeadersRequest, FetchRequest, FindCoordinatorRequest,
    HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest,
    LeaveGroupRequest, ListConfigResourcesRequest, ListGroupsRequest, ListOffsetsRequest,
    ListPartitionReassignmentsRequest, MetadataRequest, OffsetCommitRequest, OffsetDeleteRequest,
    OffsetFetchRequest, OffsetForLeaderEpochRequest, ProduceRequest, SyncGroupRequest,
    UnregisterBrokerRequest,
};
use kafka_protocol::protocol::{Decodable, StrBytes};

use crate::error::FrameError;
use crate::guard;

/// Kafka's UNSUPPORTED_VERSION.
const UNSUPPORTED_VERSION: i16 = 35;

/// One row of the version table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiSupport {
    pub api_key: ApiKey,
    /// Lowest version served.
    pub version_min: i16,
    /// Highest version served.
    pub version_max: i16,
    /// Lowest version named in ApiVersions; differs from `version_min` for Produce only (I2).
    pub version_min_advertised: i16,
}

const fn served(api_key: ApiKey, version_min: i16, version_max: i16) -> ApiSupport {
    ApiSupport { api_key, version_min, version_max, version_min_advertised: version_min }
}

/// Everything served, and nothing else is advertised.
pub static SUPPORTED: &[ApiSupport] = &[
    ApiSupport {
        api_key: ApiKey::Produce,
        version_min: 3,
        version_max: 13,
        version_min_advertised: 0,
    },
    served(ApiKey::Fetch, 4, 18),
    served(ApiKey::ListOffsets, 1, 10),
    served(ApiKey::Metadata, 0, 13),
    served(ApiKey::ApiVersions, 0, 4),
    served(ApiKey::CreateTopics, 2, 7),
    served(ApiKey::DeleteTopics, 1, 6),
    served(ApiKey::DeleteRecords, 0, 2),
    served(ApiKey::InitProducerId, 0, 5),
    served(ApiKey::OffsetForLeaderEpoch, 2, 4),
    served(ApiKey::FindCoordinator, 0, 6),
    served(ApiKey::JoinGroup, 0, 9),
    served(ApiKey::SyncGroup, 0, 5),
    served(ApiKey::Heartbeat, 0, 4),
    served(ApiKey::LeaveGroup, 0, 5),
    served(ApiKey::OffsetCommit, 2, 9),
    served(ApiKey::OffsetFetch, 1, 9),
    served(ApiKey::OffsetDelete, 0, 0),
    served(ApiKey::DescribeGroups, 0, 6),
    served(ApiKey::ListGroups, 0, 5),
    served(ApiKey::DeleteGroups, 0, 2),
    served(ApiKey::DescribeConfigs, 1, 4),
    served(ApiKey::AlterConfigs, 0, 2),
    served(ApiKey::DescribeLogDirs, 1, 4),
    served(ApiKey::CreatePartitions, 0, 3),
    served(ApiKey::ElectLeaders, 0, 2),
    served(ApiKey::IncrementalAlterConfigs, 0, 1),
    served(ApiKey::AlterPartitionReassignments, 0, 1),
    served(ApiKey::ListPartitionReassignments, 0, 0),
    served(ApiKey::DescribeQuorum, 0, 2),
    served(ApiKey::DescribeCluster, 0, 2),
    served(ApiKey::DescribeProducers, 0, 0),
    served(ApiKey::UnregisterBroker, 0, 0),
    served(ApiKey::ListConfigResources, 0, 1),
    served(ApiKey::DescribeTopicPartitions, 0, 0),
];

/// The row of an API key, if it is served at all.
pub fn support_of(api_key: i16) -> Option<&'static ApiSupport> {
    SUPPORTED.iter().find(|row| row.api_key as i16 == api_key)
}

/// A request as the handler gets it. Byte fields are slices of the frame.
#[derive(Debug, Clone)]
pub struct Request {
    pub api_key: ApiKey,
    pub api_version: i16,
    pub correlation_id: i32,
    pub client_id: Option<StrBytes>,
    pub body: RequestKind,
    /// Size of the allocation that any slice of this request keeps alive: the whole frame, with what
    /// follows the request in it.
    pub retained_bytes: usize,
}

/// The served requests. ApiVersions is missing because the connection answers it from [`SUPPORTED`].
#[derive(Debug, Clone)]
pub enum RequestKind {
    Produce(ProduceRequest),
    Fetch(FetchRequest),
    ListOffsets(ListOffsetsRequest),
    Metadata(MetadataRequest),
    OffsetForLeaderEpoch(OffsetForLeaderEpochRequest),
    CreateTopics(CreateTopicsRequest),
    DeleteTopics(DeleteTopicsRequest),
    DeleteRecords(DeleteRecordsRequest),
    InitProducerId(InitProducerIdRequest),
    FindCoordinator(FindCoordinatorRequest),
    JoinGroup(JoinGroupRequest),
    SyncGroup(SyncGroupRequest),
    Heartbeat(HeartbeatRequest),
    LeaveGroup(LeaveGroupRequest),
    OffsetCommit(OffsetCommitRequest),
    OffsetFetch(OffsetFetchRequest),
    OffsetDelete(OffsetDeleteRequest),
    DescribeGroups(DescribeGroupsRequest),
    ListGroups(ListGroupsRequest),
    DeleteGroups(DeleteGroupsRequest),
    DescribeConfigs(DescribeConfigsRequest),
    AlterConfigs(AlterConfigsRequest),
    DescribeLogDirs(DescribeLogDirsRequest),
    CreatePartitions(CreatePartitionsRequest),
    IncrementalAlterConfigs(IncrementalAlterConfigsRequest),
    DescribeCluster(DescribeClusterRequest),
    DescribeProducers(DescribeProducersRequest),
    ListConfigResources(ListConfigResourcesRequest),
    DescribeTopicPartitions(DescribeTopicPartitionsRequest),
    ElectLeaders(ElectLeadersRequest),
    AlterPartitionReassignments(AlterPartitionReassignmentsRequest),
    ListPartitionReassignments(ListPartitionReassignmentsRequest),
    DescribeQuorum(DescribeQuorumRequest),
    UnregisterBroker(UnregisterBrokerRequest),
}

/// What a frame turned out to be. Lives on the stack between decoding and its handler, so the large
/// variant costs nothing that a box would save.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum Incoming {
    /// For the handler.
    Request(Request),
    /// For the connection itself; the header's version is `api_version` even when that is not served.
    ApiVersions { correlation_id: i32, api_version: i16, supported: bool },
}

/// Bytes of a request header that every version of it begins with.
const HEADER_BYTES_MIN: usize = 8;

/// Decodes one whole frame (without its length prefix). Fails without having allocated on the
/// frame's word: the guard walks it first.
pub fn decode_request(frame: Bytes) -> Result<Incoming, FrameError> {
    let retained_bytes = frame.len();
    let Some((head, _)) = frame.split_first_chunk::<HEADER_BYTES_MIN>() else {
        return Err(FrameError::TooShort { length: frame.len() });
    };
    let [k0, k1, v0, v1, c0, c1, c2, c3] = *head;
    let api_key = i16::from_be_bytes([k0, k1]);
    let api_version = i16::from_be_bytes([v0, v1]);
    let correlation_id = i32::from_be_bytes([c0, c1, c2, c3]);

    let support = support_of(api_key).ok_or(FrameError::UnknownApi { api_key })?;
    if api_version < support.version_min || api_version > support.version_max {
        if support.api_key == ApiKey::ApiVersions {
            // The client cannot know the table before this answer; the rest of its frame has a
            // layout from the future and is not looked at.
            return Ok(Incoming::ApiVersions { correlation_id, api_version, supported: false });
        }
        return Err(FrameError::UnsupportedVersion { api_key, version: api_version });
    }

    let layout = guard::check_request(support.api_key, api_version, &frame)?;
    let client_id = layout
        .client_id
        .map(|range| StrBytes::from_utf8(frame.slice(range)))
        .transpose()
        .map_err(|_| FrameError::Undecodable)?;
    // Exactly what was walked: bytes that follow the request in its frame are ignored.
    let mut body = frame.slice(layout.body);
    let kind = decode_body(support.api_key, api_version, &mut body)?;
    // A decoder that stopped before the guard did disagrees with it on what the bytes mean.
    if !body.is_empty() {
        return Err(FrameError::NotDecoded { left: body.len() });
    }
    let Some(kind) = kind else {
        return Ok(Incoming::ApiVersions { correlation_id, api_version, supported: true });
    };
    Ok(Incoming::Request(Request {
        api_key: support.api_key,
        api_version,
        correlation_id,
        client_id,
        body: kind,
        retained_bytes,
    }))
}

/// `None` is ApiVersions, decoded and of no further interest.
fn decode_body(
    api_key: ApiKey,
    version: i16,
    body: &mut Bytes,
) -> Result<Option<RequestKind>, FrameError> {
    fn decode<T: Decodable>(body: &mut Bytes, version: i16) -> Result<T, FrameError> {
        T::decode(body, version).map_err(|_| FrameError::Undecodable)
    }
    let kind = match api_key {
        ApiKey::Produce => RequestKind::Produce(decode(body, version)?),
        ApiKey::Fetch => RequestKind::Fetch(decode(body, version)?),
        ApiKey::ListOffsets => RequestKind::ListOffsets(decode(body, version)?),
        ApiKey::Metadata => RequestKind::Metadata(decode(body, version)?),
        ApiKey::OffsetForLeaderEpoch => RequestKind::OffsetForLeaderEpoch(decode(body, version)?),
        ApiKey::CreateTopics => RequestKind::CreateTopics(decode(body, version)?),
        ApiKey::DeleteTopics => RequestKind::DeleteTopics(decode(body, version)?),
        ApiKey::DeleteRecords => RequestKind::DeleteRecords(decode(body, version)?),
        ApiKey::InitProducerId => RequestKind::InitProducerId(decode(body, version)?),
        ApiKey::FindCoordinator => RequestKind::FindCoordinator(decode(body, version)?),
        ApiKey::JoinGroup => RequestKind::JoinGroup(decode(body, version)?),
        ApiKey::SyncGroup => RequestKind::SyncGroup(decode(body, version)?),
        ApiKey::Heartbeat => RequestKind::Heartbeat(decode(body, version)?),
        ApiKey::LeaveGroup => RequestKind::LeaveGroup(decode(body, version)?),
        ApiKey::OffsetCommit => RequestKind::OffsetCommit(decode(body, version)?),
        ApiKey::OffsetFetch => RequestKind::OffsetFetch(decode(body, version)?),
        ApiKey::OffsetDelete => RequestKind::OffsetDelete(decode(body, version)?),
        ApiKey::DescribeGroups => RequestKind::DescribeGroups(decode(body, version)?),
        ApiKey::ListGroups => RequestKind::ListGroups(decode(body, version)?),
        ApiKey::DeleteGroups => RequestKind::DeleteGroups(decode(body, version)?),
        ApiKey::DescribeConfigs => RequestKind::DescribeConfigs(decode(body, version)?),
        ApiKey::AlterConfigs => RequestKind::AlterConfigs(decode(body, version)?),
        ApiKey::DescribeLogDirs => RequestKind::DescribeLogDirs(decode(body, version)?),
        ApiKey::CreatePartitions => RequestKind::CreatePartitions(decode(body, version)?),
        ApiKey::IncrementalAlterConfigs => {
            RequestKind::IncrementalAlterConfigs(decode(body, version)?)
        }
        ApiKey::DescribeCluster => RequestKind::DescribeCluster(decode(body, version)?),
        ApiKey::DescribeProducers => RequestKind::DescribeProducers(decode(body, version)?),
        ApiKey::ListConfigResources => RequestKind::ListConfigResources(decode(body, version)?),
        ApiKey::DescribeTopicPartitions => {
            RequestKind::DescribeTopicPartitions(decode(body, version)?)
        }
        ApiKey::ElectLeaders => RequestKind::ElectLeaders(decode(body, version)?),
        ApiKey::AlterPartitionReassignments => {
            RequestKind::AlterPartitionReassignments(decode(body, version)?)
        }
        ApiKey::ListPartitionReassignments => {
            RequestKind::ListPartitionReassignments(decode(body, version)?)
        }
        ApiKey::DescribeQuorum => RequestKind::DescribeQuorum(decode(body, version)?),
        ApiKey::UnregisterBroker => RequestKind::UnregisterBroker(decode(body, version)?),
        ApiKey::ApiVersions => {
            decode::<ApiVersionsRequest>(body, version)?;
            return Ok(None);
        }
        other => return Err(FrameError::UnknownApi { api_key: other as i16 }),
    };
    Ok(Some(kind))
}

/// The answer to ApiVersions. An unsupported version gets the table too, with error 35.
pub fn api_versions_response(supported: bool) -> ApiVersionsResponse {
    let api_keys = SUPPORTED
        .iter()
        .map(|row| {
            ApiVersion::default()
                .with_api_key(row.api_key as i16)
                .with_min_version(row.version_min_advertised)
                .with_max_version(row.version_max)
        })
        .collect();
    let error_code = if supported { 0 } else { UNSUPPORTED_VERSION };
    ApiVersionsResponse::default().with_error_code(error_code).with_api_keys(api_keys)
}
