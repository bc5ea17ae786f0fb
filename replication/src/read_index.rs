//! Reads that no other leader can have overtaken: Raft's ReadIndex, by asking a quorum, never by a lease.
//!
//! A leader that was cut off or stopped does not know that another one leads. Before it answers from what it holds it
//! asks its peers; a quorum that still follows it proves that nothing was committed elsewhere when the round began.
//!
//! - I1: a round is confirmed only by answers to messages that were sent after it began: each has a context of its own.
//! - I2: with its leadership a replica forgets its rounds; nothing is heard of them any more.
//! - I3: no round begins before an entry of the leader's own term is committed: raft-rs would drop it without a word, and
//!   the commit index would say too little.
//! - I4: peers neither ask for rounds nor answer in another's name: the gate refuses such messages.

use chronik_engine::ids::RaftIndex;
use raft::ReadState;

use crate::group::RaftGroup;

/// Names a round of asking. Rises within the life of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadRound(u64);

/// A quorum has said, after the round began, that this replica leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadConfirmed {
    /// The round.
    pub round: ReadRound,
    /// All that was committed when the round began, wherever: once it is applied, reads may be answered.
    pub index: RaftIndex,
}

impl RaftGroup {
    /// Whether nobody could lead in its place: it leads and is its group's only voter. Then there is nobody to ask.
    #[must_use]
    pub fn leads_alone(&self) -> bool {
        self.is_leader() && self.is_sole_voter()
    }

    /// Asks a quorum whether this replica leads. What comes of it is in [`crate::ReadyOutput::reads`], or never if
    /// leadership goes; there are messages to send. `None` if it does not lead, or not long enough (I3).
    pub fn begin_read(&mut self) -> Option<ReadRound> {
        if !self.is_established_leader() {
            return None;
        }
        self.read_rounds += 1;
        self.node.read_index(self.read_rounds.to_le_bytes().to_vec());
        Some(ReadRound(self.read_rounds))
    }

    /// Asks again: messages of the last round, or the answers, may have been lost. Of no effect on who does not lead.
    pub fn repeat_read(&mut self) {
        self.node.raft.ping();
    }
}

/// What raft-rs says of a round, unless it is none of ours.
pub(crate) fn confirmed(state: &ReadState) -> Option<ReadConfirmed> {
    let context: [u8; 8] = state.request_ctx.as_slice().try_into().ok()?;
    let round = ReadRound(u64::from_le_bytes(context));
    Some(ReadConfirmed { round, index: RaftIndex(state.index) })
}
