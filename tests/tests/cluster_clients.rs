//! Ordinary clients of a real cluster: consumer groups that outlive their coordinator, and client libraries that find
//! their way to leaders and coordinators on any node.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "these tests wait for real processes on real time")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronik_tests::clients::{CLIENTS, Outcome, Runtime};
use chronik_tests::cluster::{Cluster, DEADLINE, create_topic, run_on};
use chronik_tests::process::{Settings, fresh_name};
use chronik_tests::raw::RawConnection;
use chronik_tests::scratch::{say_skipped, wait_for};
use chronik_tests::workload::IMPATIENT;
use kafka_protocol::messages::FindCoordinatorRequest;
use kafka_protocol::protocol::StrBytes;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const NODES: usize = 3;
const PARTITIONS: usize = 6;
const MEMBERS: usize = 3;
/// Commits of a member come after so many records, or when there are no more.
const RECORDS_PER_COMMIT: usize = 20;

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    for (name, value) in IMPATIENT {
        config.set(name, value);
    }
    config
}

/// The node that coordinates a group, as this node says.
fn coordinator(cluster: &mut Cluster, by: i32, group: &str) -> Result<i32> {
    let key = StrBytes::from_string(group.to_owned());
    let request = FindCoordinatorRequest::default().with_key(key).with_key_type(0);
    let addr = cluster.node(by).ports().kafka_addr();
    wait_for("the group has a coordinator", DEADLINE, || {
        let answer = RawConnection::open(addr).ok()?.call(3, &request).ok()?;
        (answer.error_code == 0).then_some(answer.node_id.0)
    })
}

/// A group whose members are polled in turn, and everything that it was told.
struct Group {
    name: String,
    topic: String,
    producer: BaseProducer,
    members: Vec<BaseConsumer>,
    /// Values read, whether or not they were committed.
    seen: BTreeSet<u32>,
    /// What was committed last in each partition.
    committed: BTreeMap<i32, i64>,
}

impl Group {
    fn of(cluster: &Cluster, topic: &str) -> Result<Group> {
        let name = fresh_name("group");
        let member = || -> Result<BaseConsumer> {
            let member: BaseConsumer = client(&cluster.bootstrap())
                .set("group.id", &name)
                .set("auto.offset.reset", "earliest")
                .set("enable.auto.commit", "false")
                .set("session.timeout.ms", "10000")
                .set("heartbeat.interval.ms", "500")
                .create()?;
            member.subscribe(&[topic])?;
            Ok(member)
        };
        let members = (0..MEMBERS).map(|_| member()).collect::<Result<_>>()?;
        let producer = client(&cluster.bootstrap()).set("enable.idempotence", "true").create()?;
        Ok(Group {
            name,
            topic: topic.to_owned(),
            producer,
            members,
            seen: BTreeSet::new(),
            committed: BTreeMap::new(),
        })
    }

    fn produce(&self, values: Range<u32>) -> Result<()> {
        for value in values {
            let partition = i32::try_from(value)? % i32::try_from(PARTITIONS)?;
            let text = value.to_string();
            let record = BaseRecord::<(), str>::to(&self.topic).partition(partition).payload(&text);
            self.producer.send(record).map_err(|(error, _)| error)?;
        }
        self.producer.flush(DEADLINE).context("producing")
    }

