//! The budget of a core goes to those who send: frames that stand still halfway, and peers that are gone, keep it from
//! nobody.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests
#![allow(clippy::disallowed_methods, reason = "a bound on real time is what is tested")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chronik_net::NetSettings;
use chronik_net::client::{Client, encode_request};
use common::{PATIENCE, ToyServer, assert_works};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest, ProduceRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

const MIB: usize = 1 << 20;
const PRODUCE_VERSION: i16 = 9;
/// Far more than it takes, and far less than a stalled frame has.
const SOON: Duration = Duration::from_secs(2);

fn settings(budget_bytes: usize) -> NetSettings {
    NetSettings { admission_bytes_max: budget_bytes, ..Default::default() }
}

fn produce(bytes: usize) -> ProduceRequest {
    let records = Bytes::from(vec![5; bytes]);
    let partition = PartitionProduceData::default().with_records(Some(records));
    let topic = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_static_str("t")))
        .with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic])
}

fn assert_produces(client: &mut Client, bytes: usize) {
    let answer = client.call(&produce(bytes), PRODUCE_VERSION).unwrap();
    assert_eq!(answer.throttle_time_ms, i32::try_from(bytes).unwrap());
}

fn list_offsets(number: i32) -> ListOffsetsRequest {
    ListOffsetsRequest::default().with_replica_id(BrokerId(number)).with_isolation_level(2)
}

/// Declares a Produce of `declared` bytes and sends `sent` of them.
fn half_sent(server: &ToyServer, declared: usize, sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    let mut bytes = i32::try_from(declared).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 1]);
    bytes.resize(sent, 0);
    // It may be given up while it is still sending.
    stream.write_all(&bytes).ok();
    stream
}

fn reset(mut client: Client) {
    let linger = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(client.stream(), linger).unwrap();
}

/// Whether there is a place for one more connection, which asks for no budget.
fn has_place(server: &ToyServer) -> bool {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").ok();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).is_ok() && response.starts_with(b"HTTP/1.1 200")
}

#[test]
fn given_a_flood_of_half_sent_large_frames_when_others_produce_then_they_hardly_wait() {
    let server = ToyServer::start(settings(16 * MIB));
    let mut honest = server.client();
    let mut flood = Vec::new();
    for sent in [12, 1000, 60_000, 65_000, 100_000, 300_000, MIB - 100] {
        for declared in [MIB, 50 * MIB] {
            flood.extend((0..20).map(|_| half_sent(&server, declared, sent)));
        }
    }
    let started = Instant::now();
    for bytes in [10, 100_000, MIB, 3 * MIB, 6 * MIB] {
        assert_produces(&mut honest, bytes);
    }
    assert_works(&mut honest);
    assert!(started.elapsed() < SOON, "it took {:?}", started.elapsed());
    drop(flood);
    let (_, stats) = server.stop();
    assert_eq!((stats.admission_bytes_used, stats.admission_waiting), (0, 0));
    // Some were given up, since so much may not be kept of what stands still; those that hold little were not.
    assert!(stats.connections_closed_for_cause > 0);
}

#[test]
fn given_a_slow_link_when_frames_stall_and_others_want_the_whole_budget_then_its_frame_arrives() {
    let server = ToyServer::start(settings(4 * MIB));
    let mut fast = server.client();
    let mut slow = server.client();
    let frame = encode_request(&produce(MIB), PRODUCE_VERSION, 7, None).unwrap();
    let mut flood = Vec::new();
    for piece in frame.chunks(32 << 10) {
        slow.stream().write_all(piece).unwrap();
        flood.push(half_sent(&server, MIB, 250_000));
        assert_produces(&mut fast, 4 * MIB);
    }
    let answer = slow.receive::<ProduceRequest>(7, PRODUCE_VERSION).unwrap();
    assert_eq!(answer.throttle_time_ms, i32::try_from(MIB).unwrap());
    let (_, stats) = server.stop();
    assert!(stats.connections_closed_for_cause > 0, "nobody was given up, so this shows nothing");
}

#[test]
fn given_peers_that_leave_while_they_wait_for_budget_when_gone_then_they_hold_no_place() {
    let server = ToyServer::start(NetSettings { connections_max: 4, ..settings(MIB) });
    // It has most of the budget until the request before it is answered.
    let mut holder = server.client();
    let listed = holder.send(&list_offsets(1), 7).unwrap();
    let held = holder.send(&produce(MIB - 100_000), PRODUCE_VERSION).unwrap();
    assert!(has_place(&server));
    let half = half_sent(&server, MIB, 100_000);
    assert!(has_place(&server));
    // Behind that one even a small request waits.
    let mut small = server.client();
    let metadata = kafka_protocol::messages::MetadataRequest::default().with_topics(None);
    small.send(&metadata, 12).unwrap();
    assert!(has_place(&server));
    let last = TcpStream::connect(server.address).unwrap();
    assert!(!has_place(&server));

    // Reset: nobody is there to hear the answer.
    reset(small);
    assert!((0..10_000).any(|_| has_place(&server)), "the one that was reset");
    let again = TcpStream::connect(server.address).unwrap();
    assert!(!has_place(&server));
    // Ended: its frame can never be whole.
    drop(half);
    assert!((0..10_000).any(|_| has_place(&server)), "the one that ended");
    drop((last, again));

    let mut other = wait_for_a_client(&server);
    other.call(&list_offsets(2), 7).unwrap();
    holder.receive::<ListOffsetsRequest>(listed, 7).unwrap();
    holder.receive::<ProduceRequest>(held, PRODUCE_VERSION).unwrap();
    let (_, stats) = server.stop();
    assert_eq!((stats.admission_bytes_used, stats.admission_waiting), (0, 0));
}

/// A client that has a place.
fn wait_for_a_client(server: &ToyServer) -> Client {
    assert!((0..10_000).any(|_| has_place(server)));
    server.client()
}

#[test]
fn given_a_peer_that_ends_its_side_behind_a_whole_frame_when_it_waited_then_it_is_answered() {
    let server = ToyServer::start(settings(MIB));
    let mut holder = server.client();
    holder.send(&list_offsets(1), 7).unwrap();
    holder.send(&produce(MIB - 100_000), PRODUCE_VERSION).unwrap();
    assert!(has_place(&server));
    let mut ended = server.client();
    let sent = ended.send(&produce(200_000), PRODUCE_VERSION).unwrap();
    ended.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(has_place(&server));
    // The holder's budget comes back when it is reset.
    reset(holder);
    ended.receive::<ProduceRequest>(sent, PRODUCE_VERSION).unwrap();
    server.stop();
}
