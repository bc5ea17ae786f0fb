//! Calls for records and their answers, as bytes and back.
//!
//! ```text
//! request   version u8 = 1 | reserved [3] = 0 | bytes_max u32 | group u64 | replica u64 | from i64 | up_to i64
//! answer    version u8 = 1 | kind u8 | reserved [6] = 0 | offset i64 | batches, to the end
//! ```
//!
//! in little-endian; the offset is where the batches end, or where the log starts if what is asked for lies before.
//!
//! - I1: whatever bytes come in, decoding ends in a value or in none.
//! - I2: the batches of an answer are not copied here, neither where it is made nor where it is read.

use bytes::{Bytes, BytesMut};
use chronik_engine::ids::{GroupId, Offset, ReplicaId};

use crate::core::FillChunk;

const VERSION: u8 = 1;
const KIND_RECORDS: u8 = 1;
const KIND_LOG_START: u8 = 2;
const REQUEST_BYTES: usize = 40;
const ANSWER_HEADER_BYTES: usize = 16;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) bytes_max: u32,
    pub(super) group: GroupId,
    pub(super) replica: ReplicaId,
    pub(super) from: Offset,
    pub(super) up_to: Offset,
}

/// What comes of it, where it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Records(FillChunk),
    LogStart(Offset),
}

impl Request {
    pub(super) fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(REQUEST_BYTES);
        body.extend_from_slice(&[VERSION, 0, 0, 0]);
        body.extend_from_slice(&self.bytes_max.to_le_bytes());
        body.extend_from_slice(&self.group.0.to_le_bytes());
        body.extend_from_slice(&self.replica.0.to_le_bytes());
        body.extend_from_slice(&self.from.0.to_le_bytes());
        body.extend_from_slice(&self.up_to.0.to_le_bytes());
        body.freeze()
    }

    pub(super) fn decode(body: &[u8]) -> Option<Request> {
        let (head, rest) = body.split_first_chunk::<4>()?;
        let (bytes_max, rest) = rest.split_first_chunk()?;
        let (group, rest) = rest.split_first_chunk()?;
        let (replica, rest) = rest.split_first_chunk()?;
        let (from, rest) = rest.split_first_chunk()?;
        let (up_to, rest) = rest.split_first_chunk()?;
        let request = Request {
            bytes_max: u32::from_le_bytes(*bytes_max),
            group: GroupId(u64::from_le_bytes(*group)),
            replica: ReplicaId(u64::from_le_bytes(*replica)),
            from: Offset(i64::from_le_bytes(*from)),
            up_to: Offset(i64::from_le_bytes(*up_to)),
        };
        let is_plain = *head == [VERSION, 0, 0, 0] && rest.is_empty() && request.from.0 >= 0;
        is_plain.then_some(request)
    }
}

/// What comes of it, where it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Whole batches, in parts that lie one after the other.
    Records {
        end_offset: Offset,
        parts: Vec<Bytes>,
    },
    LogStart(Offset),
}

impl Found {
    /// As the parts of a body.
    pub(super) fn into_body(self) -> Vec<Bytes> {
        let header = |kind, offset: Offset| {
            let mut header = [0; ANSWER_HEADER_BYTES];
            (header[0], header[1]) = (VERSION, kind);
            header[8..].copy_from_slice(&offset.0.to_le_bytes());
            Bytes::copy_from_slice(&header)
        };
        match self {
            Found::LogStart(offset) => vec![header(KIND_LOG_START, offset)],
            Found::Records { end_offset, mut parts } => {
                parts.insert(0, header(KIND_RECORDS, end_offset));
                parts
            }
        }
    }
}

impl Answer {
    pub(super) fn decode(body: &Bytes) -> Option<Answer> {
        let header = body.first_chunk::<ANSWER_HEADER_BYTES>()?;
        let [version, kind, r0, r1, r2, r3, r4, r5, offset @ ..] = *header;
        let offset = Offset(i64::from_le_bytes(offset));
        let is_plain = version == VERSION && [r0, r1, r2, r3, r4, r5] == [0; 6] && offset.0 >= 0;
        let bytes = body.slice(ANSWER_HEADER_BYTES..);
        match kind {
            KIND_RECORDS if is_plain && !bytes.is_empty() => {
                Some(Answer::Records(FillChunk { end_offset: offset, bytes }))
            }
            KIND_LOG_START if is_plain && bytes.is_empty() => Some(Answer::LogStart(offset)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            bytes_max: 0x0102_0304,
            group: GroupId(5),
            replica: ReplicaId(6),
            from: Offset(7),
            up_to: Offset(8),
        }
    }

    #[test]
    fn given_a_request_when_encoded_then_the_bytes_are_those_of_version_one() {
        let golden = [
            1, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, //
            7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(request().encode(), golden.as_slice());
        assert_eq!(Request::decode(&golden), Some(request()));
        for at in [0, 1, 31] {
            let mut wrong = golden;
            wrong[at] = 0xff;
            assert_eq!(Request::decode(&wrong), None, "byte {at}");
        }
        assert_eq!(Request::decode(&golden[..39]), None);
    }

    #[test]
    fn given_an_answer_when_encoded_then_the_bytes_are_those_of_version_one() {
        let end_offset = Offset(9);
        let chunk = FillChunk { end_offset, bytes: Bytes::from_static(b"batches") };
        let parts = vec![Bytes::from_static(b"batch"), Bytes::from_static(b"es")];
        let cases = [
            (
                Found::Records { end_offset, parts },
                &b"\x01\x01\0\0\0\0\0\0\x09\0\0\0\0\0\0\0batches"[..],
                Answer::Records(chunk),
            ),
            (
                Found::LogStart(end_offset),
                b"\x01\x02\0\0\0\0\0\0\x09\0\0\0\0\0\0\0",
                Answer::LogStart(end_offset),
            ),
        ];
        for (found, golden, answer) in cases {
            assert_eq!(found.into_body().concat(), golden);
            assert_eq!(Answer::decode(&Bytes::from_static(golden)), Some(answer));
        }
        for wrong in [&b""[..], b"\x01\x01\0\0\0\0\0\0\x09\0\0\0\0\0\0\0", b"\x02\x02\0\0\0\0\0\0"]
        {
            assert_eq!(Answer::decode(&Bytes::from_static(wrong)), None);
        }
    }
}
