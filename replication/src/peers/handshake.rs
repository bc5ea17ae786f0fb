//! How two seats come to know each other, before anything else is said.
//!
//! ```text
//! opener                                  acceptor
//! Hello    who I am, whom I mean, nonce ->
//!                                      <- Welcome  who I am, nonce, proof        or Refused
//! Welcome  proof                       ->                                        or Refused
//!                                      <- Ping     from here on it is a link     or Refused
//! ```
//!
//! - I1: a link exists for the opener only after the acceptor has seen its proof: two ends that do not agree never
//!   flap.
//! - I2: what an unproven peer sends is small, and is waited for only so long; see who calls.
//! - I3: who refuses says why, to the peer and to the log.
//! - I4: a data directory that counts no more gets no link: it would take that of the one in its place. It is told so behind the
//!   proofs, and believes it only there: it ends for it. It gets that far whoever its node is: nobody need know that one any more.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};

use chronik_engine::ids::NodeId;
use chronik_ring::socket::Socket;
use uuid::Uuid;

use super::config::PeersConfig;
use super::link::{LinkEnd, receive_any};
use super::proof::{Side, is_proven, nonce, prove};
use super::receive::{FrameReader, Received};
use crate::wire::{
    FRAME_BODY_BYTES_MAX, Frame, FrameKind, Hello, Refused, RefusedReason, Seat, Versions, Welcome,
};

/// The largest body in a handshake.
const BODY_BYTES_MAX: u32 = 4 << 10;

/// Why two seats do not meet.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("{0}")]
    Connection(#[from] LinkEnd),
    /// The peer says so.
    #[error("the peer refuses: {0}")]
    RefusedByPeer(RefusedReason),
    /// The peer, which has proven itself, says so of this node's data directory (I4).
    #[error("the peer refuses: {}", RefusedReason::Retired)]
    Retired,
    /// This side says so.
    #[error("{why}")]
    RefusedHere { reason: RefusedReason, why: &'static str },
    #[error("a {kind:?} frame instead of an answer")]
    Unexpected { kind: FrameKind },
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        HandshakeError::Connection(error.into())
    }
}

impl From<crate::wire::WireError> for HandshakeError {
    fn from(error: crate::wire::WireError) -> Self {
        HandshakeError::Connection(error.into())
    }
}

/// A connection whose other end is who it says.
pub(super) struct Met {
    pub(super) node_uuid: Uuid,
    pub(super) shards: u16,
    /// What both speak.
    pub(super) version: u16,
    pub(super) reader: FrameReader,
}

/// The opener's part.
pub(super) async fn open(
    config: &PeersConfig,
    socket: &Socket,
    to: Seat,
    is_retired: impl Fn(Uuid) -> bool,
    buffer: &RefCell<Box<[u8]>>,
) -> Result<Met, HandshakeError> {
    let secret = config.secret.as_deref();
    let hello = Hello {
        versions: Versions::OWN,
        cluster: config.cluster,
        node: config.seat.node,
        node_uuid: config.node_uuid,
        from: config.seat.shard,
        to_node: to.node,
        to: to.shard,
        nonce: nonce(),
    };
    send(socket, &hello.to_frame()).await?;
    let mut reader = FrameReader::new(BODY_BYTES_MAX);
    let answer = Welcome::decode(&expect_welcome(socket, &mut reader, buffer).await?.body)?;
    let checked = if answer.node != to.node {
        Err((RefusedReason::WrongNode, "another node answers at this address"))
    } else if answer.node_uuid == config.node_uuid {
        Err((RefusedReason::WrongNode, "the node has a copy of this node's data directory"))
    } else if !(Versions::OWN.oldest..=Versions::OWN.newest).contains(&answer.version) {
        Err((RefusedReason::NewerVersion, "the peer chose a version that was not offered"))
    } else if !is_proven(secret, Side::Acceptor, &hello, &answer, answer.shards, &answer.proof) {
        Err((RefusedReason::BadProof, "the peer does not know the cluster's secret"))
    } else {
        Ok(())
    };
    if let Err((reason, why)) = checked {
        refuse(socket, reason);
        return Err(HandshakeError::RefusedHere { reason, why });
    }
    let proof = prove(secret, Side::Opener, &hello, &answer, config.shards);
    send(socket, &welcome(config, answer.version, hello.nonce, proof).to_frame()).await?;
    if is_retired(answer.node_uuid) {
        return Err(refuse_retired(socket));
    }
    // The first frame of the link is the acceptor's consent (I1); the link finds it again.
    reader.set_body_bytes_max(FRAME_BODY_BYTES_MAX);
    while reader.peek().is_none() {
        receive_any(socket, buffer, &mut reader).await?;
    }
    if let Some(Received { kind: FrameKind::Refused, body }) = reader.peek() {
        return Err(match Refused::decode(body)?.reason {
            RefusedReason::Retired => HandshakeError::Retired,
            reason => HandshakeError::RefusedByPeer(reason),
        });
    }
    let Welcome { node_uuid, shards, version, .. } = answer;
    Ok(Met { node_uuid, shards, version, reader })
}

