//! kcat as a real process: what people try first.
//!
//! Where kcat is not installed each test says `SKIPPED: kcat not found` and passes; `.ci/run` installs it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use chronik_tests::binary::{Finished, run_to_end};
use chronik_tests::process::{Broker, Served, Settings, fresh_name};
use chronik_tests::scratch::{ScratchDir, say_skipped};

const DEADLINE: Duration = Duration::from_secs(60);

/// Whether kcat is there; says so when it is not.
fn kcat_is_missing() -> bool {
    let missing = Command::new("kcat")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err();
    if missing {
        say_skipped("kcat not found");
    }
    missing
}

fn kcat(bootstrap: &str, args: &[&str], input: &str) -> Finished {
    let scratch = ScratchDir::new("kcat").unwrap();
    let stdin = scratch.path().join("stdin");
    std::fs::write(&stdin, input).unwrap();
    let mut command = Command::new("kcat");
    command.args(["-b", bootstrap]).args(args).stdin(File::open(&stdin).unwrap());
    // cargo names the folder of the librdkafka it built; kcat is to use the system's, as its users do.
    command.env_remove("LD_LIBRARY_PATH");
    let finished = run_to_end(command, DEADLINE).unwrap();
    assert!(finished.status.success(), "kcat {args:?}: {finished:?}");
    finished
}

#[test]
fn given_lines_when_kcat_produces_them_then_kcat_consumes_the_same_lines_and_queries_their_offsets()
{
    if kcat_is_missing() {
        return;
    }
    let served = Served::new().unwrap();
    let (bootstrap, topic) = (served.bootstrap(), fresh_name("kcat"));
    let lines: String = (0..1_000).map(|n| format!("key{n}:line {n}\n")).collect();
    kcat(&bootstrap, &["-P", "-t", &topic, "-K", ":"], &lines);

    let read =
        kcat(&bootstrap, &["-C", "-t", &topic, "-K", ":", "-o", "beginning", "-e", "-q"], "");
    assert_eq!(read.stdout, lines);
    let tail = kcat(&bootstrap, &["-C", "-t", &topic, "-o", "-2", "-e", "-q"], "");
    assert_eq!(tail.stdout, "line 998\nline 999\n");
    let counted = kcat(
        &bootstrap,
        &["-C", "-t", &topic, "-o", "10", "-c", "3", "-q", "-f", "%p/%o %s\n"],
        "",
    );
    assert_eq!(counted.stdout, "0/10 line 10\n0/11 line 11\n0/12 line 12\n");

    let end = kcat(&bootstrap, &["-Q", "-t", &format!("{topic}:0:-1")], "");
    assert!(end.text().contains("offset 1000"), "{end:?}");
    let start = kcat(&bootstrap, &["-Q", "-t", &format!("{topic}:0:-2")], "");
    assert!(start.text().contains("offset 0"), "{start:?}");
}

#[test]
fn given_a_topic_when_kcat_lists_metadata_then_broker_and_topic_are_in_it() {
    if kcat_is_missing() {
        return;
    }
    let served = Served::new().unwrap();
    let (bootstrap, topic) = (served.bootstrap(), fresh_name("listed"));
    kcat(&bootstrap, &["-P", "-t", &topic], "one\n");
    let listed = kcat(&bootstrap, &["-L"], "").stdout;
    assert!(listed.contains(&format!("broker 1 at {bootstrap}")), "{listed}");
    assert!(listed.contains(&format!("topic \"{topic}\" with 1 partitions")), "{listed}");
    let json = kcat(&bootstrap, &["-L", "-J", "-t", &topic], "").stdout;
    assert!(json.contains("\"leader\":1"), "{json}");
}

#[test]
fn given_each_codec_and_headers_when_kcat_produces_then_kcat_reads_them_back() {
    if kcat_is_missing() {
        return;
    }
    let served = Served::new().unwrap();
    let bootstrap = served.bootstrap();
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let topic = fresh_name(codec);
        let lines: String = (0..100).map(|n| format!("{codec} {n}\n")).collect();
        kcat(&bootstrap, &["-P", "-t", &topic, "-z", codec, "-H", "h=1", "-H", "i=2"], &lines);
        let format = ["-C", "-t", &topic, "-e", "-q", "-f", "%h %s\n"];
        let expected: String = (0..100).map(|n| format!("h=1,i=2 {codec} {n}\n")).collect();
        assert_eq!(kcat(&bootstrap, &format, "").stdout, expected);
    }
}

#[test]
fn given_records_from_kcat_when_the_broker_is_killed_and_started_then_kcat_finds_every_one() {
    if kcat_is_missing() {
        return;
    }
    let mut broker = Broker::start(Settings::new()).unwrap();
    let (bootstrap, topic) = (broker.bootstrap(), fresh_name("kept"));
    let lines: String = (0..500).map(|n| format!("line {n}\n")).collect();
    kcat(&bootstrap, &["-P", "-t", &topic, "-X", "enable.idempotence=true"], &lines);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let read = kcat(&bootstrap, &["-C", "-t", &topic, "-o", "beginning", "-e", "-q"], "");
    assert_eq!(read.stdout, lines);
}
