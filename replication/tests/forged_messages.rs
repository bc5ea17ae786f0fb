//! What a forged or outdated peer may say to a group of three: it is refused, or it does no lasting harm. Nothing that
//! any peer says ends the process but a leader's commit beyond the log.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use std::collections::VecDeque;

use bytes::Bytes;
use chronik_engine::ids::{RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{EntryKind, LogEntry};
use chronik_replication::{
    Entry, EntryType, Message, MessageType, RaftGroup, ReadyNumber, ReadyOutput, Role, StepError,
};
use proptest::prelude::*;
use protobuf::SingularPtrField;
use raft::eraftpb::Snapshot;
use support::Cluster;

/// Replica ids of placements that are no more.
const FORMER: u64 = 77;
const TRANSFER: &[u8] = b"CampaignTransfer";

/// What peers say to each other.
const TYPES: [MessageType; 10] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgSnapshot,
];

/// Three voters; 1 leads, all hold two entries of term 1, the second a batch of offsets 0 to 4.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 5).unwrap();
    cluster.settle_all();
    cluster.tick_all(20);
    cluster.settle_all();
    cluster
}

fn message(msg_type: MessageType, from: u64, to: u64) -> Message {
    Message { msg_type, from, to, term: 1, ..Message::default() }
}

#[test]
fn given_messages_for_a_former_placement_when_stepped_then_all_are_refused() {
    let mut cluster = cluster();
    for msg_type in TYPES {
        for at in [1, 2] {
            let error = cluster.group(at).step(message(msg_type, 3, FORMER)).unwrap_err();
            assert!(matches!(error, StepError::WrongRecipient { .. }), "{msg_type:?}: {error}");
        }
    }
}

#[test]
fn given_answers_of_a_former_placement_when_stepped_then_they_count_for_nothing() {
    let mut cluster = cluster();
    for msg_type in [
        MessageType::MsgAppendResponse,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgTimeoutNow,
    ] {
        for term in [1, 2, 1_000] {
            let forged = Message { term, index: 2, ..message(msg_type, FORMER, 1) };
            let error = cluster.group(1).step(forged).unwrap_err();
            assert!(
                matches!(error, StepError::WrongSender { .. } | StepError::NotOurLeader { .. }),
                "{msg_type:?}: {error}"
            );
        }
    }
    assert!(cluster.group(1).is_established_leader());
}

#[test]
fn given_a_former_placement_that_asks_for_votes_when_a_leader_is_there_then_nobody_cares() {
    let mut cluster = cluster();
    for msg_type in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote] {
        for to in [1, 2, 3] {
            let term = 9;
            let asked = Message { term, index: 99, log_term: 8, ..message(msg_type, FORMER, to) };
            cluster.group(to).step(asked).unwrap();
            assert_eq!(cluster.group(to).term(), Term(1));
            assert!(!cluster.group(to).has_ready());
        }
    }
    assert_eq!(cluster.group(2).leader(), Some(ReplicaId(1)));
}

/// Whoever says that the leader sent it is believed, so this costs an election, but nothing else.
#[test]
fn given_a_stranger_that_claims_a_handover_when_it_got_a_vote_then_a_member_leads_again() {
    let mut cluster = cluster();
    let asked = Message {
        term: 2,
        index: 99,
        log_term: 1,
        context: Bytes::from_static(TRANSFER),
        ..message(MessageType::MsgRequestVote, FORMER, 2)
    };
    cluster.group(2).step(asked).unwrap();
    assert_eq!((cluster.group(2).term(), cluster.group(2).leader()), (Term(2), None));
    // The vote goes to somebody whom nobody knows.
    cluster.drain(2);
    cluster.persist_one(2);
    let votes = std::mem::take(&mut cluster.network);
    assert_eq!(votes.iter().map(|vote| vote.to).collect::<Vec<_>>(), [FORMER]);
    cluster.heal();
    assert!(cluster.replicas.iter().any(|replica| replica.is_leader()));
}

#[test]
fn given_a_term_before_an_append_that_cannot_be_when_stepped_then_it_is_refused() {
    let mut cluster = cluster();
    for id in [1, 2, 3] {
        cluster.replica(id).checkpoint();
    }
    cluster.compact_applied(2);
    assert_eq!(cluster.group(2).log_start().index, RaftIndex(2));
    for (index, log_term) in [(2, 0), (2, 2), (2, u64::MAX), (3, 0), (1 << 60, 0), (0, 1)] {
        let forged = Message { index, log_term, ..message(MessageType::MsgAppend, 1, 2) };
        let error = cluster.group(2).step(forged).unwrap_err();
        assert!(matches!(error, StepError::EntryTerm { .. }), "{error}");
        assert!(!cluster.group(2).has_ready(), "nothing is acknowledged");
    }
    assert_eq!(cluster.group(2).last_index(), RaftIndex(2));
    cluster.propose(1, 1).unwrap();
    cluster.settle_all();
    assert_eq!(cluster.group(2).last_index(), RaftIndex(3));
}

