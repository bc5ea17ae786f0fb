//! Raft messages: every type, what is shared and what is copied, and what no peer takes.

use ::raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use proptest::prelude::*;
use protobuf::SingularPtrField;

use super::*;
use crate::ready::PeerMessage;

/// What may travel.
const TYPES: [MessageType; 14] = [
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn peer(group: u64, message: Message) -> PeerMessage {
    PeerMessage { group: GroupId(group), message }
}

fn entry(index: u64, data: Bytes) -> Entry {
    Entry { index, term: 3, data, ..Entry::default() }
}

/// An append of entries with these payloads.
fn append(payloads: Vec<Bytes>) -> PeerMessage {
    let entries: Vec<_> = (10..).zip(payloads).map(|(index, data)| entry(index, data)).collect();
    let message = Message {
        msg_type: MessageType::MsgAppend,
        to: 2,
        from: 1,
        term: 3,
        log_term: 2,
        index: 9,
        commit: 8,
        commit_term: 2,
        entries: entries.into(),
        ..Message::default()
    };
    peer(7, message)
}

/// With every field set in one of them.
pub(super) fn messages() -> Vec<PeerMessage> {
    let mut batch = append(vec![Bytes::from_static(b"batch"), Bytes::new()]);
    batch.message.entries[0].context = Bytes::copy_from_slice(&counted_from(1)[..24]);
    batch.message.entries[1].entry_type = EntryType::EntryConfChangeV2;
    let mut install = Message { msg_type: MessageType::MsgSnapshot, ..Message::default() };
    (install.to, install.from, install.term) = (2, 1, 3);
    let snapshot = install.mut_snapshot();
    snapshot.data = Bytes::from_static(b"state");
    snapshot.mut_metadata().index = 100;
    snapshot.mut_metadata().term = 3;
    *snapshot.mut_metadata().mut_conf_state() = ConfState {
        voters: vec![1, 2, 3],
        learners: vec![4],
        voters_outgoing: vec![1, 2],
        learners_next: vec![5],
        auto_leave: true,
        ..ConfState::default()
    };
    let rejected = Message {
        msg_type: MessageType::MsgAppendResponse,
        to: 1,
        from: 2,
        term: 3,
        index: 9,
        reject: true,
        reject_hint: 6,
        request_snapshot: 5,
        priority: -1,
        context: Bytes::from_static(b"CampaignTransfer"),
        ..Message::default()
    };
    vec![batch, peer(8, install), peer(0, rejected)]
}

fn round_trip(messages: &[PeerMessage]) -> Vec<PeerMessage> {
    decode_raft(&body_of(&encode_raft(messages).unwrap(), FrameKind::Raft)).unwrap()
}

fn refused(message: Message) -> WireError {
    encode_raft(&[peer(1, message)]).unwrap_err()
}

#[test]
fn given_messages_with_every_field_when_sent_then_they_are_read_the_same() {
    assert_eq!(round_trip(&messages()), messages());
    assert!(round_trip(&[]).is_empty());
}

#[test]
fn given_messages_when_encoded_then_their_size_is_what_was_said_before() {
    let bytes: usize = messages().iter().map(raft_message_bytes).sum();
    let frame = encode_raft(&messages()).unwrap();
    assert_eq!(frame.bytes(), FRAME_HEADER_BYTES + 8 + bytes);
    assert_eq!(frame.parts().len(), 1, "all of it is small");
}

#[test]
fn given_a_large_payload_when_sent_and_read_then_it_is_shared_and_a_small_one_is_copied() {
    let large = Bytes::from(vec![1; 1 << 10]);
    let small = Bytes::from(vec![2; (1 << 10) - 1]);
    let mut sent = append(vec![large.clone(), small.clone(), large.clone()]);
    sent.message.entries[1].context = Bytes::from_static(b"context");
    let frame = encode_raft(&[sent.clone()]).unwrap();
    let starts: Vec<_> = frame.parts().iter().map(|part| part.as_ptr()).collect();
    assert_eq!(starts.iter().filter(|start| **start == large.as_ptr()).count(), 2);
    assert_eq!(frame.parts().len(), 4, "head, large, what is between, large");

    let body = body_of(&frame, FrameKind::Raft);
    let read = decode_raft(&body).unwrap();
    assert_eq!(read, [sent]);
    let within = |bytes: &Bytes| body.as_ptr_range().contains(&bytes.as_ptr());
    let entries = read[0].message.get_entries();
    assert!(within(&entries[0].data) && within(&entries[2].data));
    assert!(!within(&entries[1].data) && !within(&entries[1].context));
}

#[test]
fn given_a_large_snapshot_when_sent_and_read_then_its_data_is_shared() {
    let mut install = messages().remove(1);
    let data = Bytes::from(vec![3; 5000]);
    install.message.mut_snapshot().data = data.clone();
    let frame = encode_raft(&[install.clone()]).unwrap();
    assert!(frame.parts().iter().any(|part| part.as_ptr() == data.as_ptr()));
    let body = body_of(&frame, FrameKind::Raft);
    let read = decode_raft(&body).unwrap();
    assert!(body.as_ptr_range().contains(&read[0].message.get_snapshot().data.as_ptr()));
    assert_eq!(read, [install]);
}

#[test]
fn given_an_entry_of_the_largest_size_when_sent_then_a_frame_has_room_for_it() {
    let whole = append(vec![Bytes::from(vec![0; ENTRY_BYTES_MAX])]);
    assert_eq!(raft_messages_that_fit(std::slice::from_ref(&whole), FRAME_BODY_BYTES_MAX), 1);
    let frame = encode_raft(&[whole]).unwrap();
    let header = frame.parts()[0].first_chunk().unwrap();
    assert!(FrameHeader::decode(header, FRAME_BODY_BYTES_MAX).is_ok());
    let larger = append(vec![Bytes::from(vec![0; ENTRY_BYTES_MAX + 1])]);
    assert!(matches!(encode_raft(&[larger]), Err(WireError::Count { .. })));
}

#[test]
fn given_local_types_when_sent_or_read_then_they_are_refused_like_unknown_ones() {
    for msg_type in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
    ] {
        let error = refused(Message { msg_type, ..Message::default() });
        assert_eq!(error, WireError::LocalMessage { message_type: msg_type });
    }
    let good = body_of(&encode_raft(&messages()).unwrap(), FrameKind::Raft);
    for value in [0, 15, 255] {
        let mut body = good.to_vec();
        body[8] = value;
        let error = decode_raft(&Bytes::from(body)).unwrap_err();
        assert!(matches!(error, WireError::Value { field: "type of a message", .. }), "{error}");
    }
}

