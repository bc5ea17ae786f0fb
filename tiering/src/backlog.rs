//! Which full files of a log still hold something for segments, and what of that may be written now.
//!
//! Files are gone through in rounds, the oldest first. What stands in the way of one partition (entries that are not
//! committed, damage, a file that cannot be opened) holds up this one alone: its file stays in the log, and those of
//! other partitions go on, in that file and in later ones.
//!
//! - I1: what a file holds of a partition is written only where nothing of it in earlier files waits: a segment never stands for
//!   records that it does not hold.
//! - I2: a file with nothing to be written now is not opened.
//! - I3: what could not be read is left alone for longer each time.
//! - I4: what is remembered is bounded by the files that wait and their partitions.

use std::collections::{BTreeMap, BTreeSet};

use chronik_engine::ids::{FileSeq, GroupId, RaftIndex};
use chronik_engine::wal::SealedName;

use crate::failures::{Failures, Noted};
use crate::write::WritePart;

/// What a file holds beside what is in segments.
#[derive(Debug, Clone, Default)]
pub struct FilePlan {
    /// What may become segments.
    pub parts: Vec<WritePart>,
    /// Groups with entries that must wait. They may be among the parts, with those before.
    pub waiting: Vec<GroupId>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Files up to here are done with.
    done_to: FileSeq,
    /// Those behind it that are done with, too.
    done: BTreeSet<FileSeq>,
    /// Files of which nothing could be written when they were looked at last.
    idle: BTreeSet<FileSeq>,
    /// Up to which entry was read what a file holds of a group, where the file is not done with. Segments may end before:
    /// where damage took the rest, the next one stands for it.
    read_to: BTreeMap<(FileSeq, GroupId), RaftIndex>,
    /// Of a file, or of what it holds of a group.
    failures: Failures<(FileSeq, Option<GroupId>)>,
    /// Groups that wait for something in a file that this round has gone through.
    held: BTreeSet<GroupId>,
    /// Whether this round has gone through a file that is not done with.
    is_behind: bool,
    /// Whether something waits in the file at hand.
    waits: bool,
}

impl Backlog {
    /// Files up to this one are of no interest.
    #[must_use]
    pub fn done_to(&self) -> FileSeq {
        self.done_to
    }

    /// Begins a round through these files, all that there are behind [`Backlog::done_to`].
    pub fn begin_round(&mut self, files: &[SealedName]) {
        self.held.clear();
        self.is_behind = false;
        let first = files.first().map_or(FileSeq(u64::MAX), |file| file.seq);
        self.done.retain(|file| *file >= first);
        self.idle.retain(|file| *file >= first);
        self.read_to.retain(|(file, _), _| *file >= first);
        self.failures.retain(|(file, _)| *file >= first);
    }

    /// Segments went that stood for what the log may still hold: it must be gone through again.
    pub fn start_over(&mut self) {
        let failures = std::mem::take(&mut self.failures);
        *self = Backlog { failures, ..Backlog::default() };
    }

    /// Whether the next file of the round needs no look.
    pub fn is_done(&mut self, file: FileSeq) -> bool {
        let is_done = self.done.contains(&file);
        if is_done {
            self.end_file(file);
        }
        is_done
    }

    /// How many of these files something is to be written of, as far as one can tell without a look.
    #[must_use]
    pub fn count_wanted(&self, files: &[SealedName]) -> usize {
        let is_wanted =
            |file: &&SealedName| !self.done.contains(&file.seq) && !self.idle.contains(&file.seq);
        files.iter().filter(is_wanted).count()
    }

    /// What is to be written of the next file of the round. If there is anything, what comes of it is to be told.
    pub fn take(&mut self, file: FileSeq, plan: FilePlan, now_ns: u64) -> Vec<WritePart> {
        let FilePlan { mut parts, mut waiting } = plan;
        let is_shut = self.failures.is_left_alone(&(file, None), now_ns);
        parts.retain(|part| {
            let read_to = self.read_to.get(&(file, part.group));
            if read_to.is_some_and(|read_to| *read_to >= part.last) {
                return false;
            }
            let is_bad = self.failures.is_left_alone(&(file, Some(part.group)), now_ns);
            let may = !is_shut && !is_bad && !self.held.contains(&part.group); // I1, I3
            if !may {
                waiting.push(part.group);
            }
            may
        });
        self.waits = !waiting.is_empty();
        self.held.extend(waiting);
        if !parts.is_empty() {
            self.idle.remove(&file);
        } else if self.waits {
            self.idle.insert(file);
            self.is_behind = true;
        } else {
            self.end_file(file);
        }
        parts
    }

