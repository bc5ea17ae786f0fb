use std::collections::{BTreeMap, BTreeSet};

use chronik_engine::framed::FramedError;
use chronik_engine::ids::{NodeId, ReplicaId, ShardId};
use proptest::prelude::*;

use super::*;

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xC1));

mod moves;
mod place;
mod readers;

fn broker(node: u32, shards: u16, disk: u128) -> Broker {
    Broker {
        node: NodeId(node),
        host: format!("host-{node}"),
        port: 9092,
        rack: (node > 1).then(|| "r".to_owned()),
        shards,
        incarnation: Incarnation(Uuid::from_u128(disk)),
        meta_replica: ReplicaId(u64::from(node) + 100),
        raft_addr: format!("host-{node}:9192"),
        is_cordoned: false,
        is_read_only: false,
    }
}

/// On another disk than the catalog knows it by, if it does.
fn register_on(catalog: &Catalog, node: u32, shards: u16, disk: u128) -> CatalogCommand {
    CatalogCommand::RegisterBroker {
        cluster_id: CLUSTER,
        broker: broker(node, shards, disk),
        replica_seed: u64::try_from(disk).unwrap_or(0) << 8,
        replaces: catalog.broker(NodeId(node)).map(|known| known.incarnation),
    }
}

/// On the first disk that it ever had.
fn register(node: u32, shards: u16) -> CatalogCommand {
    register_on(&Catalog::new(), node, shards, u128::from(node) << 32)
}

fn new_topic(name: &str, id: u128, partitions: u64) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        id: TopicId(Uuid::from_u128(id)),
        internal: false,
        partitions: (0..partitions)
            .map(|partition| NewPartition {
                replicas: vec![ReplicaId(1000 + partition)],
                nodes: Vec::new(),
            })
            .collect(),
        configs: BTreeMap::new(),
    }
}

fn create(topic: NewTopic) -> CatalogCommand {
    CatalogCommand::CreateTopics { topics: vec![topic], avoid: Vec::new() }
}

fn create_one(catalog: &mut Catalog, topic: NewTopic) -> Result<Arc<Topic>, CatalogError> {
    match catalog.apply(&create(topic)) {
        CommandOutcome::TopicsCreated(mut results) => {
            assert_eq!(results.len(), 1);
            results.remove(0)
        }
        other => panic!("{other:?}"),
    }
}

fn one_broker(shards: u16) -> Catalog {
    let mut catalog = Catalog::new();
    assert_eq!(catalog.apply(&register(1, shards)), CommandOutcome::BrokerRegistered);
    catalog
}

#[test]
fn given_a_broker_when_topics_are_created_then_partitions_go_round_its_shards() {
    let mut catalog = one_broker(3);
    let first = create_one(&mut catalog, new_topic("a", 1, 4)).unwrap();
    let shards: Vec<u16> = first.partitions.iter().map(|p| p.replicas[0].shard.0).collect();
    assert_eq!(shards, [0, 1, 2, 0]);
    let second = create_one(&mut catalog, new_topic("b", 2, 2)).unwrap();
    let shards: Vec<u16> = second.partitions.iter().map(|p| p.replicas[0].shard.0).collect();
    assert_eq!(shards, [1, 2]);
    let groups: Vec<u64> =
        catalog.topics().flat_map(|t| t.partitions.iter().map(|p| p.group.0)).collect();
    assert_eq!(groups, [1, 2, 3, 4, 5, 6]);
    let on_zero: Vec<GroupId> =
        catalog.placed_on(NodeId(1), ShardId(0)).map(|(group, _)| group).collect();
    assert_eq!(on_zero, [GroupId(1), GroupId(4)]);
}

