//! Where every entry of every group lies: extents of the active file, ranges of the sealed ones.
//!
//! An [`Extent`] is a run of entries of one group and term that stand next to each other in one block. The active
//! file's extents are in memory ([`FileIndex`]); when the file is sealed they become its footer, and only one
//! [`FileRange`] per group and file stays here. So memory grows with the active file and with groups times files, not
//! with the log.
//!
//! This module opens no file and holds no entry. It is told of blocks only after they are durable, so whatever it
//! finds may be read.
//!
//! - I1: per group, ranges and extents rise in index and never overlap; what a truncation or a later entry of the same
//!   index made void is in none of them.
//! - I2: `end_offset`, `max_timestamp_ms` and `payload_bytes` of an extent or range that was cut in its middle are
//!   upper bounds until the next entry arrives: the cut knows indexes only. Readers therefore go on to the next extent
//!   when they find nothing.

use std::collections::BTreeMap;

use crate::ids::{BlockSeq, FileSeq, GroupId, Offset, RaftIndex, Term};
use crate::wal::block::{Descriptor, SlotKind};

/// A run of entries of one group and term that are neighbours in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first entry's index.
    pub first: RaftIndex,
    /// The first entry's base offset.
    pub base_offset: Offset,
    /// The greatest timestamp in it, -1 if none has any.
    pub max_timestamp_ms: i64,
    /// The term of all of them.
    pub term: Term,
    /// Where their block begins in the file.
    pub block_position: u64,
    /// Where the first payload begins within the block.
    pub payload_at: u32,
    /// Bytes of all payloads.
    pub payload_bytes: u32,
    /// How many entries.
    pub count: u32,
    /// The first one's place in the block's table.
    pub first_slot: u32,
    /// Offsets from the first one's base to the last one's end.
    pub offset_span: u32,
    /// Whether damage took these entries: one row in the table stands for all of them, and they read as no-ops.
    pub lost: bool,
}

impl Extent {
    /// The last entry's index.
    #[must_use]
    pub fn last(&self) -> RaftIndex {
        RaftIndex(self.first.0 + u64::from(self.count) - 1)
    }

    /// The offset after the last entry.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(self.offset_span)
    }

    fn of(block_position: u64, slot: u32, payload_at: u64, row: &Descriptor) -> Extent {
        let lost = row.kind == SlotKind::Lost;
        Extent {
            first: row.index,
            base_offset: Offset(row.base_offset),
            max_timestamp_ms: if lost { -1 } else { row.max_timestamp_ms },
            term: row.term,
            block_position,
            payload_at: u32::try_from(payload_at).unwrap_or(u32::MAX),
            payload_bytes: row.payload_len,
            count: if lost { u32::try_from(row.span).unwrap_or(u32::MAX) } else { 1 },
            first_slot: slot,
            offset_span: row.offset_count,
            lost,
        }
    }

    /// Takes the entry into this extent if it is the next neighbour.
    fn extend(&mut self, block_position: u64, slot: u32, row: &Descriptor) -> bool {
        let neighbour = !self.lost
            && row.kind != SlotKind::Lost
            && self.block_position == block_position
            && u64::from(slot) == u64::from(self.first_slot) + u64::from(self.count)
            && row.term == self.term
            && row.index == self.last().next()
            && row.base_offset == self.end_offset().0;
        let (Some(span), Some(bytes)) = (
            self.offset_span.checked_add(row.offset_count),
            self.payload_bytes.checked_add(row.payload_len),
        ) else {
            return false;
        };
        if neighbour {
            self.count += 1;
            self.offset_span = span;
            self.payload_bytes = bytes;
            self.max_timestamp_ms = self.max_timestamp_ms.max(row.max_timestamp_ms);
        }
        neighbour
    }
}

/// What one file holds of one group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupFile {
    /// Entries from this index on in earlier files are void.
    pub void_from: Option<RaftIndex>,
    /// The entries that this file holds and that were not void when it ended.
    pub extents: Vec<Extent>,
}

impl GroupFile {
    fn last(&self) -> Option<RaftIndex> {
        self.extents.last().map(Extent::last)
    }

    fn truncate_from(&mut self, from: RaftIndex) {
        while let Some(extent) = self.extents.last_mut() {
            if extent.last() < from {
                return;
            }
            if extent.first < from {
                extent.count = u32::try_from(from.0 - extent.first.0).unwrap_or(extent.count);
                return;
            }
            self.extents.pop();
        }
    }

