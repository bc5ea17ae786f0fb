//! Produces at a fixed rate, whatever the broker does.
//!
//! One thread sends; one per connection hears the answers. The correlation id of a request is its place in the schedule,
//! so an answer alone says when its request was due: the two sides share nothing but a counter.
//!
//! - I1: latency runs from the time a request was due, not from when it was sent.
//! - I2: a sender that falls behind, be it by a full socket or by a busy machine, sends what is due as soon as it can and
//!   reports its delay.
//! - I3: every request of the schedule is acknowledged, refused, unanswered or unsent, and counted as that.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::lanes::Lanes;
use crate::clock::{Clock, SECOND_NS, exact_sleeps};
use crate::closed_loop::Tally;
use crate::latency::Latencies;
use crate::pace::Schedule;
use crate::report::Progress;
use crate::wire::{CALL_TIMEOUT, FrameReader, check_produced, correlation_of, open_stream};

/// Time between the last connection and the first request.
const HEAD_START_NS: u64 = 20_000_000;
/// How often a reader that hears nothing looks whether all is over.
const READER_POLL: Duration = Duration::from_millis(50);
/// Bytes gathered for one write while the sender is behind.
const GATHER_BYTES_MAX: usize = 1 << 20;
/// How often the progress line changes.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// What came of a row of requests.
#[derive(Debug)]
pub struct Outcome {
    /// Latencies of measured requests, and the counts of all.
    pub tally: Tally,
    /// From when a measured request was due until it was handed to the socket.
    pub send_delay: Latencies,
    /// Requests due after their connection was lost.
    pub unsent: u64,
}

/// What the sender and one reader know of each other.
#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    sender_done: AtomicBool,
    lost: AtomicBool,
}

/// Sends the whole row over `lanes`.
pub fn run(
    lanes: &mut Lanes,
    schedule: Schedule,
    acks: i16,
    progress: &Progress,
) -> Result<Outcome> {
    let requests = schedule.requests();
    ensure!(i32::try_from(requests).is_ok(), "{requests} requests are more than one run can count");
    let mut streams = Vec::new();
    for lane in lanes.addresses() {
        streams.push(open_stream(*lane)?);
    }
    let shared: Vec<Shared> = streams.iter().map(|_| Shared::default()).collect();
    let clock = Clock::start();
    let schedule = schedule.starting_at(clock.now_ns() + HEAD_START_NS);
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for (stream, shared) in streams.iter().zip(&shared) {
            let stream = stream.try_clone().context("sharing a socket")?;
            if acks != 0 {
                readers.push(scope.spawn(move || read(stream, shared, schedule, clock)));
            }
        }
        let sender = Sender { streams: &streams, shared: &shared, clock, schedule };
        let sender = scope.spawn(move || sender.run(lanes));
        while !sender.is_finished() {
            let now_ns = clock.now_ns();
            let done = shared.iter().map(|s| s.sent.load(Ordering::Relaxed)).sum::<u64>();
            progress.say(&format!("{} s: {done} of {requests} requests", now_ns / SECOND_NS));
            std::thread::sleep(PROGRESS_PAUSE);
        }
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"));
        for shared in &shared {
            shared.sender_done.store(true, Ordering::Release);
        }
        let (send_delay, unsent, mut tally) = sent??;
        for reader in readers {
            tally.add(reader.join().map_err(|_| anyhow!("a reader panicked"))??)?;
        }
        Ok(Outcome { tally, send_delay, unsent })
    })
}

struct Sender<'a> {
    streams: &'a [TcpStream],
    shared: &'a [Shared],
    clock: Clock,
    schedule: Schedule,
}

