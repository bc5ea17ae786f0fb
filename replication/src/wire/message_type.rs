//! The types of Raft messages, as numbers.
//!
//! Invariants: (I1) types that raft-rs uses within a process are neither sent nor taken.

use ::raft::eraftpb::MessageType;

use super::WireError;

pub(super) fn type_to_u8(message_type: MessageType) -> Result<u8, WireError> {
    Ok(match message_type {
        MessageType::MsgPropose => 1,
        MessageType::MsgAppend => 2,
        MessageType::MsgAppendResponse => 3,
        MessageType::MsgRequestVote => 4,
        MessageType::MsgRequestVoteResponse => 5,
        MessageType::MsgSnapshot => 6,
        MessageType::MsgHeartbeat => 7,
        MessageType::MsgHeartbeatResponse => 8,
        MessageType::MsgTransferLeader => 9,
        MessageType::MsgTimeoutNow => 10,
        MessageType::MsgReadIndex => 11,
        MessageType::MsgReadIndexResp => 12,
        MessageType::MsgRequestPreVote => 13,
        MessageType::MsgRequestPreVoteResponse => 14,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => return Err(WireError::LocalMessage { message_type }),
    })
}

pub(super) fn type_from_u8(value: u8) -> Result<MessageType, WireError> {
    Ok(match value {
        1 => MessageType::MsgPropose,
        2 => MessageType::MsgAppend,
        3 => MessageType::MsgAppendResponse,
        4 => MessageType::MsgRequestVote,
        5 => MessageType::MsgRequestVoteResponse,
        6 => MessageType::MsgSnapshot,
        7 => MessageType::MsgHeartbeat,
        8 => MessageType::MsgHeartbeatResponse,
        9 => MessageType::MsgTransferLeader,
        10 => MessageType::MsgTimeoutNow,
        11 => MessageType::MsgReadIndex,
        12 => MessageType::MsgReadIndexResp,
        13 => MessageType::MsgRequestPreVote,
        14 => MessageType::MsgRequestPreVoteResponse,
        value => {
            return Err(WireError::Value { field: "type of a message", value: value.into() });
        }
    })
}
