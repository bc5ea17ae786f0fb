//! What must hold before the first shard starts: io_uring, limits, ports, cores, a disk that takes O_DIRECT.
//!
//! Every check fails with one sentence that says what is missing, where, and what to set; glommio would answer the
//! same with a panic. Checks that need no fixing give a warning and go on.
//!
//! A node of a cluster finds the others here, too, since it has no identity before.
//!
//! Never done here: reading settings, opening the WAL, starting shards.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use chronik_engine::ids::ShardId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use crate::cli::Failure;
use crate::config::Config;
use crate::identity::{DataDir, Identity, LockedDir};

mod cluster;
mod disk;
pub mod limits;

pub use cluster::ClusterStart;
pub use disk::check_data_dir;
pub use limits::{IoMemoryPlan, plan_io_memory};

/// How the process ends. 0 is a clean stop, 1 anything not named here. docs/operations.md says what to do about each.
pub mod exit_code {
    /// Settings or command line.
    pub const CONFIG: i32 = 2;
    /// Kernel, limits or cores.
    pub const ENVIRONMENT: i32 = 3;
    /// The data directory is not usable, or not this node's.
    pub const DATA_DIR: i32 = 4;
    /// Acknowledged data in the WAL is damaged.
    pub const WAL_DAMAGED: i32 = 5;
    /// A port is taken.
    pub const PORT_IN_USE: i32 = 6;
    /// Writing or syncing the WAL failed while running.
    pub const WAL_FAILED: i32 = 7;
}

/// The oldest kernel whose io_uring has the operations that are used; the last of them was the poll that stays armed.
const KERNEL_MIN: (u32, u32) = (5, 13);
/// Open files below which a busy broker runs out: each connection takes one, each WAL file three.
const NOFILE_WANTED: u64 = 4096;

/// What keeps the broker from starting on this machine.
#[derive(Debug, Error)]
pub enum StartupError {
    #[error(
        "Linux {found} is too old: io_uring with the operations needed came with {}.{}; use a newer kernel",
        KERNEL_MIN.0, KERNEL_MIN.1
    )]
    KernelTooOld { found: String },
    #[error(
        "io_uring is not part of this kernel (io_uring_setup: function not implemented), or a sandbox hides it; use a \
         kernel with CONFIG_IO_URING, and in a container a seccomp profile that allows io_uring_setup, io_uring_enter \
         and io_uring_register"
    )]
    IoUringMissing,
    #[error(
        "io_uring is switched off by kernel.io_uring_disabled = {value}; set `sysctl kernel.io_uring_disabled=0`"
    )]
    IoUringDisabled { value: u32 },
    #[error(
        "io_uring is forbidden by a seccomp filter (Docker's and Podman's default profiles do this); run with a profile \
         that allows io_uring_setup, io_uring_enter and io_uring_register, or --security-opt seccomp=unconfined"
    )]
    IoUringForbiddenBySeccomp,
    #[error(
        "io_uring is not permitted ({source}); look for a security module or sandbox that forbids io_uring_setup"
    )]
    IoUringForbidden {
        #[source]
        source: std::io::Error,
    },
    #[error(
        "io_uring cannot be set up: {source}; check memory, memlock (ulimit -l) and open files (ulimit -n)"
    )]
    IoUringFailed {
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the memlock limit is {limit_bytes} bytes, io_uring on {executors} shards needs {needed_bytes}; raise it: `ulimit -l \
         {needed_kib}`, LimitMEMLOCK= in the systemd unit, or --ulimit memlock= for a container"
    )]
    MemlockTooLow { limit_bytes: u64, needed_bytes: u64, needed_kib: u64, executors: u16 },
    #[error(
        "{setting} {address}: the port is taken by another process; stop it or choose another port"
    )]
    PortTaken { setting: &'static str, address: SocketAddr },
    #[error(
        "{setting} {address}: ports below 1024 need a privilege (CAP_NET_BIND_SERVICE); choose another port"
    )]
    PortForbidden { setting: &'static str, address: SocketAddr },
    #[error(
        "{setting} {address}: not an address of this machine; correct it, or use 0.0.0.0 with an advertised_addr"
    )]
    AddressNotLocal { setting: &'static str, address: SocketAddr },
    #[error("{setting} {address}: cannot be listened on: {source}")]
    PortUnusable {
        setting: &'static str,
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("data directory {}: cannot be written: {source}; check its owner, its mode and free space", path.display())]
    DataDirNotWritable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "data directory {}: its filesystem ({filesystem}) does not take O_DIRECT writes ({source}); put data_dir on ext4 or XFS",
        path.display()
    )]
    NoDirectIo {
        path: PathBuf,
        filesystem: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the cores this process may run on cannot be read (sched_getaffinity)")]
    CoresUnknown,
    #[error("signals cannot be waited for: {source}")]
    Signals {
        #[source]
        source: std::io::Error,
    },
}

