//! Running out of descriptors: alone in its process, because the limit is the process's.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod common;

use std::net::TcpStream;

use chronik_net::NetSettings;
use common::{ToyServer, assert_works};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn given_no_descriptors_left_when_some_are_free_again_then_the_listener_accepts() {
    let server = ToyServer::start(NetSettings::default());
    let mut before = server.client();
    assert_works(&mut before);
    let limit = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 9), maximum: limit.maximum })
        .unwrap();
    // The kernel connects them from the backlog, whether or not the server can accept.
    let taken: Vec<TcpStream> =
        std::iter::from_fn(|| TcpStream::connect(server.address).ok()).collect();
    assert!((1..20).contains(&taken.len()));
    // Nine is odd: one connection at least has a descriptor on the client's side only.
    for _ in 0..3 {
        assert_works(&mut before);
    }
    drop(taken);
    let mut after = server.client();
    assert_works(&mut after);
    setrlimit(Resource::Nofile, limit).unwrap();
    let (_, stats) = server.stop();
    assert!(stats.accept_errors >= 1);
}
