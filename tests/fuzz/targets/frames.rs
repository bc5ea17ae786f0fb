//! Cutting what comes from a socket into frames: whatever comes, in whatever pieces, by whichever way it is taken off the
//! socket, the frames are those that were sent, and a length that no frame may have is refused where it is seen.
//!
//! The first part of the input makes the stream, the second one the pieces. A plain reading of the whole stream at once says
//! what must come of it.
//!
//! - I1: memory follows what has arrived, whatever the lengths say.
//! - I2: what another assembler goes on with loses no byte.
#![no_main]

#[path = "../support/alloc.rs"]
mod alloc;
#[allow(dead_code)]
#[path = "../../../net/src/frame.rs"]
mod frame;

use chronik_net::error;
use error::{CloseReason, FrameError};
use frame::{FrameAssembler, FrameLimits};
use libfuzzer_sys::fuzz_target;

const PRODUCE_BYTES_MAX: usize = 100 << 20;
const CONTROL_BYTES_MAX: usize = 8 << 20;
/// A stream is not longer, but for the last thing in it.
const STREAM_BYTES_MAX: usize = 3 << 20;
const LIMITS: FrameLimits =
    FrameLimits { produce_bytes_max: PRODUCE_BYTES_MAX, control_bytes_max: CONTROL_BYTES_MAX };
/// What is reserved for a frame on its word alone, and once it has its budget.
const RESERVED_UNCLAIMED: usize = 64 << 10;
const RESERVED_CLAIMED: usize = 2 << 20;
/// The queue of the frames of one piece, and what else is small.
const SMALL_BYTES: usize = 64 << 10;
/// The largest piece.
const PIECE_BYTES_MAX: usize = 4096;
const PIECES: [usize; 8] = [1, 2, 3, 5, 6, 7, 300, PIECE_BYTES_MAX];

/// Lengths at which something changes.
const EDGES: [i32; 12] = [
    i32::MIN,
    -1,
    0,
    1,
    7,
    8,
    9,
    CONTROL_BYTES_MAX as i32,
    CONTROL_BYTES_MAX as i32 + 1,
    PRODUCE_BYTES_MAX as i32,
    PRODUCE_BYTES_MAX as i32 + 1,
    i32::MAX,
];

/// The input, byte by byte.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn next_or_zero(&mut self) -> usize {
        self.next().unwrap_or(0).into()
    }
}

/// Makes a stream: bytes as they are, frames that are sound, lengths that are not.
fn stream(script: &mut Script) -> Vec<u8> {
    let mut stream = Vec::new();
    while let Some(what) = script.next() {
        if what == 255 || stream.len() > STREAM_BYTES_MAX {
            break;
        }
        let filler = |stream: &mut Vec<u8>, bytes| stream.resize(stream.len() + bytes, what);
        match what % 4 {
            0 => {
                let count = script.next_or_zero() % 16;
                stream.extend((0..count).map_while(|_| script.next()));
            }
            1 => {
                let length = 8 + (script.next_or_zero() << (what / 4 % 14));
                stream.extend_from_slice(&(length as u32).to_be_bytes());
                filler(&mut stream, length);
            }
            2 => {
                stream.extend_from_slice(&EDGES[script.next_or_zero() % EDGES.len()].to_be_bytes());
                // Produce, or what is allowed less.
                stream.extend_from_slice(&[0, what / 4 % 2]);
            }
            _ => filler(&mut stream, script.next_or_zero() * 16),
        }
    }
    stream
}

/// How a stream ends.
struct End {
    error: Option<FrameError>,
    /// The length of the frame that is not whole, if as much of it is there as its limit depends on.
    unfinished: Option<usize>,
    /// Bytes of it.
    left: usize,
}

