//! What a shard does for its log when there is nothing better to do: the next file is made and zeroed, sealed files
//! get their footers, logs are cut behind what is not needed, files that nobody needs are taken back.
//!
//! Zeroing shares the disk with the commits, and a commit that comes behind a large write waits for it. So the next file
//! is zeroed in small steps and only as fast as the log needs it, unless nothing is written.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::wal::{SpareProgress, WalError};
use chronik_ring::sleep;
use futures_util::future::select;

use super::carry::Stuck;
use super::fatal::{Reason, fatal};
use super::segments::Removals;
use super::shard::Shard;

/// Zeroed in one step while commits come, in bytes: about what one of them takes.
const STEP_BYTES: u64 = 128 << 10;

/// Zeroed in one step while none comes.
const STEP_BYTES_IDLE: u64 = 1 << 20;

/// The fastest that a file is zeroed, in bytes per second. A log that grows faster writes large blocks, which lose less
/// in a file that was not zeroed.
const RATE_MAX: u64 = 50 << 20;

/// The slowest, once it has begun.
const RATE_MIN: u64 = 2 << 20;

/// Over how long the log's growth is measured.
const WINDOW_NS: u64 = 500_000_000;

/// Between two looks when there was nothing to do, and between two rounds of what need not be done with every step.
const IDLE: Duration = Duration::from_millis(250);

/// Runs until the shard stops.
pub async fn upkeep_loop(shard: Rc<Shard>) {
    let mut growth = Growth::default();
    let mut tidied_ns = None;
    let removals = Rc::new(Removals::default());
    let mut stuck = Stuck::default();
    while !shard.stopping.get() {
        let now_ns = shard.clock.now_ns();
        growth.measure(now_ns, shard.metrics.borrow().counters.wal_bytes);
        let pace = Pace::of(growth.bytes_per_s, shard.wal.spare_left());
        let tidies = tidied_ns.is_none_or(|at| u128::from(now_ns - at) >= IDLE.as_nanos());
        if tidies {
            tidied_ns = Some(now_ns);
            stuck.ask(&shard);
        }
        let pause = match step(&shard, pace.step_bytes, tidies.then_some(&removals)).await {
            Ok(SpareProgress::Working) => pace.pause,
            Ok(SpareProgress::Ready) => IDLE,
            Err(WalError::StorageFull { .. }) => IDLE,
            Err(error) => fatal(&Reason::WalWrite { shard: shard.id, error }),
        };
        shard.note_storage_full(shard.wal.is_storage_full());
        select(sleep(pause), pin!(shard.upkeep_ends.notified())).await;
    }
    shard.upkeep_ended.notify();
}

async fn step(
    shard: &Rc<Shard>,
    step_bytes: u64,
    tidies: Option<&Rc<Removals>>,
) -> Result<SpareProgress, WalError> {
    if let Some(removals) = tidies {
        shard.wal.finish_sealed().await?;
        cut_logs(shard);
        let needed = |group| shard.with_core(|core| core.first_index_needed(group));
        shard.wal.reclaim(|| shard.held_file.get(), needed).await?;
        shard.remove_gone_segments(removals);
    }
    shard.wal.prepare_spare_step(step_bytes).await
}

/// Cuts the logs of the groups that stand in the way of giving the oldest file back, if they can all be cut. The file
/// goes when the cuts are durable.
fn cut_logs(shard: &Rc<Shard>) {
    let cuts = shard.wal.cuts_of_oldest(|group| shard.with_core(|core| core.log_need(group)));
    if cuts.is_empty() {
        return;
    }
    shard.change_core(|core| {
        for (group, index) in cuts {
            core.cut_log(group, index);
        }
    });
}

/// How fast the log grows.
#[derive(Debug, Default)]
struct Growth {
    since_ns: u64,
    since_bytes: u64,
    bytes_per_s: u64,
}

impl Growth {
    fn measure(&mut self, now_ns: u64, wal_bytes: u64) {
        let window_ns = now_ns.saturating_sub(self.since_ns);
        if window_ns < WINDOW_NS {
            return;
        }
        let bytes = u128::from(wal_bytes.saturating_sub(self.since_bytes));
        let per_s = bytes * 1_000_000_000 / u128::from(window_ns);
        self.bytes_per_s = u64::try_from(per_s).unwrap_or(u64::MAX);
        (self.since_ns, self.since_bytes) = (now_ns, wal_bytes);
    }
}

/// How the next file is zeroed.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    step_bytes: u64,
    pause: Duration,
}

impl Pace {
    /// So that `to_zero` bytes are zeroed a quarter before `room` bytes are written.
    fn of(growth_per_s: u64, (to_zero, room): (u64, u64)) -> Pace {
        if growth_per_s == 0 {
            return Pace::at(STEP_BYTES_IDLE, RATE_MAX);
        }
        let needed = u128::from(growth_per_s) * u128::from(to_zero) / u128::from(room.max(1));
        let rate = u64::try_from(needed.saturating_add(needed / 4)).unwrap_or(u64::MAX);
        Pace::at(STEP_BYTES, rate.clamp(RATE_MIN, RATE_MAX))
    }

    fn at(step_bytes: u64, bytes_per_s: u64) -> Pace {
        Pace { step_bytes, pause: Duration::from_nanos(step_bytes * 1_000_000_000 / bytes_per_s) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn given_a_log_that_grows_when_paced_then_the_spare_is_ready_before_the_file_is_full() {
        for (growth, to_zero, room) in
            [(4 * MIB, 64 * MIB, 16 * MIB), (8 * MIB, 256 * MIB, 200 * MIB), (MIB, MIB, 100 * MIB)]
        {
            let pace = Pace::of(growth, (to_zero, room));
            let steps = to_zero.div_ceil(pace.step_bytes);
            let takes = pace.pause * u32::try_from(steps).unwrap();
            assert!(takes < Duration::from_secs(room / growth), "{growth}: {takes:?}");
            assert!(pace.pause >= Duration::from_millis(2), "{growth}: {:?}", pace.pause);
        }
    }

    #[test]
    fn given_extremes_when_paced_then_the_rate_has_bounds() {
        let fastest = Pace::at(STEP_BYTES, RATE_MAX);
        assert_eq!(Pace::of(u64::MAX, (u64::MAX, 0)), fastest);
        assert_eq!(Pace::of(1, (0, u64::MAX)), Pace::at(STEP_BYTES, RATE_MIN));
        assert_eq!(Pace::of(0, (MIB, MIB)), Pace::at(STEP_BYTES_IDLE, RATE_MAX));
    }

    #[test]
    fn given_readings_when_growth_is_measured_then_it_is_per_second_over_a_whole_window() {
        let mut growth = Growth::default();
        growth.measure(WINDOW_NS, 3 * MIB);
        assert_eq!(growth.bytes_per_s, 6 * MIB);
        growth.measure(WINDOW_NS + 1, 90 * MIB);
        assert_eq!(growth.bytes_per_s, 6 * MIB, "too soon to say");
    }
}
