//! How a node without a replica of the catalog that counts gets into the catalog: one that was not there when its cluster
//! began, or that came back with an empty disk.
//!
//! It cannot enter itself as others do, since it does not hear what becomes of a command. So it asks the leader to do it,
//! again and again. All else follows from the catalog: the leader makes the new replica a member of the catalog's group,
//! in the place of the one that the node had before (`reconcile`), and by the log from then on the node sees itself.
//!
//! - I1: a replica id belongs to one disk: that of the node's last registration. A node makes no group before the catalog
//!   names its own disk.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::formation::Membership;
use chronik_replication::peers::{CallError, Replier};
use chronik_replication::wire::{CallRefused, LeaderNotice, Seat};

use super::replace::NotReplaced;
use super::{ClusterLinks, META_SHARD};
use crate::catalog::{Broker, Catalog, CatalogCommand, CommandOutcome, Incarnation};
use crate::core::reconcile::Wanted;
use crate::core::{Ack, ShardCore};
use crate::shell::replies::ReplyTo;
use crate::shell::shard::Shard;

/// A call that asks for a broker to be registered; its body is the command.
pub(super) const CALL_JOIN: u8 = 2;

/// How long a node that was there from the beginning tries to enter itself before it asks others.
const JOIN_PATIENCE_MEMBER: Duration = Duration::from_secs(10);
/// Between two requests of a node that joins.
const JOIN_RETRY: Duration = Duration::from_millis(200);
/// After so many of them, it is asked each time whether this node's disk still counts: 2 s, in which a link that is to be is there.
const KNOCK_ROUNDS: usize = 10;
/// For the answer to one.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

impl Shard {
    /// Asks to be taken in until this node sees itself in the catalog. To be run on the catalog's shard.
    pub(in crate::shell) async fn join_catalog(self: Rc<Self>) {
        match self.node.cluster.as_ref().map(|place| place.formed.formed.own) {
            None => return,
            Some(Membership::Joins { .. }) => {}
            // It enters itself, unless its disk does not count any more: that it is told only if it asks.
            Some(Membership::Member { .. }) => chronik_ring::sleep(JOIN_PATIENCE_MEMBER).await,
        }
        let Some(Ok(body)) = self.registration().map(|command| command.encode()) else { return };
        let body = Bytes::from(body);
        let mut last_refusal = String::new();
        for round in 1_usize.. {
            let Some(links) = self.links() else { return };
            if self.stopping.get() || self.is_in_catalog(&self.catalog()) {
                return;
            }
            for seat in links.peers().up_seats().into_iter().filter(|s| s.shard == META_SHARD) {
                match links.peers().call(seat, CALL_JOIN, body.clone(), JOIN_TIMEOUT).await {
                    Err(CallError::Refused(CallRefused::Invalid { text })) => {
                        if text != last_refusal {
                            tracing::error!("node {} refuses this node: {text}", seat.node.0);
                        }
                        last_refusal = text;
                    }
                    Err(error) => {
                        tracing::debug!("node {} does not take this node in: {error}", seat.node.0);
                    }
                    Ok(_) => {}
                }
            }
            if round.is_multiple_of(KNOCK_ROUNDS) {
                // Those who open the links look for no node that was removed.
                links.peers().knock(round / KNOCK_ROUNDS);
            }
            chronik_ring::sleep(JOIN_RETRY).await;
        }
    }

    /// Whether a catalog names this node with the disk that it runs on: what is placed on it is placed here (I1).
    pub(in crate::shell) fn is_in_catalog(&self, catalog: &Catalog) -> bool {
        let broker = catalog.broker(self.node.config.node_id);
        broker.is_some_and(|broker| broker.incarnation == self.node.incarnation)
    }

    /// Whether this node's replica of the catalog counts as it is to, if this is its shard.
    pub(in crate::shell) fn has_joined(&self) -> bool {
        if self.id != META_SHARD || self.links().is_none() {
            return true;
        }
        let found = self
            .with_core(|core| Some((core.members(GroupId::META)?.0, core.replica(GroupId::META)?)));
        let Some((members, replica)) = found else { return false };
        let wanted = Wanted::of_meta(&self.catalog(), &self.first_voters(), &members);
        if wanted.voters.contains(&replica) {
            !members.is_joint() && members.votes(replica)
        } else {
            members.contains(replica)
        }
    }

    /// Registers a node that joins, if this node leads the catalog.
    pub(super) fn take_in(self: &Rc<Self>, from: Seat, body: &[u8], reply: Replier) {
        let Some((command, broker)) = registration_of(from, body) else {
            let text = "not a registration of the node that sends it".to_owned();
            reply.refuse(CallRefused::Invalid { text });
            return;
        };
        let (Some(links), Some(catalog)) = (self.links(), self.with_core(ShardCore::catalog))
        else {
            return; // dropped: refused
        };
        links.note_meta_seat(broker.meta_replica, from);
        let is_known = |known: &Broker| {
            known.incarnation == broker.incarnation && known.meta_replica == broker.meta_replica
        };
        if !self.with_core(leads_meta) {
            reply.refuse(CallRefused::NotLeader { leader: None });
        } else if catalog.broker(from.node).is_some_and(|known| is_known(known)) {
            reply.answer(Bytes::new());
        } else {
            match self.replacement(&catalog, &broker) {
                Ok(replaced) => {
                    tracing::info!(
                        "node {} joins with replica {}",
                        from.node.0,
                        broker.meta_replica
                    );
                    self.register_for(&replacing(command, replaced), reply);
                }
                Err(why) => reply.refuse(CallRefused::Invalid { text: why.to_string() }),
            }
        }
    }

