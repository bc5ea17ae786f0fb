//! The storage engine: what a record batch is, how it becomes durable, and how it is read back.
pub mod batch;
pub mod compression;
pub mod disk;
pub mod disk_direct;
#[cfg(feature = "glommio")]
pub mod disk_glommio;
pub mod disk_sim;
pub mod disk_std;
pub mod framed;
pub mod ids;
pub mod limits;
pub mod log_index;
pub mod sched;
pub mod segment;
pub mod tail_cache;
pub mod wal;
