//! A TCP proxy in front of a node's Raft port, which makes a bad network of a good one.
//!
//! The list of nodes names the proxy; the node itself listens elsewhere. Since a link is opened by the node with the
//! lower id, what is done to the proxy of node 2 of three is done to the link of nodes 1 and 2, and to nobody else's.
//!
//! Bytes are delayed, never reordered, and lost only with their connection: what a lost segment is to TCP is a pause
//! until it is sent again, during which all that follows it waits, too.
//!
//! - I1: what waits in a connection is bounded; then whoever writes has to wait, as with a full window.
//! - I2: a connection that has swallowed bytes never carries any others: it is reset once that is over.
//! - I3: threads and connections end with the proxy.

#![expect(
    clippy::disallowed_methods,
    reason = "a proxy for real processes has threads and real time"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::net::sockopt::set_socket_linger;

/// Read at once; about what a few segments hold.
const CHUNK_BYTES: usize = 16 << 10;
/// Chunks that wait in one direction of a connection (I1).
const CHUNKS_MAX: usize = 256;
/// How soon a thread that waits for bytes sees that faults have changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// After this TCP sends again what was lost, twice as long with every further loss.
const RETRANSMIT_AFTER: Duration = Duration::from_millis(200);
const RETRANSMITS_MAX: u32 = 4;

/// What is wrong with the connections of a proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Each direction takes this long.
    pub delay: Duration,
    /// Of a hundred chunks so many are lost, and come when they are sent again.
    pub loss_percent: u32,
    /// Of a thousand chunks so many are answered with a reset.
    pub reset_per_mille: u32,
    /// Nothing comes through to the node, and no connection ends.
    pub swallows_to_node: bool,
    /// Nothing comes through from the node, and no connection ends.
    pub swallows_from_node: bool,
    /// An end that closes is not told to the other.
    pub holds_closes: bool,
}

impl Faults {
    /// Connections seem to be there, and carry nothing.
    #[must_use]
    pub fn half_open() -> Faults {
        Faults { swallows_to_node: true, swallows_from_node: true, ..Faults::default() }
    }
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    seed: u64,
    faults: Mutex<Faults>,
    is_over: AtomicBool,
    closes_held: AtomicUsize,
}

impl Shared {
    fn faults(&self) -> Faults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy with all its connections.
#[derive(Debug)]
pub struct LinkProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl LinkProxy {
    /// A proxy that passes on what it gets to `target`, and nothing is wrong with it yet.
    pub fn before(target: SocketAddr, seed: u64) -> Result<LinkProxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a proxy's port")?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            seed,
            faults: Mutex::default(),
            is_over: AtomicBool::new(false),
            closes_held: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Ok(LinkProxy { addr, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on this is wrong with all connections, those that are there already among them.
    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Ends of connections that the other side has not been told of.
    #[must_use]
    pub fn closes_held(&self) -> usize {
        self.shared.closes_held.load(Ordering::SeqCst)
    }
}

impl Drop for LinkProxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // The thread that accepts sees it with the next connection.
        drop(TcpStream::connect(self.addr));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections: u64 = 0;
    for client in listener.incoming() {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        connections += 1;
        let (shared, number) = (Arc::clone(shared), connections);
        // A node that is not there takes its time to refuse; the next connection need not wait for that.
        thread::spawn(move || connect(client, shared, number));
    }
}

/// One of the two ways through a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToNode,
    FromNode,
}

/// What both directions of a connection know.
struct Connection {
    shared: Arc<Shared>,
    /// Both sides are to be reset.
    is_dead: AtomicBool,
}

impl Connection {
    fn swallows(&self, direction: Direction) -> bool {
        let faults = self.shared.faults();
        match direction {
            Direction::ToNode => faults.swallows_to_node,
            Direction::FromNode => faults.swallows_from_node,
        }
    }

    fn is_over(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst) || self.shared.is_over.load(Ordering::SeqCst)
    }

    fn reset(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
    }
}

/// What goes from the thread that reads to the one that writes.
enum Passed {
    Bytes {
        due: Instant,
        bytes: Vec<u8>,
    },
    /// The side that is read from has ended.
    End,
}

fn connect(client: TcpStream, shared: Arc<Shared>, number: u64) {
    // Without the node the client is closed, as by a node that is going down.
    let Ok(node) = TcpStream::connect_timeout(&shared.target, CONNECT_DEADLINE) else { return };
    for stream in [&client, &node] {
        let set = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(LOOK_INTERVAL)))
            .and_then(|()| stream.set_write_timeout(Some(LOOK_INTERVAL)));
        if set.is_err() {
            return;
        }
    }
    let seed = shared.seed ^ number.rotate_left(32);
    let connection = Arc::new(Connection { shared, is_dead: AtomicBool::new(false) });
    let (client, node) = (Arc::new(client), Arc::new(node));
    let ways = [(&client, &node, Direction::ToNode), (&node, &client, Direction::FromNode)];
    for (salt, (from, to, direction)) in (0..).zip(ways) {
        let (sender, receiver) = sync_channel(CHUNKS_MAX);
        let (from, reading) = (Arc::clone(from), Arc::clone(&connection));
        thread::spawn(move || read(&from, &reading, &sender));
        let (to, connection) = (Arc::clone(to), Arc::clone(&connection));
        let rng = StdRng::seed_from_u64(seed ^ salt);
        thread::spawn(move || Writer { to, connection, direction, rng }.run(&receiver));
    }
}

