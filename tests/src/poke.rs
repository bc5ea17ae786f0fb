//! Sending a broker something bad and hearing what it makes of it, while a well-behaved connection goes on beside.
//!
//! What counts as well: an answer that is one, or a close. What does not: silence, half an answer, an answer to something
//! that was not asked.

#![expect(clippy::disallowed_methods, reason = "the harness waits for real processes on real time")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use kafka_protocol::messages::ApiVersionsRequest;

use crate::batch::{ATTRIBUTES_AT, BatchBuilder};
use crate::raw::{Heard, RawConnection, encode_frame};
use crate::requests::check_answer;

/// How long a broker may take to answer or to close.
pub const POKE_DEADLINE: Duration = Duration::from_secs(20);
/// The correlation id of the request that follows every bad one.
const SENTINEL: i32 = 0x5EED_0001;

/// What a bad request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poked {
    /// The connection goes on.
    Alive,
    /// The broker closed it.
    Closed,
}

/// Sends bad frames over one connection as long as the broker lets it, and over a new one then.
#[derive(Debug)]
pub struct Poker {
    addr: SocketAddr,
    advertised: Vec<(i16, i16, i16)>,
    connection: Option<RawConnection>,
    sentinel: Vec<u8>,
}

impl Poker {
    /// A poker of the broker at `addr`.
    pub fn new(addr: SocketAddr) -> Result<Poker> {
        let advertised = RawConnection::open(addr)?.api_versions()?;
        let sentinel = encode_frame(0, SENTINEL, &ApiVersionsRequest::default())?;
        Ok(Poker { addr, advertised, connection: None, sentinel })
    }

    /// What the broker says it serves.
    #[must_use]
    pub fn advertised(&self) -> &[(i16, i16, i16)] {
        &self.advertised
    }

    /// Sends `frame` and then a request that is in order. An error where the broker does neither answer nor close.
    pub fn poke(&mut self, frame: &[u8]) -> Result<Poked> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => RawConnection::open(self.addr)?,
        };
        let length_is_true = frame.get(..4).is_some_and(|length| {
            i32::from_be_bytes([length[0], length[1], length[2], length[3]])
                == i32::try_from(frame.len() - 4).unwrap_or(-1)
        });
        let mut bytes = frame.to_vec();
        if length_is_true {
            bytes.extend_from_slice(&self.sentinel);
        }
        // A broker that has closed already may reset the connection while this is written.
        if connection.write(&bytes).is_err() {
            return Ok(Poked::Closed);
        }
        if !length_is_true {
            connection.finish_writing()?;
            return hear_until_closed(&mut connection);
        }
        let outcome = self.hear_until_sentinel(&mut connection, frame)?;
        if outcome == Poked::Alive {
            self.connection = Some(connection);
        }
        Ok(outcome)
    }

    fn hear_until_sentinel(&self, connection: &mut RawConnection, asked: &[u8]) -> Result<Poked> {
        let mut answers = 0;
        loop {
            match connection.hear(POKE_DEADLINE)? {
                Heard::Closed => return Ok(Poked::Closed),
                Heard::Silence => bail!("neither an answer nor a close within {POKE_DEADLINE:?}"),
                Heard::Frame(frame) if correlation(&frame)? == SENTINEL => return Ok(Poked::Alive),
                Heard::Frame(frame) => {
                    answers += 1;
                    ensure!(answers == 1, "{answers} answers to one request");
                    self.check_answer(asked, frame)?;
                }
            }
        }
    }

    /// An answer must carry the request's correlation id and, where the version is served, decode as that version.
    fn check_answer(&self, asked: &[u8], frame: Bytes) -> Result<()> {
        let header = asked.get(4..12).context("an answer to something without a header")?;
        let key = i16::from_be_bytes([header[0], header[1]]);
        let version = i16::from_be_bytes([header[2], header[3]]);
        let expected = i32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let found = correlation(&frame)?;
        ensure!(found == expected, "answer to request {found}, asked {expected}");
        let served = self
            .advertised
            .iter()
            .any(|(k, min, max)| *k == key && (*min..=*max).contains(&version));
        // Produce is advertised from version 0 on and served from version 3 on.
        if served && !(key == 0 && version < 3) {
            check_answer(key, version, frame)?;
        }
        Ok(())
    }
}

fn correlation(frame: &[u8]) -> Result<i32> {
    let first = frame.first_chunk().context("an answer shorter than a correlation id")?;
    Ok(i32::from_be_bytes(*first))
}

/// Reads whatever comes until the broker closes.
pub fn hear_until_closed(connection: &mut RawConnection) -> Result<Poked> {
    loop {
        match connection.hear(POKE_DEADLINE) {
            Ok(Heard::Closed) => return Ok(Poked::Closed),
            Ok(Heard::Frame(_)) => {}
            Ok(Heard::Silence) => bail!("not closed within {POKE_DEADLINE:?}"),
            Err(error) => return Err(error),
        }
    }
}

/// What a well-behaved connection saw.
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// Records it produced and read back.
    pub records: i64,
    /// The longest a produce and fetch took.
    pub slowest: Duration,
}

/// Produces and reads back one record after the other, over one connection that must never break, until `stop`.
pub fn stay_healthy(addr: SocketAddr, topic: &str, stop: &AtomicBool) -> Result<Health> {
    let mut connection = RawConnection::open(addr)?;
    connection.ensure_topic(topic)?;
    let mut health = Health { records: 0, slowest: Duration::ZERO };
    while !stop.load(Ordering::Relaxed) || health.records == 0 {
        let started = Instant::now();
        let offset = health.records;
        let batch = BatchBuilder::of_value(format!("healthy {offset}")).build();
        let produced = connection.produce(topic, 0, batch.clone()).context("healthy produce")?;
        ensure!(
            produced.error_code == 0 && produced.base_offset == offset,
            "healthy produce {offset}: {produced:?}"
        );
        let fetched = connection.fetch(topic, 0, offset).context("healthy fetch")?;
        let partition = fetched.responses.first().and_then(|topic| topic.partitions.first());
        let records = partition.and_then(|partition| partition.records.as_ref());
        let records = records.with_context(|| format!("healthy fetch {offset}: {fetched:?}"))?;
        ensure!(
            records.get(ATTRIBUTES_AT..) == batch.get(ATTRIBUTES_AT..),
            "healthy fetch {offset}: other bytes than produced"
        );
        health.records += 1;
        health.slowest = health.slowest.max(started.elapsed());
    }
    Ok(health)
}
