//! Rubbish over the wire: the broker answers with an error or closes, keeps its memory, and everybody else goes on.
//!
//! `CHRONIK_MUTATIONS` sets how many mutated requests are sent one by one, `CHRONIK_MUTATIONS_EACH` how many of each API
//! in rows, `CHRONIK_MUTATION_SEED` their seed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a well-behaved client runs in a thread beside")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chronik_tests::batch::{self, BatchBuilder};
use chronik_tests::flood::Flood;
use chronik_tests::http;
use chronik_tests::mutate::{fetch_wait_ms, mutate, overwrite};
use chronik_tests::poke::{Health, POKE_DEADLINE, Poked, Poker, hear_until_closed, stay_healthy};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{
    Heard, RawConnection, encode_frame, fetch_request, metadata_request, with_length,
};
use chronik_tests::requests::{ValidRequest, World, valid_requests};
use chronik_tests::scratch::{count_from_env, seed_from_env, wait_for};
use kafka_protocol::messages::ApiVersionsRequest;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

const MIB: u64 = 1 << 20;
const MUTATIONS_DEFAULT: usize = 10_000;
const MUTATIONS_EACH_DEFAULT: usize = 10_000;
/// Requests in a row, and connections with rows at once.
const ROW: usize = 8;
const FLOODS: usize = 3;
/// Where a frame has its correlation id.
const CORRELATION: Range<usize> = 8..12;
/// No frame is shorter: the header of a request without a client id.
const SHORTEST: usize = 8;
const CREATE_TOPICS: i16 = 19;
const CREATE_PARTITIONS: i16 = 37;
/// A mutated Fetch may ask to wait; longer than this and it is not sent.
const WAIT_MS_MAX: i32 = 200;
/// An operation of the well-behaved client may take this long on a loaded machine.
const HEALTHY_MAX: Duration = Duration::from_secs(10);

fn addr(broker: &Broker) -> SocketAddr {
    broker.ports().kafka_addr()
}

/// Runs `rubbish` while a well-behaved client works, and then holds the broker to its promises.
fn beside_a_healthy_client(
    broker: &mut Broker,
    memory_growth_max: u64,
    rubbish: impl FnOnce(SocketAddr),
) {
    let addr = addr(broker);
    // What any load takes is taken before memory is measured.
    let topic = fresh_name("healthy");
    stay_healthy(addr, &fresh_name("warm"), &AtomicBool::new(true)).unwrap();
    let peak = broker.memory_peak_bytes().unwrap();
    let stop = AtomicBool::new(false);
    let health: Health = std::thread::scope(|scope| {
        let healthy = scope.spawn(|| stay_healthy(addr, &topic, &stop));
        let stopper = StopOnDrop(&stop);
        rubbish(addr);
        drop(stopper);
        healthy.join().unwrap().unwrap()
    });
    assert!(health.slowest < HEALTHY_MAX, "the healthy client waited: {health:?}");
    assert!(broker.is_running(), "the broker is gone");
    assert!(!broker.log_contains("panicked"), "the broker panicked");
    let growth = broker.memory_peak_bytes().unwrap() - peak;
    assert!(growth < memory_growth_max, "memory grew by {} MiB", growth / MIB);
    println!("healthy: {health:?}; memory grew by {} MiB", growth / MIB);
}

/// Lets the well-behaved client end also when the rubbish panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn world(addr: SocketAddr) -> World {
    let mut connection = RawConnection::open(addr).unwrap();
    let topic = fresh_name("poked");
    connection.ensure_topic(&topic).unwrap();
    let topic_id = connection.topic_id(&topic).unwrap();
    World { topic, topic_id, other_topic: "poked-other".to_owned() }
}

