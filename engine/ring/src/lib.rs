//! The ring in which a core sleeps.
//!
//! glommio runs a core's tasks. Its reactor keeps three rings and arms two timers anew for each turn, which costs ten
//! system calls per sleep: more than the rest of a small produce. So what a produce needs — to hear of a readable
//! socket, to write a block of the log, to be woken by another core, to keep time — goes through one ring of our own,
//! and the core sleeps in that one. glommio's reactor is visited only when something of its own is under way: a
//! [`guest`].
//!
//! One task, the driver, makes this work. It is always runnable, so glommio never goes to sleep by itself; it stands
//! last in the queue, so that when it finds that nobody has run since its last turn there is nothing left to do, and
//! it waits in the ring.
//!
//! - I1: every task of the core is spawned by [`spawn`] (or is the future given to [`run`]), on the one default task
//!   queue: the driver counts on both.
//! - I2: a glommio future that waits for its reactor is wrapped in [`guest`]. One that is not is slow (up to
//!   [`SLEEP_MAX`]), never stuck.
//! - I3: the kernel's memory stays: a buffer, and the descriptor it is written to, belong to the operation until the
//!   kernel has answered, whatever becomes of the future.
//! - I4: a ring belongs to one thread. Others reach it by its [`Notifier`] alone.
//! - I5: nothing that is bounded by memory here grows by a peer's wish: one poll per direction and socket, one write
//!   per buffer of the caller.

mod driver;
mod notifier;
mod op;
mod ring;
pub mod socket;
mod timers;

pub use glommio::Task;

pub use driver::{SLEEP_MAX, guest, notified, run, spawn, yield_if_needed, yield_now};
pub use notifier::Notifier;
pub use op::{Interest, OpFuture, readiness, sync_data, write_at};
pub use timers::{Sleep, sleep};
