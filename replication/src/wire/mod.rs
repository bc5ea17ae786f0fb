//! What nodes say to each other, as bytes and back: sans I/O, no sockets, no clock.
//!
//! | module | owns |
//! |---|---|
//! | `frame` | the header around everything, and frames to send |
//! | `hello` | the handshake of two seats |
//! | `raft` | Raft messages of many groups |
//! | `message_type` | which types of Raft messages travel, as numbers |
//! | `notices` | who leads which group |
//! | `received` | what replicas have received and not made durable |
//! | `call` | requests of one node to another, and their replies |
//! | `part` | snapshots that travel in parts |
//! | `reader` | reading a body within its bounds |
//!
//! Invariants:
//! (I1) decoding is total: any bytes end in a value or a [`WireError`], and the memory claimed is a small multiple of
//!      the bytes that are there.
//! (I2) a value has one encoding: what decodes is encoded to the same bytes again.
//! (I3) what is encoded decodes: an encoder refuses what the decoder of a peer would.

mod call;
mod frame;
mod hello;
mod message_type;
mod notices;
mod part;
mod raft;
mod reader;
mod received;

#[cfg(test)]
mod tests;

use ::raft::eraftpb::MessageType;
use chronik_engine::ids::{NodeId, ShardId};

pub use self::raft::{
    RAFT_ENTRIES_MAX, RAFT_MESSAGES_MAX, decode_raft, encode_raft, raft_message_bytes,
    raft_messages_that_fit,
};
pub use call::{Call, CallRefused, Reply};
pub use frame::{
    FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_VERSION, Frame, FrameHeader, FrameKind,
};
pub use hello::{Hello, Refused, RefusedReason, Versions, Welcome};
pub use notices::{LeaderNotice, NOTICES_MAX, decode_notices, encode_notices};
pub use part::{PART_BYTES_MAX, Part, Transfer, Want};
pub use received::{
    RECEIVED_MAX, RECEIVED_VERSION_MIN, ReceivedMark, decode_received, encode_received,
};

/// A place that holds replicas and talks to its peers: one shard of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    /// The node.
    pub node: NodeId,
    /// The shard of it.
    pub shard: ShardId,
}

impl std::fmt::Display for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.node, self.shard)
    }
}

/// Why bytes are not what a peer of this version sends, or why something cannot be sent as bytes. A connection on
/// which one arrives says nothing that can be relied on, and is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a frame: it begins with {found:#010x}")]
    Magic { found: u32 },
    #[error("frame version {version} is not known")]
    Version { version: u8 },
    #[error("the checksum of a frame's header is wrong")]
    HeaderChecksum,
    #[error("the checksum of a frame's body is wrong")]
    BodyChecksum,
    #[error("frame kind {kind} is not known")]
    Kind { kind: u8 },
    #[error("a body of {bytes} bytes, where at most {bytes_max} are taken")]
    BodyTooLarge { bytes: usize, bytes_max: usize },
    #[error("a body of {expected} bytes was announced, {found} are there")]
    BodyLength { expected: usize, found: usize },
    #[error("{needed} bytes are missing: {left} are left")]
    Truncated { needed: usize, left: usize },
    #[error("{bytes} bytes follow the end")]
    Trailing { bytes: usize },
    #[error("reserved bits are set")]
    Reserved,
    #[error("{count} {what}, where at most {count_max} are taken")]
    Count { what: &'static str, count: usize, count_max: usize },
    #[error("{value} is no {field}")]
    Value { field: &'static str, value: u64 },
    #[error("a text is not UTF-8")]
    Text,
    #[error("messages of type {message_type:?} stay within their process")]
    LocalMessage { message_type: MessageType },
    #[error("entry {found} stands in the place of entry {expected}")]
    EntryIndex { expected: u64, found: u64 },
}
