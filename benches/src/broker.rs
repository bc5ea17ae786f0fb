//! A broker as a child process, on ports nobody uses and in a directory of its own.
//!
//! - I1: only the child that was started here is signalled, by its handle, and it never outlives its owner.
//! - I2: all that was written is removed with the owner, also when a measurement fails.
//! - I3: ports lie below the range of ephemeral ports: a client that calls a broker that is down could otherwise be given
//!   that very port, and keep the broker from it.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::clock::{Clock, SECOND_NS};
use crate::interrupt::Watch;
use crate::wire;

/// How long a start may take until the Kafka port answers.
const START_DEADLINE_NS: u64 = 600 * SECOND_NS;
/// Pause between two looks at a broker that starts.
const START_PAUSE: Duration = Duration::from_millis(5);
/// Starts tried when somebody takes a port between choosing and binding it.
const START_ATTEMPTS_MAX: usize = 5;
/// Ports tried before giving up.
const PORT_ATTEMPTS_MAX: usize = 200;
/// Lines of the broker's log that an error shows.
const LOG_TAIL_LINES: usize = 20;

/// How to start a broker.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub server: PathBuf,
    /// Where its directory is made.
    pub data_dir: PathBuf,
    /// Lines of TOML for its configuration file.
    pub settings: Vec<String>,
}

/// A running broker, or one that was killed and can be started again.
#[derive(Debug)]
pub struct Broker {
    watch: Watch,
    dir: TempDir,
    server: PathBuf,
    settings: Vec<String>,
    kafka: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

impl Broker {
    /// Starts a broker without data and waits until its Kafka port answers.
    pub fn launch(launch: &Launch) -> Result<Broker> {
        ensure!(launch.server.is_file(), "--server {} is no file", launch.server.display());
        // The child runs in its own directory.
        let server = launch.server.canonicalize().context("finding the server")?;
        std::fs::create_dir_all(&launch.data_dir)
            .with_context(|| format!("making {}", launch.data_dir.display()))?;
        let dir = tempfile::Builder::new()
            .prefix("chronik-bench-")
            .tempdir_in(launch.data_dir.canonicalize()?)
            .with_context(|| format!("making a directory in {}", launch.data_dir.display()))?;
        let (kafka, admin) = free_ports()?;
        let settings = launch.settings.clone();
        let watch = Watch::over(dir.path().to_path_buf())?;
        let mut broker = Broker { watch, dir, server, settings, kafka, admin, child: None };
        for _ in 1..START_ATTEMPTS_MAX {
            broker.spawn()?;
            match broker.wait_answering() {
                Err(_) if broker.log_tail().contains("taken") => {
                    (broker.kafka, broker.admin) = free_ports()?;
                }
                other => return other.map(|()| broker),
            }
        }
        bail!("no free ports after {START_ATTEMPTS_MAX} starts\n{}", broker.log_tail())
    }

