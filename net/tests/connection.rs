//! A connection keeps order, moves big frames, speaks HTTP, and drains.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use chronik_net::client::encode_request;
use chronik_net::{NetSettings, SUPPORTED};
use common::{PATIENCE, ToyServer, assert_works, read_to_close};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiVersionsRequest, BrokerId, CreateTopicsRequest, DeleteTopicsRequest, FetchRequest,
    ListOffsetsRequest, MetadataRequest, OffsetForLeaderEpochRequest, ProduceRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;

fn list_offsets(number: i32, together: i8) -> ListOffsetsRequest {
    ListOffsetsRequest::default().with_replica_id(BrokerId(number)).with_isolation_level(together)
}

fn produce(records: Bytes, acks: i16) -> ProduceRequest {
    let partition = PartitionProduceData::default().with_records(Some(records));
    let topic = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_static_str("t")))
        .with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(acks).with_topic_data(vec![topic])
}

fn http(address: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn given_pipelined_requests_when_they_finish_from_the_last_then_answers_keep_the_order() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    let ids: Vec<i32> =
        (0..50).map(|number| client.send(&list_offsets(number, 50), 7).unwrap()).collect();
    for (number, id) in (0..50).zip(ids) {
        let response = client.receive::<ListOffsetsRequest>(id, 7).unwrap();
        assert_eq!(response.throttle_time_ms, number);
    }
    let (report, stats) = server.stop();
    assert_eq!((report.aborted, stats.requests, stats.admission_bytes_used), (0, 50, 0));
}

#[test]
fn given_more_requests_than_the_pipeline_holds_when_sent_at_once_then_all_are_answered() {
    let settings =
        NetSettings { pipeline_requests_max: 3, pipeline_bytes_max: 100, ..Default::default() };
    let server = ToyServer::start(settings);
    let mut client = server.client();
    let mut burst = Vec::new();
    for id in 0..1998 {
        // Every answer is held until the next two requests are in.
        let frame = match id % 3 {
            0 => encode_request(&MetadataRequest::default().with_topics(None), 4, id, None),
            _ => encode_request(&list_offsets(id, 2), 7, id, None),
        };
        burst.extend_from_slice(&frame.unwrap());
    }
    let mut writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&burst).unwrap());
        for id in 0..1998 {
            let frame = client.receive_frame().unwrap();
            assert_eq!(frame[..4], i32::to_be_bytes(id));
        }
    });
    server.stop();
}

#[test]
fn given_bytes_behind_a_request_when_sent_then_it_and_the_next_are_answered() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    // As librdkafka 2.12 asks for all topics: three bytes more than Metadata v13 has.
    let body = [0u8, 3, 0, 13, 0, 0, 0, 9, 0, 1, b'x', 0, 0, 1, 0, 0, 0, 0, 0];
    client.stream().write_all(&i32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    client.stream().write_all(&body).unwrap();
    assert_eq!(client.receive::<MetadataRequest>(9, 13).unwrap().throttle_time_ms, -1);
    assert_works(&mut client);
    server.stop();
}

#[test]
fn given_an_answer_never_sent_when_the_next_is_ready_then_it_follows_at_once() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    client.send(&produce(Bytes::from_static(b"unanswered"), 0), 9).unwrap();
    assert_works(&mut client);
    server.stop();
}

#[test]
fn given_api_versions_when_asked_then_the_table_is_told_in_every_version() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    for version in 0..=4 {
        let response = client.call(&ApiVersionsRequest::default(), version).unwrap();
        assert_eq!(response.error_code, 0);
        let told: Vec<_> = response
            .api_keys
            .iter()
            .map(|row| (row.api_key, row.min_version, row.max_version))
            .collect();
        let table: Vec<_> = SUPPORTED
            .iter()
            .map(|row| (row.api_key as i16, row.version_min_advertised, row.version_max))
            .collect();
        assert_eq!(told, table);
    }
    // A version from the future is answered as version 0 with error 35, and the table.
    let body = [0u8, 18, 0, 9, 0, 0, 0, 77, 0, 1, b'x', 0, 2, b'y', 1];
    client.stream().write_all(&i32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    client.stream().write_all(&body).unwrap();
    let answer = client.receive::<ApiVersionsRequest>(77, 0).unwrap();
    assert_eq!((answer.error_code, answer.api_keys.len()), (35, SUPPORTED.len()));
    assert_works(&mut client);
    server.stop();
}

