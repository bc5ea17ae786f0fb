//! Members of consumer groups: they join, are assigned, commit, read what is committed, leave, and are silent for too long,
//! as Kafka's clients do.
//!
//! - I1: once a commit was acknowledged to anybody or read by anybody, nobody who asks after that reads an older one (P10).
//! - I2: what a member is assigned is of its own generation.

use bytes::Bytes;
use chronik_engine::ids::GroupId;
use chronik_shards::groups::{
    GroupError, JoinAnswer, JoinRequest, SyncAnswer, SyncRequest, partition_of,
};
use rand::Rng;

use super::Check;
use super::coordinators::{Ask, GroupRequest, Named};
use super::event::Event;
use super::run::Run;
use super::swarm::{MS, SECOND};
use crate::must;

/// The topic whose offsets are committed; only its name is wanted.
pub(super) const OFFSETS_OF: &str = "read";

const GROUPS: [&str; 3] = ["a", "b", "c"];
const MEMBERS: usize = 5;
const REBALANCE_TIMEOUT_MS: i64 = 2_000;
/// How long a member waits for a rebalance.
const REBALANCE_PATIENCE_US: u64 = 8 * SECOND;

/// Where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Out,
    /// It is in a generation and wants its assignment.
    Joined,
    Stable,
}

/// A member.
#[derive(Debug)]
struct Member {
    group: &'static str,
    state: State,
    id: String,
    generation: i32,
    /// As its group's leader: everybody in it.
    everybody: Vec<String>,
    /// Who it was before, now and then.
    old: Option<Named>,
    host: usize,
    life: u64,
    /// What it asks for now, it asks as who it was before.
    is_as_old: bool,
    /// Answers to older ones are not heard.
    attempt: u64,
    is_waiting: bool,
    deadline_us: u64,
    /// It does nothing before this.
    ready_us: u64,
    /// When something of it was committed last.
    committed_us: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: Vec<Member>,
    /// The partitions of `__consumer_offsets`.
    pub partitions: Vec<GroupId>,
}

/// An answer on its way to a member.
#[derive(Debug, Clone)]
pub(super) struct GroupAnswer {
    pub member: usize,
    pub attempt: u64,
    pub told: Told,
}

/// What a member hears.
#[derive(Debug, Clone)]
pub(super) enum Told {
    Joined(Box<JoinAnswer>),
    Synced(SyncAnswer),
    Done(Result<(), GroupError>),
    /// Its commit is in the log.
    Committed,
    /// What it read is at this place of the log.
    Offset(Result<usize, GroupError>),
}

impl Member {
    fn new(group: &'static str) -> Member {
        Member {
            group,
            state: State::Out,
            id: String::new(),
            generation: -1,
            everybody: Vec::new(),
            old: None,
            host: 0,
            life: 0,
            is_as_old: false,
            attempt: 0,
            is_waiting: false,
            deadline_us: 0,
            ready_us: 0,
            committed_us: 0,
        }
    }

    fn named(&self) -> Named {
        let generation = self.generation;
        Named { group: self.group.to_owned(), id: self.id.clone(), generation }
    }

    fn join(&self, new_id: i64) -> JoinRequest {
        JoinRequest {
            group: self.group.to_owned(),
            member_id: self.id.clone(),
            new_member_id: format!("m{new_id}"),
            instance_id: None,
            client_id: "sim".into(),
            client_host: "sim".into(),
            session_timeout_ms: 3_000,
            rebalance_timeout_ms: REBALANCE_TIMEOUT_MS,
            protocol_type: "consumer".into(),
            protocols: vec![("range".into(), Bytes::new())],
            requires_member_id: new_id % 2 == 0,
            can_skip_assignment: false,
        }
    }

    /// As leader it gives everybody what names them and the generation.
    fn sync(&self) -> SyncRequest {
        let everybody = self.everybody.iter();
        let given = |id: &String| (id.clone(), Bytes::from(assignment(self.generation, id)));
        SyncRequest {
            group: self.group.to_owned(),
            member_id: self.id.clone(),
            instance_id: None,
            generation: self.generation,
            protocol_type: None,
            protocol: None,
            assignments: everybody.map(given).collect(),
        }
    }

    /// What an error makes of it; whether it must look for its coordinator again.
    fn take_error(&mut self, error: GroupError) -> bool {
        match error {
            GroupError::UnknownMember | GroupError::FencedInstance | GroupError::GroupNotFound => {
                self.old = (self.generation >= 0).then(|| self.named());
                self.id.clear();
                self.state = State::Out;
            }
            GroupError::RebalanceInProgress | GroupError::IllegalGeneration => {
                self.old = (self.generation >= 0).then(|| self.named());
                self.state = State::Out;
            }
            _ => return true,
        }
        false
    }
}

fn assignment(generation: i32, id: &str) -> String {
    format!("{generation}:{id}")
}

impl Run {
    /// Makes the members, none of whom has joined.
    pub(super) fn make_members(&mut self) {
        for _ in 0..MEMBERS {
            let group = GROUPS[self.rng.random_range(0..GROUPS.len())];
            self.members.all.push(Member::new(group));
        }
    }

    fn coordinator_of(&self, at: usize) -> Option<GroupId> {
        let partitions = &self.members.partitions;
        partitions.get(partition_of(self.members.all[at].group, partitions.len())).copied()
    }

