//! What a message must look like before raft-rs sees it.
//!
//! Raft-rs trusts its peers: a message of term 0 is taken for a local one, an answer for an entry that was never sent
//! is counted as a copy of it, and a heartbeat with a commit beyond the log ends the process. The last is right when
//! the leader sends it (this replica lost durable entries and must not go on) and wrong when anybody else does. So
//! messages that no correct peer can send are refused here, and raft-rs's own checks stay as they are.
//!
//! Invariants: (I1) nothing that passes carries term 0, an entry that [`crate::entry`] cannot read or a
//! change of the members that no leader proposes; (I2) entries
//! that pass continue the log's offsets; (I3) a heartbeat of a plausible leader always passes, whatever its commit.

use chronik_engine::ids::{Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::LogPosition;
use raft::eraftpb::{EntryType, Message, MessageType};

use crate::entry::{EntryError, EntryMeta};
use crate::error::{SnapshotError, StepError};
use crate::group::RaftGroup;
use crate::membership::change_of;
use crate::snapshot::SnapshotParts;

/// A Raft term is Kafka's leader epoch, an `i32`. No correct cluster elects that often.
const TERM_MAX: u64 = i32::MAX as u64;
/// No log is that long; raft-rs may add to what is below without overflow.
const POSITION_MAX: u64 = u64::MAX / 4;

/// Refuses what no correct peer of `group` sends.
pub(crate) fn check(group: &RaftGroup, message: &Message) -> Result<(), StepError> {
    let from = ReplicaId(message.from);
    if message.to != group.replica().0 {
        return Err(StepError::WrongRecipient { to: ReplicaId(message.to) });
    }
    if from == ReplicaId::NONE || from == group.replica() {
        return Err(StepError::WrongSender { from });
    }
    check_ranges(message)?;
    match message.get_msg_type() {
        MessageType::MsgAppend => {
            check_leader(group, message)?;
            check_log_term(message)?;
            check_entries(group, message)
        }
        MessageType::MsgHeartbeat => {
            check_leader(group, message)?;
            check_heartbeat(group, message)
        }
        // A candidate may be in a newer configuration than ours; raft-rs judges it by its log.
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => Ok(()),
        MessageType::MsgAppendResponse => {
            check_member(group, from)?;
            check_append_response(group, message)
        }
        MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse => check_member(group, from),
        MessageType::MsgTimeoutNow => {
            // It may have left the group with the change that it hands over for.
            if group.leader() == Some(from) && Term(message.term) == group.term() {
                return Ok(());
            }
            Err(StepError::NotOurLeader { from })
        }
        MessageType::MsgSnapshot => {
            check_leader(group, message)?;
            check_snapshot(group, message).map_err(|source| StepError::Snapshot { source })
        }
        // A forwarded proposal would take offsets that its sender made up; the others are local or not used.
        message_type => Err(StepError::UnexpectedType { message_type }),
    }
}

/// Keeps numbers away from where raft-rs would overflow, and term 0 away from what it means to raft-rs.
fn check_ranges(message: &Message) -> Result<(), StepError> {
    if message.term == 0 || message.term > TERM_MAX {
        return Err(StepError::AbsurdTerm { term: message.term });
    }
    let positions = [message.index, message.commit, message.reject_hint];
    for position in positions {
        if position > POSITION_MAX {
            return Err(StepError::AbsurdPosition { position });
        }
    }
    let message_type = message.get_msg_type();
    let is_snapshot = message_type == MessageType::MsgSnapshot;
    let has_snapshot = !message.get_snapshot().is_empty();
    let has_entries = !message.get_entries().is_empty();
    let wants_snapshot = message.request_snapshot != 0;
    if wants_snapshot || has_snapshot != is_snapshot || (has_entries && is_snapshot) {
        return Err(StepError::UnexpectedPart { message_type });
    }
    Ok(())
}

fn check_member(group: &RaftGroup, from: ReplicaId) -> Result<(), StepError> {
    if group.has_member(from) { Ok(()) } else { Err(StepError::WrongSender { from }) }
}

/// A term has one leader, and it is not us.
fn check_leader(group: &RaftGroup, message: &Message) -> Result<(), StepError> {
    let from = ReplicaId(message.from);
    let term = Term(message.term);
    match group.leader() {
        Some(leader) if term == group.term() && leader != from => {
            Err(StepError::SecondLeader { from, leader, term })
        }
        _ => Ok(()),
    }
}

/// Who is no voter cannot lead, so its commit says nothing about our log. A voter's does: if it is beyond the log,
/// raft-rs ends the process, because durable entries are missing (I3).
fn check_heartbeat(group: &RaftGroup, message: &Message) -> Result<(), StepError> {
    let from = ReplicaId(message.from);
    let last = group.last_index();
    let commit = RaftIndex(message.commit);
    let counts = Term(message.term) >= group.term();
    if counts && commit > last && !group.is_voter(from) {
        return Err(StepError::ImplausibleCommit { from, commit, last });
    }
    // Who is no member here may have become one by entries that this replica does not have. Unanswered, it would wait
    // for ever with the entries that say so.
    Ok(())
}

/// A snapshot names its sender as a voter and its receiver as a member, contradicts nothing that is committed here, and
/// can be the beginning of a log. One that is behind the commit index passes: the leader waits for the answer.
fn check_snapshot(group: &RaftGroup, message: &Message) -> Result<(), SnapshotError> {
    let parts = SnapshotParts::from_raft(message.get_snapshot())?;
    let LogPosition { index, term } = parts.position;
    let in_range = index.0 <= POSITION_MAX && term.0 > 0 && term.0 <= message.term;
    if !in_range {
        let (index, term, sent_in) = (index.0, term.0, message.term);
        return Err(SnapshotError::Position { index, term, sent_in });
    }
    parts.check()?;
    let (from, replica) = (ReplicaId(message.from), group.replica());
    if !parts.members.votes(from) {
        return Err(SnapshotError::NotAVoter { replica: from });
    }
    if !parts.members.contains(replica) {
        return Err(SnapshotError::NotAMember { replica });
    }
    if index > group.commit_index() {
        let (start, end) = (group.applied_end_offset(), parts.applied_end_offset);
        return if start <= end { Ok(()) } else { Err(SnapshotError::Offsets { start, end }) };
    }
    match group.term_at(index) {
        Some(expected) if expected != term => {
            Err(SnapshotError::Conflict { index, expected, found: term })
        }
        _ => Ok(()),
    }
}

/// An answer counts as a copy on the sender's disk, so it must be for an entry that exists. Who does not lead may have
/// forgotten what it sent before a restart, and does not count.
fn check_append_response(group: &RaftGroup, message: &Message) -> Result<(), StepError> {
    let index = RaftIndex(message.index);
    let last = group.last_index();
    if group.is_leader() && Term(message.term) == group.term() && index > last {
        return Err(StepError::IndexBeyondLog { from: ReplicaId(message.from), index, last });
    }
    Ok(())
}

/// Only what is before the log has term 0. Raft-rs says that term of any entry that it lacks, so it would take an
/// append after such an entry for one that continues the log: acknowledge it, or end the process.
fn check_log_term(message: &Message) -> Result<(), StepError> {
    let (index, term, up_to) = (message.index, message.log_term, message.term);
    let after = u64::from(index > 0);
    let up_to = if index > 0 { up_to } else { 0 };
    if (after..=up_to).contains(&term) {
        return Ok(());
    }
    Err(StepError::EntryTerm { index, term, after, up_to })
}

/// Entries are contiguous, their terms rise, their contexts can be read, and their offsets continue the log. The
/// sender may be new to us: the entry that adds it may be in this very message.
fn check_entries(group: &RaftGroup, message: &Message) -> Result<(), StepError> {
    let mut index = message.index;
    let mut term = message.log_term;
    let mut end_offset = group.end_offset_before(message);
    for entry in message.get_entries() {
        index += 1;
        if entry.index != index {
            return Err(StepError::EntryGap { expected: index, found: entry.index });
        }
        if entry.term < term || entry.term == 0 || entry.term > message.term {
            let (after, up_to) = (term, message.term);
            return Err(StepError::EntryTerm { index, term: entry.term, after, up_to });
        }
        term = entry.term;
        if entry.get_entry_type() == EntryType::EntryConfChangeV2 {
            change_of(&entry.data).map_err(|source| {
                let source = EntryError::Change { source };
                StepError::Entry { index: RaftIndex(index), source }
            })?;
        }
        // Where raft-rs will not take the entries, there is nothing to continue.
        let Some(expected) = end_offset else { continue };
        let meta = EntryMeta::of(entry, expected)
            .map_err(|source| StepError::Entry { index: RaftIndex(index), source })?;
        end_offset = Some(meta.end_offset());
    }
    Ok(())
}

impl RaftGroup {
    /// The offset where the entries of an append begin, if raft-rs would take them.
    fn end_offset_before(&self, message: &Message) -> Option<Offset> {
        let index = RaftIndex(message.index);
        let term = Term(message.log_term);
        if index < self.commit_index() || self.term_at(index) != Some(term) {
            return None;
        }
        self.end_offset_at(index)
    }
}
