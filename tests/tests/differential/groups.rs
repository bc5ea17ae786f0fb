//! Groups as administrators see them: found, described, listed and deleted.

use chronik_tests::process::fresh_name;
use chronik_tests::raw::RawConnection;
use kafka_protocol::messages::*;

use crate::group_requests::*;
use crate::{Answers, compare, text};

/// How ListGroups tells one of the groups: nothing, if it does not.
fn listed(
    connection: &mut RawConnection,
    version: i16,
    group: &str,
    states: &[&str],
    types: &[&str],
) -> String {
    let all = |words: &[&str]| words.iter().map(|word| text(word)).collect();
    let request =
        ListGroupsRequest::default().with_states_filter(all(states)).with_types_filter(all(types));
    let answer = connection.call(version, &request).unwrap();
    let found = answer.groups.iter().find(|told| told.group_id.as_str() == group);
    let told = found.map(|told| (&told.protocol_type, &told.group_state, &told.group_type));
    format!("{} {told:?}", answer.error_code)
}

fn delete(connection: &mut RawConnection, version: i16, groups: &[&str]) -> Vec<(bool, i16)> {
    let names = groups.iter().map(|group| text(group).into()).collect();
    let request = DeleteGroupsRequest::default().with_groups_names(names);
    let answer = connection.call(version, &request).unwrap();
    let mut told: Vec<_> =
        answer.results.iter().map(|told| (told.group_id.is_empty(), told.error_code)).collect();
    told.sort_unstable();
    told
}

#[test]
fn given_groups_in_each_state_when_described_listed_and_deleted_then_the_answers_are_kafkas() {
    let _held = hold_the_nameless_group();
    compare(|connection, topic| {
        let (stable, completing) = (fresh_name("stable"), fresh_name("completing"));
        let (committed_to, deserted) = (fresh_name("committed"), fresh_name("deserted"));
        let metadata = subscription(topic);
        let me = alone(connection, &Who::new(&stable), &metadata);
        let half = joined(connection, &Who::new(&completing), &metadata);
        committed(connection, &commit(&Who::new(&committed_to), topic, &[(0, 1, None)]));
        let gone = alone(connection, &Who::new(&deserted), &metadata);
        connection.call(LEAVE, &leave(&deserted, &[&gone])).unwrap();
        let groups = [
            ("stable", &*stable),
            ("completing", &*completing),
            ("committed to", &*committed_to),
            ("deserted", &*deserted),
            ("unknown", "no-such-group"),
            ("nameless", ""),
        ];
        let mut answers: Answers = Vec::new();
        for (case, group) in groups {
            for version in 0..=6 {
                let told = described(connection, version, group, version >= 3);
                answers.push(format!("describe v{version} {case}: {told}"));
            }
            answers.push(format!("describe {case}: {}", described(connection, 6, group, false)));
            for version in 0..=5 {
                let told = listed(connection, version, group, &[], &[]);
                answers.push(format!("list v{version} {case}: {told}"));
            }
            for states in [&["Stable"][..], &["stable", "Empty"], &["NoSuchState"], &[""]] {
                let told = listed(connection, 4, group, states, &[]);
                answers.push(format!("list {states:?} {case}: {told}"));
            }
            for types in [&["classic"][..], &["Classic"], &["consumer"], &["NoSuchType"], &[""]] {
                let told = listed(connection, 5, group, &[], types);
                answers.push(format!("list of type {types:?} {case}: {told}"));
            }
        }
        for (case, group) in groups {
            for version in [0, 2, 2] {
                let told = delete(connection, version, &[group]);
                answers.push(format!("delete v{version} {case}: {told:?}"));
            }
            answers.push(format!("deleted {case}: {}", described(connection, 6, group, false)));
        }
        for who in [&me, &half] {
            connection.call(LEAVE, &leave(&who.group, &[who])).unwrap();
        }
        let several = [&*stable, &completing, &stable, "no-such-group", ""];
        answers.push(format!("delete several: {:?}", delete(connection, 2, &several)));
        answers
    });
}

#[test]
fn given_coordinators_of_each_kind_when_sought_then_the_answers_are_kafkas() {
    compare(|connection, _| {
        let mut answers: Answers = Vec::new();
        for version in 0..=6 {
            // Type 1 is that of transactions, which have no coordinator here.
            for kind in [0, 3, -1] {
                if version == 0 && kind != 0 {
                    continue;
                }
                for key in ["a-group", ""] {
                    let request = FindCoordinatorRequest::default();
                    let request = match version {
                        0 => request.with_key(text(key)),
                        1..=3 => request.with_key(text(key)).with_key_type(kind),
                        _ => request.with_key_type(kind).with_coordinator_keys(vec![text(key)]),
                    };
                    let answer = connection.call(version, &request).unwrap();
                    let of_each: Vec<_> = answer
                        .coordinators
                        .iter()
                        .map(|told| (told.error_code, told.node_id.0, told.host.to_string()))
                        .collect();
                    answers.push(format!(
                        "find {key:?} of kind {kind} v{version}: {} node {} host {:?} {of_each:?}",
                        answer.error_code, answer.node_id.0, answer.host
                    ));
                }
            }
        }
        answers
    });
}
