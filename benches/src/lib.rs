//! `chronik-bench`, a load generator for anything that speaks Kafka's protocol, free of coordinated omission: requests
//! leave when the clock says so, whether or not earlier ones were answered, and latency runs from the moment a request
//! was due. So a stall is charged to every message that was due in it.
//!
//! One module per subcommand ([`produce`], [`pairs`], [`groups`], [`restart`], [`many`]); below them what they share:
//! when messages are due ([`pace`]), what was measured ([`latency`], [`usage`], [`report`]), sockets and frames
//! ([`wire`], [`closed_loop`]) and a broker as a child process ([`broker`], [`interrupt`]).
//!
//! - I1: a process is signalled and a file removed only if this program started or wrote it.
//! - I2: whatever was not acknowledged is counted, never left out.
//!
//! Figures are published in `perf/results`, with machine, commit and command, and nowhere else.

pub mod broker;
pub mod cli;
pub mod clock;
pub mod closed_loop;
pub mod flags;
pub mod groups;
pub mod interrupt;
pub mod latency;
pub mod many;
pub mod pace;
pub mod pairs;
pub mod produce;
pub mod report;
pub mod restart;
pub mod topics;
pub mod usage;
pub mod wire;
