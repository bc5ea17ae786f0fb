//! How replicas come to other nodes and to other disks.

use std::collections::BTreeSet;

use super::*;

/// A move of one partition; replica ids follow from the nodes and their number.
pub(super) fn to(topic: &str, partition: u32, nodes: &[u32]) -> PartitionMove {
    ids_from(5_000 + 100 * u64::from(partition), topic, partition, nodes)
}

fn ids_from(first: u64, topic: &str, partition: u32, nodes: &[u32]) -> PartitionMove {
    PartitionMove {
        topic: TopicRef::Name(topic.to_owned()),
        partition,
        nodes: nodes.iter().copied().map(NodeId).collect(),
        replica_ids: nodes.iter().map(|node| ReplicaId(first + u64::from(*node))).collect(),
    }
}

fn move_one(catalog: &mut Catalog, wanted: PartitionMove) -> Result<(), CatalogError> {
    match catalog.apply(&CatalogCommand::MovePartitions { moves: vec![wanted] }) {
        CommandOutcome::PartitionsMoved(mut results) => results.remove(0),
        other => panic!("{other:?}"),
    }
}

/// Five brokers, and topic `t` with one partition on the first three: replicas 11, 12 and 13.
fn three_of_five() -> Catalog {
    let mut catalog = Catalog::new();
    (1..=5).for_each(|node| _ = catalog.apply(&register(node, 2)));
    let mut topic = new_topic("t", 1, 1);
    topic.partitions[0] = NewPartition {
        replicas: vec![ReplicaId(11), ReplicaId(12), ReplicaId(13)],
        nodes: vec![NodeId(1), NodeId(2), NodeId(3)],
    };
    create_one(&mut catalog, topic).unwrap();
    catalog
}

fn partition(catalog: &Catalog) -> Partition {
    catalog.topic("t").unwrap().partitions[0].clone()
}

/// `(node, replica)` of each.
fn pairs(placements: &[Placement]) -> Vec<(u32, u64)> {
    placements.iter().map(|placement| (placement.node.0, placement.replica.0)).collect()
}

fn settle(catalog: &mut Catalog) -> CommandOutcome {
    let now = partition(catalog);
    let replicas = now.replicas.iter().map(|placement| placement.replica).collect();
    catalog.apply(&CatalogCommand::ReplicasSettled { group: now.group, replicas })
}

#[test]
fn given_a_move_when_it_is_settled_then_the_old_replica_is_named_until_then_and_no_longer() {
    let mut catalog = three_of_five();
    move_one(&mut catalog, to("t", 0, &[4, 2, 3])).unwrap();
    let moved = partition(&catalog);
    assert_eq!(pairs(&moved.replicas), [(4, 5_004), (2, 12), (3, 13)]);
    assert_eq!(moved.adding, [ReplicaId(5_004)]);
    assert_eq!(pairs(&moved.removing), [(1, 11)]);
    assert_eq!(moved.preferred_leader(), Some(NodeId(4)));
    let shard = moved.replicas[0].shard;
    let (_, meta) = catalog.placed_on(NodeId(4), shard).next().unwrap();
    assert_eq!(meta.learners, [ReplicaId(5_004)], "who comes later votes later");
    assert_eq!(meta.voters, [ReplicaId(12), ReplicaId(13), ReplicaId(11)]);
    assert_eq!(catalog.replicas_on(NodeId(1)), 1);
    let group = moved.group;
    let early = vec![ReplicaId(11), ReplicaId(12), ReplicaId(13)];
    let early = catalog.apply(&CatalogCommand::ReplicasSettled { group, replicas: early });
    assert_eq!(early, CommandOutcome::Refused(CatalogError::OtherReplicas { group }));
    assert_eq!(settle(&mut catalog), CommandOutcome::ReplicasSettled);
    let settled = partition(&catalog);
    assert!(settled.is_settled());
    assert_eq!(settled.placement_on(NodeId(1)), None);
    assert_eq!(catalog.replicas_on(NodeId(1)), 0);
    let again = settle(&mut catalog);
    assert_eq!(again, CommandOutcome::Refused(CatalogError::OtherReplicas { group }));
}

