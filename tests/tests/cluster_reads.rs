//! What readers of a cluster are told: by a leader that was replaced while it stood still, by replicas that follow, and
//! where too few replicas are in sync.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronik_tests::batch::BatchBuilder;
use chronik_tests::cluster::{
    Cluster, DEADLINE, create_topic, leaders_other, leaders_seen, run_on,
};
use chronik_tests::link_proxy::Faults;
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::{RawConnection, fetch_request, produce_request, topic_name};
use chronik_tests::scratch::wait_for;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{
    AlterConfigsRequest, BrokerId, FetchRequest, ListOffsetsRequest, ListOffsetsResponse,
};
use kafka_protocol::protocol::StrBytes;

const NODES: usize = 3;
/// From this version on a fetch names its rack, and any replica answers it.
const FETCH_ANY: i16 = 11;
const LATEST: i64 = -1;
/// How old what followers show may be; and how much later who waits there is told.
const STALENESS_MAX: Duration = Duration::from_secs(5);
const TOLD_LATE_MAX: Duration = Duration::from_secs(2);
/// The node that is cut off: only its proxy is between it and the others.
const CUT_OFF: i32 = 3;

fn connect(node: &Broker) -> Result<RawConnection> {
    RawConnection::open(node.ports().kafka_addr())
}

/// Produces one record for `acks`; the error code.
fn produce(node: &Broker, topic: &str, acks: i16) -> Result<i16> {
    let batch = BatchBuilder::of_value("a record").build();
    let mut request = produce_request(topic, 0, acks, batch);
    request.timeout_ms = 2_000;
    let response = connect(node)?.call(9, &request)?;
    let topic = response.responses.first().context("no topic")?;
    Ok(topic.partition_responses.first().context("no partition")?.error_code)
}

/// Produces records until each has been taken once.
fn produce_many(node: &Broker, topic: &str, count: usize) -> Result<()> {
    for _ in 0..count {
        wait_for("a record is taken", DEADLINE, || {
            (produce(node, topic, -1).ok()? == 0).then_some(())
        })?;
    }
    Ok(())
}

fn answered(response: kafka_protocol::messages::FetchResponse) -> Result<PartitionData> {
    ensure!(response.error_code == 0, "fetch: error {}", response.error_code);
    let topic = response.responses.into_iter().next().context("no topic")?;
    topic.partitions.into_iter().next().context("no partition")
}

fn fetch(node: &Broker, version: i16, request: &FetchRequest) -> Result<PartitionData> {
    answered(connect(node)?.call(version, request)?)
}

fn records(data: &PartitionData) -> usize {
    data.records.as_ref().map_or(0, bytes::Bytes::len)
}

fn from_rack(topic: &str, offset: i64, rack: &str) -> FetchRequest {
    let rack = StrBytes::from_string(rack.to_owned());
    fetch_request(topic, 0, offset, 500).with_rack_id(rack)
}

fn in_epoch(topic: &str, offset: i64, epoch: i32) -> FetchRequest {
    let mut request = fetch_request(topic, 0, offset, 100);
    request.topics[0].partitions[0].current_leader_epoch = epoch;
    request
}

fn described(node: &Broker, topic: &str) -> Result<MetadataResponsePartition> {
    let answer = connect(node)?.metadata(topic, false)?;
    let topic = answer.topics.into_iter().next().context("no topic")?;
    topic.partitions.into_iter().next().context("no partition")
}

fn sorted(nodes: &[BrokerId]) -> Vec<i32> {
    let mut ids: Vec<i32> = nodes.iter().map(|node| node.0).collect();
    ids.sort_unstable();
    ids
}

fn latest_request(topic: &str) -> ListOffsetsRequest {
    let partition = ListOffsetsPartition::default()
        .with_partition_index(0)
        .with_current_leader_epoch(-1)
        .with_timestamp(LATEST);
    let topic =
        ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
    ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic])
}

/// The error code and the offset.
fn listed(response: &ListOffsetsResponse) -> Result<(i16, i64)> {
    let topic = response.topics.first().context("no topic")?;
    let partition = topic.partitions.first().context("no partition")?;
    Ok((partition.error_code, partition.offset))
}

