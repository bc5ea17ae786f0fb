//! Producers: they follow leaders, and send again until they are answered.
//!
//! A producer has a connection to one node. What it sends on it arrives in order; so do the answers. When it gives up,
//! for an error or for want of an answer, it turns to another node, but what it has sent before may still arrive. After
//! that it sends one batch at a time until one is answered, as Kafka's clients do.

use chronik_engine::batch::{BatchHeader, RecordBatch};
use chronik_engine::ids::{GroupId, Offset, Term};
use chronik_shards::catalog::PartitionKind;
use chronik_shards::core::producers::SequenceError;
use chronik_shards::core::{Ack, ProduceError, ProduceResult, RequiredAcks};
use rand::Rng;

use super::event::{Event, Pending};
use super::host::Host;
use super::run::Run;
use super::swarm::MS;
use super::topics::Partition;
use super::{Bug, Check, Violation};
use crate::must;
use crate::sim::client::{SimProducer, random_batch};

/// An idempotent producer with its connection.
#[derive(Debug)]
pub(super) struct Producer {
    pub sim: SimProducer,
    host: usize,
    /// Of the connection: answers on an older one are not heard.
    connection: u64,
    /// The start of the node that it was made to: it ends with that.
    life: u64,
    /// The newest term that it knows of: who led in an older one leads no more.
    term: Term,
    last_arrival_us: u64,
    /// Something was answered on this connection.
    is_warm: bool,
    deadline_us: u64,
    /// It does nothing before this.
    ready_us: u64,
}

/// A batch on its way to a node.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub host: usize,
    group: GroupId,
    id: i64,
    batch: RecordBatch,
    acks: RequiredAcks,
    /// What was acknowledged when it was sent lies before it (P3).
    floor: Offset,
    /// The producer and its connection, if somebody waits.
    producer: Option<(usize, u64)>,
    /// The start of the node that the connection was made to.
    life: u64,
    /// When it came to the leader.
    pub taken_us: u64,
}

impl Request {
    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    pub(super) fn id(&self) -> i64 {
        self.id
    }

    pub(super) fn batch(&self) -> &RecordBatch {
        &self.batch
    }
}

/// What came of it, on its way back.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    group: GroupId,
    id: i64,
    producer: (usize, u64),
    result: Result<Offset, ProduceError>,
}

impl Producer {
    pub(super) fn new(id: i64, first_sequence: i32, host: usize) -> Producer {
        Producer {
            sim: SimProducer::new(id, first_sequence),
            host,
            connection: 0,
            life: 0,
            term: Term(0),
            last_arrival_us: 0,
            is_warm: false,
            deadline_us: 0,
            ready_us: 0,
        }
    }

    fn is_waiting(&self) -> bool {
        self.sim.pending.iter().any(|sent| sent.is_waiting)
    }
}

impl Run {
    pub(super) fn pick_partition(&mut self) -> Option<GroupId> {
        let has_records = |partition: &Partition| partition.kind == PartitionKind::Records;
        let open = self.partitions.iter().filter(|(_, p)| !p.is_deleted && has_records(p));
        let open: Vec<GroupId> = open.map(|(group, _)| *group).collect();
        let at = self.rng.random_range(0..open.len().max(1));
        open.get(at).copied()
    }

    /// Who leads a partition, and in which term, as one of its replicas says.
    pub(super) fn look_up_leader(&mut self, group: GroupId) -> Option<(usize, Term)> {
        let places = &self.partitions.get(&group)?.places;
        let asked = places[self.rng.random_range(0..places.len())];
        let (host, shard) = self.place(asked);
        let node = self.hosts[host].node(shard).filter(|_| self.hosts[host].is_there())?;
        let view = node.core.borrow().partition(group)?;
        let seat = self.seat_of(group, view.leader?)?;
        Some((self.place(seat).0, view.leader_epoch))
    }

