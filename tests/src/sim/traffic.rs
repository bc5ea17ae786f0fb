//! What clients do: produce, in order and out of it, read, wait and delete. Retention deletes too.

use std::rc::Rc;

use chronik_engine::disk_sim::block_on;
use chronik_engine::ids::{GroupId, Offset};
use chronik_engine::segment::Segment;
use chronik_engine::wal::RetentionLimits;
use chronik_shards::core::{FetchError, ProduceError, RequiredAcks, WaiterId};
use rand::Rng;

use super::client::{Sent, check_odd, random_batch};
use super::disk::read_io_failed;
use super::oracle::ReadBatch;
use super::run::{DiskRead, Pending, Run};
use super::{Check, Violation};
use crate::must;

/// Reads from the disk at a time.
const READS_MAX: usize = 4;
impl Run {
    pub(super) fn pick_partition(&mut self) -> Option<GroupId> {
        let at = self.rng.random_range(0..self.partitions.len().max(1));
        self.partitions.keys().nth(at).copied()
    }

    pub(super) fn propose(
        &mut self,
        group: GroupId,
        sent: &Sent,
        acks: RequiredAcks,
        pending: Pending,
    ) -> Result<(), ProduceError> {
        let token = self.token();
        let bytes = sent.batch.bytes().clone();
        if let Some(partition) = self.partitions.get_mut(&group) {
            partition.oracle.sends(sent.id, &bytes);
        }
        let retained_bytes = bytes.len() + 100;
        let proposed = self.node.core.borrow_mut().propose_batch(
            group,
            sent.batch.clone(),
            acks,
            retained_bytes,
            token,
        );
        match proposed {
            Ok(()) => {
                self.tokens.insert(token, pending);
            }
            Err(ProduceError::StorageFull) => self.report.storage_full += 1,
            Err(_) => {}
        }
        proposed
    }

    pub(super) fn produce_plain(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let id = self.next();
        let batch = random_batch(id, None, &mut self.rng);
        let sent = Sent { id, batch, is_waiting: false, was_taken: false, offset: None };
        let acks = [RequiredAcks::All, RequiredAcks::Leader][self.rng.random_range(0..2)];
        let proposed = self.propose(group, &sent, acks, Pending::Plain { group, id });
        let odd = matches!(proposed, Err(ProduceError::Sequence(_)));
        must!(!odd, "P4: a plain batch has no sequence: {proposed:?}");
        Ok(())
    }

    pub(super) fn produce_sequenced(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let id = self.next();
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        let at = self.rng.random_range(0..partition.producers.len());
        let producer = &mut partition.producers[at].0;
        if self.rng.random_range(0..30) == 0 {
            producer.bump_epoch();
        }
        if producer.can_send() {
            producer.make_next(id, &mut self.rng);
        }
        self.send_open(group, at)
    }

    /// Sends what is not on its way, in order, until something is refused.
    pub(super) fn send_open(&mut self, group: GroupId, at: usize) -> Check {
        loop {
            let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
            let (producer, acks) = &mut partition.producers[at];
            let acks = *acks;
            let Some(sent) = producer.pending.iter().find(|sent| !sent.is_waiting).cloned() else {
                return Ok(());
            };
            let id = sent.id;
            let proposed =
                self.propose(group, &sent, acks, Pending::Sequenced { group, producer: at, id });
            let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
            let producer = &mut partition.producers[at].0;
            if let Err(error) = proposed {
                return producer.on_answer(id, Err(error));
            }
            if let Some(sent) = producer.pending.iter_mut().find(|sent| sent.id == id) {
                sent.is_waiting = true;
                sent.was_taken = true;
            }
        }
    }

    /// Sends something that a well-behaved client would not.
    pub(super) fn produce_odd(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let id = self.next();
        let Some(partition) = self.partitions.get(&group) else { return Ok(()) };
        let at = self.rng.random_range(0..partition.producers.len());
        let (producer, acks) = &partition.producers[at];
        let acks = *acks;
        let in_flight = producer.pending.iter().find(|sent| sent.is_waiting).cloned();
        let odd = match self.rng.random_range(0..8) {
            0 => producer.out_of_order(id, &mut self.rng),
            1 => producer.bad_epoch_start(id, &mut self.rng),
            2 => producer.stale(),
            3..5 => {
                if let Some(sent) = in_flight {
                    let pending = Pending::Odd { group, id: sent.id, expected: None };
                    let proposed = self.propose(group, &sent, acks, pending);
                    let bad = matches!(proposed, Err(ProduceError::Sequence(_)));
                    must!(!bad, "P4: a duplicate of batch {}: {proposed:?}", sent.id);
                }
                return Ok(());
            }
            _ => producer.duplicate(&mut self.rng),
        };
        let Some((sent, expected)) = odd else { return Ok(()) };
        let pending = Pending::Odd { group, id: sent.id, expected: Some(expected) };
        if let Err(error) = self.propose(group, &sent, acks, pending) {
            self.report.refused += u64::from(matches!(error, ProduceError::Sequence(_)));
            check_odd(sent.id, expected, Err(error))?;
        }
        Ok(())
    }

