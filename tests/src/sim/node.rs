//! The shell of the shard as the simulator runs it: the same loop as in production (`shards::shell::commit`), written as
//! futures that the run polls when its seed says so.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use chronik_engine::ids::GroupId;
use chronik_engine::wal::record::{GroupCheckpoint, WalRecord};
use chronik_engine::wal::{SpareProgress, Wal, WalError};
use chronik_shards::core::ShardCore;

use super::Bug;
use super::disk::HookedDisk;

/// Small, so that proposals are spread over blocks.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Something that goes on beside the clients.
pub type Task<T> = Pin<Box<dyn Future<Output = T>>>;

/// Polls a task once.
pub fn poll_once<T>(task: &mut Task<T>) -> Option<T> {
    match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// A running shard.
pub struct Node {
    /// The core.
    pub core: RefCell<ShardCore>,
    /// Its log.
    pub wal: Wal<HookedDisk>,
    /// What the core believes to be durable, not yet seen by the oracle.
    pub persisted: RefCell<Vec<WalRecord>>,
    /// How often the log went on in a new file.
    pub rolls: Cell<u64>,
    /// Files taken back.
    pub reclaimed: Cell<usize>,
    /// How often batches of a partition were refused for want of room after they had got their place.
    pub refused: Cell<usize>,
    bug: Option<Bug>,
    last_checkpoints: RefCell<Vec<GroupCheckpoint>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("wal", &self.wal).finish_non_exhaustive()
    }
}

impl Node {
    /// A shard that was just opened.
    pub fn new(core: ShardCore, wal: Wal<HookedDisk>, bug: Option<Bug>) -> Rc<Node> {
        Rc::new(Node {
            core: RefCell::new(core),
            wal,
            persisted: RefCell::default(),
            rolls: Cell::new(0),
            reclaimed: Cell::new(0),
            refused: Cell::new(0),
            bug,
            last_checkpoints: RefCell::default(),
        })
    }

    /// Writes the next block, if there is one. An error ends the process.
    pub async fn write_block(self: Rc<Node>) -> Result<(), WalError> {
        let (block, believed, written) = loop {
            let Some(block) = self.core.borrow_mut().take_block(BLOCK_BYTES_MAX) else {
                return Ok(());
            };
            let believed = block.records.clone();
            let written = self.records_to_write(&believed);
            if self.make_room(&written).await? {
                break (block, believed, written);
            }
            self.core.borrow_mut().set_storage_full(true);
            let refused = self.core.borrow_mut().refuse_batches(block);
            if refused == 0 {
                yield_once().await;
            }
            self.refused.set(self.refused.get() + refused);
        };
        if self.bug == Some(Bug::AckBeforePersist) {
            self.core.borrow_mut().block_persisted(block);
            self.persisted.borrow_mut().extend(believed);
            return self.append(&written).await;
        }
        self.append(&written).await?;
        self.persisted.borrow_mut().extend(believed);
        self.core.borrow_mut().block_persisted(block);
        Ok(())
    }

    async fn append(&self, records: &[WalRecord]) -> Result<(), WalError> {
        if records.is_empty() {
            return Ok(());
        }
        self.wal.append(records).await.map(|_| ())
    }

    fn records_to_write(&self, records: &[WalRecord]) -> Vec<WalRecord> {
        let is_entry = |record: &WalRecord| matches!(record, WalRecord::Entry { .. });
        let drops = self.bug == Some(Bug::DropHardState) && records.iter().any(is_entry);
        let keep = |record: &&WalRecord| !drops || !matches!(record, WalRecord::HardState { .. });
        records.iter().filter(keep).cloned().collect()
    }

    /// Whether there is room for these records.
    async fn make_room(&self, records: &[WalRecord]) -> Result<bool, WalError> {
        if records.is_empty() || !self.wal.needs_roll(records) {
            return Ok(true);
        }
        let checkpoints = self.checkpoints().await;
        match self.wal.roll(checkpoints, records).await {
            Ok(()) => {
                self.rolls.set(self.rolls.get() + 1);
                Ok(true)
            }
            Err(WalError::StorageFull { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn checkpoints(&self) -> Vec<GroupCheckpoint> {
        let groups = self.core.borrow().groups_to_checkpoint();
        let mut now = Vec::new();
        for group in groups {
            now.extend(self.core.borrow().checkpoint(group));
            yield_once().await;
        }
        if self.bug == Some(Bug::StaleCheckpoint) {
            let mut before = self.last_checkpoints.replace(now.clone());
            for checkpoint in &mut now {
                let old = before.iter_mut().find(|old| old.group == checkpoint.group);
                if let Some(old) = old.filter(|old| old.group != GroupId::META) {
                    checkpoint.state = std::mem::take(&mut old.state);
                }
            }
        }
        now
    }

    /// Marks the log, as an idle shard does.
    pub async fn write_mark(self: Rc<Node>) -> Result<(), WalError> {
        self.wal.write_mark().await.map(|_| ())
    }

    /// Footers, reclaim and a step towards the next file.
    pub async fn upkeep(self: Rc<Node>) -> Result<(), WalError> {
        self.wal.finish_sealed().await?;
        let cuts = self.wal.cuts_of_oldest(|group| self.core.borrow().log_need(group));
        for (group, index) in cuts {
            self.core.borrow_mut().cut_log(group, index);
        }
        let needed = |group| self.core.borrow().first_index_needed(group);
        let reclaimed = self.wal.reclaim(|| None, needed).await?;
        self.reclaimed.set(self.reclaimed.get() + reclaimed);
        let progress = match self.wal.prepare_spare_step(1 << 20).await {
            Ok(progress) => progress,
            Err(WalError::StorageFull { .. }) => SpareProgress::Ready,
            Err(error) => return Err(error),
        };
        if progress == SpareProgress::Ready {
            self.core.borrow_mut().set_storage_full(self.wal.is_storage_full());
        }
        Ok(())
    }
}

/// Lets the run do something else.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
