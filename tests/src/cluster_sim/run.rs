//! One run: its clock, its events, and what the cores want done.
//!
//! Everything that happens is an event at a time of the simulated clock; what is due at the same time happens in the
//! order in which it was planned.

use std::collections::BTreeMap;

use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_engine::wal::record::WalRecord;
use chronik_replication::wire::Seat;
use chronik_shards::core::reconcile::FirstVoter;
use chronik_shards::core::{FillAnswer, ProduceResult, Token};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::event::{Event, HostStep, Pending, Step};
use super::host::{Host, HostState};
use super::members::Members;
use super::net::Net;
use super::oracle::Oracle;
use super::relaxed::Promise;
use super::replica_readers::Ages;
pub use super::report::Report;
use super::swarm::{MS, SECOND, Swarm};
use super::told::Told;
use super::topics::{Partition, Topic};
use super::{Bug, Check, Violation};
use crate::must;

/// With this in the environment a run tells what happens.
const TRACE: &str = "CHRONIK_CLUSTER_SIM_TRACE";

/// See the module's page.
pub(super) struct Run {
    pub rng: StdRng,
    pub bug: Option<Bug>,
    pub swarm: Swarm,
    pub now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_planned: u64,
    pub hosts: Vec<Host>,
    /// The replicas of the catalog that the cluster began with.
    pub first_voters: Vec<FirstVoter>,
    pub net: Net,
    /// Where each replica lives.
    pub seats: BTreeMap<(GroupId, ReplicaId), Seat>,
    /// What the log of a shard that has ended had to write.
    pub in_flight: Vec<Vec<Vec<WalRecord>>>,
    pub oracle: Oracle,
    /// How far a shard lets a partition be read, as it was seen last.
    shown: BTreeMap<(Seat, GroupId), Offset>,
    /// What leaders showed, and since when.
    pub ages: Ages,
    pub partitions: BTreeMap<GroupId, Partition>,
    pub topics: BTreeMap<String, Topic>,
    pub producer_ids: Vec<(i64, u32)>,
    pub members: Members,
    pub told: Told,
    /// Batches that were acknowledged in memory, and are not seen to be committed.
    pub promises: Vec<Promise>,
    /// Replicas that have promised memory, each with the life of its node in which it did so first.
    pub promisers: BTreeMap<(GroupId, ReplicaId), u64>,
    /// No faults any more.
    pub is_calm: bool,
    /// Clients do nothing any more.
    pub is_over: bool,
    /// The node that was taken out of the cluster, or is about to be.
    pub removed: Option<usize>,
    /// Actions that are left.
    pub actions_left: usize,
    next: i64,
    /// Whether to tell what happens.
    pub is_traced: bool,
    pub report: Report,
}

/// Runs `steps` actions from `seed`, and then to rest.
///
/// # Errors
/// The first promise that was broken.
pub fn run(seed: u64, steps: usize, bug: Option<Bug>) -> Result<Report, Violation> {
    let mut run = Run::start(seed, bug)?;
    run.actions_left = steps;
    run.after(0, Event::Action);
    while run.actions_left > 0 {
        run.next_event()?;
    }
    run.calm()?;
    run.after(0, Event::Action);
    if run.swarm.has_minority {
        let away = run.draw_minority();
        run.go_on_without(&away)?;
    }
    run.finish()?;
    run.remove_a_node()?;
    run.count();
    Ok(run.report)
}

impl Run {
    fn start(seed: u64, bug: Option<Bug>) -> Check<Run> {
        let mut rng = StdRng::seed_from_u64(seed);
        let swarm = Swarm::draw(seed, &mut rng);
        let in_flight = vec![vec![Vec::new(); usize::from(swarm.shards)]; swarm.nodes];
        let mut run = Run {
            rng,
            bug,
            swarm,
            now_us: 0,
            events: BTreeMap::new(),
            events_planned: 0,
            hosts: Vec::new(),
            first_voters: Vec::new(),
            net: Net::default(),
            seats: BTreeMap::new(),
            in_flight,
            oracle: Oracle::default(),
            shown: BTreeMap::new(),
            ages: Ages::default(),
            partitions: BTreeMap::new(),
            topics: BTreeMap::new(),
            producer_ids: Vec::new(),
            members: Members::default(),
            told: Told::default(),
            promises: Vec::new(),
            promisers: BTreeMap::new(),
            is_calm: true,
            is_over: false,
            removed: None,
            actions_left: 0,
            next: 0,
            is_traced: std::env::var_os(TRACE).is_some(),
            report: Report::default(),
        };
        run.make_hosts();
        for host in 0..run.hosts.len() {
            run.start_host(host)?;
            run.after(50 * MS, Event::Tick { host });
        }
        run.after(0, Event::Links);
        // What is lost by chance may be a snapshot for a node that joins, or its answer: that is noticed after 30 s.
        run.until("all nodes are in the catalog", 300, |run| {
            run.hosts.iter().all(|host| host.is_registered)
        })?;
        run.make_members();
        while run.members.partitions.is_empty() || run.pick_partition().is_none() {
            must!(run.now_us < 360 * SECOND, "liveness: no topic comes to be{}", run.outlook());
            run.create_offsets_topic()?;
            run.create_topic()?;
            run.go_on(2 * SECOND)?;
        }
        run.is_calm = false;
        Ok(run)
    }

