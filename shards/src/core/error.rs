//! What the core refuses, one enum for each thing that can be asked of it.

use chronik_engine::framed::FramedError;
use chronik_engine::ids::{GroupId, Offset};
use chronik_replication::RecoverError;
use thiserror::Error;

use super::log_start::PartitionCommandError;
use super::producers::{ProducerStateError, SequenceError};
use crate::catalog::CatalogCodecError;

/// Why a shard cannot go on from what its log says.
#[derive(Debug, Error)]
pub enum CoreError {
    /// A group's Raft state is not coherent.
    #[error("group {group}: its log cannot be continued")]
    Group {
        /// The group.
        group: GroupId,
        /// What is wrong.
        #[source]
        source: RecoverError,
    },
    /// A partition's checkpoint does not hold what it should.
    #[error("group {group}: the producer state of its checkpoint cannot be read")]
    Producers {
        /// The group.
        group: GroupId,
        /// What is wrong.
        #[source]
        source: ProducerStateError,
    },
    /// One of a partition's commands cannot be read.
    #[error("group {group}: a command in its log cannot be read")]
    PartitionCommand {
        /// The group.
        group: GroupId,
        /// What is wrong.
        #[source]
        source: PartitionCommandError,
    },
    /// The catalog's checkpoint or one of its commands cannot be read.
    #[error("group {group}: the catalog cannot be read")]
    Catalog {
        /// The group.
        group: GroupId,
        /// What is wrong.
        #[source]
        source: CatalogCodecError,
    },
    /// The checkpoint of consumer groups or one of their commands cannot be read.
    #[error("group {group}: the state of consumer groups cannot be read")]
    Groups {
        /// The group.
        group: GroupId,
        /// What is wrong.
        #[source]
        source: FramedError,
    },
    /// A group was recovered twice.
    #[error("group {group} was recovered twice")]
    DuplicateGroup {
        /// The group.
        group: GroupId,
    },
}

/// Why a batch or a command was not appended, or why it is not known whether it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProduceError {
    /// UNKNOWN_TOPIC_OR_PARTITION: no such group here, or it was deleted before the entry was committed.
    #[error("the partition is not on this shard")]
    UnknownPartition,
    /// NOT_LEADER_OR_FOLLOWER: before the proposal, or after it; then the entry may be committed or not.
    #[error("this replica does not lead the partition")]
    NotLeader,
    /// NOT_LEADER_OR_FOLLOWER: the shard stops; what was proposed may be committed or not.
    #[error("the shard is shutting down")]
    ShuttingDown,
    /// KAFKA_STORAGE_ERROR
    #[error("there is no room for another file of the write-ahead log")]
    StorageFull,
    /// Retriable: too much is proposed and not committed.
    #[error("too many bytes are in flight")]
    Overloaded,
    /// NOT_ENOUGH_REPLICAS
    #[error("{in_sync} replicas are in sync, min.insync.replicas asks for {wanted}")]
    NotEnoughReplicas {
        /// How many are.
        in_sync: u32,
        /// How many there must be.
        wanted: u32,
    },
    /// The state of a consumer group is larger than an entry may be.
    #[error("the state of the consumer group is too large")]
    CommandTooLarge,
    /// INVALID_RECORD: clients do not write control batches.
    #[error("a control batch")]
    ControlBatch,
    /// INVALID_RECORD: there are no transactions here.
    #[error("a transactional batch")]
    TransactionalBatch,
    /// INVALID_RECORD: a producer id without a sequence.
    #[error("producer {producer_id} gives no sequence")]
    NoSequence {
        /// The producer.
        producer_id: i64,
    },
    /// INVALID_PRODUCER_EPOCH, OUT_OF_ORDER_SEQUENCE_NUMBER or DUPLICATE_SEQUENCE_NUMBER
    #[error(transparent)]
    Sequence(#[from] SequenceError),
}

/// Why a partition is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FetchError {
    /// UNKNOWN_TOPIC_OR_PARTITION
    #[error("the partition is not on this shard")]
    UnknownPartition,
    /// NOT_LEADER_OR_FOLLOWER
    #[error("this replica does not lead the partition")]
    NotLeader,
    /// OFFSET_OUT_OF_RANGE
    #[error("offset {offset} is not between {log_start_offset} and {end_offset}")]
    OffsetOutOfRange {
        /// What was asked for.
        offset: Offset,
        /// The first offset there is.
        log_start_offset: Offset,
        /// The end of the log.
        end_offset: Offset,
    },
    /// FENCED_LEADER_EPOCH
    #[error("the client knows leader epoch {epoch}, it is {current} now")]
    FencedLeaderEpoch {
        /// What the client knows.
        epoch: i32,
        /// What it is.
        current: i32,
    },
    /// UNKNOWN_LEADER_EPOCH
    #[error("the client knows leader epoch {epoch}, here it is {current} still")]
    UnknownLeaderEpoch {
        /// What the client knows.
        epoch: i32,
        /// What it is.
        current: i32,
    },
    /// KAFKA_STORAGE_ERROR: the shell could not read what the core told it to.
    #[error("the log cannot be read")]
    Storage,
}
