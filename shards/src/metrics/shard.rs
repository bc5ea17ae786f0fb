//! The figures of one shard, and the copy of them that leaves the core.

use chronik_engine::ids::ShardId;
use chronik_replication::peers::{PeerStats, Refusals};
use hdrhistogram::Histogram;

use super::cluster::SnapshotSample;
use super::counters::Counters;

/// Times above this count as this much.
const TIME_NS_MAX: u64 = 60_000_000_000;
/// Three digits: quantiles are right to 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Kafka's error codes are -1 and up; codes beyond this share the last slot.
const ERROR_CODE_MAX: i16 = 140;
const ERROR_SLOTS: usize = 142;
const _: () = assert!(ERROR_SLOTS == ERROR_CODE_MAX as usize + 2, "one slot per code from -1");

/// A stage that requests pass through, timed on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From the first byte of a request to its last.
    Receive,
    /// From the proposal to the start of the write that takes it.
    Queue,
    /// The write of a block.
    WalWrite,
    /// The sync after it.
    WalSync,
    /// From the proposal to its commit; of a batch to its acknowledgement.
    Commit,
    /// From the answer to its last byte in the socket.
    Respond,
    /// A produce request from its last byte to its answer.
    ProduceTotal,
    /// A fetch request, its waiting for records included.
    FetchTotal,
    /// How late the core comes to its tick, as to whatever else becomes ready: it was busy, or had no processor.
    TickLate,
}

impl Stage {
    /// In the order a request meets them; what is of no request comes last.
    pub const ALL: [Stage; 9] = [
        Stage::Receive,
        Stage::Queue,
        Stage::WalWrite,
        Stage::WalSync,
        Stage::Commit,
        Stage::Respond,
        Stage::ProduceTotal,
        Stage::FetchTotal,
        Stage::TickLate,
    ];

    /// The name in labels, tables and queries.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Receive => "receive",
            Stage::Queue => "queue",
            Stage::WalWrite => "wal_write",
            Stage::WalSync => "wal_sync",
            Stage::Commit => "commit",
            Stage::Respond => "respond",
            Stage::ProduceTotal => "produce_total",
            Stage::FetchTotal => "fetch_total",
            Stage::TickLate => "tick_late",
        }
    }

    /// The stage of that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| stage.name() == name)
    }

    const fn slot(self) -> usize {
        match self {
            Stage::Receive => 0,
            Stage::Queue => 1,
            Stage::WalWrite => 2,
            Stage::WalSync => 3,
            Stage::Commit => 4,
            Stage::Respond => 5,
            Stage::ProduceTotal => 6,
            Stage::FetchTotal => 7,
            Stage::TickLate => 8,
        }
    }
}

/// The times of one stage.
#[derive(Debug, Clone)]
pub struct StageTimes {
    pub histogram: Histogram<u64>,
    /// The exact sum, which the histogram does not keep.
    pub sum_ns: u64,
}

impl StageTimes {
    fn new() -> Self {
        let Ok(histogram) = Histogram::new_with_bounds(1, TIME_NS_MAX, SIGNIFICANT_DIGITS) else {
            unreachable!("the bounds are constants that histograms can have")
        };
        StageTimes { histogram, sum_ns: 0 }
    }

    fn record(&mut self, took_ns: u64) {
        self.histogram.saturating_record(took_ns);
        self.sum_ns = self.sum_ns.saturating_add(took_ns);
    }

    fn merge(&mut self, other: &StageTimes) {
        let added = self.histogram.add(&other.histogram);
        assert!(added.is_ok(), "all histograms have the same bounds");
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
}

/// How often each Kafka error was answered, by code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorCounts([u64; ERROR_SLOTS]);

impl Default for ErrorCounts {
    fn default() -> Self {
        ErrorCounts([0; ERROR_SLOTS])
    }
}

impl ErrorCounts {
    /// Counts an answer; code 0 is success and is not counted.
    pub fn record(&mut self, code: i16) {
        if code == 0 {
            return;
        }
        let slot = usize::try_from(code.clamp(-1, ERROR_CODE_MAX) + 1).unwrap_or(0);
        self.0[slot] += 1;
    }

    /// Every code that was answered, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (i16, u64)> + '_ {
        (-1_i16..).zip(self.0).filter(|(_, count)| *count > 0)
    }

    fn merge(&mut self, other: &ErrorCounts) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }
}

/// The figures of one shard. Belongs to its core.
#[derive(Debug)]
pub struct ShardMetrics {
    shard: ShardId,
    pub counters: Counters,
    pub produce_errors: ErrorCounts,
    pub fetch_errors: ErrorCounts,
    stages: [StageTimes; 9],
}

