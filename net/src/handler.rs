//! The seam between the wire and the broker: what `shards` implements and what it is given.
//!
//! Owns [`RequestHandler`] and the types that cross it. Knows no broker state.
//!
//! Invariants of the contract:
//! I1 `enqueue` is called for the requests of a connection in the order they arrived, and the next
//!    one is not taken before the future of the last is ready ("enqueued": the order is fixed).
//! I2 The second future ("finished") is polled only when every earlier request of the connection is
//!    answered. Work that must go on meanwhile is started in `enqueue`, or by a task of the handler.
//! I3 When the connection dies, both futures are dropped at any await: neither may own an effect
//!    that has to happen (an append already proposed goes on without it).

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::affinity::Affinity;
use crate::error::CloseReason;
use crate::place::Place;
use crate::protocol::Request;
use crate::response::ResponseBody;

/// Serves requests on the core that owns the connection. Everything stays on that core: no `Send`.
pub trait RequestHandler: 'static {
    /// Takes one request. Ready as soon as its place in the order is fixed; the answer may come
    /// later through [`Enqueued::Pending`].
    fn enqueue(
        &self,
        connection: &ConnectionContext,
        request: Request,
    ) -> impl Future<Output = Enqueued>;

    /// Hears how long a request was under way on the wire. Called on the hot path: record it, nothing more.
    fn wire_time(&self, _stage: WireStage, _took: Duration) {}

    /// Takes a connection to the core that its [`Affinity`] decided for, where [`crate::Server::adopt`] goes on with it. A
    /// handler that never votes is never asked.
    fn hand_over(&self, _target: u16, _connection: MovedConnection) {}

    /// Serves one HTTP request, from the admin port or sniffed on the Kafka port.
    fn http(
        &self,
        connection: &ConnectionContext,
        request: HttpRequest,
    ) -> impl Future<Output = HttpResponse>;
}

/// What a request spends its time on in this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireStage {
    /// From the first byte of a request to its last.
    Receive,
    /// From the moment that answers are ready to the moment that the socket has taken them; once for answers that
    /// leave together.
    Respond,
}

/// The future of an answer. Owned by the connection's task, so neither `Send` nor borrowed.
pub type FinishedFuture = Pin<Box<dyn Future<Output = Finished>>>;

/// A request whose place in the order is fixed.
pub enum Enqueued {
    /// The answer is known already: costs no allocation and no wake-up.
    Ready(Finished),
    /// The answer comes later.
    Pending(FinishedFuture),
}

impl Enqueued {
    /// The answer, known already.
    pub fn respond(body: impl Into<ResponseBody>) -> Self {
        Self::Ready(Finished::Response(body.into()))
    }

    /// The answer is what `future` resolves to.
    pub fn finish_with(future: impl Future<Output = Finished> + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }
}

impl fmt::Debug for Enqueued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(finished) => f.debug_tuple("Ready").field(finished).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}

/// How a request ended.
#[derive(Debug)]
pub enum Finished {
    /// Sent in request order. Must be the response type of the request's API.
    Response(ResponseBody),
    /// Nothing is sent (acks=0).
    NoResponse,
    /// Earlier answers are flushed, then the connection is closed.
    Close(CloseReason),
}

/// What a listener speaks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// Kafka frames; `GET`, `HEAD` and `POST` in the first four bytes switch to HTTP.
    Kafka,
    /// HTTP only (the admin port).
    Http,
}

/// What a handler may know of the connection a request came from. One per connection.
#[derive(Debug)]
pub struct ConnectionContext {
    /// Unique on this core for the life of the process.
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub listener: ListenerKind,
    /// Requests taken so far.
    pub requests: Cell<u64>,
    /// Where its requests belong.
    pub affinity: Affinity,
    /// Its requests whose work is left for later.
    pub deferred: Deferred,
}

/// How many requests of a connection were taken and are not worked on before their turn to be answered comes. A handler
/// that begins its work when it takes a request would overtake them: it counts them, and asks here first.
#[derive(Debug, Clone, Default)]
pub struct Deferred(Rc<Cell<usize>>);

impl Deferred {
    /// Counts one more, until what is returned is dropped.
    #[must_use]
    pub fn one_more(&self) -> DeferredOne {
        self.0.set(self.0.get() + 1);
        DeferredOne(self.clone())
    }

    /// Whether there is any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.0.get() > 0
    }
}

/// One request whose work is left for later, or under way.
#[derive(Debug)]
pub struct DeferredOne(Deferred);

impl Drop for DeferredOne {
    fn drop(&mut self) {
        let Deferred(count) = &self.0;
        count.set(count.get() - 1);
    }
}

/// A Kafka connection between two cores. Dropped, it is closed.
#[derive(Debug)]
pub struct MovedConnection {
    pub(crate) descriptor: OwnedFd,
    /// Received and not yet a whole request.
    pub(crate) unread: Vec<u8>,
    pub(crate) requests: u64,
    pub(crate) place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpMethod {
    Get,
    Head,
    Post,
}

/// One HTTP request; the target is split at the first `?`, nothing is percent-decoded.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    pub method: HttpMethod,
    pub path: String,
    pub query: Option<String>,
    pub body: Bytes,
}

#[derive(Debug, Clone)]
pub struct HttpResponse {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl HttpResponse {
    /// A `text/plain` answer.
    pub fn text(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}