#[test]
fn given_a_move_under_way_when_cancelled_then_the_replicas_are_those_before_and_the_new_one_is_kept_until_settled()
 {
    let mut catalog = three_of_five();
    let none = CatalogError::NoReassignmentInProgress;
    assert_eq!(move_one(&mut catalog, to("t", 0, &[])), Err(none.clone()));
    move_one(&mut catalog, to("t", 0, &[1, 2, 4])).unwrap();
    move_one(&mut catalog, to("t", 0, &[])).unwrap();
    let back = partition(&catalog);
    assert_eq!(pairs(&back.replicas), [(1, 11), (2, 12), (3, 13)]);
    assert!(back.adding.is_empty() && back.removing.is_empty());
    assert_eq!(pairs(&back.dropped), [(4, 5_004)], "Raft may have taken it in");
    assert_eq!(move_one(&mut catalog, to("t", 0, &[])), Err(none));
    // Wanted again, it is the same replica.
    move_one(&mut catalog, ids_from(6_000, "t", 0, &[1, 2, 4])).unwrap();
    let again = partition(&catalog);
    assert_eq!(pairs(&again.replicas), [(1, 11), (2, 12), (4, 5_004)]);
    assert_eq!(again.adding, [ReplicaId(5_004)]);
    settle(&mut catalog);
    assert!(partition(&catalog).is_settled());
}

#[test]
fn given_a_move_under_way_when_another_takes_its_place_then_what_was_to_come_is_dropped() {
    let mut catalog = three_of_five();
    move_one(&mut catalog, to("t", 0, &[4, 2, 3])).unwrap();
    move_one(&mut catalog, ids_from(6_000, "t", 0, &[5, 1])).unwrap();
    let moved = partition(&catalog);
    assert_eq!(pairs(&moved.replicas), [(5, 6_005), (1, 11)]);
    assert_eq!(moved.adding, [ReplicaId(6_005)]);
    assert_eq!(pairs(&moved.removing), [(2, 12), (3, 13)]);
    assert_eq!(pairs(&moved.dropped), [(4, 5_004)]);
}

#[test]
fn given_a_node_on_another_disk_when_it_registers_then_its_replicas_are_others_and_the_old_disk_is_refused()
 {
    let mut catalog = three_of_five();
    assert_eq!(catalog.apply(&register_on(&catalog, 3, 1, 77)), CommandOutcome::BrokerRegistered);
    let not_named = register_on(&Catalog::new(), 3, 1, 78);
    let node = NodeId(3);
    let other = CommandOutcome::Refused(CatalogError::OtherIncarnation { node });
    assert_eq!(catalog.apply(&not_named), other, "it had disk 77 in mind at best");
    let replaced = partition(&catalog);
    let new = replaced.placement_on(NodeId(3)).unwrap();
    assert_eq!(replaced.adding, [new.replica]);
    assert_eq!(pairs(&replaced.removing), [(3, 13)]);
    assert!(replaced.is_lost(&replaced.removing[0]));
    assert!(new.shard.0 < 1);
    let old = catalog.apply(&register(3, 2));
    assert_eq!(old, CommandOutcome::Refused(CatalogError::RetiredIncarnation { node }));
    // Wiped again before it voted: that one was nobody yet.
    catalog.apply(&register_on(&catalog, 3, 1, 78));
    let twice = partition(&catalog);
    assert_ne!(twice.adding, replaced.adding);
    assert_eq!(pairs(&twice.removing), [(3, 13)]);
    assert_eq!(twice.placements().count(), 4);
    // There is nothing to cancel: the replica that went does not come back.
    let none = CatalogError::NoReassignmentInProgress;
    assert_eq!(move_one(&mut catalog, to("t", 0, &[])), Err(none));
    settle(&mut catalog);
    assert!(partition(&catalog).is_settled());
    // The same disk again changes nothing.
    let before = catalog.clone();
    catalog.apply(&register_on(&catalog, 3, 1, 78));
    assert_eq!(catalog, before);
}

