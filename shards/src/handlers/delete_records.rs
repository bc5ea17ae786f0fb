//! DeleteRecords: a client moves the start of partitions' logs.
//!
//! The answer to a partition comes once the new start is committed, durable and seen by readers; where the log starts
//! at or after the offset already, nothing is written. An offset within a batch is a good log start: readers get the
//! whole batch and pass over what is before it, as in Kafka.

use std::collections::BTreeMap;
use std::rc::Rc;

use chronik_engine::ids::{GroupId, Offset, ShardId};
use futures_channel::oneshot;
use futures_util::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_request::DeleteRecordsTopic;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use super::change::{wait_of, within};
use super::error_code::{fetch_error, produce_error};
use super::routing::{Route, RouteError};
use crate::catalog::{CATALOG_PARTITIONS_MAX, Catalog, is_internal_topic};
use crate::core::{Ack, FetchError, ProduceResult};
use crate::shell::replies::ReplyTo;
use crate::shell::shard::Shard;

/// Asks for the high watermark instead of an offset.
const HIGH_WATERMARK: i64 = -1;

/// What is said of a log start where there is none to name.
const NO_LOW_WATERMARK: i64 = -1;

/// Where the log starts, or why it was not moved.
type Outcome = Result<Offset, ResponseError>;

/// One partition of a request.
struct Asked {
    slot: usize,
    group: GroupId,
    offset: i64,
}

/// What a partition's answer waits for.
enum Begun {
    Done(Outcome),
    Proposed(oneshot::Receiver<ProduceResult>),
}

/// Serves DeleteRecords. Cancel-safe; what was begun happens all the same.
pub async fn delete_records(
    shard: Rc<Shard>,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let catalog = shard.catalog();
    let partitions: usize = request.topics.iter().map(|topic| topic.partitions.len()).sum();
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(partitions);
    let mut by_shard: BTreeMap<ShardId, Vec<Asked>> = BTreeMap::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            let route = route(&shard, &catalog, topic, partition.partition_index);
            let slot = outcomes.len();
            outcomes.push(Err(match route {
                _ if partitions > CATALOG_PARTITIONS_MAX => ResponseError::InvalidRequest,
                Err(error) => error,
                Ok(Route { shard, group }) => {
                    let asked = Asked { slot, group, offset: partition.offset };
                    by_shard.entry(shard).or_default().push(asked);
                    ResponseError::RequestTimedOut // unless the shard answers in time
                }
            }));
        }
    }
    let at_most = wait_of(request.timeout_ms);
    let moved = by_shard.into_iter().map(|(target, asked)| {
        within(at_most, shard.on(target, move |there| move_log_starts(there, asked)))
    });
    for moved in join_all(moved).await.into_iter().flatten() {
        for (slot, outcome) in moved.unwrap_or_default() {
            outcomes[slot] = outcome;
        }
    }
    answer(request.topics, outcomes)
}

/// Finds a partition, and whether its records may be deleted.
fn route(
    shard: &Shard,
    catalog: &Catalog,
    topic: &DeleteRecordsTopic,
    number: i32,
) -> Result<Route, ResponseError> {
    if is_internal_topic(&topic.name) {
        return Err(ResponseError::InvalidTopicException);
    }
    let unknown = RouteError::UnknownTopicOrPartition.response_error();
    let found = catalog.topic(&topic.name).ok_or(unknown)?;
    let route =
        Route::of(found, number, shard.node.config.node_id).map_err(RouteError::response_error)?;
    // What is kept for its key must not be deleted for its place.
    if found.settings.cleanup.delete { Ok(route) } else { Err(ResponseError::PolicyViolation) }
}

/// Moves the log starts of partitions of this shard: first all are proposed, so that they share a write.
async fn move_log_starts(shard: Rc<Shard>, asked: Vec<Asked>) -> Vec<(usize, Outcome)> {
    let begun: Vec<(usize, Begun)> =
        asked.into_iter().map(|asked| (asked.slot, begin(&shard, &asked))).collect();
    let mut outcomes = Vec::with_capacity(begun.len());
    for (slot, begun) in begun {
        let outcome = match begun {
            Begun::Done(outcome) => outcome,
            Begun::Proposed(answer) => match answer.await {
                Ok(Ok(Ack::LogStart(offset))) => Ok(offset),
                Ok(Ok(_)) => Err(ResponseError::UnknownServerError),
                Ok(Err(error)) => Err(produce_error(&error)),
                Err(oneshot::Canceled) => Err(ResponseError::NotLeaderOrFollower),
            },
        };
        outcomes.push((slot, outcome));
    }
    outcomes
}

fn begin(shard: &Rc<Shard>, asked: &Asked) -> Begun {
    let view = match shard.with_core(|core| core.leader_view(asked.group, -1)) {
        Ok(view) => view,
        Err(error) => return Begun::Done(Err(fetch_error(&error))),
    };
    let (log_start_offset, end_offset) = (view.log_start_offset, view.high_watermark);
    let offset = match asked.offset {
        HIGH_WATERMARK => end_offset,
        offset => Offset(offset),
    };
    if offset < Offset(0) || offset > end_offset {
        let error = FetchError::OffsetOutOfRange { offset, log_start_offset, end_offset };
        return Begun::Done(Err(fetch_error(&error)));
    }
    if offset <= log_start_offset {
        return Begun::Done(Ok(log_start_offset));
    }
    let (done, answer) = ReplyTo::channel(shard.id);
    shard.propose_log_start(asked.group, offset, done);
    Begun::Proposed(answer)
}

/// The answer, topics and partitions as in the request.
fn answer(topics: Vec<DeleteRecordsTopic>, outcomes: Vec<Outcome>) -> DeleteRecordsResponse {
    let mut outcomes = outcomes.into_iter();
    let topics = topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().zip(outcomes.by_ref());
        let partitions = partitions.map(|(partition, outcome)| {
            let result = DeleteRecordsPartitionResult::default()
                .with_partition_index(partition.partition_index);
            match outcome {
                Ok(offset) => result.with_low_watermark(offset.0),
                Err(error) => {
                    result.with_low_watermark(NO_LOW_WATERMARK).with_error_code(error.code())
                }
            }
        });
        let partitions = partitions.collect();
        DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions)
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}
