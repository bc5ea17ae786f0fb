//! The way from core to core: each pair of shards has a bounded channel in each direction, and what travels over it is
//! a [`Job`] that runs on the receiving core with that core's [`Shard`] in hand.
//!
//! - I1: jobs from one core to another run in the order in which they were sent. A produce relies on it: its batches
//!   are proposed inside the job, so the order of a connection's requests is the order of their offsets.
//! - I2: [`Mesh::send`] never waits. What does not fit the channel stands in an outbox that one task empties, since
//!   glommio's `send` panics when two tasks wait for room in the same channel.
//! - I3: a receiving loop never sends and never waits for anything but its channel, so two full channels cannot wait
//!   for each other.
//!
//! Outboxes are bounded by [`OUTBOX_JOBS_MAX`]; beyond it the job is refused and its sender answers with a retriable
//! error. Answers do not travel over the mesh: a job carries the sending half of a one-shot channel.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use chronik_engine::ids::ShardId;
use futures_lite::StreamExt;
use futures_util::future::join_all;
use glommio::channels::shared_channel::{
    self, ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender,
};

use super::notify::Notify;
use super::shard::Shard;

/// Something to do on another core.
pub type Job = Box<dyn FnOnce(&Rc<Shard>) + Send>;

/// Jobs a channel holds; the outbox takes what comes on top.
const CHANNEL_JOBS: usize = 1024;

/// Jobs that may wait for room in one channel.
pub const OUTBOX_JOBS_MAX: usize = 64 * 1024;

/// The ends of one shard's channels before its executor runs.
pub struct MeshPorts {
    me: ShardId,
    senders: Vec<Option<SharedSender<Job>>>,
    receivers: Vec<Option<SharedReceiver<Job>>>,
}

impl std::fmt::Debug for MeshPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshPorts").field("me", &self.me).finish_non_exhaustive()
    }
}

impl MeshPorts {
    /// Whose ends these are.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.me
    }
}

/// Makes the channels between `shards` shards and hands each its ends.
#[must_use]
pub fn mesh_ports(shards: u16) -> Vec<MeshPorts> {
    let n = usize::from(shards);
    let mut ports: Vec<MeshPorts> = (0..shards)
        .map(|id| MeshPorts {
            me: ShardId(id),
            senders: (0..n).map(|_| None).collect(),
            receivers: (0..n).map(|_| None).collect(),
        })
        .collect();
    for from in 0..n {
        for to in 0..n {
            if from != to {
                let (sender, receiver) = shared_channel::new_bounded(CHANNEL_JOBS);
                ports[from].senders[to] = Some(sender);
                ports[to].receivers[from] = Some(receiver);
            }
        }
    }
    ports
}

struct Peer {
    sender: ConnectedSender<Job>,
    outbox: RefCell<VecDeque<Job>>,
    outbox_filled: Notify,
    /// The outbox's task holds a job that waits for room: later ones must queue behind it.
    emptying: Cell<bool>,
}

/// The sending half of a shard's mesh.
pub struct Mesh {
    peers: Vec<Option<Rc<Peer>>>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("peers", &self.peers.len()).finish()
    }
}

/// The job could not be taken: too many wait already, or the peer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel to another shard is full or closed")]
pub struct MeshRefused;

impl Mesh {
    /// Connects all channels of a shard. Returns once every peer has done the same.
    pub async fn connect(ports: MeshPorts) -> (Mesh, Vec<ConnectedReceiver<Job>>) {
        let receivers =
            join_all(ports.receivers.into_iter().flatten().map(|receiver| receiver.connect()));
        let senders = join_all(ports.senders.into_iter().map(|sender| async move {
            match sender {
                Some(sender) => Some(Rc::new(Peer {
                    sender: sender.connect().await,
                    outbox: RefCell::default(),
                    outbox_filled: Notify::default(),
                    emptying: Cell::new(false),
                })),
                None => None,
            }
        }));
        let (receivers, peers) = futures_util::future::join(receivers, senders).await;
        for peer in peers.iter().flatten() {
            glommio::spawn_local(empty_outbox(Rc::clone(peer))).detach();
        }
        (Mesh { peers }, receivers)
    }

    /// Sends a job to another shard, to run there after all that were sent before.
    ///
    /// # Errors
    /// [`MeshRefused`] if the outbox is full or the peer has gone; the job is dropped.
    pub fn send(&self, to: ShardId, job: Job) -> Result<(), MeshRefused> {
        let peer = self.peers.get(usize::from(to.0)).and_then(Option::as_ref).ok_or(MeshRefused)?;
        let mut outbox = peer.outbox.borrow_mut();
        let job = if outbox.is_empty() && !peer.emptying.get() {
            match peer.sender.try_send(job) {
                Ok(()) => return Ok(()),
                Err(glommio::GlommioError::WouldBlock(glommio::ResourceType::Channel(job))) => job,
                Err(_) => return Err(MeshRefused),
            }
        } else {
            job
        };
        if outbox.len() >= OUTBOX_JOBS_MAX {
            return Err(MeshRefused);
        }
        outbox.push_back(job);
        drop(outbox);
        peer.outbox_filled.notify();
        Ok(())
    }

    /// Closes the channels: the receiving loops of the peers end.
    pub fn close(&self) {
        for peer in self.peers.iter().flatten() {
            peer.sender.close();
        }
    }
}

/// Moves what stands in an outbox into its channel; the only task that waits for room there.
async fn empty_outbox(peer: Rc<Peer>) {
    loop {
        peer.outbox_filled.notified().await;
        loop {
            let Some(job) = peer.outbox.borrow_mut().pop_front() else { break };
            peer.emptying.set(true);
            let sent = peer.sender.send(job).await;
            peer.emptying.set(false);
            if sent.is_err() {
                peer.outbox.borrow_mut().clear();
                return;
            }
        }
    }
}

/// Runs the jobs of one peer until its channel closes.
pub async fn run_jobs(shard: Rc<Shard>, mut receiver: ConnectedReceiver<Job>) {
    while let Some(job) = receiver.next().await {
        job(&shard);
    }
}
