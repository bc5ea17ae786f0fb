//! Groups of two whose other replica went with its disk: the one that is left goes on alone until a new one has come.
//!
//! Two are a quorum of two only together. So whatever was committed is on the replica that is left, and nothing can have
//! been decided without it; but it cannot be elected, nor commit that another one takes the place of the lost one. The
//! catalog knows that the disk will never come back, so here its replica is answered for: votes are granted and entries
//! acknowledged in its name, as if its disk were a copy of the one that is left. With the joint change that brings in the
//! new replica the lost one is no member any more, and this ends.
//!
//! - I1: a replica is answered for only while the catalog says that it is lost, that the group was settled with just it and
//!   this shard's replica, and that nothing but its replacement has been asked for since.
//! - I2: and only while Raft's configurations that name it consist of it and this shard's replica.
//! - I3: it never counts as in sync: what a producer wants on two disks is refused while there is one.

use std::collections::BTreeMap;

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::{Message, MessageType, PeerMessage};

use super::ShardCore;
use super::group::Group;

/// An answer may lead to another message to the same replica; whatever comes beyond this is sent again by Raft.
const ROUNDS_MAX: usize = 32;

impl ShardCore {
    /// Says which groups of this shard have lost their only other replica (I1), and with which id.
    pub fn set_lost(&mut self, lost: &BTreeMap<GroupId, ReplicaId>) {
        if lost.is_empty() && self.lost_count == 0 {
            return;
        }
        self.lost_count = lost.len();
        for (id, group) in &mut self.groups {
            let now = lost.get(id).copied();
            if now.is_some() && group.lost != now {
                tracing::warn!("{id}: its other replica is lost, this one goes on alone");
            }
            group.lost = now;
        }
    }

    /// Takes out messages to lost replicas, and lets the groups have their answers.
    pub(super) fn answer_for_lost(&mut self) {
        if self.lost_count == 0 {
            return;
        }
        for _ in 0..ROUNDS_MAX {
            let groups = &self.groups;
            let is_for_lost = |message: &mut PeerMessage| {
                groups
                    .get(&message.group)
                    .is_some_and(|group| group.answers_for(message.message.to))
            };
            let asked: Vec<PeerMessage> =
                self.shared.effects.messages.extract_if(.., is_for_lost).collect();
            if asked.is_empty() {
                return;
            }
            let answers = asked.into_iter().filter_map(|PeerMessage { group, message }| {
                answer_to(&message).map(|message| PeerMessage { group, message })
            });
            let answers: Vec<PeerMessage> = answers.collect();
            self.step(answers);
        }
    }
}

impl Group {
    /// Whether `to` is a lost replica in whose place this one answers (I2).
    fn answers_for(&self, to: u64) -> bool {
        let Some(lost) = self.lost.filter(|lost| lost.0 == to && self.is_live()) else {
            return false;
        };
        let members = self.raft.members();
        let own = self.raft.replica();
        let is_pair = |voters: &[ReplicaId]| {
            !voters.contains(&lost) || (voters.len() == 2 && voters.contains(&own))
        };
        members.votes(lost) && is_pair(&members.voters) && is_pair(&members.voters_outgoing)
    }
}

/// What a replica says that has the same log as the one that asks.
fn answer_to(asked: &Message) -> Option<Message> {
    let kind = match asked.get_msg_type() {
        MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
        MessageType::MsgAppend => MessageType::MsgAppendResponse,
        MessageType::MsgHeartbeat => MessageType::MsgHeartbeatResponse,
        _ => return None,
    };
    let mut answer =
        Message { from: asked.to, to: asked.from, term: asked.term, ..Message::default() };
    answer.set_msg_type(kind);
    if kind == MessageType::MsgAppendResponse {
        let count = u64::try_from(asked.entries.len()).unwrap_or(u64::MAX);
        answer.index = asked.index.saturating_add(count);
        answer.commit = asked.commit.min(answer.index);
    }
    if kind == MessageType::MsgHeartbeatResponse {
        answer.context = asked.context.clone();
        answer.commit = asked.commit;
    }
    Some(answer)
}
