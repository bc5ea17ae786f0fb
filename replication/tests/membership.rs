//! Changes of who belongs to a group: one member, all of them at once, the leader itself, with crashes at each step.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use chronik_engine::ids::{RaftIndex, Term};
use chronik_replication::ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
use chronik_replication::{ConfChangeV2, Members, ProposeError, RaftGroup, RecoverError, Role};
use support::{Cluster, change, changes, explicit, replica, replicas};

/// Voters 1, 2, 3 with a log, led by 1, and 4, 5, 6 as learners that have caught up.
fn six() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.add_blanks(3);
    cluster.elect(1);
    for id in 4..=6 {
        cluster.propose(1, 2).unwrap();
        cluster.change(1, &change(AddLearnerNode, id));
    }
    assert_eq!(cluster.replica(6).state.len(), cluster.replica(1).state.len());
    cluster
}

fn all_for_all() -> ConfChangeV2 {
    let added = (4..=6).map(|id| (AddNode, id));
    let removed = (1..=3).map(|id| (RemoveNode, id));
    changes(&added.chain(removed).collect::<Vec<_>>())
}

fn only(voters: &[u64]) -> Members {
    Members { voters: replicas(voters), ..Members::default() }
}

#[test]
fn given_a_joint_change_of_all_voters_when_nothing_fails_then_the_new_ones_lead_soon() {
    let mut cluster = six();
    cluster.group(1).propose_conf_change(&all_for_all()).unwrap();
    cluster.settle_all();
    // The leader has left, and has told one of the new ones to take over: nobody waits for a timeout.
    assert_eq!(cluster.group(1).role(), Role::Follower);
    assert!(!cluster.group(1).is_member(), "and it knows");
    let leader = cluster.leader().unwrap();
    assert!((4..=6).contains(&leader), "{leader}");
    for id in 4..=6 {
        assert!(cluster.group(id).is_member());
        assert_eq!(cluster.group(id).members(), only(&[4, 5, 6]));
    }
    cluster.heal();
    assert!(!cluster.group(1).campaign(), "who is no voter is not elected");
}

#[test]
fn given_an_explicit_joint_change_when_it_is_applied_then_it_stays_until_it_is_left() {
    let mut cluster = six();
    cluster.change(1, &explicit(&[(AddNode, 4), (RemoveNode, 2), (AddLearnerNode, 3)]));
    let joint = Members {
        voters: replicas(&[1, 4]),
        voters_outgoing: replicas(&[1, 2, 3]),
        learners: replicas(&[5, 6]),
        learners_next: replicas(&[3]),
        auto_leave: false,
    };
    for id in 1..=6 {
        assert_eq!(cluster.group(id).members(), joint, "replica {id}");
    }
    assert!(matches!(
        cluster.group(1).propose_conf_change(&change(AddNode, 5)),
        Err(ProposeError::ConfChangeInvalid { .. })
    ));
    // Both majorities are needed: 4 alone with the leader is one of them only.
    let committed = cluster.committed.len();
    cluster.propose(1, 1).unwrap();
    for _ in 0..6 {
        for id in [1, 4] {
            cluster.settle(id);
        }
        let arrived = std::mem::take(&mut cluster.network);
        arrived.into_iter().filter(|m| [1, 4].contains(&m.to)).for_each(|m| cluster.deliver(m));
    }
    assert_eq!(cluster.committed.len(), committed);
    cluster.pass(40);
    assert_eq!(cluster.committed.len(), committed + 1);

    // It lasts over restarts and changes of the leader, from checkpoints of before and of after.
    cluster.replica(3).checkpoint();
    for id in 1..=6 {
        cluster.replica(id).crash(0);
        cluster.replica(id).start();
    }
    assert_eq!(cluster.group(3).members(), joint);
    cluster.elect(3);
    cluster.pass(40);
    for id in 1..=6 {
        assert_eq!(cluster.group(id).members(), joint, "replica {id}");
    }
    cluster.change(3, &ConfChangeV2::default());
    let left = Members { learners: replicas(&[3, 5, 6]), ..only(&[1, 4]) };
    assert_eq!(cluster.group(4).members(), left);
    assert_eq!(cluster.group(3).role(), Role::Follower, "a learner does not lead");
    assert!(cluster.group(3).is_member());
    cluster.heal();
}

