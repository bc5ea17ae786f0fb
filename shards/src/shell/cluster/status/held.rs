//! Partitions that a drained node goes on leading, since nobody else can: what a drain waits for in vain.
//!
//! A replica that is only behind is none of them: it takes over once it is not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chronik_engine::ids::{GroupId, NodeId};
use serde::Serialize;

use super::{NAMED_MAX, Report, and_more};
use crate::catalog::Catalog;

/// Such a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: usize,
    /// The drained node that leads it.
    pub node: u32,
    /// The nodes of its other replicas that are not drained, all of which are down. None: there are no such replicas.
    pub down: Vec<u32>,
}

/// All of them, by a catalog and what the nodes say that can be heard.
pub(super) fn held(catalog: &Catalog, reports: &BTreeMap<NodeId, Report>) -> Vec<Held> {
    let is_drained = |node| catalog.broker(node).is_some_and(|broker| broker.is_cordoned);
    let drained = reports.iter().filter(|(node, _)| is_drained(**node));
    let led: BTreeMap<GroupId, NodeId> =
        drained.flat_map(|(node, report)| report.led.iter().map(|group| (*group, *node))).collect();
    if led.is_empty() {
        return Vec::new();
    }
    let mut held = Vec::new();
    for topic in catalog.topics() {
        for (number, partition) in topic.partitions.iter().enumerate() {
            let Some(leader) = led.get(&partition.group).copied() else { continue };
            let nodes = partition.replicas.iter().map(|placement| placement.node);
            let heirs: Vec<NodeId> =
                nodes.filter(|node| *node != leader && !is_drained(*node)).collect();
            if heirs.iter().any(|node| reports.contains_key(node)) {
                continue;
            }
            let down = heirs.iter().map(|node| node.0).collect();
            let topic = topic.name.to_string();
            held.push(Held { topic, partition: number, node: leader.0, down });
        }
    }
    held
}

/// As lines for people; nothing where there are none.
pub(super) fn tell(text: &mut String, held: &[Held]) {
    if held.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let what = "partitions that drained nodes go on leading, as nobody else can";
    _ = writeln!(text, "\n{what}: {}", held.len());
    for Held { topic, partition, node, down } in held.iter().take(NAMED_MAX) {
        _ = write!(text, "  {topic}-{partition} node {node}");
        _ = match down[..] {
            [] => writeln!(text, ", no replica on a node that is not drained"),
            [first, ..] => writeln!(text, ", node {first} is down"),
        };
    }
    and_more(text, held.len());
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::ReplicaId;
    use uuid::Uuid;

    use super::*;
    use crate::catalog::samples::{broker, catalog_of};
    use crate::catalog::{CatalogCommand, CommandOutcome, NewPartition, NewTopic, TopicId};

    /// Four nodes, of which 1 and 2 are drained, and a topic whose partitions are there.
    fn catalog(partitions: &[&[u32]]) -> Catalog {
        let mut catalog = catalog_of((1..=4).map(|node| broker(node, node.into())));
        let mut ids = 1..;
        let mut place = |nodes: &&[u32]| NewPartition {
            replicas: ids.by_ref().take(nodes.len()).map(ReplicaId).collect(),
            nodes: nodes.iter().copied().map(NodeId).collect(),
        };
        let topic = NewTopic {
            name: "t".to_owned(),
            id: TopicId(Uuid::from_u128(5)),
            internal: false,
            partitions: partitions.iter().map(&mut place).collect(),
            configs: BTreeMap::new(),
        };
        let create = CatalogCommand::CreateTopics { topics: vec![topic], avoid: Vec::new() };
        let created = catalog.apply(&create);
        assert!(matches!(created, CommandOutcome::TopicsCreated(_)), "{created:?}");
        for node in [1, 2] {
            let cordon = CatalogCommand::CordonBroker { node: NodeId(node), is_cordoned: true };
            catalog.apply(&cordon);
        }
        catalog
    }

    #[test]
    fn given_drained_nodes_when_they_lead_then_what_nobody_can_take_over_is_named_with_the_reason()
    {
        let catalog = catalog(&[&[2, 1], &[2, 3], &[2, 4], &[2], &[1], &[4]]);
        let topic = catalog.topic("t").unwrap();
        let groups: Vec<GroupId> = topic.partitions.iter().map(|p| p.group).collect();
        let report = |led: &[usize]| Report {
            led: led.iter().map(|at| groups[*at]).collect(),
            ..Report::default()
        };
        // Node 4 is down; what node 3 leads is nobody's trouble.
        let reports = BTreeMap::from([
            (NodeId(1), report(&[])),
            (NodeId(2), report(&[0, 1, 2, 3])),
            (NodeId(3), report(&[5])),
        ]);
        let found = held(&catalog, &reports);
        let seen: Vec<_> = found.iter().map(|h| (h.partition, h.node, h.down.clone())).collect();
        assert_eq!(seen, [(0, 2, vec![]), (2, 2, vec![4]), (3, 2, vec![])]);
        let mut text = String::new();
        tell(&mut text, &found);
        assert!(text.contains("as nobody else can: 3\n"), "{text}");
        assert!(
            text.contains("  t-0 node 2, no replica on a node that is not drained\n"),
            "{text}"
        );
        assert!(text.contains("  t-2 node 2, node 4 is down\n"), "{text}");
        let mut none = String::new();
        tell(&mut none, &[]);
        assert_eq!(none, "");
    }
}
