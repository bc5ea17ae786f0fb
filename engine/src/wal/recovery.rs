//! Recovery: from the files of a directory to a log that can be written again, and to the groups in it.
//!
//! The newest file that was started is the active one; its checkpoint states every group, and its blocks are replayed on
//! it. Older files are known by their footers. Why a torn tail may be cut and damage may not is told in [`super`].
//!
//! - I1: nothing on the disk is changed before everything that must be read was read and found right.
//! - I2: what recovery returns is durable, and a later block shows it to be.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use uuid::Uuid;

use super::block::{
    Block, BlockFault, BlockHeader, BlockKind, BlockPlan, FLAG_LAST_CHECKPOINT, FORMAT_VERSION,
    SlotKind,
};
use super::error::{IoOp, WalError};
use super::file::{BALLAST_NAME, FileName, spare_path, wal_path, write_zeros};
use super::read_cache::{FooterCache, ReadCache};
use super::record::{GroupCheckpoint, HardState, LogEntry, LogPosition};
use super::replay::{GroupReplay, Replay, ReplayError};
use super::scan::{Found, Scanner};
use super::spare::{Spare, Spares};
use super::{Active, Sealed, State, Wal, WalOptions, footer};
use crate::disk::{DISK_ALIGN, Disk, DiskFile};
use crate::ids::{BlockSeq, FileSeq, Offset};
use crate::log_index::{FileIndex, LogIndex};

/// A group as recovery found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// The newest checkpoint, or a fresh one if the group was created since. Its epochs are those of the whole log as
    /// it is now.
    pub checkpoint: GroupCheckpoint,
    /// The newest hard state.
    pub hard_state: HardState,
    /// All entries that the checkpoint has not applied, contiguous; of each batch only the header (61 bytes).
    pub entries: Vec<LogEntry>,
    /// The last entry.
    pub last: LogPosition,
    /// Entries begin after this place.
    pub log_start: LogPosition,
    /// The first offset that may be read.
    pub log_start_offset: Offset,
}

/// The end of the log that was in flight when the shard stopped, and that nobody was told is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TornTail {
    /// Where it began.
    pub position: u64,
    /// How long it was to be; what is not known to be a block of this place counts as one sector.
    pub bytes: u64,
    /// What was wrong with it.
    pub fault: BlockFault,
}

/// What recovery did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Files of the log, the active one included.
    pub files: usize,
    /// Bytes read to find blocks; footers and single entries do not count.
    pub bytes_scanned: u64,
    /// Blocks replayed.
    pub blocks: u64,
    /// The tail that was cut, if one was seen.
    pub torn: Option<TornTail>,
    /// Whether the shard had stopped in good order.
    pub clean_close: bool,
    /// Sealed files without a usable footer, which were scanned: a warning, unless the shard stopped during a roll.
    pub files_without_footer: Vec<FileSeq>,
    /// Those of them that have a footer again.
    pub footers_rebuilt: usize,
    /// Files that were begun but never started, now removed.
    pub files_discarded: usize,
    /// Records of groups that were not there.
    pub orphans: u64,
}

impl<D: Disk> Wal<D> {
    /// Opens the log of a shard, or makes it where the directory has none. Damage is an error, and nothing is changed
    /// then. Not cancel-safe.
    pub async fn open(
        disk: D,
        options: WalOptions,
    ) -> Result<(Wal<D>, Vec<RecoveredGroup>, RecoveryReport), WalError> {
        let options = options.checked();
        let dir = options.dir.clone();
        disk.create_dir_all(&dir).await.map_err(WalError::io(IoOp::Create, dir.clone()))?;
        let listing = Listing::read(&disk, &dir).await?;
        let mut report = RecoveryReport::default();
        if !find_started(&disk, &options, &listing).await? {
            make_first_file(&disk, &options, &listing).await?;
        }
        let listing = Listing::read(&disk, &dir).await?;
        let recovery = Recovery { disk: &disk, options: &options, report: &mut report };
        let recovered = recovery.run(&listing).await?;
        let Recovered { replay, state, unstarted, scanned } = recovered;

        let wal = Wal::from_state(disk, options, state, &listing);
        let groups = wal.load_groups(replay).await?;
        wal.settle(&listing, &unstarted, scanned, &mut report).await?;
        report.files = wal.file_count();
        report.files_discarded = unstarted.len();
        Ok((wal, groups, report))
    }

