//! Kafka's own command line tools against the broker.
//!
//! They need Java and Kafka's libraries, whose folder is in `CHRONIK_TEST_KAFKA_LIBS`; without it each test says
//! `SKIPPED` and passes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use chronik_tests::binary::{Finished, run_to_end};
use chronik_tests::cluster::{Cluster, create_topic, run_on};
use chronik_tests::process::{Served, Settings, fresh_name};
use chronik_tests::scratch::{ScratchDir, say_skipped, wait_for};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

const DEADLINE: Duration = Duration::from_secs(120);

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const CONFIGS: &str = "kafka.admin.ConfigCommand";
const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
const LOG_DIRS: &str = "org.apache.kafka.tools.LogDirsCommand";
const PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
const CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const REASSIGN: &str = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
const PERFORMANCE: &str = "org.apache.kafka.tools.ProducerPerformance";
const CONSUMER_PERFORMANCE: &str = "org.apache.kafka.tools.ConsumerPerformance";
const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
const DELETE_RECORDS: &str = "org.apache.kafka.tools.DeleteRecordsCommand";

/// The tools and the broker that they talk to.
struct Tools {
    libs: String,
    bootstrap: String,
}

impl Tools {
    /// `None`, and a line that says so, where there are no tools.
    fn find(served: &Served) -> Option<Tools> {
        Tools::of(served.bootstrap())
    }

    fn of(bootstrap: String) -> Option<Tools> {
        match std::env::var("CHRONIK_TEST_KAFKA_LIBS") {
            Ok(libs) if !libs.is_empty() => Some(Tools { libs, bootstrap }),
            _ => {
                say_skipped("CHRONIK_TEST_KAFKA_LIBS does not name Kafka's libraries");
                None
            }
        }
    }

    /// Runs one as it is, with `input` to read.
    fn run(&self, class: &str, args: &[&str], input: &str) -> Finished {
        let scratch = ScratchDir::new("tools").unwrap();
        let stdin = scratch.path().join("stdin");
        std::fs::write(&stdin, input).unwrap();
        let mut command = Command::new("java");
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.args(["-cp", &format!("{}/*", self.libs), class]).args(args);
        run_to_end(
            {
                command.stdin(File::open(&stdin).unwrap());
                command
            },
            DEADLINE,
        )
        .unwrap()
    }

    /// Runs one that talks to the broker and must succeed; what it prints.
    fn ask(&self, class: &str, args: &[&str]) -> String {
        let all: Vec<&str> =
            ["--bootstrap-server", &self.bootstrap].iter().chain(args).copied().collect();
        let finished = self.run(class, &all, "");
        assert!(finished.status.success(), "{class} {args:?}: {}", finished.text());
        finished.stdout
    }

    /// The lines of a table that it prints, those that begin with `first`, as their cells.
    fn rows(&self, class: &str, args: &[&str], first: &str) -> Vec<Vec<String>> {
        let told = self.ask(class, args);
        let rows = told.lines().map(|line| line.split_whitespace().map(str::to_owned));
        let mut rows: Vec<Vec<String>> = rows.map(Iterator::collect).collect();
        rows.retain(|row| row.first().is_some_and(|cell| cell == first));
        rows
    }

    /// A topic of one partition with a hundred records.
    fn topic_of_a_hundred(&self, what: &str) -> String {
        let topic = fresh_name(what);
        self.ask(TOPICS, &["--create", "--topic", &topic]);
        let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let to = ["--bootstrap-server", &self.bootstrap, "--topic", &topic];
        let produced = self.run(PRODUCER, &to, &lines);
        assert!(produced.status.success(), "{}", produced.text());
        topic
    }
}

