//! The Raft port: reads the first frame of every connection and gives it to whom it concerns.
//!
//! Lives on one core. A hello goes on, with its connection, to the shard that it names; what a node asks that has no
//! cluster yet is answered here.
//!
//! - I1: who has said nothing yet costs little: at most [`AcceptorConfig::connections_max`] such connections, each for
//!   [`AcceptorConfig::first_frame_timeout`] and with no more than a small frame of memory.
//! - I2: a connection that goes to another core goes under a new descriptor: the ring of this core may still poll the
//!   old one.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_ring::socket::{Listener, Socket, SocketOptions};

use super::clock::{LogLimit, now, within};
use super::config::socket_options;
use super::core::LOG_INTERVAL;
use super::handshake;
use super::link::{LinkEnd, receive_any};
use super::receive::{FrameReader, Received};
use super::tasks::Tasks;
use crate::wire::{Frame, FrameKind, Hello, RefusedReason, WireError};

/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// One buffer for all connections: a receive never waits while it holds it.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Unacknowledged bytes give a connection up after this.
const USER_TIMEOUT: Duration = Duration::from_secs(2);

/// What hears of connections at the Raft port. Nothing of it may block.
pub trait RaftPort: 'static {
    /// A seat wants a link: to be taken to the shard that its hello names, where [`super::Peers::adopt`] goes on.
    fn on_hello(&self, accepted: Accepted);

    /// A node asks that has no cluster yet. Without an answer the connection is closed.
    fn on_discovery(&self, body: Bytes) -> impl Future<Output = Option<Bytes>>;
}

/// A connection on its way to the shard that it is for. Dropped, it is closed.
#[derive(Debug)]
pub struct Accepted {
    descriptor: OwnedFd,
    hello: Hello,
    /// With what came after the hello, if anything did.
    reader: FrameReader,
}

impl Accepted {
    /// What the peer said. Nothing of it is proven.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Closes the connection and says why.
    pub fn refuse(self, reason: RefusedReason) {
        handshake::refuse(&Socket::new(self.descriptor), reason);
    }

    pub(super) fn into_parts(self) -> (Socket, Hello, FrameReader) {
        (Socket::new(self.descriptor), self.hello, self.reader)
    }
}

/// Bounds of the Raft port (I1).
#[derive(Debug, Clone)]
pub struct AcceptorConfig {
    /// For the first frame, and for each further one of a node without a cluster.
    pub first_frame_timeout: Duration,
    /// Connections that are not links yet.
    pub connections_max: usize,
}

impl Default for AcceptorConfig {
    fn default() -> AcceptorConfig {
        AcceptorConfig { first_frame_timeout: Duration::from_secs(5), connections_max: 256 }
    }
}

struct Core<P> {
    port: Rc<P>,
    config: AcceptorConfig,
    socket_options: SocketOptions,
    buffer: RefCell<Box<[u8]>>,
    connections: Cell<usize>,
    tasks: Rc<Tasks>,
    log: LogLimit,
}

/// The listener of the Raft port. Dropped, it closes; links that came of it stay.
#[derive(Debug)]
pub struct Acceptor {
    tasks: Rc<Tasks>,
    local_addr: SocketAddr,
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.tasks.close();
    }
}

impl Acceptor {
    /// Binds the port and begins to accept, on this core.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn listen<P: RaftPort>(
        address: SocketAddr,
        config: AcceptorConfig,
        port: Rc<P>,
    ) -> io::Result<Acceptor> {
        let listener = Listener::bind_alone(address)?;
        let local_addr = listener.local_addr()?;
        let tasks = Rc::new(Tasks::default());
        let core = Rc::new(Core {
            port,
            config,
            socket_options: socket_options(USER_TIMEOUT),
            buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into_boxed_slice()),
            connections: Cell::new(0),
            tasks: Rc::clone(&tasks),
            log: LogLimit::new(LOG_INTERVAL),
        });
        tasks.spawn(accept(core, listener));
        Ok(Acceptor { tasks, local_addr })
    }

    /// Where it listens: port 0 asks for a free one.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops listening, and ends connections that are not links yet. Not cancel-safe.
    pub async fn close(self) {
        for task in self.tasks.close() {
            task.cancel().await;
        }
    }
}

