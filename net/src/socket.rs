//! One TCP socket on one core: glommio waits for it, plain system calls move the bytes.
//!
//! Owns [`Socket`]. Every operation tries the non-blocking call first and arms a poll only when that
//! would block; glommio's own stream has neither a vectored write nor a read into uninitialised
//! memory. Never uses the stream's timeouts: an abandoned one fires on a later operation.
//!
//! The only `unsafe` of this crate is here: glommio lends its descriptor as a number only.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use rustix::buffer::spare_capacity;
use rustix::net::sockopt;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use crate::settings::NetSettings;

/// A connected socket, closed when dropped. Both directions are used by one task.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: RawFd,
    stream: RefCell<TcpStream>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { descriptor: stream.as_raw_fd(), stream: RefCell::new(stream) }
    }

    pub(crate) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let stream = self.stream.borrow();
        Ok((stream.peer_addr()?, stream.local_addr()?))
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

    /// Receives into `buffer`; a short read arms the poll for the next one at once.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buffer)
    }

    /// Receives what is there into the spare capacity of `buffer`; `WouldBlock` when nothing is.
    pub(crate) fn receive_now(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let received =
            rustix::net::recv(self.descriptor(), spare_capacity(buffer), RecvFlags::DONTWAIT)?;
        Ok(received.1)
    }

    /// Sends what the socket takes now; `WouldBlock` when it takes nothing.
    pub(crate) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut control = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(self.descriptor(), slices, &mut control, flags)?)
    }

    /// Waits until the socket takes bytes, and gives it some of `bytes`.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, bytes)
    }

    /// Tells the peer that nothing more comes.
    pub(crate) fn end_writes(&self) {
        // The peer may be gone already; there is nothing left to do about it then.
        rustix::net::shutdown(self.descriptor(), Shutdown::Write).ok();
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.stream`, which stays open until `self` is
        // dropped, and the returned borrow cannot outlive `self`.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }
}
