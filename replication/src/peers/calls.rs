//! Calls of this side that wait for their answers, on one link.
//!
//! - I1: whoever waits is answered once: by the peer, by the end of the link, or by the clock.
//! - I2: at most [`CALLS_MAX`] wait.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::clock::within;
use super::handler::CallError;
use super::link::Link;
use crate::wire::Reply;

/// The most calls that wait for their answers on one link, of either side.
pub(super) const CALLS_MAX: usize = 1024;

#[derive(Debug)]
enum Waiting {
    /// Whoever waits is woken with the answer.
    Asked(Option<Waker>),
    Answered(Result<Bytes, CallError>),
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    next_id: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
}

impl Calls {
    /// A name for a call that is about to be sent; `None` if too many wait (I2).
    pub(super) fn begin(&self) -> Option<u64> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= CALLS_MAX {
            return None;
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        waiting.insert(id, Waiting::Asked(None));
        Some(id)
    }

    /// The peer has answered. An answer that nobody waits for any more is dropped.
    pub(super) fn on_reply(&self, reply: Reply) {
        self.answer(reply.id, reply.result.map_err(CallError::Refused));
    }

    /// No answer will come.
    pub(super) fn fail_all(&self) {
        let ids: Vec<u64> = self.waiting.borrow().keys().copied().collect();
        for id in ids {
            self.answer(id, Err(CallError::Lost));
        }
    }

    fn answer(&self, id: u64, result: Result<Bytes, CallError>) {
        let waker = match self.waiting.borrow_mut().get_mut(&id) {
            Some(waiting @ Waiting::Asked(_)) => {
                match std::mem::replace(waiting, Waiting::Answered(result)) {
                    Waiting::Asked(waker) => waker,
                    Waiting::Answered(_) => None,
                }
            }
            _ => None,
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, id: u64, cx: &mut Context<'_>) -> Poll<Result<Bytes, CallError>> {
        let mut waiting = self.waiting.borrow_mut();
        match waiting.remove(&id) {
            Some(Waiting::Answered(result)) => Poll::Ready(result),
            Some(Waiting::Asked(_)) => {
                waiting.insert(id, Waiting::Asked(Some(cx.waker().clone())));
                Poll::Pending
            }
            None => Poll::Ready(Err(CallError::Lost)),
        }
    }
}

/// A call that was sent. Dropped, its answer is not waited for.
#[derive(Debug)]
pub(super) struct PendingCall {
    link: Rc<Link>,
    id: u64,
}

impl PendingCall {
    pub(super) fn new(link: Rc<Link>, id: u64) -> PendingCall {
        PendingCall { link, id }
    }

    /// Waits for the answer. Cancel-safe: dropped, the peer may still do what it was asked.
    pub(super) async fn answer(self, timeout: Duration) -> Result<Bytes, CallError> {
        let answered = poll_fn(|cx| self.link.calls().poll(self.id, cx));
        within(timeout, answered).await.unwrap_or(Err(CallError::Timeout))
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.link.calls().waiting.borrow_mut().remove(&self.id);
    }
}