#[test]
fn given_kafka_topics_when_it_creates_lists_describes_grows_and_deletes_then_it_prints_what_kafka_prints()
 {
    let served = Served::new().unwrap();
    let Some(tools) = Tools::find(&served) else { return };
    let topic = fresh_name("tools");
    let create =
        ["--create", "--topic", &topic, "--partitions", "2", "--config", "retention.ms=60000"];
    assert_eq!(tools.ask(TOPICS, &create), format!("Created topic {topic}.\n"));
    assert!(tools.ask(TOPICS, &["--list"]).lines().any(|line| line == topic));
    let told = tools.ask(TOPICS, &["--describe", "--topic", &topic]);
    assert!(
        told.contains("PartitionCount: 2\tReplicationFactor: 1\tConfigs: retention.ms=60000"),
        "{told}"
    );
    assert!(told.contains("Partition: 1\tLeader: 1\tReplicas: 1\tIsr: 1"), "{told}");
    tools.ask(TOPICS, &["--alter", "--topic", &topic, "--partitions", "3"]);
    assert!(tools.ask(TOPICS, &["--describe", "--topic", &topic]).contains("PartitionCount: 3"));
    let again = tools.run(
        TOPICS,
        &["--bootstrap-server", &tools.bootstrap, "--create", "--topic", &topic],
        "",
    );
    assert!(!again.status.success());
    assert!(again.text().contains(&format!("Topic '{topic}' already exists")), "{}", again.text());
    tools.ask(TOPICS, &["--delete", "--topic", &topic]);
    assert!(!tools.ask(TOPICS, &["--list"]).lines().any(|line| line == topic));
}

#[test]
fn given_kafka_configs_when_it_alters_topics_and_brokers_then_it_shows_what_was_set() {
    let served = Served::new().unwrap();
    let Some(tools) = Tools::find(&served) else { return };
    let topic = fresh_name("configs");
    tools.ask(TOPICS, &["--create", "--topic", &topic]);
    let on_topic = ["--entity-type", "topics", "--entity-name", &topic];
    let with = |args: &[&'static str], entity: &[&str]| -> String {
        let all: Vec<&str> = args.iter().chain(entity).copied().collect();
        tools.ask(CONFIGS, &all)
    };
    with(&["--alter", "--add-config", "max.message.bytes=2000,retention.ms=-1"], &on_topic);
    with(&["--alter", "--delete-config", "retention.ms"], &on_topic);
    let told = with(&["--describe"], &on_topic);
    let expected = format!(
        "Dynamic configs for topic {topic} are:\n  max.message.bytes=2000 sensitive=false \
         synonyms={{DYNAMIC_TOPIC_CONFIG:max.message.bytes=2000, DEFAULT_CONFIG:message.max.bytes=1048588}}\n"
    );
    assert_eq!(told, expected);
    let on_broker = ["--entity-type", "brokers", "--entity-name", "1"];
    with(&["--alter", "--add-config", "log.segment.delete.delay.ms=5000"], &on_broker);
    let told = with(&["--describe"], &on_broker);
    assert!(told.contains("DYNAMIC_BROKER_CONFIG:log.segment.delete.delay.ms=5000"), "{told}");
    with(&["--alter", "--delete-config", "log.segment.delete.delay.ms"], &on_broker);
    assert_eq!(with(&["--describe"], &on_broker), "Dynamic configs for broker 1 are:\n");
    assert!(with(&["--describe", "--all"], &on_broker).contains("num.partitions="));
}

#[test]
fn given_the_console_tools_when_records_go_through_then_they_and_their_offsets_and_sizes_are_told()
{
    let served = Served::new().unwrap();
    let Some(tools) = Tools::find(&served) else { return };
    let topic = tools.topic_of_a_hundred("console");
    let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let consume =
        ["--topic", &topic, "--partition", "0", "--offset", "earliest", "--max-messages", "100"];
    assert_eq!(tools.ask(CONSUMER, &consume), lines);
    assert_eq!(tools.ask(OFFSETS, &["--topic", &topic]), format!("{topic}:0:100\n"));
    let props = format!("bootstrap.servers={}", tools.bootstrap);
    let load =
        ["--topic", &topic, "--num-records", "1000", "--record-size", "100", "--throughput", "-1"];
    let load: Vec<&str> = load.into_iter().chain(["--producer-props", &props]).collect();
    let measured = tools.run(PERFORMANCE, &load, "");
    assert!(measured.stdout.contains("1000 records sent"), "{}", measured.text());
    assert_eq!(tools.ask(OFFSETS, &["--topic", &topic]), format!("{topic}:0:1100\n"));
    let dirs = tools.ask(LOG_DIRS, &["--describe", "--topic-list", &topic]);
    assert!(dirs.contains(&format!("\"partition\":\"{topic}-0\"")), "{dirs}");
}

