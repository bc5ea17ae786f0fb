//! A disk in memory that fails on purpose: seeded, single-threaded, without a clock.
//!
//! Every file has content that is durable and writes that are not yet. A [`SimDisk::crash`] decides per 512-byte
//! sector what became of the latter: kept, lost, torn, zeroed, stale, flipped, or landed elsewhere. Names in a
//! directory are pending in the same way until [`Disk::sync_dir`]. The same seed and the same calls give the same
//! bytes, whatever machine runs them.
//!
//! It never touches a real file and never panics on what a disk may do; it panics when a *caller* breaks a rule of
//! [`crate::disk`] (alignment, two writes in flight over the same sectors).
//!
//! - I1: what a completed sync covered survives every crash, but for the sectors that an ending with a `to` position
//!   is told to overwrite.
//! - I2: a handle made before a crash fails for ever after it.
//! - I3: an operation that [`SimDisk::crash_at_op`] stops has been submitted, so the crash may keep it, lose it or
//!   keep a part, but it is never reported as done.

mod crash;
#[cfg(test)]
mod tests;
mod world;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

pub use self::crash::{CrashEnding, CrashMode, NameEnding};
use self::world::World;
pub use self::world::{Corruption, Fault, OpCounts};
use crate::disk::{DISK_ALIGN, DirEntry, Disk, DiskFile};
use crate::disk_std::{assert_aligned, assert_transfer};

/// The unit in which a crash decides: what every device writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A simulated disk. Clones are handles on the same disk; [`SimDisk::clone_state`] makes another one.
#[derive(Clone)]
pub struct SimDisk {
    world: Rc<RefCell<World>>,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

/// What the disk was like when an operation had been submitted and was not yet done.
#[derive(Debug)]
pub struct Boundary {
    /// The number of the operation, from 1, as [`SimDisk::crash_at_op`] counts them.
    pub op: u64,
    /// An independent disk in that state; the next step is to [`SimDisk::crash`] it.
    pub disk: SimDisk,
}

impl SimDisk {
    /// An empty disk without faults, whose operations are ready at once.
    #[must_use]
    pub fn new(seed: u64) -> SimDisk {
        SimDisk { world: Rc::new(RefCell::new(World::new(seed))) }
    }

    /// Cuts the power and restores it: decides what became of everything pending. Handles made before fail from now
    /// on; faults, a planned crash and the recording of boundaries are disarmed.
    pub fn crash(&self, mode: CrashMode) {
        self.world.borrow_mut().crash(mode);
    }

    /// An independent disk in exactly this state, pending writes and seed included, so that many crashes can be tried
    /// from one workload. Cheap: content is shared until one of the two writes.
    #[must_use]
    pub fn clone_state(&self) -> SimDisk {
        SimDisk { world: Rc::new(RefCell::new(self.world.borrow().clone_state())) }
    }

    /// Stops the disk in the middle of the `n`-th changing operation from the beginning (1 is the first; see
    /// [`OpCounts::changes`]): it is submitted but not done, and it and all later ones fail until [`SimDisk::crash`].
    pub fn crash_at_op(&self, n: u64) {
        self.world.borrow_mut().set_crash_at(Some(n));
    }

    /// Whether [`SimDisk::crash_at_op`] has stopped the disk: everything fails until [`SimDisk::crash`].
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.world.borrow().has_stopped()
    }

    /// From now on keeps the state at the boundary of every changing operation, to be had by
    /// [`SimDisk::take_boundaries`]: a whole crash matrix from one run.
    pub fn record_boundaries(&self) {
        self.world.borrow_mut().record_boundaries();
    }

    /// The boundaries recorded since the last call.
    #[must_use]
    pub fn take_boundaries(&self) -> Vec<Boundary> {
        let worlds = self.world.borrow_mut().take_boundaries();
        let boundary = |(op, world)| {
            let disk = SimDisk { world: Rc::new(RefCell::new(world)) };
            Boundary { op, disk }
        };
        worlds.into_iter().map(boundary).collect()
    }

    /// Lets `n` more operations that `fault` could hit succeed and makes the next one fail, once.
    pub fn fail_after(&self, n: u64, fault: Fault) {
        self.world.borrow_mut().arm(n, fault);
    }

    /// Forgets all armed faults.
    pub fn clear_faults(&self) {
        self.world.borrow_mut().clear_faults();
    }