    fn from_state(
        disk: D,
        options: WalOptions,
        state: State<D::File>,
        listing: &Listing,
    ) -> Wal<D> {
        let next_spare = listing.spares.iter().map(|(number, _)| number + 1).max().unwrap_or(1);
        Wal {
            cache: ReadCache::new(options.read_cache_bytes),
            footers: FooterCache::new(options.footer_cache_bytes).into(),
            disk,
            options,
            state: state.into(),
            spares: Spares::new(next_spare).into(),
            parts: Vec::new().into(),
            lasts: std::collections::HashMap::new().into(),
            appends: 0.into(),
            in_flight: false.into(),
            is_finishing: false.into(),
            poisoned: false.into(),
            closed: false.into(),
        }
    }

    /// Fetches from older files what the checkpoints have not applied.
    async fn load_groups(&self, replay: Replay) -> Result<Vec<RecoveredGroup>, WalError> {
        let mut groups = Vec::with_capacity(replay.groups.len());
        for (group, replay) in replay.groups {
            let first = replay.first_needed();
            let GroupReplay { checkpoint, hard_state, log_start, log_start_offset, last, .. } =
                replay;
            let mut entries = replay.entries;
            entries.retain(|entry| entry.index >= first);
            let have_from = entries.first().map_or(last.index.next(), |entry| entry.index);
            if first < have_from {
                let older = self.read_heads(group, first, have_from).await;
                let mut older = older.map_err(|source| match source {
                    super::ReadError::IndexReclaimed { index, .. } => {
                        WalError::EntriesMissing { group, index }
                    }
                    source => WalError::Entries { group, source: Box::new(source) },
                })?;
                older.append(&mut entries);
                entries = older;
            }
            let contiguous = entries.iter().zip(first.0..).all(|(e, index)| e.index.0 == index);
            assert!(contiguous, "group {group}: recovered entries are contiguous");
            let end = entries.last().map_or(last.index, |entry| entry.index);
            assert!(end == last.index, "group {group}: recovered entries end at the last index");
            groups.push(RecoveredGroup {
                checkpoint,
                hard_state,
                entries,
                last,
                log_start,
                log_start_offset,
            });
        }
        Ok(groups)
    }

    /// The first writes: everything was read and found right (I1).
    async fn settle(
        &self,
        listing: &Listing,
        unstarted: &[FileSeq],
        scanned: Vec<(FileSeq, Rc<FileIndex>)>,
        report: &mut RecoveryReport,
    ) -> Result<(), WalError> {
        for seq in unstarted {
            self.remove(wal_path(&self.options.dir, *seq)).await?;
        }
        if !unstarted.is_empty() {
            self.sync_dir().await?;
        }
        let (file, path) = {
            let active = &self.state.borrow().active;
            (Rc::clone(&active.file), active.path.clone())
        };
        file.sync_data().await.map_err(WalError::io(IoOp::Sync, path))?;
        self.write_empty(BlockKind::Mark).await?;
        for (seq, index) in scanned {
            report.files_without_footer.push(seq);
            let path = wal_path(&self.options.dir, seq);
            let opened = self.disk.open(&path).await;
            let file = opened.map_err(WalError::io(IoOp::Open, path.clone()))?;
            let shard = self.options.shard_uuid;
            if footer::write(&file, &path, shard, seq, &index).await? {
                report.footers_rebuilt += 1;
                if let Some(sealed) = self.state.borrow_mut().sealed.get_mut(&seq) {
                    sealed.pinned = None;
                }
            }
        }
        self.adopt_spares(listing).await
    }

    async fn adopt_spares(&self, listing: &Listing) -> Result<(), WalError> {
        let dir = &self.options.dir;
        for (number, len) in &listing.spares {
            let path = spare_path(dir, *number);
            if !self.fits_as_spare(*len) || self.spares.borrow().spare.is_some() {
                self.remove(path).await?;
                continue;
            }
            let opened = self.disk.open(&path).await;
            let file = opened.map_err(WalError::io(IoOp::Open, path.clone()))?;
            // How far it was zeroed is not known; zeroing it again costs idle time only.
            self.put_spare(Spare { path, file, written_to: 0 }).await?;
        }
        let wanted = self.options.ballast_bytes;
        if listing.ballast == Some(wanted) {
            self.spares.borrow_mut().has_ballast = true;
            return Ok(());
        }
        if listing.ballast.is_some() {
            self.remove(dir.join(BALLAST_NAME)).await?;
        }
        if wanted == 0 {
            return Ok(());
        }
        match self.make_ballast().await {
            Err(WalError::StorageFull { .. }) => {
                self.spares.borrow_mut().storage_full = true;
                Ok(())
            }
            other => other,
        }
    }

