//! ListOffsets and OffsetForLeaderEpoch: where a log begins, ends, and what stood where when.
//!
//! Both name partitions and ask one thing of each. [`ask`] takes the questions to the shards; a shard answers one after
//! the other and lets others run between them, once it knows of each partition that it still leads it: what a leader
//! says that was replaced without knowing would go back in time.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use chronik_engine::ids::{GroupId, Offset, ShardId};
use chronik_ring::yield_if_needed;
use futures_util::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, TopicName,
};
use uuid::Uuid;

use self::time_search::{InBatch, TimeSearch, Wanted};
use super::error_code::fetch_error;
use super::routing::{Route, RouteError, resolve_topic};
use crate::catalog::CATALOG_PARTITIONS_MAX;
use crate::core::{FetchError, PartitionView};
use crate::shell::barrier::Leading;
use crate::shell::read::kafka_epoch;
use crate::shell::shard::Shard;

mod time_search;

/// Timestamps that mean a place rather than a time (KIP-79, KIP-734, KIP-405, KIP-1005).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// From this version on an answer has a leader epoch (KIP-320).
const EPOCH_VERSION_MIN: i16 = 4;

/// A topic of a request: for each partition that it names what is asked of it, or why nothing may be.
struct AskedTopic<Q> {
    name: TopicName,
    partitions: Vec<(i32, Result<Q, ResponseError>)>,
}

/// A topic of the answer, its partitions as in the request.
struct AnsweredTopic<A> {
    name: TopicName,
    partitions: Vec<(i32, Result<A, ResponseError>)>,
}

/// What is asked of one partition, and the place of its answer.
struct Question<Q> {
    slot: usize,
    group: GroupId,
    asked: Q,
}

/// The answer to a [`Question`] and its place.
type Answer<A> = (usize, Result<A, FetchError>);

/// Lets each shard answer what is asked of its partitions, the shards side by side, each once. Cancel-safe.
async fn ask<Q, A, F, Fut>(
    shard: &Rc<Shard>,
    topics: Vec<AskedTopic<Q>>,
    answer: F,
) -> Vec<AnsweredTopic<A>>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Fn(Rc<Shard>, Vec<Question<Q>>) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = Vec<Answer<A>>> + 'static,
{
    let catalog = shard.catalog();
    let node = shard.node.config.node_id;
    let partitions: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
    let mut answers = Vec::with_capacity(partitions);
    let mut named = Vec::with_capacity(topics.len());
    let mut by_shard: BTreeMap<ShardId, Vec<Question<Q>>> = BTreeMap::new();
    for topic in topics {
        let resolved = resolve_topic(&catalog, &topic.name, Uuid::nil(), false);
        let mut numbers = Vec::with_capacity(topic.partitions.len());
        for (number, asked) in topic.partitions {
            numbers.push(number);
            let route = resolved.and_then(|topic| Route::of(topic, number, node));
            let routed = asked.and_then(|asked| {
                route.map(|route| (route, asked)).map_err(RouteError::response_error)
            });
            let slot = answers.len();
            answers.push(Err(match routed {
                _ if partitions > CATALOG_PARTITIONS_MAX => ResponseError::InvalidRequest,
                Err(error) => error,
                Ok((Route { shard, group }, asked)) => {
                    by_shard.entry(shard).or_default().push(Question { slot, group, asked });
                    ResponseError::NotLeaderOrFollower // unless the shard answers
                }
            }));
        }
        named.push((topic.name, numbers));
    }
    let asked = by_shard
        .into_iter()
        .map(|(target, questions)| shard.on(target, move |there| answer(there, questions)));
    for (slot, answer) in join_all(asked).await.into_iter().filter_map(Result::ok).flatten() {
        answers[slot] = answer.map_err(|error| fetch_error(&error));
    }
    let mut answers = answers.into_iter();
    named
        .into_iter()
        .map(|(name, numbers)| {
            let partitions = numbers.into_iter().zip(answers.by_ref()).collect();
            AnsweredTopic { name, partitions }
        })
        .collect()
}

/// Partitions that a request names more than once. Of a request that names more than there can be, only the first ones
/// are looked at: it is refused whatever they are.
fn named_again(topics: &[ListOffsetsTopic]) -> BTreeSet<(TopicName, i32)> {
    let named = topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| (&topic.name, partition.partition_index))
    });
    let mut seen = BTreeSet::new();
    named
        .take(CATALOG_PARTITIONS_MAX)
        .filter(|(name, number)| !seen.insert((name.as_str(), *number)))
        .map(|(name, number)| (name.clone(), number))
        .collect()
}