    /// Starts the process, on the data that is there, and waits for nothing.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the broker runs already");
        let config = self.dir.path().join("chronik.toml");
        let mut toml = format!(
            "node_id = 1\ndata_dir = \"{}\"\nkafka_addr = \"{}\"\nadmin_addr = \"{}\"\n",
            self.data_dir().display(),
            self.kafka,
            self.admin
        );
        for line in &self.settings {
            toml.push_str(line);
            toml.push('\n');
        }
        std::fs::write(&config, toml).context("writing the broker's configuration")?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.server);
        command.arg("--config").arg(&config).current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CHRONIK_") {
                command.env_remove(&name);
            }
        }
        let child = command.spawn();
        let child = child.with_context(|| format!("starting {}", self.server.display()))?;
        self.watch.child_is(Some(child.id()));
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
            let answers = wire::connect(self.kafka)
                .and_then(|mut client| wire::require(&mut client, wire::FOR_PRODUCE));
            match answers {
                Ok(()) => return Ok(()),
                Err(error) if clock.now_ns() > START_DEADLINE_NS => {
                    return Err(error.context(format!("no answer\n{}", self.log_tail())));
                }
                Err(_) => std::thread::sleep(START_PAUSE),
            }
        }
    }

    /// How the process ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("the broker does not run")?;
        // Where it has ended this waits for it, and then its id is free for others.
        self.watch.child_is(None);
        let status = child.try_wait().context("looking at the broker")?;
        match status {
            Some(_) => self.child = None,
            None => self.watch.child_is(Some(child.id())),
        }
        Ok(status)
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the broker does not run")?;
        self.watch.child_is(None);
        child.kill().context("killing the broker")?;
        child.wait().context("waiting for the broker")?;
        Ok(())
    }

    /// Memory it holds now.
    pub fn memory_bytes(&self) -> Result<u64> {
        let child = self.child.as_ref().context("the broker does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))
            .context("reading the broker's memory")?;
        resident_bytes(&status).context("no VmRSS in the broker's status")
    }

    /// Where Kafka clients connect.
    #[must_use]
    pub fn kafka(&self) -> SocketAddr {
        self.kafka
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("broker.log")
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
        self.watch.child_is(None);
        if let Some(child) = &mut self.child {
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

/// Two ports that were free a moment ago.
fn free_ports() -> Result<(SocketAddr, SocketAddr)> {
    let below = ephemeral_ports_start();
    let mut random = StdRng::from_os_rng();
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for _ in 0..PORT_ATTEMPTS_MAX {
        let port = random.random_range(10_000..below - 1);
        let (kafka, admin) = (at(port), at(port + 1));
        if TcpListener::bind(kafka).is_ok() && TcpListener::bind(admin).is_ok() {
            return Ok((kafka, admin));
        }
    }
    bail!("no two free ports between 10000 and {below}")
}

fn ephemeral_ports_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|start| *start > 11_000)
        .unwrap_or(32_768)
}

/// The newest file of each shard's write-ahead log: the one that a start reads from end to end.
pub fn active_wal_files(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut newest = Vec::new();
    let shards = data_dir.join("shards");
    for shard in
        std::fs::read_dir(&shards).with_context(|| format!("listing {}", shards.display()))?
    {
        let wal = shard?.path().join("wal");
        let mut files = Vec::new();
        for file in std::fs::read_dir(&wal).with_context(|| format!("listing {}", wal.display()))? {
            let path = file?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Files made ahead of use have other names.
            if name.starts_with(|c: char| c.is_ascii_digit()) && name.ends_with(".wal") {
                files.push(path);
            }
        }
        newest.extend(files.into_iter().max());
    }
    newest.sort();
    Ok(newest)
}

/// An error where the disk of `dir` has not `bytes` to spare.
pub fn ensure_room(dir: &Path, bytes: u64) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let handle = File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    let disk = rustix::fs::fstatvfs(&handle).context("asking for room on the disk")?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let (need_mib, free_mib) = (bytes >> 20, free >> 20);
    ensure!(free >= bytes, "{} has {free_mib} MiB left, {need_mib} MiB are needed", dir.display());
    Ok(())
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

    #[test]
    fn given_a_data_dir_when_the_active_files_are_asked_then_they_are_the_newest_of_each_shard() {
        let dir = tempfile::tempdir().unwrap();
        for (shard, names) in
            [("000", vec!["01.wal", "02.wal", "spare-03.wal"]), ("001", vec!["07.wal"])]
        {
            let wal = dir.path().join("shards").join(shard).join("wal");
            std::fs::create_dir_all(&wal).unwrap();
            for name in names {
                std::fs::write(wal.join(name), "").unwrap();
            }
        }
        let found = active_wal_files(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["02.wal", "07.wal"]);
    }

    #[test]
    fn given_a_server_that_is_none_when_launched_then_the_error_names_it() {
        let launch = Launch {
            server: PathBuf::from("/nowhere/chronik-server"),
            data_dir: std::env::temp_dir(),
            settings: Vec::new(),
        };
        let error = Broker::launch(&launch).unwrap_err().to_string();
        assert!(error.contains("/nowhere/chronik-server"), "{error}");
    }

    #[test]
    fn given_more_than_any_disk_has_when_room_is_asked_then_it_is_an_error() {
        assert!(ensure_room(&std::env::temp_dir(), u64::MAX).is_err());
        assert!(ensure_room(&std::env::temp_dir(), 0).is_ok());
    }
}