/// One of three in some state, and what the test knows of it.
fn subject(state: usize) -> RaftGroup {
    let mut cluster = cluster();
    if state >= 2 {
        // An entry that is on this disk and nowhere else.
        cluster.propose(1, 1).unwrap();
        cluster.drain(1);
        for message in std::mem::take(&mut cluster.network) {
            if message.to == 2 {
                cluster.deliver(message);
            }
        }
        cluster.drain(2);
        cluster.persist_one(2);
        cluster.network.clear();
    }
    let id = if state == 0 { 1 } else { 2 };
    if state == 3 {
        for id in [1, 2, 3] {
            cluster.replica(id).checkpoint();
        }
        cluster.compact_applied(2);
    }
    if state >= 4 {
        for _ in 0..200 {
            cluster.group(2).tick();
        }
        cluster.drain(2);
    }
    if state == 5 {
        let granted = Message {
            term: 2,
            reject: false,
            ..message(MessageType::MsgRequestPreVoteResponse, 3, 2)
        };
        cluster.group(2).step(granted).unwrap();
    }
    let replica = cluster.replica(id);
    let mut group = replica.group.take().unwrap();
    while let Some((number, _)) = replica.in_flight.pop_front() {
        group.on_persisted(number, &mut Vec::new());
    }
    group
}

#[test]
fn given_the_states_of_the_test_below_when_made_then_they_are_what_they_should_be() {
    let roles: Vec<_> = (0..6).map(|state| subject(state).role()).collect();
    let [leader, follower] = [Role::Leader, Role::Follower];
    assert_eq!(roles, [leader, follower, follower, follower, Role::PreCandidate, Role::Candidate]);
    assert_eq!(subject(3).log_start().index, RaftIndex(2));
    assert_eq!(subject(2).last_index(), RaftIndex(3));
    assert_eq!(subject(2).commit_index(), RaftIndex(2));
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        40 => 0_u64..7,
        1 => any::<u64>(),
        1 => prop::sample::select(vec![
            u64::MAX, u64::MAX / 4, u64::MAX / 4 + 1, i32::MAX as u64, 1 << 31, 1 << 63,
        ]),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let types =
        vec![EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2];
    let context = prop_oneof![
        Just(Bytes::new()),
        (0_u8..4, 0_u8..3, 0_u8..9).prop_map(|(kind, count, offset)| {
            let mut context = vec![0; 24];
            (context[0], context[1], context[4], context[8]) = (1, kind, count, offset);
            Bytes::from(context)
        }),
    ];
    let data = prop::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from);
    let numbers = (any_number(), any_number(), any::<bool>());
    (prop::sample::select(types), numbers, context, data).prop_map(
        |(entry_type, (index, term, empty), context, data)| {
            let data = if empty { Bytes::new() } else { data };
            Entry { entry_type, index, term, context, data, ..Entry::default() }
        },
    )
}

/// Of the layout that the data of a snapshot have, with whatever numbers.
fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let id = || prop_oneof![20 => 1_u64..5, 1 => any_number()];
    let ids = move || prop::collection::vec(id(), 0..4);
    let voters = prop_oneof![3 => Just(vec![1_u64, 2, 3]), 1 => ids()];
    let rare = move || prop_oneof![3 => Just(Vec::new()), 1 => ids()];
    let lists = (voters, rare(), rare(), rare(), prop::bool::weighted(0.1));
    let runs = prop_oneof![
        3 => (1_u64..4).prop_map(|epoch| vec![(epoch, 1, 0)]),
        1 => prop::collection::vec((any_number(), any_number(), any_number()), 0..3),
    ];
    let numbers = (any_number(), any_number(), any_number(), any_number(), any::<bool>());
    (lists, runs, numbers).prop_map(|(lists, runs, (index, term, end, start, fits))| {
        let term = runs.last().filter(|_| fits).map_or(term, |run| run.0);
        let mut data = vec![1, 0, 0, 0, u8::try_from(runs.len()).unwrap(), 0, 0, 0];
        for number in [end, if fits { 0 } else { start }] {
            data.extend(number.to_le_bytes());
        }
        for number in runs.into_iter().flat_map(|(epoch, index, offset)| [epoch, index, offset]) {
            data.extend(number.to_le_bytes());
        }
        let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        let state = metadata.mut_conf_state();
        (state.voters, state.learners, state.voters_outgoing, ..) = (lists.0, lists.1, lists.2);
        (state.learners_next, state.auto_leave) = (lists.3, lists.4);
        snapshot
    })
}

