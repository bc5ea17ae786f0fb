//! What the disks of a shard do: blocks, the next file, segments, and reading for followers.

use std::rc::Rc;

use chronik_engine::disk_sim::block_on;
use chronik_engine::wal::WalError;
use chronik_shards::core::GroupFetch;
use rand::Rng;

use super::event::Step;
use super::run::Run;
use super::swarm::MS;
use super::{Check, Violation};
use crate::sim::disk::{io_failed, is_full, tiering_io_failed};
use crate::sim::node::poll_once;

/// How often it is looked whether a disk hangs no more.
const HANG_LOOK_US: u64 = 20 * MS;

impl Run {
    /// An idle log is marked, and the next file is made.
    pub(super) fn plan_idle_work(&mut self, host: usize, shard: usize) {
        let drawn = self.rng.random_range(0..20);
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return };
        if drawn < 2 && running.writer.is_none() && running.is_mark_due && !running.is_write_due {
            running.writer = Some(Box::pin(Rc::clone(&running.node).write_mark()));
            running.is_mark_due = false;
            running.is_write_due = true;
            self.plan(0, host, shard, Step::Write);
        } else if drawn < 6 && running.upkeep.is_none() {
            let node = Rc::clone(&running.node);
            running.upkeep = Some(match self.swarm.reclaims {
                true => Box::pin(node.upkeep()),
                false => Box::pin(node.upkeep_keeping_all()),
            });
            self.plan(0, host, shard, Step::Upkeep);
        } else if drawn < 9 && running.tiering.is_none() && !running.repairs.is_busy() {
            let node = Rc::clone(&running.node);
            running.tiering = Some(match self.swarm.has_segments {
                true => Box::pin(node.tier()),
                false => Box::pin(node.remove_files()),
            });
            self.plan(0, host, shard, Step::Tier);
        }
    }

    pub(super) fn disk_us(&mut self, host: usize) -> u64 {
        self.rng.random_range(20..=self.swarm.disk_us_max) * self.hosts[host].slowness
    }

    pub(super) fn write(&mut self, host: usize, shard: usize) -> Check {
        let delay_us = self.disk_us(host);
        if self.hosts[host].hangs {
            self.plan(HANG_LOOK_US, host, shard, Step::Write);
            return Ok(());
        }
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let node = &running.node;
        let task = running.writer.get_or_insert_with(|| Box::pin(Rc::clone(node).write_block()));
        let refused = node.refused.get();
        let result = poll_once(task);
        // A group that gives up what found no room has forgotten it.
        let forgets = node.refused.get() > refused;
        if result.is_some() {
            running.writer = None;
            running.is_write_due = false;
        } else {
            self.plan(delay_us, host, shard, Step::Write);
        }
        if forgets {
            self.forgets(host);
        }
        self.absorb(host, shard)?;
        self.after_disk(host, shard, result)
    }

    pub(super) fn upkeep(&mut self, host: usize, shard: usize) -> Check {
        let delay_us = self.disk_us(host);
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let Some(task) = &mut running.upkeep else { return Ok(()) };
        let result = poll_once(task);
        if result.is_some() {
            running.upkeep = None;
        } else {
            self.plan(delay_us, host, shard, Step::Upkeep);
        }
        self.absorb(host, shard)?;
        self.after_disk(host, shard, result)
    }

    /// A shard goes on writing segments, merging them, and removing those that nobody needs.
    pub(super) fn tier(&mut self, host: usize, shard: usize) -> Check {
        let delay_us = self.disk_us(host);
        let is_armed = self.hosts[host].shards[shard].is_armed;
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        let Some(task) = &mut running.tiering else { return Ok(()) };
        match poll_once(task) {
            None => self.plan(delay_us, host, shard, Step::Tier),
            Some(Ok(())) => running.tiering = None,
            // It is tried again.
            Some(Err(error)) if is_full(&error) || (is_armed && tiering_io_failed(&error)) => {
                running.tiering = None;
            }
            Some(Err(error)) if self.log_lost_by(host, shard, &error) => {}
            Some(Err(error)) if self.segment_lost_by(host, shard, &error) => {}
            Some(Err(error)) => {
                let seat = self.seat(host, shard);
                return Err(Violation { what: format!("{seat} writes no segments: {error:?}") });
            }
        }
        self.absorb(host, shard)
    }

    /// A log that cannot be written ends its node (P17).
    fn after_disk(
        &mut self,
        host: usize,
        shard: usize,
        result: Option<Result<(), WalError>>,
    ) -> Check {
        let Some(Err(error)) = result else { return Ok(()) };
        if !io_failed(&error) || !self.hosts[host].shards[shard].is_armed {
            let seat = self.seat(host, shard);
            return Err(Violation {
                what: format!("the log of {seat} failed by itself: {error:?}"),
            });
        }
        self.report.disk_failures += 1;
        self.crash(host)
    }

    pub(super) fn fetched(&mut self, host: usize, shard: usize, fetch: GroupFetch) -> Check {
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        self.report.catch_ups += 1;
        let GroupFetch { group, fetch } = fetch;
        let bytes_max = usize::try_from(fetch.bytes_max).unwrap_or(usize::MAX);
        let read = block_on(node.wal.read_entries(group, fetch.from, fetch.up_to, bytes_max));
        let may_fail = self.hosts[host].shards[shard].is_armed || self.swarm.victim == Some(host);
        let first_needed = node.core.borrow().first_index_needed(group);
        let entries = match read {
            Ok(entries) => entries,
            // What was asked for may have been cut since: the follower gets a snapshot.
            Err(_) if may_fail || first_needed.is_none_or(|first| fetch.from < first) => Vec::new(),
            Err(error) => {
                let seat = self.seat(host, shard);
                return Err(Violation { what: format!("{seat} {group}: {fetch:?}: {error:?}") });
            }
        };
        node.core.borrow_mut().entries_fetched(group, fetch.from, entries);
        self.absorb(host, shard)
    }
}
