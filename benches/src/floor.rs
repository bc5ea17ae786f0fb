//! `floor`: what the machine itself asks for records that are replicated to three disks one by one, with the fewest steps that
//! there can be: threads that block, one connection from each to the next, one durable write of a sector each.
//!
//! ```text
//! client -> leader -> both followers;  all three write;  both followers -> leader -> client
//! ```
//!
//! It keeps no log that could be read, elects nobody, and serves one client: what a broker uses above it is its own. Its
//! processor time says how much of a broker's is the machine's, and what no broker gets below.
//!
//! - I1: a record is answered when it is durable three times.
//! - I2: a record is due at its time, however late those before it were; its latency counts from there.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use rustix::io::pwrite;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::clock::{Clock, exact_sleeps};
use crate::disk::{Chunk, create_durable, ensure_room};
use crate::flags;
use crate::latency::{Latencies, Percentiles};
use crate::pace::Schedule;
use crate::report::{PERCENTILE_HEADING, Progress, Table, publish};
use crate::usage::{Cores, MessageCpu, Usage};

/// What a record takes on the disk.
const SECTOR_BYTES: u64 = 4_096;
/// Each node writes round and round in a file of so many bytes, all of it written before.
const FILE_BYTES: u64 = 64 << 20;
const NODES: usize = 3;
/// Of a follower or to the client: one byte.
const ACK_BYTES: usize = 1;

/// Arguments of `floor`.
#[derive(Debug, Clone, Args)]
pub struct FloorArgs {
    /// Records a second
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    record_bytes: u32,
    /// How long is measured
    #[arg(long, value_parser = flags::seconds_above_zero, default_value = "10")]
    seconds: Duration,
    /// How long is not measured before
    #[arg(long, value_parser = flags::seconds, default_value = "2")]
    warmup_seconds: Duration,
    /// Where the three files lie
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    rate: u64,
    record_bytes: u32,
    latency: Percentiles,
    /// Of the three nodes; the client's is not counted.
    cpu: MessageCpu,
    cores: Option<Cores>,
}

/// Runs `floor`.
pub fn run(args: &FloorArgs) -> Result<()> {
    let progress = Progress::new();
    ensure_room(&args.dir, FILE_BYTES * NODES as u64)?;
    let dir = tempfile::Builder::new().prefix("chronik-floor-").tempdir_in(&args.dir)?;
    let schedule = Schedule::new(0, args.rate, 1, args.warmup_seconds, args.seconds);
    let schedule = schedule.context("no records")?;
    progress.say("writing the files");
    let record_bytes = usize::try_from(args.record_bytes)?;
    let (first, first_addr) = Node::make(dir.path(), 1, record_bytes)?;
    let (second, second_addr) = Node::make(dir.path(), 2, record_bytes)?;
    let (third, third_addr) = Node::make(dir.path(), 3, record_bytes)?;
    let followers = [connect(second_addr)?, connect(third_addr)?];
    let nodes = [second.spawn(Vec::new()), third.spawn(Vec::new()), first.spawn(followers.into())];
    progress.say("running");
    let usage = Usage::begin();
    let latencies = be_client(connect(first_addr)?, schedule, record_bytes)?;
    let cores = usage.end();
    let mut cpu = Duration::ZERO;
    for node in nodes {
        cpu += node.join().map_err(|_| anyhow!("a node panicked"))??;
    }
    let report = Report {
        rate: args.rate,
        record_bytes: args.record_bytes,
        latency: latencies.percentiles(),
        cpu: MessageCpu::new(NODES, cpu, schedule.requests()),
        cores,
    };
    drop(progress);
    publish(args.json, "floor", &table(&report), &report)
}

/// Sends what is due, and waits for the answer.
fn be_client(mut leader: TcpStream, schedule: Schedule, bytes: usize) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    let (record, mut ack) = (vec![7; bytes], [0; ACK_BYTES]);
    exact_sleeps();
    let clock = Clock::start();
    for index in 0..schedule.requests() {
        let due_ns = schedule.due_ns(index);
        clock.sleep_until_ns(due_ns);
        leader.write_all(&record).context("sending a record")?;
        leader.read_exact(&mut ack).context("waiting for the leader")?;
        if schedule.is_measured(index) {
            latencies.record_ns(clock.now_ns().saturating_sub(due_ns));
        }
    }
    Ok(latencies)
}

/// One that writes what it is sent.
struct Node {
    listener: TcpListener,
    file: std::os::fd::OwnedFd,
    record: Vec<u8>,
}

impl Node {
    fn make(dir: &Path, number: usize, bytes: usize) -> Result<(Node, std::net::SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        let address = listener.local_addr()?;
        let file = create_durable(&dir.join(format!("node-{number}")), FILE_BYTES)?;
        Ok((Node { listener, file, record: vec![0; bytes] }, address))
    }

    /// Runs until whoever sends records is gone; the processor time that it took.
    #[expect(clippy::disallowed_methods, reason = "a node is a thread that blocks")]
    fn spawn(self, followers: Vec<TcpStream>) -> JoinHandle<Result<Duration>> {
        std::thread::spawn(move || {
            let before = thread_cpu();
            self.serve(followers)?;
            Ok(thread_cpu().saturating_sub(before))
        })
    }

    fn serve(mut self, mut followers: Vec<TcpStream>) -> Result<()> {
        let (mut from, _) = self.listener.accept().context("accepting")?;
        from.set_nodelay(true)?;
        let mut chunk = Chunk::new();
        let mut ack = [0; ACK_BYTES];
        let mut at = 0;
        while from.read_exact(&mut self.record).is_ok() {
            for follower in &mut followers {
                follower.write_all(&self.record).context("sending to a follower")?;
            }
            let sector = &mut chunk.bytes()[..usize::try_from(SECTOR_BYTES)?];
            sector[..self.record.len()].copy_from_slice(&self.record);
            let written = pwrite(&self.file, sector, at).context("writing")?;
            ensure!(written as u64 == SECTOR_BYTES, "{written} bytes of a sector were written");
            at = (at + SECTOR_BYTES) % FILE_BYTES;
            for follower in &mut followers {
                follower.read_exact(&mut ack).context("waiting for a follower")?;
            }
            from.write_all(&ack).context("answering")?;
        }
        Ok(())
    }
}

fn connect(address: std::net::SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).context("connecting")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What this thread has used.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn table(report: &Report) -> String {
    let mut table = Table::new(&PERCENTILE_HEADING);
    table.percentiles("durable after", &report.latency);
    let Report { rate, record_bytes, .. } = report;
    let mut text = format!(
        "{rate} records of {record_bytes} bytes a second, durable three times each\n{}",
        table.text()
    );
    if let Some(us) = report.cpu.us_per_message {
        text.push_str(&format!("processor time of the three nodes: {us:.0} µs by record\n"));
    }
    if let Some(cores) = report.cores {
        text.push_str(&format!("{cores}\n"));
    }
    text
}
