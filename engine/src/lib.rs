//! The storage engine: what a record batch is, how it becomes durable, and how it is read back.
pub mod disk;
pub mod disk_sim;
pub mod ids;
pub mod wal;
