//! Messages that no correct peer sends are refused before raft-rs sees them; what a leader says is never softened.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use bytes::Bytes;
use chronik_engine::ids::ReplicaId;
use chronik_replication::{Entry, EntryError, EntryType, Message, MessageType, StepError};
use support::Cluster;

/// Three voters and a learner (4); 1 leads, all hold two entries of term 1, the second a batch of offsets 0 to 4.
fn cluster() -> Cluster {
    let mut cluster = Cluster::with_learners(3, 1);
    cluster.elect(1);
    cluster.propose(1, 5).unwrap();
    cluster.settle_all();
    assert!(cluster.network.is_empty());
    cluster
}

fn message(msg_type: MessageType, from: u64, to: u64) -> Message {
    Message { msg_type, from, to, term: 1, ..Message::default() }
}

fn refused(cluster: &mut Cluster, at: u64, message: Message) -> StepError {
    let before = format!("{:?}", cluster.group(at));
    let error = cluster.group(at).step(message).unwrap_err();
    assert_eq!(format!("{:?}", cluster.group(at)), before, "nothing has changed");
    error
}

#[test]
fn given_a_message_for_another_or_from_itself_when_stepped_then_it_is_refused() {
    let mut cluster = cluster();
    let error = refused(&mut cluster, 2, message(MessageType::MsgHeartbeat, 1, 3));
    assert!(matches!(error, StepError::WrongRecipient { to: ReplicaId(3) }));
    for from in [0, 2] {
        let error = refused(&mut cluster, 2, message(MessageType::MsgHeartbeat, from, 2));
        assert!(matches!(error, StepError::WrongSender { .. }));
    }
}

#[test]
fn given_local_and_forwarded_types_when_they_come_from_a_peer_then_they_are_refused() {
    let mut cluster = cluster();
    for msg_type in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgCheckQuorum,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgTransferLeader,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
    ] {
        let error = refused(&mut cluster, 1, message(msg_type, 2, 1));
        assert!(matches!(error, StepError::UnexpectedType { .. }), "{msg_type:?}: {error}");
    }
    let error = refused(&mut cluster, 2, message(MessageType::MsgSnapshot, 1, 2));
    assert!(matches!(error, StepError::UnexpectedPart { .. }), "{error}");
    let demand = Message { request_snapshot: 1, ..message(MessageType::MsgAppendResponse, 2, 1) };
    let error = refused(&mut cluster, 1, demand);
    assert!(matches!(error, StepError::UnexpectedPart { .. }), "{error}");
}

#[test]
fn given_absurd_numbers_when_stepped_then_they_are_refused() {
    let mut cluster = cluster();
    for term in [0, 1 << 40, u64::MAX] {
        let forged = Message { term, ..message(MessageType::MsgHeartbeat, 1, 2) };
        assert!(matches!(refused(&mut cluster, 2, forged), StepError::AbsurdTerm { .. }));
    }
    let forged = Message { commit: u64::MAX, ..message(MessageType::MsgHeartbeat, 1, 2) };
    assert!(matches!(refused(&mut cluster, 2, forged), StepError::AbsurdPosition { .. }));
    let forged = Message { index: u64::MAX, ..message(MessageType::MsgAppend, 1, 2) };
    assert!(matches!(refused(&mut cluster, 2, forged), StepError::AbsurdPosition { .. }));
}

#[test]
fn given_a_second_leader_in_a_term_when_it_sends_then_it_is_refused() {
    let mut cluster = cluster();
    for msg_type in [MessageType::MsgHeartbeat, MessageType::MsgAppend] {
        let error = refused(&mut cluster, 2, message(msg_type, 3, 2));
        assert!(matches!(error, StepError::SecondLeader { .. }), "{error}");
        let error = refused(&mut cluster, 1, message(msg_type, 3, 1));
        assert!(matches!(error, StepError::SecondLeader { .. }), "{error}");
    }
}

#[test]
fn given_a_commit_beyond_the_log_when_a_learner_or_stranger_names_it_then_it_is_refused() {
    let mut cluster = cluster();
    for from in [4, 77] {
        let forged = Message { term: 2, commit: 3, ..message(MessageType::MsgHeartbeat, from, 2) };
        let error = refused(&mut cluster, 2, forged);
        assert!(matches!(error, StepError::ImplausibleCommit { .. }), "{error}");
    }
    // The entries that make it a voter may be on their way: unanswered, it would wait with them for ever.
    let stranger = Message { term: 2, commit: 1, ..message(MessageType::MsgHeartbeat, 77, 2) };
    cluster.group(2).step(stranger).unwrap();
}

