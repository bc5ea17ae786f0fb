//! The shell around the core: what is fast and touches the world.

pub mod background;
pub mod barrier;
mod carry;
pub mod clock;
pub mod cluster;
pub mod commit;
pub mod compaction;
mod complaints;
pub mod fatal;
pub mod fill;
pub mod groups;
mod leadership;
pub mod leaving;
pub mod mesh;
pub mod notify;
pub mod publisher;
pub mod read;
mod repair;
pub mod replies;
pub mod retention;
pub mod roll;
pub mod run;
pub mod segments;
pub mod serve;
pub mod shard;
pub mod tiering;
pub mod upkeep;
