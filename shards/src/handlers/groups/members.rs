//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup.

use std::rc::Rc;

use chronik_engine::ids::ShardId;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::{
    Client, code, offsets_topic, on_coordinator, route_in, route_of, still_coordinates, text,
};
use crate::groups::{
    GroupError, JoinAnswer, JoinRequest, Leaving, MemberRef, SyncAnswer, SyncRequest, Ticket,
};
use crate::handlers::routing::Route;
use crate::shell::replies::ReplyTo;
use crate::shell::shard::Shard;

/// From this version on a member without an id comes again with the one it is given (KIP-394).
const MEMBER_ID_REQUIRED_VERSION_MIN: i16 = 4;
/// From this version on a leader may be told not to assign (KIP-814).
const SKIP_ASSIGNMENT_VERSION_MIN: i16 = 9;
/// From these versions on an answer names the protocol's type.
const JOIN_PROTOCOL_TYPE_VERSION_MIN: i16 = 7;
const SYNC_PROTOCOL_TYPE_VERSION_MIN: i16 = 5;
/// From this version on a leader hears of instance ids.
const JOIN_INSTANCE_VERSION_MIN: i16 = 5;
/// From this version on several members leave at once.
const LEAVE_BATCH_VERSION_MIN: i16 = 3;

/// A wait on the coordinator's shard, taken back when dropped.
struct Waiting {
    shard: Rc<Shard>,
    target: ShardId,
    ticket: Ticket,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let ticket = self.ticket;
        // If the other shard cannot be told now, it forgets the ticket when it answers it.
        _ = self.shard.post(self.target, move |there| there.forget_ticket(ticket));
    }
}

impl Waiting {
    fn new(shard: &Rc<Shard>, target: ShardId) -> Waiting {
        Waiting { shard: Rc::clone(shard), target, ticket: Ticket(shard.new_waiter().0) }
    }
}

/// Serves JoinGroup. Cancel-safe: the member stays, its answer is dropped.
pub async fn join_group(
    shard: Rc<Shard>,
    version: i16,
    client: Client,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let member_id = request.member_id.to_string();
    let answer = match join(&shard, version, client, request).await {
        Ok(answer) => answer,
        Err(error) => JoinAnswer::refused(member_id, error),
    };
    let with_instance = version >= JOIN_INSTANCE_VERSION_MIN;
    let members = answer.members.into_iter().map(|member| {
        let instance = member.instance_id.filter(|_| with_instance);
        JoinGroupResponseMember::default()
            .with_member_id(text(member.id))
            .with_group_instance_id(instance.map(StrBytes::from_string))
            .with_metadata(member.metadata)
    });
    let with_type = version >= JOIN_PROTOCOL_TYPE_VERSION_MIN;
    // Without a protocol older versions say that it has no name.
    let nameless = || (!with_type).then(String::new);
    JoinGroupResponse::default()
        .with_error_code(answer.error.map_or(0, GroupError::code))
        .with_generation_id(answer.generation)
        .with_protocol_type(answer.protocol_type.filter(|_| with_type).map(StrBytes::from_string))
        .with_protocol_name(answer.protocol.or_else(nameless).map(StrBytes::from_string))
        .with_leader(text(answer.leader))
        .with_skip_assignment(answer.skip_assignment)
        .with_member_id(text(answer.member_id))
        .with_members(members.collect())
}

async fn join(
    shard: &Rc<Shard>,
    version: i16,
    client: Client,
    request: JoinGroupRequest,
) -> Result<JoinAnswer, GroupError> {
    let topic = offsets_topic(shard).await?;
    let route = route_in(shard, &topic, &request.group_id)?;
    let request = join_request(version, client, request);
    ask_and_wait(shard, route, move |there, ticket, done| {
        there.join_group(route.group, request, ticket, done);
    })
    .await
}

/// Asks the coordinator, once it is known to be the one still, and waits for its answer under a ticket, which is taken
/// back when this is dropped.
async fn ask_and_wait<T: Send + 'static>(
    shard: &Rc<Shard>,
    route: Route,
    ask: impl FnOnce(&Rc<Shard>, Ticket, ReplyTo<T>) + Send + 'static,
) -> Result<T, GroupError> {
    let waiting = Waiting::new(shard, route.shard);
    let ticket = waiting.ticket;
    let (done, answer) = ReplyTo::channel(shard.id);
    let asked = shard.on(route.shard, move |there| async move {
        let known = still_coordinates(&there, route.group).await;
        known.map(|()| ask(&there, ticket, done))
    });
    asked.await.unwrap_or(Err(GroupError::NotAvailable))?;
    answer.await.map_err(|_| GroupError::NotCoordinator)
}

