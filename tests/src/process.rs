//! A real broker process: started, watched, killed, started again on the same ports and the same data.
//!
//! Never signals a process it did not start, and leaves nothing behind: neither a process nor a file.
//!
//! - I1: a broker is handed out only when `/ready` has answered 200.
//! - I2: when a test fails, the end of the broker's log is printed.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{DirEntry, File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::binary::{server_command, wait_with_deadline};
use crate::http::{self, Metrics};
use crate::netns::Namespace;
use crate::scratch::{Ports, ScratchDir, wait_for};

/// How long a start may take: recovery of a small log on a loaded machine.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long a broker may take to leave after SIGTERM.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(30);
/// Starts tried when somebody takes a port between choosing and binding it.
const START_ATTEMPTS_MAX: usize = 5;
/// Lines of the log printed when a test fails.
const LOG_TAIL_LINES: usize = 60;

/// What a broker's configuration file says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `node_id`.
    pub node_id: u32,
    /// `shards`: fixed when the data directory is made.
    pub shards: u16,
    /// `wal.file_bytes`: small, so that files roll in a test.
    pub wal_file_bytes: u64,
    /// The data directory; one inside the broker's own scratch directory where none is given.
    pub data_dir: Option<PathBuf>,
    /// `wal.ballast_bytes`: small, so that a start writes little.
    pub ballast_bytes: u64,
    /// `cluster.replace_after_ms`: short, so that a node that was wiped comes back soon.
    pub replace_after_ms: Option<u64>,
    /// More lines of TOML at the top level.
    pub top: String,
    /// Tables of TOML behind all that.
    pub tables: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            node_id: 1,
            shards: 2,
            wal_file_bytes: 8 << 20,
            data_dir: None,
            ballast_bytes: 1 << 20,
            replace_after_ms: Some(500),
            top: String::new(),
            tables: String::new(),
        }
    }
}

impl Settings {
    /// The settings of most tests.
    #[must_use]
    pub fn new() -> Settings {
        Settings::default()
    }

    /// With one more line at the top level of the file.
    #[must_use]
    pub fn with_top(mut self, line: &str) -> Settings {
        self.top.push_str(line);
        self.top.push('\n');
        self
    }

    /// With one more table at the end of the file.
    #[must_use]
    pub fn with_table(mut self, table: &str) -> Settings {
        self.tables.push_str(table);
        self
    }

    /// The file as TOML.
    #[must_use]
    pub fn to_toml(&self, data_dir: &Path, ports: &Ports) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _written = writeln!(
            text,
            "node_id = {}\ndata_dir = \"{}\"\nkafka_addr = \"{}\"\nadmin_addr = \"{}\"\nshards = {}\n\
             wal.file_bytes = {}\nwal.ballast_bytes = {}\n{}\n{}\n",
            self.node_id,
            data_dir.display(),
            ports.kafka_addr(),
            ports.admin_addr(),
            self.shards,
            self.wal_file_bytes,
            self.ballast_bytes,
            self.top,
            self.tables,
        );
        text
    }
}

/// What a client test talks to: a broker of its own, or the one that `CHRONIK_TEST_BOOTSTRAP` names. With Apache Kafka
/// behind that name the tests themselves are put to the test.
#[derive(Debug)]
pub struct Served {
    broker: Option<Broker>,
    addr: SocketAddr,
}

impl Served {
    /// Starts a broker with `settings`, or takes the one that is named.
    pub fn with(settings: Settings) -> Result<Served> {
        if let Ok(addr) = std::env::var("CHRONIK_TEST_BOOTSTRAP") {
            let addr = addr.parse().context("CHRONIK_TEST_BOOTSTRAP is no IP:PORT")?;
            return Ok(Served { broker: None, addr });
        }
        let broker = Broker::start(settings)?;
        Ok(Served { addr: broker.ports().kafka_addr(), broker: Some(broker) })
    }

    /// Starts a broker with the settings of most tests, or takes the one that is named.
    pub fn new() -> Result<Served> {
        Served::with(Settings::new())
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `host:port` for Kafka clients.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.addr.to_string()
    }

    /// The broker, unless it is somebody else's.
    pub fn own(&mut self) -> Option<&mut Broker> {
        self.broker.as_mut()
    }
}

