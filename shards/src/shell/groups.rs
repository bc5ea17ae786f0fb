//! The coordinators of a shard: one for each partition of `__consumer_offsets` that is led here.
//!
//! - I1: a coordinator lives for one term of its partition's leadership. With the next one another begins, from what the
//!   log says; whoever waits for the old one is told to look for the coordinator again.
//! - I2: no borrow of the coordinators lives across an await, nor while an effect is done.
//! - I3: a ticket is named by whoever waits, across all shards, so that they can take it back when they leave.

use std::cell::RefMut;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use chronik_engine::ids::{GroupId, Term};

use super::replies::ReplyTo;
use super::shard::Shard;
use crate::catalog::Catalog;
use crate::core::{ProduceError, ProduceResult};
use crate::groups::{
    Coordinator, CoordinatorConfig, CoordinatorStats, Effect, GroupCommand, GroupError, GroupStore,
    JobId, JoinAnswer, JoinRequest, Now, OFFSETS_TOPIC, SyncAnswer, SyncRequest, Ticket,
};

/// The coordinators of a shard, and who waits for them.
#[derive(Debug, Default)]
pub struct Coordinators {
    led: BTreeMap<GroupId, Led>,
    joining: HashMap<Ticket, ReplyTo<JoinAnswer>>,
    syncing: HashMap<Ticket, ReplyTo<SyncAnswer>>,
    /// The node is about to stop, and coordinates nothing any more.
    has_resigned: bool,
    /// What coordinators that are gone had counted.
    past: CoordinatorStats,
}

#[derive(Debug)]
struct Led {
    term: Term,
    coordinator: Coordinator,
}

impl Coordinators {
    /// The figures of all coordinators.
    #[must_use]
    pub fn stats(&self) -> CoordinatorStats {
        let mut all = self.past;
        for led in self.led.values() {
            let stats = led.coordinator.stats();
            all.groups += stats.groups;
            all.members += stats.members;
            all.rebalances += stats.rebalances;
            all.expired_members += stats.expired_members;
        }
        all
    }

    fn keep_counts_of(&mut self, gone: &Coordinator) {
        let stats = gone.stats();
        self.past.rebalances += stats.rebalances;
        self.past.expired_members += stats.expired_members;
    }
}

/// Why something could not be written down, as Kafka tells it to a member.
fn write_error(error: ProduceError) -> GroupError {
    match error {
        ProduceError::UnknownPartition
        | ProduceError::NotLeader
        | ProduceError::ShuttingDown
        | ProduceError::StorageFull => GroupError::NotCoordinator,
        ProduceError::CommandTooLarge => GroupError::StateTooLarge,
        ProduceError::Overloaded
        | ProduceError::NotEnoughReplicas { .. }
        | ProduceError::ControlBatch
        | ProduceError::TransactionalBatch
        | ProduceError::NoSequence { .. }
        | ProduceError::Sequence(_) => GroupError::NotAvailable,
    }
}

/// The partitions of `__consumer_offsets` on this shard.
fn partitions_here(shard: &Shard, catalog: &Catalog) -> Vec<GroupId> {
    let Some(topic) = catalog.topic(OFFSETS_TOPIC) else { return Vec::new() };
    let node = shard.node.config.node_id;
    let is_here = |partition: &&crate::catalog::Partition| {
        partition.placement_on(node).is_some_and(|placement| placement.shard == shard.id)
    };
    topic.partitions.iter().filter(is_here).map(|partition| partition.group).collect()
}

impl Shard {
    fn now(&self) -> Now {
        let mono_ms = i64::try_from(self.clock.now_ns() / 1_000_000).unwrap_or(i64::MAX);
        Now { mono_ms, wall_ms: self.clock.wall_ms() }
    }

    fn coordinator_config(&self) -> CoordinatorConfig {
        let group = &self.node.config.group;
        CoordinatorConfig {
            initial_rebalance_delay_ms: group.initial_rebalance_delay_ms,
            session_timeout_min_ms: group.min_session_timeout_ms,
            session_timeout_max_ms: group.max_session_timeout_ms,
            members_max: group.max_size,
            offsets_retention_ms: group.offsets_retention_minutes.saturating_mul(60_000),
            offsets_check_interval_ms: group.offsets_retention_check_interval_ms,
            offset_metadata_bytes_max: group.offset_metadata_max_bytes,
        }
    }

