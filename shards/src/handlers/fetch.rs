//! Fetch: what there is beyond an offset, or the wait until there is something.
//!
//! A fetch reads all its partitions, those of one shard together. If that comes to less than `min_bytes` it waits on all
//! shards concerned until the first of them has more, reads again, and so on until `max_wait_ms` has passed. Sizes are
//! bounded by the request and by `fetch.max.bytes`; whole batches only, and at least one if there is any (KIP-74).
//!
//! Any replica serves consumers up to its own high watermark. Where `replica.selector.class` says so, a leader sends those
//! that name their rack to a replica there (KIP-392).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, NodeId, Offset, ReplicaId, ShardId};
use chronik_net::{FetchPartitionParts, FetchResponseParts, FetchTopicParts, RecordChunk};
use futures_util::future::{Either, join_all, select};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::protocol::StrBytes;

use super::error_code::fetch_error;
use super::fetch_session::{Answering, PartitionKey, Told, Wanted};
use super::metadata::broker_id;
use super::routing::{Route, resolve_topic};
use crate::catalog::{Catalog, Partition};
use crate::config::ReplicaSelector;
use crate::core::WaiterId;
use crate::shell::read::{PartitionData, PartitionRead};
use crate::shell::replies::ReplyTo;
use crate::shell::shard::Shard;

/// From this version on topics are named by id (KIP-516).
const TOPIC_ID_VERSION_MIN: i16 = 13;

/// From this version on consumers name their rack, and know what to do with replicas that follow (KIP-392).
const ANY_REPLICA_VERSION_MIN: i16 = 11;

/// The longest that a fetch may wait, whatever it asks for.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// One partition of a fetch, and what became of it.
struct Item {
    key: PartitionKey,
    wanted: Wanted,
    route: Result<Route, ResponseError>,
    /// Replicas that are closer to the client than this node is.
    closer: Vec<(NodeId, ReplicaId)>,
    data: Result<PartitionData, ResponseError>,
}

/// Serves a fetch. Cancel-safe: dropping it takes back what waits on other cores.
pub async fn fetch(shard: Rc<Shard>, version: i16, request: FetchRequest) -> FetchResponseParts {
    let by_id = version >= TOPIC_ID_VERSION_MIN;
    let begun = {
        let now_ns = shard.clock.now_ns();
        shard.sessions.borrow_mut().begin(&request, by_id, now_ns)
    };
    let (answering, wanted) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            return FetchResponseParts {
                error_code: error.code(),
                ..FetchResponseParts::default()
            };
        }
    };
    let catalog = shard.catalog();
    let node = shard.node.config.node_id;
    let is_from_any = version >= ANY_REPLICA_VERSION_MIN;
    let rack = client_rack(&shard, &request).filter(|_| is_from_any);
    let mut items: Vec<Item> = wanted
        .into_iter()
        .map(|(key, wanted)| {
            let topic = resolve_topic(&catalog, &key.topic, key.topic_id, by_id);
            let route = topic
                .and_then(|topic| Route::of(topic, key.partition, node))
                .map_err(super::routing::RouteError::response_error);
            let closer = rack.and_then(|rack| {
                Some(closer_replicas(&catalog, topic.ok()?.partition(key.partition)?, rack, node))
            });
            let closer = closer.unwrap_or_default();
            Item { key, wanted, route, closer, data: Ok(PartitionData::default()) }
        })
        .collect();
    let limits = Limits { is_from_any, ..Limits::of(&shard, &request) };
    collect(&shard, &mut items, &limits).await;
    respond(&shard, answering, items)
}

/// The rack of a client that is to be sent to a replica there, if this node does so.
fn client_rack<'a>(shard: &Shard, request: &'a FetchRequest) -> Option<&'a str> {
    let selector = shard.node.config.kafka.replica_selector_class;
    let is_rack_aware = selector == ReplicaSelector::RackAware && shard.links().is_some();
    (is_rack_aware && !request.rack_id.is_empty()).then_some(&*request.rack_id)
}

/// The replicas in a rack, those for readers first; none if this node stands there itself. A read-only node that is drained
/// has no new readers.
fn closer_replicas(
    catalog: &Catalog,
    partition: &Partition,
    rack: &str,
    here: NodeId,
) -> Vec<(NodeId, ReplicaId)> {
    let of_rack = |node| catalog.broker(node).filter(|b| b.rack.as_deref() == Some(rack));
    if of_rack(here).is_some() {
        return Vec::new();
    }
    let takes_readers =
        |node| of_rack(node).is_some_and(|broker| !(broker.is_read_only && broker.is_cordoned));
    let all = partition.readers.iter().chain(&partition.replicas);
    let there = all.filter(|place| takes_readers(place.node));
    there.map(|place| (place.node, place.replica)).collect()
}

