//! The life of a group step by step: elections, proposals, restarts, lost leadership, membership.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use bytes::Bytes;
use chronik_engine::ids::{Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{EntryKind, HardState, LogPosition, WalRecord};
use chronik_replication::{
    ConfChangeType, GroupConfig, MembersError, Message, MessageType, ProposeError, ProposedEntry,
    RaftGroup, ReadyOutput, RecoverError, RecoveredLog, Role,
};
use support::{Cluster, GROUP, Replica, batch, change, changes, explicit, meta, replica};

fn kinds(records: &[WalRecord]) -> Vec<&'static str> {
    let name = |record: &WalRecord| match record {
        WalRecord::Entry { .. } => "entry",
        WalRecord::HardState { .. } => "hard state",
        WalRecord::TruncateAfter { .. } => "truncate",
        _ => "other",
    };
    records.iter().map(name).collect()
}

#[test]
fn given_a_lone_voter_when_it_proposes_then_nothing_commits_before_it_is_persisted() {
    let mut group =
        RaftGroup::new(GroupConfig::new(GROUP, 1), RecoveredLog::created(meta(1, &[1], &[])))
            .unwrap();
    assert!(!group.has_ready());
    assert!(matches!(group.propose(batch(1, 1)), Err(ProposeError::NotLeader { leader: None })));
    assert!(group.campaign());
    assert_eq!(group.propose(batch(1, 3)).unwrap(), (RaftIndex(2), Offset(0)));
    assert_eq!(group.propose(batch(2, 2)).unwrap(), (RaftIndex(3), Offset(3)));

    let mut out = ReadyOutput::default();
    let number = group.ready(&mut out).unwrap();
    assert_eq!(kinds(&out.records), ["entry", "entry", "entry", "hard state"]);
    assert_eq!(out.role.map(|change| (change.role, change.term)), Some((Role::Leader, Term(1))));
    assert!(!group.has_ready());
    assert!(out.committed.is_empty());
    assert_eq!(group.commit_index(), RaftIndex(0));
    assert_eq!(group.last_durable(), LogPosition::default());

    let mut messages = Vec::new();
    assert!(group.on_persisted(number, &mut messages));
    let mut out = ReadyOutput::default();
    assert!(group.ready(&mut out).is_none(), "a commit alone is not worth a write");
    assert!(out.records.is_empty());
    let committed: Vec<_> =
        out.committed.iter().map(|e| (e.index, e.kind, e.base_offset)).collect();
    assert_eq!(
        committed,
        [
            (RaftIndex(1), EntryKind::Noop, Offset(0)),
            (RaftIndex(2), EntryKind::Batch, Offset(0)),
            (RaftIndex(3), EntryKind::Batch, Offset(3)),
        ]
    );
    assert!(messages.is_empty());
    group.advance_applied(RaftIndex(3));
    assert_eq!(group.applied_end_offset(), Offset(5));
    assert!(!group.has_ready());
}

#[test]
fn given_a_kept_back_commit_when_the_next_entry_is_written_then_the_commit_goes_with_it() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    assert_eq!(cluster.replica(1).disk.hard_state().commit, RaftIndex(0));
    cluster.propose(1, 1).unwrap();
    cluster.settle(1);
    let expected = HardState { term: Term(1), vote: replica(1), commit: RaftIndex(1) };
    assert_eq!(cluster.replica(1).disk.hard_state(), expected);
    let parts = cluster.group(1).checkpoint_parts();
    assert_eq!(parts.hard_state.commit, RaftIndex(2), "a checkpoint knows the newest commit");
}

