//! Formation on real sockets and a real disk: it blocks until this node is part of a cluster.
//!
//! One thread, the caller's, decides; it owns [`Forming`] and the file. Threads around it only move bytes: one that
//! listens, one for each connection that it takes, one for each peer. They tell what happened over one bounded channel.
//!
//! - I1: the state is saved before anything leaves that was made after it changed. One place sends: after `save`.
//! - I2: when [`form`] returns, the Raft address is free for who listens there next.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chronik_engine::ids::NodeId;

use super::answer::{FormedAnswerer, unreadable};
use super::check::{check_own_address, check_peers};
use super::durable::{Durable, Formed};
use super::error::FormError;
use super::forming::{Draw, Forming, Timing};
use super::ids::NodeUuid;
use super::list::{ListedNode, NodeList};
use super::net::{Ask, Event, ask_peer, listen, now};
use super::peer::PeerProblem;
use super::protocol::{Envelope, Refusal, Reply};
use super::report::Reporter;
use super::seal::Seal;
use super::store::FormationStore;

/// How often time is told to [`Forming`].
const TICK: Duration = Duration::from_millis(10);
/// How long a node that has formed a cluster goes on telling the others.
const TELL: Duration = Duration::from_millis(500);
/// What may wait to be decided; who has more waits.
const EVENTS_MAX: usize = 256;

/// What a node needs to find its cluster.
pub struct FormConfig {
    /// This node.
    pub own: NodeId,
    /// The name of its disk, for a data directory in which there is no `formation.bin` yet; one that is there has its own.
    pub node_uuid: NodeUuid,
    /// The static list, the same on every node.
    pub nodes: Vec<ListedNode>,
    /// The own Raft address.
    pub listen: SocketAddr,
    /// Where `formation.bin` lies. Exists, and is locked by this process.
    pub data_dir: PathBuf,
    /// The secret of the cluster.
    pub seal: Seal,
    /// Between two probes of a peer that answers, and at most between two of one that does not.
    pub probe_interval: Duration,
    /// Where random numbers come from.
    pub draw: Draw,
}

impl std::fmt::Debug for FormConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FormConfig")
            .field("own", &self.own)
            .field("nodes", &self.nodes)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// A node that is part of a cluster.
#[derive(Debug)]
pub struct FormedCluster {
    /// The disk under whose name the node is part of it.
    pub node_uuid: NodeUuid,
    /// The cluster, and what this node is in it.
    pub formed: Formed,
    /// Answers the nodes that come later.
    pub answerer: FormedAnswerer,
}

/// Finds the cluster of this node, or forms it with the others. Blocks until then, or until `cancel` is set. A node
/// that was part of a cluster before is at once.
///
/// # Errors
/// What must be corrected first; or it was cancelled.
pub fn form(mut config: FormConfig, cancel: &AtomicBool) -> Result<FormedCluster, FormError> {
    let list = NodeList::new(std::mem::take(&mut config.nodes), config.own)?;
    let store = FormationStore::new(&config.data_dir);
    let durable = match store.load(config.own)? {
        Some(durable) => durable,
        None => {
            let durable = Durable::empty(config.own, config.node_uuid);
            store.save(&durable)?;
            durable
        }
    };
    let seal = config.seal.clone();
    let durable = if durable.formed.is_some() {
        check_peers(&list, &seal, &durable, &mut config.draw)?;
        durable
    } else {
        check_own_address(&list, &seal, &durable, &mut config.draw)?;
        Runner::start(config, list.clone(), store, durable)?.run(cancel)?
    };
    let (Some(formed), Some(answerer)) = (durable.formed.clone(), durable.answerer(list, seal))
    else {
        return Err(FormError::Cancelled);
    };
    Ok(FormedCluster { node_uuid: durable.node_uuid, formed, answerer })
}

/// A peer's thread, as seen from here.
struct PeerThread {
    id: NodeId,
    asks: SyncSender<Ask>,
}

