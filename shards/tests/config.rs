//! Settings: precedence of sources, what is refused and in which words.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use chronik_shards::config::{
    Config, ConfigErrors, ConfigWarning, FlagValue, HostPort, Inputs, Loaded, SETTINGS, Source,
    environment_name, load, render_effective, render_reference,
};

struct Given {
    inputs: Inputs,
    directory: tempfile::TempDir,
}

fn given() -> Given {
    Given { inputs: Inputs::default(), directory: tempfile::tempdir().unwrap() }
}

impl Given {
    fn file(mut self, text: &str) -> Self {
        let path = self.directory.path().join("chronik.toml");
        std::fs::write(&path, text).unwrap();
        self.inputs.file = Some(path);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.inputs.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, key: &'static str, flag: &'static str, value: &str) -> Self {
        self.inputs.flags.push(FlagValue { key, flag, value: value.to_owned() });
        self
    }

    fn load(&self) -> Result<Loaded, ConfigErrors> {
        load(&self.inputs)
    }

    fn config(&self) -> Config {
        self.load().unwrap().config
    }

    /// The problems' texts, the directory left out of paths.
    fn problems(&self) -> Vec<String> {
        let directory = format!("{}/", self.directory.path().display());
        let errors = self.load().unwrap_err();
        errors.0.iter().map(|error| error.to_string().replace(&directory, "")).collect()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn given_nothing_when_loaded_then_defaults_hold() {
    let config = given().config();
    assert_eq!(config.node_id.0, 1);
    assert_eq!(config.kafka_addr, address("127.0.0.1:9092"));
    assert_eq!(config.raft_addr, address("127.0.0.1:9192"));
    assert_eq!(config.admin_addr, address("127.0.0.1:9292"));
    assert_eq!(config.advertised_addr.to_string(), "127.0.0.1:9092");
    assert_eq!(config.wal.file_bytes, 256 * 1024 * 1024);
    assert_eq!(config.wal.ballast_bytes, 64 * 1024 * 1024);
    assert_eq!(config.shard.tail_cache_bytes, 64 * 1024 * 1024);
    assert_eq!(config.kafka.default_replication_factor, 0, "as many as there are nodes");
    assert_eq!(config.kafka.message_max_bytes, 1_048_588);
    assert_eq!(config.kafka.producer_id_expiration_ms, 86_400_000);
    assert!(config.kafka.auto_create_topics_enable);
}

#[test]
fn given_every_source_when_loaded_then_the_later_wins_and_is_named() {
    let file = "node_id = 2\nkafka_port = 1000\n[kafka]\nnum_partitions = 2\nconnections_max = 2\n";
    let loaded = given()
        .file(file)
        .variable("CHRONIK_NODE_ID", "3")
        .variable("CHRONIK_KAFKA_NUM_PARTITIONS", "3")
        .flag("node_id", "node-id", "4")
        .load()
        .unwrap();
    assert_eq!(loaded.config.node_id.0, 4);
    assert_eq!(loaded.config.kafka.num_partitions, 3);
    assert_eq!(loaded.config.kafka.connections_max, 2);
    let source = |key: &str| {
        loaded.effective.iter().find(|setting| setting.info.key == key).unwrap().source.clone()
    };
    assert_eq!(source("node_id"), Source::Flag { name: "node-id" });
    assert_eq!(
        source("kafka.num_partitions").to_string(),
        "environment variable CHRONIK_KAFKA_NUM_PARTITIONS"
    );
    assert!(source("kafka.connections_max").to_string().ends_with("chronik.toml:5"));
    assert_eq!(source("wal.file_bytes"), Source::Default);
}

#[test]
fn given_limits_of_both_ports_when_loaded_then_each_is_its_own() {
    assert_eq!(given().config().admin.connections_max, 64);
    let config = given()
        .file("[admin]\nconnections_max = 5\n")
        .variable("CHRONIK_KAFKA_CONNECTIONS_MAX", "7")
        .config();
    assert_eq!((config.admin.connections_max, config.kafka.connections_max), (5, 7));
    let config = given().variable("CHRONIK_ADMIN_CONNECTIONS_MAX", "9").config();
    assert_eq!(config.admin.connections_max, 9);
    let zero = given().file("[admin]\nconnections_max = 0").problems();
    assert_eq!(zero, ["chronik.toml:2: `admin.connections_max` = 0: must be between 1 and 10000"]);
}

#[test]
fn given_address_and_port_when_loaded_then_the_later_source_decides_the_port() {
    let cases: [(&str, Option<&str>, Option<&str>, &str); 5] = [
        ("", Some("CHRONIK_KAFKA_PORT"), Some("7000"), "127.0.0.1:7000"),
        ("kafka_addr = \"0.0.0.0:1000\"", Some("CHRONIK_KAFKA_PORT"), Some("7000"), "0.0.0.0:7000"),
        ("kafka_port = 1000", Some("CHRONIK_KAFKA_ADDR"), Some("[::1]:7000"), "[::1]:7000"),
        ("kafka_addr = \"127.0.0.2:1000\"\nkafka_port = 2000", None, None, "127.0.0.2:2000"),
        ("kafka_addr = \"localhost:1000\"", None, None, "127.0.0.1:1000"),
    ];
    for (file, name, value, expected) in cases {
        let mut case = given().file(file).variable("CHRONIK_ADVERTISED_ADDR", "broker");
        if let (Some(name), Some(value)) = (name, value) {
            case = case.variable(name, value);
        }
        let config = case.config();
        let expected = address(expected);
        assert_eq!(config.kafka_addr, expected, "{file}");
        assert_eq!(config.kafka_port, expected.port());
        assert_eq!(config.raft_addr.port(), expected.port() + 100);
        assert_eq!(config.admin_addr.port(), expected.port() + 200);
        assert!(config.admin_addr.ip().is_loopback(), "the admin port is for this machine");
        let advertised = HostPort { host: "broker".to_owned(), port: expected.port() };
        assert_eq!(config.advertised_addr, advertised, "the port left out is the Kafka port");
    }
}

#[test]
fn given_a_wrong_value_when_loaded_then_the_error_says_where_what_and_what_instead() {
    let cases: [(Given, &str); 15] = [
        (
            given().file("\n[wal]\nfile_bytes = 1000\n"),
            "chronik.toml:3: `wal.file_bytes` = 1000: must be between 1048576 and 17179869184 (bytes)",
        ),
        (
            given().variable("CHRONIK_WAL_FILE_BYTES", "64MiB"),
            "environment variable CHRONIK_WAL_FILE_BYTES: `wal.file_bytes` = \"64MiB\": must be a whole number (bytes), written without a unit",
        ),
        (
            given().flag("node_id", "node-id", "-1"),
            "flag --node-id: `node_id` = \"-1\": must be between 0 and 2147483647",
        ),
        (
            given().file("node_id = \"one\""),
            "chronik.toml:1: `node_id` = \"one\": must be an integer, not text",
        ),
        (
            given().file("[kafka]\nnum_partitions = 1.5"),
            "chronik.toml:2: `kafka.num_partitions` = (a number with a fraction): must be an integer, not a number with a fraction",
        ),
        (
            given().file("[kafka]\nauto_create_topics_enable = \"perhaps\""),
            "chronik.toml:2: `kafka.auto_create_topics_enable` = \"perhaps\": must be true or false",
        ),
        (
            given().variable("CHRONIK_DATA_DIR", " "),
            "environment variable CHRONIK_DATA_DIR: `data_dir` = \" \": must not be empty",
        ),
        (
            given().file("kafka_addr = \"broker1:9092\""),
            "chronik.toml:1: `kafka_addr` = \"broker1:9092\": must be an IP address and a port, such as 127.0.0.1:9092, 0.0.0.0:9092 or [::1]:9092; the name that clients use belongs into advertised_addr",
        ),
        (
            given().file("kafka_addr = \"0.0.0.0:9092\""),
            "kafka_addr listens on every interface (0.0.0.0:9092), which is no address that clients can connect to; set advertised_addr to the host name or address they use (--advertised-addr HOST:PORT or CHRONIK_ADVERTISED_ADDR)",
        ),
        (
            given().variable("CHRONIK_ADVERTISED_ADDR", "0.0.0.0:9092"),
            "environment variable CHRONIK_ADVERTISED_ADDR: `advertised_addr` = \"0.0.0.0:9092\": is an address to listen on, not one that clients can connect to; give a host name or address",
        ),
        (
            given().variable("CHRONIK_KAFKA_PORT", "tcp://10.0.0.1:9092"),
            "environment variable CHRONIK_KAFKA_PORT: `kafka_port` = \"tcp://10.0.0.1:9092\": looks like the variable that Kubernetes makes for a service; set enableServiceLinks: false in the pod, or give the port as a number",
        ),
        (
            given().variable("CHRONIK_KAFKA_PORT", "65400"),
            "kafka_port 65400 + 200 is beyond 65535, so `admin_addr` has no default; set `admin_addr`",
        ),
        (
            given().file("admin_addr = \"127.0.0.1:9092\""),
            "`kafka_addr` and `admin_addr` are both port 9092; give each its own",
        ),
        (
            given().file("node_id = 1\nnode_id = 2\n"),
            "chronik.toml:2: not valid TOML: duplicate key",
        ),
        (
            given().file("wal = 5"),
            "chronik.toml:1: `wal` is a table of settings; write [wal] and keys below it",
        ),
    ];
    for (case, expected) in cases {
        assert_eq!(case.problems(), vec![expected.to_owned()]);
    }
}

#[test]
fn given_an_unknown_key_when_loaded_then_the_nearest_is_suggested() {
    let cases: [(Given, &str); 9] = [
        (
            given().file("nodeid = 1"),
            "chronik.toml:1: unknown setting `nodeid`; did you mean `node_id`?",
        ),
        (
            given().file("[wal]\nfile_byte = 1"),
            "chronik.toml:2: unknown setting `wal.file_byte`; did you mean `wal.file_bytes`?",
        ),
        (
            given().file("num_partitions = 1"),
            "chronik.toml:1: unknown setting `num_partitions`; did you mean `kafka.num_partitions`?",
        ),
        (
            given().file("connections_max = 1"),
            "chronik.toml:1: unknown setting `connections_max`; did you mean `kafka.connections_max`?",
        ),
        (
            given().file("[kafak]\nnum_partitions = 1"),
            "chronik.toml:1: unknown setting `kafak`; did you mean `kafka`?",
        ),
        (
            given().file("zebra = 1"),
            "chronik.toml:1: unknown setting `zebra`; `chronik-server config reference` lists all settings",
        ),
        (
            given().variable("CHRONIK_KAFKA_PROT", "1"),
            "environment variable CHRONIK_KAFKA_PROT: unknown setting `CHRONIK_KAFKA_PROT`; did you mean `CHRONIK_KAFKA_PORT`?",
        ),
        (
            given().file("[snapshot]\nenabled = true"),
            "chronik.toml:1: `snapshot` (snapshots) is not available in this version; remove the setting",
        ),
        (
            given().variable("CHRONIK_SEARCH_ENABLED", "true"),
            "environment variable CHRONIK_SEARCH_ENABLED: `CHRONIK_SEARCH_ENABLED` (search) is not available in this version; remove the setting",
        ),
    ];
    for (case, expected) in cases {
        assert_eq!(case.problems(), vec![expected.to_owned()]);
    }
}

#[test]
fn given_several_mistakes_when_loaded_then_all_are_reported_at_once() {
    let problems = given()
        .file("nodeid = 1\n[wal]\nfile_bytes = 0\n")
        .variable("CHRONIK_SHARDS", "many")
        .variable("OBJECT_STORE_BACKEND", "s3")
        .problems();
    assert_eq!(problems.len(), 4, "{problems:#?}");
}

fn listed(id: u32, kafka: &str, raft: &str) -> String {
    format!("{{ id = {id}, kafka_addr = \"{kafka}\", raft_addr = \"{raft}\" }}")
}

fn cluster_file(nodes: &[String]) -> String {
    format!("[cluster]\nnodes = [{}]\n", nodes.join(", "))
}

#[test]
fn given_one_list_of_nodes_when_loaded_on_each_then_its_addresses_are_those_of_the_node() {
    let nodes = [(1, 9092), (2, 9093), (3, 9094)].map(|(id, port)| {
        listed(id, &format!("127.0.0.1:{port}"), &format!("localhost:{}", port + 100))
    });
    let file = cluster_file(&nodes);
    for (id, port) in [("1", 9092), ("2", 9093), ("3", 9094)] {
        let config = given().file(&file).variable("CHRONIK_NODE_ID", id).config();
        assert_eq!(config.cluster.nodes.len(), 3);
        assert_eq!(config.kafka_addr, address(&format!("127.0.0.1:{port}")));
        assert_eq!(config.kafka_port, port);
        assert_eq!(config.advertised_addr.to_string(), format!("127.0.0.1:{port}"));
        assert_eq!(config.raft_addr, address(&format!("127.0.0.1:{}", port + 100)));
        assert_eq!(config.admin_addr, address(&format!("127.0.0.1:{}", port + 200)));
        assert_eq!(config.kafka.default_replication_factor, 0);
        assert_eq!(config.cluster.probe_interval_ms, 2000);
    }
}

#[test]
fn given_a_replication_factor_when_loaded_then_a_list_of_nodes_bounds_it_and_without_one_nobody_knows()
 {
    let factor = "[kafka]\ndefault_replication_factor = 3\n";
    assert_eq!(given().file(factor).config().kafka.default_replication_factor, 3);
    let nodes = [(1, 9092), (2, 9093)].map(|(id, port)| {
        listed(id, &format!("127.0.0.1:{port}"), &format!("127.0.0.1:{}", port + 100))
    });
    let file = format!("{factor}{}", cluster_file(&nodes));
    let expected = "kafka.default_replication_factor = 3, but the number of nodes is 2; it can be at most that";
    assert_eq!(given().file(&file).problems(), [expected]);
}

#[test]
fn given_addresses_of_a_node_of_a_list_when_loaded_then_those_given_count_more() {
    let nodes =
        [listed(1, "broker1:9092", "broker1:9192"), listed(2, "broker2:9092", "broker2:9192")];
    let file = format!("{}secret = \"s\"\n", cluster_file(&nodes));
    let config = given()
        .file(&file)
        .variable("CHRONIK_KAFKA_ADDR", "0.0.0.0:9092")
        .variable("CHRONIK_RAFT_ADDR", "0.0.0.0:9192")
        .config();
    assert_eq!(config.kafka_addr, address("0.0.0.0:9092"));
    assert_eq!(config.raft_addr, address("0.0.0.0:9192"));
    assert_eq!(config.advertised_addr.to_string(), "broker1:9092");
    let problems = given().file(&file).problems();
    let named = |key: &str, listed: &str| {
        format!("gives node 1 the name {listed} for `{key}`, so it is not known where to listen")
    };
    assert!(problems[0].contains(&named("kafka_addr", "broker1:9092")), "{problems:?}");
    assert!(problems[1].contains(&named("raft_addr", "broker1:9192")), "{problems:?}");
    assert_eq!(problems.len(), 2, "{problems:?}");
    let addresses = [listed(1, "10.0.0.1:9092", "10.0.0.1:9192"), listed(2, "b:1", "b:2")];
    let file = format!("{}secret = \"s\"\n", cluster_file(&addresses));
    let config = given().file(&file).config();
    assert_eq!(config.kafka_addr, address("10.0.0.1:9092"));
    assert_eq!(config.raft_addr, address("10.0.0.1:9192"));
    assert!(config.admin_addr.ip().is_loopback());
}

#[test]
fn given_lists_of_nodes_that_cannot_be_when_loaded_then_each_fault_has_its_words() {
    let node = |id: u32, port: u16| {
        listed(id, &format!("127.0.0.1:{port}"), &format!("127.0.0.1:{}", port + 100))
    };
    let list = |nodes: &[String]| cluster_file(nodes);
    let alone = given().file(&list(&[node(1, 9093)])).config();
    assert_eq!((alone.cluster.nodes.len(), alone.kafka_port), (1, 9093));
    let many: Vec<String> =
        (1..=65).map(|id| node(id, 10_000 + u16::try_from(id).unwrap())).collect();
    let cases = [
        (list(&many), "lists 65 nodes; at most 64 can be one cluster"),
        (list(&[node(2, 9092)]), "does not list this node (node_id = 1)"),
        (list(&[node(1, 9092), node(1, 9093)]), "lists node 1 twice"),
        (list(&[node(1, 9092), node(2, 9092)]), "uses the address 127.0.0.1:9092 twice"),
        (
            format!("advertised_addr = \"127.0.0.1:9092\"\n{}", list(&[node(1, 9093)])),
            "clients reach node 1 at 127.0.0.1:9093, but advertised_addr is 127.0.0.1:9092",
        ),
        ("[cluster]\nnodes = [{ id = 1 }]".to_owned(), "node entry 1 has no `kafka_addr`"),
        (
            "[cluster]\nnodes = [{ id = 1, kafka = \"a:1\" }]".to_owned(),
            "node entry 1 has an unknown field `kafka`",
        ),
        (list(&[listed(1, "a", "a:1")]), "must name its port, as in a:PORT"),
        ("[cluster]\nnodes = \"a,b\"".to_owned(), "must be a list of tables"),
        ("[cluster]\nnode = []".to_owned(), "did you mean `cluster.nodes`?"),
    ];
    for (file, expected) in cases {
        let problems = given().file(&file).problems();
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{file}\n{problems:#?}");
    }
}

#[test]
fn given_raft_addresses_beyond_this_machine_when_there_is_no_secret_then_it_is_demanded() {
    let local = listed(1, "127.0.0.1:9092", "127.0.0.1:9192");
    for remote in ["10.0.0.2:9192", "broker2:9192", "[2001:db8::1]:9192"] {
        let nodes = cluster_file(&[local.clone(), listed(2, "127.0.0.1:9093", remote)]);
        let problems = given().file(&nodes).problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        let expected = format!("node 2 talks to other nodes at {remote}");
        assert!(problems[0].starts_with(&expected), "{problems:?}");
        assert!(problems[0].contains("CHRONIK_CLUSTER_SECRET"), "{problems:?}");
        given().file(&nodes).variable("CHRONIK_CLUSTER_SECRET", "s").config();
    }
    let nodes = cluster_file(&[local, listed(2, "127.0.0.1:9093", "[::1]:9193")]);
    given().file(&nodes).config();
    let open = given().file(&nodes).variable("CHRONIK_RAFT_ADDR", "0.0.0.0:9192").problems();
    assert!(open[0].starts_with("node 1 talks to other nodes at 0.0.0.0:9192"), "{open:?}");
}

#[test]
fn given_a_secret_when_anything_is_printed_then_it_is_not_in_it() {
    let file = format!(
        "{}secret = \"hunter2\"\n",
        cluster_file(&[listed(1, "127.0.0.1:9092", "127.0.0.1:9192")])
    );
    let loaded = given().file(&file).load().unwrap();
    assert_eq!(loaded.config.cluster.secret.as_ref().unwrap().as_bytes(), b"hunter2");
    let text = render_effective(&loaded.effective);
    assert!(text.contains("secret = \"***\""), "{text}");
    for printed in [text, format!("{:?}", loaded.config), format!("{:?}", loaded.effective)] {
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    let wrong = given().file("[cluster]\nsecret = 12345678\n").problems();
    assert_eq!(wrong, ["chronik.toml:2: `cluster.secret` = ***: must be text, not an integer"]);
    let pasted = given().variable("CHRONIK_CLUSTER_SECRET", "***").problems();
    assert!(pasted[0].contains("give the secret itself"), "{pasted:?}");
    assert_eq!(given().variable("CHRONIK_CLUSTER_SECRET", "").config().cluster.secret, None);
}

#[test]
fn given_variables_that_kubernetes_makes_when_loaded_then_they_are_passed_over_with_a_warning() {
    let loaded = given()
        .variable("CHRONIK_SERVICE_HOST", "10.0.0.1")
        .variable("CHRONIK_SERVICE_PORT_KAFKA", "9092")
        .variable("CHRONIK_PORT", "tcp://10.0.0.1:9092")
        .variable("CHRONIK_PORT_9092_TCP_ADDR", "10.0.0.1")
        .load()
        .unwrap();
    assert_eq!(loaded.warnings.len(), 4);
    assert_eq!(loaded.config.kafka_port, 9092);
}

#[test]
fn given_the_local_object_store_when_loaded_then_a_warning_says_that_it_does_nothing() {
    let loaded = given().variable("OBJECT_STORE_BACKEND", "local").load().unwrap();
    assert_eq!(loaded.warnings, vec![ConfigWarning::ObjectStoreIgnored]);
}

#[test]
fn given_a_missing_file_when_loaded_then_its_path_is_in_the_error() {
    let inputs = Inputs { file: Some("/nonexistent/chronik.toml".into()), ..Inputs::default() };
    let errors = load(&inputs).unwrap_err();
    assert!(errors.to_string().starts_with("/nonexistent/chronik.toml: cannot read"), "{errors}");
}

#[test]
fn given_effective_settings_when_printed_and_read_again_then_they_are_the_same() {
    let first = given()
        .file("data_dir = 'C:\\odd \"path\"'\nshards = 3\n")
        .variable("CHRONIK_WAL_FILE_BYTES", "1048576")
        .load()
        .unwrap();
    let text = render_effective(&first.effective);
    assert!(text.contains("# environment variable CHRONIK_WAL_FILE_BYTES"), "{text}");
    let again = given().file(&text).load().unwrap();
    assert_eq!(again.config, first.config);
}

#[test]
fn given_the_reference_when_its_settings_are_uncommented_then_it_is_the_default_file() {
    let defaults = load(&Inputs::default()).unwrap();
    let reference = render_reference(&defaults.effective);
    let file: String = reference
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(given().file(&file).config(), defaults.config);
    for setting in SETTINGS {
        assert!(reference.contains(&environment_name(setting.key)), "{}", setting.key);
    }
}

#[test]
fn given_all_settings_when_listed_then_names_are_unique_and_ranges_hold_their_defaults() {
    let keys: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    let names: BTreeSet<String> =
        SETTINGS.iter().map(|setting| environment_name(setting.key)).collect();
    assert_eq!(keys.len(), SETTINGS.len());
    assert_eq!(names.len(), SETTINGS.len(), "two keys would share a variable");
    for setting in load(&Inputs::default()).unwrap().effective {
        assert!(!setting.info.doc.is_empty());
        if let Some(range) = setting.info.range {
            let value: u64 = setting.value.parse().unwrap();
            assert!(range.min <= value && value <= range.max, "{}", setting.info.key);
        }
    }
}

#[test]
fn given_a_negative_number_where_a_range_begins_above_it_when_loaded_then_it_is_refused() {
    let problems = given().file("[kafka]\nproducer_id_expiration_ms = -5\n").problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("producer_id_expiration_ms"), "{problems:?}");
    let unlimited = given().file("[kafka]\nlog_retention_bytes = -1\n").config();
    assert_eq!(unlimited.kafka.log_retention_bytes, -1);
}