#[test]
fn given_a_restart_from_a_checkpoint_when_it_leads_again_then_it_applies_from_there_and_the_term_rises()
 {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.propose(1, 2).unwrap();
    cluster.settle(1);
    cluster.replica(1).checkpoint();
    cluster.propose(1, 3).unwrap();
    cluster.settle(1);
    cluster.replica(1).crash(0);
    cluster.replica(1).start();

    let group = cluster.group(1);
    assert_eq!((group.applied(), group.applied_end_offset()), (RaftIndex(2), Offset(2)));
    assert_eq!((group.last_index(), group.end_offset()), (RaftIndex(3), Offset(5)));
    assert_eq!(group.commit_index(), RaftIndex(2), "raised to what was applied");
    cluster.settle(1);
    assert_eq!(cluster.replica(1).state.len(), 2, "entry 3 is not known to be committed yet");
    cluster.elect(1);
    assert_eq!(cluster.group(1).term(), Term(2));
    assert_eq!(cluster.replica(1).state.len(), 4, "entry 3 and the no-op, each once");
    let epochs: Vec<_> =
        cluster.group(1).epochs().iter().map(|run| (run.epoch, run.index, run.offset)).collect();
    assert_eq!(epochs, [(Term(1), RaftIndex(1), Offset(0)), (Term(2), RaftIndex(4), Offset(5))]);
}

#[test]
fn given_a_write_in_flight_when_a_checkpoint_is_taken_then_it_says_only_what_is_durable() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.propose(1, 2).unwrap();
    cluster.drain(1);
    let parts = cluster.group(1).checkpoint_parts();
    assert_eq!(parts.last, LogPosition { index: RaftIndex(1), term: Term(1) });
    assert_eq!(parts.applied, RaftIndex(1));
    cluster.settle(1);
    assert_eq!(cluster.group(1).checkpoint_parts().last.index, RaftIndex(2));
}

#[test]
fn given_a_deposed_leader_when_its_entries_are_overwritten_then_the_next_offset_goes_back() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 10).unwrap();
    cluster.settle_all();
    // What leader 1 appends now reaches nobody, though it is on its own disk.
    cluster.propose(1, 5).unwrap();
    cluster.propose(1, 5).unwrap();
    cluster.settle(1);
    cluster.network.clear();
    assert_eq!(cluster.group(1).end_offset(), Offset(20));

    for id in [2, 3] {
        for _ in 0..60 {
            cluster.group(id).tick();
        }
    }
    assert!(cluster.group(2).campaign());
    for _ in 0..6 {
        cluster.settle(2);
        cluster.settle(3);
        for message in std::mem::take(&mut cluster.network) {
            if message.to != 1 {
                cluster.deliver(message);
            }
        }
    }
    assert!(cluster.group(2).is_established_leader());
    assert_eq!(cluster.propose(2, 1).unwrap().1, Offset(10));
    cluster.settle(2);
    cluster.heal();

    assert!(!cluster.group(1).is_leader());
    assert_eq!(cluster.group(1).end_offset(), cluster.group(2).end_offset());
    assert!(cluster.replica(1).acked.iter().all(|(_, base_offset, _)| *base_offset < Offset(10)));
    assert!(matches!(
        cluster.propose(1, 1),
        Err(ProposeError::NotLeader { leader: Some(ReplicaId(2)) })
    ));
}

#[test]
fn given_a_conflicting_suffix_when_it_is_replaced_then_the_records_begin_with_its_truncation() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 5).unwrap();
    cluster.settle(1);
    cluster.network.clear();
    for id in [2, 3] {
        for _ in 0..60 {
            cluster.group(id).tick();
        }
    }
    assert!(cluster.group(2).campaign());
    let mut truncated = Vec::new();
    for _ in 0..20 {
        for id in [2, 3] {
            cluster.settle(id);
        }
        cluster.drain(1);
        for (_, records) in &cluster.replica(1).in_flight {
            if kinds(records).contains(&"truncate") {
                truncated.push(kinds(records));
            }
        }
        cluster.settle(1);
        cluster.tick_all(5);
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
    }
    assert_eq!(truncated.len(), 1, "one replacement");
    assert_eq!(truncated[0][..2], ["truncate", "entry"]);
    assert_eq!(cluster.group(1).end_offset(), Offset(0));
    assert_eq!(cluster.group(1).epochs().len(), 2);
}

#[test]
fn given_a_lone_voter_with_a_learner_when_its_term_is_not_durable_then_nothing_is_sent() {
    let mut cluster = Cluster::with_learners(1, 1);
    assert!(cluster.group(1).campaign());
    cluster.propose(1, 1).unwrap();
    cluster.drain(1);
    assert!(cluster.group(1).is_leader());
    assert!(cluster.network.is_empty(), "a crash now would let it lead term 1 again");
    cluster.persist_one(1);
    assert!(!cluster.network.is_empty());
    cluster.network.clear();
    cluster.tick_all(20);
    cluster.propose(1, 1).unwrap();
    cluster.drain(1);
    assert_eq!(cluster.replica(1).in_flight.len(), 1);
    assert!(!cluster.network.is_empty(), "from then on it sends while it writes");
}

