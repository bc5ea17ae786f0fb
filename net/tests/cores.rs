//! A core among others: connections that move, and bursts that must not keep the rest of the core waiting.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod common;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use chronik_net::client::{Client, encode_request};
use chronik_net::{
    ConnectionContext, Enqueued, HttpRequest, HttpResponse, ListenerKind, MovedConnection,
    NetSettings, NetStats, Request, RequestHandler, RequestKind, Server,
};
use common::{PATIENCE, assert_works, read_to_close};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

/// What the tests see of the cores.
#[derive(Debug, Default)]
struct Seen {
    /// How often the cores have been around.
    rounds: AtomicU64,
    /// The most requests, and the most connections accepted, in one round.
    requests_in_a_round: AtomicU64,
    accepted_in_a_round: AtomicU64,
    /// Requests that core 1 was asked.
    asked_of_second: AtomicU64,
    /// Holds the cores while it is set, and whether they are held.
    hold: AtomicBool,
    held: AtomicBool,
}

/// Votes for core 1, and takes a little while for each request.
struct Voter {
    here: u16,
    seen: Arc<Seen>,
    round: Cell<(u64, u64)>,
    leaving: Rc<RefCell<Vec<MovedConnection>>>,
}

impl RequestHandler for Voter {
    async fn enqueue(&self, connection: &ConnectionContext, request: Request) -> Enqueued {
        connection.affinity.vote(1, self.here);
        if self.here == 1 {
            self.seen.asked_of_second.fetch_add(1, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_micros(20));
        let now = self.seen.rounds.load(Ordering::SeqCst);
        let (round, before) = self.round.get();
        let requests = if round == now { before + 1 } else { 1 };
        self.round.set((now, requests));
        self.seen.requests_in_a_round.fetch_max(requests, Ordering::SeqCst);
        match request.body {
            RequestKind::Produce(_) => Enqueued::respond(ProduceResponse::default()),
            _ => Enqueued::respond(MetadataResponse::default().with_throttle_time_ms(-1)),
        }
    }

    fn hand_over(&self, target: u16, connection: MovedConnection) {
        assert_eq!((self.here, target), (0, 1));
        self.leaving.borrow_mut().push(connection);
    }

    async fn http(&self, _connection: &ConnectionContext, _request: HttpRequest) -> HttpResponse {
        HttpResponse::text(200, "")
    }
}

/// Two servers that play two cores.
struct Cores {
    addresses: [SocketAddr; 2],
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    executor: ExecutorJoinHandle<[NetStats; 2]>,
}

impl Cores {
    fn start(settings: NetSettings) -> Cores {
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let (tell, told) = mpsc::channel();
        let (seen_there, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(1 << 20)
            .spawn(move || async move {
                let notifier = chronik_ring::Notifier::new().unwrap();
                let serving = serve(settings, seen_there, stopped, tell);
                chronik_ring::run(notifier, serving).await.unwrap()
            })
            .unwrap();
        let addresses = told.recv().unwrap();
        Cores { addresses, seen, stop, executor }
    }

    fn client(&self, core: usize) -> Client {
        Client::connect(self.addresses[core], PATIENCE).unwrap()
    }

    fn stop(self) -> [NetStats; 2] {
        self.stop.store(true, Ordering::SeqCst);
        self.executor.join().unwrap()
    }
}

async fn serve(
    settings: NetSettings,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    tell: mpsc::Sender<[SocketAddr; 2]>,
) -> [NetStats; 2] {
    let leaving = Rc::new(RefCell::new(Vec::new()));
    let servers = [0, 1].map(|here| {
        let (seen, leaving) = (Arc::clone(&seen), Rc::clone(&leaving));
        let voter = Voter { here, seen, round: Cell::default(), leaving };
        Server::new(Rc::new(voter), settings.clone())
    });
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let addresses = [0, 1].map(|at: usize| servers[at].listen(any, ListenerKind::Kafka).unwrap());
    tell.send(addresses).unwrap();
    let mut accepted_before = 0;
    while !stop.load(Ordering::SeqCst) {
        while seen.hold.load(Ordering::SeqCst) {
            seen.held.store(true, Ordering::SeqCst);
            std::thread::yield_now();
        }
        for moved in leaving.take() {
            servers[1].adopt(moved);
        }
        let accepted = servers[0].stats().connections_accepted;
        seen.accepted_in_a_round.fetch_max(accepted - accepted_before, Ordering::SeqCst);
        accepted_before = accepted;
        seen.rounds.fetch_add(1, Ordering::SeqCst);
        chronik_ring::yield_now().await;
    }
    for server in &servers {
        server.shutdown(Duration::from_secs(5)).await;
    }
    servers.map(|server| server.stats())
}

fn metadata(id: i32) -> Bytes {
    encode_request(&MetadataRequest::default().with_topics(None), 4, id, None).unwrap()
}

fn produce(id: i32, bytes: usize) -> Bytes {
    let partition = PartitionProduceData::default().with_records(Some(Bytes::from(vec![7; bytes])));
    let topic = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_static_str("t")))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic]);
    encode_request(&request, 9, id, None).unwrap()
}

