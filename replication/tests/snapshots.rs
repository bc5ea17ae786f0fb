//! A log that does not reach back far enough is replaced by a snapshot: step by step, with crashes at each, with
//! messages that are lost, doubled and late.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use bytes::Bytes;
use chronik_engine::ids::{RaftIndex, ReplicaId, Term};
use chronik_engine::limits::GROUP_STATE_BYTES_MAX;
use chronik_engine::wal::record::WalRecord;
use chronik_replication::ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
use chronik_replication::{
    Message, MessageType, ReadyOutput, ReplicationState, Role, SnapshotError,
};
use support::behind::{append_after, behind, cut_after_ten, is_snapshot, until_snapshot};
use support::{Cluster, change, changes, replica};

#[test]
fn given_a_follower_behind_the_cut_when_it_comes_back_then_a_snapshot_and_entries_bring_it_up() {
    let mut cluster = behind();
    let start = cluster.group(1).log_start();
    cluster.heal();
    assert_eq!(cluster.replica(3).installs, 1);
    assert!(cluster.group(3).log_start().index >= start.index);
    assert_eq!(cluster.group(3).epochs().len(), 1);
    let tail: Vec<_> = cluster.group(1).epochs().iter().map(|run| run.epoch).collect();
    assert_eq!(cluster.group(3).epochs().last().map(|run| run.epoch), tail.last().copied());
    // And a restart finds it all again.
    for _ in 0..2 {
        cluster.replica(3).crash(0);
        cluster.replica(3).start();
        cluster.heal();
        cluster.replica(3).checkpoint();
    }
    assert_eq!(cluster.replica(3).installs, 1);
}

#[test]
fn given_a_blank_learner_when_it_is_added_then_it_joins_by_snapshot_while_proposals_go_on() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    for _ in 0..10 {
        cluster.propose(1, 1).unwrap();
        cluster.settle(1);
    }
    cluster.replica(1).checkpoint();
    cluster.compact_all(1);
    let id = cluster.add_blank();
    cluster.group(1).propose_conf_change(&change(AddLearnerNode, id)).unwrap();
    for round in 0..60 {
        cluster.propose(1, 1).unwrap();
        cluster.tick_all(10);
        cluster.settle(1);
        cluster.settle(id);
        if round % 10 == 9 {
            // The log of the leader is cut again and again under the snapshots that it sends.
            cluster.replica(1).checkpoint();
            cluster.compact_all(1);
        }
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
    }
    assert!(cluster.replica(id).installs >= 1);
    cluster.settle_all();
    cluster.pass(100);
    cluster.change(1, &change(AddNode, id));
    cluster.heal();
    let progress = cluster.group(1).progress();
    assert_eq!(progress[0].state, ReplicationState::Replicate);
    assert_eq!(cluster.group(id).members().voters, [replica(1), replica(id)]);
    // It votes with what it got: the other may go.
    cluster.group(1).transfer_leadership(replica(id));
    cluster.settle_all();
    assert!(cluster.group(id).is_established_leader());
    cluster.change(id, &change(RemoveNode, 1));
    cluster.heal();
}

