//! Acknowledgements that wait for more replicas than Raft's quorum.
//!
//! What a quorum holds is committed and stays. A topic whose `min.insync.replicas` is larger than a quorum asks for more:
//! its batches are shown to readers when they are committed, and acknowledged once as many voters hold them. A voter holds
//! what it has on its disk, whether it keeps up or not.
//!
//! - I1: they are answered in the order of the log: who asks for less waits behind who asks for more.
//! - I2: with the leadership goes the knowledge of who holds what: those who wait are told so, and ask the next leader.

use std::collections::VecDeque;

use chronik_engine::ids::{Offset, RaftIndex};

use super::group::{Group, InFlight, acked};
use super::{Appended, ProduceError, RequiredAcks, Shared, Token};

/// A batch that is committed and not acknowledged.
#[derive(Debug)]
struct HeldBatch {
    index: RaftIndex,
    appended: Appended,
    waiting: Vec<Token>,
}

/// What a leader holds back.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// As many voters must hold a batch.
    holders_min: usize,
    batches: VecDeque<HeldBatch>,
}

impl Group {
    /// As many voters as this must hold what is proposed from now on. What a quorum covers costs nothing.
    pub(super) fn set_holders_min(&mut self, wanted: usize) {
        let quorum = self.raft.meta().voters.len() / 2 + 1;
        match &mut self.held {
            Some(held) => held.holders_min = wanted,
            None if wanted > quorum => {
                self.held = Some(Box::new(Held { holders_min: wanted, batches: VecDeque::new() }));
            }
            None => {}
        }
    }

    /// Acknowledges a batch that is applied now, or holds that back.
    pub(super) fn acknowledge(&mut self, own: &InFlight, shared: &mut Shared) {
        let appended = self.appended(own);
        let tokens = own.waiting.iter().chain(&own.duplicates).copied();
        let (for_all, others): (Vec<_>, Vec<_>) =
            tokens.partition(|(_, acks)| self.held.is_some() && *acks == RequiredAcks::All);
        shared
            .effects
            .replies
            .extend(others.into_iter().map(|(token, _)| (token, acked(appended))));
        if let Some(held) = self.held.as_mut().filter(|_| !for_all.is_empty()) {
            let waiting = for_all.into_iter().map(|(token, _)| token).collect();
            held.batches.push_back(HeldBatch { index: own.index, appended, waiting });
        }
    }

    /// Lets the token of a duplicate wait with the batch at `base_offset`, if that waits itself.
    pub(super) fn wait_with_held(&mut self, base_offset: Offset, token: Token) -> bool {
        let Some(held) = &mut self.held else { return false };
        let first = held.batches.iter_mut().find(|held| held.appended.base_offset == base_offset);
        first.map(|first| first.waiting.push(token)).is_some()
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
            let replies = batch.waiting.into_iter().map(|token| (token, acked(batch.appended)));
            shared.effects.replies.extend(replies);
        }
        // Nothing to hold, and nothing that would ask for it.
        if !held.batches.is_empty() || wanted > voters / 2 + 1 {
            self.held = Some(held);
        }
    }

    /// Tells those who wait that nothing more will be heard here (I2).
    pub(super) fn drop_held(&mut self, shared: &mut Shared, error: ProduceError) {
        let Some(held) = self.held.take() else { return };
        let waiting = held.batches.into_iter().flat_map(|batch| batch.waiting);
        shared.effects.replies.extend(waiting.map(|token| (token, Err(error))));
    }
}
