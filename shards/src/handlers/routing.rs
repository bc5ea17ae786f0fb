//! From what a request names to the shard and the group that hold it.

use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, ShardId};
use kafka_protocol::ResponseError;
use uuid::Uuid;

use crate::catalog::{Catalog, Topic, TopicId};

/// Where a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The shard.
    pub shard: ShardId,
    /// The group on it.
    pub group: GroupId,
}

/// Why something named by a client could not be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// There is no topic of this name, or it has no such partition.
    #[error("unknown topic or partition")]
    UnknownTopicOrPartition,
    /// There is no topic of this id.
    #[error("unknown topic id")]
    UnknownTopicId,
    /// No replica of the partition is on this node.
    #[error("no replica of the partition is on this node")]
    NotHere,
}

impl RouteError {
    /// Kafka's name for it.
    #[must_use]
    pub fn response_error(self) -> ResponseError {
        match self {
            RouteError::UnknownTopicOrPartition => ResponseError::UnknownTopicOrPartition,
            RouteError::UnknownTopicId => ResponseError::UnknownTopicId,
            RouteError::NotHere => ResponseError::NotLeaderOrFollower,
        }
    }
}

/// Finds the topic that a request names by its id (versions that do) or by its name.
///
/// # Errors
/// As Kafka has it: an unknown id and an unknown name are two errors.
pub fn resolve_topic<'a>(
    catalog: &'a Catalog,
    name: &str,
    id: Uuid,
    by_id: bool,
) -> Result<&'a Arc<Topic>, RouteError> {
    if by_id {
        catalog.topic_by_id(TopicId(id)).ok_or(RouteError::UnknownTopicId)
    } else {
        catalog.topic(name).ok_or(RouteError::UnknownTopicOrPartition)
    }
}

impl Route {
    /// Finds a partition of a topic.
    ///
    /// # Errors
    /// [`RouteError::UnknownTopicOrPartition`] if the topic has no partition of this index, [`RouteError::NotHere`] if it
    /// is on other nodes only.
    pub fn of(topic: &Topic, partition: i32, node: NodeId) -> Result<Route, RouteError> {
        let found = topic.partition(partition).ok_or(RouteError::UnknownTopicOrPartition)?;
        let placement = found.placement_on(node).ok_or(RouteError::NotHere)?;
        Ok(Route { shard: placement.shard, group: found.group })
    }
}
