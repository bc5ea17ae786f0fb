//! Groups that nobody else is a member of, or may be without this replica knowing.

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::Members;

use super::ShardCore;

impl ShardCore {
    /// Whether the replica here is the only member of its group, and no entry of its log makes others members of it. Then there
    /// are none: who came later came by an entry that this replica had on its disk before.
    #[must_use]
    pub fn is_sole_member(&self, group: GroupId) -> bool {
        let Some(group) = self.live(group) else { return false };
        let own = group.raft.replica();
        let to_come = group.raft.members_to_come();
        is_only(&group.raft.members(), own)
            && to_come.is_some_and(|to_come| to_come.iter().all(|members| is_only(members, own)))
    }

    /// The first of these groups that has others for members, of those that are here.
    #[must_use]
    pub fn first_shared(&self, groups: impl IntoIterator<Item = GroupId>) -> Option<GroupId> {
        let is_shared =
            |group: &GroupId| self.live(*group).is_some() && !self.is_sole_member(*group);
        groups.into_iter().find(is_shared)
    }
}

fn is_only(members: &Members, own: ReplicaId) -> bool {
    members.voters == [own] && members.learners.is_empty() && !members.is_joint()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_members_when_others_are_among_them_in_whatever_part_then_this_is_not_the_only_one() {
        let own = ReplicaId(1);
        let only = Members { voters: vec![own], ..Members::default() };
        assert!(is_only(&only, own));
        let other = vec![ReplicaId(2)];
        assert!(!is_only(&Members { voters: other.clone(), ..Members::default() }, own));
        assert!(!is_only(&Members { voters: vec![own, ReplicaId(2)], ..Members::default() }, own));
        assert!(!is_only(&Members { learners: other.clone(), ..only.clone() }, own));
        assert!(!is_only(&Members { voters_outgoing: other, ..only }, own));
    }
}