#[test]
fn given_a_follower_when_entries_arrive_then_it_answers_only_once_they_are_durable() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.drain(1);
    let appends = std::mem::take(&mut cluster.network);
    assert_eq!(cluster.replica(1).in_flight.len(), 1, "sent while the leader's write is in flight");
    for message in appends.into_iter().filter(|message| message.to == 2) {
        assert_eq!(message.get_msg_type(), MessageType::MsgAppend);
        cluster.deliver(message);
    }
    cluster.drain(2);
    assert!(cluster.network.is_empty());
    // A heartbeat after it has nothing to write; its answer must not overtake.
    cluster.group(1).tick();
    cluster.tick_all(19);
    cluster.drain(1);
    for message in std::mem::take(&mut cluster.network) {
        if message.to == 2 {
            cluster.deliver(message);
        }
    }
    cluster.drain(2);
    assert!(cluster.network.is_empty());
    cluster.persist_one(2);
    let answers: Vec<_> = cluster.network.iter().map(|m| m.get_msg_type()).collect();
    assert_eq!(answers, [MessageType::MsgAppendResponse, MessageType::MsgHeartbeatResponse]);
}

#[test]
fn given_too_much_uncommitted_when_more_is_proposed_then_it_is_refused_and_takes_no_offset() {
    let mut replica = Replica::new(1, &[1], &[]);
    replica.group = None;
    replica.start_with(GroupConfig {
        uncommitted_bytes_max: 100,
        message_bytes_max: 100,
        ..GroupConfig::new(GROUP, 1)
    });
    let group = replica.group();
    assert!(group.campaign());
    group.propose(batch(1, 1)).unwrap();
    let refused = group.propose(batch(2, 1)).unwrap_err();
    assert!(matches!(refused, ProposeError::Backlogged { uncommitted_bytes: 69 }));
    assert!(refused.is_retriable());
    assert_eq!((group.last_index(), group.end_offset()), (RaftIndex(2), Offset(1)));
}

#[test]
fn given_a_command_when_it_is_proposed_then_it_takes_an_index_and_no_offset() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.propose(1, 4).unwrap();
    let payload = Bytes::from_static(b"create topic");
    let command = ProposedEntry {
        kind: EntryKind::Command,
        offset_count: 0,
        max_timestamp_ms: -1,
        payload: payload.clone(),
    };
    let placed = cluster.group(1).propose(command).unwrap();
    assert_eq!(placed, (RaftIndex(3), Offset(4)));
    cluster.settle(1);
    let applied = cluster.replica(1).state.last().unwrap().clone();
    assert_eq!((applied.kind, applied.base_offset), (EntryKind::Command, Offset(4)));
    assert_eq!(applied.payload.as_ptr(), payload.as_ptr(), "the payload is shared, not copied");
}

#[test]
fn given_a_lone_voter_when_a_learner_joins_and_is_promoted_then_it_gets_the_whole_log() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    for _ in 0..10 {
        cluster.propose(1, 1).unwrap();
        cluster.settle(1);
    }
    // Nothing of it is in memory any more: the learner makes the leader read its own log.
    cluster.replicas.push(Replica::new(2, &[1], &[2]));
    cluster.group(1).propose_conf_change(&change(ConfChangeType::AddLearnerNode, 2)).unwrap();
    assert!(matches!(
        cluster.group(1).propose_conf_change(&change(ConfChangeType::AddNode, 2)),
        Err(ProposeError::ConfChangePending)
    ));
    cluster.settle_all();
    assert_eq!(cluster.group(1).meta().learners, [replica(2)]);
    for _ in 0..20 {
        cluster.tick_all(20);
        cluster.settle_all();
    }
    assert_eq!(cluster.replica(2).state.len(), cluster.replica(1).state.len());

    cluster.group(1).propose_conf_change(&change(ConfChangeType::AddNode, 2)).unwrap();
    cluster.settle_all();
    cluster.tick_all(20);
    cluster.settle_all();
    for id in [1, 2] {
        assert_eq!(cluster.group(id).meta().voters, [replica(1), replica(2)]);
        assert!(cluster.group(id).meta().learners.is_empty());
    }
    // The configuration of a checkpoint is the one as of its applied index, and later changes are applied again.
    cluster.replica(2).crash(0);
    cluster.replica(2).start();
    assert_eq!(cluster.group(2).meta().learners, [replica(2)]);
    cluster.settle_all();
    cluster.tick_all(20);
    cluster.settle_all();
    assert_eq!(cluster.group(2).meta().voters, [replica(1), replica(2)]);
}

