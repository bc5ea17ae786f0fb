//! The coordinators of consumer groups on the nodes: production's, driven as the shell's `groups` does it.
//!
//! - I1: a coordinator lives for one term of its partition's leadership; whoever waits for an older one is sent home.

use std::collections::BTreeMap;

use chronik_engine::ids::{GroupId, Term};
use chronik_shards::catalog::PartitionKind;
use chronik_shards::core::{ProduceError, ProduceResult};
use chronik_shards::groups::{
    CommitCheck, Coordinator, CoordinatorConfig, Effect, GroupCommand, GroupError, GroupStore,
    JobId, JoinAnswer, JoinRequest, Leaving, MemberRef, Now, SavedOffset, SyncAnswer, SyncRequest,
    Ticket,
};
use rand::Rng;

use super::event::{Event, Pending};
use super::members::{GroupAnswer, OFFSETS_OF, Told};
use super::run::Run;
use super::swarm::MS;
use super::{Bug, Check};
use crate::must;

/// The coordinators of a shard, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Coordinators {
    led: BTreeMap<GroupId, (Term, Coordinator)>,
    waiting: BTreeMap<Ticket, GroupRequest>,
}

/// A member's request on its way to a node.
#[derive(Debug, Clone)]
pub(super) struct GroupRequest {
    pub host: usize,
    /// The start of the node that the connection was made to.
    pub life: u64,
    /// The partition of `__consumer_offsets`.
    pub group: GroupId,
    pub member: usize,
    pub attempt: u64,
    pub ask: Ask,
}

/// What a member asks for.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    Join(JoinRequest),
    Sync(SyncRequest),
    Heartbeat(Named),
    Leave(Named),
    Commit(Named, i64),
    /// All up to this place of the log was known to somebody when it was asked.
    Fetch {
        group: String,
        floor: usize,
    },
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub group: String,
    pub id: String,
    pub generation: i32,
}

impl Named {
    fn member(&self) -> MemberRef<'_> {
        let Named { group, id, generation } = self;
        MemberRef { group, id, instance_id: None, generation: *generation }
    }
}

fn config() -> CoordinatorConfig {
    CoordinatorConfig {
        initial_rebalance_delay_ms: 200,
        session_timeout_min_ms: 100,
        session_timeout_max_ms: 60_000,
        members_max: 100,
        offsets_retention_ms: 7 * 86_400_000,
        offsets_check_interval_ms: 5_000,
        offset_metadata_bytes_max: 4_096,
    }
}

fn write_error(error: ProduceError) -> GroupError {
    match error {
        ProduceError::Overloaded => GroupError::NotAvailable,
        _ => GroupError::NotCoordinator,
    }
}

impl Run {
    fn with_coordinator<T>(
        &mut self,
        (host, shard): (usize, usize),
        group: GroupId,
        f: impl FnOnce(&mut Coordinator, &GroupStore, Now) -> T,
    ) -> Check<Result<T, GroupError>> {
        let mono_ms = i64::try_from(self.now_us / MS).unwrap_or(i64::MAX);
        let now = Now { mono_ms, wall_ms: self.wall_ms(host) };
        let term = match self.lead_groups((host, shard), group, now) {
            Ok(term) => term,
            Err(error) => return Ok(Err(error)),
        };
        let Some(running) = &mut self.hosts[host].shards[shard].running else {
            return Ok(Err(GroupError::NotCoordinator));
        };
        let core = running.node.core.borrow();
        let led = running.groups.led.get_mut(&group);
        let (Some(store), Some((_, coordinator))) = (core.group_store(group), led) else {
            return Ok(Err(GroupError::Loading));
        };
        let result = f(coordinator, store, now);
        let effects = coordinator.take_effects();
        drop(core);
        for effect in effects {
            match effect {
                Effect::Joined(ticket, answer) => {
                    self.tell((host, shard), ticket, Told::Joined(answer));
                }
                Effect::Synced(ticket, answer) => {
                    self.tell((host, shard), ticket, Told::Synced(answer));
                }
                Effect::Write(job, command) => {
                    let pending = Pending::GroupJob { group, term, job };
                    if let Err(error) = self.propose_group((host, shard), group, &command, pending)
                    {
                        self.job_done(host, shard, (group, term), job, Err(error))?;
                    }
                }
            }
        }
        Ok(Ok(result))
    }

