//! Topics with `durability=relaxed`: batches that are acknowledged when a quorum has them in memory, and which of those may be
//! lost.
//!
//! - I1: one is lost only if one of the voters, at least, has ended or forgotten since the leader got it.
//! - I2: and only if a majority of them failed about that time: ended, forgot, stood still, or wrote nothing. Where messages
//!   are lost by chance, or links are cut, nobody can say who failed, and I1 alone is asked.
//! - I3: once it is committed it stays, as any other; what is committed in its place is the end of it.
//! - I4: who has promised memory, as leader or to one, whatever its topic is by now, says in its next lives that it may have
//!   forgotten, with whatever it says in elections in the first two seconds.

use std::collections::BTreeMap;

use bytes::Bytes;
use chronik_engine::batch::BatchHeader;
use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_replication::wire::{
    FrameKind, ReceivedMark, Seat, WireError, decode_received, encode_received,
};
use chronik_replication::{MessageType, PeerMessage};
use chronik_shards::catalog::{Catalog, CatalogCommand, Durability};
use rand::Rng;

use super::clients::Request;
use super::event::Event;
use super::host::{Host, HostState};
use super::net::{Body, body_of};
use super::oracle::Oracle;
use super::run::Run;
use super::swarm::{MS, SECOND};
use super::{Bug, Check, Violation};
use crate::must;

/// Who failed so shortly before may not have been back, and who remembers may not have found each other.
const NEAR_US: u64 = 4 * SECOND;
/// For so long after a start nobody has had all the ticks for which it may have forgotten.
const FORGETFUL_US: u64 = 2 * SECOND;

/// A batch that somebody was told is in the memory of a quorum.
#[derive(Debug, Clone)]
pub(super) struct Promise {
    group: GroupId,
    offset: Offset,
    id: i64,
    /// Of the batch.
    crc: Option<u32>,
    /// Who voted, and on which nodes.
    voters: Vec<(ReplicaId, usize)>,
    /// When the leader got it.
    since_us: u64,
}

fn encode(marks: &[ReceivedMark]) -> Result<Bytes, WireError> {
    Ok(Bytes::from(encode_received(marks)?.parts().concat()))
}

fn decode(frame: &Bytes) -> Result<Vec<ReceivedMark>, WireError> {
    decode_received(&body_of(frame, FrameKind::Received)?)
}

fn unreadable(error: WireError) -> Violation {
    Violation { what: format!("P22: marks: {error}") }
}

impl Run {
    /// Makes a topic relaxed or durable.
    pub(super) fn change_durability(&mut self) -> Check {
        let open =
            self.topics.iter().filter(|(_, topic)| topic.is_acked && !topic.is_deletion_asked);
        let names: Vec<String> = open.map(|(name, _)| name.clone()).collect();
        let Some(name) = names.get(self.rng.random_range(0..names.len().max(1))).cloned() else {
            return Ok(());
        };
        let value = [Some("relaxed"), Some("durable"), None][self.rng.random_range(0..3)];
        let changes = BTreeMap::from([("durability".to_owned(), value.map(str::to_owned))]);
        let host = self.rng.random_range(0..self.hosts.len());
        self.submit(host, &CatalogCommand::AlterTopicConfigs { name, changes })
    }

    /// A shard hears which topics are relaxed, or were.
    pub(super) fn tell_relaxed(&mut self, host: usize, shard: usize, catalog: &Catalog) {
        let Some(node) = self.hosts[host].node(shard) else { return };
        let mut relaxed: BTreeMap<GroupId, Durability> = catalog.relaxed_groups().collect();
        if self.bug == Some(Bug::RelaxedForgotten) {
            relaxed.retain(|_, durability| *durability == Durability::Relaxed);
        }
        node.core.borrow_mut().set_relaxed(&relaxed);
    }

    /// Whether batches that come to a node for a group need memory only, by the catalog that it shows.
    pub(super) fn is_relaxed(&self, host: usize, group: GroupId) -> bool {
        let shown = self.hosts[host].shown.as_ref();
        let topic = shown.and_then(|catalog| Some(catalog.partition_of(group)?.0));
        topic.is_some_and(|topic| topic.settings.is_relaxed())
    }

