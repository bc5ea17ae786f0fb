//! Links between nodes, and what becomes of packets on them.
//!
//! Two nodes have one link. It is cut in either direction or in none; when it has been cut for long, or one of the two
//! has been silent for long, it is *down* for both until they hear each other again, and what was on its way is lost.
//! While it is up, packets are lost, doubled, late and out of order as the run has drawn. What one node has to say to one
//! seat at one time is one packet, in the bytes of the production codec.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::wire::{
    FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Seat, WireError, decode_raft,
    encode_raft,
};
use chronik_replication::{MessageType, PeerMessage};
use chronik_shards::catalog::CommandId;
use chronik_shards::core::{FillAnswer, FillAsk, ShardCore};
use rand::Rng;

use super::event::Event;
use super::host::HostState;
use super::run::Run;
use super::swarm::MS;
use super::{Bug, Check, Violation};
use crate::must;

/// What is sent from one node to another.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// Raft's messages as a frame.
    Raft(Bytes),
    /// What replicas have received, as a frame.
    Received(Bytes),
    /// A command to propose.
    Call { id: CommandId, payload: Bytes },
    /// A node asks to be entered into the catalog.
    Join { payload: Bytes },
    /// A replica asks a leader for records.
    Ask { id: u64, ask: FillAsk },
    /// They, or that there are none now.
    Records { id: u64, answer: FillAnswer },
    /// Whether that was done.
    Reply { id: CommandId, is_done: bool },
}

/// Something on its way.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub from: Seat,
    pub to: Seat,
    /// Of the link as it was sent.
    generation: u64,
    pub body: Body,
}

/// The link of two nodes.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// Rises as it goes down: what was sent before is lost.
    generation: u64,
    is_down: bool,
    /// Something was lost on it since it is up.
    has_lost: bool,
    broken_since_us: Option<u64>,
    mended_since_us: Option<u64>,
}

/// All links.
#[derive(Debug, Default)]
pub(super) struct Net {
    links: BTreeMap<(usize, usize), Link>,
    /// How many cuts lie on the way from one node to another.
    cuts: BTreeMap<(usize, usize), u32>,
    /// Until when packets from one node to another are kept back.
    clogged_until_us: BTreeMap<(usize, usize), u64>,
    last_arrival_us: BTreeMap<(Seat, Seat), u64>,
    /// When a way was cut, mended or clogged last.
    troubled_us: u64,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Net {
    /// Whether any way was cut or clogged since then, or is.
    pub(super) fn is_troubled_since(&self, since_us: u64) -> bool {
        let is_cut = self.cuts.values().any(|count| *count > 0);
        let is_clogged = self.clogged_until_us.values().any(|until_us| *until_us >= since_us);
        is_cut || is_clogged || self.troubled_us >= since_us
    }

    pub(super) fn trouble(&mut self, now_us: u64) {
        self.troubled_us = now_us;
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    pub(super) fn mend(&mut self, from: usize, to: usize) {
        if let Some(count) = self.cuts.get_mut(&(from, to)) {
            *count = count.saturating_sub(1);
        }
    }

    pub(super) fn clog(&mut self, from: usize, to: usize, until_us: u64) {
        let until = self.clogged_until_us.entry((from, to)).or_default();
        *until = until_us.max(*until);
    }

    /// Everything that lies on the links is over.
    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.clogged_until_us.clear();
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|count| *count > 0)
    }
}

/// The bytes of the messages as a frame.
fn encode(messages: &[PeerMessage]) -> Result<Bytes, WireError> {
    let frame = encode_raft(messages)?;
    let mut bytes = BytesMut::with_capacity(frame.bytes());
    frame.parts().iter().for_each(|part| bytes.extend_from_slice(part));
    Ok(bytes.freeze())
}

/// The body of a frame, which must be of a kind and whole.
pub(super) fn body_of(frame: &Bytes, kind: FrameKind) -> Result<Bytes, WireError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    header.copy_from_slice(&frame[..FRAME_HEADER_BYTES]);
    let header = FrameHeader::decode(&header, FRAME_BODY_BYTES_MAX)?;
    let body = frame.slice(FRAME_HEADER_BYTES..);
    header.check_body(&body)?;
    if header.kind != kind {
        return Err(WireError::Kind { kind: 0 });
    }
    Ok(body)
}

