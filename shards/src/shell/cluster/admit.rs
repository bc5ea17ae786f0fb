//! Nodes that ask at the Raft port to be taken in: they are in nobody's list, so there can be no link with them before
//! the catalog names them.
//!
//! - I1: nothing changes for a node that is in the catalog with the disk and the replica that it asks for: it enters its
//!   addresses itself, over a link.
//! - I2: a node that is heard is never put out of its place by another one with its id or with its address, and one that
//!   is not heard only by who has asked for long (`replace`).

use std::rc::Rc;

use chronik_engine::ids::NodeId;
use chronik_replication::formation::{JoinOutcome, JoinRequest, ListedNode};

use super::join::replaced_by;
use crate::catalog::{Broker, Catalog, CatalogCommand, ClusterId, CommandOutcome, Incarnation};
use crate::core::Ack;
use crate::shell::shard::{Shard, random_seed};

/// Nodes that a new one is told of: it learns the others from the catalog.
const TOLD_MAX: usize = 64;

/// What the catalog as it is says to a node.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// It is in already (I1).
    Known,
    /// It may come in.
    New,
    /// It would take the place of this disk.
    Replaces(Incarnation),
    Refused(JoinOutcome),
}

impl Shard {
    /// Has a node taken into the catalog. To be called on the catalog's shard. Cancel-safe; what was proposed is done.
    pub(super) async fn admit(self: &Rc<Self>, asked: &JoinRequest) -> JoinOutcome {
        let Some(catalog) = self.with_core(|core| core.catalog()) else {
            return JoinOutcome::NotYet;
        };
        if !self.is_in_catalog(&catalog) {
            return JoinOutcome::NotYet;
        }
        let broker = broker_of(asked);
        let own = self.node.config.node_id;
        let is_up = |node| node == own || self.links().is_some_and(|links| links.is_up(node));
        match judge(&catalog, &broker, is_up) {
            Judged::Refused(why) => why,
            Judged::Known => taken(&catalog, broker.node),
            Judged::New => self.register(broker, None).await,
            Judged::Replaces(incarnation) => {
                let quorum = self.find_quorum().await;
                let Some(known) = catalog.broker(broker.node) else { return JoinOutcome::NotYet };
                match self.may_replace(known, &broker, quorum.as_ref()) {
                    Ok(()) => self.register(broker, Some(incarnation)).await,
                    Err(why) => JoinOutcome::Later { text: why.to_string() },
                }
            }
        }
    }

    async fn register(
        self: &Rc<Self>,
        broker: Broker,
        replaces: Option<Incarnation>,
    ) -> JoinOutcome {
        let node = broker.node;
        let cluster_id = ClusterId(self.node.cluster_uuid);
        let replica_seed = random_seed();
        let command = CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, replaces };
        match self.submit_command(&command).await {
            Ok(Ok(Ack::Command(CommandOutcome::BrokerRegistered))) => {
                tracing::info!("node {node} is taken into the cluster");
                let catalog = self.with_core(|core| core.catalog());
                catalog.map_or(JoinOutcome::NotYet, |catalog| taken(&catalog, node))
            }
            Ok(Ok(Ack::Command(CommandOutcome::Refused(why)))) => {
                JoinOutcome::Refused { text: why.to_string() }
            }
            _ => JoinOutcome::NotYet,
        }
    }
}

fn broker_of(asked: &JoinRequest) -> Broker {
    let introduction = asked.introduction.clone();
    Broker {
        node: asked.node,
        host: introduction.kafka_host,
        port: introduction.kafka_port,
        rack: introduction.rack,
        shards: introduction.shards,
        incarnation: Incarnation(asked.node_uuid.as_uuid()),
        meta_replica: asked.replica,
        raft_addr: introduction.raft_addr,
        is_cordoned: false,
        is_read_only: introduction.is_read_only,
    }
}

