//! Rolls by time: a file of the log that is long in use is sealed although it is not full, so that what it holds gets
//! into segments, is judged by retention and compacted. How long is too long, a setting says and the topics'
//! `segment.ms`.
//!
//! - I1: the log goes on in a file that is ready for it: a roll by time costs no producer a wait and takes no ballast.
//! - I2: topics make it no more frequent than `wal.roll_ms_min` says: a roll concerns all partitions of the core.

use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::FileSeq;
use chronik_ring::sleep;

use super::shard::Shard;
use crate::config::WalConfig;

/// How often the age of the active file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Asks for rolls until the shard stops.
pub async fn roll_loop(shard: Rc<Shard>) {
    let mut age = Age::default();
    while !shard.stopping.get() {
        sleep(LOOK).await;
        let (file, _) = shard.wal.position();
        let holds_records = shard.wal.active_holds_records();
        let held_ms = age.at(file, holds_records, shard.clock.now_ns() / 1_000_000);
        if held_ms.is_some_and(|held_ms| held_ms >= limit_ms(&shard)) {
            shard.want_roll.set(true);
            shard.work.notify();
        }
    }
}

/// How long records may stay in the active file.
fn limit_ms(shard: &Shard) -> u64 {
    let WalConfig { roll_ms, roll_ms_min, .. } = shard.node.config.wal;
    let catalog = shard.catalog();
    let shorter = catalog.topics().filter_map(|topic| {
        let segment_ms = topic.settings.segment_ms.unsigned_abs();
        let is_held = segment_ms < roll_ms
            && topic.partitions.iter().any(|p| shard.wal.active_holds_records_of(p.group));
        is_held.then_some(segment_ms)
    });
    shortest(roll_ms, roll_ms_min, shorter.min())
}

/// The limit of the file, or that of a topic, which whoever may configure topics chooses (I2).
fn shortest(roll_ms: u64, roll_ms_min: u64, segment_ms: Option<u64>) -> u64 {
    segment_ms.map_or(roll_ms, |segment_ms| segment_ms.max(roll_ms_min).min(roll_ms))
}

/// Since when the active file holds records.
#[derive(Debug, Default)]
struct Age {
    file: FileSeq,
    since_ms: Option<u64>,
}

impl Age {
    /// How long it has held records at `now_ms`, if it does.
    fn at(&mut self, file: FileSeq, holds_records: bool, now_ms: u64) -> Option<u64> {
        if self.file != file || !holds_records {
            *self = Age { file, since_ms: None };
        }
        if !holds_records {
            return None;
        }
        Some(now_ms.saturating_sub(*self.since_ms.get_or_insert(now_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_topic_that_asks_for_very_short_files_when_asked_then_the_core_rolls_no_more_often_than_set()
     {
        assert_eq!(shortest(1_800_000, 60_000, None), 1_800_000);
        assert_eq!(shortest(1_800_000, 60_000, Some(90_000)), 90_000);
        for segment_ms in [0, 1, 59_999] {
            assert_eq!(shortest(1_800_000, 60_000, Some(segment_ms)), 60_000);
        }
        assert_eq!(shortest(30_000, 60_000, Some(1)), 30_000, "what is set for the file holds");
    }

    #[test]
    fn given_files_when_their_age_is_asked_for_then_it_counts_from_the_first_record_seen() {
        let mut age = Age::default();
        assert_eq!(age.at(FileSeq(1), false, 10), None);
        assert_eq!(age.at(FileSeq(1), true, 20), Some(0));
        assert_eq!(age.at(FileSeq(1), true, 50), Some(30));
        assert_eq!(age.at(FileSeq(2), true, 60), Some(0));
        assert_eq!(age.at(FileSeq(2), false, 70), None);
        assert_eq!(age.at(FileSeq(2), true, 80), Some(0));
    }
}
