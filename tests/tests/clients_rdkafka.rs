//! librdkafka, through the `rdkafka` crate, as an ordinary user has it: produce, consume, administrate.
//!
//! With `CHRONIK_TEST_BOOTSTRAP=127.0.0.1:9092` the same tests run against whatever listens there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::time::{Duration, Instant};

use chronik_tests::process::{Served, Settings, fresh_name};
use chronik_tests::raw::RawConnection;
use chronik_tests::workload::{CODECS, Load, consumer, read_topic};
use futures_lite::future::block_on;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::StrBytes;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

const DEADLINE: Duration = Duration::from_secs(60);

/// Keeps what became of every record.
#[derive(Default)]
struct Outcomes(std::sync::Mutex<Vec<Result<(i32, i64), KafkaError>>>);

impl rdkafka::ClientContext for Outcomes {}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let outcome = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        self.0.lock().unwrap().push(outcome);
    }
}

fn producer(bootstrap: &str, extra: &[(&str, &str)]) -> BaseProducer<Outcomes> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("message.timeout.ms", "30000");
    extra.iter().for_each(|(name, value)| {
        config.set(*name, *value);
    });
    config.create_with_context(Outcomes::default()).unwrap()
}

/// Flushes and gives what became of every record, in the order of their delivery.
fn outcomes(producer: &BaseProducer<Outcomes>) -> Vec<Result<(i32, i64), KafkaError>> {
    producer.flush(DEADLINE).unwrap();
    std::mem::take(&mut *producer.context().0.lock().unwrap())
}

fn send(producer: &BaseProducer<Outcomes>, topic: &str, value: &[u8]) {
    producer
        .send(BaseRecord::<[u8], [u8]>::to(topic).partition(0).payload(value))
        .map_err(|(error, _)| error)
        .unwrap();
}

fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap()
}

fn create(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    configs: &[(&str, &str)],
) -> Result<(), RDKafkaErrorCode> {
    let new = configs.iter().fold(
        NewTopic::new(topic, partitions, TopicReplication::Fixed(1)),
        |new, (name, value)| new.set(name, value),
    );
    create_topic(bootstrap, &new, &AdminOptions::new())
}

fn create_topic(
    bootstrap: &str,
    topic: &NewTopic<'_>,
    options: &AdminOptions,
) -> Result<(), RDKafkaErrorCode> {
    let results = block_on(admin(bootstrap).create_topics([topic], options)).unwrap();
    assert_eq!(results.len(), 1);
    results.into_iter().next().unwrap().map(|_| ()).map_err(|(_, code)| code)
}

fn delete(bootstrap: &str, topic: &str) -> Result<(), RDKafkaErrorCode> {
    let results = block_on(admin(bootstrap).delete_topics(&[topic], &AdminOptions::new())).unwrap();
    results.into_iter().next().unwrap().map(|_| ()).map_err(|(_, code)| code)
}

/// Reads `count` records from one partition, from `offset` on.
fn read(consumer: &BaseConsumer, topic: &str, offset: Offset, count: usize) -> Vec<OwnedMessage> {
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, offset).unwrap();
    consumer.assign(&assignment).unwrap();
    take(consumer, count)
}

fn take(consumer: &BaseConsumer, count: usize) -> Vec<OwnedMessage> {
    let until = Instant::now() + DEADLINE;
    let mut messages = Vec::new();
    while messages.len() < count {
        assert!(Instant::now() < until, "{} of {count} records read", messages.len());
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            messages.push(message.detach());
        }
    }
    messages
}

fn offsets(messages: &[OwnedMessage]) -> Vec<i64> {
    messages.iter().map(Message::offset).collect()
}

fn error_code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    error.rdkafka_error_code()
}

/// Whether a topic is there, asked in a way that does not create it.
fn topic_exists(served: &Served, topic: &str) -> bool {
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let response = connection.metadata(topic, false).unwrap();
    match response.topics[0].error_code {
        0 => true,
        3 => false,
        other => panic!("metadata of {topic}: error {other}"),
    }
}

