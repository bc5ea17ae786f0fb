//! Threads for background work: each does one job after the other and serves nobody who waits.

use std::num::NonZeroUsize;
use std::sync::mpsc::{SyncSender, sync_channel};

use chronik_engine::disk_direct::DirectDisk;

/// Something to do, with the disk to do it on.
pub type Job = Box<dyn FnOnce(&DirectDisk) + Send>;

/// The thread has as many jobs as may wait, or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the background thread has too many jobs")]
pub struct Busy;

/// A background thread. It ends, after the job at hand, when all handles are gone. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Executor {
    jobs: SyncSender<Job>,
}

impl Executor {
    /// Starts a thread of this name that lets `jobs_max` jobs wait. It writes around the page cache and stands back
    /// where others want the processor.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(name: &str, jobs_max: NonZeroUsize) -> std::io::Result<Executor> {
        let (jobs, waiting) = sync_channel::<Job>(jobs_max.get());
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            stand_back();
            let disk = DirectDisk;
            while let Ok(job) = waiting.recv() {
                job(&disk);
            }
        })?;
        Ok(Executor { jobs })
    }

    /// Hands over a job.
    ///
    /// # Errors
    /// [`Busy`] if it cannot be taken now; it is dropped.
    pub fn submit(&self, job: Job) -> Result<(), Busy> {
        self.jobs.try_send(job).map_err(|_| Busy)
    }
}

/// Gives this thread a smaller share of the processor than those that serve, but one: on a busy machine the log must not
/// grow without end. At the disk it comes last, where the disk's scheduler knows such a thing: those do not let it wait
/// for ever. Where either is refused it works all the same.
fn stand_back() {
    // Linux takes 0 for the calling thread, not for its process.
    if let Err(error) = rustix::process::setpriority_process(None, 5) {
        tracing::debug!("background work runs at the usual priority: {error}");
    }
    if let Err(error) = chronik_engine::sched::come_last_at_disk() {
        tracing::debug!("background work has its usual turn at the disk: {error}");
    }
}