#[test]
fn given_a_replica_that_went_with_its_disk_when_its_node_is_to_have_none_then_it_has_no_place() {
    let mut catalog = three_of_five();
    catalog.apply(&register_on(&catalog, 3, 2, 77));
    let new = partition(&catalog).placement_on(NodeId(3)).unwrap();
    move_one(&mut catalog, to("t", 0, &[1, 2, 4])).unwrap();
    let moved = partition(&catalog);
    assert!(moved.removing.is_empty());
    assert_eq!(moved.lost, [ReplicaId(13)]);
    assert_eq!(moved.dropped, [new]);
    // And of a replica that was about to go, nothing is left on the new disk.
    move_one(&mut catalog, ids_from(6_000, "t", 0, &[2, 4, 5])).unwrap();
    assert_eq!(pairs(&partition(&catalog).removing), [(1, 11)]);
    catalog.apply(&register_on(&catalog, 1, 2, 79));
    assert_eq!(partition(&catalog).placement_on(NodeId(1)), None);
}

fn lost_beside(catalog: &Catalog, node: u32) -> Vec<u64> {
    let placement = partition(catalog).placement_on(NodeId(node)).unwrap();
    let beside = catalog.lost_beside(NodeId(node), placement.shard);
    beside.into_values().flatten().map(|replica| replica.0).collect()
}

#[test]
fn given_a_partition_of_two_when_one_went_with_its_disk_then_the_other_knows_and_may_not_be_left() {
    let mut catalog = three_of_five();
    move_one(&mut catalog, to("t", 0, &[1, 2])).unwrap();
    settle(&mut catalog);
    assert_eq!(partition(&catalog).left_alone(), None);
    catalog.apply(&register_on(&catalog, 2, 2, 77));
    assert_eq!(partition(&catalog).left_alone(), Some(NodeId(1)));
    assert_eq!(lost_beside(&catalog, 1), [12]);
    let left = AssignmentProblem::LeftAlone { left: NodeId(1) };
    for elsewhere in [&[2][..], &[3, 4], &[1, 2, 3]] {
        let refused = move_one(&mut catalog, ids_from(7_000, "t", 0, elsewhere));
        assert_eq!(refused, Err(CatalogError::InvalidReplicaAssignment(left)));
    }
    // The node may be gone for good: another one takes its place, and the lost replica is named all the same.
    move_one(&mut catalog, ids_from(8_000, "t", 0, &[1, 3])).unwrap();
    assert_eq!(lost_beside(&catalog, 1), [12]);
    assert_eq!(lost_beside(&catalog, 3), [12]);
    settle(&mut catalog);
    assert!(lost_beside(&catalog, 1).is_empty());
    assert_eq!(partition(&catalog).left_alone(), None);
}

#[test]
fn given_a_move_under_way_when_a_replica_goes_with_its_disk_then_it_is_named_until_all_is_settled()
{
    for lost in [2, 3] {
        let mut catalog = three_of_five();
        move_one(&mut catalog, to("t", 0, &[1, 2])).unwrap();
        settle(&mut catalog);
        // Raft may have any of the three as members.
        move_one(&mut catalog, to("t", 0, &[1, 3])).unwrap();
        let replica = partition(&catalog).placement_on(NodeId(lost)).unwrap().replica;
        catalog.apply(&register_on(&catalog, lost, 2, 77));
        assert_eq!(lost_beside(&catalog, 1), [replica.0]);
        let cancelled = move_one(&mut catalog, to("t", 0, &[]));
        let is_back =
            partition(&catalog).placement_on(NodeId(2)).is_some_and(|p| p.replica.0 == 12);
        assert_eq!((cancelled.is_ok(), is_back), (lost == 3, lost == 3));
        assert_eq!(lost_beside(&catalog, 1), [replica.0]);
        settle(&mut catalog);
        assert!(partition(&catalog).is_settled());
    }
}

