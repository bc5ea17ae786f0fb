//! The I/O of fills: calls for records between a replica that copies and its leader, and the writing of segments. What
//! is asked and written when, the core says ([`crate::core::FillStep`]).
//!
//! While an answer is on its way the leader reads what will be asked for next, so that its disk, the link and the disk
//! of the other side work side by side.
//!
//! - I1: each step of the core is answered once, whatever becomes of a call.
//! - I2: memory is bounded: of answers by [`SERVED_MAX`] and [`ANSWER_BYTES_MAX`] or one batch, of what is read ahead by
//!   [`AHEAD_MAX`] of those, each up to eight times as large where its batches were read each by itself. An answer waits
//!   while much else waits for the same peer: Raft goes first.
//! - I3: a file is written only when no older one of its partition is about to be removed: it might have its name.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chronik_engine::batch::patch_header;
use chronik_engine::disk_direct::DirectDisk;
use chronik_engine::ids::{GroupId, Offset};
use chronik_replication::peers::{CallError, Replier};
use chronik_replication::wire::{CallRefused, Seat};
use chronik_ring::{Task, sleep};
use chronik_tiering::fill::{FillJob, write_fill};
use chronik_tiering::room::RoomKept;
use chronik_tiering::write::GATHERED_BYTES_MAX;
use futures_lite::future::block_on;

mod wire;

use self::wire::{Answer, Found, Request};
use super::complaints::Said;
use super::shard::Shard;
use super::tiering::{room_for_segments, segment_bytes_max};
use crate::core::{FetchError, FillAnswer, FillAsk, FillStep, FillWrite, NamedSegment};

/// A call that asks for records of a partition.
pub(super) const CALL_RECORDS: u8 = 10;

/// For an answer to come.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest answer, but for a single batch.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The smallest batch that is sent as it lies in memory: with what it was read with, at most 512 KiB, it keeps eight times
/// its size.
const SHARED_BYTES_MIN: usize = 64 << 10;
/// Calls that are answered at a time.
const SERVED_MAX: usize = 8;
/// Answers that are read ahead, and how long one is kept.
const AHEAD_MAX: usize = 4;
const AHEAD_KEPT: Duration = Duration::from_secs(10);
/// What may wait for a peer before an answer does, how often that is looked at, and for how long.
const QUEUED_BYTES_MAX: usize = 2 << 20;
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
const QUEUE_LOOKS_MAX: u32 = 5_000;
/// Between two looks whether files are removed.
const GONE_PAUSE: Duration = Duration::from_millis(50);
/// Where the rate is bounded, an answer holds so much of a second's worth, but not less than so many bytes.
const ASKS_PER_SECOND: u64 = 4;
const PACED_BYTES_MIN: usize = 64 << 10;
/// What may be fetched at once after a rest, where the rate is bounded.
const BURST_NS: u64 = 50_000_000;
/// How often who waits for the pace looks whether it is another one.
const PACE_CHECK: Duration = Duration::from_secs(1);

fn cost_ns(bytes_per_second: u64, bytes: usize) -> u64 {
    let cost_ns = u128::from(bytes as u64) * 1_000_000_000 / u128::from(bytes_per_second);
    u64::try_from(cost_ns).unwrap_or(u64::MAX)
}

/// What a shard has under way for fills.
#[derive(Debug, Default)]
pub(super) struct FillTraffic {
    /// When the next call may be made, as of this rate in bytes per second.
    paid_until_ns: Cell<u64>,
    paid_at_rate: Cell<Option<u64>>,
    served: Cell<usize>,
    ahead: RefCell<VecDeque<Ahead>>,
    last_ahead: Cell<u64>,
}

/// An answer to a question that will come.
#[derive(Debug)]
struct Ahead {
    id: u64,
    group: GroupId,
    from: Offset,
    found: Task<Result<Found, FetchError>>,
}

/// Asking and writing.
impl Shard {
    /// Does what the core wants done for fills.
    pub(super) fn fill(self: &Rc<Self>, steps: Vec<FillStep>) {
        for step in steps {
            let shard = Rc::clone(self);
            match step {
                FillStep::Ask(ask) => {
                    let asking = async move {
                        let answer = shard.ask_records(ask).await;
                        let FillAsk { group, fill, from, .. } = ask;
                        shard.change_core(|core| core.fill_answered(group, fill, from, answer));
                    };
                    chronik_ring::spawn(asking).detach();
                }
                FillStep::Write(write) => {
                    chronik_ring::spawn(shard.write_fill(write)).detach();
                }
            }
        }
    }

