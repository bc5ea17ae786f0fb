//! One member of a consumer group by the classic protocol, as a client library would be one: it joins, assigns where it is
//! the leader, syncs, beats, and joins again whenever any answer says that it must.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chronik_net::client::Client;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    FindCoordinatorRequest, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, SyncGroupRequest,
};

use super::assignor::{
    Assigned, Assignor, Topics, decode_assignment, encode_assignment, encode_subscription,
};
use crate::wire::{
    self, FIND_COORDINATOR, HEARTBEAT, JOIN_GROUP, LEAVE_GROUP, SYNC_GROUP, check_code, error_name,
    text,
};

/// What Kafka's clients ask for.
const SESSION_TIMEOUT_MS: i32 = 45_000;
/// Below the time that a request may take, so that a broker that waits for lost members still answers.
const REBALANCE_TIMEOUT_MS: i32 = 25_000;
/// Requests one attempt to become a member may take: every other member may start a rebalance of its own meanwhile.
const JOIN_ATTEMPTS_MAX: usize = 10_000;
/// Attempts to find a coordinator that is ready.
const COORDINATOR_ATTEMPTS_MAX: usize = 500;
/// Pause before asking a coordinator that is not ready again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What an answer means for the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Fine,
    /// Join again.
    Rejoin,
    /// Join again as somebody else: the coordinator has forgotten this member.
    RejoinAsNew,
    /// Ask again a little later.
    Later,
}

/// What an error code in any answer of a coordinator means. An error where no client would go on.
pub fn verdict(what: &str, code: i16) -> Result<Verdict> {
    match ResponseError::try_from_code(code) {
        None if code == 0 => Ok(Verdict::Fine),
        Some(ResponseError::RebalanceInProgress | ResponseError::IllegalGeneration) => {
            Ok(Verdict::Rejoin)
        }
        Some(ResponseError::UnknownMemberId) => Ok(Verdict::RejoinAsNew),
        // The last of these also where a coordinator was named that has yet to take up its work.
        Some(
            ResponseError::CoordinatorLoadInProgress
            | ResponseError::CoordinatorNotAvailable
            | ResponseError::NotCoordinator,
        ) => Ok(Verdict::Later),
        _ => {
            check_code(what, code)?;
            Ok(Verdict::Fine)
        }
    }
}

/// Where a group's coordinator is.
pub fn find_coordinator(bootstrap: &str, group: &str) -> Result<std::net::SocketAddr> {
    let mut client = wire::connect(wire::resolve(bootstrap)?)?;
    let request = FindCoordinatorRequest::default().with_key(text(group)).with_key_type(0);
    for _ in 0..COORDINATOR_ATTEMPTS_MAX {
        let answer = client.call(&request, FIND_COORDINATOR).context("finding a coordinator")?;
        if verdict("finding a coordinator", answer.error_code)? == Verdict::Fine {
            return wire::resolve(&format!("{}:{}", answer.host.as_str(), answer.port));
        }
        std::thread::sleep(RETRY_PAUSE);
    }
    anyhow::bail!("the coordinator of {group} never became available")
}

/// A generation that this member belongs to.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Its number.
    pub generation: i32,
    /// This member's partitions in it.
    pub assigned: Assigned,
}

/// A connection with a membership.
#[derive(Debug)]
pub struct Member {
    client: Client,
    group: String,
    topics: Topics,
    assignor: Assignor,
    id: String,
    generation: i32,
}

impl Member {
    /// Connects to the group's coordinator and does not join yet.
    pub fn connect(
        addr: std::net::SocketAddr,
        group: &str,
        topics: &Topics,
        assignor: Assignor,
    ) -> Result<Member> {
        let client = wire::connect(addr)?;
        let (group, topics) = (group.to_owned(), topics.clone());
        Ok(Member { client, group, topics, assignor, id: String::new(), generation: -1 })
    }

