//! Formation's sockets: blocking, with a deadline for every exchange, and one exchange for each connection.
//!
//! - I1: nothing waits longer than its deadline, whatever the other end does or does not.
//! - I2: no more than [`SERVED_MAX`] connections are served at a time; further ones are closed.
//! - I3: a body is read only after its header was checked, so memory is claimed for at most one small message.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chronik_engine::ids::NodeId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::peer::PeerProblem;
use crate::wire::{FRAME_HEADER_BYTES, FRAME_VERSION, Frame, FrameHeader, FrameKind, WireError};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_millis(500);
/// How long a peer may take to answer, which includes its syncing to disk.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a connection is served.
const SERVE: Duration = Duration::from_secs(2);
/// Connections served at a time.
const SERVED_MAX: usize = 128;
/// How often the listener looks whether it is to stop.
const STOP_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// A pause after the kernel refused a connection, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What the sockets tell the one who decides.
pub(super) enum Event {
    /// A request arrived; the reply goes back by `reply`.
    Request { body: Vec<u8>, from: SocketAddr, reply: SyncSender<Vec<u8>> },
    /// An exchange with a peer ended.
    Ended { peer: NodeId, exchange: u64, outcome: Result<Vec<u8>, PeerProblem> },
}

/// A request to send to a peer.
pub(super) struct Ask {
    pub(super) exchange: u64,
    pub(super) body: Vec<u8>,
}

/// One peer's thread: sends what it is asked to, one request at a time, until nobody asks any more.
pub(super) fn ask_peer(
    peer: NodeId,
    address: &str,
    asks: &Receiver<Ask>,
    events: &SyncSender<Event>,
) {
    while let Ok(Ask { exchange, body }) = asks.recv() {
        let outcome = exchange_with(address, body, ANSWER);
        if events.send(Event::Ended { peer, exchange, outcome }).is_err() {
            return;
        }
    }
}

/// One exchange with whoever is at an address.
pub(super) fn exchange_with(
    address: &str,
    body: Vec<u8>,
    answer: Duration,
) -> Result<Vec<u8>, PeerProblem> {
    let mut stream = connect(address)?;
    let deadline = now() + answer;
    write_frame(&mut stream, FrameKind::Discovery, body, deadline)
        .and_then(|()| read_frame(&mut stream, FrameKind::DiscoveryReply, deadline))
        .map_err(NetError::problem)
}

/// Whether a Kafka broker answers at an address: it is asked which versions it knows.
pub(super) fn is_kafka_port(address: &str) -> bool {
    /// ApiVersions, version 0, with this correlation id and no client id.
    const CORRELATION: [u8; 4] = *b"form";
    let request = [&[0, 0, 0, 10, 0, 18, 0, 0][..], &CORRELATION, &[0xff, 0xff]].concat();
    let deadline = now() + ANSWER;
    let Ok(mut stream) = connect(address) else { return false };
    let timeout = stream.set_write_timeout(Some(ANSWER));
    let mut answer = [0; 8];
    timeout.and_then(|()| stream.write_all(&request)).is_ok()
        && read_exact(&mut stream, &mut answer, deadline).is_ok()
        && answer[4..] == CORRELATION
}

fn connect(address: &str) -> Result<TcpStream, PeerProblem> {
    let resolved = address.to_socket_addrs().map_err(|_| PeerProblem::Unresolved)?;
    let mut problem = PeerProblem::Unresolved;
    // A name may mean several addresses; a few are tried.
    for address in resolved.take(4) {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => problem = PeerProblem::Unreachable { kind: error.kind() },
        }
    }
    Err(problem)
}

/// Takes connections until told to stop, and serves each on a thread of its own.
pub(super) fn listen(listener: &TcpListener, events: &SyncSender<Event>, stop: &AtomicBool) {
    let served = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Acquire) {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut ready, Some(&STOP_LOOK)).is_ok_and(|count| count == 0) {
            continue;
        }
        match listener.accept() {
            Ok((stream, from)) => serve_apart(stream, from, events, &served),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => std::thread::sleep(ACCEPT_PAUSE),
        }
    }
}

