//! How much memory the executors may register with io_uring under the memlock limit.
//!
//! glommio makes three rings per executor and registers the same memory with each, so an executor counts three times
//! its io_memory. It refuses to start below 512 KiB, and near that limit it panics; both are caught here first.

use std::fmt;

use rustix::process::{Resource, getrlimit};

use super::StartupError;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What an executor gets when nothing limits it: glommio's own default, enough for a full block in flight and reads.
const IO_MEMORY_WANTED: u64 = 10 * MIB;
/// Below this every transfer would fall back to memory that is not registered.
const IO_MEMORY_MIN: u64 = 256 * KIB;
/// Each of an executor's rings registers the memory again.
const RINGS_PER_EXECUTOR: u64 = 3;
/// Left for what rings take themselves and for the rest of the process.
const RESERVE_PER_EXECUTOR: u64 = 256 * KIB;
/// glommio's own floor for the limit, whatever the capabilities.
const GLOMMIO_LIMIT_MIN: u64 = 512 * KIB;
/// CAP_IPC_LOCK: memory may be locked without limit.
const CAP_IPC_LOCK_BIT: u32 = 14;

/// The limit on locked memory and whether it binds this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memlock {
    /// None: no limit.
    pub limit_bytes: Option<u64>,
    /// Whether the process has CAP_IPC_LOCK.
    pub unlimited_by_capability: bool,
}

impl Memlock {
    /// The limit of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let status = super::read_trimmed("/proc/self/status").unwrap_or_default();
        Memlock {
            limit_bytes: getrlimit(Resource::Memlock).current,
            unlimited_by_capability: has_ipc_lock(&status),
        }
    }
}

/// How much each executor registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoMemoryPlan {
    pub io_memory_bytes: usize,
    pub warnings: Vec<LimitWarning>,
}

/// A limit that is small, not too small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitWarning {
    pub limit_bytes: u64,
    pub io_memory_bytes: u64,
    pub advised_bytes: u64,
}

impl fmt::Display for LimitWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the memlock limit of {} KiB allows {} KiB of registered buffers per shard; for full speed raise it to {} KiB \
             (`ulimit -l`, LimitMEMLOCK= in the systemd unit)",
            self.limit_bytes / KIB,
            self.io_memory_bytes / KIB,
            self.advised_bytes / KIB
        )
    }
}

/// Sizes the executors' registered memory from the limit.
///
/// # Errors
/// The limit is below what io_uring needs at all.
pub fn plan_io_memory(memlock: &Memlock, executors: u16) -> Result<IoMemoryPlan, StartupError> {
    assert!(executors > 0, "a node has at least one shard");
    let count = u64::from(executors);
    let needed_for =
        |io_memory: u64| count * (RINGS_PER_EXECUTOR * io_memory + RESERVE_PER_EXECUTOR);
    let Some(limit_bytes) = memlock.limit_bytes else {
        return Ok(plan(IO_MEMORY_WANTED, None));
    };
    let needed_bytes = if memlock.unlimited_by_capability {
        GLOMMIO_LIMIT_MIN
    } else {
        needed_for(IO_MEMORY_MIN).max(GLOMMIO_LIMIT_MIN)
    };
    if limit_bytes < needed_bytes {
        let needed_kib = needed_bytes.div_ceil(KIB);
        return Err(StartupError::MemlockTooLow {
            limit_bytes,
            needed_bytes,
            needed_kib,
            executors,
        });
    }
    if memlock.unlimited_by_capability || limit_bytes >= needed_for(IO_MEMORY_WANTED) {
        return Ok(plan(IO_MEMORY_WANTED, None));
    }
    let share = (limit_bytes / count - RESERVE_PER_EXECUTOR) / RINGS_PER_EXECUTOR;
    let io_memory_bytes = share / (64 * KIB) * (64 * KIB);
    assert!(io_memory_bytes >= IO_MEMORY_MIN, "the limit was checked above");
    assert!(needed_for(io_memory_bytes) <= limit_bytes, "the plan fits the limit");
    let advised_bytes = needed_for(IO_MEMORY_WANTED);
    Ok(plan(io_memory_bytes, Some(LimitWarning { limit_bytes, io_memory_bytes, advised_bytes })))
}

fn plan(io_memory_bytes: u64, warning: Option<LimitWarning>) -> IoMemoryPlan {
    IoMemoryPlan {
        io_memory_bytes: usize::try_from(io_memory_bytes).unwrap_or(usize::MAX),
        warnings: warning.into_iter().collect(),
    }
}

/// The value of a field of /proc/self/status.
pub(super) fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn has_ipc_lock(status: &str) -> bool {
    status_field(status, "CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .is_some_and(|capabilities| capabilities & (1 << CAP_IPC_LOCK_BIT) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(limit_bytes: u64) -> Memlock {
        Memlock { limit_bytes: Some(limit_bytes), unlimited_by_capability: false }
    }

    #[test]
    fn given_the_usual_8_mib_when_planned_for_two_shards_then_all_rings_fit() {
        let plan = plan_io_memory(&limited(8 * MIB), 2).unwrap();
        let io_memory = u64::try_from(plan.io_memory_bytes).unwrap();
        assert!(io_memory >= MIB);
        assert!(2 * 3 * io_memory < 8 * MIB);
        assert_eq!(plan.warnings.len(), 1);
    }

    #[test]
    fn given_too_little_memory_when_planned_then_the_error_says_how_much_is_needed() {
        let refused = plan_io_memory(&limited(512 * KIB), 1).unwrap_err();
        assert!(refused.to_string().contains("ulimit -l 1024"), "{refused}");
    }

    #[test]
    fn given_the_needed_memory_when_planned_then_it_is_enough() {
        for executors in [1, 2, 7, 64] {
            let Err(StartupError::MemlockTooLow { needed_bytes, .. }) =
                plan_io_memory(&limited(64 * KIB), executors)
            else {
                panic!("64 KiB is never enough");
            };
            plan_io_memory(&limited(needed_bytes), executors).unwrap();
            plan_io_memory(&limited(needed_bytes - 1), executors).unwrap_err();
        }
    }

    #[test]
    fn given_the_capability_when_planned_then_only_glommios_own_floor_counts() {
        let privileged =
            |limit| Memlock { limit_bytes: Some(limit), unlimited_by_capability: true };
        let plan = plan_io_memory(&privileged(512 * KIB), 64).unwrap();
        assert_eq!(plan.io_memory_bytes, 10 * 1024 * 1024);
        plan_io_memory(&privileged(64 * KIB), 1).unwrap_err();
    }

    #[test]
    fn given_a_status_text_when_read_then_the_capability_bit_decides() {
        assert!(has_ipc_lock("CapEff:\t0000000000004000\n"));
        assert!(!has_ipc_lock("CapEff:\t000000000000bfff\n"));
        assert!(!has_ipc_lock(""));
    }
}