struct Limits {
    bytes_min: usize,
    bytes_max: usize,
    wait: Duration,
    /// Whether replicas that follow may answer.
    is_from_any: bool,
}

impl Limits {
    fn of(shard: &Shard, request: &FetchRequest) -> Limits {
        let bytes_max = usize::try_from(request.max_bytes)
            .unwrap_or(0)
            .min(shard.node.config.kafka.fetch_max_bytes);
        let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        Limits {
            bytes_min: usize::try_from(request.min_bytes).unwrap_or(0).min(bytes_max),
            bytes_max,
            wait: wait.min(WAIT_MAX),
            is_from_any: false,
        }
    }
}

/// Reads until there is enough, an error to report, or no time left.
async fn collect(shard: &Rc<Shard>, items: &mut [Item], limits: &Limits) {
    let deadline_ns = shard.clock.now_ns() + u64::try_from(limits.wait.as_nanos()).unwrap_or(0);
    loop {
        read_all(shard, items, limits).await;
        let bytes: usize = items.iter().map(Item::bytes).sum();
        let is_told =
            |item: &Item| item.data.as_ref().map_or(true, |data| data.preferred.is_some());
        let failed = items.iter().any(is_told);
        let left_ns = deadline_ns.saturating_sub(shard.clock.now_ns());
        let over = left_ns == 0 || shard.is_draining();
        if bytes >= limits.bytes_min || failed || over || items.is_empty() {
            return;
        }
        if !wait_for_any(shard, items, Duration::from_nanos(left_ns)).await {
            return;
        }
    }
}

impl Item {
    fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, |data| data.bytes)
    }
}

/// Reads every partition, the shards side by side.
async fn read_all(shard: &Rc<Shard>, items: &mut [Item], limits: &Limits) {
    let bytes_max = limits.bytes_max;
    let mut by_shard: BTreeMap<ShardId, Vec<PartitionRead>> = BTreeMap::new();
    for (slot, item) in items.iter_mut().enumerate() {
        match item.route {
            Ok(route) => by_shard.entry(route.shard).or_default().push(PartitionRead {
                slot,
                group: route.group,
                offset: item.wanted.offset,
                bytes_max: usize::try_from(item.wanted.bytes_max).unwrap_or(0),
                current_leader_epoch: item.wanted.current_leader_epoch,
                is_from_any: limits.is_from_any,
                closer: item.closer.clone(),
            }),
            Err(error) => item.data = Err(error),
        }
    }
    let slots: Vec<Vec<usize>> =
        by_shard.values().map(|reads| reads.iter().map(|read| read.slot).collect()).collect();
    // Each shard gets its part of the answer, so that nothing is read to be thrown away.
    let share = bytes_max.div_ceil(by_shard.len().max(1));
    let answers = join_all(
        by_shard
            .into_iter()
            .map(|(target, reads)| shard.on(target, move |there| there.read(reads, share))),
    )
    .await;
    for (answer, slots) in answers.into_iter().zip(slots) {
        match answer {
            Ok(results) => {
                for result in results {
                    items[result.slot].data = result.result.map_err(|e| fetch_error(&e));
                }
            }
            Err(_) => {
                for slot in slots {
                    items[slot].data = Err(ResponseError::NotLeaderOrFollower);
                }
            }
        }
    }
    keep_within(items, bytes_max);
}

/// Each shard gives out a first batch whatever its size; what goes beyond the limit together is read again next time.
fn keep_within(items: &mut [Item], bytes_max: usize) {
    let mut left = bytes_max;
    let mut first = true;
    for data in items.iter_mut().filter_map(|item| item.data.as_mut().ok()) {
        if data.bytes == 0 {
            continue;
        }
        if data.bytes > left && !first {
            data.chunks.clear();
            data.bytes = 0;
        }
        left = left.saturating_sub(data.bytes);
        first = false;
    }
}

