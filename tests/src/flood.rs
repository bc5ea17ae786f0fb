//! Many bad requests at once over one connection, as fast as a broker takes them.
//!
//! Requests go out in rows, each with one behind it that is in order. What counts as well is what counts in
//! [`crate::poke`]: answers in order, each of which can be read, up to the end of the row or to a close.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use kafka_protocol::messages::ApiVersionsRequest;

use crate::poke::POKE_DEADLINE;
use crate::raw::{Heard, RawConnection, encode_frame};
use crate::requests::check_answer;

/// The correlation id of the request behind a row.
const SENTINEL: i32 = 0x5EED_0002;
/// The key of Produce, which has no answer where it wants none, and is advertised in versions that are not served.
const PRODUCE: i16 = 0;
const PRODUCE_VERSION_MIN: i16 = 3;

/// What became of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Requests that the broker has dealt with: all, or those up to the one that it closed at.
    pub dealt_with: usize,
    /// Answers among them.
    pub answers: usize,
    /// Whether it closed.
    pub is_closed: bool,
}

/// Sends rows over one connection as long as the broker lets it, and over a new one then.
#[derive(Debug)]
pub struct Flood {
    addr: SocketAddr,
    advertised: Vec<(i16, i16, i16)>,
    connection: Option<RawConnection>,
    sentinel: Vec<u8>,
}

impl Flood {
    /// A flood for the broker at `addr`.
    pub fn new(addr: SocketAddr) -> Result<Flood> {
        let advertised = RawConnection::open(addr)?.api_versions()?;
        let sentinel = encode_frame(0, SENTINEL, &ApiVersionsRequest::default())?;
        Ok(Flood { addr, advertised, connection: None, sentinel })
    }

    /// Sends `frames`, whose lengths are true. An error where the broker neither answers nor closes.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> Result<Row> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => RawConnection::open(self.addr)?,
        };
        let mut bytes = frames.concat();
        bytes.extend_from_slice(&self.sentinel);
        // A broker that has closed already may reset the connection while this is written.
        let is_written = connection.write(&bytes).is_ok();
        let mut row = Row::default();
        loop {
            let heard = match connection.hear(POKE_DEADLINE) {
                Ok(heard) => heard,
                // The answer was cut off by a reset, as what was written after the bad request was never read.
                Err(_) if !is_written => Heard::Closed,
                Err(error) => return Err(error),
            };
            match heard {
                Heard::Silence => bail!("neither an answer nor a close within {POKE_DEADLINE:?}"),
                Heard::Closed => {
                    row.dealt_with = frames.len().min(row.dealt_with + 1);
                    row.is_closed = true;
                    return Ok(row);
                }
                Heard::Frame(frame) => {
                    let found = i32::from_be_bytes(*frame.first_chunk().context("no header")?);
                    let rest = &frames[row.dealt_with..];
                    if found == SENTINEL && rest.iter().all(|asked| may_go_unanswered(asked)) {
                        row.dealt_with = frames.len();
                        self.connection = Some(connection);
                        return Ok(row);
                    }
                    let at = rest.iter().position(|asked| correlation(asked) == Some(found));
                    let at = at.with_context(|| format!("answer to request {found}, not asked"))?;
                    let skipped = rest[..at].iter().all(|asked| may_go_unanswered(asked));
                    ensure!(skipped, "a request before {found} was not answered");
                    self.check_answer(&rest[at], frame)?;
                    row.dealt_with += at + 1;
                    row.answers += 1;
                }
            }
        }
    }

    fn check_answer(&self, asked: &[u8], frame: bytes::Bytes) -> Result<()> {
        let (Some(key), Some(version)) = (i16_at(asked, 4), i16_at(asked, 6)) else {
            bail!("an answer to something without a header");
        };
        let is_served = self
            .advertised
            .iter()
            .any(|(served, min, max)| *served == key && (*min..=*max).contains(&version));
        if is_served && !(key == PRODUCE && version < PRODUCE_VERSION_MIN) {
            check_answer(key, version, frame)?;
        }
        Ok(())
    }
}

fn i16_at(frame: &[u8], at: usize) -> Option<i16> {
    Some(i16::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}

fn correlation(frame: &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(*frame.get(8..)?.first_chunk()?))
}

fn may_go_unanswered(asked: &[u8]) -> bool {
    i16_at(asked, 4) == Some(PRODUCE)
}
