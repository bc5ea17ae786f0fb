//! The byte budget of one core: how much of requests may be held between reading and letting go.
//!
//! Owns [`Admission`]. A connection that gets no permit is not read, so the peer's TCP window fills
//! and the pressure goes back to where it came from.
//!
//! I1 Permits given out never exceed the limit. A request larger than the limit asks for all of it,
//!    so it is served once everything before it is done, however large it is.
//! I2 First come, first served: a large request is not overtaken for ever by small ones.
//! I3 A permit granted to a waiter that went away goes back.
//! I4 While somebody waits, nothing is held for a frame of which nothing comes: see [`arrivals`].

mod arrivals;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arrivals::Arrivals;
use chronik_ring::sleep;

use crate::clock;

pub(crate) use arrivals::{ARRIVAL_BYTES_FREE, Arrival};

/// Between two looks for frames that stand still, while somebody waits.
const RELIEF_INTERVAL: Duration = Duration::from_millis(10);

/// A handle on the budget of this core.
#[derive(Debug, Clone)]
pub struct Admission {
    budget: Rc<Budget>,
}

#[derive(Debug)]
struct Budget {
    bytes_max: usize,
    bytes_used: Cell<usize>,
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
    arrivals: Arrivals,
    /// Woken when somebody waits: see [`Admission::relieve`].
    reliever: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Bytes of the budget, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Admission {
    pub fn new(bytes_max: usize) -> Self {
        assert!(bytes_max > 0, "a budget of nothing would stop every connection");
        Self {
            budget: Rc::new(Budget {
                bytes_max,
                bytes_used: Cell::new(0),
                waiters: RefCell::new(VecDeque::new()),
                arrivals: Arrivals::new(bytes_max),
                reliever: RefCell::new(None),
            }),
        }
    }

    /// A permit, if nobody has to be waited for.
    pub fn try_acquire(&self, bytes: usize) -> Option<Permit> {
        let bytes = bytes.min(self.budget.bytes_max);
        if self.budget.is_contended() || !self.budget.fits(bytes) {
            return None;
        }
        self.budget.take(bytes);
        Some(Permit { budget: Rc::clone(&self.budget), bytes })
    }

    /// Waits for its turn. More than the whole budget is clamped to it: such a request is served
    /// alone instead of never. Cancel-safe: dropping the future leaves the queue.
    pub fn acquire(&self, bytes: usize) -> Acquire {
        Acquire {
            budget: Rc::clone(&self.budget),
            bytes: bytes.min(self.budget.bytes_max),
            waiter: None,
        }
    }

    pub fn bytes_used(&self) -> usize {
        self.budget.bytes_used.get()
    }

    /// Looks time and again for frames that stand still, while somebody waits. Never returns; one task per core.
    pub(crate) async fn relieve(&self) {
        loop {
            poll_fn(|cx| {
                *self.budget.reliever.borrow_mut() = Some(cx.waker().clone());
                if self.budget.is_contended() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            self.budget.grant();
            sleep(RELIEF_INTERVAL).await;
        }
    }

    /// Connections that wait to be read on.
    pub fn waiting(&self) -> usize {
        self.budget.waiters.borrow().len()
    }
}

impl Budget {
    fn is_contended(&self) -> bool {
        !self.waiters.borrow().is_empty()
    }

    fn fits(&self, bytes: usize) -> bool {
        bytes <= self.bytes_max - self.bytes_used.get()
    }

    fn take(&self, bytes: usize) {
        assert!(self.fits(bytes), "a permit beyond the budget");
        self.bytes_used.set(self.bytes_used.get() + bytes);
    }

    fn give_back(&self, bytes: usize) {
        assert!(bytes <= self.bytes_used.get(), "more given back than was taken");
        self.bytes_used.set(self.bytes_used.get() - bytes);
        self.grant();
    }

    /// Grants to the front of the queue for as long as it fits, and calls in what others hold for nothing (I4).
    fn grant(&self) {
        loop {
            let Some(waiter) = self.waiters.borrow().front().cloned() else { return };
            if !self.fits(waiter.bytes) {
                let Some(bytes) = self.arrivals.call_in(clock::now()) else { return };
                self.bytes_used.set(self.bytes_used.get() - bytes);
                continue;
            }
            self.waiters.borrow_mut().pop_front();
            self.take(waiter.bytes);
            waiter.granted.set(true);
            if let Some(waker) = waiter.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// See [`Admission::acquire`].
#[derive(Debug)]
pub struct Acquire {
    budget: Rc<Budget>,
    bytes: usize,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let bytes = self.bytes;
        if let Some(waiter) = &self.waiter {
            if !waiter.granted.get() {
                *waiter.waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.waiter = None; // the grant is the permit's from here on
            return Poll::Ready(Permit { budget: Rc::clone(&self.budget), bytes });
        }
        if !self.budget.is_contended() && self.budget.fits(bytes) {
            self.budget.take(bytes);
            return Poll::Ready(Permit { budget: Rc::clone(&self.budget), bytes });
        }
        let waiter = Rc::new(Waiter {
            bytes,
            granted: Cell::new(false),
            waker: RefCell::new(Some(cx.waker().clone())),
        });
        self.budget.waiters.borrow_mut().push_back(Rc::clone(&waiter));
        self.waiter = Some(waiter);
        self.budget.grant();
        if !self.waiter.as_ref().is_some_and(|waiter| waiter.granted.get()) {
            if let Some(reliever) = self.budget.reliever.borrow_mut().take() {
                reliever.wake();
            }
            return Poll::Pending;
        }
        self.waiter = None;
        Poll::Ready(Permit { budget: Rc::clone(&self.budget), bytes })
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if waiter.granted.get() {
            self.budget.give_back(waiter.bytes);
            return;
        }
        self.budget.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter));
        // The one behind may fit where this one did not.
        self.budget.grant();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    fn take(admission: &Admission, bytes: usize) -> Permit {
        block_on(poll_once(admission.acquire(bytes))).expect("it fits")
    }

    #[test]
    fn given_a_full_budget_when_a_permit_returns_then_the_first_waiter_gets_it() {
        let admission = Admission::new(100);
        let held = take(&admission, 80);
        let mut large = Box::pin(admission.acquire(90));
        let mut small = Box::pin(admission.acquire(10));
        assert!(block_on(poll_once(&mut large)).is_none());
        assert!(block_on(poll_once(&mut small)).is_none(), "a small one must not overtake");
        drop(held);
        let large = block_on(poll_once(&mut large)).expect("granted");
        let small = block_on(poll_once(&mut small)).expect("granted too");
        assert_eq!(admission.bytes_used(), 100);
        drop((large, small));
        assert_eq!(admission.bytes_used(), 0);
    }

    #[test]
    fn given_a_granted_waiter_when_dropped_then_the_next_one_gets_the_bytes() {
        let admission = Admission::new(10);
        let held = take(&admission, 10);
        let mut first = Box::pin(admission.acquire(10));
        let mut second = Box::pin(admission.acquire(10));
        assert!(block_on(poll_once(&mut first)).is_none());
        assert!(block_on(poll_once(&mut second)).is_none());
        drop(held);
        drop(first);
        assert!(block_on(poll_once(&mut second)).is_some());
    }

    #[test]
    fn given_a_blocked_large_waiter_when_it_leaves_then_a_small_one_behind_it_goes_on() {
        let admission = Admission::new(10);
        let _held = take(&admission, 5);
        let mut large = Box::pin(admission.acquire(10));
        let mut small = Box::pin(admission.acquire(5));
        assert!(block_on(poll_once(&mut large)).is_none());
        assert!(block_on(poll_once(&mut small)).is_none());
        drop(large);
        assert!(block_on(poll_once(&mut small)).is_some());
    }

    #[test]
    fn given_a_request_over_the_limit_when_alone_then_it_takes_all_of_it() {
        let admission = Admission::new(10);
        let permit = take(&admission, 1000);
        assert_eq!(admission.bytes_used(), 10);
        drop(permit);
        assert_eq!(admission.bytes_used(), 0);
    }
}
