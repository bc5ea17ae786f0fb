//! What a core says of itself for the metrics.
//!
//! - I1: a message costs an addition; whatever needs a look at every group is found out when it is asked for.

use std::collections::BTreeMap;

use chronik_engine::ids::{GroupId, RaftIndex};
use chronik_replication::{MessageType, PeerMessage, SnapshotEnds};

use super::{Ack, ProduceResult, ShardCore, Token};
use crate::catalog::PartitionTag;

/// The figures of a core at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Groups placed here.
    pub groups: u64,
    /// Partitions led from here.
    pub leaders: u64,
    /// Partitions led from here of which a voter is not in sync.
    pub under_replicated: u64,
    /// Partitions placed here that nobody leads, as far as this replica knows.
    pub offline: u64,
    /// Entries that the logs of all groups hold.
    pub log_entries: u64,
    /// The highest term of any group.
    pub term_max: u64,
    /// The highest commit index of any group.
    pub commit_index_max: u64,
    /// Elections that this shard's replicas have won since the start.
    pub elections_won: u64,
    /// Messages of other replicas that were refused.
    pub messages_refused: u64,
    /// What was sent to other replicas.
    pub sent: Sent,
    /// Times that the disk hung since the start.
    pub stalls: u64,
    /// Batches acknowledged since the start, as durable as was asked for.
    pub acks_durable: u64,
    /// Batches acknowledged since the start when they were in memory.
    pub acks_relaxed: u64,
}

/// Messages sent to other replicas since the start, of some kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Entries, or the commit index alone.
    pub appends: u64,
    /// Signs of a leader.
    pub heartbeats: u64,
    /// Asking for votes, or whether there would be some.
    pub vote_requests: u64,
}

/// The Raft snapshots of a group since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotFigures {
    /// Sent to other replicas.
    pub sent: u64,
    /// What became of those.
    pub ends: SnapshotEnds,
    /// Put in the place of this replica's log.
    pub installed: u64,
    /// That came and were not taken, or are to come again.
    pub dropped: u64,
    /// How long it took to make the last one, and to put the last one in the place of the state.
    pub created_ns: u64,
    pub applied_ns: u64,
    /// The bytes of the last one.
    pub size_bytes: u64,
    /// The entry that the last one stands for.
    pub last_index: RaftIndex,
}

/// What is counted as it happens.
#[derive(Debug, Default)]
pub(super) struct Counted {
    sent: Sent,
    /// Batches that were acknowledged.
    acks: u64,
    snapshots: BTreeMap<GroupId, SnapshotFigures>,
}

impl Counted {
    /// Counts messages that are about to leave.
    pub(super) fn messages(&mut self, messages: &[PeerMessage]) {
        for PeerMessage { group, message } in messages {
            match message.get_msg_type() {
                MessageType::MsgAppend => self.sent.appends += 1,
                MessageType::MsgHeartbeat => self.sent.heartbeats += 1,
                MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                    self.sent.vote_requests += 1;
                }
                MessageType::MsgSnapshot => {
                    let (snapshot, figures) = (message.get_snapshot(), self.snapshots_of(*group));
                    figures.sent += 1;
                    figures.size_bytes = snapshot.data.len() as u64;
                    figures.last_index = RaftIndex(snapshot.get_metadata().index);
                }
                _ => {}
            }
        }
    }

    /// Counts answers that are about to be given.
    pub(super) fn acks(&mut self, replies: &[(Token, ProduceResult)]) {
        let is_ack = |reply: &&(Token, ProduceResult)| matches!(reply.1, Ok(Ack::Appended(_)));
        self.acks += replies.iter().filter(is_ack).count() as u64;
    }

    /// A snapshot was made, in so much time.
    pub(super) fn created(&mut self, group: GroupId, ns: u64) {
        self.snapshots_of(group).created_ns = ns;
    }

    /// A snapshot came, and is not taken.
    pub(super) fn dropped(&mut self, group: GroupId) {
        self.snapshots_of(group).dropped += 1;
    }

    /// A snapshot has taken the place of a log, in so much time.
    pub(super) fn installed(
        &mut self,
        group: GroupId,
        last_index: RaftIndex,
        size_bytes: usize,
        ns: u64,
    ) {
        let figures = self.snapshots_of(group);
        figures.installed += 1;
        figures.applied_ns = ns;
        figures.size_bytes = size_bytes as u64;
        figures.last_index = last_index;
    }

    pub(super) fn forget(&mut self, group: GroupId) {
        self.snapshots.remove(&group);
    }

    fn snapshots_of(&mut self, group: GroupId) -> &mut SnapshotFigures {
        self.snapshots.entry(group).or_default()
    }
}

impl ShardCore {
    /// The figures as of now. Looks at every group: for a scrape, not for a request.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            elections_won: self.shared.elections_won,
            messages_refused: self.shared.messages_refused,
            sent: self.shared.counted.sent,
            stalls: self.stall.count,
            acks_durable: self.shared.counted.acks.saturating_sub(self.shared.promises.acks),
            acks_relaxed: self.shared.promises.acks,
            ..Figures::default()
        };
        for group in self.groups.values().filter(|group| group.is_live()) {
            let raft = &group.raft;
            let is_partition = group.id != GroupId::META;
            let count = |is_so: bool| u64::from(is_partition && is_so);
            figures.groups += 1;
            figures.leaders += count(group.is_ready());
            figures.under_replicated += count(group.is_ready() && group.is_under_replicated());
            figures.offline += count(!group.is_settled());
            figures.log_entries += raft.last_index().0.saturating_sub(raft.log_start().index.0);
            figures.term_max = figures.term_max.max(raft.term().0);
            figures.commit_index_max = figures.commit_index_max.max(raft.commit_index().0);
        }
        figures
    }

    /// The groups that had snapshots since the start, with what they are groups of; nothing for the catalog.
    pub fn snapshot_figures(
        &self,
    ) -> impl Iterator<Item = (GroupId, Option<PartitionTag>, SnapshotFigures)> {
        self.shared.counted.snapshots.iter().map(|(id, figures)| {
            let raft = self.live(*id).map(|group| &group.raft);
            let ends = raft.map(|raft| raft.snapshot_ends()).unwrap_or_default();
            let tag = raft.and_then(|raft| PartitionTag::decode(&raft.meta().tag));
            (*id, tag, SnapshotFigures { ends, ..*figures })
        })
    }
}
