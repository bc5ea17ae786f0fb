//! The listeners of one core and the life of their connections.
//!
//! Owns [`Server`]: binding, accepting, the registry of connections, the sweep that enforces their
//! deadlines, and the drain at shutdown. One per core; every method is called on that core.
//!
//! I1 Every connection task is in the registry until it has ended; shutdown waits for all of them.
//! I2 Connections of the two kinds of listener have a limit each; neither shuts the other out. One that was moved to
//!    another core counts where it was accepted.
//! I3 Running out of descriptors stops accepting for a moment, never the listener. Sockets leave some for files: a log
//!    that cannot open its next file would end the process.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use chronik_ring::Task;
use chronik_ring::socket::{Listener, Socket};

use crate::admission::Admission;
use crate::affinity::Affinity;
use crate::clock::{self, Clock};
use crate::connection;
use crate::control::Control;
use crate::error::{CloseReason, NetError};
use crate::handler::{ConnectionContext, Deferred, ListenerKind, MovedConnection, RequestHandler};
use crate::log_limit::LogLimit;
use crate::place::{Place, Places};
use crate::settings::NetSettings;

/// One buffer per core: a receive never waits while it holds it.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often shutdown looks whether the last connection is gone.
const DRAIN_POLL: Duration = Duration::from_millis(2);
/// Aborted connections end at their next poll; this is for those that end slowly.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Everything the connections of a core share.
pub(crate) struct Core<H> {
    pub(crate) handler: Rc<H>,
    pub(crate) settings: NetSettings,
    pub(crate) admission: Admission,
    pub(crate) clock: Clock,
    pub(crate) read_buffer: RefCell<Box<[u8]>>,
    pub(crate) counters: Counters,
    log_limit: LogLimit,
    connections: RefCell<HashMap<u64, Rc<Control>>>,
    kafka_places: Places,
    http_places: Places,
    next_connection_id: Cell<u64>,
    closing: Cell<bool>,
}

/// Counted since the server was made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: Cell<u64>,
    request_bytes: Cell<u64>,
    accepted: Cell<u64>,
    refused: Cell<u64>,
    accept_errors: Cell<u64>,
    closed_for_cause: Cell<u64>,
    handed_over: Cell<u64>,
}

impl Counters {
    pub(crate) fn add_request(&self, bytes: usize) {
        add(&self.requests, 1);
        add(&self.request_bytes, bytes as u64);
    }
}

fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

/// A reading of the counters, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetStats {
    pub connections: usize,
    pub connections_accepted: u64,
    /// Beyond the limit of connections.
    pub connections_refused: u64,
    /// Accepts that failed, mostly for want of descriptors.
    pub accept_errors: u64,
    /// Closed for any cause but an orderly end.
    pub connections_closed_for_cause: u64,
    /// Moved to another core.
    pub connections_handed_over: u64,
    pub requests: u64,
    pub request_bytes: u64,
    pub admission_bytes_used: usize,
    pub admission_waiting: usize,
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that had not finished at the deadline and were cut.
    pub aborted: usize,
}

/// The listeners and connections of one core.
pub struct Server<H> {
    core: Rc<Core<H>>,
    tasks: RefCell<Vec<Task<()>>>,
}

impl<H> std::fmt::Debug for Server<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("connections", &self.core.connections.borrow().len())
            .finish()
    }
}

impl<H: RequestHandler> Server<H> {
    /// Must be made on the core that is to serve, where a ring is installed.
    pub fn new(handler: Rc<H>, settings: NetSettings) -> Self {
        let core = Rc::new(Core {
            handler,
            admission: Admission::new(settings.admission_bytes_max),
            clock: Clock::new(),
            read_buffer: RefCell::new(vec![0; READ_BUFFER_BYTES].into_boxed_slice()),
            counters: Counters::default(),
            log_limit: LogLimit::new(clock::now()),
            connections: RefCell::new(HashMap::new()),
            kafka_places: Places::default(),
            http_places: Places::default(),
            next_connection_id: Cell::new(1),
            closing: Cell::new(false),
            settings,
        });
        let sweep = chronik_ring::spawn(sweep_connections(Rc::clone(&core)));
        let relieved = Rc::clone(&core);
        let relief = chronik_ring::spawn(async move { relieved.admission.relieve().await });
        Self { core, tasks: RefCell::new(vec![sweep, relief]) }
    }

