//! Fetches that wait until a partition has data beyond an offset.
//!
//! A waiter waits on several groups and is woken once, by the first of them; then it is forgotten everywhere. A wake-up
//! promises nothing: whoever is woken looks again.
//!
//! - I1: `by_group` and `by_waiter` hold the same pairs.
//! - I2: at most [`WAITERS_MAX`] waiters; beyond that a waiter is woken at once, which is correct and only costs it a
//!   look.

use std::collections::{BTreeMap, HashMap};

use chronik_engine::ids::{GroupId, Offset};

use super::WaiterId;
use super::hash::IdHashBuilder;

/// Waiters per shard. Each connection has one fetch at a time, so this is above any sane number of connections.
pub const WAITERS_MAX: usize = 100_000;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    by_group: BTreeMap<GroupId, Vec<(Offset, WaiterId)>>,
    by_waiter: HashMap<WaiterId, Vec<GroupId>, IdHashBuilder>,
}

impl Waiters {
    /// Lets a waiter wait for data at or beyond `beyond`. `false` if there is no room for it.
    pub(super) fn add(&mut self, group: GroupId, beyond: Offset, waiter: WaiterId) -> bool {
        if !self.by_waiter.contains_key(&waiter) && self.by_waiter.len() >= WAITERS_MAX {
            return false;
        }
        let groups = self.by_waiter.entry(waiter).or_default();
        if !groups.contains(&group) {
            groups.push(group);
            self.by_group.entry(group).or_default().push((beyond, waiter));
        }
        true
    }

    /// Forgets a waiter, known or not.
    pub(super) fn forget(&mut self, waiter: WaiterId) {
        for group in self.by_waiter.remove(&waiter).unwrap_or_default() {
            if let Some(waiting) = self.by_group.get_mut(&group) {
                waiting.retain(|(_, other)| *other != waiter);
                if waiting.is_empty() {
                    self.by_group.remove(&group);
                }
            }
        }
    }

    /// The group has data up to `high_watermark`: those who waited for less are added to `wakes`.
    pub(super) fn wake(
        &mut self,
        group: GroupId,
        high_watermark: Offset,
        wakes: &mut Vec<WaiterId>,
    ) {
        let Some(waiting) = self.by_group.get(&group) else { return };
        let woken = waiting.iter().filter(|(beyond, _)| *beyond < high_watermark);
        let woken: Vec<WaiterId> = woken.map(|(_, waiter)| *waiter).collect();
        for waiter in woken {
            self.forget(waiter);
            wakes.push(waiter);
        }
    }

    /// Something else than data has come over the group: all who wait on it are added to `wakes`.
    pub(super) fn wake_all(&mut self, group: GroupId, wakes: &mut Vec<WaiterId>) {
        self.wake(group, Offset(i64::MAX), wakes);
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