/// A time or a place that a partition is asked for.
#[derive(Debug, Clone, Copy)]
struct AskedTime {
    timestamp: i64,
    current_leader_epoch: i32,
}

/// Whether a version knows a timestamp; those below zero have meanings, which came one after the other.
fn knows_timestamp(version: i16, timestamp: i64) -> bool {
    match timestamp {
        LATEST | EARLIEST => true,
        MAX_TIMESTAMP => version >= 7,
        EARLIEST_LOCAL => version >= 8,
        LATEST_TIERED => version >= 9,
        timestamp => timestamp >= 0,
    }
}

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
    let named_again = named_again(&request.topics);
    let topics = request.topics.into_iter().map(|topic| {
        let asked_time = |name: &TopicName, partition: &ListOffsetsPartition| {
            if named_again.contains(&(name.clone(), partition.partition_index)) {
                return Err(ResponseError::InvalidRequest);
            }
            let ListOffsetsPartition { timestamp, current_leader_epoch, .. } = *partition;
            if !knows_timestamp(version, timestamp) {
                return Err(ResponseError::UnsupportedVersion);
            }
            Ok(AskedTime { timestamp, current_leader_epoch })
        };
        let partitions = topic.partitions.iter();
        let partitions =
            partitions.map(|asked| (asked.partition_index, asked_time(&topic.name, asked)));
        AskedTopic { partitions: partitions.collect(), name: topic.name }
    });
    let answered = ask(&shard, topics.collect(), find_all).await.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter();
        let partitions =
            partitions.map(|(number, found)| list_offsets_answer(version, number, found));
        ListOffsetsTopicResponse::default()
            .with_name(topic.name)
            .with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(answered.collect())
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

/// Asks of all partitions at once whether they are still led from here.
fn led<Q>(shard: &Rc<Shard>, questions: Vec<Question<Q>>) -> Vec<(Leading, Question<Q>)> {
    let leading = |question: Question<Q>| (shard.still_leads(question.group), question);
    questions.into_iter().map(leading).collect()
}

/// Answers for the partitions of this shard.
async fn find_all(shard: Rc<Shard>, questions: Vec<Question<AskedTime>>) -> Vec<Answer<Found>> {
    let mut searches = TimeSearch::new();
    let mut answers = Vec::with_capacity(questions.len());
    for (leading, Question { slot, group, asked }) in led(&shard, questions) {
        if !answers.is_empty() {
            yield_if_needed().await;
        }
        let found = match leading.known().await {
            Ok(()) => find(&shard, group, asked, &mut searches).await,
            Err(error) => Err(error),
        };
        answers.push((slot, found));
    }
    answers
}

async fn find(
    shard: &Rc<Shard>,
    group: GroupId,
    AskedTime { timestamp, current_leader_epoch }: AskedTime,
    searches: &mut TimeSearch,
) -> Result<Found, FetchError> {
    let view = shard.with_core(|core| core.leader_view(group, current_leader_epoch))?;
    let at = |offset: Offset| Found {
        offset: offset.0,
        timestamp: -1,
        epoch: shard.with_core(|core| core.epoch_of(group, offset)).map_or(-1, kafka_epoch),
    };
    match timestamp {
        LATEST => Ok(at(view.high_watermark)),
        EARLIEST | EARLIEST_LOCAL => Ok(at(view.log_start_offset)),
        // Nothing is tiered: there is no such offset.
        LATEST_TIERED => Ok(NOT_FOUND),
        MAX_TIMESTAMP => latest(shard, group, &view, searches).await,
        timestamp if timestamp >= 0 => {
            let found = first_at_or_after(shard, group, &view, timestamp, searches).await?;
            Ok(found.unwrap_or(NOT_FOUND))
        }
        _ => Ok(NOT_FOUND),
    }
}

/// The first record with the greatest timestamp. What the index takes for the greatest may be that of a record before the
/// log's start, or of one that is not committed; then the greatest of the others is closed in on.
async fn latest(
    shard: &Rc<Shard>,
    group: GroupId,
    view: &PartitionView,
    searches: &mut TimeSearch,
) -> Result<Found, FetchError> {
    let Some(mut above) = shard.max_timestamp_ms(group, view)? else { return Ok(NOT_FOUND) };
    if let Some(found) = first_at_or_after(shard, group, view, above, searches).await? {
        return Ok(found);
    }
    let Some(mut best) = first_at_or_after(shard, group, view, 0, searches).await? else {
        return Ok(NOT_FOUND);
    };
    while best.timestamp + 1 < above {
        let middle = best.timestamp + (above - best.timestamp) / 2;
        match first_at_or_after(shard, group, view, middle, searches).await? {
            Some(found) => best = found,
            None => above = middle,
        }
        yield_if_needed().await;
    }
    Ok(best)
}

