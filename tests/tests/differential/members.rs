//! Members of groups: who may join, sync, beat and leave.

use std::time::Duration;

use bytes::Bytes;
use chronik_tests::process::fresh_name;
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::wait_for;
use kafka_protocol::messages::*;

use crate::group_requests::*;
use crate::{Answers, compare, text};

const REBALANCE_IN_PROGRESS: i16 = 27;
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn given_joins_that_cannot_be_when_sent_then_the_errors_are_kafkas() {
    let _held = hold_the_nameless_group();
    compare(|connection, topic| {
        let metadata = subscription(topic);
        let fresh = || Who::new(&fresh_name("joins"));
        let plain = || join(&fresh(), &metadata);
        let none = Bytes::new();
        // A protocol that is named twice is not here: Kafka never answers it.
        let cases: Vec<(&str, i16, JoinGroupRequest)> = vec![
            ("without an id", 9, plain()),
            ("without an id, as it was before", 3, plain()),
            ("in the first version", 0, plain()),
            ("an empty group", 9, join(&Who::new(""), &metadata)),
            ("an empty group in the first version", 0, join(&Who::new(""), &metadata)),
            ("an unknown member", 9, join(&fresh().member("nobody"), &metadata)),
            ("an unknown static member", 9, join(&fresh().member("no").instance("i"), &metadata)),
            ("a short session", 9, plain().with_session_timeout_ms(1)),
            ("a negative session", 9, plain().with_session_timeout_ms(-1)),
            ("a long session", 9, plain().with_session_timeout_ms(i32::MAX)),
            ("no protocols", 9, plain().with_protocols(vec![])),
            ("no protocol type", 9, plain().with_protocol_type(text(""))),
            ("no metadata", 3, join(&fresh(), &none)),
        ];
        let mut answers: Answers = Vec::new();
        for (case, version, request) in cases {
            let answer = connection.call(version, &request).unwrap();
            answers.push(format!("join {case}: {}", told_of_join(&answer)));
        }
        let there = fresh();
        let member = alone(connection, &there, &metadata);
        let other = || join(&there, &metadata);
        let cases = [
            ("another type", other().with_protocol_type(text("connect"))),
            ("another protocol", other().with_protocols(vec![protocol("sticky", none.clone())])),
            ("no type", other().with_protocol_type(text(""))),
            ("as it is", join(&member, &metadata)),
        ];
        for (case, request) in cases {
            let answer = connection.call(3, &request.clone()).unwrap();
            answers.push(format!("join with {case}: {}", told_of_join(&answer)));
        }
        answers.push(format!("beat then: {}", beat(connection, &member)));
        let left = connection.call(LEAVE, &leave(&there.group, &[&member])).unwrap();
        answers.push(format!("leave then: {}", told_of_leave(&left)));
        answers.push(format!("left: {}", described(connection, 6, &there.group, true)));
        answers
    });
}

