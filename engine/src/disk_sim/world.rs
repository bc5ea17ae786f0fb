//! The state of a simulated disk and what each operation does to it.
//!
//! An operation has a start, which submits it, and where time may pass in between a finish, which reports it done.
//! Nothing here waits. What a crash makes of pending things is in [`super::crash`].
//!
//! - I1: `live` of a file is `durable` with its completed pending writes applied.
//! - I2: `names` is `names_durable` with all of `names_pending` applied.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;

use super::SECTOR_BYTES;
use super::crash::Rng;
use crate::disk::DirEntry;

/// How often the disk was asked for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpCounts {
    /// Reads of files.
    pub reads: u64,
    /// Writes to files.
    pub writes: u64,
    /// Syncs of files.
    pub syncs: u64,
    /// Files made.
    pub creates: u64,
    /// Files renamed.
    pub renames: u64,
    /// Files removed.
    pub removes: u64,
    /// Syncs of directories.
    pub dir_syncs: u64,
}

impl OpCounts {
    /// All operations that change something, which is what [`super::SimDisk::crash_at_op`] counts.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.writes + self.syncs + self.creates + self.renames + self.removes + self.dir_syncs
    }
}

/// A failure that a test plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A read reports an I/O error.
    ReadError,
    /// A write reports an I/O error; any part of it may have happened.
    WriteError,
    /// A write gets only a part down and reports `WriteZero`.
    WriteShort,
    /// A write reports `StorageFull`; nothing of it happened.
    WriteNoSpace,
    /// A sync of a file reports an I/O error; each sector it should have covered is durable or lost, nobody knows.
    SyncError,
    /// A create reports `StorageFull`.
    CreateNoSpace,
    /// A create reports `QuotaExceeded`.
    CreateNoQuota,
    /// A rename, a removal or the sync of a directory reports an I/O error; nothing happened.
    NameError,
}

/// Damage done to durable content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Corruption {
    /// Inverts this bit (0 to 7) of every byte in the range.
    FlipBit(u8),
    /// Zeroes.
    Zero,
    /// Seeded noise.
    Garbage,
    /// What stands at that position of that file: a stale or misdirected write.
    CopyFrom {
        /// The file it is taken from.
        path: PathBuf,
        /// The position it is taken from.
        position: u64,
    },
    /// Reads that touch the range fail from now on.
    Unreadable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpKind {
    Read,
    Write,
    Sync,
    Create,
    Rename,
    Remove,
    DirSync,
}