#[test]
fn given_a_leader_that_is_removed_when_it_applies_that_then_it_hands_over_and_steps_down() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    cluster.group(1).propose_conf_change(&change(RemoveNode, 1)).unwrap();
    cluster.settle_all();
    assert_eq!((cluster.group(1).role(), cluster.group(1).is_member()), (Role::Follower, false));
    let leader = cluster.leader().unwrap();
    assert_ne!(leader, 1);
    assert_eq!(cluster.group(leader).term(), Term(2), "within no time");
    let last = cluster.group(leader).last_index();
    assert!(cluster.group(leader).progress().iter().all(|peer| peer.matched == last));
    cluster.heal();
}

#[test]
fn given_a_leader_that_is_removed_when_nobody_hears_its_handover_then_another_leads_all_the_same() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.group(1).propose_conf_change(&change(RemoveNode, 1)).unwrap();
    for _ in 0..20 {
        for id in 1..=3 {
            cluster.settle(id);
        }
        let leaves = !cluster.group(1).is_member();
        for message in std::mem::take(&mut cluster.network) {
            if !leaves || message.from != 1 {
                cluster.deliver(message);
            }
        }
    }
    assert!(!cluster.group(1).is_member());
    cluster.heal();
    assert_eq!(cluster.replica(2).members(), only(&[2, 3]));
}

#[test]
fn given_a_handover_to_the_last_voter_when_its_log_is_not_durable_then_it_leads_once_it_is() {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.group(1).propose_conf_change(&change(RemoveNode, 1)).unwrap();
    cluster.drain(1);
    cluster.persist_one(1);
    deliver_all(&mut cluster);
    cluster.drain(2);
    cluster.persist_one(2);
    deliver_all(&mut cluster);
    // The change is committed, and nobody has applied it.
    cluster.group(1).transfer_leadership(replica(2));
    cluster.drain(1);
    deliver_all(&mut cluster);
    cluster.drain(2);
    // The leader gives up waiting, and the last entry that it writes is on its way to the disk of the other.
    while cluster.propose(1, 1).is_err() {
        cluster.group(1).tick();
    }
    cluster.drain(1);
    deliver_all(&mut cluster);
    cluster.drain(2);
    cluster.apply(2, usize::MAX);
    assert_eq!(cluster.group(2).members(), only(&[2]));
    assert_eq!(cluster.group(2).role(), Role::Follower, "its log is not durable");
    assert!(!cluster.replica(2).in_flight.is_empty());
    cluster.settle(2);
    assert!(cluster.group(2).is_leader(), "without a tick");
    cluster.heal();
}

#[test]
fn given_a_change_to_a_pair_when_it_is_proposed_then_nothing_is_appended_behind_it_before_it_is_applied()
 {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.group(1).propose_conf_change(&change(RemoveNode, 3)).unwrap();
    let refused = cluster.propose(1, 1);
    assert!(matches!(refused, Err(ProposeError::ConfChangePending)), "{refused:?}");
    // What a majority of three commits now may be missing on the second one of the pair.
    cluster.drain(1);
    cluster.persist_one(1);
    deliver_all(&mut cluster);
    cluster.drain(3);
    cluster.persist_one(3);
    deliver_all(&mut cluster);
    cluster.drain(1);
    assert!(cluster.propose(1, 1).is_err(), "it is committed, and not applied");
    cluster.apply(1, usize::MAX);
    assert_eq!(cluster.group(1).members(), only(&[1, 2]));
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    // A change to more than two is not waited for, nor one that leaves a pair as it is.
    cluster.add_blank();
    for change in [change(AddLearnerNode, 4), change(AddNode, 4)] {
        cluster.group(1).propose_conf_change(&change).unwrap();
        cluster.propose(1, 1).unwrap();
        cluster.settle_all();
        cluster.pass(40);
    }
    assert_eq!(cluster.group(1).members(), only(&[1, 2, 4]));
    cluster.heal();
}