#[test]
fn given_a_snapshot_when_it_is_installed_then_it_is_one_output_and_nothing_is_said_before_it_is_durable()
 {
    let mut cluster = behind();
    let snapshot = until_snapshot(&mut cluster);
    let index = RaftIndex(snapshot.get_snapshot().get_metadata().index);
    cluster.network.clear();
    let before = cluster.group(3).checkpoint_parts();
    cluster.deliver(snapshot);
    assert_eq!(cluster.group(3).checkpoint_parts(), before, "nothing is durable");

    let mut out = ReadyOutput::default();
    let number = cluster.group(3).ready(&mut out).unwrap();
    let WalRecord::Checkpoint(install) = &out.records[0] else {
        panic!("the snapshot comes first: {:?}", out.records)
    };
    assert!(install.is_install());
    assert_eq!((install.last.index, install.hard_state.commit), (index, index));
    assert_eq!(install.hard_state.term, cluster.group(3).term());
    assert_eq!(install.meta.replica, ReplicaId(3));
    assert!(out.snapshot.is_none() && out.committed.is_empty() && out.messages.is_empty());
    let parts = cluster.group(3).checkpoint_parts();
    assert_eq!(parts, before, "what is durable and applied is what was before");
    assert!(!cluster.group(3).can_restart(), "what is durable is not in memory any more");

    // An election now would look for entries that are gone.
    for _ in 0..200 {
        cluster.group(3).tick();
    }
    assert!(!cluster.group(3).campaign());
    assert_eq!(cluster.group(3).role(), Role::Follower);
    let term = cluster.group(3).term().0;
    let hand_over = Message {
        msg_type: MessageType::MsgTimeoutNow,
        from: 1,
        to: 3,
        term,
        ..Message::default()
    };
    cluster.group(3).step(hand_over).unwrap();
    assert_eq!(cluster.group(3).role(), Role::Follower);

    for record in std::mem::take(&mut out.records) {
        cluster.replica(3).disk.write(&record);
    }
    let mut messages = Vec::new();
    assert!(cluster.group(3).on_persisted(number, &mut messages));
    let answers: Vec<_> =
        messages.iter().map(|m| (m.message.get_msg_type(), m.message.index)).collect();
    assert_eq!(answers, [(MessageType::MsgAppendResponse, index.0)]);
    assert_eq!(cluster.group(3).last_durable().index, index);
    assert!(cluster.group(3).ready(&mut out).is_none());
    let install = out.snapshot.take().unwrap();
    assert_eq!((install.position.index, cluster.group(3).applied()), (index, index));
    assert_eq!(cluster.group(3).applied_end_offset(), install.applied_end_offset);
    assert_eq!(cluster.group(3).end_offset(), install.applied_end_offset);
    assert_eq!(cluster.group(3).checkpoint_parts().log_start, install.position);
    assert!(cluster.group(3).can_restart());
    assert_eq!(cluster.group(3).term_at(RaftIndex(index.0 - 1)), None);
}

#[test]
fn given_an_install_when_it_crashes_at_any_record_then_it_is_there_as_a_whole_or_not_at_all() {
    for records in 0..6 {
        let mut cluster = behind();
        let snapshot = until_snapshot(&mut cluster);
        let before = cluster.replica(3).disk.last();
        let index = RaftIndex(snapshot.get_snapshot().get_metadata().index);
        let term = snapshot.term;
        cluster.network.clear();
        cluster.deliver(snapshot);
        // Entries that follow it come with the same ready.
        let append = append_after(&mut cluster);
        assert_eq!(append.index, index.0);
        cluster.deliver(append);
        cluster.drain(3);
        let (_, written) = &cluster.replica(3).in_flight[0];
        let kinds: Vec<_> = written.iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 2, "the snapshot and the entry: {written:?}");
        cluster.replica(3).crash(records);
        let found = cluster.replica(3).disk.last();
        assert!(if records == 0 { found == before } else { found.index >= index }, "{found:?}");
        cluster.replica(3).start();
        if records > 0 {
            assert_eq!(cluster.group(3).applied(), index);
            assert_eq!(cluster.replica(3).state.len() as u64, index.0);
            assert!(cluster.group(3).term() >= Term(term));
        }
        cluster.network.clear();
        cluster.heal();
    }
}

