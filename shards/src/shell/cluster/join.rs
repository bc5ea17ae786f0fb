//! How a node that was not there when its cluster began gets a replica of the catalog, and how the leader takes it in.
//!
//! The node asks again and again; the leader looks each time what is to be done next: add the new replica as a learner,
//! and once it has caught up make it a voter, in one joint change with the removal of what the node had before. A node
//! whose disk was wiped is such a node: it has another replica id, so that a vote it forgot cannot be given twice.
//!
//! - I1: a replica id belongs to one disk. A node never makes a group anew that its catalog had placed on it before it
//!   joined: the replica in it has forgotten its votes and its log.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::framed;
use chronik_engine::ids::{GroupId, NodeId, RaftIndex, ReplicaId};
use chronik_replication::formation::Membership;
use chronik_replication::peers::Replier;
use chronik_replication::wire::{CallRefused, LeaderNotice, Seat};
use chronik_replication::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Members, PeerProgress};

use super::{ClusterLinks, META_SHARD};
use crate::catalog::Catalog;
use crate::shell::shard::Shard;

/// A call that asks for a replica of the catalog.
pub(super) const CALL_JOIN: u8 = 2;

const VERSION: u8 = 1;
const REQUEST_BYTES_MAX: usize = 64;

/// Beside the identity of a node that joined: the first group that its disk may have made.
const FIRST_NEW_GROUP_FILE: &str = "first-new-group";

/// Between two requests of a node that joins.
const JOIN_RETRY: Duration = Duration::from_millis(200);
/// For the answer to one.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Entries that a learner may lack when it becomes a voter.
const LAG_ENTRIES_MAX: u64 = 64;

/// What was noted in this file; if nothing was, `group` from now on.
fn note_once(path: &Path, group: GroupId) -> io::Result<GroupId> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let noted = text.trim().parse().map(GroupId);
            return noted.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a number"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{}", group.0)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(group)
}

/// What the leader does next for a node that joins.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// It votes already.
    Done,
    /// The learner has not caught up.
    Wait,
    /// Changes to propose together.
    Change(Vec<(ConfChangeType, ReplicaId)>),
}

impl Shard {
    /// Asks to be taken in until this node's replica of the catalog votes. To be run on the catalog's shard.
    pub(in crate::shell) async fn join_catalog(self: Rc<Self>) {
        let Some(place) = &self.node.cluster else { return };
        let Membership::Joins { replica } = place.formed.formed.own else { return };
        let Ok(body) = framed::encode(VERSION, replica) else { return };
        let body = Bytes::from(body);
        while !self.stopping.get() && !self.votes(replica) {
            let Some(links) = self.links() else { return };
            for seat in links.peers().up_seats().into_iter().filter(|s| s.shard == META_SHARD) {
                let asked = links.peers().call(seat, CALL_JOIN, body.clone(), JOIN_TIMEOUT);
                if let Err(error) = asked.await {
                    tracing::debug!("node {} does not take this node in: {error}", seat.node.0);
                }
            }
            chronik_ring::sleep(JOIN_RETRY).await;
        }
    }

    /// The first group that this node may make where its log has none (I1): all of them for a node that was there from
    /// the beginning; else those that came after the first catalog that this disk was shown, which is noted beside it.
    pub(in crate::shell) async fn first_new_group(&self, catalog: &Catalog) -> GroupId {
        let joined = self.node.cluster.as_ref().is_some_and(super::ClusterPlace::joined_later);
        let Some(links) = self.links().filter(|_| joined) else { return GroupId::META };
        if let Some(known) = links.first_new_group.get() {
            return *known;
        }
        let (path, next) =
            (self.node.config.data_dir.join(FIRST_NEW_GROUP_FILE), catalog.next_group());
        let noted = glommio::executor().spawn_blocking(move || note_once(&path, next));
        let first_new = match chronik_ring::guest(noted).await {
            Ok(first_new) => first_new,
            Err(error) => {
                tracing::error!(
                    "{FIRST_NEW_GROUP_FILE}: {error}; older partitions are not made here"
                );
                return next; // asked again with the next catalog
            }
        };
        *links.first_new_group.get_or_init(|| first_new)
    }

    /// Whether this node's replica of the catalog votes, if this is its shard and the node came later than its cluster.
    pub(in crate::shell) fn has_joined(&self) -> bool {
        let own = self.node.cluster.as_ref().map(|place| place.formed.formed.own);
        match own {
            Some(Membership::Joins { replica }) if self.id == META_SHARD => self.votes(replica),
            _ => true,
        }
    }

    fn votes(&self, replica: ReplicaId) -> bool {
        let members = self.with_core(|core| core.members(GroupId::META));
        members.is_some_and(|(members, _)| !members.is_joint() && members.votes(replica))
    }

    /// Does for a node that joins what is to be done next, if this node leads the catalog.
    pub(super) fn take_in(self: &Rc<Self>, from: Seat, body: &[u8], reply: Replier) {
        let Ok(replica) = framed::decode::<ReplicaId, REQUEST_BYTES_MAX>(VERSION, body) else {
            reply.refuse(CallRefused::Invalid { text: "not a request to join".to_owned() });
            return;
        };
        let (Some(links), Some((members, progress))) =
            (self.links(), self.with_core(|core| core.members(GroupId::META)))
        else {
            return; // dropped: refused
        };
        links.note_meta_seat(replica, from);
        if progress.is_empty() && !self.with_core(leads_meta) {
            reply.refuse(CallRefused::NotLeader { leader: None });
            return;
        }
        let last = self.with_core(|core| core.commit_index(GroupId::META)).unwrap_or_default();
        let old = links.meta_replicas_of(from.node, replica);
        match next_step(replica, &old, &members, &progress, last) {
            Step::Done | Step::Wait => {}
            Step::Change(changes) => {
                let change = conf_change(&changes);
                let proposed =
                    self.change_core(|core| core.propose_members(GroupId::META, &change));
                match proposed {
                    Ok(()) => tracing::info!("node {} joins: {changes:?}", from.node.0),
                    Err(error) => tracing::debug!("node {} joins later: {error}", from.node.0),
                }
            }
        }
        reply.answer(Bytes::new());
    }
}

