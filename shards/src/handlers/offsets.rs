//! ListOffsets and OffsetForLeaderEpoch: where a log begins, ends, and what stood where when.

use std::rc::Rc;

use chronik_engine::batch::RecordBatch;
use chronik_engine::ids::{GroupId, Offset};
use futures_util::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
};
use uuid::Uuid;

use super::error_code::fetch_error;
use super::routing::{Route, RouteError, resolve_topic};
use crate::core::{FetchError, PartitionView};
use crate::shell::read::kafka_epoch;
use crate::shell::shard::Shard;

/// Timestamps that mean a place rather than a time (KIP-79, KIP-734, KIP-405, KIP-1005).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// From this version on an answer has a leader epoch (KIP-320).
const EPOCH_VERSION_MIN: i16 = 4;

/// What a batch may unpack to when it is searched for a timestamp. A larger one is answered by its first offset.
const LOOK_UP_BYTES_MAX: usize = 16 << 20;

/// An offset found, with the timestamp and the leader epoch of its record where they are known.
#[derive(Debug, Clone, Copy)]
struct Found {
    offset: i64,
    timestamp: i64,
    epoch: i32,
}

const NOT_FOUND: Found = Found { offset: -1, timestamp: -1, epoch: -1 };

/// Serves ListOffsets. Cancel-safe.
pub async fn list_offsets(
    shard: Rc<Shard>,
    version: i16,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let catalog = shard.catalog();
    let node = shard.node.config.node_id;
    let topics = request.topics.into_iter().map(|topic| {
        let resolved = resolve_topic(&catalog, &topic.name, Uuid::nil(), false);
        let partitions: Vec<_> = topic
            .partitions
            .into_iter()
            .map(|asked| {
                let route =
                    resolved.and_then(|topic| Route::of(topic, asked.partition_index, node));
                let shard = Rc::clone(&shard);
                async move {
                    let found =
                        look_up(&shard, route, asked.timestamp, asked.current_leader_epoch).await;
                    list_offsets_answer(version, asked.partition_index, found)
                }
            })
            .collect();
        async move {
            ListOffsetsTopicResponse::default()
                .with_name(topic.name)
                .with_partitions(join_all(partitions).await)
        }
    });
    ListOffsetsResponse::default().with_topics(join_all(topics).await)
}

fn list_offsets_answer(
    version: i16,
    partition: i32,
    found: Result<Found, ResponseError>,
) -> ListOffsetsPartitionResponse {
    let answer = ListOffsetsPartitionResponse::default().with_partition_index(partition);
    match found {
        Ok(found) => answer
            .with_offset(found.offset)
            .with_timestamp(found.timestamp)
            .with_leader_epoch(if version >= EPOCH_VERSION_MIN { found.epoch } else { -1 }),
        Err(error) => answer
            .with_error_code(error.code())
            .with_offset(-1)
            .with_timestamp(-1)
            .with_leader_epoch(-1),
    }
}

async fn look_up(
    shard: &Rc<Shard>,
    route: Result<Route, RouteError>,
    timestamp: i64,
    current_leader_epoch: i32,
) -> Result<Found, ResponseError> {
    let route = route.map_err(RouteError::response_error)?;
    shard
        .on(route.shard, move |there| async move {
            find(&there, route.group, timestamp, current_leader_epoch).await
        })
        .await
        .map_err(|_| ResponseError::NotLeaderOrFollower)?
        .map_err(|error| fetch_error(&error))
}

async fn find(
    shard: &Rc<Shard>,
    group: GroupId,
    timestamp: i64,
    current_leader_epoch: i32,
) -> Result<Found, FetchError> {
    let view = shard.with_core(|core| core.leader_view(group, current_leader_epoch))?;
    let at = |offset: Offset| Found {
        offset: offset.0,
        timestamp: -1,
        epoch: view.epoch_of(offset).map_or(-1, kafka_epoch),
    };
    match timestamp {
        LATEST => Ok(at(view.high_watermark)),
        EARLIEST | EARLIEST_LOCAL => Ok(at(view.log_start_offset)),
        // Nothing is tiered: there is no such offset.
        LATEST_TIERED => Ok(NOT_FOUND),
        MAX_TIMESTAMP => match shard.wal.max_timestamp_ms(group) {
            Some(timestamp) => first_at_or_after(shard, group, &view, timestamp).await,
            None => Ok(NOT_FOUND),
        },
        timestamp if timestamp >= 0 => first_at_or_after(shard, group, &view, timestamp).await,
        _ => Ok(NOT_FOUND),
    }
}