/// A wait on several shards; gives all of it up when dropped.
struct Waiting {
    shard: Rc<Shard>,
    waiter: WaiterId,
    targets: Vec<ShardId>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiter = self.waiter;
        for target in &self.targets {
            // If the other shard cannot be told now, it forgets the waiter when it next has data for it.
            _ = self.shard.post(*target, move |there| there.forget_waiter(waiter));
        }
    }
}

/// Waits until a partition has more than what was read, or the time is over. Says whether one has.
async fn wait_for_any(shard: &Rc<Shard>, items: &[Item], at_most: Duration) -> bool {
    let mut beyond: BTreeMap<ShardId, Vec<(GroupId, Offset)>> = BTreeMap::new();
    for item in items {
        if let (Ok(route), Ok(data)) = (item.route, &item.data) {
            beyond.entry(route.shard).or_default().push((route.group, data.high_watermark));
        }
    }
    let waiter = shard.new_waiter();
    let waiting =
        Waiting { shard: Rc::clone(shard), waiter, targets: beyond.keys().copied().collect() };
    let mut wakes = Vec::with_capacity(beyond.len());
    for (target, beyond) in beyond {
        let (wake, woken) = ReplyTo::channel(shard.id);
        if shard.post(target, move |there| there.wait_for_data(waiter, &beyond, wake)).is_ok() {
            wakes.push(woken);
        }
    }
    let timeout = std::pin::pin!(chronik_ring::sleep(at_most));
    let woken = if wakes.is_empty() {
        timeout.await;
        false
    } else {
        matches!(
            select(futures_util::future::select_all(wakes), timeout).await,
            Either::Left(((Ok(()), _, _), _))
        )
    };
    drop(waiting);
    woken
}

fn count(shard: &Shard, topics: &[FetchTopicParts]) {
    let mut metrics = shard.metrics.borrow_mut();
    metrics.counters.fetch_requests += 1;
    for partition in topics.iter().flat_map(|topic| &topic.partitions) {
        metrics.fetch_errors.record(partition.error_code);
        let bytes: usize = partition.records.iter().map(RecordChunk::size).sum();
        metrics.counters.fetch_bytes += bytes as u64;
    }
}

fn respond(shard: &Shard, answering: Answering, items: Vec<Item>) -> FetchResponseParts {
    let mut sessions = shard.sessions.borrow_mut();
    let mut topics: Vec<FetchTopicParts> = Vec::new();
    // Who is behind may have caught up by the next fetch: it says so only where the whole wait was in vain.
    let tells_ahead = items.iter().all(|item| item.bytes() == 0);
    for item in items {
        let key = item.key.clone();
        let parts = partition_parts(item, tells_ahead);
        let told = Told {
            error_code: parts.error_code,
            high_watermark: parts.high_watermark,
            log_start_offset: parts.log_start_offset,
        };
        let has_news = !parts.records.is_empty() || parts.preferred_read_replica >= 0;
        if !sessions.must_tell(answering, &key, told, has_news) {
            continue;
        }
        let same = |topic: &FetchTopicParts| {
            topic.topic_id == key.topic_id && topic.topic.as_str() == key.topic
        };
        if topics.last().is_none_or(|topic| !same(topic)) {
            topics.push(FetchTopicParts {
                topic: StrBytes::from_string(key.topic.clone()).into(),
                topic_id: key.topic_id,
                partitions: Vec::new(),
            });
        }
        if let Some(topic) = topics.last_mut() {
            topic.partitions.push(parts);
        }
    }
    count(shard, &topics);
    FetchResponseParts {
        session_id: answering.session_id(),
        topics,
        ..FetchResponseParts::default()
    }
}

fn partition_parts(item: Item, tells_ahead: bool) -> FetchPartitionParts {
    let partition_index = item.key.partition;
    match item.data {
        Ok(data) if data.is_ahead && tells_ahead => FetchPartitionParts {
            partition_index,
            error_code: ResponseError::OffsetNotAvailable.code(),
            ..FetchPartitionParts::default()
        },
        Ok(data) => FetchPartitionParts {
            partition_index,
            high_watermark: data.high_watermark.0,
            last_stable_offset: data.high_watermark.0,
            log_start_offset: data.log_start_offset.0,
            records: data.chunks,
            preferred_read_replica: data.preferred.map_or(-1, |node| broker_id(node.0).0),
            ..FetchPartitionParts::default()
        },
        Err(error) => FetchPartitionParts {
            partition_index,
            error_code: error.code(),
            ..FetchPartitionParts::default()
        },
    }
}
