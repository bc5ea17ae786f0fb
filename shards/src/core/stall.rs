//! A disk that takes a write and does not come back with it, as a remote volume may for minutes.
//!
//! Such a leader still sends heartbeats, so its groups would keep it, and get nothing more from it: the next block waits for the
//! one that hangs. Its followers lack nothing of that one, since entries leave while they are written; so they take over.
//!
//! - I1: a group is handed over only where others, in sync and in reach, decide without this replica. Elsewhere nothing would
//!   be gained, and nobody would answer readers meanwhile.
//! - I2: while the disk hangs this replica neither votes nor asks for votes: what it says as anything but a leader waits for the
//!   disk (I1 of `replication::ready`). Nor is it handed a group: it lacks what was committed since.
//! - I3: a full disk does not hang: its log finds out at once. What becomes of its leaderships is `full`'s.

use chronik_engine::ids::ReplicaId;
use chronik_replication::ReplicationState;

use super::ShardCore;
use super::group::Group;
use super::relaxed::LATE_TICKS;
use super::ticks::Tick;

/// After so many ticks without a block that became durable, though one was to, the disk hangs: 2 s. Far beyond what a disk under
/// load takes for the largest block, far below what clients wait.
const STALL_TICKS: u64 = 40;
/// Between two tries to hand over what is led, 250 ms: a group that looks at its quorum just now has heard of nobody yet.
const HAND_OVER_TICKS: u64 = 5;

/// How long the log has been waiting for its disk.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// A block was given out, and is not durable.
    is_in_flight: bool,
    /// The first tick that found something to write since the last block.
    waits_since: Option<Tick>,
    pub(super) count: u64,
}

impl Stall {
    pub(super) fn block_taken(&mut self) {
        self.is_in_flight = true;
    }

    fn block_ended(&mut self) {
        self.is_in_flight = false;
        self.waits_since = None;
    }
}

impl ShardCore {
    /// Whether the disk has left the log without an answer for so long that others lead what can be led elsewhere.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled_ticks().is_some()
    }

    /// The block is durable, or was taken back.
    pub(super) fn on_block_ended(&mut self) {
        self.stall.block_ended();
        self.shared.promises.is_log_late = false;
    }

    fn stalled_ticks(&self) -> Option<u64> {
        let since = self.stall.waits_since?;
        self.shared.ticks.now.since(since).checked_sub(STALL_TICKS)
    }

    /// To be called at each tick: a process that stood still has had none, so it does not take its own time for the disk's.
    pub(super) fn tick_stall(&mut self) {
        if self.storage_full() || !(self.stall.is_in_flight || self.has_work()) {
            self.stall.waits_since = None;
            return;
        }
        let now = self.shared.ticks.now;
        let since = *self.stall.waits_since.get_or_insert(now);
        self.shared.promises.is_log_late = now.since(since) >= LATE_TICKS;
        let Some(ticks) = self.stalled_ticks() else { return };
        if ticks == 0 {
            self.stall.count += 1;
        }
        if ticks.is_multiple_of(HAND_OVER_TICKS) {
            for group in self.groups.values_mut().filter(|group| group.is_live()) {
                if group.others_decide() {
                    group.hand_over(&mut self.shared);
                }
            }
        }
    }
}

impl Group {
    /// Whether this replica leads, and others that are in sync and in reach are a majority without it (I1).
    pub(super) fn others_decide(&self) -> bool {
        if !self.raft.is_leader() {
            return false;
        }
        let progress = self.raft.progress();
        let is_there = |replica: &&ReplicaId| {
            **replica != self.raft.replica()
                && progress.iter().any(|peer| {
                    peer.replica == **replica
                        && peer.recent_active
                        && peer.state == ReplicationState::Replicate
                })
        };
        let decide = |voters: &[ReplicaId]| {
            voters.is_empty() || voters.iter().filter(is_there).count() > voters.len() / 2
        };
        let members = self.raft.members();
        decide(&members.voters) && decide(&members.voters_outgoing)
    }
}
