//! A leader that is gone is replaced at once where that is known, and one that is not is not disturbed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_engine::ids::{RaftIndex, Term};
use chronik_replication::{MessageType, PeerProgress, ReplicationState, Role};
use support::{Cluster, replica};

#[test]
fn given_a_leader_that_is_gone_when_its_lease_is_expired_then_another_leads_without_a_tick() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.replica(1).crash(0);
    for id in [2, 3] {
        cluster.group(id).expire_leader_lease();
        assert_eq!(cluster.group(id).role(), Role::Follower, "nobody campaigns by that");
    }
    assert!(cluster.group(3).campaign());
    assert_eq!(cluster.group(3).role(), Role::PreCandidate, "it asks before");
    cluster.network.retain(|message| message.to != 1);
    for _ in 0..8 {
        for id in [2, 3] {
            cluster.settle(id);
        }
        for message in std::mem::take(&mut cluster.network) {
            if message.to != 1 {
                cluster.deliver(message);
            }
        }
    }
    assert!(cluster.group(3).is_established_leader());
    assert_eq!(cluster.group(3).term(), Term(2));
}

#[test]
fn given_a_leader_that_the_others_hear_when_one_lost_it_and_campaigns_then_they_refuse() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.pass(20);
    cluster.group(3).expire_leader_lease();
    assert!(cluster.group(3).campaign());
    cluster.drain(3);
    let asked: Vec<_> = cluster.network.iter().map(|m| (m.get_msg_type(), m.to)).collect();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|(kind, _)| *kind == MessageType::MsgRequestPreVote), "{asked:?}");
    cluster.settle_all();
    assert_eq!(cluster.group(3).role(), Role::PreCandidate, "nobody has answered");
    assert!(cluster.group(1).is_leader());
    for id in 1..=3 {
        assert_eq!(cluster.group(id).term(), Term(1), "a mistake costs no term");
    }
    cluster.pass(20);
    assert_eq!(cluster.group(3).leader(), Some(replica(1)), "the next heartbeat mends it");
}

#[test]
fn given_an_expired_lease_when_nobody_campaigns_then_its_own_election_comes_within_one_timeout() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.replica(1).crash(0);
    cluster.group(2).expire_leader_lease();
    for _ in 0..60 {
        cluster.group(2).tick();
    }
    assert_eq!(cluster.group(2).role(), Role::PreCandidate);
    cluster.group(3).expire_leader_lease();
    cluster.group(3).expire_leader_lease();
    assert_eq!(cluster.group(3).role(), Role::Follower);
}

#[test]
fn given_a_leader_when_its_lease_is_expired_then_it_leads_on() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.pass(30);
    cluster.group(1).expire_leader_lease();
    cluster.pass(200);
    assert!(cluster.group(1).is_leader());
    assert_eq!(cluster.group(1).term(), Term(1));
}

#[test]
fn given_peers_in_different_places_when_progress_is_asked_for_then_it_names_each() {
    let mut cluster = Cluster::with_learners(3, 1);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    cluster.replica(3).crash(0);
    cluster.propose(1, 1).unwrap();
    for _ in 0..4 {
        cluster.settle(1);
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
        cluster.settle(2);
        cluster.settle(4);
    }
    let at = |id: u64, matched: u64| PeerProgress {
        replica: replica(id),
        matched: RaftIndex(matched),
        next: RaftIndex(4),
        state: ReplicationState::Replicate,
        recent_active: true,
    };
    assert_eq!(cluster.group(1).progress(), [at(2, 3), at(3, 2), at(4, 3)]);
    assert_eq!(cluster.group(2).progress(), [], "only a leader knows");
}