#[test]
fn given_frames_of_all_sizes_when_produced_then_every_record_byte_arrives() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    for bytes in [0usize, 1, 1000, 65_000, 65_536, 131_000, 3 << 20, 40 << 20] {
        let request = produce(Bytes::from(vec![5; bytes]), -1);
        let answer = client.call(&request, 9).unwrap();
        assert_eq!(answer.throttle_time_ms, i32::try_from(bytes).unwrap());
    }
    let (_, stats) = server.stop();
    assert_eq!(stats.admission_bytes_used, 0);
}

#[test]
fn given_a_frame_above_the_whole_budget_when_sent_beside_others_then_all_are_served() {
    let settings = NetSettings { admission_bytes_max: 100_000, ..Default::default() };
    let server = ToyServer::start(settings);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut client = server.client();
            scope.spawn(move || {
                for bytes in [500_000usize, 10, 90_000] {
                    let answer = client.call(&produce(Bytes::from(vec![1; bytes]), 1), 8).unwrap();
                    assert_eq!(answer.throttle_time_ms, i32::try_from(bytes).unwrap());
                }
            });
        }
    });
    let (_, stats) = server.stop();
    assert_eq!((stats.admission_bytes_used, stats.admission_waiting), (0, 0));
}

#[test]
fn given_a_parked_fetch_when_a_frame_wants_the_whole_budget_then_it_is_served_beside_it() {
    let settings = NetSettings { admission_bytes_max: 100_000, ..Default::default() };
    let server = ToyServer::start(settings);
    let mut parked = server.client();
    let mut client = server.client();
    let fetch = FetchRequest::default().with_max_wait_ms(300_000).with_max_bytes(10);
    let id = parked.send(&fetch, 12).unwrap();
    // Answered once both are taken, so the fetch that is ahead of one of them is parked by then.
    parked.send(&list_offsets(1, 2), 7).unwrap();
    client.call(&list_offsets(2, 2), 7).unwrap();
    for bytes in [500_000usize, 90_000, 10] {
        let answer = client.call(&produce(Bytes::from(vec![1; bytes]), 1), 8).unwrap();
        assert_eq!(answer.throttle_time_ms, i32::try_from(bytes).unwrap());
    }
    server.begin_stop();
    parked.receive::<FetchRequest>(id, 12).unwrap();
    let (report, stats) = server.stop();
    assert_eq!((report.aborted, stats.admission_bytes_used, stats.admission_waiting), (0, 0, 0));
}

#[test]
fn given_a_slow_reader_when_it_fetches_much_then_it_gets_every_byte() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    let request = FetchRequest::default().with_max_bytes(30_000_123);
    let first = client.send(&request, 12).unwrap();
    let second = client.send(&request, 12).unwrap();
    // The socket is full long before the first byte is read; another connection goes on.
    assert_works(&mut server.client());
    for id in [first, second] {
        let answer = client.receive::<FetchRequest>(id, 12).unwrap();
        let records = answer.responses[0].partitions[0].records.as_ref().unwrap();
        assert_eq!(records.len(), 30_000_123);
        assert!(records.iter().all(|byte| *byte == 7));
    }
    server.stop();
}

#[test]
fn given_a_handler_that_closes_when_requests_precede_then_they_are_answered_first() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    let id = client.send(&MetadataRequest::default(), 8).unwrap();
    client.send(&DeleteTopicsRequest::default(), 1).unwrap();
    client.send(&MetadataRequest::default(), 8).unwrap();
    client.receive::<MetadataRequest>(id, 8).unwrap();
    assert!(read_to_close(&mut client).is_empty());
    let (_, stats) = server.stop();
    assert_eq!(stats.connections_closed_for_cause, 1);
}