fn join_request(version: i16, client: Client, request: JoinGroupRequest) -> JoinRequest {
    let instance_id = request.group_instance_id.map(|id| id.to_string());
    // As Kafka has it: people find their clients by it.
    let prefix = instance_id.as_deref().unwrap_or(&client.id);
    let new_member_id = format!("{prefix}-{}", Uuid::new_v4());
    let session_timeout_ms = i64::from(request.session_timeout_ms);
    let rebalance_timeout_ms =
        if version >= 1 { i64::from(request.rebalance_timeout_ms) } else { session_timeout_ms };
    JoinRequest {
        group: request.group_id.to_string(),
        member_id: request.member_id.to_string(),
        new_member_id,
        instance_id,
        client_id: client.id,
        client_host: client.host,
        session_timeout_ms,
        rebalance_timeout_ms,
        protocol_type: request.protocol_type.to_string(),
        protocols: request
            .protocols
            .into_iter()
            .map(|protocol| (protocol.name.to_string(), copied(&protocol.metadata)))
            .collect(),
        requires_member_id: version >= MEMBER_ID_REQUIRED_VERSION_MIN,
        can_skip_assignment: version >= SKIP_ASSIGNMENT_VERSION_MIN,
    }
}

/// What is kept for long must not keep the whole request in memory.
fn copied(bytes: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(bytes)
}

/// Serves SyncGroup. Cancel-safe: the member stays, its answer is dropped.
pub async fn sync_group(
    shard: Rc<Shard>,
    version: i16,
    request: SyncGroupRequest,
) -> SyncGroupResponse {
    let answer = sync(&shard, request).await.unwrap_or_else(SyncAnswer::refused);
    let response = SyncGroupResponse::default()
        .with_error_code(answer.error.map_or(0, GroupError::code))
        .with_assignment(answer.assignment);
    if version < SYNC_PROTOCOL_TYPE_VERSION_MIN {
        return response;
    }
    response
        .with_protocol_type(answer.protocol_type.map(StrBytes::from_string))
        .with_protocol_name(answer.protocol.map(StrBytes::from_string))
}

async fn sync(shard: &Rc<Shard>, request: SyncGroupRequest) -> Result<SyncAnswer, GroupError> {
    let route = route_of(shard, &request.group_id)?;
    let request = SyncRequest {
        group: request.group_id.to_string(),
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.map(|id| id.to_string()),
        generation: request.generation_id,
        protocol_type: request.protocol_type.map(|name| name.to_string()),
        protocol: request.protocol_name.map(|name| name.to_string()),
        assignments: request
            .assignments
            .into_iter()
            .map(|given| (given.member_id.to_string(), copied(&given.assignment)))
            .collect(),
    };
    ask_and_wait(shard, route, move |there, ticket, done| {
        there.sync_group(route.group, request, ticket, done);
    })
    .await
}

/// Serves Heartbeat. Cancel-safe.
pub async fn heartbeat(shard: Rc<Shard>, request: HeartbeatRequest) -> HeartbeatResponse {
    let group = request.group_id.to_string();
    let beaten = on_coordinator(&shard, &group, move |coordinator, _, now| {
        let member = MemberRef {
            group: &request.group_id,
            id: &request.member_id,
            instance_id: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        coordinator.heartbeat(member, now)
    });
    let outcome = beaten.await.and_then(|outcome| outcome);
    HeartbeatResponse::default().with_error_code(code(&outcome))
}

/// Serves LeaveGroup. Cancel-safe; who was to leave has left.
pub async fn leave_group(
    shard: Rc<Shard>,
    version: i16,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let group = request.group_id.to_string();
    let leaving: Vec<Leaving> = if version >= LEAVE_BATCH_VERSION_MIN {
        let members = request.members.into_iter().map(|member| Leaving {
            member_id: member.member_id.to_string(),
            instance_id: member.group_instance_id.map(|id| id.to_string()),
        });
        members.collect()
    } else {
        vec![Leaving { member_id: request.member_id.to_string(), instance_id: None }]
    };
    let asked = leaving.clone();
    let name = group.clone();
    let left = on_coordinator(&shard, &group, move |coordinator, _, now| {
        coordinator.leave(&name, &asked, now)
    });
    let results = match left.await.and_then(|outcome| outcome) {
        Ok(results) => results,
        Err(error) => return LeaveGroupResponse::default().with_error_code(error.code()),
    };
    if version < LEAVE_BATCH_VERSION_MIN {
        let error_code = results.first().map_or(0, code);
        return LeaveGroupResponse::default().with_error_code(error_code);
    }
    let members = leaving.into_iter().zip(&results).map(|(member, result)| {
        MemberResponse::default()
            .with_member_id(text(member.member_id))
            .with_group_instance_id(member.instance_id.map(StrBytes::from_string))
            .with_error_code(code(result))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}
