//! What a leader knows of peers that were out of reach.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_engine::ids::{RaftIndex, ReplicaId};
use chronik_replication::{Message, MessageType, ReplicationState};
use support::{Cluster, replica};

fn holders(cluster: &mut Cluster, index: u64) -> Vec<ReplicaId> {
    cluster.group(1).voters_that_hold(RaftIndex(index)).collect()
}

#[test]
fn given_an_idle_group_when_a_peer_was_out_of_reach_for_a_while_then_it_counts_again_by_its_heartbeat()
 {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    assert_eq!(holders(&mut cluster, 2), [replica(1), replica(2), replica(3)]);
    cluster.group(1).report_unreachable(replica(3));
    assert_eq!(holders(&mut cluster, 2), [replica(1), replica(2)]);
    assert_eq!(cluster.group(1).voters_with(RaftIndex(2)), 3, "it has it all the same");
    cluster.pass(20);
    assert_eq!(
        holders(&mut cluster, 2),
        [replica(1), replica(2), replica(3)],
        "nothing was written"
    );
    let states: Vec<_> = cluster.group(1).progress().iter().map(|peer| peer.state).collect();
    assert_eq!(states, [ReplicationState::Replicate; 2]);
    assert_eq!(cluster.group(2).voters_that_hold(RaftIndex(0)).count(), 0, "only a leader knows");
}

#[test]
fn given_a_peer_that_lacks_an_entry_when_it_is_heard_then_it_counts_once_it_has_it() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    for _ in 0..4 {
        cluster.settle(1);
        cluster.settle(2);
        cluster.network.retain(|message| message.to != 3);
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
    }
    cluster.group(1).report_unreachable(replica(3));
    assert_eq!(holders(&mut cluster, 2), [replica(1), replica(2)]);
    assert_eq!(cluster.group(1).voters_with(RaftIndex(2)), 2);
    cluster.pass(20);
    assert_eq!(holders(&mut cluster, 2), [replica(1), replica(2), replica(3)]);
}

#[test]
fn given_a_commit_that_went_to_one_peer_when_the_other_did_not_hear_of_it_then_it_is_still_to_be_told()
 {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    cluster.group(1).tell_commit();
    cluster.settle_all();
    assert!(!cluster.group(1).has_commit_to_tell());
    cluster.propose(1, 1).unwrap();
    for id in [1, 3] {
        cluster.settle(id);
        cluster.network.retain(|message| message.to != 2);
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
    }
    cluster.settle(1);
    assert!(cluster.group(1).has_commit_to_tell(), "the third has the entry");
    // The second, which lacks it, is given it with the commit as soon as it is heard.
    cluster.group(1).report_unreachable(replica(2));
    let mut given = Vec::new();
    for _ in 0..100 {
        if cluster.group(1).tick() {
            cluster.settle(1);
        }
        cluster.network.retain(|message| message.to == 2);
        for message in std::mem::take(&mut cluster.network) {
            given.extend((!message.entries.is_empty()).then_some(message.commit));
            cluster.deliver(message);
        }
        cluster.settle(2);
        let answers = std::mem::take(&mut cluster.network);
        let is_of_heartbeat = |m: &Message| m.get_msg_type() == MessageType::MsgHeartbeatResponse;
        answers.into_iter().filter(is_of_heartbeat).for_each(|message| cluster.deliver(message));
        cluster.settle(1);
        if !given.is_empty() {
            break;
        }
    }
    assert_eq!(given, [3]);
    assert!(cluster.group(1).has_commit_to_tell(), "the third knows of nothing yet");
}
