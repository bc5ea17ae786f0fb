//! Cuts the byte stream of a link into frames. No socket here.
//!
//! - I1: memory follows what has arrived: on a header's word at most [`RESERVE_BYTES`] is reserved, then as much again
//!   as is there.
//! - I2: a body that is large is received into its own place and copied no more; it is handed on as [`Bytes`], of which
//!   the messages are slices. A small one is copied once, out of the buffer that all links of a core share.
//! - I3: what comes out has the checksums that its header names.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;

use crate::wire::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, WireError};

/// Reserved at once for a body, more than most have: 2 MiB of batches with what stands around them are not moved again.
const RESERVE_BYTES: usize = (2 << 20) + (4 << 10);

/// A frame that is whole.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) kind: FrameKind,
    pub(super) body: Bytes,
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; FRAME_HEADER_BYTES], received: usize },
    Body { header: FrameHeader, length: usize, buffer: Vec<u8> },
}

const BETWEEN_FRAMES: State = State::Header { bytes: [0; FRAME_HEADER_BYTES], received: 0 };

/// The state of one byte stream.
#[derive(Debug)]
pub(super) struct FrameReader {
    state: State,
    frames: VecDeque<Received>,
    body_bytes_max: u32,
}

impl FrameReader {
    /// Takes no body larger than `body_bytes_max`.
    pub(super) fn new(body_bytes_max: u32) -> FrameReader {
        FrameReader { state: BETWEEN_FRAMES, frames: VecDeque::new(), body_bytes_max }
    }

    /// Takes bodies of another size from the next header on.
    pub(super) fn set_body_bytes_max(&mut self, body_bytes_max: u32) {
        self.body_bytes_max = body_bytes_max;
    }

    /// The next whole frame.
    pub(super) fn next_frame(&mut self) -> Option<Received> {
        self.frames.pop_front()
    }

    /// The same, left where it is.
    pub(super) fn peek(&self) -> Option<&Received> {
        self.frames.front()
    }

    /// Whether a frame has begun that is not whole.
    pub(super) fn is_within_frame(&self) -> bool {
        !matches!(self.state, State::Header { received: 0, .. })
    }

    /// Whether the next bytes belong to a body, for [`FrameReader::receive_body`].
    pub(super) fn is_within_body(&self) -> bool {
        matches!(self.state, State::Body { .. })
    }

    /// Takes bytes off the stream.
    pub(super) fn feed(&mut self, mut input: &[u8]) -> Result<(), WireError> {
        while !input.is_empty() {
            input = match &mut self.state {
                State::Header { bytes, received } => {
                    let missing = FRAME_HEADER_BYTES - *received;
                    let (now, later) = input.split_at(input.len().min(missing));
                    bytes[*received..*received + now.len()].copy_from_slice(now);
                    *received += now.len();
                    if *received == FRAME_HEADER_BYTES {
                        let header = FrameHeader::decode(bytes, self.body_bytes_max)?;
                        self.begin_body(header);
                        self.finish_body()?;
                    }
                    later
                }
                State::Body { length, buffer, .. } => {
                    let (now, later) = input.split_at(input.len().min(*length - buffer.len()));
                    reserve_for(buffer, *length, now.len());
                    buffer.extend_from_slice(now);
                    self.finish_body()?;
                    later
                }
            };
        }
        Ok(())
    }

    /// Receives straight into the body under way: `receive` appends to the vector's spare capacity. `None` when no
    /// body is under way.
    pub(super) fn receive_body(
        &mut self,
        receive: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>,
    ) -> Option<Result<io::Result<usize>, WireError>> {
        let State::Body { length, buffer, .. } = &mut self.state else { return None };
        reserve_for(buffer, *length, 1);
        let received = receive(buffer);
        if received.is_err() {
            return Some(Ok(received));
        }
        // The allocator may have given more than was asked for, and the kernel filled it.
        let beyond = buffer.split_off(buffer.len().min(*length));
        let finished = self.finish_body().and_then(|()| self.feed(&beyond));
        Some(finished.map(|()| received))
    }

    fn begin_body(&mut self, header: FrameHeader) {
        let length = header.body_bytes as usize;
        self.state = State::Body { header, length, buffer: Vec::new() };
    }

