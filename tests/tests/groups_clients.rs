//! Consumer groups as real clients form them: kcat, and librdkafka through the `rdkafka` crate.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chronik_tests::binary::run_to_end;
use chronik_tests::process::{Served, Settings, fresh_name};
use chronik_tests::scratch::say_skipped;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const DEADLINE: Duration = Duration::from_secs(90);
const PARTITIONS: i32 = 6;

fn served() -> Served {
    Served::with(Settings::new().with_top("group.initial_rebalance_delay_ms = 200")).unwrap()
}

fn produce(bootstrap: &str, topic: &str, values: std::ops::Range<u32>) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    for value in values {
        let partition = i32::try_from(value).unwrap() % PARTITIONS;
        let text = value.to_string();
        let record = BaseRecord::<(), str>::to(topic).partition(partition).payload(&text);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(DEADLINE).unwrap();
}

fn create(bootstrap: &str, topic: &str) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    futures_lite::future::block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap()[0]
        .as_ref()
        .unwrap();
}

fn member(bootstrap: &str, group: &str, topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    consumer
}

/// Lets the members read until each value from `values` was seen; what each read is committed at once.
fn read(members: &[BaseConsumer], seen: &mut BTreeMap<u32, u32>, values: std::ops::Range<u32>) {
    let until = Instant::now() + DEADLINE;
    while !values.clone().all(|value| seen.contains_key(&value)) {
        assert!(Instant::now() < until, "{} of {values:?} seen", seen.len());
        for member in members {
            let Some(Ok(message)) = member.poll(Duration::from_millis(5)) else { continue };
            let value = std::str::from_utf8(message.payload().unwrap()).unwrap().parse().unwrap();
            // A commit that fails belongs to a generation that is over: the record comes again.
            if member.commit_message(&message, CommitMode::Sync).is_ok() {
                *seen.entry(value).or_default() += 1;
            }
        }
    }
}

#[test]
fn given_three_members_when_one_leaves_and_one_is_lost_then_every_record_is_committed_once() {
    let served = served();
    let bootstrap = served.bootstrap();
    let (topic, group) = (fresh_name("six"), fresh_name("three"));
    create(&bootstrap, &topic);
    produce(&bootstrap, &topic, 0..300);
    let mut members: Vec<BaseConsumer> =
        (0..3).map(|_| member(&bootstrap, &group, &topic)).collect();
    let mut seen = BTreeMap::new();
    read(&members, &mut seen, 0..300);
    // Dropped, it leaves.
    members.pop();
    produce(&bootstrap, &topic, 300..600);
    read(&members, &mut seen, 300..600);
    // Not polled any more and never closed: the group gets rid of it when its session is over.
    let lost = members.pop().unwrap();
    lost.unsubscribe();
    produce(&bootstrap, &topic, 600..900);
    read(&members, &mut seen, 600..900);
    let repeated: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).collect();
    assert!(repeated.is_empty(), "{repeated:?}");
}

#[test]
fn given_kcat_when_it_consumes_as_a_group_twice_then_it_goes_on_where_it_stopped() {
    let kcat = || Command::new("kcat");
    if kcat().arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        say_skipped("kcat not found");
        return;
    }
    let served = served();
    let bootstrap = served.bootstrap();
    let (topic, group) = (fresh_name("kcat"), fresh_name("kcats"));
    create(&bootstrap, &topic);
    let consume = |count: &str| {
        let mut command = kcat();
        command.args(["-b", &bootstrap, "-G", &group, "-q", "-c", count]);
        command.args(["-X", "auto.offset.reset=earliest", &topic]);
        command.env_remove("LD_LIBRARY_PATH");
        let finished = run_to_end(command, DEADLINE).unwrap();
        assert!(finished.status.success(), "{finished:?}");
        let mut values: Vec<u32> =
            finished.stdout.lines().map(|line| line.parse().unwrap()).collect();
        values.sort_unstable();
        values
    };
    produce(&bootstrap, &topic, 0..60);
    assert_eq!(consume("60"), (0..60).collect::<Vec<_>>());
    produce(&bootstrap, &topic, 60..90);
    assert_eq!(consume("30"), (60..90).collect::<Vec<_>>());
}
