//! Snapshots on their way to a peer in parts, so that nothing else of the link waits for more than one of them.
//!
//! A large snapshot is offered; its receiver says from where on it wants it, and gets one part for each time that it says so
//! ([`crate::wire::Part`]). So it sets the pace, and after a lost link the same snapshot goes on where it stopped there.
//!
//! - I1: of each transfer one part at most is under way.
//! - I2: one transfer for each replica: a newer snapshot takes the place of the one before.
//! - I3: at most [`TRANSFERS_MAX`] are under way, of [`TRANSFER_BYTES_MAX`] in all, or one of any size. They share their bytes with
//!   the snapshots that their groups keep.
//! - I4: each ends: as its receiver says, with the link, or when nothing was heard of it for [`IDLE_TICKS_MAX`].

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use chronik_engine::ids::{RaftIndex, Term};
use raft::eraftpb::MessageType;

use super::outbox::{Addressee, addressee};
use crate::ready::PeerMessage;
use crate::wire::{Frame, PART_BYTES_MAX, Part, Transfer, Want, encode_raft, raft_message_bytes};

/// Transfers that are under way, over one link to a peer and from all peers.
pub(super) const TRANSFERS_MAX: usize = 64;
/// Their bytes, as they say themselves: two groups of the largest state.
pub(super) const TRANSFER_BYTES_MAX: usize = 130 << 20;
/// After so many ticks of the links without a word one is given up: a minute, by the default of their interval. It must be
/// longer than a leader goes on to offer the same snapshot after a lost link.
pub(super) const IDLE_TICKS_MAX: u32 = 1200;

/// Whether a message travels in parts. Entries do not: Raft sends many in a row and wants them in their order.
pub(super) fn is_in_parts(message: &PeerMessage) -> bool {
    message.message.get_msg_type() == MessageType::MsgSnapshot
        && raft_message_bytes(message) > PART_BYTES_MAX
}

/// What is to be sent next of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Offer,
    From(u32),
}

#[derive(Debug)]
struct Leaving {
    transfer: Transfer,
    body: Vec<Bytes>,
    next: Option<Next>,
    /// From where on the peer wanted it last; said again, it gets no second answer.
    wanted: Option<u32>,
    idle_ticks: u32,
}

/// What a peer has made of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that matters.
    Nothing,
    /// It has more of it than before.
    Progress(Addressee),
    /// It has all of it.
    Arrived,
    /// It does not want it: the message is lost.
    GivenUp(Addressee),
}

/// The transfers of one link.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    transfers: BTreeMap<Addressee, Leaving>,
    /// Those with something to send, each once, in the order in which they get their turns.
    due: VecDeque<Addressee>,
    bytes: usize,
}

impl Outgoing {
    /// Offers a snapshot, or drops it and says whose it was (I3).
    pub(super) fn push(&mut self, message: &PeerMessage) -> Result<(), Addressee> {
        let to = addressee(message);
        self.remove(to);
        let bytes = raft_message_bytes(message);
        let is_full = self.bytes.saturating_add(bytes) > TRANSFER_BYTES_MAX
            || self.transfers.len() >= TRANSFERS_MAX;
        if !self.transfers.is_empty() && is_full {
            return Err(to);
        }
        let Ok(frame) = encode_raft(std::slice::from_ref(message)) else { return Err(to) };
        let (body, message_crc) = frame.into_body();
        let body_bytes = body.iter().map(Bytes::len).sum::<usize>();
        let Ok(message_bytes) = u32::try_from(body_bytes) else { return Err(to) };
        let metadata = message.message.get_snapshot().get_metadata();
        let transfer = Transfer {
            group: to.0,
            to: to.1,
            index: RaftIndex(metadata.index),
            term: Term(metadata.term),
            message_bytes,
            message_crc,
        };
        self.bytes += body_bytes;
        let next = Some(Next::Offer);
        self.transfers.insert(to, Leaving { transfer, body, next, wanted: None, idle_ticks: 0 });
        self.due.push_back(to);
        Ok(())
    }

    /// Whether something is to be sent.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next part of the transfer whose turn it is.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        let leaving = self.transfers.get_mut(&self.due.pop_front()?)?;
        let (offset, pieces) = match leaving.next.take()? {
            Next::Offer => (0, Vec::new()),
            Next::From(offset) => (offset, pieces(&leaving.body, offset as usize)),
        };
        Part::frame(&leaving.transfer, offset, &pieces).ok()
    }

    /// The peer says what it wants.
    pub(super) fn on_want(&mut self, want: &Want) -> Heard {
        let to = (want.transfer.group, want.transfer.to);
        let found = self.transfers.get_mut(&to).filter(|found| found.transfer == want.transfer);
        let Some(leaving) = found else { return Heard::Nothing };
        let end = leaving.transfer.message_bytes;
        if want.is_given_up || want.offset > end {
            self.remove(to);
            return Heard::GivenUp(to);
        }
        if want.offset == end {
            self.remove(to);
            return Heard::Arrived;
        }
        if leaving.wanted.is_some_and(|wanted| want.offset <= wanted) {
            return Heard::Nothing; // I1
        }
        leaving.wanted = Some(want.offset);
        leaving.idle_ticks = 0;
        if leaving.next.replace(Next::From(want.offset)).is_none() {
            self.due.push_back(to);
        }
        if want.offset > 0 { Heard::Progress(to) } else { Heard::Nothing }
    }

    /// A tick has passed; gives up those of which nothing is heard (I4).
    pub(super) fn tick(&mut self) -> Vec<Addressee> {
        for leaving in self.transfers.values_mut() {
            leaving.idle_ticks += 1;
        }
        let idle = self.transfers.iter().filter(|(_, found)| found.idle_ticks >= IDLE_TICKS_MAX);
        let idle: Vec<Addressee> = idle.map(|(to, _)| *to).collect();
        for to in &idle {
            self.remove(*to);
        }
        idle
    }

    /// The link is lost.
    pub(super) fn take_lost(&mut self) -> impl Iterator<Item = Addressee> + use<> {
        std::mem::take(self).transfers.into_keys()
    }

    fn remove(&mut self, to: Addressee) {
        let Some(removed) = self.transfers.remove(&to) else { return };
        self.bytes -= removed.transfer.message_bytes as usize;
        if removed.next.is_some() {
            self.due.retain(|due| *due != to);
        }
    }
}

/// The bytes of a part that begins at `offset`, as they lie in the body.
fn pieces(body: &[Bytes], offset: usize) -> Vec<Bytes> {
    let (mut skipped, mut left) = (offset, PART_BYTES_MAX);
    let mut pieces = Vec::new();
    for piece in body {
        let from = skipped.min(piece.len());
        skipped -= from;
        let taken = left.min(piece.len() - from);
        if taken > 0 {
            pieces.push(piece.slice(from..from + taken));
            left -= taken;
        }
    }
    pieces
}
