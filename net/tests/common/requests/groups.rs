//! Random requests of consumer groups.

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
use kafka_protocol::messages::*;
use rand::Rng;

use super::Fill;

impl Fill {
    pub(super) fn find_coordinator(&mut self) -> FindCoordinatorRequest {
        let mut request = FindCoordinatorRequest::default();
        if self.version >= 1 {
            request = request.with_key_type(self.rng.random());
        }
        if self.version >= 4 {
            request = request.with_coordinator_keys(self.list(Fill::text));
        } else {
            request = request.with_key(self.text());
        }
        tagged!(self, 3, request)
    }

    pub(super) fn join_group(&mut self) -> JoinGroupRequest {
        let protocols = self.list(|f| {
            let protocol =
                JoinGroupRequestProtocol::default().with_name(f.text()).with_metadata(f.bytes(50));
            tagged!(f, 6, protocol)
        });
        let mut request = JoinGroupRequest::default()
            .with_group_id(self.text().into())
            .with_session_timeout_ms(self.rng.random())
            .with_member_id(self.text())
            .with_protocol_type(self.text())
            .with_protocols(protocols);
        if self.version >= 1 {
            request = request.with_rebalance_timeout_ms(self.rng.random());
        }
        if self.version >= 5 {
            request = request.with_group_instance_id(self.maybe(Fill::text));
        }
        if self.version >= 8 {
            request = request.with_reason(self.maybe(Fill::text));
        }
        tagged!(self, 6, request)
    }

    pub(super) fn sync_group(&mut self) -> SyncGroupRequest {
        let assignments = self.list(|f| {
            let assignment = SyncGroupRequestAssignment::default()
                .with_member_id(f.text())
                .with_assignment(f.bytes(50));
            tagged!(f, 4, assignment)
        });
        let mut request = SyncGroupRequest::default()
            .with_group_id(self.text().into())
            .with_generation_id(self.rng.random())
            .with_member_id(self.text())
            .with_assignments(assignments);
        if self.version >= 3 {
            request = request.with_group_instance_id(self.maybe(Fill::text));
        }
        if self.version >= 5 {
            request = request
                .with_protocol_type(self.maybe(Fill::text))
                .with_protocol_name(self.maybe(Fill::text));
        }
        tagged!(self, 4, request)
    }

    pub(super) fn heartbeat(&mut self) -> HeartbeatRequest {
        let mut request = HeartbeatRequest::default()
            .with_group_id(self.text().into())
            .with_generation_id(self.rng.random())
            .with_member_id(self.text());
        if self.version >= 3 {
            request = request.with_group_instance_id(self.maybe(Fill::text));
        }
        tagged!(self, 4, request)
    }

    pub(super) fn leave_group(&mut self) -> LeaveGroupRequest {
        let request = LeaveGroupRequest::default().with_group_id(self.text().into());
        let request = if self.version >= 3 {
            request.with_members(self.list(|f| {
                let mut member = MemberIdentity::default()
                    .with_member_id(f.text())
                    .with_group_instance_id(f.maybe(Fill::text));
                if f.version >= 5 {
                    member = member.with_reason(f.maybe(Fill::text));
                }
                tagged!(f, 4, member)
            }))
        } else {
            request.with_member_id(self.text())
        };
        tagged!(self, 4, request)
    }

    pub(super) fn offset_commit(&mut self) -> OffsetCommitRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                let mut partition = OffsetCommitRequestPartition::default()
                    .with_partition_index(f.rng.random())
                    .with_committed_offset(f.rng.random())
                    .with_committed_metadata(f.maybe(Fill::text));
                if f.version >= 6 {
                    partition = partition.with_committed_leader_epoch(f.rng.random());
                }
                tagged!(f, 8, partition)
            });
            let topic = OffsetCommitRequestTopic::default()
                .with_name(f.text().into())
                .with_partitions(partitions);
            tagged!(f, 8, topic)
        });
        let mut request = OffsetCommitRequest::default()
            .with_group_id(self.text().into())
            .with_generation_id_or_member_epoch(self.rng.random())
            .with_member_id(self.text())
            .with_topics(topics);
        if self.version >= 7 {
            request = request.with_group_instance_id(self.maybe(Fill::text));
        }
        if self.version <= 4 {
            request = request.with_retention_time_ms(self.rng.random());
        }
        tagged!(self, 8, request)
    }

    pub(super) fn offset_fetch(&mut self) -> OffsetFetchRequest {
        let mut request = OffsetFetchRequest::default();
        if self.version >= 8 {
            request = request.with_groups(self.list(Fill::offset_fetch_group));
        } else {
            let topics = self.list(|f| {
                let topic = OffsetFetchRequestTopic::default()
                    .with_name(f.text().into())
                    .with_partition_indexes(f.list(|f| f.rng.random()));
                tagged!(f, 6, topic)
            });
            let all = self.version >= 2 && self.rng.random_bool(0.2);
            request = request.with_group_id(self.text().into()).with_topics(if all {
                None
            } else {
                Some(topics)
            });
        }
        if self.version >= 7 {
            request = request.with_require_stable(self.rng.random());
        }
        tagged!(self, 6, request)
    }

    fn offset_fetch_group(&mut self) -> OffsetFetchRequestGroup {
        let topics = self.maybe(|f| {
            f.list(|f| {
                let topic = OffsetFetchRequestTopics::default()
                    .with_name(f.text().into())
                    .with_partition_indexes(f.list(|f| f.rng.random()));
                tagged!(f, 6, topic)
            })
        });
        let mut group = OffsetFetchRequestGroup::default()
            .with_group_id(self.text().into())
            .with_topics(topics);
        if self.version >= 9 {
            group =
                group.with_member_id(self.maybe(Fill::text)).with_member_epoch(self.rng.random());
        }
        tagged!(self, 6, group)
    }

    pub(super) fn offset_delete(&mut self) -> OffsetDeleteRequest {
        let topics = self.list(|f| {
            let partitions = f.list(|f| {
                OffsetDeleteRequestPartition::default().with_partition_index(f.rng.random())
            });
            OffsetDeleteRequestTopic::default()
                .with_name(f.text().into())
                .with_partitions(partitions)
        });
        OffsetDeleteRequest::default().with_group_id(self.text().into()).with_topics(topics)
    }

    pub(super) fn describe_groups(&mut self) -> DescribeGroupsRequest {
        let groups = self.list(|f| f.text().into());
        let mut request = DescribeGroupsRequest::default().with_groups(groups);
        if self.version >= 3 {
            request = request.with_include_authorized_operations(self.rng.random());
        }
        tagged!(self, 5, request)
    }

    pub(super) fn list_groups(&mut self) -> ListGroupsRequest {
        let mut request = ListGroupsRequest::default();
        if self.version >= 4 {
            request = request.with_states_filter(self.list(Fill::text));
        }
        if self.version >= 5 {
            request = request.with_types_filter(self.list(Fill::text));
        }
        tagged!(self, 3, request)
    }

    pub(super) fn delete_groups(&mut self) -> DeleteGroupsRequest {
        let groups = self.list(|f| f.text().into());
        let request = DeleteGroupsRequest::default().with_groups_names(groups);
        tagged!(self, 2, request)
    }
}