#[test]
fn given_a_change_that_cannot_be_applied_when_it_is_proposed_then_it_is_refused() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    let last = cluster.group(1).last_index();
    let remove = change(ConfChangeType::RemoveNode, 1);
    assert!(matches!(
        cluster.group(1).propose_conf_change(&remove),
        Err(ProposeError::ConfChangeInvalid { .. })
    ));
    let nothing = explicit(&[]);
    assert!(matches!(
        cluster.group(1).propose_conf_change(&nothing),
        Err(ProposeError::ConfChangeEmpty)
    ));
    assert!(matches!(
        cluster.group(1).propose_conf_change(&changes(&[])),
        Err(ProposeError::ConfChangeInvalid { .. })
    ));
    let nobody: Vec<_> = (10..200).map(|id| (ConfChangeType::AddLearnerNode, id)).collect();
    assert!(matches!(
        cluster.group(1).propose_conf_change(&changes(&nobody)),
        Err(ProposeError::Members { source: MembersError::TooMany { count: 192 } })
    ));
    assert_eq!(cluster.group(1).last_index(), last);
}

#[test]
fn given_a_handover_when_the_other_has_caught_up_then_it_leads_and_proposals_wait_meanwhile() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.group(1).transfer_leadership(replica(3));
    let refused = cluster.propose(1, 1).unwrap_err();
    assert!(matches!(refused, ProposeError::TransferInProgress { to: ReplicaId(3) }));
    assert!(refused.is_retriable());
    cluster.settle_all();
    assert!(cluster.group(3).is_established_leader());
    assert_eq!(cluster.group(1).leader(), Some(replica(3)));
}

#[test]
fn given_a_lone_voter_when_the_election_timeout_passes_then_it_leads_without_being_asked() {
    let mut cluster = Cluster::new(1);
    cluster.tick_all(59);
    assert_eq!(cluster.group(1).role(), Role::Follower);
    cluster.tick_all(61);
    assert_eq!(cluster.group(1).role(), Role::Leader);
}

#[test]
fn given_replicas_of_one_seed_when_they_draw_timeouts_then_they_differ() {
    let mut cluster = Cluster::new(3);
    let mut first = Vec::new();
    for _ in 0..120 {
        cluster.tick_all(1);
        for id in 1..=3 {
            if cluster.group(id).role() == Role::PreCandidate && !first.contains(&id) {
                first.push(id);
            }
        }
        if first.len() == 1 {
            return;
        }
    }
    panic!("all replicas started their elections in the same tick, or none did: {first:?}");
}

#[test]
fn given_a_compacted_log_when_it_restarts_then_it_goes_on_from_its_new_start() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    for _ in 0..4 {
        cluster.propose(1, 2).unwrap();
        cluster.settle(1);
    }
    cluster.replica(1).checkpoint();
    cluster.compact_applied(1);
    let start = LogPosition { index: RaftIndex(5), term: Term(1) };
    assert_eq!(cluster.group(1).log_start(), start);
    cluster.replica(1).crash(0);
    cluster.replica(1).start();
    assert_eq!(cluster.group(1).log_start(), start);
    assert_eq!(cluster.group(1).end_offset(), Offset(8));
    cluster.heal();
    assert_eq!(cluster.group(1).term_at(RaftIndex(4)), None);
    assert_eq!(cluster.group(1).term_at(RaftIndex(6)), Some(Term(2)));
}

