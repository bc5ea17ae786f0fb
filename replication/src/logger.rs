//! What raft-rs says, handed on to `tracing`.
//!
//! Raft-rs speaks of each group for itself, and of each message at its debug level. With thousands of groups its news
//! are our debug, and its debug is our trace. Nothing is formatted unless somebody listens.

use std::fmt::{Arguments, Write};

use chronik_engine::ids::GroupId;
use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer};

/// The logger of one group.
pub(crate) fn group_logger(group: GroupId) -> Logger {
    Logger::root(TracingDrain, slog::o!("group" => group.0))
}

struct TracingDrain;

impl Drain for TracingDrain {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => {
                if tracing::enabled!(target: "raft", tracing::Level::ERROR) {
                    tracing::error!(target: "raft", "{}", message(record, values));
                }
            }
            Level::Warning => {
                if tracing::enabled!(target: "raft", tracing::Level::WARN) {
                    tracing::warn!(target: "raft", "{}", message(record, values));
                }
            }
            Level::Info => {
                if tracing::enabled!(target: "raft", tracing::Level::DEBUG) {
                    tracing::debug!(target: "raft", "{}", message(record, values));
                }
            }
            Level::Debug | Level::Trace => {
                if tracing::enabled!(target: "raft", tracing::Level::TRACE) {
                    tracing::trace!(target: "raft", "{}", message(record, values));
                }
            }
        }
        Ok(())
    }
}

/// The message with all its fields behind it.
fn message(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut text = Fields(record.msg().to_string());
    let own = record.kv().serialize(record, &mut text);
    let groups = values.serialize(record, &mut text);
    if own.is_err() || groups.is_err() {
        text.0.push_str(" (fields are missing)");
    }
    text.0
}

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}
