//! What others may know of a connection and do to it: its deadlines, its draining, its end.
//!
//! Owns [`Control`], shared between a connection's task and the sweep of its core. The sweep reads
//! the deadlines; no connection has a timer of its own, which would be moved with every request.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::CloseReason;
use crate::handler::ConnectionContext;
use crate::settings::NetSettings;

#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) context: ConnectionContext,
    /// Requests taken and not answered.
    pub(crate) in_flight: Cell<usize>,
    /// API key of the last request taken, for the log.
    pub(crate) last_api_key: Cell<Option<i16>>,
    active_at: Cell<Instant>,
    frame_since: Cell<Option<Instant>>,
    write_since: Cell<Option<Instant>>,
    draining: Cell<bool>,
    abort: RefCell<Option<CloseReason>>,
    waker: RefCell<Option<Waker>>,
}

impl Control {
    pub(crate) fn new(context: ConnectionContext, now: Instant) -> Self {
        Self {
            context,
            in_flight: Cell::new(0),
            last_api_key: Cell::new(None),
            active_at: Cell::new(now),
            frame_since: Cell::new(None),
            write_since: Cell::new(None),
            draining: Cell::new(false),
            abort: RefCell::new(None),
            waker: RefCell::new(None),
        }
    }

    pub(crate) fn touch(&self, now: Instant) {
        self.active_at.set(now);
    }

    /// A frame is incomplete and the peer owes the rest; keeps the time of the first call.
    pub(crate) fn frame_owed(&self, now: Instant) {
        if self.frame_since.get().is_none() {
            self.frame_since.set(Some(now));
        }
    }

    /// The peer owes nothing, or waits for us.
    pub(crate) fn frame_settled(&self) {
        self.frame_since.set(None);
    }

    /// The peer waits for us in the middle of a frame: how long it has taken so far, for [`Control::frame_goes_on`].
    pub(crate) fn frame_waits(&self, now: Instant) -> Duration {
        let since = self.frame_since.take();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The peer owes the rest of a frame again, for which it has taken `taken` before.
    pub(crate) fn frame_goes_on(&self, now: Instant, taken: Duration) {
        self.frame_since.set(Some(now.checked_sub(taken).unwrap_or(now)));
    }

    /// `Some` while response bytes wait for the peer, since their last progress.
    pub(crate) fn set_write_wait(&self, since: Option<Instant>) {
        self.write_since.set(since);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// No further request is taken; what was taken is answered.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        self.wake();
    }

    /// Ends the connection at its next poll.
    pub(crate) fn abort(&self, reason: CloseReason) {
        *self.abort.borrow_mut() = Some(reason);
        self.wake();
    }

    /// Ends the connection if it missed a deadline.
    pub(crate) fn sweep(&self, now: Instant, settings: &NetSettings) {
        let overdue = |since: Option<Instant>, limit: Duration| {
            since.is_some_and(|since| now.saturating_duration_since(since) > limit)
        };
        let reason = if overdue(self.frame_since.get(), settings.half_frame_timeout) {
            CloseReason::HalfReceived { limit_ms: millis(settings.half_frame_timeout) }
        } else if overdue(self.write_since.get(), settings.write_stall_timeout) {
            CloseReason::WriteStalled { limit_ms: millis(settings.write_stall_timeout) }
        } else if self.in_flight.get() == 0
            && self.write_since.get().is_none()
            && overdue(Some(self.active_at.get()), settings.idle_timeout)
        {
            CloseReason::Idle { idle_ms: millis(settings.idle_timeout) }
        } else {
            return;
        };
        self.abort(reason);
    }

    /// Runs `connection` until it ends by itself or is aborted. The waker is kept so that the sweep
    /// can reach a connection that waits for something else.
    pub(crate) async fn run(
        &self,
        mut connection: Pin<&mut impl Future<Output = CloseReason>>,
    ) -> CloseReason {
        poll_fn(|cx| {
            if let Some(reason) = self.abort.borrow_mut().take() {
                return Poll::Ready(reason);
            }
            {
                let mut waker = self.waker.borrow_mut();
                if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
            }
            connection.as_mut().poll(cx)
        })
        .await
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
