//! Fetches that wait until a partition has data beyond an offset.
//!
//! A waiter waits on several groups and is woken once, by the first of them; then it is forgotten everywhere. A wake-up
//! promises nothing: whoever is woken looks again.
//!
//! - I1: `by_group` and `by_waiter` hold the same pairs.
//! - I2: at most [`WAITERS_MAX`] waiters; beyond that a waiter is woken at once, which is correct and only costs it a
//!   look.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chronik_engine::ids::{GroupId, Offset};

use super::WaiterId;
use super::hash::IdHashBuilder;

/// Waiters per shard. Each connection has one fetch at a time, so this is above any sane number of connections.
pub const WAITERS_MAX: usize = 100_000;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    by_group: BTreeMap<GroupId, Vec<(Offset, WaiterId)>>,
    by_waiter: HashMap<WaiterId, BTreeSet<GroupId>, IdHashBuilder>,
}

impl Waiters {
    /// Lets a waiter wait for data at or beyond `beyond`. `false` if there is no room for it.
    pub(super) fn add(&mut self, group: GroupId, beyond: Offset, waiter: WaiterId) -> bool {
        if !self.by_waiter.contains_key(&waiter) && self.by_waiter.len() >= WAITERS_MAX {
            return false;
        }
        if self.by_waiter.entry(waiter).or_default().insert(group) {
            self.by_group.entry(group).or_default().push((beyond, waiter));
        }
        true
    }

    /// Forgets a waiter, known or not.
    pub(super) fn forget(&mut self, waiter: WaiterId) {
        for group in self.by_waiter.remove(&waiter).unwrap_or_default() {
            self.remove(group, waiter);
        }
    }

    /// The group has data up to `high_watermark`: those who waited for less are added to `wakes`.
    pub(super) fn wake(
        &mut self,
        group: GroupId,
        high_watermark: Offset,
        wakes: &mut Vec<WaiterId>,
    ) {
        self.wake_where(group, |beyond| beyond < high_watermark, wakes);
    }

    /// Something else than data has come over the group: all who wait on it are added to `wakes`.
    pub(super) fn wake_all(&mut self, group: GroupId, wakes: &mut Vec<WaiterId>) {
        self.wake_where(group, |_| true, wakes);
    }

    /// Many may wait on one group: they leave its list in one go and not one by one.
    fn wake_where(
        &mut self,
        group: GroupId,
        is_woken: impl Fn(Offset) -> bool,
        wakes: &mut Vec<WaiterId>,
    ) {
        let Some(waiting) = self.by_group.get_mut(&group) else { return };
        let woken = waiting.extract_if(.., |(beyond, _)| is_woken(*beyond));
        let woken: Vec<WaiterId> = woken.map(|(_, waiter)| waiter).collect();
        if waiting.is_empty() {
            self.by_group.remove(&group);
        }
        for waiter in woken {
            let groups = self.by_waiter.remove(&waiter).unwrap_or_default();
            assert!(groups.contains(&group), "I1: {waiter:?} waits on a group without knowing");
            for other in groups.into_iter().filter(|other| *other != group) {
                self.remove(other, waiter);
            }
            wakes.push(waiter);
        }
    }

    fn remove(&mut self, group: GroupId, waiter: WaiterId) {
        if let Some(waiting) = self.by_group.get_mut(&group) {
            waiting.retain(|(_, other)| *other != waiter);
            if waiting.is_empty() {
                self.by_group.remove(&group);
            }
        }
    }

