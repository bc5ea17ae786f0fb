//! DescribeLogDirs: how much of the disk each partition takes.
//!
//! A partition has no directory of its own: its records lie in the log of its shard, between those of others. Its size
//! is what its entries take there, without the padding of blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, ShardId};
use chronik_ring::yield_if_needed;
use futures_util::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};
use kafka_protocol::protocol::StrBytes;

use crate::catalog::{Catalog, Topic};
use crate::shell::shard::Shard;

/// From this version on the answer says how large the volume is (KIP-827).
const VOLUME_VERSION_MIN: i16 = 4;
/// What is said of a volume that does not tell.
const UNKNOWN_BYTES: i64 = -1;

/// A partition that is to be measured.
struct Measured {
    number: i32,
    shard: ShardId,
    group: GroupId,
}

/// Serves DescribeLogDirs. Cancel-safe.
pub async fn describe_log_dirs(
    shard: Rc<Shard>,
    version: i16,
    request: DescribeLogDirsRequest,
) -> DescribeLogDirsResponse {
    let catalog = shard.catalog();
    let asked = asked(&shard, &catalog, request.topics);
    let mut by_shard: BTreeMap<ShardId, Vec<GroupId>> = BTreeMap::new();
    for partition in asked.iter().flat_map(|(_, partitions)| partitions) {
        by_shard.entry(partition.shard).or_default().push(partition.group);
    }
    let sizes = by_shard.into_iter().map(|(target, groups)| {
        shard.on(target, move |there| async move {
            let mut sizes = Vec::with_capacity(groups.len());
            for group in groups {
                sizes.push((group, there.size_bytes(group).await));
                yield_if_needed().await;
            }
            sizes
        })
    });
    let sizes: BTreeMap<GroupId, u64> =
        join_all(sizes).await.into_iter().filter_map(Result::ok).flatten().collect();
    let topics = asked.into_iter().map(|(topic, partitions)| {
        let partitions = partitions.into_iter().map(|partition| {
            let bytes = sizes.get(&partition.group).copied().unwrap_or(0);
            DescribeLogDirsPartition::default()
                .with_partition_index(partition.number)
                .with_partition_size(i64::try_from(bytes).unwrap_or(i64::MAX))
        });
        DescribeLogDirsTopic::default()
            .with_name(StrBytes::from_string(topic.name.to_string()).into())
            .with_partitions(partitions.collect())
    });
    let data_dir = &shard.node.config.data_dir;
    let dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.clone());
    let mut result = DescribeLogDirsResult::default()
        .with_error_code(if shard.wal.is_poisoned() {
            ResponseError::KafkaStorageError.code()
        } else {
            0
        })
        .with_log_dir(StrBytes::from_string(dir.to_string_lossy().into_owned()))
        .with_topics(topics.collect());
    if version >= VOLUME_VERSION_MIN {
        let (total, usable) = volume(&dir);
        result = result.with_total_bytes(total).with_usable_bytes(usable);
    }
    DescribeLogDirsResponse::default().with_results(vec![result])
}

/// The partitions that the request names, each once, or all of them. What does not exist has no size and is left out.
fn asked(
    shard: &Shard,
    catalog: &Catalog,
    topics: Option<Vec<DescribableLogDirTopic>>,
) -> Vec<(Arc<Topic>, Vec<Measured>)> {
    let node = shard.node.config.node_id;
    let measured = |topic: &Topic, number: i32| {
        let partition = topic.partition(number)?;
        let shard = partition.placement_on(node)?.shard;
        Some(Measured { number, shard, group: partition.group })
    };
    let Some(named) = topics else {
        let all = catalog.topics().map(|topic| {
            let numbers = (0..).zip(&topic.partitions);
            let partitions = numbers.filter_map(|(number, _)| measured(topic, number)).collect();
            (Arc::clone(topic), partitions)
        });
        return all.collect();
    };
    let mut numbers: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for topic in named {
        numbers.entry(topic.topic.to_string()).or_default().extend(topic.partitions);
    }
    let found = numbers.into_iter().filter_map(|(name, numbers)| {
        let topic = catalog.topic(&name)?;
        let partitions: Vec<Measured> =
            numbers.into_iter().filter_map(|number| measured(topic, number)).collect();
        (!partitions.is_empty()).then(|| (Arc::clone(topic), partitions))
    });
    found.collect()
}

/// How large the volume is, and how much of it a process without privileges may still use.
fn volume(dir: &Path) -> (i64, i64) {
    let Ok(volume) = rustix::fs::statvfs(dir) else { return (UNKNOWN_BYTES, UNKNOWN_BYTES) };
    let bytes =
        |blocks: u64| i64::try_from(blocks.saturating_mul(volume.f_frsize)).unwrap_or(i64::MAX);
    (bytes(volume.f_blocks), bytes(volume.f_bavail))
}
