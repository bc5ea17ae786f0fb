//! One frame of each kind, and what is true of all of them: their layout, and that no damage goes unnoticed.

mod raft;
mod small;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, NodeId, RaftIndex, ReplicaId, ShardId, Term};
use chronik_engine::limits::ENTRY_BYTES_MAX;
use uuid::Uuid;

use super::*;

/// The frame's bytes as a peer gets them.
fn joined(frame: &Frame) -> Vec<u8> {
    let bytes = frame.parts().concat();
    assert_eq!(bytes.len(), frame.bytes());
    assert!(frame.parts().iter().all(|part| !part.is_empty()));
    bytes
}

/// Reads a frame as a connection does.
fn read(bytes: &[u8]) -> Result<(FrameKind, Bytes), WireError> {
    let left = bytes.len();
    let header =
        bytes.first_chunk().ok_or(WireError::Truncated { needed: FRAME_HEADER_BYTES, left })?;
    let header = FrameHeader::decode(header, FRAME_BODY_BYTES_MAX)?;
    let body = &bytes[FRAME_HEADER_BYTES..];
    header.check_body(body)?;
    Ok((header.kind, Bytes::copy_from_slice(body)))
}

fn body_of(frame: &Frame, kind: FrameKind) -> Bytes {
    let (found, body) = read(&joined(frame)).unwrap();
    assert_eq!(found, kind);
    body
}

/// Reads a body as what its kind says and makes a frame of it again, if there is a codec for it.
fn again(kind: FrameKind, body: &Bytes) -> Result<Option<Frame>, WireError> {
    Ok(Some(match kind {
        FrameKind::Hello => Hello::decode(body)?.to_frame(),
        FrameKind::Welcome => Welcome::decode(body)?.to_frame(),
        FrameKind::Refused => Refused::decode(body)?.to_frame(),
        FrameKind::Raft => encode_raft(&decode_raft(body)?)?,
        FrameKind::Notices => encode_notices(&decode_notices(body)?)?,
        FrameKind::Call => Call::decode(body)?.to_frame()?,
        FrameKind::Reply => framed(&Reply::decode(body)?)?,
        FrameKind::Part => {
            let Part { transfer, offset, bytes } = Part::decode(body)?;
            Part::frame(&transfer, offset, &[bytes])?
        }
        FrameKind::Want => Want::decode(body)?.to_frame(),
        FrameKind::Received => encode_received(&decode_received(body)?)?,
        FrameKind::Ping | FrameKind::Pong | FrameKind::Discovery | FrameKind::DiscoveryReply => {
            return Ok(None);
        }
    }))
}

fn counted_from(first: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (byte, value) in bytes.iter_mut().zip(first..) {
        *byte = value;
    }
    bytes
}

fn hello() -> Hello {
    Hello {
        versions: Versions { oldest: 1, newest: 1 },
        cluster: Uuid::from_u128(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f),
        node: NodeId(1),
        node_uuid: Uuid::from_u128(0x1011_1213_1415_1617_1819_1a1b_1c1d_1e1f),
        from: ShardId(2),
        to_node: NodeId(3),
        to: ShardId(4),
        nonce: counted_from(0x20),
    }
}

fn welcome() -> Welcome {
    Welcome {
        node: NodeId(3),
        node_uuid: Uuid::from_u128(0x3031_3233_3435_3637_3839_3a3b_3c3d_3e3f),
        shards: 8,
        version: 1,
        nonce: counted_from(0x40),
        proof: counted_from(0x60),
    }
}

fn notices() -> Vec<LeaderNotice> {
    let notice = |group, term, replica, node| LeaderNotice {
        group: GroupId(group),
        term: Term(term),
        replica: ReplicaId(replica),
        node: NodeId(node),
    };
    vec![notice(7, 3, 0x0102_0304_0506_0708, 2), notice(0, 1, 9, 1)]
}

fn received() -> Vec<ReceivedMark> {
    let mark = |group, from, to, term, index| ReceivedMark {
        group: GroupId(group),
        from: ReplicaId(from),
        to: ReplicaId(to),
        term: Term(term),
        index: RaftIndex(index),
    };
    vec![mark(7, 0x0102_0304_0506_0708, 2, 3, 9), mark(1, 8, 5, 1, 0)]
}

