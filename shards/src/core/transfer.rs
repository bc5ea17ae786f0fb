//! Leadership that goes to a replica which is named: because it is the preferred one, or because a node is drained.
//!
//! - I1: only a voter that is heard and nearly has the whole log is handed a group: no proposal is taken until it has
//!   taken over, so this must take milliseconds, not the time that a replica needs to catch up.

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::{PeerProgress, ReplicationState};

use super::group::Group;
use super::{ShardCore, Shared, live_mut};

/// Why a group is not handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, bincode::Encode, bincode::Decode)]
pub enum TransferRefused {
    /// The group is not led here.
    #[error("the partition is led by another node")]
    NotLeader,
    /// Its members are changing just now.
    #[error("the partition's replicas are changing")]
    MembersChanging,
    /// The replica is none, or has no vote yet.
    #[error("the replica does not vote yet")]
    NotAVoter,
    /// The replica is not heard, or is behind (I1).
    #[error("the replica is not in sync")]
    NotInSync,
}

impl ShardCore {
    /// Hands a group that is led here to another replica. Whether that takes over in time is seen by who leads then.
    ///
    /// # Errors
    /// Why it is not even tried.
    pub fn transfer(&mut self, group: GroupId, to: ReplicaId) -> Result<(), TransferRefused> {
        let found = live_mut(&mut self.groups, group);
        let target = found.ok_or(TransferRefused::NotLeader)?;
        target.check_heir(to)?;
        target.hand_over_to(to, &mut self.shared);
        Ok(())
    }

    /// Whether this shard's replica leads a group. One that was elected just now takes no command yet.
    #[must_use]
    pub fn leads(&self, group: GroupId) -> bool {
        self.live(group).is_some_and(|group| group.raft.is_leader())
    }

    /// The replicas that a group which is led here could be handed to, the furthest first; none if it is not led here.
    #[must_use]
    pub fn heirs(&self, group: GroupId) -> Vec<ReplicaId> {
        let Some(group) = self.live(group) else { return Vec::new() };
        let mut peers = group.raft.progress();
        peers.sort_by_key(|peer| std::cmp::Reverse((peer.matched, peer.replica)));
        let replicas = peers.into_iter().map(|peer| peer.replica);
        replicas.filter(|replica| group.check_heir(*replica).is_ok()).collect()
    }
}

impl Group {
    /// Hands the group to the other voter in reach that holds most of it; says whether there is one.
    pub(super) fn hand_over(&mut self, shared: &mut Shared) -> bool {
        let Some(heir) = self.furthest_heir() else { return false };
        self.hand_over_to(heir, shared);
        true
    }

    pub(super) fn hand_over_to(&mut self, heir: ReplicaId, shared: &mut Shared) {
        self.raft.transfer_leadership(heir);
        self.pump(shared);
    }

    /// Which of the other voters in reach holds most of what is led here.
    pub(super) fn furthest_heir(&self) -> Option<ReplicaId> {
        // One whose link was lost is probed, and has no use for it.
        let furthest = |peer: &PeerProgress| {
            let holds = peer.matched.max(self.received.of(peer.replica));
            (peer.state == ReplicationState::Replicate, holds)
        };
        self.voters_in_reach().max_by_key(furthest).map(|heir| heir.replica)
    }

    /// The other voters that are heard, by their ids; nobody where this replica does not lead.
    pub(super) fn voters_in_reach(&self) -> impl Iterator<Item = PeerProgress> {
        let voters = &self.raft.meta().voters;
        let peers = self.raft.progress().into_iter();
        peers.filter(|peer| peer.recent_active && voters.contains(&peer.replica))
    }

    fn check_heir(&self, to: ReplicaId) -> Result<(), TransferRefused> {
        if !self.is_ready() {
            return Err(TransferRefused::NotLeader);
        }
        let members = self.raft.members();
        if members.is_joint() {
            return Err(TransferRefused::MembersChanging);
        }
        if !members.votes(to) {
            return Err(TransferRefused::NotAVoter);
        }
        let commit = self.raft.commit_index();
        let is_near = |peer: &PeerProgress| peer.replica == to && peer.has_caught_up(commit);
        let is_in_sync = self.raft.progress().iter().any(is_near);
        is_in_sync.then_some(()).ok_or(TransferRefused::NotInSync)
    }
}
