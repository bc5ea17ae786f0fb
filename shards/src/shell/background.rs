//! Work for the background threads, and how its result comes back to the core that asked for it.

use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chronik_engine::disk_direct::DirectDisk;
use chronik_engine::ids::ShardId;
use chronik_tiering::executor::{Busy, Executor};
use futures_channel::oneshot;

use super::shard::Shard;

/// Jobs that may wait for a thread, per shard.
const JOBS_MAX: usize = 4;
/// Threads that write what is copied from leaders: a node without its records is to have them soon, and one thread waits
/// for the disk half of the time.
const FILLERS_MAX: u16 = 4;

/// The background threads of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Background {
    /// Writes segments of full log files: what the log waits for.
    pub writer: Executor,
    /// Removes files: short work that others wait for, and that must not wait for theirs.
    pub remover: Executor,
    /// Write what is copied from leaders; the shards share them.
    fillers: Arc<[Executor]>,
    /// Compacts and merges: what may take long.
    pub cleaner: Executor,
    waiting: WaitingBytes,
}

/// Bytes of the log that wait for `writer`, on all shards.
#[derive(Debug, Clone, Default)]
pub(super) struct WaitingBytes(Arc<AtomicU64>);

/// What one shard adds to them, as long as it runs.
#[derive(Debug)]
pub(super) struct WaitingShare {
    all: WaitingBytes,
    own: u64,
}

impl WaitingBytes {
    pub(super) fn share(&self) -> WaitingShare {
        WaitingShare { all: self.clone(), own: 0 }
    }
}

impl WaitingShare {
    /// So much waits on this shard; says how much that is together with the others.
    pub(super) fn set(&mut self, own: u64) -> u64 {
        let change = own.wrapping_sub(std::mem::replace(&mut self.own, own));
        self.all.0.fetch_add(change, Ordering::Relaxed).wrapping_add(change)
    }
}

impl Drop for WaitingShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Background {
    /// Starts the threads of a node.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn start(shards: u16) -> std::io::Result<Background> {
        let jobs_max = NonZeroUsize::MIN.saturating_add(JOBS_MAX * usize::from(shards));
        let fillers = (0..shards.clamp(1, FILLERS_MAX))
            .map(|number| Executor::start(&format!("chronik-fill-{number}"), jobs_max));
        Ok(Background {
            writer: Executor::start("chronik-tier", jobs_max)?,
            remover: Executor::start("chronik-remove", jobs_max)?,
            fillers: fillers.collect::<std::io::Result<_>>()?,
            cleaner: Executor::start("chronik-clean", jobs_max)?,
            waiting: WaitingBytes::default(),
        })
    }

    /// A shard's part of what waits for `writer`.
    pub(super) fn waiting_share(&self) -> WaitingShare {
        self.waiting.share()
    }

    /// The thread that writes what this shard copies.
    #[must_use]
    pub fn filler(&self, shard: ShardId) -> &Executor {
        &self.fillers[usize::from(shard.0) % self.fillers.len()]
    }
}

impl Shard {
    /// Lets a background thread do something and waits for what comes of it. `None` if the thread has too much to do, or
    /// the shard ends.
    pub(super) async fn in_background<T: Send + 'static>(
        self: &Rc<Self>,
        thread: &Executor,
        work: impl FnOnce(&DirectDisk) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let (mesh, id) = (self.mesh().clone(), self.id);
        let job = move |disk: &DirectDisk| {
            let result = work(disk);
            // Whoever waits is woken by its own core.
            let tell = move |_: &Rc<Shard>| drop(done.send(result));
            mesh.send_patiently(id, Box::new(tell));
        };
        match thread.submit(Box::new(job)) {
            Ok(()) => result.await.ok(),
            Err(Busy) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn given_segments_that_are_written_slowly_when_files_are_to_go_then_they_do_not_wait_for_it() {
        let background = Background::start(1).unwrap();
        let (end_writing, is_to_end) = channel::<()>();
        let write = move |_: &DirectDisk| is_to_end.recv().unwrap();
        background.writer.submit(Box::new(write)).unwrap();
        let (removed, is_removed) = channel();
        let remove = move |_: &DirectDisk| removed.send(()).unwrap();
        background.remover.submit(Box::new(remove)).unwrap();
        is_removed.recv().unwrap();
        end_writing.send(()).unwrap();
    }
}
