//! Brokers that are started here, one or several as a cluster, with all that they write in one temporary directory.
//!
//! - I1: all that was written is removed with the owner, also when a measurement fails.
//! - I2: a broker is killed before the directory that it writes to is removed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tempfile::TempDir;

use crate::broker::{Broker, Identity};
use crate::clock::{Clock, duration_ns};
use crate::flags;
use crate::interrupt::Watch;
use crate::ports::free_ports;
use crate::status::Status;

/// Starts tried when somebody takes a port between choosing and binding it.
const START_ATTEMPTS_MAX: usize = 5;
/// Pause between two looks at a cluster that is to come in order.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How long a cluster must look in order until it is believed: between two steps of a change nothing may be behind.
const STEADY: Duration = Duration::from_millis(500);

/// The nodes of a cluster that a command starts.
pub const NODES: u16 = 3;

/// How to start brokers.
#[derive(Debug, Clone, Args)]
pub struct Launch {
    /// The broker's program, chronik-server
    #[arg(long, value_name = "PATH")]
    pub server: PathBuf,
    /// Where a directory is made, and removed at the end
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub data_dir: PathBuf,
    /// A setting of every broker as in its TOML file, such as shards=2; once for each
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = flags::setting)]
    pub settings: Vec<String>,
}

/// Brokers and what they wrote.
#[derive(Debug)]
pub struct Cluster {
    // Dropped before the directory.
    brokers: Vec<Broker>,
    dir: TempDir,
}

impl Cluster {
    /// So many brokers without data, none of them started. More than one have each other on their list.
    pub fn lay_out(launch: &Launch, brokers: u16) -> Result<Cluster> {
        ensure!(launch.server.is_file(), "--server {} is no file", launch.server.display());
        // The child runs in its own directory.
        let server = launch.server.canonicalize().context("finding the server")?;
        std::fs::create_dir_all(&launch.data_dir)
            .with_context(|| format!("making {}", launch.data_dir.display()))?;
        let dir = tempfile::Builder::new()
            .prefix("chronik-bench-")
            .tempdir_in(launch.data_dir.canonicalize()?)
            .with_context(|| format!("making a directory in {}", launch.data_dir.display()))?;
        let watch = Arc::new(Watch::over(dir.path().to_path_buf())?);
        let ports = free_ports(brokers)?;
        let mut settings = launch.settings.clone();
        if brokers > 1 {
            let nodes = (1..).zip(&ports).map(|(id, ports)| {
                let (kafka, raft) = (ports.kafka, ports.raft);
                format!("{{ id = {id}, kafka_addr = \"{kafka}\", raft_addr = \"{raft}\" }}")
            });
            settings.push(format!("cluster.nodes = [{}]", nodes.collect::<Vec<_>>().join(", ")));
            // A node that was wiped is one on purpose.
            settings.push("cluster.replace_after_ms = 0".to_owned());
        }
        let mut laid_out = Vec::new();
        for (id, ports) in (1..).zip(ports) {
            let own = dir.path().join(format!("node-{id}"));
            std::fs::create_dir(&own).with_context(|| format!("making {}", own.display()))?;
            let (server, settings) = (server.clone(), settings.clone());
            let identity = Identity { id, dir: own, server, settings, ports };
            laid_out.push(Broker::new(Arc::clone(&watch), identity));
        }
        Ok(Cluster { brokers: laid_out, dir })
    }

    /// Starts so many brokers without data and waits until their Kafka ports answer.
    pub fn launch(launch: &Launch, brokers: u16) -> Result<Cluster> {
        for _ in 1..START_ATTEMPTS_MAX {
            let mut cluster = Cluster::lay_out(launch, brokers)?;
            match cluster.start_all() {
                Err(_) if cluster.log_tails().contains("taken") => {}
                other => return other.map(|()| cluster),
            }
        }
        bail!("no free ports after {START_ATTEMPTS_MAX} starts")
    }

    /// Three brokers that are a cluster in order.
    pub fn launch_three(launch: &Launch) -> Result<Cluster> {
        let mut cluster = Cluster::launch(launch, NODES)?;
        cluster.wait_in_sync(1, IN_SYNC_DEADLINE)?;
        Ok(cluster)
    }

