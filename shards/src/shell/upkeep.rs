//! What a shard does for its log when there is nothing better to do: the next file is made and zeroed, sealed files
//! get their footers, files that nobody needs are taken back.

use std::rc::Rc;
use std::time::Duration;

use chronik_engine::wal::{SpareProgress, WalError};
use chronik_ring::sleep;

use super::fatal::{Reason, fatal};
use super::shard::Shard;

/// Between two steps while the spare file is being zeroed: a step of 1 MiB every 20 ms is 50 MB/s of the disk.
const STEP: Duration = Duration::from_millis(20);

/// Between two looks when there was nothing to do.
const IDLE: Duration = Duration::from_millis(250);

/// Runs until the shard stops.
pub async fn upkeep_loop(shard: Rc<Shard>) {
    while !shard.stopping.get() {
        let pause = match step(&shard).await {
            Ok(SpareProgress::Working) => STEP,
            Ok(SpareProgress::Ready) => IDLE,
            Err(WalError::StorageFull { .. }) => IDLE,
            Err(error) => fatal(&Reason::WalWrite { shard: shard.id, error }),
        };
        shard.note_storage_full(shard.wal.is_storage_full());
        sleep(pause).await;
    }
}

async fn step(shard: &Rc<Shard>) -> Result<SpareProgress, WalError> {
    shard.wal.finish_sealed().await?;
    shard.wal.reclaim(|group| shard.with_core(|core| core.first_index_needed(group))).await?;
    shard.wal.prepare_spare_step().await
}
