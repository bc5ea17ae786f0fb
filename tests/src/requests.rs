//! A valid request of every API and version that the broker says it serves, and the reading of its answer.
//!
//! The list of APIs stands in one macro. A broker that advertises an API which is missing here makes [`valid_requests`]
//! fail: what is served must be tested.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterPartitionReassignmentsRequest, ApiVersionsRequest, BrokerId,
    CreatePartitionsRequest, CreateTopicsRequest, DeleteGroupsRequest, DeleteRecordsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest, DescribeGroupsRequest,
    DescribeLogDirsRequest, DescribeProducersRequest, DescribeQuorumRequest,
    DescribeTopicPartitionsRequest, ElectLeadersRequest, FetchRequest, FindCoordinatorRequest,
    HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest,
    LeaveGroupRequest, ListConfigResourcesRequest, ListGroupsRequest, ListOffsetsRequest,
    ListPartitionReassignmentsRequest, MetadataRequest, OffsetCommitRequest, OffsetDeleteRequest,
    OffsetFetchRequest, OffsetForLeaderEpochRequest, ProduceRequest, ProducerId, SyncGroupRequest,
    UnregisterBrokerRequest,
};
use kafka_protocol::protocol::{Message, Request, StrBytes};
use uuid::Uuid;

use crate::batch::BatchBuilder;
use crate::raw::{api_name, decode_answer, encode_frame, topic_name};

mod admin;
mod groups;
mod replicas;

/// What the requests speak of.
#[derive(Debug, Clone)]
pub struct World {
    /// A topic that is there.
    pub topic: String,
    /// Its id.
    pub topic_id: Uuid,
    /// The name that CreateTopics and DeleteTopics use; never `topic`.
    pub other_topic: String,
}

/// A request as it goes over the wire.
#[derive(Debug, Clone)]
pub struct ValidRequest {
    /// The API key.
    pub key: i16,
    /// The version.
    pub version: i16,
    /// All its bytes, the length in front included.
    pub frame: Vec<u8>,
}

/// Builds a request of one API for one version.
trait Sample: Request {
    fn sample(world: &World, version: i16) -> Self;
}

macro_rules! served {
    ($($request:ident),+ $(,)?) => {
        fn encode(key: i16, version: i16, correlation: i32, world: &World) -> Result<Option<Vec<u8>>> {
            $(if key == <$request as Request>::KEY {
                let versions = <$request as Message>::VERSIONS;
                if !(versions.min..=versions.max).contains(&version) {
                    return Ok(None);
                }
                return encode_frame(version, correlation, &$request::sample(world, version)).map(Some);
            })+
            bail!("the broker serves {} and there is no request of it here: add one", api_name(key))
        }

        /// Decodes an answer to `key` in `version`, all of it; the correlation id.
        pub fn check_answer(key: i16, version: i16, frame: Bytes) -> Result<i32> {
            $(if key == <$request as Request>::KEY {
                return decode_answer::<$request>(version, frame).map(|(correlation, _)| correlation);
            })+
            bail!("no answer of {} can be read here", api_name(key))
        }
    };
}

served!(
    ProduceRequest,
    FetchRequest,
    ListOffsetsRequest,
    MetadataRequest,
    CreateTopicsRequest,
    DeleteTopicsRequest,
    DeleteRecordsRequest,
    InitProducerIdRequest,
    OffsetForLeaderEpochRequest,
    ApiVersionsRequest,
    AlterConfigsRequest,
    CreatePartitionsRequest,
    DescribeClusterRequest,
    DescribeConfigsRequest,
    DescribeLogDirsRequest,
    DescribeProducersRequest,
    DescribeTopicPartitionsRequest,
    IncrementalAlterConfigsRequest,
    ListConfigResourcesRequest,
    ElectLeadersRequest,
    AlterPartitionReassignmentsRequest,
    ListPartitionReassignmentsRequest,
    DescribeQuorumRequest,
    UnregisterBrokerRequest,
    FindCoordinatorRequest,
    JoinGroupRequest,
    SyncGroupRequest,
    HeartbeatRequest,
    LeaveGroupRequest,
    OffsetCommitRequest,
    OffsetFetchRequest,
    OffsetDeleteRequest,
    DescribeGroupsRequest,
    ListGroupsRequest,
    DeleteGroupsRequest,
);

/// A request of each API in each version of `advertised` (key, lowest, highest) that Kafka 4.1 still defines.
pub fn valid_requests(
    advertised: &[(i16, i16, i16)],
    correlation: i32,
    world: &World,
) -> Result<Vec<ValidRequest>> {
    let mut requests = Vec::new();
    for &(key, min, max) in advertised {
        for version in min..=max {
            let frame = encode(key, version, correlation, world)
                .with_context(|| format!("{} v{version}", api_name(key)))?;
            if let Some(frame) = frame {
                requests.push(ValidRequest { key, version, frame });
            }
        }
    }
    Ok(requests)
}

