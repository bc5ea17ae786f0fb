//! Who waits for what on a shard: produces and commands that wait for their commit, fetches that wait for data.
//!
//! - I1: every token that [`ReplyTable::insert`] gave out is answered once, or its waiter is told by the drop of the
//!   sending half that the shard has gone.
//! - I2: the core that waits and the core that answers may differ; the one-shot channels carry the answer across.

use std::collections::HashMap;

use chronik_engine::ids::ShardId;
use futures_channel::oneshot;

use crate::core::{ProduceResult, Token, WaiterId};

/// The waiting produces and commands of one shard.
#[derive(Debug, Default)]
pub struct ReplyTable {
    slots: Vec<Option<Waiting>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Waiting {
    sender: oneshot::Sender<ProduceResult>,
    since_ns: u64,
}

impl ReplyTable {
    /// Takes note of somebody who waits since `since_ns` and names them.
    pub fn insert(&mut self, sender: oneshot::Sender<ProduceResult>, since_ns: u64) -> Token {
        let waiting = Waiting { sender, since_ns };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(waiting);
                slot
            }
            None => {
                self.slots.push(Some(waiting));
                self.slots.len() - 1
            }
        };
        Token(slot as u64)
    }

    /// Answers the one named by `token` and says since when they waited. The waiter may have left; that is fine.
    pub fn answer(&mut self, token: Token, result: ProduceResult) -> Option<u64> {
        let slot = usize::try_from(token.0).ok()?;
        let waiting = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        _ = waiting.sender.send(result);
        Some(waiting.since_ns)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The fetches that wait for data on one shard, local ones and those of other cores.
#[derive(Debug, Default)]
pub struct WaiterTable {
    waiting: HashMap<WaiterId, oneshot::Sender<()>>,
}

impl WaiterTable {
    /// Takes note of a fetch.
    pub fn insert(&mut self, waiter: WaiterId, sender: oneshot::Sender<()>) {
        self.waiting.insert(waiter, sender);
    }

    /// Wakes a fetch, if it still waits.
    pub fn wake(&mut self, waiter: WaiterId) {
        if let Some(sender) = self.waiting.remove(&waiter) {
            _ = sender.send(());
        }
    }

    /// Forgets a fetch that gave up.
    pub fn remove(&mut self, waiter: WaiterId) {
        self.waiting.remove(&waiter);
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Names waiters so that no two shards of a node ever give the same name.
#[derive(Debug)]
pub struct WaiterIds {
    next: u64,
}

impl WaiterIds {
    /// The names that `shard` may give.
    #[must_use]
    pub fn of(shard: ShardId) -> WaiterIds {
        WaiterIds { next: u64::from(shard.0) << 48 }
    }

    /// The next name.
    pub fn give(&mut self) -> WaiterId {
        self.next += 1;
        WaiterId(self.next)
    }
}