    fn void_from(&mut self, from: RaftIndex) {
        self.truncate_from(from);
        self.void_from = Some(self.void_from.map_or(from, |void| void.min(from)));
    }

    /// The end offset is exact again once the next entry is known (I2).
    fn settle_end(&mut self, base_offset: i64) {
        if let Some(extent) = self.extents.last_mut()
            && extent.end_offset().0 > base_offset
        {
            let span = base_offset.saturating_sub(extent.base_offset.0);
            extent.offset_span = u32::try_from(span).unwrap_or(0);
        }
    }

    /// Whether any of its entries takes an offset.
    #[must_use]
    pub fn holds_records(&self) -> bool {
        self.extents.iter().any(|extent| extent.offset_span > 0)
    }

    /// The bytes of all its payloads.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.payload_bytes)).sum()
    }

    /// This file's part of the group as one range.
    #[must_use]
    pub fn range(&self, file: FileSeq) -> Option<FileRange> {
        let (first, last) = (self.extents.first()?, self.extents.last()?);
        Some(FileRange {
            file,
            first: first.first,
            last: last.last(),
            base_offset: first.base_offset,
            end_offset: last.end_offset(),
            max_timestamp_ms: self.extents.iter().map(|e| e.max_timestamp_ms).max().unwrap_or(-1),
            payload_bytes: self.extents.iter().map(|e| u64::from(e.payload_bytes)).sum(),
        })
    }
}

/// The index of one file: what a footer says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileIndex {
    /// The number of the file's first block.
    pub first_block: BlockSeq,
    /// The number of the file's last block.
    pub last_block: BlockSeq,
    /// Where the last block ends.
    pub end_position: u64,
    /// What it holds of each group.
    pub groups: BTreeMap<GroupId, GroupFile>,
    extents: usize,
}

impl FileIndex {
    /// An index with nothing in it, of a file whose first block has this number.
    #[must_use]
    pub fn new(first_block: BlockSeq) -> FileIndex {
        FileIndex { first_block, last_block: first_block, ..FileIndex::default() }
    }

    /// How many extents were ever added: bounds the footer's size.
    #[must_use]
    pub fn extents_added(&self) -> usize {
        self.extents
    }

    /// Takes in one row of a block that is not one of the file's checkpoint blocks.
    pub fn apply(&mut self, block_position: u64, slot: u32, payload_at: u64, row: &Descriptor) {
        match row.kind {
            SlotKind::Noop
            | SlotKind::Batch
            | SlotKind::Command
            | SlotKind::ConfChange
            | SlotKind::Lost => {
                let group = self.groups.entry(row.group).or_default();
                group.truncate_from(row.index);
                group.settle_end(row.base_offset);
                let extended = group
                    .extents
                    .last_mut()
                    .is_some_and(|extent| extent.extend(block_position, slot, row));
                if !extended {
                    group.extents.push(Extent::of(block_position, slot, payload_at, row));
                    self.extents += 1;
                }
            }
            SlotKind::TruncateAfter => {
                self.groups.entry(row.group).or_default().void_from(row.index.next());
            }
            SlotKind::GroupCreated | SlotKind::GroupDeleted => self.clear(row.group),
            SlotKind::LogStart => {
                let last = self.groups.get(&row.group).and_then(GroupFile::last);
                if last.is_some_and(|last| last <= row.index) {
                    self.groups.entry(row.group).or_default().extents.clear();
                }
            }
            SlotKind::Checkpoint => {
                if row.index.0 == row.span {
                    self.clear(row.group);
                } else {
                    self.groups.entry(row.group).or_default().void_from(row.index.next());
                }
            }
            SlotKind::HardState
            | SlotKind::Footer
            | SlotKind::FooterLocator
            | SlotKind::Padding => {}
        }
    }

    fn clear(&mut self, group: GroupId) {
        self.groups.entry(group).or_default().void_from(RaftIndex(0));
    }

    /// The memory it takes, about.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let extents: usize = self.groups.values().map(|group| group.extents.len()).sum();
        size_of::<FileIndex>()
            + self.groups.len() * (size_of::<GroupFile>() + size_of::<GroupId>())
            + extents * size_of::<Extent>()
    }
}

