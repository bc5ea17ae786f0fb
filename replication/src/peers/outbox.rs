//! What waits to be sent over one link.
//!
//! Messages are put together in frames when the link has room for them, so the busier it is the fuller they are. A frame
//! shares the bytes of its payloads with whoever gave them.
//!
//! - I1: Raft messages leave in the order in which they came. Signs of life, calls, replies and notices go ahead of them;
//!   large snapshots go in parts, behind them: of the frames that are made at a time the last may be one.
//! - I2: the bytes that wait are bounded, those of frames under way included; a message too many is dropped. One
//!   message is always taken, however large. Snapshots in parts have a bound of their own, or the rest would be dropped for them.
//! - I3: until the last byte of a frame is with the kernel its messages are lost if the link is.

use std::collections::VecDeque;
use std::io::IoSlice;

use chronik_engine::ids::{GroupId, ReplicaId};

use super::outgoing::{Heard, Outgoing, is_in_parts};
use crate::ready::PeerMessage;
use crate::wire::{Frame, Want, encode_raft, raft_message_bytes, raft_messages_that_fit};

/// Frames are made ready up to this many times the size of one.
const FRAMES_AHEAD: usize = 2;
/// What a small message costs in memory, beyond its bytes on the wire.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// Who hears of a message that is lost.
pub(super) type Addressee = (GroupId, ReplicaId);

/// A frame that is made and not sent to its last byte.
#[derive(Debug)]
struct Sending {
    frame: Frame,
    /// What it gives back of the bound, once sent.
    cost: usize,
    /// Empty for anything but Raft messages.
    addressees: Vec<Addressee>,
}

/// Frames that were sent, for the counters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) frames: u64,
    pub(super) messages: u64,
}

#[derive(Debug)]
pub(super) struct Outbox {
    bytes_max: usize,
    frame_bytes_target: u32,
    urgent: VecDeque<Frame>,
    urgent_bytes: usize,
    messages: VecDeque<PeerMessage>,
    /// Snapshots in parts.
    outgoing: Outgoing,
    /// Of messages that wait, and of frames with messages under way.
    message_bytes: usize,
    sending: VecDeque<Sending>,
    /// How much of the first frame under way is sent: parts, and bytes of the next part.
    part: usize,
    part_offset: usize,
}

impl Outbox {
    pub(super) fn new(bytes_max: usize, frame_bytes_target: usize) -> Outbox {
        Outbox {
            bytes_max,
            frame_bytes_target: u32::try_from(frame_bytes_target).unwrap_or(u32::MAX),
            urgent: VecDeque::new(),
            urgent_bytes: 0,
            messages: VecDeque::new(),
            outgoing: Outgoing::default(),
            message_bytes: 0,
            sending: VecDeque::new(),
            part: 0,
            part_offset: 0,
        }
    }

    /// Queues a message, or drops it and says whose it was (I2).
    pub(super) fn push_message(&mut self, message: PeerMessage) -> Result<(), Addressee> {
        if is_in_parts(&message) {
            return self.outgoing.push(&message);
        }
        let cost = cost(&message);
        if self.message_bytes > 0 && self.message_bytes.saturating_add(cost) > self.bytes_max {
            return Err(addressee(&message));
        }
        self.message_bytes += cost;
        self.messages.push_back(message);
        Ok(())
    }

    /// Queues a frame that goes ahead of the messages; `false` if there is no room for it (I2).
    pub(super) fn push_urgent(&mut self, frame: Frame) -> bool {
        let is_full = self.urgent_bytes + frame.bytes() > self.bytes_max / 4;
        if self.urgent_bytes > 0 && is_full {
            return false;
        }
        self.urgent_bytes += frame.bytes();
        self.urgent.push_back(frame);
        true
    }

    /// The peer says what it wants of a snapshot.
    pub(super) fn on_want(&mut self, want: &Want) -> Heard {
        self.outgoing.on_want(want)
    }

    /// Gives up snapshots that the peer says nothing of any more.
    pub(super) fn tick(&mut self) -> Vec<Addressee> {
        self.outgoing.tick()
    }

