//! How the quorum of the catalog is: who leads it, who votes, and how far each is. Its leader knows, whoever is asked.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::framed;
use chronik_engine::ids::{GroupId, NodeId, ReplicaId};
use chronik_replication::peers::Replier;
use chronik_replication::wire::{CallRefused, Seat};

use super::META_SHARD;
use crate::shell::shard::Shard;

/// A call that asks the leader of the catalog how its quorum is.
pub(super) const CALL_QUORUM: u8 = 21;

const VERSION: u8 = 2;
const REPORT_BYTES_MAX: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(2);

/// One replica of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct QuorumReplica {
    /// Its Raft id.
    pub replica: ReplicaId,
    /// Its node, if that is known.
    pub node: Option<NodeId>,
    /// Whether it votes.
    pub votes: bool,
    /// The last entry that it is known to hold.
    pub index: u64,
    /// Whether the leader has heard it within the last election timeouts.
    pub is_heard: bool,
}

/// How the quorum of the catalog is, as its leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Quorum {
    /// The node that leads it.
    pub leader: NodeId,
    /// Its term.
    pub term: u64,
    /// Up to here entries are committed.
    pub committed: u64,
    /// The replicas.
    pub replicas: Vec<QuorumReplica>,
}

impl Shard {
    /// How the quorum of the catalog is; `None` while nobody who can be asked leads it. Cancel-safe.
    pub async fn quorum(self: &Rc<Self>) -> Option<Quorum> {
        self.on(META_SHARD, |meta| async move { meta.find_quorum().await }).await.ok().flatten()
    }

    /// Whether a node's replica of the catalog has a vote, as far as this node has heard. Of a broker that is cordoned, "no"
    /// stays true until it is cordoned no more. Cancel-safe.
    pub async fn votes_on_catalog(self: &Rc<Self>, node: NodeId) -> bool {
        let votes = move |meta: Rc<Shard>| async move {
            meta.with_core(|core| {
                let replica = core.catalog()?.broker(node)?.meta_replica;
                Some(core.members(GroupId::META)?.0.votes(replica))
            })
        };
        // Who cannot say it is not sure that it has none.
        self.on(META_SHARD, votes).await.ok().flatten().unwrap_or(true)
    }

    pub(super) async fn find_quorum(self: &Rc<Self>) -> Option<Quorum> {
        if let Some(quorum) = self.quorum_led() {
            return Some(quorum);
        }
        let (node, links) = (self.meta_leader()?, self.links()?);
        let seat = Seat { node, shard: META_SHARD };
        let answer = links.peers().call(seat, CALL_QUORUM, Bytes::new(), TIMEOUT).await.ok()?;
        framed::decode::<Quorum, REPORT_BYTES_MAX>(VERSION, &answer).ok()
    }

    /// What this node knows if it leads the catalog.
    pub(super) fn quorum_led(&self) -> Option<Quorum> {
        let (members, progress) = self.with_core(|core| core.members(GroupId::META))?;
        let (term, own) = self.with_core(|core| {
            let mut led = core.led_groups().filter(|(group, _, _)| *group == GroupId::META);
            led.next().map(|(_, term, replica)| (term, replica))
        })?;
        let committed = self.with_core(|core| core.commit_index(GroupId::META))?.0;
        let here = self.node.config.node_id;
        let node_of = |replica: ReplicaId| {
            if replica == own {
                return Some(here);
            }
            self.links()?.seat_of(GroupId::META, replica).map(|seat| seat.node)
        };
        let index_of = |replica: ReplicaId| {
            let peer = progress.iter().find(|peer| peer.replica == replica);
            peer.map_or(committed, |peer| peer.matched.0)
        };
        let is_heard =
            |replica| progress.iter().any(|peer| peer.replica == replica && peer.recent_active);
        let all = members.voters.iter().chain(&members.voters_outgoing).chain(&members.learners);
        let mut ids: Vec<ReplicaId> = all.copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let replicas = ids.into_iter().map(|replica| QuorumReplica {
            replica,
            node: node_of(replica),
            votes: members.votes(replica),
            index: index_of(replica),
            is_heard: replica == own || is_heard(replica),
        });
        Some(Quorum { leader: here, term: term.0, committed, replicas: replicas.collect() })
    }

    /// Answers another node.
    pub(super) fn tell_quorum(&self, reply: Replier) {
        let Some(quorum) = self.quorum_led() else {
            return reply.refuse(CallRefused::NotLeader { leader: self.meta_leader() });
        };
        match framed::encode(VERSION, quorum) {
            Ok(report) => reply.answer(Bytes::from(report)),
            Err(_) => reply.refuse(CallRefused::Overloaded),
        }
    }
}
