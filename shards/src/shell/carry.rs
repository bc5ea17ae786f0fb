//! Entries that keep the oldest file of the log although nobody can be done with them, those of groups without a quorum,
//! are carried forward to its end ([`chronik_engine::wal`], `carry`): else the log of the whole core grows behind them.
//!
//! - I1: it is done by the loop that commits, between two blocks: nothing is appended between reading them and writing.
//! - I2: only what has kept a file for [`STUCK_NS`] without a step ahead is carried, once for each file; again where that was in
//!   vain, less and less often.
//! - I3: one group between two blocks, so that the others do not wait for all of them.

use std::rc::Rc;

use chronik_engine::ids::{FileSeq, GroupId, RaftIndex};

use super::commit::{Room, make_room};
use super::fatal::{Reason, fatal};
use super::shard::Shard;

/// A group that has its quorum applies an entry within seconds.
const STUCK_NS: u64 = 30_000_000_000;
/// The longest time between two tries.
const PAUSE_NS_MAX: u64 = 20 * STUCK_NS;

/// The oldest file, and what in it is not applied: each group with what it has applied.
type Unapplied = (FileSeq, Vec<(GroupId, RaftIndex)>);

/// Since when the oldest file is kept by the same entries.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    seen: Option<Unapplied>,
    since_ns: u64,
    /// Twice as long each time that it was in vain.
    pause_ns: u64,
}

impl Stuck {
    /// The groups whose entries are to be carried forward.
    fn look(&mut self, now_ns: u64, seen: Option<Unapplied>) -> Vec<GroupId> {
        let is_same = self.seen == seen;
        if !is_same {
            *self = Stuck { seen, since_ns: now_ns, pause_ns: STUCK_NS };
            return Vec::new();
        }
        let Some((_, groups)) = &self.seen else { return Vec::new() };
        if now_ns.saturating_sub(self.since_ns) < self.pause_ns {
            return Vec::new();
        }
        (self.since_ns, self.pause_ns) = (now_ns, PAUSE_NS_MAX.min(2 * self.pause_ns));
        groups.iter().map(|(group, _)| *group).collect()
    }

    /// Asks the loop that commits to carry forward what has kept the oldest file for long.
    pub(super) fn ask(&mut self, shard: &Shard) {
        let applied = |group| shard.with_core(|core| core.applied_index(group));
        let groups = self.look(shard.clock.now_ns(), shard.wal.unapplied_in_oldest(applied));
        if !groups.is_empty() {
            shard.want_carry.replace(groups);
            shard.work.notify();
        }
    }
}

/// Carries forward what one group has that was asked for; says whether there are more. What cannot be carried stays where it
/// is, and is asked for again later. Not cancel-safe.
pub(super) async fn carry_forward(shard: &Rc<Shard>) -> bool {
    let next = shard.want_carry.borrow_mut().pop();
    if let Some(group) = next
        && let Some(applied) = shard.with_core(|core| core.applied_index(group))
    {
        carry(shard, group, applied).await;
    }
    !shard.want_carry.borrow().is_empty()
}

async fn carry(shard: &Rc<Shard>, group: GroupId, applied: RaftIndex) {
    let carried = match shard.wal.read_to_carry(group, applied).await {
        Ok(Some(carried)) => carried,
        Ok(None) => {
            tracing::debug!(
                shard = shard.id.0,
                partition = shard.name_of(group),
                "there is too much to be carried forward"
            );
            return;
        }
        Err(error) => {
            tracing::error!(
                shard = shard.id.0,
                partition = shard.name_of(group),
                "entries cannot be carried forward: {error}"
            );
            return;
        }
    };
    if let Room::None = make_room(shard, carried.records()).await {
        return;
    }
    match shard.wal.append_carried(&carried).await {
        Ok(false) => {} // a checkpoint has applied some of them since they were read
        Ok(true) => {
            // It is marked as any other block: nothing else may ever follow it.
            shard.last_block_ns.set(shard.clock.now_ns());
            shard.mark_due.set(true);
            tracing::info!(
                shard = shard.id.0,
                group = group.0,
                entries = carried.records().len(),
                "entries without a quorum keep the oldest file of the log, and move to its end"
            );
        }
        Err(error) => fatal(&Reason::WalWrite { shard: shard.id, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(file: u64, applied: u64) -> Option<Unapplied> {
        Some((FileSeq(file), vec![(GroupId(7), RaftIndex(applied))]))
    }

    #[test]
    fn given_entries_that_are_not_applied_when_they_keep_the_oldest_file_then_they_move_only_after_long()
     {
        let mut stuck = Stuck::default();
        assert!(stuck.look(0, None).is_empty());
        assert!(stuck.look(10 * STUCK_NS, None).is_empty(), "nothing is in the way");
        let begin = 20 * STUCK_NS;
        assert!(stuck.look(begin, seen(1, 5)).is_empty());
        assert!(stuck.look(begin + STUCK_NS - 1, seen(1, 5)).is_empty());
        assert!(stuck.look(begin + STUCK_NS, seen(1, 6)).is_empty(), "it went a step ahead");
        assert!(stuck.look(begin + 2 * STUCK_NS, seen(2, 6)).is_empty(), "it is another file");
        assert_eq!(stuck.look(begin + 3 * STUCK_NS, seen(2, 6)), [GroupId(7)]);
        assert!(stuck.look(begin + 5 * STUCK_NS - 1, seen(2, 6)).is_empty(), "not each time");
        assert_eq!(stuck.look(begin + 5 * STUCK_NS, seen(2, 6)), [GroupId(7)], "it was in vain");
        assert!(stuck.look(begin + 5 * STUCK_NS + 1, seen(3, 6)).is_empty());
        assert_eq!(stuck.look(begin + 6 * STUCK_NS + 1, seen(3, 6)), [GroupId(7)]);
    }
}
