//! The client libraries of `tests/clients`: which there are, whether they are installed, how their programs are run and
//! what those say.
//!
//! A program prints one line of JSON for each check and one at its end. Nothing here talks to a broker.
//!
//! - I1: a client runs only with the libraries that the lock files beside it pin; anything else is a reason to skip it.
//! - I2: a run that does not report every check of its scenarios, each once, and its end, is an error.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::binary::run_to_end;

/// How long a client may take for all scenarios, on a machine that does other things, too.
const RUN_DEADLINE: Duration = Duration::from_secs(150);
/// How long the build of a Go program may take that is in the cache already, or nearly.
const BUILD_DEADLINE: Duration = Duration::from_secs(120);

/// The scenarios and their checks, in the order in which they run.
pub const SCENARIOS: [(&str, &[&str]); 5] = [
    ("topics", &["topics.create", "topics.create_again", "topics.delete"]),
    (
        "records",
        &[
            "records.none",
            "records.gzip",
            "records.snappy",
            "records.lz4",
            "records.zstd",
            "records.idempotent",
            "records.shapes",
            "records.large",
        ],
    ),
    ("offsets", &["offsets.list", "offsets.by_time", "offsets.seek", "offsets.seek_time"]),
    (
        "groups",
        &[
            "groups.consume",
            "groups.committed",
            "groups.resume",
            "groups.share",
            "groups.list",
            "groups.describe",
        ],
    ),
    (REBALANCES, &["rebalances.static", "rebalances.cooperative"]),
];

/// The scenario that only some programs have.
const REBALANCES: &str = "rebalances";

/// What runs a client's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// `java` with the jars of this version.
    Java(&'static str),
    /// A script with the interpreter of the virtual environment.
    Python(&'static str),
    /// `node`.
    Node,
    /// A package of the Go module, built before it runs.
    Go(&'static str),
}

impl Runtime {
    /// The directory below `tests/clients`, and below where the libraries are installed.
    fn directory(self) -> &'static str {
        match self {
            Runtime::Java(_) => "java",
            Runtime::Python(_) => "python",
            Runtime::Node => "node",
            Runtime::Go(_) => "go",
        }
    }

    /// The files that `setup.sh` installs from; their text is what it leaves behind as a sign that it did.
    fn lock_files(self) -> &'static [&'static str] {
        match self {
            Runtime::Java(_) => &["pom.xml", "jars.sha256"],
            Runtime::Python(_) => &["requirements.txt"],
            Runtime::Node => &["package-lock.json"],
            Runtime::Go(_) => &["go.mod", "go.sum"],
        }
    }
}

/// A client library.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What runs it.
    pub runtime: Runtime,
    /// Text of its lock file that says the same version.
    pub pin: &'static str,
    /// Checks of what it has not got; any other that it reports as absent is an error.
    pub absent: &'static [&'static str],
}

/// Every client of the matrix.
pub const CLIENTS: [Client; 9] = [
    Client {
        name: "kafka-clients (Java)",
        version: "4.1.1",
        runtime: Runtime::Java("4.1.1"),
        pin: "4.1.1/kafka-clients-4.1.1.jar",
        absent: &[],
    },
    Client {
        name: "kafka-clients (Java)",
        version: "2.8.2",
        runtime: Runtime::Java("2.8.2"),
        pin: "2.8.2/kafka-clients-2.8.2.jar",
        absent: &[],
    },
    Client {
        name: "confluent-kafka (Python)",
        version: "2.16.1",
        runtime: Runtime::Python("confluent.py"),
        pin: "confluent-kafka==2.16.1",
        absent: &[],
    },
    Client {
        name: "kafka-python",
        version: "3.0.12",
        runtime: Runtime::Python("kafka_python.py"),
        pin: "kafka-python==3.0.12",
        absent: &[],
    },
    Client {
        name: "aiokafka",
        version: "0.14.0",
        runtime: Runtime::Python("aio_kafka.py"),
        pin: "aiokafka==0.14.0",
        absent: &[],
    },
    Client {
        name: "franz-go",
        version: "1.22.2",
        runtime: Runtime::Go("franz"),
        pin: "github.com/twmb/franz-go v1.22.2",
        absent: &[],
    },
    Client {
        name: "Sarama",
        version: "1.61.1",
        runtime: Runtime::Go("sarama"),
        pin: "github.com/IBM/sarama v1.61.1",
        absent: &[],
    },
    Client {
        name: "kafka-go",
        version: "0.4.51",
        runtime: Runtime::Go("kafkago"),
        pin: "github.com/segmentio/kafka-go v0.4.51",
        absent: &["records.idempotent"],
    },
    Client {
        name: "KafkaJS",
        version: "2.2.4",
        runtime: Runtime::Node,
        pin: "kafkajs\": \"2.2.4\"",
        absent: &["records.lz4", "records.zstd"],
    },
];

/// What became of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its name.
    pub check: String,
    /// `ok`, `failed` or `absent`.
    pub result: String,
    /// Why, where it is not `ok`.
    pub detail: String,
    /// The topic it left behind for others to look at.
    pub topic: Option<String>,
}

/// `tests/clients` of this repository.
#[must_use]
pub fn programs_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// Where `setup.sh` installs to.
pub(crate) fn installed_dir() -> Result<PathBuf> {
    let of =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = of("CHRONIK_TEST_CLIENTS") {
        return Ok(dir);
    }
    let cache = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("chronik-test-clients"))
}

