//! The handshake: the first frames of a connection between two seats.
//!
//! ```text
//! Hello    newest u16 | from u16 | to u16 | oldest u16 | node u32 | to_node u32 | cluster [16] | node_uuid [16]
//!          | nonce [32]
//! Welcome  node u32 | shards u16 | version u16 | node_uuid [16] | nonce [32] | proof [32]
//! Refused  reason u8 | reserved [7] = 0
//! ```
//!
//! What the proof covers and whom to let in is for the peers to know; nothing is judged here. The opener says which
//! versions it speaks, the acceptor which of them the link does; both ends come to the same one ([`Versions::agreed`]). A
//! node that is upgraded speaks the version before its own as well, so nodes can be upgraded one after the other.
//!
//! Invariants: (I1) the first 80 bytes of a hello are the same in every version, so that any node can answer, if only
//! with [`RefusedReason::NewerVersion`]; only one that speaks a newer version may have more. A welcome is the same in every
//! version.

use chronik_engine::ids::{NodeId, ShardId};
use uuid::Uuid;

use super::frame::{Frame, FrameKind, FrameWriter};
use super::reader::Reader;
use super::{Seat, WireError};

/// The versions of what peers say to each other that a node speaks: all from `oldest` to `newest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// At least 1.
    pub oldest: u16,
    /// At least `oldest`.
    pub newest: u16,
}

impl Versions {
    /// Those of this build. Version 2 has frames that version 1 does not know ([`super::RECEIVED_VERSION_MIN`]).
    pub const OWN: Versions = Versions { oldest: 1, newest: 2 };

    /// What a link between two nodes speaks: the newest version that both know.
    ///
    /// # Errors
    /// If there is none: why `self` refuses `other`.
    pub fn agreed(self, other: Versions) -> Result<u16, RefusedReason> {
        if other.oldest > self.newest {
            return Err(RefusedReason::NewerVersion);
        }
        if other.newest < self.oldest {
            return Err(RefusedReason::OlderVersion);
        }
        Ok(self.newest.min(other.newest))
    }
}

const HELLO_BYTES: usize = 80;
const WELCOME_BYTES: usize = 88;
const REFUSED_BYTES: usize = 8;

const _: () = assert!(2 + 2 + 2 + 2 + 4 + 4 + 16 + 16 + 32 == HELLO_BYTES);
const _: () = assert!(4 + 2 + 2 + 16 + 32 + 32 == WELCOME_BYTES);
const _: () = assert!(HELLO_BYTES <= FrameKind::Hello.body_bytes_max() as usize);
const _: () = assert!(WELCOME_BYTES <= FrameKind::Welcome.body_bytes_max() as usize);

/// Who opens a connection, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// What the sender speaks.
    pub versions: Versions,
    /// The cluster that it belongs to.
    pub cluster: Uuid,
    /// The sender's node.
    pub node: NodeId,
    /// The data directory of that node.
    pub node_uuid: Uuid,
    /// The sender's shard.
    pub from: ShardId,
    /// The node that it means.
    pub to_node: NodeId,
    /// The shard of it.
    pub to: ShardId,
    /// Never used before.
    pub nonce: [u8; 32],
}

impl Hello {
    /// The sender.
    #[must_use]
    pub fn from_seat(&self) -> Seat {
        Seat { node: self.node, shard: self.from }
    }

    /// Whom it means.
    #[must_use]
    pub fn to_seat(&self) -> Seat {
        Seat { node: self.to_node, shard: self.to }
    }

    /// As a frame.
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        let mut frame = FrameWriter::new(FrameKind::Hello, HELLO_BYTES);
        frame.put(&self.versions.newest.to_le_bytes());
        frame.put(&self.from.0.to_le_bytes());
        frame.put(&self.to.0.to_le_bytes());
        frame.put(&self.versions.oldest.to_le_bytes());
        frame.put(&self.node.0.to_le_bytes());
        frame.put(&self.to_node.0.to_le_bytes());
        frame.put(self.cluster.as_bytes());
        frame.put(self.node_uuid.as_bytes());
        frame.put(&self.nonce);
        frame.finish()
    }

    /// From the body of a [`FrameKind::Hello`].
    pub fn decode(body: &[u8]) -> Result<Hello, WireError> {
        let mut reader = Reader::new(body);
        let newest = reader.u16()?;
        let (from, to) = (ShardId(reader.u16()?), ShardId(reader.u16()?));
        let oldest = reader.u16()?;
        if oldest == 0 || oldest > newest {
            return Err(WireError::Value { field: "oldest version", value: oldest.into() });
        }
        let versions = Versions { oldest, newest };
        let (node, to_node) = (NodeId(reader.u32()?), NodeId(reader.u32()?));
        let (cluster, node_uuid) = (uuid(&mut reader)?, uuid(&mut reader)?);
        let nonce = reader.array()?;
        if newest > Versions::OWN.newest {
            reader.rest();
        }
        reader.finish()?;
        Ok(Hello { versions, cluster, node, node_uuid, from, to_node, to, nonce })
    }
}

