//! What the broker counts and times, and how it is shown.
//!
//! Each shard owns a [`ShardMetrics`] of plain numbers and HDR histograms; nothing on the hot path looks a name up,
//! locks or allocates. Whoever shows figures asks every shard for a [`ShardSnapshot`], which can be sent between
//! cores, and renders them together.
//!
//! Invariants
//! - I1 A counter is declared once, in `counters.rs`, with its name, type and meaning.
//! - I2 Times are nanoseconds in memory and seconds in Prometheus, as its conventions ask.

mod cluster;
mod counters;
mod latency;
mod prometheus;
mod shard;

pub use cluster::{CATALOG, SnapshotSample};
pub use counters::Counters;
pub use latency::{hgrm_usage, render_hgrm, render_latency_json, render_latency_text};
pub use prometheus::render_prometheus;
pub use shard::{ErrorCounts, ShardMetrics, ShardSnapshot, Stage, StageTimes};