    /// What the file holds of this group cannot be read.
    pub fn part_failed(&mut self, file: FileSeq, group: GroupId, now_ns: u64) -> Noted {
        self.failures.note((file, Some(group)), now_ns)
    }

    /// The file cannot be opened, so those of the round wait who have something in it.
    pub fn file_failed(&mut self, file: FileSeq, parts: &[WritePart], now_ns: u64) -> Noted {
        self.held.extend(parts.iter().map(|part| part.group));
        self.is_behind = true;
        self.failures.note((file, None), now_ns)
    }

    /// The parts were written, but for those of the groups in `unwritten`. Whether the file is done with.
    pub fn written(
        &mut self,
        file: FileSeq,
        parts: &[WritePart],
        unwritten: &BTreeSet<GroupId>,
    ) -> bool {
        self.failures.forget(&(file, None));
        for part in parts {
            if unwritten.contains(&part.group) {
                self.held.insert(part.group);
                self.waits = true;
            } else {
                self.read_to.insert((file, part.group), part.last);
                self.failures.forget(&(file, Some(part.group)));
            }
        }
        if self.waits {
            self.is_behind = true;
            return false;
        }
        self.end_file(file);
        true
    }

    fn end_file(&mut self, file: FileSeq) {
        self.idle.remove(&file);
        let of_file = (file, GroupId(0))..=(file, GroupId(u64::MAX));
        let read: Vec<_> = self.read_to.range(of_file).map(|(key, _)| *key).collect();
        for key in read {
            self.read_to.remove(&key);
        }
        if self.is_behind {
            self.done.insert(file);
        } else {
            self.done.remove(&file);
            self.done_to = file;
        }
    }
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::{Offset, Term};
    use chronik_engine::segment::SegmentId;
    use uuid::Uuid;

    use super::*;

    const HOUR_NS: u64 = 3_600_000_000_000;

    fn part(group: u64, last: u64) -> WritePart {
        let topic = Uuid::from_u128(group.into());
        WritePart {
            group: GroupId(group),
            id: SegmentId { cluster: Uuid::nil(), topic, partition: 0, term: Term(1) },
            from: Offset(0),
            follows: None,
            last: RaftIndex(last),
            segment_bytes_max: 1,
        }
    }

    fn files(seqs: std::ops::RangeInclusive<u64>) -> Vec<SealedName> {
        let name = |seq| SealedName { seq: FileSeq(seq), path: "/f".into(), end_position: 1 };
        seqs.map(name).collect()
    }

    fn plan(parts: &[WritePart], waiting: &[u64]) -> FilePlan {
        let waiting = waiting.iter().copied().map(GroupId).collect();
        FilePlan { parts: parts.to_vec(), waiting }
    }

    fn groups(parts: &[WritePart]) -> Vec<u64> {
        parts.iter().map(|part| part.group.0).collect()
    }

    /// Takes what may be written of a file and says that it was; the groups.
    fn write(backlog: &mut Backlog, file: u64, plan: FilePlan) -> Vec<u64> {
        let parts = backlog.take(FileSeq(file), plan, 0);
        if !parts.is_empty() {
            backlog.written(FileSeq(file), &parts, &BTreeSet::new());
        }
        groups(&parts)
    }

    #[test]
    fn given_a_group_that_waits_when_later_files_come_then_others_are_written_and_it_is_not() {
        let mut backlog = Backlog::default();
        backlog.begin_round(&files(1..=3));
        assert_eq!(write(&mut backlog, 1, plan(&[part(7, 5), part(8, 9)], &[7])), [7, 8]);
        // What was committed since does not follow on what is in segments.
        assert_eq!(write(&mut backlog, 2, plan(&[part(7, 20), part(8, 19)], &[])), [8]);
        assert_eq!(write(&mut backlog, 3, plan(&[part(8, 29)], &[])), [8]);
        assert_eq!(backlog.done_to(), FileSeq(0), "the first file waits");
        assert_eq!(backlog.count_wanted(&files(1..=4)), 3, "of the third there is nothing left");
        // Nothing has changed: nothing is opened.
        backlog.begin_round(&files(1..=3));
        assert!(!backlog.is_done(FileSeq(1)) && !backlog.is_done(FileSeq(2)));
        assert_eq!(write(&mut backlog, 1, plan(&[part(7, 5)], &[7])), [0; 0]);
        assert_eq!(write(&mut backlog, 2, plan(&[part(7, 20)], &[])), [0; 0]);
        assert!(backlog.is_done(FileSeq(3)));
        assert_eq!(backlog.count_wanted(&files(1..=3)), 0);
        // The rest is committed.
        backlog.begin_round(&files(1..=3));
        assert_eq!(write(&mut backlog, 1, plan(&[part(7, 10)], &[])), [7]);
        assert_eq!(backlog.done_to(), FileSeq(1));
        assert_eq!(write(&mut backlog, 2, plan(&[part(7, 20)], &[])), [7]);
        assert!(backlog.is_done(FileSeq(3)));
        assert_eq!(backlog.done_to(), FileSeq(3));
        assert!(backlog.read_to.is_empty() && backlog.done.is_empty() && backlog.idle.is_empty());
    }

