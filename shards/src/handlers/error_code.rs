//! From what the core and the catalog refuse to Kafka's error codes: one exhaustive match each, so that a new reason
//! does not reach a client as something else.

use kafka_protocol::ResponseError;

use crate::catalog::{CatalogError, TopicRef};
use crate::core::producers::SequenceError;
use crate::core::{FetchError, ProduceError};

/// Why a produce or a command failed.
#[must_use]
pub fn produce_error(error: &ProduceError) -> ResponseError {
    match error {
        ProduceError::UnknownPartition => ResponseError::UnknownTopicOrPartition,
        ProduceError::NotLeader | ProduceError::ShuttingDown => ResponseError::NotLeaderOrFollower,
        ProduceError::StorageFull => ResponseError::KafkaStorageError,
        // Every client tries again on this one, and none takes it for a reason to look for another leader. What says
        // "overloaded", THROTTLING_QUOTA_EXCEEDED, librdkafka takes as final for a produce.
        ProduceError::Overloaded | ProduceError::NotEnoughReplicas { .. } => {
            ResponseError::NotEnoughReplicas
        }
        ProduceError::CommandTooLarge => ResponseError::UnknownServerError,
        ProduceError::ControlBatch | ProduceError::NoSequence { .. } => {
            ResponseError::InvalidRecord
        }
        ProduceError::TransactionalBatch => ResponseError::InvalidTxnState,
        ProduceError::Sequence(sequence) => match sequence {
            SequenceError::InvalidProducerEpoch { .. } => ResponseError::InvalidProducerEpoch,
            SequenceError::OutOfOrderSequence { .. } => ResponseError::OutOfOrderSequenceNumber,
            SequenceError::DuplicateSequence { .. } => ResponseError::DuplicateSequenceNumber,
        },
    }
}

/// Why a partition could not be read.
#[must_use]
pub fn fetch_error(error: &FetchError) -> ResponseError {
    match error {
        FetchError::UnknownPartition => ResponseError::UnknownTopicOrPartition,
        FetchError::NotLeader => ResponseError::NotLeaderOrFollower,
        FetchError::OffsetOutOfRange { .. } => ResponseError::OffsetOutOfRange,
        FetchError::FencedLeaderEpoch { .. } => ResponseError::FencedLeaderEpoch,
        FetchError::UnknownLeaderEpoch { .. } => ResponseError::UnknownLeaderEpoch,
        FetchError::Storage => ResponseError::KafkaStorageError,
    }
}

/// Why the catalog refused.
#[must_use]
pub fn catalog_error(error: &CatalogError) -> ResponseError {
    match error {
        CatalogError::InvalidTopicName { .. }
        | CatalogError::ReservedTopicName { .. }
        | CatalogError::TopicNameCollides { .. } => ResponseError::InvalidTopicException,
        CatalogError::TopicExists { .. } => ResponseError::TopicAlreadyExists,
        CatalogError::UnknownTopic { topic: TopicRef::Name(_) } => {
            ResponseError::UnknownTopicOrPartition
        }
        CatalogError::UnknownTopic { topic: TopicRef::Id(_) } => ResponseError::UnknownTopicId,
        CatalogError::InvalidPartitionCount { .. }
        | CatalogError::PartitionCountChanged { .. }
        | CatalogError::TooManyPartitions { .. } => ResponseError::InvalidPartitions,
        CatalogError::InvalidReplicationFactor { .. } => ResponseError::InvalidReplicationFactor,
        CatalogError::InvalidReplicaAssignment(_) => ResponseError::InvalidReplicaAssignment,
        CatalogError::NoReassignmentInProgress => ResponseError::NoReassignmentInProgress,
        CatalogError::UnknownBroker { .. } => ResponseError::BrokerIdNotRegistered,
        CatalogError::InvalidConfig { .. } => ResponseError::InvalidConfig,
        CatalogError::InvalidProducerIdCount { .. }
        | CatalogError::InvalidBroker { .. }
        | CatalogError::OtherReplicas { .. }
        | CatalogError::BrokerHasReplicas { .. }
        | CatalogError::LastBroker { .. }
        | CatalogError::BrokerNotDrained { .. }
        | CatalogError::LastOpenBroker { .. }
        | CatalogError::RetiredIncarnation { .. }
        | CatalogError::OtherIncarnation { .. }
        | CatalogError::OtherRole { .. }
        | CatalogError::ReadOnlyAlone { .. }
        | CatalogError::TooManyReadOnly { .. }
        | CatalogError::TopicIdInUse { .. } => ResponseError::InvalidRequest,
        CatalogError::ProducerIdsExhausted => ResponseError::UnknownServerError,
        CatalogError::OtherCluster { .. } => ResponseError::InconsistentClusterId,
    }
}