/// Of any peer, for nobody yet.
fn any_message() -> impl Strategy<Value = Message> {
    let from = prop::sample::select(vec![1_u64, 2, 3, 3, 3, FORMER]);
    let kind = prop::sample::select(TYPES.to_vec());
    let flags = (any::<bool>(), any::<bool>(), 0..4_u8);
    let entries = prop::collection::vec(any_entry(), 0..3);
    let numbers = prop::collection::vec(any_number(), 7);
    let parts = (entries, any_snapshot(), any::<i64>());
    (kind, from, flags, numbers, parts).prop_map(
        |(msg_type, from, (reject, contiguous, context), numbers, parts)| {
            let (mut entries, snapshot, priority) = parts;
            let installs = msg_type == MessageType::MsgSnapshot;
            if installs {
                entries.clear();
            }
            let [term, index, log_term, commit, commit_term, hint, request] = numbers[..] else {
                panic!("seven numbers");
            };
            if contiguous {
                for (entry, place) in entries.iter_mut().zip(1..) {
                    entry.index = index.wrapping_add(place);
                    entry.term = entry.term.clamp(log_term.min(term), term);
                }
            }
            let context = match context {
                0 => Bytes::from_static(TRANSFER),
                1 => Bytes::from_static(b"any"),
                _ => Bytes::new(),
            };
            Message {
                msg_type,
                from,
                term,
                index,
                log_term,
                commit,
                commit_term,
                reject,
                reject_hint: hint,
                request_snapshot: if request < 7 { 0 } else { request },
                context,
                priority,
                entries: entries.into(),
                snapshot: SingularPtrField::from_option(installs.then_some(snapshot)),
                ..Message::default()
            }
        },
    )
}

/// A leader that names a commit beyond the log ends the process, and shall: durable entries are missing.
fn ends_the_process(group: &RaftGroup, message: &Message) -> bool {
    message.msg_type == MessageType::MsgHeartbeat && message.commit > group.last_index().0
}

/// The group, and what is on its way to its disk.
struct Subject {
    group: RaftGroup,
    in_flight: VecDeque<ReadyNumber>,
    committed: VecDeque<LogEntry>,
}

impl Subject {
    fn new(state: usize) -> Subject {
        Subject { group: subject(state), in_flight: VecDeque::new(), committed: VecDeque::new() }
    }

    /// Takes what there is to do, and writes and applies all of it if told so. False if the group must stop.
    fn go_on(&mut self, finish: bool) -> bool {
        loop {
            let group = &mut self.group;
            let mut fetches = Vec::new();
            group.take_fetches(&mut fetches);
            for fetch in fetches {
                group.on_entries_fetched(fetch.from, Vec::new());
            }
            let mut out = ReadyOutput::default();
            self.in_flight.extend(group.ready(&mut out));
            if let Some(install) = &out.snapshot {
                assert_eq!(group.applied(), install.position.index);
                assert!(self.committed.is_empty());
            }
            self.committed.extend(out.committed);
            if finish {
                if let Some(number) = self.in_flight.pop_front() {
                    group.on_persisted(number, &mut out.messages);
                }
                while let Some(entry) = self.committed.pop_front() {
                    let change = entry.kind == EntryKind::ConfChange;
                    if change && group.apply_conf_change(&entry).is_err() {
                        return false;
                    }
                    group.advance_applied(entry.index);
                }
            }
            let idle = !finish || self.in_flight.is_empty();
            if idle && !group.has_ready() {
                return true;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn given_any_messages_of_any_peer_when_stepped_then_the_process_goes_on(
        state in 0_usize..6,
        messages in prop::collection::vec((any_message(), 0..5_u8, any::<bool>()), 1..8),
    ) {
        let mut subject = Subject::new(state);
        for (mut message, ticks, finish) in messages {
            let group = &mut subject.group;
            message.to = group.replica().0;
            if ends_the_process(group, &message) {
                continue;
            }
            let (term, commit) = (group.term(), group.commit_index());
            drop(group.step(message));
            if !subject.go_on(finish) {
                break;
            }
            let group = &mut subject.group;
            prop_assert!(group.term() >= term);
            prop_assert!(group.commit_index() >= commit);
            prop_assert!(group.applied() <= group.commit_index());
            prop_assert!(group.commit_index() <= group.last_index());
            for _ in 0..usize::from(ticks) * 10 {
                subject.group.tick();
                if !subject.go_on(finish) {
                    return Ok(());
                }
            }
        }
    }
}