/// The acceptor's part, after the hello.
pub(super) async fn answer(
    config: &PeersConfig,
    socket: &Socket,
    hello: &Hello,
    mut reader: FrameReader,
    is_known: impl Fn(NodeId) -> bool,
    is_retired: impl Fn(Uuid) -> bool,
    buffer: &RefCell<Box<[u8]>>,
) -> Result<Met, HandshakeError> {
    let counts = !is_retired(hello.node_uuid);
    let version = match judge(config, hello, counts, is_known) {
        Ok(version) => version,
        Err((reason, why)) => {
            refuse(socket, reason);
            return Err(HandshakeError::RefusedHere { reason, why });
        }
    };
    let secret = config.secret.as_deref();
    let mut answer = welcome(config, version, nonce(), [0; 32]);
    answer.proof = prove(secret, Side::Acceptor, hello, &answer, config.shards);
    send(socket, &answer.to_frame()).await?;
    reader.set_body_bytes_max(BODY_BYTES_MAX);
    let opener = Welcome::decode(&expect_welcome(socket, &mut reader, buffer).await?.body)?;
    let is_same = opener.node == hello.node
        && opener.node_uuid == hello.node_uuid
        && opener.nonce == hello.nonce
        && opener.version == version
        && hello.from.0 < opener.shards;
    let proof = &opener.proof;
    if !is_same || !is_proven(secret, Side::Opener, hello, &answer, opener.shards, proof) {
        refuse(socket, RefusedReason::BadProof);
        let why = "the peer does not know the cluster's secret";
        return Err(HandshakeError::RefusedHere { reason: RefusedReason::BadProof, why });
    }
    if !counts || is_retired(opener.node_uuid) {
        return Err(refuse_retired(socket));
    }
    reader.set_body_bytes_max(FRAME_BODY_BYTES_MAX);
    send(socket, &Frame::new(FrameKind::Ping, Vec::new())).await?;
    Ok(Met { node_uuid: opener.node_uuid, shards: opener.shards, version, reader })
}

/// To a peer that this side has proven itself to (I4).
fn refuse_retired(socket: &Socket) -> HandshakeError {
    let reason = RefusedReason::Retired;
    refuse(socket, reason);
    HandshakeError::RefusedHere { reason, why: "the peer's data directory does not count any more" }
}

/// Whether a hello is for this seat, and from one that may open a link to it or is to be told that its data directory counts no
/// more; and which version that speaks.
fn judge(
    config: &PeersConfig,
    hello: &Hello,
    counts: bool,
    is_known: impl Fn(NodeId) -> bool,
) -> Result<u16, (RefusedReason, &'static str)> {
    let agreed = Versions::OWN.agreed(hello.versions);
    let version =
        agreed.map_err(|reason| (reason, "the peer speaks none of this node's versions"))?;
    if hello.cluster != config.cluster {
        return Err((RefusedReason::WrongCluster, "the peer belongs to another cluster"));
    }
    if hello.to_node != config.seat.node {
        return Err((RefusedReason::WrongNode, "the peer means another node"));
    }
    if hello.to != config.seat.shard {
        return Err((RefusedReason::UnknownShard, "the peer means another shard"));
    }
    if hello.node_uuid == config.node_uuid {
        return Err((
            RefusedReason::WrongNode,
            "the peer has a copy of this node's data directory",
        ));
    }
    if !counts {
        return Ok(version); // I4
    }
    if hello.node >= config.seat.node {
        return Err((RefusedReason::WrongNode, "links are opened by the node of the lower id"));
    }
    if !is_known(hello.node) {
        return Err((RefusedReason::WrongNode, "no node of the cluster has this id"));
    }
    Ok(version)
}

fn welcome(config: &PeersConfig, version: u16, nonce: [u8; 32], proof: [u8; 32]) -> Welcome {
    Welcome {
        node: config.seat.node,
        node_uuid: config.node_uuid,
        shards: config.shards,
        version,
        nonce,
        proof,
    }
}

async fn expect_welcome(
    socket: &Socket,
    reader: &mut FrameReader,
    buffer: &RefCell<Box<[u8]>>,
) -> Result<Received, HandshakeError> {
    let frame = loop {
        match reader.next_frame() {
            Some(frame) => break frame,
            None => _ = receive_any(socket, buffer, reader).await?,
        }
    };
    match frame.kind {
        FrameKind::Welcome => Ok(frame),
        FrameKind::Refused => {
            Err(HandshakeError::RefusedByPeer(Refused::decode(&frame.body)?.reason))
        }
        kind => Err(HandshakeError::Unexpected { kind }),
    }
}

/// Sends a frame of a handshake.
pub(super) async fn send(socket: &Socket, frame: &Frame) -> io::Result<()> {
    let whole = frame.parts().concat();
    let mut left = &whole[..];
    while !left.is_empty() {
        match socket.send_now(&[IoSlice::new(left)]) {
            Ok(sent) => left = left.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| socket.poll_writable(cx)).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says why the connection is about to be closed (I3).
pub(super) fn refuse(socket: &Socket, reason: RefusedReason) {
    let whole = Refused { reason }.to_frame().parts().concat();
    // If there is no room for so little, the peer hears the close.
    socket.send_now(&[IoSlice::new(&whole)]).ok();
    socket.end_writes();
}