/// What one sealed file holds of one group, as far as it is not void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// The file.
    pub file: FileSeq,
    /// The first entry's index.
    pub first: RaftIndex,
    /// The last entry's index.
    pub last: RaftIndex,
    /// The first entry's base offset.
    pub base_offset: Offset,
    /// The offset after the last entry.
    pub end_offset: Offset,
    /// The greatest timestamp in it.
    pub max_timestamp_ms: i64,
    /// Bytes of all payloads.
    pub payload_bytes: u64,
}

/// The log of one group.
#[derive(Debug, Clone, Default)]
pub struct GroupLog {
    /// Sealed files, oldest first.
    pub ranges: Vec<FileRange>,
    /// The last entry's index; the log start's where there is no entry.
    pub last: RaftIndex,
    /// The last index that is gone by retention or by a snapshot.
    pub log_start: RaftIndex,
}

impl GroupLog {
    fn truncate_from(&mut self, from: RaftIndex) {
        while let Some(range) = self.ranges.last_mut() {
            if range.last < from {
                return;
            }
            if range.first < from {
                range.last = RaftIndex(from.0 - 1);
                return;
            }
            self.ranges.pop();
        }
    }

    fn forget_up_to(&mut self, index: RaftIndex) {
        self.log_start = self.log_start.max(index);
        self.last = self.last.max(index);
        self.ranges.retain(|range| range.last > index);
    }
}

/// What a group's entry is found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    /// The active file, and the number of the extent within the group's list.
    Active {
        /// The extent.
        extent: Extent,
    },
    /// A sealed file, whose footer knows more.
    Sealed {
        /// The group's part of it.
        range: FileRange,
    },
}

/// The index of a whole shard.
#[derive(Debug, Default)]
pub struct LogIndex {
    groups: BTreeMap<GroupId, GroupLog>,
    active: FileIndex,
}

impl LogIndex {
    /// An index of no groups, whose active file starts with this block.
    #[must_use]
    pub fn new(first_block: BlockSeq) -> LogIndex {
        LogIndex { groups: BTreeMap::new(), active: FileIndex::new(first_block) }
    }

    /// The active file's index.
    #[must_use]
    pub fn active(&self) -> &FileIndex {
        &self.active
    }

    /// Notes how far the active file goes.
    pub fn block_durable(&mut self, sequence: BlockSeq, end_position: u64) {
        self.active.last_block = sequence;
        self.active.end_position = end_position;
    }

