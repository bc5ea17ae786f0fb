//! How old what a follower shows may be, at the most: by its own clock, however long messages take.
//!
//! To hear a leader is not enough. Its heartbeat may have lain in a socket while this node stood still, others may lead by
//! now, and who hears heartbeats may still lack entries. So a follower puts its time, a *stamp*, into its answers to
//! heartbeats, and the leader gives a stamp back with a later heartbeat, beside its commit index, once a majority has
//! confirmed that it still led after the stamp had come. What was committed before the stamp, wherever, lies up to that index:
//! who has applied as much shows all that there was then. That takes three heartbeats and no message more than there are.
//!
//! Raft-rs leaves these fields of heartbeats and their answers empty and looks at none of them:
//!
//! ```text
//! heartbeat   index: what the leader has committed | log_term: the stamp that is given back, or 0 | commit_term: the round
//! answer      log_term: the stamp of now | commit_term: the round of the last heartbeat
//! ```
//!
//! - I1: a stamp is given back only once a round that began after it came was answered by a quorum, in this term.
//! - I2: the index beside it is the commit index as the heartbeat leaves, of a leader that has committed an entry of its term.
//! - I3: of the stamps that come back only those count that this life of the replica has made, and none of the future.
//! - I4: no clock of another node is looked at.

use std::collections::HashSet;

use chronik_engine::ids::{RaftIndex, ReplicaId};
use raft::StateRole;
use raft::eraftpb::{Message, MessageType};

use crate::group::RaftGroup;

/// The lower bits of a stamp are milliseconds, 34 years of them; above are those that tell one life of a replica from another.
const TIME_BITS: u32 = 40;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// What a replica knows of its own age, and as leader of those of others.
#[derive(Debug)]
pub(crate) struct Freshness {
    /// The upper bits of this life's stamps; not all of them are 0, so no stamp is.
    life: u64,
    now_ms: u64,
    /// The term and the round of the leader's last heartbeat.
    round: (u64, u64),
    current_as_of_ms: Option<u64>,
    to_apply: Option<ToApply>,
    led: Option<Box<Led>>,
}

/// Once `index` is applied this replica is as current as `as_of_ms`.
#[derive(Debug, Clone, Copy)]
struct ToApply {
    term: u64,
    index: RaftIndex,
    as_of_ms: u64,
}

/// A leader's term.
#[derive(Debug, Default)]
struct Led {
    term: u64,
    /// The last round of heartbeats that began.
    round: u64,
    /// The last that a quorum has answered.
    confirmed: u64,
    peers: Vec<Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    id: u64,
    /// The last round that it has answered, and when.
    answered: u64,
    heard_ms: u64,
    /// A stamp that may be given back once a round after this one is confirmed.
    waiting: Option<(u64, u64)>,
    /// The stamp to give back, or 0.
    given_back: u64,
    /// Whether some was.
    is_told: bool,
}

/// What a heartbeat or an answer to one says of time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sign {
    is_answer: bool,
    from: u64,
    term: u64,
    index: RaftIndex,
    stamp: u64,
    round: u64,
}

impl Sign {
    pub(crate) fn of(message: &Message) -> Option<Sign> {
        let is_answer = match message.get_msg_type() {
            MessageType::MsgHeartbeat => false,
            MessageType::MsgHeartbeatResponse => true,
            _ => return None,
        };
        let Message { from, term, log_term: stamp, commit_term: round, .. } = *message;
        let index = RaftIndex(message.index);
        Some(Sign { is_answer, from, term, index, stamp, round })
    }
}

impl Freshness {
    /// Of a replica whose stamps nobody has seen. `seed` differs from life to life.
    pub(crate) fn new(seed: u64) -> Freshness {
        let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 << TIME_BITS;
        Freshness {
            life: mixed & !TIME_MASK,
            now_ms: 0,
            round: (0, 0),
            current_as_of_ms: None,
            to_apply: None,
            led: None,
        }
    }

    fn stamp(&self) -> u64 {
        self.life | (self.now_ms & TIME_MASK)
    }

    /// I3.
    fn own_time_ms(&self, stamp: u64) -> Option<u64> {
        let as_of_ms = stamp & TIME_MASK;
        (stamp & !TIME_MASK == self.life && as_of_ms <= self.now_ms).then_some(as_of_ms)
    }

    fn current_as_of_ms(&self, applied: RaftIndex) -> Option<u64> {
        let reached = self.to_apply.filter(|to_apply| to_apply.index <= applied);
        reached.map(|to_apply| to_apply.as_of_ms).max(self.current_as_of_ms)
    }

    fn on_heartbeat(&mut self, sign: Sign, applied: RaftIndex) {
        let Sign { term, index, stamp, round, .. } = sign;
        self.round = (term, round);
        let Some(as_of_ms) = self.own_time_ms(stamp) else { return };
        self.current_as_of_ms = self.current_as_of_ms(applied);
        // One that waits stays: where entries never end, a later one would never be reached.
        let waits = |to_apply: ToApply| to_apply.term == term && to_apply.index > applied;
        if !self.to_apply.is_some_and(waits) {
            self.to_apply = Some(ToApply { term, index, as_of_ms });
        }
    }
}