impl Sample for ProduceRequest {
    fn sample(world: &World, version: i16) -> ProduceRequest {
        let batch = BatchBuilder::new()
            .record(Some("key".into()), Some("a value to be damaged".into()))
            .record(None, Some("another".into()))
            .build();
        let partition = PartitionProduceData::default().with_index(0).with_records(Some(batch));
        let mut topic = TopicProduceData::default().with_partition_data(vec![partition]);
        if version >= 13 {
            topic = topic.with_topic_id(world.topic_id);
        } else {
            topic = topic.with_name(topic_name(&world.topic));
        }
        ProduceRequest::default()
            .with_transactional_id(None)
            .with_acks(-1)
            .with_timeout_ms(1_000)
            .with_topic_data(vec![topic])
    }
}

impl Sample for FetchRequest {
    fn sample(world: &World, version: i16) -> FetchRequest {
        let partition = FetchPartition::default()
            .with_partition(0)
            .with_current_leader_epoch(-1)
            .with_last_fetched_epoch(-1)
            .with_fetch_offset(0)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(4_096);
        let mut topic = FetchTopic::default().with_partitions(vec![partition]);
        if version >= 13 {
            topic = topic.with_topic_id(world.topic_id);
        } else {
            topic = topic.with_topic(topic_name(&world.topic));
        }
        FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(0)
            .with_min_bytes(0)
            .with_max_bytes(65_536)
            .with_session_epoch(-1)
            .with_topics(vec![topic])
    }
}

impl Sample for ListOffsetsRequest {
    fn sample(world: &World, _version: i16) -> ListOffsetsRequest {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(0)
            .with_current_leader_epoch(-1)
            .with_timestamp(-1);
        let topic = ListOffsetsTopic::default()
            .with_name(topic_name(&world.topic))
            .with_partitions(vec![partition]);
        ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic])
    }
}

impl Sample for MetadataRequest {
    fn sample(world: &World, version: i16) -> MetadataRequest {
        let topic = MetadataRequestTopic::default().with_name(Some(topic_name(&world.topic)));
        MetadataRequest::default()
            .with_topics(Some(vec![topic]))
            .with_allow_auto_topic_creation(version < 4)
    }
}

impl Sample for CreateTopicsRequest {
    fn sample(world: &World, _version: i16) -> CreateTopicsRequest {
        let config = CreatableTopicConfig::default()
            .with_name(StrBytes::from_static_str("retention.ms"))
            .with_value(Some(StrBytes::from_static_str("3600000")));
        let topic = CreatableTopic::default()
            .with_name(topic_name(&world.other_topic))
            .with_num_partitions(1)
            .with_replication_factor(1)
            .with_configs(vec![config]);
        CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(1_000)
    }
}

impl Sample for DeleteTopicsRequest {
    fn sample(world: &World, version: i16) -> DeleteTopicsRequest {
        let name = topic_name(&world.other_topic);
        let request = DeleteTopicsRequest::default().with_timeout_ms(1_000);
        if version >= 6 {
            request.with_topics(vec![DeleteTopicState::default().with_name(Some(name))])
        } else {
            request.with_topic_names(vec![name])
        }
    }
}

impl Sample for DeleteRecordsRequest {
    fn sample(world: &World, _version: i16) -> DeleteRecordsRequest {
        let partition = DeleteRecordsPartition::default().with_partition_index(0).with_offset(0);
        let topic = DeleteRecordsTopic::default()
            .with_name(topic_name(&world.topic))
            .with_partitions(vec![partition]);
        DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(1_000)
    }
}

impl Sample for InitProducerIdRequest {
    fn sample(_world: &World, _version: i16) -> InitProducerIdRequest {
        InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    }
}

impl Sample for OffsetForLeaderEpochRequest {
    fn sample(world: &World, _version: i16) -> OffsetForLeaderEpochRequest {
        let partition = OffsetForLeaderPartition::default()
            .with_partition(0)
            .with_current_leader_epoch(-1)
            .with_leader_epoch(0);
        let topic = OffsetForLeaderTopic::default()
            .with_topic(topic_name(&world.topic))
            .with_partitions(vec![partition]);
        OffsetForLeaderEpochRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(vec![topic])
    }
}

impl Sample for ApiVersionsRequest {
    fn sample(_world: &World, version: i16) -> ApiVersionsRequest {
        if version < 3 {
            return ApiVersionsRequest::default();
        }
        ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("chronik-tests"))
            .with_client_software_version(StrBytes::from_static_str("1"))
    }
}