#[test]
fn given_a_member_when_others_speak_in_its_name_then_the_errors_are_kafkas() {
    let _held = hold_the_nameless_group();
    compare(|connection, topic| {
        let metadata = subscription(topic);
        let group = fresh_name("names");
        let me = joined(connection, &Who::new(&group), &metadata);
        let stale = me.generation(me.generation - 1);
        let coming = me.generation(me.generation + 1);
        let nobody = me.member("nobody");
        let wrong: [(&str, Who); 9] = [
            ("stale", stale.clone()),
            ("not there yet", coming.clone()),
            ("of nobody", nobody.clone()),
            ("of nobody, stale", nobody.generation(0)),
            ("without a member", me.member("")),
            ("without a generation", me.generation(-1)),
            ("of an unknown instance", me.instance("nowhere")),
            ("of an unknown group", me.of("no-such-group")),
            ("of no group", me.of("")),
        ];
        let mut answers: Answers = Vec::new();
        for state in ["before the assignment", "stable"] {
            for (case, who) in &wrong {
                answers.push(format!("beat {state}, {case}: {}", beat(connection, who)));
                let synced = connection.call(SYNC, &sync(who, &[])).unwrap();
                answers.push(format!("sync {state}, {case}: {}", told_of_sync(&synced)));
                let request = commit(who, topic, &[(0, 1, None)]);
                let codes = committed(connection, &request);
                answers.push(format!("commit {state}, {case}: {codes:?}"));
            }
            answers.push(format!("beat {state}: {}", beat(connection, &me)));
            let codes = committed(connection, &commit(&me, topic, &[(0, 1, None)]));
            answers.push(format!("commit {state}: {codes:?}"));
            for (case, request) in [
                ("type", sync(&me, &[&me]).with_protocol_type(Some(text("connect")))),
                ("protocol", sync(&me, &[&me]).with_protocol_name(Some(text("sticky")))),
                ("member", sync(&me, &[&me, &nobody])),
            ] {
                let synced = connection.call(SYNC, &request).unwrap();
                answers.push(format!("sync {state}, other {case}: {}", told_of_sync(&synced)));
            }
            answers.push(format!("{state}: {}", described(connection, 6, &group, true)));
        }
        let leaves: Vec<(&str, &str, Vec<&Who>)> = vec![
            ("nobody", &group, vec![&nobody]),
            ("in no group", "", vec![&me]),
            ("in an unknown group", "no-such-group", vec![&me]),
            ("without anybody", &group, vec![]),
            ("and nobody", &group, vec![&nobody, &me]),
            ("again", &group, vec![&me]),
        ];
        for (case, group, leaving) in leaves {
            let left = connection.call(LEAVE, &leave(group, &leaving)).unwrap();
            answers.push(format!("leave {case}: {}", told_of_leave(&left)));
        }
        for (version, member) in [(0, "nobody"), (2, "nobody"), (2, "")] {
            let request = LeaveGroupRequest::default()
                .with_group_id(text(&group).into())
                .with_member_id(text(member));
            let left = connection.call(version, &request).unwrap();
            answers.push(format!("leave {member:?} v{version}: {}", told_of_leave(&left)));
        }
        answers.push(format!("left: {}", described(connection, 6, &group, true)));
        answers
    });
}

#[test]
fn given_a_second_member_when_it_joins_then_each_step_of_the_rebalance_is_kafkas() {
    compare(|connection, topic| {
        let metadata = subscription(topic);
        let group = fresh_name("second");
        let mut second = connection.open_another().unwrap();
        let mut answers: Answers = Vec::new();
        let first = alone(connection, &Who::new(&group), &metadata);
        let asked = second.call(JOIN, &join(&Who::new(&group), &metadata)).unwrap();
        answers.push(format!("first answer: {}", told_of_join(&asked)));
        let pending = Who::new(&group).member(&asked.member_id);
        answers.push(format!("beat of who is to join: {}", beat(connection, &pending)));
        let sent = second.send(JOIN, &join(&pending, &metadata)).unwrap();
        wait_for("the rebalance", DEADLINE, || {
            (beat(connection, &first) == REBALANCE_IN_PROGRESS).then_some(())
        })
        .unwrap();
        answers.push(format!("preparing: {}", described(connection, 6, &group, false)));
        let codes = committed(connection, &commit(&first, topic, &[(0, 1, None)]));
        answers.push(format!("commit while preparing: {codes:?}"));
        let synced = connection.call(SYNC, &sync(&first, &[&first])).unwrap();
        answers.push(format!("sync while preparing: {}", told_of_sync(&synced)));
        let rejoined = connection.call(JOIN, &join(&first, &metadata)).unwrap();
        answers.push(format!("first joins again: {}", told_of_join(&rejoined)));
        let joined = second.receive::<JoinGroupRequest>(JOIN, sent).unwrap();
        answers.push(format!("second joins: {}", told_of_join(&joined)));
        let first = first.generation(rejoined.generation_id);
        let other = pending.generation(joined.generation_id);
        for (case, who) in [("first", &first), ("second", &other)] {
            answers.push(format!("beat of the {case} while completing: {}", beat(connection, who)));
            let codes = committed(connection, &commit(who, topic, &[(0, 1, None)]));
            answers.push(format!("commit of the {case} while completing: {codes:?}"));
        }
        answers.push(format!("completing: {}", described(connection, 6, &group, false)));
        let waits = second.send(SYNC, &sync(&other, &[])).unwrap();
        let synced = connection.call(SYNC, &sync(&first, &[&first, &other])).unwrap();
        answers.push(format!("sync of the first: {}", told_of_sync(&synced)));
        let synced = second.receive::<SyncGroupRequest>(SYNC, waits).unwrap();
        answers.push(format!("sync of the second: {}", told_of_sync(&synced)));
        let same = second.call(JOIN, &join(&other, &metadata)).unwrap();
        answers.push(format!("second joins as it is: {}", told_of_join(&same)));
        answers.push(format!("beat of the first after it: {}", beat(connection, &first)));
        let left = second.call(LEAVE, &leave(&group, &[&other])).unwrap();
        answers.push(format!("second leaves: {}", told_of_leave(&left)));
        answers.push(format!("beat when it has left: {}", beat(connection, &first)));
        connection.call(LEAVE, &leave(&group, &[&first])).unwrap();
        answers
    });
}