impl Fault {
    fn hits(self, kind: OpKind) -> bool {
        match self {
            Fault::ReadError => kind == OpKind::Read,
            Fault::WriteError | Fault::WriteShort | Fault::WriteNoSpace => kind == OpKind::Write,
            Fault::SyncError => kind == OpKind::Sync,
            Fault::CreateNoSpace | Fault::CreateNoQuota => kind == OpKind::Create,
            Fault::NameError => {
                matches!(kind, OpKind::Rename | OpKind::Remove | OpKind::DirSync)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteState {
    InFlight,
    Completed,
    /// Reported as failed: it may still be found on the disk after a crash.
    Failed,
}

#[derive(Debug, Clone)]
pub(super) struct PendingWrite {
    id: u64,
    state: WriteState,
    pub(super) position: usize,
    pub(super) content: Rc<Vec<u8>>,
}

impl PendingWrite {
    fn overlaps(&self, position: usize, len: usize) -> bool {
        self.position < position + len && position < self.position + self.content.len()
    }

    fn apply(&self, to: &mut [u8]) {
        to[self.position..self.position + self.content.len()].copy_from_slice(&self.content);
    }
}

#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) durable: Rc<Vec<u8>>,
    pub(super) live: Rc<Vec<u8>>,
    pub(super) pending: Vec<PendingWrite>,
    unreadable: Vec<Range<usize>>,
}

impl Inode {
    fn new(content: Vec<u8>) -> Inode {
        let durable = Rc::new(content);
        let live = Rc::clone(&durable);
        Inode { durable, live, pending: Vec::new(), unreadable: Vec::new() }
    }
}

/// A change of names that is not yet durable. Names the inode, so that it can be replayed where an earlier change was
/// lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameOp {
    Create { path: PathBuf, inode: u64 },
    Remove { path: PathBuf, inode: u64 },
    Rename { from: PathBuf, to: PathBuf, inode: u64 },
}

impl NameOp {
    fn directory(&self) -> &Path {
        let (NameOp::Create { path, .. }
        | NameOp::Remove { path, .. }
        | NameOp::Rename { to: path, .. }) = self;
        path.parent().unwrap_or(path)
    }

    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            NameOp::Create { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            NameOp::Remove { path, inode } => {
                if names.get(path) == Some(inode) {
                    names.remove(path);
                }
            }
            NameOp::Rename { from, to, inode } => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
        }
    }
}

pub(super) struct World {
    pub(super) rng: Rng,
    /// Raised by every crash; a handle knows the one it was made in.
    pub(super) generation: u64,
    /// A planned crash has struck: everything fails until `crash` is called.
    pub(super) powered_off: bool,
    crash_at: Option<u64>,
    pub(super) inodes: BTreeMap<u64, Inode>,
    id_next: u64,
    directories: BTreeSet<PathBuf>,
    pub(super) names: BTreeMap<PathBuf, u64>,
    pub(super) names_durable: BTreeMap<PathBuf, u64>,
    pub(super) names_pending: Vec<NameOp>,
    counts: OpCounts,
    faults: Vec<(u64, Fault)>,
    capacity: Option<u64>,
    pending_polls_max: u32,
    boundaries: Option<Vec<(u64, World)>>,
}

fn error_crashed() -> io::Error {
    io::Error::other("the simulated disk has crashed")
}

fn error_device(what: &'static str) -> io::Error {
    io::Error::other(what)
}

fn error_not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no {} on the simulated disk", path.display()))
}

fn error_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the range lies outside the file")
}

