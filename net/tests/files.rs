//! Descriptors that sockets leave for files: alone in its process, because their numbers are the process's.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod common;

use chronik_net::NetSettings;
use chronik_net::client::Client;
use common::{ToyServer, assert_works};
use kafka_protocol::messages::MetadataRequest;

#[test]
fn given_few_descriptors_left_when_connections_come_then_they_are_refused_and_those_are_kept() {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let descriptors_max = i32::try_from(open).unwrap() + 60;
    let server = ToyServer::start(NetSettings { descriptors_max, ..NetSettings::default() });
    let mut before = server.client();
    assert_works(&mut before);
    let mut taken: Vec<_> = (0..40).map(|_| server.client()).collect();
    let refused = taken.iter_mut().map(read_ends).filter(|ends| *ends).count();
    assert!((10..40).contains(&refused), "{refused}");
    assert_works(&mut before);
    drop(taken);
    // The places are free once the server has seen the closes: try until it has.
    assert!((0..1000).any(|_| !read_ends(&mut server.client())));
    let (_, stats) = server.stop();
    assert!(stats.connections_refused >= 10);
}

/// Whether the server ends the connection instead of answering.
fn read_ends(client: &mut Client) -> bool {
    client.call(&MetadataRequest::default().with_topics(None), 12).is_err()
}