fn serve_apart(
    stream: TcpStream,
    from: SocketAddr,
    events: &SyncSender<Event>,
    served: &Arc<AtomicUsize>,
) {
    if served.load(Ordering::Relaxed) >= SERVED_MAX {
        return;
    }
    served.fetch_add(1, Ordering::Relaxed);
    let (events, count) = (events.clone(), Arc::clone(served));
    let serve = move || {
        if let Err(error) = serve(stream, from, &events) {
            tracing::debug!("formation: a connection of {from} was closed: {error}");
        }
        count.fetch_sub(1, Ordering::Relaxed);
    };
    // It ends by itself, by its deadline at the latest.
    if std::thread::Builder::new().name("chronik-form".to_owned()).spawn(serve).is_err() {
        served.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(
    mut stream: TcpStream,
    from: SocketAddr,
    events: &SyncSender<Event>,
) -> Result<(), NetError> {
    let deadline = now() + SERVE;
    let body = read_frame(&mut stream, FrameKind::Discovery, deadline)?;
    let (reply, replied) = sync_channel(1);
    events.send(Event::Request { body, from, reply }).map_err(|_| NetError::Over)?;
    let left = deadline.saturating_duration_since(now());
    let body = replied.recv_timeout(left).map_err(|_| NetError::Over)?;
    write_frame(&mut stream, FrameKind::DiscoveryReply, body, deadline)
}

/// Why an exchange came to nothing.
#[derive(Debug, thiserror::Error)]
enum NetError {
    #[error("{source}")]
    Io {
        #[source]
        source: std::io::Error,
    },
    #[error("the deadline is over")]
    Late,
    #[error("formation is over")]
    Over,
    #[error("{source}")]
    Frame {
        #[source]
        source: WireError,
    },
    #[error("a frame of another kind")]
    Kind,
}

impl NetError {
    fn problem(self) -> PeerProblem {
        match self {
            NetError::Late | NetError::Over => PeerProblem::NoAnswer,
            NetError::Frame { source: WireError::Version { version } } => {
                PeerProblem::FrameVersion { found: version, own: FRAME_VERSION }
            }
            NetError::Frame { .. } | NetError::Kind => PeerProblem::Garbled,
            NetError::Io { source } => match source.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::UnexpectedEof => {
                    PeerProblem::NoAnswer
                }
                kind => PeerProblem::Unreachable { kind },
            },
        }
    }
}

fn write_frame(
    stream: &mut TcpStream,
    kind: FrameKind,
    body: Vec<u8>,
    deadline: Instant,
) -> Result<(), NetError> {
    let frame = Frame::new(kind, vec![Bytes::from(body)]);
    let mut bytes = Vec::with_capacity(frame.bytes());
    for part in frame.parts() {
        bytes.extend_from_slice(part);
    }
    // It fits the send buffer of a fresh connection, so one timeout bounds it.
    stream.set_nodelay(true).map_err(|source| NetError::Io { source })?;
    stream.set_write_timeout(Some(left(deadline)?)).map_err(|source| NetError::Io { source })?;
    stream.write_all(&bytes).map_err(|source| NetError::Io { source })
}

fn read_frame(
    stream: &mut TcpStream,
    kind: FrameKind,
    deadline: Instant,
) -> Result<Vec<u8>, NetError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    read_exact(stream, &mut header, deadline)?;
    let header = FrameHeader::decode(&header, kind.body_bytes_max())
        .map_err(|source| NetError::Frame { source })?;
    if header.kind != kind {
        return Err(NetError::Kind);
    }
    let mut body = vec![0; header.body_bytes as usize];
    read_exact(stream, &mut body, deadline)?;
    header.check_body(&body).map_err(|source| NetError::Frame { source })?;
    Ok(body)
}

/// As `Read::read_exact`, with a deadline for the whole instead of one for each read.
fn read_exact(
    stream: &mut TcpStream,
    mut into: &mut [u8],
    deadline: Instant,
) -> Result<(), NetError> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(left(deadline)?)).map_err(|source| NetError::Io { source })?;
        match stream.read(into) {
            Ok(0) => return Err(NetError::Io { source: ErrorKind::UnexpectedEof.into() }),
            Ok(read) => into = &mut into[read..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(NetError::Io { source }),
        }
    }
    Ok(())
}

/// The time that is left, which is some.
fn left(deadline: Instant) -> Result<Duration, NetError> {
    let left = deadline.saturating_duration_since(now());
    if left.is_zero() { Err(NetError::Late) } else { Ok(left) }
}

#[expect(clippy::disallowed_methods, reason = "deadlines are of real time")]
pub(super) fn now() -> Instant {
    Instant::now()
}