    /// Sees to it that the coordinator is the one of the term that is led now (I1).
    fn lead_groups(
        &mut self,
        (host, shard): (usize, usize),
        group: GroupId,
        now: Now,
    ) -> Result<Term, GroupError> {
        let Some(running) = &mut self.hosts[host].shards[shard].running else {
            return Err(GroupError::NotCoordinator);
        };
        let core = running.node.core.borrow();
        let view = core.partition(group).filter(|view| view.is_leader);
        let store = core.group_store(group);
        let known = running.groups.led.get(&group).map(|(term, _)| *term);
        if let (Some(view), Some(_), Some(known)) = (view, store, known)
            && view.leader_epoch == known
        {
            return Ok(known);
        }
        let resigned = running.groups.led.remove(&group);
        let outcome = match (view, store) {
            (None, _) => Err(GroupError::NotCoordinator),
            (Some(_), None) => Err(GroupError::Loading),
            (Some(view), Some(store)) => {
                let coordinator = Coordinator::load(config(), store, now);
                running.groups.led.insert(group, (view.leader_epoch, coordinator));
                Ok(view.leader_epoch)
            }
        };
        drop(core);
        let Some((_, mut resigned)) = resigned else { return outcome };
        resigned.resign();
        for effect in resigned.take_effects() {
            match effect {
                Effect::Joined(ticket, answer) => {
                    self.tell((host, shard), ticket, Told::Joined(answer));
                }
                Effect::Synced(ticket, answer) => {
                    self.tell((host, shard), ticket, Told::Synced(answer));
                }
                Effect::Write(..) => {}
            }
        }
        outcome
    }

    fn propose_group(
        &mut self,
        (host, shard): (usize, usize),
        group: GroupId,
        command: &GroupCommand,
        pending: Pending,
    ) -> Result<(), ProduceError> {
        let token = self.token();
        let Some(running) = &mut self.hosts[host].shards[shard].running else {
            return Err(ProduceError::NotLeader);
        };
        running.node.core.borrow_mut().propose_group_command(group, command, token)?;
        running.tokens.insert(token, pending);
        Ok(())
    }

    /// What a coordinator wanted written is committed, or nobody knows.
    pub(super) fn job_done(
        &mut self,
        host: usize,
        shard: usize,
        (group, term): (GroupId, Term),
        job: JobId,
        result: ProduceResult,
    ) -> Check {
        let running = self.hosts[host].running(shard);
        let known = running.and_then(|running| running.groups.led.get(&group));
        if known.is_some_and(|(led, _)| *led == term) {
            let outcome = result.map(drop).map_err(write_error);
            // Refused, the one that waits was answered as the coordinator resigned.
            let written = |coordinator: &mut Coordinator, _: &GroupStore, now: Now| {
                coordinator.written(job, outcome, now);
            };
            _ = self.with_coordinator((host, shard), group, written)?;
        }
        Ok(())
    }

    /// Time has passed for the coordinators of a shard.
    pub(super) fn tick_groups(&mut self, host: usize, shard: usize) -> Check {
        let groups = self.partitions.iter().filter(|(_, p)| p.kind == PartitionKind::Groups);
        let groups: Vec<GroupId> = groups.map(|(group, _)| *group).collect();
        for group in groups {
            let ticked =
                self.with_coordinator((host, shard), group, |coordinator, store, now| {
                    coordinator.tick(now);
                    let is_due = coordinator.is_expiry_due(now);
                    let is_gone = |_: &str, _, _| false; // no topic is deleted here
                    if is_due {
                        coordinator.expire_offsets(store, now, is_gone)
                    } else {
                        Vec::new()
                    }
                })?;
            for command in ticked.unwrap_or_default() {
                // What could not be forgotten now is found again.
                _ = self.propose_group((host, shard), group, &command, Pending::Nobody);
            }
        }
        Ok(())
    }

    /// A member's request arrives at a node.
    pub(super) fn take_group_request(&mut self, request: GroupRequest) -> Check {
        let GroupRequest { host, group, .. } = request;
        let is_open = self.hosts[host].life == request.life;
        let shard = self.shard_of(group, host).filter(|_| is_open);
        let Some(shard) = shard.filter(|shard| self.hosts[host].running(*shard).is_some()) else {
            if self.rng.random() {
                self.answer_group(&request, Told::Done(Err(GroupError::NotCoordinator)));
            }
            return Ok(());
        };
        let at = (host, shard);
        match request.ask.clone() {
            Ask::Join(join) => {
                let ticket = self.await_coordinator(at, &request);
                let id = join.member_id.clone();
                let joined =
                    self.with_coordinator(at, group, |c, _, now| c.join(join, ticket, now))?;
                if let Err(error) = joined {
                    self.tell(at, ticket, Told::Joined(Box::new(JoinAnswer::refused(id, error))));
                }
            }
            Ask::Sync(sync) => {
                let ticket = self.await_coordinator(at, &request);
                let synced =
                    self.with_coordinator(at, group, |c, _, now| c.sync(sync, ticket, now))?;
                if let Err(error) = synced {
                    self.tell(at, ticket, Told::Synced(SyncAnswer::refused(error)));
                }
            }
            Ask::Heartbeat(named) => {
                let beat =
                    |c: &mut Coordinator, _: &GroupStore, now| c.heartbeat(named.member(), now);
                let done = self.with_coordinator(at, group, beat)?;
                self.answer_group(&request, Told::Done(done.and_then(|done| done)));
            }
            Ask::Leave(Named { group: name, id, .. }) => {
                let leaving = [Leaving { member_id: id, instance_id: None }];
                let leave =
                    |c: &mut Coordinator, _: &GroupStore, now| c.leave(&name, &leaving, now);
                let done = self.with_coordinator(at, group, leave)?;
                self.answer_group(&request, Told::Done(done.map(drop)));
            }
            Ask::Commit(named, offset) => self.commit(at, request, &named, offset)?,
            Ask::Fetch { .. } => {
                let pending = Pending::GroupFetch(Box::new(request));
                return self.pass_barrier(at, group, pending);
            }
        }
        self.absorb(host, shard)
    }

