//! Nodes that come late, go for good, or are taken for another one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use anyhow::{Context, Result, ensure};
use chronik_tests::binary::run_server;
use chronik_tests::cluster::{Cluster, DEADLINE, cluster_status, create_topic, run_on};
use chronik_tests::process::{Broker, Settings, fresh_name};
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::{Ports, wait_for};
use chronik_tests::workload::Load;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{
    BrokerId, CreateTopicsRequest, FindCoordinatorRequest, UnregisterBrokerRequest,
};
use kafka_protocol::protocol::StrBytes;

fn connect(node: &Broker) -> Result<RawConnection> {
    RawConnection::open(node.ports().kafka_addr())
}

/// What a node says to somebody who looks for a group's coordinator.
fn find_coordinator(node: &Broker) -> Result<i16> {
    let request = FindCoordinatorRequest::default().with_key(StrBytes::from_static_str("late"));
    Ok(connect(node)?.call(3, &request)?.error_code)
}

#[test]
fn given_a_node_that_is_late_when_a_group_is_formed_then_not_before_offsets_have_all_their_replicas()
 {
    let mut cluster = Cluster::list(3, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        for id in [1, 2] {
            cluster.node(id).spawn()?;
        }
        for id in [1, 2] {
            cluster.node(id).wait_ready()?;
        }
        let code = find_coordinator(cluster.node(1))?;
        ensure!(code == ResponseError::CoordinatorNotAvailable.code(), "error {code}");
        cluster.node(3).start_again()?;
        wait_for("a coordinator", DEADLINE, || {
            (find_coordinator(cluster.node(2)).ok()? == 0).then_some(())
        })?;
        let answer = connect(cluster.node(2))?.metadata("__consumer_offsets", false)?;
        let partitions = &answer.topics.first().context("no topic")?.partitions;
        ensure!(!partitions.is_empty(), "no partition");
        ensure!(partitions.iter().all(|one| one.replica_nodes.len() == 3), "{partitions:?}");
        Ok(())
    });
}

/// Asks for a topic with as many replicas as there are by default; the error, and how many it got.
fn create_plain(node: &Broker, name: &str) -> Result<(i16, i16)> {
    let topic = CreatableTopic::default()
        .with_name(StrBytes::from_string(name.to_owned()).into())
        .with_num_partitions(1)
        .with_replication_factor(-1);
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000);
    let answer = connect(node)?.call(7, &request)?;
    let result = answer.topics.first().context("no topic")?;
    Ok((result.error_code, result.replication_factor))
}

#[test]
fn given_a_node_of_the_list_that_is_late_when_topics_are_made_then_they_wait_and_once_it_was_removed_they_do_not()
 {
    let mut cluster = Cluster::list(3, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        for id in [1, 2] {
            cluster.node(id).spawn()?;
        }
        cluster.wait_ready()?;
        let lacking = ResponseError::InvalidReplicationFactor.code();
        let plain = fresh_name("plain");
        ensure!(create_plain(cluster.node(1), &plain)?.0 == lacking, "it would have two replicas");
        create_topic(cluster.node(1), &fresh_name("said"), 1, 1)?;
        let on_the_way = fresh_name("on-the-way");
        let auto = |node: &Broker| -> Result<(i16, usize)> {
            let answer = connect(node)?.metadata(&on_the_way, true)?;
            let topic = answer.topics.first().context("no topic")?;
            let replicas = topic.partitions.first().map_or(0, |one| one.replica_nodes.len());
            Ok((topic.error_code, replicas))
        };
        let again = ResponseError::LeaderNotAvailable.code();
        ensure!(auto(cluster.node(2))? == (again, 0), "clients are to ask again");
        ensure!(cluster_status(cluster.node(1))?["to_come"] == serde_json::json!([3]));

        cluster.node(3).start_again()?;
        let made = wait_for("the topic is made", DEADLINE, || {
            auto(cluster.node(2)).ok().filter(|(code, _)| *code == 0)
        })?;
        ensure!(made == (0, 3), "{made:?}");
        ensure!(create_plain(cluster.node(1), &plain)? == (0, 3));

        let admin = cluster.node(1).ports().admin_addr().to_string();
        let remove = ["cluster", "remove", "3", "--fewer-replicas", "--admin", &admin];
        let removed = run_server(&remove, DEADLINE)?;
        ensure!(removed.status.success(), "{removed:?}");
        cluster.node(3).wait_exit().context("the removed node ends by itself")?;
        let after = create_plain(cluster.node(1), &fresh_name("after"))?;
        ensure!(after == (0, 2), "the lists go on naming node 3: {after:?}");
        Ok(())
    });
}

#[test]
fn given_two_nodes_when_one_is_removed_then_the_other_goes_on_alone() {
    let mut cluster = Cluster::start(2, &Settings::new()).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("two");
        create_topic(cluster.node(1), &topic, 4, 2)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, 4, 5)?;
        load.run_until_acked(500, DEADLINE)?;
        let request = UnregisterBrokerRequest::default().with_broker_id(BrokerId(2));
        let answer = connect(cluster.node(1))?.call(0, &request)?;
        ensure!(answer.error_code == ResponseError::InvalidRequest.code(), "{answer:?}");
        let admin = cluster.node(1).ports().admin_addr().to_string();
        let remove = ["cluster", "remove", "2", "--fewer-replicas", "--admin", &admin];
        let removed = run_server(&remove, DEADLINE)?;
        ensure!(removed.status.success(), "{removed:?}");
        cluster.node(2).wait_exit().context("the removed node ends by itself")?;
        // What needs the catalog's quorum, and what does not.
        create_topic(cluster.node(1), &fresh_name("alone"), 1, 1)?;
        load.run_until_acked(500, DEADLINE)?;
        load.drain(DEADLINE)?;
        cluster.check(&mut load)?;
        let node = cluster.node(1);
        node.kill()?;
        node.start_again().context("started again alone")
    });
}

#[test]
fn given_a_node_that_is_down_when_another_comes_with_its_id_then_that_waits_and_the_first_one_comes_back()
 {
    let settings = Settings { replace_after_ms: None, ..Settings::new() };
    let mut cluster = Cluster::start(3, &settings).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("mistaken");
        create_topic(cluster.node(1), &topic, 3, 3)?;
        let mut load = Load::connect(&cluster.bootstrap(), &topic, 3, 6)?;
        load.run_until_acked(500, DEADLINE)?;
        cluster.node(2).terminate()?;
        let join = format!("[cluster]\njoin = \"{}\"\n", cluster.node(1).ports().raft_addr());
        let mistaken = Settings { node_id: 2, ..Settings::new() }.with_table(&join);
        let mut mistaken = Broker::on_ports(mistaken, Ports::take()?)?;
        mistaken.spawn()?;
        wait_for("the mistake is named", DEADLINE, || {
            mistaken.log_contains("which is not heard now").then_some(())
        })?;
        cluster.node(2).start_again().context("the rightful node 2")?;
        let status = mistaken.wait_exit().context("the mistaken node ends")?;
        ensure!(status.code() == Some(2), "{status}\n{}", mistaken.log_tail());
        cluster.wait_whole()?;
        ensure!(cluster_status(cluster.node(1))?["moving"] == 0, "replicas were replaced");
        load.run_until_acked(500, DEADLINE)?;
        load.drain(DEADLINE)?;
        cluster.check(&mut load)
    });
}
