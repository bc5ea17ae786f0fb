//! The timers of a core: they set how long the ring may wait, and cost no system call of their own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::driver;
use crate::ring::CoreRing;

/// Who waits for when. Timers of the same instant fire in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    waiting: RefCell<BTreeMap<TimerKey, Waker>>,
    next_id: Cell<u64>,
}

type TimerKey = (Instant, u64);

impl Timers {
    /// Wakes all that are due; says whether any was.
    pub(crate) fn fire(&self, now: Instant) -> bool {
        let mut fired = false;
        loop {
            let due = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return fired,
                }
            };
            fired = true;
            due.wake();
        }
    }

    /// How long until the first is due.
    pub(crate) fn next_in(&self, now: Instant) -> Option<Duration> {
        let waiting = self.waiting.borrow();
        waiting.first_key_value().map(|((at, _), _)| at.saturating_duration_since(now))
    }
}

/// Resolves after `duration`, at the earliest. Cancel-safe.
#[must_use]
pub fn sleep(duration: Duration) -> Sleep {
    Sleep { duration, registered: None }
}

/// See [`sleep`]. The time begins with the first poll.
#[derive(Debug)]
pub struct Sleep {
    duration: Duration,
    registered: Option<(Rc<CoreRing>, TimerKey)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some((ring, key)) = &self.registered else {
            let Some(at) = driver::now().checked_add(self.duration) else {
                return Poll::Pending; // beyond the end of time
            };
            let Some(ring) = driver::current() else { return Poll::Pending };
            let id = ring.timers.next_id.get();
            ring.timers.next_id.set(id + 1);
            ring.timers.waiting.borrow_mut().insert((at, id), cx.waker().clone());
            self.registered = Some((ring, (at, id)));
            return Poll::Pending;
        };
        let mut waiting = ring.timers.waiting.borrow_mut();
        match waiting.get_mut(key) {
            Some(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(()), // fired
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((ring, key)) = &self.registered {
            ring.timers.waiting.borrow_mut().remove(key);
        }
    }
}
