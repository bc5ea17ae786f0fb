//! Responses as the handler gives them, and their encoding into the output of a connection.
//!
//! Owns [`ResponseBody`] and [`encode_response`]. Fetch has its own zero-copy encoder in
//! [`crate::fetch_response`]; all else is kafka-protocol's.
//!
//! I1 The response header's version follows API *and* version; ApiVersions answers with header 0
//!    always, because the client that asks may not know any other.
//! I2 A response that fails to encode leaves no byte in the output.

use kafka_protocol::messages::{
    AlterConfigsResponse, AlterPartitionReassignmentsResponse, ApiKey, ApiVersionsResponse,
    CreatePartitionsResponse, CreateTopicsResponse, DeleteGroupsResponse, DeleteRecordsResponse,
    DeleteTopicsResponse, DescribeClusterResponse, DescribeConfigsResponse, DescribeGroupsResponse,
    DescribeLogDirsResponse, DescribeProducersResponse, DescribeQuorumResponse,
    DescribeTopicPartitionsResponse, ElectLeadersResponse, FindCoordinatorResponse,
    HeartbeatResponse, IncrementalAlterConfigsResponse, InitProducerIdResponse, JoinGroupResponse,
    LeaveGroupResponse, ListConfigResourcesResponse, ListGroupsResponse, ListOffsetsResponse,
    ListPartitionReassignmentsResponse, MetadataResponse, OffsetCommitResponse,
    OffsetDeleteResponse, OffsetFetchResponse, OffsetForLeaderEpochResponse, ProduceResponse,
    SyncGroupResponse, UnregisterBrokerResponse,
};
use kafka_protocol::protocol::Encodable;

use crate::error::CloseReason;
use crate::fetch_response::{FetchResponseParts, encode_fetch};
use crate::output::Output;

/// A response body of one of the served APIs.
#[derive(Debug)]
pub enum ResponseBody {
    Produce(ProduceResponse),
    Fetch(FetchResponseParts),
    ListOffsets(ListOffsetsResponse),
    Metadata(MetadataResponse),
    ApiVersions(ApiVersionsResponse),
    CreateTopics(CreateTopicsResponse),
    DeleteTopics(DeleteTopicsResponse),
    DeleteRecords(DeleteRecordsResponse),
    InitProducerId(InitProducerIdResponse),
    OffsetForLeaderEpoch(OffsetForLeaderEpochResponse),
    FindCoordinator(FindCoordinatorResponse),
    JoinGroup(JoinGroupResponse),
    SyncGroup(SyncGroupResponse),
    Heartbeat(HeartbeatResponse),
    LeaveGroup(LeaveGroupResponse),
    OffsetCommit(OffsetCommitResponse),
    OffsetFetch(OffsetFetchResponse),
    OffsetDelete(OffsetDeleteResponse),
    DescribeGroups(DescribeGroupsResponse),
    ListGroups(ListGroupsResponse),
    DeleteGroups(DeleteGroupsResponse),
    DescribeConfigs(DescribeConfigsResponse),
    AlterConfigs(AlterConfigsResponse),
    DescribeLogDirs(DescribeLogDirsResponse),
    CreatePartitions(CreatePartitionsResponse),
    IncrementalAlterConfigs(IncrementalAlterConfigsResponse),
    DescribeCluster(DescribeClusterResponse),
    DescribeProducers(DescribeProducersResponse),
    ListConfigResources(ListConfigResourcesResponse),
    DescribeTopicPartitions(DescribeTopicPartitionsResponse),
    ElectLeaders(ElectLeadersResponse),
    AlterPartitionReassignments(AlterPartitionReassignmentsResponse),
    ListPartitionReassignments(ListPartitionReassignmentsResponse),
    DescribeQuorum(DescribeQuorumResponse),
    UnregisterBroker(UnregisterBrokerResponse),
}

macro_rules! response_from {
    ($($variant:ident($body:ty)),* $(,)?) => {
        $(impl From<$body> for ResponseBody {
            fn from(body: $body) -> Self {
                Self::$variant(body)
            }
        })*
    };
}

