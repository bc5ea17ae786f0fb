//! `chronik-bench`, a load generator for anything that speaks Kafka's protocol, free of coordinated omission: requests
//! leave when the clock says so, whether or not earlier ones were answered, and latency runs from the moment a request
//! was due. So a stall is charged to every message that was due in it.
//!
//! One module per subcommand: those that load brokers which are there ([`produce`], [`pairs`], [`groups`]), and those that
//! start their own, one ([`restart`], [`many`]) or three ([`failover`], [`formation`], [`idle`], [`refill`]). Below them
//! what they share: when messages are due ([`pace`]), what was measured ([`latency`], [`usage`], [`report`]), sockets and
//! frames ([`wire`], [`topics`], [`closed_loop`], [`writer`], [`fetch`]), a client that outlives leaders ([`steady`]), and brokers as
//! child processes ([`broker`], [`cluster`], [`status`], [`ports`], [`disk`], [`interrupt`]).
//!
//! - I1: a process is signalled and a file removed only if this program started or wrote it.
//! - I2: whatever was not acknowledged is counted, never left out.
//!
//! Figures are published in `perf/results`, with machine, commit and command, and nowhere else.

pub mod broker;
pub mod cli;
pub mod clock;
pub mod closed_loop;
pub mod cluster;
pub mod disk;
pub mod failover;
pub mod fetch;
pub mod flags;
pub mod floor;
pub mod formation;
pub mod groups;
pub mod idle;
pub mod interrupt;
pub mod latency;
pub mod many;
pub mod pace;
pub mod pairs;
pub mod ports;
pub mod produce;
pub mod refill;
pub mod report;
pub mod restart;
pub mod status;
pub mod steady;
pub mod topics;
pub mod usage;
pub mod wire;
pub mod writer;
