//! How a group that is led here gets from the members that it has to those that the catalog wants.
//!
//! What is done next is a function of what is wanted and of what is there, [`next_step`]. Nothing is remembered between
//! two steps, so one that was lost or refused is taken again, by whoever leads then, and a plan that has changed meanwhile
//! needs no care of its own.
//!
//! The way: whoever is missing becomes a learner; those that have caught up become voters in one joint change, together
//! with the removal of as many others as there are too many then; learners that nobody wants go last.
//!
//! - I1: a replica votes only once it has caught up; one that is to learn only never does.
//! - I2: a group has never fewer voters than it had or is to have; and not fewer than it had before all that are to vote do.
//! - I3: no change is proposed unless of each configuration that it leads through a majority is in reach and has caught up:
//!   it could not be left again.

use std::collections::BTreeSet;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, RaftIndex, ReplicaId};
use chronik_replication::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Members, PeerProgress};

use super::ShardCore;
use crate::catalog::{Broker, Catalog, Incarnation, Partition, Placement};

/// Voters of the catalog's group. More would make its commits slower and little safer.
pub const META_VOTERS_MAX: usize = 7;

/// The members that a group is to have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Who is to vote.
    pub voters: BTreeSet<ReplicaId>,
    /// Who is to get the log only.
    pub learners: BTreeSet<ReplicaId>,
}

/// A replica of the catalog that the cluster began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstVoter {
    /// Its node.
    pub node: NodeId,
    /// The disk that it is on.
    pub incarnation: Incarnation,
    /// Its Raft id.
    pub replica: ReplicaId,
}

impl Wanted {
    /// What a partition's group is to have.
    #[must_use]
    pub fn of(partition: &Partition) -> Wanted {
        let ids = |placements: &[Placement]| placements.iter().map(|one| one.replica).collect();
        Wanted { voters: ids(&partition.replicas), learners: ids(&partition.readers) }
    }

    /// What the catalog's own group is to have: a replica of every broker, and of the nodes that the cluster began with
    /// also those that have not registered yet. Some vote: those that do now first, none that is read-only, and none that is
    /// cordoned, so that a broker can go without taking a vote along.
    #[must_use]
    pub fn of_meta(catalog: &Catalog, first: &[FirstVoter], now: &Members) -> Wanted {
        let is_to_come = |one: &&FirstVoter| {
            catalog.broker(one.node).is_none()
                && !catalog.is_retired(one.incarnation)
                && now.contains(one.replica)
        };
        let mut voters: BTreeSet<ReplicaId> =
            first.iter().filter(is_to_come).map(|one| one.replica).collect();
        // Where all of them are cordoned, somebody has to vote.
        let has_open = catalog.open_brokers().next().is_some();
        let (learning, mut voting): (Vec<&Arc<Broker>>, Vec<&Arc<Broker>>) =
            (catalog.brokers()).partition(|b| b.is_read_only || (has_open && b.is_cordoned));
        voting.sort_by_key(|broker| !now.voters.contains(&broker.meta_replica));
        let places = META_VOTERS_MAX.saturating_sub(voters.len()).min(voting.len());
        let learning = learning.into_iter().chain(voting.split_off(places));
        let learners = learning.map(|broker| broker.meta_replica).collect();
        voters.extend(voting.into_iter().map(|broker| broker.meta_replica));
        Wanted { voters, learners }
    }

    fn contains(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.learners.contains(&replica)
    }

    fn are(&self, members: &Members) -> bool {
        let is = |wanted: &BTreeSet<ReplicaId>, found: &[ReplicaId]| {
            wanted.len() == found.len() && found.iter().all(|replica| wanted.contains(replica))
        };
        !members.is_joint()
            && is(&self.voters, &members.voters)
            && is(&self.learners, &members.learners)
    }
}

