//! Load generation and benchmarks.
//!
//! Nothing is here yet. What belongs here:
//!
//! - `chronik-bench`, an open-loop load generator: requests leave when the clock says so, whether or not earlier ones were
//!   answered, so that a slow broker cannot hide its own latency (coordinated omission). Produce, end to end, catch-up,
//!   many partitions.
//! - Benchmarks of single parts: batch checks and codecs, the WAL's block encoding, the shard core without I/O.
//!
//! Results are published in `perf/results`, with machine, commit and command, and nowhere else.
