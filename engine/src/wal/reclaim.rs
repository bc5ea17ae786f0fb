//! Reclaim: files go, oldest first, once nobody needs what is in them, and become spares.
//!
//! It decides by indexes only. Whether an entry is still needed by readers, followers or the state machine is the
//! caller's to say; what recovery needs is known here.

use std::rc::Rc;

use super::error::{IoOp, WalError};
use super::file::spare_path;
use super::spare::Spare;
use super::{Sealed, Wal};
use crate::disk::{Disk, DiskFile};
use crate::ids::{FileSeq, GroupId, RaftIndex};

impl<D: Disk> Wal<D> {
    /// Gives back files whose entries are all below what `first_needed` says for their group; `None` means that the
    /// group needs nothing. The file `held` and those after it stay: somebody reads it who is not of this shard. Returns
    /// how many files went. Not cancel-safe, and one at a time; appends may run beside it.
    pub async fn reclaim(
        &self,
        held: impl Fn() -> Option<FileSeq>,
        first_needed: impl Fn(GroupId) -> Option<RaftIndex>,
    ) -> Result<usize, WalError> {
        let mut reclaimed = 0;
        while let Some(seq) = self.oldest_unneeded(&first_needed) {
            if held() == Some(seq) {
                break;
            }
            if self.poisoned.get() {
                return Err(WalError::Poisoned);
            }
            let Some(sealed) = self.state.borrow_mut().sealed.remove(&seq) else {
                break;
            };
            self.state.borrow_mut().index.forget_file(seq);
            self.footers.borrow_mut().forget(seq);
            self.cache.forget(seq);
            self.give_back(sealed).await?;
            reclaimed += 1;
        }
        Ok(reclaimed)
    }

    fn oldest_unneeded(
        &self,
        first_needed: &impl Fn(GroupId) -> Option<RaftIndex>,
    ) -> Option<FileSeq> {
        let state = self.state.borrow();
        let seq = *state.sealed.first_key_value()?.0;
        if state.unfinished.iter().any(|unfinished| unfinished.seq == seq) {
            return None;
        }
        let needed = |(group, last): (GroupId, RaftIndex)| {
            // A start goes on from the newest checkpoint: what that has not applied is needed whatever the caller says.
            let applied = state.applied.get(&group);
            let recovery = applied.is_some_and(|applied| *applied < last);
            recovery || first_needed(group).is_some_and(|first| first <= last)
        };
        (!state.index.last_in_file(seq).any(needed)).then_some(seq)
    }

    /// Makes a file a spare, or removes it. A reader that still holds it must not see it change, so such a file is
    /// removed: what was opened stays as it is.
    async fn give_back(&self, sealed: Sealed<D::File>) -> Result<(), WalError> {
        // Where too little is free its space is worth more.
        let leaves_enough = self.leaves_enough(0).await;
        let held = sealed.file.as_ref().is_some_and(|file| Rc::strong_count(file) > 1);
        let number = {
            let mut spares = self.spares.borrow_mut();
            let wanted = leaves_enough && spares.spare.is_none() && !spares.busy && !held;
            wanted.then(|| {
                spares.next_number += 1;
                spares.next_number - 1
            })
        };
        drop(sealed.file);
        let Some(number) = number else {
            let removed = self.disk.remove(&sealed.path).await;
            removed.map_err(WalError::io(IoOp::Remove, sealed.path))?;
            return self.sync_dir().await;
        };
        let path = spare_path(&self.options.dir, number);
        let renamed = self.disk.rename(&sealed.path, &path).await;
        renamed.map_err(WalError::io(IoOp::Rename, sealed.path))?;
        self.sync_dir().await?;
        let opened = self.disk.open(&path).await;
        let file = opened.map_err(WalError::io(IoOp::Open, path.clone()))?;
        let written_to = file.len();
        self.put_spare(Spare { path, file, written_to }).await
    }
}
