//! What stands around everything that nodes say to each other: a header with two checksums, then a body.
//!
//! All integers are little-endian. The body is what [`FrameKind`] says; it is bytes to this module.
//!
//! ```text
//! magic "CHRF" u32 | version u8 = 1 | kind u8 | reserved u16 = 0 | body_bytes u32 | reserved u32 = 0 | body CRC-32 u32
//! | reserved u64 = 0 | CRC-32 of the 28 bytes before it u32
//! ```
//!
//! Invariants:
//! (I1) whatever bytes come in, decoding ends in a header or a [`WireError`]; no byte of a header or body can change
//!      without that being noticed.
//! (I2) a header that is accepted names a body that its kind may have and that its reader agreed to take, so a reader
//!      may make room for it.
//! (I3) the parts of a frame are never empty and come to `bytes` together.

use bytes::{Buf, Bytes};
use chronik_engine::limits::ENTRY_BYTES_MAX;

use super::WireError;
use super::part::{PART_BYTES_MAX, PART_HEAD_BYTES};
use super::reader::Reader;

/// The size of a header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// The largest body: one entry of the largest size, and what stands around it.
pub const FRAME_BODY_BYTES_MAX: u32 = 101 << 20;
/// The version of the header, and of all that bodies are.
pub const FRAME_VERSION: u8 = 1;

/// The least that is not copied: below it an element of a vectored write costs more than a copy.
const SHARED_BYTES_MIN: usize = 1 << 10;
/// "CHRF" as it lies on the wire.
const MAGIC: u32 = u32::from_le_bytes(*b"CHRF");
/// What the header's own checksum covers.
const CHECKED_BYTES: usize = FRAME_HEADER_BYTES - 4;
/// What may stand around one entry of the largest size: heads, contexts, and other messages.
const ENTRY_SLACK_BYTES: usize = 1 << 20;
/// The largest body of a handshake, a sign of life, or what is wanted of a snapshot.
const SMALL_BODY_BYTES_MAX: u32 = 4 << 10;
/// The largest body of what nodes tell each other before there is a cluster.
const DISCOVERY_BODY_BYTES_MAX: u32 = 64 << 10;
/// The largest part of a snapshot, with its head.
const PART_BODY_BYTES_MAX: u32 = (512 << 10) + 48;
/// The largest list of notices, or of marks.
const NOTICES_BODY_BYTES_MAX: u32 = 1 << 20;

const _: () = assert!(4 + 1 + 1 + 2 + 4 + 4 + 4 + 8 == CHECKED_BYTES);
const _: () = assert!(FRAME_BODY_BYTES_MAX as usize >= ENTRY_BYTES_MAX + ENTRY_SLACK_BYTES);
const _: () = assert!(PART_BODY_BYTES_MAX as usize == PART_BYTES_MAX + PART_HEAD_BYTES);
const _: () = assert!(usize::BITS >= u32::BITS, "a body's length is a length in memory");

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Who opens a connection, and to whom: [`super::Hello`].
    Hello = 1,
    /// Who answers it: [`super::Welcome`].
    Welcome = 2,
    /// Why nobody does: [`super::Refused`].
    Refused = 3,
    /// A sign of life that wants a [`FrameKind::Pong`].
    Ping = 4,
    /// The answer, with the same body.
    Pong = 5,
    /// Raft messages: [`super::decode_raft`].
    Raft = 6,
    /// Who leads: [`super::decode_notices`].
    Notices = 7,
    /// A request to another node: [`super::Call`].
    Call = 8,
    /// What came of it: [`super::Reply`].
    Reply = 9,
    /// What a node without a cluster asks.
    Discovery = 10,
    /// What it is told.
    DiscoveryReply = 11,
    /// A part of a snapshot: [`super::Part`].
    Part = 12,
    /// What its receiver wants next: [`super::Want`].
    Want = 13,
    /// What replicas have received: [`super::decode_received`].
    Received = 14,
}

