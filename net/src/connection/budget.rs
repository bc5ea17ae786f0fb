//! Requests that wait for the budget of their core, and large frames on their way into it.
//!
//! - I1: a large frame is received only while it has its budget. It asks for that when something comes of it, and when
//!   the connection has room for its request: what a peer keeps in its pipeline stops nobody else.
//! - I2: who waits for budget hears of the end of the peer. A frame that can never be whole leaves the queue; a whole
//!   one whose peer only ended its side is served.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use chronik_ring::OpFuture;

use super::Connection;
use crate::admission::{Arrival, Permit};
use crate::clock;
use crate::error::CloseReason;
use crate::frame::FrameAssembler;
use crate::handler::RequestHandler;

/// Received into a large frame before other tasks of the core get a chance.
const RECEIVE_STEP_BYTES: usize = 1 << 20;

/// A frame that waits for budget before it is whole.
pub(super) struct Incomplete<'a> {
    arrival: &'a Arrival,
    received: usize,
    missing: usize,
}

impl<H: RequestHandler> Connection<'_, H> {
    /// Receives more of a large frame, of `length` bytes, once more comes and there is budget for it.
    pub(super) async fn receive_large(
        &self,
        frames: &mut FrameAssembler,
        arrival: &Arrival,
        length: usize,
    ) -> Result<(), CloseReason> {
        self.control.frame_owed(self.core.clock.now());
        self.wait_for_more(frames, arrival).await?;
        if !arrival.is_claimed() {
            let taken = self.control.frame_waits(self.core.clock.now());
            self.claim(frames, arrival, length).await?;
            self.control.frame_goes_on(self.core.clock.now(), taken);
        }
        self.receive_directly(frames, arrival)
    }

    async fn wait_for_more(
        &self,
        frames: &mut FrameAssembler,
        arrival: &Arrival,
    ) -> Result<(), CloseReason> {
        poll_fn(|cx| {
            if self.control.is_draining() {
                return Poll::Ready(Err(CloseReason::Shutdown));
            }
            if arrival.is_given_up() {
                let received = frames.received_in_frame();
                return Poll::Ready(Err(CloseReason::GivenUp { received }));
            }
            if let Poll::Ready(readable) = self.socket.poll_readable(cx) {
                arrival.set_busy();
                return Poll::Ready(readable.map_err(CloseReason::from));
            }
            arrival.set_quiet(cx.waker());
            if !arrival.is_claimed() {
                frames.give_back_reserve();
            }
            Poll::Pending
        })
        .await
    }

    async fn claim(
        &self,
        frames: &mut FrameAssembler,
        arrival: &Arrival,
        length: usize,
    ) -> Result<(), CloseReason> {
        self.wait_for_room(length).await;
        let asked_at = clock::now();
        let permit = match self.core.admission.try_acquire(length) {
            Some(permit) => permit,
            None => {
                let received = frames.received_in_frame();
                let missing = frames.missing_in_frame();
                let incomplete = Incomplete { arrival, received, missing };
                self.wait_for_budget(length, Some(incomplete)).await?
            }
        };
        arrival.claim(permit, asked_at.elapsed());
        frames.reserve_claimed();
        Ok(())
    }

    /// Receives what is there, without a copy, up to the end of the frame.
    fn receive_directly(
        &self,
        frames: &mut FrameAssembler,
        arrival: &Arrival,
    ) -> Result<(), CloseReason> {
        let mut received_bytes = 0;
        while received_bytes < RECEIVE_STEP_BYTES && !frames.has_frame() {
            match frames.receive_body(|buffer| self.socket.receive_now(buffer)) {
                None => break,
                Some(Ok(0)) => {
                    let received = frames.received_in_frame();
                    return Err(CloseReason::PeerClosedInFrame { received });
                }
                Some(Ok(received)) => received_bytes += received,
                Some(Err(CloseReason::Socket { error })) if is_passing(&error) => {}
                Some(Err(reason)) => return Err(reason),
            }
            if self.socket.is_drained() {
                break;
            }
        }
        if received_bytes > 0 {
            self.control.touch(self.core.clock.now());
        }
        if !frames.has_frame() {
            arrival.advance(frames.received_in_frame(), clock::now());
        }
        Ok(())
    }

    /// Waits for `bytes` of the core's budget, unless that is in vain (I2).
    pub(super) async fn wait_for_budget(
        &self,
        bytes: usize,
        incomplete: Option<Incomplete<'_>>,
    ) -> Result<Permit, CloseReason> {
        let mut acquire = pin!(self.core.admission.acquire(bytes));
        let mut ended = Some(self.socket.ended(incomplete.is_some()));
        poll_fn(|cx| {
            if let Some(incomplete) = &incomplete {
                if self.control.is_draining() {
                    return Poll::Ready(Err(CloseReason::Shutdown));
                }
                if incomplete.arrival.is_given_up() {
                    let received = incomplete.received;
                    return Poll::Ready(Err(CloseReason::GivenUp { received }));
                }
            }
            if let Poll::Ready(permit) = acquire.as_mut().poll(cx) {
                return Poll::Ready(Ok(permit));
            }
            match self.poll_in_vain(&mut ended, incomplete.as_ref(), cx) {
                Poll::Ready(reason) => Poll::Ready(Err(reason)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Ready once the request can never be whole, or nobody would hear its answer.
    fn poll_in_vain(
        &self,
        ended: &mut Option<OpFuture>,
        incomplete: Option<&Incomplete<'_>>,
        cx: &mut Context<'_>,
    ) -> Poll<CloseReason> {
        let Some(Poll::Ready(result)) = ended.as_mut().map(|ended| Pin::new(ended).poll(cx)) else {
            return Poll::Pending;
        };
        *ended = None;
        if let Err(error) = result {
            return Poll::Ready(error.into());
        }
        let Some(incomplete) = incomplete else {
            return Poll::Ready(io::Error::from(io::ErrorKind::ConnectionReset).into());
        };
        match self.socket.bytes_waiting() {
            // The rest came before the end.
            Ok(bytes) if bytes >= incomplete.missing as u64 => Poll::Pending,
            Ok(_) => Poll::Ready(CloseReason::PeerClosedInFrame { received: incomplete.received }),
            Err(error) => Poll::Ready(error.into()),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