#[test]
fn given_three_brokers_when_a_topic_has_three_replicas_then_each_is_on_another_node() {
    let mut catalog = one_broker(2);
    catalog.apply(&register(2, 1));
    catalog.apply(&register(3, 2));
    let mut topic = new_topic("a", 1, 2);
    for partition in &mut topic.partitions {
        partition.replicas = vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)];
    }
    let made = create_one(&mut catalog, topic.clone()).unwrap();
    for partition in &made.partitions {
        let mut nodes: Vec<u32> = partition.replicas.iter().map(|p| p.node.0).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2, 3]);
    }
    topic.name = "b".to_owned();
    topic.id = TopicId(Uuid::from_u128(2));
    topic.partitions[1].replicas.push(ReplicaId(4));
    assert_eq!(
        create_one(&mut catalog, topic),
        Err(CatalogError::InvalidReplicationFactor { replicas: 4, brokers: 3 })
    );
}

#[test]
fn given_a_topic_when_another_of_its_name_or_kind_comes_then_it_is_refused() {
    let mut catalog = one_broker(1);
    create_one(&mut catalog, new_topic("a.b", 1, 1)).unwrap();
    let before = catalog.clone();
    let mut refused = |topic: NewTopic| create_one(&mut catalog, topic).unwrap_err();
    assert!(matches!(refused(new_topic("a.b", 2, 1)), CatalogError::TopicExists { .. }));
    assert!(matches!(refused(new_topic("a_b", 2, 1)), CatalogError::TopicNameCollides { .. }));
    assert!(matches!(refused(new_topic("c", 1, 1)), CatalogError::TopicIdInUse { .. }));
    assert!(matches!(refused(new_topic("c", 2, 0)), CatalogError::InvalidPartitionCount { .. }));
    assert!(matches!(refused(new_topic("c d", 2, 1)), CatalogError::InvalidTopicName { .. }));
    assert!(matches!(refused(new_topic("__meta", 2, 1)), CatalogError::ReservedTopicName { .. }));
    assert!(matches!(
        refused(new_topic("c", 2, 10_001)),
        CatalogError::InvalidPartitionCount { .. }
    ));
    let mut configured = new_topic("c", 2, 1);
    configured.configs.insert("segment.bytes".to_owned(), "1".to_owned());
    assert!(matches!(refused(configured), CatalogError::InvalidConfig { .. }));
    assert_eq!(catalog, before, "I5: what is refused changes nothing");
}

#[test]
fn given_a_deleted_topic_when_it_is_created_again_then_its_groups_are_new() {
    let mut catalog = one_broker(1);
    create_one(&mut catalog, new_topic("a", 1, 2)).unwrap();
    let by_id = TopicRef::Id(TopicId(Uuid::from_u128(1)));
    let outcome =
        catalog.apply(&CatalogCommand::DeleteTopics { topics: vec![by_id.clone(), by_id.clone()] });
    let CommandOutcome::TopicsDeleted(results) = outcome else { panic!("{outcome:?}") };
    assert_eq!(results[0].as_ref().unwrap().groups, [GroupId(1), GroupId(2)]);
    assert_eq!(results[1], Err(CatalogError::UnknownTopic { topic: by_id }));
    assert_eq!(catalog.partition_count(), 0);
    let again = create_one(&mut catalog, new_topic("a", 2, 1)).unwrap();
    assert_eq!(again.partitions[0].group, GroupId(3), "I2");
}

#[test]
fn given_producer_ids_when_taken_then_no_range_overlaps() {
    let mut catalog = one_broker(1);
    let mut take = |count| catalog.apply(&CatalogCommand::AllocateProducerIds { count });
    let range = |first, count| CommandOutcome::ProducerIds(ProducerIdRange { first, count });
    assert_eq!(take(1000), range(0, 1000));
    assert_eq!(take(1), range(1000, 1));
    assert!(matches!(take(0), CommandOutcome::Refused(_)));
    assert!(matches!(take(PRODUCER_ID_BLOCK_MAX + 1), CommandOutcome::Refused(_)));
    assert_eq!(take(5), range(1001, 5));
}