impl StartupError {
    /// The process's exit code for this error.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            StartupError::DataDirNotWritable { .. } | StartupError::NoDirectIo { .. } => {
                exit_code::DATA_DIR
            }
            StartupError::PortTaken { .. }
            | StartupError::PortForbidden { .. }
            | StartupError::AddressNotLocal { .. }
            | StartupError::PortUnusable { .. } => exit_code::PORT_IN_USE,
            StartupError::KernelTooOld { .. }
            | StartupError::IoUringMissing
            | StartupError::IoUringDisabled { .. }
            | StartupError::IoUringForbiddenBySeccomp
            | StartupError::IoUringForbidden { .. }
            | StartupError::IoUringFailed { .. }
            | StartupError::MemlockTooLow { .. }
            | StartupError::CoresUnknown
            | StartupError::Signals { .. } => exit_code::ENVIRONMENT,
        }
    }
}

/// What the shards get from this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Memory that each executor registers with its rings.
    pub io_memory_bytes: usize,
    /// The core of each shard; empty if shards are not pinned.
    pub cpus: Vec<usize>,
}

impl Environment {
    /// The core to pin a shard's thread to.
    #[must_use]
    pub fn cpu_of(&self, shard: ShardId) -> Option<usize> {
        self.cpus.get(usize::from(shard.0)).copied()
    }
}

/// Checks that need neither settings nor the data directory: the kernel and io_uring.
///
/// # Errors
/// io_uring cannot be used here.
pub fn check_kernel() -> Result<(), StartupError> {
    let release = read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(StartupError::KernelTooOld { found: release });
    }
    match io_uring::IoUring::new(8) {
        Ok(_) => Ok(()),
        Err(error) => {
            let disabled = read_trimmed("/proc/sys/kernel/io_uring_disabled")
                .and_then(|value| value.parse().ok())
                .unwrap_or(0);
            let status = read_trimmed("/proc/self/status").unwrap_or_default();
            Err(io_uring_error(error, disabled, &status))
        }
    }
}

/// Tells why io_uring_setup failed from its error, the sysctl and this process's status.
fn io_uring_error(error: std::io::Error, disabled: u32, status: &str) -> StartupError {
    let filtered = limits::status_field(status, "Seccomp") == Some("2");
    match error.raw_os_error() {
        Some(libc::ENOSYS) if filtered => StartupError::IoUringForbiddenBySeccomp,
        Some(libc::ENOSYS) => StartupError::IoUringMissing,
        Some(libc::EPERM | libc::EACCES) if disabled > 0 => {
            StartupError::IoUringDisabled { value: disabled }
        }
        Some(libc::EPERM | libc::EACCES) if filtered => StartupError::IoUringForbiddenBySeccomp,
        Some(libc::EPERM | libc::EACCES) => StartupError::IoUringForbidden { source: error },
        _ => StartupError::IoUringFailed { source: error },
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Raises the limit of open files as far as it may be, and warns where that is not far.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("the limit of open files cannot be raised: {error}");
        }
    }
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < NOFILE_WANTED
    {
        tracing::warn!(
            "only {files} open files are allowed, {NOFILE_WANTED} or more are advised; raise `ulimit -n` or \
             LimitNOFILE= in the systemd unit"
        );
    }
}