    /// Whether this replica leads a partition of `__consumer_offsets`, though it may not coordinate its groups yet, or not
    /// any more.
    pub fn leads_groups(&self, group: GroupId) -> bool {
        self.core.borrow().partition(group).is_some_and(|view| view.is_led_here())
    }

    /// Does something with the coordinator of a partition of `__consumer_offsets`, then what it wants done.
    ///
    /// # Errors
    /// If it is not led here, or not yet.
    pub fn with_coordinator<T>(
        self: &Rc<Self>,
        group: GroupId,
        f: impl FnOnce(&mut Coordinator, Now) -> T,
    ) -> Result<T, GroupError> {
        self.with_coordinator_and_store(group, |coordinator, _, now| f(coordinator, now))
    }

    /// As [`Shard::with_coordinator`], with what is committed at hand.
    ///
    /// # Errors
    /// If it is not led here, or not yet.
    pub fn with_coordinator_and_store<T>(
        self: &Rc<Self>,
        group: GroupId,
        f: impl FnOnce(&mut Coordinator, &GroupStore, Now) -> T,
    ) -> Result<T, GroupError> {
        let now = self.now();
        let term = self.lead_groups(group, now)?;
        let (result, effects) = {
            let core = self.core.borrow();
            let store = core.group_store(group).ok_or(GroupError::Loading)?;
            let mut coordinators = self.groups.borrow_mut();
            let led = coordinators.led.get_mut(&group).ok_or(GroupError::NotCoordinator)?;
            let result = f(&mut led.coordinator, store, now);
            (result, led.coordinator.take_effects())
        };
        self.do_effects(group, term, effects);
        Ok(result)
    }

    /// Sees to it that the coordinator is the one of the term that is led now (I1).
    fn lead_groups(self: &Rc<Self>, group: GroupId, now: Now) -> Result<Term, GroupError> {
        let core = self.core.borrow();
        let view = core.partition(group).filter(|view| view.is_leader);
        let store = core.group_store(group);
        let mut coordinators = self.groups.borrow_mut();
        let known = coordinators.led.get(&group).map(|led| led.term);
        if let (Some(view), Some(known)) = (&view, known)
            && view.leader_epoch == known
            && store.is_some()
            && !coordinators.has_resigned
        {
            return Ok(known);
        }
        let resigned = coordinators.led.remove(&group);
        let outcome = match (view, store) {
            _ if coordinators.has_resigned => Err(GroupError::NotCoordinator),
            (None, _) => Err(GroupError::NotCoordinator),
            (Some(_), None) => Err(GroupError::Loading),
            (Some(view), Some(store)) => {
                let term = view.leader_epoch;
                let coordinator = Coordinator::load(self.coordinator_config(), store, now);
                coordinators.led.insert(group, Led { term, coordinator });
                Ok(term)
            }
        };
        drop(core);
        if let Some(resigned) = resigned {
            self.dismiss(resigned, coordinators);
        }
        outcome
    }

    /// Tells those who wait for a coordinator that it is none any more.
    fn dismiss(&self, led: Led, mut coordinators: RefMut<'_, Coordinators>) {
        let Led { mut coordinator, .. } = led;
        coordinators.keep_counts_of(&coordinator);
        coordinator.resign();
        let effects = coordinator.take_effects();
        drop(coordinators);
        for effect in effects {
            match effect {
                Effect::Joined(ticket, answer) => self.answer_join(ticket, *answer),
                Effect::Synced(ticket, answer) => self.answer_sync(ticket, answer),
                // Whoever leads now goes on from what is written.
                Effect::Write(..) => {}
            }
        }
    }