#[test]
fn given_a_broker_with_replicas_when_it_is_to_go_then_only_once_they_are_away() {
    let mut catalog = three_of_five();
    let node = NodeId(3);
    let unregister = CatalogCommand::UnregisterBroker { node };
    let has = CatalogError::BrokerHasReplicas { node, replicas: 1 };
    assert_eq!(catalog.apply(&unregister), CommandOutcome::Refused(has.clone()));
    catalog.apply(&CatalogCommand::CordonBroker { node, is_cordoned: true });
    move_one(&mut catalog, to("t", 0, &[1, 2, 4])).unwrap();
    assert_eq!(catalog.apply(&unregister), CommandOutcome::Refused(has));
    settle(&mut catalog);
    catalog.apply(&CatalogCommand::CordonBroker { node, is_cordoned: false });
    let open = CatalogError::BrokerNotDrained { node };
    assert_eq!(catalog.apply(&unregister), CommandOutcome::Refused(open));
    catalog.apply(&CatalogCommand::CordonBroker { node, is_cordoned: true });
    let cordoned = CatalogError::InvalidReplicaAssignment(AssignmentProblem::Cordoned { node });
    assert_eq!(move_one(&mut catalog, to("t", 0, &[1, 2, 3])), Err(cordoned));
    let listed = || (1..=6).map(NodeId);
    assert_eq!(catalog.still_to_come(listed()), [NodeId(6)]);
    assert_eq!(catalog.apply(&unregister), CommandOutcome::BrokerChanged);
    assert!(catalog.broker(node).is_none());
    assert_eq!(catalog.still_to_come(listed()), [], "nobody waits for a node that was removed");
    let back = catalog.apply(&register(3, 2));
    assert_eq!(back, CommandOutcome::Refused(CatalogError::RetiredIncarnation { node }));
    let gone = CommandOutcome::Refused(CatalogError::UnknownBroker { node });
    assert_eq!(catalog.apply(&unregister), gone);
}

#[test]
fn given_moves_that_cannot_be_when_applied_then_each_is_refused_by_its_name() {
    let mut catalog = three_of_five();
    let before = catalog.clone();
    let mut refused = |wanted| move_one(&mut catalog, wanted).unwrap_err();
    assert!(matches!(refused(to("u", 0, &[1])), CatalogError::UnknownTopic { .. }));
    assert!(matches!(refused(to("t", 1, &[1])), CatalogError::UnknownTopic { .. }));
    let problem = |error| match error {
        CatalogError::InvalidReplicaAssignment(problem) => problem,
        other => panic!("{other:?}"),
    };
    let unknown = AssignmentProblem::UnknownBroker { node: NodeId(8) };
    assert_eq!(problem(refused(to("t", 0, &[1, 8]))), unknown);
    let mut twice = to("t", 0, &[1, 1]);
    twice.replica_ids[1] = ReplicaId(1);
    assert_eq!(problem(refused(twice)), AssignmentProblem::Twice { node: NodeId(1) });
    let mut used = to("t", 0, &[4]);
    used.replica_ids[0] = ReplicaId(12);
    assert!(matches!(problem(refused(used)), AssignmentProblem::ReplicaIds { .. }));
    assert_eq!(catalog, before, "I5");
}

/// What somebody does; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Action {
    Create { replicas: usize },
    Delete(usize),
    Wipe(u32),
    Move { at: usize, nodes: BTreeSet<u32>, rotate: usize },
    Cancel(usize),
    Settle(usize),
    Cordon(u32, bool),
    Unregister(u32),
}

fn action() -> impl Strategy<Value = Action> {
    let nodes = proptest::collection::btree_set(1_u32..6, 1..4);
    prop_oneof![
        2 => (1_usize..4).prop_map(|replicas| Action::Create { replicas }),
        1 => any::<usize>().prop_map(Action::Delete),
        3 => (1_u32..6).prop_map(Action::Wipe),
        6 => (any::<usize>(), nodes, 0_usize..3)
            .prop_map(|(at, nodes, rotate)| Action::Move { at, nodes, rotate }),
        2 => any::<usize>().prop_map(Action::Cancel),
        3 => any::<usize>().prop_map(Action::Settle),
        1 => (1_u32..6, any::<bool>()).prop_map(|(node, is)| Action::Cordon(node, is)),
        1 => (1_u32..6).prop_map(Action::Unregister),
    ]
}

