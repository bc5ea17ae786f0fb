//! Files for later: the spare that the next roll takes, and the ballast that a full disk gives up.
//!
//! Writing into space that was never written costs more than twice as much per block as into a file full of zeros
//! (the file system has to convert extents at each sync). So the next file is made and zeroed ahead of its use, a step
//! at a time while the shard is idle, and files that were reclaimed are used again.
//!
//! A spare is at most [`SPARE_GROWTH`] times as large as the active file: it has to be zeroed before that one is full,
//! and a log that has just begun with a small file has little time.
//!
//! It never touches a file that has blocks of the log in use.
//!
//! - I1: a file is kept only if [`super::WalOptions::left_free_bytes`] are free beside it, whoever else makes files at the
//!   same time. Two exceptions: the very first file, and the ballast once it is used up, which takes nothing more.
//! - I2: the ballast's space is never free between its two lives: whoever waits for room would have it.

use std::io;
use std::path::PathBuf;

use super::Wal;
use super::error::{IoOp, WalError};
use super::file::{BALLAST_NAME, spare_path, wal_path, write_zeros};
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::FileSeq;
use crate::limits;

/// How many times larger than the file before it a file may be.
const SPARE_GROWTH: u64 = 4;

/// A file that is ready to be taken.
pub(super) struct Spare<F> {
    pub path: PathBuf,
    pub file: F,
    /// Zeros (or blocks of another life) were written up to here.
    pub written_to: u64,
}

/// What is kept for later.
pub(super) struct Spares<F> {
    pub spare: Option<Spare<F>>,
    /// Numbers of spare files from here on are free.
    pub next_number: u64,
    /// Whether a step holds the spare at this moment.
    pub busy: bool,
    pub has_ballast: bool,
    pub storage_full: bool,
    /// How large files must be for what follows their checkpoints; none where they are anyway.
    pub room_bytes: u64,
}

impl<F> Spares<F> {
    pub fn new(next_number: u64) -> Spares<F> {
        let (has_ballast, storage_full) = (false, false);
        Spares { spare: None, next_number, busy: false, has_ballast, storage_full, room_bytes: 0 }
    }
}

/// How far the next file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpareProgress {
    /// A step was done, and there are more.
    Working,
    /// The spare is ready; there is nothing to do.
    Ready,
}

impl<D: Disk> Wal<D> {
    /// Whether there was no room for another file when it was last tried. Produce is to be refused; what Raft itself
    /// writes still has the ballast's room. [`Wal::prepare_spare_step`] clears it once space is back.
    #[must_use]
    pub fn is_storage_full(&self) -> bool {
        self.spares.borrow().storage_full
    }

    /// Bytes of the next file that are yet to be zeroed, and bytes of the active file that are yet to be written: what is
    /// left to do, and how much may be written meanwhile.
    #[must_use]
    pub fn spare_left(&self) -> (u64, u64) {
        let to_zero = match &self.spares.borrow().spare {
            Some(spare) => spare.file.len().saturating_sub(spare.written_to),
            None => self.spare_bytes(),
        };
        let active = &self.state.borrow().active;
        (to_zero, active.file.len().saturating_sub(active.position))
    }

    /// How large the next file should be.
    fn spare_bytes(&self) -> u64 {
        let grown = self.state.borrow().active.file.len().saturating_mul(SPARE_GROWTH);
        grown.min(self.full_bytes()).max(self.spares.borrow().room_bytes)
    }

    /// How large files become.
    fn full_bytes(&self) -> u64 {
        self.options.file_bytes.max(self.spares.borrow().room_bytes)
    }

    /// Files begin with checkpoints, and have room for at least as much again: else a log whose groups have come to much
    /// state would consist of hardly anything else.
    pub(super) fn note_checkpoints(&self, checkpoint_bytes: u64) {
        let room = checkpoint_bytes.saturating_mul(2).next_multiple_of(DISK_ALIGN as u64);
        let is_small = room <= self.options.file_bytes;
        let room = if is_small { 0 } else { room.min(limits::WAL_FILE_BYTES_MAX) };
        self.spares.borrow_mut().room_bytes = room;
    }

