//! Why a request about a group is refused, under Kafka's names.

use kafka_protocol::ResponseError;
use thiserror::Error;

/// A refusal. Each has exactly one error code of Kafka's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GroupError {
    /// INVALID_GROUP_ID
    #[error("a group needs a name")]
    InvalidGroupId,
    /// UNKNOWN_MEMBER_ID
    #[error("the group has no such member")]
    UnknownMember,
    /// MEMBER_ID_REQUIRED: the client comes back with the id that it is given (KIP-394).
    #[error("the member is to join again with the id it was given")]
    MemberIdRequired,
    /// FENCED_INSTANCE_ID: another member has taken the instance id over.
    #[error("another member uses the instance id")]
    FencedInstance,
    /// ILLEGAL_GENERATION
    #[error("the group is in another generation")]
    IllegalGeneration,
    /// INCONSISTENT_GROUP_PROTOCOL
    #[error("the protocols do not fit those of the group")]
    InconsistentProtocol,
    /// REBALANCE_IN_PROGRESS
    #[error("the group rebalances")]
    RebalanceInProgress,
    /// INVALID_SESSION_TIMEOUT
    #[error("the session timeout is outside the bounds")]
    InvalidSessionTimeout,
    /// GROUP_MAX_SIZE_REACHED
    #[error("the group is full")]
    GroupFull,
    /// NOT_COORDINATOR
    #[error("this node does not coordinate the group")]
    NotCoordinator,
    /// COORDINATOR_NOT_AVAILABLE
    #[error("the coordinator cannot do it now")]
    NotAvailable,
    /// COORDINATOR_LOAD_IN_PROGRESS
    #[error("the coordinator is about to begin")]
    Loading,
    /// GROUP_ID_NOT_FOUND
    #[error("there is no such group")]
    GroupNotFound,
    /// NON_EMPTY_GROUP
    #[error("the group has members")]
    NonEmptyGroup,
    /// GROUP_SUBSCRIBED_TO_TOPIC
    #[error("the group is subscribed to the topic")]
    SubscribedToTopic,
    /// OFFSET_METADATA_TOO_LARGE
    #[error("the metadata of the offset is too long")]
    MetadataTooLarge,
    /// INVALID_COMMIT_OFFSET_SIZE
    #[error("the commit is too large")]
    CommitTooLarge,
    /// UNKNOWN_TOPIC_OR_PARTITION
    #[error("there is no such partition")]
    UnknownPartition,
    /// UNKNOWN_SERVER_ERROR: the state of the group is too large to be written down.
    #[error("the state of the group is too large")]
    StateTooLarge,
}

impl GroupError {
    /// Kafka's name for it.
    #[must_use]
    pub fn response_error(self) -> ResponseError {
        match self {
            GroupError::InvalidGroupId => ResponseError::InvalidGroupId,
            GroupError::UnknownMember => ResponseError::UnknownMemberId,
            GroupError::MemberIdRequired => ResponseError::MemberIdRequired,
            GroupError::FencedInstance => ResponseError::FencedInstanceId,
            GroupError::IllegalGeneration => ResponseError::IllegalGeneration,
            GroupError::InconsistentProtocol => ResponseError::InconsistentGroupProtocol,
            GroupError::RebalanceInProgress => ResponseError::RebalanceInProgress,
            GroupError::InvalidSessionTimeout => ResponseError::InvalidSessionTimeout,
            GroupError::GroupFull => ResponseError::GroupMaxSizeReached,
            GroupError::NotCoordinator => ResponseError::NotCoordinator,
            GroupError::NotAvailable => ResponseError::CoordinatorNotAvailable,
            GroupError::Loading => ResponseError::CoordinatorLoadInProgress,
            GroupError::GroupNotFound => ResponseError::GroupIdNotFound,
            GroupError::NonEmptyGroup => ResponseError::NonEmptyGroup,
            GroupError::SubscribedToTopic => ResponseError::GroupSubscribedToTopic,
            GroupError::MetadataTooLarge => ResponseError::OffsetMetadataTooLarge,
            GroupError::CommitTooLarge => ResponseError::InvalidCommitOffsetSize,
            GroupError::UnknownPartition => ResponseError::UnknownTopicOrPartition,
            GroupError::StateTooLarge => ResponseError::UnknownServerError,
        }
    }

    /// Its code on the wire.
    #[must_use]
    pub fn code(self) -> i16 {
        self.response_error().code()
    }
}