fn leads_meta(core: &crate::core::ShardCore) -> bool {
    core.led_groups().any(|(group, _, _)| group == GroupId::META)
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

/// What brings `replica` closer to voting in the place of `old`, the replicas that its node had before.
fn next_step(
    replica: ReplicaId,
    old: &[ReplicaId],
    members: &Members,
    progress: &[PeerProgress],
    last: RaftIndex,
) -> Step {
    let gone = old.iter().filter(|old| members.contains(**old));
    let removals = gone.map(|old| (ConfChangeType::RemoveNode, *old));
    if members.is_joint() {
        return Step::Wait;
    }
    if members.voters.contains(&replica) {
        let removals: Vec<_> = removals.collect();
        return if removals.is_empty() { Step::Done } else { Step::Change(removals) };
    }
    if !members.learners.contains(&replica) {
        return Step::Change(vec![(ConfChangeType::AddLearnerNode, replica)]);
    }
    let matched = progress.iter().find(|peer| peer.replica == replica).map(|peer| peer.matched);
    if matched.is_some_and(|matched| matched.0 + LAG_ENTRIES_MAX >= last.0) {
        let add = (ConfChangeType::AddNode, replica);
        return Step::Change(removals.chain([add]).collect());
    }
    Step::Wait
}

impl ClusterLinks {
    pub(super) fn note_meta_seat(&self, replica: ReplicaId, seat: Seat) {
        let mut seats = self.meta_seats.borrow_mut();
        if seats.len() < crate::catalog::BROKERS_MAX || seats.contains_key(&replica) {
            seats.insert(replica, seat);
        }
    }

    /// The replicas of the catalog that a node had, but for this one.
    fn meta_replicas_of(&self, node: NodeId, but: ReplicaId) -> Vec<ReplicaId> {
        let seats = self.meta_seats.borrow();
        let of_node = seats.iter().filter(|(_, seat)| seat.node == node);
        of_node.map(|(replica, _)| *replica).filter(|replica| *replica != but).collect()
    }

    /// Tells a peer which replica of the catalog this node has: where that lives no catalog says.
    pub(super) fn introduce(&self, shard: &Shard, to: Seat) {
        if let Some(replica) = shard.with_core(|core| core.replica(GroupId::META)) {
            let node = shard.node.config.node_id;
            let notice =
                LeaderNotice { group: GroupId::META, term: Default::default(), replica, node };
            self.peers().notify(to, vec![notice]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronik_replication::ReplicationState;

    const NEW: ReplicaId = ReplicaId(9);
    const OLD: ReplicaId = ReplicaId(3);

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
        Members { voters: ids(voters), learners: ids(learners), ..Members::default() }
    }

    fn progress(matched: u64) -> [PeerProgress; 1] {
        [PeerProgress {
            replica: NEW,
            matched: RaftIndex(matched),
            next: RaftIndex(matched + 1),
            state: ReplicationState::Replicate,
            recent_active: true,
        }]
    }

    #[test]
    fn given_a_node_that_joins_when_looked_at_then_it_learns_first_and_votes_once_it_has_caught_up()
    {
        let step = |members: &Members, matched| {
            next_step(NEW, &[OLD], members, &progress(matched), RaftIndex(1000))
        };
        let learner = Step::Change(vec![(ConfChangeType::AddLearnerNode, NEW)]);
        assert_eq!(step(&members(&[1, 2, 3], &[]), 0), learner);
        assert_eq!(step(&members(&[1, 2, 3], &[9]), 900), Step::Wait);
        let swap =
            Step::Change(vec![(ConfChangeType::RemoveNode, OLD), (ConfChangeType::AddNode, NEW)]);
        assert_eq!(step(&members(&[1, 2, 3], &[9]), 940), swap);
        assert_eq!(step(&members(&[1, 2, 9], &[]), 1000), Step::Done);
        let removal = Step::Change(vec![(ConfChangeType::RemoveNode, OLD)]);
        assert_eq!(step(&members(&[1, 2, 3, 9], &[]), 1000), removal);
    }

    #[test]
    fn given_a_group_that_was_noted_when_asked_again_then_it_stays_whatever_the_catalog_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FIRST_NEW_GROUP_FILE);
        assert_eq!(note_once(&path, GroupId(7)).unwrap(), GroupId(7));
        assert_eq!(note_once(&path, GroupId(9)).unwrap(), GroupId(7));
        fs::write(&path, "seven").unwrap();
        assert_eq!(note_once(&path, GroupId(9)).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn given_a_joint_configuration_when_looked_at_then_nothing_is_proposed() {
        let joint = Members { voters_outgoing: vec![ReplicaId(1)], ..members(&[1, 2, 9], &[]) };
        assert_eq!(next_step(NEW, &[], &joint, &progress(1000), RaftIndex(1000)), Step::Wait);
    }
}