    /// How many bytes of files fit; `None` is without end. A create beyond it fails with `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.borrow_mut().set_capacity(bytes);
    }

    /// Makes each operation return `Pending` a seeded number of times, at most `max`, and wake itself, so that an
    /// executor can do other things in between.
    pub fn set_pending_polls_max(&self, max: u32) {
        self.world.borrow_mut().set_pending_polls_max(max);
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> OpCounts {
        self.world.borrow().counts()
    }

    /// How many sectors of the file a crash would decide about.
    #[must_use]
    pub fn pending_sectors(&self, path: &Path) -> usize {
        self.world.borrow().pending_sectors(path)
    }

    /// The paths of all files as a running program sees them, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.world.borrow().files()
    }

    /// Damages durable content behind everyone's back. Fails with `NotFound` or `InvalidInput`.
    pub fn corrupt(&self, path: &Path, range: Range<u64>, kind: Corruption) -> io::Result<()> {
        self.world.borrow_mut().corrupt(path, range, kind)
    }

    /// The whole content of a file as a running program sees it.
    pub fn read_raw(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.world.borrow().read_raw(path)
    }

    /// Sets content, durable at once, at any position within the file; a file that is not there is made, as long as
    /// what is written.
    pub fn write_raw(&self, path: &Path, position: u64, content: &[u8]) -> io::Result<()> {
        self.world.borrow_mut().write_raw(path, position, content)
    }

    async fn pause(&self) {
        let polls = self.world.borrow_mut().draw_polls();
        PendingPolls(polls).await;
    }

    fn file(&self, opened: (u64, u64, u64)) -> SimFile {
        let (inode, generation, len) = opened;
        SimFile { disk: self.clone(), inode, generation, len }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn create(&self, path: &Path, len: u64) -> io::Result<SimFile> {
        assert!(len.is_multiple_of(DISK_ALIGN as u64), "length {len} of a new file is not aligned");
        let opened = self.world.borrow_mut().create(path, len)?;
        self.pause().await;
        self.world.borrow().check_alive(opened.1)?;
        Ok(self.file(opened))
    }

    async fn open(&self, path: &Path) -> io::Result<SimFile> {
        self.pause().await;
        let opened = self.world.borrow().open(path)?;
        Ok(self.file(opened))
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.pause().await;
        self.world.borrow().list(dir)
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.world.borrow_mut().create_dir_all(dir)?;
        self.pause().await;
        Ok(())
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.world.borrow_mut().remove(path)?;
        self.pause().await;
        Ok(())
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.world.borrow_mut().rename(from, to)?;
        self.pause().await;
        Ok(())
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let (generation, covered) = self.world.borrow_mut().sync_dir_start(dir)?;
        self.pause().await;
        self.world.borrow_mut().sync_dir_finish(generation, covered)
    }

    async fn available(&self, _dir: &Path) -> io::Result<u64> {
        let available = self.world.borrow().available()?;
        self.pause().await; // it may be less by the time that it is told
        Ok(available)
    }
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    generation: u64,
    len: u64,
}

impl DiskFile for SimFile {
    type Buf = Vec<u8>;

    /// The content is 0xA5 throughout, so that a caller who forgets to clear its padding is found out.
    fn alloc(&self, len: usize) -> Vec<u8> {
        assert!(len.is_multiple_of(DISK_ALIGN), "length {len} of a buffer is not aligned");
        vec![0xA5; len]
    }

    async fn write_at(&self, buf: Vec<u8>, position: u64) -> io::Result<()> {
        assert_transfer(position, buf.len());
        let world = &self.disk.world;
        let write = world.borrow_mut().write_start(self.generation, self.inode, position, buf)?;
        self.disk.pause().await;
        world.borrow_mut().write_finish(self.generation, self.inode, write)
    }

    /// As `O_DSYNC` has it: this write becomes durable, and what other writes left pending stays so.
    async fn write_durable_at(&self, buf: Vec<u8>, position: u64) -> io::Result<()> {
        assert_transfer(position, buf.len());
        let world = &self.disk.world;
        let write = world.borrow_mut().write_start(self.generation, self.inode, position, buf)?;
        self.disk.pause().await;
        world.borrow_mut().write_finish(self.generation, self.inode, write)?;
        let mut covered = world.borrow_mut().sync_start(self.generation, self.inode)?;
        covered.retain(|id| *id == write);
        self.disk.pause().await;
        world.borrow_mut().sync_finish(self.generation, self.inode, &covered)
    }

    async fn sync_data(&self) -> io::Result<()> {
        let world = &self.disk.world;
        let covered = world.borrow_mut().sync_start(self.generation, self.inode)?;
        self.disk.pause().await;
        world.borrow_mut().sync_finish(self.generation, self.inode, &covered)
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<Bytes> {
        assert_aligned(position, len);
        self.disk.pause().await;
        self.disk.world.borrow_mut().read(self.generation, self.inode, position, len)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// Returns `Pending` as often as its number says, waking itself each time.
struct PendingPolls(u32);

impl Future for PendingPolls {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Runs a future of a [`SimDisk`] (or of [`crate::disk_std`]) to its end on this thread. A future that waits for
/// anything else would never end: that is a panic after ten million polls.
pub fn block_on<F: Future>(future: F) -> F::Output {
    const POLLS_MAX: u32 = 10_000_000;
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    let mut polls = 0;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        polls += 1;
        assert!(polls < POLLS_MAX, "the future waits for something that is not a simulated disk");
    }
}
