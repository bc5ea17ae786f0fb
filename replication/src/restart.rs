//! A group that forgets what never reached the disk, as a crash would make it, while its process lives on.
//!
//! Where there is no room for entries that were handed out, their owner may want to be rid of them. A leader cannot take
//! entries back, but any replica may lose what is not durable: nobody was told of it. So the group begins again with its
//! durable state, as a follower: of the leader that it had, if the term of that one is durable (a term has one leader only), else of
//! none. What it writes of its own from then on is of a later term.

use chronik_engine::ids::{RaftIndex, ReplicaId};
use chronik_engine::wal::record::LogEntry;
use raft::INVALID_ID;

use crate::config::RecoveredLog;
use crate::error::RecoverError;
use crate::group::RaftGroup;
use crate::ready::PendingWrite;

impl RaftGroup {
    /// Whether all that is durable is in memory: not while a write would replace durable entries, or a snapshot all of
    /// them.
    #[must_use]
    pub fn can_restart(&self) -> bool {
        let keeps =
            |write: &PendingWrite| write.truncate_after.is_none() && write.install.is_none();
        self.installed.is_none() && self.pending.iter().all(keeps)
    }

    /// Begins again with what is durable. Outputs that were given out and not persisted must never be written, and
    /// nothing be said about them; numbers of outputs begin anew. Take a [`RaftGroup::ready`] before the next
    /// [`RaftGroup::campaign`].
    ///
    /// # Errors
    /// If the durable state is not coherent, which would be an error of this program.
    pub fn restart(&mut self) -> Result<(), RecoverError> {
        assert!(self.can_restart(), "durable entries are not in memory");
        let (term, leader) = (self.node.raft.term, self.node.raft.leader_id);
        let parts = self.checkpoint_parts();
        let durable = parts.applied.next().0..=parts.last.index.0;
        let entries = durable.map(|index| self.durable_entry(index)).collect();
        let log = RecoveredLog {
            meta: parts.meta,
            hard_state: parts.hard_state,
            log_start: parts.log_start,
            epochs: parts.epochs,
            entries,
            last: parts.last,
            applied: parts.applied,
            applied_end_offset: parts.applied_end_offset,
        };
        *self = RaftGroup::new(self.config.clone(), log)?;
        let raft = &mut self.node.raft;
        if raft.term == term && leader != raft.id && leader != INVALID_ID {
            raft.become_follower(term, leader);
            self.draw_election_timeout();
        }
        Ok(())
    }

    /// Calls a voter to lead, which the others let it though they hear of their leader: to be asked of the replica that led this
    /// term, since nobody else is heeded.
    pub fn call_to_lead(&mut self, voter: ReplicaId) {
        self.node.raft.send_timeout_now(voter.0);
    }

    fn durable_entry(&self, index: u64) -> LogEntry {
        let slot = self.node.store().slot(RaftIndex(index));
        match slot {
            Some(slot) => slot.entry.clone(),
            None => unreachable!("entries after the applied ones are in memory, {index} is not"),
        }
    }
}