/// The number of cores this process may use: its CPU set, or less where its CPU quota is lower.
///
/// # Errors
/// The CPU set cannot be read.
pub fn usable_cores() -> Result<Vec<usize>, StartupError> {
    let cores = core_affinity::get_core_ids().ok_or(StartupError::CoresUnknown)?;
    let mut cores: Vec<usize> = cores.into_iter().map(|core| core.id).collect();
    cores.sort_unstable();
    if let Ok(parallel) = std::thread::available_parallelism() {
        cores.truncate(parallel.get());
    }
    if cores.is_empty() { Err(StartupError::CoresUnknown) } else { Ok(cores) }
}

/// The number of shards for a new data directory: what the setting says, else one per usable core.
///
/// # Errors
/// The CPU set cannot be read.
pub fn shards_wanted(setting: u16) -> Result<u16, StartupError> {
    if setting > 0 {
        return Ok(setting);
    }
    usable_cores().map(|cores| u16::try_from(cores.len()).unwrap_or(u16::MAX).min(1024))
}

/// Which core each shard runs on: its own if there are enough, none if shards have to share.
#[must_use]
pub fn place_shards(cores: &[usize], shards: u16) -> Vec<usize> {
    if cores.len() < usize::from(shards) {
        tracing::warn!(
            "{shards} shards share {} cores and are not pinned; latency suffers until there is a core for each",
            cores.len()
        );
        return Vec::new();
    }
    cores.iter().copied().take(usize::from(shards)).collect()
}

/// Binds and frees a port, without SO_REUSEPORT: with it, binding would succeed beside another broker, and the two
/// would share connections.
///
/// # Errors
/// The port cannot be listened on.
pub fn probe_port(setting: &'static str, address: SocketAddr) -> Result<(), StartupError> {
    match TcpListener::bind(address) {
        Ok(listener) => {
            drop(listener);
            Ok(())
        }
        Err(source) => Err(match source.kind() {
            std::io::ErrorKind::AddrInUse => StartupError::PortTaken { setting, address },
            std::io::ErrorKind::PermissionDenied => {
                StartupError::PortForbidden { setting, address }
            }
            std::io::ErrorKind::AddrNotAvailable => {
                StartupError::AddressNotLocal { setting, address }
            }
            _ => StartupError::PortUnusable { setting, address, source },
        }),
    }
}

/// As [`probe_port`], but gives a port that is taken [`PORT_PATIENCE`] to become free: of a process that was killed a
/// moment ago, the kernel closes the sockets of io_uring only after the process has gone.
///
/// # Errors
/// The port cannot be listened on.
fn await_port(setting: &'static str, address: SocketAddr) -> Result<(), StartupError> {
    let mut tries_left = PORT_PATIENCE.as_millis() / PORT_RETRY.as_millis();
    loop {
        match probe_port(setting, address) {
            Err(StartupError::PortTaken { .. }) if tries_left > 0 => {
                tries_left -= 1;
                std::thread::sleep(PORT_RETRY);
            }
            probed => return probed,
        }
    }
}

/// How long a start waits for a port that is taken, and between two looks.
const PORT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
const PORT_RETRY: std::time::Duration = std::time::Duration::from_millis(50);

/// The environment for `shards` shards, once all is checked; warnings go to the log.
///
/// # Errors
/// Memlock is too low, or the cores are unknown.
pub fn environment(shards: u16) -> Result<Environment, StartupError> {
    let plan = plan_io_memory(&limits::Memlock::of_this_process(), shards)?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let cores = usable_cores()?;
    Ok(Environment { io_memory_bytes: plan.io_memory_bytes, cpus: place_shards(&cores, shards) })
}

/// A machine and a data directory that are fit for serving, and the cluster that they serve in.
#[derive(Debug)]
pub struct Prepared {
    pub data_dir: DataDir,
    pub environment: Environment,
    /// None on a single node.
    pub cluster: Option<ClusterStart>,
    /// Whether the data directory belongs to a cluster that this node is to leave.
    pub leaves_cluster: bool,
}