#[test]
fn given_a_topic_when_its_configs_and_partitions_change_then_the_rest_stays() {
    let mut catalog = one_broker(1);
    let before = create_one(&mut catalog, new_topic("a", 1, 1)).unwrap();
    let changes = [
        ("max.message.bytes".to_owned(), Some("77".to_owned())),
        ("retention.ms".to_owned(), None),
    ];
    let alter = |changes: &[(String, Option<String>)]| CatalogCommand::AlterTopicConfigs {
        name: "a".to_owned(),
        changes: changes.iter().cloned().collect(),
    };
    let outcome = catalog.apply(&alter(&changes));
    let CommandOutcome::TopicChanged(changed) = outcome else { panic!("{outcome:?}") };
    assert_eq!(changed.settings.message_bytes_max, Some(77));
    assert_eq!(changed.partitions, before.partitions);
    let bad = catalog.apply(&alter(&[("max.message.bytes".to_owned(), Some("x".to_owned()))]));
    assert!(matches!(bad, CommandOutcome::Refused(CatalogError::InvalidConfig { .. })));
    let add = |total| CatalogCommand::CreatePartitions {
        name: "a".to_owned(),
        partitions: vec![NewPartition { replicas: vec![ReplicaId(9)], nodes: Vec::new() }],
        total,
        avoid: Vec::new(),
    };
    let outcome = catalog.apply(&add(2));
    let CommandOutcome::TopicChanged(changed) = outcome else { panic!("{outcome:?}") };
    assert_eq!(changed.partitions.len(), 2);
    let late = catalog.apply(&add(2));
    assert!(matches!(late, CommandOutcome::Refused(CatalogError::PartitionCountChanged { .. })));
    assert_eq!(catalog.partition_count(), 2);
}

#[test]
fn given_a_topic_when_it_is_relaxed_no_more_then_the_catalog_remembers_that_it_was() {
    let mut catalog = one_broker(1);
    let durable = create_one(&mut catalog, new_topic("a", 1, 1)).unwrap();
    let mut made_relaxed = new_topic("b", 2, 1);
    made_relaxed.configs.insert("durability".to_owned(), "relaxed".to_owned());
    let relaxed = create_one(&mut catalog, made_relaxed).unwrap();
    let (first, second) = (durable.partitions[0].group, relaxed.partitions[0].group);
    let found = |catalog: &Catalog| catalog.relaxed_groups().collect::<BTreeMap<_, _>>();
    assert_eq!(found(&catalog), BTreeMap::from([(second, Durability::Relaxed)]));
    let mut set = |name: &str, value: Option<&str>| {
        let changes = [("durability".to_owned(), value.map(str::to_owned))];
        let (name, changes) = (name.to_owned(), changes.into());
        catalog.apply(&CatalogCommand::AlterTopicConfigs { name, changes });
        Catalog::decode(&catalog.encode().unwrap()).unwrap()
    };
    set("a", Some("relaxed"));
    set("a", Some("durable"));
    let catalog = set("b", None);
    let both = [(first, Durability::Durable), (second, Durability::Durable)];
    assert_eq!(found(&catalog), BTreeMap::from(both));
    assert_eq!(catalog.topic("b").unwrap().configs, BTreeMap::new());
}

#[test]
fn given_a_broker_of_another_cluster_when_it_registers_then_it_is_refused() {
    let mut catalog = one_broker(1);
    let (cluster_id, broker) = (ClusterId(Uuid::from_u128(0xC2)), broker(2, 1, 2));
    let outcome = catalog.apply(&CatalogCommand::RegisterBroker {
        cluster_id,
        broker,
        replica_seed: 1,
        replaces: None,
    });
    assert!(matches!(outcome, CommandOutcome::Refused(CatalogError::OtherCluster { .. })));
    assert_eq!(catalog.brokers().len(), 1);
}