fn requests(poker: &Poker, addr: SocketAddr) -> Vec<ValidRequest> {
    valid_requests(poker.advertised(), 1, &world(addr)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn given_thousands_of_mutated_requests_when_sent_then_each_is_answered_or_closed_and_others_go_on()
{
    let seed = seed_from_env("CHRONIK_MUTATION_SEED").unwrap();
    let count = count_from_env("CHRONIK_MUTATIONS", MUTATIONS_DEFAULT).unwrap();
    println!("mutated requests: seed {seed}, {count} of them");
    let again = format!(
        "to see it again: CHRONIK_MUTATION_SEED={seed} CHRONIK_MUTATIONS={count} \
         cargo test -p chronik-tests --test bad_input mutated -- --nocapture"
    );
    let mut broker = Broker::start(Settings::new()).unwrap();
    beside_a_healthy_client(&mut broker, 192 * MIB, |addr| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut poker = Poker::new(addr).unwrap();
        let requests = requests(&poker, addr);
        let (mut sent, mut closed) = (0, 0);
        while sent < count {
            let request = &requests[rng.random_range(0..requests.len())];
            let frame = mutate(&request.frame, &mut rng);
            if fetch_wait_ms(&frame) > WAIT_MS_MAX {
                continue;
            }
            sent += 1;
            match poker.poke(&frame) {
                Ok(Poked::Alive) => {}
                Ok(Poked::Closed) => closed += 1,
                Err(error) => panic!(
                    "mutation {sent} of api {} v{}: {error:#}\n{}\n{again}",
                    request.key,
                    request.version,
                    hex(&frame)
                ),
            }
        }
        println!("{sent} sent, {closed} ended with a close");
        assert!(closed < sent, "no mutated request was answered\n{again}");
    });
}

/// The requests of each API, one list for each; none of them makes topics or partitions: there would be thousands.
fn requests_by_api(poker: &Poker, addr: SocketAddr) -> Vec<Vec<ValidRequest>> {
    let mut by_api: BTreeMap<i16, Vec<ValidRequest>> = BTreeMap::new();
    for mut request in requests(poker, addr) {
        // `validate_only` is the last field, before the tagged ones of a flexible version.
        let flag = match (request.key, request.version) {
            (CREATE_TOPICS, 5..) | (CREATE_PARTITIONS, 2..) => Some(2),
            (CREATE_TOPICS | CREATE_PARTITIONS, _) => Some(1),
            _ => None,
        };
        if let Some(from_end) = flag {
            let at = request.frame.len() - from_end;
            request.frame[at] = 1;
        }
        by_api.entry(request.key).or_default().push(request);
    }
    by_api.into_values().collect()
}

/// Sends mutated requests of one API until the broker has dealt with `count`. How many it answered.
fn flood_api(flood: &mut Flood, api: &[ValidRequest], count: usize, rng: &mut StdRng) -> usize {
    let (mut dealt_with, mut answers) = (0, 0);
    while dealt_with < count {
        let mut row = Vec::new();
        while row.len() < ROW {
            let mut request = api[rng.random_range(0..api.len())].frame.clone();
            // Answers are told apart by it, as a produce may have none.
            let correlation = i32::try_from(row.len()).unwrap() + 1;
            request[CORRELATION].copy_from_slice(&correlation.to_be_bytes());
            // Lengths that lie are sent one by one: what follows them is no request.
            let frame = with_length(&mutate(&request, rng)[4..]);
            if frame.len() > 4 + SHORTEST && fetch_wait_ms(&frame) <= WAIT_MS_MAX {
                row.push(frame);
            }
        }
        let sent = flood.send(&row).unwrap_or_else(|error| {
            let rows: Vec<String> = row.iter().map(|frame| hex(frame)).collect();
            panic!("api {}: {error:#}\n{}", api[0].key, rows.join("\n"));
        });
        dealt_with += sent.dealt_with;
        answers += sent.answers;
    }
    answers
}

#[test]
fn given_thousands_of_mutated_requests_of_each_api_when_sent_then_they_are_answered_or_closed_and_others_go_on()
 {
    let seed = seed_from_env("CHRONIK_MUTATION_SEED").unwrap();
    let count = count_from_env("CHRONIK_MUTATIONS_EACH", MUTATIONS_EACH_DEFAULT).unwrap();
    println!("mutated requests of each API: seed {seed}, {count} of them");
    let settings = Settings::new().with_top("group.initial_rebalance_delay_ms = 0");
    let mut broker = Broker::start(settings).unwrap();
    beside_a_healthy_client(&mut broker, 192 * MIB, |addr| {
        let by_api = requests_by_api(&Poker::new(addr).unwrap(), addr);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut flood = Flood::new(addr).unwrap();
            while let Some(api) = by_api.get(next.fetch_add(1, Ordering::Relaxed)) {
                // By the API, so that it is the same whichever thread takes it.
                let key = u64::try_from(api[0].key).unwrap();
                let mut rng = StdRng::seed_from_u64(seed ^ (key << 32));
                let answers = flood_api(&mut flood, api, count, &mut rng);
                println!("api {key}: {answers} of {count} answered");
                assert!(answers > 0, "no mutated request of api {key} was answered, seed {seed}");
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..FLOODS).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                assert!(worker.join().is_ok(), "to see it again: CHRONIK_MUTATION_SEED={seed}");
            }
        });
    });
    stay_healthy(addr(&broker), &fresh_name("after"), &AtomicBool::new(true)).unwrap();
}