response_from!(
    Produce(ProduceResponse),
    Fetch(FetchResponseParts),
    ListOffsets(ListOffsetsResponse),
    Metadata(MetadataResponse),
    ApiVersions(ApiVersionsResponse),
    CreateTopics(CreateTopicsResponse),
    DeleteTopics(DeleteTopicsResponse),
    DeleteRecords(DeleteRecordsResponse),
    InitProducerId(InitProducerIdResponse),
    OffsetForLeaderEpoch(OffsetForLeaderEpochResponse),
    FindCoordinator(FindCoordinatorResponse),
    JoinGroup(JoinGroupResponse),
    SyncGroup(SyncGroupResponse),
    Heartbeat(HeartbeatResponse),
    LeaveGroup(LeaveGroupResponse),
    OffsetCommit(OffsetCommitResponse),
    OffsetFetch(OffsetFetchResponse),
    OffsetDelete(OffsetDeleteResponse),
    DescribeGroups(DescribeGroupsResponse),
    ListGroups(ListGroupsResponse),
    DeleteGroups(DeleteGroupsResponse),
    DescribeConfigs(DescribeConfigsResponse),
    AlterConfigs(AlterConfigsResponse),
    DescribeLogDirs(DescribeLogDirsResponse),
    CreatePartitions(CreatePartitionsResponse),
    IncrementalAlterConfigs(IncrementalAlterConfigsResponse),
    DescribeCluster(DescribeClusterResponse),
    DescribeProducers(DescribeProducersResponse),
    ListConfigResources(ListConfigResourcesResponse),
    DescribeTopicPartitions(DescribeTopicPartitionsResponse),
    ElectLeaders(ElectLeadersResponse),
    AlterPartitionReassignments(AlterPartitionReassignmentsResponse),
    ListPartitionReassignments(ListPartitionReassignmentsResponse),
    DescribeQuorum(DescribeQuorumResponse),
    UnregisterBroker(UnregisterBrokerResponse),
);

impl ResponseBody {
    pub fn api_key(&self) -> ApiKey {
        match self {
            Self::Produce(_) => ApiKey::Produce,
            Self::Fetch(_) => ApiKey::Fetch,
            Self::ListOffsets(_) => ApiKey::ListOffsets,
            Self::Metadata(_) => ApiKey::Metadata,
            Self::ApiVersions(_) => ApiKey::ApiVersions,
            Self::CreateTopics(_) => ApiKey::CreateTopics,
            Self::DeleteTopics(_) => ApiKey::DeleteTopics,
            Self::DeleteRecords(_) => ApiKey::DeleteRecords,
            Self::InitProducerId(_) => ApiKey::InitProducerId,
            Self::OffsetForLeaderEpoch(_) => ApiKey::OffsetForLeaderEpoch,
            Self::FindCoordinator(_) => ApiKey::FindCoordinator,
            Self::JoinGroup(_) => ApiKey::JoinGroup,
            Self::SyncGroup(_) => ApiKey::SyncGroup,
            Self::Heartbeat(_) => ApiKey::Heartbeat,
            Self::LeaveGroup(_) => ApiKey::LeaveGroup,
            Self::OffsetCommit(_) => ApiKey::OffsetCommit,
            Self::OffsetFetch(_) => ApiKey::OffsetFetch,
            Self::OffsetDelete(_) => ApiKey::OffsetDelete,
            Self::DescribeGroups(_) => ApiKey::DescribeGroups,
            Self::ListGroups(_) => ApiKey::ListGroups,
            Self::DeleteGroups(_) => ApiKey::DeleteGroups,
            Self::DescribeConfigs(_) => ApiKey::DescribeConfigs,
            Self::AlterConfigs(_) => ApiKey::AlterConfigs,
            Self::DescribeLogDirs(_) => ApiKey::DescribeLogDirs,
            Self::CreatePartitions(_) => ApiKey::CreatePartitions,
            Self::IncrementalAlterConfigs(_) => ApiKey::IncrementalAlterConfigs,
            Self::DescribeCluster(_) => ApiKey::DescribeCluster,
            Self::DescribeProducers(_) => ApiKey::DescribeProducers,
            Self::ListConfigResources(_) => ApiKey::ListConfigResources,
            Self::DescribeTopicPartitions(_) => ApiKey::DescribeTopicPartitions,
            Self::ElectLeaders(_) => ApiKey::ElectLeaders,
            Self::AlterPartitionReassignments(_) => ApiKey::AlterPartitionReassignments,
            Self::ListPartitionReassignments(_) => ApiKey::ListPartitionReassignments,
            Self::DescribeQuorum(_) => ApiKey::DescribeQuorum,
            Self::UnregisterBroker(_) => ApiKey::UnregisterBroker,
        }
    }
}

