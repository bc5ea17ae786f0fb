//! The brokers: how they come, on which disk they run, and how they go.
//!
//! - I1: a disk that another one took the place of, or whose node was removed, never comes back: its replicas may be
//!   voted for under other ids by now, or be nobody's.
//! - I2: a disk takes the place of just the one that whoever judged it had in mind.
//! - I3: as long as there are brokers, one of them is open: neither cordoned nor read-only. So a broker that is cordoned gets no vote on the catalog, and
//!   whoever found that it has none may remove it.

use std::sync::Arc;

use chronik_engine::ids::NodeId;

use super::{
    BROKERS_MAX, Broker, Catalog, CatalogError, ClusterId, Incarnation, READ_ONLY_MAX, RETIRED_MAX,
};

impl Catalog {
    pub(super) fn register_broker(
        &mut self,
        cluster_id: ClusterId,
        broker: &Broker,
        replica_seed: u64,
        replaces: Option<Incarnation>,
    ) -> Result<(), CatalogError> {
        let node = broker.node;
        if let Some(ours) = self.cluster_id.filter(|ours| *ours != cluster_id) {
            return Err(CatalogError::OtherCluster { node, theirs: cluster_id, ours });
        }
        let brokers = self.brokers.len();
        let known = self.brokers.get(&node).cloned();
        if broker.shards == 0 || (known.is_none() && brokers >= BROKERS_MAX) {
            return Err(CatalogError::InvalidBroker { node, brokers });
        }
        if self.retired.contains(&broker.incarnation) {
            return Err(CatalogError::RetiredIncarnation { node });
        }
        let had = known.as_ref().map(|known| known.incarnation);
        if had.is_some_and(|had| had != broker.incarnation && replaces != Some(had)) {
            return Err(CatalogError::OtherIncarnation { node });
        }
        self.check_read_only(broker, known.as_deref())?;
        self.cluster_id = Some(cluster_id);
        let is_cordoned = known.as_ref().is_some_and(|known| known.is_cordoned);
        self.brokers.insert(node, Arc::new(Broker { is_cordoned, ..broker.clone() }));
        match known {
            None => {
                if !self.broker_configs.is_empty() {
                    self.settle_topics();
                }
                if broker.is_read_only {
                    self.add_readers_on(node, replica_seed);
                }
            }
            Some(known) if known.incarnation != broker.incarnation => {
                self.retire(known.incarnation);
                self.replace_replicas_of(node, replica_seed);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// A node stays what it came as (I6 of the module), and nobody is read-only in a cluster of which nobody is not (I3).
    fn check_read_only(&self, broker: &Broker, known: Option<&Broker>) -> Result<(), CatalogError> {
        let (node, is_read_only) = (broker.node, broker.is_read_only);
        match known {
            Some(known) if known.is_read_only == is_read_only => Ok(()),
            Some(known) => Err(CatalogError::OtherRole { node, was: known.is_read_only.into() }),
            None if !is_read_only => Ok(()),
            None if self.brokers.is_empty() => Err(CatalogError::ReadOnlyAlone { node }),
            None => {
                let nodes = self.read_only_brokers().count();
                match nodes < READ_ONLY_MAX {
                    true => Ok(()),
                    false => Err(CatalogError::TooManyReadOnly { node, nodes }),
                }
            }
        }
    }

    pub(super) fn cordon_broker(
        &mut self,
        node: NodeId,
        is_cordoned: bool,
    ) -> Result<(), CatalogError> {
        if is_cordoned && self.open_brokers().map(|open| open.node).eq([node]) {
            return Err(CatalogError::LastOpenBroker { node }); // I3
        }
        let broker = self.brokers.get_mut(&node).ok_or(CatalogError::UnknownBroker { node })?;
        if broker.is_cordoned != is_cordoned {
            *broker = Arc::new(Broker { is_cordoned, ..Broker::clone(broker) });
        }
        Ok(())
    }

    pub(super) fn unregister_broker(&mut self, node: NodeId) -> Result<(), CatalogError> {
        let Some(broker) = self.brokers.get(&node) else {
            return Err(CatalogError::UnknownBroker { node });
        };
        // Those for readers nobody needs but readers.
        let replicas = if broker.is_read_only { 0 } else { self.replicas_on(node) };
        if replicas > 0 {
            return Err(CatalogError::BrokerHasReplicas { node, replicas });
        }
        if self.brokers.len() == 1 {
            return Err(CatalogError::LastBroker { node });
        }
        if !broker.is_cordoned {
            return Err(CatalogError::BrokerNotDrained { node });
        }
        let incarnation = broker.incarnation;
        self.remove_readers_on(node);
        self.brokers.remove(&node);
        self.retire(incarnation);
        if !self.broker_configs.is_empty() {
            self.settle_topics();
        }
        Ok(())
    }

    /// Whether a disk of a node does not count any more (I1).
    #[must_use]
    pub fn is_retired(&self, incarnation: Incarnation) -> bool {
        self.retired.contains(&incarnation)
    }

    /// Those of the nodes of a list that were never part of the cluster. Once a node was removed or came on another disk the
    /// cluster is past its beginning, and nobody is waited for: a list may go on naming a node that was removed.
    #[must_use]
    pub fn still_to_come(&self, listed: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
        let has_lost_none = self.retired.is_empty();
        listed.filter(|node| has_lost_none && !self.brokers.contains_key(node)).collect()
    }

    fn retire(&mut self, incarnation: Incarnation) {
        if self.retired.len() >= RETIRED_MAX {
            self.retired.pop_front();
        }
        self.retired.push_back(incarnation);
    }
}