struct Runner {
    forming: Forming,
    store: FormationStore,
    seal: Seal,
    reporter: Reporter,
    begun: Instant,
    formed_at: Option<Instant>,
    peers: Vec<PeerThread>,
    events: Receiver<Event>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Runner {
    fn start(
        config: FormConfig,
        list: NodeList,
        store: FormationStore,
        durable: Durable,
    ) -> Result<Runner, FormError> {
        let failed = |source| FormError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (sender, events) = sync_channel(EVENTS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let mut peers = Vec::with_capacity(list.nodes().len());
        for node in list.nodes().iter().filter(|node| node.id != config.own) {
            let (id, address, events) = (node.id, node.raft_addr.clone(), sender.clone());
            let (asks, asked) = sync_channel(1);
            // It ends when its channel does, or with its last exchange. A name server may take longer than that;
            // nobody waits for it.
            drop(spawn(move || ask_peer(id, &address, &asked, &events))?);
            peers.push(PeerThread { id, asks });
        }
        let stopped = Arc::clone(&stop);
        let listener = spawn(move || listen(&listener, &sender, &stopped))?;
        let interval_ms = u64::try_from(config.probe_interval.as_millis()).unwrap_or(u64::MAX);
        let timing = Timing::new(interval_ms.clamp(1, 3_600_000));
        Ok(Runner {
            forming: Forming::new(list, durable, timing, config.draw, 0),
            store,
            seal: config.seal,
            reporter: Reporter::new(0),
            begun: now(),
            formed_at: None,
            peers,
            events,
            stop,
            listener: Some(listener),
        })
    }

    fn run(mut self, cancel: &AtomicBool) -> Result<Durable, FormError> {
        let outcome = self.run_until_formed(cancel);
        self.stop.store(true, Ordering::Release);
        if let Some(listener) = self.listener.take() {
            // I2. It panics nowhere; if it did, its socket is closed as well.
            drop(listener.join());
        }
        outcome
    }

    fn run_until_formed(&mut self, cancel: &AtomicBool) -> Result<Durable, FormError> {
        loop {
            self.send_requests()?;
            if self.is_done() {
                return Ok(self.forming.durable().clone());
            }
            if cancel.load(Ordering::Acquire) {
                return Err(FormError::Cancelled);
            }
            match self.events.recv_timeout(TICK) {
                Ok(event) => self.on_event(event)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            let now_ms = self.now_ms();
            self.forming.tick(now_ms);
            self.save()?;
            if let Some(impossible) = self.forming.impossible() {
                return Err(impossible.clone().into());
            }
            if let Some(sentence) = self.reporter.next(&self.forming, now_ms) {
                tracing::warn!("{sentence}");
            }
        }
    }

    /// Whether there is a cluster, and those know who helped to form it and can be told.
    fn is_done(&mut self) -> bool {
        if self.forming.formed().is_none() {
            return false;
        }
        let formed_at = *self.formed_at.get_or_insert_with(now);
        self.forming.is_done() || now().saturating_duration_since(formed_at) >= TELL
    }

    fn send_requests(&mut self) -> Result<(), FormError> {
        let now_ms = self.now_ms();
        for at in 0..self.peers.len() {
            let id = self.peers[at].id;
            let Some(request) = self.forming.next_request(id, now_ms) else { continue };
            self.save()?;
            let exchange = request.exchange;
            let body = self.seal.request(&request).unwrap_or_default();
            if self.peers[at].asks.try_send(Ask { exchange, body }).is_err() {
                self.forming.on_silence(id, exchange, PeerProblem::NoAnswer, now_ms);
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<(), FormError> {
        match event {
            Event::Request { body, from, reply } => {
                let body = self.answer(&body, from)?;
                // Who asked may be gone.
                _ = reply.try_send(body);
            }
            Event::Ended { peer, exchange, outcome } => {
                let now_ms = self.now_ms();
                match outcome
                    .and_then(|body| self.seal.open_reply(&body).map_err(|error| error.problem()))
                {
                    Ok(reply) => self.on_reply(peer, exchange, reply),
                    Err(problem) => self.forming.on_silence(peer, exchange, problem, now_ms),
                }
            }
        }
        Ok(())
    }

    fn on_reply(&mut self, peer: NodeId, exchange: u64, mut reply: Envelope<Reply>) {
        let now_ms = self.now_ms();
        let is_unreadable =
            matches!(reply.message, Reply::Refused(Refusal::Unsealed | Refusal::Malformed));
        if is_unreadable {
            // It could not read which exchange this is.
            reply.exchange = exchange;
        }
        if reply.exchange == exchange {
            self.forming.on_reply(peer, reply, now_ms);
        } else {
            self.forming.on_silence(peer, exchange, PeerProblem::Garbled, now_ms);
        }
    }

    /// The reply to a request; what it promises is durable.
    fn answer(&mut self, body: &[u8], from: SocketAddr) -> Result<Vec<u8>, FormError> {
        let reply = match self.seal.open_request(body) {
            Ok(request) => self.forming.on_request(request, self.now_ms()),
            Err(error) => {
                tracing::debug!("formation: {from}: {error}");
                let durable = self.forming.durable();
                unreadable(&error, durable.node, durable.node_uuid, self.forming.list())
            }
        };
        self.save()?;
        // Encoding to memory does not fail; an empty body is refused by whoever gets it.
        Ok(self.seal.reply(&reply).unwrap_or_default())
    }

    fn save(&mut self) -> Result<(), FormError> {
        if self.forming.is_unsaved() {
            self.store.save(self.forming.durable())?;
            self.forming.on_saved();
        }
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        let elapsed = now().saturating_duration_since(self.begun);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }
}

pub(super) fn spawn(run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, FormError> {
    let thread = std::thread::Builder::new().name("chronik-form".to_owned());
    thread.spawn(run).map_err(|source| FormError::Thread { source })
}
