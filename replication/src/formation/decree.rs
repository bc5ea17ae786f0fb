//! One decree of Paxos: which formation a cluster begins with. Messages in, votes out; no clock, no disk, no socket.
//!
//! A [`Formation`] is chosen once a majority of the static list has accepted it under one ballot, and no other can be
//! chosen then. An [`Acceptor`] is what a node has promised and accepted; a [`Round`] is one attempt of a node to have
//! a formation chosen.
//!
//! Paxos demands that no acceptor forgets. A node whose disk was wiped has forgotten, and comes back as if it were
//! new. Therefore a ballot names the disks that it counts on, its participants, and whoever votes in it remembers them:
//! a node that knows another disk of a participant refuses the ballot. So, once every majority holds one node that
//! voted together with a disk, that disk cannot be replaced by an empty one to vote a second time.
//!
//! - I1: an acceptor votes in no ballot below the one that it has promised.
//! - I2: an acceptor must be durable before its vote leaves the node. The caller sees to it.
//! - I3: a round proposes what was accepted under the highest ballot that its promises tell of, and something of its
//!   own only where they tell of none.
//! - I4: a ballot has one proposer, one disk of it, and one formation.
//! - I5: no vote is given in a ballot that counts on another disk of a node than the voter knows, and none is counted
//!   but from a participant.

use std::collections::{BTreeMap, BTreeSet};

use chronik_engine::ids::{NodeId, ReplicaId};

use super::ids::{ClusterUuid, NodeUuid};
use super::list::NodeList;

/// The number of an attempt. Ballots are ordered, and no two attempts share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct Ballot {
    /// Counts up.
    pub round: u64,
    /// Who proposes.
    pub node: NodeId,
    /// The disk of the proposer: one that was wiped must not use a ballot a second time.
    pub node_uuid: NodeUuid,
}

/// A node that a ballot counts on, with the disk that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct Participant {
    /// The node.
    pub node: NodeId,
    /// Its disk.
    pub node_uuid: NodeUuid,
}

/// A replica of `__meta` that a cluster begins with.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Member {
    /// The node that has it.
    pub node: NodeId,
    /// The disk that it was given to: no other may use the replica id.
    pub node_uuid: NodeUuid,
    /// Its Raft id.
    pub replica: ReplicaId,
}

/// How a cluster begins: its name, and the first voters of `__meta`.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Formation {
    /// The cluster.
    pub cluster: ClusterUuid,
    /// The first voters, in order of node ids.
    pub members: Vec<Member>,
}

impl Formation {
    /// The member that `node` is, if the formation counts on this very disk of it.
    #[must_use]
    pub fn member(&self, node: NodeId, node_uuid: NodeUuid) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node && member.node_uuid == node_uuid)
    }

    /// Whether it can be one: a majority of the list, in order, each with a replica id of its own.
    #[must_use]
    pub fn is_plausible(&self, list: &NodeList) -> bool {
        let replicas: BTreeSet<ReplicaId> = self.members.iter().map(|one| one.replica).collect();
        self.members.len() >= list.majority()
            && self.members.windows(2).all(|pair| pair[0].node < pair[1].node)
            && self.members.iter().all(|member| list.contains(member.node))
            && replicas.len() == self.members.len()
            && !replicas.contains(&ReplicaId::NONE)
    }
}

/// What a node knows of the disks of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
enum KnownDisk {
    /// It voted with this one.
    One(NodeUuid),
    /// There was more than one. No vote of that node counts any more: what the first has promised is forgotten.
    Several,
}

/// What a node answers to a proposer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vote<T> {
    /// Yes.
    Granted(T),
    /// A higher ballot is promised.
    Outbid {
        /// That one.
        promised: Ballot,
    },
    /// The ballot counts on another disk of a node than this one knows (I5).
    Replaced {
        /// The node.
        node: NodeId,
        /// The disk of it that is known here; none if several are.
        known: Option<NodeUuid>,
    },
}

/// What a node has promised and accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
pub struct Acceptor {
    promised: Option<Ballot>,
    accepted: Option<(Ballot, Formation)>,
    known: BTreeMap<NodeId, KnownDisk>,
}

impl Acceptor {
    /// The highest ballot that it has voted in.
    #[must_use]
    pub fn promised(&self) -> Option<Ballot> {
        self.promised
    }

