//! The declaration of every counter and gauge of a shard.

/// How the shards' values become the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Merge {
    Sum,
    Max,
}

/// Prometheus' metric types, of those that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricType {
    Counter,
    Gauge,
}

/// Which labels a metric's samples carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// One sample per shard, labelled `shard`.
    Shard,
    /// One sample for the node, labelled `node_id`.
    Node,
}

/// One declared metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct MetricInfo {
    pub name: &'static str,
    pub metric_type: MetricType,
    pub scope: Scope,
    pub help: &'static str,
    pub value: fn(&Counters) -> u64,
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $field:ident: $name:literal $type:ident $merge:ident $scope:ident;)*) => {
        /// The plain numbers of a shard. Counters only grow; gauges are set.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $help])+ pub $field: u64,)*
        }

        pub(super) static METRICS: &[MetricInfo] = &[
            $(MetricInfo {
                name: $name,
                metric_type: MetricType::$type,
                scope: Scope::$scope,
                help: concat!($($help),+),
                value: |counters| counters.$field,
            },)*
        ];

        impl Counters {
            /// Takes another shard's numbers in, each as its declaration says.
            pub fn merge(&mut self, other: &Counters) {
                $(self.$field = merged(Merge::$merge, self.$field, other.$field);)*
            }
        }
    };
}

fn merged(how: Merge, one: u64, other: u64) -> u64 {
    match how {
        Merge::Sum => one.saturating_add(other),
        Merge::Max => one.max(other),
    }
}

