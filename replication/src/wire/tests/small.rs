//! Handshakes, notices and calls.

use proptest::prelude::*;

use super::*;

#[test]
fn given_a_hello_of_a_newer_version_when_read_then_what_it_has_more_is_left_alone() {
    let mut body = body_of(&hello().to_frame(), FrameKind::Hello).to_vec();
    body[0] = 3;
    body.extend(b"more");
    let newer = Hello::decode(&body).unwrap();
    let versions = Versions { oldest: 1, newest: 3 };
    assert_eq!(newer, Hello { versions, ..hello() });
    body[0] = 0;
    assert!(matches!(Hello::decode(&body), Err(WireError::Value { .. })));
    body[0] = 1;
    assert_eq!(Hello::decode(&body), Err(WireError::Trailing { bytes: 4 }));
}

#[test]
fn given_two_ranges_of_versions_when_agreed_then_it_is_the_newest_of_both_or_says_who_is_too_new() {
    let of = |oldest, newest| Versions { oldest, newest };
    assert_eq!(of(1, 2).agreed(of(1, 1)), Ok(1), "one node is upgraded before the other");
    assert_eq!(of(1, 1).agreed(of(1, 2)), Ok(1));
    assert_eq!(of(2, 4).agreed(of(3, 7)), Ok(4));
    assert_eq!(of(1, 2).agreed(of(3, 4)), Err(RefusedReason::NewerVersion));
    assert_eq!(of(3, 4).agreed(of(1, 2)), Err(RefusedReason::OlderVersion));
}

#[test]
fn given_a_hello_when_its_seats_are_asked_for_then_they_are_its_sender_and_its_receiver() {
    assert_eq!(hello().from_seat(), Seat { node: NodeId(1), shard: ShardId(2) });
    assert_eq!(hello().to_seat().to_string(), "3/4");
}

#[test]
fn given_each_reason_of_a_refusal_when_sent_then_it_is_read_and_says_something_of_its_own() {
    let mut texts = std::collections::BTreeSet::new();
    for value in 1..=9 {
        let mut body = [0; 8];
        body[0] = value;
        let refused = Refused::decode(&body).unwrap();
        assert_eq!(body_of(&refused.to_frame(), FrameKind::Refused), body.as_slice());
        assert!(texts.insert(refused.reason.to_string()));
    }
    for value in [0, 10, 255] {
        let error = Refused::decode(&[value, 0, 0, 0, 0, 0, 0, 0]).unwrap_err();
        assert!(matches!(error, WireError::Value { .. }));
    }
}

#[test]
fn given_more_notices_than_a_frame_has_room_for_when_encoded_then_they_are_refused() {
    let mut many = vec![notices()[0]; NOTICES_MAX];
    let frame = encode_notices(&many).unwrap();
    assert_eq!(frame.parts().len(), 1);
    assert_eq!(decode_notices(&body_of(&frame, FrameKind::Notices)).unwrap(), many);
    many.push(notices()[0]);
    assert!(matches!(encode_notices(&many), Err(WireError::Count { .. })));
}

#[test]
fn given_a_count_of_notices_that_are_not_there_when_read_then_it_is_refused() {
    for (count, too_many) in [(1_u32, false), (1 << 14, false), ((1 << 14) + 1, true)] {
        let body = [&count.to_le_bytes()[..], &[0; 4 + 31]].concat();
        let error = decode_notices(&body).unwrap_err();
        assert_eq!(matches!(error, WireError::Count { .. }), too_many, "{error}");
        assert_eq!(matches!(error, WireError::Truncated { .. }), !too_many, "{error}");
    }
}

#[test]
fn given_more_marks_than_a_frame_has_room_for_when_encoded_then_they_are_refused() {
    let mut many = vec![received()[0]; RECEIVED_MAX];
    let frame = encode_received(&many).unwrap();
    assert_eq!(frame.parts().len(), 1);
    assert_eq!(decode_received(&body_of(&frame, FrameKind::Received)).unwrap(), many);
    many.push(received()[0]);
    assert!(matches!(encode_received(&many), Err(WireError::Count { .. })));
    let body = [&(1_u32 << 15).to_le_bytes()[..], &[0; 4 + 40]].concat();
    assert!(matches!(decode_received(&body), Err(WireError::Count { .. })));
}

#[test]
fn given_a_large_body_of_a_call_when_sent_and_read_then_it_is_shared_each_time() {
    let payload = Bytes::from(vec![7; 1 << 10]);
    let call = Call { id: 1, kind: 0, body: payload.clone() };
    let frame = call.to_frame().unwrap();
    assert!(frame.parts().iter().any(|part| part.as_ptr() == payload.as_ptr()));
    let body = body_of(&frame, FrameKind::Call);
    let read = Call::decode(&body).unwrap();
    assert_eq!(read, call);
    assert_eq!(read.body.as_ptr(), body[16..].as_ptr());

    let reply = Reply { id: 1, result: Ok(payload.clone()) };
    let frame = framed(&reply).unwrap();
    assert!(frame.parts().iter().any(|part| part.as_ptr() == payload.as_ptr()));
    assert_eq!(Reply::decode(&body_of(&frame, FrameKind::Reply)).unwrap(), reply);
}

