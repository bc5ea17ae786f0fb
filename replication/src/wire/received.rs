//! What followers have received and not made durable yet: what the leader of a group is told whose acknowledgements wait for
//! memory only. Raft itself hears nothing of it, and goes by its own answers, which wait for the disk.
//!
//! ```text
//! count u32 | reserved u32 = 0 | count × (group u64 | from u64 | to u64 | term u64 | index u64)
//! ```
//!
//! Since version 2 of what peers say to each other. A mark that is lost costs an acknowledgement the time of a sync.

use chronik_engine::ids::{GroupId, RaftIndex, ReplicaId, Term};

use super::WireError;
use super::frame::{Frame, FrameKind, FrameWriter};
use super::reader::Reader;

/// The most marks in one frame.
pub const RECEIVED_MAX: usize = 1 << 14;
/// The oldest version of a link that takes such frames.
pub const RECEIVED_VERSION_MIN: u16 = 2;

const HEAD_BYTES: usize = 8;
const MARK_BYTES: usize = 40;

const _: () = assert!(5 * 8 == MARK_BYTES);
const _: () = assert!(
    HEAD_BYTES + RECEIVED_MAX * MARK_BYTES <= FrameKind::Received.body_bytes_max() as usize
);
const _: () = assert!(size_of::<ReceivedMark>() <= MARK_BYTES, "claimed for each that is read");

/// A replica has the log of the leader of a term in its memory, up to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedMark {
    /// The group.
    pub group: GroupId,
    /// Who has received.
    pub from: ReplicaId,
    /// The leader.
    pub to: ReplicaId,
    /// That leads in this term.
    pub term: Term,
    /// The last entry.
    pub index: RaftIndex,
}

/// At most [`RECEIVED_MAX`] marks as a frame.
pub fn encode_received(marks: &[ReceivedMark]) -> Result<Frame, WireError> {
    let count = marks.len();
    let too_many = WireError::Count { what: "marks", count, count_max: RECEIVED_MAX };
    let count = u32::try_from(count).map_err(|_| too_many)?;
    if marks.len() > RECEIVED_MAX {
        return Err(too_many);
    }
    let mut frame = FrameWriter::new(FrameKind::Received, HEAD_BYTES + marks.len() * MARK_BYTES);
    frame.put(&count.to_le_bytes());
    frame.put(&[0; 4]);
    for ReceivedMark { group, from, to, term, index } in marks {
        for number in [group.0, from.0, to.0, term.0, index.0] {
            frame.put(&number.to_le_bytes());
        }
    }
    Ok(frame.finish())
}

/// From the body of a [`FrameKind::Received`].
pub fn decode_received(body: &[u8]) -> Result<Vec<ReceivedMark>, WireError> {
    let mut reader = Reader::new(body);
    let count = reader.u32()? as usize;
    reader.reserved(4)?;
    reader.check_count("marks", count, RECEIVED_MAX, MARK_BYTES)?;
    let mut marks = Vec::with_capacity(count);
    for _ in 0..count {
        marks.push(ReceivedMark {
            group: GroupId(reader.u64()?),
            from: ReplicaId(reader.u64()?),
            to: ReplicaId(reader.u64()?),
            term: Term(reader.u64()?),
            index: RaftIndex(reader.u64()?),
        });
    }
    reader.finish()?;
    Ok(marks)
}
