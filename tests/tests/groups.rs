//! Consumer groups against the real binary, request by request.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use chronik_tests::http::{self, Metrics};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, encode_frame, topic_name};
use chronik_tests::scratch::wait_for;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteTopicsRequest, DescribeGroupsRequest, FindCoordinatorRequest,
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, ListGroupsRequest,
    OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;

const JOIN: i16 = 9;
const SYNC: i16 = 5;
const COMMIT: i16 = 8;
const LEAVE: i16 = 5;
const DEADLINE: Duration = Duration::from_secs(30);

fn settings() -> Settings {
    Settings::new()
        .with_top("group.initial_rebalance_delay_ms = 0")
        .with_top("group.min_session_timeout_ms = 100")
}

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

/// A connection of one member.
struct Member {
    connection: RawConnection,
    group: String,
    id: String,
    instance: Option<String>,
    generation: i32,
    session_ms: i32,
}

impl Member {
    fn new(addr: SocketAddr, group: &str) -> Member {
        let mut connection = RawConnection::open(addr).unwrap();
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(group)]);
        let found = connection.call(6, &request).unwrap();
        assert_eq!(found.coordinators[0].error_code, 0);
        assert_eq!(found.coordinators[0].port, i32::from(addr.port()));
        Member {
            connection,
            group: group.to_owned(),
            id: String::new(),
            instance: None,
            generation: -1,
            session_ms: 20_000,
        }
    }

    fn join_request(&self) -> JoinGroupRequest {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(text("range"))
            .with_metadata("subscription".into());
        JoinGroupRequest::default()
            .with_group_id(text(&self.group).into())
            .with_session_timeout_ms(self.session_ms)
            .with_rebalance_timeout_ms(30_000)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.instance.as_deref().map(text))
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol])
    }

    /// Gets an id if it has none, and sends its join.
    fn begin_join(&mut self) -> i32 {
        if self.id.is_empty() && self.instance.is_none() {
            let asked = self.connection.call(JOIN, &self.join_request()).unwrap();
            assert_eq!(asked.error_code, code(ResponseError::MemberIdRequired));
            self.id = asked.member_id.to_string();
        }
        self.connection.send(JOIN, &self.join_request()).unwrap()
    }

    fn end_join(&mut self, sent: i32) -> JoinGroupResponse {
        let joined = self.connection.receive::<JoinGroupRequest>(JOIN, sent).unwrap();
        if joined.error_code == 0 {
            self.id = joined.member_id.to_string();
            self.generation = joined.generation_id;
        }
        joined
    }

    fn join(&mut self) -> JoinGroupResponse {
        let sent = self.begin_join();
        self.end_join(sent)
    }

    fn begin_sync(&mut self, given: &[(&str, &str)]) -> i32 {
        let given = given.iter().map(|(id, bytes)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(text(id))
                .with_assignment((*bytes).to_owned().into_bytes().into())
        });
        let request = SyncGroupRequest::default()
            .with_group_id(text(&self.group).into())
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.instance.as_deref().map(text))
            .with_protocol_type(Some(text("consumer")))
            .with_protocol_name(Some(text("range")))
            .with_assignments(given.collect());
        self.connection.send(SYNC, &request).unwrap()
    }

    fn end_sync(&mut self, sent: i32) -> Result<String, i16> {
        let synced = self.connection.receive::<SyncGroupRequest>(SYNC, sent).unwrap();
        match synced.error_code {
            0 => Ok(String::from_utf8(synced.assignment.to_vec()).unwrap()),
            error => Err(error),
        }
    }

    /// Joins alone and takes everything.
    fn join_alone(&mut self) {
        let joined = self.join();
        assert_eq!(joined.error_code, 0);
        let id = self.id.clone();
        let sent = self.begin_sync(&[(&id, "all")]);
        assert_eq!(self.end_sync(sent).unwrap(), "all");
    }

    fn beat(&mut self) -> i16 {
        let request = HeartbeatRequest::default()
            .with_group_id(text(&self.group).into())
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id))
            .with_group_instance_id(self.instance.as_deref().map(text));
        self.connection.call(4, &request).unwrap().error_code
    }

    fn leave_request(&self) -> LeaveGroupRequest {
        let member = MemberIdentity::default().with_member_id(text(&self.id));
        LeaveGroupRequest::default()
            .with_group_id(text(&self.group).into())
            .with_members(vec![member])
    }

    fn leave(&mut self) -> i16 {
        let request = self.leave_request();
        self.connection.call(LEAVE, &request).unwrap().members[0].error_code
    }

    fn commit(&mut self, topic: &str, offset: i64, metadata: &str) -> i16 {
        let request = self.commit_request(topic, offset, metadata);
        self.connection.call(COMMIT, &request).unwrap().topics[0].partitions[0].error_code
    }

    /// Without waiting for the answer.
    fn begin_commit(&mut self, topic: &str, offset: i64) -> i32 {
        let request = self.commit_request(topic, offset, "");
        self.connection.send(COMMIT, &request).unwrap()
    }

    fn end_commit(&mut self, sent: i32) -> i16 {
        let committed = self.connection.receive::<OffsetCommitRequest>(COMMIT, sent).unwrap();
        committed.topics[0].partitions[0].error_code
    }

    fn commit_request(&self, topic: &str, offset: i64, metadata: &str) -> OffsetCommitRequest {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(0)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(3)
            .with_committed_metadata(Some(text(metadata)));
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        OffsetCommitRequest::default()
            .with_group_id(text(&self.group).into())
            .with_generation_id_or_member_epoch(self.generation)
            .with_member_id(text(&self.id))
            .with_topics(vec![topic])
    }

    fn committed(&mut self, topic: &str) -> (i64, i32, String) {
        let asked = OffsetFetchRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partition_indexes(vec![0]);
        let request = OffsetFetchRequest::default()
            .with_group_id(text(&self.group).into())
            .with_topics(Some(vec![asked]));
        let found = self.connection.call(7, &request).unwrap();
        assert_eq!(found.error_code, 0);
        let found = &found.topics[0].partitions[0];
        let metadata = found.metadata.clone().unwrap_or_default().to_string();
        (found.committed_offset, found.committed_leader_epoch, metadata)
    }

    fn state(&mut self) -> String {
        let request = DescribeGroupsRequest::default().with_groups(vec![text(&self.group).into()]);
        self.connection.call(5, &request).unwrap().groups[0].group_state.to_string()
    }

    fn delete_group(&mut self) -> i16 {
        let request =
            DeleteGroupsRequest::default().with_groups_names(vec![text(&self.group).into()]);
        self.connection.call(2, &request).unwrap().results[0].error_code
    }
}

