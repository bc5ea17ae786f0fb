//! What is counted of every link, for metrics.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use super::handshake::HandshakeError;
use super::incoming::TransferDrop;
use crate::wire::{RefusedReason, Seat};

/// Counted since the seat was first linked.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes_in: Cell<u64>,
    pub(super) bytes_out: Cell<u64>,
    pub(super) frames_in: Cell<u64>,
    pub(super) frames_out: Cell<u64>,
    pub(super) messages_in: Cell<u64>,
    pub(super) messages_out: Cell<u64>,
    pub(super) messages_dropped: Cell<u64>,
    pub(super) connects: Cell<u64>,
    pub(super) losses: Cell<u64>,
    pub(super) transfers_dropped: [Cell<u64>; TransferDrop::COUNT],
    /// From the last ping to its answer.
    pub(super) rtt: Cell<Option<Duration>>,
    /// What the last link spoke.
    pub(super) version: Cell<u16>,
}

pub(super) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

/// A reading of the counters of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStats {
    pub seat: Seat,
    pub is_up: bool,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    pub messages_in: u64,
    /// With the kernel to their last byte.
    pub messages_out: u64,
    /// Lost for certain: without a link, beyond the bound of the queue, or not yet sent when the link was lost.
    pub messages_dropped: u64,
    /// Bytes that wait to be sent, without those of snapshots that travel in parts.
    pub queue_bytes: usize,
    /// Links that came up.
    pub connects: u64,
    /// Links that went down.
    pub losses: u64,
    /// Snapshots from the peer that were dropped on their way, in the order of [`TransferDrop::ALL`].
    pub transfers_dropped: [u64; TransferDrop::COUNT],
    /// From a ping to its answer, the last time that the link was quiet.
    pub rtt: Option<Duration>,
    /// The version of the protocol that the last link spoke.
    pub version: u16,
}

impl Counters {
    pub(super) fn add_transfer_dropped(&self, reason: TransferDrop) {
        for (counted, counter) in TransferDrop::ALL.into_iter().zip(&self.transfers_dropped) {
            add(counter, u64::from(counted == reason));
        }
    }

    pub(super) fn read(&self, seat: Seat, is_up: bool, queue_bytes: usize) -> PeerStats {
        PeerStats {
            seat,
            is_up,
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            frames_in: self.frames_in.get(),
            frames_out: self.frames_out.get(),
            messages_in: self.messages_in.get(),
            messages_out: self.messages_out.get(),
            messages_dropped: self.messages_dropped.get(),
            queue_bytes,
            connects: self.connects.get(),
            losses: self.losses.get(),
            transfers_dropped: self.transfers_dropped.each_ref().map(Cell::get),
            rtt: self.rtt.get(),
            version: self.version.get(),
        }
    }
}

/// Handshakes that ended with a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusals {
    pub reason: RefusedReason,
    /// The peer refused, not this side.
    pub by_peer: bool,
    /// Since the start.
    pub count: u64,
}

/// Counts [`Refusals`].
#[derive(Debug, Default)]
pub(super) struct RefusalCounts(RefCell<BTreeMap<(RefusedReason, bool), u64>>);

impl RefusalCounts {
    pub(super) fn note(&self, reason: RefusedReason, by_peer: bool) {
        *self.0.borrow_mut().entry((reason, by_peer)).or_default() += 1;
    }

    /// One that ended otherwise is a lost connection like any other.
    pub(super) fn note_end(&self, error: &HandshakeError) {
        match error {
            HandshakeError::RefusedByPeer(reason) => self.note(*reason, true),
            HandshakeError::Retired => self.note(RefusedReason::Retired, true),
            HandshakeError::RefusedHere { reason, .. } => self.note(*reason, false),
            HandshakeError::Connection(_) | HandshakeError::Unexpected { .. } => {}
        }
    }

    pub(super) fn read(&self) -> Vec<Refusals> {
        let refusals = |(&(reason, by_peer), &count)| Refusals { reason, by_peer, count };
        self.0.borrow().iter().map(refusals).collect()
    }
}
