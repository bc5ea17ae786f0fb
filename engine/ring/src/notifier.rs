//! How other threads wake a core.
//!
//! - I1: a notification is never lost: one that comes before the core sleeps keeps it awake, one that comes while it
//!   sleeps writes to the eventfd that its ring watches.
//! - I2: a core that is awake costs its notifier one atomic operation and no system call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::event::{EventfdFlags, eventfd};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;

/// Wakes one core; cheap to clone and to share.
#[derive(Debug, Clone)]
pub struct Notifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: AtomicU8,
    eventfd: OwnedFd,
}

impl Notifier {
    /// One for a core that is yet to start; notifications are kept until it does.
    ///
    /// # Errors
    /// If the process may open no more descriptors.
    pub fn new() -> io::Result<Notifier> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Notifier(Arc::new(Inner { state: AtomicU8::new(AWAKE), eventfd })))
    }

    /// Wakes the core. What was written before this call is seen by the core after [`crate::notified`] resolves.
    pub fn notify(&self) {
        if self.0.state.swap(NOTIFIED, Ordering::SeqCst) == ASLEEP {
            // It fails only when the counter is full, and then the eventfd is readable already.
            _ = rustix::io::write(&self.0.eventfd, &1u64.to_ne_bytes());
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }

    /// Says whether there was a notification, and takes it.
    pub(crate) fn take(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == NOTIFIED
            && self.0.state.swap(AWAKE, Ordering::SeqCst) == NOTIFIED
    }

    /// The core is about to sleep; `false` if there is a notification and it must not.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.0.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The core is awake again; a notification that came meanwhile stays to be taken.
    pub(crate) fn wake_up(&self) {
        // Failing, it was notified.
        _ = self.0.state.compare_exchange(ASLEEP, AWAKE, Ordering::SeqCst, Ordering::SeqCst);
    }
}
