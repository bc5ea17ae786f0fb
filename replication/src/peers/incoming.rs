//! Snapshots that arrive from peers in parts. What is there of one stays when its link is lost.
//!
//! - I1: at most [`TRANSFERS_MAX`] are under way, of [`TRANSFER_BYTES_MAX`] in all as they say themselves, or one; that is checked
//!   before any of it is taken. Memory follows what has arrived.
//! - I2: a message that comes out is whole, has the checksum that was announced, and is the snapshot that it was said to be.
//! - I3: whatever a peer sends, it ends in a transfer that goes on, or in one that is dropped and counted. No peer
//!   touches the transfers of another.
//! - I4: what nobody goes on with is dropped after [`IDLE_TICKS_MAX`].

use std::collections::BTreeMap;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, ReplicaId};
use raft::eraftpb::MessageType;

use super::outgoing::{IDLE_TICKS_MAX, TRANSFER_BYTES_MAX, TRANSFERS_MAX};
use super::receive::reserve_for;
use crate::ready::PeerMessage;
use crate::wire::{FRAME_BODY_BYTES_MAX, Part, Seat, Transfer, Want, decode_raft};

/// Why a transfer was dropped by its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferDrop {
    /// It says that it is empty, or larger than any message.
    Size,
    /// Too many are under way, or too large ones.
    NoRoom,
    /// A part of what was not offered.
    Foreign,
    /// A part of another place than the next: doubled, or with others left out.
    Order,
    /// It goes on behind its end.
    Overrun,
    /// It is not what was announced.
    Checksum,
    /// It is not the snapshot that it was said to be.
    Content,
    /// Another snapshot came for the same replica.
    Replaced,
    /// Nobody went on with it.
    Idle,
}

impl TransferDrop {
    /// How many reasons there are.
    pub const COUNT: usize = 9;
    /// All of them, in the order in which they are counted.
    pub const ALL: [TransferDrop; TransferDrop::COUNT] = [
        TransferDrop::Size,
        TransferDrop::NoRoom,
        TransferDrop::Foreign,
        TransferDrop::Order,
        TransferDrop::Overrun,
        TransferDrop::Checksum,
        TransferDrop::Content,
        TransferDrop::Replaced,
        TransferDrop::Idle,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TransferDrop::Size => "size",
            TransferDrop::NoRoom => "no_room",
            TransferDrop::Foreign => "foreign",
            TransferDrop::Order => "order",
            TransferDrop::Overrun => "overrun",
            TransferDrop::Checksum => "checksum",
            TransferDrop::Content => "content",
            TransferDrop::Replaced => "replaced",
            TransferDrop::Idle => "idle",
        }
    }
}

#[derive(Debug)]
struct Arriving {
    transfer: Transfer,
    bytes: Vec<u8>,
    crc: crc32fast::Hasher,
    idle_ticks: u32,
}

type Key = (Seat, GroupId, ReplicaId);

/// What became of a part.
#[derive(Debug)]
pub(super) struct Taken {
    /// To be told to the peer.
    pub(super) want: Want,
    pub(super) dropped: Option<TransferDrop>,
    /// The whole message, once it is there.
    pub(super) message: Option<PeerMessage>,
}

/// The transfers from all peers of a shard.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    by_key: BTreeMap<Key, Arriving>,
    /// What those come to, when they are whole.
    bytes: usize,
}

impl Incoming {
    /// Takes a part that came from a peer.
    pub(super) fn take(&mut self, from: Seat, part: &Part) -> Taken {
        let Part { transfer, offset, bytes } = part;
        let key = (from, transfer.group, transfer.to);
        let is_offer = *offset == 0 && bytes.is_empty();
        let known = self.by_key.get(&key).map(|found| found.transfer);
        let mut dropped = None;
        let went_on = if is_offer && known != Some(*transfer) {
            dropped = self.remove(key).map(|_| TransferDrop::Replaced);
            self.begin(key, transfer)
        } else {
            self.go_on(key, part)
        };
        let (offset, is_given_up, message) = match went_on {
            Ok((offset, message)) => (offset, false, message),
            Err(reason) => {
                self.remove(key);
                dropped = Some(reason);
                (0, true, None)
            }
        };
        Taken { want: Want { transfer: *transfer, offset, is_given_up }, dropped, message }
    }

