//! Offsets of groups: committed, fetched and deleted.

use chronik_tests::process::fresh_name;
use chronik_tests::raw::{RawConnection, topic_name};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::*;

use crate::group_requests::*;
use crate::{Answers, compare, text};

#[test]
fn given_commits_of_all_kinds_when_sent_then_errors_and_offsets_are_kafkas() {
    let _held = hold_the_nameless_group();
    compare(|connection, topic| {
        let group = fresh_name("commits");
        let nobody = Who::new(&group);
        let (longest, too_long) = ("x".repeat(4096), "x".repeat(4097));
        let not_ascii = "ä".repeat(2049);
        let offsets: Vec<(&str, &str, Offset<'_>)> = vec![
            ("plain", topic, (0, 1, Some("a note"))),
            ("no metadata", topic, (0, 2, None)),
            ("the longest metadata", topic, (0, 3, Some(&longest))),
            ("longer metadata", topic, (0, 4, Some(&too_long))),
            ("metadata of many bytes", topic, (0, 5, Some(&not_ascii))),
            ("beyond the end", topic, (0, i64::MAX, None)),
            ("-1", topic, (0, -1, None)),
            ("negative", topic, (0, -5, None)),
            ("unknown partition", topic, (9, 1, None)),
            ("negative partition", topic, (-1, 1, None)),
            ("unknown topic", "no-such-topic", (0, 1, None)),
            ("illegal topic", "a/b", (0, 1, None)),
            ("no topic", "", (0, 1, None)),
        ];
        let mut answers: Answers = Vec::new();
        for (case, topic, offset) in &offsets {
            let request = commit(&nobody, topic, &[*offset]);
            answers.push(format!("commit {case}: {:?}", committed(connection, &request)));
            let told = fetched(connection, 9, &group, Some(&[(topic, &[offset.0])]));
            answers.push(format!("commit {case}, fetched: {told}"));
        }
        let mixed = [(0, 7, None), (9, 7, None), (0, 8, None)];
        let codes = committed(connection, &commit(&nobody, topic, &mixed));
        answers.push(format!("commit of a partition twice and an unknown one: {codes:?}"));
        answers.push(format!("what counts: {}", fetched(connection, 9, &group, None)));
        for (case, who) in [
            ("of no group", nobody.of("")),
            ("of a member of a group that is not there", nobody.of("none").member("m")),
            ("of a generation of a group that is not there", nobody.of("none").generation(3)),
            ("of an instance of a group that is not there", nobody.of("none").instance("i")),
            ("of a member of an empty group", nobody.member("m")),
            ("of a generation of an empty group", nobody.generation(3)),
        ] {
            let request = commit(&who, topic, &[(0, 1, None)]);
            answers.push(format!("commit {case}: {:?}", committed(connection, &request)));
        }
        forget_the_nameless_group(connection);
        for version in 2..=9 {
            let request = commit(&nobody, topic, &[(0, i64::from(version), None), (9, 1, None)]);
            let answer = connection.call(version, &request).unwrap();
            let mut codes: Vec<_> =
                answer.topics[0].partitions.iter().map(|partition| partition.error_code).collect();
            codes.sort_unstable();
            answers.push(format!("commit v{version}: {codes:?}"));
        }
        answers
    });
}

/// What OffsetFetch says of these partitions, or of all.
fn fetched(
    connection: &mut RawConnection,
    version: i16,
    group: &str,
    asked: Option<&[(&str, &[i32])]>,
) -> String {
    if version >= 8 {
        let topics = asked.map(|asked| {
            let topics = asked.iter().map(|(topic, partitions)| {
                OffsetFetchRequestTopics::default()
                    .with_name(topic_name(topic))
                    .with_partition_indexes(partitions.to_vec())
            });
            topics.collect()
        });
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(text(group).into())
            .with_member_epoch(-1)
            .with_topics(topics);
        let request = OffsetFetchRequest::default().with_groups(vec![asked]);
        let answer = connection.call(version, &request).unwrap().groups.remove(0);
        let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let told: Vec<_> = partitions
            .map(|told| {
                let metadata = told.metadata.as_ref().map(|metadata| metadata.len());
                let offset = (told.committed_offset, told.committed_leader_epoch);
                (told.partition_index, told.error_code, offset, metadata)
            })
            .collect();
        return format!("{} {told:?}", answer.error_code);
    }
    let topics = asked.map(|asked| {
        let topics = asked.iter().map(|(topic, partitions)| {
            OffsetFetchRequestTopic::default()
                .with_name(topic_name(topic))
                .with_partition_indexes(partitions.to_vec())
        });
        topics.collect()
    });
    let request =
        OffsetFetchRequest::default().with_group_id(text(group).into()).with_topics(topics);
    let answer = connection.call(version, &request).unwrap();
    let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
    let told: Vec<_> = partitions
        .map(|told| {
            let metadata = told.metadata.as_ref().map(|metadata| metadata.len());
            let offset = (told.committed_offset, told.committed_leader_epoch);
            (told.partition_index, told.error_code, offset, metadata)
        })
        .collect();
    format!("{} {told:?}", answer.error_code)
}

