//! Ten thousand consumer groups on the real binary: what they committed is there after a kill, and all of them are listed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "clients in threads of their own")]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, topic_name};
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    FindCoordinatorRequest, GroupId, ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest,
};
use kafka_protocol::protocol::StrBytes;

const GROUPS: usize = 10_000;
/// Connections that commit at once.
const CONNECTIONS: usize = 50;
/// Groups that are asked for by one request.
const ASKED: usize = 500;

fn group(n: usize) -> GroupId {
    GroupId(StrBytes::from_string(format!("group-{n}")))
}

/// What the group commits: another offset for each.
fn offset(n: usize) -> i64 {
    i64::try_from(n).unwrap() * 7 + 1
}

fn commit(n: usize, topic: &str) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(0)
        .with_committed_offset(offset(n))
        .with_committed_leader_epoch(-1)
        .with_committed_metadata(Some(StrBytes::from_string(format!("note {n}"))));
    let topic = OffsetCommitRequestTopic::default()
        .with_name(topic_name(topic))
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group(n))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic])
}

/// Each connection waits for its own commits only, and many commits share a write.
fn commit_all(addr: SocketAddr, topic: &str) {
    let all: Vec<usize> = (0..GROUPS).collect();
    std::thread::scope(|scope| {
        let commit_some = |some: &[usize]| {
            let mut connection = RawConnection::open(addr).unwrap();
            let sent: Vec<i32> =
                some.iter().map(|n| connection.send(8, &commit(*n, topic)).unwrap()).collect();
            for (n, sent) in some.iter().zip(sent) {
                let answer = connection.receive::<OffsetCommitRequest>(8, sent).unwrap();
                assert_eq!(answer.topics[0].partitions[0].error_code, 0, "group {n}");
            }
        };
        let workers: Vec<_> = all
            .chunks(GROUPS.div_ceil(CONNECTIONS))
            .map(|some| scope.spawn(move || commit_some(some)))
            .collect();
        assert!(workers.into_iter().all(|worker| worker.join().is_ok()));
    });
}

fn check_all(connection: &mut RawConnection, topic: &str) {
    let all: Vec<usize> = (0..GROUPS).collect();
    for some in all.chunks(ASKED) {
        let asked = |n: &usize| {
            let topic = OffsetFetchRequestTopics::default()
                .with_name(topic_name(topic))
                .with_partition_indexes(vec![0]);
            OffsetFetchRequestGroup::default()
                .with_group_id(group(*n))
                .with_topics(Some(vec![topic]))
        };
        let request = OffsetFetchRequest::default().with_groups(some.iter().map(asked).collect());
        let found = connection.call(9, &request).unwrap().groups;
        assert_eq!(found.len(), some.len());
        for (n, found) in some.iter().zip(found) {
            assert_eq!((&found.group_id, found.error_code), (&group(*n), 0));
            let found = &found.topics[0].partitions[0];
            assert_eq!((found.error_code, found.committed_offset), (0, offset(*n)), "group {n}");
            assert_eq!(found.metadata.as_deref(), Some(format!("note {n}").as_str()));
        }
    }
}

fn listed(connection: &mut RawConnection) -> BTreeSet<String> {
    let answer = connection.call(5, &ListGroupsRequest::default()).unwrap();
    assert_eq!(answer.error_code, 0);
    assert_eq!(answer.groups.len(), GROUPS, "each once");
    answer.groups.iter().map(|group| group.group_id.to_string()).collect()
}

#[test]
fn given_ten_thousand_groups_when_the_broker_is_killed_then_all_their_offsets_are_there_and_listed()
{
    let mut broker = Broker::start(Settings::new()).unwrap();
    let addr = broker.ports().kafka_addr();
    let mut connection = RawConnection::open(addr).unwrap();
    let topic = fresh_name("many");
    connection.ensure_topic_without_fetching(&topic).unwrap();
    // The first question makes the topic of the groups.
    let key = StrBytes::from_static_str("group-0");
    let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![key]);
    assert_eq!(connection.call(6, &request).unwrap().coordinators[0].error_code, 0);
    commit_all(addr, &topic);
    let names: BTreeSet<String> = (0..GROUPS).map(|n| group(n).to_string()).collect();
    assert_eq!(listed(&mut connection), names);
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let mut connection = RawConnection::open(addr).unwrap();
    check_all(&mut connection, &topic);
    assert_eq!(listed(&mut connection), names);
}
