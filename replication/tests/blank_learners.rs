//! A learner without a log gets a snapshot and never the entries from the first on; what a leader keeps while it is on
//! its way.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_engine::ids::{Offset, RaftIndex};
use chronik_replication::ConfChangeType::{AddLearnerNode, AddNode};
use chronik_replication::{KeepFor, Message, MessageType, ReplicationState};
use support::behind::is_snapshot;
use support::{Cluster, change, replica};

/// A leader alone with ten batches, none of which was cut, and the blank learner that it has just added.
fn with_blank() -> (Cluster, u64) {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    for _ in 0..10 {
        cluster.propose(1, 1).unwrap();
        cluster.settle(1);
    }
    let id = cluster.add_blank();
    cluster.group(1).propose_conf_change(&change(AddLearnerNode, id)).unwrap();
    cluster.settle(1);
    assert_eq!(cluster.group(1).log_start().index, RaftIndex(0), "all entries are there");
    (cluster, id)
}

/// Lets everything arrive, but for what `drops` takes; says how many snapshots were sent.
fn pass(cluster: &mut Cluster, id: u64, rounds: usize, drops: impl Fn(&Message) -> bool) -> usize {
    let mut snapshots = 0;
    for _ in 0..rounds {
        cluster.tick_all(10);
        cluster.settle(1);
        cluster.settle(id);
        for message in std::mem::take(&mut cluster.network) {
            let from_first = message.to == id && message.index == 0;
            assert!(!from_first || message.get_entries().is_empty(), "{message:?}");
            snapshots += usize::from(is_snapshot(&message));
            if !drops(&message) {
                cluster.deliver(message);
            }
        }
    }
    snapshots
}

#[test]
fn given_a_leader_with_its_whole_log_when_a_blank_learner_is_added_then_it_gets_one_snapshot() {
    let (mut cluster, id) = with_blank();
    let snapshots = pass(&mut cluster, id, 10, |_| false);
    assert_eq!((snapshots, cluster.replica(id).installs), (1, 1));
    assert_eq!(cluster.group(1).progress()[0].state, ReplicationState::Replicate, "though idle");
    // From then on entries are enough.
    cluster.propose(1, 1).unwrap();
    assert_eq!(pass(&mut cluster, id, 5, |_| false), 0);
    assert_eq!(cluster.group(1).progress()[0].state, ReplicationState::Replicate);
    cluster.change(1, &change(AddNode, id));
    cluster.heal();
}

#[test]
fn given_a_snapshot_for_a_blank_learner_when_it_is_lost_then_another_follows_and_no_entries() {
    let (mut cluster, id) = with_blank();
    assert_eq!(pass(&mut cluster, id, 5, is_snapshot), 1);
    assert_eq!(cluster.group(1).progress()[0].state, ReplicationState::Snapshot);
    // A message to it is lost, and nothing was heard of the snapshot.
    cluster.group(1).report_unreachable(replica(id));
    assert_eq!(cluster.group(1).progress()[0].state, ReplicationState::Probe);
    assert_eq!(pass(&mut cluster, id, 10, |_| false), 1);
    assert_eq!(cluster.replica(id).installs, 1);
    cluster.heal();
}

#[test]
fn given_a_peer_that_is_busy_with_its_snapshot_when_it_gets_further_then_it_has_time_and_the_log_stays()
 {
    let (mut cluster, id) = with_blank();
    assert_eq!(pass(&mut cluster, id, 5, is_snapshot), 1);
    let place = cluster.group(1).applied();
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Snapshots), place);
    cluster.propose(1, 1).unwrap();
    cluster.settle(1);
    // Thrice the time after which it would count as lost.
    for copied_to in (0..24).map(Offset) {
        cluster.group(1).report_snapshot_progress(replica(id), copied_to);
        assert_eq!(pass(&mut cluster, id, 1, |_| false), 0);
    }
    cluster.group(1).report_unreachable(replica(id));
    assert_eq!(cluster.group(1).progress()[0].state, ReplicationState::Snapshot, "it is at work");
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Peers), place);
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Nobody), RaftIndex(u64::MAX));
    // From here on it gets nowhere, and keeps asking for the same.
    let mut snapshots = 0;
    for _ in 0..12 {
        cluster.group(1).report_snapshot_progress(replica(id), Offset(23));
        snapshots += pass(&mut cluster, id, 1, is_snapshot);
    }
    assert_eq!(snapshots, 1, "another one, of what there is by then");
    assert!(cluster.group(1).cut_limit(KeepFor::Peers) > place, "no more is kept for it");
    cluster.heal();
}