#[test]
fn given_a_commit_below_what_was_applied_when_a_group_starts_then_it_is_raised() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.propose(1, 2).unwrap();
    cluster.settle(1);
    cluster.replica(1).checkpoint();
    let mut recovered = cluster.replica(1).disk.recovered();
    // A block that was taken before the checkpoint and written after it.
    recovered.hard_state.commit = RaftIndex(1);
    let group = RaftGroup::new(GroupConfig::new(GROUP, 1), recovered).unwrap();
    assert_eq!((group.applied(), group.commit_index()), (RaftIndex(2), RaftIndex(2)));
    assert!(!group.has_ready(), "nothing is applied twice");
}

#[test]
fn given_an_entry_of_a_newer_term_than_the_hard_state_when_a_group_starts_then_it_has_no_vote() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let mut recovered = cluster.replica(2).disk.recovered();
    assert_eq!(recovered.hard_state.term, Term(1));
    recovered.last.term = Term(3);
    recovered.entries.last_mut().unwrap().term = Term(3);
    let group = RaftGroup::new(GroupConfig::new(GROUP, 1), recovered).unwrap();
    let HardState { term, vote, .. } = group.checkpoint_parts().hard_state;
    assert_eq!((term, vote), (Term(3), ReplicaId::NONE));
}

#[test]
fn given_a_lone_voter_that_was_deposed_when_its_write_takes_long_then_it_waits_with_its_election() {
    let mut cluster = Cluster::with_learners(1, 1);
    cluster.elect(1);
    cluster.propose(1, 1).unwrap();
    cluster.drain(1);
    let newer = Message {
        msg_type: MessageType::MsgHeartbeatResponse,
        from: 2,
        to: 1,
        term: 5,
        ..Message::default()
    };
    cluster.group(1).step(newer).unwrap();
    assert_eq!(cluster.group(1).role(), Role::Follower);
    cluster.tick_all(200);
    assert!(!cluster.group(1).campaign());
    assert_eq!(cluster.group(1).role(), Role::Follower);
    cluster.settle(1);
    cluster.tick_all(200);
    assert_eq!((cluster.group(1).role(), cluster.group(1).term()), (Role::Leader, Term(6)));
    cluster.settle_all();
    assert_eq!(cluster.replica(1).acked.len(), 1);
}

#[test]
fn given_recovered_parts_that_do_not_fit_when_a_group_starts_then_it_refuses() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.propose(1, 2).unwrap();
    cluster.settle(1);
    let good = cluster.replica(1).disk.recovered();
    let start = |change: &dyn Fn(&mut RecoveredLog)| {
        let mut recovered = good.clone();
        change(&mut recovered);
        RaftGroup::new(GroupConfig::new(GROUP, 1), recovered).map(|_| ())
    };
    start(&|_| {}).unwrap();
    let lost_tail = start(&|log| {
        log.entries.clear();
        log.last = LogPosition::default();
    });
    assert!(matches!(lost_tail, Err(RecoverError::CommitBeyondLog { .. })), "{lost_tail:?}");
    let gap = start(&|log| {
        log.entries.remove(0);
    });
    assert!(matches!(gap, Err(RecoverError::EntryGap { .. })), "{gap:?}");
    let short = start(&|log| log.last.index = RaftIndex(9));
    assert!(matches!(short, Err(RecoverError::LastMismatch { .. })), "{short:?}");
    let offsets = start(&|log| log.entries[1].base_offset = Offset(1));
    assert!(matches!(offsets, Err(RecoverError::OffsetGap { .. })), "{offsets:?}");
    let terms = start(&|log| log.entries[1].term = Term(0));
    assert!(matches!(terms, Err(RecoverError::TermRegressed { .. })), "{terms:?}");
    let epochs = start(&|log| {
        log.epochs.clear();
        log.entries.remove(0);
        log.applied = RaftIndex(1);
    });
    assert!(matches!(epochs, Err(RecoverError::EpochsPartial { .. })), "{epochs:?}");
    let nobody = start(&|log| log.meta.replica = ReplicaId::NONE);
    assert!(matches!(nobody, Err(RecoverError::NoReplica)), "{nobody:?}");
}