    /// Binds (with SO_REUSEPORT, so that every core may bind the same address) and starts to
    /// accept. Returns the address bound: port 0 asks for a free one.
    pub fn listen(&self, address: SocketAddr, kind: ListenerKind) -> Result<SocketAddr, NetError> {
        if self.core.closing.get() {
            return Err(NetError::ShuttingDown);
        }
        let bind_error = |source: io::Error| NetError::Bind { address, source };
        let listener = Listener::bind(address).map_err(bind_error)?;
        let bound = listener.local_addr().map_err(bind_error)?;
        let accepting = chronik_ring::spawn(accept(Rc::clone(&self.core), listener, kind));
        self.tasks.borrow_mut().push(accepting);
        Ok(bound)
    }

    /// Goes on with a connection of another core. It counts where it was accepted (I2), and is not refused here.
    pub fn adopt(&self, moved: MovedConnection) {
        if self.core.closing.get() {
            return;
        }
        let MovedConnection { descriptor, unread, requests, place } = moved;
        let socket = Socket::new(descriptor);
        // It fails only when the peer is gone already.
        let Ok(addresses) = socket.addresses() else { return };
        let affinity = Affinity::settled();
        let (registered, control) =
            register(&self.core, addresses, ListenerKind::Kafka, requests, affinity);
        let going_on = run_connection(registered, place, socket, control, Some(unread));
        chronik_ring::spawn(going_on).detach();
    }

    pub fn stats(&self) -> NetStats {
        let counters = &self.core.counters;
        NetStats {
            connections: self.core.connections.borrow().len(),
            connections_accepted: counters.accepted.get(),
            connections_refused: counters.refused.get(),
            accept_errors: counters.accept_errors.get(),
            connections_closed_for_cause: counters.closed_for_cause.get(),
            connections_handed_over: counters.handed_over.get(),
            requests: counters.requests.get(),
            request_bytes: counters.request_bytes.get(),
            admission_bytes_used: self.core.admission.bytes_used(),
            admission_waiting: self.core.admission.waiting(),
        }
    }

    /// Stops accepting and reading, answers what was taken, closes. Connections that are not done
    /// after `deadline` are cut. Not cancel-safe: call it once, to its end.
    pub async fn shutdown(&self, deadline: Duration) -> DrainReport {
        self.core.closing.set(true);
        let tasks = self.tasks.take();
        for task in tasks {
            task.cancel().await;
        }
        for control in self.controls() {
            control.drain();
        }
        self.wait_until_empty(deadline).await;
        let unfinished = self.controls();
        for control in &unfinished {
            control.abort(CloseReason::Shutdown);
        }
        self.wait_until_empty(ABORT_GRACE).await;
        DrainReport { aborted: unfinished.len() }
    }

    fn controls(&self) -> Vec<Rc<Control>> {
        self.core.connections.borrow().values().cloned().collect()
    }

    async fn wait_until_empty(&self, limit: Duration) {
        let start = clock::now();
        while !self.core.connections.borrow().is_empty() && start.elapsed() < limit {
            chronik_ring::sleep(DRAIN_POLL).await;
        }
    }
}

/// Enforces deadlines. Coarse on purpose: a quarter of the shortest one, at most a second.
async fn sweep_connections<H: RequestHandler>(core: Rc<Core<H>>) {
    let settings = &core.settings;
    let shortest =
        settings.idle_timeout.min(settings.half_frame_timeout).min(settings.write_stall_timeout);
    let interval = (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        chronik_ring::sleep(interval).await;
        let now = core.clock.advance();
        for control in core.connections.borrow().values() {
            control.sweep(now, settings);
        }
    }
}