/// A member of `group` that has its partitions, and keeps them until it is dropped.
fn member(bootstrap: &str, group: &str, topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("client.id", "the-member")
        .set("enable.auto.commit", "false")
        .set("partition.assignment.strategy", "range")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    wait_for("an assignment", DEADLINE, || {
        drop(consumer.poll(Duration::from_millis(100)));
        consumer.assignment().is_ok_and(|assigned| assigned.count() > 0).then_some(())
    })
    .unwrap();
    consumer
}

#[test]
fn given_kafka_consumer_groups_when_a_group_is_looked_after_then_it_prints_what_kafka_prints() {
    let served = Served::new().unwrap();
    let Some(tools) = Tools::find(&served) else { return };
    let topic = tools.topic_of_a_hundred("grouped");
    let group = fresh_name("group");
    let of_group = |args: &[&'static str]| -> Vec<Vec<String>> {
        let all: Vec<&str> = args.iter().copied().chain(["--group", &group]).collect();
        tools.rows(GROUPS, &all, &group)
    };
    let consume =
        ["--topic", &topic, "--group", &group, "--from-beginning", "--max-messages", "100"];
    assert_eq!(tools.ask(CONSUMER, &consume).lines().count(), 100);
    assert!(tools.ask(GROUPS, &["--list"]).lines().any(|line| line == group));

    // Empty: group, topic, partition, committed offset, end, lag, and nobody.
    let told = of_group(&["--describe"]);
    assert_eq!(told, [[&*group, &topic, "0", "100", "100", "0", "-", "-", "-"]]);
    let alive = member(&tools.bootstrap, &group, &topic);
    let told = of_group(&["--describe", "--state"]);
    let coordinator = [&tools.bootstrap, "(1)"];
    assert_eq!(told, [[&*group, coordinator[0], coordinator[1], "range", "Stable", "1"]]);
    let told = of_group(&["--describe", "--members"]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0][2..], ["/127.0.0.1", "the-member", "1"], "{told:?}");
    let told = of_group(&["--describe", "--offsets"]);
    assert_eq!(told[0][..6], [&*group, &topic, "0", "100", "100", "0"], "{told:?}");
    assert_eq!(told[0][7..], ["/127.0.0.1", "the-member"], "{told:?}");

    // What has members is neither reset nor deleted.
    let reset = ["--reset-offsets", "--to-earliest", "--execute", "--topic", &topic];
    let reset: Vec<&str> = reset.into_iter().chain(["--group", &group]).collect();
    let refused = tools.ask(GROUPS, &reset);
    assert!(refused.contains("is inactive, but the current state is Stable"), "{refused}");
    let with_server = ["--bootstrap-server", &tools.bootstrap, "--delete", "--group", &group];
    let refused = tools.run(GROUPS, &with_server, "");
    assert!(refused.text().contains("GroupNotEmptyException"), "{}", refused.text());
    drop(alive);

    assert_eq!(tools.rows(GROUPS, &reset, &group), [[&*group, &topic, "0", "0"]]);
    let told = of_group(&["--describe"]);
    assert_eq!(told[0][..6], [&*group, &topic, "0", "0", "100", "100"], "{told:?}");
    assert_eq!(of_group(&["--describe", "--state"])[0][4..], ["Empty", "0"]);
    let forget = ["--delete-offsets", "--topic", &topic, "--group", &group];
    assert_eq!(tools.rows(GROUPS, &forget, &topic), [[&*topic, "0", "Successful"]]);
    // Without an offset it begins at the beginning again.
    assert_eq!(tools.ask(CONSUMER, &consume).lines().count(), 100);
    let told = tools.ask(GROUPS, &["--delete", "--group", &group]);
    let gone = format!("Deletion of requested consumer groups ('{group}') was successful.");
    assert!(told.contains(&gone), "{told}");
    assert!(!tools.ask(GROUPS, &["--list"]).lines().any(|line| line == group));
}