#[test]
fn given_a_huge_count_at_every_place_of_every_request_when_sent_then_no_memory_is_taken_on_its_word()
 {
    let mut broker = Broker::start(Settings::new()).unwrap();
    beside_a_healthy_client(&mut broker, 96 * MIB, |addr| {
        let mut poker = Poker::new(addr).unwrap();
        let counts: [&[u8]; 3] =
            [&[0x7F, 0xFF, 0xFF, 0xFF], &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F], &[0x7F, 0xFF]];
        for request in requests(&poker, addr) {
            // The body begins after key, version, correlation id and client id.
            for at in 8..request.frame.len() {
                for count in counts {
                    let mut frame = request.frame.clone();
                    overwrite(&mut frame, at, count);
                    if fetch_wait_ms(&frame) > WAIT_MS_MAX {
                        continue;
                    }
                    let poked = poker.poke(&frame);
                    assert!(
                        poked.is_ok(),
                        "{} at byte {at} of api {} v{}: {poked:?}\n{}",
                        hex(count),
                        request.key,
                        request.version,
                        hex(&frame)
                    );
                }
            }
        }
    });
}

#[test]
fn given_a_frame_whose_length_cannot_be_when_sent_then_the_connection_is_closed_and_the_log_says_why()
 {
    let mut broker = Broker::start(Settings::new()).unwrap();
    for length in [-1, i32::MIN, i32::MAX, 1 << 30, 0, 3] {
        let before = broker.log().len();
        let mut connection = RawConnection::open(addr(&broker)).unwrap();
        connection.write(&length.to_be_bytes()).unwrap();
        // Enough bytes for a frame of any length but the huge ones.
        connection.write(&[0; 64]).ok();
        let heard = connection.hear(POKE_DEADLINE).unwrap();
        assert_eq!(heard, Heard::Closed, "length {length}");
        wait_for("a line in the log", Duration::from_secs(5), || {
            (broker.log().len() > before).then_some(())
        })
        .unwrap_or_else(|error| panic!("length {length}: {error}"));
    }
    assert!(broker.is_running());
}

#[test]
fn given_half_a_request_when_the_client_goes_then_the_broker_closes_too() {
    let broker = Broker::start(Settings::new()).unwrap();
    let frame = encode_frame(9, 1, &metadata_request("topic", false)).unwrap();
    for cut in 1..frame.len() {
        let mut connection = RawConnection::open(addr(&broker)).unwrap();
        connection.write(&frame[..cut]).unwrap();
        connection.finish_writing().unwrap();
        assert_eq!(hear_until_closed(&mut connection).unwrap(), Poked::Closed, "cut at {cut}");
    }
}

