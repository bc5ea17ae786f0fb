//! Real client libraries, each as a program of its own: topics, records in every codec, offsets, groups.
//!
//! A client whose libraries are not installed says `SKIPPED` with the reason; `tests/clients/setup.sh` installs them.
//! What a client wrote is read once more by librdkafka and looked at in the log's own bytes, so that a client that reads
//! its own mistakes is found. `CHRONIK_TEST_BOOTSTRAP=127.0.0.1:9092` puts the programs to the test with another broker.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::time::Duration;

use chronik_tests::clients::{CLIENTS, Outcome, Runtime};
use chronik_tests::compatibility::record;
use chronik_tests::process::Served;
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::say_skipped;
use chronik_tests::workload::{CODECS, read_topic};
use kafka_protocol::messages::ApiKey;

const DEADLINE: Duration = Duration::from_secs(30);
const PARTITIONS: usize = 3;
const RECORDS: usize = 1_000;

/// What the scenarios `groups` and `rebalances` need.
const GROUP_APIS: [ApiKey; 9] = [
    ApiKey::FindCoordinator,
    ApiKey::JoinGroup,
    ApiKey::SyncGroup,
    ApiKey::Heartbeat,
    ApiKey::LeaveGroup,
    ApiKey::OffsetCommit,
    ApiKey::OffsetFetch,
    ApiKey::DescribeGroups,
    ApiKey::ListGroups,
];

/// Runs all scenarios that the broker has the APIs for, and fails with all that does not hold.
fn run(runtime: Runtime) {
    let client = CLIENTS.iter().find(|client| client.runtime == runtime).unwrap();
    if let Some(why) = client.missing().unwrap() {
        say_skipped(&format!("{}: {why}", client.title()));
        return;
    }
    let served = Served::new().unwrap();
    let mut scenarios = client.scenarios();
    let advertised = RawConnection::open(served.addr()).unwrap().api_versions().unwrap();
    let has = |api: &ApiKey| advertised.iter().any(|(key, _, _)| *key == *api as i16);
    if let Some(api) = GROUP_APIS.iter().find(|api| !has(api)) {
        scenarios.retain(|scenario| !["groups", "rebalances"].contains(scenario));
        say_skipped(&format!("{}, groups: the broker does not advertise {api:?}", client.title()));
    }
    let mut outcomes = client.run(&served.bootstrap(), &scenarios).unwrap();
    let without_groups = !scenarios.contains(&"groups");
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.result == "ok") {
        if let Err(why) = look_at(&served, outcome) {
            outcome.result = "failed".to_owned();
            outcome.detail = why;
        }
    }
    let is_own = std::env::var_os("CHRONIK_TEST_BOOTSTRAP").is_none();
    if is_own && std::env::var_os("CHRONIK_MATRIX_RECORD").is_some() {
        record(client, &outcomes).unwrap();
    }
    let bad: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| match outcome.result.as_str() {
            "ok" => false,
            // KafkaJS reads in groups only.
            "absent" => !client.absent.contains(&outcome.check.as_str()) && !without_groups,
            _ => true,
        })
        .collect();
    assert!(bad.is_empty(), "{}: {bad:#?}", client.title());
}

/// What other eyes see of the records that a client wrote.
fn look_at(served: &Served, outcome: &Outcome) -> Result<(), String> {
    let Some(topic) = &outcome.topic else { return Ok(()) };
    let sample = outcome.check.strip_prefix("records.").ok_or("a topic, but no records")?;
    let logs = read_topic(&served.bootstrap(), topic, PARTITIONS, DEADLINE)
        .map_err(|error| format!("librdkafka reads it: {error:#}"))?;
    let values: Vec<&[u8]> =
        logs.iter().flat_map(|log| &log.records).map(|record| record.value.as_slice()).collect();
    let distinct: HashSet<&[u8]> = values.iter().copied().collect();
    let of_sample = |value: &&[u8]| value.starts_with(format!("{sample}-").as_bytes());
    if (values.len(), distinct.len()) != (RECORDS, RECORDS) || !distinct.iter().all(of_sample) {
        return Err(format!(
            "librdkafka reads {} records, {} different",
            values.len(),
            distinct.len()
        ));
    }
    let codec = CODECS.iter().position(|codec| *codec == sample).unwrap_or_default();
    let stored = stored_codecs(served, topic);
    // A client may leave a batch of one record as it is.
    if stored.contains(&codec) {
        Ok(())
    } else {
        Err(format!("stored in codecs {stored:?}, not {codec}"))
    }
}

/// The codecs in the headers of the first partition's batches, as the broker has stored them.
fn stored_codecs(served: &Served, topic: &str) -> HashSet<usize> {
    let mut connection = RawConnection::open(served.addr()).unwrap();
    let response = connection.fetch(topic, 0, 0).unwrap();
    let records = response.responses[0].partitions[0].records.clone().unwrap_or_default();
    let mut codecs = HashSet::new();
    let mut rest = &records[..];
    // Base offset, length, and in the length's bytes, the attributes.
    while rest.len() > 23 {
        let length = u32::from_be_bytes([rest[8], rest[9], rest[10], rest[11]]);
        codecs.insert(usize::from(rest[22] & 7));
        rest = rest.get(12 + usize::try_from(length).unwrap()..).unwrap_or_default();
    }
    codecs
}

#[test]
fn given_the_java_client_4_1_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Java("4.1.1"));
}

#[test]
fn given_the_java_client_2_8_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Java("2.8.2"));
}

#[test]
fn given_confluent_kafka_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Python("confluent.py"));
}

#[test]
fn given_kafka_python_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Python("kafka_python.py"));
}

#[test]
fn given_aiokafka_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Python("aio_kafka.py"));
}

#[test]
fn given_franz_go_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Go("franz"));
}

#[test]
fn given_sarama_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Go("sarama"));
}

#[test]
fn given_kafka_go_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Go("kafkago"));
}

#[test]
fn given_kafkajs_when_its_scenarios_run_then_every_check_holds() {
    run(Runtime::Node);
}