async fn accept<P: RaftPort>(core: Rc<Core<P>>, listener: Listener) {
    loop {
        let error = match listener.accept().await {
            Ok(socket) => {
                start(&core, socket);
                chronik_ring::yield_if_needed().await;
                continue;
            }
            Err(error) => error,
        };
        // A connection that was reset before it was accepted says nothing about the next.
        let is_passing =
            matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted);
        if !is_passing {
            if let Some(suppressed) = core.log.allow(now()) {
                tracing::warn!(%error, suppressed, "the Raft port cannot accept, pausing");
            }
            chronik_ring::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn start<P: RaftPort>(core: &Rc<Core<P>>, socket: Socket) {
    if core.connections.get() >= core.config.connections_max {
        handshake::refuse(&socket, RefusedReason::Busy);
        if let Some(suppressed) = core.log.allow(now()) {
            tracing::warn!(
                suppressed,
                "too many connections at the Raft port have said nothing yet"
            );
        }
        return;
    }
    // It fails only when the peer is gone already.
    if socket.configure(&core.socket_options).is_err() {
        return;
    }
    let place = Place::take(core);
    core.tasks.spawn(async move {
        let core = &place.0;
        match serve(core, &socket).await {
            // The connection goes on elsewhere: nothing of it may be ended here.
            Ok(Served::Moved) => return,
            Ok(Served::Ended) => {}
            Err(error) => {
                if let Some(suppressed) = core.log.allow(now()) {
                    let peer = socket.addresses().ok().map(|(peer, _)| peer);
                    tracing::warn!(?peer, suppressed, "a connection at the Raft port: {error}");
                }
            }
        }
        socket.end_writes();
    });
}

/// One of the connections that are counted.
struct Place<P>(Rc<Core<P>>);

impl<P> Place<P> {
    fn take(core: &Rc<Core<P>>) -> Place<P> {
        core.connections.set(core.connections.get() + 1);
        Place(Rc::clone(core))
    }
}

impl<P> Drop for Place<P> {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Moved,
    Ended,
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum PortError {
    #[error("{0}")]
    Connection(#[from] LinkEnd),
    #[error("it said nothing for {} ms", after.as_millis())]
    Timeout { after: Duration },
    #[error("it began with a {kind:?} frame")]
    Unexpected { kind: FrameKind },
    #[error("the answer is too large")]
    AnswerTooLarge,
}

impl From<WireError> for PortError {
    fn from(error: WireError) -> PortError {
        PortError::Connection(error.into())
    }
}

impl From<io::Error> for PortError {
    fn from(error: io::Error) -> PortError {
        PortError::Connection(error.into())
    }
}

async fn serve<P: RaftPort>(core: &Core<P>, socket: &Socket) -> Result<Served, PortError> {
    let timeout = core.config.first_frame_timeout;
    let late = || PortError::Timeout { after: timeout };
    let mut reader = FrameReader::new(FrameKind::Discovery.body_bytes_max());
    let mut is_first = true;
    loop {
        let frame = match within(timeout, next_frame(core, socket, &mut reader)).await {
            Some(Ok(frame)) => frame,
            Some(Err(LinkEnd::PeerClosed)) if !reader.is_within_frame() => {
                return Ok(Served::Ended);
            }
            // It has had its answer.
            None if !is_first && !reader.is_within_frame() => return Ok(Served::Ended),
            Some(Err(end)) => return Err(end.into()),
            None => return Err(late()),
        };
        is_first = false;
        match frame.kind {
            FrameKind::Hello => {
                let hello = Hello::decode(&frame.body)?;
                let descriptor = socket.duplicate(&core.socket_options)?; // I2
                core.port.on_hello(Accepted { descriptor, hello, reader });
                return Ok(Served::Moved);
            }
            FrameKind::Discovery => {
                let answering = core.port.on_discovery(frame.body);
                let answer = within(timeout, answering).await.ok_or_else(late)?;
                let Some(body) = answer else { return Ok(Served::Ended) };
                if body.len() > FrameKind::DiscoveryReply.body_bytes_max() as usize {
                    return Err(PortError::AnswerTooLarge);
                }
                let reply = Frame::new(FrameKind::DiscoveryReply, vec![body]);
                within(timeout, handshake::send(socket, &reply)).await.ok_or_else(late)??;
            }
            kind => return Err(PortError::Unexpected { kind }),
        }
    }
}

async fn next_frame<P>(
    core: &Core<P>,
    socket: &Socket,
    reader: &mut FrameReader,
) -> Result<Received, LinkEnd> {
    loop {
        if let Some(frame) = reader.next_frame() {
            return Ok(frame);
        }
        receive_any(socket, &core.buffer, reader).await?;
    }
}