impl Client {
    /// Name and version.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    /// The scenarios that its program has.
    #[must_use]
    pub fn scenarios(&self) -> Vec<&'static str> {
        let of_rebalances =
            matches!(self.runtime, Runtime::Java(_) | Runtime::Python("confluent.py"));
        let all = SCENARIOS.iter().map(|(scenario, _)| *scenario);
        all.filter(|scenario| *scenario != REBALANCES || of_rebalances).collect()
    }

    /// The text of its lock files, one after the other.
    pub fn locks(&self) -> Result<String> {
        let dir = programs_dir().join(self.runtime.directory());
        let mut text = String::new();
        for file in self.runtime.lock_files() {
            let path = dir.join(file);
            text.push_str(
                &std::fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?,
            );
        }
        Ok(text)
    }

    /// Why it cannot run here; `None` where it can.
    pub fn missing(&self) -> Result<Option<String>> {
        let dir = installed_dir()?.join(self.runtime.directory());
        let locks = self.locks()?;
        if std::fs::read_to_string(dir.join("ready")).is_ok_and(|ready| ready == locks) {
            return Ok(None);
        }
        Ok(Some(match std::fs::read_to_string(dir.join("failed")) {
            Ok(why) => format!("its installation failed: {}", why.trim()),
            Err(_) => "not installed in this version: run tests/clients/setup.sh".to_owned(),
        }))
    }

    /// Its program, without arguments.
    fn command(&self) -> Result<Command> {
        let programs = programs_dir().join(self.runtime.directory());
        let installed = installed_dir()?.join(self.runtime.directory());
        let mut command = match self.runtime {
            Runtime::Java(version) => {
                let mut command = Command::new("java");
                command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
                command.arg(installed.join(version).join("*")).arg(programs.join("Client.java"));
                command
            }
            Runtime::Python(script) => {
                let mut command = Command::new(installed.join("venv/bin/python"));
                command.arg(programs.join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Runtime::Node => {
                let mut command = Command::new("node");
                command.arg(programs.join("client.js"));
                command.env("NODE_PATH", installed.join("node_modules"));
                command
            }
            Runtime::Go(package) => Command::new(build_go(&programs, &installed, package)?),
        };
        // cargo names the folder of the librdkafka it built; a client is to use its own.
        command.env_remove("LD_LIBRARY_PATH");
        Ok(command)
    }

    /// Runs `scenarios` and gives what became of each of their checks, in order.
    pub fn run(&self, bootstrap: &str, scenarios: &[&str]) -> Result<Vec<Outcome>> {
        self.run_replicated(bootstrap, 1, scenarios)
    }

    /// The same with topics that have so many replicas.
    pub fn run_replicated(
        &self,
        bootstrap: &str,
        replicas: usize,
        scenarios: &[&str],
    ) -> Result<Vec<Outcome>> {
        let mut command = self.command()?;
        command.env("CHRONIK_TEST_REPLICAS", replicas.to_string());
        command.arg(bootstrap).args(scenarios);
        let finished = run_to_end(command, RUN_DEADLINE)?;
        let parsed = parse(&finished.stdout, scenarios);
        parsed.with_context(|| format!("{}: {finished:?}", self.title()))
    }
}

/// Builds a program from what is in the caches of `installed`, so that what runs is what is in the repository.
fn build_go(programs: &Path, installed: &Path, package: &str) -> Result<PathBuf> {
    let program = installed.join("bin").join(package);
    let mut command = Command::new("go");
    command.args(["build", "-o"]).arg(&program).arg(format!("./{package}")).current_dir(programs);
    command.env("GOMODCACHE", installed.join("mod")).env("GOCACHE", installed.join("build"));
    command.env("GOFLAGS", "-mod=readonly").env("GOPROXY", "off");
    let built = run_to_end(command, BUILD_DEADLINE)?;
    ensure!(built.status.success(), "go build ./{package}: {}", built.text());
    Ok(program)
}

/// The lines of a program as outcomes; see I2.
fn parse(stdout: &str, scenarios: &[&str]) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut done = false;
    for line in stdout.lines().filter(|line| line.starts_with('{')) {
        ensure!(!done, "a line after the end: {line}");
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let text = |name: &str| line.get(name).and_then(Value::as_str).map(str::to_owned);
        if line.get("done").is_some() {
            done = true;
            continue;
        }
        outcomes.push(Outcome {
            check: text("check").context("a line without a check")?,
            result: text("result").context("a line without a result")?,
            detail: text("detail").unwrap_or_default(),
            topic: text("topic"),
        });
    }
    ensure!(done, "the program did not come to its end");
    let wanted: Vec<&str> = SCENARIOS
        .iter()
        .filter(|(scenario, _)| scenarios.contains(scenario))
        .flat_map(|(_, checks)| checks.iter().copied())
        .collect();
    let found: Vec<&str> = outcomes.iter().map(|outcome| outcome.check.as_str()).collect();
    if found != wanted {
        bail!("checks reported: {found:?}, not {wanted:?}");
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_the_clients_when_their_lock_files_are_read_then_they_pin_the_same_versions() {
        for client in &CLIENTS {
            assert!(client.locks().unwrap().contains(client.pin), "{}", client.title());
        }
    }

    #[test]
    fn given_a_program_that_says_too_little_when_parsed_then_it_is_an_error() {
        let line = |check: &str| format!("{{\"check\": \"{check}\", \"result\": \"ok\"}}\n");
        let all: String = SCENARIOS[0].1.iter().map(|check| line(check)).collect();
        let end = "{\"done\": [\"topics\"]}\n";
        let parsed = parse(&format!("{all}{end}"), &["topics"]).unwrap();
        assert_eq!(parsed.len(), 3);
        assert!(parse(&all, &["topics"]).is_err(), "no end");
        assert!(
            parse(&format!("{}{end}", line("topics.create")), &["topics"]).is_err(),
            "two checks missing"
        );
        assert!(parse(&format!("{all}{all}{end}"), &["topics"]).is_err(), "each check twice");
        assert!(parse(end, &[]).is_ok());
    }
}