#[test]
fn given_an_answer_in_parts_when_sent_then_they_are_one_body_and_the_large_ones_are_shared() {
    let large = Bytes::from(vec![7; 1 << 10]);
    let parts = [Bytes::from_static(b"head"), large.clone(), Bytes::from_static(b"end")];
    let frame = Reply::frame(1, Ok(&parts)).unwrap();
    assert!(frame.parts().iter().any(|part| part.as_ptr() == large.as_ptr()));
    let read = Reply::decode(&body_of(&frame, FrameKind::Reply)).unwrap();
    assert_eq!(read.result.unwrap(), parts.concat());
}

#[test]
fn given_a_small_call_when_encoded_then_it_is_one_part() {
    let call = Call { id: 1, kind: 0, body: Bytes::from(vec![7; 1023]) };
    assert_eq!(call.to_frame().unwrap().parts().len(), 1);
    assert_eq!(call.to_frame().unwrap().bytes(), 32 + 16 + 1023);
}

#[test]
fn given_a_body_that_fits_into_no_frame_when_encoded_then_it_is_refused() {
    let body = Bytes::from(vec![0; FRAME_BODY_BYTES_MAX as usize - 15]);
    let call = Call { id: 1, kind: 0, body: body.clone() };
    assert!(matches!(call.to_frame(), Err(WireError::BodyTooLarge { .. })));
    let reply = Reply { id: 1, result: Ok(body.slice(1..)) };
    assert_eq!(framed(&reply).unwrap().bytes(), 32 + FRAME_BODY_BYTES_MAX as usize);
}

#[test]
fn given_a_long_text_of_a_refusal_when_sent_then_it_is_cut_between_characters() {
    let long = "ä".repeat(300);
    let text = format!("x{long}");
    let frame = reply(Err(CallRefused::Invalid { text }));
    let read = Reply::decode(&body_of(&frame, FrameKind::Reply)).unwrap();
    let expected = format!("x{}", "ä".repeat(255));
    assert_eq!(read.result, Err(CallRefused::Invalid { text: expected }));
}

#[test]
fn given_a_reply_that_says_too_much_or_nothing_when_read_then_it_is_refused() {
    let with = |status: u8, has_leader: u8, leader: u8, rest: &[u8]| {
        let head = [5, 0, 0, 0, 0, 0, 0, 0, status, has_leader, 0, 0, leader, 0, 0, 0];
        Reply::decode(&Bytes::from([&head[..], rest].concat())).map(|reply| reply.result)
    };
    assert_eq!(with(2, 0, 0, b""), Ok(Err(CallRefused::Overloaded)));
    assert_eq!(with(2, 1, 3, b""), Err(WireError::Reserved), "a leader where none belongs");
    assert_eq!(with(1, 0, 3, b""), Err(WireError::Reserved), "a leader that is not there");
    assert!(matches!(with(1, 2, 3, b""), Err(WireError::Value { .. })));
    assert!(matches!(with(4, 0, 0, b""), Err(WireError::Value { .. })));
    assert_eq!(with(1, 1, 3, b"x"), Err(WireError::Trailing { bytes: 1 }));
    assert_eq!(with(3, 0, 0, b"\xff"), Err(WireError::Text));
    assert!(matches!(with(3, 0, 0, &[b'x'; 513]), Err(WireError::Count { .. })));
}

fn any_kind() -> impl Strategy<Value = FrameKind> {
    use FrameKind::*;
    prop::sample::select(vec![Hello, Welcome, Refused, Raft, Notices, Call, Reply, Part, Want])
}