    async fn remove(&self, path: PathBuf) -> Result<(), WalError> {
        self.disk.remove(&path).await.map_err(WalError::io(IoOp::Remove, path))
    }
}

/// What is in a log's directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The files of the log, oldest first.
    pub files: Vec<FileSeq>,
    spares: Vec<(u64, u64)>,
    ballast: Option<u64>,
}

impl Listing {
    pub async fn read<D: Disk>(disk: &D, dir: &Path) -> Result<Listing, WalError> {
        let names = disk.list(dir).await.map_err(WalError::io(IoOp::List, dir))?;
        let mut listing = Listing::default();
        for entry in names {
            match FileName::parse(&entry.name) {
                Some(FileName::Wal(seq)) => listing.files.push(seq),
                Some(FileName::Spare(number)) => listing.spares.push((number, entry.len)),
                Some(FileName::Ballast) => listing.ballast = Some(entry.len),
                Some(FileName::DamagedCopy) => {}
                None => return Err(WalError::ForeignFile { path: dir.join(entry.name) }),
            }
        }
        listing.files.sort_unstable();
        listing.spares.sort_unstable();
        for pair in listing.files.windows(2) {
            if pair[1].0 != pair[0].0 + 1 {
                let file = FileSeq(pair[0].0 + 1);
                return Err(WalError::FileMissing { file, dir: dir.to_owned() });
            }
        }
        Ok(listing)
    }
}

/// How a file begins.
pub(super) enum Start {
    /// With all its checkpoint blocks.
    Started { blocks: Vec<Block>, end: u64 },
    /// It was begun, but never came into use. If its first block is there, its number is.
    Unstarted { first_block: Option<BlockSeq> },
}

/// Reads the checkpoint blocks of a file.
pub(super) async fn read_start<F: DiskFile>(
    scanner: &mut Scanner<'_, F>,
    file: &F,
    path: &Path,
    shard: Uuid,
    seq: FileSeq,
) -> Result<Start, WalError> {
    check_owner(file, path, shard).await?;
    let mut blocks: Vec<Block> = Vec::new();
    let mut position = 0;
    loop {
        let found = scanner.read(position).await.map_err(WalError::io(IoOp::Read, path))?;
        let expected = blocks.last().map(|block| block.header().place.sequence.0 + 1);
        let fault = match found {
            Found::Block(block)
                if block.header().kind == BlockKind::Checkpoint
                    && expected.is_none_or(|seq| seq == block.header().place.sequence.0) =>
            {
                position += block.header().padded_len();
                let is_last = block.header().flags & FLAG_LAST_CHECKPOINT != 0;
                blocks.push(block);
                if is_last {
                    return Ok(Start::Started { blocks, end: position });
                }
                continue;
            }
            Found::Block(block) => BlockFault::Kind { kind: block.header().kind as u8 },
            Found::Invalid { fault, .. } => fault,
            Found::End => BlockFault::Short,
        };
        let first_block = blocks.first().map(|block| block.header().place.sequence);
        // Any later block shows that the file was in use.
        let later = scanner.find_later(position, BlockSeq(expected.unwrap_or(0))).await;
        return match later.map_err(WalError::io(IoOp::Read, path))? {
            Some(later) => Err(damaged(path, seq, position, seq, later, fault)),
            None => Ok(Start::Unstarted { first_block }),
        };
    }
}