/// The codec in the header of the batch at offset 0, as the broker stored it.
fn stored_codec(served: &Served, topic: &str) -> i16 {
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let response = connection.fetch(topic, 0, 0).unwrap();
    let records = response.responses[0].partitions[0].records.clone().unwrap();
    i16::from_be_bytes([records[21], records[22]]) & 7
}

fn advertises(served: &Served, api: ApiKey) -> bool {
    let versions = RawConnection::open(served.addr()).unwrap().api_versions().unwrap();
    versions.iter().any(|(key, _, _)| *key == api as i16)
}

#[test]
fn given_each_codec_when_records_are_produced_then_they_are_stored_in_it_and_read_back_unchanged() {
    let served = Served::new().unwrap();
    let mut stored = Vec::new();
    for codec in CODECS {
        let topic = fresh_name(codec);
        create(&served.bootstrap(), &topic, 1, &[]).unwrap();
        let producer =
            producer(&served.bootstrap(), &[("compression.codec", codec), ("linger.ms", "100")]);
        let values: Vec<Vec<u8>> =
            (0..200).map(|n| format!("{codec} {n} ").repeat(20).into_bytes()).collect();
        values.iter().for_each(|value| send(&producer, &topic, value));
        assert!(outcomes(&producer).iter().all(Result::is_ok));
        stored.push(stored_codec(&served, &topic));
        let consumer = consumer(&served.bootstrap()).unwrap();
        let read = read(&consumer, &topic, Offset::Beginning, values.len());
        let found: Vec<&[u8]> = read.iter().map(|m| m.payload().unwrap()).collect();
        assert_eq!(found, values, "{codec}");
    }
    // librdkafka takes FindCoordinator for a sign that a broker knows lz4, and sends uncompressed where it is not
    // advertised. The day it is, this must say 3.
    let lz4 = if advertises(&served, ApiKey::FindCoordinator) { 3 } else { 0 };
    assert_eq!(stored, [0, 1, 2, lz4, 4], "the codecs that {CODECS:?} were stored in");
}

#[test]
fn given_nulls_and_headers_when_produced_then_each_is_read_back_as_it_was() {
    let served = Served::new().unwrap();
    let topic = fresh_name("shapes");
    create(&served.bootstrap(), &topic, 1, &[]).unwrap();
    let producer = producer(&served.bootstrap(), &[]);
    let headers = OwnedHeaders::new()
        .insert(Header { key: "trace", value: Some("1") })
        .insert(Header { key: "trace", value: Some("2") })
        .insert(Header { key: "empty", value: Some("") })
        .insert::<str>(Header { key: "null", value: None });
    let (key, value): (&[u8], &[u8]) = (b"k", b"v");
    let at = 1_690_000_000_123;
    let record = || BaseRecord::<[u8], [u8]>::to(&topic).partition(0).timestamp(at);
    producer.send(record().key(key).payload(value).headers(headers.clone())).ok().unwrap();
    producer.send(record().payload(value)).ok().unwrap();
    producer.send(record().key(key)).ok().unwrap();
    producer.send(record().key(b"".as_slice()).payload(b"".as_slice())).ok().unwrap();
    producer.send(record()).ok().unwrap();
    assert!(outcomes(&producer).iter().all(Result::is_ok));

    let read = read(&consumer(&served.bootstrap()).unwrap(), &topic, Offset::Beginning, 5);
    let shapes: Vec<_> = read.iter().map(|m| (m.key(), m.payload())).collect();
    let expected = [
        (Some(key), Some(value)),
        (None, Some(value)),
        (Some(key), None),
        (Some(b"".as_slice()), Some(b"".as_slice())),
        (None, None),
    ];
    assert_eq!(shapes, expected);
    assert!(read.iter().all(|m| m.timestamp().to_millis() == Some(at)));
    let found = read[0].headers().unwrap();
    let pairs: Vec<_> =
        found.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    let expected: Vec<_> =
        headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    assert_eq!(pairs, expected);
}

