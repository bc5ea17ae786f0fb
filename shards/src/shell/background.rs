//! Work for the background threads, and how its result comes back to the core that asked for it.

use std::rc::Rc;

use chronik_engine::disk_direct::DirectDisk;
use chronik_tiering::executor::{Busy, Executor};
use futures_channel::oneshot;

use super::shard::Shard;

/// The background threads of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Background {
    /// Writes segments of full log files and removes files: what the log waits for.
    pub writer: Executor,
    /// Compacts and merges: what may take long.
    pub cleaner: Executor,
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
