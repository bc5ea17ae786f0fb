//! When a node proposes, and how a round of its goes on.
//!
//! The lowest of the ids that answer is first, at once if all are there; each further one waits longer. Who has just
//! voted for another waits, too.

use std::collections::BTreeMap;

use chronik_engine::ids::NodeId;

use super::Forming;
use crate::formation::decree::{Ballot, Participant, Phase, Round, Vote};
use crate::formation::ids::NodeUuid;
use crate::formation::protocol::Request;

/// The longest pause between two rounds of one proposer, as a power of two of [`PAUSE_MS`].
const PAUSES_MAX: u32 = 5;
const PAUSE_MS: u64 = 30;

impl Forming {
    /// Time has passed.
    pub fn tick(&mut self, now_ms: u64) {
        if self.durable.formed.is_some() {
            return;
        }
        self.looks_around = self.looks_around && !self.has_tried_all();
        self.advance_round(now_ms);
        if let Some((_, begun_ms)) = self.round
            && now_ms.saturating_sub(begun_ms) >= self.timing.round_ms
        {
            self.abandon_round(now_ms);
        }
        self.consider_round(now_ms);
    }

    /// Begins a round if it is this node's turn.
    fn consider_round(&mut self, now_ms: u64) {
        let own = self.myself();
        let counted: BTreeMap<NodeId, NodeUuid> = self
            .peers
            .iter()
            .filter_map(|(&node, peer)| Some((node, peer.healthy(now_ms, self.timing.health_ms)?)))
            .chain([(own.node, own.node_uuid)])
            .filter(|&(node, node_uuid)| {
                self.durable.acceptor.counts(Participant { node, node_uuid })
            })
            .collect();
        if counted.len() < self.list.majority() || !counted.contains_key(&own.node) {
            self.majority_since_ms = None;
            return;
        }
        let waited_ms = now_ms - *self.majority_since_ms.get_or_insert(now_ms);
        let lower = counted.range(..own.node).count() as u64;
        let turn_ms = match lower {
            0 if counted.len() == self.list.nodes().len() => 0,
            lower => self.timing.grace_ms + lower * self.timing.take_over_ms,
        };
        let is_due = waited_ms >= turn_ms && now_ms >= self.next_round_at_ms;
        if is_due && self.round.is_none() && !self.looks_around {
            self.begin_round(counted, now_ms);
        }
    }

    fn begin_round(&mut self, participants: BTreeMap<NodeId, NodeUuid>, now_ms: u64) {
        let own = self.myself();
        let promised = self.durable.acceptor.promised().map_or(0, |ballot| ballot.round);
        let ballot = Ballot {
            round: promised.max(self.round_seen).saturating_add(1),
            node: own.node,
            node_uuid: own.node_uuid,
        };
        for node in participants.keys() {
            if let Some(peer) = self.peers.get_mut(node) {
                peer.ask_now(now_ms);
            }
        }
        let mut round = Round::new(ballot, participants, self.list.majority());
        let vote = self.durable.acceptor.on_prepare(ballot, &round.participants());
        self.is_unsaved = true;
        let Vote::Granted(accepted) = vote else {
            // The participants were asked for above, and the ballot is above what is promised.
            return self.abandon_round(now_ms);
        };
        round.on_promise(own, ballot, accepted);
        self.round = Some((round, now_ms));
        self.advance_round(now_ms);
    }

    /// Goes on with the round as far as its votes allow.
    pub(super) fn advance_round(&mut self, now_ms: u64) {
        let own = self.myself();
        let Some((round, begun_ms)) = &mut self.round else { return };
        let graceful = now_ms.saturating_sub(*begun_ms) < self.timing.grace_ms;
        if *round.phase() == Phase::Preparing && round.is_promised(graceful) {
            let formation = round.begin_accepting(&mut *self.draw);
            let participants = round.participants();
            for participant in &participants {
                if let Some(peer) = self.peers.get_mut(&participant.node) {
                    peer.ask_now(now_ms);
                }
            }
            let ballot = round.ballot();
            let vote = self.durable.acceptor.on_accept(ballot, &participants, &formation);
            self.is_unsaved = true;
            if vote != Vote::Granted(()) {
                // Something higher was promised to another proposer since.
                return self.abandon_round(now_ms);
            }
            round.on_accepted(own, ballot);
        }
        if let Some((round, _)) = &self.round
            && let Some(formation) = round.chosen()
        {
            let formation = formation.clone();
            self.untold = round.participants().iter().map(|one| one.node).collect();
            self.untold.remove(&own.node);
            self.adopt(formation);
        }
    }

    /// Gives up the round; the next one comes after a pause that differs between nodes.
    pub(super) fn abandon_round(&mut self, now_ms: u64) {
        self.round = None;
        self.rounds = self.rounds.saturating_add(1);
        let span_ms = PAUSE_MS << self.rounds.min(PAUSES_MAX);
        let pause_ms = PAUSE_MS + (self.draw)() % span_ms;
        self.next_round_at_ms = self.next_round_at_ms.max(now_ms + pause_ms);
    }
}

pub(super) fn vote_request(round: &Round) -> Request {
    let (ballot, participants) = (round.ballot(), round.participants());
    match round.phase() {
        Phase::Preparing => Request::Prepare { ballot, participants },
        Phase::Accepting { formation, .. } => {
            Request::Accept { ballot, participants, formation: formation.clone() }
        }
    }
}
