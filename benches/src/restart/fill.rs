//! Writes a log of a given size, and goes on writing until the broker is killed.
//!
//! - I1: what is counted was acknowledged; the last acknowledged batch is what a start must have.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

use crate::wire::{
    CALL_TIMEOUT, FrameReader, PRODUCE, Template, check_produced, correlation_of, open_stream,
    produce_request, random_batch,
};

/// Bytes of a record's value.
const RECORD_BYTES: usize = 1_024;
/// Records of a batch: just under the megabyte that brokers accept by default.
const BATCH_RECORDS: u32 = 960;
/// Requests under way.
const INFLIGHT: usize = 4;

/// The end of the log as far as it was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// Its partition.
    pub partition: i32,
    /// The first offset of the last acknowledged batch.
    pub offset: i64,
}

/// What the writer and who waits for it know of each other.
#[derive(Debug, Default)]
pub struct Progressed {
    /// Bytes of acknowledged batches.
    pub acked_bytes: AtomicU64,
    /// The broker was or is being killed: a lost connection is what is expected.
    pub killed: AtomicBool,
    /// The writer has stopped.
    pub ended: AtomicBool,
}

/// Writes to all partitions in turn until the connection is lost.
pub fn write_until_killed(
    addr: SocketAddr,
    topic: &str,
    partitions: i32,
    progressed: &Progressed,
) -> Result<LogEnd> {
    let mut writer = Writer::new(addr, topic, partitions)?;
    let outcome = writer.exchange(progressed);
    progressed.ended.store(true, Ordering::Release);
    match outcome {
        Err(_) if progressed.killed.load(Ordering::Acquire) => {}
        Err(error) => return Err(error.context("filling the log")),
        Ok(()) => {}
    }
    writer.last.context("nothing was acknowledged before the kill")
}

struct Writer {
    stream: std::net::TcpStream,
    reader: FrameReader,
    templates: Vec<Template>,
    batch_bytes: u64,
    under_way: VecDeque<(i32, i32)>,
    last: Option<LogEnd>,
}

impl Writer {
    fn new(addr: SocketAddr, topic: &str, partitions: i32) -> Result<Writer> {
        let batch = random_batch(BATCH_RECORDS, RECORD_BYTES)?;
        let batch_bytes = u64::try_from(batch.len())?;
        let templates = (0..partitions).map(|partition| {
            Template::new(&produce_request(topic, partition, -1, batch.clone()), PRODUCE)
        });
        let templates = templates.collect::<Result<Vec<_>>>()?;
        let stream = open_stream(addr)?;
        let reader = FrameReader::new(stream.try_clone()?, CALL_TIMEOUT)?;
        let under_way = VecDeque::with_capacity(INFLIGHT);
        Ok(Writer { stream, reader, templates, batch_bytes, under_way, last: None })
    }

    /// Runs until something goes wrong, which a kill is.
    fn exchange(&mut self, progressed: &Progressed) -> Result<()> {
        let mut next: i32 = 0;
        loop {
            while self.under_way.len() < INFLIGHT {
                let turn = usize::try_from(next)? % self.templates.len();
                self.stream.write_all(self.templates[turn].frame(next))?;
                self.under_way.push_back((next, i32::try_from(turn)?));
                next = next.checked_add(1).unwrap_or(0);
            }
            let Some((expected, partition)) = self.under_way.pop_front() else { return Ok(()) };
            let frame = self.reader.receive()?.context("no answer in time")?;
            let found = correlation_of(&frame)?;
            ensure!(found == expected, "answer {found} where {expected} was due");
            let offset = check_produced(frame, expected)?;
            self.last = Some(LogEnd { partition, offset });
            progressed.acked_bytes.fetch_add(self.batch_bytes, Ordering::AcqRel);
        }
    }
}
