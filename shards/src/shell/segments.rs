//! Segments as the shards see them: reads that fail are logged, and what nobody needs is removed.

use std::cell::Cell;
use std::io::ErrorKind;
use std::ops::Range;
use std::rc::Rc;

use chronik_engine::disk::Disk;
use chronik_engine::disk_direct::DirectDisk;
use chronik_engine::ids::{GroupId, Offset};
use chronik_engine::segment::Manifest;
use futures_lite::future::block_on;

use super::complaints::Said;
use super::repair::unreadable;
use super::shard::Shard;
use crate::core::{FetchError, NamedSegment, PartitionView};
use crate::stored::{FoundBatch, StoredError};

/// How long a file that could not be removed is left alone: twice as long each time.
const PAUSE_NS_MIN: u64 = 1_000_000_000;
const PAUSE_NS_MAX: u64 = 300_000_000_000;

/// When files that could not be removed are tried again.
#[derive(Debug, Default)]
pub(super) struct Removals {
    pause_ns: Cell<u64>,
    again_ns: Cell<u64>,
}

impl Removals {
    fn tries_again(&self, now_ns: u64) -> bool {
        now_ns >= self.again_ns.get()
    }

    /// `again` says whether what had failed before was among what was tried.
    fn note(&self, again: bool, any_failed: bool, now_ns: u64) {
        if any_failed {
            let pause_ns = (2 * self.pause_ns.get()).clamp(PAUSE_NS_MIN, PAUSE_NS_MAX);
            self.pause_ns.set(pause_ns);
            self.again_ns.set(now_ns.saturating_add(pause_ns));
        } else if again {
            self.pause_ns.set(0);
        }
    }
}

impl Shard {
    /// Batches of a partition from disk; see [`crate::stored::Segments::read`]. Cancel-safe.
    ///
    /// # Errors
    /// If what there should be cannot be read.
    pub(super) async fn read_stored(
        self: &Rc<Self>,
        group: GroupId,
        offsets: Range<Offset>,
        bytes_max: usize,
    ) -> Result<Vec<FoundBatch>, FetchError> {
        let read = self.segments.read(&self.core, &self.wal, group, offsets, bytes_max).await;
        read.map_err(|error| self.read_failed(group, &error))
    }

    /// The first batch from `from` on with a timestamp of at least `timestamp_ms`. Cancel-safe.
    ///
    /// # Errors
    /// If what there should be cannot be read.
    pub async fn find_timestamp(
        self: &Rc<Self>,
        group: GroupId,
        from: Offset,
        timestamp_ms: i64,
    ) -> Result<Option<FoundBatch>, FetchError> {
        let (core, wal) = (&self.core, &self.wal);
        let found = self.segments.find_timestamp(core, wal, group, from, timestamp_ms).await;
        found.map_err(|error| self.read_failed(group, &error))
    }

    /// The greatest timestamp of a partition's records, an upper bound where the log starts in the middle of a piece or
    /// ends with what is not committed; `None` if there is none.
    ///
    /// # Errors
    /// If records are missing, which might have a greater one.
    pub fn max_timestamp_ms(
        &self,
        group: GroupId,
        view: &PartitionView,
    ) -> Result<Option<i64>, FetchError> {
        let core = self.core.borrow();
        if let Some(gap) = self.segments.first_gap(&core, &self.wal, group) {
            return Err(self.read_failed(group, &StoredError::Missing { gap }));
        }
        let segments = core.segments(group).into_iter().flat_map(Manifest::iter);
        let stored = segments.map(|segment| segment.max_timestamp_ms).max();
        let stored_to = core.stored_to(group).unwrap_or_default();
        let logged = self.wal.max_timestamp_ms(group, stored_to.max(view.log_start_offset));
        Ok(stored.max(logged).filter(|timestamp_ms| *timestamp_ms >= 0))
    }