/// What is to be done next for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Its members are those that are wanted.
    Settled,
    /// Nothing, until something else has happened.
    Wait,
    /// Changes to propose together.
    Change(Vec<(ConfChangeType, ReplicaId)>),
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reconciled {
    /// The group is not led here.
    NotLeader,
    /// Its members are those that are wanted.
    Settled,
    /// It waits; so far its learners hold so many entries together, and so many of them were heard lately.
    Waits {
        /// Entries that learners are known to hold.
        matched: u64,
        /// Learners that were heard within an election timeout.
        heard: usize,
    },
    /// These changes were proposed.
    Proposed(Vec<(ConfChangeType, ReplicaId)>),
}

/// What brings the members closer to those that are wanted, as the leader `own` sees it.
#[must_use]
pub fn next_step(
    own: ReplicaId,
    wanted: &Wanted,
    members: &Members,
    progress: &[PeerProgress],
    commit: RaftIndex,
) -> Step {
    if wanted.are(members) {
        return Step::Settled;
    }
    // A joint configuration is left by itself. Where nobody is wanted, nothing can be right.
    if members.is_joint() || wanted.voters.is_empty() {
        return Step::Wait;
    }
    let all = wanted.voters.iter().chain(&wanted.learners);
    let missing: Vec<_> = all
        .filter(|replica| !members.contains(**replica))
        .map(|replica| (ConfChangeType::AddLearnerNode, *replica))
        .collect();
    if !missing.is_empty() {
        return Step::Change(missing);
    }
    let of = |replica: ReplicaId| progress.iter().find(|peer| peer.replica == replica);
    let is_heard = |replica| replica == own || of(replica).is_some_and(|peer| peer.recent_active);
    let has_caught_up = |replica| of(replica).is_some_and(|peer| peer.has_caught_up(commit));
    let can_decide = |voters: &[ReplicaId]| {
        let able = voters.iter().filter(|replica| **replica == own || has_caught_up(**replica));
        able.count() * 2 > voters.len()
    };
    let ready: Vec<ReplicaId> = members
        .learners
        .iter()
        .copied()
        .filter(|replica| wanted.voters.contains(replica) && has_caught_up(*replica))
        .collect();
    let (mut voters, mut surplus): (Vec<ReplicaId>, Vec<ReplicaId>) =
        members.voters.iter().partition(|replica| wanted.voters.contains(replica));
    // Who is gone goes first, and this replica last.
    surplus.sort_by_key(|replica| (*replica == own, is_heard(*replica)));
    let mut leaving = (members.voters.len() + ready.len()).saturating_sub(wanted.voters.len());
    if voters.len() + ready.len() < wanted.voters.len() {
        leaving = leaving.min(ready.len());
    }
    let stays = surplus.split_off(leaving.min(surplus.len()));
    voters.extend(stays.into_iter().chain(ready.iter().copied()));
    let changes_voters = !ready.is_empty() || !surplus.is_empty();
    if changes_voters && !(can_decide(&members.voters) && can_decide(&voters)) {
        return Step::Wait;
    }
    let strays = members.learners.iter().copied().filter(|replica| !wanted.contains(*replica));
    let goes = |replica: ReplicaId| match wanted.learners.contains(&replica) {
        true => (ConfChangeType::AddLearnerNode, replica),
        false => (ConfChangeType::RemoveNode, replica),
    };
    let adds = ready.iter().map(|replica| (ConfChangeType::AddNode, *replica));
    let changes: Vec<_> = adds.chain(surplus.into_iter().chain(strays).map(goes)).collect();
    if changes.is_empty() { Step::Wait } else { Step::Change(changes) }
}

impl ShardCore {
    /// Whether a group that is led here has other members than are wanted.
    #[must_use]
    pub fn has_other_members(&self, group: GroupId, wanted: &Wanted) -> bool {
        let led = self.live(group).filter(|group| group.raft.is_leader());
        led.is_some_and(|group| !wanted.are(&group.raft.members()))
    }

