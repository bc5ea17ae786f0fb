//! Requests of groups, and what is comparable of their answers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use chronik_tests::raw::RawConnection;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Encodable;

use crate::text;

/// The versions that a test speaks where it is not about versions.
pub const JOIN: i16 = 9;
pub const SYNC: i16 = 5;
pub const HEARTBEAT: i16 = 4;
pub const LEAVE: i16 = 5;
pub const COMMIT: i16 = 9;

/// The group without a name is the same in every test, and Kafka's outlives the test.
pub fn hold_the_nameless_group() -> MutexGuard<'static, ()> {
    static NAMELESS: Mutex<()> = Mutex::new(());
    NAMELESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes away what was committed in the name of no group.
pub fn forget_the_nameless_group(connection: &mut RawConnection) {
    let request = DeleteGroupsRequest::default().with_groups_names(vec![text("").into()]);
    connection.call(2, &request).unwrap();
}

/// Who somebody says to be.
#[derive(Debug, Clone)]
pub struct Who {
    pub group: String,
    pub member: String,
    pub instance: Option<String>,
    pub generation: i32,
}

impl Who {
    pub fn new(group: &str) -> Who {
        Who { group: group.to_owned(), member: String::new(), instance: None, generation: -1 }
    }

    pub fn of(&self, group: &str) -> Who {
        Who { group: group.to_owned(), ..self.clone() }
    }

    pub fn member(&self, member: &str) -> Who {
        Who { member: member.to_owned(), ..self.clone() }
    }

    pub fn instance(&self, instance: &str) -> Who {
        Who { instance: Some(instance.to_owned()), ..self.clone() }
    }

    pub fn generation(&self, generation: i32) -> Who {
        Who { generation, ..self.clone() }
    }
}

/// What a consumer tells of itself: a subscription to `topic`.
pub fn subscription(topic: &str) -> Bytes {
    let subscription = ConsumerProtocolSubscription::default().with_topics(vec![text(topic)]);
    let mut bytes = BytesMut::new();
    bytes.put_i16(0);
    subscription.encode(&mut bytes, 0).unwrap();
    bytes.freeze()
}

pub fn protocol(name: &str, metadata: Bytes) -> JoinGroupRequestProtocol {
    JoinGroupRequestProtocol::default().with_name(text(name)).with_metadata(metadata)
}

/// A join with the protocol `range`.
pub fn join(who: &Who, metadata: &Bytes) -> JoinGroupRequest {
    JoinGroupRequest::default()
        .with_group_id(text(&who.group).into())
        .with_session_timeout_ms(30_000)
        .with_rebalance_timeout_ms(30_000)
        .with_member_id(text(&who.member))
        .with_group_instance_id(who.instance.as_deref().map(text))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol("range", metadata.clone())])
}

pub fn told_of_join(answer: &JoinGroupResponse) -> String {
    let members: Vec<_> =
        answer.members.iter().map(|m| (&m.group_instance_id, m.metadata.len())).collect();
    format!(
        "{} generation {} type {:?} protocol {:?} leads {} leader told {} id told {} members {members:?} skips {}",
        answer.error_code,
        answer.generation_id,
        answer.protocol_type,
        answer.protocol_name,
        !answer.leader.is_empty() && answer.leader == answer.member_id,
        !answer.leader.is_empty(),
        !answer.member_id.is_empty(),
        answer.skip_assignment
    )
}

/// Joins `who`, which has no id yet, as somebody who is alone in the group or the last one missed.
pub fn joined(connection: &mut RawConnection, who: &Who, metadata: &Bytes) -> Who {
    let request = join(who, metadata);
    let mut answer = connection.call(JOIN, &request).unwrap();
    if answer.error_code == 79 {
        answer = connection.call(JOIN, &request.with_member_id(answer.member_id.clone())).unwrap();
    }
    assert_eq!(answer.error_code, 0, "{answer:?}");
    who.member(&answer.member_id).generation(answer.generation_id)
}