    fn begin(
        &mut self,
        key: Key,
        transfer: &Transfer,
    ) -> Result<(u32, Option<PeerMessage>), TransferDrop> {
        if transfer.message_bytes == 0 || transfer.message_bytes > FRAME_BODY_BYTES_MAX {
            return Err(TransferDrop::Size);
        }
        let bytes = self.bytes + transfer.message_bytes as usize;
        let is_full = bytes > TRANSFER_BYTES_MAX || self.by_key.len() >= TRANSFERS_MAX;
        if !self.by_key.is_empty() && is_full {
            return Err(TransferDrop::NoRoom); // I1
        }
        self.bytes = bytes;
        let crc = crc32fast::Hasher::new();
        let arriving = Arriving { transfer: *transfer, bytes: Vec::new(), crc, idle_ticks: 0 };
        self.by_key.insert(key, arriving);
        Ok((0, None))
    }

    /// The offer of what is under way already, or a part of it.
    fn go_on(&mut self, key: Key, part: &Part) -> Result<(u32, Option<PeerMessage>), TransferDrop> {
        let found = self.by_key.get_mut(&key).filter(|found| found.transfer == part.transfer);
        let arriving = found.ok_or(TransferDrop::Foreign)?;
        arriving.idle_ticks = 0;
        let end = part.transfer.message_bytes;
        let there = u32::try_from(arriving.bytes.len()).map_err(|_| TransferDrop::Overrun)?;
        if part.offset == 0 && part.bytes.is_empty() {
            return Ok((there, None));
        }
        if part.offset != there || part.bytes.is_empty() {
            return Err(TransferDrop::Order);
        }
        let next = u32::try_from(part.bytes.len()).ok().and_then(|more| there.checked_add(more));
        let next = next.filter(|next| *next <= end).ok_or(TransferDrop::Overrun)?;
        reserve_for(&mut arriving.bytes, end as usize, part.bytes.len());
        arriving.bytes.extend_from_slice(&part.bytes);
        arriving.crc.update(&part.bytes);
        if next < end {
            return Ok((next, None));
        }
        let whole = self.remove(key).ok_or(TransferDrop::Foreign)?;
        whole.into_message().map(|message| (end, Some(message)))
    }

    /// A tick has passed; says from whom there was something that is given up (I4).
    pub(super) fn tick(&mut self) -> Vec<Seat> {
        for arriving in self.by_key.values_mut() {
            arriving.idle_ticks += 1;
        }
        self.remove_all(|_, arriving| arriving.idle_ticks >= IDLE_TICKS_MAX)
    }

    /// Nothing more will come from this seat.
    pub(super) fn forget(&mut self, seat: Seat) {
        self.remove_all(|from, _| from == seat);
    }

    fn remove_all(&mut self, is_over: impl Fn(Seat, &Arriving) -> bool) -> Vec<Seat> {
        let over = self.by_key.iter().filter(|(key, arriving)| is_over(key.0, arriving));
        let over: Vec<Key> = over.map(|(key, _)| *key).collect();
        for key in &over {
            self.remove(*key);
        }
        over.into_iter().map(|key| key.0).collect()
    }

    fn remove(&mut self, key: Key) -> Option<Arriving> {
        let removed = self.by_key.remove(&key)?;
        self.bytes -= removed.transfer.message_bytes as usize;
        Some(removed)
    }
}

impl Arriving {
    /// I2.
    fn into_message(self) -> Result<PeerMessage, TransferDrop> {
        let Arriving { transfer, bytes, crc, .. } = self;
        if crc.finalize() != transfer.message_crc {
            return Err(TransferDrop::Checksum);
        }
        let messages = decode_raft(&Bytes::from(bytes)).map_err(|_| TransferDrop::Content)?;
        let [message] =
            <[PeerMessage; 1]>::try_from(messages).map_err(|_| TransferDrop::Content)?;
        let metadata = message.message.get_snapshot().get_metadata();
        let is_said = message.message.get_msg_type() == MessageType::MsgSnapshot
            && message.group == transfer.group
            && message.message.to == transfer.to.0
            && metadata.index == transfer.index.0
            && metadata.term == transfer.term.0;
        if is_said { Ok(message) } else { Err(TransferDrop::Content) }
    }
}

#[cfg(test)]
mod tests;
