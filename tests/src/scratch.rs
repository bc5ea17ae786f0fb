//! Places for a test to work in: directories on a real disk, ports nobody uses, waiting for a condition.
//!
//! Everything made here is removed again when its owner is dropped. Nothing here knows the broker.
//!
//! - I1: a scratch directory is never on tmpfs: there `O_DIRECT` is not real and unaligned writes pass unseen.
//! - I2: a port given out lies below the range of ephemeral ports. A client that reconnects to a broker that is down
//!   would otherwise be given that very port by the kernel one day, connect to itself, and keep the broker from it.

#![expect(clippy::disallowed_methods, reason = "the harness waits for real processes on real time")]

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// `f_type` of tmpfs in `statfs(2)`.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// How often [`wait_for`] looks.
const WAIT_POLL: Duration = Duration::from_millis(5);

/// Ports tried before giving up.
const PORT_ATTEMPTS_MAX: usize = 200;

/// The Kafka port of a broker with an address of its own.
const KAFKA_PORT: u16 = 9092;
/// Distance from the Kafka port to the Raft port and to the admin port, as the broker has it by default.
const RAFT_PORT_DISTANCE: u16 = 100;
const ADMIN_PORT_DISTANCE: u16 = 200;

/// A directory on a real disk that goes away with its owner.
#[derive(Debug)]
pub struct ScratchDir {
    dir: tempfile::TempDir,
}

impl ScratchDir {
    /// Makes one. `name` is only there for whoever finds it after a kill of the test itself.
    pub fn new(name: &str) -> Result<ScratchDir> {
        let base = scratch_base()?;
        let dir = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(&base)
            .with_context(|| format!("making a directory under {}", base.display()))?;
        Ok(ScratchDir { dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// The first of `CHRONIK_TEST_DIR`, `target/tmp` and `/var/tmp` that is on a disk.
fn scratch_base() -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(dir) = std::env::var_os("CHRONIK_TEST_DIR") {
        candidates.push(PathBuf::from(dir));
    }
    candidates.push(target_dir()?.join("tmp"));
    candidates.push(PathBuf::from("/var/tmp"));
    for dir in &candidates {
        if std::fs::create_dir_all(dir).is_ok() && !is_tmpfs(dir)? {
            return Ok(dir.clone());
        }
    }
    bail!("none of {candidates:?} is on a disk (tmpfs has no O_DIRECT); set CHRONIK_TEST_DIR")
}

fn is_tmpfs(dir: &Path) -> Result<bool> {
    let stat = rustix::fs::statfs(dir).with_context(|| format!("statfs {}", dir.display()))?;
    Ok(u64::try_from(stat.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC))
}

/// The directory cargo builds this test into: `target/`.
pub fn target_dir() -> Result<PathBuf> {
    Ok(profile_dir()?.parent().context("the test is not inside a target directory")?.to_path_buf())
}

/// The directory of the profile this test was built with: `target/debug`, `target/release`, …
pub fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding the test's own path")?;
    // target/<profile>/deps/<test>-<hash>
    let dir = exe.parent().and_then(Path::parent).context("the test is not under target/*/deps")?;
    Ok(dir.to_path_buf())
}

/// The ports of one broker, and the address that it has them on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Loopback, but for a broker in a network of its own.
    pub ip: Ipv4Addr,
    /// Kafka.
    pub kafka: u16,
    /// Raft.
    pub raft: u16,
    /// HTTP.
    pub admin: u16,
}

impl Ports {
    /// Three ports that were free a moment ago. Somebody may still take one: who starts a broker tries again.
    pub fn take() -> Result<Ports> {
        let below = ephemeral_ports_start();
        let mut rng = StdRng::from_os_rng();
        for _ in 0..PORT_ATTEMPTS_MAX {
            let kafka = rng.random_range(10_000..below - ADMIN_PORT_DISTANCE - 1);
            let ports = Ports::from_kafka_port(Ipv4Addr::LOCALHOST, kafka);
            if [ports.kafka, ports.raft, ports.admin].into_iter().all(port_is_free) {
                return Ok(ports);
            }
        }
        bail!("no three free ports between 10000 and {below}")
    }

    /// The usual ports of an address that a broker has for itself.
    #[must_use]
    pub fn of_host(ip: Ipv4Addr) -> Ports {
        Ports::from_kafka_port(ip, KAFKA_PORT)
    }

    fn from_kafka_port(ip: Ipv4Addr, kafka: u16) -> Ports {
        Ports { ip, kafka, raft: kafka + RAFT_PORT_DISTANCE, admin: kafka + ADMIN_PORT_DISTANCE }
    }

    /// Whether both have a port.
    #[must_use]
    pub fn overlap(&self, other: &Ports) -> bool {
        let all = |ports: &Ports| [ports.kafka, ports.raft, ports.admin];
        self.ip == other.ip && all(self).iter().any(|port| all(other).contains(port))
    }

    /// Where Kafka clients connect.
    #[must_use]
    pub fn kafka_addr(&self) -> SocketAddr {
        SocketAddr::from((self.ip, self.kafka))
    }

    /// Where `/metrics`, `/health` and `/ready` are.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        SocketAddr::from((self.ip, self.admin))
    }

    /// Where other nodes would connect.
    #[must_use]
    pub fn raft_addr(&self) -> SocketAddr {
        SocketAddr::from((self.ip, self.raft))
    }
}

fn port_is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn ephemeral_ports_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|start| *start > 11_000)
        .unwrap_or(32_768)
}

/// Looks every few milliseconds until `probe` finds something; an error that names `what` when `deadline` passes first.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if started.elapsed() > deadline {
            bail!("{what}: did not happen within {deadline:?}");
        }
        std::thread::sleep(WAIT_POLL);
    }
}

/// Says that a test did not run, past the capture of a test's output: a skip that nobody sees is a lie.
pub fn say_skipped(why: &str) {
    // Nothing can be done where even this cannot be written.
    let _written = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// The seed in the environment variable `name`, or a fresh one. Who uses it prints it.
pub fn seed_from_env(name: &str) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.trim().parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(u64::from(StdRng::from_os_rng().random::<u32>())),
    }
}

/// The number in the environment variable `name`, or `default`.
pub fn count_from_env(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.trim().parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_probe_that_finds_nothing_when_waiting_then_the_error_names_what_was_awaited() {
        let error = wait_for("the sun", Duration::from_millis(20), || None::<()>).unwrap_err();
        assert!(error.to_string().contains("the sun"), "{error}");
    }

    #[test]
    fn given_ports_when_taken_then_they_lie_below_the_ephemeral_range() {
        let ports = Ports::take().unwrap();
        assert!(ports.admin < ephemeral_ports_start());
        assert_eq!(ports.raft - ports.kafka, RAFT_PORT_DISTANCE);
    }

    #[test]
    fn given_a_scratch_dir_when_dropped_then_it_is_gone_and_was_on_a_disk() {
        let dir = ScratchDir::new("scratch-test").unwrap();
        let path = dir.path().to_path_buf();
        assert!(!is_tmpfs(&path).unwrap());
        drop(dir);
        assert!(!path.exists());
    }
}