/// Refuses a file of another shard or of a newer format.
async fn check_owner<F: DiskFile>(file: &F, path: &Path, shard: Uuid) -> Result<(), WalError> {
    if file.len() < DISK_ALIGN as u64 {
        return Ok(());
    }
    let bytes = file.read_at(0, DISK_ALIGN).await.map_err(WalError::io(IoOp::Read, path))?;
    let intact = |header: &BlockHeader, bytes: &[u8]| {
        // A table longer than a sector cannot be checked here; the file's other blocks will tell.
        header.table_end() > bytes.len() as u64 || header.check_table(bytes).is_ok()
    };
    match BlockHeader::decode(&bytes) {
        Ok(header) if header.place.shard != shard && intact(&header, &bytes) => {
            let found = header.place.shard;
            Err(WalError::ForeignShard { path: path.to_owned(), found, expected: shard })
        }
        Err(BlockFault::Version { version }) if version > FORMAT_VERSION => {
            // Where the checksum would be right with our own version, a bit of the version was flipped.
            let mut ours = bytes.to_vec();
            ours[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            let flipped =
                BlockHeader::decode(&ours).is_ok_and(|header| header.check_table(&ours).is_ok());
            if flipped {
                return Ok(());
            }
            Err(WalError::UnsupportedVersion { path: path.to_owned(), version })
        }
        _ => Ok(()),
    }
}

fn damaged(
    path: &Path,
    file: FileSeq,
    position: u64,
    followed_by_file: FileSeq,
    followed_by_position: u64,
    fault: BlockFault,
) -> WalError {
    let path = path.to_owned();
    WalError::Damaged { file, path, position, followed_by_file, followed_by_position, fault }
}

/// Whether the directory holds a log. The only file that may stand there unstarted and alone is the very first one.
async fn find_started<D: Disk>(
    disk: &D,
    options: &WalOptions,
    listing: &Listing,
) -> Result<bool, WalError> {
    for seq in listing.files.iter().rev() {
        let path = wal_path(&options.dir, *seq);
        let file = disk.open(&path).await.map_err(WalError::io(IoOp::Open, path.clone()))?;
        let mut scanner = Scanner::new(&file, options.shard_uuid, *seq);
        let start = read_start(&mut scanner, &file, &path, options.shard_uuid, *seq).await?;
        if matches!(start, Start::Started { .. }) {
            return Ok(true);
        }
    }
    match listing.files.as_slice() {
        [] | [FileSeq(1)] => Ok(false),
        [first, ..] => {
            let file = FileSeq((first.0 - 1).max(1));
            Err(WalError::FileMissing { file, dir: options.dir.clone() })
        }
    }
}

/// Makes the first file: full of zeros, with a checkpoint of no groups.
async fn make_first_file<D: Disk>(
    disk: &D,
    options: &WalOptions,
    listing: &Listing,
) -> Result<(), WalError> {
    let seq = FileSeq(1);
    let path = wal_path(&options.dir, seq);
    if !listing.files.is_empty() {
        disk.remove(&path).await.map_err(WalError::io(IoOp::Remove, path.clone()))?;
    }
    let len = options.first_file_bytes;
    let created = disk.create(&path, len).await;
    let file = created.map_err(|source| WalError::create(path.clone(), len, source))?;
    write_zeros(&file, 0, len).await.map_err(WalError::io(IoOp::Write, path.clone()))?;
    file.sync_data().await.map_err(WalError::io(IoOp::Sync, path.clone()))?;
    disk.sync_dir(&options.dir).await.map_err(WalError::io(IoOp::SyncDir, options.dir.clone()))?;
    let place = super::block::BlockPlace {
        shard: options.shard_uuid,
        file: seq,
        position: 0,
        sequence: BlockSeq(1),
    };
    let kind = BlockKind::Checkpoint;
    let label = super::file::BlockLabel { kind, flags: FLAG_LAST_CHECKPOINT, place };
    let plan = BlockPlan::new(&[])?;
    super::file::write_block(&file, &plan, label, &mut Vec::new())
        .await
        .map_err(WalError::io(IoOp::Write, path.clone()))?;
    file.sync_data().await.map_err(WalError::io(IoOp::Sync, path))
}

/// A sealed file's index, and whether the file had to be scanned for it.
pub(super) struct LoadedIndex {
    pub index: FileIndex,
    /// What stopped the scan; `None` if the index came from the footer.
    pub stopped_by: Option<BlockFault>,
    pub bytes_scanned: u64,
}

/// A sealed file's index, from its footer or else from its blocks.
pub(super) async fn load_index<F: DiskFile>(
    file: &F,
    path: &Path,
    shard: Uuid,
    seq: FileSeq,
) -> Result<LoadedIndex, WalError> {
    if let Some(index) = footer::read(file, path, shard, seq).await? {
        return Ok(LoadedIndex { index, stopped_by: None, bytes_scanned: 0 });
    }
    let mut scanner = Scanner::new(file, shard, seq);
    let start = read_start(&mut scanner, file, path, shard, seq).await?;
    let Start::Started { blocks, end } = start else {
        return Err(damaged(path, seq, 0, FileSeq(seq.0 + 1), 0, BlockFault::NoMagic));
    };
    let mut index = FileIndex::new(first_sequence(&blocks));
    let mut expected = BlockSeq(index.first_block.0 + blocks.len() as u64);
    let mut position = end;
    let fault = loop {
        match scanner.read(position).await.map_err(WalError::io(IoOp::Read, path))? {
            Found::Block(block) if follows(&block, expected) => {
                for row in block.rows() {
                    index.apply(position, row.slot, row.payload_at, &row.descriptor);
                }
                position += block.header().padded_len();
                expected = BlockSeq(block.header().place.sequence.0 + 1);
            }
            Found::Block(block) => {
                let found = block.header().place.sequence;
                break BlockFault::Sequence { expected, found };
            }
            Found::Invalid { fault, .. } => break fault,
            Found::End => break BlockFault::Short,
        }
    };
    index.last_block = BlockSeq(expected.0 - 1);
    index.end_position = position;
    let bytes_scanned = scanner.bytes_read;
    Ok(LoadedIndex { index, stopped_by: Some(fault), bytes_scanned })
}

fn first_sequence(blocks: &[Block]) -> BlockSeq {
    blocks.first().map_or(BlockSeq(0), |block| block.header().place.sequence)
}

/// Whether this block may follow where `expected` is the next number.
pub(super) fn follows(block: &Block, expected: BlockSeq) -> bool {
    let header = block.header();
    match header.kind {
        BlockKind::Data | BlockKind::Mark | BlockKind::CleanClose => {
            header.place.sequence == expected
        }
        // It stands for all blocks of the region that was damaged and has the number of the last of them.
        BlockKind::Repair => header.place.sequence >= expected,
        BlockKind::Checkpoint | BlockKind::Footer => false,
    }
}

struct Recovered<F> {
    replay: Replay,
    state: State<F>,
    unstarted: Vec<FileSeq>,
    scanned: Vec<(FileSeq, Rc<FileIndex>)>,
}

struct Recovery<'a, D> {
    disk: &'a D,
    options: &'a WalOptions,
    report: &'a mut RecoveryReport,
}

