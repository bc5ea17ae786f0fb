//! The coarse clock of a core's connections.
//!
//! Owns [`Clock`], moved on by the sweep and read for free by every connection: deadlines of seconds
//! need no system call per request.

use std::cell::Cell;
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Clock {
    now: Cell<Instant>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { now: Cell::new(now()) }
    }

    /// As of the last sweep.
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    pub(crate) fn advance(&self) -> Instant {
        self.now.set(now());
        self.now.get()
    }
}

/// The wire is part of the shell: sockets and their deadlines live in real time.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