#[test]
fn given_what_no_peer_takes_when_encoded_then_it_is_refused_here() {
    let context = Bytes::from(vec![0; 65]);
    let error = refused(Message { context: context.clone(), ..messages()[2].message.clone() });
    assert!(matches!(error, WireError::Count { what: "bytes of context", .. }));
    let mut sent = append(vec![Bytes::new()]).message;
    sent.entries[0].context = context;
    assert!(matches!(refused(sent), WireError::Count { what: "bytes of context", .. }));
    let mut sent = append(vec![Bytes::new()]).message;
    sent.entries[0].index = 11;
    assert_eq!(refused(sent), WireError::EntryIndex { expected: 10, found: 11 });
    let mut sent = messages()[1].message.clone();
    sent.mut_snapshot().mut_metadata().mut_conf_state().learners_next = vec![1; 257];
    assert!(matches!(refused(sent), WireError::Count { what: "replicas", .. }));
    let many = vec![messages()[2].clone(); RAFT_MESSAGES_MAX + 1];
    let error = encode_raft(&many).unwrap_err();
    assert!(matches!(error, WireError::Count { what: "messages", .. }));
}

#[test]
fn given_messages_when_asked_how_many_fit_then_so_many_can_be_encoded_and_no_more() {
    let small = vec![messages()[2].clone(); RAFT_MESSAGES_MAX + 1];
    assert_eq!(raft_messages_that_fit(&small, FRAME_BODY_BYTES_MAX), RAFT_MESSAGES_MAX);
    assert!(encode_raft(&small[..RAFT_MESSAGES_MAX]).is_ok());
    let each = u32::try_from(raft_message_bytes(&small[0])).unwrap();
    assert_eq!(raft_messages_that_fit(&small, 8 + 3 * each), 3);
    assert_eq!(raft_messages_that_fit(&small, 8 + 3 * each - 1), 2);
    assert_eq!(raft_messages_that_fit(&small, 0), 1, "the first is for the encoder to judge");
    assert_eq!(raft_messages_that_fit(&[], 0), 0);
    let half = append(vec![Bytes::new(); RAFT_ENTRIES_MAX / 2]);
    let full = [half.clone(), half.clone(), half];
    assert_eq!(raft_messages_that_fit(&full, FRAME_BODY_BYTES_MAX), 2);
    assert_eq!(round_trip(&full[..2]), full[..2]);
    let error = encode_raft(&full).unwrap_err();
    assert!(matches!(error, WireError::Count { what: "entries", .. }));
}

