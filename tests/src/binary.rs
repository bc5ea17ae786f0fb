//! `chronik-server`, the program under test: where it is, and running it to its end.
//!
//! Built once per test process by `cargo build`, with the profile this test was built with, unless `CHRONIK_SERVER_BIN`
//! names one. Long-running brokers are [`crate::process`]'s.

#![expect(clippy::disallowed_methods, reason = "the harness waits for real processes on real time")]

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::scratch::{ScratchDir, profile_dir, target_dir};

/// The path of the program, which is built when this is called first.
pub fn server_binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BINARY.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

fn find_or_build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CHRONIK_SERVER_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "CHRONIK_SERVER_BIN={} is no file", path.display());
        return Ok(path);
    }
    let directory = profile_dir()?;
    let profile = match directory.file_name().and_then(OsStr::to_str) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("no profile in {}", directory.display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--bin", "chronik-server", "--profile", profile])
        .arg("--target-dir")
        .arg(target_dir()?)
        .current_dir(workspace)
        .output()
        .context("running cargo build")?;
    ensure!(
        built.status.success(),
        "cargo build --bin chronik-server failed: {}\n{}",
        built.status,
        String::from_utf8_lossy(&built.stderr)
    );
    Ok(directory.join("chronik-server"))
}

/// A command for the program, free of what the environment of the test would tell it.
pub fn server_command() -> Result<Command> {
    let mut command = Command::new(server_binary()?);
    for (name, _) in std::env::vars_os() {
        let of_the_broker = name.to_str().is_some_and(|name| {
            ["CHRONIK_", "OBJECT_STORE_", "S3_"].iter().any(|prefix| name.starts_with(prefix))
        });
        if of_the_broker {
            command.env_remove(&name);
        }
    }
    command.env("RUST_LOG", "info").env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    Ok(command)
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Both outputs, for messages and for searching.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs the program with `args` until it ends by itself. One that still runs at `deadline` is killed and an error.
pub fn run_server<S: AsRef<OsStr>>(args: &[S], deadline: Duration) -> Result<Finished> {
    let mut command = server_command()?;
    command.args(args);
    run_to_end(command, deadline)
}

/// Runs any command until it ends by itself; see [`run_server`]. Output goes through files, so it can't block.
pub fn run_to_end(mut command: Command, deadline: Duration) -> Result<Finished> {
    let scratch = ScratchDir::new("run")?;
    let (stdout, stderr) = (scratch.path().join("stdout"), scratch.path().join("stderr"));
    command.stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let status = wait_with_deadline(&mut child, deadline)?;
    let read = |path: &Path| -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
    };
    let (stdout, stderr) = (read(&stdout)?, read(&stderr)?);
    match status {
        Some(status) => Ok(Finished { status, stdout, stderr }),
        None => bail!("{command:?} still ran after {deadline:?}; it wrote:\n{stdout}{stderr}"),
    }
}

/// Waits for a child to end. `None`: it did not, and was killed.
pub(crate) fn wait_with_deadline(
    child: &mut Child,
    deadline: Duration,
) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