#[test]
fn given_a_leader_that_stood_still_when_another_leads_then_it_does_not_answer_with_an_old_end() {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("stopped");
        create_topic(&cluster.nodes()[0], &topic, 1, NODES)?;
        for _ in 0..3 {
            let old = leaders_seen(&cluster.nodes()[0], &topic, 1)?[0];
            produce_many(cluster.node(old), &topic, 10)?;
            let mut asking = Vec::new();
            for _ in 0..4 {
                let mut connection = connect(cluster.node(old))?;
                // It has been heard, so what comes next is read at once.
                let (code, before) = listed(&connection.call(7, &latest_request(&topic))?)?;
                ensure!(code == 0, "error {code}");
                asking.push((connection, before));
            }
            cluster.node(old).pause()?;
            let other = cluster.others(&[old])[0];
            let new = leaders_other(cluster.node(other), &topic, 1, &[old])?[0];
            produce_many(cluster.node(new), &topic, 10)?;
            let mut waiting = Vec::new();
            for (mut connection, before) in asking {
                let correlation = connection.send(7, &latest_request(&topic))?;
                waiting.push((connection, before, correlation));
            }
            cluster.node(old).resume()?;
            for (mut connection, before, correlation) in waiting {
                let answer = connection.receive::<ListOffsetsRequest>(7, correlation)?;
                let (code, offset) = listed(&answer)?;
                let is_refused = code == ResponseError::NotLeaderOrFollower.code();
                ensure!(
                    is_refused || (code == 0 && offset >= before + 10),
                    "error {code}, offset {offset} after {before} and ten more"
                );
            }
            cluster.wait_whole()?;
        }
        Ok(())
    });
}

#[test]
fn given_nodes_in_racks_when_consumers_name_theirs_then_they_read_there_what_is_committed() {
    let mut cluster = Cluster::list(NODES, &Settings::new()).unwrap();
    for (at, node) in cluster.nodes().iter_mut().enumerate() {
        let class = "org.apache.kafka.common.replica.RackAwareReplicaSelector";
        let lines = format!(
            "kafka.broker_rack = \"rack-{}\"\nkafka.replica_selector_class = \"{class}\"\n",
            at + 1
        );
        node.settings_mut().top.push_str(&lines);
    }
    cluster.start_all().unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("racks");
        create_topic(&cluster.nodes()[0], &topic, 1, NODES)?;
        let leader = leaders_seen(&cluster.nodes()[0], &topic, 1)?[0];
        produce_many(cluster.node(leader), &topic, 5)?;
        let follower = cluster.others(&[leader])[1];
        let rack = format!("rack-{follower}");
        // The leader sends the consumer to the replica in its rack, with no records.
        let sent = wait_for("the replica in the rack is in sync", DEADLINE, || {
            let sent = fetch(cluster.node(leader), FETCH_ANY, &from_rack(&topic, 0, &rack)).ok()?;
            (sent.preferred_read_replica.0 == follower).then_some(sent)
        })?;
        ensure!((sent.error_code, records(&sent)) == (0, 0), "{sent:?}");
        for rack in [format!("rack-{leader}"), "elsewhere".to_owned(), String::new()] {
            let read = fetch(cluster.node(leader), FETCH_ANY, &from_rack(&topic, 0, &rack))?;
            ensure!(read.preferred_read_replica.0 == -1 && records(&read) > 0, "{rack}: {read:?}");
        }
        let read = wait_for("the replica knows that all is committed", DEADLINE, || {
            let read =
                fetch(cluster.node(follower), FETCH_ANY, &from_rack(&topic, 0, &rack)).ok()?;
            (read.high_watermark == 5).then_some(read)
        })?;
        ensure!(read.error_code == 0 && records(&read) > 0, "{read:?}");
        refusals(cluster, &topic, leader, follower)?;
        // Who waits at the replica hears of what comes.
        let mut waiting = connect(cluster.node(follower))?;
        let correlation = waiting.send(FETCH_ANY, &fetch_request(&topic, 0, 5, 15_000))?;
        produce_many(cluster.node(leader), &topic, 1)?;
        let read = answered(waiting.receive::<FetchRequest>(FETCH_ANY, correlation)?)?;
        ensure!(read.error_code == 0 && records(&read) > 0, "{read:?}");
        ensure!(read.high_watermark == 6, "{read:?}");
        Ok(())
    });
}

