//! Produce: from the request to the log of each partition, and back.
//!
//! In two steps, as the connection needs them. [`enqueue`] checks each batch and proposes it to its partition's shard;
//! when it returns, the order of this request's records against those of the next one is fixed. The future that it
//! returns resolves once every partition has answered.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::batch::{BatchError, RecordBatch, TimestampType};
use chronik_engine::compression::Codec;
use chronik_engine::ids::ShardId;
use chronik_net::{Affinity, CloseReason, ConnectionContext, Finished};
use futures_channel::oneshot;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};
use kafka_protocol::protocol::StrBytes;

use self::rules::Refusal;
use super::error_code::produce_error;
use super::routing::{Route, resolve_topic};
use crate::catalog::{Catalog, Durability, Partition, Topic};
use crate::core::{Ack, ProduceResult, RequiredAcks};
use crate::shell::replies::ReplyTo;
use crate::shell::shard::Shard;

mod rules;

/// The first version whose answer names the records that are refused (KIP-467).
const RECORD_ERRORS_VERSION_MIN: i16 = 8;

/// The first version that may carry zstd (KIP-110).
const ZSTD_VERSION_MIN: i16 = 7;

/// The shortest time that a client can give us, in milliseconds.
const TIMEOUT_MS_MIN: u64 = 1;

/// A partition's answer, there or on its way.
enum Outcome {
    Known(PartitionProduceResponse),
    Waiting { index: i32, answer: oneshot::Receiver<ProduceResult>, too_late: ResponseError },
}

/// When a batch is acknowledged.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    acks: RequiredAcks,
    /// As many replicas must be in sync, and hold it.
    in_sync_min: u32,
    /// What is said if that does not come about in time.
    too_late: ResponseError,
}

struct TopicOutcomes {
    topic: TopicProduceResponse,
    partitions: Vec<Outcome>,
}

/// Proposes every batch of the request and returns the future of the answer. With acks=0 there is none; a failure then
/// closes the connection, which is the only way to make such a client look again for the leader. Does not wait.
pub fn enqueue(
    shard: &Rc<Shard>,
    connection: &ConnectionContext,
    version: i16,
    request: ProduceRequest,
    retained_bytes: usize,
) -> impl Future<Output = Finished> + use<> {
    let acks = RequiredAcks::from_wire(request.acks);
    // Only a quorum may keep a producer waiting for longer than it wants.
    let timeout_ms = u64::try_from(request.timeout_ms).unwrap_or(0).max(TIMEOUT_MS_MIN);
    let deadline_ns = (acks == Some(RequiredAcks::All))
        .then(|| shard.clock.now_ns().saturating_add(timeout_ms.saturating_mul(1_000_000)));
    let catalog = shard.catalog();
    let proposer = Proposer {
        shard,
        affinity: &connection.affinity,
        catalog: &catalog,
        version,
        acks,
        transactional: request.transactional_id.is_some(),
        spare_bytes_each: spare_bytes_each(&request, retained_bytes),
        now_ms: shard.clock.wall_ms(),
    };
    let topics: Vec<TopicOutcomes> =
        request.topic_data.into_iter().map(|topic| proposer.topic(topic)).collect();
    let shard = Rc::clone(shard);
    async move {
        let response = answer(&shard, topics, deadline_ns).await;
        let failed = count(&shard, &response);
        match acks {
            Some(RequiredAcks::None) if failed => Finished::Close(CloseReason::Handler {
                what: "a produce with acks=0 failed, and has no answer to say so",
            }),
            Some(RequiredAcks::None) => Finished::NoResponse,
            _ => Finished::Response(response.into()),
        }
    }
}

/// A batch in memory keeps its whole frame there. What is not batches is shared among them, so that together they count
/// as the frame.
fn spare_bytes_each(request: &ProduceRequest, frame_bytes: usize) -> usize {
    let batches = request.topic_data.iter().flat_map(|topic| &topic.partition_data);
    let (count, bytes) = batches
        .filter_map(|data| data.records.as_ref())
        .fold((0usize, 0usize), |(count, bytes), records| {
            (count + 1, bytes.saturating_add(records.len()))
        });
    frame_bytes.saturating_sub(bytes).div_ceil(count.max(1))
}

/// Counts the answers; says whether any partition failed.
fn count(shard: &Shard, response: &ProduceResponse) -> bool {
    let mut metrics = shard.metrics.borrow_mut();
    metrics.counters.produce_requests += 1;
    let mut failed = false;
    for partition in response.responses.iter().flat_map(|topic| &topic.partition_responses) {
        metrics.produce_errors.record(partition.error_code);
        failed |= partition.error_code != 0;
    }
    failed
}

