//! A snapshot that travels in parts, and what its receiver wants next.
//!
//! ```text
//! transfer  group u64 | to u64 | index u64 | term u64 | message_bytes u32 | message_crc u32
//! Part      transfer | offset u32 | reserved u32 = 0 | bytes, to the end
//! Want      transfer | offset u32 | is_given_up u8 | reserved [3] = 0
//! ```
//!
//! What is cut into parts is the body of a [`FrameKind::Raft`] frame with one message, the snapshot. Its sender offers it by a
//! part without bytes at offset 0. The receiver says from where on it wants it: from its beginning, or from where it stopped
//! when the link was lost. Each part that it takes it answers so, the last one with the offset that is the end.
//!
//! Invariants: (I1) the bytes of a part are the rest of its frame, shared with it and not copied; (I2) what a transfer says
//! of itself is not checked here: its receiver knows what it has room for.

use bytes::Bytes;
use chronik_engine::ids::{GroupId, RaftIndex, ReplicaId, Term};

use super::WireError;
use super::frame::{Frame, FrameKind, FrameWriter, is_shared};
use super::reader::Reader;

/// The most bytes of a message in one part. Other frames of a link wait for one part at most.
pub const PART_BYTES_MAX: usize = 512 << 10;
/// What stands before them.
pub(super) const PART_HEAD_BYTES: usize = 48;

const WANT_BYTES: usize = 48;

const _: () = assert!(4 * 8 + 2 * 4 + 4 + 4 == PART_HEAD_BYTES);
const _: () = assert!(4 * 8 + 2 * 4 + 4 + 1 + 3 == WANT_BYTES);

/// Names a snapshot on its way, by what is in it: the same one may be offered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Of which group.
    pub group: GroupId,
    /// To whom.
    pub to: ReplicaId,
    /// The last entry that is in it.
    pub index: RaftIndex,
    /// The term of that entry.
    pub term: Term,
    /// How long the message is.
    pub message_bytes: u32,
    /// The CRC-32 of the message.
    pub message_crc: u32,
}

impl Transfer {
    fn put(&self, frame: &mut FrameWriter) {
        for number in [self.group.0, self.to.0, self.index.0, self.term.0] {
            frame.put(&number.to_le_bytes());
        }
        frame.put(&self.message_bytes.to_le_bytes());
        frame.put(&self.message_crc.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Transfer, WireError> {
        Ok(Transfer {
            group: GroupId(reader.u64()?),
            to: ReplicaId(reader.u64()?),
            index: RaftIndex(reader.u64()?),
            term: Term(reader.u64()?),
            message_bytes: reader.u32()?,
            message_crc: reader.u32()?,
        })
    }
}

/// Some bytes of a message; the offer of it if there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Of what.
    pub transfer: Transfer,
    /// Where they belong.
    pub offset: u32,
    /// They themselves.
    pub bytes: Bytes,
}

impl Part {
    /// The frame of a part whose bytes lie in pieces. Refused if they are too many for one.
    pub fn frame(transfer: &Transfer, offset: u32, pieces: &[Bytes]) -> Result<Frame, WireError> {
        let bytes = pieces.iter().fold(0_usize, |bytes, piece| bytes.saturating_add(piece.len()));
        if bytes > PART_BYTES_MAX {
            return Err(WireError::BodyTooLarge { bytes, bytes_max: PART_BYTES_MAX });
        }
        let copied = pieces.iter().map(Bytes::len).filter(|bytes| !is_shared(*bytes));
        let mut frame = FrameWriter::new(FrameKind::Part, PART_HEAD_BYTES + copied.sum::<usize>());
        transfer.put(&mut frame);
        frame.put(&offset.to_le_bytes());
        frame.put(&[0; 4]);
        for piece in pieces {
            frame.put_bytes(piece);
        }
        Ok(frame.finish())
    }

    /// From the body of a [`FrameKind::Part`].
    pub fn decode(body: &Bytes) -> Result<Part, WireError> {
        let mut reader = Reader::new(body);
        let transfer = Transfer::read(&mut reader)?;
        let offset = reader.u32()?;
        reader.reserved(4)?;
        Ok(Part { transfer, offset, bytes: body.slice_ref(reader.rest()) })
    }
}

/// What the receiver of a transfer says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Of which.
    pub transfer: Transfer,
    /// It has what lies before this, and wants what follows; all is there where this is the end.
    pub offset: u32,
    /// It wants nothing of it.
    pub is_given_up: bool,
}

impl Want {
    /// As a frame.
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        let mut frame = FrameWriter::new(FrameKind::Want, WANT_BYTES);
        self.transfer.put(&mut frame);
        frame.put(&self.offset.to_le_bytes());
        frame.put(&[u8::from(self.is_given_up), 0, 0, 0]);
        frame.finish()
    }

    /// From the body of a [`FrameKind::Want`].
    pub fn decode(body: &[u8]) -> Result<Want, WireError> {
        let mut reader = Reader::new(body);
        let transfer = Transfer::read(&mut reader)?;
        let offset = reader.u32()?;
        let is_given_up = match reader.u8()? {
            0 => false,
            1 => true,
            value => {
                return Err(WireError::Value { field: "end of a transfer", value: value.into() });
            }
        };
        reader.reserved(3)?;
        reader.finish()?;
        Ok(Want { transfer, offset, is_given_up })
    }
}
