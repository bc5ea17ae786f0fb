//! What each configuration is for, in a sentence or two.

/// The sentence for a topic's or a broker's configuration.
pub(super) fn of(name: &str) -> Option<&'static str> {
    DOCS.binary_search_by(|(known, _)| known.cmp(&name)).ok().map(|at| DOCS[at].1)
}

const CLEANUP: &str = "What becomes of old records: delete drops them by age and size, compact keeps the newest of \
                       each key.";
const COMPRESSION: &str = "How records are compressed at rest; producer keeps them as they came.";
const LEVEL: &str = "The level of this codec, where the broker compresses.";
const DELETE_RETENTION: &str = "How long the mark of a deleted key is kept in a compacted topic.";
const DELETE_DELAY: &str = "How long a deleted segment stays on the disk.";
const FLUSH_MESSAGES: &str =
    "After how many records the log is synced. Every acknowledged record is synced here.";
const FLUSH_MS: &str =
    "After which time the log is synced. Every acknowledged record is synced here.";
const INDEX_INTERVAL: &str = "How far apart the entries of an index are.";
const LOCAL_BYTES: &str =
    "How many bytes of a tiered partition stay on the disk; -2 takes retention.bytes.";
const LOCAL_MS: &str =
    "How long records of a tiered partition stay on the disk; -2 takes retention.ms.";
const LAG_MAX: &str = "How long a record may at most escape compaction.";
const LAG_MIN: &str = "How long a record stays at least uncompacted.";
const MESSAGE_BYTES: &str = "The largest record batch that is taken, after compression.";
const TIME_AFTER: &str = "How far ahead of the broker's clock a timestamp may be.";
const TIME_BEFORE: &str = "How far behind the broker's clock a timestamp may be.";
const TIME_TYPE: &str = "Whether a record bears the time of its producer (CreateTime) or of its appending \
                         (LogAppendTime).";
const DIRTY_RATIO: &str = "The part of a log that must be uncompacted before it is compacted.";
const INSYNC: &str = "How many replicas must have a record before acks=all is answered.";
const PREALLOCATE: &str = "Whether files are made at their full size. Here they are in any case.";
const RETENTION_BYTES: &str = "How many bytes a partition keeps; -1 sets no limit.";
const RETENTION_MS: &str = "How long records are kept; -1 sets no limit.";
const SEGMENT_BYTES: &str = "The size at which a segment is sealed.";
const SEGMENT_INDEX: &str = "The size of a segment's index.";
const SEGMENT_JITTER: &str = "By how much the sealing of segments is spread.";
const SEGMENT_MS: &str = "The age at which a segment is sealed.";
const UNCLEAN: &str = "Whether a replica that may lack records can lead. A quorum never lets it.";