    /// Takes the next step of a group that is led here towards the members that are wanted.
    pub fn reconcile(&mut self, group: GroupId, wanted: &Wanted) -> Reconciled {
        let Some(found) = self.live(group).filter(|group| group.raft.is_leader()) else {
            return Reconciled::NotLeader;
        };
        let (is_ready, is_durable) = (found.is_ready(), found.raft.are_members_durable());
        let (members, progress) = (found.raft.members(), found.raft.progress());
        let (own, commit) = (found.raft.replica(), found.raft.commit_index());
        let learners = progress.iter().filter(|peer| members.learners.contains(&peer.replica));
        let waits = Reconciled::Waits {
            matched: learners.clone().map(|peer| peer.matched.0).sum(),
            heard: learners.filter(|peer| peer.recent_active).count(),
        };
        match next_step(own, wanted, &members, &progress, commit) {
            // What members there are it knows only once an entry of its own term is applied.
            _ if !is_ready => waits,
            // Who is none of them is deleted next.
            Step::Settled if is_durable => Reconciled::Settled,
            Step::Settled | Step::Wait => waits,
            Step::Change(changes) => match self.propose_members(group, &conf_change(&changes)) {
                Ok(()) => Reconciled::Proposed(changes),
                Err(error) => {
                    tracing::debug!("{group}: its members change later: {error}");
                    waits
                }
            },
        }
    }
}

