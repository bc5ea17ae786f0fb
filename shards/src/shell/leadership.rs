//! Those who wait until groups are led.
//!
//! - I1: who has gone is forgotten when it is looked at next, and that is after every change of the core: what is kept is what
//!   somebody waits for.

use chronik_engine::ids::GroupId;
use futures_channel::oneshot;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct LeadershipWaits(Vec<LeadershipWait>);

#[derive(Debug)]
struct LeadershipWait {
    groups: Vec<GroupId>,
    done: oneshot::Sender<()>,
}

impl LeadershipWaits {
    /// Resolves at a check that finds none of `groups` unled.
    pub(super) fn add(&mut self, groups: Vec<GroupId>) -> oneshot::Receiver<()> {
        let (done, led) = oneshot::channel();
        self.0.push(LeadershipWait { groups, done });
        led
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells those who have waited long enough.
    pub(super) fn check(&mut self, is_unled: impl Fn(GroupId) -> bool) {
        // Before anything is looked up for them.
        self.0.retain(|wait| !wait.done.is_canceled());
        for wait in &mut self.0 {
            wait.groups.retain(|group| is_unled(*group));
        }
        for wait in self.0.extract_if(.., |wait| wait.groups.is_empty()) {
            _ = wait.done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_group_without_a_leader_when_those_who_wait_for_it_go_then_none_is_kept() {
        let mut waits = LeadershipWaits::default();
        for _ in 0..100 {
            drop(waits.add(vec![GroupId(1)]));
            waits.check(|_| true);
        }
        assert!(waits.is_empty());
    }

    #[test]
    fn given_two_groups_when_each_is_led_at_its_time_then_who_waits_is_told_at_the_second() {
        let mut waits = LeadershipWaits::default();
        let mut led = waits.add(vec![GroupId(1), GroupId(2)]);
        waits.check(|group| group == GroupId(2));
        assert_eq!(led.try_recv(), Ok(None));
        waits.check(|_| false);
        assert_eq!(led.try_recv(), Ok(Some(())));
        assert!(waits.is_empty());
    }
}