fn golden_commands() -> Vec<CatalogCommand> {
    let mut topic = new_topic("orders", 7, 2);
    topic.configs.insert("retention.ms".to_owned(), "1000".to_owned());
    vec![
        register(1, 2),
        register(2, 1),
        create(topic),
        CatalogCommand::DeleteTopics {
            topics: vec![
                TopicRef::Name("gone".to_owned()),
                TopicRef::Id(TopicId(Uuid::from_u128(9))),
            ],
        },
        CatalogCommand::CreatePartitions {
            name: "orders".to_owned(),
            partitions: vec![NewPartition { replicas: vec![ReplicaId(5)], nodes: Vec::new() }],
            total: 3,
            avoid: vec![NodeId(1)],
        },
        CatalogCommand::AlterTopicConfigs {
            name: "orders".to_owned(),
            changes: BTreeMap::from([("cleanup.policy".to_owned(), Some("compact".to_owned()))]),
        },
        CatalogCommand::AlterTopicConfigs {
            name: "orders".to_owned(),
            changes: BTreeMap::from([("durability".to_owned(), Some("relaxed".to_owned()))]),
        },
        CatalogCommand::AllocateProducerIds { count: 1000 },
        of_broker(None, "log.retention.ms", "60000"),
        of_broker(Some(NodeId(2)), "log.segment.delete.delay.ms", "5000"),
        register(3, 2),
        CatalogCommand::MovePartitions {
            moves: vec![moves::to("orders", 0, &[3]), moves::to("orders", 1, &[])],
        },
        CatalogCommand::RegisterBroker {
            cluster_id: CLUSTER,
            broker: broker(2, 2, 0xd15c),
            replica_seed: 0xd15c00,
            replaces: Some(broker(2, 1, 2 << 32).incarnation),
        },
        CatalogCommand::CordonBroker { node: NodeId(3), is_cordoned: true },
        CatalogCommand::ReplicasSettled { group: GroupId(9), replicas: vec![ReplicaId(3)] },
        CatalogCommand::UnregisterBroker { node: NodeId(7) },
        readers::read_only(4, 2),
    ]
}