fn topic(broker: &Broker) -> String {
    let name = fresh_name("committed");
    let mut connection = RawConnection::open(broker.ports().kafka_addr()).unwrap();
    connection.ensure_topic_without_fetching(&name).unwrap();
    name
}

#[test]
fn given_two_members_when_they_join_one_after_the_other_then_they_share_and_the_rest_follows() {
    let broker = Broker::start(settings()).unwrap();
    let addr = broker.ports().kafka_addr();
    let group = fresh_name("two");
    let (mut one, mut two) = (Member::new(addr, &group), Member::new(addr, &group));
    one.join_alone();
    assert_eq!((one.generation, one.beat()), (1, 0));
    let joining = two.begin_join();
    wait_for("the first hears of the rebalance", DEADLINE, || {
        (one.beat() == code(ResponseError::RebalanceInProgress)).then_some(())
    })
    .unwrap();
    let leads = one.join();
    let follows = two.end_join(joining);
    assert_eq!((leads.generation_id, follows.generation_id), (2, 2));
    assert_eq!((leads.members.len(), follows.members.len()), (2, 0));
    let waits = two.begin_sync(&[]);
    let (first, second) = (one.id.clone(), two.id.clone());
    let sent = one.begin_sync(&[(&first, "0"), (&second, "1")]);
    assert_eq!(one.end_sync(sent).unwrap(), "0");
    assert_eq!(two.end_sync(waits).unwrap(), "1");
    assert_eq!(one.state(), "Stable");
    assert_eq!(two.leave(), 0);
    assert_eq!(one.beat(), code(ResponseError::RebalanceInProgress));
    one.join_alone();
    assert_eq!(one.generation, 3);
    assert_eq!(two.beat(), code(ResponseError::UnknownMemberId));
    let metrics = http::get(broker.ports().admin_addr(), "/metrics").unwrap();
    let metrics = Metrics::parse(&metrics.body).unwrap();
    assert!(metrics.sum("chronik_group_members") >= 1.0);
    assert!(metrics.sum("chronik_group_rebalances_total") >= 3.0);
}

