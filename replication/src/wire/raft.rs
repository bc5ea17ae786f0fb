//! Raft messages of many groups in one frame.
//!
//! ```text
//! body     count u32 | reserved u32 = 0 | count × message
//! message  type u8 | flags u8 | context_bytes u8 | reserved u8 = 0 | entries u32 | group u64 | to u64 | from u64
//!          | term u64 | log_term u64 | index u64 | commit u64 | commit_term u64 | reject_hint u64
//!          | request_snapshot u64 | priority i64 | context | snapshot, if flagged | entries × entry
//! flags    1 reject | 2 has a snapshot
//! snapshot index u64 | term u64 | data_bytes u32 | voters u16 | learners u16 | outgoing u16 | learners_next u16
//!          | auto_leave u8 | reserved [3] = 0 | ids u64 of each list in turn | data
//! entry    term u64 | data_bytes u32 | type u8 | context_bytes u8 | reserved u16 = 0 | context | data
//! ```
//!
//! The entries of an append follow its index one by one, so theirs are not said. Those of other types stand in no log
//! and have index 0. What raft-rs calls deprecated is not carried: the old priority (the new one is always set with
//! it) and `sync_log`.
//!
//! What a message means is judged by [`crate::gate`]; here it is bytes with bounds. What fields of heartbeats say that raft-rs
//! leaves empty stands in `freshness`.
//!
//! Invariants:
//! (I1) a large payload is shared with the frame; what is small is copied, message by message, or an entry of 100 bytes
//!      would keep a frame of megabytes alive as long as it stays in a log's memory.
//! (I2) room for messages and entries is made by counts that the bytes left can hold.

use ::raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use bytes::{BufMut, Bytes, BytesMut};
use chronik_engine::ids::GroupId;
use chronik_engine::limits::ENTRY_BYTES_MAX;
use protobuf::{RepeatedField, SingularPtrField};

use super::WireError;
use super::frame::{Frame, FrameKind, FrameWriter, is_shared};
use super::message_type::{type_from_u8, type_to_u8};
use super::reader::Reader;
use crate::ready::PeerMessage;

/// The most messages in one frame.
pub const RAFT_MESSAGES_MAX: usize = 1 << 14;
/// The most entries in one frame, over all its messages.
pub const RAFT_ENTRIES_MAX: usize = 1 << 17;

/// The largest context of a message or an entry: theirs have 24 bytes, raft-rs's own have 16.
const CONTEXT_BYTES_MAX: usize = 64;
/// The largest data of one snapshot message.
const SNAPSHOT_BYTES_MAX: usize = ENTRY_BYTES_MAX;
/// The most replicas in one list of a configuration.
const REPLICAS_MAX: usize = 256;

const BODY_HEAD_BYTES: usize = 8;
const MESSAGE_HEAD_BYTES: usize = 96;
const SNAPSHOT_HEAD_BYTES: usize = 32;
const ENTRY_HEAD_BYTES: usize = 16;
const ID_BYTES: usize = 8;

const FLAG_REJECT: u8 = 1;
const FLAG_SNAPSHOT: u8 = 2;