#[test]
fn given_a_peer_that_ends_its_side_when_requests_are_open_then_they_are_answered() {
    let server = ToyServer::start(NetSettings::default());
    let mut client = server.client();
    let ids: Vec<i32> =
        (0..3).map(|number| client.send(&list_offsets(number, 3), 7).unwrap()).collect();
    client.stream().shutdown(Shutdown::Write).unwrap();
    for id in ids {
        client.receive::<ListOffsetsRequest>(id, 7).unwrap();
    }
    assert!(read_to_close(&mut client).is_empty());
    server.stop();
}

#[test]
fn given_http_on_the_kafka_port_when_asked_then_it_is_answered_and_closed() {
    let server = ToyServer::start(NetSettings::default());
    for address in [server.address, server.http_address] {
        let response = http(address, b"GET /metrics?name=x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\nGet /metrics Some(\"name=x\")"), "{response}");
        let response = http(address, b"POST /x HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody");
        assert!(response.ends_with("Post /x Nonebody"), "{response}");
        let response = http(address, b"HEAD /health HTTP/1.1\r\n\r\n");
        assert!(response.ends_with("\r\n\r\n"), "{response}");
    }
    assert_works(&mut server.client());
    server.stop();
}

#[test]
fn given_bad_http_when_sent_then_it_is_refused_with_a_status() {
    let server = ToyServer::start(NetSettings::default());
    let long = [b"GET /".as_slice(), &[b'x'; 9000], b" HTTP/1.1\r\n\r\n"].concat();
    assert!(http(server.address, &long).starts_with("HTTP/1.1 431"));
    let large = b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n";
    assert!(http(server.address, large).starts_with("HTTP/1.1 413"));
    assert!(
        http(server.http_address, b"\x00\x00\x00\x10kafka?\r\n\r\n").starts_with("HTTP/1.1 400")
    );
    assert_works(&mut server.client());
    server.stop();
}

#[test]
fn given_open_requests_when_the_server_drains_then_they_are_answered_before_the_close() {
    let server = ToyServer::start(NetSettings::default());
    let mut idle = server.client();
    assert_works(&mut idle);
    let mut busy = server.client();
    // Both arrive in one receive, so the answer to the first tells that the second is taken.
    let metadata = MetadataRequest::default().with_topics(None);
    let open = OffsetForLeaderEpochRequest::default();
    let mut burst = encode_request(&metadata, 4, 1, None).unwrap().to_vec();
    burst.extend_from_slice(&encode_request(&open, 4, 2, None).unwrap());
    busy.stream().write_all(&burst).unwrap();
    busy.receive::<MetadataRequest>(1, 4).unwrap();
    server.begin_stop();
    busy.receive::<OffsetForLeaderEpochRequest>(2, 4).unwrap();
    assert!(read_to_close(&mut busy).is_empty());
    assert!(read_to_close(&mut idle).is_empty());
    let (report, stats) = server.stop();
    assert_eq!((report.aborted, stats.connections), (0, 0));
}

#[test]
fn given_a_request_that_never_ends_when_the_drain_deadline_passes_then_it_is_cut() {
    let server = ToyServer::start_with_drain(NetSettings::default(), Duration::from_millis(50));
    let mut hung = server.client();
    assert_works(&mut hung);
    hung.send(&CreateTopicsRequest::default(), 5).unwrap();
    hung.send(&MetadataRequest::default(), 8).unwrap();
    // Wait until both are taken: the server counts them.
    assert_works(&mut server.client());
    let (report, stats) = server.stop();
    assert!(read_to_close(&mut hung).is_empty());
    assert_eq!((report.aborted, stats.connections, stats.admission_bytes_used), (1, 0, 0));
}
