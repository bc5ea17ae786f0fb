//! What can go wrong on the wire, and why a connection was closed.
//!
//! Owns [`NetError`] (starting and stopping listeners), [`CloseReason`] (the one cause a connection
//! ends for) and [`FrameError`] (what is wrong with a request's bytes). It never maps anything to a
//! Kafka error code: codes belong to the handlers.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

/// Errors of a listener, seen by the shell that starts it.
#[derive(Debug, Error)]
pub enum NetError {
    #[error("cannot listen on {address}: {source}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the server on this core is shutting down")]
    ShuttingDown,
}

/// What is wrong with the bytes of a frame. The connection is closed: after a malformed frame
/// nothing on the stream can be trusted to be where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame length of {length} is negative")]
    NegativeLength { length: i32 },
    #[error("a frame of {length} bytes is larger than the limit of {length_max}")]
    TooLarge { length: usize, length_max: usize },
    #[error("a frame of {length} bytes is shorter than a request header")]
    TooShort { length: usize },
    #[error("api key {api_key} is not served")]
    UnknownApi { api_key: i16 },
    #[error("api key {api_key} is not served in version {version}")]
    UnsupportedVersion { api_key: i16, version: i16 },
    #[error("the request ends inside a field at byte {position}")]
    Truncated { position: usize },
    #[error("a length of {length} at byte {position} where null is not allowed")]
    NegativeFieldLength { length: i32, position: usize },
    #[error("a length of {length} at byte {position} with {left} bytes left")]
    FieldTooLong { length: u64, left: usize, position: usize },
    #[error("an array of {count} elements at byte {position} with {left} bytes left")]
    CountTooLarge { count: u64, left: usize, position: usize },
    #[error("more than {count_max} array elements in one request")]
    TooManyElements { count_max: usize },
    #[error("decoded, the request would take more than {bytes_max} bytes")]
    DecodesTooLarge { bytes_max: usize },
    #[error("a variable-length integer at byte {position} does not fit 32 bits")]
    BadVarint { position: usize },
    #[error("{count} tagged fields at byte {position}")]
    TooManyTags { count: u32, position: usize },
    #[error("tagged field {tag} at byte {position} is out of order or repeated")]
    TagOrder { tag: u32, position: usize },
    #[error("tagged field {tag} at byte {position} is not what its size says")]
    TagSize { tag: u32, position: usize },
    #[error("{left} bytes of the request were not decoded")]
    NotDecoded { left: usize },
    #[error("a field of the request does not decode")]
    Undecodable,
}

/// Why a connection ended. One line is logged for every cause but the peer's own orderly close.
#[derive(Debug, Error)]
pub enum CloseReason {
    #[error("closed by the peer")]
    PeerClosed,
    #[error("closed by the peer inside a frame ({received} bytes of it received)")]
    PeerClosedInFrame { received: usize },
    #[error("malformed request: {error}")]
    Malformed {
        #[source]
        error: FrameError,
    },
    #[error("malformed HTTP request: {what}")]
    MalformedHttp { what: &'static str },
    #[error("socket error: {error}")]
    Socket {
        #[source]
        error: io::Error,
    },
    #[error("idle for {idle_ms} ms")]
    Idle { idle_ms: u64 },
    #[error("a request was not received completely within {limit_ms} ms")]
    HalfReceived { limit_ms: u64 },
    #[error(
        "closed for others that wait: a request stood still with {received} bytes of it received"
    )]
    GivenUp { received: usize },
    #[error("the peer took no bytes of a response for {limit_ms} ms")]
    WriteStalled { limit_ms: u64 },
    #[error("the response of api key {api_key} version {version} does not encode")]
    Unencodable { api_key: i16, version: i16 },
    #[error("{what}")]
    Handler { what: &'static str },
    #[error("more than {connections_max} connections of this kind of listener on this core")]
    TooManyConnections { connections_max: usize },
    #[error("few of the open files that the process may have are left (ulimit -n)")]
    FewDescriptors,
    #[error("the server is shutting down")]
    Shutdown,
    /// Not closed: it goes on there.
    #[error("moved to core {target}")]
    Moved {
        target: u16,
        /// Received and not yet a whole request.
        unread: Vec<u8>,
    },
}

impl CloseReason {
    /// An orderly end that nobody needs to read about.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::PeerClosed | Self::Shutdown | Self::Moved { .. })
    }
}

impl From<FrameError> for CloseReason {
    fn from(error: FrameError) -> Self {
        Self::Malformed { error }
    }
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        Self::Socket { error }
    }
}