    /// Whether there is nothing that could be sent now.
    pub(super) fn is_empty(&self) -> bool {
        self.sending.is_empty()
            && self.urgent.is_empty()
            && self.messages.is_empty()
            && !self.outgoing.is_due()
    }

    pub(super) fn bytes(&self) -> usize {
        self.message_bytes + self.urgent_bytes
    }

    /// Makes frames of what waits. Returns the messages that no peer takes.
    pub(super) fn make_frames(&mut self) -> Vec<Addressee> {
        let target = self.frame_bytes_target as usize;
        let mut made_bytes = 0;
        let mut refused = Vec::new();
        while made_bytes < FRAMES_AHEAD * target {
            if let Some(frame) = self.urgent.pop_front() {
                made_bytes += frame.bytes();
                let cost = frame.bytes();
                self.sending.push_back(Sending { frame, cost, addressees: Vec::new() });
                continue;
            }
            let (front, _) = self.messages.as_slices();
            if front.is_empty() {
                break;
            }
            let count = raft_messages_that_fit(front, self.frame_bytes_target);
            made_bytes += self.make_raft_frame(count, &mut refused);
        }
        // One for each time: what comes meanwhile waits for no other.
        if let Some(frame) = self.outgoing.next_frame() {
            self.sending.push_back(Sending { frame, cost: 0, addressees: Vec::new() });
        }
        refused
    }

    /// Makes a frame of the first messages. If one of them cannot be sent, each gets a frame of its own.
    fn make_raft_frame(&mut self, count: usize, refused: &mut Vec<Addressee>) -> usize {
        let (front, _) = self.messages.as_slices();
        let Ok(frame) = encode_raft(&front[..count]) else {
            if count > 1 {
                return (0..count).map(|_| self.make_raft_frame(1, refused)).sum();
            }
            if let Some(message) = self.messages.pop_front() {
                self.message_bytes -= cost(&message);
                refused.push(addressee(&message));
            }
            return 0;
        };
        let frame_bytes = frame.bytes();
        let mut frame_cost = 0;
        let take = |message: PeerMessage| {
            frame_cost += cost(&message);
            addressee(&message)
        };
        let addressees = self.messages.drain(..count).map(take).collect();
        self.sending.push_back(Sending { frame, cost: frame_cost, addressees });
        frame_bytes
    }

