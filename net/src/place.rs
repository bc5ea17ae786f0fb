//! How many connections a core has accepted that live: here, on their way, or on the core that they were moved to.
//!
//! I1 A connection holds one [`Place`] of the core that accepted it until it ends, wherever that is. So the limits of
//!    all cores together are the limit of the node, and no core refuses its own connections for those of others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places that one core has given out.
#[derive(Debug, Default)]
pub(crate) struct Places(Arc<AtomicUsize>);

impl Places {
    pub(crate) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self) -> Place {
        self.0.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.0))
    }
}

/// One connection's place, given back when dropped, on whichever core.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
