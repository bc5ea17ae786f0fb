//! A disk without room under what this shard leads, while others have some.
//!
//! A full disk takes no batch until somebody makes room, which may take days; a follower that has room can lead. So what is led here is
//! handed over, where others decide without this replica. Nobody tells who has room, so one after the other is asked.
//!
//! - I1: who has no room itself is handed nothing: it does not hear the call. So where all disks are full groups stay where
//!   they are, and elections do not use up what the log keeps in reserve.
//! - I2: who has not taken over soon is not waited for: no command is taken meanwhile, and deletions make room.

use chronik_replication::{Message, MessageType, PeerProgress, ReplicationState};

use super::group::Group;
use super::ticks::Tick;
use super::{ShardCore, Shared};

/// Between two tries to hand over what is led: 1 s, and each time twice as long …
const TRY_TICKS_FIRST: u64 = 20;
/// … up to 16 s: while nobody takes over, no command is taken either (I2).
const TRY_DOUBLINGS: u32 = 4;
/// Who is asked to take over has so long: 0.5 s. It takes milliseconds.
const TAKE_OVER_TICKS: u64 = 10;

/// Since when the disk has no room.
#[derive(Debug, Default)]
pub(super) struct FullDisk {
    since: Option<Tick>,
}

impl ShardCore {
    /// Whether there is room for the log to grow. While there is not, batches and commands are refused.
    pub fn set_storage_full(&mut self, is_full: bool) {
        let now = self.shared.ticks.now;
        self.full.since = is_full.then(|| self.full.since.unwrap_or(now));
        self.shared.promises.is_disk_full = is_full;
    }

    /// Whether batches are refused for want of room.
    #[must_use]
    pub fn storage_full(&self) -> bool {
        self.full.since.is_some()
    }

    /// To be called at each tick.
    pub(super) fn tick_full(&mut self) {
        let Some(since) = self.full.since else { return };
        let (tries, ticks) = last_try(self.shared.ticks.now.since(since));
        for group in self.groups.values_mut().filter(|group| group.is_live()) {
            if ticks == TAKE_OVER_TICKS {
                group.raft.stop_transfer();
            } else if ticks == 1 && group.others_decide() {
                group.hand_over_to_next(tries, &mut self.shared);
            }
        }
    }

    /// Whether a message calls on a replica here to lead, which it could not (I1).
    pub(super) fn is_call_in_vain(&self, message: &Message) -> bool {
        self.storage_full() && message.get_msg_type() == MessageType::MsgTimeoutNow
    }
}

/// How many tries were before the last one, and how many ticks have passed since that one began.
fn last_try(mut ticks: u64) -> (u64, u64) {
    for tries in 0..TRY_DOUBLINGS {
        let pause = TRY_TICKS_FIRST << tries;
        match ticks.checked_sub(pause) {
            Some(left) => ticks = left,
            None => return (tries.into(), ticks),
        }
    }
    let pause = TRY_TICKS_FIRST << TRY_DOUBLINGS;
    (u64::from(TRY_DOUBLINGS) + ticks / pause, ticks % pause)
}

impl Group {
    /// Hands the group to one of those that take entries as they come, with each try to another.
    fn hand_over_to_next(&mut self, tries: u64, shared: &mut Shared) {
        let takes = |peer: &PeerProgress| peer.state == ReplicationState::Replicate;
        let heirs: Vec<PeerProgress> = self.voters_in_reach().filter(takes).collect();
        let turn = usize::try_from(tries).unwrap_or(0).checked_rem(heirs.len());
        if let Some(heir) = turn.and_then(|at| heirs.get(at)) {
            self.hand_over_to(heir.replica, shared);
        }
    }
}
