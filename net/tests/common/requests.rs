//! Random requests of every served API, with only the fields that their version has.

use bytes::Bytes;
use chronik_net::SUPPORTED;
use chronik_net::client::encode_request;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::fetch_request::{
    FetchPartition, FetchTopic, ForgottenTopic, ReplicaState,
};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

macro_rules! tagged {
    ($fill:expr, $flexible_from:expr, $value:expr) => {{
        let value = $value;
        if $fill.version >= $flexible_from && $fill.rng.random_bool(0.2) {
            value
                .with_unknown_tagged_field(77, $fill.bytes(9))
                .with_unknown_tagged_field(200_000, $fill.bytes(300))
        } else {
            value
        }
    }};
}

mod admin;
mod groups;
mod replicas;

/// Every API key and version that is served.
pub fn served() -> impl Iterator<Item = (ApiKey, i16)> {
    SUPPORTED
        .iter()
        .flat_map(|row| (row.version_min..=row.version_max).map(|version| (row.api_key, version)))
}

/// A whole frame, length prefix included.
pub fn random_frame(api_key: ApiKey, version: i16, seed: u64) -> Bytes {
    let mut fill = Fill { rng: StdRng::seed_from_u64(seed), version };
    let f = &mut fill;
    let id = f.rng.random();
    let client = f.maybe(Fill::text);
    let client = client.as_ref();
    match api_key {
        ApiKey::Produce => encode_request(&f.produce(), version, id, client),
        ApiKey::Fetch => encode_request(&f.fetch(), version, id, client),
        ApiKey::ListOffsets => encode_request(&f.list_offsets(), version, id, client),
        ApiKey::Metadata => encode_request(&f.metadata(), version, id, client),
        ApiKey::ApiVersions => encode_request(&f.api_versions(), version, id, client),
        ApiKey::CreateTopics => encode_request(&f.create_topics(), version, id, client),
        ApiKey::DeleteTopics => encode_request(&f.delete_topics(), version, id, client),
        ApiKey::FindCoordinator => encode_request(&f.find_coordinator(), version, id, client),
        ApiKey::JoinGroup => encode_request(&f.join_group(), version, id, client),
        ApiKey::SyncGroup => encode_request(&f.sync_group(), version, id, client),
        ApiKey::Heartbeat => encode_request(&f.heartbeat(), version, id, client),
        ApiKey::LeaveGroup => encode_request(&f.leave_group(), version, id, client),
        ApiKey::OffsetCommit => encode_request(&f.offset_commit(), version, id, client),
        ApiKey::OffsetFetch => encode_request(&f.offset_fetch(), version, id, client),
        ApiKey::OffsetDelete => encode_request(&f.offset_delete(), version, id, client),
        ApiKey::DescribeGroups => encode_request(&f.describe_groups(), version, id, client),
        ApiKey::ListGroups => encode_request(&f.list_groups(), version, id, client),
        ApiKey::DeleteGroups => encode_request(&f.delete_groups(), version, id, client),
        ApiKey::DeleteRecords => encode_request(&f.delete_records(), version, id, client),
        ApiKey::InitProducerId => encode_request(&f.init_producer_id(), version, id, client),
        ApiKey::OffsetForLeaderEpoch => encode_request(&f.epochs(), version, id, client),
        ApiKey::DescribeConfigs => encode_request(&f.describe_configs(), version, id, client),
        ApiKey::AlterConfigs => encode_request(&f.alter_configs(), version, id, client),
        ApiKey::DescribeLogDirs => encode_request(&f.describe_log_dirs(), version, id, client),
        ApiKey::CreatePartitions => encode_request(&f.create_partitions(), version, id, client),
        ApiKey::IncrementalAlterConfigs => {
            encode_request(&f.incremental_alter_configs(), version, id, client)
        }
        ApiKey::DescribeCluster => encode_request(&f.describe_cluster(), version, id, client),
        ApiKey::DescribeProducers => encode_request(&f.describe_producers(), version, id, client),
        ApiKey::ListConfigResources => {
            encode_request(&f.list_config_resources(), version, id, client)
        }
        ApiKey::DescribeTopicPartitions => {
            encode_request(&f.describe_topic_partitions(), version, id, client)
        }
        ApiKey::ElectLeaders => encode_request(&f.elect_leaders(), version, id, client),
        ApiKey::AlterPartitionReassignments => {
            encode_request(&f.alter_reassignments(), version, id, client)
        }
        ApiKey::ListPartitionReassignments => {
            encode_request(&f.list_reassignments(), version, id, client)
        }
        ApiKey::DescribeQuorum => encode_request(&f.describe_quorum(), version, id, client),
        ApiKey::UnregisterBroker => encode_request(&f.unregister_broker(), version, id, client),
        other => panic!("no generator for {other:?}"),
    }
    .unwrap()
}