    fn promises_memory(&mut self, group: GroupId, replica: ReplicaId, host: usize) {
        self.promisers.entry((group, replica)).or_insert(self.hosts[host].life);
    }

    /// Who asks for a vote or gives one says whether it may have forgotten what it promised (I4).
    pub(super) fn check_vote(&mut self, from: Seat, sent: &PeerMessage) -> Check {
        let PeerMessage { group, message } = sent;
        let counts = match message.get_msg_type() {
            MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse => {
                !message.reject
            }
            // The leader has asked who says why.
            MessageType::MsgRequestPreVote | MessageType::MsgRequestVote => {
                message.context.is_empty()
            }
            _ => false,
        };
        let promised = self.promisers.get(&(*group, ReplicaId(message.from)));
        let host = self.place(from).0;
        let Host { life, started_us, .. } = self.hosts[host];
        let is_another_life = promised.is_some_and(|promised| *promised < life);
        // Of a topic that is deleted nobody expects anything.
        let is_deleted = self.partitions.get(group).is_none_or(|partition| partition.is_deleted);
        let is_late = self.now_us >= started_us + FORGETFUL_US;
        if !counts || !is_another_life || is_deleted || is_late {
            return Ok(());
        }
        self.report.forgetful_votes += 1;
        must!(
            message.priority != 0,
            "P1: {group}: replica {} at {from} has promised memory and votes as if it remembered: {message:?}",
            message.from
        );
        Ok(())
    }

    /// Sends what replicas of a shard have received to their leaders.
    pub(super) fn send_received(&mut self, from: Seat, marks: Vec<ReceivedMark>) -> Check {
        let mut packets: BTreeMap<Seat, Vec<ReceivedMark>> = BTreeMap::new();
        let host = self.place(from).0;
        for mark in marks {
            self.promises_memory(mark.group, mark.from, host);
            if let Some(seat) = self.seat_of(mark.group, mark.to) {
                packets.entry(seat).or_default().push(mark);
            }
        }
        for (to, marks) in packets {
            self.send(from, to, Body::Received(encode(&marks).map_err(unreadable)?));
        }
        Ok(())
    }

    /// Marks arrive at a shard.
    pub(super) fn take_received(&mut self, host: usize, shard: usize, frame: &Bytes) -> Check {
        let marks = decode(frame).map_err(unreadable)?;
        if let Some(node) = self.hosts[host].node(shard) {
            node.core.borrow_mut().take_received(marks);
        }
        self.absorb(host, shard)
    }

    /// What a node had in memory is gone.
    pub(super) fn forgets(&mut self, host: usize) {
        self.hosts[host].forgot_us = self.now_us;
    }

    /// Something goes wrong with a node itself, or does so no more.
    pub(super) fn fails(&mut self, host: usize) {
        self.hosts[host].failed_us = self.now_us;
    }

    /// A batch is acknowledged to somebody for whom memory is enough.
    pub(super) fn promised(&mut self, request: &Request, offset: Offset, shard: usize) -> Check {
        let (group, host) = (request.group(), request.host);
        self.report.acked_relaxed += 1;
        let node = self.hosts[host].node(shard);
        let members = node.as_ref().and_then(|node| node.core.borrow().members(group));
        let replica = node.and_then(|node| node.core.borrow().replica(group));
        let (Some((members, _)), Some(replica)) = (members, replica) else {
            return Err(Violation { what: format!("{group}: acknowledged where it is not") });
        };
        self.promises_memory(group, replica, host);
        let place = |voter| Some((voter, self.place(self.seat_of(group, voter)?).0));
        let voters = members.voters.into_iter().filter_map(place).collect();
        let crc = BatchHeader::read(request.batch().bytes()).map(|header| header.crc);
        let (id, since_us) = (request.id(), request.taken_us);
        self.promises.push(Promise { group, offset, id, crc, voters, since_us });
        self.plan_strike(host);
        Ok(())
    }

