//! The loops that drive a shard: commit (group commit into the WAL) and tick (Raft's time, mark blocks).
//!
//! - I1: one block is in flight at a time. All that is proposed meanwhile goes into the next one: that is the group
//!   commit, and the load alone sets its size.
//! - I2: a failed write or sync ends the process (W5). What was in flight is neither acknowledged nor retried.
//! - I3: a full disk is no failure: produces are refused, those too whose block found no room. What else was in that
//!   block has the ballast's room; beyond that it waits until there is some. A stop does not wait: the block is given up.
//!   Nothing of it was acknowledged.

use std::rc::Rc;
use std::time::Duration;

use chronik_engine::wal::WalError;
use chronik_engine::wal::record::{GroupCheckpoint, WalRecord};
use chronik_ring::{sleep, yield_if_needed};

use super::carry::carry_forward;
use super::fatal::{Reason, fatal};
use super::shard::Shard;
use crate::metrics::Stage;

/// Raft's tick.
pub const TICK_MS: u64 = 50;

/// How long after the last block the log is marked, so that this block, too, has one after it.
const MARK_AFTER_NS: u64 = 100_000_000;

/// Payload bytes that one block may take. More waits for the next one.
const BLOCK_BYTES_MAX: usize = chronik_engine::limits::WAL_BLOCK_BYTES_MAX;

/// Between two looks for room on a full disk.
const STORAGE_FULL_RETRY: Duration = Duration::from_millis(500);

/// Writes blocks until the shard stops, then closes the log cleanly. Not cancel-safe.
pub async fn commit_loop(shard: Rc<Shard>) {
    loop {
        if shard.want_roll.take() {
            roll_ahead_of_time(&shard).await;
        }
        let is_carrying = carry_forward(&shard).await;
        let block = shard.core.borrow_mut().take_block(BLOCK_BYTES_MAX);
        if shard.links().is_some() {
            // Followers get the entries while they are written here.
            shard.after_core();
        }
        let Some(block) = block else {
            if shard.stopping.get() {
                break;
            }
            if shard.want_mark.take() {
                mark(&shard).await;
            } else if !is_carrying {
                shard.work.notified().await;
            }
            continue;
        };
        if let Some(since_ns) = shard.first_pending_ns.take() {
            let waited_ns = shard.clock.now_ns().saturating_sub(since_ns);
            shard.metrics.borrow_mut().record(Stage::Queue, waited_ns);
        }
        if let Room::None = make_room(&shard, &block.records).await {
            // What makes room must not wait behind what needs it.
            let refused = shard.change_core(|core| core.refuse_batches(block));
            if refused > 0 {
                tracing::debug!(
                    shard = shard.id.0,
                    "no room: batches of {refused} partitions are refused"
                );
                continue;
            }
            if shard.stopping.get() {
                tracing::warn!(
                    shard = shard.id.0,
                    "stopping without room for what was not acknowledged"
                );
                // Later blocks must not overtake this one, so it is the end. The stop answers those who wait.
                break;
            }
            sleep(STORAGE_FULL_RETRY).await;
            continue;
        }
        write_block(&shard, &block.records).await;
        shard.core.borrow_mut().block_persisted(block);
        shard.after_core();
    }
    if let Err(error) = close(&shard).await {
        fatal(&Reason::WalWrite { shard: shard.id, error });
    }
    shard.stopped.notify();
}

/// Leaves a log that the next start need not scan: each file has its footer, and the last says that all is written.
async fn close(shard: &Shard) -> Result<(), WalError> {
    shard.upkeep_ended.notified().await;
    shard.wal.finish_sealed().await?;
    shard.wal.close_clean().await.map(drop)
}

async fn write_block(shard: &Shard, records: &[WalRecord]) {
    let begun_ns = shard.clock.now_ns();
    let written_ns = std::cell::Cell::new(begun_ns);
    let appended = shard.wal.append_with(records, || written_ns.set(shard.clock.now_ns())).await;
    let report = match appended {
        Ok(report) => report,
        Err(error) => fatal(&Reason::WalWrite { shard: shard.id, error }),
    };
    let synced_ns = shard.clock.now_ns();
    let mut metrics = shard.metrics.borrow_mut();
    metrics.record(Stage::WalWrite, written_ns.get().saturating_sub(begun_ns));
    metrics.record(Stage::WalSync, synced_ns.saturating_sub(written_ns.get()));
    metrics.wal_block(report.bytes);
    let entries = records.iter().filter(|record| matches!(record, WalRecord::Entry { .. })).count();
    metrics.counters.raft_append_entries += entries as u64;
    shard.last_block_ns.set(synced_ns);
    shard.mark_due.set(true);
}

