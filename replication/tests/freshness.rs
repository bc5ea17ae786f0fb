//! A follower knows how old what it shows may be, whatever becomes of messages and leaders.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_engine::ids::RaftIndex;
use chronik_replication::{Message, MessageType};
use support::{Cluster, replica};

/// A heartbeat's interval, in ticks; and in milliseconds, of 50 each.
const HEARTBEAT_TICKS: usize = 20;
const HEARTBEAT_MS: u64 = 1_000;

/// So many heartbeats of the leaders `of`; messages that do not pass are lost.
fn beat(
    cluster: &mut Cluster,
    now_ms: &mut u64,
    (beats, of): (usize, &[u64]),
    passes: impl Fn(&Message) -> bool,
) {
    for _ in 0..beats {
        *now_ms += HEARTBEAT_MS;
        for id in 1..=cluster.replicas.len() as u64 {
            cluster.group(id).set_clock(*now_ms);
        }
        for id in of {
            for _ in 0..HEARTBEAT_TICKS {
                cluster.group(*id).tick();
            }
        }
        for _ in 0..8 {
            for id in 1..=cluster.replicas.len() as u64 {
                cluster.settle(id);
            }
            for message in std::mem::take(&mut cluster.network) {
                if passes(&message) {
                    cluster.deliver(message);
                }
            }
        }
    }
}

fn led(voters: u64) -> Cluster {
    let mut cluster = Cluster::new(voters);
    cluster.elect(1);
    cluster.settle_all();
    cluster
}

fn ages(cluster: &mut Cluster) -> Vec<Option<u64>> {
    (1..=cluster.replicas.len() as u64).map(|id| cluster.group(id).current_as_of_ms()).collect()
}

#[test]
fn given_a_leader_that_is_heard_when_two_rounds_are_confirmed_then_followers_are_as_current_as_their_answers()
 {
    let (mut cluster, mut now_ms) = (led(3), 0);
    assert_eq!(cluster.group(1).knows_its_age(replica(2)), None);
    beat(&mut cluster, &mut now_ms, (2, &[1]), |_| true);
    assert_eq!(
        ages(&mut cluster),
        [None; 3],
        "the leader was confirmed since, and has not said so"
    );
    beat(&mut cluster, &mut now_ms, (1, &[1]), |_| true);
    assert_eq!(ages(&mut cluster)[1..], [Some(1_000); 2], "they answered the first heartbeat then");
    beat(&mut cluster, &mut now_ms, (4, &[1]), |_| true);
    assert_eq!(ages(&mut cluster)[1..], [Some(now_ms - 2 * HEARTBEAT_MS); 2]);
    assert_eq!(cluster.group(1).knows_its_age(replica(2)), Some(now_ms));
    assert_eq!(cluster.group(2).knows_its_age(replica(3)), None, "only a leader knows of others");
}

#[test]
fn given_a_follower_that_hears_heartbeats_when_entries_do_not_reach_it_then_it_does_not_get_younger()
 {
    let (mut cluster, mut now_ms) = (led(3), 0);
    beat(&mut cluster, &mut now_ms, (4, &[1]), |_| true);
    cluster.propose(1, 1).unwrap();
    let before = ages(&mut cluster)[2];
    let no_entries = |m: &Message| m.to != 3 || m.get_msg_type() != MessageType::MsgAppend;
    beat(&mut cluster, &mut now_ms, (10, &[1]), no_entries);
    let now = ages(&mut cluster);
    assert_eq!(now[1], Some(now_ms - 2 * HEARTBEAT_MS));
    assert!(now[2] <= before.max(Some(4 * HEARTBEAT_MS)), "{before:?} {now:?}");
    assert_eq!(cluster.group(3).leader(), Some(replica(1)));
    beat(&mut cluster, &mut now_ms, (4, &[1]), |_| true);
    assert_eq!(ages(&mut cluster)[2], Some(now_ms - 2 * HEARTBEAT_MS));
}

#[test]
fn given_a_leader_without_a_majority_when_one_still_hears_it_then_that_one_does_not_get_younger() {
    let (mut cluster, mut now_ms) = (led(5), 0);
    beat(&mut cluster, &mut now_ms, (4, &[1]), |_| true);
    let cut_at_ms = now_ms;
    // Replicas 1 and 2 are on one side; on the other one a leader is elected, and commits.
    let is_left = |id: u64| id <= 2;
    let stays = |m: &Message| is_left(m.from) == is_left(m.to);
    for id in [3, 4, 5] {
        cluster.group(id).expire_leader_lease();
    }
    assert!(cluster.group(3).campaign());
    beat(&mut cluster, &mut now_ms, (1, &[]), stays);
    assert!(cluster.group(3).is_established_leader() && cluster.group(1).is_leader());
    cluster.propose(3, 1).unwrap();
    beat(&mut cluster, &mut now_ms, (4, &[1, 3]), stays);
    assert_eq!(cluster.group(3).commit_index(), RaftIndex(3));
    assert!(cluster.group(1).is_leader(), "it does not know yet");
    let now = ages(&mut cluster);
    assert!(now[1] <= Some(cut_at_ms), "{now:?}, cut at {cut_at_ms}");
    beat(&mut cluster, &mut now_ms, (3, &[3]), stays);
    assert!(ages(&mut cluster)[3] > Some(cut_at_ms));
}

#[test]
fn given_a_follower_that_stood_still_when_old_heartbeats_arrive_then_it_is_as_old_as_it_was() {
    let (mut cluster, mut now_ms) = (led(3), 0);
    beat(&mut cluster, &mut now_ms, (4, &[1]), |_| true);
    let stood_since_ms = now_ms;
    let mut late = Vec::new();
    for _ in 0..20 {
        for _ in 0..HEARTBEAT_TICKS {
            cluster.group(1).tick();
        }
        now_ms += HEARTBEAT_MS;
        for id in [1, 2] {
            cluster.group(id).set_clock(now_ms);
        }
        for _ in 0..4 {
            for id in [1, 2] {
                cluster.settle(id);
            }
            for message in std::mem::take(&mut cluster.network) {
                match message.to {
                    3 => late.push(message),
                    _ => cluster.deliver(message),
                }
            }
        }
    }
    assert!(late.len() >= 20);
    cluster.group(3).set_clock(now_ms);
    for message in late {
        cluster.deliver(message);
    }
    let age = ages(&mut cluster)[2];
    assert!(age <= Some(stood_since_ms), "{age:?}, stood still since {stood_since_ms}");
    beat(&mut cluster, &mut now_ms, (4, &[1]), |_| true);
    assert!(ages(&mut cluster)[2] > Some(stood_since_ms));
}

#[test]
fn given_a_follower_that_starts_again_when_told_its_old_stamps_then_they_do_not_count() {
    let (mut cluster, mut now_ms) = (led(3), 0);
    beat(&mut cluster, &mut now_ms, (6, &[1]), |_| true);
    cluster.replica(3).crash(0);
    cluster.replica(3).seed += 1;
    cluster.replica(3).start();
    cluster.settle(3);
    // Its clock begins anew, and is soon where it was: the first heartbeat gives back what the last life said.
    beat(&mut cluster, &mut now_ms, (1, &[1]), |_| true);
    assert_eq!(ages(&mut cluster)[2], None);
    assert_eq!(cluster.group(1).knows_its_age(replica(3)), None, "it is not told yet");
    beat(&mut cluster, &mut now_ms, (2, &[1]), |_| true);
    assert_eq!(ages(&mut cluster)[2], Some(7_000));
    assert!(cluster.group(1).knows_its_age(replica(3)).is_some());
}