    /// Somebody does something.
    pub(super) fn group_action(&mut self) {
        let at = self.rng.random_range(0..self.members.all.len().max(1));
        self.member_acts(at);
    }

    /// Everybody goes on.
    pub(super) fn settle_members(&mut self) {
        (0..self.members.all.len()).for_each(|at| self.member_acts(at));
    }

    /// Whether all are in their groups, and have committed something since.
    pub(super) fn are_members_settled(&self, since_us: u64) -> bool {
        let is_settled = |member: &Member| {
            member.state == State::Stable && member.committed_us > since_us && !member.is_waiting
        };
        self.members.all.iter().all(is_settled)
    }

    fn member_acts(&mut self, at: usize) {
        let Some(group) = self.coordinator_of(at) else { return };
        let now_us = self.now_us;
        let member = &mut self.members.all[at];
        if member.is_waiting {
            if member.deadline_us <= now_us {
                member.is_waiting = false;
                member.attempt += 1;
                self.report.given_up += 1;
                self.find_coordinator(at, group);
            }
            return;
        }
        if now_us < member.ready_us {
            return;
        }
        let Some(ask) = self.next_ask(at) else { return };
        let patience_us = match ask {
            Ask::Join(_) | Ask::Sync(_) => REBALANCE_PATIENCE_US,
            _ => self.swarm.patience_us,
        };
        let member = &mut self.members.all[at];
        member.is_waiting = true;
        member.deadline_us = now_us + patience_us;
        let (host, life, attempt) = (member.host, member.life, member.attempt);
        let request = GroupRequest { host, life, group, member: at, attempt, ask };
        let delay_us = self.rng.random_range(50..3 * MS);
        self.after(delay_us, Event::GroupRequest(Box::new(request)));
    }

    fn next_ask(&mut self, at: usize) -> Option<Ask> {
        let new_id = self.next();
        let drawn = self.rng.random_range(if self.is_calm { 4..12 } else { 0..16 });
        let silence_us = self.rng.random_range(1..6) * SECOND;
        let member = &mut self.members.all[at];
        member.is_as_old = false;
        match member.state {
            State::Out => return Some(Ask::Join(member.join(new_id))),
            State::Joined => return Some(Ask::Sync(member.sync())),
            State::Stable => {}
        }
        let named = match (drawn, member.old.clone()) {
            (0, _) => return Some(Ask::Leave(member.named())),
            (1, _) => {
                member.ready_us = self.now_us + silence_us;
                return None;
            }
            (2..4, Some(old)) => {
                member.is_as_old = true;
                old
            }
            (4..8, _) => member.named(),
            (8..10, _) => {
                let floor = self.oracle.newest_commit(member.group);
                return Some(Ask::Fetch { group: member.group.to_owned(), floor });
            }
            _ => return Some(Ask::Heartbeat(member.named())),
        };
        self.oracle.commit_asked(new_id, &named.group, named.generation);
        Some(Ask::Commit(named, new_id))
    }

    fn find_coordinator(&mut self, at: usize, group: GroupId) {
        let leader = self.look_up_leader(group);
        let guess = self.rng.random_range(0..self.hosts.len());
        let member = &mut self.members.all[at];
        member.host = leader.map_or(guess, |(host, _)| host);
        member.life = self.hosts[member.host].life;
    }

    /// A member hears an answer.
    pub(super) fn take_group_answer(&mut self, answer: GroupAnswer) -> Check {
        let GroupAnswer { member: at, attempt, told } = answer;
        let Some(group) = self.coordinator_of(at) else { return Ok(()) };
        let pause_us = self.rng.random_range(20..400) * MS;
        let now_us = self.now_us;
        let member = &mut self.members.all[at];
        if member.attempt != attempt {
            return Ok(());
        }
        trace!(now_us, self.is_traced, "member {at} {:?} of {}: {told:?}", member.id, member.group);
        member.is_waiting = false;
        member.attempt += 1;
        member.ready_us = now_us + pause_us;
        let error = match told {
            Told::Joined(answer) => member.joined(*answer),
            Told::Synced(answer) => match answer.error {
                None => {
                    let own = assignment(member.generation, &member.id);
                    let given = String::from_utf8_lossy(&answer.assignment);
                    must!(given == own, "P11: {own} is given {given}");
                    member.state = State::Stable;
                    self.report.assignments += 1;
                    None
                }
                error => error,
            },
            Told::Done(done) => done.err(),
            Told::Committed => {
                member.committed_us = now_us;
                None
            }
            Told::Offset(Ok(_)) => {
                self.report.offsets_read += 1;
                None
            }
            Told::Offset(Err(error)) => Some(error),
        };
        let error = error.filter(|_| !self.members.all[at].is_as_old);
        if error.is_some_and(|error| self.members.all[at].take_error(error)) {
            self.find_coordinator(at, group);
        }
        Ok(())
    }
}

impl Member {
    fn joined(&mut self, answer: JoinAnswer) -> Option<GroupError> {
        if answer.error == Some(GroupError::MemberIdRequired) {
            self.id = answer.member_id;
            return None;
        }
        if answer.error.is_some() {
            return answer.error;
        }
        self.everybody = match answer.leader == answer.member_id {
            true => answer.members.into_iter().map(|member| member.id).collect(),
            false => Vec::new(),
        };
        (self.id, self.generation) = (answer.member_id, answer.generation);
        self.state = State::Joined;
        None
    }
}