    /// Tells what is committed, once no other leader can have more (P10).
    pub(super) fn tell_offset(&mut self, at: (usize, usize), request: &GroupRequest) -> Check {
        let (Ask::Fetch { group: name, floor }, group) = (&request.ask, request.group) else {
            return Ok(());
        };
        let find = |_: &mut Coordinator, store: &GroupStore, _| {
            store.offset(name, OFFSETS_OF, 0).map(|saved| saved.offset)
        };
        let told = match self.with_coordinator(at, group, find)? {
            Ok(Some(offset)) => {
                Ok(self.oracle.commit_seen(group, offset, "a reader was told so")?)
            }
            Ok(None) => Ok(0),
            Err(error) => Err(error),
        };
        let place = told.unwrap_or(usize::MAX);
        must!(
            place >= *floor,
            "P10: {group}: the commit of {name} at {place} is read after {floor}"
        );
        self.answer_group(request, Told::Offset(told));
        Ok(())
    }

    fn commit(
        &mut self,
        at: (usize, usize),
        request: GroupRequest,
        named: &Named,
        offset: i64,
    ) -> Check {
        let group = request.group;
        let committed_ms = self.wall_ms(at.0);
        let is_unchecked = self.bug == Some(Bug::StaleGenerations);
        let check = CommitCheck { member: named.member(), tells_group_not_found: true };
        let check = |c: &mut Coordinator, _: &GroupStore, now| c.check_commit(check, now);
        let allowed = self.with_coordinator(at, group, check)?;
        if let Err(error) | Ok(Err(error)) = allowed
            && !is_unchecked
        {
            self.report.commits_refused += 1;
            self.answer_group(&request, Told::Done(Err(error)));
            return Ok(());
        }
        let metadata = String::new();
        let saved = SavedOffset {
            offset,
            raft_group: group,
            leader_epoch: -1,
            metadata,
            committed_ms,
            expires_ms: None,
        };
        let offsets = vec![(OFFSETS_OF.to_owned(), 0, saved)];
        let command = GroupCommand::Commit { group: named.group.clone(), offsets };
        let pending = Pending::GroupCommit(Box::new(request.clone()));
        match self.propose_group(at, group, &command, pending) {
            Ok(()) if self.bug == Some(Bug::AckCommitEarly) => {
                self.oracle.commit_seen(group, offset, "its member was told so")?;
                self.answer_group(&request, Told::Committed);
            }
            Ok(()) => {}
            Err(error) => self.answer_group(&request, Told::Done(Err(write_error(error)))),
        }
        Ok(())
    }

    /// A commit is in the log, or nobody knows.
    pub(super) fn commit_done(&mut self, request: GroupRequest, result: ProduceResult) -> Check {
        let Ask::Commit(_, offset) = request.ask else { return Ok(()) };
        let told = match result {
            Ok(_) => {
                self.report.commits += 1;
                self.oracle.commit_seen(request.group, offset, "its member was told so")?;
                Told::Committed
            }
            Err(error) => Told::Done(Err(write_error(error))),
        };
        self.answer_group(&request, told);
        Ok(())
    }

    fn await_coordinator(
        &mut self,
        (host, shard): (usize, usize),
        request: &GroupRequest,
    ) -> Ticket {
        let ticket = Ticket(self.next().unsigned_abs());
        if let Some(running) = &mut self.hosts[host].shards[shard].running {
            running.groups.waiting.insert(ticket, request.clone());
        }
        ticket
    }

    /// A coordinator has an answer for somebody who waits.
    fn tell(&mut self, (host, shard): (usize, usize), ticket: Ticket, told: Told) {
        let running = self.hosts[host].shards[shard].running.as_mut();
        let waiting = running.and_then(|running| running.groups.waiting.remove(&ticket));
        if let Some(request) = waiting {
            self.answer_group(&request, told);
        }
    }

    pub(super) fn answer_group(&mut self, request: &GroupRequest, told: Told) {
        let answer = GroupAnswer { member: request.member, attempt: request.attempt, told };
        let delay_us = self.rng.random_range(50..3 * MS);
        self.after(delay_us, Event::GroupAnswer(Box::new(answer)));
    }
}