struct Proposer<'a> {
    shard: &'a Rc<Shard>,
    affinity: &'a Affinity,
    catalog: &'a Catalog,
    version: i16,
    acks: Option<RequiredAcks>,
    transactional: bool,
    /// What each batch keeps in memory beside its own bytes.
    spare_bytes_each: usize,
    now_ms: i64,
}

impl Proposer<'_> {
    fn topic(&self, data: TopicProduceData) -> TopicOutcomes {
        let resolved = resolve_topic(self.catalog, &data.name, data.topic_id, self.version >= 13);
        let partitions = data
            .partition_data
            .into_iter()
            .map(|partition| match &resolved {
                Ok(topic) => self.partition(topic, partition),
                Err(error) => refused(partition.index, error.response_error(), None),
            })
            .collect();
        let topic =
            TopicProduceResponse::default().with_name(data.name).with_topic_id(data.topic_id);
        TopicOutcomes { topic, partitions }
    }

    fn partition(&self, topic: &Topic, data: PartitionProduceData) -> Outcome {
        let index = data.index;
        let Some(acks) = self.acks else {
            return refused(index, ResponseError::InvalidRequiredAcks, None);
        };
        if topic.internal {
            // As unknown it would be tried again until the client gives up.
            return refused(index, ResponseError::InvalidTopicException, None);
        }
        let route = match Route::of(topic, index, self.shard.node.config.node_id) {
            Ok(route) => route,
            Err(error) => return refused(index, error.response_error(), None),
        };
        let checked = self.checked_batch(topic, data.records).map_err(Refusal::from);
        match checked.and_then(|batch| rules::settle(batch, &topic.settings, self.now_ms)) {
            Ok(batch) => {
                // Only who asks for all of them is told that there are too few (as in Kafka).
                let acks = match topic.settings.durability {
                    Durability::Durable => acks,
                    Durability::Relaxed => acks.relaxed(),
                };
                let is_for_all = acks.is_for_all();
                let in_sync_min = if is_for_all { topic.settings.insync_replicas_min } else { 1 };
                let too_late = too_late(in_sync_min, topic.partition(index));
                self.propose(route, index, batch, Wanted { acks, in_sync_min, too_late })
            }
            Err(Refusal { error, why, records }) => {
                Outcome::Known(failure(index, error, Some(why)).with_record_errors(
                    if self.version >= RECORD_ERRORS_VERSION_MIN {
                        records.into_iter().map(record_error).collect()
                    } else {
                        Vec::new()
                    },
                ))
            }
        }
    }

    /// What the broker demands of a batch before it may take an offset.
    fn checked_batch(
        &self,
        topic: &Topic,
        records: Option<Bytes>,
    ) -> Result<RecordBatch, (ResponseError, String)> {
        let records = records.unwrap_or_default();
        let broker_bytes_max = self.shard.node.config.kafka.message_max_bytes;
        let bytes_max = topic.settings.message_bytes_max.unwrap_or(broker_bytes_max);
        if records.len() > bytes_max {
            let why = format!(
                "a batch of {} bytes is larger than the topic's max.message.bytes of {bytes_max}",
                records.len()
            );
            return Err((ResponseError::MessageTooLarge, why));
        }
        let batch = RecordBatch::parse(records).map_err(|e| (batch_error(&e), e.to_string()))?;
        if batch.codec() == Codec::Zstd && self.version < ZSTD_VERSION_MIN {
            let why = "zstd needs Produce version 7 or later".to_owned();
            return Err((ResponseError::UnsupportedCompressionType, why));
        }
        if batch.is_control() {
            let why = "a client may not write control batches".to_owned();
            return Err((ResponseError::InvalidRecord, why));
        }
        if batch.header().timestamp_type() == TimestampType::LogAppendTime {
            let why =
                "only the broker may say that a timestamp is the time of appending".to_owned();
            return Err((ResponseError::InvalidTimestamp, why));
        }
        if batch.is_transactional() || self.transactional {
            let why = "transactions are not available in this version".to_owned();
            return Err((ResponseError::InvalidTxnState, why));
        }
        Ok(batch)
    }

    fn propose(&self, route: Route, index: i32, batch: RecordBatch, wanted: Wanted) -> Outcome {
        let Wanted { acks, in_sync_min, too_late } = wanted;
        let (done, answer) = ReplyTo::channel(self.shard.id);
        let retained_bytes = batch.size().saturating_add(self.spare_bytes_each);
        let Route { shard: target, group } = route;
        self.affinity.vote(target.0, self.shard.id.0);
        let posted = self.shard.post(target, move |there| {
            there.propose_batch(group, batch, acks, in_sync_min, retained_bytes, done);
        });
        match posted {
            Ok(()) => Outcome::Waiting { index, answer, too_late },
            Err(_) => refused(index, ResponseError::NotLeaderOrFollower, Some(busy(target))),
        }
    }
}

