//! Sockets on the ring, over loopback.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use chronik_ring::socket::{Listener, Socket, SocketOptions, resolve};
use chronik_ring::{Notifier, spawn};
use glommio::{LocalExecutorBuilder, Placement};

const OPTIONS: SocketOptions = SocketOptions {
    keepalive_idle: Duration::from_secs(60),
    keepalive_interval: Duration::from_secs(10),
    user_timeout: Duration::from_secs(60),
    descriptors_max: i32::MAX,
};

fn run<T: Send + 'static, Fut: Future<Output = T> + 'static>(
    body: impl FnOnce() -> Fut + Send + 'static,
) -> T {
    LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .spawn(move || async move {
            chronik_ring::run(Notifier::new().expect("an eventfd"), body()).await.expect("a ring")
        })
        .expect("an executor")
        .join()
        .expect("the test's body")
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[test]
fn given_a_listener_when_a_socket_connects_then_bytes_go_both_ways() {
    run(|| async {
        let listener = Listener::bind_alone(any_port()).expect("a port");
        let address = listener.local_addr().expect("an address");
        let accepting = spawn(async move { listener.accept().await.expect("a connection") });
        let here = Socket::connect(address, &OPTIONS).await.expect("a connection");
        let there = accepting.await;
        for (from, to) in [(&here, &there), (&there, &here)] {
            assert_eq!(from.send_now(&[IoSlice::new(b"ab"), IoSlice::new(b"c")]).expect("room"), 3);
            let mut buffer = [0; 8];
            let received = poll_fn(|cx| to.poll_read(cx, &mut buffer)).await.expect("bytes");
            assert_eq!(&buffer[..received], b"abc");
        }
    });
}

#[test]
fn given_nobody_who_listens_when_a_socket_connects_then_it_is_refused() {
    let kind = run(|| async {
        let listener = Listener::bind_alone(any_port()).expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        Socket::connect(address, &OPTIONS).await.map(drop).expect_err("nobody listens").kind()
    });
    assert_eq!(kind, io::ErrorKind::ConnectionRefused);
}

#[test]
fn given_a_port_that_is_bound_alone_when_bound_again_then_it_is_in_use() {
    let kind = run(|| async {
        let listener = Listener::bind_alone(any_port()).expect("a port");
        let address = listener.local_addr().expect("an address");
        Listener::bind(address).map(drop).expect_err("it is taken").kind()
    });
    assert_eq!(kind, io::ErrorKind::AddrInUse);
}

#[test]
fn given_names_and_addresses_when_resolved_then_each_has_its_answer() {
    run(|| async {
        let literal = resolve("127.0.0.1:9092").await.expect("an address");
        assert_eq!(literal, [SocketAddr::from(([127, 0, 0, 1], 9092))]);
        let named = resolve("localhost:9092").await.expect("a name that every machine knows");
        assert!(named.iter().all(|address| address.ip().is_loopback() && address.port() == 9092));
        resolve("no port").await.expect_err("neither an address nor a name with a port");
    });
}