    /// Now and then a node ends just when something was promised, or all do: by themselves they would hardly ever.
    fn plan_strike(&mut self, leader: usize) {
        let nodes = self.hosts.len();
        let hosts = match self.rng.random_range(0_u32..80) {
            0 => vec![leader],
            1 => vec![self.rng.random_range(0..nodes)],
            2 => (0..nodes).collect(),
            _ => return,
        };
        let delay_us = self.rng.random_range(0..10 * MS);
        self.after(delay_us, Event::Strike { hosts });
    }

    pub(super) fn strike(&mut self, hosts: Vec<usize>) -> Check {
        for host in hosts {
            if !self.is_calm {
                self.crash(host)?;
            }
        }
        Ok(())
    }

    /// Looks what has become of promises.
    pub(super) fn look_at_promises(&mut self) -> Check {
        let is_open = |group: &GroupId| self.partitions.get(group).is_some_and(|p| !p.is_deleted);
        self.promises.retain(|promise| is_open(&promise.group));
        for promise in std::mem::take(&mut self.promises) {
            match self.oracle.holds_at(promise.group, promise.offset, promise.crc) {
                None => self.promises.push(promise),
                Some(true) => self.report.promises_kept += 1,
                Some(false) => self.lost(&promise)?,
            }
        }
        Ok(())
    }

    /// At the end: what is not committed is lost.
    pub(super) fn end_promises(&mut self) -> Check {
        self.look_at_promises()?;
        for promise in std::mem::take(&mut self.promises) {
            self.lost(&promise)?;
        }
        Ok(())
    }

    fn lost(&mut self, promise: &Promise) -> Check {
        let Promise { group, offset, id, since_us, ref voters, .. } = *promise;
        self.report.promises_lost += 1;
        let forgot = |voter: &&(ReplicaId, usize)| self.hosts[voter.1].forgot_us >= since_us;
        let failed = |voter: &&(ReplicaId, usize)| {
            let here = &self.hosts[voter.1];
            let is_well = here.state == HostState::Up && here.slowness == 1 && !here.hangs;
            let is_lost = self.oracle.is_lost(group, voter.0);
            !is_well || is_lost || here.failed_us + NEAR_US >= since_us || forgot(voter)
        };
        let forgetful = voters.iter().filter(forgot).count();
        must!(
            forgetful > 0,
            "P1: {group}: batch {id}, in memory at {offset} since {since_us} us, is gone though nobody forgot"
        );
        let is_troubled = self.net.is_troubled_since(since_us.saturating_sub(NEAR_US));
        // Where others have come to vote since it takes more to say who had it.
        if self.swarm.lost > 0 || is_troubled || !self.oracle.has_voters(group, voters) {
            return Ok(());
        }
        self.report.promises_judged += 1;
        let failing = voters.iter().filter(failed).count();
        must!(
            2 * failing > voters.len(),
            "P1: {group}: batch {id}, in memory at {offset} since {since_us} us, is gone: {forgetful} forgot, {failing} of {} failed",
            voters.len()
        );
        Ok(())
    }
}

impl Oracle {
    fn is_lost(&self, id: GroupId, replica: ReplicaId) -> bool {
        let disk = self.groups.get(&id).and_then(|group| group.replicas.get(&replica));
        disk.is_none_or(|disk| disk.is_lost)
    }

    /// Whether those vote still, and nobody else.
    fn has_voters(&self, id: GroupId, voters: &[(ReplicaId, usize)]) -> bool {
        let config = self.config(id).unwrap_or_default();
        let same = config.voters.iter().copied().eq(voters.iter().map(|(voter, _)| *voter));
        same && config.outgoing.is_empty()
    }

    /// Whether this batch is committed at an offset; `None` as long as nothing is.
    fn holds_at(&self, id: GroupId, offset: Offset, crc: Option<u32>) -> Option<bool> {
        let chosen = self.groups.get(&id)?.chosen();
        let at = chosen.partition_point(|known| known.end_offset <= offset);
        let known = chosen.get(at)?;
        let found = BatchHeader::read(&known.payload).map(|header| header.crc);
        Some(known.base_offset == offset && found == crc)
    }
}
