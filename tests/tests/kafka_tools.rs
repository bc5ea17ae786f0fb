//! Kafka's own command line tools against the broker.
//!
//! They need Java and Kafka's libraries, whose folder is in `CHRONIK_TEST_KAFKA_LIBS`; without it each test says
//! `SKIPPED` and passes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use chronik_tests::binary::{Finished, run_to_end};
use chronik_tests::process::{Served, fresh_name};
use chronik_tests::scratch::{ScratchDir, say_skipped};

const DEADLINE: Duration = Duration::from_secs(120);

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const CONFIGS: &str = "kafka.admin.ConfigCommand";
const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
const LOG_DIRS: &str = "org.apache.kafka.tools.LogDirsCommand";
const PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
const CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const PERFORMANCE: &str = "org.apache.kafka.tools.ProducerPerformance";

/// The tools and the broker that they talk to.
struct Tools {
    libs: String,
    bootstrap: String,
}

impl Tools {
    /// `None`, and a line that says so, where there are no tools.
    fn find(served: &Served) -> Option<Tools> {
        match std::env::var("CHRONIK_TEST_KAFKA_LIBS") {
            Ok(libs) if !libs.is_empty() => Some(Tools { libs, bootstrap: served.bootstrap() }),
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
    let topic = fresh_name("console");
    tools.ask(TOPICS, &["--create", "--topic", &topic]);
    let lines: String = (0..100).map(|n| format!("line {n}\n")).collect();
    let to = ["--bootstrap-server", &tools.bootstrap, "--topic", &topic];
    let produced = tools.run(PRODUCER, &to, &lines);
    assert!(produced.status.success(), "{}", produced.text());
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
