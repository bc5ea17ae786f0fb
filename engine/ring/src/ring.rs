//! The ring itself: what the kernel was asked, and who waits for the answer.
//!
//! The only place of this crate that talks to io_uring.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use glommio::io::DmaBuffer;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::io::Errno;
use slab::Slab;

use crate::driver;
use crate::notifier::Notifier;
use crate::timers::Timers;

/// Entries that wait for the next system call; when they are full, it comes at once.
const SUBMISSIONS: u32 = 256;

/// Answers that the kernel keeps in shared memory; it holds back what comes on top.
const COMPLETIONS: u32 = 4096;

/// The answer to a cancellation, which nobody waits for.
const USER_DATA_CANCEL: u64 = u64::MAX;

/// Another thread has written to the core's eventfd.
const USER_DATA_NOTIFIED: u64 = u64::MAX - 1;

const POLLIN: u32 = 0x0001;
const ENTER_GETEVENTS: u32 = 1;

/// What an operation in the kernel's hands keeps alive (lib I3).
#[derive(Debug)]
pub(crate) enum Keep {
    /// The descriptor that is waited for.
    Descriptor(#[expect(dead_code, reason = "held for its drop")] Rc<OwnedFd>),
    /// The descriptor that is written to, and the bytes.
    Write(
        #[expect(dead_code, reason = "held for its drop")] Rc<OwnedFd>,
        #[expect(dead_code, reason = "held for its drop")] Rc<DmaBuffer>,
    ),
}

#[derive(Debug)]
struct Op {
    state: OpState,
    /// Taken when the kernel has answered.
    keep: Option<Keep>,
}

#[derive(Debug)]
enum OpState {
    InKernel(Option<Waker>),
    Answered(i32),
    /// Its future is gone; the answer ends it.
    Abandoned,
}

/// One core's ring, its timers and its notifier.
pub(crate) struct CoreRing {
    ring: RefCell<IoUring>,
    ops: RefCell<Slab<Op>>,
    pub(crate) timers: Timers,
    pub(crate) notifier: Notifier,
}

impl std::fmt::Debug for CoreRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreRing").field("ops", &self.ops.borrow().len()).finish_non_exhaustive()
    }
}

impl CoreRing {
    pub(crate) fn new(notifier: Notifier) -> io::Result<CoreRing> {
        let ring = CoreRing {
            ring: RefCell::new(build()?),
            ops: RefCell::default(),
            timers: Timers::default(),
            notifier,
        };
        ring.watch_notifier();
        Ok(ring)
    }

    /// Queues an operation for the next system call and names it.
    pub(crate) fn start(&self, entry: Entry, keep: Keep) -> usize {
        let op = Op { state: OpState::InKernel(None), keep: Some(keep) };
        let key = self.ops.borrow_mut().insert(op);
        self.push(&entry.user_data(key as u64));
        key
    }