#[test]
fn given_peers_when_a_leader_asks_how_far_it_may_cut_then_those_that_are_sent_entries_count() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 2).unwrap();
    cluster.settle_all();
    let held = cluster.group(1).last_index();
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Peers), held);
    cluster.propose(1, 2).unwrap();
    for _ in 0..4 {
        cluster.settle(1);
        cluster.settle(2);
        for message in std::mem::take(&mut cluster.network) {
            if message.to != 3 && message.from != 3 {
                cluster.deliver(message);
            }
        }
    }
    assert!(cluster.group(1).applied() > held, "two of three are enough to commit");
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Peers), held, "the third is about to get it");
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Snapshots), RaftIndex(u64::MAX));
    assert_eq!(
        cluster.group(2).cut_limit(KeepFor::Peers),
        RaftIndex(u64::MAX),
        "no leader waits for nobody"
    );
    // It is not heard of for more than an election timeout.
    for _ in 0..20 {
        cluster.tick_all(10);
        for id in [1, 2] {
            cluster.settle(id);
        }
        for message in std::mem::take(&mut cluster.network) {
            if message.to != 3 && message.from != 3 {
                cluster.deliver(message);
            }
        }
    }
    assert!(cluster.group(1).is_leader());
    let last = cluster.group(1).last_index();
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Peers), last, "only the second counts");
    cluster.heal();
}

#[test]
fn given_a_follower_that_answers_and_takes_no_entries_when_time_passes_then_the_log_is_not_kept_for_it()
 {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 2).unwrap();
    cluster.settle_all();
    let held = cluster.group(1).last_index();
    cluster.propose(1, 2).unwrap();
    let pass = |cluster: &mut Cluster, rounds: usize| {
        for _ in 0..rounds {
            cluster.tick_all(10);
            (1..=3).for_each(|id| cluster.settle(id));
            for message in std::mem::take(&mut cluster.network) {
                if message.to != 3 || message.get_msg_type() != MessageType::MsgAppend {
                    cluster.deliver(message);
                }
            }
        }
    };
    pass(&mut cluster, 7);
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Peers), held, "it may be late");
    pass(&mut cluster, 18);
    let third = cluster.group(1).progress()[1];
    assert_eq!((third.matched, third.recent_active), (held, true), "it is in reach all along");
    let last = cluster.group(1).last_index();
    assert!(last > held);
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Peers), last, "only the second counts");
    // It takes entries again, and is kept for as before.
    cluster.pass(60);
    cluster.propose(1, 2).unwrap();
    pass(&mut cluster, 2);
    assert_eq!(cluster.group(1).cut_limit(KeepFor::Peers), last);
    cluster.heal();
}

#[test]
fn given_a_message_that_is_kept_when_its_leader_is_heard_then_it_leads_and_nothing_else_has_changed()
 {
    let (mut cluster, id) = with_blank();
    let mut kept = None;
    for _ in 0..10 {
        cluster.tick_all(10);
        cluster.settle(1);
        cluster.settle(id);
        for message in std::mem::take(&mut cluster.network) {
            if is_snapshot(&message) {
                kept = Some(message);
            } else {
                cluster.deliver(message);
            }
        }
    }
    let kept = kept.unwrap();
    cluster.replica(id).crash(0);
    cluster.replica(id).start();
    assert_eq!(cluster.group(id).leader(), None);
    assert!(cluster.group(id).check(&kept).is_ok());
    cluster.group(id).hear_leader(&kept).unwrap();
    cluster.settle(id);
    assert_eq!((cluster.group(id).leader(), cluster.replica(id).installs), (Some(replica(1)), 0));
    let answers = cluster.network.iter().filter(|m| m.from == id);
    let kinds: Vec<_> = answers.map(Message::get_msg_type).collect();
    assert_eq!(kinds, [MessageType::MsgHeartbeatResponse]);
    cluster.deliver(kept);
    cluster.settle(id);
    assert_eq!(cluster.replica(id).installs, 1);
    cluster.heal();
}