#[test]
fn given_kafka_delete_records_and_consumer_perf_when_run_then_they_tell_what_is_left() {
    let served = Served::new().unwrap();
    let Some(tools) = Tools::find(&served) else { return };
    let topic = tools.topic_of_a_hundred("shortened");
    let read = ["--topic", &topic, "--messages", "100", "--timeout", "60000"];
    // Begun, ended, MB, MB a second, records, records a second, …
    let measured = tools.ask(CONSUMER_PERFORMANCE, &read);
    let cells: Vec<&str> = measured.lines().last().unwrap_or_default().split(", ").collect();
    assert_eq!(cells.get(4), Some(&"100"), "{measured}");

    let scratch = ScratchDir::new("deletion").unwrap();
    let file = scratch.path().join("offsets.json");
    let partition = format!("{{\"topic\":\"{topic}\",\"partition\":0,\"offset\":40}}");
    std::fs::write(&file, format!("{{\"partitions\":[{partition}],\"version\":1}}")).unwrap();
    let told = tools.ask(DELETE_RECORDS, &["--offset-json-file", file.to_str().unwrap()]);
    assert!(told.contains(&format!("partition: {topic}-0\tlow_watermark: 40")), "{told}");
    let earliest = tools.ask(OFFSETS, &["--topic", &topic, "--time", "earliest"]);
    assert_eq!(earliest, format!("{topic}:0:40\n"));
    let consume =
        ["--topic", &topic, "--partition", "0", "--offset", "earliest", "--max-messages", "60"];
    let left: String = (40..100).map(|n| format!("line {n}\n")).collect();
    assert_eq!(tools.ask(CONSUMER, &consume), left);
}

#[test]
fn given_kafka_reassign_partitions_when_it_moves_verifies_and_cancels_with_a_throttle_then_none_is_left()
 {
    let mut cluster = Cluster::start(3, &Settings::new()).unwrap();
    let Some(tools) = Tools::of(cluster.bootstrap()) else { return };
    run_on(&mut cluster, |cluster| {
        let topic = fresh_name("moved");
        create_topic(cluster.node(1), &topic, 2, 2)?;
        let scratch = ScratchDir::new("reassign")?;
        let plan = |name: &str, replicas: &str| {
            let path = scratch.path().join(name);
            let partition =
                |at| format!(r#"{{"topic":"{topic}","partition":{at},"replicas":{replicas}}}"#);
            let both = [partition(0), partition(1)].join(",");
            std::fs::write(&path, format!(r#"{{"version":1,"partitions":[{both}]}}"#)).unwrap();
            path.to_string_lossy().into_owned()
        };
        let reassign = |args: &[&str]| tools.ask(REASSIGN, args);
        let there = plan("there.json", "[3,2,1]");
        let begun = ["--reassignment-json-file", &there, "--execute", "--throttle", "50000000"];
        let told = reassign(&begun);
        assert!(told.contains("Successfully started partition reassignments"), "{told}");
        let verify = ["--reassignment-json-file", &there, "--verify"];
        wait_for("both are completed", DEADLINE, || {
            let told = reassign(&verify);
            (told.matches("is completed").count() == 2).then_some(())
        })?;
        let told = tools.ask(TOPICS, &["--describe", "--topic", &topic]);
        assert_eq!(told.matches("Replicas: 3,2,1").count(), 2, "{told}");
        assert!(!told.contains("throttled"), "{told}");
        let back = plan("back.json", "[1,2]");
        reassign(&["--reassignment-json-file", &back, "--execute", "--throttle", "50000000"]);
        reassign(&["--reassignment-json-file", &back, "--cancel"]);
        let of_brokers = ["--describe", "--entity-type", "brokers", "--all"];
        let told = tools.ask(CONFIGS, &of_brokers);
        assert!(!told.contains("replication.throttled.rate"), "{told}");
        Ok(())
    });
}