/// Three nodes behind proxies, and a topic of which the last one has a replica that follows.
fn with_a_follower(test: impl FnOnce(&mut Cluster, &str, i32) -> Result<()>) {
    let mut cluster = Cluster::list_behind_proxies(NODES, 1, &Settings::new()).unwrap();
    for node in cluster.nodes() {
        let max_ms = STALENESS_MAX.as_millis();
        let line = format!("follower_read_max_staleness_ms = {max_ms}\n");
        node.settings_mut().tables.push_str(&line);
    }
    cluster.start_all().unwrap();
    run_on(&mut cluster, |cluster| {
        cluster.wait_whole()?;
        let (topic, leader) = wait_for("a leader that is not node 3", DEADLINE, || {
            let topic = fresh_name("follower");
            create_topic(cluster.node(1), &topic, 1, NODES).ok()?;
            let leader = leaders_seen(cluster.node(1), &topic, 1).ok()?[0];
            (leader != CUT_OFF).then_some((topic, leader))
        })?;
        produce_many(cluster.node(leader), &topic, 5)?;
        wait_for("the follower knows that it is current", DEADLINE, || {
            let read = fetch(cluster.node(CUT_OFF), FETCH_ANY, &fetch_request(&topic, 0, 0, 0));
            (read.ok()?.high_watermark == 5).then_some(())
        })?;
        test(cluster, &topic, leader)
    });
}

#[test]
fn given_a_follower_that_is_cut_off_when_it_may_be_too_old_then_consumers_are_sent_away_until_it_is_back()
 {
    let not_leader = ResponseError::NotLeaderOrFollower.code();
    with_a_follower(|cluster, topic, leader| {
        let mut waiting = connect(cluster.node(CUT_OFF))?;
        let correlation = waiting.send(FETCH_ANY, &fetch_request(topic, 0, 5, 60_000))?;
        cluster.proxies()[2].set(Faults::half_open());
        produce_many(cluster.node(leader), topic, 3)?;
        let written = Instant::now();
        let ahead =
            fetch(cluster.node(CUT_OFF), FETCH_ANY, &fetch_request(topic, 0, 8, 0))?.error_code;
        let is_sent_away = [not_leader, ResponseError::OffsetNotAvailable.code()].contains(&ahead);
        ensure!(is_sent_away, "error {ahead} at an offset that was written");
        let mut reads = 0;
        loop {
            let asked = written.elapsed();
            let read = fetch(cluster.node(CUT_OFF), FETCH_ANY, &fetch_request(topic, 0, 0, 0))?;
            if read.error_code == not_leader {
                break;
            }
            ensure!((read.error_code, read.high_watermark) == (0, 5), "{read:?}");
            ensure!(asked < STALENESS_MAX, "it shows what was so {asked:?} ago");
            reads += 1;
        }
        ensure!(reads > 0, "what it shows is not too old at once");
        let told = answered(waiting.receive::<FetchRequest>(FETCH_ANY, correlation)?)?;
        ensure!(told.error_code == not_leader, "{told:?}");
        ensure!(written.elapsed() < STALENESS_MAX + TOLD_LATE_MAX, "{:?}", written.elapsed());
        cluster.proxies()[2].set(Faults::default());
        wait_for("it serves again, and all", DEADLINE, || {
            let read = fetch(cluster.node(CUT_OFF), FETCH_ANY, &fetch_request(topic, 0, 0, 0));
            (read.ok()?.high_watermark == 8).then_some(())
        })
    });
}

#[test]
fn given_a_follower_that_is_behind_when_a_position_is_read_there_that_was_written_then_it_waits_and_has_it()
 {
    with_a_follower(|cluster, topic, leader| {
        let behind = Faults { delay: Duration::from_millis(200), ..Faults::default() };
        cluster.proxies()[2].set(behind);
        let mut was_behind = false;
        for position in 5..15 {
            produce_many(cluster.node(leader), topic, 1)?;
            let node = cluster.node(CUT_OFF);
            let next = fetch(node, FETCH_ANY, &fetch_request(topic, 0, position + 1, 0))?;
            let not_yet = ResponseError::OffsetNotAvailable.code();
            ensure!([0, not_yet].contains(&next.error_code), "after {position}: {next:?}");
            was_behind |= next.error_code == not_yet;
            let read = fetch(node, FETCH_ANY, &fetch_request(topic, 0, position, 20_000))?;
            ensure!(read.error_code == 0 && records(&read) > 0, "at {position}: {read:?}");
            ensure!(read.high_watermark == position + 1, "at {position}: {read:?}");
        }
        ensure!(was_behind, "it was never behind, so nothing was shown");
        Ok(())
    });
}

