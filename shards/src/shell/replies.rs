//! Who waits for what on a shard: produces and commands that wait for their commit, readers that wait for a quorum,
//! fetches that wait for data.
//!
//! - I1: every token that [`ReplyTable::insert`] gave out is answered once, or its waiter is told by the drop of the
//!   sending half that the shard has gone.
//! - I2: the core that waits and the core that answers may differ: a [`ReplyTo`] brings the answer home over the mesh.

use std::collections::HashMap;

use chronik_engine::ids::ShardId;
use futures_channel::oneshot;

use super::shard::Shard;
use crate::core::{Token, WaiterId};

/// Where an answer goes: to a task on the core that made this.
#[derive(Debug)]
pub struct ReplyTo<T> {
    home: ShardId,
    sender: oneshot::Sender<T>,
}

impl<T: Send + 'static> ReplyTo<T> {
    /// For an answer that is waited for on `home`; to be called there.
    pub fn channel(home: ShardId) -> (ReplyTo<T>, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (ReplyTo { home, sender }, receiver)
    }

    /// Answers from the core of `from`. Whoever waited may have left; that is fine.
    pub fn send(self, from: &Shard, value: T) {
        let ReplyTo { home, sender } = self;
        if home == from.id {
            _ = sender.send(value);
        } else {
            // Refused, the sender is dropped, and that is an answer too.
            _ = from.mesh().send(home, Box::new(move |_| _ = sender.send(value)));
        }
    }
}

/// Those who wait for an outcome on one shard, by the tokens that the core knows them by.
#[derive(Debug)]
pub struct ReplyTable<T> {
    slots: Vec<Option<Waiting<T>>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Waiting<T> {
    reply_to: ReplyTo<T>,
    since_ns: u64,
}

impl<T> Default for ReplyTable<T> {
    fn default() -> ReplyTable<T> {
        ReplyTable { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> ReplyTable<T> {
    /// Takes note of somebody who waits since `since_ns` and names them.
    pub fn insert(&mut self, reply_to: ReplyTo<T>, since_ns: u64) -> Token {
        let waiting = Waiting { reply_to, since_ns };
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

    /// Gives out the one named by `token`, to be answered, and since when they waited.
    pub fn take(&mut self, token: Token) -> Option<(ReplyTo<T>, u64)> {
        let slot = usize::try_from(token.0).ok()?;
        let waiting = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some((waiting.reply_to, waiting.since_ns))
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
    waiting: HashMap<WaiterId, ReplyTo<()>>,
}

impl WaiterTable {
    /// Takes note of a fetch.
    pub fn insert(&mut self, waiter: WaiterId, wake: ReplyTo<()>) {
        self.waiting.insert(waiter, wake);
    }

    /// Gives out a fetch that still waits, to be woken.
    pub fn take(&mut self, waiter: WaiterId) -> Option<ReplyTo<()>> {
        self.waiting.remove(&waiter)
    }

    /// Gives out all of them.
    pub fn take_all(&mut self) -> Vec<ReplyTo<()>> {
        self.waiting.drain().map(|(_, wake)| wake).collect()
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
