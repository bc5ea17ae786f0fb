//! A node on its way into a cluster, sans I/O: whom it asks what and when, what it answers, when it proposes.
//!
//! Every node probes all others. The lowest id of those that answer, once they are a majority of the list, proposes;
//! it waits a moment for the rest, so that nodes which start together are all members. Who hears of a formed cluster
//! adopts it. Should the lowest not get on, because it hears others but is not heard, the next ones take over, each
//! later than the one before: ballots make that safe, the delays make it rare.
//!
//! - I1: what [`Forming::durable`] holds is durable before anything leaves the node that was made after it changed. The
//!   driver saves whenever [`Forming::is_unsaved`] says so, before it sends.
//! - I2: a node with an empty disk has asked every peer, and has been answered or has failed to reach it, before it
//!   votes or proposes: it may have been part of a cluster before.
//! - I3: a node becomes a member only if the formation counts on the very disk that it has. Else it joins, under a
//!   replica id of its own.
//! - I4: once formed, always formed, and as the same.

use std::collections::{BTreeMap, BTreeSet};

use chronik_engine::ids::NodeId;

use super::decree::{Formation, Participant, Round, draw_replica};
use super::durable::{Durable, Formed, Membership};
use super::error::Impossible;
use super::list::NodeList;
use super::peer::{Peer, PeerProblem};
use super::protocol::{Envelope, Refusal, Reply, Request, Status};

mod answering;
mod proposing;

use proposing::vote_request;

/// Where random numbers come from.
pub type Draw = Box<dyn FnMut() -> u64 + Send>;

/// How long things may take, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two probes of a peer.
    pub probe_interval_ms: u64,
    /// How long after its last answer a peer counts as healthy.
    pub health_ms: u64,
    /// How long a proposer waits for those that are not needed.
    pub grace_ms: u64,
    /// How long a round may take.
    pub round_ms: u64,
    /// How much later each further id takes over.
    pub take_over_ms: u64,
}

impl Timing {
    /// All else follows from the interval between probes.
    #[must_use]
    pub fn new(probe_interval_ms: u64) -> Timing {
        Timing {
            probe_interval_ms,
            health_ms: 2 * probe_interval_ms + 1000,
            grace_ms: 300,
            round_ms: 1500,
            take_over_ms: 1000,
        }
    }
}

/// A node on its way into a cluster.
pub struct Forming {
    list: NodeList,
    timing: Timing,
    durable: Durable,
    is_unsaved: bool,
    /// The disk was empty at the start, and not every peer has been asked (I2).
    looks_around: bool,
    peers: BTreeMap<NodeId, Peer>,
    round: Option<(Round, u64)>,
    rounds: u32,
    /// The highest round that was heard of.
    round_seen: u64,
    next_round_at_ms: u64,
    majority_since_ms: Option<u64>,
    untold: BTreeSet<NodeId>,
    impossible: Option<Impossible>,
    draw: Draw,
}

impl std::fmt::Debug for Forming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forming")
            .field("durable", &self.durable)
            .field("peers", &self.peers)
            .field("round", &self.round)
            .finish_non_exhaustive()
    }
}

impl Forming {
    /// A node that begins with what was durable when it ended, or with an empty disk.
    #[must_use]
    pub fn new(
        list: NodeList,
        durable: Durable,
        timing: Timing,
        draw: Draw,
        now_ms: u64,
    ) -> Forming {
        assert!(list.contains(durable.node), "a node is part of its list");
        let own = durable.node;
        let others = list.nodes().iter().map(|node| node.id).filter(|id| *id != own);
        Forming {
            peers: others.map(|id| (id, Peer::new(now_ms))).collect(),
            looks_around: durable.acceptor.is_empty(),
            list,
            timing,
            durable,
            is_unsaved: false,
            round: None,
            rounds: 0,
            round_seen: 0,
            next_round_at_ms: now_ms,
            majority_since_ms: None,
            untold: BTreeSet::new(),
            impossible: None,
            draw,
        }
    }