/// A topic name nobody has used on this broker.
#[must_use]
pub fn fresh_name(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// A broker and all that belongs to it. Dropping it kills the process and removes its files.
#[derive(Debug)]
pub struct Broker {
    settings: Settings,
    scratch: ScratchDir,
    data_dir: PathBuf,
    ports: Ports,
    namespace: Option<Arc<Namespace>>,
    child: Option<Child>,
}

impl Broker {
    /// Starts a broker with an empty data directory and waits until it is ready.
    pub fn start(settings: Settings) -> Result<Broker> {
        let mut broker = Broker::on_ports(settings, Ports::take()?)?;
        for _ in 1..START_ATTEMPTS_MAX {
            match broker.start_again() {
                Err(_) if broker.log_contains("port is taken") => broker.ports = Ports::take()?,
                other => return other.map(|()| broker),
            }
        }
        broker.start_again().map(|()| broker)
    }

    /// A broker with an empty data directory that is not started yet.
    pub fn on_ports(settings: Settings, ports: Ports) -> Result<Broker> {
        let scratch = ScratchDir::new("broker")?;
        let data_dir = settings.data_dir.clone().unwrap_or_else(|| scratch.path().join("data"));
        Ok(Broker { settings, scratch, data_dir, ports, namespace: None, child: None })
    }

    /// The same, whose processes live in a network namespace.
    pub fn in_namespace(
        settings: Settings,
        ports: Ports,
        namespace: Arc<Namespace>,
    ) -> Result<Broker> {
        let mut broker = Broker::on_ports(settings, ports)?;
        broker.namespace = Some(namespace);
        Ok(broker)
    }

    /// Starts the broker on the ports and the data it had, and waits until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts the process and does not wait for anything.
    pub fn spawn(&mut self) -> Result<()> {
        assert!(self.child.is_none(), "the broker runs already");
        let config = self.config_path();
        std::fs::write(&config, self.settings.to_toml(&self.data_dir, &self.ports))?;
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = server_command()?;
        command.arg("--config").arg(&config).stdout(log.try_clone()?).stderr(log);
        command.current_dir(self.scratch.path());
        if let Some(wait) = self.settings.replace_after_ms {
            command.env("CHRONIK_CLUSTER_REPLACE_AFTER_MS", wait.to_string());
        }
        let spawned = match &self.namespace {
            Some(namespace) => namespace.run(|| command.spawn()),
            None => command.spawn(),
        };
        self.child = Some(spawned.with_context(|| format!("starting {command:?}"))?);
        Ok(())
    }

    /// Waits until `/ready` answers 200; an error with the log's end when the process ends first or time is up.
    pub fn wait_ready(&mut self) -> Result<()> {
        let admin = self.ports.admin_addr();
        let child = self.child.as_mut().context("the broker was not started")?;
        let ended = wait_for("the broker is ready", READY_DEADLINE, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Some(status));
            }
            http::get(admin, "/ready").is_ok_and(|answer| answer.status == 200).then_some(None)
        });
        match ended {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                self.child = None;
                bail!("the broker ended at its start: {status}\n{}", self.log_tail())
            }
            Err(error) => bail!("{error}\n{}", self.log_tail()),
        }
    }

    /// Whether `/ready` answers 200 now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        http::get(self.ports.admin_addr(), "/ready").is_ok_and(|answer| answer.status == 200)
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the broker does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and does not wait.
    pub fn signal_terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGSTOP, and waits until all of its threads have stopped: it is there, its connections are open, and it does
    /// nothing.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let child = self.child.as_ref().context("the broker does not run")?;
        let tasks = format!("/proc/{}/task", child.id());
        wait_for("all threads have stopped", TERMINATE_DEADLINE, || {
            let mut tasks = std::fs::read_dir(&tasks).ok()?;
            let is_stopped = |task: std::io::Result<DirEntry>| {
                let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
                // The state follows the name, which is in brackets.
                stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')))
            };
            tasks.all(is_stopped).then_some(())
        })
    }

    /// SIGCONT: goes on where [`Broker::pause`] stopped it.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the broker does not run")?;
        kill_process(Pid::from_child(child), signal)?;
        Ok(())
    }

    /// Waits for a process that was told to leave; an error when it does not in time.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the broker does not run")?;
        wait_with_deadline(&mut child, TERMINATE_DEADLINE)?.with_context(|| {
            format!(
                "the broker still ran {TERMINATE_DEADLINE:?} after SIGTERM\n{}",
                self.log_tail()
            )
        })
    }

    /// SIGTERM, then [`Broker::wait_exit`].
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal_terminate()?;
        self.wait_exit()
    }

    /// Whether the process that was started last still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// `host:port` for Kafka clients.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.ports.kafka_addr().to_string()
    }

    /// Has it keep its data elsewhere from its next start on.
    pub fn set_data_dir(&mut self, data_dir: PathBuf) {
        self.data_dir = data_dir;
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.scratch.path().join("chronik.toml")
    }

    /// Its settings, to be changed before the next start.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("broker.log")
    }

    /// All it has written, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether its log has `text` anywhere, in any case.
    #[must_use]
    pub fn log_contains(&self, text: &str) -> bool {
        self.log().to_lowercase().contains(&text.to_lowercase())
    }

    /// What it counts, as its admin port says it.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&http::get(self.ports().admin_addr(), "/metrics")?.body)
    }

    /// The end of its log, between two lines that name it.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("--- end of the broker's log ---\n{}\n---", tail.join("\n"))
    }

    /// Memory it holds now, in bytes.
    pub fn memory_bytes(&self) -> Result<u64> {
        self.memory_figure("VmRSS:")
    }

    /// The most memory it ever held, in bytes.
    pub fn memory_peak_bytes(&self) -> Result<u64> {
        self.memory_figure("VmHWM:")
    }

    fn memory_figure(&self, name: &str) -> Result<u64> {
        let child = self.child.as_ref().context("the broker does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no figure")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// The files of all WALs that are in use (not the spare ones), sorted by path.
    pub fn wal_files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for shard in std::fs::read_dir(self.data_dir.join("shards"))? {
            for file in std::fs::read_dir(shard?.path().join("wal"))? {
                let path = file?.path();
                let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
                if name.starts_with(|c: char| c.is_ascii_digit()) && name.ends_with(".wal") {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
            keep_log(&self.log_path());
        }
        if let Some(child) = &mut self.child {
            // Both fail only for a process that is gone already.
            let _killed = child.kill();
            let _waited = child.wait();
        }
    }
}

/// Copies the log of a failed test to `CHRONIK_KEEP_LOGS`, where that is set.
fn keep_log(log: &Path) {
    let Some(dir) = std::env::var_os("CHRONIK_KEEP_LOGS") else { return };
    let name = format!("broker-{}.log", std::process::id());
    let kept = File::open(log).and_then(|mut from| {
        let mut to =
            OpenOptions::new().create(true).append(true).open(Path::new(&dir).join(name))?;
        std::io::copy(&mut from, &mut to)
    });
    if let Err(error) = kept {
        eprintln!("the broker's log could not be kept: {error}");
    }
}
