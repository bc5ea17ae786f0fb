//! What a hostile or broken peer sends ends its own connection and no other.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use chronik_net::NetSettings;
use chronik_net::client::Client;
use common::requests::{random_frame, served};
use common::{PATIENCE, ToyServer, assert_works, read_to_close};
use kafka_protocol::messages::{ApiKey, FetchRequest, MetadataRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn framed(body: &[u8]) -> Vec<u8> {
    [&i32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// Every one of these must end the connection by itself, without an answer.
fn fatal_inputs() -> Vec<(&'static str, Vec<u8>)> {
    let header = |key: u8, version: u8| vec![0, key, 0, version, 0, 0, 0, 1, 0xff, 0xff];
    let body = |key, version, rest: &[u8]| framed(&[header(key, version), rest.to_vec()].concat());
    vec![
        ("negative length", vec![0xff, 0xff, 0xff, 0xff]),
        ("most negative length", vec![0x80, 0, 0, 0]),
        ("empty frame", vec![0, 0, 0, 0]),
        ("frame shorter than a header", vec![0, 0, 0, 4, 0, 3, 0, 0]),
        ("huge length", vec![0x7f, 0xff, 0xff, 0xff, 0, 0]),
        ("large frame of an API without records", vec![0x05, 0, 0, 0, 0, 3]),
        ("unknown API key", framed(&[0x70, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff])),
        ("negative API key", framed(&[0xff, 0xff, 0, 0, 0, 0, 0, 1, 0xff, 0xff])),
        ("API not served", body(8, 2, &[])),
        ("Produce v2", body(0, 2, &[0; 12])),
        ("Produce v14", body(0, 14, &[0; 12])),
        ("Metadata v14", body(3, 14, &[0; 12])),
        ("negative client id length", framed(&[0, 3, 0, 0, 0, 0, 0, 1, 0xff, 0xfe, 0, 0, 0, 0])),
        ("client id beyond the frame", framed(&[0, 3, 0, 0, 0, 0, 0, 1, 0x7f, 0xff])),
        ("client id that is not UTF-8", framed(&[0, 3, 0, 1, 0, 0, 0, 1, 0, 1, 0xff, 0, 0, 0, 0])),
        ("two billion topics", body(3, 1, &[0x7f, 0xff, 0xff, 0xff])),
        ("minus two topics", body(3, 1, &[0xff, 0xff, 0xff, 0xfe])),
        (
            "null topics where null is not allowed",
            body(19, 2, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0]),
        ),
        (
            "four billion topics, compact",
            body(3, 9, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0]),
        ),
        ("endless varint", body(3, 9, &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0])),
        ("varint cut off", body(3, 9, &[0, 0xff])),
        ("tagged fields beyond the frame", body(3, 9, &[0xff, 0xff, 0xff, 0xff, 0x0f])),
        ("tagged field of four gigabytes", body(3, 9, &[1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f])),
    ]
}

#[test]
fn given_each_fatal_input_when_sent_then_that_connection_ends_and_another_works() {
    let server = ToyServer::start(NetSettings::default());
    let mut other = server.client();
    assert_works(&mut other);
    let inputs = fatal_inputs();
    for (what, bytes) in &inputs {
        let mut client = server.client();
        assert_works(&mut client);
        client.stream().write_all(bytes).unwrap();
        assert!(read_to_close(&mut client).is_empty(), "{what}: an answer");
        // The same as the very first bytes of a connection.
        let mut fresh = server.client();
        fresh.stream().write_all(bytes).unwrap();
        assert!(read_to_close(&mut fresh).is_empty(), "{what}: an answer on a fresh connection");
        assert_works(&mut other);
    }
    let (_, stats) = server.stop();
    assert_eq!(stats.connections_closed_for_cause, 2 * inputs.len() as u64);
}

#[test]
fn given_good_requests_before_a_bad_one_when_sent_together_then_the_good_are_answered() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    let request = MetadataRequest::default().with_topics(None);
    let mut burst = Vec::new();
    for id in 1..=3 {
        burst.extend_from_slice(
            &chronik_net::client::encode_request(&request, 4, id, None).unwrap(),
        );
    }
    burst.extend_from_slice(&[0xff; 8]);
    client.stream().write_all(&burst).unwrap();
    for id in 1..=3 {
        client.receive::<MetadataRequest>(id, 4).unwrap();
    }
    assert!(read_to_close(&mut client).is_empty());
    server.stop();
}

#[test]
fn given_random_bytes_when_sent_then_the_server_lives() {
    let settings =
        NetSettings { half_frame_timeout: Duration::from_millis(40), ..Default::default() };
    let server = ToyServer::start(settings);
    let mut other = server.client();
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..60 {
        let mut client = server.client();
        let length = rng.random_range(1..5000);
        let bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        // May be closed while it is still writing.
        client.stream().write_all(&bytes).ok();
        read_to_close(&mut client);
        assert_works(&mut other);
    }
    server.stop();
}