#[test]
fn given_a_connection_at_the_limit_when_it_is_moved_then_it_counts_where_it_was_accepted() {
    let cores = Cores::start(NetSettings { connections_max: 1, ..NetSettings::default() });
    let mut moved = cores.client(0);
    while cores.seen.asked_of_second.load(Ordering::SeqCst) == 0 {
        assert_works(&mut moved);
    }
    assert!(read_to_close(&mut cores.client(0)).is_empty(), "the first core's place is taken");
    assert_works(&mut cores.client(1));
    drop(moved);
    // The place is free once the server has seen the close: try until it has.
    let request = MetadataRequest::default().with_topics(None);
    assert!((0..1000).any(|_| cores.client(0).call(&request, 12).is_ok()));
    let [first, second] = cores.stop();
    assert!(first.connections_refused >= 1);
    assert_eq!((first.connections_handed_over, second.connections_refused), (1, 0));
}

#[test]
fn given_frames_of_all_sizes_in_pieces_when_the_connection_moves_then_no_answer_is_lost_or_moved() {
    for piece in [7, 1000, 4096, 65_536, 1 << 20] {
        let cores = Cores::start(NetSettings::default());
        let frames: Vec<Bytes> = (0..400)
            .map(|id| match id % 50 {
                // Around the vote that decides, too, and received into a buffer of its own.
                28 | 29 if piece > 7 => produce(id, 300_000),
                _ => metadata(id),
            })
            .collect();
        // The last one waits for the others' answers: only then must the connection have moved.
        let (last, frames) = frames.split_last().unwrap();
        let stream: Vec<u8> = frames.iter().flat_map(|frame| frame.iter().copied()).collect();
        let mut client = cores.client(0);
        let mut writer = client.stream().try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                writer.set_nodelay(true).unwrap();
                for piece in stream.chunks(piece) {
                    writer.write_all(piece).unwrap();
                }
            });
            for id in 0..400 {
                if id == 399 {
                    client.stream().write_all(last).unwrap();
                }
                let frame = client.receive_frame().unwrap();
                assert_eq!(frame[..4], i32::to_be_bytes(id), "pieces of {piece}");
            }
        });
        let [first, second] = cores.stop();
        assert_eq!(first.connections_handed_over, 1, "pieces of {piece}");
        assert_eq!(first.requests + second.requests, 400);
    }
}

#[test]
fn given_a_burst_of_small_requests_when_they_are_served_then_others_run_in_between() {
    const REQUESTS: i32 = 2000;
    let cores = Cores::start(NetSettings::default());
    let mut client = cores.client(1);
    let burst: Vec<u8> = (0..REQUESTS).flat_map(|id| metadata(id).to_vec()).collect();
    let mut writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&burst).unwrap());
        for _ in 0..REQUESTS {
            client.receive_frame().unwrap();
        }
    });
    let most = cores.seen.requests_in_a_round.load(Ordering::SeqCst);
    assert!(most < 200, "{most} requests in one round of the core");
    cores.stop();
}

#[test]
fn given_a_burst_of_connections_when_they_are_accepted_then_others_run_in_between() {
    const CONNECTIONS: u64 = 300;
    let cores = Cores::start(NetSettings::default());
    cores.seen.hold.store(true, Ordering::SeqCst);
    while !cores.seen.held.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    let streams: Vec<TcpStream> =
        (0..CONNECTIONS).map(|_| TcpStream::connect(cores.addresses[0]).unwrap()).collect();
    cores.seen.hold.store(false, Ordering::SeqCst);
    assert_works(&mut cores.client(0));
    let most = cores.seen.accepted_in_a_round.load(Ordering::SeqCst);
    assert!(most < CONNECTIONS / 2, "{most} connections in one round of the core");
    drop(streams);
    cores.stop();
}