    pub(super) async fn ask_records(self: &Rc<Self>, mut ask: FillAsk) -> FillAnswer {
        ask.bytes_max = self.pay(ask.bytes_max).await;
        let answer = self.ask_paid(&ask).await;
        let came = match &answer {
            FillAnswer::Records(chunk) => chunk.bytes.len(),
            FillAnswer::LogStart(_) | FillAnswer::Failed => 0,
        };
        self.settle_payment(ask.bytes_max, came);
        answer
    }

    async fn ask_paid(self: &Rc<Self>, ask: &FillAsk) -> FillAnswer {
        let FillAsk { group, replica, leader, from, up_to, bytes_max, .. } = *ask;
        let Some(links) = self.links() else { return FillAnswer::Failed };
        let Some(seat) = links.seat_of(group, leader) else { return FillAnswer::Failed };
        if !self.wal.leaves_enough(bytes_max as u64).await {
            let why = "what is free on the disk is kept for the segments of the log";
            if let Some(Said { partition, times }) = self.complain(group, why) {
                let shard = self.id.0;
                tracing::warn!(shard, partition, times, "records are not copied yet: {why}");
            }
            return FillAnswer::Failed;
        }
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        let body = Request { bytes_max, group, replica, from, up_to }.encode();
        let asked = links.peers().call(seat, CALL_RECORDS, body, CALL_TIMEOUT).await;
        match asked.as_ref().map(Answer::decode) {
            Ok(Some(Answer::Records(chunk))) => {
                self.metrics.borrow_mut().counters.fill_bytes += chunk.bytes.len() as u64;
                FillAnswer::Records(chunk)
            }
            Ok(Some(Answer::LogStart(offset))) => FillAnswer::LogStart(offset),
            Ok(None) => {
                if let Some(Said { partition, times }) = self.complain(group, "answer") {
                    tracing::warn!(%seat, partition, times, "an answer with records cannot be read");
                }
                FillAnswer::Failed
            }
            Err(error) => {
                self.log_failed_ask(seat, group, error);
                FillAnswer::Failed
            }
        }
    }

    /// A leader that has changed or a node that is gone is nothing to write home about.
    fn log_failed_ask(&self, seat: Seat, group: GroupId, error: &CallError) {
        match error {
            CallError::Refused(CallRefused::Invalid { .. }) | CallError::TooLarge { .. } => {
                if let Some(Said { partition, times }) = self.complain(group, &error.to_string()) {
                    let shard = self.id.0;
                    tracing::warn!(shard, %seat, partition, times, "records to copy: {error}");
                }
            }
            _ => tracing::debug!(shard = self.id.0, %seat, %group, "records to copy: {error}"),
        }
    }

    /// Bytes per second that this shard may copy; none is no bound. What was set on the brokers stands above the settings.
    fn pace_bytes_per_second(&self) -> Option<u64> {
        let config = &self.node.config;
        let set = self.catalog().broker_configs().follower_throttle(config.node_id);
        let of_node = set.unwrap_or(config.cluster.recovery_bytes_per_second);
        (of_node > 0).then(|| (of_node / u64::from(self.node.shards.max(1))).max(1))
    }

    /// Waits until so many bytes, or fewer where the rate is bounded, may be asked for; how many. They are paid for at once,
    /// so that partitions that ask together do not get an answer each for the price of one. What was paid at one rate does
    /// not count at another: a throttle that is taken away ends at once.
    async fn pay(&self, bytes_max: usize) -> usize {
        while let Some(bytes_per_second) = self.settled_rate() {
            let rest_ns = self.traffic.paid_until_ns.get().saturating_sub(self.clock.now_ns());
            if rest_ns == 0 {
                let step =
                    usize::try_from(bytes_per_second / ASKS_PER_SECOND).unwrap_or(usize::MAX);
                let bytes = bytes_max.min(step.max(PACED_BYTES_MIN));
                self.spend(bytes_per_second, bytes);
                return bytes;
            }
            sleep(Duration::from_nanos(rest_ns).min(PACE_CHECK)).await;
        }
        bytes_max
    }

    /// The rate that holds now. What was paid at another one is forgotten.
    fn settled_rate(&self) -> Option<u64> {
        let rate = self.pace_bytes_per_second();
        if self.traffic.paid_at_rate.replace(rate) != rate {
            self.traffic.paid_until_ns.set(0);
        }
        rate
    }