/// What became of the search for room.
pub(super) enum Room {
    /// The block fits the active file.
    Found,
    /// There is none; produces are refused from now on (I3).
    None,
}

/// Rolls to the next file if the block does not fit the active one.
pub(super) async fn make_room(shard: &Rc<Shard>, records: &[WalRecord]) -> Room {
    if !shard.wal.needs_roll(records) {
        return Room::Found;
    }
    let checkpoints = take_checkpoints(shard).await;
    match shard.wal.roll(checkpoints, records).await {
        Ok(()) => Room::Found,
        Err(WalError::StorageFull { .. }) => {
            shard.note_storage_full(true);
            Room::None
        }
        Err(error) => fatal(&Reason::WalWrite { shard: shard.id, error }),
    }
}

/// Rolls to the next file if it is ready; else the roll is asked for again.
async fn roll_ahead_of_time(shard: &Rc<Shard>) {
    let (to_zero, _) = shard.wal.spare_left();
    if to_zero > 0 || shard.wal.is_storage_full() {
        return;
    }
    let checkpoints = take_checkpoints(shard).await;
    match shard.wal.roll(checkpoints, &[]).await {
        Ok(()) => {}
        Err(WalError::StorageFull { .. }) => shard.note_storage_full(true),
        Err(error) => fatal(&Reason::WalWrite { shard: shard.id, error }),
    }
}

/// Takes the checkpoints of all groups and lets others run between them: each holds whatever a group remembers of its
/// producers. They fit together although time passes, because nothing becomes durable meanwhile (I1).
async fn take_checkpoints(shard: &Shard) -> Vec<GroupCheckpoint> {
    let groups = shard.core.borrow().groups_to_checkpoint();
    let mut checkpoints = Vec::with_capacity(groups.len());
    for group in groups {
        checkpoints.extend(shard.core.borrow().checkpoint(group));
        yield_if_needed().await;
    }
    checkpoints
}

async fn mark(shard: &Shard) {
    if let Err(error) = shard.wal.write_mark().await {
        fatal(&Reason::WalWrite { shard: shard.id, error });
    }
    shard.mark_due.set(false);
}

/// Gives the core its ticks, and the commit loop a reason to mark the log once it has gone idle.
pub async fn tick_loop(shard: Rc<Shard>) {
    let mut was_stalled = false;
    while !shard.stopping.get() {
        let begun_ns = shard.clock.now_ns();
        sleep(Duration::from_millis(TICK_MS)).await;
        let late_ns = shard.clock.now_ns().saturating_sub(begun_ns + TICK_MS * 1_000_000);
        shard.metrics.borrow_mut().record(Stage::TickLate, late_ns);
        let now_ms = shard.clock.wall_ms();
        let clock_ms = shard.clock.awake_or_not_ms();
        let is_stalled = shard.change_core(|core| {
            core.set_clock(clock_ms);
            core.tick(now_ms);
            core.is_stalled()
        });
        if is_stalled != was_stalled {
            tell_stall(&shard, is_stalled);
            was_stalled = is_stalled;
        }
        shard.tick_groups();
        shard.tell_lost_messages();
        shard.tell_in_sync();
        let idle_ns = shard.clock.now_ns().saturating_sub(shard.last_block_ns.get());
        if shard.mark_due.get() && idle_ns >= MARK_AFTER_NS {
            shard.want_mark.set(true);
            shard.work.notify();
        }
    }
}

fn tell_stall(shard: &Shard, is_stalled: bool) {
    let (id, dir) = (shard.id.0, shard.node.config.data_dir.display());
    if !is_stalled {
        tracing::info!(shard = id, "the disk of {dir} takes writes again");
    } else if shard.links().is_some() {
        tracing::error!(
            shard = id,
            "the disk of {dir} hangs: a write is not done after 2 s; other nodes lead what they can until it is"
        );
    } else {
        tracing::error!(shard = id, "the disk of {dir} hangs: a write is not done after 2 s");
    }
}
