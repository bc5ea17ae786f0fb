//! How a thread shares the machine with the others: what it asks the schedulers of the processor and of the disk for.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// What a thread may ask for; the default is about 3 ms.
const SLICE: Duration = Duration::from_micros(100);

/// Linux's `struct sched_attr` in its first version.
#[repr(C)]
#[derive(Debug, Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

const _: () = assert!(size_of::<SchedAttr>() == 48, "the first version has 48 bytes");

/// Asks for a short slice of the processor for the calling thread, which mostly waits: a thread that wakes up interrupts
/// one with a longer slice at once (EEVDF, Linux 6.12); older kernels take no notice. Its nice value stays, and a thread
/// of another policy than the usual one is left alone.
///
/// # Errors
/// If the kernel refuses.
pub fn shorten_slice() -> io::Result<()> {
    let mut attr = SchedAttr::default();
    let size = u32::try_from(size_of::<SchedAttr>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `size` bytes, which is the size of `attr`; thread 0 is the calling one.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    if attr.policy != u32::try_from(libc::SCHED_OTHER).unwrap_or(0) {
        return Ok(());
    }
    attr.size = size;
    attr.runtime_ns = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads `attr.size` bytes of `attr`.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the disk serve the calling thread when it has nothing else to do, if its scheduler knows priorities (mq-deadline,
/// BFQ; neither lets anybody wait for ever).
///
/// # Errors
/// If the kernel refuses.
pub fn come_last_at_disk() -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: no memory is involved; 0 is the calling thread.
    let set = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a thread of its own: the wish stays with it")]
    fn given_a_thread_with_a_priority_when_its_slice_is_shortened_then_it_keeps_the_priority() {
        let nice = std::thread::spawn(|| {
            rustix::process::setpriority_process(None, 3).unwrap();
            shorten_slice().unwrap();
            rustix::process::getpriority_process(None).unwrap()
        });
        assert_eq!(nice.join().unwrap(), 3);
    }
}
