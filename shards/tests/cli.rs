//! The command line, as a user meets it: through the binary.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use chronik_shards::cli::Cli;
use clap::{CommandFactory, Parser as _};

fn chronik(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronik-server"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CHRONIK_") || name == "RUST_LOG" || name == "OBJECT_STORE_BACKEND" {
            command.env_remove(name);
        }
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code, standard output and standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

#[test]
fn given_the_grammar_when_checked_then_it_has_no_contradiction() {
    Cli::command().debug_assert();
}

#[test]
fn given_help_when_rendered_then_it_is_the_golden_text() {
    let help = Cli::command().term_width(100).render_long_help().to_string();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &help).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    assert_eq!(help, expected, "run with UPDATE_GOLDEN=1 if the change is meant");
}

#[test]
fn given_good_settings_when_checked_then_they_are_printed_with_their_sources() {
    let mut command = chronik(&["--node-id", "7", "config", "check", "--kafka-port", "7000"]);
    let (code, out, err) = run(command.env("CHRONIK_DATA_DIR", "/srv/chronik"));
    assert_eq!((code, err.as_str()), (0, ""));
    let line = |start: &str| {
        let line = out.lines().find(|line| line.starts_with(start)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("node_id"), "node_id = 7 # flag --node-id");
    assert_eq!(line("kafka_port"), "kafka_port = 7000 # flag --kafka-port");
    assert_eq!(line("kafka_addr"), "kafka_addr = \"127.0.0.1:7000\" # default");
    let data_dir = "data_dir = \"/srv/chronik\" # environment variable CHRONIK_DATA_DIR";
    assert_eq!(line("data_dir"), data_dir);
}

#[test]
fn given_addresses_as_flags_when_checked_then_they_hold_and_the_port_is_the_more_particular() {
    let addresses = ["--kafka-addr", "10.0.0.4:9092", "--admin-addr", "127.0.0.1:7200"];
    let check = |more: &[&str]| {
        let (code, out, err) =
            run(&mut chronik(&[&["config", "check"], &addresses[..], more].concat()));
        assert_eq!((code, err.as_str()), (0, ""));
        out
    };
    let out = check(&[]);
    assert!(out.contains("kafka_addr = \"10.0.0.4:9092\""), "{out}");
    assert!(out.contains("raft_addr = \"10.0.0.4:9192\""), "{out}");
    assert!(out.contains("admin_addr = \"127.0.0.1:7200\""), "{out}");
    let out = check(&["--kafka-port", "9999"]);
    assert!(out.contains("kafka_addr = \"10.0.0.4:9999\""), "{out}");
}

#[test]
fn given_flags_that_start_a_node_when_a_running_one_is_asked_then_they_are_refused() {
    for command in [&["cluster", "status"][..], &["cluster", "drain", "3"], &["latency"]] {
        for flags in [
            &["--bootstrap"][..],
            &["--join", "127.0.0.1:9192"],
            &["--raft-addr", "127.0.0.1:9192"],
        ] {
            let (code, _, err) = run(&mut chronik(&[command, flags].concat()));
            assert_eq!(code, 2, "{command:?} {flags:?}");
            assert!(err.contains("unexpected argument"), "{err}");
        }
    }
}

#[test]
fn given_bad_settings_when_checked_then_the_exit_code_is_2_and_nothing_is_printed() {
    let mut command = chronik(&["config", "check"]);
    command.env("CHRONIK_KAFKA_PROT", "1").env("CHRONIK_SHARDS", "x");
    let (code, out, err) = run(&mut command);
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(err.lines().count(), 2, "{err}");
    assert!(err.contains("did you mean `CHRONIK_KAFKA_PORT`?"), "{err}");
}

#[test]
fn given_the_configuration_file_in_a_variable_when_checked_then_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "shards = 5\n").unwrap();
    let (code, out, _) = run(chronik(&["config", "check"]).env("CHRONIK_CONFIG", &file));
    assert_eq!(code, 0);
    assert!(out.contains("shards = 5 "), "{out}");
}

#[test]
fn given_flags_of_a_cluster_when_started_then_the_error_says_what_is_missing() {
    let nodes = r#"[{id=1,kafka_addr="127.0.0.1:9092",raft_addr="127.0.0.1:9192"}]"#;
    let open = "192.0.2.1:9192";
    for (arguments, listed, said) in [
        (&["standalone", "--take-over"] as &[&str], "[]", "not available in this version"),
        (&["--bootstrap"], nodes, "`cluster.bootstrap` and `cluster.nodes`"),
        (&["--join", "127.0.0.1:9192", "standalone"], nodes, "`cluster.join` and `cluster.nodes`"),
        (&["--join", "127.0.0.1:9192", "--bootstrap"], "[]", "take one of the two"),
        (&["--join", "127.0.0.1"], "[]", "must name its port"),
        (&["--bootstrap", "--raft-addr", open], "[]", "CHRONIK_CLUSTER_SECRET"),
        (&["--join", open], "[]", "CHRONIK_CLUSTER_SECRET"),
    ] {
        let (code, _, err) = run(chronik(arguments).env("CHRONIK_CLUSTER_NODES", listed));
        assert_eq!(code, 2, "{arguments:?}");
        assert!(err.contains(said), "{err}");
    }
}