    /// Vector entries for the next send, at most `slices`'s length; returns how many were filled.
    pub(super) fn fill_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let first_parts = self.sending.front().into_iter().flat_map(|first| {
            let parts = first.frame.parts().get(self.part..).unwrap_or_default();
            let offset = self.part_offset;
            parts.iter().enumerate().map(move |(at, part)| match at {
                0 => part.get(offset..).unwrap_or_default(),
                _ => part.as_ref(),
            })
        });
        let later_frames = self.sending.iter().skip(1).flat_map(|later| later.frame.parts());
        let all_parts = first_parts.chain(later_frames.map(AsRef::as_ref));
        let mut filled = 0;
        for (slice, part) in slices.iter_mut().zip(all_parts) {
            *slice = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    /// Notes that the first `bytes` are with the kernel.
    pub(super) fn advance(&mut self, mut bytes: usize) -> Sent {
        let mut sent = Sent::default();
        while bytes > 0 {
            let Some(first) = self.sending.front() else { break };
            let parts = first.frame.parts();
            let Some(part) = parts.get(self.part) else { break };
            let left = part.len() - self.part_offset;
            if bytes < left {
                self.part_offset += bytes;
                return sent;
            }
            bytes -= left;
            self.part += 1;
            self.part_offset = 0;
            if self.part == parts.len() {
                self.finish_frame(&mut sent);
            }
        }
        assert!(bytes == 0, "more bytes were sent than there were");
        sent
    }

    fn finish_frame(&mut self, sent: &mut Sent) {
        self.part = 0;
        let Some(done) = self.sending.pop_front() else { return };
        sent.frames += 1;
        sent.messages += done.addressees.len() as u64;
        if done.addressees.is_empty() {
            self.urgent_bytes -= done.cost;
        } else {
            self.message_bytes -= done.cost;
        }
    }

    /// Whether frames are made and not sent.
    pub(super) fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// The link is lost: empties the outbox and says which messages are lost for certain (I3), one name for each.
    pub(super) fn take_lost(&mut self) -> Vec<Addressee> {
        let mut lost: Vec<Addressee> = Vec::new();
        for sending in self.sending.drain(..) {
            lost.extend(sending.addressees);
        }
        lost.extend(self.messages.drain(..).map(|message| addressee(&message)));
        lost.extend(self.outgoing.take_lost());
        self.urgent.clear();
        (self.urgent_bytes, self.message_bytes, self.part, self.part_offset) = (0, 0, 0, 0);
        lost
    }
}

pub(super) fn addressee(message: &PeerMessage) -> Addressee {
    (message.group, ReplicaId(message.message.to))
}

fn cost(message: &PeerMessage) -> usize {
    raft_message_bytes(message) + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chronik_engine::ids::{NodeId, ShardId};
    use raft::eraftpb::{Entry, Message, MessageType};

    use super::*;
    use crate::peers::incoming::Incoming;
    use crate::peers::receive::FrameReader;
    use crate::wire::{FRAME_BODY_BYTES_MAX, FrameKind, PART_BYTES_MAX, Part, Seat, decode_raft};

    fn append(group: u64, index: u64, payload: usize) -> PeerMessage {
        let mut message = Message { to: 2, from: 1, term: 1, index, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        let data = Bytes::from(vec![1; payload]);
        let entry = Entry { term: 1, index: index + 1, data, ..Entry::default() };
        message.set_entries(vec![entry].into());
        PeerMessage { group: GroupId(group), message }
    }

    fn snapshot(group: u64, bytes: usize) -> PeerMessage {
        let mut message = Message { to: 2, from: 1, term: 1, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.mut_snapshot().data = vec![3; bytes].into();
        message.mut_snapshot().mut_metadata().index = 8;
        message.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1, 2];
        PeerMessage { group: GroupId(group), message }
    }

    fn local() -> PeerMessage {
        let mut message = append(9, 0, 0);
        message.message.set_msg_type(MessageType::MsgHup);
        message
    }

    /// Sends all, in steps, and gives back what a peer receives.
    fn send_all(outbox: &mut Outbox, step: usize) -> Vec<(FrameKind, Vec<PeerMessage>)> {
        let mut reader = FrameReader::new(FRAME_BODY_BYTES_MAX);
        loop {
            outbox.make_frames();
            if !outbox.is_sending() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = outbox.fill_slices(&mut slices);
            let flat: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            let taken = flat.len().min(step);
            reader.feed(&flat[..taken]).unwrap();
            outbox.advance(taken);
        }
        let frames = std::iter::from_fn(|| reader.next_frame());
        frames
            .map(|frame| match frame.kind {
                FrameKind::Raft => (frame.kind, decode_raft(&frame.body).unwrap()),
                kind => (kind, Vec::new()),
            })
            .collect()
    }

    #[test]
    fn given_messages_when_sent_in_any_steps_then_they_arrive_in_order_and_the_bound_is_free() {
        for step in [1usize, 100, 5000, usize::MAX] {
            let mut outbox = Outbox::new(1 << 20, 8 << 10);
            let sizes = [0, 700, 1400, 2100, 2800].into_iter().cycle();
            let messages: Vec<_> =
                (0..40).zip(sizes).map(|(at, payload)| append(at, at, payload)).collect();
            for message in &messages {
                outbox.push_message(message.clone()).unwrap();
            }
            let frames = send_all(&mut outbox, step);
            assert!(frames.len() > 2 && frames.len() < 20, "{} frames", frames.len());
            let arrived: Vec<_> = frames.into_iter().flat_map(|(_, messages)| messages).collect();
            assert_eq!(arrived, messages);
            assert_eq!(outbox.bytes(), 0);
            assert!(outbox.is_empty());
        }
    }

    /// As over a slow link, whose receiver answers each part: other groups speak at every moment meanwhile.
    #[test]
    fn given_a_snapshot_of_16_mib_when_another_group_speaks_then_it_waits_for_one_part_at_most() {
        let mut outbox = Outbox::new(1 << 20, 8 << 10);
        outbox.push_message(snapshot(5, 16 << 20)).unwrap();
        assert!(outbox.bytes() < 1 << 20, "the rest is not dropped for it");
        let (mut incoming, mut reader) = (Incoming::default(), FrameReader::new(u32::MAX));
        let peer = Seat { node: NodeId(1), shard: ShardId(0) };
        let (mut spoken, mut heard, mut arrived) = (0, 0, None);
        // What was sent since the oldest message that waits was queued.
        let mut bytes_ahead = 0;
        while arrived.is_none() || heard < spoken {
            outbox.make_frames();
            assert!(outbox.is_sending(), "it stands still");
            if arrived.is_none() {
                spoken += 1;
                outbox.push_message(append(7, spoken, 10)).unwrap();
            }
            while outbox.is_sending() {
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = outbox.fill_slices(&mut slices);
                let flat: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
                let taken = flat.len().min(100_000);
                reader.feed(&flat[..taken]).unwrap();
                outbox.advance(taken);
                bytes_ahead += taken;
            }
            while let Some(frame) = reader.next_frame() {
                if frame.kind == FrameKind::Part {
                    let taken = incoming.take(peer, &Part::decode(&frame.body).unwrap());
                    outbox.on_want(&taken.want);
                    arrived = arrived.or(taken.message);
                    continue;
                }
                heard += decode_raft(&frame.body).unwrap().len() as u64;
                assert!(bytes_ahead < PART_BYTES_MAX + 10_000, "{bytes_ahead} bytes");
                bytes_ahead = 0;
            }
        }
        assert_eq!(arrived, Some(snapshot(5, 16 << 20)));
        assert!(spoken > 30, "{spoken}");
        assert!(outbox.is_empty() && outbox.bytes() == 0);
    }

    #[test]
    fn given_messages_when_a_call_comes_later_then_it_goes_ahead() {
        let mut outbox = Outbox::new(1 << 20, 8 << 10);
        outbox.push_message(append(1, 1, 10)).unwrap();
        assert!(outbox.push_urgent(Frame::new(FrameKind::Ping, Vec::new())));
        assert!(outbox.push_urgent(Frame::new(FrameKind::Call, vec![Bytes::from_static(b"x")])));
        let kinds: Vec<_> =
            send_all(&mut outbox, 1 << 20).into_iter().map(|frame| frame.0).collect();
        assert_eq!(kinds, [FrameKind::Ping, FrameKind::Call, FrameKind::Raft]);
    }

    #[test]
    fn given_a_full_queue_when_a_message_comes_then_it_is_dropped() {
        let mut outbox = Outbox::new(10_000, 4 << 10);
        outbox.push_message(append(1, 1, 50_000)).expect("one is always taken");
        let full = outbox.push_message(append(1, 2, 1));
        assert_eq!(full, Err((GroupId(1), ReplicaId(2))));
        send_all(&mut outbox, 1 << 20);
        outbox.push_message(append(1, 2, 1)).expect("room again");
    }

    #[test]
    fn given_a_message_that_no_peer_takes_when_frames_are_made_then_the_others_are_sent() {
        let mut outbox = Outbox::new(1 << 20, 8 << 10);
        for message in [append(1, 1, 10), local(), append(2, 2, 10)] {
            outbox.push_message(message).unwrap();
        }
        assert_eq!(outbox.make_frames(), [(GroupId(9), ReplicaId(2))]);
        let arrived = send_all(&mut outbox, 1 << 20).into_iter().flat_map(|frame| frame.1).count();
        assert_eq!(arrived, 2);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn given_a_frame_that_is_half_sent_when_the_link_is_lost_then_its_messages_are_lost() {
        let mut outbox = Outbox::new(1 << 20, 4 << 10);
        for group in 0..10 {
            outbox.push_message(append(group, 1, 1500)).unwrap();
        }
        outbox.make_frames();
        let first_bytes = outbox.sending.front().map(|first| first.frame.bytes()).unwrap();
        let first_messages = outbox.sending.front().map(|first| first.addressees.len()).unwrap();
        let sent = outbox.advance(first_bytes + 1);
        assert_eq!(sent, Sent { frames: 1, messages: first_messages as u64 });
        let lost = outbox.take_lost();
        assert_eq!(lost.len(), 10 - first_messages);
        assert!(outbox.is_empty() && outbox.bytes() == 0);
    }
}