    #[test]
    fn given_damage_when_files_are_written_then_its_group_waits_and_is_tried_less_and_less_often() {
        let mut backlog = Backlog::default();
        let first = [part(7, 5), part(8, 9)];
        let mut tried = 0;
        for minute in 0..60 {
            let now_ns = minute * HOUR_NS / 60;
            backlog.begin_round(&files(1..=2));
            let parts = backlog.take(FileSeq(1), plan(&first, &[]), now_ns);
            if parts.iter().any(|part| part.group == GroupId(7)) {
                let noted = backlog.part_failed(FileSeq(1), GroupId(7), now_ns);
                assert_eq!(noted.is_first, tried == 0);
                tried += 1;
                let bad = BTreeSet::from([GroupId(7)]);
                assert!(!backlog.written(FileSeq(1), &parts, &bad));
            }
            let next = backlog.take(FileSeq(2), plan(&[part(7, 15)], &[]), now_ns);
            assert!(next.is_empty(), "its records there would leave a gap");
        }
        assert_eq!(tried, 6);
        backlog.begin_round(&files(1..=2));
        assert_eq!(groups(&backlog.take(FileSeq(1), plan(&first, &[]), 2 * HOUR_NS)), [7]);
        assert!(backlog.written(FileSeq(1), &[part(7, 5)], &BTreeSet::new()), "it was mended");
        assert_eq!(write(&mut backlog, 2, plan(&[part(7, 15)], &[])), [7]);
        assert_eq!(backlog.done_to(), FileSeq(2));
    }

    #[test]
    fn given_a_file_that_cannot_be_opened_when_later_ones_come_then_only_its_groups_wait() {
        let mut backlog = Backlog::default();
        backlog.begin_round(&files(1..=2));
        let parts = backlog.take(FileSeq(1), plan(&[part(7, 5)], &[]), 0);
        assert!(backlog.file_failed(FileSeq(1), &parts, 0).is_first);
        let later = plan(&[part(7, 15), part(8, 9)], &[]);
        assert_eq!(write(&mut backlog, 2, later.clone()), [8]);
        backlog.begin_round(&files(1..=2));
        assert_eq!(write(&mut backlog, 1, plan(&[part(7, 5)], &[])), [0; 0], "not each time");
        assert_eq!(write(&mut backlog, 2, later.clone()), [0; 0]);
        backlog.begin_round(&files(1..=2));
        let parts = backlog.take(FileSeq(1), plan(&[part(7, 5)], &[]), HOUR_NS);
        assert!(backlog.written(FileSeq(1), &parts, &BTreeSet::new()));
        assert_eq!(write(&mut backlog, 2, later), [7]);
        assert_eq!(backlog.done_to(), FileSeq(2));
    }

    #[test]
    fn given_segments_that_went_when_it_starts_over_then_all_files_are_looked_at_again() {
        let mut backlog = Backlog::default();
        backlog.begin_round(&files(1..=2));
        assert_eq!(write(&mut backlog, 1, plan(&[part(7, 5)], &[])), [7]);
        assert_eq!(write(&mut backlog, 2, plan(&[part(7, 15)], &[7])), [7]);
        backlog.start_over();
        assert_eq!(backlog.done_to(), FileSeq(0));
        backlog.begin_round(&files(1..=2));
        assert_eq!(write(&mut backlog, 1, plan(&[part(7, 5)], &[])), [7]);
        assert_eq!(write(&mut backlog, 2, plan(&[part(7, 15)], &[])), [7]);
    }
}
