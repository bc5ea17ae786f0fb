//! SIGKILL, again and again, under a producer that lives through it: nothing acknowledged is lost, nothing is there twice.
//!
//! `CHRONIK_KILL_ROUNDS` sets the number of kills, `CHRONIK_KILL_SEED` the seed. The moments of the kills are counted in
//! acknowledgements and readiness probes, so a seed brings back the same load and the same kind of moment, though not
//! the same instant.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::checker::Violation;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{Produced, RawConnection, topic_name};
use chronik_tests::scratch::{count_from_env, seed_from_env};
use chronik_tests::workload::{Load, read_topic};
use kafka_protocol::messages::CreateTopicsRequest;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const ROUNDS_DEFAULT: usize = 20;
const PARTITIONS: usize = 6;
/// A kill comes after at least one and at most so many acknowledgements.
const ACKS_PER_ROUND_MAX: usize = 1_500;
/// One start in so many is itself killed before it is over.
const KILL_AT_START_ONE_IN: u32 = 4;
/// Readiness probes before such a kill.
const PROBES_BEFORE_KILL_MAX: usize = 60;
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn given_a_producer_when_the_broker_is_killed_again_and_again_then_all_acked_is_there_once_and_in_order()
 {
    let seed = seed_from_env("CHRONIK_KILL_SEED").unwrap();
    let rounds = count_from_env("CHRONIK_KILL_ROUNDS", ROUNDS_DEFAULT).unwrap();
    println!("kill loop: seed {seed}, {rounds} rounds");
    if let Err(error) = kill_loop(seed, rounds) {
        panic!(
            "{error:#}\nto see it again: CHRONIK_KILL_SEED={seed} CHRONIK_KILL_ROUNDS={rounds} \
             cargo test -p chronik-tests --test kill_loop -- --nocapture"
        );
    }
}

fn kill_loop(seed: u64, rounds: usize) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Small files: some kills fall into a roll.
    let mut broker = Broker::start(Settings { wal_file_bytes: 2 << 20, ..Settings::new() })?;
    let topic = fresh_name("kills");
    create_topic(&broker, &topic, i32::try_from(PARTITIONS)?)?;
    let mut load = Load::connect(&broker.bootstrap(), &topic, PARTITIONS, seed)?;
    let mut topics = Vec::new();
    for round in 1..=rounds {
        let outcome = kill_once(&mut broker, &mut load, &mut topics, &mut rng, round);
        outcome.with_context(|| format!("round {round}\n{}", broker.log_tail()))?;
        println!("round {round}: {} of {} acknowledged", load.ledger.acked(), load.ledger.sent());
    }
    load.drain(DEADLINE).with_context(|| broker.log_tail())?;
    check(&broker, &mut load)?;
    ensure!(!broker.log_contains("panicked"), "the broker panicked\n{}", broker.log_tail());
    Ok(())
}

fn kill_once(
    broker: &mut Broker,
    load: &mut Load,
    topics: &mut Vec<String>,
    rng: &mut StdRng,
    round: usize,
) -> Result<()> {
    // A topic that was acknowledged a moment before the kill is as durable as a record.
    if rng.random_ratio(1, 3) {
        let name = fresh_name(&format!("round-{round}"));
        create_topic(broker, &name, 2)?;
        topics.push(name);
    }
    load.run_until_acked(rng.random_range(1..=ACKS_PER_ROUND_MAX), DEADLINE)?;
    broker.kill()?;
    if rng.random_ratio(1, KILL_AT_START_ONE_IN) {
        kill_at_start(broker, rng.random_range(0..=PROBES_BEFORE_KILL_MAX))?;
    }
    broker.start_again()?;
    check(broker, load)?;
    let mut connection = RawConnection::open(broker.ports().kafka_addr())?;
    for name in topics {
        let found = connection.metadata(name, false)?;
        let code = found.topics.first().context("no topic in the answer")?.error_code;
        ensure!(code == 0, "topic {name} was created and is not there: error {code}");
    }
    Ok(())
}

/// Starts the broker and kills it after `probes` looks at its readiness, or when it is ready.
fn kill_at_start(broker: &mut Broker, probes: usize) -> Result<()> {
    broker.spawn()?;
    for _ in 0..probes {
        if broker.is_ready() {
            break;
        }
        ensure!(broker.is_running(), "the broker ended at its start\n{}", broker.log_tail());
    }
    broker.kill()
}

