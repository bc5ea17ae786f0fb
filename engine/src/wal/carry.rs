//! Carrying entries forward: what keeps the oldest file, and cannot be done with, is written once more at the log's end.
//!
//! Files go oldest first, and an entry that is not applied keeps the file that it is in. The last entries of a group that
//! has lost its quorum stay so for as long as that lasts, hours or for ever, while all others go on: the log of a whole
//! shard would grow to the disk's end for the sake of a few entries. So they move: each is appended again, with the same
//! index, term and content. A later append at an index voids what was there before ([`crate::log_index`] I1), the old
//! file holds nothing any more that is needed, and it goes as any other.
//!
//! Why no entry is lost by this, and none comes back:
//!
//! - C1: the log says the same after the block as before. The block holds *all* entries of its group behind an applied
//!   one, to the last, for an append at an index voids all that follows it; and it is made of what was durable when it was
//!   begun, with nothing appended in between: who appends makes it, and nobody else does. A copy that the log has moved on
//!   from meanwhile is not written ([`Wal::append_carried`] compares).
//! - C2: it is one block, so after a crash it is there as a whole or not at all, and either is right by C1.
//! - C3: the index is told after the sync (I4 of the log), and only the index lets a file go: the copy is durable before.
//! - C4: Raft does not know of it. What a new leader makes of these entries is appended behind the copy, as it would be
//!   behind the originals, and wins in the same way.
//! - C5: nothing is written again that a checkpoint has applied: recovery refuses to see such an entry replaced.
//! - C6: entries that damage took are not carried: there is nothing to copy.

use super::record::WalRecord;
use super::{Wal, WalError};
use crate::disk::Disk;
use crate::ids::{FileSeq, GroupId, RaftIndex};
use crate::limits::WAL_BLOCK_RECORDS_MAX;
use crate::wal::ReadError;

/// The most that is carried of one group: what a leader takes in one term before anything of it is committed.
const CARRIED_BYTES_MAX: usize = 64 << 20;

/// The entries of a group behind the last that is applied, as they were when they were read.
#[derive(Debug)]
pub struct Carried {
    group: GroupId,
    first: RaftIndex,
    records: Vec<WalRecord>,
    /// How many blocks had been appended by then.
    appends: u64,
}

impl Carried {
    /// What is to be appended. Where it does not fit, the log is to be rolled first.
    #[must_use]
    pub fn records(&self) -> &[WalRecord] {
        &self.records
    }
}

impl<D: Disk> Wal<D> {
    /// The groups with entries in the oldest sealed file that are not applied, each with what it has applied; nothing
    /// where no other sealed file waits for that one.
    #[must_use]
    pub fn unapplied_in_oldest(
        &self,
        applied: impl Fn(GroupId) -> Option<RaftIndex>,
    ) -> Option<(FileSeq, Vec<(GroupId, RaftIndex)>)> {
        let state = self.state.borrow();
        let mut sealed = state.sealed.keys();
        let (oldest, _) = (*sealed.next()?, sealed.next()?);
        let unapplied = |(group, last): (GroupId, RaftIndex)| {
            let applied = applied(group)?;
            (applied < last).then_some((group, applied))
        };
        let groups: Vec<_> = state.index.last_in_file(oldest).filter_map(unapplied).collect();
        (!groups.is_empty()).then_some((oldest, groups))
    }

    /// Reads the entries of a group behind `applied`; `None` where there are none, or they cannot be carried: too many for
    /// one block, or lost. Cancel-safe.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn read_to_carry(
        &self,
        group: GroupId,
        applied: RaftIndex,
    ) -> Result<Option<Carried>, ReadError> {
        let appends = self.appends.get();
        let (first, last) = {
            let state = self.state.borrow();
            let Some(log) = state.index.group(group) else { return Ok(None) };
            let stated = state.applied.get(&group).copied().unwrap_or_default();
            (applied.max(stated).max(log.log_start).next(), log.last)
        };
        let count = (last.0 + 1).saturating_sub(first.0);
        if count == 0 || count > WAL_BLOCK_RECORDS_MAX as u64 {
            return Ok(None);
        }
        if self.any_lost(group, first).await? {
            return Ok(None); // C6
        }
        let entries = self.read_entries(group, first, last.next(), CARRIED_BYTES_MAX).await?;
        let is_whole = entries.len() as u64 == count
            && entries.first().is_some_and(|entry| entry.index == first)
            && entries.last().is_some_and(|entry| entry.index == last);
        let record = |entry| WalRecord::Entry { group, entry };
        let records = entries.into_iter().map(record).collect();
        Ok(is_whole.then_some(Carried { group, first, records, appends }))
    }

    /// Appends them; `false` where the log has gone on since they were read (C1), or a checkpoint has applied some of them
    /// (C5): nothing is written then. Not cancel-safe. One append at a time.
    ///
    /// # Errors
    /// As [`Wal::append`].
    pub async fn append_carried(&self, carried: &Carried) -> Result<bool, WalError> {
        let is_as_read = self.appends.get() == carried.appends && {
            let state = self.state.borrow();
            let applied = state.applied.get(&carried.group);
            applied.is_none_or(|applied| *applied < carried.first)
        };
        if is_as_read {
            self.append(&carried.records).await?;
        }
        Ok(is_as_read)
    }
}