fn of_broker(node: Option<NodeId>, name: &str, value: &str) -> CatalogCommand {
    let changes = BTreeMap::from([(name.to_owned(), Some(value.to_owned()))]);
    CatalogCommand::AlterBrokerConfigs { node, changes }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(line: &str) -> Vec<u8> {
    let digits = line.as_bytes().chunks_exact(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// Holds a golden file, one line of hex per command and then the catalog they come to, against what this version writes
/// and reads. It is written anew with `CHRONIK_GOLDEN_WRITE=1`, which is right only together with a new version byte.
fn check_golden(name: &str, version: u8, commands: &[CatalogCommand]) {
    let path = format!("{}/src/catalog/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut catalog = Catalog::new();
    let mut lines = Vec::new();
    for command in commands {
        lines.push(hex(&command.encode().unwrap()));
        catalog.apply(command);
    }
    lines.push(hex(&catalog.encode().unwrap()));
    if std::env::var_os("CHRONIK_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
    let file = std::fs::read_to_string(&path).unwrap();
    let found: Vec<&str> = file.lines().collect();
    assert_eq!(found, lines);
    let (state, found) = found.split_last().unwrap();
    for (line, command) in found.iter().zip(commands) {
        let decoded = CatalogCommand::decode(&unhex(line)).unwrap();
        assert_eq!(decoded, *command);
        assert_eq!(hex(&decoded.encode().unwrap()), *line);
    }
    assert_eq!(unhex(state)[0], version);
    let decoded = Catalog::decode(&unhex(state)).unwrap();
    assert_eq!(decoded, catalog);
    assert_eq!(hex(&decoded.encode().unwrap()), *state);
}

#[test]
fn given_the_golden_file_when_read_then_it_is_what_this_version_writes() {
    check_golden("v6.hex", 6, &golden_commands());
}

#[test]
fn given_bytes_that_are_no_catalog_when_decoded_then_an_error_says_why() {
    assert_eq!(Catalog::decode(&[]).unwrap(), Catalog::new());
    assert!(matches!(
        Catalog::decode(&[9]),
        Err(CatalogCodecError::Framed(FramedError::Version { version: 9 }))
    ));
    assert!(matches!(
        CatalogCommand::decode(&[]),
        Err(CatalogCodecError::Framed(FramedError::Empty))
    ));
    let mut bytes = register(1, 1).encode().unwrap();
    bytes.push(0);
    assert!(matches!(
        CatalogCommand::decode(&bytes),
        Err(CatalogCodecError::Framed(FramedError::Trailing { bytes: 1 }))
    ));
    // CreateTopics with 2^60 topics: refused before anything is reserved for them.
    let huge = [codec::VERSION, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10];
    assert!(matches!(
        CatalogCommand::decode(&huge),
        Err(CatalogCodecError::Framed(FramedError::Malformed { .. }))
    ));
}

#[test]
fn given_a_tag_when_encoded_then_it_is_read_back_and_nothing_else_is() {
    let tag = PartitionTag {
        topic: TopicId(Uuid::from_u128(5)),
        partition: 3,
        kind: PartitionKind::Groups,
    };
    let bytes = tag.encode();
    assert_eq!(PartitionTag::decode(&bytes), Some(tag));
    assert_eq!(PartitionTag::decode(&bytes[..20]), None);
    assert_eq!(PartitionTag::decode(&[]), None);
}

fn any_command() -> impl Strategy<Value = CatalogCommand> {
    let name = prop_oneof![Just("a"), Just("b.c"), Just("b_c"), Just("__meta"), Just("bad name")];
    prop_oneof![
        (1_u32..4, 0_u16..3).prop_map(|(node, shards)| register(node, shards)),
        (name.clone(), 1_u128..6, 0_u64..4)
            .prop_map(|(name, id, partitions)| create(new_topic(name, id, partitions))),
        name.clone().prop_map(|name| CatalogCommand::DeleteTopics {
            topics: vec![TopicRef::Name(name.to_owned())]
        }),
        (name, 1_u32..6).prop_map(|(name, total)| CatalogCommand::CreatePartitions {
            name: name.to_owned(),
            partitions: vec![NewPartition { replicas: vec![ReplicaId(7)], nodes: Vec::new() }],
            total,
            avoid: Vec::new(),
        }),
        (0_u32..10).prop_map(|count| CatalogCommand::AllocateProducerIds { count }),
    ]
}

proptest! {
    #[test]
    fn given_any_commands_when_restored_half_way_then_the_outcomes_are_the_same(
        commands in proptest::collection::vec(any_command(), 1..40),
        at in 0_usize..40,
    ) {
        let mut whole = Catalog::new();
        let mut restored = Catalog::new();
        let mut groups = std::collections::BTreeSet::new();
        for (step, command) in commands.into_iter().enumerate() {
            if step == at {
                restored = Catalog::decode(&whole.encode().unwrap()).unwrap();
                prop_assert_eq!(&restored, &whole);
            }
            let before = whole.clone();
            let outcome = whole.apply(&command);
            if step < at {
                restored.apply(&command);
            } else {
                prop_assert_eq!(restored.apply(&command), outcome.clone());
            }
            match outcome {
                CommandOutcome::Refused(_) => prop_assert_eq!(&whole, &before),
                CommandOutcome::TopicsCreated(results) => {
                    for partition in results.iter().flatten().flat_map(|topic| &topic.partitions) {
                        prop_assert!(groups.insert(partition.group), "I2: {:?}", partition.group);
                    }
                }
                _ => {}
            }
        }
        prop_assert_eq!(whole, restored);
    }

    #[test]
    fn given_any_bytes_when_decoded_then_there_is_no_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = codec::VERSION;
        }
        if let Ok(command) = CatalogCommand::decode(&bytes) {
            prop_assert_eq!(CatalogCommand::decode(&command.encode().unwrap()).unwrap(), command);
        }
        drop(Catalog::decode(&bytes));
    }
}
