//! The newest record batches of one core's groups, in memory: what consumers at the tail read without the disk.
//!
//! Batches are slices of the request frames that brought them, so what a batch costs is the frame it keeps alive; the
//! caller says how much that is. First in, first out over all groups: a partition that is written to a lot pushes out
//! the others, whose readers find the same bytes in the log. Holds what is durable or will be; what may be served is
//! the caller's to decide.
//!
//! - I1: the batches of a group are consecutive: each starts at the offset where the one before it ends.
//! - I2: `bytes_retained` is the sum over all batches held, and at most `bytes_max`.
//! - I3: a group without batches has no entry.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::ids::{GroupId, Offset, Term};

/// A batch in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedBatch {
    /// The offset of its first record. The bytes need not say so: patch them when they are sent.
    pub base_offset: Offset,
    /// How many offsets it takes: at least 1.
    pub offset_count: u32,
    /// The term it was proposed in.
    pub epoch: Term,
    /// The greatest timestamp of its records.
    pub max_timestamp_ms: i64,
    /// The batch.
    pub bytes: Bytes,
}

impl CachedBatch {
    /// The offset after its last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(self.offset_count)
    }
}

#[derive(Debug)]
struct Slot {
    batch: CachedBatch,
    retained_bytes: usize,
    /// When it came, over all groups: the key of its place in the queue.
    arrival: u64,
}

/// See the module's description. Memory beyond the bound: about 100 bytes for each batch.
#[derive(Debug)]
pub struct TailCache {
    bytes_max: usize,
    bytes_retained: usize,
    arrival_next: u64,
    groups: BTreeMap<GroupId, VecDeque<Slot>>,
    /// The group of each batch, oldest first.
    queue: BTreeMap<u64, GroupId>,
}

impl TailCache {
    /// An empty cache that keeps at most `bytes_max` bytes of frames alive; with 0 it stays empty.
    #[must_use]
    pub fn new(bytes_max: usize) -> TailCache {
        TailCache {
            bytes_max,
            bytes_retained: 0,
            arrival_next: 0,
            groups: BTreeMap::new(),
            queue: BTreeMap::new(),
        }
    }

    /// Appends a batch to its group and pushes out the oldest ones over the bound. `retained_bytes` is the size of the
    /// frame that `batch.bytes` keeps alive. A batch that does not start where the group's last one ends starts the
    /// group anew. One larger than the whole cache is not taken, and what the group has before it goes.
    pub fn insert(&mut self, group: GroupId, batch: CachedBatch, retained_bytes: usize) {
        assert!(batch.offset_count > 0, "a batch takes an offset");
        assert!(retained_bytes >= batch.bytes.len(), "a slice is not larger than its frame");
        let follows = self.end_offset(group).is_none_or(|end| end == batch.base_offset);
        if !follows || retained_bytes > self.bytes_max {
            self.remove_group(group);
        }
        if retained_bytes > self.bytes_max {
            return;
        }
        while self.bytes_retained + retained_bytes > self.bytes_max {
            self.evict_oldest();
        }
        let arrival = self.arrival_next;
        self.arrival_next += 1;
        self.bytes_retained += retained_bytes;
        self.queue.insert(arrival, group);
        self.groups.entry(group).or_default().push_back(Slot { batch, retained_bytes, arrival });
    }

    /// The batches from the one that contains `offset` on, in order; none where that one is not held.
    pub fn get(&self, group: GroupId, offset: Offset) -> impl Iterator<Item = &CachedBatch> {
        let slots = self
            .groups
            .get(&group)
            .filter(|slots| slots.front().is_some_and(|slot| slot.batch.base_offset <= offset));
        let first = slots
            .map_or(0, |slots| slots.partition_point(|slot| slot.batch.end_offset() <= offset));
        slots.into_iter().flat_map(move |slots| slots.range(first..)).map(|slot| &slot.batch)
    }

    /// The first offset held of a group.
    #[must_use]
    pub fn start_offset(&self, group: GroupId) -> Option<Offset> {
        Some(self.groups.get(&group)?.front()?.batch.base_offset)
    }

    /// The offset after the last one held of a group.
    #[must_use]
    pub fn end_offset(&self, group: GroupId) -> Option<Offset> {
        Some(self.groups.get(&group)?.back()?.batch.end_offset())
    }

    /// Forgets all batches that reach beyond `from_offset`: their place in the log is taken by others.
    pub fn truncate(&mut self, group: GroupId, from_offset: Offset) {
        let Some(slots) = self.groups.get_mut(&group) else {
            return;
        };
        let kept = slots.partition_point(|slot| slot.batch.end_offset() <= from_offset);
        for slot in slots.drain(kept..) {
            self.bytes_retained -= slot.retained_bytes;
            self.queue.remove(&slot.arrival);
        }
        if slots.is_empty() {
            self.groups.remove(&group);
        }
    }