#[test]
fn given_a_change_applied_with_a_longer_log_than_later_when_it_leads_again_then_the_members_are_durable()
 {
    let mut cluster = Cluster::new(3);
    cluster.add_blanks(1);
    cluster.elect(1);
    cluster.group(1).propose_conf_change(&change(AddLearnerNode, 4)).unwrap();
    cluster.drain(1);
    cluster.persist_one(1);
    deliver_all(&mut cluster);
    for id in [2, 3] {
        cluster.drain(id);
        cluster.persist_one(id);
    }
    deliver_all(&mut cluster);
    for _ in 0..5 {
        cluster.propose(1, 1).unwrap();
    }
    cluster.settle(1);
    assert!(cluster.group(1).members().contains(replica(4)), "it has applied the change");
    let last = cluster.group(1).last_index();
    cluster.network.clear();
    cluster.elect(2);
    assert!(cluster.group(1).last_index() < last, "the tail is gone");
    cluster.group(2).transfer_leadership(replica(1));
    cluster.settle_all();
    assert!(cluster.group(1).is_established_leader());
    cluster.pass(10);
    assert!(cluster.group(1).are_members_durable());
    let last = cluster.group(1).last_index();
    cluster.pass(100);
    assert_eq!(cluster.group(1).last_index(), last, "one entry is enough");
    cluster.heal();
}

fn deliver_all(cluster: &mut Cluster) {
    for message in std::mem::take(&mut cluster.network) {
        cluster.deliver(message);
    }
}

/// Runs `steps` of a cluster in which one thing at a time happens, then crashes those that `pick` names, after
/// the first `outputs` of what they were writing. False once all steps are done before that.
fn crash_at(steps: usize, outputs: usize, pick: impl Fn(&mut Cluster) -> Vec<u64>) -> bool {
    let mut cluster = six();
    cluster.propose(1, 1).unwrap();
    cluster.group(1).propose_conf_change(&all_for_all()).unwrap();
    let mut done = 0;
    'all: loop {
        let mut moved = false;
        for id in 1..=6 {
            for step in 0..3 {
                if done == steps {
                    break 'all;
                }
                done += 1;
                match step {
                    0 => cluster.drain(id),
                    1 if !cluster.replica(id).in_flight.is_empty() => cluster.persist_one(id),
                    2 if !cluster.replica(id).committed.is_empty() => cluster.apply(id, 1),
                    _ => {
                        done -= 1;
                        continue;
                    }
                }
                moved = moved || step > 0;
            }
        }
        for message in std::mem::take(&mut cluster.network) {
            moved = true;
            cluster.deliver(message);
        }
        if !moved {
            return false;
        }
    }
    for id in pick(&mut cluster) {
        cluster.replica(id).crash_between(outputs);
        cluster.network.retain(|message| message.from != id && message.to != id);
    }
    // Time passes without them, then they are back.
    for _ in 0..15 {
        for id in 1..=6 {
            if cluster.replica(id).group.is_some() {
                for _ in 0..10 {
                    cluster.group(id).tick();
                }
            }
        }
        cluster.settle_all();
    }
    cluster.heal();
    assert_eq!(cluster.replica(4).members().voters.len(), 3);
    true
}

#[test]
fn given_a_joint_change_of_all_voters_when_the_leader_crashes_at_any_step_then_the_group_goes_on() {
    for outputs in [0, 1, 100] {
        let leader = |cluster: &mut Cluster| {
            let leads = |id: &u64| cluster.replicas[usize::try_from(*id - 1).unwrap()].is_leader();
            (1..=6).filter(leads).collect()
        };
        let steps = (0..2_000).take_while(|steps| crash_at(*steps, outputs, leader)).count();
        assert!((30..2_000).contains(&steps), "{steps} steps were tried");
    }
}

#[test]
fn given_a_joint_change_of_all_voters_when_everybody_crashes_at_any_step_then_the_group_goes_on() {
    for outputs in [0, 1, 100] {
        let steps = (0..2_000).take_while(|steps| crash_at(*steps, outputs, |_| (1..=6).collect()));
        let steps = steps.count();
        assert!((30..2_000).contains(&steps), "{steps} steps were tried");
    }
}

#[test]
fn given_one_of_two_voters_that_left_and_was_deleted_when_the_other_starts_again_then_it_leads_alone()
 {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    cluster.group(1).propose_conf_change(&change(RemoveNode, 2)).unwrap();
    cluster.settle_all();
    assert_eq!(cluster.group(1).members(), only(&[1]));
    assert!(cluster.group(1).are_members_durable(), "without a tick, a proposal or a write");
    cluster.replica(2).crash(0);
    cluster.replica(1).crash(0);
    cluster.replica(1).start();
    cluster.settle(1);
    assert!(cluster.group(1).campaign());
    cluster.settle(1);
    assert!(cluster.group(1).is_established_leader());
    assert_eq!(cluster.group(1).members(), only(&[1]));
}

