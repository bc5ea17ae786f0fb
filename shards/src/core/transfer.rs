//! Leadership that goes to a replica which is named: because it is the preferred one, or because a node is drained.
//!
//! - I1: only a voter that is heard and nearly has the whole log is handed a group: no proposal is taken until it has
//!   taken over, so this must take milliseconds, not the time that a replica needs to catch up.

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::PeerProgress;

use super::ShardCore;
use super::group::Group;

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
        let found = self.groups.get_mut(&group).filter(|group| group.is_live());
        let target = found.ok_or(TransferRefused::NotLeader)?;
        target.check_heir(to)?;
        target.raft.transfer_leadership(to);
        target.pump(&mut self.shared);
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
