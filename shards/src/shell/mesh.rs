//! The way from core to core: each shard has a bounded inbox, and what arrives there is a [`Job`] that runs on that core
//! with its [`Shard`] in hand.
//!
//! - I1: jobs from one core to another run in the order in which they were sent. A produce relies on it: its batches
//!   are proposed inside the job, so the order of a connection's requests is the order of their offsets.
//! - I2: nobody waits here: [`Mesh::send`] puts down the job or refuses it, a job runs without awaiting anything.
//! - I3: answers travel as jobs too ([`super::replies::ReplyTo`]): a task is woken by its own core alone, since a waker
//!   that another thread uses goes round by glommio's reactor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chronik_engine::ids::ShardId;
use chronik_ring::Notifier;
use crossbeam_queue::SegQueue;

use super::shard::Shard;
use std::rc::Rc;

/// Something to do on another core.
pub type Job = Box<dyn FnOnce(&Rc<Shard>) + Send>;

/// Jobs that may wait in one inbox; beyond it the sender answers with a retriable error.
pub const INBOX_JOBS_MAX: usize = 64 * 1024;

/// Between two tries of a thread that waits for room.
const ROOM_RETRY: Duration = Duration::from_millis(10);

/// Jobs that run before the tasks that they woke get a chance.
const JOBS_PER_TURN: usize = 128;

struct Inbox {
    jobs: SegQueue<Job>,
    waiting: AtomicUsize,
    closed: AtomicBool,
    notifier: Notifier,
}

impl Inbox {
    /// Takes the place of one job, if there is one.
    fn take_place(&self) -> bool {
        let is_free = self.waiting.fetch_add(1, Ordering::AcqRel) < INBOX_JOBS_MAX;
        if !is_free {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        is_free
    }

    /// Puts a job into the place that was taken for it.
    fn put(&self, job: Job) {
        self.jobs.push(job);
        self.notifier.notify();
    }
}

/// The job could not be taken: too many wait already, or the shard has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the inbox of another shard is full or closed")]
pub struct MeshRefused;

/// All inboxes of a node. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct Mesh {
    inboxes: Arc<[Inbox]>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("inboxes", &self.inboxes.len()).finish()
    }
}

impl Mesh {
    /// Makes the inboxes of `shards` shards. What is sent before a shard runs waits for it.
    ///
    /// # Errors
    /// If the process may open no more descriptors.
    pub fn new(shards: u16) -> std::io::Result<Mesh> {
        let inbox = || {
            Ok(Inbox {
                jobs: SegQueue::new(),
                waiting: AtomicUsize::new(0),
                closed: AtomicBool::new(false),
                notifier: Notifier::new()?,
            })
        };
        let inboxes = (0..shards).map(|_| inbox()).collect::<std::io::Result<Vec<_>>>()?;
        Ok(Mesh { inboxes: inboxes.into() })
    }

    /// What wakes the core of `shard`.
    #[must_use]
    pub fn notifier(&self, shard: ShardId) -> Option<Notifier> {
        self.inbox(shard).map(|inbox| inbox.notifier.clone())
    }

    fn inbox(&self, shard: ShardId) -> Option<&Inbox> {
        self.inboxes.get(usize::from(shard.0))
    }

    /// Sends a job to a shard, to run there after all that this thread has sent before.
    ///
    /// # Errors
    /// [`MeshRefused`] if the inbox is full or closed; the job is dropped.
    pub fn send(&self, to: ShardId, job: Job) -> Result<(), MeshRefused> {
        let inbox = self.inbox(to).ok_or(MeshRefused)?;
        if inbox.closed.load(Ordering::Acquire) || !inbox.take_place() {
            return Err(MeshRefused);
        }
        inbox.put(job);
        Ok(())
    }

    /// As [`Mesh::send`], from a thread that may sleep until there is room. The job is dropped only where the shard has
    /// ended.
    pub fn send_patiently(&self, to: ShardId, job: Job) {
        let Some(inbox) = self.inbox(to) else { return };
        while !inbox.take_place() {
            if inbox.closed.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(ROOM_RETRY);
        }
        inbox.put(job);
    }

    /// Closes the inbox of a shard that ends; what waits there is dropped.
    pub fn close(&self, shard: ShardId) {
        if let Some(inbox) = self.inbox(shard) {
            inbox.closed.store(true, Ordering::Release);
            inbox.notifier.notify();
        }
    }
}

/// Runs what arrives for `shard` until its inbox is closed.
pub async fn run_jobs(shard: Rc<Shard>, mesh: Mesh) {
    let Some(inbox) = mesh.inbox(shard.id) else { return };
    loop {
        let mut run = 0;
        while let Some(job) = inbox.jobs.pop() {
            inbox.waiting.fetch_sub(1, Ordering::AcqRel);
            if inbox.closed.load(Ordering::Acquire) {
                continue; // dropped: whoever waits for its answer hears that there is none
            }
            job(&shard);
            run += 1;
            if run % JOBS_PER_TURN == 0 {
                chronik_ring::yield_now().await;
            }
        }
        if inbox.closed.load(Ordering::Acquire) {
            return;
        }
        chronik_ring::notified().await;
    }
}