#[test]
fn given_committed_offsets_when_fetched_in_every_version_then_the_answers_are_kafkas() {
    let _held = hold_the_nameless_group();
    compare(|connection, topic| {
        let group = fresh_name("fetches");
        let offsets = [(0, 7, Some("seven"))];
        committed(connection, &commit(&Who::new(&group), topic, &offsets));
        let mut answers: Answers = Vec::new();
        for version in 1..=9 {
            let both: &[(&str, &[i32])] = &[(topic, &[0, 9]), ("no-such-topic", &[0])];
            for (case, group) in [("known", &*group), ("unknown", "no-such-group"), ("no", "")] {
                let told = fetched(connection, version, group, Some(both));
                answers.push(format!("fetch v{version} of a {case} group: {told}"));
                if version >= 2 {
                    let told = fetched(connection, version, group, None);
                    answers.push(format!("fetch v{version} of all of a {case} group: {told}"));
                }
            }
            let told = fetched(connection, version, &group, Some(&[(topic, &[0, 0])]));
            answers.push(format!("fetch twice v{version}: {told}"));
        }
        for (case, member, epoch) in [
            ("nobody", Some("nobody"), 1),
            ("an epoch", None, 3),
            ("nobody without an epoch", Some("nobody"), -1),
        ] {
            let asked = OffsetFetchRequestGroup::default()
                .with_group_id(text(&group).into())
                .with_member_id(member.map(text))
                .with_member_epoch(epoch)
                .with_topics(None);
            let request = OffsetFetchRequest::default().with_groups(vec![asked]);
            let answer = connection.call(9, &request).unwrap().groups.remove(0);
            let topics = answer.topics.len();
            answers.push(format!("fetch by {case}: {} {topics} topics", answer.error_code));
        }
        let asked = |group: &str| {
            OffsetFetchRequestGroup::default()
                .with_group_id(text(group).into())
                .with_member_epoch(-1)
                .with_topics(None)
        };
        let groups = vec![asked(&group), asked("no-such-group"), asked("")];
        let request = OffsetFetchRequest::default().with_groups(groups).with_require_stable(true);
        let answer = connection.call(9, &request).unwrap();
        let mut told: Vec<_> = answer
            .groups
            .iter()
            .map(|told| (told.group_id.starts_with("fetches"), told.error_code, told.topics.len()))
            .collect();
        told.sort_unstable();
        answers.push(format!("fetch of several groups: {told:?}"));
        answers
    });
}

/// The errors of OffsetDelete: that of all, and those of the partitions.
fn deleted(
    connection: &mut RawConnection,
    group: &str,
    asked: &[(&str, &[i32])],
) -> (i16, Vec<(i32, i16)>) {
    let topics = asked.iter().map(|(topic, partitions)| {
        let partition =
            |index: &i32| OffsetDeleteRequestPartition::default().with_partition_index(*index);
        OffsetDeleteRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(partitions.iter().map(partition).collect())
    });
    let request = OffsetDeleteRequest::default()
        .with_group_id(text(group).into())
        .with_topics(topics.collect());
    let answer = connection.call(0, &request).unwrap();
    let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
    let mut codes: Vec<_> =
        partitions.map(|partition| (partition.partition_index, partition.error_code)).collect();
    codes.sort_unstable();
    (answer.error_code, codes)
}

#[test]
fn given_offsets_when_deleted_then_the_errors_are_kafkas() {
    let _held = hold_the_nameless_group();
    compare(|connection, topic| {
        let metadata = subscription("another");
        let mut answers: Answers = Vec::new();
        let group = fresh_name("deletes");
        let me = alone(connection, &Who::new(&group), &subscription(topic));
        committed(connection, &commit(&me, topic, &[(0, 1, None)]));
        let connect = fresh_name("connects");
        let request = join(&Who::new(&connect), &metadata).with_protocol_type(text("connect"));
        let worker = connection.call(3, &request).unwrap();
        let worker = Who::new(&connect).member(&worker.member_id);
        let other = fresh_name("others");
        let reader = alone(connection, &Who::new(&other), &metadata);
        committed(connection, &commit(&reader, topic, &[(0, 1, None)]));
        let empty = fresh_name("empty");
        committed(connection, &commit(&Who::new(&empty), topic, &[(0, 1, None)]));
        for (case, group) in [
            ("subscribed", &*group),
            ("otherwise subscribed", &*other),
            ("of workers", &*connect),
            ("empty", &*empty),
            ("unknown", "no-such-group"),
            ("no", ""),
        ] {
            for (what, asked) in [
                ("unknown ones", &[("no-such-topic", &[0][..]), (topic, &[9, -1])][..]),
                ("it", &[(topic, &[0])]),
                ("it twice", &[(topic, &[0, 0])]),
                ("none", &[(topic, &[])]),
            ] {
                let codes = deleted(connection, group, asked);
                answers.push(format!("delete {what} of a {case} group: {codes:?}"));
            }
            let told = fetched(connection, 9, group, None);
            answers.push(format!("left of a {case} group: {told}"));
        }
        for who in [&me, &worker, &reader] {
            connection.call(LEAVE, &leave(&who.group, &[who])).unwrap();
        }
        answers
    });
}
