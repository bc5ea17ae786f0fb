//! What keeps a broker from starting: one clear sentence, an exit code, and nothing overwritten.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chronik_tests::batch::BatchBuilder;
use chronik_tests::binary::{Finished, run_server};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::{Ports, ScratchDir, say_skipped};
use chronik_tests::workload::read_topic;

const DEADLINE: Duration = Duration::from_secs(30);
/// A block of the WAL begins at a multiple of this.
const BLOCK_ALIGN: usize = 4096;
/// Where the header of a block has its format version and its checksum, and how long header and descriptors are.
const BLOCK_VERSION_AT: usize = 4;
const BLOCK_COUNT_AT: usize = 52;
const BLOCK_CRC_AT: usize = 56;
const BLOCK_HEADER_BYTES: usize = 64;
const BLOCK_DESCRIPTOR_BYTES: usize = 64;

/// Starts the program with a configuration file of this text; it must end by itself.
fn start_with(config: &str) -> Finished {
    let scratch = ScratchDir::new("config").unwrap();
    let path = scratch.path().join("chronik.toml");
    std::fs::write(&path, config).unwrap();
    run_server(&["--config".as_ref(), path.as_os_str()], DEADLINE).unwrap()
}

fn start_on(data_dir: &Path, settings: &Settings) -> Finished {
    start_with(&settings.to_toml(data_dir, &Ports::take().unwrap()))
}

/// It ended with an exit code that is not 0, and its words tell a person what is wrong.
fn assert_refused(finished: &Finished, words: &[&str]) {
    assert!(finished.status.code().is_some_and(|code| code != 0), "{finished:?}");
    let text = finished.text();
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
    for ugly in ["panicked", "stack backtrace", "Err(", "RUST_BACKTRACE"] {
        assert!(!text.contains(ugly), "{ugly:?} in:\n{text}");
    }
    assert!(text.lines().count() <= 8, "more than one clear sentence:\n{text}");
}

/// Every file below `dir` with its content; the lock file names whoever looked last.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_some_and(|name| name != "lock") {
                files.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn assert_unchanged(before: &BTreeMap<PathBuf, Vec<u8>>, dir: &Path) {
    let after = content(dir);
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(before), names(&after), "files came or went");
    for (path, bytes) in before {
        assert!(after[path] == *bytes, "{} was overwritten", path.display());
    }
}

/// A broker with records 0..count of `topic` on one shard, each acknowledged before the next, then gone by SIGKILL.
fn killed_with_records(topic: &str, count: usize) -> Broker {
    let mut broker = Broker::start(Settings { shards: 1, ..Settings::new() }).unwrap();
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    connection.ensure_topic(topic).unwrap();
    for n in 0..count {
        let batch = BatchBuilder::of_value(marker(n)).build();
        assert_eq!(connection.produce(topic, 0, batch).unwrap().error_code, 0);
    }
    broker.kill().unwrap();
    broker
}

fn marker(n: usize) -> String {
    format!("<marker of record {n:06}>")
}

fn values(broker: &Broker, topic: &str) -> Vec<String> {
    let logs = read_topic(&broker.bootstrap(), topic, 1, DEADLINE).unwrap();
    logs[0].records.iter().map(|r| String::from_utf8(r.value.clone()).unwrap()).collect()
}

/// The WAL file that holds these bytes, and where.
fn find_in_wal(broker: &Broker, bytes: &[u8]) -> (PathBuf, usize) {
    for path in broker.wal_files().unwrap() {
        let content = std::fs::read(&path).unwrap();
        if let Some(at) = content.windows(bytes.len()).position(|window| window == bytes) {
            return (path, at);
        }
    }
    panic!("{:?} is in no WAL file", String::from_utf8_lossy(bytes));
}

