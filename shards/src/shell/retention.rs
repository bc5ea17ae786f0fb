//! Retention: the leader of a partition finds out what of it is beyond the topic's limits, and lets its log start behind.
//!
//! The judgement is by segments, each as a whole, and by extents of the log: by their bytes, and by the greatest timestamp in
//! them, which is the records' own and not the time of arrival, as in Kafka. Where no record of a piece has one, the time
//! counts when its file was written; a merge, a compaction, or a copy to another node writes it anew, so such records may stay
//! longer. It ends in a command of the partition's log, so all replicas agree on the start and each takes its files back for
//! itself.
//!
//! - I1: a turn looks at each partition once, and lets others run between two of them.
//! - I2: nothing is decided here that is not also right a moment later: limits that are raised meanwhile save only what
//!   was not proposed yet.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, Offset};
use chronik_engine::segment::Segment;
use chronik_engine::wal::RetentionLimits;
use chronik_ring::{sleep, yield_if_needed};

use super::complaints::Said;
use super::shard::Shard;
use crate::catalog::Topic;
use crate::config::KafkaConfig;

/// Looks at all partitions of this shard, time and again, until the shard stops.
pub async fn retention_loop(shard: Rc<Shard>) {
    let interval = Duration::from_millis(shard.node.config.kafka.log_retention_check_interval_ms);
    loop {
        sleep(interval).await;
        if shard.stopping.get() {
            return;
        }
        check_all(&shard).await;
    }
}

async fn check_all(shard: &Rc<Shard>) {
    let catalog = shard.catalog();
    let (node, now_ms) = (shard.node.config.node_id, shard.clock.wall_ms());
    let defaults = catalog.topic_defaults();
    for topic in catalog.topics() {
        let limits = limits(topic, &defaults, &shard.node.config.kafka, now_ms);
        if limits == RetentionLimits::default() {
            continue;
        }
        for partition in &topic.partitions {
            let here = partition.placement_on(node).is_some_and(|place| place.shard == shard.id);
            if here && !shard.stopping.get() {
                check(shard, partition.group, limits).await;
                yield_if_needed().await;
            }
        }
    }
}

/// What a topic may hold at this time; nothing is limited where records are not deleted. What neither the topic says nor
/// the `defaults` that brokers were given while they run, the broker's own settings do.
fn limits(
    topic: &Topic,
    defaults: &BTreeMap<String, String>,
    broker: &KafkaConfig,
    now_ms: i64,
) -> RetentionLimits {
    let settings = &topic.settings;
    if !settings.cleanup.delete {
        return RetentionLimits::default();
    }
    let limit = |name: &str, of_topic: Option<i64>, of_broker: i64| {
        let is_said = topic.configs.contains_key(name) || defaults.contains_key(name);
        let limit = if is_said { of_topic } else { Some(of_broker) };
        limit.filter(|limit| *limit >= 0)
    };
    let bytes = limit("retention.bytes", settings.retention_bytes, broker.log_retention_bytes);
    let age_ms = limit("retention.ms", settings.retention_ms, broker.log_retention_ms);
    RetentionLimits {
        bytes_max: bytes.map(i64::unsigned_abs),
        timestamp_ms_min: age_ms.map(|age_ms| now_ms.saturating_sub(age_ms)),
    }
}

async fn check(shard: &Rc<Shard>, group: GroupId, limits: RetentionLimits) {
    let Some(view) = shard.with_core(|core| core.partition(group)).filter(|view| view.is_ready)
    else {
        return;
    };
    let (from, up_to) = (view.log_start_offset, view.high_watermark);
    let segments = dated_segments(shard, group, limits).await;
    let cut = match shard.wal.retention_cut(group, from, up_to, &segments, limits).await {
        Ok(cut) => cut,
        Err(error) => {
            // Most likely its topic was deleted meanwhile; if not, it comes again.
            if let Some(Said { partition, times }) = shard.complain(group, &error.to_string()) {
                tracing::warn!(
                    shard = shard.id.0,
                    partition,
                    times,
                    "retention passes over: {error}"
                );
            }
            return;
        }
    };
    if cut > from {
        start_log_at(shard, group, from, cut);
    }
}

