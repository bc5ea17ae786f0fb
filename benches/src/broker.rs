//! A broker as a child process: its configuration, its start, its end, and what it costs meanwhile.
//!
//! - I1: only the child that was started here is signalled, by its handle, and it never outlives its owner.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::clock::{Clock, SECOND_NS};
use crate::interrupt::Watch;
use crate::ports::Ports;
use crate::usage::process_cpu;
use crate::wire;

/// How long a start may take until the Kafka port answers.
const START_DEADLINE_NS: u64 = 600 * SECOND_NS;
/// How long a broker may take to leave after SIGTERM.
const STOP_DEADLINE_NS: u64 = 60 * SECOND_NS;
/// Pause between two looks at a broker that starts or stops.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// How long one look at a broker that starts may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of the broker's log that an error shows.
const LOG_TAIL_LINES: usize = 20;

/// What a broker is told, and where it lives.
#[derive(Debug)]
pub struct Identity {
    /// Its node id.
    pub id: i32,
    /// Its own directory, which is there.
    pub dir: PathBuf,
    /// The program.
    pub server: PathBuf,
    /// Lines of TOML for its configuration file.
    pub settings: Vec<String>,
    /// Where it listens.
    pub ports: Ports,
}

/// A broker that runs, or can be started on what it has stored.
#[derive(Debug)]
pub struct Broker {
    watch: Arc<Watch>,
    identity: Identity,
    child: Option<Child>,
}

impl Broker {
    /// One that does not run yet.
    #[must_use]
    pub fn new(watch: Arc<Watch>, identity: Identity) -> Broker {
        Broker { watch, identity, child: None }
    }

    /// Starts the process, on the data that is there, and waits for nothing.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the broker runs already");
        let Identity { id, dir, server, settings, ports } = &self.identity;
        let config = dir.join("chronik.toml");
        let mut toml = format!(
            "node_id = {id}\ndata_dir = \"{}\"\nkafka_addr = \"{}\"\nadmin_addr = \"{}\"\n",
            self.data_dir().display(),
            ports.kafka,
            ports.admin
        );
        for line in settings {
            toml.push_str(line);
            toml.push('\n');
        }
        std::fs::write(&config, toml).context("writing the broker's configuration")?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(server);
        command.arg("--config").arg(&config).current_dir(dir).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CHRONIK_") {
                command.env_remove(&name);
            }
        }
        let child = command.spawn().with_context(|| format!("starting {}", server.display()))?;
        self.watch.hold(child.id());
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the Kafka port answers; an error with the end of the log when the process ends first.
    pub fn wait_answering(&mut self) -> Result<()> {
        let clock = Clock::start();
        loop {
            if let Some(status) = self.ended()? {
                bail!("the broker ended at its start: {status}\n{}", self.log_tail());
            }
            let answers = wire::connect_within(self.kafka(), LOOK_TIMEOUT)
                .and_then(|mut client| wire::require(&mut client, wire::FOR_PRODUCE));
            match answers {
                Ok(()) => return Ok(()),
                Err(error) if clock.now_ns() > START_DEADLINE_NS => {
                    return Err(error.context(format!("no answer\n{}", self.log_tail())));
                }
                Err(_) => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    /// How the process ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("the broker does not run")?;
        // Where it has ended this waits for it, and then its id is free for others.
        self.watch.release(child.id());
        let status = child.try_wait().context("looking at the broker")?;
        match status {
            Some(_) => self.child = None,
            None => self.watch.hold(child.id()),
        }
        Ok(status)
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the broker does not run")?;
        self.watch.release(child.id());
        child.kill().context("killing the broker")?;
        child.wait().context("waiting for the broker")?;
        Ok(())
    }

    /// SIGSTOP: it says nothing more, and its connections stay.
    pub fn hang(&self) -> Result<()> {
        self.signal(Signal::STOP).context("halting the broker")
    }

    /// SIGCONT.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT).context("letting the broker go on")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("no process id")?;
        // Not waited for yet, so the id is still the child's.
        Ok(kill_process(pid, signal)?)
    }

    /// SIGTERM, and waits until the process has left by itself.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM).context("stopping the broker")?;
        let clock = Clock::start();
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the broker left with {status}\n{}", self.log_tail()),
                None if clock.now_ns() > STOP_DEADLINE_NS => {
                    bail!("the broker does not leave\n{}", self.log_tail())
                }
                None => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    /// Deletes all that it has stored. It must not run.
    pub fn wipe(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the broker runs");
        let dir = self.data_dir();
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))
    }

    /// Its node id.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.identity.id
    }

    /// Whether it was started and not ended by us.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the broker does not run")?.id())
    }

    /// Memory it holds now.
    pub fn memory_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))
            .context("reading the broker's memory")?;
        resident_bytes(&status).context("no VmRSS in the broker's status")
    }

    /// Processor time it has used since its start.
    pub fn cpu(&self) -> Result<Duration> {
        process_cpu(self.pid()?)
    }

    /// Where Kafka clients connect.
    #[must_use]
    pub fn kafka(&self) -> SocketAddr {
        self.identity.ports.kafka
    }

    /// Where it answers HTTP.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.identity.ports.admin
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.identity.dir.join("data")
    }

    /// The directory that it lives in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.identity.dir
    }

    fn log_path(&self) -> PathBuf {
        self.identity.dir.join("broker.log")
    }

    /// The end of what it wrote.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            self.watch.release(child.id());
            // Both fail only for a process that is gone already.
            let _killed = child.kill();
            let _waited = child.wait();
        }
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_process_status_when_read_then_its_resident_memory_is_found() {
        assert_eq!(
            resident_bytes("Name:\tx\nVmHWM:\t  9 kB\nVmRSS:\t  1234 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }
}
