//! Writes a log of a given size, and goes on writing until the broker is killed.
//!
//! - I1: what is counted was acknowledged; the last acknowledged batch is what a start must have.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};

use crate::wire::random_batch;
use crate::writer::Writer;

/// Bytes of a record's value.
const RECORD_BYTES: usize = 1_024;
/// Records of a batch: just under the megabyte that brokers accept by default.
const BATCH_RECORDS: u32 = 960;

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
    let batch = random_batch(BATCH_RECORDS, RECORD_BYTES)?;
    let batch_bytes = u64::try_from(batch.len())?;
    let mut last = None;
    let outcome =
        Writer::new(addr, topic, 0..partitions, &batch)?.write(u64::MAX, |partition, offset| {
            last = Some(LogEnd { partition, offset });
            progressed.acked_bytes.fetch_add(batch_bytes, Ordering::AcqRel);
        });
    progressed.ended.store(true, Ordering::Release);
    match outcome {
        Err(_) if progressed.killed.load(Ordering::Acquire) => {}
        Err(error) => return Err(error.context("filling the log")),
        Ok(()) => {}
    }
    last.context("nothing was acknowledged before the kill")
}