#[test]
fn given_a_second_snapshot_when_the_first_is_not_durable_then_both_are_installed_in_order() {
    for late in [false, true] {
        let mut cluster = behind();
        let first = until_snapshot(&mut cluster);
        cluster.network.clear();
        cluster.deliver(first.clone());
        cluster.drain(3);
        assert_eq!(cluster.replica(3).in_flight.len(), 1);
        // The leader thinks that the first is lost, and has cut its log since.
        cut_after_ten(&mut cluster, &[1, 2]);
        cluster.group(1).report_snapshot_lost(replica(3));
        let mut heartbeat = Message::default();
        heartbeat.set_msg_type(MessageType::MsgHeartbeatResponse);
        (heartbeat.from, heartbeat.to, heartbeat.term) = (3, 1, first.term);
        cluster.group(1).step(heartbeat).unwrap();
        let mut second = None;
        for _ in 0..10 {
            cluster.drain(1);
            for message in std::mem::take(&mut cluster.network) {
                if is_snapshot(&message) {
                    second = Some(message);
                } else if message.to == 3 && message.get_msg_type() == MessageType::MsgAppend {
                    // Probed behind the first snapshot: it answers as a follower does that does not have it.
                    let mut reject = Message::default();
                    reject.set_msg_type(MessageType::MsgAppendResponse);
                    (reject.from, reject.to, reject.term) = (3, 1, message.term);
                    (reject.index, reject.reject) = (message.index, true);
                    cluster.group(1).step(reject).unwrap();
                }
            }
        }
        let second = second.expect("a second snapshot");
        let index = |message: &Message| message.get_snapshot().get_metadata().index;
        assert!(index(&second) > index(&first));
        if late {
            cluster.persist_one(3);
            cluster.deliver(second);
            cluster.settle(3);
            assert_eq!(cluster.replica(3).installs, 2);
        } else {
            cluster.deliver(second);
            cluster.drain(3);
            assert_eq!(cluster.replica(3).in_flight.len(), 2);
            cluster.persist_one(3);
            cluster.drain(3);
            assert_eq!(cluster.replica(3).installs, 1, "the first is durable, so it is installed");
            cluster.replica(3).checkpoint();
            cluster.settle(3);
            assert_eq!(cluster.replica(3).installs, 2);
        }
        cluster.heal();
    }
}

#[test]
fn given_entries_on_their_way_to_the_disk_when_a_snapshot_comes_then_they_are_not_taken_for_committed()
 {
    let mut cluster = behind();
    let snapshot = until_snapshot(&mut cluster);
    cluster.network.clear();
    // Replica 3 writes entries of a leader that was deposed, behind what is committed there.
    let entry = {
        let mut other = Cluster::new(3);
        other.elect(1);
        other.propose(1, 2).unwrap();
        other.settle_all();
        other.propose(1, 7).unwrap();
        other.drain(1);
        other.network.iter().find(|m| m.to == 3 && !m.get_entries().is_empty()).cloned().unwrap()
    };
    let commit = cluster.group(3).commit_index();
    cluster.group(3).step(Message { commit: 0, term: snapshot.term, ..entry }).unwrap();
    cluster.drain(3);
    assert_eq!(cluster.replica(3).in_flight.len(), 1);
    cluster.deliver(snapshot);
    cluster.persist_one(3);
    let parts = cluster.group(3).checkpoint_parts();
    assert!(parts.last.index > commit, "they are durable");
    assert!(parts.hard_state.commit <= commit, "and not known to be committed: {parts:?}");
    cluster.settle(3);
    assert_eq!(cluster.replica(3).installs, 1);
    cluster.heal();
}

#[test]
fn given_committed_entries_that_are_not_applied_when_a_snapshot_comes_then_it_waits_for_them() {
    let mut cluster = behind();
    let snapshot = until_snapshot(&mut cluster);
    let index = RaftIndex(snapshot.get_snapshot().get_metadata().index);
    cluster.replica(3).crash(0);
    cluster.replica(3).start();
    cluster.network.clear();
    cluster.drain(3);
    assert!(!cluster.replica(3).committed.is_empty(), "handed out and not applied");
    cluster.deliver(snapshot);
    assert!(!cluster.group(3).has_ready(), "first what was handed out");
    cluster.drain(3);
    assert!(cluster.replica(3).in_flight.is_empty());
    cluster.apply(3, usize::MAX);
    assert!(cluster.group(3).has_ready());
    cluster.settle(3);
    assert_eq!(cluster.replica(3).installs, 1);
    assert_eq!(cluster.group(3).applied(), index);
    cluster.heal();
}