const _: () = assert!(8 + 11 * 8 == MESSAGE_HEAD_BYTES);
const _: () = assert!(8 + 8 + 4 + 4 * 2 + 1 + 3 == SNAPSHOT_HEAD_BYTES);
const _: () = assert!(8 + 4 + 1 + 1 + 2 == ENTRY_HEAD_BYTES);
const _: () = assert!(CONTEXT_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(REPLICAS_MAX <= u16::MAX as usize);
const _: () = assert!(ENTRY_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(size_of::<PeerMessage>() <= 4 * MESSAGE_HEAD_BYTES, "claimed for each");
const _: () = assert!(size_of::<Entry>() <= 8 * ENTRY_HEAD_BYTES, "claimed for each");

/// How many bytes of a frame's body the message takes.
#[must_use]
pub fn raft_message_bytes(message: &PeerMessage) -> usize {
    let message = &message.message;
    let mut bytes = MESSAGE_HEAD_BYTES + message.context.len();
    if let Some(snapshot) = message.snapshot.as_ref() {
        let ids: usize = id_lists(snapshot.get_metadata().get_conf_state())
            .iter()
            .map(|list| list.len() * ID_BYTES)
            .sum();
        bytes += SNAPSHOT_HEAD_BYTES + ids + snapshot.data.len();
    }
    for entry in message.get_entries() {
        bytes += ENTRY_HEAD_BYTES + entry.context.len() + entry.data.len();
    }
    bytes
}

/// How many of the first messages fit into one frame with a body of at most `body_bytes_max`. At least one, if there
/// is one: a message that fits into no frame is refused by [`encode_raft`].
#[must_use]
pub fn raft_messages_that_fit(messages: &[PeerMessage], body_bytes_max: u32) -> usize {
    let bytes_max = body_bytes_max.min(FrameKind::Raft.body_bytes_max()) as usize;
    let mut bytes = BODY_HEAD_BYTES;
    let mut entries = 0;
    let fits = |message: &&PeerMessage| {
        bytes += raft_message_bytes(message);
        entries += message.message.entries.len();
        bytes <= bytes_max && entries <= RAFT_ENTRIES_MAX
    };
    let count = messages.iter().take(RAFT_MESSAGES_MAX).take_while(fits).count();
    count.max(1).min(messages.len())
}

/// The messages as one frame. Refused if there are too many for one ([`raft_messages_that_fit`] tells), or if one is
/// of a kind or size that no peer takes.
pub fn encode_raft(messages: &[PeerMessage]) -> Result<Frame, WireError> {
    let count = count_u32("messages", messages.len(), RAFT_MESSAGES_MAX)?;
    let entries = messages.iter().map(|message| message.message.entries.len()).sum();
    count_u32("entries", entries, RAFT_ENTRIES_MAX)?;
    let bytes = BODY_HEAD_BYTES + messages.iter().map(raft_message_bytes).sum::<usize>();
    let bytes_max = FrameKind::Raft.body_bytes_max() as usize;
    if bytes > bytes_max {
        return Err(WireError::BodyTooLarge { bytes, bytes_max });
    }
    let shared: usize = messages.iter().map(shared_bytes).sum();
    let mut frame = FrameWriter::new(FrameKind::Raft, bytes - shared);
    frame.put(&count.to_le_bytes());
    frame.put(&[0; 4]);
    for message in messages {
        put_message(&mut frame, message)?;
    }
    Ok(frame.finish())
}

/// From the body of a [`FrameKind::Raft`]. Large payloads share its bytes (I1).
pub fn decode_raft(body: &Bytes) -> Result<Vec<PeerMessage>, WireError> {
    let mut reader = Reader::new(body);
    let count = reader.u32()? as usize;
    reader.reserved(4)?;
    reader.check_count("messages", count, RAFT_MESSAGES_MAX, MESSAGE_HEAD_BYTES)?;
    let mut messages = Vec::with_capacity(count);
    let mut entries_max = RAFT_ENTRIES_MAX;
    for _ in 0..count {
        let message = read_message(&mut reader, body, entries_max)?;
        entries_max -= message.message.entries.len();
        messages.push(message);
    }
    reader.finish()?;
    Ok(messages)
}

fn put_message(frame: &mut FrameWriter, message: &PeerMessage) -> Result<(), WireError> {
    let PeerMessage { group, message } = message;
    let entries = count_u32("entries", message.entries.len(), RAFT_ENTRIES_MAX)?;
    let reject = if message.reject { FLAG_REJECT } else { 0 };
    let snapshot = if message.snapshot.is_some() { FLAG_SNAPSHOT } else { 0 };
    let context_bytes = context_bytes(&message.context)?;
    frame.put(&[type_to_u8(message.get_msg_type())?, reject | snapshot, context_bytes, 0]);
    frame.put(&entries.to_le_bytes());
    let numbers = [
        group.0,
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.request_snapshot,
    ];
    for number in numbers {
        frame.put(&number.to_le_bytes());
    }
    frame.put(&message.priority.to_le_bytes());
    frame.put(&message.context);
    if let Some(snapshot) = message.snapshot.as_ref() {
        put_snapshot(frame, snapshot)?;
    }
    let mut places = EntryPlaces::of(message);
    for entry in message.get_entries() {
        let expected = places.next()?;
        if entry.index != expected {
            return Err(WireError::EntryIndex { expected, found: entry.index });
        }
        put_entry(frame, entry)?;
    }
    Ok(())
}

fn read_message(
    reader: &mut Reader<'_>,
    body: &Bytes,
    entries_max: usize,
) -> Result<PeerMessage, WireError> {
    let msg_type = type_from_u8(reader.u8()?)?;
    let flags = reader.u8()?;
    if flags & !(FLAG_REJECT | FLAG_SNAPSHOT) != 0 {
        return Err(WireError::Reserved);
    }
    let context_bytes = usize::from(reader.u8()?);
    reader.reserved(1)?;
    let entries = reader.u32()? as usize;
    let group = GroupId(reader.u64()?);
    let mut message = Message {
        msg_type,
        reject: flags & FLAG_REJECT != 0,
        to: reader.u64()?,
        from: reader.u64()?,
        term: reader.u64()?,
        log_term: reader.u64()?,
        index: reader.u64()?,
        commit: reader.u64()?,
        commit_term: reader.u64()?,
        reject_hint: reader.u64()?,
        request_snapshot: reader.u64()?,
        priority: reader.i64()?,
        ..Message::default()
    };
    message.context = Bytes::copy_from_slice(read_context(reader, context_bytes)?);
    if flags & FLAG_SNAPSHOT != 0 {
        message.snapshot = SingularPtrField::some(read_snapshot(reader, body)?);
    }
    reader.check_count("entries", entries, entries_max, ENTRY_HEAD_BYTES)?;
    message.entries = read_entries(reader, body, entries, EntryPlaces::of(&message))?;
    Ok(PeerMessage { group, message })
}

fn put_snapshot(frame: &mut FrameWriter, snapshot: &Snapshot) -> Result<(), WireError> {
    let metadata = snapshot.get_metadata();
    let state = metadata.get_conf_state();
    let lists = id_lists(state);
    let data_bytes = count_u32("bytes of a snapshot", snapshot.data.len(), SNAPSHOT_BYTES_MAX)?;
    frame.put(&metadata.index.to_le_bytes());
    frame.put(&metadata.term.to_le_bytes());
    frame.put(&data_bytes.to_le_bytes());
    for list in lists {
        let count = count_u32("replicas", list.len(), REPLICAS_MAX)?;
        let [low, high, ..] = count.to_le_bytes();
        frame.put(&[low, high]);
    }
    frame.put(&[u8::from(state.auto_leave), 0, 0, 0]);
    for id in lists.into_iter().flatten() {
        frame.put(&id.to_le_bytes());
    }
    frame.put_bytes(&snapshot.data);
    Ok(())
}

fn read_snapshot(reader: &mut Reader<'_>, body: &Bytes) -> Result<Snapshot, WireError> {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = reader.u64()?;
    metadata.term = reader.u64()?;
    let data_bytes = reader.u32()? as usize;
    let [voters, learners, voters_outgoing, learners_next] =
        [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    let auto_leave = match reader.u8()? {
        0 => false,
        1 => true,
        value => return Err(WireError::Value { field: "auto_leave", value: value.into() }),
    };
    reader.reserved(3)?;
    metadata.conf_state = SingularPtrField::some(ConfState {
        voters: read_ids(reader, voters)?,
        learners: read_ids(reader, learners)?,
        voters_outgoing: read_ids(reader, voters_outgoing)?,
        learners_next: read_ids(reader, learners_next)?,
        auto_leave,
        ..ConfState::default()
    });
    reader.check_count("bytes of a snapshot", data_bytes, SNAPSHOT_BYTES_MAX, 1)?;
    let data = reader.take(data_bytes)?;
    snapshot.data =
        if is_shared(data.len()) { body.slice_ref(data) } else { Bytes::copy_from_slice(data) };
    Ok(snapshot)
}

fn read_ids(reader: &mut Reader<'_>, count: u16) -> Result<Vec<u64>, WireError> {
    let count = usize::from(count);
    reader.check_count("replicas", count, REPLICAS_MAX, ID_BYTES)?;
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        ids.push(reader.u64()?);
    }
    Ok(ids)
}

/// The lists of a configuration, in the order in which they are sent.
fn id_lists(state: &ConfState) -> [&[u64]; 4] {
    [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next]
}

fn put_entry(frame: &mut FrameWriter, entry: &Entry) -> Result<(), WireError> {
    let data_bytes = count_u32("bytes of an entry", entry.data.len(), ENTRY_BYTES_MAX)?;
    let entry_type: u8 = match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    };
    frame.put(&entry.term.to_le_bytes());
    frame.put(&data_bytes.to_le_bytes());
    frame.put(&[entry_type, context_bytes(&entry.context)?, 0, 0]);
    frame.put(&entry.context);
    frame.put_bytes(&entry.data);
    Ok(())
}

/// An entry as it lies in the body.
struct EntryBytes<'a> {
    term: u64,
    entry_type: EntryType,
    context: &'a [u8],
    data: &'a [u8],
}

