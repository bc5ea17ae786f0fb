//! Scripts, notes and results of performance work.
//!
//! This crate has no code: it gives the folder a place in the workspace. Scripts that take a running broker to a flame
//! graph lie beside `src`; `results` has every figure that is published anywhere, each with the machine, the commit and
//! the command that made it.