/// The first record from the log's start on whose timestamp is not before `timestamp`: the index finds the batch, its records
/// tell the rest.
async fn first_at_or_after(
    shard: &Rc<Shard>,
    group: GroupId,
    view: &PartitionView,
    timestamp: i64,
    searches: &mut TimeSearch,
) -> Result<Option<Found>, FetchError> {
    let mut from = view.log_start_offset;
    loop {
        let batch = shard.find_timestamp(group, from, timestamp).await?;
        let Some(batch) = batch.filter(|batch| batch.base_offset < view.high_watermark) else {
            return Ok(None);
        };
        let base = batch.base_offset.0;
        let wanted = Wanted { delta_min: (from.0 - base).max(0), timestamp };
        let searched = searches.search(batch.bytes, wanted).await;
        let (offset, timestamp) = match searched.map_err(|_| FetchError::Storage)? {
            InBatch::Record(place) => (base + place.offset_delta, place.timestamp),
            // The batch may begin before the log does.
            InBatch::Whole => (base.max(from.0), batch.max_timestamp_ms),
            InBatch::Before => {
                from = batch.end_offset;
                continue;
            }
        };
        let epoch = kafka_epoch(batch.epoch);
        return Ok(Some(Found { offset, timestamp, epoch }));
    }
}

/// An epoch whose end a partition is asked for.
#[derive(Debug, Clone, Copy)]
struct AskedEpoch {
    epoch: i32,
    current_leader_epoch: i32,
}

/// Serves OffsetForLeaderEpoch (KIP-101, KIP-320). Cancel-safe.
pub async fn offset_for_leader_epoch(
    shard: Rc<Shard>,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|asked| {
            let epoch = asked.leader_epoch;
            let current_leader_epoch = asked.current_leader_epoch;
            (asked.partition, Ok(AskedEpoch { epoch, current_leader_epoch }))
        });
        AskedTopic { name: topic.topic, partitions: partitions.collect() }
    });
    let answered = ask(&shard, topics.collect(), epoch_ends).await.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter();
        let partitions = partitions.map(|(number, end)| epoch_answer(number, end));
        OffsetForLeaderTopicResult::default()
            .with_topic(topic.name)
            .with_partitions(partitions.collect())
    });
    OffsetForLeaderEpochResponse::default().with_topics(answered.collect())
}

fn epoch_answer(partition: i32, end: Result<(i32, Offset), ResponseError>) -> EpochEndOffset {
    let answer = EpochEndOffset::default().with_partition(partition);
    match end {
        Ok((epoch, offset)) => answer.with_leader_epoch(epoch).with_end_offset(offset.0),
        Err(error) => {
            answer.with_error_code(error.code()).with_leader_epoch(-1).with_end_offset(-1)
        }
    }
}

/// Answers for the partitions of this shard.
async fn epoch_ends(
    shard: Rc<Shard>,
    questions: Vec<Question<AskedEpoch>>,
) -> Vec<Answer<(i32, Offset)>> {
    let mut answers = Vec::with_capacity(questions.len());
    for (leading, Question { slot, group, asked }) in led(&shard, questions) {
        if !answers.is_empty() {
            yield_if_needed().await;
        }
        let AskedEpoch { epoch, current_leader_epoch } = asked;
        let end = leading.known().await.and_then(|()| {
            shard.with_core(|core| core.end_offset_for_epoch(group, epoch, current_leader_epoch))
        });
        answers.push((slot, end));
    }
    answers
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::StrBytes;

    use super::*;

    fn topic(name: &'static str, partitions: &[i32]) -> ListOffsetsTopic {
        let partition =
            |number: &i32| ListOffsetsPartition::default().with_partition_index(*number);
        ListOffsetsTopic::default()
            .with_name(StrBytes::from_static_str(name).into())
            .with_partitions(partitions.iter().map(partition).collect())
    }

    #[test]
    fn given_partitions_named_twice_when_looked_for_then_each_is_found_wherever_it_stands() {
        let topics = [topic("a", &[0, 1, 2, 1]), topic("b", &[0, 1]), topic("a", &[2, 3])];
        let again = named_again(&topics);
        let again: Vec<_> = again.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(again, [("a", 1), ("a", 2)]);
    }
}