    /// Reads and commits until all of these values were seen.
    fn read(&mut self, values: Range<u32>) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        while !values.clone().all(|value| self.seen.contains(&value)) {
            ensure!(Instant::now() < until, "{} of {values:?} seen", self.seen.len());
            for at in 0..self.members.len() {
                self.read_some(at)?;
            }
        }
        Ok(())
    }

    fn read_some(&mut self, at: usize) -> Result<()> {
        let mut read = TopicPartitionList::new();
        for _ in 0..RECORDS_PER_COMMIT {
            let Some(polled) = self.members[at].poll(Duration::from_millis(5)) else { break };
            // The client says so, and goes on by itself.
            let Ok(message) = polled else { continue };
            let value = std::str::from_utf8(message.payload().unwrap_or_default())?.parse()?;
            self.seen.insert(value);
            let next = Offset::Offset(message.offset() + 1);
            let partition = message.partition();
            match read.find_partition(&self.topic, partition) {
                Some(mut found) => found.set_offset(next)?,
                None => read.add_partition_offset(&self.topic, partition, next)?,
            }
        }
        // A commit that fails belongs to a generation that is over, or to a coordinator that is.
        if read.count() > 0 && self.members[at].commit(&read, CommitMode::Sync).is_ok() {
            for element in read.elements() {
                self.note_committed(element.partition(), element.offset())?;
            }
        }
        Ok(())
    }

    /// What is committed for a partition never goes back.
    fn note_committed(&mut self, partition: i32, offset: Offset) -> Result<()> {
        let offset = offset.to_raw().filter(|offset| *offset >= 0).unwrap_or(0);
        let before = self.committed.insert(partition, offset).unwrap_or(0);
        ensure!(offset >= before, "partition {partition}: committed {before}, then {offset}");
        Ok(())
    }

    /// What any client is told of the group's offsets now.
    fn check_committed(&mut self, cluster: &Cluster) -> Result<i64> {
        let asking: BaseConsumer =
            client(&cluster.bootstrap()).set("group.id", &self.name).create()?;
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.topic, 0, i32::try_from(PARTITIONS)? - 1);
        let told = wait_for("the group's offsets", DEADLINE, || {
            asking.committed_offsets(asked.clone(), Duration::from_secs(5)).ok()
        })?;
        for element in told.elements() {
            element.error()?;
            self.note_committed(element.partition(), element.offset())?;
        }
        Ok(self.committed.values().sum())
    }
}

#[test]
fn given_a_group_when_its_coordinator_is_killed_then_all_is_delivered_and_no_commit_goes_back() {
    let settings = Settings::new().with_top("group.initial_rebalance_delay_ms = 200");
    let mut cluster = Cluster::start(NODES, &settings).unwrap();
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("grouped");
        create_topic(cluster.node(1), &topic, PARTITIONS, NODES)?;
        let mut group = Group::of(cluster, &topic)?;
        group.produce(0..300)?;
        group.read(0..300)?;
        let mut end = 300;
        for round in 0..2 {
            let asked = cluster.others(&[])[round];
            let victim = coordinator(cluster, asked, &group.name)?;
            group.produce(end..end + 150)?;
            group.read(end..end + 50)?;
            cluster.node(victim).kill()?;
            let how = || format!("round {round}: without node {victim}");
            group.produce(end + 150..end + 300).with_context(how)?;
            group.read(end..end + 300).with_context(how)?;
            group.check_committed(cluster).with_context(how)?;
            let other = cluster.others(&[victim])[0];
            let next = coordinator(cluster, other, &group.name)?;
            ensure!(next != victim, "node {victim} is dead and coordinates the group");
            cluster.node(victim).start_again()?;
            cluster.wait_whole()?;
            group.check_committed(cluster).with_context(how)?;
            end += 300;
        }
        group.produce(end..end + 60)?;
        group.read(0..end + 60)?;
        let total = i64::from(end + 60);
        wait_for("all is committed", DEADLINE, || {
            let read = (0..MEMBERS).try_for_each(|at| group.read_some(at));
            let committed = read.and_then(|()| group.check_committed(cluster));
            committed.map(|committed| (committed == total).then_some(())).transpose()
        })?
    });
}

const LIBRARIES: [Runtime; 4] = [
    Runtime::Python("confluent.py"),
    Runtime::Python("kafka_python.py"),
    Runtime::Go("franz"),
    Runtime::Java("4.1.1"),
];

#[test]
fn given_nodes_that_were_killed_and_are_back_when_client_libraries_are_used_then_every_check_holds()
{
    let settings = Settings::new().with_top("group.initial_rebalance_delay_ms = 200");
    let mut cluster = Cluster::start(NODES, &settings).unwrap();
    run_on(&mut cluster, |cluster| {
        for (round, runtime) in LIBRARIES.into_iter().enumerate() {
            let client = CLIENTS.iter().find(|client| client.runtime == runtime).unwrap();
            if let Some(why) = client.missing()? {
                say_skipped(&format!("{}: {why}", client.title()));
                continue;
            }
            // Its leaders and coordinators are elsewhere now.
            let victim = cluster.others(&[])[round % NODES];
            cluster.node(victim).kill()?;
            cluster.node(victim).start_again()?;
            cluster.wait_whole()?;
            let scenarios = ["offsets", "groups"];
            let outcomes = client.run_replicated(&cluster.bootstrap(), NODES, &scenarios)?;
            let bad: Vec<&Outcome> =
                outcomes.iter().filter(|outcome| outcome.result != "ok").collect();
            ensure!(bad.is_empty(), "{}: {bad:#?}", client.title());
        }
        Ok(())
    });
}