    /// The list of nodes.
    #[must_use]
    pub fn list(&self) -> &NodeList {
        &self.list
    }

    /// What must be durable (I1).
    #[must_use]
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Whether it has changed since [`Forming::on_saved`].
    #[must_use]
    pub fn is_unsaved(&self) -> bool {
        self.is_unsaved
    }

    /// It is durable.
    pub fn on_saved(&mut self) {
        self.is_unsaved = false;
    }

    /// The cluster, once it is known.
    #[must_use]
    pub fn formed(&self) -> Option<&Formed> {
        self.durable.formed.as_ref()
    }

    /// Whether all have been told, too, that can be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.durable.formed.is_some() && self.untold.is_empty()
    }

    /// Why there will be no cluster until somebody corrects something.
    #[must_use]
    pub fn impossible(&self) -> Option<&Impossible> {
        self.impossible.as_ref()
    }

    /// The peers that do not answer or cannot be counted on, and since when and why; in order of ids.
    pub(super) fn troubles(
        &self,
    ) -> impl Iterator<Item = (NodeId, Option<u64>, Option<&PeerProblem>)> {
        self.peers
            .iter()
            .filter(|(_, peer)| peer.missing_since_ms().is_some() || peer.problem().is_some())
            .map(|(&id, peer)| (id, peer.missing_since_ms(), peer.problem()))
    }

    /// Whether every peer has been asked once.
    #[must_use]
    pub fn has_tried_all(&self) -> bool {
        self.peers.values().all(Peer::is_tried)
    }

    /// What to send to a peer now, if anything. How it ends is told by [`Forming::on_reply`] or
    /// [`Forming::on_silence`].
    pub fn next_request(&mut self, to: NodeId, now_ms: u64) -> Option<Envelope<Request>> {
        let peer = self.peers.get_mut(&to).filter(|peer| peer.is_idle())?;
        let message = match (&self.durable.formed, &self.round) {
            (Some(formed), _) if self.untold.contains(&to) && peer.is_vote_due(now_ms) => {
                Some(Request::Chosen { formation: formed.formation.clone() })
            }
            (Some(_), _) => None,
            (None, Some((round, _))) if round.wants(to) && peer.is_vote_due(now_ms) => {
                Some(vote_request(round))
            }
            _ => peer.is_probe_due(now_ms).then_some(Request::Probe),
        }?;
        let exchange = (self.draw)();
        peer.begin(exchange);
        Some(self.envelope(to, exchange, message))
    }

    fn envelope<T>(&self, to: NodeId, exchange: u64, message: T) -> Envelope<T> {
        let Durable { node: from, node_uuid: from_uuid, .. } = self.durable;
        Envelope { from, from_uuid, to, list: self.list.fingerprint(), exchange, message }
    }

    fn myself(&self) -> Participant {
        Participant { node: self.durable.node, node_uuid: self.durable.node_uuid }
    }

    /// A peer did not answer, or what answered is not the peer.
    pub fn on_silence(&mut self, to: NodeId, exchange: u64, problem: PeerProblem, now_ms: u64) {
        let interval_ms = self.timing.probe_interval_ms;
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if !peer.end(exchange) {
            return;
        }
        peer.on_problem(problem, now_ms, interval_ms);
        self.untold.remove(&to);
        self.judge_lists();
    }

    /// A peer answers.
    pub fn on_reply(&mut self, to: NodeId, reply: Envelope<Reply>, now_ms: u64) {
        let interval_ms = self.timing.probe_interval_ms;
        let (sender, exchange) = (reply.sender(), reply.exchange);
        if !self.peers.get(&to).is_some_and(|peer| peer.is_under_way(exchange)) {
            return;
        }
        let problem = match &reply.message {
            Reply::Refused(Refusal::ListDiffers { list }) => {
                Some(PeerProblem::ListDiffers { differences: self.list.differences(list) })
            }
            _ if reply.from != to => Some(PeerProblem::OtherNode { found: reply.from }),
            Reply::Refused(Refusal::IdInUse { node_uuid }) => {
                self.impossible = Some(Impossible::IdInUse { peer: to, node_uuid: *node_uuid });
                None
            }
            Reply::Refused(Refusal::Unsealed) => Some(PeerProblem::SecretDiffers),
            Reply::Refused(Refusal::WrongAddress | Refusal::Malformed) => {
                Some(PeerProblem::Garbled)
            }
            _ if reply.list != self.list.fingerprint() || reply.to != self.durable.node => {
                Some(PeerProblem::Garbled)
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return self.on_silence(to, exchange, problem, now_ms);
        }
        let Some(peer) = self.peers.get_mut(&to) else { return };
        peer.end(exchange);
        peer.on_answer(sender.node_uuid, now_ms, interval_ms);
        if matches!(reply.message, Reply::NotYet) {
            peer.ask_again(now_ms);
        }
        if self.durable.acceptor.counts(sender) {
            self.on_vote(sender, reply.message, now_ms);
        } else if let Reply::Status(Status::Formed { formation }) = reply.message {
            self.adopt(formation);
        } else {
            peer.note(PeerProblem::DiskReplaced);
        }
    }

    /// What a peer that counts has to say.
    fn on_vote(&mut self, sender: Participant, reply: Reply, now_ms: u64) {
        match reply {
            Reply::Status(Status::Formed { formation }) => {
                self.untold.remove(&sender.node);
                return self.adopt(formation);
            }
            Reply::Status(Status::Unformed { promised: Some(promised) }) => {
                self.round_seen = self.round_seen.max(promised.round);
            }
            Reply::Promise { ballot, accepted } => {
                if let Some((round, _)) = &mut self.round {
                    round.on_promise(sender, ballot, accepted);
                }
            }
            Reply::Accepted { ballot } => {
                if let Some((round, _)) = &mut self.round {
                    round.on_accepted(sender, ballot);
                }
            }
            Reply::Outbid { promised } => {
                self.round_seen = self.round_seen.max(promised.round);
                if self.round.as_ref().is_some_and(|(round, _)| promised > round.ballot()) {
                    self.abandon_round(now_ms);
                }
            }
            Reply::Replaced { node, known } => {
                self.is_unsaved |= self.durable.acceptor.learn(node, known);
                self.abandon_round(now_ms);
            }
            Reply::Status(Status::Unformed { promised: None })
            | Reply::NotYet
            | Reply::Joined { .. }
            | Reply::Later { .. }
            | Reply::Refused(_) => {}
        }
        self.advance_round(now_ms);
    }

    /// The cluster is known (I3, I4).
    fn adopt(&mut self, formation: Formation) {
        if !formation.is_plausible(&self.list) {
            return;
        }
        if let Some(formed) = &self.durable.formed {
            let (own, other) = (formed.formation.cluster, formation.cluster);
            if own != other {
                self.impossible = Some(Impossible::TwoClusters { own, other });
            }
            return;
        }
        let own = self.myself();
        let own = match formation.member(own.node, own.node_uuid) {
            Some(member) => Membership::Member { replica: member.replica },
            None => Membership::Joins { replica: draw_replica(&mut *self.draw) },
        };
        self.durable.formed = Some(Formed { formation, own });
        self.is_unsaved = true;
        self.round = None;
    }

    /// Lists that differ are fatal where those that agree cannot be a majority.
    fn judge_lists(&mut self) {
        let differing: Vec<(NodeId, PeerProblem)> = self
            .peers
            .iter()
            .filter_map(|(&id, peer)| Some((id, peer.problem()?.clone())))
            .filter(|(_, problem)| matches!(problem, PeerProblem::ListDiffers { .. }))
            .collect();
        let agreeing = self.list.nodes().len() - differing.len();
        if agreeing < self.list.majority() {
            self.impossible = Some(Impossible::ListsDiffer { peers: differing });
        }
    }
}

#[cfg(test)]
impl Forming {
    /// What a test spoils.
    pub(super) fn durable_mut(&mut self) -> &mut Durable {
        &mut self.durable
    }
}