    /// Goes on until something is so; a violation if it is not within so many seconds.
    pub(super) fn until(
        &mut self,
        what: &str,
        seconds: u64,
        is_so: impl Fn(&Run) -> bool,
    ) -> Check {
        let end_us = self.now_us + seconds * SECOND;
        while !is_so(self) {
            if self.now_us >= end_us {
                let what = format!("liveness: not within {seconds} s: {what}{}", self.outlook());
                return Err(Violation { what });
            }
            // To look costs more than most events do.
            self.go_on(20 * MS)?;
        }
        Ok(())
    }

    pub(super) fn go_on(&mut self, for_us: u64) -> Check {
        let end_us = self.now_us + for_us;
        while self.now_us < end_us {
            self.next_event()?;
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    pub(super) fn token(&mut self) -> Token {
        Token(self.next().unsigned_abs())
    }

    /// Where a replica lives.
    pub(super) fn seat_of(&self, group: GroupId, replica: ReplicaId) -> Option<Seat> {
        self.seats.get(&(group, replica)).copied()
    }

    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.events_planned += 1;
        self.events.insert((at_us, self.events_planned), event);
    }

    pub(super) fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    /// A shard goes on with something, unless its node ends before.
    pub(super) fn plan(&mut self, delay_us: u64, host: usize, shard: usize, step: Step) {
        let life = self.hosts[host].life;
        self.after(delay_us, Event::Shard { host, life, shard, step });
    }

    /// A node goes on with something, unless it ends before.
    pub(super) fn plan_on_host(&mut self, delay_us: u64, host: usize, step: HostStep) {
        let life = self.hosts[host].life;
        self.after(delay_us, Event::Host { host, life, step });
    }

    pub(super) fn next_event(&mut self) -> Check {
        let Some(((at_us, _), event)) = self.events.pop_first() else {
            return Err(Violation { what: "nothing happens any more".into() });
        };
        self.now_us = at_us;
        self.report.events += 1;
        let target = match &event {
            Event::Shard { host, life, .. } | Event::Host { host, life, .. } => {
                Some((*host, Some(*life)))
            }
            Event::Packet(packet) => Some((self.place(packet.to).0, None)),
            Event::Request(request) => Some((request.host, None)),
            Event::GroupRequest(request) => Some((request.host, None)),
            Event::Restart { host, life } | Event::Resume { host, life } => {
                if self.hosts[*host].life != *life {
                    return Ok(());
                }
                None
            }
            _ => None,
        };
        if let Some((host, life)) = target {
            let here = &mut self.hosts[host];
            if life.is_some_and(|life| life != here.life) {
                return Ok(());
            }
            if here.state == HostState::Paused {
                here.inbox.push(event);
                return Ok(());
            }
        }
        self.handle(event)
    }

    fn handle(&mut self, event: Event) -> Check {
        match event {
            Event::Tick { host } => self.tick(host),
            Event::Shard { host, shard, step, .. } => match step {
                Step::Write => self.write(host, shard),
                Step::Upkeep => self.upkeep(host, shard),
                Step::Tier => self.tier(host, shard),
                Step::TellCommits => self.tell_commits(host, shard),
                Step::Fetched(fetch) => self.fetched(host, shard, fetch),
                Step::FillWrite => self.write_filled(host, shard),
                Step::FillServe { asked_by, id, ask } => {
                    self.serve_records(host, shard, asked_by, (id, ask))
                }
                Step::RepairWrite => self.write_repair(host, shard),
                Step::RepairLate(id) => self.repair_answered(host, shard, id, FillAnswer::Failed),
                Step::FillAnswered(id, answer) => self.fill_answered(host, shard, id, answer),
            },
            Event::Host { host, step, .. } => match step {
                HostStep::Publish(step) => self.publish(host, step),
                HostStep::Register => self.register(host),
                HostStep::CallTimeout(id) => self.call_timeout(host, id),
            },
            Event::Packet(packet) => self.arrive(packet),
            Event::Request(request) => self.take_request(request),
            Event::Answer(answer) => self.take_answer(answer),
            Event::GroupRequest(request) => self.take_group_request(*request),
            Event::GroupAnswer(answer) => self.take_group_answer(*answer),
            Event::Restart { host, .. } => self.start_host(host),
            Event::Resume { host, .. } => self.resume(host),
            Event::Heal(healing) => self.heal(healing),
            Event::Strike { hosts } => self.strike(hosts),
            Event::Links => {
                self.after(100 * MS, Event::Links);
                self.look_at_links()?;
                self.look_at_promises()?;
                self.look_at_followers()
            }
            Event::Action => self.action(),
        }
    }

    fn action(&mut self) -> Check {
        if self.is_calm {
            return self.settle_clients();
        }
        self.actions_left = self.actions_left.saturating_sub(1);
        if self.actions_left > 0 {
            let delay_us = self.rng.random_range(0..2 * self.swarm.action_us);
            self.after(delay_us, Event::Action);
        }
        let drawn = self.rng.random_range(0..1000);
        if drawn < self.swarm.faults {
            return self.fault();
        }
        if drawn < self.swarm.faults + self.swarm.commands {
            return self.command();
        }
        match self.rng.random_range(0..13) {
            0..6 => self.produce(),
            6 => self.produce_plain(),
            7..10 => self.read(),
            10 => self.read_at_replica(),
            _ => {
                self.group_action();
                Ok(())
            }
        }
    }

    fn tick(&mut self, host: usize) -> Check {
        let here = &self.hosts[host];
        self.after(here.tick_us, Event::Tick { host });
        if self.hosts[host].state != HostState::Up {
            return Ok(());
        }
        let now_ms = self.wall_ms(host);
        for shard in 0..self.hosts[host].shards.len() {
            let Some(node) = self.hosts[host].node(shard) else { continue };
            self.set_clock(&node);
            node.core.borrow_mut().tick(now_ms);
            for (group, replica) in std::mem::take(&mut self.hosts[host].shards[shard].lost) {
                node.core.borrow_mut().peer_unreachable(group, replica);
            }
            self.tick_groups(host, shard)?;
            self.reconcile_now_and_then(host, shard)?;
            self.begin_repair(host, shard);
            self.check_memory(host, shard)?;
            self.absorb(host, shard)?;
            self.plan_idle_work(host, shard);
        }
        Ok(())
    }

    /// Takes in what a core wants done, and looks at what it shows. To be called after everything that a core is told.
    pub(super) fn absorb(&mut self, host: usize, shard: usize) -> Check {
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let seat = self.seat(host, shard);
        let persisted = std::mem::take(&mut *node.persisted.borrow_mut());
        self.oracle.persisted(seat, &persisted)?;
        self.check_installed(seat, &node, &persisted)?;
        let effects = node.core.borrow_mut().take_effects();
        self.report.elections += effects.elected.len() as u64;
        for (group, term, replica) in effects.elected {
            trace!(self, "{seat} leads {group} in {term}");
            self.oracle.elected(group, term, replica)?;
        }
        self.send_received(seat, effects.received)?;
        self.send_messages(seat, effects.messages)?;
        for (token, result) in effects.replies {
            self.reply(host, shard, token, result)?;
        }
        for (token, outcome) in effects.reads {
            self.passed(host, shard, token, outcome.is_ok())?;
        }
        if let Some(catalog) = effects.catalog {
            self.hosts[host].newest = Some(catalog);
            self.plan_publication(host);
        }
        node.segments.note_gone(effects.segments_gone);
        self.fill(host, shard, effects.fills)?;
        for fetch in effects.fetches {
            let delay_us = self.disk_us(host);
            self.plan(delay_us, host, shard, Step::Fetched(fetch));
        }
        let has_work = node.core.borrow().has_work();
        if let Some(running) = &mut self.hosts[host].shards[shard].running {
            running.is_mark_due |= !persisted.is_empty();
            if has_work && !running.is_write_due {
                running.is_write_due = true;
                let delay_us = self.disk_us(host);
                self.plan(delay_us, host, shard, Step::Write);
            }
        }
        self.plan_telling(host, shard);
        self.look_at(host, shard)
    }

    /// What the partitions of a shard show is committed (P2, P6).
    fn look_at(&mut self, host: usize, shard: usize) -> Check {
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let seat = self.seat(host, shard);
        let core = node.core.borrow();
        for group in core.group_ids() {
            let Some(view) = core.partition(group) else { continue };
            if view.is_ready {
                self.ages.note(group, view.high_watermark, self.now_us);
            }
            let shown = self.shown.entry((seat, group)).or_default();
            if *shown != view.high_watermark {
                *shown = view.high_watermark;
                self.oracle.applied(seat, group, view.high_watermark)?;
            }
        }
        Ok(())
    }

    fn reply(&mut self, host: usize, shard: usize, token: Token, result: ProduceResult) -> Check {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let Some(pending) = running.tokens.remove(&token) else {
            return Err(Violation { what: format!("{token:?} came back twice, or to nobody") });
        };
        match pending {
            Pending::Batch(request) => self.batch_done(request, result, shard),
            Pending::Command(command) => self.command_done(host, &command, result),
            Pending::Forwarded { id, asked_by } => {
                let is_done = result.is_ok();
                self.forwarded_done(host, id, asked_by, is_done);
                Ok(())
            }
            Pending::GroupJob { group, term, job } => {
                self.job_done(host, shard, (group, term), job, result)
            }
            Pending::GroupCommit(request) => self.commit_done(*request, result),
            Pending::Nobody | Pending::GroupFetch(_) | Pending::Latest { .. } => Ok(()),
        }
    }

    fn count(&mut self) {
        self.report.simulated_ms = self.now_us / MS;
        self.report.truncations = self.oracle.truncations;
        for running in
            self.hosts.iter().flat_map(|host| &host.shards).filter_map(|s| s.running.as_ref())
        {
            self.report.count(&running.node);
        }
    }
}