/// Who leads gives everybody named the same assignment.
pub fn sync(who: &Who, members: &[&Who]) -> SyncGroupRequest {
    let assignments = members.iter().map(|member| {
        SyncGroupRequestAssignment::default()
            .with_member_id(text(&member.member))
            .with_assignment("assigned".into())
    });
    SyncGroupRequest::default()
        .with_group_id(text(&who.group).into())
        .with_generation_id(who.generation)
        .with_member_id(text(&who.member))
        .with_group_instance_id(who.instance.as_deref().map(text))
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
        .with_assignments(assignments.collect())
}

pub fn told_of_sync(answer: &SyncGroupResponse) -> String {
    format!(
        "{} type {:?} protocol {:?} assigned {:?}",
        answer.error_code, answer.protocol_type, answer.protocol_name, answer.assignment
    )
}

/// Forms a group of one.
pub fn alone(connection: &mut RawConnection, who: &Who, metadata: &Bytes) -> Who {
    let who = joined(connection, who, metadata);
    let synced = connection.call(SYNC, &sync(&who, &[&who])).unwrap();
    assert_eq!(synced.error_code, 0, "{synced:?}");
    who
}

pub fn heartbeat(who: &Who) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(text(&who.group).into())
        .with_generation_id(who.generation)
        .with_member_id(text(&who.member))
        .with_group_instance_id(who.instance.as_deref().map(text))
}

pub fn beat(connection: &mut RawConnection, who: &Who) -> i16 {
    connection.call(HEARTBEAT, &heartbeat(who)).unwrap().error_code
}

/// Everybody named leaves.
pub fn leave(group: &str, leaving: &[&Who]) -> LeaveGroupRequest {
    let members = leaving.iter().map(|who| {
        MemberIdentity::default()
            .with_member_id(text(&who.member))
            .with_group_instance_id(who.instance.as_deref().map(text))
    });
    LeaveGroupRequest::default().with_group_id(text(group).into()).with_members(members.collect())
}

pub fn told_of_leave(answer: &LeaveGroupResponse) -> String {
    let members: Vec<_> = answer
        .members
        .iter()
        .map(|member| (member.error_code, &member.group_instance_id, member.member_id.is_empty()))
        .collect();
    format!("{} members {members:?}", answer.error_code)
}

/// Partition, offset, metadata.
pub type Offset<'a> = (i32, i64, Option<&'a str>);

/// A commit of offsets of one topic.
pub fn commit(who: &Who, topic: &str, offsets: &[Offset<'_>]) -> OffsetCommitRequest {
    let partitions = offsets.iter().map(|(partition, offset, metadata)| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(*partition)
            .with_committed_offset(*offset)
            .with_committed_leader_epoch(-1)
            .with_committed_metadata(metadata.map(text))
    });
    let topic = OffsetCommitRequestTopic::default()
        .with_name(text(topic).into())
        .with_partitions(partitions.collect());
    OffsetCommitRequest::default()
        .with_group_id(text(&who.group).into())
        .with_generation_id_or_member_epoch(who.generation)
        .with_member_id(text(&who.member))
        .with_group_instance_id(who.instance.as_deref().map(text))
        .with_topics(vec![topic])
}

/// The error of each partition.
pub fn committed(connection: &mut RawConnection, request: &OffsetCommitRequest) -> Vec<(i32, i16)> {
    let answer = connection.call(COMMIT, request).unwrap();
    let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
    let codes = partitions.map(|partition| (partition.partition_index, partition.error_code));
    let mut codes: Vec<_> = codes.collect();
    codes.sort_unstable();
    codes
}

/// What DescribeGroups says of one group.
pub fn described(connection: &mut RawConnection, version: i16, group: &str, asks: bool) -> String {
    let request = DescribeGroupsRequest::default()
        .with_groups(vec![text(group).into()])
        .with_include_authorized_operations(asks);
    let answer = connection.call(version, &request).unwrap().groups.remove(0);
    let mut members: Vec<_> = answer
        .members
        .iter()
        .map(|member| {
            let what = (&member.member_metadata, &member.member_assignment);
            ((&member.group_instance_id, &member.client_id, &member.client_host), what)
        })
        .collect();
    members.sort();
    format!(
        "{} state {} type {:?} protocol {:?} operations {} {members:?}",
        answer.error_code,
        answer.group_state.as_str(),
        answer.protocol_type,
        answer.protocol_data,
        answer.authorized_operations
    )
}
