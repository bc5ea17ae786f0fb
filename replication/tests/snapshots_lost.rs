//! Snapshots that get lost on their way, as a whole or in part.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_engine::ids::Offset;
use chronik_replication::{Message, ReplicationState};
use support::behind::{behind, cut_after_ten, is_snapshot, until_snapshot};
use support::{Cluster, replica};

/// So many ticks of the leader, in which nothing reaches 3.
fn pass_without_3(cluster: &mut Cluster, ticks: usize) {
    for _ in 0..ticks {
        cluster.group(1).tick();
        cluster.settle(1);
        cluster.settle(2);
        for message in std::mem::take(&mut cluster.network) {
            if message.to != 3 {
                cluster.deliver(message);
            }
        }
    }
}

#[test]
fn given_a_snapshot_that_is_lost_when_nobody_says_so_then_it_is_sent_anew_after_some_time() {
    let mut cluster = behind();
    let lost = until_snapshot(&mut cluster);
    assert_eq!(cluster.group(1).progress()[1].state, ReplicationState::Snapshot);
    let mut ticks = 0;
    let again = loop {
        assert!(ticks < 200, "it stays paused for ever");
        cluster.tick_all(5);
        ticks += 5;
        for id in 1..=3 {
            cluster.settle(id);
        }
        if let Some(at) = cluster.network.iter().position(is_snapshot) {
            break cluster.network.swap_remove(at);
        }
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
    };
    assert!(ticks >= 75, "not before: {ticks}");
    // Both arrive in the end, the old one last.
    cluster.deliver(again);
    cluster.settle_all();
    cluster.deliver(lost);
    cluster.heal();
    assert_eq!(cluster.replica(3).installs, 1);
}

#[test]
fn given_a_snapshot_that_is_lost_when_that_is_reported_then_it_is_sent_anew_with_the_next_heartbeat()
 {
    let mut cluster = behind();
    drop(until_snapshot(&mut cluster));
    cluster.group(1).report_snapshot_progress(replica(3), Offset(0));
    assert_eq!(cluster.group(1).progress()[1].state, ReplicationState::Snapshot, "no answer yet");
    cluster.group(1).report_snapshot_lost(replica(3));
    cluster.group(1).report_snapshot_lost(replica(2));
    assert_eq!(cluster.group(1).progress()[1].state, ReplicationState::Probe);
    assert_eq!(cluster.group(1).progress()[0].state, ReplicationState::Replicate);
    cluster.pass(40);
    assert_eq!(cluster.replica(3).installs, 1);
    cluster.heal();
}

#[test]
fn given_a_snapshot_that_is_lost_when_it_is_sent_anew_then_it_is_the_same_as_long_as_the_log_follows_it()
 {
    let mut cluster = behind();
    let lost = until_snapshot(&mut cluster);
    cluster.group(1).report_snapshot_lost(replica(3));
    // More is applied, and its link is away for a while.
    let applied = cluster.group(1).applied();
    cluster.propose(1, 1).unwrap();
    pass_without_3(&mut cluster, 50);
    assert!(cluster.group(1).applied() > applied);
    assert_eq!(until_snapshot(&mut cluster), lost, "it can go on where it stopped");
    cluster.group(1).report_snapshot_lost(replica(3));
    cut_after_ten(&mut cluster, &[1, 2]);
    let another = until_snapshot(&mut cluster);
    let index = |message: &Message| message.get_snapshot().get_metadata().index;
    assert!(index(&another) > index(&lost));
    // And it is not kept for ever.
    cluster.group(1).report_snapshot_lost(replica(3));
    cluster.propose(1, 1).unwrap();
    pass_without_3(&mut cluster, 90);
    assert!(index(&until_snapshot(&mut cluster)) > index(&another));
    cluster.heal();
}

#[test]
fn given_a_snapshot_on_its_way_when_parts_of_it_arrive_then_it_is_not_given_up() {
    let mut cluster = behind();
    let snapshot = until_snapshot(&mut cluster);
    for _ in 0..20 {
        cluster.pass(40);
        assert_eq!(cluster.group(1).progress()[1].state, ReplicationState::Snapshot);
        cluster.group(1).report_snapshot_part(replica(3));
    }
    assert_eq!(cluster.group(1).snapshot_ends().lost, 0);
    cluster.deliver(snapshot);
    cluster.heal();
    assert_eq!(cluster.replica(3).installs, 1);
}