/// What somebody who has lost its instance to another is told, whatever it asks for.
fn fenced(connection: &mut RawConnection, case: &str, who: &Who, topic: &str) -> Answers {
    let metadata = subscription(topic);
    let mut told = vec![format!("{case}: beat {}", beat(connection, who))];
    let joined = connection.call(JOIN, &join(who, &metadata)).unwrap();
    told.push(format!("{case}: join {}", told_of_join(&joined)));
    let synced = connection.call(SYNC, &sync(who, &[])).unwrap();
    told.push(format!("{case}: sync {}", told_of_sync(&synced)));
    let codes = committed(connection, &commit(who, topic, &[(0, 1, None)]));
    told.push(format!("{case}: commit {codes:?}"));
    let left = connection.call(LEAVE, &leave(&who.group, &[who])).unwrap();
    told.push(format!("{case}: leave {}", told_of_leave(&left)));
    told
}

#[test]
fn given_a_static_member_when_it_starts_again_then_who_is_fenced_is_as_in_kafka() {
    compare(|connection, topic| {
        let metadata = subscription(topic);
        let group = fresh_name("static");
        let unknown = Who::new(&group).instance("one");
        let mut answers: Answers = Vec::new();
        let first = connection.call(JOIN, &join(&unknown, &metadata)).unwrap();
        answers.push(format!("static join: {}", told_of_join(&first)));
        let old = unknown.member(&first.member_id).generation(first.generation_id);
        let synced = connection.call(SYNC, &sync(&old, &[&old])).unwrap();
        answers.push(format!("static sync: {}", told_of_sync(&synced)));
        let again = connection.call(JOIN, &join(&unknown, &metadata)).unwrap();
        answers.push(format!("static join again: {}", told_of_join(&again)));
        answers.push(format!("another id: {}", again.member_id != first.member_id));
        let new = unknown.member(&again.member_id).generation(again.generation_id);
        answers.push(format!("beat of the new: {}", beat(connection, &new)));
        let synced = connection.call(SYNC, &sync(&new, &[])).unwrap();
        answers.push(format!("sync of the new: {}", told_of_sync(&synced)));
        answers.push(format!("stable: {}", described(connection, 6, &group, true)));
        answers.push(format!("stable, v3: {}", described(connection, 3, &group, true)));
        answers.extend(fenced(connection, "old", &old, topic));
        let nameless = Who { instance: None, ..old.clone() };
        answers.extend(fenced(connection, "old without its instance", &nameless, topic));
        answers.extend(fenced(connection, "unknown instance", &new.instance("two"), topic));
        let other = subscription("another");
        let changed = connection.call(JOIN, &join(&unknown, &other)).unwrap();
        answers.push(format!("static join, otherwise subscribed: {}", told_of_join(&changed)));
        let by_instance = unknown.clone();
        let left = connection.call(LEAVE, &leave(&group, &[&by_instance, &by_instance])).unwrap();
        answers.push(format!("leave by instance, twice: {}", told_of_leave(&left)));
        answers.push(format!("left: {}", described(connection, 6, &group, true)));
        answers
    });
}
