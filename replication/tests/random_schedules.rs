//! Random interleavings of proposals, messages, writes and crashes. What must hold is checked by the support module
//! at each step; at the end all is healed, and everything acknowledged must be on every replica.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_replication::ConfChangeType;
use proptest::prelude::*;
use support::Cluster;

#[derive(Debug, Clone)]
enum Op {
    Tick {
        replica: usize,
        ticks: usize,
    },
    Campaign {
        replica: usize,
    },
    Propose {
        replica: usize,
        count: u32,
    },
    Drain {
        replica: usize,
    },
    Persist {
        replica: usize,
    },
    Apply {
        replica: usize,
        count: usize,
    },
    Settle {
        replica: usize,
    },
    Checkpoint {
        replica: usize,
    },
    Crash {
        replica: usize,
        records: usize,
    },
    Deliver {
        pick: usize,
    },
    DeliverMany {
        count: usize,
    },
    Duplicate {
        pick: usize,
    },
    Drop {
        pick: usize,
    },
    Cut {
        replica: usize,
    },
    Transfer {
        replica: usize,
        to: usize,
    },
    Compact {
        replica: usize,
    },
    /// As far as its own checkpoint allows: others may need a snapshot then.
    CompactAll {
        replica: usize,
    },
    BeginSnapshot {
        replica: usize,
    },
    SupplySnapshot {
        replica: usize,
    },
    /// The snapshot to `to` is said to be lost, which may be wrong.
    SnapshotLost {
        replica: usize,
        to: usize,
    },
    Change {
        replica: usize,
        change: Change,
    },
    ExpireLease {
        replica: usize,
    },
    /// A tick for everybody, and all arrives.
    Pass {
        ticks: usize,
    },
}

/// What becomes of each replica, and whether the joint configuration is left by itself.
#[derive(Debug, Clone)]
struct Change {
    changes: Vec<(usize, usize)>,
    is_explicit: bool,
}

fn op() -> impl Strategy<Value = Op> {
    let replica = 0_usize..16;
    let pick = 0_usize..1_000;
    prop_oneof![
        3 => (replica.clone(), 1_usize..40).prop_map(|(replica, ticks)| Op::Tick { replica, ticks }),
        2 => replica.clone().prop_map(|replica| Op::Campaign { replica }),
        6 => (replica.clone(), 1_u32..5).prop_map(|(replica, count)| Op::Propose { replica, count }),
        6 => replica.clone().prop_map(|replica| Op::Drain { replica }),
        6 => replica.clone().prop_map(|replica| Op::Persist { replica }),
        4 => (replica.clone(), 1_usize..4).prop_map(|(replica, count)| Op::Apply { replica, count }),
        4 => replica.clone().prop_map(|replica| Op::Settle { replica }),
        1 => replica.clone().prop_map(|replica| Op::Checkpoint { replica }),
        1 => (replica.clone(), 0_usize..5).prop_map(|(replica, records)| Op::Crash { replica, records }),
        10 => pick.clone().prop_map(|pick| Op::Deliver { pick }),
        4 => (1_usize..20).prop_map(|count| Op::DeliverMany { count }),
        2 => pick.clone().prop_map(|pick| Op::Duplicate { pick }),
        2 => pick.prop_map(|pick| Op::Drop { pick }),
        1 => replica.clone().prop_map(|replica| Op::Cut { replica }),
        1 => (replica.clone(), replica.clone()).prop_map(|(replica, to)| Op::Transfer { replica, to }),
        1 => replica.prop_map(|replica| Op::Compact { replica }),
    ]
}

/// As [`op`], with snapshots and changes of the members between.
fn op_of_a_moving_group() -> impl Strategy<Value = Op> {
    let replica = 0_usize..16;
    let changes = proptest::collection::vec((0_usize..3, 0_usize..16), 0..5);
    let change = (changes, proptest::bool::weighted(0.2))
        .prop_map(|(changes, is_explicit)| Change { changes, is_explicit });
    prop_oneof![
        30 => op(),
        2 => replica.clone().prop_map(|replica| Op::Checkpoint { replica }),
        3 => replica.clone().prop_map(|replica| Op::CompactAll { replica }),
        2 => replica.clone().prop_map(|replica| Op::BeginSnapshot { replica }),
        2 => replica.clone().prop_map(|replica| Op::SupplySnapshot { replica }),
        1 => (replica.clone(), replica.clone())
            .prop_map(|(replica, to)| Op::SnapshotLost { replica, to }),
        3 => (replica.clone(), change).prop_map(|(replica, change)| Op::Change { replica, change }),
        1 => replica.prop_map(|replica| Op::ExpireLease { replica }),
        2 => (1_usize..80).prop_map(|ticks| Op::Pass { ticks }),
    ]
}