    /// One small step towards the next file: restores the ballast, makes the spare, or zeroes at most `bytes_max` of it.
    /// Fails with [`WalError::StorageFull`] where there is no room. Not cancel-safe, and one at a time; appends may run
    /// beside it.
    pub async fn prepare_spare_step(&self, bytes_max: u64) -> Result<SpareProgress, WalError> {
        assert!(bytes_max >= DISK_ALIGN as u64, "a step of nothing");
        if self.poisoned.get() {
            return Err(WalError::Poisoned);
        }
        assert!(!self.spares.borrow().busy, "one step at a time, and none is dropped half-way");
        self.spares.borrow_mut().busy = true;
        let result = self.step(bytes_max).await;
        let mut spares = self.spares.borrow_mut();
        spares.busy = false;
        match &result {
            Err(WalError::StorageFull { .. }) => spares.storage_full = true,
            Ok(_) if spares.spare.is_some() => spares.storage_full = false,
            _ => {}
        }
        result
    }

    async fn step(&self, bytes_max: u64) -> Result<SpareProgress, WalError> {
        let wants_ballast = {
            let spares = self.spares.borrow();
            self.options.ballast_bytes > 0 && !spares.has_ballast
        };
        if wants_ballast {
            self.make_ballast().await?;
            return Ok(SpareProgress::Working);
        }
        // The spare is out of its place while it is written to: a roll in between makes a file of its own, and cannot
        // take one that a write is still on its way to.
        let spare = self.spares.borrow_mut().spare.take();
        let Some(mut spare) = spare else {
            let number = {
                let mut spares = self.spares.borrow_mut();
                spares.next_number += 1;
                spares.next_number - 1
            };
            let path = spare_path(&self.options.dir, number);
            let file = self.create(path.clone(), self.spare_bytes()).await?;
            self.put_spare(Spare { path, file, written_to: 0 }).await?;
            return Ok(SpareProgress::Working);
        };
        let len = spare.file.len();
        if spare.written_to >= len {
            self.put_spare(spare).await?;
            return Ok(SpareProgress::Ready);
        }
        let step = bytes_max - bytes_max % DISK_ALIGN as u64;
        let to = len.min(spare.written_to + step);
        let from = spare.written_to;
        let io = WalError::io(IoOp::Write, spare.path.clone());
        write_zeros(&spare.file, from, to).await.map_err(io)?;
        spare.written_to = to;
        if to == len {
            let io = WalError::io(IoOp::Sync, spare.path.clone());
            spare.file.sync_data().await.map_err(io)?;
        }
        self.put_spare(spare).await?;
        Ok(SpareProgress::Working)
    }

    /// Puts a spare into its place, or removes it where there is one already.
    pub(super) async fn put_spare(&self, spare: Spare<D::File>) -> Result<(), WalError> {
        let wanted = {
            let spares = self.spares.borrow();
            self.fits_as_spare(spare.file.len()) && spares.spare.is_none()
        };
        if wanted {
            self.spares.borrow_mut().spare = Some(spare);
            return Ok(());
        }
        let io = WalError::io(IoOp::Remove, spare.path.clone());
        self.disk.remove(&spare.path).await.map_err(io)
    }

    /// Whether a file of this length may be the next one.
    pub(super) fn fits_as_spare(&self, len: u64) -> bool {
        (self.spare_bytes()..=self.full_bytes()).contains(&len)
    }

    /// Makes a file if enough is left free beside it (I1). It is looked for before, as making a file and removing it
    /// again is dear, and after, as other logs on the same disk may have done the same meanwhile.
    async fn create(&self, path: PathBuf, len: u64) -> Result<D::File, WalError> {
        let too_little = |path| {
            let why = "what is left is kept free for segments";
            WalError::create(path, len, io::Error::new(io::ErrorKind::StorageFull, why))
        };
        if !self.leaves_enough(len).await {
            return Err(too_little(path));
        }
        let created = self.disk.create(&path, len).await;
        let file = created.map_err(|source| WalError::create(path.clone(), len, source))?;
        if !self.leaves_enough(0).await {
            drop(file);
            let removed = self.disk.remove(&path).await;
            removed.map_err(WalError::io(IoOp::Remove, path.clone()))?;
            return Err(too_little(path));
        }
        Ok(file)
    }

