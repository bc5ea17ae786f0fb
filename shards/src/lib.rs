//! shards
pub mod catalog;
pub mod cli;
pub mod config;
pub mod core;
pub mod groups;
pub mod handlers;
pub mod identity;
pub mod logging;
pub mod metrics;
pub mod shell;
pub mod startup;
pub mod stored;
