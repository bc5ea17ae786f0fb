//! A toy broker on a real loopback socket, and random requests.
#![allow(dead_code)] // every test binary uses its own part

pub mod requests;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use chronik_net::client::Client;
use chronik_net::{
    CloseReason, ConnectionContext, DrainReport, Enqueued, FetchPartitionParts, FetchResponseParts,
    FetchTopicParts, Finished, HttpRequest, HttpResponse, ListenerKind, NetSettings, NetStats,
    RecordChunk, Request, RequestHandler, RequestKind, ResponseBody, Server,
};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use kafka_protocol::messages::{
    ListOffsetsResponse, MetadataRequest, MetadataResponse, OffsetForLeaderEpochResponse,
    ProduceResponse,
};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// An answer that comes when it is told to.
#[derive(Default)]
struct Later {
    done: bool,
    waker: Option<Waker>,
}

impl Later {
    fn finish(later: &Rc<RefCell<Self>>) {
        let mut later = later.borrow_mut();
        later.done = true;
        if let Some(waker) = later.waker.take() {
            waker.wake();
        }
    }

    async fn wait(later: Rc<RefCell<Self>>) {
        poll_fn(|cx| {
            let mut later = later.borrow_mut();
            if later.done {
                return Poll::Ready(());
            }
            later.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// What each API does:
/// - Metadata is answered at once, the throttle time tells how many topics were asked for.
/// - ListOffsets waits until as many of them wait as `isolation_level` says, then all are finished
///   from the last to the first; the throttle time repeats `replica_id`.
/// - Produce answers the number of record bytes as throttle time, or nothing for acks 0.
/// - Fetch answers `max_bytes` record bytes; with a `max_wait_ms` it is parked until the drain.
/// - OffsetForLeaderEpoch is answered some time after the drain began.
/// - DeleteTopics closes, CreateTopics is never answered.
#[derive(Default)]
pub struct Toy {
    waiting: RefCell<Vec<Rc<RefCell<Later>>>>,
    until_drain: RefCell<Vec<Rc<RefCell<Later>>>>,
}

impl Toy {
    fn at_drain(&self, answer: impl Into<ResponseBody> + 'static) -> Enqueued {
        let later = Rc::new(RefCell::new(Later::default()));
        self.until_drain.borrow_mut().push(Rc::clone(&later));
        Enqueued::finish_with(async move {
            Later::wait(later).await;
            Finished::Response(answer.into())
        })
    }

    fn list_offsets(&self, replica_id: i32, together: usize) -> Enqueued {
        let later = Rc::new(RefCell::new(Later::default()));
        self.waiting.borrow_mut().push(Rc::clone(&later));
        if self.waiting.borrow().len() >= together {
            for later in self.waiting.take().iter().rev() {
                Later::finish(later);
            }
        }
        Enqueued::finish_with(async move {
            Later::wait(later).await;
            let response = ListOffsetsResponse::default().with_throttle_time_ms(replica_id);
            Finished::Response(response.into())
        })
    }
}

impl RequestHandler for Toy {
    async fn enqueue(&self, _connection: &ConnectionContext, request: Request) -> Enqueued {
        match request.body {
            RequestKind::Metadata(body) => {
                let topics = body.topics.map_or(-1, |topics| i32::try_from(topics.len()).unwrap());
                Enqueued::respond(MetadataResponse::default().with_throttle_time_ms(topics))
            }
            RequestKind::ListOffsets(body) => {
                let together = usize::try_from(body.isolation_level).unwrap();
                self.list_offsets(body.replica_id.0, together)
            }
            RequestKind::Produce(body) => {
                if body.acks == 0 {
                    return Enqueued::Ready(Finished::NoResponse);
                }
                let bytes: usize = body
                    .topic_data
                    .iter()
                    .flat_map(|topic| &topic.partition_data)
                    .filter_map(|partition| partition.records.as_ref())
                    .map(Bytes::len)
                    .sum();
                assert!(request.retained_bytes >= bytes);
                let bytes = i32::try_from(bytes).unwrap();
                Enqueued::respond(ProduceResponse::default().with_throttle_time_ms(bytes))
            }
            RequestKind::Fetch(body) => {
                let answer = fetch_answer(usize::try_from(body.max_bytes).unwrap());
                if body.max_wait_ms > 0 {
                    return self.at_drain(answer);
                }
                Enqueued::respond(answer)
            }
            RequestKind::OffsetForLeaderEpoch(_) => {
                self.at_drain(OffsetForLeaderEpochResponse::default())
            }
            RequestKind::DeleteTopics(_) => {
                Enqueued::Ready(Finished::Close(CloseReason::Handler { what: "told to" }))
            }
            _ => Enqueued::finish_with(std::future::pending()),
        }
    }

    async fn http(&self, _connection: &ConnectionContext, request: HttpRequest) -> HttpResponse {
        let text = format!("{:?} {} {:?}", request.method, request.path, request.query);
        HttpResponse::text(200, [text.into_bytes(), request.body.to_vec()].concat())
    }
}

fn fetch_answer(bytes: usize) -> FetchResponseParts {
    let chunk = Bytes::from(vec![7u8; 100_000]);
    let mut records = vec![RecordChunk::Raw(chunk.clone()); bytes / chunk.len()];
    records.push(RecordChunk::Raw(chunk.slice(..bytes % chunk.len())));
    let partition = FetchPartitionParts { records, ..Default::default() };
    let topic = FetchTopicParts { partitions: vec![partition], ..Default::default() };
    FetchResponseParts { topics: vec![topic], ..Default::default() }
}

pub struct ToyServer {
    pub address: SocketAddr,
    pub http_address: SocketAddr,
    stop: Arc<AtomicBool>,
    executor: Option<ExecutorJoinHandle<(DrainReport, NetStats)>>,
}

impl ToyServer {
    pub fn start(settings: NetSettings) -> Self {
        Self::start_with_drain(settings, Duration::from_secs(5))
    }

    pub fn start_with_drain(settings: NetSettings, drain: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (tell, told) = mpsc::channel();
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(1 << 20)
            .spawn(move || async move {
                let notifier = chronik_ring::Notifier::new().unwrap();
                let serve = async move {
                    let toy = Rc::new(Toy::default());
                    let server = Server::new(Rc::clone(&toy), settings);
                    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
                    let kafka = server.listen(any, ListenerKind::Kafka).unwrap();
                    let http = server.listen(any, ListenerKind::Http).unwrap();
                    tell.send((kafka, http)).unwrap();
                    while !stopped.load(Ordering::Acquire) {
                        chronik_ring::sleep(Duration::from_millis(2)).await;
                    }
                    let late_answers = async {
                        chronik_ring::sleep(Duration::from_millis(20)).await;
                        toy.until_drain.take().iter().for_each(Later::finish);
                    };
                    let (report, ()) =
                        futures_lite::future::zip(server.shutdown(drain), late_answers).await;
                    assert!(server.listen(any, ListenerKind::Kafka).is_err());
                    (report, server.stats())
                };
                chronik_ring::run(notifier, serve).await.unwrap()
            })
            .unwrap();
        let (address, http_address) = told.recv().unwrap();
        Self { address, http_address, stop, executor: Some(executor) }
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address, PATIENCE).unwrap()
    }

    /// Asks for shutdown without waiting for it.
    pub fn begin_stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub fn stop(mut self) -> (DrainReport, NetStats) {
        self.begin_stop();
        self.executor.take().unwrap().join().unwrap()
    }
}

/// A request and its answer: the connection works.
pub fn assert_works(client: &mut Client) {
    let request = MetadataRequest::default().with_topics(None);
    assert_eq!(client.call(&request, 12).unwrap().throttle_time_ms, -1);
}

/// Reads until the server has closed, and returns what came before.
pub fn read_to_close(client: &mut Client) -> Vec<u8> {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match client.stream().read(&mut buffer) {
            Ok(0) => return received,
            Ok(bytes) => received.extend_from_slice(&buffer[..bytes]),
            // Closed with bytes unread on the server's side.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return received,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures_lite::future::block_on(future)
}
