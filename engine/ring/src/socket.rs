//! One TCP socket on one core: the core's ring waits for it, plain system calls move the bytes.
//!
//! Owns [`Socket`], [`Listener`] and [`resolve`]. Every operation tries the non-blocking call first and arms a poll only
//! when that would block, or when the last receive left nothing behind. Knows no protocol.
//!
//! - I1: a descriptor that the ring polls stays open until the kernel has answered the poll. So a connection that goes
//!   to another core goes there under another descriptor ([`Socket::duplicate`]).
//! - I2: nothing here blocks the core: a name is resolved on a thread of its own.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType,
};

use crate::op::{Interest, OpFuture, readiness};

/// Connections that the kernel holds for us until they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How the connections of one kind are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// TCP keepalive: silence before the first probe.
    pub keepalive_idle: Duration,
    /// TCP keepalive: time between probes (three are sent).
    pub keepalive_interval: Duration,
    /// Unacknowledged sent data gives the connection up after this.
    pub user_timeout: Duration,
    /// A descriptor of this number or a higher one is left for files.
    pub descriptors_max: i32,
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    descriptor: Rc<OwnedFd>,
}

impl Listener {
    /// Binds with SO_REUSEPORT, so that every core may bind the same address.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        let descriptor = tcp_socket(address)?;
        sockopt::set_socket_reuseport(&descriptor, true)?;
        Self::listen(descriptor, address)
    }

    /// Binds an address that nobody else may bind.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind_alone(address: SocketAddr) -> io::Result<Listener> {
        Self::listen(tcp_socket(address)?, address)
    }

    fn listen(descriptor: OwnedFd, address: SocketAddr) -> io::Result<Listener> {
        sockopt::set_socket_reuseaddr(&descriptor, true)?;
        rustix::net::bind(&descriptor, &address)?;
        rustix::net::listen(&descriptor, BACKLOG)?;
        Ok(Listener { descriptor: Rc::new(descriptor) })
    }

    /// The address bound, with its port.
    ///
    /// # Errors
    /// Never, on a socket that listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(rustix::net::getsockname(&self.descriptor)?)?)
    }

    /// Waits for a connection. Cancel-safe.
    ///
    /// # Errors
    /// If the connection was reset before, or for want of descriptors or memory: the listener goes on.
    pub async fn accept(&self) -> io::Result<Socket> {
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
pub struct Socket {
    descriptor: Rc<OwnedFd>,
    readable: RefCell<Option<OpFuture>>,
    writable: RefCell<Option<OpFuture>>,
    /// The last receive took all there was.
    drained: Cell<bool>,
}

impl Socket {
    /// A connection of this core from here on. Its descriptor must be non-blocking.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self {
            descriptor: Rc::new(descriptor),
            readable: RefCell::new(None),
            writable: RefCell::new(None),
            // A client speaks first, but seldom before it is accepted.
            drained: Cell::new(false),
        }
    }

    /// Connects to a peer. Cancel-safe: dropped, the attempt ends.
    ///
    /// # Errors
    /// If the peer cannot be reached or refuses; what found nobody but itself is refused, too.
    pub async fn connect(address: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
        let socket = Socket::new(tcp_socket(address)?);
        socket.configure(options)?;
        match rustix::net::connect(socket.descriptor(), &address) {
            Ok(()) => {}
            Err(rustix::io::Errno::INPROGRESS | rustix::io::Errno::INTR) => {
                poll_fn(|cx| socket.poll_writable(cx)).await?;
                sockopt::socket_error(socket.descriptor())??;
            }
            Err(error) => return Err(error.into()),
        }
        // The kernel may choose the very port that nobody listens on, and then connects the socket to itself.
        let (peer, local) = socket.addresses()?;
        if peer == local {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(socket)
    }

    /// The addresses of the peer and of this side.
    ///
    /// # Errors
    /// If the peer is gone already.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let peer =
            rustix::net::getpeername(&self.descriptor)?.ok_or(io::ErrorKind::NotConnected)?;
        let local = rustix::net::getsockname(&self.descriptor)?;
        Ok((peer.try_into()?, local.try_into()?))
    }

    /// No Nagle delay; a dead peer is noticed by keepalive when idle and by the user timeout when
    /// something is on its way to it.
    ///
    /// # Errors
    /// If the peer is gone already.
    pub fn configure(&self, options: &SocketOptions) -> io::Result<()> {
        let socket = self.descriptor();
        // So that this connection, once it lingers in TIME_WAIT, does not keep the port from the next start.
        sockopt::set_socket_reuseaddr(socket, true)?;
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, options.keepalive_idle)?;
        sockopt::set_tcp_keepintvl(socket, options.keepalive_interval)?;
        sockopt::set_tcp_keepcnt(socket, 3)?;
        let user_timeout_ms = u32::try_from(options.user_timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, user_timeout_ms)?;
        Ok(())
    }

    /// Receives into `buffer`, once there is something.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
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

    /// Waits until a receive may bring something. One task at a time may wait.
    ///
    /// # Errors
    /// If the ring cannot wait for it.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.drained.get() {
            ready!(self.poll_ready(cx, &self.readable, Interest::Readable))?;
            self.drained.set(false);
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the last receive took all there was.
    pub fn is_drained(&self) -> bool {
        self.drained.get()
    }

    /// Receives what is there into the spare capacity of `buffer`; `WouldBlock` when nothing is.
    ///
    /// # Errors
    /// If there is nothing, or the connection is broken.
    pub fn receive_now(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
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
    pub fn ended(&self, half: bool) -> OpFuture {
        readiness(&self.descriptor, if half { Interest::PeerEnded } else { Interest::Broken })
    }

    /// Bytes that the kernel has for us.
    ///
    /// # Errors
    /// Never, on a socket.
    pub fn bytes_waiting(&self) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(self.descriptor())?)
    }

    /// Sends what the socket takes now; `WouldBlock` when it takes nothing.
    ///
    /// # Errors
    /// If it takes nothing, or the connection is broken.
    pub fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(self.descriptor(), slices, &mut control, flags)?)
    }

    /// Waits until the socket takes bytes. One task at a time may wait.
    ///
    /// # Errors
    /// If the ring cannot wait for it.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(cx, &self.writable, Interest::Writable)
    }

    /// The same connection under another descriptor: the ring of this core holds the first one until its poll is
    /// cancelled (I1).
    ///
    /// # Errors
    /// If there is no descriptor to spare.
    pub fn duplicate(&self, options: &SocketOptions) -> io::Result<OwnedFd> {
        let duplicate = self.descriptor.try_clone()?;
        if duplicate.as_raw_fd() >= options.descriptors_max {
            return Err(rustix::io::Errno::MFILE.into());
        }
        Ok(duplicate)
    }

    /// Whether the descriptor is one of those that are left for files.
    pub fn is_beyond(&self, options: &SocketOptions) -> bool {
        self.descriptor.as_raw_fd() >= options.descriptors_max
    }

    /// Tells the peer that nothing more comes.
    pub fn end_writes(&self) {
        // The peer may be gone already; there is nothing left to do about it then.
        rustix::net::shutdown(self.descriptor(), Shutdown::Write).ok();
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A TCP socket for `address`, not bound and not connected.
fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// The addresses of `host:port`. What is an address already costs nothing; a name is looked up on a thread of its own,
/// since a name server may take half a minute to say nothing, and the core's blocking calls are behind one another.
/// Cancel-safe: the thread ends by itself.
///
/// # Errors
/// If the name has no address, or no thread can be started.
pub async fn resolve(host_and_port: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host_and_port.parse() {
        return Ok(vec![address]);
    }
    // The end of the pair tells of the answer through the ring: a waker would not do, from another thread.
    let (here, there) = UnixStream::pair()?;
    let (answer, answered) = mpsc::sync_channel(1);
    let name = host_and_port.to_owned();
    std::thread::Builder::new().name("chronik-resolve".to_owned()).spawn(move || {
        let addresses = name.to_socket_addrs().map(Vec::from_iter);
        // Nobody waits any more if it fails.
        answer.send(addresses).ok();
        drop(there);
    })?;
    readiness(&Rc::new(OwnedFd::from(here)), Interest::PeerEnded).await?;
    answered.try_recv().unwrap_or_else(|_| Err(io::Error::other("the lookup ended without answer")))
}
