//! Leaderships go back to where they belong: to each partition's preferred replica, and away from a node that is drained.
//!
//! After a node was away all its partitions are led by others, and stay so. Each shard looks every now and then at what
//! it leads, soon after a node came back, and all the time while its own node is cordoned.
//!
//! - I1: a group is handed only to a replica that has nearly all of its log, on a node that can be heard.
//! - I2: at most [`AT_A_TIME`] groups of a shard are on their way, so that clients ask anew for a few partitions at a time.
//! - I3: a cordoned node leads by preference nothing: the first replica on another node counts as the preferred one.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId};

use super::META_SHARD;
use super::transfer::Transfer;
use crate::catalog::{Catalog, Partition, Placement};
use crate::shell::shard::{Shard, random_seed};

/// Between two looks at which nodes are up.
const TICK: Duration = Duration::from_millis(500);
const TICKS_PER_SECOND: u64 = 2;
/// A node that came back gets what it should lead after this: its replicas catch up first.
const RETURN_TICKS: u64 = 10 * TICKS_PER_SECOND;

/// Groups of a shard that are handed over at a time (I2), and how long they may take.
const AT_A_TIME: usize = 32;
const HANDOVER_POLL: Duration = Duration::from_millis(20);
const HANDOVER_POLLS_MAX: u32 = 100;

/// When it is time to look, in ticks.
#[derive(Debug)]
struct Schedule {
    interval: u64,
    /// Nodes look at different moments: each adds so much.
    jitter: u64,
    now: u64,
    next: u64,
    up: BTreeSet<NodeId>,
}

impl Schedule {
    fn new(interval_seconds: u64, seed: u64) -> Schedule {
        let interval = interval_seconds.saturating_mul(TICKS_PER_SECOND).max(1);
        let jitter = seed % (interval / 10 + 1);
        let first = interval.min(RETURN_TICKS).saturating_add(jitter.min(RETURN_TICKS / 2));
        Schedule { interval, jitter, now: 0, next: first, up: BTreeSet::new() }
    }

    /// One tick has passed, with these nodes up. Whether it is time to look.
    fn is_due(&mut self, up: BTreeSet<NodeId>) -> bool {
        self.now = self.now.saturating_add(1);
        let has_returned = up.iter().any(|node| !self.up.contains(node));
        self.up = up;
        if has_returned {
            let soon = self.interval.min(RETURN_TICKS) + self.jitter.min(RETURN_TICKS / 2);
            self.next = self.next.min(self.now.saturating_add(soon));
        }
        let is_due = self.now >= self.next;
        if is_due {
            self.next = self.now.saturating_add(self.interval).saturating_add(self.jitter);
        }
        is_due
    }
}

/// Who is to lead a partition that `own` leads, if it is another. `fit` are the replicas that it could be handed to.
fn heir(
    partition: &Partition,
    own: ReplicaId,
    fit: &[ReplicaId],
    is_open: impl Fn(NodeId) -> bool,
) -> Option<ReplicaId> {
    let mut open = partition.replicas.iter().filter(|placement| is_open(placement.node));
    let preferred = open.clone().next()?;
    if preferred.replica == own || fit.contains(&preferred.replica) {
        return (preferred.replica != own).then_some(preferred.replica);
    }
    // Where the preferred one cannot lead, anybody may; but not a node that is to lead nothing.
    let may_stay = open.clone().any(|placement| placement.replica == own);
    let next = open.find(|placement| fit.contains(&placement.replica));
    next.filter(|_| !may_stay).map(|placement: &Placement| placement.replica)
}

fn is_open(catalog: &Catalog, node: NodeId) -> bool {
    catalog.broker(node).is_some_and(|broker| !broker.is_cordoned)
}

/// Looks after what this shard leads, until it stops.
pub(in crate::shell) async fn balance_loop(shard: Rc<Shard>) {
    if shard.links().is_none() {
        return;
    }
    let kafka = &shard.node.config.kafka;
    let is_on = kafka.auto_leader_rebalance_enable;
    let mut schedule = Schedule::new(kafka.leader_imbalance_check_interval_seconds, random_seed());
    loop {
        chronik_ring::sleep(TICK).await;
        if shard.stopping.get() {
            return;
        }
        let is_due = schedule.is_due(shard.nodes_up());
        let is_drained = !is_open(&shard.catalog(), shard.node.config.node_id);
        if (is_due && is_on) || is_drained {
            shard.balance().await;
        }
    }
}

impl Shard {
    /// The nodes that this shard can hear, itself included.
    #[must_use]
    pub fn nodes_up(&self) -> BTreeSet<NodeId> {
        let seats = self.links().map(|links| links.peers().up_seats()).unwrap_or_default();
        let here = self.node.config.node_id;
        seats.into_iter().map(|seat| seat.node).chain([here]).collect()
    }

    /// Hands over what others are to lead, a few groups at a time.
    async fn balance(self: &Rc<Self>) {
        let transfers = self.transfers_due();
        for some in transfers.chunks(AT_A_TIME) {
            if self.stopping.get() {
                return;
            }
            let begun = self.begin_transfers(some);
            let begun: Vec<GroupId> =
                begun.into_iter().filter(|(_, begun)| begun.is_ok()).map(|(g, _)| g).collect();
            tracing::debug!(shard = self.id.0, groups = begun.len(), "leaderships go to others");
            for _ in 0..HANDOVER_POLLS_MAX {
                let led: BTreeSet<GroupId> =
                    self.with_core(|core| core.led_groups().map(|(group, _, _)| group).collect());
                if begun.iter().all(|group| !led.contains(group)) {
                    break;
                }
                chronik_ring::sleep(HANDOVER_POLL).await;
            }
        }
    }

