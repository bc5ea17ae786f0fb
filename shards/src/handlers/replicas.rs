//! How many replicas a topic gets whose creator does not say.
//!
//! - I1: no topic is made with fewer than are wanted because a node of the list is still to come: it would keep the few
//!   that it began with.

use chronik_engine::ids::NodeId;

use super::topics::RefusedBecause;
use crate::catalog::CatalogError;
use crate::shell::shard::Shard;

/// Replicas where nobody says how many; any more are the operator's decision.
const REPLICAS_BY_DEFAULT_MAX: usize = 3;

/// What the number depends on.
#[derive(Debug, Clone)]
struct Nodes {
    /// `kafka.default_replication_factor`; 0 leaves it to the nodes.
    set: u16,
    /// Nodes that take new replicas.
    open: usize,
    /// Nodes of the list that are not part of the cluster yet.
    to_come: Vec<NodeId>,
}

impl Nodes {
    fn of(shard: &Shard) -> Nodes {
        let config = &shard.node.config;
        let catalog = shard.catalog();
        Nodes {
            set: config.kafka.default_replication_factor,
            open: catalog.open_brokers().count(),
            to_come: catalog.still_to_come(config.cluster.nodes.iter().map(|node| node.id)),
        }
    }

    fn wanted(&self) -> usize {
        match self.set {
            0 => (self.open + self.to_come.len()).clamp(1, REPLICAS_BY_DEFAULT_MAX),
            set => usize::from(set),
        }
    }

    fn check(&self) -> Result<usize, RefusedBecause> {
        // A node alone may be asked before its own catalog names it.
        let (replicas, brokers) = (self.wanted(), self.open.max(1));
        if replicas <= brokers {
            return Ok(replicas);
        }
        let lacking = CatalogError::InvalidReplicationFactor { replicas, brokers };
        Err(match self.to_come.is_empty() {
            true => lacking.into(),
            false => RefusedBecause::ToCome { lacking, to_come: self.to_come.clone() },
        })
    }
}

/// What there is to do where nodes are lacking.
pub(super) const MORE_NODES: &str = "Start more nodes, let drained ones in again, or set kafka.default_replication_factor to fewer; \
                                     read-only nodes do not count.";

/// How many replicas a topic gets that says nothing of it.
///
/// # Errors
/// There are not as many nodes yet (I1).
pub(super) fn by_default(shard: &Shard) -> Result<usize, RefusedBecause> {
    Nodes::of(shard).check()
}

/// How many it is to have, those included for which nodes are still to come.
pub(crate) fn wanted_by_default(shard: &Shard) -> usize {
    Nodes::of(shard).wanted()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::ResponseError;

    use super::*;

    fn nodes(set: u16, open: usize, to_come: &[u32]) -> Nodes {
        Nodes { set, open, to_come: to_come.iter().copied().map(NodeId).collect() }
    }

    #[test]
    fn given_no_replication_factor_when_a_topic_is_made_then_the_nodes_that_there_are_say_how_many()
    {
        let given: Vec<usize> = (0..=5).map(|open| nodes(0, open, &[]).check().unwrap()).collect();
        assert_eq!(given, [1, 1, 2, 3, 3, 3]);
        assert_eq!(nodes(1, 5, &[]).check().unwrap(), 1);
    }

    #[test]
    fn given_nodes_of_the_list_that_are_to_come_when_a_topic_is_made_then_it_waits_if_it_lacks_them()
     {
        assert_eq!(nodes(0, 3, &[4, 5]).check().unwrap(), 3, "there are as many as it needs");
        assert_eq!(nodes(1, 1, &[2, 3]).check().unwrap(), 1);
        for lacking in [nodes(0, 2, &[3]), nodes(0, 1, &[2, 3]), nodes(3, 2, &[3])] {
            let why = lacking.check().unwrap_err();
            assert_eq!(why.response_error(), ResponseError::InvalidReplicationFactor);
            assert!(why.to_string().ends_with("yet: 3.") || why.to_string().ends_with("2, 3."));
        }
        let why = nodes(3, 2, &[]).check().unwrap_err();
        assert_eq!(why.response_error(), ResponseError::InvalidReplicationFactor);
        assert!(!why.to_string().contains("cluster.nodes"), "no node of a list is missing");
    }
}