fn judge(catalog: &Catalog, broker: &Broker, is_up: impl Fn(NodeId) -> bool) -> Judged {
    if let Some(known) = catalog.broker(broker.node) {
        let is_same_disk = known.incarnation == broker.incarnation;
        if is_same_disk && known.meta_replica == broker.meta_replica {
            return Judged::Known;
        }
        if is_same_disk || is_up(broker.node) {
            let node_uuid = known.incarnation.0.into();
            return Judged::Refused(JoinOutcome::IdInUse { node_uuid });
        }
    }
    match address_holder(catalog, broker).filter(|node| is_up(*node)) {
        Some(node) => Judged::Refused(JoinOutcome::AddressInUse { node }),
        None => replaced_by(catalog, broker)
            .map_or(Judged::New, |known| Judged::Replaces(known.incarnation)),
    }
}

/// Another node with one of a node's addresses.
pub(in crate::shell) fn address_holder(catalog: &Catalog, broker: &Broker) -> Option<NodeId> {
    let has_one = |other: &&Broker| {
        other.node != broker.node
            && (other.raft_addr == broker.raft_addr
                || (other.host == broker.host && other.port == broker.port))
    };
    catalog.brokers().map(|other| &**other).find(has_one).map(|other| other.node)
}

fn taken(catalog: &Catalog, newcomer: NodeId) -> JoinOutcome {
    let others = catalog.brokers().filter(|broker| broker.node != newcomer).take(TOLD_MAX);
    let peers = others
        .map(|broker| ListedNode { id: broker.node, raft_addr: broker.raft_addr.clone() })
        .collect();
    JoinOutcome::Taken { peers }
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::ReplicaId;
    use uuid::Uuid;

    use super::*;
    use crate::catalog::samples::{broker, catalog_of};

    fn catalog() -> Catalog {
        catalog_of((1..=2).map(|node| broker(node, 1)))
    }

    #[test]
    fn given_a_node_with_its_own_or_anothers_id_when_it_asks_then_who_is_heard_keeps_its_place() {
        let catalog = catalog();
        let (up, down) = (|_| true, |_| false);
        assert_eq!(judge(&catalog, &broker(3, 1), up), Judged::New);
        assert_eq!(judge(&catalog, &broker(2, 1), up), Judged::Known);
        let node_uuid = Uuid::from_u128(1).into();
        let in_use = || Judged::Refused(JoinOutcome::IdInUse { node_uuid });
        assert_eq!(judge(&catalog, &broker(2, 5), up), in_use());
        let replaces = Judged::Replaces(Incarnation(Uuid::from_u128(1)));
        assert_eq!(judge(&catalog, &broker(2, 5), down), replaces, "its disk may be gone");
        let copied = Broker { meta_replica: ReplicaId(77), ..broker(2, 1) };
        assert_eq!(judge(&catalog, &copied, down), in_use(), "one disk has one replica");
    }

    #[test]
    fn given_a_node_with_anothers_address_when_it_asks_then_it_is_refused_while_that_one_is_heard()
    {
        let catalog = catalog();
        let in_use = || Judged::Refused(JoinOutcome::AddressInUse { node: NodeId(1) });
        let raft = Broker { raft_addr: "host1:9192".to_owned(), ..broker(3, 1) };
        let kafka = Broker { host: "host1".to_owned(), ..broker(3, 1) };
        for broker in [raft, kafka] {
            assert_eq!(judge(&catalog, &broker, |_| true), in_use());
            assert_eq!(judge(&catalog, &broker, |_| false), Judged::New);
        }
    }

    #[test]
    fn given_a_node_that_was_taken_in_when_told_of_the_others_then_it_is_not_among_them() {
        let peers = vec![ListedNode { id: NodeId(1), raft_addr: "host1:9192".to_owned() }];
        assert_eq!(taken(&catalog(), NodeId(2)), JoinOutcome::Taken { peers });
    }
}