#[test]
fn given_a_snapshot_twice_and_late_when_it_arrives_then_it_is_installed_once_and_answered_each_time()
 {
    let mut cluster = behind();
    let snapshot = until_snapshot(&mut cluster);
    let index = snapshot.get_snapshot().get_metadata().index;
    cluster.deliver(snapshot.clone());
    cluster.deliver(snapshot.clone());
    cluster.settle(3);
    cluster.deliver(snapshot.clone());
    cluster.settle(3);
    assert_eq!(cluster.replica(3).installs, 1);
    let answers = cluster.network.iter().filter(|m| m.from == 3 && m.index == index);
    assert!(answers.count() >= 3, "the leader waits for them");
    cluster.heal();
    cluster.deliver(snapshot);
    cluster.heal();
    assert_eq!(cluster.replica(3).installs, 1);
}

#[test]
fn given_a_snapshot_that_is_made_late_when_nobody_needs_it_any_more_then_it_is_dropped() {
    let mut cluster = behind();
    cluster.supplies_snapshots = false;
    cluster.pass(40);
    assert!(cluster.group(1).wants_snapshot());
    cluster.replica(1).begin_snapshot();
    cluster.pass(40);
    assert!(!cluster.group(1).wants_snapshot(), "one at a time");
    // The log is cut beyond it meanwhile.
    cut_after_ten(&mut cluster, &[1, 2]);
    let parts = cluster.replica(1).parts.take().unwrap();
    assert_eq!(cluster.group(1).supply_snapshot(&parts), Ok(false));
    assert!(cluster.group(1).wants_snapshot(), "another is needed");
    cluster.group(1).decline_snapshot();
    assert!(!cluster.group(1).wants_snapshot());
    cluster.pass(40);
    assert!(cluster.group(1).wants_snapshot(), "it asks again");
    // Another leads: nobody asks this one any more.
    cluster.replica(1).begin_snapshot();
    let parts = cluster.replica(1).parts.take().unwrap();
    cluster.elect(2);
    assert_eq!(cluster.group(1).supply_snapshot(&parts), Ok(false));
    cluster.heal();
}

#[test]
fn given_a_state_that_is_too_large_when_it_is_supplied_then_it_is_refused_and_asked_for_again() {
    let mut cluster = behind();
    cluster.supplies_snapshots = false;
    cluster.pass(40);
    let mut parts = cluster.group(1).snapshot_parts();
    parts.state = Bytes::from(vec![0; GROUP_STATE_BYTES_MAX + 1]);
    let refused = cluster.group(1).supply_snapshot(&parts);
    assert!(matches!(refused, Err(SnapshotError::TooLarge { .. })), "{refused:?}");
    assert!(cluster.group(1).wants_snapshot());
    cluster.heal();
}

#[test]
fn given_a_kept_snapshot_when_a_member_is_newer_than_it_then_another_is_made_for_that() {
    let mut cluster = behind();
    drop(until_snapshot(&mut cluster));
    let id = cluster.add_blank();
    cluster.group(1).propose_conf_change(&change(AddLearnerNode, id)).unwrap();
    cluster.settle_all();
    cluster.pass(200);
    assert_eq!(cluster.replica(id).installs, 1);
    cluster.heal();
}

#[test]
fn given_a_joint_configuration_when_it_comes_by_snapshot_then_the_follower_is_in_it() {
    let mut cluster = behind();
    cluster.replica(3).crash(0);
    cluster
        .group(1)
        .propose_conf_change(&support::explicit(&[(AddNode, 2), (RemoveNode, 3)]))
        .unwrap();
    for _ in 0..8 {
        for id in [1, 2] {
            cluster.settle(id);
        }
        for message in std::mem::take(&mut cluster.network) {
            if message.to != 3 {
                cluster.deliver(message);
            }
        }
    }
    assert!(cluster.group(1).members().is_joint());
    for id in [1, 2] {
        cluster.replica(id).checkpoint();
        cluster.compact_all(id);
    }
    cluster.replica(3).start();
    cluster.network.clear();
    cluster.pass(60);
    assert_eq!(cluster.replica(3).installs, 1);
    assert!(cluster.group(3).members().is_joint());
    cluster.replica(3).crash(0);
    cluster.replica(3).start();
    assert!(cluster.group(3).members().is_joint(), "after a restart, too");
    cluster.change(1, &changes(&[]));
    assert!(!cluster.group(1).members().is_joint());
    cluster.heal();
}