#[test]
fn given_a_size_limit_when_records_reach_it_then_those_within_are_stored_and_those_beyond_refused()
{
    let served = Served::new().unwrap();
    let topic = fresh_name("sizes");
    let large = fresh_name("sizes-large");
    create(&served.bootstrap(), &topic, 1, &[]).unwrap();
    create(&served.bootstrap(), &large, 1, &[("max.message.bytes", "12000000")]).unwrap();
    let producer = producer(&served.bootstrap(), &[("message.max.bytes", "20000000")]);
    // The default limit of a batch is 1,048,588 bytes; the batch's own header is in it.
    let within = vec![b'a'; 1_048_000];
    let beyond = vec![b'b'; 1_049_000];
    send(&producer, &topic, &within);
    assert_eq!(outcomes(&producer), [Ok((0, 0))]);
    send(&producer, &topic, &beyond);
    let refused = outcomes(&producer);
    let code = refused[0].as_ref().err().and_then(error_code);
    assert_eq!(code, Some(RDKafkaErrorCode::MessageSizeTooLarge), "{refused:?}");

    let huge = vec![b'c'; 11_000_000];
    send(&producer, &large, &huge);
    assert_eq!(outcomes(&producer), [Ok((0, 0))]);
    send(&producer, &topic, b"small");
    assert_eq!(outcomes(&producer), [Ok((0, 1))], "a refused record must take no offset");

    let consumer = consumer(&served.bootstrap()).unwrap();
    assert_eq!(read(&consumer, &large, Offset::Beginning, 1)[0].payload(), Some(huge.as_slice()));
    let read = read(&consumer, &topic, Offset::Beginning, 2);
    assert_eq!(read[0].payload(), Some(within.as_slice()));
    assert_eq!(read[1].payload(), Some(b"small".as_slice()));
}

#[test]
fn given_a_topic_when_created_described_and_deleted_then_each_step_is_visible_and_a_new_one_is_empty()
 {
    let served = Served::new().unwrap();
    let bootstrap = served.bootstrap();
    let topic = fresh_name("life");
    create(&bootstrap, &topic, 3, &[]).unwrap();
    let consumer = consumer(&bootstrap).unwrap();
    let metadata = consumer.fetch_metadata(Some(&topic), DEADLINE).unwrap();
    let found = &metadata.topics()[0];
    assert_eq!(found.partitions().len(), 3);
    let broker = &metadata.brokers()[0];
    assert!(found.partitions().iter().all(|p| p.leader() == broker.id() && p.error().is_none()));
    assert_eq!(format!("{}:{}", broker.host(), broker.port()), bootstrap);
    assert_eq!(create(&bootstrap, &topic, 3, &[]), Err(RDKafkaErrorCode::TopicAlreadyExists));

    let producer = producer(&bootstrap, &[]);
    send(&producer, &topic, b"old");
    assert_eq!(outcomes(&producer), [Ok((0, 0))]);
    delete(&bootstrap, &topic).unwrap();
    assert!(!topic_exists(&served, &topic));
    assert_eq!(delete(&bootstrap, &topic), Err(RDKafkaErrorCode::UnknownTopicOrPartition));

    create(&bootstrap, &topic, 1, &[]).unwrap();
    let high = consumer.fetch_watermarks(&topic, 0, DEADLINE).unwrap();
    assert_eq!(high, (0, 0), "a topic of the same name must start empty");
}

#[test]
fn given_topics_when_all_topics_are_asked_for_then_each_is_in_the_answer() {
    let served = Served::new().unwrap();
    let topics = [fresh_name("one"), fresh_name("two")];
    topics.iter().for_each(|topic| create(&served.bootstrap(), topic, 2, &[]).unwrap());
    let metadata = consumer(&served.bootstrap()).unwrap().fetch_metadata(None, DEADLINE).unwrap();
    for topic in &topics {
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        assert_eq!(found.unwrap().partitions().len(), 2, "{topic}");
    }
}