/// Does all checks, takes the data directory and finds the cluster, in the order in which a mistake costs the least.
///
/// # Errors
/// The first check that fails.
pub fn prepare(config: &Config) -> Result<Prepared, Failure> {
    check_kernel()?;
    raise_open_files();
    let shards = shards_wanted(config.shards)?;
    await_port("kafka_addr", config.kafka_addr)?;
    await_port("admin_addr", config.admin_addr)?;
    let locked = LockedDir::open(&config.data_dir, config.node_id)?;
    let way = cluster::way(config, &locked)?;
    let leaves_cluster = way.is_none() && locked.has_formation();
    // The Raft port is not listened on by a single node.
    if way.is_some() {
        await_port("raft_addr", config.raft_addr)?;
    }
    check_data_dir(&locked.path)?;
    let environment = environment(locked.identity.as_ref().map_or(shards, Identity::shards))?;
    let (data_dir, cluster) = match way {
        Some(way) => {
            let (data_dir, cluster) = cluster::enter(config, way, locked, shards)?;
            (data_dir, Some(cluster))
        }
        None => (locked.into_data_dir(|| Identity::generate(config.node_id, shards))?, None),
    };
    data_dir.note_shards(shards);
    Ok(Prepared { data_dir, environment, cluster, leaves_cluster })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32) -> std::io::Error {
        std::io::Error::from_raw_os_error(code)
    }

    #[test]
    fn given_a_release_name_when_parsed_then_major_and_minor_compare_as_numbers() {
        assert_eq!(kernel_version("6.18.44-fc-v595"), Some((6, 18)));
        assert!(kernel_version("5.15.0-21-amd64") > Some(KERNEL_MIN));
        assert!(kernel_version("5.10.0") < Some(KERNEL_MIN));
        assert_eq!(kernel_version("unknown"), None);
    }

    #[test]
    fn given_each_refusal_of_io_uring_when_explained_then_the_cause_is_told_apart() {
        let filtered = "Name:\tx\nSeccomp:\t2\n";
        let free = "Name:\tx\nSeccomp:\t0\n";
        assert!(matches!(
            io_uring_error(error(libc::ENOSYS), 0, free),
            StartupError::IoUringMissing
        ));
        assert!(matches!(
            io_uring_error(error(libc::ENOSYS), 0, filtered),
            StartupError::IoUringForbiddenBySeccomp
        ));
        assert!(matches!(
            io_uring_error(error(libc::EPERM), 2, filtered),
            StartupError::IoUringDisabled { value: 2 }
        ));
        assert!(matches!(
            io_uring_error(error(libc::EPERM), 0, filtered),
            StartupError::IoUringForbiddenBySeccomp
        ));
        assert!(matches!(
            io_uring_error(error(libc::EPERM), 0, free),
            StartupError::IoUringForbidden { .. }
        ));
        assert!(matches!(
            io_uring_error(error(libc::ENOMEM), 0, free),
            StartupError::IoUringFailed { .. }
        ));
    }

    #[test]
    fn given_a_listening_port_when_probed_then_it_is_taken_and_names_its_setting() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let refused = probe_port("kafka_addr", address).unwrap_err();
        assert_eq!(refused.exit_code(), exit_code::PORT_IN_USE);
        assert!(refused.to_string().starts_with(&format!("kafka_addr {address}: ")));
        drop(held);
        probe_port("kafka_addr", address).unwrap();
    }

    #[test]
    fn given_an_address_of_another_machine_when_probed_then_the_error_says_so() {
        let refused = probe_port("admin_addr", "192.0.2.1:9292".parse().unwrap()).unwrap_err();
        assert!(matches!(refused, StartupError::AddressNotLocal { .. }));
    }

    #[test]
    fn given_enough_cores_when_placed_then_each_shard_has_its_own() {
        assert_eq!(place_shards(&[2, 3, 6], 2), vec![2, 3]);
    }

    #[test]
    fn given_fewer_cores_than_shards_when_placed_then_none_is_pinned() {
        let environment = Environment { io_memory_bytes: 1, cpus: place_shards(&[0, 1], 3) };
        assert_eq!(environment.cpu_of(ShardId(0)), None);
    }
}