    pub(super) fn fetch(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        if self.reads.len() >= READS_MAX {
            return self.poll_read();
        }
        let view = self.node.core.borrow().partition(group);
        let Some(view) = view else { return Ok(()) };
        let offset = Offset(self.rng.random_range(0..view.end_offset.0 + 3));
        let bytes_max = [1, 4_000, 200_000][self.rng.random_range(0..3)];
        let planned = self.node.core.borrow_mut().plan_read(group, offset, bytes_max, -1);
        let plan = match planned {
            Ok(plan) => plan,
            Err(FetchError::NotLeader) => {
                must!(!view.is_ready, "a ready leader does not lead");
                return Ok(());
            }
            Err(FetchError::OffsetOutOfRange { .. }) => {
                let is_outside = offset > view.end_offset || offset < view.log_start_offset;
                must!(is_outside, "{offset} is within the log");
                return Ok(());
            }
            Err(error) => return Err(Violation { what: format!("fetch of {offset}: {error}") }),
        };
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        partition.oracle.saw_high_watermark(plan.high_watermark)?;
        must!(offset >= view.log_start_offset, "P7: {offset} is before the log's start");
        let nothing = plan.batches.is_empty() && plan.disk.is_none();
        must!(nothing == (offset >= plan.high_watermark), "P6: {offset} got {plan:?}");
        if !plan.batches.is_empty() {
            self.report.tail_reads += 1;
            let batches: Vec<ReadBatch> = plan.batches.iter().map(ReadBatch::from).collect();
            partition.oracle.read(offset, plan.high_watermark, &batches)?;
        }
        if let Some(range) = plan.disk {
            let node = Rc::clone(&self.node);
            let task = Box::pin(async move {
                node.segments.read(&node.core, &node.wal, group, range, bytes_max).await
            });
            let high_watermark = plan.high_watermark;
            self.reads.push(DiskRead { group, offset, high_watermark, task });
        }
        Ok(())
    }

    /// Where a partition's log starts, as far as clients can know.
    pub(super) fn log_start(&self, group: GroupId) -> Option<Offset> {
        self.node.core.borrow().partition(group).map(|view| view.log_start_offset)
    }

    /// Somebody deletes records, or retention does.
    pub(super) fn move_log_start(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let view = self.node.core.borrow().partition(group);
        let Some(view) = view.filter(|view| view.is_ready) else { return Ok(()) };
        let (from, up_to) = (view.log_start_offset, view.high_watermark);
        let mut token = None;
        let offset = if self.rng.random_range(0..3) == 0 {
            token = Some(self.token());
            Offset(self.rng.random_range(0..=up_to.0))
        } else {
            let limits = self.random_limits();
            let segments: Vec<Segment> = {
                let core = self.node.core.borrow();
                core.segments(group).into_iter().flat_map(|m| m.iter()).copied().collect()
            };
            match block_on(self.node.wal.retention_cut(group, from, up_to, &segments, limits)) {
                Ok(cut) => cut,
                Err(error) if self.is_armed && read_io_failed(&error) => return Ok(()),
                Err(error) => return Err(Violation { what: format!("retention: {error:?}") }),
            }
        };
        must!(offset <= up_to, "P7: a log start at {offset}, watermark {up_to}");
        if token.is_none() && offset == from {
            return Ok(());
        }
        if let Some(partition) = self.partitions.get_mut(&group) {
            partition.oracle.asked_log_start(offset);
        }
        let proposed = self.node.core.borrow_mut().propose_log_start(group, offset, token);
        match token {
            Some(token) if proposed.is_ok() => {
                self.tokens.insert(token, Pending::LogStart { group, offset });
            }
            _ => self.report.retained += u64::from(proposed.is_ok()),
        }
        Ok(())
    }

    fn random_limits(&mut self) -> RetentionLimits {
        let bytes_max = self.rng.random_range(0..60_000);
        // A batch's timestamp is its name, and names rise.
        let timestamp_ms_min = self.next - self.rng.random_range(0..2_000);
        match self.rng.random_range(0..3) {
            0 => RetentionLimits { bytes_max: Some(bytes_max), timestamp_ms_min: None },
            1 => RetentionLimits { bytes_max: None, timestamp_ms_min: Some(timestamp_ms_min) },
            _ => RetentionLimits {
                bytes_max: Some(bytes_max),
                timestamp_ms_min: Some(timestamp_ms_min),
            },
        }
    }

    pub(super) fn wait(&mut self) {
        let Some(group) = self.pick_partition() else { return };
        let waiter = WaiterId(self.next().unsigned_abs());
        let Some(view) = self.node.core.borrow().partition(group) else { return };
        let beyond = view.high_watermark;
        self.waiters.insert(waiter, (group, beyond));
        self.node.core.borrow_mut().wait_for_data(group, beyond, waiter);
    }
}