/// Appends the whole response frame, length prefix included, to `output`.
pub fn encode_response(
    output: &mut Output,
    correlation_id: i32,
    version: i16,
    body: ResponseBody,
) -> Result<(), CloseReason> {
    let api_key = body.api_key();
    let mark = output.mark();
    let frame = output.begin_frame();
    output.inline().extend_from_slice(&correlation_id.to_be_bytes());
    if api_key.response_header_version(version) >= 1 {
        output.inline().push(0); // no tagged fields
    }
    let encoded = match body {
        ResponseBody::Fetch(parts) => {
            encode_fetch(output, version, parts);
            Ok(())
        }
        ResponseBody::Produce(body) => body.encode(output.inline(), version),
        ResponseBody::ListOffsets(body) => body.encode(output.inline(), version),
        ResponseBody::Metadata(body) => body.encode(output.inline(), version),
        ResponseBody::ApiVersions(body) => body.encode(output.inline(), version),
        ResponseBody::CreateTopics(body) => body.encode(output.inline(), version),
        ResponseBody::DeleteTopics(body) => body.encode(output.inline(), version),
        ResponseBody::DeleteRecords(body) => body.encode(output.inline(), version),
        ResponseBody::InitProducerId(body) => body.encode(output.inline(), version),
        ResponseBody::OffsetForLeaderEpoch(body) => body.encode(output.inline(), version),
        ResponseBody::FindCoordinator(body) => body.encode(output.inline(), version),
        ResponseBody::JoinGroup(body) => body.encode(output.inline(), version),
        ResponseBody::SyncGroup(body) => body.encode(output.inline(), version),
        ResponseBody::Heartbeat(body) => body.encode(output.inline(), version),
        ResponseBody::LeaveGroup(body) => body.encode(output.inline(), version),
        ResponseBody::OffsetCommit(body) => body.encode(output.inline(), version),
        ResponseBody::OffsetFetch(body) => body.encode(output.inline(), version),
        ResponseBody::OffsetDelete(body) => body.encode(output.inline(), version),
        ResponseBody::DescribeGroups(body) => body.encode(output.inline(), version),
        ResponseBody::ListGroups(body) => body.encode(output.inline(), version),
        ResponseBody::DeleteGroups(body) => body.encode(output.inline(), version),
        ResponseBody::DescribeConfigs(body) => body.encode(output.inline(), version),
        ResponseBody::AlterConfigs(body) => body.encode(output.inline(), version),
        ResponseBody::DescribeLogDirs(body) => body.encode(output.inline(), version),
        ResponseBody::CreatePartitions(body) => body.encode(output.inline(), version),
        ResponseBody::IncrementalAlterConfigs(body) => body.encode(output.inline(), version),
        ResponseBody::DescribeCluster(body) => body.encode(output.inline(), version),
        ResponseBody::DescribeProducers(body) => body.encode(output.inline(), version),
        ResponseBody::ListConfigResources(body) => body.encode(output.inline(), version),
        ResponseBody::DescribeTopicPartitions(body) => body.encode(output.inline(), version),
        ResponseBody::ElectLeaders(body) => body.encode(output.inline(), version),
        ResponseBody::AlterPartitionReassignments(body) => body.encode(output.inline(), version),
        ResponseBody::ListPartitionReassignments(body) => body.encode(output.inline(), version),
        ResponseBody::DescribeQuorum(body) => body.encode(output.inline(), version),
        ResponseBody::UnregisterBroker(body) => body.encode(output.inline(), version),
    };
    let sized = encoded.map_err(|error| {
        tracing::error!(?api_key, version, %error, "a response does not encode");
    });
    if sized.is_err() || output.end_frame(frame).is_err() {
        output.rewind(mark);
        return Err(CloseReason::Unencodable { api_key: api_key as i16, version });
    }
    Ok(())
}
