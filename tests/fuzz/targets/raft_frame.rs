//! What nodes say to each other: frames and the bodies of each kind. Decoding ends in a value or an error and claims
//! memory for what is there only; what is read is written as the same bytes.
//!
//! The first input byte says what follows: a whole frame, a body of a kind, or edits of a sound body of three bytes each.
#![no_main]

#[path = "../support/alloc.rs"]
mod alloc;

use std::sync::OnceLock;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, NodeId, RaftIndex, ReplicaId, Term};
use chronik_replication::wire::*;
use chronik_replication::{Entry, Message, MessageType, PeerMessage};
use libfuzzer_sys::fuzz_target;

/// What a byte of input may cost: an entry is 16 bytes at least, and 104 in memory.
const BYTES_PER_INPUT_BYTE: usize = 12;
/// What the first value costs beside that: boxes, counters of shared bytes.
const BYTES_MIN: usize = 2 << 10;
const BODY_BYTES_MAX: u32 = 1 << 20;

const KINDS: [FrameKind; 10] = [
    FrameKind::Hello,
    FrameKind::Welcome,
    FrameKind::Refused,
    FrameKind::Raft,
    FrameKind::Notices,
    FrameKind::Call,
    FrameKind::Reply,
    FrameKind::Part,
    FrameKind::Want,
    FrameKind::Received,
];

/// The value that the body is, as a frame again.
fn again(kind: FrameKind, body: &Bytes) -> Option<Frame> {
    let frame = match kind {
        FrameKind::Hello => {
            let hello = Hello::decode(body).ok()?;
            if hello.versions.newest > Versions::OWN.newest {
                // What it has more is not known here.
                return None;
            }
            hello.to_frame()
        }
        FrameKind::Welcome => Welcome::decode(body).ok()?.to_frame(),
        FrameKind::Refused => Refused::decode(body).ok()?.to_frame(),
        FrameKind::Raft => encode_raft(&decode_raft(body).ok()?).expect("it was sent"),
        FrameKind::Notices => encode_notices(&decode_notices(body).ok()?).expect("it was sent"),
        FrameKind::Call => Call::decode(body).ok()?.to_frame().expect("it was sent"),
        FrameKind::Reply => {
            let Reply { id, result } = Reply::decode(body).ok()?;
            let result = result.as_ref().map(std::slice::from_ref).map_err(Clone::clone);
            Reply::frame(id, result).expect("it was sent")
        }
        FrameKind::Part => {
            let Part { transfer, offset, bytes } = Part::decode(body).ok()?;
            Part::frame(&transfer, offset, &[bytes]).expect("it was sent")
        }
        FrameKind::Want => Want::decode(body).ok()?.to_frame(),
        FrameKind::Received => encode_received(&decode_received(body).ok()?).expect("it was sent"),
        FrameKind::Ping | FrameKind::Pong | FrameKind::Discovery | FrameKind::DiscoveryReply => {
            return None;
        }
    };
    Some(frame)
}

fn decode(kind: FrameKind, body: &Bytes) {
    match kind {
        FrameKind::Hello => drop(Hello::decode(body)),
        FrameKind::Welcome => drop(Welcome::decode(body)),
        FrameKind::Refused => drop(Refused::decode(body)),
        FrameKind::Raft => drop(decode_raft(body)),
        FrameKind::Notices => drop(decode_notices(body)),
        FrameKind::Call => drop(Call::decode(body)),
        FrameKind::Reply => drop(Reply::decode(body)),
        FrameKind::Part => drop(Part::decode(body)),
        FrameKind::Want => drop(Want::decode(body)),
        FrameKind::Received => drop(decode_received(body)),
        FrameKind::Ping | FrameKind::Pong | FrameKind::Discovery | FrameKind::DiscoveryReply => {}
    }
}