    fn start_all(&mut self) -> Result<()> {
        self.brokers.iter_mut().try_for_each(Broker::spawn)?;
        self.brokers.iter_mut().try_for_each(Broker::wait_answering)
    }

    /// The brokers, the one with id 1 first.
    pub fn brokers(&mut self) -> &mut [Broker] {
        &mut self.brokers
    }

    /// The broker with this id.
    pub fn broker(&mut self, id: i32) -> Result<&mut Broker> {
        let found = self.brokers.iter_mut().find(|broker| broker.id() == id);
        found.with_context(|| format!("no broker has id {id}"))
    }

    /// Where Kafka clients connect, the broker with id 1 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.brokers.iter().map(Broker::kafka).collect()
    }

    /// A directory for files of the measurement itself, on the brokers' disk; removed with theirs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The ends of all logs.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let tails = self.brokers.iter().map(|broker| {
            format!("end of the log of node {}:\n{}", broker.id(), broker.log_tail())
        });
        tails.collect::<Vec<_>>().join("\n")
    }

    /// An error where a broker that is to run has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        for broker in self.brokers.iter_mut().filter(|broker| broker.is_started()) {
            if let Some(status) = broker.ended()? {
                bail!("node {} ended: {status}\n{}", broker.id(), broker.log_tail());
            }
        }
        Ok(())
    }

    /// Waits until the broker with the id `asked` says that every node is up, every partition is led and no replica
    /// behind, for a while on end; from when on that was so, as `clock` shows it.
    pub fn wait_in_sync_ns(
        &mut self,
        asked: i32,
        clock: Clock,
        deadline: Duration,
        and: &mut dyn FnMut() -> Option<String>,
    ) -> Result<u64> {
        let admin = self.broker(asked)?.admin();
        let nodes = self.brokers.len();
        let begun_ns = clock.now_ns();
        let mut since_ns = None;
        loop {
            self.ensure_running()?;
            let now_ns = clock.now_ns();
            let trouble = match Status::read(admin) {
                Ok(status) => status.trouble(nodes).or_else(&mut *and),
                Err(error) => Some(format!("{error:#}")),
            };
            match trouble {
                None => {
                    let since_ns = *since_ns.get_or_insert(now_ns);
                    if clock.now_ns().saturating_sub(since_ns) >= duration_ns(STEADY) {
                        return Ok(since_ns);
                    }
                }
                Some(trouble) if now_ns.saturating_sub(begun_ns) > duration_ns(deadline) => {
                    bail!("not in sync after {deadline:?}: {trouble}\n{}", self.log_tails())
                }
                Some(_) => since_ns = None,
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Waits until the broker with the id `asked` says that every node is up; when that was, as `clock` shows it.
    pub fn wait_up_ns(&mut self, asked: i32, clock: Clock, deadline: Duration) -> Result<u64> {
        let admin = self.broker(asked)?.admin();
        let nodes = self.brokers.len();
        loop {
            self.ensure_running()?;
            let now_ns = clock.now_ns();
            if Status::read(admin).is_ok_and(|status| status.are_up(nodes)) {
                return Ok(now_ns);
            }
            if now_ns > duration_ns(deadline) {
                bail!("not in sync after {deadline:?}: a node is down\n{}", self.log_tails());
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// [`Cluster::wait_in_sync_ns`] without a clock.
    pub fn wait_in_sync(&mut self, asked: i32, deadline: Duration) -> Result<()> {
        self.wait_in_sync_ns(asked, Clock::start(), deadline, &mut || None).map(|_since_ns| ())
    }
}

/// How long a cluster may take to come in order where nothing else is said.
pub const IN_SYNC_DEADLINE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_server_that_is_none_when_launched_then_the_error_names_it() {
        let launch = Launch {
            server: PathBuf::from("/nowhere/chronik-server"),
            data_dir: std::env::temp_dir(),
            settings: Vec::new(),
        };
        let error = Cluster::launch(&launch, 1).unwrap_err().to_string();
        assert!(error.contains("/nowhere/chronik-server"), "{error}");
    }
}
