//! A leader confirms reads by asking a quorum, and one that was deposed confirms none.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_engine::ids::RaftIndex;
use chronik_replication::{ReadConfirmed, ReadyOutput};
use support::Cluster;

/// Takes what a replica has to say, for the network; the rounds that it confirms.
fn confirmed(cluster: &mut Cluster, id: u64) -> Vec<ReadConfirmed> {
    let mut out = ReadyOutput::default();
    while cluster.group(id).has_ready() {
        assert!(cluster.group(id).ready(&mut out).is_none(), "nothing is written");
    }
    cluster.network.extend(out.messages.into_iter().map(|peer| peer.message));
    assert!(out.committed.is_empty());
    out.reads
}

/// A leader of three with an entry that all have applied.
fn settled() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    cluster
}

fn step_all(cluster: &mut Cluster, to: u64) {
    let (now, later) = std::mem::take(&mut cluster.network).into_iter().partition(|m| m.to == to);
    cluster.network = later;
    for message in now {
        cluster.deliver(message);
    }
}

#[test]
fn given_a_leader_when_one_of_two_peers_answers_then_the_round_is_confirmed_with_what_is_committed()
{
    let mut cluster = settled();
    let round = cluster.group(1).begin_read().unwrap();
    assert_eq!(confirmed(&mut cluster, 1), [], "nobody has answered");
    assert_eq!(cluster.network.len(), 2);
    step_all(&mut cluster, 2);
    cluster.settle(2);
    step_all(&mut cluster, 1);
    let index = cluster.group(1).commit_index();
    assert_eq!(confirmed(&mut cluster, 1), [ReadConfirmed { round, index }]);
    assert_eq!(index, RaftIndex(2));
    step_all(&mut cluster, 3);
    cluster.settle(3);
    step_all(&mut cluster, 1);
    assert_eq!(confirmed(&mut cluster, 1), [], "once");
}

#[test]
fn given_a_round_whose_messages_were_lost_when_it_is_repeated_then_it_is_confirmed() {
    let mut cluster = settled();
    let round = cluster.group(1).begin_read().unwrap();
    confirmed(&mut cluster, 1);
    cluster.network.clear();
    cluster.group(1).repeat_read();
    confirmed(&mut cluster, 1);
    step_all(&mut cluster, 3);
    cluster.settle(3);
    step_all(&mut cluster, 1);
    let rounds: Vec<_> = confirmed(&mut cluster, 1).iter().map(|read| read.round).collect();
    assert_eq!(rounds, [round]);
}

#[test]
fn given_answers_to_an_earlier_round_when_a_later_one_waits_then_they_do_not_confirm_it() {
    let mut cluster = settled();
    let first = cluster.group(1).begin_read().unwrap();
    confirmed(&mut cluster, 1);
    step_all(&mut cluster, 2);
    cluster.settle(2);
    let second = cluster.group(1).begin_read().unwrap();
    assert!(second > first);
    step_all(&mut cluster, 1);
    let rounds: Vec<_> = confirmed(&mut cluster, 1).iter().map(|read| read.round).collect();
    assert_eq!(rounds, [first], "the answer is older than the second");
}

#[test]
fn given_a_leader_that_was_replaced_without_knowing_when_it_asks_then_nothing_is_confirmed() {
    let mut cluster = settled();
    // Nothing reaches replica 1 while the others elect another leader, and commit.
    for _ in 0..60 {
        for id in [2, 3] {
            cluster.group(id).tick();
        }
    }
    assert!(cluster.group(2).campaign());
    for _ in 0..8 {
        for id in [2, 3] {
            cluster.settle(id);
        }
        cluster.network.retain(|message| message.to != 1 && message.from != 1);
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
    }
    assert!(cluster.group(2).is_established_leader());
    assert!(cluster.group(1).is_established_leader(), "it does not know");
    cluster.group(1).begin_read().unwrap();
    assert_eq!(confirmed(&mut cluster, 1), []);
    cluster.settle_all();
    assert!(!cluster.group(1).is_leader());
    assert_eq!(cluster.group(1).begin_read(), None);
    cluster.pass(60);
    assert_eq!(confirmed(&mut cluster, 1), [], "not even later");
}

#[test]
fn given_replicas_that_do_not_lead_or_not_long_enough_when_asked_then_no_round_begins() {
    let mut cluster = Cluster::new(3);
    assert_eq!(cluster.group(1).begin_read(), None);
    for id in [2, 3] {
        for _ in 0..60 {
            cluster.group(id).tick();
        }
    }
    assert!(cluster.group(1).campaign());
    // Votes arrive, and nothing of what follows from them.
    for _ in 0..2 {
        for id in 1..=3 {
            cluster.settle(id);
        }
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
        for id in [2, 3] {
            cluster.settle(id);
        }
        step_all(&mut cluster, 1);
    }
    assert!(cluster.group(1).is_leader() && !cluster.group(1).is_established_leader());
    assert_eq!(cluster.group(1).begin_read(), None, "its commit index may say too little");
    cluster.settle_all();
    assert!(cluster.group(1).begin_read().is_some());
}

#[test]
fn given_a_lone_voter_when_it_asks_then_it_is_its_own_quorum() {
    let mut cluster = Cluster::with_learners(1, 1);
    assert!(!cluster.group(1).leads_alone());
    assert!(cluster.group(1).campaign());
    cluster.settle_all();
    assert!(cluster.group(1).leads_alone());
    let round = cluster.group(1).begin_read().unwrap();
    let index = cluster.group(1).commit_index();
    assert_eq!(confirmed(&mut cluster, 1), [ReadConfirmed { round, index }]);
    assert!(cluster.network.is_empty(), "nobody was asked");
}
