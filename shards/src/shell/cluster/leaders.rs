//! Who leads which partition, on whatever node: what clients are told in metadata.
//!
//! A replica knows the leader of its group. Of groups without a replica here the nodes tell each other: whoever is elected
//! says so to every node, and says it again to a node that comes back.
//!
//! - I1: what is told is a hint. A client that follows an old one is refused there and asks again.

use std::collections::BTreeMap;
use std::rc::Rc;

use chronik_engine::ids::{GroupId, NodeId, ShardId};
use chronik_replication::wire::{LeaderNotice, Seat};
use futures_util::future::join_all;

use super::{ClusterLinks, META_SHARD};
use crate::catalog::{CATALOG_PARTITIONS_MAX, Catalog, Partition, Topic};
use crate::shell::read::kafka_epoch;
use crate::shell::shard::Shard;

/// Who leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// Its node.
    pub node: NodeId,
    /// Kafka's leader epoch.
    pub epoch: i32,
}

/// The leaders of all partitions of these topics, as far as they are known. Cancel-safe.
pub async fn leaders_of(
    shard: &Rc<Shard>,
    topics: impl Iterator<Item = &Topic>,
) -> BTreeMap<GroupId, Leader> {
    let here = shard.node.config.node_id;
    let mut by_shard: BTreeMap<ShardId, Vec<Partition>> = BTreeMap::new();
    let mut elsewhere: Vec<GroupId> = Vec::new();
    for partition in topics.flat_map(|topic| &topic.partitions) {
        match partition.placement_on(here) {
            Some(placement) => by_shard.entry(placement.shard).or_default().push(partition.clone()),
            None => elsewhere.push(partition.group),
        }
    }
    let of_replicas = by_shard.into_iter().map(|(target, partitions)| {
        shard.on(target, move |there| {
            let found = there.leaders_here(&partitions);
            async move { found }
        })
    });
    let mut leaders: BTreeMap<GroupId, Leader> = BTreeMap::new();
    for (found, not_here) in join_all(of_replicas).await.into_iter().flatten() {
        leaders.extend(found);
        elsewhere.extend(not_here);
    }
    if !elsewhere.is_empty() {
        let told = shard.on(META_SHARD, move |there| {
            let found = there.leaders_told(&elsewhere);
            async move { found }
        });
        leaders.extend(told.await.unwrap_or_default());
    }
    leaders
}

/// Whether the nodes that can be heard from here are, with this one, a majority; read-only ones decide nothing and do not
/// count. Cancel-safe.
pub async fn hears_majority(shard: &Rc<Shard>) -> bool {
    let asked = shard.on(META_SHARD, |there| {
        let hears = there.hears_majority();
        async move { hears }
    });
    asked.await.unwrap_or(true)
}

impl Shard {
    fn hears_majority(&self) -> bool {
        let Some(links) = self.links() else { return true };
        let here = self.node.config.node_id;
        let catalog = self.catalog();
        let is_heard = |node: NodeId| node == here || links.is_up(node);
        let deciding = || catalog.brokers().filter(|broker| !broker.is_read_only);
        let heard = deciding().filter(|broker| is_heard(broker.node)).count();
        heard * 2 > deciding().count()
    }

    /// The leaders of partitions that have a replica on this shard; and which of them have none after all, because it
    /// was lost with an earlier disk.
    fn leaders_here(&self, partitions: &[Partition]) -> (Vec<(GroupId, Leader)>, Vec<GroupId>) {
        let groups = partitions.iter().map(|partition| partition.group);
        let not_here = |group: &GroupId| self.with_core(|core| core.replica(*group)).is_none();
        let not_here = groups.filter(not_here).collect();
        let leader = |partition: &Partition| {
            let view = self.with_core(|core| core.partition(partition.group))?;
            let replica = view.leader?;
            let place = partition.placement_of(replica)?;
            let is_here = place.node == self.node.config.node_id;
            // A leader that is not ready refuses whoever comes.
            let usable = if is_here { view.is_leader } else { true };
            let leader = Leader { node: place.node, epoch: kafka_epoch(view.leader_epoch) };
            usable.then_some((partition.group, leader))
        };
        (partitions.iter().filter_map(leader).collect(), not_here)
    }

    /// The leaders of partitions that have no replica on this node.
    fn leaders_told(&self, groups: &[GroupId]) -> Vec<(GroupId, Leader)> {
        let Some(links) = self.links() else { return Vec::new() };
        let told = links.leaders.borrow();
        let leader = |group: &GroupId| {
            let (term, node) = *told.get(group)?;
            links.is_up(node).then(|| (*group, Leader { node, epoch: kafka_epoch(term) }))
        };
        groups.iter().filter_map(leader).collect()
    }
}

impl ClusterLinks {
    /// Takes in what another node says about its leaderships.
    pub(super) fn note_leaders(&self, catalog: &Catalog, notices: Vec<LeaderNotice>) {
        let mut leaders = self.leaders.borrow_mut();
        for LeaderNotice { group, term, replica, node } in notices {
            if group == GroupId::META {
                self.note_meta_seat(replica, Seat { node, shard: META_SHARD });
                continue;
            }
            let is_newer = leaders.get(&group).is_none_or(|(known, _)| *known <= term);
            if is_newer {
                leaders.insert(group, (term, node));
            }
        }
        if leaders.len() > CATALOG_PARTITIONS_MAX {
            let named: std::collections::BTreeSet<GroupId> =
                catalog.topics().flat_map(|topic| &topic.partitions).map(|p| p.group).collect();
            leaders.retain(|group, _| named.contains(group));
        }
    }
}