/// The command for an action, with ids that were never used.
fn command(catalog: &Catalog, action: &Action, step: u64) -> Option<CatalogCommand> {
    let topics: Vec<&Arc<Topic>> = catalog.topics().collect();
    let topic = |at: &usize| (!topics.is_empty()).then(|| topics[at % topics.len()]);
    let first = 1_000_000 * (step + 1);
    Some(match action {
        Action::Create { replicas } => {
            let mut topic = new_topic(&format!("t{step}"), u128::from(step) + 1, 2);
            for (at, partition) in (0..).zip(&mut topic.partitions) {
                let ids = (0..*replicas).zip(first + at * 100..);
                partition.replicas = ids.map(|(_, id)| ReplicaId(id)).collect();
            }
            create(topic)
        }
        Action::Delete(at) => {
            CatalogCommand::DeleteTopics { topics: vec![TopicRef::Id(topic(at)?.id)] }
        }
        Action::Wipe(node) => {
            register_on(catalog, *node, 1 + u16::try_from(*node % 2).ok()?, first.into())
        }
        Action::Move { at, nodes, rotate } => {
            let mut nodes: Vec<u32> = nodes.iter().copied().collect();
            let by = rotate % nodes.len();
            nodes.rotate_left(by);
            let moves =
                vec![ids_from(first, &topic(at)?.name, u32::try_from(at % 2).ok()?, &nodes)];
            CatalogCommand::MovePartitions { moves }
        }
        Action::Cancel(at) => {
            let moves = vec![to(&topic(at)?.name, u32::try_from(at % 2).ok()?, &[])];
            CatalogCommand::MovePartitions { moves }
        }
        Action::Settle(at) => {
            let partition = &topic(at)?.partitions[at % 2];
            let replicas = partition.replicas.iter().map(|p| p.replica).collect();
            CatalogCommand::ReplicasSettled { group: partition.group, replicas }
        }
        Action::Cordon(node, is_cordoned) => {
            CatalogCommand::CordonBroker { node: NodeId(*node), is_cordoned: *is_cordoned }
        }
        Action::Unregister(node) => CatalogCommand::UnregisterBroker { node: NodeId(*node) },
    })
}

/// Every replica that is named, with the disk that it is on.
type Seen = BTreeMap<ReplicaId, (GroupId, NodeId)>;

fn check(catalog: &Catalog, seen: &mut Seen, gone: &mut BTreeSet<ReplicaId>) {
    let mut load: BTreeMap<(NodeId, ShardId), u32> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for partition in catalog.topics().flat_map(|topic| &topic.partitions) {
        assert!(partition.is_coherent(), "{partition:?}");
        assert!(!partition.replicas.is_empty(), "{partition:?}");
        for placement in partition.placements() {
            *load.entry((placement.node, placement.shard)).or_default() += 1;
            named.insert(placement.replica);
            assert!(!gone.contains(&placement.replica), "an id came back: {partition:?}");
            let place = (partition.group, placement.node);
            let first = *seen.entry(placement.replica).or_insert(place);
            assert_eq!(first, place, "a replica id belongs to one disk");
            let shards = catalog.broker(placement.node).expect("a broker").shards;
            assert!(placement.shard.0 < shards || partition.is_lost(placement), "{placement:?}");
        }
    }
    assert_eq!(load, catalog.load, "I4");
    gone.extend(seen.keys().filter(|replica| !named.contains(replica)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn given_any_moves_and_wipes_when_applied_then_what_the_lists_promise_holds(
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let mut catalog = Catalog::new();
        (1..=5).for_each(|node| _ = catalog.apply(&register(node, 2)));
        let (mut seen, mut gone) = (Seen::new(), BTreeSet::new());
        for (step, action) in (0..).zip(&actions) {
            let Some(command) = command(&catalog, action, step) else { continue };
            let mut other = Catalog::decode(&catalog.encode().unwrap()).unwrap();
            let before = catalog.clone();
            let outcome = catalog.apply(&command);
            prop_assert_eq!(&outcome, &other.apply(&command));
            prop_assert_eq!(&catalog, &other, "I1");
            match outcome {
                CommandOutcome::Refused(_) => prop_assert_eq!(&catalog, &before, "I5"),
                CommandOutcome::PartitionsMoved(results) if results[0].is_err() => {
                    prop_assert_eq!(&catalog, &before, "I5");
                }
                _ => {}
            }
            check(&catalog, &mut seen, &mut gone);
        }
    }
}