fn run(cluster: &mut Cluster, op: Op) {
    let count = cluster.replicas.len();
    let id = |replica: usize| (replica % count + 1) as u64;
    let pick = |pick: usize, network: usize| pick.checked_rem(network);
    match op {
        Op::Tick { replica, ticks } => {
            if let Some(group) = &mut cluster.replica(id(replica)).group {
                (0..ticks).for_each(|_| {
                    group.tick();
                });
            }
        }
        Op::Campaign { replica } => {
            if let Some(group) = &mut cluster.replica(id(replica)).group {
                group.campaign();
            }
        }
        Op::Propose { replica, count } => {
            if cluster.replica(id(replica)).is_leader() {
                // Refused while leadership is handed over: then nothing must have happened.
                let end_offset = cluster.group(id(replica)).end_offset();
                if cluster.propose(id(replica), count).is_err() {
                    assert_eq!(cluster.group(id(replica)).end_offset(), end_offset);
                }
            }
        }
        Op::Drain { replica } => cluster.drain(id(replica)),
        Op::Persist { replica } => cluster.persist_one(id(replica)),
        Op::Apply { replica, count } => cluster.apply(id(replica), count),
        Op::Settle { replica } => cluster.settle(id(replica)),
        Op::Checkpoint { replica } => {
            // A snapshot that is durable is installed before anything is said of the state machine.
            cluster.drain(id(replica));
            cluster.replica(id(replica)).checkpoint();
        }
        Op::Crash { replica, records } => {
            let is_moving = cluster.configurations.len() > 1;
            let replica = cluster.replica(id(replica));
            match replica.group.is_some() {
                true if is_moving => replica.crash_between(records),
                true => replica.crash(records),
                false => {}
            }
            replica.start();
        }
        Op::Deliver { pick: at } => {
            if let Some(at) = pick(at, cluster.network.len()) {
                let message = cluster.network.swap_remove(at);
                cluster.deliver(message);
            }
        }
        Op::DeliverMany { count } => {
            let count = count.min(cluster.network.len());
            for message in cluster.network.drain(..count).collect::<Vec<_>>() {
                cluster.deliver(message);
            }
        }
        Op::Duplicate { pick: at } => {
            if let Some(at) = pick(at, cluster.network.len()) {
                cluster.network.push(cluster.network[at].clone());
            }
        }
        Op::Drop { pick: at } => {
            if let Some(at) = pick(at, cluster.network.len()) {
                cluster.network.swap_remove(at);
            }
        }
        Op::Cut { replica } => {
            let cut = id(replica);
            cluster.network.retain(|message| message.to != cut && message.from != cut);
        }
        Op::Transfer { replica, to } => {
            if cluster.replica(id(replica)).is_leader() {
                cluster.group(id(replica)).transfer_leadership(support::replica(id(to)));
            }
        }
        Op::Compact { replica } => cluster.compact_applied(id(replica)),
        Op::CompactAll { replica } => cluster.compact_all(id(replica)),
        Op::BeginSnapshot { replica } => cluster.replica(id(replica)).begin_snapshot(),
        Op::SupplySnapshot { replica } => cluster.replica(id(replica)).supply_snapshot(),
        Op::SnapshotLost { replica, to } => {
            if let Some(group) = &mut cluster.replica(id(replica)).group {
                group.report_snapshot_lost(support::replica(id(to)));
            }
        }
        Op::Change { replica, change } => propose_change(cluster, id(replica), &change),
        Op::ExpireLease { replica } => {
            if let Some(group) = &mut cluster.replica(id(replica)).group {
                group.expire_leader_lease();
            }
        }
        Op::Pass { ticks } => cluster.pass(ticks),
    }
}

