//! Read-only nodes, and the replicas that they have.

use super::*;

fn read_only_on(catalog: &Catalog, node: u32, shards: u16, disk: u128) -> CatalogCommand {
    let CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, replaces } =
        register_on(catalog, node, shards, disk)
    else {
        unreachable!("a registration is one")
    };
    let broker = Broker { is_read_only: true, ..broker };
    CatalogCommand::RegisterBroker { cluster_id, broker, replica_seed, replaces }
}

pub(super) fn read_only(node: u32, shards: u16) -> CatalogCommand {
    read_only_on(&Catalog::new(), node, shards, u128::from(node) << 32)
}

/// Topic `t`, of six partitions with two replicas each, and the topic of the groups' offsets.
fn topics() -> [CatalogCommand; 2] {
    let with_two = |mut topic: NewTopic| {
        for (number, partition) in (0..).zip(&mut topic.partitions) {
            partition.replicas = vec![ReplicaId(1_000 + number), ReplicaId(2_000 + number)];
        }
        topic
    };
    let internal = NewTopic { internal: true, ..new_topic(crate::groups::OFFSETS_TOPIC, 2, 2) };
    [create(with_two(new_topic("t", 1, 6))), create(with_two(internal))]
}

/// Nodes 1 and 2 vote, node 3 is read-only with two shards; it came before the topics, or after them.
fn cluster(is_first: bool) -> Catalog {
    let mut catalog = Catalog::new();
    let (mut commands, topics) = (vec![register(1, 1), register(2, 1)], topics());
    if is_first {
        commands.push(read_only(3, 2));
        commands.extend(topics);
    } else {
        commands.extend(topics);
        commands.push(read_only(3, 2));
    }
    for command in commands {
        let outcome = catalog.apply(&command);
        let is_done = match &outcome {
            CommandOutcome::TopicsCreated(results) => results.iter().all(Result::is_ok),
            outcome => *outcome == CommandOutcome::BrokerRegistered,
        };
        assert!(is_done, "{outcome:?}");
    }
    catalog
}

fn partitions(catalog: &Catalog) -> &[Partition] {
    &catalog.topic("t").unwrap().partitions
}

fn refusal(catalog: &mut Catalog, command: &CatalogCommand) -> CatalogError {
    let before = catalog.clone();
    let CommandOutcome::Refused(why) = catalog.apply(command) else { panic!("it is taken") };
    assert_eq!(*catalog, before, "I5");
    why
}

fn reader_ids(catalog: &Catalog) -> BTreeSet<ReplicaId> {
    partitions(catalog).iter().flat_map(|p| &p.readers).map(|reader| reader.replica).collect()
}

#[test]
fn given_a_read_only_node_when_it_or_a_topic_comes_then_it_has_a_learner_of_each_partition_and_no_other_replica()
 {
    for is_first in [true, false] {
        let catalog = cluster(is_first);
        for partition in partitions(&catalog) {
            assert_eq!(partition.readers.len(), 1);
            let reader = partition.readers[0];
            assert_eq!(reader.node, NodeId(3));
            assert!(partition.replicas.iter().all(|placement| placement.node != NodeId(3)));
            assert!(partition.is_settled() && partition.is_coherent());
            let placed = catalog.placed_on(NodeId(3), reader.shard);
            let (_, meta) = placed.into_iter().find(|(g, _)| *g == partition.group).unwrap();
            assert_eq!(meta.learners, [reader.replica]);
            assert!(!meta.voters.contains(&reader.replica) && meta.voters.len() == 2);
        }
        assert_eq!(reader_ids(&catalog).len(), 6, "each id is another one");
        let on_shard = |shard| catalog.placed_on(NodeId(3), ShardId(shard)).count();
        assert_eq!((on_shard(0), on_shard(1)), (3, 3));
        assert_eq!(catalog.replicas_on(NodeId(3)), 6, "none of __consumer_offsets");
        assert_eq!(Catalog::decode(&catalog.encode().unwrap()).unwrap(), catalog);
    }
}

#[test]
fn given_a_read_only_node_when_partitions_are_added_or_settled_then_it_has_and_keeps_its_replicas()
{
    let mut catalog = cluster(true);
    catalog.apply(&CatalogCommand::CreatePartitions {
        name: "t".to_owned(),
        partitions: vec![NewPartition { replicas: vec![ReplicaId(9)], nodes: Vec::new() }],
        total: 7,
        avoid: Vec::new(),
    });
    assert_eq!(partitions(&catalog)[6].readers.len(), 1);
    let reader = partitions(&catalog)[0].readers.clone();
    let moves = vec![moves::to("t", 0, &[1])];
    catalog.apply(&CatalogCommand::MovePartitions { moves });
    assert_eq!(partitions(&catalog)[0].readers, reader);
    let moving = partitions(&catalog)[0].clone();
    assert!(moving.is_moving());
    let replicas = moving.replicas.iter().map(|placement| placement.replica).collect();
    let settled = CatalogCommand::ReplicasSettled { group: moving.group, replicas };
    assert_eq!(catalog.apply(&settled), CommandOutcome::ReplicasSettled, "readers do not count");
    assert_eq!(partitions(&catalog)[0].readers, reader);
}