/// Reads the stream at once.
fn read<'a>(stream: &'a [u8], mut on_frame: impl FnMut(&'a [u8])) -> End {
    let mut rest = stream;
    while let Some((prefix, body)) = rest.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*prefix);
        let error = match usize::try_from(length) {
            Err(_) => Some(FrameError::NegativeLength { length }),
            Ok(length @ ..8) => Some(FrameError::TooShort { length }),
            Ok(length) if length > PRODUCE_BYTES_MAX => {
                Some(FrameError::TooLarge { length, length_max: PRODUCE_BYTES_MAX })
            }
            Ok(length) if length > CONTROL_BYTES_MAX && body.len() >= 2 && body[..2] != [0, 0] => {
                Some(FrameError::TooLarge { length, length_max: CONTROL_BYTES_MAX })
            }
            Ok(_) => None,
        };
        if error.is_some() {
            return End { error, unfinished: None, left: 0 };
        }
        let length = length as usize;
        let Some((frame, later)) = body.split_at_checked(length) else {
            let unfinished = (body.len() >= 2).then_some(length);
            return End { error: None, unfinished, left: rest.len() };
        };
        on_frame(frame);
        rest = later;
    }
    End { error: None, unfinished: None, left: rest.len() }
}

/// Gives the stream to an assembler in pieces, and looks after each at what came of it. Whether a frame ever had a budget.
fn deliver(stream: &[u8], frames: &[&[u8]], end: &End, script: &mut Script) -> bool {
    let mut frames = frames.iter();
    let mut assembler = FrameAssembler::new(LIMITS);
    let (mut taken, mut claims) = (0, false);
    while taken < stream.len() {
        // Without more to go by, large pieces by the common way.
        let how = script.next().map_or(7, usize::from);
        let piece = PIECES[how % 8].min(stream.len() - taken);
        let piece = &stream[taken..taken + piece];
        let (took, fed) = match how / 8 % 8 {
            0..4 => (piece.len(), assembler.feed(piece)),
            4 | 5 => match receive(&mut assembler, piece) {
                Some(received) => received,
                None => (piece.len(), assembler.feed(piece)),
            },
            6 => {
                claims = true;
                assembler.reserve_claimed();
                if how >= 128 {
                    assembler.give_back_reserve();
                }
                (0, Ok(()))
            }
            _ => {
                let unread = assembler.into_unread();
                assembler = FrameAssembler::new(LIMITS);
                (0, assembler.feed(&unread))
            }
        };
        taken += took;
        while let Some(frame) = assembler.next_frame() {
            assert_eq!(frames.next().copied(), Some(&frame[..]));
        }
        if fed.is_err() {
            assert_eq!(fed.as_ref().err(), end.error.as_ref());
            assert!(frames.next().is_none(), "frames before the wrong length are missing");
            return claims;
        }
        let so_far = read(&stream[..taken], |_| ());
        assert_eq!(so_far.error, None, "not refused where it is seen");
        assert_eq!(assembler.received_in_frame(), so_far.left);
        assert_eq!(assembler.body_length(), so_far.unfinished);
        let missing = so_far.unfinished.map_or(0, |length| 4 + length - so_far.left);
        assert_eq!(assembler.missing_in_frame(), missing);
    }
    assert_eq!(end.error, None);
    assert!(frames.next().is_none(), "frames are missing");
    claims
}

/// Into the frame under way, as far as there is room for it, as a socket does; nothing without one.
fn receive(
    assembler: &mut FrameAssembler,
    piece: &[u8],
) -> Option<(usize, Result<(), FrameError>)> {
    let mut took = 0;
    let received = assembler.receive_body(|buffer| {
        took = piece.len().min(buffer.capacity() - buffer.len());
        assert!(took > 0, "there is room for a byte");
        buffer.extend_from_slice(&piece[..took]);
        Ok(took)
    })?;
    let fed = match received {
        Ok(received) => {
            assert_eq!(received, took);
            Ok(())
        }
        Err(CloseReason::Malformed { error }) => Err(error),
        Err(other) => panic!("{other}"),
    };
    Some((took, fed))
}

fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let stream = stream(&mut script);
    let mut frames = Vec::new();
    let end = read(&stream, |frame| frames.push(frame));
    let mut claims = false;
    let held = alloc::peak_of(|| claims = deliver(&stream, &frames, &end, &mut script));
    // Twice, as what grows is held beside what it was.
    let reserved = if claims || stream.len() > RESERVED_UNCLAIMED {
        2 * (RESERVED_CLAIMED + RESERVED_UNCLAIMED)
    } else {
        2 * RESERVED_UNCLAIMED
    };
    let held_max = 3 * stream.len() + reserved + SMALL_BYTES;
    assert!(held <= held_max, "{held} bytes held for a stream of {}", stream.len());
});
