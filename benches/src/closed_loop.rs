//! Throughput: every connection keeps a fixed number of requests under way, and sends the next when one is answered.
//!
//! Latencies of a closed loop say how long an answer took under that load, and nothing about a load that does not wait:
//! that is what the open loop is for.
//!
//! - I1: only answers inside the measured window count, and the window's length is what rates are divided by.
//! - I2: requests still unanswered at the end are waited for, then counted.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;

use crate::clock::{Clock, SECOND_NS, duration_ns};
use crate::latency::Latencies;
use crate::report::Progress;
use crate::wire::{CALL_TIMEOUT, FrameReader, correlation_of, open_stream};

/// What one connection sends.
pub trait Work: Send {
    /// The next request.
    fn next_frame(&mut self, correlation_id: i32) -> &[u8];
    /// Whether an answer says that it was carried out.
    fn check(&mut self, answer: Bytes, correlation_id: i32) -> Result<()>;
}

/// How long to load the broker, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests under way per connection.
    pub inflight: usize,
    /// Time before the window.
    pub warmup: Duration,
    /// The window.
    pub measured: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Tally {
    /// From sending to the answer.
    pub latencies: Latencies,
    /// Answers in the window without an error.
    pub answered: u64,
    /// Answers with an error, in the window and outside.
    pub errors: u64,
    /// Requests never answered.
    pub unanswered: u64,
    /// The first error.
    pub first_error: Option<String>,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Result<Tally> {
        let latencies = Latencies::new()?;
        Ok(Tally { latencies, answered: 0, errors: 0, unanswered: 0, first_error: None })
    }

    /// All of another's.
    pub fn add(&mut self, other: Tally) -> Result<()> {
        self.latencies.add(&other.latencies)?;
        self.answered += other.answered;
        self.errors += other.errors;
        self.unanswered += other.unanswered;
        self.first_error = self.first_error.take().or(other.first_error);
        Ok(())
    }

    /// Remembers the first error.
    pub fn note(&mut self, error: &anyhow::Error) {
        self.first_error.get_or_insert_with(|| format!("{error:#}"));
    }
}

/// Runs every piece of work over a connection of its own, side by side.
pub fn run<W: Work>(work: Vec<(SocketAddr, W)>, load: Load, progress: &Progress) -> Result<Tally> {
    ensure!(load.inflight > 0, "no request may be under way");
    let mut lanes = Vec::new();
    for (addr, work) in work {
        lanes.push((open_stream(addr)?, work));
    }
    let clock = Clock::start();
    std::thread::scope(|scope| {
        let started: Vec<_> = lanes
            .into_iter()
            .map(|(stream, work)| scope.spawn(move || Lane::new(stream, work, load, clock)?.run()))
            .collect();
        let end_ns = duration_ns(load.warmup).saturating_add(duration_ns(load.measured));
        while clock.now_ns() < end_ns && !started.iter().all(|lane| lane.is_finished()) {
            let (now_s, end_s) = (clock.now_ns() / SECOND_NS, end_ns / SECOND_NS);
            progress.say(&format!("{now_s} of {end_s} s"));
            std::thread::sleep(Duration::from_nanos(SECOND_NS.min(end_ns) / 4));
        }
        let mut total = Tally::new()?;
        for lane in started {
            let tally = lane.join().map_err(|_| anyhow!("a connection's thread panicked"))??;
            total.add(tally)?;
        }
        Ok(total)
    })
}

struct Lane<W> {
    stream: TcpStream,
    reader: FrameReader,
    work: W,
    load: Load,
    clock: Clock,
    /// Correlation id and time of sending, oldest first: answers come in the order of their requests.
    under_way: VecDeque<(i32, u64)>,
    tally: Tally,
}

impl<W: Work> Lane<W> {
    fn new(stream: TcpStream, work: W, load: Load, clock: Clock) -> Result<Lane<W>> {
        let reader = FrameReader::new(stream.try_clone()?, CALL_TIMEOUT)?;
        let under_way = VecDeque::with_capacity(load.inflight);
        Ok(Lane { stream, reader, work, load, clock, under_way, tally: Tally::new()? })
    }

    fn run(mut self) -> Result<Tally> {
        if let Err(error) = self.exchange() {
            self.tally.note(&error);
        }
        self.tally.unanswered += u64::try_from(self.under_way.len())?;
        Ok(self.tally)
    }

    fn exchange(&mut self) -> Result<()> {
        let begin_ns = duration_ns(self.load.warmup);
        let end_ns = begin_ns.saturating_add(duration_ns(self.load.measured));
        let mut next_correlation_id: i32 = 0;
        loop {
            while self.under_way.len() < self.load.inflight && self.clock.now_ns() < end_ns {
                self.under_way.push_back((next_correlation_id, self.clock.now_ns()));
                self.stream.write_all(self.work.next_frame(next_correlation_id))?;
                next_correlation_id = next_correlation_id.wrapping_add(1);
            }
            let Some((expected, sent_ns)) = self.under_way.front().copied() else { return Ok(()) };
            let frame = self.reader.receive()?.context("no answer in time")?;
            let answered_ns = self.clock.now_ns();
            let found = correlation_of(&frame)?;
            ensure!(found == expected, "answer {found} where {expected} was due");
            self.under_way.pop_front();
            match self.work.check(frame, expected) {
                Ok(()) if (begin_ns..end_ns).contains(&answered_ns) => {
                    self.tally.answered += 1;
                    self.tally.latencies.record_ns(answered_ns - sent_ns);
                }
                Ok(()) => {}
                Err(error) => {
                    self.tally.errors += 1;
                    self.tally.note(&error);
                }
            }
        }
    }
}