    pub(super) fn shard_of(&self, group: GroupId, host: usize) -> Option<usize> {
        let places = &self.partitions.get(&group)?.places;
        let places = places.iter().map(|seat| self.place(*seat));
        places.into_iter().find(|(at, _)| *at == host).map(|(_, shard)| shard)
    }

    /// A producer makes a batch, or sends again what was not answered.
    pub(super) fn produce(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let count = self.partitions.get(&group).map_or(0, |p| p.producers.len());
        let at = self.rng.random_range(0..count.max(1));
        self.give_up_late(group, at);
        let id = self.next();
        let now_us = self.now_us;
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        let producer = &mut partition.producers[at];
        if now_us < producer.ready_us {
            return Ok(());
        }
        if self.rng.random_range(0..60) == 0 {
            producer.sim.bump_epoch();
        }
        let has_room = producer.is_warm || producer.sim.pending.is_empty();
        if has_room && producer.sim.can_send() {
            producer.sim.make_next(id, &mut self.rng);
        }
        self.send_open(group, at);
        Ok(())
    }

    /// All producers send again what was not answered; they make nothing new.
    pub(super) fn produce_open(&mut self) {
        let groups: Vec<GroupId> = self.partitions.keys().copied().collect();
        for group in groups {
            let count = self.partitions.get(&group).map_or(0, |p| p.producers.len());
            for at in 0..count {
                self.give_up_late(group, at);
                self.send_open(group, at);
            }
        }
    }

    fn give_up_late(&mut self, group: GroupId, at: usize) {
        let leader = self.look_up_leader(group);
        let now_us = self.now_us;
        let Some(partition) = self.partitions.get_mut(&group) else { return };
        let producer = &mut partition.producers[at];
        if producer.is_waiting() && producer.deadline_us <= now_us {
            self.report.given_up += 1;
            turn_to(producer, leader, &self.hosts);
        }
    }

    /// Sends what is not on its way, in order.
    fn send_open(&mut self, group: GroupId, at: usize) {
        let patience_us = self.swarm.patience_us;
        let now_us = self.now_us;
        let Some(partition) = self.partitions.get_mut(&group) else { return };
        let floor = partition.acked_to;
        let producer = &mut partition.producers[at];
        if now_us < producer.ready_us || partition.is_deleted {
            return;
        }
        let mut room = if producer.is_warm { usize::MAX } else { 1 };
        let mut requests = Vec::new();
        for sent in &mut producer.sim.pending {
            if room == 0 {
                break;
            }
            room -= 1;
            if sent.is_waiting {
                continue;
            }
            if requests.is_empty() {
                producer.deadline_us = now_us + patience_us;
            }
            self.report.resent += u64::from(sent.was_taken);
            sent.is_waiting = true;
            sent.was_taken = true;
            partition.oracle.sends(sent.id, sent.batch.bytes());
            let floor = *partition.floors.entry(sent.id).or_insert(floor);
            requests.push(Request {
                host: producer.host,
                group,
                id: sent.id,
                batch: sent.batch.clone(),
                acks: RequiredAcks::All,
                floor,
                producer: Some((at, producer.connection)),
                life: producer.life,
                taken_us: 0,
            });
        }
        let mut at_us = producer.last_arrival_us.max(now_us);
        for request in requests {
            at_us += self.rng.random_range(50..3 * MS);
            self.at(at_us, Event::Request(request));
        }
        if let Some(partition) = self.partitions.get_mut(&group) {
            partition.producers[at].last_arrival_us = at_us;
        }
    }

    /// A batch of no producer, for the leader's disk or for all: sent once.
    pub(super) fn produce_plain(&mut self) -> Check {
        let Some(group) = self.pick_partition() else { return Ok(()) };
        let id = self.next();
        let batch = random_batch(id, None, &mut self.rng);
        let acks = [RequiredAcks::All, RequiredAcks::Leader, RequiredAcks::Leader];
        let acks = acks[self.rng.random_range(0..3)];
        // If its topic is relaxed when it arrives, as far as the node that it comes to knows.
        let wants_memory = self.rng.random_range(0..4) > 0;
        let acks = if wants_memory { RequiredAcks::AllReceived } else { acks };
        self.send_plain(group, (id, batch), acks);
        Ok(())
    }