fn read_body(kind: FrameKind, body: &Bytes) {
    let claimed = alloc::peak_of(|| decode(kind, body));
    assert!(claimed <= BYTES_MIN + body.len() * BYTES_PER_INPUT_BYTE, "{claimed} bytes");
    let Some(frame) = again(kind, body) else { return };
    let bytes = frame.parts().concat();
    assert_eq!(bytes.len(), frame.bytes());
    let (header, written) = bytes.split_first_chunk().expect("a header");
    let header = FrameHeader::decode(header, BODY_BYTES_MAX).expect("just made");
    header.check_body(written).expect("just made");
    assert_eq!(header.kind, kind);
    assert_eq!(body, written, "a value has one encoding");
}

fn read_frame(bytes: &[u8]) {
    let Some((header, body)) = bytes.split_first_chunk() else { return };
    let Ok(header) = FrameHeader::decode(header, BODY_BYTES_MAX) else { return };
    assert!(header.body_bytes <= BODY_BYTES_MAX.min(header.kind.body_bytes_max()));
    if header.check_body(body).is_ok() {
        read_body(header.kind, &Bytes::copy_from_slice(body));
    }
}

/// Messages with everything that there can be in one.
fn messages() -> Vec<PeerMessage> {
    let mut append = Message { msg_type: MessageType::MsgAppend, ..Message::default() };
    (append.to, append.from, append.term, append.index) = (1, 2, 3, 4);
    append.context = Bytes::from_static(b"context");
    for (index, bytes) in [(5, 20), (6, 0), (7, 1100)] {
        let data = Bytes::from(vec![7; bytes]);
        let context = Bytes::from_static(&[1; 24]);
        append.entries.push(Entry { index, term: 3, data, context, ..Entry::default() });
    }
    let mut install = Message { msg_type: MessageType::MsgSnapshot, ..Message::default() };
    install.mut_snapshot().data = Bytes::from_static(b"state");
    let metadata = install.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (9, 3);
    metadata.mut_conf_state().voters = vec![1, 2, 3];
    metadata.mut_conf_state().learners_next = vec![4];
    let heartbeat = Message { msg_type: MessageType::MsgHeartbeat, ..Message::default() };
    [append, install, heartbeat].map(|message| PeerMessage { group: GroupId(7), message }).to_vec()
}

/// Sound bodies that are worth editing.
fn whole() -> &'static [(FrameKind, Vec<u8>)] {
    static BODIES: OnceLock<Vec<(FrameKind, Vec<u8>)>> = OnceLock::new();
    BODIES.get_or_init(|| {
        let notice = LeaderNotice {
            group: GroupId(1),
            term: Term(2),
            replica: ReplicaId(3),
            node: NodeId(4),
        };
        let mark = ReceivedMark {
            group: GroupId(1),
            from: ReplicaId(2),
            to: ReplicaId(3),
            term: Term(4),
            index: RaftIndex(5),
        };
        let refused = CallRefused::Invalid { text: "why".to_owned() };
        let frames = [
            encode_raft(&messages()).expect("sound"),
            encode_raft(&messages()[1..]).expect("sound"),
            encode_notices(&[notice; 3]).expect("sound"),
            encode_received(&[mark; 3]).expect("sound"),
            Reply::frame(1, Err(refused)).expect("sound"),
        ];
        let kinds = [
            FrameKind::Raft,
            FrameKind::Raft,
            FrameKind::Notices,
            FrameKind::Received,
            FrameKind::Reply,
        ];
        let body = |frame: Frame| frame.parts().concat().split_off(FRAME_HEADER_BYTES);
        kinds.into_iter().zip(frames.map(body)).collect()
    })
}

fuzz_target!(|input: &[u8]| {
    let Some((&mode, rest)) = input.split_first() else { return };
    let pick = usize::from(mode >> 2);
    match mode % 4 {
        0 => read_frame(rest),
        1 => read_body(KINDS[pick % KINDS.len()], &Bytes::copy_from_slice(rest)),
        _ => {
            let (kind, mut body) = whole()[pick % whole().len()].clone();
            for edit in rest.chunks_exact(3).take(16) {
                let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % body.len();
                body[at] = edit[2];
            }
            if mode % 4 == 3 {
                body.truncate(rest.len() * 8);
            }
            read_body(kind, &Bytes::from(body));
        }
    }
});
