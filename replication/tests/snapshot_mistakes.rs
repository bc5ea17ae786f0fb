//! Snapshots that no correct peer sends, and mistakes in an install that the checks of these tests must see.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use bytes::Bytes;
use chronik_engine::ids::ReplicaId;
use chronik_engine::wal::record::{GroupCheckpoint, HardState, WalRecord};
use chronik_replication::{Message, MessageType, SnapshotError, SnapshotMetadata, StepError};
use support::behind::{append_after, behind, until_snapshot};
use support::{Cluster, replica};

#[test]
fn given_forged_snapshots_when_they_arrive_then_each_is_refused_and_nothing_changes() {
    let mut cluster = behind();
    let good = until_snapshot(&mut cluster);
    let refused = |cluster: &mut Cluster, change: &dyn Fn(&mut Message)| {
        let mut forged = good.clone();
        change(&mut forged);
        let before = format!("{:?}", cluster.group(3));
        let error = cluster.group(3).step(forged).unwrap_err();
        assert_eq!(format!("{:?}", cluster.group(3)), before, "{error:?}");
        error
    };
    let snapshot =
        |cluster: &mut Cluster, change: &dyn Fn(&mut Message)| match refused(cluster, change) {
            StepError::Snapshot { source } => source,
            error => panic!("{error:?}"),
        };
    let error = refused(&mut cluster, &|m| m.from = 2);
    assert!(matches!(error, StepError::SecondLeader { .. }), "{error:?}");
    let error = refused(&mut cluster, &|m| m.set_msg_type(MessageType::MsgHeartbeat));
    assert!(matches!(error, StepError::UnexpectedPart { .. }), "{error:?}");
    let error = refused(&mut cluster, &|m| m.set_entries(vec![Default::default()].into()));
    assert!(matches!(error, StepError::UnexpectedPart { .. }), "{error:?}");
    let meta = |m: &mut Message, change: &dyn Fn(&mut SnapshotMetadata)| {
        change(m.mut_snapshot().mut_metadata());
    };
    let error = snapshot(&mut cluster, &|m| meta(m, &|meta| meta.term = 99));
    assert!(matches!(error, SnapshotError::Position { .. }), "{error:?}");
    let error = snapshot(&mut cluster, &|m| meta(m, &|meta| meta.index = u64::MAX));
    assert!(matches!(error, SnapshotError::Position { .. }), "{error:?}");
    let error = snapshot(&mut cluster, &|m| {
        meta(m, &|meta| meta.mut_conf_state().voters = vec![1, 2]);
    });
    assert_eq!(error, SnapshotError::NotAMember { replica: replica(3) });
    let error = snapshot(&mut cluster, &|m| {
        meta(m, &|meta| meta.mut_conf_state().voters = vec![2, 3]);
    });
    assert_eq!(error, SnapshotError::NotAVoter { replica: replica(1) });
    let error = snapshot(&mut cluster, &|m| {
        meta(m, &|meta| meta.mut_conf_state().learners = vec![1]);
    });
    assert!(matches!(error, SnapshotError::Members { .. }), "{error:?}");
    let error = snapshot(&mut cluster, &|m| m.mut_snapshot().set_data(Bytes::from_static(&[1; 9])));
    assert_eq!(error, SnapshotError::Header);
    // An end before what is committed here.
    let error = snapshot(&mut cluster, &|m| {
        let mut data = m.get_snapshot().data.to_vec();
        data[8..24].fill(0);
        let runs = usize::from(data[4]);
        (0..runs).for_each(|run| data[24 + run * 24 + 16..24 + run * 24 + 24].fill(0));
        m.mut_snapshot().set_data(data.into());
    });
    assert!(matches!(error, SnapshotError::Offsets { .. }), "{error:?}");
    cluster.deliver(good.clone());
    cluster.settle(3);
    // What is committed has one term.
    let error = snapshot(&mut cluster, &|m| {
        meta(m, &|meta| meta.term -= 1);
        let mut data = m.get_snapshot().data.to_vec();
        let last = 24 + (usize::from(data[4]) - 1) * 24;
        data[last] -= 1;
        m.mut_snapshot().set_data(data.into());
    });
    assert!(
        matches!(error, SnapshotError::Conflict { .. } | SnapshotError::Position { .. }),
        "{error:?}"
    );
    cluster.heal();
}

/// Replica 3 with the install on its way to the disk.
fn installing() -> Cluster {
    let mut cluster = behind();
    let snapshot = until_snapshot(&mut cluster);
    cluster.deliver(snapshot);
    cluster.drain(3);
    cluster
}

fn with_install(cluster: &mut Cluster, change: impl FnOnce(&mut GroupCheckpoint)) {
    let (_, records) = &mut cluster.replica(3).in_flight[0];
    let Some(WalRecord::Checkpoint(install)) = records.first_mut() else { panic!("no install") };
    change(install);
}

// The checks are checked: each of these is a mistake that an implementation could make.

#[test]
#[should_panic(expected = "a whole group in one record")]
fn given_an_install_without_a_hard_state_when_it_is_written_then_the_model_sees_it() {
    let mut cluster = installing();
    with_install(&mut cluster, |install| install.hard_state = HardState::default());
    cluster.settle(3);
}

#[test]
#[should_panic(expected = "one vote in each term")]
fn given_an_install_that_forgets_a_vote_when_it_is_written_then_the_model_sees_it() {
    let mut cluster = installing();
    let vote = cluster.replica(3).disk.hard_state().vote;
    assert_ne!(vote, ReplicaId::NONE);
    with_install(&mut cluster, |install| install.hard_state.vote = ReplicaId::NONE);
    cluster.settle(3);
}

#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn given_an_install_with_the_state_of_another_entry_when_it_is_written_then_the_model_sees_it() {
    let mut cluster = installing();
    with_install(&mut cluster, |install| {
        let len = install.state.len() - (8 + 8 + 1 + 8 + 4 + 8 + 1 + 61);
        install.state.truncate(len);
    });
    cluster.settle(3);
}

#[test]
#[should_panic(expected = "entries are contiguous")]
fn given_entries_before_their_snapshot_when_they_are_written_then_the_model_sees_it() {
    let mut cluster = behind();
    let snapshot = until_snapshot(&mut cluster);
    cluster.deliver(snapshot);
    let append = append_after(&mut cluster);
    cluster.deliver(append);
    cluster.drain(3);
    cluster.replica(3).in_flight[0].1.swap(0, 1);
    cluster.settle(3);
}

#[test]
#[should_panic(expected = "as of LogPosition")]
fn given_an_install_with_other_members_when_it_is_handed_out_then_the_checks_see_it() {
    let mut cluster = behind();
    let mut snapshot = until_snapshot(&mut cluster);
    snapshot.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1, 3];
    cluster.deliver(snapshot);
    cluster.settle(3);
}
