//! Nodes on one core, on real loopback sockets, and peers that are played by hand.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};
use chronik_replication::peers::{
    Accepted, Acceptor, AcceptorConfig, PeerHandler, PeerNode, Peers, PeersConfig, RaftPort,
    Replier,
};
use chronik_replication::wire::{
    Call, CallRefused, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind,
    Hello, LeaderNotice, ReceivedMark, Refused, RefusedReason, Seat, Versions, Welcome,
};
use chronik_replication::{Entry, Message, MessageType, PeerMessage};
use glommio::{LocalExecutorBuilder, Placement};
use uuid::Uuid;

/// No test waits longer for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const CLUSTER: Uuid = Uuid::from_u128(77);

/// Calls that the recorder answers in its own way.
pub const CALL_ECHO: u8 = 1;
pub const CALL_REFUSE: u8 = 2;
pub const CALL_DROP: u8 = 3;
pub const CALL_KEEP: u8 = 4;

/// Runs the body of a test on a core, with the log lines of that core in hand.
pub fn on_a_core<Fut: Future<Output = ()> + 'static>(
    body: impl FnOnce(Log) -> Fut + Send + 'static,
) {
    let log = Log::default();
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .spawn(move || async move {
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .finish();
            let _logging = tracing::subscriber::set_default(subscriber);
            let notifier = chronik_ring::Notifier::new().unwrap();
            chronik_ring::run(notifier, body(log)).await.unwrap();
        })
        .unwrap()
        .join()
        .unwrap();
}

/// The lines that a core has logged.
#[derive(Debug, Default, Clone)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn count(&self, text: &str) -> usize {
        let log = self.0.lock().unwrap();
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until it is so.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        chronik_ring::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs blocking code beside the core.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    finished(std::thread::spawn(work)).await
}

pub async fn finished<T>(thread: JoinHandle<T>) -> T {
    eventually("a thread that ends", || thread.is_finished()).await;
    thread.join().unwrap()
}

pub fn seat(node: u32, shard: u16) -> Seat {
    Seat { node: NodeId(node), shard: ShardId(shard) }
}

/// A small message that carries a number.
pub fn numbered(number: u64) -> PeerMessage {
    let mut message = Message { to: 2, from: 1, term: 1, commit: number, ..Message::default() };
    message.set_msg_type(MessageType::MsgHeartbeat);
    PeerMessage { group: GroupId(number % 7), message }
}

/// A message with one entry of so many bytes, that carries a number.
pub fn append(number: u64, payload: Bytes) -> PeerMessage {
    let mut message = Message { to: 2, from: 1, term: 1, index: number, ..Message::default() };
    message.set_msg_type(MessageType::MsgAppend);
    let entry = Entry { term: 1, index: number + 1, data: payload, ..Entry::default() };
    message.set_entries(vec![entry].into());
    PeerMessage { group: GroupId(1), message }
}

/// A snapshot of so many bytes.
pub fn snapshot(bytes: usize) -> PeerMessage {
    let mut message = Message { to: 2, from: 1, term: 1, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.mut_snapshot().data = (0..=250).cycle().take(bytes).collect::<Vec<u8>>().into();
    message.mut_snapshot().mut_metadata().index = 3;
    message.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1, 2];
    PeerMessage { group: GroupId(1), message }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Up(Seat),
    Down(Seat),
}

/// Remembers what it hears.
#[derive(Debug, Default)]
pub struct Recorder {
    pub changes: RefCell<Vec<Change>>,
    pub messages: RefCell<Vec<(Seat, PeerMessage)>>,
    pub notices: RefCell<Vec<LeaderNotice>>,
    pub received: RefCell<Vec<(Seat, ReceivedMark)>>,
    pub dropped: RefCell<Vec<(Seat, GroupId, ReplicaId)>>,
    pub kept: RefCell<Vec<Replier>>,
    /// Parts of snapshots that peers have taken, and what is to get stuck with which of them.
    pub parts_taken: Cell<usize>,
    pub sticks: RefCell<Option<(usize, Arc<Mutex<bool>>)>>,
    /// The data directories that count no more, as far as this one knows.
    pub retired: RefCell<Vec<Uuid>>,
    /// Who says so of this one.
    pub retired_by: RefCell<Vec<Seat>>,
}

impl Recorder {
    pub fn ups(&self, seat: Seat) -> usize {
        self.changes.borrow().iter().filter(|change| **change == Change::Up(seat)).count()
    }

    pub fn downs(&self, seat: Seat) -> usize {
        self.changes.borrow().iter().filter(|change| **change == Change::Down(seat)).count()
    }