    /// A batch of no producer for all.
    pub(super) fn produce_for_all(&mut self, group: GroupId) {
        let id = self.next();
        let batch = random_batch(id, None, &mut self.rng);
        self.send_plain(group, (id, batch), RequiredAcks::All);
    }

    fn send_plain(&mut self, group: GroupId, (id, batch): (i64, RecordBatch), acks: RequiredAcks) {
        let guess = self.rng.random_range(0..self.hosts.len());
        let host = self.look_up_leader(group).map_or(guess, |(host, _)| host);
        let Some(partition) = self.partitions.get_mut(&group) else { return };
        partition.oracle.sends(id, batch.bytes());
        let floor = partition.acked_to;
        let delay_us = self.rng.random_range(50..3 * MS);
        let life = self.hosts[host].life;
        let producer = None;
        let taken_us = 0;
        let request = Request { host, group, id, batch, acks, floor, producer, life, taken_us };
        self.after(delay_us, Event::Request(request));
    }

    /// A batch arrives at a node.
    pub(super) fn take_request(&mut self, mut request: Request) -> Check {
        request.taken_us = self.now_us;
        let shard = self.shard_of(request.group, request.host);
        let is_open = self.hosts[request.host].life == request.life;
        let node = shard.and_then(|shard| self.hosts[request.host].node(shard));
        let node = node.filter(|_| is_open);
        let (Some(shard), Some(node)) = (shard, node) else {
            // The connection is refused or was closed, or nobody answers.
            if self.rng.random() {
                self.answer(&request, Err(ProduceError::NotLeader));
            }
            return Ok(());
        };
        if request.acks.is_relaxed() && !self.is_relaxed(request.host, request.group) {
            request.acks = RequiredAcks::All;
        }
        let token = self.token();
        trace!(self, "node {} gets batch {} of {}", request.host + 1, request.id, request.group);
        let acks = match self.bug {
            Some(Bug::AckBeforeQuorum) => RequiredAcks::Leader,
            Some(Bug::AckBeforeReceipt) if request.acks.is_relaxed() => {
                RequiredAcks::LeaderReceived
            }
            _ => request.acks,
        };
        let retained_bytes = request.batch.size() + 100;
        let batch = request.batch.clone();
        let group = request.group;
        let in_flight_bytes = node.core.borrow().in_flight_bytes();
        let proposed = {
            let mut core = node.core.borrow_mut();
            let checked = self.check_in_sync(group, request.acks, &mut core);
            checked.and_then(|()| core.propose_batch(group, batch, acks, retained_bytes, token))
        };
        match proposed {
            Ok(()) => {
                self.check_in_flight(request.host, shard, group, in_flight_bytes)?;
                if request.acks.is_for_all() {
                    self.taken(group, request.host, shard)?;
                }
                if let Some(running) = &mut self.hosts[request.host].shards[shard].running {
                    running.tokens.insert(token, Pending::Batch(request.clone()));
                }
            }
            Err(error) => {
                self.report.storage_full += u64::from(error == ProduceError::StorageFull);
                let is_out_of_sync = matches!(error, ProduceError::NotEnoughReplicas { .. });
                self.report.overloaded += u64::from(error == ProduceError::Overloaded);
                self.report.not_enough_in_sync += u64::from(is_out_of_sync);
                self.answer(&request, Err(error));
            }
        }
        self.absorb(request.host, shard)
    }

    /// A node has an answer for a batch: it counts from here on, whether its client hears it or not.
    pub(super) fn batch_done(
        &mut self,
        request: Request,
        result: ProduceResult,
        shard: usize,
    ) -> Check {
        let result = match result {
            Ok(Ack::Appended(appended)) => Ok(appended.base_offset),
            Ok(other) => return Err(Violation { what: format!("a batch came to {other:?}") }),
            Err(error) => Err(error),
        };
        self.report.storage_full += u64::from(result == Err(ProduceError::StorageFull));
        if let Ok(offset) = result {
            self.batch_acked(&request, offset, shard)?;
        }
        self.answer(&request, result);
        Ok(())
    }

