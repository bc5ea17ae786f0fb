//! Requests of one node to another, and what came of them. What is asked is bytes here.
//!
//! ```text
//! Call   id u64 | kind u8 | reserved [7] = 0 | body, to the end
//! Reply  id u64 | status u8 | has_leader u8 | reserved u16 = 0 | leader u32 | body or text, to the end
//! ```
//!
//! Invariants: (I1) a body is the rest of its frame, shared with it and not copied; (I2) what a status does not use
//! is zero.

use bytes::Bytes;
use chronik_engine::ids::NodeId;

use super::WireError;
use super::frame::{Frame, FrameKind, FrameWriter, is_shared};
use super::reader::Reader;

const HEAD_BYTES: usize = 16;
/// The longest text of a refusal.
const TEXT_BYTES_MAX: usize = 512;

const STATUS_OK: u8 = 0;
const STATUS_NOT_LEADER: u8 = 1;
const STATUS_OVERLOADED: u8 = 2;
const STATUS_INVALID: u8 = 3;

const _: () = assert!(8 + 1 + 7 == HEAD_BYTES);
const _: () = assert!(8 + 1 + 1 + 2 + 4 == HEAD_BYTES);

/// A request to another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Names it on its connection, for the reply.
    pub id: u64,
    /// What is asked; the receiver knows the kinds.
    pub kind: u8,
    /// The request.
    pub body: Bytes,
}

impl Call {
    /// As a frame. Refused if the body is too large for one.
    pub fn to_frame(&self) -> Result<Frame, WireError> {
        check_body(FrameKind::Call, self.body.len())?;
        let mut frame = FrameWriter::new(FrameKind::Call, HEAD_BYTES + put_bytes(&self.body));
        frame.put(&self.id.to_le_bytes());
        frame.put(&[self.kind]);
        frame.put(&[0; 7]);
        frame.put_bytes(&self.body);
        Ok(frame.finish())
    }

    /// From the body of a [`FrameKind::Call`].
    pub fn decode(body: &Bytes) -> Result<Call, WireError> {
        let mut reader = Reader::new(body);
        let id = reader.u64()?;
        let kind = reader.u8()?;
        reader.reserved(7)?;
        Ok(Call { id, kind, body: body.slice_ref(reader.rest()) })
    }
}

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallRefused {
    /// Somebody else must be asked.
    #[error("this node does not lead the group; the leader is {leader:?}")]
    NotLeader {
        /// On this node, if that is known.
        leader: Option<NodeId>,
    },
    /// The same may be asked again later.
    #[error("this node has too much to do")]
    Overloaded,
    /// The same will never be done.
    #[error("the call is invalid: {text}")]
    Invalid {
        /// What is wrong with it; cut to 512 bytes on its way.
        text: String,
    },
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The call's.
    pub id: u64,
    /// The answer, or why there is none.
    pub result: Result<Bytes, CallRefused>,
}

impl Reply {
    /// The frame of an answer, whose body comes in parts, or of a refusal. Refused if the body is too large for one.
    pub fn frame(id: u64, result: Result<&[Bytes], CallRefused>) -> Result<Frame, WireError> {
        let no_text = String::new();
        let (status, leader, body, text) = match result {
            Ok(body) => (STATUS_OK, None, body, no_text),
            Err(CallRefused::NotLeader { leader }) => (STATUS_NOT_LEADER, leader, &[][..], no_text),
            Err(CallRefused::Overloaded) => (STATUS_OVERLOADED, None, &[][..], no_text),
            Err(CallRefused::Invalid { text }) => (STATUS_INVALID, None, &[][..], text),
        };
        let text = cut(&text);
        let body_bytes = body.iter().fold(0_usize, |bytes, part| bytes.saturating_add(part.len()));
        check_body(FrameKind::Reply, body_bytes)?;
        let bytes = HEAD_BYTES + body.iter().map(put_bytes).sum::<usize>() + text.len();
        let mut frame = FrameWriter::new(FrameKind::Reply, bytes);
        frame.put(&id.to_le_bytes());
        frame.put(&[status, u8::from(leader.is_some()), 0, 0]);
        frame.put(&leader.unwrap_or_default().0.to_le_bytes());
        for part in body {
            frame.put_bytes(part);
        }
        frame.put(text.as_bytes());
        Ok(frame.finish())
    }

    /// From the body of a [`FrameKind::Reply`].
    pub fn decode(body: &Bytes) -> Result<Reply, WireError> {
        let mut reader = Reader::new(body);
        let id = reader.u64()?;
        let status = reader.u8()?;
        let has_leader = reader.u8()?;
        reader.reserved(2)?;
        let node = NodeId(reader.u32()?);
        let leader = match (has_leader, node) {
            (0, NodeId(0)) => None,
            (1, node) if status == STATUS_NOT_LEADER => Some(node),
            (0 | 1, _) => return Err(WireError::Reserved),
            (value, _) => {
                return Err(WireError::Value { field: "presence", value: value.into() });
            }
        };
        let result = match status {
            STATUS_OK => Ok(body.slice_ref(reader.rest())),
            STATUS_NOT_LEADER => Err(CallRefused::NotLeader { leader }),
            STATUS_OVERLOADED => Err(CallRefused::Overloaded),
            STATUS_INVALID => Err(CallRefused::Invalid { text: text(reader.rest())? }),
            status => {
                return Err(WireError::Value { field: "status", value: status.into() });
            }
        };
        reader.finish()?;
        Ok(Reply { id, result })
    }
}

fn check_body(kind: FrameKind, body_bytes: usize) -> Result<(), WireError> {
    let bytes_max = kind.body_bytes_max() as usize - HEAD_BYTES;
    if body_bytes > bytes_max {
        return Err(WireError::BodyTooLarge { bytes: body_bytes, bytes_max });
    }
    Ok(())
}

/// How much of a body is copied into the frame.
fn put_bytes(body: &Bytes) -> usize {
    if is_shared(body.len()) { 0 } else { body.len() }
}

/// The first part of a text, whole characters.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn text(bytes: &[u8]) -> Result<String, WireError> {
    let (count, count_max) = (bytes.len(), TEXT_BYTES_MAX);
    if count > count_max {
        return Err(WireError::Count { what: "bytes of text", count, count_max });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Text)?;
    Ok(text.to_owned())
}
