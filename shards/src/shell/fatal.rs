//! The end of the process when it must not go on: half a node must not keep answering.

use chronik_engine::ids::ShardId;
use chronik_engine::wal::WalError;

use crate::startup::exit_code;

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// A write to the log failed, or a sync: what is durable is unknown until the log is read again.
    #[error(
        "the write-ahead log of shard {shard} failed: {error}; the process ends, since nothing that was in flight can be \
         trusted. Look at the disk (dmesg), then start again: recovery reads back what is durable"
    )]
    WalWrite {
        /// The shard.
        shard: ShardId,
        /// What failed.
        error: WalError,
    },
    /// The cluster goes on without this disk: what is placed on the node is placed on another one, or nothing is.
    #[error(
        "this data directory does not count any more: the node has started with another one since, or was removed from the \
         cluster; to take part again it needs an empty data_dir"
    )]
    Retired,
}

/// Says why and ends the process, without running destructors: a buffer may still be in the kernel's hands.
pub fn fatal(reason: &Reason) -> ! {
    let code = match reason {
        Reason::WalWrite { .. } => {
            tracing::error!("fatal: {reason}");
            exit_code::WAL_FAILED
        }
        // Mostly what somebody wanted: the node was removed.
        Reason::Retired => {
            tracing::warn!("the process ends: {reason}");
            exit_code::DATA_DIR
        }
    };
    std::process::exit(code)
}
