//! Bytes on their way to a socket: small ones in one buffer, big ones shared and never copied.
//!
//! Owns [`Output`], the sequence of pieces that the connection sends with vectored writes.
//!
//! I1 The order on the wire is the order of `inline` and `push_shared` calls.
//! I2 Once everything is sent the inline buffer is used again: a connection in steady state
//!    allocates nothing for its small responses.

use std::io::IoSlice;

use bytes::{Bytes, BytesMut};

/// Shared chunks up to this size are copied: a vector entry and a reference count cost more.
const SHARED_BYTES_MIN: usize = 512;
/// Inline capacity kept for the next batch; more came from a rare big answer and is given back.
const INLINE_BYTES_KEPT: usize = 64 << 10;
/// Vector entries per send.
pub(crate) const SLICES_MAX: usize = 64;

#[derive(Debug)]
struct Shared {
    /// How much of the inline buffer goes before it.
    inline_before: usize,
    bytes: Bytes,
}

/// Pieces waiting to be sent.
#[derive(Debug, Default)]
pub struct Output {
    inline: Vec<u8>,
    shared: Vec<Shared>,
    shared_bytes: usize,
    /// Sent so far: bytes of `inline`, entries of `shared`, bytes of the entry being sent.
    inline_sent: usize,
    shared_sent: usize,
    shared_offset: usize,
    bytes_sent: usize,
}

/// A place to come back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    inline: usize,
    shared: usize,
    shared_bytes: usize,
}

/// A frame whose length is not written yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenFrame {
    length_at: usize,
    bytes_before: usize,
}

/// A frame of over 2 GiB has no length on this wire.
#[derive(Debug)]
pub(crate) struct FrameTooLong;

impl Output {
    /// The buffer for small bytes. Only append to it.
    pub(crate) fn inline(&mut self) -> &mut Vec<u8> {
        &mut self.inline
    }

    /// Appends bytes without copying them, unless they are few.
    pub(crate) fn push_shared(&mut self, bytes: Bytes) {
        if bytes.len() <= SHARED_BYTES_MIN {
            self.inline.extend_from_slice(&bytes);
            return;
        }
        self.shared_bytes += bytes.len();
        self.shared.push(Shared { inline_before: self.inline.len(), bytes });
    }

    pub(crate) fn begin_frame(&mut self) -> OpenFrame {
        let frame =
            OpenFrame { length_at: self.inline.len(), bytes_before: self.bytes_appended() + 4 };
        self.inline.extend_from_slice(&[0; 4]);
        frame
    }

    pub(crate) fn end_frame(&mut self, frame: OpenFrame) -> Result<(), FrameTooLong> {
        let length = self.bytes_appended() - frame.bytes_before;
        let length = i32::try_from(length).map_err(|_| FrameTooLong)?;
        let at = frame.length_at;
        self.inline[at..at + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            inline: self.inline.len(),
            shared: self.shared.len(),
            shared_bytes: self.shared_bytes,
        }
    }

    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.inline.truncate(mark.inline);
        self.shared.truncate(mark.shared);
        self.shared_bytes = mark.shared_bytes;
    }

    fn bytes_appended(&self) -> usize {
        self.inline.len() + self.shared_bytes
    }

    /// Bytes not yet sent.
    pub fn pending_bytes(&self) -> usize {
        self.bytes_appended() - self.bytes_sent
    }

    /// Vector entries for the next send, at most `slices`'s length; returns how many were filled.
    pub(crate) fn fill_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let slices_max = slices.len();
        let mut inline_at = self.inline_sent;
        let mut filled = 0;
        let mut push = |bytes: &'a [u8], filled: &mut usize| {
            if !bytes.is_empty() && *filled < slices_max {
                slices[*filled] = IoSlice::new(bytes);
                *filled += 1;
            }
        };
        for (index, shared) in self.shared.iter().enumerate().skip(self.shared_sent) {
            push(&self.inline[inline_at..shared.inline_before], &mut filled);
            inline_at = shared.inline_before;
            let offset = if index == self.shared_sent { self.shared_offset } else { 0 };
            push(&shared.bytes[offset..], &mut filled);
            if filled == slices_max {
                return filled;
            }
        }
        push(&self.inline[inline_at..], &mut filled);
        filled
    }

    /// Notes that the first `sent` pending bytes are gone.
    pub(crate) fn advance(&mut self, mut sent: usize) {
        assert!(sent <= self.pending_bytes(), "more bytes sent than there were");
        self.bytes_sent += sent;
        while sent > 0 {
            let inline_end =
                self.shared.get(self.shared_sent).map_or(self.inline.len(), |s| s.inline_before);
            let inline_step = sent.min(inline_end - self.inline_sent);
            self.inline_sent += inline_step;
            sent -= inline_step;
            let Some(shared) = self.shared.get_mut(self.shared_sent) else { continue };
            let shared_step = sent.min(shared.bytes.len() - self.shared_offset);
            self.shared_offset += shared_step;
            sent -= shared_step;
            if self.shared_offset == shared.bytes.len() {
                // Let the records go as soon as the kernel has them.
                shared.bytes = Bytes::new();
                self.shared_sent += 1;
                self.shared_offset = 0;
            }
        }
        if self.pending_bytes() == 0 {
            self.reset();
        }
    }

    fn reset(&mut self) {
        self.inline.clear();
        self.inline.shrink_to(INLINE_BYTES_KEPT);
        self.shared.clear();
        self.shared_bytes = 0;
        self.inline_sent = 0;
        self.shared_sent = 0;
        self.shared_offset = 0;
        self.bytes_sent = 0;
    }

    /// Everything pending in one piece, for tests and tools.
    pub fn to_bytes(&self) -> Bytes {
        let mut flat = BytesMut::with_capacity(self.pending_bytes());
        let mut inline_at = self.inline_sent;
        for (index, shared) in self.shared.iter().enumerate().skip(self.shared_sent) {
            flat.extend_from_slice(&self.inline[inline_at..shared.inline_before]);
            inline_at = shared.inline_before;
            let offset = if index == self.shared_sent { self.shared_offset } else { 0 };
            flat.extend_from_slice(&shared.bytes[offset..]);
        }
        flat.extend_from_slice(&self.inline[inline_at..]);
        flat.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_mixed_pieces_when_sent_in_any_steps_then_the_bytes_are_the_same() {
        for step in [1usize, 3, 511, 700, 5000] {
            let mut output = Output::default();
            for (index, fill) in (0u8..6).enumerate() {
                output.inline().extend_from_slice(&[fill; 7]);
                output.push_shared(Bytes::from(vec![fill | 0x80; 300 * (index + 1)]));
            }
            output.inline().extend_from_slice(b"end");
            let whole = output.to_bytes();
            let mut sent = Vec::new();
            while output.pending_bytes() > 0 {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = output.fill_slices(&mut slices);
                let flat: Vec<u8> =
                    slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
                let taken = step.min(flat.len());
                sent.extend_from_slice(&flat[..taken]);
                output.advance(taken);
            }
            assert_eq!(sent, whole);
        }
    }

    #[test]
    fn given_a_frame_when_ended_then_its_length_counts_shared_bytes() {
        let mut output = Output::default();
        let frame = output.begin_frame();
        output.inline().extend_from_slice(b"abc");
        output.push_shared(Bytes::from(vec![1; 1000]));
        output.end_frame(frame).unwrap();
        assert_eq!(output.to_bytes()[..4], 1003i32.to_be_bytes());
    }
}
