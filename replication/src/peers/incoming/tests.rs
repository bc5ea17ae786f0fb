//! Both ends of transfers, with the links between them played by hand.

use chronik_engine::ids::{NodeId, RaftIndex, ShardId, Term};
use proptest::prelude::*;
use raft::eraftpb::Message;

use super::super::outgoing::{Heard, Outgoing};
use super::*;
use crate::wire::{Frame, FrameKind, PART_BYTES_MAX};

const PEER: Seat = Seat { node: NodeId(1), shard: ShardId(0) };
const TO: (GroupId, ReplicaId) = (GroupId(5), ReplicaId(2));

/// A snapshot whose bytes follow from `seed`.
fn snapshot(index: u64, bytes: usize, seed: u8) -> PeerMessage {
    let mut message = Message { to: 2, from: 1, term: 4, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let state = (0..=250).cycle().take(bytes).map(|byte: u8| byte ^ seed);
    message.mut_snapshot().data = state.collect::<Vec<u8>>().into();
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (index, 3);
    metadata.mut_conf_state().voters = vec![1, 2, 3];
    PeerMessage { group: TO.0, message }
}

fn offered(message: &PeerMessage) -> Outgoing {
    let mut outgoing = Outgoing::default();
    outgoing.push(message).unwrap();
    outgoing
}

fn part_of(frame: &Frame) -> Part {
    let bytes = Bytes::from(frame.parts().concat().split_off(crate::wire::FRAME_HEADER_BYTES));
    Part::decode(&bytes).unwrap()
}

fn next_part(outgoing: &mut Outgoing) -> Option<Part> {
    outgoing.next_frame().map(|frame| part_of(&frame))
}

/// Lets at most `parts` of them arrive; gives back the message if it was whole, and how many bytes it took.
fn exchange(
    outgoing: &mut Outgoing,
    incoming: &mut Incoming,
    parts: usize,
) -> (Option<PeerMessage>, usize) {
    let mut sent_bytes = 0;
    for _ in 0..parts {
        let Some(part) = next_part(outgoing) else { break };
        assert!(!outgoing.is_due(), "one at a time");
        sent_bytes += part.bytes.len();
        let taken = incoming.take(PEER, &part);
        outgoing.on_want(&taken.want);
        if taken.message.is_some() {
            return (taken.message, sent_bytes);
        }
    }
    (None, sent_bytes)
}

fn is_empty(incoming: &Incoming) -> bool {
    incoming.by_key.is_empty() && incoming.bytes == 0
}

/// A transfer of which two parts have arrived, the rest of it, and the part that comes next.
fn half_way() -> (Outgoing, Incoming, Part) {
    let mut outgoing = offered(&snapshot(9, 4 * PART_BYTES_MAX, 0));
    let mut incoming = Incoming::default();
    assert_eq!(exchange(&mut outgoing, &mut incoming, 3).1, 2 * PART_BYTES_MAX);
    let part = next_part(&mut outgoing).unwrap();
    assert_eq!(part.offset as usize, 2 * PART_BYTES_MAX);
    (outgoing, incoming, part)
}

#[test]
fn given_a_large_snapshot_when_it_is_sent_then_it_comes_out_whole_and_nothing_of_it_is_left() {
    for bytes in [PART_BYTES_MAX, 3 * PART_BYTES_MAX - 200, 5_000_001] {
        let message = snapshot(9, bytes, 7);
        let (mut outgoing, mut incoming) = (offered(&message), Incoming::default());
        let (arrived, _) = exchange(&mut outgoing, &mut incoming, 100);
        assert_eq!(arrived, Some(message));
        assert!(is_empty(&incoming));
        assert_eq!(outgoing.take_lost().count(), 0);
    }
}

#[test]
fn given_a_transfer_when_the_link_is_lost_and_the_same_is_offered_then_it_goes_on_where_it_stopped()
{
    let message = snapshot(9, 10 * PART_BYTES_MAX, 1);
    let (mut outgoing, mut incoming) = (offered(&message), Incoming::default());
    let (_, before) = exchange(&mut outgoing, &mut incoming, 7);
    // One more is lost with the link.
    assert!(next_part(&mut outgoing).is_some());
    assert_eq!(outgoing.take_lost().collect::<Vec<_>>(), [TO]);
    let (arrived, after) = exchange(&mut offered(&message), &mut incoming, 100);
    assert_eq!(arrived.as_ref(), Some(&message));
    assert_eq!(before, 6 * PART_BYTES_MAX);
    assert!(after < 5 * PART_BYTES_MAX, "{after} bytes");
}

#[test]
fn given_a_transfer_when_another_snapshot_is_offered_then_it_begins_anew_and_the_first_is_counted()
{
    let size = 3 * PART_BYTES_MAX;
    for other in [snapshot(10, size, 0), snapshot(9, size, 1), snapshot(9, size + 1, 0)] {
        let (mut outgoing, mut incoming) = (offered(&snapshot(9, size, 0)), Incoming::default());
        exchange(&mut outgoing, &mut incoming, 3);
        outgoing.push(&other).unwrap();
        let offer = next_part(&mut outgoing).unwrap();
        let taken = incoming.take(PEER, &offer);
        assert_eq!((taken.dropped, taken.want.offset), (Some(TransferDrop::Replaced), 0));
        outgoing.on_want(&taken.want);
        assert_eq!(exchange(&mut outgoing, &mut incoming, 100).0, Some(other));
        assert!(is_empty(&incoming));
    }
}

#[test]
fn given_the_same_offered_again_in_the_middle_then_no_part_is_sent_twice() {
    let message = snapshot(9, 6 * PART_BYTES_MAX, 1);
    for steps in 1..7 {
        let (mut outgoing, mut incoming) = (offered(&message), Incoming::default());
        let (_, before) = exchange(&mut outgoing, &mut incoming, steps);
        // A part is on its way, and the answer to it comes behind the second offer.
        let part = next_part(&mut outgoing).unwrap();
        outgoing.push(&message).unwrap();
        let offer = next_part(&mut outgoing).unwrap();
        let wants = [&part, &offer].map(|part| incoming.take(PEER, part).want);
        let heard = wants.map(|want| outgoing.on_want(&want));
        assert_eq!(heard, [Heard::Progress(TO), Heard::Nothing]);
        let (arrived, after) = exchange(&mut outgoing, &mut incoming, 100);
        assert_eq!(arrived.as_ref(), Some(&message));
        let all = before + part.bytes.len() + after;
        assert!(all < 7 * PART_BYTES_MAX, "{all} bytes");
    }
}

#[test]
fn given_a_part_that_does_not_belong_there_when_it_comes_then_the_transfer_is_dropped_for_that() {
    let whole_size = |part: &Part| part.transfer.message_bytes;
    type Damage = fn(&mut Part);
    let damages: [(Damage, TransferDrop); 7] = [
        // Doubled, one left out, none in it, none of this transfer, one of what was never offered.
        (|part| part.offset -= 1, TransferDrop::Order),
        (|part| part.offset += 1, TransferDrop::Order),
        (|part| part.bytes = Bytes::new(), TransferDrop::Order),
        (|part| part.transfer.message_crc ^= 1, TransferDrop::Foreign),
        (|part| part.transfer.index = RaftIndex(1), TransferDrop::Foreign),
        (|part| part.transfer.term = Term(1), TransferDrop::Foreign),
        (|part| part.bytes = vec![0; 3 * PART_BYTES_MAX].into(), TransferDrop::Overrun),
    ];
    for (at, (damage, reason)) in damages.into_iter().enumerate() {
        let (mut outgoing, mut incoming, mut part) = half_way();
        damage(&mut part);
        let taken = incoming.take(PEER, &part);
        assert_eq!((taken.dropped, taken.message), (Some(reason), None), "damage {at}");
        assert!(is_empty(&incoming), "damage {at}");
        assert!(taken.want.is_given_up && taken.want.offset < whole_size(&part));
        if reason != TransferDrop::Foreign {
            assert_eq!(outgoing.on_want(&taken.want), Heard::GivenUp(TO));
            assert_eq!(outgoing.take_lost().count(), 0);
        }
    }
}

#[test]
fn given_bytes_that_are_not_what_was_announced_when_all_are_there_then_nothing_comes_out() {
    let (mut outgoing, mut incoming, mut part) = half_way();
    let mut bytes = part.bytes.to_vec();
    bytes[1000] ^= 1;
    part.bytes = bytes.into();
    outgoing.on_want(&incoming.take(PEER, &part).want);
    let mut dropped = None;
    while let Some(part) = next_part(&mut outgoing) {
        let taken = incoming.take(PEER, &part);
        assert!(taken.message.is_none());
        dropped = taken.dropped;
        outgoing.on_want(&taken.want);
    }
    assert_eq!(dropped, Some(TransferDrop::Checksum));
    assert!(is_empty(&incoming));
}

/// What a peer would send that makes its own checksums.
fn forged(transfer: Transfer, body: &[u8]) -> Option<TransferDrop> {
    let message_bytes = u32::try_from(body.len()).unwrap();
    let transfer = Transfer { message_bytes, message_crc: crc32fast::hash(body), ..transfer };
    let mut incoming = Incoming::default();
    incoming.take(PEER, &Part { transfer, offset: 0, bytes: Bytes::new() });
    let taken =
        incoming.take(PEER, &Part { transfer, offset: 0, bytes: Bytes::copy_from_slice(body) });
    assert_eq!(taken.message.is_none(), taken.dropped.is_some());
    assert!(is_empty(&incoming));
    taken.dropped
}

#[test]
fn given_a_whole_that_is_not_the_snapshot_it_was_said_to_be_when_it_is_there_then_it_is_dropped() {
    let message = snapshot(9, 100, 1);
    let body_of = |messages: &[PeerMessage]| {
        crate::wire::encode_raft(messages).unwrap().into_body().0.concat()
    };
    let body = body_of(std::slice::from_ref(&message));
    let transfer = Transfer {
        group: TO.0,
        to: TO.1,
        index: RaftIndex(9),
        term: Term(3),
        message_bytes: 0,
        message_crc: 0,
    };
    assert_eq!(forged(transfer, &body), None);
    let content = Some(TransferDrop::Content);
    assert_eq!(forged(Transfer { group: GroupId(6), ..transfer }, &body), content);
    assert_eq!(forged(Transfer { to: ReplicaId(3), ..transfer }, &body), content);
    assert_eq!(forged(Transfer { index: RaftIndex(8), ..transfer }, &body), content);
    assert_eq!(forged(Transfer { term: Term(4), ..transfer }, &body), content);
    assert_eq!(forged(transfer, &body_of(&[message.clone(), message.clone()])), content);
    assert_eq!(forged(transfer, &body_of(&[])), content);
    assert_eq!(forged(transfer, &body[..body.len() - 1]), content);
    let mut heartbeat = message;
    heartbeat.message.set_msg_type(MessageType::MsgHeartbeat);
    assert_eq!(forged(transfer, &body_of(&[heartbeat])), content);
}

#[test]
fn given_offers_without_end_when_they_come_then_they_are_bounded_and_cost_no_memory() {
    let offer = |group, message_bytes| {
        let transfer = Transfer {
            group: GroupId(group),
            to: ReplicaId(2),
            index: RaftIndex(1),
            term: Term(1),
            message_bytes,
            message_crc: 0,
        };
        Part { transfer, offset: 0, bytes: Bytes::new() }
    };
    let mut incoming = Incoming::default();
    for (group, bytes) in [(1, 0), (2, u32::MAX), (3, FRAME_BODY_BYTES_MAX + 1)] {
        let taken = incoming.take(PEER, &offer(group, bytes));
        assert_eq!((taken.dropped, taken.want.is_given_up), (Some(TransferDrop::Size), true));
    }
    let refused = |incoming: &mut Incoming, bytes| {
        let offers = (0..200).map(|group| incoming.take(PEER, &offer(group, bytes)).dropped);
        offers.flatten().filter(|reason| *reason == TransferDrop::NoRoom).count()
    };
    assert_eq!(refused(&mut incoming, FRAME_BODY_BYTES_MAX), 199);
    incoming.forget(PEER);
    assert_eq!(refused(&mut incoming, 10 << 20), 187);
    incoming.forget(PEER);
    assert_eq!(refused(&mut incoming, 1), 200 - TRANSFERS_MAX);
    assert!(incoming.by_key.values().all(|arriving| arriving.bytes.capacity() == 0));
    // Memory follows what has come of them.
    incoming.forget(PEER);
    let first = offer(1, FRAME_BODY_BYTES_MAX);
    incoming.take(PEER, &first);
    incoming.take(PEER, &Part { bytes: vec![0; PART_BYTES_MAX].into(), ..first });
    let claimed = incoming.by_key.values().map(|arriving| arriving.bytes.capacity()).sum::<usize>();
    assert!(claimed < 3 << 20, "{claimed} bytes");
}

#[test]
fn given_more_large_snapshots_than_there_is_room_for_when_they_are_sent_then_their_groups_hear_it()
{
    let mut outgoing = Outgoing::default();
    let large = snapshot(9, 50 << 20, 0);
    let of = |group| PeerMessage { group: GroupId(group), ..large.clone() };
    assert_eq!([1, 2, 3].map(|group| outgoing.push(&of(group)).is_ok()), [true, true, false]);
    outgoing.push(&of(1)).expect("in the place of the one before");
    assert_eq!(outgoing.take_lost().count(), 2);
    outgoing.push(&of(3)).expect("room again");
}

#[test]
fn given_a_transfer_that_nobody_goes_on_with_when_time_passes_then_both_ends_give_it_up() {
    let (mut outgoing, mut incoming, _) = half_way();
    for _ in 1..IDLE_TICKS_MAX {
        assert!(outgoing.tick().is_empty() && incoming.tick().is_empty());
    }
    assert_eq!(outgoing.tick(), [TO]);
    assert_eq!(incoming.tick(), [PEER]);
    assert!(is_empty(&incoming) && outgoing.take_lost().count() == 0);
}

#[test]
fn given_a_peer_that_wants_what_there_is_not_when_it_says_so_then_the_transfer_is_lost() {
    let (mut outgoing, _, part) = half_way();
    let want = Want { transfer: part.transfer, offset: u32::MAX, is_given_up: false };
    let other = Transfer { message_crc: 1, ..part.transfer };
    assert_eq!(outgoing.on_want(&Want { transfer: other, ..want }), Heard::Nothing);
    assert_eq!(outgoing.on_want(&want), Heard::GivenUp(TO));
    assert_eq!(outgoing.on_want(&want), Heard::Nothing);
    assert!(outgoing.next_frame().is_none());
}

proptest! {
    /// Parts of two snapshots in any order, cut, doubled and moved: what comes out is one of them.
    #[test]
    fn given_parts_in_any_order_when_they_come_then_only_what_was_sent_comes_out(
        steps in prop::collection::vec((0..2u8, 0..5u32, -1..2i64, 0..3usize), 1..60)
    ) {
        let messages = [snapshot(9, 1500, 0), snapshot(9, 1500, 1)];
        let bodies = messages.clone().map(|message| {
            crate::wire::encode_raft(&[message]).unwrap().into_body()
        });
        let mut incoming = Incoming::default();
        for (which, quarter, shift, cut) in steps {
            let (pieces, message_crc) = &bodies[usize::from(which)];
            let body = pieces.concat();
            let message_bytes = u32::try_from(body.len()).unwrap();
            let transfer = Transfer {
                group: TO.0,
                to: TO.1,
                index: RaftIndex(9),
                term: Term(3),
                message_bytes,
                message_crc: *message_crc,
            };
            let size = message_bytes.div_ceil(4);
            let from = (quarter * size).min(message_bytes) as usize;
            let to = (from + size as usize).min(body.len()).saturating_sub(cut).max(from);
            let is_offer = quarter == 4;
            let offset = if is_offer { 0 } else { i64::try_from(from).unwrap() + shift.min(0) };
            let bytes = if is_offer { &[][..] } else { &body[from..to] };
            let part = Part {
                transfer,
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                bytes: Bytes::copy_from_slice(bytes),
            };
            let taken = incoming.take(PEER, &part);
            if let Some(message) = taken.message {
                prop_assert_eq!(&message, &messages[usize::from(which)]);
            }
            let sum: u32 = incoming.by_key.values().map(|a| a.transfer.message_bytes).sum();
            prop_assert_eq!(incoming.bytes, sum as usize);
        }
    }
}

#[test]
fn given_the_kinds_of_parts_when_they_are_framed_then_no_part_is_larger_than_one_may_be() {
    let (mut outgoing, mut incoming) = (offered(&snapshot(9, 3_000_000, 0)), Incoming::default());
    while let Some(frame) = outgoing.next_frame() {
        assert!(frame.bytes() <= PART_BYTES_MAX + 100);
        let header = frame.parts().concat();
        let header = crate::wire::FrameHeader::decode(header.first_chunk().unwrap(), u32::MAX);
        assert_eq!(header.unwrap().kind, FrameKind::Part);
        outgoing.on_want(&incoming.take(PEER, &part_of(&frame)).want);
    }
    assert!(is_empty(&incoming));
}
