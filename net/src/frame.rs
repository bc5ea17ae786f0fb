//! Cuts the byte stream of a connection into frames. No socket here.
//!
//! Owns [`FrameAssembler`]. Frames that arrive whole are copied out of the core's read buffer, so
//! that a record kept in memory keeps its own frame alive and nothing else; larger ones are received
//! into a buffer of their own.
//!
//! I1 Memory follows what has arrived: on a frame's word at most [`RESERVE_BYTES_UNCLAIMED`] is reserved, and once it has
//!    its share of the budget [`RESERVE_BYTES_MAX`].
//! I2 A length that no frame may have is refused before a byte of the body is kept.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use kafka_protocol::messages::ApiKey;

use crate::error::{CloseReason, FrameError};

/// Reserved at once for a declared frame that has its budget.
const RESERVE_BYTES_MAX: usize = 2 << 20;
/// Reserved at once for any declared frame.
const RESERVE_BYTES_UNCLAIMED: usize = 64 << 10;
/// Length prefix and API key: what the limit of a frame depends on.
const HEAD_BYTES: usize = 6;
const PREFIX_BYTES: usize = 4;
/// API key, version and correlation id: no frame is shorter.
const BODY_BYTES_MIN: usize = 8;

#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameLimits {
    pub(crate) produce_bytes_max: usize,
    pub(crate) control_bytes_max: usize,
}

#[derive(Debug)]
enum State {
    Head { bytes: [u8; HEAD_BYTES], received: usize },
    Body { buffer: Vec<u8>, length: usize },
}

const BETWEEN_FRAMES: State = State::Head { bytes: [0; HEAD_BYTES], received: 0 };

#[derive(Debug)]
pub(crate) struct FrameAssembler {
    limits: FrameLimits,
    state: State,
    frames: VecDeque<Bytes>,
}

impl FrameAssembler {
    pub(crate) fn new(limits: FrameLimits) -> Self {
        Self { limits, state: BETWEEN_FRAMES, frames: VecDeque::new() }
    }

    /// The next whole frame, without its length prefix.
    pub(crate) fn next_frame(&mut self) -> Option<Bytes> {
        self.frames.pop_front()
    }

    /// Bytes received of a frame that is not whole yet; 0 between frames.
    pub(crate) fn received_in_frame(&self) -> usize {
        match &self.state {
            State::Head { received, .. } => *received,
            State::Body { buffer, .. } => PREFIX_BYTES + buffer.len(),
        }
    }

    /// The declared length of the frame that is being received.
    pub(crate) fn body_length(&self) -> Option<usize> {
        match &self.state {
            State::Head { .. } => None,
            State::Body { length, .. } => Some(*length),
        }
    }

    /// The bytes that its body lacks.
    pub(crate) fn missing_in_frame(&self) -> usize {
        match &self.state {
            State::Head { .. } => 0,
            State::Body { buffer, length } => length - buffer.len(),
        }
    }

    /// The bytes of the frame that is not whole yet, as they came. To be fed to another assembler.
    pub(crate) fn into_unread(self) -> Vec<u8> {
        match self.state {
            State::Head { bytes, received } => bytes[..received].to_vec(),
            State::Body { buffer, length } => {
                // Checked on the way in: a length is an i32 on the wire.
                let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
                [prefix.as_slice(), &buffer].concat()
            }
        }
    }

