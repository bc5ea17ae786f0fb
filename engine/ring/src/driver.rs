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

/// The same while tasks keep the core busy: glommio by itself looks at its rings only every 100 ms then.
const GUEST_PAUSE_BUSY: Duration = Duration::from_millis(1);

/// Long enough that glommio has no time to fire it before it has looked at its rings.
const REACTOR_VISIT: Duration = Duration::from_micros(1);

thread_local! {
    static CURRENT: RefCell<Current> = const { RefCell::new(Current::NotYet) };
    /// A task has run since the driver last looked.
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    /// Guests under way.
    static GUESTS: Cell<usize> = const { Cell::new(0) };
    static ROUND_BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static NOTIFIED: RefCell<Option<Waker>> = const { RefCell::new(None) };
    static NOTIFICATION_KEPT: Cell<bool> = const { Cell::new(false) };
    /// glommio's reactor is being visited: no task may run, or glommio would not get to it.
    static VISITING: Cell<bool> = const { Cell::new(false) };
    /// The tasks that were to run meanwhile.
    static HELD_BACK: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug, Clone)]
enum Current {
    NotYet,
    Running(Rc<CoreRing>),
    Ended,
}

/// The ring of this thread; `None` when [`run`] has ended. The executor may go on for a moment with tasks that were
/// about to run: nothing that they begin resolves.
pub(crate) fn current() -> Option<Rc<CoreRing>> {
    match CURRENT.with_borrow(Clone::clone) {
        Current::Running(ring) => Some(ring),
        Current::Ended => None,
        #[expect(clippy::panic, reason = "a program that forgets it fails at its first operation")]
        Current::NotYet => panic!("no chronik_ring::run on this thread"),
    }
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
        CURRENT.set(Current::Ended);
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
    CURRENT.set(Current::Running(Rc::clone(&ring)));
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

/// Tells the driver that a task has run, and keeps it from running while the reactor is visited.
struct Tracked<'a, F> {
    inner: Pin<&'a mut F>,
}

impl<F: Future> Future for Tracked<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        note_activity();
        if VISITING.get() {
            HELD_BACK.with_borrow_mut(|held| held.push(cx.waker().clone()));
            return Poll::Pending;
        }
        self.inner.as_mut().poll(cx)
    }
}

impl<F> Drop for Tracked<'_, F> {
    /// A task that was cancelled is not polled again, but the end of its future may wake others.
    fn drop(&mut self) {
        note_activity();
    }
}

/// There may be somebody behind the driver in the queue: it must not sleep before they have run.
pub(crate) fn note_activity() {
    ACTIVE.set(true);
}

/// Runs for as long as the ring is installed. Each time around, all tasks that were runnable before have run.
async fn drive(ring: Rc<CoreRing>) {
    // Entries that were queued in a round before the last: nobody is about to make the system call for them.
    let mut queued_before = false;
    let mut visited_at = now();
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
            if GUESTS.get() > 0 && now.saturating_duration_since(visited_at) >= GUEST_PAUSE_BUSY {
                visited_at = now;
                visit_reactor().await;
            }
            continue;
        }
        queued_before = false;
        let mut at_most = ring.timers.next_in(now).map_or(SLEEP_MAX, |next| next.min(SLEEP_MAX));
        if GUESTS.get() > 0 {
            visited_at = now;
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

/// Lets glommio's reactor submit and collect once: while this waits all others are held back, so no task is runnable,
/// glommio looks at its rings, and the timer brings it back before it can go to sleep.
async fn visit_reactor() {
    VISITING.set(true);
    glommio::timer::sleep(REACTOR_VISIT).await;
    // What the visit has woken stands behind us.
    yield_now().await;
    VISITING.set(false);
    for held in HELD_BACK.take() {
        held.wake();
    }
}