    /// A group's log, if the group is here.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<&GroupLog> {
        self.groups.get(&group)
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, &GroupLog)> {
        self.groups.iter().map(|(group, log)| (*group, log))
    }

    /// Takes in a sealed file at start. Files come oldest first.
    pub fn add_sealed(&mut self, file: FileSeq, index: &FileIndex) {
        for (group, part) in &index.groups {
            let log = self.groups.entry(*group).or_default();
            if let Some(void) = part.void_from {
                log.truncate_from(void);
                log.last = log.last.min(RaftIndex(void.0.saturating_sub(1)));
            }
            if let Some(range) = part.range(file) {
                log.truncate_from(range.first);
                if let Some(before) = log.ranges.last_mut() {
                    before.end_offset = before.end_offset.min(range.base_offset);
                }
                log.last = range.last;
                log.ranges.push(range);
            }
        }
    }

    /// Takes in a group as a checkpoint block at a file's start states it.
    pub fn restate(&mut self, group: GroupId, last: RaftIndex, log_start: RaftIndex) {
        let log = self.groups.entry(group).or_default();
        log.truncate_from(last.next());
        log.last = last;
        log.forget_up_to(log_start);
    }

    /// Drops every group that `keep` does not want: those whose deletion stands in a file's checkpoint only.
    pub fn retain_groups(&mut self, keep: impl Fn(GroupId) -> bool) {
        self.groups.retain(|group, _| keep(*group));
    }

    /// Takes in one row of a durable block of the active file. Rows of groups that are not here are passed over: their
    /// deletion won.
    pub fn apply(&mut self, block_position: u64, slot: u32, payload_at: u64, row: &Descriptor) {
        let created = matches!(row.kind, SlotKind::GroupCreated | SlotKind::Checkpoint);
        if !created && !self.groups.contains_key(&row.group) {
            return;
        }
        self.active.apply(block_position, slot, payload_at, row);
        let log = self.groups.entry(row.group).or_default();
        match row.kind {
            SlotKind::Noop | SlotKind::Batch | SlotKind::Command | SlotKind::ConfChange => {
                log.truncate_from(row.index);
                if let Some(before) = log.ranges.last_mut() {
                    before.end_offset = before.end_offset.min(Offset(row.base_offset));
                }
                log.last = row.index;
            }
            SlotKind::Lost => {
                log.truncate_from(row.index);
                log.last = RaftIndex(row.index.0 + row.span.max(1) - 1);
            }
            SlotKind::TruncateAfter => {
                log.truncate_from(row.index.next());
                log.last = log.last.min(row.index).max(log.log_start);
            }
            SlotKind::LogStart => log.forget_up_to(row.index),
            SlotKind::GroupCreated => *log = GroupLog::default(),
            SlotKind::GroupDeleted => {
                self.groups.remove(&row.group);
            }
            SlotKind::Checkpoint => {
                let (last, log_start) = (row.index, RaftIndex(row.span));
                if last == log_start {
                    *log = GroupLog { ranges: Vec::new(), last, log_start };
                } else {
                    log.truncate_from(last.next());
                    log.last = last;
                    log.forget_up_to(log_start);
                }
            }
            SlotKind::HardState
            | SlotKind::Footer
            | SlotKind::FooterLocator
            | SlotKind::Padding => {}
        }
    }

    /// Seals the active file: its extents become ranges here, and are handed over for the footer.
    pub fn roll(&mut self, file: FileSeq, first_block: BlockSeq) -> FileIndex {
        let sealed = std::mem::replace(&mut self.active, FileIndex::new(first_block));
        for (group, part) in &sealed.groups {
            if let (Some(log), Some(range)) = (self.groups.get_mut(group), part.range(file)) {
                log.ranges.push(range);
                let start = log.log_start;
                log.ranges.retain(|range| range.last > start);
            }
        }
        sealed
    }

    /// Forgets a file that was reclaimed.
    pub fn forget_file(&mut self, file: FileSeq) {
        for log in self.groups.values_mut() {
            log.ranges.retain(|range| range.file != file);
        }
    }

    /// What a file holds of each group.
    pub fn ranges_in_file(&self, file: FileSeq) -> impl Iterator<Item = (GroupId, FileRange)> {
        self.groups.iter().flat_map(move |(group, log)| {
            let at = log.ranges.binary_search_by_key(&file, |range| range.file).ok()?;
            Some((*group, *log.ranges.get(at)?))
        })
    }

    /// The greatest index that each group has in a file.
    pub fn last_in_file(&self, file: FileSeq) -> impl Iterator<Item = (GroupId, RaftIndex)> {
        self.ranges_in_file(file).map(|(group, range)| (group, range.last))
    }

    /// Where the batch is that holds this offset, or the first one after it.
    #[must_use]
    pub fn locate_offset(&self, group: GroupId, offset: Offset) -> Option<Located> {
        let log = self.groups.get(&group)?;
        let at = log.ranges.partition_point(|range| range.end_offset <= offset);
        if let Some(range) = log.ranges.get(at) {
            return Some(Located::Sealed { range: *range });
        }
        let extents = &self.active.groups.get(&group)?.extents;
        let extent = *extents.get(find_offset(extents, offset))?;
        Some(Located::Active { extent })
    }

    /// The first place from `index` on that can hold a batch with a timestamp of at least `timestamp_ms`.
    #[must_use]
    pub fn locate_timestamp(
        &self,
        group: GroupId,
        index: RaftIndex,
        timestamp_ms: i64,
    ) -> Option<Located> {
        let log = self.groups.get(&group)?;
        let index = index.max(log.log_start.next());
        let from = log.ranges.partition_point(|range| range.last < index);
        let fits = |range: &&FileRange| range.max_timestamp_ms >= timestamp_ms;
        if let Some(range) = log.ranges[from..].iter().find(fits) {
            return Some(Located::Sealed { range: *range });
        }
        let extents = &self.active.groups.get(&group)?.extents;
        let extent = *find_timestamp(extents, index, timestamp_ms)?;
        Some(Located::Active { extent })
    }
}

/// The first extent that does not end before `index` and can hold a timestamp of at least `timestamp_ms`.
#[must_use]
pub fn find_timestamp(extents: &[Extent], index: RaftIndex, timestamp_ms: i64) -> Option<&Extent> {
    let from = extents.partition_point(|extent| extent.last() < index);
    extents[from..].iter().find(|extent| extent.max_timestamp_ms >= timestamp_ms)
}

/// The first extent that does not end before `offset`.
#[must_use]
pub fn find_offset(extents: &[Extent], offset: Offset) -> usize {
    extents.partition_point(|extent| extent.end_offset() <= offset)
}