#[test]
fn given_all_forms_of_standalone_when_started_in_a_file_then_each_gets_as_far_as_the_data_directory()
 {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = port.min(65_000).to_string();
    for arguments in [
        vec!["--data-dir", path],
        vec!["standalone", "--data-dir", path],
        vec!["--data-dir", path, "--advertised-addr", "localhost:9092", "--raft", "standalone"],
    ] {
        let mut command = chronik(&arguments);
        let (code, out, err) = run(command.env("CHRONIK_KAFKA_PORT", &port));
        assert_eq!((code, out.as_str()), (4, ""), "{err}");
        assert!(err.contains("is not a directory"), "{err}");
    }
}

#[test]
fn given_a_taken_port_when_started_then_it_is_named_before_the_data_directory_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let mut command = chronik(&["--data-dir", data.to_str().unwrap()]);
    command.env("CHRONIK_KAFKA_ADDR", address.to_string());
    command.env("CHRONIK_ADMIN_ADDR", "127.0.0.2:9").env("CHRONIK_RAFT_ADDR", "127.0.0.2:10");
    let (code, _, err) = run(&mut command);
    assert_eq!(code, 6, "{err}");
    assert!(err.contains(&format!("kafka_addr {address}: the port is taken")), "{err}");
    assert!(!data.exists());
}

#[test]
fn given_a_bad_log_filter_when_started_then_the_exit_code_is_2() {
    let (code, _, err) = run(chronik(&[]).env("RUST_LOG", "chronik=loud"));
    assert_eq!(code, 2);
    assert!(err.contains("RUST_LOG"), "{err}");
}

#[test]
fn given_version_when_asked_both_ways_then_the_answers_agree() {
    let (code, long, _) = run(&mut chronik(&["--version"]));
    assert_eq!(code, 0);
    assert_eq!(run(&mut chronik(&["version"])).1, long);
    assert!(long.starts_with("chronik-server "));
}

#[test]
fn given_no_broker_when_latencies_are_asked_for_then_the_address_is_in_the_error() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    drop(held);
    let (code, _, err) = run(&mut chronik(&["latency", "--admin", &address.to_string()]));
    assert_eq!(code, 1);
    assert!(err.contains(&address.to_string()), "{err}");
}

#[test]
fn given_no_log_when_inspected_then_the_directory_is_named_and_the_exit_code_is_4() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    for command in ["inspect", "verify", "repair"] {
        let (code, _, err) = run(&mut chronik(&["wal", command, path]));
        assert_eq!(code, 4, "{err}");
        assert!(err.contains(path) && err.contains("neither a data directory"), "{err}");
    }
    let (code, _, err) = run(&mut chronik(&["wal", "inspect", "/nonexistent"]));
    assert_eq!(code, 4);
    assert!(err.starts_with("/nonexistent: "), "{err}");
}

#[test]
fn given_a_directory_in_use_when_its_logs_are_inspected_then_it_is_refused() {
    use chronik_engine::ids::NodeId;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let held = chronik_shards::identity::DataDir::open(directory.path(), NodeId(1), 1).unwrap();
    std::fs::create_dir_all(directory.path().join("shards/000/wal")).unwrap();
    let (code, _, err) = run(&mut chronik(&["wal", "verify", path]));
    assert_eq!(code, 4);
    assert!(err.contains(&format!("in use by process {}", std::process::id())), "{err}");
    drop(held);
    let (code, out, _) = run(&mut chronik(&["wal", "verify", "--json", path]));
    assert_eq!(code, 0);
    assert!(out.contains("\"blocks\":0"), "{out}");
}

/// What is printed where the arguments of a command are wrong, or with `--help`.
fn usage_of(args: &[&str]) -> String {
    Cli::try_parse_from([&["chronik-server"], args].concat()).unwrap_err().to_string()
}

#[test]
fn given_a_command_with_several_forms_when_its_usage_is_shown_then_it_has_all_of_them() {
    let reassign = ["cluster", "reassign"];
    let forms = [
        &["--topic", "TOPIC", "--partition", "1", "--to", "1,2"][..],
        &["--topic", "TOPIC", "--partition", "1", "--cancel"],
        &["--topic", "TOPIC", "--replication-factor", "2"],
        &["--all", "--replication-factor", "2"],
        &["--list"],
    ];
    for usage in [usage_of(&reassign), usage_of(&[&reassign[..], &["--help"]].concat())] {
        for form in forms {
            let is_shown = |line: &str| {
                form.iter().filter(|arg| arg.starts_with("--")).all(|arg| line.contains(arg))
            };
            assert!(usage.lines().any(is_shown), "{form:?} is not in\n{usage}");
        }
    }
    for form in forms {
        let args = [&["chronik-server"], &reassign[..], form].concat();
        assert!(Cli::try_parse_from(args).is_ok(), "{form:?} is none");
    }
}