    pub(crate) fn poll(&self, key: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut ops = self.ops.borrow_mut();
        match &mut ops[key].state {
            OpState::InKernel(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            OpState::Answered(result) => {
                let result = *result;
                ops.remove(key);
                Poll::Ready(match usize::try_from(result) {
                    Ok(result) => Ok(result),
                    Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
                })
            }
            OpState::Abandoned => unreachable!("an abandoned operation has no future"),
        }
    }

    /// The future of an operation is gone. The kernel may still use what it was given, so that stays.
    pub(crate) fn abandon(&self, key: usize, cancel: bool) {
        {
            let mut ops = self.ops.borrow_mut();
            if matches!(ops[key].state, OpState::Answered(_)) {
                ops.remove(key);
                return;
            }
            ops[key].state = OpState::Abandoned;
        }
        if cancel {
            let entry = opcode::AsyncCancel::new(key as u64).build();
            self.push(&entry.user_data(USER_DATA_CANCEL));
        }
    }

    fn watch_notifier(&self) {
        let eventfd = types::Fd(self.notifier.descriptor().as_raw_fd());
        let entry = opcode::PollAdd::new(eventfd, POLLIN).multi(true).build();
        self.push(&entry.user_data(USER_DATA_NOTIFIED));
    }

    fn push(&self, entry: &Entry) {
        loop {
            {
                let mut ring = self.ring.borrow_mut();
                // SAFETY: what the entry points to is kept in `ops` until the kernel has answered (lib I3);
                // cancellations and polls point to nothing.
                if unsafe { ring.submission().push(entry) }.is_ok() {
                    return;
                }
                // Full: the kernel takes all of them at once.
                let submitted = ring.submit();
                if !is_busy(&submitted) {
                    forgive(submitted);
                    continue;
                }
            }
            // Before 5.19 it takes none while answers wait for room that only we can make.
            if self.collect() {
                driver::note_activity();
            }
        }
    }

    /// Whether entries wait for a system call, or answers of the kernel do.
    pub(crate) fn needs_enter(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let submissions = ring.submission();
        !submissions.is_empty() || submissions.taskrun() || submissions.cq_overflow()
    }

    /// Hands the kernel what is queued and lets it put down the answers it has. Does not wait.
    pub(crate) fn enter(&self) {
        let mut ring = self.ring.borrow_mut();
        let queued = u32::try_from(ring.submission().len()).unwrap_or(u32::MAX);
        // SAFETY: no argument points anywhere.
        forgive(unsafe { ring.submitter().enter::<()>(queued, 0, ENTER_GETEVENTS, None) });
    }

    /// The same, and waits for an answer, a notification or the end of the time.
    pub(crate) fn enter_and_wait(&self, at_most: Duration) {
        if !self.notifier.fall_asleep() {
            return;
        }
        let timespec = types::Timespec::from(at_most);
        let args = types::SubmitArgs::new().timespec(&timespec);
        forgive(self.ring.borrow().submitter().submit_with_args(1, &args));
        self.notifier.wake_up();
    }

    /// Gives answers to those who wait for them; says whether there were any.
    pub(crate) fn collect(&self) -> bool {
        let mut any = false;
        loop {
            let Some(answer) = self.ring.borrow_mut().completion().next() else { return any };
            any |= self.take(&answer);
        }
    }

    /// Says whether somebody was woken by it.
    fn take(&self, answer: &cqueue::Entry) -> bool {
        match answer.user_data() {
            USER_DATA_CANCEL => return false,
            USER_DATA_NOTIFIED => {
                if !cqueue::more(answer.flags()) {
                    self.watch_notifier();
                }
                return false;
            }
            _ => {}
        }
        let waker = {
            let mut ops = self.ops.borrow_mut();
            let Ok(key) = usize::try_from(answer.user_data()) else { return false };
            let op = &mut ops[key];
            op.keep = None;
            match std::mem::replace(&mut op.state, OpState::Answered(answer.result())) {
                OpState::InKernel(waker) => waker,
                OpState::Abandoned => {
                    ops.remove(key);
                    return false;
                }
                OpState::Answered(_) => unreachable!("an operation was answered twice"),
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl Drop for CoreRing {
    /// A write in flight must not outlive its buffer: the ring goes first, and it waits for them.
    fn drop(&mut self) {
        let writing =
            || self.ops.borrow().iter().any(|(_, op)| matches!(op.keep, Some(Keep::Write(..))));
        while writing() {
            forgive(self.ring.borrow().submitter().submit_and_wait(1));
            self.collect();
        }
    }
}

/// The newest flags that the kernel knows: completions only when asked for (6.1), else without interrupts (5.19).
fn build() -> io::Result<IoUring> {
    let newest = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSIONS);
    match newest {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        built => return built,
    }
    let middle = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSIONS);
    match middle {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        built => return built,
    }
    IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)
}

fn is_busy(entered: &io::Result<usize>) -> bool {
    let error = entered.as_ref().err().and_then(io::Error::raw_os_error);
    error == Some(Errno::BUSY.raw_os_error())
}

/// A core whose ring cannot be entered can neither write nor answer.
fn forgive(entered: io::Result<usize>) {
    let Err(error) = entered else { return };
    let passing = [Errno::TIME, Errno::INTR, Errno::BUSY, Errno::AGAIN];
    let passes = passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    assert!(passes, "io_uring_enter failed: {error}");
}