impl<'a> EntryBytes<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<EntryBytes<'a>, WireError> {
        let term = reader.u64()?;
        let data_bytes = reader.u32()? as usize;
        let entry_type = match reader.u8()? {
            0 => EntryType::EntryNormal,
            1 => EntryType::EntryConfChange,
            2 => EntryType::EntryConfChangeV2,
            value => return Err(WireError::Value { field: "entry type", value: value.into() }),
        };
        let context_bytes = usize::from(reader.u8()?);
        reader.reserved(2)?;
        let context = read_context(reader, context_bytes)?;
        reader.check_count("bytes of an entry", data_bytes, ENTRY_BYTES_MAX, 1)?;
        let data = reader.take(data_bytes)?;
        Ok(EntryBytes { term, entry_type, context, data })
    }

    fn copied_bytes(&self) -> usize {
        self.context.len() + if is_shared(self.data.len()) { 0 } else { self.data.len() }
    }
}

fn read_entries(
    reader: &mut Reader<'_>,
    body: &Bytes,
    count: usize,
    mut places: EntryPlaces,
) -> Result<RepeatedField<Entry>, WireError> {
    // Two passes, so that what is copied is one allocation for the whole message.
    let mut ahead = reader.clone();
    let mut copied_bytes = 0;
    for _ in 0..count {
        copied_bytes += EntryBytes::read(&mut ahead)?.copied_bytes();
    }
    let mut copies = BytesMut::with_capacity(copied_bytes);
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let EntryBytes { term, entry_type, context, data } = EntryBytes::read(reader)?;
        let shared = is_shared(data.len());
        entries.push(Entry {
            entry_type,
            term,
            index: places.next()?,
            data: if shared { body.slice_ref(data) } else { copy(&mut copies, data) },
            context: copy(&mut copies, context),
            ..Entry::default()
        });
    }
    Ok(RepeatedField::from_vec(entries))
}