#[test]
fn given_a_bad_topic_when_created_then_the_error_says_what_is_bad_and_nothing_is_there() {
    let served = Served::new().unwrap();
    let bootstrap = served.bootstrap();
    for (name, code) in [
        ("with space", RDKafkaErrorCode::InvalidTopic),
        ("..", RDKafkaErrorCode::InvalidTopic),
        (&"x".repeat(250), RDKafkaErrorCode::InvalidTopic),
    ] {
        assert_eq!(create(&bootstrap, name, 1, &[]), Err(code), "{name:?}");
    }
    let name = fresh_name("bad");
    let unknown = create(&bootstrap, &name, 1, &[("no.such.setting", "1")]);
    assert_eq!(unknown, Err(RDKafkaErrorCode::InvalidConfig));
    let bad_value = create(&bootstrap, &name, 1, &[("retention.ms", "soon")]);
    assert_eq!(bad_value, Err(RDKafkaErrorCode::InvalidConfig));
    let three = NewTopic::new(&name, 1, TopicReplication::Fixed(3));
    let too_many = create_topic(&bootstrap, &three, &AdminOptions::new());
    assert_eq!(too_many, Err(RDKafkaErrorCode::InvalidReplicationFactor));
    let only_asked = AdminOptions::new().validate_only(true);
    let good = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
    assert_eq!(create_topic(&bootstrap, &good, &only_asked), Ok(()));
    assert!(!topic_exists(&served, &name));
}

#[test]
fn given_records_with_times_when_asked_for_offsets_by_time_then_the_first_record_not_older_is_named()
 {
    let served = Served::new().unwrap();
    let topic = fresh_name("times");
    create(&served.bootstrap(), &topic, 1, &[]).unwrap();
    let producer = producer(&served.bootstrap(), &[("linger.ms", "50")]);
    let base = 1_690_000_000_000;
    // One batch of three, then three of one.
    for (delta, alone) in [(0, false), (1_000, false), (2_000, true), (3_000, true), (4_000, true)]
    {
        let record = BaseRecord::<[u8], [u8]>::to(&topic)
            .partition(0)
            .payload(b"x".as_slice())
            .timestamp(base + delta);
        producer.send(record).ok().unwrap();
        if alone {
            assert!(outcomes(&producer).iter().all(Result::is_ok));
        }
    }
    let consumer = consumer(&served.bootstrap()).unwrap();
    let ask = |timestamp: i64| {
        let mut times = TopicPartitionList::new();
        times.add_partition_offset(&topic, 0, Offset::Offset(timestamp)).unwrap();
        let found = consumer.offsets_for_times(times, DEADLINE).unwrap();
        found.elements()[0].offset()
    };
    for (at, expected) in [(-500, 0), (0, 0), (500, 1), (1_500, 2), (2_500, 3), (4_000, 4)] {
        assert_eq!(ask(base + at), Offset::Offset(expected), "asked for {at} ms");
    }
    assert_eq!(ask(base + 4_001), Offset::End);
    assert_eq!(consumer.fetch_watermarks(&topic, 0, DEADLINE).unwrap(), (0, 5));
}

#[test]
fn given_batches_when_reading_from_any_offset_then_the_first_record_is_the_one_asked_for() {
    let served = Served::new().unwrap();
    let topic = fresh_name("seek");
    create(&served.bootstrap(), &topic, 1, &[]).unwrap();
    let producer =
        producer(&served.bootstrap(), &[("linger.ms", "50"), ("batch.num.messages", "10")]);
    for n in 0..60_u8 {
        send(&producer, &topic, &[n]);
    }
    assert!(outcomes(&producer).iter().all(Result::is_ok));
    let consumer = consumer(&served.bootstrap()).unwrap();
    assert_eq!(offsets(&read(&consumer, &topic, Offset::Offset(37), 5)), [37, 38, 39, 40, 41]);
    consumer.seek(&topic, 0, Offset::Offset(4), DEADLINE).unwrap();
    let seen = take(&consumer, 2);
    assert_eq!(offsets(&seen), [4, 5]);
    assert_eq!(seen[0].payload(), Some([4].as_slice()));
    consumer.seek(&topic, 0, Offset::Beginning, DEADLINE).unwrap();
    assert_eq!(offsets(&take(&consumer, 1)), [0]);
    consumer.seek(&topic, 0, Offset::OffsetTail(3), DEADLINE).unwrap();
    assert_eq!(offsets(&take(&consumer, 3)), [57, 58, 59]);
}

