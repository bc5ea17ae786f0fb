//! The opener's side: finding a peer, connecting, and coming back after a loss.
//!
//! - I1: one task per seat that is dialled, one attempt at a time, a pause between two of them that grows; after a
//!   refusal it is the longest, since somebody must mend something first. A node's first shard is tried more often, and
//!   once it is there the others are at once: a node that comes back is heard soon, at the cost of one attempt per core.
//! - I2: only the first shard of a node is looked up by name; the others are where that one was found.
//! - I3: who knocks gets no link, but hears whether its data directory counts: else it would open what others are to open.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use chronik_engine::ids::ShardId;
use chronik_ring::socket::{Socket, resolve};

use super::clock::{Backoff, LogLimit, now, within};
use super::core::{Core, FIRST_SHARD, Node};
use super::handler::PeerHandler;
use super::handshake::{self, HandshakeError, Met};
use crate::wire::Seat;

/// No node has more; one that says so is not believed.
const SHARDS_MAX: u16 = 1024;
/// The longest pause between two attempts to reach the first shard of a node that refused nothing.
const FIRST_PAUSE_MAX: Duration = Duration::from_millis(200);
/// A peer that stays away is named this often.
const AWAY_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("its address is not known: {0}")]
    Address(#[source] std::io::Error),
    #[error("it has no address")]
    NoAddress,
    #[error("it cannot be reached: {0}")]
    Connect(#[source] std::io::Error),
    #[error("it does not answer")]
    Timeout,
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
}

impl DialError {
    /// Somebody must mend something before it can be otherwise.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            DialError::Handshake(
                HandshakeError::RefusedByPeer(_)
                    | HandshakeError::RefusedHere { .. }
                    | HandshakeError::Retired
            )
        )
    }
}

impl<H: PeerHandler> Core<H> {
    /// Dials every shard of the node that is known and not dialled.
    pub(super) fn dial_node(self: &Rc<Self>, node: &Rc<Node>) {
        for shard in (0..node.shards.get()).map(ShardId) {
            if node.dialled.borrow_mut().insert(shard) {
                let (core, node) = (Rc::clone(self), Rc::clone(node));
                self.spawn(async move {
                    dial(&core, &node, shard).await;
                    node.dialled.borrow_mut().remove(&shard);
                });
            }
        }
    }

    /// Knocks at the nodes that are to open the link to this one and have not. `attempt` is for names with several addresses.
    pub(super) fn knock(self: &Rc<Self>, attempt: usize) {
        let nodes: Vec<Rc<Node>> = self.nodes.borrow().values().cloned().collect();
        for node in nodes {
            let seat = Seat { node: node.id, shard: FIRST_SHARD };
            let is_linked = self.known_peer(seat).is_some_and(|peer| peer.link().is_some());
            // Those with higher ids are dialled, and so is who is being knocked at.
            if is_linked || !node.dialled.borrow_mut().insert(FIRST_SHARD) {
                continue;
            }
            let core = Rc::clone(self);
            self.spawn(async move {
                let outcome = connect(&core, &node, seat, attempt).await;
                node.dialled.borrow_mut().remove(&FIRST_SHARD);
                match outcome {
                    Err(DialError::Handshake(HandshakeError::Retired)) => {
                        core.handler.on_retired(seat);
                    }
                    Err(error) => tracing::debug!(peer = %seat, "knocked: {error}"),
                    Ok(_) => {} // I3
                }
            });
        }
    }
}