/// A body of one append without entries, with some of its bytes changed, and so many bytes after it.
fn forged(changes: &[(usize, &[u8])], after: usize) -> Result<Vec<PeerMessage>, WireError> {
    let mut body = body_of(&encode_raft(&[append(vec![])]).unwrap(), FrameKind::Raft).to_vec();
    for (at, bytes) in changes {
        body[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    body.resize(body.len() + after, 0);
    decode_raft(&Bytes::from(body))
}

#[test]
fn given_counts_of_what_is_not_there_when_read_then_they_are_refused() {
    let messages_at = |count: u32| forged(&[(0, &count.to_le_bytes())], 0).unwrap_err();
    assert!(matches!(messages_at(2), WireError::Truncated { .. }));
    assert!(matches!(messages_at(1 << 14), WireError::Truncated { .. }));
    assert!(matches!(messages_at(u32::MAX), WireError::Count { what: "messages", .. }));
    let entries_at = |count: u32| forged(&[(12, &count.to_le_bytes())], 15).unwrap_err();
    assert!(matches!(entries_at(1), WireError::Truncated { .. }));
    assert!(matches!(entries_at(1 << 17), WireError::Truncated { .. }));
    assert!(matches!(entries_at(u32::MAX), WireError::Count { what: "entries", .. }));
    let error = forged(&[(10, &[65])], 100).unwrap_err();
    assert!(matches!(error, WireError::Count { what: "bytes of context", .. }));
    // A snapshot: behind the message's head and the body's, its data's length at 16 and the lists' at 20.
    let snapshot = |at: usize, bytes: &[u8]| {
        forged(&[(9, &[2])], 32).and_then(|messages| {
            let mut body = body_of(&encode_raft(&messages).unwrap(), FrameKind::Raft).to_vec();
            body[104 + at..][..bytes.len()].copy_from_slice(bytes);
            decode_raft(&Bytes::from(body))
        })
    };
    assert!(snapshot(16, &[0; 4]).is_ok());
    assert!(matches!(snapshot(16, &[1, 0, 0, 0]), Err(WireError::Truncated { .. })));
    assert!(matches!(snapshot(16, &[255; 4]), Err(WireError::Count { .. })));
    for list in [20, 22, 24, 26] {
        assert!(matches!(snapshot(list, &[0, 1]), Err(WireError::Truncated { .. })));
        assert!(matches!(snapshot(list, &[1, 1]), Err(WireError::Count { .. })));
    }
    assert!(matches!(snapshot(28, &[2]), Err(WireError::Value { field: "auto_leave", .. })));
    assert_eq!(snapshot(31, &[1]), Err(WireError::Reserved));
}

#[test]
fn given_entries_beyond_the_last_index_when_read_then_they_are_refused() {
    let index_at = 8 + 8 + 5 * 8;
    let with = |index: u64| forged(&[(12, &[1]), (index_at, &index.to_le_bytes())], 16);
    assert_eq!(with(u64::MAX - 1).unwrap()[0].message.entries[0].index, u64::MAX);
    assert!(matches!(with(u64::MAX), Err(WireError::Value { .. })));
}

#[test]
fn given_entries_that_stand_in_no_log_when_sent_then_they_have_no_index() {
    let mut asked = Message { msg_type: MessageType::MsgReadIndex, index: 9, ..Message::default() };
    asked.entries.push(Entry { data: Bytes::from_static(b"who asks"), ..Entry::default() });
    let asked = peer(1, asked);
    assert_eq!(round_trip(std::slice::from_ref(&asked)), [asked]);
}

fn any_bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..=max).prop_map(Bytes::from)
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let types = [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2];
    let data = prop_oneof![any_bytes(40), (1000_usize..3000).prop_map(|n| vec![9; n].into())];
    (prop::sample::select(types.to_vec()), any::<u64>(), data, any_bytes(64)).prop_map(
        |(entry_type, term, data, context)| Entry {
            entry_type,
            term,
            data,
            context,
            ..Entry::default()
        },
    )
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let ids = || prop::collection::vec(any::<u64>(), 0..5);
    let lists = (ids(), ids(), ids(), ids(), any::<bool>());
    (any::<(u64, u64)>(), lists, any_bytes(1500)).prop_map(|((index, term), lists, data)| {
        let mut snapshot = Snapshot { data, ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        let state = metadata.mut_conf_state();
        (
            state.voters,
            state.learners,
            state.voters_outgoing,
            state.learners_next,
            state.auto_leave,
        ) = lists;
        snapshot
    })
}

fn any_message() -> impl Strategy<Value = PeerMessage> {
    let numbers = (any::<[u64; 10]>(), any::<i64>(), any::<bool>());
    let kind = prop::sample::select(TYPES.to_vec());
    let entries = prop::collection::vec(any_entry(), 0..4);
    (kind, numbers, any_bytes(64), entries, prop::option::of(any_snapshot())).prop_map(
        |(msg_type, (numbers, priority, reject), context, mut entries, snapshot)| {
            let [group, to, from, term, log_term, index, commit, commit_term, hint, request] =
                numbers;
            let index = index >> 1;
            if msg_type == MessageType::MsgAppend {
                for (entry, place) in entries.iter_mut().zip(index + 1..) {
                    entry.index = place;
                }
            }
            let message = Message {
                msg_type,
                to,
                from,
                term,
                log_term,
                index,
                commit,
                commit_term,
                reject,
                reject_hint: hint,
                request_snapshot: request,
                priority,
                context,
                entries: entries.into(),
                snapshot: SingularPtrField::from_option(snapshot),
                ..Message::default()
            };
            peer(group, message)
        },
    )
}

proptest! {
    #[test]
    fn given_any_messages_when_sent_then_they_are_read_the_same(
        messages in prop::collection::vec(any_message(), 0..5),
    ) {
        let frame = encode_raft(&messages).unwrap();
        let bytes: usize = messages.iter().map(raft_message_bytes).sum();
        prop_assert_eq!(frame.bytes(), FRAME_HEADER_BYTES + 8 + bytes);
        let body = body_of(&frame, FrameKind::Raft);
        let read = decode_raft(&body).unwrap();
        prop_assert_eq!(&read, &messages);
    }

    #[test]
    fn given_a_sound_body_when_bytes_of_it_change_then_what_is_accepted_is_written_the_same(
        messages in prop::collection::vec(any_message(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut body = body_of(&encode_raft(&messages).unwrap(), FrameKind::Raft).to_vec();
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        if let Some(cut) = cut {
            body.truncate(cut.index(body.len()));
        }
        let body = Bytes::from(body);
        if let Ok(messages) = decode_raft(&body) {
            prop_assert_eq!(body_of(&encode_raft(&messages).unwrap(), FrameKind::Raft), body);
        }
    }
}
