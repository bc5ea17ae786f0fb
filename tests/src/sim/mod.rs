//! The simulator: the production core and the production log of one shard on a simulated disk, driven from one seed.
//!
//! A run is a function of its seed: one thread, no clock, no network, an executor that polls what the seed says. It
//! produces, sends again, reads, creates and deletes topics, and cuts the power, fails syncs and fills the disk in
//! between, while the oracles in [`oracle`] watch. A run that breaks one of them ends with a [`Violation`].
//!
//! | module | owns |
//! |---|---|
//! | [`run`] | one run: what happens next |
//! | `topics`, `traffic`, `trouble` | what can happen: topics, clients, crashes and restarts |
//! | [`node`] | the shell of the shard as the simulator runs it: blocks, rolls, upkeep, segments |
//! | [`client`] | producers, idempotent and plain, and what they may expect |
//! | [`oracle`] | what must be true, now and after every restart |
//! | [`disk`] | the simulated disk, with the bugs that a test plants into it |
//!
//! That the oracles can see is shown by [`Bug`]: each is planted on purpose and must be found.

pub mod client;
pub mod disk;
pub mod node;
pub mod oracle;
pub mod run;
mod topics;
mod traffic;
mod trouble;

/// A mistake planted on purpose, in the harness and not in the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Syncs report success and do nothing.
    SkipSync,
    /// The core hears that a block is durable before it is written.
    AckBeforePersist,
    /// Hard states are not written where entries are written too.
    DropHardState,
    /// A restart forgets the producers of the checkpoint.
    LoseDedupState,
    /// A failed sync is taken for a good one.
    IgnoreSyncError,
    /// A checkpoint names the state of a moment ago as that of now.
    StaleCheckpoint,
    /// A restart takes the catalog as of the last known commit for the newest one.
    PublishOldCatalog,
    /// A restart forgets where the logs start.
    ForgetLogStart,
    /// The core hears of a segment whose file is gone again.
    LoseSegment,
    /// Logs are cut behind records that are in no segment.
    CutUnstored,
    /// Where entries take the place of others, neither is written. Of one node alone no entry is ever replaced.
    LoseTruncate,
}

impl Bug {
    /// All that a single node can show.
    pub const ALL: [Bug; 10] = [
        Bug::SkipSync,
        Bug::AckBeforePersist,
        Bug::DropHardState,
        Bug::LoseDedupState,
        Bug::IgnoreSyncError,
        Bug::StaleCheckpoint,
        Bug::PublishOldCatalog,
        Bug::ForgetLogStart,
        Bug::LoseSegment,
        Bug::CutUnstored,
    ];
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one, and how.
    pub what: String,
}

/// A check's result.
pub type Check<T = ()> = Result<T, Violation>;

/// Fails with a [`Violation`] unless the condition holds.
#[macro_export]
macro_rules! must {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err($crate::sim::Violation { what: format!($($what)+) });
        }
    };
}
