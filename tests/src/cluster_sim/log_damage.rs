//! Full files of the log of one node that are damaged: a bit of a batch that is committed.
//!
//! Whoever reads it gets nothing, least of all another record. The loop that makes segments of such files finds it, and has what
//! it cannot read copied from other replicas ([`super::repairs`]); then the log can do without it.
//!
//! - I1: it is the node that damage hits anyway, so everything has a whole copy elsewhere.
//! - I2: what a start would have to read is spared: a log that cannot be opened is repaired by hand. So no sector is made
//!   unreadable: it would stay so in a file that is used again, until it is written there, and a start reads to the file's end.

use std::rc::Rc;

use chronik_engine::disk_sim::{Corruption, CrashMode, block_on};
use chronik_engine::ids::{FileSeq, GroupId, Offset, RaftIndex};
use chronik_engine::log_index::Extent;
use chronik_engine::wal::{ReadError, SealedFile, SealedName, Wal};
use chronik_shards::core::Unreadable;
use chronik_shards::stored::StoredError;
use chronik_tiering::write::WriteError;
use rand::Rng;

use super::Bug;
use super::run::Run;
use crate::sim::node::{Node, SHARD_UUID};

fn is_damage(error: &ReadError) -> bool {
    matches!(error, ReadError::Damaged { .. } | ReadError::Io { .. } | ReadError::Index { .. })
}

/// Whether records cannot be read since the log is damaged where they are.
pub(super) fn is_log_damaged(error: &StoredError) -> bool {
    matches!(error, StoredError::Log(error) if is_damage(error))
}

impl Run {
    /// Something in a full file of the log of a shard gets another bit, or cannot be read any more.
    pub(super) fn damage_log(&mut self, host: usize, shard: usize, node: &Rc<Node>) -> bool {
        let files = node.wal.sealed_files(FileSeq(0));
        let Some(named) = files.get(self.rng.random_range(0..files.len().max(1))) else {
            return false;
        };
        let extents = self.extents_of(host, shard, node, named);
        let Some(extent) = extents.get(self.rng.random_range(0..extents.len().max(1))) else {
            return false;
        };
        let within = self.rng.random_range(0..u64::from(extent.payload_bytes.max(1)));
        let at = extent.block_position + u64::from(extent.payload_at) + within;
        let (range, how) = (at..at + 1, Corruption::FlipBit(self.rng.random_range(0..8)));
        let here = &self.hosts[host].shards[shard];
        let trial = here.disk.clone_state();
        let is_damaged = trial.corrupt(&named.path, range.clone(), how.clone()).is_ok();
        trial.crash(CrashMode::LOSE_ALL);
        let opened = block_on(Wal::open(trial, here.options.clone()));
        if !is_damaged || opened.is_err() {
            return false; // I2
        }
        let done = here.disk.corrupt(&named.path, range, how);
        trace!(self, "node {}: {named:?} is damaged at {at}: {done:?}", host + 1);
        self.report.log_damages += u64::from(done.is_ok());
        done.is_ok()
    }

    /// What a file has of partitions with a settled place, where that is committed.
    fn extents_of(
        &self,
        host: usize,
        shard: usize,
        node: &Rc<Node>,
        named: &SealedName,
    ) -> Vec<Extent> {
        let disk = &self.hosts[host].shards[shard].disk;
        let Ok(file) = block_on(SealedFile::open(disk, SHARD_UUID, named)) else {
            return Vec::new();
        };
        let core = node.core.borrow();
        let partitions = core.record_partitions().filter(|(group, _)| self.is_settled(*group));
        let mut found = Vec::new();
        for (group, _) in partitions {
            let Some(view) = core.partition(group) else { continue };
            let all = file.extents(group, Offset(0), RaftIndex(u64::MAX));
            let is_committed = |extent: &&Extent| {
                extent.payload_bytes > 0 && extent.end_offset() <= view.high_watermark
            };
            found.extend(all.filter(is_committed).copied());
        }
        found
    }

    /// Whether segments could not be made of a file of the log since it is damaged; if so copies are wanted.
    pub(super) fn log_lost_by(&mut self, host: usize, shard: usize, error: &WriteError) -> bool {
        let (WriteError::Read(error) | WriteError::Open(error)) = error else { return false };
        if !is_damage(error) || self.swarm.victim != Some(host) {
            return false;
        }
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return false };
        running.tiering = None;
        let unreadable: Vec<(GroupId, Offset)> = running.node.unreadable.take();
        self.report.log_damages_found += unreadable.len() as u64;
        for (group, end_offset) in unreadable {
            if self.bug == Some(Bug::ForgetDamage) {
                continue;
            }
            self.want_repair(host, shard, group, Unreadable::Logged(end_offset));
        }
        true
    }
}
