//! Writes batches as fast as a broker takes them, over one connection to the leader of some partitions.
//!
//! - I1: what is told was acknowledged, in the order in which it was sent.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use crate::wire::{
    CALL_TIMEOUT, FrameReader, PRODUCE, Template, check_produced, correlation_of, open_stream,
    produce_request,
};

/// Requests under way.
const INFLIGHT: usize = 4;

/// A connection that is kept full.
#[derive(Debug)]
pub struct Writer {
    stream: TcpStream,
    reader: FrameReader,
    partitions: Vec<(i32, Template)>,
    /// Correlation id and partition.
    under_way: VecDeque<(i32, i32)>,
}

impl Writer {
    /// Will write `batch` to these partitions in turn; `addr` leads them.
    pub fn new(
        addr: SocketAddr,
        topic: &str,
        partitions: impl IntoIterator<Item = i32>,
        batch: &Bytes,
    ) -> Result<Writer> {
        let template = |partition| {
            let request = produce_request(topic, partition, -1, batch.clone());
            Ok((partition, Template::new(&request, PRODUCE)?))
        };
        let partitions = partitions.into_iter().map(template).collect::<Result<Vec<_>>>()?;
        ensure!(!partitions.is_empty(), "no partitions to write to");
        let stream = open_stream(addr)?;
        let reader = FrameReader::new(stream.try_clone()?, CALL_TIMEOUT)?;
        Ok(Writer { stream, reader, partitions, under_way: VecDeque::with_capacity(INFLIGHT) })
    }

    /// Writes so many batches and tells of each that was acknowledged its partition and first offset.
    pub fn write(&mut self, batches: u64, mut on_ack: impl FnMut(i32, i64)) -> Result<()> {
        let mut sent: u64 = 0;
        let mut next: i32 = 0;
        loop {
            while sent < batches && self.under_way.len() < INFLIGHT {
                let turn = usize::try_from(next)? % self.partitions.len();
                let (partition, template) = &mut self.partitions[turn];
                self.stream.write_all(template.frame(next))?;
                self.under_way.push_back((next, *partition));
                next = next.checked_add(1).unwrap_or(0);
                sent += 1;
            }
            let Some((expected, partition)) = self.under_way.pop_front() else { return Ok(()) };
            let frame = self.reader.receive()?.context("no answer in time")?;
            let found = correlation_of(&frame)?;
            ensure!(found == expected, "answer {found} where {expected} was due");
            on_ack(partition, check_produced(frame, expected)?);
        }
    }
}