/// Voters go and others come, while one thing after the other happens in an order that `seed` makes. As soon as a leader
/// says that the members are durable the power fails, those who left are deleted, and so is `lost`, one of the new ones.
fn delete_those_who_left(seed: u64, new: [u64; 3], lost: u64) {
    let mut cluster = six();
    let comes = new.iter().filter(|id| **id > 3).map(|id| (AddNode, *id));
    let goes = (1..=3).filter(|id| !new.contains(id)).map(|id| (RemoveNode, id));
    let change = changes(&comes.chain(goes).collect::<Vec<_>>());
    cluster.group(1).propose_conf_change(&change).unwrap();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let mut steps = 0;
    while !are_durable(&cluster, &new) {
        steps += 1;
        assert!(steps < 100_000, "seed {seed}: the members never become durable");
        let id = draw(6) as u64 + 1;
        match draw(4) {
            0 => cluster.drain(id),
            1 => cluster.persist_one(id),
            2 => cluster.apply(id, 1),
            _ if cluster.network.is_empty() => cluster.tick_all(1),
            _ => {
                let at = draw(cluster.network.len());
                let message = cluster.network.remove(at);
                cluster.deliver(message);
            }
        }
    }
    (1..=6).for_each(|id| cluster.replica(id).crash_between(0));
    cluster.network.clear();
    new.into_iter().filter(|id| *id != lost).for_each(|id| cluster.replica(id).start());
    for _ in 0..200 {
        cluster.pass(10);
        let mut groups = cluster.replicas.iter().filter_map(|replica| replica.group.as_ref());
        if groups.any(RaftGroup::is_established_leader) {
            return;
        }
    }
    panic!("seed {seed}: without {lost} nobody is elected");
}

fn are_durable(cluster: &Cluster, members: &[u64]) -> bool {
    let mut groups = cluster.replicas.iter().filter_map(|replica| replica.group.as_ref());
    groups.any(|group| group.members().voters == replicas(members) && group.are_members_durable())
}

#[test]
fn given_members_that_are_durable_when_the_power_fails_and_who_left_is_gone_then_a_majority_goes_on()
 {
    for seed in 0..40 {
        delete_those_who_left(seed, [4, 5, 6], 4 + seed % 3);
        // The one that says so is lost, too.
        delete_those_who_left(seed, [1, 5, 6], 1);
    }
}

#[test]
fn given_a_leader_that_the_follower_has_never_heard_of_when_an_append_is_lost_then_it_catches_up() {
    let mut cluster = six();
    // Replica 6 hears nothing of the change by which 4 comes to vote, nor of its leadership.
    cluster.replica(6).crash(0);
    cluster.change(1, &changes(&[(AddNode, 4), (AddNode, 5), (RemoveNode, 1), (RemoveNode, 2)]));
    cluster.pass(200);
    let leader = cluster.leader();
    assert_eq!(leader, None, "a member is down");
    cluster.replica(6).start();
    let mut lost = 0;
    for _ in 0..60 {
        cluster.tick_all(10);
        for id in 1..=6 {
            cluster.settle(id);
        }
        for message in std::mem::take(&mut cluster.network) {
            // Its first message with entries, or without, is lost.
            if message.to == 6 && !message.get_entries().is_empty() && lost < 3 {
                lost += 1;
                continue;
            }
            cluster.deliver(message);
        }
    }
    cluster.heal();
}

#[test]
fn given_members_that_cannot_be_when_a_group_starts_then_it_refuses() {
    let mut cluster = Cluster::new(1);
    let mut recovered = cluster.replica(1).disk.recovered();
    recovered.meta.voters_outgoing = replicas(&[2]);
    recovered.meta.learners = replicas(&[2]);
    let config = cluster.replica(1).config();
    let refused = chronik_replication::RaftGroup::new(config, recovered);
    assert!(matches!(refused, Err(RecoverError::Members { .. })), "{refused:?}");
    assert_eq!(cluster.group(1).applied(), RaftIndex(0));
    assert!(cluster.group(1).members().contains(replica(1)));
}