fn conf_change(changes: &[(ConfChangeType, ReplicaId)]) -> ConfChangeV2 {
    let single = |(kind, replica): &(ConfChangeType, ReplicaId)| {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(*kind);
        single.node_id = replica.0;
        single
    };
    let mut change = ConfChangeV2::default();
    change.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
    change
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogCommand;
    use crate::catalog::samples::{broker, catalog_of};
    use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
    use chronik_replication::{LAG_ENTRIES_MAX, ReplicationState};

    const COMMIT: RaftIndex = RaftIndex(1_000);

    fn ids(ids: &[u64]) -> Vec<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn wanted(voters: &[u64], learners: &[u64]) -> Wanted {
        let set = |list| ids(list).into_iter().collect();
        Wanted { voters: set(voters), learners: set(learners) }
    }

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        Members { voters: ids(voters), learners: ids(learners), ..Members::default() }
    }

    fn peer(replica: u64, matched: u64) -> PeerProgress {
        PeerProgress {
            replica: ReplicaId(replica),
            matched: RaftIndex(matched),
            next: RaftIndex(matched + 1),
            state: ReplicationState::Replicate,
            recent_active: matched > 0,
        }
    }

    /// The next step of replica 1, which leads; of the peers it is known how far they are, 0 for those that are gone.
    fn step(wanted: &Wanted, members: &Members, peers: &[(u64, u64)]) -> Step {
        let progress: Vec<_> = peers.iter().map(|(id, matched)| peer(*id, *matched)).collect();
        next_step(ReplicaId(1), wanted, members, &progress, COMMIT)
    }

    fn change(changes: &[(ConfChangeType, u64)]) -> Step {
        Step::Change(changes.iter().map(|(kind, id)| (*kind, ReplicaId(*id))).collect())
    }

    #[test]
    fn given_a_replica_to_be_replaced_when_looked_at_then_the_new_one_learns_and_then_takes_its_place()
     {
        let want = wanted(&[1, 2, 9], &[]);
        let peers = |of_9| [(2, 1_000), (3, 0), (9, of_9)];
        let at = |members, of_9| step(&want, &members, &peers(of_9));
        assert_eq!(at(members(&[1, 2, 3], &[]), 0), change(&[(AddLearnerNode, 9)]));
        let near = COMMIT.0 - LAG_ENTRIES_MAX;
        assert_eq!(at(members(&[1, 2, 3], &[9]), near - 1), Step::Wait, "I1");
        let swap = change(&[(AddNode, 9), (RemoveNode, 3)]);
        assert_eq!(at(members(&[1, 2, 3], &[9]), near), swap);
        assert_eq!(at(members(&[1, 2, 9], &[]), 1_000), Step::Settled);
        let now = members(&[1, 2, 3], &[9]);
        let snapshot = PeerProgress { state: ReplicationState::Snapshot, ..peer(9, 1_000) };
        let progress = [peer(2, 1_000), snapshot];
        assert_eq!(next_step(ReplicaId(1), &want, &now, &progress, COMMIT), Step::Wait);
    }

    #[test]
    fn given_all_replicas_elsewhere_when_some_have_caught_up_then_as_many_go_as_come_and_the_leader_last()
     {
        let want = wanted(&[7, 8, 9], &[]);
        let now = members(&[1, 2, 3], &[7, 8, 9]);
        let some = step(&want, &now, &[(2, 1_000), (3, 0), (7, 1_000), (8, 10), (9, 999)]);
        assert_eq!(some, change(&[(AddNode, 7), (AddNode, 9), (RemoveNode, 3), (RemoveNode, 2)]));
        let now = members(&[1, 7, 9], &[8]);
        let last = step(&want, &now, &[(7, 1_000), (8, 1_000), (9, 1_000)]);
        assert_eq!(last, change(&[(AddNode, 8), (RemoveNode, 1)]));
        let one = step(&wanted(&[9], &[]), &members(&[1], &[9]), &[(9, 1_000)]);
        assert_eq!(one, change(&[(AddNode, 9), (RemoveNode, 1)]));
    }

    #[test]
    fn given_more_or_fewer_replicas_wanted_when_looked_at_then_they_come_or_go_alone() {
        let more = step(&wanted(&[1, 2, 3], &[]), &members(&[1, 2], &[3]), &[(2, 1_000), (3, 990)]);
        assert_eq!(more, change(&[(AddNode, 3)]));
        let fewer = wanted(&[1, 2], &[]);
        let now = members(&[1, 2, 3], &[]);
        assert_eq!(step(&fewer, &now, &[(2, 1_000), (3, 1_000)]), change(&[(RemoveNode, 3)]));
        assert_eq!(step(&fewer, &now, &[(2, 0), (3, 1_000)]), Step::Wait, "I3");
        assert_eq!(step(&fewer, &now, &[(2, 500), (3, 1_000)]), Step::Wait, "I3");
        let not_yet = step(
            &wanted(&[1, 9], &[]),
            &members(&[1, 2, 3], &[9]),
            &[(2, 1_000), (3, 1_000), (9, 5)],
        );
        assert_eq!(not_yet, Step::Wait, "I2");
        let stray = step(&fewer, &members(&[1, 2], &[5]), &[(2, 1_000), (5, 0)]);
        assert_eq!(stray, change(&[(RemoveNode, 5)]));
    }

    #[test]
    fn given_a_change_under_way_or_nobody_wanted_when_looked_at_then_nothing_is_proposed() {
        let want = wanted(&[1, 2], &[]);
        let joint = Members { voters_outgoing: ids(&[1, 3]), ..members(&[1, 2], &[]) };
        assert_eq!(step(&want, &joint, &[(2, 1_000), (3, 1_000)]), Step::Wait);
        assert_eq!(step(&Wanted::default(), &members(&[1], &[]), &[]), Step::Wait);
    }

    #[test]
    fn given_a_voter_that_is_to_learn_only_when_looked_at_then_it_stays_a_member() {
        let want = wanted(&[1], &[2, 4]);
        let now = members(&[1, 2], &[4]);
        assert_eq!(step(&want, &now, &[(2, 1_000), (4, 5)]), change(&[(AddLearnerNode, 2)]));
        assert_eq!(step(&want, &members(&[1], &[2, 4]), &[]), Step::Settled);
    }

    #[test]
    fn given_brokers_when_one_is_cordoned_then_it_gets_the_catalog_without_a_vote() {
        let mut catalog = catalog_of((1..=2).map(|node| broker(node, node.into())));
        let now = members(&[1, 2], &[]);
        assert_eq!(Wanted::of_meta(&catalog, &[], &now), wanted(&[1, 2], &[]));
        catalog.apply(&CatalogCommand::CordonBroker { node: NodeId(2), is_cordoned: true });
        let want = Wanted::of_meta(&catalog, &[], &now);
        assert_eq!(want, wanted(&[1], &[2]));
        // Who leads and is to go without a vote takes it from itself.
        let own_last = next_step(ReplicaId(2), &want, &now, &[peer(1, 1_000)], COMMIT);
        assert_eq!(own_last, change(&[(AddLearnerNode, 2)]));
        assert_eq!(step(&want, &members(&[1], &[2]), &[(2, 1_000)]), Step::Settled);
    }

    #[test]
    fn given_read_only_nodes_when_members_are_wanted_then_they_learn_and_never_vote() {
        let read_only = Broker { is_read_only: true, ..broker(3, 3) };
        let all = (1..=2).map(|node| broker(node, node.into())).chain([read_only]);
        let mut catalog = catalog_of(all);
        let now = members(&[1, 2], &[]);
        assert_eq!(Wanted::of_meta(&catalog, &[], &now), wanted(&[1, 2], &[3]));
        // Nor if it were one by mistake, or nobody else is open.
        let by_mistake = members(&[1, 2, 3], &[]);
        assert_eq!(Wanted::of_meta(&catalog, &[], &by_mistake), wanted(&[1, 2], &[3]));
        catalog.apply(&CatalogCommand::CordonBroker { node: NodeId(2), is_cordoned: true });
        assert_eq!(Wanted::of_meta(&catalog, &[], &now), wanted(&[1], &[2, 3]));
        let want = wanted(&[1, 2], &[9]);
        let begun = step(&want, &members(&[1, 2], &[]), &[(2, 1_000)]);
        assert_eq!(begun, change(&[(AddLearnerNode, 9)]));
        let peers = [(2, 1_000), (9, 1_000)];
        assert_eq!(step(&want, &members(&[1, 2], &[9]), &peers), Step::Settled);
        let away = step(&wanted(&[1, 2], &[]), &members(&[1, 2], &[9]), &peers);
        assert_eq!(away, change(&[(RemoveNode, 9)]));
        // Beside it replicas come and go as ever.
        let want = wanted(&[1, 2, 4], &[9]);
        let peers = [(2, 1_000), (3, 1_000), (4, 1_000), (9, 0)];
        let swap = step(&want, &members(&[1, 2, 3], &[4, 9]), &peers);
        assert_eq!(swap, change(&[(AddNode, 4), (RemoveNode, 3)]));
    }

    #[test]
    fn given_any_members_when_steps_are_taken_then_they_come_to_what_is_wanted() {
        // Every set of voters out of four replicas, to every other, with everybody in reach.
        for from in 1_u64..16 {
            for to in 1_u64..16 {
                let of = |bits: u64| (1..=4).filter(|id| bits >> (id - 1) & 1 == 1).collect();
                let (voters, target): (Vec<u64>, Vec<u64>) = (of(from), of(to));
                check_way(members(&voters, &[]), &wanted(&target, &[]));
            }
        }
    }

    fn check_way(mut now: Members, want: &Wanted) {
        for _ in 0..4 {
            let leader = now.voters[0];
            let peers: Vec<_> = (1..=4).map(|id| peer(id, 1_000)).collect();
            let fewest = now.voters.len().min(want.voters.len());
            match next_step(leader, want, &now, &peers, COMMIT) {
                Step::Settled => return,
                Step::Wait => panic!("{now:?} waits on the way to {want:?}"),
                Step::Change(changes) => changes.into_iter().for_each(|(kind, replica)| {
                    now.voters.retain(|voter| *voter != replica);
                    now.learners.retain(|learner| *learner != replica);
                    match kind {
                        AddNode => now.voters.push(replica),
                        AddLearnerNode => now.learners.push(replica),
                        RemoveNode => {}
                    }
                }),
            }
            assert!(now.voters.len() >= fewest, "I2: {now:?} on the way to {want:?}");
        }
        panic!("{now:?} does not come to {want:?}");
    }
}
