//! Who leads which group: what a leader tells the seats that have no replica of it.
//!
//! ```text
//! count u32 | reserved u32 = 0 | count × (group u64 | term u64 | replica u64 | node u32 | reserved u32 = 0)
//! ```
//!
//! A notice is a hint: which of two is newer their terms tell, and whoever acts on one may find it outdated.

use chronik_engine::ids::{GroupId, NodeId, ReplicaId, Term};

use super::WireError;
use super::frame::{Frame, FrameKind, FrameWriter};
use super::reader::Reader;

/// The most notices in one frame.
pub const NOTICES_MAX: usize = 1 << 14;

const HEAD_BYTES: usize = 8;
const NOTICE_BYTES: usize = 32;

const _: () = assert!(8 + 8 + 8 + 4 + 4 == NOTICE_BYTES);
const _: () = assert!(
    HEAD_BYTES + NOTICES_MAX * NOTICE_BYTES <= FrameKind::Notices.body_bytes_max() as usize
);
const _: () = assert!(size_of::<LeaderNotice>() <= NOTICE_BYTES, "claimed for each that is read");

/// A group has a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderNotice {
    /// The group.
    pub group: GroupId,
    /// In this term.
    pub term: Term,
    /// This replica leads it.
    pub replica: ReplicaId,
    /// Which is on this node.
    pub node: NodeId,
}

/// At most [`NOTICES_MAX`] notices as a frame.
pub fn encode_notices(notices: &[LeaderNotice]) -> Result<Frame, WireError> {
    let count = notices.len();
    let too_many = WireError::Count { what: "notices", count, count_max: NOTICES_MAX };
    let count = u32::try_from(count).map_err(|_| too_many)?;
    if notices.len() > NOTICES_MAX {
        return Err(too_many);
    }
    let bytes = HEAD_BYTES + notices.len() * NOTICE_BYTES;
    let mut frame = FrameWriter::new(FrameKind::Notices, bytes);
    frame.put(&count.to_le_bytes());
    frame.put(&[0; 4]);
    for notice in notices {
        frame.put(&notice.group.0.to_le_bytes());
        frame.put(&notice.term.0.to_le_bytes());
        frame.put(&notice.replica.0.to_le_bytes());
        frame.put(&notice.node.0.to_le_bytes());
        frame.put(&[0; 4]);
    }
    Ok(frame.finish())
}

/// From the body of a [`FrameKind::Notices`].
pub fn decode_notices(body: &[u8]) -> Result<Vec<LeaderNotice>, WireError> {
    let mut reader = Reader::new(body);
    let count = reader.u32()? as usize;
    reader.reserved(4)?;
    reader.check_count("notices", count, NOTICES_MAX, NOTICE_BYTES)?;
    let mut notices = Vec::with_capacity(count);
    for _ in 0..count {
        let notice = LeaderNotice {
            group: GroupId(reader.u64()?),
            term: Term(reader.u64()?),
            replica: ReplicaId(reader.u64()?),
            node: NodeId(reader.u32()?),
        };
        reader.reserved(4)?;
        notices.push(notice);
    }
    reader.finish()?;
    Ok(notices)
}