/// The first record whose timestamp is not before `timestamp`: the index finds the batch, its records tell the rest.
async fn first_at_or_after(
    shard: &Rc<Shard>,
    group: GroupId,
    view: &PartitionView,
    timestamp: i64,
) -> Result<Found, FetchError> {
    let batch = shard
        .wal
        .find_timestamp(group, view.log_start_offset, timestamp)
        .await
        .map_err(|error| shard.read_failed(group, &error))?;
    let Some(stored) = batch.filter(|stored| stored.base_offset < view.high_watermark) else {
        return Ok(NOT_FOUND);
    };
    let epoch = kafka_epoch(stored.epoch);
    let base = stored.base_offset.0;
    let whole_batch = Found { offset: base, timestamp: stored.max_timestamp_ms, epoch };
    let Ok(batch) = RecordBatch::parse(stored.bytes) else { return Err(FetchError::Storage) };
    // A batch whose records do not decode was taken as its producer sent it; its first offset is the best there is.
    let Ok(records) = batch.records(LOOK_UP_BYTES_MAX) else { return Ok(whole_batch) };
    for record in records {
        let Ok(record) = record else { return Ok(whole_batch) };
        let record_timestamp = batch.base_timestamp_ms().saturating_add(record.timestamp_delta);
        if record_timestamp >= timestamp {
            let offset = base + i64::from(record.offset_delta);
            return Ok(Found { offset, timestamp: record_timestamp, epoch });
        }
    }
    Ok(whole_batch)
}

/// Serves OffsetForLeaderEpoch (KIP-101, KIP-320). Cancel-safe.
pub async fn offset_for_leader_epoch(
    shard: Rc<Shard>,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let catalog = shard.catalog();
    let node = shard.node.config.node_id;
    let topics = request.topics.into_iter().map(|topic| {
        let resolved = resolve_topic(&catalog, &topic.topic, Uuid::nil(), false);
        let partitions: Vec<_> = topic
            .partitions
            .into_iter()
            .map(|asked| {
                let route = resolved.and_then(|topic| Route::of(topic, asked.partition, node));
                let shard = Rc::clone(&shard);
                async move {
                    let end =
                        epoch_end(&shard, route, asked.leader_epoch, asked.current_leader_epoch)
                            .await;
                    epoch_answer(asked.partition, end)
                }
            })
            .collect();
        async move {
            OffsetForLeaderTopicResult::default()
                .with_topic(topic.topic)
                .with_partitions(join_all(partitions).await)
        }
    });
    OffsetForLeaderEpochResponse::default().with_topics(join_all(topics).await)
}

fn epoch_answer(partition: i32, end: Result<(i32, i64), ResponseError>) -> EpochEndOffset {
    let answer = EpochEndOffset::default().with_partition(partition);
    match end {
        Ok((epoch, offset)) => answer.with_leader_epoch(epoch).with_end_offset(offset),
        Err(error) => {
            answer.with_error_code(error.code()).with_leader_epoch(-1).with_end_offset(-1)
        }
    }
}

async fn epoch_end(
    shard: &Rc<Shard>,
    route: Result<Route, RouteError>,
    epoch: i32,
    current_leader_epoch: i32,
) -> Result<(i32, i64), ResponseError> {
    let route = route.map_err(RouteError::response_error)?;
    shard
        .on(route.shard, move |there| {
            let end = there.with_core(|core| {
                core.end_offset_for_epoch(route.group, epoch, current_leader_epoch)
            });
            async move { end }
        })
        .await
        .map_err(|_| ResponseError::NotLeaderOrFollower)?
        .map(|(epoch, offset)| (epoch, offset.0))
        .map_err(|error| fetch_error(&error))
}
