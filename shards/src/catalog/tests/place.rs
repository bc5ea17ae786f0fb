//! Where new replicas are put.

use super::*;

/// `(node, rack)`; each has two shards.
fn brokers(racks: &[(u32, Option<&str>)]) -> Catalog {
    let mut catalog = Catalog::new();
    for (node, rack) in racks {
        let broker =
            Broker { rack: rack.map(str::to_owned), ..broker(*node, 2, u128::from(*node)) };
        let command = CatalogCommand::RegisterBroker {
            cluster_id: CLUSTER,
            broker,
            replica_seed: 1,
            replaces: None,
        };
        assert_eq!(catalog.apply(&command), CommandOutcome::BrokerRegistered);
    }
    catalog
}

/// A topic whose partitions have so many replicas.
fn replicated(name: &str, id: u128, partitions: u64, replicas: u64) -> NewTopic {
    let mut topic = new_topic(name, id, partitions);
    for (at, partition) in (0..).zip(&mut topic.partitions) {
        let first = u64::try_from(id).unwrap() * 10_000 + at * 10;
        partition.replicas = (0..replicas).map(|replica| ReplicaId(first + replica + 1)).collect();
    }
    topic
}

fn nodes_of(partition: &Partition) -> Vec<u32> {
    partition.replicas.iter().map(|placement| placement.node.0).collect()
}

fn create_avoiding(catalog: &mut Catalog, topic: NewTopic, avoid: &[u32]) -> Arc<Topic> {
    let avoid = avoid.iter().copied().map(NodeId).collect();
    let outcome = catalog.apply(&CatalogCommand::CreateTopics { topics: vec![topic], avoid });
    let CommandOutcome::TopicsCreated(mut made) = outcome else { panic!("{outcome:?}") };
    made.remove(0).unwrap()
}

#[test]
fn given_racks_when_replicas_are_placed_then_each_is_on_another_and_brokers_share_the_load() {
    let racks = [(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, Some("b")), (5, Some("c"))];
    let mut catalog = brokers(&racks);
    let topic = create_one(&mut catalog, replicated("t", 1, 12, 3)).unwrap();
    for partition in &topic.partitions {
        let rack = |node: &u32| racks[usize::try_from(*node - 1).unwrap()].1;
        let mut found: Vec<_> = nodes_of(partition).iter().map(rack).collect();
        found.sort_unstable();
        assert_eq!(found, [Some("a"), Some("b"), Some("c")]);
    }
    let load: Vec<usize> = (1..=5).map(|node| catalog.replicas_on(NodeId(node))).collect();
    assert_eq!(load, [6, 6, 6, 6, 12], "the only broker of its rack has one of each");
}

#[test]
fn given_a_cordoned_broker_when_replicas_are_placed_then_it_gets_none_until_it_is_open_again() {
    let mut catalog = brokers(&[(1, None), (2, None), (3, None)]);
    let cordon = |catalog: &mut Catalog, is_cordoned| {
        let command = CatalogCommand::CordonBroker { node: NodeId(2), is_cordoned };
        assert_eq!(catalog.apply(&command), CommandOutcome::BrokerChanged);
    };
    cordon(&mut catalog, true);
    create_one(&mut catalog, replicated("t", 1, 6, 2)).unwrap();
    assert_eq!(catalog.replicas_on(NodeId(2)), 0);
    let refused = create_one(&mut catalog, replicated("u", 2, 1, 3)).unwrap_err();
    assert_eq!(refused, CatalogError::InvalidReplicationFactor { replicas: 3, brokers: 2 });
    // Its own registration does not end that.
    catalog.apply(&CatalogCommand::RegisterBroker {
        cluster_id: CLUSTER,
        broker: broker(2, 2, 2),
        replica_seed: 1,
        replaces: None,
    });
    assert!(catalog.broker(NodeId(2)).unwrap().is_cordoned);
    cordon(&mut catalog, false);
    create_one(&mut catalog, replicated("u", 2, 1, 3)).unwrap();
    let cordon_one = |catalog: &mut Catalog, node| {
        catalog.apply(&CatalogCommand::CordonBroker { node: NodeId(node), is_cordoned: true })
    };
    assert_eq!(cordon_one(&mut catalog, 1), CommandOutcome::BrokerChanged);
    assert_eq!(cordon_one(&mut catalog, 2), CommandOutcome::BrokerChanged);
    let last = CatalogError::LastOpenBroker { node: NodeId(3) };
    assert_eq!(cordon_one(&mut catalog, 3), CommandOutcome::Refused(last));
    assert_eq!(
        cordon_one(&mut catalog, 2),
        CommandOutcome::BrokerChanged,
        "once more does no harm"
    );
    let unknown = CatalogCommand::CordonBroker { node: NodeId(9), is_cordoned: true };
    let refused = CommandOutcome::Refused(CatalogError::UnknownBroker { node: NodeId(9) });
    assert_eq!(catalog.apply(&unknown), refused);
}

