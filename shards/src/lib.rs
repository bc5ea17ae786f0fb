//! shards
pub mod catalog;
pub mod config;
pub mod core;
pub mod identity;
pub mod logging;
pub mod startup;
pub mod metrics;
pub mod cli;
pub mod handlers;
pub mod shell;