#[test]
fn given_random_bytes_when_sent_then_the_broker_answers_or_closes_and_others_go_on() {
    let seed = seed_from_env("CHRONIK_MUTATION_SEED").unwrap();
    println!("random bytes: seed {seed}");
    let mut broker = Broker::start(Settings::new()).unwrap();
    beside_a_healthy_client(&mut broker, 96 * MIB, |addr| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut poker = Poker::new(addr).unwrap();
        for n in 0..500 {
            let mut noise = vec![0; rng.random_range(1..400)];
            rng.fill_bytes(&mut noise);
            // Half of them as frames with a true length, half as they are.
            let bytes = if n % 2 == 0 { with_length(&noise) } else { noise };
            if bytes.len() < 4 || fetch_wait_ms(&bytes) > WAIT_MS_MAX {
                continue;
            }
            let poked = poker.poke(&bytes);
            assert!(poked.is_ok(), "seed {seed}, {n}: {poked:?}\n{}", hex(&bytes));
        }
    });
}

#[test]
fn given_unknown_apis_and_versions_when_asked_then_there_is_an_error_or_a_close() {
    let broker = Broker::start(Settings::new()).unwrap();
    let mut poker = Poker::new(addr(&broker)).unwrap();
    let advertised = poker.advertised().to_vec();
    let mut asked = Vec::new();
    for key in [-1, 4, 7, 88, 93, 999, i16::MAX, i16::MIN] {
        asked.extend([0, 1, 12].map(|version| (key, version)));
    }
    for (key, min, max) in advertised {
        asked.extend([min - 1, max + 1, -1, i16::MAX, i16::MIN].map(|version| (key, version)));
    }
    // Versions of Produce that are advertised for librdkafka's sake only.
    asked.extend([0, 1, 2].map(|version| (0, version)));
    for (key, version) in asked {
        let mut body = Vec::new();
        body.extend_from_slice(&key.to_be_bytes());
        body.extend_from_slice(&version.to_be_bytes());
        body.extend_from_slice(&[0, 0, 0, 9, 0xFF, 0xFF]);
        body.extend_from_slice(&[0; 32]);
        let poked = poker.poke(&with_length(&body));
        assert!(poked.is_ok(), "api {key} v{version}: {poked:?}");
    }
}

#[test]
fn given_bad_batches_when_produced_then_each_is_refused_and_the_partition_goes_on() {
    let broker = Broker::start(Settings::new()).unwrap();
    let mut connection = RawConnection::open(addr(&broker)).unwrap();
    let topic = fresh_name("batches");
    connection.ensure_topic(&topic).unwrap();
    let big_key = BatchBuilder::new().record(Some(vec![1; 3 << 20].into()), None).build();
    let mut flipped = BytesMut::from(&BatchBuilder::of_value("x").build()[..]);
    flipped[batch::CRC_AT] ^= 0x10;
    let two = [BatchBuilder::of_value("1").build(), BatchBuilder::of_value("2").build()].concat();
    let mut refused: Vec<(String, Bytes)> = vec![
        ("an oversized key".into(), big_key),
        ("a wrong checksum".into(), flipped.freeze()),
        ("two batches".into(), two.into()),
        ("nothing".into(), Bytes::new()),
        ("a control batch".into(), BatchBuilder::of_value("x").attributes(1 << 5).build()),
        ("no records".into(), BatchBuilder::new().build()),
    ];
    for codec in 5..8 {
        let batch = BatchBuilder::of_value("x").attributes(codec).build();
        refused.push((format!("codec {codec}"), batch));
    }
    for (what, batch) in refused {
        let produced = connection.produce(&topic, 0, batch).unwrap();
        assert_ne!(produced.error_code, 0, "{what} was stored");
        // UNKNOWN_SERVER_ERROR tells a client nothing.
        assert_ne!(produced.error_code, -1, "{what}");
    }
    // Whether a batch really is compressed is the reader's to find out; it must only do no harm here.
    for codec in 1..5 {
        let batch = BatchBuilder::of_value("not compressed at all").attributes(codec).build();
        connection.produce(&topic, 0, batch).unwrap();
    }
    let good = connection.produce(&topic, 0, BatchBuilder::of_value("good").build()).unwrap();
    assert_eq!(good.error_code, 0);
    let long_name = "t".repeat(20_000);
    let produced = connection.produce(&long_name, 0, BatchBuilder::of_value("x").build()).unwrap();
    assert_ne!(produced.error_code, 0, "a topic name of 20,000 bytes");
}

