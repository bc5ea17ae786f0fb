//! Where epochs end: what a leader says to readers that look whether what they have read is still there (OffsetForLeaderEpoch).
//!
//! - I1: a leader that is known to be the only one says of each epoch before its own where the log has the first entry of a
//!   later one, or where the log starts now, if that is later: so it is the same whoever leads, and never behind what was
//!   committed in that epoch (P7). Of the newest epoch it says where its log ends.
//! - I2: it names the newest epoch up to that which has records in the log, or the one that it was asked for.

use std::collections::BTreeMap;

use chronik_engine::batch::leader_epoch;
use chronik_engine::ids::{GroupId, Offset};
use chronik_engine::wal::record::EntryKind;

use super::Check;
use super::oracle::Oracle;
use super::run::Run;
use crate::must;

/// What is said of an epoch that is not known.
const UNKNOWN: (i32, Offset) = (-1, Offset(-1));

/// An epoch, as the committed log has it.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    /// Of its first entry.
    offset: Offset,
    /// Behind its last record; where there is none, `offset`.
    end_offset: Offset,
}

impl Run {
    /// Asks a leader that nobody else leads of all epochs (I1, I2).
    pub(super) fn check_epochs(&mut self, host: usize, shard: usize, group: GroupId) -> Check {
        let Some(node) = self.hosts[host].node(shard) else { return Ok(()) };
        let seat = self.seat(host, shard);
        let core = node.core.borrow();
        let Some(view) = core.partition(group).filter(|view| view.is_ready) else { return Ok(()) };
        // What it leads with is committed, and all before that.
        let applied = core.applied_index(group).map_or(0, |index| index.0);
        let applied = usize::try_from(applied).unwrap_or(usize::MAX);
        self.oracle.choose(group, applied, "its leader has applied it")?;
        let own = leader_epoch(view.leader_epoch);
        let epochs = self.oracle.epochs(group);
        for epoch in -1..=own + 1 {
            let said = core.end_offset_for_epoch(group, epoch, -1);
            let is_old = (0..own).contains(&epoch);
            let fits = match said {
                Ok(said) if is_old => said == end_of(&epochs, epoch, view.log_start_offset),
                Ok(said) if epoch == own => said == (own, view.end_offset),
                Ok(said) => said == UNKNOWN,
                Err(_) => false,
            };
            must!(
                fits,
                "P7: {seat} {group}: asked in {own} where {epoch} ends it says {said:?}, its log starts at {}; of {epochs:?}",
                view.log_start_offset
            );
            self.report.epochs_asked += u64::from(is_old);
        }
        Ok(())
    }
}

/// What is to be said of an epoch that is over.
fn end_of(epochs: &BTreeMap<i32, Epoch>, epoch: i32, log_start: Offset) -> (i32, Offset) {
    let later = epochs.range(epoch + 1..).next();
    let Some((_, later)) = later else { return UNKNOWN };
    let is_there = |known: &Epoch| known.end_offset > known.offset.max(log_start);
    let named = epochs.range(..=epoch).rev().find(|(_, known)| is_there(known));
    (named.map_or(epoch, |(named, _)| *named), later.offset.max(log_start))
}

impl Oracle {
    /// The epochs of a log, as far as it is known to be committed.
    fn epochs(&self, id: GroupId) -> BTreeMap<i32, Epoch> {
        let mut epochs: BTreeMap<i32, Epoch> = BTreeMap::new();
        for known in self.groups.get(&id).map_or(&[][..], |group| group.chosen()) {
            let first = Epoch { offset: known.base_offset, end_offset: known.base_offset };
            let epoch = epochs.entry(leader_epoch(known.term)).or_insert(first);
            if known.kind == EntryKind::Batch {
                epoch.end_offset = known.end_offset;
            }
        }
        epochs
    }
}