    fn spend(&self, bytes_per_second: u64, bytes: usize) {
        let oldest_ns = self.clock.now_ns().saturating_sub(BURST_NS);
        let paid_until_ns = self.traffic.paid_until_ns.get().max(oldest_ns);
        let cost_ns = cost_ns(bytes_per_second, bytes);
        self.traffic.paid_until_ns.set(paid_until_ns.saturating_add(cost_ns));
    }

    /// More came than was paid for where a batch alone is larger, less at the end or where nothing was answered.
    fn settle_payment(&self, paid: usize, came: usize) {
        let Some(rate) = self.settled_rate() else { return };
        if came >= paid {
            return self.spend(rate, came - paid);
        }
        let rest_ns = cost_ns(rate, paid - came);
        let paid_until_ns = self.traffic.paid_until_ns.get().saturating_sub(rest_ns);
        self.traffic.paid_until_ns.set(paid_until_ns);
    }

    /// Writes what was copied as segments, on a thread for that.
    async fn write_fill(self: Rc<Self>, write: FillWrite) {
        let FillWrite { fill, group, tag, term, from, chunks } = write;
        while self.segments.is_removing(tag.topic, tag.partition, from) && !self.stopping.get() {
            sleep(GONE_PAUSE).await; // I3
        }
        let id = tag.segment_id(self.node.cluster_uuid, term);
        let topic_bytes_max = self.catalog().topic_by_id(tag.topic).map(|t| segment_bytes_max(t));
        let job = FillJob {
            segments_dir: self.segments.dir().to_owned(),
            id,
            from,
            up_to: None,
            generation: 0,
            chunks: chunks.into_iter().map(|chunk| chunk.bytes).collect(),
            segment_bytes_max: topic_bytes_max.unwrap_or(GATHERED_BYTES_MAX),
        };
        let room_bytes = room_for_segments(&self.node.config.wal);
        let work = move |disk: &DirectDisk| {
            let disk = RoomKept::new(disk, room_bytes);
            let (segments, result) = block_on(write_fill(&disk, &job));
            (NamedSegment::all_of(id, segments), result)
        };
        let written = self.in_background(self.background.filler(self.id), work).await;
        let (segments, is_all) = match written {
            None => (Vec::new(), false), // the thread has too much to do
            Some((segments, Ok(()))) => (segments, true),
            Some((segments, Err(error))) => {
                if let Some(Said { partition, times }) = self.complain(group, &error.to_string()) {
                    tracing::error!(
                        shard = self.id.0,
                        partition,
                        times,
                        "copied records could not be written, another try follows: {error}"
                    );
                }
                (segments, false)
            }
        };
        {
            let counters = &mut self.metrics.borrow_mut().counters;
            counters.segments_written += segments.len() as u64;
            let bytes = segments.iter().map(|named| named.segment.file_bytes);
            counters.segment_bytes_written += bytes.sum::<u64>();
        }
        self.change_core(|core| core.fill_written(group, fill, segments, is_all));
    }
}

/// Answering.
impl Shard {
    /// A replica on another node copies records of a partition that is led here, or was just now.
    pub(super) fn give_records(self: &Rc<Self>, to: Seat, body: &Bytes, reply: Replier) {
        let Some(request) = Request::decode(body) else {
            reply.refuse(CallRefused::Invalid { text: "no request for records".to_owned() });
            return;
        };
        if self.traffic.served.get() >= SERVED_MAX {
            reply.refuse(CallRefused::Overloaded);
            return;
        }
        self.traffic.served.set(self.traffic.served.get() + 1);
        let serving = Serving(Rc::clone(self));
        chronik_ring::spawn(async move { serving.0.serve_records(to, request, reply).await })
            .detach();
    }

    async fn serve_records(self: &Rc<Self>, to: Seat, request: Request, reply: Replier) {
        let Request { group, replica, from, up_to, .. } = request;
        self.change_core(|core| core.fill_heard(group, replica, from));
        let ahead = self.traffic.take_ahead(group, from);
        let found = match ahead {
            Some(found) => found.await,
            None => Rc::clone(self).find_records(request).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(FetchError::NotLeader) => {
                return reply.refuse(CallRefused::NotLeader { leader: None });
            }
            Err(_) => return reply.refuse(CallRefused::Overloaded),
        };
        if let Found::Records { end_offset, .. } = &found
            && *end_offset < up_to
        {
            self.read_ahead(Request { from: *end_offset, ..request });
        }
        let Some(links) = self.links() else { return };
        for _ in 0..QUEUE_LOOKS_MAX {
            if links.peers().queue_bytes(to) <= QUEUED_BYTES_MAX {
                return reply.answer_parts(&found.into_body());
            }
            sleep(QUEUE_PAUSE).await;
        }
        reply.refuse(CallRefused::Overloaded);
    }