    /// Forgets all batches that end at or before `to_offset`.
    pub fn remove_before(&mut self, group: GroupId, to_offset: Offset) {
        let Some(slots) = self.groups.get_mut(&group) else {
            return;
        };
        let gone = slots.partition_point(|slot| slot.batch.end_offset() <= to_offset);
        for slot in slots.drain(..gone) {
            self.bytes_retained -= slot.retained_bytes;
            self.queue.remove(&slot.arrival);
        }
        if slots.is_empty() {
            self.groups.remove(&group);
        }
    }

    /// Forgets a group.
    pub fn remove_group(&mut self, group: GroupId) {
        for slot in self.groups.remove(&group).unwrap_or_default() {
            self.bytes_retained -= slot.retained_bytes;
            self.queue.remove(&slot.arrival);
        }
    }

    /// How many bytes of frames are kept alive.
    #[must_use]
    pub fn bytes_retained(&self) -> usize {
        self.bytes_retained
    }

    /// How many batches are held.
    #[must_use]
    pub fn batch_count(&self) -> usize {
        self.queue.len()
    }

    /// The oldest batch of all is the first of its group, as each group's batches came in order.
    fn evict_oldest(&mut self) {
        let Some((arrival, group)) = self.queue.pop_first() else {
            assert!(self.bytes_retained == 0, "bytes are retained by no batch (I2)");
            return;
        };
        let slots = self.groups.get_mut(&group);
        let slot = slots.and_then(VecDeque::pop_front);
        assert!(
            slot.as_ref().is_some_and(|slot| slot.arrival == arrival),
            "queue and group differ"
        );
        self.bytes_retained -= slot.map_or(0, |slot| slot.retained_bytes);
        if self.groups.get(&group).is_some_and(VecDeque::is_empty) {
            self.groups.remove(&group);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn batch(base_offset: i64, offset_count: u32) -> CachedBatch {
        CachedBatch {
            base_offset: Offset(base_offset),
            offset_count,
            epoch: Term(1),
            max_timestamp_ms: 0,
            bytes: Bytes::from_static(b"0123456789"),
        }
    }

    fn starts(cache: &TailCache, group: GroupId, offset: i64) -> Vec<i64> {
        cache.get(group, Offset(offset)).map(|batch| batch.base_offset.0).collect()
    }

    #[test]
    fn given_batches_when_offset_within_one_then_run_from_it() {
        let mut cache = TailCache::new(100);
        cache.insert(GROUP, batch(10, 5), 10);
        cache.insert(GROUP, batch(15, 1), 10);
        cache.insert(GROUP, batch(16, 4), 10);
        assert_eq!(starts(&cache, GROUP, 10), [10, 15, 16]);
        assert_eq!(starts(&cache, GROUP, 14), [10, 15, 16]);
        assert_eq!(starts(&cache, GROUP, 15), [15, 16]);
        assert_eq!(starts(&cache, GROUP, 19), [16]);
        assert_eq!(starts(&cache, GROUP, 20), []);
        assert_eq!(starts(&cache, GROUP, 9), [], "the run would have a hole before it");
        assert_eq!(starts(&cache, GroupId(2), 10), []);
    }

    #[test]
    fn given_full_cache_when_inserted_then_oldest_of_any_group_goes() {
        let mut cache = TailCache::new(30);
        cache.insert(GROUP, batch(0, 1), 10);
        cache.insert(GroupId(2), batch(0, 1), 10);
        cache.insert(GROUP, batch(1, 1), 10);
        cache.insert(GROUP, batch(2, 1), 15);
        assert_eq!(starts(&cache, GROUP, 0), []);
        assert_eq!(starts(&cache, GROUP, 1), [1, 2]);
        assert_eq!(starts(&cache, GroupId(2), 0), []);
        assert_eq!((cache.bytes_retained(), cache.batch_count()), (25, 2));
    }

    #[test]
    fn given_an_offset_when_what_ends_before_is_removed_then_the_rest_stays() {
        let mut cache = TailCache::new(100);
        for base in 0..3 {
            cache.insert(GROUP, batch(base * 5, 5), 10);
        }
        cache.remove_before(GROUP, Offset(9));
        assert_eq!(starts(&cache, GROUP, 5), [5, 10]);
        assert_eq!((cache.bytes_retained(), cache.batch_count()), (20, 2));
        cache.remove_before(GROUP, Offset(15));
        assert_eq!((cache.bytes_retained(), cache.batch_count()), (0, 0));
        cache.remove_before(GROUP, Offset(15));
    }

    #[test]
    fn given_gap_when_inserted_then_group_starts_anew() {
        let mut cache = TailCache::new(100);
        cache.insert(GROUP, batch(0, 1), 10);
        cache.insert(GROUP, batch(5, 1), 10);
        assert_eq!(cache.start_offset(GROUP), Some(Offset(5)));
        cache.insert(GROUP, batch(6, 1), 101);
        assert_eq!(cache.start_offset(GROUP), None, "a batch larger than the cache is a gap too");
        assert_eq!(cache.bytes_retained(), 0);
    }

    #[test]
    fn given_truncation_within_a_batch_when_truncated_then_that_batch_goes_too() {
        let mut cache = TailCache::new(100);
        cache.insert(GROUP, batch(0, 5), 10);
        cache.insert(GROUP, batch(5, 5), 10);
        cache.truncate(GROUP, Offset(7));
        assert_eq!(cache.end_offset(GROUP), Some(Offset(5)));
        cache.truncate(GROUP, Offset(0));
        assert_eq!((cache.end_offset(GROUP), cache.bytes_retained()), (None, 0));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert { group: u64, gap: i64, count: u32, retained: usize },
        Truncate { group: u64, back: i64 },
        Remove { group: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let gap = prop_oneof![9 => Just(0), 1 => 1i64..3];
        let insert = (0..3u64, gap, 1..4u32, 10..60usize)
            .prop_map(|(group, gap, count, retained)| Step::Insert { group, gap, count, retained });
        let step = prop_oneof![
            10 => insert,
            2 => (0..3u64, 0..10i64).prop_map(|(group, back)| Step::Truncate { group, back }),
            1 => (0..3u64).prop_map(|group| Step::Remove { group }),
        ];
        proptest::collection::vec(step, 1..80)
    }

    /// The same rules on one list, oldest first, without regard to speed.
    #[derive(Default)]
    struct Model(Vec<(u64, CachedBatch, usize)>);

    impl Model {
        fn insert(&mut self, group: u64, batch: CachedBatch, retained: usize, max: usize) {
            let last = self.0.iter().rev().find(|(of, ..)| *of == group);
            if last.is_some_and(|(_, last, _)| last.end_offset() != batch.base_offset) {
                self.0.retain(|(of, ..)| *of != group);
            }
            if retained > max {
                self.0.retain(|(of, ..)| *of != group);
                return;
            }
            self.0.push((group, batch, retained));
            while self.bytes() > max {
                self.0.remove(0);
            }
        }

        fn bytes(&self) -> usize {
            self.0.iter().map(|(_, _, retained)| retained).sum()
        }

        fn get(&self, group: u64, offset: i64) -> Vec<i64> {
            let of_group = || self.0.iter().filter(|(of, ..)| *of == group).map(|(_, b, _)| b);
            if of_group().next().is_none_or(|first| first.base_offset.0 > offset) {
                return Vec::new();
            }
            let reach = |batch: &&CachedBatch| batch.end_offset().0 > offset;
            of_group().filter(reach).map(|batch| batch.base_offset.0).collect()
        }
    }

    proptest! {
        #[test]
        fn given_any_steps_when_applied_then_as_the_model(steps in steps(), max in 0..300usize) {
            let mut cache = TailCache::new(max);
            let mut model = Model::default();
            let mut ends = [0i64; 3];
            for step in steps {
                match step {
                    Step::Insert { group, gap, count, retained } => {
                        let end = &mut ends[usize::try_from(group).unwrap()];
                        let batch = batch(*end + gap, count);
                        *end = batch.end_offset().0;
                        cache.insert(GroupId(group), batch.clone(), retained);
                        model.insert(group, batch, retained, max);
                    }
                    Step::Truncate { group, back } => {
                        let end = &mut ends[usize::try_from(group).unwrap()];
                        let from = (*end - back).max(0);
                        *end = from;
                        cache.truncate(GroupId(group), Offset(from));
                        model.0.retain(|(of, b, _)| *of != group || b.end_offset().0 <= from);
                    }
                    Step::Remove { group } => {
                        cache.remove_group(GroupId(group));
                        model.0.retain(|(of, ..)| *of != group);
                    }
                }
                prop_assert_eq!(cache.bytes_retained(), model.bytes());
                prop_assert!(cache.bytes_retained() <= max);
                prop_assert_eq!(cache.batch_count(), model.0.len());
                for group in 0..3 {
                    for offset in 0..ends[usize::try_from(group).unwrap()] + 2 {
                        let found = starts(&cache, GroupId(group), offset);
                        prop_assert_eq!(found, model.get(group, offset));
                    }
                }
            }
        }
    }
}