    /// What it has accepted last, and under which ballot.
    #[cfg(test)]
    pub(super) fn accepted(&self) -> Option<&(Ballot, Formation)> {
        self.accepted.as_ref()
    }

    /// Whether it has never voted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Acceptor::default()
    }

    /// Whether a vote of this disk would be a vote of the node, as far as it is known here.
    #[must_use]
    pub fn counts(&self, participant: Participant) -> bool {
        match self.known.get(&participant.node) {
            None => true,
            Some(KnownDisk::One(known)) => *known == participant.node_uuid,
            Some(KnownDisk::Several) => false,
        }
    }

    /// Whether it has voted in a ballot that counted on this disk.
    #[cfg(test)]
    pub(super) fn knows(&self, participant: Participant) -> bool {
        matches!(self.known.get(&participant.node), Some(KnownDisk::One(known)) if *known == participant.node_uuid)
    }

    /// A peer knows this disk of a node, or several. True if that is news.
    pub fn learn(&mut self, node: NodeId, disk: Option<NodeUuid>) -> bool {
        let known = match (self.known.get(&node), disk) {
            (Some(KnownDisk::Several), _) => return false,
            (Some(KnownDisk::One(known)), Some(disk)) if *known == disk => return false,
            (None, Some(disk)) => KnownDisk::One(disk),
            _ => KnownDisk::Several,
        };
        self.known.insert(node, known);
        true
    }

    /// A proposer asks for a promise: to vote in no lower ballot, and to tell what was accepted.
    pub fn on_prepare(
        &mut self,
        ballot: Ballot,
        participants: &[Participant],
    ) -> Vote<Option<(Ballot, Formation)>> {
        match self.enter(ballot, participants) {
            Vote::Granted(()) => Vote::Granted(self.accepted.clone()),
            Vote::Outbid { promised } => Vote::Outbid { promised },
            Vote::Replaced { node, known } => Vote::Replaced { node, known },
        }
    }

    /// A proposer asks to accept a formation.
    pub fn on_accept(
        &mut self,
        ballot: Ballot,
        participants: &[Participant],
        formation: &Formation,
    ) -> Vote<()> {
        let vote = self.enter(ballot, participants);
        if vote == Vote::Granted(()) {
            self.accepted = Some((ballot, formation.clone()));
        }
        vote
    }

    /// Takes part in a ballot, if it may (I1, I5).
    fn enter(&mut self, ballot: Ballot, participants: &[Participant]) -> Vote<()> {
        if let Some(promised) = self.promised
            && promised > ballot
        {
            return Vote::Outbid { promised };
        }
        for participant in participants {
            match self.known.get(&participant.node) {
                Some(KnownDisk::One(known)) if *known != participant.node_uuid => {
                    return Vote::Replaced { node: participant.node, known: Some(*known) };
                }
                Some(KnownDisk::Several) => {
                    return Vote::Replaced { node: participant.node, known: None };
                }
                _ => {}
            }
        }
        for participant in participants {
            self.learn(participant.node, Some(participant.node_uuid));
        }
        self.promised = Some(ballot);
        Vote::Granted(())
    }

    /// Forgets its promise, as an acceptor would that answers before it is durable. For a test that must notice.
    #[cfg(test)]
    pub(super) fn forget_promise(&mut self) {
        self.promised = None;
    }

    /// Forgets which disks it voted with. For a test that must notice.
    #[cfg(test)]
    pub(super) fn forget_disks(&mut self) {
        self.known.clear();
    }
}

/// How far a round is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It gathers promises.
    Preparing,
    /// It has promises of a majority and asks to accept this.
    Accepting {
        /// What it proposes.
        formation: Formation,
        /// Who has accepted.
        accepted: BTreeSet<NodeId>,
    },
}

/// One attempt to have a formation chosen.
#[derive(Debug, Clone)]
pub struct Round {
    ballot: Ballot,
    participants: BTreeMap<NodeId, NodeUuid>,
    majority: usize,
    promised: BTreeSet<NodeId>,
    /// What was accepted under the highest ballot that promises told of.
    best: Option<(Ballot, Formation)>,
    phase: Phase,
}