fn decode(frame: &Bytes) -> Result<Vec<PeerMessage>, WireError> {
    decode_raft(&body_of(frame, FrameKind::Raft)?)
}

impl Run {
    /// Sends what a core has for other replicas, in packets of one seat each.
    pub(super) fn send_messages(&mut self, from: Seat, messages: Vec<PeerMessage>) -> Check {
        let mut packets: BTreeMap<Seat, Vec<PeerMessage>> = BTreeMap::new();
        for message in messages {
            self.oracle.leaves(&message)?;
            self.check_vote(from, &message)?;
            self.probe(from, &message)?;
            self.report.messages += 1;
            let kind = message.message.get_msg_type();
            self.report.snapshots += u64::from(kind == MessageType::MsgSnapshot);
            let to = ReplicaId(message.message.to);
            let seat = self.seat_of(message.group, to);
            must!(seat.is_some(), "{}: nobody knows replica {to}", message.group);
            if let Some(seat) = seat {
                packets.entry(seat).or_default().push(message);
            }
        }
        for (to, mut messages) in packets {
            self.spoil(from, to, &mut messages);
            let named: Vec<(GroupId, ReplicaId)> =
                messages.iter().map(|m| (m.group, ReplicaId(m.message.to))).collect();
            let bytes = encode(&messages)
                .map_err(|error| Violation { what: format!("P22: {error}: {messages:?}") })?;
            // Who sends is told of some of what is lost.
            if !self.send(from, to, Body::Raft(bytes)) && self.rng.random() {
                let (host, shard) = self.place(from);
                self.hosts[host].shards[shard].lost.extend(named);
            }
        }
        Ok(())
    }

    /// Puts a packet on its way; whether it will arrive, as far as its sender can know.
    pub(super) fn send(&mut self, from: Seat, to: Seat, body: Body) -> bool {
        let ((a, _), (b, _)) = (self.place(from), self.place(to));
        let link = *self.net.links.entry(pair(a, b)).or_default();
        if link.is_down || self.net.is_cut(a, b) {
            self.report.packets_cut += 1;
            self.lose(a, b);
            return !link.is_down;
        }
        let is_raft = matches!(body, Body::Raft(_) | Body::Received(_));
        if is_raft && self.rng.random_range(0..1000) < self.swarm.lost {
            self.report.packets_lost += 1;
            self.lose(a, b);
            return self.rng.random();
        }
        let packet = Packet { from, to, generation: link.generation, body };
        if is_raft && self.rng.random_range(0..1000) < self.swarm.doubled {
            self.report.packets_doubled += 1;
            self.fly(packet.clone());
        }
        self.fly(packet);
        true
    }

    fn lose(&mut self, a: usize, b: usize) {
        self.net.links.entry(pair(a, b)).or_default().has_lost = true;
    }

    /// Whatever a link has lost, its two nodes notice: what does not lose a connection, loses nothing on it.
    pub(super) fn close_leaky_links(&mut self) -> Check {
        let is_leaky =
            |((a, b), link): &(&(usize, usize), &Link)| link.has_lost && !link.is_down && a != b;
        let leaky = self.net.links.iter().filter(is_leaky);
        let leaky: Vec<(usize, usize)> = leaky.map(|(ends, _)| *ends).collect();
        for (a, b) in leaky {
            self.link_down(a, b)?;
        }
        Ok(())
    }

    fn fly(&mut self, packet: Packet) {
        let ((a, _), (b, _)) = (self.place(packet.from), self.place(packet.to));
        let delay_us = self.rng.random_range(self.swarm.delay_us_min..=self.swarm.delay_us_max);
        let clogged_until_us = self.net.clogged_until_us.get(&(a, b)).copied().unwrap_or(0);
        let mut at_us = self.now_us.max(clogged_until_us) + delay_us;
        let last_us = self.net.last_arrival_us.entry((packet.from, packet.to)).or_default();
        if at_us < *last_us {
            if self.swarm.is_ordered {
                at_us = *last_us;
            } else {
                self.report.packets_reordered += 1;
            }
        }
        *last_us = at_us.max(*last_us);
        self.at(at_us, Event::Packet(packet));
    }

