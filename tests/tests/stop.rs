//! How a broker leaves when it is told to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::time::{Duration, Instant};

use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, fetch_request};
use chronik_tests::scratch::wait_for;
use kafka_protocol::messages::FetchRequest;

/// How long the fetches below would wait; far beyond what a stop may take.
const PARKED_MS: i32 = 120_000;

fn parked(broker: &Broker) -> f64 {
    broker.metrics().unwrap().sum("chronik_fetch_waiters")
}

#[test]
fn given_fetches_that_wait_for_data_when_the_broker_is_told_to_stop_then_they_are_answered_and_it_ends()
 {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let kafka = broker.ports().kafka_addr();
    // One topic for each of several partitions' homes: fetches wait on their own core and on others.
    let mut waiting: Vec<(RawConnection, i32)> = (0..6)
        .map(|_| {
            let topic = fresh_name("parked");
            let mut connection = RawConnection::open(kafka).unwrap();
            connection.ensure_topic(&topic).unwrap();
            let id = connection.send(11, &fetch_request(&topic, 0, 0, PARKED_MS)).unwrap();
            (connection, id)
        })
        .collect();
    wait_for("all fetches wait", Duration::from_secs(30), || {
        (parked(&broker) >= 6.0).then_some(())
    })
    .unwrap();
    let begun = Instant::now();
    broker.signal_terminate().unwrap();
    for (connection, id) in &mut waiting {
        let answer = connection.receive::<FetchRequest>(11, *id).unwrap();
        assert_eq!(answer.responses[0].partitions[0].error_code, 0);
    }
    assert_eq!(broker.wait_exit().unwrap().code(), Some(0), "{}", broker.log_tail());
    let waited = begun.elapsed();
    assert!(waited < Duration::from_secs(9), "the stop waited for its deadline: {waited:?}");
    assert!(broker.log_contains("stopped"), "{}", broker.log_tail());
}

#[test]
fn given_a_signal_that_comes_twice_at_once_when_the_broker_stops_then_its_logs_are_closed_cleanly()
{
    let mut broker = Broker::start(Settings::new()).unwrap();
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    let topic = fresh_name("twice");
    connection.ensure_topic(&topic).unwrap();
    let batch = BatchBuilder::of_value("x").build();
    assert_eq!(connection.produce(&topic, 0, batch).unwrap().error_code, 0);
    broker.signal_terminate().unwrap();
    // The process may be gone by the second, and that is as good.
    broker.signal_terminate().ok();
    assert_eq!(broker.wait_exit().unwrap().code(), Some(0), "{}", broker.log_tail());
    broker.start_again().unwrap();
    assert!(broker.log_contains("clean_close=true"), "{}", broker.log_tail());
    assert!(!broker.log_contains("cut a torn tail"), "{}", broker.log_tail());
}