impl Round {
    /// A round that counts on `participants`, of which `majority` decide.
    #[must_use]
    pub fn new(ballot: Ballot, participants: BTreeMap<NodeId, NodeUuid>, majority: usize) -> Round {
        assert!(participants.get(&ballot.node) == Some(&ballot.node_uuid), "I4: a proposer votes");
        assert!(participants.len() >= majority, "a round without a majority decides nothing");
        let promised = BTreeSet::new();
        Round { ballot, participants, majority, promised, best: None, phase: Phase::Preparing }
    }

    /// Its ballot.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whom it counts on, as a message says it.
    #[must_use]
    pub fn participants(&self) -> Vec<Participant> {
        let participant = |(&node, &node_uuid)| Participant { node, node_uuid };
        self.participants.iter().map(participant).collect()
    }

    /// Whether a node's vote still matters in this phase.
    #[must_use]
    pub fn wants(&self, node: NodeId) -> bool {
        self.participants.contains_key(&node)
            && match &self.phase {
                Phase::Preparing => !self.promised.contains(&node),
                Phase::Accepting { accepted, .. } => !accepted.contains(&node),
            }
    }

    /// A participant has promised, and tells what it has accepted before.
    pub fn on_promise(
        &mut self,
        from: Participant,
        ballot: Ballot,
        accepted: Option<(Ballot, Formation)>,
    ) {
        if !self.is_vote(from, ballot) || self.phase != Phase::Preparing {
            return;
        }
        self.promised.insert(from.node);
        if let Some((under, formation)) = accepted
            && self.best.as_ref().is_none_or(|(best, _)| under > *best)
        {
            self.best = Some((under, formation));
        }
    }

    /// Whether all have promised; else whether enough have.
    #[must_use]
    pub fn is_promised(&self, by_all: bool) -> bool {
        let wanted = if by_all { self.participants.len() } else { self.majority };
        self.promised.len() >= wanted
    }

    /// Goes on to the second phase, with what was accepted before (I3), or else with a formation whose members are
    /// those that have promised, under ids that `draw` gives.
    pub fn begin_accepting(&mut self, draw: &mut dyn FnMut() -> u64) -> Formation {
        assert!(self.phase == Phase::Preparing, "a round has one formation");
        assert!(self.is_promised(false), "I3: only a majority knows what was accepted");
        let formation = match self.best.take() {
            Some((_, formation)) => formation,
            None => self.new_formation(draw),
        };
        self.phase = Phase::Accepting { formation: formation.clone(), accepted: BTreeSet::new() };
        formation
    }

    fn new_formation(&self, draw: &mut dyn FnMut() -> u64) -> Formation {
        let cluster = ClusterUuid(draw_uuid(draw));
        let mut members: Vec<Member> = Vec::with_capacity(self.promised.len());
        for (&node, &node_uuid) in &self.participants {
            if !self.promised.contains(&node) {
                continue;
            }
            let replica = loop {
                let drawn = draw_replica(draw);
                if members.iter().all(|member| member.replica != drawn) {
                    break drawn;
                }
            };
            members.push(Member { node, node_uuid, replica });
        }
        Formation { cluster, members }
    }

    /// A participant has accepted.
    pub fn on_accepted(&mut self, from: Participant, ballot: Ballot) {
        if !self.is_vote(from, ballot) {
            return;
        }
        if let Phase::Accepting { accepted, .. } = &mut self.phase {
            accepted.insert(from.node);
        }
    }

    /// What is chosen by this round, if it is.
    #[must_use]
    pub fn chosen(&self) -> Option<&Formation> {
        match &self.phase {
            Phase::Accepting { formation, accepted } if accepted.len() >= self.majority => {
                Some(formation)
            }
            _ => None,
        }
    }

    /// A vote counts if it is for this ballot, and from the disk that the ballot counts on (I5).
    fn is_vote(&self, from: Participant, ballot: Ballot) -> bool {
        ballot == self.ballot && self.participants.get(&from.node) == Some(&from.node_uuid)
    }
}

/// A replica id that stands for a replica.
pub(super) fn draw_replica(draw: &mut dyn FnMut() -> u64) -> ReplicaId {
    ReplicaId(draw().max(1))
}

/// A random uuid of version 4.
pub(super) fn draw_uuid(draw: &mut dyn FnMut() -> u64) -> u128 {
    let bits = (u128::from(draw()) << 64) | u128::from(draw());
    uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().as_u128()
}