counters! {
    /// Produce requests answered, successful or not.
    produce_requests: "chronik_produce_requests_total" Counter Sum Shard;
    /// Bytes of record batches appended for producers.
    produce_bytes: "chronik_produce_bytes_total" Counter Sum Shard;
    /// Record batches appended for producers.
    produce_batches: "chronik_produce_batches_total" Counter Sum Shard;
    /// Batches acknowledged, as durable as the producer asked for.
    acks_durable: "chronik_produce_acks_durable_total" Counter Sum Shard;
    /// Batches of topics with durability=relaxed that were acknowledged when they were in memory.
    acks_relaxed: "chronik_produce_acks_relaxed_total" Counter Sum Shard;
    /// Fetch requests answered, successful or not.
    fetch_requests: "chronik_fetch_requests_total" Counter Sum Shard;
    /// Bytes of record batches sent to consumers.
    fetch_bytes: "chronik_fetch_bytes_total" Counter Sum Shard;
    /// Connections open now.
    connections: "chronik_connections" Gauge Sum Shard;
    /// Connections accepted.
    connections_accepted: "chronik_connections_accepted_total" Counter Sum Shard;
    /// Connections refused because of connections_max.
    connections_refused: "chronik_connections_refused_total" Counter Sum Shard;
    /// Connections moved to the core that most of their requests belong to.
    connections_moved: "chronik_connections_moved_total" Counter Sum Shard;
    /// Bytes written to the write-ahead log, padding included.
    wal_bytes: "chronik_wal_bytes_written_total" Counter Sum Shard;
    /// Blocks written to the write-ahead log; each is one group commit.
    wal_blocks: "chronik_wal_blocks_written_total" Counter Sum Shard;
    /// Syncs of the write-ahead log.
    wal_syncs: "chronik_wal_syncs_total" Counter Sum Shard;
    /// Times that the disk left the write-ahead log without an answer for 2 s, and leaderships went to other nodes.
    wal_stalls: "chronik_wal_stalls_total" Counter Sum Shard;
    /// Position in the active file of the write-ahead log, in bytes.
    wal_position_bytes: "chronik_wal_position_bytes" Gauge Sum Shard;
    /// Files of the write-ahead log.
    wal_files: "chronik_wal_files" Gauge Sum Shard;
    /// Segments written of what full files of the log hold.
    segments_written: "chronik_segments_written_total" Counter Sum Shard;
    /// Bytes of segments written of what full files of the log hold.
    segment_bytes_written: "chronik_segment_bytes_written_total" Counter Sum Shard;
    /// Reads of full log files for segments that failed; what cannot be read of a partition stays in the log.
    segment_source_failures: "chronik_segment_source_failures_total" Counter Sum Shard;
    /// Bytes of records copied from other nodes for replicas that lacked them.
    fill_bytes: "chronik_fill_bytes_total" Counter Sum Shard;
    /// Repairs: records that could not be read any more and were copied from another replica.
    repairs: "chronik_repairs_total" Counter Sum Shard;
    /// Repairs that failed; they are tried again.
    repair_failures: "chronik_repair_failures_total" Counter Sum Shard;
    /// Segments there are.
    segments: "chronik_segments" Gauge Sum Shard;
    /// Bytes of the segments there are.
    segment_bytes: "chronik_segment_bytes" Gauge Sum Shard;
    /// Merges of small segments into one.
    segment_merges: "chronik_segment_merges_total" Counter Sum Shard;
    /// Rounds of compaction.
    compactions: "chronik_compactions_total" Counter Sum Shard;
    /// Rounds of compaction or merging of a partition that failed; its segments stay as they are.
    compaction_failures: "chronik_compaction_failures_total" Counter Sum Shard;
    /// Rounds of compaction or merging that were put off: there was too little room on the disk for what they write.
    compactions_put_off: "chronik_compactions_put_off_total" Counter Sum Shard;
    /// Bytes that compaction has read to write them anew.
    compaction_bytes_read: "chronik_compaction_bytes_read_total" Counter Sum Shard;
    /// Bytes that compaction has written.
    compaction_bytes_written: "chronik_compaction_bytes_written_total" Counter Sum Shard;
    /// Memory of the tail cache.
    tail_cache_bytes: "chronik_tail_cache_bytes" Gauge Sum Shard;
    /// Fetches of a partition served from the tail cache.
    tail_cache_hits: "chronik_tail_cache_hits_total" Counter Sum Shard;
    /// Fetches of a partition that had to read the log.
    tail_cache_misses: "chronik_tail_cache_misses_total" Counter Sum Shard;
    /// Bytes of requests in flight.
    in_flight_bytes: "chronik_in_flight_bytes" Gauge Sum Shard;
    /// Entries that wait for the write in flight to end.
    queue_depth: "chronik_commit_queue_depth" Gauge Sum Shard;
    /// Fetches that wait for records.
    fetch_waiters: "chronik_fetch_waiters" Gauge Sum Shard;
    /// Partitions of the shard, and the catalog on shard 0.
    partitions: "chronik_partitions" Gauge Sum Shard;
    /// Partitions led from this shard.
    leaders: "chronik_leaders" Gauge Sum Shard;
    /// Partitions led from this shard of which a replica is not in sync.
    under_replicated: "chronik_under_replicated_partitions" Gauge Sum Shard;
    /// Partitions with a replica on this shard that nobody leads, as far as it knows.
    offline: "chronik_offline_partitions" Gauge Sum Shard;
    /// Replicas of this shard for readers alone: those of a read-only node.
    read_only_replicas: "chronik_read_only_replicas" Gauge Sum Shard;
    /// Partitions led from this shard of which a read-only replica does not answer or is behind.
    read_only_behind: "chronik_read_only_behind_partitions" Gauge Sum Shard;
    /// Whether produce is refused because the disk is full.
    storage_full: "chronik_storage_full" Gauge Max Shard;
    /// Consumer groups coordinated here.
    groups: "chronik_groups" Gauge Sum Shard;
    /// Members of consumer groups.
    group_members: "chronik_group_members" Gauge Sum Shard;
    /// Commits of offsets.
    group_commits: "chronik_group_commits_total" Counter Sum Shard;
    /// Rebalances begun.
    group_rebalances: "chronik_group_rebalances_total" Counter Sum Shard;
    /// Members that were not heard of for the length of their session.
    group_members_expired: "chronik_group_members_expired_total" Counter Sum Shard;
    /// Elections this node's replicas have won.
    raft_leader_elections: "raft_leader_elections_total" Counter Sum Node;
    /// Messages of other replicas that were refused: forged, of a former placement, or such as no correct peer sends.
    raft_messages_refused: "chronik_raft_messages_refused_total" Counter Sum Node;
    /// AppendEntries messages sent.
    raft_append_entries: "raft_append_entries_total" Counter Sum Node;
    /// Vote requests sent, those included that only ask whether an election would be won.
    raft_vote_requests: "raft_vote_requests_total" Counter Sum Node;
    /// Heartbeats sent.
    raft_heartbeats: "raft_heartbeats_total" Counter Sum Node;
    /// Entries held in the Raft logs of all partitions.
    raft_log_entries: "raft_log_entries" Gauge Sum Node;
    /// The highest term of any partition.
    raft_current_term: "raft_current_term" Gauge Max Node;
    /// The highest commit index of any partition.
    raft_commit_index: "raft_commit_index" Gauge Max Node;
}