    /// Reads what will be asked for next.
    fn read_ahead(self: &Rc<Self>, request: Request) {
        let id = self.traffic.last_ahead.get() + 1;
        self.traffic.last_ahead.set(id);
        let found = chronik_ring::spawn(Rc::clone(self).find_records(request));
        let Request { group, from, .. } = request;
        {
            let mut ahead = self.traffic.ahead.borrow_mut();
            ahead.push_back(Ahead { id, group, from, found });
            if ahead.len() > AHEAD_MAX {
                ahead.pop_front();
            }
        }
        let shard = Rc::downgrade(self);
        let forget = async move {
            sleep(AHEAD_KEPT).await;
            if let Some(shard) = shard.upgrade() {
                shard.traffic.ahead.borrow_mut().retain(|ahead| ahead.id != id);
            }
        };
        chronik_ring::spawn(forget).detach();
    }

    /// The batches from the one on that holds the first offset wanted, at least one.
    async fn find_records(self: Rc<Self>, request: Request) -> Result<Found, FetchError> {
        let Request { group, from, .. } = request;
        let bytes_max = usize::try_from(request.bytes_max).unwrap_or(usize::MAX);
        let bytes_max = bytes_max.min(ANSWER_BYTES_MAX);
        let plan = self.core.borrow().plan_fill(group, from, bytes_max);
        let plan = match plan {
            Err(FetchError::OffsetOutOfRange { log_start_offset, .. })
                if from < log_start_offset =>
            {
                return Ok(Found::LogStart(log_start_offset));
            }
            plan => plan?,
        };
        let mut parts = Parts::default();
        let mut end_offset = from;
        for cached in plan.batches {
            // A slice of it would keep all of a request.
            patch_header(parts.copy(&cached.bytes), cached.base_offset, cached.epoch);
            end_offset = cached.end_offset();
        }
        if let Some(range) = plan.disk {
            let stored = self.read_stored(group, range, bytes_max).await;
            let view = self.core.borrow().partition(group).ok_or(FetchError::UnknownPartition)?;
            if from < view.log_start_offset {
                return Ok(Found::LogStart(view.log_start_offset)); // it went while it was read
            }
            let stored = stored?;
            for batch in stored {
                parts.push(batch.bytes);
                end_offset = batch.end_offset;
            }
        }
        // Up to the high watermark there is always a batch, whatever compaction has taken.
        let parts = parts.finish();
        if parts.is_empty() || end_offset <= from {
            return Err(FetchError::NotLeader);
        }
        Ok(Found::Records { end_offset, parts })
    }
}

impl FillTraffic {
    fn take_ahead(&self, group: GroupId, from: Offset) -> Option<Task<Result<Found, FetchError>>> {
        let mut ahead = self.ahead.borrow_mut();
        let at = ahead.iter().position(|ahead| ahead.group == group && ahead.from == from)?;
        ahead.remove(at).map(|ahead| ahead.found)
    }
}

/// Batches of an answer: large ones as they lie in memory, the others copied together, since a slice keeps all that was read
/// with it.
#[derive(Debug, Default)]
struct Parts {
    done: Vec<Bytes>,
    copied: BytesMut,
}

impl Parts {
    fn push(&mut self, batch: Bytes) {
        if batch.len() < SHARED_BYTES_MIN {
            self.copy(&batch);
        } else {
            self.end_copies();
            self.done.push(batch);
        }
    }

    /// Adds a copy of a batch, and gives it to be patched.
    fn copy(&mut self, batch: &[u8]) -> &mut [u8] {
        let at = self.copied.len();
        self.copied.extend_from_slice(batch);
        &mut self.copied[at..]
    }

    fn end_copies(&mut self) {
        if !self.copied.is_empty() {
            self.done.push(self.copied.split().freeze());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.end_copies();
        self.done
    }
}

/// One of the calls that are counted until they are answered.
struct Serving(Rc<Shard>);

impl Drop for Serving {
    fn drop(&mut self) {
        let served = &self.0.traffic.served;
        served.set(served.get() - 1);
    }
}