/// The newest file that was started, and what stands around it.
struct Newest<F> {
    seq: FileSeq,
    path: PathBuf,
    file: F,
    blocks: Vec<Block>,
    end: u64,
    unstarted: Vec<FileSeq>,
    /// The first block of a newer file that never was started: all blocks before it were durable.
    proof: Option<(FileSeq, BlockSeq)>,
}

impl<D: Disk> Recovery<'_, D> {
    async fn run(mut self, listing: &Listing) -> Result<Recovered<D::File>, WalError> {
        let newest = self.newest(listing).await?;
        let first_block = first_sequence(&newest.blocks);
        let mut index = LogIndex::new(first_block);
        let (sealed, scanned) = self.sealed_files(listing, &newest, &mut index).await?;

        let mut replay = Replay::default();
        let mut applied = BTreeMap::new();
        for row in newest.blocks.iter().flat_map(Block::rows) {
            if row.descriptor.kind == SlotKind::Padding {
                continue; // a checkpoint that `wal repair` rebuilt
            }
            let record = row.descriptor.record(&row.payload);
            let Some(super::record::WalRecord::Checkpoint(checkpoint)) = record else {
                let fault = BlockFault::Record { slot: row.slot };
                let (path, seq) = (&newest.path, newest.seq);
                return Err(damaged(path, seq, 0, seq, newest.end, fault));
            };
            let (last, start) = (checkpoint.last.index, checkpoint.log_start.index);
            index.restate(checkpoint.group, last, start);
            applied.insert(checkpoint.group, checkpoint.applied);
            replay.state(checkpoint);
        }
        index.retain_groups(|group| applied.contains_key(&group));
        let next_block = BlockSeq(first_block.0 + newest.blocks.len() as u64);
        index.block_durable(BlockSeq(next_block.0 - 1), newest.end);
        let votes = replay.groups.iter();
        let votes = votes.map(|(g, r)| (*g, (r.hard_state.term, r.hard_state.vote))).collect();
        let mut state = State {
            index,
            active: Active {
                seq: newest.seq,
                path: newest.path,
                file: Rc::new(newest.file),
                position: newest.end,
                next_block,
                last_kind: BlockKind::Checkpoint,
            },
            sealed,
            unfinished: VecDeque::new(),
            applied,
            votes,
        };
        self.replay_active(&mut state, &mut replay, newest.proof).await?;
        self.report.orphans = replay.orphans;
        Ok(Recovered { replay, state, unstarted: newest.unstarted, scanned })
    }

    async fn newest(&mut self, listing: &Listing) -> Result<Newest<D::File>, WalError> {
        let (mut unstarted, mut proof) = (Vec::new(), None);
        for seq in listing.files.iter().rev().copied() {
            let path = wal_path(&self.options.dir, seq);
            let opened = self.disk.open(&path).await;
            let file = opened.map_err(WalError::io(IoOp::Open, path.clone()))?;
            let shard = self.options.shard_uuid;
            let mut scanner = Scanner::new(&file, shard, seq);
            match read_start(&mut scanner, &file, &path, shard, seq).await? {
                Start::Started { blocks, end } => {
                    return Ok(Newest { seq, path, file, blocks, end, unstarted, proof });
                }
                Start::Unstarted { first_block } => {
                    proof = first_block.map(|block| (seq, block)).or(proof);
                    unstarted.push(seq);
                }
            }
        }
        let file = listing.files.first().copied().unwrap_or(FileSeq(1));
        Err(WalError::FileMissing { file, dir: self.options.dir.clone() })
    }

    #[allow(clippy::type_complexity, reason = "two lists of the same files, used once")]
    async fn sealed_files(
        &mut self,
        listing: &Listing,
        newest: &Newest<D::File>,
        index: &mut LogIndex,
    ) -> Result<(BTreeMap<FileSeq, Sealed<D::File>>, Vec<(FileSeq, Rc<FileIndex>)>), WalError> {
        let (mut sealed, mut scanned) = (BTreeMap::new(), Vec::new());
        let mut before: Option<(FileSeq, PathBuf, LoadedIndex)> = None;
        let older = listing.files.iter().copied().filter(|seq| *seq < newest.seq);
        for seq in older {
            let path = wal_path(&self.options.dir, seq);
            let opened = self.disk.open(&path).await;
            let file = opened.map_err(WalError::io(IoOp::Open, path.clone()))?;
            let loaded = load_index(&file, &path, self.options.shard_uuid, seq).await?;
            self.report.bytes_scanned += loaded.bytes_scanned;
            if let Some(before) = &before {
                check_chain(before, seq, loaded.index.first_block)?;
            }
            index.add_sealed(seq, &loaded.index);
            let mut pinned = None;
            if loaded.stopped_by.is_some() {
                let index = Rc::new(loaded.index.clone());
                scanned.push((seq, Rc::clone(&index)));
                pinned = Some(index);
            }
            file.end_writes();
            let end_position = loaded.index.end_position;
            let entry =
                Sealed { path: path.clone(), end_position, file: Some(Rc::new(file)), pinned };
            sealed.insert(seq, entry);
            before = Some((seq, path, loaded));
        }
        if let Some(before) = &before {
            check_chain(before, newest.seq, first_sequence(&newest.blocks))?;
        }
        Ok((sealed, scanned))
    }

    async fn replay_active(
        &mut self,
        state: &mut State<D::File>,
        replay: &mut Replay,
        proof: Option<(FileSeq, BlockSeq)>,
    ) -> Result<(), WalError> {
        let file = Rc::clone(&state.active.file);
        let path = state.active.path.clone();
        let seq = state.active.seq;
        let io = |source| WalError::Io { op: IoOp::Read, path: path.clone(), source };
        let mut scanner = Scanner::new(&*file, self.options.shard_uuid, seq);
        loop {
            let (position, expected) = (state.active.position, state.active.next_block);
            let (fault, header) = match scanner.read(position).await.map_err(io)? {
                Found::Block(block) if follows(&block, expected) => {
                    replay_block(state, replay, &block)?;
                    self.report.blocks += 1;
                    continue;
                }
                Found::Block(block) if block.header().kind == BlockKind::Footer => {
                    // Only a file with a successor has a footer.
                    let file = FileSeq(seq.0 + 1);
                    return Err(WalError::FileMissing { file, dir: self.options.dir.clone() });
                }
                Found::Block(block) => {
                    let found = block.header().place.sequence;
                    let fault = BlockFault::Sequence { expected, found };
                    if found > expected {
                        return Err(damaged(&path, seq, position, seq, position, fault));
                    }
                    (fault, None)
                }
                Found::Invalid { fault, header } => (fault, header),
                Found::End => (BlockFault::Short, None),
            };
            self.end_of_log(&mut scanner, &path, state, (fault, header), proof).await?;
            self.report.bytes_scanned += scanner.bytes_read;
            self.report.clean_close = state.active.last_kind == BlockKind::CleanClose;
            return Ok(());
        }
    }

    /// Tells a torn tail from damage.
    async fn end_of_log(
        &mut self,
        scanner: &mut Scanner<'_, D::File>,
        path: &Path,
        state: &State<D::File>,
        (fault, header): (BlockFault, Option<BlockHeader>),
        proof: Option<(FileSeq, BlockSeq)>,
    ) -> Result<(), WalError> {
        let (seq, position) = (state.active.seq, state.active.position);
        let next_block = state.active.next_block;
        let later = scanner.find_later(position, next_block).await;
        if let Some(later) = later.map_err(WalError::io(IoOp::Read, path))? {
            return Err(damaged(path, seq, position, seq, later, fault));
        }
        if let Some((later, block)) = proof
            && block > next_block
        {
            return Err(damaged(path, seq, position, later, 0, fault));
        }
        self.report.torn = torn_tail(position, state.active.file.len(), fault, header);
        Ok(())
    }
}

