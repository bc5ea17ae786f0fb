//! Records on their way: what is asked for, what is gathered, what is written.
//!
//! - I1: one call and one write at a time; what is gathered beside the write is bounded, but for the last answer.
//! - I2: what is gathered follows on what is written, without a gap.

use chronik_engine::ids::Offset;

use super::{FillChunk, FillId};

/// What is gathered before it is written.
const GATHERED_BYTES_MAX: usize = 32 << 20;
/// What is asked for at once.
const ANSWER_BYTES_MAX: usize = 2 << 20;
/// Less is not worth a call: what is gathered is written instead.
const ANSWER_BYTES_MIN: usize = 256 << 10;
/// Ticks before something that failed is tried again, and the most after many failures.
const PAUSE_TICKS_MIN: u32 = 2;
const PAUSE_TICKS_MAX: u32 = 40;

const _: () = assert!(ANSWER_BYTES_MAX <= GATHERED_BYTES_MAX);
const _: () = assert!(ANSWER_BYTES_MIN <= ANSWER_BYTES_MAX);

/// Records on their way.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) id: FillId,
    pub(super) is_asked: bool,
    pub(super) is_writing: bool,
    /// Where `gathered` begins, and where it ends.
    gathered_from: Offset,
    pub(super) next: Offset,
    gathered: Vec<FillChunk>,
    gathered_bytes: usize,
    pub(super) failures: u32,
    pub(super) pause_ticks: u32,
}

impl Copying {
    pub(super) fn new(id: FillId, from: Offset) -> Copying {
        Copying {
            id,
            is_asked: false,
            is_writing: false,
            gathered_from: from,
            next: from,
            gathered: Vec::new(),
            gathered_bytes: 0,
            failures: 0,
            pause_ticks: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.gathered_bytes + ANSWER_BYTES_MIN > GATHERED_BYTES_MAX
    }

    pub(super) fn take(&mut self, chunk: FillChunk) {
        self.next = chunk.end_offset;
        self.gathered_bytes += chunk.bytes.len();
        self.gathered.push(chunk);
        self.failures = 0;
    }

    pub(super) fn fail(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let doubled = PAUSE_TICKS_MIN.checked_shl(self.failures.min(16));
        self.pause_ticks = doubled.unwrap_or(PAUSE_TICKS_MAX).min(PAUSE_TICKS_MAX);
    }

    /// Goes on from where segments end by now, since the log's own file may have become one; false where what is gathered
    /// does not go on from there.
    pub(super) fn go_on_from(&mut self, stored_to: Offset) -> bool {
        if self.is_writing || stored_to == self.gathered_from {
            return true;
        }
        if !(self.gathered_from..=self.next).contains(&stored_to) {
            return false;
        }
        self.gathered.retain(|chunk| chunk.end_offset > stored_to);
        self.gathered_bytes = self.gathered.iter().map(|chunk| chunk.bytes.len()).sum();
        self.gathered_from = stored_to;
        true
    }

    /// The records to write, if there are enough, or all up to `end`.
    pub(super) fn take_write(&mut self, end: Offset) -> Option<(Offset, Vec<FillChunk>)> {
        let is_due = self.is_full() || self.next >= end;
        if self.is_writing || self.gathered.is_empty() || !is_due {
            return None;
        }
        self.is_writing = true;
        self.gathered_bytes = 0;
        let from = std::mem::replace(&mut self.gathered_from, self.next);
        Some((from, std::mem::take(&mut self.gathered)))
    }

    /// Where to ask next, and for how much.
    pub(super) fn take_ask(&mut self, end: Offset) -> Option<(Offset, usize)> {
        if self.is_asked || self.pause_ticks > 0 || self.next >= end || self.is_full() {
            return None;
        }
        self.is_asked = true;
        Some((self.next, ANSWER_BYTES_MAX.min(GATHERED_BYTES_MAX - self.gathered_bytes)))
    }
}
