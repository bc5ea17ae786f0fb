//! Brokers and catalogs for tests all over the crate.

use chronik_engine::ids::{NodeId, ReplicaId};
use uuid::Uuid;

use super::{Broker, Catalog, CatalogCommand, ClusterId, CommandOutcome, Incarnation};

/// The broker of a node, `host{node}` with one shard, on this disk.
pub(crate) fn broker(node: u32, disk: u128) -> Broker {
    Broker {
        node: NodeId(node),
        host: format!("host{node}"),
        port: 9092,
        rack: None,
        shards: 1,
        incarnation: Incarnation(Uuid::from_u128(disk)),
        meta_replica: ReplicaId(u64::from(node)),
        raft_addr: format!("host{node}:9192"),
        is_cordoned: false,
        is_read_only: false,
    }
}

/// A catalog with these brokers.
pub(crate) fn catalog_of(brokers: impl IntoIterator<Item = Broker>) -> Catalog {
    let mut catalog = Catalog::new();
    for broker in brokers {
        let cluster_id = ClusterId(Uuid::from_u128(9));
        let (replica_seed, replaces) = (7, None);
        let command = CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, replaces };
        assert_eq!(catalog.apply(&command), CommandOutcome::BrokerRegistered);
    }
    catalog
}