fn read(from: &TcpStream, connection: &Connection, sender: &SyncSender<Passed>) {
    let mut from = from;
    let mut chunk = vec![0; CHUNK_BYTES];
    while !connection.is_over() {
        let passed = match from.read(&mut chunk) {
            Ok(0) => Passed::End,
            Ok(count) => {
                let due = Instant::now() + connection.shared.faults().delay;
                Passed::Bytes { due, bytes: chunk[..count].to_vec() }
            }
            Err(error) if is_passing(error.kind()) => continue,
            Err(_) => Passed::End,
        };
        let is_end = matches!(passed, Passed::End);
        if sender.send(passed).is_err() || is_end {
            return;
        }
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Brings one direction's bytes to their end.
struct Writer {
    to: Arc<TcpStream>,
    connection: Arc<Connection>,
    direction: Direction,
    rng: StdRng,
}

impl Writer {
    fn run(mut self, receiver: &Receiver<Passed>) {
        let mut has_swallowed = false;
        while !self.connection.is_over() {
            let passed = receiver.recv_timeout(LOOK_INTERVAL);
            let swallows = self.connection.swallows(self.direction);
            if has_swallowed && !swallows {
                self.connection.reset();
                break;
            }
            match passed {
                Err(RecvTimeoutError::Timeout) => {}
                // The end was passed on already, or swallowed.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK_INTERVAL),
                Ok(_) if swallows => has_swallowed = true,
                Ok(Passed::Bytes { due, bytes }) => {
                    self.wait(due);
                    if !self.write(&bytes) {
                        break;
                    }
                }
                Ok(Passed::End) => {
                    self.end();
                    break;
                }
            }
        }
        if self.connection.is_over() {
            // Closed with this, a socket sends a reset.
            let _set = set_socket_linger(&*self.to, Some(Duration::ZERO));
        }
    }

    /// Until the bytes are there that were sent then, some of them more than once.
    fn wait(&mut self, due: Instant) {
        let faults = self.connection.shared.faults();
        let mut pause = due.saturating_duration_since(Instant::now());
        let mut again = RETRANSMIT_AFTER;
        for _ in 0..RETRANSMITS_MAX {
            if !self.rng.random_ratio(faults.loss_percent.min(100), 100) {
                break;
            }
            pause += again;
            again *= 2;
        }
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        if self.rng.random_ratio(faults.reset_per_mille.min(1_000), 1_000) {
            self.connection.reset();
        }
    }

    /// `false` where nothing more can be written.
    fn write(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.connection.is_over() {
                return false;
            }
            match (&*self.to).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_passing(error.kind()) => {}
                // The other end is gone, and whoever writes to it is not to know.
                Err(_) if self.connection.shared.faults().holds_closes => return true,
                Err(_) => {
                    self.connection.reset();
                    return false;
                }
            }
        }
        true
    }

    fn end(&self) {
        let held = &self.connection.shared.closes_held;
        held.fetch_add(1, Ordering::SeqCst);
        while self.connection.shared.faults().holds_closes && !self.connection.is_over() {
            thread::sleep(LOOK_INTERVAL);
        }
        held.fetch_sub(1, Ordering::SeqCst);
        // It fails only where the other side has gone, too.
        let _shut = self.to.shutdown(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(200);

    /// A proxy, and both ends of a connection through it.
    fn connected() -> (LinkProxy, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = LinkProxy::before(listener.local_addr().unwrap(), 1).unwrap();
        let client = TcpStream::connect(proxy.addr()).unwrap();
        let (node, _) = listener.accept().unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        node.set_read_timeout(Some(DEADLINE)).unwrap();
        (proxy, client, node)
    }

    fn read_some(mut from: &TcpStream) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; 64];
        let count = from.read(&mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    #[test]
    fn given_losses_and_delay_when_bytes_are_sent_then_all_arrive_in_order_and_late() {
        let (proxy, mut client, mut node) = connected();
        let delay = Duration::from_millis(50);
        proxy.set(Faults { delay, loss_percent: 30, ..Faults::default() });
        let sent: Vec<u8> = (0..100_000u32).flat_map(u32::to_be_bytes).collect();
        let started = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| client.write_all(&sent).unwrap());
            let mut got = vec![0; sent.len()];
            node.read_exact(&mut got).unwrap();
            assert!(got == sent, "other bytes than were sent");
        });
        assert!(started.elapsed() >= delay, "{:?}", started.elapsed());
        drop(client);
        assert_eq!(read_some(&node).unwrap(), b"", "the end came, too");
    }

    #[test]
    fn given_a_half_open_link_when_it_is_healed_then_nothing_came_through_and_it_is_reset() {
        let (proxy, mut client, mut node) = connected();
        proxy.set(Faults::half_open());
        client.write_all(b"lost").unwrap();
        node.write_all(b"lost").unwrap();
        for end in [&client, &node] {
            end.set_read_timeout(Some(SHORT)).unwrap();
            assert!(is_passing(read_some(end).unwrap_err().kind()));
            end.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        proxy.set(Faults::default());
        for end in [&client, &node] {
            assert_eq!(read_some(end).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn given_a_node_that_closes_when_closes_are_held_then_its_peer_hears_of_it_only_later() {
        let (proxy, mut client, node) = connected();
        proxy.set(Faults { holds_closes: true, ..Faults::default() });
        drop(node);
        while proxy.closes_held() == 0 {
            thread::sleep(LOOK_INTERVAL);
        }
        client.write_all(b"to nobody").unwrap();
        client.set_read_timeout(Some(SHORT)).unwrap();
        assert!(is_passing(read_some(&client).unwrap_err().kind()));
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        proxy.set(Faults::default());
        assert_eq!(read_some(&client).unwrap(), b"");
    }

    #[test]
    fn given_resets_when_bytes_are_sent_then_both_ends_hear_one() {
        let (proxy, mut client, node) = connected();
        proxy.set(Faults { reset_per_mille: 1_000, ..Faults::default() });
        client.write_all(b"x").unwrap();
        for end in [&client, &node] {
            assert_eq!(read_some(end).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    }
}