    /// A packet arrives, if it does.
    pub(super) fn arrive(&mut self, packet: Packet) -> Check {
        let ((a, _), (b, shard)) = (self.place(packet.from), self.place(packet.to));
        let link = self.net.links.get(&pair(a, b)).copied().unwrap_or_default();
        let is_lost = link.generation != packet.generation || self.net.is_cut(a, b);
        if is_lost || self.hosts[b].running(shard).is_none() {
            self.report.packets_cut += 1;
            self.lose(a, b);
            return Ok(());
        }
        match packet.body {
            Body::Raft(frame) => {
                let messages = decode(&frame)
                    .map_err(|error| Violation { what: format!("P22: a frame: {error}") })?;
                if let Some(node) = self.hosts[b].node(shard) {
                    node.core.borrow_mut().step(messages);
                }
                self.absorb(b, shard)
            }
            Body::Received(frame) => self.take_received(b, shard, &frame),
            Body::Call { id, payload } => self.take_call(packet.to, packet.from, id, &payload),
            Body::Reply { id, is_done } => self.take_reply(b, id, is_done),
            Body::Join { payload } => self.take_join(packet.to, &payload),
            Body::Ask { id, ask } => self.take_ask(packet.to, packet.from, id, ask),
            Body::Records { id, answer } => self.fill_answered(b, shard, id, answer),
        }
    }