impl FrameKind {
    fn from_u8(value: u8) -> Option<FrameKind> {
        Some(match value {
            1 => FrameKind::Hello,
            2 => FrameKind::Welcome,
            3 => FrameKind::Refused,
            4 => FrameKind::Ping,
            5 => FrameKind::Pong,
            6 => FrameKind::Raft,
            7 => FrameKind::Notices,
            8 => FrameKind::Call,
            9 => FrameKind::Reply,
            10 => FrameKind::Discovery,
            11 => FrameKind::DiscoveryReply,
            12 => FrameKind::Part,
            13 => FrameKind::Want,
            14 => FrameKind::Received,
            _ => return None,
        })
    }

    /// The largest body that such a frame may have.
    #[must_use]
    pub const fn body_bytes_max(self) -> u32 {
        match self {
            FrameKind::Hello
            | FrameKind::Welcome
            | FrameKind::Refused
            | FrameKind::Ping
            | FrameKind::Pong
            | FrameKind::Want => SMALL_BODY_BYTES_MAX,
            FrameKind::Discovery | FrameKind::DiscoveryReply => DISCOVERY_BODY_BYTES_MAX,
            FrameKind::Notices | FrameKind::Received => NOTICES_BODY_BYTES_MAX,
            FrameKind::Part => PART_BODY_BYTES_MAX,
            FrameKind::Raft | FrameKind::Call | FrameKind::Reply => FRAME_BODY_BYTES_MAX,
        }
    }
}

/// A header, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body is.
    pub kind: FrameKind,
    /// How many bytes follow the header.
    pub body_bytes: u32,
    /// What [`FrameHeader::check_body`] compares with.
    pub body_crc: u32,
}

impl FrameHeader {
    /// Reads a header. A body larger than `body_bytes_max`, or than its kind may have, is refused.
    pub fn decode(
        bytes: &[u8; FRAME_HEADER_BYTES],
        body_bytes_max: u32,
    ) -> Result<FrameHeader, WireError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32()?;
        if magic != MAGIC {
            return Err(WireError::Magic { found: magic });
        }
        // Before the checksum, whose place another version may have moved.
        let version = reader.u8()?;
        if version != FRAME_VERSION {
            return Err(WireError::Version { version });
        }
        if crc32fast::hash(&bytes[..CHECKED_BYTES]).to_le_bytes() != bytes[CHECKED_BYTES..] {
            return Err(WireError::HeaderChecksum);
        }
        let kind = reader.u8()?;
        let kind = FrameKind::from_u8(kind).ok_or(WireError::Kind { kind })?;
        reader.reserved(2)?;
        let body_bytes = reader.u32()?;
        reader.reserved(4)?;
        let body_crc = reader.u32()?;
        reader.reserved(8)?;
        let bytes_max = body_bytes_max.min(kind.body_bytes_max());
        if body_bytes > bytes_max {
            let (bytes, bytes_max) = (body_bytes as usize, bytes_max as usize);
            return Err(WireError::BodyTooLarge { bytes, bytes_max });
        }
        Ok(FrameHeader { kind, body_bytes, body_crc })
    }

    /// Whether these are the bytes that the header was made for.
    pub fn check_body(&self, body: &[u8]) -> Result<(), WireError> {
        if body.len() != self.body_bytes as usize {
            let (expected, found) = (self.body_bytes as usize, body.len());
            return Err(WireError::BodyLength { expected, found });
        }
        if crc32fast::hash(body) == self.body_crc { Ok(()) } else { Err(WireError::BodyChecksum) }
    }

    fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = FRAME_VERSION;
        bytes[5] = self.kind as u8;
        bytes[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

#[derive(Debug, Clone)]
enum Parts {
    /// Header and body in one piece, without a list around it.
    One(Bytes),
    Many(Vec<Bytes>),
}

/// A frame to send: header and body, in parts that share their bytes with whoever gave them. To be sent by vectored
/// writes; there may be more parts than the kernel takes at once. A clone shares the bytes, too.
#[derive(Debug, Clone)]
pub struct Frame {
    parts: Parts,
    bytes: usize,
    body_crc: u32,
}

impl Frame {
    /// A frame with the body that `body` comes to.
    ///
    /// The body must not be larger than [`FrameKind::body_bytes_max`]: that is for the caller to refuse.
    #[must_use]
    pub fn new(kind: FrameKind, mut body: Vec<Bytes>) -> Frame {
        body.retain(|part| !part.is_empty());
        let mut crc = crc32fast::Hasher::new();
        let mut body_bytes = 0;
        for part in &body {
            crc.update(part);
            body_bytes += part.len();
        }
        let body_crc = crc.finalize();
        let header = header(kind, body_bytes, body_crc);
        body.insert(0, Bytes::copy_from_slice(&header));
        Frame { parts: Parts::Many(body), bytes: FRAME_HEADER_BYTES + body_bytes, body_crc }
    }

    /// Header and body, in the order in which they are sent. At least one part, and none is empty.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        match &self.parts {
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Many(parts) => parts,
        }
    }

    /// What stands behind the header, in parts that share its bytes, and the checksum of that.
    #[must_use]
    pub fn into_body(self) -> (Vec<Bytes>, u32) {
        let mut parts = match self.parts {
            Parts::One(part) => vec![part],
            Parts::Many(parts) => parts,
        };
        if let Some(first) = parts.first_mut() {
            // The header is never cut: it begins the first part.
            first.advance(FRAME_HEADER_BYTES);
        }
        parts.retain(|part| !part.is_empty());
        (parts, self.body_crc)
    }

    /// How many bytes the parts come to.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn header(kind: FrameKind, body_bytes: usize, body_crc: u32) -> [u8; FRAME_HEADER_BYTES] {
    let body_bytes = u32::try_from(body_bytes).unwrap_or(u32::MAX);
    assert!(body_bytes <= kind.body_bytes_max(), "I2: {body_bytes} bytes in a {kind:?} frame");
    FrameHeader { kind, body_bytes, body_crc }.encode()
}