#[test]
fn given_a_read_only_node_when_somebody_wants_a_replica_there_that_votes_then_it_is_refused() {
    let mut catalog = cluster(true);
    let read_only = AssignmentProblem::ReadOnly { node: NodeId(3) };
    let refused = CatalogError::InvalidReplicaAssignment(read_only);
    for nodes in [&[3][..], &[1, 3], &[3, 2, 1]] {
        let moves = vec![moves::to("t", 0, nodes)];
        let outcome = catalog.apply(&CatalogCommand::MovePartitions { moves });
        assert_eq!(outcome, CommandOutcome::PartitionsMoved(vec![Err(refused.clone())]));
    }
    let mut by_hand = new_topic("u", 3, 1);
    by_hand.partitions[0].nodes = vec![NodeId(3)];
    assert_eq!(create_one(&mut catalog, by_hand), Err(refused));
    let mut three = new_topic("u", 3, 1);
    three.partitions[0].replicas = vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)];
    let too_few = CatalogError::InvalidReplicationFactor { replicas: 3, brokers: 2 };
    assert_eq!(create_one(&mut catalog, three), Err(too_few));
}

#[test]
fn given_a_read_only_node_on_another_disk_when_it_registers_then_its_replicas_have_other_ids() {
    let mut catalog = cluster(true);
    let before = reader_ids(&catalog);
    let wiped = read_only_on(&catalog, 3, 1, 77);
    assert_eq!(catalog.apply(&wiped), CommandOutcome::BrokerRegistered);
    let after = reader_ids(&catalog);
    assert!(after.len() == 6 && after.is_disjoint(&before), "{before:?} {after:?}");
    for partition in partitions(&catalog) {
        assert!(partition.is_settled(), "a learner that went is nobody's loss");
        assert_eq!(partition.readers[0].shard, ShardId(0));
    }
    assert_eq!(catalog.replicas_on(NodeId(3)), 6);
    assert!(catalog.lost_beside(NodeId(3), ShardId(0)).is_empty());
}

#[test]
fn given_a_read_only_node_when_removed_then_its_replicas_go_with_it() {
    let mut catalog = cluster(true);
    let node = NodeId(3);
    let remove = CatalogCommand::UnregisterBroker { node };
    assert_eq!(refusal(&mut catalog, &remove), CatalogError::BrokerNotDrained { node });
    let cordon = CatalogCommand::CordonBroker { node, is_cordoned: true };
    assert_eq!(catalog.apply(&cordon), CommandOutcome::BrokerChanged);
    assert_eq!(catalog.replicas_on(node), 6, "drained it keeps what it has");
    assert_eq!(catalog.apply(&remove), CommandOutcome::BrokerChanged);
    assert!(partitions(&catalog).iter().all(|partition| partition.readers.is_empty()));
    assert_eq!((catalog.replicas_on(node), catalog.brokers().len()), (0, 2));
    let incarnation = broker(3, 2, 3 << 32).incarnation;
    assert!(catalog.is_retired(incarnation));
}

#[test]
fn given_a_node_when_it_comes_back_as_something_else_then_it_is_refused_until_it_was_removed() {
    let mut catalog = cluster(true);
    let now_votes = register_on(&catalog, 3, 2, 3 << 32);
    let was = Role::ReadOnly;
    assert_eq!(refusal(&mut catalog, &now_votes), CatalogError::OtherRole { node: NodeId(3), was });
    let wiped = register_on(&catalog, 3, 2, 99);
    assert!(matches!(refusal(&mut catalog, &wiped), CatalogError::OtherRole { .. }));
    let now_reads = read_only(2, 1);
    let was = Role::Voting;
    assert_eq!(refusal(&mut catalog, &now_reads), CatalogError::OtherRole { node: NodeId(2), was });
    catalog.apply(&CatalogCommand::CordonBroker { node: NodeId(3), is_cordoned: true });
    catalog.apply(&CatalogCommand::UnregisterBroker { node: NodeId(3) });
    assert_eq!(catalog.apply(&register_on(&catalog, 3, 2, 100)), CommandOutcome::BrokerRegistered);
    assert_eq!(catalog.open_brokers().count(), 3);
}

#[test]
fn given_read_only_nodes_when_nobody_else_would_be_left_then_it_is_refused() {
    let mut empty = Catalog::new();
    let node = NodeId(3);
    assert_eq!(refusal(&mut empty, &read_only(3, 1)), CatalogError::ReadOnlyAlone { node });
    let mut catalog = cluster(true);
    catalog.apply(&CatalogCommand::CordonBroker { node: NodeId(1), is_cordoned: true });
    let last = CatalogCommand::CordonBroker { node: NodeId(2), is_cordoned: true };
    let why = CatalogError::LastOpenBroker { node: NodeId(2) };
    assert_eq!(refusal(&mut catalog, &last), why);
    let most = u32::try_from(READ_ONLY_MAX).unwrap();
    for node in 4..3 + most {
        assert_eq!(catalog.apply(&read_only(node, 1)), CommandOutcome::BrokerRegistered);
    }
    let nodes = READ_ONLY_MAX;
    let node = NodeId(3 + most);
    assert_eq!(
        refusal(&mut catalog, &read_only(3 + most, 1)),
        CatalogError::TooManyReadOnly { node, nodes }
    );
    assert!(partitions(&catalog).iter().all(|p| p.readers.len() == READ_ONLY_MAX));
    assert_eq!(Catalog::decode(&catalog.encode().unwrap()).unwrap(), catalog);
}

#[test]
fn given_the_only_other_replica_is_for_readers_when_one_is_lost_then_it_answers_for_nobody() {
    let mut catalog = cluster(true);
    assert_eq!(catalog.apply(&register_on(&catalog, 2, 1, 55)), CommandOutcome::BrokerRegistered);
    let lost = catalog.lost_beside(NodeId(1), ShardId(0));
    assert_eq!(lost.len(), 8, "{lost:?}");
    for shard in [ShardId(0), ShardId(1)] {
        assert!(catalog.lost_beside(NodeId(3), shard).is_empty());
    }
}