    /// What this shard leads and others are to lead.
    fn transfers_due(&self) -> Vec<Transfer> {
        let catalog = self.catalog();
        let led: BTreeMap<GroupId, ReplicaId> =
            self.with_core(|core| core.led_groups().map(|(g, _, replica)| (g, replica)).collect());
        let up = self.nodes_up();
        let mut due = Vec::new();
        for partition in catalog.topics().flat_map(|topic| &topic.partitions) {
            let Some(own) = led.get(&partition.group).copied() else { continue };
            let open = |node| is_open(&catalog, node);
            if partition.replicas.first().is_some_and(|p| p.replica == own && open(p.node)) {
                continue; // the most frequent case costs nothing more
            }
            let node_of = |replica| partition.placement_of(replica).map(|placement| placement.node);
            let mut fit = self.with_core(|core| core.heirs(partition.group));
            fit.retain(|replica| node_of(*replica).is_some_and(|node| up.contains(&node)));
            let to = heir(partition, own, &fit, open);
            due.extend(to.map(|to| Transfer { group: partition.group, to }));
        }
        if self.id == META_SHARD && led.contains_key(&GroupId::META) {
            due.extend(self.meta_transfer_due(&catalog));
        }
        due
    }

    /// The catalog is led by whoever leads it, but for a node that is drained.
    fn meta_transfer_due(&self, catalog: &Catalog) -> Option<Transfer> {
        if is_open(catalog, self.node.config.node_id) {
            return None;
        }
        let links = self.links()?;
        let heirs = self.with_core(|core| core.heirs(GroupId::META));
        let open = |replica: &ReplicaId| {
            let seat = links.seat_of(GroupId::META, *replica);
            seat.is_some_and(|seat| links.is_up(seat.node) && is_open(catalog, seat.node))
        };
        let to = heirs.into_iter().find(open)?;
        Some(Transfer { group: GroupId::META, to })
    }
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::ShardId;

    use super::*;

    fn nodes(ids: &[u32]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// A partition with replica 10 on node 1, 20 on node 2, and so on.
    fn partition(ids: &[u32]) -> Partition {
        let place = |id: &u32| Placement {
            node: NodeId(*id),
            shard: ShardId(0),
            replica: ReplicaId(u64::from(*id) * 10),
        };
        Partition::new(GroupId(1), ids.iter().map(place).collect())
    }

    fn heir_of(own: u64, fit: &[u64], cordoned: &[u32]) -> Option<u64> {
        let fit: Vec<ReplicaId> = fit.iter().copied().map(ReplicaId).collect();
        let is_open = |node: NodeId| !cordoned.contains(&node.0);
        heir(&partition(&[1, 2, 3]), ReplicaId(own), &fit, is_open).map(|replica| replica.0)
    }

    #[test]
    fn given_a_partition_when_its_preferred_replica_is_fit_then_it_gets_it_and_else_nobody_does() {
        assert_eq!(heir_of(20, &[10, 30], &[]), Some(10));
        assert_eq!(heir_of(20, &[30], &[]), None);
        assert_eq!(heir_of(10, &[20, 30], &[]), None);
    }

    #[test]
    fn given_a_cordoned_node_when_it_leads_then_it_hands_over_and_gets_nothing_back() {
        assert_eq!(heir_of(10, &[20, 30], &[1]), Some(20));
        assert_eq!(heir_of(10, &[30], &[1]), Some(30), "anybody is better than a drained node");
        assert_eq!(heir_of(10, &[], &[1]), None);
        assert_eq!(heir_of(20, &[10, 30], &[1]), None, "node 2 is the preferred one now");
        assert_eq!(heir_of(30, &[10, 20], &[1]), Some(20));
        assert_eq!(heir_of(10, &[20, 30], &[1, 2, 3]), None);
    }

    #[test]
    fn given_a_replica_that_goes_when_it_leads_then_it_hands_over_to_one_that_stays() {
        assert_eq!(heir_of(90, &[20, 30], &[]), Some(20), "the preferred one is not fit yet");
        assert_eq!(heir_of(90, &[10, 20], &[]), Some(10));
    }

    #[test]
    fn given_a_node_that_comes_back_when_ticks_pass_then_it_is_due_soon_and_then_at_the_interval() {
        let mut schedule = Schedule::new(300, 0);
        let mut due = Vec::new();
        for tick in 1..=1_300_u64 {
            let up = if (100..200).contains(&tick) { nodes(&[1, 2]) } else { nodes(&[1, 2, 3]) };
            if schedule.is_due(up) {
                due.push(tick);
            }
        }
        assert_eq!(due, [20, 220, 820]);
    }

    #[test]
    fn given_any_seed_when_ticks_pass_then_a_look_is_at_most_a_tenth_late() {
        for seed in [1, 7, u64::MAX] {
            let mut schedule = Schedule::new(100, seed);
            let ticks = (1..=1_000_u64).filter(|_| schedule.is_due(nodes(&[1]))).count();
            assert!((4..=6).contains(&ticks), "{ticks} looks with seed {seed}");
        }
    }
}