    pub(crate) fn has_frame(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Makes room for the frame under way, which has its budget now.
    pub(crate) fn reserve_claimed(&mut self) {
        if let State::Body { buffer, length } = &mut self.state {
            reserve_for(buffer, *length, (*length - buffer.len()).min(RESERVE_BYTES_MAX));
        }
    }

    /// Gives back what was reserved for the frame under way, which has lost its budget.
    pub(crate) fn give_back_reserve(&mut self) {
        if let State::Body { buffer, .. } = &mut self.state {
            buffer.shrink_to(RESERVE_BYTES_UNCLAIMED);
        }
    }

    /// Takes bytes off the stream.
    pub(crate) fn feed(&mut self, mut input: &[u8]) -> Result<(), FrameError> {
        while !input.is_empty() {
            input = match &mut self.state {
                State::Head { received: 0, .. } if input.len() >= HEAD_BYTES => {
                    self.feed_from_start(input)?
                }
                State::Head { .. } => self.feed_head(input)?,
                State::Body { buffer, length } => {
                    let (now, later) = input.split_at(input.len().min(*length - buffer.len()));
                    reserve_for(buffer, *length, now.len());
                    buffer.extend_from_slice(now);
                    self.finish_body();
                    later
                }
            };
        }
        Ok(())
    }

    /// The common case: the input begins at a frame's first byte.
    fn feed_from_start<'a>(&mut self, input: &'a [u8]) -> Result<&'a [u8], FrameError> {
        let [l0, l1, l2, l3, k0, k1, ..] = *input else { return Ok(input) };
        let length = self.check_length([l0, l1, l2, l3])?;
        self.check_length_for(length, i16::from_be_bytes([k0, k1]))?;
        let after_prefix = &input[PREFIX_BYTES..];
        if let Some((frame, later)) = after_prefix.split_at_checked(length) {
            self.frames.push_back(Bytes::copy_from_slice(frame));
            return Ok(later);
        }
        self.begin_body(length, after_prefix);
        Ok(&[])
    }

    fn feed_head<'a>(&mut self, input: &'a [u8]) -> Result<&'a [u8], FrameError> {
        let State::Head { bytes, received } = &mut self.state else { return Ok(input) };
        let (now, later) = input.split_at(input.len().min(HEAD_BYTES - *received));
        bytes[*received..*received + now.len()].copy_from_slice(now);
        *received += now.len();
        let received = *received;
        let head @ [l0, l1, l2, l3, k0, k1] = *bytes;
        if received >= PREFIX_BYTES {
            let length = self.check_length([l0, l1, l2, l3])?;
            if received == HEAD_BYTES {
                self.check_length_for(length, i16::from_be_bytes([k0, k1]))?;
                self.begin_body(length, &head[PREFIX_BYTES..]);
            }
        }
        Ok(later)
    }

    fn begin_body(&mut self, length: usize, start: &[u8]) {
        let mut buffer = Vec::with_capacity(length.min(RESERVE_BYTES_UNCLAIMED));
        buffer.extend_from_slice(start);
        self.state = State::Body { buffer, length };
    }

    fn finish_body(&mut self) {
        if let State::Body { buffer, length } = &mut self.state
            && buffer.len() == *length
        {
            let frame = Bytes::from(std::mem::take(buffer));
            self.frames.push_back(frame);
            self.state = BETWEEN_FRAMES;
        }
    }

    fn check_length(&self, prefix: [u8; PREFIX_BYTES]) -> Result<usize, FrameError> {
        let length = i32::from_be_bytes(prefix);
        let length = usize::try_from(length).map_err(|_| FrameError::NegativeLength { length })?;
        if length < BODY_BYTES_MIN {
            return Err(FrameError::TooShort { length });
        }
        let length_max = self.limits.produce_bytes_max;
        if length > length_max {
            return Err(FrameError::TooLarge { length, length_max });
        }
        Ok(length)
    }

    fn check_length_for(&self, length: usize, api_key: i16) -> Result<(), FrameError> {
        let length_max = self.limits.control_bytes_max;
        if length > length_max && api_key != ApiKey::Produce as i16 {
            return Err(FrameError::TooLarge { length, length_max });
        }
        Ok(())
    }

    /// Receives straight into the frame under way: `receive` appends to the vector's spare capacity
    /// and says how much it appended. `None` when no frame is under way.
    pub(crate) fn receive_body(
        &mut self,
        receive: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>,
    ) -> Option<Result<usize, CloseReason>> {
        let State::Body { buffer, length } = &mut self.state else { return None };
        reserve_for(buffer, *length, 1);
        let received = match receive(buffer) {
            Ok(received) => received,
            Err(error) => return Some(Err(error.into())),
        };
        // The allocator may have given more than was asked for, and the kernel filled it.
        let beyond = buffer.split_off(buffer.len().min(*length));
        self.finish_body();
        Some(self.feed(&beyond).map(|()| received).map_err(CloseReason::from))
    }
}