    fn do_effects(self: &Rc<Self>, group: GroupId, term: Term, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Joined(ticket, answer) => self.answer_join(ticket, *answer),
                Effect::Synced(ticket, answer) => self.answer_sync(ticket, answer),
                Effect::Write(job, command) => self.write_for(group, term, job, &command),
            }
        }
    }

    fn answer_join(&self, ticket: Ticket, answer: JoinAnswer) {
        let waiting = self.groups.borrow_mut().joining.remove(&ticket);
        if let Some(waiting) = waiting {
            waiting.send(self, answer);
        }
    }

    fn answer_sync(&self, ticket: Ticket, answer: SyncAnswer) {
        let waiting = self.groups.borrow_mut().syncing.remove(&ticket);
        if let Some(waiting) = waiting {
            waiting.send(self, answer);
        }
    }

    /// Writes down what a coordinator wants written and tells it what became of that, if it is still the same one.
    fn write_for(self: &Rc<Self>, group: GroupId, term: Term, job: JobId, command: &GroupCommand) {
        let written = self.begin_group_command(group, command);
        let shard = Rc::clone(self);
        chronik_ring::spawn(async move {
            let outcome = written.await;
            let is_same = shard.groups.borrow().led.get(&group).is_some_and(|led| led.term == term);
            if is_same {
                // Refused, the one that waits was answered when the coordinator resigned.
                _ = shard.with_coordinator(group, |coordinator, now| {
                    coordinator.written(job, outcome, now);
                });
            }
        })
        .detach();
    }

    /// Proposes a change of consumer groups.
    pub fn propose_group_command(
        self: &Rc<Self>,
        group: GroupId,
        command: &GroupCommand,
        done: ReplyTo<ProduceResult>,
    ) {
        self.propose(done, |core, token| core.propose_group_command(group, command, token));
    }

    /// Proposes a change of consumer groups; its place in the log is fixed on return. What is returned tells whether it
    /// is durable. Cancel-safe: what was proposed is done.
    pub fn begin_group_command(
        self: &Rc<Self>,
        group: GroupId,
        command: &GroupCommand,
    ) -> impl Future<Output = Result<(), GroupError>> + use<> {
        let (done, written) = ReplyTo::channel(self.id);
        self.propose_group_command(group, command, done);
        async move {
            match written.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(write_error(error)),
                Err(_) => Err(GroupError::NotCoordinator),
            }
        }
    }

    /// A member joins; answered when the rebalance is over, unless the ticket is taken back.
    pub fn join_group(
        self: &Rc<Self>,
        group: GroupId,
        request: JoinRequest,
        ticket: Ticket,
        done: ReplyTo<JoinAnswer>,
    ) {
        let member_id = request.member_id.clone();
        self.groups.borrow_mut().joining.insert(ticket, done);
        let joined = self.with_coordinator(group, |coordinator, now| {
            coordinator.join(request, ticket, now);
        });
        if let Err(error) = joined {
            self.answer_join(ticket, JoinAnswer::refused(member_id, error));
        }
    }

    /// A member asks for its assignment; answered when there is one, unless the ticket is taken back.
    pub fn sync_group(
        self: &Rc<Self>,
        group: GroupId,
        request: SyncRequest,
        ticket: Ticket,
        done: ReplyTo<SyncAnswer>,
    ) {
        self.groups.borrow_mut().syncing.insert(ticket, done);
        let synced = self.with_coordinator(group, |coordinator, now| {
            coordinator.sync(request, ticket, now);
        });
        if let Err(error) = synced {
            self.answer_sync(ticket, SyncAnswer::refused(error));
        }
    }

    /// Forgets somebody who does not wait any longer. Their member stays: a client whose connection broke comes back.
    pub fn forget_ticket(&self, ticket: Ticket) {
        let mut coordinators = self.groups.borrow_mut();
        coordinators.joining.remove(&ticket);
        coordinators.syncing.remove(&ticket);
    }

    /// Gives every coordinator here the time, and those that were not begun yet their beginning.
    pub(super) fn tick_groups(self: &Rc<Self>) {
        let catalog = self.catalog();
        let are_topics_gone = self.are_topics_gone.take();
        for group in partitions_here(self, &catalog) {
            let ticked = self.with_coordinator_and_store(group, |coordinator, store, now| {
                coordinator.tick(now);
                if coordinator.is_expiry_due(now) || are_topics_gone {
                    let is_gone = |topic: &str, at, of| catalog.is_gone(topic, at, of);
                    coordinator.expire_offsets(store, now, is_gone)
                } else {
                    Vec::new()
                }
            });
            for command in ticked.unwrap_or_default() {
                // Nobody waits: what could not be forgotten now is found again.
                let (done, _) = ReplyTo::channel(self.id);
                self.propose_group_command(group, &command, done);
            }
        }
    }

    /// Coordinates nothing any more, and sends home whoever waits.
    pub(super) fn resign_groups(&self) {
        let led = {
            let mut coordinators = self.groups.borrow_mut();
            coordinators.has_resigned = true;
            std::mem::take(&mut coordinators.led)
        };
        for led in led.into_values() {
            self.dismiss(led, self.groups.borrow_mut());
        }
    }
}