#[test]
fn given_commits_when_the_broker_is_killed_then_offsets_and_members_are_there_again() {
    let mut broker = Broker::start(settings()).unwrap();
    let (addr, topic) = (broker.ports().kafka_addr(), topic(&broker));
    let mut member = Member::new(addr, &fresh_name("kept"));
    member.join_alone();
    for offset in 1..=50 {
        assert_eq!(member.commit(&topic, offset, &format!("note {offset}")), 0);
    }
    assert_eq!(member.committed(&topic), (50, 3, "note 50".to_owned()));
    for round in 1..=2 {
        broker.kill().unwrap();
        broker.start_again().unwrap();
        member.connection = RawConnection::open(addr).unwrap();
        let kept = 49 + round;
        assert_eq!(member.committed(&topic), (kept, 3, format!("note {kept}")));
        assert_eq!(member.beat(), 0, "its generation goes on");
        let next = kept + 1;
        assert_eq!(member.commit(&topic, next, &format!("note {next}")), 0);
    }
}

#[test]
fn given_a_log_that_rolls_when_the_broker_is_killed_then_the_offsets_come_from_the_checkpoint() {
    let small = Settings { wal_file_bytes: 1 << 20, ..settings() };
    let mut broker = Broker::start(small).unwrap();
    let (addr, topic) = (broker.ports().kafka_addr(), topic(&broker));
    let mut member = Member::new(addr, &fresh_name("rolled"));
    member.join_alone();
    let note = "x".repeat(4_000);
    for offset in 0..1_500 {
        assert_eq!(member.commit(&topic, offset, &note), 0);
    }
    wait_for("what the log no longer needs is given back", DEADLINE, || {
        (broker.wal_files().unwrap().len() < 10).then_some(())
    })
    .unwrap();
    broker.kill().unwrap();
    broker.start_again().unwrap();
    member.connection = RawConnection::open(addr).unwrap();
    assert_eq!(member.committed(&topic), (1_499, 3, note));
}

#[test]
fn given_a_static_member_when_it_starts_again_then_it_has_its_assignment_without_a_rebalance() {
    let broker = Broker::start(settings()).unwrap();
    let addr = broker.ports().kafka_addr();
    let group = fresh_name("static");
    let mut old = Member::new(addr, &group);
    old.instance = Some("instance".to_owned());
    old.join_alone();
    let mut new = Member::new(addr, &group);
    new.instance = Some("instance".to_owned());
    let joined = new.join();
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    assert!(joined.skip_assignment, "it leads, and there is nothing to assign");
    let sent = new.begin_sync(&[]);
    assert_eq!(new.end_sync(sent).unwrap(), "all");
    assert_eq!(new.beat(), 0);
    assert_eq!(old.beat(), code(ResponseError::FencedInstanceId));
}