    fn batch_acked(&mut self, request: &Request, offset: Offset, shard: usize) -> Check {
        let Request { group, id, floor, .. } = *request;
        let bytes = request.batch.bytes();
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        if request.acks.is_relaxed() {
            must!(offset >= floor, "P3: {group}: batch {id} at {offset}, before {floor}");
            return self.promised(request, offset, shard);
        }
        if request.acks != RequiredAcks::All {
            self.report.acked_leader += 1;
            partition.leader_acked.extend(BatchHeader::read(bytes).map(|header| header.crc));
            return Ok(());
        }
        self.report.acked_all += 1;
        self.oracle.acked(group, offset, bytes)?;
        self.check_copies(group, offset)?;
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        must!(offset >= floor, "P3: {group}: batch {id} at {offset}, all before {floor} was there");
        partition.acked_to = partition.acked_to.max(offset.plus(1));
        partition.acked_us = self.now_us;
        partition.oracle.acked(id, offset)
    }

    fn answer(&mut self, request: &Request, result: Result<Offset, ProduceError>) {
        let Some(producer) = request.producer else { return };
        let (group, id) = (request.group, request.id);
        let delay_us = self.rng.random_range(50..3 * MS);
        let Some(partition) = self.partitions.get_mut(&group) else { return };
        let at_us = &mut partition.last_answer_us;
        *at_us = (self.now_us + delay_us).max(*at_us + 1);
        let at_us = *at_us;
        self.at(at_us, Event::Answer(Answer { group, id, producer, result }));
    }

    /// A producer hears an answer.
    pub(super) fn take_answer(&mut self, answer: Answer) -> Check {
        let Answer { group, id, producer: (at, connection), mut result } = answer;
        let leader = self.look_up_leader(group);
        let backoff_us = self.rng.random_range(5..300) * MS;
        let now_us = self.now_us;
        let Some(partition) = self.partitions.get_mut(&group) else { return Ok(()) };
        let producer = &mut partition.producers[at];
        if producer.connection != connection || partition.is_deleted {
            return Ok(());
        }
        let is_first = producer.sim.pending.front().is_some_and(|sent| sent.id == id);
        let is_gap =
            matches!(result, Err(ProduceError::Sequence(SequenceError::OutOfOrderSequence { .. })));
        if result.is_ok() && !is_first && partition.in_sync_min > 1 {
            // It waited for fewer replicas than a duplicate before it: a connection gives answers in the order of requests.
            let again = Answer { group, id, producer: (at, connection), result };
            self.after(MS, Event::Answer(again));
            return Ok(());
        }
        if is_gap && !is_first {
            // The one before it was not taken, so neither could this one be.
            result = Err(ProduceError::NotLeader);
        }
        trace!(now_us, self.is_traced, "batch {id} of {group}: {result:?}");
        let group_error =
            |violation: Violation| Violation { what: format!("{group}: {}", violation.what) };
        producer.sim.on_answer(id, result).map_err(group_error)?;
        match result {
            Ok(_) => {
                producer.is_warm = true;
                producer.deadline_us = now_us + self.swarm.patience_us;
            }
            Err(_) => {
                turn_to(producer, leader, &self.hosts);
                producer.ready_us = now_us + backoff_us;
            }
        }
        Ok(())
    }
}

/// The connection is given up, and with it whatever is on its way. The next one is made to a newer leader, if one is known.
fn turn_to(producer: &mut Producer, leader: Option<(usize, Term)>, hosts: &[Host]) {
    producer.sim.on_crash();
    producer.connection += 1;
    producer.is_warm = false;
    if let Some((host, term)) = leader.filter(|(_, term)| *term >= producer.term) {
        (producer.host, producer.term) = (host, term);
    }
    producer.life = hosts[producer.host].life;
}
