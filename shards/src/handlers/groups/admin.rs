//! DescribeGroups, ListGroups, DeleteGroups.

use std::rc::Rc;

use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{
    DescribedGroup as DescribedOnWire, DescribedGroupMember,
};
use kafka_protocol::messages::list_groups_response::ListedGroup as ListedOnWire;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    GroupId, ListGroupsRequest, ListGroupsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{ask_each, code, on_all_coordinators, on_coordinator, refused, route_of, text};
use crate::groups::{DescribedGroup, GroupError, ListedGroup};
use crate::handlers::each_once;
use crate::handlers::operations::{self, Resource};
use crate::shell::shard::Shard;

/// The state of a group that is not there.
const DEAD: &str = "Dead";
/// What KIP-848 calls groups of this protocol.
const CLASSIC: &str = "classic";

/// From this version on a group that is not there is an error.
const DESCRIBE_NOT_FOUND_VERSION_MIN: i16 = 6;
/// From this version on members tell their instance.
const DESCRIBE_INSTANCE_VERSION_MIN: i16 = 4;
/// From these versions on a list tells states and types.
const LIST_STATE_VERSION_MIN: i16 = 4;
const LIST_TYPE_VERSION_MIN: i16 = 5;

/// Serves DescribeGroups. Cancel-safe.
pub async fn describe_groups(
    shard: Rc<Shard>,
    version: i16,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let asked = request.include_authorized_operations;
    let operations = operations::authorized(Resource::Group, asked);
    let describe = async |id: GroupId| {
        let name = id.to_string();
        let asked = name.clone();
        let found =
            on_coordinator(&shard, &name, move |coordinator, _, _| coordinator.describe(&asked));
        let described = described(version, id, found.await);
        match described.error_code {
            0 => described.with_authorized_operations(operations),
            _ => described,
        }
    };
    let groups = ask_each(each_once(request.groups, GroupId::clone), describe).await;
    DescribeGroupsResponse::default().with_groups(groups)
}

fn described(
    version: i16,
    id: GroupId,
    found: Result<Option<DescribedGroup>, GroupError>,
) -> DescribedOnWire {
    let answer = DescribedOnWire::default().with_authorized_operations(operations::NOT_ASKED_FOR);
    let group = match found {
        Ok(Some(group)) => group,
        Ok(None) => {
            let answer = answer.with_group_state(text(DEAD));
            let message = format!("Group {} not found.", id.as_str());
            let answer = answer.with_group_id(id);
            return if version >= DESCRIBE_NOT_FOUND_VERSION_MIN {
                answer
                    .with_error_code(GroupError::GroupNotFound.code())
                    .with_error_message(Some(text(message)))
            } else {
                answer
            };
        }
        Err(error) => return answer.with_group_id(id).with_error_code(error.code()),
    };
    let with_instance = version >= DESCRIBE_INSTANCE_VERSION_MIN;
    let members = group.members.into_iter().map(|member| {
        let instance = member.instance_id.filter(|_| with_instance);
        DescribedGroupMember::default()
            .with_member_id(text(member.id))
            .with_group_instance_id(instance.map(StrBytes::from_string))
            .with_client_id(text(member.client_id))
            .with_client_host(text(member.client_host))
            .with_member_metadata(member.metadata)
            .with_member_assignment(member.assignment)
    });
    answer
        .with_group_id(id)
        .with_group_state(text(group.state.name()))
        .with_protocol_type(text(group.protocol_type))
        .with_protocol_data(text(group.protocol))
        .with_members(members.collect())
}

/// Serves ListGroups: those of this node. Cancel-safe.
pub async fn list_groups(
    shard: Rc<Shard>,
    version: i16,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    let all =
        on_all_coordinators(&shard, |coordinator| coordinator.list().collect::<Vec<_>>()).await;
    let all: Vec<ListedGroup> = match all {
        Ok(lists) => lists.into_iter().flatten().collect(),
        Err(error) => return ListGroupsResponse::default().with_error_code(error.code()),
    };
    let is_one_of = |filter: &[StrBytes], name: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
    };
    let wanted = all.into_iter().filter(|group| {
        is_one_of(&request.states_filter, group.state.name())
            && is_one_of(&request.types_filter, CLASSIC)
    });
    let groups = wanted.map(|group| {
        let mut listed = ListedOnWire::default()
            .with_group_id(text(group.name).into())
            .with_protocol_type(text(group.protocol_type));
        if version >= LIST_STATE_VERSION_MIN {
            listed = listed.with_group_state(StrBytes::from_static_str(group.state.name()));
        }
        if version >= LIST_TYPE_VERSION_MIN {
            listed = listed.with_group_type(StrBytes::from_static_str(CLASSIC));
        }
        listed
    });
    ListGroupsResponse::default().with_groups(groups.collect())
}

/// Serves DeleteGroups. Cancel-safe; what was proposed is done.
pub async fn delete_groups(shard: Rc<Shard>, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let delete = async |id: GroupId| {
        let outcome = delete(&shard, id.to_string()).await;
        DeletableGroupResult::default().with_group_id(id).with_error_code(code(&outcome))
    };
    let results = ask_each(each_once(request.groups_names, GroupId::clone), delete).await;
    DeleteGroupsResponse::default().with_results(results)
}

async fn delete(shard: &Rc<Shard>, group: String) -> Result<(), GroupError> {
    let route = route_of(shard, &group)?;
    let done = shard.on(route.shard, move |there| {
        let begun = there
            .with_coordinator(route.group, |coordinator, _| coordinator.check_delete(&group))
            .and_then(|checked| checked)
            .map(|command| there.begin_group_command(route.group, &command));
        async move {
            match begun {
                Ok(written) => written.await?,
                Err(error) => return refused(&there, route.group, error).await,
            }
            there.with_coordinator_and_store(route.group, |coordinator, store, _| {
                coordinator.deleted(&group, store);
            })
        }
    });
    done.await.unwrap_or(Err(GroupError::NotAvailable))
}
