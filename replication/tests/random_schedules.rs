//! Random interleavings of proposals, messages, writes and crashes. What must hold is checked by the support module
//! at each step; at the end all is healed, and everything acknowledged must be on every replica.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use proptest::prelude::*;
use support::Cluster;

#[derive(Debug, Clone)]
enum Op {
    Tick { replica: usize, ticks: usize },
    Campaign { replica: usize },
    Propose { replica: usize, count: u32 },
    Drain { replica: usize },
    Persist { replica: usize },
    Apply { replica: usize, count: usize },
    Settle { replica: usize },
    Checkpoint { replica: usize },
    Crash { replica: usize, records: usize },
    Deliver { pick: usize },
    DeliverMany { count: usize },
    Duplicate { pick: usize },
    Drop { pick: usize },
    Cut { replica: usize },
    Transfer { replica: usize, to: usize },
    Compact { replica: usize },
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
        Op::Checkpoint { replica } => cluster.replica(id(replica)).checkpoint(),
        Op::Crash { replica, records } => {
            if cluster.replica(id(replica)).group.is_some() {
                cluster.replica(id(replica)).crash(records);
            }
            cluster.replica(id(replica)).start();
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
