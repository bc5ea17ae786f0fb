//! The program in `tests/clients/java/encoder`, which asks a broker every advertised version of every API with the message
//! classes of Apache Kafka: how it is compiled and run, and what it says.
//!
//! The broker and the tests in Rust share one codec. What it has wrong on both sides is seen by this program alone.
//!
//! - I1: a run that does not come to its end is an error.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::binary::run_to_end;
use crate::clients::{CLIENTS, Client, Runtime, installed_dir, programs_dir};
use crate::scratch::ScratchDir;

const VERSION: &str = "4.1.1";
/// How long the compiler and the program may take, on a machine that does other things, too.
const COMPILE_DEADLINE: Duration = Duration::from_secs(90);
const RUN_DEADLINE: Duration = Duration::from_secs(240);

/// One variety of one version, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The API's key.
    pub api: i16,
    /// Its version.
    pub version: i16,
    /// How the request was filled.
    pub variety: String,
    /// What was not as it is to be.
    pub failure: Option<String>,
}

fn client() -> Result<&'static Client> {
    let of_version = |client: &&Client| client.runtime == Runtime::Java(VERSION);
    CLIENTS.iter().find(of_version).with_context(|| format!("no kafka-clients {VERSION}"))
}

/// Why it cannot run here; `None` where it can.
pub fn missing() -> Result<Option<String>> {
    client()?.missing()
}

/// Asks the broker at `addr` all that it advertises.
pub fn ask_everything(addr: &str) -> Result<Vec<Asked>> {
    let classes = ScratchDir::new("encoder")?;
    let jars = files(&installed_dir()?.join("java").join(VERSION), "jar")?;
    let sources = files(&programs_dir().join("java/encoder"), "java")?;
    let mut compiler = Command::new("java");
    compiler.args(["-m", "jdk.compiler/com.sun.tools.javac.Main", "-cp"]);
    compiler.arg(std::env::join_paths(&jars)?).arg("-d").arg(classes.path()).args(sources);
    let compiled = run_to_end(compiler, COMPILE_DEADLINE)?;
    ensure!(compiled.status.success(), "javac: {}", compiled.text());
    let path = std::iter::once(classes.path()).chain(jars.iter().map(PathBuf::as_path));
    let path = std::env::join_paths(path)?;
    let mut program = Command::new("java");
    program.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
    program.arg(path).arg("Encoder").arg(addr);
    let finished = run_to_end(program, RUN_DEADLINE)?;
    parse(&finished.stdout).with_context(|| finished.stderr)
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        files.push(entry?.path());
    }
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    Ok(files)
}

/// The program's lines; see I1.
fn parse(stdout: &str) -> Result<Vec<Asked>> {
    let mut asked = Vec::new();
    let mut is_done = false;
    for line in stdout.lines() {
        ensure!(!is_done, "a line after the end: {line}");
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        is_done = value.get("done").is_some();
        if is_done {
            continue;
        }
        let number = |name: &str| value.get(name).and_then(Value::as_i64);
        let number = |name: &str| number(name).and_then(|number| i16::try_from(number).ok());
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        asked.push(Asked {
            api: number("api").context("a line without an API")?,
            version: number("version").context("a line without a version")?,
            variety: text("variety").context("a line without a variety")?,
            failure: text("detail"),
        });
    }
    ensure!(is_done, "the program did not come to its end, but to {:?}", asked.last());
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_program_that_says_too_little_when_parsed_then_it_is_an_error() {
        let line = "{\"api\": 3, \"version\": 1, \"variety\": \"meant\", \"detail\": \"no\"}\n";
        let asked = parse(&format!("{line}{{\"done\": 1}}\n")).unwrap();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].failure.as_deref(), Some("no"));
        assert!(parse(line).is_err(), "no end");
        assert!(parse("{\"api\": 3}\n{\"done\": 1}\n").is_err(), "half a line");
    }
}