fn flip_byte(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn given_an_unknown_setting_when_started_then_the_message_names_it_and_what_was_meant() {
    let refused = start_with("node_id = 1\nkafka_adr = \"127.0.0.1:9092\"\n");
    assert_refused(&refused, &["kafka_adr", "kafka_addr", "chronik.toml:2"]);
    let refused = start_with("[wal]\nfile_bites = 1\n");
    assert_refused(&refused, &["wal.file_bites", "file_bytes"]);
}

#[test]
fn given_a_bad_value_when_started_then_the_message_names_the_setting_and_the_value() {
    for (config, words) in [
        ("node_id = -5\n", ["node_id", "-5"]),
        ("kafka_addr = \"localhost\"\n", ["kafka_addr", "localhost"]),
        ("[wal]\nfile_bytes = 7\n", ["wal.file_bytes", "7"]),
        ("shards = \"many\"\n", ["shards", "many"]),
        ("node_id = \n", ["chronik.toml:1", "TOML"]),
    ] {
        assert_refused(&start_with(config), &words);
    }
    let missing = run_server(&["--config", "/nowhere/chronik.toml"], DEADLINE).unwrap();
    assert_refused(&missing, &["/nowhere/chronik.toml"]);
    let flag = run_server(&["--no-such-flag"], DEADLINE).unwrap();
    assert_refused(&flag, &["--no-such-flag"]);
}

#[test]
fn given_a_port_in_use_when_started_then_the_message_names_it_and_no_data_is_made() {
    let scratch = ScratchDir::new("port").unwrap();
    let data_dir = scratch.path().join("data");
    let ports = Ports::take().unwrap();
    for (taken, setting) in [(ports.kafka_addr(), "kafka_addr"), (ports.admin_addr(), "admin_addr")]
    {
        let _listener = TcpListener::bind(taken).unwrap();
        let refused = start_with(&Settings::new().to_toml(&data_dir, &ports));
        assert_refused(&refused, &[setting, &taken.to_string()]);
        assert!(!data_dir.join("shards").exists(), "data was made");
    }
}

#[test]
fn given_a_data_directory_that_is_in_use_when_another_broker_starts_on_it_then_it_is_refused() {
    let mut broker = Broker::start(Settings::new()).unwrap();
    let refused = start_on(broker.data_dir(), &Settings::new());
    assert_refused(&refused, &["in use", &broker.data_dir().display().to_string()]);
    assert!(broker.is_ready(), "the broker that was there must not notice");
    assert_eq!(broker.terminate().unwrap().code(), Some(0));
}

#[test]
fn given_the_data_directory_of_another_node_when_started_then_it_is_refused_and_unchanged() {
    let broker = killed_with_records("mine", 3);
    let before = content(broker.data_dir());
    let settings = Settings { node_id: 2, shards: 1, ..Settings::new() };
    let refused = start_on(broker.data_dir(), &settings);
    assert_refused(&refused, &["belongs to node 1", "node 2"]);
    assert_unchanged(&before, broker.data_dir());
}

#[test]
fn given_a_data_directory_of_a_newer_format_when_started_then_it_is_refused_and_unchanged() {
    let broker = killed_with_records("newer", 3);
    let path = broker.data_dir().join("identity.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (body, _) = text.split_once("checksum = ").unwrap();
    let body = body.replace("format_version = 1", "format_version = 77");
    let checksum = crc32fast::hash(body.as_bytes());
    std::fs::write(&path, format!("{body}checksum = \"crc32:{checksum:08x}\"\n")).unwrap();
    let before = content(broker.data_dir());
    let refused = start_on(broker.data_dir(), &Settings { shards: 1, ..Settings::new() });
    assert_refused(&refused, &["format 77", "newer"]);
    assert_unchanged(&before, broker.data_dir());
}

#[test]
fn given_a_wal_file_of_a_newer_format_when_started_then_it_is_refused_and_unchanged() {
    let broker = killed_with_records("newer-wal", 3);
    let path = broker.wal_files().unwrap().pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[BLOCK_VERSION_AT..BLOCK_VERSION_AT + 2].copy_from_slice(&9_u16.to_le_bytes());
    let count = bytes[BLOCK_COUNT_AT..BLOCK_CRC_AT].first_chunk().unwrap();
    let covered = BLOCK_HEADER_BYTES
        + BLOCK_DESCRIPTOR_BYTES * usize::try_from(u32::from_le_bytes(*count)).unwrap();
    bytes[BLOCK_CRC_AT..BLOCK_CRC_AT + 4].fill(0);
    let crc = crc32fast::hash(&bytes[..covered]);
    bytes[BLOCK_CRC_AT..BLOCK_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let before = content(broker.data_dir());
    let refused = start_on(broker.data_dir(), &Settings { shards: 1, ..Settings::new() });
    assert_refused(&refused, &[path.file_name().unwrap().to_str().unwrap(), "version"]);
    assert_unchanged(&before, broker.data_dir());
}

#[test]
fn given_a_data_directory_that_is_a_file_or_cannot_be_made_when_started_then_the_message_names_it()
{
    let scratch = ScratchDir::new("no-dir").unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "I am a file").unwrap();
    assert_refused(&start_on(&file, &Settings::new()), &["not a directory", "file"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "I am a file");
    let below = file.join("data");
    assert_refused(&start_on(&below, &Settings::new()), &[&below.display().to_string()]);
    let proc = Path::new("/proc/chronik");
    assert_refused(&start_on(proc, &Settings::new()), &["/proc/chronik"]);
}

#[test]
fn given_a_read_only_data_directory_when_started_then_the_message_says_that_it_cannot_be_written() {
    let broker = killed_with_records("readonly", 3);
    let Some(_mount) = ReadOnlyMount::over(broker.data_dir()) else {
        say_skipped("a read-only bind mount needs root and mount(8)");
        return;
    };
    let before = content(broker.data_dir());
    let refused = start_on(broker.data_dir(), &Settings { shards: 1, ..Settings::new() });
    assert_refused(&refused, &["cannot be written", &broker.data_dir().display().to_string()]);
    assert_unchanged(&before, broker.data_dir());
}

/// A directory mounted over itself, read-only: permissions do not stop root.
struct ReadOnlyMount(PathBuf);

impl ReadOnlyMount {
    fn over(dir: &Path) -> Option<ReadOnlyMount> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let mount = |args: &[&str]| {
            Command::new("mount").args(args).arg(dir).status().is_ok_and(|status| status.success())
        };
        if !mount(&["--bind", dir.to_str()?]) {
            return None;
        }
        let mounted = ReadOnlyMount(dir.to_path_buf());
        mount(&["-o", "remount,bind,ro"]).then_some(mounted)
    }
}

impl Drop for ReadOnlyMount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

#[test]
fn given_a_flipped_byte_before_later_blocks_when_started_then_it_is_refused_until_the_loss_is_accepted()
 {
    let topic = fresh_name("flipped");
    let mut broker = killed_with_records(&topic, 40);
    let (path, at) = find_in_wal(&broker, marker(15).as_bytes());
    flip_byte(&path, at);
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let block = (at / BLOCK_ALIGN * BLOCK_ALIGN).to_string();
    let before = content(broker.data_dir());

    let refused = start_on(broker.data_dir(), &Settings { shards: 1, ..Settings::new() });
    assert_refused(&refused, &[&name, &block, "wal repair"]);
    assert_unchanged(&before, broker.data_dir());

    let dir = broker.data_dir().to_path_buf();
    let wal = |args: &[&str]| {
        let mut all = vec!["wal"];
        all.extend_from_slice(args);
        all.push(dir.to_str().unwrap());
        run_server(&all, DEADLINE).unwrap()
    };
    let verify = wal(&["verify"]);
    assert!(!verify.status.success(), "{verify:?}");
    assert!(verify.text().contains(&name) && verify.text().contains(&block), "{}", verify.text());
    let inspect = wal(&["inspect"]);
    assert!(inspect.text().contains(&name), "{}", inspect.text());
    let hesitant = wal(&["repair"]);
    assert!(!hesitant.status.success(), "{hesitant:?}");
    assert!(hesitant.text().contains("--accept-loss"), "{}", hesitant.text());
    assert_unchanged(&before, broker.data_dir());

    let repaired = wal(&["repair", "--accept-loss"]);
    assert!(repaired.status.success(), "{repaired:?}");
    let verify = wal(&["verify"]);
    assert!(verify.status.success(), "{verify:?}");
    broker.start_again().unwrap();
    let left = values(&broker, &topic);
    let expected: Vec<String> = (0..40).filter(|n| *n != 15).map(marker).collect();
    assert_eq!(left, expected, "only what was in the damaged block is gone");
}

#[test]
fn given_rubbish_behind_the_last_block_when_started_then_it_is_cut_and_nothing_is_lost() {
    let topic = fresh_name("torn");
    let mut broker = killed_with_records(&topic, 20);
    let (path, _) = find_in_wal(&broker, marker(19).as_bytes());
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() / BLOCK_ALIGN * BLOCK_ALIGN
        + BLOCK_ALIGN;
    // Half a block as a power cut leaves it: the start of an earlier one, then noise.
    let earlier = bytes[BLOCK_ALIGN..BLOCK_ALIGN + 512].to_vec();
    bytes[end..end + 512].copy_from_slice(&earlier);
    for (at, byte) in bytes[end + 512..end + 1024].iter_mut().enumerate() {
        *byte = u8::try_from(at % 251).unwrap();
    }
    std::fs::write(&path, bytes).unwrap();
    broker.start_again().unwrap();
    assert_eq!(values(&broker, &topic), (0..20).map(marker).collect::<Vec<_>>());
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    let more = BatchBuilder::of_value(marker(20)).build();
    assert_eq!(connection.produce(&topic, 0, more).unwrap().base_offset, 20);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    assert_eq!(values(&broker, &topic), (0..21).map(marker).collect::<Vec<_>>());
}

#[test]
fn given_sigterm_when_the_broker_leaves_then_its_exit_code_is_0_and_the_wal_says_it_was_closed_cleanly()
 {
    let mut broker = Broker::start(Settings { shards: 1, ..Settings::new() }).unwrap();
    let topic = fresh_name("clean");
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    connection.ensure_topic(&topic).unwrap();
    for n in 0..10 {
        connection.produce(&topic, 0, BatchBuilder::of_value(marker(n)).build()).unwrap();
    }
    let inspect = |broker: &Broker| {
        let args = ["wal", "inspect", broker.data_dir().to_str().unwrap()];
        run_server(&args, DEADLINE).unwrap().text().to_lowercase()
    };
    assert_eq!(broker.terminate().unwrap().code(), Some(0), "{}", broker.log_tail());
    let closed = inspect(&broker);
    assert!(closed.contains("clean"), "{closed}");
    broker.start_again().unwrap();
    assert_eq!(values(&broker, &topic), (0..10).map(marker).collect::<Vec<_>>());
}