#[test]
fn given_a_consumer_that_waits_when_a_record_comes_then_it_has_it_long_before_its_wait_is_over() {
    let served = Served::new().unwrap();
    let topic = fresh_name("wait");
    create(&served.bootstrap(), &topic, 1, &[]).unwrap();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", served.bootstrap())
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "50000")
        .set("socket.timeout.ms", "60000")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(&topic, 0, Offset::Offset(0)).unwrap();
    consumer.assign(&assignment).unwrap();
    let producer = producer(&served.bootstrap(), &[("linger.ms", "0")]);
    for n in 0..20_u8 {
        send(&producer, &topic, &[n]);
        assert_eq!(outcomes(&producer), [Ok((0, i64::from(n)))]);
        let acked = Instant::now();
        assert_eq!(take(&consumer, 1)[0].payload(), Some([n].as_slice()));
        assert!(acked.elapsed() < Duration::from_secs(10), "waited {:?}", acked.elapsed());
    }
}

#[test]
fn given_a_topic_that_is_not_there_when_produced_to_then_it_is_created_and_when_only_asked_for_then_not()
 {
    let served = Served::new().unwrap();
    let wanted = fresh_name("auto");
    let unwanted = fresh_name("never");
    assert!(!topic_exists(&served, &unwanted));
    assert!(!topic_exists(&served, &unwanted), "asking must not create it");
    let producer = producer(&served.bootstrap(), &[]);
    send(&producer, &wanted, b"first");
    assert_eq!(outcomes(&producer), [Ok((0, 0))]);
    assert!(topic_exists(&served, &wanted));
    let name = StrBytes::from_string(wanted);
    assert_eq!(
        read(&consumer(&served.bootstrap()).unwrap(), &name, Offset::Beginning, 1)[0].payload(),
        Some(b"first".as_slice())
    );
}

#[test]
fn given_each_kind_of_acks_when_produced_then_every_record_is_there_in_order() {
    let served = Served::new().unwrap();
    for acks in ["0", "1", "all"] {
        let topic = fresh_name("acks");
        create(&served.bootstrap(), &topic, 1, &[]).unwrap();
        let producer = producer(&served.bootstrap(), &[("acks", acks), ("linger.ms", "1")]);
        (0..200_u8).for_each(|n| send(&producer, &topic, &[n]));
        assert!(outcomes(&producer).iter().all(Result::is_ok), "acks={acks}");
        let read = read(&consumer(&served.bootstrap()).unwrap(), &topic, Offset::Beginning, 200);
        let values: Vec<u8> = read.iter().map(|m| m.payload().unwrap()[0]).collect();
        assert!(values.into_iter().eq(0..200), "acks={acks}");
    }
}

#[test]
fn given_partitions_over_all_shards_when_an_idempotent_producer_fills_them_then_all_of_it_is_read()
{
    let served = Served::with(Settings { wal_file_bytes: 4 << 20, ..Settings::new() }).unwrap();
    let topic = fresh_name("spread");
    create(&served.bootstrap(), &topic, 16, &[]).unwrap();
    let mut load = Load::connect(&served.bootstrap(), &topic, 16, 1).unwrap();
    load.run_until_acked(10_000, DEADLINE).unwrap();
    load.drain(DEADLINE).unwrap();
    let logs = read_topic(&served.bootstrap(), &topic, 16, DEADLINE).unwrap();
    load.ledger.check(&logs).unwrap();
    assert!(logs.iter().all(|log| !log.records.is_empty()));
}
