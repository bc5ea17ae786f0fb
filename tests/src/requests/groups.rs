//! Requests of consumer groups. None of them has to wait: members that nobody knows are refused at once, and an offset
//! is committed by somebody who is no member.

use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, FindCoordinatorRequest, GroupId, HeartbeatRequest,
    JoinGroupRequest, LeaveGroupRequest, ListGroupsRequest, OffsetCommitRequest,
    OffsetDeleteRequest, OffsetFetchRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;

use super::{Sample, World};
use crate::raw::topic_name;

const MEMBER: StrBytes = StrBytes::from_static_str("nobody");

fn group() -> GroupId {
    StrBytes::from_static_str("sample-group").into()
}

impl Sample for FindCoordinatorRequest {
    fn sample(_world: &World, version: i16) -> FindCoordinatorRequest {
        let request = FindCoordinatorRequest::default();
        if version >= 4 {
            request.with_coordinator_keys(vec![group().0])
        } else {
            request.with_key(group().0)
        }
    }
}

impl Sample for JoinGroupRequest {
    fn sample(_world: &World, version: i16) -> JoinGroupRequest {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str("range"))
            .with_metadata("metadata".into());
        let request = JoinGroupRequest::default()
            .with_group_id(group())
            .with_session_timeout_ms(10_000)
            .with_member_id(MEMBER)
            .with_protocol_type(StrBytes::from_static_str("consumer"))
            .with_protocols(vec![protocol]);
        if version >= 1 { request.with_rebalance_timeout_ms(10_000) } else { request }
    }
}

impl Sample for SyncGroupRequest {
    fn sample(_world: &World, _version: i16) -> SyncGroupRequest {
        let assignment = SyncGroupRequestAssignment::default()
            .with_member_id(MEMBER)
            .with_assignment("assignment".into());
        SyncGroupRequest::default()
            .with_group_id(group())
            .with_generation_id(1)
            .with_member_id(MEMBER)
            .with_assignments(vec![assignment])
    }
}

impl Sample for HeartbeatRequest {
    fn sample(_world: &World, _version: i16) -> HeartbeatRequest {
        HeartbeatRequest::default()
            .with_group_id(group())
            .with_generation_id(1)
            .with_member_id(MEMBER)
    }
}

impl Sample for LeaveGroupRequest {
    fn sample(_world: &World, version: i16) -> LeaveGroupRequest {
        let request = LeaveGroupRequest::default().with_group_id(group());
        if version >= 3 {
            request.with_members(vec![MemberIdentity::default().with_member_id(MEMBER)])
        } else {
            request.with_member_id(MEMBER)
        }
    }
}

impl Sample for OffsetCommitRequest {
    fn sample(world: &World, _version: i16) -> OffsetCommitRequest {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(0)
            .with_committed_offset(1)
            .with_committed_metadata(Some(StrBytes::from_static_str("a note")));
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic_name(&world.topic))
            .with_partitions(vec![partition]);
        OffsetCommitRequest::default()
            .with_group_id(group())
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic])
    }
}

impl Sample for OffsetFetchRequest {
    fn sample(world: &World, version: i16) -> OffsetFetchRequest {
        let name = topic_name(&world.topic);
        if version >= 8 {
            let topic =
                OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(vec![0]);
            let asked = OffsetFetchRequestGroup::default()
                .with_group_id(group())
                .with_topics(Some(vec![topic]));
            return OffsetFetchRequest::default().with_groups(vec![asked]);
        }
        let topic =
            OffsetFetchRequestTopic::default().with_name(name).with_partition_indexes(vec![0]);
        OffsetFetchRequest::default().with_group_id(group()).with_topics(Some(vec![topic]))
    }
}

impl Sample for OffsetDeleteRequest {
    fn sample(world: &World, _version: i16) -> OffsetDeleteRequest {
        let topic = OffsetDeleteRequestTopic::default()
            .with_name(topic_name(&world.topic))
            .with_partitions(vec![OffsetDeleteRequestPartition::default()]);
        OffsetDeleteRequest::default().with_group_id(group()).with_topics(vec![topic])
    }
}

impl Sample for DescribeGroupsRequest {
    fn sample(_world: &World, version: i16) -> DescribeGroupsRequest {
        DescribeGroupsRequest::default()
            .with_groups(vec![group()])
            .with_include_authorized_operations(version >= 3)
    }
}

impl Sample for ListGroupsRequest {
    fn sample(_world: &World, version: i16) -> ListGroupsRequest {
        let request = ListGroupsRequest::default();
        if version >= 4 {
            request.with_states_filter(vec![StrBytes::from_static_str("Empty")])
        } else {
            request
        }
    }
}

impl Sample for DeleteGroupsRequest {
    fn sample(_world: &World, _version: i16) -> DeleteGroupsRequest {
        DeleteGroupsRequest::default().with_groups_names(vec![group()])
    }
}