    /// What a partition's records take from the log's start on; of the log all that there is where its index does not
    /// tell.
    pub async fn size_bytes(&self, group: GroupId) -> u64 {
        let (stored, stored_to) = {
            let core = self.core.borrow();
            let start = core.partition(group).map(|view| view.log_start_offset);
            let stored =
                core.segments(group).map_or(0, |m| m.file_bytes(start.unwrap_or_default()));
            (stored, core.stored_to(group).unwrap_or_default())
        };
        let logged = match self.wal.size_bytes(group, stored_to).await {
            Ok(bytes) => bytes,
            Err(_) => self.wal.payload_bytes(group),
        };
        stored + logged
    }

    /// Removes segments of topics that are no more, and of partitions that have left this shard. Of one that is to be here
    /// they stay: its replica may be about to be made.
    pub(super) fn judge_strangers(&self, strangers: Vec<NamedSegment>) {
        let catalog = self.catalog();
        let here = (self.node.config.node_id, self.id);
        let is_placed_here = |named: &NamedSegment| {
            let number = usize::try_from(named.partition).unwrap_or(usize::MAX);
            let topic = catalog.topic_by_id(named.topic);
            let partition = topic.and_then(|topic| topic.partitions.get(number));
            partition.is_some_and(|p| p.placements().any(|at| (at.node, at.shard) == here))
        };
        let (unclear, gone): (Vec<_>, Vec<_>) = strangers.into_iter().partition(is_placed_here);
        for named in unclear {
            let path = self.segments.dir().join(named.file_name());
            tracing::error!("{} belongs to no partition of this shard", path.display());
        }
        self.segments.note_gone(gone);
    }

    /// Lets the files of segments that nobody needs be removed, unless that is being done. What cannot be removed is tried
    /// again after a pause.
    pub(super) fn remove_gone_segments(self: &Rc<Self>, removals: &Rc<Removals>) {
        let again = removals.tries_again(self.clock.now_ns());
        let names = self.segments.take_gone(again);
        if names.is_empty() {
            return;
        }
        let shard = Rc::clone(self);
        let (dir, kept) = (self.segments.dir().to_owned(), names.clone());
        let remove = move |disk: &DirectDisk| {
            let mut failed = names;
            failed.retain(|name| {
                let path = dir.join(name);
                match block_on(disk.remove(&path)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        tracing::warn!("{} could not be removed: {error}", path.display());
                        true
                    }
                    _ => false,
                }
            });
            failed
        };
        let removals = Rc::clone(removals);
        chronik_ring::spawn(async move {
            let failed = shard.in_background(&shard.background.remover, remove).await;
            let failed = failed.unwrap_or(kept);
            removals.note(again, !failed.is_empty(), shard.clock.now_ns());
            shard.segments.removed(failed);
        })
        .detach();
    }

    /// Logs why stored records could not be read, for which Kafka has but one word.
    fn read_failed(&self, group: GroupId, error: &StoredError) -> FetchError {
        if self.core.borrow().partition(group).is_none() {
            return FetchError::UnknownPartition; // deleted while it was read
        }
        if let Some(what) = unreadable(error) {
            self.want_repair(group, what);
        }
        if let Some(Said { partition, times }) = self.complain(group, &error.to_string()) {
            tracing::error!(
                shard = self.id.0,
                partition,
                times,
                "records could not be read: {error}"
            );
        }
        FetchError::Storage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_files_that_cannot_be_removed_when_tried_then_less_and_less_often_until_all_are_gone() {
        let removals = Removals::default();
        let mut now_ns = 7;
        let mut pauses_s = Vec::new();
        for _ in 0..11 {
            assert!(removals.tries_again(now_ns));
            removals.note(true, true, now_ns);
            let pause_ns = removals.pause_ns.get();
            assert!(!removals.tries_again(now_ns + pause_ns - 1));
            removals.note(false, false, now_ns);
            assert!(!removals.tries_again(now_ns + pause_ns - 1), "others were removed");
            now_ns += pause_ns;
            pauses_s.push(pause_ns / 1_000_000_000);
        }
        assert_eq!(pauses_s, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        removals.note(true, false, now_ns);
        removals.note(true, true, now_ns);
        assert_eq!(removals.pause_ns.get(), PAUSE_NS_MIN);
    }
}