    /// The numbers of what came from a seat.
    pub fn numbers(&self, from: Seat) -> Vec<u64> {
        let messages = self.messages.borrow();
        let from_seat = messages.iter().filter(|(seat, _)| *seat == from);
        from_seat.map(|(_, message)| message.message.commit.max(message.message.index)).collect()
    }
}

impl PeerHandler for Recorder {
    fn on_messages(&self, from: Seat, messages: Vec<PeerMessage>) {
        self.messages.borrow_mut().extend(messages.into_iter().map(|message| (from, message)));
    }

    fn on_notices(&self, _from: Seat, notices: Vec<LeaderNotice>) {
        self.notices.borrow_mut().extend(notices);
    }

    fn on_received(&self, from: Seat, marks: Vec<ReceivedMark>) {
        self.received.borrow_mut().extend(marks.into_iter().map(|mark| (from, mark)));
    }

    fn on_call(&self, _from: Seat, call: Call, reply: Replier) {
        match call.kind {
            CALL_ECHO => reply.answer(call.body),
            CALL_REFUSE => reply.refuse(CallRefused::NotLeader { leader: Some(NodeId(9)) }),
            CALL_KEEP => self.kept.borrow_mut().push(reply),
            _ => drop(reply),
        }
    }

    fn on_up(&self, seat: Seat) {
        self.changes.borrow_mut().push(Change::Up(seat));
    }

    fn on_down(&self, seat: Seat) {
        self.changes.borrow_mut().push(Change::Down(seat));
    }

    fn on_dropped(&self, to: Seat, group: GroupId, replica: ReplicaId) {
        self.dropped.borrow_mut().push((to, group, replica));
    }

    fn on_part_taken(&self, _to: Seat, _group: GroupId, _replica: ReplicaId) {
        self.parts_taken.set(self.parts_taken.get() + 1);
        self.sticks.borrow_mut().take_if(|(parts, stuck)| {
            let is_now = self.parts_taken.get() >= *parts;
            *stuck.lock().unwrap() |= is_now;
            is_now
        });
    }

    fn is_retired(&self, node_uuid: Uuid) -> bool {
        self.retired.borrow().contains(&node_uuid)
    }

    fn on_retired(&self, by: Seat) {
        self.retired_by.borrow_mut().push(by);
    }
}

/// One shard of a node.
#[derive(Clone)]
pub struct TestSeat {
    pub peers: Rc<Peers<Recorder>>,
    pub seen: Rc<Recorder>,
}

type Elsewhere = Box<dyn Fn(Accepted)>;

/// The Raft port of a node: gives connections to its shards.
#[derive(Default)]
pub struct Port {
    pub seats: RefCell<Vec<TestSeat>>,
    pub hellos: RefCell<Vec<Instant>>,
    /// Takes the connections of shards that are not here.
    pub elsewhere: RefCell<Option<Elsewhere>>,
}

impl RaftPort for Port {
    fn on_hello(&self, accepted: Accepted) {
        self.hellos.borrow_mut().push(Instant::now());
        let seat = self.seats.borrow().get(usize::from(accepted.hello().to.0)).cloned();
        match seat {
            Some(seat) => seat.peers.adopt(accepted),
            None => match &*self.elsewhere.borrow() {
                Some(take) => take(accepted),
                None => accepted.refuse(RefusedReason::UnknownShard),
            },
        }
    }

    async fn on_discovery(&self, body: Bytes) -> Option<Bytes> {
        chronik_ring::yield_now().await;
        (body != "nothing").then(|| body.iter().rev().copied().collect())
    }
}

/// A node with its port, on this core.
pub struct TestNode {
    pub id: u32,
    pub port: Rc<Port>,
    pub address: SocketAddr,
    _acceptor: Acceptor,
}

impl TestNode {
    pub fn start(id: u32) -> TestNode {
        let config =
            AcceptorConfig { first_frame_timeout: Duration::from_millis(200), connections_max: 4 };
        let port = Rc::new(Port::default());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let acceptor = Acceptor::listen(any, config, Rc::clone(&port)).unwrap();
        TestNode { id, port, address: acceptor.local_addr(), _acceptor: acceptor }
    }

    /// Starts its shards, which know each other's nodes by these addresses.
    pub fn open(&self, shards: u16, nodes: &[(u32, SocketAddr)], adapt: impl Fn(&mut PeersConfig)) {
        let seats = (0..shards).map(|shard| {
            let node_uuid = Uuid::from_u128(u128::from(self.id) + 1000);
            let mut config = PeersConfig::new(seat(self.id, shard), node_uuid, CLUSTER, shards);
            config.secret = Some(Rc::from(&b"the secret of the cluster"[..]));
            adapt(&mut config);
            let seen = Rc::new(Recorder::default());
            let peers = Rc::new(Peers::new(config, Rc::clone(&seen)));
            TestSeat { peers, seen }
        });
        *self.port.seats.borrow_mut() = seats.collect();
        for shard in 0..shards {
            self.seat(shard).peers.set_nodes(peer_nodes(nodes));
        }
    }