    /// Looks at all links: who has been silent for long is gone, who is heard again is there.
    pub(super) fn look_at_links(&mut self) -> Check {
        for b in 0..self.hosts.len() {
            for a in 0..b {
                let is_heard = |host: usize| self.hosts[host].state == HostState::Up;
                let is_whole = !self.net.is_cut(a, b) && !self.net.is_cut(b, a);
                let is_broken = !is_whole || !is_heard(a) || !is_heard(b);
                let silence_us = self.swarm.silence_us;
                let now_us = self.now_us;
                let link = self.net.links.entry((a, b)).or_default();
                let since_us = |since: Option<u64>| since.map_or(0, |since| now_us - since);
                if is_broken {
                    link.mended_since_us = None;
                    link.broken_since_us.get_or_insert(now_us);
                    if !link.is_down && since_us(link.broken_since_us) >= silence_us {
                        self.link_down(a, b)?;
                    }
                } else {
                    link.broken_since_us = None;
                    link.mended_since_us.get_or_insert(now_us);
                    if link.is_down && since_us(link.mended_since_us) >= 100 * MS {
                        link.is_down = false;
                        self.trouble(a);
                        self.trouble(b);
                        self.find_peer(a, b)?;
                        self.find_peer(b, a)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether two nodes know that they do not hear each other.
    pub(super) fn is_link_down(&self, a: usize, b: usize) -> bool {
        self.net.links.get(&pair(a, b)).is_some_and(|link| link.is_down)
    }

    /// Whether what is sent on the link of two nodes arrives, and at once.
    pub(super) fn is_link_whole(&self, a: usize, b: usize) -> bool {
        let is_clogged =
            |way| self.net.clogged_until_us.get(&way).is_some_and(|t| *t >= self.now_us);
        let ways = [(a, b), (b, a)];
        !self.is_link_down(a, b)
            && !ways.iter().any(|way| self.net.is_cut(way.0, way.1) || is_clogged(*way))
    }

    /// The link of two nodes is down: both notice, each when it can.
    pub(super) fn link_down(&mut self, a: usize, b: usize) -> Check {
        let link = self.net.links.entry(pair(a, b)).or_default();
        if std::mem::replace(&mut link.is_down, true) {
            return Ok(());
        }
        link.generation += 1;
        link.has_lost = false;
        trace!(self, "the link of nodes {} and {} is down", a + 1, b + 1);
        self.trouble(a);
        self.trouble(b);
        for (here, there) in [(a, b), (b, a)] {
            match self.hosts[here].state {
                HostState::Up => self.lose_peer(here, there)?,
                HostState::Paused => self.hosts[here].lost_peers.push(there),
                HostState::Down => {}
            }
        }
        Ok(())
    }

    /// A node hears that another one is gone, on each of its shards.
    pub(super) fn lose_peer(&mut self, here: usize, there: usize) -> Check {
        self.report.peers_lost += 1;
        self.tell_of_peer(here, there, |core, is_there| core.peers_lost(is_there))
    }

    /// A node hears that another one is there, on each of its shards.
    fn find_peer(&mut self, here: usize, there: usize) -> Check {
        self.tell_of_peer(here, there, |core, is_there| core.peers_found(is_there))
    }

    fn tell_of_peer(
        &mut self,
        here: usize,
        there: usize,
        tell: impl Fn(&mut ShardCore, &dyn Fn(GroupId, ReplicaId) -> bool),
    ) -> Check {
        for shard in 0..self.hosts[here].shards.len() {
            let Some(node) = self.hosts[here].node(shard) else { continue };
            for other in 0..self.hosts[there].shards.len() {
                let seat = self.seat(there, other);
                let seats = &self.seats;
                let is_there = |group, replica| seats.get(&(group, replica)) == Some(&seat);
                tell(&mut node.core.borrow_mut(), &is_there);
            }
            self.absorb(here, shard)?;
        }
        Ok(())
    }

    /// What planted bugs make of messages on their way.
    fn spoil(&mut self, from: Seat, to: Seat, messages: &mut [PeerMessage]) {
        let is_one_away = self.bug == Some(Bug::VotesOfAll) && self.is_one_away();
        let (sender, _) = self.place(from);
        for message in messages {
            let raft = &mut message.message;
            self.spoil_removed(sender, raft);
            let kind = raft.get_msg_type();
            match self.bug {
                Some(Bug::ApplyUncommitted) if kind == MessageType::MsgAppend => {
                    raft.commit = raft.index + raft.entries.len() as u64;
                }
                Some(Bug::ForgedCommit) if kind == MessageType::MsgHeartbeat => {
                    raft.commit += u64::from(self.rng.random_range(0..20) == 0);
                }
                Some(Bug::CommitsUntold)
                    if kind == MessageType::MsgAppend && raft.entries.is_empty() =>
                {
                    raft.commit = 0;
                }
                Some(Bug::VotesOfAll)
                    if kind == MessageType::MsgRequestVoteResponse && is_one_away =>
                {
                    raft.reject = true;
                }
                Some(Bug::ForgedVote) if kind == MessageType::MsgRequestVoteResponse => {
                    raft.reject = false;
                }
                Some(Bug::ForgedVote) if kind == MessageType::MsgRequestPreVoteResponse => {
                    raft.reject = false;
                }
                Some(Bug::WrongGroup) if self.rng.random_range(0..10) == 0 => {
                    let other = self.group_of_both(from, to, message.group);
                    if let Some((group, receiver, sender)) = other {
                        message.group = group;
                        (raft.to, raft.from) = (receiver.0, sender.0);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether a node is down or cut off.
    fn is_one_away(&self) -> bool {
        let is_down = self.hosts.iter().any(|host| host.state == HostState::Down);
        is_down || self.net.cuts.values().any(|count| *count > 0)
    }

    /// Another group that has replicas on both seats, and those.
    fn group_of_both(
        &self,
        from: Seat,
        to: Seat,
        but: GroupId,
    ) -> Option<(GroupId, ReplicaId, ReplicaId)> {
        let on = |seat: Seat| self.seats.iter().filter(move |(_, at)| **at == seat);
        on(to).filter(|((group, _), _)| *group != but).find_map(|((group, receiver), _)| {
            let mut senders = on(from).filter(|((of, _), _)| of == group);
            senders.next().map(|((_, sender), _)| (*group, *receiver, *sender))
        })
    }
}