#[test]
fn given_hundreds_of_connections_that_say_half_a_word_when_a_client_works_beside_then_it_goes_on() {
    let mut broker = Broker::start(Settings::new()).unwrap();
    beside_a_healthy_client(&mut broker, 96 * MIB, |addr| {
        // Each announces nearly 100 MiB and sends next to nothing.
        let announced = (99_i32 << 20).to_be_bytes();
        let mut open: Vec<RawConnection> = Vec::new();
        for n in 0..300 {
            let mut connection = RawConnection::open(addr).unwrap();
            match n % 3 {
                0 => {}
                1 => connection.write(&announced[..2]).unwrap(),
                _ => connection.write(&[&announced[..], &[0, 18, 0, 0]].concat()).unwrap(),
            }
            open.push(connection);
        }
        // One that says what it has to say byte by byte is answered.
        let mut slow = RawConnection::open(addr).unwrap();
        for byte in encode_frame(0, 7, &ApiVersionsRequest::default()).unwrap() {
            slow.write(&[byte]).unwrap();
        }
        slow.receive::<ApiVersionsRequest>(0, 7).unwrap();
        drop(open);
    });
}

#[test]
fn given_a_client_that_asks_and_never_reads_when_another_works_beside_then_memory_stays_bounded() {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let topic = fresh_name("unread");
    let mut connection = RawConnection::open(addr(&broker)).unwrap();
    connection.ensure_topic(&topic).unwrap();
    for _ in 0..8 {
        let batch = BatchBuilder::of_value(vec![7; 900_000]).build();
        assert_eq!(connection.produce(&topic, 0, batch).unwrap().error_code, 0);
    }
    // 400 answers of up to a mebibyte each, were they all made ready at once.
    beside_a_healthy_client(&mut broker, 160 * MIB, |addr| {
        let mut deaf: Vec<RawConnection> =
            (0..4).map(|_| RawConnection::open(addr).unwrap()).collect();
        let frame = encode_frame(11, 1, &fetch_request(&topic, 0, 0, 0)).unwrap();
        for connection in &mut deaf {
            for _ in 0..100 {
                connection.write(&frame).unwrap();
            }
        }
        // The broker is busy with them for as long as it likes; the healthy client's next rounds show that it is free.
        stay_healthy(addr, &fresh_name("beside"), &AtomicBool::new(true)).unwrap();
    });
}

#[test]
fn given_http_and_tls_on_the_kafka_port_when_they_are_nonsense_then_they_are_answered_or_closed() {
    let broker = Broker::start(Settings::new()).unwrap();
    let endless = format!("GET /{}", "a".repeat(100_000));
    for text in ["GET /nowhere HTTP/1.1\r\n\r\n", "POST /metrics HTTP/1.1\r\n\r\n", "GET \r\n\r\n"]
    {
        let answer = http::request(addr(&broker), text);
        assert!(answer.is_ok_and(|answer| answer.status >= 400), "{text:?}");
    }
    for bytes in [endless.as_bytes(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut connection = RawConnection::open(addr(&broker)).unwrap();
        connection.write(bytes).ok();
        connection.finish_writing().ok();
        connection.wait_closed(POKE_DEADLINE).unwrap();
    }
    RawConnection::open(addr(&broker)).unwrap().api_versions().unwrap();
}