proptest! {
    #[test]
    fn given_any_bytes_when_read_as_any_kind_then_what_is_accepted_is_written_as_the_same_bytes(
        kind in any_kind(),
        mut body in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..300),
        one in any::<bool>(),
    ) {
        if one && !body.is_empty() {
            body[0] = 1;
        }
        let body = Bytes::from(body);
        if let Ok(Some(frame)) = again(kind, &body) {
            // Only a newer hello may have more than is read.
            let same = read(&joined(&frame)).unwrap().1;
            prop_assert!(body.starts_with(&same));
            let newer = kind == FrameKind::Hello && (body[0] > 1 || body[1] > 0);
            prop_assert!(newer || same.len() == body.len());
        }
    }

    #[test]
    fn given_any_header_when_read_then_what_is_accepted_is_within_bounds(
        mut header in any::<[u8; FRAME_HEADER_BYTES]>(),
        kind in 0_u8..16,
        sound in any::<bool>(),
        max in any::<u32>(),
    ) {
        if sound {
            header[..5].copy_from_slice(b"CHRF\x01");
            header[5] = kind;
            header[6..8].fill(0);
            header[12..16].fill(0);
            header[20..28].fill(0);
            let crc = crc32fast::hash(&header[..28]);
            header[28..].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(header) = FrameHeader::decode(&header, max) {
            prop_assert!(sound);
            prop_assert!(header.body_bytes <= max.min(header.kind.body_bytes_max()));
        }
    }

    #[test]
    fn given_any_handshake_when_sent_then_it_is_read_the_same(
        numbers in any::<(u32, u32, u16, u16, u16)>(),
        uuids in any::<(u128, u128)>(),
        nonce in any::<[u8; 32]>(),
        proof in any::<[u8; 32]>(),
    ) {
        let (node, to_node, from, to, shards) = numbers;
        let node_uuid = Uuid::from_u128(uuids.0);
        let hello = Hello {
            versions: Versions::OWN,
            cluster: Uuid::from_u128(uuids.1),
            node: NodeId(node),
            node_uuid,
            from: ShardId(from),
            to_node: NodeId(to_node),
            to: ShardId(to),
            nonce,
        };
        let body = body_of(&hello.to_frame(), FrameKind::Hello);
        prop_assert_eq!(Hello::decode(&body), Ok(hello));
        let welcome = Welcome { node: NodeId(node), node_uuid, shards, version: to, nonce, proof };
        let body = body_of(&welcome.to_frame(), FrameKind::Welcome);
        prop_assert_eq!(Welcome::decode(&body), Ok(welcome));
    }

    #[test]
    fn given_any_notices_when_sent_then_they_are_read_the_same(
        numbers in prop::collection::vec(any::<(u64, u64, u64, u32)>(), 0..50),
    ) {
        let notices: Vec<_> = numbers
            .into_iter()
            .map(|(group, term, replica, node)| LeaderNotice {
                group: GroupId(group),
                term: Term(term),
                replica: ReplicaId(replica),
                node: NodeId(node),
            })
            .collect();
        let frame = encode_notices(&notices).unwrap();
        prop_assert_eq!(decode_notices(&body_of(&frame, FrameKind::Notices)).unwrap(), notices);
    }

    #[test]
    fn given_any_call_and_reply_when_sent_then_they_are_read_the_same(
        id in any::<u64>(),
        kind in any::<u8>(),
        bytes in prop::collection::vec(any::<u8>(), 0..1500),
        leader in any::<Option<u32>>(),
        text in "\\PC{0,100}",
        outcome in 0..4,
    ) {
        let body = Bytes::from(bytes);
        let call = Call { id, kind, body: body.clone() };
        let frame = call.to_frame().unwrap();
        prop_assert_eq!(Call::decode(&body_of(&frame, FrameKind::Call)).unwrap(), call);
        let result = match outcome {
            0 => Ok(body),
            1 => Err(CallRefused::NotLeader { leader: leader.map(NodeId) }),
            2 => Err(CallRefused::Overloaded),
            _ => Err(CallRefused::Invalid { text }),
        };
        let reply = Reply { id, result };
        let frame = framed(&reply).unwrap();
        prop_assert_eq!(Reply::decode(&body_of(&frame, FrameKind::Reply)).unwrap(), reply);
    }
}

#[test]
fn given_a_part_when_it_is_as_large_as_one_may_be_then_it_is_shared_and_a_byte_more_is_refused() {
    let pieces = [Bytes::from(vec![1; 2000]), Bytes::from(vec![2; PART_BYTES_MAX - 2000])];
    let frame = Part::frame(&transfer(), 7, &pieces).unwrap();
    assert_eq!(frame.parts()[2].as_ptr(), pieces[1].as_ptr());
    let part = Part::decode(&body_of(&frame, FrameKind::Part)).unwrap();
    assert_eq!((part.transfer, part.offset, part.bytes.len()), (transfer(), 7, PART_BYTES_MAX));
    let more = [&pieces[..], &[Bytes::from_static(b"x")]].concat();
    let error = Part::frame(&transfer(), 7, &more).unwrap_err();
    let bytes = PART_BYTES_MAX + 1;
    assert_eq!(error, WireError::BodyTooLarge { bytes, bytes_max: PART_BYTES_MAX });
}

#[test]
fn given_a_part_or_a_want_when_a_field_is_what_none_has_then_it_is_refused() {
    let with = |frame: &Frame, at: usize, value: u8| {
        let mut body = joined(frame).split_off(FRAME_HEADER_BYTES);
        body[at] = value;
        Bytes::from(body)
    };
    let part = Part::frame(&transfer(), 0, &[]).unwrap();
    let want = Want { transfer: transfer(), offset: 6, is_given_up: false }.to_frame();
    for at in 44..48 {
        assert_eq!(Part::decode(&with(&part, at, 1)), Err(WireError::Reserved), "{at}");
    }
    let field = "end of a transfer";
    assert_eq!(Want::decode(&with(&want, 44, 2)), Err(WireError::Value { field, value: 2 }));
    for at in 45..48 {
        assert_eq!(Want::decode(&with(&want, at, 1)), Err(WireError::Reserved), "{at}");
    }
}