impl Led {
    fn peer(&mut self, id: u64) -> &mut Peer {
        let at = self.peers.iter().position(|peer| peer.id == id).unwrap_or_else(|| {
            self.peers.push(Peer { id, ..Peer::default() });
            self.peers.len() - 1
        });
        &mut self.peers[at]
    }

    /// The stamp to be given back to a peer, or 0.
    fn give_back(&mut self, id: u64) -> u64 {
        let peer = self.peer(id);
        peer.is_told |= peer.given_back != 0;
        peer.given_back
    }

    /// A quorum has answered a round (I1).
    fn confirm(&mut self, round: u64) {
        self.confirmed = round;
        for peer in &mut self.peers {
            if let Some((stamp, _)) = peer.waiting.take_if(|(_, came_in)| *came_in < round) {
                peer.given_back = stamp;
            }
        }
    }
}

impl Peer {
    /// A stamp of another life makes those before it worthless.
    fn note_life(&mut self, stamp: u64) {
        let is_other = |known: u64| known & !TIME_MASK != stamp & !TIME_MASK;
        if self.given_back != 0 && is_other(self.given_back) {
            (self.given_back, self.is_told) = (0, false);
        }
        self.waiting.take_if(|(known, _)| is_other(*known));
    }
}

impl RaftGroup {
    /// The node's monotonic clock, before messages are stepped. A clock that is late makes a replica seem older than it is.
    pub fn set_clock(&mut self, now_ms: u64) {
        self.freshness.now_ms = self.freshness.now_ms.max(now_ms);
    }

    /// All that was committed by then, wherever, is applied here; by the clock of [`RaftGroup::set_clock`], of this life of
    /// the replica. `None` before it has heard so. Nothing of a leader.
    #[must_use]
    pub fn current_as_of_ms(&self) -> Option<u64> {
        self.freshness.current_as_of_ms(self.applied())
    }

    /// As leader, when a peer has answered last, unless it was never told how old it is.
    #[must_use]
    pub fn knows_its_age(&self, peer: ReplicaId) -> Option<u64> {
        let led = self.freshness.led.as_ref().filter(|led| led.term == self.node.raft.term);
        let led = led.filter(|_| self.is_leader())?;
        let known = led.peers.iter().find(|known| known.id == peer.0 && known.is_told)?;
        Some(known.heard_ms)
    }

    /// Takes in what a message has said that was stepped just now.
    pub(crate) fn note_sign(&mut self, sign: Sign) {
        let raft = &self.node.raft;
        if sign.term != raft.term {
            return;
        }
        match (sign.is_answer, raft.state) {
            (false, StateRole::Follower) if raft.leader_id == sign.from => {
                let applied = self.applied();
                self.freshness.on_heartbeat(sign, applied);
            }
            (true, StateRole::Leader) => self.note_answer(sign),
            _ => {}
        }
    }

    fn note_answer(&mut self, sign: Sign) {
        let Freshness { led, now_ms, .. } = &mut self.freshness;
        let raft = &self.node.raft;
        let Some(led) = led.as_mut().filter(|led| led.term == raft.term) else { return };
        if raft.prs().get(sign.from).is_none() {
            return;
        }
        let round = sign.round.min(led.round);
        let peer = led.peer(sign.from);
        peer.note_life(sign.stamp);
        peer.heard_ms = *now_ms;
        peer.answered = peer.answered.max(round);
        if round > led.confirmed {
            let answered = led.peers.iter().filter(|peer| peer.answered >= round);
            let quorum: HashSet<u64, _> = answered.map(|peer| peer.id).chain([raft.id]).collect();
            if raft.prs().has_quorum(&quorum) {
                led.confirm(round);
            }
        }
        let began = led.round;
        let peer = led.peer(sign.from);
        if sign.stamp != 0 && peer.waiting.is_none() {
            peer.waiting = Some((sign.stamp, began));
        }
    }

    /// Puts into heartbeats, and into answers to them, what they say of time; they are about to leave.
    pub(crate) fn sign(&mut self, messages: &mut [Message]) {
        let is = |kind| move |message: &&mut Message| message.get_msg_type() == kind;
        let raft = &self.node.raft;
        let (term, is_leader) = (raft.term, raft.state == StateRole::Leader);
        let (heard_in, round) = self.freshness.round;
        let stamp = self.freshness.stamp();
        for answer in messages.iter_mut().filter(is(MessageType::MsgHeartbeatResponse)) {
            if answer.term == heard_in {
                (answer.log_term, answer.commit_term) = (stamp, round);
            }
        }
        let mut heartbeats = messages.iter_mut().filter(is(MessageType::MsgHeartbeat)).peekable();
        if !is_leader || heartbeats.peek().is_none() {
            return;
        }
        let (commit, is_established) = (raft.raft_log.committed, raft.commit_to_current_term());
        let led = self.freshness.led.get_or_insert_default();
        if led.term != term {
            **led = Led { term, ..Led::default() };
        }
        led.round += 1;
        for heartbeat in heartbeats.filter(|heartbeat| heartbeat.term == term) {
            heartbeat.index = commit;
            heartbeat.commit_term = led.round;
            heartbeat.log_term = if is_established { led.give_back(heartbeat.to) } else { 0 };
        }
    }
}
