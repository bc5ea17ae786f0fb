//! One TCP socket on one core: the core's ring waits for it, plain system calls move the bytes.
//!
//! Owns [`Socket`] and [`Listener`]. Every operation tries the non-blocking call first and arms a poll only when that
//! would block, or when the last receive left nothing behind.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use chronik_ring::{Interest, OpFuture, readiness};
use rustix::buffer::spare_capacity;
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType,
};

use crate::settings::NetSettings;

/// Connections that the kernel holds for us until they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    descriptor: Rc<OwnedFd>,
}

impl Listener {
    /// Binds with SO_REUSEPORT, so that every core may bind the same address.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Listener> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let descriptor = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&descriptor, true)?;
        sockopt::set_socket_reuseport(&descriptor, true)?;
        rustix::net::bind(&descriptor, &address)?;
        rustix::net::listen(&descriptor, BACKLOG)?;
        Ok(Listener { descriptor: Rc::new(descriptor) })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(rustix::net::getsockname(&self.descriptor)?)?)
    }

    /// Waits for a connection. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match rustix::net::accept_with(&self.descriptor, flags) {
                Ok(descriptor) => return Ok(Socket::new(descriptor)),
                Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                    readiness(&self.descriptor, Interest::Readable).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A connected socket, closed when dropped. Both directions are used by one task.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: Rc<OwnedFd>,
    readable: RefCell<Option<OpFuture>>,
    writable: RefCell<Option<OpFuture>>,
    /// The last receive took all there was.
    drained: Cell<bool>,
}

impl Socket {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self {
            descriptor: Rc::new(descriptor),
            readable: RefCell::new(None),
            writable: RefCell::new(None),
            // A client speaks first, but seldom before it is accepted.
            drained: Cell::new(false),
        }
    }

    pub(crate) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let peer =
            rustix::net::getpeername(&self.descriptor)?.ok_or(io::ErrorKind::NotConnected)?;
        let local = rustix::net::getsockname(&self.descriptor)?;
        Ok((peer.try_into()?, local.try_into()?))
    }

    /// No Nagle delay; a dead peer is noticed by keepalive when idle and by the user timeout when
    /// something is on its way to it.
    pub(crate) fn configure(&self, settings: &NetSettings) -> io::Result<()> {
        let socket = self.descriptor();
        // So that this connection, once it lingers in TIME_WAIT, does not keep the port from the next start.
        sockopt::set_socket_reuseaddr(socket, true)?;
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, settings.keepalive_idle)?;
        sockopt::set_tcp_keepintvl(socket, settings.keepalive_interval)?;
        sockopt::set_tcp_keepcnt(socket, 3)?;
        let user_timeout_ms =
            u32::try_from(settings.tcp_user_timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, user_timeout_ms)?;
        Ok(())
    }

    /// Receives into `buffer`, once there is something.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_readable(cx))?;
            match rustix::net::recv(self.descriptor(), &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((received, _)) => {
                    self.drained.set(received > 0 && received < buffer.len());
                    return Poll::Ready(Ok(received));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => self.drained.set(true),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_ready(
        &self,
        cx: &mut Context<'_>,
        wait: &RefCell<Option<OpFuture>>,
        interest: Interest,
    ) -> Poll<io::Result<()>> {
        let mut wait = wait.borrow_mut();
        let armed = wait.get_or_insert_with(|| readiness(&self.descriptor, interest));
        let ready = ready!(Pin::new(armed).poll(cx));
        *wait = None;
        Poll::Ready(ready.map(drop))
    }

    /// Waits until a receive may bring something.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.drained.get() {
            ready!(self.poll_ready(cx, &self.readable, Interest::Readable))?;
            self.drained.set(false);
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the last receive took all there was.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained.get()
    }

    /// Receives what is there into the spare capacity of `buffer`; `WouldBlock` when nothing is.
    pub(crate) fn receive_now(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let spare_bytes = buffer.capacity() - buffer.len();
        let received =
            rustix::net::recv(self.descriptor(), spare_capacity(buffer), RecvFlags::DONTWAIT);
        match received {
            Ok((_, received)) => {
                self.drained.set(received > 0 && received < spare_bytes);
                Ok(received)
            }
            Err(error) => {
                self.drained.set(error == rustix::io::Errno::WOULDBLOCK);
                Err(error.into())
            }
        }
    }

    /// Resolves once the connection is broken or, if `half` is enough, once the peer has ended its side.
    pub(crate) fn ended(&self, half: bool) -> OpFuture {
        readiness(&self.descriptor, if half { Interest::PeerEnded } else { Interest::Broken })
    }

    /// Bytes that the kernel has for us.
    pub(crate) fn bytes_waiting(&self) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(self.descriptor())?)
    }

    /// Sends what the socket takes now; `WouldBlock` when it takes nothing.
    pub(crate) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(self.descriptor(), slices, &mut control, flags)?)
    }

    /// Waits until the socket takes bytes.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(cx, &self.writable, Interest::Writable)
    }

    /// The same connection under another descriptor: the ring of this core holds the first one until its poll is
    /// cancelled.
    pub(crate) fn duplicate(&self, settings: &NetSettings) -> io::Result<OwnedFd> {
        let duplicate = self.descriptor.try_clone()?;
        if duplicate.as_raw_fd() >= settings.descriptors_max {
            return Err(rustix::io::Errno::MFILE.into());
        }
        Ok(duplicate)
    }

    /// Whether the descriptor is one of those that are left for files.
    pub(crate) fn is_beyond(&self, settings: &NetSettings) -> bool {
        self.descriptor.as_raw_fd() >= settings.descriptors_max
    }

    /// Tells the peer that nothing more comes.
    pub(crate) fn end_writes(&self) {
        // The peer may be gone already; there is nothing left to do about it then.
        rustix::net::shutdown(self.descriptor(), Shutdown::Write).ok();
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
