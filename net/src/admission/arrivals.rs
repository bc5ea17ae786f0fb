//! Large frames that are on their way in, and what of the budget they hold meanwhile.
//!
//! A large frame claims all its bytes before it is received: else many frames, each received in part, could fill the
//! budget so that none of them is ever whole. But a peer that declares much and sends little would keep the claim from
//! the others for nothing. So while somebody waits, the claim of a frame of which nothing comes is *called in*: what
//! has arrived of it is *parked* beside the budget, and once more arrives the frame claims its bytes anew, in its turn.
//! Nobody is closed for that, a slow link only waits a little more often.
//!
//! - I1: a frame is either claimed with its whole length or parked with what has arrived of it.
//! - I2: what is parked is at most half the budget. Where that is not enough, the frame that stands still for the longest
//!   time is given up with its connection, if that is at least [`STANDSTILL`]. Drops do not count as progress: it is made
//!   in steps of [`PROGRESS_BYTES`].
//! - I3: the first [`ARRIVAL_BYTES_FREE`] of a frame are not counted here: every connection may hold as much of any frame.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Admission, Budget, Permit};

/// A frame larger than this claims its budget before it is received; smaller ones when they are whole.
pub(crate) const ARRIVAL_BYTES_FREE: usize = 64 << 10;
/// What moved as lately as this is not given up.
const STANDSTILL: Duration = Duration::from_millis(50);
/// What has to come for a frame to count as one that moves.
const PROGRESS_BYTES: usize = 16 << 10;
/// The least that a parked frame counts for, so that those that are counted are not many.
const PARKED_BYTES_MIN: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Arrivals {
    /// No more than the budget has room for, since each is large.
    claimed: RefCell<Vec<Rc<Entry>>>,
    /// Those that count for something.
    parked: RefCell<Vec<Rc<Entry>>>,
    parked_bytes: Cell<usize>,
    parked_bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    /// What the budget gave for it; 0 while it is parked.
    claimed: Cell<usize>,
    /// What it counts for as a parked frame.
    parked: Cell<usize>,
    arrived: Cell<usize>,
    /// What had arrived when progress was last noted, and when that was.
    progress: Cell<(usize, Instant)>,
    /// Nothing has come since its connection last looked.
    is_quiet: Cell<bool>,
    is_given_up: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Entry {
    /// What it counts for when it is parked.
    fn charge(&self) -> usize {
        match self.arrived.get().saturating_sub(ARRIVAL_BYTES_FREE) {
            0 => 0,
            beyond => beyond.max(PARKED_BYTES_MIN),
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

impl Arrivals {
    pub(super) fn new(budget_bytes_max: usize) -> Arrivals {
        Arrivals {
            claimed: RefCell::default(),
            parked: RefCell::default(),
            parked_bytes: Cell::new(0),
            parked_bytes_max: budget_bytes_max / 2,
        }
    }

    /// Parks a quiet frame that is claimed, or gives one up if there is no room to park; the bytes of its claim.
    pub(super) fn call_in(&self, now: Instant) -> Option<usize> {
        loop {
            let room = self.parked_bytes_max - self.parked_bytes.get();
            if let Some(entry) = quietest(&self.claimed, |entry| entry.charge() <= room) {
                return Some(self.park(entry));
            }
            let claimed = quietest(&self.claimed, |_| true)?;
            let parked = quietest(&self.parked, |_| true);
            let last_moved = |entry: &Rc<Entry>| entry.progress.get().1;
            let entry = parked.into_iter().chain([claimed]).min_by_key(last_moved)?;
            if now.saturating_duration_since(last_moved(&entry)) < STANDSTILL {
                return None;
            }
            entry.is_given_up.set(true);
            entry.wake();
            if entry.claimed.get() > 0 {
                return Some(self.unclaim(&entry));
            }
            self.unpark(&entry);
        }
    }

    fn park(&self, entry: Rc<Entry>) -> usize {
        let bytes = self.unclaim(&entry);
        // Woken to give back what it has reserved for the bytes to come.
        entry.wake();
        let charge = entry.charge();
        if charge > 0 {
            entry.parked.set(charge);
            self.parked_bytes.set(self.parked_bytes.get() + charge);
            self.parked.borrow_mut().push(entry);
        }
        bytes
    }

    /// The bytes of the claim.
    fn unclaim(&self, entry: &Rc<Entry>) -> usize {
        remove(&self.claimed, entry);
        entry.claimed.take()
    }

    fn unpark(&self, entry: &Rc<Entry>) {
        if entry.parked.get() > 0 {
            remove(&self.parked, entry);
            self.parked_bytes.set(self.parked_bytes.get() - entry.parked.take());
        }
    }
}

/// The quiet one that stands still for the longest time.
fn quietest(
    entries: &RefCell<Vec<Rc<Entry>>>,
    is_eligible: impl Fn(&Entry) -> bool,
) -> Option<Rc<Entry>> {
    let entries = entries.borrow();
    let eligible = entries.iter().filter(|entry| entry.is_quiet.get() && is_eligible(entry));
    eligible.min_by_key(|entry| entry.progress.get().1).map(Rc::clone)
}

fn remove(entries: &RefCell<Vec<Rc<Entry>>>, entry: &Rc<Entry>) {
    let mut entries = entries.borrow_mut();
    let at = entries.iter().position(|other| Rc::ptr_eq(other, entry));
    if let Some(at) = at {
        entries.swap_remove(at);
    }
}

/// A large frame on its way in.
#[derive(Debug)]
pub(crate) struct Arrival {
    budget: Rc<Budget>,
    entry: Rc<Entry>,
}

impl Arrival {
    /// A frame that claims nothing yet.
    pub(crate) fn new(admission: &Admission, now: Instant) -> Arrival {
        let entry = Entry {
            claimed: Cell::new(0),
            parked: Cell::new(0),
            arrived: Cell::new(0),
            progress: Cell::new((0, now)),
            is_quiet: Cell::new(false),
            is_given_up: Cell::new(false),
            waker: RefCell::new(None),
        };
        Arrival { budget: Rc::clone(&admission.budget), entry: Rc::new(entry) }
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.entry.claimed.get() > 0
    }

    /// Others needed the room more: the connection is to end.
    pub(crate) fn is_given_up(&self) -> bool {
        self.entry.is_given_up.get()
    }

    /// May be received from now on. `waited` is not held against the peer.
    pub(crate) fn claim(&self, mut permit: Permit, waited: Duration) {
        assert!(!self.is_claimed(), "a frame is claimed once");
        let arrivals = &self.budget.arrivals;
        arrivals.unpark(&self.entry);
        arrivals.claimed.borrow_mut().push(Rc::clone(&self.entry));
        self.entry.claimed.set(std::mem::take(&mut permit.bytes));
        let (arrived, since) = self.entry.progress.get();
        self.entry.progress.set((arrived, since + waited));
    }

    /// `arrived` bytes of the frame are there.
    pub(crate) fn advance(&self, arrived: usize, now: Instant) {
        self.entry.arrived.set(arrived);
        if arrived - self.entry.progress.get().0 >= PROGRESS_BYTES {
            self.entry.progress.set((arrived, now));
        }
    }

    /// There is nothing to receive: from now on its claim may be called in, maybe at once.
    pub(crate) fn set_quiet(&self, waker: &Waker) {
        {
            let mut known = self.entry.waker.borrow_mut();
            if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
                *known = Some(waker.clone());
            }
        }
        if !self.entry.is_quiet.replace(true) {
            self.budget.grant();
        }
    }

    /// There is something to receive.
    pub(crate) fn set_busy(&self) {
        self.entry.is_quiet.set(false);
    }

    /// The frame is whole: what was claimed for it.
    pub(crate) fn into_permit(self) -> Option<Permit> {
        let bytes = self.budget.arrivals.unclaim(&self.entry);
        (bytes > 0).then(|| Permit { budget: Rc::clone(&self.budget), bytes })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.budget.arrivals.unpark(&self.entry);
        if self.is_claimed() {
            self.budget.give_back(self.budget.arrivals.unclaim(&self.entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    const KIB: usize = 1 << 10;

    fn claimed(admission: &Admission, bytes: usize, at: Instant) -> Arrival {
        let arrival = Arrival::new(admission, at);
        arrival.claim(admission.try_acquire(bytes).expect("it fits"), Duration::ZERO);
        arrival
    }

    fn is_granted(admission: &Admission, bytes: usize) -> bool {
        let mut acquire = Box::pin(admission.acquire(bytes));
        // Once to queue up, once to find out.
        (0..2).any(|_| block_on(poll_once(&mut acquire)).is_some())
    }

    #[test]
    fn given_claims_of_quiet_frames_when_another_waits_then_they_are_called_in() {
        let admission = Admission::new(1 << 20);
        let now = crate::clock::now();
        let busy = claimed(&admission, 512 * KIB, now);
        let quiet = claimed(&admission, 512 * KIB, now);
        quiet.advance(10, now);
        quiet.set_quiet(Waker::noop());
        assert!(quiet.is_claimed(), "nobody waits");
        assert!(is_granted(&admission, 400 * KIB));
        assert!(!quiet.is_claimed() && !quiet.is_given_up());
        assert!(busy.is_claimed());
        assert!(!is_granted(&admission, 600 * KIB), "something comes of the other one");
        drop((busy, quiet));
        assert_eq!(admission.bytes_used(), 0);
    }

    #[test]
    fn given_a_frame_that_goes_quiet_when_somebody_waits_already_then_it_is_called_in_at_once() {
        let admission = Admission::new(1 << 20);
        let frame = claimed(&admission, 1 << 20, crate::clock::now());
        let mut waiter = Box::pin(admission.acquire(100));
        assert!(block_on(poll_once(&mut waiter)).is_none());
        frame.set_quiet(Waker::noop());
        assert!(block_on(poll_once(&mut waiter)).is_some());
    }

    #[test]
    fn given_no_room_to_park_when_called_in_then_the_one_that_stood_still_longest_is_given_up() {
        let admission = Admission::new(1 << 20);
        let start = crate::clock::now();
        let frames: Vec<Arrival> = (0..4u64)
            .map(|n| {
                let frame = claimed(&admission, 256 * KIB, start);
                // The one that began to send last, and sends drops since, has not moved for the longest time.
                frame.advance(255 * KIB, start + Duration::from_millis(10 - n));
                frame.advance(255 * KIB + 1, start + Duration::from_secs(1));
                frame.set_quiet(Waker::noop());
                frame
            })
            .collect();
        let arrivals = &admission.budget.arrivals;
        let call_in = || std::iter::from_fn(|| arrivals.call_in(start + STANDSTILL));
        assert_eq!(call_in().count(), 2, "what moved lately is not given up");
        let given_up = || frames.iter().map(Arrival::is_given_up).collect::<Vec<bool>>();
        assert_eq!(given_up(), [false; 4]);
        let call_in = || std::iter::from_fn(|| arrivals.call_in(start + 2 * STANDSTILL));
        assert_eq!(call_in().count(), 2);
        assert_eq!(given_up(), [false, false, true, true]);
        let parked = arrivals.parked_bytes.get();
        assert_eq!(parked, 2 * (255 * KIB + 1 - ARRIVAL_BYTES_FREE));
        admission.budget.bytes_used.set(0);
        // It goes on where it stopped.
        frames[0].claim(admission.try_acquire(256 * KIB).expect("it fits"), Duration::ZERO);
        assert_eq!(arrivals.parked_bytes.get(), parked / 2);
        drop(frames);
        assert_eq!((admission.bytes_used(), admission.budget.arrivals.parked_bytes.get()), (0, 0));
    }

    #[test]
    fn given_a_frame_too_large_to_park_when_it_stands_still_then_it_is_given_up() {
        let admission = Admission::new(1 << 20);
        let start = crate::clock::now();
        let frame = claimed(&admission, 1 << 20, start);
        frame.advance(1000 * KIB, start);
        frame.set_quiet(Waker::noop());
        let arrivals = &admission.budget.arrivals;
        assert_eq!(arrivals.call_in(start), None);
        assert_eq!(arrivals.call_in(start + STANDSTILL), Some(1 << 20));
        assert!(frame.is_given_up());
        admission.budget.bytes_used.set(0);
    }
}
