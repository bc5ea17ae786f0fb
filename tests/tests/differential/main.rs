//! The same requests to this broker and to Apache Kafka: the answers must say the same.
//!
//! Apache Kafka's address is in `CHRONIK_TEST_KAFKA_BOOTSTRAP` (one broker with default settings); without it each test
//! says `SKIPPED` and passes. Answers are compared as lines, one for each thing asked. What is different on purpose stands
//! in `chronik_tests::compatibility::DIFFERENCES` and in `docs/compatibility.md`; texts for people are not compared.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod admin;
mod configs;
mod described;
mod group_offsets;
mod group_requests;
mod groups;
mod members;
mod records;
mod topics;

use std::net::SocketAddr;
use std::time::Duration;

use chronik_tests::compatibility::DIFFERENCES;
use chronik_tests::process::{Served, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use chronik_tests::scratch::{say_skipped, wait_for};
use kafka_protocol::ResponseError::{
    CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator,
};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::{DescribeGroupsRequest, FindCoordinatorRequest};
use kafka_protocol::protocol::StrBytes;

/// What one broker says to the questions of a test.
type Answers = Vec<String>;

/// What Apache Kafka and this broker say; `None` without a Kafka.
fn sides<T>(ask: impl Fn(&mut RawConnection, &str) -> T) -> Option<(T, T)> {
    let Ok(kafka) = std::env::var("CHRONIK_TEST_KAFKA_BOOTSTRAP") else {
        say_skipped("CHRONIK_TEST_KAFKA_BOOTSTRAP does not name an Apache Kafka");
        return None;
    };
    let kafka: SocketAddr = kafka.parse().unwrap();
    let settings = Settings::new().with_top("group.initial_rebalance_delay_ms = 0");
    let served = Served::with(settings).unwrap();
    let topic = fresh_name("same");
    let side = |addr| {
        let mut connection = RawConnection::open(addr).unwrap();
        connection.ensure_topic(&topic).unwrap();
        wait_for_coordinators(&mut connection);
        ask(&mut connection, &topic)
    };
    Some((side(kafka), side(served.addr())))
}

/// A broker that was asked for no group yet makes the topic that holds them first, which takes Kafka seconds.
fn wait_for_coordinators(connection: &mut RawConnection) {
    // Enough names for each of 50 partitions.
    let names: Vec<StrBytes> = (0..500).map(|n| text(&format!("nobody-{n}"))).collect();
    let find = FindCoordinatorRequest::default().with_coordinator_keys(names.clone());
    let describe = DescribeGroupsRequest::default()
        .with_groups(names.into_iter().map(kafka_protocol::messages::GroupId).collect());
    let waits = |code: i16| {
        [CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator]
            .iter()
            .any(|error| error.code() == code)
    };
    wait_for("all groups have coordinators", Duration::from_secs(60), || {
        let found = connection.call(4, &find).unwrap();
        let is_found = found.coordinators.iter().all(|told| told.error_code == 0);
        let described = is_found.then(|| connection.call(5, &describe).unwrap())?;
        (!described.groups.iter().any(|group| waits(group.error_code))).then_some(())
    })
    .unwrap();
}

/// Returns once what was changed before is told to those who ask: Kafka's controller answers before its broker has applied
/// the change, but the broker applies all changes in their order, and a topic that was made later is seen.
fn wait_until_applied(connection: &mut RawConnection) {
    connection.ensure_topic(&fresh_name("applied")).unwrap();
}

/// Asks both brokers and compares.
fn compare(ask: impl Fn(&mut RawConnection, &str) -> Answers) {
    if let Some((theirs, ours)) = sides(ask) {
        compare_answers(theirs, ours);
    }
}

/// Compares line by line, apart from what is explained; what is explained and yet the same is a mistake, too.
fn compare_answers(mut theirs: Answers, mut ours: Answers) {
    for prefix in DIFFERENCES.iter().flat_map(|difference| difference.lines) {
        let take = |answers: &mut Answers| -> Answers {
            answers.extract_if(.., |line| line.starts_with(prefix)).collect()
        };
        let (explained, here) = (take(&mut theirs), take(&mut ours));
        assert!(
            explained != here || here.is_empty(),
            "explained as different, but the same: {here:?}"
        );
    }
    let pairs = theirs.iter().zip(&ours).filter(|(theirs, ours)| theirs != ours);
    let different: Vec<String> =
        pairs.map(|(theirs, ours)| format!("Kafka: {theirs}\nhere:  {ours}")).collect();
    assert!(different.is_empty(), "\n{}", different.join("\n"));
    assert_eq!(theirs.len(), ours.len());
}

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

fn new_topic(name: &str, partitions: i32, replicas: i16) -> CreatableTopic {
    CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(replicas)
}

fn with_config(topic: CreatableTopic, name: &str, value: Option<&str>) -> CreatableTopic {
    let config = CreatableTopicConfig::default().with_name(text(name)).with_value(value.map(text));
    topic.with_configs(vec![config])
}
