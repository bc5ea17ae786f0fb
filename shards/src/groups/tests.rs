//! The coordinator, call by call.