#[test]
fn given_nodes_that_are_down_when_replicas_are_placed_then_they_get_some_only_where_they_must() {
    let mut catalog = brokers(&[(1, None), (2, None), (3, None)]);
    let topic = create_avoiding(&mut catalog, replicated("t", 1, 4, 2), &[3]);
    assert!(topic.partitions.iter().all(|partition| !nodes_of(partition).contains(&3)));
    let topic = create_avoiding(&mut catalog, replicated("u", 2, 1, 3), &[3]);
    assert!(nodes_of(&topic.partitions[0]).contains(&3));
}

#[test]
fn given_nodes_by_hand_when_a_topic_is_created_then_they_have_it_in_that_order() {
    let mut catalog = brokers(&[(1, None), (2, None), (3, None)]);
    let by_hand = |id, nodes: &[u32]| {
        let replicas = u64::try_from(nodes.len()).unwrap();
        let mut topic = replicated(&format!("t{id}"), id, 1, replicas);
        topic.partitions[0].nodes = nodes.iter().copied().map(NodeId).collect();
        topic
    };
    let topic = create_one(&mut catalog, by_hand(1, &[3, 1])).unwrap();
    assert_eq!(nodes_of(&topic.partitions[0]), [3, 1]);
    let mut refused = |id, nodes: &[u32]| create_one(&mut catalog, by_hand(id, nodes)).unwrap_err();
    let unknown = AssignmentProblem::UnknownBroker { node: NodeId(9) };
    assert_eq!(refused(2, &[3, 9]), CatalogError::InvalidReplicaAssignment(unknown));
    let twice = AssignmentProblem::Twice { node: NodeId(3) };
    assert_eq!(refused(3, &[3, 3]), CatalogError::InvalidReplicaAssignment(twice));
    let mut few_ids = by_hand(4, &[1, 2]);
    few_ids.partitions[0].replicas.pop();
    let few = AssignmentProblem::ReplicaIds { nodes: 2, replica_ids: 1 };
    let refused = create_one(&mut catalog, few_ids).unwrap_err();
    assert_eq!(refused, CatalogError::InvalidReplicaAssignment(few));
}

#[test]
fn given_any_number_of_nodes_and_replicas_when_partitions_are_placed_then_nodes_are_first_in_as_many()
 {
    for nodes in 1..=12_u32 {
        for replicas in 1..=u64::from(nodes.min(3)) {
            for topics in [1_u64, 60] {
                let racks: Vec<(u32, Option<&str>)> =
                    (1..=nodes).map(|node| (node, None)).collect();
                let mut catalog = brokers(&racks);
                let mut firsts: BTreeMap<u32, u64> = (1..=nodes).map(|node| (node, 0)).collect();
                for id in 1..=topics {
                    let topic = replicated(&format!("t{id}"), id.into(), 60 / topics, replicas);
                    let topic = create_one(&mut catalog, topic).unwrap();
                    for partition in &topic.partitions {
                        *firsts.get_mut(&nodes_of(partition)[0]).unwrap() += 1;
                    }
                }
                let (most, fewest) = (firsts.values().max(), firsts.values().min());
                let apart = most.unwrap() - fewest.unwrap();
                assert!(apart <= 2, "{nodes} nodes, {replicas} replicas: {firsts:?}");
            }
        }
    }
}

#[test]
fn given_a_node_that_is_down_and_cannot_be_avoided_when_replicas_are_placed_then_it_is_first_nowhere()
 {
    let mut catalog = brokers(&[(1, None), (2, None), (3, None)]);
    let topic = create_avoiding(&mut catalog, replicated("t", 1, 12, 3), &[3]);
    let firsts: Vec<u32> =
        topic.partitions.iter().map(|partition| nodes_of(partition)[0]).collect();
    assert_eq!(firsts.iter().filter(|node| **node == 1).count(), 6);
    assert!(!firsts.contains(&3), "{firsts:?}");
}