/// Makes room for `more` bytes: what has arrived once again, at least [`RESERVE_BYTES_MAX`], never
/// beyond the frame.
fn reserve_for(buffer: &mut Vec<u8>, length: usize, more: usize) {
    if buffer.capacity() - buffer.len() >= more {
        return;
    }
    let missing = length - buffer.len();
    let step = buffer.len().max(RESERVE_BYTES_MAX).max(more).min(missing);
    buffer.reserve_exact(step);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: FrameLimits =
        FrameLimits { produce_bytes_max: 100 << 20, control_bytes_max: 8 << 20 };

    fn stream_of(bodies: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for body in bodies {
            stream.extend_from_slice(&i32::try_from(body.len()).unwrap().to_be_bytes());
            stream.extend_from_slice(body);
        }
        stream
    }

    proptest! {
        #[test]
        fn given_any_cuts_when_fed_then_the_frames_are_those_sent(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 8..200), 1..8),
            cuts in prop::collection::vec(1usize..97, 1..40),
        ) {
            let stream = stream_of(&bodies);
            let mut assembler = FrameAssembler::new(LIMITS);
            let mut rest = stream.as_slice();
            let mut cuts = cuts.iter().cycle();
            let mut frames = Vec::new();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                assembler.feed(now).unwrap();
                rest = later;
                frames.extend(std::iter::from_fn(|| assembler.next_frame()));
            }
            prop_assert_eq!(frames, bodies);
            prop_assert_eq!(assembler.received_in_frame(), 0);
        }
    }

    #[test]
    fn given_a_stream_cut_anywhere_when_another_assembler_goes_on_then_no_byte_is_lost() {
        let bodies = vec![vec![1u8; 30], vec![2u8; 20]];
        let stream = stream_of(&bodies);
        for cut in 0..=stream.len() {
            let mut first = FrameAssembler::new(LIMITS);
            first.feed(&stream[..cut]).unwrap();
            let mut frames: Vec<Bytes> = std::iter::from_fn(|| first.next_frame()).collect();
            let mut second = FrameAssembler::new(LIMITS);
            second.feed(&first.into_unread()).unwrap();
            second.feed(&stream[cut..]).unwrap();
            frames.extend(std::iter::from_fn(|| second.next_frame()));
            assert_eq!(frames, bodies, "cut at {cut}");
        }
    }

    #[test]
    fn given_lengths_no_frame_may_have_when_fed_then_they_are_refused_at_once() {
        let cases: [(&[u8], FrameError); 5] = [
            (&[0xff, 0xff, 0xff, 0xff], FrameError::NegativeLength { length: -1 }),
            (&[0, 0, 0, 0], FrameError::TooShort { length: 0 }),
            (&[0, 0, 0, 7], FrameError::TooShort { length: 7 }),
            (
                &[0x7f, 0xff, 0xff, 0xff],
                FrameError::TooLarge { length: 0x7fff_ffff, length_max: 100 << 20 },
            ),
            (
                &[0, 0x80, 0, 1, 0, 3],
                FrameError::TooLarge { length: (8 << 20) + 1, length_max: 8 << 20 },
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(FrameAssembler::new(LIMITS).feed(bytes), Err(expected));
            let mut slowly = FrameAssembler::new(LIMITS);
            let end = bytes.iter().try_for_each(|byte| slowly.feed(&[*byte]));
            assert_eq!(end, Err(expected));
        }
    }

    #[test]
    fn given_a_declared_large_frame_when_little_arrives_then_little_is_reserved() {
        let mut assembler = FrameAssembler::new(LIMITS);
        let mut head = (90i32 << 20).to_be_bytes().to_vec();
        head.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 1]);
        assembler.feed(&head).unwrap();
        let State::Body { buffer, .. } = &assembler.state else { panic!("in a body") };
        assert!(buffer.capacity() <= RESERVE_BYTES_UNCLAIMED);
        assembler.reserve_claimed();
        assembler.feed(&[1; 100_000]).unwrap();
        let State::Body { buffer, .. } = &assembler.state else { panic!("in a body") };
        assert!(buffer.capacity() <= RESERVE_BYTES_UNCLAIMED + RESERVE_BYTES_MAX);
        assembler.give_back_reserve();
        let State::Body { buffer, .. } = &assembler.state else { panic!("in a body") };
        assert!(buffer.capacity() < 101_000);
    }

    #[test]
    fn given_bytes_received_directly_when_they_reach_past_the_frame_then_the_rest_is_kept() {
        let bodies = vec![vec![1u8; 5000], vec![2u8; 20]];
        let stream = stream_of(&bodies);
        let mut assembler = FrameAssembler::new(LIMITS);
        assembler.feed(&stream[..100]).unwrap();
        let received = assembler.receive_body(|buffer| {
            buffer.extend_from_slice(&stream[100..]);
            Ok(stream.len() - 100)
        });
        assert_eq!(received.unwrap().unwrap(), stream.len() - 100);
        let frames: Vec<Bytes> = std::iter::from_fn(|| assembler.next_frame()).collect();
        assert_eq!(frames, bodies);
    }
}
