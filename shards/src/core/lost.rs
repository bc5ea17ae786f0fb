//! Groups of two whose other replica went with its disk: the one that is left goes on alone until a new one has come.
//!
//! Two are a quorum of two only together. So whatever was committed is on the replica that is left, and nothing can have
//! been decided without it; but it cannot be elected, nor commit that another one takes the place of the lost one. The
//! catalog knows that the disk will never come back, so here its replica is answered for: votes are granted and entries
//! acknowledged in its name, as if its disk were a copy of the one that is left. With the joint change that brings in a
//! new replica the lost one is no member any more, and this ends.
//!
//! What the catalog wants meanwhile does not matter, what is in the log does: the lost replica and others may have committed
//! a change of members behind what this replica has applied, and gone on without it.
//!
//! - I1: a replica is answered for only while the catalog says that it went with its disk.
//! - I2: and only while one of Raft's configurations in force consists of it and this shard's replica: so nothing is decided
//!   without the latter, which has all that ever was.
//! - I3: and only if no change of members in this replica's log leads to a configuration that can decide without it. One
//!   exception: that a joint configuration is left for one without the lost replica, whose members answer for themselves.
//! - I4: it never counts as in sync: what a producer wants on two disks is refused while there is one.

use std::collections::{BTreeMap, BTreeSet};

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::{Members, Message, MessageType, PeerMessage};

use super::ShardCore;
use super::group::Group;

/// An answer may lead to another message to the same replica; whatever comes beyond this is sent again by Raft.
const ROUNDS_MAX: usize = 32;

impl ShardCore {
    /// Says of which groups of this shard other replicas went with their disks (I1), and which; returns those that go on
    /// alone from now on.
    pub fn set_lost(&mut self, lost: &BTreeMap<GroupId, BTreeSet<ReplicaId>>) -> Vec<GroupId> {
        let mut alone = Vec::new();
        if lost.is_empty() && self.lost_count == 0 {
            return alone;
        }
        self.lost_count = lost.len();
        for (id, group) in &mut self.groups {
            let now = lost.get(id).cloned().unwrap_or_default();
            if group.lost != now {
                group.lost = now;
                let mut lost = group.lost.iter();
                if lost.any(|lost| group.answers_for(*lost)) {
                    alone.push(*id);
                }
            }
        }
        alone
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
                    .is_some_and(|group| group.answers_for(ReplicaId(message.message.to)))
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
    /// Whether `to` is a lost replica in whose place this one answers.
    fn answers_for(&self, to: ReplicaId) -> bool {
        if !self.lost.contains(&to) || !self.is_live() {
            return false;
        }
        let (own, now) = (self.raft.replica(), self.raft.members());
        let is_pair = |voters: &[ReplicaId]| {
            voters.len() == 2 && voters.contains(&to) && voters.contains(&own)
        };
        let is_in_pair = is_pair(&now.voters) || is_pair(&now.voters_outgoing);
        is_in_pair && self.raft.members_to_come().is_some_and(|next| keep(own, to, &now, &next))
    }
}

/// Whether those members, which may be in force by now, keep what was decided within reach of `own` (I3).
fn keep(own: ReplicaId, lost: ReplicaId, now: &Members, to_come: &[Members]) -> bool {
    let is_needed_in = |voters: &[ReplicaId]| voters.len() <= 2 && voters.contains(&own);
    let needs_own =
        |members: &Members| is_needed_in(&members.voters) || is_needed_in(&members.voters_outgoing);
    let is_left =
        |next: &Members| now.is_joint() && next.voters == now.voters && !now.voters.contains(&lost);
    let (last, before) = match to_come {
        [] => return true,
        [before @ .., last] => (last, before),
    };
    before.iter().all(needs_own) && (needs_own(last) || (before.is_empty() && is_left(last)))
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

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u64 = 1;
    const LOST: u64 = 2;

    /// A configuration, and the one that it is left for, if it is.
    fn members(voters: &[u64], outgoing: &[u64]) -> Members {
        let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
        let (voters, voters_outgoing) = (ids(voters), ids(outgoing));
        Members { voters, voters_outgoing, ..Members::default() }
    }

    #[test]
    fn given_changes_in_the_log_when_they_may_be_in_force_then_none_may_decide_without_this_replica()
     {
        let is_kept = |now: &Members, to_come: &[Members]| {
            keep(ReplicaId(OWN), ReplicaId(LOST), now, to_come)
        };
        let pair = members(&[OWN, LOST], &[]);
        assert!(is_kept(&pair, &[]));
        let replaced = [members(&[OWN, 3], &[OWN, LOST]), members(&[OWN, 3], &[])];
        assert!(is_kept(&pair, &replaced));
        assert!(is_kept(&pair, &[members(&[OWN], &[])]));
        assert!(!is_kept(&pair, &[members(&[OWN, LOST, 3], &[])]), "the lost one and 3 may have");
        let away = [members(&[3, 4], &[OWN, LOST]), members(&[3, 4], &[])];
        assert!(is_kept(&pair, &away[..1]), "that is left with this replica only");
        assert!(!is_kept(&pair, &away));
        assert!(is_kept(&away[0], &away[1..]), "3 and 4 answer for themselves");
        let back = [away[1].clone(), members(&[3], &[])];
        assert!(!is_kept(&away[0], &back));
        let with_lost = members(&[LOST, 3, 4], &[OWN, LOST]);
        assert!(!is_kept(&with_lost, &[members(&[LOST, 3, 4], &[])]), "they do not");
    }
}
