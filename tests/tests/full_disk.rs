//! A disk that fills up: produce is refused in words, everything else goes on, and space that comes back is used.
//!
//! Needs root, `mkfs.ext4` and a loop device for a small disk of its own; says `SKIPPED` where it has not got them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use chronik_tests::batch::BatchBuilder;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::{ScratchDir, say_skipped, wait_for};
use chronik_tests::workload::read_topic;

const DEADLINE: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 24 << 20;
/// What stands in the way until somebody makes room.
const FILLER_BYTES: usize = 6 << 20;
const VALUE_BYTES: usize = 100_000;
/// More batches than the disk has room for.
const BATCHES_MAX: usize = 500;

/// A small ext4 of its own, unmounted when dropped.
struct SmallDisk {
    mounted_at: PathBuf,
    _scratch: ScratchDir,
}

impl SmallDisk {
    fn make() -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let scratch = ScratchDir::new("disk").unwrap();
        let image = scratch.path().join("image");
        File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
        let mounted_at = scratch.path().join("mounted");
        std::fs::create_dir(&mounted_at).unwrap();
        let run = |program: &str, args: &[&str], last: &[&Path]| {
            let mut command = Command::new(program);
            command.args(args).args(last).stdout(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0"], &[&image])
            && run("mount", &["-o", "loop"], &[&image, &mounted_at]);
        made.then(|| SmallDisk { mounted_at, _scratch: scratch })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.mounted_at).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.mounted_at.display());
        }
    }
}

fn batch(n: usize) -> bytes::Bytes {
    let mut value = format!("{n:08}").into_bytes();
    value.resize(VALUE_BYTES, b'x');
    BatchBuilder::of_value(value).build()
}

fn connect(broker: &Broker) -> RawConnection {
    RawConnection::open(broker.ports().kafka_addr()).unwrap()
}

/// Everything acknowledged is read, in order: `acked` records that carry these numbers.
fn assert_readable(broker: &Broker, topic: &str, acked: &[usize]) {
    let logs = read_topic(&broker.bootstrap(), topic, 1, DEADLINE).unwrap();
    let numbers: Vec<usize> = logs[0]
        .records
        .iter()
        .map(|record| std::str::from_utf8(&record.value[..8]).unwrap().parse().unwrap())
        .collect();
    assert_eq!(numbers, acked);
}

#[test]
fn given_a_disk_that_fills_up_when_produced_to_then_it_is_refused_reads_go_on_and_space_is_used_again()
 {
    let Some(disk) = SmallDisk::make() else {
        say_skipped("a loop-mounted ext4 needs root, mkfs.ext4 and a loop device");
        return;
    };
    let filler = disk.mounted_at.join("filler");
    std::fs::write(&filler, vec![1; FILLER_BYTES]).unwrap();
    let mut broker = Broker::start(Settings {
        shards: 1,
        wal_file_bytes: 1 << 20,
        ballast_bytes: 1 << 20,
        data_dir: Some(disk.mounted_at.join("data")),
        ..Settings::new()
    })
    .unwrap();
    let topic = fresh_name("full");
    let mut connection = connect(&broker);
    connection.ensure_topic(&topic).unwrap();

    let mut acked = Vec::new();
    let mut refused = None;
    for n in 0..BATCHES_MAX {
        let produced = connection.produce(&topic, 0, batch(n)).unwrap();
        if produced.error_code != 0 {
            refused = Some(produced.error_code);
            break;
        }
        acked.push(n);
    }
    let code = refused.expect("the disk never filled up");
    assert_ne!(code, -1, "UNKNOWN_SERVER_ERROR tells a client nothing");
    println!("{} batches stored, then error {code}", acked.len());
    assert!(acked.len() * VALUE_BYTES > FILLER_BYTES / 2, "refused long before the disk was full");
    let says_why = ["full", "no space", "space"].iter().any(|word| broker.log_contains(word));
    assert!(says_why, "the log does not say that the disk is full");

    // Refused, not broken: the same connection asks for other things, and the broker is still up after a restart.
    assert_eq!(connection.metadata(&topic, false).unwrap().topics[0].error_code, 0);
    assert_readable(&broker, &topic, &acked);
    assert_ne!(connection.produce(&topic, 0, batch(900)).unwrap().error_code, 0);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    assert_readable(&broker, &topic, &acked);

    std::fs::remove_file(&filler).unwrap();
    let mut connection = connect(&broker);
    wait_for("produce works again", DEADLINE, || {
        let produced = connection.produce(&topic, 0, batch(1_000)).unwrap();
        (produced.error_code == 0).then_some(())
    })
    .unwrap();
    acked.push(1_000);
    for n in 1_001..1_010 {
        assert_eq!(connection.produce(&topic, 0, batch(n)).unwrap().error_code, 0);
        acked.push(n);
    }
    assert_readable(&broker, &topic, &acked);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    assert_readable(&broker, &topic, &acked);
    broker.terminate().unwrap();
}