/// Builds a frame whose header and small parts lie in one buffer, so that a frame of small parts is one allocation.
#[derive(Debug)]
pub(super) struct FrameWriter {
    kind: FrameKind,
    /// The header's place, then all that was put.
    buffer: Vec<u8>,
    /// What was shared, and where in the buffer it belongs.
    shared: Vec<(usize, Bytes)>,
}

impl FrameWriter {
    /// A frame into which `put_bytes` bytes will be put; more may be, at the price of another allocation.
    pub(super) fn new(kind: FrameKind, put_bytes: usize) -> FrameWriter {
        let mut buffer = Vec::with_capacity(FRAME_HEADER_BYTES + put_bytes);
        buffer.resize(FRAME_HEADER_BYTES, 0);
        FrameWriter { kind, buffer, shared: Vec::new() }
    }

    /// Copies bytes to the end of the body.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Puts bytes to the end of the body: as they are if there are many, else as a copy.
    pub(super) fn put_bytes(&mut self, bytes: &Bytes) {
        if is_shared(bytes.len()) {
            self.shared.push((self.buffer.len(), bytes.clone()));
        } else {
            self.put(bytes);
        }
    }

    /// The frame. Its body must not be larger than its kind allows.
    pub(super) fn finish(mut self) -> Frame {
        let mut crc = crc32fast::Hasher::new();
        let mut bytes = self.buffer.len();
        let mut from = FRAME_HEADER_BYTES;
        for (at, shared) in &self.shared {
            crc.update(&self.buffer[from..*at]);
            crc.update(shared);
            from = *at;
            bytes += shared.len();
        }
        crc.update(&self.buffer[from..]);
        let body_crc = crc.finalize();
        let header = header(self.kind, bytes - FRAME_HEADER_BYTES, body_crc);
        self.buffer[..FRAME_HEADER_BYTES].copy_from_slice(&header);
        let buffer = Bytes::from(self.buffer);
        if self.shared.is_empty() {
            return Frame { parts: Parts::One(buffer), bytes, body_crc };
        }
        let mut parts = Vec::with_capacity(2 * self.shared.len() + 1);
        let mut from = 0;
        for (at, shared) in self.shared {
            if at > from {
                parts.push(buffer.slice(from..at));
            }
            parts.push(shared);
            from = at;
        }
        if from < buffer.len() {
            parts.push(buffer.slice(from..));
        }
        Frame { parts: Parts::Many(parts), bytes, body_crc }
    }
}

/// Whether so many bytes are shared and not copied, on the way out and on the way in.
pub(super) fn is_shared(bytes: usize) -> bool {
    bytes >= SHARED_BYTES_MIN
}
