//! Who waits for a quorum to say that this replica still leads, before they are answered from what it holds.
//!
//! A leader that was stopped or cut off may have been replaced without knowing. What it would say of the end of a log, of
//! committed offsets, of a group's members or of a gap in a producer's sequence may be long outdated. So whoever asks for
//! such a thing passes a barrier first: one round of messages, shared by all who came before it began. Where the group
//! has one voter there is nobody to ask and nothing to wait for.
//!
//! - I1: every token comes back once, whatever becomes of the leadership.
//! - I2: whoever comes while a round is under way waits for the next one: answers to this one may be older than the
//!   question.
//! - I3: nobody passes before all that was committed when the round began is applied here.
//! - I4: those who wait are bounded, and so is how long: after an election timeout without a quorum nobody leads.

use std::collections::VecDeque;

use chronik_engine::ids::{GroupId, RaftIndex};
use chronik_replication::{ReadConfirmed, ReadRound};

use super::group::Group;
use super::producers::SequenceError;
use super::{FetchError, ProduceError, ShardCore, Shared, Token, live_mut};

/// Those who may wait on one shard; beyond that they are sent away.
const WAITING_MAX: usize = 100_000;
/// Ticks after which a round without a quorum is given up: as long as an election timeout.
const ROUND_TICKS_MAX: u32 = 60;
/// Ticks between two askings within a round: messages get lost, and heartbeats are far apart.
const REPEAT_TICKS: u32 = 4;

/// What becomes of somebody who wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBarrier {
    /// Nobody else could lead: there is nothing to wait for, and the token does not come back.
    Passed,
    /// The token comes back in [`super::Effects::reads`].
    Waits,
}

/// Somebody who waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waiting {
    /// To read.
    Read(Token),
    /// To hear that a batch leaves a gap, if that is so.
    Refused(Token, SequenceError),
}

#[derive(Debug)]
struct Round {
    round: ReadRound,
    waiting: Vec<Waiting>,
}

/// Those who wait on one group.
#[derive(Debug, Default)]
pub(super) struct Reads {
    under_way: Option<Round>,
    /// Rounds that a quorum has confirmed, which wait for what was committed before (I3).
    confirmed: VecDeque<(RaftIndex, Vec<Waiting>)>,
    /// For the next round (I2).
    next: Vec<Waiting>,
    /// How long the round lasts, or the wait for one.
    ticks: u32,
}

impl ShardCore {
    /// Lets `token` wait until what this replica holds of a group is known to be no older than this call: it leads, and
    /// has applied all that was committed.
    ///
    /// # Errors
    /// If it does not lead, or too many wait.
    pub fn read_barrier(
        &mut self,
        group: GroupId,
        token: Token,
    ) -> Result<ReadBarrier, FetchError> {
        let is_stopped = self.is_stopped;
        let found = live_mut(&mut self.groups, group);
        let found = found.ok_or(FetchError::UnknownPartition)?;
        if is_stopped || !found.can_propose() {
            return Err(FetchError::NotLeader);
        }
        if found.is_ready() && found.raft.leads_alone() {
            return Ok(ReadBarrier::Passed);
        }
        if !found.wait_for_quorum(Waiting::Read(token), &mut self.shared) {
            return Err(FetchError::NotLeader);
        }
        Ok(ReadBarrier::Waits)
    }
}

impl Shared {
    /// Answers those who waited (I1).
    fn answer_reads(&mut self, waiting: Vec<Waiting>, outcome: Result<(), FetchError>) {
        self.reads_waiting -= waiting.len();
        for one in waiting {
            match one {
                Waiting::Read(token) => self.effects.reads.push((token, outcome)),
                Waiting::Refused(token, gap) => {
                    let error = match outcome {
                        Ok(()) => ProduceError::Sequence(gap),
                        Err(FetchError::UnknownPartition) => ProduceError::UnknownPartition,
                        Err(_) => ProduceError::NotLeader,
                    };
                    self.effects.replies.push((token, Err(error)));
                }
            }
        }
    }
}

impl Group {
    /// Adds somebody to the next round, which begins now if none is under way. `false` if too many wait.
    pub(super) fn wait_for_quorum(&mut self, waiting: Waiting, shared: &mut Shared) -> bool {
        if shared.reads_waiting >= WAITING_MAX {
            return false;
        }
        shared.reads_waiting += 1;
        self.reads.get_or_insert_default().next.push(waiting);
        self.give_each_tick(shared);
        self.pump(shared);
        true
    }

    /// Begins a round if somebody waits for one; says whether there is something to send.
    pub(super) fn begin_read_round(&mut self) -> bool {
        let Some(reads) = &mut self.reads else { return false };
        if reads.under_way.is_some() || reads.next.is_empty() {
            return false;
        }
        let Some(round) = self.raft.begin_read() else { return false };
        reads.under_way = Some(Round { round, waiting: std::mem::take(&mut reads.next) });
        reads.ticks = 0;
        self.raft.has_ready()
    }

    /// A quorum has answered.
    pub(super) fn on_read_confirmed(&mut self, confirmed: ReadConfirmed) {
        let Some(reads) = &mut self.reads else { return };
        // A round that was given up is nobody's any more.
        let round = reads.under_way.take_if(|round| round.round == confirmed.round);
        if let Some(Round { waiting, .. }) = round {
            reads.confirmed.push_back((confirmed.index, waiting));
            reads.ticks = 0;
        }
    }

    /// Lets those pass whose round is confirmed, as far as its index is applied (I3).
    pub(super) fn pass_reads(&mut self, shared: &mut Shared) {
        let applied = self.raft.applied();
        let Some(reads) = &mut self.reads else { return };
        while reads.confirmed.front().is_some_and(|(index, _)| *index <= applied)
            && let Some((_, waiting)) = reads.confirmed.pop_front()
        {
            shared.answer_reads(waiting, Ok(()));
        }
        if reads.under_way.is_none() && reads.next.is_empty() && reads.confirmed.is_empty() {
            self.reads = None;
        }
    }

    /// This replica leads no more, or is no more: nobody passes.
    pub(super) fn fail_reads(&mut self, error: FetchError, shared: &mut Shared) {
        let Some(mut reads) = self.reads.take() else { return };
        let under_way = reads.under_way.take().map(|round| round.waiting);
        let confirmed = reads.confirmed.into_iter().map(|(_, waiting)| waiting);
        for waiting in under_way.into_iter().chain(confirmed).chain([reads.next]) {
            shared.answer_reads(waiting, Err(error));
        }
    }

    /// A tick has passed: asks again, or gives a round up (I4).
    pub(super) fn tick_reads(&mut self, shared: &mut Shared) {
        let Some(reads) = &mut self.reads else { return };
        reads.ticks += 1;
        if reads.ticks >= ROUND_TICKS_MAX {
            self.fail_reads(FetchError::NotLeader, shared);
        } else if reads.under_way.is_some() && reads.ticks.is_multiple_of(REPEAT_TICKS) {
            self.raft.repeat_read();
            self.pump(shared);
        }
    }
}