/// What stands behind the last block where no later one follows: a torn tail, or nothing but free space.
pub(super) fn torn_tail(
    position: u64,
    file_len: u64,
    fault: BlockFault,
    header: Option<BlockHeader>,
) -> Option<TornTail> {
    let bytes = match (header, fault) {
        (Some(header), _) => header.padded_len(),
        (None, BlockFault::NoMagic | BlockFault::File { .. } | BlockFault::Short) => return None,
        (None, _) => DISK_ALIGN as u64,
    };
    Some(TornTail { position, bytes: bytes.min(file_len - position), fault })
}

fn replay_block<F>(
    state: &mut State<F>,
    replay: &mut Replay,
    block: &Block,
) -> Result<(), WalError> {
    let position = state.active.position;
    let path = || state.active.path.clone();
    for row in block.rows() {
        replay.apply(&row).map_err(|error| match error {
            ReplayError::Record => {
                let fault = BlockFault::Record { slot: row.slot };
                damaged(&path(), state.active.seq, position, state.active.seq, position, fault)
            }
            ReplayError::Contradiction { group, source } => {
                WalError::Contradiction { path: path(), position, group, source }
            }
        })?;
        state.index.apply(position, row.slot, row.payload_at, &row.descriptor);
        if row.descriptor.kind == SlotKind::Checkpoint
            && let Some(group) = replay.groups.get(&row.descriptor.group)
        {
            state.applied.insert(row.descriptor.group, group.checkpoint.applied);
            let vote = (group.hard_state.term, group.hard_state.vote);
            state.votes.insert(row.descriptor.group, vote);
        }
        super::writer::note_vote(&mut state.votes, &row.descriptor);
    }
    let header = block.header();
    state.active.position += header.padded_len();
    state.active.next_block = BlockSeq(header.place.sequence.0 + 1);
    state.active.last_kind = header.kind;
    state.index.block_durable(header.place.sequence, state.active.position);
    Ok(())
}

/// Checks that the file after this one goes on where it ends.
fn check_chain(
    (seq, path, loaded): &(FileSeq, PathBuf, LoadedIndex),
    next: FileSeq,
    next_first: BlockSeq,
) -> Result<(), WalError> {
    let expected = BlockSeq(loaded.index.last_block.0 + 1);
    if expected == next_first {
        return Ok(());
    }
    let sequence = BlockFault::Sequence { expected, found: next_first };
    let fault = loaded.stopped_by.unwrap_or(sequence);
    Err(damaged(path, *seq, loaded.index.end_position, next, 0, fault))
}
