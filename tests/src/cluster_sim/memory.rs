//! What a shard holds in memory of batches that are not applied, above all while its disk is slow: never more than it was told
//! that it may (P24).
//!
//! - I1: a leader takes a batch if what is proposed and not applied stays within the bound with it, or if there was nothing.
//! - I2: what may still be read from memory stays within its own bound.

use chronik_engine::ids::GroupId;
use chronik_shards::core::CoreConfig;

use super::Check;
use super::run::Run;
use crate::must;

/// What a shard was told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    in_flight_bytes_max: usize,
    tail_cache_bytes_max: usize,
}

impl Bounds {
    pub(super) fn of(config: &CoreConfig) -> Bounds {
        Bounds {
            in_flight_bytes_max: config.in_flight_bytes_max,
            tail_cache_bytes_max: config.tail_cache_bytes,
        }
    }
}

impl Run {
    /// A shard has taken a batch, with so many bytes in flight before (I1).
    pub(super) fn check_in_flight(
        &self,
        host: usize,
        shard: usize,
        group: GroupId,
        before: usize,
    ) -> Check {
        let Some(running) = self.hosts[host].running(shard) else { return Ok(()) };
        let now = running.node.core.borrow().in_flight_bytes();
        let bound = running.bounds.in_flight_bytes_max;
        // A duplicate adds nothing.
        let fits = now <= bound || before == 0 || now == before;
        let seat = self.seat(host, shard);
        must!(
            fits,
            "P24: {seat} takes a batch of {group} with {before} bytes in flight, now {now} of {bound}"
        );
        Ok(())
    }

    /// To be called at each tick (I2).
    pub(super) fn check_memory(&self, host: usize, shard: usize) -> Check {
        let Some(running) = self.hosts[host].running(shard) else { return Ok(()) };
        let held = running.node.core.borrow().tail_cache_bytes();
        let bound = running.bounds.tail_cache_bytes_max;
        let seat = self.seat(host, shard);
        must!(held <= bound, "P24: {seat} keeps {held} bytes for readers, of {bound}");
        Ok(())
    }
}
