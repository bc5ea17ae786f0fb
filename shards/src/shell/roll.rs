//! Rolls by time: a file of the log that is long in use is sealed although it is not full, so that what it holds gets
//! into segments, is judged by retention and compacted. How long is too long, a setting says and the topics'
//! `segment.ms`.
//!
//! - I1: the log goes on in a file that is ready for it: a roll by time costs no producer a wait and takes no ballast.

use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::FileSeq;
use chronik_ring::sleep;

use super::shard::Shard;

/// How often the age of the active file is looked at, and the least that `segment.ms` may come to.
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
    let of_file = shard.node.config.wal.roll_ms;
    let catalog = shard.catalog();
    let shorter = catalog.topics().filter_map(|topic| {
        let segment_ms = topic.settings.segment_ms.unsigned_abs();
        let is_held = segment_ms < of_file
            && topic.partitions.iter().any(|p| shard.wal.active_holds_records_of(p.group));
        is_held.then_some(segment_ms)
    });
    shorter.min().unwrap_or(of_file)
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
