//! A wake-up for one waiting task of the same core: set once, taken once.
//!
//! - I1: at most one task waits on a [`Notify`]; a second one would take the first one's place.
//! - I2: a notification that comes while nobody waits is kept for the next one who does.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// See the module's page.
#[derive(Debug, Default)]
pub struct Notify {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Notify {
    /// Wakes the task that waits, or lets the next one pass.
    pub fn notify(&self) {
        if !self.set.replace(true)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Waits for a notification and takes it. Cancel-safe: one that is not taken stays.
    pub async fn notified(&self) {
        poll_fn(|cx| {
            if self.set.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