#[test]
fn given_wrong_commits_when_sent_then_each_gets_kafkas_error_and_nothing_is_committed() {
    let broker = Broker::start(settings()).unwrap();
    let (addr, topic) = (broker.ports().kafka_addr(), topic(&broker));
    let mut member = Member::new(addr, &fresh_name("wrong"));
    member.join_alone();
    assert_eq!(member.commit(&topic, 7, "good"), 0);
    let huge = "x".repeat(4_097);
    assert_eq!(member.commit(&topic, 8, &huge), code(ResponseError::OffsetMetadataTooLarge));
    // It is characters that count, as Java has them.
    for (character, units) in [("\u{e9}", 1), ("\u{1f600}", 2)] {
        let (fits, too_long) = (4_096 / units, 4_096 / units + 1);
        assert_eq!(member.commit(&topic, 6, &character.repeat(fits)), 0);
        let refused = member.commit(&topic, 8, &character.repeat(too_long));
        assert_eq!(refused, code(ResponseError::OffsetMetadataTooLarge));
    }
    assert_eq!(member.commit(&topic, 7, "good"), 0);
    let absent = fresh_name("absent");
    assert_eq!(member.commit(&absent, 8, ""), code(ResponseError::UnknownTopicOrPartition));
    let mut request = member.commit_request(&topic, 7, "good");
    for name in [&topic, &absent] {
        request.topics.push(OffsetCommitRequestTopic::default().with_name(topic_name(name)));
    }
    let told = member.connection.call(COMMIT, &request).unwrap().topics;
    let told: Vec<_> =
        told.iter().map(|topic| (topic.name.to_string(), topic.partitions.len())).collect();
    assert_eq!(
        told,
        [(topic.clone(), 1), (absent.clone(), 0)],
        "one that is known needs partitions"
    );
    member.generation = 0;
    assert_eq!(member.commit(&topic, 8, ""), code(ResponseError::IllegalGeneration));
    member.generation = 1;
    let id = std::mem::replace(&mut member.id, "somebody".to_owned());
    assert_eq!(member.commit(&topic, 8, ""), code(ResponseError::UnknownMemberId));
    (member.id, member.generation) = (String::new(), -1);
    assert_eq!(member.commit(&topic, 8, ""), code(ResponseError::UnknownMemberId));
    assert_eq!(member.committed(&topic), (7, 3, "good".to_owned()));
    (member.id, member.generation) = (id, 1);
    assert_eq!(member.delete_group(), code(ResponseError::NonEmptyGroup));
    assert_eq!(member.leave(), 0);
    assert_eq!(member.state(), "Empty");
    let listed = member.connection.call(5, &ListGroupsRequest::default()).unwrap();
    let listed: Vec<&str> = listed.groups.iter().map(|group| group.group_id.as_str()).collect();
    assert_eq!(listed, [member.group.as_str()]);
    assert_eq!(member.delete_group(), 0);
    assert_eq!(member.state(), "Dead");
    assert_eq!(member.committed(&topic), (-1, -1, String::new()));
    assert_eq!(member.delete_group(), code(ResponseError::GroupIdNotFound));
}

#[test]
fn given_a_member_that_falls_silent_when_its_session_is_over_then_the_group_is_empty() {
    let broker = Broker::start(settings()).unwrap();
    let mut member = Member::new(broker.ports().kafka_addr(), &fresh_name("silent"));
    member.session_ms = 500;
    member.join_alone();
    wait_for("the group is empty", DEADLINE, || (member.state() == "Empty").then_some(())).unwrap();
    assert_eq!(member.beat(), code(ResponseError::UnknownMemberId));
}

#[test]
fn given_a_topic_with_offsets_when_it_is_deleted_and_made_again_then_the_offsets_are_gone() {
    let broker = Broker::start(settings()).unwrap();
    let (addr, topic) = (broker.ports().kafka_addr(), topic(&broker));
    let mut member = Member::new(addr, &fresh_name("outside"));
    assert_eq!(member.commit(&topic, 5, ""), 0, "somebody who is no member");
    let request = DeleteTopicsRequest::default()
        .with_topic_names(vec![topic_name(&topic)])
        .with_timeout_ms(10_000);
    assert_eq!(member.connection.call(5, &request).unwrap().responses[0].error_code, 0);
    member.connection.ensure_topic_without_fetching(&topic).unwrap();
    wait_for("the offset is forgotten", DEADLINE, || {
        (member.committed(&topic).0 == -1).then_some(())
    })
    .unwrap();
}

