//! The task that puts a core to sleep in its ring, and what the core's other tasks are spawned with.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::notifier::Notifier;
use crate::ring::CoreRing;

/// The longest sleep, and so the longest that a glommio future waits which nobody announced.
pub const SLEEP_MAX: Duration = Duration::from_millis(100);

/// How long tasks may run before [`yield_if_needed`] lets the ring have a look at the world.
const ROUND_MAX: Duration = Duration::from_micros(500);

/// Between two visits to glommio's reactor while a guest waits for it.
const GUEST_PAUSE: Duration = Duration::from_micros(50);

/// Long enough that glommio has no time to fire it before it has looked at its rings.
const REACTOR_VISIT: Duration = Duration::from_micros(1);

thread_local! {
    static CURRENT: RefCell<Option<Rc<CoreRing>>> = const { RefCell::new(None) };
    /// A task has run since the driver last looked.
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    /// Guests under way.
    static GUESTS: Cell<usize> = const { Cell::new(0) };
    static ROUND_BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static NOTIFIED: RefCell<Option<Waker>> = const { RefCell::new(None) };
    static NOTIFICATION_KEPT: Cell<bool> = const { Cell::new(false) };
}

/// The ring of this thread.
pub(crate) fn current() -> Rc<CoreRing> {
    let ring = CURRENT.with_borrow(Clone::clone);
    #[expect(
        clippy::expect_used,
        reason = "a program that forgets it fails at its first operation"
    )]
    ring.expect("no chronik_ring::run on this thread")
}

/// The shell's time: monotonic, one read of the clock.
#[expect(clippy::disallowed_methods, reason = "the ring is part of the shell and keeps its time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Keeps a core asleep in its ring instead of in glommio's, until it is dropped.
#[derive(Debug)]
struct Installed {
    _driver: glommio::Task<()>,
}

impl Drop for Installed {
    fn drop(&mut self) {
        CURRENT.take();
        NOTIFIED.take();
    }
}

/// Gives the glommio executor of this thread a ring to sleep in and runs `future`; to be called as the main future of
/// the executor, and once.
///
/// # Errors
/// If the kernel refuses the ring.
pub async fn run<T>(notifier: Notifier, future: impl Future<Output = T>) -> io::Result<T> {
    let ring = Rc::new(CoreRing::new(notifier)?);
    CURRENT.set(Some(Rc::clone(&ring)));
    let _installed = Installed { _driver: glommio::spawn_local(drive(ring)) };
    Ok(Tracked { inner: pin!(future) }.await)
}

/// Spawns a task on this core. Dropping the handle cancels it; detach it to let it go on.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> glommio::Task<T> {
    glommio::spawn_local(async move { Tracked { inner: pin!(future) }.await })
}

/// A future of glommio's that waits for glommio's reactor: while one is under way the driver visits it.
pub async fn guest<T>(future: impl Future<Output = T>) -> T {
    struct Guest;
    impl Drop for Guest {
        fn drop(&mut self) {
            GUESTS.set(GUESTS.get() - 1);
        }
    }
    GUESTS.set(GUESTS.get() + 1);
    let _guest = Guest;
    future.await
}

/// Lets every other runnable task of the core run first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The same, if tasks have run for half a millisecond without a look at the ring. For loops that may go on for long.
pub async fn yield_if_needed() {
    if ROUND_BEGUN.get().is_some_and(|begun| now().saturating_duration_since(begun) > ROUND_MAX) {
        yield_now().await;
    }
}

/// Resolves once another thread has called [`Notifier::notify`] since the last time. One task of the core may wait.
/// Cancel-safe.
pub async fn notified() {
    poll_fn(|cx| {
        if NOTIFICATION_KEPT.take() {
            return Poll::Ready(());
        }
        NOTIFIED.set(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// Tells the driver that a task has run.
struct Tracked<'a, F> {
    inner: Pin<&'a mut F>,
}

impl<F: Future> Future for Tracked<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        ACTIVE.set(true);
        self.inner.as_mut().poll(cx)
    }
}

/// Runs for as long as the ring is installed. Each time around, all tasks that were runnable before have run.
async fn drive(ring: Rc<CoreRing>) {
    // Entries that were queued in a round before the last: nobody is about to make the system call for them.
    let mut queued_before = false;
    loop {
        yield_now().await;
        let now = now();
        ROUND_BEGUN.set(Some(now));
        if gather(&ring, now) | ACTIVE.take() {
            // A lone task's entry leaves with the sleep that follows; where others keep the core busy, now.
            if queued_before {
                ring.enter();
                queued_before = false;
            } else {
                queued_before = ring.needs_enter();
            }
            continue;
        }
        queued_before = false;
        let mut at_most = ring.timers.next_in(now).map_or(SLEEP_MAX, |next| next.min(SLEEP_MAX));
        if GUESTS.get() > 0 {
            visit_reactor().await;
            if ACTIVE.get() {
                continue;
            }
            at_most = at_most.min(GUEST_PAUSE);
        }
        ring.enter_and_wait(at_most);
    }
}

/// Wakes everybody whom the kernel, the clock or another thread has something for; says whether there was anybody.
fn gather(ring: &CoreRing, now: Instant) -> bool {
    let answered = ring.collect();
    let timed = ring.timers.fire(now);
    let notified = ring.notifier.take();
    if notified {
        NOTIFICATION_KEPT.set(true);
        if let Some(waker) = NOTIFIED.take() {
            waker.wake();
        }
    }
    answered | timed | notified
}

/// Lets glommio's reactor submit and collect once: while this waits no task is runnable, so glommio looks at its rings,
/// and the timer brings it back before it can go to sleep.
async fn visit_reactor() {
    glommio::timer::sleep(REACTOR_VISIT).await;
    // What the visit has woken stands behind us.
    yield_now().await;
}
