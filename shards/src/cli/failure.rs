//! Why the program ends without having done what it was asked for: in which words, and with which exit code.

use std::error::Error;

use chronik_engine::wal::WalError;
use chronik_replication::formation::FormError;
use thiserror::Error;

use super::admin::AdminError;
use super::kafka::KafkaError;
use super::wal::{JOINS_ANEW, WalToolError};
use crate::config::ConfigErrors;
use crate::identity::IdentityError;
use crate::logging::LoggingError;
use crate::shell::run::RunError;
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
    Form(#[from] FormError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Wal(#[from] WalToolError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("cannot write to standard output: {source}")]
    Output {
        #[source]
        source: std::io::Error,
    },
}

impl Failure {
    /// The process's exit code. There is no other place where that of a failure is decided; what ends a process that runs
    /// (`shell::fatal`) names its own.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Failure::Config(_) | Failure::Logging(_) => exit_code::CONFIG,
            Failure::Startup(error) => error.exit_code(),
            Failure::Identity(_) => exit_code::DATA_DIR,
            Failure::Form(error) => form_exit_code(error),
            Failure::Wal(error) => error.exit_code(),
            Failure::Run(error) => run_exit_code(error),
            Failure::Admin(_) | Failure::Kafka(_) | Failure::Output { .. } => 1,
        }
    }

    /// The whole story for the user: the error, its causes, and what can be done about it.
    #[must_use]
    pub fn story(&self) -> String {
        let mut story = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Many errors say their cause in their own words.
            if !story.contains(&text) {
                story = format!("{story}: {text}");
            }
            cause = error.source();
        }
        if matches!(self, Failure::Run(RunError::Wal { .. }))
            && self.exit_code() == exit_code::WAL_DAMAGED
        {
            story.push_str(
                "\nNothing was changed. `chronik-server wal verify DATA_DIR` shows the damage. ",
            );
            story.push_str(JOINS_ANEW);
            story.push_str(
                ". A node alone gives up what is damaged, and keeps the rest, with \
                 `chronik-server wal repair --accept-loss DATA_DIR`.",
            );
        }
        story
    }
}

fn form_exit_code(error: &FormError) -> i32 {
    match error {
        FormError::List(_) | FormError::Impossible(_) => exit_code::CONFIG,
        FormError::Store(_) | FormError::WasJoining { .. } => exit_code::DATA_DIR,
        FormError::Listen { .. } => exit_code::PORT_IN_USE,
        FormError::Thread { .. } => exit_code::ENVIRONMENT,
        // It was asked to stop, and did.
        FormError::Cancelled => 0,
    }
}

fn run_exit_code(error: &RunError) -> i32 {
    match error {
        RunError::Wal { error, .. } => wal_exit_code(error),
        // The log can be read, and what it says makes no sense.
        RunError::Core { .. } => exit_code::WAL_DAMAGED,
        RunError::LogGone { .. }
        | RunError::Segments { .. }
        | RunError::Disk { .. }
        | RunError::Together { .. } => exit_code::DATA_DIR,
        RunError::Listen { .. } | RunError::RaftPort { .. } => exit_code::PORT_IN_USE,
        RunError::Executor { .. }
        | RunError::Ring { .. }
        | RunError::Mesh { .. }
        | RunError::Background { .. }
        | RunError::Signals { .. } => exit_code::ENVIRONMENT,
        RunError::Register { .. } | RunError::Vanished { .. } => 1,
    }
}

fn wal_exit_code(error: &WalError) -> i32 {
    match error {
        WalError::Damaged { .. }
        | WalError::FileMissing { .. }
        | WalError::EntriesMissing { .. }
        | WalError::Contradiction { .. }
        | WalError::Entries { .. } => exit_code::WAL_DAMAGED,
        WalError::Io { .. }
        | WalError::StorageFull { .. }
        | WalError::ForeignShard { .. }
        | WalError::ForeignFile { .. }
        | WalError::UnsupportedVersion { .. } => exit_code::DATA_DIR,
        WalError::Poisoned
        | WalError::Closed
        | WalError::FileFull { .. }
        | WalError::Plan { .. } => exit_code::WAL_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use chronik_engine::ids::ShardId;

    use super::*;

    #[test]
    fn given_what_ends_a_node_when_it_is_judged_then_the_exit_code_says_what_to_look_at() {
        let shard = ShardId(0);
        let failed = || io::Error::from(io::ErrorKind::Other);
        let address = ([127, 0, 0, 1], 9192).into();
        let cases = [
            (RunError::LogGone { shard, path: PathBuf::new() }, exit_code::DATA_DIR),
            (RunError::Disk { shard, path: PathBuf::new(), error: failed() }, exit_code::DATA_DIR),
            (RunError::RaftPort { address, error: failed() }, exit_code::PORT_IN_USE),
            (RunError::Ring { shard, error: failed() }, exit_code::ENVIRONMENT),
            (RunError::Signals { error: failed() }, exit_code::ENVIRONMENT),
            (RunError::Wal { shard, error: WalError::Poisoned }, exit_code::WAL_FAILED),
            (RunError::Register { why: String::new() }, 1),
        ];
        for (error, code) in cases {
            assert_eq!(Failure::Run(error).exit_code(), code);
        }
    }
}