fn index(position: u64) -> io::Result<usize> {
    usize::try_from(position).map_err(|_| error_range())
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        World {
            rng: Rng::new(seed),
            generation: 0,
            powered_off: false,
            crash_at: None,
            inodes: BTreeMap::new(),
            id_next: 0,
            directories: BTreeSet::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_pending: Vec::new(),
            counts: OpCounts::default(),
            faults: Vec::new(),
            capacity: None,
            pending_polls_max: 0,
            boundaries: None,
        }
    }

    pub(super) fn clone_state(&self) -> World {
        World {
            rng: self.rng.clone(),
            generation: self.generation,
            powered_off: self.powered_off,
            crash_at: self.crash_at,
            inodes: self.inodes.clone(),
            id_next: self.id_next,
            directories: self.directories.clone(),
            names: self.names.clone(),
            names_durable: self.names_durable.clone(),
            names_pending: self.names_pending.clone(),
            counts: self.counts,
            faults: self.faults.clone(),
            capacity: self.capacity,
            pending_polls_max: self.pending_polls_max,
            boundaries: None,
        }
    }

    pub(super) fn set_crash_at(&mut self, op: Option<u64>) {
        self.crash_at = op;
    }

    pub(super) fn record_boundaries(&mut self) {
        self.boundaries.get_or_insert_default();
    }

    pub(super) fn take_boundaries(&mut self) -> Vec<(u64, World)> {
        self.boundaries.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn stop_recording(&mut self) {
        self.boundaries = None;
    }

    pub(super) fn arm(&mut self, after: u64, fault: Fault) {
        self.faults.push((after, fault));
    }

    pub(super) fn clear_faults(&mut self) {
        self.faults.clear();
    }

    pub(super) fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity = bytes;
    }

    pub(super) fn set_pending_polls_max(&mut self, max: u32) {
        self.pending_polls_max = max;
    }

    pub(super) fn draw_polls(&mut self) -> u32 {
        if self.pending_polls_max == 0 {
            return 0; // no draw, so that the option does not change what a seed means
        }
        self.rng.below_u32(self.pending_polls_max + 1)
    }

    pub(super) fn counts(&self) -> OpCounts {
        self.counts
    }

    pub(super) fn pending_sectors(&self, path: &Path) -> usize {
        let inode = self.names.get(path).and_then(|id| self.inodes.get(id));
        inode.map_or(0, |inode| {
            inode.pending.iter().map(|write| write.content.len().div_ceil(SECTOR_BYTES)).sum()
        })
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.names.keys().cloned().collect()
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.powered_off
    }

    pub(super) fn check_alive(&self, generation: u64) -> io::Result<()> {
        if self.powered_off || self.generation != generation {
            return Err(error_crashed());
        }
        Ok(())
    }

    /// Counts an operation and returns the fault that hits it.
    fn begin(&mut self, kind: OpKind) -> io::Result<Option<Fault>> {
        self.check_alive(self.generation)?;
        let counter = match kind {
            OpKind::Read => &mut self.counts.reads,
            OpKind::Write => &mut self.counts.writes,
            OpKind::Sync => &mut self.counts.syncs,
            OpKind::Create => &mut self.counts.creates,
            OpKind::Rename => &mut self.counts.renames,
            OpKind::Remove => &mut self.counts.removes,
            OpKind::DirSync => &mut self.counts.dir_syncs,
        };
        *counter += 1;
        let mut struck = None;
        self.faults.retain_mut(|(remaining, fault)| {
            if struck.is_some() || !fault.hits(kind) {
                return true;
            }
            if *remaining == 0 {
                struck = Some(*fault);
                return false;
            }
            *remaining -= 1;
            true
        });
        Ok(struck)
    }

    /// To be called when a changing operation has been submitted: the place where a planned crash strikes.
    fn boundary(&mut self) -> io::Result<()> {
        let op = self.counts.changes();
        if self.boundaries.is_some() {
            let state = self.clone_state();
            if let Some(boundaries) = &mut self.boundaries {
                boundaries.push((op, state));
            }
        }
        if self.crash_at.is_some_and(|at| op >= at) {
            self.powered_off = true;
            return Err(error_crashed());
        }
        Ok(())
    }

    fn inode(&self, path: &Path) -> io::Result<(u64, &Inode)> {
        let id = self.names.get(path).ok_or_else(|| error_not_found(path))?;
        let inode = self.inodes.get(id).ok_or_else(|| error_not_found(path))?;
        Ok((*id, inode))
    }

    fn inode_mut(&mut self, id: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&id).ok_or_else(error_crashed)
    }

    fn id(&mut self) -> u64 {
        self.id_next += 1;
        self.id_next
    }

    fn bytes_used(&self) -> u64 {
        let len = |id: &u64| self.inodes.get(id).map_or(0, |inode| inode.live.len() as u64);
        self.names.values().map(len).sum()
    }

    pub(super) fn available(&self) -> io::Result<u64> {
        self.check_alive(self.generation)?;
        let left = |capacity: u64| capacity.saturating_sub(self.bytes_used());
        Ok(self.capacity.map_or(u64::MAX, left))
    }

    fn change_name(&mut self, op: NameOp) -> io::Result<()> {
        op.apply(&mut self.names);
        self.names_pending.push(op);
        self.boundary()
    }

    /// Returns inode, generation and length.
    pub(super) fn create(&mut self, path: &Path, len: u64) -> io::Result<(u64, u64, u64)> {
        let fault = self.begin(OpKind::Create)?;
        if self.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !path.parent().is_some_and(|dir| self.directories.contains(dir)) {
            return Err(error_not_found(path));
        }
        let full = self.capacity.is_some_and(|capacity| self.bytes_used() + len > capacity);
        if fault == Some(Fault::CreateNoQuota) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        if full || fault.is_some() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = self.id();
        self.inodes.insert(inode, Inode::new(vec![0; index(len)?]));
        self.change_name(NameOp::Create { path: path.to_path_buf(), inode })?;
        Ok((inode, self.generation, len))
    }

    /// Returns inode, generation and length.
    pub(super) fn open(&self, path: &Path) -> io::Result<(u64, u64, u64)> {
        self.check_alive(self.generation)?;
        let (id, inode) = self.inode(path)?;
        Ok((id, self.generation, inode.live.len() as u64))
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.check_alive(self.generation)?;
        if !self.directories.contains(dir) {
            return Err(error_not_found(dir));
        }
        let inside = self.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        let entry = |(path, id): (&PathBuf, &u64)| {
            let name = path.file_name()?.to_str()?.to_owned();
            Some(DirEntry { name, len: self.inodes.get(id)?.live.len() as u64 })
        };
        Ok(inside.filter_map(entry).collect())
    }

    pub(super) fn create_dir_all(&mut self, dir: &Path) -> io::Result<()> {
        self.check_alive(self.generation)?;
        self.directories.extend(dir.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let fault = self.begin(OpKind::Remove)?;
        let (inode, _) = self.inode(path)?;
        if fault.is_some() {
            return Err(error_device("planned: the removal failed"));
        }
        self.change_name(NameOp::Remove { path: path.to_path_buf(), inode })
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let fault = self.begin(OpKind::Rename)?;
        let (inode, _) = self.inode(from)?;
        if fault.is_some() {
            return Err(error_device("planned: the rename failed"));
        }
        let (from, to) = (from.to_path_buf(), to.to_path_buf());
        self.change_name(NameOp::Rename { from, to, inode })
    }

    pub(super) fn sync_dir_start(&mut self, dir: &Path) -> io::Result<(u64, Vec<NameOp>)> {
        let fault = self.begin(OpKind::DirSync)?;
        if !self.directories.contains(dir) {
            return Err(error_not_found(dir));
        }
        self.boundary()?;
        if fault.is_some() {
            return Err(error_device("planned: the directory sync failed"));
        }
        let inside = self.names_pending.iter().filter(|op| op.directory() == dir);
        Ok((self.generation, inside.cloned().collect()))
    }

    pub(super) fn sync_dir_finish(&mut self, at: u64, covered: Vec<NameOp>) -> io::Result<()> {
        self.check_alive(at)?;
        for op in covered {
            // Another sync of the directory may have taken it meanwhile.
            if let Some(at) = self.names_pending.iter().position(|pending| *pending == op) {
                self.names_pending.remove(at).apply(&mut self.names_durable);
            }
        }
        Ok(())
    }

    /// Returns the id of the write, to be given to [`World::write_finish`].
    pub(super) fn write_start(
        &mut self,
        generation: u64,
        inode: u64,
        position: u64,
        content: Vec<u8>,
    ) -> io::Result<u64> {
        self.check_alive(generation)?;
        let fault = self.begin(OpKind::Write)?;
        let position = index(position)?;
        let id = self.id();
        let short = self.rng.below(content.len() / SECTOR_BYTES) * SECTOR_BYTES;
        let file = self.inode_mut(inode)?;
        if position.checked_add(content.len()).is_none_or(|end| end > file.live.len()) {
            return Err(error_range());
        }
        let overlaps = |write: &PendingWrite| {
            write.state == WriteState::InFlight && write.overlaps(position, content.len())
        };
        assert!(!file.pending.iter().any(overlaps), "two writes in flight over the same sectors");
        if fault == Some(Fault::WriteNoSpace) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut content = content;
        if fault == Some(Fault::WriteShort) {
            content.truncate(short);
        }
        let state = if fault.is_some() { WriteState::Failed } else { WriteState::InFlight };
        file.pending.push(PendingWrite { id, state, position, content: Rc::new(content) });
        self.boundary()?;
        match fault {
            None => Ok(id),
            Some(Fault::WriteShort) => Err(io::ErrorKind::WriteZero.into()),
            Some(_) => Err(error_device("planned: the write failed")),
        }
    }

    pub(super) fn write_finish(&mut self, at: u64, inode: u64, write: u64) -> io::Result<()> {
        self.check_alive(at)?;
        let file = self.inode_mut(inode)?;
        let Some(write) = file.pending.iter_mut().find(|pending| pending.id == write) else {
            return Err(error_crashed());
        };
        write.state = WriteState::Completed;
        let (start, end) = (write.position, write.position + write.content.len());
        let live: &mut Vec<u8> = Rc::make_mut(&mut file.live);
        write.apply(live);
        file.unreadable.retain(|bad| !(start <= bad.start && bad.end <= end));
        Ok(())
    }

    /// Returns the ids of the writes it covers, to be given to [`World::sync_finish`].
    pub(super) fn sync_start(&mut self, generation: u64, inode: u64) -> io::Result<Vec<u64>> {
        self.check_alive(generation)?;
        let fault = self.begin(OpKind::Sync)?;
        self.boundary()?;
        let file = self.inodes.get_mut(&inode).ok_or_else(error_crashed)?;
        if fault.is_some() {
            super::crash::settle_unknown(file, &mut self.rng);
            return Err(error_device("planned: the sync failed"));
        }
        let completed = file.pending.iter().filter(|write| write.state == WriteState::Completed);
        Ok(completed.map(|write| write.id).collect())
    }

    pub(super) fn sync_finish(&mut self, at: u64, inode: u64, covered: &[u64]) -> io::Result<()> {
        self.check_alive(at)?;
        let file = self.inode_mut(inode)?;
        let durable: &mut Vec<u8> = Rc::make_mut(&mut file.durable);
        let is_covered = |write: &PendingWrite| covered.contains(&write.id);
        let synced: Vec<PendingWrite> =
            file.pending.iter().filter(|write| is_covered(write)).cloned().collect();
        for write in &synced {
            write.apply(durable);
        }
        // A failed write has had its end: it can no longer land over what was written after it and is now durable.
        let buried = |write: &PendingWrite| {
            write.state == WriteState::Failed
                && synced.iter().any(|later| {
                    later.id > write.id && later.overlaps(write.position, write.content.len())
                })
        };
        file.pending.retain(|write| !is_covered(write) && !buried(write));
        Ok(())
    }

    pub(super) fn read(&mut self, at: u64, inode: u64, from: u64, len: usize) -> io::Result<Bytes> {
        self.check_alive(at)?;
        let fault = self.begin(OpKind::Read)?;
        let start = index(from)?;
        let file = self.inode_mut(inode)?;
        let end = start.checked_add(len).ok_or_else(error_range)?;
        let Some(content) = file.live.get(start..end) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let bad = file.unreadable.iter().any(|bad| bad.start < end && start < bad.end);
        if bad || fault.is_some() {
            return Err(error_device("planned: the read failed"));
        }
        Ok(Bytes::copy_from_slice(content))
    }

    pub(super) fn read_raw(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.inode(path)?.1.live.to_vec())
    }

    pub(super) fn write_raw(&mut self, path: &Path, at: u64, content: &[u8]) -> io::Result<()> {
        let start = index(at)?;
        let end = start.checked_add(content.len()).ok_or_else(error_range)?;
        if !self.names.contains_key(path) {
            self.directories.extend(path.ancestors().skip(1).map(Path::to_path_buf));
            let inode = self.id();
            self.inodes.insert(inode, Inode::new(vec![0; end]));
            let op = NameOp::Create { path: path.to_path_buf(), inode };
            op.apply(&mut self.names);
            op.apply(&mut self.names_durable);
        }
        let (id, _) = self.inode(path)?;
        let file = self.inode_mut(id)?;
        if end > file.durable.len() {
            return Err(error_range());
        }
        Rc::make_mut(&mut file.durable)[start..end].copy_from_slice(content);
        Rc::make_mut(&mut file.live)[start..end].copy_from_slice(content);
        Ok(())
    }

    pub(super) fn corrupt(
        &mut self,
        path: &Path,
        range: Range<u64>,
        kind: Corruption,
    ) -> io::Result<()> {
        let range_at = index(range.start)?..index(range.end)?;
        let (id, file) = self.inode(path)?;
        let mut content = file.durable.get(range_at.clone()).ok_or_else(error_range)?.to_vec();
        match kind {
            Corruption::FlipBit(bit) => {
                content.iter_mut().for_each(|byte| *byte ^= 1 << (bit & 7));
            }
            Corruption::Zero => content.fill(0),
            Corruption::Garbage => self.rng.fill(&mut content),
            Corruption::CopyFrom { path, position } => {
                let (_, source) = self.inode(&path)?;
                let start = index(position)?;
                let end = start.checked_add(content.len()).ok_or_else(error_range)?;
                content.copy_from_slice(source.durable.get(start..end).ok_or_else(error_range)?);
            }
            Corruption::Unreadable => self.inode_mut(id)?.unreadable.push(range_at),
        }
        self.write_raw(path, range.start, &content)
    }
}