/// Proposes a change that the group may refuse. A replica that has left does not come back: it would need a new id.
fn propose_change(cluster: &mut Cluster, id: u64, change: &Change) {
    if !cluster.replica(id).is_leader() {
        return;
    }
    let count = cluster.replicas.len();
    let members = cluster.replica(id).members();
    let last = cluster.configurations.values().next_back().cloned().unwrap_or_default();
    let was_member =
        |at: u64| cluster.configurations.values().any(|m| m.contains(support::replica(at)));
    let mut list = Vec::new();
    for (kind, at) in &change.changes {
        let at = (at % count + 1) as u64;
        let has_left = was_member(at) && !last.contains(support::replica(at));
        if list.iter().any(|(_, known)| *known == at) || has_left {
            continue;
        }
        list.push((
            [ConfChangeType::AddNode, ConfChangeType::AddLearnerNode, ConfChangeType::RemoveNode]
                [*kind],
            at,
        ));
    }
    if list.is_empty() && !members.is_joint() {
        return;
    }
    let proposed = match change.is_explicit && !list.is_empty() {
        true => support::explicit(&list),
        false => support::changes(&list),
    };
    // Refused while another is pending, and where nobody would vote any more.
    drop(cluster.group(id).propose_conf_change(&proposed));
}

/// Nobody leaves an explicit joint configuration but who led there.
fn leave_joint(cluster: &mut Cluster) {
    for _ in 0..400 {
        cluster.pass(10);
        let leader = (1..=cluster.replicas.len() as u64).find(|id| {
            let replica = cluster.replica(*id);
            replica.members().is_joint() && replica.is_leader()
        });
        if let Some(id) = leader {
            drop(cluster.group(id).propose_conf_change(&support::changes(&[])));
        } else if cluster.leader().is_some() {
            return;
        }
    }
}

/// 256 schedules of each kind, or as many as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..ProptestConfig::default()
    }
}

/// Three voters and three blank replicas that may be added.
fn moving() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.add_blanks(3);
    cluster.supplies_snapshots = false;
    cluster
}

fn restart_all(cluster: &mut Cluster) {
    cluster.supplies_snapshots = true;
    for replica in &mut cluster.replicas {
        if replica.group.is_none() {
            replica.start();
        }
        replica.supply_snapshot();
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn given_one_voter_when_anything_happens_in_any_order_then_nothing_acknowledged_is_lost(
        ops in proptest::collection::vec(op(), 1..200)
    ) {
        let mut cluster = Cluster::new(1);
        for op in ops {
            run(&mut cluster, op);
        }
        cluster.heal();
    }

    #[test]
    fn given_three_voters_when_anything_happens_in_any_order_then_nothing_acknowledged_is_lost(
        ops in proptest::collection::vec(op(), 1..500)
    ) {
        let mut cluster = Cluster::new(3);
        for op in ops {
            run(&mut cluster, op);
        }
        cluster.heal();
    }

    #[test]
    fn given_a_lone_voter_with_a_learner_when_it_crashes_at_any_point_then_the_learner_agrees(
        ops in proptest::collection::vec(op(), 1..300)
    ) {
        let mut cluster = Cluster::with_learners(1, 1);
        for op in ops {
            run(&mut cluster, op);
        }
        cluster.heal();
    }

    #[test]
    fn given_members_that_come_and_go_and_logs_that_are_cut_when_anything_happens_then_nothing_is_lost(
        ops in proptest::collection::vec(op_of_a_moving_group(), 1..500)
    ) {
        let mut cluster = moving();
        for op in ops {
            run(&mut cluster, op);
        }
        restart_all(&mut cluster);
        leave_joint(&mut cluster);
        cluster.heal();
    }

    #[test]
    fn given_a_lone_voter_and_blank_replicas_when_they_join_and_leave_then_nothing_is_lost(
        ops in proptest::collection::vec(op_of_a_moving_group(), 1..300)
    ) {
        let mut cluster = Cluster::new(1);
        cluster.add_blanks(3);
        for op in ops {
            run(&mut cluster, op);
        }
        restart_all(&mut cluster);
        leave_joint(&mut cluster);
        cluster.heal();
    }

    #[test]
    fn given_the_same_moving_schedule_when_run_twice_then_all_messages_are_the_same(
        ops in proptest::collection::vec(op_of_a_moving_group(), 1..300)
    ) {
        let mut first = moving();
        let mut second = moving();
        for op in ops {
            run(&mut first, op.clone());
            run(&mut second, op);
            prop_assert_eq!(&first.network, &second.network);
        }
    }

    #[test]
    fn given_the_same_schedule_when_run_twice_then_all_messages_are_the_same(
        ops in proptest::collection::vec(op(), 1..300)
    ) {
        let mut first = Cluster::new(3);
        let mut second = Cluster::new(3);
        for op in ops {
            run(&mut first, op.clone());
            run(&mut second, op);
            prop_assert_eq!(&first.network, &second.network);
        }
    }
}