/// A copy within a buffer that many copies share.
fn copy(copies: &mut BytesMut, bytes: &[u8]) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    copies.put_slice(bytes);
    copies.split().freeze()
}

/// The indexes that the entries of a message have.
struct EntryPlaces {
    last: u64,
    step: u64,
}

impl EntryPlaces {
    fn of(message: &Message) -> EntryPlaces {
        if message.get_msg_type() == MessageType::MsgAppend {
            EntryPlaces { last: message.index, step: 1 }
        } else {
            EntryPlaces { last: 0, step: 0 }
        }
    }

    fn next(&mut self) -> Result<u64, WireError> {
        let beyond = WireError::Value { field: "index with entries after it", value: self.last };
        self.last = self.last.checked_add(self.step).ok_or(beyond)?;
        Ok(self.last)
    }
}

/// How many bytes of a message are not copied into a frame.
fn shared_bytes(message: &PeerMessage) -> usize {
    let message = &message.message;
    let snapshot = message.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len());
    let payloads = message.get_entries().iter().map(|entry| entry.data.len());
    payloads.chain([snapshot]).filter(|bytes| is_shared(*bytes)).sum()
}

fn read_context<'a>(reader: &mut Reader<'a>, bytes: usize) -> Result<&'a [u8], WireError> {
    reader.check_count("bytes of context", bytes, CONTEXT_BYTES_MAX, 1)?;
    reader.take(bytes)
}

fn context_bytes(context: &Bytes) -> Result<u8, WireError> {
    let (count, count_max) = (context.len(), CONTEXT_BYTES_MAX);
    match u8::try_from(count) {
        Ok(bytes) if count <= count_max => Ok(bytes),
        _ => Err(WireError::Count { what: "bytes of context", count, count_max }),
    }
}

fn count_u32(what: &'static str, count: usize, count_max: usize) -> Result<u32, WireError> {
    match u32::try_from(count) {
        Ok(number) if count <= count_max => Ok(number),
        _ => Err(WireError::Count { what, count, count_max }),
    }
}