fn transfer() -> Transfer {
    Transfer {
        group: GroupId(7),
        to: ReplicaId(2),
        index: RaftIndex(9),
        term: Term(3),
        message_bytes: 0x0102_0304,
        message_crc: 0x0506_0708,
    }
}

fn framed(reply: &Reply) -> Result<Frame, WireError> {
    Reply::frame(reply.id, reply.result.as_ref().map(std::slice::from_ref).map_err(Clone::clone))
}

fn reply(result: Result<Bytes, CallRefused>) -> Frame {
    framed(&Reply { id: 5, result }).unwrap()
}

/// A frame of each kind, and one for each outcome of a call.
fn samples() -> Vec<(&'static str, Frame)> {
    let body = |text: &'static [u8]| vec![Bytes::from_static(text)];
    let call = Call { id: 5, kind: 2, body: Bytes::from_static(b"body") };
    let leader = |leader| reply(Err(CallRefused::NotLeader { leader }));
    vec![
        ("hello", hello().to_frame()),
        ("welcome", welcome().to_frame()),
        ("refused", Refused { reason: RefusedReason::NotFormed }.to_frame()),
        ("ping", Frame::new(FrameKind::Ping, body(b"12345678"))),
        ("pong", Frame::new(FrameKind::Pong, body(b"12345678"))),
        ("raft", encode_raft(&raft::messages()).unwrap()),
        ("notices", encode_notices(&notices()).unwrap()),
        ("call", call.to_frame().unwrap()),
        ("reply_ok", reply(Ok(Bytes::from_static(b"done")))),
        ("reply_not_leader", leader(Some(NodeId(3)))),
        ("reply_no_leader", leader(None)),
        ("reply_overloaded", reply(Err(CallRefused::Overloaded))),
        ("reply_invalid", reply(Err(CallRefused::Invalid { text: "why".to_owned() }))),
        ("discovery", Frame::new(FrameKind::Discovery, body(b"who"))),
        ("discovery_reply", Frame::new(FrameKind::DiscoveryReply, Vec::new())),
        ("part", Part::frame(&transfer(), 5, &body(b"piece")).unwrap()),
        ("want", Want { transfer: transfer(), offset: 6, is_given_up: false }.to_frame()),
        ("want_nothing", Want { transfer: transfer(), offset: 0, is_given_up: true }.to_frame()),
        ("received", encode_received(&received()).unwrap()),
        (
            "hello_version_2",
            Hello { versions: Versions { oldest: 1, newest: 2 }, ..hello() }.to_frame(),
        ),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn given_a_frame_of_each_kind_when_encoded_then_the_bytes_are_those_of_version_one() {
    let mut golden = include_str!("golden.hex").lines();
    for (name, frame) in samples() {
        assert_eq!(golden.next().unwrap(), format!("{name} {}", hex(&joined(&frame))));
    }
    assert_eq!(golden.next(), None);
}

#[test]
fn given_a_frame_of_each_kind_when_read_then_it_is_written_as_the_same_bytes() {
    for (name, frame) in samples() {
        let bytes = joined(&frame);
        let (kind, body) = read(&bytes).unwrap();
        if let Some(frame) = again(kind, &body).unwrap() {
            assert_eq!(joined(&frame), bytes, "{name}");
        }
    }
}

#[test]
fn given_a_frame_when_it_is_cut_anywhere_or_goes_on_then_it_is_refused() {
    for (name, frame) in samples() {
        let mut bytes = joined(&frame);
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{name} of {end} bytes");
        }
        bytes.push(0);
        assert!(matches!(read(&bytes), Err(WireError::BodyLength { .. })), "{name} with a byte");
    }
}

#[test]
fn given_a_frame_when_any_byte_is_another_then_it_is_refused() {
    for (name, frame) in samples() {
        let mut bytes = joined(&frame);
        for at in 0..bytes.len() {
            for flip in 1..=u8::MAX {
                bytes[at] ^= flip;
                assert!(read(&bytes).is_err(), "{name} with {flip:#04x} at {at}");
                bytes[at] ^= flip;
            }
        }
        assert!(read(&bytes).is_ok());
    }
}

/// A whole body ends where it ends, whatever the frame around it says.
#[test]
fn given_a_body_when_it_is_cut_or_goes_on_within_a_sound_frame_then_it_is_refused() {
    for (name, frame) in samples() {
        let (kind, body) = read(&joined(&frame)).unwrap();
        let open = match kind {
            FrameKind::Call | FrameKind::Reply => 16,
            FrameKind::Part => 48,
            FrameKind::Ping
            | FrameKind::Pong
            | FrameKind::Discovery
            | FrameKind::DiscoveryReply => continue,
            _ => body.len(),
        };
        for end in 0..open {
            assert!(again(kind, &body.slice(..end)).is_err(), "{name} of {end} bytes");
        }
        if open == body.len() {
            let longer = Bytes::from([&body[..], &[0]].concat());
            let error = again(kind, &longer).unwrap_err();
            assert_eq!(error, WireError::Trailing { bytes: 1 }, "{name}");
        }
    }
}

/// A header with one field changed and its checksum made right.
fn header_with(at: usize, value: u8) -> Result<FrameHeader, WireError> {
    let frame = Frame::new(FrameKind::Raft, vec![Bytes::from_static(b"body")]);
    let mut header: [u8; FRAME_HEADER_BYTES] = *joined(&frame).first_chunk().unwrap();
    header[at] = value;
    let crc = crc32fast::hash(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    FrameHeader::decode(&header, 4)
}

#[test]
fn given_a_header_when_one_field_is_wrong_then_it_is_refused_for_that_reason() {
    let good = header_with(4, FRAME_VERSION).unwrap();
    assert_eq!((good.kind, good.body_bytes), (FrameKind::Raft, 4));
    assert!(matches!(header_with(0, b'c'), Err(WireError::Magic { .. })));
    assert_eq!(header_with(4, 2), Err(WireError::Version { version: 2 }));
    for kind in [0, 15, 255] {
        assert_eq!(header_with(5, kind), Err(WireError::Kind { kind }));
    }
    for at in [6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25, 26, 27] {
        assert_eq!(header_with(at, 1), Err(WireError::Reserved), "{at}");
    }
    assert_eq!(header_with(8, 5), Err(WireError::BodyTooLarge { bytes: 5, bytes_max: 4 }));
    assert_eq!(good.check_body(b"bode"), Err(WireError::BodyChecksum));
}

#[test]
fn given_a_small_kind_with_a_large_body_when_its_header_is_read_then_it_is_refused() {
    let frame = Frame::new(FrameKind::Call, vec![Bytes::from(vec![0; 64 << 10])]);
    let mut header: [u8; FRAME_HEADER_BYTES] = *joined(&frame).first_chunk().unwrap();
    assert!(FrameHeader::decode(&header, FRAME_BODY_BYTES_MAX).is_ok());
    header[5] = FrameKind::Hello as u8;
    let crc = crc32fast::hash(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    let error = FrameHeader::decode(&header, u32::MAX).unwrap_err();
    assert_eq!(error, WireError::BodyTooLarge { bytes: 64 << 10, bytes_max: 4 << 10 });
}

#[test]
#[should_panic(expected = "I2: 4097 bytes in a Ping frame")]
fn given_a_body_that_no_peer_takes_when_a_frame_is_made_of_it_then_the_process_ends() {
    drop(Frame::new(FrameKind::Ping, vec![Bytes::from(vec![0; 4097])]));
}

#[test]
fn given_a_body_of_parts_when_a_frame_is_made_then_it_shares_them_and_leaves_out_the_empty() {
    let body = [Bytes::from_static(b"ab"), Bytes::new(), Bytes::from(vec![7; 3])];
    let frame = Frame::new(FrameKind::Discovery, body.to_vec());
    assert_eq!(frame.parts().len(), 3);
    assert_eq!(frame.parts()[2].as_ptr(), body[2].as_ptr());
    assert_eq!(body_of(&frame, FrameKind::Discovery), b"ab\x07\x07\x07".as_slice());
}
