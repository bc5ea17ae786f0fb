//! What readers wait for before a leader answers them from what it holds.
//!
//! - I1: a node without a cluster waits for nothing, and does not ask its core either: nobody else could lead.

use std::rc::Rc;

use chronik_engine::ids::GroupId;
use futures_channel::oneshot;

use super::replies::ReplyTo;
use super::shard::Shard;
use crate::core::{FetchError, ReadBarrier};

/// Whether this replica leads a group and holds all that was committed, known now or soon. It was asked for when this
/// was made, so several are under way side by side.
#[derive(Debug)]
pub enum Leading {
    /// Known.
    Known(Result<(), FetchError>),
    /// A quorum is asked.
    Asked(oneshot::Receiver<Result<(), FetchError>>),
}

impl Leading {
    /// Waits until it is known. Cancel-safe.
    ///
    /// # Errors
    /// If it does not lead, or a quorum does not say so in time.
    pub async fn known(self) -> Result<(), FetchError> {
        match self {
            Leading::Known(outcome) => outcome,
            Leading::Asked(answer) => answer.await.unwrap_or(Err(FetchError::NotLeader)),
        }
    }
}

impl Shard {
    /// Asks whether what this replica holds of a group is as new as anything that was answered by any replica before
    /// this call. To be called on the group's shard.
    pub fn still_leads(self: &Rc<Self>, group: GroupId) -> Leading {
        if self.links().is_none() {
            return Leading::Known(Ok(())); // I1
        }
        let (reply_to, answer) = ReplyTo::channel(self.id);
        let token = self.reads.borrow_mut().insert(reply_to, self.clock.now_ns());
        match self.change_core(|core| core.read_barrier(group, token)) {
            Ok(ReadBarrier::Waits) => Leading::Asked(answer),
            passed_or_refused => {
                drop(self.reads.borrow_mut().take(token));
                Leading::Known(passed_or_refused.map(|_| ()))
            }
        }
    }
}
