//! Brings the members of the groups that this shard leads to what the catalog wants, a few groups at a time, and tells
//! the catalog when a partition is settled.
//!
//! What is done next is decided by [`crate::core::reconcile`], anew in each pass; here is only when to look, and at what.
//! The loop sleeps until a catalog is shown or a group is led from here, and looks every now and then while there is
//! something to do.
//!
//! - I1: at most [`GROUPS_MAX`] groups change their members at a time: each new replica may have to get all records.
//! - I2: a group that makes no progress gives its place to the next one, and gets another turn after all the others.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId};
use chronik_replication::ConfChangeType;
use futures_lite::future::or;

use super::META_SHARD;
use crate::catalog::{Catalog, CatalogCommand, Partition, TopicId};
use crate::core::reconcile::{FirstVoter, Reconciled, Wanted};
use crate::shell::shard::Shard;

/// Groups of a shard whose members change at a time.
const GROUPS_MAX: usize = 4;
/// Between two looks while there is something to do, and after a step was taken.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_AFTER_STEP: Duration = Duration::from_millis(25);
/// Looks without progress after which a group gives up its place: while its learners are heard, as one may be copying
/// records for long; and while they are not.
const IDLE_LOOKS_MAX: u32 = 300;
const IDLE_LOOKS_MAX_UNHEARD: u32 = 15;

/// A partition that is not settled, by its place in the catalog.
#[derive(Debug, Clone, Copy)]
struct Due {
    group: GroupId,
    topic: TopicId,
    number: usize,
}

/// A group whose members are being changed.
#[derive(Debug)]
struct Slot {
    due: Due,
    /// How far its learners were when they last moved, and how often it was looked at since.
    matched: u64,
    idle_looks: u32,
}

/// What is to be done on a shard.
#[derive(Debug, Default)]
struct Work {
    slots: Vec<Slot>,
    waiting: VecDeque<Due>,
}

/// What a look at a group came to.
enum Look {
    /// There is nothing to do for it here.
    Done,
    /// A step was taken.
    Step,
    /// It waits.
    Waits,
    /// It waits for too long.
    Stuck,
}

/// Runs on every shard of a cluster until it stops.
pub(in crate::shell) async fn reconcile_loop(shard: Rc<Shard>) {
    let mut work = Work::default();
    loop {
        shard.reconcile_due.notified().await;
        loop {
            if shard.stopping.get() {
                return;
            }
            shard.find_work(&mut work);
            let mut took_step = shard.look_at_slots(&mut work);
            let meta = shard.reconcile_meta();
            took_step |= matches!(&meta, Some(Reconciled::Proposed(_)));
            let is_meta_due = meta.is_some_and(|done| done != Reconciled::Settled);
            if work.slots.is_empty() && work.waiting.is_empty() && !is_meta_due {
                break;
            }
            let pause = if took_step { PAUSE_AFTER_STEP } else { PAUSE };
            or(chronik_ring::sleep(pause), shard.reconcile_due.notified()).await;
        }
    }
}

impl Shard {
    /// Looks for partitions that are led here and not settled; keeps the order of those that wait already.
    fn find_work(&self, work: &mut Work) {
        let catalog = self.catalog();
        let mut due: BTreeMap<GroupId, Due> = BTreeMap::new();
        self.with_core(|core| {
            for topic in catalog.topics() {
                for (number, partition) in topic.partitions.iter().enumerate() {
                    let group = partition.group;
                    let is_here = partition.placement_on(self.node.config.node_id);
                    if is_here.is_none_or(|placement| placement.shard != self.id) {
                        continue;
                    }
                    // Also one that has to apply what is before its term, first: nothing else would wake this loop then.
                    let is_led = core.leads(group);
                    let is_due = || {
                        !partition.is_settled()
                            || core.has_other_members(group, &Wanted::of(partition))
                    };
                    if is_led && is_due() {
                        due.insert(group, Due { group, topic: topic.id, number });
                    }
                }
            }
        });
        work.slots.retain(|slot| due.remove(&slot.due.group).is_some());
        work.waiting.retain(|waiting| due.remove(&waiting.group).is_some());
        work.waiting.extend(due.into_values());
    }

    /// Takes a step for each group that has its turn. True if one was taken.
    fn look_at_slots(self: &Rc<Self>, work: &mut Work) -> bool {
        let catalog = self.catalog();
        // Each of those that wait is asked at most once.
        for _ in 0..work.waiting.len() {
            if work.slots.len() >= GROUPS_MAX {
                break;
            }
            let Some(due) = work.waiting.pop_front() else { break };
            if self.awaits_lost_node(&catalog, due) {
                work.waiting.push_back(due);
            } else {
                work.slots.push(Slot { due, matched: 0, idle_looks: 0 });
            }
        }
        let mut took_step = false;
        let mut stuck = Vec::new();
        work.slots.retain_mut(|slot| match self.look_at(&catalog, slot) {
            Look::Done => false,
            Look::Step => {
                took_step = true;
                true
            }
            Look::Waits => true,
            Look::Stuck => {
                stuck.push(slot.due);
                false
            }
        });
        work.waiting.extend(stuck);
        took_step
    }