/// Keeps a link to a shard of a node for as long as it is wanted.
async fn dial<H: PeerHandler>(core: &Rc<Core<H>>, node: &Rc<Node>, shard: ShardId) {
    let seat = Seat { node: node.id, shard };
    let config = &core.config;
    let seed = config.seed ^ number(config.seat) ^ number(seat).rotate_left(16);
    let mut backoff = Backoff::new(config.backoff_min, config.backoff_max, seed);
    let away_log = LogLimit::new(AWAY_LOG_INTERVAL);
    let mut away_since = now();
    let mut attempt = 0;
    while is_wanted(node, shard) {
        let mut first_pause_max = FIRST_PAUSE_MAX;
        match connect(core, node, seat, attempt).await {
            Ok((socket, met)) if is_wanted(node, shard) => {
                node.shards.set(met.shards.clamp(1, SHARDS_MAX));
                core.dial_node(node);
                if shard == FIRST_SHARD {
                    node.rise();
                }
                let up_at = now();
                core.run_link(seat, socket, met).await;
                away_since = now();
                // One that ends as soon as it begins is no sign of health.
                if away_since.saturating_duration_since(up_at) >= config.backoff_max {
                    backoff.reset();
                }
            }
            Ok(_) => return,
            Err(error) => {
                if error.is_refusal() {
                    backoff.raise();
                    first_pause_max = config.backoff_max;
                }
                if let DialError::Handshake(error) = &error {
                    core.refusals.note_end(error);
                }
                log_failure(core, node, seat, &error, &away_log, away_since);
                if let DialError::Handshake(HandshakeError::Retired) = error {
                    core.handler.on_retired(seat);
                }
            }
        }
        attempt += 1;
        let pause = backoff.pause();
        if shard == FIRST_SHARD {
            chronik_ring::sleep(pause.min(first_pause_max)).await;
        } else if within(pause, node.risen()).await.is_some() {
            backoff.reset();
        }
    }
}

fn is_wanted(node: &Node, shard: ShardId) -> bool {
    !node.is_removed.get() && shard.0 < node.shards.get()
}

/// So that every pair of seats begins its jitter elsewhere.
fn number(seat: Seat) -> u64 {
    u64::from(seat.node.0) << 32 | u64::from(seat.shard.0)
}

fn log_failure<H: PeerHandler>(
    core: &Core<H>,
    node: &Node,
    seat: Seat,
    error: &DialError,
    away_log: &LogLimit,
    away_since: Instant,
) {
    let now = now();
    let away_s = now.saturating_duration_since(away_since).as_secs();
    let (is_refusal, speaks) = (error.is_refusal(), core.speaks_for_node(seat));
    if !is_refusal && !speaks {
        tracing::debug!(peer = %seat, away_s, "no link: {error}");
        return;
    }
    let limit = if is_refusal && speaks { &node.log } else { away_log };
    if let Some(suppressed) = limit.allow(now) {
        tracing::warn!(peer = %seat, away_s, suppressed, "no link: {error}");
    }
}

async fn connect<H: PeerHandler>(
    core: &Rc<Core<H>>,
    node: &Node,
    seat: Seat,
    attempt: usize,
) -> Result<(Socket, Met), DialError> {
    let address = find(node, seat, attempt).await?;
    let limit = core.config.connect_timeout;
    let connecting = Socket::connect(address, &core.socket_options);
    let socket =
        within(limit, connecting).await.ok_or(DialError::Timeout)?.map_err(DialError::Connect)?;
    let is_retired = |node_uuid| core.handler.is_retired(node_uuid);
    let opening = handshake::open(&core.config, &socket, seat, is_retired, &core.read_buffer);
    let met = within(limit, opening).await.ok_or(DialError::Timeout)??;
    if seat.shard == FIRST_SHARD {
        node.found_at.set(Some(address));
    }
    Ok((socket, met))
}

/// I2. A name may have several addresses, which are tried in turn.
async fn find(node: &Node, seat: Seat, attempt: usize) -> Result<SocketAddr, DialError> {
    if seat.shard != FIRST_SHARD {
        return node.found_at.get().ok_or(DialError::NoAddress);
    }
    let name = node.raft_addr.borrow().clone();
    let addresses = resolve(&name).await.map_err(DialError::Address)?;
    let turn = attempt.checked_rem(addresses.len()).ok_or(DialError::NoAddress)?;
    addresses.get(turn).copied().ok_or(DialError::NoAddress)
}
