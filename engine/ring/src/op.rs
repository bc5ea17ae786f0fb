//! Operations on the ring, as futures.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use glommio::io::DmaBuffer;
use io_uring::{opcode, types};

use crate::driver;
use crate::ring::{CoreRing, Keep};

/// What to wait for on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to receive, or the peer has ended.
    Readable,
    /// There is room to send.
    Writable,
    /// The peer has ended its side; what it sent before may still have to be received.
    PeerEnded,
    /// Both sides have ended, or the connection failed.
    Broken,
}

/// Resolves once the descriptor is ready, or has failed: the next call on it says which. Cancel-safe.
pub fn readiness(fd: &Rc<OwnedFd>, interest: Interest) -> OpFuture {
    let events = match interest {
        Interest::Readable => libc_poll::POLLIN | libc_poll::POLLRDHUP,
        Interest::Writable => libc_poll::POLLOUT,
        Interest::PeerEnded => libc_poll::POLLRDHUP,
        // The kernel tells of an end in any case.
        Interest::Broken => 0,
    };
    let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).build();
    OpFuture::start(entry, Keep::Descriptor(Rc::clone(fd)), OnDrop::Cancel)
}

/// Writes `buf` at `position` of a file and says how much of it was written; the file's flags say whether it is
/// durable then. Dropping the future does not stop the write: its outcome would be unknown.
pub fn write_at(fd: &Rc<OwnedFd>, buf: Rc<DmaBuffer>, position: u64) -> OpFuture {
    let slice = buf.as_bytes();
    let len = u32::try_from(slice.len()).unwrap_or(u32::MAX);
    let entry =
        opcode::Write::new(types::Fd(fd.as_raw_fd()), slice.as_ptr(), len).offset(position).build();
    OpFuture::start(entry, Keep::Write(Rc::clone(fd), buf), OnDrop::LetGoOn)
}

/// `fdatasync`. Dropping the future does not stop it.
pub fn sync_data(fd: &Rc<OwnedFd>) -> OpFuture {
    let entry =
        opcode::Fsync::new(types::Fd(fd.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
    OpFuture::start(entry, Keep::Descriptor(Rc::clone(fd)), OnDrop::LetGoOn)
}

/// `poll(2)`'s events, as the kernel's `<poll.h>` has them.
mod libc_poll {
    pub(super) const POLLIN: u32 = 0x0001;
    pub(super) const POLLOUT: u32 = 0x0004;
    pub(super) const POLLRDHUP: u32 = 0x2000;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDrop {
    Cancel,
    LetGoOn,
}

/// An operation that the kernel has, or gets with the next system call. Resolves to what the system call of that name
/// would return.
#[derive(Debug)]
pub struct OpFuture {
    /// `None` if the core had ended before: it never resolves.
    ring: Option<Rc<CoreRing>>,
    /// `None` once it has resolved.
    key: Option<usize>,
    on_drop: OnDrop,
}

impl OpFuture {
    fn start(entry: io_uring::squeue::Entry, keep: Keep, on_drop: OnDrop) -> OpFuture {
        let ring = driver::current();
        let key = ring.as_ref().map(|ring| ring.start(entry, keep));
        OpFuture { ring, key, on_drop }
    }
}

impl Future for OpFuture {
    type Output = io::Result<usize>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(ring) = &self.ring else { return Poll::Pending };
        let Some(key) = self.key else {
            return Poll::Ready(Err(io::Error::other("an operation was polled after its end")));
        };
        let polled = ring.poll(key, cx);
        if polled.is_ready() {
            self.key = None;
        }
        polled
    }
}

impl Drop for OpFuture {
    fn drop(&mut self) {
        if let (Some(ring), Some(key)) = (&self.ring, self.key) {
            ring.abandon(key, self.on_drop == OnDrop::Cancel);
        }
    }
}