/// What is said of a batch that is not acknowledged in time: where more than a quorum must hold it, too few do.
fn too_late(in_sync_min: u32, partition: Option<&Partition>) -> ResponseError {
    let replicas = partition.map_or(0, |partition| partition.replicas.len());
    let in_sync_min = usize::try_from(in_sync_min).unwrap_or(usize::MAX).min(replicas);
    if in_sync_min > replicas / 2 + 1 {
        ResponseError::NotEnoughReplicasAfterAppend
    } else {
        ResponseError::RequestTimedOut
    }
}

fn record_error((index, why): (i32, String)) -> BatchIndexAndErrorMessage {
    BatchIndexAndErrorMessage::default()
        .with_batch_index(index)
        .with_batch_index_error_message(Some(StrBytes::from_string(why)))
}

fn busy(target: ShardId) -> String {
    format!("shard {target} has too many requests queued; try again")
}

fn batch_error(error: &BatchError) -> ResponseError {
    match error {
        BatchError::ChecksumMismatch { .. } => ResponseError::CorruptMessage,
        BatchError::UnknownCodec { .. } => ResponseError::UnsupportedCompressionType,
        _ => ResponseError::InvalidRecord,
    }
}

fn refused(index: i32, error: ResponseError, why: Option<String>) -> Outcome {
    Outcome::Known(failure(index, error, why))
}

fn failure(index: i32, error: ResponseError, why: Option<String>) -> PartitionProduceResponse {
    PartitionProduceResponse::default()
        .with_index(index)
        .with_error_code(error.code())
        .with_error_message(why.map(StrBytes::from_string))
        .with_base_offset(-1)
        .with_log_append_time_ms(-1)
        .with_log_start_offset(-1)
        .with_current_leader(LeaderIdAndEpoch::default())
}

/// Waits for every partition, until the deadline if there is one: an entry that is in the log but not committed by then
/// is answered with REQUEST_TIMED_OUT, and the client finds out by its retry.
async fn answer(
    shard: &Shard,
    topics: Vec<TopicOutcomes>,
    deadline_ns: Option<u64>,
) -> ProduceResponse {
    let left_ns = deadline_ns.map(|at| at.saturating_sub(shard.clock.now_ns()));
    let mut deadline = std::pin::pin!(async {
        match left_ns {
            Some(left_ns) => chronik_ring::sleep(Duration::from_nanos(left_ns)).await,
            None => std::future::pending().await,
        }
    });
    let mut timed_out = false;
    let mut responses = Vec::with_capacity(topics.len());
    for TopicOutcomes { topic, partitions } in topics {
        let mut answers = Vec::with_capacity(partitions.len());
        for outcome in partitions {
            answers.push(match outcome {
                Outcome::Known(response) => response,
                Outcome::Waiting { index, mut answer, too_late } => {
                    let result = if timed_out {
                        answer.try_recv().ok().flatten()
                    } else {
                        match futures_util::future::select(answer, &mut deadline).await {
                            futures_util::future::Either::Left((result, _)) => result.ok(),
                            futures_util::future::Either::Right(((), _)) => {
                                timed_out = true;
                                None
                            }
                        }
                    };
                    partition_response(index, result, too_late)
                }
            });
        }
        responses.push(topic.with_partition_responses(answers));
    }
    ProduceResponse::default().with_responses(responses)
}

fn partition_response(
    index: i32,
    result: Option<ProduceResult>,
    too_late: ResponseError,
) -> PartitionProduceResponse {
    match result {
        None => failure(index, too_late, None),
        Some(Ok(Ack::Appended(appended))) => PartitionProduceResponse::default()
            .with_index(index)
            .with_base_offset(appended.base_offset.0)
            .with_log_append_time_ms(appended.log_append_time_ms)
            .with_log_start_offset(appended.log_start_offset.0),
        Some(Ok(Ack::Command(_) | Ack::LogStart(_) | Ack::Groups)) => {
            failure(index, ResponseError::UnknownServerError, None)
        }
        Some(Err(error)) => failure(index, produce_error(&error), Some(error.to_string())),
    }
}
