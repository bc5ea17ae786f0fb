//! Acknowledgements that wait for more replicas than Raft's quorum.
//!
//! What a quorum holds is committed and stays. A topic whose `min.insync.replicas` is larger than a quorum asks for more:
//! its batches are shown to readers when they are committed, and acknowledged once as many voters hold them. A voter holds
//! what it has on its disk, whether it keeps up or not.
//!
//! - I1: they are answered in the order of the log: who asks for less waits behind who asks for more.
//! - I2: with the leadership goes the knowledge of who holds what: those who wait are told so, and ask the next leader. It
//!   does not know how many held what its log brought along, so a duplicate of that waits here as the first one would.
//! - I3: so many wait at most; who comes then is told to come again. A producer that gives up and tries anew leaves its
//!   place behind until the batch is held by enough.

use std::collections::VecDeque;

use chronik_engine::ids::RaftIndex;

use super::group::{Group, InFlight, acked};
use super::{Appended, ProduceError, RequiredAcks, Shared, Token};

/// Acknowledgements that one group holds back at most (I3).
const HELD_MAX: usize = 4_096;

/// A batch that is committed and not acknowledged.
#[derive(Debug)]
struct HeldBatch {
    index: RaftIndex,
    appended: Appended,
    waiting: Vec<(Token, RequiredAcks)>,
}

/// What a leader holds back.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// As many voters must hold a batch.
    holders_min: usize,
    batches: VecDeque<HeldBatch>,
    /// Those who wait, of all batches.
    waiting: usize,
}

impl Held {
    pub(super) fn holders_min(&self) -> usize {
        self.holders_min
    }
}

impl Group {
    /// As many voters as this must hold what is proposed from now on, and what waits already. What a quorum covers costs
    /// nothing.
    pub(super) fn set_holders_min(&mut self, wanted: usize, shared: &mut Shared) {
        let quorum = self.raft.meta().voters.len() / 2 + 1;
        match &mut self.held {
            Some(held) => {
                let is_less = wanted < held.holders_min;
                held.holders_min = wanted;
                if is_less {
                    self.release_held(shared);
                }
            }
            None if wanted > quorum => {
                let (batches, waiting) = (VecDeque::new(), 0);
                self.held = Some(Box::new(Held { holders_min: wanted, batches, waiting }));
            }
            None => {}
        }
    }

    /// Whether as many wait as may (I3).
    pub(super) fn holds_too_many(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.waiting >= HELD_MAX)
    }

    /// Acknowledges a batch that is applied now, or holds that back.
    pub(super) fn acknowledge(&mut self, own: &InFlight, shared: &mut Shared) {
        let appended = self.appended(own);
        let tokens = own.waiting.iter().chain(&own.duplicates).copied();
        let (for_all, others): (Vec<_>, Vec<_>) =
            tokens.partition(|(_, acks)| self.held.is_some() && acks.is_for_all());
        shared
            .effects
            .replies
            .extend(others.into_iter().map(|(token, _)| (token, acked(appended))));
        if let Some(held) = self.held.as_mut().filter(|_| !for_all.is_empty()) {
            held.waiting += for_all.len();
            held.batches.push_back(HeldBatch { index: own.index, appended, waiting: for_all });
        }
    }

    /// Lets the token of a duplicate whose first one is applied wait as that does, or as long as it would have to had it
    /// come to this leader (I2): until enough voters hold all that is applied now, which the first one is among. Says
    /// whether it has to.
    pub(super) fn hold_duplicate(
        &mut self,
        appended: Appended,
        waiting: (Token, RequiredAcks),
    ) -> bool {
        let index = self.raft.applied();
        let holders = self.raft.voters_with(index);
        let voters = self.raft.meta().voters.len();
        let Some(held) = &mut self.held else { return false };
        let base_offset = appended.base_offset;
        let first = held.batches.iter_mut().find(|held| held.appended.base_offset == base_offset);
        match first {
            Some(first) => first.waiting.push(waiting),
            None if holders >= held.holders_min.min(voters) => return false,
            None => {
                held.batches.push_back(HeldBatch { index, appended, waiting: vec![waiting] });
            }
        }
        held.waiting += 1;
        true
    }

    /// Acknowledges what enough voters hold by now. To be called after everything that may have told of that.
    pub(super) fn release_held(&mut self, shared: &mut Shared) {
        let Some(mut held) = self.held.take() else { return };
        let voters = self.raft.meta().voters.len();
        let wanted = held.holders_min.min(voters);
        let is_enough = |batch: &HeldBatch| self.raft.voters_with(batch.index) >= wanted;
        while held.batches.front().is_some_and(is_enough)
            && let Some(batch) = held.batches.pop_front()
        {
            held.waiting -= batch.waiting.len();
            let tokens = batch.waiting.into_iter().map(|(token, _)| token);
            let replies = tokens.map(|token| (token, acked(batch.appended)));
            shared.effects.replies.extend(replies);
        }
        // Nothing to hold, and nothing that would ask for it, also not of batches under way when there are more voters.
        if !held.batches.is_empty() || held.holders_min > voters / 2 + 1 {
            self.held = Some(held);
        }
    }

    /// Acknowledges what enough voters have in memory to those for whom that is enough.
    pub(super) fn release_held_received(&mut self, up_to: RaftIndex, shared: &mut Shared) {
        let Some(held) = &mut self.held else { return };
        for batch in held.batches.iter_mut().take_while(|batch| batch.index <= up_to) {
            for (token, _) in batch.waiting.extract_if(.., |(_, acks)| acks.is_relaxed()) {
                held.waiting -= 1;
                shared.promises.acks += 1;
                shared.effects.replies.push((token, acked(batch.appended)));
            }
        }
    }

    /// Tells those who wait that nothing more will be heard here (I2).
    pub(super) fn drop_held(&mut self, shared: &mut Shared, error: ProduceError) {
        let Some(held) = self.held.take() else { return };
        let waiting = held.batches.into_iter().flat_map(|batch| batch.waiting);
        shared.effects.replies.extend(waiting.map(|(token, _)| (token, Err(error))));
    }
}