    /// Joins, and syncs, until an assignment is there.
    pub fn join(&mut self) -> Result<Membership> {
        for _ in 0..JOIN_ATTEMPTS_MAX {
            let joined = self.send_join()?;
            let code = joined.error_code;
            if code == ResponseError::MemberIdRequired.code() {
                self.id = joined.member_id.to_string();
                continue;
            }
            match verdict("joining", code)? {
                Verdict::Fine => {}
                other => {
                    self.prepare(other);
                    continue;
                }
            }
            self.id = joined.member_id.to_string();
            self.generation = joined.generation_id;
            let synced = self.send_sync(&joined)?;
            match verdict("syncing", synced.error_code)? {
                Verdict::Fine => {
                    let assigned = decode_assignment(synced.assignment)?;
                    return Ok(Membership { generation: self.generation, assigned });
                }
                other => self.prepare(other),
            }
        }
        anyhow::bail!("no assignment after {JOIN_ATTEMPTS_MAX} attempts")
    }

    /// Says that it is alive.
    pub fn beat(&mut self) -> Result<Verdict> {
        let request = HeartbeatRequest::default()
            .with_group_id(text(&self.group).into())
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id));
        let answer = self.client.call(&request, HEARTBEAT).context("heartbeat")?;
        verdict("heartbeat", answer.error_code)
    }

    /// What a verdict asks for before the next join.
    pub fn prepare(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Fine | Verdict::Rejoin => {}
            Verdict::RejoinAsNew => self.id.clear(),
            Verdict::Later => std::thread::sleep(RETRY_PAUSE),
        }
    }

    /// Leaves the group.
    pub fn leave(&mut self) -> Result<()> {
        let member = MemberIdentity::default().with_member_id(text(&self.id));
        let request = LeaveGroupRequest::default()
            .with_group_id(text(&self.group).into())
            .with_members(vec![member]);
        let answer = self.client.call(&request, LEAVE_GROUP).context("leaving")?;
        check_code("leaving", answer.error_code)?;
        let member = answer.members.first().context("leaving: an answer without the member")?;
        check_code("leaving", member.error_code)
    }

    fn send_join(&mut self) -> Result<JoinGroupResponse> {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(text(self.assignor.name()))
            .with_metadata(encode_subscription(&self.topics)?);
        let request = JoinGroupRequest::default()
            .with_group_id(text(&self.group).into())
            .with_session_timeout_ms(SESSION_TIMEOUT_MS)
            .with_rebalance_timeout_ms(REBALANCE_TIMEOUT_MS)
            .with_member_id(text(&self.id))
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol]);
        self.client.call(&request, JOIN_GROUP).context("joining")
    }

    fn send_sync(
        &mut self,
        joined: &JoinGroupResponse,
    ) -> Result<kafka_protocol::messages::SyncGroupResponse> {
        let mut assignments = Vec::new();
        if joined.leader == joined.member_id {
            let name = joined.protocol_name.as_ref().map_or("", |name| name.as_str());
            ensure!(name == self.assignor.name(), "the group chose the protocol {name}");
            let members: Vec<String> =
                joined.members.iter().map(|member| member.member_id.to_string()).collect();
            ensure!(!members.is_empty(), "{} leads nobody", error_name(joined.error_code));
            for (member, assigned) in self.assignor.assign(&members, &self.topics) {
                let bytes = encode_assignment(&assigned)?;
                assignments.push(
                    SyncGroupRequestAssignment::default()
                        .with_member_id(text(&member))
                        .with_assignment(bytes),
                );
            }
        }
        let request = SyncGroupRequest::default()
            .with_group_id(text(&self.group).into())
            .with_generation_id(self.generation)
            .with_member_id(text(&self.id))
            .with_assignments(assignments);
        self.client.call(&request, SYNC_GROUP).context("syncing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_answers_when_judged_then_a_member_joins_again_exactly_where_a_client_would() {
        let judge = |error: ResponseError| verdict("x", error.code());
        assert_eq!(verdict("x", 0).unwrap(), Verdict::Fine);
        assert_eq!(judge(ResponseError::RebalanceInProgress).unwrap(), Verdict::Rejoin);
        assert_eq!(judge(ResponseError::IllegalGeneration).unwrap(), Verdict::Rejoin);
        assert_eq!(judge(ResponseError::UnknownMemberId).unwrap(), Verdict::RejoinAsNew);
        assert_eq!(judge(ResponseError::CoordinatorLoadInProgress).unwrap(), Verdict::Later);
        assert_eq!(judge(ResponseError::NotCoordinator).unwrap(), Verdict::Later);
        let error = judge(ResponseError::GroupAuthorizationFailed).unwrap_err().to_string();
        assert!(error.contains("GroupAuthorizationFailed"), "{error}");
    }
}