impl Sender<'_> {
    fn run(self, lanes: &mut Lanes) -> Result<(Latencies, u64, Tally)> {
        exact_sleeps();
        let mut send_delay = Latencies::new()?;
        let mut tally = Tally::new()?;
        let mut unsent = 0;
        let mut buffers: Vec<Vec<u8>> = vec![Vec::new(); self.streams.len()];
        let mut counts = vec![0_u64; self.streams.len()];
        let requests = self.schedule.requests();
        let mut next = 0;
        while next < requests {
            self.clock.sleep_until_ns(self.schedule.due_ns(next));
            let now_ns = self.clock.now_ns();
            let first = next;
            let mut gathered = 0;
            while next < requests
                && self.schedule.due_ns(next) <= now_ns
                && gathered < GATHER_BYTES_MAX
            {
                let (lane, frame) = lanes.request(next, i32::try_from(next)?);
                gathered += frame.len();
                buffers[lane].extend_from_slice(frame);
                counts[lane] += 1;
                next += 1;
            }
            for (lane, buffer) in buffers.iter_mut().enumerate() {
                let count = std::mem::take(&mut counts[lane]);
                if count > 0 && !self.write(lane, buffer, count, &mut tally) {
                    unsent += count;
                }
                buffer.clear();
            }
            let handed_over_ns = self.clock.now_ns();
            for index in (first..next).filter(|index| self.schedule.is_measured(*index)) {
                let due_ns = self.schedule.due_ns(index);
                send_delay.record_ns(handed_over_ns.saturating_sub(due_ns));
            }
        }
        Ok((send_delay, unsent, tally))
    }

    /// Whether the bytes went into the socket.
    fn write(&self, lane: usize, bytes: &[u8], count: u64, tally: &mut Tally) -> bool {
        let shared = &self.shared[lane];
        if shared.lost.load(Ordering::Acquire) {
            return false;
        }
        // Counted first: the reader must never have heard more answers than requests are known.
        shared.sent.fetch_add(count, Ordering::AcqRel);
        let mut stream = &self.streams[lane];
        if let Err(error) = stream.write_all(bytes) {
            shared.lost.store(true, Ordering::Release);
            tally.note(&anyhow!(error).context("writing to the broker"));
        }
        true
    }
}

/// Hears the answers of one connection until all are there, the connection is lost or time is up.
fn read(stream: TcpStream, shared: &Shared, schedule: Schedule, clock: Clock) -> Result<Tally> {
    let mut reader = FrameReader::new(stream, READER_POLL)?;
    let mut tally = Tally::new()?;
    let mut heard: u64 = 0;
    let mut silent_since_ns = clock.now_ns();
    loop {
        let done = shared.sender_done.load(Ordering::Acquire);
        if done && heard >= shared.sent.load(Ordering::Acquire) {
            break;
        }
        let outcome = reader.receive();
        let now_ns = clock.now_ns();
        match outcome {
            Ok(Some(frame)) => {
                heard += 1;
                silent_since_ns = now_ns;
                let correlation_id = correlation_of(&frame)?;
                let index = u64::try_from(correlation_id)?;
                match check_produced(frame, correlation_id) {
                    Ok(_offset) if schedule.is_measured(index) => {
                        tally.answered += 1;
                        tally.latencies.record_ns(now_ns.saturating_sub(schedule.due_ns(index)));
                    }
                    Ok(_offset) => {}
                    Err(error) => {
                        tally.errors += 1;
                        tally.note(&error);
                    }
                }
            }
            Ok(None) => {
                let silent_ns = now_ns.saturating_sub(silent_since_ns);
                if done && silent_ns > crate::clock::duration_ns(CALL_TIMEOUT) {
                    tally.note(&anyhow!("no answer within {CALL_TIMEOUT:?} after the end"));
                    break;
                }
            }
            Err(error) => {
                shared.lost.store(true, Ordering::Release);
                tally.note(&error);
                // What the sender still hands over is lost as well: it is counted once it has stopped.
                while !shared.sender_done.load(Ordering::Acquire) {
                    std::thread::sleep(READER_POLL);
                }
                break;
            }
        }
    }
    tally.unanswered = shared.sent.load(Ordering::Acquire).saturating_sub(heard);
    Ok(tally)
}