    /// The disk whose place a node takes that asks the leader, this node.
    fn replacement(
        &self,
        catalog: &Catalog,
        broker: &Broker,
    ) -> Result<Option<Incarnation>, NotReplaced> {
        let Some(known) = replaced_by(catalog, broker) else { return Ok(None) };
        let quorum = self.quorum_led();
        self.may_replace(known, broker, quorum.as_ref())?;
        Ok(Some(known.incarnation))
    }

    fn register_for(self: &Rc<Self>, command: &CatalogCommand, reply: Replier) {
        let (done, answer) = ReplyTo::channel(self.id);
        self.propose_command(command, done);
        let tell = async move {
            match answer.await {
                Ok(Ok(Ack::Command(CommandOutcome::Refused(why)))) => {
                    reply.refuse(CallRefused::Invalid { text: why.to_string() });
                }
                Ok(Ok(_)) => reply.answer(Bytes::new()),
                Ok(Err(_)) | Err(_) => reply.refuse(CallRefused::Overloaded),
            }
        };
        chronik_ring::spawn(tell).detach();
    }
}

fn leads_meta(core: &ShardCore) -> bool {
    core.partition(GroupId::META).is_some_and(|view| view.is_leader)
}

/// Whom the catalog knows by another disk that counts less than this one, if it is let in.
pub(super) fn replaced_by<'a>(catalog: &'a Catalog, broker: &Broker) -> Option<&'a Broker> {
    // One that does not count is refused by the catalog, without a wait.
    let may_come = !catalog.is_retired(broker.incarnation);
    let known = catalog.broker(broker.node).filter(|known| known.incarnation != broker.incarnation);
    known.filter(|_| may_come).map(|known| &**known)
}

fn replacing(command: CatalogCommand, replaced: Option<Incarnation>) -> CatalogCommand {
    match command {
        CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, .. } => {
            CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, replaces: replaced }
        }
        other => other,
    }
}

/// The registration in a request to join, and whom it is about.
fn registration_of(from: Seat, body: &[u8]) -> Option<(CatalogCommand, Broker)> {
    let command = CatalogCommand::decode(body).ok()?;
    let CatalogCommand::RegisterBroker { broker, .. } = &command else { return None };
    let broker = Some(broker).filter(|broker| broker.node == from.node).cloned()?;
    Some((command, broker))
}

impl ClusterLinks {
    pub(super) fn note_meta_seat(&self, replica: ReplicaId, seat: Seat) {
        let mut seats = self.meta_seats.borrow_mut();
        if seats.len() < crate::catalog::BROKERS_MAX || seats.contains_key(&replica) {
            seats.insert(replica, seat);
        }
    }

    /// Learns from a catalog where its replicas live; what it says of a node takes the place of what was heard before.
    pub(super) fn learn_meta_seats(&self, catalog: &Catalog) {
        let mut seats = self.meta_seats.borrow_mut();
        seats.retain(|_, seat| catalog.broker(seat.node).is_none());
        for broker in catalog.brokers() {
            seats.insert(broker.meta_replica, Seat { node: broker.node, shard: META_SHARD });
        }
    }

    /// Tells a peer which replica of the catalog this node has: it may have a catalog that does not say so yet.
    pub(super) fn introduce(&self, shard: &Shard, to: Seat) {
        if let Some(replica) = shard.with_core(|core| core.replica(GroupId::META)) {
            let node = shard.node.config.node_id;
            let notice =
                LeaderNotice { group: GroupId::META, term: Default::default(), replica, node };
            self.peers().notify(to, vec![notice]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ClusterId;
    use chronik_engine::ids::NodeId;
    use uuid::Uuid;

    #[test]
    fn given_a_request_to_join_when_it_is_about_another_node_or_anything_else_then_it_is_none() {
        let node = NodeId(3);
        let broker = Broker {
            node,
            host: "h".to_owned(),
            port: 1,
            rack: None,
            shards: 1,
            incarnation: Incarnation(Uuid::from_u128(1)),
            meta_replica: ReplicaId(9),
            raft_addr: String::new(),
            is_cordoned: false,
            is_read_only: false,
        };
        let cluster_id = ClusterId(Uuid::from_u128(2));
        let command = CatalogCommand::RegisterBroker {
            cluster_id,
            broker: broker.clone(),
            replica_seed: 1,
            replaces: None,
        };
        let body = command.encode().unwrap();
        let from = |node| Seat { node, shard: META_SHARD };
        assert_eq!(registration_of(from(node), &body), Some((command, broker)));
        assert_eq!(registration_of(from(NodeId(4)), &body), None);
        let other = CatalogCommand::UnregisterBroker { node }.encode().unwrap();
        assert_eq!(registration_of(from(node), &other), None);
        assert_eq!(registration_of(from(node), &body[1..]), None);
    }
}
