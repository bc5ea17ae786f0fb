//! The tiering executor: what happens to records after they are durable, away from the hot path.
//!
//! All of it runs on threads outside the shards, with bounded channels to them: nothing here may ever make a produce or a
//! fetch of recent records wait. It knows `engine` and none of the crates above. What it does to files it does
//! through the engine's disk seam, so the simulator runs it with a disk that fails.
//!
//! | module | owns |
//! |---|---|
//! | [`executor`] | the threads |
//! | [`backlog`] | which full files of the log are to become segments, and what holds them up |
//! | [`write`] | from the log to segments |
//! | [`fill`] | from a leader's records to segments |
//! | [`compact`] | the newest record of each key |
//! | [`merge`] | many small segments become one |
//! | [`gather`] | batches on their way into a segment |
//! | [`pace`] | how fast background work may go |
//! | [`room`] | what is kept free for the log's segments |
//! | [`failures`] | what failed and is tried again less and less often |

pub mod backlog;
pub mod compact;
pub mod executor;
pub mod failures;
pub mod fill;
pub mod gather;
pub mod merge;
pub mod pace;
pub mod room;
pub mod write;