#[test]
fn given_requests_cut_short_when_the_peer_leaves_then_nothing_is_left_behind() {
    let server = ToyServer::start(NetSettings::default());
    for (api_key, version) in served() {
        let frame = random_frame(api_key, version, 11);
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(&frame[..frame.len() - 1]).unwrap();
    }
    assert_works(&mut server.client());
    let (report, stats) = server.stop();
    assert_eq!((report.aborted, stats.connections, stats.admission_bytes_used), (0, 0, 0));
}

#[test]
fn given_a_frame_sent_byte_by_byte_when_it_takes_too_long_then_it_is_closed() {
    let settings =
        NetSettings { half_frame_timeout: Duration::from_millis(60), ..Default::default() };
    let server = ToyServer::start(settings);
    let mut other = server.client();
    let frame = random_frame(ApiKey::Produce, 9, 1);
    for start in [&b"G"[..], b"GET /metrics HT", &frame[..2], &frame[..10]] {
        let mut loris = server.client();
        loris.stream().write_all(start).unwrap();
        assert!(read_to_close(&mut loris).is_empty(), "{start:?}");
        assert_works(&mut other);
    }
    let (_, stats) = server.stop();
    assert_eq!(stats.connections_closed_for_cause, 4);
}

#[test]
fn given_an_idle_connection_when_its_time_is_over_then_it_is_closed() {
    let settings = NetSettings { idle_timeout: Duration::from_millis(80), ..Default::default() };
    let server = ToyServer::start(settings);
    let mut idle = server.client();
    assert_works(&mut idle);
    assert!(read_to_close(&mut idle).is_empty());
    let mut silent = server.client();
    assert!(read_to_close(&mut silent).is_empty());
    server.stop();
}

#[test]
fn given_a_peer_that_takes_no_answer_when_its_time_is_over_then_it_is_closed() {
    let settings =
        NetSettings { write_stall_timeout: Duration::from_millis(80), ..Default::default() };
    let server = ToyServer::start(settings);
    let mut client = server.client();
    let bytes = 60_000_000;
    client.send(&FetchRequest::default().with_max_bytes(bytes), 12).unwrap();
    // Only look at the socket again once the server has let go of it.
    let mut other = server.client();
    assert_works(&mut other);
    wait_for_stall(&mut client);
    let received = read_to_close(&mut client).len();
    assert!(received < usize::try_from(bytes).unwrap(), "the whole answer in {received} bytes");
    server.stop();
}

/// Peeks until the peer has reset or ended: with unread bytes in flight only an error tells.
fn wait_for_stall(client: &mut Client) {
    let request = chronik_net::client::encode_request(
        &MetadataRequest::default().with_topics(None),
        4,
        1,
        None,
    )
    .unwrap();
    let deadline_steps = 400;
    for _ in 0..deadline_steps {
        if client.stream().write_all(&request).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("still open after the time limit");
}

/// Whether the admin port answers a request of its own connection.
fn health_answers(server: &ToyServer) -> bool {
    let mut stream = TcpStream::connect(server.http_address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").ok();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).is_ok() && response.starts_with(b"HTTP/1.1 200")
}

#[test]
fn given_kafka_connections_at_their_limit_when_the_admin_port_is_asked_then_it_answers() {
    let settings = NetSettings { connections_max: 1, ..Default::default() };
    let server = ToyServer::start(settings);
    let mut first = server.client();
    assert_works(&mut first);
    assert!(read_to_close(&mut server.client()).is_empty());
    // More often than the admin port has places: each is given back.
    for _ in 0..3 * NetSettings::default().http_connections_max {
        assert!((0..1000).any(|_| health_answers(&server)));
    }
    let (_, stats) = server.stop();
    assert_eq!(stats.connections, 0);
}

#[test]
fn given_admin_connections_at_their_limit_when_one_more_comes_then_kafka_goes_on() {
    let settings = NetSettings { http_connections_max: 1, ..Default::default() };
    let server = ToyServer::start(settings);
    let held = TcpStream::connect(server.http_address).unwrap();
    let mut refused = TcpStream::connect(server.http_address).unwrap();
    refused.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    assert_works(&mut server.client());
    drop(held);
    // The place is free once the server has seen the close: try until it has.
    assert!((0..1000).any(|_| health_answers(&server)));
    let (_, stats) = server.stop();
    assert!(stats.connections_refused >= 1);
}

#[test]
fn given_the_limit_of_connections_when_one_more_comes_then_only_that_one_is_closed() {
    let settings = NetSettings { connections_max: 2, ..Default::default() };
    let server = ToyServer::start(settings);
    let mut first = server.client();
    let mut second = server.client();
    assert_works(&mut first);
    assert_works(&mut second);
    let mut third = server.client();
    assert!(read_to_close(&mut third).is_empty());
    assert_works(&mut first);
    drop(second);
    // The place is free once the server has seen the close: try until it has.
    let served = (0..1000).any(|_| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").ok();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).is_ok() && response.starts_with(b"HTTP/1.1 200")
    });
    assert!(served);
    let (_, stats) = server.stop();
    assert!(stats.connections_refused >= 1);
}