#[test]
#[should_panic(expected = "to_commit 3 is out of range [last_index 2]")]
fn given_a_commit_beyond_the_log_when_the_leader_names_it_then_the_process_ends() {
    let mut cluster = cluster();
    let lost = Message { commit: 3, ..message(MessageType::MsgHeartbeat, 1, 2) };
    drop(cluster.group(2).step(lost));
}

#[test]
fn given_an_answer_for_an_entry_that_does_not_exist_when_stepped_then_it_is_refused() {
    let mut cluster = cluster();
    let forged = Message { index: 3, ..message(MessageType::MsgAppendResponse, 2, 1) };
    let error = refused(&mut cluster, 1, forged);
    assert!(matches!(error, StepError::IndexBeyondLog { .. }), "{error}");
    let stranger = Message { index: 1, ..message(MessageType::MsgAppendResponse, 77, 1) };
    let error = refused(&mut cluster, 1, stranger);
    assert!(matches!(error, StepError::WrongSender { .. }), "{error}");
}

#[test]
fn given_entries_that_cannot_follow_when_appended_then_they_are_refused() {
    let mut cluster = cluster();
    let good = {
        cluster.propose(1, 2).unwrap();
        cluster.drain(1);
        let appends = std::mem::take(&mut cluster.network);
        appends.into_iter().find(|message| message.to == 2).unwrap()
    };
    assert_eq!((good.index, good.entries.len()), (2, 1));
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut forged = good.clone();
        change(&mut forged.mut_entries()[0]);
        forged
    };
    let error = refused(&mut cluster, 2, with(&|entry| entry.index = 4));
    assert!(matches!(error, StepError::EntryGap { expected: 3, found: 4 }), "{error}");
    for term in [0, 2] {
        let error = refused(&mut cluster, 2, with(&|entry| entry.term = term));
        assert!(matches!(error, StepError::EntryTerm { .. }), "{error}");
    }
    let contexts: [&[u8]; 3] = [b"", b"short", &[0; 24]];
    for context in contexts {
        let context = Bytes::from_static(context);
        let error = refused(&mut cluster, 2, with(&|entry| entry.context = context.clone()));
        assert!(matches!(error, StepError::Entry { .. }), "{error}");
    }
    let error = refused(&mut cluster, 2, with(&|e| e.entry_type = EntryType::EntryConfChange));
    assert!(matches!(error, StepError::Entry { .. }), "{error}");
    // The offsets of another log: 7 where the log ends at 5.
    let mut context = good.entries[0].context.to_vec();
    context[8] = 7;
    let error = refused(&mut cluster, 2, with(&|e| e.context = Bytes::from(context.clone())));
    assert!(matches!(error, StepError::Entry { .. }), "{error}");

    // Changes of the members that would stop every replica once they are committed: no such field, bytes after the end
    // of what is known, a member without an id, and more than any group has.
    let kind_of_change = |e: &mut Entry, data: &[u8]| {
        let mut context = e.context.to_vec();
        (context[1], context[4]) = (3, 0);
        e.entry_type = EntryType::EntryConfChangeV2;
        (e.context, e.data) = (context.into(), Bytes::copy_from_slice(data));
    };
    let many = [0x12, 0x04, 0x08, 0x01, 0x10, 0x07].repeat(1_000);
    let changes: [&[u8]; 5] =
        [b"\x0b", b"\xff", &[0x12, 0x00], &[0x12, 0x04, 8, 1, 0x10, 7, 0x78, 1], &many];
    for data in changes {
        let error = refused(&mut cluster, 2, with(&|e| kind_of_change(e, data)));
        let StepError::Entry { source: EntryError::Change { .. }, .. } = error else {
            panic!("{data:?}: {error:?}");
        };
    }

    cluster.deliver(good);
    cluster.settle_all();
    assert_eq!(cluster.group(2).last_index(), cluster.group(1).last_index());
}

#[test]
fn given_a_handover_of_one_who_does_not_lead_when_stepped_then_no_election_starts() {
    let mut cluster = cluster();
    let error = refused(&mut cluster, 2, message(MessageType::MsgTimeoutNow, 3, 2));
    assert!(matches!(error, StepError::NotOurLeader { .. }), "{error}");
}