/// What a replica that follows refuses.
fn refusals(cluster: &mut Cluster, topic: &str, leader: i32, follower: i32) -> Result<()> {
    let epoch = described(cluster.node(leader), topic)?.leader_epoch;
    let cases = [
        (10, fetch_request(topic, 0, 0, 100), ResponseError::NotLeaderOrFollower),
        (FETCH_ANY, fetch_request(topic, 0, 9, 100), ResponseError::OffsetNotAvailable),
        (FETCH_ANY, fetch_request(topic, 0, -5, 100), ResponseError::OffsetOutOfRange),
        (FETCH_ANY, in_epoch(topic, 0, epoch - 1), ResponseError::FencedLeaderEpoch),
        (FETCH_ANY, in_epoch(topic, 0, epoch + 1), ResponseError::UnknownLeaderEpoch),
    ];
    for (version, request, error) in cases {
        let refused = fetch(cluster.node(follower), version, &request)?;
        ensure!(refused.error_code == error.code(), "{error:?} expected: {refused:?}");
    }
    let read = fetch(cluster.node(follower), FETCH_ANY, &in_epoch(topic, 0, epoch))?;
    ensure!(read.error_code == 0 && records(&read) > 0, "{read:?}");
    Ok(())
}

fn set_config(node: &Broker, topic: &str, name: &str, value: &str) -> Result<()> {
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let config = AlterableConfig::default().with_name(text(name)).with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configs(vec![config]);
    let request = AlterConfigsRequest::default().with_resources(vec![resource]);
    let response = connect(node)?.call(1, &request)?;
    let answer = response.responses.first().context("no answer")?;
    ensure!(answer.error_code == 0, "{answer:?}");
    Ok(())
}

#[test]
fn given_a_topic_that_wants_replicas_in_sync_when_some_are_gone_then_only_those_who_ask_for_all_are_refused()
 {
    let mut cluster = Cluster::start(NODES, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("in-sync");
        create_topic(&cluster.nodes()[0], &topic, 1, NODES)?;
        set_config(&cluster.nodes()[0], &topic, "min.insync.replicas", "3")?;
        let leader = leaders_seen(&cluster.nodes()[0], &topic, 1)?[0];
        produce_many(cluster.node(leader), &topic, 1)?;
        let [gone, stays] = cluster.others(&[leader])[..] else { panic!("three nodes") };
        cluster.node(gone).kill()?;
        let too_few = ResponseError::NotEnoughReplicas.code();
        wait_for("the leader knows that a replica is gone", DEADLINE, || {
            (produce(cluster.node(leader), &topic, -1).ok()? == too_few).then_some(())
        })?;
        ensure!(produce(cluster.node(leader), &topic, 1)? == 0, "acks=1 asks for nobody else");
        let mut in_sync = vec![leader, stays];
        in_sync.sort_unstable();
        for node in [leader, stays] {
            wait_for("metadata tells of it", DEADLINE, || {
                let told = described(cluster.node(node), &topic).ok()?;
                let is_told = sorted(&told.isr_nodes) == in_sync
                    && sorted(&told.offline_replicas) == [gone]
                    && sorted(&told.replica_nodes) == [1, 2, 3];
                is_told.then_some(())
            })?;
        }
        cluster.node(stays).kill()?;
        // Without a quorum it is a matter of time who refuses: the leader, or nobody who leads.
        let code = produce(cluster.node(leader), &topic, -1)?;
        ensure!(code != 0, "nobody else can have it");
        for node in [gone, stays] {
            cluster.node(node).start_again()?;
        }
        cluster.wait_whole()?;
        wait_for("whoever leads takes records for all again", DEADLINE, || {
            let leader = leaders_seen(&cluster.nodes()[0], &topic, 1).ok()?[0];
            (produce(cluster.node(leader), &topic, -1).ok()? == 0).then_some(())
        })?;
        for node in 1..=3 {
            wait_for("all are in sync again", DEADLINE, || {
                let told = described(cluster.node(node), &topic).ok()?;
                let is_told =
                    sorted(&told.isr_nodes) == [1, 2, 3] && told.offline_replicas.is_empty();
                is_told.then_some(())
            })?;
        }
        Ok(())
    });
}