/// Who answers a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The node that answers.
    pub node: NodeId,
    /// The data directory of that node.
    pub node_uuid: Uuid,
    /// How many shards it has.
    pub shards: u16,
    /// What the link speaks.
    pub version: u16,
    /// Never used before.
    pub nonce: [u8; 32],
    /// That it belongs to the cluster.
    pub proof: [u8; 32],
}

impl Welcome {
    /// As a frame.
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        let mut frame = FrameWriter::new(FrameKind::Welcome, WELCOME_BYTES);
        frame.put(&self.node.0.to_le_bytes());
        frame.put(&self.shards.to_le_bytes());
        frame.put(&self.version.to_le_bytes());
        frame.put(self.node_uuid.as_bytes());
        frame.put(&self.nonce);
        frame.put(&self.proof);
        frame.finish()
    }

    /// From the body of a [`FrameKind::Welcome`].
    pub fn decode(body: &[u8]) -> Result<Welcome, WireError> {
        let mut reader = Reader::new(body);
        let node = NodeId(reader.u32()?);
        let (shards, version) = (reader.u16()?, reader.u16()?);
        let node_uuid = uuid(&mut reader)?;
        let (nonce, proof) = (reader.array()?, reader.array()?);
        reader.finish()?;
        Ok(Welcome { node, node_uuid, shards, version, nonce, proof })
    }
}

/// Why a connection is closed that somebody opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[repr(u8)]
pub enum RefusedReason {
    #[error("this node belongs to another cluster")]
    WrongCluster = 1,
    #[error("this is not the node that was meant: check its address and node id")]
    WrongNode = 2,
    #[error("this node has no such shard")]
    UnknownShard = 3,
    #[error("this node does not belong to a cluster yet")]
    NotFormed = 4,
    #[error("the proof of belonging to the cluster is wrong: check that the secrets are the same")]
    BadProof = 5,
    #[error(
        "the sender speaks only versions newer than this node's: upgrade this node to the release between them first"
    )]
    NewerVersion = 6,
    #[error("this node has no room for another connection now")]
    Busy = 7,
    #[error(
        "the sender's data directory does not count any more: another one has taken its place, or its node was removed"
    )]
    Retired = 8,
    #[error(
        "the sender speaks only versions older than this node's: upgrade its node to the release between them first"
    )]
    OlderVersion = 9,
}

impl RefusedReason {
    /// As metrics name it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            RefusedReason::WrongCluster => "wrong_cluster",
            RefusedReason::WrongNode => "wrong_node",
            RefusedReason::UnknownShard => "unknown_shard",
            RefusedReason::NotFormed => "not_formed",
            RefusedReason::BadProof => "bad_proof",
            RefusedReason::NewerVersion => "newer_version",
            RefusedReason::Busy => "busy",
            RefusedReason::Retired => "retired",
            RefusedReason::OlderVersion => "older_version",
        }
    }

    fn from_u8(value: u8) -> Option<RefusedReason> {
        Some(match value {
            1 => RefusedReason::WrongCluster,
            2 => RefusedReason::WrongNode,
            3 => RefusedReason::UnknownShard,
            4 => RefusedReason::NotFormed,
            5 => RefusedReason::BadProof,
            6 => RefusedReason::NewerVersion,
            7 => RefusedReason::Busy,
            8 => RefusedReason::Retired,
            9 => RefusedReason::OlderVersion,
            _ => return None,
        })
    }
}

/// That a hello is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: RefusedReason,
}

impl Refused {
    /// As a frame.
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        let mut frame = FrameWriter::new(FrameKind::Refused, REFUSED_BYTES);
        frame.put(&[self.reason as u8]);
        frame.put(&[0; REFUSED_BYTES - 1]);
        frame.finish()
    }

    /// From the body of a [`FrameKind::Refused`].
    pub fn decode(body: &[u8]) -> Result<Refused, WireError> {
        let mut reader = Reader::new(body);
        let reason = reader.u8()?;
        reader.reserved(REFUSED_BYTES - 1)?;
        reader.finish()?;
        let unknown = WireError::Value { field: "reason of a refusal", value: reason.into() };
        Ok(Refused { reason: RefusedReason::from_u8(reason).ok_or(unknown)? })
    }
}

fn uuid(reader: &mut Reader<'_>) -> Result<Uuid, WireError> {
    reader.array().map(Uuid::from_bytes)
}