    pub fn seat(&self, shard: u16) -> TestSeat {
        self.port.seats.borrow()[usize::from(shard)].clone()
    }

    pub async fn close(&self) {
        let seats = self.port.seats.take();
        for seat in seats {
            seat.peers.close().await;
        }
    }
}

pub fn peer_nodes(nodes: &[(u32, SocketAddr)]) -> Vec<PeerNode> {
    let node = |(id, address): &(u32, SocketAddr)| PeerNode {
        node: NodeId(*id),
        raft_addr: address.to_string(),
    };
    nodes.iter().map(node).collect()
}

/// Nodes 1 and 2 with a shard each, linked.
pub async fn two_linked(adapt: impl Fn(&mut PeersConfig)) -> (TestNode, TestNode) {
    let (one, two) = (TestNode::start(1), TestNode::start(2));
    let nodes = [(1, one.address), (2, two.address)];
    one.open(1, &nodes, &adapt);
    two.open(1, &nodes, &adapt);
    linked(&one, &two, 1).await;
    (one, two)
}

/// Waits for the link of the first shards to be there for the `times`th time, on both sides.
pub async fn linked(one: &TestNode, two: &TestNode, times: usize) {
    let (here, there) = (one.seat(0).seen, two.seat(0).seen);
    let (one, two) = (seat(one.id, 0), seat(two.id, 0));
    eventually("a link", || here.ups(two) >= times && there.ups(one) >= times).await;
}

/// A connection that is played by hand.
pub struct ByHand(pub TcpStream);

impl ByHand {
    pub fn connect(address: SocketAddr) -> ByHand {
        ByHand::from(TcpStream::connect(address).unwrap())
    }

    pub fn from(stream: TcpStream) -> ByHand {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ByHand(stream)
    }

    pub fn send(&mut self, frame: &Frame) {
        self.0.write_all(&frame.parts().concat()).unwrap();
    }

    /// The next frame; `None` at the end.
    pub fn receive(&mut self) -> Option<(FrameKind, Bytes)> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.0.read_exact(&mut header).ok()?;
        let header = FrameHeader::decode(&header, FRAME_BODY_BYTES_MAX).unwrap();
        let mut body = vec![0; header.body_bytes as usize];
        self.0.read_exact(&mut body).ok()?;
        header.check_body(&body).unwrap();
        Some((header.kind, Bytes::from(body)))
    }

    /// Everything up to the end.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// The opener's handshake, without a secret. Returns why it is refused, if it is.
    pub fn open_as(&mut self, hello: &Hello) -> Result<(), RefusedReason> {
        self.send(&hello.to_frame());
        self.expect(FrameKind::Welcome)?;
        let node_uuid = hello.node_uuid;
        self.send(&Welcome { node_uuid, ..welcome(hello.node.0, hello.nonce) }.to_frame());
        self.expect(FrameKind::Ping).map(drop)
    }

    /// The acceptor's.
    pub fn answer(&mut self) {
        let hello = Hello::decode(&self.expect(FrameKind::Hello).unwrap()).unwrap();
        self.send(&welcome(hello.to_node.0, [2; 32]).to_frame());
        self.expect(FrameKind::Welcome).unwrap();
        self.send(&Frame::new(FrameKind::Ping, Vec::new()));
    }

    fn expect(&mut self, expected: FrameKind) -> Result<Bytes, RefusedReason> {
        let (kind, body) = self.receive().expect("a frame");
        if kind == FrameKind::Refused {
            return Err(Refused::decode(&body).unwrap().reason);
        }
        assert_eq!(kind, expected);
        Ok(body)
    }
}

/// What node `from` says to the first shard of node `to`.
pub fn hello(from: u32, to: u32) -> Hello {
    Hello {
        versions: Versions::OWN,
        cluster: CLUSTER,
        node: NodeId(from),
        node_uuid: Uuid::from_u128(u128::from(from) + 5000),
        from: ShardId(0),
        to_node: NodeId(to),
        to: ShardId(0),
        nonce: [1; 32],
    }
}

fn welcome(node: u32, nonce: [u8; 32]) -> Welcome {
    let node_uuid = Uuid::from_u128(u128::from(node) + 5000);
    Welcome {
        node: NodeId(node),
        node_uuid,
        shards: 1,
        version: Versions::OWN.newest,
        nonce,
        proof: [0; 32],
    }
}