async fn accept<H: RequestHandler>(core: Rc<Core<H>>, listener: Listener, kind: ListenerKind) {
    loop {
        match listener.accept().await {
            Ok(socket) => {
                start_connection(&core, socket, kind);
                // Those that wait to be accepted may be thousands.
                chronik_ring::yield_if_needed().await;
            }
            Err(error) => {
                // A connection that was reset before it was accepted says nothing about the next.
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) {
                    continue;
                }
                add(&core.counters.accept_errors, 1);
                if let Some(suppressed) = core.log_limit.allow(core.clock.now()) {
                    tracing::warn!(%error, suppressed, "cannot accept connections, pausing");
                }
                chronik_ring::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn start_connection<H: RequestHandler>(core: &Rc<Core<H>>, socket: Socket, kind: ListenerKind) {
    // Both fail only when the peer is gone already.
    let Ok(addresses) = socket.addresses() else { return };
    if socket.configure(&core.settings.socket_options()).is_err() {
        return;
    }
    let (places, connections_max) = match kind {
        ListenerKind::Http => (&core.http_places, core.settings.http_connections_max),
        ListenerKind::Kafka => (&core.kafka_places, core.settings.connections_max),
    };
    if places.taken() >= connections_max {
        add(&core.counters.refused, 1);
        log_close(core, &addresses.0, None, &CloseReason::TooManyConnections { connections_max });
        return;
    }
    if socket.is_beyond(&core.settings.socket_options()) {
        add(&core.counters.refused, 1);
        log_close(core, &addresses.0, None, &CloseReason::FewDescriptors);
        return;
    }
    add(&core.counters.accepted, 1);
    let (registered, control) = register(core, addresses, kind, 0, Affinity::default());
    // Not detached in spirit: the registry is its gate (I1).
    chronik_ring::spawn(run_connection(registered, places.take(), socket, control, None)).detach();
}

fn register<H>(
    core: &Rc<Core<H>>,
    (peer, local): (SocketAddr, SocketAddr),
    kind: ListenerKind,
    requests: u64,
    affinity: Affinity,
) -> (Registered<H>, Rc<Control>) {
    let id = core.next_connection_id.replace(core.next_connection_id.get() + 1);
    let requests = Cell::new(requests);
    let deferred = Deferred::default();
    let context =
        ConnectionContext { id, peer, local, listener: kind, requests, affinity, deferred };
    let control = Rc::new(Control::new(context, core.clock.now()));
    core.connections.borrow_mut().insert(id, Rc::clone(&control));
    (Registered { core: Rc::clone(core), id }, control)
}

/// A place in the registry, left when dropped.
struct Registered<H> {
    core: Rc<Core<H>>,
    id: u64,
}

impl<H> Drop for Registered<H> {
    fn drop(&mut self) {
        self.core.connections.borrow_mut().remove(&self.id);
    }
}

async fn run_connection<H: RequestHandler>(
    registered: Registered<H>,
    place: Place,
    socket: Socket,
    control: Rc<Control>,
    unread: Option<Vec<u8>>,
) {
    let core = &registered.core;
    let reason = {
        let serving = pin!(async {
            match unread {
                None => connection::serve(core, &socket, &control).await,
                Some(unread) => connection::serve_kafka(core, &socket, &control, unread).await,
            }
        });
        control.run(serving).await
    };
    let reason = match reason {
        // In a drain the other core is about to end, too.
        CloseReason::Moved { target, unread } if !core.closing.get() => {
            // Without a descriptor to spare the connection closes, and its client comes again.
            if let Ok(descriptor) = socket.duplicate(&core.settings.socket_options()) {
                add(&core.counters.handed_over, 1);
                let requests = control.context.requests.get();
                let moved = MovedConnection { descriptor, unread, requests, place };
                core.handler.hand_over(target, moved);
            }
            return;
        }
        other => other,
    };
    // The end is told now: the ring lets go of the descriptor a little later.
    socket.end_writes();
    if !reason.is_orderly() {
        add(&core.counters.closed_for_cause, 1);
        log_close(core, &control.context.peer, control.last_api_key.get(), &reason);
    }
}

fn log_close<H>(
    core: &Core<H>,
    peer: &SocketAddr,
    last_api_key: Option<i16>,
    reason: &CloseReason,
) {
    if let Some(suppressed) = core.log_limit.allow(core.clock.now()) {
        tracing::info!(%peer, last_api_key, %reason, suppressed, "connection closed");
    }
}