#[test]
fn given_joins_that_wait_when_the_broker_is_told_to_stop_then_they_are_answered_and_it_ends() {
    let mut broker = Broker::start(settings()).unwrap();
    let addr = broker.ports().kafka_addr();
    let group = fresh_name("parked");
    let (mut one, mut two) = (Member::new(addr, &group), Member::new(addr, &group));
    one.join_alone();
    let joining = two.begin_join();
    wait_for("the join waits", DEADLINE, || {
        (one.beat() == code(ResponseError::RebalanceInProgress)).then_some(())
    })
    .unwrap();
    broker.signal_terminate().unwrap();
    assert_eq!(two.end_join(joining).error_code, code(ResponseError::NotCoordinator));
    assert_eq!(broker.wait_exit().unwrap().code(), Some(0), "{}", broker.log_tail());
}

#[test]
fn given_fifty_members_when_they_join_at_once_then_one_generation_has_them_all() {
    let delayed = Settings::new().with_top("group.initial_rebalance_delay_ms = 500");
    let broker = Broker::start(delayed).unwrap();
    let addr = broker.ports().kafka_addr();
    let group = fresh_name("fifty");
    let mut members: Vec<Member> = (0..50).map(|_| Member::new(addr, &group)).collect();
    let sent: Vec<i32> = members.iter_mut().map(Member::begin_join).collect();
    let mut sizes = Vec::new();
    for (member, sent) in members.iter_mut().zip(sent) {
        let joined = member.end_join(sent);
        assert_eq!((joined.error_code, joined.generation_id), (0, 1));
        sizes.push(joined.members.len());
    }
    sizes.sort_unstable();
    assert_eq!((sizes[0], sizes[48], sizes[49]), (0, 0, 50));
}

#[test]
fn given_commits_sent_at_once_when_written_then_they_share_writes_and_the_last_one_counts() {
    const COMMITS: usize = 200;
    let broker = Broker::start(Settings { shards: 1, ..settings() }).unwrap();
    let (addr, topic) = (broker.ports().kafka_addr(), topic(&broker));
    let mut member = Member::new(addr, &fresh_name("hasty"));
    member.join_alone();
    let blocks = || {
        let metrics = http::get(broker.ports().admin_addr(), "/metrics").unwrap();
        Metrics::parse(&metrics.body).unwrap().sum("chronik_wal_blocks_written_total")
    };
    let before = blocks();
    let mut frames = Vec::new();
    for correlation in 0..COMMITS {
        let request = member.commit_request(&topic, i64::try_from(correlation).unwrap(), "");
        let correlation = i32::try_from(correlation).unwrap();
        frames.extend(encode_frame(COMMIT, correlation, &request).unwrap());
    }
    member.connection.write(&frames).unwrap();
    for correlation in 0..COMMITS {
        assert_eq!(member.end_commit(i32::try_from(correlation).unwrap()), 0);
    }
    let written = blocks() - before;
    assert!(written < COMMITS as f64 / 4.0, "{written} blocks for {COMMITS} commits");
    let last = i64::try_from(COMMITS).unwrap() - 1;
    assert_eq!(member.committed(&topic).0, last);
    // What comes behind leaving does not overtake it.
    let commit = member.begin_commit(&topic, last + 1);
    let request = member.leave_request();
    let leave = member.connection.send(LEAVE, &request).unwrap();
    let late = member.begin_commit(&topic, last + 2);
    assert_eq!(member.end_commit(commit), 0);
    let left = member.connection.receive::<LeaveGroupRequest>(LEAVE, leave).unwrap();
    assert_eq!(left.members[0].error_code, 0);
    assert_eq!(member.end_commit(late), code(ResponseError::UnknownMemberId));
    assert_eq!(member.committed(&topic).0, last + 1);
}