    fn look_at(self: &Rc<Self>, catalog: &Catalog, slot: &mut Slot) -> Look {
        let Some(partition) = partition_of(catalog, slot.due) else { return Look::Done };
        let Some(topic) = catalog.topic_by_id(slot.due.topic) else { return Look::Done };
        let (group, wanted) = (slot.due.group, Wanted::of(partition));
        match self.change_core(|core| core.reconcile(group, &wanted)) {
            Reconciled::NotLeader => Look::Done,
            Reconciled::Settled => {
                if partition.is_settled() {
                    return Look::Done;
                }
                self.settle(group, wanted.voters.into_iter().collect());
                Look::Waits
            }
            Reconciled::Proposed(changes) => {
                let node_of = |replica| Some(partition.placement_of(replica)?.node);
                let (topic, number) = (&topic.name, slot.due.number);
                tracing::info!("{topic}-{number}: {}", in_words(&changes, node_of));
                slot.idle_looks = 0;
                Look::Step
            }
            Reconciled::Waits { matched, heard } => {
                let has_moved = matched != slot.matched;
                slot.idle_looks = if has_moved { 0 } else { slot.idle_looks + 1 };
                slot.matched = matched;
                let looks_max = if heard > 0 { IDLE_LOOKS_MAX } else { IDLE_LOOKS_MAX_UNHEARD };
                if slot.idle_looks > looks_max { Look::Stuck } else { Look::Waits }
            }
        }
    }

    /// Whether a partition needs a new replica on a node that cannot be heard: it need not begin before.
    fn awaits_lost_node(&self, catalog: &Catalog, due: Due) -> bool {
        let (Some(partition), Some(links)) = (partition_of(catalog, due), self.links()) else {
            return false;
        };
        let own = self.node.config.node_id;
        let adding = partition.replicas.iter().filter(|p| partition.adding.contains(&p.replica));
        let mut nodes = adding.map(|placement| placement.node).peekable();
        let is_lost = nodes.peek().is_some() && nodes.all(|node| node != own && !links.is_up(node));
        is_lost && !self.lacks_reader(partition)
    }

    /// Whether a replica for readers is to begin, which nothing has to wait for.
    fn lacks_reader(&self, partition: &Partition) -> bool {
        let members = self.with_core(|core| core.members(partition.group));
        members.is_some_and(|(members, _)| {
            partition.readers.iter().any(|reader| !members.contains(reader.replica))
        })
    }

    /// Tells the catalog that a partition is settled, unless that is under way. Lost, it is told again by a later look.
    fn settle(self: &Rc<Self>, group: GroupId, replicas: Vec<ReplicaId>) {
        let Some(links) = self.links() else { return };
        if !links.settling.borrow_mut().insert(group) {
            return;
        }
        let command = CatalogCommand::ReplicasSettled { group, replicas };
        let submitted = self
            .on(META_SHARD, move |meta| async move { meta.submit_command(&command).await.is_ok() });
        let shard = Rc::clone(self);
        let told = async move {
            if !submitted.await.unwrap_or(false) {
                tracing::debug!("{group}: that it is settled could not be told yet");
            }
            if let Some(links) = shard.links() {
                links.settling.borrow_mut().remove(&group);
            }
        };
        chronik_ring::spawn(told).detach();
    }

    /// Takes a step for the catalog's own group; `None` where it is not led from here.
    fn reconcile_meta(self: &Rc<Self>) -> Option<Reconciled> {
        if self.id != META_SHARD {
            return None;
        }
        let (members, _) = self.with_core(|core| core.members(GroupId::META))?;
        let catalog = self.with_core(|core| core.catalog())?;
        let wanted = Wanted::of_meta(&catalog, &self.first_voters(), &members);
        let done = self.change_core(|core| core.reconcile(GroupId::META, &wanted));
        if let Reconciled::Proposed(changes) = &done {
            let of_replica =
                |replica: ReplicaId| catalog.brokers().find(|b| b.meta_replica == replica);
            let node_of = |replica| of_replica(replica).map(|broker| broker.node);
            tracing::info!("the catalog: {}", in_words(changes, node_of));
        }
        (done != Reconciled::NotLeader).then_some(done)
    }

    /// The replicas of the catalog that the cluster began with.
    pub(super) fn first_voters(&self) -> Vec<FirstVoter> {
        self.node.cluster.as_ref().map(super::ClusterPlace::first_voters).unwrap_or_default()
    }
}

/// What a change of members comes to, for the log.
fn in_words(
    changes: &[(ConfChangeType, ReplicaId)],
    node_of: impl Fn(ReplicaId) -> Option<NodeId>,
) -> String {
    let in_words = |(change, replica): &(ConfChangeType, ReplicaId)| {
        let what = match change {
            ConfChangeType::AddLearnerNode => "begins to copy it",
            ConfChangeType::AddNode => "votes",
            ConfChangeType::RemoveNode => "is no member any more",
        };
        match node_of(*replica) {
            Some(node) => format!("node {node} {what}"),
            // Its node was removed, or is on another disk by now.
            None => format!("replica {replica}, which has no place, {what}"),
        }
    };
    changes.iter().map(in_words).collect::<Vec<_>>().join(", ")
}

fn partition_of(catalog: &Catalog, due: Due) -> Option<&Partition> {
    let partition = catalog.topic_by_id(due.topic)?.partitions.get(due.number)?;
    (partition.group == due.group).then_some(partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_changes_of_members_when_logged_then_they_name_nodes() {
        let node_of = |replica: ReplicaId| (replica.0 < 10).then_some(NodeId(2));
        let changes = [
            (ConfChangeType::AddLearnerNode, ReplicaId(1)),
            (ConfChangeType::RemoveNode, ReplicaId(10)),
        ];
        assert_eq!(
            in_words(&changes, node_of),
            "node 2 begins to copy it, replica 10, which has no place, is no member any more"
        );
    }
}