/// The segments of a partition, each with the time that it is judged by.
async fn dated_segments(
    shard: &Rc<Shard>,
    group: GroupId,
    limits: RetentionLimits,
) -> Vec<Segment> {
    let mut segments: Vec<Segment> = shard.with_core(|core| {
        core.segments(group).into_iter().flat_map(|manifest| manifest.iter()).copied().collect()
    });
    let Some(oldest_ms) = limits.timestamp_ms_min else { return segments };
    let Some(tag) = shard.with_core(|core| core.tag(group)) else { return segments };
    let mut is_young = false;
    for segment in &mut segments {
        if segment.max_timestamp_ms < 0 {
            // What was written behind a young one is no older.
            segment.max_timestamp_ms = match is_young {
                true => i64::MAX,
                false => shard.segments.written_ms(&tag.named(*segment)).await.unwrap_or(-1),
            };
        }
        is_young |= segment.max_timestamp_ms >= oldest_ms;
    }
    segments
}

fn start_log_at(shard: &Rc<Shard>, group: GroupId, from: Offset, cut: Offset) {
    match shard.change_core(|core| core.propose_log_start(group, cut, None)) {
        Ok(()) => tracing::debug!(
            shard = shard.id.0,
            group = group.0,
            "retention moves the log start from {from} to {cut}"
        ),
        Err(error) => {
            tracing::debug!(shard = shard.id.0, group = group.0, "retention waits: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{TopicId, TopicSettings};
    use crate::config::{Inputs, load};

    fn topic(configs: &[(&str, &str)]) -> Topic {
        let configs: BTreeMap<String, String> =
            configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Topic {
            name: "t".into(),
            id: TopicId(uuid::Uuid::nil()),
            internal: false,
            partitions: Vec::new(),
            settings: TopicSettings::settle(&configs, &BTreeMap::new()),
            configs,
            was_relaxed: false,
        }
    }

    fn broker() -> KafkaConfig {
        let mut kafka = load(&Inputs::default()).unwrap().config.kafka;
        (kafka.log_retention_ms, kafka.log_retention_bytes) = (1_000, 50);
        kafka
    }

    fn found(configs: &[(&str, &str)]) -> (Option<u64>, Option<i64>) {
        let limits = limits(&topic(configs), &BTreeMap::new(), &broker(), 10_000);
        (limits.bytes_max, limits.timestamp_ms_min)
    }

    #[test]
    fn given_a_topic_when_it_says_nothing_then_the_broker_limits_it() {
        assert_eq!(found(&[]), (Some(50), Some(9_000)));
        assert_eq!(found(&[("retention.ms", "10")]), (Some(50), Some(9_990)));
        assert_eq!(found(&[("retention.bytes", "0")]), (Some(0), Some(9_000)));
    }

    #[test]
    fn given_a_topic_when_it_asks_for_all_then_the_broker_does_not_limit_it() {
        let all = [("retention.ms", "-1"), ("retention.bytes", "-1")];
        assert_eq!(found(&all), (None, None));
    }

    #[test]
    fn given_a_default_of_all_brokers_when_the_topic_says_nothing_then_it_counts() {
        let defaults = BTreeMap::from([("retention.bytes".to_owned(), "7".to_owned())]);
        let mut topic = topic(&[]);
        topic.settings = TopicSettings::settle(&topic.configs, &defaults);
        let limits = limits(&topic, &defaults, &broker(), 10_000);
        assert_eq!((limits.bytes_max, limits.timestamp_ms_min), (Some(7), Some(9_000)));
    }

    #[test]
    fn given_a_compacted_topic_when_it_does_not_delete_then_nothing_goes_by_age_or_size() {
        assert_eq!(found(&[("cleanup.policy", "compact")]), (None, None));
        assert_eq!(found(&[("cleanup.policy", "compact,delete")]), (Some(50), Some(9_000)));
    }
}
