//! Why the program ends without having done what it was asked for, and with which exit code.

use thiserror::Error;

use super::latency::LatencyError;
use crate::config::ConfigErrors;
use crate::identity::IdentityError;
use crate::logging::LoggingError;
use crate::startup::{StartupError, exit_code};

/// Anything that ends the program early.
#[derive(Debug, Error)]
pub enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    Startup(#[from] StartupError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Latency(#[from] LatencyError),
    #[error("cannot write to standard output: {source}")]
    Output {
        #[source]
        source: std::io::Error,
    },
    #[error("this build has no shards to run")]
    ShardsNotLinked,
}

impl Failure {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Failure::Config(_) | Failure::Logging(_) => exit_code::CONFIG,
            Failure::Startup(error) => error.exit_code(),
            Failure::Identity(_) => exit_code::DATA_DIR,
            Failure::Latency(_) | Failure::Output { .. } | Failure::ShardsNotLinked => 1,
        }
    }
}