struct Fill {
    rng: StdRng,
    version: i16,
}

impl Fill {
    fn text(&mut self) -> StrBytes {
        let length = self.rng.random_range(0..40);
        StrBytes::from_string("topic-0123456789-abcdefghijklmnopqrstuvwxyz"[..length].to_owned())
    }

    fn bytes(&mut self, length_max: usize) -> Bytes {
        let length = self.rng.random_range(0..=length_max);
        (0..length).map(|_| self.rng.random::<u8>()).collect()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.rng.random_bool(0.7).then(|| make(self))
    }

    fn list<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        let count = if self.rng.random_bool(0.05) { 200 } else { self.rng.random_range(0..5) };
        (0..count).map(|_| make(self)).collect()
    }

    fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(self.rng.random())
    }

    fn produce(&mut self) -> ProduceRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                let records = f.maybe(|f| f.bytes(400));
                let partition = PartitionProduceData::default()
                    .with_index(f.rng.random())
                    .with_records(records);
                tagged!(f, 9, partition)
            });
            let topic = TopicProduceData::default().with_partition_data(partitions);
            let topic = if f.version >= 13 {
                topic.with_topic_id(f.uuid())
            } else {
                topic.with_name(f.text().into())
            };
            tagged!(f, 9, topic)
        });
        let request = ProduceRequest::default()
            .with_transactional_id(self.maybe(Self::text).map(Into::into))
            .with_acks(self.rng.random())
            .with_timeout_ms(self.rng.random())
            .with_topic_data(topics);
        tagged!(self, 9, request)
    }

    fn fetch(&mut self) -> FetchRequest {
        let version = self.version;
        let topics = self.list(|f| {
            let partitions = f.list(Self::fetch_partition);
            let topic = FetchTopic::default().with_partitions(partitions);
            let topic = if version >= 13 {
                topic.with_topic_id(f.uuid())
            } else {
                topic.with_topic(f.text().into())
            };
            tagged!(f, 12, topic)
        });
        let mut request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(self.rng.random())
            .with_min_bytes(self.rng.random())
            .with_max_bytes(self.rng.random())
            .with_isolation_level(self.rng.random())
            .with_topics(topics);
        if version >= 7 {
            let forgotten = self.list(|f| {
                let topic = ForgottenTopic::default().with_partitions(f.list(|f| f.rng.random()));
                if version >= 13 {
                    topic.with_topic_id(f.uuid())
                } else {
                    topic.with_topic(f.text().into())
                }
            });
            request = request
                .with_session_id(self.rng.random())
                .with_session_epoch(self.rng.random())
                .with_forgotten_topics_data(forgotten);
        }
        if version >= 11 {
            request = request.with_rack_id(self.text());
        }
        if version >= 12 {
            request = request.with_cluster_id(self.maybe(Self::text));
        }
        if version >= 15 {
            let state = ReplicaState::default()
                .with_replica_id(BrokerId(self.rng.random()))
                .with_replica_epoch(self.rng.random());
            request = request.with_replica_state(tagged!(self, 15, state));
        }
        tagged!(self, 12, request)
    }

    fn fetch_partition(&mut self) -> FetchPartition {
        let mut partition = FetchPartition::default()
            .with_partition(self.rng.random())
            .with_fetch_offset(self.rng.random())
            .with_partition_max_bytes(self.rng.random());
        if self.version >= 9 {
            partition = partition.with_current_leader_epoch(self.rng.random());
        }
        if self.version >= 12 {
            partition = partition.with_last_fetched_epoch(self.rng.random());
        }
        if self.version >= 5 {
            partition = partition.with_log_start_offset(self.rng.random());
        }
        if self.version >= 17 && self.rng.random_bool(0.5) {
            partition = partition.with_replica_directory_id(self.uuid());
        }
        if self.version >= 18 && self.rng.random_bool(0.5) {
            partition = partition.with_high_watermark(self.rng.random());
        }
        tagged!(self, 12, partition)
    }

    fn list_offsets(&mut self) -> ListOffsetsRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                let mut partition = ListOffsetsPartition::default()
                    .with_partition_index(f.rng.random())
                    .with_timestamp(f.rng.random());
                if f.version >= 4 {
                    partition = partition.with_current_leader_epoch(f.rng.random());
                }
                tagged!(f, 6, partition)
            });
            let topic =
                ListOffsetsTopic::default().with_name(f.text().into()).with_partitions(partitions);
            tagged!(f, 6, topic)
        });
        let mut request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(self.rng.random()))
            .with_topics(topics);
        if self.version >= 2 {
            request = request.with_isolation_level(self.rng.random());
        }
        if self.version >= 10 {
            request = request.with_timeout_ms(self.rng.random());
        }
        tagged!(self, 6, request)
    }

    fn delete_records(&mut self) -> DeleteRecordsRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                let partition = DeleteRecordsPartition::default()
                    .with_partition_index(f.rng.random())
                    .with_offset(f.rng.random());
                tagged!(f, 2, partition)
            });
            let topic = DeleteRecordsTopic::default()
                .with_name(f.text().into())
                .with_partitions(partitions);
            tagged!(f, 2, topic)
        });
        let request =
            DeleteRecordsRequest::default().with_topics(topics).with_timeout_ms(self.rng.random());
        tagged!(self, 2, request)
    }

    fn metadata(&mut self) -> MetadataRequest {
        let version = self.version;
        let topics = self.list(|f| {
            let name =
                if version >= 10 { f.maybe(|f| f.text().into()) } else { Some(f.text().into()) };
            let mut topic = MetadataRequestTopic::default().with_name(name);
            if version >= 10 {
                topic = topic.with_topic_id(f.uuid());
            }
            tagged!(f, 9, topic)
        });
        let topics = if version >= 1 && self.rng.random_bool(0.2) { None } else { Some(topics) };
        let mut request = MetadataRequest::default().with_topics(topics);
        if version >= 4 {
            request = request.with_allow_auto_topic_creation(self.rng.random());
        }
        if (8..=10).contains(&version) {
            request = request.with_include_cluster_authorized_operations(self.rng.random());
        }
        if version >= 8 {
            request = request.with_include_topic_authorized_operations(self.rng.random());
        }
        tagged!(self, 9, request)
    }

    fn api_versions(&mut self) -> ApiVersionsRequest {
        let mut request = ApiVersionsRequest::default();
        if self.version >= 3 {
            request = request
                .with_client_software_name(self.text())
                .with_client_software_version(self.text());
        }
        tagged!(self, 3, request)
    }

    fn create_topics(&mut self) -> CreateTopicsRequest {
        let topics = self.list(|f| {
            let assignments = f.list(|f| {
                let assignment = CreatableReplicaAssignment::default()
                    .with_partition_index(f.rng.random())
                    .with_broker_ids(f.list(|f| BrokerId(f.rng.random())));
                tagged!(f, 5, assignment)
            });
            let configs = f.list(|f| {
                let config = CreatableTopicConfig::default()
                    .with_name(f.text())
                    .with_value(f.maybe(Self::text));
                tagged!(f, 5, config)
            });
            let topic = CreatableTopic::default()
                .with_name(f.text().into())
                .with_num_partitions(f.rng.random())
                .with_replication_factor(f.rng.random())
                .with_assignments(assignments)
                .with_configs(configs);
            tagged!(f, 5, topic)
        });
        let request = CreateTopicsRequest::default()
            .with_topics(topics)
            .with_timeout_ms(self.rng.random())
            .with_validate_only(self.rng.random());
        tagged!(self, 5, request)
    }

    fn delete_topics(&mut self) -> DeleteTopicsRequest {
        let request = DeleteTopicsRequest::default().with_timeout_ms(self.rng.random());
        let request = if self.version >= 6 {
            request.with_topics(self.list(|f| {
                let name = f.maybe(|f| f.text().into());
                let topic = DeleteTopicState::default().with_name(name).with_topic_id(f.uuid());
                tagged!(f, 6, topic)
            }))
        } else {
            request.with_topic_names(self.list(|f| f.text().into()))
        };
        tagged!(self, 4, request)
    }

    fn init_producer_id(&mut self) -> InitProducerIdRequest {
        let mut request = InitProducerIdRequest::default()
            .with_transactional_id(self.maybe(Self::text).map(Into::into))
            .with_transaction_timeout_ms(self.rng.random());
        if self.version >= 3 {
            request = request
                .with_producer_id(ProducerId(self.rng.random()))
                .with_producer_epoch(self.rng.random());
        }
        tagged!(self, 2, request)
    }

    fn epochs(&mut self) -> OffsetForLeaderEpochRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                let partition = OffsetForLeaderPartition::default()
                    .with_partition(f.rng.random())
                    .with_current_leader_epoch(f.rng.random())
                    .with_leader_epoch(f.rng.random());
                tagged!(f, 4, partition)
            });
            let topic = OffsetForLeaderTopic::default()
                .with_topic(f.text().into())
                .with_partitions(partitions);
            tagged!(f, 4, topic)
        });
        let mut request = OffsetForLeaderEpochRequest::default().with_topics(topics);
        if self.version >= 3 {
            request = request.with_replica_id(BrokerId(self.rng.random()));
        }
        tagged!(self, 4, request)
    }
}