    /// The shard stops: everybody is added to `wakes`.
    pub(super) fn drain(&mut self, wakes: &mut Vec<WaiterId>) {
        let groups: Vec<GroupId> = self.by_group.keys().copied().collect();
        for group in groups {
            self.wake_all(group, wakes);
        }
        assert!(self.by_waiter.is_empty(), "I1: a waiter waits on no group");
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.by_waiter.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn given_a_waiter_on_two_groups_when_one_has_data_then_it_is_woken_once() {
        let mut waiters = Waiters::default();
        let mut wakes = Vec::new();
        assert!(waiters.add(GroupId(1), Offset(5), WaiterId(1)));
        assert!(waiters.add(GroupId(2), Offset(7), WaiterId(1)));
        assert!(waiters.add(GroupId(2), Offset(9), WaiterId(2)));
        waiters.wake(GroupId(1), Offset(5), &mut wakes);
        assert!(wakes.is_empty(), "nothing lies beyond 5");
        waiters.wake(GroupId(2), Offset(8), &mut wakes);
        assert_eq!(wakes, [WaiterId(1)]);
        waiters.wake(GroupId(1), Offset(100), &mut wakes);
        assert_eq!(wakes, [WaiterId(1)], "it was forgotten on the other group, too");
        waiters.wake_all(GroupId(2), &mut wakes);
        assert_eq!(wakes, [WaiterId(1), WaiterId(2)]);
        assert_eq!(waiters.len(), 0);
    }

    #[test]
    fn given_one_who_waits_for_more_than_there_can_be_when_the_group_ends_then_it_is_woken() {
        let mut waiters = Waiters::default();
        let mut wakes = Vec::new();
        for group in [1, 2] {
            assert!(waiters.add(GroupId(group), Offset(i64::MAX), WaiterId(1)));
            assert!(waiters.add(GroupId(group), Offset(0), WaiterId(2)));
        }
        waiters.wake_all(GroupId(1), &mut wakes);
        assert_eq!(wakes, [WaiterId(1), WaiterId(2)]);
        waiters.drain(&mut wakes);
        assert_eq!((wakes.len(), waiters.len()), (2, 0));
    }

    proptest! {
        /// The same rules on a list of pairs, without regard to speed.
        #[test]
        fn given_any_steps_when_done_then_as_the_model(
            steps in proptest::collection::vec((0..4_u8, 0..3_u64, 0..4_u64, 0..4_i64), 1..60)
        ) {
            let mut waiters = Waiters::default();
            let mut model: Vec<(GroupId, Offset, WaiterId)> = Vec::new();
            for (step, group, waiter, offset) in steps {
                let (group, waiter, offset) = (GroupId(group), WaiterId(waiter), Offset(offset));
                let waits = |&(g, _, w): &(GroupId, Offset, WaiterId)| (g, w) == (group, waiter);
                let mut wakes = Vec::new();
                let mut expected: Vec<WaiterId> = Vec::new();
                match step {
                    0 => {
                        prop_assert!(waiters.add(group, offset, waiter));
                        if !model.iter().any(waits) {
                            model.push((group, offset, waiter));
                        }
                    }
                    1 => {
                        waiters.forget(waiter);
                        model.retain(|(_, _, w)| *w != waiter);
                    }
                    _ => {
                        let all = step == 3;
                        if all {
                            waiters.wake_all(group, &mut wakes);
                        } else {
                            waiters.wake(group, offset, &mut wakes);
                        }
                        let woken = model.iter().filter(|(g, b, _)| *g == group && (all || *b < offset));
                        expected.extend(woken.map(|(_, _, w)| *w));
                        model.retain(|(_, _, w)| !expected.contains(w));
                    }
                }
                prop_assert_eq!(wakes, expected);
                let known: BTreeSet<WaiterId> = model.iter().map(|(_, _, w)| *w).collect();
                prop_assert_eq!(waiters.len(), known.len());
                prop_assert_eq!(waiters.by_group.values().map(Vec::len).sum::<usize>(), model.len());
            }
        }
    }

    #[test]
    fn given_a_forgotten_waiter_when_data_comes_then_nobody_is_woken() {
        let mut waiters = Waiters::default();
        let mut wakes = Vec::new();
        assert!(waiters.add(GroupId(1), Offset(0), WaiterId(1)));
        waiters.forget(WaiterId(1));
        waiters.forget(WaiterId(1));
        waiters.wake_all(GroupId(1), &mut wakes);
        assert!(wakes.is_empty());
    }
}