    /// Whether enough is left free where `bytes` more are taken. What a file system does not tell shows when it is full.
    /// Cancel-safe.
    pub async fn leaves_enough(&self, bytes: u64) -> bool {
        let left = self.options.left_free_bytes;
        left == 0 || self.available().await >= left.saturating_add(bytes)
    }

    /// Bytes that are free where the log is. What a file system does not tell shows when it is full.
    pub async fn available(&self) -> u64 {
        self.disk.available(&self.options.dir).await.unwrap_or(u64::MAX)
    }

    /// A file for the next roll, under its final and durable name.
    pub(super) async fn next_file(
        &self,
        seq: FileSeq,
        needed: u64,
        essential: bool,
    ) -> Result<(PathBuf, D::File), WalError> {
        let path = wal_path(&self.options.dir, seq);
        let (spare, room_bytes) = {
            let mut spares = self.spares.borrow_mut();
            (spares.spare.take(), spares.room_bytes)
        };
        // On a full disk one that is large enough will do.
        let is_room = room_bytes > 0 && self.leaves_enough(room_bytes).await;
        let wanted = if is_room { needed.max(room_bytes) } else { needed };
        let file = match spare {
            Some(spare) if spare.file.len() >= wanted => {
                let renamed = self.disk.rename(&spare.path, &path).await;
                renamed.map_err(WalError::io(IoOp::Rename, path.clone())).inspect_err(|_| {
                    self.poisoned.set(true);
                })?;
                spare.file
            }
            unfit => {
                if let Some(spare) = unfit {
                    self.put_spare(spare).await?;
                }
                self.create_next(path.clone(), needed, essential).await?
            }
        };
        // The name must be durable before anything in the file is: otherwise a crash could leave the new blocks under
        // the spare's name. After a failure nobody knows which name it has.
        self.sync_dir().await.inspect_err(|_| self.poisoned.set(true))?;
        Ok((path, file))
    }

    async fn create_next(
        &self,
        path: PathBuf,
        needed: u64,
        essential: bool,
    ) -> Result<D::File, WalError> {
        let align = DISK_ALIGN as u64;
        let needed = needed.next_multiple_of(align);
        let mut error = match self.create(path.clone(), needed.max(self.full_bytes())).await {
            Err(error @ WalError::StorageFull { .. }) => error,
            other => return other,
        };
        if needed.max(self.options.file_bytes) < self.full_bytes() {
            error = match self.create(path.clone(), needed.max(self.options.file_bytes)).await {
                Err(error @ WalError::StorageFull { .. }) => error,
                other => return other,
            };
        }
        let has_ballast = {
            let mut spares = self.spares.borrow_mut();
            spares.storage_full = true;
            spares.has_ballast
        };
        if !essential || !has_ballast || self.options.ballast_bytes < needed {
            return Err(error);
        }
        tracing::warn!(path = %path.display(), "the disk is full: the ballast is used up for Raft's own state");
        self.take_ballast(path).await
    }

    pub(super) async fn make_ballast(&self) -> Result<(), WalError> {
        let path = self.options.dir.join(BALLAST_NAME);
        self.create(path, self.options.ballast_bytes).await?;
        self.sync_dir().await?;
        self.spares.borrow_mut().has_ballast = true;
        Ok(())
    }

    /// Makes the ballast a file of the log (I2). After a failure nobody knows which name it has.
    async fn take_ballast(&self, path: PathBuf) -> Result<D::File, WalError> {
        let ballast = self.options.dir.join(BALLAST_NAME);
        let poison = |_: &WalError| self.poisoned.set(true);
        let renamed = self.disk.rename(&ballast, &path).await;
        renamed.map_err(WalError::io(IoOp::Rename, path.clone())).inspect_err(poison)?;
        self.spares.borrow_mut().has_ballast = false;
        let opened = self.disk.open(&path).await;
        opened.map_err(WalError::io(IoOp::Open, path)).inspect_err(poison)
    }

    pub(super) async fn sync_dir(&self) -> Result<(), WalError> {
        let dir = &self.options.dir;
        self.disk.sync_dir(dir).await.map_err(WalError::io(IoOp::SyncDir, dir.clone()))
    }
}