impl ShardMetrics {
    /// All at zero.
    #[must_use]
    pub fn new(shard: ShardId) -> Self {
        ShardMetrics {
            shard,
            counters: Counters::default(),
            produce_errors: ErrorCounts::default(),
            fetch_errors: ErrorCounts::default(),
            stages: std::array::from_fn(|_| StageTimes::new()),
        }
    }

    /// Records how long something was in a stage.
    pub fn record(&mut self, stage: Stage, took_ns: u64) {
        self.stages[stage.slot()].record(took_ns);
    }

    /// Counts a block of `bytes` on disk, written and synced.
    pub fn wal_block(&mut self, bytes: u64) {
        self.counters.wal_bytes += bytes;
        self.counters.wal_blocks += 1;
        self.counters.wal_syncs += 1;
    }

    /// A copy of everything, for another core. Copies up to 1.9 MB: for a scrape, not for a request.
    #[must_use]
    pub fn snapshot(&self) -> ShardSnapshot {
        ShardSnapshot {
            shard: Some(self.shard),
            counters: self.counters.clone(),
            produce_errors: self.produce_errors.clone(),
            fetch_errors: self.fetch_errors.clone(),
            peers: Vec::new(),
            refusals: Vec::new(),
            snapshots: Vec::new(),
            stages: self.stages.to_vec(),
        }
    }
}

/// A shard's figures at one moment, or several shards' together.
#[derive(Debug, Clone)]
pub struct ShardSnapshot {
    /// None: several shards merged.
    pub shard: Option<ShardId>,
    pub counters: Counters,
    pub produce_errors: ErrorCounts,
    pub fetch_errors: ErrorCounts,
    /// The links to shards of other nodes.
    pub peers: Vec<PeerStats>,
    /// Why others did not come up.
    pub refusals: Vec<Refusals>,
    /// Groups that had Raft snapshots.
    pub snapshots: Vec<SnapshotSample>,
    stages: Vec<StageTimes>,
}

const _: fn() = || {
    fn can_be_sent<T: Send>() {}
    can_be_sent::<ShardSnapshot>();
};

impl ShardSnapshot {
    /// The figures of all shards as one.
    #[must_use]
    pub fn merged(shards: &[ShardSnapshot]) -> ShardSnapshot {
        let mut all = ShardMetrics::new(ShardId(0)).snapshot();
        all.shard = None;
        for shard in shards {
            all.counters.merge(&shard.counters);
            all.produce_errors.merge(&shard.produce_errors);
            all.fetch_errors.merge(&shard.fetch_errors);
            for (times, more) in all.stages.iter_mut().zip(&shard.stages) {
                times.merge(more);
            }
        }
        all
    }

    /// The times of one stage.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> &StageTimes {
        &self.stages[stage.slot()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_two_shards_when_merged_then_counters_follow_their_rule_and_times_add_up() {
        let mut one = ShardMetrics::new(ShardId(0));
        let mut other = ShardMetrics::new(ShardId(1));
        one.counters.raft_current_term = 7;
        other.counters.raft_current_term = 5;
        one.wal_block(4096);
        other.wal_block(8192);
        one.record(Stage::WalSync, 1_000);
        other.record(Stage::WalSync, 3_000);
        one.produce_errors.record(6);
        other.produce_errors.record(6);
        let all = ShardSnapshot::merged(&[one.snapshot(), other.snapshot()]);
        assert_eq!(all.counters.raft_current_term, 7);
        assert_eq!(all.counters.wal_bytes, 12_288);
        assert_eq!(all.counters.wal_syncs, 2);
        assert_eq!(all.stage(Stage::WalSync).sum_ns, 4_000);
        assert_eq!(all.stage(Stage::WalSync).histogram.len(), 2);
        assert_eq!(all.stage(Stage::Queue).histogram.len(), 0);
        assert_eq!(all.produce_errors.iter().collect::<Vec<_>>(), vec![(6, 2)]);
    }

    #[test]
    fn given_a_time_over_a_minute_when_recorded_then_it_counts_as_the_longest() {
        let mut metrics = ShardMetrics::new(ShardId(0));
        metrics.record(Stage::FetchTotal, u64::MAX);
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.stage(Stage::FetchTotal).histogram.len(), 1);
        assert!(snapshot.stage(Stage::FetchTotal).histogram.max() >= TIME_NS_MAX);
    }

    #[test]
    fn given_codes_at_and_beyond_the_ends_when_counted_then_none_is_lost() {
        let mut errors = ErrorCounts::default();
        for code in [-1, 0, 1, 140, 141, i16::MAX, i16::MIN] {
            errors.record(code);
        }
        assert_eq!(errors.iter().collect::<Vec<_>>(), vec![(-1, 2), (1, 1), (140, 3)]);
    }

    #[test]
    fn given_every_stage_when_named_then_the_name_leads_back() {
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(Stage::of_name(stage.name()), Some(stage));
            assert_eq!(stage.slot(), at);
        }
        assert_eq!(Stage::of_name("p99"), None);
    }
}
