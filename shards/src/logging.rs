//! Logging: to standard error, filtered by RUST_LOG, `info` without it.

use std::io::IsTerminal as _;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// What keeps logging from starting.
#[derive(Debug, Error)]
pub enum LoggingError {
    #[error(
        "environment variable RUST_LOG = \"{value}\": {source}; write a level such as info, or chronik_shards=debug,info"
    )]
    FilterInvalid {
        value: String,
        #[source]
        source: ParseError,
    },
}

/// Starts logging for the process. A second call changes nothing, so that tests may share a process.
///
/// # Errors
/// RUST_LOG is not a filter.
pub fn start(rust_log: Option<&str>) -> Result<(), LoggingError> {
    let value = rust_log.filter(|value| !value.trim().is_empty()).unwrap_or("info");
    let filter = EnvFilter::try_new(value)
        .map_err(|source| LoggingError::FilterInvalid { value: value.to_owned(), source })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_thread_names(true)
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}