    fn finish_body(&mut self) -> Result<(), WireError> {
        if let State::Body { header, length, buffer } = &mut self.state
            && buffer.len() == *length
        {
            header.check_body(buffer)?;
            let (kind, body) = (header.kind, Bytes::from(std::mem::take(buffer)));
            self.state = BETWEEN_FRAMES;
            self.frames.push_back(Received { kind, body });
        }
        Ok(())
    }
}

/// Makes room for `more` bytes: what has arrived once again, at least [`RESERVE_BYTES`], never beyond the body.
pub(super) fn reserve_for(buffer: &mut Vec<u8>, length: usize, more: usize) {
    if buffer.capacity() - buffer.len() >= more {
        return;
    }
    let missing = length - buffer.len();
    let step = buffer.len().max(RESERVE_BYTES).max(more).min(missing);
    buffer.reserve_exact(step);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FRAME_BODY_BYTES_MAX, Frame};

    fn stream() -> (Vec<Bytes>, Vec<u8>) {
        let bodies: Vec<Bytes> =
            [0usize, 5, 3 << 20, 1, 0, 70_000].map(|bytes| Bytes::from(vec![7; bytes])).to_vec();
        let frames = bodies.iter().map(|body| Frame::new(FrameKind::Raft, vec![body.clone()]));
        let stream = frames.flat_map(|frame| frame.parts().concat()).collect();
        (bodies, stream)
    }

    fn take_all(reader: &mut FrameReader) -> Vec<Bytes> {
        std::iter::from_fn(|| reader.next_frame()).map(|frame| frame.body).collect()
    }

    #[test]
    fn given_a_stream_when_fed_in_any_steps_then_the_frames_are_the_same() {
        let (bodies, stream) = stream();
        for step in [1usize, 31, 32, 33, 4096, stream.len()] {
            let mut reader = FrameReader::new(FRAME_BODY_BYTES_MAX);
            for piece in stream.chunks(step) {
                reader.feed(piece).unwrap();
            }
            assert_eq!(take_all(&mut reader), bodies, "in steps of {step}");
            assert!(!reader.is_within_frame());
        }
    }

    #[test]
    fn given_a_large_body_when_received_into_its_place_then_what_follows_is_not_lost() {
        let (bodies, stream) = stream();
        let mut reader = FrameReader::new(FRAME_BODY_BYTES_MAX);
        let mut left = &stream[..];
        let mut frames = Vec::new();
        while !left.is_empty() {
            let received = reader.receive_body(|buffer| {
                // As the kernel: whatever fits, and a little more than was asked for.
                buffer.reserve(64);
                let taken = left.len().min(buffer.capacity() - buffer.len());
                buffer.extend_from_slice(&left[..taken]);
                Ok(taken)
            });
            let taken = match received {
                Some(received) => received.unwrap().unwrap(),
                None => {
                    let taken = left.len().min(100);
                    reader.feed(&left[..taken]).unwrap();
                    taken
                }
            };
            left = &left[taken..];
            frames.extend(take_all(&mut reader));
        }
        assert_eq!(frames, bodies);
    }

    #[test]
    fn given_a_header_that_promises_much_when_little_came_then_little_is_reserved() {
        let frame = Frame::new(FrameKind::Raft, vec![Bytes::from(vec![0; 64 << 20])]);
        let mut reader = FrameReader::new(FRAME_BODY_BYTES_MAX);
        reader.feed(&frame.parts().concat()[..FRAME_HEADER_BYTES + 10]).unwrap();
        let State::Body { buffer, .. } = &reader.state else { panic!("a body is under way") };
        assert!(buffer.capacity() <= 2 * RESERVE_BYTES, "{} bytes", buffer.capacity());
    }

    #[test]
    fn given_a_byte_that_changed_when_fed_then_the_stream_ends_there() {
        let frame = Frame::new(FrameKind::Raft, vec![Bytes::from_static(b"some body")]);
        let whole = frame.parts().concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let mut reader = FrameReader::new(FRAME_BODY_BYTES_MAX);
            assert!(reader.feed(&bytes).is_err(), "byte {at}");
        }
    }
}