/// In the order of the names.
static DOCS: [(&str, &str); 93] = [
    ("advertised.listeners", "Where clients are told to connect."),
    (
        "auto.create.topics.enable",
        "Whether a topic is made when a client asks for one that is not there.",
    ),
    (
        "auto.leader.rebalance.enable",
        "Whether leaderships go back to the preferred replicas when those are in sync again.",
    ),
    ("broker.id", "The id of this broker."),
    ("broker.rack", "Where this broker stands, for replicas apart and consumers close by."),
    ("cleanup.policy", CLEANUP),
    ("compression.gzip.level", LEVEL),
    ("compression.lz4.level", LEVEL),
    ("compression.type", COMPRESSION),
    ("compression.zstd.level", LEVEL),
    ("connections.max.idle.ms", "A connection without a request for so long is closed."),
    ("default.replication.factor", "Replicas of a partition whose creator does not say."),
    ("delete.retention.ms", DELETE_RETENTION),
    ("delete.topic.enable", "Whether topics can be deleted."),
    (
        "durability",
        "What an acknowledgement promises: that the record is on the disks of a quorum (durable), or in its memory and on the way there (relaxed). Relaxed, it is lost if a majority of the replicas fails before its disks have it, one of them by a crash; of a single replica if that crashes. Consumers see what is durable, whatever is set here.",
    ),
    ("fetch.max.bytes", "The largest answer to a fetch, whatever the client asks for."),
    ("file.delete.delay.ms", DELETE_DELAY),
    ("flush.messages", FLUSH_MESSAGES),
    ("flush.ms", FLUSH_MS),
    ("follower.replication.throttled.rate", "How much this broker copies for its replicas."),
    ("follower.replication.throttled.replicas", "Replicas whose following is throttled."),
    ("group.initial.rebalance.delay.ms", "How long the first member of a group waits for others."),
    ("group.max.session.timeout.ms", "The longest session timeout that a member may ask for."),
    ("group.max.size", "How many members a group may have."),
    ("group.min.session.timeout.ms", "The shortest session timeout that a member may ask for."),
    ("index.interval.bytes", INDEX_INTERVAL),
    (
        "leader.imbalance.check.interval.seconds",
        "How often it is looked for partitions that another than their preferred replica leads.",
    ),
    ("leader.replication.throttled.rate", "Without effect: who copies is throttled."),
    ("leader.replication.throttled.replicas", "Replicas whose leading is throttled."),
    ("listeners", "Where this broker listens for clients."),
    ("local.retention.bytes", LOCAL_BYTES),
    ("local.retention.ms", LOCAL_MS),
    ("log.cleaner.backoff.ms", "How often it is looked for segments to compact or to merge."),
    ("log.cleaner.dedupe.buffer.size", "Memory for the keys of one round of compaction."),
    ("log.cleaner.delete.retention.ms", DELETE_RETENTION),
    (
        "log.cleaner.io.max.bytes.per.second",
        "How much compaction and merging may read and write together.",
    ),
    ("log.cleaner.max.compaction.lag.ms", LAG_MAX),
    ("log.cleaner.min.cleanable.ratio", DIRTY_RATIO),
    ("log.cleaner.min.compaction.lag.ms", LAG_MIN),
    ("log.cleanup.policy", CLEANUP),
    ("log.dirs", "Where this broker stores everything."),
    ("log.flush.interval.messages", FLUSH_MESSAGES),
    ("log.flush.interval.ms", FLUSH_MS),
    ("log.index.interval.bytes", INDEX_INTERVAL),
    ("log.index.size.max.bytes", SEGMENT_INDEX),
    ("log.local.retention.bytes", LOCAL_BYTES),
    ("log.local.retention.ms", LOCAL_MS),
    ("log.message.timestamp.after.max.ms", TIME_AFTER),
    ("log.message.timestamp.before.max.ms", TIME_BEFORE),
    ("log.message.timestamp.type", TIME_TYPE),
    ("log.preallocate", PREALLOCATE),
    ("log.retention.bytes", RETENTION_BYTES),
    (
        "log.retention.check.interval.ms",
        "How often it is looked for records beyond their retention.",
    ),
    ("log.retention.ms", RETENTION_MS),
    ("log.roll.jitter.ms", SEGMENT_JITTER),
    ("log.roll.ms", SEGMENT_MS),
    ("log.segment.bytes", SEGMENT_BYTES),
    ("log.segment.delete.delay.ms", DELETE_DELAY),
    ("max.compaction.lag.ms", LAG_MAX),
    ("max.connections", "How many connections this broker takes."),
    ("max.incremental.fetch.session.cache.slots", "How many fetch sessions are remembered."),
    ("max.message.bytes", MESSAGE_BYTES),
    ("message.max.bytes", MESSAGE_BYTES),
    ("message.timestamp.after.max.ms", TIME_AFTER),
    ("message.timestamp.before.max.ms", TIME_BEFORE),
    ("message.timestamp.type", TIME_TYPE),
    ("min.cleanable.dirty.ratio", DIRTY_RATIO),
    ("min.compaction.lag.ms", LAG_MIN),
    ("min.insync.replicas", INSYNC),
    ("node.id", "The id of this node."),
    ("num.partitions", "Partitions of a topic whose creator does not say."),
    (
        "offset.metadata.max.bytes",
        "The longest metadata that may be committed with an offset, in characters as Java counts them.",
    ),
    ("offsets.retention.check.interval.ms", "How often it is looked for offsets to forget."),
    ("offsets.retention.minutes", "How long offsets outlive the last member of their group."),
    (
        "offsets.topic.num.partitions",
        "Partitions of __consumer_offsets, fixed when the first group is formed.",
    ),
    ("preallocate", PREALLOCATE),
    (
        "process.roles",
        "What this node does: it serves clients and takes part in the metadata quorum.",
    ),
    (
        "producer.id.expiration.ms",
        "An idempotent producer that is silent for so long is forgotten.",
    ),
    ("remote.log.copy.disable", "Whether a tiered topic stops uploading."),
    (
        "remote.log.delete.on.disable",
        "Whether what was uploaded goes when tiering is switched off.",
    ),
    ("remote.storage.enable", "Whether the topic is tiered."),
    (
        "replica.alter.log.dirs.io.max.bytes.per.second",
        "Without effect: a broker has one directory.",
    ),
    (
        "replica.lag.time.max.ms",
        "How long a replica may lack what the others have and still count as in sync.",
    ),
    ("replica.selector.class", "Which replica of a partition consumers are sent to."),
    ("retention.bytes", RETENTION_BYTES),
    ("retention.ms", RETENTION_MS),
    ("searchable.enabled", "Whether the topic's records can be searched."),
    ("segment.bytes", SEGMENT_BYTES),
    ("segment.index.bytes", SEGMENT_INDEX),
    ("segment.jitter.ms", SEGMENT_JITTER),
    ("segment.ms", SEGMENT_MS),
    ("socket.request.max.bytes", "The largest request."),
    ("unclean.leader.election.enable", UNCLEAN),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{broker_config_of, config_definitions};

    #[test]
    fn given_any_configuration_of_a_topic_when_its_sentence_is_sought_then_there_is_one() {
        assert!(DOCS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for definition in config_definitions() {
            assert!(of(definition.name).is_some(), "{}", definition.name);
            if let Some(broker) = broker_config_of(definition.name) {
                assert!(of(broker).is_some(), "{broker}");
            }
        }
    }
}