fn check(broker: &Broker, load: &mut Load) -> Result<()> {
    let logs = read_topic(&broker.bootstrap(), load.topic(), PARTITIONS, DEADLINE)?;
    load.ledger.check(&logs).context("what was read is not what was promised")
}

fn create_topic(broker: &Broker, name: &str, partitions: i32) -> Result<()> {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions)
        .with_replication_factor(1);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
    let response = RawConnection::open(broker.ports().kafka_addr())?.call(5, &request)?;
    let code = response.topics.first().context("no topic in the answer")?.error_code;
    ensure!(code == 0, "creating {name}: error {code}");
    Ok(())
}

#[test]
fn given_blocks_erased_behind_the_brokers_back_when_all_is_read_then_the_loss_is_seen() {
    // The loop above is only worth something if it can fail.
    let mut broker = Broker::start(Settings::new()).unwrap();
    let topic = fresh_name("erased");
    create_topic(&broker, &topic, i32::try_from(PARTITIONS).unwrap()).unwrap();
    let mut load = Load::connect(&broker.bootstrap(), &topic, PARTITIONS, 12).unwrap();
    load.run_until_acked(300, DEADLINE).unwrap();
    load.drain(DEADLINE).unwrap();
    broker.kill().unwrap();
    for path in broker.wal_files().unwrap() {
        erase_end(&path);
    }
    broker.start_again().unwrap();
    let error = check(&broker, &mut load).unwrap_err();
    let violation = error.downcast_ref::<Violation>().unwrap();
    assert!(
        matches!(violation, Violation::Lost { .. } | Violation::WatermarkBack { .. }),
        "{violation}"
    );
}

/// Zeroes the last tenth of what was written to a WAL file, as a disk does that lies about its syncs.
fn erase_end(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes[written - written / 10..written].fill(0);
    std::fs::write(path, bytes).unwrap();
}

fn init_producer(broker: &Broker) -> (i64, i16) {
    RawConnection::open(broker.ports().kafka_addr()).unwrap().init_producer().unwrap()
}

#[test]
fn given_an_idempotent_batch_acked_before_a_kill_when_sent_again_then_it_is_answered_with_its_first_offset()
 {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let topic = fresh_name("again");
    create_topic(&broker, &topic, 1).unwrap();
    let (id, epoch) = init_producer(&broker);
    let batch = |n: i32| {
        let value = format!("batch {n}");
        let record = || (None, Some(value.clone().into()));
        let (a, b) = (record(), record());
        BatchBuilder::new().record(a.0, a.1).record(b.0, b.1).producer(id, epoch, n * 2).build()
    };
    let stored = |offset: i32| Produced { error_code: 0, base_offset: i64::from(offset) };
    for round in 0..3 {
        let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
        let first = round * 4;
        for n in first..first + 4 {
            assert_eq!(connection.produce(&topic, 0, batch(n)).unwrap(), stored(n * 2));
        }
        broker.kill().unwrap();
        broker.start_again().unwrap();
        let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
        for n in first..first + 4 {
            let again = connection.produce(&topic, 0, batch(n)).unwrap();
            assert_eq!(again, stored(n * 2), "batch {n} sent again after the kill");
        }
    }
    let logs = read_topic(&broker.bootstrap(), &topic, 1, DEADLINE).unwrap();
    assert_eq!(logs[0].records.len(), 24, "nothing is there twice");
}

#[test]
fn given_producer_ids_when_the_broker_is_killed_then_none_is_given_out_twice() {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..3 {
        for _ in 0..5 {
            let (id, epoch) = init_producer(&broker);
            assert_eq!(epoch, 0);
            assert!(ids.insert(id), "producer id {id} was given out before");
        }
        broker.kill().unwrap();
        broker.start_again().unwrap();
    }
}

#[test]
fn given_records_acked_when_the_broker_leaves_by_sigterm_under_load_then_it_exits_0_and_nothing_is_lost()
 {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let topic = fresh_name("term");
    create_topic(&broker, &topic, i32::try_from(PARTITIONS).unwrap()).unwrap();
    let mut load = Load::connect(&broker.bootstrap(), &topic, PARTITIONS, 11).unwrap();
    for _ in 0..3 {
        load.run_until_acked(500, DEADLINE).unwrap();
        let status = broker.terminate().unwrap();
        assert_eq!(status.code(), Some(0), "{}", broker.log_tail());
        broker.start_again().unwrap();
        check(&broker, &mut load).unwrap();
    }
    load.drain(DEADLINE).unwrap();
    check(&broker, &mut load).unwrap();
}
