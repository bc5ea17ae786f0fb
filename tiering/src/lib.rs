//! The tiering executor: what happens to records after they are durable, away from the hot path.
//!
//! Nothing is here yet. What belongs here, and why it gets a crate of its own:
//!
//! - Sealing what is committed into raw segments per partition, uploading them to an object store, and the manifests that
//!   say which segments a partition has.
//! - Snapshots of a partition's state, and starting an empty node from them.
//! - Retention and compaction of what lies in segments, and the search index over them.
//!
//! All of it runs on one thread outside the shards, with bounded channels to them: nothing here may ever make a produce
//! or a fetch of recent records wait. It knows `engine` and none of the crates above.
