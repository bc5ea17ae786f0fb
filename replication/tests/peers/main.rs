//! Links between seats over real loopback sockets, on a core with its ring.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests wait on real time, and some peers are threads"
)]

mod exchange;
mod losses;
mod proxy;
mod strangers;
mod support;
